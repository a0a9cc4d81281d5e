/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sink/backoff.h"

static void test_ceiling_doubles_to_the_maximum(void **state)
{
    static const uint32_t ceilings[] = {100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000, 10000};
    struct backoff b;

    (void)state;
    for (uint64_t seed = 0; seed < 2000; seed++) {
        backoff_init(&b, 100, 10000, seed);
        for (size_t i = 0; i < sizeof(ceilings) / sizeof(ceilings[0]); i++) {
            uint32_t delay = backoff_next_ms(&b);
            assert_in_range(delay, ceilings[i] / 10, ceilings[i]);
        }
    }
}

static void test_full_jitter(void **state)
{
    struct backoff b;
    unsigned low = 0, high = 0;

    (void)state;
    backoff_init(&b, 1000, 1000, 1);
    for (int i = 0; i < 2000; i++) {
        uint32_t delay = backoff_next_ms(&b);
        low += delay < 300;
        high += delay > 800;
    }
    assert_true(low > 200 && high > 200);
}

static void test_seeds_differ(void **state)
{
    struct backoff a, b;
    unsigned same = 0;

    (void)state;
    backoff_init(&a, 10000, 10000, 1);
    backoff_init(&b, 10000, 10000, 2);
    for (int i = 0; i < 100; i++)
        same += backoff_next_ms(&a) == backoff_next_ms(&b);
    assert_true(same < 5);
}

static void test_reset(void **state)
{
    struct backoff b;

    (void)state;
    backoff_init(&b, 100, 10000, 7);
    for (int i = 0; i < 20; i++)
        backoff_next_ms(&b);
    backoff_reset(&b);
    assert_in_range(backoff_next_ms(&b), 10, 100);
}

static void test_never_wraps(void **state)
{
    struct backoff b;

    (void)state;
    backoff_init(&b, 1, UINT32_MAX, 7);
    b.attempt = UINT32_MAX;
    assert_in_range(backoff_next_ms(&b), UINT32_MAX / 10, UINT32_MAX);
    assert_int_equal(b.attempt, UINT32_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ceiling_doubles_to_the_maximum),
        cmocka_unit_test(test_full_jitter),
        cmocka_unit_test(test_seeds_differ),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_never_wraps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
