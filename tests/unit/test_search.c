/* SPDX-License-Identifier: Apache-2.0 */
/* The search for bad rows, against a server that is a function. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/search.h"
#include "spool.h"

#define BLOCK_ROWS 8192
#define ROWS       100000

enum naming {
    NAMES_NOTHING,
    NAMES_FIRST,  /* the first bad row of the insert, from 1 */
    NAMES_WRONG,  /* some other row */
    NAMES_MOSTLY, /* the first bad row, but for each eighth time, the first time among them */
    NAMES_TWICE,  /* the first bad row, and some other one from the third time on */
    NAMES_BEYOND  /* the first bad row, and from the fourth time on one that was not sent */
};

struct server {
    bool bad[ROWS];
    enum naming naming;
    uint64_t other_from;  /* bad rows from this one on are refused by another code, */
    unsigned other_named; /* whose names are right but the first time only */
    unsigned named;       /* so often was a row named among others */
    uint64_t rows_sent;
};

static struct server server;

static int code_of(uint64_t row)
{
    return row >= server.other_from ? 6 : 469;
}

/* What the server says of an insert of count rows, the bad one at i the first. */
static uint64_t name_of(uint64_t count, uint64_t i, int code)
{
    uint64_t right = i + 1, wrong = count - i;
    unsigned times = count > 1 ? server.named++ : server.named;

    if (code == 6)
        return server.other_named++ ? wrong : right;
    switch (server.naming) {
    case NAMES_NOTHING:
        return 0;
    case NAMES_FIRST:
        return right;
    case NAMES_WRONG:
        return wrong;
    case NAMES_MOSTLY:
        return times % 8 == 0 ? wrong : right;
    case NAMES_TWICE:
        return times < 2 ? right : wrong;
    case NAMES_BEYOND:
        return times < 3 ? right : count + 1;
    }
    return 0;
}

/* Rows that are bad by themselves. */
static bool refuses(const struct row_span *span, uint64_t *named, int *code)
{
    *named = 0;
    *code = 0;
    server.rows_sent += span->count;
    for (uint64_t i = 0; i < span->count; i++)
        if (server.bad[span->first + i]) {
            *code = code_of(span->first + i);
            *named = name_of(span->count, i, *code);
            return true;
        }
    return false;
}

static struct search *make(unsigned slots)
{
    uint32_t blocks[ROWS / BLOCK_ROWS + 3] = {0}; /* the first and the last have no rows */
    size_t n = 1;

    for (uint32_t left = ROWS; left > 0; n++) {
        blocks[n] = left < BLOCK_ROWS ? left : BLOCK_ROWS;
        left -= blocks[n];
    }
    server.rows_sent = 0;
    server.named = server.other_named = 0;
    if (!server.other_from)
        server.other_from = ROWS;
    return search_create(blocks, n + 1, slots, 7);
}

/* Runs to the end, or until it is hopeless; every fifth trial tells nothing. */
static void run(struct search *s, unsigned slots, double ratio)
{
    struct row_span spans[SEARCH_SLOTS];
    bool flying[SEARCH_SLOTS] = {false};
    unsigned turn = 0;

    for (;;) {
        bool any = false;
        for (unsigned i = 0; i < slots; i++)
            if (!flying[i])
                flying[i] = search_next(s, i, &spans[i]);
        for (unsigned i = 0; i < slots; i++)
            any = any || flying[i];
        assert_int_equal(any, search_busy(s));
        if (!any || search_hopeless(s, ratio))
            return;
        for (unsigned i = 0; i < slots; i++) {
            uint64_t named;
            bool refused;
            int code;
            char text[32];
            if (!flying[i])
                continue;
            flying[i] = false;
            if (turn++ % 5 == 4) {
                search_unanswered(s, i);
                continue;
            }
            refused = refuses(&spans[i], &named, &code);
            snprintf(text, sizeof(text), "row %llu", (unsigned long long)spans[i].first);
            assert_int_equal(search_answer(s, i, refused, named, code, text), SPOOL_OK);
        }
    }
}

static void expect_found(struct search *s)
{
    size_t count = 0, at = 0;
    const struct bad_row *bad = search_bad(s, &count);

    for (uint64_t row = 0; row < ROWS; row++)
        if (server.bad[row]) {
            assert_true(at < count);
            assert_int_equal(bad[at].row, row);
            assert_int_equal(bad[at].code, code_of(row));
            assert_memory_equal(bad[at].reason, "row ", 4);
            at++;
        }
    assert_int_equal(at, count);
}

static uint64_t find_all(enum naming naming, unsigned slots)
{
    struct search *s = make(slots);
    uint64_t trials;

    assert_non_null(s);
    server.naming = naming;
    run(s, slots, 0.02);
    assert_false(search_hopeless(s, 0.02));
    expect_found(s);
    trials = search_trials(s);
    search_free(s);
    return trials;
}

