/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/json.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/json_escape.h"
#include "base/limits.h"
#include "codec/json_simd.h"

static int refuse(struct scan *s, const uint8_t *at, int code, const char *format, va_list args)
{
    s->why->code = code;
    s->why->column = NULL;
    s->why->position = (size_t)(at - s->begin);
    vsnprintf(s->why->reason, sizeof(s->why->reason), format, args);
    return SPOOL_E_REFUSED;
}

int scan_refuse(struct scan *s, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    refuse(s, s->p, code, format, args);
    va_end(args);
    return SPOOL_E_REFUSED;
}

int scan_refuse_at(struct scan *s, const uint8_t *at, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    refuse(s, at, code, format, args);
    va_end(args);
    return SPOOL_E_REFUSED;
}

int scan_refuse_token(struct scan *s, const char *expected)
{
    if (s->p >= s->end)
        return scan_refuse(s, REFUSAL_NOT_JSON, "the text ends where %s should be", expected);
    return scan_refuse(s, REFUSAL_NOT_JSON, "not JSON: %s should be here", expected);
}

/* ---- strings ---- */

/* The first quote or backslash (or control character) at or behind p; end if there is none. */
static inline const uint8_t *string_special(const uint8_t *p, const uint8_t *end, bool control)
{
    while (end - p >= JSON_CHUNK) {
        unsigned i = json_chunk(p, NULL, control);
        p += i;
        if (i < JSON_CHUNK)
            return p;
    }
    while (p < end && *p != '"' && *p != '\\' && !(control && *p < 0x20))
        p++;
    return p;
}

/* One escape at s->p (the backslash); appends at most 4 bytes to to. */
static int unescape(struct scan *s, uint8_t *to, size_t *n)
{
    const uint8_t *p = s->p;
    int32_t high, low;

    if (s->end - p < 2)
        return scan_refuse_at(s, s->end, REFUSAL_NOT_JSON, "the text ends inside a string");
    *n = 1;
    s->p = p + 2;
    switch (p[1]) {
    case 'b':
        *to = '\b';
        return SPOOL_OK;
    case 'f':
        *to = '\f';
        return SPOOL_OK;
    case 'n':
        *to = '\n';
        return SPOOL_OK;
    case 'r':
        *to = '\r';
        return SPOOL_OK;
    case 't':
        *to = '\t';
        return SPOOL_OK;
    case 'u':
        break;
    default: /* an unknown one stands for its letter */
        *to = p[1];
        return SPOOL_OK;
    }
    high = json_hex4(p + 2, (size_t)(s->end - p - 2));
    if (high < 0)
        return scan_refuse_at(s, p, REFUSAL_NOT_JSON, "\\u is not followed by four hex digits");
    s->p = p + 6;
    if (high < 0xd800 || high > 0xdbff) {
        *n = utf8_put(to, (uint32_t)high);
        return SPOOL_OK;
    }
    low = s->end - s->p >= 6 && s->p[0] == '\\' && s->p[1] == 'u' ? json_hex4(s->p + 2, 4) : -1;
    if (low < 0xdc00 || low > 0xdfff)
        return scan_refuse_at(s, p, REFUSAL_NOT_JSON, "a high surrogate without its low one");
    s->p += 6;
    *n = utf8_put(to, json_surrogates(high, low));
    return SPOOL_OK;
}

int json_string_append(struct scan *s, struct buf *out, size_t *size)
{
    size_t start = out->len;

    assert(s->p < s->end && *s->p == '"');
    s->p++;
    for (;;) {
        const uint8_t *stop = string_special(s->p, s->end, false);
        size_t n = (size_t)(stop - s->p);
        int status = buf_reserve(out, n + 4);
        if (status != SPOOL_OK)
            return status;
        if (n)
            memcpy(out->data + out->len, s->p, n);
        out->len += n;
        s->p = stop;
        if (stop == s->end)
            return scan_refuse(s, REFUSAL_NOT_JSON, "the text ends inside a string");
        if (*stop == '"')
            break;
        status = unescape(s, out->data + out->len, &n);
        if (status != SPOOL_OK)
            return status;
        out->len += n;
    }
    s->p++;
    *size = out->len - start;
    return SPOOL_OK;
}

int json_string(struct scan *s, const uint8_t **data, size_t *size)
{
    const uint8_t *start = s->p + 1;
    const uint8_t *stop = string_special(start, s->end, false);
    int status;

    assert(s->p < s->end && *s->p == '"');
    if (stop < s->end && *stop == '"') {
        *data = start;
        *size = (size_t)(stop - start);
        s->p = stop + 1;
        return SPOOL_OK;
    }
    buf_reset(s->scratch);
    status = json_string_append(s, s->scratch, size);
    *data = s->scratch->data;
    return status;
}

int json_plain_string(struct scan *s, const uint8_t **data, size_t *size)
{
    const uint8_t *at = s->p;
    int status = json_string(s, data, size);

    /* what an escape stands for is always shorter than the escape */
    if (status == SPOOL_OK && *size != (size_t)(s->p - at) - 2)
        return scan_refuse_at(s, at, REFUSAL_TEXT, "escapes are not read in a value of this type");
    return status;
}

