/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"
#include "sink/http_client.h"

#include "scripted_server.c"

#define OK_EMPTY                                                                                   \
    "HTTP/1.1 200 OK\r\nConnection: Keep-Alive\r\nKeep-Alive: timeout=10\r\n"                      \
    "Content-Length: 0\r\n\r\n"
#define REFUSED                                                                                    \
    "HTTP/1.1 500 Error\r\nX-ClickHouse-Exception-Code: 252\r\nContent-Length: 14\r\n\r\n"         \
    "Too many parts"
#define STALL_MS 200

/* One exchange as a test sees it. */
struct exchange {
    struct world *world;
    struct http_request *request;
    unsigned done;
    int status;
    char body[512];
    size_t body_size;
    bool body_cut, timed_out, connected, ended_here;
    char transport_error[300];
    char exception_code[16];
    char summary[64];
    uint64_t body_sent;
    bool inside_call;     /* a call of ours into the client is under way */
    bool close_when_done; /* else the next step of the test goes on from then() */
    void (*then)(struct exchange *e);

    size_t source_size; /* of the body */
    size_t source_at;
    size_t source_step;     /* gives so many at a time; 0: all it may */
    unsigned source_waits;  /* says "not ready" so often, resuming by the loop */
    size_t source_abort_at; /* gives up there; 0: never */
    uint32_t stall_factor;
    bool source_never; /* is never ready */
    uv_timer_t wake;   /* the next loop turn of the source */
    bool wake_open;
};

struct world {
    uv_loop_t loop;
    struct scripted_server server;
    struct http_client *client;
    struct exchange a, b;
    bool client_closed;
};

static void on_closed(void *arg)
{
    struct world *w = arg;
    w->client_closed = true;
}

static void finish(struct world *w)
{
    http_client_close(w->client, on_closed, w);
    scripted_server_close(&w->server);
}

static void world_open(struct world *w, const struct script *scripts, size_t count)
{
    const struct http_client_options options = {.connect_timeout_ms = 2000,
                                                .stall_timeout_ms = STALL_MS};
    struct spool_error error;

    alarm(60); /* a test that hangs fails */
    memset(w, 0, sizeof(*w));
    assert_int_equal(uv_loop_init(&w->loop), 0);
    scripted_server_start(&w->server, &w->loop, scripts, count);
    assert_int_equal(http_client_create(&w->loop, &options, &w->client, &error), SPOOL_OK);
    w->a.world = w->b.world = w;
    w->a.close_when_done = w->b.close_when_done = true;
}

static void world_run(struct world *w)
{
    assert_int_equal(uv_run(&w->loop, UV_RUN_DEFAULT), 0);
    assert_true(w->client_closed);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    alarm(0);
}

static void world_close(struct world *w)
{
    scripted_server_free(&w->server);
}

static void source_ready(uv_timer_t *timer)
{
    struct exchange *e = timer->data;
    e->inside_call = true;
    http_request_resume(e->request);
    e->inside_call = false;
}

static size_t source_read(void *arg, char *dst, size_t n)
{
    struct exchange *e = arg;

    assert_false(e->inside_call); /* never from within a call of ours */
    if (e->source_never)
        return 0;
    if (e->source_waits > 0) {
        e->source_waits--;
        uv_timer_start(&e->wake, source_ready, 0, 0);
        return 0;
    }
    if (e->source_abort_at && e->source_at >= e->source_abort_at)
        return HTTP_BODY_ABORT;
    if (e->source_step && n > e->source_step)
        n = e->source_step;
    if (n > e->source_size - e->source_at)
        n = e->source_size - e->source_at;
    for (size_t i = 0; i < n; i++)
        dst[i] = (char)('a' + (e->source_at + i) % 26);
    e->source_at += n;
    if (e->source_step)
        e->source_waits = 1;
    return n;
}

static void copy(char *dst, size_t size, const char *src)
{
    snprintf(dst, size, "%s", src ? src : "");
}

