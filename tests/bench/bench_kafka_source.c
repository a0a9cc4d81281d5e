/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What taking records costs: the Kafka source with its runs released in pool jobs and nothing else
 * done, against the cheapest loop librdkafka allows (batch call, messages destroyed in bulk).
 * Each measurement is a process of its own; the two ways alternate.
 *
 *   bench_kafka_source BROKERS [RECORDS [PAIRS [PARTITIONS]]]
 */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>
#include <uv.h>

#include "base/clock.h"
#include "source/kafka.h"

#define RECORD_BYTES 125
#define BULK         20000
#define PAIRS_MAX    64

struct result {
    double cpu, wall;
    uint64_t anon_kib;
};

static const char *brokers;
static char topic[64];
static uint64_t records = 2000000;
static int partitions = 4;

static void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_kafka_source: %s: %s\n", what, why);
    exit(1);
}

static void conf_set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
    char text[256];
    if (rd_kafka_conf_set(conf, name, value, text, sizeof(text)) != RD_KAFKA_CONF_OK)
        die(name, text);
}

static void fill(void)
{
    char text[256], payload[RECORD_BYTES + 1];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_t *producer;
    rd_kafka_NewTopic_t *make;
    rd_kafka_queue_t *queue;
    uint64_t seed = 1;

    conf_set(conf, "bootstrap.servers", brokers);
    conf_set(conf, "compression.type", "lz4");
    conf_set(conf, "linger.ms", "50");
    conf_set(conf, "queue.buffering.max.messages", "1000000");
    producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    if (!producer)
        die("producer", text);
    snprintf(topic, sizeof(topic), "bench-source-%d", (int)getpid());
    make = rd_kafka_NewTopic_new(topic, partitions, 1, text, sizeof(text));
    queue = rd_kafka_queue_new(producer);
    rd_kafka_CreateTopics(producer, &make, 1, NULL, queue);
    rd_kafka_event_destroy(rd_kafka_queue_poll(queue, 30000));
    rd_kafka_queue_destroy(queue);
    rd_kafka_NewTopic_destroy(make);
    for (uint64_t i = 0; i < records; i++) {
        int n;
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        n = snprintf(payload, sizeof(payload),
                     "{\"id\":%010" PRIu64 ",\"name\":\"user-%08" PRIx64
                     "\",\"kind\":\"click\",\"value\":%.6f,"
                     "\"at\":\"2026-01-01T00:00:00.%03u\",\"region\":\"north\",\"ok\":true}",
                     i, seed >> 32, (double)(seed >> 40) / 1000, (unsigned)(i % 1000));
        while (rd_kafka_producev(producer, RD_KAFKA_V_TOPIC(topic),
                                 RD_KAFKA_V_PARTITION((int32_t)(i % (uint64_t)partitions)),
                                 RD_KAFKA_V_VALUE(payload, (size_t)n),
                                 RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
                                 RD_KAFKA_V_END) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
            rd_kafka_flush(producer, 100);
    }
    rd_kafka_flush(producer, 60000);
    rd_kafka_destroy(producer);
}

/* The most anonymous memory seen; asked for now and then, for it costs a few microseconds. */
static void see_memory(struct result *result)
{
    char line[256];
    unsigned long kib;
    FILE *f = fopen("/proc/self/status", "r");

    while (f && fgets(line, sizeof(line), f))
        if (sscanf(line, "RssAnon: %lu kB", &kib) == 1 && kib > result->anon_kib)
            result->anon_kib = kib;
    if (f)
        fclose(f);
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void consume_cheapest(struct result *result)
{
    static rd_kafka_message_t *messages[BULK];
    char text[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(partitions);
    rd_kafka_t *client;
    rd_kafka_queue_t *queue;
    uint64_t seen = 0;

    conf_set(conf, "bootstrap.servers", brokers);
    conf_set(conf, "group.id", topic);
    conf_set(conf, "enable.auto.commit", "false");
    client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, text, sizeof(text));
    if (!client)
        die("consumer", text);
    rd_kafka_poll_set_consumer(client);
    for (int i = 0; i < partitions; i++)
        rd_kafka_topic_partition_list_add(list, topic, i)->offset = 0;
    rd_kafka_assign(client, list);
    queue = rd_kafka_queue_get_consumer(client);
    for (size_t held = 0, round = 0; seen < records;) {
        ssize_t n = rd_kafka_consume_batch_queue(queue, 100, messages + held, BULK - held);
        for (ssize_t i = 0; i < n; i++)
            seen += !messages[held + (size_t)i]->err;
        held += n > 0 ? (size_t)n : 0;
        if (held < BULK && seen < records)
            continue;
        if (++round % 10 == 0)
            see_memory(result);
        while (held > 0)
            rd_kafka_message_destroy(messages[--held]);
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_destroy(client);
}

/* --- the source ----------------------------------------------------------------------------- */

struct taker {
    uv_loop_t loop;
    struct kafka_source *source;
    struct result *result;
    uint64_t seen, done, runs;
    bool closed;
};

struct release {
    uv_work_t work;
    struct taker *taker;
    struct record_run *run;
    struct kafka_partition *partition;
    uint32_t count;
    uint64_t bytes;
};

static void on_assigned(void *arg, struct kafka_partition *p,
                        const struct kafka_committed *committed, void **user)
{
    (void)arg;
    (void)committed;
    *user = p;
    kafka_partition_start(p, 0, NULL);
}

static void release_work(uv_work_t *work)
{
    struct release *release = work->data;
    release->run->ops->release(release->run);
}

static void release_after(uv_work_t *work, int status)
{
    struct release *release = work->data;
    struct taker *taker = release->taker;

    (void)status;
    taker->done += release->count;
    kafka_run_done(taker->source, release->partition, release->count, release->bytes);
    free(release);
}

static void on_run(void *arg, struct kafka_partition *p, struct record_run *run)
{
    struct taker *taker = arg;
    struct release *release = calloc(1, sizeof(*release));

    assert(release);
    release->taker = taker;
    release->run = run;
    release->partition = p;
    release->count = run->count;
    release->bytes = run->bytes;
    release->work.data = release;
    taker->seen += run->count;
    if (++taker->runs % 20 == 0)
        see_memory(taker->result);
    uv_queue_work(&taker->loop, &release->work, release_work, release_after);
}

static void on_revoking(void *arg, struct kafka_partition *const *list, size_t count, bool lost,
                        uint32_t max_ms)
{
    (void)list;
    (void)count;
    (void)lost;
    (void)max_ms;
    kafka_revoke_done(((struct taker *)arg)->source);
}

static void on_gap(void *arg, struct kafka_partition *p, int64_t from, int64_t to)
{
    (void)arg;
    (void)p;
    (void)from;
    (void)to;
}

static void on_range(void *arg, struct kafka_partition *p, int64_t position)
{
    (void)arg;
    (void)p;
    (void)position;
}

static void on_begun(void *arg, struct kafka_partition *p, int64_t offset)
{
    (void)arg;
    (void)p;
    (void)offset;
}

static void on_fatal(void *arg, const char *text)
{
    (void)arg;
    die("fatal", text);
}

static void on_committed(void *arg, struct kafka_partition *p, int64_t offset, int status,
                         const char *text)
{
    (void)arg;
    (void)p;
    (void)offset;
    (void)status;
    (void)text;
}

static void on_closed(void *arg)
{
    ((struct taker *)arg)->closed = true;
}

static void on_rebalanced(void *arg)
{
    (void)arg;
}

static void consume_source(struct result *result)
{
    static const struct kafka_callbacks callbacks = {
        .assigned = on_assigned,
        .run = on_run,
        .revoking = on_revoking,
        .gap = on_gap,
        .out_of_range = on_range,
        .new_log = on_range,
        .traced = on_begun,
        .begun = on_begun,
        .fatal = on_fatal,
        .rebalanced = on_rebalanced,
        .committed = on_committed,
    };
    struct taker taker = {.result = result};
    const char *topics[] = {topic};
    struct kafka_options options = {
        .brokers = brokers, .group_id = topic, .topics = topics, .topic_count = 1};
    struct spool_error error;

    uv_loop_init(&taker.loop);
    if (kafka_source_create(&taker.loop, &options, &callbacks, &taker, &taker.source, &error) ||
        kafka_source_start(taker.source, &error))
        die("source", error.text);
    while (taker.done < records)
        uv_run(&taker.loop, UV_RUN_ONCE);
    kafka_source_close(taker.source, true, on_closed, &taker);
    while (!taker.closed)
        uv_run(&taker.loop, UV_RUN_ONCE);
    uv_loop_close(&taker.loop);
}

static struct result measure(void (*consume)(struct result *))
{
    struct result result = {0};
    int pipe_fd[2], status;
    pid_t child;

    if (pipe(pipe_fd))
        die("pipe", "failed");
    fflush(stdout);
    child = fork();
    if (child == 0) {
        uint64_t begun = clock_monotonic_ns();
        consume(&result);
        result.wall = (double)(clock_monotonic_ns() - begun) / 1e9;
        result.cpu = cpu_seconds();
        if (write(pipe_fd[1], &result, sizeof(result)) != (ssize_t)sizeof(result))
            _exit(1);
        _exit(0);
    }
    if (read(pipe_fd[0], &result, sizeof(result)) != (ssize_t)sizeof(result))
        die("child", "failed");
    waitpid(child, &status, 0);
    close(pipe_fd[0]);
    close(pipe_fd[1]);
    return result;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    double ratio[PAIRS_MAX], millions;
    int pairs = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 5;

    if (argc < 2 || pairs < 1 || pairs > PAIRS_MAX) {
        fprintf(stderr, "usage: bench_kafka_source BROKERS [RECORDS [PAIRS [PARTITIONS]]]\n");
        return 2;
    }
    brokers = argv[1];
    if (argc > 2)
        records = strtoull(argv[2], NULL, 10);
    if (argc > 4)
        partitions = (int)strtol(argv[4], NULL, 10);
    millions = (double)records / 1e6;
    /* Filled by a child, so that the ones measured inherit no client. */
    snprintf(topic, sizeof(topic), "bench-source-%d", (int)getpid());
    pid_t filler = fork();
    int status;
    if (filler == 0) {
        fill();
        _exit(0);
    }
    waitpid(filler, &status, 0);
    snprintf(topic, sizeof(topic), "bench-source-%d", (int)filler);
    for (int i = 0; i < pairs; i++) {
        struct result cheap = measure(consume_cheapest), ours = measure(consume_source);
        ratio[i] = ours.cpu / cheap.cpu;
        printf("cheapest: %.3f CPU-s/1M, %.2f s, %" PRIu64 " MiB anon   "
               "source: %.3f CPU-s/1M, %.2f s, %" PRIu64 " MiB anon   ratio %.2f\n",
               cheap.cpu / millions, cheap.wall, cheap.anon_kib / 1024, ours.cpu / millions,
               ours.wall, ours.anon_kib / 1024, ratio[i]);
    }
    qsort(ratio, (size_t)pairs, sizeof(ratio[0]), compare);
    printf("kafka source CPU against the cheapest loop: median %.2f (%.2f to %.2f)\n",
           ratio[pairs / 2], ratio[0], ratio[pairs - 1]);
    return 0;
}
