/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Against blocks that ClickHouse wrote (tests/data/native, one a type): ROWS.tsv has what each row
 * is as JSON, "-" for types that cannot be read back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/limits.h"
#include "codec/native.h"
#include "unit_data.h"

struct sample {
    char name[80];
    struct buf raw;
    char *rows[512]; /* pointers into the file of expectations */
    size_t row_count;
    bool readable;
};

#define SAMPLES_MAX 128

static struct sample samples[SAMPLES_MAX];
static size_t sample_count;
static struct buf rows_file;

static int load_samples(void **state)
{
    char *next = NULL;

    (void)state;
    rows_file = unit_data("native/ROWS.tsv");
    for (char *line = strtok_r((char *)rows_file.data, "\n", &next); line;
         line = strtok_r(NULL, "\n", &next)) {
        char *tab = strchr(line, '\t'), path[128];
        struct sample *s = sample_count ? &samples[sample_count - 1] : NULL;
        *tab = 0;
        if (!s || strcmp(s->name, line) != 0) {
            s = &samples[sample_count++];
            snprintf(s->name, sizeof(s->name), "%s", line);
            snprintf(path, sizeof(path), "native/%s", line);
            s->raw = unit_data(path);
            s->readable = strcmp(tab + 1, "-") != 0;
        }
        s->rows[s->row_count++] = tab + 1;
    }
    return sample_count == 88 ? 0 : -1;
}

static int free_samples(void **state)
{
    (void)state;
    for (size_t i = 0; i < sample_count; i++)
        buf_free(&samples[i].raw);
    buf_free(&rows_file);
    return 0;
}

static struct native_block *open_block(const void *raw, size_t size)
{
    struct spool_error error = {0};
    struct native_block *b = NULL;

    if (native_block_open(raw, size, &b, &error) != SPOOL_OK)
        fail_msg("%s", error.text);
    return b;
}

static void expect_row(const struct native_block *b, uint64_t row, const char *json)
{
    struct spool_error error = {0};
    struct buf out;

    buf_init(&out, MIB);
    assert_int_equal(native_block_row_json(b, row, &out, &error), SPOOL_OK);
    assert_string_equal(buf_cstr(&out), json);
    buf_free(&out);
}

/* Sample 025 was a DateTime('Europe/Berlin'), but SELECT writes the type without its zone. */
static void set_zone(const struct sample *s, struct native_block *b)
{
    if (strncmp(s->name, "025", 3) == 0)
        assert_int_equal(native_block_set_timezone(b, "Europe/Berlin", NULL), SPOOL_OK);
}

static void test_rows_of_every_sample(void **state)
{
    size_t readable = 0;

    (void)state;
    for (size_t i = 0; i < sample_count; i++) {
        struct sample *s = &samples[i];
        struct spool_error error = {0};
        struct native_block *b = NULL;
        int status = native_block_open(s->raw.data, s->raw.len, &b, &error);
        if (!s->readable) {
            assert_int_equal(status, SPOOL_E_UNSUPPORTED);
            assert_null(b);
            assert_non_null(strstr(error.text, "column c: a type that cannot be read back"));
            continue;
        }
        if (status != SPOOL_OK)
            fail_msg("%s: %s", s->name, error.text);
        readable++;
        set_zone(s, b);
        assert_int_equal(native_block_rows(b), s->row_count);
        for (size_t row = 0; row < s->row_count; row++)
            expect_row(b, row, s->rows[row]);
        native_block_free(b);
    }
    assert_int_equal(readable, 80);
}

static void test_columns(void **state)
{
    struct buf raw = unit_data("native/083_Nested_flat.native");
    struct native_block *b = open_block(raw.data, raw.len);

    (void)state;
    assert_int_equal(native_block_columns(b), 3);
    assert_string_equal(native_block_column_name(b, 1), "n.a");
    assert_int_equal(native_block_column_type(b, 2)->kind, TYPE_ARRAY);
    native_block_free(b);
    native_block_free(NULL);
    buf_free(&raw);
}

