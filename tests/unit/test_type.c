/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/limits.h"
#include "codec/type.h"

static struct type *parse(const char *text)
{
    struct spool_error error = {0};
    struct type *type = NULL;
    int status = type_parse(text, strlen(text), &type, &error);

    if (status != SPOOL_OK)
        print_error("%s: %s\n", text, error.text);
    assert_int_equal(status, SPOOL_OK);
    assert_non_null(type);
    return type;
}

static int parse_status(const char *text, size_t size)
{
    struct spool_error error = {0};
    struct type *type = (struct type *)&error;
    int status = type_parse(text, size, &type, &error);

    if (status == SPOOL_OK) {
        type_free(type);
    } else {
        assert_null(type);
        assert_int_equal(error.status, status);
        assert_true(strlen(error.text) > 0);
    }
    return status;
}

/* Parses text and expects it to be written as canonical; and canonical to be a fixed point. */
static void expect_format(const char *text, const char *canonical)
{
    struct type *type = parse(text), *again, *copy = NULL;
    struct buf out;

    buf_init(&out, MIB);
    assert_int_equal(type_format(type, &out), SPOOL_OK);
    assert_string_equal(buf_cstr(&out), canonical);
    again = parse(canonical);
    assert_true(type_equal(type, again));
    assert_int_equal(type_copy(type, &copy), SPOOL_OK);
    assert_true(type_equal(type, copy));
    assert_string_equal(type->text, copy->text);
    type_free(type);
    type_free(again);
    type_free(copy);
    buf_free(&out);
}

static void test_plain_names(void **state)
{
    static const struct {
        const char *name;
        enum type_kind kind;
        uint32_t width;
    } cases[] = {
        {"Int8", TYPE_INT8, 1},
        {"Int16", TYPE_INT16, 2},
        {"Int32", TYPE_INT32, 4},
        {"Int64", TYPE_INT64, 8},
        {"Int128", TYPE_INT128, 16},
        {"Int256", TYPE_INT256, 32},
        {"UInt8", TYPE_UINT8, 1},
        {"UInt16", TYPE_UINT16, 2},
        {"UInt32", TYPE_UINT32, 4},
        {"UInt64", TYPE_UINT64, 8},
        {"UInt128", TYPE_UINT128, 16},
        {"UInt256", TYPE_UINT256, 32},
        {"Float32", TYPE_FLOAT32, 4},
        {"Float64", TYPE_FLOAT64, 8},
        {"BFloat16", TYPE_BFLOAT16, 2},
        {"Bool", TYPE_BOOL, 1},
        {"String", TYPE_STRING, 0},
        {"UUID", TYPE_UUID, 16},
        {"Date", TYPE_DATE, 2},
        {"Date32", TYPE_DATE32, 4},
        {"DateTime", TYPE_DATETIME, 4},
        {"Time", TYPE_TIME, 4},
        {"IPv4", TYPE_IPV4, 4},
        {"IPv6", TYPE_IPV6, 16},
        {"Dynamic", TYPE_DYNAMIC, 0},
        {"JSON", TYPE_JSON, 0},
        {"Point", TYPE_POINT, 0},
        {"Ring", TYPE_RING, 0},
        {"LineString", TYPE_LINE_STRING, 0},
        {"MultiLineString", TYPE_MULTI_LINE_STRING, 0},
        {"Polygon", TYPE_POLYGON, 0},
        {"MultiPolygon", TYPE_MULTI_POLYGON, 0},
        {"IntervalSecond", TYPE_INTERVAL, 8},
        {"IntervalYear", TYPE_INTERVAL, 8},
        {"Geometry", TYPE_VARIANT, 0},
        {"Foo", TYPE_OTHER, 0},
        {"string", TYPE_OTHER, 0},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct type *type = parse(cases[i].name);
        assert_int_equal(type->kind, cases[i].kind);
        assert_int_equal(type->width, cases[i].width);
        assert_string_equal(type->text, cases[i].name);
        type_free(type);
        expect_format(cases[i].name, cases[i].name);
    }
}

