/* SPDX-License-Identifier: Apache-2.0 */
#include "base/buf.h"

#include <stdio.h>
#include <stdlib.h>

void buf_init(struct buf *b, size_t max)
{
    memset(b, 0, sizeof(*b));
    b->max = max;
}

void buf_free(struct buf *b)
{
    if (!b)
        return;
    free(b->data);
    b->data = NULL;
    b->len = 0;
    b->cap = 0;
}

int buf_grow(struct buf *b, size_t extra)
{
    size_t need, cap;
    uint8_t *data;

    if (extra > b->max || b->len > b->max - extra)
        return SPOOL_E_LIMIT;
    need = b->len + extra;
    if (need <= b->cap)
        return SPOOL_OK;
    cap = b->cap ? b->cap : 256;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    if (cap > b->max)
        cap = b->max;
    data = realloc(b->data, cap);
    if (!data)
        return SPOOL_E_NOMEM;
    b->data = data;
    b->cap = cap;
    return SPOOL_OK;
}

int buf_append_str(struct buf *b, const char *text)
{
    return buf_append(b, text, strlen(text));
}

int buf_vprintf(struct buf *b, const char *format, va_list args)
{
    va_list again;
    int n, status;

    va_copy(again, args);
    n = vsnprintf(NULL, 0, format, again);
    va_end(again);
    if (n < 0)
        return SPOOL_E_INVALID;
    status = buf_reserve(b, (size_t)n + 1);
    if (status != SPOOL_OK)
        return status;
    vsnprintf((char *)b->data + b->len, (size_t)n + 1, format, args);
    b->len += (size_t)n;
    return SPOOL_OK;
}

int buf_printf(struct buf *b, const char *format, ...)
{
    va_list args;
    int status;

    va_start(args, format);
    status = buf_vprintf(b, format, args);
    va_end(args);
    return status;
}

const char *buf_cstr(struct buf *b)
{
    if (buf_reserve(b, 1) != SPOOL_OK)
        return NULL;
    b->data[b->len] = 0;
    return (const char *)b->data;
}

int buf_put_u8(struct buf *b, uint8_t v)
{
    return buf_append(b, &v, 1);
}

/* Little endian, byte by byte, so that the host's order does not matter. */
static int put_le(struct buf *b, uint64_t v, size_t n)
{
    uint8_t raw[8];
    for (size_t i = 0; i < n; i++)
        raw[i] = (uint8_t)(v >> (8 * i));
    return buf_append(b, raw, n);
}

int buf_put_u16le(struct buf *b, uint16_t v)
{
    return put_le(b, v, 2);
}

int buf_put_u32le(struct buf *b, uint32_t v)
{
    return put_le(b, v, 4);
}

int buf_put_u64le(struct buf *b, uint64_t v)
{
    return put_le(b, v, 8);
}

