/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a commit may be sent.
 *
 * A commit carries the group's generation as the client knows it when it sends it, and a broker
 * looks at one request of a connection after the other. So a commit sent behind a JoinGroup is
 * looked at when the group has its next generation, and refused. librdkafka before 2.10 then
 * forgets its generation and gives up all partitions as lost: rows inserted and not committed are
 * inserted again by whoever gets them. No commit may be in the client's hands, therefore, between
 * the moment it decides to join again and the end of that join.
 *
 * Only the client's main thread knows that moment, and says so nowhere but in its log ("REJOIN",
 * debug=consumer), which our callback sees on that very thread. The end is the rebalance callback:
 * each join has one, if with an empty list. A commit is a message in the main thread's queue, so
 * two gaps are left between asking and its being read there, and are closed so:
 *   - A join begins with the answer to a heartbeat. No commit is queued while a heartbeat is out,
 *     nor until the main thread has worked its answer off: HEARTBEAT_SETTLE_NS after the answer was
 *     seen (by then it is in the queue) the main thread is asked something, and answers in order.
 *   - A join after partitions were taken from us begins when the last commit under way is answered.
 *     So the main thread is asked something before each commit.
 * Interceptors see heartbeats go and come, on the threads of brokers.
 *
 * And when not: without a coordinator. 2.0.2 keeps such a commit until there is one, for as long as
 * a session lasts, and writes the member's id into it only then. If the session ended meanwhile the
 * client has none, and a broker that came back with the group as it was takes the nameless member
 * for another one with our group.instance.id: "Static consumer fenced", which is fatal. So no commit
 * is handed over while the coordinator is away (CGRPSTATE) or the member has no id (MEMBERID), both
 * lines of debug=cgrp. One that was under way when the coordinator went may be kept all the same;
 * if the session ends then, all connections are ended, also those that are still being made (to a
 * broker that hangs, and may answer any time), and no other is made until the client has given that
 * commit up. connect_lock is held while one is made, so that none slips through in between. A commit
 * that is handed to the coordinator again has its member's id in it, and is kept no more; that matters,
 * since the client repeats such a one for as long as it has no connection, and would never give it up.
 *
 * A heartbeat that is answered with an error keeps nobody in the group. The interceptor does not see what
 * an answer says; the client's main thread says it when it works it off (HEARTBEAT, debug=cgrp), and sends
 * no other heartbeat before. The answer is taken back then, and not believed before the main thread had
 * the time for it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "source/kafka_int.h"

#define API_FETCH           1
#define API_JOIN_GROUP      11
#define API_HEARTBEAT       12
#define API_SYNC_GROUP      14
#define HEARTBEAT_SETTLE_NS 10000000u

enum heartbeat { HEARTBEAT_NONE, HEARTBEAT_OUT, HEARTBEAT_ANSWERED };

static rd_kafka_resp_err_t request_sent(rd_kafka_t *client, int fd, const char *broker_name,
                                        int32_t broker, int16_t api, int16_t version,
                                        int32_t correlation, size_t size, void *arg)
{
    struct kafka_hook *h = arg;

    (void)client, (void)fd, (void)broker_name, (void)broker;
    (void)version, (void)correlation, (void)size;
    if (api == API_HEARTBEAT || api == API_SYNC_GROUP) {
        atomic_store(&h->heard_before_ms, atomic_load(&h->heard_ms));
        atomic_store(&h->asked_ms, clock_boot_ms());
    }
    if (api != API_HEARTBEAT)
        return RD_KAFKA_RESP_ERR_NO_ERROR;
    uv_mutex_lock(&h->heartbeat_lock);
    h->heartbeat = HEARTBEAT_OUT;
    uv_mutex_unlock(&h->heartbeat_lock);
    return RD_KAFKA_RESP_ERR_NO_ERROR;
}

/* Also for a heartbeat that failed; before the main thread hears of it, and (2.0.2) once more when it
   does. */
static rd_kafka_resp_err_t response_received(rd_kafka_t *client, int fd, const char *broker_name,
                                             int32_t broker, int16_t api, int16_t version,
                                             int32_t correlation, size_t size, int64_t round_trip,
                                             rd_kafka_resp_err_t err, void *arg)
{
    struct kafka_hook *h = arg;

    (void)client, (void)fd, (void)broker_name, (void)broker;
    (void)version, (void)correlation, (void)size, (void)round_trip;
    if (api == API_FETCH && err)
        kafka_mark_fetch_failed(h);
    if (api == API_JOIN_GROUP && err)
        atomic_store(&h->join_lost, true);
    if ((api == API_HEARTBEAT || api == API_SYNC_GROUP) && !err)
        atomic_store(&h->heard_ms, atomic_load(&h->asked_ms));
    if (api != API_HEARTBEAT)
        return RD_KAFKA_RESP_ERR_NO_ERROR;
    uv_mutex_lock(&h->heartbeat_lock);
    h->heartbeat = HEARTBEAT_ANSWERED;
    h->answered_ns = uv_hrtime();
    uv_mutex_unlock(&h->heartbeat_lock);
    return RD_KAFKA_RESP_ERR_NO_ERROR;
}