static void test_spellings(void **state)
{
    (void)state;
    expect_format("  Decimal( 9 ,2 ) ", "Decimal(9, 2)");
    expect_format("Decimal32(2)", "Decimal(9, 2)");
    expect_format("Decimal64(4)", "Decimal(18, 4)");
    expect_format("Decimal128(0)", "Decimal(38, 0)");
    expect_format("Decimal256(10)", "Decimal(76, 10)");
    expect_format("Decimal(5)", "Decimal(5, 0)");
    expect_format("FixedString(16)", "FixedString(16)");
    expect_format("DateTime('Europe/Berlin')", "DateTime('Europe/Berlin')");
    expect_format("DateTime64", "DateTime64(3)");
    expect_format("DateTime64(9,'UTC')", "DateTime64(9, 'UTC')");
    expect_format("Time64(6)", "Time64(6)");
    expect_format("Array(Nullable( String))", "Array(Nullable(String))");
    expect_format("Map(LowCardinality(String),Array(UInt8))",
                  "Map(LowCardinality(String), Array(UInt8))");
    expect_format("Tuple()", "Tuple()");
    expect_format("Tuple(UInt8,String)", "Tuple(UInt8, String)");
    expect_format("Tuple(a UInt8, `b c` String)", "Tuple(a UInt8, `b c` String)");
    expect_format("Tuple(\"x\" UInt8)", "Tuple(x UInt8)");
    expect_format("Tuple(Array Array(String))", "Tuple(Array Array(String))");
    expect_format("Nested(a UInt8,b Nested(c Date))", "Nested(a UInt8, b Nested(c Date))");
    expect_format("Variant(UInt64,String)", "Variant(String, UInt64)");
    /* By their canonical names, however they are written. */
    expect_format("Variant(DateTime('UTC'), DateTime32)", "Variant(DateTime, DateTime('UTC'))");
    expect_format("Variant(Array( UInt8 ), Array(Int8))", "Variant(Array(Int8), Array(UInt8))");
    expect_format("Variant(Enum8('a' = 1), Enum('b'=1, 'a' = -1))",
                  "Variant(Enum8('a' = -1, 'b' = 1), Enum8('a' = 1))");
    expect_format("Variant(String, Ring, Point, Array(Point))",
                  "Variant(Array(Point), Point, Ring, String)");
    expect_format("Variant(QBit(Float32, 4), Array(String))",
                  "Variant(Array(String), QBit(Float32, 4))");
    /* The server keeps one of two that are the same. */
    expect_format("Variant(DateTime32, String, DateTime)", "Variant(DateTime, String)");
    expect_format("Dynamic( max_types = 2 )", "Dynamic(max_types=2)");
    expect_format("JSON(a.b UInt32,SKIP  c,SKIP REGEXP 'x , (y')",
                  "JSON(a.b UInt32, SKIP c, SKIP REGEXP 'x , (y')");
    expect_format("SimpleAggregateFunction(sum,UInt64)", "SimpleAggregateFunction(sum, UInt64)");
    expect_format("SimpleAggregateFunction(groupArrayArray(10), Array(UInt8))",
                  "SimpleAggregateFunction(groupArrayArray(10), Array(UInt8))");
    expect_format("AggregateFunction(quantiles(0.5,0.9),UInt64)",
                  "AggregateFunction(quantiles(0.5, 0.9), UInt64)");
    expect_format("QBit(Float32,4)", "QBit(Float32, 4)");
    expect_format("Enum8('b' = 2,'a'=-1)", "Enum8('a' = -1, 'b' = 2)");
    expect_format("Enum8('a','b' = 5,'c')", "Enum8('a' = 1, 'b' = 5, 'c' = 6)");
    expect_format("Enum('x' = 1)", "Enum8('x' = 1)");
    expect_format("Enum('x' = 1000)", "Enum16('x' = 1000)");
    expect_format("Enum8('it\\'s' = 1, 'a''b' = 2, '\\x41\\\\' = 3, '\\n' = 4, '' = 5)",
                  "Enum8('it\\'s' = 1, 'a\\'b' = 2, 'A\\\\' = 3, '\\n' = 4, '' = 5)");
}

