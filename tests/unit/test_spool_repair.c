/* SPDX-License-Identifier: Apache-2.0 */
/* spool_repair: what comes back of a spool without its meta.mdb. */
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "spool_data.h"

#define SEGMENTS 4
#define LETTERS  3000
#define CHOSEN   1234 /* the letter that is damaged */

static void count_line(void *arg, const char *line)
{
    (void)line;
    ++*(size_t *)arg;
}

static uint8_t *read_whole(const char *file, size_t *size)
{
    FILE *in = fopen(file, "r");
    uint8_t *bytes;

    assert_non_null(in);
    assert_int_equal(fseek(in, 0, SEEK_END), 0);
    *size = (size_t)ftell(in);
    rewind(in);
    bytes = malloc(*size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *size, in), *size);
    fclose(in);
    return bytes;
}

static void put_letters(struct spool *spool)
{
    struct spool_dead letters[100];
    char records[100][41];
    size_t added;

    for (int i = 0; i < LETTERS; i++) {
        letters[i % 100] = (struct spool_dead){
            .stream = "s", .origin = 1, .offset = i, .record = records[i % 100], .record_size = 40};
        snprintf(records[i % 100], sizeof(records[0]), "%040d", i);
        if (i % 100 == 99)
            check_ok(spool_dead_put(spool, letters, 100, &added, &the_error));
    }
}

/* Four segments of two origins; the second was acknowledged and is gone. */
static char *make(struct spool_block_ref *refs)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = NULL;
    struct spool_dead letter = {.stream = "s", .origin = 7, .record = "bad", .record_size = 3};
    uint32_t origins[2];
    size_t added;

    check_ok(spool_stream_open(spool, "other", &stream, &the_error));
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    origins[0] = open_origin(spool, "kafka/t/0");
    check_ok(spool_origin(spool, "kafka/t/1", 3, &origins[1], NULL, &the_error));
    for (uint64_t i = 0; i < SEGMENTS; i++) {
        const struct spool_segment_spec spec = {&i, sizeof(i), "db.table"};
        struct spool_change change = {.stream = spool_stream_id(stream), .segment = 2};
        struct spool_range range = {2, 0, 10};
        check_ok(spool_stream_configure(stream, &spec, &the_error));
        refs[i] = append_one(stream, origins[i % 2], 10, 100 + i);
        if (i != 2)
            continue;
        change.kind = SPOOL_CHANGE_DISCARD;
        change.ranges = &range;
        change.range_count = 1;
        check_ok(spool_commit(spool, &change, 1, &the_error));
        change.kind = SPOOL_CHANGE_UNLIST;
        check_ok(spool_commit(spool, &change, 1, &the_error));
        check_ok(spool_segment_remove(stream, 2, &the_error));
    }
    check_ok(spool_dead_put(spool, &letter, 1, &added, &the_error));
    spool_close(spool);
    return path;
}

static void check_rebuilt(const char *path, const struct spool_block_ref *refs)
{
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = NULL;
    struct spool_segment_info *info;
    struct spool_salvage salvage = {0};
    uint64_t batch = 0;
    uint32_t epoch = 0, id = 0;
    size_t count = 0;
    char *name = NULL;

    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    assert_int_equal(spool_stream_id(stream), 2);
    assert_int_equal(spool_stream_rebuilt_to(stream), refs[SEGMENTS - 1].sequence);
    info = segments_of(stream, &count);
    assert_int_equal(count, SEGMENTS);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(info[i].missing, i == 1);
        assert_int_equal(info[i].acked_blocks, 0);
        if (i != 1)
            check_block(stream, &refs[i]);
    }
    free(info);
    check_ok(spool_segment_salvage(stream, 2, &salvage, &the_error));
    assert_int_equal(salvage.lost_count, 1);
    assert_int_equal(salvage.lost[0].origin, refs[1].origin);
    assert_int_equal(salvage.lost[0].last, refs[1].last_offset);
    spool_salvage_free(&salvage);
    check_ok(spool_origin_name(spool, refs[1].origin, &name, &epoch, &the_error));
    assert_string_equal(name, "kafka/t/1");
    assert_int_equal(epoch, 3);
    free(name);
    check_ok(spool_origin(spool, "kafka/t/1", 0, &id, &epoch, &the_error));
    assert_true(id == refs[1].origin && epoch == 3);
    assert_int_equal(open_origin(spool, "new"), 8); /* 7 is in the dead letters */
    check_ok(spool_next_batch(spool, 2, &batch, &the_error));
    assert_true(batch > 1000000);
    assert_int_equal(append_one(stream, refs[0].origin, 10, 10).sequence,
                     refs[SEGMENTS - 1].sequence + 1);
    spool_close(spool);
}

