/* SPDX-License-Identifier: Apache-2.0 */
/* The Kafka source among others: commits, rebalances, topics that come late, brokers that go. */
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include "kafka_rig.h"

#define API_OFFSET_COMMIT    8
#define API_FIND_COORDINATOR 10
#define API_JOIN_GROUP       11
#define API_HEARTBEAT        12

static struct rig rig;

static const struct kafka_options no_options;
static const struct kafka_property quick[] = {{"session.timeout.ms", "6000"},
                                              {"heartbeat.interval.ms", "100"},
                                              {"max.poll.interval.ms", "60000"}};
static const struct kafka_options quick_options = {.properties = quick, .property_count = 3};
static const struct kafka_options static_options = {
    .properties = quick, .property_count = 3, .group_instance_id = "spool-1"};

/* A member that is alone in the group has read 100 records, all of "t" in partition 0. */
static void read_hundred(struct cluster *c, int partitions, struct kafka_options options)
{
    cluster_open(c, "t", partitions);
    produce(c, "t", 0, 100, 10);
    rig_init(&rig);
    rig_start(&rig, c, "t", options);
    RIG_UNTIL(&rig, rig.records == 100);
}

static void commit(int32_t number, int64_t offset, const char *metadata)
{
    kafka_commit(rig.seats[number].partition, offset, metadata);
    RIG_UNTIL(&rig, rig.seats[number].commit_ok == offset);
}

static void end(struct cluster *c)
{
    rig_close(&rig, true);
    cluster_close(c);
}

static void test_commit_and_metadata(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 2);
    produce(&c, "t", 0, 100, 10);
    produce(&c, "t", 1, 100, 10);
    rig_init(&rig);
    rig_start(&rig, &c, "t", no_options);
    RIG_UNTIL(&rig, rig.records == 200);
    kafka_commit(rig.seats[0].partition, 10, "old");
    kafka_commit(rig.seats[0].partition, 60, "spool-a epoch 1");
    kafka_commit(rig.seats[1].partition, 70, NULL);
    RIG_UNTIL(&rig, rig.seats[0].commit_ok == 60 && rig.seats[1].commit_ok == 70);
    rig_close(&rig, true);

    rig_init(&rig);
    rig.resume_committed = true;
    rig_start(&rig, &c, "t", no_options);
    RIG_UNTIL(&rig, rig.records == 70);
    assert_int_equal(rig.seats[0].committed, 60);
    assert_string_equal(rig.seats[0].metadata, "spool-a epoch 1");
    assert_int_equal(rig.seats[0].first, 60);
    assert_int_equal(rig.seats[1].committed, 70);
    assert_string_equal(rig.seats[1].metadata, "");
    assert_int_equal(rig.seats[1].first, 70);
    end(&c);
}

/* What the group has committed can be asked of partitions that are not ours. */
static void test_committed_offsets_of_others(void **state)
{
    static const struct kafka_place places[] = {{"t", 0}, {"t", 1}, {"nowhere", 2}};
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 2);
    assert_int_equal(rd_kafka_mock_topic_create(c.mock, "other", 1, 1), 0);
    produce(&c, "t", 0, 100, 10);
    rig_init(&rig);
    rig_start(&rig, &c, "t", no_options);
    RIG_UNTIL(&rig, rig.records == 100);
    commit(0, 60, "spool-a epoch 1");
    commit(1, 70, NULL);
    rig_close(&rig, true);

    rig_init(&rig);
    rig_start(&rig, &c, "other", no_options);
    kafka_source_ask_committed(rig.source, places, 3); /* no broker answers yet */
    assert_null(rig.source->question.committed);
    assert_false(kafka_source_assigned(rig.source));
    RIG_UNTIL(&rig, rig.assigned == 1);
    assert_true(kafka_source_assigned(rig.source));
    kafka_source_ask_committed(rig.source, places, 3);
    RIG_UNTIL(&rig, rig.tellings == 2);
    assert_string_equal(rig.told[0].text, "t 60 spool-a epoch 1");
    assert_string_equal(rig.told[1].text, "t 70 ");
    kafka_source_ask_committed(rig.source, places, 3);
    rig_close(&rig, true); /* waits for it, and tells nothing */
    assert_int_equal(rig.tellings, 2);
    cluster_close(&c);
}

