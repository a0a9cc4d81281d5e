/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Kafka source on the loop: waking, draining, and its life.
 *
 * librdkafka writes to an eventfd when its consumer queue goes from empty to not empty: an edge.
 * Whoever stops before the poll has said NULL must come back by himself, or nothing wakes him
 * again. So a drain takes KAFKA_TAKE_PER_TURN records and an idle handle goes on in the next turn;
 * held back by the limits, it goes on when something held was let go.
 *
 * A member must poll to stay one, whatever the limits say. So when they hold for longer than
 * KAFKA_CHOKE_MS every partition is paused, and the queue, which then has only events, is drained
 * as usual. A timer polls an idle consumer every second, at least every quarter of
 * max.poll.interval.ms, and wakes the client's main thread: that waits by the wall clock (2.0.2), and
 * where it is set back in the middle of a wait no heartbeat goes before something else wakes it.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/limits.h"
#include "source/kafka_int.h"

#define DEFAULT_HELD_BYTES    (16 * MIB)
#define DEFAULT_HELD_MESSAGES 40000
#define DEFAULT_LINGER_MS     100
#define POLL_TIMER_MAX_MS     1000
/* A record is taken for so large before one was seen: a broker's message.max.bytes, unless it is set. */
#define RECORD_BYTES_UNKNOWN (1 << 20)

static void close_try(struct kafka_source *s);

static bool over_limits(const struct kafka_source *s)
{
    return s->held_messages >= s->max_held_messages || s->held_bytes >= s->max_held_bytes;
}

static bool held_back(const struct kafka_source *s)
{
    return s->blocking > 0 || (!s->choked && over_limits(s));
}

static void drain_turn(uv_idle_t *handle)
{
    kafka_source_drain(handle->data);
}

void kafka_source_wake(struct kafka_source *s)
{
    if (!s->closing && !s->renew_started)
        uv_idle_start(&s->drain_idle, drain_turn);
}

static void source_turn(uv_idle_t *handle)
{
    struct kafka_source *s = handle->data;

    uv_idle_stop(&s->turn_idle);
    if (s->starts_due && !s->closing) {
        s->starts_due = false;
        kafka_partitions_flush_starts(s);
    }
    if (s->pauses_due && !s->closing) {
        s->pauses_due = false;
        kafka_partitions_flush_pauses(s);
    }
    if (s->commits_due) {
        s->commits_due = false;
        kafka_commit_flush(s);
    }
    kafka_group_let_go(s, s->kept_done);
    kafka_group_try_finish_revoke(s);
    if (s->closing)
        close_try(s);
}

void kafka_source_schedule(struct kafka_source *s)
{
    if (!s->close_started)
        uv_idle_start(&s->turn_idle, source_turn);
}

/* How many records to ask for: what the limits leave, taking each for as large as the largest of
   the last call that gave any. */
static size_t batch_wanted(const struct kafka_source *s, unsigned taken)
{
    size_t wanted = KAFKA_TAKE_PER_TURN - taken;

    if (wanted > KAFKA_TAKE_PER_CALL)
        wanted = KAFKA_TAKE_PER_CALL;
    if (s->choked)
        return wanted;
    uint64_t messages = s->max_held_messages - s->held_messages;
    uint64_t bytes = (s->max_held_bytes - s->held_bytes) / (s->largest_bytes + 1);
    if (wanted > messages)
        wanted = messages;
    if (wanted > bytes)
        wanted = bytes;
    return wanted ? wanted : 1;
}

/* stale: its partition was sought since it came out of the queue, and what it is comes again. */
static void take(struct kafka_source *s, rd_kafka_message_t *m, bool stale)
{
    struct kafka_partition *p;

    if (stale && (!m->err || m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)) {
        rd_kafka_message_destroy(m);
        return;
    }
    if (m->err) {
        kafka_health_record_error(s, m);
        rd_kafka_message_destroy(m);
        return;
    }
    p = kafka_partition_of(s, m);
    if (p && p->state == KAFKA_P_ACTIVE && p->verifying && !p->doubted)
        kafka_mark_verify(p, m);
    if (!p || p->state != KAFKA_P_ACTIVE || m->offset <= p->taken || p->hard_paused || p->doubted) {
        rd_kafka_message_destroy(m);
        return;
    }
    s->fresh = true;
    if (!s->connected)
        kafka_health_up(s);
    kafka_run_take(p, m);
}

