/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segment files. Databases, keys and bodies; all but blocks are records (their checksum follows):
 *
 *   info     "version" -> u32 | "schema" -> bytes | "segment" -> 16 bytes spool uuid | u32 stream |
 *            u64 number | u64 base sequence | i64 created ms | u64 XXH3-64 of the schema |
 *            string stream name | string destination
 *   origins  u32be id -> u32 epoch | name: every origin that stands in high
 *   blocks   u64be sequence -> block (block.h)
 *   index    u64be sequence -> 0 u64 page | 8 i64 first offset | 16 i64 last offset |
 *            24 i64 first arrival | 32 i64 last arrival | 40 u64 raw bytes | 48 u64 payload bytes |
 *            56 u32 prefix bytes | 60 u32 origin | 64 u32 rows | 68 u32 flags
 *   high     u32be origin -> i64 highest offset, of this segment and all before it
 *   totals   "totals" -> u64 blocks | u64 blocks of 0 rows | u64 rows | u64 payload bytes |
 *            u64 first sequence | u64 last sequence | i64 first arrival of its first block
 *
 * This file makes segments and reads them; stream.c decides when, append.c fills them.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/limits.h"
#include "spool/block.h"
#include "spool/spool_int.h"

const char *const segment_db_names[DB_COUNT] = {"info",  "origins", "blocks",
                                                "index", "high",    "totals"};

char *segment_path(const struct spool_stream *stream, uint64_t number)
{
    char *path = NULL;
    return asprintf(&path, "%s/%012llu.seg", stream->directory, (unsigned long long)number) < 0
               ? NULL
               : path;
}

/* --- bodies --------------------------------------------------------------------------------- */

void block_ref_encode(const struct spool_block_ref *r, int64_t last_arrival_ms, uint8_t *out)
{
    put_le64(out, r->page);
    put_le64(out + 8, (uint64_t)r->first_offset);
    put_le64(out + 16, (uint64_t)r->last_offset);
    put_le64(out + 24, (uint64_t)r->first_arrival_ms);
    put_le64(out + 32, (uint64_t)last_arrival_ms);
    put_le64(out + 40, r->raw_bytes);
    put_le64(out + 48, r->frames_bytes);
    put_le32(out + 56, r->prefix_bytes);
    put_le32(out + 60, r->origin);
    put_le32(out + 64, r->rows);
    put_le32(out + 68, r->flags);
}

int block_ref_decode(uint64_t segment, uint64_t sequence, struct cursor body,
                     struct spool_block_ref *r)
{
    const uint8_t *p = body.at;

    if (cursor_left(&body) != INDEX_BODY_BYTES)
        return SPOOL_E_CORRUPT;
    r->segment = segment;
    r->sequence = sequence;
    r->page = get_le64(p);
    r->first_offset = (int64_t)get_le64(p + 8);
    r->last_offset = (int64_t)get_le64(p + 16);
    r->first_arrival_ms = (int64_t)get_le64(p + 24);
    r->raw_bytes = get_le64(p + 40);
    r->frames_bytes = get_le64(p + 48);
    r->prefix_bytes = get_le32(p + 56);
    r->origin = get_le32(p + 60);
    r->rows = get_le32(p + 64);
    r->flags = get_le32(p + 68);
    if (r->frames_bytes > LIMIT_BLOCK_BYTES || r->prefix_bytes < BLOCK_HEADER_BYTES ||
        r->first_offset > r->last_offset || r->rows == UINT32_MAX || !r->origin)
        return SPOOL_E_CORRUPT;
    return SPOOL_OK;
}

void totals_encode(const struct segment_totals *t, uint8_t *out)
{
    put_le64(out, t->blocks);
    put_le64(out + 8, t->empty_blocks);
    put_le64(out + 16, t->rows);
    put_le64(out + 24, t->bytes);
    put_le64(out + 32, t->first_sequence);
    put_le64(out + 40, t->last_sequence);
    put_le64(out + 48, (uint64_t)t->oldest_ms);
}

