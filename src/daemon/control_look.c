/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking into the spool of a running daemon. The work runs on the pool, alone on the lanes it
 * reads; the request is suspended meanwhile. A server that closes orphans the look, which then ends
 * with nobody to tell.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/limits.h"
#include "daemon/control_int.h"
#include "spool/look.h"

#define LOOKS_MAX      4          /* at a time: each may hold LOOK_BYTES_MAX, until that is sent */
#define LOOK_BYTES_MAX (64 * MIB) /* of one answer */

#define TYPE_JSON  "application/json"
#define TYPE_LINES "application/x-ndjson"

struct look {
    struct control *control;
    struct http_exchange *exchange; /* NULL: gone */
    enum look_kind {
        LOOK_AT_SEGMENTS,
        LOOK_AT_BLOCKS,
        LOOK_AT_RECORDS,
        LOOK_AT_DEAD,
        LOOK_AT_ALL
    } kind;
    char *stream; /* the next three are owned, and what the queries point at */
    char *origin;
    char *reason;
    uint64_t segment;
    struct look_records_query records;
    struct look_dead_query dead;
    struct buf out;
    int status;
    struct spool_error error;
};

static void look_free(struct look *l)
{
    buf_free(&l->out);
    free(l->stream);
    free(l->origin);
    free(l->reason);
    free(l);
}

static void look_work(void *arg, struct spool *spool, struct spool_stream *stream)
{
    struct look *l = arg;
    bool ok;

    switch (l->kind) {
    case LOOK_AT_SEGMENTS:
        l->status = look_segments(spool, stream, &l->out, &l->error);
        break;
    case LOOK_AT_BLOCKS:
        l->status = look_blocks(spool, stream, l->segment, &l->out, &l->error);
        break;
    case LOOK_AT_RECORDS:
        l->status = look_records(spool, stream, &l->records, &l->out, &l->error);
        break;
    case LOOK_AT_DEAD:
        l->status = look_dead(spool, &l->dead, &l->out, &l->error);
        break;
    case LOOK_AT_ALL:
        l->status = look_verify(spool, &l->out, &ok, &l->error);
        break;
    }
}

static unsigned http_status(int status)
{
    switch (status) {
    case SPOOL_E_NOT_FOUND:
        return 404;
    case SPOOL_E_INVALID:
    case SPOOL_E_LIMIT:
        return 400;
    case SPOOL_E_NOMEM:
    case SPOOL_E_CANCELLED:
    case SPOOL_E_FULL:
        return 503;
    default:
        return 500;
    }
}

static void look_over(void *arg)
{
    struct control *c = arg;

    c->looks--;
    control_check_closed(c);
}

static void look_done(void *arg)
{
    struct look *l = arg;
    struct control *c = l->control;
    bool lines = l->kind == LOOK_AT_RECORDS || l->kind == LOOK_AT_DEAD;

    if (l->exchange)
        http_exchange_on_sent(l->exchange, look_over, c);
    if (l->exchange && l->status == SPOOL_OK)
        http_exchange_reply(l->exchange, 200, lines ? TYPE_LINES : TYPE_JSON, &l->out);
    else if (l->exchange && l->status == SPOOL_E_LIMIT)
        control_error(l->exchange, 400, "the answer is over 64MiB; ask for less");
    else if (l->exchange)
        control_error(l->exchange, http_status(l->status), "%s",
                      *l->error.text ? l->error.text : spool_strerror(l->status));
    else
        look_over(c);
    look_free(l);
}

static void look_gone(void *arg)
{
    ((struct look *)arg)->exchange = NULL;
}

/* A look that may start, or NULL with the reason replied. */
static struct look *look_new(struct control *c, struct http_exchange *x, enum look_kind kind,
                             const char *stream)
{
    struct look *l;

    if (!c->source.pipeline) {
        control_error(x, 503, "the daemon is starting or stopping");
        return NULL;
    }
    if (c->looks >= LOOKS_MAX) {
        control_error(x, 503, "%d requests look into the spool already; try again", LOOKS_MAX);
        return NULL;
    }
    l = calloc(1, sizeof(*l));
    if (l)
        l->stream = stream ? strdup(stream) : NULL;
    if (!l || (stream && !l->stream)) {
        free(l);
        control_error(x, 503, "out of memory");
        return NULL;
    }
    l->control = c;
    l->exchange = x;
    l->kind = kind;
    buf_init(&l->out, LOOK_BYTES_MAX);
    return l;
}