/* The limits are reached: makes room, and waits where that is not enough. */
static void drain_hold(struct kafka_source *s)
{
    if (!s->blocking)
        kafka_run_make_room(s);
    if (!held_back(s)) { /* what was handed over came back at once */
        uv_idle_start(&s->drain_idle, drain_turn);
        return;
    }
    s->waiting = true;
    uv_idle_stop(&s->drain_idle);
    if (!s->choked && !uv_is_active((uv_handle_t *)&s->timers[KAFKA_T_CHOKE]))
        kafka_source_timer(s, KAFKA_T_CHOKE, KAFKA_CHOKE_MS);
}

/*
 * Batches, because a poll for each record reads the clock three times and takes twice the locks.
 * All of a batch is looked at before anything else is asked of the client, so none of it is ever
 * older than a seek or an assignment. What 2.0.2 loses with the batch call: a version barrier (a
 * rebalance's pause) throws records out of the batch that the client counts as consumed, and its
 * resume goes on behind them. kafka_partitions_reseek brings them back. Other barriers come only
 * from our own seeks and assignments, which name taken + 1.
 */
void kafka_source_drain(struct kafka_source *s)
{
    rd_kafka_message_t *batch[KAFKA_TAKE_PER_CALL];
    unsigned taken = 0;

    if (s->closing || s->renew_started || s->in_poll)
        return;
    s->in_poll = true;
    s->kick_looked = 0;
    for (;;) {
        uint64_t reseeks = s->reseeks, largest = s->largest_bytes;
        size_t wanted;
        ssize_t n;
        bool doubted;

        if (held_back(s)) {
            drain_hold(s);
            break;
        }
        if (taken == KAFKA_TAKE_PER_TURN) {
            uv_idle_start(&s->drain_idle, drain_turn);
            break;
        }
        wanted = batch_wanted(s, taken);
        n = rd_kafka_consume_batch_queue(s->consumer_queue, 0, batch, wanted);
        if (s->rebalances)
            kafka_group_serve(s);
        if (n > 0)
            s->largest_bytes = 0;
        doubted = kafka_mark_doubts(s);
        for (ssize_t i = 0; i < n; i++)
            take(s, batch[i], s->reseeks != reseeks);
        if (!s->largest_bytes)
            s->largest_bytes = largest;
        if (doubted)
            kafka_partitions_reseek_doubted(s);
        if (n < (ssize_t)wanted) { /* the queue was seen empty: its event will come */
            uv_idle_stop(&s->drain_idle);
            if (s->fresh)
                kafka_source_timer(s, KAFKA_T_KICK, KAFKA_KICK_AFTER_MS);
            break;
        }
        taken += (unsigned)n;
    }
    s->in_poll = false;
    kafka_health_tell_fatal(s);
}

/* Something held was let go: the drain may go on. */
void kafka_source_room(struct kafka_source *s)
{
    if (s->closing) {
        kafka_source_schedule(s);
        return;
    }
    if (s->choked && s->held_messages * 2 <= s->max_held_messages &&
        s->held_bytes * 2 <= s->max_held_bytes) {
        s->choked = false;
        s->pauses_due = true;
        kafka_source_schedule(s);
    }
    if (s->waiting && !held_back(s)) {
        s->waiting = false;
        uv_timer_stop(&s->timers[KAFKA_T_CHOKE]);
        kafka_source_wake(s);
    }
}

static void choke(struct kafka_source *s)
{
    if (!s->waiting || s->choked)
        return;
    s->choked = true;
    kafka_partitions_flush_pauses(s);
    s->waiting = false;
    kafka_source_wake(s);
}

