/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Holes: offsets of a Kafka partition that the spool held and cannot read any more.
 *
 * A hole is recorded in meta (a note) in the same commit that takes the damaged block out of its
 * batch. From then on the block is done with, and the hole stands for its offsets: Kafka is never
 * told of an offset beyond the first open hole, so the broker's log still has what is missing. The
 * partition is sent back to the hole, what lies in it becomes new blocks (refills) at the end of
 * the stream, and the partition goes on where it was. The note remembers how far that came, and
 * goes when all refills are acknowledged.
 *
 *   note  hole/<stream id>/<origin id>/<segment>/<sequence>/<first>
 *         "<last> <stored> <suspect> <after>"
 *
 * sequence is of the damaged block, 0 where a whole segment was lost. Below `stored` the hole is in
 * the spool again. suspect: rows of it may be in the table already (an insert of them ended without
 * an answer), so their refills are asked about, or counted as possible duplicates. A crash between
 * the append of a refill and the note of it is settled at the start: refills are blocks behind
 * sequence `after`, and are looked for in the segments, damaged ones too.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define HOLE_KEY_BYTES   160
#define HOLE_VALUE_BYTES 96

/* --- the note ------------------------------------------------------------------------------- */

static void hole_key(const struct origin *o, const struct hole *h, char *key)
{
    snprintf(key, HOLE_KEY_BYTES, "hole/%u/%u/%llu/%llu/%lld", o->stream->id, o->id,
             (unsigned long long)h->segment, (unsigned long long)h->sequence,
             (long long)h->noted_first);
}

static struct spool_change hole_note(const struct origin *o, const struct hole *h, char *key,
                                     char *value)
{
    int n;

    hole_key(o, h, key);
    n = snprintf(value, HOLE_VALUE_BYTES, "%lld %lld %d %llu", (long long)h->last,
                 (long long)h->stored, h->suspect ? 1 : 0, (unsigned long long)h->after);
    return (struct spool_change){
        .kind = SPOOL_CHANGE_PUT, .key = key, .value = value, .value_size = (size_t)n};
}

static void hole_save(struct origin *o, const struct hole *h)
{
    char key[HOLE_KEY_BYTES], value[HOLE_VALUE_BYTES];
    struct spool_change change = hole_note(o, h, key, value);

    (void)meta_change(o->stream->p, &change, NULL, NULL, o->stream);
}

/* Out of the list and out of meta. */
static void hole_close(struct origin *o, struct hole *h)
{
    struct hole **at = &o->holes;
    char key[HOLE_KEY_BYTES];
    struct spool_change change = {.kind = SPOOL_CHANGE_DELETE, .key = key};

    while (*at != h)
        at = &(*at)->next;
    *at = h->next;
    hole_key(o, h, key);
    (void)meta_change(o->stream->p, &change, NULL, NULL, o->stream);
    free(h);
}

/* In order of the first offset. */
static void hole_link(struct origin *o, struct hole *h)
{
    struct hole **at = &o->holes;

    while (*at && (*at)->first < h->first)
        at = &(*at)->next;
    h->next = *at;
    *at = h;
}

/* --- new ones ------------------------------------------------------------------------------- */

int holes_plan(const struct hole_spec *specs, size_t count, struct spool_change *changes,
               char **memory)
{
    char *at = malloc(count * (HOLE_KEY_BYTES + HOLE_VALUE_BYTES) + 1);

    *memory = at;
    if (!at)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < count; i++, at += HOLE_KEY_BYTES + HOLE_VALUE_BYTES) {
        const struct hole_spec *s = &specs[i];
        struct hole h = {.first = s->first,
                         .noted_first = s->first,
                         .last = s->last,
                         .stored = s->first,
                         .suspect = s->suspect,
                         .segment = s->segment,
                         .sequence = s->sequence,
                         .after = s->after};
        changes[i] = hole_note(s->origin, &h, at, at + HOLE_KEY_BYTES);
    }
    return SPOOL_OK;
}

/* The hole, where it is open already: pieces of a block, the offsets of whose rows are not known, have each
   the hole of the whole block. */
static struct hole *hole_open(const struct hole_spec *s)
{
    struct hole *h = s->origin->holes;

