/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batches: from blocks that wait to rows that ClickHouse has acknowledged.
 *
 * A batch is sealed when it can be sent, not when rows arrive, so a backlog drains in full batches
 * however it came. The seal (which rows, under which token, with which settings) is durable before
 * the first byte is sent and never changes: every later attempt, also after a restart, sends the
 * same bytes under the same token. Where the token cannot be trusted (a table that does not
 * deduplicate, a server that restarted meanwhile, a window that is nearly over) the table is asked
 * which rows it has (ask.c), and what is missing goes under a new seal (replace.c). The
 * acknowledgement is durable before Kafka is told and before anything is unlinked.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define RETRY_BASE_MS    100
#define RETRY_MAX_MS     10000
#define STALL_FACTOR_MAX 16 /* of stall_timeout */

/* --- states --------------------------------------------------------------------------------- */

static const char *const batch_state_names[BATCH_STATES] = {
    "loading", "sealing", "waiting", "checking", "sending", "acknowledging", "done",
};

/* Row: from, column: to. WAITING -> ACKING: the table was asked and has all of it. */
static const bool batch_moves[BATCH_STATES][BATCH_STATES] = {
    [BATCH_LOADING] = {[BATCH_WAITING] = true},
    [BATCH_SEALING] = {[BATCH_WAITING] = true},
    [BATCH_WAITING] = {[BATCH_CHECKING] = true, [BATCH_ACKING] = true},
    [BATCH_CHECKING] = {[BATCH_SENDING] = true, [BATCH_WAITING] = true},
    [BATCH_SENDING] = {[BATCH_WAITING] = true, [BATCH_ACKING] = true},
    [BATCH_ACKING] = {[BATCH_DONE] = true},
};

/* The only place that changes a batch's state. */
void batch_move(struct batch *b, enum batch_state to)
{
    assert(batch_moves[b->state][to]);
    if (log_enabled(LOG_DEBUG))
        log_event(LOG_DEBUG, "batch.state", "stream", b->stream->options->name, "batch",
                  log_u64(b->id), "from", batch_state_names[b->state], "to", batch_state_names[to],
                  "rows", log_u64(b->rows), NULL);
    b->state = to;
}

void batch_free(struct batch *b)
{
    feed_close(b->feed);
    free(b->parts);
    free(b->ranges);
    free(b->settings);
    free(b->replica_path);
    free(b->refusal);
    buf_free(&b->attributes);
    buf_free(&b->schema_bytes);
    stream_schema_unref(b->schema);
    free(b);
}

static void batch_unlink(struct batch *b)
{
    struct batch **at = &b->stream->batches;

    while (*at != b)
        at = &(*at)->next;
    *at = b->next;
    b->stream->batch_count--;
    if (b->stream->probe == b)
        b->stream->probe = NULL;
}

void batch_remove(struct batch *b)
{
    struct stream *s = b->stream;
    bool unburied = b->unburied;

    batch_unlink(b);
    batch_free(b);
    if (unburied && !s->dead_waiting) /* it got in after all, or goes on as others */
        stream_unhold(s, HOLD_DEAD_FULL);
    halves_forget(s);
}

void batch_link(struct stream *s, struct batch *b)
{
    struct batch **at = &s->batches;

    while (*at)
        at = &(*at)->next;
    *at = b;
    b->next = NULL;
    s->batch_count++;
}

struct batch *batch_new(struct stream *s, size_t parts)
{
    struct batch *b = calloc(1, sizeof(*b));
    uint64_t seed = 0;

    if (!b)
        return NULL;
    b->stream = s;
    b->endpoint = b->sent_to = -1;
    buf_init(&b->attributes, 64 * KIB + LIMIT_SCHEMA_BYTES);
    buf_init(&b->schema_bytes, LIMIT_SCHEMA_BYTES);
    b->parts = calloc(parts ? parts : 1, sizeof(*b->parts));
    b->ranges = calloc(parts ? parts : 1, sizeof(*b->ranges));
    if (!b->parts || !b->ranges) {
        batch_free(b);
        return NULL;
    }
    if (getrandom(&seed, sizeof(seed), 0) != (ssize_t)sizeof(seed))
        seed = (uint64_t)(uintptr_t)b; /* jitter only */
    backoff_init(&b->backoff, RETRY_BASE_MS, RETRY_MAX_MS, seed);
    return b;
}

struct stream_schema *batch_schema(const struct batch *b)
{
    return b->schema ? b->schema : b->segment->schema;
}