static void timer_fired(uv_timer_t *timer)
{
    struct kafka_source *s = timer->data;

    switch ((enum kafka_timer)(timer - s->timers)) {
    case KAFKA_T_POLL:
        (void)rd_kafka_rebalance_protocol(s->client); /* any question to the main thread */
        kafka_source_drain(s);
        break;
    case KAFKA_T_LINGER:
        kafka_run_linger_over(s);
        break;
    case KAFKA_T_KICK:
        kafka_kick_fire(s);
        break;
    case KAFKA_T_SOFT_PAUSE:
        kafka_partitions_soft_pause_over(s);
        break;
    case KAFKA_T_CHOKE:
        choke(s);
        break;
    case KAFKA_T_REVOKE:
        kafka_group_revoke_over(s);
        break;
    case KAFKA_T_LOOKUP:
        kafka_lookup_run(s);
        break;
    case KAFKA_T_COMMIT:
        s->commits_due = true;
        kafka_source_schedule(s);
        break;
    case KAFKA_T_PROBE:
        kafka_health_probe(s);
        break;
    case KAFKA_T_CLOSE:
        s->close_commits_over = true;
        close_try(s);
        break;
    case KAFKA_T_RENEW:
        kafka_renew_look(s);
        break;
    case KAFKA_TIMERS:
        break;
    }
}

void kafka_source_timer(struct kafka_source *s, enum kafka_timer which, uint64_t ms)
{
    if (!s->closing || which == KAFKA_T_CLOSE || which == KAFKA_T_COMMIT)
        uv_timer_start(&s->timers[which], timer_fired, ms, 0);
}

static void clear_event(int fd)
{
    uint64_t count;

    while (read(fd, &count, sizeof(count)) == (ssize_t)sizeof(count))
        ;
}

static void consumer_ready(uv_poll_t *handle, int status, int events)
{
    struct kafka_source *s = handle->data;

    (void)status;
    (void)events;
    clear_event(s->consumer_fd);
    if (!s->waiting)
        kafka_source_drain(s);
}

static void commit_ready(uv_poll_t *handle, int status, int events)
{
    struct kafka_source *s = handle->data;

    (void)status;
    (void)events;
    clear_event(s->commit_fd);
    kafka_health_lines(s);
    kafka_join_coordinator(s);
    if (!s->close_started)
        kafka_commit_serve(s);
}

static uint64_t conf_number(const rd_kafka_conf_t *conf, const char *name)
{
    char text[64];
    size_t size = sizeof(text);

    if (rd_kafka_conf_get(conf, name, text, &size) != RD_KAFKA_CONF_OK)
        return 0;
    return strtoull(text, NULL, 10);
}

/* Gives the client's threads their place to write to. */
static int client_hook(struct kafka_source *s, const struct kafka_options *options,
                       rd_kafka_conf_t *conf, struct spool_error *error)
{
    s->hook = kafka_hook_create(s);
    if (!s->hook)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    s->hook->level_max = (int)conf_number(conf, "log_level");
    for (size_t i = 0; i < options->property_count; i++)
        if (strcmp(options->properties[i].name, "debug") == 0)
            s->hook->verbose = options->properties[i].value[0] != '\0';
    return kafka_hook_attach(s->hook, conf, error);
}

int kafka_source_client(struct kafka_source *s, struct spool_error *error)
{
    const struct kafka_options *options = &s->options;
    static const uint64_t one = 1;
    rd_kafka_conf_t *conf = NULL;
    char text[400];
    int status = kafka_conf_build(options, true, &conf, error);

    if (status)
        return status;
    status = client_hook(s, options, conf, error);
    if (status) {
        rd_kafka_conf_destroy(conf);
        return status;
    }
    s->max_poll_interval_ms = conf_number(conf, "max.poll.interval.ms");
    s->session_ms = conf_number(conf, "session.timeout.ms");
    rd_kafka_conf_set_log_cb(conf, kafka_health_log_cb);
    rd_kafka_conf_set_error_cb(conf, kafka_health_error_cb);
    rd_kafka_conf_set_ssl_cert_verify_cb(conf, kafka_reason_certificate);
    rd_kafka_conf_set_rebalance_cb(conf, kafka_group_rebalance_cb);
    s->client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, text, sizeof(text));
    if (!s->client) {
        rd_kafka_conf_destroy(conf);
        return spool_error_set(error, SPOOL_E_INVALID, "kafka.properties: %s", text);
    }
    rd_kafka_poll_set_consumer(s->client);
    s->consumer_queue = rd_kafka_queue_get_consumer(s->client);
    s->commit_queue = rd_kafka_queue_new(s->client);
    rd_kafka_queue_io_event_enable(s->consumer_queue, s->consumer_fd, &one, sizeof(one));
    rd_kafka_queue_io_event_enable(s->commit_queue, s->commit_fd, &one, sizeof(one));
    return SPOOL_OK;
}

