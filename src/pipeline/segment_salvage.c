/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A segment that was found damaged when it was loaded. Its blocks that can still be found are
 * delivered as any others, each being checked before it is sent. What it held beside them becomes
 * holes (hole.c), and so does what refills that it may have held had taken the place of. A seal that names lost blocks stands for those that are there; where there are
 * none, the commit that notes the holes ends it. A note says that this was done, so that a restart
 * does not do it again:
 *
 *   salvaged/<stream id>/<segment> -> "1 <blocks> <kept>"; "2 <blocks> <kept>" for another one in the same row
 *
 * blocks: a hash of those that were found, or acknowledged and gone. Where it is another one at a later start
 * the damage has grown, or the disk gives blocks again that it did not: what nothing stands for is read again,
 * and what is in a hole is not sent. kept: 1, the file stays.
 *
 * Of several damaged segments in a row the first that is loaded answers for all: only what lies between
 * whole ones is known. Where one of them was answered for before, or was whole when it was loaded, what
 * nothing stands for yet of the row's offsets is read again, as possibly stored.
 *
 * The file goes when its blocks are acknowledged, unless it may hold rows that nobody else has: then all files
 * of the row stay.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "pipeline/segment_load_int.h"

#define SALVAGE_KEY_SIZE   64
#define SALVAGE_VALUE_SIZE 32

struct salvage_note {
    char key[SALVAGE_KEY_SIZE], value[SALVAGE_VALUE_SIZE];
};

struct salvage {
    struct stream *stream;
    struct segment *segment;
    struct hole_spec *holes;
    size_t hole_count;
    struct batch **batches; /* that name blocks which are not there */
    size_t batch_count;
    uint64_t answers_to; /* it answers for the segments up to there; 0: for itself */
    bool keeps;          /* they may hold what nobody else has */
    bool noted;          /* this was done before */
};

void salvage_note_key(const struct stream *s, uint64_t segment, char *key, size_t size)
{
    snprintf(key, size, "salvaged/%u/%llu", s->id, (unsigned long long)segment);
}

void salvage_forget(struct stream *s, uint64_t segment)
{
    char key[SALVAGE_KEY_SIZE];
    struct spool_change change = {.kind = SPOOL_CHANGE_DELETE, .key = key};

    salvage_note_key(s, segment, key, sizeof(key));
    (void)meta_change(s->p, &change, NULL, NULL, s);
}

static void salvage_free(struct salvage *v)
{
    free(v->holes);
    free(v->batches);
    free(v);
}

/* --- what is lost --------------------------------------------------------------------------- */

static bool ref_is_there(const struct load_job *l, uint64_t sequence)
{
    size_t lo = 0, hi = l->ref_count;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (l->refs[mid].sequence < sequence)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < l->ref_count && l->refs[lo].sequence == sequence;
}

/* Blocks that are not there, and of which rows are acknowledged. */
static uint64_t acked_and_gone(const struct load_job *l)
{
    uint64_t count = 0, last = 0;

    for (size_t i = 0; i < l->acked_count; i++)
        if (l->acked[i].sequence != last && !ref_is_there(l, l->acked[i].sequence)) {
            last = l->acked[i].sequence;
            count++;
        }
    return count;
}

static bool next_is_damaged(const struct segment *g)
{
    return g->next && g->next->damaged;
}

static uint64_t rows_found(const struct batch *b)
{
    uint64_t rows = 0;

    for (size_t i = 0; i < b->part_count; i++)
        rows += b->parts[i].rows;
    return rows;
}

/* Nothing of it is missing that is not acknowledged. Of a block that is in part, a seal has the rest. */
static bool nothing_lost(const struct salvage *v, const struct load_job *l)
{
    const struct spool_salvage *found = &l->salvage;

    for (size_t i = 0; i < v->batch_count; i++)
        if (rows_found(v->batches[i]) < v->batches[i]->rows)
            return false;
    return found->first_segment == found->last_segment && found->first_sequence &&
           found->last_sequence &&
           found->last_sequence + 1 - found->first_sequence == l->ref_count + acked_and_gone(l);
}

/* Which of the row's files has them nobody can tell. */
static void lost_elsewhere(struct salvage *v, const struct load_job *l, const struct origin *o,
                           const struct spool_lost *lost)
{
    bool any = false;

    v->keeps = true;
    for (struct segment *g = v->segment; g && g->number <= l->salvage.last_segment; g = g->next) {
        g->kept = !g->missing;
        any |= g->kept;
    }
    log_event(LOG_ERROR, "rows.damaged", "stream", v->stream->options->name, "origin",
              o->name ? o->name : "", "first", log_i64(lost->first), "last", log_i64(lost->last),
              "segment", log_u64(v->segment->number), "action",
              any ? "they can't be read again; the damaged segment stays for whoever can mend it"
                  : "they can't be read again: unless they were delivered before, they are lost "
                    "with the file",
              NULL);
}

