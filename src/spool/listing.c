/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which segments there should be. A directory does not tell a file that was removed from one that
 * was lost, and the newest segment's `high` covers the offsets of both; so meta.mdb has a note for
 * each segment that exists:
 *
 *   spool/segment/<stream id>/<number> -> "1"
 *
 * It is put before anything of the segment is sealed, and deleted before the file is unlinked. A
 * file without a note is listed when its stream is opened; a note without a file is a segment that
 * is missing.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spool/spool_int.h"

#define LISTING_KEY_BYTES 64

static size_t listing_key(char *key, uint32_t stream, uint64_t segment)
{
    return (size_t)snprintf(key, LISTING_KEY_BYTES, "spool/segment/%u/%llu", stream,
                            (unsigned long long)segment);
}

int listing_put(MDB_txn *txn, MDB_dbi notes, uint32_t stream, uint64_t segment)
{
    char key[LISTING_KEY_BYTES];
    size_t size = listing_key(key, stream, segment);

    return record_put(txn, notes, RECORD_NOTE, key, size, "1", 1, 0);
}

int listing_delete(MDB_txn *txn, MDB_dbi notes, uint32_t stream, uint64_t segment)
{
    char key[LISTING_KEY_BYTES];
    MDB_val k = {listing_key(key, stream, segment), key};
    int rc = mdb_del(txn, notes, &k, NULL);

    return rc == MDB_NOTFOUND ? 0 : rc;
}

/*
 *   spool/rebuilt/<stream id> -> sequence: blocks up to it were there when meta.mdb was made anew
 *   from the segments (repair.c), so nobody knows what was done with them
 */
int rebuilt_put(MDB_txn *txn, MDB_dbi notes, uint32_t stream, uint64_t last)
{
    char key[LISTING_KEY_BYTES], value[24];
    int key_size = snprintf(key, sizeof(key), "spool/rebuilt/%u", stream);
    int size = snprintf(value, sizeof(value), "%llu", (unsigned long long)last);

    return record_put(txn, notes, RECORD_NOTE, key, (size_t)key_size, value, (size_t)size, 0);
}

int rebuilt_read(struct spool *spool, uint32_t stream, uint64_t *last, struct spool_error *error)
{
    char key[LISTING_KEY_BYTES], text[24] = "";
    void *value = NULL;
    size_t size = 0;
    int status;

    *last = 0;
    snprintf(key, sizeof(key), "spool/rebuilt/%u", stream);
    status = spool_note_get(spool, key, &value, &size, error);
    if (status == SPOOL_E_NOT_FOUND)
        return SPOOL_OK;
    if (status == SPOOL_OK && size < sizeof(text)) {
        memcpy(text, value, size);
        *last = strtoull(text, NULL, 10);
    }
    free(value);
    return status;
}

struct listing {
    uint64_t *numbers;
    size_t count;
    struct spool_error *error;
};

static int listing_add(void *arg, const char *key, const void *value, size_t size)
{
    struct listing *l = arg;
    const char *number = strrchr(key, '/') + 1;
    uint64_t *more = realloc(l->numbers, (l->count + 1) * sizeof(*more));

    (void)value;
    (void)size;
    if (!more)
        return spool_error_set(l->error, SPOOL_E_NOMEM, "no memory to list segments");
    l->numbers = more;
    l->numbers[l->count] = strtoull(number, NULL, 10);
    if (!l->numbers[l->count++])
        return spool_error_set(l->error, SPOOL_E_CORRUPT, "the note %s is not readable", key);
    return 0;
}

int listing_read(struct spool *spool, uint32_t stream, uint64_t **numbers, size_t *count,
                 struct spool_error *error)
{
    struct listing l = {.error = error};
    char prefix[LISTING_KEY_BYTES];
    int status;

    snprintf(prefix, sizeof(prefix), "spool/segment/%u/", stream);
    status = spool_notes(spool, prefix, listing_add, &l, error);
    if (status != SPOOL_OK) {
        free(l.numbers);
        l = (struct listing){0};
    }
    if (l.count)
        qsort(l.numbers, l.count, sizeof(*l.numbers), compare_u64);
    *numbers = l.numbers;
    *count = l.count;
    return status;
}

struct listing_job {
    const struct spool_stream *stream;
    const uint64_t *listed;
    size_t listed_count;
};

static int put_unlisted(MDB_txn *txn, void *arg, struct spool_error *error)
{
    const struct listing_job *job = arg;
    const struct spool_stream *stream = job->stream;
    int rc = 0;

    (void)error;
    for (size_t i = 0; !rc && i < stream->segment_count; i++)
        if (!contains_u64(job->listed, job->listed_count, stream->segments[i].number))
            rc =
                listing_put(txn, stream->spool->meta_notes, stream->id, stream->segments[i].number);
    return rc;
}

int listing_complete(struct spool_stream *stream, const uint64_t *listed, size_t count,
                     struct spool_error *error)
{
    struct listing_job job = {stream, listed, count};
    const unsigned part = 0;
    bool all = true;
    int status;

    for (size_t i = 0; i < stream->segment_count; i++)
        all = all && contains_u64(listed, count, stream->segments[i].number);
    if (all || stream->spool->read_only)
        return SPOOL_OK;
    status = store_write(stream->spool, &stream->spool->meta, &part, put_unlisted, &job, error);
    return status == SPOOL_E_FULL ? SPOOL_OK : status; /* done at the next opening */
}
