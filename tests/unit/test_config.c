/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "base/limits.h"
#include "daemon/config.h"
#include "daemon/options.h"

#define STREAM  "{\"name\":\"a\",\"table\":\"t\"}"
#define STREAMS "\"streams\":[" STREAM "]"

static struct config *parse(const char *text)
{
    struct config *config = NULL;
    struct spool_error error = {0};
    int status = config_parse("f.json", text, strlen(text), &config, &error);
    if (status != SPOOL_OK)
        fail_msg("%s\nin %s", error.text, text);
    return config;
}

static void assert_refused_as(const char *text, int status, const char *sentence)
{
    struct config *config = (struct config *)&status;
    struct spool_error error = {0};
    int got = config_parse("f.json", text, strlen(text), &config, &error);
    if (got == SPOOL_OK)
        fail_msg("accepted: %s", text);
    if (strcmp(error.text, sentence) != 0)
        fail_msg("for %s\ngot  %s\nwant %s", text, error.text, sentence);
    assert_int_equal(got, status);
    assert_null(config);
}

static void assert_refused(const char *text, const char *sentence)
{
    assert_refused_as(text, SPOOL_E_INVALID, sentence);
}

/* A file with this text; the caller unlinks it. */
static const char *temp_file(const char *text, mode_t mode)
{
    static char path[64];
    snprintf(path, sizeof(path), "/tmp/spoold-test-config-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(fchmod(fd, mode), 0);
    close(fd);
    return path;
}

static void defaults_are_those_of_the_table(void **state)
{
    (void)state;
    struct config *c = parse("{" STREAMS "}");
    assert_string_equal(c->file, "f.json");
    assert_string_equal(c->spool.path, "/var/lib/spoold");
    assert_true(c->spool.create);
    assert_false(c->spool.read_only);
    assert_int_equal(c->spool.segment_bytes, 64 * MIB);
    assert_int_equal(c->pipeline.max_bytes, 10 * GIB);
    assert_int_equal(c->pipeline.min_free_bytes, GIB);
    assert_int_equal(c->pipeline.on_full, ON_FULL_PAUSE);
    assert_int_equal(c->pipeline.compression, COMPRESSION_LZ4);
    assert_int_equal(c->pipeline.keep_acknowledged_ms, 300000);
    assert_false(c->has_kafka);
    assert_null(c->pipeline.kafka);
    assert_string_equal(c->kafka.group_id, "spoold");
    assert_int_equal(c->kafka.auto_offset_reset, KAFKA_RESET_EARLIEST);
    assert_int_equal(c->pipeline.clickhouse.url_count, 1);
    assert_string_equal(c->pipeline.clickhouse.urls[0], "http://127.0.0.1:8123");
    assert_string_equal(c->pipeline.clickhouse.user, "default");
    assert_null(c->pipeline.clickhouse.password);
    assert_int_equal(c->pipeline.clickhouse.connect_timeout_ms, 5000);
    assert_int_equal(c->pipeline.clickhouse.stall_timeout_ms, 30000);
    assert_null(c->http.listen);
    assert_int_equal(c->http.max_body_bytes, 64 * MIB);
    assert_string_equal(c->control_socket, "/run/spoold/control.sock");
    assert_int_equal(c->log_level, LOG_INFO);
    assert_int_equal(c->log_format, LOG_TEXT);
    assert_int_equal(c->shutdown_timeout_ms, 10000);
    assert_int_equal(c->override_count, 0);
    assert_int_equal(c->warning_count, 0);
    assert_int_equal(c->pipeline.stream_count, 1);
    const struct stream_options *s = &c->pipeline.streams[0];
    assert_string_equal(s->name, "a");
    assert_string_equal(s->table, "t");
    assert_null(s->database);
    assert_int_equal(s->topic_count, 0);
    assert_int_equal(s->schema.format, FORMAT_AUTO);
    assert_int_equal(s->schema.unknown_keys, UNKNOWN_IGNORE);
    assert_false(s->schema.strict);
    assert_false(s->schema.schema_registry_framing);
    assert_null(s->schema.wishes);
    assert_int_equal(s->flush_rows, 100000);
    assert_int_equal(s->flush_bytes, 64 * MIB);
    assert_int_equal(s->flush_interval_ms, 1000);
    assert_int_equal(s->max_in_flight, 2);
    assert_int_equal(s->max_record_bytes, LIMIT_RECORD_BYTES);
    assert_int_equal(s->on_bad_record, ON_BAD_DEAD_LETTER);
    assert_int_equal(s->on_schema_change, ON_SCHEMA_HOLD);
    assert_true(s->bad_ratio > 0.0199 && s->bad_ratio < 0.0201);
    assert_int_equal(s->dead_letters_max_bytes, 256 * MIB);
    assert_false(s->create_table);
    config_free(c);
}

static void every_key_lands_where_it_belongs(void **state)
{
    (void)state;
    struct config *c = parse(
        "// a comment\n{\n"
        "\"spool\": {\"path\": \"/data\", \"max_bytes\": 1073741824, \"min_free_bytes\": 0,"
        " \"segment_bytes\": \"8 MiB\", \"on_full\": \"drop_oldest\", \"compression\": \"zstd\","
        " \"keep_acknowledged\": 0},\n"
        "\"kafka\": {\"brokers\": [\"k1:9092\", \"k2:9092\"], \"group_id\": \"g\","
        " \"group_instance_id\": \"i\", \"auto_offset_reset\": \"error\","
        " \"properties\": {\"client.id\": \"x\", \"socket.keepalive.enable\": true,"
        " \"message.max.bytes\": 1000000}},\n"
        "\"clickhouse\": {\"urls\": [\"https://c1:8443\", \"http://c2/x\"], \"user\": \"u\","
        " \"password\": \"p\", \"database\": \"d\", \"connect_timeout\": \"700ms\","
        " \"stall_timeout\": \"1m\", \"settings\": {\"insert_quorum\": 2}, \"proxy\": "
        "\"http://p:1\","
        " \"tls\": {\"ca_file\": \"ca\", \"cert_file\": \"ce\", \"key_file\": \"ke\","
        " \"insecure\": true}},\n"
        "\"http\": {\"listen\": \":9364\", \"max_body_bytes\": \"1KiB\", \"tls\": {\"cert_file\": "
        "\"c\", \"key_file\": \"k\"}, \"tokens\": [{\"token\": \"T\", \"name\": \"n\","
        " \"streams\": [\"s1\"]}]},\n"
        "\"control\": {\"socket\": \"/tmp/s\"}, \"log\": {\"level\": \"debug\", \"format\": "
        "\"json\"},"
        " \"shutdown_timeout\": \"1h\", \"error_classes\": {\"241\": \"transient\", \"6\": "
        "\"data\"},\n"
        "/* and\n another */ \"streams\": [{\"name\": \"s1\", \"topics\": [\"t1\", \"t2\"],"
        " \"table\": \"x\", \"database\": \"db\", \"format\": \"json\", "
        "\"schema_registry_framing\": true, \"strict\": true, \"unknown_keys\": \"refuse\","
        " \"max_record_bytes\": \"256MiB\", \"on_bad_record\": \"hold\", \"bad_ratio\": 0.5,"
        " \"on_schema_change\": \"reencode\", \"flush\": {\"rows\": 5, \"bytes\": \"2KiB\","
        " \"interval\": \"250ms\", \"max_in_flight\": 4}, \"dead_letters\": {\"max_bytes\": "
        "\"1GiB\"}, \"create_table\": {\"engine\": \"Log\", \"order_by\": \"id\","
        " \"partition_by\": \"p\", \"ttl\": \"ttl\", \"settings\": {\"a\": \"b\"},"
        " \"origin_columns\": true}, \"columns\": [{\"name\": \"id\", \"type\": \"UInt64\","
        " \"from\": \"a.b\", \"required\": true, \"truncate\": true},"
        " {\"name\": \"k\", \"type\": \"String\", \"value\": {\"x\": [1.50, null, \"y\"]}},"
        " {\"name\": \"d\", \"type\": \"Nullable(Int8)\", \"from\": \"$key\", \"default\": "
        "null}]}]\n}");
    const struct clickhouse_options *ch = &c->pipeline.clickhouse;
    assert_string_equal(c->spool.path, "/data");
    assert_int_equal(c->pipeline.max_bytes, GIB);
    assert_int_equal(c->pipeline.min_free_bytes, 0);
    assert_int_equal(c->spool.segment_bytes, 8 * MIB);
    assert_int_equal(c->pipeline.on_full, ON_FULL_DROP_OLDEST);
    assert_int_equal(c->pipeline.compression, COMPRESSION_ZSTD);
    assert_int_equal(c->pipeline.keep_acknowledged_ms, 0);
    assert_true(c->has_kafka);
    assert_ptr_equal(c->pipeline.kafka, &c->kafka);
    assert_string_equal(c->kafka.brokers, "k1:9092,k2:9092");
    assert_string_equal(c->kafka.group_id, "g");
    assert_string_equal(c->kafka.group_instance_id, "i");
    assert_int_equal(c->kafka.auto_offset_reset, KAFKA_RESET_ERROR);
    assert_int_equal(c->kafka.property_count, 3);
    assert_string_equal(c->kafka.properties[0].name, "client.id");
    assert_string_equal(c->kafka.properties[1].value, "true");
    assert_string_equal(c->kafka.properties[2].value, "1000000");
    assert_int_equal(ch->url_count, 2);
    assert_string_equal(ch->urls[1], "http://c2/x");
    assert_string_equal(ch->password, "p");
    assert_string_equal(ch->database, "d");
    assert_int_equal(ch->connect_timeout_ms, 700);
    assert_int_equal(ch->stall_timeout_ms, 60000);
    assert_int_equal(ch->setting_count, 1);
    assert_string_equal(ch->settings[0].name, "insert_quorum");
    assert_string_equal(ch->settings[0].value, "2");
    assert_string_equal(ch->proxy, "http://p:1");
    assert_string_equal(ch->tls.ca_file, "ca");
    assert_string_equal(ch->tls.cert_file, "ce");
    assert_string_equal(ch->tls.key_file, "ke");
    assert_true(ch->tls.insecure);
    assert_string_equal(c->http.listen, ":9364");
    assert_int_equal(c->http.max_body_bytes, 1024);
    assert_string_equal(c->http.tls_cert_file, "c");
    assert_int_equal(c->http.token_count, 1);
    assert_string_equal(c->http.tokens[0].token, "T");
    assert_string_equal(c->http.tokens[0].streams[0], "s1");
    assert_int_equal(c->log_level, LOG_DEBUG);
    assert_int_equal(c->log_format, LOG_JSON);
    assert_int_equal(c->shutdown_timeout_ms, 3600000);
    assert_int_equal(c->override_count, 2);
    assert_int_equal(c->overrides[0].code, 241);
    assert_int_equal(c->overrides[0].class_, CLASS_TRANSIENT);
    assert_int_equal(c->overrides[1].class_, CLASS_DATA);
    const struct stream_options *s = &c->pipeline.streams[0];
    assert_int_equal(s->topic_count, 2);
    assert_string_equal(s->topics[1], "t2");
    assert_string_equal(s->database, "db");
    assert_int_equal(s->schema.format, FORMAT_JSON);
    assert_true(s->schema.schema_registry_framing);
    assert_true(s->schema.strict);
    assert_int_equal(s->schema.unknown_keys, UNKNOWN_REFUSE);
    assert_int_equal(s->max_record_bytes, 256 * MIB);
    assert_int_equal(s->on_bad_record, ON_BAD_HOLD);
    assert_true(s->bad_ratio == 0.5);
    assert_int_equal(s->on_schema_change, ON_SCHEMA_REENCODE);
    assert_int_equal(s->flush_rows, 5);
    assert_int_equal(s->flush_bytes, 2048);
    assert_int_equal(s->flush_interval_ms, 250);
    assert_int_equal(s->max_in_flight, 4);
    assert_int_equal(s->dead_letters_max_bytes, GIB);
    assert_true(s->create_table);
    assert_true(s->origin_columns);
    assert_string_equal(s->create.engine, "Log");
    assert_string_equal(s->create.order_by, "id");
    assert_string_equal(s->create.partition_by, "p");
    assert_string_equal(s->create.ttl, "ttl");
    assert_int_equal(s->create.setting_count, 1);
    assert_string_equal(s->create.settings[0].value, "b");
    assert_int_equal(s->schema.wish_count, 6); /* and the three of origin_columns */
    const struct column_wish *w = s->schema.wishes;
    assert_string_equal(w[5].name, "offset");
    assert_string_equal(w[5].type, "Int64");
    assert_string_equal(w[5].from, "$offset");
    assert_string_equal(w[0].name, "id");
    assert_string_equal(w[0].type, "UInt64");
    assert_string_equal(w[0].from, "a.b");
    assert_true(w[0].required);
    assert_true(w[0].truncate);
    assert_null(w[0].value);
    assert_null(w[0].default_json);
    assert_string_equal(w[1].value, "{\"x\":[1.50,null,\"y\"]}");
    assert_null(w[1].from);
    assert_string_equal(w[2].from, "$key");
    assert_string_equal(w[2].default_json, "null");
    config_free(c);
}

static void syntax_errors_name_line_and_column(void **state)
{
    (void)state;
    static const struct {
        const char *text, *sentence;
    } CASES[] = {
        {"", "f.json:1:1: expected a value, found the end of the file"},
        {"{", "f.json:1:2: expected a key in double quotes, found the end of the file"},
        {"{\n  spool: {}}", "f.json:2:3: expected a key in double quotes, found 's'"},
        {"{'spool': 1}", "f.json:1:2: expected a key in double quotes, found a single quote "
                         "(strings need double quotes)"},
        {"{\"a\" 1}", "f.json:1:6: expected ':' behind the key, found '1'"},
        {"{\"a\": 1 \"b\": 2}", "f.json:1:9: expected ',' or '}', found '\"'"},
        {"{\"a\": [1 2]}", "f.json:1:10: expected ',' or ']', found '2'"},
        {"{\"a\": [1,]}", "f.json:1:9: nothing follows this comma; remove it"},
        {"{\"a\": 1,\n}", "f.json:1:8: nothing follows this comma; remove it"},
        {"{\"a\": 01}", "f.json:1:7: not a number as JSON has them"},
        {"{\"a\": 1.}", "f.json:1:7: not a number as JSON has them"},
        {"{\"a\": 1e}", "f.json:1:7: not a number as JSON has them"},
        {"{\"a\": -}", "f.json:1:7: not a number as JSON has them"},
        {"{\"a\": +1}", "f.json:1:7: expected a value, found '+'"},
        {"{\"a\": yes}", "f.json:1:7: expected a value, found 'y'"},
        {"{\"a\": \"b}", "f.json:1:7: this string is not closed on its line"},
        {"{\"a\": \"b\n\"}", "f.json:1:7: this string is not closed on its line"},
        {"{\"a\": \"b\tc\"}", "f.json:1:9: a control character in a string; write it as an escape"},
        {"{\"a\": \"b\\qc\"}", "f.json:1:9: not an escape; a backslash itself is written \\\\"},
        {"{\"a\": \"\\u12g4\"}", "f.json:1:8: \\u needs four hex digits"},
        {"{\"a\": \"\\u0000\"}", "f.json:1:8: \\u0000 has no place in a configuration"},
        {"{\"a\": \"\\ud800x\"}",
         "f.json:1:8: \\ud800 is half of a surrogate pair; the other half is missing"},
        {"{\"a\": \"\\udc00\"}",
         "f.json:1:8: \\udc00 is half of a surrogate pair; the other half is missing"},
        {"{\"a\": \"\xc3\"}", "f.json:1:8: not UTF-8; save the file as UTF-8"},
        {"{} x", "f.json:1:4: expected nothing more, found 'x'"},
        {"{\n/* never\nclosed", "f.json:2:1: this comment is never closed; end it with */"},
        {"{ / }", "f.json:1:3: expected a key in double quotes, found '/'"},
        {"{\"log\": {},\n \"\xc3\xa9\": 1, \"log\": {}}",
         "f.json:2:10: the key \"log\" was given before, in line 1; remove one of them"},
        {"\xef\xbb\xbf{x", "f.json:1:2: expected a key in double quotes, found 'x'"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        assert_refused_as(CASES[i].text, SPOOL_E_SYNTAX, CASES[i].sentence);
}

static void wrong_values_are_refused_with_path_and_reason(void **state)
{
    (void)state;
    static const struct {
        const char *text, *sentence;
    } CASES[] = {
        {"[]", "f.json:1:1: the configuration must be an object in braces, but is an array"},
        {"{}", "f.json:1:1: streams: is missing; it has to be set"},
        {"{\"streams\":[]}", "f.json:1:12: streams: must have from 1 to 256 entries, but has 0"},
        {"{\"streams\":{}}", "f.json:1:12: streams: must be an array of objects, but is an object"},
        {"{\"streams\":[1]}", "f.json:1:13: streams[0]: must be an object, but is a number"},
        {"{\"streams\":[{\"table\":\"t\"}]}",
         "f.json:1:13: streams[0].name: is missing; it has to be set"},
        {"{\"streams\":[" STREAM ",\n{\"name\":\"b\"}]}",
         "f.json:2:1: streams[1].table: is missing; it has to be set"},
        /* unknown keys */
        {"{\"spol\":{}}", "f.json:1:2: spol: unknown key; did you mean \"spool\"?"},
        {"{\n  \"kafka\":{\"broker\":[]}}",
         "f.json:2:12: kafka.broker: unknown key; did you mean \"brokers\"?"},
        {"{\"streams\":[" STREAM ",\n {\"name\":\"b\",\"table\":\"t\",\"flush\":{\"row\":1}}]}",
         "f.json:2:35: streams[1].flush.row: unknown key; did you mean \"rows\"?"},
        {"{\"streams\":[{\"max_in_flight\":1}]}", "f.json:1:14: streams[0].max_in_flight: unknown "
                                                  "key here; did you mean "
                                                  "streams[].flush.max_in_flight?"},
        {"{\"qqqqqqqqqqq\":1}",
         "f.json:1:2: qqqqqqqqqqq: unknown key; spoold --print-config shows the known ones"},
        /* kinds */
        {"{\"spool\":1}", "f.json:1:10: spool: must be an object, but is a number"},
        {"{\"spool\":{\"path\":1}}", "f.json:1:18: spool.path: must be a string, but is a number"},
        {"{\"spool\":{\"path\":null}}", "f.json:1:18: spool.path: must be a string, but is null; "
                                        "leave the key out for the default"},
        {"{\"spool\":{\"path\":\"\"}}",
         "f.json:1:18: spool.path: must not be empty; leave the key out for the default"},
        {"{\"kafka\":{\"brokers\":\"a:9092\"}}",
         "f.json:1:21: kafka.brokers: must be an array of strings, but is a string"},
        {"{\"kafka\":{\"brokers\":[\"a:1\", 2]}}",
         "f.json:1:29: kafka.brokers[1]: must be a string, but is a number"},
        {"{\"kafka\":{\"brokers\":[\"a:1,b:2\"]}}",
         "f.json:1:22: kafka.brokers: each entry is one \"host:port\", but \"a:1,b:2\" has a comma "
         "or blank; write several as [\"a:9092\", \"b:9092\"]"},
        {"{\"kafka\":{\"brokers\":[]}}",
         "f.json:1:21: kafka.brokers: must have from 1 to 1000 entries, but has 0"},
        {"{\"kafka\":{\"properties\":[]}}",
         "f.json:1:24: kafka.properties: must be an object, but is an array"},
        {"{\"kafka\":{\"properties\":{\"client.id\":[]}}}",
         "f.json:1:37: kafka.properties.client.id: must be a string, a number or a boolean, but is "
         "an array"},
        {"{\"clickhouse\":{\"tls\":{\"insecure\":1}}}",
         "f.json:1:34: clickhouse.tls.insecure: must be true or false, but is a number"},
        {"{\"clickhouse\":{\"tls\":{\"insecure\":\"yes\"}}}",
         "f.json:1:34: clickhouse.tls.insecure: must be true or false, but is \"yes\""},
        /* sizes, times, numbers, ranges */
        {"{\"spool\":{\"max_bytes\":\"10GB\"}}",
         "f.json:1:23: spool.max_bytes: must be a size such as 64MiB (KiB, MiB, GiB or plain "
         "bytes), but is \"10GB\""},
        {"{\"spool\":{\"max_bytes\":true}}",
         "f.json:1:23: spool.max_bytes: must be a size such as 64MiB (KiB, MiB, GiB or plain "
         "bytes), but is a boolean"},
        {"{\"spool\":{\"max_bytes\":1.5}}",
         "f.json:1:23: spool.max_bytes: must be a size such as 64MiB (KiB, MiB, GiB or plain "
         "bytes), but is \"1.5\""},
        {"{\"spool\":{\"max_bytes\":-1}}",
         "f.json:1:23: spool.max_bytes: must be a size such as 64MiB (KiB, MiB, GiB or plain "
         "bytes), but is \"-1\""},
        {"{\"spool\":{\"max_bytes\":\"1MiB\"}}",
         "f.json:1:23: spool.max_bytes: must be from 16MiB to 1048576GiB, but is 1MiB"},
        {"{\"spool\":{\"max_bytes\":\"99999999999999GiB\"}}",
         "f.json:1:23: spool.max_bytes: must be a size such as 64MiB (KiB, MiB, GiB or plain "
         "bytes), but is \"99999999999999GiB\""},
        {"{\"shutdown_timeout\":10}", "f.json:1:21: shutdown_timeout: needs a unit: write "
                                      "\"10ms\", \"10s\", \"10m\" or \"10h\""},
        {"{\"shutdown_timeout\":\"10 sec\"}",
         "f.json:1:21: shutdown_timeout: must be a time such as 500ms (ms, s, m or h), but is \"10 "
         "sec\""},
        {"{\"shutdown_timeout\":\"2h\"}",
         "f.json:1:21: shutdown_timeout: must be from 0 to 1h, but is 2h"},
        {"{\"clickhouse\":{\"connect_timeout\":\"0\"}}",
         "f.json:1:34: clickhouse.connect_timeout: must be from 100ms to 5m, but is 0"},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"flush\":{\"rows\":0}}]}",
         "f.json:1:53: streams[0].flush.rows: must be from 1 to 10000000, but is 0"},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"flush\":{\"rows\":\"many\"}}]}",
         "f.json:1:53: streams[0].flush.rows: must be a whole number, but is \"many\""},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"flush\":{\"rows\":1e3}}]}",
         "f.json:1:53: streams[0].flush.rows: must be a whole number, but is \"1e3\""},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"bad_ratio\":2}]}",
         "f.json:1:49: streams[0].bad_ratio: must be a number from 0 to 1, but is 2"},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"max_record_bytes\":\"257MiB\"}]}",
         "f.json:1:56: streams[0].max_record_bytes: must be from 1KiB to 256MiB, but is 257MiB"},
        /* choices */
        {"{\"log\":{\"level\":\"warning\"}}",
         "f.json:1:17: log.level: must be \"debug\", \"info\", \"warn\" or \"error\", but is "
         "\"warning\"; did you mean \"warn\"?"},
        {"{\"log\":{\"format\":3}}", "f.json:1:18: log.format: must be a word, but is a number"},
        {"{\"spool\":{\"on_full\":\"q\"}}",
         "f.json:1:21: spool.on_full: must be \"pause\" or \"drop_oldest\", but is \"q\""},
        /* error classes */
        {"{\"error_classes\":{\"x\":\"data\"}}",
         "f.json:1:19: error_classes.x: the key must be a number of a ClickHouse exception, such "
         "as 241"},
        {"{\"error_classes\":{\"241\":\"often\"}}",
         "f.json:1:25: error_classes.241: must be transient, upload, schema, too_big, environment, "
         "data or unknown, but is \"often\""},
        {"{\"error_classes\":{\"241\":1}}",
         "f.json:1:25: error_classes.241: must be transient, upload, schema, too_big, environment, "
         "data or unknown, but is a number"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        assert_refused(CASES[i].text, CASES[i].sentence);
    assert_refused("{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"dead_letters\":{\"topic\":"
                   "\"x\"}}]}",
                   "f.json:1:1: kafka.brokers: is missing; streams with topics need it");
    assert_refused(
        "{\"streams\":[{\"name\":\"a\",\"table\":\"d.t\",\"dead_letters\":{\"table\":\"t\"}}]}",
        "f.json:1:63: streams[0].dead_letters.table: is the table of the stream's own rows");
    assert_refused(
        "{\"streams\":[{\"name\":\"a\",\"table\":\"d.t\",\"dead_letters\":{\"table\":\"d.t\"}}]}",
        "f.json:1:63: streams[0].dead_letters.table: is the table of the stream's own rows");
    assert_refused(
        "{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"dead_letters\":{\"table\":"
        "\"default.t\"}}]}",
        "f.json:1:61: streams[0].dead_letters.table: is the table of the stream's own rows");
    config_free(parse(
        "{\"streams\":[{\"name\":\"a\",\"table\":\"d.t\",\"dead_letters\":{\"table\":\"e.t\"}}]}"));
    assert_refused("{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"dead_letters\":{\"table\":"
                   "\"t\"}}]}",
                   "f.json:1:61: streams[0].dead_letters.table: is the table of the stream's own "
                   "rows");
    assert_refused(
        "{\"kafka\":{\"brokers\":[\"k:1\"],\"group_id\":\"g\"},\"streams\":[{\"name\":\"a\","
        "\"topics\":[\"x\"],\"table\":\"t\",\"dead_letters\":{\"topic\":\"x\"}}]}",
        "f.json:1:119: streams[0].dead_letters.topic: is a topic that stream \"a\" reads: "
        "its letters would come back as records");
}

