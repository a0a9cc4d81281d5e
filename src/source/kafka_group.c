/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rebalances. The callback runs inside the poll and only notes what it is told; the note is acted
 * on as soon as the poll has returned.
 *
 * An assignment is answered at once with an empty incremental assign, and its partitions are added
 * one by one when their offsets are known: while the client waits for that call it pauses every
 * partition it has. A revocation is answered when the pipeline is done and the last commits are
 * answered; it has to be (the next owner begins at the committed offset), and it is bounded by
 * time. A lost assignment is answered at once.
 *
 * A static member whose session ends in the middle of a rebalance goes on under a new id with all it had,
 * and the client (2.0.2) says nothing of it. The line that takes its id away does (kafka_join.c).
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "source/kafka_int.h"

static void answer_while_closing(rd_kafka_t *client, rd_kafka_resp_err_t err)
{
    rd_kafka_topic_partition_list_t *none = rd_kafka_topic_partition_list_new(0);
    rd_kafka_error_t *error = err == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS
                                  ? rd_kafka_incremental_assign(client, none)
                                  : rd_kafka_incremental_unassign(client, none);

    if (error)
        rd_kafka_error_destroy(error);
    rd_kafka_topic_partition_list_destroy(none);
}

void kafka_group_rebalance_cb(rd_kafka_t *client, rd_kafka_resp_err_t err,
                              rd_kafka_topic_partition_list_t *list, void *opaque)
{
    struct kafka_source *s = kafka_hook_source(opaque);
    struct kafka_rebalance *note;
    bool joined = kafka_join_under_way(s);

    kafka_join_over(s);
    if (s->close_started) { /* in the pool job that closes; every partition was let go before */
        answer_while_closing(client, err);
        s->close_served = true;
        return;
    }
    s->settled = err == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
    s->assigned_once |= s->settled;
    s->joined_once |= s->settled;
    note = calloc(1, sizeof(*note));
    assert(note); /* an unanswered rebalance would hang the group */
    note->kind = err;
    note->joined = joined;
    note->lost = rd_kafka_assignment_lost(client) != 0;
    note->forgotten = kafka_join_forgotten(s, s->settled);
    note->list = rd_kafka_topic_partition_list_copy(list);
    *s->rebalances_end = note;
    s->rebalances_end = &note->next;
}

static uint32_t revoke_max_ms(const struct kafka_source *s)
{
    uint64_t half = s->max_poll_interval_ms / 2;

    return (uint32_t)(half < KAFKA_REVOKE_MAX_MS ? half : KAFKA_REVOKE_MAX_MS);
}

/* Marks the listed partitions and appends them to s->revoking. Those the pipeline never heard of
   go without a word. */
static void revoke_mark(struct kafka_source *s, const rd_kafka_topic_partition_list_t *list)
{
    struct kafka_partition **grown;

    grown =
        realloc(s->revoking, (s->revoking_count + (size_t)list->cnt + 1) * sizeof(*s->revoking));
    assert(grown);
    s->revoking = grown;
    for (int i = 0; i < list->cnt; i++) {
        struct kafka_partition *p =
            kafka_partition_find(s, list->elems[i].topic, list->elems[i].partition);
        if (!p || p->state == KAFKA_P_REVOKING)
            continue;
        kafka_run_discard(p);
        p->want_lookup = false;
        if (!p->announced) {
            assert(!p->fetched);
            kafka_partition_remove(p);
            continue;
        }
        p->state = KAFKA_P_REVOKING;
        s->revoking[s->revoking_count++] = p;
    }
}

/* The partitions go now, whether or not the pipeline is done with them (it is with so many, the first):
   out of the assignment and out of the table (they may be assigned again at once). Their memory stays
   until it is. */
static void revoke_now(struct kafka_source *s, size_t done)
{
    size_t count = s->revoking_count;
    struct kafka_partition **grown = realloc(s->kept, (s->kept_count + count + 1) * sizeof(*grown));

    assert(grown);
    s->kept = grown;
    if (done) /* it says so once for all, so it is with those before, too */
        s->kept_done = s->kept_count + done;
    uv_timer_stop(&s->timers[KAFKA_T_REVOKE]);
    for (size_t i = 0; i < count; i++) {
        kafka_commit_forget(s->revoking[i]);
        s->revoking[i]->kept = true;
        s->kept[s->kept_count++] = s->revoking[i];
    }
    s->revoking_count = 0;
    s->revoke_pending = s->revoke_done = false;
    kafka_partitions_unassign(s, s->kept + s->kept_count - count, count);
    for (size_t i = s->kept_count - count; i < s->kept_count; i++)
        kafka_partition_remove(s->kept[i]);
}

/* Where they are lost, those that the pipeline is not done with yet are lost with them: it is told so once
   more, lest it wait for the answers to their commits. */
static void group_revoke(struct kafka_source *s, const rd_kafka_topic_partition_list_t *list,
                         bool lost)
{
    size_t before = lost && !s->revoke_done ? 0 : s->revoking_count, count;
    size_t pending = s->revoking_count - before;
    struct kafka_partition **told;

    revoke_mark(s, list);
    count = s->revoking_count - before;
    told = s->revoking + before;
    log_event(lost ? LOG_WARN : LOG_INFO, lost ? "kafka.lost" : "kafka.revoked", "partitions",
              log_i64(list->cnt + (int64_t)pending), "total", log_u64(s->partition_count), NULL);
    if (lost) {
        revoke_now(s, before);
        told = s->kept + s->kept_count - count;
    } else {
        s->revoke_pending = true;
        s->revoke_done = s->revoking_count == 0;
        kafka_source_timer(s, KAFKA_T_REVOKE, revoke_max_ms(s) + KAFKA_REVOKE_SLACK_MS);
    }
    if (count > 0)
        s->callbacks.revoking(s->arg, told, count, lost, revoke_max_ms(s));
    else
        kafka_group_try_finish_revoke(s);
}

