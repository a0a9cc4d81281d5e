/* SPDX-License-Identifier: Apache-2.0 */
/* A file that can't be opened for a while is neither damaged nor gone. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "spool_data.h"

/* --- as many files as may be ---------------------------------------------------------------- */

/* Lets that many more be opened. */
static struct rlimit files_left(unsigned n)
{
    struct rlimit before, limit;
    int fd = dup(0);

    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    limit = before;
    limit.rlim_cur = (rlim_t)fd + n;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    return before;
}

static void files_again(const struct rlimit *before)
{
    assert_int_equal(setrlimit(RLIMIT_NOFILE, before), 0);
}

/* Two segments with a block each. */
static struct spool_stream *two_segments(struct spool *spool, struct spool_block_ref refs[2])
{
    const struct spool_segment_spec other = {"other", 5, "db.table"};
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin = open_origin(spool, "o");

    refs[0] = append_one(stream, origin, 10, 100);
    check_ok(spool_stream_configure(stream, &other, &the_error));
    refs[1] = append_one(stream, origin, 10, 100);
    assert_int_equal(refs[1].segment, 2);
    return stream;
}

static void acknowledge(struct spool *spool, struct spool_stream *stream)
{
    const struct spool_range range = {1, 0, 10};
    const struct spool_change change = {.kind = SPOOL_CHANGE_DISCARD,
                                        .stream = spool_stream_id(stream),
                                        .segment = 1,
                                        .ranges = &range,
                                        .range_count = 1};

    check_ok(spool_commit(spool, &change, 1, &the_error));
}

static void test_remove_without_files(void **state)
{
    (void)state;
    for (unsigned left = 0; left < 3; left++) {
        char *path = make_directory();
        struct spool *spool = open_spool(path, 0);
        struct spool_block_ref refs[2];
        struct spool_stream *stream = two_segments(spool, refs);
        struct spool_segment_info *info;
        struct rlimit before;
        size_t count = 0;
        int status;

        acknowledge(spool, stream);
        before = files_left(left);
        status = spool_segment_remove(stream, 1, &the_error);
        files_again(&before);
        assert_int_equal(status == SPOOL_OK, left > 0);
        if (status != SPOOL_OK) {
            assert_non_null(strstr(the_error.text, strerror(EMFILE)));
            info = segments_of(stream, &count);
            assert_int_equal(count, 2);
            assert_false(info[0].damaged);
            assert_int_equal(info[0].acked_rows, 10);
            free(info);
            check_ok(spool_segment_remove(stream, 1, &the_error));
        }
        check_verified(spool);
        spool_close(spool);
        remove_tree(path);
        free(path);
    }
}

static void test_salvage_without_files(void **state)
{
    char *path = make_directory(), *file = NULL, text[7];
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    struct spool_block_ref ref = append_one(stream, open_origin(spool, "o"), 10, 100);
    struct spool_salvage salvage = {0};
    struct rlimit before;
    int fd;

    (void)state;
    spool_close(spool);
    /* A record that leads to no block. */
    assert_true(asprintf(&file, "%s/streams/s/000000000001.seg", path) > 0);
    fd = open(file, O_RDWR);
    assert_true(fd >= 0);
    for (off_t at = 8192; pread(fd, text, 7, at) == 7; at++)
        if (!memcmp(text, "totals\1", 7))
            assert_int_equal(pwrite(fd, "\2", 1, at + 6), 1);
    close(fd);
    spool = open_spool(path, 0);
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    before = files_left(0);
    assert_int_equal(spool_segment_salvage(stream, 1, &salvage, &the_error), SPOOL_E_IO);
    files_again(&before);
    check_ok(spool_segment_salvage(stream, 1, &salvage, &the_error));
    assert_int_equal(salvage.count, 1);
    assert_int_equal(salvage.refs[0].sequence, ref.sequence);
    spool_salvage_free(&salvage);
    spool_close(spool);
    free(file);
    remove_tree(path);
    free(path);
}