/* A commit that is made and not yet answered when the source closes still gets there. */
static void test_commit_before_close(void **state)
{
    struct cluster c;

    (void)state;
    read_hundred(&c, 1, no_options);
    kafka_commit(rig.seats[0].partition, 33, "m");
    rig_close(&rig, true);
    assert_int_equal(rig.seats[0].commit_ok, -1); /* nothing is called after close */
    rig_init(&rig);
    rig.hold_assigned = true;
    rig_start(&rig, &c, "t", no_options);
    RIG_UNTIL(&rig, rig.assigned == 1);
    assert_int_equal(rig.seats[0].committed, 33);
    end(&c);
}

static void test_commit_errors(void **state)
{
    struct cluster c;

    (void)state;
    read_hundred(&c, 1, no_options);
    rd_kafka_mock_push_request_errors(
        c.mock, API_OFFSET_COMMIT, 3, RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
        RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT);
    commit(0, 40, "");
    assert_int_equal(rig.seats[0].commit_failed, -1);
    rd_kafka_mock_push_request_errors(c.mock, API_OFFSET_COMMIT, 1,
                                      RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    kafka_commit(rig.seats[0].partition, 50, "");
    RIG_UNTIL(&rig, rig.seats[0].commit_failed == 50);
    commit(0, 60, ""); /* the next is tried all the same */
    end(&c);
}

/* Of a request that is refused for one of its partitions the others are committed. */
static void test_commit_refused_for_one(void **state)
{
    struct cluster c;
    struct kafka_partition *missing;

    (void)state;
    read_hundred(&c, 1, no_options);
    missing = kafka_partition_add(rig.source, "t", 7);
    assert_non_null(missing);
    missing->state = KAFKA_P_HELD;
    missing->user = &rig.seats[7];
    kafka_commit(rig.seats[0].partition, 40, "");
    kafka_commit(missing, 40, "");
    RIG_UNTIL(&rig, rig.seats[7].commit_failed == 40);
    assert_int_equal(rig.seats[0].commit_failed, -1);
    assert_int_equal(rig.seats[0].commit_ok, 40);
    end(&c);
}

/* A coordinator that does not answer may have given the partitions away before the client gives up. */
static void test_not_settled_without_an_answer(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 10, 10);
    rig_init(&rig);
    rig_start(&rig, &c, "t", quick_options);
    RIG_UNTIL(&rig, rig.records == 10 && kafka_source_settled(rig.source));
    rd_kafka_mock_broker_set_rtt(c.mock, 1, 5000);
    rig_let_pass(&rig, 2000);
    assert_true(kafka_source_settled(rig.source));
    rig_let_pass(&rig, 2000); /* of 6 s that a session lasts */
    assert_false(kafka_source_settled(rig.source));
    assert_int_equal(rig.lost, 0);
    rd_kafka_mock_broker_set_rtt(c.mock, 1, 0);
    RIG_UNTIL(&rig, kafka_source_settled(rig.source));
    end(&c);
}

/* Nor does one keep the member that answers with an error: its session ends as without an answer. */
static void test_not_settled_by_a_refusal(void **state)
{
    static rd_kafka_resp_err_t refused[1000];
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    rig_init(&rig);
    rig_start(&rig, &c, "t", quick_options);
    RIG_UNTIL(&rig, rig.assigned == 1 && kafka_source_settled(rig.source));
    for (size_t i = 0; i < 1000; i++)
        refused[i] = RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    rd_kafka_mock_push_request_errors_array(c.mock, API_HEARTBEAT, 1000, refused);
    RIG_UNTIL(&rig, !kafka_source_settled(rig.source));
    assert_int_equal(rig.revoked, 0);
    rd_kafka_mock_clear_request_errors(c.mock, API_HEARTBEAT);
    RIG_UNTIL(&rig, kafka_source_settled(rig.source));
    end(&c);
}

