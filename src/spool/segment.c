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
 *   high     u32be origin -> 0 i64 highest offset, of this segment and all before it |
 *            8 i64 timestamp | 16 u64 hash of the record there; absent where not known |
 *            24 the same three of up to 12 earlier offsets, the latest first
 *   totals   "totals" -> u64 blocks | u64 blocks of 0 rows | u64 rows | u64 payload bytes |
 *            u64 first sequence | u64 last sequence | i64 first arrival of its first block
 *
 * This file makes them; scan.c reads them, append.c fills them, stream.c and recover.c decide.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/limits.h"
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

static void put_trace(uint8_t *to, int64_t offset, const struct spool_mark *mark)
{
    put_le64(to, (uint64_t)offset);
    put_le64(to + 8, (uint64_t)mark->timestamp_ms);
    put_le64(to + 16, mark->hash);
}

int segment_put_high(struct spool_stream *stream, MDB_txn *txn, const struct high *h,
                     bool with_name)
{
    const struct origin *o = origin_of(stream->spool, h->origin);
    uint8_t key[4], value[SPOOL_TRACES * TRACE_BYTES], body[ORIGIN_NAME_MAX + 4];
    size_t size = TRACE_BYTES;
    int rc;

    put_be32(key, h->origin);
    put_trace(value, h->offset, &h->mark);
    for (unsigned i = 0; i < h->earlier_count; i++, size += TRACE_BYTES)
        put_trace(value + size, h->earlier[i].offset, &h->earlier[i].mark);
    rc = record_put(txn, stream->dbi[DB_HIGH], RECORD_HIGH, key, 4, value, h->mark.known ? size : 8,
                    0);
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
            n += 2 * (o->name_size + 88ull + SPOOL_TRACES * TRACE_BYTES);
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
    if (is_no_room(rc) || is_scarce(rc))
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
    int status, directory = -1;

    memcpy(kept, stream->dbi, sizeof(kept));
    segment = stream_add_segment(stream);
    if (!path || !segment || asprintf(&fresh, "%s.new", path) < 0) {
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a segment");
        goto done;
    }
    map_bytes += carried_bytes(stream);
    status = directory_open(stream->directory, &directory, error);
    if (status != SPOOL_OK)
        goto done;
    status = create_file(stream, fresh, number, map_bytes, &env, error);
    if (status != SPOOL_OK)
        goto done;
    FAILPOINT(FP_ROLL_BEFORE_RENAME);
    /* From here on a failure leaves a file of which it is unknown whether it will be there. */
    if (rename(fresh, path) < 0)
        status = spool_error_set_errno(error, is_no_room(errno) ? SPOOL_E_FULL : SPOOL_E_FATAL,
                                       errno, "cannot rename to %s", path);
    else if (directory_sync(directory, stream->directory, error) != SPOOL_OK)
        status = SPOOL_E_FATAL;
    if (FAILPOINT_ERROR(FP_ROLL_AFTER_CREATE))
        status = spool_error_set(error, SPOOL_E_FATAL, "cannot create %s", path);
    if (status == SPOOL_E_FATAL) {
        if (error)
            error->status = status;
        atomic_store(&spool->broken, true);
    }
    if (status != SPOOL_OK)
        goto done;
    segment_close_newest(stream);
    if (stream_newest(stream))
        stream_newest(stream)->file_bytes = 0; /* measured once more, now that it stays as it is */
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
    if (directory >= 0)
        close(directory);
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
        rc = is_scarce(rc) ? spool_error_set_errno(error, SPOOL_E_FULL, rc, "cannot open %s", path)
                           : lmdb_error(error, rc, "open the newest segment");
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
