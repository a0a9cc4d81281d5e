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
#include "sink/clickhouse_int.h"
#include "source/kafka_int.h"

#define HOUR_MS (3600 * UINT64_C(1000))

/* A stream with one partition that is being taken away, and an endpoint that is up. */
struct fixture {
    struct pipeline_options options;
    struct stream_options stream_options;
    struct clickhouse clickhouse;
    struct endpoint endpoint;
    struct target target;
    struct table_description table;
    struct schema schema;
    struct stream_schema stream_schema;
    struct segment segment;
    struct block blocks[2];
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
    f->pipeline.revoke_deadline_ms = clock_monotonic_ms() + HOUR_MS;
    f->pipeline.options = &f->options;
    f->pipeline.clickhouse = &f->clickhouse;
    f->clickhouse.endpoints = &f->endpoint;
    f->clickhouse.endpoint_count = 1;
    f->endpoint.state = ENDPOINT_UP;
    f->endpoint.since_ms = 1;
    f->target.stream = &f->stream;
    f->target.state = TARGET_OK;
    f->target.description = &f->table;
    f->stream_schema.refs = 1;
    f->stream_schema.schema = &f->schema;
    f->stream_schema.target = &f->target;
    f->stream_schema.accepted = true;
    f->segment.schema = &f->stream_schema;
    f->stream.options = &f->stream_options;
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

/* One that waits, with all rows of the origin's block. */
static struct batch *waiting(struct fixture *f)
{
    struct batch *b = batch_new(&f->stream, 2);

    assert_non_null(b);
    f->blocks[0] =
        (struct block){.ref.rows = 100, .origin = f->origin, .state = BLOCK_SEALED, .lists = 2};
    b->state = BATCH_WAITING;
    b->segment = &f->segment;
    b->endpoint = 0;
    b->parts[0] = (struct part){&f->blocks[0], 0, 100};
    b->part_count = 1;
    b->rows = 100;
    batch_link(&f->stream, b);
    return b;
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

/* Its answer comes, and till then nobody else may begin with its rows. */
static void test_what_is_under_way_is_waited_for(void **state)
{
    static const enum batch_state under_way[] = {BATCH_SEALING, BATCH_CHECKING, BATCH_SENDING,
                                                 BATCH_ACKING};
    struct fixture f;
    struct batch *b;

    (void)state;
    setup(&f);
    b = waiting(&f);
    for (size_t i = 0; i < sizeof(under_way) / sizeof(under_way[0]); i++) {
        b->state = under_way[i];
        assert_false(goes(&f));
    }
    batch_remove(b);
    assert_true(goes(&f));
    teardown(&f);
}

/* By the token, or blindly, at once or somewhat later. */
static void test_what_may_be_stored_is_waited_for(void **state)
{
    struct fixture f;
    struct batch *b;

    (void)state;
    setup(&f);
    b = waiting(&f);
    b->maybe_stored = true;
    assert_false(goes(&f));
    b->retry_at_ms = clock_monotonic_ms() + HOUR_MS / 2;
    assert_false(goes(&f));
    b->busy = true;
    assert_false(goes(&f));
    b->busy = false;
    b->retry_at_ms = clock_monotonic_ms() + 2 * HOUR_MS;
    assert_true(goes(&f));
    teardown(&f);
}

static void test_an_outage_is_not_waited_for(void **state)
{
    struct fixture f;
    struct batch *b;

    (void)state;
    setup(&f);
    b = waiting(&f);
    b->maybe_stored = true;
    f.endpoint.state = ENDPOINT_DOWN;
    f.endpoint.since_ms = clock_monotonic_ms() - 1000; /* it may be back in a moment */
    assert_false(goes(&f));
    f.endpoint.since_ms = 1;
    assert_true(goes(&f));
    teardown(&f);
}

static void test_a_hold_is_not_waited_for(void **state)
{
    struct fixture f;
    struct batch *b;

    (void)state;
    setup(&f);
    b = waiting(&f);
    b->maybe_stored = true;
    f.stream.holds[HOLD_ANSWER] = true;
    f.stream.probe = b;
    assert_true(goes(&f));
    f.stream.holds[HOLD_ANSWER] = false;
    f.stream.probe = NULL;
    f.pipeline.revoking = 1;
    f.origin->revoking = true;
    f.stream.paused = true;
    assert_true(goes(&f));
    f.stream.paused = false;
    f.pipeline.revoking = 1;
    f.origin->revoking = true;
    f.target.state = TARGET_BAD;
    assert_true(goes(&f));
    teardown(&f);
}

/* What is known not to be stored is sent first where that is begun at once. */
static void test_what_is_not_stored_is_waited_for_where_it_starts_at_once(void **state)
{
    struct fixture f;
    struct batch *b;

    (void)state;
    setup(&f);
    b = waiting(&f);
    assert_false(goes(&f));
    b->retry_at_ms = clock_monotonic_ms() + HOUR_MS / 2;
    assert_true(goes(&f));
    teardown(&f);
}

/* Offsets without rows, of tombstones say, are sealed with what other partitions have. */
static void test_a_block_without_rows_keeps_no_batch_back(void **state)
{
    struct fixture f;
    struct origin *ours;
    struct batch *b;

    (void)state;
    setup(&f);
    ours = origin_get(&f.stream, 2);
    assert_non_null(ours);
    ours->kafka = ours->owned = true;
    b = waiting(&f);
    f.origin->revoking = false;
    assert_true(batch_is_gone(b));
    f.blocks[0].origin = ours;
    f.blocks[1] = (struct block){.origin = f.origin, .state = BLOCK_SEALED, .lists = 2};
    b->parts[b->part_count++] = (struct part){&f.blocks[1], 0, 0};
    assert_false(batch_is_gone(b));
    teardown(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_batch_that_is_not_loaded_is_not_waited_for),
        cmocka_unit_test(test_runs_are_waited_for),
        cmocka_unit_test(test_runs_of_a_log_that_is_over_are_not_waited_for),
        cmocka_unit_test(test_a_lost_partition_is_not_waited_for),
        cmocka_unit_test(test_what_is_under_way_is_waited_for),
        cmocka_unit_test(test_what_may_be_stored_is_waited_for),
        cmocka_unit_test(test_an_outage_is_not_waited_for),
        cmocka_unit_test(test_a_hold_is_not_waited_for),
        cmocka_unit_test(test_what_is_not_stored_is_waited_for_where_it_starts_at_once),
        cmocka_unit_test(test_a_block_without_rows_keeps_no_batch_back),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
