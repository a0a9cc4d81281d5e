/* SPDX-License-Identifier: Apache-2.0 */
/* What /status says, as JSON; the fields are in docs/operations.md. Loop thread only. */
#ifndef DAEMON_STATUS_H
#define DAEMON_STATUS_H

#include "base/buf.h"
#include "daemon/config.h"

struct status_source {
    const struct config *config;
    struct pipeline *pipeline; /* NULL: not there yet, or gone */
    bool stopping;             /* it is gone */
    const char *uuid;          /* of the spool */
    uint64_t started_ms;       /* monotonic */
};

/* Whether intake is open; reason gets a word otherwise, else "". */
bool status_ready(const struct status_source *source, const char **reason);

/* One JSON object and a newline. */
int status_render(const struct status_source *source, struct buf *out);

#endif
