/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partitions come and go, and what the Kafka source says on the way. Where one begins is decided by
 * kafka_assign.c.
 *
 * Rows of a partition that is not ours stay in the spool and are not sealed.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define REVOKE_MARGIN_MS 1000  /* we end a revocation so long before the source does */
#define REVOKE_LOOK_MS   500   /* whether what it waits for can still come to its end */
#define GROUP_MS         30000 /* after the start the group's first answer is waited for */
#define ALIVE_MS         1000
#define COMMIT_AGAIN_MS  10000 /* one that was refused */

static void on_assigned(void *arg, struct kafka_partition *partition,
                        const struct kafka_committed *committed, void **user)
{
    *user = NULL;
    kafka_assign(arg, partition, committed, false, false);
}

void kafka_in_adopt(struct origin *o)
{
    if (!o->kafka || o->owned || o->partition || !o->name || o->discard_to == INT64_MAX)
        return;
    o->owned = o->superseded; /* perhaps nobody else has them, whoever has the partition */
    for (const struct origin *other = o->stream->origins; other; other = other->next)
        if (other != o && other->owned && other->epoch > o->epoch && other->name &&
            strcmp(other->name, o->name) == 0)
            o->owned = true; /* an earlier log of a partition that is ours: send what it left */
    if (o->owned && o->first)
        stream_recount(o->stream);
}

static void on_run(void *arg, struct kafka_partition *partition, struct record_run *run)
{
    struct origin *o = kafka_partition_user(partition);

    (void)arg;
    assert(o && o->partition == partition);
    run->origin = o;
    intake_run(o, run, partition);
}

void kafka_in_released(struct pipeline *p, const struct record_run_node *node)
{
    if (node->partition && p->kafka)
        kafka_run_done(p->kafka, node->partition, node->count, node->bytes);
}

/* --- revocation ----------------------------------------------------------------------------- */

static void on_revoking(void *arg, struct kafka_partition *const *partitions, size_t count,
                        bool lost, uint32_t max_ms)
{
    struct pipeline *p = arg;
    uint32_t wait = max_ms > REVOKE_MARGIN_MS ? max_ms - REVOKE_MARGIN_MS : max_ms / 2;

    for (size_t i = 0; i < count; i++) {
        struct origin *o = kafka_partition_user(partitions[i]);
        kafka_assign_gone(p, partitions[i]);
        if (!o || o->partition != partitions[i]) /* it is over, and the next epoch waits */
            continue;
        log_event(LOG_INFO, lost ? "partition.lost" : "partition.revoking", "stream",
                  o->stream->options->name, "origin", o->name, NULL);
        log_trace_free(o);
        o->owned = false;
        o->revoking = true;
        o->lost = lost;
        if (!lost)
            origin_commit(o); /* where the last one was refused */
    }
    for (size_t i = 0; i < p->stream_count; i++)
        stream_recount(&p->streams[i]);
    if (!lost)
        kafka_member_loses(p, true);
    p->revoking = 1;
    p->revoke_deadline_ms = clock_monotonic_ms() + wait;
    uv_timer_start(&p->revoke_timer, kafka_in_revoke_timer,
                   wait < REVOKE_LOOK_MS ? wait : REVOKE_LOOK_MS, REVOKE_LOOK_MS);
    kafka_in_advance(p);
}

/* What is in flight for the origin: in decode, being sent, asked about, acknowledged or committed, and
   what is about to be (let_go.c). Runs of a log that is over are not waited for, since nobody else has
   them; nor are batches sealed before a restart whose blocks, and so whose origins, are not known. */
static bool origin_in_flight(const struct origin *o)
{
    if (o->lost)
        return false;
    if ((o->runs_unreleased && !o->log_over) || o->commit_in_flight)
        return true;
    for (const struct batch *b = o->stream->batches; b; b = b->next) {
        if (!batch_ends_by(b, o->stream->p->revoke_deadline_ms))
            continue;
        for (size_t i = 0; i < b->part_count; i++)
            if (b->parts[i].block->origin == o)
                return true;
    }
    return false;
}

/* Looks once in ALIVE_MS, whatever it finds: it passes over every origin, and is called at every turn of
   the loop. */
static void note_alive(struct pipeline *p)
{
    uint64_t now = clock_monotonic_ms();

    if (!p->kafka || now < p->alive_due_ms)
        return;
    p->alive_due_ms = now + ALIVE_MS;
    if (kafka_source_settled(p->kafka) && !kafka_left_any(p))
        spool_alive(p->spool);
}

