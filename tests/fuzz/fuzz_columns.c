/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records through the decoder under any schema, and what comes of them all the way: block, frames, block
 * again, rows as JSON, slices.
 *
 *     byte 0: columns, format; byte 1: options; 3 bytes a column: type, source, flags; then records, one a
 *     line
 *
 * A refused record leaves no trace; a block opens to as many rows as were taken; a slice of all of it says
 * the same; and a JSON line is one well-formed line.
 */
#include <assert.h>
#include <string.h>

#include "base/limits.h"
#include "codec/decode.h"
#include "codec/frame.h"
#include "codec/json.h"
#include "codec/native.h"
#include "codec/reencode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define COLUMNS_MAX  6
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char *const types[] = {
    "UInt8",
    "Int16",
    "UInt32",
    "Int64",
    "UInt64",
    "Int128",
    "UInt128",
    "Int256",
    "UInt256",
    "Float32",
    "Float64",
    "BFloat16",
    "Bool",
    "String",
    "FixedString(1)",
    "FixedString(16)",
    "UUID",
    "Date",
    "Date32",
    "DateTime",
    "DateTime('America/New_York')",
    "DateTime64(0)",
    "DateTime64(9, 'Europe/Berlin')",
    "Time",
    "Time64(6)",
    "Enum8('a' = 1, 'b' = -2, '' = 0)",
    "Enum16('x' = 1000)",
    "Decimal(9, 2)",
    "Decimal(18, 18)",
    "Decimal(38, 5)",
    "Decimal(76, 20)",
    "IPv4",
    "IPv6",
    "Nullable(Int64)",
    "Nullable(String)",
    "Nullable(DateTime64(3))",
    "Array(UInt8)",
    "Array(Nullable(String))",
    "Array(Array(Float64))",
    "Array(Array(Array(Bool)))",
    "LowCardinality(String)",
    "LowCardinality(Nullable(String))",
    "Array(LowCardinality(FixedString(2)))",
    "Map(String, UInt32)",
    "Map(LowCardinality(String), Array(Nullable(Int8)))",
    "Tuple(UInt8, String)",
    "Tuple(a Int32, b Tuple(c String, d Array(Date)))",
    "Array(Tuple(k String, v Nullable(Float64)))",
    "Point",
    "Ring",
    "MultiPolygon",
    "Geometry",
    "Nested(x UInt8, y String)",
    "SimpleAggregateFunction(sum, UInt64)",
    "Variant(String, UInt64)",
    "Dynamic",
    "JSON",
    "JSON(a UInt32)",
    "AggregateFunction(uniq, String)",
    "Tuple()",
    "Nullable(Nothing)",
};
static const char *const names[COLUMNS_MAX] = {"a", "b", "c", "d", "e", "f"};
static const char *const sources[] = {NULL,         NULL,       NULL,         "o.p",
                                      "o.q.r",      "$rest",    "$record",    "$topic",
                                      "$partition", "$headers", "$timestamp", "$received_at"};
static const char *const defaults[] = {NULL,   NULL,   NULL, NULL, "0",
                                       "\"\"", "null", "[]", "{}", "\"1970-01-01\""};

static struct buf raw, stored, opened, text, again;
static struct frame_writer *writer;

static size_t read_options(const uint8_t *data, struct schema_options *options,
                           struct column_wish *wishes)
{
    const uint8_t *p = data + 2;

    options->wish_count = data[0] % COLUMNS_MAX + 1u;
    options->wishes = wishes;
    options->format = data[0] & 0x80 ? FORMAT_JSON : FORMAT_AUTO;
    options->strict = data[1] & 1;
    options->unknown_keys = data[1] & 2 ? UNKNOWN_REFUSE : UNKNOWN_IGNORE;
    options->schema_registry_framing = data[1] & 4;
    for (size_t i = 0; i < options->wish_count; i++, p += 3)
        wishes[i] = (struct column_wish){.name = names[i],
                                         .type = types[p[0] % COUNT(types)],
                                         .from = sources[p[1] % COUNT(sources)],
                                         .default_json = defaults[p[2] % 16 % COUNT(defaults)],
                                         .required = (p[2] & 0xe0) == 0xe0,
                                         .truncate = p[2] & 0x10};
    return (size_t)(p - data);
}

static void check_line(const uint8_t *line, size_t size)
{
    struct refusal why = {0};
    struct scan s = {.why = &why, .p = line, .begin = line, .end = line + size};

    assert(json_skip(&s) == SPOOL_OK ? s.p == s.end : why.code == REFUSAL_DEPTH);
}