/* As ClickHouse 26.7 says; tests/integration/test_types.py asks it. */
static void test_aliases(void **state)
{
    (void)state;
    expect_format("BIGINT", "Int64");
    expect_format("bigint unsigned", "UInt64");
    expect_format("BigInt\n\t Signed", "Int64");
    expect_format("INT(11)", "Int32");
    expect_format("INT ( 11 ) UNSIGNED", "UInt32");
    expect_format("INT(11) SIGNED", "Int32");
    expect_format("int unsigned(11)", "UInt32");
    expect_format("TINYINT(1) UNSIGNED", "UInt8");
    expect_format("MEDIUMINT unsigned", "UInt32");
    expect_format("Int8(3)", "Int8");
    expect_format("UNSIGNED", "UInt64");
    expect_format("FLOAT(7, 4)", "Float32");
    expect_format("Double  Precision(5)", "Float64");
    expect_format("dec", "Decimal(10, 0)");
    expect_format("NUMERIC(20,4)", "Decimal(20, 4)");
    expect_format("decimal256(5)", "Decimal(76, 5)");
    expect_format("boolean", "Bool");
    expect_format("VARCHAR(255)", "String");
    expect_format("CHAR VARYING (10)", "String");
    expect_format("national character large object", "String");
    expect_format("BINARY(16)", "FixedString(16)");
    expect_format("BINARY VARYING(16)", "String");
    expect_format("TIMESTAMP", "DateTime");
    expect_format("TIMESTAMP('UTC')", "DateTime('UTC')");
    expect_format("DATETIME(6)", "DateTime64(6)");
    expect_format("DateTime(3, 'UTC')", "DateTime64(3, 'UTC')");
    expect_format("DateTime(0)", "DateTime");
    expect_format("datetime(0, 'UTC')", "DateTime('UTC')");
    expect_format("time(3)", "Time64(3)");
    expect_format("time(0)", "Time");
    expect_format("enum('a' = 1000)", "Enum16('a' = 1000)");
    expect_format("ENUM8('a' = 1)", "Enum8('a' = 1)");
    expect_format("json(a.b UInt32)", "JSON(a.b UInt32)");
    expect_format("GEOMETRY", "Geometry");
    expect_format("geometry", "geometry"); /* not known to the server either */
    expect_format("Array(GEOMETRY)", "Array(Geometry)");
    expect_format("Nullable(CHAR VARYING(3))", "Nullable(String)");
    expect_format("Map(NATIONAL CHAR(5), INT(11) UNSIGNED)", "Map(String, UInt32)");
    expect_format("Tuple(a DOUBLE PRECISION, b INT(11) UNSIGNED)", "Tuple(a Float64, b UInt32)");
    expect_format("Tuple(int, bigint)", "Tuple(Int32, Int64)");
    /* In a Tuple, the first of two words is a name. */
    expect_format("Tuple(int unsigned)", "Tuple(int UInt64)");
    expect_format("Tuple(date date, time TIME)", "Tuple(date Date, time Time)");
    expect_format("Tuple(DOUBLE PRECISION)", "Tuple(DOUBLE PRECISION)");
    expect_format("Variant(INT UNSIGNED, TEXT, DOUBLE PRECISION)",
                  "Variant(Float64, String, UInt32)");
    expect_format("SimpleAggregateFunction(sum, BIGINT UNSIGNED)",
                  "SimpleAggregateFunction(sum, UInt64)");
}

