/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partitions that are taken away, and batches that have rows of them: which are waited for.
 *
 * Until a revocation is answered the client fetches nothing of any partition. So only what can come to
 * its end is waited for: what is under way, and what an endpoint will be sent or asked in time. A batch
 * in an outage, in a held or paused stream, or whose next attempt is far away, is not.
 *
 * Rows of a partition that went, and that are known not to be stored, are another instance's to send.
 * Their batch does not start, and its seal is replaced:
 *
 *   rows of partitions that are ours      sealed anew
 *   whole blocks of a partition that went wait unsealed, as what was never sealed
 *   pieces of such blocks                 the rest is stored, or elsewhere: a seal of their own, that
 *                                         waits for the partition; so blocks whose rows may have letters
 *   what another consumer committed past  acknowledged, unsent
 *
 * A batch that may be stored goes on, under its token or asked about, while one of its partitions is
 * ours: those rows are nobody else's to send. Where all of them went it waits. Whoever has them now began
 * at what the group has committed, before these rows, so an attempt of ours can only double them; and a
 * restart that finds the seal knows no more than that. It waits until a partition is back without a commit
 * past it, or until commits lie behind all of its rows, and then it is done with.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define MOMENTS_MS                                                                                 \
    15000 /* what an endpoint that went down has to come back, and its table to be known */

/* The batch's endpoint went down or came up only just. What was cut off there is mostly a restart or a
   connection, and soon over. */
static bool endpoint_just_changed(const struct batch *b, uint64_t now)
{
    struct endpoint_status status;

    if (b->endpoint < 0)
        return false;
    clickhouse_endpoint_status(b->stream->p->clickhouse, (size_t)b->endpoint, &status);
    return status.since_ms && now - status.since_ms < MOMENTS_MS;
}

/* When it goes on by itself, at the earliest. */
static uint64_t batch_due_ms(const struct batch *b, int endpoint)
{
    return !b->answered && batch_must_ask(b, endpoint) && b->ask_from_ms > b->retry_at_ms
               ? b->ask_from_ms
               : b->retry_at_ms;
}

bool batch_ends_by(const struct batch *b, uint64_t until_ms)
{
    const struct stream *s = b->stream;
    uint64_t now = clock_monotonic_ms();
    int endpoint;

    if (b->state == BATCH_LOADING)
        return false;
    if (b->state != BATCH_WAITING)
        return true;
    if (b->busy)
        return b->maybe_stored;
    if (s->paused || s->holds[HOLD_ANSWER] || batch_waits_aside(b))
        return false;
    endpoint = batch_may_go(b);
    if (!b->maybe_stored)
        return endpoint >= 0 && b->retry_at_ms <= now;
    return endpoint >= 0 ? batch_due_ms(b, endpoint) < until_ms : endpoint_just_changed(b, now);
}

/* --- what is let go -------------------------------------------------------------------------- */

enum fate { FATE_SEALED_ANEW, FATE_UNSEALED, FATE_KEPT, FATE_DISCARDED, FATES };

static bool origin_is_gone(const struct origin *o)
{
    return o->kafka && !o->owned && (!o->revoking || o->lost);
}

/* Parts that are gone, and those that are not; a block without rows sends nothing, and goes with the
   seal. */
static void batch_count_gone(const struct batch *b, size_t *gone, size_t *ours)
{
    *gone = *ours = 0;
    for (size_t i = 0; i < b->part_count; i++)
        if (b->parts[i].rows)
            ++*(origin_is_gone(b->parts[i].block->origin) ? gone : ours);
}

bool batch_partly_gone(const struct batch *b)
{
    size_t gone, ours;

    batch_count_gone(b, &gone, &ours);
    return gone && ours;
}

bool batch_is_gone(const struct batch *b)
{
    const struct stream *s = b->stream;
    size_t gone, ours;

    if (b->state != BATCH_WAITING && b->state != BATCH_CHECKING)
        return false;
    batch_count_gone(b, &gone, &ours);
    if (!gone || !b->maybe_stored)
        return gone > 0;
    return ours ? kafka_assign_under_way(s) : kafka_in_knows_owners(s->p);
}

