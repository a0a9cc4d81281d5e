/* SPDX-License-Identifier: Apache-2.0 */
/* Statements other than INSERT, and the making of tables. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/type.h"
#include "sink/clickhouse_int.h"
#include "sink/sql_text.h"

#define PROBE_STATEMENT_TIMEOUT_MS 10000
#define QUERY_SIZE_USUAL           262144 /* a server reads so much of a query unless told otherwise */

struct statement {
    struct endpoint *endpoint;
    bool probe;
    statement_done done;
    void *arg;
};

static void on_reply(void *arg, const struct http_reply *reply)
{
    struct statement *s = arg;
    struct clickhouse_outcome outcome;

    outcome_of_query(reply, &outcome);
    if (!s->probe)
        endpoint_saw_reply(s->endpoint, reply);
    /* The client's own buffer, which nobody reads after this call. */
    s->done(s->arg, &outcome, (char *)(uintptr_t)reply->body, reply->body_size);
    free(s);
}

int statement_send(struct clickhouse *ch, size_t endpoint, const char *sql, const char *parameters,
                   size_t max_reply_bytes, bool probe, statement_done done, void *arg,
                   struct spool_error *error)
{
    struct buf url;
    struct statement *s = NULL;
    struct http_request_spec spec = {.post = true,
                                     .user = ch->user,
                                     .password = ch->password,
                                     .body = sql,
                                     .body_size = strlen(sql),
                                     .max_reply_bytes = max_reply_bytes,
                                     .done = on_reply};
    int status;

    assert(endpoint < ch->endpoint_count);
    buf_init(&url, 64 * KIB);
    if (ch->closing)
        return spool_error_set(error, SPOOL_E_CANCELLED, "the ClickHouse client is closing");
    s = calloc(1, sizeof(*s));
    status = s ? buf_printf(&url, "%s/?wait_end_of_query=1%s%s", ch->endpoints[endpoint].url,
                            probe ? "" : settings_of_answers(ch->endpoints[endpoint].version),
                            parameters)
               : SPOOL_E_NOMEM;
    if (status == SPOOL_OK && !(spec.url = buf_cstr(&url)))
        status = SPOOL_E_NOMEM;
    if (status != SPOOL_OK) {
        spool_error_set(error, status, "no memory for a statement");
        goto done;
    }
    s->endpoint = &ch->endpoints[endpoint];
    s->probe = probe;
    s->done = done;
    s->arg = arg;
    spec.arg = s;
    if (probe)
        spec.total_timeout_ms = PROBE_STATEMENT_TIMEOUT_MS;
    status = http_client_send(ch->http, &spec, NULL, error);

done:
    if (status != SPOOL_OK)
        free(s);
    buf_free(&url);
    return status;
}

int clickhouse_allow_query(struct buf *parameters, size_t bytes)
{
    return bytes < QUERY_SIZE_USUAL / 2 ? SPOOL_OK
                                        : buf_printf(parameters, "&max_query_size=%zu", 2 * bytes);
}

/* --- any statement ---------------------------------------------------------------------------- */

struct query {
    void (*done)(void *arg, const struct clickhouse_outcome *outcome, const char *text,
                 size_t size);
    void (*created)(void *arg, const struct clickhouse_outcome *outcome);
    void *arg;
};

static void query_done(void *arg, const struct clickhouse_outcome *outcome, char *text, size_t size)
{
    struct query *q = arg;

    if (q->created)
        q->created(q->arg, outcome);
    else
        q->done(q->arg, outcome, text, size);
    free(q);
}

static int query_send(struct clickhouse *ch, size_t endpoint, const char *sql,
                      size_t max_reply_bytes, const struct query *query, struct spool_error *error)
{
    struct buf parameters;
    struct query *q = malloc(sizeof(*q));
    const char *text = NULL;
    int status = q ? SPOOL_OK : SPOOL_E_NOMEM;

    buf_init(&parameters, 64 * KIB);
    if (status == SPOOL_OK && ch->database) {
        status = buf_append_str(&parameters, "&database=");
        if (status == SPOOL_OK)
            status = http_escape(&parameters, ch->database, strlen(ch->database));
    }
    if (status == SPOOL_OK)
        status = clickhouse_allow_query(&parameters, strlen(sql));
    if (status == SPOOL_OK && !(text = buf_cstr(&parameters)))
        status = SPOOL_E_NOMEM;
    if (status == SPOOL_OK) {
        *q = *query;
        status =
            statement_send(ch, endpoint, sql, text, max_reply_bytes, false, query_done, q, error);
    } else {
        spool_error_set(error, status, "no memory for a statement");
    }
    if (status != SPOOL_OK)
        free(q);
    buf_free(&parameters);
    return status;
}

int clickhouse_query(struct clickhouse *ch, size_t endpoint, const char *sql,
                     size_t max_reply_bytes,
                     void (*done)(void *arg, const struct clickhouse_outcome *outcome,
                                  const char *text, size_t size),
                     void *arg, struct spool_error *error)
{
    struct query query = {.done = done, .arg = arg};
    return query_send(ch, endpoint, sql, max_reply_bytes, &query, error);
}

/* --- tables ----------------------------------------------------------------------------------- */

static bool has_setting(const struct create_table_options *options, const char *name)
{
    for (size_t i = 0; i < options->setting_count; i++)
        if (strcmp(options->settings[i].name, name) == 0)
            return true;
    return false;
}

