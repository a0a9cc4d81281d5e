/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Batches: from blocks that wait to rows that ClickHouse has acknowledged.
 *
 * A batch is sealed when it can be sent, not when rows arrive, so a backlog drains in full batches
 * however it came. The seal (which rows, under which token, with which settings) is durable before
 * the first byte is sent and never changes: every later attempt, also after a restart, sends the
 * same bytes under the same token. The acknowledgement is durable before Kafka is told and before
 * anything is unlinked.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define RETRY_BASE_MS        100
#define RETRY_MAX_MS         10000
#define HOLD_RETRY_MIN_MS    1000 /* a held batch is tried again no faster than this */
#define UNKNOWN_ATTEMPTS_MAX 5    /* of class unknown, then the stream is held */

/* --- states --------------------------------------------------------------------------------- */

static const char *const batch_state_names[BATCH_STATES] = {
    "loading", "sealing", "waiting", "checking", "sending", "acknowledging", "done",
};

/* Row: from, column: to. */
static const bool batch_moves[BATCH_STATES][BATCH_STATES] = {
    [BATCH_LOADING] = {[BATCH_WAITING] = true},
    [BATCH_SEALING] = {[BATCH_WAITING] = true},
    [BATCH_WAITING] = {[BATCH_CHECKING] = true},
    [BATCH_CHECKING] = {[BATCH_SENDING] = true, [BATCH_WAITING] = true},
    [BATCH_SENDING] = {[BATCH_WAITING] = true, [BATCH_ACKING] = true},
    [BATCH_ACKING] = {[BATCH_DONE] = true},
};

/* The only place that changes a batch's state. */
static void batch_move(struct batch *b, enum batch_state to)
{
    assert(batch_moves[b->state][to]);
    if (log_enabled(LOG_DEBUG))
        log_event(LOG_DEBUG, "batch.state", "stream", b->stream->options->name, "batch",
                  log_u64(b->id), "from", batch_state_names[b->state], "to", batch_state_names[to],
                  "rows", log_u64(b->rows), NULL);
    b->state = to;
}

static void batch_free(struct batch *b)
{
    feed_close(b->feed);
    free(b->blocks);
    free(b->ranges);
    free(b->settings);
    buf_free(&b->attributes);
    free(b);
}

static void batch_unlink(struct batch *b)
{
    struct batch **at = &b->stream->batches;

    while (*at != b)
        at = &(*at)->next;
    *at = b->next;
    b->stream->batch_count--;
}

static void batch_link(struct stream *s, struct batch *b)
{
    struct batch **at = &s->batches;

    while (*at)
        at = &(*at)->next;
    *at = b;
    b->next = NULL;
    s->batch_count++;
}

static struct batch *batch_new(struct stream *s, size_t blocks)
{
    struct batch *b = calloc(1, sizeof(*b));
    uint64_t seed = 0;

    if (!b)
        return NULL;
    b->stream = s;
    b->endpoint = -1;
    buf_init(&b->attributes, 64 * KIB);
    b->blocks = calloc(blocks ? blocks : 1, sizeof(struct block *));
    b->ranges = calloc(blocks ? blocks : 1, sizeof(*b->ranges));
    if (!b->blocks || !b->ranges) {
        batch_free(b);
        return NULL;
    }
    (void)!getrandom(&seed, sizeof(seed), 0);
    backoff_init(&b->backoff, RETRY_BASE_MS, RETRY_MAX_MS, seed);
    return b;
}

/* --- acknowledgement ------------------------------------------------------------------------ */

