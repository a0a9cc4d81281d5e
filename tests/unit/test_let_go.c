/* SPDX-License-Identifier: Apache-2.0 */
/* Sealed batches with rows of partitions that went: what is sent, what waits, and what is done with. */
#include <fcntl.h>
#include <sys/stat.h>

#include "pipeline_rig.h"

#define ROWS 100 /* of each block */

/* A spool with blocks of partitions 0 and 1 in turn, and a seal, as a restart finds them. */
struct kept {
    struct flow f;
    struct kafka_partition *partitions[2];
    struct batch *batch;
};

static const struct kafka_committed nothing = {.offset = -1, .low = 0, .high = 1000};

static void reopen(struct kept *k)
{
    flow_reopen(&k->f);
    k->f.source->assigned_once = true;
    k->batch = k->f.stream->batches;
}

static const struct block *block_at(const struct kept *k, size_t i)
{
    const struct block *b = k->f.stream->segments_first->first;

    while (i--)
        b = b->next_in_segment;
    assert_non_null(b);
    return b;
}

/* first and count count blocks; of the last one only rows [row, row + rows). */
struct sealed {
    size_t first, count;
    uint32_t row, rows;
};

static void seal(struct kept *k, struct sealed what)
{
    struct stream *s = k->f.stream;
    struct spool_range ranges[4], rest[2];
    struct spool_seal seal = {.stream = s->id,
                              .batch = s->next_batch,
                              .segment = 1,
                              .ranges = ranges,
                              .range_count = what.count,
                              .token = "token",
                              .attributes = "4\n1\nhttp://127.0.0.1:1\n\n\na=1\n",
                              .sealed_ms = 1,
                              .rows = (what.count - 1) * ROWS + what.rows};
    struct spool_change changes[2] = {
        {.kind = SPOOL_CHANGE_SEAL, .stream = s->id, .batch = seal.batch, .seal = &seal},
        {.kind = SPOOL_CHANGE_DISCARD, .stream = s->id, .segment = 1, .ranges = rest}};
    size_t n = 0;

    seal.attributes_size = strlen(seal.attributes);
    for (size_t i = 0; i < what.count; i++)
        ranges[i] = (struct spool_range){block_at(k, what.first + i)->ref.sequence, 0, ROWS};
    ranges[what.count - 1].row = what.row;
    ranges[what.count - 1].rows = what.rows;
    rest[0] = (struct spool_range){ranges[what.count - 1].sequence, 0, what.row};
    rest[1] = (struct spool_range){ranges[what.count - 1].sequence, what.row + what.rows,
                                   ROWS - what.row - what.rows};
    changes[1].range_count = 2; /* of a piece the rest is stored */
    n = what.rows < ROWS ? 2 : 1;
    check_ok(spool_commit(k->f.spool, changes, n, &the_error));
}

static void restart_with(struct kept *k, struct sealed what)
{
    flow_open(&k->f, make_directory());
    for (int i = 0; i < 2; i++) {
        k->partitions[i] = flow_partition(&k->f, i);
        assert_non_null(flow_assign(&k->f, k->partitions[i], nothing));
    }
    for (int64_t at = 0; at < 2; at++)
        for (int i = 0; i < 2; i++) {
            flow_take(&k->f, k->partitions[i], at * ROWS, ROWS, false);
            flow_run(&k->f);
        }
    seal(k, what);
    reopen(k);
    assert_non_null(k->batch);
    assert_int_equal(k->batch->state, BATCH_WAITING);
    assert_true(k->batch->maybe_stored);
}

/* The partition is given to us, with what the group has committed of it. */
static void given(struct kept *k, int i, struct kafka_committed committed)
{
    k->partitions[i] = flow_partition(&k->f, i);
    assert_non_null(flow_assign(&k->f, k->partitions[i], committed));
}

static struct kafka_committed by_another(int64_t offset)
{
    return (struct kafka_committed){.offset = offset, .low = 0, .high = 1000};
}

