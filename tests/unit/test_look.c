/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "base/json_writer.h"
#include "base/limits.h"
#include "codec/frame.h"
#include "codec/schema.h"
#include "spool/look.h"

struct place {
    char path[64];
    struct spool *spool;
    struct spool_stream *stream;
    uint32_t origin;
    struct spool_error error;
};

#define ok(place, call) ok_at((place), (call), #call, __LINE__)

static void ok_at(struct place *p, int status, const char *what, int line)
{
    if (status != SPOOL_OK)
        fail_msg("line %d: %s: %s: %s", line, what, spool_strerror(status), p->error.text);
}

static int forget(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

static void configure(struct place *p)
{
    struct column_wish wishes[] = {{.name = "id", .type = "UInt64", .from = "user.id"},
                                   {.name = "word", .type = "String"}};
    struct schema_options options = {.wishes = wishes, .wish_count = 2};
    struct spool_segment_spec spec = {.destination = "default.events"};
    struct schema *schema = NULL;
    struct buf bytes, problems;

    buf_init(&bytes, MIB);
    buf_init(&problems, MIB);
    ok(p,
       schema_from_wishes(&options, (struct server_version){26, 7, 2}, "UTC", &schema, &problems));
    ok(p, schema_serialize(schema, &bytes));
    spec.schema = bytes.data;
    spec.schema_size = bytes.len;
    ok(p, spool_stream_configure(p->stream, &spec, &p->error));
    schema_free(schema);
    buf_free(&bytes);
    buf_free(&problems);
}

static int setup(void **state)
{
    struct place *p = calloc(1, sizeof(*p));
    struct spool_options options = {.path = p->path, .segment_bytes = MIB, .create = true};

    snprintf(p->path, sizeof(p->path), "/tmp/test_look.XXXXXX");
    assert_non_null(mkdtemp(p->path));
    ok(p, spool_open(&options, &p->spool, &p->error));
    ok(p, spool_stream_open(p->spool, "events", &p->stream, &p->error));
    ok(p, spool_origin(p->spool, "topic-0", 0, &p->origin, NULL, &p->error));
    configure(p);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct place *p = *state;

    spool_close(p->spool);
    nftw(p->path, forget, 16, FTW_DEPTH | FTW_PHYS);
    free(p);
    return 0;
}

/* Frames of a Native block (id UInt64, word String); ids from first on. */
static void native_frames(struct buf *frames, uint64_t rows, uint64_t first)
{
    struct frame_writer *w = NULL;
    struct buf raw;

    buf_init(&raw, 64 * MIB);
    buf_put_varuint(&raw, 2);
    buf_put_varuint(&raw, rows);
    buf_put_string(&raw, "id", 2);
    buf_put_string(&raw, "UInt64", 6);
    for (uint64_t i = 0; i < rows; i++)
        buf_put_u64le(&raw, first + i);
    buf_put_string(&raw, "word", 4);
    buf_put_string(&raw, "String", 6);
    for (uint64_t i = 0; i < rows; i++)
        buf_put_string(&raw, "wort", 4);
    assert_int_equal(frame_writer_create(FRAME_LZ4, 1, &w), SPOOL_OK);
    assert_int_equal(frame_write(w, raw.data, raw.len, frames), SPOOL_OK);
    frame_writer_free(w);
    buf_free(&raw);
}

static void text_frames(struct buf *frames, const char *text)
{
    struct frame_writer *w = NULL;

    assert_int_equal(frame_writer_create(FRAME_LZ4, 1, &w), SPOOL_OK);
    assert_int_equal(frame_write(w, text, strlen(text), frames), SPOOL_OK);
    frame_writer_free(w);
}

static struct spool_block_ref append(struct place *p, uint32_t origin, uint32_t rows,
                                     int64_t first_offset, const int64_t *offsets, uint32_t flags,
                                     const struct buf *frames)
{
    struct spool_block block = {
        .origin = origin,
        .rows = rows,
        .flags = flags,
        .first_offset = first_offset,
        .last_offset = offsets ? offsets[rows - 1] : first_offset + rows - 1,
        .offsets = offsets,
        .first_arrival_ms = 1790000000123,
        .last_arrival_ms = 1790000000456,
        .raw_bytes = 4096,
        .frames = frames->data,
        .frames_size = frames->len,
    };
    struct spool_block_ref ref = {0};
    size_t appended = 0;

    ok(p, spool_stream_append(p->stream, &block, 1, &ref, &appended, &p->error));
    assert_int_equal(appended, 1);
    return ref;
}

static struct spool_block_ref append_native(struct place *p, uint32_t origin, uint32_t rows,
                                            int64_t first_offset, uint64_t first_id)
{
    struct spool_block_ref ref;
    struct buf frames;

    buf_init(&frames, 64 * MIB);
    native_frames(&frames, rows, first_id);
    ref = append(p, origin, rows, first_offset, NULL, SPOOL_BLOCK_NATIVE, &frames);
    buf_free(&frames);
    return ref;
}

static void seal(struct place *p, const struct spool_block_ref *ref, uint32_t row, uint32_t rows,
                 bool acknowledge)
{
    struct spool_range range = {ref->sequence, row, rows};
    struct spool_seal s = {.stream = spool_stream_id(p->stream),
                           .segment = ref->segment,
                           .ranges = &range,
                           .range_count = 1,
                           .token = "a-token",
                           .attributes = "",
                           .sealed_ms = 1790000000999,
                           .rows = rows};
    struct spool_change change = {
        .kind = SPOOL_CHANGE_SEAL, .stream = s.stream, .segment = s.segment, .seal = &s};

    ok(p, spool_next_batch(p->spool, s.stream, &s.batch, &p->error));
    change.batch = s.batch;
    ok(p, spool_commit(p->spool, &change, 1, &p->error));
    change.kind = SPOOL_CHANGE_ACK;
    change.seal = NULL;
    if (acknowledge)
        ok(p, spool_commit(p->spool, &change, 1, &p->error));
}

/* --- reading the answers back with another parser --------------------------------------------- */

static cJSON *document(const struct buf *out)
{
    cJSON *all = cJSON_ParseWithLength((const char *)out->data, out->len);
    if (!all)
        fail_msg("no JSON: %.*s", (int)out->len, (const char *)out->data);
    return all;
}

/* An array of the lines. */
static cJSON *lines(struct buf *out)
{
    cJSON *all = cJSON_CreateArray();
    char *at = (char *)out->data, *end = at + out->len;

    while (at < end) {
        char *next = memchr(at, '\n', (size_t)(end - at));
        cJSON *line;
        assert_non_null(next);
        line = cJSON_ParseWithLength(at, (size_t)(next - at));
        if (!line)
            fail_msg("no JSON: %.*s", (int)(next - at), at);
        cJSON_AddItemToArray(all, line);
        at = next + 1;
    }
    return all;
}

static double number(const cJSON *object, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsNumber(v))
        fail_msg("no number %s", key);
    return v->valuedouble;
}