static void on_done(void *arg, const struct http_reply *reply)
{
    struct exchange *e = arg;

    assert_false(e->inside_call);
    e->done++;
    e->status = reply->status;
    assert_int_equal(reply->body[reply->body_size], '\0');
    copy(e->body, sizeof(e->body), reply->body);
    e->body_size = reply->body_size;
    e->body_cut = reply->body_cut;
    e->timed_out = reply->timed_out;
    e->connected = reply->connected;
    e->ended_here = reply->ended_here;
    e->body_sent = reply->body_sent;
    copy(e->transport_error, sizeof(e->transport_error), reply->transport_error);
    copy(e->exception_code, sizeof(e->exception_code), reply->exception_code);
    copy(e->summary, sizeof(e->summary), reply->summary);
    assert_true((reply->status == 0) == (reply->transport_error != NULL));
    e->request = NULL;
    if (e->wake_open)
        uv_close((uv_handle_t *)&e->wake, NULL);
    e->wake_open = false;
    if (e->then)
        e->then(e);
    else if (e->close_when_done)
        finish(e->world);
}

static void post_source(struct exchange *e, size_t size)
{
    struct http_request_spec spec = {.post = true,
                                     .url = e->world->server.url,
                                     .body_size = size,
                                     .read_body = source_read,
                                     .stall_factor = e->stall_factor,
                                     .arg = e,
                                     .done = on_done};
    struct spool_error error;

    e->source_size = size;
    e->source_at = 0;
    uv_timer_init(&e->world->loop, &e->wake);
    e->wake.data = e;
    e->wake_open = true;
    e->inside_call = true;
    assert_int_equal(http_client_send(e->world->client, &spec, &e->request, &error), SPOOL_OK);
    e->inside_call = false;
}

static void get(struct exchange *e, uint32_t total_timeout_ms)
{
    struct http_request_spec spec = {.url = e->world->server.url,
                                     .arg = e,
                                     .done = on_done,
                                     .max_reply_bytes = 100,
                                     .total_timeout_ms = total_timeout_ms};
    struct spool_error error;

    e->inside_call = true;
    assert_int_equal(http_client_send(e->world->client, &spec, &e->request, &error), SPOOL_OK);
    e->inside_call = false;
}

/* The body of connection 0 as the server saw it must be the source's, from its first byte. */
static void assert_body_whole(struct world *w, size_t connection, size_t size)
{
    const struct buf *in = &w->server.connections[connection]->in;
    const char *at = memmem(in->data, in->len, "\r\n\r\n", 4);

    assert_non_null(at);
    at += 4;
    assert_int_equal(in->len - (size_t)(at - (const char *)in->data), size);
    for (size_t i = 0; i < size; i++)
        assert_int_equal(at[i], (char)('a' + i % 26));
}

/* --- whole answers ---------------------------------------------------------------------------- */

static void test_whole_answer(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND,
          .text = "HTTP/1.1 500 Oops\r\nX-ClickHouse-Exception-Code: 60\r\n"
                  "x-clickhouse-summary: {\"written_rows\":\"7\"} \r\nContent-Length: 9\r\n\r\n"
                  "Code: 60."}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    post_source(&w.a, 1000000);
    world_run(&w);
    assert_int_equal(w.a.done, 1);
    assert_int_equal(w.a.status, 500);
    assert_string_equal(w.a.body, "Code: 60.");
    assert_string_equal(w.a.exception_code, "60");
    assert_string_equal(w.a.summary, "{\"written_rows\":\"7\"}");
    assert_int_equal(w.a.body_sent, 1000000);
    assert_true(w.a.connected);
    assert_body_whole(&w, 0, 1000000);
    assert_null(strcasestr((char *)w.server.connections[0]->in.data, "\r\nExpect:"));
    assert_null(strcasestr((char *)w.server.connections[0]->in.data, "\r\nTransfer-Encoding:"));
    world_close(&w);
}

static void test_small_body_and_headers(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}};
    const char *headers[] = {"X-One: 1", "X-Two: 2"};
    struct http_request_spec spec = {.post = true,
                                     .headers = headers,
                                     .header_count = 2,
                                     .user = "alice",
                                     .password = "s3cret:&=%",
                                     .body = "SELECT 1",
                                     .body_size = 8,
                                     .done = on_done};
    struct spool_error error;
    struct world w;
    char *in;

    (void)state;
    world_open(&w, &script, 1);
    spec.url = w.server.url;
    spec.arg = &w.a;
    assert_int_equal(http_client_send(w.client, &spec, NULL, &error), SPOOL_OK);
    world_run(&w);
    in = (char *)w.server.connections[0]->in.data;
    assert_int_equal(w.a.status, 200);
    assert_non_null(strstr(in, "\r\nX-One: 1\r\n"));
    assert_non_null(strstr(in, "\r\nX-Two: 2\r\n"));
    assert_non_null(strstr(in, "\r\nX-ClickHouse-User: alice\r\n"));
    assert_non_null(strstr(in, "\r\nX-ClickHouse-Key: s3cret:&=%\r\n"));
    assert_non_null(strstr(in, "\r\n\r\nSELECT 1"));
    world_close(&w);
}