static void batch_acked(void *arg)
{
    struct batch *b = arg;
    struct stream *s = b->stream;
    struct segment *g = b->segment;

    for (size_t i = 0; i < b->block_count; i++) {
        struct origin *o = b->blocks[i]->origin;
        block_acked(s, g, b->blocks[i]);
        if (i + 1 == b->block_count || b->blocks[i + 1]->origin != o)
            origin_commit(o);
    }
    s->rows_inserted += b->rows;
    s->batches_acked++;
    metrics_add(s->p->metrics, METRIC_BATCHES, 1, s->options->name);
    metrics_add(s->p->metrics, METRIC_ROWS_INSERTED, (double)b->rows, s->options->name,
                g->schema->target->destination);
    batch_move(b, BATCH_DONE);
    batch_unlink(b);
    batch_free(b);
}

static void batch_ack(struct batch *b)
{
    struct spool_change change = {.kind = SPOOL_CHANGE_ACK,
                                  .stream = b->stream->id,
                                  .batch = b->id,
                                  .segment = b->segment_number};

    FAILPOINT(FP_ANSWER_OK);
    batch_move(b, BATCH_ACKING);
    (void)meta_change(b->stream->p, &change, batch_acked, b, b->stream);
}

/* --- sending -------------------------------------------------------------------------------- */

static bool batch_deduplicates(const struct batch *b)
{
    const struct table_description *t = b->segment->schema->target->description;
    return t && t->deduplicates;
}

/* Whatever is not plainly transient holds the stream; its batch alone is tried again. */
static void batch_hold(struct batch *b, const struct clickhouse_outcome *outcome)
{
    struct stream *s = b->stream;
    uint64_t delay = backoff_next_ms(&b->backoff);

    stream_hold(s, HOLD_ANSWER, "ClickHouse refused batch %llu (%s%s%d): %s",
                (unsigned long long)b->id, error_class_name(outcome->class_),
                outcome->code ? ", code " : ", HTTP status ",
                outcome->code ? outcome->code : outcome->http_status, outcome->text);
    if (!s->probe)
        s->probe = b;
    b->retry_at_ms = clock_monotonic_ms() + (delay < HOLD_RETRY_MIN_MS ? HOLD_RETRY_MIN_MS : delay);
    if (outcome->class_ == CLASS_SCHEMA || outcome->class_ == CLASS_DATA)
        target_ask(b->segment->schema->target);
}

static void batch_retry(struct batch *b, const struct clickhouse_outcome *outcome)
{
    struct stream *s = b->stream;
    uint64_t delay = backoff_next_ms(&b->backoff);
    uint64_t suppressed = 0;

    b->retry_at_ms = clock_monotonic_ms() + delay;
    if (log_gate_open(&s->error_gate, 5000, &suppressed))
        log_event(LOG_WARN, "batch.retry", "stream", s->options->name, "batch", log_u64(b->id),
                  "attempt", log_u64(b->attempts), "class", error_class_name(outcome->class_),
                  "code", log_i64(outcome->code), "error", outcome->text, "retry_in_ms",
                  log_u64(delay), "lines_suppressed", log_u64(suppressed), NULL);
}

static void batch_answered(void *arg, const struct clickhouse_outcome *outcome)
{
    struct batch *b = arg;
    struct stream *s = b->stream;
    struct pipeline *p = s->p;
    char code[16];

    b->insert = NULL;
    feed_close(b->feed);
    b->feed = NULL;
    metrics_observe(p->metrics, METRIC_INSERT_SECONDS, (double)outcome->duration_ns / 1e9,
                    s->options->name);
    if (outcome->class_ == CLASS_NONE) {
        if (s->probe == b) {
            s->probe = NULL;
            stream_unhold(s, HOLD_ANSWER);
        }
        batch_ack(b);
        stream_advance(s);
        return;
    }
    batch_move(b, BATCH_WAITING);
    b->maybe_stored = b->maybe_stored || outcome->unknown;
    snprintf(code, sizeof(code), "%d", outcome->code);
    metrics_add(p->metrics, METRIC_ERRORS, 1, s->options->name, error_class_name(outcome->class_),
                code);
    if (p->closing)
        return;
    if (outcome->class_ == CLASS_TRANSIENT ||
        (outcome->class_ == CLASS_UNKNOWN && b->attempts < UNKNOWN_ATTEMPTS_MAX))
        batch_retry(b, outcome);
    else
        batch_hold(b, outcome);
    stream_advance(s);
}

