/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Error answers of a broker, each once, some times, or for a while: the source goes on behind them. All
 * records come, in order and once, or from the committed offset where the group took the partition away;
 * a commit that is made later gets through; and nothing ends but where another member has our name.
 *
 * A row of the table is a process of its own, since it does little but wait for the mock's rounds.
 */
#include <sys/wait.h>

#include "base/clock.h"
#include "kafka_rig.h"

#define ROWS_AT_A_TIME 18 /* and 2 under valgrind, where a row is not idle */
#define WHILE_MS       1500

enum api {
    API_FETCH = 1,
    API_LIST_OFFSETS,
    API_METADATA,
    API_OFFSET_COMMIT = 8,
    API_OFFSET_FETCH,
    API_FIND_COORDINATOR,
    API_JOIN_GROUP,
    API_HEARTBEAT,
    API_SYNC_GROUP = 14,
};

enum when { AT_START = 1, LATER = 2, BOTH = 3 };

#define FOR_A_WHILE 0 /* times */

struct row {
    enum api api;
    rd_kafka_resp_err_t error;
    int times; /* one after the other */
    unsigned when;
    const char *fatal; /* words of the reason; NULL: it goes on */
};

#define ERR(name) RD_KAFKA_RESP_ERR_##name

/* clang-format off */
static const struct row rows[] = {
    {API_METADATA, ERR(UNKNOWN_TOPIC_OR_PART), FOR_A_WHILE, BOTH, NULL},
    {API_METADATA, ERR(LEADER_NOT_AVAILABLE), FOR_A_WHILE, BOTH, NULL},
    {API_METADATA, ERR(TOPIC_AUTHORIZATION_FAILED), FOR_A_WHILE, BOTH, NULL},
    {API_METADATA, ERR(TOPIC_EXCEPTION), FOR_A_WHILE, BOTH, NULL},
    {API_METADATA, ERR(UNKNOWN), FOR_A_WHILE, BOTH, NULL},
    {API_FIND_COORDINATOR, ERR(COORDINATOR_NOT_AVAILABLE), 1, BOTH, NULL},
    {API_FIND_COORDINATOR, ERR(COORDINATOR_NOT_AVAILABLE), FOR_A_WHILE, BOTH, NULL},
    {API_FIND_COORDINATOR, ERR(COORDINATOR_LOAD_IN_PROGRESS), 3, BOTH, NULL},
    {API_FIND_COORDINATOR, ERR(GROUP_AUTHORIZATION_FAILED), FOR_A_WHILE, BOTH, NULL},
    {API_FIND_COORDINATOR, ERR(INVALID_REQUEST), 3, BOTH, NULL},
    {API_FIND_COORDINATOR, ERR(UNKNOWN), 3, BOTH, NULL},
    {API_FIND_COORDINATOR, ERR(_TRANSPORT), 3, BOTH, NULL},
    {API_JOIN_GROUP, ERR(COORDINATOR_LOAD_IN_PROGRESS), FOR_A_WHILE, BOTH, NULL},
    {API_JOIN_GROUP, ERR(COORDINATOR_NOT_AVAILABLE), 3, BOTH, NULL},
    {API_JOIN_GROUP, ERR(NOT_COORDINATOR), 3, BOTH, NULL},
    {API_JOIN_GROUP, ERR(ILLEGAL_GENERATION), 1, BOTH, NULL},
    {API_JOIN_GROUP, ERR(ILLEGAL_GENERATION), 3, LATER, NULL},
    {API_JOIN_GROUP, ERR(UNKNOWN_MEMBER_ID), 1, BOTH, NULL},
    {API_JOIN_GROUP, ERR(UNKNOWN_MEMBER_ID), 3, LATER, NULL},
    {API_JOIN_GROUP, ERR(REBALANCE_IN_PROGRESS), 3, BOTH, NULL},
    {API_JOIN_GROUP, ERR(INCONSISTENT_GROUP_PROTOCOL), 3, BOTH, NULL},
    {API_JOIN_GROUP, ERR(INVALID_SESSION_TIMEOUT), 3, BOTH, NULL},
    {API_JOIN_GROUP, ERR(GROUP_MAX_SIZE_REACHED), 3, BOTH, NULL},
    {API_JOIN_GROUP, ERR(GROUP_AUTHORIZATION_FAILED), FOR_A_WHILE, BOTH, NULL},
    {API_JOIN_GROUP, ERR(UNKNOWN), 3, BOTH, NULL},
    {API_JOIN_GROUP, ERR(_TRANSPORT), 1, BOTH, NULL},
    {API_JOIN_GROUP, ERR(FENCED_INSTANCE_ID), 1, LATER, "\"spool-1\""},
    {API_SYNC_GROUP, ERR(COORDINATOR_LOAD_IN_PROGRESS), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(COORDINATOR_NOT_AVAILABLE), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(NOT_COORDINATOR), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(NOT_COORDINATOR), 3, LATER, NULL},
    {API_SYNC_GROUP, ERR(ILLEGAL_GENERATION), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(UNKNOWN_MEMBER_ID), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(REBALANCE_IN_PROGRESS), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(REBALANCE_IN_PROGRESS), 3, LATER, NULL},
    {API_SYNC_GROUP, ERR(GROUP_AUTHORIZATION_FAILED), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(UNKNOWN), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(_TRANSPORT), 1, BOTH, NULL},
    {API_SYNC_GROUP, ERR(FENCED_INSTANCE_ID), 1, LATER, "\"spool-1\""},
    {API_HEARTBEAT, ERR(COORDINATOR_LOAD_IN_PROGRESS), FOR_A_WHILE, LATER, NULL},
    {API_HEARTBEAT, ERR(COORDINATOR_NOT_AVAILABLE), 1, LATER, NULL},
    {API_HEARTBEAT, ERR(COORDINATOR_NOT_AVAILABLE), FOR_A_WHILE, LATER, NULL},
    {API_HEARTBEAT, ERR(NOT_COORDINATOR), 1, LATER, NULL},
    {API_HEARTBEAT, ERR(NOT_COORDINATOR), FOR_A_WHILE, LATER, NULL},
    {API_HEARTBEAT, ERR(ILLEGAL_GENERATION), 1, LATER, NULL},
    {API_HEARTBEAT, ERR(UNKNOWN_MEMBER_ID), 1, LATER, NULL},
    {API_HEARTBEAT, ERR(UNKNOWN_MEMBER_ID), 3, LATER, NULL},
    {API_HEARTBEAT, ERR(REBALANCE_IN_PROGRESS), 1, LATER, NULL},
    {API_HEARTBEAT, ERR(REBALANCE_IN_PROGRESS), 3, LATER, NULL},
    {API_HEARTBEAT, ERR(GROUP_AUTHORIZATION_FAILED), FOR_A_WHILE, LATER, NULL},
    {API_HEARTBEAT, ERR(UNKNOWN), 3, LATER, NULL},
    {API_HEARTBEAT, ERR(_TRANSPORT), 1, LATER, NULL},
    {API_HEARTBEAT, ERR(_TRANSPORT), FOR_A_WHILE, LATER, NULL},
    {API_HEARTBEAT, ERR(FENCED_INSTANCE_ID), 1, LATER, "\"spool-1\""},
    {API_OFFSET_FETCH, ERR(COORDINATOR_LOAD_IN_PROGRESS), FOR_A_WHILE, BOTH, NULL},
    {API_OFFSET_FETCH, ERR(COORDINATOR_NOT_AVAILABLE), 1, BOTH, NULL},
    {API_OFFSET_FETCH, ERR(NOT_COORDINATOR), 3, BOTH, NULL},
    {API_OFFSET_FETCH, ERR(UNSTABLE_OFFSET_COMMIT), FOR_A_WHILE, BOTH, NULL},
    {API_OFFSET_FETCH, ERR(UNKNOWN_TOPIC_OR_PART), 1, BOTH, NULL},
    {API_OFFSET_FETCH, ERR(TOPIC_AUTHORIZATION_FAILED), 1, BOTH, NULL},
    {API_OFFSET_FETCH, ERR(GROUP_AUTHORIZATION_FAILED), FOR_A_WHILE, BOTH, NULL},
    {API_OFFSET_FETCH, ERR(UNKNOWN), 1, BOTH, NULL},
    {API_OFFSET_FETCH, ERR(_TRANSPORT), 1, BOTH, NULL},
    {API_OFFSET_COMMIT, ERR(COORDINATOR_LOAD_IN_PROGRESS), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(COORDINATOR_NOT_AVAILABLE), 1, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(COORDINATOR_NOT_AVAILABLE), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(NOT_COORDINATOR), 1, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(NOT_COORDINATOR), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(REQUEST_TIMED_OUT), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(REBALANCE_IN_PROGRESS), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(ILLEGAL_GENERATION), 1, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(UNKNOWN_MEMBER_ID), 1, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(UNKNOWN_TOPIC_OR_PART), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(OFFSET_METADATA_TOO_LARGE), 1, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(INVALID_COMMIT_OFFSET_SIZE), 1, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(TOPIC_AUTHORIZATION_FAILED), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(GROUP_AUTHORIZATION_FAILED), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(UNKNOWN), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(_TRANSPORT), 1, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(_TRANSPORT), FOR_A_WHILE, LATER, NULL},
    {API_OFFSET_COMMIT, ERR(FENCED_INSTANCE_ID), 1, LATER, "\"spool-1\""},
    {API_LIST_OFFSETS, ERR(NOT_LEADER_FOR_PARTITION), FOR_A_WHILE, BOTH, NULL},
    {API_LIST_OFFSETS, ERR(LEADER_NOT_AVAILABLE), 1, BOTH, NULL},
    {API_LIST_OFFSETS, ERR(UNKNOWN_TOPIC_OR_PART), 3, BOTH, NULL},
    {API_LIST_OFFSETS, ERR(OFFSET_NOT_AVAILABLE), 3, BOTH, NULL},
    {API_LIST_OFFSETS, ERR(KAFKA_STORAGE_ERROR), 3, BOTH, NULL},
    {API_LIST_OFFSETS, ERR(TOPIC_AUTHORIZATION_FAILED), FOR_A_WHILE, BOTH, NULL},
    {API_LIST_OFFSETS, ERR(UNKNOWN), 3, BOTH, NULL},
    {API_LIST_OFFSETS, ERR(_TRANSPORT), 3, BOTH, NULL},
    {API_FETCH, ERR(NOT_LEADER_FOR_PARTITION), FOR_A_WHILE, BOTH, NULL},
    {API_FETCH, ERR(LEADER_NOT_AVAILABLE), 1, BOTH, NULL},
    {API_FETCH, ERR(REPLICA_NOT_AVAILABLE), 1, BOTH, NULL},
    {API_FETCH, ERR(UNKNOWN_TOPIC_OR_PART), 3, BOTH, NULL},
    {API_FETCH, ERR(KAFKA_STORAGE_ERROR), 3, BOTH, NULL},
    {API_FETCH, ERR(FENCED_LEADER_EPOCH), 3, BOTH, NULL},
    {API_FETCH, ERR(UNKNOWN_LEADER_EPOCH), 3, BOTH, NULL},
    {API_FETCH, ERR(OFFSET_NOT_AVAILABLE), 3, BOTH, NULL},
    {API_FETCH, ERR(OFFSET_OUT_OF_RANGE), 1, BOTH, NULL},
    {API_FETCH, ERR(OFFSET_OUT_OF_RANGE), FOR_A_WHILE, BOTH, NULL},
    {API_FETCH, ERR(TOPIC_AUTHORIZATION_FAILED), FOR_A_WHILE, BOTH, NULL},
    {API_FETCH, ERR(INVALID_MSG), 3, BOTH, NULL},
    {API_FETCH, ERR(MSG_SIZE_TOO_LARGE), 1, BOTH, NULL},
    {API_FETCH, ERR(UNKNOWN), FOR_A_WHILE, BOTH, NULL},
    {API_FETCH, ERR(_TRANSPORT), 1, BOTH, NULL},
    {API_FETCH, ERR(_TRANSPORT), FOR_A_WHILE, BOTH, NULL},
};
/* clang-format on */

