/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a table is, in three questions that every server answers: who are you and is there such a
 * database; what does system.tables say; what does system.columns say. Of a table that may deduplicate
 * also what the server does where the table's settings don't say, and how many partitions it has; of
 * a replicated one what system.replicas says.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "sink/clickhouse_int.h"
#include "sink/sql_text.h"

#define SERVER_REPLY_MAX (4 * KIB)

/* The smallest defaults any release had: where neither the table nor the server says. */
#define REPLICATED_WINDOW_ENTRIES 100
#define REPLICATED_WINDOW_SECONDS 3600

/* An insert is taken to touch no more partitions than the table has by now and one, nor fewer than
   this (a new table has none), and no more than the server allows (100 unless set). */
#define PARTITIONS_LEAST   10
#define PARTITIONS_ALLOWED 100

struct describe {
    struct clickhouse *ch;
    size_t endpoint;
    char *database; /* NULL: the user's own */
    char *table;
    struct table_description *description;
    char *engine_full;
    uint64_t window_entries, window_seconds; /* unless the table says otherwise */
    void (*done)(void *arg, const struct clickhouse_outcome *outcome,
                 struct table_description *table);
    void *arg;
};

void table_description_free(struct table_description *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->column_count; i++) {
        free(t->columns[i].name);
        free(t->columns[i].type);
        free(t->columns[i].default_kind);
        free(t->columns[i].default_expression);
    }
    free(t->columns);
    free(t->engine);
    free(t->create_query);
    free(t->partition_key);
    free(t->replica_path);
    free(t->server_timezone);
    free(t);
}

static void describe_free(struct describe *d)
{
    if (!d)
        return;
    free(d->database);
    free(d->table);
    free(d->engine_full);
    table_description_free(d->description);
    free(d);
}

/* Ends it: with the table where outcome says that all worked. */
static void describe_end(struct describe *d, const struct clickhouse_outcome *outcome)
{
    struct table_description *t = NULL;

    if (outcome->class_ == CLASS_NONE) {
        t = d->description;
        d->description = NULL;
    }
    d->done(d->arg, outcome, t);
    describe_free(d);
}

static void describe_fail(struct describe *d, enum error_class class_, int code, const char *text)
{
    struct clickhouse_outcome outcome = {.class_ = class_, .code = code, .http_status = 200};

    one_line(outcome.text, sizeof(outcome.text), text, strlen(text));
    describe_end(d, &outcome);
}

static void describe_strange(struct describe *d)
{
    describe_fail(d, CLASS_UNKNOWN, 0, "the server's answer about the table cannot be read");
}

static void ask(struct describe *d, struct buf *sql, size_t max_reply_bytes, statement_done next)
{
    struct spool_error error;
    const char *text = buf_cstr(sql);

    if (!text)
        describe_fail(d, CLASS_TRANSIENT, 0, "no memory for a question about the table");
    else if (statement_send(d->ch, d->endpoint, text, "", max_reply_bytes, false, next, d,
                            &error) != SPOOL_OK)
        describe_fail(d, CLASS_TRANSIENT, 0, error.text);
    buf_free(sql);
}

/* database and table as SQL strings */
static int add_place(struct describe *d, struct buf *sql, const char *before, const char *between)
{
    int status = buf_append_str(sql, before);

    if (status == SPOOL_OK)
        status =
            d->database ? sql_string(sql, d->database) : buf_append_str(sql, "currentDatabase()");
    if (status == SPOOL_OK && between)
        status = buf_append_str(sql, between);
    return status == SPOOL_OK && between ? sql_string(sql, d->table) : status;
}

/* --- 3: columns ------------------------------------------------------------------------------- */

static size_t count_rows(const char *text, size_t size)
{
    size_t rows = 0;
    for (size_t i = 0; i < size; i++)
        rows += text[i] == '\n';
    return rows;
}

