/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every value that is not a block's is a record: its body, then u64le XXH3-64 of the body, seeded
 * with XXH3-64 of the key, seeded with the kind. So a record that was changed, or stands under a
 * key or in a database it was not written for, is found out.
 */
#ifndef SPOOL_RECORD_H
#define SPOOL_RECORD_H

#include <lmdb.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "spool_error.h"

#define RECORD_CHECKSUM_BYTES 8u

/* One per database; part of the checksum, so never renumbered. */
enum record_kind {
    RECORD_INFO = 1,
    RECORD_STREAM = 2,
    RECORD_ORIGIN = 3,
    RECORD_ORIGIN_NAME = 4,
    RECORD_SEAL = 5,
    RECORD_ACK = 6,
    RECORD_NOTE = 7,
    RECORD_INDEX = 8,
    RECORD_HIGH = 9,
    RECORD_TOTALS = 10,
    RECORD_LETTER = 11,
    RECORD_COUNT = 12,
};

/* Of a database of meta.mdb or dead.mdb by its name; 0 for any other. */
enum record_kind record_kind_of(const char *database);

/* SPOOL_OK and the body (pointing into data), or SPOOL_E_CORRUPT. */
int record_open(enum record_kind kind, const void *key, size_t key_size, const void *data,
                size_t size, struct cursor *body);

/* An LMDB code: put flags as for mdb_put. */
int record_put(MDB_txn *txn, MDB_dbi dbi, enum record_kind kind, const void *key, size_t key_size,
               const void *body, size_t size, unsigned flags);

/* 0, MDB_NOTFOUND, another LMDB code, or SPOOL_E_CORRUPT. body is valid as the txn says. */
int record_get(MDB_txn *txn, MDB_dbi dbi, enum record_kind kind, const void *key, size_t key_size,
               struct cursor *body);

static inline void put_be32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static inline void put_be64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (56 - 8 * i));
}

static inline uint32_t get_be32(const uint8_t *p)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++)
        v = v << 8 | p[i];
    return v;
}

static inline uint64_t get_be64(const uint8_t *p)
{
    return (uint64_t)get_be32(p) << 32 | get_be32(p + 4);
}

static inline void put_le32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static inline void put_le64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static inline uint32_t get_le32(const uint8_t *p)
{
    uint32_t v = 0;
    for (int i = 3; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

static inline uint64_t get_le64(const uint8_t *p)
{
    return (uint64_t)get_le32(p + 4) << 32 | get_le32(p);
}

#endif
