/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/options.h"

#include <stdio.h>
#include <string.h>

#include "base/limits.h"
#include "daemon/config.h"

#define SECOND ((uint64_t)1000)
#define MINUTE (60 * SECOND)
#define HOUR   (60 * MINUTE)

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* Where a row stores. */
#define IN(type, member)    .offset = offsetof(type, member), .size = sizeof(((type *)0)->member)
#define COUNT(type, member) .count_offset = offsetof(type, member)
#define CONFIG(member)      IN(struct config, member)
#define STREAM(member)      IN(struct stream_options, member)
#define COLUMN(member)      IN(struct column_wish, member)
#define TOKEN(member)       IN(struct config_token, member)
#define RANGE(low, high)    .min = (low), .max = (high)

/*
 * In each object the last row is one that --print-config writes out (it has a default), where there
 * is any: then each commented line can be uncommented as it stands, comma and all.
 */
const struct option OPTIONS[] = {
    {"spool", OPTION_OBJECT, .doc = "The spool on local disk."},
    {"spool.path", OPTION_STRING, .fallback = "\"/var/lib/spoold\"", CONFIG(spool.path),
     .doc = "Its directory. One spoold a directory; a local file system, not NFS."},
    {"spool.max_bytes", OPTION_SIZE, .fallback = "\"10GiB\"", RANGE(16 * MIB, 1024 * 1024 * GIB),
     CONFIG(pipeline.max_bytes), .doc = "The most it may take, everything together."},
    {"spool.min_free_bytes", OPTION_SIZE, .fallback = "\"1GiB\"", RANGE(0, 1024 * 1024 * GIB),
     CONFIG(pipeline.min_free_bytes),
     .doc = "What it leaves free of the file system, whatever max_bytes says."},
    {"spool.segment_bytes", OPTION_SIZE, .example = "\"64MiB\"", RANGE(MIB, GIB),
     CONFIG(spool.segment_bytes),
     .doc =
         "Size at which a new segment file is begun; each stream's newest stays. Default: 64MiB, "
         "or less where max_bytes or the number of streams asks for it."},
    {"spool.on_full", OPTION_CHOICE, .fallback = "\"pause\"",
     .words = WORDS("pause", "drop_oldest"), CONFIG(pipeline.on_full),
     .doc = "At its bound: pause the intake, or drop the oldest rows (counted and named)."},
    {"spool.compression", OPTION_CHOICE, .fallback = "\"lz4\"",
     .words = WORDS("lz4", "zstd", "none"), CONFIG(pipeline.compression),
     .doc = "Of blocks, on disk and on the wire. zstd is about half the size for more CPU."},
    {"spool.keep_acknowledged", OPTION_TIME, .fallback = "\"5m\"", RANGE(0, 30 * 24 * HOUR),
     CONFIG(pipeline.keep_acknowledged_ms),
     .doc = "How long inserted segments are kept, so that a server that lost its last seconds can "
            "be sent them again. Gives way to the bounds."},

    {"kafka", OPTION_OBJECT, .doc = "The Kafka consumer; needed where a stream has topics."},
    {"kafka.brokers", OPTION_JOINED, .example = "[\"127.0.0.1:9092\"]", RANGE(1, 1000),
     CONFIG(kafka.brokers), .doc = "\"host:port\" of some brokers of the cluster."},
    {"kafka.group_id", OPTION_STRING, .fallback = "\"spoold\"", CONFIG(kafka.group_id),
     .doc = "The consumer group. Several spoolds in one group share the partitions."},
    {"kafka.group_instance_id", OPTION_STRING, .example = "\"spoold-1\"",
     CONFIG(kafka.group_instance_id),
     .doc = "Static membership, unique in the group. Default: made from the spool's uuid and the "
            "topics. Give another name where topics come or go: brokers leave a member that comes "
            "back the partitions it had."},
    {"kafka.properties", OPTION_PAIRS, .example = "{\"security.protocol\": \"SASL_SSL\"}",
     RANGE(0, 1000), CONFIG(kafka.properties), COUNT(struct config, kafka.property_count),
     .doc = "Any properties of librdkafka: TLS, SASL, sizes. Those that would break a promise are "
            "refused."},
    {"kafka.auto_offset_reset", OPTION_CHOICE, .fallback = "\"earliest\"",
     .words = WORDS("earliest", "latest", "error"), CONFIG(kafka.auto_offset_reset),
     .doc = "Where to begin in a partition the group has no offset for, or whose offset is gone."},

    {"clickhouse", OPTION_OBJECT, .doc = "The ClickHouse servers, by their HTTP interface."},
    {"clickhouse.urls", OPTION_STRINGS, .fallback = "[\"http://127.0.0.1:8123\"]",
     RANGE(1, LIMIT_ENDPOINTS), CONFIG(pipeline.clickhouse.urls),
     COUNT(struct config, pipeline.clickhouse.url_count),
     .doc = "Tried in order; http or https, without user and password."},
    {"clickhouse.user", OPTION_STRING, .fallback = "\"default\"", CONFIG(pipeline.clickhouse.user),
     .doc = "Name to log in with."},
    {"clickhouse.password", OPTION_STRING, OPTION_SECRET, .example = "\"${CLICKHOUSE_PASSWORD}\"",
     CONFIG(pipeline.clickhouse.password),
     .doc = "Its password, best taken from the environment or from password_file."},
    {"clickhouse.password_file", OPTION_SECRET_FILE, .example = "\"/etc/spoold/password\"",
     CONFIG(pipeline.clickhouse.password),
     .doc = "A file that holds the password; a newline at its end does not count."},
    {"clickhouse.database", OPTION_STRING, .fallback = "\"default\"",
     CONFIG(pipeline.clickhouse.database), .doc = "Database of streams that name none."},
    {"clickhouse.connect_timeout", OPTION_TIME, .fallback = "\"5s\"", RANGE(100, 5 * MINUTE),
     CONFIG(pipeline.clickhouse.connect_timeout_ms), .doc = "For a connection to stand."},
    {"clickhouse.stall_timeout", OPTION_TIME, .fallback = "\"30s\"", RANGE(SECOND, HOUR),
     CONFIG(pipeline.clickhouse.stall_timeout_ms),
     .doc = "An insert fails when no byte moved for so long."},
    {"clickhouse.ask_delay", OPTION_TIME, .fallback = "\"1s\"", RANGE(0, 10 * MINUTE),
     CONFIG(pipeline.ask_delay_ms),
     .doc = "What was cut or left behind may still be on its way to the server so long; a table is "
            "asked which rows it has no sooner. More behind a proxy that keeps bodies for longer."},
    {"clickhouse.table_check_interval", OPTION_TIME, .fallback = "\"1m\"", RANGE(SECOND, 24 * HOUR),
     CONFIG(pipeline.table_check_ms),
     .doc = "How often a table is looked at again while all is well, so that new columns are seen. "
            "It also is after an error that speaks of columns, and when a server comes back."},
    {"clickhouse.settings", OPTION_PAIRS, .example = "{\"insert_quorum\": \"2\"}", RANGE(0, 1000),
     CONFIG(pipeline.clickhouse.settings), COUNT(struct config, pipeline.clickhouse.setting_count),
     .doc = "Settings sent with every insert. Those that would break a promise are refused."},
    {"clickhouse.proxy", OPTION_STRING, .example = "\"http://proxy:3128\"",
     CONFIG(pipeline.clickhouse.proxy),
     .doc = "HTTP proxy. The environment's proxies are not used."},
    {"clickhouse.tls", OPTION_OBJECT, .doc = "For https URLs."},
    {"clickhouse.tls.ca_file", OPTION_STRING, .example = "\"/etc/spoold/ca.pem\"",
     CONFIG(pipeline.clickhouse.tls.ca_file),
     .doc = "Authorities to trust. Default: the system's."},
    {"clickhouse.tls.cert_file", OPTION_STRING, .example = "\"/etc/spoold/client.pem\"",
     CONFIG(pipeline.clickhouse.tls.cert_file), .doc = "Client certificate."},
    {"clickhouse.tls.key_file", OPTION_STRING, .example = "\"/etc/spoold/client.key\"",
     CONFIG(pipeline.clickhouse.tls.key_file), .doc = "Its key."},
    {"clickhouse.tls.insecure", OPTION_BOOL, .fallback = "false",
     CONFIG(pipeline.clickhouse.tls.insecure), .doc = "Do not verify the server. For tests."},

    {"http", OPTION_OBJECT, .doc = "The TCP listener: health, metrics, status."},
    {"http.listen", OPTION_STRING, .example = "\"127.0.0.1:9364\"", CONFIG(http.listen),
     .doc = "\"host:port\", \":port\" for every address. Off unless set."},
    {"http.tls", OPTION_OBJECT, .doc = "Serves https where both files are given."},
    {"http.tls.cert_file", OPTION_STRING, .example = "\"/etc/spoold/server.pem\"",
     CONFIG(http.tls_cert_file), .doc = "Certificate (PEM), with its chain."},
    {"http.tls.key_file", OPTION_STRING, .example = "\"/etc/spoold/server.key\"",
     CONFIG(http.tls_key_file), .doc = "Its key (PEM)."},
    {"http.tokens", OPTION_LIST, RANGE(0, 1000), CONFIG(http.tokens),
     COUNT(struct config, http.token_count), .element_size = sizeof(struct config_token),
     .doc = "Who may send records."},
    {"http.tokens[].token", OPTION_STRING, OPTION_SECRET, .example = "\"${INGEST_TOKEN}\"",
     TOKEN(token), .doc = "The bearer token, or token_file."},
    {"http.tokens[].token_file", OPTION_SECRET_FILE, .example = "\"/etc/spoold/token\"",
     TOKEN(token), .doc = "A file that holds it; a newline at its end does not count."},
    {"http.tokens[].name", OPTION_STRING, .example = "\"sensors\"", TOKEN(name),
     .doc = "What the log calls its holder."},
    {"http.tokens[].streams", OPTION_STRINGS, .example = "[\"events\"]", RANGE(0, LIMIT_STREAMS),
     TOKEN(streams), COUNT(struct config_token, stream_count),
     .doc = "The streams it opens. Default: all."},
    {"http.max_body_bytes", OPTION_SIZE, .fallback = "\"64MiB\"", RANGE(KIB, GIB),
     CONFIG(http.max_body_bytes), .doc = "The largest request body taken."},

    {"control", OPTION_OBJECT, .doc = "The Unix socket that spoolctl talks to."},
    {"control.socket", OPTION_STRING, .fallback = "\"/run/spoold/control.sock\"",
     CONFIG(control_socket), .doc = "Its path, at most 100 bytes. Only the owner may connect."},

    {"log", OPTION_OBJECT, .doc = "The log, on standard error."},
    {"log.level", OPTION_CHOICE, .fallback = "\"info\"",
     .words = WORDS("debug", "info", "warn", "error"), CONFIG(log_level),
     .doc = "The least that is written."},
    {"log.format", OPTION_CHOICE, .fallback = "\"text\"", .words = WORDS("text", "json"),
     CONFIG(log_format), .doc = "A line of words, or one JSON object a line."},

    {"shutdown_timeout", OPTION_TIME, .fallback = "\"10s\"", RANGE(0, HOUR),
     CONFIG(shutdown_timeout_ms),
     .doc = "How long SIGTERM delivers what waits; the rest stays in the spool."},
    {"error_classes", OPTION_CLASSES, .example = "{\"241\": \"transient\"}", RANGE(0, 1000),
     CONFIG(overrides), COUNT(struct config, override_count),
     .doc = "Your verdict on codes of ClickHouse: transient, upload, schema, too_big, environment, "
            "data or unknown."},

    {"streams", OPTION_LIST, OPTION_REQUIRED, RANGE(1, LIMIT_STREAMS), CONFIG(pipeline.streams),
     COUNT(struct config, pipeline.stream_count), .element_size = sizeof(struct stream_options),
     .doc = "The flows, each into one table."},
    {"streams[].name", OPTION_STRING, OPTION_REQUIRED, .example = "\"events\"", STREAM(name),
     .doc = "Its name for ever: lower case letters, digits, _ and -, at most 64."},
    {"streams[].topics", OPTION_STRINGS, .example = "[\"events\"]", RANGE(0, 1000), STREAM(topics),
     COUNT(struct stream_options, topic_count),
     .doc = "Kafka topics, by their exact names. A topic belongs to one stream."},
    {"streams[].table", OPTION_STRING, OPTION_REQUIRED, .example = "\"events\"", STREAM(table),
     .doc = "The table; \"database.table\" where database is not given."},
    {"streams[].database", OPTION_STRING, .example = "\"default\"", STREAM(database),
     .doc = "Its database. Default: clickhouse.database."},
    {"streams[].columns", OPTION_LIST, RANGE(1, LIMIT_COLUMNS), STREAM(schema.wishes),
     COUNT(struct stream_options, schema.wish_count), .element_size = sizeof(struct column_wish),
     .doc = "What goes where. Default: each column of the table takes the key of its name."},
    {"streams[].columns[].name", OPTION_STRING, OPTION_REQUIRED, .example = "\"id\"", COLUMN(name),
     .doc = "The table's column."},
    {"streams[].columns[].type", OPTION_STRING, .example = "\"UInt64\"", COLUMN(type),
     .doc = "Its type. Default: as the table has it."},
    {"streams[].columns[].from", OPTION_STRING, .example = "\"user.id\"", COLUMN(from),
     .doc = "A key, with dots into objects, or $record, $rest, $topic, $partition, $offset, $key, "
            "$timestamp, $headers, $origin, $received_at. Default: the column's name."},
    {"streams[].columns[].value", OPTION_JSON, .example = "\"edge-1\"", COLUMN(value),
     .doc = "A constant, instead of from."},
    {"streams[].columns[].default", OPTION_JSON, .example = "0", COLUMN(default_json),
     .doc = "For records without the key. Default: the table's, else the type's zero."},
    {"streams[].columns[].required", OPTION_BOOL, .fallback = "false", COLUMN(required),
     .doc = "Refuse records without the key."},
    {"streams[].columns[].truncate", OPTION_BOOL, .fallback = "false", COLUMN(truncate),
     .doc = "Cut a decimal's digits beyond the scale instead of refusing the record."},
    {"streams[].create_table", OPTION_OBJECT, STREAM(create_table),
     .doc = "Make the table where it is absent; every column then needs a type."},
    {"streams[].create_table.engine", OPTION_STRING, .fallback = "\"MergeTree\"",
     STREAM(create.engine), .doc = "As in CREATE TABLE ... ENGINE = ."},
    {"streams[].create_table.order_by", OPTION_STRING, .fallback = "\"tuple()\"",
     STREAM(create.order_by), .doc = "Expression of ORDER BY."},
    {"streams[].create_table.partition_by", OPTION_STRING, .example = "\"toYYYYMM(timestamp)\"",
     STREAM(create.partition_by), .doc = "Expression of PARTITION BY."},
    {"streams[].create_table.ttl", OPTION_STRING, .example = "\"timestamp + INTERVAL 30 DAY\"",
     STREAM(create.ttl), .doc = "Expression of TTL."},
    {"streams[].create_table.settings", OPTION_PAIRS,
     .example = "{\"index_granularity\": \"8192\"}", RANGE(0, 1000), STREAM(create.settings),
     COUNT(struct stream_options, create.setting_count), .doc = "Settings of the table."},
    {"streams[].create_table.origin_columns", OPTION_BOOL, .fallback = "false",
     STREAM(origin_columns),
     .doc = "Add columns for topic, partition and offset, by which no row can be doubled."},
    {"streams[].format", OPTION_CHOICE, .fallback = "\"auto\"",
     .words = WORDS("auto", "native", "json"), STREAM(schema.format),
     .doc = "Of blocks. auto is native where every type of the table is known, else JSON text."},
    {"streams[].schema_registry_framing", OPTION_BOOL, .fallback = "false",
     STREAM(schema.schema_registry_framing),
     .doc = "Records begin with a zero byte and a schema id of four bytes, which are stripped."},
    {"streams[].strict", OPTION_BOOL, .fallback = "false", STREAM(schema.strict),
     .doc = "Refuse records in which a column that is not Nullable has no value."},
    {"streams[].unknown_keys", OPTION_CHOICE, .fallback = "\"ignore\"",
     .words = WORDS("ignore", "refuse"), STREAM(schema.unknown_keys),
     .doc = "What to do with a record that has keys no column takes."},
    {"streams[].max_record_bytes", OPTION_SIZE, .fallback = "\"64MiB\"", RANGE(KIB, 256 * MIB),
     STREAM(max_record_bytes),
     .doc = "A larger record becomes a dead letter. In a small spool the default is less: "
            "max_bytes / 2 / (streams + 1)."},
    {"streams[].on_bad_record", OPTION_CHOICE, .fallback = "\"dead_letter\"",
     .words = WORDS("dead_letter", "hold"), STREAM(on_bad_record),
     .doc = "Put a record that does not fit to the dead letters, or hold the stream."},
    {"streams[].bad_ratio", OPTION_RATIO, .fallback = "0.02", STREAM(bad_ratio),
     .doc = "When the server refuses more of a batch than this, the stream is held: it is the "
            "table that changed."},
    {"streams[].on_schema_change", OPTION_CHOICE, .fallback = "\"hold\"",
     .words = WORDS("hold", "reencode"), STREAM(on_schema_change),
     .doc = "When the table changed under spooled rows: hold them, or encode them anew."},
    {"streams[].flush", OPTION_OBJECT, .doc = "When a batch goes: at the first of these."},
    {"streams[].flush.rows", OPTION_INTEGER, .fallback = "100000", RANGE(1, 10000000),
     STREAM(flush_rows), .doc = "Rows that wait."},
    {"streams[].flush.bytes", OPTION_SIZE, .fallback = "\"64MiB\"", RANGE(KIB, 4 * GIB),
     STREAM(flush_bytes), .doc = "Bytes that wait, before compression."},
    {"streams[].flush.interval", OPTION_TIME, .fallback = "\"1s\"", RANGE(1, 24 * HOUR),
     STREAM(flush_interval_ms), .doc = "Age of the oldest row that waits."},
    {"streams[].flush.max_in_flight", OPTION_INTEGER, .fallback = "2", RANGE(1, 64),
     STREAM(max_in_flight), .doc = "Batches under way at a time."},
    {"streams[].dead_letters", OPTION_OBJECT, .doc = "Records that can't be inserted."},
    {"streams[].dead_letters.table", OPTION_STRING, .example = "\"events_dead\"",
     STREAM(dead_letters_table), .doc = "A table that gets them too."},
    {"streams[].dead_letters.topic", OPTION_STRING, .example = "\"events-dead\"",
     STREAM(dead_letters_topic), .doc = "A topic that gets them too."},
    {"streams[].dead_letters.max_bytes", OPTION_SIZE, .fallback = "\"256MiB\"",
     RANGE(MIB, 1024 * GIB), STREAM(dead_letters_max_bytes),
     .doc = "At this bound the stream is held, and drops nothing. In a small spool the default is "
            "less: max_bytes / 4 / streams."},
};
const size_t OPTION_COUNT = sizeof(OPTIONS) / sizeof(OPTIONS[0]);

