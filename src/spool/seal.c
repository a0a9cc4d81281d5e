/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seals and the commit that carries every change of meta. A seal's body:
 *
 *   u64 segment | i64 sealed_ms | u64 rows | string token | string attributes |
 *   varint ranges, then per range: varint sequence minus that of the range before (the first: minus
 *   0) | varint row | varint rows
 *
 * where a string is a varint of its length and its bytes.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "spool/spool_int.h"

#define SEAL_KEY_BYTES 12u

static void seal_key(uint8_t *key, uint32_t stream, uint64_t batch)
{
    put_be32(key, stream);
    put_be64(key + 4, batch);
}

static int seal_encode(const struct spool_seal *s, struct buf *out)
{
    uint64_t before = 0;
    int status = buf_put_u64le(out, s->segment);

    if (status == SPOOL_OK)
        status = buf_put_u64le(out, (uint64_t)s->sealed_ms);
    if (status == SPOOL_OK)
        status = buf_put_u64le(out, s->rows);
    if (status == SPOOL_OK)
        status = buf_put_string(out, s->token, strlen(s->token));
    if (status == SPOOL_OK)
        status = buf_put_string(out, s->attributes, s->attributes_size);
    if (status == SPOOL_OK)
        status = buf_put_varuint(out, s->range_count);
    for (size_t i = 0; status == SPOOL_OK && i < s->range_count; i++) {
        status = buf_put_varuint(out, s->ranges[i].sequence - before);
        if (status == SPOOL_OK)
            status = buf_put_varuint(out, s->ranges[i].row);
        if (status == SPOOL_OK)
            status = buf_put_varuint(out, s->ranges[i].rows);
        before = s->ranges[i].sequence;
    }
    return status;
}

static int seal_decode_ranges(struct cursor *c, struct seal_record *out)
{
    uint64_t n = 0, sequence = 0;

    if (cursor_varuint(c, &n) != SPOOL_OK || n > cursor_left(c) / 3)
        return SPOOL_E_CORRUPT;
    out->ranges = malloc((size_t)(n + 1) * sizeof(*out->ranges));
    if (!out->ranges)
        return SPOOL_E_NOMEM;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t delta = 0, row = 0, rows = 0;
        if (cursor_varuint(c, &delta) != SPOOL_OK || cursor_varuint(c, &row) != SPOOL_OK ||
            cursor_varuint(c, &rows) != SPOOL_OK || delta > UINT64_MAX - sequence ||
            row > UINT32_MAX || rows > UINT32_MAX)
            return SPOOL_E_CORRUPT;
        sequence += delta;
        out->ranges[i] = (struct spool_range){sequence, (uint32_t)row, (uint32_t)rows};
    }
    out->seal.ranges = out->ranges;
    out->seal.range_count = (size_t)n;
    return cursor_left(c) ? SPOOL_E_CORRUPT : ranges_check(out->ranges, (size_t)n);
}

int seal_decode(struct cursor c, struct seal_record *out)
{
    const uint8_t *token = NULL, *attributes = NULL;
    uint64_t ms = 0;
    size_t token_size = 0;
    int status;

    memset(out, 0, sizeof(*out));
    if (cursor_u64le(&c, &out->seal.segment) != SPOOL_OK || cursor_u64le(&c, &ms) != SPOOL_OK ||
        cursor_u64le(&c, &out->seal.rows) != SPOOL_OK ||
        cursor_string(&c, &token, &token_size) != SPOOL_OK || token_size > TOKEN_MAX ||
        cursor_string(&c, &attributes, &out->seal.attributes_size) != SPOOL_OK)
        return SPOOL_E_CORRUPT;
    out->seal.sealed_ms = (int64_t)ms;
    out->seal.attributes = attributes;
    memcpy(out->token, token, token_size);
    out->token[token_size] = 0;
    out->seal.token = out->token;
    status = seal_decode_ranges(&c, out);
    if (status != SPOOL_OK) {
        free(out->ranges);
        out->ranges = NULL;
        return status == SPOOL_E_NOMEM ? status : SPOOL_E_CORRUPT;
    }
    return SPOOL_OK;
}

