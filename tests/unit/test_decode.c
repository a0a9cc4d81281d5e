/* SPDX-License-Identifier: Apache-2.0 */
/* What a record as a whole becomes: keys, paths, defaults, facts, refusals, limits. */
#include "decode_fixture.h"

#include "codec/native.h"

static void open_columns(struct fixture *f, const struct column_wish *wishes, size_t count)
{
    struct schema_options options = {.wishes = wishes, .wish_count = count};

    assert_int_equal(fixture_open(f, &options), SPOOL_OK);
}

static void expect_row(struct fixture *f, const char *json, const char *text)
{
    int status = fixture_row(f, json);

    if (status != SPOOL_OK)
        fprintf(stderr, "%s: %s\n", json, f->why.reason);
    assert_int_equal(status, SPOOL_OK);
    assert_string_equal(fixture_text(f), text);
}

static void expect_refused(struct fixture *f, const char *json, int code, const char *column,
                           size_t position)
{
    uint32_t rows = decoder_rows(f->decoder);
    size_t bytes = decoder_raw_bytes(f->decoder);

    assert_int_equal(fixture_row(f, json), SPOOL_E_REFUSED);
    if (f->why.code != code || f->why.position != position)
        fprintf(stderr, "%s: %s at %zu: %s\n", json, refusal_name(f->why.code), f->why.position,
                f->why.reason);
    assert_int_equal(f->why.code, code);
    assert_int_equal(f->why.position, position);
    if (column)
        assert_string_equal(f->why.column, column);
    else
        assert_null(f->why.column);
    assert_int_equal(decoder_rows(f->decoder), rows);
    assert_int_equal(decoder_raw_bytes(f->decoder), bytes);
}

static const struct column_wish abc[] = {
    {.name = "a", .type = "UInt32"},
    {.name = "b", .type = "String"},
    {.name = "c", .type = "Array(Nullable(String))"},
};

static void test_key_order(void **state)
{
    struct fixture f;

    (void)state;
    open_columns(&f, abc, 3);
    expect_row(&f, "{\"a\":1,\"b\":\"x\",\"c\":[\"p\",null]}", "1 | x | ['p',NULL]");
    expect_row(&f, "{\"a\":2,\"b\":\"y\",\"c\":[]}", "2 | y | []");
    expect_row(&f, "{\"c\":[\"q\"],\"b\":\"z\",\"a\":3}", "3 | z | ['q']");
    expect_row(&f, "{ \"c\" : [ \"q\" ] ,\t\"b\"\n:\r\"z\", \"a\": 4 } ", "4 | z | ['q']");
    expect_row(&f, "{\"a\":1,\"x\":{\"a\":[1,2,{\"b\":null}]},\"b\":\"w\"}", "1 | w | []");
    expect_row(&f, "{\"b\":\"w\"}", "0 | w | []");
    expect_row(&f, "{\"a\":1,\"b\":\"w\"}", "1 | w | []");
    expect_row(&f, "{\"a\":1,\"c\":[\"d\"]}", "1 |  | ['d']");
    expect_row(&f, "{\"a\": 1,\"c\":  [\"d\"]}", "1 |  | ['d']");
    expect_row(&f, "{}", "0 |  | []");
    expect_row(&f, "{ }", "0 |  | []");
    expect_row(&f, "{\"\\u0062\":\"esc\",\"A\":9}", "0 | esc | []");
    fixture_close(&f);
}

