/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A String column whose block has few distinct values goes as LowCardinality(String) where the
 * server converts it to whatever String the table has. The wire form of n rows:
 *
 *     u64 1      u64 0x600 (a byte an index; keys follow)
 *     u64 keys   the keys as String, the first of them the empty one
 *     u64 n      n bytes, the key of each row
 *
 * On disk that is a third of what LZ4 makes of short words that repeat, and there is less to
 * compress. Decided for each block and column by its own rows alone: at most KEYS_MAX keys, and
 * half the bytes at most. A column of many values is given up at its first few hundred rows.
 */
#include <assert.h>
#include <string.h>

#include "codec/decode_int.h"

#define ROWS_MIN    64  /* what a column of fewer could save is not worth its head */
#define KEYS_MAX    255 /* without the empty one */
#define TABLE_SIZE  1024
#define HEAD_BYTES  (4 * 8 + 1) /* and the empty key */
#define KEY_BYTES   64          /* a longer value is no word that repeats */
#define INDEX_FLAGS 0x600u

static_assert(KEYS_MAX < TABLE_SIZE / 2, "probes stay short");
static_assert(KEY_BYTES < 128 && KEY_BYTES <= COLUMN_SLACK_BYTES, "a length is one byte");

/* A length and so many bytes. Up to KEY_SHORT_BYTES the two words are all of it. */
struct key {
    uint64_t first, last; /* its first 8 bytes, its last 8; what lies behind a shorter one is 0 */
    const uint8_t *at;    /* in the column */
};
#define KEY_SHORT_BYTES 15

struct dictionary {
    struct key keys[KEYS_MAX + 1]; /* 0: the empty one */
    uint8_t table[TABLE_SIZE];     /* key of a hash, 0 = free */
    size_t count;                  /* with the empty one */
    size_t bytes;                  /* of the keys, with their lengths */
};

static uint64_t load64(const uint8_t *at)
{
    uint64_t v;
    memcpy(&v, at, sizeof(v));
    return v;
}

/* Reads up to eight bytes behind a short value: columns have slack. */
static struct key key_at(const uint8_t *at, size_t size)
{
    struct key key = {.first = load64(at), .at = at};

    if (size < 7)
        key.first &= (UINT64_C(1) << (8 * (size + 1))) - 1;
    else if (size > 7)
        key.last = load64(at + size - 7);
    return key;
}

static bool key_same(const struct key *a, const struct key *b, size_t size)
{
    return a->first == b->first && a->last == b->last &&
           (size <= KEY_SHORT_BYTES || memcmp(a->at, b->at, size + 1) == 0);
}

static uint32_t key_hash(const struct key *key)
{
    uint64_t mixed =
        (key->first ^ key->last * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xbf58476d1ce4e5b9);
    return (uint32_t)(mixed >> 40);
}

/* The number of a key, a new one where it is new; KEYS_MAX + 1 when there are too many. */
static size_t key_number(struct dictionary *dictionary, const uint8_t *at, size_t size)
{
    struct key key = key_at(at, size);

    for (uint32_t slot = key_hash(&key);; slot++) {
        uint8_t *entry = &dictionary->table[slot % TABLE_SIZE];
        if (!*entry) {
            if (dictionary->count > KEYS_MAX)
                return KEYS_MAX + 1;
            dictionary->keys[dictionary->count] = key;
            dictionary->bytes += size + 1;
            *entry = (uint8_t)dictionary->count;
            return dictionary->count++;
        }
        if (key_same(&dictionary->keys[*entry], &key, size))
            return *entry;
    }
}

/* Writes the rows' indexes to out; false where the column is not worth it. */
static bool dictionary_fill(struct dictionary *dictionary, const struct bytes *column,
                            uint32_t rows, uint8_t *out)
{
    const uint8_t *at = column->data;
    size_t most = column->len / 2;

    dictionary->count = 1;
    for (uint32_t i = 0; i < rows; i++) {
        size_t size = *at, number = 0;
        if (size > KEY_BYTES)
            return false;
        if (size) {
            number = key_number(dictionary, at, size);
            if (number > KEYS_MAX || HEAD_BYTES + dictionary->bytes + rows > most)
                return false;
        }
        out[i] = (uint8_t)number;
        at += size + 1;
    }
    return true;
}

bool dictionary_fits(const struct slot *slot, const struct schema *schema)
{
    const struct schema_column *column = slot->column;
    const struct type *type = column->type;

    if (type->kind == TYPE_LOW_CARDINALITY)
        type = type->children[0];
    return schema->server.major >= CONVERTING_MAJOR && type->kind == TYPE_STRING &&
           column->wire->kind == TYPE_STRING;
}

int dictionary_write(const struct slot *slot, uint32_t rows, struct buf *raw, bool *written)
{
    static const char TYPE[] = "LowCardinality(String)";
    const struct bytes *column = &slot->node->data;
    struct dictionary dictionary;
    size_t start = raw->len, head;
    int status;

    *written = false;
    if (rows < ROWS_MIN || HEAD_BYTES + rows > column->len / 2)
        return SPOOL_OK;
    memset(dictionary.table, 0, sizeof(dictionary.table));
    dictionary.bytes = 0;
    /* The rows' indexes come last, but the keys are known only behind them: they are made behind
       the most that the keys can take. */
    head = strlen(slot->column->name) + sizeof(TYPE) + 20 + HEAD_BYTES +
           KEYS_MAX * (size_t)(KEY_BYTES + 1);
    status = buf_reserve(raw, head + rows);
    if (status != SPOOL_OK)
        return status == SPOOL_E_LIMIT ? SPOOL_OK : status;
    if (!dictionary_fill(&dictionary, column, rows, raw->data + start + head))
        return SPOOL_OK;
    status = buf_put_string(raw, slot->column->name, strlen(slot->column->name));
    if (status == SPOOL_OK)
        status = buf_put_string(raw, TYPE, sizeof(TYPE) - 1);
    if (status == SPOOL_OK)
        status = buf_put_u64le(raw, 1);
    if (status == SPOOL_OK)
        status = buf_put_u64le(raw, INDEX_FLAGS);
    if (status == SPOOL_OK)
        status = buf_put_u64le(raw, dictionary.count);
    if (status == SPOOL_OK)
        status = buf_put_u8(raw, 0);
    for (size_t i = 1; i < dictionary.count && status == SPOOL_OK; i++)
        status = buf_append(raw, dictionary.keys[i].at, (size_t)*dictionary.keys[i].at + 1);
    if (status == SPOOL_OK)
        status = buf_put_u64le(raw, rows);
    if (status == SPOOL_OK) {
        assert(raw->len <= start + head);
        memmove(raw->data + raw->len, raw->data + start + head, rows);
        raw->len += rows;
        *written = true;
    }
    return status;
}
