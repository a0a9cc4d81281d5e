/* SPDX-License-Identifier: Apache-2.0 */
/* libchdb by its C functions, which are declared here: its package brings no header. */
#include "chserver.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *chdb_connection;
typedef void *chdb_result;
typedef void *chdb_insert;

static struct {
    chdb_connection *(*connect)(int argc, char **argv);
    void (*close_conn)(chdb_connection *c);
    void (*set_signal_handlers_enabled)(int enabled);
    chdb_result (*query_n)(chdb_connection c, const char *sql, size_t size, const char *format,
                           size_t format_size);
    chdb_insert (*stream_insert_n)(chdb_connection c, const char *sql, size_t size,
                                   const char *format, size_t format_size);
    int (*stream_append)(chdb_insert i, const void *data, size_t size);
    chdb_result (*stream_done)(chdb_insert i);
    void (*stream_cancel_insert)(chdb_insert i);
    const char *(*stream_insert_error)(chdb_insert i);
    void (*destroy_insert_stream)(chdb_insert i);
    const char *(*result_buffer)(chdb_result r);
    size_t (*result_length)(chdb_result r);
    const char *(*result_error)(chdb_result r);
    uint64_t (*result_rows_written)(chdb_result r);
    uint64_t (*result_bytes_written)(chdb_result r);
    void (*destroy_query_result)(chdb_result r);
} chdb;

static const struct {
    const char *name;
    void *at;
} SYMBOLS[] = {
    {"chdb_connect", &chdb.connect},
    {"chdb_close_conn", &chdb.close_conn},
    {"chdb_set_signal_handlers_enabled", &chdb.set_signal_handlers_enabled},
    {"chdb_query_n", &chdb.query_n},
    {"chdb_stream_insert_n", &chdb.stream_insert_n},
    {"chdb_stream_append", &chdb.stream_append},
    {"chdb_stream_done", &chdb.stream_done},
    {"chdb_stream_cancel_insert", &chdb.stream_cancel_insert},
    {"chdb_stream_insert_error", &chdb.stream_insert_error},
    {"chdb_destroy_insert_stream", &chdb.destroy_insert_stream},
    {"chdb_result_buffer", &chdb.result_buffer},
    {"chdb_result_length", &chdb.result_length},
    {"chdb_result_error", &chdb.result_error},
    {"chdb_result_rows_written", &chdb.result_rows_written},
    {"chdb_result_bytes_written", &chdb.result_bytes_written},
    {"chdb_destroy_query_result", &chdb.destroy_query_result},
};

struct engine_connection {
    chdb_connection *held;
};

struct engine_insert {
    chdb_insert held;
};

/* The library keeps its data directory open while one connection is; this one is for that. */
static struct engine_connection *keeper;
static char path_argument[4096], config_argument[4096];
static char version[64];

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "chserver: %s: %s\n", what, why ? why : "failed");
    exit(1);
}

void engine_start(const char *library, const char *path, const char *config)
{
    void *handle = dlopen(library, RTLD_NOW);
    if (!handle)
        fail(library, dlerror());
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof SYMBOLS[0]; i++) {
        void *function = dlsym(handle, SYMBOLS[i].name);
        if (!function)
            fail(library, dlerror());
        memcpy(SYMBOLS[i].at, &function, sizeof function);
    }
    chdb.set_signal_handlers_enabled(0);
    snprintf(path_argument, sizeof path_argument, "--path=%s", path);
    if (config)
        snprintf(config_argument, sizeof config_argument, "--config-file=%s", config);
    keeper = engine_connect();
    if (!keeper)
        fail(path, "cannot be opened; perhaps another process has it");
    struct engine_result r;
    engine_result_init(&r);
    engine_query(keeper, "SELECT version()", 16, "TabSeparated", &r);
    if (r.code)
        fail(path, buf_cstr(&r.body));
    snprintf(version, sizeof version, "%.*s", (int)r.body.len - 1, (const char *)r.body.data);
    engine_result_free(&r);
}

