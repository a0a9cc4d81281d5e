/* SPDX-License-Identifier: Apache-2.0 */
/* dead ls, show: of files too. dead replay, discard: by a running spoold only, which has the table's
   columns and the lanes. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
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
        {"last attempt", "last_attempt"},
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

static struct dead_filter filter_of(const struct arguments *args)
{
    struct dead_filter filter = {
        .origin = args->origin,
        .reason = args->reason,
        .has_from = args->given[OPTION_FROM],
        .has_to = args->given[OPTION_TO],
        .has_code = args->given[OPTION_CODE],
        .from = args->from,
        .to = args->to,
        .code = args->code,
    };

    if (args->given[OPTION_OFFSET]) {
        filter.has_from = filter.has_to = true;
        filter.from = filter.to = args->offset;
    }
    return filter;
}

static bool filters(const struct dead_filter *f)
{
    return f->origin || f->reason || f->has_from || f->has_to || f->has_code;
}

static int run(const struct arguments *args, bool whole)
{
    static const char *const titles[] = {"STREAM", "ORIGIN", ">OFFSET", "TIME",
                                         "REASON", "COLUMN", "RECORD"};
    struct look_dead_query query = {
        .stream = args->word_count ? args->words[0] : NULL,
        .filter = filter_of(args),
        .limit = args->given[OPTION_LIMIT] ? args->limit : 0,
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
    if (!letters.shown && args->given[OPTION_OFFSET]) {
        fprintf(stderr, "spoolctl: %s has no dead letter of offset %" PRId64 "%s%s\n", query.stream,
                args->offset, args->origin ? " of " : "", args->origin ? args->origin : "");
        return EXIT_PROBLEM;
    }
    if (!letters.shown && !letters.json)
        puts(filters(&query.filter) ? "no dead letter that matches" : "no dead letters");
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

/* --- replay and discard --------------------------------------------------------------------- */

/* The answer's document; anything but EXIT_FINE was said already. */
static int ask(const struct command *command, const struct arguments *args, bool dry,
               struct buf *answer)
{
    const struct dead_filter filter = filter_of(args);
    const char *action = strchr(command->name, ' ') + 1;
    struct spool_error error = {0};
    struct backend b;
    int status;

    if (args->spool)
        return usage_error("%s is done by a running spoold: start it, and use --socket",
                           command->name);
    status = backend_open(&b, NULL, args->socket, true, &error);
    if (status == SPOOL_OK)
        status = backend_dead_action(&b, args->words[0], action, &filter, dry, answer, &error);
    backend_close(&b);
    return status == SPOOL_OK ? EXIT_FINE : fail(&error);
}

static uint64_t number_of(struct json_view all, const char *name)
{
    struct json_view v = view_member(all, name);
    return v.text ? strtoull(v.text, NULL, 10) : 0; /* what follows in the document ends it */
}

int command_dead_replay(const struct command *command, const struct arguments *args)
{
    struct json_view all;
    struct buf answer;
    uint64_t refused, left;
    char *stopped;
    int status;

    buf_init(&answer, LIMIT_REPLY_BYTES);
    status = ask(command, args, false, &answer);
    if (status != EXIT_FINE)
        goto done;
    all = view_of((const char *)answer.data, answer.len);
    stopped = text_shown(view_member(all, "stopped"));
    refused = number_of(all, "refused");
    left = number_of(all, "unsettled") + number_of(all, "cut");
    if (args->given[OPTION_JSON]) {
        printf("%.*s", (int)answer.len, (const char *)answer.data);
    } else {
        printf("%s: %" PRIu64 " replayed, %" PRIu64 " refused again\n", args->words[0],
               number_of(all, "replayed"), refused);
        if (number_of(all, "unsettled"))
            printf("%" PRIu64 " wait for their batch, or for their partition to be read on: replay "
                   "again later\n",
                   number_of(all, "unsettled"));
        if (number_of(all, "cut"))
            printf("%" PRIu64 " were too large to be kept whole, and can't be replayed\n",
                   number_of(all, "cut"));
    }
    if (stopped && *stopped)
        fprintf(stderr, "spoolctl: it stopped before the end: %s\n", stopped);
    if (refused || left || (stopped && *stopped))
        status = EXIT_PROBLEM;
    free(stopped);
done:
    buf_free(&answer);
    return status;
}

int command_dead_discard(const struct command *command, const struct arguments *args)
{
    const bool yes = args->given[OPTION_YES];
    struct json_view all;
    struct buf answer;
    int status;

    buf_init(&answer, LIMIT_REPLY_BYTES);
    status = ask(command, args, !yes, &answer);
    if (status == EXIT_FINE) {
        all = view_of((const char *)answer.data, answer.len);
        if (args->given[OPTION_JSON])
            printf("%.*s", (int)answer.len, (const char *)answer.data);
        else
            printf("%s: %" PRIu64 " dead letters, %" PRIu64 " bytes of records, %s\n",
                   args->words[0], number_of(all, "letters"), number_of(all, "bytes"),
                   yes ? "discarded" : "would be discarded; --yes does it");
        status = yes ? EXIT_FINE : EXIT_PROBLEM;
    }
    buf_free(&answer);
    return status;
}
