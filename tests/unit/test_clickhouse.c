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
#include "codec/frame.h"
#include "sink/clickhouse_int.h"
#include "sink/sql_text.h"

#include "scripted_server.c"

#define IDENTITY_OLD "18.16.1\tEurope/Berlin\t1795437296\n"
#define IDENTITY_NEW "26.7.2.1\tUTC\t1795437296\n"
#define BLOCKS       "these bytes stand for the frames of blocks"

/* What a scenario saw. */
struct world {
    uv_loop_t loop;
    struct scripted_server server;
    struct clickhouse *ch;
    char *replies[SCRIPT_STEPS * 4]; /* to be freed */
    size_t reply_count;
    unsigned ups, downs;
    int64_t start_ms;               /* of the server, when it was last up */
    void (*on_up)(struct world *w); /* the first time */
    void (*on_down)(struct world *w);
    bool closed, keep_open;
    unsigned done;
    struct clickhouse_outcome outcome;
    struct table_description *table;
    char text[256];
    size_t body_at;
    bool body_never;
    struct insert *insert;
    char reason[256];
};

static struct world *current;

static char *reply(struct world *w, const char *status, const char *headers, const char *body)
{
    char *text = NULL;

    assert_true(asprintf(&text, "HTTP/1.1 %s\r\n%sContent-Length: %zu\r\n\r\n%s", status, headers,
                         strlen(body), body) > 0);
    assert_true(w->reply_count < sizeof(w->replies) / sizeof(w->replies[0]));
    w->replies[w->reply_count++] = text;
    return text;
}

static void on_closed(void *arg)
{
    struct world *w = arg;
    w->closed = true;
    scripted_server_close(&w->server);
}

static void finish(struct world *w)
{
    clickhouse_close(w->ch, on_closed, w);
}

static void on_changed(void *arg, size_t endpoint, enum endpoint_state state)
{
    struct world *w = arg;
    struct endpoint_status status;

    clickhouse_endpoint_status(w->ch, endpoint, &status);
    assert_int_equal(status.state, state);
    if (state == ENDPOINT_UP) {
        assert_int_equal(clickhouse_pick(w->ch), (int)endpoint);
        assert_true(clickhouse_server_start(w->ch, endpoint, &w->start_ms));
        if (w->ups++ == 0 && w->on_up)
            w->on_up(w);
        else if (w->ups > 1 && w->downs > 0)
            finish(w);
    } else {
        snprintf(w->reason, sizeof(w->reason), "%s", status.reason);
        if (w->downs++ == 0 && w->on_down)
            w->on_down(w);
    }
}

static void begin(struct world *w, const struct script *scripts, size_t count,
                  const struct clickhouse_options *given)
{
    struct clickhouse_options options = given ? *given : (struct clickhouse_options){0};
    const char *urls[1];
    struct spool_error error;

    alarm(60);
    current = w;
    assert_int_equal(uv_loop_init(&w->loop), 0);
    scripted_server_start(&w->server, &w->loop, scripts, count);
    urls[0] = w->server.url;
    options.urls = urls;
    options.url_count = 1;
    options.stall_timeout_ms = 300;
    assert_int_equal(clickhouse_create(&w->loop, &options, on_changed, w, &w->ch, &error),
                     SPOOL_OK);
    clickhouse_start(w->ch);
}

static void run(struct world *w)
{
    assert_int_equal(uv_run(&w->loop, UV_RUN_DEFAULT), 0);
    assert_true(w->closed);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    alarm(0);
}

static void end(struct world *w)
{
    scripted_server_free(&w->server);
    table_description_free(w->table);
    for (size_t i = 0; i < w->reply_count; i++)
        free(w->replies[i]);
}

/* A connection that answers the identity question and then each of the given replies in turn. */
static struct script answers(char *first, char *second, char *third, char *fourth)
{
    char *texts[] = {first, second, third, fourth};
    struct script script = {0};

    for (size_t i = 0; i < 4 && texts[i]; i++) {
        script.steps[2 * i].kind = STEP_BODY;
        script.steps[2 * i + 1].kind = STEP_SEND;
        script.steps[2 * i + 1].text = texts[i];
    }
    return script;
}

static const char *received_text(const struct world *w, size_t connection)
{
    return (const char *)w->server.connections[connection]->in.data;
}

/* The i-th request head and body on a connection. */
static const char *request_of(const struct world *w, size_t connection, unsigned i)
{
    const struct buf *in = &w->server.connections[connection]->in;
    const char *at = (const char *)in->data, *last = at + in->len;

    for (; i > 0 && at; i--) {
        const char *body = memmem(at, (size_t)(last - at), "\r\n\r\n", 4);
        const char *length;
        assert_non_null(body);
        length = memmem(at, (size_t)(body - at), "Content-Length: ", 16);
        at = body + 4 + (length ? strtoul(length + 16, NULL, 10) : 0);
    }
    return at;
}

/* --- inserts ---------------------------------------------------------------------------------- */

static size_t read_blocks(void *arg, char *dst, size_t n)
{
    struct world *w = arg;
    size_t left = strlen(BLOCKS) - w->body_at;

    if (w->body_never)
        return 0;
    if (n > left)
        n = left;
    memcpy(dst, BLOCKS + w->body_at, n);
    w->body_at += n;
    return n;
}

static void insert_done(void *arg, const struct clickhouse_outcome *outcome)
{
    struct world *w = arg;

    w->done++;
    w->outcome = *outcome;
    if (!w->keep_open && !w->closed)
        finish(w);
}

static void start_insert(struct world *w)
{
    struct insert_spec spec = {.database = "d`b",
                               .table = "t",
                               .column_list = "`a`, `b`",
                               .native = true,
                               .settings = "async_insert=0&x=1",
                               .token = "uuid-s-7 &",
                               .query_id = "q 1",
                               .method = FRAME_LZ4,
                               .frames_bytes = strlen(BLOCKS),
                               .read_body = read_blocks,
                               .arg = w,
                               .done = insert_done};
    struct spool_error error;

    assert_int_equal(clickhouse_insert(w->ch, 0, &spec, &w->insert, &error), SPOOL_OK);
}

static void expect_insert(struct world *w, const char *identity, char *answer,
                          const struct clickhouse_options *options)
{
    struct script script = answers(reply(w, "200 OK", "", identity), answer, NULL, NULL);

    w->on_up = start_insert;
    begin(w, &script, 1, options);
    run(w);
    assert_int_equal(w->done, 1);
}

