/* SPDX-License-Identifier: Apache-2.0 */
/* The Kafka source against a real broker, for what the mock cannot do: static members, orderly
   handovers, transactions, huge records, topics made anew. Skipped unless KAFKA_BROKERS is set. */
#include "kafka_rig.h"

static struct rig rig, other;
static unsigned topic_number;

static void admin(struct cluster *c, rd_kafka_NewTopic_t *make, rd_kafka_DeleteTopic_t *drop)
{
    rd_kafka_queue_t *queue = rd_kafka_queue_new(c->producer);
    rd_kafka_event_t *event;

    if (make)
        rd_kafka_CreateTopics(c->producer, &make, 1, NULL, queue);
    else
        rd_kafka_DeleteTopics(c->producer, &drop, 1, NULL, queue);
    event = rd_kafka_queue_poll(queue, 30000);
    assert_non_null(event);
    assert_int_equal(rd_kafka_event_error(event), 0);
    rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
}

static void make_topic(struct cluster *c, const char *topic, int partitions)
{
    char text[256];
    rd_kafka_NewTopic_t *make = rd_kafka_NewTopic_new(topic, partitions, 1, text, sizeof(text));

    assert_non_null(make);
    rd_kafka_NewTopic_set_config(make, "max.message.bytes", "200000000");
    admin(c, make, NULL);
    rd_kafka_NewTopic_destroy(make);
}

static bool real_open_with(struct cluster *c, char topic[64], int partitions,
                           const struct kafka_property *properties, size_t count)
{
    char text[256];
    rd_kafka_conf_t *conf;

    c->brokers = getenv("KAFKA_BROKERS");
    if (!c->brokers)
        return false;
    conf = rd_kafka_conf_new();
    assert_int_equal(rd_kafka_conf_set(conf, "bootstrap.servers", c->brokers, text, sizeof(text)),
                     0);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(
            rd_kafka_conf_set(conf, properties[i].name, properties[i].value, text, sizeof(text)),
            0);
    c->producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    if (!c->producer)
        fail_msg("%s", text);
    snprintf(topic, 64, "test-kafka-%d-%u", (int)getpid(), ++topic_number);
    make_topic(c, topic, partitions);
    return true;
}

static bool real_open(struct cluster *c, char topic[64], int partitions)
{
    return real_open_with(c, topic, partitions, NULL, 0);
}

