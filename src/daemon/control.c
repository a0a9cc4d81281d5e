/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/control.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json_writer.h"
#include "base/limits.h"
#include "base/log.h"
#include "daemon/control_int.h"
#include "daemon/listen.h"
#include "daemon/status_page.h"

#define REPLY_BYTES_MAX    (64 * MIB)
#define CONNECTIONS_SOCKET 32
#define CONNECTIONS_TCP    256
#define TLS_FILE_BYTES_MAX MIB

#define TYPE_JSON "application/json"
#define TYPE_TEXT "text/plain; charset=utf-8"

void control_error(struct http_exchange *x, unsigned status, const char *format, ...)
{
    char text[SPOOL_ERROR_TEXT_BYTES + 128];
    struct json_writer w;
    struct buf body;
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    buf_init(&body, REPLY_BYTES_MAX);
    json_writer_init(&w, &body);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "error", text);
    json_writer_close(&w, '}');
    (void)buf_put_u8(&body, '\n');
    if (status == 503)
        http_exchange_header(x, "Retry-After", "1");
    http_exchange_reply(x, status, TYPE_JSON, &body);
}

static void reply_text(struct http_exchange *x, unsigned status, const char *type,
                       const char *format, const char *text)
{
    struct buf body;

    buf_init(&body, REPLY_BYTES_MAX);
    if (buf_printf(&body, format, text) == SPOOL_OK)
        http_exchange_reply(x, status, type, &body);
    else
        control_error(x, 503, "out of memory");
    buf_free(&body);
}

/* --- what there is to ask --------------------------------------------------------------------- */

static void handle_live(struct control *c, struct http_exchange *x, const char *stream)
{
    (void)c;
    (void)stream;
    reply_text(x, 200, TYPE_TEXT, "%s\n", "ok");
}

static void handle_ready(struct control *c, struct http_exchange *x, const char *stream)
{
    const char *reason = "";
    bool ready = status_ready(&c->source, &reason);

    (void)stream;
    reply_text(x, ready ? 200 : 503, TYPE_TEXT, "%s\n", ready ? "ok" : reason);
}

static void handle_metrics(struct control *c, struct http_exchange *x, const char *stream)
{
    struct buf body;

    (void)stream;
    if (c->source.pipeline)
        pipeline_update_metrics(c->source.pipeline);
    buf_init(&body, REPLY_BYTES_MAX);
    if (metrics_render(c->metrics, &body) == SPOOL_OK)
        http_exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
    else
        control_error(x, 503, "out of memory for the metrics");
    buf_free(&body);
}

static void handle_status(struct control *c, struct http_exchange *x, const char *stream)
{
    struct buf body;

    (void)stream;
    buf_init(&body, REPLY_BYTES_MAX);
    if (status_render(&c->source, &body) == SPOOL_OK)
        http_exchange_reply(x, 200, TYPE_JSON, &body);
    else
        control_error(x, 503, "out of memory for the status");
    buf_free(&body);
}

static void handle_page(struct control *c, struct http_exchange *x, const char *stream)
{
    (void)c;
    (void)stream;
    http_exchange_header(x, "Content-Security-Policy", STATUS_PAGE_POLICY);
    http_exchange_header(x, "X-Content-Type-Options", "nosniff");
    reply_text(x, 200, "text/html; charset=utf-8", "%s", STATUS_PAGE);
}

static void steer(struct control *c, struct http_exchange *x, const char *stream,
                  const char *action, int (*act)(struct pipeline *p, const char *name))
{
    struct json_writer w;
    struct buf body;
    int status;

    if (!c->source.pipeline) {
        control_error(x, 503, "the daemon is starting or stopping");
        return;
    }
    status = act(c->source.pipeline, stream);
    if (status != SPOOL_OK) {
        control_error(x, status == SPOOL_E_NOT_FOUND ? 404 : 503,
                      status == SPOOL_E_NOT_FOUND ? "there is no stream \"%s\""
                                                  : "the stream \"%s\" can't do that now",
                      stream);
        return;
    }
    log_event(LOG_INFO, "control.steer", "stream", stream, "action", action, NULL);
    buf_init(&body, REPLY_BYTES_MAX);
    json_writer_init(&w, &body);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "stream", stream);
    json_writer_text(&w, "done", action);
    json_writer_close(&w, '}');
    (void)buf_put_u8(&body, '\n');
    http_exchange_reply(x, 200, TYPE_JSON, &body);
}

static void handle_pause(struct control *c, struct http_exchange *x, const char *stream)
{
    steer(c, x, stream, "pause", pipeline_stream_pause);
}

static void handle_resume(struct control *c, struct http_exchange *x, const char *stream)
{
    bool accept_bad = http_exchange_argument(x, "accept_bad") != NULL;

    steer(c, x, stream, "resume", accept_bad ? pipeline_stream_accept_bad : pipeline_stream_resume);
}

