/* SPDX-License-Identifier: Apache-2.0 */
/* Where a partition begins, and what becomes of the rows that are held of it. */
#include "assign_rig.h"

static bool may_be_sent(const struct flow *f)
{
    return f->stream->eligible_rows > 0;
}

/* --- what the group has committed ----------------------------------------------------------- */

struct expected {
    uint32_t epoch;
    int64_t start;
    uint64_t held; /* rows of before that are kept */
};

static void begins(struct kafka_committed (*committed)(struct flow *f), struct expected expected)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    p = back(&f, taken(&f));
    o = flow_assign(&f, p, committed(&f));
    assert_non_null(o);
    assert_int_equal(o->epoch, expected.epoch);
    assert_int_equal(p->start, expected.start);
    flow_run(&f);
    assert_int_equal(stream_spooled_rows(f.stream), expected.held);
    assert_int_equal(f.stream->eligible_rows, expected.held);
    flow_remove(&f);
}

static struct kafka_committed ours(struct flow *f)
{
    return by_us(f, 50, 1);
}

static struct kafka_committed ours_and_beyond(struct flow *f)
{
    return by_us(f, 500, 1);
}

static struct kafka_committed ours_of_a_later_log(struct flow *f)
{
    return by_us(f, 500, 3);
}

static struct kafka_committed somebody_elses(struct flow *f)
{
    (void)f;
    return by_another(50);
}

static struct kafka_committed none(struct flow *f)
{
    (void)f;
    return nothing;
}

static struct kafka_committed none_of_a_shorter_log(struct flow *f)
{
    (void)f;
    return (struct kafka_committed){.offset = -1, .low = 0, .high = 10};
}

static void test_where_it_begins(void **state)
{
    (void)state;
    begins(ours, (struct expected){1, 100, ROWS});
    begins(ours_and_beyond, (struct expected){1, 500, 0});
    begins(ours_of_a_later_log, (struct expected){3, 500, ROWS});
    begins(somebody_elses, (struct expected){2, 50, 0});
    begins(none, (struct expected){1, 100, ROWS});
    begins(none_of_a_shorter_log, (struct expected){2, KAFKA_OFFSET_POLICY, ROWS});
}

/* --- before what was taken is durable ------------------------------------------------------- */

/* One whose records wait in memory for room, went, and is back. */
static struct kafka_partition *undurable(struct flow *f)
{
    struct kafka_partition *p;

    flow_open(f, make_directory());
    flow_hold_appends(f, true);
    p = take_rows(f);
    assert_int_equal(stream_spooled_rows(f->stream), 0);
    return back(f, p);
}

static void durable_now(struct flow *f)
{
    flow_hold_appends(f, false);
    flow_run(f);
    assert_int_equal(f->stream->append_rows, 0);
}

static void test_back_before_it_is_durable(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = undurable(&f);
    o = flow_assign(&f, p, nothing);
    assert_int_equal(o->epoch, 1);
    assert_int_equal(p->start, ROWS);
    durable_now(&f);
    assert_int_equal(stream_spooled_rows(f.stream), ROWS);
    assert_true(may_be_sent(&f));
    flow_remove(&f);
}

/* Another consumer went past some of it meanwhile. */
static void test_back_before_it_is_durable_and_another_committed(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = undurable(&f);
    o = flow_assign(&f, p, by_another(50));
    assert_int_equal(o->epoch, 2);
    assert_int_equal(p->start, 50);
    flow_take(&f, p, 50, 10, false);
    durable_now(&f);
    assert_int_equal(stream_spooled_rows(f.stream), 10);
    flow_remove(&f);
}

static void test_back_before_it_is_durable_and_the_log_is_another(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = undurable(&f);
    o = flow_assign(&f, p, none_of_a_shorter_log(&f));
    assert_int_equal(o->epoch, 2);
    durable_now(&f);
    assert_int_equal(f.stream->eligible_rows, ROWS); /* nobody else has them */
    flow_remove(&f);
}

/* ... nor decoded, and its stream, which is full meanwhile, gives it back before it is known where the
   partition begins. */
