/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chserver: ClickHouse 26.7, the library libchdb, behind a small HTTP server, so that tests can
 * speak to a modern engine where only an old server is packaged. tests/README.md tells what it
 * cannot show of a real server.
 *
 * One thread a connection. Layers: http.c (requests, answers) < body.c (a request's body: transfer
 * coding, Content-Encoding, compressed frames) < query.c (what a request asks) ; engine.c wraps
 * the library, registry.c knows the running queries.
 */
#ifndef CHSERVER_H
#define CHSERVER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"

#define HEAD_BYTES_MAX  (1024 * 1024 + 65536) /* http_max_uri_size of a real server, and headers */
#define PAIRS_MAX       256
#define QUERY_BYTES_MAX (64 * 1024 * 1024)
#define PIECE_BYTES     (1024 * 1024)

/* ---- engine.c: the library ---- */

struct engine_connection; /* private to one request: settings stay with it */

struct engine_result {
    struct buf body; /* rows, or the error's text */
    int code;        /* 0, or ClickHouse's exception code */
    uint64_t rows_written;
    uint64_t bytes_written;
};

/* Loads the library and opens the data directory; exits with a sentence where that fails. */
void engine_start(const char *library, const char *path, const char *config);
/* Closes the data directory. No request may run any more. */
void engine_stop(void);
const char *engine_version(void);

struct engine_connection *engine_connect(void);
void engine_close(struct engine_connection *c);

void engine_result_init(struct engine_result *r);
void engine_result_free(struct engine_result *r);
void engine_result_set(struct engine_result *r, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A whole statement; format is for a SELECT without one. */
void engine_query(struct engine_connection *c, const char *sql, size_t size, const char *format,
                  struct engine_result *r);

/* An INSERT whose data follows in pieces. All but begin want a stream; end and cancel free it. */
struct engine_insert;
struct engine_insert *engine_insert_begin(struct engine_connection *c, const char *sql, size_t size,
                                          const char *format, struct engine_result *r);
int engine_insert_append(struct engine_insert *i, const void *data, size_t size,
                         struct engine_result *r);
void engine_insert_end(struct engine_insert *i, struct engine_result *r);
void engine_insert_cancel(struct engine_insert *i);

/* ---- http.c ---- */

struct connection {
    int fd;
    uint8_t *data; /* bytes read and not used: data[at..len) */
    size_t at;
    size_t len;
    bool closing; /* no further request on this connection */
};

struct pair {
    char *name;
    char *value;
};

struct request {
    char *head; /* owns what the pairs point into */
    char *method;
    char *path;
    struct pair params[PAIRS_MAX];
    size_t param_count;
    struct pair headers[PAIRS_MAX];
    size_t header_count;
};

struct connection *connection_new(int fd);
void connection_free(struct connection *c);
/* At least one byte into data[at..len); 0 = the peer is gone. */
size_t connection_fill(struct connection *c);
/* All bytes, or -1 when the peer is gone. */
int connection_send(struct connection *c, const void *data, size_t size);

/* 1 = a request is there, 0 = none will come, -1 = it was refused and answered. */
int request_read(struct connection *c, struct request *r);
void request_free(struct request *r);
const char *request_header(const struct request *r, const char *name);
const char *request_param(const struct request *r, const char *name);

/* headers: whole lines, each with its CRLF. Sends the answer with Content-Length. */
int answer(struct connection *c, int status, const char *headers, const void *body, size_t size);

/* ---- body.c ---- */

struct body;

/* NULL and *code, text set where the request's headers make no sense. */
struct body *body_open(struct connection *c, const struct request *r, bool frames, int *code,
                       char text[512]);
/* Up to size bytes; 0 = the end; -1 = body_error tells. */
ssize_t body_read(struct body *b, void *data, size_t size);
/* The exception code of a body that cannot be read, 0 for a connection that was lost. */
int body_error(const struct body *b, const char **text);
/* Reads away what is left if that is little; otherwise the connection cannot be used again. */
void body_close(struct body *b);

/* ---- registry.c: the queries that run ---- */

struct running {
    struct running *next;
    char *query_id;
    char *user;
    char *text;
    uint64_t started_ms;
    bool finished; /* no longer shown, its id is free again; only the answer is still to be sent */
    atomic_bool killed;
};

/* NULL when a query of this id runs already. */
struct running *registry_add(const char *query_id, const char *user);
void registry_set_text(struct running *r, const char *text, size_t size);
void registry_finish(struct running *r);
void registry_remove(struct running *r);
/* Appends a table expression with the columns of system.processes that clients ask for. */
void registry_write_table(struct buf *out);
/* Marks the query as killed; false when there is none. */
bool registry_kill(const char *query_id);
/* Waits until every query is removed, at most so long. */
void registry_wait_empty(int seconds);

/* ---- query.c ---- */

struct account {
    const char *user;
    const char *password;
    bool readonly;
};
void query_set_accounts(const struct account *accounts, size_t count);

/* Carries one request out and answers it. */
void query_handle(struct connection *c, const struct request *r);

/* ---- statement.c ---- */

enum statement_kind {
    STATEMENT_MORE,  /* cannot be told yet: more text is needed */
    STATEMENT_WHOLE, /* the text to its end is the statement */
    STATEMENT_INSERT /* an INSERT with a FORMAT: data follows */
};

struct statement {
    enum statement_kind kind;
    size_t size;     /* INSERT: length of the statement before FORMAT */
    char format[64]; /* INSERT */
    size_t data_at;  /* INSERT: where the data begins */
    bool writes;     /* not allowed to a read-only user */
};

/* end: no more text will come. */
void statement_read(const char *text, size_t size, bool end, struct statement *s);
/* The id of "KILL QUERY WHERE query_id = '...'" in id (size bytes), or false. */
bool statement_kill(const char *text, size_t size, char *id, size_t id_size);

#endif
