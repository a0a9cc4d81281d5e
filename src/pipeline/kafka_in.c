/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partitions come and go. Where one begins is decided here, from the group's committed offset, the
 * metadata that came with it, and what the spool holds:
 *
 *   committed by us                 continue behind the spool's highest offset
 *     ... beyond what is held         this is an older copy of the spool: continue at the commit
 *   committed by somebody else      it wins: our unsent rows are discarded, a new epoch begins
 *   nothing committed, rows held    continue behind them, if the broker still has that offset;
 *                                   else the log is another one: a new epoch, by policy
 *   nothing committed, nothing held by policy
 *   committed by us in an earlier epoch
 *                                   is of an earlier log, and counts as nothing committed; with
 *                                   nothing held the log is read from its beginning
 *
 * Where the record in front of that place is another one than we took there, the log is another one
 * too (kafka_mark.c): a new epoch, from its beginning.
 *
 * Rows of a partition that is not ours stay in the spool and are not sealed.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define REVOKE_MARGIN_MS 1000 /* we end a revocation so long before the source does */
#define ASSIGN_RETRY_MS  1000

enum start_why { START_OURS, START_FOREIGN, START_NEW_LOG, START_BEGINNING, START_POLICY };

struct assign_job {
    struct job job;
    struct stream *stream;
    struct kafka_partition *partition;
    bool gone; /* revoked while the job ran */
    char name[400];
    struct kafka_committed committed;
    bool ours;             /* committed by this spool */
    uint32_t commit_epoch; /* ... in this epoch of the origin */
    bool same_epoch;       /* ... which is the present one */
    bool new_epoch;        /* what was taken so far is of another log */
    bool other_log;        /* ... which the source has seen: this one is read from its beginning */
    int status;
    uint64_t retry_at_ms; /* the disk is full; 0: it runs */
    struct spool_error error;
    uint32_t id, epoch, old_id;
    int64_t high;
    struct spool_mark mark;
    enum start_why why;
    struct assign_job *next;
};

/* Metadata of ours: "spoold <uuid> <epoch>". */
static bool metadata_is_ours(const struct pipeline *p, const char *metadata, uint32_t *epoch)
{
    char text[64];
    int n = snprintf(text, sizeof(text), "spoold %s ", spool_uuid_text(p->spool));

    if (n <= 0 || !metadata || strncmp(metadata, text, (size_t)n) != 0)
        return false;
    *epoch = (uint32_t)strtoul(metadata + n, NULL, 10);
    return true;
}

static enum start_why assign_why(struct assign_job *a)
{
    struct kafka_committed *c = &a->committed;

    if (a->ours && a->commit_epoch < a->epoch) {
        a->ours = false;
        c->offset = -1;
        if (a->high < 0)
            return START_BEGINNING;
    }
    if (a->high < 0)
        return c->offset >= 0 ? START_OURS : START_POLICY;
    if (c->offset >= 0)
        return a->ours && (c->offset <= a->high + 1 || a->same_epoch) ? START_OURS : START_FOREIGN;
    if (c->high < 0 || (a->high + 1 <= c->high && a->high + 1 >= c->low))
        return START_OURS;
    return START_NEW_LOG;
}

static void assign_work(struct job *job)
{
    struct assign_job *a = (struct assign_job *)job;
    struct spool *spool = job->pipeline->spool;
    int status;

    a->status = spool_origin(spool, a->name, 0, &a->id, &a->epoch, &a->error);
    if (a->status != SPOOL_OK)
        return;
    a->same_epoch = a->ours && a->commit_epoch == a->epoch;
    a->high = -1;
    status = spool_stream_high(a->stream->spool, a->id, &a->high);
    if (status != SPOOL_OK)
        a->high = -1;
    spool_stream_mark(a->stream->spool, a->id, &a->mark);
    a->why = a->new_epoch ? START_NEW_LOG : assign_why(a);
    if (a->why == START_FOREIGN || a->why == START_NEW_LOG) {
        a->old_id = a->id;
        a->status = spool_origin(spool, a->name, a->epoch + 1, &a->id, &a->epoch, &a->error);
        a->high = -1;
    }
}

/* Rows of earlier epochs of this partition: discarded where another consumer went past them, sent
   where the log they came from is gone. */