static void test_given_back_while_it_is_assigned(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    p = flow_partition(&f, 0);
    assert_non_null(flow_assign(&f, p, nothing));
    f.stream->holds[HOLD_BAD_RECORD] = true; /* of another partition */
    flow_take(&f, p, 0, ROWS, false);
    p = back(&f, p);
    flow_assign_begin(&f, p, nothing);
    intake_release_runs(f.stream, true);
    flow_run(&f);
    assert_int_equal(p->start, KAFKA_OFFSET_POLICY);
    flow_remove(&f);
}

/* --- a new epoch, and what it means for the one before -------------------------------------- */

/* The partition goes again before it is known where it begins. */
static void test_gone_again_after_another_committed(void **state)
{
    struct kafka_committed committed = by_another(50);
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    p = back(&f, taken(&f));
    flow_assign_begin(&f, p, committed);
    p = back(&f, p);
    flow_run(&f);
    assert_int_equal(stream_spooled_rows(f.stream), 0);
    assert_int_equal(flow_assign(&f, p, committed)->epoch, 2);
    assert_false(may_be_sent(&f));
    flow_remove(&f);
}

static void test_gone_again_after_the_log_was_made_anew(void **state)
{
    struct kafka_partition *p;
    struct origin *old;
    struct flow f;

    (void)state;
    p = taken(&f);
    old = p->user;
    p = back(&f, p);
    flow_assign_begin(&f, p, none_of_a_shorter_log(&f));
    flow_revoke(&f, p);
    flow_run(&f);
    assert_true(old->superseded); /* so it is not asked for by offsets that the next log has too */
    assert_true(may_be_sent(&f));
    flow_remove(&f);
}

/* Killed as soon as the new epoch is durable. */
static void test_killed_as_a_new_epoch_begins(void **state)
{
    struct kafka_committed committed = by_another(50);
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    p = back(&f, taken(&f));
    flow_assign_begin(&f, p, committed);
    flow_reopen(&f); /* the job ends, and nobody acts on it */
    assert_int_equal(stream_spooled_rows(f.stream), 0);
    assert_int_equal(flow_assign(&f, flow_partition(&f, 0), committed)->epoch, 2);
    assert_false(may_be_sent(&f));
    flow_remove(&f);
}

/* Rows of a log that another one followed may be nobody else's, whoever has the partition. */
static void test_rows_of_a_former_log_wait_for_nothing(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    p = back(&f, taken(&f));
    assert_int_equal(flow_assign(&f, p, none_of_a_shorter_log(&f))->epoch, 2);
    flow_reopen(&f);
    assert_int_equal(f.stream->eligible_rows, ROWS);
    flow_remove(&f);
}

/* This spool was put back to before it read the log that a commit of ours names: the rows it holds may
   have been sent since. */
static void test_rows_that_may_be_in_still_may_after_a_restart(void **state)
{
    struct kafka_partition *p;
    struct origin *old;
    struct flow f;

    (void)state;
    p = taken(&f);
    old = p->user;
    p = back(&f, p);
    assert_false(old->first->suspect);
    assert_int_equal(flow_assign(&f, p, ours_of_a_later_log(&f))->epoch, 3);
    assert_true(old->first->suspect);
    flow_reopen(&f);
    assert_non_null(f.stream->origins->first);
    assert_true(f.stream->origins->first->suspect);
    flow_remove(&f);
}

/* --- commits -------------------------------------------------------------------------------- */

/* One that was refused is made again, though nothing else is acknowledged: after a while, and before the
   partition goes. */
