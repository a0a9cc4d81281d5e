/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers into columns, as JSONEachRow reads them but without its damage: what is out of range is
 * refused instead of wrapped or turned into infinity, and a decimal's digits are cut only where
 * the config says so.
 */
#include <math.h>
#include <string.h>

#include "codec/column.h"
#include "codec/number.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

static bool word_at(const struct scan *s, const char *word, size_t n)
{
    return (size_t)(s->end - s->p) >= n && memcmp(s->p, word, n) == 0;
}

/* ---- integers ---- */

static int refuse_range(struct column *c, struct scan *s, const uint8_t *at)
{
    return scan_refuse_at(s, at, REFUSAL_RANGE, "the number is outside %s", column_type_text(c));
}

static int refuse_whole(struct column *c, struct scan *s)
{
    return scan_refuse(s, REFUSAL_TYPE, "%s takes whole numbers without point and exponent",
                       column_type_text(c));
}

/* The bytes of the true or false at p; 0: it is neither, or the record's last but for a brace. */
static inline unsigned bool_word(const uint8_t *p, const uint8_t *end)
{
    uint32_t word;
    unsigned yes, no;

    if (unlikely(end - p < 5))
        return 0;
    memcpy(&word, p, sizeof(word));
    yes = memcmp(&word, "true", 4) == 0;
    no = (unsigned)(memcmp(&word, "fals", 4) == 0) & (p[4] == 'e');
    return yes * 4 + no * 5;
}

/* What a plain run of digits is not: signs, quotes, words. "" is 0, as JSONEachRow has it. */
static int integer_other(struct column *c, struct scan *s, uint64_t *magnitude, bool *negative)
{
    const uint8_t *start = s->p, *first;
    bool quoted = *s->p == '"', overflow;

    *negative = false;
    if (word_at(s, "true", 4) || word_at(s, "false", 5)) {
        *magnitude = *s->p == 't';
        s->p += *magnitude ? 4 : 5;
        return SPOOL_OK;
    }
    s->p += quoted;
    if (quoted && s->p < s->end && *s->p == '"') {
        s->p++;
        *magnitude = 0;
        return SPOOL_OK;
    }
    if (s->p < s->end && (*s->p == '-' || *s->p == '+'))
        *negative = *s->p++ == '-';
    first = s->p;
    s->p = number_digits(first, s->end, magnitude, &overflow);
    if (s->p == first) {
        s->p = start;
        return scan_refuse(s, REFUSAL_TYPE, "%s takes a whole number", column_type_text(c));
    }
    if (s->p < s->end && (*s->p == '.' || (*s->p | 0x20) == 'e'))
        return refuse_whole(c, s);
    if (quoted) {
        if (s->p == s->end || *s->p != '"')
            return scan_refuse(s, REFUSAL_TEXT, "the text is not a whole number for %s",
                               column_type_text(c));
        s->p++;
    }
    return overflow ? refuse_range(c, s, start) : SPOOL_OK;
}

static inline __attribute__((always_inline)) const uint8_t *
append_integer(struct column *c, struct scan *s, const uint8_t *p, unsigned width, bool is_signed)
{
    const uint8_t *start = p;
    bool negative = false, overflow = false;
    uint64_t v, limit;
    int status;

    if (is_signed && *p == '-')
        p++;
    if (likely(p < s->end && is_digit(*p))) {
        negative = p != start;
        p = number_digits(p, s->end, &v, &overflow);
        if (p < s->end && unlikely(*p == '.' || (*p | 0x20) == 'e')) {
            s->p = p;
            return scan_fail(s, refuse_whole(c, s));
        }
    } else {
        s->p = start;
        status = integer_other(c, s, &v, &negative);
        if (status != SPOOL_OK)
            return scan_fail(s, status);
        p = s->p;
        overflow = !is_signed && negative;
    }
    limit = is_signed ? (1ull << (8 * width - 1)) - 1 + negative : ~0ull >> (64 - 8 * width);
    if (unlikely(overflow || v > limit))
        return scan_fail(s, refuse_range(c, s, start));
    status = column_put(c, negative ? 0 - v : v, width);
    return likely(status == SPOOL_OK) ? p : scan_fail(s, status);
}

static const uint8_t *append_int8(struct column *c, struct scan *s, const uint8_t *p)
{
    return append_integer(c, s, p, 1, true);
}

static const uint8_t *append_int16(struct column *c, struct scan *s, const uint8_t *p)
{
    return append_integer(c, s, p, 2, true);
}

static const uint8_t *append_int32(struct column *c, struct scan *s, const uint8_t *p)
{
    return append_integer(c, s, p, 4, true);
}

static const uint8_t *append_int64(struct column *c, struct scan *s, const uint8_t *p)
{
    return append_integer(c, s, p, 8, true);
}

/* true and false where the server has no Bool: the one of them decides no jump, nothing could
   foresee it. */