bool option_is_child(const struct option *option, const char *prefix, const char **name)
{
    size_t n = strlen(prefix);

    if (strncmp(option->path, prefix, n) != 0 || strpbrk(option->path + n, ".["))
        return false;
    *name = option->path + n;
    return **name != 0;
}

const struct option *option_find(const char *prefix, const char *wanted, size_t n)
{
    const char *name;

    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (option_is_child(&OPTIONS[i], prefix, &name) && strlen(name) == n &&
            memcmp(name, wanted, n) == 0)
            return &OPTIONS[i];
    return NULL;
}

/* Edit distance (Levenshtein; a swap of neighbours counts as two); words over 48 are far away. */
static size_t distance(const char *a, const char *b)
{
    size_t row[49];
    size_t na = strlen(a), nb = strlen(b);

    if (na > 48 || nb > 48)
        return 99;
    for (size_t j = 0; j <= nb; j++)
        row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = best;
        }
    }
    return row[nb];
}

/* Near is: at most half of the longer word differs. */
static bool is_nearer(const char *word, const char *wrong, size_t *best)
{
    size_t d = distance(word, wrong);
    size_t longer = strlen(word) > strlen(wrong) ? strlen(word) : strlen(wrong);

    if (d >= *best || d > longer / 2)
        return false;
    *best = d;
    return true;
}

