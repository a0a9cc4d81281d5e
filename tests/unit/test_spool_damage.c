/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files that were cut or changed. Whatever is done to a segment: opening the stream works, nothing
 * crashes, and a block that is read is the one that was written.
 */
#include <fcntl.h>
#include <sys/stat.h>

#include "spool/spool_int.h"
#include "spool_data.h"

#define BLOCKS 24

struct file {
    char *path;
    uint8_t *bytes;
    size_t size;
};

struct made {
    char *path;
    uint32_t origin[2];
    struct spool_block_ref refs[BLOCKS];
    struct file segment, meta, dead;
};

static struct file read_file(const char *directory, const char *name)
{
    struct file f = {0};
    struct stat st;
    FILE *in;

    assert_true(asprintf(&f.path, "%s/%s", directory, name) > 0);
    in = fopen(f.path, "r");
    assert_non_null(in);
    assert_int_equal(fstat(fileno(in), &st), 0);
    f.size = (size_t)st.st_size;
    f.bytes = malloc(f.size + 1);
    assert_non_null(f.bytes);
    assert_int_equal(fread(f.bytes, 1, f.size, in), f.size);
    fclose(in);
    return f;
}

/* Not by truncating to nothing first: some file systems flush a file that was, which is slow. */
static void write_file(const struct file *f, size_t size)
{
    int fd = open(f->path, O_WRONLY | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, f->bytes, size, 0), size);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    close(fd);
}

