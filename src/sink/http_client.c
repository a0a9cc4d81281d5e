/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How curl and libuv meet here:
 *
 *   curl says which descriptors to watch (on_socket -> one uv_poll each) and when it wants to be
 *   called at the latest (on_curl_timer -> one uv_timer); we tell it what happened
 *   (curl_multi_socket_action) from loop callbacks only. Everything a user asks for (send, resume,
 *   cancel, close) is noted in the request and carried out by one idle handle in the next turn of
 *   the loop, because curl forbids being called from its own callbacks, and because a user must
 *   never meet done() inside a call of his own.
 *
 * No body twice: curl repeats a request by itself when a reused connection turns out dead. It
 * cannot rewind our body (no seek function) once it knows that bytes were sent, but bytes it took
 * and had not written when the connection died would be missing from the repeat. So the callback
 * that runs before every attempt refuses one that begins after bytes were taken.
 *
 * A reset instead of a FIN: while a request runs its socket has a zero linger time, also for the
 * kernel when this process is killed. Old servers store whatever blocks came before an orderly end
 * of the connection as if they were the whole body (measured on 18.16); a reset makes them drop it.
 * Idle connections end in order (18.16 logs a reset as an error).
 */
#include "sink/http_client.h"

#include <assert.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/limits.h"

#define CONNECT_TIMEOUT_DEFAULT_MS 5000
#define STALL_TIMEOUT_DEFAULT_MS   30000
#define STALL_CHECK_MAX_MS         1000
#define STALL_CHECK_MIN_MS         10
#define IDLE_CONNECTIONS_MAX       64
#define HEADER_VALUE_BYTES         1024
/* Without a Keep-Alive header of the server: an idle connection is used for this long. */
#define IDLE_DEFAULT_SECONDS 1
#define IDLE_MAX_SECONDS     60

enum end_reason { END_NONE = 0, END_CANCELLED, END_STALLED, END_SOURCE, END_REPEAT };

struct http_request {
    struct http_client *client;
    struct http_request *next, *previous;
    CURL *easy;
    struct curl_slist *headers;
    char *body; /* copied small body, or NULL */
    http_body_fn read_body;
    void *arg;
    void (*done)(void *arg, const struct http_reply *reply);
    uint64_t body_size;
    uint64_t body_given; /* bytes handed to curl */
    bool added;          /* curl has it */
    bool want_add, want_resume, want_cancel;
    bool stalled;
    bool paused;
    bool connected;
    enum end_reason end;
    uint64_t start_ns;
    uint64_t progress_ms; /* when the last byte moved */
    uint64_t progress_bytes;
    uint64_t received; /* header and body bytes */
    struct buf reply;
    bool head_whole;  /* the last answer's head has ended */
    bool head_framed; /* and says where its body ends */
    bool reply_cut;
    bool reply_failed; /* no memory for it */
    char exception_code[16];
    char summary[HEADER_VALUE_BYTES];
    char error[CURL_ERROR_SIZE];
};