static void renew_producer(struct cluster *c)
{
    char text[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();

    rd_kafka_destroy(c->producer);
    assert_int_equal(rd_kafka_conf_set(conf, "bootstrap.servers", c->brokers, text, sizeof(text)),
                     0);
    c->producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    assert_non_null(c->producer);
}

/* Both loops in turn, until condition. */
#define BOTH_UNTIL(condition)                                                                      \
    do {                                                                                           \
        rig.expired = false;                                                                       \
        uv_timer_start(&rig.deadline, rig_expired, RIG_DEADLINE_MS, 0);                            \
        while (!(condition) && !rig.expired) {                                                     \
            rig_let_pass(&rig, 5);                                                                 \
            rig_let_pass(&other, 5);                                                               \
        }                                                                                          \
        uv_timer_stop(&rig.deadline);                                                              \
        if (!(condition))                                                                          \
            fail_msg("not reached: %s", #condition);                                               \
    } while (0)

static const struct kafka_property quick[] = {{"session.timeout.ms", "6000"},
                                              {"heartbeat.interval.ms", "100"},
                                              {"max.poll.interval.ms", "60000"}};

/* The second member gets its partitions only after the first has committed and let go, and begins
   where that commit says: every record is seen by exactly one of them. */
static void test_two_members(void **state)
{
    struct kafka_options options = {.properties = quick, .property_count = 3, .run_rows = 100};
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open(&c, topic, 4))
        skip();
    for (int i = 0; i < 4; i++)
        produce(&c, topic, i, 1000, 10);
    rig_init(&rig);
    rig_init(&other);
    rig.resume_committed = other.resume_committed = true;
    rig.hold_revoke = true;
    options.group_id = topic;
    rig_start(&rig, &c, topic, options);
    RIG_UNTIL(&rig, rig.records == 4000);
    rig_start(&other, &c, topic, options);
    BOTH_UNTIL(rig.revoked > 0);
    assert_int_equal(rig.revoked, 2);
    assert_int_equal(rig.lost, 0);
    for (int i = 0; i < 4; i++)
        produce(&c, topic, i, 500, 10); /* none of these come from a partition that goes */
    rig_let_pass(&other, 500);
    rig_let_pass(&rig, 500);
    assert_int_equal(other.assigned, 0);
    for (int i = 0; i < 4; i++)
        kafka_commit(rig.seats[i].partition, rig.seats[i].last + 1, "first");
    kafka_revoke_done(rig.source); /* the commits in flight are still waited for */
    BOTH_UNTIL(other.assigned == 2 && rig.records + other.records == 6000);
    for (int i = 0; i < 4; i++)
        if (getenv("TEST_LOG"))
            fprintf(stderr, "%d: %llu %llu committed %lld first %lld ok %lld\n", i,
                    (unsigned long long)rig.seats[i].records,
                    (unsigned long long)other.seats[i].records, (long long)other.seats[i].committed,
                    (long long)other.seats[i].first, (long long)rig.seats[i].commit_ok);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(rig.seats[i].records + other.seats[i].records, 1500);
        if (other.seats[i].partition) {
            assert_int_equal(other.seats[i].committed, 1000);
            assert_string_equal(other.seats[i].metadata, "first");
            assert_int_equal(other.seats[i].first, 1000);
        }
    }
    /* And back, when the second leaves. */
    for (int i = 0; i < 4; i++)
        if (other.seats[i].partition)
            kafka_commit(other.seats[i].partition, 1500, "second");
    rig_close(&other, true);
    RIG_UNTIL(&rig, rig.assigned == 6);
    for (int i = 0; i < 4; i++)
        produce(&c, topic, i, 10, 10);
    RIG_UNTIL(&rig, rig.records + other.records == 6040);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* Of a partition that stays the client gives up while another one goes, as when retention overtook
   us. That it is given to the client anew is not the answer that the group waits for. */
static void test_refused_while_another_goes(void **state)
{
    struct kafka_options options = {.properties = quick, .property_count = 3};
    struct kafka_partition *stays = NULL;
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open(&c, topic, 2))
        skip();
    rig_init(&rig);
    rig_init(&other);
    rig.hold_revoke = true;
    options.group_id = topic;
    rig_start(&rig, &c, topic, options);
    RIG_UNTIL(&rig, rig.assigned == 2);
    rig_start(&other, &c, topic, options);
    BOTH_UNTIL(rig.revoked == 1);
    for (int i = 0; i < 2; i++)
        if (rig.seats[i].owned)
            stays = rig.seats[i].partition;
    assert_non_null(stays);
    kafka_partition_refused(stays);
    for (int i = 0; i < 100; i++) {
        rig_let_pass(&rig, 10);
        rig_let_pass(&other, 10);
    }
    assert_int_equal(other.assigned, 0);
    kafka_revoke_done(rig.source);
    BOTH_UNTIL(other.assigned == 1);
    produce(&c, topic, 0, 10, 10);
    produce(&c, topic, 1, 10, 10);
    BOTH_UNTIL(rig.records == 10 && other.records == 10);
    rig_close(&other, true);
    rig_close(&rig, true);
    cluster_close(&c);
}

static void commit_everything(uv_timer_t *timer)
{
    struct rig *r = timer->data;
    static int64_t offset;

    offset++;
    for (int i = 0; i < 8; i++)
        if (r->seats[i].owned)
            kafka_commit(r->seats[i].partition, offset, "now");
}

/* A member that commits without end, while another comes and goes: no commit meets the next
   generation of the group, upon which 2.0.2 would give everything up as lost (kafka_join.c). */
static void test_commits_while_members_come_and_go(void **state)
{
    struct kafka_options options = {.properties = quick, .property_count = 3};
    uv_timer_t timer;
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open(&c, topic, 8))
        skip();
    options.group_id = topic;
    rig_init(&rig);
    rig_start(&rig, &c, topic, options);
    RIG_UNTIL(&rig, rig.assigned == 8);
    uv_timer_init(&rig.loop, &timer);
    timer.data = &rig;
    uv_timer_start(&timer, commit_everything, 1, 1);
    for (int round = 1; round <= 5; round++) {
        rig_init(&other);
        rig_start(&other, &c, topic, options);
        BOTH_UNTIL(other.assigned == 4 && rig.revoked == 4u * (unsigned)round);
        rig_close(&other, true);
        RIG_UNTIL(&rig, rig.assigned == 8 + 4u * (unsigned)round);
        assert_int_equal(rig.lost, 0);
    }
    for (int i = 0; i < 8; i++)
        assert_true(rig.seats[i].commit_ok > 0);
    uv_timer_stop(&timer);
    uv_close((uv_handle_t *)&timer, NULL);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* The pipeline never answers a revocation: the time is over by itself, and the other member gets
   the partitions. */
