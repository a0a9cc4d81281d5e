/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Partitions: the table, where each begins, and when each is paused.
 *
 * A pause is soft first: for KAFKA_SOFT_PAUSE_MS the partition merely keeps its open run, because
 * a pause in librdkafka throws away what was fetched and a full decode queue pauses many times a
 * second. A longer one is made hard: the open run is discarded (it would count as held for as long
 * as the stream is stuck) and the partition paused in librdkafka. 2.0.2 wants care there:
 *   - Each resume seeks first, to where we stand; what the client remembers is not relied on.
 *   - A pause flag survives the assignment, so it is taken back before a partition is unassigned.
 *   - Nothing is assigned while it is to be paused: a pause right behind an assign can make the
 *     assigned offset outdated. It waits in STARTING.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "source/kafka_int.h"

/* As the other calls wait: the answer comes from the client's own thread, at once. Where that was not
   heard in time, nobody would know that a partition could not be sought. */
#define SEEK_TIMEOUT (-1)

static uint32_t bucket_of(const char *topic, int32_t number)
{
    uint32_t h = 2166136261u ^ (uint32_t)number;

    for (const char *c = topic; *c; c++)
        h = (h ^ (uint8_t)*c) * 16777619u;
    return (h ^ (h >> 15)) % KAFKA_BUCKETS;
}

struct kafka_partition *kafka_partition_find(struct kafka_source *s, const char *topic, int32_t n)
{
    struct kafka_partition *p = s->buckets[bucket_of(topic, n)];

    while (p && (p->number != n || strcmp(p->topic, topic) != 0))
        p = p->bucket_next;
    return p;
}

/* The cache is right as long as the table stands: librdkafka keeps the topic object of an assigned
   partition, and every removal empties the cache. */
struct kafka_partition *kafka_partition_of(struct kafka_source *s, const rd_kafka_message_t *m)
{
    struct kafka_partition *p = s->last_partition;

    if (p && m->rkt == s->last_topic && m->partition == p->number)
        return p;
    if (!m->rkt)
        return NULL;
    p = kafka_partition_find(s, rd_kafka_topic_name(m->rkt), m->partition);
    s->last_partition = p && p->fetched ? p : NULL;
    s->last_topic = m->rkt;
    return p;
}

struct kafka_partition *kafka_partition_add(struct kafka_source *s, const char *topic, int32_t n)
{
    struct kafka_partition *p;
    uint32_t bucket = bucket_of(topic, n);

    if (s->partition_count == s->partition_cap) {
        uint32_t cap = s->partition_cap ? s->partition_cap * 2 : 16;
        struct kafka_partition **grown = realloc(s->partitions, cap * sizeof(*grown));
        if (!grown)
            return NULL;
        s->partitions = grown;
        s->partition_cap = cap;
    }
    p = calloc(1, sizeof(*p));
    if (!p)
        return NULL;
    p->topic = strdup(topic);
    if (!p->topic) {
        free(p);
        return NULL;
    }
    p->source = s;
    p->number = n;
    p->epoch = ++s->next_epoch;
    p->committed = p->low = p->high = p->end_seen = -1;
    p->taken = p->handed = -1;
    p->kick_position = p->kick_high = -1;
    p->commit.next = p->commit.sent = p->mark_offset = -1;
    p->index = s->partition_count;
    s->partitions[s->partition_count++] = p;
    p->bucket_next = s->buckets[bucket];
    s->buckets[bucket] = p;
    return p;
}

/* Out of the table; the memory goes when its last run has come back. */
void kafka_partition_remove(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;
    struct kafka_partition **at = &s->buckets[bucket_of(p->topic, p->number)];

    assert(p->state != KAFKA_P_GONE && !p->fetched);
    kafka_run_discard(p);
    kafka_commit_forget(p);
    while (*at != p)
        at = &(*at)->bucket_next;
    *at = p->bucket_next;
    s->partitions[p->index] = s->partitions[--s->partition_count];
    s->partitions[p->index]->index = p->index;
    s->last_partition = NULL;
    p->state = KAFKA_P_GONE;
    kafka_partition_unref(p);
}