static void contradictions_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *sentence;
    } CASES[] = {
        {"{\"spool\":{\"max_bytes\":\"100MiB\",\"segment_bytes\":\"64MiB\"}," STREAMS "}",
         "f.json:1:48: spool.segment_bytes: must be at most half of spool.max_bytes: a full spool "
         "frees whole segments"},
        {"{\"spool\":{\"max_bytes\":\"24MiB\",\"segment_bytes\":\"11MiB\"}," STREAMS "}",
         "f.json:1:23: spool.max_bytes: is too little for the newest segments of 1 stream, which "
         "stay in a full spool: set at least 26MiB, or less segment_bytes"},
        {"{\"spool\":{\"max_bytes\":\"16MiB\"},\"streams\":[" STREAM "," STREAM "," STREAM
         "," STREAM "," STREAM "]}",
         "f.json:1:23: spool.max_bytes: is too little for the newest segments of 5 streams, which "
         "stay in a full spool: set at least 18MiB, or less segment_bytes"},
        {"{\"spool\":{\"max_bytes\":\"64MiB\"},\"streams\":[{\"name\":\"a\",\"table\":\"t\","
         "\"max_record_bytes\":\"17MiB\"}]}",
         "f.json:1:86: streams[0].max_record_bytes: is more than the spool has room for: at most "
         "16MiB with this spool.max_bytes and so many streams"},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"topics\":[\"x\"]}]}",
         "f.json:1:1: kafka.brokers: is missing; streams with topics need it"},
        {"{\"kafka\":{},\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"topics\":[\"x\"]}]}",
         "f.json:1:10: kafka.brokers: is missing; streams with topics need it"},
        {"{\"clickhouse\":{\"urls\":[\"http://a\",\"b:8123\"]}," STREAMS "}",
         "f.json:1:35: clickhouse.urls[1]: must begin with http:// or https://"},
        {"{\"clickhouse\":{\"urls\":[\"http://:8123\"]}," STREAMS "}",
         "f.json:1:24: clickhouse.urls[0]: names no host"},
        {"{\"clickhouse\":{\"urls\":[\"http://a/?x=1\"]}," STREAMS "}",
         "f.json:1:24: clickhouse.urls[0]: must not have a query (?) or fragment (#); use "
         "clickhouse.settings"},
        {"{\"clickhouse\":{\"urls\":[\"http://a b\"]}," STREAMS "}",
         "f.json:1:24: clickhouse.urls[0]: has a blank or control character"},
        {"{\"clickhouse\":{\"tls\":{\"cert_file\":\"c\"}}," STREAMS "}",
         "f.json:1:22: clickhouse.tls: cert_file and key_file go together; key_file is missing"},
        {"{\"clickhouse\":{\"proxy\":\"p\"}," STREAMS "}",
         "f.json:1:24: clickhouse.proxy: must begin with http:// or https://"},
        {"{\"clickhouse\":{\"settings\":{\"a b\":1}}," STREAMS "}",
         "f.json:1:28: clickhouse.settings.a b: is no name of a setting: letters, digits and _ "
         "only"},
        {"{\"http\":{\"listen\":\"9364\"}," STREAMS "}",
         "f.json:1:19: http.listen: must be \"host:port\", \":port\" or \"[v6]:port\", but is "
         "\"9364\""},
        {"{\"http\":{\"tls\":{\"key_file\":\"k\"}}," STREAMS "}",
         "f.json:1:16: http.tls: cert_file and key_file go together; cert_file is missing"},
        {"{\"http\":{\"tokens\":[{\"name\":\"n\"}]}," STREAMS "}",
         "f.json:1:20: http.tokens[0]: needs a token or a token_file, and not both"},
        {"{\"http\":{\"tokens\":[{\"token\":\"\"}]}," STREAMS "}",
         "f.json:1:29: http.tokens[0]: the token is empty: everybody would have it"},
        {"{\"http\":{\"tokens\":[{\"token\":\"x\",\"streams\":[\"b\"]}]}," STREAMS "}",
         "f.json:1:44: http.tokens[0]: there is no stream \"b\""},
        /* streams */
        {"{\"streams\":[{\"name\":\"A b\",\"table\":\"t\"}]}",
         "f.json:1:21: streams[0].name: may have lower case letters, digits, _ and - only, but is "
         "\"A b\""},
        {"{\"streams\":[{\"name\":"
         "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
         "a\",\"table\":\"t\"}]}",
         "f.json:1:21: streams[0].name: has 65 bytes; 64 are allowed"},
        {"{\"streams\":[" STREAM "," STREAM "]}",
         "f.json:1:46: streams[1].name: the name \"a\" is streams[0].name already"},
        {"{\"kafka\":{\"brokers\":[\"k:1\"]},\"streams\":[{\"name\":\"a\",\"table\":\"t\","
         "\"topics\":[\"x\",\"y\"]},\n{\"name\":\"b\",\"table\":\"t\",\"topics\":[\"z\",\"x\"]}]}",
         "f.json:2:39: streams[1].topics[1]: a topic belongs to one stream, and \"x\" is "
         "streams[0].topics[0] already"},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"topics\":[\"^x.*\"]}]}",
         "f.json:1:47: streams[0].topics[0]: patterns are not supported; list the topics by their "
         "names"},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"topics\":[\"x y\"]}]}",
         "f.json:1:47: streams[0].topics[0]: is no name of a topic: letters, digits, . _ and -, at "
         "most 249"},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"create_table\":{}}]}",
         "f.json:1:52: streams[0].create_table: needs columns, each with a type, to make the table "
         "of"},
        {"{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"columns\":[{\"name\":\"offset\",\"type\":"
         "\"Int8\"}],\"create_table\":{\"origin_columns\":true}}]}",
         "f.json:1:56: streams[0].columns[0].name: origin_columns makes a column \"offset\" from "
         "$offset: give this one another name"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++)
        assert_refused(CASES[i].text, CASES[i].sentence);
}

