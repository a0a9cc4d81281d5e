/* SPDX-License-Identifier: Apache-2.0 */
#include "sink/sql_text.h"

#include <string.h>

static int quoted(struct buf *out, const char *text, char quote)
{
    int status = buf_append(out, &quote, 1);

    for (; *text && status == SPOOL_OK; text++) {
        if (*text == quote || *text == '\\')
            status = buf_append(out, "\\", 1);
        if (status == SPOOL_OK)
            status = buf_append(out, text, 1);
    }
    return status == SPOOL_OK ? buf_append(out, &quote, 1) : status;
}

int sql_identifier(struct buf *out, const char *name)
{
    return quoted(out, name, '`');
}

int sql_string(struct buf *out, const char *text)
{
    return quoted(out, text, '\'');
}

int sql_table(struct buf *out, const char *database, const char *table)
{
    int status = SPOOL_OK;

    if (database && database[0]) {
        status = sql_identifier(out, database);
        if (status == SPOOL_OK)
            status = buf_append_str(out, ".");
    }
    return status == SPOOL_OK ? sql_identifier(out, table) : status;
}

void tsv_open(struct tsv_reader *r, char *text, size_t size, size_t columns)
{
    r->at = text;
    r->end = text + size;
    r->columns = columns;
}

/* The byte an escape stands for, or -1. Source: ClickHouse, writeAnyEscapedString. */
static int unescaped(char c)
{
    switch (c) {
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case '\\':
    case '\'':
        return c;
    default:
        return -1;
    }
}

/* One field up to its tab or newline, which is stored in *stop. */
static int tsv_field(struct tsv_reader *r, char **field, char *stop)
{
    char *to = r->at;

    *field = to;
    while (r->at < r->end) {
        char c = *r->at++;
        /* One of a value is escaped: a profile may have lines end so. */
        if (c == '\r' && r->at < r->end && *r->at == '\n')
            c = *r->at++;
        if (c == '\t' || c == '\n') {
            *stop = c;
            *to = '\0';
            return SPOOL_OK;
        }
        if (c == '\0')
            return SPOOL_E_CORRUPT;
        if (c == '\\') {
            int byte = r->at < r->end ? unescaped(*r->at++) : -1;
            if (byte < 0)
                return SPOOL_E_CORRUPT;
            c = (char)byte;
        }
        *to++ = c;
    }
    return SPOOL_E_CORRUPT;
}

int tsv_row(struct tsv_reader *r, char **fields)
{
    if (r->at == r->end)
        return SPOOL_E_END;
    for (size_t i = 0; i < r->columns; i++) {
        char stop = '\0';
        int status = tsv_field(r, &fields[i], &stop);
        if (status != SPOOL_OK)
            return status;
        if (stop != (i + 1 == r->columns ? '\n' : '\t'))
            return SPOOL_E_CORRUPT;
    }
    return SPOOL_OK;
}