void kafka_partition_unref(struct kafka_partition *p)
{
    if (p->state != KAFKA_P_GONE || p->runs_out > 0 || p->kept)
        return;
    free(p->committed_metadata);
    free(p->topic);
    free(p);
}

/* The next offset to read, past control records where the end was seen. */
int64_t kafka_partition_position(const struct kafka_partition *p)
{
    return p->end_seen > p->taken + 1 ? p->end_seen : p->taken + 1;
}

const char *kafka_partition_topic(const struct kafka_partition *p)
{
    return p->topic;
}

int32_t kafka_partition_number(const struct kafka_partition *p)
{
    return p->number;
}

void kafka_partition_set_user(struct kafka_partition *p, void *user)
{
    p->user = user;
}

void *kafka_partition_user(const struct kafka_partition *p)
{
    return p->user;
}

int64_t kafka_partition_lag(const struct kafka_partition *p)
{
    int64_t low, high = -1, cached = -1;

    if (p->state == KAFKA_P_LOOKUP || p->state == KAFKA_P_WAITING || p->state == KAFKA_P_GONE)
        return -1;
    if (rd_kafka_get_watermark_offsets(p->source->client, p->topic, p->number, &low, &cached) ==
        RD_KAFKA_RESP_ERR_NO_ERROR)
        high = cached;
    if (high < p->high)
        high = p->high;
    if (high < 0)
        return -1;
    return high > kafka_partition_position(p) ? high - kafka_partition_position(p) : 0;
}

static bool must_park(const struct kafka_partition *p)
{
    return p->source->stopped || p->source->choked || p->hard_paused;
}

static void schedule_start(struct kafka_partition *p)
{
    p->source->starts_due = true;
    kafka_source_schedule(p->source);
}

static bool is_place(int64_t start)
{
    return start != KAFKA_OFFSET_POLICY && start != KAFKA_OFFSET_BEGINNING;
}

void kafka_partition_start(struct kafka_partition *p, int64_t offset,
                           const struct spool_mark *before)
{
    assert(offset >= 0 || !is_place(offset));
    if (p->state == KAFKA_P_REVOKING || p->state == KAFKA_P_GONE)
        return;
    assert(p->announced);
    p->range_tries = 0;
    p->tracing = p->beyond = false;
    if (!is_place(offset) && p->state != KAFKA_P_WAITING)
        p->low = p->high = -1; /* the lookup's are old by now */
    if (before && before->known) {
        p->mark = *before;
        p->mark_offset = offset - 1;
    } else if (p->mark_offset != offset - 1) {
        p->mark_offset = -1;
    }
    kafka_partition_begin(p, offset);
}

void kafka_partition_trace(struct kafka_partition *p, int64_t offset,
                           const struct spool_mark *before)
{
    assert(offset > 0 && before->known);
    kafka_partition_start(p, offset, before);
    p->tracing = p->state == KAFKA_P_STARTING;
    p->low = p->high = -1; /* asked for again: where a log ends is what this is about */
}

/* Fetching is to begin (again) at offset, by policy, or at the first record. */
void kafka_partition_begin(struct kafka_partition *p, int64_t offset)
{
    kafka_run_discard(p);
    p->start = offset;
    p->state = KAFKA_P_STARTING;
    schedule_start(p);
}

static int64_t policy_offset(struct kafka_partition *p)
{
    if (p->start == KAFKA_OFFSET_BEGINNING)
        return p->low;
    switch (p->source->reset) {
    case KAFKA_RESET_EARLIEST:
        return p->low;
    case KAFKA_RESET_LATEST:
        return p->high;
    case KAFKA_RESET_ERROR:
        break;
    }
    log_event(LOG_ERROR, "kafka.offset_missing", "topic", p->topic, "partition", log_i64(p->number),
              "reason",
              "there is no offset to begin at and auto_offset_reset is \"error\"; the partition "
              "waits until one is committed to the group and spoold is restarted",
              NULL);
    return -1;
}