static int totals_decode(struct cursor body, struct segment_totals *t)
{
    const uint8_t *p = body.at;

    if (cursor_left(&body) != TOTALS_BODY_BYTES)
        return SPOOL_E_CORRUPT;
    t->blocks = get_le64(p);
    t->empty_blocks = get_le64(p + 8);
    t->rows = get_le64(p + 16);
    t->bytes = get_le64(p + 24);
    t->first_sequence = get_le64(p + 32);
    t->last_sequence = get_le64(p + 40);
    t->oldest_ms = (int64_t)get_le64(p + 48);
    return SPOOL_OK;
}

/* --- reading -------------------------------------------------------------------------------- */

struct scan_block {
    uint64_t sequence, page, size;
};

struct scan {
    const struct spool *spool;
    uint32_t stream;
    bool salvage;
    struct segment *segment;
    const struct segment_wants *wants;
    struct spool_error *error;
    struct scan_block *blocks;
    size_t block_count, block_cap;
    struct spool_block_ref *refs;
    size_t ref_count, ref_cap;
    struct segment_totals found, stored;
    bool have_version, have_segment, have_schema, have_totals;
    uint64_t schema_hash;
};

static int scan_bad(struct scan *s, const char *what)
{
    return spool_error_set(s->error, SPOOL_E_CORRUPT, "%s", what);
}

static int grow(void *list, size_t *cap, size_t count, size_t size)
{
    void **at = list;
    void *more;

    if (count < *cap)
        return SPOOL_OK;
    more = realloc(*at, (*cap ? *cap * 2 : 64) * size);
    if (!more)
        return SPOOL_E_NOMEM;
    *at = more;
    *cap = *cap ? *cap * 2 : 64;
    return SPOOL_OK;
}

static int scan_segment_record(struct scan *s, struct cursor c)
{
    const uint8_t *uuid = NULL, *name = NULL, *destination = NULL;
    uint64_t number = 0, created = 0;
    uint32_t stream = 0;
    size_t name_size = 0, destination_size = 0;

    if (cursor_bytes(&c, 16, &uuid) || cursor_u32le(&c, &stream) || cursor_u64le(&c, &number) ||
        cursor_u64le(&c, &s->segment->base_sequence) || cursor_u64le(&c, &created) ||
        cursor_u64le(&c, &s->segment->schema_hash) || cursor_string(&c, &name, &name_size) ||
        cursor_string(&c, &destination, &destination_size))
        return scan_bad(s, "info: the segment's record is damaged");
    if (memcmp(uuid, s->spool->uuid, 16) != 0)
        return scan_bad(s, "info: the segment belongs to another spool");
    if ((s->stream && stream != s->stream) || number != s->segment->number)
        return scan_bad(s, "info: the segment belongs to another stream or has another number");
    if (s->wants->destination) {
        free(*s->wants->destination);
        *s->wants->destination = strndup((const char *)destination, destination_size);
        if (!*s->wants->destination)
            return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory for a destination");
    }
    s->have_segment = true;
    return SPOOL_OK;
}

static int scan_info(struct scan *s, const struct tree *tree, const struct tree_item *item)
{
    uint8_t *value = NULL;
    struct cursor body;
    uint32_t version = 0;
    int status = tree_value(tree, item, LIMIT_SCHEMA_BYTES + KIB, &value, s->error);

    if (status != SPOOL_OK)
        return status;
    status = record_open(RECORD_INFO, item->key, item->key_size, value, item->size, &body);
    if (status != SPOOL_OK) {
        status = scan_bad(s, "info: a record fails its checksum");
    } else if (item->key_size == 7 && !memcmp(item->key, "version", 7)) {
        status = cursor_u32le(&body, &version);
        s->have_version = true;
        if (status == SPOOL_OK && version > SPOOL_FORMAT_VERSION)
            status = spool_error_set(s->error, SPOOL_E_NEWER,
                                     "the segment has format version %u, this program knows %d",
                                     version, SPOOL_FORMAT_VERSION);
    } else if (item->key_size == 7 && !memcmp(item->key, "segment", 7)) {
        status = scan_segment_record(s, body);
    } else if (item->key_size == 6 && !memcmp(item->key, "schema", 6)) {
        s->have_schema = true;
        s->schema_hash = XXH3_64bits(body.at, cursor_left(&body));
        if (s->wants->schema) {
            *s->wants->schema_size = cursor_left(&body);
            free(*s->wants->schema);
            *s->wants->schema = value;
            value = NULL;
        }
    }
    free(value);
    return status;
}