static void set_byte(const struct file *f, size_t at, uint8_t byte)
{
    int fd = open(f->path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

static void file_free(struct file *f)
{
    free(f->path);
    free(f->bytes);
}

static int count_letter(void *arg, const struct spool_dead *letter)
{
    (void)letter;
    ++*(size_t *)arg;
    return 0;
}

/* Several commits, so that old tree pages and free pages are in the file too. */
static struct made make(void)
{
    struct made m = {.path = make_directory()};
    struct spool *spool = open_spool(m.path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    const size_t sizes[] = {10, 2500, 700, 9000, 1};
    struct spool_range range = {1, 0, 3};
    struct spool_seal seal = {.stream = spool_stream_id(stream),
                              .batch = 1,
                              .segment = 1,
                              .ranges = &range,
                              .range_count = 1,
                              .token = "t",
                              .rows = 3};
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
    struct spool_dead letter = {.stream = "s", .origin = 1, .record = "bad", .record_size = 3};
    size_t added;

    m.origin[0] = open_origin(spool, "o/0");
    m.origin[1] = open_origin(spool, "o/1");
    for (size_t i = 0; i < BLOCKS; i++)
        m.refs[i] = append_one(stream, m.origin[i % 2], i % 7 == 5 ? 0 : 3, sizes[i % 5]);
    check_ok(spool_commit(spool, &change, 1, &the_error));
    for (int i = 0; i < 5; i++) {
        letter.offset = i;
        check_ok(spool_dead_put(spool, &letter, 1, &added, &the_error));
    }
    check_verified(spool);
    spool_close(spool);
    m.segment = read_file(m.path, "streams/s/000000000001.seg");
    m.meta = read_file(m.path, "meta.mdb");
    m.dead = read_file(m.path, "dead.mdb");
    return m;
}

static void unmake(struct made *m)
{
    remove_tree(m->path);
    file_free(&m->segment);
    file_free(&m->meta);
    file_free(&m->dead);
    free(m->path);
}

enum outcome { FLAGGED, BLOCK_REFUSED, UNHARMED };

/* Opens the stream over whatever lies there now, and reads what can be read. */
static enum outcome read_stream(struct spool *spool, const struct made *m)
{
    enum outcome outcome = UNHARMED;
    struct spool_stream *stream = NULL;
    struct spool_segment_info *info;
    struct spool_block_ref *refs = NULL;
    struct spool_reader *reader = NULL;
    size_t count = 0, n = 0;

    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    info = segments_of(stream, &count);
    assert_int_equal(count, 1);
    if (info[0].damaged) {
        assert_true(strlen(info[0].detail) > 5);
        assert_int_equal(spool_segment_blocks(stream, 1, &refs, &n, &the_error), SPOOL_E_CORRUPT);
        outcome = FLAGGED;
        goto done;
    }
    check_ok(spool_segment_blocks(stream, 1, &refs, &n, &the_error));
    assert_int_equal(n, BLOCKS); /* a block that was promised never vanishes unsaid */
    assert_memory_equal(refs, m->refs, sizeof(m->refs));
    check_ok(spool_reader_open(stream, 1, &reader, &the_error));
    for (size_t i = 0; i < n; i++) {
        void *payload = NULL;
        size_t size = 0;
        int verified = spool_reader_verify(reader, &refs[i], &the_error);
        int status = spool_reader_block(reader, &refs[i], &payload, &size, NULL, &the_error);
        assert_int_equal(verified, status);
        if (status != SPOOL_OK) {
            assert_true(status == SPOOL_E_CORRUPT || status == SPOOL_E_NEWER);
            outcome = BLOCK_REFUSED;
        } else {
            assert_int_equal(size, m->refs[i].frames_bytes);
            assert_true(is_payload(payload, size, refs[i].origin, refs[i].first_offset));
        }
        free(payload);
    }
    spool_reader_close(reader);
done:
    free(refs);
    free(info);
    spool_stream_close(stream);
    return outcome;
}

static uint64_t problems_of(struct spool *spool)
{
    uint64_t problems = 0;
    check_ok(spool_verify(spool, NULL, NULL, &problems, &the_error));
    return problems;
}

static void test_truncated_segment(void **state)
{
    struct made m = make();
    struct spool *spool = open_spool(m.path, 0);
    size_t flagged = 0;

    (void)state;
    for (size_t size = 0; size < m.segment.size; size += size % 4096 ? 4095 : 1) {
        enum outcome outcome;
        write_file(&m.segment, size);
        outcome = read_stream(spool, &m);
        if (outcome != UNHARMED)
            assert_true(problems_of(spool) > 0);
        flagged += outcome == FLAGGED;
        /* The file ends with the last commit's block or tree pages: none can be missed. */
        if (size + 8192 < m.segment.size)
            assert_int_not_equal(outcome, UNHARMED);
    }
    assert_true(flagged > m.segment.size / 4096);
    write_file(&m.segment, m.segment.size);
    assert_int_equal(read_stream(spool, &m), UNHARMED);
    spool_close(spool);
    unmake(&m);
}

/* Cut while a reader has it open. */
static void test_truncated_under_reader(void **state)
{
    struct made m = make();
    struct spool *spool = open_spool(m.path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    struct spool_reader *reader = NULL;
    struct spool_block_ref *refs = NULL;
    uint8_t byte;
    size_t n = 0;

    (void)state;
    check_ok(spool_reader_open(stream, 1, &reader, &the_error));
    assert_int_equal(truncate(m.segment.path, 8192), 0);
    for (size_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(spool_reader_verify(reader, &m.refs[i], &the_error), SPOOL_E_CORRUPT);
        assert_int_equal(spool_reader_read(reader, &m.refs[i], 0, &byte, 1, &the_error),
                         m.refs[i].rows ? SPOOL_E_CORRUPT : SPOOL_E_CORRUPT);
    }
    assert_int_equal(spool_segment_blocks(stream, 1, &refs, &n, &the_error), SPOOL_E_CORRUPT);
    /* The stream goes on in a new segment, with sequences that cannot have been used. */
    assert_true(append_one(stream, m.origin[0], 1, 10).sequence > UINT64_C(1) << 32);
    spool_reader_close(reader);
    spool_close(spool);
    unmake(&m);
}

/* How far on the next byte to flip is: the trees closely, payloads (under one checksum) rarely. */
static size_t stride(const struct made *m, size_t at)
{
    if (getenv("TEST_LONG") || at < 160 || (at >= 4096 && at < 4256))
        return 1;
    for (size_t i = 0; i < BLOCKS; i++)
        if (at / 4096 >= m->refs[i].page &&
            at < m->refs[i].page * 4096 + 16 + m->refs[i].prefix_bytes + m->refs[i].frames_bytes)
            return 211;
    return at % 4096 < 40 ? 1 : 47;
}

static void test_flipped_bytes(void **state)
{
    struct made m = make();
    struct spool *spool = open_spool(m.path, 0);
    size_t seen[3] = {0};
    uint64_t seed = 77;

    (void)state;
    for (size_t at = 0; at < m.segment.size; at += stride(&m, at)) {
        unsigned bit = 1u << (next_random(&seed) % 8),
                 any = 1 + (unsigned)(next_random(&seed) % 255);
        uint8_t flip = (uint8_t)(next_random(&seed) % 2 ? bit : any);
        enum outcome outcome;
        set_byte(&m.segment, at, (uint8_t)(m.segment.bytes[at] ^ flip));
        outcome = read_stream(spool, &m);
        seen[outcome]++;
        if (outcome != UNHARMED && at % 5 == 0)
            assert_true(problems_of(spool) > 0);
        set_byte(&m.segment, at, m.segment.bytes[at]);
    }
    print_message("flips: %zu flagged, %zu blocks refused, %zu without effect\n", seen[FLAGGED],
                  seen[BLOCK_REFUSED], seen[UNHARMED]);
    assert_true(seen[FLAGGED] > 100 && seen[BLOCK_REFUSED] > 100);
    assert_int_equal(problems_of(spool), 0);
    spool_close(spool);
    unmake(&m);
}

static uint8_t byte_of(const struct file *f, size_t at)
{
    uint8_t byte = 0;
    int fd = open(f->path, O_RDONLY);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    close(fd);
    return byte;
}

/* Whether the spool opens, over whatever lies there now, and has every letter. */
static bool opens(const struct made *m)
{
    const struct spool_options options = {.path = m->path};
    struct spool *spool = NULL;
    size_t letters = 0;
    int status = spool_open(&options, &spool, &the_error);

    if (status != SPOOL_OK) {
        assert_int_equal(status, SPOOL_E_CORRUPT);
        return false;
    }
    assert_int_equal(spool_dead_each(spool, "s", count_letter, &letters, &the_error), 0);
    assert_int_equal(letters, 5);
    check_verified(spool);
    spool_close(spool);
    return true;
}

/* Each bit of the two numbers by which LMDB tells the last commit from the one before: it is noticed, or
   the number is put right where it would make LMDB take the state before the last commit. */
static void test_flipped_transaction(void **state)
{
    struct made m = make();
    struct spool *spool = NULL;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const struct file *const files[] = {&m.meta, &m.dead, &m.segment};
    size_t mended = 0;

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        if (i == 2)
            spool = open_spool(m.path, 0);
        for (size_t bit = 0; bit < 128; bit++) {
            size_t at = (bit / 64) * page + 144 + bit % 64 / 8;
            set_byte(files[i], at, (uint8_t)(files[i]->bytes[at] ^ 1u << (bit % 8)));
            if (i == 2 ? read_stream(spool, &m) != FLAGGED : opens(&m)) {
                assert_int_equal(byte_of(files[i], at), files[i]->bytes[at]);
                mended++;
            }
            set_byte(files[i], at, files[i]->bytes[at]);
        }
    }
    print_message("%zu numbers were put right\n", mended);
    assert_true(mended <= 3);
    spool_close(spool);
    unmake(&m);
}

/* Every byte of every block's header and payload is under its checksum. */
static void test_flipped_block(void **state)
{
    struct made m = make();
    struct spool *spool = open_spool(m.path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    struct spool_reader *reader = NULL;

    (void)state;
    check_ok(spool_reader_open(stream, 1, &reader, &the_error));
    for (size_t i = 0; i < 6; i++) {
        const struct spool_block_ref *ref = &m.refs[i];
        size_t from = ref->page * 4096 + 16, bytes = ref->prefix_bytes + ref->frames_bytes;
        for (size_t at = from; at < from + bytes; at += at < from + 128 ? 1 : 13) {
            set_byte(&m.segment, at, m.segment.bytes[at] ^ 0x10);
            assert_int_not_equal(spool_reader_verify(reader, ref, &the_error), SPOOL_OK);
            set_byte(&m.segment, at, m.segment.bytes[at]);
        }
        check_ok(spool_reader_verify(reader, ref, &the_error));
    }
    spool_reader_close(reader);
    spool_close(spool);
    unmake(&m);
}

/* A reference that was made up or belongs elsewhere reads nothing. */
static void test_wrong_references(void **state)
{
    struct made m = make();
    struct spool *spool = open_spool(m.path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    struct spool_reader *reader = NULL;
    struct spool_block_ref r;
    uint64_t seed = 3;
    uint8_t data[16];

    (void)state;
    check_ok(spool_reader_open(stream, 1, &reader, &the_error));
    for (int i = 0; i < 5000; i++) {
        uint64_t junk[(sizeof(r) + 7) / 8];
        for (size_t k = 0; k < sizeof(junk) / 8; k++)
            junk[k] = next_random(&seed) >> (next_random(&seed) % 64);
        memcpy(&r, junk, sizeof(r));
        r.segment = 1;
        assert_int_not_equal(spool_reader_verify(reader, &r, &the_error), SPOOL_OK);
        (void)spool_reader_read(reader, &r, junk[0] % 64, data, sizeof(data), &the_error);
        r = m.refs[i % BLOCKS];
        r.page = m.refs[(i + 1) % BLOCKS].page;
        assert_int_equal(spool_reader_verify(reader, &r, &the_error), SPOOL_E_CORRUPT);
    }
    r = m.refs[1];
    assert_int_equal(spool_reader_read(reader, &r, r.frames_bytes - 1, data, 2, &the_error),
                     SPOOL_E_INVALID);
    r.segment = 2;
    assert_int_equal(spool_reader_verify(reader, &r, &the_error), SPOOL_E_INVALID);
    spool_reader_close(reader);
    spool_close(spool);
    unmake(&m);
}

/* A damaged newest segment: kept and named; the stream goes on behind all that was known. */
static void test_damaged_newest(void **state)
{
    struct made m = make();
    struct spool *spool = open_spool(m.path, 0);
    struct spool_stream *stream = NULL;
    const struct spool_segment_spec spec = {"schema", 6, "db.table"};
    struct spool_segment_info *info;
    struct spool_block_ref ref;
    int64_t high = 0, before[2];
    size_t count = 0;

    (void)state;
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    for (int i = 0; i < 2; i++)
        check_ok(spool_stream_high(stream, m.origin[i], &before[i]));
    spool_close(spool);
    /* The kind of the first record of info: everything else can still be salvaged. */
    for (size_t at = 8192; at + 7 < m.segment.size; at++)
        if (!memcmp(m.segment.bytes + at, "versiondb", 7))
            set_byte(&m.segment, at, 'V');
    spool = open_spool(m.path, 0);
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    info = segments_of(stream, &count);
    assert_int_equal(count, 1);
    assert_true(info[0].damaged && info[0].newest);
    free(info);
    for (int i = 0; i < 2; i++) {
        check_ok(spool_stream_high(stream, m.origin[i], &high));
        assert_int_equal(high, before[i]);
    }
    check_ok(spool_stream_configure(stream, &spec, &the_error));
    ref = append_one(stream, m.origin[0], 3, 100);
    assert_int_equal(ref.segment, 2);
    assert_true(ref.sequence >= BLOCKS + (UINT64_C(1) << 32));
    assert_int_equal(spool_segment_remove(stream, 1, &the_error), SPOOL_E_INVALID);
    spool_close(spool);
    spool = open_spool(m.path, 0);
    stream = open_stream(spool, "s");
    assert_int_equal(append_one(stream, m.origin[0], 3, 100).sequence, ref.sequence + 1);
    assert_true(problems_of(spool) > 0);
    spool_close(spool);
    unmake(&m);
}

/* One of the two meta pages: what the other one leads to is delivered, which is all but the last commit. */
static void test_damaged_meta_page(void **state)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t most = 0;

    (void)state;
    for (size_t which = 0; which < 2; which++) {
        struct made m = make();
        struct spool *spool;
        struct spool_stream *stream = NULL;
        struct spool_salvage salvage = {0};

        set_byte(&m.segment, which * page + 16, 0x55); /* LMDB's magic */
        spool = open_spool(m.path, 0);
        check_ok(spool_stream_open(spool, "s", &stream, &the_error));
        check_ok(spool_segment_salvage(stream, 1, &salvage, &the_error));
        assert_true(salvage.count >= BLOCKS - 1);
        most = salvage.count > most ? salvage.count : most;
        for (size_t i = 0; i < salvage.count; i++) {
            assert_int_equal(salvage.refs[i].sequence, m.refs[i].sequence);
            check_block(stream, &salvage.refs[i]);
        }
        spool_salvage_free(&salvage);
        spool_close(spool);
        unmake(&m);
    }
    assert_int_equal(most, BLOCKS);
}

/* A segment whose file is gone, in the middle or as the newest; one that was unlisted before is none. */
static void test_missing_segment(void **state)
{
    (void)state;
    for (uint64_t gone = 1; gone <= 3; gone++) {
        char *path = make_directory(), *file = NULL;
        struct spool *spool = open_spool(path, 0);
        struct spool_stream *stream = open_stream(spool, "s");
        const uint32_t origin = open_origin(spool, "o/0");
        struct spool_change change = {.stream = spool_stream_id(stream)};
        struct spool_salvage salvage = {0};
        struct spool_segment_info *info;
        struct spool_block_ref ref;
        size_t count = 0;

        for (uint64_t i = 1; i <= 3; i++) {
            const struct spool_segment_spec spec = {&i, sizeof(i), "db.table"};
            check_ok(spool_stream_configure(stream, &spec, &the_error));
            assert_int_equal(append_one(stream, origin, 10, 100).segment, i);
            change.kind = SPOOL_CHANGE_LIST;
            change.segment = i;
            check_ok(spool_commit(spool, &change, 1, &the_error));
        }
        change.kind = SPOOL_CHANGE_UNLIST;
        change.segment = 1;
        check_ok(spool_commit(spool, &change, 1, &the_error));
        spool_close(spool);
        assert_true(asprintf(&file, "%s/streams/s/%012u.seg", path, (unsigned)gone) > 0);
        assert_int_equal(unlink(file), 0);
        spool = open_spool(path, 0);
        assert_int_equal(problems_of(spool), gone > 1);
        stream = open_stream(spool, "s");
        info = segments_of(stream, &count);
        assert_int_equal(count, gone == 1 ? 2 : 3);
        for (size_t i = 0; i < count; i++)
            assert_int_equal(info[i].missing && info[i].damaged,
                             gone > 1 && info[i].number == gone);
        free(info);
        if (gone > 1) {
            check_ok(spool_segment_salvage(stream, gone, &salvage, &the_error));
            assert_int_equal(salvage.count, 0);
            assert_int_equal(salvage.lost_count, gone == 2);
            if (gone == 2)
                assert_true(salvage.lost[0].first == 10 && salvage.lost[0].last == 19);
            spool_salvage_free(&salvage);
        }
        ref = append_one(stream, origin, 10, 100);
        assert_int_equal(ref.segment, 4);
        assert_int_equal(ref.first_offset, gone == 3 ? 20 : 30);
        if (gone > 1) {
            check_ok(spool_segment_forsake(stream, gone, &the_error));
            check_ok(spool_commit(spool, NULL, 0, &the_error));
            check_verified(spool);
        }
        spool_close(spool);
        free(file);
        remove_tree(path);
        free(path);
    }
}

/* What was let in must not lead a writer astray either. */
static void write_to(struct spool *spool)
{
    const struct spool_change put = {
        .kind = SPOOL_CHANGE_PUT, .key = "note", .value = "value", .value_size = 5};
    const struct spool_dead letter = {.stream = "s", .origin = 1, .offset = 99, .record = "r"};
    const struct spool_dead_change change = {.kind = SPOOL_DEAD_REMOVE, .place = {1, 2}};
    uint32_t origin = 0;
    size_t count = 0;

    (void)problems_of(spool);
    (void)spool_commit(spool, &put, 1, &the_error);
    (void)spool_dead_put(spool, &letter, 1, &count, &the_error);
    (void)spool_dead_change(spool, "s", &change, 1, &count, &the_error);
    (void)spool_origin(spool, "another", 0, &origin, NULL, &the_error);
}

/* Whether the spool opens with one bit of the file changed. */
static bool opens_flipped(const struct made *m, const struct file *f, size_t at, unsigned bit,
                          bool write)
{
    const struct spool_options options = {.path = m->path};
    struct spool *spool = NULL;
    size_t letters = 0;
    int status;

    set_byte(f, at, (uint8_t)(f->bytes[at] ^ 1u << bit));
    status = spool_open(&options, &spool, &the_error);
    if (status == SPOOL_OK) {
        (void)spool_dead_each(spool, "s", count_letter, &letters, &the_error);
        assert_true(letters <= 5);
        if (write)
            write_to(spool);
    } else {
        assert_true(status == SPOOL_E_CORRUPT || status == SPOOL_E_NEWER);
    }
    spool_close(spool);
    write_file(&m->meta, m->meta.size);
    write_file(&m->dead, m->dead.size);
    return status == SPOOL_OK;
}

/* meta.mdb and dead.mdb: opening either says CORRUPT and what to do, or what it gives is right. Every
   byte at the head of a page, every bit of its flags, and some of the rest. */
static void check_store(const struct made *m, const struct file *f, const char *advice)
{
    const struct spool_options options = {.path = m->path};
    size_t refused = 0, opened = 0;
    uint64_t seed = 12;
    size_t step = getenv("TEST_LONG") ? 1 : 97;

    for (size_t at = 0; at < f->size;) {
        size_t in_page = at % 4096;
        bool flags = in_page == 10 || in_page == 11;
        for (unsigned i = 0; i < (flags ? 8 : 1); i++) {
            unsigned bit = flags ? i : (unsigned)(next_random(&seed) % 8);
            if (opens_flipped(m, f, at, bit, flags || opened % 4 == 0))
                opened++;
            else
                refused++;
        }
        if (in_page < (at < 8192 ? 160 : 40))
            at++;
        else
            at += in_page + step < 4096 ? step : 4096 - in_page;
    }
    print_message("flips: %zu refused, %zu opened\n", refused, opened);
    assert_true(refused > 50);
    for (size_t size = 0; size + 4096 < f->size; size += 2048) {
        struct spool *spool = NULL;
        int status;
        write_file(f, size);
        status = spool_open(&options, &spool, &the_error);
        if (size < 8192) {
            assert_int_equal(status, SPOOL_E_CORRUPT);
            assert_non_null(strstr(the_error.text, advice));
        }
        spool_close(spool);
    }
    write_file(f, f->size);
}

static void test_damaged_meta(void **state)
{
    struct made m = make();
    const struct spool_options options = {.path = m.path, .create = true};
    struct spool *spool = NULL;

    (void)state;
    check_store(&m, &m.meta, "spoolctl");
    assert_int_equal(unlink(m.meta.path), 0);
    assert_int_equal(spool_open(&options, &spool, &the_error), SPOOL_E_CORRUPT);
    write_file(&m.meta, m.meta.size);
    spool = open_spool(m.path, 0);
    check_verified(spool);
    spool_close(spool);
    unmake(&m);
}

static void test_damaged_dead(void **state)
{
    struct made m = make();
    struct spool *spool;

    (void)state;
    check_store(&m, &m.dead, "repair");
    assert_int_equal(unlink(m.dead.path), 0);
    spool = open_spool(m.path, 0); /* an empty one takes its place */
    check_verified(spool);
    spool_close(spool);
    unmake(&m);
}

/* A version from the future is refused as such, in each file that carries one. */
static void test_newer(void **state)
{
    struct made m = make();
    const struct spool_options options = {.path = m.path};
    struct spool *spool = NULL;
    struct spool_stream *stream = NULL;
    MDB_env *env = NULL;
    MDB_txn *txn = NULL;
    MDB_dbi dbi;
    const uint8_t version[4] = {SPOOL_FORMAT_VERSION + 1};
    const struct file *files[] = {&m.meta, &m.dead, &m.segment};

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(env_open(files[i]->path, 0, 1 << 20, &env), 0);
        assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
        assert_int_equal(mdb_dbi_open(txn, "info", 0, &dbi), 0);
        assert_int_equal(record_put(txn, dbi, RECORD_INFO, "version", 7, version, 4, 0), 0);
        assert_int_equal(mdb_txn_commit(txn), 0);
        mdb_env_close(env);
        if (i < 2) {
            assert_int_equal(spool_open(&options, &spool, &the_error), SPOOL_E_NEWER);
        } else {
            spool = open_spool(m.path, 0);
            assert_int_equal(spool_stream_open(spool, "s", &stream, &the_error), SPOOL_E_NEWER);
            spool_close(spool);
        }
        write_file(files[i], files[i]->size);
    }
    unmake(&m);
}

/* A segment or dead.mdb of another spool, and a segment under a wrong number. */
static void test_foreign_files(void **state)
{
    struct made a = make(), b = make();
    const struct spool_options options = {.path = a.path};
    struct spool *spool = NULL;
    struct spool_stream *stream = NULL;
    struct spool_segment_info *info;
    char *other = NULL;
    size_t count = 0;
    int64_t high = 0;

    (void)state;
    assert_int_equal(rename(b.segment.path, a.segment.path), 0);
    assert_true(asprintf(&other, "%s/streams/s/000000000007.seg", a.path) > 0);
    free(b.segment.path);
    b.segment.path = other;
    free(b.segment.bytes);
    b.segment.bytes = malloc(a.segment.size);
    assert_non_null(b.segment.bytes);
    memcpy(b.segment.bytes, a.segment.bytes, a.segment.size);
    write_file(&b.segment, a.segment.size);
    spool = open_spool(a.path, 0);
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    info = segments_of(stream, &count);
    assert_int_equal(count, 2);
    assert_true(info[0].damaged && info[1].damaged);
    assert_non_null(strstr(info[0].detail, "another spool"));
    assert_non_null(strstr(info[1].detail, "another number"));
    free(info);
    /* Their offsets are not taken for this stream's. */
    assert_int_equal(spool_stream_high(stream, a.origin[0], &high), SPOOL_E_NOT_FOUND);
    spool_close(spool);
    assert_int_equal(rename(b.dead.path, a.dead.path), 0);
    assert_int_equal(spool_open(&options, &spool, &the_error), SPOOL_E_CORRUPT);
    unmake(&a);
    unmake(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_truncated_segment),   cmocka_unit_test(test_truncated_under_reader),
        cmocka_unit_test(test_flipped_bytes),       cmocka_unit_test(test_flipped_block),
        cmocka_unit_test(test_flipped_transaction), cmocka_unit_test(test_wrong_references),
        cmocka_unit_test(test_damaged_newest),      cmocka_unit_test(test_damaged_meta),
        cmocka_unit_test(test_damaged_dead),        cmocka_unit_test(test_newer),
        cmocka_unit_test(test_foreign_files),       cmocka_unit_test(test_missing_segment),
        cmocka_unit_test(test_damaged_meta_page),
    };
    return cmocka_run_group_tests_name("spool_damage", tests, NULL, NULL);
}
