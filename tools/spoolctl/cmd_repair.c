/* SPDX-License-Identifier: Apache-2.0 */
/* repair: a new meta.mdb or dead.mdb of what can be read. Works on files, never through a daemon. */
#include <stdio.h>

#include "base/json_writer.h"
#include "base/limits.h"
#include "spoolctl.h"
#include "table.h"

struct report {
    bool json;
    struct json_writer w;
};

static void on_line(void *arg, const char *line)
{
    struct report *report = arg;

    if (report->json)
        json_writer_text(&report->w, NULL, line);
    else
        puts(line);
}

int command_repair(const struct command *command, const struct arguments *args)
{
    const char *path = args->spool ? args->spool : DEFAULT_SPOOL;
    bool wrong = false, dry = !args->given[OPTION_YES];
    const unsigned flags =
        (dry ? SPOOL_REPAIR_DRY : 0u) |
        (args->given[OPTION_SKIP_UNREADABLE] ? SPOOL_REPAIR_SKIP_UNREADABLE : 0u);
    struct report report = {.json = args->given[OPTION_JSON]};
    struct spool_error error = {0};
    struct buf out;
    int status;

    if (args->socket)
        return usage_error("%s works on the files of a stopped spoold: use --spool", command->name);
    buf_init(&out, LIMIT_REPLY_BYTES);
    json_writer_init(&report.w, &out);
    json_writer_open(&report.w, NULL, '{');
    json_writer_open(&report.w, "found", '[');
    status = spool_repair(path, flags, on_line, &report, &wrong, &error);
    json_writer_close(&report.w, ']');
    json_writer_bool(&report.w, "ok", status == SPOOL_OK && !(wrong && dry));
    json_writer_bool(&report.w, "repaired", status == SPOOL_OK && wrong && !dry);
    json_writer_close(&report.w, '}');
    if (report.json && report.w.status == SPOOL_OK)
        printf("%.*s\n", (int)out.len, (const char *)out.data);
    buf_free(&out);
    if (status != SPOOL_OK)
        return fail(&error);
    if (wrong && dry && !report.json)
        puts("nothing was changed: with --yes the file is made anew, and the old one kept");
    return wrong && dry ? EXIT_PROBLEM : EXIT_FINE;
}
