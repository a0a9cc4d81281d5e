/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every type through the decoder and back: the block, read by codec/native.h, gives the JSON expected;
 * so does each half of it. The same records through the JSON format give lines that decode to the
 * same block again.
 */
#include "decode_fixture.h"

#include "codec/native.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const struct server_version modern = {26, 7, 0}, old = {18, 16, 1};

static const struct {
    const char *type, *json, *shown; /* shown NULL: as it came */
} values[] = {
    {"Int8", "-128", NULL},
    {"UInt64", "18446744073709551615", NULL},
    {"Int128", "-170141183460469231731687303715884105728", NULL},
    {"Int128", "170141183460469231731687303715884105727", NULL},
    {"UInt128", "340282366920938463463374607431768211455", NULL},
    {"UInt128", "\"\"", "0"},
    {"UInt128", "true", "1"},
    {"Int256", "-57896044618658097711785492504343953926634992332820282019728792003956564819968",
     NULL},
    {"Int256", "57896044618658097711785492504343953926634992332820282019728792003956564819967",
     NULL},
    {"UInt256", "115792089237316195423570985008687907853269984665640564039457584007913129639935",
     NULL},
    {"Decimal(76, 10)", "-123456789012345678901234567890123456789012345678901234567890123456.25",
     NULL},
    {"Decimal(76, 76)",
     "0.9999999999999999999999999999999999999999999999999999999999999999999999999999", NULL},
    {"Decimal(50, 2)", "\"1e3\"", "1000"},
    {"Decimal(9, 2)", "-0.05", NULL},
    {"Decimal(76, 10)", "0.001e66",
     "1000000000000000000000000000000000000000000000000000000000000000"},
    {"Decimal(76, 10)", "100e-2", "1"},
    {"BFloat16", "1.5", NULL},
    {"BFloat16", "\"-inf\"", NULL},
    {"Time", "\"-999:59:59\"", NULL},
    {"Time", "\"12:34\"", "\"00:12:34\""},
    {"Time", "\"5\"", "\"00:00:05\""},
    {"Time", "-61", "\"-00:01:01\""},
    {"Time64(3)", "\"-00:00:00.5\"", "\"-00:00:00.500\""},
    {"Time64(9)", "\"1:02:03.1234567891\"", "\"01:02:03.123456789\""},
    {"Time64(0)", "\"12:34:56.7\"", "\"12:34:56\""},
    {"Time64(3)", "-1500", "\"-00:00:01.500\""},
    {"IntervalSecond", "-5", NULL},
    {"Nullable(Int256)", "null", NULL},
    {"Nullable(Int256)", "7", NULL},
    {"Tuple(Int8, String)", "[ 1 , \"x\" ]", "[1,\"x\"]"},
    {"Tuple(Int8, String)", "null", "[0,\"\"]"},
    {"Tuple(Int8, Nullable(String))", "[null,null]", "[0,null]"},
    {"Tuple()", "[ ]", "[]"},
    {"Tuple(a Int8, b String)", "{\"b\":\"x\",\"zz\":[1,{}],\"a\":-1}", "{\"a\":-1,\"b\":\"x\"}"},
    {"Tuple(a Int8, b String)", "{}", "{\"a\":0,\"b\":\"\"}"},
    {"Tuple(a Tuple(b Array(Int8)), c Nullable(Int8))", "{\"a\":{\"b\":[1,2]}}",
     "{\"a\":{\"b\":[1,2]},\"c\":null}"},
    {"Nullable(Tuple(a Int8))", "null", NULL},
    {"Nullable(Tuple(a Int8))", "{\"a\":3}", NULL},
    {"Map(String, Int8)", "{\"a\":1,\"a\":2}", NULL},
    {"Map(String, Int8)", "{\"a\" : 1 , }", "{\"a\":1}"},
    {"Map(UInt64, Map(Date, Array(String)))", "{\"007\":{\"2026-01-02\":[\"x\"]}}",
     "{\"7\":{\"2026-01-02\":[\"x\"]}}"},
    {"Map(LowCardinality(String), Nullable(Int8))", "{\"a\":null}", NULL},
    {"Array(Map(String, Tuple(Int8, Int8)))", "[{\"a\":[1,2]},{},{\"b\":[3,4],\"c\":[5,6]}]", NULL},
    {"Nested(a Int8, b Array(String))", "[{\"a\":1,\"b\":[\"x\"]},{\"b\":[]}]",
     "[{\"a\":1,\"b\":[\"x\"]},{\"a\":0,\"b\":[]}]"},
    {"Nested(a Int8)", "null", "[]"},
    {"JSON", "{\"a\":{\"b\":[1,{\"c\":null}]}}",
     "\"{\\\"a\\\":{\\\"b\\\":[1,{\\\"c\\\":null}]}}\""},
    {"JSON(a UInt8)", "null", "\"{}\""},
    {"Array(JSON)", "[{\"a\":1},{}]", "[\"{\\\"a\\\":1}\",\"{}\"]"},
    {"Nullable(JSON)", "null", NULL},
    {"Dynamic", "1.5", NULL},
    {"Dynamic", "42", NULL},
    {"Dynamic", "18446744073709551615", NULL},
    {"Dynamic", "18446744073709551616", "1.8446744073709552e+19"},
    {"Dynamic", "true", NULL},
    {"Dynamic", "\"42\"", NULL},
    {"Dynamic", "{\"a\":1}", "\"{\\\"a\\\":1}\""},
    {"Dynamic", "null", NULL},
    {"Array(Dynamic)", "[null,\"x\",[1]]", "[null,\"x\",\"[1]\"]"},
    {"Variant(String, Int64)", "42", NULL},
    {"Variant(String, Int64)", "\"42\"", "42"},
    {"Variant(String, Int64)", "1.5", "\"1.5\""},
    {"Variant(String, Int64)", "null", NULL},
    {"Variant(Decimal(9, 2), String)", "1.5", NULL},
    {"Variant(Decimal(9, 2), String)", "\"1.5\"", NULL},
    {"Variant(Decimal(9, 2), String)", "\"\"", NULL},
    {"Variant(Decimal(9, 2), String)", "\"1e2\"", "100"},
    {"Variant(Decimal(50, 2), String)", "\"1.5\"", NULL},
    {"Variant(Array(Decimal(9, 2)), String)", "[1.5,2]", NULL},
    {"Variant(Array(Decimal(9, 2)), String)", "[1.5 ]", "\"[1.5 ]\""},
    {"Variant(Map(String, Decimal(50, 2)), String)", "{\"a\":1.5}", "\"{\\\"a\\\":1.5}\""},
    {"Variant(Map(String, Decimal(50, 2)), String)", "{\"a\":1e0}", "{\"a\":1}"},
    {"Array(Variant(Decimal(9, 2), String))", "[1.5 ,\"1.5\"]", "[1.5,\"1.5\"]"},
    {"Variant(Int64, String)", "[\"\\ud83d\\ude00\"]", "\"[\\\"\\\\ud83d\\\\ude00\\\"]\""},
    {"Variant(Int8, UInt8, Float64, Bool)", "200", NULL},
    {"Variant(Int8, UInt8, Float64, Bool)", "true", NULL},
    {"Variant(Int8, UInt8, Float64, Bool)", "1e3", "1000"},
    {"Variant(Array(Int8), Array(String), Tuple(a Int8))", "[\"x\"]", NULL},
    {"Variant(Array(Int8), Array(String), Tuple(a Int8))", "{\"a\":1}", NULL},
    {"Array(Variant(String, Array(Nullable(Int8))))", "[[1,null,300],\"y\",[2,null]]",
     "[\"[1,null,300]\",\"y\",[2,null]]"},
    {"Point", "[1,-2.5]", NULL},
    {"Ring", "[[0,0],[1,0]]", NULL},
    {"LineString", "[]", NULL},
    {"MultiLineString", "[[[0,0]],[]]", NULL},
    {"Polygon", "[[[0,0],[1,0],[1,1]]]", NULL},
    {"MultiPolygon", "[[[[0,0],[1,0],[1,1]]]]", NULL},
    {"LowCardinality(String)", "\"x\"", NULL},
    {"LowCardinality(Nullable(String))", "null", NULL},
    {"LowCardinality(Nullable(String))", "\"\"", NULL},
    {"Array(LowCardinality(Nullable(String)))", "[\"a\",null,\"\",\"a\"]", NULL},
    {"LowCardinality(UInt32)", "5", NULL},
    {"LowCardinality(FixedString(2))", "\"ab\"", NULL},
    {"Tuple(a LowCardinality(String), b Array(LowCardinality(String)))",
     "{\"a\":\"x\",\"b\":[\"x\",\"y\"]}", NULL},
    {"SimpleAggregateFunction(max, Nullable(Int32))", "null", NULL},
};

