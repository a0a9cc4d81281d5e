/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Floats. A text is w * 10^q with w of up to 19 digits. Three ways, the cheapest that is exact:
 * w and 10^|q| both fit a double: one multiplication or division rounds once (Clinger 1990); else
 * w times 128 bits of 5^q gives all the bits that decide (Lemire 2021; that no further fallback is
 * needed is Mushtak and Lemire 2022); and where digits beyond the 19th could decide, or the result
 * is subnormal, strtod.
 */
#include "codec/number.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codec/number_powers.h"

const uint64_t number_ten_to[20] = {1ull,
                                    10ull,
                                    100ull,
                                    1000ull,
                                    10000ull,
                                    100000ull,
                                    1000000ull,
                                    10000000ull,
                                    100000000ull,
                                    1000000000ull,
                                    10000000000ull,
                                    100000000000ull,
                                    1000000000000ull,
                                    10000000000000ull,
                                    100000000000000ull,
                                    1000000000000000ull,
                                    10000000000000000ull,
                                    100000000000000000ull,
                                    1000000000000000000ull,
                                    10000000000000000000ull};

const double number_exact_ten[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,
                                     1e8,  1e9,  1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
                                     1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

#define EXPONENT_LIMIT 1000000000 /* beyond it only 0 and infinity are left */
#define DIGITS_FAST    19
#define DIGITS_SLOW    800 /* more than any digit string a double's midpoint needs (767) */

const uint8_t *number_digits_long(const uint8_t *p, const uint8_t *end, uint64_t *value,
                                  bool *overflow)
{
    uint64_t v = 0;

    *overflow = false;
    while (p < end && is_digit(*p)) {
        unsigned digit = (unsigned)(*p++ - '0');
        if (v > (UINT64_MAX - digit) / 10)
            *overflow = true;
        v = v * 10 + digit;
    }
    *value = v;
    return p;
}

/* e[+-]digits, saturating. NULL if broken. */
static const uint8_t *exponent_scan(const uint8_t *p, const uint8_t *end, int64_t *exponent)
{
    const uint8_t *start;
    bool negative = false;
    int64_t e = 0;

    *exponent = 0;
    if (p == end || (*p | 0x20) != 'e')
        return p;
    p++;
    if (p < end && (*p == '+' || *p == '-'))
        negative = *p++ == '-';
    start = p;
    for (; p < end && is_digit(*p); p++)
        if (e < EXPONENT_LIMIT)
            e = e * 10 + (*p - '0');
    *exponent = negative ? -e : e;
    return p == start ? NULL : p;
}

const uint8_t *decimal_scan(const uint8_t *p, const uint8_t *end, struct decimal_text *d)
{
    const uint8_t *start, *point = NULL, *mantissa_end;
    int64_t exponent;

    memset(d, 0, sizeof(*d));
    if (p < end && (*p == '-' || *p == '+'))
        d->negative = *p++ == '-';
    start = p;
    while (p < end && (is_digit(*p) || (*p == '.' && !point))) {
        if (*p == '.')
            point = p;
        else if (!d->first && *p != '0')
            d->first = p;
        p++;
    }
    if (p - start - (point != NULL) == 0)
        return NULL;
    mantissa_end = p;
    p = exponent_scan(p, end, &exponent);
    if (!p)
        return NULL;
    d->exponent = exponent;
    d->has_exponent = p != mantissa_end;
    if (!d->first)
        return p;
    d->last = mantissa_end;
    d->digits = (size_t)(mantissa_end - d->first) - (point && d->first < point);
    if (!point)
        point = mantissa_end;
    if (d->first < point)
        d->whole = (size_t)(point - d->first);
    d->point = exponent + (d->first < point ? point - d->first : -(d->first - point - 1));
    return p;
}

/* strtod on a NUL-terminated copy of the digits that can matter. */
static double slow_double(const struct decimal_text *d, locale_t c, bool single)
{
    char text[DIGITS_SLOW + 64];
    size_t n = 0, used = 0;
    int64_t exponent;
    bool rest = false;

    text[n++] = d->negative ? '-' : '+';
    for (const uint8_t *p = d->first; p < d->last; p++) {
        if (*p == '.')
            continue;
        if (used < DIGITS_SLOW) {
            text[n++] = (char)*p;
            used++;
        } else if (*p != '0') {
            rest = true;
            break;
        }
    }
    exponent = d->point - (int64_t)used;
    if (rest) { /* something is left: as good as one more digit */
        text[n++] = '1';
        exponent--;
    }
    snprintf(text + n, sizeof(text) - n, "e%lld", (long long)exponent);
    return single ? (double)strtof_l(text, NULL, c) : strtod_l(text, NULL, c);
}

/*
 * w * 10^q rounded to a double, w != 0, POWER_MIN <= q <= POWER_MAX. False where the result is
 * subnormal (the caller then takes the slow way); infinity where it is too large.
 */
static bool product_double(uint64_t w, int q, double *value)
{
    const uint64_t *power = power_of_five[q - POWER_MIN];
    int zeros = __builtin_clzll(w);
    unsigned __int128 product, second;
    uint64_t high, low, mantissa, bits;
    int upper, exponent;

    w <<= zeros;
    product = (unsigned __int128)w * power[0];
    if ((((uint64_t)(product >> 64)) & 0x1ff) == 0x1ff) { /* the low half may carry into these */
        second = (unsigned __int128)w * power[1];
        product += (uint64_t)(second >> 64);
    }
    high = (uint64_t)(product >> 64);
    low = (uint64_t)product;
    upper = (int)(high >> 63);
    mantissa = high >> (upper + 64 - 52 - 3); /* 54 bits: one more than is kept */
    exponent = ((217706 * q) >> 16) + 63 + upper - zeros + 1023; /* log2(10) = 217706 / 2^16 */
    if (exponent <= 0)
        return false;
    /* exactly half way, and the bit to drop to is even: towards it */
    if (low <= 1 && q >= -4 && q <= 23 && (mantissa & 3) == 1 &&
        mantissa << (upper + 64 - 52 - 3) == high)
        mantissa &= ~1ull;
    mantissa = (mantissa + (mantissa & 1)) >> 1;
    if (mantissa >= 2ull << 52) {
        mantissa = 1ull << 52;
        exponent++;
    }
    if (exponent >= 0x7ff) {
        *value = INFINITY;
        return true;
    }
    bits = (mantissa & ~(1ull << 52)) | (uint64_t)exponent << 52;
    memcpy(value, &bits, sizeof(bits));
    return true;
}

static double decimal_to_double(const struct decimal_text *d, locale_t c)
{
    uint64_t w = 0;
    size_t used = 0;
    int64_t q;
    double value, above;
    bool done = false;

    if (!d->first)
        return d->negative ? -0.0 : 0.0;
    if (d->point > 400)
        return d->negative ? -INFINITY : INFINITY;
    if (d->point < -400)
        return d->negative ? -0.0 : 0.0;
    for (const uint8_t *p = d->first; p < d->last && used < DIGITS_FAST; p++)
        if (*p != '.') {
            w = w * 10 + (uint64_t)(*p - '0');
            used++;
        }
    q = d->point - (int64_t)used;
    if (used == d->digits && w <= 1ull << 53 && q >= -22 && q <= 22) {
        value = q < 0 ? (double)w / number_exact_ten[-q] : (double)w * number_exact_ten[q];
        done = true;
    } else if (q >= POWER_MIN && q <= POWER_MAX) {
        done = product_double(w, (int)q, &value);
        if (done && used < d->digits) /* the truth lies between w and w + 1 */
            done = product_double(w + 1, (int)q, &above) && above == value;
    }
    if (!done)
        return slow_double(d, c, false);
    return d->negative ? -value : value;
}

const uint8_t *number_double_slow(const uint8_t *p, const uint8_t *end, locale_t c, double *value)
{
    struct decimal_text d;
    const uint8_t *stop = decimal_scan(p, end, &d);

    if (stop)
        *value = decimal_to_double(&d, c);
    return stop;
}

/*
 * Through the double: rounding twice differs from rounding once only where the double sits on the
 * middle between two floats, or where floats are subnormal.
 */
const uint8_t *number_float(const uint8_t *p, const uint8_t *end, locale_t c, float *value)
{
    struct decimal_text d;
    const uint8_t *stop = decimal_scan(p, end, &d);
    double wide;
    uint64_t bits;

    if (!stop)
        return NULL;
    wide = decimal_to_double(&d, c);
    memcpy(&bits, &wide, sizeof(bits));
    if (d.first && isfinite(wide) && ((bits & 0x1fffffff) == 0x10000000 || fabs(wide) < 0x1.0p-126))
        *value = (float)slow_double(&d, c, true);
    else
        *value = (float)wide;
    return stop;
}