static void assign_old_epoch(struct assign_job *a)
{
    struct stream *s = a->stream;
    struct origin *old = origin_get(s, a->old_id);

    if (!old) {
        pipeline_fatal(s->p, "out of memory while taking a partition");
        return;
    }
    if (!old->name)
        old->name = strdup(a->name);
    old->kafka = true;
    old->partition = NULL;
    old->owned = false;
    if (a->why == START_FOREIGN) {
        log_event(LOG_WARN, "partition.foreign_commit", "stream", s->options->name, "origin",
                  a->name, "committed", log_i64(a->committed.offset), "action",
                  "the commit wins: rows held here are discarded and read again from there", NULL);
        holes_forget(old, NULL);
        origin_discard(old, INT64_MAX);
    } else {
        log_event(LOG_WARN, "partition.new_log", "stream", s->options->name, "origin", a->name,
                  "low", log_i64(a->committed.low), "high", log_i64(a->committed.high), "action",
                  a->other_log ? "the topic is another one under the same name: rows held are "
                                 "sent, reading starts at its beginning"
                               : "the topic is another one under the same name: rows held are "
                                 "sent, reading starts by auto_offset_reset",
                  NULL);
        holes_forget(old, "these rows were damaged in the spool, and the log they came from is "
                          "gone");
        old->owned = true;
    }
    if (old->commit_in_flight) { /* its answer will find the new origin */
        old->commit_in_flight = false;
        s->p->commits_in_flight--;
    }
}

static int64_t assign_start(const struct assign_job *a, const struct origin *o)
{
    int64_t held = o->high > o->taken ? o->high : o->taken;

    if (a->why == START_FOREIGN)
        return a->committed.offset;
    if (a->other_log)
        return KAFKA_OFFSET_BEGINNING;
    if (a->why == START_NEW_LOG)
        return KAFKA_OFFSET_POLICY;
    if (a->why != START_OURS && held >= 0) /* taken, and not durable yet */
        return held + 1;
    if (a->why == START_BEGINNING)
        return KAFKA_OFFSET_BEGINNING;
    if (a->why == START_POLICY)
        return KAFKA_OFFSET_POLICY;
    if (held >= 0)
        return held + 1 > a->committed.offset ? held + 1 : a->committed.offset;
    return a->committed.offset;
}

static void assign_unlink(struct assign_job *a)
{
    struct assign_job **at = &a->stream->p->assigning;

    while (*at != a)
        at = &(*at)->next;
    *at = a->next;
}

/* The partition is the origin's now. */
static void assign_origin(struct assign_job *a, struct origin *o)
{
    struct stream *s = a->stream;

    if (!o->name)
        o->name = strdup(a->name);
    o->epoch = a->epoch;
    o->kafka = true;
    o->owned = true;
    o->revoking = false;
    o->partition = a->partition;
    o->topic = NULL;
    for (size_t i = 0; i < s->options->topic_count; i++)
        if (strcmp(s->options->topics[i], kafka_partition_topic(a->partition)) == 0)
            o->topic = s->options->topics[i];
    o->partition_number = kafka_partition_number(a->partition);
    o->committed = a->ours ? a->committed.offset : -1;
    if (a->high > o->high)
        o->high = a->high;
    for (struct origin *other = s->origins; other; other = other->next)
        kafka_in_adopt(other);
    stream_recount(s);
    kafka_partition_set_user(a->partition, o);
}

static void assign_done(struct job *job)
{
    struct assign_job *a = (struct assign_job *)job;
    struct stream *s = a->stream;
    struct pipeline *p = s->p;
    struct origin *o;
    int64_t start;

    if (a->status == SPOOL_E_FULL && !a->gone && !p->closing && !p->fatal) {
        log_event(LOG_ERROR, "meta.full", "error", a->error.text, "action",
                  "a partition waits for room on the spool's file system; trying again", NULL);
        a->retry_at_ms = clock_monotonic_ms() + ASSIGN_RETRY_MS;
        return;
    }
    assign_unlink(a);
    if (a->status != SPOOL_OK && !a->gone && !p->closing)
        pipeline_fatal(p, "stream %s, %s: %s", s->options->name, a->name, a->error.text);
    o = a->status != SPOOL_OK || a->gone || p->closing ? NULL : origin_get(s, a->id);
    if (!o) {
        free(a);
        return;
    }
    if (a->why == START_FOREIGN || a->why == START_NEW_LOG)
        assign_old_epoch(a);
    assign_origin(a, o);
    start = assign_start(a, o);
    log_event(LOG_INFO, "partition.assigned", "stream", s->options->name, "origin", o->name,
              "epoch", log_u64(o->epoch), "committed", log_i64(a->committed.offset), "start",
              start == KAFKA_OFFSET_POLICY      ? "policy"
              : start == KAFKA_OFFSET_BEGINNING ? "beginning"
                                                : log_i64(start),
              NULL);
    if (a->ours && a->committed.offset > 0)
        holes_clamp(o, a->committed.offset);
    if (a->same_epoch && a->why == START_OURS)
        origin_skip_delivered(o, a->committed.offset);
    if (start >= 0) {
        if (a->high == start - 1)
            o->mark = a->mark;
        else if (o->taken != start - 1)
            o->mark.known = false;
        o->taken = start - 1;
        origin_start_reading(o);
    } else {
        kafka_partition_start(a->partition, start, NULL);
    }
    stream_update(s);
    origin_refresh_front(o);
    origin_commit(o);
    free(a);
    stream_advance(s);
}

