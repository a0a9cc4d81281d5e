/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/metrics.h"

static struct metrics *m;
static struct buf text;

static int setup(void **state)
{
    (void)state;
    buf_init(&text, 64 << 20);
    return metrics_create(&m);
}

static int teardown(void **state)
{
    (void)state;
    metrics_free(m);
    buf_free(&text);
    return 0;
}

static const char *render(void)
{
    buf_reset(&text);
    assert_int_equal(metrics_render(m, &text), SPOOL_OK);
    return buf_cstr(&text);
}

static void assert_has_line(const char *line)
{
    const char *all = render();
    size_t n = strlen(line);
    for (const char *at = all; (at = strstr(at, line)); at++)
        if ((at == all || at[-1] == '\n') && at[n] == '\n')
            return;
    fail_msg("no line %s in:\n%s", line, all);
}

static size_t count_lines_with(const char *prefix)
{
    size_t count = 0;
    for (const char *at = render(); at && *at; at = strchr(at, '\n')) {
        if (*at == '\n' && !*++at)
            break;
        if (strncmp(at, prefix, strlen(prefix)) == 0)
            count++;
    }
    return count;
}

static void counters_add_up_by_label(void **state)
{
    (void)state;
    metrics_add(m, METRIC_RECORDS_IN, 2, "a", "kafka");
    metrics_add(m, METRIC_RECORDS_IN, 3, "a", "kafka");
    metrics_add(m, METRIC_RECORDS_IN, 7, "b", "kafka");
    assert_true(metrics_get(m, METRIC_RECORDS_IN, "a", "kafka") == 5);
    assert_true(metrics_get(m, METRIC_RECORDS_IN, "b", "kafka") == 7);
    assert_true(metrics_get(m, METRIC_RECORDS_IN, "c", "kafka") == 0);
    assert_has_line("# HELP spoold_records_in_total Records taken from sources.");
    assert_has_line("# TYPE spoold_records_in_total counter");
    assert_has_line("spoold_records_in_total{stream=\"a\",source=\"kafka\"} 5");
    assert_int_equal(count_lines_with("spoold_records_in_total{"), 2);
}

static void labels_that_join_alike_are_different_series(void **state)
{
    (void)state;
    metrics_add(m, METRIC_RETRIES, 1, "ab", "c");
    metrics_add(m, METRIC_RETRIES, 2, "a", "bc");
    assert_true(metrics_get(m, METRIC_RETRIES, "ab", "c") == 1);
    assert_true(metrics_get(m, METRIC_RETRIES, "a", "bc") == 2);
    metrics_set(m, METRIC_SPOOL_ROWS, 4, "x"); /* the same label under another metric */
    assert_true(metrics_get(m, METRIC_SPOOL_BYTES, "x") == 0);
}

static void gauges_are_set(void **state)
{
    (void)state;
    metrics_set(m, METRIC_SPOOL_OLDEST, 1.5, "a");
    metrics_set(m, METRIC_SPOOL_OLDEST, 0.1, "a");
    assert_has_line("# TYPE spoold_spool_oldest_age_seconds gauge");
    assert_has_line("spoold_spool_oldest_age_seconds{stream=\"a\"} 0.1");
    metrics_set(m, METRIC_SPOOL_LIMIT, 10737418240.0);
    assert_has_line("spoold_spool_limit_bytes 10737418240");
}

static void numbers_are_exact(void **state)
{
    (void)state;
    metrics_set(m, METRIC_SPOOL_ROWS, 9007199254740991.0, "a");
    assert_has_line("spoold_spool_rows{stream=\"a\"} 9007199254740991");
    metrics_set(m, METRIC_SPOOL_ROWS, 0.1 + 0.2, "b");
    assert_has_line("spoold_spool_rows{stream=\"b\"} 0.30000000000000004");
    metrics_set(m, METRIC_SPOOL_ROWS, __builtin_inf(), "c");
    assert_has_line("spoold_spool_rows{stream=\"c\"} +Inf");
    metrics_set(m, METRIC_SPOOL_ROWS, __builtin_nan(""), "d");
    assert_has_line("spoold_spool_rows{stream=\"d\"} NaN");
}

