/* SPDX-License-Identifier: Apache-2.0 */
/* The public API of libspool where nothing goes wrong, and what it refuses. */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/limits.h"
#include "spool_data.h"

static int open_code(const char *path, bool create, bool read_only)
{
    const struct spool_options options = {.path = path, .create = create, .read_only = read_only};
    struct spool *spool = NULL;
    int status = spool_open(&options, &spool, &the_error);
    spool_close(spool);
    return status;
}

static void test_open(void **state)
{
    char *path = make_directory(), *inner = NULL;
    struct spool *spool;
    char uuid[40];

    (void)state;
    assert_true(asprintf(&inner, "%s/a", path) > 0);
    assert_int_equal(open_code(inner, false, false), SPOOL_E_NOT_FOUND);
    assert_int_equal(access(inner, F_OK), -1);
    assert_int_equal(open_code(path, false, false), SPOOL_E_NOT_FOUND);
    assert_int_equal(open_code(path, true, true), SPOOL_E_NOT_FOUND);
    spool = open_spool(inner, 0);
    snprintf(uuid, sizeof(uuid), "%s", spool_uuid_text(spool));
    assert_int_equal(strlen(uuid), 36);
    spool_close(spool);
    spool = open_spool(inner, 0);
    assert_string_equal(uuid, spool_uuid_text(spool));
    check_verified(spool);
    spool_close(spool);
    assert_int_equal(open_code(inner, false, true), SPOOL_OK);
    remove_tree(path);
    free(inner);
    free(path);
}

static void test_locked(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    char pid[32];
    pid_t child;
    int status, code = 0, pipes[2];

    (void)state;
    assert_int_equal(pipe(pipes), 0);
    fflush(NULL);
    child = fork();
    if (!child) {
        code = open_code(path, true, false);
        if (write(pipes[1], &code, sizeof(code)) == sizeof(code))
            raise(SIGKILL); /* an exit would let a checker of leaks count the parent's memory */
        _exit(1);
    }
    assert_int_equal(read(pipes[0], &code, sizeof(code)), sizeof(code));
    assert_int_equal(code, SPOOL_E_LOCKED);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    close(pipes[0]);
    close(pipes[1]);
    /* In one process too, and the message names the holder. */
    assert_int_equal(open_code(path, false, true), SPOOL_E_LOCKED);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    assert_non_null(strstr(the_error.text, pid));
    spool_close(spool);
    assert_int_equal(open_code(path, false, false), SPOOL_OK);
    remove_tree(path);
    free(path);
}

