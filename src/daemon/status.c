/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/status.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json_writer.h"

bool status_ready(const struct status_source *source, const char **reason)
{
    if (source->pipeline)
        return pipeline_ready(source->pipeline, reason);
    *reason = source->stopping ? "stopping" : "starting";
    return false;
}

/* Seconds with three digits. */
static void put_seconds(struct json_writer *w, const char *key, double v)
{
    char text[40];
    int n = snprintf(text, sizeof(text), "%.3f", v);

    json_writer_raw(w, key, text, (size_t)n);
}

static void put_spool(struct json_writer *w, const struct status_source *source)
{
    struct spool_usage usage = {0};

    if (source->pipeline)
        pipeline_usage(source->pipeline, &usage);
    json_writer_open(w, "spool", '{');
    json_writer_text(w, "path", source->config->spool.path);
    json_writer_u64(w, "used_bytes", usage.total_bytes);
    json_writer_u64(w, "max_bytes", source->config->pipeline.max_bytes);
    json_writer_u64(w, "free_bytes", usage.free_bytes);
    json_writer_u64(w, "min_free_bytes", source->config->pipeline.min_free_bytes);
    json_writer_close(w, '}');
}

static void put_kafka(struct json_writer *w, const struct status_source *source)
{
    struct kafka_stats stats = {0};

    if (!source->pipeline || !pipeline_kafka_stats(source->pipeline, &stats)) {
        json_writer_null(w, "kafka");
        return;
    }
    json_writer_open(w, "kafka", '{');
    json_writer_bool(w, "connected", stats.connected);
    json_writer_text(w, "reason", stats.reason);
    json_writer_text(w, "group_id", source->config->kafka.group_id);
    json_writer_u64(w, "assigned_partitions", stats.assigned_partitions);
    json_writer_u64(w, "held_messages", stats.held_messages);
    json_writer_u64(w, "held_bytes", stats.held_bytes);
    json_writer_close(w, '}');
}

/* A URL without user and password: the config refuses them, and the status shows none anyway. */
static void put_url(struct json_writer *w, const char *key, const char *url)
{
    const char *host = strstr(url, "://"), *end, *at;
    char text[512];

    host = host ? host + 3 : url;
    end = host + strcspn(host, "/?#");
    at = memrchr(host, '@', (size_t)(end - host));
    snprintf(text, sizeof(text), "%.*s%s", (int)(host - url), url, at ? at + 1 : host);
    json_writer_text(w, key, text);
}

static void put_endpoints(struct json_writer *w, struct pipeline *pipeline)
{
    static const char *const STATES[] = {"unknown", "up", "down"};
    struct clickhouse *ch = pipeline ? pipeline_clickhouse(pipeline) : NULL;

    json_writer_open(w, "endpoints", '[');
    for (size_t i = 0; ch && i < clickhouse_endpoints(ch); i++) {
        struct endpoint_status e = {0};
        char version[48] = "";
        clickhouse_endpoint_status(ch, i, &e);
        if (e.version.major)
            snprintf(version, sizeof(version), "%u.%u.%u", e.version.major, e.version.minor,
                     e.version.patch);
        json_writer_open(w, NULL, '{');
        put_url(w, "url", e.url);
        json_writer_text(w, "state", STATES[e.state]);
        json_writer_text(w, "version", version);
        json_writer_text(w, "reason", e.reason);
        json_writer_bool(w, "current", e.current);
        json_writer_u64(w, "waiting_batches", pipeline_endpoint_waiting(pipeline, i));
        json_writer_close(w, '}');
    }
    json_writer_close(w, ']');
}

static void put_stream(struct json_writer *w, const struct stream_status *s)
{
    json_writer_open(w, NULL, '{');
    json_writer_text(w, "name", s->name);
    json_writer_text(w, "state", stream_state_name(s->state));
    json_writer_text(w, "reason", s->reason);
    json_writer_time(w, "since", s->since_ms);
    json_writer_text(w, "table", s->table);
    json_writer_text(w, "format", s->format);
    json_writer_text(w, "delivery", s->delivery);
    json_writer_text(w, "delivery_why", s->delivery_why);
    json_writer_u64(w, "records_in", s->records_in);
    json_writer_u64(w, "rows_spooled", s->rows_spooled);
    json_writer_u64(w, "bytes_spooled", s->bytes_spooled);
    put_seconds(w, "oldest_age_seconds", s->oldest_age_seconds);
    json_writer_i64(w, "lag", s->lag);
    json_writer_u64(w, "dead_letters", s->dead_letters);
    json_writer_u64(w, "dead_letters_waiting", s->dead_letters_waiting);
    json_writer_u64(w, "rows_inserted", s->rows_inserted);
    json_writer_u64(w, "retries", s->retries);
    json_writer_u64(w, "views_unsure_rows", s->views_unsure);
    json_writer_u64(w, "possible_duplicates", s->possible_duplicates);
    json_writer_u64(w, "damaged_segments", s->damaged_segments);
    json_writer_u64(w, "missing_segments", s->missing_segments);
    json_writer_u64(w, "damaged_blocks", s->damaged_blocks);
    json_writer_open(w, "batches", '{');
    json_writer_u64(w, "sealed", s->batches_sealed);
    json_writer_u64(w, "in_flight", s->batches_in_flight);
    json_writer_u64(w, "acknowledged", s->batches_acknowledged);
    json_writer_close(w, '}');
    json_writer_close(w, '}');
}

int status_render(const struct status_source *source, struct buf *out)
{
    uint64_t up_ms = clock_monotonic_ms() - source->started_ms;
    struct json_writer w;
    const char *reason = "";
    bool ready = status_ready(source, &reason);

    json_writer_init(&w, out);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "version", SPOOLD_VERSION);
    json_writer_text(&w, "uuid", source->uuid);
    json_writer_i64(&w, "pid", getpid());
    put_seconds(&w, "uptime_seconds", (double)up_ms / 1000);
    json_writer_open(&w, "ready", '{');
    json_writer_bool(&w, "ok", ready);
    json_writer_text(&w, "reason", reason);
    json_writer_close(&w, '}');
    put_spool(&w, source);
    put_kafka(&w, source);
    put_endpoints(&w, source->pipeline);
    json_writer_open(&w, "streams", '[');
    for (size_t i = 0; source->pipeline && i < pipeline_streams(source->pipeline); i++) {
        struct stream_status s = {0};
        pipeline_stream_status(source->pipeline, i, &s);
        put_stream(&w, &s);
    }
    json_writer_close(&w, ']');
    json_writer_close(&w, '}');
    return w.status == SPOOL_OK ? buf_put_u8(out, '\n') : w.status;
}