static void label_values_are_escaped(void **state)
{
    (void)state;
    metrics_set(m, METRIC_ENDPOINT_UP, 1, "a\\b\"c\nd");
    assert_has_line("spoold_endpoint_up{endpoint=\"a\\\\b\\\"c\\nd\"} 1");
    metrics_set(m, METRIC_ENDPOINT_UP, 1, NULL);
    assert_has_line("spoold_endpoint_up{endpoint=\"\"} 1");
}

static void histograms_count_into_cumulative_buckets(void **state)
{
    (void)state;
    metrics_observe(m, METRIC_INSERT_SECONDS, 0.001, "a"); /* a bound belongs to its bucket */
    metrics_observe(m, METRIC_INSERT_SECONDS, 0.02, "a");
    metrics_observe(m, METRIC_INSERT_SECONDS, 99, "a");
    assert_has_line("# TYPE spoold_insert_duration_seconds histogram");
    assert_has_line("spoold_insert_duration_seconds_bucket{stream=\"a\",le=\"0.001\"} 1");
    assert_has_line("spoold_insert_duration_seconds_bucket{stream=\"a\",le=\"0.01\"} 1");
    assert_has_line("spoold_insert_duration_seconds_bucket{stream=\"a\",le=\"0.025\"} 2");
    assert_has_line("spoold_insert_duration_seconds_bucket{stream=\"a\",le=\"60\"} 2");
    assert_has_line("spoold_insert_duration_seconds_bucket{stream=\"a\",le=\"+Inf\"} 3");
    assert_has_line("spoold_insert_duration_seconds_sum{stream=\"a\"} 99.021");
    assert_has_line("spoold_insert_duration_seconds_count{stream=\"a\"} 3");
    assert_true(metrics_get(m, METRIC_INSERT_SECONDS, "a") == 3);
}

static void a_metric_without_labels_stands_at_zero_from_the_start(void **state)
{
    (void)state;
    assert_has_line("spoold_spool_used_bytes 0");
    assert_has_line("spoold_metrics_dropped_total 0");
    assert_has_line("spoold_loop_turn_seconds_bucket{le=\"+Inf\"} 0");
    assert_has_line("spoold_loop_turn_seconds_sum 0");
}

static void too_many_series_are_dropped_and_counted(void **state)
{
    (void)state;
    char name[24];
    for (int i = 0; i < 10000; i++) {
        snprintf(name, sizeof(name), "s%d", i);
        metrics_add(m, METRIC_TOMBSTONES, i, name);
    }
    assert_true(metrics_get(m, METRIC_METRICS_DROPPED) == 0);
    metrics_add(m, METRIC_TOMBSTONES, 1, "one too many");
    metrics_set(m, METRIC_SPOOL_ROWS, 1, "one too many");
    metrics_observe(m, METRIC_INSERT_SECONDS, 1, "one too many");
    assert_true(metrics_get(m, METRIC_TOMBSTONES, "one too many") == 0);
    assert_has_line("spoold_metrics_dropped_total 3");
    for (int i = 0; i < 10000; i++) {
        snprintf(name, sizeof(name), "s%d", i);
        assert_true(metrics_get(m, METRIC_TOMBSTONES, name) == i);
    }
    metrics_add(m, METRIC_TOMBSTONES, 1, "s5"); /* what is there still counts */
    assert_true(metrics_get(m, METRIC_TOMBSTONES, "s5") == 6);
    metrics_set(m, METRIC_SPOOL_USED, 3); /* and so does what needs no labels */
    assert_true(metrics_get(m, METRIC_SPOOL_USED) == 3);
    assert_int_equal(count_lines_with("spoold_tombstones_total{"), 10000);
}

