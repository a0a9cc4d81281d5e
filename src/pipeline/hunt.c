/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ClickHouse refused a batch for its data: which rows are bad? They are found by trial inserts into
 * a clone of the table with the engine Null, which checks everything a row can be refused for and
 * stores nothing: no parts, no seals. Block by block; where the server names the row ("at row 17")
 * that row is tried alone and the search goes on behind it, else the block is halved.
 *
 * Then, in this order: the bad rows are committed to the dead letters; in one commit the old seal
 * goes, the bad rows are acknowledged and the good ones are sealed anew, and go in as one batch.
 * A crash anywhere leaves the old seal, or the new ones: the dead letters are idempotent.
 *
 * Where the clone can't be made, or takes what the table refuses, the batch is halved and each half
 * inserted for real, at most HALVINGS_MAX times before the stream is held. More bad rows than
 * bad_ratio means that the table changed, not the data: then nothing is put to the dead letters.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "codec/native.h"
#include "pipeline/pipeline_int.h"

#define HALVINGS_MAX  200
#define BAD_ROWS_FREE 5      /* bad_ratio says nothing about so few */
#define WINDOW_ROWS   200000 /* over which bad_ratio is taken, about */
#define REASON_BYTES  400

struct hunt {
    struct batch *batch;
    struct stream *stream;
    int endpoint;
    int code;
    char reason[REASON_BYTES];
    char table[300]; /* of the trials */
    bool has_table;
    struct row_span *todo; /* a stack, the next on top */
    size_t todo_count, todo_cap;
    struct row_span span; /* on trial */
    bool single;          /* the row the server named is on trial; back_to follows */
    struct row_span back_to;
    uint64_t *bad; /* rows of the batch, ascending when all are found */
    size_t bad_count, bad_cap;
    uint64_t trials;
    uint64_t started_ms;
    struct part *parts; /* of the trial */
    size_t part_count;
    uint64_t frames_bytes;
    struct feed *feed;
    struct insert *insert;
};

static void hunt_next(struct hunt *h);

static void hunt_free(struct hunt *h)
{
    feed_close(h->feed);
    free(h->todo);
    free(h->bad);
    free(h->parts);
    free(h);
}

static void dropped(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                    size_t size)
{
    (void)arg;
    (void)outcome;
    (void)text;
    (void)size;
}

static void hunt_drop_table(struct hunt *h)
{
    char sql[1024];

    if (!h->has_table || h->stream->p->closing)
        return;
    snprintf(sql, sizeof(sql), "DROP TABLE IF EXISTS %s", h->table);
    (void)clickhouse_query(h->stream->p->clickhouse, (size_t)h->endpoint, sql, 4096, dropped, NULL,
                           NULL);
}

/* The batch is tried again later, and then hunted through again if it must be. */
static void hunt_give_up(struct hunt *h, uint64_t delay_ms)
{
    struct batch *b = h->batch;
    struct stream *s = h->stream;

    hunt_drop_table(h);
    b->busy = false;
    batch_retry_later(b, delay_ms);
    hunt_free(h);
    stream_advance(s);
}

/* --- bad_ratio ------------------------------------------------------------------------------ */

static bool hunt_too_many(const struct hunt *h)
{
    const struct stream *s = h->stream;
    double bad = s->window_bad + (double)h->bad_count;
    double rows = s->window_rows + (double)h->batch->rows;

    return !s->accept_bad && bad > BAD_ROWS_FREE && bad > s->options->bad_ratio * rows;
}

static void hunt_hold(struct hunt *h)
{
    struct batch *b = h->batch;

    hunt_drop_table(h);
    b->busy = false;
    batch_hold_for(
        b,
        "more than bad_ratio (%.3g) of its rows are refused (code %d: %s); the table may "
        "have changed: nothing was put to the dead letters; mend it, or let them go "
        "with spoolctl resume --accept-bad",
        h->stream->options->bad_ratio, h->code, h->reason);
    hunt_free(h);
    stream_advance(b->stream);
}

/* --- the dead letters ----------------------------------------------------------------------- */

struct bury {
    struct job job;
    struct hunt *hunt;
    struct part *parts; /* one row each */
    size_t count;
    uint64_t segment;
    struct spool_dead *letters;
    struct buf *records;
    int status;
    struct spool_error error;
    size_t added;
    uint64_t total, bytes;
};

