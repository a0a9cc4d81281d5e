/* SPDX-License-Identifier: Apache-2.0 */
/* The process's memory, as glibc's malloc keeps it. */
#ifndef DAEMON_MEMORY_H
#define DAEMON_MEMORY_H

#include <uv.h>

/* Before the first thread is made. */
void memory_tune(void);

/*
 * From now on, until it is stopped, the heaps give back every 10 s what is free in them: after a burst
 * that is most of what they took, and what comes and goes in several threads' heaps leaves ever more holes.
 */
void memory_trim_start(uv_loop_t *loop);
void memory_trim_stop(void);

#endif