/* A member without an id gets one, and nothing else happens: no rebalance, no other coordinator. */
static void test_a_commit_held_back_is_not_forgotten(void **state)
{
    struct cluster c;

    (void)state;
    read_hundred(&c, 1, no_options);
    kafka_join_note(rig.source->hook, "MEMBERID", "updating member id \"a\" -> \"\"");
    kafka_commit(rig.seats[0].partition, 40, "");
    rig_let_pass(&rig, 100);
    assert_int_equal(rig.seats[0].commit_ok, -1);
    kafka_join_note(rig.source->hook, "MEMBERID", "updating member id \"\" -> \"a\"");
    RIG_UNTIL(&rig, rig.seats[0].commit_ok == 40);
    end(&c);
}

static void test_lost(void **state)
{
    struct cluster c;

    (void)state;
    read_hundred(&c, 2, quick_options);
    rig.resume_committed = true;
    commit(0, 100, "");
    rig.hold_revoke = true;
    rd_kafka_mock_push_request_errors(c.mock, API_HEARTBEAT, 1,
                                      RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID);
    RIG_UNTIL(&rig, rig.lost == 2);
    kafka_commit(rig.seats[0].partition, 50, "never"); /* not ours any more */
    kafka_revoke_done(rig.source);
    RIG_UNTIL(&rig, rig.assigned == 4);
    assert_int_equal(rig.seats[0].committed, 100);
    assert_int_equal(rig.seats[0].commit_ok, 100);
    produce(&c, "t", 0, 10, 10);
    RIG_UNTIL(&rig, rig.records == 110);
    end(&c);
}

/* Its session ended while it joined again: the client goes on under another id, with all it has, and says
   nothing of what others may have had meanwhile. */
static void test_forgotten_while_it_joins(void **state)
{
    struct cluster c;
    uint64_t before;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 10, 10);
    rig_init(&rig);
    rig_start(&rig, &c, "t", quick_options);
    RIG_UNTIL(&rig, rig.records == 10);
    before = rig.rebalanced;
    assert_int_equal(rig.assigned, 1);
    rd_kafka_mock_push_request_errors(c.mock, API_JOIN_GROUP, 1,
                                      RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID);
    rd_kafka_mock_push_request_errors(c.mock, API_HEARTBEAT, 1,
                                      RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS);
    RIG_UNTIL(&rig, rig.rebalanced > before);
    rig_let_pass(&rig, 500);
    RIG_UNTIL(&rig, rig.assigned == 2);
    assert_int_equal(rig.lost, 1);
    RIG_UNTIL(&rig, rig.records == 20);
    end(&c);
}

/* Runs that are still in work when their partition goes may come back later. */
static void test_run_done_after_revocation(void **state)
{
    struct kafka_stats stats;
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 100, 10);
    rig_init(&rig);
    rig.hold_runs = true;
    rig_start(&rig, &c, "t", quick_options);
    RIG_UNTIL(&rig, rig.runs == 1);
    rd_kafka_mock_push_request_errors(c.mock, API_HEARTBEAT, 1,
                                      RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID);
    RIG_UNTIL(&rig, rig.assigned == 2);
    rig.seats[0].last = -1;
    RIG_UNTIL(&rig, rig.runs == 2);
    rig.parked->next->run->ops->release(rig.parked->next->run);
    kafka_run_done(rig.source, rig.parked->next->partition, 100, 1000);
    free(rig.parked->next);
    rig.parked->next = NULL;
    rig_release(&rig);
    RIG_UNTIL(&rig, rig.jobs == 0);
    kafka_source_stats(rig.source, &stats);
    assert_int_equal(stats.held_messages, 0);
    end(&c);
}

