/* SPDX-License-Identifier: Apache-2.0 */
/* Sources of columns: keys, facts of the record, constants. And the lines that problems make. */
#include <stdarg.h>
#include <stdlib.h>
#include <strings.h>

#include "codec/schema_resolve_int.h"

void resolver_note(struct resolver *r, int status)
{
    if (r->status == SPOOL_OK)
        r->status = status;
}

void resolver_problem(struct resolver *r, const char *column, const char *format, ...)
{
    size_t start = r->problems->len;
    va_list args;
    int status = SPOOL_OK;

    r->problem_count++;
    if (column)
        status = buf_printf(r->problems, "column %s: ", column);
    va_start(args, format);
    if (status == SPOOL_OK)
        status = buf_vprintf(r->problems, format, args);
    va_end(args);
    for (size_t i = start; i < r->problems->len; i++)
        if (r->problems->data[i] < 0x20 || r->problems->data[i] == 0x7f)
            r->problems->data[i] = ' ';
    if (status == SPOOL_OK)
        status = buf_put_u8(r->problems, '\n');
    /* A full list of problems is still a list of problems. */
    if (status == SPOOL_E_NOMEM)
        resolver_note(r, status);
}

char *resolver_keep(struct resolver *r, const char *text)
{
    char *copy = strdup(text);

    if (!copy)
        resolver_note(r, SPOOL_E_NOMEM);
    return copy;
}

#define NEAREST_BYTES 64

/* Levenshtein's distance; names longer than NEAREST_BYTES are never near. */
static size_t distance(const char *a, const char *b)
{
    size_t row[NEAREST_BYTES + 1], n = strlen(a), m = strlen(b);

    if (n > NEAREST_BYTES || m > NEAREST_BYTES)
        return SIZE_MAX;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[m];
}

void resolver_nearer(const char *wanted, const char *name, const char **best, size_t *found)
{
    size_t d = strcasecmp(wanted, name) == 0 ? 0 : distance(wanted, name);

    if (d < *found) {
        *found = d;
        *best = name;
    }
}

/* ---- sources -------------------------------------------------------------------------------- */

enum fact_wants { WANTS_TEXT, WANTS_OBJECT, WANTS_INTEGER, WANTS_OFFSET, WANTS_TIME };

static const struct fact {
    const char *name;
    enum column_source source;
    enum fact_wants wants;
} facts[] = {
    {"$record", SOURCE_RECORD, WANTS_OBJECT},     {"$rest", SOURCE_REST, WANTS_OBJECT},
    {"$topic", SOURCE_TOPIC, WANTS_TEXT},         {"$partition", SOURCE_PARTITION, WANTS_INTEGER},
    {"$offset", SOURCE_OFFSET, WANTS_OFFSET},     {"$key", SOURCE_MESSAGE_KEY, WANTS_TEXT},
    {"$timestamp", SOURCE_TIMESTAMP, WANTS_TIME}, {"$headers", SOURCE_HEADERS, WANTS_OBJECT},
    {"$origin", SOURCE_ORIGIN, WANTS_TEXT},       {"$received_at", SOURCE_RECEIVED_AT, WANTS_TIME},
};

#define FACTS_COUNT (sizeof(facts) / sizeof(facts[0]))

static const char *const wants_text[] = {
    [WANTS_TEXT] = "String or FixedString",
    [WANTS_OBJECT] = "String or JSON",
    [WANTS_INTEGER] = "an integer of 32 or 64 bits",
    [WANTS_OFFSET] = "Int64 or UInt64",
    [WANTS_TIME] = "a date or time, or Int64 or UInt64 for milliseconds",
};

static bool fact_fits(enum fact_wants wants, enum type_kind kind)
{
    switch (wants) {
    case WANTS_TEXT:
        return kind == TYPE_STRING || kind == TYPE_FIXED_STRING;
    case WANTS_OBJECT:
        return kind == TYPE_STRING || kind == TYPE_JSON;
    case WANTS_INTEGER:
        return kind == TYPE_INT32 || kind == TYPE_UINT32 || kind == TYPE_INT64 ||
               kind == TYPE_UINT64;
    case WANTS_OFFSET:
        return kind == TYPE_INT64 || kind == TYPE_UINT64;
    case WANTS_TIME:
        return kind == TYPE_DATE || kind == TYPE_DATE32 || kind == TYPE_DATETIME ||
               kind == TYPE_DATETIME64 || kind == TYPE_INT64 || kind == TYPE_UINT64;
    }
    return false;
}

static void set_fact(struct resolver *r, struct schema_column *c, const char *from)
{
    const char *best = NULL;
    size_t found = SIZE_MAX;

    for (size_t i = 0; i < FACTS_COUNT; i++) {
        const struct fact *f = &facts[i];
        if (strcmp(from, f->name) == 0) {
            c->source = f->source;
            if (!fact_fits(f->wants, schema_core_type(c->type)->kind))
                resolver_problem(r, c->name, "%s needs %s, the column is %s", from,
                                 wants_text[f->wants], c->type->text);
            return;
        }
        resolver_nearer(from, f->name, &best, &found);
    }
    resolver_problem(r, c->name, "\"from\" is %s, which is no fact of a record; the nearest is %s",
                     from, best ? best : facts[0].name);
}

static void set_key(struct resolver *r, struct schema_column *c, const char *from)
{
    struct buf path;

    c->source = SOURCE_KEY;
    if (from) {
        if (!schema_path_valid(from))
            resolver_problem(r, c->name, "\"from\" is \"%s\", which is no path of keys", from);
        c->path = resolver_keep(r, from);
        return;
    }
    buf_init(&path, 2 * strlen(c->name) + 1);
    if (schema_path_escape(c->name, &path) == SPOOL_OK && buf_cstr(&path)) {
        c->path = (char *)path.data;
        return;
    }
    buf_free(&path);
    resolver_note(r, SPOOL_E_NOMEM);
}

void resolver_set_source(struct resolver *r, struct schema_column *c,
                         const struct column_wish *wish)
{
    if (wish->value && wish->from)
        resolver_problem(r, c->name, "has both \"from\" and \"value\"");
    if (wish->value) {
        c->source = SOURCE_CONSTANT;
        c->literal = resolver_keep(r, wish->value);
    } else if (wish->from && wish->from[0] == '$') {
        set_fact(r, c, wish->from);
    } else {
        set_key(r, c, wish->from);
    }
    if (wish->required && wish->default_json)
        resolver_problem(r, c->name,
                         "is \"required\" and has a \"default\", which can never be used");
    if (wish->default_json)
        c->default_json = resolver_keep(r, wish->default_json);
    c->required = wish->required;
    c->truncate = wish->truncate;
}
