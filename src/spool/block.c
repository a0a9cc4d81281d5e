/* SPDX-License-Identifier: Apache-2.0 */
#include "spool/block.h"

#include <assert.h>
#include <string.h>

#include "base/limits.h"
#include "spool/record.h"

static void put_le16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

void block_header_encode(const struct block_header *h, uint8_t *out)
{
    memset(out, 0, BLOCK_HEADER_BYTES);
    put_le32(out, BLOCK_MAGIC);
    put_le16(out + 4, BLOCK_VERSION);
    put_le16(out + 6, BLOCK_HEADER_BYTES);
    put_le32(out + 8, h->flags);
    put_le32(out + 12, h->stream);
    put_le64(out + 16, h->segment);
    put_le64(out + 24, h->sequence);
    put_le32(out + 32, h->origin);
    put_le32(out + 36, h->rows);
    put_le64(out + 40, (uint64_t)h->first_offset);
    put_le64(out + 48, (uint64_t)h->last_offset);
    put_le64(out + 56, (uint64_t)h->first_arrival_ms);
    put_le64(out + 64, (uint64_t)h->last_arrival_ms);
    put_le64(out + 72, h->raw_bytes);
    put_le64(out + 80, h->payload_bytes);
    put_le32(out + 88, h->offsets_bytes);
    put_le64(out + 96, h->schema_hash);
    put_le64(out + 120, h->checksum);
}

int block_header_decode(const uint8_t *in, struct block_header *h, struct spool_error *error)
{
    unsigned version = in[4] | (unsigned)in[5] << 8, size = in[6] | (unsigned)in[7] << 8;

    if (get_le32(in) != BLOCK_MAGIC)
        return spool_error_set(error, SPOOL_E_CORRUPT, "there is no block header");
    if (version > BLOCK_VERSION)
        return spool_error_set(error, SPOOL_E_NEWER, "block version %u is newer than %u", version,
                               BLOCK_VERSION);
    if (version < 1 || size != BLOCK_HEADER_BYTES)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the block header is damaged");
    h->flags = get_le32(in + 8);
    h->stream = get_le32(in + 12);
    h->segment = get_le64(in + 16);
    h->sequence = get_le64(in + 24);
    h->origin = get_le32(in + 32);
    h->rows = get_le32(in + 36);
    h->first_offset = (int64_t)get_le64(in + 40);
    h->last_offset = (int64_t)get_le64(in + 48);
    h->first_arrival_ms = (int64_t)get_le64(in + 56);
    h->last_arrival_ms = (int64_t)get_le64(in + 64);
    h->raw_bytes = get_le64(in + 72);
    h->payload_bytes = get_le64(in + 80);
    h->offsets_bytes = get_le32(in + 88);
    h->schema_hash = get_le64(in + 96);
    h->checksum = get_le64(in + 120);
    if (h->payload_bytes > LIMIT_BLOCK_BYTES || h->offsets_bytes > 10ull * h->rows ||
        h->first_offset > h->last_offset)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the block header is damaged");
    return SPOOL_OK;
}

/* last - first + 1 as unsigned; 0 stands for 2^64. */
static uint64_t offset_span(const struct spool_block *b)
{
    return (uint64_t)b->last_offset - (uint64_t)b->first_offset + 1;
}

int block_check(const struct spool_block *b, struct spool_error *error)
{
    if (b->frames_size > LIMIT_BLOCK_BYTES)
        return spool_error_set(error, SPOOL_E_LIMIT,
                               "a block of %zu bytes is over the limit of %llu", b->frames_size,
                               LIMIT_BLOCK_BYTES);
    if (b->rows == UINT32_MAX)
        return spool_error_set(error, SPOOL_E_LIMIT, "a block has too many rows");
    if (b->first_offset > b->last_offset)
        return spool_error_set(error, SPOOL_E_INVALID, "a block's offsets run backwards");
    if (!b->rows)
        return b->frames_size
                   ? spool_error_set(error, SPOOL_E_INVALID, "a block without rows has a payload")
                   : SPOOL_OK;
    if (!b->frames_size || !b->frames)
        return spool_error_set(error, SPOOL_E_INVALID, "a block with rows has no payload");
    if (!b->offsets && offset_span(b) != b->rows)
        return spool_error_set(
            error, SPOOL_E_INVALID,
            "a block without an offset list has %u rows, but not as many offsets", b->rows);
    for (uint32_t i = 0; b->offsets && i < b->rows; i++)
        if (b->offsets[i] < (i ? b->offsets[i - 1] : b->first_offset) ||
            b->offsets[i] > b->last_offset)
            return spool_error_set(error, SPOOL_E_INVALID,
                                   "the offsets of a block's rows are not ascending in its range");
    return SPOOL_OK;
}

int block_offsets_encode(const struct spool_block *b, struct buf *out)
{
    int64_t before = b->first_offset;
    bool dense = true;

    if (!b->offsets || !b->rows)
        return SPOOL_OK;
    for (uint32_t i = 0; dense && i < b->rows; i++)
        dense = (uint64_t)b->offsets[i] - (uint64_t)b->first_offset == i;
    if (dense && offset_span(b) == b->rows)
        return SPOOL_OK;
    for (uint32_t i = 0; i < b->rows; i++) {
        int status = buf_put_varuint(out, (uint64_t)b->offsets[i] - (uint64_t)before);
        if (status != SPOOL_OK)
            return status;
        before = b->offsets[i];
    }
    return SPOOL_OK;
}

int block_offsets_decode(const struct block_header *h, const uint8_t *list, int64_t *offsets)
{
    struct cursor c = cursor_over(list, h->offsets_bytes);
    uint64_t left = (uint64_t)h->last_offset - (uint64_t)h->first_offset;
    uint64_t at = (uint64_t)h->first_offset, delta = 0;

    for (uint32_t i = 0; i < h->rows; i++) {
        if (cursor_varuint(&c, &delta) != SPOOL_OK || delta > left)
            return SPOOL_E_CORRUPT;
        left -= delta;
        at += delta;
        offsets[i] = (int64_t)at;
    }
    return cursor_left(&c) ? SPOOL_E_CORRUPT : SPOOL_OK;
}

uint64_t block_value_bytes(uint64_t prefix_bytes, uint64_t payload_bytes, uint32_t page_bytes)
{
    uint64_t least = page_bytes / 2 + 52;
    uint64_t n = prefix_bytes + payload_bytes;
    assert(prefix_bytes >= BLOCK_HEADER_BYTES);
    return n < least ? least : n;
}
