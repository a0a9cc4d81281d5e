/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the answers come from: a running daemon through its control socket, or the files of a
 * stopped one (or of a copy) under LOCK. Both give the same JSON.
 */
#ifndef SPOOLCTL_BACKEND_H
#define SPOOLCTL_BACKEND_H

#include "base/buf.h"
#include "client.h"
#include "spool.h"
#include "spool/look.h"

#define DEFAULT_SOCKET "/run/spoold/control.sock"
#define DEFAULT_SPOOL  "/var/lib/spoold"

struct backend {
    const char *spool_path;
    const char *socket_path;
    struct client *client; /* a daemon answers, or */
    struct spool *spool;   /* the files are open */
};

/*
 * spool and socket as the options say, both may be NULL: then the daemon at the default socket, or
 * where none listens the default spool. daemon_only never opens files.
 */
int backend_open(struct backend *b, const char *spool, const char *socket, bool daemon_only,
                 struct spool_error *error);
void backend_close(struct backend *b);

/* Documents. A stream that does not exist is NOT_FOUND (or REFUSED by the daemon). */
int backend_status(struct backend *b, struct buf *out, struct spool_error *error);
int backend_segments(struct backend *b, const char *stream, struct buf *out,
                     struct spool_error *error);
int backend_blocks(struct backend *b, const char *stream, uint64_t segment, struct buf *out,
                   struct spool_error *error);
int backend_verify(struct backend *b, struct buf *out, struct spool_error *error);
int backend_steer(struct backend *b, const char *stream, const char *action, struct buf *out,
                  struct spool_error *error);
/* POST of dead/<action> for the letters that filter takes; waits as long as it takes. */
int backend_dead_action(struct backend *b, const char *stream, const char *action,
                        const struct dead_filter *filter, bool dry, struct buf *out,
                        struct spool_error *error);

/* Lines. */
int backend_records(struct backend *b, const char *stream, const struct look_records_query *query,
                    look_line_fn *line, void *arg, struct spool_error *error);
int backend_dead(struct backend *b, const struct look_dead_query *query, look_line_fn *line,
                 void *arg, struct spool_error *error);

/* The streams there are; free each name and the array. */
int backend_streams(struct backend *b, char ***names, size_t *count, struct spool_error *error);
void backend_streams_free(char **names, size_t count);

/* offline.c: the document of backend_status for opened files. */
int offline_status(struct spool *spool, const char *path, struct buf *out,
                   struct spool_error *error);

#endif
