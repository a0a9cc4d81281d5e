/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LowCardinality in its own form, for servers that take a column's exact type only:
 *
 *     u64 version (1, before any offsets around the column)
 *     u64 flags   0x600 + width of an index (0 u8, 1 u16, 2 u32)
 *     u64 keys, the keys as T     key 0 is the default; of a Nullable(T) key 0 is NULL, 1 the default
 *     u64 rows, the indexes
 *
 * and nothing behind the version where there are no rows. A key stands there once, found again by
 * its bytes; undoing a row takes the keys it added out again.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "codec/column.h"

#define FLAGS_OWN_KEYS 0x600u
#define INDEX_BYTES    4 /* while the block is filled */
#define KEYS_FIRST     64

struct low_cardinality {
    size_t *starts;   /* cap + 1: where key i begins in the keys' node */
    uint32_t *hashes; /* cap: of each key */
    uint32_t *slots;  /* 2 * cap: key + 1, open addressing, 0 = free */
    uint32_t count, count_mark;
    uint32_t cap;
    uint32_t reserved; /* 1, or 2 where key 0 is NULL */
};

void low_cardinality_free(struct low_cardinality *keys)
{
    if (!keys)
        return;
    free(keys->starts);
    free(keys->hashes);
    free(keys->slots);
    free(keys);
}

static void put_slot(struct low_cardinality *t, uint32_t key)
{
    uint32_t mask = t->cap * 2 - 1, at = t->hashes[key];

    while (t->slots[at & mask])
        at++;
    t->slots[at & mask] = key + 1;
}

/* Room for one key more. Key 0 of a Nullable is found by nobody: it stands in no slot. */
static int make_room(struct low_cardinality *t)
{
    uint32_t cap = t->cap ? t->cap * 2 : KEYS_FIRST;
    size_t *starts;
    uint32_t *hashes, *slots;

    if (t->count < t->cap)
        return SPOOL_OK;
    if (t->cap > UINT32_MAX / 8)
        return SPOOL_E_LIMIT;
    starts = realloc(t->starts, (cap + 1) * sizeof(*starts));
    if (starts)
        t->starts = starts;
    hashes = realloc(t->hashes, cap * sizeof(*hashes));
    if (hashes)
        t->hashes = hashes;
    slots = calloc((size_t)cap * 2, sizeof(*slots));
    if (!starts || !hashes || !slots) {
        free(slots);
        return SPOOL_E_NOMEM;
    }
    free(t->slots);
    t->slots = slots;
    t->cap = cap;
    for (uint32_t i = t->reserved - 1; i < t->count; i++)
        put_slot(t, i);
    return SPOOL_OK;
}

/* The bytes behind the last key become one; *key is its number, an older one's where it is known. */
static int take_key(struct column *c, bool known_new, uint32_t *key)
{
    struct low_cardinality *t = c->keys;
    struct bytes *data = &c->children[0]->data;
    size_t start, size;
    uint32_t at, hash, found;
    int status = make_room(t);

    if (status != SPOOL_OK)
        return status;
    start = t->count ? t->starts[t->count] : 0;
    size = data->len - start;
    hash = (uint32_t)XXH3_64bits(data->data + start, size);
    for (at = hash; !known_new && (found = t->slots[at & (t->cap * 2 - 1)]) != 0; at++) {
        size_t from = t->starts[found - 1];
        if (t->hashes[found - 1] == hash && t->starts[found] - from == size &&
            memcmp(data->data + from, data->data + start, size) == 0) {
            data->len = start;
            *key = found - 1;
            return SPOOL_OK;
        }
    }
    t->starts[t->count] = start;
    t->starts[t->count + 1] = data->len;
    t->hashes[t->count] = hash;
    *key = t->count++;
    if (*key + 1 >= t->reserved)
        put_slot(t, *key);
    return SPOOL_OK;
}

/* The keys every column has. Called before the first value stands behind them. */
static int reserve_keys(struct column *c)
{
    int status = SPOOL_OK;
    uint32_t key;

    while (c->keys->count < c->keys->reserved && status == SPOOL_OK) {
        status = column_append_zero(c->children[0]);
        if (status == SPOOL_OK)
            status = take_key(c, true, &key);
    }
    return status;
}

int low_cardinality_put(struct column *c, uint32_t key)
{
    int status = reserve_keys(c);

    return status == SPOOL_OK ? column_put(c, key, INDEX_BYTES) : status;
}