static void test_insert(void **state)
{
    struct clickhouse_setting setting = {"max_memory_usage", "10 %"};
    struct clickhouse_options options = {.user = "alice",
                                         .password = "s3cret",
                                         .database = "other",
                                         .settings = &setting,
                                         .setting_count = 1};
    struct world w = {0};
    struct spool_error error;
    struct buf query;
    const char *request, *body;
    size_t size;

    (void)state;
    expect_insert(&w, IDENTITY_NEW, reply(&w, "200 OK", "", ""), &options);
    assert_int_equal(w.outcome.class_, CLASS_NONE);
    assert_int_equal(w.outcome.http_status, 200);
    assert_false(w.outcome.unknown);
    assert_true(w.outcome.duration_ns > 0);
    request = request_of(&w, 0, 1);
    assert_ptr_equal(request,
                     strstr(request, "POST /?decompress=1&wait_end_of_query=1&query_id=q%201&"
                                     "insert_deduplication_token=uuid-s-7%20%26&"
                                     "max_memory_usage=10%20%25&async_insert=0&x=1 HTTP/1.1\r\n"));
    assert_non_null(strstr(request, "\r\nX-ClickHouse-User: alice\r\n"));
    assert_non_null(strstr(request, "\r\nX-ClickHouse-Key: s3cret\r\n"));
    /* the query's own frame, then the blocks untouched */
    body = strstr(request, "\r\n\r\n") + 4;
    size = w.server.connections[0]->in.len -
           (size_t)(body - (const char *)w.server.connections[0]->in.data);
    assert_true(size > strlen(BLOCKS));
    assert_memory_equal(body + size - strlen(BLOCKS), BLOCKS, strlen(BLOCKS));
    buf_init(&query, 1000);
    assert_int_equal(frames_open(body, size - strlen(BLOCKS), &query, &error), SPOOL_OK);
    assert_string_equal(buf_cstr(&query), "INSERT INTO `d\\`b`.`t` (`a`, `b`) FORMAT Native\n");
    buf_free(&query);
    end(&w);
}

static void test_old_server_gets_no_token(void **state)
{
    struct world w = {0};

    (void)state;
    expect_insert(&w, IDENTITY_OLD, reply(&w, "200 OK", "", ""), NULL);
    assert_int_equal(w.outcome.class_, CLASS_NONE);
    assert_null(strstr(received_text(&w, 0), "token"));
    assert_null(strstr(received_text(&w, 0), "X-ClickHouse-User"));
    end(&w);
}

static void test_insert_refused(void **state)
{
    struct world w = {0};

    (void)state;
    expect_insert(&w, IDENTITY_OLD,
                  reply(&w, "404 Not Found", "",
                        "Code: 60, e.displayText() = DB::Exception: Table x doesn't exist.,\n"
                        "e.what() = DB::Exception\n"),
                  NULL);
    assert_int_equal(w.outcome.class_, CLASS_ENVIRONMENT);
    assert_int_equal(w.outcome.code, 60);
    assert_int_equal(w.outcome.http_status, 404);
    assert_false(w.outcome.unknown);
    assert_string_equal(w.outcome.text,
                        "Code: 60, e.displayText() = DB::Exception: Table x doesn't exist., "
                        "e.what() = DB::Exception");
    assert_int_equal(w.downs, 0);
    end(&w);
}

static void test_exception_behind_a_200(void **state)
{
    struct world w = {0};

    (void)state;
    expect_insert(&w, IDENTITY_OLD, reply(&w, "200 OK", "", "Code: 241, e.displayText() = memory"),
                  NULL);
    assert_int_equal(w.outcome.class_, CLASS_TOO_BIG);
    assert_int_equal(w.outcome.code, 241);
    assert_true(w.outcome.unknown);
    end(&w);
}

/* Broken off after the whole body: the endpoint is down, probed, and up again. */
static void test_insert_broken_off(void **state)
{
    struct world w = {.keep_open = true};
    struct script scripts[2] = {{{{0}}}};

    (void)state;
    scripts[0] = answers(reply(&w, "200 OK", "", IDENTITY_NEW), NULL, NULL, NULL);
    scripts[0].steps[2].kind = STEP_BODY;
    scripts[0].steps[3].kind = STEP_RESET;
    scripts[1] = answers(reply(&w, "200 OK", "", "Ok.\n"), reply(&w, "200 OK", "", IDENTITY_NEW),
                         NULL, NULL);
    w.on_up = start_insert;
    begin(&w, scripts, 2, NULL);
    run(&w);
    assert_int_equal(w.done, 1);
    assert_int_equal(w.outcome.class_, CLASS_TRANSIENT);
    assert_int_equal(w.outcome.http_status, 0);
    assert_true(w.outcome.unknown);
    assert_true(strlen(w.outcome.text) > 0);
    assert_int_equal(w.downs, 1);
    assert_int_equal(w.ups, 2);
    assert_ptr_equal(received_text(&w, 1), strstr(received_text(&w, 1), "GET /ping HTTP/1.1\r\n"));
    end(&w);
}

static void cancel_insert(void *arg)
{
    (void)arg;
    insert_cancel(current->insert);
}

/* Cancelled before a byte of the blocks was given: nothing can be in. The server is not to blame.
 */
static void test_insert_cancelled(void **state)
{
    struct world w = {.body_never = true};
    struct script script = answers(reply(&w, "200 OK", "", IDENTITY_NEW), NULL, NULL, NULL);

    (void)state;
    script.steps[2].kind = STEP_HEAD;
    script.steps[3] = (struct step){.kind = STEP_CALL, .call = cancel_insert};
    w.on_up = start_insert;
    begin(&w, &script, 1, NULL);
    run(&w);
    assert_int_equal(w.done, 1);
    assert_int_equal(w.outcome.class_, CLASS_TRANSIENT);
    assert_false(w.outcome.unknown);
    assert_int_equal(w.downs, 0);
    end(&w);
}

static void close_all(void *arg)
{
    (void)arg;
    finish(current);
}

static void test_close_ends_an_insert(void **state)
{
    struct world w = {.keep_open = true};
    struct script script = answers(reply(&w, "200 OK", "", IDENTITY_NEW), NULL, NULL, NULL);

    (void)state;
    script.steps[2].kind = STEP_BODY;
    script.steps[3] = (struct step){.kind = STEP_CALL, .call = close_all};
    w.on_up = start_insert;
    begin(&w, &script, 1, NULL);
    run(&w);
    assert_int_equal(w.done, 1);
    assert_true(w.outcome.unknown);
    end(&w);
}

