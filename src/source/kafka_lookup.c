/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions to the brokers that block, asked in pool jobs: committed offsets and watermarks before
 * a partition begins, one job at a time for all partitions that need it; committed offsets of others,
 * for the pipeline; and the kick.
 *
 * The kick: when librdkafka 2.0.2 finds its local queue full it lets a partition's broker thread
 * sleep for up to a second and does not see the queue drained. Any request to that broker wakes it.
 * So when the queue stays empty for a few milliseconds although the cached high watermark is above
 * our position, its watermarks are asked. Never at the end of the log, where the request would
 * queue behind the long-polling fetch, and never twice at one position (behind an open transaction
 * the watermark stays above us).
 */
#include <stdlib.h>
#include <string.h>

#include "source/kafka_int.h"

void kafka_lookup_want(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;
    bool retry = p->lookup_failed || p->range_tries > 0;

    p->want_lookup = true;
    p->lookup_failed = false;
    if (retry) {
        if (!uv_is_active((uv_handle_t *)&s->timers[KAFKA_T_LOOKUP]))
            kafka_source_timer(s, KAFKA_T_LOOKUP, KAFKA_RETRY_MS);
    } else {
        kafka_source_timer(s, KAFKA_T_LOOKUP, 0);
    }
}

static void lookup_free(struct kafka_lookup *lookup)
{
    if (lookup->committed)
        rd_kafka_topic_partition_list_destroy(lookup->committed);
    if (lookup->low)
        rd_kafka_topic_partition_list_destroy(lookup->low);
    if (lookup->high)
        rd_kafka_topic_partition_list_destroy(lookup->high);
    free(lookup->epochs);
    free(lookup);
}

static int32_t leader_of(const struct rd_kafka_metadata *metadata,
                         const rd_kafka_topic_partition_t *element)
{
    for (int i = 0; i < metadata->topic_cnt; i++) {
        const struct rd_kafka_metadata_topic *topic = &metadata->topics[i];
        if (strcmp(topic->topic, element->topic) != 0)
            continue;
        for (int k = 0; k < topic->partition_cnt; k++)
            if (topic->partitions[k].id == element->partition)
                return topic->partitions[k].leader;
    }
    return -1;
}

/* Asks for an end of those in list that the leader has, and puts into list what it says. False: it
   says nothing. */
static bool ask_leader(rd_kafka_t *client, rd_kafka_topic_partition_list_t *list, int64_t end,
                       const struct rd_kafka_metadata *metadata, int32_t leader)
{
    rd_kafka_topic_partition_list_t *part = rd_kafka_topic_partition_list_new(list->cnt);
    rd_kafka_resp_err_t error = RD_KAFKA_RESP_ERR_NO_ERROR;

    for (int i = 0; i < list->cnt; i++)
        if (leader_of(metadata, &list->elems[i]) == leader)
            rd_kafka_topic_partition_list_add(part, list->elems[i].topic, list->elems[i].partition)
                ->offset = end;
    if (part->cnt && part->cnt < list->cnt) /* else it was asked just this */
        error = rd_kafka_offsets_for_times(client, part, KAFKA_LOOKUP_PART_MS);
    for (int i = 0; i < part->cnt; i++) {
        rd_kafka_topic_partition_t *element = rd_kafka_topic_partition_list_find(
            list, part->elems[i].topic, part->elems[i].partition);
        element->offset = part->elems[i].offset;
        element->err = error ? error : part->elems[i].err;
    }
    rd_kafka_topic_partition_list_destroy(part);
    return !error;
}

/*
 * One leader that does not answer, one partition that it refuses, or one topic that is no more, and the
 * call fails for all (2.0.2). Then the leaders are asked one by one, lest what one of them has waits for
 * another.
 */
static void ask_leaders(struct kafka_lookup *lookup)
{
    rd_kafka_t *client = lookup->source->client;
    rd_kafka_topic_partition_list_t *low = lookup->low, *high = lookup->high;
    rd_kafka_resp_err_t error = lookup->low_error ? lookup->low_error : lookup->high_error;
    const struct rd_kafka_metadata *metadata = NULL;

    if (rd_kafka_metadata(client, 0, NULL, &metadata, KAFKA_LOOKUP_PART_MS))
        return;
    for (int i = 0; i < metadata->broker_cnt; i++) {
        int32_t leader = metadata->brokers[i].id;
        if (ask_leader(client, low, RD_KAFKA_OFFSET_BEGINNING, metadata, leader))
            (void)ask_leader(client, high, RD_KAFKA_OFFSET_END, metadata, leader);
    }
    rd_kafka_metadata_destroy(metadata);
    for (int i = 0; i < low->cnt; i++)
        if (!low->elems[i].err && (low->elems[i].offset < 0 || high->elems[i].offset < 0))
            low->elems[i].err = high->elems[i].err ? high->elems[i].err : error;
    lookup->low_error = lookup->high_error = RD_KAFKA_RESP_ERR_NO_ERROR;
}

