/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream: its state, why it is in it, and the one function that looks at everything that could
 * go on. States are derived, not stored twice: the operator's pause, the holds, the bound on disk
 * and the endpoints decide, in that order.
 */
#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define TIMER_MIN_MS 5 /* a deadline in the past is looked at again no sooner */

static const char *const state_names[STREAM_STATES] = {"running", "paused", "held", "down", "full"};

const char *stream_state_name(enum stream_state state)
{
    assert(state < STREAM_STATES);
    return state_names[state];
}

/* No endpoint is up: down, or held where one answers and somebody must mend something. */
static enum stream_state stream_without_endpoint(const struct clickhouse *ch, const char **reason)
{
    struct endpoint_status status = {0};

    for (size_t i = clickhouse_endpoints(ch); i-- > 0;) {
        clickhouse_endpoint_status(ch, i, &status);
        if (status.refused)
            break;
    }
    if (status.state != ENDPOINT_DOWN)
        return STREAM_RUNNING; /* not asked yet */
    *reason = status.reason && status.reason[0] ? status.reason : "no ClickHouse endpoint answers";
    return status.refused ? STREAM_HELD : STREAM_DOWN;
}

static enum stream_state stream_derive(const struct stream *s, const char **reason)
{
    struct clickhouse *ch = s->p->clickhouse;

    *reason = "";
    if (s->paused) {
        *reason = "paused by the operator";
        return STREAM_PAUSED;
    }
    for (int i = 0; i < HOLD_COUNT; i++)
        if (s->holds[i]) {
            *reason = s->hold_text[i];
            return STREAM_HELD;
        }
    if (s->full) {
        *reason = s->p->nothing_drains
                      ? "the spool has reached its bound, and no row of it waits for ClickHouse: "
                        "each stream's newest segment stays, and dead.mdb keeps its disk for other "
                        "letters; raise spool.max_bytes"
                      : "the spool has reached its bound: intake waits until ClickHouse takes rows";
        return STREAM_FULL;
    }
    if (s->p->started && clickhouse_pick(ch) < 0)
        return stream_without_endpoint(ch, reason);
    return STREAM_RUNNING;
}

void stream_refresh(struct stream *s)
{
    const char *reason = "";
    enum stream_state state;
    uint64_t suppressed = 0;
    char text[sizeof(s->reason)];
    bool moved;

    if (s->p->closing) /* nobody asks any more, and the endpoints may be gone */
        return;
    state = stream_derive(s, &reason);
    moved = state != s->state;
    snprintf(text, sizeof(text), "%.900s%s", reason,
             s->full && state != STREAM_FULL ? "; the spool has reached its bound too: intake waits"
                                             : "");
    if (!moved && strcmp(text, s->reason) == 0)
        return;
    memcpy(s->reason, text, sizeof(s->reason));
    if (!moved && (state != STREAM_HELD || !log_gate_open(&s->reason_gate, 10000, &suppressed)))
        return;
    log_event(state == STREAM_RUNNING || state == STREAM_PAUSED ? LOG_INFO : LOG_WARN,
              "stream.state", "stream", s->options->name, "from", stream_state_name(s->state), "to",
              stream_state_name(state), "reason", s->reason, NULL);
    if (!moved)
        return;
    s->state = state;
    s->since_ms = clock_wall_ms();
    metrics_add(s->p->metrics, METRIC_STATE_CHANGES, 1, s->options->name, stream_state_name(state));
}

void stream_hold(struct stream *s, enum hold why, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(s->hold_text[why], sizeof(s->hold_text[why]), format, args);
    va_end(args);
    s->holds[why] = true;
    stream_refresh(s);
    stream_update(s);
}

void stream_unhold(struct stream *s, enum hold why)
{
    if (!s->holds[why])
        return;
    s->holds[why] = false;
    stream_refresh(s);
    stream_update(s);
}

void stream_set_full(struct stream *s, bool full)
{
    if (s->full == full)
        return;
    s->full = full;
    stream_refresh(s);
    stream_update(s);
}

bool stream_may_deliver(const struct stream *s)
{
    return !s->paused && !s->holds[HOLD_TABLE] && !s->holds[HOLD_ANSWER] && !s->holds[HOLD_SEGMENT];
}

void stream_pause_sources(struct stream *s, unsigned reason, bool pause)
{
    for (struct origin *o = s->origins; o; o = o->next) {
        if (!o->partition)
            continue;
        if (pause)
            kafka_partition_pause(o->partition, reason);
        else
            kafka_partition_resume(o->partition, reason);
    }
}

