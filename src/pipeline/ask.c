/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asking: an attempt ended without an answer, and the token alone cannot be trusted. Where topic,
 * partition and offset (or origin and offset) of each record are columns of the table, the table
 * itself tells which rows are in. First the attempt must be over on the server: its query has left
 * system.processes. Then the offsets of the batch's ranges are read back; rows that are in are
 * acknowledged, the others are sealed anew.
 *
 * Only tables that keep every row as it was inserted can be asked: MergeTree and
 * ReplicatedMergeTree. Engines that merge rows away (Replacing, Summing, ...) cannot.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/ask_int.h"

#define ASK_RETRY_MS    500
#define ASK_ORIGINS_MAX 2000 /* a statement of 1.5 MiB at most */
/* An answer has a line for each row, and for a row that is in twice one more. */
#define ASK_LINE_BYTES  (sizeof("2000\t-9223372036854775808\n") - 1)
#define ASK_REPLY_BYTES (128 * MIB) /* or what all rows take, where that is more */

bool origin_tells_apart(const struct origin *o, int64_t offset)
{
    return offset >= o->told_from && !o->superseded && !replay_is_origin(o);
}

static bool ask_tells_apart(const struct batch *b)
{
    size_t origins = 0;
    const struct origin *last = NULL;

    for (size_t i = 0; i < b->part_count; i++) {
        const struct block *block = b->parts[i].block;
        const struct origin *o = block->origin;
        if (!o->name || !origin_tells_apart(o, block->ref.first_offset))
            return false;
        origins += o != last;
        last = o;
    }
    return origins <= ASK_ORIGINS_MAX;
}

/* The rows have such a column, and the table (still) has it too. */
static bool ask_has(const struct stream_schema *ss, enum column_source source,
                    const struct table_description *t)
{
    const char *name = ask_column_of(ss->schema, source);
    return name && description_has_column(t, name);
}

bool ask_by_origin(const struct stream_schema *ss, const struct table_description *t)
{
    if (!t || !t->engine ||
        (strcmp(t->engine, "MergeTree") != 0 && strcmp(t->engine, "ReplicatedMergeTree") != 0))
        return false;
    return ask_has(ss, SOURCE_OFFSET, t) &&
           (ask_has(ss, SOURCE_ORIGIN, t) ||
            (ask_has(ss, SOURCE_TOPIC, t) && ask_has(ss, SOURCE_PARTITION, t)));
}

bool ask_possible(const struct batch *b)
{
    return ask_by_origin(batch_schema(b), batch_table(b)) && ask_tells_apart(b);
}

static void ask_free(struct ask *a)
{
    free(a->parts);
    free(a->damaged);
    free(a->origins);
    free(a->rows);
    free(a);
}

static void ask_rows(struct ask *a);

/* No answer: the batch waits and is asked about again. */
static void ask_again(struct ask *a)
{
    struct batch *b = a->batch;
    struct stream *s = a->stream;

    b->busy = false;
    b->refused_alone = false; /* by now the table may be another: a trial tells */
    batch_retry_later(b, ASK_RETRY_MS + backoff_next_ms(&b->backoff));
    ask_free(a);
    stream_advance(s);
}

/*
 * Nobody says. The rows may be in, so nothing else can be done with them: the batch is asked about
 * again and again until somebody mends what does not pass by itself. With another endpoint to go to
 * it waits by itself; else it holds the stream.
 */
static void ask_wait(struct ask *a)
{
    struct batch *b = a->batch;
    struct stream *s = a->stream;
    char advice[700];

    b->busy = false;
    b->refused_alone = false;
    b->unaskable = b->endpoint >= 0;
    if (batch_waits_aside(b)) {
        if (s->probe == b) {
            s->probe = NULL;
            stream_unhold(s, HOLD_ANSWER);
        }
        batch_hold_again(b);
    } else {
        ask_advice(a, a->refusal.code, advice, sizeof(advice));
        batch_hold_for(
            b, "rows of it may be in the table already, and it can't be asked (%s, code %d): %s%s",
            error_class_name(a->refusal.class_), a->refusal.code, a->refusal.text, advice);
    }
    ask_free(a);
    stream_advance(s);
}

