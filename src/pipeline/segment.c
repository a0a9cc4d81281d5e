/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is on disk and not yet acknowledged.
 *
 * Descriptors of blocks are kept in memory for the oldest segments only: a prefix of the list is
 * "loaded", the rest is known by its totals, so memory does not grow with the backlog. New blocks
 * get a descriptor at once only while everything before them is loaded. A block leaves memory when
 * it is acknowledged and everything before it in its segment and in its origin is too: the origin's
 * front, which is what Kafka is told, follows from that.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define REMOVE_RETRY_MS   5000
#define PAGE_BYTES        4096
#define NEW_SEGMENT_BYTES (16 * PAGE_BYTES) /* about what LMDB takes beside the blocks */

/* --- origins -------------------------------------------------------------------------------- */

static size_t origin_slot(const struct stream *s, uint32_t id)
{
    size_t mask = s->origin_table_size - 1;
    size_t i = (size_t)(id * 2654435761u) & mask; /* Knuth's multiplicative hash */

    while (s->origin_table[i] && s->origin_table[i]->id != id)
        i = (i + 1) & mask;
    return i;
}

struct origin *origin_find(struct stream *s, uint32_t id)
{
    return s->origin_table_size ? s->origin_table[origin_slot(s, id)] : NULL;
}

struct origin *origin_get(struct stream *s, uint32_t id)
{
    struct origin *o = origin_find(s, id);

    if (o)
        return o;
    if ((s->origin_count + 1) * 2 > s->origin_table_size) {
        size_t size = s->origin_table_size ? s->origin_table_size * 2 : 64;
        struct origin **table = calloc(size, sizeof(struct origin *));
        if (!table)
            return NULL;
        free(s->origin_table);
        s->origin_table = table;
        s->origin_table_size = size;
        for (o = s->origins; o; o = o->next)
            table[origin_slot(s, o->id)] = o;
    }
    o = calloc(1, sizeof(*o));
    if (!o)
        return NULL;
    o->stream = s;
    o->id = id;
    o->high = o->taken = o->committed = o->front = o->discard_to = -1;
    o->held_to = o->accept_to = -1;
    o->partition_number = -1;
    o->next = s->origins;
    s->origins = o;
    s->origin_count++;
    s->origin_table[origin_slot(s, id)] = o;
    return o;
}

/* Everything known is acknowledged: then all up to high is. */
void origin_refresh_front(struct origin *o)
{
    if (!o->first && o->high >= 0 && segments_all_loaded(o->stream) && o->front <= o->high)
        o->front = o->high + 1;
}

void origin_commit(struct origin *o)
{
    char metadata[96];

    if (!o->partition || (!o->owned && !o->revoking) || o->front < 0 || o->front <= o->committed)
        return;
    if (o->stream->holds[HOLD_DAMAGE])
        return; /* rows that can't be read are no part of the front: Kafka keeps them for us */
    snprintf(metadata, sizeof(metadata), "spoold %s %u", spool_uuid_text(o->stream->p->spool),
             o->epoch);
    o->committed = o->front;
    if (!o->commit_in_flight)
        o->stream->p->commits_in_flight++;
    o->commit_in_flight = true;
    kafka_commit(o->partition, o->front, metadata);
}

/* --- blocks --------------------------------------------------------------------------------- */

bool block_eligible(const struct block *b)
{
    return b->state == BLOCK_WAITING && (!b->origin->kafka || b->origin->owned);
}

void block_set_state(struct stream *s, struct block *b, enum block_state state)
{
    if (block_eligible(b)) {
        s->eligible_rows -= b->ref.rows;
        s->eligible_bytes -= b->ref.raw_bytes;
        s->eligible_blocks--;
    }
    b->state = state;
    if (block_eligible(b)) {
        s->eligible_rows += b->ref.rows;
        s->eligible_bytes += b->ref.raw_bytes;
        s->eligible_blocks++;
    }
}

void stream_recount(struct stream *s)
{
    s->eligible_rows = s->eligible_bytes = s->eligible_blocks = 0;
    for (struct segment *g = s->segments_first; g; g = g->next) {
        g->scan = g->first;
        for (struct block *b = g->first; b; b = b->next_in_segment)
            if (block_eligible(b)) {
                s->eligible_rows += b->ref.rows;
                s->eligible_bytes += b->ref.raw_bytes;
                s->eligible_blocks++;
            }
    }
}

static void block_drop(struct block *b)
{
    assert(b->lists > 0);
    if (--b->lists == 0)
        free(b);
}

