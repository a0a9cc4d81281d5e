/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A seal never changes; what must change is replaced. In one commit the old seal goes, rows that
 * are known to be in (or in the dead letters) are acknowledged, and the rest is sealed anew under
 * tokens of their own. A crash before the commit leaves the old seal, and the same finding out
 * starts again; a crash after it leaves the new ones.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

struct replace {
    struct stream *stream;
    struct batch *old;
    struct part *acked;
    size_t acked_count;
    struct batch **made;
    size_t made_count;
    struct hole_spec *holes;
    size_t hole_count;
    struct block **unsealed;
    size_t unsealed_count;
    void (*done)(struct stream *s);
};

int batch_parts(const struct batch *b, const struct row_span *spans, size_t count,
                struct part **parts, size_t *part_count)
{
    struct part *out = calloc(b->part_count + count + 1, sizeof(*out));
    uint64_t base = 0; /* rows of the batch before parts[i] */
    size_t n = 0, i = 0;

    if (!out)
        return SPOOL_E_NOMEM;
    for (size_t k = 0; k < count; k++) {
        uint64_t at = spans[k].first, end = spans[k].first + spans[k].count;
        assert(end <= b->rows);
        while (at < end) {
            const struct part *p = &b->parts[i];
            uint64_t skip, take;
            if (at >= base + p->rows) {
                base += p->rows;
                i++;
                continue;
            }
            skip = at - base;
            take = end - at < p->rows - skip ? end - at : p->rows - skip;
            out[n++] = (struct part){p->block, p->row + (uint32_t)skip, (uint32_t)take};
            at += take;
        }
    }
    *parts = out;
    *part_count = n;
    return SPOOL_OK;
}

static void replace_free(struct replace *r)
{
    free(r->acked);
    free(r->made);
    free(r->holes);
    free(r->unsealed);
    free(r);
}

/* Their origin may have been discarded meanwhile. */
static void replace_unsealed(const struct replace *r, struct segment *g)
{
    if (!r->unsealed_count)
        return;
    for (size_t i = 0; i < r->unsealed_count; i++)
        block_set_state(r->stream, r->unsealed[i], BLOCK_WAITING);
    g->scan = g->first;
    (void)segment_discard(r->stream, g, block_discarded, NULL);
    segment_skip_delivered(r->stream, g);
}

/* The part's block may be gone with it. */
static void replace_acked(struct stream *s, struct segment *g, const struct part *part)
{
    struct origin *o = part->block->origin;

    part_acked(s, g, part);
    origin_commit(o);
}

static void replaced(void *arg)
{
    struct replace *r = arg;
    struct stream *s = r->stream;
    struct segment *g = r->old->segment;
    bool held = s->probe == r->old;
    void (*done)(struct stream * stream) = r->done;

    /* Before Kafka is told of what lies behind them. */
    holes_add(r->holes, r->hole_count);
    /* Blocks without rows belong to no span: they go with the old seal. */
    for (size_t i = 0; i < r->old->part_count; i++)
        if (r->old->parts[i].rows == 0)
            replace_acked(s, g, &r->old->parts[i]);
    for (size_t i = 0; i < r->acked_count; i++)
        replace_acked(s, g, &r->acked[i]);
    replace_unsealed(r, g);
    FAILPOINT(FP_REPLACE_AFTER);
    for (size_t i = 0; i < r->made_count; i++) {
        buf_free(&r->made[i]->attributes);
        batch_move(r->made[i], BATCH_WAITING);
    }
    batch_remove(r->old);
    if (held && r->made_count) /* what it was held for, they are now tried for */
        s->probe = r->made[0];
    else if (held)
        stream_unhold(s, HOLD_ANSWER);
    replace_free(r);
    if (done)
        done(s);
    stream_advance(s);
}

static struct batch *replace_make(struct replace *r, const struct span_group *group)
{
    struct batch *old = r->old, *b;
    struct part *parts = NULL;
    size_t count = 0;
    int endpoint = stream_pick(r->stream);

