/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dates and times from text, as ClickHouse's date_time_input_format=best_effort reads them, minus
 * what it guesses. Read today:
 *
 *   2026-11-23   2026/11/23   2026-1-2   20261123              a date
 *   DATE[T| ]hh:mm   hh:mm:ss   hh:mm:ss.fraction              with a time (or hhmmss after
 *                                                              a date of eight digits)
 *   ... Z   UTC   GMT   +hh   +hhmm   +hh:mm                   with a zone, a blank before it or not
 *   20261123123456                                             14 digits: date and time
 *   1795437296   1795437296.5                                  9 or 10 digits: seconds since 1970
 *   1795437296789                                              13 digits: milliseconds, 16:
 *                                                              micro-, 19: nanoseconds
 *
 * Refused, although best_effort takes them:
 *
 *   23/11/2026, 11/23/2026      which of them is the month is a guess
 *   Mon, 23 Nov 2026 ..., Nov 23, 2026, names of months and days
 *   01:02:03 PM                 twelve-hour clocks
 *   23 Nov 10:00                no year: it would depend on today
 *   2026-11-23 12, +2, 2026-11-23Z  an hour alone, half a zone, a zone without a time
 *   25:00:00, 12:60:00          the server rolls them over into other times (a leap second's :60
 *                               is taken, as the next minute)
 *   a local time that a clock change left out: the server moves it by an hour
 *   2026-02-30, 0000-00-00      dates that don't exist
 */
#ifndef CODEC_DATETIME_H
#define CODEC_DATETIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/tzfile.h"

#define YEAR_MIN 1
#define YEAR_MAX 9999

/* One column's view of its zone: the shared table, and the stretch its last value fell in. */
struct local_clock {
    const struct tz_zone *zone;
    bool fixed;
    int32_t offset_s; /* when fixed */
    struct tz_span span;
};

void local_clock_init(struct local_clock *clock, const struct tz_zone *zone);

/* Seconds since the epoch of a local time. False: no clock ever showed it. */
bool local_clock_utc_slow(struct local_clock *clock, int64_t local_s, int64_t *utc_s);

static inline bool local_clock_utc(struct local_clock *clock, int64_t local_s, int64_t *utc_s)
{
    if (__builtin_expect(clock->fixed, 1)) {
        *utc_s = local_s - clock->offset_s;
        return true;
    }
    return local_clock_utc_slow(clock, local_s, utc_s);
}

/* Days since 1970-01-01. The date must exist (civil_is_valid). */
int64_t civil_days(int year, int month, int day);
bool civil_is_valid(int year, int month, int day);
void civil_from_days(int64_t days, int *year, int *month, int *day);

/* A date alone. NULL, or why not (a constant phrase "... "). */
const char *date_parse(const uint8_t *text, size_t size, int64_t *days);

/*
 * An instant: *utc_s seconds since the epoch (rounded down) and *fraction in units of 10^-scale s,
 * digits beyond are cut. epoch_fraction: whether "1795437296.5" is allowed. NULL, or why not.
 */
const char *datetime_parse(const uint8_t *text, size_t size, struct local_clock *clock,
                           unsigned scale, bool epoch_fraction, int64_t *utc_s, int64_t *fraction);

#endif