static void columns_done(void *arg, const struct clickhouse_outcome *outcome, char *text,
                         size_t size)
{
    struct describe *d = arg;
    struct table_description *t = d->description;
    struct tsv_reader reader;
    char *f[4];
    size_t rows = count_rows(text, size);
    int status;

    if (outcome->class_ != CLASS_NONE) {
        describe_end(d, outcome);
        return;
    }
    if (rows > LIMIT_COLUMNS) {
        describe_fail(d, CLASS_ENVIRONMENT, 0, "the table has too many columns");
        return;
    }
    t->columns = calloc(rows + 1, sizeof(*t->columns));
    tsv_open(&reader, text, size, 4);
    while ((status = t->columns ? tsv_row(&reader, f) : SPOOL_E_NOMEM) == SPOOL_OK) {
        struct table_column *c = &t->columns[t->column_count++];
        c->name = strdup(f[0]);
        c->type = strdup(f[1]);
        c->default_kind = strdup(f[2]);
        c->default_expression = strdup(f[3]);
        if (!c->name || !c->type || !c->default_kind || !c->default_expression) {
            status = SPOOL_E_NOMEM;
            break;
        }
    }
    if (status == SPOOL_E_NOMEM)
        describe_fail(d, CLASS_TRANSIENT, 0, "no memory for the table's columns");
    else if (status != SPOOL_E_END)
        describe_strange(d);
    else
        describe_end(d, outcome);
}

static void ask_columns(struct describe *d)
{
    struct buf sql;
    int status;

    buf_init(&sql, QUERY_TEXT_MAX);
    status = buf_append_str(&sql, "SELECT name, type, default_kind, default_expression FROM "
                                  "system.columns");
    if (status == SPOOL_OK)
        status = add_place(d, &sql, " WHERE database = ", " AND table = ");
    /* 18.16 has no position, and gives them in order. */
    if (status == SPOOL_OK && version_at_least(d->description->server, 22, 3))
        status = buf_append_str(&sql, " ORDER BY position");
    if (status == SPOOL_OK)
        status = buf_append_str(&sql, " FORMAT TabSeparated");
    if (status != SPOOL_OK)
        sql.len = 0;
    ask(d, &sql, LIMIT_SCHEMA_BYTES, columns_done);
}

/* --- 2c: how many partitions an insert may touch ---------------------------------------------- */

static void partitions_done(void *arg, const struct clickhouse_outcome *outcome, char *text,
                            size_t size)
{
    struct describe *d = arg;
    struct tsv_reader reader;
    uint64_t allowed, present;
    char *f[2];

    if (outcome->class_ == CLASS_TRANSIENT) {
        describe_end(d, outcome);
        return;
    }
    tsv_open(&reader, text, size, 2);
    if (outcome->class_ == CLASS_NONE && tsv_row(&reader, f) == SPOOL_OK) {
        allowed = strtoull(f[0], NULL, 10);
        present = strtoull(f[1], NULL, 10) + 1;
        present = present < PARTITIONS_LEAST ? PARTITIONS_LEAST : present;
        d->description->partitions_per_insert = allowed && allowed < present ? allowed : present;
        d->description->partitions_per_insert_max = allowed ? allowed : present;
    }
    ask_columns(d);
}

/* Without an answer (no right to ask) it is what a server allows unless told otherwise. */
static void ask_partitions(struct describe *d)
{
    struct buf sql;
    int status;

    if (!d->description->deduplicates || !d->description->partition_key[0]) {
        ask_columns(d);
        return;
    }
    d->description->partitions_per_insert = PARTITIONS_ALLOWED;
    d->description->partitions_per_insert_max = PARTITIONS_ALLOWED;
    buf_init(&sql, QUERY_TEXT_MAX);
    status = buf_append_str(&sql, "SELECT getSetting('max_partitions_per_insert_block'), "
                                  "uniqExact(partition_id) FROM system.parts WHERE active");
    if (status == SPOOL_OK)
        status = add_place(d, &sql, " AND database = ", " AND table = ");
    if (status == SPOOL_OK)
        status = buf_append_str(&sql, " FORMAT TabSeparated");
    if (status != SPOOL_OK)
        sql.len = 0;
    ask(d, &sql, SERVER_REPLY_MAX, partitions_done);
}

