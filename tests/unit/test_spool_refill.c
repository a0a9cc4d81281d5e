/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks that take the place of damaged ones, and the notes that remember what is missing. */
#include "spool/spool_int.h"
#include "spool_data.h"

static int append_at(struct spool_stream *stream, uint32_t origin, int64_t first, uint32_t rows,
                     uint32_t flags, struct spool_block_ref *ref)
{
    struct spool_block b = next_block(stream, origin, rows, 500);
    size_t appended = 0;
    int status;

    b.first_offset = first;
    b.last_offset = first + rows - 1;
    b.flags |= flags;
    status = spool_stream_append(stream, &b, 1, ref, &appended, &the_error);
    free((void *)(uintptr_t)b.frames);
    return status;
}

static int64_t high_of(struct spool_stream *stream, uint32_t origin)
{
    int64_t high = -1;
    check_ok(spool_stream_high(stream, origin, &high));
    return high;
}

static void test_refill(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 1 << 20);
    struct spool_stream *stream = open_stream(spool, "s");
    const struct spool_segment_spec other = {"other", 5, "db.table"};
    uint32_t origin = open_origin(spool, "o"), fresh = open_origin(spool, "p");
    struct spool_block_ref refs[3], *found = NULL;
    size_t count = 0;

    (void)state;
    check_ok(append_at(stream, origin, 0, 10, 0, &refs[0]));
    check_ok(append_at(stream, origin, 10, 10, 0, &refs[1]));
    assert_int_equal(append_at(stream, origin, 5, 3, 0, &refs[2]), SPOOL_E_INVALID);
    assert_int_equal(append_at(stream, origin, 15, 10, SPOOL_BLOCK_REFILL, &refs[2]),
                     SPOOL_E_INVALID);
    assert_int_equal(append_at(stream, fresh, 0, 1, SPOOL_BLOCK_REFILL, &refs[2]), SPOOL_E_INVALID);
    check_ok(append_at(stream, origin, 0, 10, SPOOL_BLOCK_REFILL | SPOOL_BLOCK_SUSPECT, &refs[2]));
    assert_int_equal(high_of(stream, origin), 19);
    check_verified(spool);
    spool_close(spool);

    /* The same after opening again, and in the next segment. */
    spool = open_spool(path, 1 << 20);
    stream = open_stream(spool, "s");
    assert_int_equal(high_of(stream, origin), 19);
    check_ok(spool_segment_blocks(stream, 1, &found, &count, &the_error));
    assert_int_equal(count, 3);
    assert_int_equal(found[2].flags, SPOOL_BLOCK_NATIVE | SPOOL_BLOCK_REFILL | SPOOL_BLOCK_SUSPECT);
    free(found);
    check_ok(spool_stream_configure(stream, &other, &the_error));
    check_ok(append_at(stream, origin, 10, 10, SPOOL_BLOCK_REFILL, &refs[2]));
    assert_int_equal(refs[2].segment, 2);
    assert_int_equal(high_of(stream, origin), 19);
    check_ok(append_at(stream, origin, 20, 1, 0, &refs[2]));
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static int take_note(void *arg, const char *key, const void *value, size_t size)
{
    char *text = arg;
    size_t n = strlen(text);
    snprintf(text + n, 200 - n, "%s=%.*s ", key, (int)size, (const char *)value);
    return strcmp(key, "a/3") == 0 ? 7 : 0;
}

static void test_notes_by_prefix(void **state)
{
    static const char *const keys[] = {"a/1", "a/2", "b/1", "a", "a/3", "a/4"};
    char *path = make_directory(), text[200] = "";
    struct spool *spool = open_spool(path, 0);

    (void)state;
    for (size_t i = 0; i < 6; i++) {
        const struct spool_change change = {
            .kind = SPOOL_CHANGE_PUT, .key = keys[i], .value = keys[i], .value_size = 1};
        check_ok(spool_commit(spool, &change, 1, &the_error));
    }
    assert_int_equal(spool_notes(spool, "a/", take_note, text, &the_error), 7);
    assert_string_equal(text, "a/1=a a/2=a a/3=a ");
    *text = 0;
    assert_int_equal(spool_notes(spool, "b", take_note, text, &the_error), 0);
    assert_string_equal(text, "b/1=b ");
    *text = 0;
    assert_int_equal(spool_notes(spool, "c", take_note, text, &the_error), 0);
    assert_string_equal(text, "");
    spool_close(spool);
    remove_tree(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refill),
        cmocka_unit_test(test_notes_by_prefix),
    };
    return cmocka_run_group_tests_name("spool_refill", tests, NULL, NULL);
}
