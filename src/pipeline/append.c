/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Append jobs: blocks in memory become blocks on disk. One commit carries what collected while the
 * last one ran, or what came within append_linger_ms. A Kafka record is not acknowledged by the
 * append, so waiting costs nothing but the memory, which intake.c bounds: where runs wait for that,
 * nothing lingers.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/intake_int.h"

#define INTAKE_APPEND_ROWS    32768
#define INTAKE_LINGER_MIN_MS  10
#define INTAKE_LINGER_MAX_MS  250
#define APPEND_OVERHEAD_BYTES (8 * 4096) /* tree pages a commit leaves behind */

void append_queue(struct stream *s, struct pending_block *first)
{
    while (first) {
        struct pending_block *pb = first;
        first = pb->next;
        pb->next = NULL;
        if (s->append_last)
            s->append_last->next = pb;
        else
            s->append_first = pb;
        s->append_last = pb;
        pb->origin->blocks_undurable++;
        s->append_rows += pb->block.rows;
        s->append_bytes += pb->block.frames_size;
        s->undurable_bytes += pb->block.frames_size;
        s->p->undurable_bytes += pb->block.frames_size;
        s->queued_blocks++;
    }
}

struct append_job {
    struct job job;
    struct stream *stream;
    struct pending_block **pending;
    struct spool_block *blocks;
    struct spool_block_ref *refs;
    size_t count, appended;
    uint64_t bytes;
    struct stream_schema *configure; /* tell the spool first; counted */
    bool configured;                 /* ... which was done */
    int status;
    struct spool_error error;
    uint64_t duration_ns;
};

static void append_work(struct job *job)
{
    struct append_job *a = (struct append_job *)job;
    uint64_t start = clock_monotonic_ns();

    a->status = SPOOL_OK;
    if (a->configure) {
        struct spool_segment_spec spec = {
            .schema = a->configure->serialized.data,
            .schema_size = a->configure->serialized.len,
            .destination = a->configure->target->destination,
        };
        a->status = spool_stream_configure(a->stream->spool, &spec, &a->error);
        a->configured = a->status == SPOOL_OK;
    }
    if (a->status == SPOOL_OK)
        a->status = spool_stream_append(a->stream->spool, a->blocks, a->count, a->refs,
                                        &a->appended, &a->error);
    a->duration_ns = clock_monotonic_ns() - start;
}

static void append_job_free(struct append_job *a)
{
    stream_schema_unref(a->configure);
    free(a->pending);
    free(a->blocks);
    free(a->refs);
    free(a);
}

/* What was not stored goes back to the head of the queue, in order. */
static void append_requeue(struct stream *s, struct append_job *a)
{
    for (size_t i = a->count; i > a->appended; i--) {
        struct pending_block *pb = a->pending[i - 1];
        pb->next = s->append_first;
        s->append_first = pb;
        if (!s->append_last)
            s->append_last = pb;
        s->append_rows += pb->block.rows;
        s->append_bytes += pb->block.frames_size;
    }
}

static void append_done(struct job *job)
{
    struct append_job *a = (struct append_job *)job;
    struct stream *s = a->stream;
    struct pipeline *p = s->p;
    uint64_t rows = 0, bytes = 0, suppressed = 0;
    size_t replayed = 0;

    s->appending = false;
    p->appending_bytes -= a->bytes;
    metrics_observe(p->metrics, METRIC_COMMIT_SECONDS, (double)a->duration_ns / 1e9,
                    s->options->name);
    segments_appended(s, a->pending, a->refs, a->appended);
    for (size_t i = 0; i < a->appended; i++) {
        rows += a->pending[i]->block.rows;
        bytes += a->pending[i]->block.frames_size;
        replayed += a->pending[i]->replayed;
        pending_block_free(a->pending[i]);
    }
    s->undurable_bytes -= bytes;
    p->undurable_bytes -= bytes;
    s->appended_blocks += a->appended;
    p->grown_bytes += APPEND_OVERHEAD_BYTES;
    metrics_add(p->metrics, METRIC_ROWS_SPOOLED, (double)rows, s->options->name);
    metrics_add(p->metrics, METRIC_SPOOL_APPENDED_BYTES, (double)bytes, s->options->name);
    append_requeue(s, a);
    if (a->configure && !a->configured) { /* else the next attempt would go by the former schema */
        stream_schema_unref(s->configured);
        s->configured = NULL;
    }
    if (a->status == SPOOL_OK)
        s->append_refused = false;
    if (a->status == SPOOL_E_FULL) {
        stream_set_full(s, true);
        pressure_refused(s, a->bytes);
        pressure_measure(p);
        s->append_retry_at_ms = clock_monotonic_ms() + INTAKE_RETRY_MS;
        if (log_gate_open(&s->append_gate, 10000, &suppressed))
            log_event(LOG_ERROR, "spool.full", "stream", s->options->name, "error", a->error.text,
                      "action", "intake waits; it goes on when there is room", NULL);
    } else if (a->status != SPOOL_OK) {
        pipeline_fatal(p, "stream %s: append: %s", s->options->name, a->error.text);
    }
    append_job_free(a);
    replay_appended(s, replayed);
    pipeline_advance(p);
}

