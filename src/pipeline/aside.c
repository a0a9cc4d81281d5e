/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A batch some blocks of which can't be read. Nothing of it was sent by this attempt: every block is
 * checked before the first byte goes. In one commit its seal goes, the damaged rows are done with
 * (holes stand for them from now on, hole.c), and the readable ones are sealed anew. Where an
 * earlier attempt may have stored the batch, the table is asked (ask.c), or the rows go again as
 * possible duplicates.
 *
 * Rows of a source that can't be read again are left in their segment, which therefore stays on
 * disk; they are out of the way until the next start, and found again then. A piece of a block keeps a
 * seal, which is not tried: what is stored of its block would go again without one.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "pipeline/pipeline_int.h"

bool damage_is(int status, const struct spool_error *error)
{
    if (status == SPOOL_E_IO)
        return error->sys_errno == EIO;
    return status == SPOOL_E_CORRUPT || status == SPOOL_E_NEWER || status == SPOOL_E_NOT_FOUND;
}

void damage_find(struct spool_reader *reader, const struct part *parts, size_t count, bool *damaged)
{
    for (size_t i = 0; i < count; i++) {
        struct spool_error error = {0};
        int status =
            reader ? spool_reader_verify(reader, &parts[i].block->ref, &error) : SPOOL_E_CORRUPT;
        damaged[i] = damage_is(status, &error);
    }
}

bool block_is_dense(const struct spool_block_ref *ref)
{
    return (uint64_t)ref->last_offset - (uint64_t)ref->first_offset + 1 == ref->rows;
}

struct aside {
    struct batch *batch;
    bool suspect; /* whether the rows may be stored is not known */
    struct row_span *acked, *good, *kept;
    struct hole_spec *holes;
    size_t acked_count, good_count, kept_count, hole_count;
};

/* Where the offsets of single rows are not known the hole is as wide as the block. */
static void aside_hole(struct aside *a, const struct part *part)
{
    const struct spool_block_ref *ref = &part->block->ref;
    struct hole_spec spec = {.origin = part->block->origin,
                             .first = ref->first_offset,
                             .last = ref->last_offset,
                             .segment = a->batch->segment_number,
                             .sequence = ref->sequence,
                             .after = ref->sequence,
                             .suspect = a->suspect};

    if (block_is_dense(ref)) {
        spec.first = ref->first_offset + (int64_t)part->row;
        spec.last = spec.first + (int64_t)part->rows - 1;
    } else if (part->rows != ref->rows || a->batch->maybe_stored || a->batch->stream->replayed) {
        /* Others of the block may be in, or nobody could be asked; or a letter beside it is a row by now. */
        spec.suspect = true;
    }
    a->holes[a->hole_count++] = spec;
}

/* Counts a damaged block, and names one that is lost here. */
static void aside_count(const struct batch *b, const struct part *part)
{
    const struct spool_block_ref *ref = &part->block->ref;
    const struct origin *o = part->block->origin;
    struct stream *s = b->stream;

    s->damaged_blocks++;
    metrics_add(s->p->metrics, METRIC_DAMAGED_BLOCKS, 1, s->options->name);
    if (!origin_reads_again(o))
        log_event(LOG_ERROR, "rows.damaged", "stream", s->options->name, "origin",
                  o->name ? o->name : "", "first", log_i64(ref->first_offset), "last",
                  log_i64(ref->last_offset), "segment", log_u64(b->segment_number), "action",
                  "nothing of them was sent; they can't be read again, and stay in the segment",
                  NULL);
}

/* Rows [at, at + part->rows) of the batch: part is a piece of one that is all stored or all not. */
static void aside_rows(struct aside *a, uint64_t at, const struct part *part, bool stored,
                       bool damaged)
{
    struct row_span span = {at, part->rows};

    if (!stored && damaged && !origin_reads_again(part->block->origin)) {
        if (part->rows != part->block->ref.rows)
            a->kept[a->kept_count++] = span;
        return;
    }
    if (!stored && !damaged) {
        a->good[a->good_count++] = span;
        return;
    }
    if (!stored)
        aside_hole(a, part);
    a->acked[a->acked_count++] = span;
}

static void aside_sort(struct aside *a, const bool *damaged, const struct row_span *stored,
                       size_t stored_count)
{
    const struct batch *b = a->batch;
    uint64_t begin = 0;
    size_t k = 0;

    for (size_t i = 0; i < b->part_count; i++) {
        const struct part *part = &b->parts[i];
        uint64_t end = begin + part->rows;
        if (damaged[i])
            aside_count(b, part);
        for (uint64_t at = begin, to; at < end; at = to) {
            struct part piece = *part;
            bool is_stored;
            while (k < stored_count && stored[k].first + stored[k].count <= at)
                k++;
            is_stored = k < stored_count && stored[k].first <= at;
            to = k == stored_count ? end
                 : is_stored       ? stored[k].first + stored[k].count
                                   : stored[k].first;
            to = to < end ? to : end;
            piece.row += (uint32_t)(at - begin);
            piece.rows = (uint32_t)(to - at);
            aside_rows(a, at, &piece, is_stored, damaged[i]);
        }
        begin = end;
    }
}

int batch_set_aside(struct batch *b, const bool *damaged, const struct row_span *stored,
                    size_t stored_count, bool suspect)
{
    size_t pieces = b->part_count + 2 * stored_count + 1;
    struct aside a = {.batch = b, .suspect = suspect};
    struct span_group groups[2];
    size_t n = 0;
    int status = SPOOL_E_NOMEM;

    a.acked = calloc(pieces, sizeof(*a.acked));
    a.good = calloc(pieces, sizeof(*a.good));
    a.kept = calloc(pieces, sizeof(*a.kept));
    a.holes = calloc(pieces, sizeof(*a.holes));
    if (a.acked && a.good && a.kept && a.holes) {
        aside_sort(&a, damaged, stored, stored_count);
        if (a.good_count)
            groups[n++] = (struct span_group){.spans = a.good, .count = a.good_count};
        if (a.kept_count)
            groups[n++] =
                (struct span_group){.spans = a.kept, .count = a.kept_count, .unreadable = true};
        status =
            batch_replace_with_holes(b, a.acked, a.acked_count, groups, n, a.holes, a.hole_count);
    }
    free(a.acked);
    free(a.good);
    free(a.kept);
    free(a.holes);
    return status;
}
