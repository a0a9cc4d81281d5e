/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests of the Kafka source share: a mock cluster, a producer, and a small pipeline that
 * checks the one thing that matters: every partition's offsets come in order, each once.
 */
#ifndef TESTS_KAFKA_RIG_H
#define TESTS_KAFKA_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <uv.h>

#include "base/log.h"
#include "source/kafka_int.h"

#define RIG_PARTITIONS_MAX 1024
#define RIG_DEADLINE_MS    60000
#define UNUSED             __attribute__((unused))

struct cluster {
    rd_kafka_t *producer;
    rd_kafka_mock_cluster_t *mock;
    const char *brokers;
};

struct rig;

struct seat { /* a partition as the pipeline sees it */
    struct rig *rig;
    struct kafka_partition *partition;
    bool owned; /* assigned and not yet asked back */
    int64_t committed;
    char metadata[64];
    int64_t low, high;
    int64_t first, last; /* offsets seen; -1 */
    uint64_t records;
    uint64_t bytes;
    int64_t gap_from, gap_to;
    int64_t out_of_range, new_log, traced, begun;
    int64_t commit_ok, commit_failed;
    bool last_of_log; /* so was its last run */
};

struct parked_run {
    struct parked_run *next;
    struct record_run *run;
    struct kafka_partition *partition;
};

struct rig {
    uv_loop_t loop;
    uv_timer_t deadline, wait;
    uv_timer_t tick; /* uv_run returns at latest after a tick: a timer may have met the condition */
    bool expired, waited;
    struct kafka_source *source;
    const char *topic;
    struct seat seats[RIG_PARTITIONS_MAX]; /* by partition number */
    bool hold_assigned;                    /* don't answer assigned() */
    int64_t begin;                         /* where to begin without a committed offset */
    bool resume_committed;                 /* else begin at the committed offset */
    bool hold_runs;
    bool hold_revoke;
    bool want_headers;
    bool gaps_allowed; /* aborted records and control records leave gaps */
    struct parked_run *parked;
    uint64_t runs, records, assigned, revoked, lost, tombstones, jobs;
    uint64_t held_max;
    uint64_t tellings, rebalanced;
    struct {
        char text[128]; /* "topic offset metadata" */
    } told[4];
    char fatal[256];
    bool closed;
    void (*on_record)(struct rig *rig, int32_t partition, const struct record *record);
};