static void handle_flush(struct control *c, struct http_exchange *x, const char *stream)
{
    steer(c, x, stream, "flush", pipeline_stream_flush);
}

/* --- finding the way -------------------------------------------------------------------------- */

#define FILTER "origin, reason, code, from, to, offset"

/* "*" in a path is a stream's name. What the socket alone serves takes these arguments and no others. */
static const struct route {
    const char *method;
    const char *path;
    bool socket_only;
    void (*handle)(struct control *c, struct http_exchange *x, const char *stream);
    const char *arguments; /* NULL: none */
} ROUTES[] = {
    {"GET", "/health/live", false, handle_live, NULL},
    {"GET", "/health/ready", false, handle_ready, NULL},
    {"GET", "/metrics", false, handle_metrics, NULL},
    {"GET", "/status", false, handle_status, NULL},
    {"GET", "/", false, handle_page, NULL},
    {"POST", "/streams/*/pause", true, handle_pause, NULL},
    {"POST", "/streams/*/resume", true, handle_resume, "accept_bad"},
    {"POST", "/streams/*/flush", true, handle_flush, NULL},
    {"GET", "/streams/*/segments", true, control_segments, NULL},
    {"GET", "/streams/*/blocks", true, control_blocks, "segment"},
    {"GET", "/streams/*/records", true, control_records, "origin, from, to, limit"},
    {"GET", "/dead", true, control_dead, FILTER ", stream, limit"},
    {"POST", "/streams/*/dead/replay", true, control_dead_replay, FILTER},
    {"POST", "/streams/*/dead/discard", true, control_dead_discard, FILTER ", dry"},
    {"GET", "/verify", true, control_verify, NULL},
};

struct argument_check {
    const char *known;
    char wrong[64]; /* the first that is not known or has no value */
    bool unknown, valueless;
};

static bool is_listed(const char *list, const char *name)
{
    size_t size = strlen(name);

    for (const char *at = list; at && *at; at += strspn(at, ", ")) {
        size_t n = strcspn(at, ", ");
        if (n == size && memcmp(at, name, n) == 0)
            return true;
        at += n;
    }
    return false;
}

static bool check_argument(void *arg, const char *name, const char *value)
{
    struct argument_check *check = arg;

    check->unknown = !is_listed(check->known, name);
    check->valueless = !value;
    if (!check->unknown && !check->valueless)
        return true;
    snprintf(check->wrong, sizeof(check->wrong), "%s", name);
    return false;
}

/* A filter that is not understood would be none. False, with the reason replied. */
static bool arguments_are_fine(const struct route *route, struct http_exchange *x, const char *path)
{
    struct argument_check check = {.known = route->arguments};

    if (route->socket_only)
        http_exchange_arguments(x, check_argument, &check);
    if (check.unknown)
        control_error(x, 400, "%.200s has no argument \"%s\"; it takes %s", path, check.wrong,
                      route->arguments ? route->arguments : "none");
    else if (check.valueless)
        control_error(x, 400, "the argument \"%s\" has no value", check.wrong);
    return !check.unknown && !check.valueless;
}

/* Whether path is the route's; stream gets what stands for "*". */
static bool route_matches(const struct route *route, const char *path,
                          char stream[LIMIT_STREAM_NAME_BYTES + 1])
{
    const char *star = strchr(route->path, '*');
    size_t before = star ? (size_t)(star - route->path) : 0;
    size_t n;

    stream[0] = 0;
    if (!star)
        return strcmp(route->path, path) == 0;
    if (strncmp(path, route->path, before) != 0)
        return false;
    n = strcspn(path + before, "/");
    if (n == 0 || strcmp(path + before + n, star + 1) != 0)
        return false;
    /* A name longer than any stream's is cut, and then names none. */
    snprintf(stream, LIMIT_STREAM_NAME_BYTES + 1, "%.*s", n > LIMIT_STREAM_NAME_BYTES ? 1 : (int)n,
             n > LIMIT_STREAM_NAME_BYTES ? "?" : path + before);
    return true;
}

static void on_request(void *arg, struct http_exchange *x)
{
    struct front *front = arg;
    const char *path = http_exchange_path(x), *method = http_exchange_method(x);
    char stream[LIMIT_STREAM_NAME_BYTES + 1];

    for (size_t i = 0; i < sizeof(ROUTES) / sizeof(ROUTES[0]); i++) {
        const struct route *route = &ROUTES[i];
        if (!route_matches(route, path, stream))
            continue;
        if (route->socket_only && !front->is_socket) {
            control_error(x, 404, "%.200s is served on the control socket only", path);
            return;
        }
        if (strcmp(route->method, method) != 0) {
            http_exchange_header(x, "Allow", route->method);
            control_error(x, 405, "%.200s takes %s only", path, route->method);
            return;
        }
        if (arguments_are_fine(route, x, path))
            route->handle(front->control, x, *stream ? stream : NULL);
        return;
    }
    control_error(x, 404, "there is nothing at %.200s", path);
}