const struct table_description *batch_table(const struct batch *b)
{
    return target_description(batch_schema(b)->target, b->endpoint);
}

bool batch_asks_no_deduplication(const struct batch *b)
{
    return b->settings && strstr(b->settings, "insert_deduplicate=0");
}

bool batch_deduplicates(const struct batch *b)
{
    const struct table_description *t = batch_table(b);
    char name[256];

    if (batch_asks_no_deduplication(b))
        return false;
    return t && t->deduplicates && !partition_drift(t, batch_schema(b)->schema, name, sizeof(name));
}

bool batch_accepts_bad(const struct batch *b)
{
    return b->accepts_bad || b->stream->accept_bad;
}

/* --- acknowledgement ------------------------------------------------------------------------ */

void part_acked(struct stream *s, struct segment *g, const struct part *part)
{
    struct block *b = part->block;

    b->acked_rows += part->rows;
    g->unacked_rows -= part->rows;
    assert(b->acked_rows <= b->ref.rows);
    if (b->acked_rows == b->ref.rows)
        block_acked(s, g, b);
}

static void batch_acked(void *arg)
{
    struct batch *b = arg;
    struct stream *s = b->stream;
    struct segment *g = b->segment;

    for (size_t i = 0; i < b->part_count; i++) {
        struct origin *o = b->parts[i].block->origin;
        part_acked(s, g, &b->parts[i]);
        if (i + 1 == b->part_count || b->parts[i + 1].block->origin != o)
            origin_commit(o);
    }
    s->rows_inserted += b->rows;
    s->batches_acked++;
    metrics_add(s->p->metrics, METRIC_BATCHES, 1, s->options->name);
    metrics_add(s->p->metrics, METRIC_ROWS_INSERTED, (double)b->rows, s->options->name,
                batch_schema(b)->target->destination);
    batch_move(b, BATCH_DONE);
    batch_remove(b);
}

void batch_ack(struct batch *b)
{
    struct spool_change changes[2] = {{.kind = SPOOL_CHANGE_ACK,
                                       .stream = b->stream->id,
                                       .batch = b->id,
                                       .segment = b->segment_number}};
    char key[TOKEN_NOTE_SIZE];
    size_t count = 1 + batch_token_forget(b, key, &changes[1]);

    FAILPOINT(FP_ANSWER_OK);
    batch_move(b, BATCH_ACKING);
    (void)meta_changes(b->stream->p, changes, count, batch_acked, b, b->stream);
}

/* --- after a failure ------------------------------------------------------------------------ */

void batch_retry_later(struct batch *b, uint64_t delay_ms)
{
    b->retry_at_ms = clock_monotonic_ms() + delay_ms;
}

void batch_ask_later(struct batch *b)
{
    b->ask_from_ms = clock_monotonic_ms() + b->stream->p->options->ask_delay_ms;
}

/* A server that needs longer for a batch than we wait needs as long for the same batch again, and a
   repeat under its token is no quicker: with one limit for all attempts it would never get through. */
static void batch_be_patient(struct batch *b)
{
    b->stall_factor = b->stall_factor ? b->stall_factor * 2 : 2;
    if (b->stall_factor > STALL_FACTOR_MAX)
        b->stall_factor = STALL_FACTOR_MAX;
}

static void batch_answered(void *arg, const struct clickhouse_outcome *outcome)
{
    struct batch *b = arg;
    struct stream *s = b->stream;
    struct pipeline *p = s->p;
    struct endpoint_status endpoint;
    char code[16];

    b->insert = NULL;
    feed_close(b->feed);
    b->feed = NULL;
    clickhouse_endpoint_status(p->clickhouse, (size_t)b->sent_to, &endpoint);
    metrics_add(p->metrics,
                outcome->class_ == CLASS_NONE ? METRIC_ENDPOINT_INSERTS : METRIC_ENDPOINT_ERRORS, 1,
                endpoint.url);
    metrics_observe(p->metrics, METRIC_INSERT_SECONDS, (double)outcome->duration_ns / 1e9,
                    s->options->name);
    if (outcome->class_ == CLASS_NONE) {
        endpoint_took_rows(s, b->sent_to);
        if (!s->probe || s->probe == b) {
            s->probe = NULL;
            stream_unhold(s, HOLD_ANSWER);
        }
        if (!b->accepts_bad)
            s->accept_bad = false;
        s->window_rows += (double)b->rows;
        if (s->batch_rows_max && s->batch_rows_max < s->options->flush_rows)
            s->batch_rows_max += s->batch_rows_max / 10 + 1;
        if (batch_needs_proof(b)) {
            b->answered = true;
            batch_move(b, BATCH_WAITING);
            if (!p->closing)
                ask_start(b, b->sent_to);
        } else {
            batch_ack(b);
        }
        stream_advance(s);
        return;
    }
    batch_move(b, BATCH_WAITING);
    if (outcome->unanswered)
        batch_be_patient(b);
    b->maybe_stored = b->maybe_stored || (outcome->unknown && !batch_proves_itself_out(b, outcome));
    if (outcome_is_of_commit(outcome))
        batch_token_lost(b);
    snprintf(code, sizeof(code), "%d", outcome->code);
    metrics_add(p->metrics, METRIC_ERRORS, 1, s->options->name, error_class_name(outcome->class_),
                code);
    if (p->closing)
        return;
    batch_failed(b, b->sent_to, outcome);
    stream_advance(s);
}

