/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dead letters to where else the operator wants them: a table and a topic, beside dead.mdb and never
 * in its place. Letters without the destination's flag are read in order of their key, sent, and
 * flagged when they have arrived; a kill in between sends them again, so they arrive at least once.
 * Nothing here holds a stream: a destination that fails is tried again, 1 s to 60 s apart.
 *
 * Where the answer may be about a letter (its class says so, or it is too long for the topic), fewer
 * go at once, down to the one that is refused. It is passed over, counted, and tried again after
 * SKIP_AGAIN_MS; those behind it go on.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/json_writer.h"
#include "base/log.h"
#include "codec/frame.h"
#include "pipeline/pipeline_int.h"

#define OUT_LETTERS    256
#define OUT_BYTES      (1 * MIB) /* of records, about */
#define OUT_PAUSE_MS   200       /* letters collect that long */
#define OUT_RETRY_MS   1000
#define OUT_RETRY_MAX  60000
#define OUT_SKIP       1000 /* letters passed over; with more, all wait */
#define SKIP_AGAIN_MS  600000
#define LETTER_HEADERS 6
#define THE_START      ((struct spool_dead_place){0, INT64_MIN})
#define OUT_COLUMNS                                                                                \
    "stream, origin, `offset`, code, reason, detail, `column`, position, record, `key`, headers, " \
    "attempts, timestamp, received_at, first_at, last_at"

enum out_state { OUT_IDLE, OUT_READING, OUT_SENDING, OUT_MARKING };

/* A letter on its way to a topic; points into the memory of its out. */
struct out_message {
    struct kafka_message message;
    struct record_header headers[LETTER_HEADERS];
};

struct dead_out {
    struct job job;
    struct stream *stream;
    uint32_t flag;
    const char *name; /* "table" or "topic" */
    const char *where;
    enum out_state state;
    struct spool_dead_place next; /* where the walk goes on */
    bool due;                     /* letters may stand from there on */
    bool behind;                  /* letters came since the walk began: once more from the start */
    bool counted;                 /* waiting was counted by a walk */
    uint64_t waiting;
    uint64_t retry_at_ms;
    struct backoff backoff;
    struct log_gate gate;
    size_t at_once; /* letters of a chunk, at most */
    struct spool_dead_place *skipped;
    size_t skipped_count;
    uint64_t skipped_until_ms;
    bool took_some; /* since the last letter was passed over */
    /* the chunk */
    bool unfit; /* its only letter is larger than one may be */
    bool at_end;
    struct spool_dead_change *marks;
    size_t count;
    uint64_t bytes, seen;
    struct buf body; /* of the insert, as a frame */
    size_t body_at;
    struct insert *insert;
    struct buf memory;
    struct out_message *messages;
    int status;
    struct spool_error error;
};

/* --- what a letter becomes ------------------------------------------------------------------ */

/* "2026-11-23 17:54:00.123" in UTC, or null: what every version of ClickHouse reads. */
static void put_time(struct json_writer *w, const char *name, int64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;
    char text[64], whole[40];

    if (wall_ms <= 0 || !gmtime_r(&seconds, &tm) ||
        !strftime(whole, sizeof(whole), "%Y-%m-%d %H:%M:%S", &tm)) {
        json_writer_null(w, name);
        return;
    }
    snprintf(text, sizeof(text), "%s.%03d", whole, (int)(wall_ms % 1000));
    json_writer_text(w, name, text);
}

/* Every byte as it is, UTF-8 or not. */
static void put_bytes(struct json_writer *w, const char *name, const void *data, size_t size)
{
    json_writer_raw(w, name, NULL, 0);
    if (w->status == SPOOL_OK)
        w->status = buf_put_json_bytes(w->out, data, size);
}

static void put_headers(struct json_writer *w, const struct spool_dead *letter)
{
    struct cursor c = cursor_over(letter->headers, letter->headers_size);
    struct json_writer inner;
    struct buf text;
    uint32_t n = 0;

    buf_init(&text, LIMIT_BLOCK_BYTES);
    json_writer_init(&inner, &text);
    json_writer_open(&inner, NULL, '{');
    if (letter->headers_size && cursor_u32le(&c, &n) != SPOOL_OK)
        n = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *name, *value;
        size_t name_size, value_size;
        char key[256];
        if (cursor_string(&c, &name, &name_size) != SPOOL_OK ||
            cursor_string(&c, &value, &value_size) != SPOOL_OK)
            break;
        snprintf(key, sizeof(key), "%.*s", (int)(name_size < 255 ? name_size : 255),
                 (const char *)name);
        json_writer_bytes(&inner, key, value, value_size);
    }
    json_writer_close(&inner, '}');
    if (w->status == SPOOL_OK)
        w->status = inner.status;
    put_bytes(w, "headers", text.data, text.len);
    buf_free(&text);
}

