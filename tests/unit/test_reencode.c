/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks encoded anew. Under their own schema every value of the corpus gives the same bytes again;
 * under another one each column takes what its key, fact or name says.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/limits.h"
#include "codec/reencode.h"
#include "unit_data.h"

#define MAX_BYTES (4u << 20)

static const struct server_version modern = {26, 7, 2}, old = {18, 16, 1};
static const struct record_place place = {"kafka/events/3", "events", 3};

static struct schema *schema_make(const struct column_wish *wishes, size_t count,
                                  enum schema_format format, struct server_version server)
{
    struct schema_options options = {.format = format, .wishes = wishes, .wish_count = count};
    struct schema *schema = NULL;
    struct buf problems;

    buf_init(&problems, MAX_BYTES);
    (void)schema_from_wishes(&options, server, "Europe/Berlin", &schema, &problems);
    buf_free(&problems);
    return schema;
}

static int decode(const struct schema *schema, const void *text, size_t size, struct buf *raw)
{
    struct record record = {.data = text,
                            .size = size,
                            .offset = 41,
                            .timestamp_ms = 1795437296789,
                            .key = "a key",
                            .key_size = 5,
                            .received_ms = 1795437297000};
    struct decoder *decoder = NULL;
    struct refusal why;
    int status = decoder_create(schema, MAX_BYTES, &decoder, NULL);

    if (status == SPOOL_OK)
        status = decoder_begin(decoder, &place);
    if (status == SPOOL_OK)
        status = decoder_row(decoder, &record, &why);
    if (status == SPOOL_OK)
        status = decoder_finish(decoder, raw);
    decoder_free(decoder);
    return status;
}

static int reencode(const struct schema *from, const struct schema *to, const struct buf *raw,
                    struct buf *made, struct refusal *why)
{
    struct reencoder *r = NULL;
    int status = reencoder_create(from, to, MAX_BYTES, &r, NULL);

    if (status == SPOOL_OK)
        status = reencoder_open(r, raw->data, raw->len, &place, NULL);
    if (status == SPOOL_OK)
        status = reencoder_row(r, 0, 41, 1795437297000, why);
    if (status == SPOOL_OK)
        status = reencoder_finish(r, made);
    if (status == SPOOL_E_REFUSED)
        (void)buf_append(made, reencoder_record(r)->data, reencoder_record(r)->len);
    if (status == SPOOL_E_REFUSED) { /* the name is the reencoder's */
        static char column[64];
        snprintf(column, sizeof(column), "%s", why->column);
        why->column = column;
    }
    reencoder_free(r);
    return status;
}

/* --- every value of the corpus -------------------------------------------------------------- */

static size_t unescape(const char *text, const char *end, char *out)
{
    size_t n = 0;

    for (; text < end; text++) {
        if (text[0] == '\\' && text[1] == '\\') {
            out[n++] = *++text;
        } else if (text[0] == '\\' && text[1] == 'x') {
            char hex[3] = {text[2], text[3], 0};
            out[n++] = (char)strtoul(hex, NULL, 16);
            text += 3;
        } else {
            out[n++] = *text;
        }
    }
    return n;
}

/* 1: the same bytes again, 0: not taken in the first place. */
static int same_again(const char *type, const char *record, size_t size, enum schema_format format,
                      struct server_version server)
{
    struct column_wish wish = {.name = "c", .type = type};
    struct schema *schema = schema_make(&wish, 1, format, server);
    struct refusal why = {0};
    struct buf raw, made;
    int taken = 0;

    buf_init(&raw, MAX_BYTES);
    buf_init(&made, MAX_BYTES);
    if (schema && decode(schema, record, size, &raw) == SPOOL_OK) {
        int status = reencode(schema, schema, &raw, &made, &why);
        if (status != SPOOL_OK || made.len != raw.len || memcmp(made.data, raw.data, raw.len) != 0)
            fail_msg("%s, %.*s (format %d): %s %s %.*s", type, (int)size, record, (int)format,
                     spool_strerror(status), why.reason, (int)made.len, (char *)made.data);
        taken = 1;
    }
    buf_free(&raw);
    buf_free(&made);
    schema_free(schema);
    return taken;
}

