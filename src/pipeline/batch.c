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
#include <stdarg.h>
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
#define ASK_DELAY_MS         1000 /* what was cut may be in the server before it is seen there */
#define UNKNOWN_ATTEMPTS_MAX 5    /* of class unknown, then the stream is held */
#define UPLOAD_ATTEMPTS_MAX  2    /* then it is not the wire */
#define RESTART_SLACK_MS     3000 /* two start times closer than this are one start */
#define SPLIT_ROWS_MIN       1000 /* "too big" batches get no smaller */

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
    if (b->stream->probe == b)
        b->stream->probe = NULL;
}

void batch_remove(struct batch *b)
{
    batch_unlink(b);
    batch_free(b);
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
    b->endpoint = -1;
    buf_init(&b->attributes, 64 * KIB);
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

bool batch_deduplicates(const struct batch *b)
{
    const struct table_description *t = b->segment->schema->target->description;
    return t && t->deduplicates;
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
                g->schema->target->destination);
    batch_move(b, BATCH_DONE);
    batch_remove(b);
}

void batch_ack(struct batch *b)
{
    struct spool_change change = {.kind = SPOOL_CHANGE_ACK,
                                  .stream = b->stream->id,
                                  .batch = b->id,
                                  .segment = b->segment_number};

    FAILPOINT(FP_ANSWER_OK);
    batch_move(b, BATCH_ACKING);
    (void)meta_change(b->stream->p, &change, batch_acked, b, b->stream);
}

/* --- after a failure ------------------------------------------------------------------------ */

void batch_retry_later(struct batch *b, uint64_t delay_ms)
{
    b->retry_at_ms = clock_monotonic_ms() + delay_ms;
}

void batch_hold_for(struct batch *b, const char *format, ...)
{
    struct stream *s = b->stream;
    uint64_t delay = backoff_next_ms(&b->backoff);
    char text[900];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    stream_hold(s, HOLD_ANSWER, "batch %llu: %s", (unsigned long long)b->id, text);
    if (!s->probe)
        s->probe = b;
    batch_retry_later(b, delay < HOLD_RETRY_MIN_MS ? HOLD_RETRY_MIN_MS : delay);
}

/* Whatever is not plainly transient holds the stream; its batch alone is tried again. */
static void batch_hold(struct batch *b, const struct clickhouse_outcome *outcome)
{
    batch_hold_for(b, "ClickHouse refused it (%s%s%d): %s", error_class_name(outcome->class_),
                   outcome->code ? ", code " : ", HTTP status ",
                   outcome->code ? outcome->code : outcome->http_status, outcome->text);
}

static void batch_retry(struct batch *b, const struct clickhouse_outcome *outcome)
{
    struct stream *s = b->stream;
    uint64_t delay = backoff_next_ms(&b->backoff);
    uint64_t suppressed = 0;

    if (b->maybe_stored && delay < ASK_DELAY_MS && ask_possible(b))
        delay = ASK_DELAY_MS;
    batch_retry_later(b, delay);
    if (log_gate_open(&s->error_gate, 5000, &suppressed))
        log_event(LOG_WARN, "batch.retry", "stream", s->options->name, "batch", log_u64(b->id),
                  "attempt", log_u64(b->attempts), "class", error_class_name(outcome->class_),
                  "code", log_i64(outcome->code), "error", outcome->text, "retry_in_ms",
                  log_u64(delay), "lines_suppressed", log_u64(suppressed), NULL);
}

/* Two halves, each a batch of its own; later batches are no larger for a while. */
static void batch_halve(struct batch *b, const struct clickhouse_outcome *outcome)
{
    struct stream *s = b->stream;
    struct row_span spans[2] = {{0, b->rows / 2}, {b->rows / 2, b->rows - b->rows / 2}};
    struct span_group groups[2] = {{&spans[0], 1}, {&spans[1], 1}};

    if (b->rows < 2 * SPLIT_ROWS_MIN) {
        batch_hold(b, outcome);
        return;
    }
    s->batch_rows_max = b->rows / 2;
    log_event(LOG_WARN, "batch.too_big", "stream", s->options->name, "batch", log_u64(b->id),
              "rows", log_u64(b->rows), "error", outcome->text, "action",
              "it is halved, and batches are smaller from now on", NULL);
    if (batch_replace(b, NULL, 0, groups, 2, NULL) != SPOOL_OK)
        batch_hold(b, outcome);
}