static void test_repair(void **state)
{
    struct spool_block_ref refs[SEGMENTS];
    const char *const harms[] = {"gone", "empty", "cut", "sound"};
    bool wrong = false;

    (void)state;
    for (size_t h = 0; h < 4; h++) {
        char *path = make(refs), *meta = NULL;
        size_t lines = 0;
        print_message("meta.mdb %s\n", harms[h]);
        assert_true(asprintf(&meta, "%s/meta.mdb", path) > 0);
        if (h == 0)
            assert_int_equal(unlink(meta), 0);
        else if (h < 3)
            assert_int_equal(truncate(meta, h == 1 ? 0 : 3 * 4096), 0);
        check_ok(spool_repair(path, SPOOL_REPAIR_DRY, count_line, &lines, &wrong, &the_error));
        assert_true(lines > 0 && wrong == (h < 3));
        assert_true((access(meta, F_OK) == 0) == (h > 0)); /* nothing was changed */
        check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
        assert_int_equal(wrong, h < 3);
        if (h < 3)
            check_rebuilt(path, refs);
        check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
        assert_false(wrong);
        free(meta);
        remove_tree(path);
        free(path);
    }
}

static int each_there(void *arg, const struct spool_dead *letter)
{
    uint8_t *there = arg;

    assert_true(letter->offset >= 0 && letter->offset < LETTERS);
    assert_int_equal(letter->record_size, 40);
    assert_int_equal(strtol(letter->record, NULL, 10), letter->offset);
    there[letter->offset] = 1;
    return 0;
}

/* One letter's record, and where the file ends. */
static void harm_letters(const char *file, bool cut)
{
    char wanted[41];
    size_t size = 0, at = 0;
    uint8_t *bytes = read_whole(file, &size);
    FILE *out = fopen(file, "r+");

    snprintf(wanted, sizeof(wanted), "%040d", CHOSEN);
    while (memcmp(bytes + at, wanted, 40) != 0)
        assert_true(++at + 40 < size);
    assert_non_null(out);
    assert_int_equal(fseek(out, (long)at, SEEK_SET), 0);
    assert_int_equal(fputc('x', out), 'x');
    assert_int_equal(fclose(out), 0);
    if (cut)
        assert_int_equal(truncate(file, (off_t)(size * 3 / 4)), 0);
    free(bytes);
}

static void test_repair_letters(void **state)
{
    static const struct spool_dead_place first = {1, 0};

    (void)state;
    for (int cut = 0; cut < 2; cut++) {
        char *path = make_directory(), *file = NULL;
        struct spool *spool = open_spool(path, 0);
        uint8_t *there = calloc(1, LETTERS);
        uint64_t letters = 0, bytes = 0;
        size_t lines = 0, found = 0;
        bool wrong = false;
        struct spool_dead_change gone = {.kind = SPOOL_DEAD_REMOVE, .place = first};

        assert_non_null(there);
        put_letters(spool);
        spool_close(spool);
        assert_true(asprintf(&file, "%s/dead.mdb", path) > 0);
        harm_letters(file, cut);
        check_ok(spool_repair(path, SPOOL_REPAIR_DRY, count_line, &lines, &wrong, &the_error));
        assert_true(wrong);
        check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
        assert_true(wrong);
        spool = open_spool(path, 0);
        assert_int_equal(spool_dead_each(spool, "s", each_there, there, &the_error), 0);
        for (size_t i = 0; i < LETTERS; i++)
            found += there[i];
        assert_int_equal(there[CHOSEN], 0);
        assert_true(cut ? found > LETTERS / 3 && found < LETTERS : found == LETTERS - 1);
        check_ok(spool_dead_count(spool, "s", &letters, &bytes, &the_error));
        assert_int_equal(letters, found);
        check_ok(spool_dead_change(spool, "s", &gone, 1, &lines, &the_error));
        check_verified(spool);
        spool_close(spool);
        check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
        assert_false(wrong);
        free(file);
        free(there);
        remove_tree(path);
        free(path);
    }
}