static void column_errors_name_the_column(void **state)
{
    (void)state;
    static const struct {
        const char *columns, *sentence;
    } CASES[] = {
        {"[]", "f.json:1:47: streams[0].columns: must have from 1 to 4096 entries, but has 0"},
        {"[{}]", "f.json:1:48: streams[0].columns[0].name: is missing; it has to be set"},
        {"[{\"name\":\"x\",\"from\":\"a\",\"value\":1}]",
         "f.json:1:48: streams[0].columns[0]: value and from can't both be given"},
        {"[{\"name\":\"x\",\"default\":0,\"value\":1}]",
         "f.json:1:48: streams[0].columns[0]: a column with a value needs no default"},
        {"[{\"name\":\"x\",\"required\":true,\"value\":1}]",
         "f.json:1:48: streams[0].columns[0]: a column with a value is never missing; remove "
         "required"},
        {"[{\"name\":\"x\",\"required\":true,\"default\":1}]",
         "f.json:1:48: streams[0].columns[0]: required refuses a record without the key, so "
         "default has no use; remove one of them"},
        {"[{\"name\":\"x\",\"from\":\"$ofset\"}]",
         "f.json:1:67: streams[0].columns[0].from: \"$ofset\" is no fact of a record; did you mean "
         "\"$offset\"?"},
        {"[{\"name\":\"x\",\"from\":\"a..b\"}]",
         "f.json:1:67: streams[0].columns[0].from: \"a..b\" has an empty key between its dots"},
        {"[{\"name\":\"x\"},{\"name\":\"y\"},{\"name\":\"x\"}]",
         "f.json:1:82: streams[0].columns[2].name: the column \"x\" is streams[0].columns[0].name "
         "already"},
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        char text[512];
        snprintf(text, sizeof(text),
                 "{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"columns\":%s}]}",
                 CASES[i].columns);
        assert_refused(text, CASES[i].sentence);
    }
    assert_refused("{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"create_table\":{},\"columns\":["
                   "{\"name\":\"x\",\"type\":\"Int8\"},\n{\"name\":\"y\"}]}]}",
                   "f.json:2:1: streams[0].columns[1]: needs a type: create_table makes the table "
                   "of these columns");
}