/* --- 2b: where its replicas meet --------------------------------------------------------------- */

/* Without an answer (no right to read it) the path stays unknown: it only allows a shortcut. */
static void replica_done(void *arg, const struct clickhouse_outcome *outcome, char *text,
                         size_t size)
{
    struct describe *d = arg;
    struct tsv_reader reader;
    char *f[1];

    if (outcome->class_ == CLASS_TRANSIENT) {
        describe_end(d, outcome);
        return;
    }
    tsv_open(&reader, text, size, 1);
    if (outcome->class_ == CLASS_NONE && tsv_row(&reader, f) == SPOOL_OK && f[0][0] &&
        !strchr(f[0], '\n'))
        d->description->replica_path = strdup(f[0]);
    ask_partitions(d);
}

static void ask_replica(struct describe *d)
{
    struct buf sql;
    int status;

    buf_init(&sql, QUERY_TEXT_MAX);
    status = buf_append_str(&sql, "SELECT zookeeper_path FROM system.replicas");
    if (status == SPOOL_OK)
        status = add_place(d, &sql, " WHERE database = ", " AND table = ");
    if (status == SPOOL_OK)
        status = buf_append_str(&sql, " FORMAT TabSeparated");
    if (status != SPOOL_OK)
        sql.len = 0;
    ask(d, &sql, SERVER_REPLY_MAX, replica_done);
}

/* --- 2: the table ----------------------------------------------------------------------------- */

