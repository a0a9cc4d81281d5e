/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A TCP server on loopback, on the test's own loop, that does to each connection what its script
 * says. Include scripted_server.c from the test.
 */
#ifndef SCRIPTED_SERVER_H
#define SCRIPTED_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

#include "base/buf.h"

enum step_kind {
    STEP_HOLD = 0,   /* reads on and does nothing; where every script ends */
    STEP_HEAD,       /* waits for a whole request head */
    STEP_BODY,       /* waits for its whole body (Content-Length) */
    STEP_BYTES,      /* waits for `count` bytes of the body */
    STEP_SEND,       /* sends text */
    STEP_SEND_SLOW,  /* sends text a byte at a time */
    STEP_CLOSE,      /* FIN */
    STEP_RESET,      /* RST */
    STEP_SEND_RESET, /* sends text and resets in one turn of the loop: who polls sees both at once */
    STEP_CALL,       /* calls call(arg), then goes on */
    STEP_DEAF,       /* stops reading, for good */
};

struct step {
    enum step_kind kind;
    const char *text;
    size_t count;
    void (*call)(void *arg);
    void *arg;
};

#define SCRIPT_STEPS       16
#define SCRIPT_CONNECTIONS 16

struct script {
    struct step steps[SCRIPT_STEPS];
};

struct scripted_connection {
    uv_tcp_t tcp;
    struct scripted_server *server;
    const struct script *script;
    size_t step;
    struct buf in;      /* everything received */
    size_t head_start;  /* of the current request, in `in` */
    size_t body_start;  /* 0: its head is not whole yet */
    size_t body_length; /* announced */
    size_t sent;        /* of STEP_SEND_SLOW */
    bool busy, closed, eof;
    char scratch[65536];
};

struct scripted_server {
    uv_loop_t *loop;
    uv_tcp_t tcp;
    const struct script *scripts; /* connection i gets scripts[i], the last one serves the rest */
    size_t script_count;
    int port;
    char url[64];
    struct scripted_connection *connections[SCRIPT_CONNECTIONS];
    size_t connection_count;
    size_t requests; /* whole heads seen */
};

void scripted_server_start(struct scripted_server *s, uv_loop_t *loop, const struct script *scripts,
                           size_t count);

/* Stops listening: new connections are refused. */
void scripted_server_stop_listening(struct scripted_server *s);

/* Closes everything; the loop must run afterwards, then scripted_server_free. */
void scripted_server_close(struct scripted_server *s);
void scripted_server_free(struct scripted_server *s);

/* Body bytes received on connection i, over all its requests. */
size_t scripted_server_body_bytes(const struct scripted_server *s, size_t i);

#endif
