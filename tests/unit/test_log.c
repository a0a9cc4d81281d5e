/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "base/buf.h"
#include "base/log.h"

static struct buf written;
static size_t lines;

static void collect(void *arg, const char *line, size_t n)
{
    struct buf *b = arg;
    assert_int_equal(line[n - 1], '\n');
    assert_null(memchr(line, '\n', n - 1));
    assert_int_equal(buf_append(b, line, n), SPOOL_OK);
    lines++;
}

static int setup(void **state)
{
    (void)state;
    buf_init(&written, 1 << 20);
    lines = 0;
    log_set_writer(collect, &written);
    log_set_level(LOG_INFO);
    log_set_format(LOG_TEXT);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    log_set_writer(NULL, NULL);
    buf_free(&written);
    return 0;
}

/* The line behind its time stamp of 24 characters and a blank. */
static const char *after_time(void)
{
    const char *text = buf_cstr(&written);
    assert_true(written.len > 25);
    return text + 25;
}

static void text_line_has_time_level_event_and_pairs(void **state)
{
    (void)state;
    log_event(LOG_WARN, "stream.held", "stream", "x", "reason", "no such table", NULL);
    const char *line = buf_cstr(&written);
    for (size_t i = 0; i < 24; i++) {
        char want = "dddd-dd-ddTdd:dd:dd.dddZ"[i];
        if (want == 'd')
            assert_true(line[i] >= '0' && line[i] <= '9');
        else
            assert_int_equal(line[i], want);
    }
    assert_string_equal(after_time(), "warn stream.held stream=x reason=\"no such table\"\n");
}

static void text_values_are_quoted_where_they_need_it(void **state)
{
    (void)state;
    log_event(LOG_INFO, "a.b", "plain", "a/b:1,2", "empty", "", "null", NULL, "quote", "a\"b",
              "equals", "a=b", "newline", "a\nb", "back", "a\\b", "utf8", "h\xc3\xa9", NULL);
    assert_string_equal(after_time(),
                        "info a.b plain=a/b:1,2 empty=\"\" null=\"\" quote=\"a\\\"b\" "
                        "equals=\"a=b\" newline=\"a\\nb\" back=\"a\\\\b\" "
                        "utf8=\"h\xc3\xa9\"\n");
}

static void json_line_is_one_object_with_the_same_pairs(void **state)
{
    (void)state;
    log_set_format(LOG_JSON);
    log_event(LOG_ERROR, "spool.full", "stream", "x", "bad", "a\xff\"\n", NULL);
    cJSON *object = cJSON_Parse(buf_cstr(&written));
    assert_non_null(object);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(object, "level")), "error");
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(object, "event")), "spool.full");
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(object, "stream")), "x");
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(object, "bad")),
                        "a\xef\xbf\xbd\"\n");
    assert_int_equal(strlen(cJSON_GetStringValue(cJSON_GetObjectItem(object, "time"))), 24);
    cJSON_Delete(object);
}

static void lines_below_the_level_are_not_written(void **state)
{
    (void)state;
    log_event(LOG_DEBUG, "a.b", NULL);
    assert_int_equal(lines, 0);
    assert_false(log_enabled(LOG_DEBUG));
    log_set_level(LOG_ERROR);
    log_event(LOG_WARN, "a.b", NULL);
    assert_int_equal(lines, 0);
    log_event(LOG_ERROR, "a.b", NULL);
    assert_int_equal(lines, 1);
    log_set_level(LOG_DEBUG);
    log_event(LOG_DEBUG, "a.b", NULL);
    assert_int_equal(lines, 2);
}

static void without_a_writer_nothing_happens(void **state)
{
    (void)state;
    log_set_writer(NULL, NULL);
    assert_false(log_enabled(LOG_ERROR));
    log_event(LOG_ERROR, "a.b", "k", "v", NULL);
    assert_int_equal(lines, 0);
}

static void a_huge_value_is_cut_between_characters(void **state)
{
    (void)state;
    size_t n = 300000;
    char *value = malloc(n + 1);
    assert_non_null(value);
    value[0] = 'x'; /* so that the cut would fall inside a character */
    for (size_t i = 1; i < n; i++)
        value[i] = (i & 1) ? '\xc3' : '\xa9';
    value[n] = 0;
    log_set_format(LOG_JSON);
    log_event(LOG_INFO, "a.b", "v", value, "after", "there", NULL);
    cJSON *object = cJSON_Parse(buf_cstr(&written));
    assert_non_null(object);
    const char *kept = cJSON_GetStringValue(cJSON_GetObjectItem(object, "v"));
    assert_in_range(strlen(kept), 8000, 8192);
    assert_memory_equal(kept, value, strlen(kept));
    assert_null(strstr(kept, "\xef\xbf\xbd"));
    assert_string_equal(cJSON_GetStringValue(cJSON_GetObjectItem(object, "after")), "there");
    cJSON_Delete(object);
    free(value);
}

static void a_line_over_its_bound_leaves_pairs_out_and_stays_whole(void **state)
{
    (void)state;
    char value[8001];
    memset(value, 'y', 8000);
    value[8000] = 0;
    log_set_format(LOG_JSON);
    log_event(LOG_INFO, "a.b", "a", value, "b", value, "c", value, "d", value, "e", value, "f",
              value, "g", value, "h", value, "i", value, "j", value, "k", "short", NULL);
    cJSON *object = cJSON_Parse(buf_cstr(&written));
    assert_non_null(object);
    assert_true(written.len <= 64 * 1024);
    assert_non_null(cJSON_GetObjectItem(object, "a"));
    assert_null(cJSON_GetObjectItem(object, "j"));
    assert_non_null(cJSON_GetObjectItem(object, "k"));
    cJSON_Delete(object);
}

static void the_gate_opens_once_and_counts_what_it_held_back(void **state)
{
    (void)state;
    struct log_gate gate = {0};
    uint64_t suppressed = 99;
    assert_true(log_gate_open(&gate, 3600 * 1000, &suppressed));
    assert_int_equal(suppressed, 0);
    assert_false(log_gate_open(&gate, 3600 * 1000, &suppressed));
    assert_false(log_gate_open(&gate, 3600 * 1000, &suppressed));
    gate.next_ms = 0; /* the interval is over */
    assert_true(log_gate_open(&gate, 3600 * 1000, &suppressed));
    assert_int_equal(suppressed, 2);
    gate.next_ms = 0;
    assert_true(log_gate_open(&gate, 3600 * 1000, &suppressed));
    assert_int_equal(suppressed, 0);
}

static void numbers_stay_valid_for_eight_calls(void **state)
{
    (void)state;
    const char *first = log_u64(UINT64_MAX);
    const char *second = log_i64(INT64_MIN);
    for (int i = 0; i < 6; i++)
        log_i64(i);
    assert_string_equal(first, "18446744073709551615");
    assert_string_equal(second, "-9223372036854775808");
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(text_line_has_time_level_event_and_pairs),
        TEST(text_values_are_quoted_where_they_need_it),
        TEST(json_line_is_one_object_with_the_same_pairs),
        TEST(lines_below_the_level_are_not_written),
        TEST(without_a_writer_nothing_happens),
        TEST(a_huge_value_is_cut_between_characters),
        TEST(a_line_over_its_bound_leaves_pairs_out_and_stays_whole),
        TEST(the_gate_opens_once_and_counts_what_it_held_back),
        TEST(numbers_stay_valid_for_eight_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
