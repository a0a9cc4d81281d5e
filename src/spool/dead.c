/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dead.mdb: records that could not be inserted. Databases, keys and bodies (records, each followed
 * by its checksum):
 *
 *   info     "version" -> u32 | "uuid" -> the spool's 16 bytes
 *   letters  stream name | 0 | u32be origin | u64be offset with its sign flipped ->
 *            u32 flags | u32 attempts | i32 code | u8 key present | u64 position | i64 dead ms |
 *            i64 received ms | i64 timestamp ms | u64 full size of the record |
 *            strings: reason name, reason, column, record, key, headers
 *            [ i64 last ms: where flags has SPOOL_DEAD_RETRIED ]
 *   counts   stream name -> u64 letters | u64 bytes of their bodies
 *
 * The key makes a letter that is put again after a crash the same letter.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "spool/spool_int.h"

#define LETTER_KEY_MAX (SPOOL_STREAM_NAME_MAX + 1 + 4 + 8)
#define LETTER_MAX     (GIB) /* half of it the record */
#define CHANGE_BYTES   (64 * KIB)

static size_t letter_key(uint8_t *key, const char *stream, uint32_t origin, int64_t offset)
{
    size_t n = strlen(stream);
    memcpy(key, stream, n + 1);
    put_be32(key + n + 1, origin);
    put_be64(key + n + 5, (uint64_t)offset ^ (1ull << 63));
    return n + 13;
}

static int letter_encode(const struct spool_dead *d, struct buf *b)
{
    int status = SPOOL_OK;
    const char *name = d->reason_name ? d->reason_name : "", *reason = d->reason ? d->reason : "";
    const char *column = d->column ? d->column : "";
    size_t texts = strlen(name) + strlen(reason) + strlen(column);

    if (d->record_size > LETTER_MAX / 2 ||
        d->key_size + d->headers_size + texts > LETTER_MAX / 2 - KIB)
        return SPOOL_E_LIMIT;
    if (buf_put_u32le(b, d->flags) || buf_put_u32le(b, d->attempts) ||
        buf_put_u32le(b, (uint32_t)d->code) || buf_put_u8(b, d->key_present) ||
        buf_put_u64le(b, d->position) || buf_put_u64le(b, (uint64_t)d->dead_ms) ||
        buf_put_u64le(b, (uint64_t)d->received_ms) || buf_put_u64le(b, (uint64_t)d->timestamp_ms) ||
        buf_put_u64le(b, d->record_full_size) || buf_put_string(b, name, strlen(name)) ||
        buf_put_string(b, reason, strlen(reason)) || buf_put_string(b, column, strlen(column)) ||
        buf_put_string(b, d->record, d->record_size) || buf_put_string(b, d->key, d->key_size) ||
        buf_put_string(b, d->headers, d->headers_size) ||
        (d->flags & SPOOL_DEAD_RETRIED && buf_put_u64le(b, (uint64_t)d->last_ms)))
        status = SPOOL_E_NOMEM;
    return status;
}

struct letter {
    struct spool_dead dead;
    char *texts; /* the three strings with their NULs */
};

