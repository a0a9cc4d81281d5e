/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CityHash128 as of version 1.0.2, which ClickHouse froze for its frames; today's CityHash gives
 * other numbers. Every stored byte passes through here, so the inner loop takes 64 bytes a turn
 * with unaligned loads and keeps its seven words in registers.
 */
#include <endian.h>
#include <string.h>

#include "codec/frame.h"

#define K0   0xc3a5c85c97cb3127u
#define K1   0xb492b66fbe98f273u
#define K2   0x9ae16a3b2f90404fu
#define K3   0xc949d7c7509e6557u
#define KMUL 0x9ddfea08eb382d69u

struct pair {
    uint64_t a, b;
};

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof(v));
    return le64toh(v);
}

static inline uint64_t load32(const uint8_t *at)
{
    uint32_t v;
    memcpy(&v, at, sizeof(v));
    return le32toh(v);
}

/* shift is 1 to 63 */
static inline uint64_t rotate(uint64_t v, unsigned shift)
{
    return (v >> shift) | (v << (64 - shift));
}

static inline uint64_t shift_mix(uint64_t v)
{
    return v ^ (v >> 47);
}

/* Two words to one. */
static inline uint64_t fold(uint64_t u, uint64_t v)
{
    uint64_t a = shift_mix((u ^ v) * KMUL);
    return shift_mix((v ^ a) * KMUL) * KMUL;
}

/* 32 bytes and two words of state to two words. */
static inline struct pair mix32(const uint8_t *at, uint64_t a, uint64_t b)
{
    struct pair out;
    uint64_t first;

    a += load64(at);
    b = rotate(b + a + load64(at + 24), 21);
    first = a;
    a += load64(at + 8);
    a += load64(at + 16);
    b += rotate(a, 44);
    out.a = a + load64(at + 24);
    out.b = b + first;
    return out;
}

static uint64_t hash_up_to_16(const uint8_t *data, size_t size)
{
    if (size > 8) {
        uint64_t last = load64(data + size - 8);
        return fold(load64(data), rotate(last + size, (unsigned)size)) ^ last;
    }
    if (size >= 4)
        return fold(size + (load32(data) << 3), load32(data + size - 4));
    if (size > 0) {
        uint64_t y = data[0] + ((uint64_t)data[size >> 1] << 8);
        uint64_t z = size + ((uint64_t)data[size - 1] << 2);
        return shift_mix((y * K2) ^ (z * K3)) * K2;
    }
    return K2;
}

static void hash_short(const uint8_t *data, size_t size, uint64_t a, uint64_t b, uint64_t hash[2])
{
    uint64_t c, d;

    if (size <= 16) {
        a = shift_mix(a * K1) * K1;
        c = b * K1 + hash_up_to_16(data, size);
        d = shift_mix(a + (size >= 8 ? load64(data) : c));
    } else {
        c = fold(load64(data + size - 8) + K1, a);
        d = fold(b + size, c + load64(data + size - 16));
        a += d;
        for (size_t at = 0; at + 16 < size; at += 16) {
            a = (a ^ (shift_mix(load64(data + at) * K1) * K1)) * K1;
            b ^= a;
            c = (c ^ (shift_mix(load64(data + at + 8) * K1) * K1)) * K1;
            d ^= c;
        }
    }
    a = fold(a, c);
    b = fold(d, b);
    hash[0] = a ^ b;
    hash[1] = fold(b, a);
}

/* size is at least 128 */
static void hash_long(const uint8_t *data, size_t size, uint64_t x, uint64_t y, uint64_t hash[2])
{
    uint64_t z = size * K1;
    struct pair v, w;

    v.a = rotate(y ^ K1, 49) * K1 + load64(data);
    v.b = rotate(v.a, 42) * K1 + load64(data + 8);
    w.a = rotate(y + z, 35) * K1 + x;
    w.b = rotate(x + load64(data + 88), 53) * K1;
    do {
        for (unsigned half = 0; half < 2; half++) {
            uint64_t swap;
            x = rotate(x + y + v.a + load64(data + 16), 37) * K1;
            y = rotate(y + v.b + load64(data + 48), 42) * K1;
            x ^= w.b;
            y ^= v.a;
            z = rotate(z ^ w.a, 33);
            v = mix32(data, v.b * K1, x + w.a);
            w = mix32(data + 32, z + w.b, y);
            swap = z;
            z = x;
            x = swap;
            data += 64;
        }
        size -= 128;
    } while (size >= 128);
    y += rotate(w.a, 37) * K0 + z;
    x += rotate(v.a + z, 49) * K0;
    /* The rest in steps of 32 from its end; the last step may begin before the rest does. */
    for (size_t done = 32; done < size + 32; done += 32) {
        const uint8_t *at = data + size - done;
        y = rotate(y - x, 42) * K0 + v.b;
        w.a += load64(at + 16);
        x = rotate(x, 49) * K0 + w.a;
        w.a += v.a;
        v = mix32(at, v.a, v.b);
    }
    x = fold(x, v.a);
    y = fold(y, w.a);
    hash[0] = fold(x + v.b, w.b) + y;
    hash[1] = fold(x + w.b, y + v.b);
}

void cityhash128(const void *data, size_t size, uint64_t hash[2])
{
    const uint8_t *bytes = data;
    uint64_t a = K0, b = K1;

    if (size >= 16) {
        a = load64(bytes) ^ K3;
        b = load64(bytes + 8);
        bytes += 16;
        size -= 16;
    } else if (size >= 8) {
        a = load64(bytes) ^ (size * K0);
        b = load64(bytes + size - 8) ^ K1;
        size = 0;
    }
    if (size >= 128)
        hash_long(bytes, size, a, b, hash);
    else
        hash_short(bytes, size, a, b, hash);
}
