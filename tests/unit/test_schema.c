/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/limits.h"
#include "codec/schema.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* String literals where the structs have char *: nothing here writes to them. */
#define COLUMN(name, type, kind, expression)                                                       \
    {                                                                                              \
        (char *)(name), (char *)(type), (char *)(kind), (char *)(expression)                       \
    }

static const struct server_version modern = {26, 7, 2};
static const struct server_version old = {18, 16, 1};

static int try_resolve(const struct schema_options *options, const struct table_column *table,
                       size_t count, struct server_version server, struct schema **out,
                       struct buf *problems)
{
    int status;

    buf_init(problems, MIB);
    status = schema_resolve(options, table, count, server, "Europe/Berlin", out, problems);
    assert_non_null(buf_cstr(problems));
    assert_int_equal(status == SPOOL_OK, *out != NULL);
    assert_int_equal(status == SPOOL_OK, problems->len == 0);
    return status;
}

static struct schema *resolve(const struct schema_options *options,
                              const struct table_column *table, size_t count,
                              struct server_version server)
{
    struct schema *schema = NULL;
    struct buf problems;

    try_resolve(options, table, count, server, &schema, &problems);
    if (!schema)
        fail_msg("%s", (char *)problems.data);
    buf_free(&problems);
    return schema;
}

/* Expects the problems to be exactly these lines. */
static void expect_problems(const struct schema_options *options, const struct table_column *table,
                            size_t count, struct server_version server, const char *lines)
{
    struct schema *schema = NULL;
    struct buf problems;

    assert_int_equal(try_resolve(options, table, count, server, &schema, &problems),
                     SPOOL_E_INVALID);
    assert_string_equal((char *)problems.data, lines);
    buf_free(&problems);
}

static void expect_wire(const struct schema_column *c, const char *wire)
{
    struct buf text;

    buf_init(&text, MIB);
    assert_int_equal(type_format(c->wire, &text), SPOOL_OK);
    assert_string_equal(buf_cstr(&text), wire);
    buf_free(&text);
}

static void test_every_ordinary_column(void **state)
{
    static const struct table_column table[] = {
        COLUMN("id", "UInt64", "", ""),
        COLUMN("n.a", "Array(UInt8)", "", ""),
        COLUMN("m", "UInt8", "MATERIALIZED", "id + 1"),
        COLUMN("al", "UInt8", "ALIAS", "id + 2"),
        COLUMN("e", "UInt8", "EPHEMERAL", "defaultValueOfTypeName('UInt8')"),
        COLUMN("back\\slash", "String", "DEFAULT", "'x'"),
    };
    struct schema_options options = {.unknown_keys = UNKNOWN_REFUSE, .strict = false};
    struct schema *s = resolve(&options, table, COUNT(table), modern);
    struct buf list;

    (void)state;
    assert_int_equal(s->count, 3);
    assert_int_equal(s->format, FORMAT_NATIVE);
    assert_int_equal(s->unknown_keys, UNKNOWN_REFUSE);
    assert_string_equal(s->server_timezone, "Europe/Berlin");
    assert_string_equal(s->columns[0].name, "id");
    assert_string_equal(s->columns[0].path, "id");
    assert_int_equal(s->columns[0].source, SOURCE_KEY);
    assert_null(s->columns[0].default_json);
    assert_string_equal(s->columns[1].path, "n\\.a");
    assert_string_equal(s->columns[2].path, "back\\\\slash");
    assert_string_equal(s->columns[2].default_json, "\"x\"");
    buf_init(&list, 1000);
    assert_int_equal(schema_column_list(s, &list), SPOOL_OK);
    assert_string_equal(buf_cstr(&list), "`id`, `n.a`, `back\\\\slash`");
    buf_free(&list);
    schema_free(s);
}