static void source_free(struct kafka_source *s)
{
    if (s->topics)
        rd_kafka_topic_partition_list_destroy(s->topics);
    while (s->rebalances) {
        struct kafka_rebalance *note = s->rebalances;
        s->rebalances = note->next;
        rd_kafka_topic_partition_list_destroy(note->list);
        free(note);
    }
    if (s->consumer_fd >= 0)
        close(s->consumer_fd);
    if (s->commit_fd >= 0)
        close(s->commit_fd);
    if (s->hook)
        kafka_hook_destroy(s->hook);
    free(s->partitions);
    free(s->revoking);
    free(s->kept);
    free(s);
}

static void init_handles(struct kafka_source *s)
{
    uv_idle_init(s->loop, &s->drain_idle);
    uv_idle_init(s->loop, &s->turn_idle);
    s->drain_idle.data = s->turn_idle.data = s;
    for (int i = 0; i < KAFKA_TIMERS; i++) {
        uv_timer_init(s->loop, &s->timers[i]);
        s->timers[i].data = s;
    }
    uv_poll_init(s->loop, &s->consumer_poll, s->consumer_fd);
    uv_poll_init(s->loop, &s->commit_poll, s->commit_fd);
    s->consumer_poll.data = s->commit_poll.data = s;
    s->handles = 2 + KAFKA_TIMERS + 2;
}

int kafka_source_create(uv_loop_t *loop, const struct kafka_options *options,
                        const struct kafka_callbacks *callbacks, void *arg,
                        struct kafka_source **out, struct spool_error *error)
{
    struct kafka_source *s = calloc(1, sizeof(*s));
    int status;

    if (!s)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    s->loop = loop;
    s->thread = uv_thread_self();
    s->callbacks = *callbacks;
    s->arg = arg;
    s->options = *options;
    s->reset = options->auto_offset_reset;
    s->static_member = options->group_instance_id && options->group_instance_id[0];
    s->largest_bytes = RECORD_BYTES_UNKNOWN;
    s->max_held_bytes = options->max_held_bytes ? options->max_held_bytes : DEFAULT_HELD_BYTES;
    s->max_held_messages =
        options->max_held_messages ? options->max_held_messages : DEFAULT_HELD_MESSAGES;
    s->run_rows = options->run_rows ? options->run_rows : LIMIT_BLOCK_ROWS;
    s->run_bytes = options->run_bytes ? options->run_bytes : LIMIT_RUN_BYTES;
    s->run_linger_ms = options->run_linger_ms ? options->run_linger_ms : DEFAULT_LINGER_MS;
    s->rebalances_end = &s->rebalances;
    s->consumer_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    s->commit_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (s->consumer_fd < 0 || s->commit_fd < 0)
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "eventfd");
    else
        status = kafka_source_client(s, error);
    if (status) {
        source_free(s);
        return status;
    }
    s->topics = rd_kafka_topic_partition_list_new((int)options->topic_count);
    for (size_t i = 0; i < options->topic_count; i++)
        rd_kafka_topic_partition_list_add(s->topics, options->topics[i], RD_KAFKA_PARTITION_UA);
    init_handles(s);
    *out = s;
    return SPOOL_OK;
}

