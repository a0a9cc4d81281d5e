/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration: one table of options (options.c) drives parsing, ranges, defaults,
 * --print-config, the man page and the JSON Schema. JSON with // and block comments; ${NAME} in a
 * string is the environment, $$ a dollar sign.
 */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include "base/log.h"
#include "pipeline/pipeline.h"
#include "sink/error_class.h"

struct config_token { /* for POST /ingest; the token itself is never shown */
    const char *token;
    const char *name;
    const char *const *streams; /* none: all */
    size_t stream_count;
};

struct config_http {
    const char *listen; /* "host:port" or NULL: off */
    uint64_t max_body_bytes;
    const char *tls_cert_file; /* both or none */
    const char *tls_key_file;
    const struct config_token *tokens;
    size_t token_count;
};

struct config {
    const char *file;
    struct spool_options spool;
    struct pipeline_options pipeline; /* streams, clickhouse, kafka, bounds filled in */
    struct kafka_options kafka;
    bool has_kafka; /* some stream has topics; pipeline.kafka is then &kafka */
    struct config_http http;
    const char *control_socket;
    enum log_level log_level;
    enum log_format log_format;
    uint64_t shutdown_timeout_ms;
    const struct error_class_override *overrides; /* for error_class_set_overrides */
    size_t override_count;
    const char *const *warnings; /* sentences to log: secrets that others can read, ... */
    size_t warning_count;
    void *memory; /* owns every string and array above */
};

/*
 * Reads and checks; connects to nothing. error->text is
 * "file:line:column: path.to.option: what, and what to do", with no secret in it.
 */
int config_load(const char *path, struct config **out, struct spool_error *error);
int config_parse(const char *name, const char *text, size_t size, struct config **out,
                 struct spool_error *error);
void config_free(struct config *config);

/* Every option with type, default, range and doc, as commented JSON that parses. */
int config_print_options(struct buf *out);

/* The same table as a JSON Schema (2020-12), for editors. */
int config_print_schema(struct buf *out);

/*
 * Splits "host:port", ":port" (every address) or "[v6]:port"; host gets "" for every address.
 * -1: not of that form.
 */
int config_split_listen(const char *text, char *host, size_t host_size, uint16_t *port);

#endif
