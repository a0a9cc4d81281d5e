/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control socket and the listener by real connections: libcurl asks on threads of its own while
 * the loop runs here. Pipeline and looks are played by functions of this file.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>
#include <curl/curl.h>

#include "daemon/control.h"
#include "daemon/listen.h"
#include "spool/look.h"

/* --- the pipeline, played --------------------------------------------------------------------- */

#define PARKED_MAX 8

static struct {
    bool ready;
    const char *steered;
    const char *action;
    bool park; /* looks wait for unpark() */
    struct parked {
        uv_work_t work;
        void (*run)(void *arg, struct spool *spool, struct spool_stream *stream);
        void (*done)(void *arg);
        void *arg;
    } parked[PARKED_MAX];
    size_t parked_count;
    size_t ended; /* looks */
    enum look_lane lane;
    char query[256]; /* what the look was asked for */
    int look_status;
    size_t answer_bytes;
} played;

static uv_loop_t loop;
static struct control *control;
static struct metrics *metrics;
static char dir[64], socket_path[96];

#define PIPELINE ((struct pipeline *)&played)

bool pipeline_ready(const struct pipeline *p, const char **reason)
{
    (void)p;
    *reason = played.ready ? "" : "spool full";
    return played.ready;
}

void pipeline_usage(const struct pipeline *p, struct spool_usage *out)
{
    (void)p;
    (void)out;
}

bool pipeline_kafka_stats(const struct pipeline *p, struct kafka_stats *out)
{
    (void)p;
    (void)out;
    return false;
}

struct clickhouse *pipeline_clickhouse(struct pipeline *p)
{
    return (struct clickhouse *)p;
}

size_t clickhouse_endpoints(const struct clickhouse *ch)
{
    (void)ch;
    return 0;
}

void clickhouse_endpoint_status(const struct clickhouse *ch, size_t i, struct endpoint_status *out)
{
    (void)ch;
    (void)i;
    (void)out;
}

uint64_t pipeline_endpoint_waiting(const struct pipeline *p, size_t endpoint)
{
    (void)p;
    (void)endpoint;
    return 0;
}

size_t pipeline_streams(const struct pipeline *p)
{
    (void)p;
    return 0;
}

void pipeline_stream_status(const struct pipeline *p, size_t i, struct stream_status *out)
{
    (void)p;
    (void)i;
    (void)out;
}

const char *stream_state_name(enum stream_state state)
{
    (void)state;
    return "";
}

void pipeline_update_metrics(struct pipeline *p)
{
    (void)p;
    metrics_set(metrics, METRIC_SPOOL_USED, 77);
}

static int steer(const char *name, const char *action)
{
    if (strcmp(name, "a") != 0)
        return SPOOL_E_NOT_FOUND;
    played.steered = "a";
    played.action = action;
    return SPOOL_OK;
}

int pipeline_stream_pause(struct pipeline *p, const char *name)
{
    (void)p;
    return steer(name, "pause");
}

int pipeline_stream_resume(struct pipeline *p, const char *name)
{
    (void)p;
    return steer(name, "resume");
}

int pipeline_stream_accept_bad(struct pipeline *p, const char *name)
{
    (void)p;
    return steer(name, "accept_bad");
}

int pipeline_stream_flush(struct pipeline *p, const char *name)
{
    (void)p;
    return steer(name, "flush");
}

static void run_parked(uv_work_t *work)
{
    struct parked *one = work->data;
    one->run(one->arg, NULL, NULL);
}

static void end_parked(uv_work_t *work, int status)
{
    struct parked *one = work->data;
    assert_int_equal(status, 0);
    one->done(one->arg);
    played.ended++;
}

static void unpark(void)
{
    for (size_t i = 0; i < played.parked_count; i++)
        uv_queue_work(&loop, &played.parked[i].work, run_parked, end_parked);
    played.parked_count = 0;
}

