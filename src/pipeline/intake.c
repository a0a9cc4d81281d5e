/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intake: runs of records -> decode jobs -> (dead letters) -> append jobs.
 *
 * Decode jobs run beside each other, at most one per origin, so that an origin's blocks reach the
 * spool in order. What a job found bad is committed to dead.mdb before its block is queued: a
 * record is either in a block, in the dead letters, or will be read again. One that is read again
 * and fits by now loses its letter before its block is queued. decode_job.c is what a job does,
 * append.c what becomes of its blocks.
 *
 * What is not yet durable is bounded over all streams. Beyond one run a stream takes only what there
 * is room for on disk too, so what waits for room is at most that run of each, and leaves the
 * others the rest; a full stream gives its other runs back to the source. Runs of a log that is over
 * could not be had again: they stay, and become blocks that wait for room.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/intake_int.h"

#define INTAKE_IDLE_BYTES      (20 * MIB) /* kept by all jobs; two of the largest runs */
#define INTAKE_JOB_FIXED_BYTES (64 * KIB) /* of a job without its buffers */

/* What of a job's buffers was ever used: they double, and the columns of its decoder hold about as
   much as the block made of them. */
static uint64_t decode_job_bytes(const struct decode_job *d)
{
    size_t block = d->raw.len > d->raw.cap / 2 ? d->raw.len : d->raw.cap / 2;

    return INTAKE_JOB_FIXED_BYTES + 2 * block + d->frames.cap +
           d->offsets_cap * sizeof(*d->offsets);
}

/* Jobs are kept for the next run of their streams; what is too much goes, the streams in turn. */
static bool decode_job_keep(struct decode_job *d)
{
    struct pipeline *p = d->stream->p;
    uint64_t bytes = decode_job_bytes(d);

    if (bytes > INTAKE_IDLE_BYTES)
        return false;
    while (p->idle_bytes + bytes > INTAKE_IDLE_BYTES)
        intake_drop_decoders(&p->streams[p->idle_turn++ % p->stream_count]);
    d->idle_bytes = bytes;
    p->idle_bytes += bytes;
    return true;
}

static void decode_job_park(struct decode_job *d)
{
    struct stream *s = d->stream;

    d->first = d->last = NULL;
    d->dead_first = d->dead_last = NULL;
    d->dead_count = 0;
    d->rows = d->tombstones = d->refused = d->taken_rows = 0;
    d->node = NULL;
    d->origin = NULL;
    if (d->schema != s->schema || d->status != SPOOL_OK || s->p->closing || !decode_job_keep(d)) {
        decode_job_free(d);
        return;
    }
    d->next_idle = s->idle_jobs;
    s->idle_jobs = d;
}

void intake_drop_decoders(struct stream *s)
{
    while (s->idle_jobs) {
        struct decode_job *d = s->idle_jobs;
        s->idle_jobs = d->next_idle;
        s->p->idle_bytes -= d->idle_bytes;
        decode_job_free(d);
    }
}

/* The job's run counts no more; its blocks do once they are queued. */
static void decode_uncount(struct decode_job *d)
{
    d->stream->decoding_bytes -= d->run_bytes;
    d->stream->p->decoding_bytes -= d->run_bytes;
    d->run_bytes = 0;
}

/* Origins wait for a decode job in the order their runs came: none starves. */
static void origin_ready(struct origin *o)
{
    struct stream *s = o->stream;

    if (o->ready || o->decoding || !o->runs_first)
        return;
    o->ready = true;
    o->next_ready = NULL;
    if (s->ready_last)
        s->ready_last->next_ready = o;
    else
        s->ready_first = o;
    s->ready_last = o;
}

/* The job's results are safe or queued: the origin may go on. */
static void decode_finish(struct decode_job *d)
{
    struct stream *s = d->stream;
    struct origin *o = d->origin;

    o->decoding = false;
    origin_ready(o);
    decode_uncount(d);
    append_queue(s, d->first);
    decode_job_park(d);
    pipeline_advance(s->p);
}