/* Whether the log can have the record that is looked for. As settle_start. */
static bool settle_trace(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;

    if (p->low < 0 || p->high < 0) {
        kafka_lookup_want(p);
        return false;
    }
    if (p->start <= p->high && p->start > p->low)
        return true;
    p->state = KAFKA_P_HELD;
    s->pauses_due = true;
    s->callbacks.new_log(s->arg, p, p->start);
    return false;
}

/*
 * Settles where a STARTING partition really begins: the policy, what retention took away, an end
 * before our offset. False: not now (a lookup is under way, or the partition is held).
 */
static bool settle_start(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;

    if (p->tracing)
        return settle_trace(p);
    if (!is_place(p->start)) {
        if (p->low < 0 || p->high < 0) {
            kafka_lookup_want(p);
            return false;
        }
        p->start = policy_offset(p);
        if (p->start < 0) {
            p->start = 0;
            p->state = KAFKA_P_HELD;
            s->pauses_due = true;
            return false;
        }
        s->callbacks.begun(s->arg, p, p->start);
        if (p->state != KAFKA_P_STARTING)
            return false;
    }
    /* The end that is told is the one in front of an open transaction, and somebody else may have committed
       behind that: whether the log has the offset is seen by fetching there. */
    if (p->high >= 0 && p->start > p->high && p->beyond) {
        /* A new leader may not know the true end at once, so one look is no proof. */
        if (++p->range_tries <= KAFKA_RANGE_TRIES) {
            p->low = p->high = -1;
            kafka_lookup_want(p);
            return false;
        }
        p->range_tries = 0;
        p->state = KAFKA_P_HELD;
        s->pauses_due = true;
        s->callbacks.out_of_range(s->arg, p, p->start);
        return false;
    }
    if (p->low >= 0 && p->start < p->low) {
        int64_t from = p->start;
        p->start = p->low;
        s->callbacks.gap(s->arg, p, from, p->low);
        if (p->state != KAFKA_P_STARTING)
            return false;
    }
    return true;
}

/* librdkafka's fetcher stopped with RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET. */
void kafka_partition_refused(struct kafka_partition *p)
{
    p->fetch_dead = true;
    if (p->state == KAFKA_P_ACTIVE) /* else a start under way, or a revocation, settles it */
        kafka_partition_look_again(p);
}

void kafka_partition_look_again(struct kafka_partition *p)
{
    if (!p->pause_reasons)
        kafka_run_hand_over(p);
    if (p->state != KAFKA_P_ACTIVE)
        return;
    kafka_run_discard(p);
    p->state = KAFKA_P_RESETTING;
    p->low = p->high = -1;
    kafka_lookup_want(p);
}

/* What was taken is handed over even while paused: it can't be had again. */
void kafka_partition_new_log(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;

    if (p->open)
        p->open->base.last_of_log = true;
    kafka_run_hand_over(p);
    if (p->state != KAFKA_P_ACTIVE)
        return;
    kafka_run_discard(p);
    p->mark_offset = -1;
    p->state = KAFKA_P_HELD;
    s->pauses_due = true;
    kafka_source_schedule(s);
    s->callbacks.new_log(s->arg, p, p->taken + 1);
}