/* Something else stands for [first, last]: the range ends before that, or nothing of it is left up to
   *next. */
static void stands(struct spool_lost *range, int64_t first, int64_t last, int64_t *next)
{
    if (first > range->last || last < range->first || first > last)
        return;
    if (first > range->first)
        range->last = first - 1;
    else if (last >= *next)
        *next = last + 1;
}

/*
 * The beginning of the range that nothing stands for yet; *next: where the rest begins. Holes do that,
 * also for refills of theirs that are in the spool, unless these are what is looked for; and blocks that
 * wait here.
 */
static struct spool_lost first_unanswered(const struct salvage *v, const struct origin *o,
                                          const struct spool_lost *lost, bool refills,
                                          int64_t *next)
{
    struct spool_lost range = *lost;

    *next = lost->first;
    for (const struct hole *h = o->holes; h; h = h->next)
        stands(&range, refills ? h->stored : h->first, h->last, next);
    for (size_t i = 0; i < v->hole_count; i++)
        if (v->holes[i].origin == o)
            stands(&range, v->holes[i].first, v->holes[i].last, next);
    for (const struct block *b = o->first; b; b = b->next_in_origin)
        if (b->state != BLOCK_ACKED)
            stands(&range, b->ref.first_offset, b->ref.last_offset, next);
    if (*next > range.first)
        range.last = range.first - 1;
    else
        *next = range.last + 1;
    return range;
}

static int salvage_hole_add(struct salvage *v, const struct hole_spec *spec)
{
    struct hole_spec *more = realloc(v->holes, (v->hole_count + 1) * sizeof(*more));

    if (!more)
        return SPOOL_E_NOMEM;
    v->holes = more;
    v->holes[v->hole_count++] = *spec;
    return SPOOL_OK;
}

/* Of an origin, offsets from first to last, where nothing stands for them; refills: that had them. */
static int salvage_hole(struct salvage *v, const struct load_job *l, struct origin *o,
                        const struct spool_lost *lost, bool suspect, bool refills)
{
    struct hole_spec spec = {.origin = o,
                             .segment = v->segment->number,
                             .after = l->salvage.end_sequence,
                             .suspect = suspect};
    struct spool_lost left = *lost;
    int64_t next;
    int status = SPOOL_OK;

    if (left.first < 0)
        left.first = 0;
    if (o->committed > left.first) /* all below is acknowledged */
        left.first = o->committed;
    for (; left.first <= left.last && status == SPOOL_OK; left.first = next) {
        struct spool_lost range = first_unanswered(v, o, &left, refills, &next);
        spec.first = range.first;
        spec.last = range.last;
        if (spec.first <= spec.last)
            status = salvage_hole_add(v, &spec);
    }
    return status;
}

static int salvage_holes(struct salvage *v, const struct load_job *l)
{
    const struct spool_salvage *found = &l->salvage;
    struct stream *s = v->stream;
    /* Without a whole segment before it, a hole reaches down to what the group has committed: also over
       what is acknowledged, and of segments that are removed. A letter of what is lost may be a row by now. */
    bool suspect = v->batch_count || l->answered || acked_and_gone(l) || !v->segment->next ||
                   s->replayed || !found->first_sequence ||
                   found->first_segment != found->last_segment;
    int status = SPOOL_OK;

    for (size_t i = 0; i < found->lost_count && status == SPOOL_OK; i++) {
        const struct spool_lost *lost = &found->lost[i];
        struct origin *o = origin_get(s, lost->origin);
        if (!o)
            return SPOOL_E_NOMEM;
        if (o->discard_to >= lost->last)
            continue; /* others have them */
        if (origin_reads_again(o))
            status = salvage_hole(v, l, o, lost, suspect, false);
        else
            lost_elsewhere(v, l, o, lost);
    }
    return status;
}

/* --- refills that are lost ------------------------------------------------------------------ */