static void test_every_value_again(void **state)
{
    struct buf corpus = unit_data("json-to-column.tsv");
    size_t tried = 0;

    (void)state;
    for (char *line = (char *)corpus.data, *next; *line; line = next) {
        char record[4096] = "{\"c\":", *json, *end;
        size_t n = 5;
        next = strchr(line, '\n') + 1;
        json = strchr(line, '\t');
        if (*line == '#' || !json || strncmp(line, "ROW(", 4) == 0)
            continue;
        *json++ = 0;
        end = strchr(json, '\t');
        n += unescape(json, end, record + n);
        record[n++] = '}';
        tried += (size_t)same_again(line, record, n, FORMAT_NATIVE, modern);
        tried += (size_t)same_again(line, record, n, FORMAT_NATIVE, old);
        tried += (size_t)same_again(line, record, n, FORMAT_JSON, modern);
    }
    printf("%zu values\n", tried);
    assert_true(tried > 1000);
    buf_free(&corpus);
}

/* What the corpus does not have: the hour that a clock change doubles, floats that look whole. */
static void test_values_that_text_could_bend(void **state)
{
    static const char *const values[][2] = {
        {"DateTime('Europe/Berlin')", "{\"c\":1792888200}"}, /* 02:30, summer */
        {"DateTime('Europe/Berlin')", "{\"c\":1792891800}"}, /* 02:30, winter */
        {"Array(DateTime)", "{\"c\":[1792888200,1792891800]}"},
        {"DateTime64(3, 'Europe/Berlin')", "{\"c\":1792888200123}"},
        {"DateTime64(3, 'Europe/Berlin')", "{\"c\":1792891800123}"},
        {"Map(DateTime('Europe/Berlin'), UInt8)", "{\"c\":{\"1970-02-01 12:00:00\":1}}"},
        {"Map(DateTime('Europe/Berlin'), UInt8)", "{\"c\":{\"2026-10-25T00:30:00Z\":1}}"},
        {"Map(DateTime64(3, 'Asia/Tokyo'), UInt8)", "{\"c\":{\"1970-02-01 12:00:00.5\":1}}"},
        {"Map(DateTime64(4, 'Asia/Tokyo'), UInt8)", "{\"c\":{\"2026-10-25 01:30:00.5\":1}}"},
        {"Map(DateTime64(3, 'Asia/Tokyo'), UInt8)", "{\"c\":{\"1925-02-01 12:00:00.5\":1}}"},
        {"Map(DateTime64(3), UInt8)", "{\"c\":{\"0001-02-01 12:00:00.5\":1}}"},
        {"Dynamic", "{\"c\":5.0}"},
        {"Dynamic", "{\"c\":-0.0}"},
        {"Dynamic", "{\"c\":\"5\"}"},
        {"Variant(Float64, Int64, String)", "{\"c\":1e300}"},
        {"String", "{\"c\":\"\xff\xfe\x01\\u0000\\\"\"}"},
        {"FixedString(4)", "{\"c\":\"\xff\\u0000b\"}"},
        {"Map(String, String)", "{\"c\":{\"\xff\":\"\xfe\"}}"},
        {"JSON", "{\"c\":{\"a\":{\"b\":[1,\"x\"]}}}"},
        {"Array(JSON)", "{\"c\":[{\"a\":1},{}]}"},
        {"Nullable(JSON)", "{\"c\":null}"},
        {"LowCardinality(Nullable(String))", "{\"c\":\"\xff\"}"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        const char *type = values[i][0], *record = values[i][1];
        if (!same_again(type, record, strlen(record), FORMAT_NATIVE, modern))
            fail_msg("%s does not take %s", type, record);
        (void)same_again(type, record, strlen(record), FORMAT_JSON, modern);
    }
}

/* --- other columns -------------------------------------------------------------------------- */

struct change {
    const char *what;
    const char *record;
    struct column_wish from[4], to[4];
    const char *line;   /* as JSON; NULL: refused */
    const char *column; /* that refused it */
};

static const struct change changes[] = {
    {"dropped",
     "{\"a\":1,\"b\":\"x\"}",
     {{.name = "a", .type = "UInt8"}, {.name = "b", .type = "String"}},
     {{.name = "b", .type = "String"}},
     "{\"b\":\"x\"}\n",
     NULL},
    {"added",
     "{\"a\":1}",
     {{.name = "a", .type = "UInt8"}},
     {{.name = "n", .type = "Nullable(Int8)"},
      {.name = "a", .type = "UInt8"},
      {.name = "z", .type = "String"}},
     "{\"n\":null,\"a\":1,\"z\":\"\"}\n",
     NULL},
    {"an added one has its default",
     "{\"a\":1}",
     {{.name = "a", .type = "UInt8"}},
     {{.name = "a", .type = "UInt8"}, {.name = "z", .type = "String", .default_json = "\"d\""}},
     "{\"a\":1,\"z\":\"d\"}\n",
     NULL},
    {"an added one that is required",
     "{\"a\":1}",
     {{.name = "a", .type = "UInt8"}},
     {{.name = "a", .type = "UInt8"}, {.name = "z", .type = "String", .required = true}},
     NULL,
     "z"},
    {"number to text",
     "{\"a\":200}",
     {{.name = "a", .type = "UInt8"}},
     {{.name = "a", .type = "String"}},
     "{\"a\":\"200\"}\n",
     NULL},
    {"text to number",
     "{\"a\":\"200\"}",
     {{.name = "a", .type = "String"}},
     {{.name = "a", .type = "UInt8"}},
     "{\"a\":200}\n",
     NULL},
    {"text that is no number",
     "{\"a\":\"x\"}",
     {{.name = "a", .type = "String"}},
     {{.name = "a", .type = "UInt8"}},
     NULL,
     "a"},
    {"narrower",
     "{\"a\":256}",
     {{.name = "a", .type = "UInt16"}},
     {{.name = "a", .type = "UInt8"}},
     NULL,
     "a"},
    {"another zone, the same moment",
     "{\"a\":1792888200}",
     {{.name = "a", .type = "DateTime('Europe/Berlin')"}},
     {{.name = "a", .type = "DateTime('UTC')"}},
     "{\"a\":\"2026-10-25 00:30:00\"}\n",
     NULL},
    {"more digits",
     "{\"a\":\"2026-11-23 10:11:12.345\"}",
     {{.name = "a", .type = "DateTime64(3, 'UTC')"}},
     {{.name = "a", .type = "DateTime64(6, 'UTC')"}},
     "{\"a\":\"2026-11-23 10:11:12.345000\"}\n",
     NULL},
    {"a time as text is the zone's",
     "{\"a\":1792888200}",
     {{.name = "a", .type = "DateTime('Europe/Berlin')"}},
     {{.name = "a", .type = "String"}},
     "{\"a\":\"2026-10-25 02:30:00\"}\n",
     NULL},
    {"the same key, another name",
     "{\"k\":{\"x\":7}}",
     {{.name = "a", .type = "UInt8", .from = "k.x"}},
     {{.name = "b", .type = "UInt8", .from = "k.x"}},
     "{\"b\":7}\n",
     NULL},
    {"one key for two columns",
     "{\"k\":7}",
     {{.name = "a", .type = "UInt8", .from = "k"}, {.name = "b", .type = "String", .from = "k"}},
     {{.name = "b", .type = "FixedString(1)", .from = "k"},
      {.name = "c", .type = "UInt8", .from = "k"}},
     "{\"b\":\"7\",\"c\":7}\n",
     NULL},
    {"the same name, another key",
     "{\"k\":7}",
     {{.name = "a", .type = "UInt8", .from = "k"}},
     {{.name = "a", .type = "UInt8", .from = "l"}},
     "{\"a\":7}\n",
     NULL},
    {"exchanged",
     "{\"a\":1,\"b\":2}",
     {{.name = "x", .type = "UInt8", .from = "a"}, {.name = "y", .type = "UInt8", .from = "b"}},
     {{.name = "x", .type = "UInt8", .from = "b"}, {.name = "y", .type = "UInt8", .from = "a"}},
     "{\"x\":2,\"y\":1}\n",
     NULL},
    {"a key is no column's name",
     "{\"a\":1}",
     {{.name = "b", .type = "UInt8", .from = "a"}},
     {{.name = "c", .type = "UInt8", .from = "b"}, {.name = "b", .type = "UInt8", .from = "a"}},
     "{\"c\":0,\"b\":1}\n",
     NULL},
    {"names with dots",
     "{\"n.a\":[1]}",
     {{.name = "n.a", .type = "Array(UInt8)"}},
     {{.name = "n.a", .type = "Array(String)"}},
     "{\"n.a\":[\"1\"]}\n",
     NULL},
    {"facts are known again",
     "{}",
     {{.name = "a", .type = "UInt8"}},
     {{.name = "o", .type = "Int64", .from = "$offset"},
      {.name = "t", .type = "String", .from = "$topic"},
      {.name = "p", .type = "Int32", .from = "$partition"},
      {.name = "g", .type = "String", .from = "$origin"}},
     "{\"o\":41,\"t\":\"events\",\"p\":3,\"g\":\"kafka/events/3\"}\n",
     NULL},
    {"facts that only the block knows",
     "{}",
     {{.name = "k", .type = "String", .from = "$key"},
      {.name = "t", .type = "DateTime64(3, 'UTC')", .from = "$timestamp"}},
     {{.name = "key", .type = "FixedString(5)", .from = "$key"},
      {.name = "time", .type = "DateTime64(3, 'UTC')", .from = "$timestamp"}},
     "{\"key\":\"a key\",\"time\":\"2026-11-23 12:34:56.789\"}\n",
     NULL},
    {"the record as text",
     "{\"a\":1}",
     {{.name = "r", .type = "String", .from = "$record"}},
     {{.name = "all", .type = "String", .from = "$record"}},
     "{\"all\":\"{\\\"a\\\":1}\"}\n",
     NULL},
    {"constants are the new ones",
     "{}",
     {{.name = "v", .type = "UInt8", .value = "1"}},
     {{.name = "v", .type = "UInt8", .value = "2"}},
     "{\"v\":2}\n",
     NULL},
    {"NULL is the type's zero",
     "{\"a\":null}",
     {{.name = "a", .type = "Nullable(UInt8)"}},
     {{.name = "a", .type = "UInt8"}},
     "{\"a\":0}\n",
     NULL},
    {"JSON stays an object",
     "{\"a\":{\"b\":1}}",
     {{.name = "a", .type = "JSON"}},
     {{.name = "a", .type = "String"}},
     "{\"a\":\"{\\\"b\\\":1}\"}\n",
     NULL},
    {"text becomes JSON only as an object",
     "{\"a\":\"x\"}",
     {{.name = "a", .type = "String"}},
     {{.name = "a", .type = "JSON"}},
     NULL,
     "a"},
};

static size_t wishes_of(const struct column_wish wishes[4])
{
    size_t n = 0;
    while (n < 4 && wishes[n].name)
        n++;
    return n;
}

static void try_change(const struct change *c, enum schema_format format)
{
    struct schema *from = schema_make(c->from, wishes_of(c->from), format, modern);
    struct schema *to = schema_make(c->to, wishes_of(c->to), FORMAT_JSON, modern);
    struct refusal why = {0};
    struct buf raw, made;
    int status;

    assert_non_null(from);
    assert_non_null(to);
    buf_init(&raw, MAX_BYTES);
    buf_init(&made, MAX_BYTES);
    assert_int_equal(decode(from, c->record, strlen(c->record), &raw), SPOOL_OK);
    status = reencode(from, to, &raw, &made, &why);
    if (c->line ? status != SPOOL_OK || strcmp(buf_cstr(&made), c->line) != 0
                : status != SPOOL_E_REFUSED || strcmp(why.column, c->column) != 0)
        fail_msg("%s (format %d): %s %s: %s", c->what, (int)format, spool_strerror(status),
                 why.reason, made.len ? buf_cstr(&made) : "");
    buf_free(&raw);
    buf_free(&made);
    schema_free(from);
    schema_free(to);
}

static void test_changes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct schema *from, *to;
        try_change(&changes[i], FORMAT_NATIVE);
        from = schema_make(changes[i].from, wishes_of(changes[i].from), FORMAT_JSON, modern);
        to = schema_make(changes[i].to, wishes_of(changes[i].to), FORMAT_JSON, modern);
        if (reencoder_check(from, to, NULL) == SPOOL_OK)
            try_change(&changes[i], FORMAT_JSON);
        schema_free(from);
        schema_free(to);
    }
}

