/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libmicrohttpd on the libuv loop: its epoll descriptor is watched by a uv_poll, and what it has to
 * do by time goes through MHD_get_timeout and a uv_timer; both are needed. No thread of its own.
 * Loop thread only.
 *
 * A request is handed over whole (its body, which nobody reads yet, is dropped). The callee answers
 * with http_exchange_reply before it returns, or says http_exchange_wait and replies later.
 */
#ifndef DAEMON_HTTP_SERVER_H
#define DAEMON_HTTP_SERVER_H

#include <stdbool.h>
#include <uv.h>

#include "base/buf.h"

struct http_server;
struct http_exchange; /* valid until it is replied to, or gone() was called */

struct http_server_options {
    uv_loop_t *loop;
    int listen_fd;        /* taken over, on failure too */
    const char *tls_cert; /* PEM text; NULL: plain http. Used during the call only */
    const char *tls_key;
    unsigned connection_limit;
    void (*request)(void *arg, struct http_exchange *x);
    void *arg;
};

int http_server_create(const struct http_server_options *options, struct http_server **out,
                       struct spool_error *error);

/* Ends every exchange (gone() is called for those that wait) and frees; closed from the loop. */
void http_server_close(struct http_server *server, void (*closed)(void *arg), void *arg);

const char *http_exchange_method(const struct http_exchange *x); /* HEAD counts as GET */
const char *http_exchange_path(const struct http_exchange *x);   /* unescaped, without the query */
const char *http_exchange_argument(const struct http_exchange *x, const char *name); /* or NULL */
/* All of them, until each returns false; value is NULL where there is no "=". */
void http_exchange_arguments(struct http_exchange *x,
                             bool (*each)(void *arg, const char *name, const char *value),
                             void *arg);

/* Adds a header to the reply to come; name and value are literals or outlive the exchange. */
void http_exchange_header(struct http_exchange *x, const char *name, const char *value);

/* For a large answer: sent runs once, on the loop, when the body of the reply to come is freed: it was
   sent, or nobody is there for it. That may be before http_exchange_reply returns. */
void http_exchange_on_sent(struct http_exchange *x, void (*sent)(void *arg), void *arg);

/* The answer; the body's memory changes hands (body is empty afterwards). */
void http_exchange_reply(struct http_exchange *x, unsigned status, const char *type,
                         struct buf *body);

/* Answers later. gone: the server closes, there is nobody to reply to any more. */
void http_exchange_wait(struct http_exchange *x, void (*gone)(void *arg), void *arg);

#endif
