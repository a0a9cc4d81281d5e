/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/datetime.h"

#include <string.h>

#include "codec/number.h"

void local_clock_init(struct local_clock *clock, const struct tz_zone *zone)
{
    memset(clock, 0, sizeof(*clock));
    clock->zone = zone;
    clock->fixed = tz_zone_is_fixed(zone, &clock->offset_s);
}

bool local_clock_utc_slow(struct local_clock *clock, int64_t local_s, int64_t *utc_s)
{
    if (local_s < clock->span.local_from || local_s >= clock->span.local_to)
        tz_zone_local(clock->zone, local_s, &clock->span);
    *utc_s = local_s - clock->span.offset_s;
    return local_s - clock->span.local_from >= clock->span.skipped_s;
}

int64_t civil_days(int year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    int64_t of_era = y - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

void civil_from_days(int64_t days, int *year, int *month, int *day)
{
    int64_t z = days + 719468;
    int64_t era = (z >= 0 ? z : z - 146096) / 146097;
    int64_t of_era = z - era * 146097;
    int64_t y = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * y + y / 4 - y / 100);
    int64_t m = (5 * of_year + 2) / 153;

    *day = (int)(of_year - (153 * m + 2) / 5 + 1);
    *month = (int)(m < 10 ? m + 3 : m - 9);
    *year = (int)(y + era * 400 + (*month <= 2));
}

bool civil_is_valid(int year, int month, int day)
{
    static const int8_t length[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};

    if (year < YEAR_MIN || year > YEAR_MAX || month < 1 || month > 12 || day < 1)
        return false;
    if (month == 2 && year % 4 == 0 && (year % 100 != 0 || year % 400 == 0))
        return day <= 29;
    return day <= length[month - 1];
}

static const char not_a_date[] = "is not a date (YYYY-MM-DD)";
static const char not_a_time[] = "is not a date and time (YYYY-MM-DD hh:mm:ss, ISO 8601 or epoch)";
static const char no_such_date[] = "is a date that does not exist";
static const char no_such_time[] = "has an hour, minute or second that does not exist";
static const char skipped_time[] =
    "is a local time that never was: the clocks went forward over it";

/* Digits at *p, at least least and at most most of them. -1 if there are fewer. */
static int take_digits(const uint8_t **p, const uint8_t *end, int least, int most)
{
    int v = 0, n = 0;

    while (n < most && *p < end && is_digit(**p)) {
        v = v * 10 + (*(*p)++ - '0');
        n++;
    }
    return n < least ? -1 : v;
}

static size_t count_digits(const uint8_t *p, const uint8_t *end)
{
    const uint8_t *start = p;

    while (p < end && is_digit(*p))
        p++;
    return (size_t)(p - start);
}

/* YYYY-M-D, YYYY/M/D or YYYYMMDD. *compact tells which. */
static const char *take_date(const uint8_t **at, const uint8_t *end, int64_t *days, bool *compact)
{
    const uint8_t *p = *at;
    size_t n = count_digits(p, end);
    int year, month, day;

    *compact = n == 8 || n == 14;
    if (*compact) {
        year = take_digits(&p, end, 4, 4);
        month = take_digits(&p, end, 2, 2);
        day = take_digits(&p, end, 2, 2);
    } else {
        uint8_t separator;
        if (n != 4)
            return not_a_date;
        year = take_digits(&p, end, 4, 4);
        separator = p < end ? *p : 0;
        if (separator != '-' && separator != '/')
            return not_a_date;
        p++;
        month = take_digits(&p, end, 1, 2);
        if (month < 0 || p == end || *p++ != separator)
            return not_a_date;
        day = take_digits(&p, end, 1, 2);
        if (day < 0)
            return not_a_date;
    }
    if (!civil_is_valid(year, month, day))
        return no_such_date;
    *days = civil_days(year, month, day);
    *at = p;
    return NULL;
}

const char *date_parse(const uint8_t *text, size_t size, int64_t *days)
{
    const uint8_t *p = text, *end = text + size;
    bool compact;
    const char *why = take_date(&p, end, days, &compact);

    if (!why && p != end)
        why = not_a_date;
    return why;
}

/* .digits as units of 10^-scale, the rest cut; nothing there is 0. */
static bool take_fraction(const uint8_t **at, const uint8_t *end, unsigned scale, int64_t *fraction)
{
    const uint8_t *p = *at;
    unsigned n = 0;

    *fraction = 0;
    if (p == end || *p != '.')
        return true;
    p++;
    if (p == end || !is_digit(*p))
        return false;
    for (; p < end && is_digit(*p); p++)
        if (n < scale) {
            *fraction = *fraction * 10 + (*p - '0');
            n++;
        }
    *fraction *= (int64_t)number_ten_to[scale - n];
    *at = p;
    return true;
}

