/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON columns go as the text of an object, which the server takes apart. What it would refuse, and
 * the whole block with it, is refused here: what is no object, a path that comes twice (as a key
 * twice, or as "a.b" beside {"a": {"b": ..}}), a whole number beyond UInt64 and Int64, a number
 * beyond Float64, half a surrogate pair and bytes that are no UTF-8.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/limits.h"
#include "codec/column.h"
#include "codec/number.h"

#define PATHS_FIRST 64

/* The paths seen in one value, by hash: two that differ are taken for one once in 2^64 / n^2 values. */
struct object_paths {
    struct {
        uint64_t hash;
        uint64_t stamp; /* of the value it was seen in */
    } * slots;
    size_t cap; /* a power of two */
    size_t count;
    uint64_t stamp;
    uint64_t scope;  /* objects inside arrays have paths of their own */
    struct buf path; /* to where we are: keys, a point behind each */
};

void object_paths_free(struct object_paths *paths)
{
    if (!paths)
        return;
    buf_free(&paths->path);
    free(paths->slots);
    free(paths);
}

/* True if it was there. There is room. */
static bool paths_put(struct object_paths *t, uint64_t hash)
{
    size_t at = (size_t)hash & (t->cap - 1);

    for (; t->slots[at].stamp == t->stamp; at = (at + 1) & (t->cap - 1))
        if (t->slots[at].hash == hash)
            return true;
    t->slots[at].hash = hash;
    t->slots[at].stamp = t->stamp;
    t->count++;
    return false;
}

static int paths_grow(struct object_paths *t)
{
    struct object_paths old = *t;

    if (t->count * 2 < t->cap)
        return SPOOL_OK;
    t->cap = t->cap ? t->cap * 2 : PATHS_FIRST;
    t->slots = calloc(t->cap, sizeof(*t->slots));
    if (!t->slots) {
        *t = old;
        return SPOOL_E_NOMEM;
    }
    t->count = 0;
    for (size_t i = 0; i < old.cap; i++)
        if (old.slots[i].stamp == t->stamp)
            paths_put(t, old.slots[i].hash);
    free(old.slots);
    return SPOOL_OK;
}

static int object_value(struct column *c, struct scan *s);
static int array_value(struct column *c, struct scan *s);

static int check_number(struct column *c, struct scan *s)
{
    const uint8_t *start = s->p, *p = s->p;
    bool negative = *p == '-', overflow, whole = true;
    uint64_t v = 0;
    double value = 0;
    int status = json_skip(s);

    if (status != SPOOL_OK)
        return status;
    for (const uint8_t *at = p; at < s->p; at++)
        whole &= is_digit(*at) || *at == '-';
    if (whole) {
        number_digits(p + negative, s->p, &v, &overflow);
        overflow |= negative && v > 1ull << 63;
    } else {
        number_double_slow(p, s->p, c->c_locale, &value);
        overflow = isinf(value) != 0;
    }
    if (overflow)
        return scan_refuse_at(s, start, REFUSAL_RANGE, "a number is beyond what %s holds",
                              column_type_text(c));
    return SPOOL_OK;
}

/* A string by RFC 8259 whose escaped surrogates come in pairs. */
static int check_string(struct scan *s, const uint8_t **data, size_t *size)
{
    const uint8_t *start = s->p, *end;
    int status = json_skip_string(s);

    if (status != SPOOL_OK)
        return status;
    end = s->p;
    s->p = start;
    status = json_string(s, data, size);
    if (status == SPOOL_OK)
        s->p = end;
    return status;
}

static int check_value(struct column *c, struct scan *s)
{
    const uint8_t *data;
    size_t size;

    if (s->p == s->end)
        return scan_refuse_token(s, "a value");
    switch (*s->p) {
    case '{':
        return object_value(c, s);
    case '[':
        return array_value(c, s);
    case '"':
        return check_string(s, &data, &size);
    default:
        return *s->p == '-' || is_digit(*s->p) ? check_number(c, s) : json_skip(s);
    }
}

static int enter(struct scan *s)
{
    if (s->depth >= LIMIT_JSON_DEPTH)
        return scan_refuse(s, REFUSAL_DEPTH, "nested deeper than %d levels", LIMIT_JSON_DEPTH);
    s->depth++;
    s->p = json_blank(s->p + 1, s->end);
    return SPOOL_OK;
}

