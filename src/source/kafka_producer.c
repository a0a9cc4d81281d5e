/* SPDX-License-Identifier: Apache-2.0 */
#include "source/kafka_producer.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "source/kafka_int.h"

struct send {
    struct kafka_producer *producer;
    size_t left; /* messages without a report */
    int status;
    char text[200];
    void (*done)(void *arg, int status, const char *text);
    void *arg;
};

struct kafka_producer {
    uv_loop_t *loop;
    rd_kafka_t *client;
    rd_kafka_queue_t *queue; /* of delivery reports */
    int fd;                  /* written to when the queue is no longer empty */
    uv_poll_t poll;
    uv_timer_t timer; /* the edge may be missed: looked at each second too */
    uv_work_t work;
    unsigned handles;
    void (*closed)(void *arg);
    void *closed_arg;
};

#define POLL_MS 1000

static void log_nothing(const rd_kafka_t *client, int level, const char *facility, const char *text)
{
    (void)client;
    (void)level;
    (void)facility;
    (void)text; /* what matters comes with the report of a message */
}

static void send_end(struct send *s)
{
    s->done(s->arg, s->status, s->text);
    free(s);
}

/* SPOOL_E_LIMIT: the message itself is what the broker does not take. */
static int status_of(rd_kafka_resp_err_t err)
{
    return err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE || err == RD_KAFKA_RESP_ERR_INVALID_RECORD
               ? SPOOL_E_LIMIT
               : SPOOL_E_IO;
}

static void reported(rd_kafka_t *client, const rd_kafka_message_t *message, void *opaque)
{
    struct send *s = message->_private;

    (void)client;
    (void)opaque;
    if (message->err && s->status == SPOOL_OK) {
        s->status = status_of(message->err);
        snprintf(s->text, sizeof(s->text), "%s", rd_kafka_err2str(message->err));
    }
    if (--s->left == 0)
        send_end(s);
}

static void producer_serve(struct kafka_producer *p)
{
    uint64_t count;

    while (read(p->fd, &count, sizeof(count)) > 0)
        continue;
    rd_kafka_poll(p->client, 0);
}

static void on_poll(uv_poll_t *handle, int status, int events)
{
    (void)status;
    (void)events;
    producer_serve(handle->data);
}

static void on_timer(uv_timer_t *timer)
{
    producer_serve(timer->data);
}

static int make_client(struct kafka_producer *p, const struct kafka_options *options,
                       struct spool_error *error)
{
    static const struct kafka_property ours[] = {
        {"message.timeout.ms", "30000"}, {"linger.ms", "5"}, {"log.queue", "false"}};
    rd_kafka_conf_t *conf = NULL;
    char text[400];
    int status = kafka_conf_build(options, true, &conf, error);

    if (status != SPOOL_OK)
        return status;
    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
        if (rd_kafka_conf_set(conf, ours[i].name, ours[i].value, text, sizeof(text)) !=
            RD_KAFKA_CONF_OK)
            status = spool_error_set(error, SPOOL_E_INVALID, "kafka: %s", text);
    rd_kafka_conf_set_dr_msg_cb(conf, reported);
    rd_kafka_conf_set_log_cb(conf, log_nothing);
    if (status == SPOOL_OK)
        p->client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    if (p->client)
        return SPOOL_OK;
    rd_kafka_conf_destroy(conf);
    return status != SPOOL_OK ? status
                              : spool_error_set(error, SPOOL_E_INVALID,
                                                "a producer for dead_letters.topic can't be made: "
                                                "%s",
                                                text);
}

int kafka_producer_create(uv_loop_t *loop, const struct kafka_options *options,
                          struct kafka_producer **out, struct spool_error *error)
{
    static const uint64_t one = 1;
    struct kafka_producer *p = calloc(1, sizeof(*p));
    int status;