static void check_native(uint32_t rows)
{
    struct native_block *b = NULL;
    struct spool_error error = {0};

    buf_reset(&stored);
    buf_reset(&opened);
    assert(frame_write(writer, raw.data, raw.len, &stored) == SPOOL_OK);
    assert(frames_open(stored.data, stored.len, &opened, &error) == SPOOL_OK);
    assert(opened.len == raw.len && memcmp(opened.data, raw.data, raw.len) == 0);
    assert(native_block_open(opened.data, opened.len, &b, &error) == SPOOL_OK);
    assert(native_block_rows(b) == rows);
    for (uint32_t i = 0; i < rows; i++) {
        buf_reset(&text);
        if (native_block_row_json(b, i, &text, &error) == SPOOL_OK)
            check_line(text.data, text.len);
    }
    buf_reset(&again);
    if (native_block_slice(b, 0, rows, &again, &error) == SPOOL_OK) {
        struct native_block *whole = NULL;
        assert(native_block_open(again.data, again.len, &whole, &error) == SPOOL_OK);
        assert(native_block_rows(whole) == rows);
        native_block_free(whole);
    }
    native_block_free(b);
}

static void check_json(uint32_t rows)
{
    size_t start, length;

    for (uint32_t i = 0; i < rows; i++) {
        assert(json_block_line(raw.data, raw.len, i, &start, &length) == SPOOL_OK);
        check_line(raw.data + start, length);
    }
    assert(json_block_line(raw.data, raw.len, rows, &start, &length) == SPOOL_E_NOT_FOUND);
}

/* Rows encoded anew under their own schema give the block again. */
static void check_again(const struct schema *schema, uint32_t rows)
{
    struct record_place place = {"origin", "topic", 1};
    struct reencoder *r = NULL;
    struct refusal why = {0};
    struct spool_error error = {0};
    int status = SPOOL_OK;

    assert(reencoder_create(schema, schema, 4 * MIB, &r, &error) == SPOOL_OK);
    assert(reencoder_open(r, raw.data, raw.len, &place, &error) == SPOOL_OK);
    for (uint32_t i = 0; i < rows && status == SPOOL_OK; i++)
        status = reencoder_row(r, i, 0, 1, &why);
    buf_reset(&again);
    if (status == SPOOL_OK) {
        assert(reencoder_finish(r, &again) == SPOOL_OK);
        assert(again.len == raw.len && memcmp(again.data, raw.data, raw.len) == 0);
    } else {
        /* an object may stand deeper than in the record; lines hold times as numbers */
        assert(status == SPOOL_E_REFUSED);
        assert(why.code == REFUSAL_DEPTH || schema->format == FORMAT_JSON);
    }
    reencoder_free(r);
}

static uint32_t decode_lines(struct decoder *d, const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        const uint8_t *stop = memchr(p, '\n', (size_t)(end - p));
        struct record record = {.data = p, .timestamp_ms = 1795437296789, .received_ms = 1};
        struct refusal why = {0};
        uint32_t rows = decoder_rows(d);
        size_t bytes = decoder_raw_bytes(d);
        int status;

        if (!stop)
            stop = end;
        record.size = (size_t)(stop - p);
        status = decoder_row(d, &record, &why);
        assert(decoder_rows(d) == rows + (status == SPOOL_OK));
        if (status != SPOOL_OK)
            assert(decoder_raw_bytes(d) == bytes);
        if (status == SPOOL_E_REFUSED)
            assert(why.code && why.reason[0] && why.position <= record.size);
        p = stop + (stop < end);
    }
    return decoder_rows(d);
}

static void run(const struct schema *schema, const uint8_t *p, const uint8_t *end)
{
    struct decoder *d = NULL;
    struct spool_error error = {0};
    uint32_t rows;
    size_t said;

    if (decoder_create(schema, 4 * MIB, &d, &error) != SPOOL_OK) {
        assert(error.text[0]);
        return;
    }
    assert(decoder_begin(d, &(struct record_place){"origin", "topic", 1}) == SPOOL_OK);
    for (int round = 0; round < 2; round++) {
        rows = decode_lines(d, p, end);
        said = decoder_raw_bytes(d);
        buf_reset(&raw);
        assert(decoder_finish(d, &raw) == SPOOL_OK);
        if (!rows)
            continue;
        assert(raw.len <= said);
        if (schema->format == FORMAT_NATIVE)
            check_native(rows);
        else
            check_json(rows);
        check_again(schema, rows);
    }
    decoder_free(d);
}

static void init(void)
{
    buf_init(&raw, 16 * MIB);
    buf_init(&stored, 16 * MIB);
    buf_init(&opened, 16 * MIB);
    buf_init(&text, 16 * MIB);
    buf_init(&again, 16 * MIB);
    assert(frame_writer_create(FRAME_LZ4, 1, &writer) == SPOOL_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct column_wish wishes[COLUMNS_MAX];
    struct schema_options options = {0};
    struct server_version server = {26, 7, 0};
    struct schema *schema = NULL;
    struct buf problems;
    size_t head;

    if (size < 2 + 3 * COLUMNS_MAX)
        return 0;
    if (!writer)
        init();
    head = read_options(data, &options, wishes);
    if (data[1] & 8)
        server.major = 18;
    buf_init(&problems, MIB);
    if (schema_from_wishes(&options, server, "UTC", &schema, &problems) == SPOOL_OK)
        run(schema, data + head, data + size);
    else
        assert(problems.len > 0);
    schema_free(schema);
    buf_free(&problems);
    return 0;
}
