/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Notes in meta.mdb, and changes to it: whatever is ready when the lane is free goes into one
 * transaction, so that an acknowledgement and the next seal share a commit. Order is kept.
 *
 * Where there is no room for a transaction, what may be given up is (a seal of rows that had none,
 * whose rows wait on), so that it does not stand before acknowledgements, which make room; the others
 * go again, fewer at a time, and in the end one at a time, every second.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

struct meta_op {
    struct spool_change change;
    void *memory[3]; /* copies the change points into */
    void (*done)(void *arg);
    void (*refused)(void *arg, const struct spool_error *error); /* given up; NULL: it never is */
    void *arg;
    struct stream *stream; /* whose commit latency it is; may be NULL */
    bool joined;           /* the next one goes into the same transaction */
    struct meta_op *next;
};

struct meta_job {
    struct job job;
    struct meta_op *first, *last;
    size_t count;
    struct spool_change *changes;
    int status;
    uint64_t duration_ns;
    struct spool_error error;
};

static void meta_op_free(struct meta_op *op)
{
    for (size_t i = 0; i < sizeof(op->memory) / sizeof(*op->memory); i++)
        free(op->memory[i]);
    free(op);
}

static void *copy_bytes(const void *data, size_t size)
{
    void *copy = malloc(size ? size : 1);
    if (copy && size)
        memcpy(copy, data, size);
    return copy;
}

/* Queues without starting a commit. */
static struct meta_op *meta_queue(struct pipeline *p, const struct spool_change *change)
{
    struct meta_op *op = calloc(1, sizeof(*op));

    if (!op)
        return NULL;
    op->change = *change;
    if (change->ranges) {
        op->memory[0] = copy_bytes(change->ranges, change->range_count * sizeof(*change->ranges));
        op->change.ranges = op->memory[0];
        if (!op->memory[0])
            goto nomem;
    }
    if (change->key) {
        op->memory[1] = copy_bytes(change->key, strlen(change->key) + 1);
        op->change.key = op->memory[1];
        if (!op->memory[1])
            goto nomem;
    }
    if (change->value) {
        op->memory[2] = copy_bytes(change->value, change->value_size);
        op->change.value = op->memory[2];
        if (!op->memory[2])
            goto nomem;
    }
    if (p->meta_last)
        p->meta_last->next = op;
    else
        p->meta_first = op;
    p->meta_last = op;
    return op;

nomem:
    meta_op_free(op);
    return NULL;
}

int meta_changes(struct pipeline *p, const struct spool_change *changes, size_t count,
                 void (*done)(void *arg), void *arg, struct stream *stream)
{
    for (size_t i = 0; i < count; i++) {
        struct meta_op *op = meta_queue(p, &changes[i]);
        if (!op) {
            pipeline_fatal(p, "out of memory while recording a change of the spool");
            return SPOOL_E_NOMEM;
        }
        op->joined = i + 1 < count;
        if (!op->joined) {
            op->done = done;
            op->arg = arg;
            op->stream = stream;
        }
    }
    meta_advance(p);
    return SPOOL_OK;
}

int meta_change(struct pipeline *p, const struct spool_change *change, void (*done)(void *arg),
                void *arg, struct stream *stream)
{
    return meta_changes(p, change, 1, done, arg, stream);
}

int meta_try(struct pipeline *p, const struct spool_change *change, void (*done)(void *arg),
             void (*refused)(void *arg, const struct spool_error *error), void *arg,
             struct stream *stream)
{
    struct meta_op *op = meta_queue(p, change);

    if (!op) {
        pipeline_fatal(p, "out of memory while recording a change of the spool");
        return SPOOL_E_NOMEM;
    }
    op->done = done;
    op->refused = refused;
    op->arg = arg;
    op->stream = stream;
    meta_advance(p);
    return SPOOL_OK;
}

int note_read(struct spool *spool, const char *key, void **value, size_t *size,
              struct spool_error *error)
{
    struct spool_error why = {0};
    int status;

    *value = NULL;
    *size = 0;
    status = spool_note_get(spool, key, value, size, &why);
    if (status == SPOOL_E_NOT_FOUND)
        return SPOOL_OK;
    if (status != SPOOL_OK) {
        *size = 0;
        if (error)
            *error = why;
    }
    return status;
}

static void meta_work(struct job *job)
{
    struct meta_job *m = (struct meta_job *)job;
    uint64_t start = clock_monotonic_ns();

    m->status = spool_commit(job->pipeline->spool, m->changes, m->count, &m->error);
    m->duration_ns = clock_monotonic_ns() - start;
}

/* The job's operations back to the head of the queue, in order. */
static void meta_requeue(struct pipeline *p, struct meta_job *m)
{
    if (!m->first)
        return;
    m->last->next = p->meta_first;
    if (!p->meta_last)
        p->meta_last = m->last;
    p->meta_first = m->first;
    m->first = m->last = NULL;
}

