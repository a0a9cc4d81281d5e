/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a record, through a schema of every kind of column, natively and as JSON lines:
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined -Iinclude -Isrc -D_GNU_SOURCE \
 *         tests/fuzz/fuzz_decode.c src/codec/?*.c src/base/{buf,error,tzfile,json_writer}.c \
 *         -llz4 -lzstd -lxxhash -lm -o fuzz_decode
 *
 * Besides the sanitizers it checks that a refused record leaves no trace, that a block reads back
 * by native.c, and that a JSON line is one line and well-formed.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/decode.h"
#include "codec/json.h"
#include "codec/native.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct decoder *native, *exact, *lines;
static struct buf block, first;

static const struct column_wish wishes[] = {
    {.name = "i", .type = "Int64"},
    {.name = "j", .type = "Nullable(UInt8)"},
    {.name = "f", .type = "Float64"},
    {.name = "g", .type = "Float32"},
    {.name = "s", .type = "String"},
    {.name = "x", .type = "FixedString(3)"},
    {.name = "b", .type = "Bool"},
    {.name = "t", .type = "DateTime64(3, 'Europe/Berlin')"},
    {.name = "u", .type = "DateTime"},
    {.name = "d", .type = "Date"},
    {.name = "D", .type = "Date32"},
    {.name = "e", .type = "Enum8('a' = 1, 'b' = -2)"},
    {.name = "n", .type = "Decimal(38, 5)"},
    {.name = "a", .type = "Array(Array(Nullable(String)))"},
    {.name = "U", .type = "UUID"},
    {.name = "4", .type = "IPv4"},
    {.name = "6", .type = "IPv6"},
    {.name = "k", .type = "LowCardinality(Nullable(String))", .from = "o.p.k"},
    {.name = "l", .type = "UInt32", .from = "o.l", .default_json = "7"},
    {.name = "I", .type = "Int256"},
    {.name = "V", .type = "UInt128"},
    {.name = "N", .type = "Decimal(76, 20)"},
    {.name = "B", .type = "BFloat16"},
    {.name = "T", .type = "Time"},
    {.name = "S", .type = "Time64(5)"},
    {.name = "p", .type = "Tuple(a Int8, b Nullable(Tuple(c String, d Array(Int8))))"},
    {.name = "q", .type = "Tuple(Int8, Array(Point))"},
    {.name = "M", .type = "Map(String, Map(Date, Nullable(Int8)))"},
    {.name = "z", .type = "Nested(a Int8, b Array(String))"},
    {.name = "J", .type = "Array(JSON)"},
    {.name = "y", .type = "Dynamic"},
    {.name = "v", .type = "Array(Variant(String, Int8, Array(Nullable(Float64)), Tuple(a Date)))"},
    {.name = "L", .type = "Array(LowCardinality(Nullable(String)))"},
    {.name = "r", .type = "String", .from = "$rest"},
};

static struct decoder *make(enum schema_format format, uint32_t major)
{
    struct schema_options options = {
        .wishes = wishes, .wish_count = sizeof(wishes) / sizeof(wishes[0]), .format = format};
    struct server_version server = {major, 7, 0};
    struct schema *schema = NULL;
    struct decoder *d = NULL;
    struct spool_error error;
    struct buf problems;

    buf_init(&problems, MIB);
    if (schema_from_wishes(&options, server, "UTC", &schema, &problems) != SPOOL_OK ||
        decoder_create(schema, 4 * MIB, &d, &error) != SPOOL_OK)
        abort();
    buf_free(&problems);
    decoder_begin(d, &(struct record_place){"origin", "topic", 1});
    return d;
}

static int row(struct decoder *d, const void *data, size_t size)
{
    struct record record = {.data = data, .size = size, .timestamp_ms = 1};
    struct refusal why = {0};
    uint32_t rows = decoder_rows(d);
    size_t bytes = decoder_raw_bytes(d);
    int status = decoder_row(d, &record, &why);

    if (status != SPOOL_OK)
        assert(decoder_rows(d) == rows && decoder_raw_bytes(d) == bytes);
    if (status == SPOOL_E_REFUSED)
        assert(why.code && why.reason[0] && why.position <= size);
    return status;
}

static void check_native(struct decoder *d, const uint8_t *data, size_t size)
{
    struct native_block *b = NULL;
    struct spool_error error;
    int status = row(d, data, size);

    assert(row(d, "{}", 2) == SPOOL_OK);
    buf_reset(&block);
    assert(decoder_finish(d, &block) == SPOOL_OK);
    assert(native_block_open(block.data, block.len, &b, &error) == SPOOL_OK);
    assert(native_block_rows(b) == (status == SPOOL_OK ? 2 : 1));
    buf_reset(&first);
    assert(native_block_row_json(b, 0, &first, &error) == SPOOL_OK);
    native_block_free(b);
}

static void check_lines(const uint8_t *data, size_t size)
{
    struct refusal why = {0};
    struct scan s = {.why = &why};

    if (row(lines, data, size) != SPOOL_OK)
        return;
    buf_reset(&first);
    assert(decoder_finish(lines, &first) == SPOOL_OK);
    assert(memchr(first.data, '\n', first.len) == first.data + first.len - 1);
    s.p = s.begin = first.data;
    s.end = first.data + first.len;
    assert(json_skip(&s) == SPOOL_OK && s.p == s.end - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!native) {
        native = make(FORMAT_NATIVE, 26);
        exact = make(FORMAT_NATIVE, 18); /* LowCardinality in its own form */
        lines = make(FORMAT_JSON, 26);
        buf_init(&block, 16 * MIB);
        buf_init(&first, 16 * MIB);
    }
    check_native(native, data, size);
    check_native(exact, data, size);
    check_lines(data, size);
    return 0;
}
