/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that was fenced by its own former self is made anew.
 *
 * A member whose session is over joins again without an id, and a broker gives it the place of the member
 * that has its group.instance.id; whatever that one still sends is "fenced". If the broker did not answer
 * for longer than a session, more than one such join is on its way to it, over connections that were given
 * up one after the other, and nothing says in which order it reads them: the member that it answers may be
 * the one it fences next. To the client (2.0.2) that is fatal. To us it is a session lost: all partitions
 * go as lost, and another client joins in the same place.
 *
 * So it is with a member that begins while its broker does, and gave up a join before it had an id.
 *
 * Only for as long as a session after the member got its new id. A fenced member otherwise has met another
 * spoold with its group.instance.id, and must not take turns with it: that ends the daemon.
 *
 * And so it is, but once, with the daemon's first client within a session of its first id: what its former
 * life sent before it was killed, while the network was down, may come only now. It looks like another
 * spoold's join; but a former life does not answer, so whoever fences it again is there.
 *
 * The client ends when nothing uses it any more: no run is out, no pool job asks it, no commit is under
 * way, and the pipeline has let go of every partition. A fatal error makes it give up its assignment by
 * itself, but for one that is being answered: to destroy it would wait for that for ever
 * (rd_kafka_cgrp_unassign). And before its first assignment that is an assertion that does not hold
 * (rd_kafka_sticky_assignor_state_destroy). Such a client is left as it is until the process ends, with its
 * threads, which do nothing any more. So is one whose records are in use for long: those of a stream that is
 * held may be for days.
 */
#include <assert.h>
#include <stdlib.h>

#include "source/kafka_int.h"

#define RENEW_LOOK_MS 20
#define RENEW_RUNS_MS 10000

bool kafka_renew(struct kafka_source *s, const char *reason)
{
    bool renamed = kafka_join_renamed(s);

    assert(!s->renewing);
    if (s->closing || (!renamed && (s->renewed || !kafka_join_new(s))))
        return false;
    s->renewing = s->renewed = true;
    s->renew_since_ms = uv_now(s->loop);
    log_event(LOG_WARN, "kafka.fenced", "group", s->options.group_id, "group_instance_id",
              s->static_member ? s->options.group_instance_id : "", "reason", reason, "action",
              renamed
                  ? "the session was lost, and what this member sent then has taken its place: it "
                    "joins once more"
                  : "what spoold sent before it was started again may have taken its place: it "
                    "joins once more, and ends if another one with its group.instance.id is there",
              NULL);
    kafka_group_lose_all(s);
    kafka_source_timer(s, KAFKA_T_RENEW, RENEW_LOOK_MS);
    return true;
}

static void renew_work(uv_work_t *work)
{
    struct kafka_source *s = work->data;

    kafka_source_end_queues(s);
    if (!s->renew_leaves)
        rd_kafka_destroy_flags(s->client, RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE);
}

/* renamed_ms: what the new member may be fenced by was sent before the one it follows got its id. */
static int join_again(struct kafka_source *s, uint64_t renamed_ms, struct spool_error *error)
{
    int status = kafka_source_client(s, error);

    if (status != SPOOL_OK)
        return status;
    atomic_store(&s->hook->renamed_ms, renamed_ms);
    return kafka_source_start(s, error);
}

static void renew_after(uv_work_t *work, int status)
{
    struct kafka_source *s = work->data;
    struct spool_error error;
    uint64_t renamed_ms = atomic_load(&s->hook->renamed_ms);

    (void)status;
    if (!s->renew_leaves) /* else its threads go on writing there */
        kafka_hook_destroy(s->hook);
    s->hook = NULL;
    s->client = NULL;
    s->consumer_queue = s->commit_queue = NULL;
    s->renewing = s->renew_started = false;
    s->settled = s->joined_once = s->fatal_seen = s->fatal_told = false;
    if (s->closing)
        kafka_source_schedule(s);
    else if (join_again(s, renamed_ms, &error) != SPOOL_OK)
        s->callbacks.fatal(s->arg, error.text);
}

void kafka_renew_look(struct kafka_source *s)
{
    bool runs_wait = s->runs_out > 0 && uv_now(s->loop) - s->renew_since_ms < RENEW_RUNS_MS;

    if (!s->renewing || s->renew_started)
        return;
    if (runs_wait || kafka_source_asks(s) || s->commit_in_flight || s->kept_count ||
        s->partition_count) {
        kafka_source_timer(s, KAFKA_T_RENEW, RENEW_LOOK_MS);
        return;
    }
    s->renew_started = true;
    s->renew_leaves = s->runs_out > 0 || !s->joined_once || atomic_load(&s->hook->answering);
    s->connected = s->waiting = s->choked = s->fresh = false;
    s->last_topic = NULL;
    s->last_partition = NULL;
    kafka_health_deafen(s);
    kafka_source_deaf(s);
    uv_poll_stop(&s->commit_poll);
    s->renew_work.data = s;
    uv_queue_work(s->loop, &s->renew_work, renew_work, renew_after);
}