static void test_header_injection_refused(void **state)
{
    static const struct script script = {{{.kind = STEP_HEAD}}};
    const char *headers[] = {"X-One: 1\r\nX-Two: 2"};
    struct http_request_spec spec = {.headers = headers, .header_count = 1, .done = on_done};
    struct spool_error error;
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    spec.url = w.server.url;
    spec.arg = &w.a;
    assert_int_equal(http_client_send(w.client, &spec, NULL, &error), SPOOL_E_INVALID);
    finish(&w);
    world_run(&w);
    assert_int_equal(w.a.done, 0);
    world_close(&w);
}

static void test_byte_at_a_time(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND_SLOW,
          .text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"
                  "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    post_source(&w.a, 10);
    world_run(&w);
    assert_int_equal(w.a.status, 200);
    assert_string_equal(w.a.body, "abcde");
    assert_body_whole(&w, 0, 10);
    world_close(&w);
}

static void test_long_reply_is_cut(void **state)
{
    static const struct script script = {
        {{.kind = STEP_HEAD},
         {.kind = STEP_SEND,
          .text = "HTTP/1.1 200 OK\r\nContent-Length: 130\r\n\r\n"
                  "0123456789012345678901234567890123456789012345678901234567890123456789"
                  "012345678901234567890123456789012345678901234567890123456789"}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    get(&w.a, 0);
    world_run(&w);
    assert_int_equal(w.a.status, 200);
    assert_int_equal(w.a.body_size, 100);
    assert_true(w.a.body_cut);
    world_close(&w);
}

static void test_redirect_is_not_followed(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND,
          .text = "HTTP/1.1 307 Go\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    post_source(&w.a, 10);
    world_run(&w);
    assert_int_equal(w.a.status, 307);
    assert_int_equal(w.server.requests, 1);
    world_close(&w);
}

/* --- no whole answer -------------------------------------------------------------------------- */

static void expect_broken(const struct script *script, size_t size)
{
    struct world w;

    world_open(&w, script, 1);
    post_source(&w.a, size);
    world_run(&w);
    assert_int_equal(w.a.done, 1);
    assert_int_equal(w.a.status, 0);
    assert_false(w.a.timed_out);
    assert_false(w.a.ended_here);
    assert_true(strlen(w.a.transport_error) > 0);
    assert_int_equal(w.server.connection_count, 1);
    world_close(&w);
}

static void test_cut_inside_the_answer(void **state)
{
    static const struct script in_body = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"},
         {.kind = STEP_CLOSE}}};
    static const struct script in_chunks = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND,
          .text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"},
         {.kind = STEP_CLOSE}}};
    static const struct script in_head = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nContent-Le"},
         {.kind = STEP_CLOSE}}};
    static const struct script behind_length = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Click"},
         {.kind = STEP_CLOSE}}};
    static const struct script before_last_chunk = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"},
         {.kind = STEP_CLOSE}}};
    static const struct script no_length = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"},
         {.kind = STEP_CLOSE}}};
    static const struct script reset = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"},
         {.kind = STEP_RESET}}};

    (void)state;
    expect_broken(&in_body, 100);
    expect_broken(&in_chunks, 100);
    expect_broken(&in_head, 100);
    expect_broken(&before_last_chunk, 100);
    expect_broken(&no_length, 100);
    expect_broken(&behind_length, 100);
    expect_broken(&reset, 100);
}

/* A server that does not read the body to its end resets the connection behind its answer. */
static void test_answer_before_a_reset(void **state)
{
    static const struct script scripts[] = {
        {{{.kind = STEP_BODY}, {.kind = STEP_SEND_RESET, .text = REFUSED}}},
        {{{.kind = STEP_HEAD}, {.kind = STEP_SEND_RESET, .text = REFUSED}}}};
    static const size_t sizes[] = {100, 5000000};
    static struct world w;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        world_open(&w, &scripts[i], 1);
        post_source(&w.a, sizes[i]);
        world_run(&w);
        assert_int_equal(w.a.done, 1);
        assert_string_equal(w.a.transport_error, "");
        assert_int_equal(w.a.status, 500);
        assert_string_equal(w.a.exception_code, "252");
        assert_string_equal(w.a.body, "Too many parts");
        world_close(&w);
    }
}

