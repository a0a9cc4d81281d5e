/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one growing byte buffer. Every buffer states the most it may ever hold; going over it is
 * SPOOL_E_LIMIT, a failed allocation SPOOL_E_NOMEM, and in both cases the content is unchanged.
 * Growth doubles, so appending is amortised O(1). Not thread-safe; one owner at a time.
 */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "spool_error.h"

struct buf {
    uint8_t *data; /* owned; NULL while cap is 0 */
    size_t len;    /* bytes in use */
    size_t cap;    /* bytes allocated */
    size_t max;    /* len never exceeds this */
};

/* An empty buffer that may grow to max bytes. Allocates nothing. */
void buf_init(struct buf *b, size_t max);

/* Frees the memory; the buffer is empty and usable again with the same maximum. NULL is fine. */
void buf_free(struct buf *b);

/* Forgets the content, keeps the memory. */
static inline void buf_reset(struct buf *b)
{
    b->len = 0;
}

/* Slow path of buf_reserve. */
int buf_grow(struct buf *b, size_t extra);

/* Makes room for extra more bytes behind len, without changing len. */
static inline int buf_reserve(struct buf *b, size_t extra)
{
    if (extra <= b->cap - b->len && b->len + extra <= b->max)
        return SPOOL_OK;
    return buf_grow(b, extra);
}

static inline int buf_append(struct buf *b, const void *data, size_t n)
{
    int status = buf_reserve(b, n);
    if (status == SPOOL_OK && n) {
        memcpy(b->data + b->len, data, n);
        b->len += n;
    }
    return status;
}

/* A NUL-terminated string without its NUL. */
int buf_append_str(struct buf *b, const char *text);

/* printf at the end; no NUL is counted in len (one follows the content, beyond len). */
int buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
int buf_vprintf(struct buf *b, const char *format, va_list args);

/* Ensures a NUL behind the content (not counted) and returns it as a string; NULL on failure. */
const char *buf_cstr(struct buf *b);

int buf_put_u8(struct buf *b, uint8_t v);
int buf_put_u16le(struct buf *b, uint16_t v);
int buf_put_u32le(struct buf *b, uint32_t v);
int buf_put_u64le(struct buf *b, uint64_t v);
int buf_put_varuint(struct buf *b, uint64_t v);                /* LEB128 */
int buf_put_string(struct buf *b, const void *data, size_t n); /* varuint length, then bytes */

/* Appends data as a JSON string with its quotes, escaping what RFC 8259 demands; invalid UTF-8
   bytes are replaced by U+FFFD. */
int buf_put_json_string(struct buf *b, const void *data, size_t n);

/* The same with every byte kept, UTF-8 or not: what ClickHouse and our decoder read back alike. */
int buf_put_json_bytes(struct buf *b, const void *data, size_t n);

/*
 * A bounds-checked reader over somebody else's bytes: every get returns SPOOL_E_CORRUPT and moves
 * nothing when too little is left, so hostile input cannot make it read past the end.
 */
struct cursor {
    const uint8_t *at;
    const uint8_t *end;
};

static inline struct cursor cursor_over(const void *data, size_t n)
{
    const uint8_t *p = data; /* NULL where n is 0, to which nothing may be added */
    struct cursor c = {p, n ? p + n : p};
    return c;
}

static inline size_t cursor_left(const struct cursor *c)
{
    return (size_t)(c->end - c->at);
}

int cursor_u8(struct cursor *c, uint8_t *v);
int cursor_u16le(struct cursor *c, uint16_t *v);
int cursor_u32le(struct cursor *c, uint32_t *v);
int cursor_u64le(struct cursor *c, uint64_t *v);
int cursor_varuint(struct cursor *c, uint64_t *v);
int cursor_bytes(struct cursor *c, size_t n, const uint8_t **data);
int cursor_string(struct cursor *c, const uint8_t **data, size_t *n);

#endif