static const char *text(const cJSON *object, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!cJSON_IsString(v))
        fail_msg("no string %s", key);
    return v->valuestring;
}

static cJSON *records(struct place *p, const struct look_records_query *query, size_t max)
{
    struct buf out;
    cJSON *all;

    buf_init(&out, max);
    ok(p, look_records(p->spool, p->stream, query, &out, &p->error));
    all = lines(&out);
    buf_free(&out);
    return all;
}

/* --- tests ------------------------------------------------------------------------------------ */

static void test_segments(void **state)
{
    struct place *p = *state;
    struct spool_block_ref a = append_native(p, p->origin, 10, 0, 100);
    struct spool_block_ref b = append_native(p, p->origin, 10, 10, 110);
    cJSON *all, *segment, *batch, *range, *column;
    struct buf out;

    seal(p, &a, 0, 10, true);
    seal(p, &b, 0, 4, false);
    buf_init(&out, MIB);
    ok(p, look_segments(p->spool, p->stream, &out, &p->error));
    all = document(&out);
    assert_string_equal(text(all, "stream"), "events");
    segment = cJSON_GetObjectItem(all, "segments")->child;
    assert_null(segment->next);
    assert_true(number(segment, "number") == (double)a.segment);
    assert_true(number(segment, "blocks") == 2);
    assert_true(number(segment, "rows") == 20);
    assert_true(number(segment, "acked_rows") == 10);
    assert_true(number(segment, "first_sequence") == (double)a.sequence);
    assert_true(number(segment, "last_sequence") == (double)b.sequence);
    assert_string_equal(text(segment, "oldest_at"), "2026-09-21T14:13:20.123Z");
    assert_string_equal(text(segment, "destination"), "default.events");
    column = cJSON_GetObjectItem(segment, "columns")->child;
    assert_string_equal(text(column, "name"), "id");
    assert_string_equal(text(column, "type"), "UInt64");
    assert_string_equal(text(column, "from"), "user.id");
    batch = cJSON_GetObjectItem(segment, "batches")->child;
    assert_null(batch->next); /* the acknowledged one is gone */
    assert_true(number(batch, "batch") == 2);
    assert_true(number(batch, "rows") == 4);
    assert_string_equal(text(batch, "token"), "a-token");
    range = cJSON_GetObjectItem(batch, "ranges")->child;
    assert_true(number(range, "sequence") == (double)b.sequence);
    assert_true(number(range, "rows") == 4);
    cJSON_Delete(all);
    buf_free(&out);
}