struct dead_job {
    struct job job;
    struct decode_job *decode;
    struct spool_dead *letters;
    size_t count;
    uint64_t room_bytes; /* dead.mdb may grow by */
    uint64_t disk_bytes; /* the letters may take */
    bool clears;         /* letters of records that are rows now go first */
    bool same_log;       /* ... also of an epoch before, that another consumer's commit ended */
    bool cleared;        /* ... and went */
    int64_t last_letter;
    size_t removed;
    struct dead_stored stored;
    int status;
    struct spool_error error;
};

static void dead_work(struct job *job)
{
    struct dead_job *dj = (struct dead_job *)job;
    struct decode_job *d = dj->decode;

    dj->status = SPOOL_OK;
    if (dj->clears)
        dj->status = dead_clear(d->stream, d->first, dj->letters, dj->count, dj->same_log,
                                &dj->last_letter, &dj->removed, &dj->error);
    dj->cleared = dj->clears && dj->status == SPOOL_OK;
    if (dj->status == SPOOL_OK)
        dj->status =
            dead_put(d->stream, dj->letters, dj->count, dj->room_bytes, &dj->stored, &dj->error);
}

static bool is_refill(const struct decode_job *d)
{
    return d->first->block.flags & SPOOL_BLOCK_REFILL;
}

/* Letters may stand of what the job read: put by a process that ended before the rows beside them were
   durable, or beside rows that are read again because they were damaged. */
static bool may_have_letters(const struct decode_job *d)
{
    return is_refill(d) || d->first->block.first_offset <= d->origin->letters_to;
}

static void dead_cleared(struct dead_job *dj)
{
    struct decode_job *d = dj->decode;

    if (!dj->cleared)
        return;
    if (!is_refill(d))
        d->origin->letters_to = dj->last_letter;
    dead_counted(d->stream, dj->stored.letters, dj->stored.bytes, 0);
    if (dj->removed)
        log_event(LOG_INFO, "dead.fits_now", "stream", d->stream->options->name, "origin",
                  d->origin->name, "removed", log_u64(dj->removed), NULL);
}

/* Letters that are durable leave the job; the rest waits for room. */
static void dead_taken(struct dead_job *dj)
{
    struct decode_job *d = dj->decode;
    struct stream *s = d->stream;
    uint64_t suppressed = 0;

    for (size_t i = 0; i < dj->stored.put; i++) {
        struct pending_dead *pd = d->dead_first;
        metrics_add(s->p->metrics, METRIC_DEAD_LETTERS, 1, s->options->name,
                    pd->letter.reason_name);
        d->dead_first = pd->next;
        pd->next = NULL;
        pending_dead_free(pd);
    }
    if (!d->dead_first)
        d->dead_last = NULL;
    d->dead_count -= dj->stored.put;
    if (!dj->stored.put)
        return;
    pressure_dead_took(s, dj->stored.grown_bytes);
    dead_counted(s, dj->stored.letters, dj->stored.bytes, dj->stored.grown_bytes);
    if (log_gate_open(&s->dead_gate, 10000, &suppressed))
        log_event(LOG_WARN, "record.refused", "stream", s->options->name, "origin", d->origin->name,
                  "first", d->refused_text, "records", log_u64(dj->stored.put), "lines_suppressed",
                  log_u64(suppressed), "action", "see spoolctl dead ls", NULL);
}