/* --- life ------------------------------------------------------------------------------------- */

/* A whole file as text, malloc'd. */
static int read_pem(const char *path, char **out, struct spool_error *error)
{
    struct buf content;
    ssize_t got = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int status = SPOOL_OK;

    buf_init(&content, TLS_FILE_BYTES_MAX);
    while (fd >= 0 && status == SPOOL_OK && got != 0) {
        status = buf_reserve(&content, 4096);
        got = status == SPOOL_OK ? read(fd, content.data + content.len, 4095) : 0;
        if (got < 0)
            break;
        content.len += (size_t)got;
    }
    if (got < 0)
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "http.tls: can't read %s", path);
    else if (status != SPOOL_OK || !buf_cstr(&content))
        status = spool_error_set(error, status == SPOOL_OK ? SPOOL_E_NOMEM : status,
                                 "http.tls: %s is too large", path);
    if (fd >= 0)
        close(fd);
    if (status != SPOOL_OK) {
        buf_free(&content);
        return status;
    }
    *out = (char *)content.data;
    return SPOOL_OK;
}

static int front_open(struct front *front, struct control *c, bool is_socket, int fd,
                      const char *cert, const char *key, struct spool_error *error)
{
    struct http_server_options options = {
        .loop = c->loop,
        .listen_fd = fd,
        .tls_cert = cert,
        .tls_key = key,
        .connection_limit = is_socket ? CONNECTIONS_SOCKET : CONNECTIONS_TCP,
        .request = on_request,
        .arg = front,
    };
    int status;

    front->control = c;
    front->is_socket = is_socket;
    status = http_server_create(&options, &front->server, error);
    if (status == SPOOL_OK)
        c->servers++;
    return status;
}

static int open_socket(struct control *c, const struct config *config, struct spool_error *error)
{
    struct stat st = {0};
    int fd;
    int status = listen_unix(config->control_socket, &fd, error);

    if (status != SPOOL_OK)
        return status;
    c->socket_path = strdup(config->control_socket);
    if (c->socket_path && lstat(c->socket_path, &st) == 0)
        c->socket_inode = st.st_ino;
    return front_open(&c->socket, c, true, fd, NULL, NULL, error);
}

static int open_tcp(struct control *c, const struct config_http *http, struct spool_error *error)
{
    char *cert = NULL, *key = NULL;
    int fd = -1;
    int status = SPOOL_OK;

    if (!http->listen)
        return SPOOL_OK;
    if (http->tls_cert_file)
        status = read_pem(http->tls_cert_file, &cert, error);
    if (status == SPOOL_OK && http->tls_key_file)
        status = read_pem(http->tls_key_file, &key, error);
    if (status == SPOOL_OK)
        status = listen_tcp(http->listen, &fd, c->address, sizeof(c->address), error);
    if (status == SPOOL_OK)
        status = front_open(&c->tcp, c, false, fd, cert, key, error);
    free(cert);
    free(key);
    return status;
}

int control_create(const struct control_options *options, struct control **out,
                   struct spool_error *error)
{
    struct control *c = calloc(1, sizeof(*c));
    int status;

    *out = NULL;
    if (!c)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    c->loop = options->loop;
    c->metrics = options->metrics;
    c->source.config = options->config;
    c->source.uuid = options->uuid;
    c->source.started_ms = clock_monotonic_ms();
    status = open_socket(c, options->config, error);
    if (status == SPOOL_OK)
        status = open_tcp(c, &options->config->http, error);
    if (status != SPOOL_OK) {
        control_close(c, NULL, NULL);
        return status;
    }
    *out = c;
    return SPOOL_OK;
}

void control_attach(struct control *c, struct pipeline *pipeline)
{
    c->source.stopping = c->source.pipeline && !pipeline;
    c->source.pipeline = pipeline;
}

const char *control_http_address(const struct control *c)
{
    return c->address;
}

void control_unlink(struct control *c)
{
    struct stat st;

    if (c->socket_path && lstat(c->socket_path, &st) == 0 && st.st_ino == c->socket_inode)
        (void)unlink(c->socket_path);
    free(c->socket_path);
    c->socket_path = NULL;
}

void control_check_closed(struct control *c)
{
    if (!c->closing || c->servers || c->looks)
        return;
    if (c->closed)
        c->closed(c->closed_arg);
    free(c);
}

static void on_server_closed(void *arg)
{
    struct control *c = arg;

    c->servers--;
    control_check_closed(c);
}

void control_close(struct control *c, void (*closed)(void *arg), void *arg)
{
    struct http_server *socket = c->socket.server, *tcp = c->tcp.server;

    c->closing = true;
    c->closed = closed;
    c->closed_arg = arg;
    control_unlink(c);
    if (socket)
        http_server_close(socket, on_server_closed, c);
    if (tcp)
        http_server_close(tcp, on_server_closed, c);
    if (!socket && !tcp)
        control_check_closed(c);
}
