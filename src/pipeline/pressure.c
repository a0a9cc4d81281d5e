/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bound on disk. Once a second, and whenever an append is refused, the spool's files are
 * counted; between that, what was appended is added. From 90 % of the bound on, segments kept after
 * their acknowledgement go at once, then the streams above an equal share wait (on_full: pause) or
 * lose their oldest rows (on_full: drop_oldest, counted and named) until 75 % is reached: a stuck
 * stream does not stop the others.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define PRESSURE_PERIOD_MS 1000

struct pressure_job {
    struct job job;
    struct spool_usage usage;
    uint64_t grown_before;
    int status;
    struct spool_error error;
};

static uint64_t used_bytes(const struct pipeline *p)
{
    return p->usage.total_bytes + p->grown_bytes;
}

uint64_t pressure_limit(const struct pipeline *p)
{
    uint64_t room = p->usage.free_bytes > p->options->min_free_bytes
                        ? p->usage.free_bytes - p->options->min_free_bytes
                        : 0;
    uint64_t by_disk = p->usage.total_bytes + room;

    return by_disk < p->options->max_bytes ? by_disk : p->options->max_bytes;
}

bool pressure_allows(const struct pipeline *p, uint64_t bytes)
{
    return used_bytes(p) + bytes <= pressure_limit(p);
}

bool pressure_tight(const struct pipeline *p)
{
    return used_bytes(p) >= pressure_limit(p) / 10 * 9;
}

static bool match_any(const struct block *b, void *arg)
{
    (void)arg;
    return b->state == BLOCK_WAITING;
}

/* The oldest segment that is not being written to gives up what nobody has sent yet. */
static void drop_oldest(struct stream *s)
{
    for (struct segment *g = s->segments_first; g && g->loaded && !g->newest; g = g->next) {
        uint64_t rows = segment_discard(s, g, match_any, NULL);
        if (!rows)
            continue;
        metrics_add(s->p->metrics, METRIC_DROPPED_ROWS, (double)rows, s->options->name);
        log_event(LOG_ERROR, "rows.dropped", "stream", s->options->name, "rows", log_u64(rows),
                  "segment", log_u64(g->number), "reason",
                  "the spool is full and on_full is drop_oldest", NULL);
        return;
    }
}

static void pressure_apply(struct pipeline *p)
{
    uint64_t limit = pressure_limit(p);
    uint64_t overhead = p->usage.meta_bytes + p->usage.dead_bytes;
    uint64_t high = limit / 10 * 9;
    uint64_t share = (high > overhead ? high - overhead : 0) / p->stream_count;
    bool tight = pressure_tight(p);
    bool relaxed = used_bytes(p) < limit / 4 * 3;

    for (size_t i = 0; i < p->stream_count; i++) {
        struct stream *s = &p->streams[i];
        bool above = s->segment_file_bytes >= share;
        bool was = s->full;

        if (tight && above) {
            s->full = p->options->on_full == ON_FULL_PAUSE;
            if (!s->full)
                drop_oldest(s);
        } else if (relaxed || (!above && !tight)) {
            s->full = false;
        }
        if (s->full != was) {
            s->append_retry_at_ms = 0;
            stream_refresh(s);
            stream_update(s);
        }
    }
}

static void pressure_work(struct job *job)
{
    struct pressure_job *pj = (struct pressure_job *)job;
    pj->status = spool_usage_get(job->pipeline->spool, &pj->usage, &pj->error);
}

static void pressure_done(struct job *job)
{
    struct pressure_job *pj = (struct pressure_job *)job;
    struct pipeline *p = job->pipeline;

    p->pressure_running = false;
    if (pj->status == SPOOL_OK) {
        p->usage = pj->usage;
        p->grown_bytes -= pj->grown_before < p->grown_bytes ? pj->grown_before : p->grown_bytes;
        pressure_apply(p);
    } else {
        log_event(LOG_WARN, "spool.usage", "error", pj->error.text, NULL);
    }
    free(pj);
    pipeline_advance(p);
}

static void pressure_tick(uv_timer_t *timer)
{
    struct pipeline *p = timer->data;
    struct pressure_job *pj;

    if (p->meta_retry_at_ms && p->meta_retry_at_ms <= clock_monotonic_ms()) {
        p->meta_retry_at_ms = 0;
        meta_advance(p);
    }
    if (p->pressure_running || p->closing || p->fatal)
        return;
    pj = calloc(1, sizeof(*pj));
    if (!pj)
        return; /* the next tick tries again */
    pj->grown_before = p->grown_bytes;
    pj->job.work = pressure_work;
    pj->job.done = pressure_done;
    p->pressure_running = true;
    if (job_start(p, &pj->job, NULL, 0) != SPOOL_OK) {
        p->pressure_running = false;
        free(pj);
    }
}

void pressure_init(struct pipeline *p)
{
    uv_timer_init(p->loop, &p->pressure_timer);
    p->pressure_timer.data = p;
}

void pressure_start(struct pipeline *p)
{
    uv_timer_start(&p->pressure_timer, pressure_tick, 0, PRESSURE_PERIOD_MS);
}

void pressure_stop(struct pipeline *p)
{
    uv_timer_stop(&p->pressure_timer);
}
