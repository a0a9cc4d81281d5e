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
#include "base/log.h"
#include "pipeline/pipeline_int.h"

struct replace {
    struct stream *stream;
    struct batch *old;
    struct part *acked;
    size_t acked_count;
    struct batch **made;
    size_t made_count;
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
    free(r);
}

static void replaced(void *arg)
{
    struct replace *r = arg;
    struct stream *s = r->stream;
    struct segment *g = r->old->segment;
    void (*done)(struct stream * stream) = r->done;

    /* Blocks without rows belong to no span: they go with the old seal. */
    for (size_t i = 0; i < r->old->part_count; i++)
        if (r->old->parts[i].rows == 0)
            part_acked(s, g, &r->old->parts[i]);
    for (size_t i = 0; i < r->acked_count; i++) {
        struct origin *o = r->acked[i].block->origin;
        part_acked(s, g, &r->acked[i]);
        origin_commit(o);
    }
    for (size_t i = 0; i < r->made_count; i++) {
        buf_free(&r->made[i]->attributes);
        batch_move(r->made[i], BATCH_WAITING);
    }
    batch_remove(r->old);
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
    int endpoint = old->endpoint >= 0 ? old->endpoint : 0;

    if (batch_parts(old, group->spans, group->count, &parts, &count) != SPOOL_OK)
        return NULL;
    b = batch_new(r->stream, count);
    if (!b)
        goto done;
    memcpy(b->parts, parts, count * sizeof(*parts));
    b->part_count = count;
    b->segment = old->segment;
    b->backoff = old->backoff;
    b->schema_failures = old->schema_failures;
    b->retry_at_ms = old->retry_at_ms;
    for (size_t i = 0; i < count; i++) {
        const struct spool_block_ref *ref = &parts[i].block->ref;
        b->rows += parts[i].rows;
        b->raw_bytes += ref->raw_bytes * parts[i].rows / ref->rows;
    }
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

int batch_replace(struct batch *b, const struct row_span *acked, size_t acked_count,
                  const struct span_group *seals, size_t seal_count, void (*done)(struct stream *s))
{
    struct stream *s = b->stream;
    struct replace *r = calloc(1, sizeof(*r));
    struct spool_change *changes = calloc(seal_count + 2, sizeof(*changes));
    struct spool_range *ranges = NULL;
    size_t n = 0, range_count = 0;
    int status = SPOOL_E_NOMEM;

    if (!r || !changes)
        goto fail;
    r->stream = s;
    r->old = b;
    r->done = done;
    r->made = calloc(seal_count ? seal_count : 1, sizeof(struct batch *));
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
    changes[n++] = (struct spool_change){
        .kind = SPOOL_CHANGE_UNSEAL, .stream = s->id, .batch = b->id, .segment = b->segment_number};
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
                                             .seal = &r->made[i]->seal};
        batch_link(s, r->made[i]);
    }
    b->busy = true;
    log_event(LOG_INFO, "batch.replaced", "stream", s->options->name, "batch", log_u64(b->id),
              "rows", log_u64(b->rows), "by", log_u64(seal_count), "first",
              seal_count ? log_u64(r->made[0]->id) : "", NULL);
    status = meta_changes(s->p, changes, n, replaced, r, s);
    free(ranges);
    free(changes);
    return status;

fail:
    for (size_t i = 0; r && r->made && i < r->made_count; i++)
        batch_free(r->made[i]);
    if (r)
        replace_free(r);
    free(ranges);
    free(changes);
    return status;
}