/* Records of many shapes one after the other, so that every learned key order is wrong at times. */
static void test_shapes_alternate(void **state)
{
    static const char *members[] = {"\"a\":7", "\"b\":\"s\"", "\"c\":[\"t\"]", "\"zz\":[{}]",
                                    "\"other key that is longer than what is learned\":1"};
    static const char *gaps[] = {",", ", ", " ,", ",\n  "};
    struct fixture f;
    uint32_t seed = 1;

    (void)state;
    open_columns(&f, abc, 3);
    for (int i = 0; i < 20000; i++) {
        char json[512] = "{";
        char want[64];
        size_t n = 1;
        unsigned order[5] = {0, 1, 2, 3, 4}, used = 0;
        bool first = true;
        for (unsigned k = 4; k; k--) {
            unsigned j = (seed = seed * 1664525 + 1013904223) >> 16, swap = order[k];
            order[k] = order[j % (k + 1)];
            order[j % (k + 1)] = swap;
        }
        for (unsigned k = 0; k < 5; k++) {
            seed = seed * 1664525 + 1013904223;
            if (seed >> 16 & 1)
                continue;
            if (!first)
                n += (size_t)snprintf(json + n, sizeof(json) - n, "%s", gaps[seed >> 18 & 3]);
            n += (size_t)snprintf(json + n, sizeof(json) - n, "%s", members[order[k]]);
            used |= 1u << order[k];
            first = false;
        }
        snprintf(json + n, sizeof(json) - n, "}");
        snprintf(want, sizeof(want), "%s | %s | %s", used & 1 ? "7" : "0", used & 2 ? "s" : "",
                 used & 4 ? "['t']" : "[]");
        expect_row(&f, json, want);
    }
    fixture_close(&f);
}

static void test_refusals(void **state)
{
    struct fixture f;

    (void)state;
    open_columns(&f, abc, 3);
    for (int twice = 0; twice < 2; twice++) { /* the second time with a row in the block */
        expect_refused(&f, "", REFUSAL_NOT_JSON, NULL, 0);
        expect_refused(&f, " ", REFUSAL_NOT_JSON, NULL, 1);
        expect_refused(&f, "nonsense", REFUSAL_NOT_OBJECT, NULL, 0);
        expect_refused(&f, "[1]", REFUSAL_NOT_OBJECT, NULL, 0);
        expect_refused(&f, "\"x\"", REFUSAL_NOT_OBJECT, NULL, 0);
        expect_refused(&f, "}", REFUSAL_NOT_JSON, NULL, 0);
        expect_refused(&f, "{", REFUSAL_NOT_JSON, NULL, 1);
        expect_refused(&f, "{\"a\"", REFUSAL_NOT_JSON, NULL, 4);
        expect_refused(&f, "{\"a\":", REFUSAL_NOT_JSON, NULL, 5);
        expect_refused(&f, "{\"a\":1", REFUSAL_NOT_JSON, NULL, 6);
        expect_refused(&f, "{\"a\":1,", REFUSAL_NOT_JSON, NULL, 7);
        expect_refused(&f, "{\"a\":1,}", REFUSAL_NOT_JSON, NULL, 7);
        expect_refused(&f, "{,\"a\":1}", REFUSAL_NOT_JSON, NULL, 1);
        expect_refused(&f, "{,\"b\":\"x\"}", REFUSAL_NOT_JSON, NULL, 1);
        expect_refused(&f, "{\"b\":\"x\"\"a\":1}", REFUSAL_NOT_JSON, NULL, 8);
        expect_refused(&f, "{\"a\":1}x", REFUSAL_NOT_JSON, NULL, 7);
        expect_refused(&f, "{\"a\":12x}", REFUSAL_NOT_JSON, NULL, 7);
        expect_refused(&f, "{\"b\":\"x", REFUSAL_NOT_JSON, "b", 7);
        expect_refused(&f, "{\"zz\":\"\\x\"}", REFUSAL_NOT_JSON, NULL, 7);
        expect_refused(&f, "{\"b\":\"good\",\"a\":-1}", REFUSAL_RANGE, "a", 16);
        expect_refused(&f, "{\"c\":[\"p\",\"q\"],\"a\":1.5}", REFUSAL_TYPE, "a", 20);
        expect_refused(&f, "{\"c\":[\"p\",\"q\" \"r\"]}", REFUSAL_NOT_JSON, "c", 14);
        assert_int_equal(fixture_row(&f, "{\"a\":1,\"b\":\"x\",\"c\":[null]}"), SPOOL_OK);
    }
    assert_string_equal(fixture_text(&f), "1 | x | [NULL] || 1 | x | [NULL]");
    fixture_close(&f);
}