static void test_wishes(void **state)
{
    static const struct table_column table[] = {
        COLUMN("id", "UInt64", "", ""),
        COLUMN("name", "LowCardinality(String)", "", ""),
        COLUMN("raw", "String", "", ""),
        COLUMN("part", "Int32", "", ""),
        COLUMN("at", "DateTime64(3, 'UTC')", "", ""),
        COLUMN("kind", "String", "", ""),
        COLUMN("price", "Decimal(9, 2)", "", ""),
        COLUMN("eph", "String", "EPHEMERAL", "'x'"),
        COLUMN("left_out", "String", "", ""),
    };
    static const struct column_wish wishes[] = {
        {.name = "at", .from = "$timestamp"},
        {.name = "id", .type = "UInt64", .from = "user.id", .required = true},
        {.name = "name", .default_json = "\"none\""},
        {.name = "raw", .from = "$record"},
        {.name = "part", .from = "$partition"},
        {.name = "kind", .value = "\"click\""},
        {.name = "price", .type = "Decimal32(2)", .truncate = true},
        {.name = "eph"},
    };
    struct schema_options options = {.wishes = wishes, .wish_count = COUNT(wishes)};
    struct schema *s = resolve(&options, table, COUNT(table), modern);

    (void)state;
    assert_int_equal(s->count, COUNT(wishes));
    assert_string_equal(s->columns[0].name, "at");
    assert_int_equal(s->columns[0].source, SOURCE_TIMESTAMP);
    assert_null(s->columns[0].path);
    assert_string_equal(s->columns[1].path, "user.id");
    assert_true(s->columns[1].required);
    assert_string_equal(s->columns[2].default_json, "\"none\"");
    expect_wire(&s->columns[2], "String");
    assert_string_equal(s->columns[2].type->text, "LowCardinality(String)");
    assert_int_equal(s->columns[3].source, SOURCE_RECORD);
    assert_int_equal(s->columns[4].source, SOURCE_PARTITION);
    assert_int_equal(s->columns[5].source, SOURCE_CONSTANT);
    assert_string_equal(s->columns[5].literal, "\"click\"");
    assert_true(s->columns[6].truncate);
    assert_string_equal(s->columns[7].default_json, "\"x\"");
    schema_free(s);
}

static void test_all_facts(void **state)
{
    static const char *const from[] = {"$record", "$rest",       "$topic",     "$partition",
                                       "$offset", "$key",        "$timestamp", "$headers",
                                       "$origin", "$received_at"};
    static const char *const types[] = {"String",         "String", "String",
                                        "UInt32",         "UInt64", "String",
                                        "DateTime",       "String", "LowCardinality(String)",
                                        "Nullable(Int64)"};

    (void)state;
    for (size_t i = 0; i < COUNT(from); i++) {
        struct column_wish wish = {.name = "c", .from = from[i]};
        struct table_column table[] = {COLUMN("c", types[i], "", "")};
        struct schema_options options = {.wishes = &wish, .wish_count = 1};
        struct schema *s = resolve(&options, table, 1, modern);
        assert_int_equal(s->columns[0].source, SOURCE_RECORD + (int)i);
        schema_free(s);
    }
}

static void test_problems(void **state)
{
    static const struct table_column table[] = {
        COLUMN("id", "UInt64", "", ""),
        COLUMN("name", "String", "", ""),
        COLUMN("al", "UInt8", "ALIAS", "id"),
        COLUMN("ma", "UInt8", "MATERIALIZED", "id"),
        COLUMN("agg", "AggregateFunction(sum, UInt64)", "", ""),
        COLUMN("bad", "Decimal(99, 1)", "", ""),
    };
    static const struct column_wish wishes[] = {
        {.name = "nmae"}, {.name = "zebra"}, {.name = "id", .type = "UInt32"},
        {.name = "id"},   {.name = "al"},    {.name = "ma"},
        {.name = "agg"},  {.name = "bad"},   {.name = "name", .from = "$topik"},
    };
    static const struct column_wish more[] = {
        {.name = "id", .from = "$partition", .value = "1"},
        {.name = "name", .from = "a..b", .required = true, .default_json = "1", .truncate = true},
    };
    static const struct column_wish facts[] = {
        {.name = "id", .from = "$topic"},
        {.name = "name", .from = "$partition"},
    };
    struct schema_options options = {.wishes = wishes, .wish_count = COUNT(wishes)};

    (void)state;
    expect_problems(
        &options, table, COUNT(table), modern,
        "column nmae: the table has no such column; the nearest is name\n"
        "column zebra: the table has no such column\n"
        "column id: the config says UInt32, the table has UInt64\n"
        "column id: is named twice\n"
        "column al: is ALIAS, which the server computes itself\n"
        "column ma: is MATERIALIZED, which the server computes itself\n"
        "column agg: is AggregateFunction(sum, UInt64), a state that no record can give\n"
        "column bad: type name, byte 10: the number is out of range\n"
        "column name: \"from\" is $topik, which is no fact of a record; the nearest is "
        "$topic\n");
    options = (struct schema_options){.wishes = more, .wish_count = COUNT(more)};
    expect_problems(&options, table, COUNT(table), modern,
                    "column id: has both \"from\" and \"value\"\n"
                    "column name: \"from\" is \"a..b\", which is no path of keys\n"
                    "column name: is \"required\" and has a \"default\", which can never be used\n"
                    "column name: \"truncate\" is for Decimal, the column is String\n");
    options = (struct schema_options){.wishes = facts, .wish_count = COUNT(facts)};
    expect_problems(&options, table, COUNT(table), modern,
                    "column id: $topic needs String or FixedString, the column is UInt64\n"
                    "column name: $partition needs an integer of 32 or 64 bits, the column is "
                    "String\n");
    options = (struct schema_options){.wishes = NULL};
    expect_problems(&options, NULL, 0, modern, "the table has no column that can be filled\n");
}