int pipeline_look(struct pipeline *p, enum look_lane lane, const char *stream,
                  void (*work)(void *arg, struct spool *spool, struct spool_stream *stream),
                  void (*done)(void *arg), void *arg)
{
    (void)p;
    if (stream && strcmp(stream, "a") != 0)
        return SPOOL_E_NOT_FOUND;
    assert_true(played.parked_count < PARKED_MAX);
    struct parked *one = &played.parked[played.parked_count++];
    one->run = work;
    one->done = done;
    one->arg = arg;
    one->work.data = one;
    played.lane = lane;
    if (!played.park)
        unpark();
    return SPOOL_OK;
}

static void nothing(void *arg, struct spool *spool, struct spool_stream *stream)
{
    (void)arg;
    (void)spool;
    (void)stream;
}

static struct {
    void (*replayed)(void *arg, const struct replay_result *result);
    void (*discarded)(void *arg, int status, uint64_t letters, uint64_t bytes,
                      const struct spool_error *error);
    void *arg;
} dead;

static void end_replay(void *arg)
{
    const struct replay_result result = {
        .replayed = 3, .refused = 2, .unsettled = 1, .cut = 4, .text = "told to"};
    (void)arg;
    dead.replayed(dead.arg, &result);
}

static void end_discard(void *arg)
{
    const struct spool_error error = {.text = "that failed"};
    (void)arg;
    dead.discarded(dead.arg, played.look_status, 5, 17, &error);
}

static void note_filter(const char *what, const struct dead_filter *f)
{
    snprintf(played.query, sizeof(played.query), "%s %s %s %d:%d %d:%lld %d:%lld", what,
             f->origin ? f->origin : "-", f->reason ? f->reason : "-", f->has_code, f->code,
             f->has_from, (long long)f->from, f->has_to, (long long)f->to);
}

int pipeline_dead_replay(struct pipeline *p, const char *name, const struct dead_filter *filter,
                         void (*done)(void *arg, const struct replay_result *result), void *arg)
{
    if (strcmp(name, "busy") == 0)
        return SPOOL_E_EXISTS;
    note_filter("replay", filter);
    dead.replayed = done;
    dead.arg = arg;
    return pipeline_look(p, LOOK_DEAD, name, nothing, end_replay, NULL);
}

int pipeline_dead_discard(struct pipeline *p, const char *name, const struct dead_filter *filter,
                          bool dry,
                          void (*done)(void *arg, int status, uint64_t letters, uint64_t bytes,
                                       const struct spool_error *error),
                          void *arg)
{
    note_filter(dry ? "count" : "discard", filter);
    dead.discarded = done;
    dead.arg = arg;
    return pipeline_look(p, LOOK_DEAD, name, nothing, end_discard, NULL);
}

static int answer(struct buf *out, struct spool_error *error)
{
    if (played.look_status != SPOOL_OK)
        return spool_error_set(error, played.look_status, "that failed");
    for (size_t i = 0; i < played.answer_bytes; i++)
        if (buf_put_u8(out, (uint8_t)('a' + i % 26)) != SPOOL_OK)
            return SPOOL_E_LIMIT;
    return played.answer_bytes ? SPOOL_OK : buf_append_str(out, "{}");
}

int look_segments(struct spool *spool, struct spool_stream *stream, struct buf *out,
                  struct spool_error *error)
{
    (void)spool;
    (void)stream;
    snprintf(played.query, sizeof(played.query), "segments");
    return answer(out, error);
}

int look_blocks(struct spool *spool, struct spool_stream *stream, uint64_t segment, struct buf *out,
                struct spool_error *error)
{
    (void)spool;
    (void)stream;
    snprintf(played.query, sizeof(played.query), "blocks %llu", (unsigned long long)segment);
    return answer(out, error);
}

int look_records(struct spool *spool, struct spool_stream *stream,
                 const struct look_records_query *query, struct buf *out, struct spool_error *error)
{
    (void)spool;
    (void)stream;
    snprintf(played.query, sizeof(played.query), "records %s %d:%lld %d:%lld %llu",
             query->origin ? query->origin : "-", query->has_from, (long long)query->from,
             query->has_to, (long long)query->to, (unsigned long long)query->limit);
    return answer(out, error);
}

