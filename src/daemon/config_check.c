/* SPDX-License-Identifier: Apache-2.0 */
/* What takes more than one value to judge: contradictions, promises, forms of addresses. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "daemon/config_int.h"

#define SOCKET_PATH_MAX 100       /* sun_path has 108, and a temporary name takes some */
#define RESERVE_BYTES   (8 * MIB) /* meta.mdb and dead.mdb, preallocated */

/* Settings of an insert that are not the operator's to choose. A name that ends in * is a prefix. */
static const struct {
    const char *name;
    const char *why;
} REFUSED_SETTINGS[] = {
    {"async_insert*", "rows would be acknowledged before they are stored"},
    {"wait_for_async_insert*", "rows would be acknowledged before they are stored"},
    {"insert_deduplicate", "a repeated batch would be doubled, or an equal one lost"},
    {"insert_deduplication_token", "each batch has a token of its own"},
    {"min_insert_block_size_*", "a batch must go in as one block, or a part of it may stay behind"},
    {"max_insert_block_size*", "a batch must go in as one block, or a part of it may stay behind"},
    {"max_insert_threads", "a batch must go in as one block, or a part of it may stay behind"},
    {"input_format_skip_unknown_fields", "values of a dropped column would be lost in silence"},
    {"input_format_allow_errors*", "rows would be dropped in silence"},
    {"input_format_*", "what a value becomes was decided and checked when it was spooled"},
    {"date_time_input_format", "what a value becomes was decided and checked when it was spooled"},
    {"insert_null_as_default", "what a value becomes was decided and checked when it was spooled"},
    {"materialized_views_ignore_errors", "rows would be missing from views in silence"},
    {"wait_end_of_query", "the end of the answer is what acknowledges a batch"},
    {"cancel_http_readonly_queries_on_client_close", "the answer is read by spoold alone"},
    {"send_progress_in_http_headers", "the answer is read by spoold alone"},
    {"http_*", "how the answer comes is between spoold and the server"},
    {"decompress", "blocks go compressed, exactly as they were spooled"},
    {"compress", "the answer is read by spoold alone"},
    {"enable_http_compression", "the answer is read by spoold alone"},
    {"default_format", "the format is part of the insert"},
    {"query", "spoold writes the query"},
    {"query_id", "spoold names each attempt"},
    {"replace_running_query", "an attempt that still runs must not be killed"},
    {"session_*", "batches run beside each other"},
    {"database", "set clickhouse.database or streams[].database"},
    {"user", "set clickhouse.user"},
    {"password", "set clickhouse.password or clickhouse.password_file"},
};

const char *setting_refused(const char *name)
{
    for (size_t i = 0; i < sizeof(REFUSED_SETTINGS) / sizeof(REFUSED_SETTINGS[0]); i++) {
        const char *refused = REFUSED_SETTINGS[i].name;
        size_t n = strlen(refused);
        bool prefix = refused[n - 1] == '*';
        if (prefix ? strncmp(name, refused, n - 1) == 0 : strcmp(name, refused) == 0)
            return REFUSED_SETTINGS[i].why;
    }
    return clickhouse_setting_is_ours(name) ? "spoold sets it itself" : NULL;
}

/* A certificate and its key come together. */
static int check_pair_of_files(struct reader *r, const struct json_node *tls, const char *path,
                               const char *cert, const char *key)
{
    if (!cert == !key)
        return SPOOL_OK;
    return reader_fail(r, SPOOL_E_INVALID, tls ? tls->at : 0, path,
                       "cert_file and key_file go together; %s is missing",
                       cert ? "key_file" : "cert_file");
}

/*
 * The newest segment of each stream stays, and so do the two reserves: with these alone the spool
 * must be below the level at which a full one resumes (75 %), or it never would.
 */