static bool is_number(const char *text)
{
    size_t digits = strspn(text, "0123456789");
    if (text[digits] == '.')
        digits += 1 + strspn(text + digits + 1, "0123456789");
    return text[0] >= '0' && text[0] <= '9' && text[digits] == '\0';
}

static int add_setting(struct buf *sql, bool *first, const char *name, const char *value)
{
    int status = buf_printf(sql, "%s%s = ", *first ? " SETTINGS " : ", ", name);

    *first = false;
    if (status != SPOOL_OK)
        return status;
    return is_number(value) ? buf_append_str(sql, value) : sql_string(sql, value);
}

/* Those that make "200" mean stored for good, and a repeated batch known. Known to servers of 22.3;
   SharedMergeTree (the cloud's) has neither local parts nor the window. */
static int add_settings(struct buf *sql, const struct create_table_options *options,
                        const char *engine, struct server_version version)
{
    static const struct clickhouse_setting durable[] = {
        {"non_replicated_deduplication_window", "10000"},
        {"fsync_after_insert", "1"},
        {"fsync_part_directory", "1"},
    };
    bool first = true, replicated = strncmp(engine, "Replicated", 10) == 0;
    int status = SPOOL_OK;

    if (strstr(engine, "MergeTree") && strncmp(engine, "Shared", 6) != 0 &&
        version_at_least(version, 22, 3)) {
        for (size_t i = replicated ? 1 : 0; i < sizeof(durable) / sizeof(durable[0]); i++)
            if (status == SPOOL_OK && !has_setting(options, durable[i].name))
                status = add_setting(sql, &first, durable[i].name, durable[i].value);
    }
    for (size_t i = 0; status == SPOOL_OK && i < options->setting_count; i++)
        status = add_setting(sql, &first, options->settings[i].name, options->settings[i].value);
    return status;
}

/* As the server would write it: an older one may not know the name it was given. */
static int add_type(struct buf *sql, const char *text)
{
    struct type *type = NULL;
    int status = buf_put_u8(sql, ' ');

    if (status != SPOOL_OK)
        return status;
    if (type_parse(text, strlen(text), &type, NULL) != SPOOL_OK)
        return buf_append_str(sql, text);
    status = type_format(type, sql);
    type_free(type);
    return status;
}

static int add_columns(struct buf *sql, const struct create_table_options *options)
{
    int status = SPOOL_OK;

    for (size_t i = 0; status == SPOOL_OK && i < options->column_count; i++) {
        const struct table_column *c = &options->columns[i];
        status = buf_append_str(sql, i ? ", " : " (");
        if (status == SPOOL_OK)
            status = sql_identifier(sql, c->name);
        if (status == SPOOL_OK)
            status = add_type(sql, c->type);
        if (status == SPOOL_OK && c->default_kind && c->default_kind[0])
            status = buf_printf(sql, " %s %s", c->default_kind,
                                c->default_expression ? c->default_expression : "");
    }
    return status == SPOOL_OK ? buf_append_str(sql, ")") : status;
}

static int create_table_sql(const char *database, const char *table,
                            const struct create_table_options *options,
                            struct server_version version, struct buf *sql)
{
    const char *engine = options->engine ? options->engine : "MergeTree";
    bool has_arguments = strchr(engine, '(') != NULL, merge_tree = strstr(engine, "MergeTree");
    int status = buf_append_str(sql, "CREATE TABLE IF NOT EXISTS ");

    if (status == SPOOL_OK)
        status = sql_table(sql, database, table);
    if (status == SPOOL_OK)
        status = add_columns(sql, options);
    if (status == SPOOL_OK)
        status =
            buf_printf(sql, " ENGINE = %s%s", engine, merge_tree && !has_arguments ? "()" : "");
    if (status == SPOOL_OK && options->partition_by)
        status = buf_printf(sql, " PARTITION BY %s", options->partition_by);
    if (status == SPOOL_OK && (merge_tree || options->order_by))
        status = buf_printf(sql, " ORDER BY %s", options->order_by ? options->order_by : "tuple()");
    if (status == SPOOL_OK && options->ttl)
        status = buf_printf(sql, " TTL %s", options->ttl);
    return status == SPOOL_OK ? add_settings(sql, options, engine, version) : status;
}

int clickhouse_create_table(struct clickhouse *ch, size_t endpoint, const char *database,
                            const char *table, const struct create_table_options *options,
                            void (*done)(void *arg, const struct clickhouse_outcome *outcome),
                            void *arg, struct spool_error *error)
{
    struct query query = {.created = done, .arg = arg};
    const struct endpoint *e = &ch->endpoints[endpoint];
    struct buf sql;
    int status;

    assert(endpoint < ch->endpoint_count);
    if (!e->timezone)
        return spool_error_set(error, SPOOL_E_NOT_FOUND,
                               "the ClickHouse server's version is not known yet");
    if (options->column_count == 0)
        return spool_error_set(error, SPOOL_E_INVALID, "a table needs columns");
    buf_init(&sql, QUERY_TEXT_MAX);
    status = create_table_sql(database ? database : ch->database, table, options, e->version, &sql);
    if (status == SPOOL_OK && !buf_cstr(&sql))
        status = SPOOL_E_NOMEM;
    if (status == SPOOL_OK)
        status = query_send(ch, endpoint, (const char *)sql.data, 0, &query, error);
    else
        spool_error_set(error, status, "no memory for CREATE TABLE");
    buf_free(&sql);
    return status;
}
