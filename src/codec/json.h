/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The JSON scanner: a position in a record's text, and the steps that move it. Nothing is built.
 * It never reads a byte at or past `end`, so records may stand at the very end of a mapping.
 *
 * Two strictnesses meet here. Text that lands in no column (json_skip) must be well-formed by
 * RFC 8259. Text that lands in a column is read as ClickHouse's JSONEachRow reads it, which also
 * takes raw control characters in strings and numbers such as 007 or .5; the columns' own
 * functions decide that.
 */
#ifndef CODEC_JSON_H
#define CODEC_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "codec/decode.h"

struct scan {
    const uint8_t *p;     /* next byte */
    const uint8_t *end;   /* behind the last */
    const uint8_t *begin; /* of the record, for positions */
    unsigned depth;       /* of arrays and objects entered */
    bool strict;          /* schema.strict */
    unsigned in_variant;  /* depth + 1 of the value that members of a Variant try; 0: none */
    int status;           /* of what failed, see scan_fail */
    struct refusal *why;
    struct buf *scratch; /* for strings with escapes; reused */
};

/* For functions that return where they got to: NULL, with the status kept. */
static inline const uint8_t *scan_fail(struct scan *s, int status)
{
    s->status = status;
    return NULL;
}

/* The same as the last step of a function that moved s->p itself. */
static inline const uint8_t *scan_done(struct scan *s, int status)
{
    return status == SPOOL_OK ? s->p : scan_fail(s, status);
}

/* Bytes that may stand between tokens. */
static inline bool json_is_blank(uint8_t c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static inline const uint8_t *json_blank(const uint8_t *p, const uint8_t *end)
{
    while (p < end && json_is_blank(*p))
        p++;
    return p;
}

/*
 * Fills *s->why (column excepted) and returns SPOOL_E_REFUSED. The position is s->p. The sentence
 * must not quote the record.
 */
int scan_refuse(struct scan *s, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4), cold));

/* As above, at another position. */
int scan_refuse_at(struct scan *s, const uint8_t *at, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5), cold));

/*
 * "The text ends too early" at the end, otherwise "not JSON" with what was expected. For the
 * position where neither fits.
 */
int scan_refuse_token(struct scan *s, const char *expected) __attribute__((cold));

/* Moves over one value, checked by RFC 8259, LIMIT_JSON_DEPTH included. s->p is at its start. */
int json_skip(struct scan *s);

/*
 * Moves over a string (s->p at its opening quote). *data and *size are its content: in the record
 * itself where it has no escapes, else unescaped in s->scratch (valid until the next call). Escapes
 * as JSONEachRow has them: \q is q; \u needs four hex digits, and a high surrogate its low one.
 * Control characters are taken as they are.
 */
int json_string(struct scan *s, const uint8_t **data, size_t *size);

/*
 * The same, refusing escapes (as text, REFUSAL_TEXT): for values that JSONEachRow reads byte by byte, such
 * as dates and addresses. *data is then always in the record.
 */
int json_plain_string(struct scan *s, const uint8_t **data, size_t *size);

/*
 * The same as json_string, appending the content to out (which must not be s->scratch). *size is its length.
 */
int json_string_append(struct scan *s, struct buf *out, size_t *size);

/* A string with all that RFC 8259 demands of it: what skipping and keys use. */
int json_skip_string(struct scan *s);

/* Moves over a number as JSONEachRow takes one as text: leading zeros and "5." allowed. */
int json_skip_loose_number(struct scan *s);

/* Moves over a literal (true, false, null); refuses anything else. */
int json_literal(struct scan *s, const char *word, size_t size);

#endif