int look_dead(struct spool *spool, const struct look_dead_query *query, struct buf *out,
              struct spool_error *error)
{
    (void)spool;
    snprintf(played.query, sizeof(played.query), "dead %s %s %d:%lld %llu",
             query->stream ? query->stream : "-", query->filter.origin ? query->filter.origin : "-",
             query->filter.has_from, (long long)query->filter.from,
             (unsigned long long)query->limit);
    return answer(out, error);
}

int look_verify(struct spool *spool, struct buf *out, bool *ok, struct spool_error *error)
{
    (void)spool;
    *ok = true;
    snprintf(played.query, sizeof(played.query), "verify");
    return answer(out, error);
}

/* --- asking ----------------------------------------------------------------------------------- */

struct question {
    const char *method;
    char path[256];
    bool tcp;
    CURLcode code;
    long status;
    char type[64];
    char headers[1024];
    struct buf body;
    uv_thread_t thread;
    uv_async_t done;
    bool answered;
};

static size_t take(char *data, size_t one, size_t n, void *arg)
{
    return buf_append(arg, data, one * n) == SPOOL_OK ? one * n : 0;
}

static size_t take_header(char *data, size_t one, size_t n, void *arg)
{
    struct question *q = arg;
    size_t used = strlen(q->headers);
    snprintf(q->headers + used, sizeof(q->headers) - used, "%.*s", (int)(one * n), data);
    return one * n;
}

static void ask_on_thread(void *arg)
{
    struct question *q = arg;
    CURL *curl = curl_easy_init();
    char url[400];
    const char *type = NULL;

    snprintf(url, sizeof(url), "http://%s%s", q->tcp ? control_http_address(control) : "x",
             q->path);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    if (!q->tcp)
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket_path);
    if (strcmp(q->method, "HEAD") == 0)
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    if (strcmp(q->method, "POST") == 0)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "some body");
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &q->body);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, q);
    q->code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &q->status);
    curl_easy_getinfo(curl, CURLINFO_CONTENT_TYPE, &type);
    snprintf(q->type, sizeof(q->type), "%s", type ? type : "");
    curl_easy_cleanup(curl);
    uv_async_send(&q->done);
}

/* The thread has nothing more to say, and the handle is the loop's no more. */
static void on_closed(uv_handle_t *handle)
{
    ((struct question *)handle->data)->answered = true;
}

static void on_answered(uv_async_t *async)
{
    uv_close((uv_handle_t *)async, on_closed);
}

static void ask_begin(struct question *q, const char *method, bool tcp, const char *path)
{
    memset(q, 0, sizeof(*q));
    q->method = method;
    q->tcp = tcp;
    snprintf(q->path, sizeof(q->path), "%s", path);
    buf_init(&q->body, 128 << 20);
    uv_async_init(&loop, &q->done, on_answered);
    q->done.data = q;
    assert_int_equal(uv_thread_create(&q->thread, ask_on_thread, q), 0);
}

static void ask_end(struct question *q)
{
    while (!q->answered)
        uv_run(&loop, UV_RUN_ONCE);
    uv_thread_join(&q->thread);
    (void)buf_cstr(&q->body);
}

static struct question last;

/* Asks and compares; body NULL: any. */
static void check(const char *method, bool tcp, const char *path, long status, const char *type,
                  const char *body)
{
    buf_free(&last.body);
    ask_begin(&last, method, tcp, path);
    ask_end(&last);
    if (last.code != CURLE_OK)
        fail_msg("%s %s: %s", method, path, curl_easy_strerror(last.code));
    if (last.status != status)
        fail_msg("%s %s: %ld %s", method, path, last.status, buf_cstr(&last.body));
    assert_string_equal(last.type, type);
    if (body)
        assert_string_equal(buf_cstr(&last.body), body);
}

#define JSON  "application/json"
#define LINES "application/x-ndjson"
#define TEXT  "text/plain; charset=utf-8"

/* --- one control a test ----------------------------------------------------------------------- */

static struct config config;

static int open_control(struct spool_error *error)
{
    struct control_options options = {
        .loop = &loop, .config = &config, .metrics = metrics, .uuid = "u"};
    return control_create(&options, &control, error);
}

