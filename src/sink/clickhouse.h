/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ClickHouse over HTTP: endpoints and their health, server version, table descriptions, inserts.
 * Loop thread only; answers come by callback from the loop. Owns its http_client.
 */
#ifndef SINK_CLICKHOUSE_H
#define SINK_CLICKHOUSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "codec/frame.h"
#include "codec/schema.h"
#include "sink/error_class.h"
#include "sink/http_client.h"

struct clickhouse;

struct clickhouse_setting {
    const char *name;
    const char *value;
};

struct clickhouse_options {
    const char *const *urls; /* "http://host:8123", tried in order */
    size_t url_count;
    const char *user;     /* NULL: default */
    const char *password; /* NULL: none; never logged */
    const char *database; /* NULL: default */
    uint32_t connect_timeout_ms;
    uint32_t stall_timeout_ms;
    const struct clickhouse_setting *settings; /* the operator's, sent with every insert; one that
                                                  would break a promise is refused at config */
    size_t setting_count;
    struct http_tls tls;
    const char *proxy;
};

enum endpoint_state { ENDPOINT_UNKNOWN = 0, ENDPOINT_UP, ENDPOINT_DOWN };

struct endpoint_status {
    const char *url;
    enum endpoint_state state;
    struct server_version version; /* zeros until known */
    const char *reason;            /* why it is down; "" otherwise */
    bool refused;      /* down, though it answers: it does not let us in, or is no ClickHouse */
    bool current;      /* new work goes there */
    uint64_t since_ms; /* monotonic */
};

/* Options are copied. changed: an endpoint went up or down (also the first time); the pipeline
   then tries again what waits. Logs and counts state changes itself. */
int clickhouse_create(uv_loop_t *loop, const struct clickhouse_options *options,
                      void (*changed)(void *arg, size_t endpoint, enum endpoint_state state),
                      void *arg, struct clickhouse **out, struct spool_error *error);
void clickhouse_close(struct clickhouse *ch, void (*closed)(void *arg), void *arg);

/* Starts connecting: asks version, time zone and start of every endpoint, and probes
   a down one with /ping every 500 ms until it answers. A failed insert or query marks it down. */
void clickhouse_start(struct clickhouse *ch);

size_t clickhouse_endpoints(const struct clickhouse *ch);
void clickhouse_endpoint_status(const struct clickhouse *ch, size_t i, struct endpoint_status *out);

/* The endpoint new work should go to: the first that is up; -1: none, or one before it has not
   been heard of yet (at the start). */
int clickhouse_pick(const struct clickhouse *ch);

/* What an endpoint's server is; false until known. timezone is borrowed until the next change. */
bool clickhouse_server(const struct clickhouse *ch, size_t endpoint, struct server_version *version,
                       const char **timezone);

/*
 * When the endpoint's server process began, by its own clock and uptime() when it was last reached
 * (both count whole seconds); false until known and while the endpoint is down. Two values further
 * than 1 s apart are a restart in between. Not by a clock of ours: the value is kept in seals, and
 * after both machines (or the one) lost their power, two starts are equally long after the boot.
 */
bool clickhouse_server_start(const struct clickhouse *ch, size_t endpoint, int64_t *start_ms);

/* Whether such a server knows insert_deduplication_token. */
bool clickhouse_knows_token(struct server_version version);

/* The setting of ours that the server does not let be set, by its own words; NULL: it is not that. */
const char *clickhouse_setting_refused(int code, const char *text);

/* Names the operator's settings may not set: pinned ones, and parameters of the request itself. */
bool clickhouse_setting_is_ours(const char *name);

/* --- what went wrong ------------------------------------------------------------------------ */

struct clickhouse_outcome {
    enum error_class class_; /* CLASS_NONE: it worked, to the last byte of the answer */
    int code;                /* ClickHouse's exception code, 0: none */
    int http_status;
    bool unknown;     /* rows may or may not be in (reset, timeout, after sending began) */
    bool unanswered;  /* all of an insert went out, and no answer came in time */
    bool of_view;     /* of an insert: a materialized view threw, the table itself has all rows */
    bool before_view; /* ... and the table itself has all rows or none */
    char text[512];   /* one line for log and status, without credentials */
    uint64_t duration_ns;
};

/* --- tables --------------------------------------------------------------------------------- */