static void assign_run(struct assign_job *a)
{
    struct pipeline *p = a->stream->p;
    struct lane *lanes[2] = {&a->stream->lane, &p->meta_lane};

    a->retry_at_ms = 0;
    if (job_start(p, &a->job, lanes, 2) != SPOOL_OK)
        pipeline_fatal(p, "out of memory while taking a partition");
}

static void assign_retry(struct pipeline *p)
{
    struct assign_job *next;

    for (struct assign_job *a = p->assigning; a; a = next) {
        next = a->next;
        if (!a->retry_at_ms || a->retry_at_ms > clock_monotonic_ms())
            continue;
        if (a->gone) {
            assign_unlink(a);
            free(a);
        } else {
            assign_run(a);
        }
    }
}

void kafka_in_free(struct pipeline *p)
{
    struct assign_job *next;

    for (struct assign_job *a = p->assigning; a; a = next) {
        next = a->next;
        free(a);
    }
    p->assigning = NULL;
}

static void assign_look_up(struct pipeline *p, struct kafka_partition *partition,
                           const struct kafka_committed *committed, bool new_epoch, bool other_log)
{
    struct stream *s = pipeline_stream_of_topic(p, kafka_partition_topic(partition));
    struct assign_job *a = calloc(1, sizeof(*a));

    if (!s || !a) {
        free(a);
        pipeline_fatal(p, s ? "out of memory while taking a partition"
                            : "a partition of a topic no stream has was assigned");
        return;
    }
    a->stream = s;
    a->partition = partition;
    a->committed = *committed;
    a->committed.metadata = NULL;
    a->ours = metadata_is_ours(p, committed->metadata, &a->commit_epoch);
    a->new_epoch = new_epoch;
    a->other_log = other_log;
    snprintf(a->name, sizeof(a->name), "kafka/%.300s/%d", kafka_partition_topic(partition),
             kafka_partition_number(partition));
    a->job.work = assign_work;
    a->job.done = assign_done;
    a->next = p->assigning;
    p->assigning = a;
    assign_run(a);
}

static void on_assigned(void *arg, struct kafka_partition *partition,
                        const struct kafka_committed *committed, void **user)
{
    *user = NULL;
    assign_look_up(arg, partition, committed, false, false);
}

void kafka_in_adopt(struct origin *o)
{
    if (!o->kafka || o->owned || o->partition || !o->name || o->discard_all)
        return;
    for (const struct origin *other = o->stream->origins; other; other = other->next)
        if (other != o && other->owned && other->epoch > o->epoch && other->name &&
            strcmp(other->name, o->name) == 0)
            o->owned = true; /* an earlier log of a partition that is ours: send what it left */
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
        for (struct assign_job *a = p->assigning; a; a = a->next)
            if (a->partition == partitions[i])
                a->gone = true;
        if (!o)
            continue;
        log_event(LOG_INFO, lost ? "partition.lost" : "partition.revoking", "stream",
                  o->stream->options->name, "origin", o->name, NULL);
        o->owned = false;
        o->revoking = true;
        o->lost = lost;
    }
    for (size_t i = 0; i < p->stream_count; i++)
        stream_recount(&p->streams[i]);
    p->revoking = 1;
    p->revoke_deadline_ms = clock_monotonic_ms() + wait;
    uv_timer_start(&p->revoke_timer, kafka_in_revoke_timer, wait, 0);
    kafka_in_advance(p);
}