static int setup(void **state)
{
    struct spool_error error = {0};
    (void)state;
    memset(&played, 0, sizeof(played));
    played.ready = true;
    snprintf(dir, sizeof(dir), "/tmp/spoold-test-control-XXXXXX");
    assert_non_null(mkdtemp(dir));
    snprintf(socket_path, sizeof(socket_path), "%s/run/c.sock", dir);
    config = (struct config){
        .spool.path = "/p", .control_socket = socket_path, .http.listen = "127.0.0.1:0"};
    assert_int_equal(metrics_create(&metrics), SPOOL_OK);
    assert_int_equal(uv_loop_init(&loop), 0);
    if (open_control(&error) != SPOOL_OK)
        fail_msg("%s", error.text);
    control_attach(control, PIPELINE);
    return 0;
}

static void mark(void *arg)
{
    *(bool *)arg = true;
}

static void close_control(void)
{
    bool closed = false;
    if (!control)
        return;
    control_attach(control, NULL);
    control_close(control, mark, &closed);
    control = NULL;
    unpark();
    while (!closed)
        uv_run(&loop, UV_RUN_ONCE);
}

static int teardown(void **state)
{
    char run[96];
    (void)state;
    close_control();
    buf_free(&last.body);
    while (uv_run(&loop, UV_RUN_NOWAIT) != 0)
        continue;
    assert_int_equal(uv_loop_close(&loop), 0);
    metrics_free(metrics);
    snprintf(run, sizeof(run), "%s/run", dir);
    rmdir(run);
    assert_int_equal(rmdir(dir), 0); /* nothing was left in it */
    return 0;
}

static void both_ways_in_answer_what_may_be_seen(void **state)
{
    (void)state;
    for (int tcp = 0; tcp < 2; tcp++) {
        check("GET", tcp, "/health/live", 200, TEXT, "ok\n");
        check("GET", tcp, "/health/ready", 200, TEXT, "ok\n");
        check("GET", tcp, "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", NULL);
        assert_non_null(strstr(buf_cstr(&last.body), "\nspoold_spool_used_bytes 77\n"));
        check("GET", tcp, "/status", 200, JSON, NULL);
        assert_non_null(strstr(buf_cstr(&last.body), "\"ready\":{\"ok\":true"));
        check("GET", tcp, "/", 200, "text/html; charset=utf-8", NULL);
        assert_non_null(strstr(buf_cstr(&last.body), "fetch('/status'"));
        assert_non_null(strstr(last.headers, "Content-Security-Policy: default-src 'none'"));
        check("HEAD", tcp, "/status", 200, JSON, "");
    }
}

static void not_ready_is_503_with_the_reason(void **state)
{
    (void)state;
    played.ready = false;
    check("GET", true, "/health/ready", 503, TEXT, "spool full\n");
    check("GET", true, "/health/live", 200, TEXT, "ok\n");
}

static void what_is_not_there_is_said(void **state)
{
    (void)state;
    check("GET", false, "/nothing", 404, JSON, "{\"error\":\"there is nothing at /nothing\"}\n");
    check("GET", false, "/streams/a/", 404, JSON, NULL);
    check("GET", false, "/streams//pause", 404, JSON, NULL);
    check("GET", false, "/streams/a/pause/x", 404, JSON, NULL);
    check("POST", false, "/status", 405, JSON, "{\"error\":\"/status takes GET only\"}\n");
    assert_non_null(strstr(last.headers, "Allow: GET\r\n"));
    check("GET", false, "/streams/a/pause", 405, JSON,
          "{\"error\":\"/streams/a/pause takes POST only\"}\n");
    assert_non_null(strstr(last.headers, "Allow: POST\r\n"));
}

static void the_listener_neither_steers_nor_looks(void **state)
{
    (void)state;
    check("POST", true, "/streams/a/pause", 404, JSON,
          "{\"error\":\"/streams/a/pause is served on the control socket only\"}\n");
    assert_null(played.action);
    check("GET", true, "/streams/a/records", 404, JSON, NULL);
    check("GET", true, "/dead", 404, JSON, NULL);
    check("GET", true, "/verify", 404, JSON, NULL);
    assert_string_equal(played.query, "");
}