static void test_values_must_fit(void **state)
{
    static const struct table_column table[] = {
        COLUMN("a", "UInt8", "", ""),           COLUMN("b", "DateTime('UTC')", "", ""),
        COLUMN("c", "String", "", ""),          COLUMN("d", "DateTime('Atlantis/Capital')", "", ""),
        COLUMN("e", "Nullable(UInt8)", "", ""), COLUMN("f", "Tuple(UInt8)", "", ""),
    };
    struct column_wish wishes[] = {
        {.name = "a", .value = "256"},  {.name = "b", .default_json = "\"soon\""},
        {.name = "c", .value = "null"}, {.name = "d"},
        {.name = "e", .value = "null"}, {.name = "f", .value = "[1]"},
    };
    struct schema_options options = {.wishes = wishes, .wish_count = COUNT(wishes)};
    struct schema *s = NULL;
    struct buf problems;
    const char *text;

    (void)state;
    assert_int_equal(try_resolve(&options, table, COUNT(table), modern, &s, &problems),
                     SPOOL_E_INVALID);
    text = (char *)problems.data;
    assert_non_null(strstr(text, "column a: \"value\": "));
    assert_non_null(strstr(text, "column b: \"default\": "));
    assert_non_null(strstr(text, "column c: \"value\" is null, and String is not Nullable\n"));
    assert_non_null(strstr(text, "column d: "));
    assert_non_null(strstr(text, "Atlantis/Capital"));
    assert_null(strstr(text, "column e: "));
    assert_null(strstr(text, "column f: "));
    buf_free(&problems);

    wishes[0].value = "255";
    wishes[1].default_json = "\"2026-11-23 12:34:56\"";
    wishes[2].value = "\"x\"";
    wishes[3] = (struct column_wish){.name = "e"};
    options.wish_count = 4;
    s = resolve(&options, table, COUNT(table), modern);
    schema_free(s);
}

static void test_a_problem_is_one_line(void **state)
{
    static const struct table_column table[] = {COLUMN("a\nb", "Foo(\n", "", "")};
    struct schema_options options = {.strict = false};

    (void)state;
    expect_problems(&options, table, 1, modern,
                    "column a b: type name, byte 5: a parenthesis is not closed\n");
}

static void test_format(void **state)
{
    static const struct table_column native[] = {
        COLUMN("a", "Array(LowCardinality(Nullable(String)))", "", ""),
        COLUMN("b", "SimpleAggregateFunction(max, Nullable(Int32))", "", ""),
    };
    static const struct table_column mixed[] = {
        COLUMN("a", "UInt8", "", ""),
        COLUMN("t", "Tuple(x Foo)", "", ""),
        COLUMN("l", "LowCardinality(String)", "", ""),
    };
    static const struct table_column exact[] = {
        COLUMN("l", "LowCardinality(Nullable(String))", "", ""),
        COLUMN("t", "Tuple(x LowCardinality(String), y Int8)", "", ""),
    };
    static const struct table_column free_types[] = {
        COLUMN("d", "Array(Dynamic)", "", ""),
        COLUMN("v", "Variant(String, Int8)", "", ""),
        COLUMN("j", "Map(LowCardinality(String), JSON)", "", ""),
    };
    struct schema_options options = {.format = FORMAT_AUTO};
    struct schema *s = resolve(&options, native, COUNT(native), modern);

    (void)state;
    assert_int_equal(s->format, FORMAT_NATIVE);
    expect_wire(&s->columns[0], "Array(Nullable(String))");
    expect_wire(&s->columns[1], "Nullable(Int32)");
    schema_free(s);

    s = resolve(&options, mixed, COUNT(mixed), modern);
    assert_int_equal(s->format, FORMAT_JSON);
    assert_false(s->columns[0].unchecked);
    assert_true(s->columns[1].unchecked);
    assert_false(s->columns[2].unchecked);
    expect_wire(&s->columns[2], "String");
    schema_free(s);

    s = resolve(&options, exact, COUNT(exact), old);
    assert_int_equal(s->format, FORMAT_NATIVE);
    expect_wire(&s->columns[0], "LowCardinality(Nullable(String))");
    expect_wire(&s->columns[1], "Tuple(x LowCardinality(String), y Int8)");
    schema_free(s);

    options.format = FORMAT_JSON;
    s = resolve(&options, native, COUNT(native), modern);
    assert_int_equal(s->format, FORMAT_JSON);
    schema_free(s);
    /* what only the server can tell stays text */
    s = resolve(&options, free_types, COUNT(free_types), modern);
    assert_true(s->columns[0].unchecked);
    assert_true(s->columns[1].unchecked);
    assert_false(s->columns[2].unchecked);
    schema_free(s);
    s = resolve(&options, exact, COUNT(exact), old);
    expect_wire(&s->columns[0], "Nullable(String)");
    schema_free(s);

    options.format = FORMAT_NATIVE;
    s = resolve(&options, free_types, COUNT(free_types), modern);
    expect_wire(&s->columns[0], "Array(Variant(Bool, Float64, Int64, String, UInt64))");
    expect_wire(&s->columns[1], "Variant(Int8, String)");
    expect_wire(&s->columns[2], "Map(String, String)");
    schema_free(s);
    expect_problems(&options, mixed, COUNT(mixed), modern,
                    "column t: Tuple(x Foo) cannot go into Native blocks for ClickHouse 26.7; use "
                    "format auto or json\n");
}

