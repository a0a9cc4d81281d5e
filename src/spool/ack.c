/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which rows of a segment are acknowledged: merged ranges, in chunks of 256 sequences, so that an
 * acknowledgement rewrites a kilobyte or two however large the segment is.
 *
 *   key    u32be stream | u64be segment | u64be sequence / 256
 *   body   varint number of ranges, then per range: varint sequence minus that of the range before
 *          (the first: minus the chunk's first sequence) | varint row | varint rows
 *
 * A range of 0 rows at row 0 stands for a block without rows.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "spool/spool_int.h"

int ranges_check(const struct spool_range *r, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!r[i].sequence || (!r[i].rows && r[i].row) || r[i].rows > UINT32_MAX - r[i].row)
            return SPOOL_E_INVALID;
        if (i && (r[i].sequence < r[i - 1].sequence ||
                  (r[i].sequence == r[i - 1].sequence &&
                   (!r[i].rows || !r[i - 1].rows || r[i].row < r[i - 1].row + r[i - 1].rows))))
            return SPOOL_E_INVALID;
    }
    return SPOOL_OK;
}

static bool range_before(const struct spool_range *a, const struct spool_range *b)
{
    return a->sequence != b->sequence ? a->sequence < b->sequence : a->row < b->row;
}

int ranges_merge(const struct spool_range *a, size_t a_count, const struct spool_range *b,
                 size_t b_count, struct spool_range **out, size_t *count)
{
    struct spool_range *m = malloc((a_count + b_count + 1) * sizeof(*m));
    size_t n = 0, i = 0, j = 0;

    if (!m)
        return SPOOL_E_NOMEM;
    while (i < a_count || j < b_count) {
        const struct spool_range *next =
            j == b_count || (i < a_count && range_before(&a[i], &b[j])) ? &a[i++] : &b[j++];
        struct spool_range *last = n ? &m[n - 1] : NULL;
        if (!last || last->sequence != next->sequence || next->row > last->row + last->rows) {
            /* The mark of an empty block means nothing beside rows of the same block. */
            if (last && last->sequence == next->sequence && !last->rows)
                *last = *next;
            else
                m[n++] = *next;
        } else if (next->row + next->rows > last->row + last->rows) {
            last->rows = next->row + next->rows - last->row;
        }
    }
    *out = m;
    *count = n;
    return SPOOL_OK;
}

/* --- chunks --------------------------------------------------------------------------------- */

static void chunk_key(uint8_t *key, uint32_t stream, uint64_t segment, uint64_t chunk)
{
    put_be32(key, stream);
    put_be64(key + 4, segment);
    put_be64(key + 12, chunk);
}

int ack_chunk_decode(struct cursor c, uint64_t chunk, struct spool_range **ranges, size_t *count)
{
    uint64_t n = 0, sequence = chunk << ACK_CHUNK_SHIFT;
    struct spool_range *r;

    if (cursor_varuint(&c, &n) != SPOOL_OK || n > cursor_left(&c) / 3)
        return SPOOL_E_CORRUPT;
    r = malloc((size_t)(n + 1) * sizeof(*r));
    if (!r)
        return SPOOL_E_NOMEM;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t delta = 0, row = 0, rows = 0;
        if (cursor_varuint(&c, &delta) != SPOOL_OK || cursor_varuint(&c, &row) != SPOOL_OK ||
            cursor_varuint(&c, &rows) != SPOOL_OK || delta > (1u << ACK_CHUNK_SHIFT) ||
            row > UINT32_MAX || rows > UINT32_MAX)
            goto corrupt;
        sequence += delta;
        if (sequence >> ACK_CHUNK_SHIFT != chunk)
            goto corrupt;
        r[i] = (struct spool_range){sequence, (uint32_t)row, (uint32_t)rows};
    }
    if (cursor_left(&c) || ranges_check(r, (size_t)n) != SPOOL_OK)
        goto corrupt;
    *ranges = r;
    *count = (size_t)n;
    return SPOOL_OK;
corrupt:
    free(r);
    return SPOOL_E_CORRUPT;
}

static int chunk_write(MDB_txn *txn, MDB_dbi dbi, const uint8_t *key, uint64_t chunk,
                       const struct spool_range *r, size_t count)
{
    uint64_t before = chunk << ACK_CHUNK_SHIFT;
    struct buf body;
    int rc;

    buf_init(&body, META_RECORD_MAX);
    rc = buf_put_varuint(&body, count);
    for (size_t i = 0; !rc && i < count; i++) {
        rc = buf_put_varuint(&body, r[i].sequence - before);
        if (!rc)
            rc = buf_put_varuint(&body, r[i].row);
        if (!rc)
            rc = buf_put_varuint(&body, r[i].rows);
        before = r[i].sequence;
    }
    if (!rc)
        rc = record_put(txn, dbi, RECORD_ACK, key, ACK_KEY_BYTES, body.data, body.len, 0);
    buf_free(&body);
    return rc;
}

/* Rows that r covers of one block, moving *i past them; *mark: as an empty block. */
static uint32_t rows_of(const struct spool_range *r, size_t count, size_t *i, uint64_t sequence,
                        bool *mark)
{
    uint32_t rows = 0;
    *mark = false;
    while (*i < count && r[*i].sequence < sequence)
        (*i)++;
    for (; *i < count && r[*i].sequence == sequence; (*i)++) {
        rows += r[*i].rows;
        *mark = *mark || !r[*i].rows;
    }
    return rows;
}

