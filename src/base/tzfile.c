/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table is a list of transitions in UTC order, those of the file first and then those its
 * footer (a POSIX TZ rule) gives up to YEAR_LAST. Later years are folded back by whole 400-year
 * cycles of the calendar, which start on the same weekday.
 */
#include "base/tzfile.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TZ_DIRECTORY    "/usr/share/zoneinfo/"
#define TZ_NAME_BYTES   128
#define TZ_FILE_BYTES   (1024 * 1024)
#define TZ_TRANSITIONS  8192
#define YEAR_LAST       2500
#define CYCLE_S         (146097ll * 86400)
#define OFFSET_MAX_S    (26 * 3600)
#define TZIF_HEADER     44
#define FOOTER_RULE_MAX 128

struct transition {
    int64_t utc_s;
    int64_t local_s; /* on the clock that ran before it */
    int32_t offset_s;
};

struct tz_zone {
    int32_t first_offset_s; /* before the first transition */
    size_t count;
    size_t cap;
    int64_t fold_s; /* instants at or past it are folded back; INT64_MAX: never */
    struct transition *at;
};

/* Days since 1970-01-01 of a civil date (proleptic Gregorian). */
static int64_t days_of(int64_t year, int month, int day)
{
    int64_t y = month <= 2 ? year - 1 : year;
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    int64_t of_era = y - era * 400;
    int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static bool is_leap(int64_t year)
{
    return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

static int zone_add(struct tz_zone *zone, int64_t utc_s, int32_t offset_s)
{
    int32_t before = zone->count ? zone->at[zone->count - 1].offset_s : zone->first_offset_s;

    if (zone->count && utc_s <= zone->at[zone->count - 1].utc_s)
        return SPOOL_E_CORRUPT;
    if (before == offset_s)
        return SPOOL_OK; /* only the name changed */
    if (zone->count == zone->cap) {
        size_t cap = zone->cap ? zone->cap * 2 : 64;
        struct transition *at = realloc(zone->at, cap * sizeof(*at));
        if (!at)
            return SPOOL_E_NOMEM;
        zone->at = at;
        zone->cap = cap;
    }
    zone->at[zone->count++] = (struct transition){utc_s, utc_s + before, offset_s};
    return SPOOL_OK;
}

static int64_t read_be(const uint8_t *p, size_t n)
{
    uint64_t v = 0;

    for (size_t i = 0; i < n; i++)
        v = v << 8 | p[i];
    if (n < 8 && (p[0] & 0x80))
        v |= ~0ull << (8 * n);
    return (int64_t)v;
}

/* ---- the footer: std offset [dst [offset] , start [/time] , end [/time]] ---- */

struct rule_day {
    char kind; /* 'M' month.week.day, 'J' 1..365 without February 29, 'D' 0..365 */
    int month, week, day;
    int32_t time_s;
};

struct rule {
    int32_t standard_s, daylight_s;
    bool has_daylight;
    struct rule_day start, end;
};

static bool rule_name(const char **text)
{
    const char *p = *text;
    size_t n = 0;

    if (*p == '<') {
        p++;
        while (*p && *p != '>') {
            p++;
            n++;
        }
        if (*p != '>')
            return false;
        p++;
    } else {
        while ((*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z')) {
            p++;
            n++;
        }
    }
    *text = p;
    return n >= 3;
}

static bool rule_number(const char **text, int max, int *value)
{
    const char *p = *text;
    int v = 0;

    if (*p < '0' || *p > '9')
        return false;
    while (*p >= '0' && *p <= '9') {
        v = v * 10 + (*p++ - '0');
        if (v > max)
            return false;
    }
    *text = p;
    *value = v;
    return true;
}

/* [+-]hh[:mm[:ss]] in seconds */
static bool rule_time(const char **text, int32_t *seconds)
{
    const char *p = *text;
    int sign = 1, part[3] = {0, 0, 0};

    if (*p == '+' || *p == '-')
        sign = *p++ == '-' ? -1 : 1;
    if (!rule_number(&p, 167, &part[0]))
        return false;
    for (int i = 1; i < 3 && *p == ':'; i++) {
        p++;
        if (!rule_number(&p, 59, &part[i]))
            return false;
    }
    *seconds = sign * (part[0] * 3600 + part[1] * 60 + part[2]);
    *text = p;
    return true;
}

static bool rule_day(const char **text, struct rule_day *day)
{
    const char *p = *text;

    memset(day, 0, sizeof(*day));
    day->time_s = 2 * 3600;
    if (*p == 'M') {
        p++;
        day->kind = 'M';
        if (!rule_number(&p, 12, &day->month) || day->month == 0 || *p++ != '.' ||
            !rule_number(&p, 5, &day->week) || day->week == 0 || *p++ != '.' ||
            !rule_number(&p, 6, &day->day))
            return false;
    } else {
        day->kind = *p == 'J' ? 'J' : 'D';
        p += *p == 'J';
        if (!rule_number(&p, 365, &day->day) || (day->kind == 'J' && day->day == 0))
            return false;
    }
    if (*p == '/') {
        p++;
        if (!rule_time(&p, &day->time_s))
            return false;
    }
    *text = p;
    return true;
}

static bool rule_parse(const char *text, struct rule *rule)
{
    const char *p = text;

    memset(rule, 0, sizeof(*rule));
    if (!rule_name(&p) || !rule_time(&p, &rule->standard_s))
        return false;
    rule->standard_s = -rule->standard_s; /* POSIX counts west */
    if (!*p)
        return true;
    if (!rule_name(&p))
        return false;
    rule->has_daylight = true;
    rule->daylight_s = rule->standard_s + 3600;
    if (*p && *p != ',') {
        if (!rule_time(&p, &rule->daylight_s))
            return false;
        rule->daylight_s = -rule->daylight_s;
    }
    return *p++ == ',' && rule_day(&p, &rule->start) && *p++ == ',' && rule_day(&p, &rule->end) &&
           !*p && rule->standard_s <= OFFSET_MAX_S && rule->standard_s >= -OFFSET_MAX_S &&
           rule->daylight_s <= OFFSET_MAX_S && rule->daylight_s >= -OFFSET_MAX_S;
}

/* Local midnight-based seconds at which the rule's day of that year comes. */
static int64_t rule_local(const struct rule_day *day, int64_t year)
{
    static const int days_in_month[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int64_t first, days;
    int length, weekday;

    if (day->kind == 'J') {
        days = days_of(year, 1, 1) + day->day - 1;
        if (is_leap(year) && day->day >= 60)
            days++;
    } else if (day->kind == 'D') {
        days = days_of(year, 1, 1) + day->day;
    } else {
        first = days_of(year, day->month, 1);
        weekday = (int)(((first + 4) % 7 + 7) % 7);
        length = days_in_month[day->month - 1] + (day->month == 2 && is_leap(year));
        days = (day->day - weekday + 7) % 7 + (day->week - 1) * 7;
        while (days >= length)
            days -= 7;
        days += first;
    }
    return days * 86400 + day->time_s;
}

static int zone_extend(struct tz_zone *zone, const struct rule *rule)
{
    int64_t last = zone->count ? zone->at[zone->count - 1].utc_s : INT64_MIN;
    int status = SPOOL_OK;

    if (!rule->has_daylight)
        return SPOOL_OK;
    for (int64_t year = 1971; year <= YEAR_LAST && status == SPOOL_OK; year++) {
        int64_t on = rule_local(&rule->start, year) - rule->standard_s;
        int64_t off = rule_local(&rule->end, year) - rule->daylight_s;
        bool on_first = on < off;
        int64_t utc[2] = {on_first ? on : off, on_first ? off : on};
        int32_t offset[2] = {on_first ? rule->daylight_s : rule->standard_s,
                             on_first ? rule->standard_s : rule->daylight_s};
        for (int i = 0; i < 2 && status == SPOOL_OK; i++)
            if (utc[i] > last && (i == 0 || utc[1] > utc[0]))
                status = zone_add(zone, utc[i], offset[i]);
    }
    /* A rule that is on all year gives overlapping years; the table then stands as it is. */
    if (status == SPOOL_E_CORRUPT)
        status = SPOOL_OK;
    zone->fold_s = days_of(YEAR_LAST, 1, 1) * 86400;
    return status;
}

/* ---- the file ---- */

struct tzif {
    uint32_t isut, isstd, leap, time, type, chars;
    const uint8_t *body;
    size_t time_bytes;
    size_t body_bytes;
};

static bool tzif_header(const uint8_t *data, size_t size, size_t time_bytes, struct tzif *h)
{
    if (size < TZIF_HEADER || memcmp(data, "TZif", 4) != 0)
        return false;
    h->isut = (uint32_t)read_be(data + 20, 4);
    h->isstd = (uint32_t)read_be(data + 24, 4);
    h->leap = (uint32_t)read_be(data + 28, 4);
    h->time = (uint32_t)read_be(data + 32, 4);
    h->type = (uint32_t)read_be(data + 36, 4);
    h->chars = (uint32_t)read_be(data + 40, 4);
    if (h->isut > 256 || h->isstd > 256 || h->leap > 1024 || h->time > TZ_TRANSITIONS ||
        h->type == 0 || h->type > 256 || h->chars > 4096)
        return false;
    h->time_bytes = time_bytes;
    h->body = data + TZIF_HEADER;
    h->body_bytes = h->time * (time_bytes + 1) + h->type * 6ull + h->chars +
                    h->leap * (time_bytes + 4) + h->isstd + h->isut;
    return h->body_bytes <= size - TZIF_HEADER;
}

static int zone_fill(struct tz_zone *zone, const struct tzif *h)
{
    const uint8_t *times = h->body;
    const uint8_t *indexes = times + h->time * h->time_bytes;
    const uint8_t *types = indexes + h->time;
    int status = SPOOL_OK;

    for (uint32_t i = 0; i < h->type; i++) {
        int64_t offset = read_be(types + 6 * i, 4);
        if (offset > OFFSET_MAX_S || offset < -OFFSET_MAX_S)
            return SPOOL_E_CORRUPT;
    }
    zone->first_offset_s = (int32_t)read_be(types, 4);
    for (uint32_t i = 0; i < h->time && status == SPOOL_OK; i++) {
        int64_t at = read_be(times + i * h->time_bytes, h->time_bytes);
        if (indexes[i] >= h->type)
            return SPOOL_E_CORRUPT;
        if (at < -(1ll << 40) || at > (1ll << 40))
            continue; /* the big bang some writers put first */
        status = zone_add(zone, at, (int32_t)read_be(types + 6 * indexes[i], 4));
    }
    return status;
}

static int zone_footer(struct tz_zone *zone, const uint8_t *p, size_t left)
{
    char text[FOOTER_RULE_MAX];
    const uint8_t *stop;
    struct rule rule;
    size_t n;

    if (left < 2 || p[0] != '\n')
        return SPOOL_E_CORRUPT;
    stop = memchr(p + 1, '\n', left - 1);
    if (!stop)
        return SPOOL_E_CORRUPT;
    n = (size_t)(stop - p) - 1;
    if (n == 0)
        return SPOOL_OK;
    if (n >= sizeof(text) || memchr(p + 1, 0, n))
        return SPOOL_E_CORRUPT;
    memcpy(text, p + 1, n);
    text[n] = 0;
    return rule_parse(text, &rule) ? zone_extend(zone, &rule) : SPOOL_E_CORRUPT;
}

int tz_zone_parse(const void *data, size_t size, struct tz_zone **out, struct spool_error *error)
{
    const uint8_t *p = data;
    struct tz_zone *zone = NULL;
    struct tzif h;
    int status = SPOOL_E_CORRUPT;

    *out = NULL;
    if (!tzif_header(p, size, 4, &h))
        goto done;
    zone = calloc(1, sizeof(*zone));
    if (!zone) {
        status = SPOOL_E_NOMEM;
        goto done;
    }
    zone->fold_s = INT64_MAX;
    if (p[4] >= '2') { /* the 64-bit body follows the 32-bit one */
        size_t skip = TZIF_HEADER + h.body_bytes;
        if (!tzif_header(p + skip, size - skip, 8, &h))
            goto done;
    }
    status = zone_fill(zone, &h);
    if (status == SPOOL_OK && h.time_bytes == 8) {
        const uint8_t *footer = h.body + h.body_bytes;
        status = zone_footer(zone, footer, size - (size_t)(footer - p));
    }
done:
    if (status == SPOOL_OK)
        *out = zone;
    else
        tz_zone_free(zone);
    if (status == SPOOL_E_CORRUPT)
        spool_error_set(error, status, "not a valid TZif file");
    else if (status != SPOOL_OK)
        spool_error_set(error, status, "%s", spool_strerror(status));
    return status;
}

/* A name under the zoneinfo directory and nothing else: it comes from a table's types. */
static bool name_is_sane(const char *name)
{
    size_t n = strlen(name);

    if (n == 0 || n > TZ_NAME_BYTES || name[0] == '/' || name[0] == '.' || strstr(name, ".."))
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
              c == '/' || c == '_' || c == '-' || c == '+' || c == '.'))
            return false;
    }
    return true;
}

/* The one function of base and codec that reads a file. */
static int file_read(const char *path, uint8_t **data, size_t *size)
{
    FILE *f = fopen(path, "rbe");
    uint8_t *bytes = malloc(TZ_FILE_BYTES);
    int status = SPOOL_OK;

    *data = NULL;
    *size = 0;
    if (!f)
        status = errno == ENOENT || errno == ENOTDIR ? SPOOL_E_NOT_FOUND : SPOOL_E_IO;
    else if (!bytes)
        status = SPOOL_E_NOMEM;
    else {
        *size = fread(bytes, 1, TZ_FILE_BYTES, f);
        if (ferror(f))
            status = SPOOL_E_IO;
    }
    if (f)
        fclose(f);
    if (status == SPOOL_OK)
        *data = bytes;
    else
        free(bytes);
    return status;
}

int tz_zone_load(const char *name, struct tz_zone **out, struct spool_error *error)
{
    char path[sizeof(TZ_DIRECTORY) + TZ_NAME_BYTES];
    struct spool_error why = {0};
    uint8_t *data = NULL;
    size_t size = 0;
    int status;

    *out = NULL;
    if (strcmp(name, "UTC") == 0 || strcmp(name, "Etc/UTC") == 0) {
        *out = calloc(1, sizeof(**out));
        if (!*out)
            return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
        (*out)->fold_s = INT64_MAX;
        return SPOOL_OK;
    }
    if (!name_is_sane(name))
        return spool_error_set(error, SPOOL_E_INVALID, "\"%.*s\" is not a time zone's name",
                               TZ_NAME_BYTES, name);
    snprintf(path, sizeof(path), "%s%s", TZ_DIRECTORY, name);
    status = file_read(path, &data, &size);
    if (status == SPOOL_E_NOT_FOUND)
        return spool_error_set(
            error, status, "time zone %s is not in " TZ_DIRECTORY " (is tzdata installed?)", name);
    if (status == SPOOL_OK)
        status = tz_zone_parse(data, size, out, &why);
    free(data);
    if (status != SPOOL_OK)
        return spool_error_set(error, status, "time zone %s: %s", name,
                               why.text[0] ? why.text : spool_strerror(status));
    return SPOOL_OK;
}

void tz_zone_free(struct tz_zone *zone)
{
    if (!zone)
        return;
    free(zone->at);
    free(zone);
}

bool tz_zone_is_fixed(const struct tz_zone *zone, int32_t *offset_s)
{
    *offset_s = zone->first_offset_s;
    return zone->count == 0;
}

static int64_t fold(const struct tz_zone *zone, int64_t s)
{
    if (s < zone->fold_s)
        return 0;
    return ((s - zone->fold_s) / CYCLE_S + 1) * CYCLE_S;
}

void tz_zone_local(const struct tz_zone *zone, int64_t local_s, struct tz_span *span)
{
    int64_t back = fold(zone, local_s);
    size_t low = 0, high = zone->count;

    local_s -= back;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (zone->at[middle].local_s <= local_s)
            low = middle + 1;
        else
            high = middle;
    }
    /* low transitions lie at or before it */
    span->local_from = low ? zone->at[low - 1].local_s : INT64_MIN / 2;
    span->local_to = low < zone->count ? zone->at[low].local_s : INT64_MAX / 2;
    span->offset_s = low ? zone->at[low - 1].offset_s : zone->first_offset_s;
    span->skipped_s = 0;
    if (low) {
        int32_t before = low > 1 ? zone->at[low - 2].offset_s : zone->first_offset_s;
        if (span->offset_s > before)
            span->skipped_s = span->offset_s - before;
    }
    if (back || span->local_to > zone->fold_s)
        span->local_to = local_s + 1; /* folded times are looked up one by one */
    span->local_from += back;
    span->local_to += back;
}

int32_t tz_zone_offset(const struct tz_zone *zone, int64_t utc_s)
{
    size_t low = 0, high = zone->count;

    utc_s -= fold(zone, utc_s);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (zone->at[middle].utc_s <= utc_s)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? zone->at[low - 1].offset_s : zone->first_offset_s;
}
