/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The value of a block: header, offset list, payload, padding. All numbers little endian.
 *
 *     0  u32  magic "SPLB"                  56  i64  first arrival, ms since 1970
 *     4  u16  version, 1                    64  i64  last arrival
 *     6  u16  size of this header, 128      72  u64  raw bytes (before compression)
 *     8  u32  flags (SPOOL_BLOCK_*)         80  u64  payload bytes
 *    12  u32  stream id                     88  u32  offset list bytes, 0: row i is first + i
 *    16  u64  segment number                92  u32  0
 *    24  u64  sequence                      96  u64  XXH3-64 of the segment's schema
 *    32  u32  origin id                    104  u64  0
 *    36  u32  rows                         112  u64  0
 *    40  i64  first offset                 120  u64  checksum: XXH3-64 of header (with this field
 *    48  i64  last offset                            0), offset list and payload
 *
 * The offset list is, per row, an unsigned LEB128 of its offset minus the one before (the first:
 * minus first offset). Padding of zeros makes the value larger than half a page, so that LMDB keeps
 * it on pages of its own which no later commit moves: its place in the file, page * page size + 16,
 * can be remembered.
 *
 * To change the format: raise BLOCK_VERSION, keep reading the old one, and raise
 * SPOOL_FORMAT_VERSION so that older programs refuse the spool (docs/spool-format.md).
 */
#ifndef SPOOL_BLOCK_H
#define SPOOL_BLOCK_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "spool.h"

#define BLOCK_HEADER_BYTES 128u
#define BLOCK_MAGIC        0x424c5053u
#define BLOCK_VERSION      1u
#define PAGE_PREFIX_BYTES  16u /* LMDB's page header before the value */

struct block_header {
    uint32_t flags, stream, origin, rows;
    uint64_t segment, sequence;
    int64_t first_offset, last_offset;
    int64_t first_arrival_ms, last_arrival_ms;
    uint64_t raw_bytes, payload_bytes;
    uint32_t offsets_bytes;
    uint64_t schema_hash;
    uint64_t checksum;
};

/* With checksum 0 the bytes are those the checksum is taken over. */
void block_header_encode(const struct block_header *h, uint8_t *out);
/* CORRUPT or NEWER. */
int block_header_decode(const uint8_t *in, struct block_header *h, struct spool_error *error);

/* INVALID or LIMIT; what a block by itself can be checked for. */
int block_check(const struct spool_block *block, struct spool_error *error);

/* Appends the offset list, nothing where it is not needed. The block was checked. */
int block_offsets_encode(const struct spool_block *block, struct buf *out);
/* offsets: rows entries. CORRUPT where the list does not fit the header. */
int block_offsets_decode(const struct block_header *h, const uint8_t *list, int64_t *offsets);

/* Bytes of the whole value, padding included. */
uint64_t block_value_bytes(uint64_t prefix_bytes, uint64_t payload_bytes, uint32_t page_bytes);

#endif
