/* SPDX-License-Identifier: Apache-2.0 */
/*
 * meta.mdb: what is known beside the segments. Databases, keys and bodies (records, so each is
 * followed by its checksum):
 *
 *   info          "version" -> u32 | "uuid" -> 16 bytes
 *   streams       name -> u32 id | u64 next batch
 *   origins       u32be id -> u32 epoch | name
 *   origin_names  name | 0 | u32be epoch -> u32 id
 *   seals         u32be stream | u64be batch -> seal (seal.c)
 *   acks          u32be stream | u64be segment | u64be chunk -> ranges (ack.c)
 *   notes         key -> value
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "spool/spool_int.h"

static const char *const meta_names[] = {"info",  "streams", "origins", "origin_names",
                                         "seals", "acks",    "notes"};

static void meta_dbis(struct spool *spool, MDB_dbi **dbis)
{
    dbis[0] = &spool->meta_info;
    dbis[1] = &spool->meta_streams;
    dbis[2] = &spool->meta_origins;
    dbis[3] = &spool->meta_origin_names;
    dbis[4] = &spool->meta_seals;
    dbis[5] = &spool->meta_acks;
    dbis[6] = &spool->meta_notes;
}

static int open_dbis(struct spool *spool, MDB_txn *txn, unsigned flags)
{
    MDB_dbi *dbis[7];
    int rc = 0;

    meta_dbis(spool, dbis);
    for (size_t i = 0; !rc && i < 7; i++)
        rc = mdb_dbi_open(txn, meta_names[i], flags, dbis[i]);
    return rc;
}

int meta_fill(struct spool *spool, MDB_txn *txn)
{
    uint8_t version[4];
    int rc = open_dbis(spool, txn, MDB_CREATE);

    put_le32(version, SPOOL_FORMAT_VERSION);
    if (!rc)
        rc = record_put(txn, spool->meta_info, RECORD_INFO, "version", 7, version, 4, 0);
    if (!rc)
        rc = record_put(txn, spool->meta_info, RECORD_INFO, "uuid", 4, spool->uuid, 16, 0);
    return rc;
}

static int meta_init(MDB_txn *txn, void *arg)
{
    struct spool *spool = arg;

    if (getrandom(spool->uuid, sizeof(spool->uuid), 0) != (ssize_t)sizeof(spool->uuid))
        return EIO;
    spool->uuid[6] = (uint8_t)((spool->uuid[6] & 0x0f) | 0x40); /* RFC 4122, version 4 */
    spool->uuid[8] = (uint8_t)((spool->uuid[8] & 0x3f) | 0x80);
    return meta_fill(spool, txn);
}

/* --- names by id ---------------------------------------------------------------------------- */

const struct origin *origin_of(const struct spool *spool, uint32_t id)
{
    struct origin_chunk *chunk;

    if (!id || id > ORIGINS_CHUNK * ORIGINS_CHUNKS)
        return NULL;
    chunk = atomic_load(&spool->origins[(id - 1) / ORIGINS_CHUNK]);
    return chunk ? atomic_load(&chunk->at[(id - 1) % ORIGINS_CHUNK]) : NULL;
}

const char *stream_name_of(const struct spool *spool, uint32_t id)
{
    return id && id <= STREAMS_MAX ? atomic_load(&spool->stream_names[id - 1]) : NULL;
}

static struct origin *origin_make(uint32_t epoch, const void *name, size_t size)
{
    struct origin *o = malloc(sizeof(*o) + size + 1);
    if (o) {
        o->epoch = epoch;
        o->name_size = (uint32_t)size;
        memcpy(o->name, name, size);
        o->name[size] = 0;
    }
    return o;
}