enum meta_harm { HARM_MAGIC, HARM_NUMBER, HARM_ORDER, HARM_LAST_PAGE, HARM_DATABASE, HARMS };

/* One field of the newer or the older meta page; LMDB's pages are of 4096 bytes or more. */
static void harm_meta_page(const char *file, bool newer, enum meta_harm harm)
{
    static const size_t places[HARMS] = {16, 16 + 129, 16 + 128, 16 + 121, 16 + 72 + 4};
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = 0, at;
    uint8_t *bytes = read_whole(file, &size);
    uint64_t transaction[2];
    FILE *out = fopen(file, "r+");

    for (size_t i = 0; i < 2; i++)
        memcpy(&transaction[i], bytes + i * page + 16 + 128, 8);
    at = (transaction[0] < transaction[1]) == newer ? page : 0;
    at += places[harm];
    assert_non_null(out);
    assert_int_equal(fseek(out, (long)at, SEEK_SET), 0);
    if (harm == HARM_ORDER) /* what was the older looks like the newer */
        bytes[at] = (uint8_t)(newer ? bytes[at] - 2 : bytes[at] + 2);
    else
        bytes[at] ^= 0x40;
    assert_true(fputc(bytes[at], out) >= 0);
    assert_int_equal(fclose(out), 0);
    free(bytes);
}

/* Whichever meta page is bad, the other one leads to all letters but those of the last commit. */
static void test_repair_half(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * HARMS; i++) {
        char *path = make_directory(), *file = NULL;
        struct spool *spool = open_spool(path, 0);
        const enum meta_harm harm = (enum meta_harm)(i / 2);
        const bool newer = i % 2;
        uint8_t *there = calloc(1, LETTERS);
        size_t lines = 0, found = 0, least;
        bool wrong = false;

        print_message("harm %d of the %s meta page\n", (int)harm, newer ? "newer" : "older");
        assert_non_null(there);
        put_letters(spool);
        spool_close(spool);
        assert_true(asprintf(&file, "%s/dead.mdb", path) > 0);
        harm_meta_page(file, newer, harm);
        check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
        spool = open_spool(path, 0);
        assert_int_equal(spool_dead_each(spool, "s", each_there, there, &the_error), 0);
        for (size_t k = 0; k < LETTERS; k++)
            found += there[k];
        /* A number that is one commit too old is mended when the file is opened. */
        least = newer && harm != HARM_ORDER ? LETTERS - 100 : LETTERS;
        assert_true(found >= least && (found == LETTERS || wrong));
        check_verified(spool);
        spool_close(spool);
        free(file);
        free(there);
        remove_tree(path);
        free(path);
    }
}

static void keep_line(void *arg, const char *line)
{
    char *all = arg;

    strncat(all, line, 4095 - strlen(all));
}

/* Neither meta page: said so, and the old file is kept. */
static void test_repair_nothing_left(void **state)
{
    char *path = make_directory(), *file = NULL, said[4096] = "";
    struct spool *spool = open_spool(path, 0);
    bool wrong = false;

    (void)state;
    put_letters(spool);
    spool_close(spool);
    assert_true(asprintf(&file, "%s/dead.mdb", path) > 0);
    harm_meta_page(file, true, HARM_MAGIC);
    harm_meta_page(file, false, HARM_MAGIC);
    check_ok(spool_repair(path, 0, keep_line, said, &wrong, &the_error));
    assert_true(wrong);
    assert_non_null(strstr(said, "neither meta page"));
    assert_non_null(strstr(said, "the old dead.mdb is kept"));
    free(file);
    remove_tree(path);
    free(path);
}

static ino_t bad_file; /* 0: none is */
static off_t bad_page;

/* As from a disk with one bad sector. */
ssize_t pread(int fd, void *data, size_t size, off_t at)
{
    struct stat st;

    if (bad_file && at < bad_page + 4096 && at + (off_t)size > bad_page && !fstat(fd, &st) &&
        st.st_ino == bad_file) {
        errno = EIO;
        return -1;
    }
    return syscall(SYS_pread64, fd, data, size, at);
}