static void test_closed_before_the_answer(void **state)
{
    static const struct script closed = {{{.kind = STEP_BODY}, {.kind = STEP_CLOSE}}};
    static const struct script reset = {{{.kind = STEP_BODY}, {.kind = STEP_RESET}}};
    static const struct script early = {{{.kind = STEP_HEAD}, {.kind = STEP_RESET}}};
    static const struct script at_once = {{{.kind = STEP_RESET}}};

    (void)state;
    expect_broken(&closed, 100);
    expect_broken(&reset, 100);
    expect_broken(&early, 5000000);
    expect_broken(&at_once, 100);
}

static void test_garbage_answer(void **state)
{
    static const struct script garbage = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "SSH-2.0-OpenSSH_9.2\r\n\r\n"},
         {.kind = STEP_CLOSE}}};
    static const struct script bad_status = {{{.kind = STEP_BODY},
                                              {.kind = STEP_SEND, .text = "HTTP/1.1 abc\r\n\r\n"},
                                              {.kind = STEP_CLOSE}}};
    static const struct script bad_chunk = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"},
         {.kind = STEP_CLOSE}}};

    (void)state;
    expect_broken(&garbage, 100);
    expect_broken(&bad_status, 100);
    expect_broken(&bad_chunk, 100);
}

static void test_refused(void **state)
{
    static const struct script script = {{{.kind = STEP_HEAD}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    scripted_server_stop_listening(&w.server);
    post_source(&w.a, 100);
    world_run(&w);
    assert_int_equal(w.a.done, 1);
    assert_int_equal(w.a.status, 0);
    assert_false(w.a.connected);
    assert_int_equal(w.a.body_sent, 0);
    world_close(&w);
}

/* One descriptor listens there, the other one holds the only place: no further SYN is answered. */
static void fill_backlog(char *url, size_t size, int fds[2])
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(at);

    fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fds[0], (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(fds[0], 0), 0);
    assert_int_equal(getsockname(fds[0], (struct sockaddr *)&at, &length), 0);
    assert_int_equal(connect(fds[1], (struct sockaddr *)&at, sizeof(at)), 0);
    snprintf(url, size, "http://127.0.0.1:%d", ntohs(at.sin_port));
}

static void get_b(struct exchange *e)
{
    get(&e->world->b, 50);
}

/* libcurl does not tell that it closes such a connection. */
static void test_connect_times_out(void **state)
{
    static const struct script script = {{{.kind = STEP_HEAD}}};
    struct world w;
    int fds[2];

    (void)state;
    world_open(&w, &script, 1);
    fill_backlog(w.server.url, sizeof(w.server.url), fds);
    w.a.then = get_b;
    get(&w.a, 50);
    world_run(&w);
    assert_int_equal(w.b.status, 0);
    assert_true(w.a.timed_out && w.b.timed_out);
    assert_false(w.a.connected || w.b.connected);
    close(fds[0]);
    close(fds[1]);
    world_close(&w);
}

static void test_stall(void **state)
{
    static const struct script no_answer = {{{.kind = STEP_BODY}, {.kind = STEP_HOLD}}};
    static const struct script half_answer = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"}}};
    static const struct script deaf = {{{.kind = STEP_HEAD}, {.kind = STEP_DEAF}}};
    const struct script *scripts[] = {&no_answer, &half_answer, &deaf};

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct world w;
        world_open(&w, scripts[i], 1);
        post_source(&w.a, i == 2 ? 50000000 : 100);
        world_run(&w);
        assert_int_equal(w.a.status, 0);
        assert_true(w.a.timed_out);
        assert_true(w.a.connected);
        assert_false(w.a.ended_here);
        world_close(&w);
    }
}

static void test_stall_of_a_patient_request(void **state)
{
    static const struct script script = {{{.kind = STEP_BODY}, {.kind = STEP_HOLD}}};
    uint64_t start = clock_monotonic_ms();
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    w.a.stall_factor = 4;
    post_source(&w.a, 100);
    world_run(&w);
    assert_true(w.a.timed_out);
    assert_true(clock_monotonic_ms() - start >= 4 * STALL_MS);
    world_close(&w);
}