static void test_literal_defaults(void **state)
{
    static const struct {
        const char *type, *expression, *json; /* json NULL: left to the server */
    } cases[] = {
        {"UInt32", "7", "7"},
        {"Int32", "-7", "-7"},
        {"UInt32", "CAST(7 AS UInt32)", "7"},
        {"UInt8", "CAST('2', 'UInt8')", "\"2\""},
        {"UInt8", "'2'::UInt8", "\"2\""},
        {"UInt8", "2::UInt8", "2"},
        {"UInt32", "CAST(7, 'UInt8')", NULL},
        {"UInt32", "7 + 1", NULL},
        {"UInt32", "7.0", NULL},
        {"UInt8", "true", "true"},
        {"UInt8", "007", NULL},
        {"Bool", "false", "false"},
        {"Bool", "1", "1"},
        {"Float64", "1.5e3", "1.5e3"},
        {"Float64", "1.", "1"},
        {"Float64", "CAST(-1., 'Float64')", "-1"},
        {"Float64", "1.e3", NULL},
        {"Float64", "1..", NULL},
        {"Float64", ".", NULL},
        {"UInt8", "7.", NULL},
        {"String", "7.", NULL},
        {"Float64", "inf", NULL},
        {"Decimal(9, 2)", "1.25", "1.25"},
        {"String", "'x'", "\"x\""},
        {"String", "'it\\'s \"q\" \\\\ \\n'", "\"it's \\\"q\\\" \\\\ \\n\""},
        {"String", "''", "\"\""},
        {"String", "5", "\"5\""},
        {"String", "1.50", NULL},
        {"String", "-0", NULL},
        {"String", "'\xff'", NULL},
        {"String", "'\xef\xbf\xbd'", "\"\xef\xbf\xbd\""},
        {"String", "concat('a', 'b')", NULL},
        {"String", "'a' || 'b'", NULL},
        {"String", "'a", NULL},
        {"LowCardinality(String)", "'x'", "\"x\""},
        {"LowCardinality(String)", "CAST('x', 'LowCardinality(String)')", "\"x\""},
        {"Nullable(String)", "'x'", "\"x\""},
        {"Enum8('a' = 1, 'b' = 2)", "'b'", "\"b\""},
        {"Enum8('a' = 1, 'b' = 2)", "CAST('b' AS Enum8('a' = 1, 'b' = 2))", "\"b\""},
        {"Enum8('a' = 1, ')' = 2)", "CAST(')' AS Enum8('a' = 1, ')' = 2))", "\")\""},
        {"Enum8('a' = 1, 'b' = 2)", "2", "2"},
        {"Date", "'2026-11-23'", "\"2026-11-23\""},
        {"Date", "0", "0"},
        {"Date", "'0000-00-00'", "0"},
        {"Date", "100", NULL},
        {"Date", "today()", NULL},
        {"DateTime", "'2026-11-23 12:34:56'", "\"2026-11-23 12:34:56\""},
        {"DateTime", "'0000-00-00 00:00:00'", NULL},
        {"DateTime", "'2026-11-23T12:34:56'", NULL},
        {"DateTime", "toDateTime(100)", NULL},
        {"DateTime", "now()", NULL},
        {"DateTime64(3)", "'2026-11-23 12:34:56.789'", "\"2026-11-23 12:34:56.789\""},
        {"DateTime64(3)", "'2026-11-23 12:34:56.'", NULL},
        {"DateTime64(3)", "100", NULL},
        {"UUID", "'00112233-4455-6677-8899-aabbccddeeff'",
         "\"00112233-4455-6677-8899-aabbccddeeff\""},
        {"IPv4", "CAST('1.2.3.4', 'IPv4')", "\"1.2.3.4\""},
        {"Array(UInt8)", "[]", "[]"},
        {"Array(UInt8)", "CAST([] AS Array(UInt8))", "[]"},
        {"Array(UInt8)", "[1, 2]", "[1,2]"},
        {"Array(String)", "['a', 'b']", "[\"a\",\"b\"]"},
        {"Array(UInt8)", "[1, x]", NULL},
        {"Array(UInt8)", "[1 2]", NULL},
        {"UInt8", "[1]", NULL},
        {"UInt8", "CAST(", NULL},
        {"UInt8", "CAST(1", NULL},
        {"UInt8", "CAST(1 AS", NULL},
        {"UInt8", "CAST(1 AS ('", NULL},
        {"UInt8", "CAST(1, ", NULL},
        {"UInt8", "CAST(1, 'UInt8'", NULL},
        {"UInt8", "CASTLE(1)", NULL},
        {"UInt8", "NULL", NULL},
        {"Nullable(UInt8)", "NULL", ""}, /* what it gets anyway */
        /* Literals that ClickHouse casts into something else. */
        {"UInt8", "300", NULL},
        {"UInt8", "-1", NULL},
        {"FixedString(2)", "'abc'", NULL},
        {"Decimal(9, 2)", "1.255", NULL},
        {"Enum8('a' = 1)", "'b'", NULL},
        {"Date", "'2026-02-30'", NULL},
        {"UUID", "'x'", NULL},
        {"IPv4", "'1.2.3.256'", NULL},
        {"UInt8", "-", NULL},
        {"UInt8", "1::", NULL},
    };

    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct table_column table[] = {COLUMN("c", cases[i].type, "DEFAULT", cases[i].expression)};
        struct schema_options options = {.format = FORMAT_JSON};
        struct schema *s = resolve(&options, table, 1, modern);
        const struct schema_column *c = &s->columns[0];
        if (cases[i].json && !cases[i].json[0]) {
            assert_null(c->default_json);
            assert_false(c->default_by_server);
            schema_free(s);
            continue;
        }
        if (cases[i].json && !c->default_json)
            fail_msg("%s DEFAULT %s: not taken for a literal", cases[i].type, cases[i].expression);
        if (cases[i].json) {
            assert_string_equal(c->default_json, cases[i].json);
            assert_null(c->default_expression);
            assert_false(c->default_by_server);
        } else if (c->default_json) {
            fail_msg("%s DEFAULT %s: taken for %s", cases[i].type, cases[i].expression,
                     c->default_json);
        } else {
            assert_string_equal(c->default_expression, cases[i].expression);
            assert_true(c->default_by_server);
        }
        schema_free(s);
    }
}

