/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seeing and steering the daemon over HTTP: the control socket (everything, owner only), and the
 * TCP listener (health, metrics, status), where it is configured. Loop thread only.
 */
#ifndef DAEMON_CONTROL_H
#define DAEMON_CONTROL_H

#include <uv.h>

#include "base/metrics.h"
#include "daemon/config.h"

struct control;

struct control_options {
    uv_loop_t *loop;
    const struct config *config; /* borrowed, as are the next two */
    struct metrics *metrics;
    const char *uuid; /* of the spool */
};

/* Opens the socket and the listener: nobody is served before the loop runs. */
int control_create(const struct control_options *options, struct control **out,
                   struct spool_error *error);

/* Whom to ask; NULL (as at first): nobody, and looking and steering are refused with 503. */
void control_attach(struct control *c, struct pipeline *pipeline);

/* Where the TCP listener stands, "127.0.0.1:9364"; "" where there is none. */
const char *control_http_address(const struct control *c);

/* Removes the socket and frees; closed from the loop. Looks under way end first. */
void control_close(struct control *c, void (*closed)(void *arg), void *arg);

/* Removes the socket file only: for an exit that frees nothing. */
void control_unlink(struct control *c);

#endif
