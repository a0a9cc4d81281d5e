/* SPDX-License-Identifier: Apache-2.0 */
/* The Kafka source by itself: options, records, offsets, limits, pauses. */
#include <dlfcn.h>

#include "kafka_rig.h"

static struct rig rig; /* large; one at a time */

static void expect_refused(const char *name, const char *value, const char *words)
{
    struct kafka_property property = {name, value};
    const char *topics[] = {"t"};
    struct kafka_options options = {
        .brokers = "127.0.0.1:1",
        .group_id = "g",
        .properties = &property,
        .property_count = 1,
        .topics = topics,
        .topic_count = 1,
    };
    struct spool_error error = {0};
    int status = kafka_options_check(&options, &error);

    if (!words) {
        if (status)
            fail_msg("%s=%s: %s", name, value, error.text);
        return;
    }
    assert_int_equal(status, SPOOL_E_INVALID);
    if (!strstr(error.text, words))
        fail_msg("%s=%s: \"%s\" lacks \"%s\"", name, value, error.text, words);
}

static void test_options(void **state)
{
    (void)state;
    expect_refused("enable.auto.commit", "true", "only after the rows are in ClickHouse");
    expect_refused("enable.auto.commit", "false", NULL);
    expect_refused("auto.commit.enable", "true", "only after the rows");
    expect_refused("enable.auto.offset.store", "true", "enable.auto.offset.store");
    expect_refused("auto.offset.reset", "latest", "kafka.auto_offset_reset");
    expect_refused("group.id", "x", "kafka.group_id");
    expect_refused("group.instance.id", "x", "kafka.group_instance_id");
    expect_refused("bootstrap.servers", "x", "kafka.brokers");
    expect_refused("metadata.broker.list", "x", "kafka.brokers");
    expect_refused("isolation.level", "read_uncommitted", "aborted transactions");
    expect_refused("isolation.level", "read_committed", NULL);
    expect_refused("partition.assignment.strategy", "range", "cooperative-sticky");
    expect_refused("rebalance_cb", "x", "interface");
    expect_refused("enable.partition.eof", "false", "lag");
    expect_refused("fetch.max.byte", "1", "knows no property named fetch.max.byte");
    expect_refused("fetch.wait.max.ms", "many", "fetch.wait.max.ms");
    expect_refused("fetch.wait.max.ms", "50", NULL);
    expect_refused("session.timeout.ms", "10000", NULL);
    expect_refused("fetch.max.bytes", "1000", "fetch.max.bytes"); /* only rd_kafka_new finds it */
    expect_refused("sasl.username", "me", NULL);
    expect_refused("ssl.ca.location", "/nonexistent", NULL); /* read only where TLS is on */
}

/* Whoever looks for a new topic every five minutes, as the client does by itself, is late; a test
   that waits for one sets an interval of its own. */
static void test_new_topics_are_looked_for(void **state)
{
    const char *topics[] = {"t"};
    struct kafka_options options = {
        .brokers = "b", .group_id = "g", .topics = topics, .topic_count = 1};
    struct spool_error error;
    rd_kafka_conf_t *conf;
    char text[32];
    size_t size = sizeof(text);

    (void)state;
    assert_int_equal(kafka_conf_build(&options, true, &conf, &error), SPOOL_OK);
    assert_int_equal(rd_kafka_conf_get(conf, "topic.metadata.refresh.interval.ms", text, &size),
                     RD_KAFKA_CONF_OK);
    assert_string_equal(text, "10000");
    rd_kafka_conf_destroy(conf);
}

static int refuse(struct kafka_hook *h, const char *broker, int x509)
{
    char text[100];

    return kafka_reason_certificate(NULL, broker, 1, &x509, 0, NULL, 0, text, sizeof(text), h);
}

/* The client tells an error like the last one to nobody: what was wrong may be told much later, when
   something else is. */