static const struct {
    const char *type, *json;
    int code;
} refused[] = {
    {"Int128", "170141183460469231731687303715884105728", REFUSAL_RANGE},
    {"Int128", "-170141183460469231731687303715884105729", REFUSAL_RANGE},
    {"UInt128", "-0", REFUSAL_RANGE},
    {"UInt256", "115792089237316195423570985008687907853269984665640564039457584007913129639936",
     REFUSAL_RANGE},
    {"Int256", "57896044618658097711785492504343953926634992332820282019728792003956564819968",
     REFUSAL_RANGE},
    {"Int256", "1.0", REFUSAL_TYPE},
    {"Int256", "\"1x\"", REFUSAL_TEXT},
    {"Decimal(76, 10)", "1e66", REFUSAL_RANGE},
    {"Decimal(76, 10)", "0.001e67", REFUSAL_RANGE},
    {"Decimal(76, 10)",
     "10000000000000000000000000000000000000000000000000000000000000000000000000000e-70",
     REFUSAL_RANGE},
    {"Decimal(9, 2)", "\"1000000000e-4\"", REFUSAL_RANGE},
    {"Decimal(9, 2)", ".001e8", REFUSAL_RANGE},
    {"Decimal(76, 10)", "0.00000000001", REFUSAL_PRECISION},
    {"BFloat16", "1e39", REFUSAL_RANGE},
    {"BFloat16", "\"x\"", REFUSAL_TEXT},
    {"Time", "3600000", REFUSAL_RANGE},
    {"Time", "\"12:60:00\"", REFUSAL_TEXT},
    {"Time", "\"1:2:3\"", REFUSAL_TEXT},
    {"Time", "\"123\"", REFUSAL_TEXT},
    {"Time", "\"\"", REFUSAL_TEXT},
    {"Time", "\"00:00:00.5\"", REFUSAL_TEXT},
    {"Time64(3)", "3600000000", REFUSAL_RANGE},
    {"Time64(3)", "1.5", REFUSAL_TYPE},
    {"Tuple(Int8, String)", "[1]", REFUSAL_TYPE},
    {"Tuple(Int8, String)", "[]", REFUSAL_TYPE},
    {"Tuple(Int8, String)", "[1,\"x\",2]", REFUSAL_TYPE},
    {"Tuple(Int8, String)", "[1,\"x\",]", REFUSAL_TYPE},
    {"Tuple(Int8, String)", "[1,\"x\"", REFUSAL_TYPE},
    {"Tuple(a Int8)", "{\"a\":1,\"a\":2}", REFUSAL_DUPLICATE_KEY},
    {"Tuple(a Int8)", "{\"a\":1,}", REFUSAL_NOT_JSON},
    {"Tuple(a Int8)", "{\"a\":300}", REFUSAL_RANGE},
    {"Tuple(a Int8)", "{\"b\":01}", REFUSAL_NOT_JSON},
    {"Tuple(e Enum8('x' = 1))", "{\"e\":null}", REFUSAL_NULL},
    {"Tuple(a Int8)", "{\"a\"", REFUSAL_NOT_JSON},
    {"Map(String, Int8)", "{\"a\":1,\"b\":300}", REFUSAL_RANGE},
    {"Map(String, Int8)", "{a:1}", REFUSAL_NOT_JSON},
    {"Map(UInt8, Int8)", "{\"x\":1}", REFUSAL_TYPE},
    {"Map(String, Int8)", "{\"a\" 1}", REFUSAL_NOT_JSON},
    {"Nested(a Int8)", "{\"a\":[1]}", REFUSAL_TYPE},
    {"Nested(a Int8)", "[[1]]", REFUSAL_TYPE},
    {"JSON", "[1]", REFUSAL_TYPE},
    {"JSON", "{\"a\":1,\"a\":2}", REFUSAL_DUPLICATE_KEY},
    {"JSON", "{\"a\":{\"b\":1},\"a.b\":2}", REFUSAL_DUPLICATE_KEY},
    {"JSON", "{\"a\":{\"b\":1},\"a\":{\"b\":2}}", REFUSAL_DUPLICATE_KEY},
    {"JSON", "{\"a\":[{\"b\":1,\"b\":2}]}", REFUSAL_DUPLICATE_KEY},
    {"JSON", "{\"a\":null,\"\\u0061\":2}", REFUSAL_DUPLICATE_KEY},
    {"JSON", "{\"a\":18446744073709551616}", REFUSAL_RANGE},
    {"JSON", "{\"a\":-9223372036854775809}", REFUSAL_RANGE},
    {"JSON", "{\"a\":1e400}", REFUSAL_RANGE},
    {"JSON", "{\"a\":\"\\ud800\"}", REFUSAL_NOT_JSON},
    {"JSON", "{\"a\":\"\xc3\x28\"}", REFUSAL_TEXT},
    {"JSON", "{\"a\":[1,]}", REFUSAL_NOT_JSON},
    {"JSON", "{\"a\":1,}", REFUSAL_NOT_JSON},
    {"Variant(Int8, Date)", "\"x\"", REFUSAL_TYPE},
    {"Variant(Int8, Array(Int8))", "[1,\"x\"]", REFUSAL_TYPE},
    {"Variant(Decimal(9, 2), UUID)", "\"1.5\"", REFUSAL_TYPE},
    {"Variant(Decimal(50, 2), UUID)", "\"\"", REFUSAL_TYPE},
    {"Variant(Int64, String)", "[\"\\ud83d\"]", REFUSAL_TYPE},
    {"Dynamic", "{\"a\":\"\\uD83d\\ud83d\\ude00\"}", REFUSAL_TYPE},
    {"Point", "[1]", REFUSAL_TYPE},
    {"Point", "{\"x\":1}", REFUSAL_TYPE},
    {"LowCardinality(FixedString(2))", "\"abc\"", REFUSAL_TOO_LONG},
    {"Array(LowCardinality(FixedString(2)))", "[\"ab\",\"abc\"]", REFUSAL_TOO_LONG},
};

