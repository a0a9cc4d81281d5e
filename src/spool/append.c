/* SPDX-License-Identifier: Apache-2.0 */
/* Appending blocks: checking, placing them into segments, one commit per segment touched. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/failpoint.h"
#include "base/limits.h"
#include "spool/block.h"
#include "spool/spool_int.h"

/* Pages a commit needs beside its blocks: copies of tree pages, new leaves, origin names. */
#define COMMIT_SLACK_PAGES(blocks) (32 + (blocks) / 4)
#define COMMIT_BLOCKS_MAX          16384u
#define GROW_TRIES                 8

/* One call: what was found out about its blocks before anything is written. */
struct append {
    struct spool_stream *stream;
    const struct spool_block *blocks;
    size_t count;
    struct buf lists; /* all offset lists */
    struct append_list {
        size_t at;
        uint32_t size;
    } * list;
};

static uint64_t value_bytes(const struct append *a, size_t i)
{
    return block_value_bytes(BLOCK_HEADER_BYTES + a->list[i].size, a->blocks[i].frames_size,
                             a->stream->page_bytes);
}

/* Its offsets must be new, or, for a refill, have been held. */
static int check_offsets(const struct spool_block *b, const struct high *held,
                         struct spool_error *error)
{
    if (b->flags & SPOOL_BLOCK_REFILL) {
        if (!held || b->last_offset > held->offset)
            return spool_error_set(error, SPOOL_E_INVALID,
                                   "offset %lld of origin %u was never held: there is nothing to "
                                   "refill",
                                   (long long)b->last_offset, b->origin);
    } else if (held && b->first_offset <= held->offset) {
        return spool_error_set(
            error, SPOOL_E_INVALID,
            "offset %lld of origin %u is not above %lld, which the stream holds already",
            (long long)b->first_offset, b->origin, (long long)held->offset);
    }
    return SPOOL_OK;
}

static int check_blocks(struct append *a, struct spool_error *error)
{
    struct high_table seen = {0};
    int status = SPOOL_OK;

    for (size_t i = 0; status == SPOOL_OK && i < a->count; i++) {
        const struct spool_block *b = &a->blocks[i];
        const struct high *held = high_find(&seen, b->origin);
        if (!held)
            held = high_find(&a->stream->high, b->origin);
        status = block_check(b, error);
        if (status != SPOOL_OK)
            break;
        if (!origin_of(a->stream->spool, b->origin))
            status =
                spool_error_set(error, SPOOL_E_INVALID, "the spool has no origin %u", b->origin);
        else
            status = check_offsets(b, held, error);
        if (status == SPOOL_OK && !(b->flags & SPOOL_BLOCK_REFILL) &&
            !high_add(&seen, b->origin, b->last_offset, NULL))
            status = spool_error_set(error, SPOOL_E_NOMEM, "no memory to append");
        if (status != SPOOL_OK)
            break;
        a->list[i].at = a->lists.len;
        status = block_offsets_encode(b, &a->lists);
        a->list[i].size = (uint32_t)(a->lists.len - a->list[i].at);
        if (status != SPOOL_OK)
            spool_error_set(error, status, "the offset lists of an append are too large");
    }
    high_free(&seen);
    return status;
}

/* How many of the blocks from first on fit into the newest segment with one commit. */
static size_t count_fitting(const struct append *a, size_t first, uint64_t *need_bytes)
{
    const struct spool_stream *stream = a->stream;
    MDB_envinfo info;
    uint64_t used, limit, pages = 0;
    size_t n = 0;

    if (mdb_env_info(stream->env, &info))
        return 0;
    used = info.me_last_pgno + 1;
    limit = stream->map_bytes / stream->page_bytes;
    *need_bytes = 0;
    while (first + n < a->count && n < COMMIT_BLOCKS_MAX) {
        uint64_t more =
            (PAGE_PREFIX_BYTES - 1 + value_bytes(a, first + n)) / stream->page_bytes + 1;
        uint64_t total = used + pages + more + COMMIT_SLACK_PAGES(n + 1);
        if (!n)
            *need_bytes = total * stream->page_bytes;
        if (total > limit)
            break;
        pages += more;
        n++;
    }
    return n;
}

/* --- writing one block ---------------------------------------------------------------------- */

