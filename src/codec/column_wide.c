/* SPDX-License-Identifier: Apache-2.0 */
/* Int128/256, UInt128/256 and decimals of more than 38 digits. */
#include <string.h>

#include "codec/column.h"
#include "codec/number.h"
#include "codec/wide.h"

static int put_wide(struct column *c, const struct wide *w)
{
    int status = SPOOL_OK;

    for (uint32_t at = 0; at < c->width && status == SPOOL_OK; at += 8)
        status = column_put(c, w->word[at / 8], 8);
    return status;
}

/* ---- integers ---- */

static int refuse_range(struct column *c, struct scan *s, const uint8_t *at)
{
    return scan_refuse_at(s, at, REFUSAL_RANGE, "the number is outside %s", column_type_text(c));
}

static bool take_word(struct scan *s, const char *word, size_t n)
{
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n) != 0)
        return false;
    s->p += n;
    return true;
}

/* What the narrower integers take: digits with a sign, quoted or not, true, false and "". */
static int read_integer(struct column *c, struct scan *s, struct wide *w, bool *negative)
{
    const uint8_t *start = s->p, *first;
    bool quoted = *s->p == '"', fits = true;

    s->p += quoted;
    if (quoted && s->p < s->end && *s->p == '"') {
        s->p++;
        return SPOOL_OK;
    }
    if (s->p < s->end && (*s->p == '-' || *s->p == '+'))
        *negative = *s->p++ == '-';
    for (first = s->p; s->p < s->end && is_digit(*s->p); s->p++)
        fits = wide_push(w, (unsigned)(*s->p - '0')) && fits;
    if (s->p == first) {
        s->p = start;
        return scan_refuse(s, REFUSAL_TYPE, "%s takes a whole number", column_type_text(c));
    }
    if (s->p < s->end && (*s->p == '.' || (*s->p | 0x20) == 'e'))
        return scan_refuse(s, REFUSAL_TYPE, "%s takes whole numbers without point and exponent",
                           column_type_text(c));
    if (quoted) {
        if (s->p == s->end || *s->p != '"')
            return scan_refuse(s, REFUSAL_TEXT, "the text is not a whole number for %s",
                               column_type_text(c));
        s->p++;
    }
    return fits ? SPOOL_OK : refuse_range(c, s, start);
}

static int integer_value(struct column *c, struct scan *s)
{
    bool is_signed = c->kind == TYPE_INT128 || c->kind == TYPE_INT256, negative = false;
    const uint8_t *start = s->p;
    struct wide w = {0};
    int status = SPOOL_OK;

    if (take_word(s, "true", 4))
        w.word[0] = 1;
    else if (!take_word(s, "false", 5))
        status = read_integer(c, s, &w, &negative);
    if (status != SPOOL_OK)
        return status;
    if ((negative && !is_signed) || !wide_fits(&w, c->width * 8, is_signed, negative))
        return refuse_range(c, s, start);
    if (negative)
        wide_negate(&w);
    return put_wide(c, &w);
}

static const uint8_t *append_integer(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, integer_value(c, s));
}

/* ---- decimals: as those of up to 38 digits, in column_number.c ---- */

static int decimal_units(struct column *c, struct scan *s, const uint8_t *at,
                         const struct decimal_text *d, struct wide *w)
{
    int64_t keep = d->point + c->scale, taken = 0;
    bool lost = false;

    if (!decimal_has_room(d, c->precision, c->scale))
        return refuse_range(c, s, at);
    for (const uint8_t *p = d->first; p < d->last && !lost; p++) {
        if (*p == '.')
            continue;
        if (taken++ < keep)
            wide_push(w, (unsigned)(*p - '0'));
        else
            lost = *p != '0';
    }
    if (lost && !c->truncate)
        return scan_refuse_at(s, at, REFUSAL_PRECISION,
                              "%s would lose digits (\"truncate\": true allows it)",
                              column_type_text(c));
    for (; taken < keep; taken++)
        wide_push(w, 0);
    return SPOOL_OK;
}

static int decimal_value(struct column *c, struct scan *s)
{
    const uint8_t *start = s->p, *stop;
    bool quoted = *s->p == '"';
    struct decimal_text d = {0};
    struct wide w = {0};
    int status;

    s->p += quoted;
    if (quoted && !s->in_variant && s->p < s->end && *s->p == '"') {
        s->p++; /* "" is 0, as JSONEachRow has it */
        return put_wide(c, &w);
    }
    stop = decimal_scan(s->p, s->end, &d);
    s->p = stop ? stop : s->p;
    if (!stop || (s->in_variant && !variant_takes_decimal(s, d.has_exponent, quoted)))
        return scan_refuse_at(s, start, quoted ? REFUSAL_TEXT : REFUSAL_TYPE, "%s takes a number",
                              column_type_text(c));
    if (quoted && (s->p == s->end || *s->p != '"'))
        return scan_refuse(s, REFUSAL_TEXT, "the text is not a number for %s", column_type_text(c));
    s->p += quoted;
    status = decimal_units(c, s, start, &d, &w);
    if (status != SPOOL_OK)
        return status;
    if (d.negative)
        wide_negate(&w);
    return put_wide(c, &w);
}

static const uint8_t *append_decimal(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, decimal_value(c, s));
}

bool column_set_wide(struct column *c)
{
    switch (c->kind) {
    case TYPE_INT128:
    case TYPE_INT256:
    case TYPE_UINT128:
    case TYPE_UINT256:
        c->append = append_integer;
        return true;
    case TYPE_DECIMAL:
        c->append = append_decimal;
        return c->width == 32;
    default:
        return false;
    }
}