static void test_outcomes(void **state)
{
    static const char view[] = "Code: 6. DB::Exception: x: while pushing to view d.v (CANNOT)";
    static const char crowded[] = "Code: 252. DB::Exception: Too many parts (300) in table 'd.t'. "
                                  "Merges are: while pushing to view d.v. (TOO_MANY_PARTS)";
    static const char crowded_old[] = "Code: 252, e.displayText() = DB::Exception: Too many parts "
                                      "(300). Merges are: while pushing to view d.v, e.what() = x";
    static const char scattered[] = "Code: 252. DB::Exception: Too many partitions for single "
                                    "INSERT block: while pushing to view d.v. (TOO_MANY_PARTS)";
    static char long_view[2000]; /* beyond what an outcome keeps */
    const struct {
        struct http_reply reply;
        uint64_t blocks_given;
        enum error_class class_;
        int code;
        bool unknown;
    } rows[] = {
        {{.status = 200, .body = "", .body_sent = 100}, 50, CLASS_NONE, 0, false},
        /* 200, but */
        {{.status = 200, .body = "", .body_sent = 99}, 49, CLASS_UNKNOWN, 0, true},
        {{.status = 200, .body = "", .body_sent = 100, .exception_code = "60"},
         50,
         CLASS_ENVIRONMENT,
         60,
         true},
        {{.status = 200, .body = "Code: 60, x", .body_sent = 100}, 50, CLASS_ENVIRONMENT, 60, true},
        {{.status = 200, .body = "hello", .body_sent = 100}, 50, CLASS_UNKNOWN, 0, true},
        {{.status = 200, .body = "", .body_cut = true, .body_sent = 100},
         50,
         CLASS_UNKNOWN,
         0,
         true},
        {{.status = 204, .body = "", .body_sent = 100}, 50, CLASS_UNKNOWN, 0, true},
        /* no answer */
        {{.transport_error = "reset", .body = "", .connected = true, .body_sent = 51},
         1,
         CLASS_TRANSIENT,
         0,
         true},
        {{.transport_error = "reset", .body = "", .connected = true, .body_sent = 50},
         0,
         CLASS_TRANSIENT,
         0,
         false},
        {{.transport_error = "refused", .body = ""}, 0, CLASS_TRANSIENT, 0, false},
        {{.transport_error = "cut", .body = "Code: 60", .connected = true, .body_sent = 100},
         50,
         CLASS_TRANSIENT,
         0,
         true},
        /* an exception */
        {{.status = 500, .body = "Code: 33, x", .body_sent = 100}, 50, CLASS_UPLOAD, 33, false},
        {{.status = 500, .body = "x", .exception_code = "16"}, 50, CLASS_SCHEMA, 16, false},
        {{.status = 500, .body = "Code: 75, errno: 28"}, 50, CLASS_ENVIRONMENT, 75, true},
        {{.status = 500, .body = "Code: 1001. std::exception"}, 50, CLASS_UNKNOWN, 1001, true},
        {{.status = 500, .body = "Code: 1001. std::exception"}, 0, CLASS_UNKNOWN, 1001, false},
        {{.status = 500, .body = view}, 50, CLASS_DATA, 6, true},
        {{.status = 500, .body = long_view}, 50, CLASS_DATA, 469, true},
        {{.status = 500, .body = crowded}, 50, CLASS_TRANSIENT, 252, true},
        {{.status = 500, .body = crowded_old}, 50, CLASS_TRANSIENT, 252, true},
        {{.status = 500, .body = scattered}, 50, CLASS_ENVIRONMENT, 252, true},
        {{.status = 500, .body = "Code: 117. x"}, 50, CLASS_SCHEMA, 117, false},
        /* no exception: a proxy, another server */
        {{.status = 502, .body = "<html>bad gateway</html>"}, 50, CLASS_TRANSIENT, 0, true},
        {{.status = 503, .body = ""}, 50, CLASS_TRANSIENT, 0, true},
        {{.status = 408, .body = ""}, 50, CLASS_TRANSIENT, 0, true},
        {{.status = 401, .body = ""}, 50, CLASS_ENVIRONMENT, 0, false},
        {{.status = 400, .body = ""}, 50, CLASS_ENVIRONMENT, 0, false},
        {{.status = 307, .body = ""}, 50, CLASS_ENVIRONMENT, 0, true},
    };

    (void)state;
    snprintf(long_view, sizeof(long_view), "Code: 469. %01200d: while pushing to view d.v", 7);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct http_reply r = rows[i].reply;
        struct clickhouse_outcome outcome;
        r.body_size = strlen(r.body);
        outcome_of_insert(&r, true, 100, rows[i].blocks_given, &outcome);
        if (outcome.class_ != rows[i].class_ || outcome.code != rows[i].code ||
            outcome.unknown != rows[i].unknown)
            fail_msg("row %zu: %s %d %d", i, error_class_name(outcome.class_), outcome.code,
                     outcome.unknown);
        assert_int_equal(outcome.before_view, r.body == crowded);
        assert_int_equal(outcome.of_view,
                         strstr(r.body, "pushing to view") && !outcome.before_view);
        assert_true((outcome.class_ == CLASS_NONE) == (outcome.text[0] == '\0'));
    }
}

/* --- endpoints -------------------------------------------------------------------------------- */

static void up_then_finish(struct world *w)
{
    struct server_version version;
    const char *timezone;
    int64_t start_ms;

    assert_true(clickhouse_server(w->ch, 0, &version, &timezone));
    assert_int_equal(version.major, 18);
    assert_int_equal(version.minor, 16);
    assert_int_equal(version.patch, 1);
    assert_string_equal(timezone, "Europe/Berlin");
    assert_true(clickhouse_server_start(w->ch, 0, &start_ms));
    assert_true(start_ms == INT64_C(1795437296000));
    finish(w);
}

static void test_identity(void **state)
{
    struct world w = {.on_up = up_then_finish};
    struct script script = answers(reply(&w, "200 OK", "", IDENTITY_OLD), NULL, NULL, NULL);

    (void)state;
    begin(&w, &script, 1, NULL);
    assert_int_equal(clickhouse_pick(w.ch), -1);
    run(&w);
    assert_int_equal(w.ups, 1);
    assert_non_null(strstr(received_text(&w, 0), "toUnixTimestamp(now()) - uptime()"));
    end(&w);
}

