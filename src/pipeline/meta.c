/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Changes to meta.mdb: whatever is ready when the lane is free goes into one transaction, so that
 * an acknowledgement and the next seal share a commit. Order is kept.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define META_RETRY_MS    1000
#define META_CHANGES_MAX 4096

struct meta_op {
    struct spool_change change;
    void *memory[3]; /* copies the change points into */
    void (*done)(void *arg);
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
    m->last->next = p->meta_first;
    if (!p->meta_last)
        p->meta_last = m->last;
    p->meta_first = m->first;
}

bool meta_had_no_room(int status)
{
    return status == SPOOL_E_FULL || status == SPOOL_E_LIMIT;
}

void meta_log_full(struct pipeline *p, const struct spool_error *error, const char *action)
{
    uint64_t suppressed = 0;

    if (log_gate_open(&p->meta_gate, 5000, &suppressed))
        log_event(LOG_ERROR, "meta.full", "error", error->text, "action", action,
                  "lines_suppressed", log_u64(suppressed), NULL);
}

static void meta_done(struct job *job)
{
    struct meta_job *m = (struct meta_job *)job;
    struct pipeline *p = job->pipeline;

    p->meta_running = false;
    if (meta_had_no_room(m->status)) {
        meta_log_full(p, &m->error,
                      m->status == SPOOL_E_FULL
                          ? "free space on the spool's file system; trying again"
                          : "trying again");
        meta_requeue(p, m);
        p->meta_retry_at_ms = clock_monotonic_ms() + META_RETRY_MS;
    } else if (m->status != SPOOL_OK) {
        pipeline_fatal(p, "meta.mdb: %s", m->error.text);
        meta_requeue(p, m);
    } else {
        struct meta_op *op = m->first;
        while (op) {
            struct meta_op *next = op->next;
            if (op->stream)
                metrics_observe(p->metrics, METRIC_COMMIT_SECONDS, (double)m->duration_ns / 1e9,
                                op->stream->options->name);
            if (op->done)
                op->done(op->arg);
            meta_op_free(op);
            op = next;
        }
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
    for (struct meta_op *op = m->first; op && (m->count < META_CHANGES_MAX || m->last->joined);
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
