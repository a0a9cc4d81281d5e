/* SPDX-License-Identifier: Apache-2.0 */
/* What is read again of segments that were damaged or lost: all that is not acknowledged of them. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/log.h"
#include "pipeline_rig.h"
#include "spool/record.h"

#define ROWS 100000 /* of each block; two fill a segment */

static const struct kafka_committed nothing = {.offset = -1, .low = 0, .high = 10 * ROWS};

static struct kafka_partition *given(struct flow *f)
{
    struct kafka_partition *p = flow_partition(f, 0);

    assert_non_null(flow_assign(f, p, nothing));
    return p;
}

static void open_with(struct flow *f, int64_t blocks)
{
    struct kafka_partition *p;

    flow_segment_bytes = MIB;
    flow_open(f, make_directory());
    p = given(f);
    for (int64_t i = 0; i < blocks; i++)
        flow_read(f, p, i * ROWS, ROWS);
}

static char *segment_file(const struct flow *f, int number)
{
    static char file[512];

    snprintf(file, sizeof(file), "%s/streams/s/%012d.seg", f->path, number);
    return file;
}

static const struct block *block_of(const struct flow *f, int64_t offset)
{
    for (const struct segment *g = f->stream->segments_first; g; g = g->next)
        for (const struct block *b = g->first; b; b = b->next_in_segment)
            if (b->state != BLOCK_ACKED && b->ref.first_offset <= offset &&
                b->ref.last_offset >= offset)
                return b;
    fail_msg("no block has offset %lld", (long long)offset);
    return NULL;
}

/* Rows [row, row + rows) of a block get a seal; the others of it are acknowledged. */
static void seal(struct flow *f, const struct block *b, uint32_t row, uint32_t rows)
{
    struct stream *s = f->stream;
    const struct spool_block_ref *ref = &b->ref;
    struct spool_range range = {ref->sequence, row, rows}, rest[2];
    struct spool_seal seal = {.stream = s->id,
                              .batch = s->next_batch,
                              .segment = ref->segment,
                              .ranges = &range,
                              .range_count = 1,
                              .token = "token",
                              .attributes = "4\n1\nhttp://127.0.0.1:1\n\n\na=1\n",
                              .sealed_ms = 1,
                              .rows = rows};
    struct spool_change changes[2] = {
        {.kind = SPOOL_CHANGE_SEAL, .stream = s->id, .batch = seal.batch, .seal = &seal},
        {.kind = SPOOL_CHANGE_DISCARD, .stream = s->id, .segment = ref->segment, .ranges = rest}};

    seal.attributes_size = strlen(seal.attributes);
    if (row)
        rest[changes[1].range_count++] = (struct spool_range){ref->sequence, 0, row};
    if (row + rows < ref->rows)
        rest[changes[1].range_count++] =
            (struct spool_range){ref->sequence, row + rows, ref->rows - row - rows};
    check_ok(spool_commit(f->spool, changes, changes[1].range_count ? 2 : 1, &the_error));
}