/* Looks at the batches, as all that happens makes the stream do. */
static void look(struct kept *k)
{
    k->f.pipeline->started = true;
    batches_let_go(k->f.stream);
    k->f.pipeline->started = false;
    flow_run(&k->f);
    k->batch = k->f.stream->batches;
}

static void told(struct kept *k, int32_t partition, int64_t offset)
{
    k->f.source->callbacks.told(k->f.source->arg, "t", partition, offset, "");
    flow_run(&k->f);
    look(k);
}

static uint64_t spooled(const struct kept *k)
{
    return stream_spooled_rows(k->f.stream);
}

static const struct sealed whole = {0, 2, 0, ROWS}; /* a block of each partition */

/* --- what may be stored --------------------------------------------------------------------- */

static void test_it_waits_for_its_partitions(void **state)
{
    struct kept k;

    (void)state;
    restart_with(&k, whole);
    look(&k);
    assert_true(batch_is_gone(k.batch));
    given(&k, 0, nothing);
    assert_false(batch_is_gone(k.batch)); /* those rows are nobody else's */
    assert_true(batch_partly_gone(k.batch));
    given(&k, 1, nothing);
    assert_false(batch_is_gone(k.batch));
    assert_false(batch_partly_gone(k.batch));
    look(&k);
    assert_int_equal(spooled(&k), 4 * ROWS);
    flow_remove(&k.f);
}

/* While partitions are being taken, not the first that comes decides. */
static void test_it_waits_for_all_that_come(void **state)
{
    struct kafka_committed committed = nothing;
    struct kept k;

    (void)state;
    restart_with(&k, whole);
    given(&k, 0, nothing);
    k.partitions[1] = flow_partition(&k.f, 1);
    committed.metadata = "";
    k.f.source->callbacks.assigned(k.f.source->arg, k.partitions[1], &committed,
                                   &k.partitions[1]->user);
    assert_true(batch_is_gone(k.batch));
    flow_run(&k.f);
    assert_false(batch_is_gone(k.batch));
    flow_remove(&k.f);
}

/* A group that gives no answer is waited for only for a while: its token grows old. */
static void test_it_goes_where_the_group_does_not_answer(void **state)
{
    struct kept k;

    (void)state;
    restart_with(&k, whole);
    k.f.source->assigned_once = false;
    assert_true(batch_is_gone(k.batch));
    k.f.pipeline->start_ms -= 60000;
    assert_false(batch_is_gone(k.batch));
    k.f.source->assigned_once = true;
    assert_true(batch_is_gone(k.batch));
    flow_remove(&k.f);
}

/* The group can't have given its partitions away: it was there a moment ago. */
static void test_it_goes_at_once_after_a_moment(void **state)
{
    struct kept k;

    (void)state;
    restart_with(&k, whole);
    spool_alive(k.f.spool);
    reopen(&k);
    k.f.source->assigned_once = false;
    assert_non_null(k.batch);
    assert_false(batch_is_gone(k.batch));
    reopen(&k); /* that it was opened is no sign of life, but the last one is young yet */
    k.f.source->assigned_once = false;
    assert_false(batch_is_gone(k.batch));
    flow_remove(&k.f);
}

/* What was sent of it may be on its way yet when a start finds it. */
static void test_it_is_asked_about_later(void **state)
{
    uint64_t now = clock_monotonic_ms();
    struct kept k;

    (void)state;
    flow_ask_delay_ms = 60000;
    restart_with(&k, whole);
    flow_ask_delay_ms = 0;
    assert_true(k.batch->ask_from_ms >= now + 60000);
    ask_start(k.batch, 0);
    assert_false(k.batch->busy);
    assert_int_equal(k.batch->state, BATCH_WAITING);
    assert_true(k.batch->retry_at_ms >= k.batch->ask_from_ms);
    flow_remove(&k.f);
}

