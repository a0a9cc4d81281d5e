/* SPDX-License-Identifier: Apache-2.0 */
/* What is kept in memory of rows that wait: as much as is sent next, however long the backlog is; and that
   the end does not wait for whoever looks through it. */
#include "pipeline_rig.h"

#define ROWS   100000 /* of each block; two fill a segment */
#define BLOCKS 12

static const struct kafka_committed nothing = {.offset = -1, .low = 0, .high = 2 * BLOCKS * ROWS};

static void holds_what_is_sent_next(struct flow *f)
{
    uint64_t in_memory = 0;

    for (const struct segment *g = f->stream->segments_first; g; g = g->next)
        for (const struct block *b = g->first; b; b = b->next_in_segment)
            in_memory++;
    assert_int_equal(stream_spooled_rows(f->stream), BLOCKS * ROWS);
    assert_false(segments_all_loaded(f->stream));
    assert_in_range(f->stream->eligible_rows, 3 * ROWS, 6 * ROWS);
    assert_int_equal(in_memory * ROWS, f->stream->eligible_rows);
}

static void test_descriptors_are_of_what_is_sent_next(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    flow_segment_bytes = MIB;
    flow_open(&f, make_directory());
    f.stream_options.flush_rows = ROWS; /* two in flight, and the next */
    p = flow_partition(&f, 0);
    assert_non_null(flow_assign(&f, p, nothing));
    for (int64_t i = 0; i < BLOCKS; i++) {
        flow_take(&f, p, i * ROWS, ROWS, false);
        flow_run(&f);
    }
    holds_what_is_sent_next(&f);
    flow_remove(&f);
}

struct looked {
    int status;
    bool ended;
};

static void verify(void *arg, struct spool *spool, struct spool_stream *stream)
{
    struct looked *l = arg;
    uint64_t problems = 0;

    (void)stream;
    l->status = spool_verify(spool, NULL, NULL, &problems, NULL);
}

static void verified(void *arg)
{
    ((struct looked *)arg)->ended = true;
}

static int look(struct flow *f)
{
    struct looked l = {0};

    check_ok(pipeline_look(f->pipeline, LOOK_ALL, NULL, verify, verified, &l));
    while (!l.ended)
        uv_run(&f->loop, UV_RUN_ONCE);
    return l.status;
}

static void drained(void *arg)
{
    (void)arg;
}

static void test_looks_end_with_the_drain(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    p = flow_partition(&f, 0);
    (void)flow_assign(&f, p, nothing);
    flow_take(&f, p, 0, 10, false);
    flow_run(&f);
    assert_int_equal(look(&f), SPOOL_OK);
    pipeline_drain(f.pipeline, 60000, drained, NULL);
    assert_int_equal(look(&f), SPOOL_E_CANCELLED);
    flow_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_descriptors_are_of_what_is_sent_next),
        cmocka_unit_test(test_looks_end_with_the_drain),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
