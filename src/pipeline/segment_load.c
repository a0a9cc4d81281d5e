/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading a segment's index: its blocks, what of them is acknowledged, its origins and schema, read
 * in one job when delivery reaches it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/segment_load_int.h"

#define LOAD_RETRY_MS 5000

/* Whether a later epoch is of another log. The one behind a discard is of the same. */
static int load_superseded(struct load_job *l, struct load_origin *lo)
{
    uint32_t id, latest = 0;
    int status = spool_origin(l->job.pipeline->spool, lo->name, 0, &id, &latest, &l->error);

    lo->superseded = latest > lo->epoch + (lo->discard_to == INT64_MAX ? 1 : 0);
    return status;
}

/* What is noted of an origin. A note that can't be read is not one that is not there: rows that are
   discarded would be sent. */
static int load_noted(struct load_job *l, struct load_origin *lo)
{
    int status = origin_discard_noted(l->stream, lo->id, &lo->discard_to, &l->error);

    if (status == SPOOL_OK)
        status =
            spool_origin_name(l->job.pipeline->spool, lo->id, &lo->name, &lo->epoch, &l->error);
    if (status == SPOOL_OK)
        status = origin_suspect_noted(l->stream, lo->id, &lo->suspect, &l->error);
    if (status == SPOOL_OK)
        status = origin_told_noted(l->stream, lo->id, lo->epoch, &lo->told_from, &l->error);
    return status == SPOOL_OK ? load_superseded(l, lo) : status;
}

/* The origin's name, asked once. */
static int load_origin(struct load_job *l, uint32_t id)
{
    struct load_origin *grown;
    size_t k = 0;

    while (k < l->origin_count && l->origins[k].id != id)
        k++;
    if (k < l->origin_count) {
        struct load_origin hit = l->origins[k]; /* move to front: origins come in turns */
        memmove(l->origins + 1, l->origins, k * sizeof(*l->origins));
        l->origins[0] = hit;
        return SPOOL_OK;
    }
    grown = realloc(l->origins, (l->origin_count + 1) * sizeof(*grown));
    if (!grown)
        return SPOOL_E_NOMEM;
    l->origins = grown;
    grown[l->origin_count] = (struct load_origin){.id = id};
    return load_noted(l, &grown[l->origin_count++]);
}

/* Of every origin in the segment, or lost with it. */
static int load_origins(struct load_job *l)
{
    int status = SPOOL_OK;

    for (size_t i = 0; i < l->ref_count && status == SPOOL_OK; i++)
        status = load_origin(l, l->refs[i].origin);
    for (size_t i = 0; i < l->salvage.lost_count && status == SPOOL_OK; i++)
        status = load_origin(l, l->salvage.lost[i].origin);
    return status;
}

/* What is to be had of a damaged segment; why is in error. */
static int load_salvage(struct load_job *l)
{
    struct spool_salvage *v = &l->salvage;
    struct spool_error error = {0};
    int status = spool_segment_salvage(l->stream->spool, l->segment->number, v, &error);

    if (status != SPOOL_OK) {
        l->error = error;
        return status;
    }
    l->damaged = true;
    free(l->refs);
    l->refs = v->refs;
    l->ref_count = v->count;
    l->schema = v->schema;
    l->schema_size = v->schema_size;
    l->destination = v->destination;
    v->refs = NULL;
    v->schema = NULL;
    v->destination = NULL;
    return SPOOL_OK;
}

/* --- of a damaged segment: what is known ---------------------------------------------------- */

static uint64_t block_hash(uint64_t sequence, uint64_t rows)
{
    const uint64_t both[2] = {sequence, rows};

    return XXH3_64bits(both, sizeof(both));
}

/*
 * Of the blocks that were found, and of those that are gone and of which rows are acknowledged; both
 * ascending. A block that is found, acknowledged and gone since counts the same all the time; one that is gone
 * with rows that are not acknowledged does not.
 */
