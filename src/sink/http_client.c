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
 */
#include "sink/http_client.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "sink/http_client_int.h"

#define CONNECT_TIMEOUT_DEFAULT_MS 5000
#define STALL_TIMEOUT_DEFAULT_MS   30000
#define STALL_CHECK_MAX_MS         1000
#define STALL_CHECK_MIN_MS         10
#define IDLE_CONNECTIONS_MAX       64
/* Without a Keep-Alive header of the server: an idle connection is used for this long. */
#define IDLE_DEFAULT_SECONDS 1

struct watch {
    uv_poll_t poll;
    struct http_client *client;
    curl_socket_t fd;
    int events; /* that curl waits for */
};

static void take_finished(struct http_client *client);
static void on_turn(uv_idle_t *idle);
static void on_stall_check(uv_timer_t *timer);

/* --- the loop's side ------------------------------------------------------------------------- */

void http_client_wake(struct http_client *client)
{
    uv_idle_start(&client->turn, on_turn);
    if (client->requests && !uv_is_active((uv_handle_t *)&client->stall))
        uv_timer_start(&client->stall, on_stall_check, client->stall_check_ms,
                       client->stall_check_ms);
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
    char byte;
    int flags = CURL_CSELECT_IN, running;

    /* curl reads first, whatever happened: in front of a reset there may be the whole answer, which is
       lost if curl writes before, or is told of an error. libuv reports a reset without saying what can
       be read, and watches no longer: a socket that curl leaves open all the same is looked at again.
       With nothing to read it is told of the error: curl would take what it reads then for a connection
       that was closed while idle, and connect anew for the same request. */
    if (status < 0)
        uv_poll_start(poll, watch->events, on_poll);
    if (status < 0 && recv(watch->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
        flags = CURL_CSELECT_ERR;
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
    watch->events = events;
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
        http_client_wake(client);
    } else if (timeout_ms < 0) {
        client->run_curl = false;
        uv_timer_stop(&client->timer);
    } else {
        client->run_curl = false;
        uv_timer_start(&client->timer, on_timer, (uint64_t)timeout_ms, 0);
    }
    return 0;
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
        http_request_finish((struct http_request *)(void *)private_data, result);
    }
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
            http_request_finish(r, CURLE_ABORTED_BY_CALLBACK);
        } else if (r->want_add) {
            http_request_start(r);
        } else if (r->want_resume) {
            http_request_continue(r);
        }
    }
    if (client->run_curl) {
        client->run_curl = false;
        run_timeouts(client);
    }
    if (client->closing && !client->requests && client->multi) {
        curl_multi_cleanup(client->multi);
        client->multi = NULL;
        http_sockets_forget(client);
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
        } else if (now - r->progress_ms >= r->stall_timeout_ms) {
            r->stalled = true;
            r->want_cancel = true;
            http_client_wake(client);
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

static uint64_t stall_check_ms(uint32_t stall_timeout_ms)
{
    uint64_t ms = stall_timeout_ms / 4;
    if (ms > STALL_CHECK_MAX_MS)
        return STALL_CHECK_MAX_MS;
    return ms < STALL_CHECK_MIN_MS ? STALL_CHECK_MIN_MS : ms;
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
    client->stall_check_ms = stall_check_ms(client->stall_timeout_ms);
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
    http_client_wake(client);
}