int buf_put_varuint(struct buf *b, uint64_t v)
{
    uint8_t raw[10];
    size_t n = 0;
    while (v >= 0x80) {
        raw[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    raw[n++] = (uint8_t)v;
    return buf_append(b, raw, n);
}

int buf_put_string(struct buf *b, const void *data, size_t n)
{
    int status = buf_reserve(b, n + 10);
    if (status == SPOOL_OK)
        status = buf_put_varuint(b, n);
    return status == SPOOL_OK ? buf_append(b, data, n) : status;
}

/* Length of the valid UTF-8 sequence at s, or 0 (RFC 3629 table: no overlongs, no surrogates). */
static size_t utf8_len(const uint8_t *s, size_t left)
{
    uint8_t c = s[0];
    size_t n;

    if (c < 0x80)
        return 1;
    n = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c < 0xc2 || c > 0xf4 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((c == 0xe0 && s[1] < 0xa0) || (c == 0xed && s[1] > 0x9f) || (c == 0xf0 && s[1] < 0x90) ||
        (c == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

static int put_json_escape(struct buf *b, uint8_t c)
{
    switch (c) {
    case '"':
        return buf_append(b, "\\\"", 2);
    case '\\':
        return buf_append(b, "\\\\", 2);
    case '\b':
        return buf_append(b, "\\b", 2);
    case '\f':
        return buf_append(b, "\\f", 2);
    case '\n':
        return buf_append(b, "\\n", 2);
    case '\r':
        return buf_append(b, "\\r", 2);
    case '\t':
        return buf_append(b, "\\t", 2);
    default:
        return buf_printf(b, "\\u%04x", c);
    }
}

int buf_put_json_string(struct buf *b, const void *data, size_t n)
{
    const uint8_t *s = data;
    size_t start = 0, i = 0;
    int status = buf_put_u8(b, '"');

    while (status == SPOOL_OK && i < n) {
        size_t len = utf8_len(s + i, n - i);
        if (len && s[i] >= 0x20 && s[i] != '"' && s[i] != '\\') {
            i += len;
            continue;
        }
        status = buf_append(b, s + start, i - start);
        if (status == SPOOL_OK)
            status = len ? put_json_escape(b, s[i]) : buf_append(b, "\xef\xbf\xbd", 3);
        start = ++i;
    }
    if (status == SPOOL_OK && i > start)
        status = buf_append(b, s + start, i - start);
    return status == SPOOL_OK ? buf_put_u8(b, '"') : status;
}

int buf_put_json_bytes(struct buf *b, const void *data, size_t n)
{
    const uint8_t *s = data;
    size_t start = 0;
    int status = buf_put_u8(b, '"');

    for (size_t i = 0; i < n && status == SPOOL_OK; i++) {
        if (s[i] >= 0x20 && s[i] != '"' && s[i] != '\\')
            continue;
        status = buf_append(b, s + start, i - start);
        if (status == SPOOL_OK && s[i] < 0x20)
            status = buf_printf(b, "\\u%04x", s[i]);
        else if (status == SPOOL_OK)
            status = buf_printf(b, "\\%c", s[i]);
        start = i + 1;
    }
    if (status == SPOOL_OK && n > start)
        status = buf_append(b, s + start, n - start);
    return status == SPOOL_OK ? buf_put_u8(b, '"') : status;
}

int cursor_bytes(struct cursor *c, size_t n, const uint8_t **data)
{
    if (cursor_left(c) < n)
        return SPOOL_E_CORRUPT;
    *data = c->at;
    c->at += n;
    return SPOOL_OK;
}

static int get_le(struct cursor *c, size_t n, uint64_t *v)
{
    const uint8_t *raw = NULL;
    if (cursor_bytes(c, n, &raw) != SPOOL_OK)
        return SPOOL_E_CORRUPT;
    *v = 0;
    for (size_t i = 0; i < n; i++)
        *v |= (uint64_t)raw[i] << (8 * i);
    return SPOOL_OK;
}

int cursor_u8(struct cursor *c, uint8_t *v)
{
    uint64_t wide = 0;
    int status = get_le(c, 1, &wide);
    if (status == SPOOL_OK)
        *v = (uint8_t)wide;
    return status;
}

int cursor_u16le(struct cursor *c, uint16_t *v)
{
    uint64_t wide = 0;
    int status = get_le(c, 2, &wide);
    if (status == SPOOL_OK)
        *v = (uint16_t)wide;
    return status;
}

int cursor_u32le(struct cursor *c, uint32_t *v)
{
    uint64_t wide = 0;
    int status = get_le(c, 4, &wide);
    if (status == SPOOL_OK)
        *v = (uint32_t)wide;
    return status;
}

int cursor_u64le(struct cursor *c, uint64_t *v)
{
    return get_le(c, 8, v);
}

int cursor_varuint(struct cursor *c, uint64_t *v)
{
    uint64_t value = 0;
    const uint8_t *at = c->at;

    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (at == c->end)
            return SPOOL_E_CORRUPT;
        if (shift == 63 && *at > 1)
            return SPOOL_E_CORRUPT;
        value |= (uint64_t)(*at & 0x7f) << shift;
        if (!(*at++ & 0x80)) {
            c->at = at;
            *v = value;
            return SPOOL_OK;
        }
    }
    return SPOOL_E_CORRUPT;
}

int cursor_string(struct cursor *c, const uint8_t **data, size_t *n)
{
    struct cursor probe = *c;
    uint64_t len = 0;

    if (cursor_varuint(&probe, &len) != SPOOL_OK || len > cursor_left(&probe))
        return SPOOL_E_CORRUPT;
    *data = probe.at;
    *n = (size_t)len;
    probe.at += len;
    *c = probe;
    return SPOOL_OK;
}
