/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which server an attempt goes to. Endpoints are servers of their own unless proved otherwise, so
 * rows that may be in one of them must not be sent to another:
 *
 *   nothing of it was ever sent          the first endpoint that is up; sealed anew where that is
 *                                        not the one in its seal, so that a restart knows it too
 *   an attempt's outcome is unknown      its own endpoint only, however long that is away. It takes
 *                                        no slot meanwhile: the stream flows on to the others
 *   ... and both are one table's         any of them, the same bytes under the same token: replicas
 *   replicas (one zookeeper_path)        share what they remember of tokens
 *   ... and its endpoint refuses to be   a replica, by the token where it tells; else it is asked, and
 *   asked about it                       believed if it has all rows. Otherwise it waits by itself,
 *                                        or, without another endpoint, holds the stream
 *   its endpoint is up and its table     it waits by itself until that takes rows again
 *   there takes no such rows
 *   its endpoint is not configured any   the first that is up. The table there is asked, where that
 *   more                                 can be; what it lacks may be in the other one, and is sent
 *                                        as possible duplicates
 *
 * An endpoint may be up and take no rows: its disk is full, the table is read-only there, we may not
 * insert. A stream that was refused so for PATIENCE_MS avoids the endpoint while another one is up,
 * and comes back for one attempt after AVOID_FIRST_MS, then ever less often. Each stream for itself,
 * since each has another table. Until it takes rows again, one batch is there at a time. Rows that
 * may be in the endpoint stay with it as above: they are asked about, or tried there alone.
 */
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define PATIENCE_MS    5000
#define AVOID_FIRST_MS 10000
#define AVOID_MAX_MS   300000

bool batch_replicated_at(const struct batch *b, int endpoint)
{
    const struct target *t = batch_schema(b)->target;
    const struct table_description *there = target_description(t, endpoint);
    char name[256];

    return there && there->deduplicates && !batch_asks_no_deduplication(b) && !b->suspect &&
           there->replica_path && b->replica_path &&
           !partition_drift(there, batch_schema(b)->schema, name, sizeof(name)) &&
           strcmp(there->replica_path, b->replica_path) == 0 && !b->token_lost &&
           batch_token_young(b, there);
}

static bool endpoint_is_up(const struct clickhouse *ch, int endpoint)
{
    struct endpoint_status status;

    clickhouse_endpoint_status(ch, (size_t)endpoint, &status);
    return status.state == ENDPOINT_UP;
}

/* --- patience ------------------------------------------------------------------------------- */

static bool stream_avoids(const struct stream *s, int endpoint)
{
    return endpoint >= 0 && s->patience[endpoint].avoid_until_ms;
}

/* Another endpoint that is up and not avoided; -1: none. */
static int stream_other_endpoint(const struct stream *s, int than)
{
    for (int i = 0; i < (int)clickhouse_endpoints(s->p->clickhouse); i++)
        if (i != than && !stream_avoids(s, i) && endpoint_is_up(s->p->clickhouse, i))
            return i;
    return -1;
}

int stream_pick(const struct stream *s)
{
    int pick = clickhouse_pick(s->p->clickhouse);
    int other = stream_avoids(s, pick) ? stream_other_endpoint(s, pick) : -1;

    return other >= 0 ? other : pick;
}

bool endpoint_refused(struct stream *s, int endpoint, const char *why)
{
    struct endpoint_patience *e = &s->patience[endpoint];
    uint64_t now = clock_monotonic_ms();
    struct endpoint_status status;

    if (!e->since_ms)
        e->since_ms = now;
    if (stream_avoids(s, endpoint) || stream_other_endpoint(s, endpoint) < 0 ||
        (now - e->since_ms < PATIENCE_MS && !e->avoid_ms))
        return false;
    e->avoid_ms = e->avoid_ms ? 2 * e->avoid_ms : AVOID_FIRST_MS;
    if (e->avoid_ms > AVOID_MAX_MS)
        e->avoid_ms = AVOID_MAX_MS;
    e->avoid_until_ms = now + e->avoid_ms;
    clickhouse_endpoint_status(s->p->clickhouse, (size_t)endpoint, &status);
    log_event(LOG_WARN, "endpoint.avoided", "stream", s->options->name, "endpoint", status.url,
              "for_ms", log_u64(e->avoid_ms), "reason", why, NULL);
    for (struct batch *b = s->batches; b; b = b->next)
        if (b->endpoint == endpoint && !b->maybe_stored)
            b->retry_at_ms = 0;
    s->probe = NULL;
    stream_unhold(s, HOLD_ANSWER);
    return true;
}