struct table_description {
    bool exists;
    char *engine;       /* "MergeTree", "View", ... */
    char *create_query; /* as system.tables has it; "" where the server has no such column */
    char *partition_key;
    struct table_column *columns;
    size_t column_count;
    bool insertable;               /* false: a view, with why in reason */
    bool deduplicates;             /* replicated, or non_replicated_deduplication_window > 0 */
    uint64_t dedup_window_entries; /* inserts x partitions remembered; 0: none */
    uint64_t dedup_window_seconds; /* and for how long; 0: no limit in time */
    /* What one insert takes of the entries, 1 or more: about as many as so, never more than that. */
    uint64_t partitions_per_insert, partitions_per_insert_max;
    char *replica_path; /* zookeeper_path of a replicated table; NULL: none, or not told */
    uint32_t views;     /* materialized views and the like fed by this table */
    char reason[256];   /* why not insertable, else why not deduplicating, else "" */
    struct server_version server;
    char *server_timezone;
};

void table_description_free(struct table_description *t); /* frees content and t */

/* Asks the server anew, its version included. done once; table is NULL unless outcome is CLASS_NONE, and then owned by the callee. A missing
   table is CLASS_NONE with exists false; a missing database is an outcome. */
int clickhouse_describe(struct clickhouse *ch, size_t endpoint, const char *database,
                        const char *table,
                        void (*done)(void *arg, const struct clickhouse_outcome *outcome,
                                     struct table_description *table),
                        void *arg, struct spool_error *error);

struct create_table_options {
    const char *engine;       /* NULL: MergeTree */
    const char *order_by;     /* expression; NULL: tuple() */
    const char *partition_by; /* or NULL */
    const char *ttl;          /* or NULL */
    const struct clickhouse_setting *settings;
    size_t setting_count;
    const struct table_column *columns;
    size_t column_count;
};

/* CREATE TABLE IF NOT EXISTS with a dedup window and fsync settings where the server knows them.
   The endpoint must have been up (its version is needed), else SPOOL_E_NOT_FOUND. */
int clickhouse_create_table(struct clickhouse *ch, size_t endpoint, const char *database,
                            const char *table, const struct create_table_options *options,
                            void (*done)(void *arg, const struct clickhouse_outcome *outcome),
                            void *arg, struct spool_error *error);

/* Any other statement; reply text (at most max_reply_bytes) is borrowed. */
int clickhouse_query(struct clickhouse *ch, size_t endpoint, const char *sql,
                     size_t max_reply_bytes,
                     void (*done)(void *arg, const struct clickhouse_outcome *outcome,
                                  const char *text, size_t size),
                     void *arg, struct spool_error *error);

/* --- inserts -------------------------------------------------------------------------------- */

/*
 * The settings that are pinned for a batch on a server of that version, by one table: one block a
 * batch, no async insert, dedup as the table has it, no unknown columns, ... Appended as
 * "name=value&name=value" and stored in the seal: a retry sends these, whatever the code says then.
 */
int clickhouse_pinned_settings(struct server_version version, bool native, bool deduplicates,
                               uint64_t rows, uint64_t raw_bytes, struct buf *out);

struct insert_spec {
    const char *database;
    const char *table;
    const char *column_list; /* from schema_column_list */
    bool native;             /* else JSONEachRow */
    const char *settings;    /* pinned, as above */
    const char *token;       /* deduplication token; sent only where the server knows it */
    const char *query_id;
    enum frame_method method; /* of all the blocks' frames; the query's frame has to be the same */
    uint32_t stall_factor;    /* waits for an answer so many times stall_timeout; 0: once */
    uint64_t frames_bytes;    /* exact size of the blocks; the query frame is put before them */
    http_body_fn read_body;   /* gives exactly frames_bytes */
    void *arg;
    void (*done)(void *arg, const struct clickhouse_outcome *outcome);
};

struct insert; /* freed after done */

/* On failure done is not called. Credentials and the operator's settings are added. unknown in the
   outcome is false only where no byte of the blocks was handed to the connection, or where the
   server's own words prove that nothing was stored. */

int clickhouse_insert(struct clickhouse *ch, size_t endpoint, const struct insert_spec *spec,
                      struct insert **out, struct spool_error *error);
void insert_resume(struct insert *insert);
void insert_cancel(struct insert *insert);

#endif