static const struct row *row;
static struct rig rig;
static struct cluster c;
static uint64_t begun; /* rig.assigned, as the last record came */
static int64_t next;   /* the offset that comes next */
static int64_t committed,
    committing; /* what the group has lies between: the last answered, and sent */

static const struct kafka_property quick[] = {
    {"session.timeout.ms", "3000"},
    {"heartbeat.interval.ms", "100"},
    {"max.poll.interval.ms", "60000"},
    {"topic.metadata.refresh.interval.ms", "530"}, /* no part of the mock's rounds of 3 and 2 s */
};

/* Behind the one before, or where the group stands, when the partition was given anew. */
static void check_offset(struct rig *r, int32_t partition, const struct record *record)
{
    (void)partition;
    if (r->assigned != begun) {
        assert_int_equal(r->revoked, r->assigned - 1);
        next = r->seats[0].committed;
        if (next < committed || next > committing)
            fail_msg("%lld is committed, not %lld to %lld", (long long)next, (long long)committed,
                     (long long)committing);
        begun = r->assigned;
    }
    if (record->offset != next)
        fail_msg("offset %lld comes, not %lld", (long long)record->offset, (long long)next);
    next++;
}

static size_t errors_left(void)
{
    size_t left = 0;

    rd_kafka_mock_broker_error_stack_cnt(c.mock, 1, (int16_t)row->api, &left);
    return left;
}

