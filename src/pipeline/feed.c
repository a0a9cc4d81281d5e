/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The body of an insert. First a pool job reads every block of the batch and checks its checksum;
 * only then is the first byte sent, so a damaged block never reaches ClickHouse and no insert is
 * cut in the middle because of one (an old server stores what came before a cut). Then two bounded
 * buffers take turns: one is sent from while the other is filled by pread in the pool.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/pipeline_int.h"

#define FEED_BUFFER_BYTES (128 * KIB)

struct feed_buffer {
    char *data;
    size_t filled; /* 0: empty */
};

struct feed {
    struct job job;
    struct batch *batch; /* NULL once closed */
    struct pipeline *pipeline;
    const struct spool_stream *spool;
    uint64_t segment;
    void (*checked)(struct batch *b, const struct spool_error *error);
    struct spool_reader *reader;
    struct spool_block_ref *refs;
    size_t ref_count;
    uint64_t total;
    size_t capacity; /* of each buffer */
    struct feed_buffer buffers[2];
    int current; /* sent from */
    size_t current_at;
    int filling;     /* by the job; -1: none */
    size_t next_ref; /* to read from */
    uint64_t next_at;
    uint64_t sent;
    bool checking, running, starved, closed;
    int status;
    struct spool_error error;
};

static void feed_free(struct feed *f)
{
    spool_reader_close(f->reader);
    free(f->refs);
    free(f->buffers[0].data);
    free(f->buffers[1].data);
    free(f);
}

static void feed_check_work(struct job *job)
{
    struct feed *f = (struct feed *)job;

    f->status = spool_reader_open(f->spool, f->segment, &f->reader, &f->error);
    for (size_t i = 0; i < f->ref_count && f->status == SPOOL_OK; i++)
        if (f->refs[i].frames_bytes)
            f->status = spool_reader_verify(f->reader, &f->refs[i], &f->error);
}

static void feed_fill_work(struct job *job)
{
    struct feed *f = (struct feed *)job;
    struct feed_buffer *b = &f->buffers[f->filling];

    while (b->filled < f->capacity && f->next_ref < f->ref_count && f->status == SPOOL_OK) {
        const struct spool_block_ref *ref = &f->refs[f->next_ref];
        uint64_t left = ref->frames_bytes - f->next_at;
        size_t n = f->capacity - b->filled;

        if (left < n)
            n = (size_t)left;
        if (n)
            f->status =
                spool_reader_read(f->reader, ref, f->next_at, b->data + b->filled, n, &f->error);
        b->filled += n;
        f->next_at += n;
        if (f->next_at == ref->frames_bytes) {
            f->next_ref++;
            f->next_at = 0;
        }
    }
}

static void feed_done(struct job *job);

static void feed_start(struct feed *f, void (*work)(struct job *job))
{
    f->job.work = work;
    f->job.done = feed_done;
    f->running = true;
    if (job_start(f->pipeline, &f->job, NULL, 0) != SPOOL_OK)
        pipeline_fatal(f->pipeline, "out of memory while reading blocks");
}

/* Fills whichever buffer is empty, if anything is left. */
static void feed_advance(struct feed *f)
{
    if (f->running || f->closed || f->status != SPOOL_OK || f->next_ref >= f->ref_count)
        return;
    for (int i = 0; i < 2; i++) {
        int which = (f->current + i) % 2;
        if (f->buffers[which].filled == 0) {
            f->filling = which;
            feed_start(f, feed_fill_work);
            return;
        }
    }
}

static void feed_done(struct job *job)
{
    struct feed *f = (struct feed *)job;

    f->running = false;
    f->filling = -1;
    if (f->closed) {
        feed_free(f);
        return;
    }
    if (f->checking) {
        f->checking = false;
        if (f->status == SPOOL_OK)
            feed_advance(f);
        f->checked(f->batch, f->status == SPOOL_OK ? NULL : &f->error);
        return;
    }
    feed_advance(f);
    if (f->starved && f->batch->insert) {
        f->starved = false;
        insert_resume(f->batch->insert);
    }
}

int feed_open(struct batch *b, void (*checked)(struct batch *b, const struct spool_error *error),
              struct feed **out)
{
    struct feed *f = calloc(1, sizeof(*f));

    if (!f)
        return SPOOL_E_NOMEM;
    f->capacity = b->frames_bytes < FEED_BUFFER_BYTES ? (size_t)b->frames_bytes : FEED_BUFFER_BYTES;
    f->refs = calloc(b->block_count, sizeof(*f->refs));
    f->buffers[0].data = malloc(f->capacity ? f->capacity : 1);
    f->buffers[1].data = malloc(f->capacity ? f->capacity : 1);
    if (!f->refs || !f->buffers[0].data || !f->buffers[1].data) {
        feed_free(f);
        return SPOOL_E_NOMEM;
    }
    for (size_t i = 0; i < b->block_count; i++)
        f->refs[i] = b->blocks[i]->ref;
    f->ref_count = b->block_count;
    f->batch = b;
    f->pipeline = b->stream->p;
    f->spool = b->stream->spool;
    f->segment = b->segment_number;
    f->checked = checked;
    f->total = b->frames_bytes;
    f->filling = -1;
    f->checking = true;
    *out = f;
    feed_start(f, feed_check_work);
    return SPOOL_OK;
}

size_t feed_read(void *feed, char *dst, size_t n)
{
    struct feed *f = feed;
    struct feed_buffer *b = &f->buffers[f->current];
    size_t left;

    if (f->status != SPOOL_OK)
        return HTTP_BODY_ABORT;
    if (b->filled == 0 || f->filling == f->current) {
        f->starved = true;
        feed_advance(f);
        return 0;
    }
    left = b->filled - f->current_at;
    if (n > left)
        n = left;
    memcpy(dst, b->data + f->current_at, n);
    f->current_at += n;
    f->sent += n;
    assert(f->sent <= f->total);
    if (f->current_at == b->filled) {
        b->filled = 0;
        f->current_at = 0;
        f->current = 1 - f->current;
        feed_advance(f);
    }
    return n;
}

void feed_close(struct feed *f)
{
    if (!f)
        return;
    f->batch = NULL;
    f->closed = true;
    if (!f->running)
        feed_free(f);
}