    /* Where the table there is not known yet, the seal could not say what it needs to: it is sealed
       once more before it goes there. */
    if (endpoint < 0 || !target_description(batch_schema(old)->target, endpoint))
        endpoint = old->endpoint >= 0 ? old->endpoint : endpoint >= 0 ? endpoint : 0;
    if (batch_parts(old, group->spans, group->count, &parts, &count) != SPOOL_OK)
        return NULL;
    b = batch_new(r->stream, count);
    if (!b)
        goto done;
    memcpy(b->parts, parts, count * sizeof(*parts));
    b->part_count = count;
    b->segment = old->segment;
    b->schema = stream_schema_ref(group->schema ? group->schema : old->schema);
    b->halved = old->halved;
    b->accepts_bad = old->accepts_bad;
    b->lettered = old->lettered;
    b->unreadable = group->unreadable;
    b->stall_factor = old->stall_factor;
    b->too_big_failures = old->too_big_failures;
    b->backoff = old->backoff;
    b->schema_failures = old->schema_failures;
    b->upload_failures = old->upload_failures;
    b->unknown_failures = old->unknown_failures;
    b->blind_wait_ms = old->blind_wait_ms;
    b->hunt_after_ms = old->hunt_after_ms;
    b->hunt_wait_ms = old->hunt_wait_ms;
    if (old->refusal && !group->schema) { /* else it was the answer to other bytes */
        if (batch_refusal_set(b, old->refusal) != SPOOL_OK) {
            batch_free(b);
            b = NULL;
            goto done;
        }
        b->refused_alone = old->refused_alone;
    }
    b->retry_at_ms = old->retry_at_ms;
    for (size_t i = 0; i < count; i++) {
        const struct spool_block_ref *ref = &parts[i].block->ref;
        b->rows += parts[i].rows;
        b->raw_bytes += ref->raw_bytes * parts[i].rows / ref->rows;
    }
    if (group->raw_bytes)
        b->raw_bytes = group->raw_bytes;
    if (batch_prepare_seal(b, endpoint) != SPOOL_OK) {
        batch_free(b);
        b = NULL;
    }
done:
    free(parts);
    return b;
}

/* The acknowledged rows as ranges, the rowless blocks of the old seal among them. */
static struct spool_range *replace_ranges(const struct replace *r, size_t *count)
{
    const struct batch *old = r->old;
    struct spool_range *ranges = calloc(r->acked_count + old->part_count + 1, sizeof(*ranges));
    size_t n = 0, k = 0;

    if (!ranges)
        return NULL;
    for (size_t i = 0; i < old->part_count; i++) {
        uint64_t sequence = old->parts[i].block->ref.sequence;
        while (k < r->acked_count && r->acked[k].block->ref.sequence <= sequence) {
            ranges[n++] = (struct spool_range){r->acked[k].block->ref.sequence, r->acked[k].row,
                                               r->acked[k].rows};
            k++;
        }
        if (old->parts[i].rows == 0)
            ranges[n++] = (struct spool_range){sequence, 0, 0};
    }
    assert(k == r->acked_count);
    *count = n;
    return ranges;
}

