/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small life of a spool: operations, and what a spool holds after them. The driver performs
 * operations and notes each before it begins and after it was promised; the checker replays the
 * notes on a model and compares it with what a cut left on disk.
 */
#ifndef WRITELOG_MODEL_H
#define WRITELOG_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "spool.h"

#define STREAMS      2
#define ORIGINS      3
#define ROWS         5u /* of a block that has rows */
#define OP_BLOCKS    4
#define OP_RANGES    8
#define MODEL_BLOCKS 4096
#define MODEL_SEALS  64
#define LETTERS      512
#define NOTES        4
#define SEGMENT_SIZE (1u << 20)

enum op_kind {
    OP_NONE,
    OP_APPEND,
    OP_COMMIT, /* any of: a seal that ends (acknowledged or not), a discard, a seal, a note */
    OP_REMOVE, /* a segment */
    OP_DEAD_PUT,
    OP_DEAD_REMOVE,
};

struct op_block {
    uint32_t origin, rows;
    int64_t first, last;
    uint64_t size, sequence, segment; /* the last two: 0 before it was promised */
};

struct op {
    uint32_t kind, done, stream, count;
    struct op_block blocks[OP_BLOCKS];
    uint64_t segment;
    uint64_t ended, sealed; /* batches; 0: none */
    uint32_t acked;         /* what ended was acknowledged */
    uint32_t discard_count, seal_count;
    struct spool_range discards[OP_RANGES], ranges[OP_RANGES];
    uint32_t note; /* 1..NOTES, 0: none */
    uint32_t note_value;
    int64_t offset; /* of a dead letter, in origin 0 of stream 0 */
};

struct model_block {
    struct op_block is;
    uint32_t stream, acked; /* a bit a row; bit 0 of a block without rows */
};

struct model_seal {
    uint64_t batch, segment;
    uint32_t stream, count;
    struct spool_range ranges[OP_RANGES];
};

struct model {
    struct model_block
        blocks[MODEL_BLOCKS]; /* of segments that are there, by stream and sequence */
    size_t block_count;
    struct model_seal seals[MODEL_SEALS];
    size_t seal_count;
    uint64_t next_batch[STREAMS];
    uint64_t last_sequence[STREAMS];
    int64_t high[STREAMS][ORIGINS];
    uint8_t letters[LETTERS]; /* 1: there */
    uint32_t notes[NOTES];
};

void model_init(struct model *m);
/* How many states lie between before and after: each must be allowed for one that was cut. */
uint32_t op_steps(const struct op *op);
/* The op's effect up to a step. */
void model_apply(struct model *m, const struct op *op, uint32_t steps);
struct model_block *model_block(struct model *m, uint32_t stream, uint64_t sequence);
uint32_t range_bits(const struct spool_range *r);

/* The byte of a payload at a place, which depends on where the block belongs. */
uint8_t payload_at(uint32_t stream, uint32_t origin, int64_t first, uint64_t at);

/* life.c: performs operations on a spool in dir, which is empty. Returns the exit code. */
int life_run(const char *dir, uint64_t seed, unsigned steps);

/* check.c: the spool in dir holds exactly what m, or one of the states up to next, says. */
int check_spool(const char *dir, const struct model *m, const struct op *next, char *why,
                size_t why_size);

uint64_t random_next(uint64_t *state);

#endif
