/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is done about an answer to a batch that is not yes, by its class (sink/error_class.h).
 *
 * Data, and what may be data, goes to hunt.c; what is too big, to too_big.c. A batch whose rows may
 * be in the table already is not hunted through: those rows are asked for first, and the answer
 * that has to be acted on stays with what takes the batch's place (refusal), which is then never
 * sent as it is. All else is retried, or holds the stream with the server's words.
 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define HOLD_RETRY_MIN_MS    1000   /* a held batch is tried again no faster than this */
#define BLIND_RETRY_FIRST_MS 10000  /* ... where each attempt may store its rows once more */
#define BLIND_RETRY_MAX_MS   600000 /* ... each time after twice as long, up to this */
#define UNKNOWN_ATTEMPTS_MAX 5      /* of class unknown, then it may be a row */
#define UPLOAD_ATTEMPTS_MAX  2      /* then it is not the wire */

/* --- hold and retry ------------------------------------------------------------------------- */

void batch_hold_for(struct batch *b, const char *format, ...)
{
    struct stream *s = b->stream;
    char text[900];
    va_list args;

    if (batch_avoided(b)) {
        batch_hold_again(b);
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    stream_hold(s, HOLD_ANSWER, "batch %llu: %s", (unsigned long long)b->id, text);
    if (!s->probe)
        s->probe = b;
    batch_hold_again(b);
}

/* Nothing will tell whether an attempt stored the rows: each may double them. */
static bool batch_is_blind(const struct batch *b)
{
    return b->maybe_stored && (!batch_deduplicates(b) || b->token_lost) && !ask_possible(b);
}

void batch_hold_again(struct batch *b)
{
    uint64_t delay = backoff_next_ms(&b->backoff);

    if (batch_is_blind(b)) {
        b->blind_wait_ms = b->blind_wait_ms ? 2 * b->blind_wait_ms : BLIND_RETRY_FIRST_MS;
        if (b->blind_wait_ms > BLIND_RETRY_MAX_MS)
            b->blind_wait_ms = BLIND_RETRY_MAX_MS;
        delay = b->blind_wait_ms;
    }
    batch_retry_later(b, delay < HOLD_RETRY_MIN_MS ? HOLD_RETRY_MIN_MS : delay);
}

static void batch_hold(struct batch *b, const struct clickhouse_outcome *outcome)
{
    const char *setting = clickhouse_setting_refused(outcome->code, outcome->text);

    batch_hold_for(b, "ClickHouse refused it (%s%s%d): %s%s%s", error_class_name(outcome->class_),
                   outcome->code ? ", code " : ", HTTP status ",
                   outcome->code ? outcome->code : outcome->http_status, outcome->text,
                   setting
                       ? "; spoold sends this with every insert, so that a batch is stored whole "
                         "and once: let its user set "
                       : "",
                   setting ? setting : "");
}

static void batch_retry(struct batch *b, const struct clickhouse_outcome *outcome)
{
    struct stream *s = b->stream;
    uint64_t delay = backoff_next_ms(&b->backoff);
    uint64_t suppressed = 0;

    batch_ask_later(b);
    batch_retry_later(b, delay);
    if (log_gate_open(&s->error_gate, 5000, &suppressed))
        log_event(LOG_WARN, "batch.retry", "stream", s->options->name, "batch", log_u64(b->id),
                  "attempt", log_u64(b->attempts), "class", error_class_name(outcome->class_),
                  "code", log_i64(outcome->code), "error", outcome->text, "retry_in_ms",
                  log_u64(delay), "lines_suppressed", log_u64(suppressed), NULL);
}

/* --- rows ----------------------------------------------------------------------------------- */

int batch_refusal_set(struct batch *b, const struct clickhouse_outcome *outcome)
{
    b->refusal = malloc(sizeof(*b->refusal));
    if (!b->refusal)
        return SPOOL_E_NOMEM;
    *b->refusal = *outcome;
    return SPOOL_OK;
}

void batch_refusal_take(struct batch *b, int endpoint)
{
    struct clickhouse_outcome outcome = *b->refusal;
    bool alone = b->refused_alone;

    free(b->refusal);
    b->refusal = NULL;
    b->refused_alone = false;
    hunt_start(b, endpoint, &outcome, alone);
}

static void batch_refused(struct batch *b, int endpoint, const struct clickhouse_outcome *outcome)
{
    if (b->hunt_after_ms > clock_monotonic_ms() && !batch_accepts_bad(b)) {
        batch_hold_again(b);
        return;
    }
    if (b->maybe_stored && ask_possible(b)) {
        free(b->refusal);
        b->refused_alone = b->rows == 1;
        if (batch_refusal_set(b, outcome) == SPOOL_OK)
            ask_start(b, endpoint);
        else
            pipeline_fatal(b->stream->p, "out of memory while dealing with a refused batch");
        return;
    }
    if (b->maybe_stored) {
        b->maybe_stored = false;
        batch_possible_duplicates(b, b->rows,
                                  "it was refused after an attempt whose outcome is unknown");
    }
    hunt_start(b, endpoint, outcome, b->rows == 1);
}

/* --- by class ------------------------------------------------------------------------------- */

/* A batch is one block, and so one part of a table that is not partitioned and feeds no view: where
   memory or room for it ran out, none of it is in. */
bool batch_proves_itself_out(const struct batch *b, const struct clickhouse_outcome *outcome)
{
    const struct table_description *t = batch_table(b);

    return error_is_no_room(outcome->code) && outcome->http_status >= 400 && t && t->engine &&
           strcmp(t->engine, "MergeTree") == 0 && t->partition_key && !t->partition_key[0] &&
           !t->views;
}

/* A refusal that may have come of a row, where it came again. */
static void batch_doubted(struct batch *b, int endpoint, const struct clickhouse_outcome *outcome)
{
    if (error_may_be_of_a_row(outcome->code, outcome->class_))
        batch_refused(b, endpoint, outcome);
    else
        batch_hold(b, outcome);
}

void batch_failed(struct batch *b, int endpoint, const struct clickhouse_outcome *outcome)
{
    if (batch_view_failed(b, outcome))
        return;
    if (outcome->of_view && outcome->class_ != CLASS_TRANSIENT) {
        batch_hold(b, outcome); /* neither the rows nor their number is what is wrong */
        return;
    }
    if (outcome->before_view && batch_is_blind(b)) {
        batch_hold(b, outcome); /* it may last, and each attempt may store the rows */
        return;
    }
    if (error_turns_away(outcome->code, outcome->class_) &&
        endpoint_refused(b->stream, endpoint, outcome->text)) {
        if (b->maybe_stored)
            batch_hold_again(b);
        return;
    }
    switch (outcome->class_) {
    case CLASS_TOO_BIG:
        if (batch_too_big_again(b))
            batch_retry(b, outcome);
        else if (!batch_too_big(b, outcome))
            batch_hold(b, outcome);
        break;
    case CLASS_DATA:
        batch_refused(b, endpoint, outcome);
        break;
    case CLASS_UPLOAD:
        if (++b->upload_failures < UPLOAD_ATTEMPTS_MAX)
            batch_retry(b, outcome);
        else
            batch_doubted(b, endpoint, outcome);
        break;
    case CLASS_SCHEMA:
        /* The table is looked at again; where it still fits, it is some row. */
        target_forget(b->stream, (size_t)endpoint);
        if (b->schema_failures++ == 0)
            batch_retry(b, outcome);
        else
            batch_doubted(b, endpoint, outcome);
        break;
    case CLASS_UNKNOWN:
        if (++b->unknown_failures < UNKNOWN_ATTEMPTS_MAX)
            batch_retry(b, outcome);
        else
            batch_doubted(b, endpoint, outcome);
        break;
    case CLASS_TRANSIENT:
        batch_retry(b, outcome);
        break;
    case CLASS_ENVIRONMENT:
        /* Where another endpoint may take the rows instead, this one is given time. */
        if (error_is_no_table(outcome->code) && clickhouse_endpoints(b->stream->p->clickhouse) == 1)
            target_forget(b->stream, (size_t)endpoint);
        batch_hold(b, outcome);
        break;
    case CLASS_NONE:
    case CLASS_COUNT:
        batch_hold(b, outcome);
        break;
    }
}