/* A stream that can't take records must not hold the messages all streams share. */
void stream_update(struct stream *s)
{
    bool intake_held =
        s->holds[HOLD_SCHEMA] || s->holds[HOLD_BAD_RECORD] || s->holds[HOLD_DEAD_FULL];

    if (intake_held)
        intake_release_runs(s, true);
    stream_pause_sources(s, KAFKA_PAUSE_HELD, intake_held);
    stream_pause_sources(s, KAFKA_PAUSE_PRESSURE, s->full);
}

/* Seconds since arrival, by the clock that nobody sets: a step of the wall clock is no age. What is
   from before this process is as old as the wall clock said when that began, and ages with it. */
static double age_seconds(const struct stream *s, const struct segment *g, uint64_t arrived_ms,
                          int64_t wall_ms)
{
    const struct pipeline *p = s->p;
    uint64_t now = clock_monotonic_ms();

    if (!arrived_ms && g->begun_ms) { /* appended before it could be kept in memory */
        arrived_ms = g->begun_ms;
        if (wall_ms > g->oldest_ms)
            arrived_ms += (uint64_t)(wall_ms - g->oldest_ms);
    } else if (!arrived_ms) {
        int64_t before_ms = p->start_wall_ms > wall_ms ? p->start_wall_ms - wall_ms : 0;
        return (double)before_ms / 1000.0 + (double)(now - p->start_ms) / 1000.0;
    }
    return now > arrived_ms ? (double)(now - arrived_ms) / 1000.0 : 0;
}

double stream_oldest_age(const struct stream *s)
{
    for (const struct segment *g = s->segments_first; g; g = g->next) {
        if (g->loaded) {
            for (const struct block *b = g->first; b; b = b->next_in_segment)
                if (b->state != BLOCK_ACKED && b->ref.rows)
                    return age_seconds(s, g, b->arrived_ms, b->ref.first_arrival_ms);
        } else if (g->unacked_rows) {
            return age_seconds(s, g, g->begun_ms, g->oldest_ms);
        }
    }
    return 0;
}

static void on_timer(uv_timer_t *timer)
{
    stream_advance(timer->data);
}

static void earliest(uint64_t *first, uint64_t at)
{
    if (at && (!*first || at < *first))
        *first = at;
}

void stream_advance(struct stream *s)
{
    struct pipeline *p = s->p;
    uint64_t now = clock_monotonic_ms();
    uint64_t deadline = 0;

    if (!p->started || p->closing || p->fatal)
        return;
    endpoints_forgive(s);
    for (struct target *t = s->targets; t; t = t->next)
        target_advance(t);
    intake_advance(s);
    segments_advance(s);
    batches_advance(s);
    replay_advance(s);
    dead_out_advance(s);
    stream_refresh(s);
    earliest(&deadline, intake_deadline_ms(s));
    earliest(&deadline, replay_deadline_ms(s));
    earliest(&deadline, dead_out_deadline_ms(s));
    earliest(&deadline, segments_deadline_ms(s));
    earliest(&deadline, batches_deadline_ms(s));
    earliest(&deadline, endpoints_deadline_ms(s));
    for (struct target *t = s->targets; t; t = t->next)
        earliest(&deadline, target_deadline_ms(t));
    if (deadline) {
        uint64_t wait = deadline > now ? deadline - now : 0;
        uv_update_time(p->loop);
        uv_timer_start(&s->timer, on_timer, wait < TIMER_MIN_MS ? TIMER_MIN_MS : wait, 0);
    } else {
        uv_timer_stop(&s->timer);
    }
    kafka_in_advance(p);
    drain_check(p);
}

static int recover_seal(void *arg, const struct spool_seal *seal)
{
    return batch_recover(arg, seal);
}

int stream_init(struct stream *s, struct pipeline *p, const struct stream_options *options,
                struct spool_error *error)
{
    struct replay_recovered replayed = {0};
    int status;