static int letter_decode(struct cursor c, struct letter *out)
{
    struct spool_dead *d = &out->dead;
    const uint8_t *text[3] = {NULL}, *record = NULL, *key = NULL, *headers = NULL;
    size_t size[3] = {0}, at = 0;
    uint64_t dead = 0, received = 0, timestamp = 0, last = 0;
    uint32_t code = 0;
    uint8_t present = 0;

    memset(out, 0, sizeof(*out));
    if (cursor_u32le(&c, &d->flags) || cursor_u32le(&c, &d->attempts) || cursor_u32le(&c, &code) ||
        cursor_u8(&c, &present) || cursor_u64le(&c, &d->position) || cursor_u64le(&c, &dead) ||
        cursor_u64le(&c, &received) || cursor_u64le(&c, &timestamp) ||
        cursor_u64le(&c, &d->record_full_size) || cursor_string(&c, &text[0], &size[0]) ||
        cursor_string(&c, &text[1], &size[1]) || cursor_string(&c, &text[2], &size[2]) ||
        cursor_string(&c, &record, &d->record_size) || cursor_string(&c, &key, &d->key_size) ||
        cursor_string(&c, &headers, &d->headers_size) ||
        (d->flags & SPOOL_DEAD_RETRIED && cursor_u64le(&c, &last)) || cursor_left(&c))
        return SPOOL_E_CORRUPT;
    out->texts = malloc(size[0] + size[1] + size[2] + 3);
    if (!out->texts)
        return SPOOL_E_NOMEM;
    for (int i = 0; i < 3; i++) {
        memcpy(out->texts + at, text[i], size[i]);
        out->texts[at + size[i]] = 0;
        at += size[i] + 1;
    }
    d->reason_name = out->texts;
    d->reason = out->texts + size[0] + 1;
    d->column = out->texts + size[0] + size[1] + 2;
    d->code = (int)code;
    d->key_present = present;
    d->dead_ms = (int64_t)dead;
    d->last_ms = d->flags & SPOOL_DEAD_RETRIED ? (int64_t)last : d->dead_ms;
    d->received_ms = (int64_t)received;
    d->timestamp_ms = (int64_t)timestamp;
    d->record = record;
    d->key = key;
    d->headers = headers;
    return SPOOL_OK;
}

int dead_letter_place(const uint8_t *key, size_t size, char *stream, uint32_t *origin,
                      int64_t *offset)
{
    size_t n = size < 14 || size > LETTER_KEY_MAX ? 0 : size - 13;

    if (!n || key[n] || memchr(key, 0, n))
        return SPOOL_E_CORRUPT;
    memcpy(stream, key, n + 1);
    *origin = get_be32(key + n + 1);
    *offset = (int64_t)(get_be64(key + n + 5) ^ (1ull << 63));
    return SPOOL_OK;
}

int dead_letter_check(const uint8_t *key, size_t key_size, const uint8_t *data, size_t size,
                      char *stream, uint64_t *bytes)
{
    struct letter letter;
    struct cursor body;
    uint32_t origin;
    int64_t offset;
    int status = dead_letter_place(key, key_size, stream, &origin, &offset);

    if (status == SPOOL_OK)
        status = record_open(RECORD_LETTER, key, key_size, data, size, &body);
    if (status != SPOOL_OK)
        return status;
    *bytes = cursor_left(&body);
    status = letter_decode(body, &letter);
    free(letter.texts);
    return status;
}

/* --- opening -------------------------------------------------------------------------------- */

static int dead_dbis(struct spool *spool, MDB_txn *txn, unsigned flags, MDB_dbi *info)
{
    int rc = mdb_dbi_open(txn, "info", flags, info);
    if (!rc)
        rc = mdb_dbi_open(txn, "letters", flags, &spool->dead_letters);
    return rc ? rc : mdb_dbi_open(txn, "counts", flags, &spool->dead_counts);
}

static int dead_init(MDB_txn *txn, void *arg)
{
    struct spool *spool = arg;
    uint8_t version[4];
    MDB_dbi info;
    int rc = dead_dbis(spool, txn, MDB_CREATE, &info);

    put_le32(version, SPOOL_FORMAT_VERSION);
    if (!rc)
        rc = record_put(txn, info, RECORD_INFO, "version", 7, version, 4, 0);
    return rc ? rc : record_put(txn, info, RECORD_INFO, "uuid", 4, spool->uuid, 16, 0);
}

static int dead_check_info(struct spool *spool, MDB_txn *txn, MDB_dbi info,
                           struct spool_error *error)
{
    struct cursor body;
    const uint8_t *uuid = NULL;
    uint32_t version = 0;
    int rc = record_get(txn, info, RECORD_INFO, "version", 7, &body);

