/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/http_server.h"

#include <assert.h>
#include <microhttpd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/log.h"

#define IDLE_TIMEOUT_S  60u
#define BODY_BYTES_MAX  (64 * KIB) /* of bodies that are dropped */
#define HEADERS_MAX     6
#define ACCEPT_AGAIN_MS 200 /* the process had no descriptor for a connection */

struct http_server {
    uv_loop_t *loop;
    struct MHD_Daemon *daemon;
    int listen_fd; /* the library's */
    uv_poll_t poll;
    uv_timer_t timer;
    unsigned handles; /* not closed yet */
    void (*request)(void *arg, struct http_exchange *x);
    void *arg;
    void (*closed)(void *arg);
    void *closed_arg;
    struct http_exchange *waiting;
    bool closing;
};

struct http_exchange {
    struct http_server *server;
    struct MHD_Connection *connection;
    const char *method;
    const char *path;
    uint64_t body_bytes;
    bool asked;
    bool suspended;
    void (*gone)(void *arg);
    void *gone_arg;
    void (*sent)(void *arg);
    void *sent_arg;
    struct MHD_Response *response;
    unsigned status;
    struct {
        const char *name;
        const char *value;
    } headers[HEADERS_MAX];
    size_t header_count;
    struct http_exchange *next, **link; /* among those that wait */
};

static void server_turn(struct http_server *server);

static void on_timer(uv_timer_t *timer)
{
    server_turn(timer->data);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    (void)status;
    (void)events;
    server_turn(poll->data);
}

/*
 * Whether there is a connection that could not be taken, and no other. The library (0.9.75) takes no more
 * while it has any, where the process is out of descriptors; without one it tries again at once, for ever.
 */
static bool is_starved(const struct http_server *server)
{
    struct pollfd listener = {.fd = server->listen_fd, .events = POLLIN};
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_CURRENT_CONNECTIONS);

    return info && info->num_connections == 0 && poll(&listener, 1, 0) > 0;
}

/* Runs what is due, and asks when to come back unasked. */
static void server_turn(struct http_server *server)
{
    MHD_UNSIGNED_LONG_LONG wait_ms = 0;

    if (server->closing)
        return;
    (void)MHD_run(server->daemon);
    if (is_starved(server)) {
        uv_poll_stop(&server->poll);
        uv_timer_start(&server->timer, on_timer, ACCEPT_AGAIN_MS, 0);
        return;
    }
    if (!uv_is_active((uv_handle_t *)&server->poll))
        uv_poll_start(&server->poll, UV_READABLE, on_readable);
    if (MHD_get_timeout(server->daemon, &wait_ms) == MHD_YES)
        uv_timer_start(&server->timer, on_timer, wait_ms, 0);
    else
        uv_timer_stop(&server->timer);
}

/* --- exchanges -------------------------------------------------------------------------------- */

static void waiting_remove(struct http_exchange *x)
{
    if (!x->link)
        return;
    *x->link = x->next;
    if (x->next)
        x->next->link = x->link;
    x->link = NULL;
}

static enum MHD_Result queue_response(struct http_exchange *x)
{
    enum MHD_Result result = MHD_queue_response(x->connection, x->status, x->response);

    MHD_destroy_response(x->response);
    x->response = NULL;
    return result;
}

static struct http_exchange *exchange_new(struct http_server *server,
                                          struct MHD_Connection *connection, const char *path,
                                          const char *method)
{
    struct http_exchange *x = calloc(1, sizeof(*x));

    if (!x)
        return NULL;
    x->server = server;
    x->connection = connection;
    x->path = path; /* both live as long as the request */
    x->method = method;
    return x;
}