    *out = NULL;
    if (!p)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    p->loop = loop;
    p->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    status = p->fd < 0 ? spool_error_set_errno(error, SPOOL_E_IO, errno, "eventfd")
                       : make_client(p, options, error);
    if (status != SPOOL_OK) {
        if (p->fd >= 0)
            close(p->fd);
        free(p);
        return status;
    }
    p->queue = rd_kafka_queue_get_main(p->client);
    uv_poll_init(loop, &p->poll, p->fd);
    uv_timer_init(loop, &p->timer);
    p->poll.data = p->timer.data = p->work.data = p;
    uv_poll_start(&p->poll, UV_READABLE, on_poll);
    uv_timer_start(&p->timer, on_timer, POLL_MS, POLL_MS);
    rd_kafka_queue_io_event_enable(p->queue, p->fd, &one, sizeof(one));
    *out = p;
    return SPOOL_OK;
}

static rd_kafka_resp_err_t produce(struct send *s, const char *topic, const struct kafka_message *m)
{
    rd_kafka_headers_t *headers = rd_kafka_headers_new(m->header_count);
    rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;

    for (size_t i = 0; i < m->header_count && !err; i++)
        err = rd_kafka_header_add(headers, m->headers[i].name, -1, m->headers[i].value,
                                  (ssize_t)m->headers[i].value_size);
    if (!err)
        err = rd_kafka_producev(s->producer->client, RD_KAFKA_V_TOPIC(topic),
                                RD_KAFKA_V_KEY(m->key, m->key_size),
                                RD_KAFKA_V_VALUE((void *)(uintptr_t)m->value, m->value_size),
                                RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                                RD_KAFKA_V_HEADERS(headers), RD_KAFKA_V_OPAQUE(s), RD_KAFKA_V_END);
    if (err)
        rd_kafka_headers_destroy(headers);
    return err;
}

int kafka_producer_send(struct kafka_producer *p, const char *topic,
                        const struct kafka_message *messages, size_t count,
                        void (*done)(void *arg, int status, const char *text), void *arg,
                        struct spool_error *error)
{
    struct send *s = calloc(1, sizeof(*s));
    rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;
    int status;

    assert(count);
    if (!s)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    *s = (struct send){.producer = p, .done = done, .arg = arg};
    for (size_t i = 0; i < count && !err; i++) {
        err = produce(s, topic, &messages[i]);
        s->left += !err;
    }
    if (!err)
        return SPOOL_OK;
    snprintf(s->text, sizeof(s->text), "%s", rd_kafka_err2str(err));
    s->status = status = status_of(err);
    if (s->left)
        return SPOOL_OK; /* the others' reports bring it to the caller */
    spool_error_set(error, status, "%s", s->text);
    free(s);
    return status;
}

/* --- the end -------------------------------------------------------------------------------- */

static void handle_closed(uv_handle_t *handle)
{
    struct kafka_producer *p = handle->data;

    if (--p->handles > 0)
        return;
    close(p->fd);
    p->closed(p->closed_arg);
    free(p);
}

static void close_work(uv_work_t *work)
{
    struct kafka_producer *p = work->data;

    rd_kafka_queue_io_event_enable(p->queue, -1, NULL, 0);
    rd_kafka_queue_destroy(p->queue);
    rd_kafka_destroy(p->client); /* waits for the client's threads */
}

static void close_after(uv_work_t *work, int status)
{
    struct kafka_producer *p = work->data;

    (void)status;
    p->handles = 2;
    uv_close((uv_handle_t *)&p->poll, handle_closed);
    uv_close((uv_handle_t *)&p->timer, handle_closed);
}

void kafka_producer_close(struct kafka_producer *p, void (*closed)(void *arg), void *arg)
{
    p->closed = closed;
    p->closed_arg = arg;
    uv_poll_stop(&p->poll);
    uv_timer_stop(&p->timer);
    rd_kafka_purge(p->client, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
    while (rd_kafka_outq_len(p->client) > 0 && rd_kafka_poll(p->client, 0) > 0)
        continue;
    rd_kafka_poll(p->client, 0);
    uv_queue_work(p->loop, &p->work, close_work, close_after);
}
