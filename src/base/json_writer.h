/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes JSON with its commas into a buffer. The first failure sticks in status and later calls do
 * nothing, so a document is written in one run and checked once at its end. A key of NULL is an
 * element of an array, or the document itself.
 */
#ifndef BASE_JSON_WRITER_H
#define BASE_JSON_WRITER_H

#include <stdbool.h>

#include "base/buf.h"

struct json_writer {
    struct buf *out;
    int status;
    bool comma; /* the next member needs one before it */
};

void json_writer_init(struct json_writer *w, struct buf *out);
void json_writer_open(struct json_writer *w, const char *key, char bracket);
void json_writer_close(struct json_writer *w, char bracket);
void json_writer_text(struct json_writer *w, const char *key, const char *text); /* NULL: "" */
void json_writer_bytes(struct json_writer *w, const char *key, const void *data, size_t size);
/* As bytes, and where data is no UTF-8 a second member <key>_base64 holds all of it. */
void json_writer_bytes_exact(struct json_writer *w, const char *key, const void *data, size_t size);
void json_writer_u64(struct json_writer *w, const char *key, uint64_t v);
void json_writer_i64(struct json_writer *w, const char *key, int64_t v);
void json_writer_bool(struct json_writer *w, const char *key, bool v);
void json_writer_null(struct json_writer *w, const char *key);
/* "2026-11-23T17:54:00.123Z"; null for 0 and before. */
void json_writer_time(struct json_writer *w, const char *key, int64_t wall_ms);
/* JSON as it stands; size 0 writes the key only, and the caller appends the value to out. */
void json_writer_raw(struct json_writer *w, const char *key, const void *json, size_t size);

#endif