/* --- sending -------------------------------------------------------------------------------- */

static size_t batch_body(void *arg, char *dst, size_t n)
{
    struct batch *b = arg;

    return feed_read(b->feed, dst, n);
}

void batch_possible_duplicates(struct batch *b, uint64_t rows, const char *reason)
{
    struct stream *s = b->stream;

    if (b->endpoint < 0)
        reason = "the endpoint that may have them is no longer configured";
    s->possible_duplicates += rows;
    metrics_add(s->p->metrics, METRIC_POSSIBLE_DUPLICATES, (double)rows, s->options->name);
    log_event(LOG_WARN, "batch.possible_duplicates", "stream", s->options->name, "batch",
              log_u64(b->id), "rows", log_u64(rows), "reason", reason, NULL);
}

/* Nothing tells whether the rows are in: they go again, under a token of their own. */
static void batch_send_anew(struct batch *b)
{
    struct row_span all = {0, b->rows};
    struct span_group group = {.spans = &all, .count = 1};

    batch_possible_duplicates(
        b, b->rows,
        batch_deduplicates(b)
            ? "the last attempt's outcome is unknown and the server may have lost its token"
            : "the last attempt's outcome is unknown and the table does not deduplicate");
    if (batch_replace(b, NULL, 0, &group, 1, NULL) != SPOOL_OK)
        batch_retry_later(b, RETRY_MAX_MS);
}

static void batch_send(struct batch *b, int endpoint)
{
    struct stream *s = b->stream;
    const struct stream_schema *schema = batch_schema(b);
    struct target *t = schema->target;
    char query_id[320];
    struct spool_error error;
    struct insert_spec spec = {
        .database = t->database,
        .table = t->table,
        .column_list = schema->column_list,
        .native = schema->schema->format != FORMAT_JSON,
        .settings = b->settings,
        .token = b->token,
        .query_id = query_id,
        .method = feed_method(b->feed),
        .stall_factor = b->stall_factor,
        .frames_bytes = b->frames_bytes,
        .read_body = batch_body,
        .arg = b,
        .done = batch_answered,
    };

    b->attempts++;
    b->refused_alone = false;
    snprintf(query_id, sizeof(query_id), "%s-%u-%llx", b->token, b->attempts,
             (unsigned long long)clock_wall_ms());
    if (b->attempts > 1) {
        s->retries++;
        metrics_add(s->p->metrics, METRIC_RETRIES, 1, s->options->name,
                    s->probe == b ? "held" : "transient");
    }
    b->sent_to = endpoint;
    batch_move(b, BATCH_SENDING);
    if (clickhouse_insert(s->p->clickhouse, (size_t)endpoint, &spec, &b->insert, &error) !=
        SPOOL_OK) {
        struct clickhouse_outcome outcome = {.class_ = CLASS_TRANSIENT};
        snprintf(outcome.text, sizeof(outcome.text), "%s", error.text);
        batch_answered(b, &outcome);
        return;
    }
    feed_attach(b->feed, &b->insert);
}