/* --- the commit ----------------------------------------------------------------------------- */

struct commit_job {
    struct spool *spool;
    const struct spool_change *changes;
    size_t count;
    struct forgotten *forgotten;
    struct ack_message *messages; /* to deliver once committed */
    unsigned part;
};

static int stream_record(struct spool *spool, MDB_txn *txn, uint32_t stream, const char **name,
                         uint64_t *next_batch)
{
    struct cursor body;
    uint32_t id = 0;
    int rc;

    *name = stream_name_of(spool, stream);
    if (!*name)
        return MDB_NOTFOUND;
    rc = record_get(txn, spool->meta_streams, RECORD_STREAM, *name, strlen(*name), &body);
    if (!rc)
        rc = cursor_u32le(&body, &id);
    return rc ? rc : cursor_u64le(&body, next_batch);
}

static int check_ranges(const struct spool_range *ranges, size_t count, struct spool_error *error)
{
    if (ranges_check(ranges, count) != SPOOL_OK)
        return spool_error_set(error, SPOOL_E_INVALID,
                               "ranges are not ascending, overlap, or are out of bounds");
    return SPOOL_OK;
}

static int change_seal(struct commit_job *job, MDB_txn *txn, const struct spool_seal *s,
                       struct spool_error *error)
{
    struct spool *spool = job->spool;
    uint8_t key[SEAL_KEY_BYTES], stream_body[12];
    const char *name = NULL;
    uint64_t next_batch = 0;
    struct buf body;
    int rc = check_ranges(s->ranges, s->range_count, error);

    if (rc)
        return rc;
    if (!s->range_count || !s->segment || !s->token || strlen(s->token) > TOKEN_MAX)
        return spool_error_set(error, SPOOL_E_INVALID,
                               "a seal needs ranges, a segment, and a token of at most %u bytes",
                               TOKEN_MAX);
    rc = stream_record(spool, txn, s->stream, &name, &next_batch);
    if (rc == MDB_NOTFOUND)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "the spool has no stream %u", s->stream);
    if (rc)
        return rc;
    if (s->batch < next_batch || s->batch == UINT64_MAX)
        return spool_error_set(error, SPOOL_E_INVALID, "batch %llu of stream %s was used before",
                               (unsigned long long)s->batch, name);
    buf_init(&body, META_RECORD_MAX);
    rc = seal_encode(s, &body);
    seal_key(key, s->stream, s->batch);
    if (!rc)
        rc = record_put(txn, spool->meta_seals, RECORD_SEAL, key, sizeof(key), body.data, body.len,
                        MDB_NOOVERWRITE);
    buf_free(&body);
    put_le32(stream_body, s->stream);
    put_le64(stream_body + 4, s->batch + 1);
    if (!rc)
        rc = record_put(txn, spool->meta_streams, RECORD_STREAM, name, strlen(name), stream_body,
                        sizeof(stream_body), 0);
    job->part |= COMMIT_SEAL;
    return rc;
}

/* ACK and UNSEAL: both end a seal, the first acknowledges its rows. */
static int change_end_seal(struct commit_job *job, MDB_txn *txn, const struct spool_change *c,
                           struct spool_error *error)
{
    MDB_dbi seals = job->spool->meta_seals;
    uint8_t key[SEAL_KEY_BYTES];
    MDB_val k = {sizeof(key), key};
    struct seal_record record;
    struct cursor body;
    int rc;

    seal_key(key, c->stream, c->batch);
    rc = record_get(txn, seals, RECORD_SEAL, key, sizeof(key), &body);
    if (rc == MDB_NOTFOUND)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "stream %u has no sealed batch %llu",
                               c->stream, (unsigned long long)c->batch);
    if (!rc)
        rc = seal_decode(body, &record);
    if (rc)
        return rc;
    if (c->kind == SPOOL_CHANGE_ACK) {
        rc = ack_apply(txn, job->spool->meta_acks, c->stream, record.seal.segment, record.ranges,
                       record.seal.range_count, &job->messages);
        job->part |= COMMIT_ACK;
    }
    free(record.ranges);
    return rc ? rc : mdb_del(txn, seals, &k, NULL);
}

