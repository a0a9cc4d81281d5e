/* SPDX-License-Identifier: Apache-2.0 */
/* Records into a topic (generated, from stdin, from a file) and out of it. */
#include "kafkatool.h"

#include <cjson/cJSON.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FLUSH_TIMEOUT_MS 300000

struct tally {
    int64_t delivered;
    int64_t failed;
    int64_t bytes;
};

static volatile sig_atomic_t stopping;

static void on_signal(int number)
{
    (void)number;
    stopping = 1;
}

static int64_t monotonic_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
    (void)rk;
    struct tally *tally = opaque;
    if (message->err) {
        if (tally->failed++ == 0)
            fprintf(stderr, "kafkatool: %s\n", rd_kafka_message_errstr(message));
        return;
    }
    tally->delivered++;
    tally->bytes += (int64_t)message->len;
}

static const struct property PRODUCER_DEFAULTS[] = {
    {"enable.idempotence", "true"},
    {"compression.type", "lz4"},
    {"linger.ms", "5"},
    {"queue.buffering.max.messages", "500000"},
    {"queue.buffering.max.kbytes", "1048576"},
    {"message.max.bytes", "300000000"},
    {"message.timeout.ms", "300000"},
    {"transaction.timeout.ms", "300000"},
    {NULL, NULL},
};

static rd_kafka_t *producer_new(struct tally *tally, const char *transactional_id)
{
    rd_kafka_conf_t *conf = client_conf(PRODUCER_DEFAULTS);
    if (transactional_id)
        conf_set(conf, "transactional.id", transactional_id);
    rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
    rd_kafka_conf_set_opaque(conf, tally);
    return client_new(RD_KAFKA_PRODUCER, conf);
}

/* Waits for all deliveries, prints the sum, ends the producer. */
static int producer_finish(rd_kafka_t *rk, struct tally *tally)
{
    rd_kafka_resp_err_t err = rd_kafka_flush(rk, FLUSH_TIMEOUT_MS);
    if (err)
        die("%d records undelivered: %s", rd_kafka_outq_len(rk), rd_kafka_err2str(err));
    rd_kafka_destroy(rk);
    printf("{\"delivered\":%lld,\"failed\":%lld,\"bytes\":%lld}\n", (long long)tally->delivered,
           (long long)tally->failed, (long long)tally->bytes);
    return tally->failed ? 1 : 0;
}

static void check_error(rd_kafka_error_t *error)
{
    if (error)
        die("%s", rd_kafka_error_string(error));
}

struct produce_options {
    const char *topic;
    int64_t records;
    int64_t first;
    int64_t rate; /* per second; 0 = as fast as it goes */
    uint64_t seed;
    enum record_kind kind;
    int progress;
    const char *transaction; /* "commit", "abort" or NULL */
};

static void produce_options_read(struct produce_options *o, int argc, char **argv)
{
    static const struct option OPTIONS[] = {
        {"records", required_argument, NULL, 'n'},     {"first", required_argument, NULL, 'f'},
        {"rate", required_argument, NULL, 'r'},        {"kind", required_argument, NULL, 'k'},
        {"seed", required_argument, NULL, 's'},        {"progress", no_argument, NULL, 'p'},
        {"transaction", required_argument, NULL, 't'}, {NULL, 0, NULL, 0}};
    int opt;
    optind = 0; /* 0 and not 1: main asked for another order of options */
    while ((opt = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1) {
        switch (opt) {
        case 'n':
            o->records = number_of(optarg, "records");
            break;
        case 'f':
            o->first = number_of(optarg, "first");
            break;
        case 'r':
            o->rate = number_of(optarg, "rate");
            break;
        case 's':
            o->seed = (uint64_t)number_of(optarg, "seed");
            break;
        case 'k':
            if (strcmp(optarg, "bench") != 0 && strcmp(optarg, "demo") != 0)
                usage("kind is bench or demo");
            o->kind = strcmp(optarg, "demo") == 0 ? RECORD_DEMO : RECORD_BENCH;
            break;
        case 'p':
            o->progress = 1;
            break;
        case 't':
            if (strcmp(optarg, "commit") != 0 && strcmp(optarg, "abort") != 0)
                usage("transaction is commit or abort");
            o->transaction = optarg;
            break;
        default:
            usage("produce: wrong option");
        }
    }
    if (optind + 1 != argc)
        usage("produce needs one topic");
    o->topic = argv[optind];
    if (o->records < 0)
        usage("produce needs --records");
}

/* Hands one record over, waiting while the queue is full. */
static void produce_one(rd_kafka_t *rk, rd_kafka_topic_t *topic, int partition, const void *value,
                        size_t size)
{
    while (rd_kafka_produce(topic, partition, RD_KAFKA_MSG_F_COPY, (void *)(uintptr_t)value, size,
                            NULL, 0, NULL) != 0) {
        if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL)
            die("%s", rd_kafka_err2str(rd_kafka_last_error()));
        rd_kafka_poll(rk, 10);
    }
}

