/* SPDX-License-Identifier: Apache-2.0 */
#include "backend.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/limits.h"
#include "json_view.h"

#define STATUS_MAX_BYTES (16 * MIB)

static int open_files(struct backend *b, bool by_default, struct spool_error *error)
{
    struct spool_options options = {.path = b->spool_path, .read_only = true};
    int status = spool_open(&options, &b->spool, error);

    if (status == SPOOL_E_LOCKED && by_default)
        return spool_error_set(error, status,
                               "%s is held by a running spoold, but none answers at %s: name its "
                               "control socket with --socket",
                               b->spool_path, b->socket_path);
    if (status == SPOOL_E_LOCKED)
        return spool_error_set(error, status,
                               "%s is held by a running spoold (or another spoolctl): ask it "
                               "through its control socket with --socket PATH (by default %s), or "
                               "work on a copy",
                               b->spool_path, DEFAULT_SOCKET);
    if (status == SPOOL_E_NOT_FOUND && by_default)
        return spool_error_set(
            error, status,
            "no spoold answers at %s, and there is no spool in %s: name one with "
            "--spool DIR or --socket PATH",
            b->socket_path, b->spool_path);
    return status;
}

int backend_open(struct backend *b, const char *spool, const char *socket, bool daemon_only,
                 struct spool_error *error)
{
    bool by_default = !spool && !socket;
    struct buf answer;
    int status;

    memset(b, 0, sizeof(*b));
    b->socket_path = socket ? socket : DEFAULT_SOCKET;
    b->spool_path = spool ? spool : DEFAULT_SPOOL;
    if (spool)
        return open_files(b, false, error);
    if (by_default && !daemon_only && access(b->socket_path, F_OK) != 0)
        return open_files(b, true, error);
    status = client_create(b->socket_path, &b->client, error);
    if (status != SPOOL_OK || !by_default || daemon_only)
        return status;
    /* A socket file may be left over from a killed daemon: only an answer counts. */
    buf_init(&answer, STATUS_MAX_BYTES);
    status = client_request(b->client, false, "/status", false, &answer, error);
    buf_free(&answer);
    if (status != SPOOL_E_NOT_FOUND)
        return status;
    client_free(b->client);
    b->client = NULL;
    return open_files(b, true, error);
}

void backend_close(struct backend *b)
{
    client_free(b->client);
    spool_close(b->spool);
    memset(b, 0, sizeof(*b));
}

/* --- streams -------------------------------------------------------------------------------- */