static void test_a_certificates_fault_is_told_of_it_alone(void **state)
{
    static const char of_a[] = "ssl://a:1/bootstrap: SSL handshake failed: error:0A000086:SSL "
                               "routines::certificate verify failed: broker certificate could not "
                               "be verified (after 5ms in state SSL_HANDSHAKE)";
    static const char of_b[] = "ssl://b:1/2: SSL handshake failed: certificate verify failed";
    struct kafka_hook h = {0};
    char host[20];

    (void)state;
    assert_int_equal(uv_mutex_init(&h.lines_lock), 0);
    assert_int_equal(refuse(&h, "a:1", 0), 1); /* accepted */
    assert_int_equal(kafka_reason_fault(&h, of_a), 0);
    assert_int_equal(refuse(&h, "a:1", 10), 0);
    assert_int_equal(kafka_reason_fault(&h, of_a), 10);
    assert_int_equal(kafka_reason_fault(&h, of_a), 10);
    assert_int_equal(kafka_reason_fault(&h, of_b), 0);
    assert_int_equal(kafka_reason_fault(&h, "ssl://a:1/1: SSL handshake failed: wrong version"), 0);
    refuse(&h, "b:1", 62);
    refuse(&h, "a:1", 20);
    assert_int_equal(kafka_reason_fault(&h, of_a), 20);
    assert_int_equal(kafka_reason_fault(&h, of_b), 62);
    for (int i = 0; i < 3 * KAFKA_FAULTS; i++) {
        snprintf(host, sizeof(host), "c:%d", i);
        refuse(&h, host, 18);
    }
    assert_int_equal(kafka_reason_fault(&h, of_a), 0);
    uv_mutex_destroy(&h.lines_lock);
}

static void test_topics_by_name(void **state)
{
    const char *topics[] = {"^all.*"};
    struct kafka_options options = {
        .brokers = "b", .group_id = "g", .topics = topics, .topic_count = 1};
    struct spool_error error;

    (void)state;
    assert_int_equal(kafka_options_check(&options, &error), SPOOL_E_INVALID);
    assert_non_null(strstr(error.text, "pattern"));
    options.brokers = "";
    assert_int_equal(kafka_options_check(&options, &error), SPOOL_E_INVALID);
}

static void test_all_in_order(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 4);
    for (int i = 0; i < 4; i++)
        produce(&c, "t", i, 5000 + i, 100);
    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){.run_rows = 1000});
    RIG_UNTIL(&rig, rig.records == 20006);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(rig.seats[i].first, 0);
        assert_int_equal(rig.seats[i].last, 4999 + i);
        assert_int_equal(rig.seats[i].committed, -1);
        assert_int_equal(rig.seats[i].high, 5000 + i);
        assert_int_equal(rig.seats[i].bytes, (5000 + i) * 100);
        RIG_UNTIL(&rig, kafka_partition_lag(rig.seats[i].partition) == 0);
    }
    produce(&c, "t", 2, 10, 100); /* at the end of the log each one comes, too */
    RIG_UNTIL(&rig, rig.records == 20016);
    rig_close(&rig, true);
    cluster_close(&c);
}

static int facts_seen;

static void check_facts(struct rig *r, int32_t partition, const struct record *record)
{
    (void)r;
    (void)partition;
    if (record->offset == 0) {
        assert_int_equal(record->size, 5);
        assert_memory_equal(record->data, "hello", 5);
        assert_int_equal(record->key_size, 3);
        assert_memory_equal(record->key, "key", 3);
        assert_int_equal(record->timestamp_ms, 1700000000123);
        assert_int_equal(record->header_count, 3);
        assert_string_equal(record->headers[0].name, "a");
        assert_memory_equal(record->headers[0].value, "one", 3);
        assert_int_equal(record->headers[1].value_size, 0);
        assert_non_null(record->headers[1].value);
        assert_string_equal(record->headers[2].name, "a");
        assert_null(record->headers[2].value);
        assert_true(record->received_ms > 1700000000123);
    } else if (record->offset == 1) {
        assert_null(record->data); /* a tombstone */
        assert_int_equal(record->size, 0);
        assert_int_equal(record->key_size, 1);
        assert_int_equal(record->header_count, 0);
    } else {
        assert_non_null(record->data); /* empty is not absent */
        assert_int_equal(record->size, 0);
        assert_null(record->key);
    }
    facts_seen++;
}