static int check_segments(struct reader *r, const struct json_node *spool)
{
    struct config *c = r->config;
    uint64_t max = c->pipeline.max_bytes;
    uint64_t usable = max / 4 * 3 > RESERVE_BYTES ? max / 4 * 3 - RESERVE_BYTES : 0;
    uint64_t streams = c->pipeline.stream_count;
    char text[32];

    if (!json_member(spool, "segment_bytes")) {
        c->spool.segment_bytes = usable / streams / 2 < max / 8 ? usable / streams / 2 : max / 8;
        if (c->spool.segment_bytes > 64 * MIB)
            c->spool.segment_bytes = 64 * MIB;
        if (c->spool.segment_bytes < MIB)
            c->spool.segment_bytes = MIB;
    }
    c->pipeline.segment_bytes = c->spool.segment_bytes;
    if (c->spool.segment_bytes * streams <= usable)
        return SPOOL_OK;
    max = ((c->spool.segment_bytes * streams + RESERVE_BYTES) / 3 * 4 / MIB + 1) * MIB;
    return reader_fail(r, SPOOL_E_INVALID, member_at(spool, "max_bytes"), "spool.max_bytes",
                       "is too little for the newest segments of %llu stream%s, which stay in a "
                       "full spool: set at least %s, or less segment_bytes",
                       (unsigned long long)streams, streams == 1 ? "" : "s",
                       option_size_text(max, text, sizeof(text)));
}

static int check_spool(struct reader *r)
{
    const struct json_node *spool = json_member(r->root, "spool");
    struct config *c = r->config;

    c->spool.create = true;
    if (json_member(spool, "segment_bytes") && c->spool.segment_bytes > c->pipeline.max_bytes / 2)
        return reader_fail(r, SPOOL_E_INVALID, member_at(spool, "segment_bytes"),
                           "spool.segment_bytes",
                           "must be at most half of spool.max_bytes: a full spool frees whole "
                           "segments");
    if (check_segments(r, spool) != SPOOL_OK)
        return SPOOL_E_INVALID;
    if (strlen(c->control_socket) > SOCKET_PATH_MAX)
        return reader_fail(r, SPOOL_E_INVALID, member_at(json_member(r->root, "control"), "socket"),
                           "control.socket",
                           "a socket's path has at most %d bytes, but this one has %zu",
                           SOCKET_PATH_MAX, strlen(c->control_socket));
    return SPOOL_OK;
}

/* "http[s]://host[:port][/path]"; the sentence that says what is wrong, or NULL. */
static const char *url_fault(const char *url)
{
    const char *host;
    size_t n;

    if (strncmp(url, "http://", 7) == 0)
        host = url + 7;
    else if (strncmp(url, "https://", 8) == 0)
        host = url + 8;
    else
        return "must begin with http:// or https://";
    n = strcspn(host, "/?#");
    if (memchr(host, '@', n))
        return "must not hold a user or password; use clickhouse.user and clickhouse.password";
    if (n == 0 || host[0] == ':')
        return "names no host";
    if (host[n] && strpbrk(host + n, "?#"))
        return "must not have a query (?) or fragment (#); use clickhouse.settings";
    for (const char *at = url; *at; at++)
        if ((unsigned char)*at <= ' ' || *at == 0x7f)
            return "has a blank or control character";
    return NULL;
}

static int check_settings(struct reader *r, const struct json_node *settings)
{
    for (const struct json_node *s = settings ? settings->child : NULL; s; s = s->next) {
        char path[OPTION_PATH_BYTES];
        const char *why = setting_refused(s->key);
        path_set(path, "clickhouse.settings.%.60s", s->key);
        if (why)
            return reader_fail(r, SPOOL_E_INVALID, s->key_at, path,
                               "can't be set, because %s; remove it", why);
        if (!*s->key || s->key[strspn(s->key, "abcdefghijklmnopqrstuvwxyz_0123456789"
                                              "ABCDEFGHIJKLMNOPQRSTUVWXYZ")])
            return reader_fail(r, SPOOL_E_INVALID, s->key_at, path,
                               "is no name of a setting: letters, digits and _ only");
    }
    return SPOOL_OK;
}

