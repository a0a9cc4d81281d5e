/* SPDX-License-Identifier: Apache-2.0 */
/* No room in meta.mdb or dead.mdb, because they are as large as they may be or the disk is full: what only
   adds is refused first, and changes nothing; what ends something goes on, and makes room. */
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "spool/spool_int.h"
#include "spool_data.h"

#define BLOCKS  200u
#define ROWS    1000u
#define LARGEST (256u << 10)

static char long_text[400];

struct rig {
    char *path;
    struct spool *spool;
    struct spool_stream *stream;
    uint32_t id, origin;
    unsigned names, letters;
    uint64_t first_batch, next_batch; /* sealed and not acknowledged */
    uint64_t sealed;                  /* the first sequences */
};

static void rig_open(struct rig *r, uint64_t reserve_bytes, uint64_t largest_bytes)
{
    const struct spool_options options = {.path = r->path,
                                          .segment_bytes = 1 << 20,
                                          .meta_reserve_bytes = reserve_bytes,
                                          .create = true};

    check_ok(spool_open(&options, &r->spool, &the_error));
    r->stream = open_stream(r->spool, "s");
    r->id = spool_stream_id(r->stream);
    r->origin = open_origin(r->spool, "o");
    if (largest_bytes)
        r->spool->meta.largest_bytes = r->spool->dead.largest_bytes = largest_bytes;
}

static void rig_init(struct rig *r, char *path, uint64_t reserve_bytes, uint64_t largest_bytes)
{
    *r = (struct rig){.path = path, .first_batch = 1, .next_batch = 1};
    memset(long_text, 'x', sizeof(long_text) - 1);
    rig_open(r, reserve_bytes, largest_bytes);
    for (unsigned i = 0; i < BLOCKS; i++)
        append_one(r->stream, r->origin, ROWS, 10);
}

static void rig_end(struct rig *r)
{
    check_verified(r->spool);
    spool_close(r->spool);
}

static uint64_t file_bytes(const struct rig *r, const char *name)
{
    char *path = path_join(r->path, name);
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    free(path);
    return (uint64_t)st.st_size;
}

static int add_name(struct rig *r)
{
    char name[ORIGIN_NAME_MAX];
    uint32_t id = 0;
    int status;

    snprintf(name, sizeof(name), "kafka/%.300s/%u", long_text, r->names);
    status = spool_origin(r->spool, name, 0, &id, NULL, &the_error);
    r->names += status == SPOOL_OK;
    return status;
}

static int add_letters(struct rig *r, unsigned count)
{
    struct spool_dead *d = calloc(count, sizeof(*d));
    int status;

    assert_non_null(d);
    for (unsigned i = 0; i < count; i++)
        d[i] = (struct spool_dead){.stream = "s",
                                   .origin = r->origin,
                                   .offset = r->letters + i,
                                   .record = long_text,
                                   .record_size = sizeof(long_text)};
    status = spool_dead_put(r->spool, d, count, NULL, &the_error);
    r->letters += status == SPOOL_OK ? count : 0;
    free(d);
    return status;
}

static int add_letter(struct rig *r)
{
    return add_letters(r, 1);
}

/* One row of each of two blocks, so that acknowledgements do not merge. */
static struct spool_change seal_change(struct rig *r, struct spool_seal *seal,
                                       struct spool_range *ranges)
{
    const uint32_t row = (uint32_t)(r->sealed / BLOCKS * 2);

    assert_true(row < ROWS);
    ranges[0] = (struct spool_range){r->sealed % BLOCKS + 1, row, 1};
    ranges[1] = (struct spool_range){r->sealed % BLOCKS + 2, row, 1};
    *seal = (struct spool_seal){.stream = r->id,
                                .batch = r->next_batch,
                                .segment = 1,
                                .ranges = ranges,
                                .range_count = 2,
                                .token = "token",
                                .attributes = long_text,
                                .attributes_size = sizeof(long_text),
                                .rows = 2};
    return (struct spool_change){.kind = SPOOL_CHANGE_SEAL, .stream = r->id, .seal = seal};
}

static int add_seal(struct rig *r)
{
    struct spool_range ranges[2];
    struct spool_seal seal;
    struct spool_change change = seal_change(r, &seal, ranges);
    int status = spool_commit(r->spool, &change, 1, &the_error);

    if (status != SPOOL_OK)
        return status;
    r->next_batch++;
    r->sealed += 2;
    return SPOOL_OK;
}

static struct spool_change ack_change(struct rig *r, uint64_t batch)
{
    return (struct spool_change){.kind = SPOOL_CHANGE_ACK, .stream = r->id, .batch = batch};
}

static void acknowledge(struct rig *r)
{
    struct spool_change change = ack_change(r, r->first_batch);

    check_ok(spool_commit(r->spool, &change, 1, &the_error));
    r->first_batch++;
}

static unsigned until_full(struct rig *r, int (*add)(struct rig *r))
{
    for (unsigned n = 0;; n++) {
        int status = add(r);
        if (status == SPOOL_E_FULL)
            return n;
        if (status != SPOOL_OK)
            fail_msg("%s: %s", spool_strerror(status), the_error.text);
    }
}

