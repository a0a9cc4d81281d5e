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

/*
 * Which of the earlier marks to forget, where there is one too many. Each shall be about twice as far
 * back as the one after it, so that of a log whose end was cut little more is read again than was
 * lost. So it is the one whose neighbours are nearest to each other, for their age; and the oldest
 * where all are far enough apart.
 */
static unsigned earlier_least(const struct spool_trace *earlier, unsigned count, int64_t offset)
{
    unsigned least = count - 1;
    double least_part =
        1 - 1 / (2.0 * 2.0); /* of the age: where each is twice as old as the last */

    for (unsigned i = 1; i + 1 < count; i++) {
        double after = (double)(offset - earlier[i + 1].offset);
        double part = (double)(earlier[i - 1].offset - earlier[i + 1].offset) / after;
        if (part < least_part) {
            least_part = part;
            least = i;
        }
    }
    return least;
}

/* The mark so far becomes the latest of the earlier ones. */
static void earlier_push(struct high *h, int64_t offset)
{
    struct spool_trace all[SPOOL_TRACES];
    unsigned count = 0, skip;

    all[count++] = (struct spool_trace){h->offset, h->mark};
    for (unsigned i = 0; i < h->earlier_count; i++)
        all[count++] = h->earlier[i];
    skip = count < SPOOL_TRACES ? count : earlier_least(all, count, offset);
    h->earlier_count = 0;
    for (unsigned i = 0; i < count; i++)
        if (i != skip)
            h->earlier[h->earlier_count++] = all[i];
}

static struct high *high_slot(struct high_table *t, uint32_t origin, int64_t offset)
{
    struct high *h = high_find(t, origin);

    if (h || high_reserve(t, 1) != SPOOL_OK)
        return h;
    place(t, (struct high){.origin = origin, .offset = offset});
    return high_find(t, origin);
}

struct high *high_add(struct high_table *t, uint32_t origin, int64_t offset,
                      const struct spool_mark *mark)
{
    struct high *h = high_slot(t, origin, offset);
    bool known = mark && mark->known;

    if (!h || h->offset > offset)
        return h;
    if (h->offset < offset) {
        if (known && h->mark.known)
            earlier_push(h, offset);
        else
            h->earlier_count = 0;
        h->offset = offset;
        h->mark.known = false;
    }
    if (known)
        h->mark = *mark;
    return h;
}

struct high *high_put(struct high_table *t, const struct high *from)
{
    struct high *h = high_slot(t, from->origin, from->offset);
    bool named;

    if (!h || h->offset > from->offset || (h->offset == from->offset && !from->mark.known))
        return h;
    named = h->named;
    *h = *from;
    h->named = named;
    return h;
}

void high_free(struct high_table *t)
{
    free(t->slots);
    *t = (struct high_table){0};
}