static void produce_generated(rd_kafka_t *rk, const struct produce_options *o,
                              const struct tally *tally)
{
    int partitions = partition_count(rk, o->topic);
    rd_kafka_topic_t *topic = rd_kafka_topic_new(rk, o->topic, NULL);
    int64_t start = monotonic_ms(), told = start;
    for (int64_t i = 0; i < o->records && !stopping; i++) {
        while (o->rate && !stopping && (monotonic_ms() - start) * o->rate / 1000 < i)
            rd_kafka_poll(rk, 1);
        char record[RECORD_BYTES_MAX];
        int64_t id = o->first + i;
        size_t n = record_write(o->kind, o->seed, (uint64_t)id, record);
        produce_one(rk, topic, (int)(id % partitions), record, n);
        if (i % 1024 == 0 || o->rate)
            rd_kafka_poll(rk, 0);
        if (o->progress && (i % 1024 == 0 || o->rate) && monotonic_ms() - told >= 200) {
            told = monotonic_ms();
            printf("{\"delivered\":%lld}\n", (long long)tally->delivered);
            fflush(stdout);
        }
    }
    rd_kafka_topic_destroy(topic);
}

int command_produce(int argc, char **argv)
{
    struct produce_options o = {.records = -1};
    struct tally tally = {0};
    produce_options_read(&o, argc, argv);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    char transactional_id[64];
    snprintf(transactional_id, sizeof transactional_id, "kafkatool-%lld", (long long)time(NULL));
    rd_kafka_t *rk = producer_new(&tally, o.transaction ? transactional_id : NULL);
    if (o.transaction) {
        check_error(rd_kafka_init_transactions(rk, ADMIN_TIMEOUT_MS));
        check_error(rd_kafka_begin_transaction(rk));
    }
    produce_generated(rk, &o, &tally);
    if (o.transaction) {
        if (rd_kafka_flush(rk, FLUSH_TIMEOUT_MS))
            die("flush failed");
        check_error(strcmp(o.transaction, "commit") == 0
                        ? rd_kafka_commit_transaction(rk, ADMIN_TIMEOUT_MS)
                        : rd_kafka_abort_transaction(rk, ADMIN_TIMEOUT_MS));
    }
    return producer_finish(rk, &tally);
}

/* One line of stdin: {"value":..., "key":..., "headers":{...}, "timestamp":ms, "partition":p}. */
static void send_json(rd_kafka_t *rk, const char *topic, int partition, const char *line)
{
    cJSON *object = cJSON_Parse(line);
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, "value");
    const cJSON *key = cJSON_GetObjectItemCaseSensitive(object, "key");
    const cJSON *stamp = cJSON_GetObjectItemCaseSensitive(object, "timestamp");
    const cJSON *to = cJSON_GetObjectItemCaseSensitive(object, "partition");
    if (!value || !(cJSON_IsString(value) || cJSON_IsNull(value)))
        usage("not a JSON object with a value that is a string or null: %s", line);
    rd_kafka_headers_t *headers = rd_kafka_headers_new(4);
    const cJSON *header;
    cJSON_ArrayForEach(header, cJSON_GetObjectItemCaseSensitive(object, "headers"))
        rd_kafka_header_add(headers, header->string, -1, cJSON_GetStringValue(header), -1);
    const char *text = cJSON_GetStringValue(value), *key_text = cJSON_GetStringValue(key);
    rd_kafka_resp_err_t err = rd_kafka_producev(
        rk, RD_KAFKA_V_TOPIC(topic),
        RD_KAFKA_V_PARTITION(cJSON_IsNumber(to) ? to->valueint : partition),
        RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
        RD_KAFKA_V_VALUE((void *)(uintptr_t)text, text ? strlen(text) : 0),
        RD_KAFKA_V_KEY(key_text, key_text ? strlen(key_text) : 0),
        RD_KAFKA_V_TIMESTAMP(cJSON_IsNumber(stamp) ? (int64_t)stamp->valuedouble : 0),
        RD_KAFKA_V_HEADERS(headers), RD_KAFKA_V_END);
    if (err)
        die("%s", rd_kafka_err2str(err));
    cJSON_Delete(object);
}

