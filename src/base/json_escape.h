/* SPDX-License-Identifier: Apache-2.0 */
/* What the escape \uXXXX of a JSON text (RFC 8259, section 7) is made of. */
#ifndef BASE_JSON_ESCAPE_H
#define BASE_JSON_ESCAPE_H

#include <stddef.h>
#include <stdint.h>

/* A hex digit's value, -1 where c is none. */
static inline int hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The four hex digits at text, of which left bytes are left; -1 where they are none. */
static inline int32_t json_hex4(const void *text, size_t left)
{
    const uint8_t *p = text;
    int32_t v = 0;

    if (left < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(p[i]);
        if (digit < 0)
            return -1;
        v = v << 4 | digit;
    }
    return v;
}

/* The character that a high (U+D800 to U+DBFF) and a low surrogate (U+DC00 to U+DFFF) make. */
static inline uint32_t json_surrogates(int32_t high, int32_t low)
{
    return 0x10000u + ((uint32_t)(high - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
}

/* Writes c (up to U+10FFFF) as UTF-8 and returns how many bytes that are, 4 at most. */
static inline size_t utf8_put(void *to, uint32_t c)
{
    uint8_t *p = to;

    if (c < 0x80) {
        p[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        p[0] = (uint8_t)(0xc0 | c >> 6);
        p[1] = (uint8_t)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        p[0] = (uint8_t)(0xe0 | c >> 12);
        p[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        p[2] = (uint8_t)(0x80 | (c & 0x3f));
        return 3;
    }
    p[0] = (uint8_t)(0xf0 | c >> 18);
    p[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
    p[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
    p[3] = (uint8_t)(0x80 | (c & 0x3f));
    return 4;
}

#endif