static int scan_block(struct scan *s, const struct tree_item *item)
{
    if (item->key_size != 8 || !item->page)
        return scan_bad(s, "blocks: an entry is not a block");
    if (grow(&s->blocks, &s->block_cap, s->block_count, sizeof(*s->blocks)) != SPOOL_OK)
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    s->blocks[s->block_count++] = (struct scan_block){get_be64(item->key), item->page, item->size};
    return SPOOL_OK;
}

static int scan_index(struct scan *s, const struct tree *tree, const struct tree_item *item)
{
    struct spool_block_ref ref;
    struct cursor body;
    const struct scan_block *block;
    int status = item->key_size == 8 && item->data
                     ? record_open(RECORD_INDEX, item->key, 8, item->data, item->size, &body)
                     : SPOOL_E_CORRUPT;

    if (status == SPOOL_OK)
        status = block_ref_decode(s->segment->number, get_be64(item->key), body, &ref);
    if (status != SPOOL_OK)
        return scan_bad(s, "index: an entry fails its checksum");
    if (s->salvage) {
        if (s->wants->salvaged_sequence && *s->wants->salvaged_sequence < ref.sequence)
            *s->wants->salvaged_sequence = ref.sequence;
        if (s->wants->high && !high_add(s->wants->high, ref.origin, ref.last_offset))
            return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
        return SPOOL_OK;
    }
    block = s->ref_count < s->block_count ? &s->blocks[s->ref_count] : NULL;
    if (!block || block->sequence != ref.sequence || block->page != ref.page ||
        block->size != block_value_bytes(ref.prefix_bytes, ref.frames_bytes, tree->page_bytes))
        return scan_bad(s, "index: it does not match the blocks");
    if (s->found.blocks && ref.sequence != s->found.last_sequence + 1)
        return scan_bad(s, "index: a sequence is missing");
    if (grow(&s->refs, &s->ref_cap, s->ref_count, sizeof(*s->refs)) != SPOOL_OK)
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    s->refs[s->ref_count++] = ref;
    if (!s->found.blocks++) {
        s->found.first_sequence = ref.sequence;
        s->found.oldest_ms = ref.first_arrival_ms;
    }
    s->found.last_sequence = ref.sequence;
    s->found.empty_blocks += !ref.rows;
    s->found.rows += ref.rows;
    s->found.bytes += ref.frames_bytes;
    return SPOOL_OK;
}

static int scan_high(struct scan *s, const struct tree_item *item)
{
    struct cursor body;
    uint64_t offset = 0;
    int status = item->key_size == 4 && item->data
                     ? record_open(RECORD_HIGH, item->key, 4, item->data, item->size, &body)
                     : SPOOL_E_CORRUPT;

    if (status == SPOOL_OK)
        status = cursor_u64le(&body, &offset);
    if (status != SPOOL_OK || !get_be32(item->key))
        return scan_bad(s, "high: an entry fails its checksum");
    if (s->wants->high && !high_add(s->wants->high, get_be32(item->key), (int64_t)offset))
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    return SPOOL_OK;
}

static int scan_origin(struct scan *s, const struct tree_item *item)
{
    struct cursor body;
    uint32_t epoch = 0;
    int status = item->key_size == 4 && item->data
                     ? record_open(RECORD_ORIGIN, item->key, 4, item->data, item->size, &body)
                     : SPOOL_E_CORRUPT;

    if (status == SPOOL_OK)
        status = cursor_u32le(&body, &epoch);
    if (status != SPOOL_OK || !get_be32(item->key))
        return scan_bad(s, "origins: an entry fails its checksum");
    if (s->wants->origin_ids && !high_add(s->wants->origin_ids, get_be32(item->key), epoch))
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    return SPOOL_OK;
}