static void test_duplicates(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "id", .type = "UInt8", .from = "user.id"},
        {.name = "same", .type = "String", .from = "user.id"},
        {.name = "user", .type = "String"},
        {.name = "plain", .type = "UInt8"},
    };
    struct fixture f;

    (void)state;
    open_columns(&f, wishes, 4);
    expect_row(&f, "{\"user\": {\"x\":1, \"id\": 5} ,\"plain\":2}",
               "5 | 5 | {\"x\":1, \"id\": 5} | 2");
    expect_row(&f, "{\"user\":null,\"plain\":2,\"zz\":1,\"zz\":2}", "0 |  |  | 2");
    expect_row(&f, "{\"user\":{\"id\":null}}", "0 |  | {\"id\":null} | 0");
    expect_refused(&f, "{\"plain\":1,\"plain\":1}", REFUSAL_DUPLICATE_KEY, "plain", 19);
    expect_refused(&f, "{\"user\":{\"id\":1,\"id\":1}}", REFUSAL_DUPLICATE_KEY, "id", 21);
    expect_refused(&f, "{\"user\":{\"id\":1},\"user\":{\"id\":1}}", REFUSAL_DUPLICATE_KEY, "user",
                   24);
    fixture_close(&f);
    open_columns(&f, wishes, 1);
    expect_refused(&f, "{\"user\":5}", REFUSAL_TYPE, NULL, 8);
    expect_refused(&f, "{\"user\":{\"id\":1},\"user\":{\"id\":1}}", REFUSAL_DUPLICATE_KEY, "id",
                   30);
    expect_row(&f, "{\"user\":{\"id\":1},\"user\":{\"ix\":{\"id\":3}},\"user.id\":4}", "1");
    fixture_close(&f);
}

static void test_defaults(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "n", .type = "UInt16", .default_json = "700"},
        {.name = "s", .type = "Nullable(String)", .default_json = "\"d\\n\""},
        {.name = "l", .type = "LowCardinality(String)", .default_json = "\"low\""},
        {.name = "arr", .type = "Array(Array(UInt8))", .default_json = "[[1],[2,3]]"},
        {.name = "e", .type = "Enum8('x' = 5, 'y' = 9)"},
        {.name = "e2", .type = "Enum16('x' = -300, 'y' = 900)", .default_json = "\"y\""},
        {.name = "nn", .type = "Nullable(DateTime64(3))"},
        {.name = "k", .type = "FixedString(3)", .value = "\"ab\""},
    };
    struct fixture f;
    char long_row[16];

    (void)state;
    open_columns(&f, wishes, 8);
    expect_row(&f, "{}", "700 | d\\n | low | [[1],[2,3]] | x | y | \\N | ab\\0");
    expect_row(&f, "{\"n\":null,\"s\":null,\"l\":null,\"arr\":null,\"e2\":null,\"nn\":null}",
               "700 | \\N | low | [[1],[2,3]] | x | y | \\N | ab\\0");
    expect_row(&f,
               "{\"n\":1,\"s\":\"\",\"l\":\"\",\"arr\":[],\"e\":\"y\",\"e2\":-300,\"nn\":0,"
               "\"k\":\"unused\"}",
               "1 |  |  | [] | y | x | 1970-01-01 00:00:00.000 | ab\\0");
    expect_refused(&f, "{\"e\":null}", REFUSAL_NULL, "e", 5);
    snprintf(long_row, sizeof(long_row), "{\"n\":1}");
    for (int i = 0; i < 3; i++)
        assert_int_equal(fixture_row(&f, long_row), SPOOL_OK);
    assert_non_null(
        strstr(fixture_text(&f), " || 1 | d\\n | low | [[1],[2,3]] | x | y | \\N | ab"));
    fixture_close(&f);
}

static void test_bad_default(void **state)
{
    struct schema_column column = {.name = (char *)"n", .source = SOURCE_KEY, .path = (char *)"n"};
    struct schema schema = {
        .columns = &column, .count = 1, .format = FORMAT_NATIVE, .server_timezone = (char *)"UTC"};
    struct decoder *d;
    struct spool_error error = {0};

    (void)state;
    assert_int_equal(type_parse("UInt8", 5, &column.type, NULL), SPOOL_OK);
    column.wire = column.type;
    column.default_json = (char *)"256";
    assert_int_equal(decoder_create(&schema, MIB, &d, &error), SPOOL_E_INVALID);
    assert_string_equal(error.text, "column n: \"default\": the number is outside UInt8");
    column.default_json = (char *)"25 6";
    assert_int_equal(decoder_create(&schema, MIB, &d, &error), SPOOL_E_INVALID);
    type_free(column.type);
    assert_int_equal(type_parse("DateTime('Mars/Olympus')", 24, &column.type, NULL), SPOOL_OK);
    column.wire = column.type;
    column.default_json = NULL;
    assert_int_equal(decoder_create(&schema, MIB, &d, &error), SPOOL_E_NOT_FOUND);
    assert_non_null(strstr(error.text, "column n: time zone Mars/Olympus"));
    type_free(column.type);
}