static void test_down_then_up(void **state)
{
    struct world w = {.ups = 1}; /* the next one ends it */
    struct script scripts[2] = {{{{.kind = STEP_RESET}}}};

    (void)state;
    scripts[1] = answers(reply(&w, "200 OK", "", "Ok.\n"), reply(&w, "200 OK", "", IDENTITY_OLD),
                         NULL, NULL);
    begin(&w, scripts, 2, NULL);
    run(&w);
    assert_int_equal(w.downs, 1);
    assert_int_equal(w.ups, 2);
    assert_true(strlen(w.reason) > 0);
    end(&w);
}

static void no_answer(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                      size_t size)
{
    struct world *w = arg;

    (void)text;
    (void)size;
    assert_int_equal(outcome->http_status, 0);
    w->done++;
}

static void ask_twice(struct world *w)
{
    struct spool_error error;

    for (int i = 0; i < 2; i++)
        assert_int_equal(clickhouse_query(w->ch, 0, "SELECT 1", 1000, no_answer, w, &error),
                         SPOOL_OK);
}

static void server_dies(void *arg)
{
    struct world *w = arg;

    assert_int_equal(w->done, 1);
    connection_end(w->server.connections[1], true);
}

/* It said who it is, and another request broke off before that was read: it may have been its last
   word, and the server that is there now began later. */
static void test_restart_while_probed(void **state)
{
    struct world w = {.on_up = ask_twice};
    struct script scripts[3] = {{{{0}}}};
    char *identity = reply(&w, "200 OK", "", IDENTITY_NEW);

    (void)state;
    scripts[0].steps[0].kind = STEP_BODY;
    scripts[0].steps[1] = (struct step){.kind = STEP_SEND, .text = identity};
    scripts[0].steps[2].kind = STEP_BODY;
    scripts[0].steps[3].kind = STEP_RESET;
    scripts[2].steps[0].kind = STEP_BODY;
    scripts[2].steps[1] =
        (struct step){.kind = STEP_SEND, .text = reply(&w, "200 OK", "", "Ok.\n")};
    scripts[2].steps[2].kind = STEP_BODY;
    scripts[2].steps[3] = (struct step){.kind = STEP_CALL, .call = server_dies, .arg = &w};
    scripts[2].steps[4] = (struct step){.kind = STEP_SEND, .text = identity};
    scripts[2].steps[5].kind = STEP_BODY;
    scripts[2].steps[6] = (struct step){
        .kind = STEP_SEND, .text = reply(&w, "200 OK", "", "26.7.2.1\tUTC\t1795437300\n")};
    begin(&w, scripts, 3, NULL);
    run(&w);
    assert_int_equal(w.done, 2);
    assert_int_equal(w.ups, 2);
    assert_true(w.start_ms == INT64_C(1795437300000));
    end(&w);
}

static void expect_down(char *(*make)(struct world *w), const char *reason)
{
    struct world w = {.on_down = finish};
    struct script script = answers(make(&w), NULL, NULL, NULL);

    begin(&w, &script, 1, NULL);
    run(&w);
    assert_int_equal(w.ups, 0);
    assert_non_null(strstr(w.reason, reason));
    end(&w);
}

static char *wrong_password(struct world *w)
{
    return reply(w, "401 Unauthorized", "", "Code: 193, e.displayText() = Wrong password");
}

static char *not_clickhouse(struct world *w)
{
    return reply(w, "200 OK", "", "<html>hello</html>");
}

static char *no_number(struct world *w)
{
    return reply(w, "200 OK", "", "26.7.1\tUTC\tsoon\n");
}

static void test_not_accepted(void **state)
{
    (void)state;
    expect_down(wrong_password, "Wrong password");
    expect_down(not_clickhouse, "not a ClickHouse");
    expect_down(no_number, "uptime");
}

static void test_bad_options(void **state)
{
    static const char *const urls[] = {
        "h:8123", "ftp://h:1", "http://u:p@h:1", "http://h:1/?a=b", "http://h:1/#x", "", "http://"};
    static const char *const names[] = {"async_insert", "query", "insert_deduplication_token",
                                        "min_insert_block_size_rows", "wait_end_of_query"};
    struct clickhouse_options options = {.url_count = 1};
    struct clickhouse *ch;
    struct spool_error error;
    uv_loop_t loop;

    (void)state;
    uv_loop_init(&loop);
    for (size_t i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {
        options.urls = &urls[i];
        assert_int_equal(clickhouse_create(&loop, &options, NULL, NULL, &ch, &error),
                         SPOOL_E_INVALID);
        assert_null(strstr(error.text, "u:p"));
    }
    options.urls = (const char *const[]){"http://h:1/"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct clickhouse_setting setting = {names[i], "1"};
        options.settings = &setting;
        options.setting_count = 1;
        assert_int_equal(clickhouse_create(&loop, &options, NULL, NULL, &ch, &error),
                         SPOOL_E_INVALID);
        assert_non_null(strstr(error.text, names[i]));
    }
    options.url_count = 0;
    assert_int_equal(clickhouse_create(&loop, &options, NULL, NULL, &ch, &error), SPOOL_E_INVALID);
    assert_int_equal(uv_loop_close(&loop), 0);
}

/* --- tables ----------------------------------------------------------------------------------- */

static void describe_done(void *arg, const struct clickhouse_outcome *outcome,
                          struct table_description *table)
{
    struct world *w = arg;

    w->done++;
    w->outcome = *outcome;
    w->table = table;
    finish(w);
}

static void start_describe(struct world *w)
{
    struct spool_error error;
    assert_int_equal(clickhouse_describe(w->ch, 0, "d'b", "t", describe_done, w, &error), SPOOL_OK);
}

/* An answer that begins with "Code: " is a refusal; NULL: it is not asked. */
static void describe_window_script(struct world *w, const char *server, const char *table,
                                   const char *const window[2], const char *replica,
                                   const char *columns)
{
    const char *texts[] = {IDENTITY_NEW, server, table, window[0], window[1], replica, columns};
    struct script script = {0};
    size_t n = 0;

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        bool refused = texts[i] && strncmp(texts[i], "Code: ", 6) == 0;
        if (!texts[i])
            continue;
        script.steps[n++].kind = STEP_BODY;
        script.steps[n++] =
            (struct step){.kind = STEP_SEND,
                          .text = reply(w, refused ? "404 Not Found" : "200 OK", "", texts[i])};
    }
    w->on_up = start_describe;
    begin(w, &script, 1, NULL);
    run(w);
    assert_int_equal(w->done, 1);
}

