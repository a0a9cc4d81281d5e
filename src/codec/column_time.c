/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dates and times into columns. The common texts ("2026-11-23 10:11:12.345", with T, with Z) are
 * read eight bytes at a time, and the day of the last one is remembered; everything else goes
 * through datetime_parse.
 *
 * Unquoted numbers:
 *   Date, Date32   days since 1970, as JSONEachRow has it; beyond the type's range they are refused
 *                  (the server keeps them modulo 65536, so epoch seconds become nonsense)
 *   DateTime       seconds since 1970
 *   DateTime64(s)  ticks of 10^-s s, as JSONEachRow has it, but only where the unit is beyond
 *                  doubt: 0, or a time from 1973-03-03 (10^8 s) up to 2299. Epoch seconds sent to a
 *                  DateTime64(3) would otherwise be some day in January 1970.
 *   Time           seconds
 *   Time64(s)      ticks of 10^-s s, as JSONEachRow has it
 *
 * Times of day are [-]h:mm:ss, hh and hhh too, [-]m:ss or [-]s, Time64's with a fraction.
 */
#include <string.h>

#include "codec/column.h"
#include "codec/number.h"

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define DATE_DAYS_MAX     65535
#define DATE32_DAYS_MIN   (-25567)  /* 1900-01-01 */
#define DATE32_DAYS_MAX   120529    /* 2299-12-31 */
#define TIME_SECONDS_MAX  3599999ll /* 999:59:59 */
#define TICKS_SECONDS_MIN 100000000ll
#define TICKS_SECONDS_MAX 10413792000ll /* 2300-01-01 */

/* ---- the common form, eight bytes at a time ---- */

/* True if every byte of t selected by digit_bytes is 0..9 and every other one is 0. */
static inline bool fits_pattern(uint64_t t, uint64_t digit_bytes)
{
    uint64_t add = (0x7676767676767676ull & digit_bytes) | (0x7f7f7f7f7f7f7f7full & ~digit_bytes);
    return (((t + add) | t) & 0x8080808080808080ull) == 0;
}

static inline unsigned byte_of(uint64_t v, unsigned i)
{
    return (unsigned)(v >> (8 * i)) & 0xff;
}

static inline unsigned two_digits(uint64_t t, unsigned i)
{
    return byte_of(t, i) * 10 + byte_of(t, i + 1);
}

/* "YYYY-MM-" and "DD" as little-endian numbers; false if they are no date. */
static bool remember_day(struct column *c, uint64_t text, uint16_t text_2)
{
    uint64_t t = text ^ 0x2d30302d30303030ull; /* 0000-00- */
    unsigned d1 = (unsigned)(text_2 & 0xff) - '0', d2 = (unsigned)(text_2 >> 8) - '0';
    int year, month, day;

    if (!fits_pattern(t, 0x00ffff00ffffffffull) || d1 > 9 || d2 > 9)
        return false;
    year = (int)(two_digits(t, 0) * 100 + two_digits(t, 2));
    month = (int)two_digits(t, 5);
    day = (int)(d1 * 10 + d2);
    if (!civil_is_valid(year, month, day))
        return false;
    c->day_text = text;
    c->day_text_2 = text_2;
    c->day_s = civil_days(year, month, day) * 86400;
    return true;
}

/*
 * "YYYY-MM-DD[T ]hh:mm:ss[.digits][Z]" at p with its quotes. Returns where it ends; NULL if it
 * is anything else, or anything that needs a closer look.
 */
