/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/log_output.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <unistd.h>

#include "base/log.h"

#define WAIT_MS 100

/* All of it; false: it would not take it. A pipe with room takes PIPE_BUF bytes without waiting, however
   it was opened, and a socket more than that; more at once would wait for the reader. */
static bool write_all(int fd, const char *data, size_t n, int wait_ms)
{
    while (n) {
        struct pollfd room = {.fd = fd, .events = POLLOUT};
        int ready = poll(&room, 1, wait_ms);
        ssize_t wrote = ready > 0 ? write(fd, data, n < PIPE_BUF ? n : PIPE_BUF) : ready;
        if (wrote > 0) {
            data += wrote;
            n -= (size_t)wrote;
        } else if (!ready || errno != EINTR) {
            return false;
        }
    }
    return true;
}

void log_output_line(void *arg, const char *line, size_t n)
{
    struct log_output *output = arg;

    if (!write_all(output->fd, line, n, output->dropped ? 0 : WAIT_MS)) {
        output->dropped++;
    } else if (output->dropped) {
        uint64_t count = output->dropped;
        output->dropped = 0;
        log_event(LOG_WARN, "log.dropped", "lines", log_u64(count), NULL);
    }
}
