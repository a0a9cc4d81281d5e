/* SPDX-License-Identifier: Apache-2.0 */
/* When a stream starts a new segment, and what it carries over. */
#include "spool/spool_int.h"
#include "spool_data.h"

#define SMALL_SEGMENT (1u << 20)

static void check_all(struct spool_stream *stream, const struct spool_block_ref *refs, size_t count)
{
    struct spool_segment_info *info;
    struct spool_block_ref *listed = NULL;
    size_t segments = 0, n = 0, at = 0;

    info = segments_of(stream, &segments);
    for (size_t i = 0; i < segments; i++) {
        assert_false(info[i].damaged);
        assert_int_equal(info[i].newest, i + 1 == segments);
        check_ok(spool_segment_blocks(stream, info[i].number, &listed, &n, &the_error));
        assert_int_equal(n, info[i].blocks);
        for (size_t k = 0; k < n; k++) {
            assert_true(at < count);
            assert_memory_equal(&listed[k], &refs[at], sizeof(refs[0]));
            check_block(stream, &listed[k]);
            at++;
        }
        free(listed);
    }
    assert_int_equal(at, count);
    free(info);
}

static void test_roll_by_size(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, SMALL_SEGMENT);
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin[2] = {open_origin(spool, "o/0"), open_origin(spool, "o/1")};
    struct spool_block_ref refs[400];
    uint64_t seed = 5;
    size_t n = 0;

    (void)state;
    while (n < 400) {
        struct spool_block blocks[40];
        size_t count = next_random(&seed) % 40 + 1, appended = 0;
        int64_t offset[2] = {-1, -1};
        if (count > 400 - n)
            count = 400 - n;
        (void)spool_stream_high(stream, origin[0], &offset[0]);
        (void)spool_stream_high(stream, origin[1], &offset[1]);
        for (size_t i = 0; i < count; i++) {
            size_t which = next_random(&seed) % 2, size = next_random(&seed) % 60000 + 1;
            uint8_t *bytes = malloc(size);
            assert_non_null(bytes);
            blocks[i] = (struct spool_block){.origin = origin[which],
                                             .rows = 2,
                                             .first_offset = offset[which] + 1,
                                             .last_offset = offset[which] + 2,
                                             .frames = bytes,
                                             .frames_size = size};
            fill_payload(bytes, size, origin[which], offset[which] + 1);
            offset[which] += 2;
        }
        check_ok(spool_stream_append(stream, blocks, count, refs + n, &appended, &the_error));
        assert_int_equal(appended, count);
        for (size_t i = 0; i < count; i++)
            free((void *)(uintptr_t)blocks[i].frames);
        n += count;
        if (next_random(&seed) % 8 == 0) {
            spool_close(spool);
            spool = open_spool(path, SMALL_SEGMENT);
            stream = open_stream(spool, "s");
        }
    }
    assert_true(refs[399].segment > 8 && refs[399].segment < 25);
    check_all(stream, refs, n);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* No segment is much larger than it should be, unless one block is. */
static void test_large_blocks(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, SMALL_SEGMENT);
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin = open_origin(spool, "o");
    const size_t sizes[] = {100, 5 << 20, 100, 1 << 20, (1 << 20) - 4096 * 40, 20 << 20, 3};
    struct spool_block_ref refs[7];
    struct spool_segment_info *info;
    size_t count = 0, large = 0;

    (void)state;
    for (size_t i = 0; i < 7; i++)
        refs[i] = append_one(stream, origin, 1, sizes[i]);
    check_all(stream, refs, 7);
    info = segments_of(stream, &count);
    for (size_t i = 0; i < count; i++) {
        const uint64_t least =
            info[i].stored_bytes > SMALL_SEGMENT ? info[i].stored_bytes : SMALL_SEGMENT;
        assert_true(info[i].file_bytes < least + (512 << 10));
        large += info[i].stored_bytes > SMALL_SEGMENT;
    }
    assert_int_equal(large, 3);
    free(info);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* Should the count of pages ever be wrong, LMDB says so, and the append rolls by itself. */