static uint64_t known_blocks(const struct spool_block_ref *refs, size_t ref_count,
                             const struct spool_range *acked, size_t acked_count)
{
    uint64_t hash = 0;
    size_t r = 0;

    for (size_t i = 0, end; i < acked_count; i = end) {
        uint64_t sequence = acked[i].sequence, rows = 0;
        for (end = i; end < acked_count && acked[end].sequence == sequence; end++)
            rows += acked[end].rows;
        for (; r < ref_count && refs[r].sequence < sequence; r++)
            hash += block_hash(refs[r].sequence, refs[r].rows);
        if (r == ref_count || refs[r].sequence != sequence)
            hash += block_hash(sequence, rows);
    }
    for (; r < ref_count; r++)
        hash += block_hash(refs[r].sequence, refs[r].rows);
    return hash;
}

/* Of the segment, and of those behind it in its row, which it answers for. */
static int load_known(struct load_job *l)
{
    const struct spool_salvage *v = &l->salvage;
    int status = SPOOL_OK;

    l->known = calloc(v->row_segment_count + 1, sizeof(*l->known));
    if (!l->known)
        return SPOOL_E_NOMEM;
    for (size_t i = 0, r = 0; i < v->row_segment_count && status == SPOOL_OK; i++) {
        struct load_known *known = &l->known[l->known_count];
        struct spool_range *acked = NULL;
        size_t first, acked_count = 0;

        while (r < v->row_ref_count && v->row_refs[r].segment < v->row_segments[i])
            r++;
        for (first = r; r < v->row_ref_count && v->row_refs[r].segment == v->row_segments[i];)
            r++;
        if (v->row_segments[i] < l->segment->number)
            continue;
        status = spool_acked(l->job.pipeline->spool, l->stream->id, v->row_segments[i], &acked,
                             &acked_count, &l->error);
        known->segment = v->row_segments[i];
        known->blocks = known_blocks(v->row_refs + first, r - first, acked, acked_count);
        l->known_count++;
        free(acked);
    }
    return status;
}

/* Whether it was damaged before: also where the disk gives all of it again. */
static int load_salvage_note(struct load_job *l)
{
    char key[64], text[48] = "";
    unsigned long long blocks = 0;
    int kept = 0, numbers;
    void *value = NULL;
    size_t size = 0;
    int status;

    salvage_note_key(l->stream, l->segment->number, key, sizeof(key));
    status = note_read(l->job.pipeline->spool, key, &value, &size, &l->error);
    l->answered = value != NULL;
    if (value)
        memcpy(text, value, size < sizeof(text) ? size : sizeof(text) - 1);
    l->noted = text[0] == SALVAGE_DONE;
    numbers = value ? sscanf(text + 1, "%llu %d", &blocks, &kept) : 0;
    l->changed = l->damaged && numbers >= 1 && blocks != l->known[0].blocks;
    l->kept = l->damaged && kept;
    free(value);
    return status;
}

static void load_work(struct job *job)
{
    struct load_job *l = (struct load_job *)job;
    uint64_t number = l->segment->number;

    l->status = spool_segment_blocks(l->stream->spool, number, &l->refs, &l->ref_count, &l->error);
    if (l->status == SPOOL_OK)
        l->status = spool_segment_spec_get(l->stream->spool, number, &l->schema, &l->schema_size,
                                           &l->destination, &l->error);
    if (l->status == SPOOL_E_CORRUPT)
        l->status = load_salvage(l);
    if (l->status == SPOOL_OK && l->damaged)
        l->status = load_known(l);
    if (l->status == SPOOL_OK)
        l->status = load_salvage_note(l);
    if (l->status == SPOOL_OK)
        l->status = spool_acked(job->pipeline->spool, l->stream->id, number, &l->acked,
                                &l->acked_count, &l->error);
    if (l->status == SPOOL_OK)
        l->status = load_origins(l);
}

