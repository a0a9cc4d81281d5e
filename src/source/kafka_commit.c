/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commits. Those made in one turn of the loop go in one request, and one request is under way at a
 * time: librdkafka starts newly assigned partitions only at a moment without a commit in flight,
 * which requests that overlap without end would never give it. None is sent while the group joins or
 * has no coordinator (kafka_join.c).
 */
#include <stdlib.h>
#include <string.h>

#include "base/failpoint.h"
#include "source/kafka_int.h"

void kafka_commit(struct kafka_partition *p, int64_t next_offset, const char *metadata)
{
    struct kafka_source *s = p->source;
    char *copy;

    if (p->state == KAFKA_P_GONE || (p->state == KAFKA_P_REVOKING && !s->revoke_pending))
        return; /* lost: not ours to commit */
    copy = strdup(metadata ? metadata : "");
    if (!copy) {
        s->callbacks.committed(s->arg, p, next_offset, SPOOL_E_NOMEM, "out of memory");
        return;
    }
    free(p->commit.next_metadata);
    p->commit.next_metadata = copy;
    p->commit.next = next_offset;
    s->commits_due = true;
    kafka_source_schedule(s);
}

void kafka_commit_forget(struct kafka_partition *p)
{
    free(p->commit.next_metadata);
    free(p->commit.sent_metadata);
    p->commit.next_metadata = p->commit.sent_metadata = NULL;
    p->commit.next = p->commit.sent = -1;
}

static bool is_permanent(rd_kafka_resp_err_t err)
{
    switch (err) {
    case RD_KAFKA_RESP_ERR_OFFSET_METADATA_TOO_LARGE:
    case RD_KAFKA_RESP_ERR_INVALID_COMMIT_OFFSET_SIZE:
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
    case RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID:
    case RD_KAFKA_RESP_ERR_INVALID_GROUP_ID:
    case RD_KAFKA_RESP_ERR__FATAL:
        return true;
    default:
        return false;
    }
}

static void log_commit_failed(struct kafka_source *s, const struct kafka_partition *p,
                              rd_kafka_resp_err_t err, bool permanent)
{
    uint64_t suppressed;

    if (log_gate_open(&s->commit_gate, KAFKA_LOG_GATE_MS, &suppressed))
        log_event(LOG_WARN, "kafka.commit_failed", "topic", p->topic, "partition",
                  log_i64(p->number), "offset", log_i64(p->commit.sent), "reason",
                  rd_kafka_err2str(err), "again", permanent ? "no" : "yes", "suppressed",
                  log_u64(suppressed), NULL);
}

static void commit_answered(struct kafka_partition *p, rd_kafka_resp_err_t err)
{
    struct kafka_source *s = p->source;
    int64_t offset = p->commit.sent;
    bool permanent = err && is_permanent(err);

    if (err)
        log_commit_failed(s, p, err, permanent);
    else
        kafka_health_up(s);
    p->commit.sent = -1;
    if (err && !permanent) {
        if (p->commit.next < 0) { /* nothing newer: the same again */
            p->commit.next = offset;
            p->commit.next_metadata = p->commit.sent_metadata;
            p->commit.sent_metadata = NULL;
        }
        free(p->commit.sent_metadata);
        p->commit.sent_metadata = NULL;
        kafka_source_timer(s, KAFKA_T_COMMIT, KAFKA_COMMIT_RETRY_MS);
        return;
    }
    free(p->commit.sent_metadata);
    p->commit.sent_metadata = NULL;
    if (p->state == KAFKA_P_REVOKING && s->revoke_done)
        return; /* the pipeline has let go of it */
    s->callbacks.committed(s->arg, p, offset, err ? SPOOL_E_IO : SPOOL_OK,
                           err ? rd_kafka_err2str(err) : "");
}

/* Before the client gives the error of one partition to all that have none (2.0.2), and to commit_cb. */
rd_kafka_resp_err_t kafka_commit_seen(rd_kafka_t *client,
                                      const rd_kafka_topic_partition_list_t *offsets,
                                      rd_kafka_resp_err_t err, void *arg)
{
    struct kafka_hook *h = arg;
    rd_kafka_topic_partition_list_t *answer = NULL;
    int refused = 0;

    (void)client;
    for (int i = 0; err && i < offsets->cnt; i++)
        refused += offsets->elems[i].err != RD_KAFKA_RESP_ERR_NO_ERROR;
    if (refused) /* else the error is the request's, or there is none */
        answer = rd_kafka_topic_partition_list_copy(offsets);
    answer = atomic_exchange(&h->commit_answer, answer);
    if (answer)
        rd_kafka_topic_partition_list_destroy(answer);
    return RD_KAFKA_RESP_ERR_NO_ERROR;
}