static void describe_replica_script(struct world *w, const char *server, const char *table,
                                    const char *replica, const char *columns)
{
    static const char *const not_asked[2] = {NULL, NULL};

    describe_window_script(w, server, table, not_asked, replica, columns);
}

static void describe_script(struct world *w, const char *server, const char *table,
                            const char *columns)
{
    describe_replica_script(w, server, table, NULL, columns);
}

static void test_describe(void **state)
{
    struct world w = {0};

    (void)state;
    describe_replica_script(&w, "26.7.2.1\tUTC\t1\n",
                            "MergeTree\tCREATE TABLE\\nd.t\tMergeTree ORDER BY a SETTINGS "
                            "non_replicated_deduplication_window = 77\ttoDate(a)\t2\n",
                            "50\t12\n",
                            "a\tUInt64\t\t\nb\\tc\tEnum8(\\'x\\' = 1)\tDEFAULT\t\\'x\\\\\\'\\'\n");
    assert_int_equal(w.outcome.class_, CLASS_NONE);
    assert_non_null(w.table);
    assert_true(w.table->exists && w.table->insertable && w.table->deduplicates);
    assert_int_equal(w.table->dedup_window_entries, 77);
    assert_int_equal(w.table->dedup_window_seconds, 0);
    assert_int_equal(w.table->partitions_per_insert, 13);
    assert_int_equal(w.table->partitions_per_insert_max, 50);
    assert_int_equal(w.table->views, 2);
    assert_int_equal(w.table->server.major, 26);
    assert_string_equal(w.table->server_timezone, "UTC");
    assert_string_equal(w.table->engine, "MergeTree");
    assert_string_equal(w.table->create_query, "CREATE TABLE\nd.t");
    assert_string_equal(w.table->partition_key, "toDate(a)");
    assert_string_equal(w.table->reason, "");
    assert_int_equal(w.table->column_count, 2);
    assert_string_equal(w.table->columns[1].name, "b\tc");
    assert_string_equal(w.table->columns[1].type, "Enum8('x' = 1)");
    assert_string_equal(w.table->columns[1].default_kind, "DEFAULT");
    assert_string_equal(w.table->columns[1].default_expression, "'x\\''");
    assert_non_null(strstr(request_of(&w, 0, 1), "name = 'd\\'b'"));
    assert_non_null(strstr(request_of(&w, 0, 3), "database = 'd\\'b' AND table = 't'"));
    assert_non_null(strstr(request_of(&w, 0, 4), "database = 'd\\'b' AND table = 't'"));
    end(&w);
}

static void test_describe_missing(void **state)
{
    struct world no_table = {0}, no_database = {0};

    (void)state;
    describe_script(&no_table, "26.7.2.1\tUTC\t1\n", "", NULL);
    assert_int_equal(no_table.outcome.class_, CLASS_NONE);
    assert_non_null(no_table.table);
    assert_false(no_table.table->exists);
    end(&no_table);

    describe_script(&no_database, "26.7.2.1\tUTC\t0\n", NULL, NULL);
    assert_int_equal(no_database.outcome.class_, CLASS_ENVIRONMENT);
    assert_int_equal(no_database.outcome.code, 81);
    assert_null(no_database.table);
    end(&no_database);
}

static void test_describe_garbage(void **state)
{
    static const char *const tables[] = {"MergeTree\tx\n", "a\tb\tc\td\te", "a\tb\tc\td\t\\q\n"};
    static const char *const columns[] = {"a\tUInt8\n", "a\tUInt8\t\t\nb", "a\tUInt8\t\t\t\n"};
    static const char *const servers[] = {"", "x\tUTC\t1\n", "26.7\tUTC\n"};

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct world w = {0};
        describe_script(&w, servers[i], NULL, NULL);
        assert_int_equal(w.outcome.class_, CLASS_UNKNOWN);
        assert_null(w.table);
        end(&w);
    }
    for (int i = 0; i < 3; i++) {
        struct world w = {0};
        describe_script(&w, "26.7.2.1\tUTC\t1\n", tables[i], NULL);
        assert_int_equal(w.outcome.class_, CLASS_UNKNOWN);
        assert_null(w.table);
        end(&w);
    }
    for (int i = 0; i < 3; i++) {
        struct world w = {0};
        describe_script(&w, "26.7.2.1\tUTC\t1\n", "Memory\t\tMemory\t\t0\n", columns[i]);
        assert_int_equal(w.outcome.class_, CLASS_UNKNOWN);
        assert_null(w.table);
        end(&w);
    }
}

static void test_setting_refused(void **state)
{
    (void)state;
    assert_string_equal(clickhouse_setting_refused(452, "Code: 452. Setting async_insert should"),
                        "async_insert");
    assert_string_equal(clickhouse_setting_refused(164, "Cannot modify 'max_insert_threads' in"),
                        "max_insert_threads");
    assert_string_equal(clickhouse_setting_refused(115, "Unknown setting insert_deduplicate"),
                        "insert_deduplicate");
    assert_null(clickhouse_setting_refused(164, "Cannot insert into table in readonly mode"));
    assert_null(clickhouse_setting_refused(60, "Table async_insert does not exist"));
}

#define NO_TABLE "Code: 60. DB::Exception: Table doesn't exist. (UNKNOWN_TABLE)\n"

