/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_view.h"
#include "spoolctl.h"

#define BIT(option) (1u << (option))

static const struct option {
    const char *name;
    const char *value; /* NULL: takes none */
    const char *help;
} options[OPTION_COUNT] = {
    [OPTION_SPOOL] = {"--spool", "DIR", "read the files of a stopped spoold, or of a copy"},
    [OPTION_SOCKET] = {"--socket", "PATH", "ask the running spoold behind this control socket"},
    [OPTION_JSON] = {"--json", NULL, "one JSON document, or an object a line for records"},
    [OPTION_SEGMENTS] = {"--segments", NULL, "the segment files (what is listed by itself)"},
    [OPTION_BATCHES] = {"--batches", NULL, "the sealed batches that are not acknowledged yet"},
    [OPTION_BLOCKS] = {"--blocks", NULL, "every block with its origin and offsets"},
    [OPTION_ORIGIN] = {"--origin", "NAME", "only of this origin"},
    [OPTION_FROM] = {"--from", "OFFSET", "from this offset on"},
    [OPTION_TO] = {"--to", "OFFSET", "up to and with this offset"},
    [OPTION_LIMIT] = {"--limit", "N", "at most this many records (100)"},
    [OPTION_OFFSET] = {"--offset", "OFFSET", "only the letter of this offset"},
    [OPTION_REASON] = {"--reason", "WORD", "only of this reason, as dead ls shows it"},
    [OPTION_CODE] = {"--code", "N", "only of this code: spoold's reason, or ClickHouse's"},
    [OPTION_YES] = {"--yes", NULL, "do it; without, only say what would be done"},
    [OPTION_ACCEPT_BAD] = {"--accept-bad", NULL, "let rows over bad_ratio go to the dead letters"},
    [OPTION_SKIP_UNREADABLE] = {"--skip-unreadable", NULL,
                                "give up dead letters that the disk does not give"},
    [OPTION_HELP] = {"--help", NULL, "this text"},
    [OPTION_VERSION] = {"--version", NULL, "the version"},
};

#define RANGE_OPTIONS  (BIT(OPTION_ORIGIN) | BIT(OPTION_FROM) | BIT(OPTION_TO))
#define FILTER_OPTIONS (RANGE_OPTIONS | BIT(OPTION_REASON) | BIT(OPTION_CODE))

const struct command commands[] = {
    {"status", "", "streams, their states and what waits", NULL, 0, 0, 0, false, command_status},
    {"ls", "[STREAM]", "segments, batches or blocks with their offsets", NULL, 0, 1,
     BIT(OPTION_SEGMENTS) | BIT(OPTION_BATCHES) | BIT(OPTION_BLOCKS), true, command_ls},
    {"show", "STREAM", "the records themselves", NULL, 1, 1, RANGE_OPTIONS | BIT(OPTION_LIMIT),
     true, command_show},
    {"verify", "", "read everything and check it; exit 1 if anything is wrong", NULL, 0, 0, 0,
     false, command_verify},
    {"repair", "", "make meta.mdb or dead.mdb anew of what can be read, where it is damaged",
     "For a stopped spoold, and after a copy of the directory was made. Without --yes it says "
     "what\n"
     "it finds and would do, and exits 1 where one of them is damaged, or meta.mdb gone. The old\n"
     "file is kept under another name. A new meta.mdb is made of what the segments say: streams,\n"
     "origins and all rows are had again. Acknowledgements and seals are not: rows below the "
     "offset\n"
     "that the Kafka group committed are not sent again, others are asked about where the table\n"
     "has origin columns, and may come twice elsewhere. A new dead.mdb gets the letters that can\n"
     "still be read. What the disk does not give (a bad sector) is not damaged, and ends a repair\n"
     "with an error: it may be read the next time. With --skip-unreadable the new dead.mdb goes\n"
     "without the letters that can't be read, and each page and letter passed over is named.\n",
     0, 0, BIT(OPTION_YES) | BIT(OPTION_SKIP_UNREADABLE), false, command_repair},
    {"dead ls", "[STREAM]", "the dead letters, one a line",
     "The letters of a stream, or of all, in order of origin and offset, with the beginning of\n"
     "each record. `dead show` tells all of a letter.\n",
     0, 1, FILTER_OPTIONS | BIT(OPTION_LIMIT), true, command_dead_ls},
    {"dead show", "STREAM", "dead letters with all that is known of them",
     "Why each was refused (reason, code, column, position in the record), how often and when it\n"
     "was tried, where it came from, its key and headers, and the record itself. A record that\n"
     "only ClickHouse refused was rebuilt from its columns, and says so.\n",
     1, 1, FILTER_OPTIONS | BIT(OPTION_OFFSET) | BIT(OPTION_LIMIT), true, command_dead_show},
    {"dead replay", "STREAM", "decode dead letters again, and put those that fit into the spool",
     "For when the cause is mended: the table, the columns in the configuration, "
     "max_record_bytes.\n"
     "The running spoold reads the table's columns anew and decodes each letter by them, with the\n"
     "record's own topic, partition, offset, key, headers and time. A letter that fits becomes a\n"
     "row of the spool exactly once, and is gone; one that does not stays, with one attempt more\n"
     "and the new reason. Exit 1 where a letter was refused or could not be replayed.\n",
     1, 1, FILTER_OPTIONS, true, command_dead_replay},
    {"dead discard", "STREAM", "remove dead letters for good",
     "Without --yes it says how many letters would go, and exits 1. What is discarded can't be\n"
     "had back from spoold; Kafka may still have it. Those of a stream that the configuration\n"
     "does not name go too.\n",
     1, 1, FILTER_OPTIONS | BIT(OPTION_YES), true, command_dead_discard},
    {"pause", "STREAM", "stop a stream's inserts; what it reads waits in the spool", NULL, 1, 1, 0,
     true, command_steer},
    {"resume", "STREAM", "let a paused or held stream go on", NULL, 1, 1, BIT(OPTION_ACCEPT_BAD),
     true, command_steer},
    {"flush", "STREAM", "insert what waits now", NULL, 1, 1, 0, true, command_steer},
    {"help", "[COMMAND]", "this text, or a command's", NULL, 0, 2, 0, false, command_help},
};
const size_t command_count = sizeof(commands) / sizeof(commands[0]);