/* Its entry fails its checksum, in every state of the page that holds it; all else is whole. */
static void lose_index_entry(const char *file, const struct spool_block_ref *ref)
{
    struct stat st;
    uint8_t *bytes, sequence[8], first[8];
    int fd = open(file, O_RDWR), found = 0;

    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    bytes = malloc((size_t)st.st_size);
    assert_non_null(bytes);
    assert_int_equal(pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
    put_be64(sequence, ref->sequence);
    put_le64(first, (uint64_t)ref->first_offset);
    for (off_t at = 0; at + 32 <= st.st_size; at++) {
        uint8_t flipped;
        if (memcmp(bytes + at, sequence, 8) != 0 || memcmp(bytes + at + 16, first, 8) != 0)
            continue;
        flipped = bytes[at + 8] ^ 0xff;
        assert_int_equal(pwrite(fd, &flipped, 1, at + 8), 1);
        found++;
    }
    assert_true(found > 0);
    free(bytes);
    close(fd);
}

/* ... while it is not running. */
static void lose_index_entry_of(struct flow *f, int number, const struct spool_block_ref *ref)
{
    flow_close(f);
    lose_index_entry(segment_file(f, number), ref);
    flow_open(f, f->path);
}

/* Rows of it wait in a seal, and others are acknowledged: so it is not done with. */
static void test_a_lost_block_that_was_stored_in_part(void **state)
{
    struct spool_block_ref ref;
    const struct hole *h;
    struct flow f;

    (void)state;
    open_with(&f, 6);
    ref = block_of(&f, 2 * ROWS)->ref;
    assert_int_equal(ref.segment, 2);
    assert_int_equal(f.stream->segments_last->number, 3);
    seal(&f, block_of(&f, 2 * ROWS), 10, 40);
    lose_index_entry_of(&f, 2, &ref);
    assert_true(segments_all_loaded(f.stream));
    assert_null(f.stream->batches);
    h = f.stream->origins->holes;
    assert_non_null(h);
    assert_int_equal(h->first, 2 * ROWS);
    assert_int_equal(h->last, 3 * ROWS - 1);
    assert_true(h->suspect);
    flow_remove(&f);
}

/* --- refills -------------------------------------------------------------------------------- */

/* The block that begins there turns out to be damaged, and is read again: a refill in a new segment. */
static void refill(struct flow *f, int64_t first)
{
    const bool damaged = true;
    struct kafka_partition *p;

    seal(f, block_of(f, first), 0, ROWS);
    flow_reopen(f);
    f->stream_options.flush_rows = 10 * ROWS; /* all is in memory */
    assert_int_equal(batch_set_aside(f->stream->batches, &damaged, NULL, 0, false), SPOOL_OK);
    flow_run(f);
    p = given(f);
    flow_read(f, p, first, ROWS);
    assert_true(block_of(f, first)->ref.flags & SPOOL_BLOCK_REFILL);
}

static const struct hole *lost_segment(struct flow *f, int number)
{
    flow_close(f);
    assert_int_equal(unlink(segment_file(f, number)), 0);
    flow_open(f, f->path);
    assert_true(segments_all_loaded(f->stream));
    assert_non_null(f->stream->origins->holes);
    return f->stream->origins->holes;
}

/* What refills had taken the place of is a hole again where these are lost. */
static void test_lost_refills(void **state)
{
    const struct hole *h;
    struct flow f;

    (void)state;
    open_with(&f, 2);
    refill(&f, 0);
    assert_int_equal(block_of(&f, 0)->ref.segment, 2);
    h = lost_segment(&f, 2);
    for (int turn = 0; turn < 2; turn++) {
        assert_int_equal(h->first, 0);
        assert_int_equal(h->stored, 0);
        assert_int_equal(h->last, ROWS - 1);
        assert_true(h->suspect);
        assert_null(h->next);
        flow_reopen(&f);
        h = f.stream->origins->holes;
        assert_non_null(h);
    }
    flow_read(&f, given(&f), 0, ROWS);
    assert_int_equal(f.stream->origins->holes->stored, ROWS);
    assert_true(block_of(&f, 0)->suspect);
    flow_remove(&f);
}

/* Refills of an earlier hole say nothing of a later one, which reaches beyond it. */
static void test_refills_of_an_earlier_hole(void **state)
{
    struct spool_change change = {.kind = SPOOL_CHANGE_DISCARD, .range_count = 1};
    const struct spool_block_ref *ref;
    struct spool_range range;
    const struct hole *h;
    struct flow f;

    (void)state;
    open_with(&f, 4);
    refill(&f, 3 * ROWS);
    ref = &block_of(&f, 3 * ROWS)->ref;
    assert_int_equal(ref->segment, 3);
    range = (struct spool_range){ref->sequence, 0, ROWS};
    change.stream = f.stream->id;
    change.segment = ref->segment;
    change.ranges = &range;
    check_ok(spool_commit(f.spool, &change, 1, &the_error));
    flow_reopen(&f);
    assert_null(f.stream->origins->holes); /* the earlier one is closed */
    h = lost_segment(&f, 2);
    for (int turn = 0; turn < 2; turn++) {
        assert_int_equal(h->first, 2 * ROWS);
        assert_int_equal(h->stored, 2 * ROWS);
        assert_int_equal(h->last, 4 * ROWS - 1);
        flow_reopen(&f);
        h = f.stream->origins->holes;
        assert_non_null(h);
    }
    flow_remove(&f);
}

/* A hole within one that is read again in part, since a refill was damaged too: what is given back of it
   says nothing of the other. */
static void test_a_run_that_is_given_back(void **state)
{
    const bool damaged = true;
    const struct hole *within, *h;
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    open_with(&f, 2);
    for (int turn = 0; turn < 2; turn++) {
        const struct block *b = block_of(&f, 0);
        assert_int_equal(b->ref.rows, turn ? ROWS / 2 : ROWS);
        seal(&f, b, 0, b->ref.rows);
        flow_reopen(&f);
        f.stream_options.flush_rows = 10 * ROWS;
        assert_int_equal(batch_set_aside(f.stream->batches, &damaged, NULL, 0, false), SPOOL_OK);
        flow_run(&f);
        p = given(&f);
        if (!turn)
            flow_read(&f, p, 0, ROWS / 2);
    }
    within = f.stream->origins->holes;
    h = within->next;
    assert_non_null(h);
    assert_int_equal(within->last, ROWS / 2 - 1);
    assert_int_equal(h->stored, ROWS / 2);
    f.pipeline->decode_max = 0;
    flow_take(&f, p, 0, ROWS / 4, false);
    assert_int_equal(within->asked, ROWS / 4);
    intake_release_runs(f.stream, true);
    assert_int_equal(within->asked, 0);
    assert_int_equal(h->asked, ROWS / 2); /* below it all is in the spool, or another's */
    f.pipeline->decode_max = 1;
    flow_read(&f, p, 0, ROWS / 2);
    flow_read(&f, p, ROWS / 2, ROWS / 2);
    assert_int_equal(stream_spooled_rows(f.stream), 2 * ROWS);
    flow_remove(&f);
}

/* The broker has none of it any more. Nothing else need be acknowledged for the group to be told of what lies
   behind: else the next owner of the partition would begin before it. */
static void test_a_hole_that_is_a_gap(void **state)
{
    const bool damaged = true;
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    open_with(&f, 1);
    seal(&f, block_of(&f, 0), 0, ROWS);
    flow_reopen(&f);
    assert_int_equal(batch_set_aside(f.stream->batches, &damaged, NULL, 0, false), SPOOL_OK);
    flow_run(&f);
    p = given(&f);
    o = p->user;
    assert_non_null(o->holes);
    assert_int_equal(o->committed, 0);
    f.source->callbacks.gap(f.source->arg, p, 0, ROWS);
    flow_run(&f);
    assert_null(o->holes);
    assert_int_equal(o->committed, ROWS);
    flow_remove(&f);
}

static bool said_to_be_damaged, said_to_be_unknown;

static void look_for_gap(void *arg, const char *line, size_t n)
{
    (void)arg;
    said_to_be_damaged |= memmem(line, n, "these rows were damaged", 23) != NULL;
    said_to_be_unknown |= memmem(line, n, "perhaps had none", 16) != NULL;
}

/* The log began behind offset 0 when it was first read, and the block that tells where is lost: below that there
   was nothing to lose. */
static void test_a_gap_below_the_start_of_the_log(void **state)
{
    const struct kafka_committed none = {.offset = -1, .low = 5 * ROWS, .high = 10 * ROWS};

    (void)state;
    for (int block = 5; block <= 7; block += 2) {
        struct spool_block_ref ref;
        struct kafka_partition *p;
        struct flow f;
        char *path;

        flow_segment_bytes = MIB;
        flow_open(&f, make_directory());
        p = flow_partition(&f, 0);
        assert_non_null(flow_assign(&f, p, none));
        for (int64_t i = 5; i < 10; i++)
            flow_read(&f, p, i * ROWS, ROWS);
        flow_reopen(&f);
        ref = block_of(&f, block * ROWS)->ref;
        path = f.path;
        flow_close(&f);
        f.path = path;
        lose_index_entry(segment_file(&f, block == 5 ? 1 : 2), &ref);
        flow_open(&f, path);
        p = flow_partition(&f, 0);
        assert_non_null(flow_assign(&f, p, none));
        assert_int_equal(p->start, block == 5 ? 0 : block * ROWS);
        said_to_be_damaged = said_to_be_unknown = false;
        log_set_writer(look_for_gap, NULL);
        f.source->callbacks.gap(f.source->arg, p, p->start, block == 5 ? 5 * ROWS : 8 * ROWS);
        log_set_writer(NULL, NULL);
        assert_int_equal(said_to_be_damaged, block != 5);
        assert_int_equal(said_to_be_unknown, block == 5);
        flow_remove(&f);
    }
}

/* --- while it runs -------------------------------------------------------------------------- */

/* It turns out when the acknowledgements come: there is nothing more to be had of it, and it goes. */
static void test_damage_of_what_is_delivered(void **state)
{
    struct spool_block_ref ref;
    struct flow f;

    (void)state;
    open_with(&f, 4);
    ref = block_of(&f, 0)->ref;
    lose_index_entry(segment_file(&f, 1), &ref);
    origin_pass(f.stream->origins, 2 * ROWS - 1);
    flow_run(&f);
    assert_int_equal(f.stream->segments_first->number, 2);
    assert_int_equal(access(segment_file(&f, 1), F_OK), -1);
    assert_int_equal(stream_spooled_rows(f.stream), 2 * ROWS);
    flow_remove(&f);
}

static ino_t bad_file, bad_file_too; /* 0: none is */

ssize_t pread(int fd, void *data, size_t size, off_t at)
{
    struct stat st;

    if (bad_file && at + (off_t)size > 2 * 4096 && !fstat(fd, &st) &&
        (st.st_ino == bad_file || st.st_ino == bad_file_too)) {
        errno = EIO;
        return -1;
    }
    return syscall(SYS_pread64, fd, data, size, at);
}

/* Bad sectors under a backlog are damage before the next start, too: what lies behind does not wait. */
static void test_a_disk_that_fails_under_a_backlog(void **state)
{
    struct kafka_partition *p;
    const struct hole *h;
    struct stat st;
    struct flow f;

    (void)state;
    flow_segment_bytes = MIB;
    flow_open(&f, make_directory());
    f.stream_options.flush_rows = ROWS / 2;
    p = given(&f);
    for (int64_t i = 0; i < 8; i++)
        flow_read(&f, p, i * ROWS, ROWS);
    assert_false(segment_find(f.stream, 3)->loaded);
    assert_int_equal(stat(segment_file(&f, 3), &st), 0);
    bad_file = st.st_ino;
    origin_discard(f.stream->origins, 4 * ROWS - 1);
    flow_run(&f);
    bad_file = 0;
    assert_null(segment_find(f.stream, 3)); /* nothing was found of it */
    assert_true(segments_all_loaded(f.stream));
    h = f.stream->origins->holes;
    assert_non_null(h);
    assert_int_equal(h->first, 4 * ROWS);
    assert_int_equal(h->last, 6 * ROWS - 1);
    flow_remove(&f);
}

static ino_t inode_of(const char *file)
{
    struct stat st;

    assert_int_equal(stat(file, &st), 0);
    return st.st_ino;
}

/* Blocks of which only those of the first segment are in memory. */
static void open_backlog(struct flow *f, int64_t blocks)
{
    struct kafka_partition *p;

    flow_segment_bytes = MIB;
    flow_open(f, make_directory());
    f->stream_options.flush_rows = ROWS / 2;
    p = given(f);
    for (int64_t i = 0; i < blocks; i++)
        flow_read(f, p, i * ROWS, ROWS);
    assert_true(segment_find(f->stream, 1)->loaded);
    assert_false(segment_find(f->stream, 2)->loaded);
}

/* How many holes stand for the block that begins there; each for all of it, or for none. */
static int holes_over(const struct flow *f, int64_t first)
{
    int count = 0;

    for (const struct hole *h = f->stream->origins->holes; h; h = h->next) {
        bool whole = h->first <= first && h->last >= first + ROWS - 1;
        assert_true(whole || h->first > first + ROWS - 1 || h->last < first);
        count += whole;
    }
    return count;
}

static void assert_holes(const struct flow *f, int64_t first_block, int64_t last_block, int64_t of)
{
    for (int64_t i = 0; i < of; i++)
        assert_int_equal(holes_over(f, i * ROWS), i >= first_block && i <= last_block);
}

/* Of the first segment one block is read again, of the second both, also after a restart. */
static void check_holes_stay(struct flow *f)
{
    for (int turn = 0; turn < 2; turn++) {
        assert_int_equal(holes_over(f, 0), 1);
        assert_int_equal(holes_over(f, ROWS), 0);
        assert_int_equal(holes_over(f, 2 * ROWS), 1);
        assert_int_equal(holes_over(f, 3 * ROWS), 1);
        assert_int_equal(holes_over(f, 4 * ROWS), 0);
        flow_reopen(f);
    }
}

/* So is what can't be read any more in the segment behind it, which is looked at for the first. */
static void test_a_disk_that_fails_under_two_segments(void **state)
{
    struct flow f;

    (void)state;
    open_backlog(&f, 10);
    bad_file = inode_of(segment_file(&f, 3));
    bad_file_too = inode_of(segment_file(&f, 4));
    origin_discard(f.stream->origins, 4 * ROWS - 1);
    flow_run(&f);
    bad_file = bad_file_too = 0;
    assert_null(f.stream->holds[HOLD_SEGMENT]);
    assert_true(segments_all_loaded(f.stream));
    assert_holes(&f, 4, 7, 10);
    flow_remove(&f);
}

/* The one before it was whole when it was loaded, and so does not answer for it. */
static void test_damage_behind_what_was_loaded_whole(void **state)
{
    struct spool_block_ref ref;
    struct flow f;

    (void)state;
    open_backlog(&f, 8);
    ref = block_of(&f, 0)->ref;
    lose_index_entry(segment_file(&f, 1), &ref);
    origin_discard(f.stream->origins, ROWS - 1);
    f.stream->load_retry_at_ms = UINT64_MAX;
    flow_run(&f);
    flow_read(&f, f.stream->origins->partition, 8 * ROWS, ROWS);
    assert_int_equal(spool_segment_blocks(f.stream->spool, 1, &(struct spool_block_ref *){0},
                                          &(size_t){0}, NULL),
                     SPOOL_E_CORRUPT);
    assert_int_equal(unlink(segment_file(&f, 2)), 0);
    f.stream->load_retry_at_ms = 0;
    flow_run(&f);
    assert_true(segment_find(f.stream, 3) && segment_find(f.stream, 1));
    assert_int_equal(holes_over(&f, ROWS), 0); /* it waits in memory */
    assert_int_equal(holes_over(&f, 2 * ROWS), 1);
    assert_int_equal(holes_over(&f, 3 * ROWS), 1);
    assert_int_equal(holes_over(&f, 4 * ROWS), 0);
    flow_remove(&f);
}

/* What was damaged first is dealt with, and does not answer for what is damaged since. */
static void test_damage_that_spreads(void **state)
{
    struct spool_block_ref ref;
    struct flow f;

    (void)state;
    open_with(&f, 6);
    ref = block_of(&f, 0)->ref;
    lose_index_entry_of(&f, 1, &ref);
    assert_holes(&f, 0, 0, 6);
    (void)lost_segment(&f, 2);
    check_holes_stay(&f);
    flow_remove(&f);
}

/* Each once: the first of a row answers for all, also where it is gone when the next is loaded. */
static void test_a_row_of_damaged_segments(void **state)
{
    struct flow f;

    (void)state;
    open_with(&f, 8);
    assert_int_equal(unlink(segment_file(&f, 1)), 0);
    (void)lost_segment(&f, 2);
    assert_null(segment_find(f.stream, 1));
    assert_holes(&f, 0, 3, 8);
    (void)lost_segment(&f, 3);
    assert_holes(&f, 0, 5, 8);
    flow_remove(&f);
}

static bool any_block(const struct block *b, void *arg)
{
    (void)arg;
    return b != NULL;
}

/* The spool is opened, and of its segments only the first is loaded. */
static void open_and_load_one(struct flow *f, char *path)
{
    check_ok(flow_create(f, path));
    f->stream = &f->pipeline->streams[0];
    f->stream->flush_before_ms = UINT64_MAX;
    f->source = f->pipeline->kafka;
    f->source->stopped = true;
    segment_load(f->stream, f->stream->segments_first);
    f->stream->load_retry_at_ms = UINT64_MAX;
    flow_run(f);
    assert_false(f->stream->segments_first->next->loaded);
}

/* The first of them is delivered and gone before the second is loaded. */
static void test_a_row_that_is_loaded_one_by_one(void **state)
{
    struct spool_block_ref ref;
    struct flow f;

    (void)state;
    open_with(&f, 6);
    ref = block_of(&f, 0)->ref;
    flow_close(&f);
    lose_index_entry(segment_file(&f, 1), &ref);
    assert_int_equal(unlink(segment_file(&f, 2)), 0);
    open_and_load_one(&f, f.path);
    assert_holes(&f, 0, 0, 1);
    segment_discard(f.stream, f.stream->segments_first, any_block, NULL);
    flow_run(&f);
    assert_int_equal(f.stream->segments_first->number, 2);
    f.stream->load_retry_at_ms = 0;
    flow_run(&f);
    assert_true(segments_all_loaded(f.stream));
    check_holes_stay(&f);
    flow_remove(&f);
}

/* The process ends before the refill is noted, and its segment is damaged elsewhere: it is found there. */
static void test_a_refill_in_a_damaged_segment(void **state)
{
    struct spool_change change = {.kind = SPOOL_CHANGE_PUT};
    struct spool_block_ref other;
    const struct hole *h;
    char key[160], value[96];
    struct flow f;

    (void)state;
    open_with(&f, 2);
    refill(&f, 0);
    flow_read(&f, f.stream->origins->partition, 2 * ROWS, ROWS);
    other = block_of(&f, 2 * ROWS)->ref;
    h = f.stream->origins->holes;
    snprintf(key, sizeof(key), "hole/%u/%u/%llu/%llu/%lld", f.stream->id, f.stream->origins->id,
             (unsigned long long)h->segment, (unsigned long long)h->sequence,
             (long long)h->noted_first);
    change.value_size =
        (size_t)snprintf(value, sizeof(value), "%lld %lld %d %llu", (long long)h->last,
                         (long long)h->first, 0, (unsigned long long)h->after);
    change.key = key;
    change.value = value;
    assert_int_equal(block_of(&f, 0)->ref.segment, other.segment);
    check_ok(spool_commit(f.spool, &change, 1, &the_error));
    lose_index_entry_of(&f, (int)other.segment, &other);
    assert_true(block_of(&f, 0)->ref.flags & SPOOL_BLOCK_REFILL);
    for (h = f.stream->origins->holes; h; h = h->next)
        assert_false(h->first == 0 && h->stored == 0);
    flow_remove(&f);
}

/* Letters of what it held may be rows by then. */
static void test_a_lost_segment_after_a_replay(void **state)
{
    (void)state;
    for (int replayed = 0; replayed < 2; replayed++) {
        struct flow f;

        open_with(&f, 6);
        if (replayed)
            (void)open_origin(f.spool, "replay/s");
        assert_int_equal(lost_segment(&f, 2)->suspect, replayed);
        flow_remove(&f);
    }
}

/* The disk gives a segment again for which holes stand: its rows do not come twice. */
static void test_a_segment_that_is_whole_again(void **state)
{
    struct spool_block_ref ref;
    struct flow f;

    (void)state;
    open_with(&f, 6);
    ref = block_of(&f, 2 * ROWS)->ref;
    for (int turn = 0; turn < 2; turn++) { /* the second time it is as it was */
        lose_index_entry_of(&f, 2, &ref);
        assert_holes(&f, 2, 2, 6);
    }
    assert_false(segment_find(f.stream, 2)->damaged);
    assert_true(block_of(&f, 3 * ROWS)->suspect);
    assert_int_equal(stream_spooled_rows(f.stream), 5 * ROWS);
    flow_remove(&f);
}

/* The group was not told yet that all of the segment before it is acknowledged. */
static void test_damage_behind_what_is_delivered_and_gone(void **state)
{
    struct spool_block_ref ref;
    struct flow f;

    (void)state;
    open_with(&f, 6);
    ref = block_of(&f, 2 * ROWS)->ref;
    segment_discard(f.stream, f.stream->segments_first, any_block, NULL);
    flow_run(&f);
    assert_int_equal(f.stream->segments_first->number, 2);
    lose_index_entry_of(&f, 2, &ref);
    (void)given(&f);
    assert_holes(&f, 0, 2, 6);
    assert_true(f.stream->origins->holes->suspect);
    flow_remove(&f);
}

/* What was found of it the first time, and waits, is not found the next time. */
static void test_damage_that_grows(void **state)
{
    struct spool_block_ref refs[2];
    struct flow f;

    (void)state;
    open_with(&f, 6);
    refs[0] = block_of(&f, 2 * ROWS)->ref;
    refs[1] = block_of(&f, 3 * ROWS)->ref;
    for (int turn = 0; turn < 2; turn++) {
        lose_index_entry_of(&f, 2, &refs[turn]);
        assert_holes(&f, 2, 2 + turn, 6);
    }
    flow_remove(&f);
}

/* ... a block of which some rows are acknowledged, and the others wait in a seal. */
static void test_damage_that_grows_by_a_block_stored_in_part(void **state)
{
    struct spool_block_ref refs[2];
    struct flow f;

    (void)state;
    open_with(&f, 6);
    refs[0] = block_of(&f, 2 * ROWS)->ref;
    refs[1] = block_of(&f, 3 * ROWS)->ref;
    lose_index_entry_of(&f, 2, &refs[0]);
    seal(&f, block_of(&f, 3 * ROWS), 10, 40);
    flow_reopen(&f);
    assert_int_equal(f.stream->batches->part_count, 1);
    assert_holes(&f, 2, 2, 6);
    lose_index_entry_of(&f, 2, &refs[1]);
    assert_null(f.stream->batches);
    assert_holes(&f, 2, 3, 6);
    flow_remove(&f);
}

/* ... in a segment that another one answered for, and that was not loaded since. */
static void test_damage_that_grows_before_it_is_loaded(void **state)
{
    struct spool_block_ref refs[3];
    struct flow f;

    (void)state;
    open_with(&f, 6);
    refs[0] = block_of(&f, 0)->ref;
    refs[1] = block_of(&f, 2 * ROWS)->ref;
    refs[2] = block_of(&f, 3 * ROWS)->ref;
    flow_close(&f);
    lose_index_entry(segment_file(&f, 1), &refs[0]);
    lose_index_entry(segment_file(&f, 2), &refs[1]);
    open_and_load_one(&f, f.path);
    assert_int_equal(holes_over(&f, 2 * ROWS), 1);
    assert_int_equal(holes_over(&f, 3 * ROWS), 0);
    lose_index_entry_of(&f, 2, &refs[2]);
    check_holes_stay(&f);
    flow_remove(&f);
}

/* It is damaged elsewhere by then: what holes stand for is not sent from there. */
static void test_damage_that_moves(void **state)
{
    struct spool_block_ref refs[2];
    struct flow f;

    (void)state;
    open_with(&f, 6);
    refs[0] = block_of(&f, 2 * ROWS)->ref;
    refs[1] = block_of(&f, 3 * ROWS)->ref;
    lose_index_entry_of(&f, 2, &refs[0]);
    flow_close(&f);
    lose_index_entry(segment_file(&f, 2), &refs[0]); /* is as it was */
    lose_index_entry(segment_file(&f, 2), &refs[1]);
    flow_open(&f, f.path);
    for (int turn = 0; turn < 2; turn++) {
        assert_holes(&f, 2, 3, 6);
        assert_int_equal(stream_spooled_rows(f.stream), 4 * ROWS);
        flow_reopen(&f);
    }
    flow_remove(&f);
}

/* Nobody else has what they may have held: the files stay, all of the row, also behind the next start. */
static void test_damage_of_a_log_that_is_over(void **state)
{
    struct spool_block_ref refs[2];
    struct flow f;

    (void)state;
    open_with(&f, 6);
    refs[0] = block_of(&f, 0)->ref;
    refs[1] = block_of(&f, 2 * ROWS)->ref;
    flow_reopen(&f);
    assert_int_equal(
        flow_assign(&f, flow_partition(&f, 0), (struct kafka_committed){.offset = -1, .high = 5})
            ->epoch,
        2);
    flow_close(&f);
    lose_index_entry(segment_file(&f, 1), &refs[0]);
    lose_index_entry(segment_file(&f, 2), &refs[1]);
    flow_open(&f, f.path);
    for (int turn = 0; turn < 2; turn++) {
        for (struct segment *g = f.stream->segments_first; g; g = g->next)
            segment_discard(f.stream, g, any_block, NULL);
        flow_run(&f);
        for (int number = 1; number <= 2; number++) {
            assert_non_null(segment_find(f.stream, (uint64_t)number));
            assert_int_equal(access(segment_file(&f, number), F_OK), 0);
        }
        flow_reopen(&f);
    }
    flow_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_lost_block_that_was_stored_in_part),
        cmocka_unit_test(test_lost_refills),
        cmocka_unit_test(test_refills_of_an_earlier_hole),
        cmocka_unit_test(test_a_run_that_is_given_back),
        cmocka_unit_test(test_a_hole_that_is_a_gap),
        cmocka_unit_test(test_a_gap_below_the_start_of_the_log),
        cmocka_unit_test(test_damage_of_what_is_delivered),
        cmocka_unit_test(test_a_disk_that_fails_under_a_backlog),
        cmocka_unit_test(test_a_disk_that_fails_under_two_segments),
        cmocka_unit_test(test_damage_behind_what_was_loaded_whole),
        cmocka_unit_test(test_damage_that_spreads),
        cmocka_unit_test(test_a_row_of_damaged_segments),
        cmocka_unit_test(test_a_row_that_is_loaded_one_by_one),
        cmocka_unit_test(test_a_refill_in_a_damaged_segment),
        cmocka_unit_test(test_a_lost_segment_after_a_replay),
        cmocka_unit_test(test_a_segment_that_is_whole_again),
        cmocka_unit_test(test_damage_behind_what_is_delivered_and_gone),
        cmocka_unit_test(test_damage_that_grows),
        cmocka_unit_test(test_damage_that_grows_by_a_block_stored_in_part),
        cmocka_unit_test(test_damage_that_grows_before_it_is_loaded),
        cmocka_unit_test(test_damage_that_moves),
        cmocka_unit_test(test_damage_of_a_log_that_is_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