static void test_blocks(void **state)
{
    struct place *p = *state;
    struct spool_block_ref a = append_native(p, p->origin, 10, 0, 100);
    struct spool_block_ref b = append_native(p, p->origin, 10, 10, 110);
    cJSON *all, *block;
    struct buf out;

    append_native(p, p->origin, 5, 9007199254740993, 200);
    seal(p, &a, 0, 10, true);
    seal(p, &b, 0, 4, true);
    seal(p, &b, 4, 3, false);
    buf_init(&out, MIB);
    ok(p, look_blocks(p->spool, p->stream, a.segment, &out, &p->error));
    all = document(&out);
    assert_true(number(all, "segment") == (double)a.segment);
    block = cJSON_GetObjectItem(all, "blocks")->child;
    assert_string_equal(text(block, "state"), "acknowledged");
    assert_string_equal(text(block, "origin"), "topic-0");
    assert_true(number(block, "acked_rows") == 10);
    block = block->next;
    assert_string_equal(text(block, "state"), "sealed");
    assert_true(number(block, "acked_rows") == 4);
    assert_true(number(block, "sealed_rows") == 3);
    assert_true(number(block, "first_offset") == 10);
    assert_true(number(block, "last_offset") == 19);
    assert_true(number(block, "raw_bytes") == 4096);
    assert_string_equal(text(block, "arrived_at"), "2026-09-21T14:13:20.123Z");
    block = block->next;
    assert_string_equal(text(block, "state"), "waiting");
    assert_null(block->next);
    /* A reader of doubles would see ...992: the text is exact. */
    assert_non_null(memmem(out.data, out.len, "9007199254740993", 16));
    cJSON_Delete(all);
    buf_free(&out);
}

static void test_blocks_of_a_segment_that_is_not_there(void **state)
{
    struct place *p = *state;
    struct buf out;

    append_native(p, p->origin, 10, 0, 100);
    buf_init(&out, MIB);
    assert_int_equal(look_blocks(p->spool, p->stream, 999, &out, &p->error), SPOOL_E_NOT_FOUND);
    assert_non_null(strstr(p->error.text, "999"));
    assert_int_equal(out.len, 0);
    buf_free(&out);
}

static void test_a_document_that_does_not_fit_leaves_the_buffer_alone(void **state)
{
    struct place *p = *state;
    struct buf out;

    for (int i = 0; i < 20; i++)
        append_native(p, p->origin, 10, i * 10, 100);
    buf_init(&out, 1000);
    buf_append_str(&out, "before");
    assert_int_equal(look_blocks(p->spool, p->stream, 0, &out, &p->error), SPOOL_E_LIMIT);
    assert_int_equal(out.len, 6);
    assert_memory_equal(out.data, "before", 6);
    buf_free(&out);
}