/* Room for an id, so that publishing it after its commit cannot fail. */
static int origin_room(struct spool *spool, uint32_t id, struct spool_error *error)
{
    struct origin_chunk *chunk;

    if (!id || id > ORIGINS_CHUNK * ORIGINS_CHUNKS)
        return spool_error_set(error, SPOOL_E_LIMIT,
                               "the spool has too many origins: %u were "
                               "ever noted; another spool is needed for more",
                               ORIGINS_CHUNK * ORIGINS_CHUNKS);
    if (atomic_load(&spool->origins[(id - 1) / ORIGINS_CHUNK]))
        return SPOOL_OK;
    chunk = calloc(1, sizeof(*chunk));
    if (!chunk)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for an origin");
    atomic_store(&spool->origins[(id - 1) / ORIGINS_CHUNK], chunk);
    return SPOOL_OK;
}

static void origin_publish(struct spool *spool, uint32_t id, struct origin *o)
{
    struct origin_chunk *chunk = atomic_load(&spool->origins[(id - 1) / ORIGINS_CHUNK]);
    atomic_store(&chunk->at[(id - 1) % ORIGINS_CHUNK], o);
    if (id > atomic_load(&spool->origin_count))
        atomic_store(&spool->origin_count, id);
}

static int load_origin(struct spool *spool, const MDB_val *k, const MDB_val *v,
                       struct spool_error *error)
{
    struct cursor body;
    struct origin *o;
    uint32_t epoch = 0, id;
    int status = k->mv_size == 4 ? record_open(RECORD_ORIGIN, k->mv_data, k->mv_size, v->mv_data,
                                               v->mv_size, &body)
                                 : SPOOL_E_CORRUPT;

    if (status == SPOOL_OK)
        status = cursor_u32le(&body, &epoch);
    if (status != SPOOL_OK)
        return store_lacks(&spool->meta, status, "an origin's record", error);
    id = get_be32(k->mv_data);
    status = origin_room(spool, id, error);
    if (status != SPOOL_OK)
        return status;
    o = origin_make(epoch, body.at, cursor_left(&body));
    if (!o)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for an origin");
    origin_publish(spool, id, o);
    return SPOOL_OK;
}

static int stream_publish(struct spool *spool, uint32_t id, const void *name, size_t size)
{
    char *copy;

    if (!id || id > STREAMS_MAX || atomic_load(&spool->stream_names[id - 1]))
        return SPOOL_E_CORRUPT;
    copy = strndup(name, size);
    if (!copy)
        return SPOOL_E_NOMEM;
    atomic_store(&spool->stream_names[id - 1], copy);
    if (id > atomic_load(&spool->stream_count))
        atomic_store(&spool->stream_count, id);
    return SPOOL_OK;
}

static int load_stream(struct spool *spool, const MDB_val *k, const MDB_val *v,
                       struct spool_error *error)
{
    struct cursor body;
    uint32_t id = 0;
    int status = record_open(RECORD_STREAM, k->mv_data, k->mv_size, v->mv_data, v->mv_size, &body);

    if (status == SPOOL_OK)
        status = cursor_u32le(&body, &id);
    if (status == SPOOL_OK)
        status = stream_publish(spool, id, k->mv_data, k->mv_size);
    if (status != SPOOL_OK)
        return store_lacks(&spool->meta, status, "a stream's record", error);
    return SPOOL_OK;
}

static int load_all(struct spool *spool, MDB_txn *txn, MDB_dbi dbi,
                    int (*load)(struct spool *spool, const MDB_val *k, const MDB_val *v,
                                struct spool_error *error),
                    struct spool_error *error)
{
    MDB_cursor *cursor = NULL;
    MDB_val k, v;
    int rc = mdb_cursor_open(txn, dbi, &cursor), status = SPOOL_OK;

    if (rc)
        return lmdb_error(error, rc, "read meta.mdb");
    for (MDB_cursor_op op = MDB_FIRST; status == SPOOL_OK; op = MDB_NEXT) {
        rc = mdb_cursor_get(cursor, &k, &v, op);
        if (rc)
            break;
        status = load(spool, &k, &v, error);
    }
    mdb_cursor_close(cursor);
    if (status == SPOOL_OK && rc != MDB_NOTFOUND)
        status = lmdb_error(error, rc, "read meta.mdb");
    return status;
}