static void streams_are_steered(void **state)
{
    (void)state;
    static const char *const ACTIONS[] = {"pause", "resume", "flush"};
    for (size_t i = 0; i < 3; i++) {
        char path[64], body[64];
        snprintf(path, sizeof(path), "/streams/a/%s", ACTIONS[i]);
        snprintf(body, sizeof(body), "{\"stream\":\"a\",\"done\":\"%s\"}\n", ACTIONS[i]);
        check("POST", false, path, 200, JSON, body);
        assert_string_equal(played.action, ACTIONS[i]);
    }
    check("POST", false, "/streams/b/pause", 404, JSON,
          "{\"error\":\"there is no stream \\\"b\\\"\"}\n");
    check(
        "POST", false,
        "/streams/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/pause",
        404, JSON, NULL);
}

static void looks_get_their_parameters(void **state)
{
    (void)state;
    static const struct {
        const char *path, *query, *type;
        enum look_lane lane;
    } CASES[] = {
        {"/streams/a/segments", "segments", JSON, LOOK_STREAM},
        {"/streams/a/blocks", "blocks 0", JSON, LOOK_STREAM},
        {"/streams/a/blocks?segment=12", "blocks 12", JSON, LOOK_STREAM},
        {"/streams/a/records", "records - 0:0 0:0 0", LINES, LOOK_STREAM},
        {"/streams/a/records?origin=t%2B%5B3%5D%20x&from=-1&to=9223372036854775807&limit=5",
         "records t+[3] x 1:-1 1:9223372036854775807 5", LINES, LOOK_STREAM},
        {"/dead", "dead - - 0:0 0", LINES, LOOK_DEAD},
        {"/dead?stream=a&origin=o&offset=7&limit=3", "dead a o 1:7 3", LINES, LOOK_DEAD},
        {"/dead?stream=b", "dead b - 0:0 0", LINES, LOOK_DEAD},
        {"/verify", "verify", JSON, LOOK_ALL},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        check("GET", false, CASES[i].path, 200, CASES[i].type, "{}");
        assert_string_equal(played.query, CASES[i].query);
        assert_int_equal(played.lane, CASES[i].lane);
    }
}

static void dead_letters_are_replayed_and_discarded(void **state)
{
    (void)state;
    check("POST", false, "/streams/a/dead/replay?origin=o%2F1&reason=range&code=-5&from=1&to=9",
          200, JSON,
          "{\"stream\":\"a\",\"replayed\":3,\"refused\":2,\"unsettled\":1,\"cut\":4,"
          "\"stopped\":\"told to\"}\n");
    assert_string_equal(played.query, "replay o/1 range 1:-5 1:1 1:9");
    check("POST", false, "/streams/a/dead/discard?dry=1&offset=3", 200, JSON,
          "{\"stream\":\"a\",\"letters\":5,\"bytes\":17,\"stopped\":\"\"}\n");
    assert_string_equal(played.query, "count - - 0:0 1:3 1:3");
    check("POST", false, "/streams/a/dead/discard", 200, JSON, NULL);
    assert_string_equal(played.query, "discard - - 0:0 0:0 0:0");
    played.look_status = SPOOL_E_IO;
    check("POST", false, "/streams/a/dead/discard", 500, JSON, "{\"error\":\"that failed\"}\n");
    check(
        "POST", false, "/streams/b/dead/replay", 404, JSON,
        "{\"error\":\"the configuration has no stream \\\"b\\\": letters of one that it had can be "
        "replayed when it is put back; spoolctl dead show prints them whole, and dead discard "
        "removes them\"}\n");
    check("POST", false, "/streams/busy/dead/replay", 503, JSON,
          "{\"error\":\"dead letters of \\\"busy\\\" are being replayed already\"}\n");
    check("POST", false, "/streams/a/dead/replay?code=x", 400, JSON, NULL);
    check("POST", false, "/streams/a/dead/replay?code=5000000000", 400, JSON, NULL);
    check("GET", false, "/streams/a/dead/replay", 405, JSON, NULL);
    check("POST", true, "/streams/a/dead/replay", 404, JSON, NULL);
}