struct http_client {
    uv_loop_t *loop;
    CURLM *multi;
    uv_timer_t timer; /* curl's own */
    uv_timer_t stall; /* runs while requests do */
    uv_idle_t turn;   /* carries out what was asked for */
    bool run_curl;    /* curl wants to be called at once */
    bool closing;
    unsigned handles; /* open libuv handles */
    struct http_request *requests;
    struct open_socket *sockets;
    uint32_t connect_timeout_ms;
    uint32_t stall_timeout_ms;
    long idle_seconds; /* the least any server announced; 0: never reuse */
    bool idle_known;
    char *proxy, *ca_file, *cert_file, *key_file;
    bool insecure;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* A descriptor that curl has open. */
struct open_socket {
    struct open_socket *next;
    curl_socket_t fd;
};

struct watch {
    uv_poll_t poll;
    struct http_client *client;
    curl_socket_t fd;
};

static void take_finished(struct http_client *client);
static void on_turn(uv_idle_t *idle);

/* --- the loop's side ------------------------------------------------------------------------- */

static void wake(struct http_client *client)
{
    uv_idle_start(&client->turn, on_turn);
}

static void release_handle(struct http_client *client)
{
    assert(client->handles > 0);
    if (--client->handles > 0)
        return;
    assert(client->closing && !client->requests && !client->sockets);
    if (client->closed)
        client->closed(client->closed_arg);
    free(client->proxy);
    free(client->ca_file);
    free(client->cert_file);
    free(client->key_file);
    free(client);
}

static void on_handle_closed(uv_handle_t *handle)
{
    release_handle(handle->data);
}

static void on_watch_closed(uv_handle_t *handle)
{
    struct watch *watch = handle->data;
    struct http_client *client = watch->client;
    free(watch);
    release_handle(client);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
    struct watch *watch = poll->data;
    struct http_client *client = watch->client;
    int flags = 0, running;

    if (status < 0)
        flags = CURL_CSELECT_ERR;
    if (events & UV_READABLE)
        flags |= CURL_CSELECT_IN;
    if (events & UV_WRITABLE)
        flags |= CURL_CSELECT_OUT;
    /* watch may be gone after this call */
    curl_multi_socket_action(client->multi, watch->fd, flags, &running);
    take_finished(client);
}

static void run_timeouts(struct http_client *client)
{
    int running;
    curl_multi_socket_action(client->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    take_finished(client);
}

static void on_timer(uv_timer_t *timer)
{
    run_timeouts(timer->data);
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *socket_arg)
{
    struct http_client *client = arg;
    struct watch *watch = socket_arg;
    int events = 0;

    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (watch) {
            curl_multi_assign(client->multi, fd, NULL);
            uv_poll_stop(&watch->poll);
            uv_close((uv_handle_t *)&watch->poll, on_watch_closed);
        }
        return 0;
    }
    if (!watch) {
        watch = calloc(1, sizeof(*watch));
        if (!watch)
            return -1;
        watch->client = client;
        watch->fd = fd;
        watch->poll.data = watch;
        if (uv_poll_init_socket(client->loop, &watch->poll, fd) != 0) {
            free(watch);
            return -1;
        }
        client->handles++;
        curl_multi_assign(client->multi, fd, watch);
    }
    if (what & CURL_POLL_IN)
        events |= UV_READABLE;
    if (what & CURL_POLL_OUT)
        events |= UV_WRITABLE;
    return uv_poll_start(&watch->poll, events, on_poll) == 0 ? 0 : -1;
}

/* A wait of 0 ms goes by the idle handle: a timer of 0 would run again in the same turn. */
static int on_curl_timer(CURLM *multi, long timeout_ms, void *arg)
{
    struct http_client *client = arg;

    (void)multi;
    if (timeout_ms == 0) {
        uv_timer_stop(&client->timer);
        client->run_curl = true;
        wake(client);
    } else if (timeout_ms < 0) {
        client->run_curl = false;
        uv_timer_stop(&client->timer);
    } else {
        client->run_curl = false;
        uv_timer_start(&client->timer, on_timer, (uint64_t)timeout_ms, 0);
    }
    return 0;
}

/* --- curl's callbacks of one request --------------------------------------------------------- */

static void set_reset_on_close(curl_socket_t fd, bool on)
{
    const struct linger linger = {.l_onoff = on, .l_linger = 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

static int on_socket_opened(void *arg, curl_socket_t fd, curlsocktype purpose)
{
    struct http_client *client = arg;
    struct open_socket *s;

    if (purpose != CURLSOCKTYPE_IPCXN)
        return CURL_SOCKOPT_OK;
    s = malloc(sizeof(*s));
    if (!s)
        return CURL_SOCKOPT_ERROR;
    s->fd = fd;
    s->next = client->sockets;
    client->sockets = s;
    set_reset_on_close(fd, true);
    return CURL_SOCKOPT_OK;
}

static int on_socket_close(void *arg, curl_socket_t fd)
{
    struct http_client *client = arg;

    for (struct open_socket **at = &client->sockets; *at; at = &(*at)->next) {
        struct open_socket *s = *at;
        if (s->fd == fd) {
            *at = s->next;
            free(s);
            break;
        }
    }
    return close(fd);
}

/* curl does not tell an attempt's descriptor, but its local port. */
static void guard_socket(const struct http_client *client, int local_port)
{
    for (const struct open_socket *s = client->sockets; s; s = s->next) {
        union {
            struct sockaddr any;
            struct sockaddr_in v4;
            struct sockaddr_in6 v6;
        } name = {.any = {0}};
        socklen_t size = sizeof(name);
        in_port_t port;
        if (getsockname(s->fd, &name.any, &size) != 0)
            continue;
        port = name.any.sa_family == AF_INET6 ? name.v6.sin6_port : name.v4.sin_port;
        if (ntohs(port) == local_port)
            set_reset_on_close(s->fd, true);
    }
}

/* Before every attempt, with the connection standing. */
static int on_attempt(void *arg, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
    struct http_request *r = arg;

    (void)remote_ip;
    (void)local_ip;
    (void)remote_port;
    guard_socket(r->client, local_port);
    r->connected = true;
    r->progress_ms = clock_monotonic_ms();
    if (r->body_given > 0) {
        r->end = END_REPEAT;
        return CURL_PREREQFUNC_ABORT;
    }
    return CURL_PREREQFUNC_OK;
}

static size_t on_read(char *dst, size_t size, size_t count, void *arg)
{
    struct http_request *r = arg;
    uint64_t left = r->body_size - r->body_given;
    size_t n = size * count, got;

    assert(r->body_given <= r->body_size);
    if (n > left)
        n = (size_t)left;
    if (n == 0)
        return 0;
    if (r->body) {
        memcpy(dst, r->body + r->body_given, n);
        got = n;
    } else {
        if (r->want_cancel) {
            r->end = r->stalled ? END_STALLED : END_CANCELLED;
            return CURL_READFUNC_ABORT;
        }
        got = r->read_body(r->arg, dst, n);
        if (got == 0) {
            r->paused = true;
            return CURL_READFUNC_PAUSE;
        }
        if (got == HTTP_BODY_ABORT) {
            r->end = END_SOURCE;
            return CURL_READFUNC_ABORT;
        }
        assert(got <= n);
    }
    r->body_given += got;
    return got;
}

static size_t on_body(char *data, size_t size, size_t count, void *arg)
{
    struct http_request *r = arg;
    size_t n = size * count, room = r->reply.max - 1 - r->reply.len, keep = n;

    r->received += n;
    if (keep > room) {
        keep = room;
        r->reply_cut = true;
    }
    if (buf_append(&r->reply, data, keep) != SPOOL_OK)
        r->reply_failed = true;
    return r->reply_failed ? 0 : n;
}

/* The value of header `name` into dst, trimmed; false where line is another header. */
static bool header_value(const char *line, size_t n, const char *name, char *dst, size_t dst_size)
{
    size_t name_size = strlen(name), at = name_size + 1, length;

    if (n <= name_size || line[name_size] != ':' || strncasecmp(line, name, name_size) != 0)
        return false;
    while (at < n && (line[at] == ' ' || line[at] == '\t'))
        at++;
    while (n > at && (line[n - 1] == '\r' || line[n - 1] == '\n' || line[n - 1] == ' '))
        n--;
    length = n - at < dst_size - 1 ? n - at : dst_size - 1;
    memcpy(dst, line + at, length);
    dst[length] = '\0';
    return true;
}

static size_t on_header(char *line, size_t size, size_t count, void *arg)
{
    struct http_request *r = arg;
    struct http_client *client = r->client;
    size_t n = size * count;
    char value[64];
    const char *timeout;

    r->received += n;
    if (n >= 5 && memcmp(line, "HTTP/", 5) == 0) { /* a further answer after a 1xx one */
        r->exception_code[0] = '\0';
        r->summary[0] = '\0';
        r->head_whole = false;
        r->head_framed = false;
    }
    if (line[0] == '\r' || line[0] == '\n')
        r->head_whole = true;
    if (header_value(line, n, "Content-Length", value, sizeof(value)) ||
        header_value(line, n, "Transfer-Encoding", value, sizeof(value))) {
        r->head_framed = true;
        return n;
    }
    if (header_value(line, n, "X-ClickHouse-Exception-Code", r->exception_code,
                     sizeof(r->exception_code)) ||
        header_value(line, n, "X-ClickHouse-Summary", r->summary, sizeof(r->summary)))
        return n;
    if (header_value(line, n, "Keep-Alive", value, sizeof(value)) &&
        (timeout = strstr(value, "timeout="))) {
        long seconds = strtol(timeout + 8, NULL, 10);
        /* curl compares whole seconds, so "1" lasts up to 2: stay a second clear of the end. */
        if (seconds > 0 && seconds <= 86400) {
            seconds = seconds > 2 ? seconds - 2 : 0;
            seconds = seconds < IDLE_MAX_SECONDS ? seconds : IDLE_MAX_SECONDS;
            if (!client->idle_known || seconds < client->idle_seconds)
                client->idle_seconds = seconds;
            client->idle_known = true;
        }
    }
    return n;
}

#ifdef SPOOLD_FAILPOINTS
static int on_transfer(void *arg, curl_off_t down_total, curl_off_t down, curl_off_t up_total,
                       curl_off_t up)
{
    struct http_request *r = arg;

    (void)down_total;
    (void)down;
    (void)up_total;
    if (r->read_body && r->received == 0 && up > 0 && (uint64_t)up == r->body_size)
        FAILPOINT(FP_SEND_BODY_DONE);
    return 0;
}
#endif

/* --- life of a request ----------------------------------------------------------------------- */

static void request_free(struct http_request *r)
{
    if (r->easy)
        curl_easy_cleanup(r->easy);
    curl_slist_free_all(r->headers);
    free(r->body);
    buf_free(&r->reply);
    free(r);
}

static void request_unlink(struct http_request *r)
{
    struct http_client *client = r->client;

    if (r->previous)
        r->previous->next = r->next;
    else
        client->requests = r->next;
    if (r->next)
        r->next->previous = r->previous;
    if (!client->requests) {
        uv_timer_stop(&client->stall);
        if (client->closing)
            wake(client);
    }
}

static const char *failure_text(const struct http_request *r, CURLcode result)
{
    switch (r->end) {
    case END_CANCELLED:
        return "cancelled";
    case END_STALLED:
        return r->body_given < r->body_size ? "the server took no data for too long"
                                            : "the server did not answer for too long";
    case END_SOURCE:
        return "the body could not be read";
    case END_REPEAT:
        return "the connection died while the body was sent";
    case END_NONE:
        break;
    }
    if (r->reply_failed)
        return "no memory for the answer";
    if (result == CURLE_OK && !r->head_whole)
        return "the connection ended inside the head of the answer";
    if (result == CURLE_OK && !r->head_framed)
        return "the answer does not say where it ends";
    if (result == CURLE_SEND_FAIL_REWIND)
        return "the server closed the connection before it answered";
    if (r->error[0])
        return r->error;
    return curl_easy_strerror(result);
}

/* The one place where a request ends; called from loop callbacks only. */
static void request_finish(struct http_request *r, CURLcode result)
{
    struct http_client *client = r->client;
    struct http_reply reply = {0};
    curl_socket_t fd = CURL_SOCKET_BAD;
    long status = 0;

    /* Asked while curl still has the request; bad where the connection is not kept. */
    curl_easy_getinfo(r->easy, CURLINFO_ACTIVESOCKET, &fd);
    if (r->added)
        curl_multi_remove_handle(client->multi, r->easy);
    r->added = false;
    request_unlink(r);

    reply.body = buf_cstr(&r->reply);
    reply.body_size = r->reply.len;
    if (!reply.body) {
        r->reply_failed = true;
        reply.body = "";
        reply.body_size = 0;
    }
    /* curl takes an end of the connection inside the head for the end of the head, and can only
       take it for the end of a body of no stated length: a cut 200 must never be a whole one. */
    curl_easy_getinfo(r->easy, CURLINFO_RESPONSE_CODE, &status);
    if (result == CURLE_OK && !r->reply_failed && r->end == END_NONE && r->head_whole &&
        (r->head_framed || status != 200)) {
        if (fd != CURL_SOCKET_BAD)
            set_reset_on_close(fd, false);
        reply.status = (int)status;
    } else {
        reply.transport_error = failure_text(r, result);
    }
    reply.body_cut = r->reply_cut;
    reply.exception_code = r->exception_code[0] ? r->exception_code : NULL;
    reply.summary = r->summary[0] ? r->summary : NULL;
    reply.timed_out =
        r->end == END_STALLED || (r->end == END_NONE && result == CURLE_OPERATION_TIMEDOUT);
    reply.ended_here = r->end == END_CANCELLED || r->end == END_SOURCE;
    reply.body_sent = r->body_given;
    reply.connected = r->connected;
    reply.duration_ns = clock_monotonic_ns() - r->start_ns;
    r->done(r->arg, &reply);
    request_free(r);
}

static void take_finished(struct http_client *client)
{
    CURLMsg *message;
    int left;

    while ((message = curl_multi_info_read(client->multi, &left))) {
        char *private_data = NULL;
        CURLcode result = message->data.result;
        if (message->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &private_data);
        request_finish((struct http_request *)(void *)private_data, result);
    }
}

static void request_start(struct http_request *r)
{
    struct http_client *client = r->client;

    r->want_add = false;
    /* The time the server keeps an idle connection may be known since this request was made. */
    if (client->idle_seconds > 0)
        curl_easy_setopt(r->easy, CURLOPT_MAXAGE_CONN, client->idle_seconds);
    else
        curl_easy_setopt(r->easy, CURLOPT_FRESH_CONNECT, 1L);
    if (curl_multi_add_handle(client->multi, r->easy) != CURLM_OK) {
        request_finish(r, CURLE_OUT_OF_MEMORY);
        return;
    }
    r->added = true;
}

static void request_continue(struct http_request *r)
{
    r->want_resume = false;
    if (!r->paused || !r->added)
        return;
    r->paused = false;
    r->progress_ms = clock_monotonic_ms();
    curl_easy_pause(r->easy, CURLPAUSE_CONT);
}

/* done() may start, resume or cancel any request: that only sets flags and adds in front, so the
   saved successor stays; only this function and take_finished free. */
static void on_turn(uv_idle_t *idle)
{
    struct http_client *client = idle->data;
    struct http_request *r, *next;

    uv_idle_stop(idle);
    for (r = client->requests; r; r = next) {
        next = r->next;
        if (r->want_cancel) {
            if (r->end == END_NONE)
                r->end = r->stalled ? END_STALLED : END_CANCELLED;
            request_finish(r, CURLE_ABORTED_BY_CALLBACK);
        } else if (r->want_add) {
            request_start(r);
        } else if (r->want_resume) {
            request_continue(r);
        }
    }
    if (client->run_curl) {
        client->run_curl = false;
        run_timeouts(client);
    }
    if (client->closing && !client->requests && client->multi) {
        curl_multi_cleanup(client->multi);
        client->multi = NULL;
        uv_idle_stop(&client->turn);
        uv_close((uv_handle_t *)&client->timer, on_handle_closed);
        uv_close((uv_handle_t *)&client->stall, on_handle_closed);
        uv_close((uv_handle_t *)&client->turn, on_handle_closed);
    }
}

/*
 * curl's own low-speed limit counts whole seconds, and counts the time our own body source takes;
 * here a byte either way, or a source that is not ready, starts the time anew.
 */
static void on_stall_check(uv_timer_t *timer)
{
    struct http_client *client = timer->data;
    uint64_t now = clock_monotonic_ms();

    for (struct http_request *r = client->requests; r; r = r->next) {
        curl_off_t sent = 0;
        uint64_t bytes;
        if (!r->connected) /* the connect timeout's time */
            continue;
        curl_easy_getinfo(r->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
        bytes = (uint64_t)sent + r->received;
        if (bytes != r->progress_bytes || r->paused) {
            r->progress_bytes = bytes;
            r->progress_ms = now;
        } else if (now - r->progress_ms >= client->stall_timeout_ms) {
            r->stalled = true;
            r->want_cancel = true;
            wake(client);
        }
    }
}

/* --- the public side ------------------------------------------------------------------------- */

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_status;

static void curl_begin(void)
{
    curl_status = curl_global_init(CURL_GLOBAL_DEFAULT);
}

static int copy_text(char **dst, const char *src)
{
    if (!src)
        return 0;
    *dst = strdup(src);
    return *dst ? 0 : -1;
}

int http_client_create(uv_loop_t *loop, const struct http_client_options *options,
                       struct http_client **out, struct spool_error *error)
{
    struct http_client *client;

    *out = NULL;
    pthread_once(&curl_once, curl_begin);
    if (curl_status != CURLE_OK)
        return spool_error_set(error, SPOOL_E_NOMEM, "libcurl does not start: %s",
                               curl_easy_strerror(curl_status));
    client = calloc(1, sizeof(*client));
    if (!client)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for an HTTP client");
    client->multi = curl_multi_init();
    if (!client->multi || copy_text(&client->proxy, options->proxy) ||
        copy_text(&client->ca_file, options->tls.ca_file) ||
        copy_text(&client->cert_file, options->tls.cert_file) ||
        copy_text(&client->key_file, options->tls.key_file)) {
        curl_multi_cleanup(client->multi);
        free(client->proxy);
        free(client->ca_file);
        free(client->cert_file);
        free(client->key_file);
        free(client);
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for an HTTP client");
    }
    client->loop = loop;
    client->insecure = options->tls.insecure;
    client->connect_timeout_ms =
        options->connect_timeout_ms ? options->connect_timeout_ms : CONNECT_TIMEOUT_DEFAULT_MS;
    client->stall_timeout_ms =
        options->stall_timeout_ms ? options->stall_timeout_ms : STALL_TIMEOUT_DEFAULT_MS;
    client->idle_seconds = IDLE_DEFAULT_SECONDS;
    uv_timer_init(loop, &client->timer);
    uv_timer_init(loop, &client->stall);
    uv_idle_init(loop, &client->turn);
    client->handles = 3;
    client->timer.data = client->stall.data = client->turn.data = client;
    curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
    curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer);
    curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
    curl_multi_setopt(client->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING);
    curl_multi_setopt(client->multi, CURLMOPT_MAXCONNECTS, (long)IDLE_CONNECTIONS_MAX);
    *out = client;
    return SPOOL_OK;
}

void http_client_close(struct http_client *client, void (*closed)(void *arg), void *arg)
{
    assert(!client->closing);
    client->closing = true;
    client->closed = closed;
    client->closed_arg = arg;
    for (struct http_request *r = client->requests; r; r = r->next)
        r->want_cancel = true;
    wake(client);
}

static int add_header(struct http_request *r, const char *text)
{
    struct curl_slist *list;

    if (strpbrk(text, "\r\n"))
        return SPOOL_E_INVALID;
    list = curl_slist_append(r->headers, text);
    if (!list)
        return SPOOL_E_NOMEM;
    r->headers = list;
    return SPOOL_OK;
}

static int add_secret(struct http_request *r, const char *name, const char *value)
{
    struct buf line;
    const char *text;
    int status;

    buf_init(&line, 64 * KIB);
    status = buf_printf(&line, "%s: %s", name, value);
    text = status == SPOOL_OK ? buf_cstr(&line) : NULL;
    if (status == SPOOL_OK)
        status = text ? add_header(r, text) : SPOOL_E_NOMEM;
    if (line.data)
        explicit_bzero(line.data, line.len);
    buf_free(&line);
    return status;
}

static int set_headers(struct http_request *r, const struct http_request_spec *spec)
{
    int status = SPOOL_OK;

    /* Without "Expect:" curl waits up to a second for leave to send a large body. */
    if (spec->post) {
        status = add_header(r, "Expect:");
        if (status == SPOOL_OK)
            status = add_header(r, "Content-Type: application/octet-stream");
    }
    if (status == SPOOL_OK && spec->user && spec->user[0])
        status = add_secret(r, "X-ClickHouse-User", spec->user);
    if (status == SPOOL_OK && spec->password && spec->password[0])
        status = add_secret(r, "X-ClickHouse-Key", spec->password);
    for (size_t i = 0; status == SPOOL_OK && i < spec->header_count; i++)
        status = add_header(r, spec->headers[i]);
    return status;
}

static bool set_options(struct http_request *r, const struct http_request_spec *spec)
{
    struct http_client *client = r->client;
    CURL *easy = r->easy;
    CURLcode bad = CURLE_OK;

#define SET(option, value)                                                                         \
    do {                                                                                           \
        CURLcode set_status = curl_easy_setopt(easy, option, value);                               \
        if (set_status != CURLE_OK)                                                                \
            bad = set_status;                                                                      \
    } while (0)
    SET(CURLOPT_URL, spec->url);
    SET(CURLOPT_PRIVATE, r);
    SET(CURLOPT_ERRORBUFFER, r->error);
    SET(CURLOPT_NOSIGNAL, 1L);
    /* Else giving up on a slow name lookup holds the loop until the lookup's thread is done. */
    SET(CURLOPT_QUICK_EXIT, 1L);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    /* HTTP/2 has its own ways to repeat a request. */
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_PROXY, client->proxy ? client->proxy : ""); /* "": not the environment's */
    SET(CURLOPT_USERAGENT, "spoold/" SPOOLD_VERSION);
    SET(CURLOPT_TCP_KEEPALIVE, 1L);
    SET(CURLOPT_CONNECTTIMEOUT_MS, (long)client->connect_timeout_ms);
    SET(CURLOPT_TIMEOUT_MS, (long)spec->total_timeout_ms);
    SET(CURLOPT_SOCKOPTFUNCTION, on_socket_opened);
    SET(CURLOPT_SOCKOPTDATA, client);
    SET(CURLOPT_CLOSESOCKETFUNCTION, on_socket_close);
    SET(CURLOPT_CLOSESOCKETDATA, client);
    SET(CURLOPT_PREREQFUNCTION, on_attempt);
    SET(CURLOPT_PREREQDATA, r);
    SET(CURLOPT_WRITEFUNCTION, on_body);
    SET(CURLOPT_WRITEDATA, r);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, r);
    SET(CURLOPT_HTTPHEADER, r->headers);
    SET(CURLOPT_SSL_VERIFYPEER, client->insecure ? 0L : 1L);
    SET(CURLOPT_SSL_VERIFYHOST, client->insecure ? 0L : 2L);
    if (client->ca_file)
        SET(CURLOPT_CAINFO, client->ca_file);
    if (client->cert_file)
        SET(CURLOPT_SSLCERT, client->cert_file);
    if (client->key_file)
        SET(CURLOPT_SSLKEY, client->key_file);
    if (spec->post) {
        SET(CURLOPT_POST, 1L);
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->body_size);
        SET(CURLOPT_READFUNCTION, on_read);
        SET(CURLOPT_READDATA, r);
    } else {
        SET(CURLOPT_HTTPGET, 1L);
    }
#ifdef SPOOLD_FAILPOINTS
    SET(CURLOPT_NOPROGRESS, 0L);
    SET(CURLOPT_XFERINFOFUNCTION, on_transfer);
    SET(CURLOPT_XFERINFODATA, r);
#endif
#undef SET
    return bad == CURLE_OK;
}