static int scan_item(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct scan *s = arg;
    struct cursor body;
    int db = 0;

    while (db < DB_COUNT && strcmp(item->db, segment_db_names[db]) != 0)
        db++;
    switch (db) {
    case DB_INFO:
        return scan_info(s, tree, item);
    case DB_ORIGINS:
        return scan_origin(s, item);
    case DB_BLOCKS:
        return scan_block(s, item);
    case DB_INDEX:
        return scan_index(s, tree, item);
    case DB_HIGH:
        return scan_high(s, item);
    case DB_TOTALS:
        if (!item->data ||
            record_open(RECORD_TOTALS, item->key, item->key_size, item->data, item->size, &body) ||
            totals_decode(body, &s->stored))
            return scan_bad(s, "totals: the record fails its checksum");
        s->have_totals = true;
        return SPOOL_OK;
    default:
        return scan_bad(s, "an unknown database");
    }
}

/* What only shows when everything was read. The databases come in the order of their names, so
   blocks were complete before index began. */
static int scan_finish(struct scan *s)
{
    if (!s->have_version || !s->have_segment || !s->have_schema || !s->have_totals)
        return scan_bad(s, "info: a record is missing");
    if (s->schema_hash != s->segment->schema_hash)
        return scan_bad(s, "info: the schema is not the one the segment was made with");
    if (s->ref_count != s->block_count)
        return scan_bad(s, "index: it does not match the blocks");
    if (memcmp(&s->found, &s->stored, sizeof(s->found)) != 0)
        return scan_bad(s, "totals: they do not match the blocks");
    if (s->found.blocks && s->found.first_sequence != s->segment->base_sequence)
        return scan_bad(s, "index: its first sequence is not the segment's");
    return SPOOL_OK;
}

static int give_rows(struct scan *s)
{
    uint32_t *rows = malloc((s->ref_count + 1) * sizeof(*rows));

    if (!rows)
        return spool_error_set(s->error, SPOOL_E_NOMEM, "no memory to read a segment");
    for (size_t i = 0; i < s->ref_count; i++)
        rows[i] = s->refs[i].rows;
    *s->wants->rows = rows;
    return SPOOL_OK;
}

int segment_scan(const struct spool *spool, const char *path, uint32_t stream, bool salvage,
                 struct segment *segment, const struct segment_wants *wants,
                 struct spool_error *error)
{
    static const struct segment_wants nothing;
    struct scan s = {
        .spool = spool,
        .stream = stream,
        .salvage = salvage,
        .segment = segment,
        .wants = wants ? wants : &nothing,
        .error = error,
    };
    struct tree tree;
    int status, fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return spool_error_set_errno(error, errno == ENOENT ? SPOOL_E_NOT_FOUND : SPOOL_E_IO, errno,
                                     "cannot open %s", path);
    status = tree_open(&tree, fd, error);
    if (status == SPOOL_OK)
        status = tree_walk(&tree, NULL, salvage ? TREE_SALVAGE : 0, scan_item, &s, error);
    if (status == SPOOL_OK)
        status = scan_finish(&s);
    if (status == SPOOL_OK)
        segment->totals = s.found;
    if (status == SPOOL_OK && s.wants->rows)
        status = give_rows(&s);
    if (status == SPOOL_OK && s.wants->refs) {
        *s.wants->refs = s.refs;
        s.refs = NULL;
    }
    close(fd);
    free(s.refs);
    free(s.blocks);
    return status;
}

/* --- making --------------------------------------------------------------------------------- */