static void commit_cb(rd_kafka_t *client, rd_kafka_resp_err_t err,
                      rd_kafka_topic_partition_list_t *offsets, void *opaque)
{
    struct kafka_source *s = opaque;
    rd_kafka_topic_partition_list_t *answer = atomic_exchange(&s->hook->commit_answer, NULL);

    (void)client;
    FAILPOINT(FP_KAFKA_COMMIT_DONE);
    if (answer) {
        offsets = answer;
        err = RD_KAFKA_RESP_ERR_NO_ERROR;
    }
    s->commit_in_flight = false;
    kafka_join_commit_answered(s);
    for (int i = 0; offsets && i < offsets->cnt; i++) {
        const rd_kafka_topic_partition_t *element = &offsets->elems[i];
        struct kafka_partition *p = kafka_partition_find(s, element->topic, element->partition);
        /* A partition that went and came back meanwhile has nothing in flight. */
        if (p && p->commit.sent >= 0)
            commit_answered(p, element->err ? element->err : err);
    }
    /* Whatever the list left out is as unanswered as after an error. */
    for (uint32_t i = 0; i < s->partition_count; i++)
        if (s->partitions[i]->commit.sent >= 0)
            commit_answered(s->partitions[i], err ? err : RD_KAFKA_RESP_ERR__FAIL);
    if (answer)
        rd_kafka_topic_partition_list_destroy(answer);
    if (!uv_is_active((uv_handle_t *)&s->timers[KAFKA_T_COMMIT]))
        s->commits_due = true;
    kafka_source_schedule(s);
}

static void put_commit(rd_kafka_topic_partition_list_t *list, struct kafka_partition *p)
{
    rd_kafka_topic_partition_t *element =
        rd_kafka_topic_partition_list_add(list, p->topic, p->number);
    size_t size = strlen(p->commit.next_metadata);

    element->offset = p->commit.next;
    if (size) { /* freed with the list, by the library's free() */
        element->metadata = strdup(p->commit.next_metadata);
        element->metadata_size = element->metadata ? size : 0;
    }
    free(p->commit.sent_metadata);
    p->commit.sent = p->commit.next;
    p->commit.sent_metadata = p->commit.next_metadata;
    p->commit.next = -1;
    p->commit.next_metadata = NULL;
}

bool kafka_commit_waits(const struct kafka_source *s)
{
    for (uint32_t i = 0; i < s->partition_count; i++)
        if (s->partitions[i]->commit.next >= 0)
            return true;
    return false;
}

void kafka_commit_flush(struct kafka_source *s)
{
    rd_kafka_topic_partition_list_t *list;
    rd_kafka_resp_err_t err;

    if (s->commit_in_flight || s->close_started || !kafka_commit_waits(s))
        return;
    if (!kafka_join_commit_begin(s)) {
        /* kafka_join_over or kafka_join_coordinator comes back; but a member gets its id, and the
           coordinator may come, between what those two see. */
        bool later = kafka_join_under_way(s) || kafka_join_coordinator_away(s);
        kafka_source_timer(s, KAFKA_T_COMMIT, later ? KAFKA_COMMIT_WATCH_MS : KAFKA_COMMIT_LOOK_MS);
        return;
    }
    uv_timer_stop(&s->timers[KAFKA_T_COMMIT]); /* the answer says when to look again */
    list = rd_kafka_topic_partition_list_new(16);
    for (uint32_t i = 0; i < s->partition_count; i++)
        if (s->partitions[i]->commit.next >= 0)
            put_commit(list, s->partitions[i]);
    s->commit_in_flight = true;
    err = rd_kafka_commit_queue(s->client, list, s->commit_queue, commit_cb, s);
    kafka_join_commit_end(s);
    if (err)
        commit_cb(s->client, err, list, s);
    else
        FAILPOINT(FP_KAFKA_COMMIT_SENT);
    rd_kafka_topic_partition_list_destroy(list);
}

void kafka_commit_serve(struct kafka_source *s)
{
    while (rd_kafka_queue_poll_callback(s->commit_queue, 0) > 0)
        ;
}