static const char *take_time(const uint8_t **at, const uint8_t *end, bool compact, unsigned scale,
                             int64_t *seconds, int64_t *fraction)
{
    const uint8_t *p = *at;
    int hour, minute, second = 0;
    bool colon;

    hour = take_digits(&p, end, 1, 2);
    if (hour < 0 || p == end)
        return not_a_time;
    colon = *p == ':';
    if (!colon && !compact)
        return not_a_time;
    p += colon;
    minute = take_digits(&p, end, 2, 2);
    if (minute < 0)
        return not_a_time;
    if (!colon && (p == end || !is_digit(*p)))
        return not_a_time;
    if (!colon || (p < end && *p == ':')) {
        p += colon;
        second = take_digits(&p, end, 2, 2);
        if (second < 0 || !take_fraction(&p, end, scale, fraction))
            return not_a_time;
    }
    if (hour > 23 || minute > 59 || second > 60)
        return no_such_time;
    *seconds = hour * 3600 + minute * 60 + second;
    *at = p;
    return NULL;
}

/* The zone behind a time. *has stays false where there is none. */
static bool take_zone(const uint8_t **at, const uint8_t *end, bool *has, int32_t *offset_s)
{
    const uint8_t *p = *at;
    int hours, minutes = 0, sign;

    *has = false;
    *offset_s = 0;
    while (p < end && *p == ' ')
        p++;
    if (p == end)
        return p == *at; /* trailing blanks are none of ours */
    *has = true;
    if (*p == 'Z') {
        *at = p + 1;
        return true;
    }
    if (end - p >= 3 && (memcmp(p, "UTC", 3) == 0 || memcmp(p, "GMT", 3) == 0)) {
        *at = p + 3;
        return true;
    }
    if (*p != '+' && *p != '-')
        return false;
    sign = *p++ == '-' ? -1 : 1;
    hours = take_digits(&p, end, 2, 2);
    if (p < end && *p == ':') {
        p++;
        minutes = take_digits(&p, end, 2, 2);
    } else if (p < end) {
        minutes = take_digits(&p, end, 2, 2);
    }
    if (hours < 0 || hours > 23 || minutes < 0 || minutes > 59)
        return false;
    *offset_s = sign * (hours * 3600 + minutes * 60);
    *at = p;
    return true;
}

/* Since the epoch: seconds, or by the number of digits a smaller unit. False: it is no such text. */
static bool take_epoch(const uint8_t *p, const uint8_t *end, unsigned scale, bool with_fraction,
                       int64_t *utc_s, int64_t *fraction)
{
    size_t n = count_digits(p, end);
    unsigned unit = n == 13 ? 3 : n == 16 ? 6 : n == 19 ? 9 : 0;
    uint64_t v, below;
    bool overflow;

    if (!unit && n != 9 && n != 10)
        return false;
    p = number_digits_long(p, end, &v, &overflow);
    below = v % number_ten_to[unit];
    *utc_s = (int64_t)(v / number_ten_to[unit]);
    *fraction = (int64_t)(scale >= unit ? below * number_ten_to[scale - unit]
                                        : below / number_ten_to[unit - scale]);
    if (!unit && with_fraction && !take_fraction(&p, end, scale, fraction))
        return false;
    return p == end;
}

const char *datetime_parse(const uint8_t *text, size_t size, struct local_clock *clock,
                           unsigned scale, bool epoch_fraction, int64_t *utc_s, int64_t *fraction)
{
    const uint8_t *p = text, *end = text + size;
    int64_t days, seconds = 0;
    int32_t offset_s;
    bool compact, zoned = false;
    const char *why;

    if (take_epoch(p, end, scale, epoch_fraction, utc_s, fraction))
        return NULL;
    *fraction = 0;
    why = take_date(&p, end, &days, &compact);
    if (why)
        return why == not_a_date ? not_a_time : why;
    if (p < end) {
        if (*p == 'T' || *p == ' ')
            p++;
        else if (!compact || !is_digit(*p))
            return not_a_time;
        why = take_time(&p, end, compact, scale, &seconds, fraction);
        if (why)
            return why;
        if (!take_zone(&p, end, &zoned, &offset_s) || p != end)
            return not_a_time;
    }
    *utc_s = days * 86400 + seconds;
    if (zoned)
        *utc_s -= offset_s;
    else if (!local_clock_utc(clock, *utc_s, utc_s))
        return skipped_time;
    return NULL;
}