static void test_revocation_is_bounded(void **state)
{
    struct kafka_property bounded[] = {{"session.timeout.ms", "3000"},
                                       {"heartbeat.interval.ms", "100"},
                                       {"max.poll.interval.ms", "3000"}};
    struct kafka_options options = {.properties = bounded, .property_count = 3};
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open(&c, topic, 2))
        skip();
    options.group_id = topic;
    rig_init(&rig);
    rig_init(&other);
    rig.hold_revoke = true;
    rig_start(&rig, &c, topic, options);
    RIG_UNTIL(&rig, rig.assigned == 2);
    rig_start(&other, &c, topic, options);
    BOTH_UNTIL(other.assigned == 1);
    assert_int_equal(rig.revoked, 1);
    assert_int_equal(rig.lost, 0);
    for (int i = 0; i < 2; i++) { /* whoever is late may still ask, and is not heard */
        kafka_commit(rig.seats[i].partition, 1, "late");
        kafka_partition_pause(rig.seats[i].partition, KAFKA_PAUSE_HELD);
        kafka_partition_resume(rig.seats[i].partition, KAFKA_PAUSE_HELD);
    }
    kafka_revoke_done(rig.source);
    rig_close(&other, true);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* A static member that closes without leaving, and comes back, keeps its partitions: the other
   member sees no rebalance. One that leaves hands them over at once. */
static void test_static_member(void **state)
{
    struct kafka_property slow[] = {{"session.timeout.ms", "30000"},
                                    {"heartbeat.interval.ms", "200"},
                                    {"max.poll.interval.ms", "60000"}};
    struct kafka_options options = {.properties = slow, .property_count = 3};
    struct kafka_options mine = options, theirs = options;
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open(&c, topic, 4))
        skip();
    mine.group_id = theirs.group_id = topic;
    mine.group_instance_id = "a";
    theirs.group_instance_id = "b";
    rig_init(&rig);
    rig_init(&other);
    rig_start(&rig, &c, topic, mine);
    RIG_UNTIL(&rig, rig.assigned == 4);
    rig_start(&other, &c, topic, theirs);
    BOTH_UNTIL(rig.revoked == 2 && other.assigned == 2);
    rig_close(&rig, false);
    rig_init(&rig);
    rig_start(&rig, &c, topic, mine);
    uint64_t before = uv_now(&rig.loop);
    RIG_UNTIL(&rig, rig.assigned == 2);
    assert_true(uv_now(&rig.loop) - before < 10000); /* far below the session's 30 s */
    rig_let_pass(&other, 1000);
    assert_int_equal(other.assigned, 2);
    assert_int_equal(other.revoked, 0);
    rig_close(&rig, true);
    RIG_UNTIL(&other, other.assigned == 4); /* well before RIG's session would end */
    rig_close(&other, true);
    cluster_close(&c);
}

static void test_large_records(void **state)
{
    struct kafka_property large[] = {{"message.max.bytes", "200000000"}, {"linger.ms", "0"}};
    size_t sizes[] = {20u << 20, 100u << 20, 10};
    char *payload = calloc(1, 100u << 20);
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open_with(&c, topic, 1, large, 2)) {
        free(payload);
        skip();
    }
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rd_kafka_producev(c.producer, RD_KAFKA_V_TOPIC(topic),
                                           RD_KAFKA_V_PARTITION(0),
                                           RD_KAFKA_V_VALUE(payload, sizes[i]), RD_KAFKA_V_END),
                         0);
        assert_int_equal(rd_kafka_flush(c.producer, 60000), 0);
    }
    free(payload);
    rig_init(&rig);
    rig_start(&rig, &c, topic, (struct kafka_options){.group_id = topic});
    RIG_UNTIL(&rig, rig.records == 3);
    assert_int_equal(rig.seats[0].bytes, sizes[0] + sizes[1] + sizes[2]);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* Aborted records never come; the lag is 0 behind control records, and nothing is kicked about. */