static inline __attribute__((always_inline)) const uint8_t *
common_time(struct column *c, const uint8_t *p, const uint8_t *end, unsigned scale, int64_t *utc_s,
            int64_t *fraction)
{
    uint64_t date, clock, t;
    uint16_t date_2;
    unsigned hour, minute, second, n;
    int64_t local;

    if (unlikely(end - p < 21) || *p++ != '"')
        return NULL;
    date = load_le64(p);
    clock = load_le64(p + 8); /* DDThh:mm */
    date_2 = (uint16_t)clock;
    if (unlikely(date != c->day_text || date_2 != c->day_text_2) && !remember_day(c, date, date_2))
        return NULL;
    if (p[10] != 'T' && p[10] != ' ')
        return NULL;
    t = (clock >> 24) ^ 0x30303a3030ull; /* hh:mm */
    if (!fits_pattern(t, 0x000000ffff00ffffull))
        return NULL;
    hour = two_digits(t, 0);
    minute = two_digits(t, 3);
    second = (unsigned)(p[17] - '0') * 10 + (unsigned)(p[18] - '0');
    if (p[16] != ':' || !is_digit(p[17]) || !is_digit(p[18]) || hour > 23 || minute > 59 ||
        second > 59)
        return NULL;
    p += 19;
    *fraction = 0;
    if (*p == '.') {
        if (end - p < 9)
            return NULL;
        t = load_le64(++p);
        n = swar_digit_count(t);
        if (n == 0 || n == 8)
            return NULL;
        *fraction = (int64_t)swar_digits(t, n);
        p += n;
        if (n < scale)
            *fraction *= (int64_t)number_ten_to[scale - n];
        else if (n > scale)
            *fraction /= (int64_t)number_ten_to[n - scale];
    }
    local = c->day_s + hour * 3600 + minute * 60 + second;
    if (p < end && *p == 'Z') {
        *utc_s = local;
        p++;
    } else if (!local_clock_utc(&c->clock, local, utc_s)) {
        return NULL;
    }
    if (p == end || *p != '"')
        return NULL;
    return p + 1;
}

/* ---- the columns ---- */

static int refuse_time_range(struct column *c, struct scan *s, const uint8_t *at)
{
    return scan_refuse_at(s, at, REFUSAL_RANGE, "the time is outside %s", column_type_text(c));
}

/* A quoted time in any form that is read. */
static int text_time(struct column *c, struct scan *s, unsigned scale, bool epoch_fraction,
                     int64_t *utc_s, int64_t *fraction)
{
    const uint8_t *at = s->p, *text;
    const char *why;
    size_t size;
    int status;

    if (*s->p != '"')
        return scan_refuse(s, REFUSAL_TYPE, "%s takes a date and time", column_type_text(c));
    status = json_plain_string(s, &text, &size);
    if (status != SPOOL_OK)
        return status;
    why = datetime_parse(text, size, &c->clock, scale, epoch_fraction, utc_s, fraction);
    if (why)
        return scan_refuse_at(s, at, REFUSAL_TEXT, "the text %s", why);
    return SPOOL_OK;
}

/* An unquoted integer; what else stands there is refused. */
static int number_time(struct column *c, struct scan *s, int64_t *value)
{
    const uint8_t *at = s->p;
    bool negative = *s->p == '-', overflow;
    uint64_t v;

    s->p += negative;
    at = s->p;
    s->p = number_digits(at, s->end, &v, &overflow);
    if (s->p == at)
        return scan_refuse(s, REFUSAL_TYPE, "%s takes a date and time", column_type_text(c));
    if (s->p < s->end && (*s->p == '.' || (*s->p | 0x20) == 'e'))
        return scan_refuse(s, REFUSAL_TYPE, "%s takes whole numbers or text", column_type_text(c));
    if (overflow || v > INT64_MAX)
        return refuse_time_range(c, s, at);
    *value = negative ? -(int64_t)v : (int64_t)v;
    return SPOOL_OK;
}

static inline bool is_number(uint8_t c)
{
    return c == '-' || is_digit(c);
}

