/* SPDX-License-Identifier: Apache-2.0 */
/* A question about a batch: ask.c asks it, ask_sql.c says it. */
#ifndef PIPELINE_ASK_INT_H
#define PIPELINE_ASK_INT_H

#include "pipeline/pipeline_int.h"

struct ask_row {
    uint32_t origin; /* index into ask->origins */
    int64_t offset;
    uint64_t row; /* of the batch */
    bool stored;
};
#define ASK_NO_ORIGIN UINT32_MAX /* of a row whose offset can't be read: it matches no answer */

struct ask_origin {
    const struct origin *origin;
    int64_t low, high;
};

struct ask {
    struct job job;
    struct batch *batch;
    struct stream *stream;
    int endpoint;   /* that is asked */
    bool for_proof; /* it is another than b's, which refused: it counts only if it has all rows */
    struct clickhouse_outcome refusal; /* of b's own endpoint */
    /* for the job */
    struct part *parts;
    size_t part_count;
    bool *damaged; /* per part: it can't be read */
    bool any_damaged;
    uint64_t segment;
    int status;
    struct spool_error error;
    /* what is looked for */
    struct ask_origin *origins;
    size_t origin_count;
    struct ask_row *rows; /* rows of the batch, by (origin, offset) once sorted */
    uint64_t row_count;
};

/* The column that such facts go to, NULL: none. */
const char *ask_column_of(const struct schema *schema, enum column_source source);
/* The statement that asks for the rows that are in. LIMIT, NOMEM; INVALID: an origin has no such name. */
int ask_statement(const struct ask *a, struct buf *sql);
/* What to do about a question that was refused; "": the server's words say it. */
void ask_advice(const struct ask *a, int code, char *text, size_t size);

#endif