static void test_topic_comes_late(void **state)
{
    /* Not a part of the mock's rounds of 3 and 5 s: a refresh that is answered while the leader waits for
       its own metadata makes it join anew, and one in step with the rounds does so in each of them. */
    struct kafka_property refresh[] = {{"topic.metadata.refresh.interval.ms", "530"},
                                       {"session.timeout.ms", "6000"}};
    struct cluster c;

    (void)state;
    cluster_open(&c, NULL, 0);
    /* The mock would make it when asked about it. */
    rd_kafka_mock_topic_set_error(c.mock, "late", RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART);
    rig_init(&rig);
    rig_start(&rig, &c, "late", (struct kafka_options){.properties = refresh, .property_count = 2});
    rig_let_pass(&rig, 2000);
    assert_int_equal(rig.assigned, 0);
    rd_kafka_mock_topic_set_error(c.mock, "late", RD_KAFKA_RESP_ERR_NO_ERROR);
    produce(&c, "late", 1, 10, 10);
    RIG_UNTIL(&rig, rig.assigned > 1 && rig.records == 10);
    end(&c);
}

static void test_broker_goes_and_comes(void **state)
{
    struct kafka_stats stats;
    struct cluster c;

    (void)state;
    read_hundred(&c, 2, no_options);
    kafka_source_stats(rig.source, &stats);
    assert_true(stats.connected);
    rd_kafka_mock_broker_set_down(c.mock, 1);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), !stats.connected));
    assert_true(stats.reason[0] != '\0');
    kafka_commit(rig.seats[0].partition, 77, ""); /* is sent when the broker is back */
    rig_let_pass(&rig, 500);
    rd_kafka_mock_broker_set_up(c.mock, 1);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), stats.connected));
    produce(&c, "t", 0, 100, 10);
    produce(&c, "t", 1, 100, 10);
    RIG_UNTIL(&rig, rig.records == 300 && rig.seats[0].commit_ok == 77);
    end(&c);
}

static void test_no_broker_at_all(void **state)
{
    struct cluster nowhere = {.brokers = "127.0.0.1:1"};
    struct kafka_stats stats;

    (void)state;
    rig_init(&rig);
    rig_start(&rig, &nowhere, "t", no_options);
    kafka_source_stats(rig.source, &stats);
    assert_false(stats.connected);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), strstr(stats.reason, "refused")));
    rig_close(&rig, false);
}

/* Before the loop looks at what is ready; the source is there for as long. */
static void wait_for_the_pool(uv_prepare_t *prepare)
{
    struct kafka_source *s = prepare->data;

    if (!s->close_started)
        return;
    while (*(struct kafka_hook *volatile *)&s->hook)
        sched_yield();
    uv_close((uv_handle_t *)prepare, NULL);
}

/* In the middle of a join the client is left, and its place to write to with it: what it had woken the
   loop for is not looked at any more. */
static void test_woken_while_it_closes(void **state)
{
    static const uint64_t one = 1;
    uv_prepare_t prepare;
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    rig_init(&rig);
    rig_start(&rig, &c, "t", static_options);
    RIG_UNTIL(&rig, !kafka_source_asks(rig.source));
    assert_false(rig.source->settled);
    uv_prepare_init(&rig.loop, &prepare);
    prepare.data = rig.source;
    uv_prepare_start(&prepare, wait_for_the_pool);
    kafka_source_close(rig.source, false, rig_closed, &rig);
    assert_int_equal(write(rig.source->commit_fd, &one, sizeof(one)), sizeof(one));
    RIG_UNTIL(&rig, rig.closed);
    assert_true(uv_is_closing((uv_handle_t *)&prepare));
    rig_end(&rig);
    cluster_close(&c);
}

