/* SPDX-License-Identifier: Apache-2.0 */
/* The sockets that spoold listens on, made with errors a person can act on. */
#ifndef DAEMON_LISTEN_H
#define DAEMON_LISTEN_H

#include <stddef.h>

#include "spool_error.h"

/*
 * A listening Unix socket that only the owner may use. It is bound and restricted under a name of
 * its own and then renamed, so it is never there with the wrong mode; a socket nobody answers on is
 * replaced, one somebody does is SPOOL_E_LOCKED. The parent directory is made where it is absent.
 */
int listen_unix(const char *path, int *fd, struct spool_error *error);

/* "host:port" as config_split_listen has it; bound gets the address with the real port. */
int listen_tcp(const char *address, int *fd, char *bound, size_t bound_size,
               struct spool_error *error);

#endif
