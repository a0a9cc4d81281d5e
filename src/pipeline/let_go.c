/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partitions that are taken away, and batches that have rows of them: which are waited for.
 *
 * Until a revocation is answered the client fetches nothing of any partition. So only what can come to
 * its end is waited for: what is under way, and what an endpoint will be sent or asked in time. A batch
 * in an outage, in a held or paused stream, or whose next attempt is far away, is not.
 */
#include "base/clock.h"
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
