/* SPDX-License-Identifier: Apache-2.0 */
#include "spool/record.h"

#include <string.h>
#include <xxhash.h>

static uint64_t checksum(enum record_kind kind, const void *key, size_t key_size, const void *body,
                         size_t size)
{
    return XXH3_64bits_withSeed(body, size,
                                XXH3_64bits_withSeed(key, key_size, (XXH64_hash_t)kind));
}

enum record_kind record_kind_of(const char *database)
{
    static const struct {
        const char *database;
        enum record_kind kind;
    } kinds[] = {
        {"info", RECORD_INFO},      {"streams", RECORD_STREAM},
        {"origins", RECORD_ORIGIN}, {"origin_names", RECORD_ORIGIN_NAME},
        {"seals", RECORD_SEAL},     {"acks", RECORD_ACK},
        {"notes", RECORD_NOTE},     {"letters", RECORD_LETTER},
        {"counts", RECORD_COUNT},
    };

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (!strcmp(database, kinds[i].database))
            return kinds[i].kind;
    return 0;
}

int record_open(enum record_kind kind, const void *key, size_t key_size, const void *data,
                size_t size, struct cursor *body)
{
    const uint8_t *p = data;

    if (size < RECORD_CHECKSUM_BYTES)
        return SPOOL_E_CORRUPT;
    size -= RECORD_CHECKSUM_BYTES;
    if (get_le64(p + size) != checksum(kind, key, key_size, p, size))
        return SPOOL_E_CORRUPT;
    *body = cursor_over(p, size);
    return SPOOL_OK;
}

int record_put(MDB_txn *txn, MDB_dbi dbi, enum record_kind kind, const void *key, size_t key_size,
               const void *body, size_t size, unsigned flags)
{
    MDB_val k = {key_size, (void *)(uintptr_t)key};
    MDB_val v = {size + RECORD_CHECKSUM_BYTES, NULL};
    int rc = mdb_put(txn, dbi, &k, &v, flags | MDB_RESERVE);

    if (rc)
        return rc;
    if (size)
        memcpy(v.mv_data, body, size);
    put_le64((uint8_t *)v.mv_data + size, checksum(kind, key, key_size, body, size));
    return 0;
}

int record_get(MDB_txn *txn, MDB_dbi dbi, enum record_kind kind, const void *key, size_t key_size,
               struct cursor *body)
{
    MDB_val k = {key_size, (void *)(uintptr_t)key};
    MDB_val v = {0, NULL};
    int rc = mdb_get(txn, dbi, &k, &v);

    return rc ? rc : record_open(kind, key, key_size, v.mv_data, v.mv_size, body);
}