/* Every range of every sample has the rows it should, and the whole range is the sample itself. */
static void test_slices_of_every_sample(void **state)
{
    struct spool_error error = {0};
    struct buf out;

    (void)state;
    buf_init(&out, MIB);
    for (size_t i = 0; i < sample_count; i++) {
        struct sample *s = &samples[i];
        struct native_block *b;
        size_t step = s->row_count > 20 ? 37 : 1;
        if (!s->readable)
            continue;
        b = open_block(s->raw.data, s->raw.len);
        for (size_t first = 0; first <= s->row_count; first += step) {
            for (size_t n = 0; first + n <= s->row_count; n += step) {
                struct native_block *slice;
                buf_reset(&out);
                assert_int_equal(native_block_slice(b, first, n, &out, &error), SPOOL_OK);
                slice = open_block(out.data, out.len);
                set_zone(s, slice);
                assert_int_equal(native_block_rows(slice), n);
                assert_int_equal(native_block_columns(slice), native_block_columns(b));
                for (size_t row = 0; row < n; row++)
                    expect_row(slice, row, s->rows[first + row]);
                native_block_free(slice);
            }
        }
        buf_reset(&out);
        assert_int_equal(native_block_slice(b, 0, s->row_count, &out, &error), SPOOL_OK);
        assert_int_equal(out.len, s->raw.len);
        assert_memory_equal(out.data, s->raw.data, out.len);
        assert_int_equal(native_block_slice(b, 0, s->row_count + 1, &out, &error), SPOOL_E_INVALID);
        assert_int_equal(native_block_slice(b, 1, UINT64_MAX, &out, &error), SPOOL_E_INVALID);
        assert_int_equal(native_block_row_json(b, s->row_count, &out, &error), SPOOL_E_INVALID);
        assert_int_equal(out.len, s->raw.len);
        native_block_free(b);
    }
    buf_free(&out);
}

/* Opens a copy of its own size; where that works reads and cuts everything in it. */
static int try_block(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    struct spool_error error = {0};
    struct native_block *b = NULL;
    int status;

    assert_non_null(copy);
    memcpy(copy, data, size);
    status = native_block_open(copy, size, &b, &error);
    if (status == SPOOL_OK) {
        uint64_t rows = native_block_rows(b);
        struct buf out;
        buf_init(&out, MIB);
        for (uint64_t row = 0; row < rows && row < 64; row++) {
            buf_reset(&out);
            assert_int_equal(native_block_row_json(b, row, &out, &error), SPOOL_OK);
        }
        buf_reset(&out);
        assert_int_equal(native_block_slice(b, rows / 2, rows - rows / 2, &out, &error), SPOOL_OK);
        buf_free(&out);
        native_block_free(b);
    } else {
        assert_null(b);
        assert_int_equal(error.status, status);
        assert_non_null(strstr(error.text, "Native block, byte "));
    }
    free(copy);
    return status;
}

static void test_cut_anywhere(void **state)
{
    (void)state;
    for (size_t i = 0; i < sample_count; i++)
        for (size_t n = 0; n < samples[i].raw.len; n++)
            assert_int_not_equal(try_block(samples[i].raw.data, n), SPOOL_OK);
}

static void test_any_byte_wrong(void **state)
{
    static const uint8_t flips[] = {0x01, 0x02, 0x40, 0x80, 0xff};

    (void)state;
    for (size_t i = 0; i < sample_count; i++) {
        struct buf *raw = &samples[i].raw;
        for (size_t at = 0; at<raw->len; at += raw->len> 1000 ? 3 : 1)
            for (size_t f = 0; f < sizeof(flips); f++) {
                raw->data[at] ^= flips[f];
                try_block(raw->data, raw->len);
                raw->data[at] ^= flips[f];
            }
    }
}