static uint32_t allowed_options(const struct command *command)
{
    uint32_t common = BIT(OPTION_SPOOL) | BIT(OPTION_SOCKET) | BIT(OPTION_JSON) | BIT(OPTION_HELP);
    return common | (command ? command->options : 0);
}

void print_option_help(const struct command *command)
{
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        char left[32];
        if (!(allowed_options(command) & BIT(i)) && (command || i != OPTION_VERSION))
            continue;
        snprintf(left, sizeof(left), "%s %s", options[i].name,
                 options[i].value ? options[i].value : "");
        printf("  %-18s %s\n", left, options[i].help);
    }
}

int fail(struct spool_error *error)
{
    fflush(stdout);
    text_make_harmless(error->text);
    fprintf(stderr, "spoolctl: %s\n", error->text[0] ? error->text : spool_strerror(error->status));
    return EXIT_PROBLEM;
}

int usage_error(const char *format, ...)
{
    va_list args;

    fputs("spoolctl: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs("; `spoolctl help` tells more\n", stderr);
    return EXIT_USAGE;
}

static bool parse_i64(const char *text, int64_t *out)
{
    char *end = NULL;
    long long v;

    errno = 0;
    v = strtoll(text, &end, 10);
    *out = v;
    return !errno && end != text && !*end && (*text == '-' || (*text >= '0' && *text <= '9'));
}

static int take_value(struct arguments *args, size_t id, const char *value)
{
    int64_t number = 0;
    bool is_number = parse_i64(value, &number);

    switch (id) {
    case OPTION_SPOOL:
        args->spool = value;
        return *value ? 0 : usage_error("--spool needs a directory");
    case OPTION_SOCKET:
        args->socket = value;
        return *value ? 0 : usage_error("--socket needs a path");
    case OPTION_ORIGIN:
        args->origin = value;
        return 0;
    case OPTION_REASON:
        args->reason = value;
        return 0;
    case OPTION_CODE:
        args->code = (int)number;
        if (!is_number || number < INT32_MIN || number > INT32_MAX)
            return usage_error("--code takes a number, not '%s'", value);
        return 0;
    case OPTION_FROM:
        args->from = number;
        break;
    case OPTION_TO:
        args->to = number;
        break;
    case OPTION_OFFSET:
        args->offset = number;
        break;
    case OPTION_LIMIT:
        args->limit = (uint64_t)number;
        if (!is_number || number < 1)
            return usage_error("--limit takes a number from 1 on, not '%s'", value);
        return 0;
    default:
        return 0;
    }
    return is_number ? 0 : usage_error("%s takes a number, not '%s'", options[id].name, value);
}

/* One option at argv[*at], with its value behind '=' or in the next word. */
static int take_option(struct arguments *args, char **argv, int argc, int *at)
{
    const char *word = argv[*at], *equals = strchr(word, '=');
    size_t size = equals ? (size_t)(equals - word) : strlen(word);

    for (size_t id = 0; id < OPTION_COUNT; id++) {
        const struct option *o = &options[id];
        if (strncmp(o->name, word, size) != 0 || o->name[size])
            continue;
        if (args->given[id])
            return usage_error("%s is given twice", o->name);
        args->given[id] = true;
        if (!o->value)
            return equals ? usage_error("%s takes no value", o->name) : 0;
        if (equals)
            return take_value(args, id, equals + 1);
        if (*at + 1 >= argc)
            return usage_error("%s needs its %s behind it", o->name, o->value);
        return take_value(args, id, argv[++*at]);
    }
    return usage_error("unknown option %s", word);
}

static int parse(struct arguments *args, int argc, char **argv)
{
    bool only_words = false;

    for (int i = 1; i < argc; i++) {
        int status = 0;
        if (!only_words && strcmp(argv[i], "--") == 0)
            only_words = true;
        else if (!only_words && strcmp(argv[i], "-h") == 0)
            args->given[OPTION_HELP] = true;
        else if (!only_words && argv[i][0] == '-' && argv[i][1])
            status = take_option(args, argv, argc, &i);
        else if (args->word_count == sizeof(args->words) / sizeof(args->words[0]))
            status = usage_error("too many words, from '%s' on", argv[i]);
        else
            args->words[args->word_count++] = argv[i];
        if (status)
            return status;
    }
    if (args->spool && args->socket)
        return usage_error("--spool reads files and --socket asks a daemon: give one of them");
    return 0;
}

/* Finds the command and takes its one or two words off. */
static const struct command *find_command(struct arguments *args)
{
    char two[64];
    size_t taken = 0;
    const struct command *found = NULL;

    snprintf(two, sizeof(two), "%s %s", args->words[0], args->word_count > 1 ? args->words[1] : "");
    for (size_t i = 0; i < command_count && !found; i++) {
        taken = strchr(commands[i].name, ' ') ? 2 : 1;
        if (strcmp(commands[i].name, taken == 2 ? two : args->words[0]) == 0)
            found = &commands[i];
    }
    if (!found)
        return NULL;
    args->word_count -= taken;
    memmove(args->words, args->words + taken, args->word_count * sizeof(args->words[0]));
    return found;
}

static bool is_stream_name(const char *name)
{
    size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_-");
    return n > 0 && n <= SPOOL_STREAM_NAME_MAX && !name[n];
}

static int check(const struct command *command, const struct arguments *args)
{
    for (size_t id = 0; id < OPTION_COUNT; id++)
        if (args->given[id] && !(allowed_options(command) & BIT(id)))
            return usage_error("%s is no option of %s", options[id].name, command->name);
    if (args->word_count < command->words_min)
        return usage_error("%s needs a %s", command->name, command->synopsis);
    if (args->word_count > command->words_max)
        return usage_error("%s does not take '%s'", command->name, args->words[command->words_max]);
    if (command->first_is_stream && args->word_count && !is_stream_name(args->words[0]))
        return usage_error("'%s' can't be a stream: a name is up to %d of a-z, 0-9, _ and -",
                           args->words[0], SPOOL_STREAM_NAME_MAX);
    return 0;
}

bool side_line(const char *line, size_t size, const char *what, struct table *table, bool *problem)
{
    struct json_view all = view_of(line, size), next;
    char *text, *origin;

    if (view_true(view_member(all, "truncated"))) {
        origin = text_shown(view_member(all, "origin"));
        next = view_member(all, "offset");
        table_flush(table);
        fflush(stdout);
        fprintf(stderr, "spoolctl: there are more %s, next is offset %.*s of %s: ", what,
                (int)next.size, next.text ? next.text : "", origin ? origin : "");
        fputs(view_is(view_member(all, "reason"), "\"limit\"")
                  ? "raise --limit, or narrow it with --origin, --from and --to\n"
                  : "narrow it with --origin, --from and --to\n",
              stderr);
        free(origin);
        return true;
    }
    if (!view_member(all, "error").text || view_member(all, "record").text)
        return false;
    *problem = true;
    text = text_shown(view_member(all, "error"));
    next = view_member(all, "segment");
    table_flush(table);
    fflush(stdout);
    fprintf(stderr, "spoolctl: segment %.*s: %s\n", (int)next.size, next.text ? next.text : "",
            text ? text : "can't be read");
    free(text);
    return true;
}

int main(int argc, char **argv)
{
    struct arguments args = {0};
    const struct command *command;
    int status = parse(&args, argc, argv);

    if (status)
        return status;
    if (args.given[OPTION_VERSION]) {
        puts("spoolctl " SPOOLD_VERSION);
        return EXIT_FINE;
    }
    if (!args.word_count)
        return args.given[OPTION_HELP] ? command_help(NULL, &args) : usage_error("which command?");
    command = find_command(&args);
    if (!command && args.given[OPTION_HELP])
        return command_help(NULL, &args);
    if (!command)
        return usage_error(strcmp(args.words[0], "dead")
                               ? "unknown command '%s'"
                               : "%s needs ls, show, replay or discard behind it",
                           args.words[0]);
    if (args.given[OPTION_HELP])
        return command_help(command, &args);
    status = check(command, &args);
    if (status)
        return status;
    status = command->run(command, &args);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "spoolctl: can't write the output: %s\n", strerror(errno));
        return EXIT_PROBLEM;
    }
    return status;
}
