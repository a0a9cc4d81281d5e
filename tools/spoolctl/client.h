/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP over the daemon's Unix control socket. One request at a time. */
#ifndef SPOOLCTL_CLIENT_H
#define SPOOLCTL_CLIENT_H

#include "base/buf.h"
#include "spool/look.h"

struct client;

int client_create(const char *socket_path, struct client **out, struct spool_error *error);
void client_free(struct client *client);

/*
 * One request; the answer's body is appended to body. NOT_FOUND: nobody listens on the socket;
 * REFUSED: spoold answered with an error, which error->text repeats,
 * with the HTTP status in sys_errno; IO: it did not go through.
 * post false: GET. patient: wait for as long as it takes (verify reads the whole spool).
 */
int client_request(struct client *client, bool post, const char *path, bool patient,
                   struct buf *body, struct spool_error *error);

/* The same for a GET whose body is lines, handed on as they come. */
int client_lines(struct client *client, const char *path, look_line_fn *line, void *arg,
                 struct spool_error *error);

/* Appends ?name=value or &name=value, escaped; the first for a path that has no '?' yet. */
int client_add_query(struct buf *path, const char *name, const char *value);

#endif