static int put_row(struct buf *out, const struct spool_dead *letter)
{
    struct json_writer w;

    json_writer_init(&w, out);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "stream", letter->stream);
    json_writer_text(&w, "origin", letter->origin_name);
    json_writer_i64(&w, "offset", letter->offset);
    json_writer_i64(&w, "code", letter->code);
    json_writer_text(&w, "reason", letter->reason_name);
    json_writer_text(&w, "detail", letter->reason);
    json_writer_text(&w, "column", letter->column);
    json_writer_u64(&w, "position", letter->position);
    put_bytes(&w, "record", letter->record, letter->record_size);
    if (letter->key_present)
        put_bytes(&w, "key", letter->key, letter->key_size);
    else
        json_writer_null(&w, "key");
    put_headers(&w, letter);
    json_writer_u64(&w, "attempts", letter->attempts);
    put_time(&w, "timestamp", letter->timestamp_ms);
    put_time(&w, "received_at", letter->received_ms);
    put_time(&w, "first_at", letter->dead_ms);
    put_time(&w, "last_at", letter->last_ms);
    json_writer_close(&w, '}');
    return w.status == SPOOL_OK ? buf_put_u8(out, '\n') : w.status;
}

/* Memory may move while it grows: pointers are kept as offsets until the walk is over. */
static const void *kept(struct dead_out *out, const void *data, size_t size, int *status)
{
    size_t at = out->memory.len;

    if (*status == SPOOL_OK)
        *status = buf_append(&out->memory, data, size);
    return (const void *)(uintptr_t)at;
}

static int put_message(struct dead_out *out, const struct spool_dead *letter)
{
    struct out_message *m = &out->messages[out->count];
    char offset[24], code[24];
    const char *const texts[LETTER_HEADERS][2] = {
        {"stream", letter->stream}, {"origin", letter->origin_name},
        {"offset", offset},         {"code", code},
        {"reason", letter->reason}, {"column", letter->column}};
    int status = SPOOL_OK;

    snprintf(offset, sizeof(offset), "%lld", (long long)letter->offset);
    snprintf(code, sizeof(code), "%d", letter->code);
    m->message = (struct kafka_message){.key_size = letter->key_size,
                                        .value_size = letter->record_size,
                                        .header_count = LETTER_HEADERS};
    m->message.value = kept(out, letter->record, letter->record_size, &status);
    m->message.key = letter->key_present ? kept(out, letter->key, letter->key_size, &status)
                                         : (const void *)UINTPTR_MAX;
    for (size_t i = 0; i < LETTER_HEADERS; i++) {
        size_t size = strlen(texts[i][1]);
        m->headers[i] = (struct record_header){.name = texts[i][0], .value_size = size};
        m->headers[i].value = kept(out, texts[i][1], size, &status);
    }
    return status;
}

static const void *moved(const struct dead_out *out, const void *offset)
{
    return out->memory.data + (uintptr_t)offset;
}

static void messages_settle(struct dead_out *out)
{
    for (size_t i = 0; i < out->count; i++) {
        struct out_message *m = &out->messages[i];
        m->message.value = moved(out, m->message.value);
        m->message.key =
            m->message.key == (const void *)UINTPTR_MAX ? NULL : moved(out, m->message.key);
        for (size_t k = 0; k < LETTER_HEADERS; k++)
            m->headers[k].value = moved(out, m->headers[k].value);
        m->message.headers = m->headers;
    }
}

/* --- reading -------------------------------------------------------------------------------- */

static bool out_skips(const struct dead_out *out, const struct spool_dead *letter)
{
    for (size_t i = 0; i < out->skipped_count; i++)
        if (out->skipped[i].origin == letter->origin && out->skipped[i].offset == letter->offset)
            return true;
    return false;
}

/* The chunk is full. */
static int out_ends(struct dead_out *out, const struct spool_dead *letter)
{
    if (out->at_end)
        out->next = (struct spool_dead_place){letter->origin, letter->offset};
    out->at_end = false;
    out->seen++;
    return out->counted; /* the first walk goes on to count */
}