static void test_facts_of_a_record(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    assert_int_equal(rd_kafka_producev(c.producer, RD_KAFKA_V_TOPIC("t"), RD_KAFKA_V_PARTITION(0),
                                       RD_KAFKA_V_VALUE("hello", 5), RD_KAFKA_V_KEY("key", 3),
                                       RD_KAFKA_V_TIMESTAMP(1700000000123),
                                       RD_KAFKA_V_HEADER("a", "one", 3),
                                       RD_KAFKA_V_HEADER("b", "", 0),
                                       RD_KAFKA_V_HEADER("a", NULL, 0), RD_KAFKA_V_END),
                     0);
    assert_int_equal(rd_kafka_producev(c.producer, RD_KAFKA_V_TOPIC("t"), RD_KAFKA_V_PARTITION(0),
                                       RD_KAFKA_V_VALUE(NULL, 0), RD_KAFKA_V_KEY("k", 1),
                                       RD_KAFKA_V_END),
                     0);
    assert_int_equal(rd_kafka_producev(c.producer, RD_KAFKA_V_TOPIC("t"), RD_KAFKA_V_PARTITION(0),
                                       RD_KAFKA_V_VALUE("", 0), RD_KAFKA_V_END),
                     0);
    assert_int_equal(rd_kafka_flush(c.producer, 10000), 0);
    facts_seen = 0;
    rig_init(&rig);
    rig.want_headers = true;
    rig.on_record = check_facts;
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.records == 3);
    assert_int_equal(facts_seen, 3);
    rig_close(&rig, true);
    cluster_close(&c);
}

static void test_start_where_told(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 1000, 10);
    rig_init(&rig);
    rig.begin = 400;
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.records == 600);
    assert_int_equal(rig.seats[0].first, 400);
    assert_int_equal(rig.seats[0].begun, -1); /* nobody had to choose */
    /* Again, in the midst of it. */
    rig.seats[0].first = rig.seats[0].last = -1;
    kafka_partition_start(rig.seats[0].partition, 100, NULL);
    RIG_UNTIL(&rig, rig.records == 1500);
    assert_int_equal(rig.seats[0].first, 100);
    assert_int_equal(rig.seats[0].last, 999);
    rig_close(&rig, true);

    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){.auto_offset_reset = KAFKA_RESET_LATEST});
    RIG_UNTIL(&rig, rig.assigned == 1);
    RIG_UNTIL(&rig, kafka_partition_lag(rig.seats[0].partition) == 0);
    assert_int_equal(rig.seats[0].begun, 1000);
    produce(&c, "t", 0, 5, 10);
    RIG_UNTIL(&rig, rig.records == 5);
    assert_int_equal(rig.seats[0].first, 1000);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* A broker that can't be reached has the one partition; the other begins all the same. */
static void test_begins_without_the_others_leader(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open_of(&c, "2", "t", 2);
    rd_kafka_mock_partition_set_leader(c.mock, "t", 0, 1);
    rd_kafka_mock_partition_set_leader(c.mock, "t", 1, 2);
    rd_kafka_mock_coordinator_set(c.mock, "group", "group", 1);
    produce(&c, "t", 0, 10, 10);
    rd_kafka_mock_broker_set_down(c.mock, 2);
    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.records == 10);
    produce(&c, "t", 0, 10, 10);
    RIG_UNTIL(&rig, rig.records == 20);
    rd_kafka_mock_broker_set_up(c.mock, 2);
    produce(&c, "t", 1, 10, 10);
    RIG_UNTIL(&rig, rig.records == 30);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* The record in front of the start is looked at: another one there means another log, and the one
   that is known, or none at all, is no matter. */