void engine_stop(void)
{
    engine_close(keeper);
}

const char *engine_version(void)
{
    return version;
}

struct engine_connection *engine_connect(void)
{
    char name[] = "clickhouse";
    char *argv[] = {name, path_argument, config_argument[0] ? config_argument : NULL, NULL};
    struct engine_connection *c = calloc(1, sizeof *c);
    if (c && !(c->held = chdb.connect(argv[2] ? 3 : 2, argv))) {
        free(c);
        return NULL;
    }
    return c;
}

void engine_close(struct engine_connection *c)
{
    if (!c)
        return;
    chdb.close_conn(c->held);
    free(c);
}

void engine_result_init(struct engine_result *r)
{
    memset(r, 0, sizeof *r);
    buf_init(&r->body, (size_t)1 << 31);
}

void engine_result_free(struct engine_result *r)
{
    buf_free(&r->body);
}

void engine_result_set(struct engine_result *r, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    r->code = code;
    r->rows_written = r->bytes_written = 0;
    buf_reset(&r->body);
    buf_printf(&r->body, "Code: %d. DB::Exception: ", code);
    buf_vprintf(&r->body, format, args);
    va_end(args);
}

/* An error as the library words it: "Code: N. DB::Exception: ...". */
static void take_error(struct engine_result *r, const char *text)
{
    const char *code = strstr(text, "Code: ");
    buf_reset(&r->body);
    buf_append_str(&r->body, text);
    r->code = code ? (int)strtol(code + 6, NULL, 10) : 0;
    if (r->code == 0)
        r->code = 1002; /* UNKNOWN_EXCEPTION */
}

static void take_result(struct engine_result *r, chdb_result result)
{
    const char *error = result ? chdb.result_error(result) : "Code: 1002. DB::Exception: no answer";
    if (error && *error) {
        take_error(r, error);
    } else {
        buf_append(&r->body, chdb.result_buffer(result), chdb.result_length(result));
        r->rows_written = chdb.result_rows_written(result);
        r->bytes_written = chdb.result_bytes_written(result);
    }
    if (result)
        chdb.destroy_query_result(result);
}

void engine_query(struct engine_connection *c, const char *sql, size_t size, const char *format,
                  struct engine_result *r)
{
    take_result(r, chdb.query_n(*c->held, sql, size, format, strlen(format)));
}

static bool insert_failed(struct engine_insert *i, struct engine_result *r)
{
    const char *error = chdb.stream_insert_error(i->held);
    if (!error || !*error)
        return false;
    take_error(r, error);
    return true;
}

struct engine_insert *engine_insert_begin(struct engine_connection *c, const char *sql, size_t size,
                                          const char *format, struct engine_result *r)
{
    struct engine_insert *i = calloc(1, sizeof *i);
    if (i)
        i->held = chdb.stream_insert_n(*c->held, sql, size, format, strlen(format));
    if (!i || !i->held) {
        engine_result_set(r, 1002, "the insert could not be started");
        free(i);
        return NULL;
    }
    if (insert_failed(i, r)) {
        chdb.destroy_insert_stream(i->held);
        free(i);
        return NULL;
    }
    return i;
}

int engine_insert_append(struct engine_insert *i, const void *data, size_t size,
                         struct engine_result *r)
{
    if (chdb.stream_append(i->held, data, size) == 0)
        return 0;
    if (!insert_failed(i, r))
        engine_result_set(r, 1002, "the insert failed without a reason");
    return -1;
}

void engine_insert_end(struct engine_insert *i, struct engine_result *r)
{
    take_result(r, chdb.stream_done(i->held));
    chdb.destroy_insert_stream(i->held);
    free(i);
}

void engine_insert_cancel(struct engine_insert *i)
{
    chdb.stream_cancel_insert(i->held);
    chdb.destroy_insert_stream(i->held);
    free(i);
}
