/* SPDX-License-Identifier: Apache-2.0 */
/*
 * on_schema_change: reencode. The table changed, and does not take the rows of a segment as they
 * are stored any more. The stored blocks stay as they are; their rows are encoded anew on the way
 * out (feed.c), under the schema that a new seal keeps. So offsets, the order of an origin's blocks
 * and what Kafka is told follow from the same blocks as ever, and draining needs no room on disk.
 *
 * A batch of such rows is sealed as it stands and never sent so. Here each of its rows is tried
 * under the stream's schema; then, in this order: rows that do not fit are committed to the dead
 * letters; in one commit the seal goes, those rows are acknowledged, and the others are sealed anew
 * together with the schema they are sent under. A crash before that commit leaves the old seal, and
 * the same is found again (the dead letters are idempotent); a crash after it leaves the new one.
 *
 * A batch that may be in the table from an earlier attempt is asked about first (ask.c). Where the
 * table can't tell, its rows go as possible duplicates, counted like any other unknown outcome: the
 * bytes that its token stands for can't be sent again.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "codec/reencode.h"
#include "pipeline/pipeline_int.h"

#define LETTERS_BYTES_MAX (8 * MIB) /* of records, before they are committed */
#define LETTERS_MAX       4096
#define RETRY_MS          5000

/* One refused row; its texts lie in trial->texts until they are committed. */
struct refused {
    struct spool_dead letter;
    size_t record_at, reason_at, column_at;
};

struct trial {
    struct job job;
    struct stream *stream;
    struct batch *batch;
    struct stream_schema *from, *to; /* counted */
    struct part *parts;
    size_t part_count;
    bool *damaged; /* per part: it can't be read; with SPOOL_E_CORRUPT */
    uint64_t segment;
    bool bury; /* refused rows go to the dead letters; else the first one ends it */
    struct reencoder *reencoder;
    struct refused *refused; /* LETTERS_MAX, not yet committed */
    size_t refused_count;
    struct buf texts;
    /* results */
    struct row_span *bad, *good; /* spans of the batch, ascending */
    size_t bad_count, good_count, bad_cap, good_cap;
    uint64_t rows, bad_rows, raw_bytes;
    uint64_t bad_by_code[REFUSAL_SERVER + 1];
    struct dead_stored stored; /* those that became letters */
    char first[512];           /* the first refusal, in words */
    int status;
    struct spool_error error;
};

static void trial_free(struct trial *t)
{
    reencoder_free(t->reencoder);
    stream_schema_unref(t->from);
    stream_schema_unref(t->to);
    buf_free(&t->texts);
    free(t->parts);
    free(t->damaged);
    free(t->refused);
    free(t->bad);
    free(t->good);
    free(t);
}

/* --- in the pool ---------------------------------------------------------------------------- */