static void test_map_full(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, SMALL_SEGMENT);
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin = open_origin(spool, "o");
    struct spool_block_ref refs[4];
    MDB_envinfo info;

    (void)state;
    refs[0] = append_one(stream, origin, 1, 1000);
    assert_int_equal(mdb_env_info(stream->env, &info), 0);
    assert_int_equal(mdb_env_set_mapsize(stream->env, (info.me_last_pgno + 20) * 4096), 0);
    refs[1] = append_one(stream, origin, 1, 300000);
    assert_int_equal(refs[1].segment, 2);
    refs[2] = append_one(stream, origin, 1, 1000);
    assert_int_equal(refs[2].segment, 2);
    /* In a segment without blocks the map is made larger instead. */
    stream->roll_due = true;
    check_ok(segment_create(stream, 0, &the_error));
    assert_int_equal(mdb_env_info(stream->env, &info), 0);
    assert_int_equal(mdb_env_set_mapsize(stream->env, (info.me_last_pgno + 4) * 4096), 0);
    refs[3] = append_one(stream, origin, 1, 300000);
    assert_int_equal(refs[3].segment, 3);
    check_all(stream, refs, 4);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static void test_roll_by_spec(void **state)
{
    char *path = make_directory(), *destination = NULL;
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = NULL;
    const struct spool_segment_spec specs[] = {{"one", 3, "db.a"}, {"one", 3, "db.a"},
                                               {"two", 3, "db.a"}, {"two", 3, "db.b"},
                                               {"", 0, "db.b"},    {"one", 3, "db.a"}};
    const uint64_t expected[] = {1, 1, 2, 3, 4, 5};
    uint32_t origin = open_origin(spool, "o");
    void *schema = NULL;
    size_t size = 0;

    (void)state;
    for (int i = 0; i < 6; i++) {
        struct spool_block_ref ref;
        check_ok(spool_stream_open(spool, "s", &stream, &the_error));
        check_ok(spool_stream_configure(stream, &specs[i], &the_error));
        ref = append_one(stream, origin, 2, 50);
        assert_int_equal(ref.segment, expected[i]);
        assert_int_equal(ref.sequence, i + 1);
        check_ok(
            spool_segment_spec_get(stream, ref.segment, &schema, &size, &destination, &the_error));
        assert_int_equal(size, specs[i].schema_size);
        assert_memory_equal(schema, specs[i].schema, size);
        assert_string_equal(destination, specs[i].destination);
        free(schema);
        free(destination);
        spool_stream_close(stream);
    }
    /* Not configured after opening: the newest segment goes on. */
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    assert_int_equal(append_one(stream, origin, 2, 50).segment, 5);
    assert_int_equal(spool_segment_spec_get(stream, 9, &schema, &size, &destination, &the_error),
                     SPOOL_E_NOT_FOUND);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* More origins than a leaf holds, carried over rolls, with a schema of megabytes. */
static void test_carries_high(void **state)
{
    char *path = make_directory(), name[64];
    struct spool *spool = open_spool(path, SMALL_SEGMENT);
    struct spool_stream *stream = NULL;
    uint8_t *schema = calloc(1, 3 << 20);
    const struct spool_segment_spec spec = {schema, 3 << 20, "db.t"};
    struct spool_block blocks[500];
    struct spool_block_ref refs[500];
    uint32_t origins[500];
    size_t appended = 0;
    struct spool_mark mark;

    (void)state;
    assert_non_null(schema);
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    check_ok(spool_stream_configure(stream, &spec, &the_error));
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof(name), "a-topic-with-a-rather-long-name/%d", i);
        origins[i] = open_origin(spool, name);
    }
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 500; i++)
            blocks[i] = (struct spool_block){.origin = origins[i],
                                             .rows = 1,
                                             .first_offset = 1000 * round + i,
                                             .last_offset = 1000 * round + i,
                                             .frames = "x",
                                             .frames_size = 1,
                                             .mark = {i % 2 == 0, round, (uint64_t)i}};
        check_ok(spool_stream_append(stream, blocks, 500, refs, &appended, &the_error));
    }
    assert_true(refs[499].segment > 2);
    check_verified(spool);
    spool_close(spool);
    spool = open_spool(path, SMALL_SEGMENT);
    stream = open_stream(spool, "s");
    append_one(stream, origins[0], 1, 10);
    spool_stream_mark(stream, origins[0], &mark);
    assert_false(mark.known); /* it was of the record before */
    for (int i = 1; i < 500; i++) {
        int64_t high = 0;
        check_ok(spool_stream_high(stream, origins[i], &high));
        assert_int_equal(high, 2000 + i);
        /* Without a mark the record has the 8 bytes it had before there were any. */
        spool_stream_mark(stream, origins[i], &mark);
        assert_int_equal(mark.known, i % 2 == 0);
        assert_true(!mark.known || (mark.timestamp_ms == 2 && mark.hash == (uint64_t)i));
    }
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(schema);
    free(path);
}