    if (!rc)
        rc = cursor_u32le(&body, &version);
    if (!rc && version > SPOOL_FORMAT_VERSION)
        return spool_error_set(error, SPOOL_E_NEWER,
                               "dead.mdb has format version %u, this program knows up to %d",
                               version, SPOOL_FORMAT_VERSION);
    if (!rc)
        rc = record_get(txn, info, RECORD_INFO, "uuid", 4, &body);
    if (!rc)
        rc = cursor_bytes(&body, 16, &uuid);
    if (rc)
        return store_lacks(&spool->dead, rc, "its version or uuid", error);
    if (memcmp(uuid, spool->uuid, 16) != 0)
        return spool_error_set(error, SPOOL_E_CORRUPT,
                               "dead.mdb in %s belongs to another spool. Put back its own, or move "
                               "this one away to start with an empty one",
                               spool->path);
    return SPOOL_OK;
}

int dead_open(struct spool *spool, struct spool_error *error)
{
    MDB_txn *txn = NULL;
    MDB_dbi info;
    int rc, status;

    spool->dead.name = "dead.mdb";
    spool->dead.advice =
        "It holds the dead letters only: `spoolctl --spool DIR repair` makes a new one "
        "of those that can be read";
    status = store_open(spool, &spool->dead, spool->meta_reserve_bytes, dead_init, spool, error);
    if (status != SPOOL_OK || !spool->dead.env)
        return status;
    status = store_begin_read(&spool->dead, &txn, error);
    if (status != SPOOL_OK)
        return status;
    rc = dead_dbis(spool, txn, 0, &info);
    status = rc ? store_lacks(&spool->dead, rc, "one of its databases", error)
                : dead_check_info(spool, txn, info, error);
    rc = mdb_txn_commit(txn); /* keeps the handles */
    if (status == SPOOL_OK && rc)
        status = lmdb_error(error, rc, "read dead.mdb");
    return status;
}

int dead_create(struct spool *spool, const char *path, struct spool_error *error)
{
    spool->dead.name = strrchr(path, '/') + 1;
    return store_open(spool, &spool->dead, 0, dead_init, spool, error);
}

/* --- counting ------------------------------------------------------------------------------- */

static int count_get(struct spool *spool, MDB_txn *txn, const char *stream, uint64_t *letters,
                     uint64_t *bytes)
{
    struct cursor body;
    int rc = record_get(txn, spool->dead_counts, RECORD_COUNT, stream, strlen(stream), &body);

    *letters = *bytes = 0;
    if (rc == MDB_NOTFOUND)
        return 0;
    if (!rc)
        rc = cursor_u64le(&body, letters);
    return rc ? rc : cursor_u64le(&body, bytes);
}

static int count_put(struct spool *spool, MDB_txn *txn, const char *stream, uint64_t letters,
                     uint64_t bytes)
{
    uint8_t body[16];
    put_le64(body, letters);
    put_le64(body + 8, bytes);
    return record_put(txn, spool->dead_counts, RECORD_COUNT, stream, strlen(stream), body,
                      sizeof(body), 0);
}

int spool_dead_count(struct spool *spool, const char *stream, uint64_t *letters, uint64_t *bytes,
                     struct spool_error *error)
{
    MDB_txn *txn = NULL;
    int rc, status;

    *letters = *bytes = 0;
    if (!stream_name_valid(stream))
        return spool_error_set(error, SPOOL_E_INVALID, "%s is not a stream's name", stream);
    if (!spool->dead.env)
        return SPOOL_OK;
    status = store_begin_read(&spool->dead, &txn, error);
    if (status != SPOOL_OK)
        return status;
    rc = count_get(spool, txn, stream, letters, bytes);
    mdb_txn_abort(txn);
    return rc ? lmdb_error(error, rc, "count dead letters") : SPOOL_OK;
}