static void a_stream_that_went_is_forgotten_alone(void **state)
{
    (void)state;
    metrics_add(m, METRIC_ROWS_INSERTED, 1, "gone", "t");
    metrics_add(m, METRIC_ROWS_INSERTED, 2, "stays", "t");
    metrics_add(m, METRIC_ROWS_INSERTED, 3, "gone", "u");
    metrics_observe(m, METRIC_COMMIT_SECONDS, 1, "gone");
    metrics_set(m, METRIC_ENDPOINT_UP, 1, "gone"); /* no label `stream` */
    metrics_forget_stream(m, "gone");
    assert_true(metrics_get(m, METRIC_ROWS_INSERTED, "gone", "t") == 0);
    assert_true(metrics_get(m, METRIC_ROWS_INSERTED, "gone", "u") == 0);
    assert_true(metrics_get(m, METRIC_ROWS_INSERTED, "stays", "t") == 2);
    assert_true(metrics_get(m, METRIC_ENDPOINT_UP, "gone") == 1);
    assert_int_equal(count_lines_with("spoold_rows_inserted_total{"), 1);
    assert_int_equal(count_lines_with("spoold_commit_duration_seconds_count{"), 0);
    metrics_add(m, METRIC_ROWS_INSERTED, 4, "gone", "t"); /* may come back */
    assert_true(metrics_get(m, METRIC_ROWS_INSERTED, "gone", "t") == 4);
    assert_int_equal(count_lines_with("spoold_rows_inserted_total{"), 2);
}

static void a_long_label_is_cut(void **state)
{
    (void)state;
    char name[2001];
    memset(name, 'n', 2000);
    name[2000] = 0;
    metrics_set(m, METRIC_ENDPOINT_UP, 1, name);
    name[1000] = 0;
    assert_true(metrics_get(m, METRIC_ENDPOINT_UP, name) == 1);
    name[100] = 0;
    assert_true(metrics_get(m, METRIC_ENDPOINT_UP, name) == 0);
}

static void nobody_listening_is_fine(void **state)
{
    (void)state;
    metrics_add(NULL, METRIC_TOMBSTONES, 1, "a");
    metrics_set(NULL, METRIC_SPOOL_ROWS, 1, "a");
    metrics_observe(NULL, METRIC_INSERT_SECONDS, 1, "a");
    metrics_forget_stream(NULL, "a");
    assert_true(metrics_get(NULL, METRIC_TOMBSTONES, "a") == 0);
}

static void rendering_into_too_small_a_buffer_fails(void **state)
{
    (void)state;
    struct buf small;
    buf_init(&small, 100);
    assert_int_equal(metrics_render(m, &small), SPOOL_E_LIMIT);
    buf_free(&small);
}

/* docs/operations.md has exactly the rows of METRIC_LIST. The tests run in the tree's root. */
static void the_docs_list_every_metric_and_no_other(void **state)
{
    (void)state;
    static const struct {
        const char *name, *kind, *help, *labels;
    } ROWS[] = {
#define X(id, name, kind, help, labels) {name, #kind, help, labels},
        METRIC_LIST(X)
#undef X
    };
    FILE *file = fopen("docs/operations.md", "r");
    char line[512];
    size_t row = 0;
    assert_non_null(file);
    while (fgets(line, sizeof(line), file)) {
        char want[512] = "", labels[128] = "", kind[16] = "";
        if (strncmp(line, "| `spoold_", 10) != 0)
            continue;
        if (row == METRIC_COUNT)
            fail_msg("not in METRIC_LIST: %s", line);
        for (size_t i = 0; ROWS[row].kind[i]; i++)
            kind[i] = (char)(ROWS[row].kind[i] | 0x20);
        for (const char *at = ROWS[row].labels; *at;) {
            size_t n = strcspn(at, ","), used = strlen(labels);
            snprintf(labels + used, sizeof(labels) - used, "%s`%.*s`", used ? " " : "", (int)n, at);
            at += n + (at[n] == ',');
        }
        snprintf(want, sizeof(want), "| `%s` | %s | %s | %s |\n", ROWS[row].name, kind, labels,
                 ROWS[row].help);
        assert_string_equal(line, want);
        row++;
    }
    fclose(file);
    assert_int_equal(row, METRIC_COUNT);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(counters_add_up_by_label),
        TEST(labels_that_join_alike_are_different_series),
        TEST(gauges_are_set),
        TEST(numbers_are_exact),
        TEST(label_values_are_escaped),
        TEST(histograms_count_into_cumulative_buckets),
        TEST(a_metric_without_labels_stands_at_zero_from_the_start),
        TEST(too_many_series_are_dropped_and_counted),
        TEST(a_stream_that_went_is_forgotten_alone),
        TEST(a_long_label_is_cut),
        TEST(nobody_listening_is_fine),
        TEST(rendering_into_too_small_a_buffer_fails),
        TEST(the_docs_list_every_metric_and_no_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