static size_t batch_body(void *arg, char *dst, size_t n)
{
    struct batch *b = arg;

    return feed_read(b->feed, dst, n);
}

/* An attempt after an outcome that is not known may double rows where nothing deduplicates. */
static void batch_count_possible_duplicates(struct batch *b)
{
    struct stream *s = b->stream;

    if (!b->maybe_stored || batch_deduplicates(b))
        return;
    metrics_add(s->p->metrics, METRIC_POSSIBLE_DUPLICATES, (double)b->rows, s->options->name);
    log_event(LOG_WARN, "batch.possible_duplicates", "stream", s->options->name, "batch",
              log_u64(b->id), "rows", log_u64(b->rows), "reason",
              "the last attempt's outcome is unknown and the table does not deduplicate", NULL);
}

static void batch_send(struct batch *b, int endpoint)
{
    struct stream *s = b->stream;
    struct target *t = b->segment->schema->target;
    char query_id[320];
    struct spool_error error;
    struct insert_spec spec = {
        .database = t->database,
        .table = t->table,
        .column_list = b->segment->schema->column_list,
        .native = b->segment->schema->schema->format != FORMAT_JSON,
        .settings = b->settings,
        .token = b->token,
        .query_id = query_id,
        .frames_bytes = b->frames_bytes,
        .read_body = batch_body,
        .arg = b,
        .done = batch_answered,
    };

    b->attempts++;
    snprintf(query_id, sizeof(query_id), "%s-%u-%llx", b->token, b->attempts,
             (unsigned long long)clock_wall_ms());
    if (b->attempts > 1) {
        s->retries++;
        metrics_add(s->p->metrics, METRIC_RETRIES, 1, s->options->name,
                    s->probe == b ? "held" : "transient");
    }
    batch_count_possible_duplicates(b);
    b->endpoint = endpoint;
    batch_move(b, BATCH_SENDING);
    if (clickhouse_insert(s->p->clickhouse, (size_t)endpoint, &spec, &b->insert, &error) !=
        SPOOL_OK) {
        struct clickhouse_outcome outcome = {.class_ = CLASS_TRANSIENT};
        snprintf(outcome.text, sizeof(outcome.text), "%s", error.text);
        batch_answered(b, &outcome);
    }
}

/* The endpoint an attempt goes to: a batch that may be stored somewhere stays there. */
static int batch_endpoint(const struct batch *b)
{
    struct clickhouse *ch = b->stream->p->clickhouse;
    struct endpoint_status status;

    if (!b->maybe_stored || b->endpoint < 0)
        return clickhouse_pick(ch);
    clickhouse_endpoint_status(ch, (size_t)b->endpoint, &status);
    return status.state == ENDPOINT_UP ? b->endpoint : -1;
}

static void batch_checked(struct batch *b, const struct spool_error *error)
{
    struct stream *s = b->stream;
    int endpoint = batch_endpoint(b);

    if (error) {
        feed_close(b->feed);
        b->feed = NULL;
        batch_move(b, BATCH_WAITING);
        b->retry_at_ms = clock_monotonic_ms() + RETRY_MAX_MS;
        metrics_add(s->p->metrics, METRIC_DAMAGED_BLOCKS, 1, s->options->name);
        stream_hold(s, HOLD_DAMAGE,
                    "segment %llu, batch %llu: %s; nothing of it was sent: stop "
                    "spoold and run spoolctl verify",
                    (unsigned long long)b->segment_number, (unsigned long long)b->id, error->text);
    } else if (endpoint < 0 || s->p->closing || s->p->fatal) {
        feed_close(b->feed);
        b->feed = NULL;
        batch_move(b, BATCH_WAITING);
    } else {
        batch_send(b, endpoint);
    }
    stream_advance(s);
}