/* --- opening -------------------------------------------------------------------------------- */

static int check_info(struct spool *spool, MDB_txn *txn, struct spool_error *error)
{
    struct cursor body;
    const uint8_t *uuid = NULL;
    uint32_t version = 0;
    int rc = record_get(txn, spool->meta_info, RECORD_INFO, "version", 7, &body);

    if (!rc)
        rc = cursor_u32le(&body, &version);
    if (rc)
        return store_lacks(&spool->meta, rc, "its version", error);
    if (version > SPOOL_FORMAT_VERSION)
        return spool_error_set(error, SPOOL_E_NEWER,
                               "spool %s has format version %u, this program knows up to %d; use "
                               "the version that wrote it",
                               spool->path, version, SPOOL_FORMAT_VERSION);
    rc = record_get(txn, spool->meta_info, RECORD_INFO, "uuid", 4, &body);
    if (!rc)
        rc = cursor_bytes(&body, 16, &uuid);
    if (rc)
        return store_lacks(&spool->meta, rc, "its uuid", error);
    memcpy(spool->uuid, uuid, 16);
    return SPOOL_OK;
}

void uuid_to_text(const uint8_t *u, char *text)
{
    static const char hex[] = "0123456789abcdef";
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *text++ = '-';
        *text++ = hex[u[i] >> 4];
        *text++ = hex[u[i] & 15];
    }
    *text = 0;
}

int meta_open(struct spool *spool, struct spool_error *error)
{
    MDB_txn *txn = NULL;
    int status, rc;

    spool->meta.name = "meta.mdb";
    spool->meta.advice = "Keep a copy of the spool; `spoolctl --spool DIR repair` then makes a new "
                         "meta.mdb of what the segments say";
    status = store_open(spool, &spool->meta, spool->meta_reserve_bytes, meta_init, spool, error);
    if (status != SPOOL_OK)
        return status;
    if (!spool->meta.env)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "there is no spool in %s", spool->path);
    status = store_begin_read(&spool->meta, &txn, error);
    if (status != SPOOL_OK)
        return status;
    rc = open_dbis(spool, txn, 0);
    if (rc)
        status = store_lacks(&spool->meta, rc, "one of its databases", error);
    if (status == SPOOL_OK)
        status = check_info(spool, txn, error);
    if (status == SPOOL_OK)
        status = load_all(spool, txn, spool->meta_streams, load_stream, error);
    if (status == SPOOL_OK)
        status = load_all(spool, txn, spool->meta_origins, load_origin, error);
    /* Committed, not aborted: that keeps the database handles. */
    rc = mdb_txn_commit(txn);
    if (status == SPOOL_OK && rc)
        status = lmdb_error(error, rc, "read meta.mdb");
    uuid_to_text(spool->uuid, spool->uuid_text);
    return status;
}

/* --- streams -------------------------------------------------------------------------------- */

struct new_stream {
    struct spool *spool;
    const char *name;
    uint32_t id;
};

static int put_stream(MDB_txn *txn, void *arg, struct spool_error *error)
{
    struct new_stream *n = arg;
    uint8_t body[12];

    (void)error;
    put_le32(body, n->id);
    put_le64(body + 4, 1);
    return record_put(txn, n->spool->meta_streams, RECORD_STREAM, n->name, strlen(n->name), body,
                      sizeof(body), MDB_NOOVERWRITE);
}

int meta_stream_id(struct spool *spool, const char *name, uint32_t *id, struct spool_error *error)
{
    const unsigned part = COMMIT_NAME;
    uint32_t count = atomic_load(&spool->stream_count);
    struct new_stream n = {spool, name, count + 1};
    int status;

    for (uint32_t i = 1; i <= count; i++) {
        const char *known = stream_name_of(spool, i);
        if (known && !strcmp(known, name)) {
            *id = i;
            return SPOOL_OK;
        }
    }
    if (spool->read_only)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "the spool has no stream %s", name);
    if (count == STREAMS_MAX)
        return spool_error_set(error, SPOOL_E_LIMIT, "the spool has too many streams");
    status = store_write(spool, &spool->meta, &part, put_stream, &n, error);
    if (status != SPOOL_OK)
        return status;
    *id = n.id;
    status = stream_publish(spool, n.id, name, strlen(name));
    if (status != SPOOL_OK)
        return spool_error_set(error, status, "cannot keep a stream's name");
    return SPOOL_OK;
}