    while (h && (h->segment != s->segment || h->sequence != s->sequence ||
                 h->noted_first != s->first || h->last != s->last))
        h = h->next;
    return h;
}

void holes_link(const struct hole_spec *specs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct hole_spec *s = &specs[i];
        struct stream *stream = s->origin->stream;
        struct hole *h = hole_open(s);

        if (h) {
            if (h->stored > s->first) /* which the note says no more */
                hole_save(s->origin, h);
            continue;
        }
        h = calloc(1, sizeof(*h));
        if (!h) {
            pipeline_fatal(stream->p, "out of memory while setting damaged rows aside");
            return;
        }
        h->first = h->noted_first = h->asked = h->stored = s->first;
        h->last = s->last;
        h->suspect = s->suspect;
        h->segment = s->segment;
        h->sequence = s->sequence;
        h->after = s->after;
        hole_link(s->origin, h);
        log_event(LOG_ERROR, "rows.damaged", "stream", stream->options->name, "origin",
                  s->origin->name, "first", log_i64(s->first), "last", log_i64(s->last), "segment",
                  log_u64(s->segment), "action",
                  "nothing of them was sent; they are read from Kafka again", NULL);
    }
}

void holes_ready(struct stream *s, uint64_t segment)
{
    for (struct origin *o = s->origins; o; o = o->next) {
        bool any = false;
        for (struct hole *h = o->holes; h; h = h->next)
            if (h->segment == segment && !h->ready)
                h->ready = any = true;
        if (any && o->partition && o->owned)
            origin_start_reading(o);
        if (any)
            holes_check(o);
    }
}

void holes_add(const struct hole_spec *specs, size_t count)
{
    holes_link(specs, count);
    for (size_t i = 0; i < count; i++)
        holes_ready(specs[i].origin->stream, specs[i].segment);
}

void holes_clamp(struct origin *o, int64_t committed)
{
    for (struct hole *h = o->holes; h; h = h->next) {
        if (h->first < committed)
            h->first = committed;
        if (h->asked < committed)
            h->asked = committed;
        if (h->stored < committed)
            h->stored = committed;
    }
    holes_check(o);
}

void holes_limit(struct origin *o)
{
    for (struct hole *h = o->holes; h; h = h->next) {
        if (h->last <= o->high)
            continue;
        h->last = h->first <= o->high ? o->high : h->first - 1;
        hole_save(o, h);
    }
    holes_check(o);
}

/* --- reading again -------------------------------------------------------------------------- */

static struct hole *hole_to_fetch(const struct origin *o)
{
    struct hole *h = o->holes;

    while (h && (h->asked > h->last || !h->ready))
        h = h->next;
    return h;
}

void origin_start_reading(struct origin *o)
{
    const struct hole *h = hole_to_fetch(o);

    if (!o->partition || o->revoking || o->log_over)
        return;
    if (o->trace)
        log_trace_again(o);
    else
        kafka_partition_start(o->partition, h ? h->asked : o->taken + 1, h ? NULL : &o->mark);
}

bool hole_run(struct origin *o, struct record_run *run, struct record_run_node *node)
{
    struct hole *h = hole_to_fetch(o);
    struct record record;

    if (!h)
        return false;
    node->refill = true;
    node->suspect = h->suspect;
    node->cover_first = h->asked;
    node->cover_last = run->last_offset;
    node->take = run->count;
    while (node->take) {
        run->ops->record(run, node->take - 1, 0, &record);
        if (record.offset <= h->last)
            break;
        node->take--;
    }
    if (node->take < run->count || run->last_offset >= h->last)
        node->cover_last = h->last;
    h->asked = node->cover_last + 1;
    if (h->asked > h->last)
        origin_start_reading(o);
    return true;
}

void hole_run_dropped(struct origin *o, const struct record_run_node *node)
{
    for (struct hole *h = o->holes; h; h = h->next)
        if (node->cover_first >= h->stored && node->cover_first < h->asked &&
            node->cover_last <= h->last)
            h->asked = node->cover_first;
}

/* Where the first of all segments is lost, nothing tells at which offset the spool began. */
static bool hole_is_bottomless(const struct hole *h)
{
    return !h->sequence && h->noted_first == 0;
}