static void send_file(rd_kafka_t *rk, rd_kafka_topic_t *topic, int partition, const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0)
        die("%s: cannot be read", path);
    long size = ftell(f);
    rewind(f);
    char *data = malloc(size > 0 ? (size_t)size : 1);
    if (!data || fread(data, 1, (size_t)size, f) != (size_t)size)
        die("%s: cannot be read", path);
    produce_one(rk, topic, partition, data, (size_t)size);
    free(data);
    fclose(f);
}

int command_send(int argc, char **argv)
{
    static const struct option OPTIONS[] = {{"plain", no_argument, NULL, 'l'},
                                            {"partition", required_argument, NULL, 'p'},
                                            {"file", required_argument, NULL, 'f'},
                                            {NULL, 0, NULL, 0}};
    int opt, plain = 0, partition = RD_KAFKA_PARTITION_UA;
    const char *path = NULL;
    optind = 0; /* 0 and not 1: main asked for another order of options */
    while ((opt = getopt_long(argc, argv, "", OPTIONS, NULL)) != -1) {
        if (opt == 'l')
            plain = 1;
        else if (opt == 'p')
            partition = (int)number_of(optarg, "partition");
        else if (opt == 'f')
            path = optarg;
        else
            usage("send: wrong option");
    }
    if (optind + 1 != argc)
        usage("send needs one topic");
    struct tally tally = {0};
    rd_kafka_t *rk = producer_new(&tally, NULL);
    rd_kafka_topic_t *topic = rd_kafka_topic_new(rk, argv[optind], NULL);
    if (path) {
        send_file(rk, topic, partition, path);
    } else {
        char *line = NULL;
        size_t room = 0;
        ssize_t n;
        while ((n = getline(&line, &room, stdin)) > 0) {
            if (line[n - 1] == '\n')
                line[--n] = '\0';
            if (plain)
                produce_one(rk, topic, partition, line, (size_t)n);
            else
                send_json(rk, argv[optind], partition, line);
            rd_kafka_poll(rk, 0);
        }
        free(line);
    }
    rd_kafka_topic_destroy(topic);
    return producer_finish(rk, &tally);
}

static void print_message(const rd_kafka_message_t *message)
{
    cJSON *line = cJSON_CreateObject();
    cJSON_AddNumberToObject(line, "partition", message->partition);
    cJSON_AddNumberToObject(line, "offset", (double)message->offset);
    cJSON_AddNumberToObject(line, "timestamp", (double)rd_kafka_message_timestamp(message, NULL));
    char *key = message->key ? strndup(message->key, message->key_len) : NULL;
    char *value = message->payload ? strndup(message->payload, message->len) : NULL;
    cJSON_AddItemToObject(line, "key", key ? cJSON_CreateString(key) : cJSON_CreateNull());
    cJSON_AddItemToObject(line, "value", value ? cJSON_CreateString(value) : cJSON_CreateNull());
    cJSON *object = cJSON_AddObjectToObject(line, "headers");
    rd_kafka_headers_t *headers;
    const char *name;
    const void *data;
    size_t size;
    if (!rd_kafka_message_headers(message, &headers)) {
        for (size_t i = 0; !rd_kafka_header_get_all(headers, i, &name, &data, &size); i++) {
            char *text = strndup(data ? data : "", size);
            cJSON_AddStringToObject(object, name, text ? text : "");
            free(text);
        }
    }
    char *text = cJSON_PrintUnformatted(line);
    puts(text ? text : "{}");
    free(text);
    free(key);
    free(value);
    cJSON_Delete(line);
}

int command_read(int argc, char **argv)
{
    if (argc != 2)
        usage("read needs one topic");
    static const struct property DEFAULTS[] = {
        {"group.id", "kafkatool-read"},    {"enable.auto.commit", "false"},
        {"auto.offset.reset", "earliest"}, {"fetch.wait.max.ms", "50"},
        {"enable.partition.eof", "true"},  {NULL, NULL},
    };
    rd_kafka_t *rk = client_new(RD_KAFKA_CONSUMER, client_conf(DEFAULTS));
    int left = partition_count(rk, argv[1]);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(left);
    for (int p = 0; p < left; p++)
        rd_kafka_topic_partition_list_add(list, argv[1], p)->offset = RD_KAFKA_OFFSET_BEGINNING;
    rd_kafka_assign(rk, list);
    while (left > 0) {
        rd_kafka_message_t *message = rd_kafka_consumer_poll(rk, ADMIN_TIMEOUT_MS);
        if (!message)
            die("%s: no answer from the broker", argv[1]);
        if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
            left--;
        else if (message->err)
            die("%s: %s", argv[1], rd_kafka_message_errstr(message));
        else
            print_message(message);
        rd_kafka_message_destroy(message);
    }
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_consumer_close(rk);
    rd_kafka_destroy(rk);
    return 0;
}
