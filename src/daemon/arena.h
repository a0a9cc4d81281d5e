/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that is given back all at once: what a configuration is made of. */
#ifndef DAEMON_ARENA_H
#define DAEMON_ARENA_H

#include <stddef.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *chunks;
};

/* size bytes, zeroed, aligned for any type; NULL: out of memory. */
void *arena_alloc(struct arena *arena, size_t size);

/* A NUL-terminated copy of n bytes. */
char *arena_copy(struct arena *arena, const void *data, size_t n);

void arena_free(struct arena *arena);

#endif
