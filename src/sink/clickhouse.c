/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Endpoints and their health. An endpoint is
 *
 *   unknown --(answers SELECT version())--> up --(an exchange broke off, a bare 5xx)--> down
 *      `-----(does not)----> down --(/ping, then SELECT version() answer)--> up
 *
 * and every change goes through endpoint_change, which logs it and tells the pipeline. One that is
 * up and idle is asked by /ping now and then, so that the status is not of yesterday; silence is no
 * failure there, since a server may just be slow.
 */
#include "sink/clickhouse.h"

#include <assert.h>
#include <curl/curl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/limits.h"
#include "sink/clickhouse_int.h"
#include "sink/sql_text.h"

#define PROBE_FIRST_MS     50 /* a connection that died under us is no outage */
#define PROBE_MS           500
#define PROBE_REFUSED_MS   5000 /* it answers, but not to us: wrong password, no ClickHouse */
#define PROBE_TIMEOUT_MS   5000
#define CHECK_MS           10000 /* one that is up and has said nothing for so long */
#define LOG_INTERVAL_MS    10000
#define IDENTITY_MAX_BYTES (4 * KIB)

static void endpoint_probe(struct endpoint *e);

static const char *state_event(enum endpoint_state state)
{
    return state == ENDPOINT_UP ? "endpoint.up" : "endpoint.down";
}

/* A state that was not logged because the gate was shut is logged by the next probe. */
static void endpoint_log(struct endpoint *e)
{
    uint64_t suppressed = 0;
    char version[48] = "";

    if (e->logged == e->state || !log_gate_open(&e->gates[e->state], LOG_INTERVAL_MS, &suppressed))
        return;
    if (e->state == ENDPOINT_UP)
        snprintf(version, sizeof(version), "%" PRIu32 ".%" PRIu32 ".%" PRIu32, e->version.major,
                 e->version.minor, e->version.patch);
    e->logged = e->state;
    log_event(e->state == ENDPOINT_UP ? LOG_INFO : LOG_WARN, state_event(e->state), "endpoint",
              e->url, e->state == ENDPOINT_UP ? "version" : "reason",
              e->state == ENDPOINT_UP ? version : e->reason, "suppressed", log_u64(suppressed),
              NULL);
}

static void on_timer(uv_timer_t *timer)
{
    endpoint_probe(timer->data);
}

static void endpoint_change(struct endpoint *e, enum endpoint_state state)
{
    struct clickhouse *ch = e->ch;
    bool is_new = e->state != state;

    assert(state != ENDPOINT_UNKNOWN);
    e->state = state;
    if (is_new)
        e->since_ms = clock_monotonic_ms();
    endpoint_log(e);
    if (is_new && ch->changed && !ch->closing)
        ch->changed(ch->changed_arg, e->index, state);
}

static void probe_after(struct endpoint *e, uint64_t delay_ms)
{
    if (!e->ch->closing && e->ch->started)
        uv_timer_start(&e->timer, on_timer, delay_ms, 0);
}

void endpoint_failed(struct endpoint *e, const char *reason)
{
    if (e->ch->closing)
        return;
    e->refused = false;
    e->outlived = true;
    one_line(e->reason, sizeof(e->reason), reason, strlen(reason));
    if (!e->probing && e->state != ENDPOINT_DOWN)
        probe_after(e, PROBE_FIRST_MS);
    endpoint_change(e, ENDPOINT_DOWN);
}

void endpoint_saw_reply(struct endpoint *e, const struct http_reply *reply)
{
    char reason[64];

    if (reply->ended_here)
        return;
    e->seen_ms = clock_monotonic_ms();
    if (reply->status == 0) {
        endpoint_failed(e, reply->transport_error);
    } else if (reply->status >= 500 && !reply->exception_code &&
               error_code_parse(reply->body, reply->body_size) == 0) {
        snprintf(reason, sizeof(reason), "HTTP status %d without an exception", reply->status);
        endpoint_failed(e, reason);
    }
}

/* --- probing ---------------------------------------------------------------------------------- */

/* refused: it answers, and will answer the same until somebody mends something. */
static void probe_failed(struct endpoint *e, const char *reason, bool refused)
{
    e->probing = false;
    e->refused = refused;
    one_line(e->reason, sizeof(e->reason), reason, strlen(reason));
    probe_after(e, refused ? PROBE_REFUSED_MS : PROBE_MS);
    endpoint_change(e, ENDPOINT_DOWN);
}

static void ask_identity(struct endpoint *e);

static void identity_done(void *arg, const struct clickhouse_outcome *outcome, char *text,
                          size_t size)
{
    struct endpoint *e = arg;
    struct tsv_reader reader;
    struct server_version version;
    char *fields[3], *end, *timezone = NULL;
    int64_t start_s;

    if (e->ch->closing) {
        e->probing = false;
        return;
    }
    if (outcome->class_ != CLASS_NONE) {
        probe_failed(e, outcome->text,
                     outcome->http_status != 0 && outcome->class_ != CLASS_TRANSIENT);
        return;
    }
    if (e->outlived) { /* the answer may be a dead server's, and another begin behind it */
        ask_identity(e);
        return;
    }
    tsv_open(&reader, text, size, 3);
    if (tsv_row(&reader, fields) != SPOOL_OK || !parse_version(fields[0], &version)) {
        probe_failed(e, "the answer is not a ClickHouse server's", true);
        return;
    }
    start_s = strtoll(fields[2], &end, 10);
    timezone = strdup(fields[1]);
    if (end == fields[2] || *end || start_s <= 0 || !timezone) {
        free(timezone);
        probe_failed(e, "its now() less its uptime() is not a number", true);
        return;
    }
    free(e->timezone);
    e->timezone = timezone;
    e->version = version;
    e->start_ms = start_s * 1000;
    e->probing = false;
    e->reason[0] = '\0';
    e->seen_ms = clock_monotonic_ms();
    probe_after(e, CHECK_MS);
    endpoint_change(e, ENDPOINT_UP);
}

static void ask_identity(struct endpoint *e)
{
    struct spool_error error;

    e->outlived = false;
    if (statement_send(e->ch, e->index,
                       "SELECT version(), timezone(), toUnixTimestamp(now()) - uptime() "
                       "FORMAT TabSeparated",
                       "", IDENTITY_MAX_BYTES, true, identity_done, e, &error) != SPOOL_OK)
        probe_failed(e, error.text, false);
}

static void ping_done(void *arg, const struct http_reply *reply)
{
    struct endpoint *e = arg;
    char reason[64];

    if (e->ch->closing) {
        e->probing = false;
    } else if (e->state == ENDPOINT_UP) {
        e->probing = false;
        probe_after(e, CHECK_MS);
        if (!reply->timed_out)
            endpoint_saw_reply(e, reply);
    } else if (reply->status == 200) {
        ask_identity(e);
    } else if (reply->status == 0) {
        probe_failed(e, reply->transport_error, false);
    } else {
        snprintf(reason, sizeof(reason), "/ping answers HTTP status %d", reply->status);
        probe_failed(e, reason, reply->status < 500);
    }
}

static void endpoint_probe(struct endpoint *e)
{
    struct buf url;
    struct http_request_spec spec = {
        .total_timeout_ms = PROBE_TIMEOUT_MS, .arg = e, .done = ping_done};
    struct spool_error error;

    if (e->probing || e->ch->closing)
        return;
    endpoint_log(e);
    if (e->state == ENDPOINT_UP && clock_monotonic_ms() - e->seen_ms < CHECK_MS) {
        probe_after(e, CHECK_MS);
        return;
    }
    e->probing = true;
    if (e->state == ENDPOINT_UNKNOWN) {
        ask_identity(e);
        return;
    }
    buf_init(&url, 64 * KIB);
    if (buf_append_str(&url, e->url) != SPOOL_OK || buf_append_str(&url, "/ping") != SPOOL_OK ||
        !(spec.url = buf_cstr(&url)) ||
        http_client_send(e->ch->http, &spec, NULL, &error) != SPOOL_OK)
        probe_failed(e, "no memory for a probe", false);
    buf_free(&url);
}

/* --- life ------------------------------------------------------------------------------------- */

static void clickhouse_free(struct clickhouse *ch)
{
    for (size_t i = 0; i < ch->endpoint_count; i++) {
        free(ch->endpoints[i].url);
        free(ch->endpoints[i].timezone);
    }
    free(ch->endpoints);
    free(ch->user);
    if (ch->password)
        explicit_bzero(ch->password, strlen(ch->password));
    free(ch->password);
    free(ch->database);
    free(ch->settings);
    free(ch);
}

/* An absolute http(s) address without credentials, query or fragment; its trailing slashes go. */
static int take_url(const char *text, char **out, struct spool_error *error)
{
    CURLU *parts = curl_url();
    char *scheme = NULL, *host = NULL, *unwanted = NULL;
    int status = SPOOL_OK;
    size_t n = strlen(text);

    if (!parts)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a URL");
    if (curl_url_set(parts, CURLUPART_URL, text, 0) != CURLUE_OK ||
        curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        curl_url_get(parts, CURLUPART_HOST, &host, 0) != CURLUE_OK ||
        (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0))
        status =
            spool_error_set(error, SPOOL_E_INVALID, "a ClickHouse URL looks like http://host:8123");
    else if (curl_url_get(parts, CURLUPART_USER, &unwanted, 0) == CURLUE_OK ||
             curl_url_get(parts, CURLUPART_PASSWORD, &unwanted, 0) == CURLUE_OK)
        status = spool_error_set(error, SPOOL_E_INVALID,
                                 "a ClickHouse URL must not hold a user or password");
    else if (curl_url_get(parts, CURLUPART_QUERY, &unwanted, 0) == CURLUE_OK ||
             curl_url_get(parts, CURLUPART_FRAGMENT, &unwanted, 0) == CURLUE_OK)
        status = spool_error_set(error, SPOOL_E_INVALID,
                                 "a ClickHouse URL must not hold parameters: %s", text);
    curl_free(scheme);
    curl_free(host);
    curl_free(unwanted);
    curl_url_cleanup(parts);
    if (status != SPOOL_OK)
        return status;
    while (n > 0 && text[n - 1] == '/')
        n--;
    *out = strndup(text, n);
    return *out ? SPOOL_OK : spool_error_set(error, SPOOL_E_NOMEM, "no memory for a URL");
}

static int take_settings(struct clickhouse *ch, const struct clickhouse_options *options,
                         struct spool_error *error)
{
    struct buf text;
    int status = SPOOL_OK;

    buf_init(&text, MIB);
    for (size_t i = 0; status == SPOOL_OK && i < options->setting_count; i++) {
        const struct clickhouse_setting *s = &options->settings[i];
        if (clickhouse_setting_is_ours(s->name)) {
            buf_free(&text);
            return spool_error_set(error, SPOOL_E_INVALID,
                                   "the ClickHouse setting %s is set by spoold itself", s->name);
        }
        status = buf_append_str(&text, "&");
        if (status == SPOOL_OK)
            status = http_escape(&text, s->name, strlen(s->name));
        if (status == SPOOL_OK)
            status = buf_append_str(&text, "=");
        if (status == SPOOL_OK)
            status = http_escape(&text, s->value, strlen(s->value));
    }
    if (status == SPOOL_OK) {
        const char *all = buf_cstr(&text);
        ch->settings = all ? strdup(all) : NULL;
    }
    buf_free(&text);
    if (!ch->settings)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for ClickHouse settings");
    return SPOOL_OK;
}

static int copy_text(char **dst, const char *src)
{
    if (!src || !src[0])
        return SPOOL_OK;
    *dst = strdup(src);
    return *dst ? SPOOL_OK : SPOOL_E_NOMEM;
}

int clickhouse_create(uv_loop_t *loop, const struct clickhouse_options *options,
                      void (*changed)(void *arg, size_t endpoint, enum endpoint_state state),
                      void *arg, struct clickhouse **out, struct spool_error *error)
{
    struct http_client_options http = {.tls = options->tls,
                                       .proxy = options->proxy,
                                       .connect_timeout_ms = options->connect_timeout_ms,
                                       .stall_timeout_ms = options->stall_timeout_ms};
    struct clickhouse *ch;
    int status;

    *out = NULL;
    if (options->url_count == 0 || options->url_count > LIMIT_ENDPOINTS)
        return spool_error_set(error, SPOOL_E_INVALID, "1 to %d ClickHouse URLs are needed",
                               LIMIT_ENDPOINTS);
    ch = calloc(1, sizeof(*ch));
    if (!ch)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for the ClickHouse client");
    ch->loop = loop;
    ch->changed = changed;
    ch->changed_arg = arg;
    ch->endpoints = calloc(options->url_count, sizeof(*ch->endpoints));
    status = ch->endpoints ? SPOOL_OK : SPOOL_E_NOMEM;
    if (status == SPOOL_OK)
        status = copy_text(&ch->user, options->user);
    if (status == SPOOL_OK)
        status = copy_text(&ch->password, options->password);
    if (status == SPOOL_OK)
        status = copy_text(&ch->database, options->database);
    if (status != SPOOL_OK) {
        spool_error_set(error, status, "no memory for the ClickHouse client");
        goto failed;
    }
    for (size_t i = 0; i < options->url_count; i++) {
        status = take_url(options->urls[i], &ch->endpoints[i].url, error);
        if (status != SPOOL_OK)
            goto failed;
        ch->endpoint_count++;
    }
    status = take_settings(ch, options, error);
    if (status == SPOOL_OK)
        status = http_client_create(loop, &http, &ch->http, error);
    if (status != SPOOL_OK)
        goto failed;
    ch->handles = 1;
    for (size_t i = 0; i < ch->endpoint_count; i++) {
        struct endpoint *e = &ch->endpoints[i];
        e->ch = ch;
        e->index = i;
        e->since_ms = clock_monotonic_ms();
        uv_timer_init(loop, &e->timer);
        e->timer.data = e;
        ch->handles++;
    }
    *out = ch;
    return SPOOL_OK;

failed:
    clickhouse_free(ch);
    return status;
}

static void release(struct clickhouse *ch)
{
    assert(ch->handles > 0);
    if (--ch->handles > 0)
        return;
    if (ch->closed)
        ch->closed(ch->closed_arg);
    clickhouse_free(ch);
}

static void on_http_closed(void *arg)
{
    release(arg);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct endpoint *e = handle->data;
    release(e->ch);
}

void clickhouse_close(struct clickhouse *ch, void (*closed)(void *arg), void *arg)
{
    assert(!ch->closing);
    ch->closing = true;
    ch->closed = closed;
    ch->closed_arg = arg;
    for (size_t i = 0; i < ch->endpoint_count; i++)
        uv_close((uv_handle_t *)&ch->endpoints[i].timer, on_timer_closed);
    http_client_close(ch->http, on_http_closed, ch);
}

void clickhouse_start(struct clickhouse *ch)
{
    ch->started = true;
    for (size_t i = 0; i < ch->endpoint_count; i++)
        endpoint_probe(&ch->endpoints[i]);
}

size_t clickhouse_endpoints(const struct clickhouse *ch)
{
    return ch->endpoint_count;
}

void clickhouse_endpoint_status(const struct clickhouse *ch, size_t i, struct endpoint_status *out)
{
    const struct endpoint *e = &ch->endpoints[i];

    assert(i < ch->endpoint_count);
    out->url = e->url;
    out->state = e->state;
    out->version = e->version;
    out->reason = e->state == ENDPOINT_DOWN ? e->reason : "";
    out->refused = e->state == ENDPOINT_DOWN && e->refused;
    out->current = clickhouse_pick(ch) == (int)i;
    out->since_ms = e->since_ms;
}

int clickhouse_pick(const struct clickhouse *ch)
{
    for (size_t i = 0; i < ch->endpoint_count; i++) {
        if (ch->endpoints[i].state == ENDPOINT_UP)
            return (int)i;
        if (ch->endpoints[i].state == ENDPOINT_UNKNOWN)
            return -1;
    }
    return -1;
}

bool clickhouse_server(const struct clickhouse *ch, size_t endpoint, struct server_version *version,
                       const char **timezone)
{
    const struct endpoint *e = &ch->endpoints[endpoint];

    assert(endpoint < ch->endpoint_count);
    if (!e->timezone)
        return false;
    *version = e->version;
    *timezone = e->timezone;
    return true;
}

bool clickhouse_server_start(const struct clickhouse *ch, size_t endpoint, int64_t *start_ms)
{
    const struct endpoint *e = &ch->endpoints[endpoint];

    assert(endpoint < ch->endpoint_count);
    if (e->state != ENDPOINT_UP)
        return false;
    *start_ms = e->start_ms;
    return true;
}