int spool_dead_room(struct spool *spool, uint64_t *bytes, struct spool_error *error)
{
    MDB_envinfo info;
    MDB_txn *txn = NULL;
    uint64_t used;
    int status;
    MDB_stat s;

    *bytes = 0;
    if (!spool->dead.env)
        return SPOOL_OK;
    status = store_begin_read(&spool->dead, &txn, error);
    if (status != SPOOL_OK)
        return status;
    if (!mdb_env_stat(spool->dead.env, &s) && !mdb_env_info(spool->dead.env, &info)) {
        used = (info.me_last_pgno + 1) * s.ms_psize + spool->dead.ahead_bytes;
        /* What the last transaction gave up serves the one after the next. */
        *bytes = free_list_pages(txn, info.me_last_txnid) * s.ms_psize;
        if (spool->dead.held_bytes > used)
            *bytes += spool->dead.held_bytes - used;
    }
    mdb_txn_abort(txn);
    return SPOOL_OK;
}

/* --- putting and removing ------------------------------------------------------------------- */

struct put_job {
    struct spool *spool;
    const struct spool_dead *letters;
    size_t count, added;
    uint64_t max_bytes; /* of their stream; 0: no bound */
    struct buf body;
};

static int put_one(struct put_job *job, MDB_txn *txn, const struct spool_dead *d)
{
    uint8_t key[LETTER_KEY_MAX];
    size_t key_size = letter_key(key, d->stream, d->origin, d->offset);
    uint64_t letters = 0, bytes = 0;
    int rc;

    buf_reset(&job->body);
    rc = letter_encode(d, &job->body);
    if (rc)
        return rc;
    rc = record_put(txn, job->spool->dead_letters, RECORD_LETTER, key, key_size, job->body.data,
                    job->body.len, MDB_NOOVERWRITE);
    if (rc == MDB_KEYEXIST)
        return 0;
    if (!rc)
        rc = count_get(job->spool, txn, d->stream, &letters, &bytes);
    if (!rc)
        rc = count_put(job->spool, txn, d->stream, letters + 1, bytes + job->body.len);
    if (!rc)
        job->added++;
    return rc;
}

int dead_letter_copy(struct spool *spool, MDB_txn *txn, uint8_t *key, size_t key_size,
                     uint8_t *value, size_t size)
{
    const char *stream = (const char *)key; /* ends with a NUL */
    MDB_val k = {key_size, key}, v = {size, value};
    uint64_t letters = 0, bytes = 0;
    int rc = mdb_put(txn, spool->dead_letters, &k, &v, MDB_NOOVERWRITE);

    if (!rc)
        rc = count_get(spool, txn, stream, &letters, &bytes);
    if (!rc)
        rc = count_put(spool, txn, stream, letters + 1, bytes + size - RECORD_CHECKSUM_BYTES);
    return rc == MDB_KEYEXIST ? 0 : rc;
}

/* After all are put: letters that were there already take nothing. */
static int put_bounded(const struct put_job *job, MDB_txn *txn, struct spool_error *error)
{
    uint64_t letters = 0, bytes = 0;
    int rc = count_get(job->spool, txn, job->letters[0].stream, &letters, &bytes);

    if (rc)
        return is_spool_status(rc) ? lmdb_error(error, rc, "put dead letters") : rc;
    if (bytes > job->max_bytes && job->added)
        return spool_error_set(error, SPOOL_E_LIMIT,
                               "with %zu more the dead letters would hold %llu bytes, "
                               "dead_letters.max_bytes is %llu",
                               job->added, (unsigned long long)bytes,
                               (unsigned long long)job->max_bytes);
    return 0;
}

