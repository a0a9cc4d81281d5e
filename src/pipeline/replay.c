/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replay: dead letters become rows again, each exactly once, whatever dies in between.
 *
 * Each stream has one origin for it, replay/<stream>, whose offsets are numbers given in order. A
 * chunk of letters that fit now goes through four commits:
 *
 *   meta     a note: the first number, and the letters that get it and the ones after it
 *   segment  their rows, under these numbers; in the same commit `high` of the origin rises
 *   dead     the letters are removed
 *   meta     the note is deleted (or the next chunk's written over it)
 *
 * After a crash the note tells which letters, and `high` tells which of their rows are in the
 * segments: the letters up to it are removed, the others stand as if nothing had been. So `high` is
 * the only mark, and it is as durable as the rows are. Letters that do not fit are changed before
 * the note is written (one attempt more), and are never in it.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/replay_int.h"

#define NOTE_VERSION 1
#define NOTE_MAX     (1 * MIB)

enum replay_state {
    REPLAY_OPENING,  /* the origin and its last number are looked up */
    REPLAY_SETTLING, /* the table is described anew, blocks of letters that stand are made durable */
    REPLAY_READING,  /* a chunk is decoded */
    REPLAY_NOTING,
    REPLAY_APPENDING,
    REPLAY_REMOVING,
    REPLAY_ENDING, /* the note is deleted */
};

struct replay {
    struct stream *stream;
    enum replay_state state;
    struct dead_filter filter;
    char *origin_text, *reason_text; /* what the filter points to */
    uint64_t barrier;                /* blocks that must be durable before the first chunk */
    bool noted;                      /* a note stands */
    struct replay_chunk chunk;
    size_t appended;      /* blocks of the chunk */
    uint64_t retry_at_ms; /* the removal found no room; 0: it did */
    struct job job;
    uint32_t origin_id, epoch;
    int status;
    struct spool_error error;
    struct replay_result result;
    void (*done)(void *arg, const struct replay_result *result);
    void *arg;
};

static void replay_next(struct replay *r);

static void note_key(char key[64], uint32_t stream)
{
    snprintf(key, 64, "replay/%u", stream);
}

/* --- the end -------------------------------------------------------------------------------- */

static void replay_tell(struct replay *r)
{
    void (*done)(void *arg, const struct replay_result *result) = r->done;

    r->done = NULL;
    if (done)
        done(r->arg, &r->result);
}

static void replay_dispose(struct replay *r)
{
    replay_chunk_reset(&r->chunk);
    stream_schema_unref(r->chunk.schema);
    free(r->origin_text);
    free(r->reason_text);
    free(r);
}

static void replay_finish(void *arg)
{
    struct replay *r = arg;
    struct stream *s = r->stream;

    s->replay = NULL;
    log_event(r->result.text[0] ? LOG_WARN : LOG_INFO, "dead.replayed", "stream", s->options->name,
              "replayed", log_u64(r->result.replayed), "refused", log_u64(r->result.refused),
              "unsettled", log_u64(r->result.unsettled), "cut", log_u64(r->result.cut), "stopped",
              r->result.text, NULL);
    replay_tell(r);
    replay_dispose(r);
    stream_advance(s);
}

/* Nothing of the chunk is under way any more. */
static void replay_end(struct replay *r)
{
    char key[64];
    struct spool_change change = {.kind = SPOOL_CHANGE_DELETE, .key = key};

    r->state = REPLAY_ENDING;
    if (!r->noted) {
        replay_finish(r);
        return;
    }
    note_key(key, r->stream->id);
    (void)meta_change(r->stream->p, &change, replay_finish, r, r->stream);
}

static void replay_stop(struct replay *r, const char *text)
{
    snprintf(r->result.text, sizeof(r->result.text), "%s", text);
    replay_end(r);
}

static void replay_failed(struct replay *r, int status, const struct spool_error *error)
{
    const char *text = error->text[0] ? error->text : spool_strerror(status);

    if (status == SPOOL_E_FATAL)
        pipeline_fatal(r->stream->p, "replay of %s: %s", r->stream->options->name, text);
    else
        replay_stop(r, text);
}

void replay_free(struct stream *s)
{
    struct replay *r = s->replay;

    if (!r)
        return;
    s->replay = NULL;
    if (r->done)
        snprintf(r->result.text, sizeof(r->result.text), "spoold is stopping");
    replay_tell(r);
    replay_dispose(r);
}

void replay_abandon(struct stream *s)
{
    struct replay *r = s->replay;

    if (r && r->done) {
        snprintf(r->result.text, sizeof(r->result.text), "spoold is stopping");
        replay_tell(r);
    }
}

/* --- letters out ---------------------------------------------------------------------------- */

static void remove_work(struct job *job)
{
    struct replay *r = (struct replay *)((char *)job - offsetof(struct replay, job));
    struct replay_chunk *c = &r->chunk;
    struct spool *spool = job->pipeline->spool;
    const char *name = r->stream->options->name;
    struct spool_dead_change *changes = calloc(c->fitting_count, sizeof(*changes));

    r->status = changes ? SPOOL_OK : SPOOL_E_NOMEM;
    for (size_t i = 0; changes && i < c->fitting_count; i++)
        changes[i] = (struct spool_dead_change){.kind = SPOOL_DEAD_REMOVE, .place = c->fitting[i]};
    if (r->status == SPOOL_OK)
        r->status = spool_dead_change(spool, name, changes, c->fitting_count, NULL, &r->error);
    if (r->status == SPOOL_OK)
        r->status = spool_dead_count(spool, name, &c->letters, &c->letter_bytes, &r->error);
    free(changes);
}

static void remove_done(struct job *job)
{
    struct replay *r = (struct replay *)((char *)job - offsetof(struct replay, job));
    struct stream *s = r->stream;

    if (s->p->closing)
        return;
    if (r->status == SPOOL_E_FULL) {
        r->retry_at_ms = clock_monotonic_ms() + INTAKE_RETRY_MS;
        stream_advance(s);
        return;
    }
    if (r->status != SPOOL_OK) { /* the note stands: the next start removes them */
        pipeline_fatal(s->p, "replay of %s: its letters can't be removed: %s", s->options->name,
                       r->error.text[0] ? r->error.text : spool_strerror(r->status));
        return;
    }
    FAILPOINT(FP_REPLAY_REMOVED);
    r->result.replayed += r->chunk.fitting_count;
    metrics_add(s->p->metrics, METRIC_REPLAYED, (double)r->chunk.fitting_count, s->options->name);
    dead_counted(s, r->chunk.letters, r->chunk.letter_bytes, 0);
    replay_next(r);
}

static void remove_start(struct replay *r)
{
    struct pipeline *p = r->stream->p;
    struct lane *lane = &p->dead_lane;

    r->state = REPLAY_REMOVING;
    r->retry_at_ms = 0;
    r->job.work = remove_work;
    r->job.done = remove_done;
    if (job_start(p, &r->job, &lane, 1) != SPOOL_OK)
        pipeline_fatal(p, "out of memory while replaying dead letters");
}

void replay_appended(struct stream *s, size_t blocks)
{
    struct replay *r = s->replay;

    if (!r || !blocks)
        return;
    r->appended += blocks;
    if (r->appended < r->chunk.blocks)
        return;
    FAILPOINT(FP_REPLAY_APPENDED);
    remove_start(r);
}

bool replay_is_origin(const struct origin *o)
{
    return o->name && strncmp(o->name, REPLAY_ORIGIN_PREFIX, strlen(REPLAY_ORIGIN_PREFIX)) == 0;
}

uint64_t replay_deadline_ms(const struct stream *s)
{
    return s->replay ? s->replay->retry_at_ms : 0;
}

/* --- rows in -------------------------------------------------------------------------------- */

static void replay_noted(void *arg)
{
    struct replay *r = arg;
    struct pending_block *first = r->chunk.first;
    uint64_t now = clock_monotonic_ms();

    if (r->stream->p->closing)
        return;
    FAILPOINT(FP_REPLAY_NOTED);
    r->noted = true;
    r->state = REPLAY_APPENDING;
    r->appended = 0;
    for (struct pending_block *pb = first; pb; pb = pb->next) {
        stream_schema_ref(pb->schema);
        pb->arrived_ms = now;
    }
    r->chunk.first = r->chunk.last = NULL;
    append_queue(r->stream, first);
    stream_advance(r->stream);
}

/* u8 version, u32 origin of the replay, i64 first number, u32 count, per letter u32 origin and i64
   offset. */
static int note_put(const struct replay_chunk *c, struct buf *out)
{
    int64_t first = c->number - (int64_t)c->fitting_count + 1;
    int status = buf_put_u8(out, NOTE_VERSION);

    if (status == SPOOL_OK)
        status = buf_put_u32le(out, c->origin->id);
    if (status == SPOOL_OK)
        status = buf_put_u64le(out, (uint64_t)first);
    if (status == SPOOL_OK)
        status = buf_put_u32le(out, (uint32_t)c->fitting_count);
    for (size_t i = 0; i < c->fitting_count && status == SPOOL_OK; i++) {
        status = buf_put_u32le(out, c->fitting[i].origin);
        if (status == SPOOL_OK)
            status = buf_put_u64le(out, (uint64_t)c->fitting[i].offset);
    }
    return status;
}

static void replay_note(struct replay *r)
{
    char key[64];
    struct spool_change change = {.kind = SPOOL_CHANGE_PUT, .key = key};
    struct buf note;

    buf_init(&note, NOTE_MAX);
    if (note_put(&r->chunk, &note) != SPOOL_OK) {
        pipeline_fatal(r->stream->p, "out of memory while replaying dead letters");
    } else {
        note_key(key, r->stream->id);
        change.value = note.data;
        change.value_size = note.len;
        r->state = REPLAY_NOTING;
        (void)meta_change(r->stream->p, &change, replay_noted, r, r->stream);
    }
    buf_free(&note);
}

static void chunk_done(struct job *job)
{
    struct replay *r = (struct replay *)((char *)job - offsetof(struct replay, chunk.job));
    struct replay_chunk *c = &r->chunk;
    uint64_t had_bytes = r->stream->dead_bytes;

    if (r->stream->p->closing)
        return;
    r->result.cut += c->cut;
    r->result.unsettled += c->unsettled;
    if (c->status != SPOOL_OK) {
        replay_failed(r, c->status, &c->error);
        return;
    }
    r->result.refused += c->refusal_count;
    dead_counted(r->stream, c->letters, c->letter_bytes,
                 c->letter_bytes > had_bytes ? c->letter_bytes - had_bytes : 0);
    if (c->fitting_count)
        replay_note(r);
    else
        replay_next(r);
}

/* --- which letters -------------------------------------------------------------------------- */

int replay_chunk_collect(struct replay_chunk *c)
{
    const struct stream *s = c->stream;
    size_t n = 0;

    c->all_loaded = segments_all_loaded(s);
    for (const struct origin *o = s->origins; o; o = o->next) {
        for (const struct block *b = o->first; b; b = b->next_in_origin)
            n += b->state != BLOCK_ACKED;
        for (const struct hole *h = o->holes; h; h = h->next)
            n++;
        n++;
    }
    c->unacked = calloc(n + 1, sizeof(*c->unacked));
    if (!c->unacked)
        return SPOOL_E_NOMEM;
    for (const struct origin *o = s->origins; o; o = o->next) {
        for (const struct block *b = o->first; b; b = b->next_in_origin)
            if (b->state != BLOCK_ACKED)
                c->unacked[c->unacked_count++] =
                    (struct replay_unacked){o->id, b->ref.first_offset, b->ref.last_offset, false};
        for (const struct hole *h = o->holes; h; h = h->next)
            if (h->stored <= h->last)
                c->unacked[c->unacked_count++] =
                    (struct replay_unacked){o->id, h->stored, h->last, true};
        if (o->partition && !o->log_over) /* with what an epoch before may have letters of */
            c->unacked[c->unacked_count++] = (struct replay_unacked){
                o->id, (origin_in_memory(o) ? o->high : o->taken) + 1, INT64_MAX, true};
    }
    return SPOOL_OK;
}

static void chunk_start(struct replay *r)
{
    struct stream *s = r->stream;
    struct replay_chunk *c = &r->chunk;
    struct lane *lanes[3] = {&s->p->dead_lane, &s->p->meta_lane, &s->lane};

    replay_chunk_reset(c);
    r->state = REPLAY_READING;
    stream_schema_unref(c->schema);
    c->schema = stream_schema_ref(s->schema);
    c->job.work = replay_chunk_work;
    c->job.done = chunk_done;
    if (replay_chunk_collect(c) != SPOOL_OK || job_start(s->p, &c->job, lanes, 3) != SPOOL_OK)
        pipeline_fatal(s->p, "out of memory while replaying dead letters");
}

/* Between two chunks. */
static void replay_next(struct replay *r)
{
    struct stream *s = r->stream;

    if (r->chunk.at_end)
        replay_end(r);
    else if (s->p->draining)
        replay_stop(r, "spoold is stopping");
    else if (s->full)
        replay_stop(r, "the spool has reached its bound: replay again when there is room");
    else
        chunk_start(r);
}

/* Whether an answer about the table is to come: not while no endpoint is up. */
static bool table_is_asked(const struct stream *s)
{
    const struct clickhouse *ch = s->p->clickhouse;
    struct endpoint_status status;

    if (clickhouse_pick(ch) >= 0)
        return s->targets->state == TARGET_ASKING || !s->targets->retry_at_ms;
    for (size_t i = 0; i < clickhouse_endpoints(ch); i++) {
        clickhouse_endpoint_status(ch, i, &status);
        if (status.state == ENDPOINT_UNKNOWN)
            return true;
    }
    return false;
}

/* The table as it is now, and every block of letters that stand made durable. */
void replay_advance(struct stream *s)
{
    struct replay *r = s->replay;
    const struct target *t = s->targets;

    if (r && r->state == REPLAY_REMOVING && r->retry_at_ms &&
        r->retry_at_ms <= clock_monotonic_ms())
        remove_start(r);
    if (!r || r->state != REPLAY_SETTLING)
        return;
    if (s->p->draining) {
        replay_stop(r, "spoold is stopping");
        return;
    }
    if (s->full) {
        replay_stop(r, "the spool has reached its bound: replay again when there is room");
        return;
    }
    if (table_is_asked(s))
        return;
    if (t->state == TARGET_BAD) {
        replay_stop(r, t->reason);
        return;
    }
    if (!s->schema) {
        replay_stop(r, "the columns of its table are not known yet");
        return;
    }
    if (s->appended_blocks < r->barrier)
        return;
    replay_next(r);
}

/* --- the beginning -------------------------------------------------------------------------- */

static void open_work(struct job *job)
{
    struct replay *r = (struct replay *)((char *)job - offsetof(struct replay, job));
    char name[SPOOL_STREAM_NAME_MAX + 16];
    struct replay_recovered recovered;

    snprintf(name, sizeof(name), REPLAY_ORIGIN_PREFIX "%s", r->stream->options->name);
    r->status = replay_recover(r->stream, &recovered, &r->error);
    if (r->status != SPOOL_OK)
        return;
    r->status = spool_origin(job->pipeline->spool, name, 0, &r->origin_id, &r->epoch, &r->error);
    if (r->status == SPOOL_OK)
        r->status = spool_stream_high(r->stream->spool, r->origin_id, &r->chunk.number);
    if (r->status == SPOOL_E_NOT_FOUND) {
        r->chunk.number = 0;
        r->status = SPOOL_OK;
    }
}

static void open_done(struct job *job)
{
    struct replay *r = (struct replay *)((char *)job - offsetof(struct replay, job));
    struct stream *s = r->stream;
    struct origin *o;

    if (s->p->closing)
        return;
    o = r->status == SPOOL_OK ? origin_get(s, r->origin_id) : NULL;
    if (o && !o->name) {
        char name[SPOOL_STREAM_NAME_MAX + 16];
        snprintf(name, sizeof(name), REPLAY_ORIGIN_PREFIX "%s", s->options->name);
        o->name = strdup(name);
        o->epoch = r->epoch;
    }
    if (!o || !o->name) {
        replay_failed(r, r->status == SPOOL_OK ? SPOOL_E_NOMEM : r->status, &r->error);
        return;
    }
    s->replayed = true;
    r->chunk.origin = o;
    r->state = REPLAY_SETTLING;
    stream_advance(s);
}

static int filter_copy(struct replay *r, const struct dead_filter *filter)
{
    r->filter = *filter;
    r->origin_text = filter->origin ? strdup(filter->origin) : NULL;
    r->reason_text = filter->reason ? strdup(filter->reason) : NULL;
    r->filter.origin = r->origin_text;
    r->filter.reason = r->reason_text;
    return (filter->origin && !r->origin_text) || (filter->reason && !r->reason_text)
               ? SPOOL_E_NOMEM
               : SPOOL_OK;
}

int pipeline_dead_replay(struct pipeline *p, const char *name, const struct dead_filter *filter,
                         void (*done)(void *arg, const struct replay_result *result), void *arg)
{
    struct stream *s = pipeline_stream(p, name);
    struct lane *lanes[3];
    struct replay *r;

    if (!s)
        return SPOOL_E_NOT_FOUND;
    if (p->closing || p->draining || p->fatal)
        return SPOOL_E_CANCELLED;
    if (s->replay)
        return SPOOL_E_EXISTS;
    r = calloc(1, sizeof(*r));
    if (!r)
        return SPOOL_E_NOMEM;
    r->stream = s;
    r->done = done;
    r->arg = arg;
    r->chunk.stream = s;
    r->chunk.filter = &r->filter;
    r->chunk.next = (struct spool_dead_place){0, INT64_MIN};
    r->barrier = s->queued_blocks;
    r->job.work = open_work;
    r->job.done = open_done;
    lanes[0] = &s->lane;
    lanes[1] = &p->meta_lane;
    lanes[2] = &p->dead_lane;
    if (filter_copy(r, filter) != SPOOL_OK || job_start(p, &r->job, lanes, 3) != SPOOL_OK) {
        replay_dispose(r);
        return SPOOL_E_NOMEM;
    }
    s->replay = r;
    s->flush_before_ms = clock_monotonic_ms();
    target_ask(s->targets);
    stream_advance(s);
    return SPOOL_OK;
}

/* --- after a crash -------------------------------------------------------------------------- */

int replay_was(struct stream *s, bool *was, struct spool_error *error)
{
    char wanted[SPOOL_STREAM_NAME_MAX + 16];
    struct spool_error why = {0};
    int status = SPOOL_OK;

    *was = false;
    snprintf(wanted, sizeof(wanted), REPLAY_ORIGIN_PREFIX "%s", s->options->name);
    for (uint32_t id = 1; !*was && status == SPOOL_OK; id++) {
        char *name = NULL;
        status = spool_origin_name(s->p->spool, id, &name, NULL, &why);
        *was = name && strcmp(name, wanted) == 0;
        free(name);
    }
    if (status == SPOOL_E_NOT_FOUND) /* these were all */
        return SPOOL_OK;
    if (status != SPOOL_OK)
        *error = why;
    return status;
}

/* The letters of the note whose rows are in the segments, as removals. */
static int note_get(struct stream *s, const void *value, size_t size,
                    struct spool_dead_change **out, size_t *count)
{
    struct cursor c = cursor_over(value, size);
    struct spool_dead_change *changes = NULL;
    uint8_t version = 0;
    uint32_t origin = 0, n = 0;
    uint64_t first = 0, offset = 0;
    int64_t high = INT64_MIN;
    int status = cursor_u8(&c, &version);

    *count = 0;
    *out = NULL;
    if (status == SPOOL_OK && version != NOTE_VERSION)
        return SPOOL_E_NEWER;
    if (cursor_u32le(&c, &origin) || cursor_u64le(&c, &first) || cursor_u32le(&c, &n) ||
        cursor_left(&c) != (size_t)n * 12)
        return SPOOL_E_CORRUPT;
    status = spool_stream_high(s->spool, origin, &high);
    if (status == SPOOL_E_NOT_FOUND || (status == SPOOL_OK && high < (int64_t)first))
        return SPOOL_OK;
    if (status != SPOOL_OK)
        return status;
    changes = calloc((size_t)n + 1, sizeof(*changes));
    if (!changes)
        return SPOOL_E_NOMEM;
    for (uint32_t i = 0; i < n && (int64_t)first + i <= high; i++) {
        (void)cursor_u32le(&c, &changes[i].place.origin);
        (void)cursor_u64le(&c, &offset);
        changes[i].place.offset = (int64_t)offset;
        changes[i].kind = SPOOL_DEAD_REMOVE;
        (*count)++;
    }
    *out = changes;
    return SPOOL_OK;
}

static int ignore_letter(void *arg, const struct spool_dead *letter)
{
    (void)arg;
    (void)letter;
    return 0;
}

/* They are removed too: nothing could be made of them, and their rows are in the spool. */
static size_t count_damaged(struct stream *s, const struct spool_dead_change *changes, size_t count)
{
    struct spool_error error;
    size_t n = 0;

    for (size_t i = 0; i < count; i++)
        n += spool_dead_get(s->p->spool, s->options->name, &changes[i].place, 1, ignore_letter,
                            NULL, &error) == SPOOL_E_CORRUPT;
    return n;
}

int replay_recover(struct stream *s, struct replay_recovered *out, struct spool_error *error)
{
    struct spool *spool = s->p->spool;
    struct spool_dead_change *changes = NULL;
    char key[64];
    struct spool_change forget = {.kind = SPOOL_CHANGE_DELETE, .key = key};
    void *value = NULL;
    size_t size = 0, count = 0;
    int status;

    *out = (struct replay_recovered){0};
    note_key(key, s->id);
    status = spool_note_get(spool, key, &value, &size, error);
    if (status == SPOOL_E_NOT_FOUND)
        return SPOOL_OK;
    if (status == SPOOL_OK) {
        status = note_get(s, value, size, &changes, &count);
        if (status != SPOOL_OK)
            spool_error_set(error, status, "stream %s: the note of a replay can't be read: %s",
                            s->options->name, spool_strerror(status));
    }
    if (status == SPOOL_OK) {
        out->damaged = count_damaged(s, changes, count);
        status = spool_dead_change(spool, s->options->name, changes, count, &out->removed, error);
    }
    if (status == SPOOL_OK)
        status = spool_commit(spool, &forget, 1, error);
    free(changes);
    free(value);
    return status;
}