struct counts {
    size_t seals, ranges;
};

static int count_seal(void *arg, const struct spool_seal *seal)
{
    struct counts *c = arg;
    c->seals++;
    c->ranges += seal->range_count;
    return 0;
}

/* Nothing of a commit that was refused is there. */
static void check_counts(struct rig *r)
{
    struct counts c = {0};
    struct spool_range *acked = NULL;
    uint64_t next = 0;
    size_t n = 0;

    check_ok(spool_seals(r->spool, r->id, count_seal, &c, &the_error));
    assert_int_equal(c.seals, r->next_batch - r->first_batch);
    check_ok(spool_next_batch(r->spool, r->id, &next, &the_error));
    assert_int_equal(next, r->next_batch);
    check_ok(spool_acked(r->spool, r->id, 1, &acked, &n, &the_error));
    free(acked);
}

/* The last room: seals find none, with or without an acknowledgement beside them; acknowledgements do. */
static void drain(struct rig *r)
{
    struct spool_range ranges[2];
    struct spool_seal seal;
    struct spool_change both[2] = {ack_change(r, r->first_batch), seal_change(r, &seal, ranges)};

    assert_int_equal(spool_commit(r->spool, both, 2, &the_error), SPOOL_E_FULL);
    check_counts(r);
    while (r->first_batch < r->next_batch)
        acknowledge(r);
    check_counts(r);
}

static void test_meta_at_its_largest(void **state)
{
    struct rig r;
    unsigned names, seals;
    uint64_t bytes;

    (void)state;
    rig_init(&r, make_directory(), 0, LARGEST);
    names = until_full(&r, add_name);
    assert_non_null(strstr(the_error.text, "meta.mdb is at its largest possible size"));
    assert_true(names > 100);
    assert_true(file_bytes(&r, "meta.mdb") <= LARGEST);
    for (int round = 0; round < 6; round++) {
        bytes = file_bytes(&r, "meta.mdb");
        seals = until_full(&r, add_seal);
        print_message("%u names, %u seals, %llu bytes\n", r.names, seals,
                      (unsigned long long)file_bytes(&r, "meta.mdb"));
        assert_true(seals > 20);
        if (bytes < LARGEST / 2 * 3)
            bytes = LARGEST / 2 * 3;
        assert_true(file_bytes(&r, "meta.mdb") <= bytes);
        drain(&r);
        assert_true(file_bytes(&r, "meta.mdb") <= LARGEST * 2);
        if (round % 2 == 0)
            continue;
        spool_close(r.spool);
        rig_open(&r, 0, LARGEST);
    }
    rig_end(&r);
    remove_tree(r.path);
    free(r.path);
}

/* A seal that takes the place of another one is what a batch can't end without. */
static void test_a_seal_that_replaces(void **state)
{
    struct spool_range ranges[2];
    struct spool_seal seal;
    struct spool_change changes[2];
    struct rig r;

    (void)state;
    rig_init(&r, make_directory(), 0, LARGEST);
    (void)until_full(&r, add_name);
    (void)until_full(&r, add_seal);
    for (int i = 0; i < 10; i++) {
        changes[0] = (struct spool_change){
            .kind = SPOOL_CHANGE_UNSEAL, .stream = r.id, .batch = r.first_batch};
        changes[1] = seal_change(&r, &seal, ranges);
        changes[1].replaces = true;
        check_ok(spool_commit(r.spool, changes, 2, &the_error));
        r.first_batch++;
        r.next_batch++;
        r.sealed += 2;
    }
    check_counts(&r);
    while (r.first_batch < r.next_batch)
        acknowledge(&r);
    rig_end(&r);
    remove_tree(r.path);
    free(r.path);
}

/* Removed segments give their room to seals, though nothing is acknowledged in between. */
static void test_removed_segments_make_room(void **state)
{
    const struct spool_segment_spec other = {"schema", 6, "db.other"};
    struct spool_range ranges[BLOCKS];
    struct spool_change change = {
        .kind = SPOOL_CHANGE_DISCARD, .segment = 1, .ranges = ranges, .range_count = BLOCKS};
    struct rig r;
    unsigned seals;

    (void)state;
    rig_init(&r, make_directory(), 0, LARGEST);
    for (unsigned i = 0; i < BLOCKS; i++)
        ranges[i] = (struct spool_range){i + 1, 0, ROWS};
    change.stream = r.id;
    check_ok(spool_commit(r.spool, &change, 1, &the_error));
    check_ok(spool_stream_configure(r.stream, &other, &the_error));
    append_one(r.stream, r.origin, 2, 10);
    (void)until_full(&r, add_name);
    (void)until_full(&r, add_seal);
    check_ok(spool_segment_remove(r.stream, 1, &the_error));
    seals = until_full(&r, add_seal);
    assert_true(seals > 2);
    spool_close(r.spool);
    remove_tree(r.path);
    free(r.path);
}