static int put_body(MDB_txn *txn, void *arg, struct spool_error *error)
{
    struct put_job *job = arg;
    size_t i = 0;
    int rc = 0;

    job->added = 0;
    for (; !rc && i < job->count; i++)
        rc = put_one(job, txn, &job->letters[i]);
    if (rc == SPOOL_E_LIMIT)
        return spool_error_set(error, rc,
                               "the record at offset %lld of origin %u is too large for a dead "
                               "letter, with its key and headers: skip it, by the group's offset",
                               (long long)job->letters[i - 1].offset, job->letters[i - 1].origin);
    if (rc)
        return is_spool_status(rc) ? lmdb_error(error, rc, "put dead letters") : rc;
    return job->max_bytes ? put_bounded(job, txn, error) : 0;
}

int spool_dead_put_all(struct spool *spool, const struct spool_dead *letters, size_t count,
                       uint64_t max_bytes, size_t *added, struct spool_error *error)
{
    const unsigned part = COMMIT_DEAD;
    struct put_job job = {
        .spool = spool, .letters = letters, .count = count, .max_bytes = max_bytes};
    int status = check_writable(spool, error);

    if (added)
        *added = 0;
    for (size_t i = 0; status == SPOOL_OK && i < count; i++)
        if (!letters[i].stream || !stream_name_valid(letters[i].stream) || !letters[i].origin ||
            (max_bytes && strcmp(letters[i].stream, letters[0].stream) != 0))
            status = spool_error_set(error, SPOOL_E_INVALID,
                                     "a dead letter needs a stream and an origin");
    if (status != SPOOL_OK || !count)
        return status;
    buf_init(&job.body, LETTER_MAX);
    status = store_write(spool, &spool->dead, &part, put_body, &job, error);
    buf_free(&job.body);
    if (status == SPOOL_OK && added)
        *added = job.added;
    return status;
}

int spool_dead_put(struct spool *spool, const struct spool_dead *letters, size_t count,
                   size_t *added, struct spool_error *error)
{
    return spool_dead_put_all(spool, letters, count, 0, added, error);
}

struct change_job {
    struct spool *spool;
    const char *stream;
    const struct spool_dead_change *changes;
    size_t count, changed;
    size_t from, to; /* of one commit */
    size_t most;     /* in one commit */
    struct buf body;
};

/* The letter's new body: what MARK and REFUSE leave of the old one. */
static int changed_body(struct change_job *job, const struct spool_dead_change *change,
                        struct cursor old)
{
    struct letter letter;
    int rc = letter_decode(old, &letter);

    if (rc)
        return rc;
    letter.dead.flags |= change->flags;
    if (change->kind == SPOOL_DEAD_REFUSE) {
        letter.dead.flags |= SPOOL_DEAD_RETRIED;
        letter.dead.attempts++;
        letter.dead.last_ms = change->now_ms;
        letter.dead.code = change->code;
        letter.dead.reason_name = change->reason_name;
        letter.dead.reason = change->reason;
        letter.dead.column = change->column;
        letter.dead.position = change->position;
    }
    buf_reset(&job->body);
    rc = letter_encode(&letter.dead, &job->body);
    free(letter.texts);
    return rc;
}

/* Body and size of the letter at a key. CORRUPT with the size: it is damaged. */
static int letter_find(const struct change_job *job, MDB_txn *txn, MDB_val *key,
                       struct cursor *body, uint64_t *size)
{
    MDB_val v;
    int rc = mdb_get(txn, job->spool->dead_letters, key, &v);

    if (rc)
        return rc;
    *size = v.mv_size > RECORD_CHECKSUM_BYTES ? v.mv_size - RECORD_CHECKSUM_BYTES : 0;
    return record_open(RECORD_LETTER, key->mv_data, key->mv_size, v.mv_data, v.mv_size, body);
}