/* libmicrohttpd calls it for the head, for each piece of the body, at its end, and after resume. */
static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *path,
                                  const char *method, const char *version, const char *body,
                                  size_t *body_size, void **state)
{
    struct http_server *server = arg;
    struct http_exchange *x = *state;

    (void)version;
    (void)body;
    if (!x) {
        *state = exchange_new(server, connection, path, method);
        return *state ? MHD_YES : MHD_NO;
    }
    if (*body_size) {
        x->body_bytes += *body_size;
        *body_size = 0;
        return x->body_bytes <= BODY_BYTES_MAX ? MHD_YES : MHD_NO;
    }
    if (!x->asked) {
        x->asked = true;
        server->request(server->arg, x);
        if (x->suspended)
            return MHD_YES;
    }
    return x->response ? queue_response(x) : MHD_NO;
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode how)
{
    struct http_exchange *x = *state;

    (void)arg;
    (void)connection;
    (void)how;
    if (!x)
        return;
    waiting_remove(x);
    if (x->response)
        MHD_destroy_response(x->response);
    free(x);
    *state = NULL;
}

const char *http_exchange_method(const struct http_exchange *x)
{
    return strcmp(x->method, MHD_HTTP_METHOD_HEAD) == 0 ? MHD_HTTP_METHOD_GET : x->method;
}

const char *http_exchange_path(const struct http_exchange *x)
{
    return x->path;
}

const char *http_exchange_argument(const struct http_exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_GET_ARGUMENT_KIND, name);
}

struct argument_walk {
    bool (*each)(void *arg, const char *name, const char *value);
    void *arg;
};

static enum MHD_Result on_argument(void *arg, enum MHD_ValueKind kind, const char *name,
                                   const char *value)
{
    const struct argument_walk *walk = arg;

    (void)kind;
    return walk->each(walk->arg, name ? name : "", value) ? MHD_YES : MHD_NO;
}

void http_exchange_arguments(struct http_exchange *x,
                             bool (*each)(void *arg, const char *name, const char *value),
                             void *arg)
{
    struct argument_walk walk = {each, arg};

    (void)MHD_get_connection_values(x->connection, MHD_GET_ARGUMENT_KIND, on_argument, &walk);
}

void http_exchange_header(struct http_exchange *x, const char *name, const char *value)
{
    assert(x->header_count < HEADERS_MAX);
    x->headers[x->header_count].name = name;
    x->headers[x->header_count++].value = value;
}

void http_exchange_on_sent(struct http_exchange *x, void (*sent)(void *arg), void *arg)
{
    x->sent = sent;
    x->sent_arg = arg;
}

struct answer {
    struct buf body;
    void (*sent)(void *arg); /* NULL: nobody asks */
    void *arg;
};

static void answer_free(void *arg)
{
    struct answer *a = arg;

    buf_free(&a->body);
    if (a->sent)
        a->sent(a->arg);
    free(a);
}

/* NULL: the connection is closed for want of memory. */
static struct MHD_Response *answer_create(const struct http_exchange *x, struct buf *body)
{
    struct answer whole = {*body, x->sent, x->sent_arg}, *a = malloc(sizeof(*a));
    struct MHD_Response *response = NULL;

    memset(body, 0, sizeof(*body));
    if (a) {
        *a = whole;
        response = MHD_create_response_from_buffer_with_free_callback_cls(
            whole.body.len, whole.body.data, answer_free, a);
    }
    if (response)
        return response;
    free(a);
    buf_free(&whole.body);
    if (whole.sent)
        whole.sent(whole.arg);
    return NULL;
}