static void bury_free(struct bury *y)
{
    for (size_t i = 0; y->records && i < y->count; i++)
        buf_free(&y->records[i]);
    free(y->records);
    free(y->letters);
    free(y->parts);
    free(y);
}

/* The row as JSON: what the record was is not kept once it is in columns. */
static int bury_row(struct bury *y, size_t i, const struct buf *raw, const int64_t *offsets)
{
    const struct part *part = &y->parts[i];
    const struct spool_block_ref *ref = &part->block->ref;
    const struct origin *o = part->block->origin;
    struct hunt *h = y->hunt;
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
            status = native_block_row_json(block, part->row, &y->records[i], &y->error);
        native_block_free(block);
    }
    y->letters[i] = (struct spool_dead){
        .stream = h->stream->options->name,
        .origin = o->id,
        .origin_name = o->name,
        .offset = offsets ? offsets[part->row] : ref->first_offset + (int64_t)part->row,
        .code = h->code,
        .reason_name = refusal_name(REFUSAL_SERVER),
        .reason = h->reason,
        .column = "",
        .flags = SPOOL_DEAD_REBUILT,
        .attempts = h->batch->attempts,
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
    struct spool *spool = job->pipeline->spool;

    y->status = bury_build(y);
    if (y->status == SPOOL_OK)
        y->status = spool_dead_put(spool, y->letters, y->count, &y->added, &y->error);
    if (y->status == SPOOL_OK)
        (void)spool_dead_count(spool, y->hunt->stream->options->name, &y->total, &y->bytes, NULL);
}

/* Rows that are not bad, as spans; the bad ones too. */
static int hunt_spans(const struct hunt *h, struct row_span **bad, struct row_span **good,
                      size_t *good_count)
{
    uint64_t at = 0;
    size_t n = 0;

    *bad = calloc(h->bad_count + 1, sizeof(**bad));
    *good = calloc(h->bad_count + 1, sizeof(**good));
    if (!*bad || !*good)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < h->bad_count; i++) {
        (*bad)[i] = (struct row_span){h->bad[i], 1};
        if (h->bad[i] > at)
            (*good)[n++] = (struct row_span){at, h->bad[i] - at};
        at = h->bad[i] + 1;
    }
    if (at < h->batch->rows)
        (*good)[n++] = (struct row_span){at, h->batch->rows - at};
    *good_count = n;
    return SPOOL_OK;
}

static void bury_done(struct job *job)
{
    struct bury *y = (struct bury *)job;
    struct hunt *h = y->hunt;
    struct stream *s = h->stream;
    struct batch *b = h->batch;
    struct row_span *bad = NULL, *good = NULL;
    struct span_group group;
    size_t good_count = 0;

    if (y->status != SPOOL_OK) {
        if (y->status == SPOOL_E_FATAL)
            pipeline_fatal(s->p, "dead.mdb: %s", y->error.text);
        else
            stream_hold(s, HOLD_DEAD_FULL, "dead letters can't be stored: %s", y->error.text);
        bury_free(y);
        hunt_give_up(h, 5000);
        return;
    }
    s->dead_letters = y->total;
    s->dead_bytes = y->bytes;
    metrics_add(s->p->metrics, METRIC_DEAD_LETTERS, (double)h->bad_count, s->options->name,
                refusal_name(REFUSAL_SERVER));
    log_event(LOG_WARN, "rows.refused", "stream", s->options->name, "batch", log_u64(b->id), "rows",
              log_u64(h->bad_count), "of", log_u64(b->rows), "trials", log_u64(h->trials),
              "milliseconds", log_u64(clock_monotonic_ms() - h->started_ms), "code",
              log_i64(h->code), "reason", h->reason, "action", "see spoolctl dead ls", NULL);
    s->window_bad += (double)h->bad_count;
    if (s->window_rows > WINDOW_ROWS) {
        s->window_rows /= 2;
        s->window_bad /= 2;
    }
    bury_free(y);
    b->busy = false;
    if (s->probe == b)
        stream_unhold(s, HOLD_ANSWER);
    if (hunt_spans(h, &bad, &good, &good_count) == SPOOL_OK) {
        group = (struct span_group){good, good_count};
        b->retry_at_ms = 0;
        if (batch_replace(b, bad, h->bad_count, &group, good_count ? 1 : 0, NULL) != SPOOL_OK)
            batch_retry_later(b, 5000);
    }
    free(bad);
    free(good);
    hunt_drop_table(h);
    hunt_free(h);
    stream_advance(s);
}

