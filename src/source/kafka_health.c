/* SPDX-License-Identifier: Apache-2.0 */
/* The client's log lines and errors, and whether a broker answers. Errors are served on the loop.
   Lines come on the client's own threads, wait in the hook and are written on the loop; what a
   closing client still says is dropped. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "source/kafka_int.h"

static bool on_loop(const struct kafka_source *s)
{
    uv_thread_t self = uv_thread_self();

    return s && !s->close_started && uv_thread_equal(&self, &s->thread);
}

/* Any thread. */
void kafka_health_log_cb(const rd_kafka_t *client, int level, const char *facility,
                         const char *text)
{
    static const uint64_t one = 1;
    struct kafka_hook *h = client ? rd_kafka_opaque(client) : NULL;
    struct kafka_line *line;
    bool wake;

    if (!h)
        return;
    wake = kafka_join_note(h, facility, text);
    kafka_mark_line(h, facility, text);
    if (!wake && !h->verbose && level > h->level_max)
        return; /* most: at each commit the client lists its partitions */
    uv_mutex_lock(&h->lines_lock);
    if (!h->deaf && (h->verbose || level <= h->level_max)) {
        if (h->line_count < KAFKA_LINES) {
            line = &h->lines[h->line_count++];
            line->level = level;
            snprintf(line->facility, sizeof(line->facility), "%s", facility);
            snprintf(line->text, sizeof(line->text), "%s", text);
            wake |= h->line_count == 1;
        } else {
            h->lines_dropped++;
        }
    }
    if (wake && !h->deaf && write(h->wake_fd, &one, sizeof(one)) < 0)
        assert(errno == EAGAIN); /* it is awake */
    uv_mutex_unlock(&h->lines_lock);
}

/* The error callback says the same, in better words (kafka_reason.c). */
static bool is_repeated(const char *facility)
{
    return strcmp(facility, "FAIL") == 0 || strcmp(facility, "SSLCERTVRFY") == 0;
}

static void write_line(struct kafka_source *s, const struct kafka_line *line, uint64_t dropped)
{
    uint64_t suppressed = 0;
    enum log_level ours = line->level <= 3   ? LOG_ERROR
                          : line->level == 4 ? LOG_WARN
                          : line->level <= 6 ? LOG_INFO
                                             : LOG_DEBUG;

    if (!log_enabled(ours) || (ours != LOG_DEBUG && is_repeated(line->facility)))
        return;
    /* A broker that is away fills the log with refused connections: kafka.disconnected says it. */
    if (ours != LOG_DEBUG && !log_gate_open(&s->log_gate, KAFKA_LOG_GATE_MS, &suppressed))
        return;
    log_event(ours == LOG_ERROR ? LOG_WARN : ours, "kafka.client", "facility", line->facility,
              "text", line->text, "suppressed", log_u64(suppressed + dropped), NULL);
}

void kafka_health_lines(struct kafka_source *s)
{
    struct kafka_hook *h = s->hook;
    struct kafka_line line;
    uint64_t dropped;

    for (;;) {
        uv_mutex_lock(&h->lines_lock);
        if (!h->line_count) {
            uv_mutex_unlock(&h->lines_lock);
            return;
        }
        line = h->lines[0];
        memmove(h->lines, h->lines + 1, --h->line_count * sizeof(h->lines[0]));
        dropped = h->lines_dropped;
        h->lines_dropped = 0;
        uv_mutex_unlock(&h->lines_lock);
        write_line(s, &line, dropped);
    }
}

void kafka_health_deafen(struct kafka_source *s)
{
    uv_mutex_lock(&s->hook->lines_lock);
    s->hook->deaf = true;
    uv_mutex_unlock(&s->hook->lines_lock);
}

void kafka_health_up(struct kafka_source *s)
{
    if (s->connected)
        return;
    s->connected = true;
    s->ever_connected = true;
    s->reason[0] = s->cause[0] = '\0';
    s->told_err = RD_KAFKA_RESP_ERR_NO_ERROR;
    log_event(LOG_INFO, "kafka.connected", "broker", rd_kafka_name(s->client), NULL);
}

