/* SPDX-License-Identifier: Apache-2.0 */
#include "client.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/limits.h"
#include "json_view.h"

#define CONNECT_TIMEOUT_S 5L
#define ANSWER_TIMEOUT_S  60L /* without a byte */
#define LINE_MAX_BYTES    (1 * GIB)

struct client {
    CURL *curl;
    char *socket_path;
};

/* Where the body of the answer at hand goes. */
struct answer {
    CURL *curl;
    struct buf *body; /* of an error, or all of it where line is NULL */
    struct buf partial;
    look_line_fn *line;
    void *arg;
    int status; /* why the transfer was ended by us */
};

int client_create(const char *socket_path, struct client **out, struct spool_error *error)
{
    struct client *client = calloc(1, sizeof(*client));

    *out = NULL;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    if (client) {
        client->curl = curl_easy_init();
        client->socket_path = strdup(socket_path);
    }
    if (!client || !client->curl || !client->socket_path) {
        client_free(client);
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory for the connection");
    }
    *out = client;
    return SPOOL_OK;
}

void client_free(struct client *client)
{
    if (!client)
        return;
    curl_easy_cleanup(client->curl);
    free(client->socket_path);
    free(client);
}

int client_add_query(struct buf *path, const char *name, const char *value)
{
    const char *mark = memchr(path->data, '?', path->len) ? "&" : "?";
    char *escaped = curl_easy_escape(NULL, value, 0);
    int status = escaped ? buf_printf(path, "%s%s=%s", mark, name, escaped) : SPOOL_E_NOMEM;

    curl_free(escaped);
    return status;
}

/* Hands on every whole line of data; what is left waits in partial for the next piece. */
static int take_lines(struct answer *answer, const char *data, size_t size)
{
    const char *end;
    int status = SPOOL_OK;

    while (status == SPOOL_OK && (end = memchr(data, '\n', size))) {
        size_t n = (size_t)(end - data);
        status = buf_append(&answer->partial, data, n);
        if (status == SPOOL_OK && answer->partial.len)
            status =
                answer->line(answer->arg, (const char *)answer->partial.data, answer->partial.len);
        buf_reset(&answer->partial);
        data += n + 1;
        size -= n + 1;
    }
    return status == SPOOL_OK ? buf_append(&answer->partial, data, size) : status;
}

static size_t receive(char *data, size_t one, size_t n, void *arg)
{
    struct answer *answer = arg;
    size_t size = one * n;
    long http = 0;

    curl_easy_getinfo(answer->curl, CURLINFO_RESPONSE_CODE, &http);
    if (answer->line && http < 300)
        answer->status = take_lines(answer, data, size);
    else
        answer->status = buf_append(answer->body, data, size);
    return answer->status == SPOOL_OK ? size : 0;
}

/* What the daemon says of it: {"error":"..."}, else the status alone. */
static int refused(long http, const struct buf *body, struct spool_error *error)
{
    struct json_view all = view_of((const char *)body->data, body->len);
    char *text = view_text(view_member(all, "error"));
    int status;

    if (text && *text)
        status = spool_error_set(error, SPOOL_E_REFUSED, "%s", text);
    else
        status = spool_error_set(error, SPOOL_E_REFUSED,
                                 "spoold answered HTTP %ld without a reason; its log may tell more",
                                 http);
    error->sys_errno = (int)http;
    free(text);
    return status;
}

static int failed(const struct client *client, CURLcode code, struct spool_error *error)
{
    const char *path = client->socket_path;

    if (code == CURLE_COULDNT_CONNECT) {
        if (access(path, F_OK) == 0 && access(path, W_OK) != 0)
            return spool_error_set_errno(error, SPOOL_E_IO, errno,
                                         "can't use the control socket %s as this user (run as the "
                                         "user of spoold, or as root)",
                                         path);
        return spool_error_set(error, SPOOL_E_NOT_FOUND,
                               "no spoold answers at %s: start it, name its socket with --socket, "
                               "or read the files of a stopped one with --spool",
                               path);
    }
    if (code == CURLE_OPERATION_TIMEDOUT)
        return spool_error_set(error, SPOOL_E_TIMEOUT,
                               "spoold at %s took the request and then said nothing for %ld "
                               "seconds: see its log",
                               path, ANSWER_TIMEOUT_S);
    return spool_error_set(error, SPOOL_E_IO, "the control socket %s: %s", path,
                           curl_easy_strerror(code));
}

static void set_options(struct client *client, bool post, const char *url, bool patient,
                        struct answer *answer)
{
    CURL *curl = client->curl;

    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, client->socket_path);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, CONNECT_TIMEOUT_S);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    if (!patient) {
        curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
        curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, ANSWER_TIMEOUT_S);
    }
    if (post) {
        curl_easy_setopt(curl, CURLOPT_POST, 1L);
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "");
        curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, 0L);
    }
}

static int perform(struct client *client, bool post, const char *path, bool patient,
                   struct answer *answer, struct spool_error *error)
{
    char *url = NULL;
    long http = 0;
    CURLcode code;

    if (asprintf(&url, "http://spoold%s", path) < 0)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory for the request");
    answer->curl = client->curl;
    set_options(client, post, url, patient, answer);
    code = curl_easy_perform(client->curl);
    free(url);
    if (answer->status == SPOOL_E_LIMIT)
        return spool_error_set(error, answer->status, "the answer of spoold is too large to hold");
    if (answer->status != SPOOL_OK)
        return answer->status;
    if (code != CURLE_OK)
        return failed(client, code, error);
    curl_easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, &http);
    return http >= 300 ? refused(http, answer->body, error) : SPOOL_OK;
}

int client_request(struct client *client, bool post, const char *path, bool patient,
                   struct buf *body, struct spool_error *error)
{
    struct answer answer = {.body = body};
    return perform(client, post, path, patient, &answer, error);
}

int client_lines(struct client *client, const char *path, look_line_fn *line, void *arg,
                 struct spool_error *error)
{
    struct buf refusal;
    struct answer answer = {.body = &refusal, .line = line, .arg = arg};
    int status;

    buf_init(&refusal, LIMIT_REPLY_BYTES);
    buf_init(&answer.partial, LINE_MAX_BYTES);
    status = perform(client, false, path, false, &answer, error);
    if (status == SPOOL_OK && answer.partial.len)
        status = line(arg, (const char *)answer.partial.data, answer.partial.len);
    buf_free(&answer.partial);
    buf_free(&refusal);
    return status;
}