static void test_total_timeout(void **state)
{
    static const struct script script = {{{.kind = STEP_HEAD}, {.kind = STEP_HOLD}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    get(&w.a, 30);
    world_run(&w);
    assert_int_equal(w.a.status, 0);
    assert_true(w.a.timed_out);
    world_close(&w);
}

/* --- the body's source ------------------------------------------------------------------------ */

static void test_body_paused_and_resumed(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    w.a.source_waits = 3;
    w.a.source_step = 10000;
    post_source(&w.a, 1000000);
    world_run(&w);
    assert_int_equal(w.a.status, 200);
    assert_body_whole(&w, 0, 1000000);
    world_close(&w);
}

static void resume_later(uv_timer_t *timer)
{
    struct exchange *e = timer->data;
    e->source_never = false;
    http_request_resume(e->request);
}

/* A source slower than the stall limit is no stall of the server. */
static void test_slow_source_is_no_stall(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    w.a.source_never = true;
    post_source(&w.a, 1000);
    uv_timer_start(&w.a.wake, resume_later, 2 * STALL_MS, 0);
    world_run(&w);
    assert_int_equal(w.a.status, 200);
    assert_body_whole(&w, 0, 1000);
    world_close(&w);
}

static void test_source_gives_up(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    w.a.source_abort_at = 70000;
    w.a.source_step = 10000;
    post_source(&w.a, 1000000);
    world_run(&w);
    assert_int_equal(w.a.status, 0);
    assert_true(w.a.ended_here);
    assert_int_equal(w.a.body_sent, 70000);
    /* A reset, not an end: a server that takes the end for the end of the body stores half. */
    assert_false(w.server.connections[0]->eof);
    world_close(&w);
}

/* --- cancel ----------------------------------------------------------------------------------- */

static void cancel_a(void *arg)
{
    struct exchange *e = arg;
    e->inside_call = true;
    http_request_cancel(e->request);
    e->inside_call = false;
}

static void expect_cancelled(struct world *w)
{
    world_run(w);
    assert_int_equal(w->a.done, 1);
    assert_int_equal(w->a.status, 0);
    assert_true(w->a.ended_here);
    assert_string_equal(w->a.transport_error, "cancelled");
}

static void test_cancel_before_start(void **state)
{
    static const struct script script = {{{.kind = STEP_HEAD}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    post_source(&w.a, 100);
    cancel_a(&w.a);
    expect_cancelled(&w);
    assert_int_equal(w.server.connection_count, 0);
    world_close(&w);
}

static void test_cancel_while_sending(void **state)
{
    static struct world w;
    static const struct script script = {{{.kind = STEP_HEAD},
                                          {.kind = STEP_BYTES, .count = 1000},
                                          {.kind = STEP_CALL, .call = cancel_a, .arg = &w.a}}};

    (void)state;
    world_open(&w, &script, 1);
    post_source(&w.a, 50000000);
    expect_cancelled(&w);
    assert_false(w.server.connections[0]->eof);
    world_close(&w);
}

static void test_cancel_while_paused(void **state)
{
    static struct world w;
    static const struct script script = {
        {{.kind = STEP_HEAD}, {.kind = STEP_CALL, .call = cancel_a, .arg = &w.a}}};

    (void)state;
    world_open(&w, &script, 1);
    w.a.source_never = true;
    post_source(&w.a, 100);
    expect_cancelled(&w);
    world_close(&w);
}

static void test_cancel_while_waiting(void **state)
{
    static struct world w;
    static const struct script script = {
        {{.kind = STEP_BODY}, {.kind = STEP_CALL, .call = cancel_a, .arg = &w.a}}};

    (void)state;
    world_open(&w, &script, 1);
    post_source(&w.a, 100);
    expect_cancelled(&w);
    world_close(&w);
}

static void test_cancel_inside_the_answer(void **state)
{
    static struct world w;
    static const struct script script = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"},
         {.kind = STEP_CALL, .call = cancel_a, .arg = &w.a}}};

    (void)state;
    world_open(&w, &script, 1);
    post_source(&w.a, 100);
    expect_cancelled(&w);
    world_close(&w);
}

static void test_close_cancels(void **state)
{
    static struct world w;
    static const struct script script = {{{.kind = STEP_BODY}, {.kind = STEP_HOLD}}};

    (void)state;
    world_open(&w, &script, 1);
    post_source(&w.a, 100);
    post_source(&w.b, 100);
    w.a.close_when_done = w.b.close_when_done = false;
    finish(&w);
    world_run(&w);
    assert_int_equal(w.a.done, 1);
    assert_int_equal(w.b.done, 1);
    world_close(&w);
}

/* --- a connection used again ------------------------------------------------------------------ */

static void post_b(struct exchange *e)
{
    post_source(&e->world->b, 5000);
}

static void test_keep_alive(void **state)
{
    static const struct script script = {{{.kind = STEP_BODY},
                                          {.kind = STEP_SEND, .text = OK_EMPTY},
                                          {.kind = STEP_BODY},
                                          {.kind = STEP_SEND, .text = OK_EMPTY}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    w.a.then = post_b;
    post_source(&w.a, 100);
    world_run(&w);
    assert_int_equal(w.b.status, 200);
    assert_int_equal(w.server.connection_count, 1);
    assert_int_equal(w.server.requests, 2);
    world_close(&w);
}

static void close_client_only(struct exchange *e)
{
    http_client_close(e->world->client, on_closed, e->world);
    scripted_server_stop_listening(&e->world->server);
}

/* Only a connection with a request under way is reset; an idle one ends in order. */
static void test_idle_connection_ends_in_order(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}, {.kind = STEP_HOLD}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    w.a.then = close_client_only;
    post_source(&w.a, 100);
    world_run(&w);
    assert_int_equal(w.a.status, 200);
    assert_true(w.server.connections[0]->eof);
    world_close(&w);
}

static void close_client_in_b(void *arg)
{
    close_client_only(arg);
}

/* Also where the connection was idle before. */
static void test_request_on_a_reused_connection_is_reset(void **state)
{
    static struct world w;
    static const struct script script = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND, .text = OK_EMPTY},
         {.kind = STEP_HEAD},
         {.kind = STEP_BYTES, .count = 1000},
         {.kind = STEP_CALL, .call = close_client_in_b, .arg = &w.b}}};

    (void)state;
    world_open(&w, &script, 1);
    w.a.then = post_b;
    w.b.close_when_done = false;
    post_source(&w.a, 100);
    world_run(&w);
    assert_int_equal(w.b.status, 0);
    assert_int_equal(w.server.connection_count, 1);
    assert_false(w.server.connections[0]->eof);
    world_close(&w);
}

