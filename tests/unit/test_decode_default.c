/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Columns whose DEFAULT only the server can work out: a record that lacks one goes into a Native
 * block without it. Such blocks stand one behind the other in a stored block, in the records' order.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/limits.h"
#include "codec/decode.h"
#include "codec/native.h"
#include "unit_data.h"

#define PARTS_MAX 256 /* as decode.c has it */

static const struct server_version modern = {26, 7, 2}, old = {18, 16, 1};

static const struct table_column table[] = {
    {"k", "UInt32", "", ""},
    {"s", "LowCardinality(String)", "DEFAULT", "concat('s', toString(k))"},
    {"a", "Array(UInt8)", "DEFAULT", "[toUInt8(k)]"},
    {"n", "Nullable(Int8)", "DEFAULT", "toInt8(k)"},
};

struct rig {
    struct schema *schema;
    struct decoder *decoder;
    struct refusal why;
    struct buf raw;
};

static void rig_open(struct rig *r, struct server_version server, size_t max_raw_bytes)
{
    struct schema_options options = {0};
    struct record_place place = {"origin", "topic", 0};
    struct buf problems;

    memset(r, 0, sizeof(*r));
    buf_init(&r->raw, 64 * MIB);
    buf_init(&problems, MIB);
    assert_int_equal(schema_resolve(&options, table, 4, server, "UTC", &r->schema, &problems),
                     SPOOL_OK);
    assert_int_equal(r->schema->format, FORMAT_NATIVE);
    assert_int_equal(decoder_create(r->schema, max_raw_bytes, &r->decoder, NULL), SPOOL_OK);
    assert_int_equal(decoder_begin(r->decoder, &place), SPOOL_OK);
    buf_free(&problems);
}

static void rig_close(struct rig *r)
{
    decoder_free(r->decoder);
    schema_free(r->schema);
    buf_free(&r->raw);
}

static int row(struct rig *r, const char *json)
{
    struct record record = {.data = (const uint8_t *)json, .size = strlen(json)};

    return decoder_row(r->decoder, &record, &r->why);
}

/* The finished block's rows, a line each. */
static void rows_of(struct rig *r, struct buf *lines)
{
    struct native_block *b = NULL;
    struct spool_error error = {0};
    uint32_t rows = decoder_rows(r->decoder);
    size_t promised = decoder_raw_bytes(r->decoder);

    buf_reset(&r->raw);
    assert_int_equal(decoder_finish(r->decoder, &r->raw), SPOOL_OK);
    assert_true(r->raw.len <= promised);
    assert_int_equal(decoder_rows(r->decoder), 0);
    assert_int_equal(decoder_raw_bytes(r->decoder), 0);
    if (!rows)
        return;
    if (native_block_open(r->raw.data, r->raw.len, &b, &error) != SPOOL_OK)
        fail_msg("%s", error.text);
    assert_int_equal(native_block_rows(b), rows);
    for (uint32_t i = 0; i < rows; i++) {
        assert_int_equal(native_block_row_json(b, i, lines, &error), SPOOL_OK);
        assert_int_equal(buf_put_u8(lines, '\n'), SPOOL_OK);
    }
    native_block_free(b);
}

static void expect_rows(struct rig *r, const char *expected)
{
    struct buf lines;

    buf_init(&lines, MIB);
    rows_of(r, &lines);
    assert_string_equal(lines.len ? buf_cstr(&lines) : "", expected);
    buf_free(&lines);
}

static void test_left_out(void **state)
{
    struct rig r;

    (void)state;
    rig_open(&r, old, MIB);
    assert_int_equal(row(&r, "{\"k\":1,\"s\":\"x\",\"a\":[1],\"n\":null}"), SPOOL_OK);
    assert_int_equal(row(&r, "{\"k\":2,\"a\":[2],\"n\":2}"), SPOOL_OK);
    assert_int_equal(row(&r, "{\"k\":3,\"a\":[3],\"n\":3,\"s\":null}"), SPOOL_OK); /* as missing */
    assert_int_equal(row(&r, "{\"k\":4}"), SPOOL_OK);
    assert_int_equal(row(&r, "{\"s\":\"\"}"), SPOOL_OK); /* k has no DEFAULT: its zero */
    expect_rows(&r, "{\"k\":1,\"s\":\"x\",\"a\":[1],\"n\":null}\n{\"k\":2,\"a\":[2],\"n\":2}\n"
                    "{\"k\":3,\"a\":[3],\"n\":3}\n{\"k\":4}\n{\"k\":0,\"s\":\"\"}\n");
    /* The next block starts over. */
    assert_int_equal(row(&r, "{\"k\":5}"), SPOOL_OK);
    expect_rows(&r, "{\"k\":5}\n");
    expect_rows(&r, "");
    rig_close(&r);
}

/* A server that converts takes NULL for the DEFAULT where the column is a scalar that is not Nullable. */
static void test_null_where_it_will_do(void **state)
{
    struct rig r;

    (void)state;
    rig_open(&r, modern, MIB);
    assert_int_equal(row(&r, "{\"k\":1,\"s\":\"x\",\"a\":[1],\"n\":1}"), SPOOL_OK);
    assert_int_equal(row(&r, "{\"k\":2,\"a\":[2],\"n\":2}"), SPOOL_OK);
    assert_int_equal(row(&r, "{\"k\":3,\"n\":3}"), SPOOL_OK);
    expect_rows(&r,
                "{\"k\":1,\"s\":\"x\",\"a\":[1],\"n\":1}\n{\"k\":2,\"s\":null,\"a\":[2],\"n\":2}\n"
                "{\"k\":3,\"s\":null,\"n\":3}\n");
    rig_close(&r);
}