static void test_fields(void **state)
{
    struct type *type;

    (void)state;
    type = parse("Decimal(38, 6)");
    assert_int_equal(type->precision, 38);
    assert_int_equal(type->scale, 6);
    assert_int_equal(type->width, 16);
    type_free(type);
    type = parse("Decimal256(10)");
    assert_int_equal(type->width, 32);
    type_free(type);
    type = parse("DateTime64(6, 'Asia/Tokyo')");
    assert_int_equal(type->scale, 6);
    assert_string_equal(type->timezone, "Asia/Tokyo");
    type_free(type);
    type = parse("Enum16('z' = 300, 'a\\0b' = -5)");
    assert_int_equal(type->member_count, 2);
    assert_int_equal(type->members[0].value, -5);
    assert_int_equal(type->members[0].name_size, 3);
    assert_memory_equal(type->members[0].name, "a\0b", 4);
    assert_string_equal(type->members[1].name, "z");
    type_free(type);
    type = parse("Tuple(a UInt8, b Array(String))");
    assert_int_equal(type->child_count, 2);
    assert_string_equal(type->child_names[1], "b");
    assert_int_equal(type->children[1]->children[0]->kind, TYPE_STRING);
    assert_string_equal(type->children[1]->text, "Array(String)");
    type_free(type);
    type = parse("SimpleAggregateFunction(max, Nullable(Int32))");
    assert_string_equal(type->spelling, "max");
    assert_int_equal(type->children[0]->kind, TYPE_NULLABLE);
    type_free(type);
    type = parse("Polygon");
    assert_int_equal(type->children[0]->kind, TYPE_RING);
    assert_int_equal(type->children[0]->children[0]->kind, TYPE_POINT);
    assert_int_equal(type->children[0]->children[0]->child_count, 2);
    assert_int_equal(type->children[0]->children[0]->children[1]->kind, TYPE_FLOAT64);
    type_free(type);
}