static void look_start(struct look *l, enum look_lane lane)
{
    struct control *c = l->control;
    struct http_exchange *x = l->exchange;
    const char *stream = lane == LOOK_STREAM ? l->stream : NULL;
    int status;

    status = pipeline_look(c->source.pipeline, lane, stream, look_work, look_done, l);
    if (status == SPOOL_OK) {
        c->looks++;
        http_exchange_wait(x, look_gone, l);
        return;
    }
    if (status == SPOOL_E_NOT_FOUND)
        control_error(x, 404, "there is no stream \"%s\"", l->stream);
    else
        control_error(x, http_status(status), "can't look now: %s", spool_strerror(status));
    look_free(l);
}

bool control_number(struct http_exchange *x, const char *name, bool *given, int64_t *v)
{
    const char *text = http_exchange_argument(x, name);
    char *end = NULL;

    *given = text != NULL;
    *v = 0;
    if (!text)
        return true;
    errno = 0;
    *v = strtoll(text, &end, 10);
    if (end != text && !*end && errno == 0 && !strchr(" \t\n+", text[0]))
        return true;
    control_error(x, 400, "%s must be a whole number, but is \"%.60s\"", name, text);
    return false;
}

/* As number_argument, for one that can't be negative; 0 where it is not given. */
static bool count_argument(struct http_exchange *x, const char *name, uint64_t *v)
{
    int64_t number;
    bool given;

    if (!control_number(x, name, &given, &number))
        return false;
    *v = (uint64_t)number;
    if (number >= 0)
        return true;
    control_error(x, 400, "%s must not be negative", name);
    return false;
}

/* *text, where there is one, becomes a copy that outlives the request. */
static bool take_text(struct http_exchange *x, const char **text, char **copy)
{
    if (!*text)
        return true;
    *copy = strdup(*text);
    *text = *copy;
    if (!*copy)
        control_error(x, 503, "out of memory");
    return *copy != NULL;
}

void control_segments(struct control *c, struct http_exchange *x, const char *stream)
{
    struct look *l = look_new(c, x, LOOK_AT_SEGMENTS, stream);

    if (l)
        look_start(l, LOOK_STREAM);
}

void control_blocks(struct control *c, struct http_exchange *x, const char *stream)
{
    struct look *l = look_new(c, x, LOOK_AT_BLOCKS, stream);

    if (l && count_argument(x, "segment", &l->segment))
        look_start(l, LOOK_STREAM);
    else if (l)
        look_free(l);
}

void control_records(struct control *c, struct http_exchange *x, const char *stream)
{
    struct look *l = look_new(c, x, LOOK_AT_RECORDS, stream);

    if (l)
        l->records.origin = http_exchange_argument(x, "origin");
    if (l && take_text(x, &l->records.origin, &l->origin) &&
        control_number(x, "from", &l->records.has_from, &l->records.from) &&
        control_number(x, "to", &l->records.has_to, &l->records.to) &&
        count_argument(x, "limit", &l->records.limit))
        look_start(l, LOOK_STREAM);
    else if (l)
        look_free(l);
}

void control_dead(struct control *c, struct http_exchange *x, const char *stream)
{
    const char *wanted = http_exchange_argument(x, "stream");
    struct look *l = look_new(c, x, LOOK_AT_DEAD, wanted);

    (void)stream;
    if (l && control_filter(x, &l->dead.filter) && count_argument(x, "limit", &l->dead.limit) &&
        take_text(x, &l->dead.filter.origin, &l->origin) &&
        take_text(x, &l->dead.filter.reason, &l->reason)) {
        l->dead.stream = l->stream;
        look_start(l, LOOK_DEAD);
    } else if (l) {
        look_free(l);
    }
}

void control_verify(struct control *c, struct http_exchange *x, const char *stream)
{
    struct look *l = look_new(c, x, LOOK_AT_ALL, stream);

    if (l)
        look_start(l, LOOK_ALL);
}
