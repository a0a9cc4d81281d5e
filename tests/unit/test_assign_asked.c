/* SPDX-License-Identifier: Apache-2.0 */
/* Which rows a table can be asked for, of a partition that others had meanwhile. */
#include "assign_rig.h"

static struct kafka_committed by_another_spoold(int64_t offset)
{
    return (struct kafka_committed){.offset = offset,
                                    .metadata = "spoold 00000000-0000-0000-0000-000000000000 7 0",
                                    .low = 0,
                                    .high = 1000};
}

/* The partition is back after somebody else committed, and a mark of before is looked for. */
static struct origin *looked_for(struct flow *f, struct kafka_partition **p,
                                 struct kafka_committed committed)
{
    struct origin *o;

    *p = back(f, taken(f));
    o = flow_assign(f, *p, committed);
    assert_int_equal(o->epoch, 2);
    assert_true((*p)->tracing);
    assert_int_equal((*p)->start, ROWS);
    assert_false(origin_tells_apart(o, INT64_MAX - 1));
    return o;
}

static void goes_on_at(const struct kafka_partition *p, int64_t offset)
{
    assert_false(p->tracing);
    assert_int_equal(p->start, offset);
}

static void found(struct flow *f, struct kafka_partition *p, int64_t offset)
{
    f->source->callbacks.traced(f->source->arg, p, offset);
    flow_run(f);
}

static void not_found(struct flow *f, struct kafka_partition *p)
{
    while (p->tracing)
        f->source->callbacks.new_log(f->source->arg, p, p->start);
    flow_run(f);
}

static void test_the_log_another_spoold_read_is_the_same(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    o = looked_for(&f, &p, by_another_spoold(50));
    found(&f, p, ROWS);
    goes_on_at(p, 50);
    assert_int_equal(o->told_from, 0);
    flow_read(&f, p, 50, ROWS);
    flow_reopen(&f); /* its rows are of an origin that is not assigned yet */
    assert_int_equal(f.stream->segments_first->first->origin->told_from, 0);
    p = flow_partition(&f, 0);
    o = flow_assign(&f, p, by_us(&f, 60, 2));
    assert_int_equal(o->told_from, 0);
    p = back(&f, p); /* and once more */
    o = flow_assign(&f, p, by_another_spoold(500));
    assert_int_equal(o->epoch, 3);
    found(&f, p, 50 + ROWS);
    goes_on_at(p, 500);
    assert_int_equal(o->told_from, 0);
    flow_remove(&f);
}

/* All that is behind the end of the log is new; what lies before it comes again since that was asked for. */
static void test_an_operator_set_the_offset(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    o = looked_for(&f, &p, by_another(50));
    found(&f, p, ROWS);
    goes_on_at(p, 50);
    assert_int_equal(o->told_from, 1000);
    flow_read(&f, p, 50, ROWS);
    p = back(&f, p);
    o = flow_assign(&f, p, by_another_spoold(500));
    found(&f, p, 50 + ROWS);
    assert_int_equal(o->told_from, 1000);
    flow_remove(&f);
}

static void test_the_log_another_spoold_read_is_another(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    o = looked_for(&f, &p, by_another_spoold(50));
    not_found(&f, p);
    goes_on_at(p, 50);
    assert_int_equal(o->told_from, INT64_MAX);
    flow_read(&f, p, 50, ROWS);
    p = back(&f, p);
    o = flow_assign(&f, p, by_another_spoold(500)); /* nothing is known of the logs before */
    goes_on_at(p, 500);
    assert_int_equal(o->told_from, INT64_MAX);
    flow_remove(&f);
}

/* A broker lost its last writes: up to a mark of before it is the same log, and others follow. */
static void test_the_log_another_spoold_read_was_cut(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = taken(&f);
    for (int64_t at = ROWS; at < 10 * ROWS; at += ROWS)
        flow_read(&f, p, at, ROWS);
    p = back(&f, p);
    o = flow_assign(&f, p, by_another_spoold(5 * ROWS));
    assert_true(p->tracing);
    assert_int_equal(p->start, 10 * ROWS);
    f.source->callbacks.new_log(f.source->arg, p, p->start);
    if (p->tracing)
        f.source->callbacks.traced(f.source->arg, p, p->start);
    flow_run(&f);
    goes_on_at(p, 5 * ROWS);
    assert_int_equal(o->told_from, INT64_MAX);
    flow_remove(&f);
}