/* The number behind "name =" in the settings of engine_full. */
static bool find_setting(const char *text, const char *name, uint64_t *value)
{
    const char *at = text;
    size_t n = strlen(name);

    while ((at = strstr(at, name))) {
        bool begins = at == text || !strchr("_abcdefghijklmnopqrstuvwxyz", at[-1]);
        at += n;
        if (!begins)
            continue;
        at += strspn(at, " ");
        if (*at != '=')
            continue;
        at++;
        at += strspn(at, " '");
        if (*at >= '0' && *at <= '9') {
            *value = strtoull(at, NULL, 10);
            return true;
        }
    }
    return false;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

static bool is_replicated(const struct table_description *t)
{
    return strncmp(t->engine, "Replicated", 10) == 0 || strncmp(t->engine, "Shared", 6) == 0;
}

static void judge_deduplication(struct describe *d)
{
    struct table_description *t = d->description;
    bool replicated = is_replicated(t);
    uint64_t entries = d->window_entries, seconds = d->window_seconds;

    if (!ends_with(t->engine, "MergeTree")) {
        snprintf(t->reason, sizeof(t->reason), "tables of engine %.64s do not deduplicate inserts",
                 t->engine);
        return;
    }
    if (!clickhouse_knows_token(t->server)) {
        snprintf(t->reason, sizeof(t->reason), "ClickHouse %u.%u knows no deduplication token",
                 t->server.major, t->server.minor);
        return;
    }
    if (replicated) {
        find_setting(d->engine_full, "replicated_deduplication_window", &entries);
        find_setting(d->engine_full, "replicated_deduplication_window_seconds", &seconds);
    } else {
        find_setting(d->engine_full, "non_replicated_deduplication_window", &entries);
    }
    if (entries == 0) {
        snprintf(t->reason, sizeof(t->reason), "the table's %s is 0",
                 replicated ? "replicated_deduplication_window"
                            : "non_replicated_deduplication_window");
        return;
    }
    if (replicated && seconds == 0) { /* the next clean-up forgets every token */
        snprintf(t->reason, sizeof(t->reason),
                 "the table's replicated_deduplication_window_seconds is 0");
        return;
    }
    t->deduplicates = true;
    t->dedup_window_entries = entries;
    t->dedup_window_seconds = seconds;
}

static void judge(struct describe *d)
{
    struct table_description *t = d->description;

    t->insertable = true;
    if (ends_with(t->engine, "View")) {
        t->insertable = false;
        snprintf(t->reason, sizeof(t->reason),
                 "it is a view (%.64s): name the table behind it instead", t->engine);
    } else if (strncmp(t->engine, "System", 6) == 0 || strcmp(t->engine, "Merge") == 0 ||
               strcmp(t->engine, "Dictionary") == 0) {
        t->insertable = false;
        snprintf(t->reason, sizeof(t->reason), "tables of engine %.64s take no rows", t->engine);
    } else {
        judge_deduplication(d);
    }
}

static void table_known(struct describe *d)
{
    judge(d);
    if (d->description->deduplicates && strncmp(d->description->engine, "Replicated", 10) == 0)
        ask_replica(d);
    else
        ask_partitions(d);
}

/* --- 2a: what the server remembers where the table's settings don't say ------------------------- */

static void ask_window(struct describe *d, const char *settings, statement_done next);

/* Without an answer (no right to read it, or a server that has no such table) it is the least. */
static void window_done(void *arg, const struct clickhouse_outcome *outcome, char *text,
                        size_t size)
{
    struct describe *d = arg;
    bool replicated = is_replicated(d->description);
    struct tsv_reader reader;
    char *f[2];

    if (outcome->class_ == CLASS_TRANSIENT) {
        describe_end(d, outcome);
        return;
    }
    tsv_open(&reader, text, size, 2);
    while (outcome->class_ == CLASS_NONE && tsv_row(&reader, f) == SPOOL_OK) {
        uint64_t value = strtoull(f[1], NULL, 10);
        if (strcmp(f[0], "replicated_deduplication_window_seconds") == 0 && replicated)
            d->window_seconds = value;
        else if (strcmp(f[0], replicated ? "replicated_deduplication_window"
                                         : "non_replicated_deduplication_window") == 0)
            d->window_entries = value;
    }
    table_known(d);
}

static void replicated_window_done(void *arg, const struct clickhouse_outcome *outcome, char *text,
                                   size_t size)
{
    if (outcome->class_ == CLASS_NONE || outcome->class_ == CLASS_TRANSIENT)
        window_done(arg, outcome, text, size);
    else /* older servers have one set of settings for all tables */
        ask_window(arg, "merge_tree_settings", window_done);
}

static void ask_window(struct describe *d, const char *settings, statement_done next)
{
    struct buf sql;

    buf_init(&sql, QUERY_TEXT_MAX);
    if (buf_printf(&sql,
                   "SELECT name, value FROM system.%s WHERE name IN "
                   "('non_replicated_deduplication_window', 'replicated_deduplication_window', "
                   "'replicated_deduplication_window_seconds') FORMAT TabSeparated",
                   settings) != SPOOL_OK)
        sql.len = 0;
    ask(d, &sql, SERVER_REPLY_MAX, next);
}

static void ask_window_unsaid(struct describe *d)
{
    const struct table_description *t = d->description;
    bool replicated = is_replicated(t);
    uint64_t value;

    if (replicated) {
        d->window_entries = REPLICATED_WINDOW_ENTRIES;
        d->window_seconds = REPLICATED_WINDOW_SECONDS;
    }
    if (!ends_with(t->engine, "MergeTree") || !clickhouse_knows_token(t->server) ||
        (find_setting(d->engine_full,
                      replicated ? "replicated_deduplication_window"
                                 : "non_replicated_deduplication_window",
                      &value) &&
         (!replicated ||
          find_setting(d->engine_full, "replicated_deduplication_window_seconds", &value))))
        table_known(d);
    else if (replicated)
        ask_window(d, "replicated_merge_tree_settings", replicated_window_done);
    else
        ask_window(d, "merge_tree_settings", window_done);
}

static void table_done(void *arg, const struct clickhouse_outcome *outcome, char *text, size_t size)
{
    struct describe *d = arg;
    struct table_description *t = d->description;
    struct tsv_reader reader;
    char *f[5];
    int status;

    if (outcome->class_ != CLASS_NONE) {
        describe_end(d, outcome);
        return;
    }
    tsv_open(&reader, text, size, 5);
    status = tsv_row(&reader, f);
    if (status == SPOOL_E_END) {
        describe_end(d, outcome);
        return;
    }
    if (status != SPOOL_OK) {
        describe_strange(d);
        return;
    }
    t->exists = true;
    t->partitions_per_insert = t->partitions_per_insert_max = 1;
    t->engine = strdup(f[0]);
    t->create_query = strdup(f[1]);
    t->partition_key = strdup(f[3]);
    t->views = (uint32_t)strtoul(f[4], NULL, 10);
    d->engine_full = strdup(f[2]);
    if (!t->engine || !t->create_query || !t->partition_key || !d->engine_full)
        describe_fail(d, CLASS_TRANSIENT, 0, "no memory for the table's description");
    else
        ask_window_unsaid(d);
}

static void ask_table(struct describe *d)
{
    struct buf sql;
    int status;

    buf_init(&sql, QUERY_TEXT_MAX);
    status = buf_append_str(&sql, "SELECT engine, create_table_query, engine_full, partition_key, "
                                  "length(dependencies_table) FROM system.tables");
    if (status == SPOOL_OK)
        status = add_place(d, &sql, " WHERE database = ", " AND name = ");
    if (status == SPOOL_OK)
        status = buf_append_str(&sql, " FORMAT TabSeparated");
    if (status != SPOOL_OK)
        sql.len = 0;
    ask(d, &sql, LIMIT_SCHEMA_BYTES, table_done);
}

/* --- 1: the server ---------------------------------------------------------------------------- */

static void server_done(void *arg, const struct clickhouse_outcome *outcome, char *text,
                        size_t size)
{
    struct describe *d = arg;
    struct table_description *t = d->description;
    struct tsv_reader reader;
    char *f[3], reason[256];

    if (outcome->class_ != CLASS_NONE) {
        describe_end(d, outcome);
        return;
    }
    tsv_open(&reader, text, size, 3);
    if (tsv_row(&reader, f) != SPOOL_OK || !parse_version(f[0], &t->server)) {
        describe_strange(d);
        return;
    }
    if (strcmp(f[2], "0") == 0) {
        snprintf(reason, sizeof(reason), "Database %.128s doesn't exist", d->database);
        describe_fail(d, CLASS_ENVIRONMENT, 81, reason);
        return;
    }
    t->server_timezone = strdup(f[1]);
    if (!t->server_timezone)
        describe_fail(d, CLASS_TRANSIENT, 0, "no memory for the table's description");
    else
        ask_table(d);
}

int clickhouse_describe(struct clickhouse *ch, size_t endpoint, const char *database,
                        const char *table,
                        void (*done)(void *arg, const struct clickhouse_outcome *outcome,
                                     struct table_description *table),
                        void *arg, struct spool_error *error)
{
    struct describe *d = calloc(1, sizeof(*d));
    struct buf sql;
    int status = SPOOL_E_NOMEM;

    buf_init(&sql, QUERY_TEXT_MAX);
    if (!database || !database[0])
        database = ch->database;
    if (d) {
        d->ch = ch;
        d->endpoint = endpoint;
        d->done = done;
        d->arg = arg;
        d->database = database ? strdup(database) : NULL;
        d->table = strdup(table);
        d->description = calloc(1, sizeof(*d->description));
        if (d->table && d->description && (d->database || !database))
            status = buf_append_str(
                &sql, "SELECT version(), timezone(), (SELECT count() FROM system.databases");
    }
    if (status == SPOOL_OK)
        status = add_place(d, &sql, " WHERE name = ", NULL);
    if (status == SPOOL_OK)
        status = buf_append_str(&sql, ") FORMAT TabSeparated");
    if (status == SPOOL_OK && !buf_cstr(&sql))
        status = SPOOL_E_NOMEM;
    if (status == SPOOL_OK)
        status = statement_send(ch, endpoint, (const char *)sql.data, "", SERVER_REPLY_MAX, false,
                                server_done, d, error);
    else
        spool_error_set(error, status, "no memory for a question about the table");
    if (status != SPOOL_OK)
        describe_free(d);
    buf_free(&sql);
    return status;
}
