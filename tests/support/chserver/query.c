/* SPDX-License-Identifier: Apache-2.0 */
/* What a request asks: who, with which settings, which statement, and the answer. */
#include "chserver.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"

/* Exception codes of ClickHouse. */
#define SYNTAX_ERROR                          62
#define READONLY                              164
#define QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING 216
#define QUERY_WAS_CANCELLED                   394
#define AUTHENTICATION_FAILED                 516
#define UNKNOWN_EXCEPTION                     1002

/* URL parameters that are no settings. */
static const char *const NOT_SETTINGS[] = {
    "query",           "database",          "user",       "password",
    "query_id",        "default_format",    "decompress", "compress",
    "buffer_size",     "wait_end_of_query", "session_id", "stacktrace",
    "session_timeout", "session_check",     "quota_key",
};

static const struct account *accounts;
static size_t account_count;

void query_set_accounts(const struct account *list, size_t count)
{
    accounts = list;
    account_count = count;
}

/* ClickHouse's mapping of exception codes to statuses. */
static int status_of(int code)
{
    static const int MAP[][2] = {
        {194, 401}, {192, 403}, {193, 403}, {497, 403}, {516, 403}, {6, 400},   {25, 400},
        {26, 400},  {27, 400},  {36, 400},  {38, 400},  {41, 400},  {44, 400},  {53, 400},
        {62, 400},  {72, 400},  {117, 400}, {376, 400}, {675, 400}, {676, 400}, {46, 404},
        {47, 404},  {50, 404},  {60, 404},  {73, 404},  {81, 404},  {115, 404}, {159, 408},
        {48, 501},  {76, 503},  {209, 503}, {439, 503}, {381, 411},
    };
    if (code == 0)
        return 200;
    for (size_t i = 0; i < sizeof MAP / sizeof MAP[0]; i++)
        if (MAP[i][0] == code)
            return MAP[i][1];
    return 500;
}

/* One request on its way. */
struct query {
    struct connection *c;
    const struct request *request;
    const struct account *account;
    struct engine_connection *engine;
    struct running *running;
    struct body *body;
    struct buf text;
    struct engine_result result;
    uint64_t started_ns;
};

static int base64_value(char c)
{
    static const char ALPHABET[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c ? strchr(ALPHABET, c) : NULL;
    return at ? (int)(at - ALPHABET) : -1;
}

static void base64_decode(const char *in, char *out, size_t size)
{
    unsigned held = 0;
    int bits = 0;
    size_t n = 0;
    for (; base64_value(*in) >= 0 && n + 1 < size; in++) {
        held = held << 6 | (unsigned)base64_value(*in);
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            out[n++] = (char)(held >> bits & 0xff);
        }
    }
    out[n] = '\0';
}

static bool authenticate(struct query *q)
{
    const char *user = request_header(q->request, "X-ClickHouse-User");
    const char *password = request_header(q->request, "X-ClickHouse-Key");
    const char *basic = request_header(q->request, "Authorization");
    char decoded[1024];
    if (!user)
        user = request_param(q->request, "user");
    if (!password)
        password = request_param(q->request, "password");
    if (basic && strncasecmp(basic, "Basic ", 6) == 0) {
        base64_decode(basic + 6, decoded, sizeof decoded);
        char *colon = strchr(decoded, ':');
        user = decoded;
        if (colon) {
            *colon = '\0';
            password = colon + 1;
        }
    }
    if (!user || !*user)
        user = "default";
    for (size_t i = 0; i < account_count; i++) {
        if (strcmp(accounts[i].user, user) == 0 &&
            strcmp(accounts[i].password, password ? password : "") == 0) {
            q->account = &accounts[i];
            return true;
        }
    }
    engine_result_set(&q->result, AUTHENTICATION_FAILED,
                      "%s: Authentication failed: password is incorrect, or there is no user with "
                      "such name. (AUTHENTICATION_FAILED)",
                      user);
    return false;
}

static bool is_setting(const char *name)
{
    for (size_t i = 0; i < sizeof NOT_SETTINGS / sizeof NOT_SETTINGS[0]; i++)
        if (strcmp(name, NOT_SETTINGS[i]) == 0)
            return false;
    return strncmp(name, "param_", 6) != 0;
}

static void append_quoted(struct buf *out, const char *text, char quote)
{
    buf_put_u8(out, (uint8_t)quote);
    for (; *text; text++) {
        if (*text == quote || *text == '\\')
            buf_put_u8(out, '\\');
        buf_put_u8(out, (uint8_t)*text);
    }
    buf_put_u8(out, (uint8_t)quote);
}

static bool run(struct query *q, const struct buf *sql)
{
    engine_query(q->engine, (const char *)sql->data, sql->len, "TabSeparated", &q->result);
    return q->result.code == 0;
}