static void load_free(struct load_job *l)
{
    for (size_t i = 0; i < l->origin_count; i++)
        free(l->origins[i].name);
    free(l->origins);
    free(l->refs);
    free(l->acked);
    free(l->known);
    free(l->schema);
    free(l->destination);
    spool_salvage_free(&l->salvage);
    free(l);
}

/* The schema the segment was written under: the stream's own where it is the same. */
static int segment_schema(struct stream *s, struct segment *g, struct load_job *l)
{
    struct schema *schema = NULL;
    struct target *t;
    int status;

    if (g->schema || !l->schema)
        return SPOOL_OK;
    if (s->schema && s->schema->serialized.len == l->schema_size &&
        memcmp(s->schema->serialized.data, l->schema, l->schema_size) == 0 &&
        strcmp(s->schema->target->destination, l->destination) == 0) {
        g->schema = stream_schema_ref(s->schema);
        return SPOOL_OK;
    }
    status = schema_deserialize(l->schema, l->schema_size, &schema, &l->error);
    if (status != SPOOL_OK)
        return status;
    t = target_by_destination(s, l->destination);
    if (!t) {
        schema_free(schema);
        return spool_error_set(&l->error, SPOOL_E_CORRUPT, "destination \"%s\" is not readable",
                               l->destination);
    }
    return stream_schema_create(schema, t, &g->schema);
}

/* Ranges are ascending and merged: a block is acknowledged when one covers all its rows. */
static bool acked_covers(const struct load_job *l, size_t *at, const struct spool_block_ref *ref,
                         uint32_t *acked_rows)
{
    uint64_t rows = 0;
    bool seen = false;

    while (*at < l->acked_count && l->acked[*at].sequence < ref->sequence)
        (*at)++;
    for (size_t i = *at; i < l->acked_count && l->acked[i].sequence == ref->sequence; i++) {
        rows += l->acked[i].rows;
        seen = true;
    }
    *acked_rows = (uint32_t)rows;
    return seen && rows >= ref->rows;
}

/* Rows of a topic that the stream no longer reads: the partition is never ours, and they would wait
   unseen. */
static void load_unread(struct stream *s, const struct load_job *l)
{
    for (size_t i = 0; i < l->origin_count; i++) {
        struct origin *o = origin_find(s, l->origins[i].id);
        struct origin_place place;

        if (!o || !o->first || !o->kafka || o->unread || o->superseded ||
            o->discard_to == INT64_MAX)
            continue;
        origin_place(o, &place);
        if (!place.place.topic || stream_topic(s, place.place.topic))
            continue;
        o->unread = true;
        log_event(LOG_WARN, "origin.unread", "stream", s->options->name, "origin", o->name,
                  "reason",
                  "its topic is none of the stream's any more: its rows wait in the spool, and "
                  "the group's offset before them",
                  "action", "give the stream the topic again until they are delivered", NULL);
    }
}

/* A hole of a damaged segment stands for it. */
static bool block_in_hole(const struct block *b, void *arg)
{
    (void)arg;
    for (const struct hole *h = b->origin->holes; h; h = h->next)
        if (!h->sequence && b->ref.sequence <= h->after && b->ref.first_offset >= h->noted_first &&
            b->ref.last_offset <= h->last)
            return true;
    return false;
}

/* A segment that was damaged, and is whole, or has blocks again that it lacked: these are read again, or were,
   and are in the table. */
static void load_found_again(struct stream *s, struct segment *g)
{
    for (struct block *b = g->first; b; b = b->next_in_segment)
        b->suspect = true;
    (void)segment_discard(s, g, block_in_hole, NULL);
}

