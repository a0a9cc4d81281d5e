/* SPDX-License-Identifier: Apache-2.0 */
/* The client's log lines and errors, and whether a broker answers. All on the loop thread: logs and
   errors come by the consumer queue (log.queue), what a closing client still says is dropped. */
#include <stdio.h>
#include <string.h>

#include "source/kafka_int.h"

static bool on_loop(const struct kafka_source *s)
{
    uv_thread_t self = uv_thread_self();

    return s && !s->close_started && uv_thread_equal(&self, &s->thread);
}

void kafka_health_log_cb(const rd_kafka_t *client, int level, const char *facility,
                         const char *text)
{
    struct kafka_source *s = rd_kafka_opaque(client);
    uint64_t suppressed = 0;
    enum log_level ours = level <= 3   ? LOG_ERROR
                          : level == 4 ? LOG_WARN
                          : level <= 6 ? LOG_INFO
                                       : LOG_DEBUG;

    if (!on_loop(s) || !log_enabled(ours))
        return;
    /* A broker that is away fills the log with refused connections: kafka.disconnected says it. */
    if (ours != LOG_DEBUG && !log_gate_open(&s->log_gate, KAFKA_LOG_GATE_MS, &suppressed))
        return;
    log_event(ours == LOG_ERROR ? LOG_WARN : ours, "kafka.client", "facility", facility, "text",
              text, "suppressed", log_u64(suppressed), NULL);
}

void kafka_health_up(struct kafka_source *s)
{
    if (s->connected)
        return;
    s->connected = true;
    s->ever_connected = true;
    s->reason[0] = '\0';
    log_event(LOG_INFO, "kafka.connected", "broker", rd_kafka_name(s->client), NULL);
}

static void set_reason(struct kafka_source *s, const char *text)
{
    size_t n = strnlen(text, sizeof(s->reason) - 1);

    memmove(s->reason, text, n); /* text may be s->reason */
    s->reason[n] = '\0';
}

static void went_down(struct kafka_source *s, const char *reason)
{
    uint64_t suppressed;
    bool was = s->connected;

    s->connected = false;
    set_reason(s, reason);
    if (was || log_gate_open(&s->broker_gate, KAFKA_LOG_GATE_MS, &suppressed))
        log_event(LOG_WARN, "kafka.disconnected", "reason", reason, NULL);
    if (!uv_is_active((uv_handle_t *)&s->timers[KAFKA_T_PROBE]))
        kafka_source_timer(s, KAFKA_T_PROBE, KAFKA_PROBE_MS);
}

/* Served inside the poll: only notes and logs. */
void kafka_health_error_cb(rd_kafka_t *client, int err, const char *reason, void *opaque)
{
    struct kafka_source *s = opaque;
    uint64_t suppressed;

    (void)client;
    if (!on_loop(s))
        return;
    switch ((rd_kafka_resp_err_t)err) {
    case RD_KAFKA_RESP_ERR__FATAL:
        s->fatal_seen = true;
        return;
    case RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN:
        went_down(s, s->reason[0] && !s->connected ? s->reason : reason);
        return;
    case RD_KAFKA_RESP_ERR__TRANSPORT:
    case RD_KAFKA_RESP_ERR__RESOLVE:
    case RD_KAFKA_RESP_ERR__SSL:
    case RD_KAFKA_RESP_ERR__AUTHENTICATION:
        if (!s->connected)
            set_reason(s, reason);
        break;
    default:
        break;
    }
    if (log_gate_open(&s->error_gate, KAFKA_LOG_GATE_MS, &suppressed))
        log_event(LOG_WARN, "kafka.error", "reason", reason, "suppressed", log_u64(suppressed),
                  NULL);
}

void kafka_health_tell_fatal(struct kafka_source *s)
{
    char text[400];
    rd_kafka_resp_err_t err;

    if (!s->fatal_seen || s->fatal_told)
        return;
    s->fatal_told = true;
    err = rd_kafka_fatal_error(s->client, text, sizeof(text));
    if (!err)
        snprintf(text, sizeof(text), "the Kafka client stopped");
    set_reason(s, text);
    s->callbacks.fatal(s->arg, text);
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
        if (p && p->state == KAFKA_P_ACTIVE && m->offset > p->end_seen)
            p->end_seen = m->offset;
        return;
    case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
        if (p && p->fetched)
            kafka_partition_refused(p);
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
    if (log_gate_open(&s->error_gate, KAFKA_LOG_GATE_MS, &suppressed))
        log_event(LOG_WARN, "kafka.error", "topic", topic, "partition", log_i64(m->partition),
                  "reason", rd_kafka_message_errstr(m), "suppressed", log_u64(suppressed), NULL);
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