static void a_type_that_does_not_parse_is_refused_where_it_stands(void **state)
{
    (void)state;
    struct config *config;
    struct spool_error error = {0};
    const char *text = "{\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"columns\":[{\"name\":\"x\","
                       "\n\"type\":\"Array(\"}]}]}";
    const char *begin = "f.json:2:8: streams[0].columns[0].type: ";
    assert_int_equal(config_parse("f.json", text, strlen(text), &config, &error), SPOOL_E_INVALID);
    assert_memory_equal(error.text, begin, strlen(begin));
    assert_true(strlen(error.text) > strlen(begin));
}

static void settings_that_break_a_promise_are_refused_by_name(void **state)
{
    (void)state;
    static const char *const REFUSED[] = {"async_insert",
                                          "wait_for_async_insert",
                                          "async_insert_deduplicate",
                                          "insert_deduplicate",
                                          "insert_deduplication_token",
                                          "deduplicate_insert",
                                          "timeout_overflow_mode",
                                          "use_strict_insert_block_limits",
                                          "min_insert_block_size_rows",
                                          "max_insert_threads",
                                          "min_insert_block_size_bytes",
                                          "input_format_skip_unknown_fields",
                                          "wait_end_of_query",
                                          "input_format_allow_errors_num",
                                          "decompress",
                                          "query_id",
                                          "database",
                                          "password",
                                          "user",
                                          "materialized_views_ignore_errors"};
    for (size_t i = 0; i < sizeof(REFUSED) / sizeof(REFUSED[0]); i++) {
        struct config *config;
        struct spool_error error = {0};
        char text[256], begin[128];
        snprintf(text, sizeof(text),
                 "{\"clickhouse\":{\"settings\":{\"%s\":\"seven\"}}," STREAMS "}", REFUSED[i]);
        snprintf(begin, sizeof(begin),
                 "f.json:1:28: clickhouse.settings.%s: can't be set, because ", REFUSED[i]);
        assert_int_equal(config_parse("f.json", text, strlen(text), &config, &error),
                         SPOOL_E_INVALID);
        assert_memory_equal(error.text, begin, strlen(begin));
        assert_null(strstr(error.text, "seven"));
    }
    config_free(parse("{\"clickhouse\":{\"settings\":{\"insert_quorum\":2,\"max_memory_usage\":1,"
                      "\"insert_distributed_sync\":1}}," STREAMS "}"));
}