/* What is in flight for the origin: being sent, being acknowledged, being committed, or in decode.
   Rows that only wait (no endpoint, a hold) are not waited for. */
static bool origin_in_flight(const struct origin *o)
{
    if (o->runs_unreleased)
        return true;
    if (o->lost)
        return false;
    if (o->commit_in_flight)
        return true;
    for (const struct batch *b = o->stream->batches; b; b = b->next) {
        if (b->state == BATCH_WAITING || b->state == BATCH_LOADING)
            continue;
        for (size_t i = 0; i < b->part_count; i++)
            if (b->parts[i].block->origin == o)
                return true;
    }
    return false;
}

void kafka_in_advance(struct pipeline *p)
{
    bool late = p->revoking && clock_monotonic_ms() >= p->revoke_deadline_ms;

    assign_retry(p);
    if (!p->revoking)
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
                if (o->commit_in_flight)
                    p->commits_in_flight--;
                o->commit_in_flight = false;
                o->revoking = o->lost = false;
                o->partition = NULL;
                o->committed = -1;
            }
    kafka_revoke_done(p->kafka);
}

void kafka_in_revoke_timer(uv_timer_t *timer)
{
    kafka_in_advance(timer->data);
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

static void on_out_of_range(void *arg, struct kafka_partition *partition, int64_t position)
{
    static const struct kafka_committed another = {.offset = -1, .metadata = ""};
    struct origin *o = kafka_partition_user(partition);

    if (!o)
        return;
    if (o->stream->p->kafka_options.auto_offset_reset == KAFKA_RESET_ERROR) {
        stream_hold(o->stream, HOLD_KAFKA,
                    "%s: offset %lld is not in the log and "
                    "auto_offset_reset is \"error\": reset the group's offset, then restart",
                    o->name, (long long)position);
        return;
    }
    log_event(LOG_ERROR, "partition.out_of_range", "stream", o->stream->options->name, "origin",
              o->name, "position", log_i64(position), "action",
              "the log is another one: reading starts again by auto_offset_reset", NULL);
    assign_look_up(arg, partition, &another, o->taken >= 0, false);
}

static void on_new_log(void *arg, struct kafka_partition *partition, int64_t position)
{
    static const struct kafka_committed none = {
        .offset = -1, .metadata = "", .low = -1, .high = -1};
    struct origin *o = kafka_partition_user(partition);

    if (!o)
        return;
    if (o->stream->p->kafka_options.auto_offset_reset == KAFKA_RESET_ERROR) {
        stream_hold(o->stream, HOLD_KAFKA,
                    "%s: the record before offset %lld is another one than was read, so the log is "
                    "a new one, and auto_offset_reset is \"error\": reset the group's offset, then "
                    "restart",
                    o->name, (long long)position);
        return;
    }
    assign_look_up(arg, partition, &none, true, true);
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

    if (!o || !o->commit_in_flight || (status == SPOOL_OK && offset < o->committed))
        return; /* a newer one is under way */
    o->commit_in_flight = false;
    p->commits_in_flight--;
    if (status != SPOOL_OK) {
        log_event(LOG_WARN, "commit.failed", "stream", o->stream->options->name, "origin", o->name,
                  "offset", log_i64(offset), "error", text ? text : "", NULL);
        if (o->committed == offset)
            o->committed = -1; /* the next acknowledgement commits again */
    }
    kafka_in_advance(p);
    drain_check(p);
}

/*
 * A broker gives a static member that comes back the partitions it had, whatever it subscribes to now, as
 * long as its session lasts: a topic that is new in the configuration would wait for the group's next
 * rebalance, which may never come. So who reads other topics is another member.
 */
static void name_member(struct pipeline *p)
{
    uint32_t topics = 0;

    for (size_t i = 0; i < p->kafka_options.topic_count; i++) /* in any order */
        topics += (uint32_t)XXH3_64bits(p->topics[i], strlen(p->topics[i]));
    snprintf(p->instance_id, sizeof(p->instance_id), "spoold-%s-%08" PRIx32,
             spool_uuid_text(p->spool), topics);
    p->kafka_options.group_instance_id = p->instance_id;
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
        .fatal = on_fatal,
        .committed = on_committed,
    };
    size_t count = 0, n = 0;

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
    if (!p->kafka_options.group_instance_id)
        name_member(p);
    return kafka_source_create(p->loop, &p->kafka_options, &callbacks, p, &p->kafka, error);
}