/*
 * The server would not say. Another one that has the very same table may: the batch goes there where
 * the token tells, which is exact. Else that one is asked, and believed only if it has all the rows,
 * since what it lacks may be on its way to it.
 */
static void ask_refused(struct ask *a, const struct clickhouse_outcome *outcome)
{
    struct batch *b = a->batch;
    struct stream *s = a->stream;
    uint64_t suppressed = 0;
    int replica;

    if (s->p->closing || outcome->class_ == CLASS_TRANSIENT) {
        ask_again(a);
        return;
    }
    if (log_gate_open(&s->ask_gate, 5000, &suppressed))
        log_event(LOG_WARN, "batch.ask_failed", "stream", s->options->name, "batch", log_u64(b->id),
                  "error", outcome->text, "lines_suppressed", log_u64(suppressed), NULL);
    if (a->for_proof || a->endpoint != b->endpoint) {
        if (!a->for_proof)
            a->refusal = *outcome;
        ask_wait(a);
        return;
    }
    a->refusal = *outcome;
    batch_know_replicas(b);
    if (batch_replica(b, true) >= 0) {
        b->unaskable = true; /* batch_endpoint gives that one from now on */
        ask_again(a);
        return;
    }
    replica = batch_replica(b, false);
    if (replica < 0) {
        ask_wait(a);
        return;
    }
    a->endpoint = replica;
    a->for_proof = true;
    ask_rows(a);
}

/* --- the rows' own offsets, read in the pool ------------------------------------------------ */

static int ask_origin_of(struct ask *a, const struct origin *o, uint32_t *index)
{
    struct ask_origin *grown;

    for (size_t i = a->origin_count; i > 0; i--)
        if (a->origins[i - 1].origin == o) {
            *index = (uint32_t)(i - 1);
            return SPOOL_OK;
        }
    grown = realloc(a->origins, (a->origin_count + 1) * sizeof(*grown));
    if (!grown)
        return SPOOL_E_NOMEM;
    a->origins = grown;
    grown[a->origin_count] = (struct ask_origin){o, INT64_MAX, INT64_MIN};
    *index = (uint32_t)a->origin_count++;
    return SPOOL_OK;
}

static int ask_part(struct ask *a, struct spool_reader *reader, size_t index)
{
    const struct part *part = &a->parts[index];
    const struct spool_block_ref *ref = &part->block->ref;
    void *payload = NULL;
    int64_t *offsets = NULL;
    size_t size = 0;
    uint32_t origin = 0;
    int status = reader ? spool_reader_block(reader, ref, &payload, &size, &offsets, &a->error)
                        : SPOOL_E_CORRUPT;

    a->damaged[index] = damage_is(status, &a->error);
    a->any_damaged = a->any_damaged || a->damaged[index];
    if (status == SPOOL_OK || a->damaged[index])
        status = ask_origin_of(a, part->block->origin, &origin);
    for (uint32_t i = 0; i < part->rows && status == SPOOL_OK; i++) {
        int64_t offset =
            offsets ? offsets[part->row + i] : ref->first_offset + (int64_t)part->row + i;
        struct ask_origin *o = &a->origins[origin];
        if (a->damaged[index] && !block_is_dense(ref)) {
            a->rows[a->row_count] = (struct ask_row){ASK_NO_ORIGIN, 0, a->row_count, false};
            a->row_count++;
            continue;
        }
        o->low = offset < o->low ? offset : o->low;
        o->high = offset > o->high ? offset : o->high;
        a->rows[a->row_count] = (struct ask_row){origin, offset, a->row_count, false};
        a->row_count++;
    }
    free(payload);
    free(offsets);
    return status;
}

static int row_order(const void *left, const void *right)
{
    const struct ask_row *a = left, *b = right;

    if (a->origin != b->origin)
        return a->origin < b->origin ? -1 : 1;
    return a->offset < b->offset ? -1 : a->offset > b->offset;
}

static void ask_work(struct job *job)
{
    struct ask *a = (struct ask *)job;
    struct spool_reader *reader = NULL;

    a->status = spool_reader_open(a->stream->spool, a->segment, &reader, &a->error);
    if (damage_is(a->status, &a->error))
        a->status = SPOOL_OK; /* then no part of it can be read */
    for (size_t i = 0; i < a->part_count && a->status == SPOOL_OK; i++)
        if (a->parts[i].rows)
            a->status = ask_part(a, reader, i);
    spool_reader_close(reader);
    if (a->status == SPOOL_OK)
        qsort(a->rows, a->row_count, sizeof(*a->rows), row_order);
}