/* What was found the first time is not on disk before it was looked for again, and not found. */
static void test_what_is_found_of_the_log_is_noted_in_order(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    (void)looked_for(&f, &p, by_another_spoold(50));
    f.pipeline->meta_retry_at_ms = UINT64_MAX; /* as for room on a full disk */
    found(&f, p, ROWS);
    p = back(&f, p);
    assert_null(flow_assign(&f, p, by_another_spoold(50))); /* nothing is read before that is */
    assert_false(p->tracing);
    f.pipeline->meta_retry_at_ms = 0;
    meta_advance(f.pipeline);
    flow_run(&f);
    o = p->user;
    not_found(&f, p);
    assert_int_equal(o->told_from, INT64_MAX);
    flow_read(&f, p, 50, ROWS);
    flow_reopen(&f);
    for (o = f.stream->origins; o->epoch != 2; o = o->next)
        continue;
    assert_int_equal(o->told_from, INT64_MAX);
    flow_remove(&f);
}

static struct kafka_committed by_one_that_saw_a_cut(int64_t offset)
{
    struct kafka_committed committed = by_another_spoold(offset);

    committed.metadata = "spoold 00000000-0000-0000-0000-000000000000 7 9223372036854775807";
    return committed;
}

/* It read on behind what was taken here, and another log followed; or it was set back. */
static void test_another_spoold_says_what_it_could_be_told(void **state)
{
    struct kafka_committed committed = by_another_spoold(50);
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = back(&f, taken(&f));
    o = flow_assign(&f, p, by_one_that_saw_a_cut(50));
    assert_int_equal(o->epoch, 2);
    goes_on_at(p, 50);
    assert_int_equal(o->told_from, INT64_MAX);
    flow_remove(&f);

    committed.metadata = "spoold 00000000-0000-0000-0000-000000000000 7 400";
    o = looked_for(&f, &p, committed);
    found(&f, p, ROWS);
    assert_int_equal(o->told_from, 400);
    flow_remove(&f);

    flow_open(&f, make_directory()); /* nothing was taken here yet */
    p = flow_partition(&f, 0);
    o = flow_assign(&f, p, committed);
    assert_int_equal(o->epoch, 1);
    assert_int_equal(o->told_from, 400);
    p = back(&f, p);
    o = flow_assign(&f, p, by_one_that_saw_a_cut(50));
    assert_int_equal(o->epoch, 1);
    assert_int_equal(o->told_from, INT64_MAX);
    flow_read(&f, p, 50, ROWS);
    flow_reopen(&f);
    assert_int_equal(f.stream->segments_first->first->origin->told_from, INT64_MAX);
    o = flow_assign(&f, flow_partition(&f, 0), by_us(&f, 60, 1));
    assert_int_equal(o->told_from, INT64_MAX);
    flow_remove(&f);
}

/* The partition goes before that is known, or before anything of the epoch is held, and is back. */
static void test_the_log_is_looked_at_whenever_another_had_it(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    (void)looked_for(&f, &p, by_another_spoold(50));
    for (int i = 0; i < 2; i++) {
        p = back(&f, p);
        o = flow_assign(&f, p, by_another_spoold(60 + i));
        assert_int_equal(o->epoch, 2);
        assert_true(p->tracing);
        assert_int_equal(o->told_from, INT64_MAX);
        found(&f, p, ROWS);
        goes_on_at(p, 60 + i);
        assert_int_equal(o->told_from, 0);
    }
    p = back(&f, p);
    o = flow_assign(&f, p, by_another_spoold(70));
    not_found(&f, p);
    flow_read(&f, p, 70, ROWS);
    flow_reopen(&f);
    o = flow_assign(&f, flow_partition(&f, 0), by_us(&f, 70, 2));
    assert_int_equal(o->epoch, 2);
    assert_int_equal(o->told_from, INT64_MAX);
    flow_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_log_another_spoold_read_is_the_same),
        cmocka_unit_test(test_an_operator_set_the_offset),
        cmocka_unit_test(test_the_log_another_spoold_read_is_another),
        cmocka_unit_test(test_the_log_another_spoold_read_was_cut),
        cmocka_unit_test(test_what_is_found_of_the_log_is_noted_in_order),
        cmocka_unit_test(test_another_spoold_says_what_it_could_be_told),
        cmocka_unit_test(test_the_log_is_looked_at_whenever_another_had_it),
    };

    flow_marks = true;
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
