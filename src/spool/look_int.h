/* SPDX-License-Identifier: Apache-2.0 */
/* Private to look*.c: which rows of a segment are sealed or acknowledged. */
#ifndef SPOOL_LOOK_INT_H
#define SPOOL_LOOK_INT_H

#include "base/json_writer.h"
#include "spool/look.h"

/* The sealed and acknowledged ranges of one segment, ascending. */
struct look_marks {
    struct spool_range *acked;
    size_t acked_count;
    struct spool_range *sealed;
    size_t sealed_count;
};

int look_marks_read(struct spool *spool, uint32_t stream, uint64_t segment,
                    struct look_marks *marks, struct spool_error *error);
void look_marks_free(struct look_marks *marks);

/* Rows of a block that are acknowledged, and that are in a seal. */
void look_marks_count(const struct look_marks *marks, const struct spool_block_ref *ref,
                      uint64_t *acked_rows, uint64_t *sealed_rows);
const char *look_marks_block_state(const struct look_marks *marks,
                                   const struct spool_block_ref *ref);
const char *look_marks_row_state(const struct look_marks *marks, uint64_t sequence, uint32_t row);

/* Names of origins, read once each. */
struct look_origin {
    uint32_t id;
    uint32_t epoch;
    char *name;
};

struct look_origins {
    struct spool *spool;
    struct look_origin *entries; /* ascending by id */
    size_t count;
    size_t cap;
};

void look_origins_init(struct look_origins *origins, struct spool *spool);
void look_origins_free(struct look_origins *origins);
/* *out stays valid until the next call. An id meta does not know is named "#<id>", epoch 0. */
int look_origins_get(struct look_origins *origins, uint32_t id, const struct look_origin **out,
                     struct spool_error *error);

/* A look_line_fn over a bounded buffer: SPOOL_E_LIMIT when a line does not fit, and room kept for
   the truncated line that follows then. */
struct look_collector {
    struct buf *out;
    bool full;
};
int look_collect(void *collector, const char *line, size_t size);

#endif