static uint64_t checksum(const uint8_t *header, const void *list, size_t list_size,
                         const void *payload, size_t payload_size, XXH3_state_t *hash)
{
    XXH3_64bits_reset(hash);
    XXH3_64bits_update(hash, header, BLOCK_HEADER_BYTES);
    if (list_size)
        XXH3_64bits_update(hash, list, list_size);
    if (payload_size)
        XXH3_64bits_update(hash, payload, payload_size);
    return XXH3_64bits_digest(hash);
}

/*
 * The number of the first page of a value that LMDB put on overflow pages, from the page header
 * before it. Only there does the value stay in place for good, so anything else must never happen.
 */
static uint64_t page_of(const void *value, uint64_t size, uint32_t page_bytes)
{
    const uint8_t *header = (const uint8_t *)value - PAGE_PREFIX_BYTES;
    uint64_t number;
    uint16_t flags;
    uint32_t pages;

    memcpy(&number, header, sizeof(number));
    memcpy(&flags, header + 10, sizeof(flags));
    memcpy(&pages, header + 12, sizeof(pages));
    assert(size > page_bytes / 2 && (flags & 4) && number >= 2);
    assert(pages == (PAGE_PREFIX_BYTES - 1 + size) / page_bytes + 1);
    return number;
}

static int put_block(const struct append *a, size_t i, MDB_txn *txn, uint64_t sequence,
                     XXH3_state_t *hash, struct spool_block_ref *ref)
{
    struct spool_stream *stream = a->stream;
    const struct spool_block *b = &a->blocks[i];
    const struct segment *segment = stream_newest(stream);
    const void *list = a->lists.data ? a->lists.data + a->list[i].at : NULL;
    struct block_header h = {
        .flags = b->flags,
        .stream = stream->id,
        .origin = b->origin,
        .rows = b->rows,
        .segment = segment->number,
        .sequence = sequence,
        .first_offset = b->first_offset,
        .last_offset = b->last_offset,
        .first_arrival_ms = b->first_arrival_ms,
        .last_arrival_ms = b->last_arrival_ms,
        .raw_bytes = b->raw_bytes,
        .payload_bytes = b->frames_size,
        .offsets_bytes = a->list[i].size,
        .schema_hash = segment->schema_hash,
    };
    uint8_t key[8], index[INDEX_BODY_BYTES], *out;
    MDB_val k = {sizeof(key), key}, v = {value_bytes(a, i), NULL};
    size_t used = BLOCK_HEADER_BYTES + h.offsets_bytes + b->frames_size;
    int rc;

    put_be64(key, sequence);
    rc = mdb_put(txn, stream->dbi[DB_BLOCKS], &k, &v, MDB_RESERVE | MDB_APPEND);
    if (rc)
        return rc;
    out = v.mv_data;
    block_header_encode(&h, out);
    h.checksum = checksum(out, list, h.offsets_bytes, b->frames, b->frames_size, hash);
    block_header_encode(&h, out);
    if (h.offsets_bytes)
        memcpy(out + BLOCK_HEADER_BYTES, list, h.offsets_bytes);
    if (b->frames_size)
        memcpy(out + BLOCK_HEADER_BYTES + h.offsets_bytes, b->frames, b->frames_size);
    memset(out + used, 0, v.mv_size - used);
    *ref = (struct spool_block_ref){
        .segment = segment->number,
        .sequence = sequence,
        .page = page_of(out, v.mv_size, stream->page_bytes),
        .first_offset = b->first_offset,
        .last_offset = b->last_offset,
        .first_arrival_ms = b->first_arrival_ms,
        .raw_bytes = b->raw_bytes,
        .frames_bytes = b->frames_size,
        .prefix_bytes = BLOCK_HEADER_BYTES + h.offsets_bytes,
        .origin = b->origin,
        .rows = b->rows,
        .flags = b->flags,
    };
    block_ref_encode(ref, b->last_arrival_ms, index);
    return record_put(txn, stream->dbi[DB_INDEX], RECORD_INDEX, key, sizeof(key), index,
                      sizeof(index), MDB_APPEND);
}

/* --- one commit ----------------------------------------------------------------------------- */

/* What the commit will change in memory, made ready before it so that nothing can fail after. */
struct group {
    size_t first, count;
    struct high_table high;
    struct segment_totals totals;
    XXH3_state_t *hash;
    struct spool_block_ref *refs;
};