static void batch_start(struct batch *b)
{
    batch_move(b, BATCH_CHECKING);
    if (feed_open(b, batch_checked, &b->feed) != SPOOL_OK)
        pipeline_fatal(b->stream->p, "out of memory while sending a batch");
}

/* --- sealing -------------------------------------------------------------------------------- */

/* "1\n<native 0|1>\n<endpoint url>\n<settings>": attributes of a seal, version first. */
static int attributes_put(struct buf *out, bool native, const char *url, const char *settings)
{
    return buf_printf(out, "1\n%d\n%s\n%s", native ? 1 : 0, url, settings);
}

static int attributes_get(struct stream *s, struct batch *b, const char *text, size_t size)
{
    const char *end = text + size;
    const char *line[3];
    struct clickhouse *ch = s->p->clickhouse;

    for (size_t i = 0; i < 3; i++) {
        const char *nl = memchr(text, '\n', (size_t)(end - text));
        if (!nl)
            return SPOOL_E_CORRUPT;
        line[i] = text;
        text = nl + 1;
    }
    if (line[0][0] != '1' || line[0][1] != '\n')
        return SPOOL_E_NEWER;
    for (size_t i = 0; i < clickhouse_endpoints(ch); i++) {
        struct endpoint_status status;
        size_t n = (size_t)(text - 1 - line[2]);
        clickhouse_endpoint_status(ch, i, &status);
        if (strlen(status.url) == n && memcmp(status.url, line[2], n) == 0)
            b->endpoint = (int)i;
    }
    b->settings = strndup(text, (size_t)(end - text));
    return b->settings ? SPOOL_OK : SPOOL_E_NOMEM;
}

static void batch_token(struct batch *b)
{
    uint64_t random[2] = {0, 0};

    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        pipeline_fatal(b->stream->p, "getrandom() failed: no token can be made");
    snprintf(b->token, sizeof(b->token), "%s-%s-%llu-%016llx%016llx",
             spool_uuid_text(b->stream->p->spool), b->stream->options->name,
             (unsigned long long)b->id, (unsigned long long)random[0],
             (unsigned long long)random[1]);
}

static void batch_sealed(void *arg)
{
    struct batch *b = arg;
    buf_free(&b->attributes);
    batch_move(b, BATCH_WAITING);
}

/* Takes count eligible blocks of the segment, in order, into a new seal. */
static void batch_seal(struct stream *s, struct segment *g, size_t count, int endpoint)
{
    struct batch *b = batch_new(s, count);
    struct endpoint_status server;
    struct table_description *t = g->schema->target->description;
    bool native = g->schema->schema->format != FORMAT_JSON;
    struct buf settings;
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .stream = s->id};
    struct block *at;
    int status = SPOOL_E_NOMEM;

    buf_init(&settings, 64 * KIB);
    if (!b)
        goto done;
    at = segment_next_eligible(g, NULL);
    while (b->block_count < count) {
        assert(at);
        b->blocks[b->block_count] = at;
        b->ranges[b->block_count++] = (struct spool_range){at->ref.sequence, 0, at->ref.rows};
        b->rows += at->ref.rows;
        b->raw_bytes += at->ref.raw_bytes;
        b->frames_bytes += at->ref.frames_bytes;
        at = at->next_in_segment ? segment_next_eligible(g, at->next_in_segment) : NULL;
    }
    b->range_count = b->block_count;
    b->id = s->next_batch++;
    b->segment = g;
    b->segment_number = g->number;
    b->endpoint = endpoint;
    b->state = BATCH_SEALING;
    b->sealed_ms = clock_wall_ms();
    batch_token(b);
    clickhouse_endpoint_status(s->p->clickhouse, (size_t)endpoint, &server);
    status = clickhouse_pinned_settings(server.version, native, t && t->deduplicates, b->rows,
                                        b->raw_bytes, &settings);
    if (status == SPOOL_OK && buf_cstr(&settings))
        b->settings = strdup((const char *)settings.data);
    if (!b->settings)
        goto done;
    status = attributes_put(&b->attributes, native, server.url, b->settings);
    if (status != SPOOL_OK)
        goto done;
    b->seal = (struct spool_seal){.stream = s->id,
                                  .batch = b->id,
                                  .segment = g->number,
                                  .ranges = b->ranges,
                                  .range_count = b->range_count,
                                  .token = b->token,
                                  .attributes = b->attributes.data,
                                  .attributes_size = b->attributes.len,
                                  .sealed_ms = b->sealed_ms,
                                  .rows = b->rows};
    for (size_t i = 0; i < b->block_count; i++)
        block_set_state(s, b->blocks[i], BLOCK_SEALED);
    batch_link(s, b);
    change.batch = b->id;
    change.seal = &b->seal;
    status = meta_change(s->p, &change, batch_sealed, b, s);
    b = NULL;