/* The number of letters that the report says can be read. */
static size_t said_readable(const char *said)
{
    size_t n = LETTERS + 1;

    for (const char *at = said; (at = strstr(at, "dead.mdb: ")); at++)
        if (sscanf(at, "dead.mdb: %zu letters can be read", &n) == 1)
            return n;
    fail_msg("no number of letters: %s", said);
    return n;
}

static char *letters_and_a_long_one(ino_t *file, off_t *pages)
{
    static const char record[10000] = "long";
    const struct spool_dead letter = {
        .stream = "t", .origin = 1, .offset = 77, .record = record, .record_size = sizeof(record)};
    char *path = make_directory(), *name = NULL;
    struct spool *spool = open_spool(path, 0);
    struct stat st;
    size_t added;

    (void)open_origin(spool, "kafka/t/0");
    check_ok(spool_dead_put(spool, &letter, 1, &added, &the_error));
    put_letters(spool);
    spool_close(spool);
    assert_true(asprintf(&name, "%s/dead.mdb", path) > 0);
    assert_int_equal(stat(name, &st), 0);
    *file = st.st_ino;
    *pages = st.st_size / 4096;
    free(name);
    return path;
}

/* A repair ends where a page can't be read; told to go on without it, it misses what lay there and no more:
   each letter lies on one leaf page, the long one on three others too. */
static void test_repair_skips_what_can_not_be_read(void **state)
{
    off_t pages, chosen = 0;
    size_t passed = 0, missing = 0, there_count = 0, inner = 0;
    uint8_t *there = calloc(1, LETTERS);
    bool wrong = false, long_one = false;
    char said[4096];
    struct spool *spool;
    ino_t file;
    char *path = letters_and_a_long_one(&file, &pages);

    (void)state;
    assert_non_null(there);
    for (off_t page = 2; page < pages; page++) {
        int strict, status;
        bad_file = file;
        bad_page = page * 4096;
        said[0] = 0;
        strict = spool_repair(path, SPOOL_REPAIR_DRY, keep_line, said, &wrong, &the_error);
        if (strict == SPOOL_OK) { /* nothing lies there */
            assert_false(wrong);
            continue;
        }
        assert_int_equal(strict, SPOOL_E_IO);
        said[0] = 0;
        status = spool_repair(path, SPOOL_REPAIR_DRY | SPOOL_REPAIR_SKIP_UNREADABLE, keep_line,
                              said, &wrong, &the_error);
        if (status != SPOOL_OK) { /* it leads to all of them */
            assert_int_equal(status, SPOOL_E_IO);
            assert_non_null(strstr(the_error.text, "no letter of"));
            continue;
        }
        assert_true(wrong);
        missing = LETTERS + 1 - said_readable(said);
        if (strstr(said, "one meta page")) /* it proves the last commit: only that is missing */
            continue;
        if (missing > 64) { /* an inner page, with all that it leads to */
            inner += missing;
            continue;
        }
        passed += missing;
        long_one |= strstr(said, "the letter of offset 77 of kafka/t/0 in stream t can't") != NULL;
        if (missing > 1 && strstr(said, "from offset"))
            chosen = page;
    }
    assert_int_equal(passed, LETTERS + 1 + 3);
    assert_int_equal(inner, LETTERS + 1);
    assert_true(long_one && chosen);

    bad_page = chosen * 4096;
    assert_int_equal(spool_repair(path, 0, keep_line, said, &wrong, &the_error), SPOOL_E_IO);
    said[0] = 0;
    check_ok(spool_repair(path, SPOOL_REPAIR_SKIP_UNREADABLE, keep_line, said, &wrong, &the_error));
    assert_true(wrong);
    assert_non_null(strstr(said, "the old dead.mdb is kept"));
    spool = open_spool(path, 0);
    assert_int_equal(spool_dead_each(spool, "s", each_there, there, &the_error), 0);
    for (size_t i = 0; i < LETTERS; i++)
        there_count += there[i];
    assert_true(there_count < LETTERS && there_count > LETTERS - 100);
    check_verified(spool);
    spool_close(spool);
    bad_file = 0;
    free(there);
    remove_tree(path);
    free(path);
}