static int datetime_value(struct column *c, struct scan *s)
{
    const uint8_t *at = s->p, *p;
    int64_t utc_s, fraction;
    int status = SPOOL_OK;

    if (is_number(*s->p))
        status = number_time(c, s, &utc_s);
    else if ((p = common_time(c, s->p, s->end, 0, &utc_s, &fraction)))
        s->p = p;
    else
        status = text_time(c, s, 0, false, &utc_s, &fraction);
    if (status != SPOOL_OK)
        return status;
    if (unlikely(utc_s < 0 || utc_s > (int64_t)UINT32_MAX))
        return refuse_time_range(c, s, at);
    return column_put(c, (uint64_t)utc_s, 4);
}

static const uint8_t *append_datetime(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, datetime_value(c, s));
}

static int number_ticks(struct column *c, struct scan *s, int64_t *ticks)
{
    const uint8_t *at = s->p;
    int64_t unit = (int64_t)number_ten_to[c->scale], seconds;
    int status = number_time(c, s, ticks);

    if (status != SPOOL_OK || *ticks == 0)
        return status;
    seconds = *ticks / unit;
    if (seconds >= TICKS_SECONDS_MAX)
        return refuse_time_range(c, s, at);
    if (seconds < TICKS_SECONDS_MIN)
        return scan_refuse_at(s, at, REFUSAL_RANGE,
                              "an unquoted number is ticks of %s, and this one may be another unit",
                              column_type_text(c));
    return SPOOL_OK;
}

static const uint8_t *append_datetime64(struct column *c, struct scan *s, const uint8_t *p)
{
    int64_t utc_s, fraction, ticks;
    const uint8_t *stop;
    int status;

    stop = common_time(c, p, s->end, c->scale, &utc_s, &fraction);
    if (unlikely(!stop)) {
        s->p = p;
        if (is_number(*p)) {
            status = number_ticks(c, s, &ticks);
            if (status == SPOOL_OK)
                status = column_put(c, (uint64_t)ticks, 8);
            return scan_done(s, status);
        }
        status = text_time(c, s, c->scale, true, &utc_s, &fraction);
        if (status != SPOOL_OK)
            return scan_fail(s, status);
        stop = s->p;
    }
    if (unlikely(__builtin_mul_overflow(utc_s, (int64_t)number_ten_to[c->scale], &ticks) ||
                 __builtin_add_overflow(ticks, fraction, &ticks)))
        return scan_fail(s, refuse_time_range(c, s, p));
    status = column_put(c, (uint64_t)ticks, 8);
    return likely(status == SPOOL_OK) ? stop : scan_fail(s, status);
}

static int days_value(struct column *c, struct scan *s, int64_t min, int64_t max)
{
    const uint8_t *at = s->p, *text;
    const char *why;
    int64_t days;
    size_t size;
    int status;

    if (min == 0 && *s->p == '-')
        return scan_refuse(s, REFUSAL_TYPE, "%s takes no sign", column_type_text(c));
    if (is_number(*s->p)) {
        status = number_time(c, s, &days);
        if (status != SPOOL_OK)
            return status;
    } else {
        if (*s->p != '"')
            return scan_refuse(s, REFUSAL_TYPE, "%s takes a date", column_type_text(c));
        status = json_plain_string(s, &text, &size);
        if (status != SPOOL_OK)
            return status;
        why = date_parse(text, size, &days);
        if (why)
            return scan_refuse_at(s, at, REFUSAL_TEXT, "the text %s", why);
    }
    if (days < min || days > max)
        return scan_refuse_at(s, at, REFUSAL_RANGE, "the date is outside %s", column_type_text(c));
    return column_put(c, (uint64_t)days, c->width);
}

static int date_value(struct column *c, struct scan *s)
{
    return days_value(c, s, 0, DATE_DAYS_MAX);
}

static const uint8_t *append_date(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, date_value(c, s));
}

static int date32_value(struct column *c, struct scan *s)
{
    return days_value(c, s, DATE32_DAYS_MIN, DATE32_DAYS_MAX);
}

static const uint8_t *append_date32(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, date32_value(c, s));
}

/* ---- times of day ---- */

