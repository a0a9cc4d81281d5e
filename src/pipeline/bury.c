/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows that a hunt found bad become dead letters, made anew of their columns. Only when those are durable
 * are the rows acknowledged, in the commit that seals the others anew.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "codec/native.h"
#include "pipeline/hunt_int.h"

#define WINDOW_ROWS       200000 /* over which bad_ratio is taken, about */
#define BURY_RETRY_MS     5000
#define BURY_RETRY_MAX_MS 60000

struct bury {
    struct job job;
    struct hunt *hunt;
    struct part *parts; /* one row each */
    size_t count;
    struct row_span *bad, *good; /* the same rows, and the others of the batch */
    size_t good_count;
    uint64_t segment;
    struct spool_dead *letters;
    struct buf *records;
    int status;
    struct spool_error error;
    struct dead_stored stored;
};

static void bury_free(struct bury *y)
{
    for (size_t i = 0; y->records && i < y->count; i++)
        buf_free(&y->records[i]);
    free(y->records);
    free(y->letters);
    free(y->parts);
    free(y->bad);
    free(y->good);
    free(y);
}

/* The row as JSON: what the record was is not kept once it is in columns. */
static int bury_row(struct bury *y, size_t i, const struct buf *raw, const int64_t *offsets)
{
    const struct part *part = &y->parts[i];
    const struct spool_block_ref *ref = &part->block->ref;
    const struct origin *o = part->block->origin;
    struct hunt *h = y->hunt;
    const struct schema *schema = h->batch->segment->schema->schema;
    struct native_block *block = NULL;
    size_t start = 0, length = 0;
    int status;

    if (ref->flags & SPOOL_BLOCK_JSON) {
        status = json_block_line(raw->data, raw->len, part->row, &start, &length);
        if (status == SPOOL_OK)
            status = buf_append(&y->records[i], raw->data + start, length);
    } else {
        status = native_block_open(raw->data, raw->len, &block, &y->error);
        if (status == SPOOL_OK)
            native_block_set_exact(block, schema);
        if (status == SPOOL_OK && schema->server_timezone)
            status = native_block_set_timezone(block, schema->server_timezone, &y->error);
        if (status == SPOOL_OK)
            status = native_block_row_json(block, part->row, &y->records[i], &y->error);
        native_block_free(block);
    }
    y->letters[i] = (struct spool_dead){
        .stream = h->stream->options->name,
        .origin = o->id,
        .origin_name = o->name,
        .offset = offsets ? offsets[part->row] : ref->first_offset + (int64_t)part->row,
        .code = h->bad[i].code,
        .reason_name = refusal_name(REFUSAL_SERVER),
        .reason = h->bad[i].reason,
        .column = "",
        .flags = SPOOL_DEAD_REBUILT,
        .attempts = h->batch->attempts ? h->batch->attempts : 1,
        .dead_ms = clock_wall_ms(),
        .received_ms = ref->first_arrival_ms,
        .timestamp_ms = -1,
        .record = y->records[i].data,
        .record_size = y->records[i].len,
        .record_full_size = y->records[i].len,
    };
    return status;
}

static int bury_build(struct bury *y)
{
    struct spool_reader *reader = NULL;
    const struct block *opened = NULL;
    struct buf raw;
    void *payload = NULL;
    int64_t *offsets = NULL;
    size_t size = 0;
    int status = spool_reader_open(y->hunt->stream->spool, y->segment, &reader, &y->error);

    buf_init(&raw, LIMIT_BLOCK_BYTES * 2);
    for (size_t i = 0; i < y->count && status == SPOOL_OK; i++) {
        if (y->parts[i].block != opened) {
            free(payload);
            free(offsets);
            payload = NULL;
            offsets = NULL;
            buf_reset(&raw);
            opened = y->parts[i].block;
            status = spool_reader_block(reader, &opened->ref, &payload, &size, &offsets, &y->error);
            if (status == SPOOL_OK)
                status = frames_open(payload, size, &raw, &y->error);
        }
        if (status == SPOOL_OK)
            status = bury_row(y, i, &raw, offsets);
        if (status == SPOOL_E_LIMIT)
            status = spool_error_set(&y->error, SPOOL_E_UNSUPPORTED,
                                     "origin %.200s, offset %lld: as a record the row would be "
                                     "larger than one may be",
                                     y->letters[i].origin_name, (long long)y->letters[i].offset);
    }
    free(payload);
    free(offsets);
    buf_free(&raw);
    spool_reader_close(reader);
    return status;
}

static void bury_work(struct job *job)
{
    struct bury *y = (struct bury *)job;

    y->status = bury_build(y);
    if (y->status == SPOOL_OK)
        y->status = dead_put_all(y->hunt->stream, y->letters, y->count, &y->stored, &y->error);
}