static enum fate part_fate(const struct batch *b, const struct part *part)
{
    const struct block *block = part->block;
    bool lettered = b->lettered && b->stream->dead_letters; /* a new seal would not know */

    if (!origin_is_gone(block->origin))
        return FATE_SEALED_ANEW;
    if (block_discarded(block, NULL))
        return FATE_DISCARDED;
    return part->rows == block->ref.rows && !lettered ? FATE_UNSEALED : FATE_KEPT;
}

struct fates {
    struct row_span *spans[FATES];
    size_t count[FATES];
    struct block **unsealed;
    size_t unsealed_count;
};

static bool fates_of(const struct batch *b, struct fates *f)
{
    uint64_t at = 0;

    *f = (struct fates){.unsealed = calloc(b->part_count, sizeof(struct block *))};
    for (size_t i = 0; i < FATES; i++) {
        f->spans[i] = calloc(b->part_count, sizeof(struct row_span));
        if (!f->spans[i])
            return false;
    }
    if (!f->unsealed)
        return false;
    for (size_t i = 0; i < b->part_count; i++) {
        const struct part *part = &b->parts[i];
        enum fate fate = part_fate(b, part);
        if (!part->rows) /* it goes with the seal */
            continue;
        f->spans[fate][f->count[fate]++] = (struct row_span){at, part->rows};
        if (fate == FATE_UNSEALED)
            f->unsealed[f->unsealed_count++] = part->block;
        at += part->rows;
    }
    assert(at == b->rows);
    return true;
}

static int batch_let_go(struct batch *b)
{
    struct span_group seals[2];
    struct fates f;
    size_t n = 0;
    int status = SPOOL_E_NOMEM;

    if (fates_of(b, &f)) {
        if (f.count[FATE_SEALED_ANEW])
            seals[n++] = (struct span_group){.spans = f.spans[FATE_SEALED_ANEW],
                                             .count = f.count[FATE_SEALED_ANEW]};
        if (f.count[FATE_KEPT])
            seals[n++] =
                (struct span_group){.spans = f.spans[FATE_KEPT], .count = f.count[FATE_KEPT]};
        status = SPOOL_OK;
        if (n != 1 || f.unsealed_count || f.count[FATE_DISCARDED]) /* else it only waits */
            status = batch_replace_unsealing(b, f.spans[FATE_DISCARDED], f.count[FATE_DISCARDED],
                                             seals, n, f.unsealed, f.unsealed_count);
    }
    for (size_t i = 0; i < FATES; i++)
        free(f.spans[i]);
    free(f.unsealed);
    return status;
}

/* --- what is settled ------------------------------------------------------------------------- */

/* A commit lies behind all its rows: they are in, whatever became of the attempt. */
static bool batch_is_settled(const struct batch *b)
{
    for (size_t i = 0; i < b->part_count; i++)
        if (b->parts[i].rows && !block_settled(b->parts[i].block))
            return false;
    return b->rows > 0;
}

static int batch_settle(struct batch *b)
{
    struct row_span all = {0, b->rows};

    log_event(LOG_INFO, "batch.settled", "stream", b->stream->options->name, "batch",
              log_u64(b->id), "rows", log_u64(b->rows), "reason",
              "the group's committed offset lies behind its rows: they are not sent", NULL);
    return batch_replace(b, &all, 1, NULL, 0, NULL);
}

void batches_let_go(struct stream *s)
{
    struct batch *next;

    if (s->p->fatal || s->p->closing || !s->p->started)
        return;
    for (struct batch *b = s->batches; b; b = next) { /* what is made comes behind */
        int status = SPOOL_OK;
        next = b->next;
        if (b->state != BATCH_WAITING || b->busy)
            continue;
        if (batch_is_settled(b))
            status = batch_settle(b);
        else if (!b->maybe_stored && batch_is_gone(b))
            status = batch_let_go(b);
        if (status != SPOOL_OK)
            pipeline_fatal(s->p, "out of memory while a partition goes");
    }
}
