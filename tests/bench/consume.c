/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The yardstick: the cheapest loop that takes a number of records of a topic out of librdkafka.
 * Batch calls, and messages destroyed in bulk.
 *
 *     consume BROKERS GROUP TOPIC RECORDS [property=value ...]
 *
 * Prints {"records","bytes","seconds"}; seconds are from the start of the process to the last
 * record. Its CPU is for who waits for it to see.
 */
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCH 20000

static void die(const char *what, const char *why)
{
    fprintf(stderr, "consume: %s: %s\n", what, why);
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
    char text[300];

    if (rd_kafka_conf_set(conf, name, value, text, sizeof(text)) != RD_KAFKA_CONF_OK)
        die(name, text);
}

static rd_kafka_t *client_open(int argc, char **argv)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_t *client;
    char text[300];

    set(conf, "bootstrap.servers", argv[1]);
    set(conf, "group.id", argv[2]);
    set(conf, "enable.auto.commit", "false");
    set(conf, "enable.auto.offset.store", "false");
    set(conf, "auto.offset.reset", "earliest");
    set(conf, "partition.assignment.strategy", "cooperative-sticky");
    for (int i = 5; i < argc; i++) {
        char *equals = strchr(argv[i], '=');
        if (!equals)
            die(argv[i], "not name=value");
        *equals = '\0';
        set(conf, argv[i], equals + 1);
    }
    client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, text, sizeof(text));
    if (!client)
        die("client", text);
    rd_kafka_poll_set_consumer(client);
    rd_kafka_topic_partition_list_add(topics, argv[3], RD_KAFKA_PARTITION_UA);
    if (rd_kafka_subscribe(client, topics))
        die("subscribe", argv[3]);
    rd_kafka_topic_partition_list_destroy(topics);
    return client;
}

int main(int argc, char **argv)
{
    static rd_kafka_message_t *messages[BATCH];
    double started = now_s();
    uint64_t wanted, taken = 0, bytes = 0;
    rd_kafka_queue_t *queue;
    rd_kafka_t *client;

    if (argc < 5)
        die("usage", "consume BROKERS GROUP TOPIC RECORDS [property=value ...]");
    wanted = strtoull(argv[4], NULL, 10);
    client = client_open(argc, argv);
    queue = rd_kafka_queue_get_consumer(client);
    while (taken < wanted) {
        ssize_t n = rd_kafka_consume_batch_queue(queue, 100, messages, BATCH);
        for (ssize_t i = 0; i < n; i++) {
            if (messages[i]->err)
                continue;
            taken++;
            bytes += messages[i]->len;
        }
        for (ssize_t i = 0; i < n; i++)
            rd_kafka_message_destroy(messages[i]);
        if (now_s() - started > 300)
            die("records", "not all came within 300 s");
    }
    printf("{\"records\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"seconds\":%.3f}\n", taken, bytes,
           now_s() - started);
    fflush(stdout);
    rd_kafka_queue_destroy(queue);
    rd_kafka_consumer_close(client);
    rd_kafka_destroy(client);
    return 0;
}
