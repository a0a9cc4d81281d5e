/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ClickHouse refused a batch for its data: which rows are bad? They are found by trial inserts into
 * a clone of the table with the engine Null, which checks nearly everything a row can be refused for
 * and stores nothing: no parts, no seals. What is tried is up to search.c; some trials fly at once.
 *
 * Then, in this order: the bad rows are committed to the dead letters (bury.c); in one commit the old seal
 * goes, the bad rows are acknowledged and the good ones are sealed anew, and go in as one batch.
 * A crash anywhere leaves the old seal, or the new ones: the dead letters are idempotent.
 *
 * Where the clone can't be made, or takes what the table refuses, halves are inserted for real
 * (halve.c). More bad rows than bad_ratio means that the table changed, not the data: then nothing
 * is put to the dead letters, the batch alone is tried again, and hunted through again ever less
 * often. So it is where the answer need not be about a row (its class is not data) and the trials
 * don't refuse some rows and take others: no row is buried on suspicion.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/hunt_int.h"

#define BAD_ROWS_FREE 5 /* bad_ratio says nothing about so few */
/* A batch held for bad_ratio is hunted through no sooner ... */
#define HUNT_AGAIN_FIRST_MS 10000
#define HUNT_AGAIN_MAX_MS   600000 /* ... and each time after twice as long */