static void test_another_record_in_front(void **state)
{
    const struct spool_mark wrong = {true, 1, 1};
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 1000, 10);
    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.records == 1000);
    kafka_partition_start(rig.seats[0].partition, 1000, NULL); /* its own mark is right */
    produce(&c, "t", 0, 10, 10);
    RIG_UNTIL(&rig, rig.records == 1010);
    assert_int_equal(rig.seats[0].new_log, -1);
    kafka_partition_start(rig.seats[0].partition, 500, &wrong);
    RIG_UNTIL(&rig, rig.seats[0].new_log >= 0);
    assert_int_equal(rig.seats[0].new_log, 500);
    rig_let_pass(&rig, 300);
    assert_int_equal(rig.records, 1010); /* held, until it is told where to begin */
    rig.seats[0].last = -1;
    kafka_partition_start(rig.seats[0].partition, KAFKA_OFFSET_BEGINNING, NULL);
    RIG_UNTIL(&rig, rig.records == 2020);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* Where the record in front must be there, nothing else will do: not another one, not the log's end. */
static void test_traced(void **state)
{
    const struct spool_mark wrong = {true, 1, 1};
    struct kafka_partition *p;
    struct spool_mark right;
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 1000, 10);
    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.records == 1000);
    p = rig.seats[0].partition;
    RIG_UNTIL(&rig, p->mark_offset == 999);
    right = p->mark;
    kafka_partition_trace(p, 2000, &right);
    RIG_UNTIL(&rig, rig.seats[0].new_log >= 0);
    assert_int_equal(rig.seats[0].new_log, 2000);
    rig.seats[0].new_log = -1;
    kafka_partition_trace(p, 500, &wrong);
    RIG_UNTIL(&rig, rig.seats[0].new_log >= 0);
    assert_int_equal(rig.seats[0].new_log, 500);
    rig.seats[0].new_log = -1;
    kafka_partition_trace(p, 1000, &right);
    RIG_UNTIL(&rig, rig.seats[0].traced >= 0);
    assert_int_equal(rig.seats[0].traced, 1000);
    rig_let_pass(&rig, 300);
    assert_int_equal(rig.records, 1000);
    produce(&c, "t", 0, 10, 10);
    RIG_UNTIL(&rig, rig.records == 1010);
    assert_int_equal(rig.seats[0].new_log, -1);
    rig_close(&rig, true);
    cluster_close(&c);
}

static void test_nothing_before_the_answer(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 100, 10);
    rig_init(&rig);
    rig.hold_assigned = true;
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.assigned == 1);
    rig_let_pass(&rig, 300);
    assert_int_equal(rig.runs, 0);
    kafka_partition_start(rig.seats[0].partition, 50, NULL);
    RIG_UNTIL(&rig, rig.records == 50);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* The limits hold what is taken; the member stays one although nothing is taken for twice
   max.poll.interval.ms; and everything comes, once, when they are lifted. */
static void test_limits_and_membership(void **state)
{
    struct kafka_property quick[] = {{"session.timeout.ms", "4000"},
                                     {"heartbeat.interval.ms", "100"},
                                     {"max.poll.interval.ms", "4000"}};
    struct kafka_stats stats;
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 4);
    for (int i = 0; i < 4; i++)
        produce(&c, "t", i, 20000, 20);
    rig_init(&rig);
    rig.hold_runs = true;
    rig_start(
        &rig, &c, "t",
        (struct kafka_options){
            .max_held_messages = 3000, .run_rows = 500, .properties = quick, .property_count = 3});
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), stats.held_messages >= 3000));
    rig_let_pass(&rig, 9000);
    kafka_source_stats(rig.source, &stats);
    assert_int_equal(stats.held_messages, 3000);
    assert_int_equal(rig.assigned, 4);
    assert_int_equal(rig.revoked, 0);
    rig_release(&rig);
    RIG_UNTIL(&rig, rig.records == 80000);
    assert_int_equal(rig.held_max, 3000);
    assert_int_equal(rig.revoked, 0);
    assert_int_equal(rig.assigned, 4);
    rig_let_pass(&rig, 5000); /* and idle */
    assert_int_equal(rig.revoked, 0);
    rig_close(&rig, true);
    cluster_close(&c);
}