/* A filter that is not understood would be none, and the request mean every letter. */
static void arguments_that_say_nothing_are_refused(void **state)
{
    static const char *const bad[] = {"dry",  "orign=o",      "from",       "limit=1",
                                      "=dry", "dry=1&form=5", "Offset=3%20"};
    char path[100];

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        played.query[0] = 0;
        snprintf(path, sizeof(path), "/streams/a/dead/discard?%s", bad[i]);
        check("POST", false, path, 400, JSON, NULL);
        assert_string_equal(played.query, "");
    }
    check("POST", false, "/streams/a/dead/discard?from", 400, JSON,
          "{\"error\":\"the argument \\\"from\\\" has no value\"}\n");
    check(
        "POST", false, "/streams/a/dead/replay?dry=1", 400, JSON,
        "{\"error\":\"/streams/a/dead/replay has no argument \\\"dry\\\"; it takes origin, reason, "
        "code, from, to, offset\"}\n");
    check("POST", false, "/streams/a/resume?accept-bad=1", 400, JSON, NULL);
    check("POST", false, "/streams/a/pause?x=1", 400, JSON,
          "{\"error\":\"/streams/a/pause has no argument \\\"x\\\"; it takes none\"}\n");
    check("GET", true, "/health/live?x=1", 200, TEXT, NULL);
}

static void a_replay_outlives_whoever_asked(void **state)
{
    struct question q;
    (void)state;
    played.park = true;
    ask_begin(&q, "POST", false, "/streams/a/dead/replay");
    while (played.parked_count < 1)
        uv_run(&loop, UV_RUN_ONCE);
    close_control();
    ask_end(&q);
    buf_free(&q.body);
}

