/* SPDX-License-Identifier: Apache-2.0 */
#include "kafkatool.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* 2026-11-23 10:11:12.345 UTC, one millisecond later for each id. */
#define FIRST_MS INT64_C(1795428672345)

static const char *const KINDS[6] = {"click", "view", "purchase", "login", "logout", "search"};
static const char *const STATES[5] = {"new", "active", "pending", "closed", "failed"};

/* splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators). */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* The date part changes once in 86 million records. Not thread-safe. */
static const char *date_text(int64_t day)
{
    static int64_t held = -1;
    static char text[16];
    if (day != held) {
        time_t at = (time_t)(day * 86400);
        struct tm utc;
        gmtime_r(&at, &utc);
        strftime(text, sizeof text, "%Y-%m-%d", &utc);
        held = day;
    }
    return text;
}

size_t record_write(enum record_kind kind, uint64_t seed, uint64_t id, char *out)
{
    uint64_t state = seed * UINT64_C(0xd1342543de82ef95) + id;
    uint64_t a = next_random(&state), b = next_random(&state);
    int64_t ms = FIRST_MS + (int64_t)(id % UINT64_C(1000000000000));
    unsigned of_day = (unsigned)(ms % 86400000);
    char clock[16];
    snprintf(clock, sizeof clock, "%02u:%02u:%02u.%03u", of_day / 3600000, of_day / 60000 % 60,
             of_day / 1000 % 60, of_day % 1000);
    int n;
    if (kind == RECORD_DEMO)
        n = snprintf(
            out, RECORD_BYTES_MAX,
            "{\"id\":%llu,\"name\":\"user-%06x\",\"timestamp\":\"%s %.8s\",\"type\":\"%s\"}",
            (unsigned long long)id, (unsigned)(a & 0xffffff), date_text(ms / 86400000), clock,
            b & 1 ? "foo" : "bar");
    else
        n = snprintf(out, RECORD_BYTES_MAX,
                     "{\"id\":%llu,\"name\":\"user-%08x\",\"kind\":\"%s\",\"value\":%u.%03u,"
                     "\"ts\":\"%s %s\",\"state\":\"%s\",\"ok\":%s}",
                     (unsigned long long)id, (unsigned)a, KINDS[(a >> 32) % 6],
                     (unsigned)(b % 10000), (unsigned)((b >> 16) % 1000), date_text(ms / 86400000),
                     clock, STATES[(b >> 32) % 5], b >> 63 ? "true" : "false");
    if (n < 0 || n >= RECORD_BYTES_MAX)
        die("a generated record does not fit");
    return (size_t)n;
}