static const uint8_t *take_digits(const uint8_t *p, const uint8_t *end, unsigned most, unsigned *v,
                                  unsigned *n)
{
    *v = *n = 0;
    while (p < end && is_digit(*p) && *n < most) {
        *v = *v * 10 + (unsigned)(*p++ - '0');
        ++*n;
    }
    return p;
}

/* Seconds and the fraction's ticks from [-][h:]mm:ss or s. NULL, or why not. */
static const char *clock_parse(const uint8_t *p, const uint8_t *end, unsigned scale, bool fractions,
                               int64_t *ticks)
{
    unsigned part[3], digits[3], n = 0, digit;
    bool negative = p < end && *p == '-';
    int64_t unit = (int64_t)number_ten_to[scale], fraction = 0, step = unit;

    p += negative;
    do {
        p = take_digits(p, end, n ? 2 : 3, &part[n], &digits[n]);
        if (digits[n] == 0 || (n && n < 2 && digits[n] != 2 && p < end && *p == ':'))
            return "is not a time";
        n++;
    } while (n < 3 && p < end && *p == ':' && p++);
    if ((n < 3 && digits[0] > 2) || (n > 1 && digits[n - 1] != 2))
        return "is not a time";
    if (fractions && p < end && *p == '.')
        for (p++; p < end && is_digit(*p); p++) {
            digit = (unsigned)(*p - '0');
            step /= 10;
            fraction += step * digit;
        }
    if (p != end)
        return "is not a time";
    for (unsigned i = n == 3; i < n; i++)
        if (part[i] > 59)
            return "has more than 59 minutes or seconds";
    *ticks = 0;
    for (unsigned i = 0; i < n; i++)
        *ticks = *ticks * 60 + part[i];
    *ticks = *ticks * unit + fraction;
    if (negative)
        *ticks = -*ticks;
    return NULL;
}

static int clock_value(struct column *c, struct scan *s)
{
    unsigned scale = c->kind == TYPE_TIME64 ? c->scale : 0;
    int64_t most = TIME_SECONDS_MAX * (int64_t)number_ten_to[scale], ticks;
    const uint8_t *at = s->p, *text;
    const char *why;
    size_t size;
    int status;

    most += (int64_t)number_ten_to[scale] - 1;
    if (is_number(*s->p)) {
        status = number_time(c, s, &ticks);
        if (status != SPOOL_OK)
            return status;
    } else {
        if (*s->p != '"')
            return scan_refuse(s, REFUSAL_TYPE, "%s takes a time", column_type_text(c));
        status = json_plain_string(s, &text, &size);
        if (status != SPOOL_OK)
            return status;
        why = clock_parse(text, text + size, scale, c->kind == TYPE_TIME64, &ticks);
        if (why)
            return scan_refuse_at(s, at, REFUSAL_TEXT, "the text %s", why);
    }
    if (ticks < -most || ticks > most)
        return scan_refuse_at(s, at, REFUSAL_RANGE, "the time is outside %s", column_type_text(c));
    return column_put(c, (uint64_t)ticks, c->width);
}

static const uint8_t *append_clock(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, clock_value(c, s));
}

bool column_set_time(struct column *c)
{
    /* the day "remembered" before the first: it must be a date, for bytes of 0 are none */
    c->day_text = load_le64((const uint8_t *)"1970-01-");
    c->day_text_2 = '0' | '1' << 8;
    c->day_s = 0;
    switch (c->kind) {
    case TYPE_DATE:
        c->append = append_date;
        return true;
    case TYPE_DATE32:
        c->append = append_date32;
        return true;
    case TYPE_DATETIME:
        c->append = append_datetime;
        return true;
    case TYPE_DATETIME64:
        c->append = append_datetime64;
        return c->scale <= 9;
    case TYPE_TIME:
    case TYPE_TIME64:
        c->append = append_clock;
        return c->scale <= 9;
    default:
        return false;
    }
}