/* As a machine that was booted since finds the spool, whatever it takes the time for. */
static void boot_again(const char *spool)
{
    static const char text[] = "1\n00000000-0000-0000-0000-000000000000\n";
    char path[512];
    struct stat st;
    int fd;

    snprintf(path, sizeof(path), "%s/LOCK", spool);
    fd = open(path, O_RDWR | O_TRUNC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    assert_int_equal(fstat(fd, &st), 0);
    st.st_mtim.tv_sec = (time_t)(clock_boot_ms() / 1000);
    assert_int_equal(futimens(fd, (struct timespec[2]){st.st_atim, st.st_mtim}), 0);
    close(fd);
}

/* Nobody knows for how long the machine was off. */
static void test_it_waits_after_another_boot(void **state)
{
    struct kept k;
    char *path;

    (void)state;
    restart_with(&k, whole);
    spool_alive(k.f.spool);
    path = k.f.path;
    flow_close(&k.f);
    boot_again(path);
    flow_open(&k.f, path);
    assert_non_null(k.f.stream->batches);
    assert_int_equal(spool_last_alive_ms(k.f.spool), -1);
    assert_true(batch_is_gone(k.f.stream->batches));
    reopen(&k); /* that it was opened in this boot is no sign either */
    assert_int_equal(spool_last_alive_ms(k.f.spool), -1);
    flow_remove(&k.f);
}

/* The group has said what is ours, and that holds. */
static void settle(struct flow *f)
{
    f->source->settled = f->source->connected = true;
    atomic_store(&f->source->hook->joining, false);
    atomic_store(&f->source->hook->nameless, false);
    assert_false(kafka_source_settled(f->source)); /* the coordinator has said nothing yet */
    atomic_store(&f->source->hook->heard_ms, clock_boot_ms());
    assert_true(kafka_source_settled(f->source));
}

/* Also where there is none to give: the look passes over all that is held. */
static void test_a_sign_of_life_is_looked_for_once_a_second(void **state)
{
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    kafka_in_advance(f.pipeline);
    settle(&f);
    assert_true(f.pipeline->alive_due_ms > 0);
    f.pipeline->alive_due_ms += 60000; /* however long this takes */
    kafka_in_advance(f.pipeline);      /* it looked a moment ago */
    flow_reopen(&f);
    assert_int_equal(spool_last_alive_ms(f.spool), -1);
    settle(&f);
    kafka_in_advance(f.pipeline);
    flow_reopen(&f);
    assert_true(spool_last_alive_ms(f.spool) > 0);
    flow_remove(&f);
}

static void test_it_is_done_with_where_others_committed_past_it(void **state)
{
    struct kept k;

    (void)state;
    restart_with(&k, whole);
    given(&k, 0, by_another(2 * ROWS));
    look(&k);
    assert_non_null(k.batch);
    assert_true(batch_is_gone(k.batch)); /* the other partition's rows may be sent yet */
    told(&k, 1, ROWS);
    assert_null(k.batch);
    assert_int_equal(spooled(&k), ROWS); /* of partition 1, beyond that commit */
    reopen(&k);
    assert_null(k.batch);
    assert_int_equal(spooled(&k), ROWS);
    flow_remove(&k.f);
}

/* Of a spool that was put back to before its rows were acknowledged. */
static void test_it_is_done_with_where_we_committed_past_it(void **state)
{
    struct kafka_committed committed = {.offset = 2 * ROWS, .low = 0, .high = 1000};
    struct kept k;

    (void)state;
    restart_with(&k, whole);
    committed.metadata = flow_metadata(&k.f, 1);
    given(&k, 0, committed);
    look(&k);
    assert_non_null(k.batch);
    given(&k, 1, committed);
    look(&k);
    assert_null(k.batch);
    assert_int_equal(spooled(&k), 0);
    flow_remove(&k.f);
}

/* --- what is known not to be stored --------------------------------------------------------- */

/* The second block of partition 1 is a piece: what was before and behind it is stored. */
static const struct sealed piece = {0, 4, 10, 40};

static void not_stored(struct kept *k, struct sealed what)
{
    restart_with(k, what);
    k->batch->maybe_stored = false;
}

static size_t batches(const struct kept *k)
{
    return k->f.stream->batch_count;
}

static void test_whole_blocks_are_unsealed_and_pieces_keep_a_seal(void **state)
{
    struct kept k;

    (void)state;
    not_stored(&k, piece);
    given(&k, 0, nothing);
    look(&k);
    assert_int_equal(batches(&k), 2);
    assert_int_equal(k.batch->rows, 2 * ROWS); /* of partition 0 */
    assert_false(batch_is_gone(k.batch));
    assert_int_equal(k.batch->next->rows, 40);
    assert_true(batch_is_gone(k.batch->next));
    assert_int_equal(block_at(&k, 1)->state, BLOCK_WAITING);
    assert_int_equal(block_at(&k, 3)->state, BLOCK_SEALED);
    assert_int_equal(spooled(&k), 3 * ROWS + 40);
    look(&k);
    assert_int_equal(batches(&k), 2);
    flow_remove(&k.f);
}

/* Rows of it were to be encoded anew, and letters of some found no room for the others. */
static void test_blocks_that_may_have_letters_keep_a_seal(void **state)
{
    struct kept k;

    (void)state;
    not_stored(&k, piece);
    k.batch->lettered = true;
    k.f.stream->dead_letters = 1;
    given(&k, 0, nothing);
    look(&k);
    assert_int_equal(batches(&k), 2);
    assert_int_equal(k.batch->next->rows, ROWS + 40);
    assert_true(k.batch->next->lettered);
    assert_int_equal(block_at(&k, 1)->state, BLOCK_SEALED);
    flow_remove(&k.f);
}

/* Others committed past one partition's rows before they were let go: the other's are not held up. */
static void test_what_others_passed_is_taken_out(void **state)
{
    struct kept k;

    (void)state;
    not_stored(&k, whole);
    given(&k, 0, nothing);
    told(&k, 1, ROWS);
    assert_int_equal(batches(&k), 1);
    assert_int_equal(k.batch->rows, ROWS);
    assert_false(batch_is_gone(k.batch));
    assert_int_equal(spooled(&k), 3 * ROWS);
    flow_remove(&k.f);
}

static void test_pieces_are_sent_when_their_partition_is_back(void **state)
{
    struct kept k;

    (void)state;
    not_stored(&k, piece);
    look(&k);
    assert_int_equal(batches(&k), 1);
    assert_int_equal(k.batch->rows, 40);
    assert_true(batch_is_gone(k.batch));
    given(&k, 1, nothing);
    assert_false(batch_is_gone(k.batch));
    assert_int_equal(k.f.stream->eligible_rows, ROWS); /* and the whole one */
    flow_remove(&k.f);
}

static void test_pieces_are_done_with_where_others_committed_past_them(void **state)
{
    struct kept k;

    (void)state;
    not_stored(&k, piece);
    look(&k);
    told(&k, 0, 2 * ROWS);
    told(&k, 1, 2 * ROWS - 1);
    assert_int_equal(spooled(&k), 40);
    assert_int_equal(batches(&k), 1);
    told(&k, 1, 2 * ROWS);
    assert_int_equal(spooled(&k), 0);
    assert_int_equal(batches(&k), 0);
    assert_null(k.f.stream->segments_first->first);
    flow_remove(&k.f);
}

static void
test_pieces_are_done_with_when_their_partition_is_back_with_anothers_commit(void **state)
{
    struct kept k;

    (void)state;
    not_stored(&k, piece);
    look(&k);
    given(&k, 1, by_another(3 * ROWS));
    look(&k);
    assert_int_equal(batches(&k), 0);
    assert_int_equal(spooled(&k), 2 * ROWS); /* of partition 0 */
    flow_remove(&k.f);
}

/* Of a source that can't be read again: what is stored of their block is not to go again with them. */
static void test_pieces_that_are_damaged_keep_a_seal(void **state)
{
    static const struct sealed alone = {3, 1, 10, 40};
    const bool damaged = true;
    struct kept k;

    (void)state;
    not_stored(&k, alone);
    block_at(&k, 3)->origin->kafka = false; /* as that of a replay */
    assert_int_equal(batch_set_aside(k.batch, &damaged, NULL, 0, false), SPOOL_OK);
    flow_run(&k.f);
    for (int turn = 0; turn < 2; turn++) {
        k.batch = k.f.stream->batches;
        assert_non_null(k.batch);
        assert_int_equal(k.batch->rows, 40);
        assert_int_equal(k.batch->unreadable, turn == 0);
        assert_int_equal(batches_counted(k.f.stream), turn);
        assert_int_equal(block_at(&k, 3)->state, BLOCK_SEALED);
        assert_int_equal(spooled(&k), 3 * ROWS + 40);
        reopen(&k); /* once more: it may be readable by then */
    }
    flow_remove(&k.f);
}

/* The log that had them is gone: a hole would never be filled. */
static void test_damaged_rows_of_a_former_log_are_no_hole(void **state)
{
    static const struct sealed alone = {3, 1, 10, 40};
    const bool damaged = true;
    struct origin *o;
    struct kept k;

    (void)state;
    not_stored(&k, alone);
    o = block_at(&k, 3)->origin;
    o->superseded = true;
    assert_int_equal(batch_set_aside(k.batch, &damaged, NULL, 0, false), SPOOL_OK);
    flow_run(&k.f);
    assert_null(o->holes);
    assert_true(k.f.stream->batches->unreadable);
    assert_int_equal(spooled(&k), 3 * ROWS + 40);
    flow_remove(&k.f);
}

/* A restart does not know any more that they are not stored. */
static void test_pieces_wait_after_a_restart_too(void **state)
{
    struct kept k;

    (void)state;
    not_stored(&k, piece);
    look(&k);
    reopen(&k);
    look(&k);
    assert_int_equal(batches(&k), 1);
    assert_true(k.batch->maybe_stored);
    assert_true(batch_is_gone(k.batch));
    told(&k, 1, 2 * ROWS);
    assert_int_equal(batches(&k), 0);
    assert_int_equal(spooled(&k), 2 * ROWS);
    flow_remove(&k.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_it_waits_for_its_partitions),
        cmocka_unit_test(test_it_waits_for_all_that_come),
        cmocka_unit_test(test_it_goes_where_the_group_does_not_answer),
        cmocka_unit_test(test_it_goes_at_once_after_a_moment),
        cmocka_unit_test(test_it_is_asked_about_later),
        cmocka_unit_test(test_it_waits_after_another_boot),
        cmocka_unit_test(test_a_sign_of_life_is_looked_for_once_a_second),
        cmocka_unit_test(test_it_is_done_with_where_others_committed_past_it),
        cmocka_unit_test(test_it_is_done_with_where_we_committed_past_it),
        cmocka_unit_test(test_whole_blocks_are_unsealed_and_pieces_keep_a_seal),
        cmocka_unit_test(test_blocks_that_may_have_letters_keep_a_seal),
        cmocka_unit_test(test_what_others_passed_is_taken_out),
        cmocka_unit_test(test_pieces_are_sent_when_their_partition_is_back),
        cmocka_unit_test(test_pieces_are_done_with_where_others_committed_past_them),
        cmocka_unit_test(
            test_pieces_are_done_with_when_their_partition_is_back_with_anothers_commit),
        cmocka_unit_test(test_pieces_that_are_damaged_keep_a_seal),
        cmocka_unit_test(test_damaged_rows_of_a_former_log_are_no_hole),
        cmocka_unit_test(test_pieces_wait_after_a_restart_too),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