/* Random damage of several bytes at once; the seed is fixed, so that a failure comes again. */
static void test_random_damage(void **state)
{
    uint32_t seed = 20261123;

    (void)state;
    for (unsigned round = 0; round < 20000; round++) {
        struct buf *raw = &samples[round % sample_count].raw;
        uint8_t kept[4];
        size_t at[4];
        for (unsigned i = 0; i < 4; i++) {
            seed = seed * 1664525 + 1013904223;
            at[i] = (seed >> 8) % raw->len;
            kept[i] = raw->data[at[i]];
            raw->data[at[i]] = (uint8_t)(seed >> 3);
        }
        try_block(raw->data, raw->len);
        for (unsigned i = 4; i-- > 0;)
            raw->data[at[i]] = kept[i];
    }
}

static void test_bodies_that_are_no_block(void **state)
{
    static const char *const bad[] = {
        "EMPTY_BLOCK_LOSES_THE_REST.native",
        "rows_lie.native",
        "trailing_byte.native",
        "truncated.native",
        "zero_row_block_between.native",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct buf raw;
        char path[80];
        snprintf(path, sizeof(path), "native/bodies/%s", bad[i]);
        raw = unit_data(path);
        assert_int_equal(try_block(raw.data, raw.len), SPOOL_E_CORRUPT);
        buf_free(&raw);
    }
}

/* Several Native blocks are read as one, each row with its own columns, and cut as one. */
static void test_blocks_behind_each_other(void **state)
{
    static const char text[] = "\2\2\1k\5UInt8\1\2\1s\6String\1a\1b" /* k 1, 2; s a, b */
                               "\1\1\1k\5UInt8\3"                    /* k 3 */
                               "\1\2\1s\6String\1c\1d";              /* s c, d */
    static const char *const rows[] = {"{\"k\":1,\"s\":\"a\"}", "{\"k\":2,\"s\":\"b\"}",
                                       "{\"k\":3}", "{\"s\":\"c\"}", "{\"s\":\"d\"}"};
    struct native_block *b = open_block(text, sizeof(text) - 1);
    struct spool_error error = {0};
    struct buf out;

    (void)state;
    buf_init(&out, MIB);
    assert_int_equal(native_block_rows(b), 5);
    for (uint64_t i = 0; i < 5; i++)
        expect_row(b, i, rows[i]);
    assert_int_equal(native_block_row_json(b, 5, &out, &error), SPOOL_E_INVALID);
    for (uint64_t first = 0; first <= 5; first++)
        for (uint64_t count = 1; first + count <= 5; count++) {
            struct native_block *part;
            buf_reset(&out);
            assert_int_equal(native_block_slice(b, first, count, &out, &error), SPOOL_OK);
            part = open_block(out.data, out.len);
            assert_int_equal(native_block_rows(part), count);
            for (uint64_t i = 0; i < count; i++)
                expect_row(part, i, rows[first + i]);
            native_block_free(part);
        }
    buf_reset(&out);
    assert_int_equal(native_block_slice(b, 0, 5, &out, &error), SPOOL_OK);
    assert_int_equal(out.len, sizeof(text) - 1);
    assert_memory_equal(out.data, text, out.len);
    assert_int_equal(native_block_slice(b, 0, 6, &out, &error), SPOOL_E_INVALID);
    native_block_free(b);
    buf_free(&out);
}

/* A block of one column made by hand: type, then the bytes of its data. */
static struct native_block *block_of(struct buf *raw, unsigned rows, const char *type,
                                     const void *data, size_t size)
{
    buf_init(raw, MIB);
    assert_int_equal(buf_put_varuint(raw, 1), SPOOL_OK);
    assert_int_equal(buf_put_varuint(raw, rows), SPOOL_OK);
    assert_int_equal(buf_put_string(raw, "c", 1), SPOOL_OK);
    assert_int_equal(buf_put_string(raw, type, strlen(type)), SPOOL_OK);
    assert_int_equal(buf_append(raw, data, size), SPOOL_OK);
    return open_block(raw->data, raw->len);
}

static void expect_cell(const char *type, const void *data, size_t size, const char *json)
{
    struct buf raw;
    struct native_block *b = block_of(&raw, 1, type, data, size);

    expect_row(b, 0, json);
    native_block_free(b);
    buf_free(&raw);
}