/* --- origins -------------------------------------------------------------------------------- */

struct origin_job {
    struct spool *spool;
    const char *name;
    size_t name_size;
    uint32_t id, epoch;
    const struct spool_change *note; /* to be put with it; NULL: none */
};

static size_t origin_key(uint8_t *key, const struct origin_job *job)
{
    memcpy(key, job->name, job->name_size);
    key[job->name_size] = 0;
    put_be32(key + job->name_size + 1, job->epoch);
    return job->name_size + 5;
}

static int put_origin(MDB_txn *txn, void *arg, struct spool_error *error)
{
    struct origin_job *job = arg;
    uint8_t key[ORIGIN_NAME_MAX + 8], id_be[4], id_le[4], body[ORIGIN_NAME_MAX + 4];
    size_t key_size = origin_key(key, job);
    int rc;

    (void)error;
    put_be32(id_be, job->id);
    put_le32(id_le, job->id);
    put_le32(body, job->epoch);
    memcpy(body + 4, job->name, job->name_size);
    rc = record_put(txn, job->spool->meta_origins, RECORD_ORIGIN, id_be, 4, body,
                    job->name_size + 4, MDB_NOOVERWRITE);
    if (!rc)
        rc = record_put(txn, job->spool->meta_origin_names, RECORD_ORIGIN_NAME, key, key_size,
                        id_le, 4, MDB_NOOVERWRITE);
    if (!rc && job->note)
        rc = record_put(txn, job->spool->meta_notes, RECORD_NOTE, job->note->key,
                        strlen(job->note->key), job->note->value, job->note->value_size, 0);
    return rc;
}

/* Of the last entry at or before key that has the same name: its epoch and id. */
static int latest_epoch(MDB_cursor *cursor, struct origin_job *job)
{
    uint8_t key[ORIGIN_NAME_MAX + 8];
    struct cursor body;
    MDB_val k, v;
    int rc;

    job->epoch = UINT32_MAX;
    k = (MDB_val){origin_key(key, job), key};
    rc = mdb_cursor_get(cursor, &k, &v, MDB_SET_RANGE);
    if (rc == MDB_NOTFOUND)
        rc = mdb_cursor_get(cursor, &k, &v, MDB_LAST);
    else if (!rc && (k.mv_size != job->name_size + 5 || memcmp(k.mv_data, key, k.mv_size) != 0))
        rc = mdb_cursor_get(cursor, &k, &v, MDB_PREV);
    if (rc)
        return rc;
    if (k.mv_size != job->name_size + 5 || memcmp(k.mv_data, key, job->name_size + 1) != 0)
        return MDB_NOTFOUND;
    rc = record_open(RECORD_ORIGIN_NAME, k.mv_data, k.mv_size, v.mv_data, v.mv_size, &body);
    job->epoch = get_be32((const uint8_t *)k.mv_data + job->name_size + 1);
    return rc ? rc : cursor_u32le(&body, &job->id);
}