/* Some of its blocks can't be read (SPOOL_E_CORRUPT), or reading them failed in passing. */
static void batch_unreadable(struct batch *b, int endpoint, const struct spool_error *error)
{
    struct stream *s = b->stream;
    struct spool_error why = *error; /* it is the feed's own, which goes */
    bool *damaged = calloc(b->part_count + 1, sizeof(*damaged));
    uint64_t suppressed = 0;

    if (log_gate_open(&s->error_gate, 5000, &suppressed))
        log_event(LOG_ERROR, "batch.unreadable", "stream", s->options->name, "batch",
                  log_u64(b->id), "segment", log_u64(b->segment_number), "error", why.text,
                  "lines_suppressed", log_u64(suppressed), NULL);
    for (size_t i = 0; damaged && i < b->part_count; i++)
        damaged[i] = feed_is_damaged(b->feed, i);
    feed_close(b->feed);
    b->feed = NULL;
    batch_move(b, BATCH_WAITING);
    if (!damaged || s->p->closing || s->p->fatal) {
        batch_retry_later(b, RETRY_MAX_MS);
    } else if (why.status != SPOOL_E_CORRUPT) {
        batch_hold_for(b, "its blocks can't be read: %s", why.text);
    } else if (b->maybe_stored && ask_possible(b)) {
        if (endpoint >= 0)
            ask_start(b, endpoint);
    } else {
        if (b->maybe_stored)
            batch_possible_duplicates(
                b, b->rows,
                "the last attempt's outcome is unknown and blocks of it can't be read any more");
        if (batch_set_aside(b, damaged, NULL, 0, b->maybe_stored) != SPOOL_OK)
            batch_retry_later(b, RETRY_MAX_MS);
    }
    free(damaged);
}

/* At a replica, which may lag, the token is what tells. */
bool batch_must_ask(const struct batch *b, int endpoint)
{
    if (!b->maybe_stored || !ask_possible(b))
        return false;
    return b->answered || b->refusal || b->splits || batch_partly_gone(b) ||
           !batch_token_holds(b, endpoint) || (batch_avoided(b) && endpoint == b->endpoint);
}

enum batch_step {
    STEP_UNBURY,
    STEP_REHOME,
    STEP_REENCODE,
    STEP_REFUSAL,
    STEP_ASK,
    STEP_VIEWS_GIVE_UP,
    STEP_SEND_ANEW,
    STEP_SEND,
};

/* What is to be done with one that may go to the endpoint. */
static enum batch_step batch_step(const struct batch *b, int endpoint)
{
    const struct stream_schema *schema = batch_schema(b);

    if (b->lettered && b->stream->dead_letters)
        return STEP_UNBURY;
    /* Where none of it is in, another token doubles nothing; a lost one would store nothing. */
    if (!b->maybe_stored && (endpoint != b->endpoint || b->token_lost))
        return STEP_REHOME;
    if (!target_accepts(schema->target, endpoint, schema))
        return STEP_REENCODE;
    if (b->refusal && !b->maybe_stored)
        return STEP_REFUSAL;
    if (batch_must_ask(b, endpoint))
        return STEP_ASK;
    if (b->maybe_stored && !batch_token_holds(b, endpoint))
        return b->view_failed ? STEP_VIEWS_GIVE_UP : STEP_SEND_ANEW;
    return STEP_SEND;
}

/* What let it start may be otherwise by now: the table, the server or the endpoint is another. */
static void batch_checked(void *arg, uint64_t bytes, const struct spool_error *error)
{
    struct batch *b = arg;
    struct stream *s = b->stream;
    int endpoint = s->p->closing ? -1 : batch_endpoint(b);

    b->frames_bytes = bytes;
    if (error) {
        batch_unreadable(b, endpoint, error);
    } else if (endpoint < 0 || s->p->fatal || batch_is_gone(b) ||
               batch_step(b, endpoint) != STEP_SEND) {
        feed_close(b->feed);
        b->feed = NULL;
        batch_move(b, BATCH_WAITING);
    } else {
        batch_send(b, endpoint);
    }
    stream_advance(s);
}

static void batch_start(struct batch *b, int endpoint)
{
    enum batch_step step = batch_step(b, endpoint);

    if (step != STEP_UNBURY)
        b->lettered = false;
    switch (step) {
    case STEP_UNBURY:
        unbury_start(b);
        break;
    case STEP_REHOME:
        batch_rehome(b);
        break;
    case STEP_REENCODE:
        reencode_start(b, endpoint);
        break;
    case STEP_REFUSAL:
        batch_refusal_take(b, endpoint);
        break;
    case STEP_ASK:
        ask_start(b, endpoint);
        break;
    case STEP_VIEWS_GIVE_UP:
        batch_views_give_up(b, "a view failed, and the table's token is no longer known");
        break;
    case STEP_SEND_ANEW:
        batch_send_anew(b);
        break;
    case STEP_SEND:
        batch_move(b, BATCH_CHECKING);
        if (feed_open(b, b->parts, b->part_count, batch_checked, b, &b->feed) != SPOOL_OK)
            pipeline_fatal(b->stream->p, "out of memory while sending a batch");
        break;
    }
}