done:
    if (b || status != SPOOL_OK)
        pipeline_fatal(s->p, "stream %s: sealing a batch: %s", s->options->name,
                       spool_strerror(status));
    if (b)
        batch_free(b);
    buf_free(&settings);
}

static bool match_empty(const struct block *b, void *arg)
{
    (void)arg;
    return b->ref.rows == 0 && block_eligible(b);
}

/* The oldest segment that has something to seal. */
static struct segment *batch_segment(struct stream *s)
{
    for (struct segment *g = s->segments_first; g && g->loaded; g = g->next)
        if (!g->damaged && segment_next_eligible(g, NULL))
            return g;
    return NULL;
}

/*
 * How many blocks are due now: 0 when the batch should still grow, and then *due_ms tells when it
 * is due by age (0: nothing waits).
 */
static size_t batch_due(struct stream *s, struct segment *g, uint64_t now, uint64_t *rows,
                        uint64_t *due_ms)
{
    const struct stream_options *o = s->options;
    struct block *first = segment_next_eligible(g, NULL);
    bool force = !g->newest || first->arrived_ms <= s->flush_before_ms || s->p->draining;
    uint64_t bytes = 0;
    size_t n = 0;

    *rows = 0;
    *due_ms = first->arrived_ms + o->flush_interval_ms;
    force = force || *due_ms <= now;
    if (!force && s->eligible_rows < o->flush_rows && s->eligible_bytes < o->flush_bytes)
        return 0;
    for (struct block *b = first; b && *rows < o->flush_rows && bytes < o->flush_bytes;
         b = b->next_in_segment ? segment_next_eligible(g, b->next_in_segment) : NULL) {
        *rows += b->ref.rows;
        bytes += b->ref.raw_bytes;
        n++;
    }
    return force || *rows >= o->flush_rows || bytes >= o->flush_bytes ? n : 0;
}

static bool batch_seal_one(struct stream *s, uint64_t now)
{
    struct segment *g = batch_segment(s);
    uint64_t rows = 0, due = 0;
    size_t count;
    int endpoint;

    if (!g)
        return false;
    count = batch_due(s, g, now, &rows, &due);
    if (!count)
        return false;
    if (!rows) { /* offsets without rows: nothing to send */
        (void)segment_discard(s, g, match_empty, NULL);
        return true;
    }
    if (s->batch_count >= s->options->max_in_flight || !stream_may_deliver(s))
        return false;
    endpoint = clickhouse_pick(s->p->clickhouse);
    if (endpoint < 0 || !target_accepts(g->schema->target, g->schema))
        return false;
    batch_seal(s, g, count, endpoint);
    return true;
}

static bool batch_may_start(const struct batch *b, uint64_t now)
{
    const struct stream *s = b->stream;

    if (b->state != BATCH_WAITING || b->retry_at_ms > now || s->paused || s->p->closing)
        return false;
    if (s->holds[HOLD_ANSWER] && s->probe && s->probe != b)
        return false;
    return batch_endpoint(b) >= 0 && target_accepts(b->segment->schema->target, b->segment->schema);
}