static int find_origin(struct spool *spool, struct origin_job *job, struct spool_error *error)
{
    uint8_t key[ORIGIN_NAME_MAX + 8];
    uint32_t wanted = job->epoch;
    MDB_cursor *cursor = NULL;
    MDB_txn *txn = NULL;
    struct cursor body;
    int rc, status = store_begin_read(&spool->meta, &txn, error);

    if (status != SPOOL_OK)
        return status;
    if (wanted) {
        rc = record_get(txn, spool->meta_origin_names, RECORD_ORIGIN_NAME, key,
                        origin_key(key, job), &body);
        if (!rc)
            rc = cursor_u32le(&body, &job->id);
    } else {
        rc = mdb_cursor_open(txn, spool->meta_origin_names, &cursor);
        if (!rc)
            rc = latest_epoch(cursor, job);
        if (cursor)
            mdb_cursor_close(cursor);
        if (rc)
            job->epoch = 1;
    }
    mdb_txn_abort(txn);
    if (rc == MDB_NOTFOUND)
        return SPOOL_E_NOT_FOUND;
    return rc ? lmdb_error(error, rc, "read an origin") : SPOOL_OK;
}

static int find_or_make_origin(struct origin_job *job, struct spool_error *error)
{
    const unsigned part = COMMIT_NAME;
    struct spool *spool = job->spool;
    struct origin *o;
    int status;

    if (!job->name_size || job->name_size > ORIGIN_NAME_MAX)
        return spool_error_set(error, SPOOL_E_INVALID, "an origin's name has 1 to %u bytes",
                               ORIGIN_NAME_MAX);
    status = find_origin(spool, job, error);
    if (status != SPOOL_E_NOT_FOUND)
        return status;
    job->id = atomic_load(&spool->origin_count) + 1;
    status = origin_room(spool, job->id, error);
    if (status != SPOOL_OK)
        return status;
    o = origin_make(job->epoch, job->name, job->name_size);
    if (!o)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for an origin");
    status = store_write(spool, &spool->meta, &part, put_origin, job, error);
    if (status == SPOOL_OK)
        origin_publish(spool, job->id, o);
    else
        free(o);
    return status;
}

int spool_origin(struct spool *spool, const char *name, uint32_t epoch, uint32_t *id,
                 uint32_t *epoch_out, struct spool_error *error)
{
    struct origin_job job = {spool, name, strlen(name), 0, epoch, NULL};
    int status = find_or_make_origin(&job, error);

    if (status != SPOOL_OK)
        return status;
    *id = job.id;
    if (epoch_out)
        *epoch_out = job.epoch;
    return SPOOL_OK;
}

int spool_origin_begin(struct spool *spool, const char *name, uint32_t epoch,
                       const struct spool_change *note, uint32_t *id, struct spool_error *error)
{
    struct origin_job job = {spool, name, strlen(name), 0, epoch, note};
    int status;

    if (!epoch || note->kind != SPOOL_CHANGE_PUT || !note->key || !*note->key ||
        strlen(note->key) > NOTE_KEY_MAX)
        return spool_error_set(error, SPOOL_E_INVALID, "a new epoch needs its number and a note");
    status = find_or_make_origin(&job, error);
    *id = job.id;
    return status;
}

int spool_origin_name(struct spool *spool, uint32_t id, char **name, uint32_t *epoch,
                      struct spool_error *error)
{
    const struct origin *o = origin_of(spool, id);

    if (!o)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "the spool has no origin %u", id);
    *name = strdup(o->name);
    if (!*name)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a name");
    if (epoch)
        *epoch = o->epoch;
    return SPOOL_OK;
}

/* --- acknowledged ranges, notes ------------------------------------------------------------- */

int spool_acked(struct spool *spool, uint32_t stream, uint64_t segment, struct spool_range **ranges,
                size_t *count, struct spool_error *error)
{
    MDB_txn *txn = NULL;
    int rc, status = store_begin_read(&spool->meta, &txn, error);

    *ranges = NULL;
    *count = 0;
    if (status != SPOOL_OK)
        return status;
    rc = ack_read(txn, spool->meta_acks, stream, segment, ranges, count);
    mdb_txn_abort(txn);
    return rc ? lmdb_error(error, rc, "read acknowledgements") : SPOOL_OK;
}