static void dead_done(struct job *job)
{
    struct dead_job *dj = (struct dead_job *)job;
    struct decode_job *d = dj->decode;
    struct stream *s = d->stream;

    s->p->appending_bytes -= dj->disk_bytes;
    s->dead_putting_bytes -= dj->disk_bytes;
    dead_cleared(dj);
    dead_taken(dj);
    if (dj->status == SPOOL_E_FULL) {
        stream_hold(s, HOLD_DEAD_FULL,
                    "dead letters can't be stored: %s: let the spool drain, discard or replay "
                    "some, or free space on its file system",
                    dj->error.text);
        s->dead_retry_at_ms = clock_monotonic_ms() + INTAKE_RETRY_MS;
    } else if (dj->status == SPOOL_E_LIMIT) {
        stream_hold(s, HOLD_DEAD_FULL, "%s", dj->error.text);
        s->dead_retry_at_ms = UINT64_MAX;
    } else if (dj->status != SPOOL_OK) {
        pipeline_fatal(s->p, "dead.mdb: %s", dj->error.text);
    }
    if (dj->status != SPOOL_OK) {
        d->next_idle = s->dead_waiting;
        s->dead_waiting = d;
        stream_advance(s);
    } else {
        if (!s->dead_waiting)
            stream_unhold(s, HOLD_DEAD_FULL);
        decode_finish(d);
    }
    free(dj->letters);
    free(dj);
}

/*
 * Another consumer's commit ended the epoch. The records are read again in the next one, which may have looked
 * for letters of theirs already, or were passed by that commit as the rows beside them.
 */
static bool is_discarded(const struct origin *o)
{
    return o->discard_to == INT64_MAX;
}

static void dead_drop(struct decode_job *d)
{
    pending_dead_free(d->dead_first);
    d->dead_first = d->dead_last = NULL;
    d->dead_count = 0;
}

static void dead_start(struct decode_job *d)
{
    struct pipeline *p = d->stream->p;
    struct lane *lanes[3] = {&p->dead_lane, &p->meta_lane, &d->stream->lane};
    struct dead_job *dj = calloc(1, sizeof(*dj));
    size_t i = 0;

    if (is_discarded(d->origin))
        dead_drop(d);
    if (dj)
        dj->letters = calloc(d->dead_count + 1, sizeof(*dj->letters));
    if (!dj || !dj->letters) {
        free(dj);
        pipeline_fatal(p, "out of memory while storing dead letters");
        return;
    }
    for (struct pending_dead *pd = d->dead_first; pd; pd = pd->next)
        dj->letters[i++] = pd->letter;
    dj->count = i;
    dj->decode = d;
    dj->room_bytes = pressure_dead_room(d->stream);
    dj->disk_bytes = dead_disk_bytes(dj->letters, dj->count);
    if (dj->disk_bytes > dj->room_bytes)
        dj->disk_bytes = dj->room_bytes;
    p->appending_bytes += dj->disk_bytes; /* so that no rows take the same room */
    d->stream->dead_putting_bytes += dj->disk_bytes;
    dj->clears = may_have_letters(d) && !is_discarded(d->origin);
    dj->same_log = d->origin->told_from != INT64_MAX;
    dj->job.work = dead_work;
    dj->job.done = dead_done;
    if (job_start(p, &dj->job, lanes, dj->clears ? 3 : 1) != SPOOL_OK)
        pipeline_fatal(p, "out of memory while storing dead letters");
}