static void load_apply(struct stream *s, struct segment *g, struct load_job *l)
{
    uint64_t unacked_rows = 0;
    size_t at = 0;

    for (size_t i = 0; i < l->origin_count; i++) {
        struct origin *o = origin_get(s, l->origins[i].id);
        if (!o) {
            pipeline_fatal(s->p, "out of memory while reading a segment's index");
            return;
        }
        if (l->origins[i].discard_to > o->discard_to)
            o->discard_to = l->origins[i].discard_to;
        o->superseded |= l->origins[i].superseded;
        o->suspect |= l->origins[i].suspect;
        if (!o->name) {
            o->name = l->origins[i].name;
            l->origins[i].name = NULL;
            o->epoch = l->origins[i].epoch;
            o->told_from = l->origins[i].told_from;
            o->kafka = strncmp(o->name, "kafka/", 6) == 0;
        }
        kafka_in_adopt(o);
    }
    for (size_t i = 0; i < l->ref_count; i++) {
        struct block *b;
        uint32_t acked_rows = 0;
        if (acked_covers(l, &at, &l->refs[i], &acked_rows)) {
            struct origin *o = origin_get(s, l->refs[i].origin);
            g->acked_blocks++;
            if (o && !o->first && o->front <= l->refs[i].last_offset)
                o->front = l->refs[i].last_offset + 1;
            continue;
        }
        b = block_add(s, g, &l->refs[i], 0);
        if (!b) {
            pipeline_fatal(s->p, "out of memory while reading a segment's index");
            return;
        }
        b->acked_rows = acked_rows;
        unacked_rows += b->ref.rows - acked_rows;
    }
    g->blocks_total = l->ref_count;
    g->loaded = true;
    g->damaged = l->damaged;
    g->kept = !g->missing && (g->kept || l->kept);
    if (l->damaged)
        g->unacked_rows = unacked_rows;
    if (batches_segment_loaded(s, g) || l->damaged)
        segment_salvaged(s, g, l);
    g->salvaged = l->answered || l->damaged;
    if (l->answered && (l->changed || !l->damaged))
        load_found_again(s, g);
    (void)segment_discard(s, g, block_discarded, NULL);
    segment_skip_delivered(s, g);
    segment_check_acked(g);
    load_unread(s, l);
    if (segments_all_loaded(s))
        for (struct origin *o = s->origins; o; o = o->next) {
            origin_refresh_front(o);
            holes_check(o);
            origin_commit(o);
        }
}

static void load_done(struct job *job)
{
    struct load_job *l = (struct load_job *)job;
    struct stream *s = l->stream;
    struct segment *g = l->segment;

    s->loading = false;
    g->loading = false;
    if (l->status == SPOOL_OK)
        l->status = segment_schema(s, g, l);
    if (l->status == SPOOL_OK) {
        load_apply(s, g, l);
    } else if (l->status == SPOOL_E_NOMEM) {
        pipeline_fatal(s->p, "out of memory while reading a segment's index");
    } else if (l->status == SPOOL_E_IO) {
        log_event(LOG_ERROR, "segment.not_read", "stream", s->options->name, "segment",
                  log_u64(g->number), "error", l->error.text, "action", "trying again", NULL);
        s->load_retry_at_ms = clock_monotonic_ms() + LOAD_RETRY_MS;
    } else { /* it is whole, and not to be understood */
        stream_hold(s, HOLD_SEGMENT, "segment %llu can't be read: %s",
                    (unsigned long long)g->number, l->error.text);
        s->load_retry_at_ms = UINT64_MAX;
    }
    load_free(l);
    stream_advance(s);
}

void segment_load(struct stream *s, struct segment *g)
{
    struct load_job *l = calloc(1, sizeof(*l));
    struct lane *lanes[2] = {&s->lane, &s->p->meta_lane};

    if (l) {
        l->stream = s;
        l->segment = g;
        l->job.work = load_work;
        l->job.done = load_done;
        g->loading = true;
        s->loading = true;
        if (job_start(s->p, &l->job, lanes, 2) == SPOOL_OK)
            return;
    }
    pipeline_fatal(s->p, "out of memory while reading a segment's index");
}