static void answer_once(enum api api, rd_kafka_resp_err_t error)
{
    rd_kafka_mock_broker_push_request_error_rtts(c.mock, 1, (int16_t)api, (size_t)1, error, 0);
}

static void begin_errors(void)
{
    if (row->api == API_METADATA)
        rd_kafka_mock_topic_set_error(c.mock, "t", row->error);
    for (int i = 0; row->api != API_METADATA && i < (row->times ? row->times : 1); i++)
        answer_once(row->api, row->error);
}

/* What the source does by itself is left to it. */
static void provoke(void)
{
    switch (row->api) {
    case API_FIND_COORDINATOR:
        answer_once(API_HEARTBEAT, RD_KAFKA_RESP_ERR_NOT_COORDINATOR);
        break;
    case API_JOIN_GROUP:
    case API_SYNC_GROUP:
        answer_once(API_HEARTBEAT, RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS);
        break;
    case API_OFFSET_FETCH:
    case API_LIST_OFFSETS:
        answer_once(API_HEARTBEAT, RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID);
        break;
    case API_OFFSET_COMMIT:
        kafka_commit(rig.seats[0].partition, 50, "");
        committing = 50;
        break;
    case API_METADATA:
    case API_HEARTBEAT:
    case API_FETCH:
        break;
    }
}