void kafka_source_listen(struct kafka_source *s)
{
    uint64_t poll_ms = s->max_poll_interval_ms / 4;

    if (poll_ms > POLL_TIMER_MAX_MS)
        poll_ms = POLL_TIMER_MAX_MS;
    if (poll_ms == 0)
        poll_ms = 1;
    uv_poll_start(&s->consumer_poll, UV_READABLE, consumer_ready);
    uv_poll_start(&s->commit_poll, UV_READABLE, commit_ready);
    uv_timer_start(&s->timers[KAFKA_T_POLL], timer_fired, poll_ms, poll_ms);
}

void kafka_source_deaf(struct kafka_source *s)
{
    uv_idle_stop(&s->drain_idle);
    uv_poll_stop(&s->consumer_poll);
    for (int i = 0; i < KAFKA_TIMERS; i++)
        uv_timer_stop(&s->timers[i]);
}

int kafka_source_start(struct kafka_source *s, struct spool_error *error)
{
    rd_kafka_resp_err_t err;

    kafka_source_listen(s);
    err = rd_kafka_subscribe(s->client, s->topics);
    if (err)
        return spool_error_set(error, SPOOL_E_INVALID, "cannot subscribe: %s",
                               rd_kafka_err2str(err));
    s->started = true;
    snprintf(s->reason, sizeof(s->reason), "no broker has answered yet");
    kafka_health_probe(s);
    kafka_source_wake(s); /* what was queued before the eventfd was there */
    return SPOOL_OK;
}

void kafka_source_stop(struct kafka_source *s)
{
    if (s->stopped)
        return;
    s->stopped = true;
    for (uint32_t i = 0; i < s->partition_count; i++) {
        struct kafka_partition *p = s->partitions[i];
        if (p->state == KAFKA_P_ACTIVE && !p->hard_paused)
            kafka_run_hand_over(p);
    }
    kafka_partitions_flush_pauses(s);
}

bool kafka_source_assigned(const struct kafka_source *s)
{
    return s->assigned_once;
}

bool kafka_source_settled(const struct kafka_source *s)
{
    return s->settled && s->connected && !kafka_join_under_way(s) && kafka_join_heard(s);
}

uint64_t kafka_source_session_ms(const struct kafka_source *s)
{
    return s->session_ms;
}

void kafka_source_stats(const struct kafka_source *s, struct kafka_stats *out)
{
    memset(out, 0, sizeof(*out));
    out->assigned_partitions = s->partition_count;
    out->held_messages = s->held_messages;
    out->held_bytes = s->held_bytes;
    out->connected = s->connected;
    if (s->connected && s->denied)
        snprintf(out->reason, sizeof(out->reason),
                 "the broker refuses the user the group \"%s\": allow it Read of the group",
                 s->options.group_id);
    else
        snprintf(out->reason, sizeof(out->reason), "%s", s->reason);
}

/* --- closing -------------------------------------------------------------------------------- */

static void handle_closed(uv_handle_t *handle)
{
    struct kafka_source *s = handle->data;
    void (*closed)(void *) = s->closed;
    void *arg = s->closed_arg;

    if (--s->handles > 0)
        return;
    source_free(s);
    closed(arg);
}

static void close_after(uv_work_t *work, int status)
{
    struct kafka_source *s = work->data;

    (void)status;
    uv_close((uv_handle_t *)&s->drain_idle, handle_closed);
    uv_close((uv_handle_t *)&s->turn_idle, handle_closed);
    uv_close((uv_handle_t *)&s->consumer_poll, handle_closed);
    uv_close((uv_handle_t *)&s->commit_poll, handle_closed);
    for (int i = 0; i < KAFKA_TIMERS; i++)
        uv_close((uv_handle_t *)&s->timers[i], handle_closed);
}

/*
 * Whether destroying ends. 2.0.2 asserts (rd_kafka_sticky_assignor_state_destroy) or waits for ever
 * between joining a group and its first assignment; and where a rebalance waits for an answer, which
 * is between the start of a join and its assignment, and between a revocation and the assignment
 * behind it, it waits for ever too (rd_kafka_cgrp_unassign passes over WAIT_ASSIGN_CALL). Closing
 * first does not help: its revocation overtakes, and the answer to it may be thrown away unread.
 */
