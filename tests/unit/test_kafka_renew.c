/* SPDX-License-Identifier: Apache-2.0 */
/* A member that is fenced by what it sent itself before it lost its session. */
#include "base/clock.h"
#include "kafka_rig.h"

#define API_OFFSET_COMMIT 8
#define API_JOIN_GROUP    11
#define API_HEARTBEAT     12
#define API_SYNC_GROUP    14

static struct rig rig;

static const struct kafka_property quick[] = {
    {"session.timeout.ms", "6000"},
    {"heartbeat.interval.ms", "100"},
    {"max.poll.interval.ms", "7000"},
};

static void refuse(struct cluster *c, int16_t api, rd_kafka_resp_err_t error)
{
    rd_kafka_mock_push_request_errors(c->mock, api, 1, error);
}

static void open_with_records(struct cluster *c)
{
    cluster_open(c, "t", 2);
    produce(c, "t", 0, 100, 10);
    rig_init(&rig);
}

/* As a static member. */
static void start(struct cluster *c)
{
    rig_start(&rig, c, "t",
              (struct kafka_options){
                  .properties = quick, .property_count = 3, .group_instance_id = "spool-1"});
}

/* All records are read and 40 committed. */
static void begin(struct cluster *c)
{
    open_with_records(c);
    rig.resume_committed = true;
    start(c);
    RIG_UNTIL(&rig, rig.records == 100 && rig.assigned == 2);
    kafka_commit(rig.seats[0].partition, 40, "mine");
    RIG_UNTIL(&rig, rig.seats[0].commit_ok == 40);
}

/* The broker forgets it, and it joins again under a new id. */
static void lose_session(struct cluster *c)
{
    uint64_t assigned = rig.assigned;

    refuse(c, API_HEARTBEAT, RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID);
    RIG_UNTIL(&rig, rig.assigned == assigned + 2);
    RIG_UNTIL(&rig, rig.seats[0].last == 99);
    assert_true(atomic_load(&rig.source->hook->renamed_ms) > 0);
}

/* At once after it got its new id, whenever that was: the mock lets each rebalance wait for nearly a
   session. */
