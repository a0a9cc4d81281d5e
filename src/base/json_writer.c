/* SPDX-License-Identifier: Apache-2.0 */
#include "base/json_writer.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

void json_writer_init(struct json_writer *w, struct buf *out)
{
    w->out = out;
    w->status = SPOOL_OK;
    w->comma = false;
}

static void put(struct json_writer *w, const void *data, size_t size)
{
    if (w->status == SPOOL_OK)
        w->status = buf_append(w->out, data, size);
}

/* The comma and the key of the next member; the value must follow. */
static void member(struct json_writer *w, const char *key)
{
    if (w->comma)
        put(w, ",", 1);
    w->comma = true;
    if (!key || w->status != SPOOL_OK)
        return;
    w->status = buf_put_json_string(w->out, key, strlen(key));
    put(w, ":", 1);
}

void json_writer_open(struct json_writer *w, const char *key, char bracket)
{
    member(w, key);
    put(w, &bracket, 1);
    w->comma = false;
}

void json_writer_close(struct json_writer *w, char bracket)
{
    put(w, &bracket, 1);
    w->comma = true;
}

void json_writer_bytes(struct json_writer *w, const char *key, const void *data, size_t size)
{
    member(w, key);
    if (w->status == SPOOL_OK)
        w->status = buf_put_json_string(w->out, data, size);
}

void json_writer_text(struct json_writer *w, const char *key, const char *text)
{
    const char *shown = text ? text : "";
    json_writer_bytes(w, key, shown, strlen(shown));
}

void json_writer_u64(struct json_writer *w, const char *key, uint64_t v)
{
    member(w, key);
    if (w->status == SPOOL_OK)
        w->status = buf_printf(w->out, "%" PRIu64, v);
}

void json_writer_i64(struct json_writer *w, const char *key, int64_t v)
{
    member(w, key);
    if (w->status == SPOOL_OK)
        w->status = buf_printf(w->out, "%" PRId64, v);
}

void json_writer_raw(struct json_writer *w, const char *key, const void *json, size_t size)
{
    member(w, key);
    put(w, json, size);
}

void json_writer_bool(struct json_writer *w, const char *key, bool v)
{
    if (v)
        json_writer_raw(w, key, "true", 4);
    else
        json_writer_raw(w, key, "false", 5);
}

void json_writer_null(struct json_writer *w, const char *key)
{
    json_writer_raw(w, key, "null", 4);
}

void json_writer_time(struct json_writer *w, const char *key, int64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm;

    if (wall_ms <= 0 || !gmtime_r(&seconds, &tm)) {
        json_writer_null(w, key);
        return;
    }
    member(w, key);
    if (w->status == SPOOL_OK)
        w->status = buf_printf(w->out, "\"%04d-%02d-%02dT%02d:%02d:%02d.%03dZ\"", tm.tm_year + 1900,
                               tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
                               (int)(wall_ms % 1000));
}

static void put_base64(struct json_writer *w, const uint8_t *data, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    put(w, "\"", 1);
    for (size_t i = 0; i < size && w->status == SPOOL_OK; i += 3) {
        size_t left = size - i;
        uint32_t bits = (uint32_t)data[i] << 16;
        char four[4];

        if (left > 1)
            bits |= (uint32_t)data[i + 1] << 8;
        if (left > 2)
            bits |= data[i + 2];
        four[0] = digits[bits >> 18 & 63];
        four[1] = digits[bits >> 12 & 63];
        four[2] = left > 1 ? digits[bits >> 6 & 63] : '=';
        four[3] = left > 2 ? digits[bits & 63] : '=';
        put(w, four, 4);
    }
    put(w, "\"", 1);
}

static size_t count_replacements(const uint8_t *data, size_t size)
{
    const uint8_t *at = data, *end = data + size;
    size_t n = 0;

    while (at < end && (at = memmem(at, (size_t)(end - at), "\xef\xbf\xbd", 3))) {
        n++;
        at += 3;
    }
    return n;
}

/* buf_put_json_string marks a byte it can't keep with U+FFFD: then the text has more of them than
   the data had. */
void json_writer_bytes_exact(struct json_writer *w, const char *key, const void *data, size_t size)
{
    size_t start = w->out->len;
    char name[64];

    json_writer_bytes(w, key, data, size);
    if (w->status != SPOOL_OK || !size ||
        count_replacements(w->out->data + start, w->out->len - start) ==
            count_replacements(data, size))
        return;
    snprintf(name, sizeof(name), "%s_base64", key);
    member(w, name);
    put_base64(w, data, size);
}