static void test_fatal(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    rig_init(&rig);
    rig_start(&rig, &c, "t", static_options);
    RIG_UNTIL(&rig, rig.assigned == 1);
    rig.source->hook->named_ms -= rig.source->session_ms;
    rd_kafka_mock_push_request_errors(c.mock, API_HEARTBEAT, 1,
                                      RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
    RIG_UNTIL(&rig, rig.fatal[0] != '\0');
    assert_non_null(strstr(rig.fatal, "instance"));
    rig_close(&rig, false);
    cluster_close(&c);
}

static bool denied;

static void look_for_denied(void *arg, const char *line, size_t n)
{
    (void)arg;
    denied |= memmem(line, n, "kafka.denied group=group", 24) != NULL;
}

/* The client says it once, behind another error. */
static void test_no_right_to_the_group(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    rd_kafka_mock_push_request_errors(c.mock, API_FIND_COORDINATOR, 3, RD_KAFKA_RESP_ERR_UNKNOWN,
                                      RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED,
                                      RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED);
    rig_init(&rig);
    denied = false;
    log_set_writer(look_for_denied, NULL);
    rig_start(&rig, &c, "t", quick_options);
    RIG_UNTIL(&rig, rig.assigned == 1);
    log_set_writer(NULL, NULL);
    assert_true(denied);
    end(&c);
}

/* A broker answers, and nothing is assigned: the status says why, until the user has the right. */
static void test_the_status_names_the_group_that_is_refused(void **state)
{
    static rd_kafka_resp_err_t refused[1000];
    struct kafka_stats stats;
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 1);
    for (size_t i = 0; i < 1000; i++)
        refused[i] = RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    rd_kafka_mock_push_request_errors_array(c.mock, API_FIND_COORDINATOR, 1000, refused);
    rig_init(&rig);
    rig_start(&rig, &c, "t", quick_options);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats),
                     stats.connected && strstr(stats.reason, "the group \"group\"")));
    rd_kafka_mock_clear_request_errors(c.mock, API_FIND_COORDINATOR);
    RIG_UNTIL(&rig, rig.assigned == 1);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), !stats.reason[0]));
    assert_true(stats.connected);
    end(&c);
}

/* ... also while it has partitions, which it keeps if it has the right again within its session. */
static void test_the_right_to_the_group_is_away_for_a_moment(void **state)
{
    static rd_kafka_resp_err_t refused[1000];
    struct kafka_stats stats;
    struct cluster c;

    (void)state;
    read_hundred(&c, 1, quick_options);
    for (size_t i = 0; i < 1000; i++)
        refused[i] = RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    rd_kafka_mock_push_request_errors_array(c.mock, API_FIND_COORDINATOR, 1000, refused);
    rd_kafka_mock_push_request_errors(c.mock, API_HEARTBEAT, 1, RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), stats.reason[0]));
    rd_kafka_mock_clear_request_errors(c.mock, API_FIND_COORDINATOR);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), !stats.reason[0]));
    end(&c);
}

static void start_static(struct cluster *c)
{
    read_hundred(c, 1, static_options);
    rig.resume_committed = true;
    commit(0, 40, "");
}

/* The session is over, and the member has no id: whatever is committed now is refused as another
   member's with the same group.instance.id, where the broker came back with the group as it was. */
static void back_without_a_name(struct cluster *c, bool down)
{
    RIG_UNTIL(&rig, rig.lost == 1);
    rd_kafka_mock_push_request_errors(c->mock, API_OFFSET_COMMIT, 1,
                                      RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID);
    if (down)
        rd_kafka_mock_broker_set_up(c->mock, 1);
    else
        rd_kafka_mock_clear_request_errors(c->mock, API_FIND_COORDINATOR);
    RIG_UNTIL(&rig, rig.assigned == 2 || rig.fatal[0]);
    assert_string_equal(rig.fatal, "");
    rd_kafka_mock_clear_request_errors(c->mock, API_OFFSET_COMMIT);
    assert_int_equal(rig.seats[0].committed, 40);
    RIG_UNTIL(&rig, rig.records == 160);
    commit(0, 100, "");
    end(c);
}

