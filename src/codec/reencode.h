/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks of one schema as blocks of another: each row is turned back into a JSON record and decoded
 * under the new schema. What a row becomes is what a record would become that says what the
 * block's columns say:
 *
 *   - A column takes the value of the old column that was fed by the same key, fact or constant;
 *     else of the one of its own name; else it is missing from the record.
 *   - $topic, $partition, $offset and $origin are known again, and constants are the new ones.
 *   - An old column that nothing takes is left out, whatever unknown_keys says.
 *
 * Rows that do not fit are refused one by one, with the rebuilt record for the dead letters. The
 * same block gives the same rows and the same bytes every time.
 */
#ifndef CODEC_REENCODE_H
#define CODEC_REENCODE_H

#include "codec/decode.h"

struct reencoder;

/*
 * Both schemas are borrowed and must outlive it. SPOOL_E_UNSUPPORTED with a sentence where a column
 * cannot be taken over: JSON lines hold times as numbers whose unit is the old type's.
 */
int reencoder_create(const struct schema *from, const struct schema *to, size_t max_raw_bytes,
                     struct reencoder **out, struct spool_error *error);
void reencoder_free(struct reencoder *r);

/* Whether a new column takes the value of the old one, or knows it by itself. */
bool reencoder_takes(const struct schema *from, const struct schema *to, size_t column);

/* Whether schemas can be taken over at all: what reencoder_create would say. */
int reencoder_check(const struct schema *from, const struct schema *to, struct spool_error *error);

/* The next block's opened bytes; borrowed until the next call. place is that of its rows. */
int reencoder_open(struct reencoder *r, const void *raw, size_t size,
                   const struct record_place *place, struct spool_error *error);

/* As decoder_row, for one row of the opened block; rows must come in ascending order. why->column
   lives as long as the reencoder. */
int reencoder_row(struct reencoder *r, uint64_t row, int64_t offset, int64_t received_ms,
                  struct refusal *why);

/* The record that the last row was turned into; until the next row. */
const struct buf *reencoder_record(const struct reencoder *r);

uint32_t reencoder_rows(const struct reencoder *r);         /* taken and not yet finished */
int reencoder_finish(struct reencoder *r, struct buf *raw); /* as decoder_finish */

#endif
