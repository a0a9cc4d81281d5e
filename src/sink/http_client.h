/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcurl's multi interface on a libuv loop: one client, many concurrent requests, keep-alive.
 * Loop thread only. Callbacks come from the loop, never from inside http_client_send.
 *
 * curl must never resend a body by itself: the body comes through a read function and no seek
 * function is given, redirects are off, and Content-Length is always known. A request whose reused
 * connection died is reported as failed, not repeated.
 */
#ifndef SINK_HTTP_CLIENT_H
#define SINK_HTTP_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "spool_error.h"

struct http_client;
struct http_request;

struct http_tls {
    const char *ca_file;   /* NULL: the system's */
    const char *cert_file; /* client certificate, NULL: none */
    const char *key_file;
    bool insecure; /* do not verify the server */
};

struct http_client_options {
    struct http_tls tls;
    const char *proxy;           /* NULL: none; the environment's proxies are never used */
    uint32_t connect_timeout_ms; /* 0: 5000 */
    uint32_t stall_timeout_ms;   /* no byte either way for so long fails it; 0: 30000 */
};

struct http_reply {
    int status;       /* 0: no complete answer */
    const char *body; /* NUL-terminated, at most LIMIT_REPLY_BYTES; borrowed */
    size_t body_size;
    bool body_cut;               /* more came than was kept */
    const char *exception_code;  /* X-ClickHouse-Exception-Code, or NULL */
    const char *summary;         /* X-ClickHouse-Summary, or NULL */
    const char *transport_error; /* NULL: the HTTP exchange was whole */
    bool timed_out;
    bool ended_here;    /* cancelled, or the body source gave up: no fault of the server */
    uint64_t body_sent; /* request body bytes handed to the connection. (What of them the socket
                           took is not known: curl forgets its count when it begins anew.) */
    bool connected;     /* a connection stood: false means the server saw nothing at all */
    uint64_t duration_ns;
};

/* Body source: up to n bytes to dst. Returns the count, 0 = not ready (call http_request_resume
   when it is), HTTP_BODY_ABORT = give up. Called on the loop. */
#define HTTP_BODY_ABORT ((size_t)-1)
typedef size_t (*http_body_fn)(void *arg, char *dst, size_t n);

struct http_request_spec {
    bool post;
    const char *url;            /* whole, already escaped; credentials never in it */
    const char *const *headers; /* "Name: value" */
    size_t header_count;
    const char *user; /* sent as X-ClickHouse-User / -Key headers; NULL: none */
    const char *password;
    const char *body;          /* a small body, copied; or NULL */
    size_t body_size;          /* of body, or the exact length read_body will give */
    http_body_fn read_body;    /* NULL where body is given or there is none */
    uint32_t total_timeout_ms; /* 0: none, only the stall limit (inserts) */
    uint32_t stall_factor;     /* the client's stall limit times so much; 0: once */
    size_t max_reply_bytes;    /* 0: LIMIT_REPLY_BYTES. Schema queries need more */
    void *arg;
    void (*done)(void *arg, const struct http_reply *reply); /* exactly once, also when cancelled */
};

int http_client_create(uv_loop_t *loop, const struct http_client_options *options,
                       struct http_client **out, struct spool_error *error);

/* Cancels what runs (done is called) and frees once the loop let go; closed may be NULL. */
void http_client_close(struct http_client *client, void (*closed)(void *arg), void *arg);

/* Starts a request. On failure done is not called. The request is freed after done. */
int http_client_send(struct http_client *client, const struct http_request_spec *spec,
                     struct http_request **out, struct spool_error *error);

void http_request_resume(struct http_request *request); /* the body source is ready again */
void http_request_cancel(struct http_request *request); /* done follows from the loop */

/* Appends text percent-encoded for a query string. */
struct buf;
int http_escape(struct buf *out, const char *text, size_t size);

#endif
