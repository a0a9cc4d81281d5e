/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "sink/error_class.h"

/* The table of docs/design.md, section "Failure". */
static void test_every_code(void **state)
{
    static const struct {
        enum error_class class_;
        int codes[40];
    } rows[] = {
        {CLASS_TRANSIENT, {159, 209, 210, 202, 203, 216, 236, 242, 252, 319, 394, 425, 439, 999}},
        {CLASS_UPLOAD, {3, 32, 33, 40, 89, 271, 354, 432}},
        {CLASS_SCHEMA, {16, 44, 50, 53, 70, 368}},
        {CLASS_TOO_BIG, {241, 307}},
        {CLASS_ENVIRONMENT,
         {192, 193, 194, 195, 516, 60, 81, 497, 164, 452, 201, 75, 243, 48, 115}},
        {CLASS_DATA, {6,   25,  26,  27,  38,  41,  69,  72,  117, 128, 130,
                      131, 190, 321, 349, 376, 407, 467, 469, 675, 676, 691}},
        {CLASS_UNKNOWN, {1, 2, 1000, 1001, 1002, 49, 62, 77777}},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        for (const int *code = rows[i].codes; *code; code++) {
            enum error_class got = error_classify(*code, "", 500, 0);
            if (got != rows[i].class_)
                fail_msg("code %d is %s, not %s", *code, error_class_name(got),
                         error_class_name(rows[i].class_));
            /* The status is only a hint, the code decides. */
            assert_int_equal(error_classify(*code, NULL, 404, 0), rows[i].class_);
        }
}

static void test_codes_of_two_meanings(void **state)
{
    (void)state;
    assert_int_equal(error_classify(252,
                                    "Too many parts (3). Merges are processing significantly "
                                    "slower than inserts",
                                    500, 1),
                     CLASS_TRANSIENT);
    assert_int_equal(
        error_classify(252, "Too many parts (9) in all partitions in total in table x", 500, 1),
        CLASS_TRANSIENT);
    assert_int_equal(error_classify(252,
                                    "Too many partitions for single INSERT block (more than "
                                    "100)",
                                    500, 1),
                     CLASS_ENVIRONMENT);
    assert_int_equal(error_classify(117, "Unknown column", 400, 1), CLASS_SCHEMA);
    assert_int_equal(error_classify(117, "Duplicate field found while parsing JSONEachRow", 400, 0),
                     CLASS_DATA);
    assert_int_equal(
        error_classify(117, "Unknown field found while parsing JSONEachRow format: b", 400, 0),
        CLASS_SCHEMA);
    assert_int_equal(error_classify(201,
                                    "Quota for user `default` for 3600s has been exceeded: "
                                    "Interval will end at 2026-11-23 19:00:00",
                                    500, 1),
                     CLASS_ENVIRONMENT);
}

static void test_no_code(void **state)
{
    static const struct {
        int status;
        enum error_class class_;
    } rows[] = {{0, CLASS_TRANSIENT},     {500, CLASS_TRANSIENT},   {502, CLASS_TRANSIENT},
                {503, CLASS_TRANSIENT},   {504, CLASS_TRANSIENT},   {408, CLASS_TRANSIENT},
                {429, CLASS_TRANSIENT},   {400, CLASS_ENVIRONMENT}, {401, CLASS_ENVIRONMENT},
                {403, CLASS_ENVIRONMENT}, {404, CLASS_ENVIRONMENT}, {301, CLASS_ENVIRONMENT},
                {200, CLASS_UNKNOWN},     {204, CLASS_UNKNOWN}};

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_int_equal(error_classify(0, "", rows[i].status, 1), rows[i].class_);
}

/* Parsed from memory of exactly that size, so that a read past it is seen. */
static int parse(const char *text)
{
    size_t size = strlen(text);
    char *exact = malloc(size ? size : 1);
    int code;

    assert_non_null(exact);
    memcpy(exact, text, size);
    code = error_code_parse(exact, size);
    free(exact);
    return code;
}

static void test_code_parse(void **state)
{
    (void)state;
    assert_int_equal(parse("Code: 60, e.displayText() = DB::Exception: Table default.nosuch"), 60);
    assert_int_equal(parse("Poco::Exception. Code: 1000, e.code() = 111"), 1000);
    assert_int_equal(parse("Code: 60. DB::Exception: x (UNKNOWN_TABLE) (version 26.7.2.1)"), 60);
    assert_int_equal(parse("Code: x, then Code: 7"), 7);
    assert_int_equal(parse("Code: 7 Code: 8"), 7);
    assert_int_equal(parse("Code: 7"), 7);
    assert_int_equal(parse("Code: "), 0);
    assert_int_equal(parse("Code:"), 0);
    assert_int_equal(parse(""), 0);
    assert_int_equal(parse("code: 7"), 0);
    assert_int_equal(parse("Code: 99999999999999999999"), 0);
    assert_int_equal(parse("<html>502 Bad Gateway</html>"), 0);
}

static void test_names(void **state)
{
    enum error_class class_;

    (void)state;
    for (int i = 0; i < CLASS_COUNT; i++) {
        assert_int_equal(error_class_by_name(error_class_name((enum error_class)i), &class_), 0);
        assert_int_equal(class_, i);
    }
    assert_int_equal(error_class_by_name("too_big", &class_), 0);
    assert_int_equal(class_, CLASS_TOO_BIG);
    assert_int_equal(error_class_by_name("nonsense", &class_), -1);
}

static void test_overrides(void **state)
{
    static const struct error_class_override list[] = {{1002, CLASS_TRANSIENT},
                                                       {117, CLASS_ENVIRONMENT}};

    (void)state;
    error_class_set_overrides(list, 2);
    assert_int_equal(error_classify(1002, "", 500, 1), CLASS_TRANSIENT);
    assert_int_equal(error_classify(117, "", 500, 1), CLASS_ENVIRONMENT);
    assert_int_equal(error_classify(60, "", 500, 1), CLASS_ENVIRONMENT);
    error_class_set_overrides(NULL, 0);
    assert_int_equal(error_classify(1002, "", 500, 1), CLASS_UNKNOWN);
}

static void test_what_proves_nothing_stored(void **state)
{
    static const int proves[] = {6, 16, 27, 33, 40, 60, 117, 164, 193, 202, 216, 368, 516, 0};
    static const int does_not[] = {75, 159, 209, 210, 236, 241, 243, 319, 999, 1001, 7777, 0};

    (void)state;
    for (const int *code = proves; *code; code++)
        assert_true(error_proves_nothing_stored(*code, "text"));
    for (const int *code = does_not; *code; code++)
        assert_false(error_proves_nothing_stored(*code, NULL));
    assert_false(error_proves_nothing_stored(6, "Cannot parse: while pushing to view db.v"));
    assert_false(error_proves_nothing_stored(252, "Too many parts (3)."));
    assert_true(error_proves_nothing_stored(252, "Too many partitions for single INSERT block"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code),
        cmocka_unit_test(test_codes_of_two_meanings),
        cmocka_unit_test(test_no_code),
        cmocka_unit_test(test_code_parse),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_overrides),
        cmocka_unit_test(test_what_proves_nothing_stored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