static void test_records(void **state)
{
    struct place *p = *state;
    struct spool_block_ref a = append_native(p, p->origin, 3, 5, UINT64_C(18446744073709551613));
    struct look_records_query query = {0};
    struct buf out;
    cJSON *all, *line;

    seal(p, &a, 0, 1, true);
    seal(p, &a, 1, 1, false);
    buf_init(&out, MIB);
    ok(p, look_records(p->spool, p->stream, &query, &out, &p->error));
    all = lines(&out);
    assert_int_equal(cJSON_GetArraySize(all), 3);
    line = all->child;
    assert_string_equal(text(line, "stream"), "events");
    assert_string_equal(text(line, "origin"), "topic-0");
    assert_true(number(line, "offset") == 5);
    assert_true(number(line, "sequence") == (double)a.sequence);
    assert_string_equal(text(line, "state"), "acknowledged");
    assert_string_equal(text(cJSON_GetObjectItem(line, "record"), "word"), "wort");
    assert_string_equal(text(line->next, "state"), "sealed");
    assert_string_equal(text(line->next->next, "state"), "waiting");
    assert_true(number(line->next->next, "row") == 2);
    assert_non_null(memmem(out.data, out.len, "\"record\":{\"id\":18446744073709551615", 35));
    cJSON_Delete(all);
    buf_free(&out);
}

static void test_records_of_json_blocks(void **state)
{
    struct place *p = *state;
    struct look_records_query query = {.has_from = true, .from = 2};
    struct buf frames;
    cJSON *all;

    buf_init(&frames, MIB);
    text_frames(&frames, "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n{\"a\":4}\n");
    append(p, p->origin, 4, 0, NULL, SPOOL_BLOCK_JSON, &frames);
    all = records(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 2);
    assert_true(number(cJSON_GetObjectItem(all->child, "record"), "a") == 3);
    assert_true(number(all->child->next, "offset") == 3);
    assert_true(number(cJSON_GetObjectItem(all->child->next, "record"), "a") == 4);
    cJSON_Delete(all);
    buf_free(&frames);
}

static void test_records_filtered(void **state)
{
    static const int64_t offsets[] = {3, 10, 11, 40};
    struct place *p = *state;
    struct look_records_query query = {
        .origin = "topic-0", .has_from = true, .from = 10, .has_to = true, .to = 39};
    uint32_t other = 0;
    struct buf frames;
    cJSON *all;

    buf_init(&frames, MIB);
    native_frames(&frames, 4, 100);
    ok(p, spool_origin(p->spool, "topic-1", 0, &other, NULL, &p->error));
    append_native(p, other, 30, 0, 500);
    append(p, p->origin, 4, 3, offsets, SPOOL_BLOCK_NATIVE, &frames);
    all = records(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 2);
    assert_true(number(all->child, "offset") == 10);
    assert_true(number(cJSON_GetObjectItem(all->child, "record"), "id") == 101);
    assert_true(number(all->child->next, "offset") == 11);
    cJSON_Delete(all);
    query.origin = "topic-9";
    all = records(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 0);
    cJSON_Delete(all);
    buf_free(&frames);
}

static void test_records_to_a_limit(void **state)
{
    struct place *p = *state;
    struct look_records_query query = {.limit = 3};
    cJSON *all, *last;

    append_native(p, p->origin, 4, 0, 100);
    all = records(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 4);
    last = cJSON_GetArrayItem(all, 3);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(last, "truncated")));
    assert_string_equal(text(last, "reason"), "limit");
    assert_true(number(last, "offset") == 3);
    cJSON_Delete(all);
    query.limit = 4; /* exactly all: nothing was left out */
    all = records(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 4);
    assert_null(cJSON_GetObjectItem(cJSON_GetArrayItem(all, 3), "truncated"));
    cJSON_Delete(all);
}