/* Made before any row is a letter: then it is to be acknowledged, and no lack of memory may come between. */
static int bury_spans(struct bury *y, const struct hunt *h)
{
    uint64_t at = 0;

    y->bad = calloc(h->bad_count + 1, sizeof(*y->bad));
    y->good = calloc(h->bad_count + 1, sizeof(*y->good));
    if (!y->bad || !y->good)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < h->bad_count; i++) {
        uint64_t row = h->bad[i].row;
        y->bad[i] = (struct row_span){row, 1};
        if (row > at)
            y->good[y->good_count++] = (struct row_span){at, row - at};
        at = row + 1;
    }
    if (at < h->batch->rows)
        y->good[y->good_count++] = (struct row_span){at, h->batch->rows - at};
    return SPOOL_OK;
}

/* Letters that found no room: the stream is woken where letters of its own go, else nobody says when. */
static uint64_t bury_wait(struct batch *b)
{
    uint64_t wait = hunt_wait(b);

    return wait < BURY_RETRY_MAX_MS ? wait : BURY_RETRY_MAX_MS;
}

static void bury_done(struct job *job)
{
    struct bury *y = (struct bury *)job;
    struct hunt *h = y->hunt;
    struct stream *s = h->stream;
    struct batch *b = h->batch;
    struct span_group group = {.spans = y->good, .count = y->good_count};

    if (s->p->closing) { /* the next start finds the same rows, and these letters */
        bury_free(y);
        hunt_free(h);
        return;
    }
    if (y->status != SPOOL_OK) {
        uint64_t wait = BURY_RETRY_MS;
        if (y->status == SPOOL_E_FATAL)
            pipeline_fatal(s->p, "dead.mdb: %s", y->error.text);
        else if (!damage_is(y->status,
                            &y->error)) { /* of a block: the next attempt sets it aside */
            b->unburied = true;
            stream_hold(s, HOLD_DEAD_FULL, "dead letters can't be stored: %s", y->error.text);
            wait = y->status == SPOOL_E_UNSUPPORTED ? hunt_wait(b) : bury_wait(b);
        }
        bury_free(y);
        hunt_give_up(h, wait);
        return;
    }
    dead_stored_done(s, &y->stored);
    if (!s->dead_waiting)
        stream_unhold(s, HOLD_DEAD_FULL);
    metrics_add(s->p->metrics, METRIC_DEAD_LETTERS, (double)h->bad_count, s->options->name,
                refusal_name(REFUSAL_SERVER));
    log_event(LOG_WARN, "rows.refused", "stream", s->options->name, "batch", log_u64(b->id), "rows",
              log_u64(h->bad_count), "of", log_u64(b->rows), "trials",
              log_u64(h->search ? search_trials(h->search) : 0), "milliseconds",
              log_u64(clock_monotonic_ms() - h->started_ms), "code", log_i64(h->code), "reason",
              h->reason, "action", "see spoolctl dead ls", NULL);
    s->window_bad += (double)h->bad_count;
    if (s->window_rows > WINDOW_ROWS) {
        s->window_rows /= 2;
        s->window_bad /= 2;
    }
    b->busy = false;
    if (s->probe == b) {
        s->probe = NULL;
        stream_unhold(s, HOLD_ANSWER);
    }
    b->retry_at_ms = 0;
    b->lettered =
        batch_replace(b, y->bad, h->bad_count, &group, y->good_count ? 1 : 0, NULL) != SPOOL_OK;
    if (b->lettered)
        batch_retry_later(b, BURY_RETRY_MS);
    bury_free(y);
    hunt_drop_table(h);
    hunt_free(h);
    stream_advance(s);
}

void hunt_bury(struct hunt *h)
{
    struct bury *y = calloc(1, sizeof(*y));
    struct lane *lane = &h->stream->p->dead_lane;

    if (!y || bury_spans(y, h) != SPOOL_OK ||
        batch_parts(h->batch, y->bad, h->bad_count, &y->parts, &y->count) != SPOOL_OK)
        goto nomem;
    y->letters = calloc(y->count, sizeof(*y->letters));
    y->records = calloc(y->count, sizeof(*y->records));
    if (!y->letters || !y->records)
        goto nomem;
    for (size_t i = 0; i < y->count; i++)
        buf_init(&y->records[i], LIMIT_BLOCK_BYTES * 2);
    y->hunt = h;
    y->segment = h->batch->segment_number;
    y->job.work = bury_work;
    y->job.done = bury_done;
    if (job_start(h->stream->p, &y->job, &lane, 1) != SPOOL_OK)
        pipeline_fatal(h->stream->p, "out of memory while storing dead letters");
    return;

nomem:
    if (y)
        bury_free(y);
    pipeline_fatal(h->stream->p, "out of memory while storing dead letters");
}
