/* SPDX-License-Identifier: Apache-2.0 */
/* Columns of few distinct strings in a block: which go as LowCardinality, and that they read back. */
#include "codec/native.h"
#include "decode_fixture.h"

static const struct column_wish columns[] = {{.name = "id", .type = "UInt32"},
                                             {.name = "s", .type = "String"}};

/* A decoder for a server of that major version. */
static void open_for(struct fixture *f, uint32_t major, const struct column_wish *wishes)
{
    struct schema_options options = {.wishes = wishes, .wish_count = 2};
    struct server_version server = {major, 1, 0};
    struct spool_error error = {0};
    struct buf problems;

    memset(f, 0, sizeof(*f));
    buf_init(&f->raw, FIXTURE_MAX);
    buf_init(&f->text, FIXTURE_MAX);
    buf_init(&problems, MIB);
    assert_int_equal(schema_from_wishes(&options, server, "UTC", &f->schema, &problems), SPOOL_OK);
    assert_int_equal(f->schema->format, FORMAT_NATIVE);
    assert_int_equal(decoder_create(f->schema, FIXTURE_MAX, &f->decoder, &error), SPOOL_OK);
    buf_free(&problems);
}

/* The value of row i, for `distinct` values of about `size` bytes; every 7th row is empty. */
static void value_of(char *out, size_t room, uint32_t i, uint32_t distinct, int size)
{
    if (i % 7 == 3)
        out[0] = '\0';
    else
        snprintf(out, room, "%0*u", size, i * 2654435761u % distinct);
}

/* Adds rows, finishes, and compares all that is read back; the type of "s" in the block. */
static enum type_kind check(struct fixture *f, uint32_t rows, uint32_t distinct, int size)
{
    struct native_block *block = NULL;
    struct spool_error error = {0};
    struct buf slice;
    enum type_kind kind;
    char value[200], text[300];
    size_t promised;

    for (uint32_t i = 0; i < rows; i++) {
        value_of(value, sizeof(value), i, distinct, size);
        snprintf(text, sizeof(text), "{\"id\":%u,\"s\":\"%s\"}", i, value);
        assert_int_equal(fixture_row(f, text), SPOOL_OK);
    }
    promised = decoder_raw_bytes(f->decoder);
    buf_reset(&f->raw);
    assert_int_equal(decoder_finish(f->decoder, &f->raw), SPOOL_OK);
    assert_true(f->raw.len <= promised);
    assert_int_equal(native_block_open(f->raw.data, f->raw.len, &block, &error), SPOOL_OK);
    assert_int_equal(native_block_rows(block), rows);
    kind = native_block_column_type(block, 1)->kind;
    buf_init(&slice, FIXTURE_MAX);
    for (uint32_t i = 0; i < rows; i++) {
        value_of(value, sizeof(value), i, distinct, size);
        snprintf(text, sizeof(text), "{\"id\":%u,\"s\":\"%s\"}", i, value);
        buf_reset(&f->text);
        assert_int_equal(native_block_row_json(block, i, &f->text, &error), SPOOL_OK);
        assert_string_equal(buf_cstr(&f->text), text);
    }
    /* A cut block of it is a block too. */
    assert_int_equal(native_block_slice(block, rows / 2, 1, &slice, &error), SPOOL_OK);
    native_block_free(block);
    assert_int_equal(native_block_open(slice.data, slice.len, &block, &error), SPOOL_OK);
    value_of(value, sizeof(value), rows / 2, distinct, size);
    snprintf(text, sizeof(text), "{\"id\":%u,\"s\":\"%s\"}", rows / 2, value);
    buf_reset(&f->text);
    assert_int_equal(native_block_row_json(block, 0, &f->text, &error), SPOOL_OK);
    assert_string_equal(buf_cstr(&f->text), text);
    native_block_free(block);
    buf_free(&slice);
    return kind;
}

static void test_few_values_are_indexed(void **state)
{
    struct fixture f;

    (void)state;
    open_for(&f, 26, columns);
    assert_int_equal(check(&f, 8192, 6, 6), TYPE_LOW_CARDINALITY);
    assert_int_equal(check(&f, 8192, 1, 3), TYPE_LOW_CARDINALITY);
    assert_int_equal(check(&f, 8192, 255, 5), TYPE_LOW_CARDINALITY);
    assert_int_equal(check(&f, 8192, 200, 7), TYPE_LOW_CARDINALITY);
    assert_int_equal(check(&f, 8192, 200, 8), TYPE_LOW_CARDINALITY);
    assert_int_equal(check(&f, 8192, 200, 64), TYPE_LOW_CARDINALITY);
    /* and a block is judged by its own rows alone */
    assert_int_equal(check(&f, 8192, 256, 5), TYPE_STRING);
    assert_int_equal(check(&f, 8192, 6, 5), TYPE_LOW_CARDINALITY);
    assert_int_equal(check(&f, 64, 2, 40), TYPE_LOW_CARDINALITY);
    fixture_close(&f);
}

static void test_what_gains_nothing_is_not(void **state)
{
    struct fixture f;

    (void)state;
    open_for(&f, 26, columns);
    assert_int_equal(check(&f, 8192, 100000, 6), TYPE_STRING);
    assert_int_equal(check(&f, 63, 2, 40), TYPE_STRING);    /* few rows */
    assert_int_equal(check(&f, 8192, 9, 1), TYPE_STRING);   /* a byte instead of two */
    assert_int_equal(check(&f, 300, 240, 20), TYPE_STRING); /* the keys are half of it */
    assert_int_equal(check(&f, 8192, 2, 65), TYPE_STRING);  /* no words */
    assert_int_equal(check(&f, 8192, 2, 150), TYPE_STRING); /* a length of two bytes */
    assert_int_equal(check(&f, 1, 1, 6), TYPE_STRING);
    fixture_close(&f);
}

static void test_a_server_that_does_not_convert_gets_its_own_types(void **state)
{
    struct fixture f;

    (void)state;
    open_for(&f, 18, columns);
    assert_int_equal(check(&f, 8192, 6, 6), TYPE_STRING);
    fixture_close(&f);
}

static void test_which_columns(void **state)
{
    static const struct {
        const char *type;
        enum type_kind kind;
    } cases[] = {{"LowCardinality(String)", TYPE_LOW_CARDINALITY},
                 {"Nullable(String)", TYPE_NULLABLE},
                 {"LowCardinality(Nullable(String))", TYPE_NULLABLE},
                 {"FixedString(6)", TYPE_FIXED_STRING},
                 {"SimpleAggregateFunction(any, String)", TYPE_STRING}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct column_wish wishes[] = {{.name = "id", .type = "UInt32"},
                                       {.name = "s", .type = cases[i].type}};
        struct fixture f;
        open_for(&f, 26, wishes);
        assert_int_equal(check(&f, 1000, 6, 6), cases[i].kind);
        fixture_close(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_few_values_are_indexed),
        cmocka_unit_test(test_what_gains_nothing_is_not),
        cmocka_unit_test(test_a_server_that_does_not_convert_gets_its_own_types),
        cmocka_unit_test(test_which_columns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
