/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by schema_resolve.c and schema_source.c: the state of one resolving. */
#ifndef CODEC_SCHEMA_RESOLVE_INT_H
#define CODEC_SCHEMA_RESOLVE_INT_H

#include "codec/schema_int.h"

struct resolver {
    const struct schema_options *options;
    const struct table_column *table; /* NULL: from the wishes alone */
    size_t table_count;
    bool converting;
    struct schema *schema;
    bool *needs_default; /* by column: a DEFAULT expression somebody has to apply */
    struct buf *problems;
    size_t problem_count;
    int status; /* SPOOL_OK, or what is no problem of the config: out of memory */
};

/* Remembers the first failure that is no problem of the config. */
void resolver_note(struct resolver *r, int status);

/* One line "column NAME: ...", or without a column. Names and types may hold anything: one line. */
void resolver_problem(struct resolver *r, const char *column, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A copy the caller owns; NULL with r->status set. */
char *resolver_keep(struct resolver *r, const char *text);

/* Keeps name in *best if it is nearer to wanted than what is there; *found is its distance. */
void resolver_nearer(const char *wanted, const char *name, const char **best, size_t *found);

/* Where the column's values come from, and what stands in for a missing one. c has its type. */
void resolver_set_source(struct resolver *r, struct schema_column *c,
                         const struct column_wish *wish);

#endif