static void test_held_bytes(void **state)
{
    struct kafka_stats stats;
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 40, 100000);
    rig_init(&rig);
    rig.hold_runs = rig.hold_assigned = true;
    rig_start(&rig, &c, "t",
              (struct kafka_options){.max_held_bytes = 1000000, .run_bytes = 250000});
    RIG_UNTIL(&rig, rig.assigned == 1);
    rig.source->waiting = true; /* so that more than the bound is there at the first call */
    kafka_partition_start(rig.seats[0].partition, 0, NULL);
    RIG_UNTIL(&rig, rd_kafka_queue_length(rig.source->consumer_queue) >= 20);
    rig.source->waiting = false;
    kafka_source_wake(rig.source);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), stats.held_bytes >= 1000000));
    rig_let_pass(&rig, 400);
    kafka_source_stats(rig.source, &stats);
    assert_int_equal(stats.held_bytes, 1000000);
    assert_int_equal(rig.parked->run->count, 2); /* the third would have gone over run_bytes */
    rig_release(&rig);
    RIG_UNTIL(&rig, rig.records == 40);
    kafka_source_stats(rig.source, &stats);
    assert_int_equal(stats.held_bytes, 0);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* A paused partition neither gives records nor holds memory, and the others go on. */
static void test_pause(void **state)
{
    struct kafka_stats stats;
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 2);
    produce(&c, "t", 0, 20000, 50);
    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){.max_held_messages = 2000, .run_rows = 1000});
    RIG_UNTIL(&rig, rig.seats[0].records >= 3000);
    kafka_partition_pause(rig.seats[0].partition, KAFKA_PAUSE_OPERATOR);
    kafka_partition_pause(rig.seats[0].partition, KAFKA_PAUSE_PRESSURE);
    produce(&c, "t", 1, 20000, 50);
    RIG_UNTIL(&rig, rig.seats[1].records == 20000);
    uint64_t before = rig.seats[0].records;
    kafka_partition_resume(rig.seats[0].partition, KAFKA_PAUSE_OPERATOR);
    rig_let_pass(&rig, 200);
    assert_int_equal(rig.seats[0].records, before);
    kafka_source_stats(rig.source, &stats);
    assert_int_equal(stats.held_messages, 0);
    kafka_partition_resume(rig.seats[0].partition, KAFKA_PAUSE_PRESSURE);
    RIG_UNTIL(&rig, rig.records == 40000);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* The pause has thrown away an open run, and ends before the client was told of it. */
static void test_pause_ends_as_it_begins(void **state)
{
    struct kafka_partition *p;
    struct cluster c;

    (void)state;
    p = rig_open_run(&rig, &c, NULL, 0);
    kafka_partition_pause(p, KAFKA_PAUSE_HELD);
    RIG_UNTIL(&rig, p->taken == 49); /* in the phase of timers */
    assert_false(p->parked);
    kafka_partition_resume(p, KAFKA_PAUSE_HELD);
    produce(&c, "t", 0, 70, 10);
    RIG_UNTIL(&rig, rig.records == 150); /* fails where an offset is left out */
    rig_close(&rig, true);
    cluster_close(&c);
}

static int toggles;

static void toggle(uv_timer_t *timer)
{
    struct rig *r = timer->data;
    static unsigned seed = 1;

    for (int i = 0; i < 3; i++) {
        if (!r->seats[i].partition)
            continue;
        seed = seed * 1103515245u + 12345u;
        if ((seed >> 16) & 1)
            kafka_partition_pause(r->seats[i].partition, KAFKA_PAUSE_INTAKE);
        else
            kafka_partition_resume(r->seats[i].partition, KAFKA_PAUSE_INTAKE);
    }
    /* Now and then long enough for the pause to become a hard one. */
    uv_timer_start(timer, toggle, toggles % 7 == 0 ? 120 : 2, 0);
    toggles++;
}

