/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/arena.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES ((size_t)16 * 1024)

struct arena_chunk {
    struct arena_chunk *next;
    size_t used;
    size_t size;
    alignas(max_align_t) unsigned char data[];
};

void *arena_alloc(struct arena *arena, size_t size)
{
    struct arena_chunk *chunk = arena->chunks;
    size_t align = alignof(max_align_t);

    if (size > (size_t)-1 / 2)
        return NULL;
    size = (size + align - 1) / align * align;
    if (!chunk || chunk->size - chunk->used < size) {
        size_t want = size > CHUNK_BYTES ? size : CHUNK_BYTES;
        chunk = calloc(1, sizeof(*chunk) + want);
        if (!chunk)
            return NULL;
        chunk->size = want;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    chunk->used += size;
    return chunk->data + chunk->used - size;
}

char *arena_copy(struct arena *arena, const void *data, size_t n)
{
    char *copy = arena_alloc(arena, n + 1);

    if (copy && n)
        memcpy(copy, data, n);
    return copy;
}

void arena_free(struct arena *arena)
{
    while (arena->chunks) {
        struct arena_chunk *next = arena->chunks->next;
        free(arena->chunks);
        arena->chunks = next;
    }
}
