/* SPDX-License-Identifier: Apache-2.0 */
/* The driver: operations of chance on a spool, each noted before and after. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

#define RETRIES 3

struct life {
    struct spool *spool;
    struct spool_stream *streams[STREAMS];
    uint32_t origins[ORIGINS];
    struct model model;
    uint64_t seed;
    unsigned retries;
    void (*note)(const void *data, size_t size);
};

/* A disk that was full may have room again. */
static bool again(struct life *l, int status)
{
    return status == SPOOL_E_FULL && l->retries && l->retries--;
}

static void must(int status, const struct spool_error *error)
{
    if (status == SPOOL_OK)
        return;
    fprintf(stderr, "writelog: %s: %s\n", spool_strerror(status), error->text);
    exit(1);
}

static uint64_t chance(struct life *l, uint64_t below)
{
    return random_next(&l->seed) % below;
}

static void life_note(struct life *l, struct op *op, bool done)
{
    op->done = done;
    l->note(op, sizeof(*op));
    if (done)
        model_apply(&l->model, op, op_steps(op));
}

static void life_append(struct life *l)
{
    struct op op = {.kind = OP_APPEND, .stream = (uint32_t)chance(l, STREAMS)};
    struct spool_block blocks[OP_BLOCKS];
    struct spool_block_ref refs[OP_BLOCKS];
    struct spool_error error = {0};
    int64_t high[ORIGINS];
    size_t appended = 0, stored = 0;
    int status;

    memcpy(high, l->model.high[op.stream], sizeof(high));
    op.count = (uint32_t)chance(l, OP_BLOCKS) + 1;
    for (uint32_t i = 0; i < op.count; i++) {
        struct op_block *b = &op.blocks[i];
        uint8_t *payload;
        b->origin = (uint32_t)chance(l, ORIGINS);
        b->rows = chance(l, 10) ? ROWS : 0;
        b->first = high[b->origin] + 1;
        b->last = high[b->origin] = b->first + ROWS - 1;
        b->size = b->rows ? chance(l, chance(l, 4) ? 8000 : 250000) + 1 : 0;
        payload = malloc(b->size + 1);
        if (!payload)
            abort();
        for (uint64_t k = 0; k < b->size; k++)
            payload[k] = payload_at(op.stream, b->origin, b->first, k);
        blocks[i] = (struct spool_block){.origin = l->origins[b->origin],
                                         .rows = b->rows,
                                         .flags = SPOOL_BLOCK_NATIVE,
                                         .first_offset = b->first,
                                         .last_offset = b->last,
                                         .frames = payload,
                                         .frames_size = b->size};
    }
    life_note(l, &op, false);
    do {
        status = spool_stream_append(l->streams[op.stream], blocks + stored, op.count - stored,
                                     refs + stored, &appended, &error);
        stored += appended;
    } while (again(l, status));
    must(status, &error);
    for (uint32_t i = 0; i < op.count; i++) {
        op.blocks[i].sequence = refs[i].sequence;
        op.blocks[i].segment = refs[i].segment;
        free((void *)(uintptr_t)blocks[i].frames);
    }
    life_note(l, &op, true);
}

static bool is_sealed(const struct life *l, const struct model_block *b)
{
    for (size_t i = 0; i < l->model.seal_count; i++)
        for (uint32_t k = 0; k < l->model.seals[i].count; k++)
            if (l->model.seals[i].stream == b->stream &&
                l->model.seals[i].ranges[k].sequence == b->is.sequence)
                return true;
    return false;
}

/* Waiting blocks of one segment of the stream, as ranges of what is not acknowledged of each. */
static uint32_t waiting_ranges(const struct life *l, uint32_t stream, uint64_t *segment,
                               struct spool_range *ranges, uint32_t max)
{
    uint32_t n = 0;