/* A DEFAULT only the server can evaluate: NULL in a Nullable block. */
static void test_default_by_server(void **state)
{
    struct schema_options options = {0};
    struct table_column table[] = {
        {(char *)"a", (char *)"UInt32", (char *)"", (char *)""},
        {(char *)"b", (char *)"String", (char *)"DEFAULT", (char *)"concat('d', toString(a))"},
    };
    struct server_version server = {26, 7, 0};
    struct spool_error error = {0};
    struct buf problems;
    struct fixture f = {0};

    (void)state;
    buf_init(&problems, MIB);
    buf_init(&f.raw, MIB);
    buf_init(&f.text, MIB);
    assert_int_equal(schema_resolve(&options, table, 2, server, "UTC", &f.schema, &problems),
                     SPOOL_OK);
    assert_int_equal(f.schema->columns[1].wire->kind, TYPE_NULLABLE);
    assert_int_equal(decoder_create(f.schema, MIB, &f.decoder, &error), SPOOL_OK);
    expect_row(&f, "{\"a\":1}", "1 | \\N");
    expect_row(&f, "{\"a\":1,\"b\":null}", "1 | \\N");
    expect_row(&f, "{\"a\":1,\"b\":\"\"}", "1 | ");
    buf_free(&problems);
    fixture_close(&f);
}

static void test_required_and_strict(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "r", .type = "UInt8", .required = true},
        {.name = "n", .type = "Nullable(UInt8)", .required = true},
        {.name = "o", .type = "Array(UInt8)"},
    };
    struct schema_options options = {.wishes = wishes, .wish_count = 3};
    struct fixture f;

    (void)state;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    expect_row(&f, "{\"r\":1,\"n\":null}", "1 | \\N | []");
    expect_row(&f, "{\"r\":1,\"n\":2,\"o\":[null]}", "1 | 2 | [0]");
    expect_refused(&f, "{\"r\":1}", REFUSAL_REQUIRED, "n", 7);
    expect_refused(&f, "{\"n\":1}", REFUSAL_REQUIRED, "r", 7);
    expect_refused(&f, "{\"r\":null,\"n\":1}", REFUSAL_NULL, "r", 5);
    fixture_close(&f);
    options.strict = true;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    expect_row(&f, "{\"r\":1,\"n\":null,\"o\":[]}", "1 | \\N | []");
    expect_refused(&f, "{\"r\":1,\"n\":null}", REFUSAL_REQUIRED, "o", 16);
    expect_refused(&f, "{\"r\":1,\"n\":null,\"o\":null}", REFUSAL_NULL, "o", 20);
    expect_refused(&f, "{\"r\":1,\"n\":null,\"o\":[null]}", REFUSAL_NULL, "o", 21);
    fixture_close(&f);
}

static void test_unknown_keys(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "a", .type = "UInt8"},
        {.name = "id", .type = "UInt8", .from = "u.id"},
        {.name = "rest", .type = "String", .from = "$rest"},
    };
    struct schema_options options = {
        .wishes = wishes, .wish_count = 2, .unknown_keys = UNKNOWN_REFUSE};
    struct fixture f;

    (void)state;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    expect_row(&f, "{\"a\":1,\"u\":{\"id\":2}}", "1 | 2");
    expect_refused(&f, "{\"a\":1,\"b\":2}", REFUSAL_UNKNOWN_KEY, NULL, 7);
    expect_refused(&f, "{\"a\":1,\"u\":{\"id\":2,\"name\":3}}", REFUSAL_UNKNOWN_KEY, NULL, 19);
    fixture_close(&f);
    options.wish_count = 3;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    for (int i = 0; i < 3; i++) { /* learned keys give the same text */
        expect_row(&f, "{\"x\": [1, 2],\"a\":1, \"y\\n\" : {\"a\":null} }",
                   "1 | 0 | {\"x\": [1, 2],\"y\\\\n\" : {\"a\":null}}");
        expect_row(&f, "{\"a\":1}", "1 | 0 | {}");
    }
    fixture_close(&f);
}