static int put_info(struct spool_stream *stream, MDB_txn *txn, uint64_t number)
{
    MDB_dbi dbi = stream->dbi[DB_INFO];
    uint8_t version[4];
    struct buf b;
    int rc;

    put_le32(version, SPOOL_FORMAT_VERSION);
    rc = record_put(txn, dbi, RECORD_INFO, "version", 7, version, 4, 0);
    if (!rc)
        rc = record_put(txn, dbi, RECORD_INFO, "schema", 6, stream->schema, stream->schema_size, 0);
    if (rc)
        return rc;
    buf_init(&b, MIB);
    if (buf_append(&b, stream->spool->uuid, 16) || buf_put_u32le(&b, stream->id) ||
        buf_put_u64le(&b, number) || buf_put_u64le(&b, stream->next_sequence) ||
        buf_put_u64le(&b, (uint64_t)clock_wall_ms()) || buf_put_u64le(&b, stream->schema_hash) ||
        buf_put_string(&b, stream->name, strlen(stream->name)) ||
        buf_put_string(&b, stream->destination, strlen(stream->destination)))
        rc = ENOMEM;
    if (!rc)
        rc = record_put(txn, dbi, RECORD_INFO, "segment", 7, b.data, b.len, 0);
    buf_free(&b);
    return rc;
}

int segment_put_high(struct spool_stream *stream, MDB_txn *txn, const struct high *h,
                     bool with_name)
{
    const struct origin *o = origin_of(stream->spool, h->origin);
    uint8_t key[4], offset[8], body[ORIGIN_NAME_MAX + 4];
    int rc;

    put_be32(key, h->origin);
    put_le64(offset, (uint64_t)h->offset);
    rc = record_put(txn, stream->dbi[DB_HIGH], RECORD_HIGH, key, 4, offset, 8, 0);
    if (rc || !with_name || !o)
        return rc;
    assert(o->name_size <= ORIGIN_NAME_MAX);
    put_le32(body, o->epoch);
    memcpy(body + 4, o->name, o->name_size);
    return record_put(txn, stream->dbi[DB_ORIGINS], RECORD_ORIGIN, key, 4, body, o->name_size + 4,
                      0);
}

static int fill_new(struct spool_stream *stream, MDB_txn *txn, uint64_t number)
{
    const struct segment_totals none = {0};
    uint8_t totals[TOTALS_BODY_BYTES];
    int rc = 0;

    for (int i = 0; !rc && i < DB_COUNT; i++)
        rc = mdb_dbi_open(txn, segment_db_names[i], MDB_CREATE, &stream->dbi[i]);
    if (!rc)
        rc = put_info(stream, txn, number);
    for (size_t i = 0; !rc && i < stream->high.cap; i++)
        if (stream->high.slots[i].origin)
            rc = segment_put_high(stream, txn, &stream->high.slots[i], true);
    totals_encode(&none, totals);
    if (!rc)
        rc = record_put(txn, stream->dbi[DB_TOTALS], RECORD_TOTALS, "totals", 6, totals,
                        sizeof(totals), 0);
    return rc;
}

/* Bytes that what is carried forward may take, generously. */
static uint64_t carried_bytes(const struct spool_stream *stream)
{
    uint64_t n = stream->schema_size + 256 * KIB;

    for (size_t i = 0; i < stream->high.cap; i++) {
        const struct origin *o = origin_of(stream->spool, stream->high.slots[i].origin);
        if (o)
            n += 2 * (o->name_size + 96ull);
    }
    return n;
}

static int create_file(struct spool_stream *stream, const char *fresh, uint64_t number,
                       uint64_t map_bytes, MDB_env **env, struct spool_error *error)
{
    struct spool *spool = stream->spool;
    MDB_txn *txn = NULL;
    MDB_stat st;
    int rc;

    unlink(fresh);
    rc = env_open(fresh, 0, map_bytes, env);
    if (rc == ENOSPC || rc == EDQUOT || rc == EFBIG)
        return spool_error_set_errno(error, SPOOL_E_FULL, rc, "cannot create %s", fresh);
    if (rc)
        return lmdb_error(error, rc, "create a segment");
    rc = mdb_txn_begin(*env, NULL, 0, &txn);
    if (!rc) {
        rc = fill_new(stream, txn, number);
        if (rc)
            mdb_txn_abort(txn);
        else
            rc = mdb_txn_commit(txn);
    }
    if (rc)
        return commit_failed(spool, *env, rc, 256 * KIB, "create a segment", error);
    rc = mdb_env_stat(*env, &st);
    if (rc)
        return lmdb_error(error, rc, "create a segment");
    stream->page_bytes = st.ms_psize;
    return SPOOL_OK;
}