/* A file that is there and can't be opened: nothing is made without what stands in it. */
static void test_repair_cannot_open(void **state)
{
    static const char *const names[] = {"dead.mdb", "meta.mdb", "streams/s/000000000001.seg"};
    struct spool_block_ref refs[SEGMENTS];

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        char *path = make(refs), *file = NULL, *meta = NULL;
        bool wrong = false;
        size_t lines = 0;
        struct stat st;

        assert_true(asprintf(&file, "%s/%s", path, names[i]) > 0);
        assert_true(asprintf(&meta, "%s/meta.mdb", path) > 0);
        assert_int_equal(unlink(meta), 0);
        (void)unlink(file);
        assert_int_equal(symlink(file, file), 0); /* a loop */
        assert_int_equal(spool_repair(path, 0, count_line, &lines, &wrong, &the_error), SPOOL_E_IO);
        assert_non_null(strstr(the_error.text, file));
        assert_non_null(strstr(the_error.text, "move the file away"));
        assert_int_equal(lstat(file, &st), 0);
        assert_true(S_ISLNK(st.st_mode));
        assert_int_equal(access(meta, F_OK), -1);
        assert_int_equal(unlink(file), 0);
        check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
        free(file);
        free(meta);
        remove_tree(path);
        free(path);
    }
}

/* Where it can't be done: said, and the old file is where it was. */
static void test_repair_refused(void **state)
{
    struct spool_block_ref refs[SEGMENTS];
    char *path = make(refs), *meta = NULL, *fresh = NULL, *empty = make_directory();
    struct spool *spool = open_spool(path, 0);
    bool wrong = false;
    size_t lines = 0;

    (void)state;
    assert_int_equal(spool_repair(path, 0, count_line, &lines, &wrong, &the_error), SPOOL_E_LOCKED);
    spool_close(spool);
    assert_int_equal(spool_repair(empty, 0, count_line, &lines, &wrong, &the_error),
                     SPOOL_E_NOT_FOUND);
    assert_int_equal(spool_repair("/nowhere", 0, count_line, &lines, &wrong, &the_error),
                     SPOOL_E_NOT_FOUND);
    assert_true(asprintf(&meta, "%s/meta.mdb", path) > 0);
    assert_true(asprintf(&fresh, "%s/meta.mdb.new", path) > 0);
    assert_int_equal(truncate(meta, 0), 0);
    assert_int_equal(mkdir(fresh, 0700), 0); /* in the way of the new file */
    assert_int_not_equal(spool_repair(path, 0, count_line, &lines, &wrong, &the_error), SPOOL_OK);
    assert_int_equal(rmdir(fresh), 0);
    assert_int_equal(access(meta, F_OK), 0);
    check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
    check_rebuilt(path, refs);
    free(meta);
    free(fresh);
    remove_tree(path);
    free(path);
    remove_tree(empty);
    free(empty);
}

/* The first place where a name stands before a byte that is not 0: the record of a database's only key,
   and not the database. */
static long record_behind(const char *file, const char *name, size_t name_size)
{
    size_t size = 0, at = 0;
    uint8_t *bytes = read_whole(file, &size);

    for (at = 8192; memcmp(bytes + at, name, name_size) != 0 || !bytes[at + name_size]; at++)
        assert_true(at + name_size + 1 < size);
    free(bytes);
    return (long)(at + name_size);
}

static void change_byte(const char *file, long at)
{
    FILE *out = fopen(file, "r+");
    int byte;

    assert_non_null(out);
    assert_int_equal(fseek(out, at, SEEK_SET), 0);
    byte = fgetc(out);
    assert_int_equal(fseek(out, at, SEEK_SET), 0);
    assert_true(fputc(byte ^ 0x40, out) >= 0);
    assert_int_equal(fclose(out), 0);
}