static void the_environment_stands_in_strings(void **state)
{
    (void)state;
    setenv("SPOOLD_TEST_DIR", "/x y", 1);
    setenv("SPOOLD_TEST_ROWS", "77", 1);
    setenv("SPOOLD_TEST_SIZE", "1GiB", 1);
    setenv("SPOOLD_TEST_BOOL", "true", 1);
    setenv("SPOOLD_TEST_NODE", "edge \"7\"", 1);
    unsetenv("SPOOLD_TEST_NONE");
    struct config *c = parse(
        "{\"spool\":{\"path\":\"/a${SPOOLD_TEST_DIR}/b\",\"max_bytes\":\"${SPOOLD_TEST_SIZE}\"},"
        "\"kafka\":{\"properties\":{\"client.id\":\"$$${SPOOLD_TEST_ROWS}$x\"}},"
        "\"streams\":[{\"name\":\"a\",\"table\":\"$${x}\",\"strict\":\"${SPOOLD_TEST_BOOL}\","
        "\"flush\":{\"rows\":\"${SPOOLD_TEST_ROWS}\"},\"columns\":[{\"name\":\"n\",\"value\":[1,"
        "\"${SPOOLD_TEST_NODE}\"]},{\"name\":\"o\",\"from\":\"$offset\"}]}]}");
    assert_string_equal(c->spool.path, "/a/x y/b");
    assert_int_equal(c->pipeline.max_bytes, GIB);
    assert_string_equal(c->kafka.properties[0].value, "$77$x");
    assert_string_equal(c->pipeline.streams[0].table, "${x}");
    assert_true(c->pipeline.streams[0].schema.strict);
    assert_int_equal(c->pipeline.streams[0].flush_rows, 77);
    assert_string_equal(c->pipeline.streams[0].schema.wishes[0].value, "[1,\"edge \\\"7\\\"\"]");
    assert_string_equal(c->pipeline.streams[0].schema.wishes[1].from, "$offset");
    config_free(c);
    assert_refused("{\"spool\":{\n\"path\":\"/a${SPOOLD_TEST_NONE}\"}}",
                   "f.json:2:8: spool.path: the environment variable SPOOLD_TEST_NONE is not set; "
                   "set it, or write $${SPOOLD_TEST_NONE} for the text itself");
    assert_refused("{\"spool\":{\"path\":\"${}\"}}",
                   "f.json:1:18: spool.path: ${ wants the name of an environment variable and a }; "
                   "write $${ for the text itself");
    assert_refused("{\"spool\":{\"path\":\"${A\"}}",
                   "f.json:1:18: spool.path: ${ wants the name of an environment variable and a }; "
                   "write $${ for the text itself");
}