void endpoint_took_rows(struct stream *s, int endpoint)
{
    s->patience[endpoint] = (struct endpoint_patience){0};
}

void endpoints_forgive(struct stream *s)
{
    uint64_t now = clock_monotonic_ms();

    for (size_t i = 0; i < clickhouse_endpoints(s->p->clickhouse); i++) {
        struct endpoint_status status;
        if (!s->patience[i].avoid_until_ms || s->patience[i].avoid_until_ms > now)
            continue;
        s->patience[i].avoid_until_ms = 0;
        clickhouse_endpoint_status(s->p->clickhouse, i, &status);
        log_event(LOG_INFO, "endpoint.tried_again", "stream", s->options->name, "endpoint",
                  status.url, NULL);
    }
}

/* Whether b is under way to the endpoint, or (queued) would be next. */
static bool batch_is_at(const struct batch *b, int endpoint, bool queued)
{
    switch (b->state) {
    case BATCH_SENDING:
        return b->sent_to == endpoint;
    case BATCH_SEALING:
    case BATCH_CHECKING:
        return b->endpoint == endpoint;
    case BATCH_WAITING:
        return queued && b->endpoint == endpoint && !b->maybe_stored && !b->unreadable;
    default:
        return false;
    }
}

bool endpoint_has_room(const struct stream *s, int endpoint, const struct batch *batch)
{
    const struct endpoint_patience *e = &s->patience[endpoint];

    if (!e->avoid_ms || e->avoid_until_ms) /* nothing is being tried out */
        return true;
    for (const struct batch *b = s->batches; b; b = b->next)
        if (b != batch && batch_is_at(b, endpoint, !batch))
            return false;
    return true;
}

uint64_t endpoints_deadline_ms(const struct stream *s)
{
    uint64_t first = 0;

    for (size_t i = 0; i < clickhouse_endpoints(s->p->clickhouse); i++) {
        uint64_t at = s->patience[i].avoid_until_ms;
        if (at && (!first || at < first))
            first = at;
    }
    return first;
}

/* --- replicas -------------------------------------------------------------------------------- */

static bool batch_is_in_table_of(const struct batch *b, int endpoint)
{
    const struct table_description *t = target_description(batch_schema(b)->target, endpoint);

    return t && t->replica_path && b->replica_path &&
           strcmp(t->replica_path, b->replica_path) == 0 && ask_by_origin(batch_schema(b), t);
}

void batch_know_replicas(const struct batch *b)
{
    const struct stream *s = b->stream;

    for (int i = 0; i < (int)clickhouse_endpoints(s->p->clickhouse); i++)
        if (i != b->endpoint && endpoint_is_up(s->p->clickhouse, i))
            (void)target_at(batch_schema(b)->target, i);
}

int batch_replica(const struct batch *b, bool by_token)
{
    const struct stream *s = b->stream;

    for (int i = 0; i < (int)clickhouse_endpoints(s->p->clickhouse); i++)
        if (i != b->endpoint && endpoint_is_up(s->p->clickhouse, i) && !stream_avoids(s, i) &&
            (by_token ? batch_replicated_at(b, i) : batch_is_in_table_of(b, i)))
            return i;
    return -1;
}

bool batch_waits_aside(const struct batch *b)
{
    return b->maybe_stored && b->unaskable && b->endpoint >= 0 &&
           stream_other_endpoint(b->stream, b->endpoint) >= 0;
}

