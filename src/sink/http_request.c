/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No body twice: curl repeats a request by itself when a reused connection turns out dead. It
 * cannot rewind our body (no seek function) once it knows that bytes were sent, but bytes it took
 * and had not written when the connection died would be missing from the repeat. So the callback
 * that runs before every attempt refuses one that begins after bytes were taken.
 *
 * No answer of another request: curl takes what came on an idle connection for the answer to the
 * next request on it. So that callback also refuses a connection with something to be read. Behind the
 * handshake of a new TLS connection that is the server's session tickets; on one that was idle it may
 * be the end of it, which 7.88 does not see either, but sends the request and loses its outcome.
 *
 * A reset instead of a FIN: while a request runs its socket has a zero linger time, also for the
 * kernel when this process is killed. Old servers store whatever blocks came before an orderly end
 * of the connection as if they were the whole body (measured on 18.16); a reset makes them drop it.
 * Idle connections end in order (18.16 logs a reset as an error).
 *
 * Our list of open sockets may name closed ones: libcurl 7.88 closes a socket that was still being
 * connected (a timeout, the slower of two addresses) without its callback. Such an entry stays until
 * the kernel gives the number again, so there are never more than descriptors.
 */
#include <assert.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/limits.h"
#include "sink/http_client_int.h"

#define IDLE_MAX_SECONDS 60

/* --- curl's callbacks of one request --------------------------------------------------------- */

static void set_reset_on_close(curl_socket_t fd, bool on)
{
    const struct linger linger = {.l_onoff = on, .l_linger = 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

/* Where the list names fd, or its end. */
static struct open_socket **socket_find(struct http_client *client, curl_socket_t fd)
{
    struct open_socket **at = &client->sockets;

    while (*at && (*at)->fd != fd)
        at = &(*at)->next;
    return at;
}

static void socket_forget(struct open_socket **at)
{
    struct open_socket *s = *at;

    *at = s->next;
    free(s);
}

void http_sockets_forget(struct http_client *client)
{
    while (client->sockets)
        socket_forget(&client->sockets);
}

static int on_socket_opened(void *arg, curl_socket_t fd, curlsocktype purpose)
{
    struct http_request *r = arg;
    struct http_client *client = r->client;
    struct open_socket *s;

    if (purpose != CURLSOCKTYPE_IPCXN)
        return CURL_SOCKOPT_OK;
    if (!*socket_find(client, fd)) {
        s = malloc(sizeof(*s));
        if (!s)
            return CURL_SOCKOPT_ERROR;
        s->fd = fd;
        s->next = client->sockets;
        client->sockets = s;
    }
    set_reset_on_close(fd, true);
    r->opened = true;
    return CURL_SOCKOPT_OK;
}

static int on_socket_close(void *arg, curl_socket_t fd)
{
    struct open_socket **at = socket_find(arg, fd);

    if (*at)
        socket_forget(at);
    return close(fd);
}

/* curl does not tell an attempt's descriptor, but its local port. Whether something can be read
   there already. */
static bool guard_socket(const struct http_client *client, int local_port)
{
    bool input = false;
    char byte;

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
        if (ntohs(port) != local_port)
            continue;
        set_reset_on_close(s->fd, true);
        input = input || recv(s->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
    }
    return input;
}

/* Before every attempt, with the connection standing. */
static int on_attempt(void *arg, char *remote_ip, char *local_ip, int remote_port, int local_port)
{
    struct http_request *r = arg;

    (void)remote_ip;
    (void)local_ip;
    (void)remote_port;
    r->connected = true;
    r->progress_ms = clock_monotonic_ms();
    if (guard_socket(r->client, local_port) && (r->plain || !r->opened)) {
        r->end = END_UNASKED;
        return CURL_PREREQFUNC_ABORT;
    }
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
    if (r->read_body && !r->body_done && up > 0 && (uint64_t)up == r->body_size) {
        r->body_done = true;
        FAILPOINT(FP_SEND_BODY_DONE);
    }
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
            http_client_wake(client);
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
    case END_UNASKED:
        return "the server sent what nobody had asked for";
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
void http_request_finish(struct http_request *r, CURLcode result)
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

void http_request_start(struct http_request *r)
{
    struct http_client *client = r->client;

    r->want_add = false;
    /* The time the server keeps an idle connection may be known since this request was made. */
    if (client->idle_seconds > 0)
        curl_easy_setopt(r->easy, CURLOPT_MAXAGE_CONN, client->idle_seconds);
    else
        curl_easy_setopt(r->easy, CURLOPT_FRESH_CONNECT, 1L);
    if (curl_multi_add_handle(client->multi, r->easy) != CURLM_OK) {
        http_request_finish(r, CURLE_OUT_OF_MEMORY);
        return;
    }
    r->added = true;
}

void http_request_continue(struct http_request *r)
{
    r->want_resume = false;
    if (!r->paused || !r->added)
        return;
    r->paused = false;
    r->progress_ms = clock_monotonic_ms();
    curl_easy_pause(r->easy, CURLPAUSE_CONT);
}
/* --- making one ------------------------------------------------------------------------------- */

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
    SET(CURLOPT_SOCKOPTDATA, r);
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
    r->plain = strncasecmp(spec->url, "http:", 5) == 0;
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
    r->stall_timeout_ms =
        (uint64_t)client->stall_timeout_ms * (spec->stall_factor ? spec->stall_factor : 1);
    r->start_ns = clock_monotonic_ns();
    r->progress_ms = clock_monotonic_ms();
    r->next = client->requests;
    if (r->next)
        r->next->previous = r;
    client->requests = r;
    r->want_add = true;
    http_client_wake(client);
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
    http_client_wake(request->client);
}

void http_request_cancel(struct http_request *request)
{
    request->want_cancel = true;
    http_client_wake(request->client);
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