static void secrets_come_from_files(void **state)
{
    (void)state;
    char text[512];
    const char *path = temp_file("s3cret\n", 0600);
    snprintf(text, sizeof(text), "{\"clickhouse\":{\"password_file\":\"%s\"}," STREAMS "}", path);
    struct config *c = parse(text);
    assert_string_equal(c->pipeline.clickhouse.password, "s3cret");
    assert_int_equal(c->warning_count, 0);
    config_free(c);
    chmod(path, 0644);
    c = parse(text);
    assert_int_equal(c->warning_count, 1);
    assert_non_null(strstr(c->warnings[0], path));
    assert_null(strstr(c->warnings[0], "s3cret"));
    config_free(c);
    unlink(path);
    char sentence[512];
    snprintf(sentence, sizeof(sentence),
             "f.json:1:32: clickhouse.password_file: can't read \"%s\": No such file or directory",
             path);
    assert_refused(text, sentence);
    path = temp_file("\n", 0600);
    snprintf(text, sizeof(text), "{\"http\":{\"tokens\":[{\"token_file\":\"%s\"}]}," STREAMS "}",
             path);
    snprintf(sentence, sizeof(sentence), "f.json:1:34: http.tokens[0].token_file: \"%s\" is empty",
             path);
    assert_refused(text, sentence);
    snprintf(text, sizeof(text),
             "{\"clickhouse\":{\"password\":\"x\",\"password_file\":\"%s\"}," STREAMS "}",
             "/dev/"
             "null");
    assert_refused(text, "f.json:1:47: clickhouse.password_file: \"/dev/null\" is empty");
    unlink(path);
    path = temp_file("b", 0600);
    snprintf(text, sizeof(text),
             "{\"clickhouse\":{\"password\":\"x\",\"password_file\":\"%s\"}," STREAMS "}", path);
    assert_refused(text, "f.json:1:47: clickhouse.password_file: clickhouse.password is set too; "
                         "remove one of them");
    unlink(path);
}

static void secrets_are_in_no_error(void **state)
{
    (void)state;
    static const char *const CASES[] = {
        "{\"clickhouse\":{\"password\":[\"hunter2\"]}," STREAMS "}",
        "{\"clickhouse\":{\"urls\":[\"http://u:hunter2@h\"]}," STREAMS "}",
        "{\"clickhouse\":{\"urls\":[\"hunter2\"]}," STREAMS "}",
        "{\"http\":{\"tokens\":[{\"token\":\"hunter2 x\"}]}," STREAMS "}",
        "{\"kafka\":{\"brokers\":[\"k:1\"],\"properties\":{\"sasl.password\":\"hunter2\","
        "\"enable.auto.commit\":\"true\"}},"
        "\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"topics\":[\"x\"]}]}",
        "{\"kafka\":{\"brokers\":[\"k:1\"],\"properties\":{\"ssl.key.password\":\"hunter2\","
        "\"security.protocol\":\"hunter2\"}},"
        "\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"topics\":[\"x\"]}]}",
        /* and what stands for it may be one */
        "{\"kafka\":{\"brokers\":[\"k:1\"],\"properties\":{\"ssl.key.password\":\"***\","
        "\"sasl.password\":\"*\",\"security.protocol\":\"***\"}},"
        "\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"topics\":[\"x\"]}]}",
    };
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        struct config *config;
        struct spool_error error = {0};
        if (config_parse("f.json", CASES[i], strlen(CASES[i]), &config, &error) == SPOOL_OK)
            fail_msg("accepted: %s", CASES[i]);
        if (strstr(error.text, "hunter2"))
            fail_msg("%s", error.text);
    }
}

