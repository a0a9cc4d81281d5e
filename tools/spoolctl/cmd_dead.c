/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_view.h"
#include "spoolctl.h"
#include "table.h"

#define PREVIEW_CHARACTERS 60

struct letters {
    bool json;
    bool problem;
    bool whole; /* dead show */
    uint64_t shown;
    struct table table;
};

/* The first characters of a record, cut between two of them. */
static void preview_cell(struct table *t, struct json_view record)
{
    char *text = view_text(record);
    size_t characters = 0, n = 0;

    for (; text && text[n]; n++)
        if (((unsigned char)text[n] & 0xc0) != 0x80 && characters++ == PREVIEW_CHARACTERS)
            break;
    table_cell(t, "%.*s%s", (int)n, text ? text : "", text && text[n] ? "..." : "");
    free(text);
}

static void list_letter(struct letters *letters, struct json_view all)
{
    struct table *t = &letters->table;

    table_json(t, view_member(all, "stream"));
    table_json(t, view_member(all, "origin"));
    table_json(t, view_member(all, "offset"));
    table_time(t, view_member(all, "time"));
    table_json(t, view_member(all, "reason_name"));
    table_json(t, view_member(all, "column"));
    preview_cell(t, view_member(all, "record"));
}

/* Line breaks and tabs of a record are kept; what else steers a terminal is not. */
static void print_text(const char *name, struct json_view value)
{
    char *text = view_text(value);

    printf("%-12s ", name);
    for (const unsigned char *c = (const unsigned char *)text; c && *c; c++) {
        bool c1 = c[0] == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f;
        if (c1)
            c++;
        putchar(c1 || (*c < 0x20 && *c != '\n' && *c != '\t') || *c == 0x7f ? '?' : *c);
    }
    putchar('\n');
    free(text);
}

static void print_letter(struct letters *letters, struct json_view all)
{
    static const char *const members[][2] = {
        {"stream", "stream"},
        {"origin", "origin"},
        {"offset", "offset"},
        {"code", "code"},
        {"reason", "reason_name"},
        {"because", "reason"},
        {"column", "column"},
        {"position", "position"},
        {"attempts", "attempts"},
        {"timestamp", "timestamp"},
        {"received", "received_at"},
        {"dead since", "time"},
        {"key", "key"},
        {"key base64", "key_base64"},
        {"headers", "headers"},
        {"bytes", "record_bytes"},
        {"base64", "record_base64"},
        {"record", "record"},
    };

    if (letters->shown)
        putchar('\n');
    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        struct json_view value = view_member(all, members[i][1]);
        if (value.text && !view_is(value, "null") && !view_is(value, "\"\"") &&
            !view_is(value, "[]"))
            print_text(members[i][0], value);
    }
    if (view_true(view_member(all, "record_cut")))
        puts("             (too large: these are its first bytes)");
    if (view_true(view_member(all, "rebuilt")))
        puts("             (rebuilt from its columns, not its original bytes)");
}

static int each_line(void *arg, const char *line, size_t size)
{
    struct letters *letters = arg;
    struct json_view all;

    if (side_line(line, size, "dead letters", &letters->table, &letters->problem))
        return 0;
    all = view_of(line, size);
    if (letters->json) {
        fwrite(line, 1, size, stdout);
        putchar('\n');
    } else if (letters->whole) {
        print_letter(letters, all);
    } else {
        list_letter(letters, all);
    }
    letters->shown++;
    return ferror(stdout);
}

static int run(const struct arguments *args, bool whole)
{
    static const char *const titles[] = {"STREAM", "ORIGIN", ">OFFSET", "TIME",
                                         "REASON", "COLUMN", "RECORD"};
    struct look_dead_query query = {
        .stream = args->word_count ? args->words[0] : NULL,
        .origin = args->origin,
        .has_offset = args->given[OPTION_OFFSET],
        .offset = args->offset,
    };
    struct letters letters = {.json = args->given[OPTION_JSON], .whole = whole};
    struct spool_error error = {0};
    struct backend b;
    int status;

    table_init(&letters.table, titles, 7);
    status = backend_open(&b, args->spool, args->socket, false, &error);
    if (status == SPOOL_OK)
        status = backend_dead(&b, &query, each_line, &letters, &error);
    table_end(&letters.table);
    backend_close(&b);
    if (status != SPOOL_OK)
        return fail(&error);
    if (letters.problem)
        return EXIT_PROBLEM;
    if (!letters.shown && query.has_offset) {
        fprintf(stderr, "spoolctl: %s has no dead letter of offset %" PRId64 "%s%s\n", query.stream,
                query.offset, args->origin ? " of " : "", args->origin ? args->origin : "");
        return EXIT_PROBLEM;
    }
    if (!letters.shown && !letters.json)
        puts(args->origin ? "no dead letter that matches" : "no dead letters");
    return EXIT_FINE;
}

int command_dead_ls(const struct command *command, const struct arguments *args)
{
    (void)command;
    return run(args, false);
}

int command_dead_show(const struct command *command, const struct arguments *args)
{
    (void)command;
    return run(args, true);
}