static struct spool_block marked_block(uint32_t origin, int64_t first, int64_t last)
{
    return (struct spool_block){.origin = origin,
                                .rows = 1,
                                .first_offset = first,
                                .last_offset = last,
                                .offsets = NULL,
                                .frames = "x",
                                .frames_size = 1,
                                .mark = {true, last * 3, (uint64_t)last * 7}};
}

/* The latest mark at or below offset; -1: none. */
static int64_t trace_below(const struct spool_trace *traces, size_t count, int64_t offset)
{
    for (size_t i = 0; i < count; i++)
        if (traces[i].offset <= offset)
            return traces[i].offset;
    return -1;
}

/* Each of the earlier marks is of a block's end, and however much of the log's end is cut, one of them
   is not much further back than that. */
static void check_traces(struct spool_stream *stream, uint32_t origin, const int64_t *ends,
                         size_t count)
{
    struct spool_trace traces[SPOOL_TRACES];
    size_t n = spool_stream_traces(stream, origin, traces), at = count;
    int64_t high = ends[count - 1];

    assert_true(n > 0 && traces[0].offset == high);
    for (size_t i = 0; i < n; i++) {
        while (at > 0 && ends[at - 1] > traces[i].offset)
            at--;
        assert_true(at > 0 && ends[at - 1] == traces[i].offset);
        assert_true(traces[i].mark.known && traces[i].mark.timestamp_ms == traces[i].offset * 3 &&
                    traces[i].mark.hash == (uint64_t)traces[i].offset * 7);
        at--;
    }
    for (size_t back = 0; back < count && back < 1000; back++) {
        int64_t cut = ends[count - 1 - back];
        assert_true(high - trace_below(traces, n, cut) <= 4 * (high - cut) + 40);
    }
}

static void test_earlier_marks(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, SMALL_SEGMENT);
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin = open_origin(spool, "o/0");
    struct spool_trace traces[SPOOL_TRACES];
    static int64_t ends[6000];
    uint64_t seed = 11;
    size_t count = 0;

    (void)state;
    assert_int_equal(spool_stream_traces(stream, origin, traces), 0);
    while (count < 5000) {
        struct spool_block blocks[9];
        struct spool_block_ref refs[9];
        size_t n = next_random(&seed) % 9 + 1, appended = 0;
        for (size_t i = 0; i < n; i++) {
            int64_t first = count ? ends[count - 1] + 1 : 0;
            ends[count++] = first + (int64_t)(next_random(&seed) % 10);
            blocks[i] = marked_block(origin, first, ends[count - 1]);
            blocks[i].offsets = &ends[count - 1]; /* the row is the last of its range */
        }
        check_ok(spool_stream_append(stream, blocks, n, refs, &appended, &the_error));
        if (count % 7 == 0)
            check_traces(stream, origin, ends, count);
    }
    check_verified(spool);
    spool_close(spool);
    spool = open_spool(path, SMALL_SEGMENT);
    stream = open_stream(spool, "s");
    check_traces(stream, origin, ends, count);
    /* One without a mark breaks the row of them. */
    append_one(stream, origin, 1, 10);
    assert_int_equal(spool_stream_traces(stream, origin, traces), 0);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_roll_by_size), cmocka_unit_test(test_large_blocks),
        cmocka_unit_test(test_map_full),     cmocka_unit_test(test_roll_by_spec),
        cmocka_unit_test(test_carries_high), cmocka_unit_test(test_earlier_marks),
    };
    return cmocka_run_group_tests_name("spool_roll", tests, NULL, NULL);
}