void backend_streams_free(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

static int online_streams(struct backend *b, char ***names, size_t *count,
                          struct spool_error *error)
{
    struct json_view streams, stream;
    struct buf answer;
    size_t at = 0;
    int status;

    buf_init(&answer, STATUS_MAX_BYTES);
    status = backend_status(b, &answer, error);
    streams = view_member(view_of((const char *)answer.data, answer.len), "streams");
    while (status == SPOOL_OK && view_element(streams, &at, &stream)) {
        char **grown = reallocarray(*names, *count + 1, sizeof(*grown));
        char *name = view_text(view_member(stream, "name"));

        *names = grown ? grown : *names;
        if (grown && name)
            grown[(*count)++] = name;
        else
            free(name);
        if (!grown || !name)
            status = spool_error_set(error, SPOOL_E_NOMEM, "out of memory for the streams");
    }
    buf_free(&answer);
    return status;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int backend_streams(struct backend *b, char ***names, size_t *count, struct spool_error *error)
{
    int status;

    *names = NULL;
    *count = 0;
    status = b->client ? online_streams(b, names, count, error)
                       : spool_stream_names(b->spool, names, count, error);
    if (status == SPOOL_OK && *count)
        qsort(*names, *count, sizeof(**names), compare_names);
    if (status != SPOOL_OK) {
        backend_streams_free(*names, *count);
        *names = NULL;
        *count = 0;
    }
    return status;
}

/* Opening a stream would make it: only those the spool names are opened. */
static int open_stream(struct backend *b, const char *name, struct spool_stream **stream,
                       struct spool_error *error)
{
    char **names = NULL;
    size_t count = 0;
    bool known = false;
    struct buf list;
    int status;

    *stream = NULL;
    status = backend_streams(b, &names, &count, error);
    if (status != SPOOL_OK)
        return status;
    buf_init(&list, 512);
    for (size_t i = 0; i < count; i++) {
        known |= strcmp(names[i], name) == 0;
        /* A list cut short by its bound is still of use. */
        (void)buf_printf(&list, "%s%s", i ? ", " : "", names[i]);
    }
    if (known)
        status = spool_stream_open(b->spool, name, stream, error);
    else if (count)
        status =
            spool_error_set(error, SPOOL_E_NOT_FOUND, "there is no stream %s in %s; it holds %.*s",
                            name, b->spool_path, (int)list.len, (const char *)list.data);
    else
        status = spool_error_set(error, SPOOL_E_NOT_FOUND,
                                 "there is no stream %s in %s; it holds none", name, b->spool_path);
    buf_free(&list);
    backend_streams_free(names, count);
    return status;
}

/* --- documents ------------------------------------------------------------------------------ */

/* A document that has the member every answer of its kind has. */
static int get(struct backend *b, struct buf *path, const char *member, bool patient,
               struct buf *out, struct spool_error *error)
{
    const char *text = buf_cstr(path);
    int status;

    status = text ? client_request(b->client, false, text, patient, out, error)
                  : spool_error_set(error, SPOOL_E_NOMEM, "out of memory for the request");
    if (status == SPOOL_OK && !view_member(view_of((const char *)out->data, out->len), member).text)
        status = spool_error_set(error, SPOOL_E_SYNTAX,
                                 "the answer of %s has no \"%s\": is it the socket of a spoold?",
                                 b->socket_path, member);
    return status;
}

int backend_status(struct backend *b, struct buf *out, struct spool_error *error)
{
    struct buf path;
    int status;

    if (!b->client)
        return offline_status(b->spool, b->spool_path, out, error);
    buf_init(&path, KIB);
    (void)buf_append_str(&path, "/status");
    status = get(b, &path, "streams", false, out, error);
    buf_free(&path);
    return status;
}

int backend_verify(struct backend *b, struct buf *out, struct spool_error *error)
{
    struct buf path;
    bool ok;
    int status;

    if (!b->client)
        return look_verify(b->spool, out, &ok, error);
    buf_init(&path, KIB);
    (void)buf_append_str(&path, "/verify");
    status = get(b, &path, "ok", true, out, error);
    buf_free(&path);
    return status;
}

int backend_segments(struct backend *b, const char *stream, struct buf *out,
                     struct spool_error *error)
{
    struct spool_stream *opened = NULL;
    struct buf path;
    int status;

    if (b->client) {
        buf_init(&path, KIB);
        (void)buf_printf(&path, "/streams/%s/segments", stream);
        status = get(b, &path, "segments", false, out, error);
        buf_free(&path);
        return status;
    }
    status = open_stream(b, stream, &opened, error);
    if (status == SPOOL_OK)
        status = look_segments(b->spool, opened, out, error);
    spool_stream_close(opened);
    return status;
}

int backend_blocks(struct backend *b, const char *stream, uint64_t segment, struct buf *out,
                   struct spool_error *error)
{
    struct spool_stream *opened = NULL;
    struct buf path;
    int status;

    if (b->client) {
        buf_init(&path, KIB);
        (void)buf_printf(&path, "/streams/%s/blocks?segment=%" PRIu64, stream, segment);
        status = get(b, &path, "blocks", false, out, error);
        buf_free(&path);
        return status;
    }
    status = open_stream(b, stream, &opened, error);
    if (status == SPOOL_OK)
        status = look_blocks(b->spool, opened, segment, out, error);
    spool_stream_close(opened);
    return status;
}

int backend_steer(struct backend *b, const char *stream, const char *action, struct buf *out,
                  struct spool_error *error)
{
    char path[SPOOL_STREAM_NAME_MAX + 64];

    snprintf(path, sizeof(path), "/streams/%s/%s", stream, action);
    return client_request(b->client, true, path, false, out, error);
}

/* --- lines ---------------------------------------------------------------------------------- */

static int add_number(struct buf *path, const char *name, int64_t v)
{
    char text[24];
    snprintf(text, sizeof(text), "%" PRId64, v);
    return client_add_query(path, name, text);
}

static int get_lines(struct backend *b, struct buf *path, int status, look_line_fn *line, void *arg,
                     struct spool_error *error)
{
    const char *text = status == SPOOL_OK ? buf_cstr(path) : NULL;

    if (!text)
        return spool_error_set(error, SPOOL_E_LIMIT,
                               "the request is too long: a shorter --origin?");
    return client_lines(b->client, text, line, arg, error);
}

int backend_records(struct backend *b, const char *stream, const struct look_records_query *query,
                    look_line_fn *line, void *arg, struct spool_error *error)
{
    struct spool_stream *opened = NULL;
    struct buf path;
    int status;

    if (!b->client) {
        status = open_stream(b, stream, &opened, error);
        if (status == SPOOL_OK)
            status = look_records_each(b->spool, opened, query, line, arg, error);
        spool_stream_close(opened);
        return status;
    }
    buf_init(&path, 8 * KIB);
    status = buf_printf(&path, "/streams/%s/records?limit=%" PRIu64, stream, query->limit);
    if (status == SPOOL_OK && query->origin)
        status = client_add_query(&path, "origin", query->origin);
    if (status == SPOOL_OK && query->has_from)
        status = add_number(&path, "from", query->from);
    if (status == SPOOL_OK && query->has_to)
        status = add_number(&path, "to", query->to);
    status = get_lines(b, &path, status, line, arg, error);
    buf_free(&path);
    return status;
}

static int add_filter(struct buf *path, const struct dead_filter *filter)
{
    int status = SPOOL_OK;

    if (filter->origin)
        status = client_add_query(path, "origin", filter->origin);
    if (status == SPOOL_OK && filter->reason)
        status = client_add_query(path, "reason", filter->reason);
    if (status == SPOOL_OK && filter->has_from)
        status = add_number(path, "from", filter->from);
    if (status == SPOOL_OK && filter->has_to)
        status = add_number(path, "to", filter->to);
    if (status == SPOOL_OK && filter->has_code)
        status = add_number(path, "code", filter->code);
    return status;
}

int backend_dead(struct backend *b, const struct look_dead_query *query, look_line_fn *line,
                 void *arg, struct spool_error *error)
{
    struct buf path;
    int status;

    if (!b->client)
        return look_dead_each(b->spool, query, line, arg, error);
    buf_init(&path, 8 * KIB);
    status = buf_printf(&path, "/dead?limit=%" PRIu64, query->limit);
    if (status == SPOOL_OK && query->stream)
        status = client_add_query(&path, "stream", query->stream);
    if (status == SPOOL_OK)
        status = add_filter(&path, &query->filter);
    status = get_lines(b, &path, status, line, arg, error);
    buf_free(&path);
    return status;
}

int backend_dead_action(struct backend *b, const char *stream, const char *action,
                        const struct dead_filter *filter, bool dry, struct buf *out,
                        struct spool_error *error)
{
    struct buf path;
    const char *text = NULL;
    int status;

    buf_init(&path, 8 * KIB);
    status = buf_printf(&path, "/streams/%s/dead/%s%s", stream, action, dry ? "?dry=1" : "");
    if (status == SPOOL_OK)
        status = add_filter(&path, filter);
    if (status == SPOOL_OK)
        text = buf_cstr(&path);
    status = text ? client_request(b->client, true, text, true, out, error)
                  : spool_error_set(error, SPOOL_E_LIMIT,
                                    "the request is too long: a shorter --origin?");
    buf_free(&path);
    return status;
}
