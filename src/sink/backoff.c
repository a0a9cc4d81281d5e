/* SPDX-License-Identifier: Apache-2.0 */
#include "sink/backoff.h"

#include <assert.h>

/* splitmix64 (Steele, Lea, Flood 2014): every seed is good, 0 included. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void backoff_init(struct backoff *b, uint32_t base_ms, uint32_t max_ms, uint64_t seed)
{
    assert(base_ms > 0 && base_ms <= max_ms);
    b->base_ms = base_ms;
    b->max_ms = max_ms;
    b->attempt = 0;
    b->random = seed;
}

void backoff_reset(struct backoff *b)
{
    b->attempt = 0;
}

uint32_t backoff_next_ms(struct backoff *b)
{
    uint64_t ceiling = b->base_ms, floor;

    for (uint32_t i = 0; i < b->attempt && ceiling < b->max_ms; i++)
        ceiling *= 2;
    if (ceiling > b->max_ms)
        ceiling = b->max_ms;
    if (b->attempt < UINT32_MAX)
        b->attempt++;
    floor = ceiling / 10;
    return (uint32_t)(floor + random_next(&b->random) % (ceiling - floor + 1));
}