static void looks_that_fail_say_why(void **state)
{
    (void)state;
    check("GET", false, "/streams/b/segments", 404, JSON,
          "{\"error\":\"there is no stream \\\"b\\\"\"}\n");
    check("GET", false, "/streams/a/blocks?segment=x", 400, JSON,
          "{\"error\":\"segment must be a whole number, but is \\\"x\\\"\"}\n");
    check("GET", false, "/streams/a/blocks?segment=-1", 400, JSON,
          "{\"error\":\"segment must not be negative\"}\n");
    check("GET", false, "/streams/a/records?from=", 400, JSON,
          "{\"error\":\"from must be a whole number, but is \\\"\\\"\"}\n");
    check("GET", false, "/streams/a/records?to=9223372036854775808", 400, JSON, NULL);
    check("GET", false, "/dead?offset=1x", 400, JSON, NULL);
    assert_string_equal(played.query, "");
    static const struct {
        int status;
        long http;
        const char *body;
    } CASES[] = {
        {SPOOL_E_NOT_FOUND, 404, "{\"error\":\"that failed\"}\n"},
        {SPOOL_E_INVALID, 400, "{\"error\":\"that failed\"}\n"},
        {SPOOL_E_LIMIT, 400, "{\"error\":\"the answer is over 64MiB; ask for less\"}\n"},
        {SPOOL_E_CORRUPT, 500, "{\"error\":\"that failed\"}\n"},
        {SPOOL_E_NOMEM, 503, "{\"error\":\"that failed\"}\n"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        played.look_status = CASES[i].status;
        check("GET", false, "/verify", CASES[i].http, JSON, CASES[i].body);
    }
}

static void a_large_answer_arrives_whole(void **state)
{
    (void)state;
    played.answer_bytes = 40 << 20;
    check("GET", false, "/streams/a/segments", 200, JSON, NULL);
    assert_int_equal(last.body.len, played.answer_bytes);
    for (size_t i = 0; i < last.body.len; i++)
        if (last.body.data[i] != 'a' + i % 26)
            fail_msg("byte %zu", i);
    played.answer_bytes = (64 << 20) + 1;
    check("GET", false, "/streams/a/segments", 400, JSON, NULL);
}

static void only_so_many_look_at_a_time(void **state)
{
    (void)state;
    struct question q[4];
    played.park = true;
    for (size_t i = 0; i < 4; i++)
        ask_begin(&q[i], "GET", false, "/streams/a/segments");
    while (played.parked_count < 4)
        uv_run(&loop, UV_RUN_ONCE);
    check("GET", false, "/verify", 503, JSON,
          "{\"error\":\"4 requests look into the spool already; try again\"}\n");
    assert_non_null(strstr(last.headers, "Retry-After: 1\r\n"));
    check("GET", false, "/health/live", 200, TEXT, "ok\n"); /* others are served meanwhile */
    unpark();
    for (size_t i = 0; i < 4; i++) {
        ask_end(&q[i]);
        assert_int_equal(q[i].status, 200);
        assert_string_equal(buf_cstr(&q[i].body), "{}");
        buf_free(&q[i].body);
    }
    played.park = false;
    check("GET", false, "/verify", 200, JSON, "{}");
}

/* Asks over a connection of its own; the answer is for the caller to read, or not. */
static int ask_silently(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char request[128];
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int n = snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(write(fd, request, (size_t)n), n);
    return fd;
}

/* The memory of an answer is a look's until it is read, or whoever asked for it is gone. */
static void answers_that_nobody_reads_are_few(void **state)
{
    int fds[4];

    (void)state;
    played.answer_bytes = 8 << 20; /* more than a socket takes */
    played.park = true;
    for (size_t i = 0; i < 4; i++)
        fds[i] = ask_silently("/streams/a/segments");
    while (played.parked_count < 4)
        uv_run(&loop, UV_RUN_ONCE);
    unpark();
    played.park = false;
    while (played.ended < 4)
        uv_run(&loop, UV_RUN_ONCE);
    check("GET", false, "/verify", 503, JSON,
          "{\"error\":\"4 requests look into the spool already; try again\"}\n");
    check("GET", false, "/health/live", 200, TEXT, "ok\n");
    for (size_t i = 0; i < 4; i++)
        close(fds[i]);
    do { /* until that was noticed */
        buf_free(&last.body);
        ask_begin(&last, "GET", false, "/verify");
        ask_end(&last);
    } while (last.status == 503);
    assert_int_equal(last.status, 200);
    assert_int_equal(last.body.len, played.answer_bytes);
}

static void closing_lets_go_of_answers_that_nobody_reads(void **state)
{
    int fd;

    (void)state;
    played.answer_bytes = 8 << 20;
    fd = ask_silently("/streams/a/segments");
    while (played.ended < 1)
        uv_run(&loop, UV_RUN_ONCE);
    check("GET", false, "/health/live", 200, TEXT, "ok\n"); /* it is being sent by now */
    close_control();
    close(fd);
}

static void closing_lets_go_of_looks_that_wait(void **state)
{
    (void)state;
    struct question q;
    played.park = true;
    ask_begin(&q, "GET", false, "/streams/a/segments");
    while (played.parked_count < 1)
        uv_run(&loop, UV_RUN_ONCE);
    close_control(); /* and the look ends after its request has gone */
    ask_end(&q);
    assert_int_not_equal(q.code, CURLE_OK);
    buf_free(&q.body);
}

static void without_a_pipeline_there_is_an_answer_too(void **state)
{
    (void)state;
    control_attach(control, NULL);
    check("GET", false, "/health/ready", 503, TEXT, "stopping\n");
    check("GET", false, "/health/live", 200, TEXT, "ok\n");
    check("GET", false, "/status", 200, JSON, NULL);
    check("GET", false, "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", NULL);
    check("GET", false, "/verify", 503, JSON,
          "{\"error\":\"the daemon is starting or stopping\"}\n");
    check("POST", false, "/streams/a/flush", 503, JSON,
          "{\"error\":\"the daemon is starting or stopping\"}\n");
}

static void the_socket_is_the_owners_alone(void **state)
{
    (void)state;
    struct stat st;
    assert_int_equal(stat(socket_path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 0777, 0600);
    close_control();
    assert_int_not_equal(stat(socket_path, &st), 0);
}

static void a_socket_in_use_is_left_alone(void **state)
{
    (void)state;
    struct control *first = control;
    struct spool_error error = {0};
    assert_int_equal(open_control(&error), SPOOL_E_LOCKED);
    assert_non_null(strstr(error.text, socket_path));
    control = first;
    check("GET", false, "/health/live", 200, TEXT, "ok\n");
}

static void a_stale_socket_is_replaced(void **state)
{
    (void)state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct spool_error error = {0};
    close_control();
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    close(fd); /* as after kill -9 */
    if (open_control(&error) != SPOOL_OK)
        fail_msg("%s", error.text);
    check("GET", false, "/health/live", 200, TEXT, "ok\n");
}

static void a_file_in_the_sockets_place_is_left_alone(void **state)
{
    (void)state;
    struct spool_error error = {0};
    struct stat st;
    close_control();
    FILE *file = fopen(socket_path, "w");
    assert_non_null(file);
    fclose(file);
    assert_int_equal(open_control(&error), SPOOL_E_EXISTS);
    assert_int_equal(stat(socket_path, &st), 0);
    assert_true(S_ISREG(st.st_mode));
    unlink(socket_path);
}

static void what_took_the_sockets_place_is_not_removed(void **state)
{
    (void)state;
    struct stat st;
    /* The old file keeps its inode in use, so that the new one's is another. */
    char aside[128];
    snprintf(aside, sizeof(aside), "%s.aside", socket_path);
    assert_int_equal(rename(socket_path, aside), 0);
    FILE *file = fopen(socket_path, "w");
    assert_non_null(file);
    fclose(file);
    close_control();
    assert_int_equal(stat(socket_path, &st), 0);
    unlink(socket_path);
    unlink(aside);
}

static void a_port_in_use_is_named(void **state)
{
    (void)state;
    struct spool_error error = {0};
    char address[64], want[160], bound[64];
    int fd;
    snprintf(address, sizeof(address), "%s", control_http_address(control));
    snprintf(want, sizeof(want),
             "http.listen: %s is in use by another process: stop it, or choose another port",
             address);
    assert_int_equal(listen_tcp(address, &fd, bound, sizeof(bound), &error), SPOOL_E_IO);
    assert_string_equal(error.text, want);
    assert_int_equal(fd, -1);
    assert_int_equal(listen_tcp("no.such.host.invalid:1", &fd, bound, sizeof(bound), &error),
                     SPOOL_E_IO);
    assert_int_equal(listen_tcp(":0", &fd, bound, sizeof(bound), &error), SPOOL_OK);
    close(fd);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(both_ways_in_answer_what_may_be_seen),
        TEST(not_ready_is_503_with_the_reason),
        TEST(what_is_not_there_is_said),
        TEST(the_listener_neither_steers_nor_looks),
        TEST(streams_are_steered),
        TEST(looks_get_their_parameters),
        TEST(dead_letters_are_replayed_and_discarded),
        TEST(arguments_that_say_nothing_are_refused),
        TEST(a_replay_outlives_whoever_asked),
        TEST(looks_that_fail_say_why),
        TEST(a_large_answer_arrives_whole),
        TEST(only_so_many_look_at_a_time),
        TEST(answers_that_nobody_reads_are_few),
        TEST(closing_lets_go_of_answers_that_nobody_reads),
        TEST(closing_lets_go_of_looks_that_wait),
        TEST(without_a_pipeline_there_is_an_answer_too),
        TEST(the_socket_is_the_owners_alone),
        TEST(a_socket_in_use_is_left_alone),
        TEST(a_stale_socket_is_replaced),
        TEST(a_file_in_the_sockets_place_is_left_alone),
        TEST(what_took_the_sockets_place_is_not_removed),
        TEST(a_port_in_use_is_named),
    };
    curl_global_init(CURL_GLOBAL_DEFAULT);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    curl_global_cleanup();
    return failed;
}