static int change_one(struct change_job *job, MDB_txn *txn, const struct spool_dead_change *change)
{
    const bool removed = change->kind == SPOOL_DEAD_REMOVE;
    uint8_t key[LETTER_KEY_MAX];
    MDB_val k = {letter_key(key, job->stream, change->place.origin, change->place.offset), key};
    uint64_t letters = 0, bytes = 0, old_size = 0;
    struct cursor body;
    int rc = letter_find(job, txn, &k, &body, &old_size);

    if (rc == MDB_NOTFOUND)
        return 0;
    if (rc == SPOOL_E_CORRUPT && removed)
        rc = 0;
    if (rc)
        return rc;
    rc = removed ? mdb_del(txn, job->spool->dead_letters, &k, NULL)
                 : changed_body(job, change, body);
    if (!rc && !removed)
        rc = record_put(txn, job->spool->dead_letters, RECORD_LETTER, key, k.mv_size,
                        job->body.data, job->body.len, 0);
    if (!rc)
        rc = count_get(job->spool, txn, job->stream, &letters, &bytes);
    if (rc)
        return rc;
    job->changed++;
    bytes = bytes > old_size ? bytes - old_size : 0;
    if (removed)
        return count_put(job->spool, txn, job->stream, letters ? letters - 1 : 0, bytes);
    return count_put(job->spool, txn, job->stream, letters, bytes + job->body.len);
}

static int change_body(MDB_txn *txn, void *arg, struct spool_error *error)
{
    struct change_job *job = arg;
    size_t written = 0;
    int rc = 0;

    job->changed = 0;
    for (job->to = job->from;
         !rc && job->to < job->count && job->to - job->from < job->most && written < CHANGE_BYTES;
         job->to++) {
        buf_reset(&job->body);
        rc = change_one(job, txn, &job->changes[job->to]);
        written += job->body.len;
    }
    return is_spool_status(rc) ? lmdb_error(error, rc, "change dead letters") : rc;
}

int spool_dead_change(struct spool *spool, const char *stream,
                      const struct spool_dead_change *changes, size_t count, size_t *changed,
                      struct spool_error *error)
{
    const unsigned part = COMMIT_DEAD_CHANGE;
    struct change_job job = {
        .spool = spool, .stream = stream, .changes = changes, .count = count, .most = SIZE_MAX};
    int status = check_writable(spool, error);

    if (changed)
        *changed = 0;
    if (status == SPOOL_OK && !stream_name_valid(stream))
        status = spool_error_set(error, SPOOL_E_INVALID, "%s is not a stream's name", stream);
    if (status != SPOOL_OK || !count)
        return status;
    buf_init(&job.body, LETTER_MAX);
    while (status == SPOOL_OK && job.from < count) {
        status = store_write(spool, &spool->dead, &part, change_body, &job, error);
        if (status == SPOOL_E_FULL && job.to - job.from > 1) { /* fewer need less room at once */
            job.most = (job.to - job.from) / 2;
            status = SPOOL_OK;
            continue;
        }
        job.most = job.most > count ? job.most : 2 * job.most;
        job.from = job.to;
        if (status == SPOOL_OK && changed)
            *changed += job.changed;
    }
    buf_free(&job.body);
    return status;
}

/* --- reading -------------------------------------------------------------------------------- */

static int each_letter(struct spool *spool, const MDB_val *k, const MDB_val *v,
                       int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                       int *ended)
{
    char stream[SPOOL_STREAM_NAME_MAX + 1];
    const struct origin *origin;
    struct letter letter = {0};
    struct cursor body;
    uint32_t id = 0;
    int64_t offset = 0;
    int status = dead_letter_place(k->mv_data, k->mv_size, stream, &id, &offset);

    if (status == SPOOL_OK)
        status = record_open(RECORD_LETTER, k->mv_data, k->mv_size, v->mv_data, v->mv_size, &body);
    if (status == SPOOL_OK)
        status = letter_decode(body, &letter);
    if (status != SPOOL_OK)
        return status;
    origin = origin_of(spool, id);
    letter.dead.stream = stream;
    letter.dead.origin = id;
    letter.dead.origin_name = origin ? origin->name : "";
    letter.dead.offset = offset;
    *ended = each(arg, &letter.dead);
    free(letter.texts);
    return SPOOL_OK;
}