/* A descriptor at the end of its segment and its origin. */
static struct block *block_add(struct stream *s, struct segment *g,
                               const struct spool_block_ref *ref, uint64_t arrived_ms)
{
    struct block *b = calloc(1, sizeof(*b));
    struct origin *o = origin_get(s, ref->origin);

    if (!b || !o) {
        free(b);
        return NULL;
    }
    b->ref = *ref;
    b->origin = o;
    b->arrived_ms = arrived_ms;
    b->state = BLOCK_ACKED; /* not counted yet */
    b->lists = 2;
    if (g->last)
        g->last->next_in_segment = b;
    else
        g->first = b;
    g->last = b;
    if (!g->scan)
        g->scan = b;
    if (o->last)
        o->last->next_in_origin = b;
    else
        o->first = b;
    o->last = b;
    block_set_state(s, b, BLOCK_WAITING);
    return b;
}

struct block *segment_next_eligible(struct segment *g, struct block *from)
{
    struct block *b = from;

    if (!b) {
        while (g->scan && g->scan->state != BLOCK_WAITING)
            g->scan = g->scan->next_in_segment;
        b = g->scan;
    }
    while (b && !block_eligible(b))
        b = b->next_in_segment;
    return b;
}

static void segment_check_acked(struct segment *g)
{
    if (g->loaded && !g->damaged && !g->acked_at_ms && g->acked_blocks == g->blocks_total)
        g->acked_at_ms = clock_monotonic_ms();
}

void block_acked(struct stream *s, struct segment *g, struct block *b)
{
    struct origin *o = b->origin;

    block_set_state(s, b, BLOCK_ACKED);
    g->acked_blocks++;
    g->unacked_rows -= b->ref.rows - b->acked_rows;
    while (o->first && o->first->state == BLOCK_ACKED) {
        struct block *head = o->first;
        o->front = head->ref.last_offset + 1;
        o->first = head->next_in_origin;
        if (!o->first)
            o->last = NULL;
        block_drop(head);
    }
    while (g->first && g->first->state == BLOCK_ACKED) {
        struct block *head = g->first;
        if (g->scan == head)
            g->scan = head->next_in_segment;
        g->first = head->next_in_segment;
        if (!g->first)
            g->last = NULL;
        block_drop(head);
    }
    segment_check_acked(g);
    origin_refresh_front(o);
}

/* --- segments ------------------------------------------------------------------------------- */

struct segment *segment_find(struct stream *s, uint64_t number)
{
    struct segment *g = s->segments_first;

    while (g && g->number != number)
        g = g->next;
    return g;
}

bool segments_all_loaded(const struct stream *s)
{
    return !s->segments_last || s->segments_last->loaded;
}

uint64_t stream_spooled_rows(const struct stream *s)
{
    uint64_t rows = 0;

    for (const struct segment *g = s->segments_first; g; g = g->next)
        rows += g->unacked_rows;
    return rows;
}

static struct segment *segment_add(struct stream *s, uint64_t number)
{
    struct segment *g = calloc(1, sizeof(*g));

    if (!g)
        return NULL;
    g->number = number;
    if (s->segments_last) {
        s->segments_last->newest = false;
        segment_check_acked(s->segments_last);
        s->segments_last->next = g;
    } else {
        s->segments_first = g;
    }
    s->segments_last = g;
    g->newest = true;
    return g;
}

int segments_recover(struct stream *s, struct spool_error *error)
{
    struct spool_segment_info *infos = NULL;
    size_t count = 0;
    int status = spool_stream_segments(s->spool, &infos, &count, error);

    for (size_t i = 0; i < count && status == SPOOL_OK; i++) {
        const struct spool_segment_info *info = &infos[i];
        struct segment *g = segment_add(s, info->number);
        if (!g) {
            status = spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
            break;
        }
        g->rows = info->rows;
        g->blocks_total = info->blocks;
        g->file_bytes = info->file_bytes;
        g->oldest_ms = info->oldest_ms;
        g->damaged = info->damaged;
        s->segment_file_bytes += info->file_bytes;
        if (info->damaged) {
            g->loaded = true;
            metrics_add(s->p->metrics, METRIC_DAMAGED_BLOCKS, (double)info->blocks,
                        s->options->name);
            stream_hold(s, HOLD_DAMAGE,
                        "segment %llu is damaged (%s): stop spoold and run "
                        "spoolctl verify",
                        (unsigned long long)info->number, info->detail);
            continue;
        }
        g->unacked_rows = info->rows - info->acked_rows;
        /* acked_blocks is counted when the index is read, so that it is never counted twice */
    }
    free(infos);
    return status;
}