static const uint8_t *append_uint8(struct column *c, struct scan *s, const uint8_t *p)
{
    unsigned size = bool_word(p, s->end);
    int status;

    if (!size)
        return append_integer(c, s, p, 1, false);
    status = column_put(c, size == 4, 1);
    return likely(status == SPOOL_OK) ? p + size : scan_fail(s, status);
}

static const uint8_t *append_uint16(struct column *c, struct scan *s, const uint8_t *p)
{
    return append_integer(c, s, p, 2, false);
}

static const uint8_t *append_uint32(struct column *c, struct scan *s, const uint8_t *p)
{
    return append_integer(c, s, p, 4, false);
}

static const uint8_t *append_uint64(struct column *c, struct scan *s, const uint8_t *p)
{
    return append_integer(c, s, p, 8, false);
}

/* ---- floats ---- */

/* [+-]nan, inf, infinity in any case. */
static bool float_word(struct scan *s, double *value)
{
    static const struct {
        const char *word;
        size_t size;
        double value;
    } words[] = {
        {"infinity", 8, (double)INFINITY}, {"inf", 3, (double)INFINITY}, {"nan", 3, (double)NAN}};
    const uint8_t *p = s->p;
    bool negative = false;

    if (p < s->end && (*p == '-' || *p == '+'))
        negative = *p++ == '-';
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        size_t n = words[i].size, same = 0;
        if ((size_t)(s->end - p) < n)
            continue;
        while (same < n && (p[same] | 0x20) == (uint8_t)words[i].word[same])
            same++;
        if (same == n) {
            s->p = p + n;
            *value = negative ? -words[i].value : words[i].value;
            return true;
        }
    }
    return false;
}

static int refuse_float(struct column *c, struct scan *s, bool quoted)
{
    return scan_refuse(s, quoted ? REFUSAL_TEXT : REFUSAL_TYPE, "%s takes a number",
                       column_type_text(c));
}

/* Quotes, words, signs: all that isn't a plain number. single: rounded to a Float32. */
static int float_other(struct column *c, struct scan *s, bool single, double *value)
{
    bool quoted = *s->p == '"';
    const uint8_t *start = s->p, *stop;
    bool word;

    if (!quoted && (word_at(s, "true", 4) || word_at(s, "false", 5))) {
        *value = *s->p == 't';
        s->p += *s->p == 't' ? 4 : 5;
        return SPOOL_OK;
    }
    s->p += quoted;
    word = float_word(s, value);
    if (!word) {
        if (single) {
            float f;
            stop = number_float(s->p, s->end, c->c_locale, &f);
            *value = stop ? (double)f : 0;
        } else {
            stop = number_double_slow(s->p, s->end, c->c_locale, value);
        }
        if (!stop)
            return refuse_float(c, s, quoted);
        s->p = stop;
    }
    if (quoted) {
        if (s->p == s->end || *s->p != '"')
            return refuse_float(c, s, true);
        s->p++;
    }
    return !word && isinf(*value) ? refuse_range(c, s, start) : SPOOL_OK;
}

static const uint8_t *append_float64(struct column *c, struct scan *s, const uint8_t *p)
{
    const uint8_t *stop = NULL;
    double value;
    uint64_t bits;
    int status;

    if (likely(is_digit(*p) || *p == '-'))
        stop = number_double(p, s->end, c->c_locale, &value);
    if (unlikely(!stop)) {
        s->p = p;
        status = float_other(c, s, false, &value);
        if (status != SPOOL_OK)
            return scan_fail(s, status);
        stop = s->p;
    } else if (unlikely(isinf(value))) {
        return scan_fail(s, refuse_range(c, s, p));
    }
    memcpy(&bits, &value, sizeof(bits));
    status = column_put(c, bits, 8);
    return likely(status == SPOOL_OK) ? stop : scan_fail(s, status);
}

static int float32_value(struct column *c, struct scan *s)
{
    double value;
    float narrow;
    uint32_t bits;
    int status = float_other(c, s, true, &value);

    if (status != SPOOL_OK)
        return status;
    narrow = (float)value;
    memcpy(&bits, &narrow, sizeof(bits));
    return column_put(c, bits, 4);
}

/* The upper half of a Float32, the rest cut off as ClickHouse does. */
static int bfloat16_value(struct column *c, struct scan *s)
{
    double value;
    float narrow;
    uint32_t bits;
    int status = float_other(c, s, true, &value);

    if (status != SPOOL_OK)
        return status;
    narrow = (float)value;
    memcpy(&bits, &narrow, sizeof(bits));
    return column_put(c, bits >> 16, 2);
}

static const uint8_t *append_bfloat16(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, bfloat16_value(c, s));
}

static const uint8_t *append_float32(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, float32_value(c, s));
}

/* ---- Bool ---- */