static int change_note(struct commit_job *job, MDB_txn *txn, const struct spool_change *c,
                       struct spool_error *error)
{
    MDB_val k;
    int rc;

    if (!c->key || !*c->key || strlen(c->key) > NOTE_KEY_MAX)
        return spool_error_set(error, SPOOL_E_INVALID, "a note's key has 1 to %u bytes",
                               NOTE_KEY_MAX);
    if (c->kind == SPOOL_CHANGE_PUT && c->value_size > META_RECORD_MAX)
        return spool_error_set(error, SPOOL_E_LIMIT, "a note of %zu bytes is over the limit",
                               c->value_size);
    k = (MDB_val){strlen(c->key), (void *)(uintptr_t)c->key};
    if (c->kind == SPOOL_CHANGE_PUT)
        return record_put(txn, job->spool->meta_notes, RECORD_NOTE, c->key, k.mv_size, c->value,
                          c->value_size, 0);
    rc = mdb_del(txn, job->spool->meta_notes, &k, NULL);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int change_one(struct commit_job *job, MDB_txn *txn, const struct spool_change *c,
                      struct spool_error *error)
{
    int rc;

    switch (c->kind) {
    case SPOOL_CHANGE_SEAL:
        return change_seal(job, txn, c->seal, error);
    case SPOOL_CHANGE_ACK:
    case SPOOL_CHANGE_UNSEAL:
        return change_end_seal(job, txn, c, error);
    case SPOOL_CHANGE_DISCARD:
        rc = check_ranges(c->ranges, c->range_count, error);
        if (!rc && (!stream_name_of(job->spool, c->stream) || !c->segment))
            rc = spool_error_set(error, SPOOL_E_NOT_FOUND, "the spool has no stream %u", c->stream);
        job->part |= COMMIT_DISCARD;
        return rc ? rc
                  : ack_apply(txn, job->spool->meta_acks, c->stream, c->segment, c->ranges,
                              c->range_count, &job->messages);
    case SPOOL_CHANGE_LIST:
        return listing_put(txn, job->spool->meta_notes, c->stream, c->segment);
    case SPOOL_CHANGE_UNLIST:
        return listing_delete(txn, job->spool->meta_notes, c->stream, c->segment);
    case SPOOL_CHANGE_PUT:
    case SPOOL_CHANGE_DELETE:
        return change_note(job, txn, c, error);
    }
    return spool_error_set(error, SPOOL_E_INVALID, "unknown kind of change %d", (int)c->kind);
}

static int commit_body(MDB_txn *txn, void *arg, struct spool_error *error)
{
    struct commit_job *job = arg;
    struct spool_error inner = {0};
    int rc = 0;

    ack_messages_free(job->messages);
    job->messages = NULL;
    job->part &= COMMIT_ADDS;
    for (struct forgotten *f = job->forgotten; !rc && f; f = f->next) {
        rc = ack_forget(txn, job->spool->meta_acks, f->stream, f->segment);
        if (!rc)
            rc = listing_delete(txn, job->spool->meta_notes, f->stream, f->segment);
    }
    for (size_t i = 0; !rc && i < job->count; i++)
        rc = change_one(job, txn, &job->changes[i], &inner);
    if (rc == ENOMEM)
        rc = SPOOL_E_NOMEM;
    if (is_spool_status(rc)) {
        if (inner.status == rc)
            return spool_error_set(error, rc, "%s", inner.text);
        return lmdb_error(error, rc, "commit to meta.mdb");
    }
    return rc;
}

/* Hands each message to its stream's lane; a stream that is not open reads meta when it opens. */
static void deliver(struct spool *spool, struct ack_message *m)
{
    while (m) {
        struct ack_message *next = m->next;
        struct spool_stream *stream = spool->streams[m->stream - 1];
        if (!stream || !m->count) {
            free(m);
        } else {
            m->next = atomic_load(&stream->acks);
            while (!atomic_compare_exchange_weak(&stream->acks, &m->next, m))
                ;
        }
        m = next;
    }
}

void spool_forget(struct spool *spool, struct forgotten *f)
{
    f->next = atomic_load(&spool->forgotten);
    while (!atomic_compare_exchange_weak(&spool->forgotten, &f->next, f))
        ;
}

/* forgotten: taken where it is done. */
static int commit_once(struct spool *spool, const struct spool_change *changes, size_t count,
                       struct forgotten **forgotten, struct spool_error *error)
{
    struct commit_job job = {spool, changes, count, *forgotten, NULL, 0};
    struct forgotten *next;
    int status;