static int row_order(const void *left, const void *right)
{
    const uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

static void hunt_bury(struct hunt *h)
{
    struct bury *y = calloc(1, sizeof(*y));
    struct row_span *spans = calloc(h->bad_count, sizeof(*spans));
    struct lane *lane = &h->stream->p->dead_lane;

    qsort(h->bad, h->bad_count, sizeof(*h->bad), row_order);
    for (size_t i = 0; spans && i < h->bad_count; i++)
        spans[i] = (struct row_span){h->bad[i], 1};
    if (!y || !spans ||
        batch_parts(h->batch, spans, h->bad_count, &y->parts, &y->count) != SPOOL_OK)
        goto nomem;
    y->letters = calloc(y->count, sizeof(*y->letters));
    y->records = calloc(y->count, sizeof(*y->records));
    if (!y->letters || !y->records)
        goto nomem;
    for (size_t i = 0; i < y->count; i++)
        buf_init(&y->records[i], LIMIT_BLOCK_BYTES * 2);
    free(spans);
    y->hunt = h;
    y->segment = h->batch->segment_number;
    y->job.work = bury_work;
    y->job.done = bury_done;
    if (job_start(h->stream->p, &y->job, &lane, 1) != SPOOL_OK)
        pipeline_fatal(h->stream->p, "out of memory while storing dead letters");
    return;

nomem:
    free(spans);
    if (y)
        bury_free(y);
    pipeline_fatal(h->stream->p, "out of memory while storing dead letters");
}

/* --- halving for real ----------------------------------------------------------------------- */

void hunt_halve(struct batch *b, const char *why)
{
    struct stream *s = b->stream;
    struct row_span spans[2] = {{0, b->rows / 2}, {b->rows / 2, b->rows - b->rows / 2}};
    struct span_group groups[2] = {{&spans[0], 1}, {&spans[1], 1}};

    assert(b->rows > 1);
    if (++s->halvings > HALVINGS_MAX) {
        batch_hold_for(b, "it was halved %d times and rows are still refused: %s", HALVINGS_MAX,
                       why);
        s->halvings = 0;
        return;
    }
    b->retry_at_ms = 0;
    if (batch_replace(b, NULL, 0, groups, 2, NULL) != SPOOL_OK)
        batch_hold_for(b, "it could not be halved: out of memory");
}

/* The trials can't tell: the table itself must. */
static void hunt_for_real(struct hunt *h)
{
    struct batch *b = h->batch;
    struct stream *s = h->stream;
    char reason[REASON_BYTES];

    snprintf(reason, sizeof(reason), "%s", h->reason);
    if (b->rows == 1) {
        free(h->bad);
        h->bad = calloc(1, sizeof(*h->bad));
        h->bad_count = h->bad ? 1 : 0;
        if (!h->bad)
            pipeline_fatal(s->p, "out of memory while storing dead letters");
        else if (hunt_too_many(h))
            hunt_hold(h);
        else
            hunt_bury(h);
        return;
    }
    hunt_drop_table(h);
    b->busy = false;
    hunt_free(h);
    hunt_halve(b, reason);
    stream_advance(s);
}

/* --- trials --------------------------------------------------------------------------------- */

static bool hunt_push(struct hunt *h, uint64_t first, uint64_t count)
{
    if (!count)
        return true;
    if (h->todo_count == h->todo_cap) {
        size_t cap = h->todo_cap ? h->todo_cap * 2 : 64;
        struct row_span *grown = realloc(h->todo, cap * sizeof(*grown));
        if (!grown)
            return false;
        h->todo = grown;
        h->todo_cap = cap;
    }
    h->todo[h->todo_count++] = (struct row_span){first, count};
    return true;
}

static bool hunt_bad(struct hunt *h, uint64_t row)
{
    if (h->bad_count == h->bad_cap) {
        size_t cap = h->bad_cap ? h->bad_cap * 2 : 64;
        uint64_t *grown = realloc(h->bad, cap * sizeof(*grown));
        if (!grown)
            return false;
        h->bad = grown;
        h->bad_cap = cap;
    }
    h->bad[h->bad_count++] = row;
    return true;
}

/* "... violated at row 17." counts the rows of the insert from 1; 0 where none is named. */
static uint64_t named_row(const char *text)
{
    const char *at = strstr(text, " at row ");
    return at ? strtoull(at + 8, NULL, 10) : 0;
}

/* What a refused trial says about its span. */
static bool hunt_refused(struct hunt *h, const char *text)
{
    struct row_span span = h->span;
    uint64_t row = named_row(text);

    if (h->single) { /* the named row is bad indeed: go on behind it */
        uint64_t end = h->back_to.first + h->back_to.count;
        h->single = false;
        return hunt_bad(h, span.first) && hunt_push(h, span.first + 1, end - span.first - 1);
    }
    if (span.count == 1)
        return hunt_bad(h, span.first);
    if (row >= 1 && row <= span.count) {
        h->single = true;
        h->back_to = span;
        return hunt_push(h, span.first + row - 1, 1);
    }
    return hunt_push(h, span.first + span.count / 2, span.count - span.count / 2) &&
           hunt_push(h, span.first, span.count / 2);
}

/* The named row passed alone: the name meant something else, so halve. */
static bool hunt_misnamed(struct hunt *h)
{
    struct row_span span = h->back_to;

    h->single = false;
    return hunt_push(h, span.first + span.count / 2, span.count - span.count / 2) &&
           hunt_push(h, span.first, span.count / 2);
}

static void trial_answered(void *arg, const struct clickhouse_outcome *outcome)
{
    struct hunt *h = arg;
    bool ok = true;

    h->insert = NULL;
    feed_close(h->feed);
    h->feed = NULL;
    h->trials++;
    if (h->stream->p->closing) {
        hunt_give_up(h, 1000);
        return;
    }
    switch (outcome->class_) {
    case CLASS_NONE:
        if (h->single)
            ok = hunt_misnamed(h);
        break;
    case CLASS_DATA:
    case CLASS_SCHEMA:
        ok = hunt_refused(h, outcome->text);
        break;
    default:
        hunt_give_up(h, backoff_next_ms(&h->batch->backoff));
        return;
    }
    if (!ok)
        pipeline_fatal(h->stream->p, "out of memory while looking for bad rows");
    else if (hunt_too_many(h))
        hunt_hold(h);
    else
        hunt_next(h);
}

static size_t trial_body(void *arg, char *dst, size_t n)
{
    struct hunt *h = arg;

    return feed_read(h->feed, dst, n);
}

static void trial_checked(void *arg, uint64_t bytes, const struct spool_error *error)
{
    struct hunt *h = arg;
    struct batch *b = h->batch;
    char query_id[400];
    struct spool_error failure;
    struct insert_spec spec = {
        .database = b->segment->schema->target->database,
        .column_list = b->segment->schema->column_list,
        .native = b->segment->schema->schema->format != FORMAT_JSON,
        .settings = b->settings,
        .token = query_id,
        .query_id = query_id,
        .frames_bytes = bytes,
        .read_body = trial_body,
        .arg = h,
        .done = trial_answered,
    };

    if (error || h->stream->p->closing) {
        hunt_give_up(h, 10000); /* the batch's own check tells what is damaged */
        return;
    }
    snprintf(query_id, sizeof(query_id), "%s-trial-%llu-%llx", b->token,
             (unsigned long long)h->trials, (unsigned long long)clock_monotonic_ns());
    spec.table = h->table + strlen(h->table) + 1; /* the bare name stands behind */
    if (clickhouse_insert(h->stream->p->clickhouse, (size_t)h->endpoint, &spec, &h->insert,
                          &failure) != SPOOL_OK) {
        hunt_give_up(h, 1000);
        return;
    }
    feed_attach(h->feed, &h->insert);
}

/* The next span, or the end of the search. */
static void hunt_next(struct hunt *h)
{
    struct batch *b = h->batch;

    if (!h->todo_count) {
        if (!h->bad_count)
            hunt_for_real(h); /* the clone takes it all */
        else
            hunt_bury(h);
        return;
    }
    h->span = h->todo[--h->todo_count];
    free(h->parts);
    h->parts = NULL;
    if (batch_parts(b, &h->span, 1, &h->parts, &h->part_count) != SPOOL_OK ||
        feed_open(h->stream, b->segment_number, h->parts, h->part_count, trial_checked, h,
                  &h->feed) != SPOOL_OK)
        pipeline_fatal(h->stream->p, "out of memory while looking for bad rows");
}

static void table_made(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                       size_t size)
{
    struct hunt *h = arg;
    struct batch *b = h->batch;
    uint64_t end = b->rows;

    (void)text;
    (void)size;
    if (h->stream->p->closing || outcome->class_ == CLASS_TRANSIENT) {
        hunt_give_up(h, backoff_next_ms(&b->backoff));
        return;
    }
    if (outcome->class_ != CLASS_NONE) {
        log_event(LOG_WARN, "hunt.no_trial_table", "stream", h->stream->options->name, "error",
                  outcome->text, "action",
                  "bad rows are found by inserting halves; the right to create tables makes it "
                  "cheaper",
                  NULL);
        h->stream->no_trial_table = true;
        hunt_for_real(h);
        return;
    }
    h->has_table = true;
    for (size_t i = b->part_count; i > 0; i--) { /* the first block ends on top */
        end -= b->parts[i - 1].rows;
        if (!hunt_push(h, end, b->parts[i - 1].rows)) {
            pipeline_fatal(h->stream->p, "out of memory while looking for bad rows");
            return;
        }
    }
    hunt_next(h);
}

static void old_table_gone(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                           size_t size)
{
    struct hunt *h = arg;
    char sql[1024];
    struct spool_error error;

    (void)outcome;
    (void)text;
    (void)size;
    snprintf(sql, sizeof(sql), "CREATE TABLE IF NOT EXISTS %s AS %s ENGINE = Null", h->table,
             h->batch->segment->schema->target->destination);
    if (h->stream->p->closing || clickhouse_query(h->stream->p->clickhouse, (size_t)h->endpoint,
                                                  sql, 4096, table_made, h, &error) != SPOOL_OK)
        hunt_give_up(h, 1000);
}

static void hunt_name_table(struct hunt *h)
{
    struct target *t = h->batch->segment->schema->target;
    char bare[140];
    int n;

    snprintf(bare, sizeof(bare), "%.60s_spoold_trial_%.8s_%u", t->table,
             spool_uuid_text(h->stream->p->spool), h->stream->id);
    for (char *c = bare; *c; c++)
        if (*c == '`' || *c == '\\')
            *c = '_';
    n = snprintf(h->table, sizeof(h->table), "`%.100s`.`%s`", t->database, bare);
    if (n > 0 && (size_t)n + strlen(bare) + 2 < sizeof(h->table))
        memcpy(h->table + n + 1, bare, strlen(bare) + 1);
}

void hunt_start(struct batch *b, int endpoint, const struct clickhouse_outcome *outcome)
{
    struct stream *s = b->stream;
    struct hunt *h;
    char sql[1024];
    struct spool_error error;

    if (b->maybe_stored) {
        /* Rows of it may be in: first know which. Without a way to ask, all go on as missing. */
        if (ask_possible(b)) {
            ask_start(b, endpoint);
            return;
        }
        b->maybe_stored = false;
        metrics_add(s->p->metrics, METRIC_POSSIBLE_DUPLICATES, (double)b->rows, s->options->name);
        log_event(LOG_WARN, "batch.possible_duplicates", "stream", s->options->name, "batch",
                  log_u64(b->id), "rows", log_u64(b->rows), "reason",
                  "it was refused after an attempt whose outcome is unknown", NULL);
    }
    h = calloc(1, sizeof(*h));
    if (!h) {
        pipeline_fatal(s->p, "out of memory while looking for bad rows");
        return;
    }
    h->batch = b;
    h->stream = s;
    h->endpoint = endpoint;
    h->code = outcome->code;
    h->started_ms = clock_monotonic_ms();
    snprintf(h->reason, sizeof(h->reason), "%.*s", REASON_BYTES - 1, outcome->text);
    hunt_name_table(h);
    b->busy = true;
    if (b->rows == 1 || s->no_trial_table) {
        hunt_for_real(h);
        return;
    }
    snprintf(sql, sizeof(sql), "DROP TABLE IF EXISTS %s", h->table);
    if (clickhouse_query(s->p->clickhouse, (size_t)endpoint, sql, 4096, old_table_gone, h,
                         &error) != SPOOL_OK)
        hunt_give_up(h, 1000);
}