static void test_pauses_in_every_mixture(void **state)
{
    struct cluster c;
    uv_timer_t timer;

    (void)state;
    cluster_open(&c, "t", 3);
    for (int i = 0; i < 3; i++)
        produce(&c, "t", i, 50000, 20);
    rig_init(&rig);
    uv_timer_init(&rig.loop, &timer);
    timer.data = &rig;
    rig_start(&rig, &c, "t", (struct kafka_options){.max_held_messages = 4000, .run_rows = 700});
    toggles = 0;
    uv_timer_start(&timer, toggle, 1, 0);
    RIG_UNTIL(&rig, rig.records >= 100000);
    uv_close((uv_handle_t *)&timer, NULL);
    for (int i = 0; i < 3; i++)
        kafka_partition_resume(rig.seats[i].partition, KAFKA_PAUSE_INTAKE);
    RIG_UNTIL(&rig, rig.records == 150000);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* The mock keeps 5 MiB a partition, so writing more makes a gap. */
static void test_gap_at_start_and_underway(void **state)
{
    struct cluster c;
    struct seat *seat = &rig.seats[0];

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 80, 100000);
    rig_init(&rig);
    rig.begin = 0;
    rig_start(&rig, &c, "t", (struct kafka_options){.run_rows = 10});
    RIG_UNTIL(&rig, seat->last == 79);
    assert_int_equal(seat->gap_from, 0);
    assert_true(seat->gap_to > 0 && seat->gap_to < 80);
    assert_int_equal(seat->first, seat->gap_to);

    kafka_partition_pause(seat->partition, KAFKA_PAUSE_HELD);
    rig_let_pass(&rig, 200);
    produce(&c, "t", 0, 120, 100000);
    kafka_partition_resume(seat->partition, KAFKA_PAUSE_HELD);
    RIG_UNTIL(&rig, seat->last == 199);
    assert_int_equal(seat->gap_from, 80);
    assert_true(seat->gap_to > 100);
    assert_int_equal(seat->out_of_range, -1);
    rig_close(&rig, true);
    cluster_close(&c);
}

static void test_beyond_the_end(void **state)
{
    struct cluster c;
    struct seat *seat = &rig.seats[0];

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 100, 10);
    rig_init(&rig);
    rig.begin = 5000; /* as after the topic was made anew */
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, seat->out_of_range >= 0);
    assert_int_equal(seat->out_of_range, 5000);
    assert_int_equal(rig.records, 0);
    produce(&c, "t", 0, 10, 10);
    rig_let_pass(&rig, 200);
    assert_int_equal(rig.records, 0); /* held until told */
    kafka_partition_start(seat->partition, KAFKA_OFFSET_POLICY, NULL);
    RIG_UNTIL(&rig, rig.records == 110);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* An end that was told too low and then right is no part of a proof, however often that happens. */
static void test_beyond_the_end_now_and_then(void **state)
{
    struct seat *seat = &rig.seats[0];
    struct kafka_partition *p;
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 10, 10);
    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.records == 10);
    p = seat->partition;
    for (int64_t end = 10; end <= 50; end += 10) {
        seat->last = -1;
        kafka_partition_begin(p, end + 5);
        RIG_UNTIL(&rig, (p->state == KAFKA_P_STARTING && p->want_lookup) ||
                            seat->out_of_range >= 0); /* one look is over */
        assert_int_equal(seat->out_of_range, -1);
        produce(&c, "t", 0, 10, 10);
        RIG_UNTIL(&rig, seat->last == end + 9);
    }
    rig_close(&rig, true);
    cluster_close(&c);
}

static bool transaction_open;

/* In the library's place: a transaction that is not over begins at offset 40, and whoever reads what is
   committed is told that the log ends there. */
rd_kafka_resp_err_t rd_kafka_offsets_for_times(rd_kafka_t *client,
                                               rd_kafka_topic_partition_list_t *list,
                                               int timeout_ms)
{
    __typeof__(&rd_kafka_offsets_for_times) real =
        (__typeof__(real))dlsym(RTLD_NEXT, "rd_kafka_offsets_for_times");
    rd_kafka_resp_err_t err = real(client, list, timeout_ms);

    for (int i = 0; transaction_open && i < list->cnt; i++)
        if (list->elems[i].offset > 40)
            list->elems[i].offset = 40;
    return err;
}

/* Somebody who read more than what is committed may have committed behind it. */
static void test_behind_an_open_transaction(void **state)
{
    struct seat *seat = &rig.seats[0];
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 100, 10);
    rig_init(&rig);
    rig.begin = 80;
    transaction_open = true;
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.records == 20 || seat->out_of_range >= 0);
    transaction_open = false;
    assert_int_equal(seat->out_of_range, -1);
    assert_int_equal(seat->first, 80);
    rig_close(&rig, true);
    cluster_close(&c);
}