static int out_each(void *arg, const struct spool_dead *letter)
{
    struct dead_out *out = arg;
    size_t used = out->memory.len;
    int status;

    if (letter->flags & out->flag)
        return 0;
    if (out_skips(out, letter)) {
        out->seen++;
        return 0;
    }
    if (out->count == out->at_once || out->bytes >= OUT_BYTES || !out->at_end)
        return out_ends(out, letter);
    status =
        out->flag == SPOOL_DEAD_IN_TABLE ? put_row(&out->memory, letter) : put_message(out, letter);
    if (status == SPOOL_E_LIMIT) {
        out->memory.len = used;
        if (out->count)
            return out_ends(out, letter);
        out->unfit = true;
    } else if (status != SPOOL_OK) {
        return status;
    }
    out->marks[out->count++] = (struct spool_dead_change){
        .kind = SPOOL_DEAD_MARK, .place = {letter->origin, letter->offset}, .flags = out->flag};
    out->bytes += letter->record_size;
    out->seen++;
    if (!out->unfit)
        return 0;
    out->at_end = false;
    out->next = out->marks[0].place; /* which is passed over by then */
    return out->counted;
}

static int frame_rows(struct dead_out *out)
{
    struct frame_writer *writer = NULL;
    int status = frame_writer_create(FRAME_LZ4, 1, &writer);

    if (status == SPOOL_OK)
        status = frame_write(writer, out->memory.data, out->memory.len, &out->body);
    frame_writer_free(writer);
    return status;
}

static void read_work(struct job *job)
{
    struct dead_out *out = (struct dead_out *)job;

    buf_reset(&out->memory);
    buf_reset(&out->body);
    out->count = 0;
    out->bytes = out->seen = 0;
    out->at_end = true;
    out->unfit = false;
    out->status = spool_dead_each_from(job->pipeline->spool, out->stream->options->name, out->next,
                                       out_each, out, &out->error);
    if (out->status >= 0)
        out->status = SPOOL_OK;
    if (out->status == SPOOL_OK && out->unfit)
        out->status = spool_error_set(&out->error, SPOOL_E_LIMIT,
                                      "with its key and headers it is larger than a message or a "
                                      "row may be");
    else if (out->status == SPOOL_OK && out->count && out->flag == SPOOL_DEAD_IN_TABLE)
        out->status = frame_rows(out);
    else if (out->status == SPOOL_OK)
        messages_settle(out);
}

/* --- sending -------------------------------------------------------------------------------- */

static void out_later(struct dead_out *out, const char *text, uint64_t delay_ms)
{
    struct stream *s = out->stream;
    uint64_t suppressed = 0;

    out->state = OUT_IDLE;
    out->due = true;
    out->next = out->count ? out->marks[0].place : THE_START;
    out->retry_at_ms = clock_monotonic_ms() + delay_ms;
    if (s->p->closing)
        return;
    if (log_gate_open(&out->gate, 30000, &suppressed))
        log_event(LOG_WARN, "dead.not_sent", "stream", s->options->name, "to", out->name, "name",
                  out->where, "waiting", log_u64(out->waiting), "error", text, "suppressed",
                  log_u64(suppressed), "action", "they stay in the dead letters and go again",
                  NULL);
    stream_advance(s);
}

static void out_failed(struct dead_out *out, const char *text)
{
    out_later(out, text, backoff_next_ms(&out->backoff));
}

/* It is about a letter of the chunk: which one? */
static void out_refused(struct dead_out *out, const char *text)
{
    struct stream *s = out->stream;
    bool hurry = out->took_some;

    if (out->count > 1) {
        out->at_once = out->count / 2;
        out_later(out, text, 0);
        return;
    }
    if (out->skipped_count == OUT_SKIP) {
        out_failed(out, text);
        return;
    }
    if (!out->skipped_count)
        out->skipped_until_ms = clock_monotonic_ms() + SKIP_AGAIN_MS;
    out->skipped[out->skipped_count++] = out->marks[0].place;
    out->took_some = false;
    metrics_add(s->p->metrics, METRIC_DEAD_REFUSED, 1, s->options->name, out->name);
    log_event(LOG_ERROR, "dead.refused", "stream", s->options->name, "to", out->name, "name",
              out->where, "offset", log_i64(out->marks[0].place.offset), "error", text, "action",
              "it stays in the dead letters; those behind it go on", NULL);
    out_later(out, text, hurry ? 0 : backoff_next_ms(&out->backoff));
}

/* A chunk is over: the next one, or the walk is. */
static void out_walked(struct dead_out *out)
{
    out->state = OUT_IDLE;
    out->due = !out->at_end || out->behind;
    out->retry_at_ms = out->at_end ? clock_monotonic_ms() + OUT_PAUSE_MS : 0;
    if (!out->at_end)
        return;
    out->next = THE_START;
    if (!out->behind)
        out->waiting =
            out->skipped_count; /* letters that were replayed or discarded meanwhile wait no more */
}