static rd_kafka_resp_err_t client_made(rd_kafka_t *client, const rd_kafka_conf_t *conf, void *arg,
                                       char *text, size_t text_size)
{
    rd_kafka_resp_err_t err;

    (void)conf, (void)text, (void)text_size;
    err = rd_kafka_interceptor_add_on_request_sent(client, "spoold", request_sent, arg);
    if (!err)
        err =
            rd_kafka_interceptor_add_on_response_received(client, "spoold", response_received, arg);
    if (!err)
        err = rd_kafka_interceptor_add_on_commit(client, "spoold", kafka_commit_seen, arg);
    return err;
}

static bool is_cut_off(const struct kafka_hook *h)
{
    return atomic_load(&h->commit_kept) && atomic_load(&h->nameless);
}

/* On the broker's thread. Where there is no room to note the connection there is none. */
static bool note_connection(struct kafka_hook *h, int fd)
{
    if (h->connection_count == h->connection_cap) {
        size_t cap = h->connection_cap ? h->connection_cap * 2 : 16;
        int *grown = realloc(h->connections, cap * sizeof(*grown));
        if (!grown)
            return false;
        h->connections = grown;
        h->connection_cap = cap;
    }
    h->connections[h->connection_count++] = fd;
    return true;
}

int kafka_join_connect(int fd, const struct sockaddr *address, int size, const char *broker,
                       void *opaque)
{
    struct kafka_hook *h = opaque;
    int status = EAGAIN;

    (void)broker;
    uv_mutex_lock(&h->connect_lock);
    if (!is_cut_off(h) &&
        note_connection(h, fd)) /* closed by kafka_join_close also if this fails */
        status = connect(fd, address, (socklen_t)size) < 0 && errno != EINPROGRESS ? errno : 0;
    uv_mutex_unlock(&h->connect_lock);
    return status;
}

int kafka_join_close(int fd, void *opaque)
{
    struct kafka_hook *h = opaque;

    uv_mutex_lock(&h->connect_lock);
    for (size_t i = 0; i < h->connection_count; i++)
        if (h->connections[i] == fd) {
            h->connections[i] = h->connections[--h->connection_count];
            break;
        }
    uv_mutex_unlock(&h->connect_lock);
    return close(fd);
}

/* The client sees them end, and makes them anew when it may. */
static void end_connections(struct kafka_hook *h)
{
    uv_mutex_lock(&h->connect_lock);
    for (size_t i = 0; i < h->connection_count; i++)
        (void)shutdown(h->connections[i], SHUT_RDWR);
    uv_mutex_unlock(&h->connect_lock);
}

struct kafka_hook *kafka_hook_create(struct kafka_source *s)
{
    struct kafka_hook *h = calloc(1, sizeof(*h));

    if (!h)
        return NULL;
    if (uv_mutex_init(&h->heartbeat_lock)) {
        free(h);
        return NULL;
    }
    if (uv_mutex_init(&h->lines_lock)) {
        uv_mutex_destroy(&h->heartbeat_lock);
        free(h);
        return NULL;
    }
    if (uv_mutex_init(&h->connect_lock)) {
        uv_mutex_destroy(&h->heartbeat_lock);
        uv_mutex_destroy(&h->lines_lock);
        free(h);
        return NULL;
    }
    h->source = s;
    h->wake_fd = s->commit_fd;
    return h;
}

void kafka_hook_destroy(struct kafka_hook *h)
{
    uv_mutex_destroy(&h->heartbeat_lock);
    uv_mutex_destroy(&h->lines_lock);
    uv_mutex_destroy(&h->connect_lock);
    if (h->commit_answer)
        rd_kafka_topic_partition_list_destroy(h->commit_answer);
    free(h->connections);
    free(h);
}

int kafka_hook_attach(struct kafka_hook *h, rd_kafka_conf_t *conf, struct spool_error *error)
{
    rd_kafka_conf_set_opaque(conf, h);
    rd_kafka_conf_set_connect_cb(conf, kafka_join_connect);
    rd_kafka_conf_set_closesocket_cb(conf, kafka_join_close);
    if (rd_kafka_conf_interceptor_add_on_new(conf, "spoold", client_made, h))
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    return SPOOL_OK;
}

struct kafka_source *kafka_hook_source(void *opaque)
{
    return ((struct kafka_hook *)opaque)->source;
}

/* "... OLD -> NEW": whether NEW begins so. */
static bool becomes(const char *text, const char *state)
{
    const char *arrow = NULL, *next = text;

    while ((next = strstr(next, " -> ")) != NULL)
        arrow = next++;
    return arrow && strncmp(arrow + strlen(" -> "), state, strlen(state)) == 0;
}