/* What is done about an answer that is not yes. */
static void batch_failed(struct batch *b, const struct clickhouse_outcome *outcome)
{
    struct target *t = b->segment->schema->target;
    bool splits = b->rows > 1 || outcome->class_ == CLASS_DATA;

    switch (outcome->class_) {
    case CLASS_TOO_BIG:
        if (splits && !b->maybe_stored)
            batch_halve(b, outcome);
        else
            batch_hold(b, outcome);
        break;
    case CLASS_UPLOAD:
        if (++b->upload_failures < UPLOAD_ATTEMPTS_MAX)
            batch_retry(b, outcome);
        else
            batch_hold(b, outcome);
        break;
    case CLASS_SCHEMA:
        /* The table is looked at again; where it still fits, it is some row. */
        target_ask(t);
        if (b->schema_failures++ == 0) {
            t->state = t->state == TARGET_OK ? TARGET_UNKNOWN : t->state;
            batch_retry(b, outcome);
        } else if (outcome->code == 6 || outcome->code == 349 || outcome->code == 691 ||
                   outcome->code == 53 || outcome->code == 70) {
            hunt_start(b, b->endpoint, outcome);
        } else {
            batch_hold(b, outcome);
        }
        break;
    case CLASS_DATA:
        hunt_start(b, b->endpoint, outcome);
        break;
    case CLASS_UNKNOWN:
        if (b->attempts < UNKNOWN_ATTEMPTS_MAX)
            batch_retry(b, outcome);
        else
            batch_hold(b, outcome);
        break;
    case CLASS_TRANSIENT:
        batch_retry(b, outcome);
        break;
    case CLASS_ENVIRONMENT:
    case CLASS_NONE:
    case CLASS_COUNT:
        batch_hold(b, outcome);
        break;
    }
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
        s->accept_bad = false;
        s->halvings = 0;
        s->window_rows += (double)b->rows;
        if (s->batch_rows_max && s->batch_rows_max < s->options->flush_rows)
            s->batch_rows_max += s->batch_rows_max / 10 + 1;
        batch_ack(b);
        stream_advance(s);
        return;
    }
    batch_move(b, BATCH_WAITING);
    b->maybe_stored = b->maybe_stored || outcome->unknown;
    b->commit_failed =
        b->commit_failed || outcome->code == 1001 || outcome->code == 75 || outcome->code == 243;
    snprintf(code, sizeof(code), "%d", outcome->code);
    metrics_add(p->metrics, METRIC_ERRORS, 1, s->options->name, error_class_name(outcome->class_),
                code);
    if (p->closing)
        return;
    batch_failed(b, outcome);
    stream_advance(s);
}

/* --- sending -------------------------------------------------------------------------------- */

static size_t batch_body(void *arg, char *dst, size_t n)
{
    struct batch *b = arg;

    return feed_read(b->feed, dst, n);
}

/*
 * Whether the same bytes under the same token are stored exactly once by this server, after an
 * attempt whose outcome is not known: the table remembers tokens, this one is younger than half
 * of what it remembers, and the server neither restarted nor failed at storing since. (A server
 * can write the token before the part, and lose the part: its 200 to a repeat is then no proof.)
 */
static bool batch_token_holds(const struct batch *b, int endpoint)
{
    const struct table_description *t = b->segment->schema->target->description;
    int64_t age_ms = clock_wall_ms() - b->sealed_ms;
    int64_t start = 0, apart;
    uint64_t since = b->stream->next_batch - b->id;

    if (!t || !t->deduplicates || b->commit_failed || !b->server_start_ms)
        return false;
    if (t->dedup_window_seconds &&
        (age_ms < 0 || (uint64_t)age_ms / 500 >= t->dedup_window_seconds))
        return false;
    if (t->dedup_window_entries && since * 2 > t->dedup_window_entries)
        return false;
    if (!clickhouse_server_start(b->stream->p->clickhouse, (size_t)endpoint, &start))
        return false;
    apart = start - b->server_start_ms;
    return apart <= RESTART_SLACK_MS && apart >= -RESTART_SLACK_MS;
}