/* Settings and database of the request, for this connection only. */
static bool session_prepare(struct query *q)
{
    struct buf sql;
    buf_init(&sql, HEAD_BYTES_MAX * 2);
    for (size_t i = 0; i < q->request->param_count; i++) {
        const struct pair *p = &q->request->params[i];
        if (!is_setting(p->name))
            continue;
        buf_append_str(&sql, sql.len ? ", " : "SET ");
        append_quoted(&sql, p->name, '`');
        buf_append_str(&sql, " = ");
        append_quoted(&sql, p->value, '\'');
    }
    bool ok = sql.len == 0 || run(q, &sql);
    const char *database = request_param(q->request, "database");
    if (!database)
        database = request_header(q->request, "X-ClickHouse-Database");
    if (ok && database && *database) {
        buf_reset(&sql);
        buf_append_str(&sql, "USE ");
        append_quoted(&sql, database, '`');
        ok = run(q, &sql);
    }
    buf_free(&sql);
    return ok;
}

/* What body_read gave an error for becomes the result; a lost connection gives no answer. */
static bool take_body_error(struct query *q)
{
    const char *text;
    int code = body_error(q->body, &text);
    engine_result_set(&q->result, code ? code : UNKNOWN_EXCEPTION, "%s", text);
    return false;
}

/* The URL's query and the body are one text. Reads until it is known what the statement is. */
static bool text_read(struct query *q, struct statement *s)
{
    const char *query = request_param(q->request, "query");
    if (query && *query) {
        buf_append_str(&q->text, query);
        buf_put_u8(&q->text, '\n');
    }
    bool end = false;
    size_t wanted = 4096;
    for (;;) {
        statement_read((const char *)q->text.data, q->text.len, end, s);
        if (end || s->kind == STATEMENT_INSERT)
            return true;
        if (s->kind == STATEMENT_WHOLE)
            wanted = PIECE_BYTES;
        if (buf_reserve(&q->text, wanted) != SPOOL_OK) {
            engine_result_set(&q->result, SYNTAX_ERROR, "the query is too large. (SYNTAX_ERROR)");
            return false;
        }
        ssize_t n = body_read(q->body, q->text.data + q->text.len, wanted);
        if (n < 0)
            return take_body_error(q);
        q->text.len += (size_t)n;
        end = n == 0;
    }
}

static bool killed(struct query *q)
{
    if (!atomic_load(&q->running->killed))
        return false;
    engine_result_set(&q->result, QUERY_WAS_CANCELLED,
                      "Query was cancelled. (QUERY_WAS_CANCELLED)");
    return true;
}

static void insert_run(struct query *q, const struct statement *s)
{
    struct engine_insert *insert =
        engine_insert_begin(q->engine, (const char *)q->text.data, s->size, s->format, &q->result);
    if (!insert)
        return;
    uint8_t *piece = malloc(PIECE_BYTES);
    if (!piece)
        abort();
    ssize_t n = (ssize_t)(q->text.len - s->data_at);
    const uint8_t *data = q->text.data + s->data_at;
    bool ok = true;
    while (ok && (n > 0 || data != piece)) { /* the first piece may be empty */
        ok = n == 0 || engine_insert_append(insert, data, (size_t)n, &q->result) == 0;
        if (ok && killed(q))
            ok = false;
        data = piece;
        if (ok && (n = body_read(q->body, piece, PIECE_BYTES)) < 0)
            ok = take_body_error(q);
    }
    free(piece);
    if (ok && killed(q))
        ok = false;
    if (ok)
        engine_insert_end(insert, &q->result);
    else
        engine_insert_cancel(insert);
}

/* Only the front knows query ids, so it answers for system.processes. */
static void processes_replace(struct buf *text)
{
    static const char NAME[] = "system.processes";
    uint8_t *at = text->len ? memmem(text->data, text->len, NAME, sizeof NAME - 1) : NULL;
    if (!at)
        return;
    struct buf out;
    buf_init(&out, QUERY_BYTES_MAX);
    buf_append(&out, text->data, (size_t)(at - text->data));
    registry_write_table(&out);
    at += sizeof NAME - 1;
    buf_append(&out, at, text->len - (size_t)(at - text->data));
    buf_free(text);
    *text = out;
}

static void whole_run(struct query *q)
{
    char id[256];
    const char *text = (const char *)q->text.data;
    if (statement_kill(text, q->text.len, id, sizeof id)) {
        if (registry_kill(id))
            buf_printf(&q->result.body, "waiting\t%s\t%s\n", id, q->account->user);
        return;
    }
    processes_replace(&q->text);
    const char *format = request_param(q->request, "default_format");
    if (!format)
        format = request_header(q->request, "X-ClickHouse-Format");
    engine_query(q->engine, (const char *)q->text.data, q->text.len,
                 format ? format : "TabSeparated", &q->result);
}