static void test_a_refused_commit_is_made_again(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = taken(&f);
    o = p->user;
    o->front = 60;
    origin_commit(o);
    f.source->callbacks.committed(f.source->arg, p, 60, SPOOL_E_IO, "not authorized");
    assert_int_equal(f.pipeline->commits_in_flight, 0);
    kafka_commit_forget(p);
    kafka_in_advance(f.pipeline);
    assert_int_equal(p->commit.next, -1);
    f.pipeline->commit_again_ms = 1;
    kafka_in_advance(f.pipeline);
    assert_int_equal(p->commit.next, 60);
    f.source->callbacks.committed(f.source->arg, p, 60, SPOOL_E_IO, "not authorized");
    kafka_commit_forget(p);
    p->state = KAFKA_P_REVOKING;
    f.source->revoke_pending = true;
    f.source->callbacks.revoking(f.source->arg, &p, 1, false, 10000);
    assert_int_equal(p->commit.next, 60);
    flow_run(&f);
    assert_true(f.pipeline->revoking);
    f.source->callbacks.committed(f.source->arg, p, 60, SPOOL_OK, "");
    assert_false(f.pipeline->revoking);
    f.source->revoke_pending = false;
    kafka_partition_remove(p);
    flow_remove(&f);
}

/* The answer to a commit of the former epoch says nothing of one of the new epoch. */
static void test_a_commit_in_flight_as_a_new_epoch_begins(void **state)
{
    struct kafka_partition *p;
    struct origin *old, *o;
    struct flow f;

    (void)state;
    p = taken(&f);
    old = p->user;
    old->front = 60;
    origin_commit(old);
    assert_int_equal(f.pipeline->commits_in_flight, 1);
    p->state = KAFKA_P_HELD;
    f.source->callbacks.new_log(f.source->arg, p, ROWS);
    flow_run(&f);
    o = p->user;
    assert_ptr_not_equal(o, old);
    assert_int_equal(o->epoch, 2);
    assert_int_equal(p->start, KAFKA_OFFSET_BEGINNING);
    assert_int_equal(f.pipeline->commits_in_flight, 0);
    o->front = 5;
    origin_commit(o);
    assert_int_equal(f.pipeline->commits_in_flight, 1);
    f.source->callbacks.committed(f.source->arg, p, 60, SPOOL_OK, "");
    assert_int_equal(f.pipeline->commits_in_flight, 1);
    f.source->callbacks.committed(f.source->arg, p, 60, SPOOL_E_IO, "the offset is of no use");
    assert_int_equal(f.pipeline->commits_in_flight, 1);
    f.source->callbacks.committed(f.source->arg, p, 5, SPOOL_OK, "");
    assert_int_equal(f.pipeline->commits_in_flight, 0);
    assert_int_equal(o->committed, 5);
    flow_remove(&f);
}

/* The partition goes with a commit under way, and is back before what its going waits for is done: the
   answer, which was for the partition as it was, is not waited for. */
static void test_a_commit_goes_with_its_partition(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = taken(&f);
    o = p->user;
    o->front = 60;
    origin_commit(o);
    assert_int_equal(f.pipeline->commits_in_flight, 1);
    f.pipeline->member_noting = true; /* what it waits for */
    f.source->callbacks.revoking(f.source->arg, &p, 1, true, 1000);
    kafka_partition_remove(p);
    p = flow_partition(&f, 0);
    assert_ptr_equal(flow_assign(&f, p, by_us(&f, 60, 1)), o);
    assert_int_equal(o->committed, 60);
    assert_int_equal(f.pipeline->commits_in_flight, 0);
    f.pipeline->member_noting = false;
    kafka_in_advance(f.pipeline);
    assert_ptr_equal(o->partition, p);
    flow_remove(&f);
}

/* --- revocations ---------------------------------------------------------------------------- */