static void lookup_work(uv_work_t *work)
{
    struct kafka_lookup *lookup = work->data;
    rd_kafka_t *client = lookup->source->client;

    /* In this order: a committed offset above the end is then really above it. */
    if (lookup->committed->cnt)
        lookup->committed_error =
            rd_kafka_committed(client, lookup->committed, KAFKA_LOOKUP_TIMEOUT_MS);
    if (lookup->committed_error)
        return;
    /* The "times" -2 and -1 are the first and the last offset: one request a leader for all its
       partitions, where the watermark call costs two for each. */
    lookup->low_error = rd_kafka_offsets_for_times(client, lookup->low, KAFKA_LOOKUP_TIMEOUT_MS);
    if (!lookup->low_error)
        lookup->high_error =
            rd_kafka_offsets_for_times(client, lookup->high, KAFKA_LOOKUP_TIMEOUT_MS);
    if ((lookup->low_error || lookup->high_error) && lookup->low->cnt > 1)
        ask_leaders(lookup);
}

static bool take_committed(struct kafka_lookup *lookup, struct kafka_partition *p)
{
    const rd_kafka_topic_partition_t *element;

    element = rd_kafka_topic_partition_list_find(lookup->committed, p->topic, p->number);
    if (!element)
        return true;
    if (lookup->committed_error || element->err)
        return false;
    p->committed = element->offset >= 0 ? element->offset : -1;
    free(p->committed_metadata);
    p->committed_metadata = NULL;
    if (element->offset >= 0 && element->metadata && element->metadata_size)
        p->committed_metadata = strndup(element->metadata, element->metadata_size);
    return true;
}

static int64_t take_offset(const rd_kafka_topic_partition_list_t *list, int i,
                           rd_kafka_resp_err_t error)
{
    if (error || list->elems[i].err || list->elems[i].offset < 0)
        return -1;
    return list->elems[i].offset;
}

static void log_lookup_failed(struct kafka_source *s, struct kafka_partition *p,
                              rd_kafka_resp_err_t error)
{
    uint64_t suppressed;

    if (log_gate_open(&s->lookup_gate, KAFKA_LOG_GATE_MS, &suppressed))
        log_event(LOG_WARN, "kafka.lookup_failed", "topic", p->topic, "partition",
                  log_i64(p->number), "reason", rd_kafka_err2str(error), "suppressed",
                  log_u64(suppressed), NULL);
}

static void lookup_after(uv_work_t *work, int status)
{
    struct kafka_lookup *lookup = work->data;
    struct kafka_source *s = lookup->source;

    (void)status;
    s->lookup = NULL;
    for (int i = 0; i < lookup->low->cnt && !s->closing; i++) {
        const rd_kafka_topic_partition_t *element = &lookup->low->elems[i];
        struct kafka_partition *p = kafka_partition_find(s, element->topic, element->partition);
        rd_kafka_resp_err_t error = lookup->committed_error ? lookup->committed_error
                                    : lookup->low_error     ? lookup->low_error
                                                            : lookup->high_error;
        if (!p || p->epoch != lookup->epochs[i])
            continue;
        p->in_lookup = false;
        if (!take_committed(lookup, p)) {
            log_lookup_failed(s, p, error);
            p->lookup_failed = true;
            kafka_lookup_want(p);
            continue;
        }
        p->low = take_offset(lookup->low, i, error);
        p->high = take_offset(lookup->high, i, error);
        p->lookup_failed = p->low < 0 || p->high < 0;
        if (p->lookup_failed)
            log_lookup_failed(s, p, error ? error : element->err);
        else
            kafka_health_up(s);
        kafka_partition_looked_up(p);
    }
    lookup_free(lookup);
    kafka_source_schedule(s);
    if (!s->closing && !uv_is_active((uv_handle_t *)&s->timers[KAFKA_T_LOOKUP]))
        kafka_lookup_run(s);
}

void kafka_lookup_run(struct kafka_source *s)
{
    struct kafka_lookup *lookup;
    size_t count = 0;

    if (s->lookup || s->closing)
        return;
    for (uint32_t i = 0; i < s->partition_count; i++)
        count += s->partitions[i]->want_lookup;
    if (!count)
        return;
    lookup = calloc(1, sizeof(*lookup));
    if (lookup)
        lookup->epochs = calloc(count, sizeof(*lookup->epochs));
    if (!lookup || !lookup->epochs) {
        free(lookup);
        kafka_source_timer(s, KAFKA_T_LOOKUP, KAFKA_RETRY_MS);
        return;
    }
    lookup->committed = rd_kafka_topic_partition_list_new((int)count);
    lookup->low = rd_kafka_topic_partition_list_new((int)count);
    lookup->high = rd_kafka_topic_partition_list_new((int)count);
    for (uint32_t i = 0; i < s->partition_count; i++) {
        struct kafka_partition *p = s->partitions[i];
        if (!p->want_lookup)
            continue;
        p->want_lookup = false;
        p->in_lookup = true;
        lookup->epochs[lookup->low->cnt] = p->epoch;
        if (p->state == KAFKA_P_LOOKUP)
            rd_kafka_topic_partition_list_add(lookup->committed, p->topic, p->number);
        rd_kafka_topic_partition_list_add(lookup->low, p->topic, p->number)->offset =
            RD_KAFKA_OFFSET_BEGINNING;
        rd_kafka_topic_partition_list_add(lookup->high, p->topic, p->number)->offset =
            RD_KAFKA_OFFSET_END;
    }
    lookup->source = s;
    lookup->work.data = lookup;
    s->lookup = lookup;
    uv_queue_work(s->loop, &lookup->work, lookup_work, lookup_after);
}

