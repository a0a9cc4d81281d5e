/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of options. Everything that knows what may stand in the configuration reads it from
 * here: the parser, its ranges and defaults, --print-config, --print-schema, the man page.
 *
 * A path is the option's place, with "[]" behind a list: "streams[].flush.rows". A row stores into
 * the struct its path belongs to: the innermost list's element, else struct config.
 */
#ifndef DAEMON_OPTIONS_H
#define DAEMON_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum option_kind {
    OPTION_OBJECT,      /* of options; offset, where size is not 0: a bool "it is there" */
    OPTION_LIST,        /* an array of objects: pointer, count; max elements, element_size */
    OPTION_STRING,      /* const char * */
    OPTION_BOOL,        /* bool */
    OPTION_INTEGER,     /* unsigned, of size bytes */
    OPTION_SIZE,        /* bytes */
    OPTION_TIME,        /* milliseconds */
    OPTION_RATIO,       /* double, 0 to 1 */
    OPTION_CHOICE,      /* an enum, by the order of words */
    OPTION_STRINGS,     /* const char *const *, count; max elements */
    OPTION_JOINED,      /* an array of strings, stored as one const char *, comma separated */
    OPTION_PAIRS,       /* an object of strings: {name, value} *, count */
    OPTION_JSON,        /* any value, as JSON text: const char * */
    OPTION_SECRET_FILE, /* names a file whose text is stored: const char * */
    OPTION_CLASSES,     /* struct error_class_override *, count */
};

#define OPTION_SECRET   1u /* its value is never shown */
#define OPTION_REQUIRED 2u
#define OPTION_UNBUILT  4u /* has its place, but this version can't do it: refused */

struct option {
    const char *path;
    enum option_kind kind;
    unsigned flags;
    const char *fallback;     /* the default, as JSON; NULL: none */
    const char *example;      /* as JSON, where there is no default */
    uint64_t min, max;        /* of the number or, for arrays, of the count */
    const char *const *words; /* OPTION_CHOICE, ended by NULL */
    const char *doc;          /* one or two sentences */
    size_t offset, size;
    size_t count_offset, element_size;
};

extern const struct option OPTIONS[];
extern const size_t OPTION_COUNT;

/*
 * Whether option stands directly under the object of that prefix ("" or "streams[].flush."); *name
 * is then its own name.
 */
bool option_is_child(const struct option *option, const char *prefix, const char **name);

/* The option by the name under the prefix; NULL: there is none. */
const struct option *option_find(const char *prefix, const char *name, size_t n);

/* The known name nearest to a wrong one under the prefix, within reason; NULL: none is near. */
const char *option_nearest(const char *prefix, const char *wrong);

/* An option elsewhere whose own name is this; NULL: none. */
const struct option *option_elsewhere(const char *name);

/* The word nearest to a wrong one in a list ended by NULL, within reason; NULL: none. */
const char *word_nearest(const char *const *words, const char *wrong);

/* "64MiB", "5m": the shortest exact text of a size or time. */
const char *option_size_text(uint64_t bytes, char *buffer, size_t n);
const char *option_time_text(uint64_t ms, char *buffer, size_t n);

#endif