/* What old servers have. */
static bool is_old(const char *type)
{
    static const char *const late[] = {
        "128",  "256",     "Decimal(76", "Decimal(50", "BFloat",        "Time",    "Interval",
        "Map",  "Ring",    "Nested",     "JSON",       "Dynamic",       "Variant", "Point",
        "Line", "Polygon", "Simple",     "Tuple()",    "Nullable(Tuple"};

    for (size_t i = 0; i < COUNT(late); i++)
        if (strstr(type, late[i]))
            return false;
    return true;
}

static void open_for(struct fixture *f, const char *type, struct server_version server,
                     enum schema_format format)
{
    struct column_wish wish = {.name = "c", .type = type};
    struct schema_options options = {.wishes = &wish, .wish_count = 1, .format = format};
    struct spool_error error = {0};
    struct buf problems;

    memset(f, 0, sizeof(*f));
    buf_init(&f->raw, FIXTURE_MAX);
    buf_init(&f->text, FIXTURE_MAX);
    buf_init(&problems, MIB);
    if (schema_from_wishes(&options, server, "UTC", &f->schema, &problems) != SPOOL_OK)
        fail_msg("%s", buf_cstr(&problems));
    buf_free(&problems);
    if (decoder_create(f->schema, FIXTURE_MAX, &f->decoder, &error) != SPOOL_OK)
        fail_msg("%s", error.text);
    assert_int_equal(decoder_begin(f->decoder, &(struct record_place){"o", "t", 0}), SPOOL_OK);
}