uint64_t block_disk_bytes(uint64_t prefix_bytes, uint64_t frames_bytes)
{
    return ((prefix_bytes + frames_bytes) / PAGE_BYTES + 1) * PAGE_BYTES;
}

static bool match_discarded(const struct block *b, void *arg)
{
    (void)arg;
    return b->origin->discard_all && b->ref.last_offset <= b->origin->discard_to;
}

/* The blocks of one append became durable. */
void segments_appended(struct stream *s, struct pending_block *const *pending,
                       const struct spool_block_ref *refs, size_t count)
{
    bool discarded = false; /* an origin was discarded while blocks of it were under way */

    for (size_t i = 0; i < count; i++) {
        struct segment *g = s->segments_last;
        struct origin *o = pending[i]->origin;
        uint64_t bytes;

        if (!g || g->number != refs[i].segment) {
            bool all_loaded = segments_all_loaded(s);
            assert(!g || refs[i].segment > g->number);
            g = segment_add(s, refs[i].segment);
            if (!g)
                goto nomem;
            g->file_bytes = NEW_SEGMENT_BYTES;
            s->segment_file_bytes += NEW_SEGMENT_BYTES;
            s->p->grown_bytes += NEW_SEGMENT_BYTES;
            g->loaded = all_loaded && !s->loading;
            g->oldest_ms = refs[i].first_arrival_ms;
            g->schema = stream_schema_ref(pending[i]->schema);
        }
        if (!g->oldest_ms)
            g->oldest_ms = refs[i].first_arrival_ms;
        g->rows += refs[i].rows;
        g->unacked_rows += refs[i].rows;
        g->blocks_total++;
        g->acked_at_ms = 0;
        bytes = block_disk_bytes(refs[i].prefix_bytes, refs[i].frames_bytes);
        g->file_bytes += bytes;
        s->segment_file_bytes += bytes;
        s->p->grown_bytes += bytes;
        o->high = refs[i].last_offset;
        discarded = discarded || o->discard_all;
        if (g->loaded && !block_add(s, g, &refs[i], pending[i]->arrived_ms))
            goto nomem;
    }
    for (struct segment *g = discarded ? s->segments_first : NULL; g; g = g->next)
        if (g->loaded)
            (void)segment_discard(s, g, match_discarded, NULL);
    return;
nomem:
    pipeline_fatal(s->p, "out of memory while keeping track of blocks");
}

/* --- loading an index ----------------------------------------------------------------------- */

struct load_origin {
    uint32_t id, epoch;
    char *name;
    bool discard; /* a durable discard stands for rows up to discard_to */
    int64_t discard_to;
};

struct load_job {
    struct job job;
    struct stream *stream;
    struct segment *segment;
    int status;
    struct spool_error error;
    struct spool_block_ref *refs;
    size_t ref_count;
    struct spool_range *acked;
    size_t acked_count;
    void *schema;
    size_t schema_size;
    char *destination;
    struct load_origin *origins;
    size_t origin_count;
};

static void load_discard_note(struct load_job *l, struct load_origin *lo)
{
    char key[128];
    void *value = NULL;
    size_t size = 0;

    snprintf(key, sizeof(key), "discard/%u/%u", l->stream->id, lo->id);
    if (spool_note_get(l->job.pipeline->spool, key, &value, &size, NULL) == SPOOL_OK && size < 32) {
        char text[32] = {0};
        memcpy(text, value, size);
        lo->discard = true;
        lo->discard_to = strtoll(text, NULL, 10);
    }
    free(value);
}