/* The refill of the hole that waits and has the offset, or the first above it; NULL: there is none. */
static const struct block *refill_from(const struct hole *h, const struct block *first,
                                       int64_t offset)
{
    const struct block *found = NULL;

    for (const struct block *b = first; b; b = b->next_in_origin)
        if (b->ref.flags & SPOOL_BLOCK_REFILL && b->ref.sequence > h->after &&
            b->ref.last_offset >= offset &&
            (!found || b->ref.first_offset < found->ref.first_offset))
            found = b;
    return found;
}

/*
 * What of a hole was in the spool again, and is not in a refill that waits here: it may have been in
 * the segment. It is read once more, under a hole of its own, since more of the first may be on its
 * way; it may be acknowledged, or stand in a segment that is not loaded yet.
 */
static int refills_of_hole(struct salvage *v, const struct load_job *l, struct origin *o,
                           const struct hole *h)
{
    int status = SPOOL_OK;

    for (int64_t at = h->first, end; at < h->stored && status == SPOOL_OK; at = end) {
        const struct block *b = refill_from(h, o->first, at);
        struct spool_lost lost = {o->id, at, h->stored - 1};
        if (b && b->ref.first_offset <= lost.last)
            lost.last = b->ref.first_offset - 1;
        if (lost.first <= lost.last)
            status = salvage_hole(v, l, o, &lost, true, true);
        end = b ? b->ref.last_offset + 1 : h->stored;
    }
    return status;
}

/* They lie below what their origins hold, so neither offsets nor `high` tell of them. */
static int salvage_refills(struct salvage *v, const struct load_job *l)
{
    const uint64_t last = l->salvage.last_sequence;
    int status = SPOOL_OK;

    for (struct origin *o = v->stream->origins; o; o = o->next)
        for (struct hole *h = o->holes; h && status == SPOOL_OK; h = h->next)
            if ((!last || h->after < last) && origin_reads_again(o) && o->discard_to < h->last)
                status = refills_of_hole(v, l, o, h);
    return status;
}

/* --- batches that name what is lost --------------------------------------------------------- */

static int salvage_batches(struct salvage *v)
{
    size_t n = 0;

    for (struct batch *b = v->stream->batches; b; b = b->next)
        n += b->unresolved && b->segment_number == v->segment->number;
    v->batches = calloc(n + 1, sizeof(struct batch *));
    if (!v->batches)
        return SPOOL_E_NOMEM;
    for (struct batch *b = v->stream->batches; b; b = b->next)
        if (b->unresolved && b->segment_number == v->segment->number)
            v->batches[v->batch_count++] = b;
    return SPOOL_OK;
}

static bool is_tail(const struct segment *g)
{
    while (next_is_damaged(g))
        g = g->next;
    return !g->next;
}

/* Nothing of it is there: its seal is gone. */
static void batch_end(struct batch *b)
{
    for (size_t i = 0; i < b->part_count; i++) /* blocks without rows */
        if (b->parts[i].block->state == BLOCK_SEALED)
            block_set_state(b->stream, b->parts[i].block, BLOCK_WAITING);
    b->segment->scan = b->segment->first;
    batch_remove(b);
}

/*
 * The seal stays for what is there of it, since it may have been sent, and since other seals may have
 * the rest of its blocks. Its token stands for other bytes: what is there is asked about, or counts
 * as possible duplicates, and sealed anew. Until then each start finds it so again.
 */
static void batch_shrink(struct batch *b, uint64_t rows)
{
    b->rows = rows;
    b->token_lost = true;
    b->unresolved = false;
    batch_move(b, BATCH_WAITING);
    batch_ask_later(b);
}

/*
 * What is not there is a hole, and asked about too; but at the end of the stream nothing tells any
 * more which offsets it had, so they come again from Kafka as new ones.
 */
static void batch_salvage(struct batch *b, bool noted)
{
    uint64_t found = rows_found(b);

    if (found < b->rows && !noted && is_tail(b->segment))
        batch_possible_duplicates(b, b->rows - found,
                                  "the newest segment is damaged: what an insert without an answer "
                                  "had of it is read from Kafka as new");
    if (found)
        batch_shrink(b, found);
    else
        batch_end(b);
}

static void salvage_done(void *arg)
{
    struct salvage *v = arg;
    struct stream *s = v->stream;

    for (size_t i = 0; i < v->batch_count; i++)
        batch_salvage(v->batches[i], v->noted);
    v->segment->settling = false;
    segment_check_acked(v->segment);
    holes_ready(s, v->segment->number);
    salvage_free(v);
    stream_advance(s);
}

/* The segment's note, and those of the others that it answers for: they may be loaded when it is gone. */
static size_t salvage_notes(const struct salvage *v, const struct load_job *l,
                            struct salvage_note *notes, struct spool_change *changes)
{
    size_t n = 0;