static int put_value(struct fixture *f, const char *json)
{
    char record[1024];

    snprintf(record, sizeof(record), "{\"c\":%s}", json);
    return fixture_row(f, record);
}

static void expect_rows(const struct buf *raw, const char *type, const char *const *shown,
                        size_t first, size_t rows)
{
    struct spool_error error = {0};
    struct native_block *b = NULL;
    char wanted[1024];
    struct buf out;

    buf_init(&out, MIB);
    if (native_block_open(raw->data, raw->len, &b, &error) != SPOOL_OK)
        fail_msg("%s: %s", type, error.text);
    assert_int_equal(native_block_rows(b), rows);
    for (size_t i = 0; i < rows; i++) {
        snprintf(wanted, sizeof(wanted), "{\"c\":%s}", shown[first + i]);
        buf_reset(&out);
        assert_int_equal(native_block_row_json(b, i, &out, &error), SPOOL_OK);
        assert_string_equal(buf_cstr(&out), wanted);
    }
    buf_free(&out);
    native_block_free(b);
}

/* Rows in front of and behind the value, a refused one between: then each half of the block. */
static void round_trip(const char *type, const char *json, const char *shown,
                       struct server_version server)
{
    const char *wanted[4] = {shown, NULL, shown, NULL};
    struct spool_error error = {0};
    struct native_block *b = NULL;
    struct fixture f;
    struct buf half, zero;
    size_t promised;