    for (size_t i = 0; i < count; i++)
        if (changes[i].kind == SPOOL_CHANGE_SEAL && !changes[i].replaces)
            job.part = COMMIT_ADDS;
    status = store_write(spool, &spool->meta, &job.part, commit_body, &job, error);
    if (status != SPOOL_OK) {
        ack_messages_free(job.messages);
        return status;
    }
    deliver(spool, job.messages);
    for (struct forgotten *f = *forgotten; f; f = next) {
        next = f->next;
        free(f);
    }
    *forgotten = NULL;
    return SPOOL_OK;
}

int spool_commit(struct spool *spool, const struct spool_change *changes, size_t count,
                 struct spool_error *error)
{
    struct forgotten *forgotten, *next;
    struct spool_error ignored;
    int status = check_writable(spool, error);

    if (status != SPOOL_OK)
        return status;
    forgotten = atomic_exchange(&spool->forgotten, NULL);
    status = commit_once(spool, changes, count, &forgotten, error);
    /* What goes gives its room to what comes, but not within one commit. */
    if (status == SPOOL_E_FULL && forgotten && count &&
        commit_once(spool, NULL, 0, &forgotten, &ignored) == SPOOL_OK)
        status = commit_once(spool, changes, count, &forgotten, error);
    for (struct forgotten *f = forgotten; f; f = next) {
        next = f->next;
        spool_forget(spool, f);
    }
    return status;
}

int spool_next_batch(struct spool *spool, uint32_t stream, uint64_t *batch,
                     struct spool_error *error)
{
    const char *name = NULL;
    MDB_txn *txn = NULL;
    int rc, status = store_begin_read(&spool->meta, &txn, error);

    if (status != SPOOL_OK)
        return status;
    rc = stream_record(spool, txn, stream, &name, batch);
    mdb_txn_abort(txn);
    if (rc == MDB_NOTFOUND)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "the spool has no stream %u", stream);
    return rc ? lmdb_error(error, rc, "read a stream") : SPOOL_OK;
}

int spool_seals(struct spool *spool, uint32_t stream,
                int (*each)(void *arg, const struct spool_seal *seal), void *arg,
                struct spool_error *error)
{
    uint8_t key[SEAL_KEY_BYTES] = {0};
    MDB_val k = {sizeof(key), key}, v;
    MDB_cursor *cursor = NULL;
    MDB_txn *txn = NULL;
    int rc, ended = 0, status = store_begin_read(&spool->meta, &txn, error);

    if (status != SPOOL_OK)
        return status;
    put_be32(key, stream);
    rc = mdb_cursor_open(txn, spool->meta_seals, &cursor);
    for (MDB_cursor_op op = MDB_SET_RANGE; !rc && !ended; op = MDB_NEXT) {
        struct seal_record record;
        struct cursor body;
        rc = mdb_cursor_get(cursor, &k, &v, op);
        if (rc)
            break;
        if (k.mv_size != SEAL_KEY_BYTES) {
            rc = SPOOL_E_CORRUPT;
            break;
        }
        if (memcmp(k.mv_data, key, 4) != 0)
            break;
        rc = record_open(RECORD_SEAL, k.mv_data, k.mv_size, v.mv_data, v.mv_size, &body);
        if (!rc)
            rc = seal_decode(body, &record);
        if (rc)
            break;
        record.seal.stream = stream;
        record.seal.batch = get_be64((const uint8_t *)k.mv_data + 4);
        ended = each(arg, &record.seal);
        free(record.ranges);
    }
    if (cursor)
        mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
    if (rc && rc != MDB_NOTFOUND)
        return lmdb_error(error, rc, "read seals");
    return ended;
}