/* Nothing tells whether the rows are in: they go again, under a token of their own. */
static void batch_send_anew(struct batch *b)
{
    struct stream *s = b->stream;
    struct row_span all = {0, b->rows};
    struct span_group group = {&all, 1};

    metrics_add(s->p->metrics, METRIC_POSSIBLE_DUPLICATES, (double)b->rows, s->options->name);
    log_event(LOG_WARN, "batch.possible_duplicates", "stream", s->options->name, "batch",
              log_u64(b->id), "rows", log_u64(b->rows), "reason",
              batch_deduplicates(b)
                  ? "the last attempt's outcome is unknown and the server may have lost its token"
                  : "the last attempt's outcome is unknown and the table does not deduplicate",
              NULL);
    if (batch_replace(b, NULL, 0, &group, 1, NULL) != SPOOL_OK)
        batch_retry_later(b, RETRY_MAX_MS);
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
    b->endpoint = endpoint;
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

static void batch_checked(void *arg, uint64_t bytes, const struct spool_error *error)
{
    struct batch *b = arg;
    struct stream *s = b->stream;
    int endpoint = batch_endpoint(b);

    b->frames_bytes = bytes;
    if (error) {
        feed_close(b->feed);
        b->feed = NULL;
        batch_move(b, BATCH_WAITING);
        batch_retry_later(b, RETRY_MAX_MS);
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

static void batch_start(struct batch *b, int endpoint)
{
    if (b->maybe_stored && !batch_token_holds(b, endpoint)) {
        if (ask_possible(b))
            ask_start(b, endpoint);
        else
            batch_send_anew(b);
        return;
    }
    batch_move(b, BATCH_CHECKING);
    if (feed_open(b->stream, b->segment_number, b->parts, b->part_count, batch_checked, b,
                  &b->feed) != SPOOL_OK)
        pipeline_fatal(b->stream->p, "out of memory while sending a batch");
}

/* --- sealing -------------------------------------------------------------------------------- */

/* "2\n<native 0|1>\n<endpoint url>\n<server start, ms>\n<settings>": attributes of a seal, version
   first; version 1 had no server start. */
static int attributes_put(struct buf *out, bool native, const char *url, int64_t server_start_ms,
                          const char *settings)
{
    return buf_printf(out, "2\n%d\n%s\n%lld\n%s", native ? 1 : 0, url, (long long)server_start_ms,
                      settings);
}

static int attributes_get(struct stream *s, struct batch *b, const char *text, size_t size)
{
    const char *end = text + size;
    const char *line[4] = {text, text, text, text};
    size_t lines = size && text[0] == '1' ? 3 : 4;
    struct clickhouse *ch = s->p->clickhouse;

    for (size_t i = 0; i < lines; i++) {
        const char *nl = memchr(text, '\n', (size_t)(end - text));
        if (!nl)
            return SPOOL_E_CORRUPT;
        line[i] = text;
        text = nl + 1;
    }
    if ((line[0][0] != '1' && line[0][0] != '2') || line[0][1] != '\n')
        return SPOOL_E_NEWER;
    for (size_t i = 0; i < clickhouse_endpoints(ch); i++) {
        struct endpoint_status status;
        const char *url_end = memchr(line[2], '\n', (size_t)(end - line[2]));
        size_t n = (size_t)(url_end - line[2]);
        clickhouse_endpoint_status(ch, i, &status);
        if (strlen(status.url) == n && memcmp(status.url, line[2], n) == 0)
            b->endpoint = (int)i;
    }
    if (lines == 4)
        b->server_start_ms = strtoll(line[3], NULL, 10);
    b->settings = strndup(text, (size_t)(end - text));
    return b->settings ? SPOOL_OK : SPOOL_E_NOMEM;
}

static int batch_token(struct batch *b)
{
    uint64_t random[2] = {0, 0};

    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return SPOOL_E_IO;
    snprintf(b->token, sizeof(b->token), "%s-%s-%llu-%016llx%016llx",
             spool_uuid_text(b->stream->p->spool), b->stream->options->name,
             (unsigned long long)b->id, (unsigned long long)random[0],
             (unsigned long long)random[1]);
    return SPOOL_OK;
}

int batch_prepare_seal(struct batch *b, int endpoint)
{
    struct stream *s = b->stream;
    bool native = b->segment->schema->schema->format != FORMAT_JSON;
    struct endpoint_status server;
    struct buf settings;
    int status;

    for (size_t i = 0; i < b->part_count; i++)
        b->ranges[i] = (struct spool_range){b->parts[i].block->ref.sequence, b->parts[i].row,
                                            b->parts[i].rows};
    b->id = s->next_batch++;
    b->state = BATCH_SEALING;
    b->segment_number = b->segment->number;
    b->endpoint = endpoint;
    b->sealed_ms = clock_wall_ms();
    clickhouse_endpoint_status(s->p->clickhouse, (size_t)endpoint, &server);
    if (!clickhouse_server_start(s->p->clickhouse, (size_t)endpoint, &b->server_start_ms))
        b->server_start_ms = 0;
    buf_init(&settings, 64 * KIB);
    status = batch_token(b);
    if (status == SPOOL_OK)
        status = clickhouse_pinned_settings(server.version, native, batch_deduplicates(b), b->rows,
                                            b->raw_bytes, &settings);
    if (status == SPOOL_OK) {
        const char *text = buf_cstr(&settings);
        b->settings = text ? strdup(text) : NULL;
        status = b->settings ? SPOOL_OK : SPOOL_E_NOMEM;
    }
    if (status == SPOOL_OK)
        status =
            attributes_put(&b->attributes, native, server.url, b->server_start_ms, b->settings);
    buf_free(&settings);
    b->seal = (struct spool_seal){.stream = s->id,
                                  .batch = b->id,
                                  .segment = b->segment_number,
                                  .ranges = b->ranges,
                                  .range_count = b->part_count,
                                  .token = b->token,
                                  .attributes = b->attributes.data,
                                  .attributes_size = b->attributes.len,
                                  .sealed_ms = b->sealed_ms,
                                  .rows = b->rows};
    return status;
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
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .stream = s->id};
    struct block *at;
    int status;

    if (!b) {
        pipeline_fatal(s->p, "out of memory while sealing a batch");
        return;
    }
    b->segment = g;
    at = segment_next_eligible(g, NULL);
    while (b->part_count < count) {
        assert(at);
        b->parts[b->part_count++] = (struct part){at, 0, at->ref.rows};
        b->rows += at->ref.rows;
        b->raw_bytes += at->ref.raw_bytes;
        at = at->next_in_segment ? segment_next_eligible(g, at->next_in_segment) : NULL;
    }
    status = batch_prepare_seal(b, endpoint);
    if (status != SPOOL_OK) {
        pipeline_fatal(s->p, "stream %s: sealing a batch: %s", s->options->name,
                       spool_strerror(status));
        batch_free(b);
        return;
    }
    for (size_t i = 0; i < b->part_count; i++)
        block_set_state(s, b->parts[i].block, BLOCK_SEALED);
    batch_link(s, b);
    change.batch = b->id;
    change.seal = &b->seal;
    (void)meta_change(s->p, &change, batch_sealed, b, s);
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

static uint64_t batch_rows_wanted(const struct stream *s)
{
    return s->batch_rows_max && s->batch_rows_max < s->options->flush_rows ? s->batch_rows_max
                                                                           : s->options->flush_rows;
}

/*
 * How many blocks are due now: 0 when the batch should still grow. *rows is what they hold.
 */
static size_t batch_due(struct stream *s, struct segment *g, uint64_t now, uint64_t *rows)
{
    const struct stream_options *o = s->options;
    struct block *first = segment_next_eligible(g, NULL);
    uint64_t wanted = batch_rows_wanted(s);
    bool force = !g->newest || first->arrived_ms <= s->flush_before_ms || s->p->draining;
    uint64_t bytes = 0;
    size_t n = 0;

    *rows = 0;
    force = force || first->arrived_ms + o->flush_interval_ms <= now;
    if (!force && s->eligible_rows < wanted && s->eligible_bytes < o->flush_bytes)
        return 0;
    for (struct block *b = first; b && *rows < wanted && bytes < o->flush_bytes;
         b = b->next_in_segment ? segment_next_eligible(g, b->next_in_segment) : NULL) {
        *rows += b->ref.rows;
        bytes += b->ref.raw_bytes;
        n++;
    }
    return force || *rows >= wanted || bytes >= o->flush_bytes ? n : 0;
}

static bool batch_seal_one(struct stream *s, uint64_t now)
{
    struct segment *g = batch_segment(s);
    uint64_t rows = 0;
    size_t count;
    int endpoint;

    if (!g)
        return false;
    count = batch_due(s, g, now, &rows);
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

/* The endpoint to start the batch on, -1: not now. */
static int batch_may_start(const struct batch *b, uint64_t now)
{
    const struct stream *s = b->stream;
    int endpoint;

    if (b->state != BATCH_WAITING || b->busy || b->retry_at_ms > now || s->paused || s->p->closing)
        return -1;
    if (s->holds[HOLD_ANSWER] && s->probe && s->probe != b)
        return -1;
    endpoint = batch_endpoint(b);
    if (endpoint < 0 || !target_accepts(b->segment->schema->target, b->segment->schema))
        return -1;
    return endpoint;
}

void batches_advance(struct stream *s)
{
    uint64_t now = clock_monotonic_ms();
    unsigned active = 0;

    if (s->p->fatal || s->p->closing || !s->p->started)
        return;
    for (struct batch *b = s->batches; b; b = b->next)
        active += (b->state != BATCH_WAITING && b->state != BATCH_LOADING) || b->busy;
    for (struct batch *b = s->batches, *next; b && active < s->options->max_in_flight; b = next) {
        int endpoint = batch_may_start(b, now);
        next = b->next;
        if (endpoint < 0)
            continue;
        active++;
        batch_start(b, endpoint); /* may append to the list, frees nothing */
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
    b->part_count = seal->range_count;
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
    b->raw_bytes = 0;
    for (size_t i = 0; i < b->part_count; i++) {
        const struct spool_range *r = &b->ranges[i];
        while (at && at->ref.sequence < r->sequence)
            at = at->next_in_segment;
        if (!at || at->ref.sequence != r->sequence || r->rows > at->ref.rows ||
            r->row > at->ref.rows - r->rows)
            return false;
        b->parts[i] = (struct part){at, r->row, r->rows};
        b->raw_bytes += at->ref.rows ? at->ref.raw_bytes * r->rows / at->ref.rows : 0;
        block_set_state(s, at, BLOCK_SEALED);
    }
    return true;
}

void batches_segment_loaded(struct stream *s, struct segment *g)
{
    for (struct batch *b = s->batches; b; b = b->next) {
        if (b->state != BATCH_LOADING || b->segment_number != g->number)
            continue;
        if (batch_resolve(s, b, g)) {
            batch_move(b, BATCH_WAITING);
            if (ask_possible(b))
                batch_retry_later(b, ASK_DELAY_MS);
        } else {
            stream_hold(s, HOLD_DAMAGE,
                        "batch %llu names rows that segment %llu does not hold: "
                        "stop spoold and run spoolctl verify",
                        (unsigned long long)b->id, (unsigned long long)g->number);
        }
    }
}

/* --- the rest ------------------------------------------------------------------------------- */

bool batches_idle(const struct stream *s)
{
    return !s->batches && !s->eligible_blocks && segments_all_loaded(s);
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
