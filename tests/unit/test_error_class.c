/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
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
        {CLASS_TRANSIENT, {159, 209, 210, 202, 203, 216, 225, 236, 242, 252, 279,
                           285, 286, 319, 394, 425, 439, 473, 700, 733, 745, 999}},
        {CLASS_UPLOAD, {3, 32, 33, 39, 40, 89, 271, 354, 432, 561, 618}},
        {CLASS_SCHEMA, {16, 44, 50, 53, 70, 368}},
        {CLASS_TOO_BIG, {173, 241, 307}},
        {CLASS_ENVIRONMENT,
         {192, 193, 194, 195, 516, 60, 81, 497, 164, 452, 201, 218, 291, 75, 76, 243, 48, 115,
          774}},
        {CLASS_DATA, {6,   12,  25,  26,  27,  38,  41,  69,  72,  117, 128, 130, 131, 135,
                      153, 190, 321, 349, 376, 395, 407, 441, 467, 469, 675, 676, 691}},
        {CLASS_UNKNOWN, {1, 2, 36, 1000, 1001, 1002, 49, 62, 77777}},
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
    assert_int_equal(error_classify(49, "Unknown element 'z' for type Enum8('a' = 1)", 500, 1),
                     CLASS_DATA);
    assert_int_equal(error_classify(49, "Logical error", 500, 1), CLASS_UNKNOWN);
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

static bool among(const int *list, int code)
{
    while (*list && *list != code)
        list++;
    return *list != 0;
}

/* A code that is not here may come when some of the rows are stored already. */
static void test_what_proves_nothing_stored(void **state)
{
    static const int proves[] = {
        3,   6,   12,  16,  25,  26,  27,  32,  33,  38,  39,  40,  41,  44,  48,  50,  53,
        60,  69,  70,  72,  81,  89,  115, 117, 128, 130, 131, 135, 153, 164, 190, 192, 193,
        194, 195, 201, 202, 203, 216, 252, 271, 291, 307, 321, 349, 354, 368, 376, 395, 407,
        432, 441, 452, 467, 469, 497, 516, 561, 618, 675, 676, 691, 700, 745, 774, 0};

    (void)state;
    for (int code = 0; code < 1100; code++) {
        assert_int_equal(error_proves_nothing_stored(code, NULL), among(proves, code));
        assert_int_equal(error_proves_nothing_stored(code, "text"), among(proves, code));
    }
    assert_false(error_proves_nothing_stored(6, "Cannot parse: while pushing to view db.v"));
    assert_false(error_proves_nothing_stored(60, "Received from other:9000. DB::Exception: x"));
    assert_true(error_proves_nothing_stored(252, "Too many parts (3)."));
    assert_true(error_proves_nothing_stored(49, "Unknown element 'z' for type Enum8('a' = 1)"));
    assert_true(error_proves_nothing_stored(252, "Too many partitions for single INSERT block"));
}

static void test_when_it_was_raised(void **state)
{
    static const int before_commit[] = {159, 209, 210, 225, 236, 241, 242, 279,
                                        285, 286, 319, 394, 425, 439, 999, 0};
    static const int no_room[] = {75, 173, 241, 243, 0};
    static const int passes_elsewhere[] = {225, 242, 0};

    (void)state;
    for (int code = 0; code < 1100; code++) {
        assert_int_equal(error_is_before_commit(code), among(before_commit, code));
        assert_int_equal(error_is_no_room(code), among(no_room, code));
        assert_int_equal(error_turns_away(code, CLASS_TRANSIENT), among(passes_elsewhere, code));
        assert_true(error_turns_away(code, CLASS_ENVIRONMENT));
    }
}

static void test_what_may_be_of_a_row(void **state)
{
    (void)state;
    assert_true(error_may_be_of_a_row(469, CLASS_DATA));
    assert_true(error_may_be_of_a_row(32, CLASS_UPLOAD));
    assert_true(error_may_be_of_a_row(117, CLASS_SCHEMA));
    assert_true(error_may_be_of_a_row(36, CLASS_UNKNOWN));
    assert_false(error_may_be_of_a_row(40, CLASS_UPLOAD));
    assert_false(error_may_be_of_a_row(16, CLASS_SCHEMA));
    assert_false(error_may_be_of_a_row(0, CLASS_UNKNOWN));
    assert_false(error_may_be_of_a_row(1001, CLASS_UNKNOWN));
    assert_false(error_may_be_of_a_row(60, CLASS_ENVIRONMENT));
    assert_false(error_may_be_of_a_row(241, CLASS_TOO_BIG));
}

/* Only a lack of rights is called so; a limit is named by its setting. */
static void test_advice_of_a_question(void **state)
{
    static const struct {
        int code;
        const char *setting;
    } limits[] = {{158, "max_rows_to_read"},
                  {160, "max_execution_time"},
                  {173, "memory"},
                  {241, "max_memory_usage"},
                  {307, "max_bytes_to_read"},
                  {396, "max_result_rows"},
                  {497, ""},
                  {291, ""},
                  {60, ""}};

    (void)state;
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        const char *advice = error_question_advice(limits[i].code);
        assert_non_null(strstr(advice, limits[i].setting));
        assert_true(limits[i].setting[0] || !advice[0]);
        assert_null(strstr(advice, "SELECT"));
        assert_int_equal(error_is_of_rights(limits[i].code),
                         limits[i].code == 497 || limits[i].code == 291);
    }
}

static void test_views(void **state)
{
    (void)state;
    assert_true(error_is_of_view("Division by zero: while pushing to view default.v"));
    assert_false(error_is_of_view("Division by zero"));
    assert_false(error_is_of_view(NULL));
    assert_true(error_is_before_view(252, "Too many parts (3): while pushing to view default.v"));
    assert_false(error_is_before_view(252, "Received from other:9000. Too many parts (3)"));
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
        cmocka_unit_test(test_when_it_was_raised),
        cmocka_unit_test(test_what_may_be_of_a_row),
        cmocka_unit_test(test_advice_of_a_question),
        cmocka_unit_test(test_views),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