static void note_name(struct kafka_hook *h, bool named)
{
    atomic_store(&h->nameless, !named);
    if (!named) {
        atomic_store(&h->forgotten, true);
        if (atomic_load(&h->named))
            atomic_store(&h->unnamed, true);
        return;
    }
    if (!atomic_exchange(&h->named, true))
        atomic_store(&h->named_ms, clock_boot_ms());
    if (atomic_exchange(&h->unnamed, false) | atomic_exchange(&h->join_lost, false))
        atomic_store(&h->renamed_ms, clock_boot_ms());
}

bool kafka_join_note(struct kafka_hook *h, const char *facility, const char *text)
{
    bool was_cut_off = is_cut_off(h);

    if (strcmp(facility, "REJOIN") == 0) {
        atomic_store(&h->joining, true);
    } else if (strcmp(facility, "MEMBERID") == 0) {
        note_name(h, !becomes(text, "\"\""));
    } else if (strcmp(facility, "CGRPJOINSTATE") == 0) {
        atomic_store(&h->answering, becomes(text, "wait-assign-call"));
    } else if (strcmp(facility, "HEARTBEAT") == 0 && strstr(text, " heartbeat error response ")) {
        atomic_store(&h->heard_ms, atomic_load(&h->heard_before_ms));
    } else if (strcmp(facility, "COMMIT") == 0 && strstr(text, " unable to OffsetCommit ")) {
        atomic_store(&h->commit_kept, true);
    } else if (strcmp(facility, "COMMIT") == 0 && strstr(text, "Committing offsets for ")) {
        atomic_store(&h->commit_kept, false);
    } else if (strcmp(facility, "CGRPSTATE") == 0) {
        atomic_store(&h->away, !becomes(text, "up "));
        atomic_store(&h->back, !h->away);
        return !h->away;
    }
    if (!was_cut_off && is_cut_off(h))
        end_connections(h);
    return false;
}

void kafka_join_coordinator(struct kafka_source *s)
{
    if (!atomic_exchange(&s->hook->back, false))
        return;
    s->denied = false;
    s->commits_due = true;
    kafka_source_schedule(s);
}

void kafka_join_commit_answered(struct kafka_source *s)
{
    atomic_store(&s->hook->commit_kept, false);
}

void kafka_join_over(struct kafka_source *s)
{
    if (!atomic_exchange(&s->hook->joining, false))
        return;
    s->commits_due = true;
    kafka_source_schedule(s);
}

bool kafka_join_under_way(const struct kafka_source *s)
{
    return atomic_load(&s->hook->joining) || atomic_load(&s->hook->nameless);
}

/* Until it has an assignment under its new name. */
bool kafka_join_forgotten(struct kafka_source *s, bool assigned)
{
    bool forgotten = atomic_exchange(&s->hook->forgotten, false);

    if (forgotten && (!assigned || atomic_load(&s->hook->nameless)))
        atomic_store(&s->hook->forgotten, true);
    return forgotten;
}

bool kafka_join_coordinator_away(const struct kafka_source *s)
{
    return atomic_load(&s->hook->away);
}

bool kafka_join_renamed(const struct kafka_source *s)
{
    uint64_t at = atomic_load(&s->hook->renamed_ms);

    return atomic_load(&s->hook->unnamed) || (at && clock_boot_ms() - at < s->session_ms);
}

bool kafka_join_new(const struct kafka_source *s)
{
    uint64_t at = atomic_load(&s->hook->named_ms);

    return !at || clock_boot_ms() - at < s->session_ms;
}

bool kafka_join_heard(const struct kafka_source *s)
{
    struct kafka_hook *h = s->hook;
    uint64_t heard = atomic_load(&h->heard_ms);

    uv_mutex_lock(&h->heartbeat_lock);
    if (h->heartbeat == HEARTBEAT_ANSWERED && uv_hrtime() - h->answered_ns < HEARTBEAT_SETTLE_NS)
        heard = atomic_load(&h->heard_before_ms); /* it may be a refusal */
    uv_mutex_unlock(&h->heartbeat_lock);
    return heard && clock_boot_ms() - heard < s->session_ms / 2;
}

bool kafka_join_commit_begin(struct kafka_source *s)
{
    struct kafka_hook *h = s->hook;
    uint64_t seen_ns;
    bool settled;

    uv_mutex_lock(&h->heartbeat_lock);
    seen_ns = h->answered_ns;
    settled = h->heartbeat == HEARTBEAT_ANSWERED && uv_hrtime() - seen_ns >= HEARTBEAT_SETTLE_NS;
    uv_mutex_unlock(&h->heartbeat_lock);
    (void)rd_kafka_rebalance_protocol(s->client); /* the question to the main thread */
    uv_mutex_lock(&h->heartbeat_lock);
    if (settled && h->heartbeat == HEARTBEAT_ANSWERED && h->answered_ns == seen_ns)
        h->heartbeat = HEARTBEAT_NONE;
    if (h->heartbeat == HEARTBEAT_NONE && !kafka_join_under_way(s) &&
        !kafka_join_coordinator_away(s))
        return true;
    uv_mutex_unlock(&h->heartbeat_lock);
    return false;
}

void kafka_join_commit_end(struct kafka_source *s)
{
    uv_mutex_unlock(&s->hook->heartbeat_lock);
}