/* A server that keeps idle connections for 2 s or less is given a new one each time. */
static void test_short_keep_alive_is_not_used(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY},
         {.kind = STEP_SEND,
          .text = "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=2\r\nContent-Length: 0\r\n\r\n"}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    w.a.then = post_b;
    post_source(&w.a, 100);
    world_run(&w);
    assert_int_equal(w.b.status, 200);
    assert_int_equal(w.server.connection_count, 2);
    world_close(&w);
}

/* An answer that nobody asked for: with the one before, or while the connection is idle. */
static void post_b_later(uv_timer_t *timer)
{
    struct exchange *e = timer->data;

    uv_close((uv_handle_t *)timer, NULL);
    post_source(&e->world->b, 5000);
}

static void answer_unasked(struct exchange *e)
{
    static uv_timer_t timer;
    uv_buf_t data = uv_buf_init((char *)(uintptr_t)OK_EMPTY, sizeof(OK_EMPTY) - 1);

    assert_int_equal(uv_try_write((uv_stream_t *)&e->world->server.connections[0]->tcp, &data, 1),
                     data.len);
    uv_timer_init(&e->world->loop, &timer);
    timer.data = e;
    uv_timer_start(&timer, post_b_later, 20, 0);
}

static void post_a_again(struct exchange *e)
{
    assert_int_equal(e->world->a.status, 200);
    e->world->a.then = NULL;
    post_source(&e->world->a, 100);
}