static void test_facts(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "topic", .type = "LowCardinality(String)", .from = "$topic"},
        {.name = "part", .type = "Int32", .from = "$partition"},
        {.name = "off", .type = "UInt64", .from = "$offset"},
        {.name = "key", .type = "String", .from = "$key"},
        {.name = "num", .type = "Nullable(FixedString(3))", .from = "$key"},
        {.name = "ts", .type = "DateTime64(6)", .from = "$timestamp"},
        {.name = "ts0", .type = "DateTime", .from = "$timestamp"},
        {.name = "tsn", .type = "Nullable(Int64)", .from = "$timestamp"},
        {.name = "day", .type = "Date", .from = "$received_at"},
        {.name = "hdr", .type = "String", .from = "$headers"},
        {.name = "org", .type = "String", .from = "$origin"},
        {.name = "rec", .type = "String", .from = "$record"},
    };
    struct record_header headers[] = {
        {"one", "1", 1}, {"two", "a\"b", 3}, {"one", "last", 4}, {"none", NULL, 0}};
    const char *json = " {\"a\": 1} ";
    struct record record = {.data = (const uint8_t *)json,
                            .size = strlen(json),
                            .offset = 4294967296,
                            .timestamp_ms = 1795437296789,
                            .received_ms = 1795437297001,
                            .key = "77",
                            .key_size = 2,
                            .headers = headers,
                            .header_count = 4};
    struct fixture f;

    (void)state;
    open_columns(&f, wishes, 12);
    assert_int_equal(decoder_wants(f.decoder), RECORD_WANTS_ALL);
    assert_int_equal(decoder_row(f.decoder, &record, &f.why), SPOOL_OK);
    assert_string_equal(fixture_text(&f),
                        "topic-1 | 3 | 4294967296 | 77 | 77\\0 | 2026-11-23 12:34:56.789000 | "
                        "2026-11-23 12:34:56 | 1795437296789 | 2026-11-23 | "
                        "{\"two\":\"a\\\\\"b\",\"one\":\"last\",\"none\":null} | origin-1 | "
                        "{\"a\": 1}");
    record.key = NULL;
    record.timestamp_ms = -1;
    record.header_count = 0;
    assert_int_equal(decoder_begin(f.decoder, &(struct record_place){"http/7", NULL, -1}),
                     SPOOL_OK);
    assert_int_equal(decoder_row(f.decoder, &record, &f.why), SPOOL_OK);
    assert_string_equal(fixture_text(&f),
                        " | 0 | 4294967296 |  | \\N | 1970-01-01 00:00:00.000000 | "
                        "1970-01-01 00:00:00 | \\N | 2026-11-23 | {} | http/7 | {\"a\": 1}");
    record.key = "\xff\x00++";
    record.key_size = 4;
    assert_int_equal(decoder_row(f.decoder, &record, &f.why), SPOOL_E_REFUSED);
    assert_string_equal(f.why.column, "num");
    fixture_close(&f);
}

static void test_framing(void **state)
{
    struct schema_options options = {
        .wishes = abc, .wish_count = 1, .schema_registry_framing = true};
    struct fixture f;

    (void)state;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    assert_int_equal(fixture_row_bytes(&f, "\0\0\0\0\x07{\"a\":5}", 12), SPOOL_OK);
    assert_string_equal(fixture_text(&f), "5");
    assert_int_equal(fixture_row_bytes(&f, "\1\0\0\0\x07{\"a\":5}", 12), SPOOL_E_REFUSED);
    assert_int_equal(f.why.code, REFUSAL_FRAMING);
    assert_int_equal(fixture_row_bytes(&f, "\0\0\0\0", 4), SPOOL_E_REFUSED);
    assert_int_equal(f.why.code, REFUSAL_FRAMING);
    assert_int_equal(fixture_row_bytes(&f, "\0\0\0\0\x07", 5), SPOOL_E_REFUSED);
    assert_int_equal(f.why.code, REFUSAL_NOT_JSON);
    assert_int_equal(fixture_row_bytes(&f, "{\"a\":5}", 7), SPOOL_E_REFUSED);
    assert_int_equal(f.why.code, REFUSAL_FRAMING);
    fixture_close(&f);
    open_columns(&f, abc, 1);
    expect_row(&f, "\xef\xbb\xbf {\"a\":6}\n", "6");
    fixture_close(&f);
}