static void mark_work(struct job *job)
{
    struct dead_out *out = (struct dead_out *)job;

    out->status = spool_dead_change(job->pipeline->spool, out->stream->options->name, out->marks,
                                    out->count, NULL, &out->error);
}

static void mark_done(struct job *job)
{
    struct dead_out *out = (struct dead_out *)job;
    struct stream *s = out->stream;

    if (out->status == SPOOL_E_FATAL)
        pipeline_fatal(s->p, "dead.mdb: %s", out->error.text);
    if (out->status != SPOOL_OK) {
        out_failed(out, out->error.text);
        return;
    }
    out->waiting -= out->count < out->waiting ? out->count : out->waiting;
    metrics_add(s->p->metrics, METRIC_DEAD_SENT, (double)out->count, s->options->name, out->name);
    backoff_reset(&out->backoff);
    out->at_once = out->at_once > OUT_LETTERS / 2 ? OUT_LETTERS : 2 * out->at_once;
    out->took_some = true;
    out_walked(out);
    stream_advance(s);
}

static void out_arrived(struct dead_out *out)
{
    struct lane *lane = &out->stream->p->dead_lane;

    if (out->stream->p->closing)
        return;
    FAILPOINT(FP_DEAD_SENT);
    out->state = OUT_MARKING;
    out->job.work = mark_work;
    out->job.done = mark_done;
    if (job_start(out->stream->p, &out->job, &lane, 1) != SPOOL_OK)
        pipeline_fatal(out->stream->p, "out of memory while sending dead letters");
}

static size_t read_body(void *arg, char *dst, size_t n)
{
    struct dead_out *out = arg;
    size_t left = out->body.len - out->body_at;

    n = n < left ? n : left;
    memcpy(dst, out->body.data + out->body_at, n);
    out->body_at += n;
    return n;
}

static void inserted(void *arg, const struct clickhouse_outcome *outcome)
{
    struct dead_out *out = arg;

    out->insert = NULL;
    if (outcome->class_ == CLASS_NONE)
        out_arrived(out);
    else if (outcome->class_ == CLASS_TOO_BIG ||
             error_may_be_of_a_row(outcome->code, outcome->class_))
        out_refused(out, outcome->text);
    else
        out_failed(out, outcome->text);
}

static void delivered(void *arg, int status, const char *text)
{
    struct dead_out *out = arg;

    if (status == SPOOL_OK)
        out_arrived(out);
    else if (status == SPOOL_E_LIMIT)
        out_refused(out, text);
    else
        out_failed(out, text);
}

static int send_rows(struct dead_out *out, struct spool_error *error)
{
    struct stream *s = out->stream;
    struct clickhouse *ch = s->p->clickhouse;
    int endpoint = stream_pick(s), status;
    char database[256] = "";
    const char *dot = strchr(out->where, '.');
    struct server_version version;
    const char *timezone;
    struct buf settings;
    struct insert_spec spec = {.table = dot ? dot + 1 : out->where,
                               .column_list = OUT_COLUMNS,
                               .method = FRAME_LZ4,
                               .frames_bytes = out->body.len,
                               .read_body = read_body,
                               .arg = out,
                               .done = inserted};

    if (endpoint < 0 || !clickhouse_server(ch, (size_t)endpoint, &version, &timezone))
        return spool_error_set(error, SPOOL_E_IO, "no ClickHouse endpoint answers");
    if (dot)
        snprintf(database, sizeof(database), "%.*s", (int)(dot - out->where), out->where);
    spec.database = dot ? database : s->targets->database;
    out->body_at = 0;
    buf_init(&settings, 64 * KIB);
    status =
        clickhouse_pinned_settings(version, false, false, out->count, out->memory.len, &settings);
    spec.settings = status == SPOOL_OK ? buf_cstr(&settings) : NULL;
    status = spec.settings ? clickhouse_insert(ch, (size_t)endpoint, &spec, &out->insert, error)
                           : spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    buf_free(&settings);
    return status;
}

static int send_messages(struct dead_out *out, struct spool_error *error)
{
    struct kafka_message *list = calloc(out->count, sizeof(*list));
    int status;

    if (!list)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    for (size_t i = 0; i < out->count; i++)
        list[i] = out->messages[i].message;
    status = kafka_producer_send(out->stream->p->producer, out->where, list, out->count, delivered,
                                 out, error);
    free(list);
    return status;
}