static void test_usage_without_files(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_block_ref refs[2];
    struct spool_usage usage, part;
    struct rlimit before;

    (void)state;
    two_segments(spool, refs);
    check_ok(spool_usage_get(spool, &usage, &the_error));
    assert_true(usage.segment_bytes > 0 && usage.total_bytes > usage.segment_bytes);
    for (unsigned left = 0; left < 4; left++) {
        before = files_left(left);
        int status = spool_usage_get(spool, &part, &the_error);
        files_again(&before);
        if (status == SPOOL_OK)
            assert_int_equal(part.total_bytes, usage.total_bytes);
        else
            assert_int_equal(status, SPOOL_E_IO);
    }
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* Where streams/ is a file system of its own it has a directory that root alone may open; nothing of the
   spool lies there. */
static void test_usage_beside_what_is_no_streams(void **state)
{
    char *path = make_directory(), other[512];
    struct spool *spool = open_spool(path, 0);
    struct spool_block_ref refs[2];
    struct spool_usage usage, again;

    (void)state;
    two_segments(spool, refs);
    check_ok(spool_usage_get(spool, &usage, &the_error));
    snprintf(other, sizeof(other), "%s/streams/lost+found", path);
    assert_int_equal(symlink("lost+found", other), 0); /* ELOOP, also for root */
    check_ok(spool_usage_get(spool, &again, &the_error));
    assert_int_equal(again.segment_bytes, usage.segment_bytes);
    spool_close(spool);
    assert_int_equal(unlink(other), 0);
    remove_tree(path);
    free(path);
}

/* The first append after a start opens the newest segment to be written. */
static void test_append_without_files(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_block_ref refs[2];
    struct spool_stream *stream = two_segments(spool, refs);
    struct spool_block more;

    (void)state;
    spool_close(spool);
    spool = open_spool(path, 0);
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    more = next_block(stream, refs[1].origin, 10, 100);
    for (int configured = 0; configured < 2; configured++) {
        const struct spool_segment_spec spec = {"other", 5, "db.table"};
        struct rlimit before;
        size_t appended = 0;
        int status;
        if (configured)
            check_ok(spool_stream_configure(stream, &spec, &the_error));
        before = files_left(0);
        status = spool_stream_append(stream, &more, 1, refs, &appended, &the_error);
        files_again(&before);
        assert_int_equal(status, SPOOL_E_FULL);
        assert_non_null(strstr(the_error.text, strerror(EMFILE)));
    }
    assert_int_equal(append_one(stream, refs[1].origin, 10, 100).segment, 2);
    check_verified(spool);
    free((void *)(uintptr_t)more.frames);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* --- a directory that can't be read --------------------------------------------------------- */

static const char *unreadable; /* its last name; NULL: none is */
static bool from_the_start;    /* else only when it is read */
static DIR *unreadable_dir;

DIR *opendir(const char *path)
{
    DIR *(*real)(const char *) = (__typeof__(real))dlsym(RTLD_NEXT, "opendir");
    const char *name = strrchr(path, '/');
    bool is_it = unreadable && name && !strcmp(name + 1, unreadable);
    DIR *dir;

    if (is_it && from_the_start) {
        errno = EIO;
        return NULL;
    }
    dir = real(path);
    if (is_it)
        unreadable_dir = dir;
    return dir;
}

struct dirent *readdir(DIR *dir)
{
    struct dirent *(*real)(DIR *) = (__typeof__(real))dlsym(RTLD_NEXT, "readdir");

    if (unreadable && dir == unreadable_dir) {
        errno = EIO;
        return NULL;
    }
    return real(dir);
}

static ino_t bad_file; /* 0: none is */
static off_t bad_page;

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

/* Bad sectors of one segment are damage, wherever they lie: the others of the spool are of use. */
static void test_a_page_of_a_segment_not_read(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_block_ref refs[2];

    (void)state;
    two_segments(spool, refs);
    spool_close(spool);
    for (int number = 1; number <= 2; number++) {
        char file[512];
        struct stat st;
        snprintf(file, sizeof(file), "%s/streams/s/%012d.seg", path, number);
        assert_int_equal(stat(file, &st), 0);
        for (off_t page = 0; page < 16 * 4096 && page < st.st_size; page += 4096) {
            struct spool_segment_info *info;
            struct spool_stream *stream;
            size_t count = 0;
            int status;
            spool = open_spool(path, 0);
            bad_page = page;
            bad_file = st.st_ino;
            status = spool_stream_open(spool, "s", &stream, &the_error);
            bad_file = 0;
            check_ok(status);
            check_ok(spool_stream_segments(stream, &info, &count, &the_error));
            assert_int_equal(count, 2);
            assert_false(info[number == 1].damaged);
            assert_true(page >= 2 * 4096 || info[number == 2].damaged);
            free(info);
            spool_close(spool);
        }
    }
    remove_tree(path);
    free(path);
}

static void test_segments_not_listed(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_block_ref refs[2];
    struct spool_segment_info *info;
    struct spool_stream *stream;
    size_t count = 0;

    (void)state;
    two_segments(spool, refs);
    spool_close(spool);
    spool = open_spool(path, 0);
    for (int start = 0; start < 2; start++) {
        unreadable = "s";
        from_the_start = start;
        assert_int_equal(spool_stream_open(spool, "s", &stream, &the_error), SPOOL_E_IO);
        unreadable = NULL;
    }
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    info = segments_of(stream, &count);
    assert_int_equal(count, 2);
    assert_false(info[0].damaged || info[1].damaged);
    free(info);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static void ignore_line(void *arg, const char *line)
{
    (void)arg;
    (void)line;
}

/* No new meta.mdb is made beside segments that were only not seen. */
static void test_streams_not_listed(void **state)
{
    static const char *const names[] = {"streams", "s"};
    char *path = make_directory(), *meta = NULL;
    struct spool *spool = open_spool(path, 0);
    const struct spool_options options = {.path = path, .create = true};
    struct spool_block_ref refs[2];
    bool wrong = false;

    (void)state;
    two_segments(spool, refs);
    spool_close(spool);
    assert_true(asprintf(&meta, "%s/meta.mdb", path) > 0);
    assert_int_equal(unlink(meta), 0);
    for (int i = 0; i < 4; i++) {
        unreadable = names[i / 2];
        from_the_start = i % 2;
        assert_int_equal(spool_open(&options, &spool, &the_error), SPOOL_E_IO);
        assert_int_equal(spool_repair(path, 0, ignore_line, NULL, &wrong, &the_error), SPOOL_E_IO);
        unreadable = NULL;
        assert_int_equal(access(meta, F_OK), -1);
    }
    assert_int_equal(spool_open(&options, &spool, &the_error), SPOOL_E_CORRUPT);
    check_ok(spool_repair(path, 0, ignore_line, NULL, &wrong, &the_error));
    assert_true(wrong);
    spool = open_spool(path, 0);
    check_verified(spool);
    spool_close(spool);
    free(meta);
    remove_tree(path);
    free(path);
}

/* What was not looked at is not said to be sound. */
static void test_verify_not_listed(void **state)
{
    static const char *const names[] = {"streams", "s"};
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_block_ref refs[2];

    (void)state;
    two_segments(spool, refs);
    for (int i = 0; i < 4; i++) {
        uint64_t problems = 0;
        unreadable = names[i / 2];
        from_the_start = i % 2;
        assert_int_equal(spool_verify(spool, NULL, NULL, &problems, &the_error), SPOOL_E_IO);
        unreadable = NULL;
    }
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static const char *taken_away; /* when the lock is asked for */

int flock(int fd, int how)
{
    if (taken_away)
        assert_int_equal(unlink(taken_away), 0);
    taken_away = NULL;
    return (int)syscall(SYS_flock, fd, how);
}

/* Another process, which had the lock until now, was killed when meta.mdb was out of its place. */
static void test_meta_gone_before_the_lock(void **state)
{
    char *path = make_directory(), *meta = NULL;
    struct spool *spool = open_spool(path, 0);
    const struct spool_options options = {.path = path, .create = true};
    struct spool_block_ref refs[2];

    (void)state;
    two_segments(spool, refs);
    spool_close(spool);
    assert_true(asprintf(&meta, "%s/meta.mdb", path) > 0);
    taken_away = meta;
    assert_int_equal(spool_open(&options, &spool, &the_error), SPOOL_E_CORRUPT);
    assert_non_null(strstr(the_error.text, "has segments but no meta.mdb"));
    assert_int_equal(access(meta, F_OK), -1);
    free(meta);
    remove_tree(path);
    free(path);
}

/* --- no room in the address space ----------------------------------------------------------- */

static size_t largest_map; /* of a file; 0: no bound */

void *mmap(void *at, size_t size, int access, int flags, int fd, off_t offset)
{
    if (largest_map && fd >= 0 && size > largest_map) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, at, size, access, flags, fd, offset);
}

/* A segment for one block larger than segments are. */
static void test_no_room_for_a_large_block(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 1 << 20);
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin = open_origin(spool, "o");
    struct spool_block large = next_block(stream, origin, 1, 8 << 20);
    struct spool_block_ref refs[3];
    size_t appended = 0;

    (void)state;
    for (int i = 0; i < 2; i++) {
        largest_map = 4 << 20;
        assert_int_equal(spool_stream_append(stream, &large, 1, &refs[0], &appended, &the_error),
                         SPOOL_E_FULL);
        assert_int_equal(appended, 0);
        largest_map = 0;
    }
    check_ok(spool_stream_append(stream, &large, 1, &refs[0], &appended, &the_error));
    refs[1] = append_one(stream, origin, 1, 100);
    for (int i = 0; i < 2; i++)
        check_block(stream, &refs[i]);
    check_verified(spool);
    free((void *)(uintptr_t)large.frames);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_remove_without_files),
        cmocka_unit_test(test_append_without_files),
        cmocka_unit_test(test_salvage_without_files),
        cmocka_unit_test(test_usage_without_files),
        cmocka_unit_test(test_usage_beside_what_is_no_streams),
        cmocka_unit_test(test_a_page_of_a_segment_not_read),
        cmocka_unit_test(test_segments_not_listed),
        cmocka_unit_test(test_streams_not_listed),
        cmocka_unit_test(test_verify_not_listed),
        cmocka_unit_test(test_meta_gone_before_the_lock),
        cmocka_unit_test(test_no_room_for_a_large_block),
    };
    return cmocka_run_group_tests_name("spool_limits", tests, NULL, NULL);
}
