/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading Native blocks back: to JSON records (show, dead letters, export) and to a shorter block
 * (a row range of it, byte for byte reproducible). Hostile input throughout. Every type can be read
 * but Dynamic, JSON, AggregateFunction and names this version does not know: SPOOL_E_UNSUPPORTED.
 */
#ifndef CODEC_NATIVE_H
#define CODEC_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "codec/schema.h"

struct native_block;

/*
 * Takes the raw (opened) bytes of one or more Native blocks, read as one: their rows follow each
 * other, and each row has the columns of its own Native block. raw is borrowed and must outlive it.
 */
int native_block_open(const void *raw, size_t size, struct native_block **out,
                      struct spool_error *error);
void native_block_free(struct native_block *b);

/*
 * The zone of dates with a time whose type names none: the server's. UTC until set. Fails as
 * tz_zone_load does, and then changes nothing.
 */
int native_block_set_timezone(struct native_block *b, const char *timezone,
                              struct spool_error *error);

/*
 * From now on every value is shown so that a decoder makes the same of it again: bytes that are no
 * UTF-8 stay as they are, a float in a Variant is told from a whole number, and what stands in the
 * block as a String because the column is JSON is shown as that JSON. schema: the block's own.
 */
void native_block_set_exact(struct native_block *b, const struct schema *schema);

/* Dates with a time of that column are shown in UTC with a Z: no clock change makes two of one. */
void native_block_set_utc(struct native_block *b, const char *column);

uint64_t native_block_rows(const struct native_block *b);
/* Of the first Native block. */
size_t native_block_columns(const struct native_block *b);
const char *native_block_column_name(const struct native_block *b, size_t column);
const struct type *native_block_column_type(const struct native_block *b, size_t column);

/*
 * Appends row as one JSON object without a newline, keys = column names in order. Numbers that
 * JSON readers damage (over 2^53) stay numbers; non-finite floats become "nan", "inf", "-inf";
 * dates and times are text as ClickHouse prints them in the column's zone, or UTC with a Z behind it
 * where this system has no such zone; FixedString without its trailing zeros; bytes that are no
 * UTF-8 become U+FFFD.
 */
int native_block_row_json(const struct native_block *b, uint64_t row, struct buf *out,
                          struct spool_error *error);

/* Appends rows [first, first + count) as one Native block of the same columns. */
int native_block_slice(const struct native_block *b, uint64_t first, uint64_t count,
                       struct buf *out, struct spool_error *error);

/*
 * The same for the text of a JSON-format block: line i of raw, [*start, *start + *size) without
 * its newline. SPOOL_E_NOT_FOUND past the end.
 */
int json_block_line(const void *raw, size_t size, uint64_t row, size_t *start, size_t *length);

#endif