const char *option_nearest(const char *prefix, const char *wrong)
{
    const char *name, *nearest = NULL;
    size_t best = 99;

    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (option_is_child(&OPTIONS[i], prefix, &name) && is_nearer(name, wrong, &best))
            nearest = name;
    return nearest;
}

const char *word_nearest(const char *const *words, const char *wrong)
{
    const char *nearest = NULL;
    size_t best = 99;

    for (; *words; words++)
        if (is_nearer(*words, wrong, &best))
            nearest = *words;
    return nearest;
}

const struct option *option_elsewhere(const char *name)
{
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const char *dot = strrchr(OPTIONS[i].path, '.');
        if (strcmp(dot ? dot + 1 : OPTIONS[i].path, name) == 0)
            return &OPTIONS[i];
    }
    return NULL;
}

struct unit {
    const char *name;
    uint64_t factor;
};

/* The largest unit that divides the number; units descend and end with a factor of 1. */
static const char *unit_text(uint64_t v, const struct unit *units, char *buffer, size_t n)
{
    while (units->factor > 1 && (v == 0 || v % units->factor))
        units++;
    snprintf(buffer, n, "%llu%s", (unsigned long long)(v / units->factor), v ? units->name : "");
    return buffer;
}

const char *option_size_text(uint64_t bytes, char *buffer, size_t n)
{
    static const struct unit UNITS[] = {{"GiB", GIB}, {"MiB", MIB}, {"KiB", KIB}, {"", 1}};
    return unit_text(bytes, UNITS, buffer, n);
}

const char *option_time_text(uint64_t ms, char *buffer, size_t n)
{
    static const struct unit UNITS[] = {{"h", HOUR}, {"m", MINUTE}, {"s", SECOND}, {"ms", 1}};
    return unit_text(ms, UNITS, buffer, n);
}