/* --- partitions that need not be ours -------------------------------------------------------- */

static void question_work(uv_work_t *work)
{
    struct kafka_question *q = work->data;

    q->error = rd_kafka_committed(q->client, q->committed, KAFKA_LOOKUP_TIMEOUT_MS);
}

static void question_after(uv_work_t *work, int status)
{
    struct kafka_question *q = work->data;
    struct kafka_source *s =
        (struct kafka_source *)((char *)q - offsetof(struct kafka_source, question));
    rd_kafka_topic_partition_list_t *committed = q->committed;

    (void)status;
    q->committed = NULL;
    for (int i = 0; !q->error && !s->closing && i < committed->cnt; i++) {
        const rd_kafka_topic_partition_t *element = &committed->elems[i];
        char *metadata;
        if (element->err || element->offset < 0)
            continue;
        metadata = strndup(element->metadata_size ? element->metadata : "", element->metadata_size);
        if (metadata) /* else it is asked again */
            s->callbacks.told(s->arg, element->topic, element->partition, element->offset,
                              metadata);
        free(metadata);
    }
    rd_kafka_topic_partition_list_destroy(committed);
    kafka_source_schedule(s); /* closing may wait for this */
}

void kafka_source_ask_committed(struct kafka_source *s, const struct kafka_place *places,
                                size_t count)
{
    if (!count || !s->connected || s->closing || s->question.committed)
        return;
    s->question.client = s->client;
    s->question.committed = rd_kafka_topic_partition_list_new((int)count);
    for (size_t i = 0; i < count; i++)
        rd_kafka_topic_partition_list_add(s->question.committed, places[i].topic, places[i].number);
    s->question.work.data = &s->question;
    uv_queue_work(s->loop, &s->question.work, question_work, question_after);
}

/* --- the kick ------------------------------------------------------------------------------- */

static void kick_work(uv_work_t *work)
{
    struct kafka_kick *kick = work->data;
    int64_t low, high;

    /* The answer is of no interest: asking is what wakes the broker's thread. */
    (void)rd_kafka_query_watermark_offsets(kick->client, kick->topic, kick->number, &low, &high,
                                           1000);
}

static void kick_after(uv_work_t *work, int status)
{
    struct kafka_kick *kick = work->data;
    struct kafka_source *s =
        (struct kafka_source *)((char *)kick - offsetof(struct kafka_source, kick));

    (void)status;
    kick->active = false;
    free(kick->topic);
    kick->topic = NULL;
    kafka_source_schedule(s);
    if (!s->closing && !uv_is_active((uv_handle_t *)&s->drain_idle))
        kafka_source_timer(s, KAFKA_T_KICK, KAFKA_KICK_AFTER_MS);
}

static bool kick_worth(struct kafka_partition *p)
{
    int64_t low, high, position = kafka_partition_position(p);

    if (p->state != KAFKA_P_ACTIVE || !p->fetched || p->parked || p->fetch_dead)
        return false;
    if (rd_kafka_get_watermark_offsets(p->source->client, p->topic, p->number, &low, &high) !=
        RD_KAFKA_RESP_ERR_NO_ERROR)
        return false;
    if (high <= position || (p->kick_position == position && p->kick_high == high))
        return false;
    p->kick_position = position;
    p->kick_high = high;
    return true;
}

/* Nothing came for a few milliseconds. Looks at some partitions, and comes back for the rest. */
void kafka_kick_fire(struct kafka_source *s)
{
    if (s->closing || s->kick.active || s->choked || s->stopped || s->waiting || !s->fresh)
        return;
    for (unsigned i = 0; i < KAFKA_KICK_SCAN && s->kick_looked < s->partition_count; i++) {
        struct kafka_partition *p = s->partitions[s->kick_cursor++ % s->partition_count];
        s->kick_looked++;
        if (!kick_worth(p))
            continue;
        s->kick.topic = strdup(p->topic);
        if (!s->kick.topic)
            return;
        s->kick.number = p->number;
        s->kick.client = s->client;
        s->kick.work.data = &s->kick;
        s->kick.active = true;
        uv_queue_work(s->loop, &s->kick.work, kick_work, kick_after);
        return;
    }
    if (s->kick_looked < s->partition_count)
        kafka_source_timer(s, KAFKA_T_KICK, KAFKA_KICK_AFTER_MS);
    else
        s->fresh = false;
}
