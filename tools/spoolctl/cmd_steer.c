/* SPDX-License-Identifier: Apache-2.0 */
/* pause, resume, flush: a daemon does them, files can't. */
#include <stdio.h>

#include "base/limits.h"
#include "json_view.h"
#include "spoolctl.h"

int command_steer(const struct command *command, const struct arguments *args)
{
    struct spool_error error = {0};
    struct backend b;
    struct buf answer;
    int status;

    if (args->spool)
        return usage_error("%s is done by a running spoold: use --socket", command->name);
    status = backend_open(&b, NULL, args->socket, true, &error);
    buf_init(&answer, LIMIT_REPLY_BYTES);
    if (status == SPOOL_OK)
        status =
            backend_steer(&b, args->words[0],
                          args->given[OPTION_ACCEPT_BAD] ? "resume?accept_bad=1" : command->name,
                          &answer, &error);
    if (status != SPOOL_OK) {
        status = fail(&error);
    } else if (!args->given[OPTION_JSON]) {
        printf("%s: %s\n", args->words[0], command->name);
    } else if (view_of((const char *)answer.data, answer.len).text) {
        printf("%.*s\n", (int)answer.len, (const char *)answer.data);
    } else {
        puts("{\"ok\":true}");
    }
    buf_free(&answer);
    backend_close(&b);
    return status;
}
