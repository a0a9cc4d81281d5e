/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sixteen bytes at a time, for SSE2, NEON and any other machine. Every function here reads exactly
 * 16 bytes: the caller has made sure that they belong to the record.
 */
#ifndef CODEC_JSON_SIMD_H
#define CODEC_JSON_SIMD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__SSE2__) && !defined(SPOOLD_PORTABLE)
#include <emmintrin.h>
#define JSON_SIMD_SSE2 1
#elif defined(__ARM_NEON) && defined(__aarch64__) && !defined(SPOOLD_PORTABLE)
#include <arm_neon.h>
#define JSON_SIMD_NEON 1
#endif

#define JSON_CHUNK 16

/* Eight bytes as a little-endian number, whatever the machine's order. */
static inline uint64_t load_le64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

/* Marks (0x80) the bytes of v that are zero; exact up to the first marked one. */
static inline uint64_t swar_zero(uint64_t v)
{
    return (v - 0x0101010101010101ull) & ~v & 0x8080808080808080ull;
}

/* Marks the bytes below 0x20; exact up to the first marked one. */
static inline uint64_t swar_control(uint64_t v)
{
    return (v - 0x2020202020202020ull) & ~v & 0x8080808080808080ull;
}

static inline uint64_t swar_string(uint64_t v, bool control)
{
    uint64_t hit = swar_zero(v ^ 0x2222222222222222ull) | swar_zero(v ^ 0x5c5c5c5c5c5c5c5cull);
    return control ? hit | swar_control(v) : hit;
}

/*
 * Index of the first byte of the 16 that is a quote, a backslash or, if asked for, a control
 * character; 16 if there is none. to != NULL: the 16 bytes are copied there as well.
 */
static inline __attribute__((always_inline)) unsigned json_chunk(const uint8_t *p, uint8_t *to,
                                                                 bool control)
{
#if defined(JSON_SIMD_SSE2)
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    __m128i hit =
        _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')), _mm_cmpeq_epi8(v, _mm_set1_epi8('\\')));
    if (to)
        _mm_storeu_si128((__m128i *)to, v);
    if (control)
        hit = _mm_or_si128(hit, _mm_cmpeq_epi8(_mm_min_epu8(v, _mm_set1_epi8(0x1f)), v));
    return (unsigned)__builtin_ctz((unsigned)_mm_movemask_epi8(hit) | 0x10000u);
#elif defined(JSON_SIMD_NEON)
    uint8x16_t v = vld1q_u8(p);
    uint8x16_t hit = vorrq_u8(vceqq_u8(v, vdupq_n_u8('"')), vceqq_u8(v, vdupq_n_u8('\\')));
    uint64_t mask;
    if (to)
        vst1q_u8(to, v);
    if (control)
        hit = vorrq_u8(hit, vcltq_u8(v, vdupq_n_u8(0x20)));
    mask = vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(hit), 4)), 0);
    return mask ? (unsigned)__builtin_ctzll(mask) >> 2 : JSON_CHUNK;
#else
    uint64_t a = load_le64(p), b = load_le64(p + 8), hit;
    if (to)
        memmove(to, p, JSON_CHUNK);
    hit = swar_string(a, control);
    if (hit)
        return (unsigned)__builtin_ctzll(hit) >> 3;
    hit = swar_string(b, control);
    return hit ? 8 + ((unsigned)__builtin_ctzll(hit) >> 3) : JSON_CHUNK;
#endif
}

/* Whether the 16 bytes at p are those of text, where the byte of counts is 0xff and not 0. */
static inline __attribute__((always_inline)) bool json_same16(const uint8_t *p, const uint8_t *text,
                                                              const uint8_t *counts)
{
#if defined(JSON_SIMD_SSE2)
    __m128i diff =
        _mm_xor_si128(_mm_loadu_si128((const __m128i *)p), _mm_loadu_si128((const __m128i *)text));
    diff = _mm_and_si128(diff, _mm_loadu_si128((const __m128i *)counts));
    return _mm_movemask_epi8(_mm_cmpeq_epi8(diff, _mm_setzero_si128())) == 0xffff;
#elif defined(JSON_SIMD_NEON)
    return vmaxvq_u8(vandq_u8(veorq_u8(vld1q_u8(p), vld1q_u8(text)), vld1q_u8(counts))) == 0;
#else
    uint64_t a = (load_le64(p) ^ load_le64(text)) & load_le64(counts);
    uint64_t b = (load_le64(p + 8) ^ load_le64(text + 8)) & load_le64(counts + 8);
    return (a | b) == 0;
#endif
}

#endif