static void test_nested_literal_is_bounded(void **state)
{
    struct buf deep;

    (void)state;
    buf_init(&deep, MIB);
    for (unsigned i = 0; i < 100000; i++)
        buf_append_str(&deep, "CAST(");
    {
        struct table_column table[] = {COLUMN("c", "UInt8", "DEFAULT", buf_cstr(&deep))};
        struct schema_options options = {.strict = false};
        struct schema *s = resolve(&options, table, 1, modern);
        assert_true(s->columns[0].default_by_server);
        schema_free(s);
    }
    buf_free(&deep);
}

static void test_expression_defaults(void **state)
{
    static const struct table_column scalar[] = {
        COLUMN("a", "UInt32", "", ""),
        COLUMN("d", "LowCardinality(String)", "DEFAULT", "concat('d', toString(a))"),
    };
    static const struct table_column array[] = {
        COLUMN("d", "Array(String)", "DEFAULT", "splitByChar(',', 'a,b')"),
    };
    static const struct table_column nullable[] = {
        COLUMN("d", "Nullable(DateTime)", "DEFAULT", "now()"),
    };
    struct column_wish wish = {.name = "d"};
    struct schema_options options = {.format = FORMAT_AUTO};
    struct schema *s = resolve(&options, scalar, COUNT(scalar), modern);

    (void)state;
    assert_int_equal(s->format, FORMAT_NATIVE);
    assert_true(s->columns[1].default_by_server);
    expect_wire(&s->columns[1], "Nullable(String)");
    assert_string_equal(s->columns[1].default_expression, "concat('d', toString(a))");
    assert_null(s->columns[1].default_json);
    assert_false(s->columns[0].default_by_server);
    schema_free(s);

    /* What NULL cannot ask for, leaving the column out of a block can; and on an old server always. */
    s = resolve(&options, array, 1, modern);
    assert_int_equal(s->format, FORMAT_NATIVE);
    assert_true(s->columns[0].default_by_server);
    expect_wire(&s->columns[0], "Array(String)");
    schema_free(s);
    s = resolve(&options, nullable, 1, modern);
    assert_int_equal(s->format, FORMAT_NATIVE);
    assert_true(s->columns[0].default_by_server);
    expect_wire(&s->columns[0], "Nullable(DateTime)");
    schema_free(s);
    s = resolve(&options, scalar, COUNT(scalar), old);
    assert_int_equal(s->format, FORMAT_NATIVE);
    assert_true(s->columns[1].default_by_server);
    expect_wire(&s->columns[1], "LowCardinality(String)");
    schema_free(s);

    options.format = FORMAT_JSON;
    s = resolve(&options, array, 1, modern);
    assert_true(s->columns[0].default_by_server);
    schema_free(s);
    expect_problems(
        &options, scalar, COUNT(scalar), old,
        "column d: ClickHouse 18.16 does not apply its DEFAULT concat('d', toString(a)) "
        "to lines of JSON: use format auto or native, say what a record without the "
        "key gets (\"default\", or \"required\": true), or leave the column out of "
        "\"columns\"\n");

    /* Nobody asks for a default where no value can be missing. */
    options = (struct schema_options){.wishes = &wish, .wish_count = 1};
    wish.required = true;
    s = resolve(&options, array, 1, old);
    assert_int_equal(s->format, FORMAT_NATIVE);
    assert_false(s->columns[0].default_by_server);
    assert_string_equal(s->columns[0].default_expression, "splitByChar(',', 'a,b')");
    schema_free(s);
    wish.required = false;
    wish.default_json = "[]";
    s = resolve(&options, array, 1, old);
    assert_false(s->columns[0].default_by_server);
    assert_string_equal(s->columns[0].default_json, "[]");
    schema_free(s);
    wish.default_json = NULL;
    wish.value = "[]";
    s = resolve(&options, array, 1, old);
    assert_false(s->columns[0].default_by_server);
    schema_free(s);
    options = (struct schema_options){.strict = true};
    s = resolve(&options, array, 1, old);
    assert_false(s->columns[0].default_by_server);
    schema_free(s);
    s = resolve(&options, nullable, 1, old); /* a Nullable one may be missing, strict or not */
    assert_true(s->columns[0].default_by_server);
    schema_free(s);
}