static void test_answers_that_nobody_asked_for(void **state)
{
    static const struct script scripts[2][2] = {
        {{{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY OK_EMPTY}}},
         {{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = REFUSED}}}},
        {{{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}},
         {{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = REFUSED}}}},
    };

    (void)state;
    for (int idle = 0; idle < 2; idle++) {
        struct world w;
        world_open(&w, scripts[idle], 2);
        w.a.then = idle ? answer_unasked : post_b;
        w.b.then = post_a_again;
        post_source(&w.a, 100);
        world_run(&w);
        assert_int_equal(w.a.status, 500); /* on a connection of its own */
        assert_int_equal(w.server.connection_count, 2);
        assert_int_equal(w.b.status, 0);
        assert_string_equal(w.b.transport_error, idle ? "the server sent what nobody had asked for"
                                                      : "the server did not answer for too long");
        assert_true(idle ? w.b.body_sent == 0 : w.b.body_sent == 5000);
        world_close(&w);
    }
}

static void watch_idle_close(uv_timer_t *timer)
{
    struct exchange *e = timer->data;
    struct world *w = e->world;

    if (!w->server.connections[0]->closed)
        return;
    uv_close((uv_handle_t *)timer, NULL);
    post_source(&w->b, 5000);
}

static void when_server_closed(struct exchange *e)
{
    static uv_timer_t timer;
    uv_timer_init(&e->world->loop, &timer);
    timer.data = e;
    uv_timer_start(&timer, watch_idle_close, 0, 1);
}

static void test_idle_connection_closed_by_the_server(void **state)
{
    static const struct script scripts[] = {
        {{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}, {.kind = STEP_CLOSE}}},
        {{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}}};
    struct world w;

    (void)state;
    world_open(&w, scripts, 2);
    w.a.then = when_server_closed;
    post_source(&w.a, 100);
    world_run(&w);
    assert_int_equal(w.b.done, 1);
    assert_int_equal(w.b.status, 200);
    assert_int_equal(w.server.connection_count, 2);
    assert_int_equal(scripted_server_body_bytes(&w.server, 0), 100);
    assert_body_whole(&w, 1, 5000);
    world_close(&w);
}

/* The server gives up the connection when the second request is on its way: told, not repeated. */
static void expect_not_repeated(const struct script *scripts, size_t second_size)
{
    struct world w;

    world_open(&w, scripts, 2);
    w.b.source_size = second_size;
    w.a.then = post_b;
    post_source(&w.a, 100);
    world_run(&w);
    assert_int_equal(w.a.status, 200);
    assert_int_equal(w.b.done, 1);
    assert_int_equal(w.b.status, 0);
    assert_true(w.b.connected);
    assert_true(w.b.body_sent > 0);
    assert_false(w.b.timed_out);
    for (size_t i = 1; i < w.server.connection_count; i++)
        assert_int_equal(scripted_server_body_bytes(&w.server, i), 0);
    world_close(&w);
}

static void test_reused_connection_dies(void **state)
{
    static const struct script reset[] = {
        {{{.kind = STEP_BODY},
          {.kind = STEP_SEND, .text = OK_EMPTY},
          {.kind = STEP_HEAD},
          {.kind = STEP_RESET}}},
        {{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}}};
    static const struct script closed[] = {
        {{{.kind = STEP_BODY},
          {.kind = STEP_SEND, .text = OK_EMPTY},
          {.kind = STEP_HEAD},
          {.kind = STEP_CLOSE}}},
        {{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}}};
    static const struct script after_body[] = {
        {{{.kind = STEP_BODY},
          {.kind = STEP_SEND, .text = OK_EMPTY},
          {.kind = STEP_BODY},
          {.kind = STEP_CLOSE}}},
        {{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}}};

    (void)state;
    expect_not_repeated(reset, 5000);
    expect_not_repeated(closed, 5000);
    expect_not_repeated(after_body, 5000);
}

/* The same before any byte of the body was taken: told, or the whole body once on a fresh one. */
static void resume_b_later(void *arg)
{
    struct exchange *e = arg;
    uv_timer_start(&e->wake, resume_later, 0, 0);
}