/* Fresh watermarks, or none (-1), for a partition that asked. */
void kafka_partition_looked_up(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;

    switch (p->state) {
    case KAFKA_P_LOOKUP: {
        struct kafka_committed committed = {
            .offset = p->committed,
            .metadata = p->committed_metadata ? p->committed_metadata : "",
            .low = p->low,
            .high = p->high,
        };
        p->state = KAFKA_P_WAITING;
        p->announced = true;
        s->callbacks.assigned(s->arg, p, &committed, &p->user);
        break;
    }
    case KAFKA_P_RESETTING:
        if (p->low < 0 || p->high < 0) {
            kafka_lookup_want(p);
            break;
        }
        p->start = p->taken + 1;
        p->state = KAFKA_P_STARTING;
        schedule_start(p);
        break;
    case KAFKA_P_STARTING:
        schedule_start(p);
        break;
    case KAFKA_P_WAITING:
    case KAFKA_P_ACTIVE:
    case KAFKA_P_HELD:
    case KAFKA_P_REVOKING:
    case KAFKA_P_GONE:
        break;
    }
}

static void list_put(rd_kafka_topic_partition_list_t *list, const struct kafka_partition *p,
                     int64_t offset)
{
    rd_kafka_topic_partition_list_add(list, p->topic, p->number)->offset = offset;
}

static void log_assign_error(rd_kafka_error_t *error, const char *what)
{
    if (!error)
        return;
    log_event(LOG_ERROR, "kafka.assign_failed", "call", what, "reason",
              rd_kafka_error_string(error), NULL);
    rd_kafka_error_destroy(error);
}

/* Seeks to the offsets in the list; where the client can't, its fetcher is taken for dead. */
static void seek_all(struct kafka_source *s, rd_kafka_topic_partition_list_t *list)
{
    log_assign_error(rd_kafka_seek_partitions(s->client, list, SEEK_TIMEOUT), "seek");
    for (int i = 0; i < list->cnt; i++) {
        const rd_kafka_topic_partition_t *element = &list->elems[i];
        if (element->err)
            kafka_partition_refused(kafka_partition_find(s, element->topic, element->partition));
    }
}

static void became_active(struct kafka_partition *p)
{
    p->state = KAFKA_P_ACTIVE;
    p->beyond = false;
    p->range_tries = 0;
    p->taken = p->handed = p->start - 1;
    p->end_seen = -1;
    p->kick_position = p->kick_high = -1;
    p->source->fresh = true;
}

/* Gives every partition that may begin to librdkafka, in one call. */
void kafka_partitions_flush_starts(struct kafka_source *s)
{
    rd_kafka_topic_partition_list_t *assign = rd_kafka_topic_partition_list_new(16);
    rd_kafka_topic_partition_list_t *unassign = rd_kafka_topic_partition_list_new(4);
    rd_kafka_topic_partition_list_t *seek = rd_kafka_topic_partition_list_new(4);

    /* The callbacks inside may start others, but neither add nor remove partitions. */
    for (uint32_t i = 0; i < s->partition_count; i++) {
        struct kafka_partition *p = s->partitions[i];
        if (p->state != KAFKA_P_STARTING || p->in_lookup || p->want_lookup || must_park(p))
            continue;
        if (p->fetched && p->fetch_dead && s->revoke_pending)
            continue; /* to take it out would be the answer that the group waits for */
        if (!settle_start(p))
            continue;
        became_active(p);
        if (p->fetched && !p->fetch_dead) {
            list_put(seek, p, kafka_mark_begin(p));
            continue;
        }
        if (p->fetched)
            list_put(unassign, p, 0);
        list_put(assign, p, kafka_mark_begin(p));
        p->fetched = true;
        p->fetch_dead = false;
        p->parked = false;
    }
    if (unassign->cnt) {
        rd_kafka_resume_partitions(s->client, unassign);
        log_assign_error(rd_kafka_incremental_unassign(s->client, unassign), "unassign");
    }
    if (assign->cnt)
        log_assign_error(rd_kafka_incremental_assign(s->client, assign), "assign");
    if (seek->cnt) {
        for (int i = 0; i < seek->cnt; i++)
            if (kafka_partition_find(s, seek->elems[i].topic, seek->elems[i].partition)->parked)
                s->pauses_due = true;
        seek_all(s, seek);
    }
    if (s->pauses_due)
        kafka_source_schedule(s);
    rd_kafka_topic_partition_list_destroy(assign);
    rd_kafka_topic_partition_list_destroy(unassign);
    rd_kafka_topic_partition_list_destroy(seek);
}