static uint64_t stall_check_ms(const struct http_client *client)
{
    uint64_t ms = client->stall_timeout_ms / 4;
    if (ms > STALL_CHECK_MAX_MS)
        return STALL_CHECK_MAX_MS;
    return ms < STALL_CHECK_MIN_MS ? STALL_CHECK_MIN_MS : ms;
}

int http_client_send(struct http_client *client, const struct http_request_spec *spec,
                     struct http_request **out, struct spool_error *error)
{
    struct http_request *r;
    int status = SPOOL_E_NOMEM;

    assert(spec->url && spec->done);
    assert(!spec->body || !spec->read_body);
    assert(spec->post || (!spec->body && !spec->read_body));
    if (out)
        *out = NULL;
    if (client->closing)
        return spool_error_set(error, SPOOL_E_CANCELLED, "the HTTP client is closing");
    r = calloc(1, sizeof(*r));
    if (!r)
        goto failed;
    r->client = client;
    r->arg = spec->arg;
    r->done = spec->done;
    r->read_body = spec->read_body;
    r->body_size = spec->body || spec->read_body ? spec->body_size : 0;
    buf_init(&r->reply, (spec->max_reply_bytes ? spec->max_reply_bytes : LIMIT_REPLY_BYTES) + 1);
    if (spec->body) {
        r->body = malloc(spec->body_size + 1);
        if (!r->body)
            goto failed;
        memcpy(r->body, spec->body, spec->body_size);
    }
    r->easy = curl_easy_init();
    if (!r->easy)
        goto failed;
    status = set_headers(r, spec);
    if (status != SPOOL_OK)
        goto failed;
    if (!set_options(r, spec)) {
        status = SPOOL_E_INVALID;
        goto failed;
    }
    r->start_ns = clock_monotonic_ns();
    r->progress_ms = clock_monotonic_ms();
    r->next = client->requests;
    if (r->next)
        r->next->previous = r;
    client->requests = r;
    r->want_add = true;
    if (!uv_is_active((uv_handle_t *)&client->stall))
        uv_timer_start(&client->stall, on_stall_check, stall_check_ms(client),
                       stall_check_ms(client));
    wake(client);
    if (out)
        *out = r;
    return SPOOL_OK;

failed:
    if (r)
        request_free(r);
    if (status == SPOOL_E_INVALID)
        return spool_error_set(error, status, "a header or option of the request is not valid");
    return spool_error_set(error, status, "no memory for an HTTP request");
}

void http_request_resume(struct http_request *request)
{
    request->want_resume = true;
    wake(request->client);
}

void http_request_cancel(struct http_request *request)
{
    request->want_cancel = true;
    wake(request->client);
}

int http_escape(struct buf *out, const char *text, size_t size)
{
    static const char hex[] = "0123456789ABCDEF";

    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        char escaped[3] = {'%', hex[c >> 4], hex[c & 15]};
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     c == '-' || c == '_' || c == '.' || c == '~';
        int status = plain ? buf_append(out, text + i, 1) : buf_append(out, escaped, 3);
        if (status != SPOOL_OK)
            return status;
    }
    return SPOOL_OK;
}