static const uint8_t *refuse_bool(struct scan *s, const uint8_t *at)
{
    return scan_fail(s, scan_refuse_at(s, at, REFUSAL_TYPE, "Bool takes true, false, 0 or 1"));
}

/* Which of the words it is decides no jump: nothing could foresee it. */
static const uint8_t *append_bool(struct column *c, struct scan *s, const uint8_t *p)
{
    unsigned size = bool_word(p, s->end);
    int status;

    if (likely(size)) {
        status = column_put(c, size == 4, 1);
        return likely(status == SPOOL_OK) ? p + size : scan_fail(s, status);
    }
    s->p = p;
    if (*p == '0' || *p == '1') {
        s->p++;
        if (s->p < s->end && (is_digit(*s->p) || *s->p == '.' || (*s->p | 0x20) == 'e'))
            return refuse_bool(s, p);
        status = column_put(c, *p == '1', 1);
    } else if (word_at(s, "true", 4)) {
        s->p += 4;
        status = column_put(c, 1, 1);
    } else {
        return refuse_bool(s, p);
    }
    return scan_done(s, status);
}

/* ---- decimals ---- */

/*
 * The value as an integer of units 10^-scale. The digits kept are the first point + scale of the
 * significant ones, which are at most precision many where there is room.
 */
static int decimal_units(struct column *c, struct scan *s, const uint8_t *at,
                         const struct decimal_text *d, unsigned __int128 *units)
{
    int64_t keep = d->point + c->scale;
    int64_t taken = 0;
    bool lost = false;

    *units = 0;
    if (!decimal_has_room(d, c->precision, c->scale))
        return refuse_range(c, s, at);
    for (const uint8_t *p = d->first; p < d->last && !lost; p++) {
        if (*p == '.')
            continue;
        if (taken < keep) {
            *units = *units * 10 + (unsigned)(*p - '0');
            taken++;
        } else {
            lost = *p != '0';
        }
    }
    if (lost && !c->truncate)
        return scan_refuse_at(s, at, REFUSAL_PRECISION,
                              "%s would lose digits (\"truncate\": true allows it)",
                              column_type_text(c));
    for (; taken < keep; taken++)
        *units *= 10;
    return SPOOL_OK;
}

static int decimal_value(struct column *c, struct scan *s)
{
    const uint8_t *start = s->p, *stop;
    bool quoted = *s->p == '"';
    struct decimal_text d = {0};
    unsigned __int128 units;
    int status;

    s->p += quoted;
    if (quoted && !s->in_variant && s->p < s->end && *s->p == '"') {
        s->p++;
        goto put; /* "" is 0, as JSONEachRow has it */
    }
    stop = decimal_scan(s->p, s->end, &d);
    s->p = stop ? stop : s->p;
    if (!stop || (s->in_variant && !variant_takes_decimal(s, d.has_exponent, quoted)))
        return scan_refuse_at(s, start, quoted ? REFUSAL_TEXT : REFUSAL_TYPE, "%s takes a number",
                              column_type_text(c));
    if (quoted) {
        if (s->p == s->end || *s->p != '"')
            return scan_refuse(s, REFUSAL_TEXT, "the text is not a number for %s",
                               column_type_text(c));
        s->p++;
    }
put:
    status = decimal_units(c, s, start, &d, &units);
    if (status != SPOOL_OK)
        return status;
    if (d.negative)
        units = 0 - units;
    if (c->width <= 8)
        return column_put(c, (uint64_t)units, c->width);
    status = column_put(c, (uint64_t)units, 8);
    return status == SPOOL_OK ? column_put(c, (uint64_t)(units >> 64), 8) : status;
}

static const uint8_t *append_decimal(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, decimal_value(c, s));
}

bool column_set_number(struct column *c)
{
    switch (c->kind) {
    case TYPE_INT8:
        c->append = append_int8;
        return true;
    case TYPE_INT16:
        c->append = append_int16;
        return true;
    case TYPE_INT32:
        c->append = append_int32;
        return true;
    case TYPE_INT64:
    case TYPE_INTERVAL:
        c->append = append_int64;
        return true;
    case TYPE_UINT8:
        c->append = append_uint8;
        return true;
    case TYPE_UINT16:
        c->append = append_uint16;
        return true;
    case TYPE_UINT32:
        c->append = append_uint32;
        return true;
    case TYPE_UINT64:
        c->append = append_uint64;
        return true;
    case TYPE_FLOAT32:
        c->append = append_float32;
        return true;
    case TYPE_FLOAT64:
        c->append = append_float64;
        return true;
    case TYPE_BFLOAT16:
        c->append = append_bfloat16;
        return true;
    case TYPE_BOOL:
        c->append = append_bool;
        return true;
    case TYPE_DECIMAL:
        c->append = append_decimal;
        return c->width <= 16;
    default:
        return false;
    }
}