/* Reading on from where each answer stopped gives every record once, and no answer is too large. */
static void test_records_to_the_size_of_the_buffer(void **state)
{
    struct place *p = *state;
    struct look_records_query query = {.limit = 1000000};
    bool more = true;
    int64_t expected = 0;

    for (int i = 0; i < 4; i++)
        append_native(p, p->origin, 1000, i * 1000, (uint64_t)i * 1000);
    while (more) {
        cJSON *all = records(p, &query, LOOK_MIN_BUFFER_BYTES), *line;
        more = false;
        cJSON_ArrayForEach(line, all)
        {
            assert_false(more);
            assert_true(number(line, "offset") == (double)expected);
            more = cJSON_IsTrue(cJSON_GetObjectItem(line, "truncated"));
            if (more)
                assert_string_equal(text(line, "reason"), "size");
            else
                assert_true(number(cJSON_GetObjectItem(line, "record"), "id") ==
                            (double)expected++);
        }
        query.has_from = true;
        query.from = expected;
        cJSON_Delete(all);
    }
    assert_int_equal(expected, 4000);
}

static void test_a_bad_block_is_told_and_passed(void **state)
{
    struct place *p = *state;
    struct look_records_query query = {0};
    struct buf frames;
    cJSON *all;

    buf_init(&frames, MIB);
    text_frames(&frames, "{\"a\":1}\n");
    append_native(p, p->origin, 2, 0, 100);
    append(p, p->origin, 2, 2, NULL, SPOOL_BLOCK_NATIVE, &frames); /* JSON, not Native */
    append(p, p->origin, 2, 4, NULL, SPOOL_BLOCK_JSON, &frames);   /* a line is missing */
    append(p, p->origin, 1, 6, NULL, 0x8000, &frames);             /* a form of the future */
    append_native(p, p->origin, 1, 7, 107);
    all = records(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 2 + 1 + 2 + 1 + 1);
    assert_true(number(cJSON_GetArrayItem(all, 2), "first_offset") == 2);
    assert_true(strlen(text(cJSON_GetArrayItem(all, 2), "error")) > 0);
    assert_true(number(cJSON_GetArrayItem(all, 3), "offset") == 4);
    assert_non_null(strstr(text(cJSON_GetArrayItem(all, 4), "error"), "row 1"));
    assert_true(number(cJSON_GetArrayItem(all, 5), "first_offset") == 6);
    assert_true(number(cJSON_GetArrayItem(all, 6), "offset") == 7);
    cJSON_Delete(all);
    buf_free(&frames);
}

static int stop_at_second(void *arg, const char *line, size_t size)
{
    int *count = arg;
    (void)line, (void)size;
    return ++*count == 2 ? SPOOL_E_CORRUPT : 0;
}

static void test_the_caller_stops_the_walk(void **state)
{
    struct place *p = *state;
    struct look_records_query query = {0};
    int count = 0;

    append_native(p, p->origin, 5, 0, 100);
    assert_int_equal(
        look_records_each(p->spool, p->stream, &query, stop_at_second, &count, &p->error),
        SPOOL_E_CORRUPT);
    assert_int_equal(count, 2);
}

/* --- dead letters ----------------------------------------------------------------------------- */

static void put_dead(struct place *p, int64_t offset, const void *record, size_t size)
{
    struct spool_dead letter = {
        .stream = "events",
        .origin = p->origin,
        .offset = offset,
        .code = 5,
        .reason_name = "range",
        .reason = "300 is outside \"UInt8\"",
        .column = "word",
        .position = 12,
        .flags = SPOOL_DEAD_RECORD_CUT,
        .attempts = 2,
        .dead_ms = 1790000000123,
        .received_ms = 1790000000001,
        .timestamp_ms = -1,
        .record = record,
        .record_size = size,
        .record_full_size = 1000,
        .key = "\xff",
        .key_size = 1,
        .key_present = offset % 2 == 0,
        .headers = "\2\0\0\0\1a\1b\1c\1\xfe",
        .headers_size = 12,
    };
    size_t added = 0;

    ok(p, spool_dead_put(p->spool, &letter, 1, &added, &p->error));
}