static int replace_start(struct batch *b, const struct row_span *acked, size_t acked_count,
                         const struct span_group *seals, size_t seal_count,
                         const struct hole_spec *holes, size_t hole_count,
                         struct block *const *unsealed, size_t unsealed_count,
                         void (*done)(struct stream *s))
{
    struct stream *s = b->stream;
    struct replace *r = calloc(1, sizeof(*r));
    struct spool_change *changes = calloc(seal_count + hole_count + 3, sizeof(*changes));
    struct spool_range *ranges = NULL;
    char *notes = NULL, key[TOKEN_NOTE_SIZE];
    size_t n = 0, range_count = 0;
    int status = SPOOL_E_NOMEM;

    if (!r || !changes)
        goto fail;
    r->stream = s;
    r->old = b;
    r->done = done;
    r->made = calloc(seal_count ? seal_count : 1, sizeof(struct batch *));
    r->holes = calloc(hole_count + 1, sizeof(*r->holes));
    r->unsealed = calloc(unsealed_count + 1, sizeof(struct block *));
    if (!r->holes || !r->unsealed)
        goto fail;
    if (unsealed_count)
        memcpy(r->unsealed, unsealed, unsealed_count * sizeof(struct block *));
    r->unsealed_count = unsealed_count;
    if (hole_count)
        memcpy(r->holes, holes, hole_count * sizeof(*holes));
    r->hole_count = hole_count;
    status = batch_parts(b, acked, acked_count, &r->acked, &r->acked_count);
    if (!r->made || status != SPOOL_OK)
        goto fail;
    for (size_t i = 0; i < seal_count; i++) {
        r->made[i] = replace_make(r, &seals[i]);
        status = r->made[i] ? SPOOL_OK : SPOOL_E_NOMEM;
        if (status != SPOOL_OK)
            goto fail;
        r->made_count++;
    }
    ranges = replace_ranges(r, &range_count);
    status = ranges ? SPOOL_OK : SPOOL_E_NOMEM;
    if (status != SPOOL_OK)
        goto fail;
    status = holes_plan(holes, hole_count, changes, &notes);
    if (status != SPOOL_OK)
        goto fail;
    n = hole_count;
    changes[n++] = (struct spool_change){
        .kind = SPOOL_CHANGE_UNSEAL, .stream = s->id, .batch = b->id, .segment = b->segment_number};
    n += batch_token_forget(b, key, &changes[n]);
    if (range_count)
        changes[n++] = (struct spool_change){.kind = SPOOL_CHANGE_DISCARD,
                                             .stream = s->id,
                                             .segment = b->segment_number,
                                             .ranges = ranges,
                                             .range_count = range_count};
    for (size_t i = 0; i < seal_count; i++) {
        changes[n++] = (struct spool_change){.kind = SPOOL_CHANGE_SEAL,
                                             .stream = s->id,
                                             .batch = r->made[i]->id,
                                             .seal = &r->made[i]->seal,
                                             .replaces = true};
        batch_link(s, r->made[i]);
    }
    b->busy = true;
    log_event(LOG_INFO, "batch.replaced", "stream", s->options->name, "batch", log_u64(b->id),
              "rows", log_u64(b->rows), "by", log_u64(seal_count), "first",
              seal_count ? log_u64(r->made[0]->id) : "", NULL);
    FAILPOINT(FP_REPLACE_BEFORE);
    status = meta_changes(s->p, changes, n, replaced, r, s);
    free(notes);
    free(ranges);
    free(changes);
    return status;

fail:
    for (size_t i = 0; r && r->made && i < r->made_count; i++)
        batch_free(r->made[i]);
    if (r)
        replace_free(r);
    free(notes);
    free(ranges);
    free(changes);
    return status;
}

int batch_replace(struct batch *b, const struct row_span *acked, size_t acked_count,
                  const struct span_group *seals, size_t seal_count, void (*done)(struct stream *s))
{
    return replace_start(b, acked, acked_count, seals, seal_count, NULL, 0, NULL, 0, done);
}

int batch_replace_with_holes(struct batch *b, const struct row_span *acked, size_t acked_count,
                             const struct span_group *seals, size_t seal_count,
                             const struct hole_spec *holes, size_t hole_count)
{
    return replace_start(b, acked, acked_count, seals, seal_count, holes, hole_count, NULL, 0,
                         NULL);
}

int batch_replace_unsealing(struct batch *b, const struct row_span *acked, size_t acked_count,
                            const struct span_group *seals, size_t seal_count,
                            struct block *const *unsealed, size_t unsealed_count)
{
    return replace_start(b, acked, acked_count, seals, seal_count, NULL, 0, unsealed,
                         unsealed_count, NULL);
}