    s->p = p;
    s->options = options;
    s->since_ms = clock_wall_ms();
    uv_timer_init(p->loop, &s->timer);
    s->timer.data = s;
    status = spool_stream_open(p->spool, options->name, &s->spool, error);
    if (status != SPOOL_OK)
        return status;
    s->id = spool_stream_id(s->spool);
    if (!target_get(s, options->database ? options->database : p->options->clickhouse.database,
                    options->table))
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    snprintf(s->table_text, sizeof(s->table_text), "%s.%s", s->targets->database,
             s->targets->table);
    status = spool_next_batch(p->spool, s->id, &s->next_batch, error);
    if (status == SPOOL_OK)
        status = stream_schema_at_start(s, error);
    if (status == SPOOL_OK)
        status = segments_recover(s, error);
    if (status == SPOOL_OK)
        status = holes_recover(s, error);
    if (status == SPOOL_OK)
        status = spool_seals(p->spool, s->id, recover_seal, s, error);
    if (status == SPOOL_OK)
        status = batch_tokens_recover(s, error);
    if (status == SPOOL_OK)
        status = replay_recover(s, &replayed, error);
    if (replayed.removed)
        log_event(replayed.damaged ? LOG_WARN : LOG_INFO, "dead.replay_recovered", "stream",
                  options->name, "removed", log_u64(replayed.removed), "damaged",
                  log_u64(replayed.damaged), "reason", "their rows are in the spool", NULL);
    if (status == SPOOL_E_FULL)
        status = SPOOL_OK; /* it is done again before the next replay */
    if (status == SPOOL_OK)
        status = replay_was(s, &s->replayed, error);
    if (status == SPOOL_OK) /* where there are none, a batch's rows have no letters to remove */
        status = spool_dead_count(p->spool, options->name, &s->dead_letters, &s->dead_bytes, error);
    if (status == SPOOL_OK && dead_out_create(s) != SPOOL_OK)
        status = spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    return status;
}

void stream_dispose(struct stream *s)
{
    replay_free(s);
    dead_out_free(s);
    intake_free(s);
    batches_free(s);
    segments_free(s);
    stream_schema_unref(s->schema);
    stream_schema_unref(s->configured);
    targets_free(s);
    spool_stream_close(s->spool);
}

struct stream *pipeline_stream(struct pipeline *p, const char *name)
{
    for (size_t i = 0; i < p->stream_count; i++)
        if (strcmp(p->streams[i].options->name, name) == 0)
            return &p->streams[i];
    return NULL;
}

const char *stream_topic(const struct stream *s, const char *topic)
{
    for (size_t i = 0; i < s->options->topic_count; i++)
        if (strcmp(s->options->topics[i], topic) == 0)
            return s->options->topics[i];
    return NULL;
}

struct stream *pipeline_stream_of_topic(struct pipeline *p, const char *topic)
{
    for (size_t i = 0; i < p->stream_count; i++)
        if (stream_topic(&p->streams[i], topic))
            return &p->streams[i];
    return NULL;
}

void pipeline_advance(struct pipeline *p)
{
    size_t first = p->decode_turn++; /* streams take turns at the decode jobs */

    for (size_t i = 0; i < p->stream_count; i++)
        stream_advance(&p->streams[(first + i) % p->stream_count]);
}

/* --- steering ------------------------------------------------------------------------------- */

int pipeline_stream_pause(struct pipeline *p, const char *name)
{
    struct stream *s = pipeline_stream(p, name);

    if (!s)
        return SPOOL_E_NOT_FOUND;
    s->paused = true;
    stream_refresh(s);
    return SPOOL_OK;
}

int pipeline_stream_resume(struct pipeline *p, const char *name)
{
    struct stream *s = pipeline_stream(p, name);

    if (!s)
        return SPOOL_E_NOT_FOUND;
    s->paused = false;
    if (s->holds[HOLD_BAD_RECORD])
        for (struct origin *o = s->origins; o; o = o->next)
            if (o->held_to >= 0) {
                o->accept_to = o->held_to;
                o->held_to = -1;
            }
    stream_unhold(s, HOLD_BAD_RECORD);
    s->dead_retry_at_ms = 0;
    stream_unhold(s, HOLD_DEAD_FULL);
    for (struct batch *b = s->batches; b; b = b->next)
        b->retry_at_ms = b->hunt_after_ms = 0;
    s->halves = 0;
    for (struct target *t = s->targets; t; t = t->next)
        target_ask(t);
    stream_refresh(s);
    stream_advance(s);
    return SPOOL_OK;
}

int pipeline_stream_accept_bad(struct pipeline *p, const char *name)
{
    struct stream *s = pipeline_stream(p, name);

    if (!s)
        return SPOOL_E_NOT_FOUND;
    s->accept_bad = true;
    for (struct batch *b = s->batches; b; b = b->next)
        b->accepts_bad = true;
    return pipeline_stream_resume(p, name);
}

int pipeline_stream_flush(struct pipeline *p, const char *name)
{
    struct stream *s = pipeline_stream(p, name);

    if (!s)
        return SPOOL_E_NOT_FOUND;
    s->flush_before_ms = clock_monotonic_ms();
    stream_advance(s);
    return SPOOL_OK;
}