void meta_log_full(struct pipeline *p, const struct spool_error *error, const char *action)
{
    uint64_t suppressed = 0;

    if (log_gate_open(&p->meta_gate, 5000, &suppressed))
        log_event(LOG_ERROR, "meta.full", "error", error->text, "action", action,
                  "lines_suppressed", log_u64(suppressed), NULL);
}

/* Takes those out that may be given up. */
static struct meta_op *meta_take_refused(struct meta_job *m)
{
    struct meta_op *refused = NULL, **refused_end = &refused, **kept_end = &m->first;

    m->last = NULL;
    for (struct meta_op *op = m->first, *next; op; op = next) {
        next = op->next;
        op->next = NULL;
        if (op->refused) {
            *refused_end = op;
            refused_end = &op->next;
            m->count--;
        } else {
            *kept_end = op;
            kept_end = &op->next;
            m->last = op;
        }
    }
    *kept_end = NULL;
    return refused;
}

/* Nothing of the job was done. */
static void meta_no_room(struct pipeline *p, struct meta_job *m)
{
    struct meta_op *refused = meta_take_refused(m);
    bool single = m->first && (m->count == 1 || p->meta_changes_max == 1);

    meta_log_full(p, &m->error,
                  refused ? "no more is sealed until there is room; what is sealed goes on"
                          : "trying again; free space on the spool's file system");
    if (!refused && single)
        p->meta_retry_at_ms = clock_monotonic_ms() + META_RETRY_MS;
    else if (!refused)
        p->meta_changes_max = m->count > 1 ? m->count / 2 : 1;
    for (struct meta_op *op = m->first; op && !refused && single; op = op->next)
        if (op->stream)
            stream_hold(op->stream, HOLD_NOTES, "what became of its rows can't be noted: %s",
                        m->error.text);
    meta_requeue(p, m);
    while (refused) {
        struct meta_op *op = refused;
        refused = op->next;
        op->refused(op->arg, &m->error);
        meta_op_free(op);
    }
}

static void meta_committed(struct pipeline *p, struct meta_job *m)
{
    p->meta_changes_max =
        p->meta_changes_max < META_CHANGES_MAX / 2 ? 2 * p->meta_changes_max : META_CHANGES_MAX;
    while (m->first) {
        struct meta_op *op = m->first;
        m->first = op->next;
        if (op->stream) {
            metrics_observe(p->metrics, METRIC_COMMIT_SECONDS, (double)m->duration_ns / 1e9,
                            op->stream->options->name);
            stream_unhold(op->stream, HOLD_NOTES);
        }
        if (op->done)
            op->done(op->arg);
        meta_op_free(op);
    }
}

static void meta_done(struct job *job)
{
    struct meta_job *m = (struct meta_job *)job;
    struct pipeline *p = job->pipeline;

    p->meta_running = false;
    /* LIMIT: too much for one commit. */
    if (m->status == SPOOL_E_FULL || (m->status == SPOOL_E_LIMIT && m->count > 1)) {
        meta_no_room(p, m);
    } else if (m->status != SPOOL_OK) {
        pipeline_fatal(p, "meta.mdb: %s", m->error.text);
        meta_requeue(p, m);
    } else {
        meta_committed(p, m);
    }
    free(m->changes);
    free(m);
    meta_advance(p);
    pipeline_advance(p);
}

void meta_advance(struct pipeline *p)
{
    struct meta_job *m;
    struct lane *lane = &p->meta_lane;
    size_t i = 0;

    if (p->meta_running || !p->meta_first || p->fatal)
        return;
    if (p->meta_retry_at_ms > clock_monotonic_ms())
        return;
    m = calloc(1, sizeof(*m));
    if (!m)
        goto nomem;
    m->first = p->meta_first;
    for (struct meta_op *op = m->first; op && (m->count < p->meta_changes_max || m->last->joined);
         op = op->next) {
        m->last = op;
        m->count++;
    }
    m->changes = calloc(m->count, sizeof(*m->changes));
    if (!m->changes)
        goto nomem;
    for (struct meta_op *op = m->first; i < m->count; op = op->next)
        m->changes[i++] = op->change;
    m->job.work = meta_work;
    m->job.done = meta_done;
    p->meta_first = m->last->next;
    if (!p->meta_first)
        p->meta_last = NULL;
    m->last->next = NULL;
    p->meta_running = true;
    if (job_start(p, &m->job, &lane, 1) != SPOOL_OK) {
        p->meta_running = false;
        meta_requeue(p, m);
        goto nomem;
    }
    return;

nomem:
    if (m)
        free(m->changes);
    free(m);
    pipeline_fatal(p, "out of memory while committing to meta.mdb");
}

bool meta_idle(const struct pipeline *p)
{
    return !p->meta_running && !p->meta_first;
}

void meta_free(struct pipeline *p)
{
    struct meta_op *op = p->meta_first;

    while (op) {
        struct meta_op *next = op->next;
        meta_op_free(op);
        op = next;
    }
    p->meta_first = p->meta_last = NULL;
}
