/* SPDX-License-Identifier: Apache-2.0 */
/* Seals and acknowledgements, against a simple model: one flag per row. */
#include "spool/spool_int.h"
#include "spool_data.h"

#define BLOCKS 700
#define ROWS   6

/* Of each row, or of the block where it has none: waiting, or the batch it is sealed in, or acked. */
#define WAITING 0
#define ACKED   UINT64_MAX

struct model {
    uint32_t rows[BLOCKS];
    uint64_t state[BLOCKS][ROWS];
    uint64_t next_batch;
};

static uint32_t units(const struct model *m, size_t block)
{
    return m->rows[block] ? m->rows[block] : 1;
}

/* Seals what a random choice of waiting rows gives, as ranges; returns how many. */
static size_t choose(struct model *m, uint64_t *seed, struct spool_range *ranges, uint64_t mark,
                     uint64_t *rows)
{
    size_t from = next_random(seed) % BLOCKS, n = 0;
    size_t blocks = next_random(seed) % 40 + 1;
    bool whole = next_random(seed) % 2;

    *rows = 0;
    for (size_t b = from; b < BLOCKS && b < from + blocks; b++) {
        for (uint32_t r = 0; r < units(m, b); r++) {
            struct spool_range *last = n ? &ranges[n - 1] : NULL;
            if (m->state[b][r] != WAITING || (!whole && next_random(seed) % 3 == 0))
                continue;
            m->state[b][r] = mark;
            if (!m->rows[b]) {
                ranges[n++] = (struct spool_range){b + 1, 0, 0};
                continue;
            }
            ++*rows;
            if (last && last->sequence == b + 1 && last->row + last->rows == r)
                last->rows++;
            else
                ranges[n++] = (struct spool_range){b + 1, r, 1};
        }
    }
    return n;
}

static void check_acked(struct spool *spool, struct spool_stream *stream, const struct model *m)
{
    struct spool_range *ranges = NULL;
    struct spool_segment_info *info;
    uint64_t acked_rows = 0, acked_blocks = 0;
    size_t count = 0, at = 0, segments = 0;

    check_ok(spool_acked(spool, spool_stream_id(stream), 1, &ranges, &count, &the_error));
    for (size_t b = 0; b < BLOCKS; b++) {
        uint32_t done = 0;
        for (uint32_t r = 0; r < units(m, b); r++) {
            bool begins = m->state[b][r] == ACKED && (r == 0 || m->state[b][r - 1] != ACKED);
            done += m->state[b][r] == ACKED;
            if (!begins)
                continue;
            assert_true(at < count);
            assert_int_equal(ranges[at].sequence, b + 1);
            assert_int_equal(ranges[at].row, r);
            for (uint32_t k = r; k < r + ranges[at].rows; k++)
                assert_true(k < m->rows[b] && m->state[b][k] == ACKED);
            assert_true(r + ranges[at].rows == m->rows[b] || !m->rows[b] ||
                        m->state[b][r + ranges[at].rows] != ACKED);
            at++;
        }
        acked_blocks += done == units(m, b);
        acked_rows += m->rows[b] ? done : 0;
    }
    assert_int_equal(at, count);
    free(ranges);
    info = segments_of(stream, &segments);
    assert_int_equal(segments, 1);
    assert_int_equal(info[0].acked_blocks, acked_blocks);
    assert_int_equal(info[0].acked_rows, acked_rows);
    free(info);
}

struct found {
    struct model *m;
    uint64_t batches[256];
    size_t count;
    uint64_t last;
};

static int check_seal(void *arg, const struct spool_seal *seal)
{
    struct found *f = arg;
    char token[32];
    uint64_t rows = 0;

    assert_true(seal->batch > f->last);
    f->last = seal->batch;
    snprintf(token, sizeof(token), "token-%llu", (unsigned long long)seal->batch);
    assert_string_equal(seal->token, token);
    assert_int_equal(seal->attributes_size, 8);
    assert_memory_equal(seal->attributes, &seal->batch, 8);
    assert_int_equal(seal->sealed_ms, (int64_t)seal->batch * 1000);
    for (size_t i = 0; i < seal->range_count; i++) {
        const struct spool_range *r = &seal->ranges[i];
        rows += r->rows;
        for (uint32_t k = r->row; k < r->row + (r->rows ? r->rows : 1); k++)
            assert_int_equal(f->m->state[r->sequence - 1][k], seal->batch);
    }
    assert_int_equal(rows, seal->rows);
    assert_true(f->count < 256);
    f->batches[f->count++] = seal->batch;
    return 0;
}

static void settle(struct model *m, uint64_t batch, uint64_t to)
{
    for (size_t b = 0; b < BLOCKS; b++)
        for (uint32_t r = 0; r < ROWS; r++)
            if (m->state[b][r] == batch)
                m->state[b][r] = to;
}

