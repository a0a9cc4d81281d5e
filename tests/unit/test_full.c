/* SPDX-License-Identifier: Apache-2.0 */
/* Records that were read while there is no room for them on disk, of logs that go on and of such as are
   over. */
#include <sys/resource.h>

#include "pipeline_rig.h"

#define ROWS 100 /* of each run */

static const struct kafka_committed nothing = {.offset = -1, .low = 0, .high = 1000};

/* So many bytes may be appended; also to a stream that holds no rows. */
static void room(struct flow *f, uint64_t bytes)
{
    uint64_t used = f->pipeline->usage.total_bytes + f->pipeline->grown_bytes;
    uint64_t margin = 256 * KIB; /* kept by pressure.c */

    f->options.max_bytes = bytes == UINT64_MAX ? bytes : used + margin + bytes;
    f->stream->append_retry_at_ms = 0;
    if (bytes == UINT64_MAX)
        stream_set_full(f->stream, false); /* as the next look at the files does */
    flow_run(f);
}

/* Its first run waits for room, and the stream is full; the second one came before that was known. */
static struct kafka_partition *full(struct flow *f, bool last_of_log)
{
    struct kafka_partition *p;

    flow_open(f, make_directory());
    p = flow_partition(f, 0);
    assert_non_null(flow_assign(f, p, nothing));
    room(f, 0);
    flow_take(f, p, 0, ROWS, false);
    flow_take(f, p, ROWS, ROWS, last_of_log);
    flow_run(f);
    assert_true(f->stream->full);
    assert_int_equal(stream_spooled_rows(f->stream), 0);
    return p;
}

/* The whole of [0, to) of the origin is on disk, each offset once and in order. */
static void holds(const struct flow *f, const struct origin *o, int64_t to)
{
    int64_t at = 0;

    for (const struct block *b = o->first; b; b = b->next_in_origin) {
        assert_int_equal(b->ref.first_offset, at);
        at = b->ref.last_offset + 1;
    }
    assert_int_equal(at, to);
    assert_int_equal(f->stream->append_rows, 0);
}

static void test_what_can_be_read_again_is_given_back(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = full(&f, false);
    o = p->user;
    assert_int_equal(f.stream->append_rows, ROWS);
    assert_int_equal(o->taken, ROWS - 1);
    assert_int_equal(p->start, ROWS);
    room(&f, UINT64_MAX);
    flow_take(&f, p, ROWS, ROWS, false);
    flow_run(&f);
    holds(&f, o, 2 * ROWS);
    flow_remove(&f);
}

static void test_what_can_not_waits_in_memory_and_within_the_bound(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    p = full(&f, true);
    o = p->user;
    assert_int_equal(f.stream->append_rows, 2 * ROWS);
    room(&f, 6000); /* for a block */
    assert_int_equal(stream_spooled_rows(f.stream), ROWS);
    assert_int_equal(f.stream->append_rows, ROWS);
    room(&f, 6000); /* but not into the last tenth of the bound */
    assert_int_equal(f.stream->append_rows, ROWS);
    room(&f, UINT64_MAX);
    holds(&f, o, 2 * ROWS);
    flow_remove(&f);
}

/* The next log is read while the former one's records wait, and its own are given back. */
static void test_the_next_log_waits_in_kafka(void **state)
{
    struct kafka_partition *p;
    struct origin *old, *o;
    struct flow f;

    (void)state;
    p = full(&f, true);
    old = p->user;
    p->state = KAFKA_P_HELD;
    f.source->callbacks.new_log(f.source->arg, p, 2 * ROWS);
    flow_run(&f);
    o = p->user;
    assert_int_equal(o->epoch, 2);
    flow_take(&f, p, 0, ROWS, false);
    flow_run(&f);
    assert_int_equal(f.stream->append_rows, 2 * ROWS); /* the former log's */
    assert_int_equal(o->taken, -1);
    room(&f, UINT64_MAX);
    flow_take(&f, p, 0, ROWS, false);
    flow_run(&f);
    holds(&f, old, 2 * ROWS);
    holds(&f, o, ROWS);
    assert_int_equal(f.stream->eligible_rows, 3 * ROWS);
    flow_remove(&f);
}

/* A schema that the spool could not be told of for want of a descriptor is told with the next attempt: else
   its blocks would go into the segment of the former one, and be read as what they are not. */
static void test_a_schema_waits_for_a_descriptor(void **state)
{
    const struct segment *newest;
    struct kafka_partition *p;
    struct rlimit before, none;
    struct flow f;

    (void)state;
    flow_type = "UInt8";
    flow_open(&f, make_directory());
    p = flow_partition(&f, 0);
    (void)flow_assign(&f, p, (struct kafka_committed){.offset = -1, .low = 0, .high = 1000});
    flow_take(&f, p, 0, 10, false);
    flow_run(&f);
    flow_type = "UInt64";
    flow_reopen(&f);
    p = flow_partition(&f, 0);
    (void)flow_assign(&f, p, (struct kafka_committed){.offset = -1, .low = 0, .high = 1000});
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = (struct rlimit){0, before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    flow_take(&f, p, 10, 10, false);
    flow_run(&f);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    assert_true(f.stream->full);
    assert_non_null(f.stream->append_first);
    f.stream->append_retry_at_ms = 0;
    flow_run(&f);
    assert_null(f.stream->append_first);
    newest = f.stream->segments_last;
    assert_ptr_not_equal(newest, f.stream->segments_first);
    assert_int_equal(newest->blocks_total, 1);
    assert_int_equal(stream_spooled_rows(f.stream), 20);
    flow_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_can_be_read_again_is_given_back),
        cmocka_unit_test(test_what_can_not_waits_in_memory_and_within_the_bound),
        cmocka_unit_test(test_the_next_log_waits_in_kafka),
        cmocka_unit_test(test_a_schema_waits_for_a_descriptor),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
