/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers of 256 bits: what Int128/256, UInt128/256 and Decimal(39..76) are made with. */
#ifndef CODEC_WIDE_H
#define CODEC_WIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIDE_WORDS  4
#define WIDE_DIGITS 78 /* of 2^256 */

struct wide {
    uint64_t word[WIDE_WORDS]; /* the lowest first */
};

/* w * 10 + digit. False: it does not fit. */
static inline bool wide_push(struct wide *w, unsigned digit)
{
    unsigned __int128 carry = digit;

    for (int i = 0; i < WIDE_WORDS; i++) {
        carry += (unsigned __int128)w->word[i] * 10;
        w->word[i] = (uint64_t)carry;
        carry >>= 64;
    }
    return carry == 0;
}

/* Two's complement. */
static inline void wide_negate(struct wide *w)
{
    bool carry = true;

    for (int i = 0; i < WIDE_WORDS; i++) {
        w->word[i] = ~w->word[i] + carry;
        carry = carry && w->word[i] == 0;
    }
}

/* w / 10, the remainder returned. */
static inline unsigned wide_pop(struct wide *w)
{
    unsigned __int128 rest = 0;

    for (int i = WIDE_WORDS - 1; i >= 0; i--) {
        rest = rest << 64 | w->word[i];
        w->word[i] = (uint64_t)(rest / 10);
        rest %= 10;
    }
    return (unsigned)rest;
}

static inline bool wide_is_zero(const struct wide *w)
{
    return !(w->word[0] | w->word[1] | w->word[2] | w->word[3]);
}

/*
 * The magnitude within bits bits: |w| < 2^(bits - 1), or equal to it where negative; of an unsigned
 * type |w| < 2^bits.
 */
static inline bool wide_fits(const struct wide *w, unsigned bits, bool is_signed, bool negative)
{
    struct wide v = *w;
    unsigned top = bits - is_signed;

    if (is_signed && negative) { /* one more */
        for (int i = 0; i < WIDE_WORDS; i++)
            if (v.word[i]--)
                break;
        if (wide_is_zero(w))
            return true;
    }
    for (unsigned i = top / 64; i < WIDE_WORDS; i++)
        if (i == top / 64 && top % 64 ? v.word[i] >> top % 64 : v.word[i])
            return false;
    return true;
}

#endif