static void test_commit_while_the_broker_is_away(void **state)
{
    struct kafka_stats stats;
    struct cluster c;

    (void)state;
    start_static(&c);
    rd_kafka_mock_broker_set_down(c.mock, 1);
    RIG_UNTIL(&rig, (kafka_source_stats(rig.source, &stats), !stats.connected));
    rig_let_pass(&rig,
                 4000); /* of the 6 s that the client would keep it there are many left then */
    kafka_commit(rig.seats[0].partition, 70, "");
    back_without_a_name(&c, true);
}

/* Refused three times, the client keeps a commit until there is a coordinator again. */
static void test_commit_kept_by_the_client(void **state)
{
    static rd_kafka_resp_err_t none[1000];
    struct cluster c;

    (void)state;
    start_static(&c);
    for (size_t i = 0; i < 1000; i++)
        none[i] = RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE;
    rd_kafka_mock_push_request_errors_array(c.mock, API_FIND_COORDINATOR, 1000, none);
    rd_kafka_mock_push_request_errors(
        c.mock, API_OFFSET_COMMIT, 3, RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        RD_KAFKA_RESP_ERR_NOT_COORDINATOR, RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
    kafka_commit(rig.seats[0].partition, 70, "");
    back_without_a_name(&c, false);
}

static bool has_ended(int fd)
{
    struct pollfd look = {.fd = fd, .events = POLLIN};

    assert_true(poll(&look, 1, 0) >= 0);
    return look.revents & POLLHUP;
}

static int connect_to(struct kafka_hook *h, const struct sockaddr_in *at, int *fd)
{
    *fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(*fd >= 0);
    return kafka_join_connect(*fd, (const struct sockaddr *)at, sizeof(*at), "b", h);
}

/* A broker that hangs has a connection that was made, and may answer at any time after the session. */
static void test_connections_end_with_the_session(void **state)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct kafka_source source = {.commit_fd = -1};
    socklen_t size = sizeof(at);
    int listener = socket(AF_INET, SOCK_STREAM, 0), before, after;

    (void)state;
    assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof(at)), 0);
    assert_int_equal(listen(listener, 8), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &size), 0);
    source.hook = kafka_hook_create(&source);
    assert_non_null(source.hook);
    assert_int_equal(connect_to(source.hook, &at, &before), 0);
    kafka_join_note(source.hook, "COMMIT", "Group \"g\": unable to OffsetCommit in state up");
    kafka_join_note(source.hook, "COMMIT", "c/1: Committing offsets for 1 partition(s) with ...");
    kafka_join_note(source.hook, "MEMBERID", "updating member id \"a\" -> \"\"");
    assert_false(has_ended(before)); /* it had its id when it was handed over */
    kafka_join_note(source.hook, "MEMBERID", "updating member id \"\" -> \"a\"");
    kafka_join_note(source.hook, "COMMIT", "Group \"g\": unable to OffsetCommit in state up");
    assert_false(has_ended(before));
    kafka_join_note(source.hook, "MEMBERID", "updating member id \"a\" -> \"\"");
    assert_true(has_ended(before));
    assert_int_equal(connect_to(source.hook, &at, &after), EAGAIN);
    assert_int_equal(kafka_join_close(after, source.hook), 0);
    assert_int_equal(kafka_join_close(before, source.hook), 0);
    kafka_join_commit_answered(&source);
    assert_int_equal(connect_to(source.hook, &at, &after), 0);
    assert_false(has_ended(after));
    assert_int_equal(kafka_join_close(after, source.hook), 0);
    assert_int_equal(source.hook->connection_count, 0);
    kafka_hook_destroy(source.hook);
    close(listener);
}

static void rebalance(struct cluster *c)
{
    rd_kafka_mock_push_request_errors(c->mock, API_HEARTBEAT, 1,
                                      RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS);
}