static void set_reason(struct kafka_source *s, const char *text)
{
    size_t n = strnlen(text, sizeof(s->reason) - 1);

    memmove(s->reason, text, n); /* text may be s->reason */
    s->reason[n] = '\0';
}

/* Another kind of reason is told soon, the same again after minutes. */
static void tell_down(struct kafka_source *s, rd_kafka_resp_err_t err, bool was)
{
    uint64_t now = uv_now(s->loop);
    uint64_t wait = err == s->told_err ? KAFKA_TELL_AGAIN_MS : KAFKA_LOG_GATE_MS;

    if (!was && s->told_at_ms && now - s->told_at_ms < wait)
        return;
    s->told_at_ms = now ? now : 1;
    s->told_err = err;
    log_event(LOG_WARN, "kafka.disconnected", "reason", s->reason, NULL);
}

static void went_down(struct kafka_source *s, const char *reason)
{
    bool was = s->connected;

    s->connected = false;
    set_reason(s, reason);
    if (was)
        tell_down(s, RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN, true);
    if (!uv_is_active((uv_handle_t *)&s->timers[KAFKA_T_PROBE]))
        kafka_source_timer(s, KAFKA_T_PROBE, KAFKA_PROBE_MS);
}

/* Served inside the poll: only notes and logs. */
void kafka_health_error_cb(rd_kafka_t *client, int err, const char *reason, void *opaque)
{
    struct kafka_source *s = kafka_hook_source(opaque);
    char text[KAFKA_REASON_BYTES];
    uint64_t suppressed;
    int fault = 0;

    (void)client;
    if (!on_loop(s))
        return;
    if (err == RD_KAFKA_RESP_ERR__SSL)
        fault = kafka_reason_fault(s->hook, reason);
    kafka_reason_put((rd_kafka_resp_err_t)err, reason, fault, text, sizeof(text));
    switch ((rd_kafka_resp_err_t)err) {
    case RD_KAFKA_RESP_ERR__FATAL:
        s->fatal_seen = true;
        return;
    case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
        went_down(s, s->cause[0] ? s->cause : text);
        return;
    case RD_KAFKA_RESP_ERR__TRANSPORT:
    case RD_KAFKA_RESP_ERR__RESOLVE:
    case RD_KAFKA_RESP_ERR__SSL:
    case RD_KAFKA_RESP_ERR__AUTHENTICATION:
        memcpy(s->cause, text, sizeof(text));
        if (s->connected)
            break; /* other brokers may answer: ALL_BROKERS_DOWN tells */
        set_reason(s, text);
        tell_down(s, (rd_kafka_resp_err_t)err, false);
        return;
    default:
        break;
    }
    if (log_gate_open(&s->error_gate, KAFKA_LOG_GATE_MS, &suppressed))
        log_event(LOG_WARN, "kafka.error", "reason", text, "suppressed", log_u64(suppressed), NULL);
}

static void tell_fenced(const struct kafka_source *s, char *text, size_t size)
{
    size_t n = strlen(text);

    snprintf(
        text + n, size - n,
        ": another member of the group \"%s\" has the group.instance.id \"%s\", which may be a "
        "copy of this spool: stop it, or set another kafka.group_instance_id",
        s->options.group_id, s->static_member ? s->options.group_instance_id : "");
}

void kafka_health_tell_fatal(struct kafka_source *s)
{
    char text[KAFKA_REASON_BYTES];
    rd_kafka_resp_err_t err;

    if (!s->fatal_seen || s->fatal_told)
        return;
    s->fatal_told = true;
    err = rd_kafka_fatal_error(s->client, text, sizeof(text));
    if (!err)
        snprintf(text, sizeof(text), "the Kafka client stopped");
    s->connected = false;
    set_reason(s, text);
    if (err == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID) {
        if (kafka_renew(s, text))
            return;
        tell_fenced(s, text, sizeof(text));
        set_reason(s, text);
    }
    s->callbacks.fatal(s->arg, text);
}