static bool group_raise(const struct append *a, struct group *g, const struct spool_block *b)
{
    const struct high *held = high_find(&a->stream->high, b->origin);

    if (held && !high_find(&g->high, b->origin) && !high_put(&g->high, held))
        return false;
    return high_add(&g->high, b->origin, b->last_offset, &b->mark);
}

static int group_prepare(const struct append *a, struct group *g)
{
    struct segment *segment = stream_newest(a->stream);

    g->totals = segment->totals;
    for (size_t i = g->first; i < g->first + g->count; i++) {
        const struct spool_block *b = &a->blocks[i];
        if (!(b->flags & SPOOL_BLOCK_REFILL) && !group_raise(a, g, b))
            return SPOOL_E_NOMEM;
        if (!g->totals.blocks++) {
            g->totals.first_sequence = a->stream->next_sequence;
            g->totals.oldest_ms = b->first_arrival_ms;
        }
        g->totals.empty_blocks += !b->rows;
        g->totals.rows += b->rows;
        g->totals.bytes += b->frames_size;
    }
    g->totals.last_sequence = a->stream->next_sequence + g->count - 1;
    if (segment->waiting && segment->waiting_cap < g->totals.blocks) {
        size_t cap = (size_t)g->totals.blocks * 2;
        uint32_t *more = realloc(segment->waiting, cap * sizeof(*more));
        if (!more)
            return SPOOL_E_NOMEM;
        segment->waiting = more;
        segment->waiting_cap = cap;
    }
    g->hash = XXH3_createState();
    return g->hash ? high_reserve(&a->stream->high, g->high.count) : SPOOL_E_NOMEM;
}

static int group_write(const struct append *a, struct group *g, MDB_txn *txn)
{
    struct spool_stream *stream = a->stream;
    uint8_t totals[TOTALS_BODY_BYTES];
    int rc = 0;

    for (size_t i = 0; !rc && i < g->count; i++)
        rc = put_block(a, g->first + i, txn, stream->next_sequence + i, g->hash, &g->refs[i]);
    for (size_t i = 0; !rc && i < g->high.cap; i++) {
        const struct high *h = &g->high.slots[i], *held;
        if (!h->origin)
            continue;
        held = high_find(&stream->high, h->origin);
        rc = segment_put_high(stream, txn, h, !held || !held->named);
    }
    totals_encode(&g->totals, totals);
    if (!rc)
        rc = record_put(txn, stream->dbi[DB_TOTALS], RECORD_TOTALS, "totals", 6, totals,
                        sizeof(totals), 0);
    return rc;
}

static void group_done(const struct append *a, const struct group *g)
{
    struct spool_stream *stream = a->stream;
    struct segment *segment = stream_newest(stream);

    for (size_t i = 0; i < g->high.cap; i++) {
        const struct high *h = &g->high.slots[i];
        if (h->origin)
            high_put(&stream->high, h)->named = true;
    }
    for (size_t i = 0; segment->waiting && i < g->count; i++) {
        uint32_t rows = a->blocks[g->first + i].rows;
        segment->waiting[segment->totals.blocks + i] = rows ? rows : WAITING_EMPTY;
    }
    segment->totals = g->totals;
    stream->next_sequence += g->count;
}

/* After a failed commit: gives back what it had written behind the last page in force. */
static void trim(MDB_env *env, uint32_t page_bytes)
{
    MDB_envinfo info;
    int fd = -1;

    if (!mdb_env_info(env, &info) && !mdb_env_get_fd(env, &fd) &&
        ftruncate(fd, (off_t)((info.me_last_pgno + 1) * page_bytes)) < 0)
        errno = 0; /* nothing depends on it */
}

/* SPOOL_OK, a status, or MDB_MAP_FULL. */
static int group_commit(const struct append *a, size_t first, size_t count,
                        struct spool_block_ref *refs, struct spool_error *error)
{
    struct spool_stream *stream = a->stream;
    struct group g = {.first = first, .count = count, .refs = refs};
    MDB_txn *txn = NULL;
    uint64_t bytes = 0;
    int rc = group_prepare(a, &g);