static void test_from_wishes(void **state)
{
    static const struct column_wish wishes[] = {
        {.name = "id", .type = "UInt64"},
        {.name = "s", .type = "LowCardinality(String)", .from = "a.b"},
        {.name = "n", .type = "Array(int(11)  unsigned)"},
    };
    static const struct column_wish untyped[] = {{.name = "id"}};
    struct schema_options options = {.wishes = wishes, .wish_count = COUNT(wishes)};
    struct schema *s = NULL;
    struct buf problems;

    (void)state;
    buf_init(&problems, MIB);
    assert_int_equal(schema_from_wishes(&options, modern, NULL, &s, &problems), SPOOL_OK);
    assert_int_equal(s->count, 3);
    assert_string_equal(s->server_timezone, "UTC");
    expect_wire(&s->columns[1], "String");
    assert_string_equal(s->columns[2].type->text, "Array(UInt32)");
    schema_free(s);
    options = (struct schema_options){.wishes = untyped, .wish_count = 1};
    assert_int_equal(schema_from_wishes(&options, modern, NULL, &s, &problems), SPOOL_E_INVALID);
    assert_null(s);
    options = (struct schema_options){.wishes = NULL};
    assert_int_equal(schema_from_wishes(&options, modern, NULL, &s, &problems), SPOOL_E_INVALID);
    assert_null(s);
    assert_string_equal(buf_cstr(&problems),
                        "column id: has no \"type\", and the table has not been seen yet\n"
                        "no columns are given, and the table has not been seen yet\n");
    buf_free(&problems);
}