static bool may_destroy(const struct kafka_source *s)
{
    if (!s->started)
        return true;
    return s->close_leave ? s->joined_once : s->settled && !kafka_join_under_way(s);
}

void kafka_source_end_queues(struct kafka_source *s)
{
    rd_kafka_queue_io_event_enable(s->consumer_queue, -1, NULL, 0);
    rd_kafka_queue_io_event_enable(s->commit_queue, -1, NULL, 0);
    rd_kafka_queue_destroy(s->consumer_queue);
    rd_kafka_queue_destroy(s->commit_queue);
}

/* rd_kafka_destroy waits for the client's threads: a pool job. */
static void close_work(uv_work_t *work)
{
    struct kafka_source *s = work->data;
    int flags = RD_KAFKA_DESTROY_F_NO_CONSUMER_CLOSE;

    if (!s->client)
        return;
    if (s->close_leave) {
        /* Closing alone never makes a static member leave; unsubscribing does, once the
           revocation it causes is answered. */
        rd_kafka_unsubscribe(s->client);
        for (int i = 0; i < 1 || (i < 20 && !s->close_served); i++) {
            rd_kafka_message_t *m = rd_kafka_consumer_poll(s->client, 100);
            if (m)
                rd_kafka_message_destroy(m);
        }
        rd_kafka_consumer_close(s->client);
        flags = 0;
    }
    kafka_source_end_queues(s);
    /* The process is about to end, and nothing is polled any more: the client is left to that end. */
    if (!may_destroy(s)) {
        s->hook = NULL; /* its threads go on writing there */
        return;
    }
    rd_kafka_destroy_flags(s->client, flags);
}

/* A join that is under way ends in a callback that is no longer served: no commit comes of it. */
static bool commits_open(const struct kafka_source *s)
{
    return s->commit_in_flight || (kafka_commit_waits(s) && !kafka_join_under_way(s));
}

bool kafka_source_asks(const struct kafka_source *s)
{
    return s->lookup || s->question.committed || s->kick.active || s->probe.active;
}

/* Goes on when no run, no job and no commit is under way. */
static void close_try(struct kafka_source *s)
{
    if (s->close_started || s->renew_started || s->runs_out > 0 || kafka_source_asks(s))
        return;
    if (!s->close_commits_over && commits_open(s))
        return;
    s->close_started = true;
    s->close_served = s->partition_count == 0;
    uv_idle_stop(&s->turn_idle);
    uv_poll_stop(&s->commit_poll); /* an event that is there would find no hook (close_work) */
    if (s->client) {
        kafka_health_deafen(s);
        kafka_partitions_unassign(s, s->partitions, s->partition_count);
    }
    kafka_group_let_go(s, s->kept_count);
    while (s->partition_count)
        kafka_partition_remove(s->partitions[s->partition_count - 1]);
    s->close_work.data = s;
    uv_queue_work(s->loop, &s->close_work, close_work, close_after);
}

static void ignore_committed(void *arg, struct kafka_partition *partition, int64_t offset,
                             int status, const char *text)
{
    (void)arg;
    (void)partition;
    (void)offset;
    (void)status;
    (void)text;
}

void kafka_source_close(struct kafka_source *s, bool leave, void (*closed)(void *arg), void *arg)
{
    assert(!s->closing);
    s->closing = true;
    s->close_leave = leave;
    s->closed = closed;
    s->closed_arg = arg;
    s->callbacks.committed = ignore_committed;
    kafka_source_deaf(s);
    for (uint32_t i = 0; i < s->partition_count; i++)
        kafka_run_discard(s->partitions[i]);
    s->revoking_count = 0; /* the pipeline is told nothing more; they go with the rest */
    s->revoke_done = false;
    kafka_source_timer(s, KAFKA_T_CLOSE, KAFKA_CLOSE_COMMIT_MAX_MS);
    s->commits_due = true;
    kafka_source_schedule(s);
}