static void kafka_properties_are_checked_and_placed(void **state)
{
    (void)state;
    struct config *config;
    struct spool_error error = {0};
    const char *text = "{\"kafka\":{\"brokers\":[\"k:1\"],\"properties\":{\"client.id\":\"c\",\n"
                       "  \"enable.auto.commit\":\"true\"}},"
                       "\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"topics\":[\"x\"]}]}";
    const char *begin = "f.json:2:3: kafka.properties.enable.auto.commit: ";
    assert_int_equal(config_parse("f.json", text, strlen(text), &config, &error), SPOOL_E_INVALID);
    if (strncmp(error.text, begin, strlen(begin)) != 0)
        fail_msg("%s", error.text);
}

static void a_table_may_name_its_database(void **state)
{
    (void)state;
    struct config *c =
        parse("{\"streams\":[{\"name\":\"a\",\"table\":\"db.t\"},"
              "{\"name\":\"b\",\"table\":\"db.t\",\"database\":\"x\"},"
              "{\"name\":\"c\",\"table\":\"a.b.c\"},{\"name\":\"d\",\"table\":\".t\"}]}");
    const struct stream_options *s = c->pipeline.streams;
    assert_string_equal(s[0].database, "db");
    assert_string_equal(s[0].table, "t");
    assert_string_equal(s[1].database, "x");
    assert_string_equal(s[1].table, "db.t");
    assert_null(s[2].database);
    assert_string_equal(s[2].table, "a.b.c");
    assert_null(s[3].database);
    config_free(c);
}

static void a_small_spool_gets_small_segments(void **state)
{
    (void)state;
    struct config *c = parse("{\"spool\":{\"max_bytes\":\"64MiB\"}," STREAMS "}");
    assert_int_equal(c->spool.segment_bytes, 8 * MIB);
    assert_int_equal(c->pipeline.streams[0].max_record_bytes, 16 * MIB);
    assert_int_equal(c->pipeline.streams[0].dead_letters_max_bytes, 16 * MIB);
    config_free(c);
    c = parse("{\"spool\":{\"max_bytes\":\"100MiB\",\"segment_bytes\":\"50MiB\"}," STREAMS "}");
    assert_int_equal(c->spool.segment_bytes, 50 * MIB);
    config_free(c);
}

static void a_file_is_loaded_and_its_mode_watched(void **state)
{
    (void)state;
    struct config *c = NULL;
    struct spool_error error = {0};
    const char *path = temp_file("{\"clickhouse\":{\"password\":\"x\"}," STREAMS "}", 0600);
    assert_int_equal(config_load(path, &c, &error), SPOOL_OK);
    assert_string_equal(c->file, path);
    assert_int_equal(c->warning_count, 0);
    config_free(c);
    chmod(path, 0604);
    assert_int_equal(config_load(path, &c, &error), SPOOL_OK);
    assert_int_equal(c->warning_count, 1);
    config_free(c);
    unlink(path);
    assert_int_equal(config_load(path, &c, &error), SPOOL_E_IO);
    assert_null(c);
    char sentence[128];
    snprintf(sentence, sizeof(sentence), "can't read the config %s: No such file or directory",
             path);
    assert_string_equal(error.text, sentence);
    assert_int_equal(config_load("/tmp", &c, &error), SPOOL_E_IO);
    assert_string_equal(error.text, "can't read the config /tmp: Is a directory");
    setenv("SPOOLD_TEST_PASSWORD", "x", 1); /* from the environment: the file holds no secret */
    path =
        temp_file("{\"clickhouse\":{\"password\":\"${SPOOLD_TEST_PASSWORD}\"}," STREAMS "}", 0644);
    assert_int_equal(config_load(path, &c, &error), SPOOL_OK);
    assert_int_equal(c->warning_count, 0);
    config_free(c);
    unlink(path);
}

static void what_is_printed_parses_to_the_defaults(void **state)
{
    (void)state;
    struct buf out;
    struct config *c = NULL;
    struct spool_error error = {0};
    buf_init(&out, MIB);
    assert_int_equal(config_print_options(&out), SPOOL_OK);
    if (config_parse("printed", (const char *)out.data, out.len, &c, &error) != SPOOL_OK)
        fail_msg("%s", error.text);
    assert_int_equal(c->pipeline.max_bytes, 10 * GIB);
    assert_int_equal(c->pipeline.streams[0].flush_rows, 100000);
    config_free(c);
    /* and with its comments taken off it is JSON to others too */
    char *plain = strdup(buf_cstr(&out)), *to = plain;
    for (char *line = plain, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        size_t n = next ? (size_t)(++next - line) : strlen(line);
        if (line[strspn(line, " ")] != '/') {
            memmove(to, line, n);
            to += n;
        }
    }
    *to = 0;
    cJSON *tree = cJSON_Parse(plain);
    assert_non_null(tree);
    cJSON_Delete(tree);
    free(plain);
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const char *dot = strrchr(OPTIONS[i].path, '.');
        char key[96];
        snprintf(key, sizeof(key), "\"%s\": ", dot ? dot + 1 : OPTIONS[i].path);
        if (!strstr(buf_cstr(&out), key))
            fail_msg("%s is not printed", OPTIONS[i].path);
    }
    buf_free(&out);
}

/* Whether a printed line is a key, bracket or brace behind //, and not a sentence. */
static bool is_commented_key(const char *line, size_t n)
{
    const char *at = line + strspn(line, " ");
    const char *colon = memmem(line, n, "\": ", 3);
    if (strncmp(at, "// ", 3) != 0)
        return false;
    return (at[3] && strchr("{}[]", at[3])) ||
           (at[3] == '"' && colon && strcspn(at + 4, "\"") == (size_t)(colon - at) - 4);
}

static size_t line_length(const char *line)
{
    const char *end = strchr(line, '\n');
    return end ? (size_t)(end - line) : strlen(line);
}

/* The lines from one commented key to its end: itself, or its block. */
static size_t block_lines(const char *line)
{
    size_t indent = strspn(line, " "), n = line_length(line), lines = 1;
    if (line[n - 1] != '{' && line[n - 1] != '[')
        return 1;
    for (;;) {
        line += line_length(line) + 1;
        lines++;
        const char *at = line + strspn(line, " ");
        if ((size_t)(at - line) == indent && (at[3] == '}' || at[3] == ']'))
            return lines;
    }
}