static cJSON *dead(struct place *p, const struct look_dead_query *query, size_t max)
{
    struct buf out;
    cJSON *all;

    buf_init(&out, max);
    ok(p, look_dead(p->spool, query, &out, &p->error));
    all = lines(&out);
    buf_free(&out);
    return all;
}

static void test_dead(void **state)
{
    struct place *p = *state;
    struct look_dead_query query = {0};
    cJSON *all, *line, *headers;

    put_dead(p, 7, "{\"word\":300}", 12);
    put_dead(p, 8, "\xff\xfe\0x", 4);
    all = dead(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 2);
    line = all->child;
    assert_string_equal(text(line, "stream"), "events");
    assert_string_equal(text(line, "origin"), "topic-0");
    assert_true(number(line, "offset") == 7);
    assert_true(number(line, "code") == 5);
    assert_string_equal(text(line, "reason_name"), "range");
    assert_string_equal(text(line, "reason"), "300 is outside \"UInt8\"");
    assert_string_equal(text(line, "column"), "word");
    assert_true(number(line, "position") == 12);
    assert_string_equal(text(line, "record"), "{\"word\":300}");
    assert_null(cJSON_GetObjectItem(line, "record_base64"));
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(line, "record_cut")));
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(line, "key")));
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(line, "timestamp")));
    assert_string_equal(text(line, "time"), "2026-09-21T14:13:20.123Z");
    headers = cJSON_GetObjectItem(line, "headers");
    assert_int_equal(cJSON_GetArraySize(headers), 2);
    assert_string_equal(text(headers->child, "name"), "a");
    assert_string_equal(text(headers->child, "value"), "b");
    assert_string_equal(text(headers->child->next, "value_base64"), "/g==");
    line = line->next;
    assert_string_equal(text(line, "record_base64"), "//4AeA==");
    assert_string_equal(text(line, "key_base64"), "/w==");
    cJSON_Delete(all);
}

static void test_dead_selected(void **state)
{
    struct place *p = *state;
    struct look_dead_query query = {.stream = "events", .filter.origin = "topic-0"};
    cJSON *all;

    for (int64_t i = 0; i < 5; i++)
        put_dead(p, i, "{}", 2);
    query.filter.has_from = query.filter.has_to = true;
    query.filter.from = query.filter.to = 3;
    all = dead(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 1);
    assert_true(number(all->child, "offset") == 3);
    cJSON_Delete(all);
    query.filter.origin = "topic-1";
    all = dead(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 0);
    cJSON_Delete(all);
    query = (struct look_dead_query){.stream = "others"};
    all = dead(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 0);
    cJSON_Delete(all);
    query = (struct look_dead_query){.limit = 4};
    all = dead(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 5);
    assert_string_equal(text(cJSON_GetArrayItem(all, 4), "reason"), "limit");
    assert_true(number(cJSON_GetArrayItem(all, 4), "offset") == 4);
    cJSON_Delete(all);
}

static void test_dead_to_the_size_of_the_buffer(void **state)
{
    struct place *p = *state;
    struct look_dead_query query = {0};
    char record[20000];
    cJSON *all, *last;

    memset(record, 'x', sizeof(record));
    for (int64_t i = 0; i < 5; i++)
        put_dead(p, i, record, sizeof(record));
    all = dead(p, &query, LOOK_MIN_BUFFER_BYTES);
    assert_int_equal(cJSON_GetArraySize(all), 3);
    last = cJSON_GetArrayItem(all, 2);
    assert_string_equal(text(last, "reason"), "size");
    assert_true(number(last, "offset") == 2);
    cJSON_Delete(all);
}

/* --- verify ----------------------------------------------------------------------------------- */

static void test_verify_of_a_sound_spool(void **state)
{
    struct place *p = *state;
    struct spool_block_ref a = append_native(p, p->origin, 10, 0, 100);
    struct buf out;
    bool sound = false;
    cJSON *all;

    seal(p, &a, 0, 5, false);
    put_dead(p, 7, "{}", 2);
    buf_init(&out, MIB);
    ok(p, look_verify(p->spool, &out, &sound, &p->error));
    assert_true(sound);
    all = document(&out);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(all, "ok")));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(all, "problems")), 0);
    cJSON_Delete(all);
    buf_free(&out);
}