/* What it waits for does not come while the partition is ours yet: it is lost, which is said by a second one. */
static void test_a_revocation_that_ends_in_a_loss(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = taken(&f);
    o = p->user;
    flow_hold_appends(&f, true);
    f.pipeline->decode_max = 0;
    flow_take(&f, p, ROWS, ROWS, false);
    o->front = 60;
    origin_commit(o);
    for (int lost = 0; lost < 2; lost++) {
        f.source->callbacks.revoking(f.source->arg, &p, 1, lost, 1000000);
        flow_run(&f);
        assert_int_equal(f.pipeline->revoking, !lost);
        assert_int_equal(o->revoking, !lost);
        assert_false(may_be_sent(&f));
    }
    assert_int_equal(f.pipeline->commits_in_flight, 0);
    assert_null(o->partition);
    f.source->callbacks.committed(f.source->arg, p, 60, SPOOL_E_IO, "it is another's");
    assert_int_equal(f.pipeline->commit_again_ms, 0);
    kafka_partition_remove(p); /* its memory stays until the run is back */
    p = flow_partition(&f, 0);
    assert_ptr_equal(flow_assign(&f, p, by_us(&f, 60, 1)), o);
    assert_int_equal(p->start, 2 * ROWS);
    f.pipeline->decode_max = 1;
    durable_now(&f);
    assert_int_equal(f.source->runs_out, 0);
    assert_int_equal(f.source->held_messages, 0);
    assert_int_equal(f.source->held_bytes, 0);
    assert_int_equal(f.stream->eligible_rows, 2 * ROWS);
    flow_remove(&f);
}

/* --- holes ---------------------------------------------------------------------------------- */

/* Offsets 20 to 39 are one; killed before it is closed. */
static void note_hole(struct flow *f)
{
    struct spool_change change = {
        .kind = SPOOL_CHANGE_PUT, .value = "39 20 0 999", .value_size = strlen("39 20 0 999")};
    char key[64];

    snprintf(key, sizeof(key), "hole/%u/%u/1/1/20", f->stream->id, f->stream->origins->id);
    change.key = key;
    check_ok(spool_commit(f->spool, &change, 1, &the_error));
    flow_reopen(f);
    assert_non_null(f->stream->origins->holes);
}

static size_t holes(struct flow *f)
{
    size_t n = 0;

    for (const struct origin *o = f->stream->origins; o; o = o->next)
        for (const struct hole *h = o->holes; h; h = h->next)
            n++;
    return n;
}

/* Killed as soon as the epoch that has it is over: nobody reads for it any more. */
static void a_hole_ends_with_its_epoch(struct kafka_committed (*committed)(struct flow *f),
                                       bool killed)
{
    struct kafka_partition *p;
    struct flow f;

    (void)taken(&f);
    note_hole(&f);
    p = flow_partition(&f, 0);
    flow_assign_begin(&f, p, committed(&f));
    if (!killed)
        flow_run(&f);
    for (int turn = 0; turn < 2; turn++) {
        flow_reopen(&f);
        assert_int_equal(holes(&f), 0);
    }
    flow_remove(&f);
}

static void test_a_hole_ends_with_its_epoch(void **state)
{
    (void)state;
    for (int killed = 0; killed < 2; killed++) {
        a_hole_ends_with_its_epoch(somebody_elses, killed);
        a_hole_ends_with_its_epoch(none_of_a_shorter_log, killed);
        a_hole_ends_with_its_epoch(ours_of_a_later_log, killed);
    }
}

/* The partition goes while a run for it waits to be decoded, and is back in the same epoch, or in the next. */
static void test_gone_in_the_middle_of_a_refill(void **state)
{
    (void)state;
    for (int another = 0; another < 2; another++) {
        struct kafka_partition *p;
        struct flow f;

        (void)taken(&f);
        note_hole(&f);
        p = flow_partition(&f, 0);
        assert_non_null(flow_assign(&f, p, by_us(&f, 20, 1)));
        assert_int_equal(p->start, 20);
        f.pipeline->decode_max = 0;
        flow_take(&f, p, 20, 10, false);
        p = back(&f, p);
        assert_non_null(flow_assign(&f, p, another ? by_another(25) : by_us(&f, 20, 1)));
        assert_int_equal(p->start, another ? 25 : 30);
        f.pipeline->decode_max = 1;
        flow_run(&f);
        flow_read(&f, p, p->start, 10);
        assert_int_equal(p->start, another ? 25 : ROWS);
        assert_int_equal(stream_spooled_rows(f.stream), another ? 10 : ROWS + 20);
        flow_reopen(&f);
        assert_int_equal(holes(&f), !another); /* its refills are not acknowledged */
        assert_int_equal(stream_spooled_rows(f.stream), another ? 10 : ROWS + 20);
        flow_remove(&f);
    }
}

