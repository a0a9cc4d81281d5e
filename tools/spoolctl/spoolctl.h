/* SPDX-License-Identifier: Apache-2.0 */
/* The commands, and what the command line gave them. */
#ifndef SPOOLCTL_SPOOLCTL_H
#define SPOOLCTL_SPOOLCTL_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "table.h"

enum { EXIT_FINE = 0, EXIT_PROBLEM = 1, EXIT_USAGE = 2 };

enum option_id {
    OPTION_SPOOL,
    OPTION_SOCKET,
    OPTION_JSON,
    OPTION_SEGMENTS,
    OPTION_BATCHES,
    OPTION_BLOCKS,
    OPTION_ORIGIN,
    OPTION_FROM,
    OPTION_TO,
    OPTION_LIMIT,
    OPTION_OFFSET,
    OPTION_REASON,
    OPTION_CODE,
    OPTION_YES,
    OPTION_ACCEPT_BAD,
    OPTION_SKIP_UNREADABLE,
    OPTION_HELP,
    OPTION_VERSION,
    OPTION_COUNT
};

/* Of the whole command line. given[] tells which options were there. */
struct arguments {
    bool given[OPTION_COUNT];
    const char *spool;
    const char *socket;
    const char *origin;
    const char *reason;
    int code;
    int64_t from;
    int64_t to;
    int64_t offset;
    uint64_t limit;
    const char *words[4]; /* behind the command's own */
    size_t word_count;
};

struct command {
    const char *name; /* one word, or two */
    const char *synopsis;
    const char *help;   /* one line */
    const char *detail; /* paragraphs, each line ends with a newline; NULL: none */
    size_t words_min, words_max;
    uint32_t options; /* bits of enum option_id beside --json, --spool and --socket */
    bool first_is_stream;
    int (*run)(const struct command *command, const struct arguments *args);
};

extern const struct command commands[];
extern const size_t command_count;
void print_option_help(const struct command *command);

int command_status(const struct command *command, const struct arguments *args);
int command_ls(const struct command *command, const struct arguments *args);
int command_show(const struct command *command, const struct arguments *args);
int command_verify(const struct command *command, const struct arguments *args);
int command_dead_ls(const struct command *command, const struct arguments *args);
int command_dead_show(const struct command *command, const struct arguments *args);
int command_dead_replay(const struct command *command, const struct arguments *args);
int command_dead_discard(const struct command *command, const struct arguments *args);
int command_steer(const struct command *command, const struct arguments *args);
int command_repair(const struct command *command, const struct arguments *args);
int command_help(const struct command *command, const struct arguments *args);

/* Says the sentence on stderr; returns EXIT_PROBLEM. */
int fail(struct spool_error *error);
int usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A line that is no record is said on stderr: what was left out, or what could not be read,
   behind the rows that came before it.
   True if it was one of these; *problem is set where something is wrong. */
bool side_line(const char *line, size_t size, const char *what, struct table *table, bool *problem);

#endif
