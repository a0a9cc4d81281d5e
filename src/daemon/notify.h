/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What systemd wants to hear (sd_notify(3)): datagrams of "KEY=VALUE" lines to $NOTIFY_SOCKET.
 * Without that variable every call does nothing. Never blocks; a lost datagram is no error.
 */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include <stdbool.h>
#include <stdint.h>

struct notify {
    int fd; /* -1: nobody listens */
};

/* Connects to $NOTIFY_SOCKET (a path, or @name in the abstract space). */
void notify_open(struct notify *n);
void notify_close(struct notify *n);

/* Sends lines such as "READY=1\nSTATUS=running". */
void notify_send(const struct notify *n, const char *lines);

/* How often WATCHDOG=1 is due: half of $WATCHDOG_USEC, in ms; 0: it is not watched, or not us. */
uint64_t notify_watchdog_interval_ms(void);

#endif