/* The segment that had what is damaged is lost as a whole, and all there was behind it too. */
static void test_a_hole_above_all_that_is_held(void **state)
{
    struct spool_change change = {
        .kind = SPOOL_CHANGE_PUT, .value = "149 50 0 0", .value_size = strlen("149 50 0 0")};
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;
    char key[64];

    (void)state;
    o = taken(&f)->user;
    snprintf(key, sizeof(key), "hole/%u/%u/9/9/50", f.stream->id, o->id);
    change.key = key;
    check_ok(spool_commit(f.spool, &change, 1, &the_error));
    flow_reopen(&f);
    p = flow_partition(&f, 0);
    o = flow_assign(&f, p, by_us(&f, 10, 1));
    assert_int_equal(p->start, 50);
    flow_read(&f, p, 50, ROWS);
    assert_int_equal(o->high, ROWS - 1);
    assert_int_equal(p->start, ROWS);
    flow_read(&f, p, ROWS, ROWS);
    assert_int_equal(o->high, 2 * ROWS - 1);
    assert_int_equal(o->taken, 2 * ROWS - 1);
    flow_remove(&f);
}

/* --- the member's name ---------------------------------------------------------------------- */

static void is_named(struct flow *f, const char *behind)
{
    const char *name = f->pipeline->kafka_options.group_instance_id;

    assert_string_equal(name + strlen("spoold-12345678-1234-1234-1234-123456789abc-12345678"),
                        behind);
}

/* A broker would give it what it had, and nobody what it was to let go of. */
static void test_a_member_that_ends_while_it_loses_partitions_comes_back_as_another(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    is_named(&f, "");
    p = take_rows(&f);
    f.source->callbacks.rebalanced(f.source->arg);
    f.source->callbacks.revoking(f.source->arg, &p, 1, false, 1000);
    flow_run(&f);
    flow_reopen(&f);
    is_named(&f, "-1");
    p = flow_partition(&f, 0);
    assert_non_null(flow_assign(&f, p, nothing));
    f.source->callbacks.revoking(f.source->arg, &p, 1, false, 1000);
    flow_run(&f);
    f.source->callbacks.rebalanced(f.source->arg); /* it has joined again */
    flow_run(&f);
    flow_reopen(&f);
    is_named(&f, "-1");
    flow_remove(&f);
}

/* --- partitions that others have ------------------------------------------------------------ */

static void told(struct flow *f, int64_t offset, const char *metadata)
{
    f->source->callbacks.told(f->source->arg, "t", 0, offset, metadata);
    flow_run(f);
}

/* What others committed past is given up, although the partition never comes back. */
static void test_others_commit_past_what_is_left(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    p = taken(&f);
    flow_read(&f, p, ROWS, ROWS);
    told(&f, 2 * ROWS, ""); /* it is ours: where it began is decided */
    assert_int_equal(stream_spooled_rows(f.stream), 2 * ROWS);
    flow_revoke(&f, p);
    told(&f, 2 * ROWS, flow_metadata(&f, 1)); /* a commit of ours, made before */
    told(&f, ROWS - 1, "");
    assert_int_equal(stream_spooled_rows(f.stream), 2 * ROWS);
    told(&f, ROWS, "");
    assert_int_equal(stream_spooled_rows(f.stream), ROWS);
    flow_reopen(&f);
    assert_int_equal(stream_spooled_rows(f.stream), ROWS);
    told(&f, 2 * ROWS + 10, "");
    assert_int_equal(stream_spooled_rows(f.stream), 0);
    flow_remove(&f);
}

/* Two blocks of a partition that went; others committed past the first, and all but a row of the second. */
static void passed_in_part(struct flow *f)
{
    struct kafka_partition *p;

    p = taken(f);
    flow_read(f, p, ROWS, ROWS);
    flow_revoke(f, p);
    told(f, 2 * ROWS - 1, "");
    assert_int_equal(stream_spooled_rows(f->stream), ROWS);
}