bool hole_gap(struct origin *o, int64_t from, int64_t to)
{
    struct hole *h = hole_to_fetch(o);

    if (!h)
        return false;
    if (to > h->last + 1)
        to = h->last + 1;
    metrics_add(o->stream->p->metrics, METRIC_GAP_RECORDS, (double)(to - from),
                o->stream->options->name);
    log_event(LOG_ERROR, "partition.gap", "stream", o->stream->options->name, "origin", o->name,
              "from", log_i64(from), "to", log_i64(to), "reason",
              hole_is_bottomless(h)
                  ? "rows of these offsets may have been in what is damaged of the spool; the "
                    "broker has none of them, and perhaps had none when reading began"
                  : "these rows were damaged in the spool, and the broker no longer has them",
              NULL);
    h->asked = to;
    if (to > h->last) {
        h->last = from - 1; /* what was fetched of it before stays */
        hole_save(o, h);
        holes_check(o);
        origin_start_reading(o);
    }
    return true;
}

/* --- refills -------------------------------------------------------------------------------- */

void hole_stored(struct origin *o, const struct spool_block_ref *ref)
{
    for (struct hole *h = o->holes; h; h = h->next) {
        if (ref->sequence <= h->after || ref->first_offset < h->stored ||
            ref->last_offset > h->last)
            continue;
        h->stored = ref->last_offset + 1;
        hole_save(o, h);
        if (h->stored > h->last)
            log_event(LOG_INFO, "rows.refetched", "stream", o->stream->options->name, "origin",
                      o->name, "first", log_i64(h->first), "last", log_i64(h->last), NULL);
        return;
    }
}

static bool hole_waits(const struct origin *o, const struct hole *h)
{
    for (const struct block *b = o->first; b; b = b->next_in_origin)
        if (b->state != BLOCK_ACKED && b->ref.flags & SPOOL_BLOCK_REFILL &&
            b->ref.last_offset >= h->first && b->ref.first_offset <= h->last)
            return true;
    return false;
}

void holes_check(struct origin *o)
{
    bool closed = false;

    if (!segments_all_loaded(o->stream))
        return;
    for (struct hole *h = o->holes, *next; h; h = next) {
        next = h->next;
        if (h->ready && h->stored > h->last && !hole_waits(o, h)) {
            hole_close(o, h);
            closed = true;
        }
    }
    if (closed) /* by a gap, say: no acknowledgement comes that would tell Kafka */
        origin_commit(o);
}

int64_t origin_commit_limit(const struct origin *o)
{
    return o->holes && o->holes->first < o->front ? o->holes->first : o->front;
}

/* What is missing of one that is not read any more, since its log is gone. */
static void hole_lost(const struct origin *o, const struct hole *h)
{
    if (h->stored > h->last)
        return;
    metrics_add(o->stream->p->metrics, METRIC_GAP_RECORDS, (double)(h->last - h->stored + 1),
                o->stream->options->name);
    log_event(LOG_ERROR, "partition.gap", "stream", o->stream->options->name, "origin", o->name,
              "from", log_i64(h->stored), "to", log_i64(h->last + 1), "reason",
              "these rows were damaged in the spool, and the log they came from is gone", NULL);
}

void holes_forget(struct origin *o, bool lost)
{
    while (o->holes) {
        if (lost)
            hole_lost(o, o->holes);
        hole_close(o, o->holes);
    }
}

void holes_free(struct origin *o)
{
    while (o->holes) {
        struct hole *h = o->holes;
        o->holes = h->next;
        free(h);
    }
}

/* --- at the start --------------------------------------------------------------------------- */

struct recovery {
    struct stream *stream;
    bool any;
    struct spool_error *error;
};