static int check_clickhouse(struct reader *r)
{
    const struct json_node *node = json_member(r->root, "clickhouse");
    const struct json_node *urls = json_member(node, "urls");
    const struct clickhouse_options *ch = &r->config->pipeline.clickhouse;

    for (size_t i = 0; i < ch->url_count; i++) {
        const char *fault = url_fault(ch->urls[i]);
        char path[OPTION_PATH_BYTES];
        path_set(path, "clickhouse.urls[%zu]", i);
        if (fault) /* the URL itself may hold a password: it is not shown */
            return reader_fail(r, SPOOL_E_INVALID, element(urls, i) ? element(urls, i)->at : 0,
                               path, "%s", fault);
    }
    if (json_member(node, "password") && json_member(node, "password_file"))
        return reader_fail(r, SPOOL_E_INVALID, member_at(node, "password_file"),
                           "clickhouse.password_file",
                           "clickhouse.password is set too; remove one of them");
    if (ch->proxy && strncmp(ch->proxy, "http://", 7) != 0 &&
        strncmp(ch->proxy, "https://", 8) != 0)
        return reader_fail(r, SPOOL_E_INVALID, member_at(node, "proxy"), "clickhouse.proxy",
                           "must begin with http:// or https://");
    if (check_pair_of_files(r, json_member(node, "tls"), "clickhouse.tls", ch->tls.cert_file,
                            ch->tls.key_file) != SPOOL_OK)
        return SPOOL_E_INVALID;
    return check_settings(r, json_member(node, "settings"));
}

int config_split_listen(const char *text, char *host, size_t host_size, uint16_t *port)
{
    const char *colon = strrchr(text, ':'), *begin = text, *end = colon;
    unsigned long v;
    char *stop = NULL;

    if (!colon || !isdigit((unsigned char)colon[1]))
        return -1;
    v = strtoul(colon + 1, &stop, 10);
    if (*stop || stop - colon > 6 || v > 65535)
        return -1;
    if (*begin == '[') { /* [v6]:port */
        if (end[-1] != ']')
            return -1;
        begin++;
        end--;
    } else if (memchr(begin, ':', (size_t)(end - begin))) {
        return -1;
    }
    if ((size_t)(end - begin) >= host_size)
        return -1;
    memcpy(host, begin, (size_t)(end - begin));
    host[end - begin] = 0;
    *port = (uint16_t)v;
    return 0;
}

static int check_token(struct reader *r, const struct json_node *node, size_t i)
{
    const struct config_token *token = &r->config->http.tokens[i];
    const struct pipeline_options *p = &r->config->pipeline;
    char path[OPTION_PATH_BYTES];

    path_set(path, "http.tokens[%zu]", i);
    if (!json_member(node, "token") == !json_member(node, "token_file"))
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "needs a token or a token_file, and not both");
    if (!*token->token)
        return reader_fail(r, SPOOL_E_INVALID, member_at(node, "token"), path,
                           "the token is empty: everybody would have it");
    for (const char *at = token->token; *at; at++)
        if (*at <= ' ' || *at > '~')
            return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                               "the token has a character that no HTTP header can carry; use "
                               "printable ASCII without blanks");
    for (size_t k = 0; k < token->stream_count; k++) {
        bool known = false;
        for (size_t s = 0; s < p->stream_count && !known; s++)
            known = strcmp(p->streams[s].name, token->streams[k]) == 0;
        if (!known)
            return reader_fail(r, SPOOL_E_INVALID, element(json_member(node, "streams"), k)->at,
                               path, "there is no stream \"%.64s\"", token->streams[k]);
    }
    return SPOOL_OK;
}