static void decode_done(struct job *job)
{
    struct decode_job *d = (struct decode_job *)job;
    struct stream *s = d->stream;
    struct pipeline *p = s->p;
    struct origin *o = d->origin;
    struct record_run_node *node = d->node;

    p->decoding--;
    s->decoding--;
    for (struct pending_block *pb = d->first; pb; pb = pb->next)
        stream_schema_ref(pb->schema);
    if (d->status != SPOOL_OK) {
        pipeline_fatal(p, "stream %s, origin %s: %s", s->options->name, o->name, d->error.text);
        o->decoding = false;
        return;
    }
    if (node->run) { /* held back: on_bad_record is hold */
        while (d->first) {
            struct pending_block *next = d->first->next;
            pending_block_free(d->first);
            d->first = next;
        }
        pending_dead_free(d->dead_first);
        node->next = o->runs_first;
        o->runs_first = node;
        if (!o->runs_last)
            o->runs_last = node;
        s->queued_runs++;
        o->decoding = false;
        o->held_to = node->cover_last;
        /* gives the stream's runs back, this one too: they would count against all streams */
        stream_hold(s, HOLD_BAD_RECORD,
                    "origin %s, %s: on_bad_record is \"hold\"; "
                    "spoolctl resume puts it to the dead letters and goes on",
                    o->name, d->refused_text);
        decode_uncount(d);
        decode_job_park(d);
        pipeline_advance(p);
        return;
    }
    o->runs_unreleased--;
    s->records_in += node->take;
    metrics_add(p->metrics, METRIC_RECORDS_IN, node->take, s->options->name,
                o->kafka ? "kafka" : "other");
    metrics_add(p->metrics, METRIC_BYTES_IN, (double)node->bytes, s->options->name,
                o->kafka ? "kafka" : "other");
    if (d->tombstones)
        metrics_add(p->metrics, METRIC_TOMBSTONES, d->tombstones, s->options->name);
    kafka_in_released(p, node);
    free(node);
    d->node = NULL;
    if (d->dead_count || may_have_letters(d))
        dead_start(d);
    else
        decode_finish(d);
}

/* A decode job with a decoder for the stream's schema, from the shelf or new. */
static struct decode_job *decode_job_get(struct stream *s, struct spool_error *error)
{
    struct decode_job *d = s->idle_jobs;

    if (d) {
        s->idle_jobs = d->next_idle;
        d->next_idle = NULL;
        s->p->idle_bytes -= d->idle_bytes;
        return d;
    }
    d = decode_job_create(s, error);
    if (d)
        d->job.done = decode_done;
    return d;
}

static bool intake_blocked(const struct stream *s)
{
    return !s->schema || s->holds[HOLD_BAD_RECORD] || s->holds[HOLD_DEAD_FULL] || s->dead_waiting ||
           s->p->fatal;
}

/* Of streams that wait for room on disk, or for room for their dead letters. */
static uint64_t waiting_bytes(const struct pipeline *p)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < p->stream_count; i++) {
        const struct stream *s = &p->streams[i];
        if (s->append_refused)
            sum += s->undurable_bytes;
        if (s->holds[HOLD_DEAD_FULL])
            sum += s->decoding_bytes;
    }
    return sum < INTAKE_UNDURABLE_BYTES ? sum : INTAKE_UNDURABLE_BYTES;
}

/* Whether a run of so many bytes may become blocks now. */
static bool intake_has_room(const struct stream *s, uint64_t bytes)
{
    const struct pipeline *p = s->p;

    if (!s->undurable_bytes && !s->decoding_bytes)
        return true;
    return p->undurable_bytes + p->decoding_bytes + bytes <=
               INTAKE_UNDURABLE_BYTES + waiting_bytes(p) &&
           pressure_fits(s, bytes);
}

/* Starts one decode job of the stream, if any origin has a run for it and there is room. */
static bool decode_start_one(struct stream *s)
{
    struct origin *o = s->ready_first;
    struct record_run_node *node;
    struct decode_job *d;
    struct spool_error error;

    s->runs_wait = o && !o->log_over && !intake_has_room(s, o->runs_first->bytes);
    if (!o || s->runs_wait)
        return false;
    d = decode_job_get(s, &error);
    if (!d) {
        pipeline_fatal(s->p, "stream %s: %s", s->options->name, error.text);
        return false;
    }
    s->ready_first = o->next_ready;
    if (!s->ready_first)
        s->ready_last = NULL;
    o->ready = false;
    node = o->runs_first;
    o->runs_first = node->next;
    if (!o->runs_first)
        o->runs_last = NULL;
    node->next = NULL;
    node->accept_bad = node->cover_first <= o->accept_to;
    o->decoding = true;
    d->origin = o;
    d->node = node;
    d->run_bytes = node->bytes;
    s->queued_runs--;
    s->decoding++;
    s->decoding_bytes += node->bytes;
    s->p->decoding++;
    s->p->decoding_bytes += node->bytes;
    if (job_start(s->p, &d->job, NULL, 0) != SPOOL_OK) {
        pipeline_fatal(s->p, "out of memory while decoding");
        return false;
    }
    return true;
}