/* A refused record leaves no trace, whether or not it would have begun a part. */
static void test_refused_between(void **state)
{
    struct rig r;

    (void)state;
    rig_open(&r, old, MIB);
    assert_int_equal(row(&r, "{\"k\":1}"), SPOOL_OK);
    assert_int_equal(row(&r, "{\"k\":-2}"), SPOOL_E_REFUSED);
    assert_int_equal(row(&r, "{\"k\":-2,\"s\":\"x\"}"), SPOOL_E_REFUSED);
    assert_int_equal(row(&r, "{\"s\":\"x\",\"k\":2,\"a\":[300]}"), SPOOL_E_REFUSED);
    assert_int_equal(row(&r, "{\"k\":3}"), SPOOL_OK);
    assert_int_equal(row(&r, "{\"s\":\"x\",\"k\":4}"), SPOOL_OK);
    assert_int_equal(row(&r, "nothing"), SPOOL_E_REFUSED);
    expect_rows(&r, "{\"k\":1}\n{\"k\":3}\n{\"k\":4,\"s\":\"x\"}\n");
    rig_close(&r);
}

/* A record of which nothing is left can't be sent: an empty block would end the insert. */
static void test_nothing_left(void **state)
{
    static const struct table_column only[] = {{"d", "DateTime", "DEFAULT", "now()"}};
    struct schema_options options = {0};
    struct rig r = {0};
    struct buf problems;

    (void)state;
    buf_init(&r.raw, MIB);
    buf_init(&problems, MIB);
    assert_int_equal(schema_resolve(&options, only, 1, old, "UTC", &r.schema, &problems), SPOOL_OK);
    assert_int_equal(decoder_create(r.schema, MIB, &r.decoder, NULL), SPOOL_OK);
    assert_int_equal(row(&r, "{\"d\":7}"), SPOOL_OK);
    assert_int_equal(row(&r, "{}"), SPOOL_E_REFUSED);
    assert_int_equal(r.why.code, REFUSAL_REQUIRED);
    assert_int_equal(row(&r, "{\"d\":8}"), SPOOL_OK);
    expect_rows(&r, "{\"d\":\"1970-01-01 00:00:07\"}\n{\"d\":\"1970-01-01 00:00:08\"}\n");
    buf_free(&problems);
    rig_close(&r);
}

/* The number of parts of a block is bounded: the block is finished, and the row comes again. */
static void test_bounded(void **state)
{
    struct rig r;
    unsigned full = 0;

    (void)state;
    rig_open(&r, old, MIB);
    for (unsigned i = 0; i < 3 * PARTS_MAX; i++) {
        char text[64];
        int status;
        snprintf(text, sizeof(text), i % 2 ? "{\"k\":%u}" : "{\"k\":%u,\"s\":\"x\"}", i);
        status = row(&r, text);
        if (status == SPOOL_E_LIMIT) {
            assert_int_equal(decoder_rows(r.decoder), PARTS_MAX);
            buf_reset(&r.raw);
            assert_int_equal(decoder_finish(r.decoder, &r.raw), SPOOL_OK);
            full++;
            status = row(&r, text);
        }
        assert_int_equal(status, SPOOL_OK);
    }
    assert_int_equal(full, 2);
    rig_close(&r);
}

/* Any order of any keys, blocks that are full at any moment: the rows are the records. */
static void test_any_order(void **state)
{
    uint64_t x = 88172645463325252ull; /* xorshift64 */

    (void)state;
    for (int run = 0; run < 60; run++) {
        struct rig r;
        struct buf want, got;
        rig_open(&r, run % 2 ? modern : old, 600 + (size_t)run * 40);
        buf_init(&want, 16 * MIB);
        buf_init(&got, 16 * MIB);
        for (unsigned i = 0; i < 400; i++) {
            struct buf text;
            bool null_text = run % 2;
            int status;
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            buf_init(&text, 4096);
            buf_printf(&text, "{\"k\":%u", i);
            if (x & 0x10 || x >> 60 > 2)
                buf_printf(&text, ",\"s\":\"%u\"", i);
            else if (null_text)
                buf_append_str(&text, ",\"s\":null");
            if (x & 0x20 || x >> 60 > 4)
                buf_printf(&text, ",\"a\":[%u]", i % 256);
            if (x & 0x40 || x >> 60 > 6)
                buf_printf(&text, ",\"n\":%u", i % 100);
            buf_append_str(&text, "}");
            status = row(&r, buf_cstr(&text));
            if (status == SPOOL_E_LIMIT) {
                assert_true(decoder_rows(r.decoder) > 0);
                rows_of(&r, &got);
                status = row(&r, buf_cstr(&text));
            }
            assert_int_equal(status, SPOOL_OK);
            buf_append(&want, text.data, text.len);
            buf_put_u8(&want, '\n');
            buf_free(&text);
        }
        rows_of(&r, &got);
        assert_string_equal(buf_cstr(&got), buf_cstr(&want));
        buf_free(&want);
        buf_free(&got);
        rig_close(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_left_out),        cmocka_unit_test(test_null_where_it_will_do),
        cmocka_unit_test(test_refused_between), cmocka_unit_test(test_nothing_left),
        cmocka_unit_test(test_bounded),         cmocka_unit_test(test_any_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