/* Waits for what the client's threads put there, while the loop stands still. */
static void queue_fills(size_t length)
{
    uint64_t end_ns = uv_hrtime() + RIG_DEADLINE_MS * 1000000ull;

    while (rd_kafka_queue_length(rig.source->consumer_queue) < length && uv_hrtime() < end_ns)
        sched_yield();
}

static bool rebalanced_once;

/* In the middle of a batch: a rebalance, and all that it puts into the queue behind the records: the
   barrier of a pause, and the callback. */
static rd_kafka_resp_err_t rebalance_at_150(rd_kafka_t *client, rd_kafka_message_t *m, void *arg)
{
    size_t queued = rd_kafka_queue_length(rig.source->consumer_queue);

    (void)client;
    if (m->err || m->offset != 150 || rebalanced_once)
        return RD_KAFKA_RESP_ERR_NO_ERROR;
    rebalanced_once = true; /* it comes again */
    rebalance(arg);
    queue_fills(queued + 2);
    return RD_KAFKA_RESP_ERR_NO_ERROR;
}

static struct cluster *rebalanced; /* NULL: no test wants it */

/* In the library's place, since an interceptor can be added only while the client is made. */
rd_kafka_resp_err_t
rd_kafka_interceptor_add_on_request_sent(rd_kafka_t *client, const char *name,
                                         rd_kafka_interceptor_f_on_request_sent_t *sent, void *arg)
{
    __typeof__(&rd_kafka_interceptor_add_on_request_sent) real =
        (__typeof__(real))dlsym(RTLD_NEXT, "rd_kafka_interceptor_add_on_request_sent");

    if (rebalanced)
        rd_kafka_interceptor_add_on_consume(client, "test", rebalance_at_150, rebalanced);
    return real(client, name, sent, arg);
}

/* Records that were taken out of the queue when the barrier comes are thrown out of their batch, and
   2.0.2 goes on behind them. The loop stands still until all are queued, so they are one batch. */
static void test_rebalance_within_a_batch(void **state)
{
    struct cluster c;

    (void)state;
    rebalanced = &c;
    rebalanced_once = false;
    read_hundred(&c, 1, quick_options);
    rebalanced = NULL;
    produce(&c, "t", 0, 100, 10);
    queue_fills(100);
    RIG_UNTIL(&rig, rig.records == 200);
    produce(&c, "t", 0, 100, 10);
    RIG_UNTIL(&rig, rig.records == 300); /* fails where an offset is left out */
    assert_true(rig.source->reseeks > 0);
    RIG_UNTIL(&rig, rig.rebalanced >= 1);
    end(&c);
}

/* What is known of the last record handed over outlives an open run that is looked behind and then
   thrown away. */
static void test_mark_behind_a_discarded_run(void **state)
{
    struct kafka_partition *p;
    struct cluster c;
    uint64_t before;

    (void)state;
    p = rig_open_run(&rig, &c, quick, 3);
    before = rig.source->reseeks;
    rebalance(&c);
    RIG_UNTIL(&rig, rig.source->reseeks > before);
    kafka_partition_pause(p, KAFKA_PAUSE_HELD);
    RIG_UNTIL(&rig, p->parked);
    assert_int_equal(p->taken, 49);
    p->mark.hash++; /* as if another record stood there in the log now */
    kafka_partition_resume(p, KAFKA_PAUSE_HELD);
    RIG_UNTIL(&rig, rig.seats[0].new_log >= 0 || p->taken == 79);
    assert_int_equal(rig.seats[0].new_log, 50);
    end(&c);
}

/* Nor can what was taken and not handed over be had again, where the log is found to be another one. */
static void test_the_last_run_of_a_log(void **state)
{
    struct kafka_partition *p;
    struct cluster c;

    (void)state;
    p = rig_open_run(&rig, &c, quick, 3);
    assert_false(rig.seats[0].last_of_log);
    rig.source->reseek_due = true;
    kafka_partitions_reseek(rig.source);
    assert_true(p->verifying);
    p->awaited.hash++; /* as if another record stood there in the log now */
    RIG_UNTIL(&rig, rig.seats[0].new_log >= 0);
    assert_int_equal(rig.seats[0].new_log, 80);
    assert_int_equal(rig.seats[0].last, 79);
    assert_true(rig.seats[0].last_of_log);
    end(&c);
}