/* Lines have times as numbers in the old column's unit: no other column may read them. */
static void test_lines_with_times(void **state)
{
    static const struct {
        const char *from, *to;
        int status;
    } pairs[] = {
        {"DateTime64(3, 'Europe/Berlin')", "DateTime64(3, 'UTC')", SPOOL_OK},
        {"DateTime64(3, 'Europe/Berlin')", "DateTime64(6, 'UTC')", SPOOL_E_UNSUPPORTED},
        {"DateTime64(3)", "Int64", SPOOL_E_UNSUPPORTED},
        {"DateTime", "Nullable(DateTime)", SPOOL_OK},
        {"DateTime", "DateTime64(3)", SPOOL_E_UNSUPPORTED},
        {"Array(DateTime)", "Array(String)", SPOOL_E_UNSUPPORTED},
        {"Date", "String", SPOOL_OK},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        struct column_wish before = {.name = "c", .type = pairs[i].from};
        struct column_wish after = {.name = "c", .type = pairs[i].to};
        struct schema *to = schema_make(&after, 1, FORMAT_AUTO, modern);
        struct schema *lines = schema_make(&before, 1, FORMAT_JSON, modern);
        struct schema *block = schema_make(&before, 1, FORMAT_NATIVE, modern);
        struct spool_error error = {0};
        assert_int_equal(reencoder_check(lines, to, &error), pairs[i].status);
        assert_true(pairs[i].status == SPOOL_OK || strstr(error.text, "column c: "));
        assert_int_equal(reencoder_check(block, to, NULL), SPOOL_OK);
        schema_free(to);
        schema_free(lines);
        schema_free(block);
    }
}