/* The group forgot all offsets: the rest is sent after all. */
static void test_back_after_others_committed_past_a_part(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    passed_in_part(&f);
    p = flow_partition(&f, 0);
    o = flow_assign(&f, p, nothing);
    assert_int_equal(o->epoch, 1);
    assert_int_equal(p->start, 2 * ROWS);
    assert_int_equal(f.stream->eligible_rows, ROWS);
    flow_remove(&f);
}

/* So it is where another log follows; also a restart knows that those offsets are in both. */
static void test_a_log_that_others_passed_a_part_of_is_followed(void **state)
{
    struct origin *o;
    struct flow f;

    (void)state;
    passed_in_part(&f);
    o = flow_assign(&f, flow_partition(&f, 0), none_of_a_shorter_log(&f));
    assert_int_equal(o->epoch, 2);
    assert_int_equal(f.stream->eligible_rows, ROWS);
    flow_reopen(&f);
    assert_int_equal(f.stream->eligible_rows, ROWS);
    assert_true(f.stream->origins->superseded);
    flow_remove(&f);
}

/* What others passed becomes known while the partition comes back, and is noted behind what that says. */
static void test_others_pass_a_part_as_the_partition_comes_back(void **state)
{
    static const struct kafka_committed beyond = {
        .offset = 5 * ROWS, .metadata = "", .low = 0, .high = 1000};
    struct kafka_partition *p;
    int64_t up_to;
    uint32_t id;
    struct flow f;

    (void)state;
    p = taken(&f);
    id = ((struct origin *)p->user)->id;
    flow_read(&f, p, ROWS, ROWS);
    p = back(&f, p);
    flow_assign_begin(&f, p, beyond);
    told(&f, ROWS, "");
    assert_int_equal(((struct origin *)p->user)->epoch, 2);
    assert_int_equal(stream_spooled_rows(f.stream), 0);
    check_ok(origin_discard_noted(f.stream, id, &up_to, &the_error));
    assert_int_equal(up_to, INT64_MAX);
    flow_remove(&f);
}

/* Its offsets are of another log than the one that is committed in. */
static void test_what_is_left_of_a_former_log_is_not_passed(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    p = back(&f, taken(&f));
    (void)flow_assign(&f, p, none_of_a_shorter_log(&f));
    flow_revoke(&f, p);
    told(&f, 10 * ROWS, "");
    assert_int_equal(f.stream->eligible_rows, ROWS);
    flow_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_where_it_begins),
        cmocka_unit_test(test_back_before_it_is_durable),
        cmocka_unit_test(test_back_before_it_is_durable_and_another_committed),
        cmocka_unit_test(test_back_before_it_is_durable_and_the_log_is_another),
        cmocka_unit_test(test_given_back_while_it_is_assigned),
        cmocka_unit_test(test_gone_again_after_another_committed),
        cmocka_unit_test(test_gone_again_after_the_log_was_made_anew),
        cmocka_unit_test(test_killed_as_a_new_epoch_begins),
        cmocka_unit_test(test_rows_of_a_former_log_wait_for_nothing),
        cmocka_unit_test(test_rows_that_may_be_in_still_may_after_a_restart),
        cmocka_unit_test(test_a_refused_commit_is_made_again),
        cmocka_unit_test(test_a_commit_in_flight_as_a_new_epoch_begins),
        cmocka_unit_test(test_a_commit_goes_with_its_partition),
        cmocka_unit_test(test_a_revocation_that_ends_in_a_loss),
        cmocka_unit_test(test_a_hole_ends_with_its_epoch),
        cmocka_unit_test(test_gone_in_the_middle_of_a_refill),
        cmocka_unit_test(test_a_hole_above_all_that_is_held),
        cmocka_unit_test(test_a_member_that_ends_while_it_loses_partitions_comes_back_as_another),
        cmocka_unit_test(test_others_commit_past_what_is_left),
        cmocka_unit_test(test_back_after_others_committed_past_a_part),
        cmocka_unit_test(test_a_log_that_others_passed_a_part_of_is_followed),
        cmocka_unit_test(test_others_pass_a_part_as_the_partition_comes_back),
        cmocka_unit_test(test_what_is_left_of_a_former_log_is_not_passed),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