/* Where offsets begin and end need not be known to begin at one, and is asked once then. A commit goes
   with its partition, if the session ends on a slow machine. */
static bool are_answered(uint64_t assigned)
{
    int left = (int)errors_left();

    return left == 0 || rig.fatal[0] || (row->api == API_LIST_OFFSETS && left < row->times) ||
           (row->api == API_OFFSET_COMMIT && rig.assigned != assigned);
}

/* Until all were; those for a while come for so long. */
static void wait_errors(void)
{
    uint64_t since, assigned = rig.assigned;

    if (row->api == API_METADATA) {
        rig_let_pass(&rig, WHILE_MS);
        rd_kafka_mock_topic_set_error(c.mock, "t", RD_KAFKA_RESP_ERR_NO_ERROR);
        return;
    }
    RIG_UNTIL(&rig, are_answered(assigned));
    since = clock_boot_ms();
    while (row->times == FOR_A_WHILE && clock_boot_ms() - since < WHILE_MS) {
        answer_once(row->api, row->error);
        RIG_UNTIL(&rig, errors_left() == 0 || clock_boot_ms() - since >= WHILE_MS);
    }
}

/* By somebody else who left, so that no group is there. */
static void commit_before(int64_t offset)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char text[200];
    rd_kafka_t *client;

    rd_kafka_conf_set(conf, "bootstrap.servers", c.brokers, text, sizeof(text));
    rd_kafka_conf_set(conf, "group.id", "group", text, sizeof(text));
    client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, text, sizeof(text));
    assert_non_null(client);
    rd_kafka_topic_partition_list_add(list, "t", 0)->offset = offset;
    assert_int_equal(rd_kafka_commit(client, list, 0), 0);
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_destroy(client);
    committed = committing = offset;
}

/* No record comes where the group has the end, of a commit whose answer was lost. */
static bool is_read(int64_t end)
{
    if (!rig.assigned || !rig.seats[0].owned)
        return false;
    return begun == rig.assigned ? next == end : rig.seats[0].committed == end;
}

static void read_to(int64_t end)
{
    RIG_UNTIL(&rig, is_read(end) || rig.fatal[0]);
    assert_string_equal(rig.fatal, "");
}

/* Of all there is up to offset; made anew where the partition was lost on the way. */
static void commit(int64_t offset)
{
    while (rig.seats[0].commit_ok != offset) {
        uint64_t assigned;
        read_to(offset);
        assigned = rig.assigned;
        rig.seats[0].commit_failed = -1;
        committing = offset;
        kafka_commit(rig.seats[0].partition, offset, "mine");
        RIG_UNTIL(&rig, rig.seats[0].commit_ok == offset || rig.seats[0].commit_failed == offset ||
                            rig.assigned != assigned || rig.fatal[0]);
    }
    committed = offset;
}