static void read_done(struct job *job)
{
    struct dead_out *out = (struct dead_out *)job;
    struct stream *s = out->stream;
    struct spool_error error = {0};

    if (s->p->closing)
        return;
    if (out->status != SPOOL_OK && !out->unfit) {
        out->count = 0;
        out_failed(out, out->error.text[0] ? out->error.text : spool_strerror(out->status));
        return;
    }
    if (!out->counted)
        out->waiting = out->seen;
    out->counted = true;
    if (!out->count) {
        out_walked(out);
        stream_advance(s);
        return;
    }
    if (out->unfit) {
        out_refused(out, out->error.text);
        return;
    }
    out->state = OUT_SENDING;
    out->status =
        out->flag == SPOOL_DEAD_IN_TABLE ? send_rows(out, &error) : send_messages(out, &error);
    if (out->status == SPOOL_E_LIMIT)
        out_refused(out, error.text);
    else if (out->status != SPOOL_OK)
        out_failed(out, error.text);
}

/* --- life ----------------------------------------------------------------------------------- */

static void out_advance(struct dead_out *out)
{
    struct pipeline *p = out->stream->p;
    struct lane *lanes[2] = {&p->dead_lane, &p->meta_lane};

    if (out->skipped_count && out->skipped_until_ms <= clock_monotonic_ms() &&
        out->state == OUT_IDLE) {
        out->skipped_count = 0;
        out->due = true;
    }
    if (out->state != OUT_IDLE || !out->due || p->draining ||
        out->retry_at_ms > clock_monotonic_ms())
        return;
    if (out->next.origin == 0)
        out->behind = false;
    out->state = OUT_READING;
    out->retry_at_ms = 0;
    out->job.work = read_work;
    out->job.done = read_done;
    if (job_start(p, &out->job, lanes, 2) != SPOOL_OK)
        pipeline_fatal(p, "out of memory while sending dead letters");
}

void dead_out_advance(struct stream *s)
{
    for (size_t i = 0; i < s->out_count; i++)
        out_advance(s->outs[i]);
}

uint64_t dead_out_deadline_ms(const struct stream *s)
{
    uint64_t first = 0;

    for (size_t i = 0; i < s->out_count; i++) {
        const struct dead_out *out = s->outs[i];
        uint64_t at = out->due ? out->retry_at_ms : out->skipped_count ? out->skipped_until_ms : 0;
        if (out->state != OUT_IDLE || s->p->draining)
            at = 0;
        if (at && (!first || at < first))
            first = at;
    }
    return first;
}

void dead_out_added(struct stream *s, uint64_t letters)
{
    for (size_t i = 0; i < s->out_count; i++) {
        s->outs[i]->behind = true;
        s->outs[i]->due = true;
        s->outs[i]->waiting += letters;
    }
}

uint64_t dead_out_waiting(const struct stream *s, size_t i, const char **name)
{
    *name = i < s->out_count ? s->outs[i]->name : NULL;
    return i < s->out_count ? s->outs[i]->waiting : 0;
}

static int out_create(struct stream *s, uint32_t flag, const char *where)
{
    struct dead_out *out = calloc(1, sizeof(*out));

    if (!out)
        return SPOOL_E_NOMEM;
    s->outs[s->out_count++] = out;
    out->stream = s;
    out->flag = flag;
    out->name = flag == SPOOL_DEAD_IN_TABLE ? "table" : "topic";
    out->where = where;
    out->due = true;
    out->next = THE_START;
    buf_init(&out->memory, LIMIT_BLOCK_BYTES * 2);
    buf_init(&out->body, LIMIT_BLOCK_BYTES * 2);
    backoff_init(&out->backoff, OUT_RETRY_MS, OUT_RETRY_MAX, clock_monotonic_ns());
    out->at_once = OUT_LETTERS;
    out->skipped = calloc(OUT_SKIP, sizeof(*out->skipped));
    out->marks = calloc(OUT_LETTERS, sizeof(*out->marks));
    out->messages = calloc(OUT_LETTERS, sizeof(*out->messages));
    return out->marks && out->messages && out->skipped ? SPOOL_OK : SPOOL_E_NOMEM;
}

int dead_out_create(struct stream *s)
{
    const struct stream_options *o = s->options;
    int status = SPOOL_OK;

    if (o->dead_letters_table)
        status = out_create(s, SPOOL_DEAD_IN_TABLE, o->dead_letters_table);
    if (status == SPOOL_OK && o->dead_letters_topic)
        status = out_create(s, SPOOL_DEAD_IN_TOPIC, o->dead_letters_topic);
    return status;
}

void dead_out_free(struct stream *s)
{
    for (size_t i = 0; i < s->out_count; i++) {
        struct dead_out *out = s->outs[i];
        buf_free(&out->memory);
        buf_free(&out->body);
        free(out->marks);
        free(out->skipped);
        free(out->messages);
        free(out);
    }
    s->out_count = 0;
}