    open_for(&f, type, server, FORMAT_NATIVE);
    buf_init(&half, MIB);
    buf_init(&zero, MIB);
    /* what a missing key gives */
    assert_int_equal(fixture_row(&f, "{}"), SPOOL_OK);
    assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    assert_int_equal(native_block_open(f.raw.data, f.raw.len, &b, &error), SPOOL_OK);
    assert_int_equal(native_block_row_json(b, 0, &zero, &error), SPOOL_OK);
    native_block_free(b);
    wanted[1] = wanted[3] = buf_cstr(&zero) + 5;
    zero.data[zero.len - 1] = 0;
    buf_reset(&f.raw);
    for (int i = 0; i < 2; i++) {
        int status = put_value(&f, json);
        if (status != SPOOL_OK)
            fail_msg("%s %s: %s", type, json, f.why.reason);
        assert_int_equal(fixture_row(&f, "{\"c\":[[[[[[nonsense"), SPOOL_E_REFUSED);
        assert_int_equal(fixture_row(&f, "{}"), SPOOL_OK);
    }
    promised = decoder_raw_bytes(f.decoder);
    assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    assert_true(f.raw.len <= promised && promised - f.raw.len < 16);
    expect_rows(&f.raw, type, wanted, 0, 4);
    assert_int_equal(native_block_open(f.raw.data, f.raw.len, &b, &error), SPOOL_OK);
    for (size_t first = 0; first < 4; first++) {
        buf_reset(&half);
        assert_int_equal(native_block_slice(b, first, 4 - first, &half, &error), SPOOL_OK);
        expect_rows(&half, type, wanted, first, 4 - first);
    }
    native_block_free(b);
    buf_free(&half);
    buf_free(&zero);
    fixture_close(&f);
}

static void test_round_trips(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(values); i++) {
        const char *shown = values[i].shown ? values[i].shown : values[i].json;
        round_trip(values[i].type, values[i].json, shown, modern);
        if (is_old(values[i].type))
            round_trip(values[i].type, values[i].json, shown, old);
    }
}

/* A refused value leaves nothing, wherever in it reading stopped. */
static void test_refusals(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(refused); i++) {
        struct fixture f;
        struct buf alone;
        buf_init(&alone, MIB);
        open_for(&f, refused[i].type, is_old(refused[i].type) ? old : modern, FORMAT_NATIVE);
        assert_int_equal(fixture_row(&f, "{}"), SPOOL_OK);
        assert_int_equal(decoder_finish(f.decoder, &alone), SPOOL_OK);
        for (int n = 0; n < 3; n++) {
            if (put_value(&f, refused[i].json) != SPOOL_E_REFUSED)
                fail_msg("%s took %s", refused[i].type, refused[i].json);
            if (f.why.code != refused[i].code)
                fail_msg("%s %s: %s: %s", refused[i].type, refused[i].json,
                         refusal_name(f.why.code), f.why.reason);
            assert_string_equal(f.why.column, "c");
            if (n == 1)
                assert_int_equal(fixture_row(&f, "{}"), SPOOL_OK);
        }
        assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
        assert_int_equal(f.raw.len, alone.len);
        assert_memory_equal(f.raw.data, alone.data, alone.len);
        buf_free(&alone);
        fixture_close(&f);
    }
}