    if (rc != SPOOL_OK) {
        spool_error_set(error, rc, "no memory to append");
        goto done;
    }
    rc = mdb_txn_begin(stream->env, NULL, 0, &txn);
    if (!rc) {
        rc = group_write(a, &g, txn);
        if (!rc && FAILPOINT_ERROR(FP_APPEND_BEFORE_COMMIT))
            rc = EIO;
        if (rc)
            mdb_txn_abort(txn);
        else
            rc = mdb_txn_commit(txn);
        if (!rc && FAILPOINT_ERROR(FP_APPEND_AFTER_COMMIT))
            rc = EIO;
    }
    if (!rc) {
        group_done(a, &g);
    } else if (rc != MDB_MAP_FULL) {
        for (size_t i = first; i < first + count; i++)
            bytes += value_bytes(a, i) + stream->page_bytes;
        rc = commit_failed(stream->spool, stream->env, rc, bytes, "append", error);
        if (rc == SPOOL_E_FULL)
            trim(stream->env, stream->page_bytes);
    }
done:
    XXH3_freeState(g.hash);
    high_free(&g.high);
    return rc;
}

/* Room for at least need_bytes in the newest segment, which holds no block yet. */
static int enlarge(struct spool_stream *stream, uint64_t need_bytes, struct spool_error *error)
{
    int rc = mdb_env_set_mapsize(stream->env, need_bytes);
    if (rc) { /* LMDB gave up the old map before it asked for the new one */
        segment_close_newest(stream);
        return is_scarce(rc) ? spool_error_set_errno(error, SPOOL_E_FULL, rc,
                                                     "cannot map a segment of %llu MiB",
                                                     (unsigned long long)(need_bytes >> 20))
                             : lmdb_error(error, rc, "enlarge a segment");
    }
    stream->map_bytes = need_bytes;
    return SPOOL_OK;
}

static int append_some(struct append *a, size_t first, struct spool_block_ref *refs, size_t *added,
                       struct spool_error *error)
{
    struct spool_stream *stream = a->stream;
    uint64_t need_bytes = 0;
    int status = SPOOL_OK;

    *added = 0;
    for (int tries = 0; tries < GROW_TRIES; tries++) {
        struct segment *newest = stream_newest(stream);
        size_t n;
        if (!newest || stream->roll_due || newest->damaged)
            status = segment_create(stream, 0, error);
        else if (!stream->env)
            status = segment_open_newest(stream, error);
        if (status != SPOOL_OK)
            return status;
        newest = stream_newest(stream);
        n = count_fitting(a, first, &need_bytes);
        if (!n && newest->totals.blocks) {
            stream->roll_due = true;
            continue;
        }
        if (!n) {
            status = enlarge(stream, need_bytes + stream->page_bytes, error);
            if (status != SPOOL_OK)
                return status;
            continue;
        }
        status = group_commit(a, first, n, refs + first, error);
        if (status != MDB_MAP_FULL) {
            *added = status == SPOOL_OK ? n : 0;
            return status;
        }
        status = SPOOL_OK;
        if (newest->totals.blocks) {
            stream->roll_due = true;
        } else {
            status = enlarge(stream, 2 * (need_bytes + stream->spool->segment_bytes), error);
            if (status != SPOOL_OK)
                return status;
        }
    }
    return spool_error_set(error, SPOOL_E_IO, "a block does not fit into any segment");
}

int spool_stream_append(struct spool_stream *stream, const struct spool_block *blocks, size_t count,
                        struct spool_block_ref *refs, size_t *appended, struct spool_error *error)
{
    struct append a = {.stream = stream, .blocks = blocks, .count = count};
    size_t done = 0, n = 0;
    int status = check_writable(stream->spool, error);

    if (appended)
        *appended = 0;
    if (status != SPOOL_OK || !count)
        return status;
    buf_init(&a.lists, LIMIT_BLOCK_BYTES);
    a.list = calloc(count, sizeof(*a.list));
    status = a.list ? check_blocks(&a, error)
                    : spool_error_set(error, SPOOL_E_NOMEM, "no memory to append");
    if (status == SPOOL_OK)
        status = stream_spec_ready(stream, error);
    while (status == SPOOL_OK && done < count) {
        status = append_some(&a, done, refs, &n, error);
        done += n;
    }
    if (appended)
        *appended = done;
    buf_free(&a.lists);
    free(a.list);
    return status;
}
