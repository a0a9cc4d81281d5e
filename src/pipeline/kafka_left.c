/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of partitions that others have. They were read here, went unsent with their partition, and stay
 * until it is back, or until the group's committed offset has passed them: then somebody else inserted
 * them. That is asked now and then, since the partition may never come back, and what is kept for it
 * counts against the spool's bound like all else.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "pipeline/pipeline_int.h"

#define LOOK_EVERY_MS 5000

/* The latest epoch of its partition: a commit is about its offsets. What another log superseded is owned. */
static bool origin_is_left(const struct origin *o)
{
    return o->kafka && o->name && o->first && !o->owned && !o->partition &&
           o->discard_to != INT64_MAX;
}

static size_t left_count(const struct pipeline *p)
{
    size_t n = 0;

    for (size_t i = 0; i < p->stream_count; i++)
        for (const struct origin *o = p->streams[i].origins; o; o = o->next)
            n += origin_is_left(o);
    return n;
}

bool kafka_left_any(const struct pipeline *p)
{
    return left_count(p) > 0;
}

void kafka_left_look(struct pipeline *p)
{
    uint64_t now = clock_monotonic_ms();
    struct origin_place *names;
    struct kafka_place *places;
    size_t count, n = 0;

    if (!p->kafka || p->closing || p->fatal || now < p->left_look_ms)
        return;
    p->left_look_ms = now + LOOK_EVERY_MS;
    count = left_count(p);
    if (!count)
        return;
    names = calloc(count, sizeof(*names));
    places = calloc(count, sizeof(*places));
    for (size_t i = 0; names && places && i < p->stream_count; i++)
        for (const struct origin *o = p->streams[i].origins; o; o = o->next) {
            if (!origin_is_left(o))
                continue;
            origin_place(o, &names[n]);
            places[n] = (struct kafka_place){names[n].topic, names[n].place.partition};
            n++;
        }
    kafka_source_ask_committed(p->kafka, places, n);
    free(places);
    free(names);
}

static void origin_passed(struct origin *o, int64_t offset)
{
    if (o->first->ref.last_offset >= offset || o->discard_to >= offset - 1)
        return;
    origin_pass(o, offset - 1);
    stream_advance(o->stream);
}

void kafka_left_told(struct pipeline *p, const char *topic, int32_t number, int64_t offset,
                     const char *metadata)
{
    char name[400];
    uint32_t epoch;

    if (p->closing || p->fatal || kafka_commit_is_ours(p, metadata, &epoch))
        return;
    snprintf(name, sizeof(name), "kafka/%.300s/%d", topic, number);
    for (size_t i = 0; i < p->stream_count; i++)
        for (struct origin *o = p->streams[i].origins; o; o = o->next)
            if (origin_is_left(o) && strcmp(o->name, name) == 0)
                origin_passed(o, offset);
}