static void remove_letters(struct rig *r, unsigned first, unsigned end, unsigned step)
{
    struct spool_dead_change *changes = calloc(r->letters, sizeof(*changes));
    size_t n = 0, changed = 0;

    assert_non_null(changes);
    for (unsigned i = first; i < end; i += step)
        changes[n++] =
            (struct spool_dead_change){.kind = SPOOL_DEAD_REMOVE, .place = {r->origin, (int64_t)i}};
    check_ok(spool_dead_change(r->spool, "s", changes, n, &changed, &the_error));
    assert_int_equal(changed, n);
    free(changes);
}

static void test_dead_at_its_largest(void **state)
{
    uint64_t letters = 0, bytes = 0;
    unsigned first, again;
    struct rig r;

    (void)state;
    rig_init(&r, make_directory(), 0, LARGEST);
    first = until_full(&r, add_letter);
    assert_non_null(strstr(the_error.text, "dead.mdb is at its largest possible size"));
    assert_true(first > 200 && file_bytes(&r, "dead.mdb") <= LARGEST);
    /* What one commit gives up serves the next one. */
    remove_letters(&r, first / 3 * 2, first, 1);
    check_ok(add_letters(&r, first / 4));
    (void)until_full(&r, add_letter);
    first = first / 3 * 2;
    remove_letters(&r, 0, first, 7);
    remove_letters(&r, 1, first, 7);
    again = until_full(&r, add_letter);
    assert_true(again > first / 7);
    check_ok(spool_dead_count(r.spool, "s", &letters, &bytes, &the_error));
    assert_true(letters > first / 7 * 6);
    rig_end(&r);
    remove_tree(r.path);
    free(r.path);
}

/* What no room is ever enough for is another answer. */
static void test_never(void **state)
{
    const struct spool_dead large = {.stream = "s",
                                     .origin = 1,
                                     .offset = 77,
                                     .record = long_text, /* not looked at */
                                     .record_size = (size_t)600 << 20};
    struct rig r;
    uint32_t id = 0;

    (void)state;
    rig_init(&r, make_directory(), 0, 0);
    assert_int_equal(spool_dead_put(r.spool, &large, 1, NULL, &the_error), SPOOL_E_LIMIT);
    assert_non_null(strstr(the_error.text, "offset 77 of origin 1"));
    check_ok(add_letters(&r, 1));
    atomic_store(&r.spool->origin_count, ORIGINS_CHUNK * ORIGINS_CHUNKS);
    assert_int_equal(spool_origin(r.spool, "new", 0, &id, NULL, &the_error), SPOOL_E_LIMIT);
    assert_non_null(strstr(the_error.text, "too many origins"));
    check_ok(spool_origin(r.spool, "o", 0, &id, NULL, &the_error));
    assert_int_equal(id, r.origin);
    atomic_store(&r.spool->origin_count, r.origin);
    rig_end(&r);
    remove_tree(r.path);
    free(r.path);
}

/* --- the disk is full ----------------------------------------------------------------------- */

static void fill_disk(const char *path, const char *name)
{
    static const char zeros[4096];
    char *file = path_join(path, name);
    int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    while (write(fd, zeros, sizeof(zeros)) > 0)
        continue;
    close(fd);
    free(file);
}

/* Both files are larger than what was preallocated for them at first. */
static void test_the_disk_is_full(void **state)
{
    char *mount_path = make_directory(), *path = path_join(mount_path, "spool");
    unsigned names, seals, letters;
    struct rig r;

    (void)state;
    if (mount("spool-test", mount_path, "tmpfs", 0, "size=16m") < 0) {
        print_message("no right to mount a small file system\n");
        remove_tree(mount_path);
        free(mount_path);
        free(path);
        skip();
    }
    rig_init(&r, path, 1 << 20, 0);
    while (file_bytes(&r, "meta.mdb") < 2 << 20)
        check_ok(add_name(&r));
    while (file_bytes(&r, "dead.mdb") < 2 << 20)
        check_ok(add_letter(&r));
    fill_disk(mount_path, "filler");
    for (int round = 0; round < 4; round++) {
        names = until_full(&r, add_name);
        letters = until_full(&r, add_letter);
        seals = until_full(&r, add_seal);
        print_message("%u names, %u letters, %u seals on the full disk\n", names, letters, seals);
        assert_true(seals > 10);
        drain(&r);
        remove_letters(&r, (unsigned)round, r.letters, 7);
        if (round % 2 == 0)
            continue;
        spool_close(r.spool);
        rig_open(&r, 1 << 20, 0);
    }
    rig_end(&r);
    assert_int_equal(umount(mount_path), 0);
    remove_tree(mount_path);
    free(mount_path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_meta_at_its_largest),
        cmocka_unit_test(test_a_seal_that_replaces),
        cmocka_unit_test(test_removed_segments_make_room),
        cmocka_unit_test(test_dead_at_its_largest),
        cmocka_unit_test(test_never),
        cmocka_unit_test(test_the_disk_is_full),
    };
    return cmocka_run_group_tests_name("spool_room", tests, NULL, NULL);
}