static bool impatient;

/* In the library's place: whoever waits only so long for the client's thread goes without its answer. */
rd_kafka_error_t *rd_kafka_seek_partitions(rd_kafka_t *client,
                                           rd_kafka_topic_partition_list_t *list, int timeout_ms)
{
    __typeof__(&rd_kafka_seek_partitions) real =
        (__typeof__(real))dlsym(RTLD_NEXT, "rd_kafka_seek_partitions");

    return real(client, list, impatient && timeout_ms > 0 ? 0 : timeout_ms);
}

/* A partition that is assigned while a commit is under way is fetched only when that is answered, and
   can't be sought before. The client says so, if late where its thread did not run for a while. */
static void test_sought_before_it_is_fetched(void **state)
{
    struct cluster c;

    (void)state;
    cluster_open(&c, "t", 2);
    produce(&c, "t", 0, 100, 10);
    produce(&c, "t", 1, 100, 10);
    rig_init(&rig);
    rig.hold_assigned = true;
    rig_start(&rig, &c, "t", no_options);
    RIG_UNTIL(&rig, rig.assigned == 2);
    kafka_partition_start(rig.seats[0].partition, 0, NULL);
    RIG_UNTIL(&rig, rig.records == 100);
    rd_kafka_mock_broker_push_request_error_rtts(c.mock, 1, API_OFFSET_COMMIT, 1,
                                                 RD_KAFKA_RESP_ERR_NO_ERROR, 1000);
    kafka_commit(rig.seats[0].partition, 10, "");
    RIG_UNTIL(&rig, rig.source->commit_in_flight);
    kafka_partition_start(rig.seats[1].partition, 50, NULL);
    RIG_UNTIL(&rig, rig.seats[1].partition->state == KAFKA_P_ACTIVE);
    impatient = true;
    kafka_partition_start(rig.seats[1].partition, 10, NULL);
    RIG_UNTIL(&rig, rig.seats[1].last == 99);
    impatient = false;
    assert_int_equal(rig.seats[1].first, 10);
    end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_commit_and_metadata),
        cmocka_unit_test(test_committed_offsets_of_others),
        cmocka_unit_test(test_commit_before_close),
        cmocka_unit_test(test_commit_errors),
        cmocka_unit_test(test_commit_refused_for_one),
        cmocka_unit_test(test_not_settled_without_an_answer),
        cmocka_unit_test(test_not_settled_by_a_refusal),
        cmocka_unit_test(test_a_commit_held_back_is_not_forgotten),
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_forgotten_while_it_joins),
        cmocka_unit_test(test_run_done_after_revocation),
        cmocka_unit_test(test_topic_comes_late),
        cmocka_unit_test(test_broker_goes_and_comes),
        cmocka_unit_test(test_no_broker_at_all),
        cmocka_unit_test(test_woken_while_it_closes),
        cmocka_unit_test(test_fatal),
        cmocka_unit_test(test_no_right_to_the_group),
        cmocka_unit_test(test_the_status_names_the_group_that_is_refused),
        cmocka_unit_test(test_the_right_to_the_group_is_away_for_a_moment),
        cmocka_unit_test(test_commit_while_the_broker_is_away),
        cmocka_unit_test(test_commit_kept_by_the_client),
        cmocka_unit_test(test_connections_end_with_the_session),
        cmocka_unit_test(test_rebalance_within_a_batch),
        cmocka_unit_test(test_mark_behind_a_discarded_run),
        cmocka_unit_test(test_the_last_run_of_a_log),
        cmocka_unit_test(test_sought_before_it_is_fetched),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