static void statement_run(struct query *q)
{
    struct statement s;
    if (!text_read(q, &s))
        return;
    registry_set_text(q->running, q->text.len ? (const char *)q->text.data : "",
                      s.kind == STATEMENT_INSERT ? s.data_at : q->text.len);
    bool get = strcmp(q->request->method, "GET") == 0;
    if (s.writes && (get || q->account->readonly)) {
        engine_result_set(&q->result, READONLY,
                          "Cannot execute query in readonly mode.%s (READONLY)",
                          get ? " For queries over HTTP, method GET implies readonly. You should "
                                "use method POST for modifying queries."
                              : "");
        return;
    }
    if (s.kind == STATEMENT_INSERT)
        insert_run(q, &s);
    else
        whole_run(q);
}

static void send_result(struct query *q)
{
    struct engine_result *r = &q->result;
    const char *id = q->running ? q->running->query_id : "";
    struct buf headers;
    buf_init(&headers, 65536);
    buf_append_str(&headers, "Content-Type: text/plain; charset=UTF-8\r\n"
                             "X-ClickHouse-Server-Display-Name: chserver\r\n");
    if (*id && strcspn(id, "\r\n") == strlen(id))
        buf_printf(&headers, "X-ClickHouse-Query-Id: %s\r\n", id);
    if (r->code) {
        buf_printf(&headers, "X-ClickHouse-Exception-Code: %d\r\n", r->code);
        if (!memmem(r->body.data, r->body.len, "(version ", 9))
            buf_printf(&r->body, " (version %s)", engine_version());
        buf_put_u8(&r->body, '\n');
    }
    buf_printf(&headers,
               "X-ClickHouse-Summary: {\"read_rows\":\"%llu\",\"read_bytes\":\"%llu\","
               "\"written_rows\":\"%llu\",\"written_bytes\":\"%llu\",\"total_rows_to_read\":\"0\","
               "\"result_rows\":\"%llu\",\"result_bytes\":\"%llu\",\"elapsed_ns\":\"%llu\"}\r\n",
               (unsigned long long)r->rows_written, (unsigned long long)r->bytes_written,
               (unsigned long long)r->rows_written, (unsigned long long)r->bytes_written,
               (unsigned long long)r->rows_written, (unsigned long long)r->bytes_written,
               (unsigned long long)(clock_monotonic_ns() - q->started_ns));
    answer(q->c, status_of(r->code), buf_cstr(&headers), r->body.data, r->body.len);
    buf_free(&headers);
}

static void query_run(struct query *q)
{
    char text[512];
    int code;
    const char *decompress = request_param(q->request, "decompress");
    q->body = body_open(q->c, q->request, decompress && strcmp(decompress, "1") == 0, &code, text);
    if (!q->body) {
        engine_result_set(&q->result, code, "%s", text);
        return;
    }
    if (!authenticate(q))
        return;
    const char *id = request_param(q->request, "query_id");
    if (!id)
        id = request_header(q->request, "X-ClickHouse-Query-Id");
    q->running = registry_add(id ? id : "", q->account->user);
    if (!q->running) {
        engine_result_set(&q->result, QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
                          "Query with id = %s is already running. "
                          "(QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)",
                          id ? id : "");
        return;
    }
    q->engine = engine_connect();
    if (!q->engine) {
        engine_result_set(&q->result, UNKNOWN_EXCEPTION, "no connection to the engine");
        return;
    }
    if (session_prepare(q))
        statement_run(q);
}

static void query_answer(struct connection *c, const struct request *r)
{
    struct query q = {.c = c, .request = r, .started_ns = clock_monotonic_ns()};
    const char *text;
    engine_result_init(&q.result);
    buf_init(&q.text, QUERY_BYTES_MAX);
    query_run(&q);
    /* The engine's connection ends before the answer: what is acknowledged is finished. */
    engine_close(q.engine);
    bool lost = q.body && body_error(q.body, &text) == 0 && *text;
    if (q.body)
        body_close(q.body);
    if (q.running)
        registry_finish(q.running);
    if (!lost)
        send_result(&q);
    if (q.running)
        registry_remove(q.running);
    buf_free(&q.text);
    engine_result_free(&q.result);
}

void query_handle(struct connection *c, const struct request *r)
{
    static const char NOT_FOUND[] = "There is no handle for this path. Use / or /ping.\n";
    static const char TEXT[] = "Content-Type: text/html; charset=UTF-8\r\n";
    bool get = strcmp(r->method, "GET") == 0 || strcmp(r->method, "HEAD") == 0;
    if (get && (strcmp(r->path, "/ping") == 0 ||
                (strcmp(r->path, "/") == 0 && !request_param(r, "query"))))
        answer(c, 200, TEXT, "Ok.\n", strcmp(r->method, "HEAD") == 0 ? 0 : 4);
    else if (strcmp(r->path, "/") != 0) {
        c->closing = true;
        answer(c, 404, TEXT, NOT_FOUND, sizeof NOT_FOUND - 1);
    } else
        query_answer(c, r);
}
