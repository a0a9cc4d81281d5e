/* SPDX-License-Identifier: Apache-2.0 */
#include "scripted_server.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static void advance(struct scripted_connection *c);

struct send_request {
    uv_write_t write;
    struct scripted_connection *connection;
};

static void connection_closed(uv_handle_t *handle)
{
    struct scripted_connection *c = handle->data;
    c->closed = true;
}

static void connection_end(struct scripted_connection *c, bool reset)
{
    if (uv_is_closing((uv_handle_t *)&c->tcp))
        return;
    if (reset)
        uv_tcp_close_reset(&c->tcp, connection_closed);
    else
        uv_close((uv_handle_t *)&c->tcp, connection_closed);
}

static void sent(uv_write_t *write, int status)
{
    struct send_request *request = (struct send_request *)write;
    struct scripted_connection *c = request->connection;

    free(request);
    c->busy = false;
    if (status == 0)
        advance(c);
}

static void send_bytes(struct scripted_connection *c, const char *text, size_t n)
{
    struct send_request *request = calloc(1, sizeof(*request));
    uv_buf_t data = uv_buf_init((char *)(uintptr_t)text, (unsigned)n);

    assert(request);
    request->connection = c;
    c->busy = true;
    if (uv_write(&request->write, (uv_stream_t *)&c->tcp, &data, 1, sent) != 0) {
        c->busy = false;
        free(request);
    }
}

/* Looks for the end of the current request's head. */
static bool head_whole(struct scripted_connection *c)
{
    const char *start, *end, *length;

    if (c->body_start)
        return true;
    if (c->in.len == 0)
        return false;
    start = (const char *)c->in.data + c->head_start;
    end = strstr(start, "\r\n\r\n");
    if (!end)
        return false;
    c->body_start = (size_t)(end + 4 - (const char *)c->in.data);
    length = strcasestr(start, "content-length:");
    c->body_length = length && length < end ? strtoul(length + 15, NULL, 10) : 0;
    c->server->requests++;
    return true;
}

/* True where the step is over. */
static bool take_step(struct scripted_connection *c, const struct step *step)
{
    size_t body = c->body_start ? c->in.len - c->body_start : 0;

    switch (step->kind) {
    case STEP_HEAD:
        return head_whole(c);
    case STEP_BODY:
        return head_whole(c) && c->in.len - c->body_start >= c->body_length;
    case STEP_BYTES:
        return body >= step->count;
    case STEP_SEND:
        send_bytes(c, step->text, strlen(step->text));
        c->head_start = c->in.len; /* the next request begins after the answer */
        c->body_start = 0;
        return true;
    case STEP_SEND_SLOW:
        if (c->sent == strlen(step->text)) {
            c->sent = 0;
            c->head_start = c->in.len;
            c->body_start = 0;
            return true;
        }
        send_bytes(c, step->text + c->sent++, 1);
        return false;
    case STEP_CLOSE:
        connection_end(c, false);
        return true;
    case STEP_RESET:
        connection_end(c, true);
        return true;
    case STEP_SEND_RESET: {
        uv_buf_t data = uv_buf_init((char *)(uintptr_t)step->text, (unsigned)strlen(step->text));
        int sent_now = uv_try_write((uv_stream_t *)&c->tcp, &data, 1);
        assert(sent_now == (int)data.len);
        connection_end(c, true);
        return true;
    }
    case STEP_CALL:
        step->call(step->arg);
        return true;
    case STEP_DEAF:
        uv_read_stop((uv_stream_t *)&c->tcp);
        return false;
    case STEP_HOLD:
        break;
    }
    return false;
}

static void advance(struct scripted_connection *c)
{
    while (!c->busy && c->step < SCRIPT_STEPS && !uv_is_closing((uv_handle_t *)&c->tcp)) {
        if (!take_step(c, &c->script->steps[c->step]))
            return;
        c->step++;
    }
}

static void give_memory(uv_handle_t *handle, size_t suggested, uv_buf_t *out)
{
    struct scripted_connection *c = handle->data;
    (void)suggested;
    *out = uv_buf_init(c->scratch, sizeof(c->scratch));
}

static void received(uv_stream_t *stream, ssize_t n, const uv_buf_t *data)
{
    struct scripted_connection *c = stream->data;

    if (n < 0) {
        c->eof = n == UV_EOF;
        connection_end(c, false);
        return;
    }
    assert(buf_append(&c->in, data->base, (size_t)n) == SPOOL_OK);
    assert(buf_cstr(&c->in)); /* tests search it as a string */
    advance(c);
}

static void connected(uv_stream_t *listener, int status)
{
    struct scripted_server *s = listener->data;
    struct scripted_connection *c = calloc(1, sizeof(*c));
    size_t i = s->connection_count;

    assert(status == 0 && c && i < SCRIPT_CONNECTIONS);
    c->server = s;
    c->script = &s->scripts[i < s->script_count ? i : s->script_count - 1];
    c->tcp.data = c;
    buf_init(&c->in, 256 * 1024 * 1024);
    uv_tcp_init(s->loop, &c->tcp);
    assert(uv_accept(listener, (uv_stream_t *)&c->tcp) == 0);
    s->connections[s->connection_count++] = c;
    uv_read_start((uv_stream_t *)&c->tcp, give_memory, received);
    advance(c);
}

void scripted_server_start(struct scripted_server *s, uv_loop_t *loop, const struct script *scripts,
                           size_t count)
{
    struct sockaddr_in address;
    int size = sizeof(address);

    memset(s, 0, sizeof(*s));
    s->loop = loop;
    s->scripts = scripts;
    s->script_count = count;
    uv_tcp_init(loop, &s->tcp);
    s->tcp.data = s;
    uv_ip4_addr("127.0.0.1", 0, &address);
    assert(uv_tcp_bind(&s->tcp, (const struct sockaddr *)&address, 0) == 0);
    assert(uv_listen((uv_stream_t *)&s->tcp, 16, connected) == 0);
    assert(uv_tcp_getsockname(&s->tcp, (struct sockaddr *)&address, &size) == 0);
    s->port = ntohs(address.sin_port);
    snprintf(s->url, sizeof(s->url), "http://127.0.0.1:%d", s->port);
}

void scripted_server_stop_listening(struct scripted_server *s)
{
    if (!uv_is_closing((uv_handle_t *)&s->tcp))
        uv_close((uv_handle_t *)&s->tcp, NULL);
}

void scripted_server_close(struct scripted_server *s)
{
    scripted_server_stop_listening(s);
    for (size_t i = 0; i < s->connection_count; i++)
        connection_end(s->connections[i], false);
}

void scripted_server_free(struct scripted_server *s)
{
    for (size_t i = 0; i < s->connection_count; i++) {
        assert(s->connections[i]->closed);
        buf_free(&s->connections[i]->in);
        free(s->connections[i]);
    }
}

size_t scripted_server_body_bytes(const struct scripted_server *s, size_t i)
{
    const struct buf *in = &s->connections[i]->in;
    size_t at = 0, body = 0;

    while (at < in->len) {
        const char *start = (const char *)in->data + at;
        const char *end = memmem(start, in->len - at, "\r\n\r\n", 4);
        const char *length = end ? memmem(start, (size_t)(end - start), "Content-Length: ", 16) : 0;
        size_t announced = length ? strtoul(length + 16, NULL, 10) : 0, left;
        if (!end)
            break;
        at = (size_t)(end + 4 - (const char *)in->data);
        left = in->len - at;
        body += left < announced ? left : announced;
        at += left < announced ? left : announced;
    }
    return body;
}
