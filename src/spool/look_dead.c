/* SPDX-License-Identifier: Apache-2.0 */
#include "base/limits.h"
#include "spool/look_int.h"

/* A letter's record, its base64 beside it, every byte escaped: the largest line there can be. */
#define LINE_MAX_BYTES (1 * GIB)

struct dead_walk {
    const struct spool *spool;
    const struct look_dead_query *query;
    struct buf line;
    look_line_fn *emit;
    void *arg;
    uint64_t shown;
    struct spool_error *error;
};

/* u32le count, then per header string name, string value; what does not parse ends the list. */
static void put_headers(struct json_writer *w, const void *data, size_t size)
{
    struct cursor c = cursor_over(data, size);
    uint32_t count = 0;

    json_writer_open(w, "headers", '[');
    if (size && cursor_u32le(&c, &count) != SPOOL_OK)
        count = 0;
    for (uint32_t i = 0; i < count && w->status == SPOOL_OK; i++) {
        const uint8_t *name, *value;
        size_t name_size, value_size;

        if (cursor_string(&c, &name, &name_size) != SPOOL_OK ||
            cursor_string(&c, &value, &value_size) != SPOOL_OK)
            break;
        json_writer_open(w, NULL, '{');
        json_writer_bytes(w, "name", name, name_size);
        json_writer_bytes_exact(w, "value", value, value_size);
        json_writer_close(w, '}');
    }
    json_writer_close(w, ']');
}

static void put_letter(struct json_writer *w, const struct spool_dead *letter)
{
    json_writer_open(w, NULL, '{');
    json_writer_text(w, "stream", letter->stream);
    json_writer_text(w, "origin", letter->origin_name);
    json_writer_i64(w, "offset", letter->offset);
    json_writer_i64(w, "code", letter->code);
    json_writer_text(w, "reason_name", letter->reason_name);
    json_writer_text(w, "reason", letter->reason);
    json_writer_text(w, "column", letter->column);
    json_writer_u64(w, "position", letter->position);
    json_writer_bytes_exact(w, "record", letter->record, letter->record_size);
    json_writer_u64(w, "record_bytes", letter->record_full_size);
    json_writer_bool(w, "record_cut", letter->flags & SPOOL_DEAD_RECORD_CUT);
    json_writer_bool(w, "rebuilt", letter->flags & SPOOL_DEAD_REBUILT);
    if (letter->key_present)
        json_writer_bytes_exact(w, "key", letter->key, letter->key_size);
    else
        json_writer_null(w, "key");
    put_headers(w, letter->headers, letter->headers_size);
    json_writer_u64(w, "attempts", letter->attempts);
    json_writer_time(w, "timestamp", letter->timestamp_ms);
    json_writer_time(w, "received_at", letter->received_ms);
    json_writer_time(w, "time", letter->dead_ms);
    json_writer_time(w, "last_attempt", letter->last_ms);
    json_writer_bool(w, "in_table", letter->flags & SPOOL_DEAD_IN_TABLE);
    json_writer_bool(w, "in_topic", letter->flags & SPOOL_DEAD_IN_TOPIC);
    json_writer_close(w, '}');
}

static int emit_truncated(struct dead_walk *walk, const struct spool_dead *next, const char *reason)
{
    struct json_writer w;

    buf_reset(&walk->line);
    json_writer_init(&w, &walk->line);
    json_writer_open(&w, NULL, '{');
    json_writer_bool(&w, "truncated", true);
    json_writer_text(&w, "reason", reason);
    json_writer_text(&w, "stream", next->stream);
    json_writer_text(&w, "origin", next->origin_name);
    json_writer_i64(&w, "offset", next->offset);
    json_writer_close(&w, '}');
    if (w.status != SPOOL_OK)
        return w.status;
    return walk->emit(walk->arg, (const char *)walk->line.data, walk->line.len);
}

bool dead_filter_takes(const struct dead_filter *filter, const struct spool_dead *letter)
{
    const char *origin = letter->origin_name ? letter->origin_name : "";

    return (!filter->origin || strcmp(filter->origin, origin) == 0) &&
           (!filter->reason || strcmp(filter->reason, letter->reason_name) == 0) &&
           (!filter->has_from || letter->offset >= filter->from) &&
           (!filter->has_to || letter->offset <= filter->to) &&
           (!filter->has_code || letter->code == filter->code);
}

static int each_letter(void *arg, const struct spool_dead *letter)
{
    struct dead_walk *walk = arg;
    struct json_writer w;
    int status;

    status = spool_looks_go_on(walk->spool, walk->error);
    if (status != SPOOL_OK || !dead_filter_takes(&walk->query->filter, letter))
        return status;
    if (walk->query->limit && walk->shown == walk->query->limit) {
        status = emit_truncated(walk, letter, "limit");
        return status == SPOOL_OK ? SPOOL_E_END : status;
    }
    buf_reset(&walk->line);
    json_writer_init(&w, &walk->line);
    put_letter(&w, letter);
    if (w.status != SPOOL_OK)
        return spool_error_set(walk->error, w.status, "dead letter %s %lld: %s",
                               letter->origin_name ? letter->origin_name : "",
                               (long long)letter->offset, spool_strerror(w.status));
    status = walk->emit(walk->arg, (const char *)walk->line.data, walk->line.len);
    if (status == SPOOL_E_LIMIT) {
        status = emit_truncated(walk, letter, "size");
        return status == SPOOL_OK ? SPOOL_E_END : status;
    }
    walk->shown++;
    return status;
}

int look_dead_each(struct spool *spool, const struct look_dead_query *query, look_line_fn *line,
                   void *arg, struct spool_error *error)
{
    struct dead_walk walk = {
        .spool = spool, .query = query, .emit = line, .arg = arg, .error = error};
    int status;

    buf_init(&walk.line, LINE_MAX_BYTES);
    status = spool_dead_each(spool, query->stream, each_letter, &walk, error);
    buf_free(&walk.line);
    return status == SPOOL_E_END ? SPOOL_OK : status;
}

int look_dead(struct spool *spool, const struct look_dead_query *query, struct buf *out,
              struct spool_error *error)
{
    struct look_collector collector = {.out = out};

    if (out->max - out->len < LOOK_MIN_BUFFER_BYTES)
        return spool_error_set(error, SPOOL_E_LIMIT, "no room for the dead letters");
    return look_dead_each(spool, query, look_collect, &collector, error);
}