/* Turns one bit of the payload over, in the stream's only segment. */
static void damage(struct place *p, const struct buf *frames)
{
    char pattern[128];
    struct buf file;
    glob_t segments;
    uint8_t *found;
    FILE *f;
    int c;

    snprintf(pattern, sizeof(pattern), "%s/streams/events/*.seg", p->path);
    assert_int_equal(glob(pattern, 0, NULL, &segments), 0);
    assert_int_equal(segments.gl_pathc, 1);
    f = fopen(segments.gl_pathv[0], "r+b");
    assert_non_null(f);
    globfree(&segments);
    buf_init(&file, 64 * MIB);
    while ((c = getc(f)) != EOF)
        buf_put_u8(&file, (uint8_t)c);
    found = memmem(file.data, file.len, frames->data, frames->len);
    assert_non_null(found);
    assert_int_equal(fseek(f, found - file.data + 30, SEEK_SET), 0);
    putc(found[30] ^ 1, f);
    fclose(f);
    buf_free(&file);
}

static void test_verify_of_a_damaged_block(void **state)
{
    struct place *p = *state;
    struct look_records_query query = {0};
    struct spool_block_ref ref;
    struct buf out, frames;
    bool sound = true;
    cJSON *all, *problem;

    append_native(p, p->origin, 10, 0, 100);
    buf_init(&frames, MIB);
    native_frames(&frames, 500, 7777);
    ref = append(p, p->origin, 500, 10, NULL, SPOOL_BLOCK_NATIVE, &frames);
    append_native(p, p->origin, 1, 510, 9);
    damage(p, &frames);
    buf_init(&out, MIB);
    ok(p, look_verify(p->spool, &out, &sound, &p->error));
    assert_false(sound);
    all = document(&out);
    assert_true(cJSON_IsFalse(cJSON_GetObjectItem(all, "ok")));
    problem = cJSON_GetObjectItem(all, "problems")->child;
    assert_non_null(problem);
    assert_string_equal(text(problem, "stream"), "events");
    assert_true(number(problem, "sequence") == (double)ref.sequence);
    assert_true(strlen(text(problem, "file")) > 0);
    assert_true(strlen(text(problem, "kind")) > 0);
    assert_true(strlen(text(problem, "detail")) > 0);
    cJSON_Delete(all);

    all = records(p, &query, MIB);
    assert_int_equal(cJSON_GetArraySize(all), 10 + 1 + 1);
    assert_true(number(cJSON_GetArrayItem(all, 10), "sequence") == (double)ref.sequence);
    assert_true(strlen(text(cJSON_GetArrayItem(all, 10), "error")) > 0);
    cJSON_Delete(all);
    buf_free(&frames);
    buf_free(&out);
}

/* --- the writer ------------------------------------------------------------------------------- */

/* Whoever closes the spool waits for no look. */
static int stop_looks(void *arg, const char *line, size_t size)
{
    struct place *p = arg;
    (void)line, (void)size;
    spool_stop_looks(p->spool);
    return 0;
}

static void stop_looks_by_problem(void *arg, const struct spool_problem *problem)
{
    (void)problem;
    (void)stop_looks(arg, NULL, 0);
}

static void test_a_look_is_stopped_in_the_middle(void **state)
{
    struct place *p = *state;
    struct look_records_query query = {.limit = 1000};
    struct look_dead_query dead = {0};
    struct buf out;
    bool fine;

    append_native(p, p->origin, 5, 0, 100);
    append_native(p, p->origin, 5, 5, 100);
    assert_int_equal(look_records_each(p->spool, p->stream, &query, stop_looks, p, &p->error),
                     SPOOL_E_CANCELLED);
    assert_string_equal(p->error.text, "the spool is about to be closed");
    put_dead(p, 7, "x", 1);
    buf_init(&out, MIB);
    assert_int_equal(look_dead(p->spool, &dead, &out, &p->error), SPOOL_E_CANCELLED);
    assert_int_equal(look_segments(p->spool, p->stream, &out, &p->error), SPOOL_E_CANCELLED);
    assert_int_equal(look_blocks(p->spool, p->stream, 0, &out, &p->error), SPOOL_E_CANCELLED);
    assert_int_equal(look_verify(p->spool, &out, &fine, &p->error), SPOOL_E_CANCELLED);
    assert_int_equal(out.len, 0);
    buf_free(&out);
}