static uint64_t pending_disk_bytes(const struct pending_block *pb)
{
    return block_disk_bytes(256 + (pb->offsets ? pb->block.rows * sizeof(int64_t) : 0),
                            pb->block.frames_size);
}

/* The next blocks of one schema, up to INTAKE_APPEND_BYTES and what there is room for (at least
   one). */
static void append_start(struct stream *s, uint64_t room)
{
    struct append_job *a = calloc(1, sizeof(*a));
    struct lane *lane = &s->lane;
    struct stream_schema *schema = s->append_first->schema;
    uint64_t bytes = 0;
    size_t n = 0, i = 0;

    for (struct pending_block *pb = s->append_first; pb && pb->schema == schema; pb = pb->next) {
        uint64_t more = pending_disk_bytes(pb);
        if (n && (bytes >= INTAKE_APPEND_BYTES || bytes + more > room))
            break;
        bytes += more;
        n++;
    }
    if (a) {
        a->pending = calloc(n, sizeof(struct pending_block *));
        a->blocks = calloc(n, sizeof(*a->blocks));
        a->refs = calloc(n, sizeof(*a->refs));
    }
    if (!a || !a->pending || !a->blocks || !a->refs) {
        if (a)
            append_job_free(a);
        pipeline_fatal(s->p, "out of memory while appending");
        return;
    }
    a->stream = s;
    a->count = n;
    a->bytes = bytes;
    a->job.work = append_work;
    a->job.done = append_done;
    while (i < n) {
        struct pending_block *pb = s->append_first;
        s->append_first = pb->next;
        pb->next = NULL;
        s->append_rows -= pb->block.rows;
        s->append_bytes -= pb->block.frames_size;
        a->pending[i] = pb;
        a->blocks[i] = pb->block;
        i++;
    }
    if (!s->append_first)
        s->append_last = NULL;
    if (s->configured != schema) {
        a->configure = stream_schema_ref(schema);
        stream_schema_unref(s->configured);
        s->configured = stream_schema_ref(schema);
    }
    s->appending = true;
    s->p->appending_bytes += bytes;
    if (job_start(s->p, &a->job, &lane, 1) != SPOOL_OK)
        pipeline_fatal(s->p, "out of memory while appending");
}

static uint64_t append_linger_ms(const struct stream *s)
{
    uint64_t linger = s->options->flush_interval_ms / 4;

    if (linger < INTAKE_LINGER_MIN_MS)
        linger = INTAKE_LINGER_MIN_MS;
    return linger > INTAKE_LINGER_MAX_MS ? INTAKE_LINGER_MAX_MS : linger;
}

/* When the queued blocks are due; 0: none wait. */
uint64_t append_due_ms(const struct stream *s)
{
    uint64_t due;

    if (!s->append_first || s->appending)
        return 0;
    due = s->append_first->arrived_ms + append_linger_ms(s);
    if (s->append_rows >= INTAKE_APPEND_ROWS || s->append_bytes >= INTAKE_APPEND_BYTES ||
        s->append_first->arrived_ms <= s->flush_before_ms || s->runs_wait || s->p->draining)
        due = 1;
    return due < s->append_retry_at_ms ? s->append_retry_at_ms : due;
}

void append_advance(struct stream *s, uint64_t now)
{
    uint64_t due = append_due_ms(s);
    uint64_t room;

    if (!due || due > now)
        return;
    room = pressure_room(s, pending_disk_bytes(s->append_first));
    if (pending_disk_bytes(s->append_first) <= room) {
        append_start(s, room);
    } else {
        s->append_retry_at_ms = now + INTAKE_RETRY_MS;
        pressure_refused(s, pending_disk_bytes(s->append_first));
    }
}