int segment_create(struct spool_stream *stream, uint64_t need_bytes, struct spool_error *error)
{
    struct spool *spool = stream->spool;
    const uint64_t number = stream->next_number;
    uint64_t map_bytes = spool->segment_bytes > need_bytes ? spool->segment_bytes : need_bytes;
    char *path = segment_path(stream, number), *fresh = NULL;
    struct segment *segment;
    MDB_env *env = NULL;
    MDB_dbi kept[DB_COUNT];
    int status;

    memcpy(kept, stream->dbi, sizeof(kept));
    segment = stream_add_segment(stream);
    if (!path || !segment || asprintf(&fresh, "%s.new", path) < 0) {
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a segment");
        goto done;
    }
    map_bytes += carried_bytes(stream);
    status = create_file(stream, fresh, number, map_bytes, &env, error);
    if (status != SPOOL_OK)
        goto done;
    /* From here on a failure leaves a file of which it is unknown whether it will be there. */
    if (rename(fresh, path) < 0)
        status = spool_error_set_errno(error, SPOOL_E_FATAL, errno, "cannot rename to %s", path);
    else if (fsync_directory(stream->directory, error) != SPOOL_OK)
        status = SPOOL_E_FATAL;
    if (FAILPOINT_ERROR(FP_ROLL_AFTER_CREATE))
        status = spool_error_set(error, SPOOL_E_FATAL, "cannot create %s", path);
    if (status == SPOOL_E_FATAL) {
        if (error)
            error->status = status;
        atomic_store(&spool->broken, true);
        goto done;
    }
    segment_close_newest(stream);
    stream->env = env;
    stream->map_bytes = map_bytes;
    env = NULL;
    stream->roll_due = false;
    stream->next_number = number + 1;
    *segment = (struct segment){
        .number = number,
        .base_sequence = stream->next_sequence,
        .schema_hash = stream->schema_hash,
    };
    stream->segment_count++;
    for (size_t i = 0; i < stream->high.cap; i++)
        stream->high.slots[i].named = true;
done:
    if (env) {
        mdb_env_close(env);
        memcpy(stream->dbi, kept, sizeof(kept));
        if (status != SPOOL_E_FATAL)
            unlink(fresh);
    }
    free(path);
    free(fresh);
    return status;
}

int segment_open_newest(struct spool_stream *stream, struct spool_error *error)
{
    const struct segment *newest = stream_newest(stream);
    char *path = segment_path(stream, newest->number);
    MDB_txn *txn = NULL;
    struct stat st;
    MDB_stat env_stat;
    uint64_t map_bytes = stream->spool->segment_bytes;
    int rc;

    assert(!stream->env && !newest->damaged);
    if (!path)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    if (stat(path, &st) < 0) {
        rc = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot open %s", path);
        goto done;
    }
    if (map_bytes < (uint64_t)st.st_size)
        map_bytes = (uint64_t)st.st_size;
    rc = env_open(path, 0, map_bytes, &stream->env);
    if (!rc)
        rc = mdb_txn_begin(stream->env, NULL, MDB_RDONLY, &txn);
    for (int i = 0; !rc && i < DB_COUNT; i++)
        rc = mdb_dbi_open(txn, segment_db_names[i], 0, &stream->dbi[i]);
    if (!rc) {
        rc = mdb_txn_commit(txn); /* keeps the handles */
        txn = NULL;
    }
    if (!rc)
        rc = mdb_env_stat(stream->env, &env_stat);
    if (txn)
        mdb_txn_abort(txn);
    if (rc) {
        rc = lmdb_error(error, rc, "open the newest segment");
        segment_close_newest(stream);
    } else {
        stream->page_bytes = env_stat.ms_psize;
        stream->map_bytes = map_bytes;
    }
done:
    free(path);
    return rc;
}

void segment_close_newest(struct spool_stream *stream)
{
    if (stream->env)
        mdb_env_close(stream->env);
    stream->env = NULL;
}
