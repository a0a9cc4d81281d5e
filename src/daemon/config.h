/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration: one table of options (options.c) drives parsing, ranges, defaults,
 * --print-config, the man page and the JSON Schema. JSON with // and block comments; ${NAME} in a
 * string is the environment. Only config, control and the tools know cJSON; positions in errors
 * come from walking the text.
 */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include "base/log.h"
#include "pipeline/pipeline.h"

struct config_http {
    const char *listen; /* "host:port" or NULL: off */
    uint64_t max_body_bytes;
};

struct config {
    const char *file;
    struct spool_options spool;
    uint64_t max_bytes;
    uint64_t min_free_bytes;
    struct pipeline_options pipeline; /* streams, clickhouse, kafka filled in */
    struct kafka_options kafka;
    bool has_kafka;
    struct config_http http;
    const char *control_socket;
    enum log_level log_level;
    enum log_format log_format;
    uint64_t shutdown_timeout_ms;
    const struct error_class_override *overrides;
    size_t override_count;
    void *memory; /* owns every string above */
};

/* Reads and checks. error->text is "file:line:column: path.to.option: what, and what to do". */
int config_load(const char *path, struct config **out, struct spool_error *error);
int config_parse(const char *name, const char *text, size_t size, struct config **out,
                 struct spool_error *error);
void config_free(struct config *config);

/* Every option with type, default, range and doc, as commented JSON that parses. */
int config_print_options(struct buf *out);

#endif