/* --- the answer ----------------------------------------------------------------------------- */

static int by_row(const void *left, const void *right)
{
    const struct ask_row *a = left, *b = right;
    return a->row < b->row ? -1 : a->row > b->row;
}

/* Acknowledges what is in and seals the rest anew. */
static void ask_settle(struct ask *a)
{
    struct batch *b = a->batch;
    struct stream *s = a->stream;
    struct row_span *spans = calloc(a->row_count + 1, sizeof(*spans));
    struct row_span *missing;
    struct span_group group;
    size_t stored_count = 0, missing_count = 0;
    uint64_t stored = 0;
    bool elsewhere = a->endpoint != b->endpoint; /* not the server that may have them was asked */

    if (!spans) {
        ask_again(a);
        return;
    }
    qsort(a->rows, a->row_count, sizeof(*a->rows), by_row);
    for (uint64_t i = 0; i < a->row_count; i++) {
        stored += a->rows[i].stored;
        if (i == 0 || a->rows[i].stored != a->rows[i - 1].stored)
            stored_count += a->rows[i].stored, missing_count += !a->rows[i].stored;
    }
    log_event(LOG_INFO, "batch.asked", "stream", s->options->name, "batch", log_u64(b->id), "rows",
              log_u64(a->row_count), "stored", log_u64(stored), NULL);
    b->busy = false;
    batch_asked_stored(b, stored);
    if (stored == a->row_count) {
        if (s->probe == b) {
            s->probe = NULL;
            stream_unhold(s, HOLD_ANSWER);
        }
        batch_ack(b);
    } else {
        size_t n[2] = {0, 0};
        missing = spans + stored_count;
        for (uint64_t i = 0; i < a->row_count; i++) {
            struct row_span *list = a->rows[i].stored ? spans : missing;
            size_t *count = &n[a->rows[i].stored ? 0 : 1];
            if (i && a->rows[i].stored == a->rows[i - 1].stored)
                list[*count - 1].count++;
            else
                list[(*count)++] = (struct row_span){i, 1};
        }
        group = (struct span_group){.spans = missing, .count = missing_count};
        if (elsewhere)
            batch_possible_duplicates(b, a->row_count - stored,
                                      "a replica was asked, which may lag behind the one that may "
                                      "have them");
        if (a->any_damaged ? batch_set_aside(b, a->damaged, spans, stored_count, elsewhere)
            : b->splits    ? batch_split(b, spans, stored_count, missing, missing_count)
                           : batch_replace(b, spans, stored_count, &group, 1, NULL))
            batch_retry_later(b, ASK_RETRY_MS);
    }
    free(spans);
    ask_free(a);
    stream_advance(s);
}

static const char *next_field(const char **at, const char *end, char stop, size_t *size)
{
    const char *field = *at;
    const char *hit = memchr(field, stop, (size_t)(end - field));

    if (!hit)
        return NULL;
    *size = (size_t)(hit - field);
    *at = hit + 1;
    return field;
}

/* A line: which of the origins, from 1 on, tab, offset, newline. */
static bool ask_mark(struct ask *a, uint64_t origin, int64_t offset)
{
    struct ask_row key = {.offset = offset}, *row;

    if (origin == 0 || origin > a->origin_count)
        return false;
    key.origin = (uint32_t)(origin - 1);
    row = bsearch(&key, a->rows, a->row_count, sizeof(*a->rows), row_order);
    if (row)
        row->stored = true;
    return true;
}

static bool ask_has_all(const struct ask *a)
{
    for (uint64_t i = 0; i < a->row_count; i++)
        if (!a->rows[i].stored)
            return false;
    return true;
}