static void deep(char *out, int levels, char open, char close)
{
    memset(out, open, (size_t)levels);
    memset(out + levels, close, (size_t)levels);
    out[2 * levels] = 0;
}

static void test_depth(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "s", .type = "String"},
        {.name = "n", .type = "Array(Array(Array(UInt8)))"},
    };
    struct fixture f;
    char inner[4 * LIMIT_JSON_DEPTH + 8], json[4 * LIMIT_JSON_DEPTH + 64];

    (void)state;
    open_columns(&f, wishes, 2);
    for (int extra = 0; extra < 2; extra++) {
        deep(inner, LIMIT_JSON_DEPTH - 1 + extra, '[', ']');
        for (int key = 0; key < 2; key++) {
            snprintf(json, sizeof(json), "{\"%s\":%s}", key ? "s" : "zz", inner);
            assert_int_equal(fixture_row(&f, json), extra ? SPOOL_E_REFUSED : SPOOL_OK);
            if (extra)
                assert_int_equal(f.why.code, REFUSAL_DEPTH);
        }
    }
    fixture_close(&f);
}

static void test_truncate(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "d", .type = "Decimal(38, 3)", .truncate = true},
        {.name = "e", .type = "Array(Nullable(Decimal(9, 3)))", .truncate = true},
    };
    struct fixture f;

    (void)state;
    open_columns(&f, wishes, 2);
    expect_row(&f, "{\"d\":-1.23456,\"e\":[\"0.0009\",null,1e-9,12345.6789e-1]}",
               "-1.234 | [0,NULL,0,1234.567]");
    expect_row(&f, "{\"d\":99999999999999999999999999999999999.9999}",
               "99999999999999999999999999999999999.999 | []");
    expect_refused(&f, "{\"d\":100000000000000000000000000000000000}", REFUSAL_RANGE, "d", 5);
    fixture_close(&f);
}

/* Arrays of a flattened Nested that disagree would make the server refuse the whole block. */
static void test_nested_lengths(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "n.a", .type = "Array(UInt8)"},
        {.name = "m.a", .type = "Array(UInt8)"},
        {.name = "n.b", .type = "Array(String)"},
    };
    struct fixture f;

    (void)state;
    open_columns(&f, wishes, 3);
    expect_row(&f, "{\"n.a\":[1],\"n.b\":[\"x\"],\"m.a\":[1,2,3]}", "[1] | [1,2,3] | ['x']");
    expect_refused(&f, "{\"n.a\":[1],\"n.b\":[\"x\",\"y\"]}", REFUSAL_TYPE, "n.b", 27);
    expect_refused(&f, "{\"n.b\":[\"x\"]}", REFUSAL_TYPE, "n.b", 13);
    fixture_close(&f);
}

static void test_block_limit(void **state)
{
    struct schema_options options = {.wishes = abc, .wish_count = 3};
    struct decoder *small;
    struct fixture f;
    char json[6000];
    struct record record = {.data = (uint8_t *)json};
    size_t bytes;
    int rows = 0, status;

    (void)state;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    assert_int_equal(decoder_create(f.schema, 10000, &small, NULL), SPOOL_OK);
    record.size =
        (size_t)snprintf(json, sizeof(json), "{\"a\":1,\"b\":\"%0900d\",\"c\":[\"z\"]}", 7);
    while ((status = decoder_row(small, &record, &f.why)) == SPOOL_OK)
        rows++;
    assert_int_equal(status, SPOOL_E_LIMIT);
    assert_int_equal(rows, 10);
    assert_int_equal(decoder_rows(small), 10);
    bytes = decoder_raw_bytes(small);
    assert_true(bytes <= 10000);
    assert_int_equal(decoder_finish(small, &f.raw), SPOOL_OK);
    assert_true(f.raw.len <= bytes);
    assert_int_equal(decoder_row(small, &record, &f.why), SPOOL_OK);
    buf_reset(&f.raw);
    assert_int_equal(decoder_finish(small, &f.raw), SPOOL_OK);
    /* more than a block can ever hold: strings, and arrays that grow from little text */
    record.size = (size_t)snprintf(json, sizeof(json), "{\"b\":\"%05000d%s\"}", 7, "");
    assert_int_equal(decoder_row(small, &record, &f.why), SPOOL_OK);
    assert_int_equal(decoder_row(small, &record, &f.why), SPOOL_E_LIMIT);
    record.size = (size_t)snprintf(json, sizeof(json), "{\"c\":[");
    for (int i = 0; i < 1500; i++)
        memcpy(json + record.size + 3 * (size_t)i, "\"\",", 3);
    memcpy(json + record.size + 4500, "\"\"]}", 5);
    record.size = strlen(json);
    assert_int_equal(decoder_row(small, &record, &f.why), SPOOL_OK);
    assert_int_equal(decoder_row(small, &record, &f.why), SPOOL_E_LIMIT);
    assert_int_equal(decoder_rows(small), 2);
    decoder_free(small);
    assert_int_equal(decoder_create(f.schema, 300, &small, NULL), SPOOL_OK);
    assert_int_equal(decoder_row(small, &record, &f.why), SPOOL_E_LIMIT);
    assert_int_equal(decoder_rows(small), 0);
    decoder_free(small);
    fixture_close(&f);
}