/* A commit that was refused for good may be taken later (rights, a topic the broker did not know yet).
   Where nothing else is acknowledged there is no other one, and whoever gets the partition begins at the
   one before. */
static void commit_again(struct pipeline *p)
{
    if (!p->commit_again_ms || clock_monotonic_ms() < p->commit_again_ms)
        return;
    p->commit_again_ms = 0;
    for (size_t i = 0; i < p->stream_count; i++)
        for (struct origin *o = p->streams[i].origins; o; o = o->next)
            origin_commit(o);
}

void kafka_in_advance(struct pipeline *p)
{
    bool late = p->revoking && clock_monotonic_ms() >= p->revoke_deadline_ms;

    kafka_assign_retry(p);
    kafka_left_look(p);
    note_alive(p);
    commit_again(p);
    if (!p->revoking || (p->member_noting && !late && !p->meta_retry_at_ms))
        return;
    for (size_t i = 0; i < p->stream_count; i++)
        for (struct origin *o = p->streams[i].origins; o; o = o->next)
            if (o->revoking && !late && origin_in_flight(o))
                return;
    p->revoking = 0;
    uv_timer_stop(&p->revoke_timer);
    for (size_t i = 0; i < p->stream_count; i++)
        for (struct origin *o = p->streams[i].origins; o; o = o->next)
            if (o->revoking) {
                origin_forget_commit(o);
                o->revoking = o->lost = false;
                o->partition = NULL;
                o->committed = -1;
            }
    for (size_t i = 0; i < p->stream_count; i++)
        batches_let_go(&p->streams[i]);
    kafka_revoke_done(p->kafka);
}

void kafka_in_revoke_timer(uv_timer_t *timer)
{
    kafka_in_advance(timer->data);
}

bool kafka_in_knows_owners(const struct pipeline *p)
{
    return p->kafka && (kafka_source_assigned(p->kafka) ||
                        (!p->member_back && clock_monotonic_ms() - p->start_ms < GROUP_MS));
}

/* Whether the group can't have given our partitions away since we were last in it: half of the session,
   since its last heartbeat may have been another half before (kafka_source_settled). */
static bool member_is_back(const struct pipeline *p)
{
    int64_t last = spool_last_alive_ms(p->spool), now = (int64_t)clock_boot_ms();

    return last >= 0 && now >= last &&
           (uint64_t)(now - last) < kafka_source_session_ms(p->kafka) / 2;
}

/* --- the rest ------------------------------------------------------------------------------- */

static void on_gap(void *arg, struct kafka_partition *partition, int64_t from, int64_t to)
{
    struct origin *o = kafka_partition_user(partition);
    struct pipeline *p = arg;

    if (!o || hole_gap(o, from, to))
        return;
    metrics_add(p->metrics, METRIC_GAP_RECORDS, (double)(to - from), o->stream->options->name);
    log_event(LOG_ERROR, "partition.gap", "stream", o->stream->options->name, "origin", o->name,
              "from", log_i64(from), "to", log_i64(to), "reason",
              "the broker no longer has these offsets: they were deleted before they were read",
              NULL);
}

/*
 * The log is another one than was read, as what says: read by policy, or from its beginning where the
 * source has seen another record. With auto_offset_reset "error" an operator says where.
 */
static void another_log(struct origin *o, struct kafka_partition *partition, bool seen,
                        const char *what)
{
    static const struct kafka_committed none = {
        .offset = -1, .metadata = "", .low = -1, .high = -1};

    o->log_over = true;
    if (o->stream->p->kafka_options.auto_offset_reset == KAFKA_RESET_ERROR)
        stream_hold(o->stream, HOLD_KAFKA,
                    "%s: %s, and auto_offset_reset is \"error\": reset the group's offset, then "
                    "restart",
                    o->name, what);
    else
        kafka_assign(o->stream->p, partition, &none, o->taken >= 0, seen);
}

static void on_out_of_range(void *arg, struct kafka_partition *partition, int64_t position)
{
    struct origin *o = kafka_partition_user(partition);
    char what[100];

    (void)arg;
    if (!o)
        return;
    if (o->trace) {
        log_trace_next(o);
        return;
    }
    log_event(LOG_ERROR, "partition.out_of_range", "stream", o->stream->options->name, "origin",
              o->name, "position", log_i64(position), "action",
              o->stream->p->kafka_options.auto_offset_reset == KAFKA_RESET_ERROR
                  ? "the log is another one: the stream is held"
                  : "the log is another one, or was cut: what was read of it is looked for",
              NULL);
    snprintf(what, sizeof(what), "offset %lld is not in the log", (long long)position);
    another_log(o, partition, false, what);
}