static void expect_keys(const char *path, size_t count, const char *const *keys)
{
    const char *at = path;
    char key[100];
    size_t size = 0;

    for (size_t i = 0; i < count; i++) {
        assert_true(schema_path_next(&at, key, &size));
        assert_int_equal(size, strlen(keys[i]));
        assert_memory_equal(key, keys[i], size);
    }
    assert_false(schema_path_next(&at, key, &size));
}

static void test_paths(void **state)
{
    static const char *const one[] = {"a"};
    static const char *const two[] = {"user", "id"};
    static const char *const dotted[] = {"n.a"};
    static const char *const odd[] = {"$oid", "b\\c", "d"};

    (void)state;
    expect_keys("a", 1, one);
    expect_keys("user.id", 2, two);
    expect_keys("n\\.a", 1, dotted);
    expect_keys("\\$oid.b\\\\c.d", 3, odd);
}

/* A schema with everything in it. */
static struct schema *rich(void)
{
    static const struct table_column table[] = {
        COLUMN("id", "UInt64", "", ""),
        COLUMN("name", "LowCardinality(String)", "DEFAULT", "lower('X')"),
        COLUMN("kind", "Enum8('a' = 1, 'b' = 2)", "DEFAULT", "'a'"),
        COLUMN("raw", "String", "", ""),
        COLUMN("c", "String", "", ""),
        COLUMN("d", "Decimal(9, 2)", "", ""),
    };
    static const struct column_wish wishes[] = {
        {.name = "id", .from = "a.b", .required = true},
        {.name = "name"},
        {.name = "kind"},
        {.name = "raw", .from = "$record"},
        {.name = "c", .value = "\"k\""},
        {.name = "d", .truncate = true},
    };
    struct schema_options options = {.wishes = wishes,
                                     .wish_count = COUNT(wishes),
                                     .unknown_keys = UNKNOWN_REFUSE,
                                     .schema_registry_framing = true};

    return resolve(&options, table, COUNT(table), modern);
}

static void test_serialize(void **state)
{
    struct spool_error error = {0};
    struct schema *s = rich(), *t = NULL;
    struct buf out, again;

    (void)state;
    buf_init(&out, MIB);
    buf_init(&again, MIB);
    assert_int_equal(schema_serialize(s, &out), SPOOL_OK);
    assert_int_equal(schema_deserialize(out.data, out.len, &t, &error), SPOOL_OK);
    assert_true(schema_equal(s, t));
    assert_true(s->hash == t->hash && s->hash != 0);
    assert_int_equal(schema_serialize(t, &again), SPOOL_OK);
    assert_int_equal(out.len, again.len);
    assert_memory_equal(out.data, again.data, out.len);
    assert_true(t->schema_registry_framing);
    assert_true(t->columns[1].default_by_server);
    assert_true(t->columns[0].required);
    assert_true(t->columns[5].truncate);
    assert_int_equal(t->server.minor, 7);

    t->columns[0].required = false;
    assert_false(schema_equal(s, t));
    schema_free(t);
    out.data[0] = 2;
    assert_int_equal(schema_deserialize(out.data, out.len, &t, &error), SPOOL_E_NEWER);
    out.data[0] = 0;
    assert_int_equal(schema_deserialize(out.data, out.len, &t, &error), SPOOL_E_CORRUPT);
    assert_null(t);
    buf_free(&out);
    buf_free(&again);
    schema_free(s);
}

static void test_hostile_form(void **state)
{
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
    struct schema *s = rich(), *t = NULL;
    struct spool_error error = {0};
    struct buf out;

    (void)state;
    buf_init(&out, MIB);
    assert_int_equal(schema_serialize(s, &out), SPOOL_OK);
    for (size_t n = 0; n < out.len; n++) {
        uint8_t *copy = malloc(n ? n : 1);
        assert_non_null(copy);
        memcpy(copy, out.data, n);
        assert_int_equal(schema_deserialize(copy, n, &t, &error), SPOOL_E_CORRUPT);
        assert_null(t);
        free(copy);
    }
    for (size_t at = 0; at < out.len; at++) {
        uint8_t kept = out.data[at];
        for (size_t v = 0; v < sizeof(values); v++) {
            out.data[at] = values[v];
            if (schema_deserialize(out.data, out.len, &t, &error) == SPOOL_OK)
                schema_free(t);
        }
        out.data[at] = kept;
    }
    assert_int_equal(buf_put_u8(&out, 0), SPOOL_OK);
    assert_int_equal(schema_deserialize(out.data, out.len, &t, &error), SPOOL_E_CORRUPT);
    buf_free(&out);
    schema_free(s);
}