void batches_advance(struct stream *s)
{
    uint64_t now = clock_monotonic_ms();

    if (s->p->fatal || s->p->closing || !s->p->started)
        return;
    for (struct batch *b = s->batches, *next; b; b = next) {
        next = b->next;
        if (batch_may_start(b, now))
            batch_start(b);
    }
    while (batch_seal_one(s, now))
        continue;
}

uint64_t batches_deadline_ms(struct stream *s)
{
    uint64_t now = clock_monotonic_ms();
    struct segment *g = NULL;
    uint64_t first = 0;

    if (s->batch_count < s->options->max_in_flight && stream_may_deliver(s) &&
        clickhouse_pick(s->p->clickhouse) >= 0)
        g = batch_segment(s);
    if (g && target_accepts(g->schema->target, g->schema))
        first = segment_next_eligible(g, NULL)->arrived_ms + s->options->flush_interval_ms;
    for (const struct batch *b = s->batches; b; b = b->next)
        if (b->state == BATCH_WAITING && b->retry_at_ms > now && (!first || b->retry_at_ms < first))
            first = b->retry_at_ms;
    return first;
}

/* --- recovery ------------------------------------------------------------------------------- */

int batch_recover(struct stream *s, const struct spool_seal *seal)
{
    struct batch *b = batch_new(s, seal->range_count);
    int status;

    if (!b)
        return SPOOL_E_NOMEM;
    b->id = seal->batch;
    b->state = BATCH_LOADING;
    b->segment_number = seal->segment;
    memcpy(b->ranges, seal->ranges, seal->range_count * sizeof(*b->ranges));
    b->range_count = seal->range_count;
    b->rows = seal->rows;
    b->sealed_ms = seal->sealed_ms;
    b->maybe_stored = true; /* it may have been sent before the end */
    snprintf(b->token, sizeof(b->token), "%s", seal->token);
    status = attributes_get(s, b, seal->attributes, seal->attributes_size);
    if (status != SPOOL_OK) {
        batch_free(b);
        return status;
    }
    batch_link(s, b);
    return SPOOL_OK;
}

static bool batch_resolve(struct stream *s, struct batch *b, struct segment *g)
{
    struct block *at = g->first;

    b->segment = g;
    b->block_count = 0;
    b->frames_bytes = b->raw_bytes = 0;
    for (size_t i = 0; i < b->range_count; i++) {
        const struct spool_range *r = &b->ranges[i];
        while (at && at->ref.sequence < r->sequence)
            at = at->next_in_segment;
        if (!at || at->ref.sequence != r->sequence || r->row != 0 || r->rows != at->ref.rows)
            return false;
        b->blocks[b->block_count++] = at;
        b->frames_bytes += at->ref.frames_bytes;
        b->raw_bytes += at->ref.raw_bytes;
        block_set_state(s, at, BLOCK_SEALED);
    }
    return true;
}

void batches_segment_loaded(struct stream *s, struct segment *g)
{
    for (struct batch *b = s->batches; b; b = b->next) {
        if (b->state != BATCH_LOADING || b->segment_number != g->number)
            continue;
        if (batch_resolve(s, b, g))
            batch_move(b, BATCH_WAITING);
        else
            stream_hold(s, HOLD_DAMAGE,
                        "batch %llu names rows that segment %llu does not hold: "
                        "stop spoold and run spoolctl verify",
                        (unsigned long long)b->id, (unsigned long long)g->number);
    }
}

/* --- the rest ------------------------------------------------------------------------------- */

bool batches_idle(const struct stream *s)
{
    return !s->batches && !s->eligible_blocks && segments_all_loaded(s);
}

bool batches_hold_origin(const struct stream *s, const struct origin *o)
{
    for (const struct batch *b = s->batches; b; b = b->next)
        for (size_t i = 0; i < b->block_count; i++)
            if (b->blocks[i]->origin == o)
                return true;
    return false;
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