/* Each commented key or block, switched on alone, leaves JSON that others read too. */
static void every_commented_key_can_be_uncommented(void **state)
{
    (void)state;
    struct buf out;
    size_t tried = 0;
    buf_init(&out, MIB);
    assert_int_equal(config_print_options(&out), SPOOL_OK);
    const char *all = buf_cstr(&out);
    for (const char *line = all; *line;) {
        size_t n = line_length(line);
        if (!is_commented_key(line, n)) {
            line += n + 1;
            continue;
        }
        struct buf text;
        struct config *c = NULL;
        struct spool_error error = {0};
        const char *begin = line;
        buf_init(&text, MIB);
        assert_int_equal(buf_append(&text, all, (size_t)(line - all)), SPOOL_OK);
        for (size_t lines = block_lines(line); lines; lines--) {
            size_t at = text.len + strspn(line, " ");
            n = line_length(line) + 1;
            assert_int_equal(buf_append(&text, line, n), SPOOL_OK);
            if (is_commented_key(line, n))
                memcpy(text.data + at, "   ", 3);
            line += n;
        }
        assert_int_equal(buf_append_str(&text, line), SPOOL_OK);
        int status = config_parse("p", (const char *)text.data, text.len, &c, &error);
        if (status == SPOOL_E_SYNTAX)
            fail_msg("%s\nfor %.*s", error.text, (int)(line - begin), begin);
        config_free(c);
        buf_free(&text);
        tried++;
    }
    assert_true(tried > 15);
    buf_free(&out);
}

static void the_schema_knows_every_option(void **state)
{
    (void)state;
    struct buf out;
    buf_init(&out, MIB);
    assert_int_equal(config_print_schema(&out), SPOOL_OK);
    cJSON *schema = cJSON_Parse(buf_cstr(&out));
    assert_non_null(schema);
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        cJSON *at = schema;
        char path[128], *rest = path, *part;
        snprintf(path, sizeof(path), "%s", OPTIONS[i].path);
        while ((part = strsep(&rest, "."))) {
            char *list = strstr(part, "[]");
            if (list)
                *list = 0;
            at = cJSON_GetObjectItemCaseSensitive(
                cJSON_GetObjectItemCaseSensitive(at, "properties"), part);
            if (list)
                at = cJSON_GetObjectItemCaseSensitive(at, "items");
        }
        if (!at)
            fail_msg("%s is not in the schema", OPTIONS[i].path);
    }
    cJSON_Delete(schema);
    buf_free(&out);
}

static void the_table_of_options_is_sound(void **state)
{
    (void)state;
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const struct option *o = &OPTIONS[i];
        size_t docs = o->doc ? strlen(o->doc) : 0;
        if (!docs || o->doc[docs - 1] != '.')
            fail_msg("%s: its doc is no sentence", o->path);
        if (o->kind != OPTION_OBJECT && o->kind != OPTION_LIST && !o->fallback && !o->example)
            fail_msg("%s: has neither default nor example", o->path);
        if (o->kind != OPTION_OBJECT && !(o->flags & OPTION_UNBUILT) && !o->size)
            fail_msg("%s: is stored nowhere", o->path);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(o->path, OPTIONS[k].path);
    }
}

static void listen_addresses_are_split(void **state)
{
    (void)state;
    char host[64];
    uint16_t port = 0;
    assert_int_equal(config_split_listen("127.0.0.1:80", host, sizeof(host), &port), 0);
    assert_string_equal(host, "127.0.0.1");
    assert_int_equal(port, 80);
    assert_int_equal(config_split_listen(":0", host, sizeof(host), &port), 0);
    assert_string_equal(host, "");
    assert_int_equal(port, 0);
    assert_int_equal(config_split_listen("[::1]:65535", host, sizeof(host), &port), 0);
    assert_string_equal(host, "::1");
    assert_int_equal(port, 65535);
    static const char *const BAD[] = {"",      "80",    "a:",       "a:b",     "a:65536", "::1:80",
                                      "[::1:", "a:80x", "a:000080", "[::1:80", "a:-1"};
    for (size_t i = 0; i < sizeof(BAD) / sizeof(BAD[0]); i++)
        if (config_split_listen(BAD[i], host, sizeof(host), &port) == 0)
            fail_msg("accepted %s", BAD[i]);
    assert_int_equal(config_split_listen("long:1", host, 4, &port), -1);
}

/* Cut anywhere, or with any byte changed, the text is parsed or refused, never more. */
static void damaged_text_is_refused_or_parsed(void **state)
{
    (void)state;
    static const char TEXT[] =
        "\xef\xbb\xbf{ // c\n \"spool\":{\"path\":\"/\\u00e9\\ud83d\\ude00\\n$$\"}, /* x */"
        "\"streams\":[{\"name\":\"a\",\"table\":\"t\",\"flush\":{\"rows\":12,\"interval\":\"1s\"},"
        "\"columns\":[{\"name\":\"c\",\"value\":[1.5e3,{\"k\":null}]}]}]}";
    size_t n = sizeof(TEXT) - 1, parsed = 0;
    for (size_t cut = 0; cut < n; cut++) {
        char *text = malloc(cut ? cut : 1); /* exactly so large: reading on is seen */
        struct config *c = NULL;
        memcpy(text, TEXT, cut);
        assert_int_not_equal(config_parse("f", text, cut, &c, NULL), SPOOL_OK);
        free(text);
    }
    for (size_t at = 0; at < n; at++) {
        for (unsigned byte = 0; byte < 256; byte++) {
            char text[sizeof(TEXT)];
            struct config *c = NULL;
            memcpy(text, TEXT, n);
            text[at] = (char)byte;
            if (config_parse("f", text, n, &c, NULL) == SPOOL_OK)
                parsed++;
            config_free(c);
        }
    }
    assert_true(parsed > n); /* at least the unchanged ones */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_those_of_the_table),
        cmocka_unit_test(every_key_lands_where_it_belongs),
        cmocka_unit_test(syntax_errors_name_line_and_column),
        cmocka_unit_test(wrong_values_are_refused_with_path_and_reason),
        cmocka_unit_test(contradictions_are_refused),
        cmocka_unit_test(column_errors_name_the_column),
        cmocka_unit_test(a_type_that_does_not_parse_is_refused_where_it_stands),
        cmocka_unit_test(settings_that_break_a_promise_are_refused_by_name),
        cmocka_unit_test(the_environment_stands_in_strings),
        cmocka_unit_test(secrets_come_from_files),
        cmocka_unit_test(secrets_are_in_no_error),
        cmocka_unit_test(kafka_properties_are_checked_and_placed),
        cmocka_unit_test(a_table_may_name_its_database),
        cmocka_unit_test(a_small_spool_gets_small_segments),
        cmocka_unit_test(a_file_is_loaded_and_its_mode_watched),
        cmocka_unit_test(what_is_printed_parses_to_the_defaults),
        cmocka_unit_test(every_commented_key_can_be_uncommented),
        cmocka_unit_test(the_schema_knows_every_option),
        cmocka_unit_test(the_table_of_options_is_sound),
        cmocka_unit_test(listen_addresses_are_split),
        cmocka_unit_test(damaged_text_is_refused_or_parsed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
