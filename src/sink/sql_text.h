/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces of SQL text, and the TabSeparated answers to it. Pure; private to the sink. */
#ifndef SINK_SQL_TEXT_H
#define SINK_SQL_TEXT_H

#include <stddef.h>

#include "base/buf.h"

/* `name`, escaped. */
int sql_identifier(struct buf *out, const char *name);

/* 'text', escaped. */
int sql_string(struct buf *out, const char *text);

/* `database`.`table`, or `table` alone where database is NULL or empty. */
int sql_table(struct buf *out, const char *database, const char *table);

/*
 * Reads TabSeparated rows of exactly `columns` fields each. Every field is unescaped in place and
 * ended by a NUL, so text is changed.
 */
struct tsv_reader {
    char *at;
    char *end;
    size_t columns;
};

void tsv_open(struct tsv_reader *r, char *text, size_t size, size_t columns);

/* Fills fields[columns]; SPOOL_E_END after the last row, SPOOL_E_CORRUPT on anything odd (a row
   of another width, no newline at the end, an unknown escape, a NUL inside). */
int tsv_row(struct tsv_reader *r, char **fields);

#endif