/* A value was put behind the keys by somebody who does not know of the reserved ones. */
static int intern_before_reserved(struct column *c)
{
    struct bytes *data = &c->children[0]->data;
    size_t size = data->len;
    uint8_t *copy = malloc(size ? size : 1);
    int status = SPOOL_E_NOMEM;

    if (copy) {
        memcpy(copy, data->data, size);
        data->len = 0;
        status = reserve_keys(c);
    }
    if (status == SPOOL_OK)
        status = column_reserve(c->children[0], size);
    if (status == SPOOL_OK) {
        memcpy(data->data + data->len, copy, size);
        data->len += size;
    }
    free(copy);
    return status;
}

int low_cardinality_intern(struct column *c)
{
    uint32_t key = 0;
    int status = SPOOL_OK;

    if (c->keys->count < c->keys->reserved) /* once a block */
        status = intern_before_reserved(c);
    if (status == SPOOL_OK)
        status = take_key(c, false, &key);
    return status == SPOOL_OK ? column_put(c, key, INDEX_BYTES) : status;
}

static const uint8_t *append_key(struct column *c, struct scan *s, const uint8_t *p)
{
    int status = reserve_keys(c);

    if (status != SPOOL_OK)
        return scan_fail(s, status);
    p = c->children[0]->append(c->children[0], s, p);
    if (!p)
        return NULL;
    status = low_cardinality_intern(c);
    return status == SPOOL_OK ? p : scan_fail(s, status);
}

void low_cardinality_mark(struct column *c)
{
    c->keys->count_mark = c->keys->count;
}

/* The youngest first: then no chain of slots is cut before an older key. */
void low_cardinality_rollback(struct column *c)
{
    struct low_cardinality *t = c->keys;

    while (t->count > t->count_mark) {
        uint32_t mask = t->cap * 2 - 1, at = t->hashes[--t->count];
        if (t->count + 1 < t->reserved)
            continue;
        while (t->slots[at & mask] != t->count + 1)
            at++;
        t->slots[at & mask] = 0;
    }
}

void low_cardinality_reset(struct column *c)
{
    struct low_cardinality *t = c->keys;

    t->count_mark = 0;
    if (t->count < t->cap / 4 && t->cap > KEYS_FIRST) {
        free(t->starts);
        free(t->hashes);
        free(t->slots);
        t->starts = NULL;
        t->hashes = t->slots = NULL;
        t->count = t->cap = 0;
    } else if (t->cap) {
        memset(t->slots, 0, (size_t)t->cap * 2 * sizeof(*t->slots));
        t->count = 0;
    }
}

/* As a power of two: the width of an index. */
static unsigned index_width(const struct low_cardinality *t)
{
    return t->count <= 0x100 ? 0 : t->count <= 0x10000 ? 1 : 2;
}

size_t low_cardinality_bytes(const struct column *c)
{
    size_t rows = c->data.len / INDEX_BYTES;

    return rows ? 24 + c->children[0]->data.len + (rows << index_width(c->keys)) : 0;
}

int low_cardinality_write(const struct column *c, struct buf *out)
{
    size_t rows = c->data.len / INDEX_BYTES;
    unsigned width = index_width(c->keys);
    int status;

    if (rows == 0)
        return SPOOL_OK;
    status = buf_put_u64le(out, FLAGS_OWN_KEYS + width);
    if (status == SPOOL_OK)
        status = buf_put_u64le(out, c->keys->count);
    if (status == SPOOL_OK)
        status = buf_append(out, c->children[0]->data.data, c->children[0]->data.len);
    if (status == SPOOL_OK)
        status = buf_put_u64le(out, rows);
    if (status == SPOOL_OK)
        status = buf_reserve(out, rows << width);
    for (size_t i = 0; i < rows && status == SPOOL_OK; i++)
        status = buf_append(out, c->data.data + i * INDEX_BYTES, (size_t)1 << width);
    return status;
}

int column_make_low_cardinality(struct column *c, const struct type *type,
                                const struct column_context *context, struct spool_error *error)
{
    const struct type *keys = type->children[0];

    c->kind = TYPE_LOW_CARDINALITY;
    c->type = type;
    c->form = FORM_LOW_CARDINALITY;
    c->composite = true;
    c->append = append_key;
    c->children = calloc(1, sizeof(struct column *));
    c->keys = calloc(1, sizeof(*c->keys));
    if (!c->children || !c->keys)
        return SPOOL_E_NOMEM;
    if (keys->kind == TYPE_NULLABLE) {
        c->nullable = true;
        keys = keys->children[0];
    }
    c->keys->reserved = c->nullable ? 2 : 1;
    return column_add_child(c, keys, keys, context, error);
}
