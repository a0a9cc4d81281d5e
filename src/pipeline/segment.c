/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is on disk and not yet acknowledged.
 *
 * Descriptors of blocks are kept in memory for the oldest segments only: a prefix of the list is
 * "loaded", as many as what is sent next needs, the rest is known by its totals, so memory does not
 * grow with the backlog. New blocks get a descriptor at once only while everything before them is
 * loaded and their segment belongs to that prefix. A block leaves memory when
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

void block_drop(struct block *b)
{
    assert(b->lists > 0);
    if (--b->lists == 0)
        free(b);
}

/* A descriptor at the end of its segment and its origin. */
struct block *block_add(struct stream *s, struct segment *g, const struct spool_block_ref *ref,
                        uint64_t arrived_ms)
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
    b->suspect = o->suspect || ref->flags & SPOOL_BLOCK_SUSPECT ||
                 ref->sequence <= spool_stream_rebuilt_to(s->spool);
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

void segment_check_acked(struct segment *g)
{
    if (g->loaded && !g->kept && !g->settling && !g->acked_at_ms &&
        g->acked_blocks == g->blocks_total)
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
        if (o->front <= head->ref.last_offset) /* a refill lies below what came after it */
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
    if (o->holes)
        holes_check(o);
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
        g->missing = info->missing;
        s->segment_file_bytes += info->file_bytes;
        if (info->damaged)
            continue;
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

/* Rows to be had in memory: the batches that may be under way, and the next one. */
static uint64_t rows_ahead(const struct stream *s)
{
    return s->options->flush_rows * (s->options->max_in_flight + 1ull);
}

/* Before any seal of it: from then on its loss is noticed. */
static void segment_list(struct stream *s, const struct segment *g)
{
    struct spool_change change = {.kind = SPOOL_CHANGE_LIST, .stream = s->id, .segment = g->number};

    (void)meta_change(s->p, &change, NULL, NULL, s);
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
            segment_list(s, g);
            g->file_bytes = NEW_SEGMENT_BYTES;
            s->segment_file_bytes += NEW_SEGMENT_BYTES;
            s->p->grown_bytes += NEW_SEGMENT_BYTES;
            g->loaded = all_loaded && !s->loading && s->eligible_rows < rows_ahead(s);
            g->oldest_ms = refs[i].first_arrival_ms;
            g->begun_ms = pending[i]->arrived_ms;
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
        if (refs[i].flags & SPOOL_BLOCK_REFILL)
            hole_stored(o, &refs[i]);
        else
            o->high = refs[i].last_offset;
        assert(o->blocks_undurable > 0);
        o->blocks_undurable--;
        discarded = discarded || o->discard_to >= 0;
        if (g->loaded && !block_add(s, g, &refs[i], pending[i]->arrived_ms))
            goto nomem;
    }
    for (struct segment *g = discarded ? s->segments_first : NULL; g; g = g->next)
        if (g->loaded)
            (void)segment_discard(s, g, block_discarded, NULL);
    return;
nomem:
    pipeline_fatal(s->p, "out of memory while keeping track of blocks");
}

/* --- removal -------------------------------------------------------------------------------- */

struct remove_job {
    struct job job;
    struct stream *stream;
    struct segment *segment;
    bool damaged;
    int status;
    struct spool_error error;
};

static void remove_work(struct job *job)
{
    struct remove_job *r = (struct remove_job *)job;
    struct spool_stream *stream = r->stream->spool;
    const uint64_t number = r->segment->number;

    r->status = r->damaged ? spool_segment_forsake(stream, number, &r->error)
                           : spool_segment_remove(stream, number, &r->error);
    /* One that was found damaged after it was loaded: all of it is acknowledged even so. */
    if (r->status == SPOOL_E_INVALID && spool_segment_forsake(stream, number, NULL) == SPOOL_OK)
        r->status = SPOOL_OK;
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
        if (g->salvaged)
            salvage_forget(s, g->number);
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

static void remove_unlisted(void *arg)
{
    struct remove_job *r = arg;
    struct pipeline *p = r->stream->p;
    struct lane *lane = &r->stream->lane;

    if (job_start(p, &r->job, &lane, 1) != SPOOL_OK) {
        free(r);
        pipeline_fatal(p, "out of memory while removing a segment");
    }
}

/* Out of the list of what there is first: a file that is gone and listed is one that was lost. */
static void remove_start(struct stream *s, struct segment *g)
{
    struct spool_change change = {
        .kind = SPOOL_CHANGE_UNLIST, .stream = s->id, .segment = g->number};
    struct remove_job *r = calloc(1, sizeof(*r));

    if (!r) {
        pipeline_fatal(s->p, "out of memory while removing a segment");
        return;
    }
    r->stream = s;
    r->segment = g;
    r->damaged = g->damaged;
    r->job.work = remove_work;
    r->job.done = remove_done;
    g->removing = true;
    (void)meta_change(s->p, &change, remove_unlisted, r, s);
}

/* When the segment may go; 0: it may not. */
static uint64_t segment_remove_at(const struct stream *s, const struct segment *g)
{
    if (g->newest || g->removing || !g->acked_at_ms || g->first)
        return 0;
    return pressure_tight(s->p) ? g->acked_at_ms
                                : g->acked_at_ms + s->p->options->keep_acknowledged_ms;
}

/* Whether a recovered batch waits for the segment, or for one behind it: it takes a slot until then. */
static bool segment_is_wanted(const struct stream *s, const struct segment *g)
{
    for (const struct batch *b = s->batches; b; b = b->next)
        if (b->state == BATCH_LOADING && b->segment_number >= g->number)
            return true;
    return false;
}

void segments_advance(struct stream *s)
{
    uint64_t now = clock_monotonic_ms();
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
    if (g && !s->loading && (s->eligible_rows < rows_ahead(s) || segment_is_wanted(s, g)) &&
        s->load_retry_at_ms <= now)
        segment_load(s, g);
}

uint64_t segments_deadline_ms(const struct stream *s)
{
    uint64_t first = s->load_retry_at_ms > clock_monotonic_ms() ? s->load_retry_at_ms : 0;

    for (const struct segment *g = s->segments_first; g; g = g->next) {
        uint64_t at = segment_remove_at(s, g);
        if (at && (!first || at < first))
            first = at;
    }
    return first;
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
    origins_free(s);
}