    *segment = 0;
    for (size_t i = 0; i < l->model.block_count && n < max; i++) {
        const struct model_block *b = &l->model.blocks[i];
        uint32_t row = 0;
        if (b->stream != stream || is_sealed(l, b) || (*segment && b->is.segment != *segment) ||
            (b->is.rows ? b->acked == (1u << ROWS) - 1 : b->acked))
            continue;
        while (b->acked >> row & 1)
            row++; /* only first rows are ever discarded by themselves */
        *segment = b->is.segment;
        ranges[n++] = (struct spool_range){b->is.sequence, row, b->is.rows ? b->is.rows - row : 0};
    }
    return n;
}

static void perform_commit(struct life *l, struct op *op)
{
    struct spool_change changes[4];
    struct spool_error error = {0};
    struct spool_seal seal = {0};
    uint32_t id = spool_stream_id(l->streams[op->stream]);
    char token[32], key[16];
    size_t n = 0;
    int status;

    if (op->ended)
        changes[n++] =
            (struct spool_change){.kind = op->acked ? SPOOL_CHANGE_ACK : SPOOL_CHANGE_UNSEAL,
                                  .stream = id,
                                  .batch = op->ended};
    if (op->discard_count)
        changes[n++] = (struct spool_change){.kind = SPOOL_CHANGE_DISCARD,
                                             .stream = id,
                                             .segment = op->segment,
                                             .ranges = op->discards,
                                             .range_count = op->discard_count};
    if (op->sealed) {
        snprintf(token, sizeof(token), "token-%llu", (unsigned long long)op->sealed);
        seal = (struct spool_seal){.stream = id,
                                   .batch = op->sealed,
                                   .segment = op->segment,
                                   .ranges = op->ranges,
                                   .range_count = op->seal_count,
                                   .token = token,
                                   .attributes = "a",
                                   .attributes_size = 1};
        for (uint32_t i = 0; i < op->seal_count; i++)
            seal.rows += op->ranges[i].rows;
        changes[n++] = (struct spool_change){.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
    }
    if (op->note) {
        snprintf(key, sizeof(key), "note/%u", op->note);
        changes[n++] = (struct spool_change){.kind = SPOOL_CHANGE_PUT,
                                             .key = key,
                                             .value = &op->note_value,
                                             .value_size = sizeof(op->note_value)};
    }
    life_note(l, op, false);
    do
        status = spool_commit(l->spool, changes, n, &error);
    while (again(l, status));
    must(status, &error);
    life_note(l, op, true);
}

static void life_seal(struct life *l)
{
    struct op op = {.kind = OP_COMMIT, .stream = (uint32_t)chance(l, STREAMS)};

    if (l->model.seal_count > 12)
        return;
    op.seal_count =
        waiting_ranges(l, op.stream, &op.segment, op.ranges, (uint32_t)chance(l, OP_RANGES) + 1);
    if (!op.seal_count)
        return;
    op.sealed = l->model.next_batch[op.stream];
    if (!chance(l, 4)) {
        op.note = (uint32_t)chance(l, NOTES) + 1;
        op.note_value = (uint32_t)random_next(&l->seed) | 1;
    }
    perform_commit(l, &op);
}

/* A seal ends: acknowledged, or replaced by one without its first rows, which are discarded. */
static void life_end_seal(struct life *l)
{
    const struct model_seal *s;
    struct op op = {.kind = OP_COMMIT};

    if (!l->model.seal_count)
        return;
    s = &l->model.seals[chance(l, l->model.seal_count)];
    op.stream = s->stream;
    op.segment = s->segment;
    op.ended = s->batch;
    op.acked = chance(l, 4) != 0;
    if (!op.acked && s->ranges[0].rows > 1) {
        memcpy(op.ranges, s->ranges, sizeof(op.ranges));
        op.seal_count = s->count;
        op.discards[0] = op.ranges[0];
        op.discards[0].rows = 1;
        op.discard_count = 1;
        op.ranges[0].row++;
        op.ranges[0].rows--;
        op.sealed = l->model.next_batch[op.stream];
    }
    perform_commit(l, &op);
}

static void life_remove(struct life *l)
{
    struct op op = {.kind = OP_REMOVE, .stream = (uint32_t)chance(l, STREAMS)};
    struct spool_segment_info *infos = NULL;
    struct spool_error error = {0};
    size_t count = 0;
    int status;

    must(spool_stream_segments(l->streams[op.stream], &infos, &count, &error), &error);
    for (size_t i = 0; i < count; i++) {
        if (infos[i].newest || infos[i].acked_blocks < infos[i].blocks)
            continue;
        op.segment = infos[i].number;
        const struct spool_change unlist = {.kind = SPOOL_CHANGE_UNLIST,
                                            .stream = spool_stream_id(l->streams[op.stream]),
                                            .segment = op.segment};
        life_note(l, &op, false);
        do
            status = spool_commit(l->spool, &unlist, 1, &error);
        while (again(l, status));
        must(status, &error);
        must(spool_segment_remove(l->streams[op.stream], op.segment, &error), &error);
        life_note(l, &op, true);
        break;
    }
    free(infos);
}

static void life_dead(struct life *l)
{
    struct op op = {.kind = OP_DEAD_PUT, .offset = (int64_t)chance(l, LETTERS)};
    struct spool_dead d = {
        .stream = "s0", .origin = l->origins[0], .record = "bad", .record_size = 3};
    const struct spool_dead_change gone = {.kind = SPOOL_DEAD_REMOVE,
                                           .place = {l->origins[0], op.offset}};
    struct spool_error error = {0};
    size_t added = 0;
    int status;

    d.offset = op.offset;
    if (l->model.letters[op.offset])
        op.kind = OP_DEAD_REMOVE;
    life_note(l, &op, false);
    do
        status = op.kind == OP_DEAD_PUT ? spool_dead_put(l->spool, &d, 1, &added, &error)
                                        : spool_dead_change(l->spool, "s0", &gone, 1, NULL, &error);
    while (again(l, status));
    must(status, &error);
    life_note(l, &op, true);
}

static void life_open(struct life *l, const char *dir)
{
    const struct spool_options options = {
        .path = dir, .segment_bytes = SEGMENT_SIZE, .meta_reserve_bytes = 65536, .create = true};
    const struct spool_segment_spec spec = {"schema", 6, "db.table"};
    struct spool_error error = {0};
    char name[16];
    int status;

    do
        status = spool_open(&options, &l->spool, &error);
    while (again(l, status));
    must(status, &error);
    for (int i = 0; i < STREAMS; i++) {
        snprintf(name, sizeof(name), "s%d", i);
        do
            status = spool_stream_open(l->spool, name, &l->streams[i], &error);
        while (again(l, status));
        must(status, &error);
        must(spool_stream_configure(l->streams[i], &spec, &error), &error);
    }
    for (int i = 0; i < ORIGINS; i++) {
        snprintf(name, sizeof(name), "o/%d", i);
        do
            status = spool_origin(l->spool, name, 0, &l->origins[i], NULL, &error);
        while (again(l, status));
        must(status, &error);
    }
}

int life_run(const char *dir, uint64_t seed, unsigned steps)
{
    struct life *l = calloc(1, sizeof(*l));

    if (!l)
        return 1;
    l->seed = seed;
    l->retries = RETRIES;
    *(void **)&l->note = dlsym(RTLD_DEFAULT, "writelog_note");
    if (!l->note) {
        fprintf(stderr, "writelog: preload_writelog.so is not loaded\n");
        free(l);
        return 1;
    }
    model_init(&l->model);
    life_open(l, dir);
    for (unsigned i = 0; i < steps; i++) {
        unsigned what = (unsigned)chance(l, 16);
        if (what < 6)
            life_append(l);
        else if (what < 9)
            life_seal(l);
        else if (what < 13)
            life_end_seal(l);
        else if (what < 14)
            life_remove(l);
        else if (what < 15)
            life_dead(l);
        else if (chance(l, 4) == 0) { /* a clean restart */
            spool_close(l->spool);
            life_open(l, dir);
        }
    }
    spool_close(l->spool);
    free(l);
    return 0;
}
