/* SPDX-License-Identifier: Apache-2.0 */
/* Time zones and dates against the C library. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <time.h>

#include "base/tzfile.h"
#include "codec/datetime.h"

static uint64_t state64 = 88172645463325252ull;

static int64_t roll(int64_t from, int64_t to)
{
    state64 ^= state64 << 13;
    state64 ^= state64 >> 7;
    state64 ^= state64 << 17;
    return from + (int64_t)(state64 % (uint64_t)(to - from));
}

static const char *const zones[] = {
    "Europe/Berlin",   "America/New_York",  "Asia/Kolkata", "Australia/Lord_Howe",
    "America/Caracas", "Africa/Casablanca", "Pacific/Apia", "Asia/Tehran",
    "Europe/Dublin",   "America/Santiago",  "Etc/GMT+5",    "UTC",
};

/* 1902 to the year 2499, and, folded, beyond. */
static void test_offsets(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(zones) / sizeof(zones[0]); i++) {
        struct tz_zone *zone;
        assert_int_equal(tz_zone_load(zones[i], &zone, NULL), SPOOL_OK);
        setenv("TZ", zones[i], 1);
        tzset();
        for (int k = 0; k < 20000; k++) {
            time_t at = (time_t)roll(-2145916800, k % 2 ? 4133980800 : 30000000000);
            struct tm local;
            assert_non_null(localtime_r(&at, &local));
            if (tz_zone_offset(zone, at) != local.tm_gmtoff)
                fail_msg("%s at %lld: %d, not %ld", zones[i], (long long)at,
                         (int)tz_zone_offset(zone, at), local.tm_gmtoff);
        }
        tz_zone_free(zone);
    }
    unsetenv("TZ");
    tzset();
}

/* Every instant's local time leads back to it, or to the earlier one of the same clock reading. */
static void test_local(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(zones) / sizeof(zones[0]); i++) {
        struct tz_zone *zone;
        struct local_clock clock;
        int twice = 0;
        assert_int_equal(tz_zone_load(zones[i], &zone, NULL), SPOOL_OK);
        local_clock_init(&clock, zone);
        for (int64_t at = 1700000000; at < 1800000000; at += roll(100, 3000)) {
            int64_t local = at + tz_zone_offset(zone, at), back = 0;
            assert_true(local_clock_utc(&clock, local, &back));
            assert_true(back + tz_zone_offset(zone, back) == local);
            assert_true(back <= at && at - back <= 7200);
            twice += back != at;
        }
        if (strcmp(zones[i], "Europe/Berlin") == 0)
            assert_true(twice > 0);
        tz_zone_free(zone);
    }
}

static void expect_time(const char *zone_name, const char *text, int64_t utc_s, const char *problem)
{
    struct tz_zone *zone;
    struct local_clock clock;
    int64_t got = -1, fraction;
    const char *why;

    assert_int_equal(tz_zone_load(zone_name, &zone, NULL), SPOOL_OK);
    local_clock_init(&clock, zone);
    why = datetime_parse((const uint8_t *)text, strlen(text), &clock, 3, true, &got, &fraction);
    if (problem) {
        assert_non_null(why);
        assert_non_null(strstr(why, problem));
    } else {
        if (why)
            fail_msg("%s: %s", text, why);
        if (got != utc_s)
            fail_msg("%s: %lld", text, (long long)got);
    }
    tz_zone_free(zone);
}

static void test_clock_changes(void **state)
{
    (void)state;
    expect_time("Europe/Berlin", "2026-10-25 01:59:59", 1792886399, NULL);
    expect_time("Europe/Berlin", "2026-10-25 02:30:00", 1792888200, NULL); /* the first of two */
    expect_time("Europe/Berlin", "2026-10-25 03:00:00", 1792893600, NULL);
    expect_time("Europe/Berlin", "2026-03-29 01:59:59", 1774745999, NULL);
    expect_time("Europe/Berlin", "2026-03-29 02:00:00", 0, "never was");
    expect_time("Europe/Berlin", "2026-03-29 02:59:59", 0, "never was");
    expect_time("Europe/Berlin", "2026-03-29 03:00:00", 1774746000, NULL);
    expect_time("Europe/Berlin", "2026-03-29T02:30:00Z", 1774751400, NULL);
    expect_time("Europe/Berlin", "2250-07-01 00:00:00", 8851586400,
                NULL);                                                  /* by the footer's rule */
    expect_time("Pacific/Apia", "2011-12-30 12:00:00", 0, "never was"); /* a whole day left out */
}

