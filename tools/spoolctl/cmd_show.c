/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "json_view.h"
#include "spoolctl.h"
#include "table.h"

struct show {
    bool json;
    bool problem;
    uint64_t shown;
    struct table table;
};

static int show_line(void *arg, const char *line, size_t size)
{
    struct show *show = arg;
    struct json_view all, record;

    if (side_line(line, size, "records", &show->table, &show->problem))
        return 0;
    show->shown++;
    if (show->json) {
        fwrite(line, 1, size, stdout);
        putchar('\n');
        return ferror(stdout);
    }
    all = view_of(line, size);
    record = view_member(all, "record");
    table_json(&show->table, view_member(all, "origin"));
    table_json(&show->table, view_member(all, "offset"));
    table_json(&show->table, view_member(all, "state"));
    /* As it stands: numbers and order of keys are the record's. */
    table_cell(&show->table, "%.*s", (int)record.size, record.text ? record.text : "");
    return ferror(stdout);
}

int command_show(const struct command *command, const struct arguments *args)
{
    static const char *const titles[] = {"ORIGIN", ">OFFSET", "STATE", "RECORD"};
    struct look_records_query query = {
        .origin = args->origin,
        .has_from = args->given[OPTION_FROM],
        .has_to = args->given[OPTION_TO],
        .from = args->from,
        .to = args->to,
        .limit = args->given[OPTION_LIMIT] ? args->limit : LOOK_RECORDS_LIMIT_DEFAULT,
    };
    struct show show = {.json = args->given[OPTION_JSON]};
    struct spool_error error = {0};
    struct backend b;
    int status;

    (void)command;
    table_init(&show.table, titles, 4);
    status = backend_open(&b, args->spool, args->socket, false, &error);
    if (status == SPOOL_OK)
        status = backend_records(&b, args->words[0], &query, show_line, &show, &error);
    table_end(&show.table);
    if (status != SPOOL_OK)
        status = fail(&error);
    else
        status = show.problem ? EXIT_PROBLEM : EXIT_FINE;
    if (status == EXIT_FINE && !show.shown && !show.json)
        printf("no records%s\n",
               args->origin || query.has_from || query.has_to ? " that match" : "");
    backend_close(&b);
    return status;
}
