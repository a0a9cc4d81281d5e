/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/limits.h"

/* A line is bounded, so that a hostile record or a server's long answer cannot flood the log. */
#define LOG_LINE_BYTES  (64 * KIB)
#define LOG_VALUE_BYTES (8 * KIB)

static struct {
    void (*write)(void *arg, const char *line, size_t n);
    void *arg;
    enum log_level level;
    enum log_format format;
    struct buf line; /* reused; reachable for ever, so no leak */
} logger = {.level = LOG_INFO, .format = LOG_TEXT, .line = {.max = LOG_LINE_BYTES}};

static const char *const LEVEL_NAMES[] = {"debug", "info", "warn", "error"};

void log_set_writer(void (*write)(void *arg, const char *line, size_t n), void *arg)
{
    logger.write = write;
    logger.arg = arg;
}

void log_set_level(enum log_level level)
{
    logger.level = level;
}

void log_set_format(enum log_format format)
{
    logger.format = format;
}

bool log_enabled(enum log_level level)
{
    return logger.write && level >= logger.level;
}

/* 2026-11-23T10:11:12.345Z, as RFC 3339. */
static int put_time(struct buf *b, int64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm tm = {0};

    gmtime_r(&seconds, &tm);
    return buf_printf(b, "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ", tm.tm_year + 1900, tm.tm_mon + 1,
                      tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int)(wall_ms % 1000));
}

/* Whether a text value needs quotes to stay one unambiguous word. */
static bool needs_quotes(const char *value, size_t n)
{
    if (n == 0)
        return true;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)value[i];
        if (c <= ' ' || c > '~' || c == '"' || c == '=' || c == '\\')
            return true;
    }
    return false;
}

/* The length of value that is kept: cut at a character's border, never inside a UTF-8 sequence. */
static size_t kept_bytes(const char *value, size_t n)
{
    if (n <= LOG_VALUE_BYTES)
        return n;
    n = LOG_VALUE_BYTES;
    while (n > LOG_VALUE_BYTES - 4 && ((unsigned char)value[n] & 0xc0) == 0x80)
        n--;
    return n;
}

static int put_text_pair(struct buf *b, const char *key, const char *value, size_t n)
{
    int status = buf_printf(b, " %s=", key);

    if (status != SPOOL_OK)
        return status;
    return needs_quotes(value, n) ? buf_put_json_string(b, value, n) : buf_append(b, value, n);
}

static int put_json_pair(struct buf *b, const char *key, const char *value, size_t n)
{
    int status = buf_put_u8(b, ',');

    if (status == SPOOL_OK)
        status = buf_put_json_string(b, key, strlen(key));
    if (status == SPOOL_OK)
        status = buf_put_u8(b, ':');
    return status == SPOOL_OK ? buf_put_json_string(b, value, n) : status;
}

static int put_head(struct buf *b, enum log_level level, const char *event)
{
    bool json = logger.format == LOG_JSON;
    int status = json ? buf_append_str(b, "{\"time\":\"") : SPOOL_OK;

    if (status == SPOOL_OK)
        status = put_time(b, clock_wall_ms());
    if (status != SPOOL_OK)
        return status;
    if (json)
        return buf_printf(b, "\",\"level\":\"%s\",\"event\":\"%s\"", LEVEL_NAMES[level], event);
    return buf_printf(b, " %s %s", LEVEL_NAMES[level], event);
}

void log_event(enum log_level level, const char *event, ...)
{
    struct buf *b = &logger.line;
    va_list args;
    const char *key;

    if (!log_enabled(level))
        return;
    buf_reset(b);
    /* Room for the end is kept, so that a cut line is still whole JSON. */
    b->max = LOG_LINE_BYTES - 8;
    if (put_head(b, level, event) != SPOOL_OK)
        return;
    va_start(args, event);
    while ((key = va_arg(args, const char *))) {
        const char *value = va_arg(args, const char *);
        size_t n, before = b->len;
        int status;

        if (!value)
            value = "";
        n = kept_bytes(value, strlen(value));
        status = logger.format == LOG_JSON ? put_json_pair(b, key, value, n)
                                           : put_text_pair(b, key, value, n);
        if (status != SPOOL_OK)
            b->len = before; /* a pair that has no room is left out whole */
    }
    va_end(args);
    b->max = LOG_LINE_BYTES;
    if (buf_append_str(b, logger.format == LOG_JSON ? "}\n" : "\n") == SPOOL_OK)
        logger.write(logger.arg, (const char *)b->data, b->len);
}

bool log_gate_open(struct log_gate *gate, uint64_t interval_ms, uint64_t *suppressed)
{
    uint64_t now = clock_monotonic_ms();

    if (now < gate->next_ms) {
        gate->held_back++;
        if (suppressed)
            *suppressed = gate->held_back;
        return false;
    }
    if (suppressed)
        *suppressed = gate->held_back;
    gate->held_back = 0;
    gate->next_ms = now + interval_ms;
    return true;
}

static char *number_slot(size_t *size)
{
    static char ring[8][24];
    static unsigned next;

    *size = sizeof(ring[0]);
    return ring[next++ % 8];
}

const char *log_u64(uint64_t v)
{
    size_t size;
    char *slot = number_slot(&size);

    snprintf(slot, size, "%llu", (unsigned long long)v);
    return slot;
}

const char *log_i64(int64_t v)
{
    size_t size;
    char *slot = number_slot(&size);

    snprintf(slot, size, "%lld", (long long)v);
    return slot;
}
