/* SPDX-License-Identifier: Apache-2.0 */
/* What a revocation waits for before partitions go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "pipeline/pipeline_int.h"
#include "source/kafka_int.h"

/* A stream with one partition that is being taken away. */
struct fixture {
    struct pipeline pipeline;
    struct stream stream;
    struct kafka_source source;
    struct kafka_partition partition;
    struct origin *origin;
};

static void setup(struct fixture *f)
{
    memset(f, 0, sizeof(*f));
    f->source.close_started = true;
    f->partition.source = &f->source;
    f->pipeline.kafka = &f->source;
    f->pipeline.streams = &f->stream; /* not started: nothing goes on by itself */
    f->pipeline.stream_count = 1;
    f->pipeline.revoking = 1;
    f->pipeline.revoke_deadline_ms = clock_monotonic_ms() + 3600 * 1000;
    f->stream.p = &f->pipeline;
    f->origin = origin_get(&f->stream, 1);
    assert_non_null(f->origin);
    f->origin->kafka = f->origin->revoking = true;
    f->origin->partition = &f->partition;
}

static void teardown(struct fixture *f)
{
    batches_free(&f->stream);
    origins_free(&f->stream);
}

static bool goes(struct fixture *f)
{
    kafka_in_advance(&f->pipeline);
    return !f->pipeline.revoking;
}

/* Its blocks, and so whose they are, are not known. */
static void test_a_batch_that_is_not_loaded_is_not_waited_for(void **state)
{
    struct fixture f;
    struct batch *b;

    (void)state;
    setup(&f);
    b = batch_new(&f.stream, 1);
    assert_non_null(b);
    b->state = BATCH_LOADING;
    b->maybe_stored = true;
    b->part_count = 1;
    batch_link(&f.stream, b);
    assert_true(goes(&f));
    teardown(&f);
}

static void test_runs_are_waited_for(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    f.origin->runs_unreleased = 1;
    assert_false(goes(&f));
    f.origin->runs_unreleased = 0;
    assert_true(goes(&f));
    teardown(&f);
}

/* They may wait for as long as their stream is held, and nobody else has them. */
static void test_runs_of_a_log_that_is_over_are_not_waited_for(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    f.origin->runs_unreleased = 1;
    f.origin->log_over = true;
    assert_true(goes(&f));
    teardown(&f);
}

static void test_a_lost_partition_is_not_waited_for(void **state)
{
    struct fixture f;

    (void)state;
    setup(&f);
    f.origin->runs_unreleased = 1;
    f.origin->lost = true;
    assert_true(goes(&f));
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_batch_that_is_not_loaded_is_not_waited_for),
        cmocka_unit_test(test_runs_are_waited_for),
        cmocka_unit_test(test_runs_of_a_log_that_is_over_are_not_waited_for),
        cmocka_unit_test(test_a_lost_partition_is_not_waited_for),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