static void test_stop_hands_over(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 100, 10);
    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){.run_linger_ms = 100000});
    RIG_UNTIL(&rig, rig.assigned && kafka_partition_lag(rig.seats[0].partition) == 0);
    assert_int_equal(rig.runs, 0);
    kafka_source_stop(rig.source);
    assert_int_equal(rig.runs, 1);
    produce(&c, "t", 0, 100, 10);
    rig_let_pass(&rig, 200);
    assert_int_equal(rig.runs, 1);
    assert_int_equal(rig.records, 100);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* --- memory that is refused ----------------------------------------------------------------- */

static _Thread_local volatile bool growth_fails; /* of partition 0's open run, once */

#ifndef __SANITIZE_ADDRESS__
/* Taking the allocator's place is the sanitizer's own trick, so this stands only without it. Nor is it
   called under valgrind, which puts its own allocator in front of it. */
void *__libc_realloc(void *old, size_t size);

void *realloc(void *old, size_t size)
{
    const struct kafka_partition *p = growth_fails ? rig.seats[0].partition : NULL;

    if (p && p->open && old == (void *)p->open->messages) {
        growth_fails = false;
        return NULL;
    }
    return __libc_realloc(old, size);
}
#endif

/* The records that a run had before there was no room for another one come again. */
static void test_no_memory_for_a_run(void **state)
{
    struct cluster c;
    bool failed;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 100, 10);
    rig_init(&rig);
    growth_fails = true;
    rig_start(&rig, &c, "t", (struct kafka_options){.run_linger_ms = 500});
    RIG_UNTIL(&rig, rig.seats[0].last == 99);
    failed = !growth_fails;
    growth_fails = false;
    assert_int_equal(rig.seats[0].first, 0);
    rig_close(&rig, true);
    cluster_close(&c);
    if (!failed)
        skip();
}

static void test_thousand_partitions(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1000);
    for (int round = 0; round < 3; round++)
        for (int i = 0; i < 1000; i++)
            assert_int_equal(rd_kafka_producev(c.producer, RD_KAFKA_V_TOPIC("t"),
                                               RD_KAFKA_V_PARTITION(i), RD_KAFKA_V_VALUE("x", 1),
                                               RD_KAFKA_V_END),
                             0);
    assert_int_equal(rd_kafka_flush(c.producer, 30000), 0);
    rig_init(&rig);
    rig_start(&rig, &c, "t", (struct kafka_options){0});
    RIG_UNTIL(&rig, rig.records == 3000);
    assert_int_equal(rig.assigned, 1000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(rig.seats[i].last, 2);
    rig_close(&rig, true);
    cluster_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_new_topics_are_looked_for),
        cmocka_unit_test(test_a_certificates_fault_is_told_of_it_alone),
        cmocka_unit_test(test_topics_by_name),
        cmocka_unit_test(test_all_in_order),
        cmocka_unit_test(test_facts_of_a_record),
        cmocka_unit_test(test_start_where_told),
        cmocka_unit_test(test_begins_without_the_others_leader),
        cmocka_unit_test(test_another_record_in_front),
        cmocka_unit_test(test_traced),
        cmocka_unit_test(test_nothing_before_the_answer),
        cmocka_unit_test(test_limits_and_membership),
        cmocka_unit_test(test_held_bytes),
        cmocka_unit_test(test_pause),
        cmocka_unit_test(test_pause_ends_as_it_begins),
        cmocka_unit_test(test_pauses_in_every_mixture),
        cmocka_unit_test(test_gap_at_start_and_underway),
        cmocka_unit_test(test_beyond_the_end),
        cmocka_unit_test(test_beyond_the_end_now_and_then),
        cmocka_unit_test(test_behind_an_open_transaction),
        cmocka_unit_test(test_stop_hands_over),
        cmocka_unit_test(test_no_memory_for_a_run),
        cmocka_unit_test(test_thousand_partitions),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