/* --- what may go on ------------------------------------------------------------------------- */

/*
 * Whether a replay's rows that lie before the batch's are still to be sent. A letter beside rows that turned out
 * to be damaged may be one of them, and its record be in the batch again: the table tells of it only when they
 * are in. No batch that has such rows is asked about, so none waits for another in a circle.
 */
static bool batch_is_behind_replay(const struct batch *b)
{
    uint64_t last = b->part_count ? b->parts[b->part_count - 1].block->ref.sequence : 0;

    for (const struct batch *other = b->stream->batches; other; other = other->next) {
        if (other == b || other->state == BATCH_LOADING || batch_parked(other))
            continue;
        for (size_t i = 0; i < other->part_count && other->parts[i].block->ref.sequence < last; i++)
            if (replay_is_origin(other->parts[i].block->origin))
                return true;
    }
    return false;
}

int batch_may_go(const struct batch *b)
{
    const struct stream *s = b->stream;
    const struct stream_schema *schema;
    int endpoint;

    if (b->state != BATCH_WAITING || b->busy || b->unreadable || s->paused || s->p->closing ||
        batch_is_gone(b))
        return -1;
    if (s->holds[HOLD_ANSWER] && s->probe && s->probe != b)
        return -1;
    endpoint = batch_endpoint(b);
    schema = batch_schema(b);
    if (endpoint < 0 || !(target_accepts(schema->target, endpoint, schema) ||
                          target_reencodes(schema->target, endpoint, schema)))
        return -1;
    if (!endpoint_has_room(s, endpoint, b))
        return -1;
    if (b->suspect && s->probe != b && batch_must_ask(b, endpoint) && batch_is_behind_replay(b))
        return -1; /* for the probe all others wait */
    return endpoint;
}

/* The endpoint to start the batch on, -1: not now. */
static int batch_may_start(const struct batch *b, uint64_t now)
{
    return b->retry_at_ms > now ? -1 : batch_may_go(b);
}

static bool batch_active(const struct batch *b)
{
    return (b->state != BATCH_WAITING && b->state != BATCH_LOADING) || b->busy;
}

void batches_advance(struct stream *s)
{
    uint64_t now = clock_monotonic_ms();
    unsigned active = 0;

    s->batches_looked_ms = now;
    if (s->p->fatal || s->p->closing || !s->p->started)
        return;
    batches_let_go(s);
    batches_log_parked(s);
    if (s->probe && batch_parked(s->probe)) { /* what held the stream went down */
        s->probe = NULL;
        stream_unhold(s, HOLD_ANSWER);
    }
    for (struct batch *b = s->batches; b; b = b->next)
        active += batch_active(b);
    for (struct batch *b = s->batches, *next; b && active < s->options->max_in_flight; b = next) {
        int endpoint = batch_may_start(b, now);
        next = b->next;
        if (endpoint < 0)
            continue;
        batch_start(b, endpoint); /* may append to the list, frees nothing */
        active += batch_active(b);
    }
    while (batch_seal_one(s, now))
        continue;
}

uint64_t batches_deadline_ms(struct stream *s)
{
    struct segment *g = NULL;
    uint64_t first = 0;
    int endpoint = stream_pick(s);

    if (endpoint >= 0 && stream_may_deliver(s) && batches_counted(s) < s->options->max_in_flight &&
        endpoint_has_room(s, endpoint, NULL))
        g = batch_segment(s);
    if (g && (target_accepts(g->schema->target, endpoint, g->schema) ||
              target_reencodes(g->schema->target, endpoint, g->schema)))
        first = segment_next_eligible(g, NULL)->arrived_ms + s->options->flush_interval_ms;
    if (first && first < s->p->seal_from_ms)
        first = s->p->seal_from_ms;
    for (const struct batch *b = s->batches; b; b = b->next)
        if (b->state == BATCH_WAITING && b->retry_at_ms > s->batches_looked_ms &&
            (!first || b->retry_at_ms < first))
            first = b->retry_at_ms;
    return first;
}

/* --- the rest ------------------------------------------------------------------------------- */

bool batches_idle(const struct stream *s)
{
    return !batches_counted(s) && !s->eligible_blocks && segments_all_loaded(s);
}

void batches_abandon(struct stream *s)
{
    for (struct batch *b = s->batches; b; b = b->next)
        if (b->insert)
            insert_cancel(b->insert);
}

void batches_free(struct stream *s)
{
    while (s->batches) {
        struct batch *b = s->batches;
        s->batches = b->next;
        batch_free(b);
    }
}