static void test_bad(void **state)
{
    static const char *const bad[] = {
        "",
        " ",
        "1",
        "(",
        ")",
        "UInt8)",
        "UInt8 UInt8",
        "UInt8(",
        "UInt8()",
        "Array",
        "Array()",
        "Array(",
        "Array(UInt8",
        "Array(UInt8,)",
        "Array(UInt8, UInt8)",
        "Nullable(Nullable(UInt8))",
        "FixedString",
        "FixedString(0)",
        "FixedString(-1)",
        "FixedString(16777216)",
        "FixedString(99999999999999999999)",
        "FixedString(4x)",
        "Decimal(0, 0)",
        "Decimal(77, 0)",
        "Decimal(9, 10)",
        "Decimal32(10)",
        "Decimal32",
        "DateTime(UTC)",
        "DateTime('')",
        "DateTime('a\\0b')",
        "DateTime('UTC)",
        "DateTime64(10)",
        "DateTime64(3, 'UTC', 1)",
        "DateTime64('UTC')",
        "Enum8",
        "Enum8()",
        "Enum8(a = 1)",
        "Enum8('a' = 128)",
        "Enum8('a' = 1, 'a' = 2)",
        "Enum8('a' = 1, 'b' = 1)",
        "Enum8('a' = 127, 'b')",
        "Enum8('a' = )",
        "Enum8('a' = 1,)",
        "Enum8('a\\x4' = 1)",
        "Enum8('a\\",
        "Enum8('a\\'",
        "Enum16('a' = 32768)",
        "Map(String)",
        "Map(String, String, String)",
        "Tuple(a UInt8, String)",
        "Tuple(UInt8, a String)",
        "Tuple(,)",
        "Tuple(`` UInt8)",
        "Tuple(`a UInt8)",
        "Nested()",
        "Nested(UInt8)",
        "Variant()",
        "SimpleAggregateFunction(sum)",
        "SimpleAggregateFunction(, UInt8)",
        "JSON(",
        "JSON('",
        "Foo(",
        "Foo(()",
        "Foo(bar))",
        "Foo(\"x)",
        "DOUBLE PRECISION UNSIGNED",
        "DOUBLE(5) PRECISION",
        "DOUBLE PRECISIO",
        "CHAR(5) VARYING",
        "NATIONAL CHAR VARYING(5) UNSIGNED",
        "BIGINT UNSIGN",
        "BIGINT UNSIGNEDLY",
        "BIGINT UNSIGNED SIGNED",
        "BIGINT (5) DOUBLE",
        "BIGINT()",
        "BIGINT(20, 3)",
        "BIGINT(-1)",
        "BIGINT('5')",
        "BYTE UNSIGNED",
        "UInt8 UNSIGNED",
        "UInt8(3) UNSIGNED",
        "FLOAT UNSIGNED",
        "FLOAT(1, 2, 3)",
        "VARCHAR(5, 6)",
        "BINARY",
        "BINARY(0)",
        "DEC(80, 1)",
        "FIXED(5, 6)",
        "DATETIME(10)",
        "DATETIME(3, 4)",
        "DATETIME32(3)",
        "TIME(10)",
        "TIME('UTC')",
        "TIMESTAMP WITH TIME ZONE",
        "INT NULL",
        "LARGE OBJECT",
        "Tuple(a DOUBLE PRECISION, DOUBLE PRECISION, INT)",
        "Tuple(INT UNSIGNED, TEXT)",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        if (parse_status(bad[i], strlen(bad[i])) != SPOOL_E_SYNTAX)
            fail_msg("accepted or wrong status: %s", bad[i]);
    assert_int_equal(parse_status("String\0", 7), SPOOL_E_SYNTAX);
}

static void test_error_names_the_position(void **state)
{
    struct spool_error error = {0};
    struct type *type = NULL;

    (void)state;
    assert_int_equal(type_parse("Array(Decimal(99, 2))", 21, &type, &error), SPOOL_E_SYNTAX);
    assert_string_equal(error.text, "type name, byte 16: the number is out of range");
}

/* name(name(...UInt8...)), depth times */
static int nested_status(const char *name, unsigned depth)
{
    struct buf text;
    int status;

    buf_init(&text, MIB);
    for (unsigned i = 0; i < depth; i++)
        buf_printf(&text, "%s(", name);
    buf_append_str(&text, "UInt8");
    for (unsigned i = 0; i < depth; i++)
        buf_append_str(&text, ")");
    status = parse_status((char *)text.data, text.len);
    buf_free(&text);
    return status;
}

static void test_limits(void **state)
{
    struct buf text;

    (void)state;
    assert_int_equal(nested_status("Array", LIMIT_TYPE_DEPTH), SPOOL_OK);
    assert_int_equal(nested_status("Array", LIMIT_TYPE_DEPTH + 1), SPOOL_E_SYNTAX);
    assert_int_equal(nested_status("Array", 30000), SPOOL_E_SYNTAX);
    assert_int_equal(nested_status("Foo", LIMIT_TYPE_DEPTH), SPOOL_OK);
    assert_int_equal(nested_status("Foo", 2 * LIMIT_TYPE_DEPTH), SPOOL_E_SYNTAX);
    assert_int_equal(nested_status("Array", 60000), SPOOL_E_LIMIT);
    buf_init(&text, MIB);
    buf_append_str(&text, "Variant(");
    for (unsigned i = 0; i < 256; i++)
        buf_printf(&text, "%sFixedString(%u)", i ? "," : "", i + 1);
    buf_append_str(&text, ")");
    assert_int_equal(parse_status((char *)text.data, text.len), SPOOL_E_SYNTAX);
    buf_free(&text);
}

/* Every prefix of a rich name, and every byte of it replaced, ends in a status. */
static void test_hostile(void **state)
{
    static const char rich[] =
        "Tuple(a Enum8('x\\'y' = -1, 'z' = 2), `b\\`c` Array(Map(String, Decimal(9, 2))), "
        "c Nested(d DateTime64(3, 'UTC'), e SimpleAggregateFunction(f(1, 'x'), Nullable(Int8))), "
        "g JSON(a UInt8, SKIP b), h Variant(String, UInt8), i LowCardinality(FixedString(3)))";
    static const char replace[] = "()',`\\ \"=9a\x80";
    char text[sizeof(rich)];
    size_t n = sizeof(rich) - 1;

    (void)state;
    expect_format(rich, rich);
    for (size_t i = 0; i < n; i++) {
        /* An own allocation of just this size, so that a read past it is seen. */
        char *prefix = malloc(i ? i : 1);
        assert_non_null(prefix);
        memcpy(prefix, rich, i);
        /* "T" to "Tupl" are names like any other. */
        if (i > 0 && i < 5)
            assert_int_equal(parse_status(prefix, i), SPOOL_OK);
        else
            assert_int_equal(parse_status(prefix, i), SPOOL_E_SYNTAX);
        free(prefix);
        for (size_t r = 0; r < sizeof(replace) - 1; r++) {
            memcpy(text, rich, sizeof(rich));
            text[i] = replace[r];
            parse_status(text, n);
        }
    }
}

static void test_native(void **state)
{
    static const char *const yes[] = {
        "Int8",
        "UInt64",
        "Float32",
        "Bool",
        "String",
        "FixedString(3)",
        "UUID",
        "Date",
        "Date32",
        "DateTime('UTC')",
        "DateTime64(3)",
        "Enum8('a' = 1)",
        "Enum16('a')",
        "Decimal(38, 1)",
        "IPv4",
        "IPv6",
        "Array(Int8)",
        "Nullable(String)",
        "Array(Array(Nullable(UUID)))",
        "Int128",
        "UInt256",
        "BFloat16",
        "Decimal(76, 1)",
        "Tuple()",
        "Tuple(a Int8, b Tuple(Int8))",
        "Nullable(Tuple(Int8))",
        "Time",
        "Time64(9)",
        "Map(Int8, Int8)",
        "Map(String, Map(String, JSON))",
        "JSON",
        "Nullable(JSON(a UInt8))",
        "Dynamic",
        "Array(Point)",
        "MultiPolygon",
        "IntervalDay",
        "Nullable(Int128)",
        "Variant(Int8, Array(String))",
        "Nested(a Int8)",
        "Geometry",
        "Array(Geometry)",
        "LowCardinality(Nullable(String))",
        "SimpleAggregateFunction(sum, UInt64)",
    };
    static const char *const no[] = {
        "Foo",
        "Array(Foo)",
        "Nullable(Array(Int8))",
        "Nullable(Dynamic)",
        "Nullable(Tuple())",
        "LowCardinality(Array(Int8))",
        "LowCardinality(Nullable(Tuple(Int8)))",
        "AggregateFunction(sum, UInt64)",
        "Tuple(AggregateFunction(sum, UInt64))",
        "Variant(JSON, String)",
        "Variant(Array(LowCardinality(String)), Int8)",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
        struct type *type = parse(yes[i]);
        assert_true(type_is_native(type));
        type_free(type);
    }
    for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++) {
        struct type *type = parse(no[i]);
        assert_false(type_is_native(type));
        type_free(type);
    }
}