/* Behind an element: at the next one, or behind the end (*more false). */
static int pass_comma(struct scan *s, uint8_t close, bool *more)
{
    s->p = json_blank(s->p, s->end);
    *more = s->p < s->end && *s->p == ',';
    if (!*more && (s->p == s->end || *s->p != close))
        return scan_refuse_token(s, "a comma or the end of the value");
    s->p++;
    if (*more)
        s->p = json_blank(s->p, s->end);
    else
        s->depth--;
    return SPOOL_OK;
}

static int array_value(struct column *c, struct scan *s)
{
    struct object_paths *t = c->paths;
    size_t outer = t->path.len;
    bool more = true;
    int status = enter(s);

    if (status == SPOOL_OK && s->p < s->end && *s->p == ']')
        return pass_comma(s, ']', &more);
    while (status == SPOOL_OK && more) {
        uint64_t scope = ++t->scope;
        status = buf_append(&t->path, &scope, sizeof(scope));
        if (status == SPOOL_OK)
            status = check_value(c, s);
        t->path.len = outer;
        if (status == SPOOL_OK)
            status = pass_comma(s, ']', &more);
    }
    return status;
}

static int member(struct column *c, struct scan *s)
{
    struct object_paths *t = c->paths;
    const uint8_t *key, *at = s->p;
    size_t size, outer = t->path.len;
    int status;

    if (s->p == s->end || *s->p != '"')
        return scan_refuse_token(s, "a key");
    status = check_string(s, &key, &size);
    if (status == SPOOL_OK)
        status = buf_append(&t->path, key, size);
    if (status == SPOOL_OK)
        status = paths_grow(t);
    if (status != SPOOL_OK)
        return status;
    s->p = json_blank(s->p, s->end);
    if (s->p == s->end || *s->p != ':')
        return scan_refuse_token(s, "a colon");
    s->p = json_blank(s->p + 1, s->end);
    if (s->p < s->end && *s->p != '{' && paths_put(t, XXH3_64bits(t->path.data, t->path.len)))
        return scan_refuse_at(s, at, REFUSAL_DUPLICATE_KEY, "a path of the object comes twice");
    status = buf_put_u8(&t->path, '.');
    if (status == SPOOL_OK)
        status = check_value(c, s);
    t->path.len = outer;
    return status;
}

static int object_value(struct column *c, struct scan *s)
{
    bool more = true;
    int status = enter(s);

    if (status == SPOOL_OK && s->p < s->end && *s->p == '}')
        return pass_comma(s, '}', &more);
    while (status == SPOOL_OK && more) {
        status = member(c, s);
        if (status == SPOOL_OK)
            status = pass_comma(s, '}', &more);
    }
    return status;
}

/* RFC 3629: no overlong forms, no surrogates, nothing above U+10FFFF. */
static const uint8_t *not_utf8(const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        unsigned n = *p < 0x80   ? 1
                     : *p < 0xc2 ? 0
                     : *p < 0xe0 ? 2
                     : *p < 0xf0 ? 3
                     : *p < 0xf5 ? 4
                                 : 0;
        if (n == 0 || (size_t)(end - p) < n)
            return p;
        for (unsigned i = 1; i < n; i++)
            if ((p[i] & 0xc0) != 0x80)
                return p;
        if ((*p == 0xe0 && p[1] < 0xa0) || (*p == 0xed && p[1] > 0x9f) ||
            (*p == 0xf0 && p[1] < 0x90) || (*p == 0xf4 && p[1] > 0x8f))
            return p;
        p += n;
    }
    return NULL;
}

static int json_value(struct column *c, struct scan *s)
{
    const uint8_t *start = s->p, *bad;
    int status;

    if (*s->p != '{')
        return scan_refuse(s, REFUSAL_TYPE, "%s takes an object", column_type_text(c));
    c->paths->stamp++;
    c->paths->count = 0;
    c->paths->scope = 0;
    c->paths->path.len = 0;
    status = object_value(c, s);
    if (status != SPOOL_OK)
        return status;
    bad = not_utf8(start, s->p);
    if (bad)
        return scan_refuse_at(s, bad, REFUSAL_TEXT, "%s takes UTF-8 only", column_type_text(c));
    return column_put_string(c, start, (size_t)(s->p - start));
}

static const uint8_t *append_object(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, json_value(c, s));
}

int column_make_object(struct column *c)
{
    c->append = append_object;
    c->paths = calloc(1, sizeof(*c->paths));
    if (!c->paths)
        return SPOOL_E_NOMEM;
    buf_init(&c->paths->path, LIMIT_RECORD_BYTES);
    return SPOOL_OK;
}