/* Every letter whose key has the prefix, from the key start on; whole: but those that are damaged. */
static int walk(struct spool *spool, const void *prefix, size_t prefix_size, const void *start,
                size_t start_size, bool whole,
                int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                struct spool_error *error)
{
    MDB_val k = {start_size, (void *)(uintptr_t)start}, v;
    MDB_cursor *cursor = NULL;
    MDB_txn *txn = NULL;
    int rc, ended = 0, status;

    if (!spool->dead.env)
        return SPOOL_OK;
    status = store_begin_read(&spool->dead, &txn, error);
    if (status != SPOOL_OK)
        return status;
    rc = mdb_cursor_open(txn, spool->dead_letters, &cursor);
    for (MDB_cursor_op op = start_size ? MDB_SET_RANGE : MDB_FIRST; !rc && !ended; op = MDB_NEXT) {
        rc = mdb_cursor_get(cursor, &k, &v, op);
        if (rc || k.mv_size < prefix_size || memcmp(k.mv_data, prefix, prefix_size) != 0)
            break;
        rc = each_letter(spool, &k, &v, each, arg, &ended);
        if (rc == SPOOL_E_CORRUPT && whole)
            rc = 0;
    }
    if (cursor)
        mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
    if (rc && rc != MDB_NOTFOUND)
        return lmdb_error(error, rc, "read dead letters");
    return ended;
}

int spool_dead_each(struct spool *spool, const char *stream,
                    int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                    struct spool_error *error)
{
    size_t prefix = stream ? strlen(stream) + 1 : 0;

    if (stream && !stream_name_valid(stream))
        return spool_error_set(error, SPOOL_E_INVALID, "%s is not a stream's name", stream);
    return walk(spool, stream ? stream : "", prefix, stream, prefix, false, each, arg, error);
}

static int walk_from(struct spool *spool, const char *stream, struct spool_dead_place from,
                     bool whole, int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                     struct spool_error *error)
{
    uint8_t key[LETTER_KEY_MAX];

    if (!stream_name_valid(stream))
        return spool_error_set(error, SPOOL_E_INVALID, "%s is not a stream's name", stream);
    return walk(spool, stream, strlen(stream) + 1, key,
                letter_key(key, stream, from.origin, from.offset), whole, each, arg, error);
}

int spool_dead_each_from(struct spool *spool, const char *stream, struct spool_dead_place from,
                         int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                         struct spool_error *error)
{
    return walk_from(spool, stream, from, false, each, arg, error);
}

int spool_dead_each_whole_from(struct spool *spool, const char *stream,
                               struct spool_dead_place from,
                               int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                               struct spool_error *error)
{
    return walk_from(spool, stream, from, true, each, arg, error);
}

int spool_dead_get(struct spool *spool, const char *stream, const struct spool_dead_place *places,
                   size_t count, int (*each)(void *arg, const struct spool_dead *letter), void *arg,
                   struct spool_error *error)
{
    uint8_t key[LETTER_KEY_MAX];
    MDB_txn *txn = NULL;
    int rc = 0, ended = 0, status;

    if (!stream_name_valid(stream))
        return spool_error_set(error, SPOOL_E_INVALID, "%s is not a stream's name", stream);
    if (!spool->dead.env)
        return SPOOL_OK;
    status = store_begin_read(&spool->dead, &txn, error);
    for (size_t i = 0; status == SPOOL_OK && i < count && !rc && !ended; i++) {
        MDB_val k = {letter_key(key, stream, places[i].origin, places[i].offset), key}, v;
        rc = mdb_get(txn, spool->dead_letters, &k, &v);
        if (!rc)
            rc = each_letter(spool, &k, &v, each, arg, &ended);
        else if (rc == MDB_NOTFOUND)
            rc = 0;
    }
    if (txn)
        mdb_txn_abort(txn);
    if (status == SPOOL_OK && rc)
        status = lmdb_error(error, rc, "read dead letters");
    return status == SPOOL_OK ? ended : status;
}