static void test_forms(void **state)
{
    static const char *const same[] = {
        "2026-11-23 12:34:56",
        "2026/11/23 12:34:56",
        "2026-11-23T12:34:56Z",
        "2026-11-23T13:34:56+01",
        "2026-11-23T13:34:56 +0100",
        "2026-11-23 07:04:56-05:30",
        "20261123123456",
        "20261123T123456Z",
        "20261123 123456.9",
        "2026-11-23 12:34:56.99999",
        "1795437296",
        "1795437296.5",
        "1795437296789",
        "1795437296789012",
        "1795437296789012345",
        "2026-11-23 12:34:56 UTC",
        "2026-11-23T12:34:56GMT",
    };
    static const char *const refused[] = {
        "",
        "2026",
        "2026-11",
        "26-11-23",
        "2026-11/23 10:00:00",
        "2026-11-23T",
        "2026-11-23 1",
        "2026-11-23 12:",
        "2026-11-23 12:3",
        "2026-11-23 12:34:5",
        "2026-11-23 12:34:56.",
        "2026-11-23 12:34:56,5",
        "2026-11-23 12:34:56 ",
        "2026-11-23 12:34:56 PM",
        "2026-11-23 12:34:56+1",
        "2026-11-23 12:34:56+24:00",
        "2026-11-23 12:34:56Zx",
        "2026-11-23 123456",
        "20261123 1234",
        "20261123T1234",
        "179543729678901",
        "2026-11-23 12",
        "2026-11-23Z",
        "12345678901",
        "-1795437296",
        "1795437296.",
        "179543729678.5",
        "2026-11-23x12:34:56",
        " 2026-11-23 12:34:56",
    };

    (void)state;
    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++)
        expect_time("UTC", same[i], 1795437296, NULL);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
        expect_time("UTC", refused[i], 0, "is not a date and time");
    expect_time("UTC", "2026-11-23", 1795392000, NULL);
    expect_time("UTC", "2026-2-3 4:05", 1770091500, NULL);
    expect_time("UTC", "2026-11-23 23:59:60", 1795478400, NULL);
    expect_time("UTC", "2028-02-29 00:00:00", 1835395200, NULL);
    expect_time("UTC", "2026-02-29 00:00:00", 0, "does not exist");
    expect_time("UTC", "2100-02-29 00:00:00", 0, "does not exist");
    expect_time("UTC", "0000-01-01 00:00:00", 0, "does not exist");
    expect_time("UTC", "2026-11-23 24:00:00", 0, "does not exist");
    expect_time("UTC", "2026-11-23 12:34:61", 0, "does not exist");
}

static void test_days(void **state)
{
    (void)state;
    for (int i = 0; i < 100000; i++) {
        int64_t days = roll(-719162, 2932896);
        time_t at = (time_t)(days * 86400);
        struct tm tm;
        int year, month, day;
        assert_non_null(gmtime_r(&at, &tm));
        civil_from_days(days, &year, &month, &day);
        assert_int_equal(year, tm.tm_year + 1900);
        assert_int_equal(month, tm.tm_mon + 1);
        assert_int_equal(day, tm.tm_mday);
        assert_true(civil_is_valid(year, month, day));
        assert_true(civil_days(year, month, day) == days);
    }
}

static void test_bad_names_and_files(void **state)
{
    static const char *const names[] = {"",    "/etc/passwd", "../../../etc/passwd", "a/../b", ".x",
                                        "a b", "a\nb"};
    struct spool_error error;
    struct tz_zone *zone = NULL;
    uint8_t data[4096];
    size_t n;
    FILE *f;

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        assert_int_equal(tz_zone_load(names[i], &zone, &error), SPOOL_E_INVALID);
    assert_int_equal(tz_zone_load("Nowhere/City", &zone, &error), SPOOL_E_NOT_FOUND);
    assert_int_not_equal(tz_zone_load("Europe", &zone, &error), SPOOL_OK); /* a directory */
    f = fopen("/usr/share/zoneinfo/Europe/Berlin", "rb");
    assert_non_null(f);
    n = fread(data, 1, sizeof(data), f);
    fclose(f);
    for (size_t cut = 0; cut < n; cut++) {
        uint8_t *copy = malloc(cut ? cut : 1);
        memcpy(copy, data, cut);
        assert_int_equal(tz_zone_parse(copy, cut, &zone, &error), SPOOL_E_CORRUPT);
        assert_null(zone);
        free(copy);
    }
    for (int i = 0; i < 20000; i++) { /* damaged: any answer, but no harm */
        uint8_t *copy = malloc(n);
        struct tz_span span;
        memcpy(copy, data, n);
        for (int k = 0; k < 3; k++)
            copy[roll(0, i % 2 ? 64 : (int64_t)n)] = (uint8_t)roll(0, 256);
        if (tz_zone_parse(copy, n, &zone, &error) == SPOOL_OK) {
            tz_zone_local(zone, roll(-30000000000, 30000000000), &span);
            tz_zone_offset(zone, roll(-30000000000, 30000000000));
            tz_zone_free(zone);
        }
        free(copy);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_offsets),       cmocka_unit_test(test_local),
        cmocka_unit_test(test_clock_changes), cmocka_unit_test(test_forms),
        cmocka_unit_test(test_days),          cmocka_unit_test(test_bad_names_and_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