static void fence(struct cluster *c, int16_t api)
{
    atomic_store(&rig.source->hook->renamed_ms, clock_boot_ms());
    refuse(c, api, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
}

/* Ten more records come, up to end. */
static void goes_on(struct cluster *c, int64_t end)
{
    produce(c, "t", 0, 10, 10);
    RIG_UNTIL(&rig, rig.seats[0].last == end - 1);
    kafka_commit(rig.seats[0].partition, end, "mine");
    RIG_UNTIL(&rig, rig.seats[0].commit_ok == end);
    assert_string_equal(rig.fatal, "");
}

static void end(struct cluster *c)
{
    rig_close(&rig, true);
    cluster_close(c);
}

/* Once it has both partitions again. */
static void goes_on_and_ends(struct cluster *c)
{
    RIG_UNTIL(&rig, rig.assigned == 4);
    goes_on(c, 110);
    end(c);
}

static void test_by_a_heartbeat(void **state)
{
    const rd_kafka_t *client;
    struct cluster c;

    (void)state;
    begin(&c);
    lose_session(&c);
    client = rig.source->client;
    fence(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.source->client != client && rig.assigned == 6);
    assert_int_equal(rig.lost, 4);
    assert_int_equal(rig.seats[0].committed, 40);
    goes_on(&c, 110);
    end(&c);
}

static void test_while_it_joins(void **state)
{
    static const int16_t at[] = {API_JOIN_GROUP, API_SYNC_GROUP};
    struct cluster c;

    (void)state;
    begin(&c);
    for (int i = 0; i < 2; i++) {
        uint64_t assigned = rig.assigned;
        fence(&c, at[i]);
        refuse(&c, API_HEARTBEAT, RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS);
        RIG_UNTIL(&rig, rig.assigned == assigned + 2);
        goes_on(&c, 110 + 10 * i);
    }
    end(&c);
}

/* The new client is fenced, too, before it has an assignment. */
static void test_once_more(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    fence(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.source->renewing);
    refuse(&c, API_SYNC_GROUP, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
    RIG_UNTIL(&rig, !rig.source->renewing);
    rig.source->session_ms *= 10; /* however long the mock's rebalance takes */
    goes_on_and_ends(&c);
}

/* The client waits for an answer that it does not get. */
static void test_with_an_answer_due(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    rig.hold_revoke = true;
    fence(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.lost == 2);
    rig_let_pass(&rig, 200);
    atomic_store(&rig.source->hook->answering, true);
    rig.hold_revoke = false;
    kafka_revoke_done(rig.source);
    goes_on_and_ends(&c);
}

/* The answer to a commit says it. */
static void test_by_a_commit(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    fence(&c, API_OFFSET_COMMIT);
    kafka_commit(rig.seats[0].partition, 60, "mine");
    RIG_UNTIL(&rig, rig.assigned == 4);
    assert_int_equal(rig.seats[0].committed, 40);
    goes_on(&c, 110);
    end(&c);
}

/* The client has messages of ours, and must not end before they are released. */
static void test_with_runs_out(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    rig.hold_runs = rig.hold_revoke = true;
    produce(&c, "t", 0, 10, 10);
    RIG_UNTIL(&rig, rig.parked);
    fence(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.lost == 2);
    rig_let_pass(&rig, 200);
    assert_true(rig.source->renewing && !rig.source->renew_started);
    kafka_revoke_done(rig.source);
    rig.hold_revoke = false;
    rig_let_pass(&rig, 200);
    assert_true(rig.source->renewing && !rig.source->renew_started);
    rig_release(&rig);
    RIG_UNTIL(&rig, rig.assigned == 4);
    assert_int_equal(rig.seats[0].committed, 40);
    goes_on(&c, 120);
    rig_close(&rig, false);
    cluster_close(&c);
}

/* At its start: the broker begins, too, and has not answered an earlier join. */
static void test_behind_a_join_that_was_given_up(void **state)
{
    const rd_kafka_t *client;
    struct cluster c;

    (void)state;
    open_with_records(&c);
    refuse(&c, API_JOIN_GROUP, RD_KAFKA_RESP_ERR__TRANSPORT);
    start(&c);
    RIG_UNTIL(&rig, rig.records == 100 && rig.assigned == 2);
    assert_true(atomic_load(&rig.source->hook->renamed_ms) > 0);
    client = rig.source->client;
    fence(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.source->client != client && rig.assigned == 4);
    goes_on(&c, 110);
    end(&c);
}

/* Soon after its start. The mock may let the first rebalance wait for nearly a session. */
static void fence_new(struct cluster *c, int16_t api)
{
    atomic_store(&rig.source->hook->named_ms, clock_boot_ms());
    atomic_store(&rig.source->hook->renamed_ms, 0);
    refuse(c, api, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
}

/* What its former life sent comes late: that was killed while the network was down. It does not answer, so
   whoever fences the member once more is there. */
static void test_by_a_former_life_and_then_by_a_stranger(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    fence_new(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.assigned == 4 || rig.fatal[0] != '\0');
    assert_string_equal(rig.fatal, "");
    goes_on(&c, 110);
    fence_new(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.fatal[0] != '\0');
    assert_non_null(strstr(rig.fatal, "\"spool-1\""));
    rig_close(&rig, false);
    cluster_close(&c);
}

/* ... before it has an id. */
static void test_by_a_former_life_while_it_begins(void **state)
{
    struct cluster c;

    (void)state;
    open_with_records(&c);
    refuse(&c, API_JOIN_GROUP, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
    start(&c);
    RIG_UNTIL(&rig, rig.records == 100 || rig.fatal[0] != '\0');
    assert_string_equal(rig.fatal, "");
    goes_on(&c, 110);
    end(&c);
}

static void drop_parked(void)
{
    while (rig.parked) {
        struct parked_run *parked = rig.parked;
        uint64_t bytes = parked->run->bytes;
        uint32_t count = parked->run->count;
        rig.parked = parked->next;
        parked->run->ops->release(parked->run);
        kafka_run_done(rig.source, parked->partition, count, bytes);
        free(parked);
    }
}

/* Those of a stream that is held may stay out for days. */
static void test_with_runs_out_for_long(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    rig.hold_runs = true;
    produce(&c, "t", 0, 10, 10);
    RIG_UNTIL(&rig, rig.parked);
    fence(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.source->renewing);
    rig.source->renew_since_ms -= 10000;
    rig.hold_runs = false;
    RIG_UNTIL(&rig, rig.assigned == 4);
    RIG_UNTIL(&rig, rig.seats[0].last == 109);
    drop_parked();
    goes_on(&c, 120);
    end(&c);
}

/* As the client's callback says it. */
static void take_away(int32_t first, int32_t last)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(2);

    rd_kafka_topic_partition_list_add_range(list, "t", first, last);
    kafka_group_rebalance_cb(rig.source->client, RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS, list,
                             rig.source->hook);
    rd_kafka_topic_partition_list_destroy(list);
}

/* Those that the pipeline is not done with are lost, too, and it is told so. */
static void test_while_partitions_are_taken_away(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    rig.hold_revoke = true;
    take_away(1, 1);
    RIG_UNTIL(&rig, rig.revoked == 1 && rig.source->revoke_pending);
    fence(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.lost == 2);
    assert_int_equal(rig.revoked, 3);
    assert_int_equal(rig.source->partition_count, 0);
    rig.hold_revoke = false;
    kafka_revoke_done(rig.source);
    goes_on_and_ends(&c);
}

/* The broker takes four seconds to answer it. */
static void commit_slowly(struct cluster *c)
{
    rd_kafka_mock_broker_push_request_error_rtts(c->mock, 1, API_OFFSET_COMMIT, 1,
                                                 RD_KAFKA_RESP_ERR_NO_ERROR, 4000);
    kafka_commit(rig.seats[0].partition, 60, "mine");
    RIG_UNTIL(&rig, rig.source->commit_in_flight);
}

static void fence_at_once(void)
{
    atomic_store(&rig.source->hook->renamed_ms, clock_boot_ms());
    rd_kafka_test_fatal_error(rig.source->client, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID, "test");
    RIG_UNTIL(&rig, rig.source->renewing);
}

/* Its answer comes to the client that is given up; else no other would be sent. */
static void test_with_a_commit_under_way(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    commit_slowly(&c);
    fence_at_once();
    goes_on_and_ends(&c);
}

/* The pipeline has let go of all there is, and nothing but the answer to a commit is waited for. */
static void test_with_the_last_commit_of_a_revocation(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    commit_slowly(&c);
    take_away(0, 1);
    RIG_UNTIL(&rig, rig.source->revoke_done);
    fence_at_once();
    assert_int_equal(rig.revoked, 2);
    goes_on_and_ends(&c);
}

/* A revocation ran out of time, with the pipeline done and a commit not answered. */
static void test_behind_a_late_commit(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    commit_slowly(&c);
    take_away(0, 1);
    RIG_UNTIL(&rig, rig.source->revoke_done);
    kafka_source_timer(rig.source, KAFKA_T_REVOKE, 0);
    RIG_UNTIL(&rig, rig.source->partition_count == 0);
    rig_let_pass(&rig, 50);
    assert_int_equal(rig.source->kept_count, 0);
    fence_at_once();
    goes_on_and_ends(&c);
}

static void test_closed_meanwhile(void **state)
{
    struct cluster c;

    (void)state;
    for (int started = 0; started < 2; started++) {
        begin(&c);
        fence(&c, API_HEARTBEAT);
        RIG_UNTIL(&rig, started ? rig.source->renew_started : rig.source->renewing);
        rig_close(&rig, started);
        cluster_close(&c);
    }
    begin(&c); /* and with a client that is left */
    fence(&c, API_HEARTBEAT);
    RIG_UNTIL(&rig, rig.source->renewing);
    refuse(&c, API_JOIN_GROUP, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
    RIG_UNTIL(&rig, rig.source->renew_leaves);
    end(&c);
}

/* What it sent before it lost its session is long over: it is another one that has its place. */
static void test_by_a_stranger(void **state)
{
    struct cluster c;

    (void)state;
    begin(&c);
    atomic_store(&rig.source->hook->renamed_ms, clock_boot_ms() - rig.source->session_ms);
    atomic_store(&rig.source->hook->named_ms, clock_boot_ms() - rig.source->session_ms);
    refuse(&c, API_HEARTBEAT, RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
    RIG_UNTIL(&rig, rig.fatal[0] != '\0');
    assert_non_null(strstr(rig.fatal, "instance"));
    rig_close(&rig, false);
    cluster_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_a_heartbeat),
        cmocka_unit_test(test_while_it_joins),
        cmocka_unit_test(test_once_more),
        cmocka_unit_test(test_with_an_answer_due),
        cmocka_unit_test(test_by_a_commit),
        cmocka_unit_test(test_with_runs_out),
        cmocka_unit_test(test_with_runs_out_for_long),
        cmocka_unit_test(test_while_partitions_are_taken_away),
        cmocka_unit_test(test_with_a_commit_under_way),
        cmocka_unit_test(test_with_the_last_commit_of_a_revocation),
        cmocka_unit_test(test_behind_a_late_commit),
        cmocka_unit_test(test_closed_meanwhile),
        cmocka_unit_test(test_behind_a_join_that_was_given_up),
        cmocka_unit_test(test_by_a_former_life_and_then_by_a_stranger),
        cmocka_unit_test(test_by_a_former_life_while_it_begins),
        cmocka_unit_test(test_by_a_stranger),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