/* What the newest segment held may be in the table, also where it no longer says how much that was. */
static void test_repair_newest(void **state)
{
    struct spool_block_ref refs[SEGMENTS], *last = &refs[SEGMENTS - 1];

    (void)state;
    for (int harm = 0; harm < 2; harm++) {
        char *path = make(refs), *meta = NULL, *newest = NULL;
        struct spool *spool;
        struct spool_stream *stream = NULL;
        struct spool_salvage salvage = {0};
        bool wrong = false;
        size_t lines = 0;

        print_message("harm %d\n", harm);
        assert_true(asprintf(&meta, "%s/meta.mdb", path) > 0);
        assert_true(asprintf(&newest, "%s/streams/s/000000000004.seg", path) > 0);
        assert_int_equal(unlink(meta), 0);
        if (harm)
            harm_meta_page(newest, true, HARM_ORDER);
        else
            change_byte(newest, record_behind(newest, "totals", 6));
        check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
        spool = open_spool(path, 0);
        check_ok(spool_stream_open(spool, "s", &stream, &the_error));
        if (!harm) {
            check_ok(spool_segment_salvage(stream, 4, &salvage, &the_error));
            assert_int_equal(salvage.count, 1);
            assert_int_equal(salvage.refs[0].sequence, last->sequence);
            spool_salvage_free(&salvage);
        }
        check_block(stream, last);
        assert_true(spool_stream_rebuilt_to(stream) >= last->sequence);
        assert_true(append_one(stream, refs[0].origin, 10, 10).sequence >
                    spool_stream_rebuilt_to(stream));
        spool_close(spool);
        free(meta);
        free(newest);
        remove_tree(path);
        free(path);
    }
}

/* An origin that has blocks, and whose name is lost: its number is not another one's. */
static void test_repair_nameless(void **state)
{
    char *path = make_directory(), *file = NULL, *name = NULL;
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin = open_origin(spool, "kafka/t/0"), epoch = 0;
    struct spool_block_ref ref = append_one(stream, origin, 10, 100);
    int64_t high = 0;
    bool wrong = false;
    size_t lines = 0;

    (void)state;
    spool_close(spool);
    assert_true(asprintf(&file, "%s/meta.mdb", path) > 0);
    assert_int_equal(unlink(file), 0);
    free(file);
    assert_true(asprintf(&file, "%s/streams/s/000000000001.seg", path) > 0);
    change_byte(file, record_behind(file, "kafka/t/", 8));
    check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
    spool = open_spool(path, 0);
    stream = open_stream(spool, "s");
    check_ok(spool_stream_high(stream, ref.origin, &high));
    assert_int_equal(high, ref.last_offset);
    assert_int_not_equal(open_origin(spool, "kafka/t/1"), ref.origin);
    check_ok(spool_origin_name(spool, ref.origin, &name, &epoch, &the_error));
    assert_string_equal(name, "unknown/1");
    free(name);
    spool_close(spool);
    free(file);
    remove_tree(path);
    free(path);
}

/* The same where the segment does not say whose it is: what it says beside that counts. */
static void test_repair_silent(void **state)
{
    const struct spool_segment_spec other = {"other", 5, "db.table"};
    char *path = make_directory(), *file = NULL;
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    struct spool_block_ref ref = append_one(stream, open_origin(spool, "kafka/t/0"), 10, 100);
    int64_t high = 0;
    bool wrong = false;
    size_t lines = 0;

    (void)state;
    check_ok(spool_stream_configure(stream, &other, &the_error));
    ref = append_one(stream, open_origin(spool, "kafka/t/1"), 20, 100);
    assert_true(ref.segment == 2 && ref.origin == 2);
    spool_close(spool);
    assert_true(asprintf(&file, "%s/meta.mdb", path) > 0);
    assert_int_equal(unlink(file), 0);
    free(file);
    assert_true(asprintf(&file, "%s/streams/s/000000000002.seg", path) > 0);
    change_byte(file, record_behind(file, "db.tabl", 7));
    check_ok(spool_repair(path, 0, count_line, &lines, &wrong, &the_error));
    spool = open_spool(path, 0);
    stream = open_stream(spool, "s");
    assert_int_equal(open_origin(spool, "new"), 3);
    assert_int_equal(open_origin(spool, "kafka/t/1"), ref.origin);
    check_ok(spool_stream_high(stream, ref.origin, &high));
    assert_int_equal(high, ref.last_offset);
    spool_close(spool);
    free(file);
    remove_tree(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repair),
        cmocka_unit_test(test_repair_letters),
        cmocka_unit_test(test_repair_half),
        cmocka_unit_test(test_repair_nothing_left),
        cmocka_unit_test(test_repair_skips_what_can_not_be_read),
        cmocka_unit_test(test_repair_cannot_open),
        cmocka_unit_test(test_repair_refused),
        cmocka_unit_test(test_repair_newest),
        cmocka_unit_test(test_repair_nameless),
        cmocka_unit_test(test_repair_silent),
    };
    return cmocka_run_group_tests_name("spool_repair", tests, NULL, NULL);
}
