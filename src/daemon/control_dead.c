/* SPDX-License-Identifier: Apache-2.0 */
/* Replaying and discarding dead letters for whoever asks; the request waits until it is done. */
#include <limits.h>
#include <stdlib.h>

#include "base/json_writer.h"
#include "base/limits.h"
#include "base/log.h"
#include "daemon/control_int.h"

#define TYPE_JSON "application/json"

struct dead_request {
    struct control *control;
    struct http_exchange *exchange; /* NULL: gone */
    char stream[LIMIT_STREAM_NAME_BYTES + 1];
};

bool control_filter(struct http_exchange *x, struct dead_filter *filter)
{
    int64_t number = 0;
    bool given = false;

    *filter = (struct dead_filter){.origin = http_exchange_argument(x, "origin"),
                                   .reason = http_exchange_argument(x, "reason")};
    if (!control_number(x, "from", &filter->has_from, &filter->from) ||
        !control_number(x, "to", &filter->has_to, &filter->to) ||
        !control_number(x, "code", &filter->has_code, &number))
        return false;
    if (number < INT_MIN || number > INT_MAX) {
        control_error(x, 400, "code %lld can't be", (long long)number);
        return false;
    }
    filter->code = (int)number;
    if (!control_number(x, "offset", &given, &number))
        return false;
    if (given) {
        filter->has_from = filter->has_to = true;
        filter->from = filter->to = number;
    }
    return true;
}

static void request_gone(void *arg)
{
    ((struct dead_request *)arg)->exchange = NULL;
}

static void request_end(struct dead_request *r)
{
    struct control *c = r->control;

    free(r);
    c->looks--;
    control_check_closed(c);
}

/* {"stream", numbers by name, "stopped": why it ended early, or ""} */
static void reply(struct dead_request *r, const char *const *names, const uint64_t *numbers,
                  size_t count, const char *stopped)
{
    struct json_writer w;
    struct buf body;

    if (!r->exchange)
        return;
    buf_init(&body, 16 * KIB);
    json_writer_init(&w, &body);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "stream", r->stream);
    for (size_t i = 0; i < count; i++)
        json_writer_u64(&w, names[i], numbers[i]);
    json_writer_text(&w, "stopped", stopped);
    json_writer_close(&w, '}');
    (void)buf_put_u8(&body, '\n');
    http_exchange_reply(r->exchange, 200, TYPE_JSON, &body);
}

static void replayed(void *arg, const struct replay_result *result)
{
    static const char *const names[] = {"replayed", "refused", "unsettled", "cut"};
    const uint64_t numbers[] = {result->replayed, result->refused, result->unsettled, result->cut};
    struct dead_request *r = arg;

    reply(r, names, numbers, 4, result->text);
    request_end(r);
}

static void discarded(void *arg, int status, uint64_t letters, uint64_t bytes,
                      const struct spool_error *error)
{
    static const char *const names[] = {"letters", "bytes"};
    const uint64_t numbers[] = {letters, bytes};
    struct dead_request *r = arg;

    if (status == SPOOL_OK)
        reply(r, names, numbers, 2, "");
    else if (r->exchange)
        control_error(r->exchange, status == SPOOL_E_NOT_FOUND ? 404 : 500, "%s",
                      error->text[0] ? error->text : spool_strerror(status));
    request_end(r);
}

static void refused(struct http_exchange *x, int status, const char *stream)
{
    if (status == SPOOL_E_NOT_FOUND)
        control_error(x, 404, "there is no stream \"%s\"", stream);
    else if (status == SPOOL_E_EXISTS)
        control_error(x, 503, "dead letters of \"%s\" are being replayed already", stream);
    else
        control_error(x, 503, "that can't be done now: %s", spool_strerror(status));
}

/* A request that may start, or NULL with the reason replied. */
static struct dead_request *request_new(struct control *c, struct http_exchange *x,
                                        const char *stream, struct dead_filter *filter)
{
    struct dead_request *r;

    if (!c->source.pipeline) {
        control_error(x, 503, "the daemon is starting or stopping");
        return NULL;
    }
    if (!control_filter(x, filter))
        return NULL;
    r = calloc(1, sizeof(*r));
    if (!r) {
        control_error(x, 503, "out of memory");
        return NULL;
    }
    r->control = c;
    r->exchange = x;
    snprintf(r->stream, sizeof(r->stream), "%s", stream);
    return r;
}

static void request_started(struct dead_request *r, int status)
{
    struct http_exchange *x = r->exchange;

    if (status == SPOOL_OK) {
        r->control->looks++;
        http_exchange_wait(x, request_gone, r);
        return;
    }
    refused(x, status, r->stream);
    free(r);
}

void control_dead_replay(struct control *c, struct http_exchange *x, const char *stream)
{
    struct dead_filter filter;
    struct dead_request *r = request_new(c, x, stream, &filter);
    int status;

    if (!r)
        return;
    log_event(LOG_INFO, "control.steer", "stream", stream, "action", "dead replay", NULL);
    status = pipeline_dead_replay(c->source.pipeline, stream, &filter, replayed, r);
    if (status == SPOOL_E_NOT_FOUND) {
        control_error(x, 404,
                      "the configuration has no stream \"%s\": letters of one that it had can be "
                      "replayed when it is put back; spoolctl dead show prints them whole, and "
                      "dead discard removes them",
                      stream);
        free(r);
        return;
    }
    request_started(r, status);
}

void control_dead_discard(struct control *c, struct http_exchange *x, const char *stream)
{
    struct dead_filter filter;
    struct dead_request *r = request_new(c, x, stream, &filter);

    if (!r)
        return;
    request_started(r,
                    pipeline_dead_discard(c->source.pipeline, stream, &filter,
                                          http_exchange_argument(x, "dry") != NULL, discarded, r));
}