static void append_blocks(struct spool_stream *stream, uint32_t origin, struct model *m,
                          uint64_t *seed)
{
    struct spool_block blocks[BLOCKS];
    struct spool_block_ref refs[BLOCKS];
    int64_t offset = 0;
    size_t appended = 0;

    for (size_t i = 0; i < BLOCKS; i++) {
        m->rows[i] = next_random(seed) % 5 ? ROWS - (uint32_t)(next_random(seed) % 3) : 0;
        blocks[i] = (struct spool_block){.origin = origin,
                                         .rows = m->rows[i],
                                         .first_offset = offset,
                                         .last_offset = offset + units(m, i) - 1,
                                         .frames = "payload",
                                         .frames_size = m->rows[i] ? 7 : 0};
        offset += units(m, i);
    }
    check_ok(spool_stream_append(stream, blocks, BLOCKS, refs, &appended, &the_error));
    assert_int_equal(appended, BLOCKS);
    assert_int_equal(refs[BLOCKS - 1].sequence, BLOCKS);
}

static void test_model(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    struct model *m = calloc(1, sizeof(*m));
    struct spool_range *ranges = calloc(BLOCKS * ROWS, sizeof(*ranges));
    uint64_t seed = 20240607;

    (void)state;
    assert_non_null(m);
    assert_non_null(ranges);
    append_blocks(stream, open_origin(spool, "o"), m, &seed);
    for (int step = 0; step < 250; step++) {
        struct found f = {.m = m};
        struct spool_seal seal = {.stream = spool_stream_id(stream), .segment = 1};
        struct spool_change changes[2];
        char token[32];
        size_t n = 0;

        check_ok(spool_next_batch(spool, seal.stream, &seal.batch, &the_error));
        assert_int_equal(seal.batch, m->next_batch + 1);
        check_ok(spool_seals(spool, seal.stream, check_seal, &f, &the_error));
        snprintf(token, sizeof(token), "token-%llu", (unsigned long long)seal.batch);
        seal.token = token;
        seal.attributes = &seal.batch;
        seal.attributes_size = 8;
        seal.sealed_ms = (int64_t)seal.batch * 1000;
        seal.ranges = ranges;
        seal.range_count = choose(m, &seed, ranges, seal.batch, &seal.rows);
        if (seal.range_count && next_random(&seed) % 6 == 0) {
            settle(m, seal.batch, ACKED);
            changes[n++] = (struct spool_change){.kind = SPOOL_CHANGE_DISCARD,
                                                 .stream = seal.stream,
                                                 .segment = 1,
                                                 .ranges = ranges,
                                                 .range_count = seal.range_count};
        } else if (seal.range_count) {
            m->next_batch = seal.batch;
            changes[n++] = (struct spool_change){.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
        }
        if (f.count && next_random(&seed) % 3) {
            uint64_t batch = f.batches[next_random(&seed) % f.count];
            bool ack = next_random(&seed) % 4;
            settle(m, batch, ack ? ACKED : WAITING);
            changes[n++] =
                (struct spool_change){.kind = ack ? SPOOL_CHANGE_ACK : SPOOL_CHANGE_UNSEAL,
                                      .stream = seal.stream,
                                      .batch = batch};
        }
        check_ok(spool_commit(spool, changes, n, &the_error));
        if (step % 10 == 0)
            check_acked(spool, stream, m);
        if (step % 50 == 0) {
            check_verified(spool);
            spool_close(spool);
            spool = open_spool(path, 0);
            stream = open_stream(spool, "s");
            check_acked(spool, stream, m);
        }
    }
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(ranges);
    free(m);
    free(path);
}

static void test_seal_refuses(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    struct spool_range ranges[2] = {{1, 0, 3}, {2, 0, 3}};
    struct spool_seal seal = {.stream = spool_stream_id(stream),
                              .batch = 1,
                              .segment = 1,
                              .ranges = ranges,
                              .range_count = 2,
                              .token = "t",
                              .rows = 6};
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
    char token[300];

    (void)state;
    append_one(stream, open_origin(spool, "o"), 3, 10);
    append_one(stream, open_origin(spool, "o"), 3, 10);
#define refused(set, code)                                                                         \
    do {                                                                                           \
        const struct spool_seal kept = seal;                                                       \
        set;                                                                                       \
        assert_int_equal(spool_commit(spool, &change, 1, &the_error), code);                       \
        seal = kept;                                                                               \
    } while (0)
    refused(seal.stream = 9, SPOOL_E_NOT_FOUND);
    refused(seal.batch = 0, SPOOL_E_INVALID);
    refused(seal.range_count = 0, SPOOL_E_INVALID);
    refused(seal.token = NULL, SPOOL_E_INVALID);
    memset(token, 't', sizeof(token));
    token[256] = 0;
    refused(seal.token = token, SPOOL_E_INVALID);
    token[255] = 0;
    ranges[1] = (struct spool_range){1, 2, 1};
    refused((void)0, SPOOL_E_INVALID); /* overlap */
    ranges[1] = (struct spool_range){1, 3, UINT32_MAX};
    refused((void)0, SPOOL_E_INVALID); /* overflow */
    ranges[1] = (struct spool_range){2, 0, 3};
    seal.token = token;
    seal.batch = 7; /* gaps are fine, going back is not */
    check_ok(spool_commit(spool, &change, 1, &the_error));
    refused((void)0, SPOOL_E_INVALID);
    refused(seal.batch = 6, SPOOL_E_INVALID);
#undef refused
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* Removing a segment drops its acknowledgements with the next commit, or after a crash before. */
static void test_remove(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    struct spool_segment_spec other = {"schema", 6, "db.other"};
    uint32_t origin = open_origin(spool, "o"), id = spool_stream_id(stream);
    struct spool_range *ranges = NULL, all[2] = {{1, 0, 3}, {2, 0, 0}};
    struct spool_change change = {
        .kind = SPOOL_CHANGE_DISCARD, .stream = id, .segment = 1, .ranges = all, .range_count = 1};
    size_t count = 0;
    int64_t high = 0;

    (void)state;
    append_one(stream, origin, 3, 10);
    append_one(stream, origin, 0, 0);
    for (int crash = 0; crash < 2; crash++) {
        struct spool_segment_info *info;
        change.segment = 1 + (uint64_t)crash;
        all[0].sequence = crash ? 3 : 1;
        all[1] = (struct spool_range){crash ? 4 : 2, 0, crash ? 2 : 0};
        check_ok(spool_commit(spool, &change, 1, &the_error));
        change.range_count = 1;
        assert_int_equal(spool_segment_remove(stream, change.segment, &the_error), SPOOL_E_INVALID);
        other.destination = crash ? "db.third" : "db.other";
        check_ok(spool_stream_configure(stream, &other, &the_error));
        append_one(stream, origin, 3, 10);
        append_one(stream, origin, 2, 10);
        assert_int_equal(spool_segment_remove(stream, change.segment, &the_error), SPOOL_E_INVALID);
        change.ranges = all + 1;
        check_ok(spool_commit(spool, &change, 1, &the_error));
        change.ranges = all;
        check_ok(spool_segment_remove(stream, change.segment, &the_error));
        assert_int_equal(spool_segment_remove(stream, change.segment, &the_error),
                         SPOOL_E_NOT_FOUND);
        check_ok(spool_acked(spool, id, change.segment, &ranges, &count, &the_error));
        free(ranges);
        assert_int_equal(count, 2);
        if (crash) {
            spool_close(spool);
            spool = open_spool(path, 0);
            check_ok(spool_stream_open(spool, "s", &stream, &the_error));
        }
        check_ok(spool_commit(spool, NULL, 0, &the_error));
        check_ok(spool_acked(spool, id, change.segment, &ranges, &count, &the_error));
        free(ranges);
        assert_int_equal(count, 0);
        info = segments_of(stream, &count);
        assert_int_equal(count, 1);
        assert_int_equal(info[0].number, 2 + crash);
        assert_int_equal(info[0].acked_rows, 0);
        free(info);
    }
    check_ok(spool_stream_high(stream, origin, &high));
    assert_int_equal(high, 13);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* Merging by itself, exhaustively over small sets of ranges of one block. */
static void test_merge(void **state)
{
    uint64_t seed = 99;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        struct spool_range list[2][6], *merged = NULL;
        bool model[3][16] = {{0}}, got[3][16] = {{0}};
        size_t counts[2], n = 0;
        for (int side = 0; side < 2; side++) {
            uint32_t row = 0;
            uint64_t sequence = 1;
            counts[side] = next_random(&seed) % 6;
            for (size_t i = 0; i < counts[side]; i++) {
                struct spool_range r;
                row += (uint32_t)(next_random(&seed) % 3);
                if (row > 9 || next_random(&seed) % 4 == 0) {
                    sequence++;
                    row = 0;
                }
                if (sequence > 2) {
                    counts[side] = i;
                    break;
                }
                r = (struct spool_range){sequence, row, (uint32_t)(1 + next_random(&seed) % 4)};
                row += r.rows;
                list[side][i] = r;
                for (uint32_t k = r.row; k < r.row + r.rows; k++)
                    model[sequence][k] = true;
            }
            assert_int_equal(ranges_check(list[side], counts[side]), SPOOL_OK);
        }
        check_ok(ranges_merge(list[0], counts[0], list[1], counts[1], &merged, &n));
        assert_int_equal(ranges_check(merged, n), SPOOL_OK);
        for (size_t i = 0; i < n; i++) {
            if (i && merged[i - 1].sequence == merged[i].sequence)
                assert_true(merged[i - 1].row + merged[i - 1].rows < merged[i].row);
            for (uint32_t k = merged[i].row; k < merged[i].row + merged[i].rows; k++)
                got[merged[i].sequence][k] = true;
        }
        assert_memory_equal(model, got, sizeof(model));
        free(merged);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_model),
        cmocka_unit_test(test_seal_refuses),
        cmocka_unit_test(test_remove),
    };
    return cmocka_run_group_tests_name("spool_ack", tests, NULL, NULL);
}