/* The JSON format: every known column checked and written canonically, the others as they came. */
static void test_json_format(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "i", .type = "Int8"},
        {.name = "s", .type = "String"},
        {.name = "f", .type = "Float64"},
        {.name = "g", .type = "Float32"},
        {.name = "d", .type = "Decimal(9, 2)"},
        {.name = "t", .type = "DateTime64(3, 'UTC')"},
        {.name = "b", .type = "DateTime('Europe/Berlin')"},
        {.name = "a", .type = "Array(Nullable(Enum8('x' = 1)))"},
        {.name = "u", .type = "UUID"},
        {.name = "x", .type = "FixedString(4)"},
        {.name = "m", .type = "QBit(Float32, 4)"},
        {.name = "w", .type = "IPv6"},
        {.name = "k", .type = "Foo(String, String)", .value = "{\"k\": 1}"},
    };
    struct schema_options options = {.wishes = wishes, .wish_count = 13, .format = FORMAT_JSON};
    struct fixture f;

    (void)state;
    assert_int_equal(fixture_open(&f, &options), SPOOL_OK);
    assert_int_equal(
        fixture_row(&f,
                    "{\"i\":\"-5\",\"s\":\"\\u00e9\\n\xff\\\"\",\"f\":0.1,\"g\":1.1,\"d\":-1.5,"
                    "\"t\":\"2026-11-23T12:34:56.7Z\",\"b\":\"2026-07-01 00:00\",\"a\":[1,null],"
                    "\"u\":\"00112233445566778899AABBCCDDEEFF\",\"x\":\"ab\","
                    "\"m\":{\"a\":\n1},\"w\":\"::1\"}"),
        SPOOL_OK);
    assert_int_equal(fixture_row(&f, "{\"i\":300}"), SPOOL_E_REFUSED);
    assert_int_equal(fixture_row(&f, "{\"m\":{\"a\":01}}"), SPOOL_E_REFUSED);
    assert_int_equal(fixture_row(&f, "{\"m\":1,\"m\":1}"), SPOOL_E_REFUSED);
    assert_int_equal(fixture_row(&f, "{\"f\":\"-inf\",\"i\":null}"), SPOOL_OK);
    assert_int_equal(decoder_rows(f.decoder), 2);
    assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    assert_string_equal(
        buf_cstr(&f.raw),
        "{\"i\":-5,\"s\":\"\xc3\xa9\\u000a\xff\\\"\",\"f\":0.1,\"g\":1.1,\"d\":-1.50,"
        "\"t\":\"2026-11-23 12:34:56.700\",\"b\":1782856800,\"a\":[\"x\",null],"
        "\"u\":\"00112233-4455-6677-8899-aabbccddeeff\",\"x\":\"ab\",\"m\":{\"a\": 1},"
        "\"w\":\"::1\",\"k\":{\"k\": 1}}\n"
        "{\"i\":0,\"s\":\"\",\"f\":\"-inf\",\"g\":0,\"d\":0.00,\"t\":\"1970-01-01 00:00:00.000\","
        "\"b\":0,\"a\":[],\"u\":\"00000000-0000-0000-0000-000000000000\",\"x\":\"\",\"w\":\"::\","
        "\"k\":{\"k\": 1}}\n");
    fixture_close(&f);
}