static int recover_note(void *arg, const char *key, const void *value, size_t size)
{
    struct recovery *r = arg;
    struct stream *s = r->stream;
    char text[HOLE_VALUE_BYTES] = "";
    unsigned stream = 0, origin = 0;
    unsigned long long segment = 0, sequence = 0, after = 0;
    long long first = 0, last = 0, stored = 0;
    int suspect = 0;
    struct origin *o;
    struct hole *h;

    memcpy(text, value, size < sizeof(text) ? size : sizeof(text) - 1);
    if (sscanf(key, "hole/%u/%u/%llu/%llu/%lld", &stream, &origin, &segment, &sequence, &first) !=
            5 ||
        sscanf(text, "%lld %lld %d %llu", &last, &stored, &suspect, &after) != 4)
        return spool_error_set(r->error, SPOOL_E_CORRUPT, "the note %s is not readable", key);
    o = origin_get(s, origin);
    h = calloc(1, sizeof(*h));
    if (!o || !h) {
        free(h);
        return spool_error_set(r->error, SPOOL_E_NOMEM, "out of memory");
    }
    h->first = h->noted_first = first;
    h->last = last;
    h->asked = h->stored = stored;
    h->ready = true;
    h->suspect = suspect != 0;
    h->segment = segment;
    h->sequence = sequence;
    h->after = after;
    hole_link(o, h);
    r->any = true;
    return 0;
}

/* What is found of it will be delivered; what is not is dealt with when it is loaded. */
static int recover_damaged(struct stream *s, uint64_t number, struct spool_block_ref **refs,
                           size_t *count, struct spool_error *error)
{
    struct spool_salvage found;
    int status = spool_segment_salvage(s->spool, number, &found, error);

    if (status != SPOOL_OK)
        return status;
    *refs = found.refs;
    *count = found.count;
    found.refs = NULL;
    spool_salvage_free(&found);
    return SPOOL_OK;
}

static int recover_segment(struct stream *s, uint64_t number, struct spool_error *error)
{
    struct spool_block_ref *refs = NULL;
    size_t count = 0;
    int status = spool_segment_blocks(s->spool, number, &refs, &count, error);

    if (status == SPOOL_E_CORRUPT)
        status = recover_damaged(s, number, &refs, &count, error);
    for (size_t i = 0; i < count && status == SPOOL_OK; i++) {
        struct origin *o =
            refs[i].flags & SPOOL_BLOCK_REFILL ? origin_find(s, refs[i].origin) : NULL;
        for (struct hole *h = o ? o->holes : NULL; h; h = h->next)
            if (refs[i].sequence > h->after && refs[i].first_offset >= h->stored &&
                refs[i].last_offset <= h->last) {
                h->asked = h->stored = refs[i].last_offset + 1;
                break;
            }
    }
    free(refs);
    return status;
}

/* Their epoch was over, and that was not noted of them before the end. */
static int recover_over(struct origin *o, struct spool_error *error)
{
    struct spool *spool = o->stream->p->spool;
    uint32_t id, latest = 0;
    int64_t up_to = -1;
    int status = spool_origin(spool, o->name, 0, &id, &latest, error);

    if (status == SPOOL_OK)
        status = origin_discard_noted(o->stream, o->id, &up_to, error);
    while (status == SPOOL_OK && latest > o->epoch && o->holes) {
        struct hole *h = o->holes;
        char key[HOLE_KEY_BYTES];
        struct spool_change change = {.kind = SPOOL_CHANGE_DELETE, .key = key};

        hole_key(o, h, key);
        status = spool_commit(spool, &change, 1, error);
        if (status != SPOOL_OK)
            break;
        if (up_to != INT64_MAX)
            hole_lost(o, h);
        o->holes = h->next;
        free(h);
    }
    return status == SPOOL_E_FULL ? SPOOL_OK : status; /* the next start ends them */
}

int holes_recover(struct stream *s, struct spool_error *error)
{
    struct recovery r = {.stream = s, .error = error};
    char prefix[32];
    int status;

    snprintf(prefix, sizeof(prefix), "hole/%u/", s->id);
    status = spool_notes(s->p->spool, prefix, recover_note, &r, error);
    for (struct segment *g = r.any ? s->segments_first : NULL; g && status == SPOOL_OK; g = g->next)
        status = recover_segment(s, g->number, error);
    for (struct origin *o = s->origins; o && status == SPOOL_OK; o = o->next) {
        if (!o->holes || o->name)
            continue;
        status = spool_origin_name(s->p->spool, o->id, &o->name, &o->epoch, error);
        if (status == SPOOL_OK)
            status = origin_told_noted(s, o->id, o->epoch, &o->told_from, error);
        if (status == SPOOL_OK)
            status = recover_over(o, error);
        o->kafka = true; /* others have no holes */
    }
    return status;
}