/* --- where to ------------------------------------------------------------------------------- */

int batch_endpoint(const struct batch *b)
{
    const struct stream *s = b->stream;
    const struct clickhouse *ch = s->p->clickhouse;
    int pick = stream_pick(s);
    int replica =
        b->maybe_stored && b->unaskable && b->state != BATCH_LOADING ? batch_replica(b, true) : -1;

    if (replica >= 0)
        return replica;
    if (!b->maybe_stored || b->endpoint < 0 || b->endpoint == pick)
        return pick;
    if (endpoint_is_up(ch, b->endpoint) && !stream_avoids(s, b->endpoint))
        return b->endpoint;
    if (pick >= 0 && b->state != BATCH_LOADING && batch_replicated_at(b, pick))
        return pick;
    return endpoint_is_up(ch, b->endpoint) ? b->endpoint : -1;
}

bool batch_avoided(const struct batch *b)
{
    return b->maybe_stored && stream_avoids(b->stream, b->endpoint) &&
           stream_pick(b->stream) != b->endpoint;
}

/* Why the table at its endpoint takes none of it, where new work goes to another; NULL: it may. */
static const char *batch_unfit(const struct batch *b, int endpoint)
{
    return b->maybe_stored && b->state == BATCH_WAITING && endpoint == b->endpoint
               ? target_unfit_at(batch_schema(b)->target, endpoint)
               : NULL;
}

bool batch_parked(const struct batch *b)
{
    int endpoint;

    if (b->unreadable && b->state == BATCH_WAITING)
        return true;
    if ((b->state != BATCH_WAITING && b->state != BATCH_LOADING) || b->busy ||
        stream_pick(b->stream) < 0)
        return false;
    if (batch_is_gone(b))
        return true;
    endpoint = batch_endpoint(b);
    return endpoint < 0 || batch_avoided(b) || batch_unfit(b, endpoint) ||
           (endpoint == b->endpoint && batch_waits_aside(b));
}

unsigned batches_counted(const struct stream *s)
{
    unsigned n = 0;

    for (const struct batch *b = s->batches; b; b = b->next)
        n += !batch_parked(b);
    return n;
}

static void batch_log_parked(const struct batch *b, const char *unfit)
{
    const struct stream *s = b->stream;
    struct endpoint_status home;
    char reason[1200];

    clickhouse_endpoint_status(s->p->clickhouse, (size_t)b->endpoint, &home);
    if (unfit)
        snprintf(
            reason, sizeof(reason),
            "it may have these rows, and its table takes none (%s): they wait for it, others go "
            "on elsewhere",
            unfit);
    else
        snprintf(reason, sizeof(reason), "%s",
                 b->unaskable
                     ? "it may have these rows, and would not be asked for them: they wait for that"
                     : "it may have these rows, and is down or takes none: they wait for it, "
                       "others go on elsewhere");
    log_event(LOG_WARN, "batch.waits_for_endpoint", "stream", s->options->name, "batch",
              log_u64(b->id), "rows", log_u64(b->rows), "endpoint", home.url, "reason", reason,
              NULL);
}

void batches_log_parked(struct stream *s)
{
    for (struct batch *b = s->batches; b; b = b->next) {
        const char *unfit;
        if (!batch_parked(b) || b->unreadable || batch_is_gone(b))
            continue;
        unfit = batch_unfit(b, batch_endpoint(b));
        if (unfit ? b->unfit_logged : b->waits_logged)
            continue;
        b->waits_logged = true;
        b->unfit_logged = unfit != NULL;
        batch_log_parked(b, unfit);
    }
}

void batch_rehome(struct batch *b)
{
    struct row_span all = {0, b->rows};
    struct span_group group = {.spans = &all, .count = 1};

    if (batch_replace(b, NULL, 0, &group, 1, NULL) != SPOOL_OK)
        pipeline_fatal(b->stream->p, "out of memory while sealing a batch anew");
}