/* One more row of the batch at the end of the list. */
static int span_add(struct row_span **spans, size_t *count, size_t *cap, uint64_t row)
{
    if (*count && (*spans)[*count - 1].first + (*spans)[*count - 1].count == row) {
        (*spans)[*count - 1].count++;
        return SPOOL_OK;
    }
    if (*count == *cap) {
        size_t grown_cap = *cap ? *cap * 2 : 16;
        struct row_span *grown = realloc(*spans, grown_cap * sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        *spans = grown;
        *cap = grown_cap;
    }
    (*spans)[(*count)++] = (struct row_span){row, 1};
    return SPOOL_OK;
}

static int letters_commit(struct trial *t)
{
    struct spool_dead letters[64];
    size_t added = 0, at = 0;
    int status = SPOOL_OK;

    while (at < t->refused_count && status == SPOOL_OK) {
        size_t n = 0;
        for (; n < 64 && at < t->refused_count; n++, at++) {
            const struct refused *r = &t->refused[at];
            letters[n] = r->letter;
            letters[n].record = t->texts.data + r->record_at;
            letters[n].reason = (const char *)t->texts.data + r->reason_at;
            letters[n].column = (const char *)t->texts.data + r->column_at;
        }
        status = spool_dead_put_all(t->job.pipeline->spool, letters, n,
                                    t->stream->options->dead_letters_max_bytes, &added, &t->error);
        if (status == SPOOL_OK) {
            t->stored.put += n;
            t->stored.grown_bytes += dead_disk_bytes(letters, n);
        }
    }
    t->refused_count = 0;
    buf_reset(&t->texts);
    return status;
}

/* The row is kept for the dead letters, rebuilt from its columns. */
static int letter_add(struct trial *t, const struct part *part, int64_t offset,
                      const struct refusal *why)
{
    const struct buf *record = reencoder_record(t->reencoder);
    const char *column = why->column ? why->column : "";
    struct refused *r = &t->refused[t->refused_count];
    int status;

    r->record_at = t->texts.len;
    status = buf_append(&t->texts, record->data, record->len);
    r->reason_at = t->texts.len;
    if (status == SPOOL_OK)
        status = buf_append(&t->texts, why->reason, strlen(why->reason) + 1);
    r->column_at = t->texts.len;
    if (status == SPOOL_OK)
        status = buf_append(&t->texts, column, strlen(column) + 1);
    if (status != SPOOL_OK)
        return status;
    r->letter = (struct spool_dead){
        .stream = t->stream->options->name,
        .origin = part->block->ref.origin,
        .origin_name = part->block->origin->name,
        .offset = offset,
        .code = why->code,
        .reason_name = refusal_name(why->code),
        .position = why->position,
        .flags = SPOOL_DEAD_REBUILT,
        .attempts = 1,
        .dead_ms = clock_wall_ms(),
        .received_ms = part->block->ref.first_arrival_ms,
        .timestamp_ms = -1,
        .record_size = record->len,
        .record_full_size = record->len,
    };
    t->refused_count++;
    if (t->refused_count < LETTERS_MAX && t->texts.len < LETTERS_BYTES_MAX)
        return SPOOL_OK;
    return letters_commit(t);
}

/* A refusal: to the dead letters, or the end. */
static int row_refused(struct trial *t, const struct part *part, int64_t offset,
                       const struct refusal *why)
{
    if (!t->bad_rows++)
        snprintf(t->first, sizeof(t->first), "origin %.200s, offset %lld: %.60s%s%.200s",
                 part->block->origin->name, (long long)offset, why->column ? why->column : "",
                 why->column ? ": " : "", why->reason);
    t->bad_by_code[why->code]++;
    if (!t->bury)
        return SPOOL_E_REFUSED;
    return letter_add(t, part, offset, why);
}

static int trial_row(struct trial *t, const struct part *part, uint64_t row, int64_t offset,
                     struct buf *raw)
{
    struct refusal why = {0};
    int status = reencoder_row(t->reencoder, row, offset, part->block->ref.first_arrival_ms, &why);

    if (status == SPOOL_E_LIMIT && reencoder_rows(t->reencoder)) {
        status = reencoder_finish(t->reencoder, raw);
        t->raw_bytes += raw->len;
        buf_reset(raw);
        if (status == SPOOL_OK)
            status =
                reencoder_row(t->reencoder, row, offset, part->block->ref.first_arrival_ms, &why);
    }
    if (status == SPOOL_E_LIMIT && !reencoder_record(t->reencoder)->len)
        return spool_error_set(&t->error, status,
                               "origin %.200s, offset %lld: as a record the row would be larger "
                               "than one may be",
                               part->block->origin->name, (long long)offset);
    if (status == SPOOL_E_LIMIT) {
        why.code = REFUSAL_TOO_LONG;
        snprintf(why.reason, sizeof(why.reason), "the row is larger than a block may be");
        status = SPOOL_E_REFUSED;
    }
    if (status == SPOOL_OK) {
        status = span_add(&t->good, &t->good_count, &t->good_cap, t->rows);
    } else if (status == SPOOL_E_REFUSED) {
        status = span_add(&t->bad, &t->bad_count, &t->bad_cap, t->rows);
        if (status == SPOOL_OK)
            status = row_refused(t, part, offset, &why);
    }
    t->rows++;
    return status;
}

static int trial_part(struct trial *t, struct spool_reader *reader, const struct part *part)
{
    const struct spool_block_ref *ref = &part->block->ref;
    struct origin_place place;
    struct buf raw, made;
    void *payload = NULL;
    int64_t *offsets = NULL;
    size_t size = 0;
    int status = spool_reader_block(reader, ref, &payload, &size, &offsets, &t->error);

    buf_init(&raw, LIMIT_BLOCK_BYTES * 2);
    buf_init(&made, LIMIT_BLOCK_BYTES * 2);
    origin_place(part->block->origin, &place);
    if (status == SPOOL_OK)
        status = frames_open(payload, size, &raw, &t->error);
    if (status == SPOOL_OK)
        status = reencoder_open(t->reencoder, raw.data, raw.len, &place.place, &t->error);
    for (uint32_t i = 0; i < part->rows && status == SPOOL_OK; i++) {
        uint64_t row = (uint64_t)part->row + i;
        status = trial_row(t, part, row, offsets ? offsets[row] : ref->first_offset + (int64_t)row,
                           &made);
    }
    if (status == SPOOL_OK)
        status = reencoder_finish(t->reencoder, &made);
    t->raw_bytes += made.len;
    free(payload);
    free(offsets);
    buf_free(&raw);
    buf_free(&made);
    return status;
}

static void trial_work(struct job *job)
{
    struct trial *t = (struct trial *)job;
    struct spool_reader *reader = NULL;

    t->status = spool_reader_open(t->stream->spool, t->segment, &reader, &t->error);
    if (t->status == SPOOL_OK)
        t->status = reencoder_create(t->from->schema, t->to->schema, LIMIT_BLOCK_RAW_BYTES,
                                     &t->reencoder, &t->error);
    for (size_t i = 0; i < t->part_count && t->status == SPOOL_OK; i++)
        if (t->parts[i].rows)
            t->status = trial_part(t, reader, &t->parts[i]);
    if (damage_is(t->status, &t->error)) {
        damage_find(reader, t->parts, t->part_count, t->damaged);
        t->status = SPOOL_E_CORRUPT;
    }
    spool_reader_close(reader);
    if (t->status == SPOOL_OK && t->refused_count)
        t->status = letters_commit(t);
    if (t->stored.put)
        dead_stored_count(t->stream, &t->stored);
    if (!t->error.text[0])
        spool_error_set(&t->error, t->status, "%s", spool_strerror(t->status));
}

/* --- on the loop ---------------------------------------------------------------------------- */

static void replaced(struct stream *s)
{
    (void)s;
    FAILPOINT(FP_REENCODE_SEALED);
}

static void trial_failed(struct trial *t)
{
    struct batch *b = t->batch;
    struct stream *s = t->stream;

    switch (t->status) {
    case SPOOL_E_REFUSED:
        batch_hold_for(b,
                       "%s; the table changed, and on_bad_record is \"hold\": mend it, or put such "
                       "rows to the dead letters with spoolctl resume --accept-bad",
                       t->first);
        break;
    case SPOOL_E_FATAL:
        pipeline_fatal(s->p, "dead.mdb: %s", t->error.text);
        break;
    case SPOOL_E_FULL:
        batch_hold_for(b, "dead letters can't be stored: %s: free space on the spool's file system",
                       t->error.text);
        break;
    case SPOOL_E_LIMIT:
        batch_hold_for(b,
                       "rows that don't fit the table as it is now can't become dead letters: %s",
                       t->error.text);
        break;
    case SPOOL_E_CORRUPT:
        if (batch_set_aside(b, t->damaged, NULL, 0, false) != SPOOL_OK)
            batch_retry_later(b, RETRY_MS);
        break;
    default:
        batch_hold_for(b, "its rows can't be encoded for the table as it is now: %s",
                       t->error.text);
        break;
    }
}

/* The old columns whose values nothing takes; "" where there is none. */
static void left_out(const struct schema *from, const struct schema *to, char *text, size_t size)
{
    size_t used = 0;

    text[0] = 0;
    for (size_t i = 0; i < from->count && used + 1 < size; i++) {
        int n;
        if (reencoder_takes(from, to, i))
            continue;
        n = snprintf(text + used, size - used, "%s%s", used ? ", " : "", from->columns[i].name);
        used += n < 0 ? 0 : (size_t)n;
    }
}

static void trial_counted(struct trial *t)
{
    struct stream *s = t->stream;
    char names[512];

    left_out(t->from->schema, t->to->schema, names, sizeof(names));
    log_event(t->bad_rows ? LOG_WARN : LOG_INFO, "batch.reencoded", "stream", s->options->name,
              "batch", log_u64(t->batch->id), "rows", log_u64(t->rows), "dead_letters",
              log_u64(t->bad_rows), "left_out", names, "first_refused", t->first, NULL);
    metrics_add(s->p->metrics, METRIC_ROWS_REENCODED, (double)(t->rows - t->bad_rows),
                s->options->name);
    if (!t->bad_rows)
        return;
    for (int code = 0; code <= REFUSAL_SERVER; code++)
        if (t->bad_by_code[code])
            metrics_add(s->p->metrics, METRIC_DEAD_LETTERS, (double)t->bad_by_code[code],
                        s->options->name, refusal_name(code));
}

static void trial_done(struct job *job)
{
    struct trial *t = (struct trial *)job;
    struct batch *b = t->batch;
    struct stream *s = t->stream;
    struct span_group group = {
        .spans = t->good, .count = t->good_count, .schema = t->to, .raw_bytes = t->raw_bytes};

    b->busy = false;
    if (s->p->closing) { /* the next start finds the same rows, and these letters */
        trial_free(t);
        return;
    }
    dead_stored_done(s, &t->stored);
    if (t->status != SPOOL_OK) {
        b->lettered = true;
        trial_failed(t);
    } else {
        FAILPOINT(FP_REENCODE_BURIED);
        trial_counted(t);
        if (s->probe == b)
            stream_unhold(s, HOLD_ANSWER);
        b->retry_at_ms = 0;
        b->schema_failures = 0;
        b->lettered = batch_replace(b, t->bad, t->bad_count, &group, t->good_count ? 1 : 0,
                                    replaced) != SPOOL_OK;
        if (b->lettered)
            batch_retry_later(b, RETRY_MS);
    }
    trial_free(t);
    stream_advance(s);
}

/* Whether the batch's rows are known not to be in the table; starts finding out where not. */
static bool reencode_settled(struct batch *b, int endpoint)
{
    if (!b->maybe_stored)
        return true;
    if (ask_possible(b)) {
        ask_start(b, endpoint);
        return false;
    }
    b->maybe_stored = false;
    batch_possible_duplicates(
        b, b->rows,
        "an attempt's outcome is unknown, and the table changed: the same bytes can't go again");
    return true;
}

void reencode_start(struct batch *b, int endpoint)
{
    struct stream *s = b->stream;
    struct trial *t;
    struct lane *lane = &s->p->dead_lane;
    uint64_t letters_max = s->options->dead_letters_max_bytes;

    if (!reencode_settled(b, endpoint))
        return;
    if (letters_max && s->dead_bytes >= letters_max) {
        batch_hold_for(b, "the table changed, and rows that no longer fit have no room: the dead "
                          "letters reached dead_letters.max_bytes");
        return;
    }
    t = calloc(1, sizeof(*t));
    if (t) {
        t->refused = calloc(LETTERS_MAX, sizeof(*t->refused));
        t->parts = calloc(b->part_count ? b->part_count : 1, sizeof(*t->parts));
    }
    if (!t || !t->refused || !t->parts)
        goto nomem;
    t->damaged = calloc(b->part_count + 1, sizeof(*t->damaged));
    if (!t->damaged)
        goto nomem;
    memcpy(t->parts, b->parts, b->part_count * sizeof(*t->parts));
    buf_init(&t->texts, LETTERS_BYTES_MAX + 2 * LIMIT_BLOCK_BYTES);
    t->part_count = b->part_count;
    t->stream = s;
    t->batch = b;
    t->segment = b->segment_number;
    t->from = stream_schema_ref(b->segment->schema);
    t->to = stream_schema_ref(s->schema);
    t->bury = s->options->on_bad_record != ON_BAD_HOLD || batch_accepts_bad(b);
    b->busy = true;
    t->job.work = trial_work;
    t->job.done = trial_done;
    if (job_start(s->p, &t->job, &lane, 1) == SPOOL_OK)
        return;
nomem:
    if (t)
        trial_free(t);
    pipeline_fatal(s->p, "out of memory while rows are encoded anew");
}