static void test_what_is_left_out(void **state)
{
    static const struct column_wish before[] = {{.name = "a", .type = "UInt8"},
                                                {.name = "b", .type = "UInt8"},
                                                {.name = "o", .type = "Int64", .from = "$offset"}};
    static const struct column_wish after[] = {{.name = "a", .type = "String"},
                                               {.name = "p", .type = "UInt64", .from = "$offset"}};
    struct schema *from = schema_make(before, 3, FORMAT_NATIVE, modern);
    struct schema *to = schema_make(after, 2, FORMAT_NATIVE, modern);

    (void)state;
    assert_true(reencoder_takes(from, to, 0));
    assert_false(reencoder_takes(from, to, 1));
    assert_true(reencoder_takes(from, to, 2));
    schema_free(from);
    schema_free(to);
}

/* Many rows of one block; lines are found one behind the other. A refused one leaves no trace. */
static void test_rows(void **state)
{
    static const struct column_wish before = {.name = "a", .type = "UInt16"};
    static const struct column_wish after = {.name = "a", .type = "UInt8"};

    (void)state;
    for (int format = FORMAT_NATIVE; format <= FORMAT_JSON; format++) {
        struct schema *from = schema_make(&before, 1, (enum schema_format)format, modern);
        struct schema *to = schema_make(&after, 1, FORMAT_JSON, modern);
        struct decoder *decoder = NULL;
        struct reencoder *r = NULL;
        struct refusal why;
        struct buf raw, made, want;
        size_t refused = 0;
        buf_init(&raw, MAX_BYTES);
        buf_init(&made, MAX_BYTES);
        buf_init(&want, MAX_BYTES);
        assert_int_equal(decoder_create(from, MAX_BYTES, &decoder, NULL), SPOOL_OK);
        assert_int_equal(decoder_begin(decoder, &place), SPOOL_OK);
        for (int i = 0; i < 1000; i++) {
            char text[32];
            struct record record = {.data = (uint8_t *)text};
            record.size = (size_t)snprintf(text, sizeof(text), "{\"a\":%d}", i);
            assert_int_equal(decoder_row(decoder, &record, &why), SPOOL_OK);
        }
        assert_int_equal(decoder_finish(decoder, &raw), SPOOL_OK);
        assert_int_equal(reencoder_create(from, to, MAX_BYTES, &r, NULL), SPOOL_OK);
        assert_int_equal(reencoder_open(r, raw.data, raw.len, &place, NULL), SPOOL_OK);
        for (int i = 100; i < 1000; i += i == 400 ? 30 : 1) { /* a part, with a gap in it */
            int status = reencoder_row(r, (uint64_t)i, i, 0, &why);
            assert_int_equal(status, i < 256 ? SPOOL_OK : SPOOL_E_REFUSED);
            refused += i >= 256;
            if (i < 256)
                buf_printf(&want, "{\"a\":%d}\n", i);
            else
                assert_int_equal(reencoder_record(r)->len, 9);
        }
        assert_int_equal(refused, 1000 - 256 - 29);
        assert_int_equal(reencoder_rows(r), 156);
        assert_int_equal(reencoder_finish(r, &made), SPOOL_OK);
        assert_string_equal(buf_cstr(&made), buf_cstr(&want));
        reencoder_free(r);
        decoder_free(decoder);
        buf_free(&raw);
        buf_free(&made);
        buf_free(&want);
        schema_free(from);
        schema_free(to);
    }
}

/* A block that is not what the schema says: an error, and nothing read past its end. */
static void test_foreign_bytes(void **state)
{
    static const struct column_wish wish = {.name = "a", .type = "UInt16"};
    struct schema *schema = schema_make(&wish, 1, FORMAT_NATIVE, modern);
    struct reencoder *r = NULL;
    struct spool_error error;

    (void)state;
    assert_int_equal(reencoder_create(schema, schema, MAX_BYTES, &r, NULL), SPOOL_OK);
    assert_int_equal(reencoder_open(r, "\x01\x01", 2, &place, &error), SPOOL_E_CORRUPT);
    reencoder_free(r);
    schema_free(schema);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_value_again),
        cmocka_unit_test(test_values_that_text_could_bend),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_lines_with_times),
        cmocka_unit_test(test_what_is_left_out),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_foreign_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