/* What of the blocks that added names is covered by merged, and was not by old. */
static size_t newly_acked(const struct spool_range *old, size_t old_count,
                          const struct spool_range *merged, size_t merged_count,
                          const struct spool_range *added, size_t added_count,
                          struct acked_block *out)
{
    size_t n = 0, i = 0, j = 0;

    for (size_t k = 0; k < added_count; k++) {
        uint64_t sequence = added[k].sequence;
        bool mark_before, mark_after;
        uint32_t before, after;
        if (k && added[k - 1].sequence == sequence)
            continue;
        before = rows_of(old, old_count, &i, sequence, &mark_before);
        after = rows_of(merged, merged_count, &j, sequence, &mark_after);
        if (after > before)
            out[n++] = (struct acked_block){sequence, after - before, false};
        else if (mark_after && !mark_before && !before)
            out[n++] = (struct acked_block){sequence, 0, true};
    }
    return n;
}

int ack_apply(MDB_txn *txn, MDB_dbi dbi, uint32_t stream, uint64_t segment,
              const struct spool_range *ranges, size_t count, struct ack_message **messages)
{
    struct ack_message *message = malloc(sizeof(*message) + count * sizeof(message->blocks[0]));
    uint8_t key[ACK_KEY_BYTES];
    int rc = 0;

    if (!message)
        return ENOMEM;
    message->stream = stream;
    message->segment = segment;
    message->count = 0;
    for (size_t from = 0, to; !rc && from < count; from = to) {
        uint64_t chunk = ranges[from].sequence >> ACK_CHUNK_SHIFT;
        struct spool_range *old = NULL, *merged = NULL;
        size_t old_count = 0, merged_count = 0;
        struct cursor body;
        for (to = from; to < count && ranges[to].sequence >> ACK_CHUNK_SHIFT == chunk;)
            to++;
        chunk_key(key, stream, segment, chunk);
        rc = record_get(txn, dbi, RECORD_ACK, key, sizeof(key), &body);
        if (rc == MDB_NOTFOUND)
            rc = 0;
        else if (!rc)
            rc = ack_chunk_decode(body, chunk, &old, &old_count);
        if (!rc)
            rc = ranges_merge(old, old_count, ranges + from, to - from, &merged, &merged_count);
        if (!rc)
            rc = chunk_write(txn, dbi, key, chunk, merged, merged_count);
        if (!rc)
            message->count += newly_acked(old, old_count, merged, merged_count, ranges + from,
                                          to - from, message->blocks + message->count);
        free(old);
        free(merged);
    }
    if (rc) {
        free(message);
        return rc;
    }
    message->next = *messages;
    *messages = message;
    return 0;
}

/* Positions the cursor on the first chunk of the segment at or behind key; MDB_NOTFOUND: none. */
static int chunk_seek(MDB_cursor *cursor, const uint8_t *prefix, MDB_val *k, MDB_val *v,
                      MDB_cursor_op op)
{
    int rc = mdb_cursor_get(cursor, k, v, op);
    if (!rc && (k->mv_size != ACK_KEY_BYTES || memcmp(k->mv_data, prefix, 12) != 0))
        rc = MDB_NOTFOUND;
    return rc;
}

int ack_forget(MDB_txn *txn, MDB_dbi dbi, uint32_t stream, uint64_t segment)
{
    uint8_t key[ACK_KEY_BYTES];
    MDB_val k = {sizeof(key), key}, v;
    MDB_cursor *cursor = NULL;
    int rc;

    chunk_key(key, stream, segment, 0);
    rc = mdb_cursor_open(txn, dbi, &cursor);
    if (rc)
        return rc;
    while (!rc) {
        /* Sought anew each time: where a cursor stands after a deletion is not worth relying on. */
        k = (MDB_val){sizeof(key), key};
        rc = chunk_seek(cursor, key, &k, &v, MDB_SET_RANGE);
        if (!rc)
            rc = mdb_cursor_del(cursor, 0);
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

int ack_read(MDB_txn *txn, MDB_dbi dbi, uint32_t stream, uint64_t segment,
             struct spool_range **ranges, size_t *count)
{
    uint8_t key[ACK_KEY_BYTES];
    MDB_val k = {sizeof(key), key}, v;
    MDB_cursor *cursor = NULL;
    struct spool_range *all = NULL;
    size_t n = 0;
    int rc;

    chunk_key(key, stream, segment, 0);
    rc = mdb_cursor_open(txn, dbi, &cursor);
    if (rc)
        return rc;
    rc = chunk_seek(cursor, key, &k, &v, MDB_SET_RANGE);
    while (!rc) {
        struct spool_range *part = NULL, *more;
        size_t part_count = 0;
        struct cursor body;
        rc = record_open(RECORD_ACK, k.mv_data, k.mv_size, v.mv_data, v.mv_size, &body);
        if (!rc)
            rc = ack_chunk_decode(body, get_be64((const uint8_t *)k.mv_data + 12), &part,
                                  &part_count);
        if (!rc) {
            more = realloc(all, (n + part_count + 1) * sizeof(*all));
            if (more) {
                all = more;
                memcpy(all + n, part, part_count * sizeof(*all));
                n += part_count;
            } else {
                rc = ENOMEM;
            }
        }
        free(part);
        if (!rc)
            rc = chunk_seek(cursor, key, &k, &v, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    if (rc != MDB_NOTFOUND) {
        free(all);
        return rc;
    }
    *ranges = all;
    *count = n;
    return 0;
}

void ack_messages_free(struct ack_message *m)
{
    while (m) {
        struct ack_message *next = m->next;
        free(m);
        m = next;
    }
}