static int check_http(struct reader *r)
{
    const struct json_node *node = json_member(r->root, "http");
    const struct json_node *tokens = json_member(node, "tokens");
    const struct config_http *http = &r->config->http;
    char host[256];
    uint16_t port;
    size_t i = 0;

    if (http->listen && config_split_listen(http->listen, host, sizeof(host), &port) != 0)
        return reader_fail(r, SPOOL_E_INVALID, member_at(node, "listen"), "http.listen",
                           "must be \"host:port\", \":port\" or \"[v6]:port\", but is \"%.60s\"",
                           http->listen);
    if (check_pair_of_files(r, json_member(node, "tls"), "http.tls", http->tls_cert_file,
                            http->tls_key_file) != SPOOL_OK)
        return SPOOL_E_INVALID;
    for (const struct json_node *t = tokens ? tokens->child : NULL; t; t = t->next, i++)
        if (check_token(r, t, i) != SPOOL_OK)
            return SPOOL_E_INVALID;
    return SPOOL_OK;
}

/* Puts *** over every occurrence of secret in text. */
static void blot_out(char *text, size_t size, const char *secret)
{
    size_t n = strlen(secret);
    char *at = text;

    while (n && (at = strstr(at, secret))) {
        size_t rest = strlen(at + n) + 1;
        size_t room = size - (size_t)(at - text);
        size_t stars = n < 3 ? n : 3;
        if (stars + rest > room)
            rest = room - stars;
        memmove(at + stars, at + n, rest);
        memset(at, '*', stars);
        text[size - 1] = 0;
        at += stars; /* a secret may be stars itself */
    }
}

static bool is_secret_property(const char *name)
{
    static const char *const WORDS[] = {"password", "secret", "passphrase",
                                        ".pem",     ".jaas",  ".key"};

    for (size_t i = 0; i < sizeof(WORDS) / sizeof(WORDS[0]); i++)
        if (strstr(name, WORDS[i]))
            return true;
    return false;
}

/* The property an error of librdkafka talks about, for its position; NULL: can't tell. */
static const struct json_node *property_named(const struct json_node *properties, const char *text)
{
    const struct json_node *found = NULL;

    for (const struct json_node *p = properties ? properties->child : NULL; p; p = p->next)
        if (*p->key && strstr(text, p->key) && (!found || strlen(p->key) > strlen(found->key)))
            found = p;
    return found;
}

static int check_kafka(struct reader *r)
{
    const struct json_node *node = json_member(r->root, "kafka"), *culprit;
    struct config *c = r->config;
    static const char SAID[] = "kafka.properties: "; /* the path says it */
    const size_t said = sizeof(SAID) - 1;
    struct spool_error error = {0};
    char path[OPTION_PATH_BYTES];

    for (size_t i = 0; i < c->pipeline.stream_count; i++)
        c->has_kafka |=
            c->pipeline.streams[i].topic_count > 0 || c->pipeline.streams[i].dead_letters_topic;
    if (!c->has_kafka)
        return SPOOL_OK;
    c->pipeline.kafka = &c->kafka;
    if (!c->kafka.brokers)
        return reader_fail(r, SPOOL_E_INVALID, node ? node->at : 0, "kafka.brokers",
                           "is missing; streams with topics need it");
    if (kafka_options_check(&c->kafka, &error) == SPOOL_OK)
        return SPOOL_OK;
    culprit = property_named(json_member(node, "properties"), error.text);
    for (size_t i = 0; i < c->kafka.property_count; i++)
        if (is_secret_property(c->kafka.properties[i].name))
            blot_out(error.text, sizeof(error.text), c->kafka.properties[i].value);
    path_set(path, "kafka%s%.100s", culprit ? ".properties." : "", culprit ? culprit->key : "");
    return reader_fail(r, SPOOL_E_INVALID,
                       culprit ? culprit->key_at
                       : node  ? node->at
                               : 0,
                       path, "%s", error.text + (strncmp(error.text, SAID, said) == 0 ? said : 0));
}

int config_check(struct reader *r)
{
    int status = check_spool(r);

    if (status == SPOOL_OK)
        status = check_clickhouse(r);
    if (status == SPOOL_OK)
        status = config_check_streams(r);
    if (status == SPOOL_OK)
        status = check_kafka(r);
    return status == SPOOL_OK ? check_http(r) : status;
}