static UNUSED void cluster_open_of(struct cluster *c, const char *brokers, const char *topic,
                                   int partitions)
{
    char text[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();

    assert_int_equal(rd_kafka_conf_set(conf, "test.mock.num.brokers", brokers, text, sizeof(text)),
                     0);
    assert_int_equal(rd_kafka_conf_set(conf, "linger.ms", "5", text, sizeof(text)), 0);
    rd_kafka_conf_set(conf, "log_level", "0", text, sizeof(text));
    c->producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    assert_non_null(c->producer);
    c->mock = rd_kafka_handle_mock_cluster(c->producer);
    c->brokers = rd_kafka_mock_cluster_bootstraps(c->mock);
    if (topic)
        assert_int_equal(rd_kafka_mock_topic_create(c->mock, topic, partitions, 1), 0);
}

static UNUSED void cluster_open(struct cluster *c, const char *topic, int partitions)
{
    cluster_open_of(c, "1", topic, partitions);
}

static UNUSED void cluster_close(struct cluster *c)
{
    rd_kafka_destroy(c->producer);
}

/* count records of size bytes to one partition; returns when the broker has them. */
static UNUSED void produce(struct cluster *c, const char *topic, int32_t partition, int count,
                           size_t size)
{
    char *payload = malloc(size + 1);

    memset(payload, 'x', size + 1);
    for (int i = 0; i < count; i++) {
        rd_kafka_resp_err_t err;
        do {
            err =
                rd_kafka_producev(c->producer, RD_KAFKA_V_TOPIC(topic),
                                  RD_KAFKA_V_PARTITION(partition), RD_KAFKA_V_VALUE(payload, size),
                                  RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END);
            if (err == RD_KAFKA_RESP_ERR__QUEUE_FULL)
                rd_kafka_flush(c->producer, 1000);
        } while (err == RD_KAFKA_RESP_ERR__QUEUE_FULL);
        assert_int_equal(err, 0);
    }
    assert_int_equal(rd_kafka_flush(c->producer, 30000), 0);
    free(payload);
}

/* --- the pipeline --------------------------------------------------------------------------- */

static void rig_assigned(void *arg, struct kafka_partition *p,
                         const struct kafka_committed *committed, void **user)
{
    struct rig *rig = arg;
    struct seat *seat = &rig->seats[kafka_partition_number(p)];

    seat->rig = rig;
    seat->partition = p;
    seat->owned = true;
    seat->committed = committed->offset;
    snprintf(seat->metadata, sizeof(seat->metadata), "%s", committed->metadata);
    seat->low = committed->low;
    seat->high = committed->high;
    seat->first = seat->last = -1;
    *user = seat;
    rig->assigned++;
    if (rig->hold_assigned)
        return;
    kafka_partition_start(
        p, rig->resume_committed && committed->offset >= 0 ? committed->offset : rig->begin, NULL);
}

struct rig_job {
    uv_work_t work;
    struct rig *rig;
    struct record_run *run;
    struct kafka_partition *partition;
    uint32_t count;
    uint64_t bytes;
};

/* Here and not in the job, so that a partition's runs are read in their order. */
static void rig_check(struct rig_job *job)
{
    struct seat *seat = job->run->origin;

    for (uint32_t i = 0; i < job->run->count; i++) {
        struct record record;
        job->run->ops->record(job->run, i,
                              job->rig->want_headers ? RECORD_WANTS_ALL : RECORD_WANTS_TIMESTAMP,
                              &record);
        if (seat->last >= 0 && (job->rig->gaps_allowed ? record.offset <= seat->last
                                                       : record.offset != seat->last + 1))
            fail_msg("after offset %lld comes %lld", (long long)seat->last,
                     (long long)record.offset);
        if (seat->first < 0)
            seat->first = record.offset;
        seat->last = record.offset;
        seat->records++;
        seat->bytes += record.size;
        if (job->rig->on_record)
            job->rig->on_record(job->rig, kafka_partition_number(job->partition), &record);
    }
}

static void rig_job_work(uv_work_t *work)
{
    struct rig_job *job = work->data;

    job->run->ops->release(job->run);
}

static void rig_job_after(uv_work_t *work, int status)
{
    struct rig_job *job = work->data;

    (void)status;
    job->rig->records += job->count;
    job->rig->jobs--;
    kafka_run_done(job->rig->source, job->partition, job->count, job->bytes);
    free(job);
}

static void rig_process(struct rig *rig, struct record_run *run, struct kafka_partition *p)
{
    struct rig_job *job = calloc(1, sizeof(*job));

    job->rig = rig;
    job->run = run;
    job->partition = p;
    job->count = run->count;
    job->bytes = run->bytes;
    job->work.data = job;
    rig->jobs++;
    rig_check(job);
    uv_queue_work(&rig->loop, &job->work, rig_job_work, rig_job_after);
}

static void rig_run(void *arg, struct kafka_partition *p, struct record_run *run)
{
    struct rig *rig = arg;
    struct kafka_stats stats;

    assert_true(run->count > 0);
    assert_true(run->last_offset - run->first_offset + 1 >= run->count);
    assert_ptr_equal(run->origin, kafka_partition_user(p));
    kafka_source_stats(rig->source, &stats);
    if (stats.held_messages > rig->held_max)
        rig->held_max = stats.held_messages;
    rig->runs++;
    ((struct seat *)run->origin)->last_of_log = run->last_of_log;
    if (rig->hold_runs) {
        struct parked_run *parked = calloc(1, sizeof(*parked)), **end = &rig->parked;
        parked->run = run;
        parked->partition = p;
        while (*end)
            end = &(*end)->next;
        *end = parked;
        return;
    }
    rig_process(rig, run, p);
}

static UNUSED void rig_release(struct rig *rig)
{
    rig->hold_runs = false;
    while (rig->parked) {
        struct parked_run *parked = rig->parked;
        rig->parked = parked->next;
        rig_process(rig, parked->run, parked->partition);
        free(parked);
    }
}

static void rig_revoking(void *arg, struct kafka_partition *const *partitions, size_t count,
                         bool lost, uint32_t max_ms)
{
    struct rig *rig = arg;

    for (size_t i = 0; i < count; i++)
        rig->seats[kafka_partition_number(partitions[i])].owned = false;
    assert_true(max_ms > 0 && max_ms <= 30000);
    rig->revoked += count;
    rig->lost += lost ? count : 0;
    if (!rig->hold_revoke)
        kafka_revoke_done(rig->source);
}

static void rig_gap(void *arg, struct kafka_partition *p, int64_t from, int64_t to)
{
    struct seat *seat = kafka_partition_user(p);

    (void)arg;
    seat->gap_from = from;
    seat->gap_to = to;
    seat->last = -1; /* the next offset need not follow the last */
}

static void rig_out_of_range(void *arg, struct kafka_partition *p, int64_t position)
{
    struct seat *seat = kafka_partition_user(p);

    (void)arg;
    seat->out_of_range = position;
}

static void rig_new_log(void *arg, struct kafka_partition *p, int64_t position)
{
    struct seat *seat = kafka_partition_user(p);

    (void)arg;
    seat->new_log = position;
}

static void rig_traced(void *arg, struct kafka_partition *p, int64_t offset)
{
    struct seat *seat = kafka_partition_user(p);

    (void)arg;
    seat->traced = offset;
}

static void rig_begun(void *arg, struct kafka_partition *p, int64_t offset)
{
    struct seat *seat = kafka_partition_user(p);

    (void)arg;
    seat->begun = offset;
}

static void rig_fatal(void *arg, const char *text)
{
    struct rig *rig = arg;

    snprintf(rig->fatal, sizeof(rig->fatal), "%s", text);
}

static void rig_rebalanced(void *arg)
{
    ((struct rig *)arg)->rebalanced++;
}

/* Of any topic, by its partition's number. */
static void rig_told(void *arg, const char *topic, int32_t number, int64_t offset,
                     const char *metadata)
{
    struct rig *rig = arg;

    snprintf(rig->told[number].text, sizeof(rig->told[number].text), "%s %lld %s", topic,
             (long long)offset, metadata);
    rig->tellings++;
}

static void rig_committed(void *arg, struct kafka_partition *p, int64_t offset, int status,
                          const char *text)
{
    struct seat *seat = kafka_partition_user(p);

    (void)arg;
    (void)text;
    if (status == SPOOL_OK)
        seat->commit_ok = offset;
    else
        seat->commit_failed = offset;
}

static const struct kafka_callbacks rig_callbacks = {
    rig_assigned, rig_run,   rig_revoking, rig_gap,        rig_out_of_range, rig_new_log,
    rig_traced,   rig_begun, rig_fatal,    rig_rebalanced, rig_told,         rig_committed,
};

static void rig_expired(uv_timer_t *timer)
{
    struct rig *rig = timer->data;

    rig->expired = true;
}

static void rig_tick(uv_timer_t *timer)
{
    (void)timer;
}

static void rig_waited(uv_timer_t *timer)
{
    struct rig *rig = timer->data;

    rig->waited = true;
}

static void rig_log(void *arg, const char *line, size_t n)
{
    (void)arg;
    fwrite(line, 1, n, stderr);
}

static UNUSED void rig_init(struct rig *rig)
{
    memset(rig, 0, sizeof(*rig));
    assert_int_equal(uv_loop_init(&rig->loop), 0);
    uv_timer_init(&rig->loop, &rig->deadline);
    uv_timer_init(&rig->loop, &rig->wait);
    uv_timer_init(&rig->loop, &rig->tick);
    uv_timer_start(&rig->tick, rig_tick, 5, 5);
    rig->deadline.data = rig->wait.data = rig;
    rig->begin = KAFKA_OFFSET_POLICY;
    if (getenv("TEST_LOG"))
        log_set_writer(rig_log, NULL);
    for (int i = 0; i < RIG_PARTITIONS_MAX; i++) {
        struct seat *seat = &rig->seats[i];
        seat->committed = seat->first = seat->last = seat->commit_ok = seat->commit_failed = -1;
        seat->gap_from = seat->gap_to = seat->out_of_range = seat->new_log = -1;
        seat->traced = seat->begun = -1;
    }
}

/* Dynamic members with quick sessions, unless properties say otherwise. */
static UNUSED void rig_start(struct rig *rig, struct cluster *c, const char *topic,
                             struct kafka_options options)
{
    static const struct kafka_property session = {"session.timeout.ms", "6000"};
    struct spool_error error;

    rig->topic = topic;
    if (!options.property_count) { /* the mock waits out nearly a session at each rebalance */
        options.properties = &session;
        options.property_count = 1;
    }

    options.brokers = c->brokers;
    if (!options.group_id)
        options.group_id = "group";
    options.topics = &rig->topic;
    options.topic_count = 1;
    if (!options.run_linger_ms)
        options.run_linger_ms = 20;
    if (kafka_source_create(&rig->loop, &options, &rig_callbacks, rig, &rig->source, &error))
        fail_msg("%s", error.text);
    if (kafka_source_start(rig->source, &error))
        fail_msg("%s", error.text);
}

#define RIG_UNTIL(rig, condition)                                                                  \
    do {                                                                                           \
        (rig)->expired = false;                                                                    \
        uv_timer_start(&(rig)->deadline, rig_expired, RIG_DEADLINE_MS, 0);                         \
        while (!(condition) && !(rig)->expired)                                                    \
            uv_run(&(rig)->loop, UV_RUN_ONCE);                                                     \
        uv_timer_stop(&(rig)->deadline);                                                           \
        if (!(condition))                                                                          \
            fail_msg("not reached: %s (records %llu)", #condition,                                 \
                     (unsigned long long)(rig)->records);                                          \
    } while (0)

/* Reads "t" until a run of 50 of its 80 records was handed over and the others stand in an open run,
   which nothing but a pause or a rebalance ends. */
static UNUSED struct kafka_partition *rig_open_run(struct rig *rig, struct cluster *c,
                                                   const struct kafka_property *properties,
                                                   size_t property_count)
{
    struct kafka_options options = {.properties = properties,
                                    .property_count = property_count,
                                    .run_rows = 50,
                                    .run_linger_ms = 100000};
    struct kafka_partition *p;

    cluster_open(c, "t", 1);
    produce(c, "t", 0, 80, 10);
    rig_init(rig);
    rig_start(rig, c, "t", options);
    RIG_UNTIL(rig, rig->records == 50);
    p = rig->seats[0].partition;
    RIG_UNTIL(rig, p->taken == 79);
    return p;
}

/* Lets the loop run for so long: for what must not happen meanwhile. */
static UNUSED void rig_let_pass(struct rig *rig, uint64_t ms)
{
    rig->waited = false;
    uv_timer_start(&rig->wait, rig_waited, ms, 0);
    while (!rig->waited)
        uv_run(&rig->loop, UV_RUN_ONCE);
}

static void rig_closed(void *arg)
{
    struct rig *rig = arg;

    rig->closed = true;
}

/* Once it is closed. */
static UNUSED void rig_end(struct rig *rig)
{
    rig->source = NULL;
    uv_close((uv_handle_t *)&rig->deadline, NULL);
    uv_close((uv_handle_t *)&rig->wait, NULL);
    uv_close((uv_handle_t *)&rig->tick, NULL);
    uv_run(&rig->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&rig->loop), 0);
}

static UNUSED void rig_close(struct rig *rig, bool leave)
{
    rig_release(rig);
    kafka_source_close(rig->source, leave, rig_closed, rig);
    RIG_UNTIL(rig, rig->closed);
    rig_end(rig);
}

#endif
