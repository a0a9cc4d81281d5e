/* SPDX-License-Identifier: Apache-2.0 */
/* Exponential backoff with full jitter: 100 ms doubling to 10 s (AWS Architecture Blog, 2015). */
#ifndef SINK_BACKOFF_H
#define SINK_BACKOFF_H

#include <stdint.h>

struct backoff {
    uint32_t base_ms; /* first ceiling */
    uint32_t max_ms;
    uint32_t attempt; /* failures so far */
    uint64_t random;  /* state of the generator */
};

void backoff_init(struct backoff *b, uint32_t base_ms, uint32_t max_ms, uint64_t seed);
void backoff_reset(struct backoff *b);

/* The next delay: uniform in [ceiling/10, ceiling], ceiling = min(max, base * 2^attempt). */
uint32_t backoff_next_ms(struct backoff *b);

#endif
