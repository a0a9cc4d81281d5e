/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a serialised schema, and a good one with patches (2 bytes of place and one byte each): what is taken serialises to the same schema, and a decoder made for it
 * takes a record without harm.
 */
#include <assert.h>
#include <string.h>

#include "base/limits.h"
#include "codec/decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode_one(const struct schema *schema)
{
    static const char text[] = "{\"id\":1,\"a\":\"x\",\"b\":[1,null],\"c\":{\"d\":2}}";
    struct record record = {.data = (const uint8_t *)text, .size = sizeof(text) - 1};
    struct decoder *decoder = NULL;
    struct spool_error error;
    struct refusal why;
    struct buf raw;

    if (decoder_create(schema, MIB, &decoder, &error) != SPOOL_OK)
        return;
    buf_init(&raw, 4 * MIB);
    if (decoder_begin(decoder, &(struct record_place){"origin", NULL, -1}) == SPOOL_OK) {
        (void)decoder_row(decoder, &record, &why);
        (void)decoder_finish(decoder, &raw);
    }
    buf_free(&raw);
    decoder_free(decoder);
}

static void take(const uint8_t *data, size_t size)
{
    struct schema *schema = NULL, *again = NULL;
    struct spool_error error = {0};
    struct buf text;

    if (schema_deserialize(data, size, &schema, &error) != SPOOL_OK) {
        assert(!schema && error.text[0]);
        return;
    }
    buf_init(&text, 16 * MIB);
    assert(schema_serialize(schema, &text) == SPOOL_OK);
    assert(schema_deserialize(text.data, text.len, &again, &error) == SPOOL_OK);
    assert(schema_equal(schema, again));
    buf_reset(&text);
    assert(schema_column_list(schema, &text) == SPOOL_OK);
    decode_one(schema);
    schema_free(again);
    schema_free(schema);
    buf_free(&text);
}

static void make_good(struct buf *out)
{
    static const struct column_wish wishes[] = {
        {.name = "id", .type = "UInt64", .required = true},
        {.name = "a", .type = "LowCardinality(Nullable(String))", .from = "c.d"},
        {.name = "b", .type = "Array(Nullable(Int32))"},
        {.name = "t", .type = "DateTime64(3, 'Europe/Berlin')", .default_json = "0"},
        {.name = "e", .type = "Enum8('x' = 1, 'y' = 2)", .value = "\"x\""},
        {.name = "n", .type = "Decimal(18, 4)", .truncate = true},
        {.name = "r", .type = "String", .from = "$rest"},
    };
    struct schema_options options = {.wishes = wishes,
                                     .wish_count = sizeof(wishes) / sizeof(wishes[0])};
    struct server_version server = {26, 7, 0};
    struct schema *schema = NULL;
    struct buf problems;

    buf_init(out, 16 * MIB);
    buf_init(&problems, MIB);
    assert(schema_from_wishes(&options, server, "UTC", &schema, &problems) == SPOOL_OK);
    assert(schema_serialize(schema, out) == SPOOL_OK);
    schema_free(schema);
    buf_free(&problems);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct buf good, patched;

    if (!good.max) {
        make_good(&good);
        buf_init(&patched, 16 * MIB);
    }
    take(data, size);
    buf_reset(&patched);
    assert(buf_append(&patched, good.data, good.len) == SPOOL_OK);
    for (; size >= 3; data += 3, size -= 3)
        patched.data[((size_t)data[0] | (size_t)data[1] << 8) % patched.len] = data[2];
    take(patched.data, patched.len - (size ? data[0] % patched.len : 0));
    return 0;
}