static void on_new_log(void *arg, struct kafka_partition *partition, int64_t position)
{
    struct origin *o = kafka_partition_user(partition);
    char what[120];

    (void)arg;
    if (!o)
        return;
    if (o->trace) {
        log_trace_next(o);
        return;
    }
    snprintf(what, sizeof(what),
             "the record before offset %lld is another one than was read, so the log is a new one",
             (long long)position);
    another_log(o, partition, true, what);
}

static void on_traced(void *arg, struct kafka_partition *partition, int64_t offset)
{
    struct origin *o = kafka_partition_user(partition);

    (void)arg;
    if (o && o->trace)
        log_trace_found(o, offset);
}

/*
 * The newest offset was chosen to begin at. Committed at once: until then a restart would choose again,
 * and leave out what came meanwhile; or, where the commit that stands is of an earlier log, read all
 * that was to be left out.
 */
static void on_begun(void *arg, struct kafka_partition *partition, int64_t offset)
{
    struct origin *o = kafka_partition_user(partition);
    const struct pipeline *p = arg;

    if (!o || p->kafka_options.auto_offset_reset != KAFKA_RESET_LATEST)
        return;
    o->taken = offset - 1; /* nothing of this log is held */
    o->mark.known = false;
    if (!o->first && o->front < offset)
        o->front = offset;
    origin_commit(o);
}

/* Whoever was to get what we let go of has it. */
static void on_rebalanced(void *arg)
{
    kafka_member_loses(arg, false);
}

static void on_told(void *arg, const char *topic, int32_t number, int64_t offset,
                    const char *metadata)
{
    kafka_left_told(arg, topic, number, offset, metadata);
}

static void on_fatal(void *arg, const char *text)
{
    pipeline_fatal(arg, "kafka: %s", text);
}

static void on_committed(void *arg, struct kafka_partition *partition, int64_t offset, int status,
                         const char *text)
{
    struct pipeline *p = arg;
    struct origin *o = kafka_partition_user(partition);

    if (!o || !o->commit_in_flight || offset != o->committed)
        return; /* of a former epoch; or a newer one is under way */
    o->commit_in_flight = false;
    p->commits_in_flight--;
    if (status != SPOOL_OK) {
        log_event(LOG_WARN, "commit.failed", "stream", o->stream->options->name, "origin", o->name,
                  "offset", log_i64(offset), "error", text ? text : "", NULL);
        o->committed = -1; /* the next acknowledgement commits again, or commit_again */
        p->commit_again_ms = clock_monotonic_ms() + COMMIT_AGAIN_MS;
    }
    kafka_in_advance(p);
    drain_check(p);
}

int kafka_in_create(struct pipeline *p, struct spool_error *error)
{
    static const struct kafka_callbacks callbacks = {
        .assigned = on_assigned,
        .run = on_run,
        .revoking = on_revoking,
        .gap = on_gap,
        .out_of_range = on_out_of_range,
        .new_log = on_new_log,
        .traced = on_traced,
        .begun = on_begun,
        .rebalanced = on_rebalanced,
        .told = on_told,
        .fatal = on_fatal,
        .committed = on_committed,
    };
    size_t count = 0, n = 0;
    bool renamed;
    int status;

    uv_timer_init(p->loop, &p->revoke_timer);
    p->revoke_timer.data = p;
    if (!p->options->kafka)
        return SPOOL_OK;
    p->kafka_options = *p->options->kafka;
    for (size_t i = 0; i < p->stream_count; i++)
        count += p->streams[i].options->topic_count;
    if (!count)
        return SPOOL_OK;
    p->topics = calloc(count, sizeof(*p->topics));
    if (!p->topics)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    for (size_t i = 0; i < p->stream_count; i++)
        for (size_t k = 0; k < p->streams[i].options->topic_count; k++)
            p->topics[n++] = p->streams[i].options->topics[k];
    p->kafka_options.topics = p->topics;
    p->kafka_options.topic_count = count;
    p->kafka_options.run_bytes = pressure_run_bytes(p);
    status = kafka_member_name(p, &renamed, error);
    if (status == SPOOL_OK)
        status = kafka_source_create(p->loop, &p->kafka_options, &callbacks, p, &p->kafka, error);
    p->member_back = status == SPOOL_OK && !renamed && member_is_back(p);
    return status;
}