static void test_engines(void **state)
{
    static const struct {
        const char *version, *engine, *full;
        bool insertable, deduplicates;
        uint64_t entries, seconds;
        const char *reason;
        const char *window[2]; /* what the server says where the table doesn't */
    } rows[] = {
        {"26.7", "View", "", false, false, 0, 0, "view", {0}},
        {"26.7", "MaterializedView", "", false, false, 0, 0, "view", {0}},
        {"26.7", "LiveView", "", false, false, 0, 0, "view", {0}},
        {"26.7", "SystemNumbers", "", false, false, 0, 0, "take no rows", {0}},
        {"26.7", "Distributed", "Distributed(c, d, t)", true, false, 0, 0, "Distributed", {0}},
        {"26.7", "Buffer", "", true, false, 0, 0, "Buffer", {0}},
        {"26.7", "Kafka", "", true, false, 0, 0, "Kafka", {0}},
        {"26.7",
         "MergeTree",
         "MergeTree ORDER BY a",
         true,
         false,
         0,
         0,
         "window is 0",
         {"non_replicated_deduplication_window\t0\nreplicated_deduplication_window\t10000\n"}},
        {"26.7",
         "MergeTree",
         "MergeTree ORDER BY a",
         true,
         true,
         70,
         0,
         "",
         {"replicated_deduplication_window_seconds\t5\nnon_replicated_deduplication_window\t70\n"}},
        {"26.7", "MergeTree", "MergeTree ORDER BY a", true, false, 0, 0, "window is 0", {NO_TABLE}},
        {"26.7",
         "MergeTree",
         "MergeTree SETTINGS non_replicated_deduplication_window = 0",
         true,
         false,
         0,
         0,
         "window is 0",
         {0}},
        {"26.7",
         "ReplacingMergeTree",
         "ReplacingMergeTree SETTINGS a = 1, non_replicated_deduplication_window = 5, b = 2",
         true,
         true,
         5,
         0,
         "",
         {0}},
        {"26.7",
         "MergeTree",
         "MergeTree ORDER BY x_non_replicated_deduplication_window = 5",
         true,
         false,
         0,
         0,
         "window is 0",
         {""}},
        {"18.16",
         "MergeTree",
         "MergeTree SETTINGS non_replicated_deduplication_window = 5",
         true,
         false,
         0,
         0,
         "18.16",
         {0}},
        {"18.16",
         "ReplicatedMergeTree",
         "ReplicatedMergeTree('a', 'b')",
         true,
         false,
         0,
         0,
         "18.16",
         {0}},
        {"26.7",
         "ReplicatedMergeTree",
         "ReplicatedMergeTree('a', 'b')",
         true,
         true,
         10000,
         1800,
         "",
         {"replicated_deduplication_window\t10000\nreplicated_deduplication_window_seconds\t1800\n"
          "non_replicated_deduplication_window\t7\n"}},
        {"22.3",
         "ReplicatedMergeTree",
         "ReplicatedMergeTree('a', 'b')",
         true,
         true,
         200,
         3600,
         "",
         {NO_TABLE, "replicated_deduplication_window\t200\n"}},
        {"26.7",
         "ReplicatedMergeTree",
         "ReplicatedMergeTree('a', 'b')",
         true,
         true,
         100,
         3600,
         "",
         {NO_TABLE, NO_TABLE}},
        {"26.7",
         "ReplicatedMergeTree",
         "ReplicatedMergeTree('a', 'b') SETTINGS replicated_deduplication_window_seconds = 60, "
         "replicated_deduplication_window = 9",
         true,
         true,
         9,
         60,
         "",
         {0}},
        {"26.7",
         "ReplicatedMergeTree",
         "ReplicatedMergeTree('a', 'b') SETTINGS replicated_deduplication_window = 0",
         true,
         false,
         0,
         0,
         "window is 0",
         {"replicated_deduplication_window\t1000\n"}},
        {"26.7",
         "ReplicatedMergeTree",
         "ReplicatedMergeTree('a', 'b') SETTINGS replicated_deduplication_window = 9, "
         "replicated_deduplication_window_seconds = 0",
         true,
         false,
         0,
         0,
         "window_seconds is 0",
         {0}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct world w = {0};
        char server[64], table[300];
        snprintf(server, sizeof(server), "%s\tUTC\t1\n", rows[i].version);
        snprintf(table, sizeof(table), "%s\t\t%s\t\t0\n", rows[i].engine, rows[i].full);
        for (char *quote; (quote = strchr(table, '\''));) /* the reply may hold them raw */
            *quote = '"';
        bool replicated = rows[i].deduplicates && rows[i].engine[0] == 'R' && rows[i].seconds;
        describe_window_script(&w, server, table, rows[i].window,
                               replicated ? "/ch/tables\\t1\n" : NULL, "a\tUInt64\t\t\n");
        assert_non_null(w.table);
        if (replicated)
            assert_string_equal(w.table->replica_path, "/ch/tables\t1");
        else
            assert_null(w.table->replica_path);
        assert_int_equal(w.table->insertable, rows[i].insertable);
        if (w.table->deduplicates != rows[i].deduplicates)
            fail_msg("row %zu", i);
        assert_int_equal(w.table->dedup_window_entries, rows[i].entries);
        assert_int_equal(w.table->dedup_window_seconds, rows[i].seconds);
        assert_true(rows[i].reason[0] ? strstr(w.table->reason, rows[i].reason) != NULL
                                      : w.table->reason[0] == '\0');
        end(&w);
    }
}

static void create_done(void *arg, const struct clickhouse_outcome *outcome)
{
    insert_done(arg, outcome);
}

static const struct create_table_options *create_options;

static void start_create(struct world *w)
{
    struct spool_error error;
    assert_int_equal(
        clickhouse_create_table(w->ch, 0, "d", "t", create_options, create_done, w, &error),
        SPOOL_OK);
}

static void expect_create(const struct create_table_options *options, const char *identity,
                          const char *sql)
{
    struct world w = {.on_up = start_create};
    struct script script =
        answers(reply(&w, "200 OK", "", identity), reply(&w, "200 OK", "", ""), NULL, NULL);

    create_options = options;
    begin(&w, &script, 1, NULL);
    run(&w);
    assert_int_equal(w.outcome.class_, CLASS_NONE);
    assert_string_equal(strstr(request_of(&w, 0, 1), "\r\n\r\n") + 4, sql);
    end(&w);
}

static void test_create_table(void **state)
{
    struct table_column columns[] = {
        {"a", "UInt64", "", ""}, {"b`", "String", "DEFAULT", "'x'"}, {"c", "DATE", NULL, NULL}};
    struct clickhouse_setting mine[] = {{"fsync_after_insert", "0"}, {"storage_policy", "it's"}};
    struct create_table_options plain = {.columns = columns, .column_count = 1};
    struct create_table_options full = {.engine = "ReplacingMergeTree(c)",
                                        .order_by = "(a, c)",
                                        .partition_by = "toYYYYMM(c)",
                                        .ttl = "c + INTERVAL 1 DAY",
                                        .settings = mine,
                                        .setting_count = 2,
                                        .columns = columns,
                                        .column_count = 3};
    struct create_table_options replicated = {
        .engine = "ReplicatedMergeTree('/p', 'r')", .columns = columns, .column_count = 1};
    struct create_table_options memory = {
        .engine = "Memory", .columns = columns, .column_count = 1};

    (void)state;
    expect_create(&plain, IDENTITY_OLD,
                  "CREATE TABLE IF NOT EXISTS `d`.`t` (`a` UInt64) ENGINE = MergeTree() ORDER BY "
                  "tuple()");
    expect_create(&plain, IDENTITY_NEW,
                  "CREATE TABLE IF NOT EXISTS `d`.`t` (`a` UInt64) ENGINE = MergeTree() ORDER BY "
                  "tuple() SETTINGS non_replicated_deduplication_window = 10000, "
                  "fsync_after_insert = 1, fsync_part_directory = 1");
    expect_create(&full, IDENTITY_NEW,
                  "CREATE TABLE IF NOT EXISTS `d`.`t` (`a` UInt64, `b\\`` String DEFAULT 'x', `c` "
                  "Date) ENGINE = ReplacingMergeTree(c) PARTITION BY toYYYYMM(c) ORDER BY (a, c) "
                  "TTL c + INTERVAL 1 DAY SETTINGS non_replicated_deduplication_window = 10000, "
                  "fsync_part_directory = 1, fsync_after_insert = 0, storage_policy = 'it\\'s'");
    expect_create(&replicated, IDENTITY_NEW,
                  "CREATE TABLE IF NOT EXISTS `d`.`t` (`a` UInt64) ENGINE = "
                  "ReplicatedMergeTree('/p', 'r') ORDER BY tuple() SETTINGS fsync_after_insert = "
                  "1, fsync_part_directory = 1");
    expect_create(&memory, IDENTITY_NEW,
                  "CREATE TABLE IF NOT EXISTS `d`.`t` (`a` UInt64) ENGINE = Memory");
}

static void query_done(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                       size_t size)
{
    struct world *w = arg;
    assert_int_equal(strlen(text), size);
    snprintf(w->text, sizeof(w->text), "%s", text);
    insert_done(arg, outcome);
}

static void start_query(struct world *w)
{
    struct spool_error error;
    assert_int_equal(clickhouse_query(w->ch, 0, "SELECT 'Code: 5'", 20, query_done, w, &error),
                     SPOOL_OK);
}

static void test_query(void **state)
{
    struct clickhouse_options options = {.database = "d b"};
    struct world w = {.on_up = start_query}, cut = w, failed = w;
    struct script script = answers(reply(&w, "200 OK", "", IDENTITY_OLD),
                                   reply(&w, "200 OK", "", "Code: 5\n"), NULL, NULL);
    struct script script_cut =
        answers(reply(&cut, "200 OK", "", IDENTITY_OLD),
                reply(&cut, "200 OK", "", "123456789 123456789 1"), NULL, NULL);
    struct script script_failed = answers(
        reply(&failed, "200 OK", "", IDENTITY_OLD),
        reply(&failed, "200 OK", "X-ClickHouse-Exception-Code: 241\r\n", "0\n"), NULL, NULL);

    (void)state;
    begin(&w, &script, 1, &options);
    run(&w);
    assert_int_equal(w.outcome.class_, CLASS_NONE);
    assert_string_equal(w.text, "Code: 5\n");
    assert_non_null(strstr(request_of(&w, 0, 1), "&database=d%20b HTTP"));
    end(&w);

    begin(&cut, &script_cut, 1, NULL);
    run(&cut);
    assert_int_equal(cut.outcome.class_, CLASS_UNKNOWN);
    end(&cut);

    begin(&failed, &script_failed, 1, NULL);
    run(&failed);
    assert_int_equal(failed.outcome.class_, CLASS_TOO_BIG);
    end(&failed);
}

/* --- pieces ----------------------------------------------------------------------------------- */

#define LONG_QUERY 400000

static void start_long_query(struct world *w)
{
    struct spool_error error;
    char *sql = malloc(LONG_QUERY + 1);

    assert_non_null(sql);
    snprintf(sql, LONG_QUERY + 1, "SELECT 1%*s", LONG_QUERY - 8, "");
    assert_int_equal(strlen(sql), LONG_QUERY);
    assert_int_equal(clickhouse_query(w->ch, 0, sql, 20, query_done, w, &error), SPOOL_OK);
    free(sql);
}

/* More than the server reads of a query unless told otherwise. */
static void test_a_long_query(void **state)
{
    struct world w = {.on_up = start_long_query};
    struct script script =
        answers(reply(&w, "200 OK", "", IDENTITY_OLD), reply(&w, "200 OK", "", "1\n"), NULL, NULL);

    (void)state;
    begin(&w, &script, 1, NULL);
    run(&w);
    assert_int_equal(w.outcome.class_, CLASS_NONE);
    assert_non_null(strstr(request_of(&w, 0, 1), "&max_query_size=800000 HTTP"));
    end(&w);
}

static void test_pinned_settings(void **state)
{
    static const struct {
        struct server_version version;
        bool native, deduplicates;
        const char *text;
    } rows[] = {
        {{18, 16, 1},
         true,
         false,
         "min_insert_block_size_rows=1000000000000&min_insert_block_size_bytes=1125899906842624&"
         "insert_deduplicate=0&timeout_overflow_mode=throw&input_format_skip_unknown_fields=0&"
         "input_format_allow_errors_num=0&"
         "input_format_allow_errors_ratio=0"},
        {{18, 16, 1},
         false,
         false,
         "min_insert_block_size_rows=1000000000000&min_insert_block_size_bytes=1125899906842624&"
         "insert_deduplicate=0&timeout_overflow_mode=throw&input_format_skip_unknown_fields=0&"
         "input_format_allow_errors_num=0&"
         "input_format_allow_errors_ratio=0&date_time_input_format=basic"},
        {{26, 7, 2},
         true,
         true,
         "min_insert_block_size_rows=1000000000000&min_insert_block_size_bytes=1125899906842624&"
         "insert_deduplicate=1&deduplicate_insert=enable&use_strict_insert_block_limits=0&"
         "input_format_connection_handling=0&timeout_overflow_mode=throw&"
         "deduplicate_blocks_in_dependent_materialized_views=1&"
         "async_insert=0&max_insert_threads=1&materialized_views_ignore_errors=0&"
         "input_format_skip_unknown_fields=0&input_format_null_as_default=1&"
         "input_format_defaults_for_omitted_fields=1&input_format_allow_errors_num=0&"
         "input_format_allow_errors_ratio=0"},
        {{26, 7, 2},
         false,
         false,
         "min_insert_block_size_rows=1000000000000&min_insert_block_size_bytes=1125899906842624&"
         "insert_deduplicate=0&deduplicate_insert=disable&use_strict_insert_block_limits=0&"
         "input_format_connection_handling=0&timeout_overflow_mode=throw&"
         "deduplicate_blocks_in_dependent_materialized_views=0&"
         "async_insert=0&max_insert_threads=1&materialized_views_ignore_errors=0&"
         "input_format_skip_unknown_fields=0&input_format_null_as_default=1&"
         "input_format_defaults_for_omitted_fields=1&input_format_allow_errors_num=0&"
         "input_format_allow_errors_ratio=0&date_time_input_format=best_effort&"
         "input_format_parallel_parsing=0"},
        {{26, 1, 9},
         true,
         true,
         "min_insert_block_size_rows=1000000000000&min_insert_block_size_bytes=1125899906842624&"
         "insert_deduplicate=1&timeout_overflow_mode=throw&"
         "deduplicate_blocks_in_dependent_materialized_views=1&"
         "async_insert=0&max_insert_threads=1&materialized_views_ignore_errors=0&"
         "input_format_skip_unknown_fields=0&input_format_null_as_default=1&"
         "input_format_defaults_for_omitted_fields=1&input_format_allow_errors_num=0&"
         "input_format_allow_errors_ratio=0"},
        {{26, 3, 1},
         true,
         true,
         "min_insert_block_size_rows=1000000000000&min_insert_block_size_bytes=1125899906842624&"
         "insert_deduplicate=1&deduplicate_insert=enable&input_format_connection_handling=0&"
         "timeout_overflow_mode=throw&"
         "deduplicate_blocks_in_dependent_materialized_views=1&"
         "async_insert=0&max_insert_threads=1&materialized_views_ignore_errors=0&"
         "input_format_skip_unknown_fields=0&input_format_null_as_default=1&"
         "input_format_defaults_for_omitted_fields=1&input_format_allow_errors_num=0&"
         "input_format_allow_errors_ratio=0"},
        {{26, 4, 1},
         true,
         true,
         "min_insert_block_size_rows=1000000000000&min_insert_block_size_bytes=1125899906842624&"
         "insert_deduplicate=1&deduplicate_insert=enable&use_strict_insert_block_limits=0&"
         "input_format_connection_handling=0&timeout_overflow_mode=throw&"
         "deduplicate_blocks_in_dependent_materialized_views=1&"
         "async_insert=0&max_insert_threads=1&materialized_views_ignore_errors=0&"
         "input_format_skip_unknown_fields=0&input_format_null_as_default=1&"
         "input_format_defaults_for_omitted_fields=1&input_format_allow_errors_num=0&"
         "input_format_allow_errors_ratio=0"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct buf out;
        buf_init(&out, 10000);
        assert_int_equal(clickhouse_pinned_settings(rows[i].version, rows[i].native,
                                                    rows[i].deduplicates, 100000, 64 * MIB, &out),
                         SPOOL_OK);
        assert_string_equal(buf_cstr(&out), rows[i].text);
        buf_free(&out);
    }
    assert_false(clickhouse_knows_token((struct server_version){21, 12, 9}));
    assert_true(clickhouse_knows_token((struct server_version){22, 3, 0}));
    assert_true(clickhouse_knows_token((struct server_version){26, 1, 0}));
}

static void test_tsv(void **state)
{
    static const char *const broken[] = {"a\tb",   "a\n",      "a\tb\tc\n", "a\\x\tb\n",
                                         "a\tb\\", "a\tb\\\n", "\n",        "a\t\\N\n"};
    struct tsv_reader reader;
    char *fields[2];
    char good[] = "a\\tb\t\\\\\\n\\'\n\t\n";
    char crlf[] = "a\tb\\r\r\n\t\r\n";

    (void)state;
    tsv_open(&reader, good, sizeof(good) - 1, 2);
    assert_int_equal(tsv_row(&reader, fields), SPOOL_OK);
    assert_string_equal(fields[0], "a\tb");
    assert_string_equal(fields[1], "\\\n'");
    assert_int_equal(tsv_row(&reader, fields), SPOOL_OK);
    assert_string_equal(fields[0], "");
    assert_string_equal(fields[1], "");
    assert_int_equal(tsv_row(&reader, fields), SPOOL_E_END);
    tsv_open(&reader, crlf, sizeof(crlf) - 1, 2); /* output_format_tsv_crlf_end_of_line */
    assert_int_equal(tsv_row(&reader, fields), SPOOL_OK);
    assert_string_equal(fields[1], "b\r");
    assert_int_equal(tsv_row(&reader, fields), SPOOL_OK);
    assert_string_equal(fields[1], "");
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        size_t size = strlen(broken[i]);
        char *exact = malloc(size);
        assert_non_null(exact);
        memcpy(exact, broken[i], size);
        tsv_open(&reader, exact, size, 2);
        assert_int_equal(tsv_row(&reader, fields), SPOOL_E_CORRUPT);
        free(exact);
    }
}

static void test_version(void **state)
{
    static const char *const bad[] = {"", "x", "-1.2", "0.1", "99999999999.1"};
    struct server_version v;

    (void)state;
    assert_true(parse_version("26.7.2.1", &v));
    assert_true(v.major == 26 && v.minor == 7 && v.patch == 2);
    assert_true(parse_version("24.3", &v));
    assert_true(v.major == 24 && v.minor == 3 && v.patch == 0);
    assert_true(parse_version("25.8.1.5101.altinitystable", &v));
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_false(parse_version(bad[i], &v));
}

static void test_one_line(void **state)
{
    char line[8];

    (void)state;
    one_line(line, sizeof(line), "a\nb\r\n", 5);
    assert_string_equal(line, "a b");
    one_line(line, sizeof(line), "123456789", 9);
    assert_string_equal(line, "1234567");
    one_line(line, sizeof(line), "123456\xc3\xa9", 8);
    assert_string_equal(line, "123456");
    one_line(line, sizeof(line), "", 0);
    assert_string_equal(line, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_insert),
        cmocka_unit_test(test_old_server_gets_no_token),
        cmocka_unit_test(test_insert_refused),
        cmocka_unit_test(test_exception_behind_a_200),
        cmocka_unit_test(test_insert_broken_off),
        cmocka_unit_test(test_insert_cancelled),
        cmocka_unit_test(test_close_ends_an_insert),
        cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_restart_while_probed),
        cmocka_unit_test(test_down_then_up),
        cmocka_unit_test(test_not_accepted),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_describe),
        cmocka_unit_test(test_describe_missing),
        cmocka_unit_test(test_describe_garbage),
        cmocka_unit_test(test_engines),
        cmocka_unit_test(test_setting_refused),
        cmocka_unit_test(test_create_table),
        cmocka_unit_test(test_query),
        cmocka_unit_test(test_a_long_query),
        cmocka_unit_test(test_pinned_settings),
        cmocka_unit_test(test_tsv),
        cmocka_unit_test(test_version),
        cmocka_unit_test(test_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
