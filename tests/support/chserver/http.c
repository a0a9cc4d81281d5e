/* SPDX-License-Identifier: Apache-2.0 */
#include "chserver.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

struct connection *connection_new(int fd)
{
    struct connection *c = calloc(1, sizeof *c);
    if (c)
        c->fd = fd;
    if (c && !(c->data = malloc(HEAD_BYTES_MAX))) {
        free(c);
        return NULL;
    }
    return c;
}

void connection_free(struct connection *c)
{
    close(c->fd);
    free(c->data);
    free(c);
}

size_t connection_fill(struct connection *c)
{
    if (c->at == c->len)
        c->at = c->len = 0;
    if (c->at > 0 && c->len == HEAD_BYTES_MAX) {
        memmove(c->data, c->data + c->at, c->len - c->at);
        c->len -= c->at;
        c->at = 0;
    }
    ssize_t n;
    do
        n = recv(c->fd, c->data + c->len, HEAD_BYTES_MAX - c->len, 0);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return 0;
    c->len += (size_t)n;
    return (size_t)n;
}

int connection_send(struct connection *c, const void *data, size_t size)
{
    const uint8_t *at = data;
    while (size > 0) {
        ssize_t n = send(c->fd, at, size, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            c->closing = true;
            return -1;
        }
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* In place: %XX and + of a query string. */
static void url_decode(char *text)
{
    char *out = text;
    for (char *in = text; *in; in++) {
        if (*in == '+') {
            *out++ = ' ';
        } else if (*in == '%' && hex_value(in[1]) >= 0 && hex_value(in[2]) >= 0) {
            *out++ = (char)(hex_value(in[1]) * 16 + hex_value(in[2]));
            in += 2;
        } else {
            *out++ = *in;
        }
    }
    *out = '\0';
}

static void params_parse(struct request *r, char *text)
{
    char *rest = text, *one;
    while ((one = strsep(&rest, "&")) && r->param_count < PAIRS_MAX) {
        if (!*one)
            continue;
        char *value = strchr(one, '=');
        if (value)
            *value++ = '\0';
        else
            value = one + strlen(one);
        url_decode(one);
        url_decode(value);
        r->params[r->param_count++] = (struct pair){one, value};
    }
}

/* head: NUL-terminated, the lines of the request up to the empty one. */
static int head_parse(struct request *r)
{
    char *rest = r->head, *line = strsep(&rest, "\n");
    line[strcspn(line, "\r")] = '\0';
    char *method_end = strchr(line, ' ');
    char *target_end = method_end ? strchr(method_end + 1, ' ') : NULL;
    if (!target_end || strncmp(target_end + 1, "HTTP/1.", 7) != 0)
        return -1;
    *method_end = *target_end = '\0';
    r->method = line;
    r->path = method_end + 1;
    while ((line = strsep(&rest, "\n"))) {
        line[strcspn(line, "\r")] = '\0';
        if (!*line)
            continue;
        char *value = strchr(line, ':');
        if (!value || r->header_count == PAIRS_MAX)
            return -1;
        *value++ = '\0';
        value += strspn(value, " \t");
        r->headers[r->header_count++] = (struct pair){line, value};
    }
    char *query = strchr(r->path, '?');
    if (query) {
        *query++ = '\0';
        params_parse(r, query);
    }
    return 0;
}

int request_read(struct connection *c, struct request *r)
{
    memset(r, 0, sizeof *r);
    uint8_t *end;
    while (!(end = memmem(c->data + c->at, c->len - c->at, "\r\n\r\n", 4))) {
        if (c->at == 0 && c->len == HEAD_BYTES_MAX) {
            c->closing = true;
            answer(c, 400, "", "", 0);
            return -1;
        }
        if (connection_fill(c) == 0)
            return 0;
    }
    size_t size = (size_t)(end - (c->data + c->at));
    r->head = strndup((char *)c->data + c->at, size);
    c->at += size + 4;
    if (!r->head || head_parse(r) != 0) {
        c->closing = true;
        answer(c, 400, "", "", 0);
        return -1;
    }
    const char *keep = request_header(r, "Connection");
    if (keep && strcasecmp(keep, "close") == 0)
        c->closing = true;
    return 1;
}

void request_free(struct request *r)
{
    free(r->head);
    r->head = NULL;
}

const char *request_header(const struct request *r, const char *name)
{
    for (size_t i = 0; i < r->header_count; i++)
        if (strcasecmp(r->headers[i].name, name) == 0)
            return r->headers[i].value;
    return NULL;
}

const char *request_param(const struct request *r, const char *name)
{
    for (size_t i = 0; i < r->param_count; i++)
        if (strcmp(r->params[i].name, name) == 0)
            return r->params[i].value;
    return NULL;
}

static const char *status_text(int status)
{
    switch (status) {
    case 200:
        return "OK";
    case 400:
        return "Bad Request";
    case 401:
        return "Unauthorized";
    case 403:
        return "Forbidden";
    case 404:
        return "Not Found";
    case 408:
        return "Request Timeout";
    case 411:
        return "Length Required";
    case 501:
        return "Not Implemented";
    case 503:
        return "Service Unavailable";
    default:
        return "Internal Server Error";
    }
}

int answer(struct connection *c, int status, const char *headers, const void *body, size_t size)
{
    struct buf head;
    buf_init(&head, 1024 * 1024);
    int failed = buf_printf(&head,
                            "HTTP/1.1 %d %s\r\n"
                            "Connection: %s\r\n"
                            "%s"
                            "Content-Length: %zu\r\n"
                            "%s\r\n",
                            status, status_text(status), c->closing ? "Close" : "Keep-Alive",
                            c->closing ? "" : "Keep-Alive: timeout=30\r\n", size, headers);
    if (!failed && size <= 65536)
        failed = buf_append(&head, body, size);
    if (!failed)
        failed = connection_send(c, head.data, head.len);
    if (!failed && size > 65536)
        failed = connection_send(c, body, size);
    buf_free(&head);
    return failed ? -1 : 0;
}