static void reseek(struct kafka_source *s, bool doubted)
{
    rd_kafka_topic_partition_list_t *seek =
        rd_kafka_topic_partition_list_new((int)s->partition_count + 1);

    for (uint32_t i = 0; i < s->partition_count; i++) {
        struct kafka_partition *p = s->partitions[i];
        if (p->state != KAFKA_P_ACTIVE || !p->fetched || p->fetch_dead || p->parked ||
            p->hard_paused) /* the pause, or its end, comes in this turn and sees to it */
            continue;
        if (doubted && !p->doubted)
            continue;
        p->end_seen = -1; /* what was thrown away may lie before that end */
        list_put(seek, p, kafka_mark_begin(p));
    }
    if (seek->cnt) {
        seek_all(s, seek);
        s->fresh = true;
    }
    rd_kafka_topic_partition_list_destroy(seek);
}

void kafka_partitions_reseek_doubted(struct kafka_source *s)
{
    reseek(s, true);
}

/*
 * Back to where we stand, after an answered rebalance. The client pauses all it has while it waits
 * for that answer, and in 2.0.2 the resume begins behind records that the pause took out of a batch
 * (kafka_source_drain). Partitions that are not active, or paused, are sought when they begin.
 */
void kafka_partitions_reseek(struct kafka_source *s)
{
    if (!s->reseek_due)
        return;
    s->reseek_due = false;
    s->reseeks++;
    reseek(s, false);
}

/* Brings librdkafka's pauses in line with what is wanted. */
void kafka_partitions_flush_pauses(struct kafka_source *s)
{
    rd_kafka_topic_partition_list_t *pause = rd_kafka_topic_partition_list_new(16);
    rd_kafka_topic_partition_list_t *resume = rd_kafka_topic_partition_list_new(16);
    rd_kafka_topic_partition_list_t *seek = rd_kafka_topic_partition_list_new(4);

    for (uint32_t i = 0; i < s->partition_count; i++) {
        struct kafka_partition *p = s->partitions[i];
        if (p->state == KAFKA_P_STARTING && !must_park(p))
            schedule_start(p); /* it waited for the pause to end */
        if (p->state == KAFKA_P_HELD && p->fetched && !p->fetch_dead && !p->parked) {
            p->parked = true;
            list_put(pause, p, 0);
        }
        if (p->state != KAFKA_P_ACTIVE || !p->fetched || p->fetch_dead)
            continue;
        if (must_park(p) && !p->parked) {
            p->parked = true;
            list_put(pause, p, 0);
        } else if (!must_park(p) && p->parked) {
            p->parked = false;
            list_put(resume, p, kafka_mark_begin(p));
        } else if (!must_park(p) && p->doubted) {
            list_put(seek, p, kafka_mark_begin(p));
        }
    }
    if (pause->cnt)
        rd_kafka_pause_partitions(s->client, pause);
    if (resume->cnt) {
        seek_all(s, resume);
        rd_kafka_resume_partitions(s->client, resume);
        s->fresh = true;
    }
    if (seek->cnt) {
        seek_all(s, seek);
        s->fresh = true;
    }
    rd_kafka_topic_partition_list_destroy(pause);
    rd_kafka_topic_partition_list_destroy(resume);
    rd_kafka_topic_partition_list_destroy(seek);
}

/*
 * Stopping a partition leaves an operation in its own queue that refers back to it (2.0.2). A
 * partition whose topic is deleted is then never freed, and rd_kafka_destroy waits for it for ever.
 * So its queue is emptied when the stop is through. By then it is forwarded nowhere; until then a
 * read would take other partitions' records.
 */