/* The client says most of this once: no other error's line may stand in for it. */
static bool tell_denied(struct kafka_source *s, const rd_kafka_message_t *m, const char *topic)
{
    bool group = m->err == RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    uint64_t suppressed;

    if (!group && m->err != RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
        return false;
    s->denied |= group;
    if (log_gate_open(group ? &s->group_gate : &s->topic_gate, KAFKA_LOG_GATE_MS, &suppressed))
        log_event(LOG_WARN, "kafka.denied", group ? "group" : "topic",
                  group ? s->options.group_id : topic, "reason", rd_kafka_message_errstr(m),
                  "suppressed", log_u64(suppressed), NULL);
    return true;
}

/* An error that came in place of a record. */
void kafka_health_record_error(struct kafka_source *s, const rd_kafka_message_t *m)
{
    struct kafka_partition *p = kafka_partition_of(s, m);
    const char *topic = m->rkt ? rd_kafka_topic_name(m->rkt) : "";
    uint64_t suppressed;

    switch (m->err) {
    case RD_KAFKA_RESP_ERR__PARTITION_EOF:
        kafka_health_up(s);
        if (p && p->state == KAFKA_P_ACTIVE && !p->doubted)
            kafka_mark_end(p, m->offset);
        return;
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
        if (p && p->fetched) {
            p->beyond = true;
            kafka_partition_refused(p);
        }
        return;
    case RD_KAFKA_RESP_ERR__FATAL:
        s->fatal_seen = true;
        return;
    case RD_KAFKA_RESP_ERR__MAX_POLL_EXCEEDED:
        log_event(LOG_ERROR, "kafka.poll_late", "reason", rd_kafka_message_errstr(m), NULL);
        return;
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
    case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
    case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
        if (!p) { /* of a subscription; told once by the client */
            log_event(LOG_WARN, "kafka.topic_waits", "topic", topic, "reason",
                      rd_kafka_message_errstr(m), NULL);
            return;
        }
        break;
    default:
        break;
    }
    if (tell_denied(s, m, topic))
        return;
    if (log_gate_open(&s->error_gate, KAFKA_LOG_GATE_MS, &suppressed))
        log_event(LOG_WARN, "kafka.error", "topic", topic, "partition",
                  log_i64(m->rkt ? m->partition : -1), "reason", rd_kafka_message_errstr(m),
                  "suppressed", log_u64(suppressed), NULL);
}

static void probe_work(uv_work_t *work)
{
    struct kafka_probe *probe = work->data;
    const struct rd_kafka_metadata *metadata = NULL;

    probe->error = rd_kafka_metadata(probe->client, 0, NULL, &metadata, KAFKA_PROBE_MS);
    if (!probe->error)
        rd_kafka_metadata_destroy(metadata);
}

static void probe_after(uv_work_t *work, int status)
{
    struct kafka_probe *probe = work->data;
    struct kafka_source *s =
        (struct kafka_source *)((char *)probe - offsetof(struct kafka_source, probe));

    (void)status;
    probe->active = false;
    kafka_source_schedule(s);
    if (s->closing)
        return;
    if (!probe->error) {
        kafka_health_up(s);
        return;
    }
    if (!s->reason[0])
        set_reason(s, rd_kafka_err2str(probe->error));
    kafka_source_timer(s, KAFKA_T_PROBE, KAFKA_PROBE_MS);
}

/* Asks in a pool job whether a broker answers; goes on until one does. */
void kafka_health_probe(struct kafka_source *s)
{
    if (s->probe.active || s->closing || s->connected)
        return;
    s->probe.active = true;
    s->probe.client = s->client;
    s->probe.work.data = &s->probe;
    uv_queue_work(s->loop, &s->probe.work, probe_work, probe_after);
}
