/* SPDX-License-Identifier: Apache-2.0 */
/* Private to the configuration: the reader that its parts share. */
#ifndef DAEMON_CONFIG_INT_H
#define DAEMON_CONFIG_INT_H

#include "daemon/arena.h"
#include "daemon/config.h"
#include "daemon/json_text.h"
#include "daemon/options.h"

struct config_memory {
    struct arena arena;
};

struct reader {
    const char *name; /* of the file, for errors */
    const char *text;
    size_t size;
    struct arena *arena;
    struct config *config;
    struct json_node *root;
    struct spool_error *error;
    bool inline_secret; /* some secret stands in the file itself */
};

#define OPTION_PATH_BYTES 192

/* Builds a path; one too long is cut. */
void path_set(char out[OPTION_PATH_BYTES], const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Fills the error with "name:line:column: path: sentence"; returns status. path "" is left out. */
int reader_fail(struct reader *r, int status, size_t at, const char *path, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

int reader_out_of_memory(struct reader *r);
int reader_warn(struct reader *r, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Stores the value of an option (config_value.c). path is its place with list indexes. */
int value_apply(struct reader *r, const struct option *option, const struct json_node *node,
                const char *path, void *base);

/* What an option wants, for sentences: "a size such as 64MiB". */
const char *value_wants(enum option_kind kind);

/* Everything that takes more than one option to tell (config_check.c, config_check_stream.c). */
int config_check(struct reader *r);
int config_check_streams(struct reader *r);

/* Where a member of node stands, or node itself, or the text's start. */
size_t member_at(const struct json_node *node, const char *key);

/* The i-th child of an array; NULL: none. */
const struct json_node *element(const struct json_node *array, size_t i);

/* Why a setting may not be in clickhouse.settings; NULL: it may. */
const char *setting_refused(const char *name);

#endif