int json_skip_string(struct scan *s)
{
    const uint8_t *p = s->p + 1;
    const uint8_t *end = s->end;

    assert(s->p < end && *s->p == '"');
    for (;;) {
        p = string_special(p, end, true);
        s->p = p;
        if (p == end)
            return scan_refuse(s, REFUSAL_NOT_JSON, "the text ends inside a string");
        if (*p == '"') {
            s->p = p + 1;
            return SPOOL_OK;
        }
        if (*p < 0x20)
            return scan_refuse(s, REFUSAL_NOT_JSON,
                               "not JSON: a control character inside a string");
        if (end - p < 2)
            return scan_refuse_at(s, end, REFUSAL_NOT_JSON, "the text ends inside a string");
        if (p[1] == 'u') {
            if (json_hex4(p + 2, (size_t)(end - p - 2)) < 0)
                return scan_refuse(s, REFUSAL_NOT_JSON, "\\u is not followed by four hex digits");
            p += 6;
        } else if (p[1] && strchr("\"\\/bfnrt", p[1])) {
            p += 2;
        } else {
            return scan_refuse(s, REFUSAL_NOT_JSON, "not JSON: an unknown escape");
        }
    }
}

/* ---- numbers and words ---- */

static inline const uint8_t *digits(const uint8_t *p, const uint8_t *end)
{
    while (p < end && (uint8_t)(*p - '0') < 10)
        p++;
    return p;
}

/* e[+-]digits at p, or nothing; NULL if it is begun and broken. */
static const uint8_t *exponent(const uint8_t *p, const uint8_t *end)
{
    const uint8_t *start;

    if (p == end || (*p | 0x20) != 'e')
        return p;
    p++;
    if (p < end && (*p == '+' || *p == '-'))
        p++;
    start = p;
    p = digits(p, end);
    return p == start ? NULL : p;
}

static int skip_number(struct scan *s)
{
    const uint8_t *p = s->p, *end = s->end, *start;

    if (*p == '-')
        p++;
    start = p;
    p = digits(p, end);
    if (p == start || (*start == '0' && p - start > 1))
        goto bad;
    if (p < end && *p == '.') {
        start = ++p;
        p = digits(p, end);
        if (p == start)
            goto bad;
    }
    p = exponent(p, end);
    if (!p)
        goto bad;
    s->p = p;
    return SPOOL_OK;
bad:
    return scan_refuse(s, REFUSAL_NOT_JSON, "not JSON: a malformed number");
}

int json_skip_loose_number(struct scan *s)
{
    const uint8_t *p = s->p, *end = s->end, *start;
    bool any;

    if (p < end && *p == '-')
        p++;
    start = p;
    p = digits(p, end);
    any = p > start;
    if (p < end && *p == '.') {
        start = ++p;
        p = digits(p, end);
        any |= p > start;
    }
    p = any ? exponent(p, end) : NULL;
    if (!p)
        return scan_refuse(s, REFUSAL_NOT_JSON, "not JSON: a malformed number");
    s->p = p;
    return SPOOL_OK;
}

int json_literal(struct scan *s, const char *word, size_t size)
{
    if ((size_t)(s->end - s->p) < size || memcmp(s->p, word, size) != 0)
        return scan_refuse_token(s, "a value");
    s->p += size;
    return SPOOL_OK;
}

static int skip_scalar(struct scan *s)
{
    switch (*s->p) {
    case '"':
        return json_skip_string(s);
    case 't':
        return json_literal(s, "true", 4);
    case 'f':
        return json_literal(s, "false", 5);
    case 'n':
        return json_literal(s, "null", 4);
    default:
        if (*s->p == '-' || (uint8_t)(*s->p - '0') < 10)
            return skip_number(s);
        return scan_refuse_token(s, "a value");
    }
}

/* A member's name and its colon, and the blanks around both. */
static int skip_name(struct scan *s)
{
    int status;

    s->p = json_blank(s->p, s->end);
    if (s->p == s->end || *s->p != '"')
        return scan_refuse_token(s, "a key");
    status = json_skip_string(s);
    if (status != SPOOL_OK)
        return status;
    s->p = json_blank(s->p, s->end);
    if (s->p == s->end || *s->p != ':')
        return scan_refuse_token(s, "a colon");
    s->p++;
    return SPOOL_OK;
}

/* Nesting is a stack of bits (1 = object), so depth costs no C stack. */
int json_skip(struct scan *s)
{
    uint64_t is_object[LIMIT_JSON_DEPTH / 64 + 1] = {0};
    unsigned base = s->depth, depth = s->depth;
    int status;

    for (;;) {
        s->p = json_blank(s->p, s->end);
        if (s->p == s->end)
            return scan_refuse_token(s, "a value");
        if (*s->p == '{' || *s->p == '[') {
            bool object = *s->p == '{';
            if (depth >= LIMIT_JSON_DEPTH)
                return scan_refuse(s, REFUSAL_DEPTH, "nested deeper than %d levels",
                                   LIMIT_JSON_DEPTH);
            s->p = json_blank(s->p + 1, s->end);
            if (s->p < s->end && *s->p == (object ? '}' : ']')) {
                s->p++;
            } else {
                is_object[depth / 64] = (is_object[depth / 64] & ~(1ull << depth % 64)) |
                                        (uint64_t)object << depth % 64;
                depth++;
                if (object && (status = skip_name(s)) != SPOOL_OK)
                    return status;
                continue;
            }
        } else if ((status = skip_scalar(s)) != SPOOL_OK) {
            return status;
        }
        /* behind a value: close what ends here, then either done or the next member */
        for (;;) {
            bool object;
            if (depth == base)
                return SPOOL_OK;
            object = is_object[(depth - 1) / 64] >> (depth - 1) % 64 & 1;
            s->p = json_blank(s->p, s->end);
            if (s->p == s->end)
                return scan_refuse_token(s, "a comma or the end of the value");
            if (*s->p == (object ? '}' : ']')) {
                s->p++;
                depth--;
                continue;
            }
            if (*s->p != ',')
                return scan_refuse_token(s, "a comma or the end of the value");
            s->p++;
            if (object && (status = skip_name(s)) != SPOOL_OK)
                return status;
            break;
        }
    }
}