static void test_append_and_read(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "events");
    uint32_t a = open_origin(spool, "topic/0"), b = open_origin(spool, "topic/1");
    const size_t sizes[] = {1, 100, 1900, 1972, 1973, 2100, 4000, 4080, 30000, 300000, 3000000};
    struct spool_block_ref refs[32], *listed = NULL;
    size_t n = 0, count = 0;
    int64_t high = 0;

    (void)state;
    assert_int_equal(spool_stream_high(stream, a, &high), SPOOL_E_NOT_FOUND);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        refs[n++] = append_one(stream, i % 2 ? a : b, 10, sizes[i]);
    refs[n++] = append_one(stream, a, 0, 0);
    for (int again = 0; again < 2; again++) {
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(refs[i].sequence, i + 1);
            check_block(stream, &refs[i]);
        }
        check_ok(spool_segment_blocks(stream, 1, &listed, &count, &the_error));
        assert_int_equal(count, n);
        assert_memory_equal(listed, refs, n * sizeof(refs[0]));
        free(listed);
        check_ok(spool_stream_high(stream, a, &high));
        assert_int_equal(high, 50);
        check_ok(spool_stream_high(stream, b, &high));
        assert_int_equal(high, 59);
        check_verified(spool);
        spool_close(spool);
        spool = open_spool(path, 0);
        stream = open_stream(spool, "events");
    }
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static void test_offset_lists(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "events");
    uint32_t origin = open_origin(spool, "o");
    const int64_t gaps[] = {-5, 0, 7, 7, 1000000, INT64_C(1) << 60};
    const int64_t dense[] = {INT64_MAX - 2, INT64_MAX - 1, INT64_MAX};
    struct spool_block blocks[2] = {{.origin = origin,
                                     .rows = 6,
                                     .first_offset = -9,
                                     .last_offset = (INT64_C(1) << 60) + 9,
                                     .offsets = gaps,
                                     .frames = "gaps",
                                     .frames_size = 4},
                                    {.origin = origin,
                                     .rows = 3,
                                     .first_offset = INT64_MAX - 2,
                                     .last_offset = INT64_MAX,
                                     .offsets = dense,
                                     .frames = "dense",
                                     .frames_size = 5}};
    struct spool_block_ref refs[2];
    struct spool_reader *reader = NULL;
    int64_t *offsets = NULL;
    void *payload = NULL;
    size_t n = 0, size = 0;

    (void)state;
    check_ok(spool_stream_append(stream, blocks, 2, refs, &n, &the_error));
    check_ok(spool_reader_open(stream, 1, &reader, &the_error));
    check_ok(spool_reader_block(reader, &refs[0], &payload, &size, &offsets, &the_error));
    assert_int_equal(size, 4);
    assert_memory_equal(payload, "gaps", 4);
    assert_memory_equal(offsets, gaps, sizeof(gaps));
    free(offsets);
    free(payload);
    /* A list that says nothing new is not stored. */
    check_ok(spool_reader_block(reader, &refs[1], &payload, &size, &offsets, &the_error));
    assert_null(offsets);
    free(payload);
    spool_reader_close(reader);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static void test_append_refuses(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = NULL;
    uint32_t o = open_origin(spool, "o");
    const int64_t down[] = {1, 3, 2, 4}, outside[] = {1, 2, 3, 9};
    const struct spool_block good = {.origin = o,
                                     .rows = 4,
                                     .first_offset = 1,
                                     .last_offset = 4,
                                     .frames = "x",
                                     .frames_size = 1};
    struct spool_block b[2];
    struct spool_block_ref refs[2];
    size_t n = 7;

    (void)state;
    check_ok(spool_stream_open(spool, "s", &stream, &the_error));
    assert_int_equal(spool_stream_append(stream, &good, 1, refs, &n, &the_error), SPOOL_E_INVALID);
    assert_int_equal(n, 0);
    spool_stream_close(stream);
    stream = open_stream(spool, "s");
    check_ok(spool_stream_append(stream, &good, 1, refs, &n, &the_error));

#define refused(change, code)                                                                      \
    do {                                                                                           \
        b[0] = good;                                                                               \
        b[0].first_offset = 5;                                                                     \
        b[0].last_offset = 8;                                                                      \
        change;                                                                                    \
        assert_int_equal(spool_stream_append(stream, b, 1, refs, &n, &the_error), code);           \
        assert_int_equal(n, 0);                                                                    \
    } while (0)
    refused(b[0].first_offset = 4; b[0].last_offset = 7, SPOOL_E_INVALID); /* does not grow */
    refused(b[0].origin = 99, SPOOL_E_INVALID);
    refused(b[0].origin = 0, SPOOL_E_INVALID);
    refused(b[0].last_offset = 4, SPOOL_E_INVALID);
    refused(b[0].rows = 3, SPOOL_E_INVALID);
    refused(b[0].rows = 0, SPOOL_E_INVALID);
    refused(b[0].frames_size = 0, SPOOL_E_INVALID);
    refused(b[0].frames_size = LIMIT_BLOCK_BYTES + 1, SPOOL_E_LIMIT);
    refused(b[0].first_offset = 1; b[0].offsets = down, SPOOL_E_INVALID);
    refused(b[0].offsets = outside, SPOOL_E_INVALID);
#undef refused
    /* Two blocks of one call must follow each other too, and then neither is stored. */
    b[0] = b[1] = good;
    b[0].first_offset = b[1].first_offset = 5;
    b[0].last_offset = b[1].last_offset = 8;
    assert_int_equal(spool_stream_append(stream, b, 2, refs, &n, &the_error), SPOOL_E_INVALID);
    b[1].first_offset = 9;
    b[1].last_offset = 12;
    check_ok(spool_stream_append(stream, b, 2, refs, &n, &the_error));
    assert_int_equal(refs[1].sequence, 3);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static void test_origins(void **state)
{
    char *path = make_directory(), long_name[420], *name = NULL;
    struct spool *spool = open_spool(path, 0);
    uint32_t id[5], again = 0, epoch = 0;

    (void)state;
    memset(long_name, 'x', sizeof(long_name));
    long_name[401] = 0;
    assert_int_equal(spool_origin(spool, long_name, 0, &again, NULL, &the_error), SPOOL_E_INVALID);
    long_name[400] = 0;
    id[0] = open_origin(spool, "topic/1");
    id[1] = open_origin(spool, "topic/10");
    id[2] = open_origin(spool, long_name);
    check_ok(spool_origin(spool, "topic/1", 5, &id[3], &epoch, &the_error));
    assert_int_equal(epoch, 5);
    check_ok(spool_origin(spool, "topic/1", 3, &id[4], &epoch, &the_error));
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < i; j++)
            assert_int_not_equal(id[i], id[j]);
    for (int round = 0; round < 2; round++) {
        check_ok(spool_origin(spool, "topic/1", 0, &again, &epoch, &the_error));
        assert_int_equal(again, id[3]); /* the latest epoch */
        assert_int_equal(epoch, 5);
        check_ok(spool_origin(spool, "topic/1", 1, &again, NULL, &the_error));
        assert_int_equal(again, id[0]);
        check_ok(spool_origin(spool, "topic/10", 0, &again, &epoch, &the_error));
        assert_int_equal(again, id[1]);
        assert_int_equal(epoch, 1);
        check_ok(spool_origin_name(spool, id[2], &name, &epoch, &the_error));
        assert_string_equal(name, long_name);
        free(name);
        assert_int_equal(spool_origin_name(spool, 6, &name, &epoch, &the_error), SPOOL_E_NOT_FOUND);
        spool_close(spool);
        spool = open_spool(path, 0);
    }
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* An epoch that begins, and a note of what that means, come together or not at all. */
static void test_an_origin_begins_with_its_note(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_change note = {.kind = SPOOL_CHANGE_PUT, .key = "", .value = "1", .value_size = 1};
    uint32_t id = 0, again = 0, epoch = 0;
    void *value = NULL;
    size_t size = 0;

    (void)state;
    (void)open_origin(spool, "topic/1");
    assert_int_equal(spool_origin_begin(spool, "topic/1", 2, &note, &id, &the_error),
                     SPOOL_E_INVALID); /* such a key is none */
    check_ok(spool_origin(spool, "topic/1", 0, &id, &epoch, &the_error));
    assert_int_equal(epoch, 1);
    note.key = "a";
    check_ok(spool_origin_begin(spool, "topic/1", 2, &note, &id, &the_error));
    note.key = "b";
    check_ok(spool_origin_begin(spool, "topic/1", 2, &note, &again, &the_error));
    assert_int_equal(again, id);
    spool_close(spool);
    spool = open_spool(path, 0);
    check_ok(spool_origin(spool, "topic/1", 0, &again, &epoch, &the_error));
    assert_int_equal(again, id);
    assert_int_equal(epoch, 2);
    check_ok(spool_note_get(spool, "a", &value, &size, &the_error));
    free(value);
    assert_int_equal(spool_note_get(spool, "b", &value, &size, &the_error), SPOOL_E_NOT_FOUND);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static void test_notes(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    const size_t large = 3 << 20;
    uint8_t *bytes = calloc(1, large);
    struct spool_change changes[3] = {
        {.kind = SPOOL_CHANGE_PUT, .key = "schema/a", .value = "abc", .value_size = 3},
        {.kind = SPOOL_CHANGE_PUT, .key = "large", .value = bytes, .value_size = large},
        {.kind = SPOOL_CHANGE_PUT, .key = "empty", .value = NULL, .value_size = 0}};
    void *value = NULL;
    size_t size = 0;

    (void)state;
    assert_non_null(bytes);
    fill_payload(bytes, large, 1, 1);
    check_ok(spool_commit(spool, changes, 3, &the_error));
    spool_close(spool);
    spool = open_spool(path, 0);
    check_ok(spool_note_get(spool, "large", &value, &size, &the_error));
    assert_int_equal(size, large);
    assert_memory_equal(value, bytes, large);
    free(value);
    check_ok(spool_note_get(spool, "empty", &value, &size, &the_error));
    assert_int_equal(size, 0);
    free(value);
    /* All or nothing: the second change is not possible. */
    changes[0] = (struct spool_change){.kind = SPOOL_CHANGE_DELETE, .key = "schema/a"};
    changes[1] = (struct spool_change){.kind = SPOOL_CHANGE_ACK, .stream = 1, .batch = 9};
    assert_int_equal(spool_commit(spool, changes, 2, &the_error), SPOOL_E_NOT_FOUND);
    check_ok(spool_note_get(spool, "schema/a", &value, &size, &the_error));
    assert_memory_equal(value, "abc", 3);
    free(value);
    check_ok(spool_commit(spool, changes, 1, &the_error));
    assert_int_equal(spool_note_get(spool, "schema/a", &value, &size, &the_error),
                     SPOOL_E_NOT_FOUND);
    check_verified(spool);
    free(bytes);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* --- dead letters --------------------------------------------------------------------------- */

static struct spool_dead letter(const char *stream, uint32_t origin, int64_t offset)
{
    return (struct spool_dead){
        .stream = stream,
        .origin = origin,
        .offset = offset,
        .code = -12,
        .reason_name = "type_mismatch",
        .reason = "a text is not a number",
        .column = "id",
        .position = 17,
        .attempts = 2,
        .dead_ms = 1700000000123,
        .received_ms = 1700000000100,
        .timestamp_ms = -1,
        .record = "{\"id\":\"x\0y\"}",
        .record_size = 12,
        .record_full_size = 12,
        .key = "k",
        .key_size = 1,
        .key_present = true,
        .headers = "\0\0\0\0",
        .headers_size = 4,
    };
}

struct collected {
    size_t count;
    int64_t offsets[64];
    uint32_t origins[64];
};

static int collect(void *arg, const struct spool_dead *d)
{
    struct collected *c = arg;
    assert_string_equal(d->reason_name, "type_mismatch");
    assert_string_equal(d->reason, "a text is not a number");
    assert_string_equal(d->column, "id");
    assert_int_equal(d->code, -12);
    assert_int_equal(d->record_size, 12);
    assert_memory_equal(d->record, "{\"id\":\"x\0y\"}", 12);
    assert_int_equal(d->timestamp_ms, -1);
    assert_true(d->key_present);
    assert_int_equal(d->headers_size, 4);
    assert_string_equal(d->origin_name, d->origin == 1 ? "o/1" : "o/2");
    c->offsets[c->count] = d->offset;
    c->origins[c->count++] = d->origin;
    return d->offset == 4711 ? 42 : 0;
}

static void test_dead(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    uint32_t o1 = open_origin(spool, "o/1"), o2 = open_origin(spool, "o/2");
    struct spool_dead letters[] = {letter("b", o1, 10), letter("b", o1, -10), letter("b", o2, 5),
                                   letter("ab", o1, INT64_MAX), letter("b", o1, 0)};
    const struct spool_dead_change gone = {.kind = SPOOL_DEAD_REMOVE, .place = {o1, 0}};
    struct collected got = {0};
    uint64_t count = 0, bytes = 0, one;
    size_t added = 0, changed = 0;

    (void)state;
    check_ok(spool_dead_put(spool, letters, 5, &added, &the_error));
    assert_int_equal(added, 5);
    check_ok(spool_dead_put(spool, letters, 5, &added, &the_error)); /* a crash puts them again */
    assert_int_equal(added, 0);
    spool_close(spool);
    spool = open_spool(path, 0);
    check_ok(spool_dead_each(spool, "b", collect, &got, &the_error));
    assert_int_equal(got.count, 4);
    assert_int_equal(got.offsets[0], -10);
    assert_int_equal(got.offsets[1], 0);
    assert_int_equal(got.offsets[2], 10);
    assert_int_equal(got.offsets[3], 5);
    assert_int_equal(got.origins[3], o2);
    got.count = 0;
    check_ok(spool_dead_each(spool, NULL, collect, &got, &the_error));
    assert_int_equal(got.count, 5);
    check_ok(spool_dead_count(spool, "ab", &count, &one, &the_error));
    assert_int_equal(count, 1);
    check_ok(spool_dead_count(spool, "b", &count, &bytes, &the_error));
    assert_int_equal(count, 4);
    assert_int_equal(bytes, 4 * one);
    check_ok(spool_dead_change(spool, "b", &gone, 1, &changed, &the_error));
    assert_int_equal(changed, 1);
    check_ok(spool_dead_change(spool, "b", &gone, 1, &changed, &the_error));
    assert_int_equal(changed, 0);
    check_ok(spool_dead_count(spool, "b", &count, &bytes, &the_error));
    assert_int_equal(count, 3);
    assert_int_equal(bytes, 3 * one);
    check_verified(spool);
    /* each ends the walk with its own value. */
    letters[0].offset = 4711;
    check_ok(spool_dead_put(spool, letters, 1, &added, &the_error));
    got.count = 0;
    assert_int_equal(spool_dead_each(spool, "b", collect, &got, &the_error), 42);
    assert_int_equal(got.count, 3);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* Letters of one stream within a bound: all of them or none, and those that are there take nothing. */
static void test_dead_all_or_none(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    uint32_t o1 = open_origin(spool, "o/1");
    struct spool_dead letters[] = {letter("b", o1, 1), letter("b", o1, 2), letter("b", o1, 3)};
    uint64_t count = 0, bytes = 0, two;
    size_t added = 0;

    (void)state;
    check_ok(spool_dead_put(spool, letters, 1, NULL, &the_error));
    check_ok(spool_dead_count(spool, "b", &count, &two, &the_error));
    two *= 2;
    assert_int_equal(spool_dead_put_all(spool, letters, 3, two, &added, &the_error), SPOOL_E_LIMIT);
    assert_int_equal(added, 0);
    check_ok(spool_dead_count(spool, "b", &count, &bytes, &the_error));
    assert_int_equal(count, 1);
    assert_int_equal(bytes, two / 2);
    check_ok(spool_dead_put_all(spool, letters, 2, two, &added, &the_error));
    assert_int_equal(added, 1);
    check_ok(spool_dead_put_all(spool, letters, 2, two - 1, &added, &the_error));
    assert_int_equal(added, 0);
    letters[2].stream = "c";
    assert_int_equal(spool_dead_put_all(spool, letters, 3, two, &added, &the_error),
                     SPOOL_E_INVALID);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* More than the first map of dead.mdb holds, so it must grow. */
struct seen {
    struct spool_dead last;
    size_t count;
    int64_t offsets[16];
    char reason[64], column[16];
};

static int see(void *arg, const struct spool_dead *d)
{
    struct seen *seen = arg;

    seen->last = *d;
    snprintf(seen->reason, sizeof(seen->reason), "%s/%s", d->reason_name, d->reason);
    snprintf(seen->column, sizeof(seen->column), "%s", d->column);
    assert_int_equal(d->record_size, 12);
    assert_memory_equal(d->record, "{\"id\":\"x\0y\"}", 12);
    assert_int_equal(d->headers_size, 4);
    seen->offsets[seen->count++] = d->offset;
    return 0;
}

/* What a replay and the destinations change of a letter, and where a walk may begin. */
static void test_dead_changes(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    uint32_t o1 = open_origin(spool, "o/1"), o2 = open_origin(spool, "o/2");
    struct spool_dead letters[] = {letter("b", o1, 10), letter("b", o1, 20), letter("b", o2, 5),
                                   letter("c", o1, 0)};
    const struct spool_dead_place places[] = {{o2, 5}, {o1, 11}, {o1, 10}};
    const struct spool_dead_change changes[] = {
        {.kind = SPOOL_DEAD_MARK, .place = {o1, 10}, .flags = SPOOL_DEAD_IN_TOPIC},
        {.kind = SPOOL_DEAD_REMOVE, .place = {o1, 9}}, /* there is none */
        {.kind = SPOOL_DEAD_REFUSE,
         .place = {o1, 10},
         .now_ms = 1700000009999,
         .code = 5,
         .reason_name = "range",
         .reason = "a longer reason than the one before it was",
         .column = "v",
         .position = 3},
        {.kind = SPOOL_DEAD_REMOVE, .place = {o1, 20}},
    };
    struct seen seen = {0};
    uint64_t count = 0, bytes = 0, before = 0;
    size_t changed = 0;

    (void)state;
    check_ok(spool_dead_put(spool, letters, 4, NULL, &the_error));
    check_ok(spool_dead_count(spool, "b", &count, &before, &the_error));
    check_ok(spool_dead_get(spool, "b", &places[2], 1, see, &seen, &the_error));
    assert_int_equal(seen.last.last_ms, seen.last.dead_ms);
    check_ok(spool_dead_change(spool, "b", changes, 4, &changed, &the_error));
    assert_int_equal(changed, 3);
    spool_close(spool);
    spool = open_spool(path, 0);
    check_verified(spool);
    check_ok(spool_dead_count(spool, "b", &count, &bytes, &the_error));
    assert_int_equal(count, 2);
    assert_true(bytes < before && bytes > before / 2);
    seen.count = 0;
    check_ok(spool_dead_get(spool, "b", places, 3, see, &seen, &the_error));
    assert_int_equal(seen.count, 2);
    assert_int_equal(seen.offsets[0], 5);
    assert_int_equal(seen.last.flags, SPOOL_DEAD_IN_TOPIC | SPOOL_DEAD_RETRIED);
    assert_int_equal(seen.last.attempts, 3);
    assert_int_equal(seen.last.code, 5);
    assert_int_equal(seen.last.position, 3);
    assert_int_equal(seen.last.last_ms, 1700000009999);
    assert_int_equal(seen.last.dead_ms, 1700000000123);
    assert_string_equal(seen.reason, "range/a longer reason than the one before it was");
    assert_string_equal(seen.column, "v");
    seen.count = 0;
    check_ok(spool_dead_each_from(spool, "b", (struct spool_dead_place){o1, 11}, see, &seen,
                                  &the_error));
    assert_int_equal(seen.count, 1); /* not c's, which come behind it */
    assert_int_equal(seen.offsets[0], 5);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

static void test_dead_grows(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_dead d[4];
    size_t added = 0, size = 9 << 20;
    uint8_t *record = calloc(1, size);
    uint64_t count = 0, bytes = 0;

    (void)state;
    assert_non_null(record);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++) {
            d[i] = letter("b", open_origin(spool, "o/1"), 4 * round + i);
            d[i].record = record;
            d[i].record_size = size;
        }
        check_ok(spool_dead_put(spool, d, 4, &added, &the_error));
        assert_int_equal(added, 4);
    }
    check_ok(spool_dead_count(spool, "b", &count, &bytes, &the_error));
    assert_int_equal(count, 12);
    assert_true(bytes > 12 * size);
    check_verified(spool);
    spool_close(spool);
    spool = open_spool(path, 0);
    check_ok(spool_dead_count(spool, "b", &count, &bytes, &the_error));
    assert_int_equal(count, 12);
    spool_close(spool);
    free(record);
    remove_tree(path);
    free(path);
}

/* --- the rest ------------------------------------------------------------------------------- */

static uint64_t tree_hash(const char *path)
{
    char *command = NULL;
    char line[128] = "";
    FILE *pipe;

    assert_true(asprintf(&command,
                         "cd %s && find . -type f | sort | xargs stat -c '%%n %%s %%Y %%b' | cat - "
                         "$(find . -type f | sort) | cksum",
                         path) > 0);
    pipe = popen(command, "r");
    assert_non_null(pipe);
    assert_non_null(fgets(line, sizeof(line), pipe));
    pclose(pipe);
    free(command);
    return strtoull(line, NULL, 10);
}

static void test_read_only(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "events");
    uint32_t origin = open_origin(spool, "o");
    struct spool_block_ref ref = append_one(stream, origin, 3, 5000), *refs = NULL, out;
    const struct spool_options options = {.path = path, .read_only = true};
    struct spool_block b;
    size_t count = 0, n;
    uint32_t id;
    uint64_t before;

    (void)state;
    spool_close(spool);
    before = tree_hash(path);
    check_ok(spool_open(&options, &spool, &the_error));
    check_ok(spool_stream_open(spool, "events", &stream, &the_error));
    check_ok(spool_segment_blocks(stream, 1, &refs, &count, &the_error));
    assert_int_equal(count, 1);
    assert_memory_equal(refs, &ref, sizeof(ref));
    check_block(stream, refs);
    free(refs);
    b = next_block(stream, origin, 3, 10);
    assert_int_equal(spool_stream_append(stream, &b, 1, &out, &n, &the_error), SPOOL_E_INVALID);
    free((void *)(uintptr_t)b.frames);
    assert_int_equal(spool_commit(spool, NULL, 0, &the_error), SPOOL_E_INVALID);
    assert_int_equal(spool_origin(spool, "new", 0, &id, NULL, &the_error), SPOOL_E_INVALID);
    check_ok(spool_origin(spool, "o", 0, &id, NULL, &the_error));
    assert_int_equal(spool_segment_remove(stream, 1, &the_error), SPOOL_E_INVALID);
    assert_int_equal(spool_stream_open(spool, "other", &stream, &the_error), SPOOL_E_NOT_FOUND);
    check_verified(spool);
    spool_close(spool);
    assert_int_equal(tree_hash(path), before);
    remove_tree(path);
    free(path);
}

static void test_names_and_usage(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *a = open_stream(spool, "a-1"), *b = NULL;
    struct spool_usage before, after;
    char **names = NULL;
    size_t count = 0;

    (void)state;
    assert_int_equal(spool_stream_open(spool, "a-1", &b, &the_error), SPOOL_E_EXISTS);
    assert_int_equal(spool_stream_open(spool, "../x", &b, &the_error), SPOOL_E_INVALID);
    assert_int_equal(spool_stream_open(spool, "", &b, &the_error), SPOOL_E_INVALID);
    b = open_stream(spool, "b_2");
    assert_int_not_equal(spool_stream_id(a), spool_stream_id(b));
    assert_string_equal(spool_stream_name(b), "b_2");
    check_ok(spool_stream_names(spool, &names, &count, &the_error));
    assert_int_equal(count, 2);
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
    check_ok(spool_usage_get(spool, &before, &the_error));
    append_one(a, open_origin(spool, "o"), 3, 1 << 20);
    append_one(b, open_origin(spool, "o"), 3, 1 << 20);
    check_ok(spool_usage_get(spool, &after, &the_error));
    assert_true(before.meta_bytes >= 4 << 20); /* the reserve */
    assert_true(before.dead_bytes >= 4 << 20);
    assert_int_equal(before.segment_bytes, 0);
    assert_true(after.segment_bytes >= 2 << 20 && after.segment_bytes < 3 << 20);
    assert_true(after.total_bytes >= after.segment_bytes + after.meta_bytes + after.dead_bytes);
    assert_true(after.free_bytes > 0);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* A copy of a file has its bytes and no more: the room is set aside again. */
static void test_a_copy_gets_its_reserve(void **state)
{
    static const char *const names[] = {"meta.mdb", "dead.mdb"};
    char *path = make_directory(), *command = NULL;
    struct spool *spool = open_spool(path, 0);
    struct spool_usage usage;

    (void)state;
    spool_close(spool);
    for (size_t i = 0; i < 2; i++) {
        assert_true(asprintf(&command, "cd %s && cat %s >copy && mv copy %s", path, names[i],
                             names[i]) > 0);
        assert_int_equal(system(command), 0);
        free(command);
    }
    spool = open_spool(path, 0);
    check_ok(spool_usage_get(spool, &usage, &the_error));
    assert_true(usage.meta_bytes >= 4 << 20);
    assert_true(usage.dead_bytes >= 4 << 20);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_locked),
        cmocka_unit_test(test_append_and_read),
        cmocka_unit_test(test_offset_lists),
        cmocka_unit_test(test_append_refuses),
        cmocka_unit_test(test_origins),
        cmocka_unit_test(test_an_origin_begins_with_its_note),
        cmocka_unit_test(test_notes),
        cmocka_unit_test(test_dead),
        cmocka_unit_test(test_dead_all_or_none),
        cmocka_unit_test(test_dead_changes),
        cmocka_unit_test(test_dead_grows),
        cmocka_unit_test(test_read_only),
        cmocka_unit_test(test_names_and_usage),
        cmocka_unit_test(test_a_copy_gets_its_reserve),
    };
    return cmocka_run_group_tests_name("spool", tests, NULL, NULL);
}