/* A line of the JSON format decodes to the block that the record itself gives. */
static void test_lines_decode_again(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(values); i++) {
        struct fixture json, direct, again;
        open_for(&json, values[i].type, modern, FORMAT_JSON);
        open_for(&direct, values[i].type, modern, FORMAT_NATIVE);
        open_for(&again, values[i].type, modern, FORMAT_NATIVE);
        assert_int_equal(put_value(&json, values[i].json), SPOOL_OK);
        assert_int_equal(decoder_finish(json.decoder, &json.raw), SPOOL_OK);
        assert_int_equal(json.raw.data[json.raw.len - 1], '\n');
        assert_null(memchr(json.raw.data, '\n', json.raw.len - 1));
        assert_int_equal(put_value(&direct, values[i].json), SPOOL_OK);
        assert_int_equal(decoder_finish(direct.decoder, &direct.raw), SPOOL_OK);
        if (fixture_row_bytes(&again, json.raw.data, json.raw.len) != SPOOL_OK)
            fail_msg("%s: %.*s: %s", values[i].type, (int)json.raw.len, (char *)json.raw.data,
                     again.why.reason);
        assert_int_equal(decoder_finish(again.decoder, &again.raw), SPOOL_OK);
        if (again.raw.len != direct.raw.len ||
            memcmp(again.raw.data, direct.raw.data, direct.raw.len) != 0)
            fail_msg("%s %s: %.*s is another value", values[i].type, values[i].json,
                     (int)json.raw.len, (char *)json.raw.data);
        fixture_close(&json);
        fixture_close(&direct);
        fixture_close(&again);
    }
}

/* A record of little text that would be a thousand times as much is given up before it is that. */
static void test_short_elements_of_many_bytes(void **state)
{
    struct buf type, record;
    struct fixture f;

    (void)state;
    buf_init(&type, MIB);
    buf_init(&record, 64 * MIB);
    assert_int_equal(buf_append_str(&type, "Array(Tuple(e UInt64"), SPOOL_OK);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(buf_printf(&type, ", e%d Int256", i), SPOOL_OK);
    assert_int_equal(buf_append_str(&type, "))"), SPOOL_OK);
    open_for(&f, buf_cstr(&type), modern, FORMAT_NATIVE);
    assert_int_equal(buf_append_str(&record, "{\"c\":["), SPOOL_OK);
    for (size_t i = 0; i <= FIXTURE_MAX / 32000; i++)
        assert_int_equal(buf_append_str(&record, "{},"), SPOOL_OK);
    assert_int_equal(buf_append_str(&record, "5]}"), SPOOL_OK); /* which nobody gets to */
    assert_int_equal(fixture_row_bytes(&f, record.data, record.len), SPOOL_E_LIMIT);
    assert_int_equal(put_value(&f, "[{},{}]"), SPOOL_OK);
    buf_free(&type);
    buf_free(&record);
    fixture_close(&f);
}

/* Keys once, found again over growth, rollbacks and blocks; wider indexes as they are needed. */
static void test_dictionary(void **state)
{
    struct spool_error error = {0};
    struct native_block *b = NULL;
    struct fixture f;
    struct buf out;
    char text[64];
    size_t small;

    (void)state;
    buf_init(&out, MIB);
    open_for(&f, "LowCardinality(String)", old, FORMAT_NATIVE);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(put_value(&f, i % 2 ? "\"one\"" : "\"two\""), SPOOL_OK);
    assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    small = f.raw.len;
    assert_true(small < 1100);
    for (int block = 0; block < 2; block++) {
        for (int i = 0; i < 70000; i++) {
            snprintf(text, sizeof(text), "\"%d\"", i % 66000);
            assert_int_equal(put_value(&f, text), SPOOL_OK);
            if (i % 100 == 0) {
                snprintf(text, sizeof(text), "\"%d\" x", 100000 + i);
                assert_int_equal(put_value(&f, text), SPOOL_E_REFUSED);
            }
        }
        buf_reset(&f.raw);
        assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
        assert_int_equal(native_block_open(f.raw.data, f.raw.len, &b, &error), SPOOL_OK);
        for (uint64_t i = 0; i < 70000; i += 999) {
            buf_reset(&out);
            assert_int_equal(native_block_row_json(b, i, &out, &error), SPOOL_OK);
            snprintf(text, sizeof(text), "{\"c\":\"%d\"}", (int)i % 66000);
            assert_string_equal(buf_cstr(&out), text);
        }
        native_block_free(b);
    }
    /* nothing is left of them in a block after those */
    for (int i = 0; i < 1000; i++)
        assert_int_equal(put_value(&f, i % 2 ? "\"one\"" : "\"two\""), SPOOL_OK);
    buf_reset(&f.raw);
    assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    assert_int_equal(f.raw.len, small);
    buf_free(&out);
    fixture_close(&f);
}