/* The reader of blocks, which knows nothing of the decoder, gives the same values back. */
static void test_read_back(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "i", .type = "Int64"},
        {.name = "s", .type = "Nullable(String)"},
        {.name = "f", .type = "Float64"},
        {.name = "t", .type = "DateTime64(3, 'Europe/Berlin')"},
        {.name = "a", .type = "Array(Array(Nullable(UInt16)))"},
        {.name = "e", .type = "Enum16('p' = -1, 'q' = 300)"},
        {.name = "u", .type = "UUID"},
        {.name = "d", .type = "Decimal(20, 3)"},
        {.name = "b", .type = "Bool"},
        {.name = "l", .type = "LowCardinality(String)"},
        {.name = "v", .type = "IPv4"},
    };
    static const char *const records[] = {
        "{\"i\":-9,\"s\":\"x\\u0000\\\"\",\"f\":0.1,\"t\":\"2026-11-23T12:34:56.789Z\","
        "\"a\":[[1,null],[],[65535]],\"e\":\"q\",\"u\":\"00112233-4455-6677-8899-aabbccddeeff\","
        "\"d\":-12345678901234567.125,\"b\":true,\"l\":\"low\",\"v\":\"1.2.3.4\"}",
        "{}",
    };
    static const char *const lines[] = {
        "{\"i\":-9,\"s\":\"x\\u0000\\\"\",\"f\":0.1,\"t\":\"2026-11-23 13:34:56.789\","
        "\"a\":[[1,null],[],[65535]],\"e\":\"q\",\"u\":\"00112233-4455-6677-8899-aabbccddeeff\","
        "\"d\":-12345678901234567.125,\"b\":true,\"l\":\"low\",\"v\":\"1.2.3.4\"}",
        "{\"i\":0,\"s\":null,\"f\":0,\"t\":\"1970-01-01 01:00:00.000\",\"a\":[],\"e\":\"p\","
        "\"u\":\"00000000-0000-0000-0000-000000000000\",\"d\":0,\"b\":false,\"l\":\"\","
        "\"v\":\"0.0.0.0\"}",
    };
    struct native_block *block;
    struct spool_error error = {0};
    struct fixture f;

    (void)state;
    open_columns(&f, wishes, 11);
    for (int i = 0; i < 2; i++)
        assert_int_equal(fixture_row(&f, records[i]), SPOOL_OK);
    assert_int_equal(decoder_finish(f.decoder, &f.raw), SPOOL_OK);
    assert_int_equal(native_block_open(f.raw.data, f.raw.len, &block, &error), SPOOL_OK);
    assert_int_equal(native_block_rows(block), 2);
    for (uint64_t i = 0; i < 2; i++) {
        buf_reset(&f.text);
        assert_int_equal(native_block_row_json(block, i, &f.text, &error), SPOOL_OK);
        assert_string_equal(buf_cstr(&f.text), lines[i]);
    }
    native_block_free(block);
    fixture_close(&f);
}

static void test_refusal_names(void **state)
{
    (void)state;
    for (int code = REFUSAL_NOT_JSON; code <= REFUSAL_SERVER; code++)
        for (int other = 0; other < code; other++)
            assert_string_not_equal(refusal_name(code), refusal_name(other));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_order),         cmocka_unit_test(test_shapes_alternate),
        cmocka_unit_test(test_refusals),          cmocka_unit_test(test_duplicates),
        cmocka_unit_test(test_defaults),          cmocka_unit_test(test_bad_default),
        cmocka_unit_test(test_default_by_server), cmocka_unit_test(test_required_and_strict),
        cmocka_unit_test(test_unknown_keys),      cmocka_unit_test(test_facts),
        cmocka_unit_test(test_framing),           cmocka_unit_test(test_depth),
        cmocka_unit_test(test_truncate),          cmocka_unit_test(test_nested_lengths),
        cmocka_unit_test(test_block_limit),       cmocka_unit_test(test_json_format),
        cmocka_unit_test(test_read_back),         cmocka_unit_test(test_refusal_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