static void test_transactions(void **state)
{
    struct kafka_property transactional[] = {{"transactional.id", "test-kafka-tx"}};
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open_with(&c, topic, 1, transactional, 1))
        skip();
    assert_null(rd_kafka_init_transactions(c.producer, 30000));
    for (int i = 0; i < 4; i++) {
        assert_null(rd_kafka_begin_transaction(c.producer));
        produce(&c, topic, 0, 10, (size_t)(10 + i));
        if (i % 2)
            assert_null(rd_kafka_abort_transaction(c.producer, 30000));
        else
            assert_null(rd_kafka_commit_transaction(c.producer, 30000));
    }
    rig_init(&rig);
    rig.gaps_allowed = true;
    rig_start(&rig, &c, topic, (struct kafka_options){.group_id = topic});
    RIG_UNTIL(&rig, rig.records == 20);
    assert_int_equal(rig.seats[0].bytes, 10 * 10 + 10 * 12);
    assert_int_equal(rig.seats[0].last, 31);
    RIG_UNTIL(&rig, kafka_partition_lag(rig.seats[0].partition) == 0);
    rig_close(&rig, true);
    cluster_close(&c);
}

/* Deleted and made anew with less in it than we had read. */
static void test_topic_made_anew(void **state)
{
    struct kafka_property settings[] = {{"topic.metadata.refresh.interval.ms", "500"},
                                        {"session.timeout.ms", "6000"}};
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open(&c, topic, 1))
        skip();
    produce(&c, topic, 0, 1000, 10);
    rig_init(&rig);
    rig.begin = 1000;
    rig_start(
        &rig, &c, topic,
        (struct kafka_options){.group_id = topic, .properties = settings, .property_count = 2});
    RIG_UNTIL(&rig, rig.assigned == 1);
    RIG_UNTIL(&rig, kafka_partition_lag(rig.seats[0].partition) == 0);
    rd_kafka_DeleteTopic_t *drop = rd_kafka_DeleteTopic_new(topic);
    admin(&c, NULL, drop);
    rd_kafka_DeleteTopic_destroy(drop);
    rig_let_pass(&rig, 300);
    make_topic(&c, topic, 1);
    renew_producer(&c); /* the old one still believes that the topic is gone */
    produce(&c, topic, 0, 10, 10);
    RIG_UNTIL(&rig, rig.seats[0].out_of_range == 1000);
    kafka_partition_start(rig.seats[0].partition, KAFKA_OFFSET_POLICY, NULL);
    RIG_UNTIL(&rig, rig.records == 10);
    rig_close(&rig, true);
    cluster_close(&c);
}

static void test_topic_comes_late(void **state)
{
    struct kafka_property settings[] = {{"session.timeout.ms", "6000"},
                                        {"topic.metadata.refresh.interval.ms", "500"}};
    char topic[64], late[80];
    struct cluster c;

    (void)state;
    if (!real_open(&c, topic, 1))
        skip();
    snprintf(late, sizeof(late), "%s-late", topic);
    rig_init(&rig);
    rig_start(
        &rig, &c, late,
        (struct kafka_options){.group_id = topic, .properties = settings, .property_count = 2});
    rig_let_pass(&rig, 1000);
    make_topic(&c, late, 2);
    produce(&c, late, 1, 10, 10);
    RIG_UNTIL(&rig, rig.assigned == 2 && rig.records == 10);
    rig_close(&rig, true);
    cluster_close(&c);
}

static void test_thousand_partitions(void **state)
{
    char topic[64];
    struct cluster c;

    (void)state;
    if (!real_open(&c, topic, 1000))
        skip();
    for (int round = 0; round < 20; round++)
        for (int i = 0; i < 1000; i++)
            assert_int_equal(rd_kafka_producev(c.producer, RD_KAFKA_V_TOPIC(topic),
                                               RD_KAFKA_V_PARTITION(i), RD_KAFKA_V_VALUE("x", 1),
                                               RD_KAFKA_V_END),
                             0);
    assert_int_equal(rd_kafka_flush(c.producer, 30000), 0);
    rig_init(&rig);
    rig_start(&rig, &c, topic, (struct kafka_options){.group_id = topic});
    RIG_UNTIL(&rig, rig.records == 20000);
    assert_int_equal(rig.assigned, 1000);
    for (int i = 0; i < 1000; i++)
        kafka_commit(rig.seats[i].partition, 20, "m");
    RIG_UNTIL(&rig, rig.seats[0].commit_ok == 20 && rig.seats[999].commit_ok == 20);
    rig_close(&rig, true);
    cluster_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_members),
        cmocka_unit_test(test_refused_while_another_goes),
        cmocka_unit_test(test_revocation_is_bounded),
        cmocka_unit_test(test_static_member),
        cmocka_unit_test(test_large_records),
        cmocka_unit_test(test_transactions),
        cmocka_unit_test(test_topic_made_anew),
        cmocka_unit_test(test_topic_comes_late),
        cmocka_unit_test(test_thousand_partitions),
        cmocka_unit_test(test_commits_while_members_come_and_go),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
