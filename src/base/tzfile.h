/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Time zones from the system's tz database (TZif files, RFC 8536), read whole into a table once
 * and immutable from then on. Nothing here touches TZ, tzset or any other process-wide state, so
 * zones of different columns live side by side and any thread may use them.
 *
 * Loading reads one file; it is the single exception to the rule that base and codec do no I/O,
 * and it happens when a decoder is made, never per record.
 */
#ifndef BASE_TZFILE_H
#define BASE_TZFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "spool_error.h"

struct tz_zone;

/* A stretch of local time during which the offset is one and the same. */
struct tz_span {
    int64_t local_from; /* seconds since 1970-01-01 00:00 on the local clock, inclusive */
    int64_t local_to;   /* exclusive */
    int32_t offset_s;   /* local = UTC + offset_s */
    int32_t skipped_s;  /* the first skipped_s seconds of the span never showed on a clock */
};

/*
 * Loads name ("Europe/Berlin"; "UTC" needs no file). SPOOL_E_INVALID for a name that is none,
 * SPOOL_E_NOT_FOUND where the system has no such zone, SPOOL_E_CORRUPT for a bad file.
 */
int tz_zone_load(const char *name, struct tz_zone **out, struct spool_error *error);

/* The same from a TZif file's bytes (hostile input). */
int tz_zone_parse(const void *data, size_t size, struct tz_zone **out, struct spool_error *error);
void tz_zone_free(struct tz_zone *zone);

/* True if the zone has one offset for ever, then in *offset_s. */
bool tz_zone_is_fixed(const struct tz_zone *zone, int32_t *offset_s);

/*
 * The span that holds a local time. Where clocks go back, the first of the two instants is meant;
 * where they go forward, the times left out belong to the span behind the gap, as its first
 * skipped_s seconds. Both as ClickHouse reads local times.
 */
void tz_zone_local(const struct tz_zone *zone, int64_t local_s, struct tz_span *span);

/* The offset in force at an instant. */
int32_t tz_zone_offset(const struct tz_zone *zone, int64_t utc_s);

#endif