static void test_values(void **state)
{
    const double tenth = 0.1, big = 1e300, exact = 123456789012345680.0;
    const float narrow = 0.1f, pi = 3.14159274f;

    (void)state;
    expect_cell("Float64", &tenth, 8, "{\"c\":0.1}");
    expect_cell("Float64", &big, 8, "{\"c\":1e+300}");
    expect_cell("Float64", &exact, 8, "{\"c\":1.2345678901234568e+17}");
    expect_cell("Float32", &narrow, 4, "{\"c\":0.1}");
    expect_cell("Float32", &pi, 4, "{\"c\":3.1415927}");
    expect_cell("String", "\x02\xff\"", 3, "{\"c\":\"\xef\xbf\xbd\\\"\"}");
    expect_cell("Bool", "\x02", 1, "{\"c\":true}");
    expect_cell("Decimal(9, 4)", "\x01\0\0\0", 4, "{\"c\":0.0001}");
    expect_cell("Decimal(9, 4)", "\xff\xff\xff\xff", 4, "{\"c\":-0.0001}");
    expect_cell("Decimal(9, 0)", "\x64\0\0\0", 4, "{\"c\":100}");
    expect_cell("Decimal(9, 1)", "\x64\0\0\0", 4, "{\"c\":10}");
    expect_cell("Decimal(9, 9)", "\0\xca\x9a\x3b", 4, "{\"c\":1}");
    expect_cell("Decimal(9, 2)", "\0\0\0\x80", 4, "{\"c\":-21474836.48}");
    expect_cell("Enum8('a' = 1)", "\x02", 1, "{\"c\":2}");
    expect_cell("Nullable(Int8)", "\x02\x01", 2, "{\"c\":null}");
    expect_cell("Map(UInt8, UInt8)", "\x01\0\0\0\0\0\0\0\x05\x06", 10, "{\"c\":{\"5\":6}}");
    expect_cell("DateTime64(0)", "\xff\xff\xff\xff\xff\xff\xff\x7f", 8,
                "{\"c\":\"day 106751991167300 15:30:07\"}");
    expect_cell("DateTime64(0, 'Europe/Berlin')", "\0\0\0\0\0\0\0\x80", 8,
                "{\"c\":\"day -106751991167301 08:29:52\"}");
    expect_cell("Time64(9)", "\0\0\0\0\0\0\0\x80", 8, "{\"c\":\"-2562047:47:16.854775808\"}");
    expect_cell("IPv6", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16, "{\"c\":\"::\"}");
}

static void test_zones(void **state)
{
    const uint8_t summer[] = {0x00, 0x8e, 0x4a, 0x6a}; /* 2026-07-05 17:01:52 UTC */
    struct spool_error error = {0};
    struct native_block *b;
    struct buf raw;

    (void)state;
    expect_cell("DateTime('Europe/Berlin')", summer, 4, "{\"c\":\"2026-07-05 19:01:52\"}");
    expect_cell("DateTime('UTC')", summer, 4, "{\"c\":\"2026-07-05 17:01:52\"}");
    expect_cell("DateTime('Atlantis/Capital')", summer, 4, "{\"c\":\"2026-07-05 17:01:52Z\"}");
    b = block_of(&raw, 1, "DateTime", summer, 4);
    expect_row(b, 0, "{\"c\":\"2026-07-05 17:01:52\"}");
    assert_int_not_equal(native_block_set_timezone(b, "Atlantis/Capital", &error), SPOOL_OK);
    assert_true(strlen(error.text) > 0);
    expect_row(b, 0, "{\"c\":\"2026-07-05 17:01:52\"}");
    assert_int_equal(native_block_set_timezone(b, "Asia/Tokyo", &error), SPOOL_OK);
    expect_row(b, 0, "{\"c\":\"2026-07-06 02:01:52\"}");
    native_block_free(b);
    buf_free(&raw);
    b = block_of(&raw, 1, "DateTime('Europe/Berlin')", summer, 4);
    assert_int_equal(native_block_set_timezone(b, "Asia/Tokyo", &error), SPOOL_OK);
    expect_row(b, 0, "{\"c\":\"2026-07-05 19:01:52\"}");
    native_block_free(b);
    buf_free(&raw);
}

