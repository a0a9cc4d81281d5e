/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by clickhouse*.c only. */
#ifndef SINK_CLICKHOUSE_INT_H
#define SINK_CLICKHOUSE_INT_H

#include "base/buf.h"
#include "base/log.h"
#include "codec/frame.h"
#include "sink/clickhouse.h"

#define QUERY_TEXT_MAX (64 * MIB)

struct endpoint {
    struct clickhouse *ch;
    size_t index;
    char *url; /* without a slash at its end */
    uv_timer_t timer;
    enum endpoint_state state;
    enum endpoint_state logged;
    struct log_gate gates[ENDPOINT_DOWN + 1]; /* by state */
    bool probing;
    bool outlived; /* by a failure that was seen since it was asked who it is */
    bool refused;  /* down, though its server answers */
    uint64_t since_ms;
    uint64_t seen_ms; /* its last answer */
    struct server_version version;
    char *timezone;   /* NULL until known */
    int64_t start_ms; /* of the server process, by its own clock */
    char reason[256];
};

struct clickhouse {
    uv_loop_t *loop;
    struct http_client *http;
    struct endpoint *endpoints;
    size_t endpoint_count;
    unsigned handles; /* what has to be closed before this is freed */
    bool started;
    bool closing;
    char *user, *password, *database;
    char *settings; /* the operator's, as "&name=value..." */
    uint32_t stall_timeout_ms;
    void (*changed)(void *arg, size_t endpoint, enum endpoint_state state);
    void *changed_arg;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* Marks an endpoint down, says so, and has it probed. */
void endpoint_failed(struct endpoint *e, const char *reason);

/* To be told of every reply of an endpoint that is not a probe's. */
void endpoint_saw_reply(struct endpoint *e, const struct http_reply *reply);

/* Fills *out from the answer to anything but an INSERT. */
void outcome_of_query(const struct http_reply *reply, struct clickhouse_outcome *out);

/* body_size, blocks_given: of the whole request body, and bytes of blocks handed over. */
void outcome_of_insert(const struct http_reply *reply, bool native, uint64_t body_size,
                       uint64_t blocks_given, struct clickhouse_outcome *out);

/* Appends src as one line of printable text; cuts at size. */
void one_line(char *dst, size_t size, const char *src, size_t src_size);

/*
 * POST of one statement; parameters ("" or "&a=b...") are put behind our own. The reply text is
 * writable, NUL-terminated, and valid during done only.
 */
typedef void (*statement_done)(void *arg, const struct clickhouse_outcome *outcome, char *text,
                               size_t size);
int statement_send(struct clickhouse *ch, size_t endpoint, const char *sql, const char *parameters,
                   size_t max_reply_bytes, bool probe, statement_done done, void *arg,
                   struct spool_error *error);

/* What keeps a profile from cutting an answer short in silence: with a 200, and rows missing. */
const char *settings_of_answers(struct server_version version);

/* Lets the server read a query of so many bytes: puts what that needs behind other parameters. */
int clickhouse_allow_query(struct buf *parameters, size_t bytes);

/* "26.7.3.1" -> numbers; false where it is no version. */
bool parse_version(const char *text, struct server_version *out);
bool version_at_least(struct server_version v, uint32_t major, uint32_t minor);

#endif
