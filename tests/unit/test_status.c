/* SPDX-License-Identifier: Apache-2.0 */
/* The pipeline is played by functions of this file: what it says is what /status must say. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "base/clock.h"
#include "daemon/status.h"

static struct {
    bool ready, kafka;
    const char *reason;
    struct stream_status streams[2];
    size_t stream_count;
    struct endpoint_status endpoints[2];
    size_t endpoint_count;
} played;

#define PIPELINE ((struct pipeline *)&played)

bool pipeline_ready(const struct pipeline *p, const char **reason)
{
    assert_ptr_equal(p, PIPELINE);
    *reason = played.reason;
    return played.ready;
}

void pipeline_usage(const struct pipeline *p, struct spool_usage *out)
{
    (void)p;
    *out = (struct spool_usage){.total_bytes = 1234567890123, .free_bytes = 42};
}

bool pipeline_kafka_stats(const struct pipeline *p, struct kafka_stats *out)
{
    (void)p;
    *out = (struct kafka_stats){.assigned_partitions = 12, .held_messages = 7, .held_bytes = 8};
    snprintf(out->reason, sizeof(out->reason), "no broker answers");
    return played.kafka;
}

struct clickhouse *pipeline_clickhouse(struct pipeline *p)
{
    return (struct clickhouse *)p;
}

size_t clickhouse_endpoints(const struct clickhouse *ch)
{
    (void)ch;
    return played.endpoint_count;
}

void clickhouse_endpoint_status(const struct clickhouse *ch, size_t i, struct endpoint_status *out)
{
    (void)ch;
    *out = played.endpoints[i];
}

uint64_t pipeline_endpoint_waiting(const struct pipeline *p, size_t endpoint)
{
    (void)p;
    return endpoint ? 3 : 0;
}

size_t pipeline_streams(const struct pipeline *p)
{
    (void)p;
    return played.stream_count;
}

void pipeline_stream_status(const struct pipeline *p, size_t i, struct stream_status *out)
{
    (void)p;
    *out = played.streams[i];
}

const char *stream_state_name(enum stream_state state)
{
    return state == STREAM_HELD ? "held" : state == STREAM_RUNNING ? "running" : "?";
}

static struct config config = {.spool.path = "/var/\"x\"",
                               .pipeline.max_bytes = 1000,
                               .pipeline.min_free_bytes = 10,
                               .kafka.group_id = "g"};

static cJSON *status(struct pipeline *pipeline)
{
    struct status_source source = {
        .config = &config, .pipeline = pipeline, .uuid = "some-uuid", .started_ms = 0};
    struct buf out;
    source.started_ms = clock_monotonic_ms() - 2500;
    buf_init(&out, 1 << 20);
    assert_int_equal(status_render(&source, &out), SPOOL_OK);
    assert_int_equal(out.data[out.len - 1], '\n');
    cJSON *tree = cJSON_Parse(buf_cstr(&out));
    assert_non_null(tree);
    buf_free(&out);
    return tree;
}

static cJSON *at(cJSON *tree, const char *path)
{
    char copy[128], *rest = copy, *part;
    snprintf(copy, sizeof(copy), "%s", path);
    while ((part = strsep(&rest, ".")))
        tree = part[0] >= '0' && part[0] <= '9'
                   ? cJSON_GetArrayItem(tree, (int)strtol(part, NULL, 10))
                   : cJSON_GetObjectItemCaseSensitive(tree, part);
    if (!tree)
        fail_msg("there is no %s", path);
    return tree;
}

static void assert_text(cJSON *tree, const char *path, const char *want)
{
    assert_string_equal(cJSON_GetStringValue(at(tree, path)), want);
}

static void assert_number(cJSON *tree, const char *path, double want)
{
    assert_true(cJSON_IsNumber(at(tree, path)));
    assert_true(at(tree, path)->valuedouble == want);
}

static void every_field_is_there(void **state)
{
    (void)state;
    played.ready = true;
    played.reason = "";
    played.kafka = true;
    played.endpoint_count = 2;
    played.endpoints[0] = (struct endpoint_status){.url = "http://u:secret@h:8123/x@y",
                                                   .state = ENDPOINT_UP,
                                                   .version = {26, 7, 3},
                                                   .reason = ""};
    played.endpoints[1] = (struct endpoint_status){
        .url = "https://h2", .state = ENDPOINT_DOWN, .reason = "connection refused"};
    played.stream_count = 2;
    played.streams[0] = (struct stream_status){.name = "a",
                                               .state = STREAM_HELD,
                                               .reason = "no table \"t\"",
                                               .since_ms = 1763892840123,
                                               .table = "db.t",
                                               .delivery = "at_least_once",
                                               .delivery_why = "why",
                                               .format = "native",
                                               .records_in = 1,
                                               .rows_spooled = 2,
                                               .bytes_spooled = 3,
                                               .oldest_age_seconds = 4.25,
                                               .lag = -1,
                                               .dead_letters = 5,
                                               .rows_inserted = 6,
                                               .batches_sealed = 7,
                                               .batches_in_flight = 8,
                                               .batches_acknowledged = 9,
                                               .retries = 10,
                                               .views_unsure = 11,
                                               .possible_duplicates = 12,
                                               .damaged_segments = 14,
                                               .missing_segments = 13,
                                               .damaged_blocks = 15};
    played.streams[1] = (struct stream_status){.name = "b", .reason = "", .lag = 11};
    cJSON *s = status(PIPELINE);
    assert_text(s, "version", SPOOLD_VERSION);
    assert_text(s, "uuid", "some-uuid");
    assert_number(s, "pid", getpid());
    assert_true(at(s, "uptime_seconds")->valuedouble >= 2.5);
    assert_true(cJSON_IsTrue(at(s, "ready.ok")));
    assert_text(s, "ready.reason", "");
    assert_text(s, "spool.path", "/var/\"x\"");
    assert_number(s, "spool.used_bytes", 1234567890123);
    assert_number(s, "spool.max_bytes", 1000);
    assert_number(s, "spool.free_bytes", 42);
    assert_number(s, "spool.min_free_bytes", 10);
    assert_true(cJSON_IsFalse(at(s, "kafka.connected")));
    assert_text(s, "kafka.reason", "no broker answers");
    assert_text(s, "kafka.group_id", "g");
    assert_number(s, "kafka.assigned_partitions", 12);
    assert_number(s, "kafka.held_messages", 7);
    assert_number(s, "kafka.held_bytes", 8);
    assert_text(s, "endpoints.0.url", "http://h:8123/x@y");
    assert_text(s, "endpoints.0.state", "up");
    assert_text(s, "endpoints.0.version", "26.7.3");
    assert_text(s, "endpoints.1.url", "https://h2");
    assert_text(s, "endpoints.1.state", "down");
    assert_text(s, "endpoints.1.version", "");
    assert_text(s, "endpoints.1.reason", "connection refused");
    assert_number(s, "endpoints.0.waiting_batches", 0);
    assert_number(s, "endpoints.1.waiting_batches", 3);
    assert_text(s, "streams.0.name", "a");
    assert_text(s, "streams.0.state", "held");
    assert_text(s, "streams.0.reason", "no table \"t\"");
    assert_text(s, "streams.0.since", "2025-11-23T10:14:00.123Z");
    assert_text(s, "streams.0.table", "db.t");
    assert_text(s, "streams.0.format", "native");
    assert_text(s, "streams.0.delivery", "at_least_once");
    assert_text(s, "streams.0.delivery_why", "why");
    assert_number(s, "streams.0.records_in", 1);
    assert_number(s, "streams.0.rows_spooled", 2);
    assert_number(s, "streams.0.bytes_spooled", 3);
    assert_number(s, "streams.0.oldest_age_seconds", 4.25);
    assert_number(s, "streams.0.lag", -1);
    assert_number(s, "streams.0.dead_letters", 5);
    assert_number(s, "streams.0.rows_inserted", 6);
    assert_number(s, "streams.0.retries", 10);
    assert_number(s, "streams.0.views_unsure_rows", 11);
    assert_number(s, "streams.0.possible_duplicates", 12);
    assert_number(s, "streams.0.damaged_segments", 14);
    assert_number(s, "streams.0.missing_segments", 13);
    assert_number(s, "streams.0.damaged_blocks", 15);
    assert_number(s, "streams.0.batches.sealed", 7);
    assert_number(s, "streams.0.batches.in_flight", 8);
    assert_number(s, "streams.0.batches.acknowledged", 9);
    assert_text(s, "streams.1.state", "running");
    assert_number(s, "streams.1.lag", 11);
    cJSON_Delete(s);
}

static void without_kafka_it_is_null(void **state)
{
    (void)state;
    played.kafka = false;
    cJSON *s = status(PIPELINE);
    assert_true(cJSON_IsNull(at(s, "kafka")));
    cJSON_Delete(s);
}

static void not_ready_says_why(void **state)
{
    (void)state;
    played.ready = false;
    played.reason = "spool full";
    cJSON *s = status(PIPELINE);
    assert_true(cJSON_IsFalse(at(s, "ready.ok")));
    assert_text(s, "ready.reason", "spool full");
    cJSON_Delete(s);
}

static void before_the_pipeline_there_is_a_status_too(void **state)
{
    (void)state;
    cJSON *s = status(NULL);
    assert_true(cJSON_IsFalse(at(s, "ready.ok")));
    assert_text(s, "ready.reason", "starting");
    assert_true(cJSON_IsNull(at(s, "kafka")));
    assert_int_equal(cJSON_GetArraySize(at(s, "streams")), 0);
    assert_int_equal(cJSON_GetArraySize(at(s, "endpoints")), 0);
    cJSON_Delete(s);
}

static void too_small_a_buffer_is_an_error(void **state)
{
    (void)state;
    struct status_source source = {.config = &config, .pipeline = PIPELINE, .uuid = "u"};
    struct buf out;
    buf_init(&out, 50);
    assert_int_equal(status_render(&source, &out), SPOOL_E_LIMIT);
    buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field_is_there),
        cmocka_unit_test(without_kafka_it_is_null),
        cmocka_unit_test(not_ready_says_why),
        cmocka_unit_test(before_the_pipeline_there_is_a_status_too),
        cmocka_unit_test(too_small_a_buffer_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