static void ends(void)
{
    RIG_UNTIL(&rig, rig.fatal[0]);
    if (!row->fatal)
        fail_msg("ends: %s", rig.fatal);
    assert_non_null(strstr(rig.fatal, row->fatal));
}

static void run_row(unsigned when)
{
    cluster_open(&c, "t", 1);
    produce(&c, "t", 0, 100, 10);
    commit_before(40);
    rig_init(&rig);
    rig.resume_committed = true;
    rig.on_record = check_offset;
    begun = 0;
    if (when == AT_START)
        begin_errors();
    rig_start(&rig, &c, "t",
              (struct kafka_options){
                  .properties = quick, .property_count = 4, .group_instance_id = "spool-1"});
    if (when == AT_START)
        wait_errors();
    read_to(100);
    if (when == LATER) {
        /* else it may be fenced by its former self */
        atomic_store(&rig.source->hook->renamed_ms, 0);
        atomic_store(&rig.source->hook->named_ms, clock_boot_ms() - rig.source->session_ms);
        begin_errors();
        provoke();
        if (row->api != API_METADATA)
            produce(&c, "t", 0, 50, 10);
        wait_errors();
        if (row->api == API_METADATA)
            produce(&c, "t", 0, 50, 10);
    } else {
        produce(&c, "t", 0, 50, 10);
    }
    if (row->fatal) {
        ends();
    } else {
        read_to(150);
        commit(150);
        produce(&c, "t", 0, 10, 10);
        read_to(160);
        assert_int_equal(rig.seats[0].gap_from, -1);
        assert_int_equal(rig.seats[0].out_of_range, -1);
        assert_int_equal(rig.seats[0].new_log, -1);
    }
    rig_close(&rig, !row->fatal);
    cluster_close(&c);
}

static void test_at_start(void **state)
{
    (void)state;
    run_row(AT_START);
}

static void test_later(void **state)
{
    (void)state;
    run_row(LATER);
}

/* In the child; what it says is told if it fails. */
static int run_child(unsigned when, FILE *said)
{
    const struct CMUnitTest at_start[] = {cmocka_unit_test(test_at_start)};
    const struct CMUnitTest later[] = {cmocka_unit_test(test_later)};

    dup2(fileno(said), STDOUT_FILENO);
    dup2(fileno(said), STDERR_FILENO);
    return when == AT_START ? cmocka_run_group_tests(at_start, NULL, NULL)
                            : cmocka_run_group_tests(later, NULL, NULL);
}

struct child {
    pid_t pid;
    FILE *said;
    const struct row *row;
};

static void tell(const struct child *child)
{
    char text[4096];
    size_t n;

    printf("row %d: api %d, %s, %d times\n", (int)(child->row - rows), child->row->api,
           rd_kafka_err2name(child->row->error), child->row->times);
    rewind(child->said);
    while ((n = fread(text, 1, sizeof(text), child->said)) > 0)
        fwrite(text, 1, n, stdout);
}

static int wait_child(struct child *children)
{
    struct child *child = children;
    int status;
    pid_t pid = wait(&status);
    bool failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;

    if (pid < 0)
        return 1;
    while (child->pid != pid)
        child++;
    if (failed || getenv("TEST_LOG"))
        tell(child);
    fclose(child->said);
    child->pid = 0;
    return failed;
}

static void start_child(struct child *children, unsigned when)
{
    struct child *child = children;

    while (child->pid)
        child++;
    child->row = row;
    child->said = tmpfile();
    fflush(stdout);
    child->pid = child->said ? fork() : -1;
    if (child->pid < 0) {
        perror("a row");
        exit(1);
    }
    if (child->pid == 0)
        exit(run_child(when, child->said));
}

int main(void)
{
    static struct child children[ROWS_AT_A_TIME];
    const char *only = getenv("TEST_FILTER"); /* a row's number */
    int most = getenv("EMULATOR") ? 2 : ROWS_AT_A_TIME;
    int running = 0, failed = 0, count = 0;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (unsigned when = AT_START; when <= LATER; when++) {
            if (!(rows[i].when & when) || (only && strtoul(only, NULL, 10) != i))
                continue;
            if (running == most) {
                failed += wait_child(children);
                running--;
            }
            row = &rows[i];
            start_child(children, when);
            running++;
            count++;
        }
    for (; running; running--)
        failed += wait_child(children);
    printf("%d of %d failed\n", failed, count);
    return failed ? 1 : 0;
}