void http_exchange_reply(struct http_exchange *x, unsigned status, const char *type,
                         struct buf *body)
{
    assert(!x->response);
    x->status = status;
    x->response = answer_create(x, body);
    if (x->response) {
        (void)MHD_add_response_header(x->response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
        (void)MHD_add_response_header(x->response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
        for (size_t i = 0; i < x->header_count; i++)
            (void)MHD_add_response_header(x->response, x->headers[i].name, x->headers[i].value);
    }
    if (!x->suspended)
        return;
    x->suspended = false;
    waiting_remove(x);
    MHD_resume_connection(x->connection);
    if (!x->server->closing)
        uv_timer_start(&x->server->timer, on_timer, 0, 0);
}

void http_exchange_wait(struct http_exchange *x, void (*gone)(void *arg), void *arg)
{
    struct http_server *server = x->server;

    assert(!x->suspended && !x->response);
    x->gone = gone;
    x->gone_arg = arg;
    x->suspended = true;
    x->next = server->waiting;
    x->link = &server->waiting;
    if (x->next)
        x->next->link = &x->next;
    server->waiting = x;
    MHD_suspend_connection(x->connection);
}

/* --- the server's life ------------------------------------------------------------------------ */

__attribute__((format(printf, 2, 0))) static void on_log(void *arg, const char *format,
                                                         va_list args)
{
    static struct log_gate gate;
    char text[256];
    uint64_t suppressed = 0;

    (void)arg;
    if (!log_gate_open(&gate, 10000, &suppressed))
        return;
    vsnprintf(text, sizeof(text), format, args);
    text[strcspn(text, "\n")] = 0;
    log_event(LOG_WARN, "http.trouble", "detail", text, "suppressed", log_u64(suppressed), NULL);
}

static struct MHD_Daemon *daemon_start(struct http_server *server,
                                       const struct http_server_options *options)
{
    unsigned flags = MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)(uintptr_t)options->tls_cert},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)(uintptr_t)options->tls_key},
        {MHD_OPTION_END, 0, NULL}};

    if (!options->tls_cert)
        tls[0].option = MHD_OPTION_END;
    else
        flags |= MHD_USE_TLS;
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, server, MHD_OPTION_EXTERNAL_LOGGER, on_log, server,
        MHD_OPTION_LISTEN_SOCKET, options->listen_fd, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        server, MHD_OPTION_CONNECTION_LIMIT, options->connection_limit,
        MHD_OPTION_CONNECTION_TIMEOUT, IDLE_TIMEOUT_S, MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
}

int http_server_create(const struct http_server_options *options, struct http_server **out,
                       struct spool_error *error)
{
    struct http_server *server = calloc(1, sizeof(*server));
    const union MHD_DaemonInfo *info = NULL;

    *out = NULL;
    if (!server) {
        close(options->listen_fd);
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    }
    server->loop = options->loop;
    server->listen_fd = options->listen_fd;
    server->request = options->request;
    server->arg = options->arg;
    server->daemon = daemon_start(server, options);
    if (!server->daemon) {
        close(options->listen_fd);
        free(server);
        return spool_error_set(error, SPOOL_E_IO,
                               options->tls_cert ? "http: can't serve; are http.tls.cert_file and "
                                                   "key_file a PEM certificate and its key?"
                                                 : "http: can't serve");
    }
    info = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (!info || uv_poll_init(server->loop, &server->poll, info->epoll_fd) != 0) {
        MHD_stop_daemon(server->daemon);
        free(server);
        return spool_error_set(error, SPOOL_E_IO, "http: can't watch its sockets");
    }
    uv_timer_init(server->loop, &server->timer);
    server->handles = 2;
    server->poll.data = server;
    server->timer.data = server;
    uv_poll_start(&server->poll, UV_READABLE, on_readable);
    uv_timer_start(&server->timer, on_timer, 0, 0);
    *out = server;
    return SPOOL_OK;
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct http_server *server = handle->data;

    if (--server->handles)
        return;
    if (server->closed)
        server->closed(server->closed_arg);
    free(server);
}

void http_server_close(struct http_server *server, void (*closed)(void *arg), void *arg)
{
    server->closing = true;
    server->closed = closed;
    server->closed_arg = arg;
    uv_poll_stop(&server->poll);
    uv_timer_stop(&server->timer);
    while (server->waiting) { /* the library aborts the process over a suspended connection */
        struct http_exchange *x = server->waiting;
        waiting_remove(x);
        x->suspended = false;
        MHD_resume_connection(x->connection);
        x->gone(x->gone_arg);
    }
    (void)MHD_run(server->daemon); /* closes the resumed ones: they have no answer */
    MHD_stop_daemon(server->daemon);
    uv_close((uv_handle_t *)&server->poll, on_handle_closed);
    uv_close((uv_handle_t *)&server->timer, on_handle_closed);
}