static void group_add(struct kafka_source *s, const rd_kafka_topic_partition_list_t *list)
{
    for (int i = 0; i < list->cnt; i++) {
        const char *topic = list->elems[i].topic;
        int32_t number = list->elems[i].partition;
        struct kafka_partition *p = kafka_partition_find(s, topic, number);
        if (p) /* still ours: nothing changed */
            continue;
        p = kafka_partition_add(s, topic, number);
        assert(p);
        kafka_lookup_want(p);
    }
}

static rd_kafka_topic_partition_list_t *lose_all(struct kafka_source *s)
{
    rd_kafka_topic_partition_list_t *list =
        rd_kafka_topic_partition_list_new((int)s->partition_count + 1);

    for (uint32_t i = 0; i < s->partition_count; i++)
        if (s->partitions[i]->state != KAFKA_P_REVOKING)
            rd_kafka_topic_partition_list_add(list, s->partitions[i]->topic,
                                              s->partitions[i]->number);
    if (list->cnt || s->revoking_count)
        group_revoke(s, list, true);
    return list;
}

/* Of a member that the group had forgotten: whatever it has yet may have been another's meanwhile, and
   begins as what is new does. */
static void group_begin_again(struct kafka_source *s)
{
    rd_kafka_topic_partition_list_t *list = lose_all(s);

    group_add(s, list);
    rd_kafka_topic_partition_list_destroy(list);
}

/* Those that are being revoked go at once, too. */
void kafka_group_lose_all(struct kafka_source *s)
{
    rd_kafka_topic_partition_list_destroy(lose_all(s));
}

/* joined: else it is what was given with a revocation, before we joined again. */
static void group_assign(struct kafka_source *s, const rd_kafka_topic_partition_list_t *list,
                         bool joined, bool forgotten)
{
    answer_while_closing(s->client, RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS);
    if (joined)
        s->callbacks.rebalanced(s->arg);
    kafka_partitions_reseek(s);
    if (forgotten)
        group_begin_again(s);
    group_add(s, list);
    if (list->cnt)
        log_event(LOG_INFO, "kafka.assigned", "partitions", log_i64(list->cnt), "total",
                  log_u64(s->partition_count), NULL);
    kafka_health_up(s);
    s->denied = false;
}

void kafka_group_serve(struct kafka_source *s)
{
    while (s->rebalances) {
        struct kafka_rebalance *note = s->rebalances;
        s->rebalances = note->next;
        if (!s->rebalances)
            s->rebalances_end = &s->rebalances;
        s->reseek_due = true; /* with the answer that it gets, now or later */
        if (s->renewing) {
            answer_while_closing(s->client, note->kind);
        } else if (note->kind == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
            group_assign(s, note->list, note->joined, note->forgotten);
        } else {
            group_revoke(s, note->list, note->lost || note->forgotten);
            if (note->forgotten)
                group_begin_again(s);
        }
        rd_kafka_topic_partition_list_destroy(note->list);
        free(note);
    }
}

static bool commits_open(const struct kafka_source *s)
{
    for (size_t i = 0; i < s->revoking_count; i++)
        if (s->revoking[i]->commit.next >= 0 || s->revoking[i]->commit.sent >= 0)
            return true;
    return false;
}

/* Unassigns when the pipeline is done and its last commits are answered. */
void kafka_group_try_finish_revoke(struct kafka_source *s)
{
    if (!s->revoke_done || commits_open(s))
        return;
    uv_timer_stop(&s->timers[KAFKA_T_REVOKE]);
    s->revoke_done = false;
    if (s->revoke_pending) {
        s->revoke_pending = false;
        kafka_partitions_unassign(s, s->revoking, s->revoking_count);
    }
    for (size_t i = 0; i < s->revoking_count; i++)
        kafka_partition_remove(s->revoking[i]);
    s->revoking_count = 0;
}

void kafka_group_let_go(struct kafka_source *s, size_t count)
{
    assert(count <= s->kept_count);
    for (size_t i = 0; i < count; i++) {
        s->kept[i]->kept = false;
        kafka_partition_unref(s->kept[i]);
    }
    s->kept_count -= count;
    s->kept_done = 0;
    if (count)
        memmove(s->kept, s->kept + count, s->kept_count * sizeof(*s->kept));
}

void kafka_revoke_done(struct kafka_source *source)
{
    /* In the next turn: the caller may be inside of revoking(), and look at them once more. */
    source->kept_done = source->kept_count;
    if (source->revoking_count)
        source->revoke_done = true;
    kafka_source_schedule(source);
}

void kafka_group_revoke_over(struct kafka_source *s)
{
    if (s->revoking_count && !s->revoke_done)
        log_event(LOG_WARN, "kafka.revoke_late", "partitions", log_u64(s->revoking_count), NULL);
    revoke_now(s, s->revoke_done ? s->revoking_count : 0);
}
