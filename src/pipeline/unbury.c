/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Letters of rows that a sealed batch still has. Bad rows become letters first and are acknowledged by
 * the commit after it (bury.c, reencode.c); where that did not come, since spoold was killed or there
 * was no room for all of them, the rows are tried once more, and the table may take them by then. So
 * their letters go before the batch does anything: what is bad yet becomes one again, and no row is
 * both delivered and left to be replayed.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "pipeline/pipeline_int.h"

struct unbury {
    struct job job;
    struct batch *batch;
    struct stream *stream;
    struct part *parts;
    size_t part_count;
    uint64_t segment;
    struct spool_reader *reader;
    /* of the part at hand */
    const struct spool_block_ref *ref;
    int64_t *found; /* offsets in its block that have a letter */
    size_t found_count, found_cap;
    /* results */
    struct spool_dead_change *changes;
    size_t count, cap, removed;
    uint64_t letters, letter_bytes;
    int status;
    struct spool_error error;
};

static int unbury_each(void *arg, const struct spool_dead *letter)
{
    struct unbury *u = arg;

    if (letter->origin != u->ref->origin || letter->offset > u->ref->last_offset)
        return 1;
    if (u->found_count == u->found_cap) {
        size_t cap = u->found_cap ? u->found_cap * 2 : 64;
        int64_t *grown = realloc(u->found, cap * sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        u->found = grown;
        u->found_cap = cap;
    }
    u->found[u->found_count++] = letter->offset;
    return 0;
}

static int unbury_add(struct unbury *u, int64_t offset)
{
    if (u->count == u->cap) {
        size_t cap = u->cap ? u->cap * 2 : 64;
        struct spool_dead_change *grown = realloc(u->changes, cap * sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        u->changes = grown;
        u->cap = cap;
    }
    u->changes[u->count++] =
        (struct spool_dead_change){.kind = SPOOL_DEAD_REMOVE, .place = {u->ref->origin, offset}};
    return SPOOL_OK;
}

/* Those found whose offsets are of the part's rows; offsets: of the block's, NULL: one after the other. */
static int unbury_rows(struct unbury *u, const struct part *part, const int64_t *offsets)
{
    uint32_t row = part->row, end = part->row + part->rows;
    int status = SPOOL_OK;

    for (size_t i = 0; i < u->found_count && status == SPOOL_OK; i++) {
        if (!offsets && u->found[i] - u->ref->first_offset > (int64_t)row)
            row = u->found[i] - u->ref->first_offset < (int64_t)end
                      ? (uint32_t)(u->found[i] - u->ref->first_offset)
                      : end;
        while (offsets && row < end && offsets[row] < u->found[i])
            row++;
        if (row < end && u->found[i] == (offsets ? offsets[row] : u->ref->first_offset + row))
            status = unbury_add(u, u->found[i]);
    }
    return status;
}

static int unbury_part(struct unbury *u, const struct part *part)
{
    struct spool_dead_place from;
    void *payload = NULL;
    int64_t *offsets = NULL;
    size_t size = 0;
    int status;

    u->ref = &part->block->ref;
    u->found_count = 0;
    from = (struct spool_dead_place){u->ref->origin, u->ref->first_offset};
    status = spool_dead_each_whole_from(u->job.pipeline->spool, u->stream->options->name, from,
                                        unbury_each, u, &u->error);
    if (status < 0 || !u->found_count)
        return status < 0 ? status : SPOOL_OK;
    if (!u->reader)
        status = spool_reader_open(u->stream->spool, u->segment, &u->reader, &u->error);
    if (status >= 0)
        status = spool_reader_block(u->reader, u->ref, &payload, &size, &offsets, &u->error);
    if (status == SPOOL_OK)
        status = unbury_rows(u, part, offsets);
    else if (damage_is(status, &u->error)) /* then it is not sent, but read from its source again */
        status = SPOOL_OK;
    free(payload);
    free(offsets);
    return status;
}

static void unbury_work(struct job *job)
{
    struct unbury *u = (struct unbury *)job;
    struct spool *spool = job->pipeline->spool;
    const char *name = u->stream->options->name;

    u->status = SPOOL_OK;
    for (size_t i = 0; i < u->part_count && u->status == SPOOL_OK; i++)
        if (u->parts[i].rows)
            u->status = unbury_part(u, &u->parts[i]);
    if (u->status == SPOOL_OK)
        u->status = spool_dead_change(spool, name, u->changes, u->count, &u->removed, &u->error);
    if (u->status == SPOOL_OK)
        u->status = spool_dead_count(spool, name, &u->letters, &u->letter_bytes, &u->error);
}

static void unbury_free(struct unbury *u)
{
    spool_reader_close(u->reader);
    free(u->parts);
    free(u->found);
    free(u->changes);
    free(u);
}

static void unbury_done(struct job *job)
{
    struct unbury *u = (struct unbury *)job;
    struct batch *b = u->batch;
    struct stream *s = u->stream;

    b->busy = false;
    if (u->status == SPOOL_OK) {
        b->lettered = false;
        dead_counted(s, u->letters, u->letter_bytes, 0);
        if (u->removed)
            log_event(LOG_INFO, "dead.unburied", "stream", s->options->name, "batch",
                      log_u64(b->id), "removed", log_u64(u->removed), NULL);
    } else if (u->status == SPOOL_E_FATAL || u->status == SPOOL_E_NOMEM) {
        pipeline_fatal(s->p, "dead.mdb: %s",
                       u->error.text[0] ? u->error.text : spool_strerror(u->status));
    } else if (!s->p->closing) {
        batch_hold_for(b, "letters of its rows can't be removed: %s", u->error.text);
    }
    unbury_free(u);
    stream_advance(s);
}

void unbury_start(struct batch *b)
{
    struct stream *s = b->stream;
    struct lane *lanes[3] = {&s->p->dead_lane, &s->p->meta_lane, &s->lane};
    struct unbury *u = calloc(1, sizeof(*u));

    if (u)
        u->parts = calloc(b->part_count + 1, sizeof(*u->parts));
    if (u && u->parts) {
        memcpy(u->parts, b->parts, b->part_count * sizeof(*u->parts));
        u->part_count = b->part_count;
        u->batch = b;
        u->stream = s;
        u->segment = b->segment_number;
        u->job.work = unbury_work;
        u->job.done = unbury_done;
        b->busy = true;
        if (job_start(s->p, &u->job, lanes, 3) == SPOOL_OK)
            return;
    }
    if (u)
        unbury_free(u);
    pipeline_fatal(s->p, "out of memory while removing dead letters");
}
