/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers from text, exactly. Nothing here reads at or past `end`. The functions move over what
 * belongs to the number; what may follow it is the caller's business.
 */
#ifndef CODEC_NUMBER_H
#define CODEC_NUMBER_H

#include <locale.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec/json_simd.h"

/* Digits at the start of v (the text's first byte is v's lowest), 0..8. */
static inline unsigned swar_digit_count(uint64_t v)
{
    uint64_t t = v ^ 0x3030303030303030ull;
    uint64_t other = ((t + 0x7676767676767676ull) | t) & 0x8080808080808080ull;
    return other ? (unsigned)__builtin_ctzll(other) >> 3 : 8;
}

/* The number that the first n digits of v make, 1 <= n <= 8. */
static inline uint64_t swar_digits(uint64_t v, unsigned n)
{
    uint64_t t = (v ^ 0x3030303030303030ull) << (64 - 8 * n);
    t = t * 10 + (t >> 8);
    return (((t & 0x000000ff000000ffull) * 0x000f424000000064ull) +
            (((t >> 16) & 0x000000ff000000ffull) * 0x0000271000000001ull)) >>
           32;
}

static inline bool is_digit(uint8_t c)
{
    return (uint8_t)(c - '0') < 10;
}

extern const uint64_t number_ten_to[20];

/*
 * Digits from p on as a number. Returns where they end; *overflow if they don't fit 64 bits (then
 * the value is meaningless). No digit at all: returns p.
 */
const uint8_t *number_digits_long(const uint8_t *p, const uint8_t *end, uint64_t *value,
                                  bool *overflow);

static inline const uint8_t *number_digits(const uint8_t *p, const uint8_t *end, uint64_t *value,
                                           bool *overflow)
{
    *overflow = false;
    if (__builtin_expect(end - p >= 8, 1)) {
        uint64_t v = load_le64(p);
        unsigned n = swar_digit_count(v);
        if (__builtin_expect(n < 8, 1)) {
            *value = n ? swar_digits(v, n) : 0;
            return p + n;
        }
    }
    return number_digits_long(p, end, value, overflow);
}

/*
 * A decimal number as written: sign, digits, point, exponent, every part lenient as JSONEachRow
 * is ("+1", "007", ".5", "5."). Points into the text, so any number of digits fits.
 */
struct decimal_text {
    bool negative;
    const uint8_t *first; /* the first significant digit (not 0), or NULL: the value is zero */
    const uint8_t *last;  /* behind the last digit of the mantissa */
    size_t digits;        /* from first on, the point not counted */
    int64_t point;        /* value = 0.ddd * 10^point; of zero meaningless */
    size_t whole;         /* digits before the point, from the first significant one on */
    int64_t exponent;     /* as it stands there ... */
    bool has_exponent;    /* ... if it does */
};

/*
 * Whether JSONEachRow finds room for it in a decimal: it counts the digits before the point, whatever
 * the exponent takes off them again, and no zeros behind the point. So 1000e-2 and 0.001e4 may be
 * refused where 10 is taken, and 0e99 as 1e99 is.
 */
static inline bool decimal_has_room(const struct decimal_text *d, unsigned precision,
                                    unsigned scale)
{
    return d->whole <= precision &&
           (int64_t)d->whole + d->exponent <= (int64_t)precision - (int64_t)scale;
}

/* NULL if there is no number at p or its exponent is broken. */
const uint8_t *decimal_scan(const uint8_t *p, const uint8_t *end, struct decimal_text *d);

/*
 * A Float64, correctly rounded (to nearest, ties to even). Finite text that is too large gives
 * infinity. Returns where it ends, NULL if there is no number. c: a "C" locale, for the rare
 * text that takes the slow way.
 */
const uint8_t *number_double_slow(const uint8_t *p, const uint8_t *end, locale_t c, double *value);
const uint8_t *number_float(const uint8_t *p, const uint8_t *end, locale_t c, float *value);

extern const double number_exact_ten[23];

static inline const uint8_t *number_double(const uint8_t *p, const uint8_t *end, locale_t c,
                                           double *value)
{
    const uint8_t *at = p;
    bool negative = false;
    unsigned whole, fraction = 0;
    uint64_t v, w;

    /* up to 7 digits, a point, up to 7 digits: w and 10^fraction are exact, so is one division */
    if (__builtin_expect(end - at < 18, 0))
        return number_double_slow(p, end, c, value);
    if (*at == '-') {
        negative = true;
        at++;
    }
    v = load_le64(at);
    whole = swar_digit_count(v);
    if (whole == 0 || whole == 8)
        return number_double_slow(p, end, c, value);
    w = swar_digits(v, whole);
    at += whole;
    if (*at == '.') {
        v = load_le64(++at);
        fraction = swar_digit_count(v);
        if (fraction == 0 || fraction == 8)
            return number_double_slow(p, end, c, value);
        w = w * number_ten_to[fraction] + swar_digits(v, fraction);
        at += fraction;
    }
    if ((*at | 0x20) == 'e')
        return number_double_slow(p, end, c, value);
    *value = (double)w / number_exact_ten[fraction];
    if (negative)
        *value = -*value;
    return at;
}

#endif
