/* SPDX-License-Identifier: Apache-2.0 */
/* Private to control*.c. */
#ifndef DAEMON_CONTROL_INT_H
#define DAEMON_CONTROL_INT_H

#include "daemon/control.h"
#include "daemon/http_server.h"
#include "daemon/status.h"
#include "spool/look.h"

struct front { /* one of the two ways in */
    struct control *control;
    struct http_server *server;
    bool is_socket;
};

struct control {
    uv_loop_t *loop;
    struct metrics *metrics;
    struct status_source source;
    struct front socket;
    struct front tcp;
    char address[300];
    char *socket_path;
    uint64_t socket_inode; /* what we made, and may remove */
    unsigned looks;        /* under way */
    unsigned servers;
    bool closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* {"error": sentence} */
void control_error(struct http_exchange *x, unsigned status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* What the spool holds (control_look.c); stream is NULL where the path names none. */
void control_segments(struct control *c, struct http_exchange *x, const char *stream);
void control_blocks(struct control *c, struct http_exchange *x, const char *stream);
void control_records(struct control *c, struct http_exchange *x, const char *stream);
void control_dead(struct control *c, struct http_exchange *x, const char *stream);
void control_verify(struct control *c, struct http_exchange *x, const char *stream);

/* Dead letters replayed and discarded (control_dead.c). */
void control_dead_replay(struct control *c, struct http_exchange *x, const char *stream);
void control_dead_discard(struct control *c, struct http_exchange *x, const char *stream);

/* An argument as a number; false, with the reason replied, where it is none. */
bool control_number(struct http_exchange *x, const char *name, bool *given, int64_t *v);
/* Which letters a request means, by origin, reason, code, from, to and offset; its strings are the
   request's. False, with the reason replied. */
bool control_filter(struct http_exchange *x, struct dead_filter *filter);

/* Frees when all is closed and no look is under way. */
void control_check_closed(struct control *c);

#endif
