/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log's lines on their way to whoever reads them. Whether the descriptor blocks is not for us to
 * change, since others may share it (a shell, a supervisor's other children); a reader that does not
 * read must not stop the daemon even so. Loop thread only.
 */
#ifndef DAEMON_LOG_OUTPUT_H
#define DAEMON_LOG_OUTPUT_H

#include <stddef.h>
#include <stdint.h>

struct log_output {
    int fd;
    uint64_t dropped; /* lines, since it took one */
};

/* A log writer (log_set_writer); arg is a struct log_output. Waits a little for room; a line for which
   there is none is dropped, and from then on nothing is waited for until a line finds room again: then
   log.dropped says how many did not. */
void log_output_line(void *arg, const char *line, size_t n);

#endif