    for (size_t i = 0; i < l->known_count; i++) {
        const struct load_known *known = &l->known[i];
        bool own = known->segment == v->segment->number;
        int size;

        if (!own && known->segment > v->answers_to)
            break;
        salvage_note_key(v->stream, known->segment, notes[n].key, sizeof(notes[n].key));
        size = snprintf(notes[n].value, sizeof(notes[n].value), "%c %llu %d",
                        own ? SALVAGE_DONE : SALVAGE_ANSWERED, (unsigned long long)known->blocks,
                        v->keeps);
        changes[n] = (struct spool_change){.kind = SPOOL_CHANGE_PUT,
                                           .key = notes[n].key,
                                           .value = notes[n].value,
                                           .value_size = (size_t)size};
        n++;
    }
    return n;
}

static int salvage_commit(struct salvage *v, const struct load_job *l)
{
    struct stream *s = v->stream;
    size_t n = v->hole_count;
    struct spool_change *changes =
        calloc(n + 2 * v->batch_count + l->known_count + 1, sizeof(struct spool_change));
    char(*tokens)[TOKEN_NOTE_SIZE] = calloc(v->batch_count + 1, sizeof(*tokens));
    struct salvage_note *notes = calloc(l->known_count + 1, sizeof(*notes));
    char *memory = NULL;
    int status = SPOOL_E_NOMEM;

    if (changes && tokens && notes)
        status = holes_plan(v->holes, v->hole_count, changes, &memory);
    if (status == SPOOL_OK) {
        n += salvage_notes(v, l, notes, &changes[n]);
        for (size_t i = 0; i < v->batch_count; i++) {
            if (rows_found(v->batches[i]))
                continue;
            changes[n++] = (struct spool_change){.kind = SPOOL_CHANGE_UNSEAL,
                                                 .stream = s->id,
                                                 .batch = v->batches[i]->id,
                                                 .segment = v->segment->number};
            n += batch_token_forget(v->batches[i], tokens[i], &changes[n]);
        }
        /* At once, so that Kafka is not told of what lies behind them; read when it is durable. */
        holes_link(v->holes, v->hole_count);
        v->segment->settling = true;
        status = meta_changes(s->p, changes, n, salvage_done, v, s);
    }
    free(memory);
    free(notes);
    free(tokens);
    free(changes);
    return status;
}

/* What was found damaged when the segment before it was looked at. */
static void row_is_damaged(struct segment *g, const struct load_job *l)
{
    while ((g = g->next) && g->number <= l->salvage.last_segment)
        if (!g->loaded)
            g->damaged = true;
}

/* Plans what is lost with a damaged segment. */
static int salvage_lost(struct salvage *v, const struct load_job *l)
{
    int status;

    if (l->answered && !l->changed)
        return SPOOL_OK;
    v->noted = false;
    v->answers_to = l->salvage.last_segment;
    if (nothing_lost(v, l))
        return SPOOL_OK;
    status = salvage_holes(v, l);
    return status == SPOOL_OK ? salvage_refills(v, l) : status;
}

void segment_salvaged(struct stream *s, struct segment *g, const struct load_job *l)
{
    struct salvage *v = calloc(1, sizeof(*v));
    int status = v ? SPOOL_OK : SPOOL_E_NOMEM;

    if (l->damaged)
        row_is_damaged(g, l);
    if (v) {
        v->stream = s;
        v->segment = g;
        v->noted = l->noted;
        v->keeps = l->kept;
        status = salvage_batches(v);
    }
    if (status == SPOOL_OK && g->damaged)
        status = salvage_lost(v, l);
    if (status == SPOOL_OK && g->damaged) {
        s->damaged_blocks++;
        metrics_add(s->p->metrics, METRIC_DAMAGED_BLOCKS, 1, s->options->name);
        log_event(LOG_ERROR, "segment.damaged", "stream", s->options->name, "segment",
                  log_u64(g->number), "reason", l->error.text, "blocks_found",
                  log_u64(l->ref_count), "ranges_lost", log_u64(v->hole_count), "action",
                  "what is there is delivered; what Kafka has of the rest is read again", NULL);
    }
    if (status == SPOOL_OK && (v->hole_count || v->batch_count || (g->damaged && !v->noted)))
        status = salvage_commit(v, l);
    else if (v && status == SPOOL_OK)
        salvage_free(v);
    if (status != SPOOL_OK)
        pipeline_fatal(s->p, "out of memory while a damaged segment is dealt with");
}
