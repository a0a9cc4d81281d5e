/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON text with comments as a tree that knows where everything stands, so that an error about any
 * value can name its line and column. RFC 8259 strictly, and besides it only white space, // to the
 * end of the line and C comments. For configuration, not for records: a tree costs memory.
 */
#ifndef DAEMON_JSON_TEXT_H
#define DAEMON_JSON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "daemon/arena.h"

enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json_node {
    enum json_kind kind;
    bool boolean;
    size_t at;               /* byte offset of the value */
    size_t key_at;           /* of its key, inside an object */
    const char *key;         /* unescaped; NULL outside an object */
    const char *text;        /* a string unescaped (never with a NUL inside), a number as written */
    struct json_node *child; /* of an array or object: the first */
    struct json_node *next;  /* its sibling */
    size_t count;            /* of children */
};

struct json_fault {
    size_t at; /* byte offset */
    char what[160];
};

/* Parses the whole text; NULL on a fault. Nodes and strings live in the arena. */
struct json_node *json_text_parse(struct arena *arena, const char *text, size_t size,
                                  struct json_fault *fault);

/* The member of an object by name; NULL where there is none or node is no object or NULL. */
struct json_node *json_member(const struct json_node *node, const char *key);

/* "a string", "an object", ... for sentences. */
const char *json_kind_name(enum json_kind kind);

/* Line and column (in characters) of an offset, both from 1. */
void json_text_position(const char *text, size_t size, size_t at, unsigned *line, unsigned *column);

#endif