void intake_run(struct origin *o, struct record_run *run, struct kafka_partition *partition)
{
    struct record_run_node *node = calloc(1, sizeof(*node));

    if (!node) {
        pipeline_fatal(o->stream->p, "out of memory while taking records");
        return;
    }
    node->run = run;
    node->partition = partition;
    o->log_over |= run->last_of_log;
    if (!hole_run(o, run, node)) {
        assert(run->first_offset > o->taken && run->first_offset > o->high);
        o->taken = run->last_offset;
        node->before = o->mark;
        o->mark = run->mark;
        node->cover_first = run->first_offset;
        node->cover_last = run->last_offset;
        node->take = run->count;
    }
    node->count = run->count;
    node->bytes = run->bytes;
    node->arrived_ms = clock_monotonic_ms();
    if (o->runs_last)
        o->runs_last->next = node;
    else
        o->runs_first = node;
    o->runs_last = node;
    o->runs_unreleased++;
    o->stream->queued_runs++;
    origin_ready(o);
    stream_advance(o->stream);
}

static void dead_retry(struct stream *s)
{
    while (s->dead_waiting && !s->p->fatal) {
        struct decode_job *d = s->dead_waiting;
        s->dead_waiting = d->next_idle;
        d->next_idle = NULL;
        dead_start(d);
    }
}

void intake_advance(struct stream *s)
{
    struct pipeline *p = s->p;
    uint64_t now = clock_monotonic_ms();

    if (p->fatal)
        return;
    if (s->dead_waiting && now >= s->dead_retry_at_ms)
        dead_retry(s);
    while (!intake_blocked(s) && p->decoding < p->decode_max && decode_start_one(s))
        continue;
    append_advance(s, now);
    /* Its partitions are paused, and what it was handed before counts against what the source may
       hold for all streams. */
    if (s->full && s->queued_runs)
        intake_release_runs(s, true);
}

uint64_t intake_deadline_ms(const struct stream *s)
{
    uint64_t due = append_due_ms(s);

    if (s->dead_waiting && s->dead_retry_at_ms != UINT64_MAX && (!due || s->dead_retry_at_ms < due))
        due = s->dead_retry_at_ms;
    return due;
}

bool intake_idle(const struct stream *s)
{
    return !s->queued_runs && !s->decoding && !s->append_first && !s->appending && !s->dead_waiting;
}

void intake_release_runs(struct stream *s, bool again)
{
    s->ready_first = s->ready_last = NULL;
    for (struct origin *o = s->origins; o; o = o->next) {
        o->ready = false;
        if (!o->runs_first)
            continue;
        if (again && o->log_over) {
            origin_ready(o);
            continue;
        }
        while (o->runs_first) {
            struct record_run_node *node = o->runs_first;
            o->runs_first = node->next;
            if (node->refill)
                hole_run_dropped(o, node);
            else if (node->cover_first <= o->taken) {
                o->taken = node->cover_first - 1;
                o->mark = node->before;
            }
            node->run->ops->release(node->run);
            kafka_in_released(s->p, node);
            free(node);
            s->queued_runs--;
            o->runs_unreleased--;
        }
        o->runs_last = NULL;
        if (again)
            origin_start_reading(o);
    }
}

void intake_free(struct stream *s)
{
    intake_drop_decoders(s);
    while (s->append_first) {
        struct pending_block *pb = s->append_first;
        s->append_first = pb->next;
        pending_block_free(pb);
    }
    while (s->dead_waiting) {
        struct decode_job *d = s->dead_waiting;
        s->dead_waiting = d->next_idle;
        pending_dead_free(d->dead_first);
        while (d->first) {
            struct pending_block *next = d->first->next;
            pending_block_free(d->first);
            d->first = next;
        }
        decode_job_free(d);
    }
}