static void test_reused_connection_dies_before_the_body(void **state)
{
    static struct world w;
    static const struct script scripts[] = {
        {{{.kind = STEP_BODY},
          {.kind = STEP_SEND, .text = OK_EMPTY},
          {.kind = STEP_HEAD},
          {.kind = STEP_CALL, .call = resume_b_later, .arg = &w.b},
          {.kind = STEP_CLOSE}}},
        {{{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}}};

    (void)state;
    world_open(&w, scripts, 2);
    w.b.source_never = true;
    w.a.then = post_b;
    post_source(&w.a, 100);
    world_run(&w);
    assert_int_equal(w.b.done, 1);
    if (w.b.status == 200)
        assert_body_whole(&w, 1, 5000);
    else if (w.server.connection_count > 1)
        assert_int_equal(scripted_server_body_bytes(&w.server, 1), 0);
    world_close(&w);
}

static void test_many_at_once(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}};
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    w.a.close_when_done = false;
    w.b.source_step = 50000;
    post_source(&w.a, 100000);
    post_source(&w.b, 3000000);
    world_run(&w);
    assert_int_equal(w.a.status, 200);
    assert_int_equal(w.b.status, 200);
    assert_int_equal(w.server.connection_count, 2);
    world_close(&w);
}

/* The environment's proxy is not for us. */
static void test_environment_proxy_unused(void **state)
{
    static const struct script script = {
        {{.kind = STEP_BODY}, {.kind = STEP_SEND, .text = OK_EMPTY}}};
    struct world w;

    (void)state;
    setenv("http_proxy", "http://127.0.0.1:1", 1);
    setenv("all_proxy", "http://127.0.0.1:1", 1);
    world_open(&w, &script, 1);
    post_source(&w.a, 100);
    world_run(&w);
    unsetenv("http_proxy");
    unsetenv("all_proxy");
    assert_int_equal(w.a.status, 200);
    world_close(&w);
}

static void test_only_http(void **state)
{
    static const struct script script = {{{.kind = STEP_BODY}}};
    struct http_request_spec spec = {.url = "file:///etc/hostname", .done = on_done};
    struct spool_error error;
    struct world w;

    (void)state;
    world_open(&w, &script, 1);
    spec.arg = &w.a;
    assert_int_equal(http_client_send(w.client, &spec, NULL, &error), SPOOL_OK);
    world_run(&w);
    assert_int_equal(w.a.status, 0);
    assert_int_equal(w.a.body_size, 0);
    assert_false(w.a.connected);
    world_close(&w);
}

static void test_escape(void **state)
{
    struct buf out;

    (void)state;
    buf_init(&out, 1000);
    assert_int_equal(http_escape(&out, "aZ09-_.~ &=%\xc3\xa9", 14), SPOOL_OK);
    assert_string_equal(buf_cstr(&out), "aZ09-_.~%20%26%3D%25%C3%A9");
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_answer),
        cmocka_unit_test(test_small_body_and_headers),
        cmocka_unit_test(test_header_injection_refused),
        cmocka_unit_test(test_byte_at_a_time),
        cmocka_unit_test(test_long_reply_is_cut),
        cmocka_unit_test(test_redirect_is_not_followed),
        cmocka_unit_test(test_cut_inside_the_answer),
        cmocka_unit_test(test_answer_before_a_reset),
        cmocka_unit_test(test_closed_before_the_answer),
        cmocka_unit_test(test_garbage_answer),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_connect_times_out),
        cmocka_unit_test(test_stall),
        cmocka_unit_test(test_stall_of_a_patient_request),
        cmocka_unit_test(test_total_timeout),
        cmocka_unit_test(test_body_paused_and_resumed),
        cmocka_unit_test(test_slow_source_is_no_stall),
        cmocka_unit_test(test_source_gives_up),
        cmocka_unit_test(test_cancel_before_start),
        cmocka_unit_test(test_cancel_while_sending),
        cmocka_unit_test(test_cancel_while_paused),
        cmocka_unit_test(test_cancel_while_waiting),
        cmocka_unit_test(test_cancel_inside_the_answer),
        cmocka_unit_test(test_close_cancels),
        cmocka_unit_test(test_keep_alive),
        cmocka_unit_test(test_answers_that_nobody_asked_for),
        cmocka_unit_test(test_idle_connection_ends_in_order),
        cmocka_unit_test(test_request_on_a_reused_connection_is_reset),
        cmocka_unit_test(test_short_keep_alive_is_not_used),
        cmocka_unit_test(test_idle_connection_closed_by_the_server),
        cmocka_unit_test(test_reused_connection_dies),
        cmocka_unit_test(test_reused_connection_dies_before_the_body),
        cmocka_unit_test(test_many_at_once),
        cmocka_unit_test(test_environment_proxy_unused),
        cmocka_unit_test(test_only_http),
        cmocka_unit_test(test_escape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