/* Names of every origin in the segment; asked once each. */
static int load_origins(struct load_job *l)
{
    for (size_t i = 0; i < l->ref_count; i++) {
        uint32_t id = l->refs[i].origin;
        struct load_origin *grown;
        size_t k = 0;
        int status;

        while (k < l->origin_count && l->origins[k].id != id)
            k++;
        if (k < l->origin_count) {
            struct load_origin hit = l->origins[k]; /* move to front: origins come in turns */
            memmove(l->origins + 1, l->origins, k * sizeof(*l->origins));
            l->origins[0] = hit;
            continue;
        }
        grown = realloc(l->origins, (l->origin_count + 1) * sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        l->origins = grown;
        memset(&grown[l->origin_count], 0, sizeof(*grown));
        grown[l->origin_count].id = id;
        status = spool_origin_name(l->job.pipeline->spool, id, &grown[l->origin_count].name,
                                   &grown[l->origin_count].epoch, &l->error);
        if (status != SPOOL_OK)
            return status;
        load_discard_note(l, &grown[l->origin_count]);
        l->origin_count++;
    }
    return SPOOL_OK;
}

static void load_work(struct job *job)
{
    struct load_job *l = (struct load_job *)job;
    uint64_t number = l->segment->number;

    l->status = spool_segment_blocks(l->stream->spool, number, &l->refs, &l->ref_count, &l->error);
    if (l->status == SPOOL_OK)
        l->status = spool_acked(job->pipeline->spool, l->stream->id, number, &l->acked,
                                &l->acked_count, &l->error);
    if (l->status == SPOOL_OK)
        l->status = spool_segment_spec_get(l->stream->spool, number, &l->schema, &l->schema_size,
                                           &l->destination, &l->error);
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
    free(l->schema);
    free(l->destination);
    free(l);
}

/* The schema the segment was written under: the stream's own where it is the same. */
static int segment_schema(struct stream *s, struct segment *g, struct load_job *l)
{
    struct schema *schema = NULL;
    struct target *t;
    int status;

    if (g->schema)
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

static void load_apply(struct stream *s, struct segment *g, struct load_job *l)
{
    size_t at = 0;

    for (size_t i = 0; i < l->origin_count; i++) {
        struct origin *o = origin_get(s, l->origins[i].id);
        if (!o) {
            pipeline_fatal(s->p, "out of memory while reading a segment's index");
            return;
        }
        if (l->origins[i].discard) {
            o->discard_all = true;
            o->discard_to = l->origins[i].discard_to;
        }
        if (!o->name) {
            o->name = l->origins[i].name;
            l->origins[i].name = NULL;
            o->epoch = l->origins[i].epoch;
            o->kafka = strncmp(o->name, "kafka/", 6) == 0;
            kafka_in_adopt(o);
        }
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
    }
    g->blocks_total = l->ref_count;
    g->loaded = true;
    batches_segment_loaded(s, g);
    (void)segment_discard(s, g, match_discarded, NULL);
    segment_check_acked(g);
    if (segments_all_loaded(s))
        for (struct origin *o = s->origins; o; o = o->next) {
            origin_refresh_front(o);
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
    } else {
        g->loaded = true;
        g->damaged = true;
        stream_hold(s, HOLD_DAMAGE,
                    "segment %llu can't be read (%s): stop spoold and run "
                    "spoolctl verify",
                    (unsigned long long)g->number, l->error.text);
    }
    load_free(l);
    stream_advance(s);
}

static void load_start(struct stream *s, struct segment *g)
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

/* --- removal -------------------------------------------------------------------------------- */

struct remove_job {
    struct job job;
    struct stream *stream;
    struct segment *segment;
    int status;
    struct spool_error error;
};

static void remove_work(struct job *job)
{
    struct remove_job *r = (struct remove_job *)job;
    r->status = spool_segment_remove(r->stream->spool, r->segment->number, &r->error);
}

static void segment_unlink(struct stream *s, struct segment *g)
{
    struct segment **at = &s->segments_first;

    while (*at != g)
        at = &(*at)->next;
    assert(g->next && !g->first);
    *at = g->next;
    s->segment_file_bytes -= g->file_bytes;
    stream_schema_unref(g->schema);
    free(g);
}

static void remove_done(struct job *job)
{
    struct remove_job *r = (struct remove_job *)job;
    struct stream *s = r->stream;
    struct segment *g = r->segment;

    g->removing = false;
    if (r->status == SPOOL_OK) {
        segment_unlink(s, g);
        pressure_eased(s->p);
    } else {
        log_event(LOG_ERROR, "segment.not_removed", "stream", s->options->name, "segment",
                  log_u64(g->number), "error", r->error.text, NULL);
        g->acked_at_ms = clock_monotonic_ms() + REMOVE_RETRY_MS;
    }
    free(r);
    pipeline_advance(s->p);
}

static void remove_start(struct stream *s, struct segment *g)
{
    struct remove_job *r = calloc(1, sizeof(*r));
    struct lane *lane = &s->lane;

    if (r) {
        r->stream = s;
        r->segment = g;
        r->job.work = remove_work;
        r->job.done = remove_done;
        g->removing = true;
        if (job_start(s->p, &r->job, &lane, 1) == SPOOL_OK)
            return;
    }
    pipeline_fatal(s->p, "out of memory while removing a segment");
}

/* When the segment may go; 0: it may not. */
static uint64_t segment_remove_at(const struct stream *s, const struct segment *g)
{
    if (g->newest || g->removing || !g->acked_at_ms || g->first)
        return 0;
    return pressure_tight(s->p) ? g->acked_at_ms
                                : g->acked_at_ms + s->p->options->keep_acknowledged_ms;
}

void segments_advance(struct stream *s)
{
    uint64_t now = clock_monotonic_ms();
    uint64_t ahead = s->options->flush_rows * (s->options->max_in_flight + 1ull);
    struct segment *g;

    if (s->p->closing || s->p->fatal)
        return;
    for (g = s->segments_first; g; g = g->next) {
        uint64_t at = segment_remove_at(s, g);
        if (at && at <= now)
            remove_start(s, g);
    }
    for (g = s->segments_first; g && g->loaded; g = g->next)
        continue;
    if (g && !s->loading && s->eligible_rows < ahead)
        load_start(s, g);
}

uint64_t segments_deadline_ms(const struct stream *s)
{
    uint64_t first = 0;

    for (const struct segment *g = s->segments_first; g; g = g->next) {
        uint64_t at = segment_remove_at(s, g);
        if (at && (!first || at < first))
            first = at;
    }
    return first;
}

/* --- discards ------------------------------------------------------------------------------- */

struct discard {
    struct stream *stream;
    struct segment *segment;
    struct block **blocks;
    size_t count;
};

static void discard_done(void *arg)
{
    struct discard *d = arg;

    for (size_t i = 0; i < d->count; i++) {
        struct origin *o = d->blocks[i]->origin;
        block_acked(d->stream, d->segment, d->blocks[i]);
        origin_commit(o);
    }
    free(d->blocks);
    free(d);
}

uint64_t segment_discard(struct stream *s, struct segment *g,
                         bool (*match)(const struct block *b, void *arg), void *arg)
{
    struct discard *d;
    struct spool_range *ranges = NULL;
    struct spool_change change = {
        .kind = SPOOL_CHANGE_DISCARD, .stream = s->id, .segment = g->number};
    uint64_t rows = 0;
    size_t n = 0;

    for (struct block *b = g->first; b; b = b->next_in_segment)
        n += b->state == BLOCK_WAITING && match(b, arg);
    if (!n)
        return 0;
    d = calloc(1, sizeof(*d));
    if (d)
        d->blocks = calloc(n, sizeof(struct block *));
    ranges = calloc(n, sizeof(*ranges));
    if (!d || !d->blocks || !ranges) {
        pipeline_fatal(s->p, "out of memory while discarding blocks");
        goto done;
    }
    d->stream = s;
    d->segment = g;
    for (struct block *b = g->first; b; b = b->next_in_segment) {
        if (b->state != BLOCK_WAITING || !match(b, arg))
            continue;
        block_set_state(s, b, BLOCK_SEALED);
        rows += b->ref.rows;
        ranges[d->count] = (struct spool_range){b->ref.sequence, 0, b->ref.rows};
        d->blocks[d->count++] = b;
    }
    change.ranges = ranges;
    change.range_count = d->count;
    (void)meta_change(s->p, &change, discard_done, d, s);
done:
    free(ranges);
    return rows;
}

void origin_discard(struct origin *o, int64_t up_to)
{
    struct stream *s = o->stream;
    uint64_t rows = 0;
    char key[128], value[32];
    struct spool_change change = {.kind = SPOOL_CHANGE_PUT, .key = key, .value = value};

    o->discard_all = true;
    o->discard_to = up_to;
    snprintf(key, sizeof(key), "discard/%u/%u", s->id, o->id);
    snprintf(value, sizeof(value), "%lld", (long long)up_to);
    change.value_size = strlen(value);
    (void)meta_change(s->p, &change, NULL, NULL, s);
    for (struct segment *g = s->segments_first; g; g = g->next)
        if (g->loaded)
            rows += segment_discard(s, g, match_discarded, NULL);
    log_event(LOG_WARN, "origin.discarded", "stream", s->options->name, "origin",
              o->name ? o->name : "", "up_to", log_i64(up_to), "rows_in_memory", log_u64(rows),
              "reason", "another consumer of the group committed past them", NULL);
}

void segments_free(struct stream *s)
{
    while (s->segments_first) {
        struct segment *g = s->segments_first;
        s->segments_first = g->next;
        for (struct block *b = g->first; b;) {
            struct block *next = b->next_in_segment;
            block_drop(b);
            b = next;
        }
        stream_schema_unref(g->schema);
        free(g);
    }
    s->segments_last = NULL;
    while (s->origins) {
        struct origin *o = s->origins;
        s->origins = o->next;
        for (struct block *b = o->first; b;) {
            struct block *next = b->next_in_origin;
            block_drop(b);
            b = next;
        }
        free(o->name);
        free(o);
    }
    free(s->origin_table);
}