static void test_differences(void **state)
{
    static const char *const pairs[][2] = {
        {"Int8", "UInt8"},
        {"DateTime", "DateTime('UTC')"},
        {"Decimal(9, 2)", "Decimal(9, 3)"},
        {"Enum8('a' = 1)", "Enum8('a' = 2)"},
        {"Enum8('a' = 1)", "Enum8('b' = 1)"},
        {"Enum8('a' = 1)", "Enum16('a' = 1)"},
        {"Tuple(a Int8)", "Tuple(b Int8)"},
        {"Tuple(a Int8)", "Tuple(Int8)"},
        {"FixedString(3)", "FixedString(4)"},
        {"Foo(1)", "Foo(2)"},
        {"Array(Int8)", "Array(Int16)"},
        {"SimpleAggregateFunction(sum, Int8)", "SimpleAggregateFunction(max, Int8)"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        struct type *a = parse(pairs[i][0]), *b = parse(pairs[i][1]);
        assert_false(type_equal(a, b));
        assert_false(type_equal(b, a));
        type_free(a);
        type_free(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_names), cmocka_unit_test(test_spellings),
        cmocka_unit_test(test_aliases),     cmocka_unit_test(test_fields),
        cmocka_unit_test(test_bad),         cmocka_unit_test(test_error_names_the_position),
        cmocka_unit_test(test_limits),      cmocka_unit_test(test_hostile),
        cmocka_unit_test(test_native),      cmocka_unit_test(test_differences),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