static void empty_queues(struct kafka_source *s, rd_kafka_queue_t **queues, int count)
{
    rd_kafka_message_t *m;

    /* Any answer of the client's main thread: it has done by then what the unassign gave it. */
    (void)rd_kafka_rebalance_protocol(s->client);
    for (int i = 0; i < count; i++) {
        while ((m = rd_kafka_consume_queue(queues[i], 0)) != NULL)
            rd_kafka_message_destroy(m);
        rd_kafka_queue_destroy(queues[i]);
    }
}

/* Takes what is fetched among list out of librdkafka's assignment. With nothing to take out the
   call is still the answer a revocation waits for. */
void kafka_partitions_unassign(struct kafka_source *s, struct kafka_partition *const *list,
                               size_t count)
{
    rd_kafka_topic_partition_list_t *unassign = rd_kafka_topic_partition_list_new((int)count);
    rd_kafka_queue_t **queues = calloc(count + 1, sizeof(*queues));
    rd_kafka_error_t *error;
    int queue_count = 0;

    for (size_t i = 0; i < count; i++) {
        if (!list[i]->fetched)
            continue;
        list[i]->fetched = list[i]->parked = false;
        list_put(unassign, list[i], 0);
        if (queues) {
            queues[queue_count] =
                rd_kafka_queue_get_partition(s->client, list[i]->topic, list[i]->number);
            queue_count += queues[queue_count] != NULL;
        }
    }
    if (unassign->cnt)
        rd_kafka_resume_partitions(s->client, unassign);
    error = rd_kafka_incremental_unassign(s->client, unassign);
    if (!error) {
        empty_queues(s, queues, queue_count);
    } else {
        for (int i = 0; i < queue_count; i++)
            rd_kafka_queue_destroy(queues[i]);
        log_assign_error(error, "unassign");
    }
    kafka_partitions_reseek(s);
    s->starts_due = true; /* of those that waited for this answer */
    kafka_source_schedule(s);
    free(queues);
    rd_kafka_topic_partition_list_destroy(unassign);
}

static void schedule_pauses(struct kafka_source *s)
{
    s->pauses_due = true;
    kafka_source_schedule(s);
}

void kafka_partition_pause(struct kafka_partition *p, unsigned reason)
{
    struct kafka_source *s = p->source;
    bool was = p->pause_reasons != 0;

    assert(reason);
    p->pause_reasons |= reason;
    if (was)
        return;
    p->paused_at_ms = uv_now(s->loop);
    if (!uv_is_active((uv_handle_t *)&s->timers[KAFKA_T_SOFT_PAUSE]))
        kafka_source_timer(s, KAFKA_T_SOFT_PAUSE, KAFKA_SOFT_PAUSE_MS);
}

void kafka_partition_resume(struct kafka_partition *p, unsigned reason)
{
    if (!p->pause_reasons)
        return;
    p->pause_reasons &= ~reason;
    if (p->pause_reasons)
        return;
    if (p->hard_paused) {
        p->hard_paused = false;
        schedule_pauses(p->source);
        return;
    }
    kafka_run_relist(p);
}

void kafka_partitions_soft_pause_over(struct kafka_source *s)
{
    uint64_t now = uv_now(s->loop);
    uint64_t next = UINT64_MAX;

    for (uint32_t i = 0; i < s->partition_count; i++) {
        struct kafka_partition *p = s->partitions[i];
        if (!p->pause_reasons || p->hard_paused)
            continue;
        uint64_t due = p->paused_at_ms + KAFKA_SOFT_PAUSE_MS;
        if (due > now) {
            if (due < next)
                next = due;
            continue;
        }
        p->hard_paused = true;
        if (p->state == KAFKA_P_ACTIVE) {
            kafka_run_discard(p);
            p->doubted = true; /* the client is ahead of us, and may be resumed before it paused */
        }
        schedule_pauses(s);
    }
    if (next != UINT64_MAX)
        kafka_source_timer(s, KAFKA_T_SOFT_PAUSE, next - now);
}