int meta_acked_segments(struct spool *spool, uint32_t stream, uint64_t **numbers, size_t *count,
                        struct spool_error *error)
{
    uint8_t key[ACK_KEY_BYTES] = {0};
    MDB_val k = {sizeof(key), key}, v;
    MDB_cursor *cursor = NULL;
    MDB_txn *txn = NULL;
    uint64_t *list = NULL;
    size_t n = 0;
    int rc, status = store_begin_read(&spool->meta, &txn, error);

    if (status != SPOOL_OK)
        return status;
    put_be32(key, stream);
    rc = mdb_cursor_open(txn, spool->meta_acks, &cursor);
    for (MDB_cursor_op op = MDB_SET_RANGE; !rc; op = MDB_NEXT) {
        uint64_t segment, *more;
        rc = mdb_cursor_get(cursor, &k, &v, op);
        if (rc || k.mv_size != ACK_KEY_BYTES || memcmp(k.mv_data, key, 4) != 0)
            break;
        segment = get_be64((const uint8_t *)k.mv_data + 4);
        if (n && list[n - 1] == segment)
            continue;
        more = realloc(list, (n + 1) * sizeof(*list));
        if (!more) {
            rc = ENOMEM;
            break;
        }
        list = more;
        list[n++] = segment;
    }
    if (cursor)
        mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
    if (rc && rc != MDB_NOTFOUND) {
        free(list);
        return lmdb_error(error, rc, "read acknowledgements");
    }
    *numbers = list;
    *count = n;
    return SPOOL_OK;
}

int spool_notes(struct spool *spool, const char *prefix,
                int (*each)(void *arg, const char *key, const void *value, size_t size), void *arg,
                struct spool_error *error)
{
    size_t size = strlen(prefix);
    MDB_val k = {size, (void *)(uintptr_t)prefix}, v;
    MDB_cursor *cursor = NULL;
    MDB_txn *txn = NULL;
    int rc, ended = 0, status = store_begin_read(&spool->meta, &txn, error);

    if (status != SPOOL_OK)
        return status;
    rc = mdb_cursor_open(txn, spool->meta_notes, &cursor);
    for (MDB_cursor_op op = MDB_SET_RANGE; !rc && !ended; op = MDB_NEXT) {
        char key[NOTE_KEY_MAX + 1];
        struct cursor body;
        rc = mdb_cursor_get(cursor, &k, &v, op);
        if (rc || k.mv_size < size || memcmp(k.mv_data, prefix, size) != 0)
            break;
        rc = k.mv_size > NOTE_KEY_MAX
                 ? SPOOL_E_CORRUPT
                 : record_open(RECORD_NOTE, k.mv_data, k.mv_size, v.mv_data, v.mv_size, &body);
        if (rc)
            break;
        memcpy(key, k.mv_data, k.mv_size);
        key[k.mv_size] = 0;
        ended = each(arg, key, body.at, cursor_left(&body));
    }
    if (cursor)
        mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
    if (rc && rc != MDB_NOTFOUND)
        return lmdb_error(error, rc, "read notes");
    return ended;
}

int spool_note_get(struct spool *spool, const char *key, void **value, size_t *size,
                   struct spool_error *error)
{
    MDB_txn *txn = NULL;
    struct cursor body;
    int rc, status;

    if (!*key || strlen(key) > NOTE_KEY_MAX)
        return spool_error_set(error, SPOOL_E_INVALID, "a note's key has 1 to %u bytes",
                               NOTE_KEY_MAX);
    status = store_begin_read(&spool->meta, &txn, error);
    if (status != SPOOL_OK)
        return status;
    rc = record_get(txn, spool->meta_notes, RECORD_NOTE, key, strlen(key), &body);
    if (rc == MDB_NOTFOUND) {
        status = spool_error_set(error, SPOOL_E_NOT_FOUND, "the spool has no note %s", key);
    } else if (rc) {
        status = lmdb_error(error, rc, "read a note");
    } else {
        *size = cursor_left(&body);
        *value = malloc(*size + 1);
        if (*value)
            memcpy(*value, body.at, *size);
        else
            status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a note");
    }
    mdb_txn_abort(txn);
    return status;
}
