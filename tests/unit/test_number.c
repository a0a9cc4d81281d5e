/* SPDX-License-Identifier: Apache-2.0 */
/* Floats against strtod and strtof on random texts of the hard kinds, integers against strtoull. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "codec/number.h"

static uint64_t state64 = 88172645463325252ull;
static locale_t c_locale;

static uint64_t roll(void)
{
    state64 ^= state64 << 13;
    state64 ^= state64 >> 7;
    state64 ^= state64 << 17;
    return state64;
}

static unsigned long long any(void)
{
    return roll() >> roll() % 64;
}

/* False where the bits drawn are no number. */
static int random_text(char *t, size_t room)
{
    double d;
    float f, g;
    uint64_t bits;
    uint32_t bits32;

    switch (roll() % 7) {
    case 0: /* any double, as many digits as it takes */
        bits = roll();
        memcpy(&d, &bits, sizeof(d));
        if (!isfinite(d))
            return 0;
        return snprintf(t, room, "%.17g", d);
    case 1:
        return snprintf(t, room, "%s%llu.%llu", roll() % 2 ? "-" : "", any() % 100000000, any());
    case 2:
        return snprintf(t, room, "%llue%d", any(), (int)(roll() % 700) - 350);
    case 3: /* more than 19 digits */
        return snprintf(t, room, "%llu%llu.%llue%d", any(), any(), any(),
                        (int)(roll() % 700) - 370);
    case 4: /* half way between two doubles, exactly */
        bits = (roll() & 0x000fffffffffffffull) | (1023 + roll() % 60) << 52;
        memcpy(&d, &bits, sizeof(d));
        return snprintf(t, room, "%.40Lg",
                        (long double)d + (long double)(nextafter(d, INFINITY) - d) / 2);
    case 5: /* half way between two floats */
        bits32 = (uint32_t)roll();
        memcpy(&f, &bits32, sizeof(f));
        if (!isfinite(f))
            return 0;
        g = nextafterf(f, INFINITY);
        return snprintf(t, room, "%.40g", ((double)f + (double)g) / 2);
    default: /* subnormals */
        bits = roll() & 0x800fffffffffffffull;
        memcpy(&d, &bits, sizeof(d));
        return snprintf(t, room, "%.25g", d);
    }
}

static void check_text(const char *t)
{
    size_t n = strlen(t);
    uint8_t *alone = malloc(n); /* nothing behind it, for the sanitizer */
    uint8_t padded[1400];
    double want = strtod(t, NULL), got = 0;
    float want_f = strtof(t, NULL), got_f = 0;

    memset(padded, ' ', sizeof(padded));
    memcpy(padded, t, n);
    memcpy(alone, t, n);
    assert_ptr_equal(number_double(alone, alone + n, c_locale, &got), alone + n);
    if (memcmp(&got, &want, sizeof(got)) != 0)
        fail_msg("%s is %.17g, not %.17g", t, want, got);
    assert_ptr_equal(number_double(padded, padded + sizeof(padded), c_locale, &got), padded + n);
    if (memcmp(&got, &want, sizeof(got)) != 0)
        fail_msg("%s is %.17g, not %.17g (padded)", t, want, got);
    assert_ptr_equal(number_float(alone, alone + n, c_locale, &got_f), alone + n);
    if (memcmp(&got_f, &want_f, sizeof(got_f)) != 0)
        fail_msg("%s is %.9g, not %.9g", t, (double)want_f, (double)got_f);
    free(alone);
}

static void test_floats(void **state)
{
    static const char *const texts[] = {
        "0",
        "-0",
        "0.0",
        "-0.0e99",
        "00012",
        ".5",
        "5.",
        "+1.5",
        "1e0",
        "1E+05",
        "1e-0",
        "1e22",
        "1e23",
        "9007199254740993",
        "9007199254740992.5",
        "4.9e-324",
        "2.4703282292062327e-324",
        "2.4703282292062328e-324",
        "2.2250738585072014e-308",
        "2.2250738585072011e-308",
        "1.7976931348623157e308",
        "1.7976931348623158e308",
        "1.7976931348623159e308",
        "1e309",
        "1e-400",
        "1e999999999999999999999",
        "0e999999999999999999999",
        "1e-999999999999999999999",
        "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017"
        "977587207096330286416692887910946555547851940402630657488671505820681908902000708383676273"
        "85"
        "484581771153176447573027006985557136695962284291481986083493647529271907416844436551070434"
        "27"
        "11559699508093042880177904174497791",
        "0.00000000000000000000000000000000000000000000000000000000000000000000000000000000000001",
        "7.0064923216240853546186479164495806564013097093825788587853e-46",
    };
    char t[1200];

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        check_text(texts[i]);
    for (int i = 0; i < 300000; i++)
        if (random_text(t, sizeof(t)))
            check_text(t);
    /* a digit far behind the half-way point decides */
    snprintf(t, sizeof(t), "9007199254740993.%0900d", 0);
    check_text(t);
    snprintf(t, sizeof(t), "9007199254740993.%0900d1", 0);
    check_text(t);
}

static void test_no_floats(void **state)
{
    static const char *const texts[] = {"", "-", "+", ".", "-.", "e5", "1e", "1e+", "x", ".e1"};
    double got;

    (void)state;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        const uint8_t *p = (const uint8_t *)texts[i];
        assert_null(number_double(p, p + strlen(texts[i]), c_locale, &got));
    }
}

static void test_integers(void **state)
{
    (void)state;
    for (int i = 0; i < 300000; i++) {
        char t[64];
        uint64_t v = any(), got = 1;
        bool overflow = true;
        size_t n =
            (size_t)snprintf(t, sizeof(t), "%s%llu", i % 5 ? "" : "000", (unsigned long long)v);
        memset(t + n, i % 3 ? ',' : '/', sizeof(t) - n); /* '/' and ':' surround the digits */
        if (i % 7 == 0)
            t[n] = ':';
        for (size_t room = n; room < sizeof(t); room += 13) {
            const uint8_t *p = (const uint8_t *)t;
            assert_ptr_equal(number_digits(p, p + room, &got, &overflow), p + n);
            assert_false(overflow);
            assert_true(got == v);
        }
    }
    for (int extra = 0; extra < 3; extra++) {
        static const char *const big[] = {"18446744073709551616", "99999999999999999999",
                                          "184467440737095516150"};
        const uint8_t *p = (const uint8_t *)big[extra];
        uint64_t v;
        bool overflow = false;
        assert_ptr_equal(number_digits(p, p + strlen(big[extra]), &v, &overflow),
                         p + strlen(big[extra]));
        assert_true(overflow);
    }
}

static int make_locale(void **state)
{
    (void)state;
    c_locale = newlocale(LC_ALL_MASK, "C", NULL);
    return c_locale ? 0 : -1;
}

static int free_locale(void **state)
{
    (void)state;
    freelocale(c_locale);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_floats),
        cmocka_unit_test(test_no_floats),
        cmocka_unit_test(test_integers),
    };
    return cmocka_run_group_tests(tests, make_locale, free_locale);
}
