/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A segment that was found damaged when it was loaded. Its blocks that can still be found are
 * delivered as any others, each being checked before it is sent. What it held beside them becomes
 * holes (hole.c). A seal that names lost blocks stands for those that are there; where there are
 * none, the commit that notes the holes ends it. A note says that this was done, so that a restart
 * does not do it again:
 *
 *   salvaged/<stream id>/<segment>
 *
 * The file goes when its blocks are acknowledged, unless it may hold rows that nobody else has.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "pipeline/segment_load_int.h"

struct salvage {
    struct stream *stream;
    struct segment *segment;
    struct hole_spec *holes;
    size_t hole_count;
    struct batch **batches; /* that name blocks which are not there */
    size_t batch_count;
    bool noted; /* this was done before */
};

void salvage_note_key(const struct stream *s, uint64_t segment, char *key, size_t size)
{
    snprintf(key, size, "salvaged/%u/%llu", s->id, (unsigned long long)segment);
}

void salvage_forget(struct stream *s, uint64_t segment)
{
    char key[64];
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

/* Then it answers for that one too: what lies between intact segments is known as one range. */
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
    return !next_is_damaged(v->segment) && found->first_sequence && found->last_sequence &&
           found->last_sequence + 1 - found->first_sequence == l->ref_count + acked_and_gone(l);
}

static void lost_elsewhere(struct stream *s, struct segment *g, const struct origin *o,
                           const struct spool_lost *lost)
{
    g->kept = !g->missing;
    log_event(LOG_ERROR, "rows.damaged", "stream", s->options->name, "origin",
              o->name ? o->name : "", "first", log_i64(lost->first), "last", log_i64(lost->last),
              "segment", log_u64(g->number), "action",
              g->missing
                  ? "they can't be read again: unless they were delivered before, they are lost "
                    "with the file"
                  : "they can't be read again; the damaged segment stays for whoever can mend it",
              NULL);
}

static int salvage_holes(struct salvage *v, const struct load_job *l)
{
    const struct spool_salvage *found = &l->salvage;
    struct stream *s = v->stream;
    bool suspect =
        v->batch_count || acked_and_gone(l) || !v->segment->next || next_is_damaged(v->segment);

    v->holes = calloc(found->lost_count + 1, sizeof(*v->holes));
    if (!v->holes)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < found->lost_count; i++) {
        const struct spool_lost *lost = &found->lost[i];
        struct origin *o = origin_get(s, lost->origin);
        struct hole_spec spec = {.origin = o,
                                 .first = lost->first < 0 ? 0 : lost->first,
                                 .last = lost->last,
                                 .segment = v->segment->number,
                                 .after = found->end_sequence,
                                 .suspect = suspect};
        if (!o)
            return SPOOL_E_NOMEM;
        if (o->discard_to >= lost->last)
            continue; /* others have them */
        if (!origin_reads_again(o)) {
            lost_elsewhere(s, v->segment, o, lost);
            continue;
        }
        if (o->committed > spec.first) /* all below is acknowledged */
            spec.first = o->committed;
        if (spec.first <= spec.last)
            v->holes[v->hole_count++] = spec;
    }
    return SPOOL_OK;
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

static int salvage_commit(struct salvage *v)
{
    struct stream *s = v->stream;
    struct spool_change *changes =
        calloc(v->hole_count + 2 * v->batch_count + 1, sizeof(struct spool_change));
    char(*tokens)[TOKEN_NOTE_SIZE] = calloc(v->batch_count + 1, sizeof(*tokens));
    char *notes = NULL, key[64];
    size_t n = v->hole_count;
    int status = SPOOL_E_NOMEM;

    if (changes && tokens)
        status = holes_plan(v->holes, v->hole_count, changes, &notes);
    if (status == SPOOL_OK) {
        salvage_note_key(s, v->segment->number, key, sizeof(key));
        changes[n++] = (struct spool_change){
            .kind = SPOOL_CHANGE_PUT, .key = key, .value = "1", .value_size = 1};
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
    free(notes);
    free(tokens);
    free(changes);
    return status;
}

void segment_salvaged(struct stream *s, struct segment *g, const struct load_job *l)
{
    struct salvage *v = calloc(1, sizeof(*v));
    int status = v ? SPOOL_OK : SPOOL_E_NOMEM;

    if (v) {
        v->stream = s;
        v->segment = g;
        v->noted = l->noted;
        status = salvage_batches(v);
    }
    if (status == SPOOL_OK && g->damaged && !l->noted && !nothing_lost(v, l))
        status = salvage_holes(v, l);
    if (status == SPOOL_OK && g->damaged) {
        s->damaged_blocks++;
        metrics_add(s->p->metrics, METRIC_DAMAGED_BLOCKS, 1, s->options->name);
        log_event(LOG_ERROR, "segment.damaged", "stream", s->options->name, "segment",
                  log_u64(g->number), "reason", l->error.text, "blocks_found",
                  log_u64(l->ref_count), "ranges_lost", log_u64(v->hole_count), "action",
                  "what is there is delivered; what Kafka has of the rest is read again", NULL);
    }
    if (status == SPOOL_OK && (v->hole_count || v->batch_count || (g->damaged && !l->noted)))
        status = salvage_commit(v);
    else if (v && status == SPOOL_OK)
        salvage_free(v);
    if (status != SPOOL_OK)
        pipeline_fatal(s->p, "out of memory while a damaged segment is dealt with");
}