static void ask_rows_answered(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                              size_t size)
{
    struct ask *a = arg;
    const char *at = text, *end = text + size;

    FAILPOINT(FP_ASK_ANSWERED);
    if (a->stream->p->closing || outcome->class_ != CLASS_NONE) {
        ask_refused(a, outcome);
        return;
    }
    while (at < end) {
        size_t origin_size = 0, offset_size = 0;
        const char *origin = next_field(&at, end, '\t', &origin_size);
        const char *offset = origin ? next_field(&at, end, '\n', &offset_size) : NULL;
        if (!offset || offset_size == 0 || offset_size > 20 ||
            !ask_mark(a, strtoull(origin, NULL, 10), strtoll(offset, NULL, 10))) {
            struct clickhouse_outcome unreadable = {.class_ = CLASS_UNKNOWN,
                                                    .text = "the table's answer is not readable"};
            ask_refused(a, &unreadable);
            return;
        }
    }
    if (a->for_proof && !ask_has_all(a)) {
        ask_wait(a);
        return;
    }
    a->batch->unaskable = false;
    ask_settle(a);
}

/* --- the questions -------------------------------------------------------------------------- */

static void ask_rows(struct ask *a)
{
    struct buf sql;
    const char *text = NULL;
    size_t reply_bytes = a->row_count * ASK_LINE_BYTES;
    struct spool_error error;

    if (reply_bytes < ASK_REPLY_BYTES)
        reply_bytes = ASK_REPLY_BYTES;
    buf_init(&sql, 2 * MIB);
    if (ask_statement(a, &sql) == SPOOL_OK)
        text = buf_cstr(&sql);
    if (!text || clickhouse_query(a->stream->p->clickhouse, (size_t)a->endpoint, text, reply_bytes,
                                  ask_rows_answered, a, &error) != SPOOL_OK)
        ask_again(a);
    buf_free(&sql);
}

static void ask_running_answered(void *arg, const struct clickhouse_outcome *outcome,
                                 const char *text, size_t size)
{
    struct ask *a = arg;

    if (outcome->class_ != CLASS_NONE)
        ask_refused(a, outcome);
    else if (a->stream->p->closing || size == 0 || text[0] != '0')
        ask_again(a); /* it still runs */
    else
        ask_rows(a);
}

/* Every attempt of the batch carries its token at the start of its query_id. */
static void ask_read(struct job *job)
{
    struct ask *a = (struct ask *)job;
    struct spool_error error;
    char sql[512];

    if (a->status != SPOOL_OK || a->stream->p->closing) {
        if (a->status != SPOOL_OK)
            log_event(LOG_WARN, "batch.ask_failed", "stream", a->stream->options->name, "batch",
                      log_u64(a->batch->id), "error", a->error.text, NULL);
        ask_again(a);
        return;
    }
    snprintf(sql, sizeof(sql),
             "SELECT count() FROM system.processes WHERE position(query_id, '%s') = 1 "
             "FORMAT TabSeparated",
             a->batch->token);
    if (clickhouse_query(a->stream->p->clickhouse, (size_t)a->endpoint, sql, 4096,
                         ask_running_answered, a, &error) != SPOOL_OK)
        ask_again(a);
}

void ask_start(struct batch *b, int endpoint)
{
    uint64_t now = clock_monotonic_ms();
    struct ask *a;

    if (b->ask_from_ms > now && !b->answered) {
        batch_retry_later(b, b->ask_from_ms - now);
        return;
    }
    a = calloc(1, sizeof(*a));
    if (a) {
        a->parts = calloc(b->part_count ? b->part_count : 1, sizeof(*a->parts));
        a->damaged = calloc(b->part_count ? b->part_count : 1, sizeof(*a->damaged));
        a->rows = calloc(b->rows ? b->rows : 1, sizeof(*a->rows));
    }
    if (!a || !a->parts || !a->damaged || !a->rows) {
        if (a)
            ask_free(a);
        pipeline_fatal(b->stream->p, "out of memory while asking what a table holds");
        return;
    }
    memcpy(a->parts, b->parts, b->part_count * sizeof(*a->parts));
    a->part_count = b->part_count;
    a->segment = b->segment_number;
    a->batch = b;
    a->stream = b->stream;
    a->endpoint = endpoint;
    b->busy = true;
    a->job.work = ask_work;
    a->job.done = ask_read;
    if (job_start(b->stream->p, &a->job, NULL, 0) != SPOOL_OK)
        pipeline_fatal(b->stream->p, "out of memory while asking what a table holds");
}