static void test_verify_is_stopped_in_the_middle(void **state)
{
    struct place *p = *state;
    char file[128];
    uint64_t problems = 0;

    for (int i = 0; i < 2; i++) { /* streams that meta.mdb does not know */
        snprintf(file, sizeof(file), "%s/streams/x%d", p->path, i);
        assert_int_equal(mkdir(file, 0700), 0);
        snprintf(file, sizeof(file), "%s/streams/x%d/%012d.seg", p->path, i, 1);
        assert_int_equal(close(open(file, O_CREAT | O_WRONLY, 0600)), 0);
    }
    ok(p, spool_verify(p->spool, NULL, NULL, &problems, &p->error));
    assert_int_equal(problems, 2);
    assert_int_equal(spool_verify(p->spool, stop_looks_by_problem, p, &problems, &p->error),
                     SPOOL_E_CANCELLED);
    assert_int_equal(problems, 1);
}

static void test_writer(void **state)
{
    struct json_writer w;
    struct buf out;

    (void)state;
    buf_init(&out, KIB);
    json_writer_init(&w, &out);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "a\"", NULL);
    json_writer_open(&w, "b", '[');
    json_writer_i64(&w, NULL, INT64_MIN);
    json_writer_u64(&w, NULL, UINT64_MAX);
    json_writer_open(&w, NULL, '{');
    json_writer_close(&w, '}');
    json_writer_bool(&w, NULL, false);
    json_writer_close(&w, ']');
    json_writer_time(&w, "t", 0);
    json_writer_bytes_exact(&w, "good", "\xef\xbf\xbd", 3);
    json_writer_bytes_exact(&w, "bad", "\xef\xbf", 2);
    json_writer_close(&w, '}');
    assert_int_equal(w.status, SPOOL_OK);
    assert_string_equal(
        buf_cstr(&out),
        "{\"a\\\"\":\"\",\"b\":[-9223372036854775808,18446744073709551615,{},false],"
        "\"t\":null,\"good\":\"\xef\xbf\xbd\",\"bad\":\"\xef\xbf\xbd\xef\xbf\xbd\","
        "\"bad_base64\":\"778=\"}");
    buf_free(&out);
    buf_init(&out, 3);
    json_writer_init(&w, &out);
    json_writer_text(&w, NULL, "long");
    json_writer_null(&w, NULL);
    assert_int_equal(w.status, SPOOL_E_LIMIT);
    buf_free(&out);
}

int main(void)
{
#define IN_A_SPOOL(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        IN_A_SPOOL(test_segments),
        IN_A_SPOOL(test_blocks),
        IN_A_SPOOL(test_blocks_of_a_segment_that_is_not_there),
        IN_A_SPOOL(test_a_document_that_does_not_fit_leaves_the_buffer_alone),
        IN_A_SPOOL(test_records),
        IN_A_SPOOL(test_records_of_json_blocks),
        IN_A_SPOOL(test_records_filtered),
        IN_A_SPOOL(test_records_to_a_limit),
        IN_A_SPOOL(test_records_to_the_size_of_the_buffer),
        IN_A_SPOOL(test_a_bad_block_is_told_and_passed),
        IN_A_SPOOL(test_the_caller_stops_the_walk),
        IN_A_SPOOL(test_dead),
        IN_A_SPOOL(test_dead_selected),
        IN_A_SPOOL(test_dead_to_the_size_of_the_buffer),
        IN_A_SPOOL(test_verify_of_a_sound_spool),
        IN_A_SPOOL(test_verify_of_a_damaged_block),
        IN_A_SPOOL(test_a_look_is_stopped_in_the_middle),
        IN_A_SPOOL(test_verify_is_stopped_in_the_middle),
        cmocka_unit_test(test_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