void hunt_free(struct hunt *h)
{
    for (unsigned i = 0; i < SEARCH_SLOTS; i++) {
        feed_close(h->trials[i].feed);
        free(h->trials[i].parts);
    }
    search_free(h->search);
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

void hunt_drop_table(struct hunt *h)
{
    char sql[1024];

    if (!h->has_table || h->stream->p->closing)
        return;
    snprintf(sql, sizeof(sql), "DROP TABLE IF EXISTS %s", h->table);
    (void)clickhouse_query(h->stream->p->clickhouse, (size_t)h->endpoint, sql, 4096, dropped, NULL,
                           NULL);
}

void hunt_give_up(struct hunt *h, uint64_t delay_ms)
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

static bool hunt_too_many(const struct hunt *h, size_t found)
{
    const struct stream *s = h->stream;
    double bad = s->window_bad + (double)found;
    double rows = s->window_rows + (double)h->batch->rows;

    if (batch_accepts_bad(h->batch))
        return false;
    if (h->search && search_hopeless(h->search, s->options->bad_ratio))
        return true;
    return bad > BAD_ROWS_FREE && bad > s->options->bad_ratio * rows;
}

uint64_t hunt_wait(struct batch *b)
{
    b->hunt_wait_ms = b->hunt_wait_ms ? 2 * b->hunt_wait_ms : HUNT_AGAIN_FIRST_MS;
    if (b->hunt_wait_ms > HUNT_AGAIN_MAX_MS)
        b->hunt_wait_ms = HUNT_AGAIN_MAX_MS;
    return b->hunt_wait_ms;
}

static void hunt_hold(struct hunt *h, bool too_many)
{
    struct batch *b = h->batch;

    hunt_drop_table(h);
    b->busy = false;
    (void)hunt_wait(b);
    b->hunt_after_ms = clock_monotonic_ms() + b->hunt_wait_ms;
    target_ask(batch_schema(b)->target);
    if (too_many)
        batch_hold_for(
            b,
            "more than bad_ratio (%.3g) of its rows are refused (code %d: %s); the table may "
            "have changed: nothing was put to the dead letters; mend it, or let them go "
            "with spoolctl resume --accept-bad",
            h->stream->options->bad_ratio, h->code, h->reason);
    else
        batch_hold_for(b,
                       "ClickHouse refused it (%s, code %d): %s: no single row was found to be the "
                       "cause; mend it, or say in error_classes what the code means",
                       error_class_name(h->class_), h->code, h->reason);
    hunt_free(h);
    stream_advance(b->stream);
}

/* --- what was found --------------------------------------------------------------------------- */

/* The trials can't tell: the table itself must. A row that was refused among others goes alone then,
   and what comes is the answer to it. */
static void hunt_for_real(struct hunt *h)
{
    struct batch *b = h->batch;
    struct stream *s = h->stream;
    char reason[SEARCH_REASON_SIZE];

    if (b->rows == 1) {
        hunt_give_up(h, 0);
        return;
    }
    if (h->doubtful && !batch_accepts_bad(b)) {
        hunt_hold(h, false);
        return;
    }
    snprintf(reason, sizeof(reason), "%s", h->reason);
    hunt_drop_table(h);
    b->busy = false;
    hunt_free(h);
    halve_for_real(b, reason);
    stream_advance(s);
}

/* No clone can be made, filled or taken away: what is left of an older one is not the table as it is. */
static void hunt_without_table(struct hunt *h, const char *error)
{
    struct stream *s = h->stream;

    if (!s->no_trial_table)
        log_event(
            LOG_WARN, "hunt.no_trial_table", "stream", s->options->name, "error", error, "action",
            "bad rows are found by inserting halves; the right to create, drop and fill tables "
            "makes it cheaper",
            NULL);
    s->no_trial_table = true;
}

/* Everything was tried, or the only row was. */
static void hunt_found(struct hunt *h)
{
    if (h->search) {
        h->bad = search_bad(h->search, &h->bad_count);
    } else {
        h->only = (struct bad_row){0, h->code, h->reason};
        h->bad = &h->only;
        h->bad_count = 1;
    }
    FAILPOINT(FP_HUNT_FOUND);
    if (!h->bad_count)
        hunt_for_real(h); /* the clone takes it all */
    else if (hunt_too_many(h, h->bad_count))
        hunt_hold(h, true);
    else if (h->doubtful && h->bad_count == h->batch->rows && !batch_accepts_bad(h->batch))
        hunt_hold(h, false);
    else
        hunt_bury(h);
}

/* --- trials --------------------------------------------------------------------------------- */

static void hunt_advance(struct hunt *h);

static void trial_end(struct trial *t)
{
    feed_close(t->feed);
    t->feed = NULL;
    free(t->parts);
    t->parts = NULL;
    t->running = false;
}

/* The trial told nothing: all of it later. */
static void trial_failed(struct trial *t, uint64_t retry_ms)
{
    struct hunt *h = t->hunt;

    search_unanswered(h->search, t->slot);
    trial_end(t);
    if (h->end == HUNT_GOES_ON) {
        h->end = HUNT_GIVES_UP;
        h->retry_ms = retry_ms;
    }
    hunt_advance(h);
}

/* "... violated at row 17." counts the rows of the insert from 1; 0 where none is named. */
static uint64_t named_row(const char *text)
{
    const char *at = strstr(text, " at row ");
    return at ? strtoull(at + 8, NULL, 10) : 0;
}

static void trial_answered(void *arg, const struct clickhouse_outcome *outcome)
{
    struct trial *t = arg;
    struct hunt *h = t->hunt;
    bool refused = outcome->class_ != CLASS_NONE;

    t->insert = NULL;
    if (error_is_of_rights(outcome->code) && outcome->class_ == CLASS_ENVIRONMENT) {
        hunt_without_table(h, outcome->text);
        h->end = HUNT_FOR_REAL;
        trial_failed(t, 0);
        return;
    }
    if (h->stream->p->closing || (refused && outcome->class_ != CLASS_DATA &&
                                  outcome->class_ != CLASS_SCHEMA && outcome->code != h->code)) {
        h->stream->trials_alone = true; /* perhaps the server allows no more at once */
        trial_failed(t, backoff_next_ms(&h->batch->backoff));
        return;
    }
    if (refused && outcome->class_ != CLASS_DATA)
        h->doubtful = true; /* it may be of the table: all rows refused are none to be buried */
    if (search_answer(h->search, t->slot, refused, refused ? named_row(outcome->text) : 0,
                      outcome->code, outcome->text) != SPOOL_OK) {
        pipeline_fatal(h->stream->p, "out of memory while looking for bad rows");
        return;
    }
    FAILPOINT(FP_HUNT_TRIAL);
    trial_end(t);
    if (h->end == HUNT_GOES_ON && hunt_too_many(h, search_bad_count(h->search)))
        h->end = HUNT_HOLDS;
    hunt_advance(h);
}

static size_t trial_body(void *arg, char *dst, size_t n)
{
    struct trial *t = arg;

    return feed_read(t->feed, dst, n);
}

static void trial_checked(void *arg, uint64_t bytes, const struct spool_error *error)
{
    struct trial *t = arg;
    struct hunt *h = t->hunt;
    struct batch *b = h->batch;
    char query_id[400];
    struct spool_error failure;
    struct insert_spec spec = {
        .database = batch_schema(b)->target->database,
        .column_list = batch_schema(b)->column_list,
        .native = batch_schema(b)->schema->format != FORMAT_JSON,
        .settings = b->settings,
        .token = query_id,
        .query_id = query_id,
        .method = feed_method(t->feed),
        .frames_bytes = bytes,
        .read_body = trial_body,
        .arg = t,
        .done = trial_answered,
    };

    if (error || h->stream->p->closing || h->end != HUNT_GOES_ON) {
        trial_failed(t, 10000); /* the batch's own check tells what is damaged */
        return;
    }
    snprintf(query_id, sizeof(query_id), "%s-trial-%u-%llx", b->token, t->slot,
             (unsigned long long)clock_monotonic_ns());
    spec.table = h->table + strlen(h->table) + 1; /* the bare name stands behind */
    if (clickhouse_insert(h->stream->p->clickhouse, (size_t)h->endpoint, &spec, &t->insert,
                          &failure) != SPOOL_OK) {
        trial_failed(t, 1000);
        return;
    }
    feed_attach(t->feed, &t->insert);
}

/* Tries what there is to try; once nothing is left and no trial runs, goes on with what was found. */
static void hunt_advance(struct hunt *h)
{
    struct batch *b = h->batch;
    struct row_span span;

    for (unsigned i = 0; i < h->trial_count && h->end == HUNT_GOES_ON; i++) {
        struct trial *t = &h->trials[i];
        if (t->running || !search_next(h->search, i, &span))
            continue;
        t->running = true;
        if (batch_parts(b, &span, 1, &t->parts, &t->part_count) != SPOOL_OK ||
            feed_open(b, t->parts, t->part_count, trial_checked, t, &t->feed) != SPOOL_OK) {
            pipeline_fatal(h->stream->p, "out of memory while looking for bad rows");
            return;
        }
    }
    if (search_busy(h->search))
        return;
    if (h->end == HUNT_GIVES_UP)
        hunt_give_up(h, h->retry_ms);
    else if (h->end == HUNT_HOLDS)
        hunt_hold(h, true);
    else if (h->end == HUNT_FOR_REAL)
        hunt_for_real(h);
    else
        hunt_found(h);
}

static int hunt_search(struct hunt *h)
{
    struct batch *b = h->batch;
    uint32_t *rows = calloc(b->part_count, sizeof(*rows));

    h->trial_count = h->stream->trials_alone ? 1 : SEARCH_SLOTS;
    for (size_t i = 0; rows && i < b->part_count; i++)
        rows[i] = b->parts[i].rows;
    if (rows)
        h->search = search_create(rows, b->part_count, h->trial_count, clock_monotonic_ns());
    free(rows);
    for (unsigned i = 0; i < SEARCH_SLOTS; i++) {
        h->trials[i].hunt = h;
        h->trials[i].slot = i;
    }
    return h->search ? SPOOL_OK : SPOOL_E_NOMEM;
}

static void table_made(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                       size_t size)
{
    struct hunt *h = arg;
    struct batch *b = h->batch;

    (void)text;
    (void)size;
    if (h->stream->p->closing || outcome->class_ == CLASS_TRANSIENT) {
        hunt_give_up(h, backoff_next_ms(&b->backoff));
        return;
    }
    if (outcome->class_ != CLASS_NONE) {
        hunt_without_table(h, outcome->text);
        hunt_for_real(h);
        return;
    }
    h->has_table = true;
    FAILPOINT(FP_HUNT_TABLE_MADE);
    if (hunt_search(h) != SPOOL_OK)
        pipeline_fatal(h->stream->p, "out of memory while looking for bad rows");
    else
        hunt_advance(h);
}

static void old_table_gone(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                           size_t size)
{
    struct hunt *h = arg;
    char sql[1024];
    struct spool_error error;

    (void)text;
    (void)size;
    if (!h->stream->p->closing && error_is_of_rights(outcome->code)) {
        hunt_without_table(h, outcome->text);
        hunt_for_real(h);
        return;
    }
    snprintf(sql, sizeof(sql), "CREATE TABLE IF NOT EXISTS %s AS %s ENGINE = Null", h->table,
             batch_schema(h->batch)->target->destination);
    if (h->stream->p->closing || clickhouse_query(h->stream->p->clickhouse, (size_t)h->endpoint,
                                                  sql, 4096, table_made, h, &error) != SPOOL_OK)
        hunt_give_up(h, 1000);
}

static void hunt_name_table(struct hunt *h)
{
    struct target *t = batch_schema(h->batch)->target;
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

void hunt_start(struct batch *b, int endpoint, const struct clickhouse_outcome *outcome, bool alone)
{
    struct stream *s = b->stream;
    struct hunt *h;
    char sql[1024];
    struct spool_error error;

    h = calloc(1, sizeof(*h));
    if (!h) {
        pipeline_fatal(s->p, "out of memory while looking for bad rows");
        return;
    }
    h->batch = b;
    h->stream = s;
    h->endpoint = endpoint;
    h->code = outcome->code;
    h->class_ = outcome->class_;
    h->doubtful = outcome->class_ != CLASS_DATA;
    h->started_ms = clock_monotonic_ms();
    snprintf(h->reason, sizeof(h->reason), "%.*s", SEARCH_REASON_SIZE - 1, outcome->text);
    hunt_name_table(h);
    b->busy = true;
    b->accepts_bad = batch_accepts_bad(b); /* and what comes of it, whatever goes in meanwhile */
    if (alone) {
        assert(b->rows == 1);
        hunt_found(h);
        return;
    }
    if (s->no_trial_table || b->halved) { /* the trials told nothing of what it came from */
        hunt_for_real(h);
        return;
    }
    snprintf(sql, sizeof(sql), "DROP TABLE IF EXISTS %s", h->table);
    if (clickhouse_query(s->p->clickhouse, (size_t)endpoint, sql, 4096, old_table_gone, h,
                         &error) != SPOOL_OK)
        hunt_give_up(h, 1000);
}