/* Facts and literals into LowCardinality's own form, whose values stand among the keys. */
static void test_dictionary_facts(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "t", .type = "LowCardinality(String)", .from = "$topic"},
        {.name = "k", .type = "LowCardinality(Nullable(String))", .from = "$key"},
        {.name = "d", .type = "LowCardinality(DateTime)", .from = "$timestamp"},
        {.name = "c", .type = "LowCardinality(FixedString(2))", .value = "\"ab\""},
        {.name = "x", .type = "LowCardinality(String)", .default_json = "\"none\""},
    };
    struct schema_options options = {.wishes = wishes, .wish_count = COUNT(wishes)};
    struct record record = {.data = (const uint8_t *)"{}", .size = 2, .timestamp_ms = 1000};
    struct refusal why = {0};
    struct spool_error error = {0};
    struct native_block *b = NULL;
    struct schema *schema = NULL;
    struct decoder *d = NULL;
    struct buf problems, raw, out;

    (void)state;
    buf_init(&problems, MIB);
    buf_init(&raw, MIB);
    buf_init(&out, MIB);
    assert_int_equal(schema_from_wishes(&options, old, "UTC", &schema, &problems), SPOOL_OK);
    assert_int_equal(schema->format, FORMAT_NATIVE);
    assert_int_equal(decoder_create(schema, MIB, &d, &error), SPOOL_OK);
    assert_int_equal(decoder_begin(d, &(struct record_place){"o", "topic", 0}), SPOOL_OK);
    assert_int_equal(decoder_row(d, &record, &why), SPOOL_OK);
    record.key = "key";
    record.key_size = 3;
    record.data = (const uint8_t *)"{\"x\":\"y\"}";
    record.size = 9;
    assert_int_equal(decoder_row(d, &record, &why), SPOOL_OK);
    assert_int_equal(decoder_finish(d, &raw), SPOOL_OK);
    assert_int_equal(native_block_open(raw.data, raw.len, &b, &error), SPOOL_OK);
    for (uint64_t i = 0; i < 2; i++)
        assert_int_equal(native_block_row_json(b, i, &out, &error), SPOOL_OK);
    assert_string_equal(buf_cstr(&out),
                        "{\"t\":\"topic\",\"k\":null,\"d\":\"1970-01-01 00:00:01\","
                        "\"c\":\"ab\",\"x\":\"none\"}"
                        "{\"t\":\"topic\",\"k\":\"key\",\"d\":\"1970-01-01 00:00:01\","
                        "\"c\":\"ab\",\"x\":\"y\"}");
    native_block_free(b);
    decoder_free(d);
    schema_free(schema);
    buf_free(&problems);
    buf_free(&raw);
    buf_free(&out);
}

static void test_strict_tuples(void **state)
{
    struct column_wish wish = {.name = "c", .type = "Tuple(a Int8, b Nullable(Int8))"};
    struct schema_options options = {.wishes = &wish, .wish_count = 1, .strict = true};
    struct fixture f;

    (void)state;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    assert_int_equal(put_value(&f, "{\"a\":1}"), SPOOL_OK);
    assert_int_equal(put_value(&f, "{\"b\":1}"), SPOOL_E_REFUSED);
    assert_int_equal(f.why.code, REFUSAL_REQUIRED);
    assert_int_equal(put_value(&f, "{\"a\":null}"), SPOOL_E_REFUSED);
    assert_int_equal(f.why.code, REFUSAL_NULL);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_lines_decode_again),
        cmocka_unit_test(test_dictionary),
        cmocka_unit_test(test_short_elements_of_many_bytes),
        cmocka_unit_test(test_dictionary_facts),
        cmocka_unit_test(test_strict_tuples),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