static void test_claims_are_checked(void **state)
{
    static const struct {
        const char *data;
        size_t size;
    } cases[] = {
        /* columns, rows, name, type ... */
        {"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01"
         "c\x05UInt8",
         18},
        {"\xff\xff\xff\x7f\x01", 5},
        {"\x00\x00", 2},
        {"\x01\x01\x01\x00\x05UInt8a", 10},
        {"\x01\x01\x01"
         "c\x05UInt8ab",
         12},
        {"\x01\x01\x01"
         "c\x05UInt(a",
         10},
        /* Array(UInt8): an offset far beyond, and one that goes back */
        {"\x01\x01\x01"
         "c\x0c"
         "Array(UInt8)\xff\xff\xff\xff\xff\xff\xff\xff"
         "a",
         26},
        {"\x01\x02\x01"
         "c\x0c"
         "Array(UInt8)\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0a",
         34},
        /* Variant(String): a member it does not have */
        {"\x01\x01\x01"
         "c\x0fVariant(String)\0\0\0\0\0\0\0\0\x01",
         29},
        /* LowCardinality(UInt8): one row, two indexes claimed */
        {"\x01\x01\x01"
         "c\x15LowCardinality(UInt8)\x01\0\0\0\0\0\0\0\0\x06\0\0\0\0\0\0"
         "\x01\0\0\0\0\0\0\0\x07\x02\0\0\0\0\0\0\0\0",
         60},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(try_block((const uint8_t *)cases[i].data, cases[i].size), SPOOL_E_CORRUPT);
}

/* Members' values are stored apart from the rows: a slice begins in the middle of each. */
static void test_slice_of_a_variant(void **state)
{
    static const char data[] = "\0\0\0\0\0\0\0\0\x00\x01\xff\x00\x01\x01"
                               "a\x01"
                               "b\x05\x06";
    struct spool_error error = {0};
    struct native_block *b, *slice;
    struct buf raw, out;

    (void)state;
    b = block_of(&raw, 5, "Variant(String, UInt8)", data, sizeof(data) - 1);
    expect_row(b, 1, "{\"c\":5}");
    buf_init(&out, MIB);
    assert_int_equal(native_block_slice(b, 2, 3, &out, &error), SPOOL_OK);
    slice = open_block(out.data, out.len);
    expect_row(slice, 0, "{\"c\":null}");
    expect_row(slice, 1, "{\"c\":\"b\"}");
    expect_row(slice, 2, "{\"c\":6}");
    native_block_free(slice);
    native_block_free(b);
    buf_free(&raw);
    buf_free(&out);
}

static void expect_line(const char *raw, size_t size, uint64_t row, const char *line)
{
    size_t start = 0, length = 0;

    if (!line) {
        assert_int_equal(json_block_line(raw, size, row, &start, &length), SPOOL_E_NOT_FOUND);
        return;
    }
    assert_int_equal(json_block_line(raw, size, row, &start, &length), SPOOL_OK);
    assert_int_equal(length, strlen(line));
    assert_memory_equal(raw + start, line, length);
}

static void test_json_lines(void **state)
{
    (void)state;
    expect_line("{}\n{\"a\":1}\n", 11, 0, "{}");
    expect_line("{}\n{\"a\":1}\n", 11, 1, "{\"a\":1}");
    expect_line("{}\n{\"a\":1}\n", 11, 2, NULL);
    expect_line("{}\n[]", 5, 1, "[]");
    expect_line("", 0, 0, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_of_every_sample),
        cmocka_unit_test(test_columns),
        cmocka_unit_test(test_slices_of_every_sample),
        cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_any_byte_wrong),
        cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_bodies_that_are_no_block),
        cmocka_unit_test(test_blocks_behind_each_other),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_zones),
        cmocka_unit_test(test_claims_are_checked),
        cmocka_unit_test(test_slice_of_a_variant),
        cmocka_unit_test(test_json_lines),
    };

    return cmocka_run_group_tests(tests, load_samples, free_samples);
}
