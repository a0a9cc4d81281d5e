/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The write of a meta page fails, whole or in part, and so does what LMDB writes over it then, or not:
 * the next start opens every file, at the last commit that was reported or the one that failed.
 */
#include <errno.h>
#include <sys/syscall.h>

#include "spool_data.h"

#define META_WRITE_BYTES 120 /* LMDB 0.9.24 writes a meta page from its map size on */

enum victim { META, DEAD, SEGMENT, VICTIMS };

/* How much of the first write is on the disk, and whether LMDB can put the old number back. */
struct failure {
    size_t written;
    bool put_back;
};

static const struct failure failures[] = {
    {0, false}, {60, false}, {60, true}, {META_WRITE_BYTES, false}, {META_WRITE_BYTES, true},
};

static const char *const names[VICTIMS] = {"/meta.mdb", "/dead.mdb", ".seg"};
static const char *failing; /* the end of the file's name */
static const struct failure *failure;
static unsigned failed;

static bool is_failing(int fd)
{
    char link[64], path[4096];
    ssize_t n;

    if (!failing)
        return false;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    return n > (ssize_t)strlen(failing) &&
           memcmp(path + n - strlen(failing), failing, strlen(failing)) == 0;
}

/* Instead of the C library's, for LMDB. */
ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    if (size != META_WRITE_BYTES || !is_failing(fd))
        return syscall(SYS_pwrite64, fd, data, size, at);
    if (failed++ && failure->put_back)
        return syscall(SYS_pwrite64, fd, data, size, at);
    if (failed == 1 && failure->written)
        (void)!syscall(SYS_pwrite64, fd, data, failure->written, at);
    errno = EIO;
    return -1;
}

/* A spool to which commits of each file are made, one by one. */
struct life {
    struct spool *spool;
    struct spool_stream *stream;
    int64_t letters;
    uint64_t blocks;
    unsigned origins;
};

static int put_letter(struct life *l)
{
    char record[400];
    struct spool_dead letter = {.stream = "s",
                                .origin = 1,
                                .offset = l->letters,
                                .record = record,
                                .record_size = sizeof(record)};
    size_t added;

    memset(record, 'r', sizeof(record));
    return spool_dead_put(l->spool, &letter, 1, &added, &the_error);
}

static int put_origin(struct life *l)
{
    char name[32];
    uint32_t id;

    snprintf(name, sizeof(name), "topic/%u", l->origins);
    return spool_origin(l->spool, name, 0, &id, NULL, &the_error);
}

static int put_block(struct life *l)
{
    struct spool_block b = next_block(l->stream, 1, 3, 700);
    struct spool_block_ref ref;
    size_t appended;
    int status = spool_stream_append(l->stream, &b, 1, &ref, &appended, &the_error);

    free((void *)(uintptr_t)b.frames);
    return status;
}

static int put(struct life *l, enum victim victim)
{
    int status = victim == META ? put_origin(l) : victim == DEAD ? put_letter(l) : put_block(l);

    if (status == SPOOL_OK) {
        l->origins += victim == META;
        l->letters += victim == DEAD;
        l->blocks += victim == SEGMENT;
    }
    return status;
}

static void life_open(struct life *l, const char *path)
{
    l->spool = open_spool(path, 0);
    l->stream = open_stream(l->spool, "s");
}

static int count_letter(void *arg, const struct spool_dead *letter)
{
    (void)letter;
    ++*(int64_t *)arg;
    return 0;
}

static uint64_t count_blocks(struct spool_stream *stream)
{
    size_t count = 0;
    struct spool_segment_info *info = segments_of(stream, &count);
    uint64_t blocks = 0;

    for (size_t i = 0; i < count; i++) {
        assert_false(info[i].damaged);
        blocks += info[i].blocks;
    }
    free(info);
    return blocks;
}

/* What was reported is there, and of what failed all or nothing. */
static void check_there(struct life *l, enum victim victim)
{
    int64_t letters = 0;
    uint64_t blocks = count_blocks(l->stream);
    char *name = NULL;

    assert_int_equal(spool_dead_each(l->spool, "s", count_letter, &letters, &the_error), 0);
    assert_in_range(letters, l->letters, l->letters + (victim == DEAD));
    assert_in_range(blocks, l->blocks, l->blocks + (victim == SEGMENT));
    for (uint32_t id = 1; id <= l->origins; id++) {
        check_ok(spool_origin_name(l->spool, id, &name, NULL, &the_error));
        free(name);
    }
    check_verified(l->spool);
    l->letters = letters;
    l->blocks = blocks;
}

static void check_read_only(const char *path)
{
    const struct spool_options options = {.path = path, .read_only = true};
    struct spool *spool = NULL;

    check_ok(spool_open(&options, &spool, &the_error));
    check_verified(spool);
    spool_close(spool);
}

static void no_line(void *arg, const char *line)
{
    (void)arg;
    (void)line;
}

static void live(enum victim victim, const struct failure *how, unsigned commits)
{
    char *path = make_directory();
    struct life l = {0};
    bool wrong = true;

    life_open(&l, path);
    check_ok(put(&l, META));
    for (unsigned i = 0; i < commits; i++)
        check_ok(put(&l, victim));
    failure = how;
    failed = 0;
    failing = names[victim];
    assert_int_equal(put(&l, victim), SPOOL_E_FATAL);
    failing = NULL;
    assert_true(failed == 2);
    spool_close(l.spool);

    check_read_only(path);
    check_ok(spool_repair(path, SPOOL_REPAIR_DRY, no_line, NULL, &wrong, &the_error));
    assert_false(wrong);
    for (unsigned i = 0; i < 3; i++) {
        life_open(&l, path);
        check_there(&l, i ? VICTIMS : victim);
        check_ok(put(&l, victim));
        spool_close(l.spool);
    }
    remove_tree(path);
    free(path);
}

static void test_failed_meta_page(void **state)
{
    (void)state;
    for (unsigned victim = 0; victim < VICTIMS; victim++)
        for (size_t i = 0; i < sizeof(failures) / sizeof(failures[0]); i++)
            for (unsigned commits = 1; commits < 10; commits++) {
                print_message("%s, %zu bytes, put back %d, after %u commits\n", names[victim],
                              failures[i].written, failures[i].put_back, commits);
                live((enum victim)victim, &failures[i], commits);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_failed_meta_page)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
