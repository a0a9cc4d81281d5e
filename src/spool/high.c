/* SPDX-License-Identifier: Apache-2.0 */
/* The highest offset of each origin of a stream: a hash table with linear probing. */
#include <stdlib.h>

#include "spool/spool_int.h"

static size_t slot_of(uint32_t origin, size_t cap)
{
    return (size_t)(origin * 2654435761u) & (cap - 1);
}

struct high *high_find(const struct high_table *t, uint32_t origin)
{
    if (!t->cap || !origin)
        return NULL;
    for (size_t i = slot_of(origin, t->cap);; i = (i + 1) & (t->cap - 1)) {
        if (t->slots[i].origin == origin)
            return &t->slots[i];
        if (!t->slots[i].origin)
            return NULL;
    }
}

static void place(struct high_table *t, struct high h)
{
    size_t i = slot_of(h.origin, t->cap);
    while (t->slots[i].origin)
        i = (i + 1) & (t->cap - 1);
    t->slots[i] = h;
    t->count++;
}

int high_reserve(struct high_table *t, size_t extra)
{
    struct high_table wider = {NULL, t->cap ? t->cap : 16, 0};

    if (t->cap && (t->count + extra) * 2 <= t->cap)
        return SPOOL_OK;
    while ((t->count + extra) * 2 > wider.cap)
        wider.cap *= 2;
    wider.slots = calloc(wider.cap, sizeof(*wider.slots));
    if (!wider.slots)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < t->cap; i++)
        if (t->slots[i].origin)
            place(&wider, t->slots[i]);
    free(t->slots);
    *t = wider;
    return SPOOL_OK;
}

struct high *high_add(struct high_table *t, uint32_t origin, int64_t offset,
                      const struct spool_mark *mark)
{
    struct high *h = high_find(t, origin);

    if (!h) {
        if (high_reserve(t, 1) != SPOOL_OK)
            return NULL;
        place(t, (struct high){.origin = origin, .offset = offset});
        h = high_find(t, origin);
    }
    if (h->offset < offset) {
        h->offset = offset;
        h->mark.known = false;
    }
    if (mark && mark->known && h->offset == offset)
        h->mark = *mark;
    return h;
}

void high_free(struct high_table *t)
{
    free(t->slots);
    *t = (struct high_table){0};
}
