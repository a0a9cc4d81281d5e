/* SPDX-License-Identifier: Apache-2.0 */
/* What a stream that can take no more does with the runs of records that it was handed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pipeline/intake_int.h"
#include "source/kafka_int.h"

static unsigned released;

static void run_release(struct record_run *run)
{
    (void)run;
    released++;
}

static const struct record_run_ops ops = {.release = run_release};

/* A stream with one partition that stands still. */
struct fixture {
    struct pipeline pipeline;
    struct stream stream;
    struct kafka_source source;
    struct kafka_partition partition;
    struct origin *origin;
    struct record_run runs[2];
};

static void setup(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    released = 0;
    f->stream.p = &f->pipeline; /* not started: nothing goes on by itself */
    f->source.close_started = true;
    f->partition.source = &f->source;
    f->partition.state = KAFKA_P_HELD;
    f->partition.announced = true;
    f->partition.taken = f->partition.handed = f->partition.mark_offset = -1;
    f->origin = origin_get(&f->stream, 1);
    assert_non_null(f->origin);
    f->origin->partition = &f->partition;
    for (unsigned i = 0; i < 2; i++)
        f->runs[i] = (struct record_run){.ops = &ops,
                                         .count = 100,
                                         .bytes = 1000,
                                         .first_offset = i * 100,
                                         .last_offset = i * 100 + 99};
}

static void teardown(struct fixture *f)
{
    intake_release_runs(&f->stream, false);
    assert_int_equal(f->stream.queued_runs, 0);
    assert_null(f->stream.ready_first);
    origins_free(&f->stream);
}

static void test_runs_are_given_back(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    intake_run(f.origin, &f.runs[0], NULL);
    intake_run(f.origin, &f.runs[1], NULL);
    assert_int_equal(f.origin->taken, 199);
    intake_release_runs(&f.stream, true);
    assert_int_equal(released, 2);
    assert_int_equal(f.origin->taken, -1);
    assert_int_equal(f.partition.state, KAFKA_P_STARTING); /* and read again */
    assert_int_equal(f.partition.start, 0);
    teardown(&f);
}

/* They could not be had again; and what is read at their offsets now is of the next log. */
static void test_runs_of_a_log_that_is_over_stay(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    intake_run(f.origin, &f.runs[0], NULL);
    f.runs[1].last_of_log = true;
    intake_run(f.origin, &f.runs[1], NULL);
    intake_release_runs(&f.stream, true);
    assert_int_equal(released, 0);
    assert_int_equal(f.origin->taken, 199);
    assert_int_equal(f.partition.state, KAFKA_P_HELD);
    assert_ptr_equal(f.stream.ready_first, f.origin); /* their turn comes */
    assert_ptr_equal(f.stream.ready_last, f.origin);
    assert_int_equal(f.stream.queued_runs, 2);
    teardown(&f);
    assert_int_equal(released, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_are_given_back),
        cmocka_unit_test(test_runs_of_a_log_that_is_over_stay),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