/* Serialises a schema that is wrong, and expects it to be refused. */
static void expect_refused(struct schema *s)
{
    struct spool_error error = {0};
    struct schema *t = NULL;
    struct buf out;

    buf_init(&out, MIB);
    assert_int_equal(schema_serialize(s, &out), SPOOL_OK);
    assert_int_equal(schema_deserialize(out.data, out.len, &t, &error), SPOOL_E_CORRUPT);
    assert_null(t);
    buf_free(&out);
    schema_free(s);
}

static char *copy_of(const char *text)
{
    char *copy = strdup(text);

    assert_non_null(copy);
    return copy;
}

static struct type *type_of(const char *text)
{
    struct type *type = NULL;

    assert_int_equal(type_parse(text, strlen(text), &type, NULL), SPOOL_OK);
    return type;
}

/* Forms that are well-formed, but that no schema has: what the decoder relies on. */
static void test_unsound_forms(void **state)
{
    static const uint8_t huge[] = {1, 1, 0, 0, 26, 0,    0,    0,    7,    0,    0,   0,
                                   2, 0, 0, 0, 0,  0xff, 0xff, 0xff, 0xff, 0xff, 0x7f};
    struct spool_error error = {0};
    struct schema *s = rich(), *t = NULL;

    (void)state;
    free(s->columns[0].path);
    s->columns[0].path = copy_of("a..b");
    expect_refused(s);
    s = rich();
    s->columns[0].source = SOURCE_RECORD;
    expect_refused(s);
    s = rich();
    s->columns[3].source = SOURCE_CONSTANT;
    expect_refused(s);
    s = rich();
    type_free(s->columns[0].wire);
    s->columns[0].wire = type_of("LowCardinality(UInt64)");
    expect_refused(s);
    s = rich();
    type_free(s->columns[0].wire);
    s->columns[0].wire = type_of("Tuple(UInt64)");
    expect_refused(s);
    s = rich();
    type_free(s->columns[0].wire);
    s->columns[0].wire = type_of("Nullable(UInt64)");
    expect_refused(s);
    s = rich();
    s->columns[0].unchecked = true;
    expect_refused(s);
    s = rich();
    s->columns[0].name[0] = 0;
    expect_refused(s);
    s = rich();
    s->format = FORMAT_AUTO;
    expect_refused(s);
    assert_int_equal(schema_deserialize(huge, sizeof(huge), &t, &error), SPOOL_E_CORRUPT);
}

static void test_hash_tells_schemas_apart(void **state)
{
    struct column_wish wish = {.name = "a", .type = "String"};
    struct schema_options options = {.wishes = &wish, .wish_count = 1};
    struct schema *a = NULL, *b = NULL, *c = NULL;
    struct buf problems;

    (void)state;
    buf_init(&problems, MIB);
    assert_int_equal(schema_from_wishes(&options, modern, "UTC", &a, &problems), SPOOL_OK);
    assert_int_equal(schema_from_wishes(&options, modern, "UTC", &b, &problems), SPOOL_OK);
    wish.from = "b";
    assert_int_equal(schema_from_wishes(&options, modern, "UTC", &c, &problems), SPOOL_OK);
    assert_true(schema_equal(a, b) && a->hash == b->hash);
    assert_true(!schema_equal(a, c) && a->hash != c->hash);
    schema_free(a);
    schema_free(b);
    schema_free(c);
    schema_free(NULL);
    buf_free(&problems);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_ordinary_column),
        cmocka_unit_test(test_wishes),
        cmocka_unit_test(test_all_facts),
        cmocka_unit_test(test_problems),
        cmocka_unit_test(test_values_must_fit),
        cmocka_unit_test(test_a_problem_is_one_line),
        cmocka_unit_test(test_format),
        cmocka_unit_test(test_literal_defaults),
        cmocka_unit_test(test_nested_literal_is_bounded),
        cmocka_unit_test(test_expression_defaults),
        cmocka_unit_test(test_from_wishes),
        cmocka_unit_test(test_paths),
        cmocka_unit_test(test_serialize),
        cmocka_unit_test(test_hostile_form),
        cmocka_unit_test(test_unsound_forms),
        cmocka_unit_test(test_hash_tells_schemas_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
