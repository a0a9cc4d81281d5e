/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by http_client.c (the loop's side) and http_request.c (curl's side) only. */
#ifndef SINK_HTTP_CLIENT_INT_H
#define SINK_HTTP_CLIENT_INT_H

#include <curl/curl.h>

#include "base/buf.h"
#include "sink/http_client.h"

#define HEADER_VALUE_BYTES 1024

enum end_reason { END_NONE = 0, END_CANCELLED, END_STALLED, END_SOURCE, END_REPEAT, END_UNASKED };

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
    bool plain;     /* no TLS, whose own records may come behind the handshake */
    bool opened;    /* a connection was opened for it: none is used again that was idle */
    bool body_done; /* for the failpoint of that name */
    bool paused;
    bool connected;
    enum end_reason end;
    uint64_t start_ns;
    uint64_t progress_ms; /* when the last byte moved */
    uint64_t stall_timeout_ms;
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
    uint64_t stall_check_ms;
    long idle_seconds; /* the least any server announced; 0: never reuse */
    bool idle_known;
    char *proxy, *ca_file, *cert_file, *key_file;
    bool insecure;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* A descriptor that curl has, or had, open. */
struct open_socket {
    struct open_socket *next;
    curl_socket_t fd;
};

/* Has the idle handle carry out what was noted. */
void http_client_wake(struct http_client *client);

/* Hands it to curl; a request that curl does not take ends. */
void http_request_start(struct http_request *r);
void http_request_continue(struct http_request *r);

/* Once curl has closed them all. */
void http_sockets_forget(struct http_client *client);

/* The one place where a request ends; called from loop callbacks only. */
void http_request_finish(struct http_request *r, CURLcode result);

#endif
