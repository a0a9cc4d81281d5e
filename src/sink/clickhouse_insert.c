/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One INSERT on the wire:
 *
 *   POST /?query_id=..&decompress=1&wait_end_of_query=1[&token][&operator's settings]&pinned
 *   Content-Length: frames of the query text + frames_bytes
 *
 *   frame(s) "INSERT INTO `db`.`table` (columns) FORMAT Native\n"
 *   the blocks' frames, byte for byte as they were spooled
 *
 * The query goes in the body because old servers take no more than 16 KiB of URI. Exactly one
 * newline parts it from the data.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/limits.h"
#include "sink/clickhouse_int.h"
#include "sink/sql_text.h"

struct insert {
    struct endpoint *endpoint;
    struct http_request *request;
    struct buf query; /* the query's frames */
    size_t query_at;
    uint64_t frames_bytes;
    uint64_t blocks_given;
    bool native;
    bool gave_up; /* read_body did */
    http_body_fn read_body;
    void *arg;
    void (*done)(void *arg, const struct clickhouse_outcome *outcome);
};

static void insert_free(struct insert *insert)
{
    if (!insert)
        return;
    buf_free(&insert->query);
    free(insert);
}

static size_t on_read(void *arg, char *dst, size_t n)
{
    struct insert *insert = arg;
    size_t left = insert->query.len - insert->query_at, got = 0, more;

    if (insert->gave_up)
        return HTTP_BODY_ABORT;
    if (left > 0) {
        got = n < left ? n : left;
        memcpy(dst, insert->query.data + insert->query_at, got);
        insert->query_at += got;
        if (got == n)
            return got;
    }
    if (insert->blocks_given == insert->frames_bytes)
        return got;
    more = insert->read_body(insert->arg, dst + got, n - got);
    if (more == HTTP_BODY_ABORT) {
        insert->gave_up = true;
        return got ? got : HTTP_BODY_ABORT;
    }
    if (more > 0 && insert->blocks_given == 0)
        FAILPOINT(FP_SEND_STARTED);
    insert->blocks_given += more;
    assert(insert->blocks_given <= insert->frames_bytes);
    return got + more;
}

static void on_reply(void *arg, const struct http_reply *reply)
{
    struct insert *insert = arg;
    struct clickhouse_outcome outcome;

    outcome_of_insert(reply, insert->native, insert->query.len + insert->frames_bytes,
                      insert->blocks_given, &outcome);
    endpoint_saw_reply(insert->endpoint, reply);
    insert->done(insert->arg, &outcome);
    insert_free(insert);
}

static int make_query(struct clickhouse *ch, const struct insert_spec *spec, struct buf *text)
{
    int status = buf_append_str(text, "INSERT INTO ");

    if (status == SPOOL_OK)
        status = sql_table(text, spec->database ? spec->database : ch->database, spec->table);
    if (status == SPOOL_OK)
        status = buf_printf(text, " (%s) FORMAT %s\n", spec->column_list,
                            spec->native ? "Native" : "JSONEachRow");
    return status;
}

static int add_parameter(struct buf *url, const char *name, const char *value)
{
    int status = buf_printf(url, "&%s=", name);
    return status == SPOOL_OK ? http_escape(url, value, strlen(value)) : status;
}

static int make_url(const struct endpoint *e, const struct insert_spec *spec, size_t query_bytes,
                    struct buf *url)
{
    int status = buf_printf(url, "%s/?decompress=1&wait_end_of_query=1", e->url);

    if (status == SPOOL_OK && spec->query_id)
        status = add_parameter(url, "query_id", spec->query_id);
    if (status == SPOOL_OK && spec->token && clickhouse_knows_token(e->version))
        status = add_parameter(url, "insert_deduplication_token", spec->token);
    if (status == SPOOL_OK)
        status = clickhouse_allow_query(url, query_bytes);
    if (status == SPOOL_OK)
        status = buf_append_str(url, e->ch->settings);
    if (status == SPOOL_OK && spec->settings && spec->settings[0])
        status = buf_printf(url, "&%s", spec->settings);
    return status;
}

int clickhouse_insert(struct clickhouse *ch, size_t endpoint, const struct insert_spec *spec,
                      struct insert **out, struct spool_error *error)
{
    struct http_request_spec request = {.post = true,
                                        .user = ch->user,
                                        .password = ch->password,
                                        .read_body = on_read,
                                        .done = on_reply};
    struct endpoint *e = &ch->endpoints[endpoint];
    struct frame_writer *frames = NULL;
    struct insert *insert = NULL;
    struct buf text, url;
    int status = SPOOL_E_NOMEM;

    assert(endpoint < ch->endpoint_count);
    assert(spec->table && spec->column_list && spec->read_body && spec->done);
    assert(spec->frames_bytes > 0); /* an INSERT without rows would be acknowledged */
    *out = NULL;
    if (ch->closing)
        return spool_error_set(error, SPOOL_E_CANCELLED, "the ClickHouse client is closing");
    buf_init(&text, QUERY_TEXT_MAX);
    buf_init(&url, MIB);
    insert = calloc(1, sizeof(*insert));
    if (!insert)
        goto done;
    insert->endpoint = e;
    insert->frames_bytes = spec->frames_bytes;
    insert->native = spec->native;
    insert->read_body = spec->read_body;
    insert->arg = spec->arg;
    insert->done = spec->done;
    buf_init(&insert->query, QUERY_TEXT_MAX);
    status = make_query(ch, spec, &text);
    if (status == SPOOL_OK)
        status = frame_writer_create(spec->method, 1, &frames);
    if (status == SPOOL_OK)
        status = frame_write(frames, text.data, text.len, &insert->query);
    if (status == SPOOL_OK)
        status = make_url(e, spec, text.len, &url);
    if (status == SPOOL_OK && !(request.url = buf_cstr(&url)))
        status = SPOOL_E_NOMEM;
    if (status != SPOOL_OK)
        goto done;
    request.body_size = insert->query.len + spec->frames_bytes;
    request.stall_factor = spec->stall_factor;
    request.arg = insert;
    status = http_client_send(ch->http, &request, &insert->request, error);
    if (status == SPOOL_OK)
        *out = insert;

done:
    if (!*out) {
        if (!insert || !request.arg)
            spool_error_set(error, status, "an INSERT could not be made: %s",
                            spool_strerror(status));
        insert_free(insert);
    }
    frame_writer_free(frames);
    buf_free(&text);
    buf_free(&url);
    return status;
}

void insert_resume(struct insert *insert)
{
    http_request_resume(insert->request);
}

void insert_cancel(struct insert *insert)
{
    http_request_cancel(insert->request);
}