static void every(uint64_t step, uint64_t rest)
{
    memset(server.bad, 0, sizeof(server.bad));
    for (uint64_t i = 0; i < ROWS; i++)
        server.bad[i] = i % step == rest;
}

static void test_no_bad_row(void **state)
{
    (void)state;
    memset(server.bad, 0, sizeof(server.bad));
    assert_int_equal(find_all(NAMES_NOTHING, 1), 13); /* the blocks */
    assert_int_equal(find_all(NAMES_FIRST, 4), 13);
}

static void test_one_bad_row(void **state)
{
    static const uint64_t rows[] = {0, 1, 8191, 8192, 77777, 99999};

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        memset(server.bad, 0, sizeof(server.bad));
        server.bad[rows[i]] = true;
        assert_true(find_all(NAMES_FIRST, 4) <= 13 + 2);
        assert_true(find_all(NAMES_NOTHING, 4) <= 13 + 15);
        assert_true(find_all(NAMES_WRONG, 1) <= 13 + 16);
    }
}

static void test_a_thousand_bad_rows(void **state)
{
    (void)state;
    every(100, 42);
    assert_true(find_all(NAMES_FIRST, 1) <= 1250);
    assert_true(find_all(NAMES_FIRST, 4) <= 1250);
    assert_true(find_all(NAMES_NOTHING, 1) <= 11000);
    assert_true(find_all(NAMES_NOTHING, 4) <= 11000);
    assert_true(find_all(NAMES_WRONG, 4) <= 11000);
    memset(server.bad, 0, sizeof(server.bad));
    srandom(5);
    for (int i = 0; i < 1000; i++)
        server.bad[random() % ROWS] = true;
    assert_true(find_all(NAMES_FIRST, 4) <= 1250);
    assert_true(find_all(NAMES_NOTHING, 4) <= 11000);
}

/* No row is bad for a name alone before such names were right three times, and never once one was wrong. */
static void test_names_that_turn_out_wrong(void **state)
{
    (void)state;
    every(1000, 300);
    (void)find_all(NAMES_TWICE, 1);
    (void)find_all(NAMES_MOSTLY, 1);
}

static void test_a_name_of_a_row_that_was_not_sent(void **state)
{
    (void)state;
    every(1000, 300);
    (void)find_all(NAMES_BEYOND, 1);
}

/* What was right of one code says nothing of another. */
static void test_names_of_another_code(void **state)
{
    (void)state;
    every(1000, 300);
    server.other_from = ROWS / 2;
    (void)find_all(NAMES_FIRST, 1);
    server.other_from = 0;
}

/* 1,500 bad rows in a row are no reason to give up: they are fewer than the ratio. */
static void test_bad_rows_in_a_heap(void **state)
{
    (void)state;
    memset(server.bad, 0, sizeof(server.bad));
    memset(server.bad + 20000, true, 1500);
    (void)find_all(NAMES_FIRST, 4);
    (void)find_all(NAMES_NOTHING, 4);
}

static void test_all_bad_is_seen_early(void **state)
{
    static const struct {
        uint64_t step;
        uint64_t trials_max;
    } shares[] = {{1, 120}, {3, 200}, {5, 400}};

    (void)state;
    for (enum naming naming = NAMES_NOTHING; naming <= NAMES_FIRST; naming++)
        for (size_t i = 0; i < sizeof(shares) / sizeof(shares[0]); i++) {
            struct search *s = make(4);
            every(shares[i].step, 0);
            server.naming = naming;
            run(s, 4, 0.02);
            assert_true(search_hopeless(s, 0.02));
            assert_true(search_trials(s) <= shares[i].trials_max);
            search_free(s);
        }
}

static void test_where_half_is_allowed(void **state)
{
    struct search *s = make(1);

    (void)state;
    server.naming = NAMES_FIRST;
    every(1, 0);
    run(s, 1, 0.5);
    assert_true(search_hopeless(s, 0.5));
    search_free(s);
}

/* Refused only together: no row may be called bad, and the search ends. */
static void test_no_single_row_is_to_blame(void **state)
{
    struct search *s = make(1);
    struct row_span span;
    size_t count;
    unsigned trials = 0;

    (void)state;
    while (search_next(s, 0, &span)) {
        assert_int_equal(search_answer(s, 0, span.count > 1, 0, 190, "sizes"), SPOOL_OK);
        assert_true(++trials < 200);
    }
    (void)search_bad(s, &count);
    assert_int_equal(count, 0);
    search_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_bad_row),
        cmocka_unit_test(test_one_bad_row),
        cmocka_unit_test(test_a_thousand_bad_rows),
        cmocka_unit_test(test_names_that_turn_out_wrong),
        cmocka_unit_test(test_a_name_of_a_row_that_was_not_sent),
        cmocka_unit_test(test_names_of_another_code),
        cmocka_unit_test(test_bad_rows_in_a_heap),
        cmocka_unit_test(test_all_bad_is_seen_early),
        cmocka_unit_test(test_where_half_is_allowed),
        cmocka_unit_test(test_no_single_row_is_to_blame),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
