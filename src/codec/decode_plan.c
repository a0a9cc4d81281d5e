/* SPDX-License-Identifier: Apache-2.0 */
/* Paths to a trie: "user.id" makes the key "user" with the key "id" below it. */
#include <stdlib.h>
#include <string.h>

#include "codec/decode_int.h"

static uint32_t key_hash(const void *name, size_t size)
{
    const uint8_t *p = name;
    uint32_t h = 2166136261u;

    for (size_t i = 0; i < size; i++)
        h = (h ^ p[i]) * 16777619u;
    return h ^ h >> 15;
}

struct plan_key *plan_find(const struct plan_object *object, const uint8_t *name, size_t size)
{
    uint32_t at = key_hash(name, size);

    for (;; at++) {
        uint32_t slot = object->table[at & object->mask];
        struct plan_key *key;
        if (!slot)
            return NULL;
        key = &object->keys[slot - 1];
        if (key->size == size && memcmp(key->name, name, size) == 0)
            return key;
    }
}

static struct plan_object *object_new(void)
{
    return calloc(1, sizeof(struct plan_object));
}

void plan_free(struct plan_object *object)
{
    if (!object)
        return;
    for (size_t i = 0; i < object->count; i++) {
        free(object->keys[i].name);
        plan_free(object->keys[i].object);
    }
    free(object->keys);
    free(object->table);
    free(object->expect);
    free(object);
}

/* Linear while the plan is made; NULL when memory is out. */
static struct plan_key *object_key(struct plan_object *object, const char *name, size_t size)
{
    struct plan_key *keys;
    char *copy;

    for (size_t i = 0; i < object->count; i++)
        if (object->keys[i].size == size && memcmp(object->keys[i].name, name, size) == 0)
            return &object->keys[i];
    copy = malloc(size + 1);
    keys = realloc(object->keys, (object->count + 1) * sizeof(*keys));
    if (keys)
        object->keys = keys;
    if (!keys || !copy) {
        free(copy);
        return NULL;
    }
    memcpy(copy, name, size);
    keys[object->count] = (struct plan_key){.name = copy, .size = size};
    return &keys[object->count++];
}

static void key_add_slot(struct plan_key *key, struct slot *slot)
{
    struct slot **at = &key->slots;

    while (*at)
        at = &(*at)->next;
    *at = slot;
}

static int plan_add(struct decoder *d, const char *path, struct slot *slot)
{
    struct plan_object *object = d->root;
    char *name = malloc(strlen(path) + 1);
    struct plan_key *key = NULL;
    size_t size;
    int status = SPOOL_OK;

    if (!name)
        return SPOOL_E_NOMEM;
    while (status == SPOOL_OK && schema_path_next(&path, name, &size)) {
        if (key && !key->object)
            key->object = object_new();
        if (key)
            object = key->object;
        key = object ? object_key(object, name, size) : NULL;
        if (!key)
            status = SPOOL_E_NOMEM;
    }
    free(name);
    if (key)
        key_add_slot(key, slot);
    return status;
}

/* The tables of finished objects. */
static int plan_finish(struct plan_object *object, enum schema_format format)
{
    uint32_t size = 4;
    size_t expect = object->count * 2 + 16;

    if (expect > EXPECT_MAX)
        expect = EXPECT_MAX;
    while (size < object->count * 2 + 1)
        size *= 2;
    object->mask = size - 1;
    object->table = calloc(size, sizeof(*object->table));
    object->expect = calloc(expect + 1, sizeof(*object->expect));
    if (!object->table || !object->expect)
        return SPOOL_E_NOMEM;
    object->expect_last = object->expect + expect;
    for (size_t i = 0; i < object->count; i++) {
        struct plan_key *key = &object->keys[i];
        uint32_t at = key_hash(key->name, key->size);
        while (object->table[at & object->mask])
            at++;
        object->table[at & object->mask] = (uint32_t)i + 1;
        key->simple = format == FORMAT_NATIVE && key->slots && !key->slots->next && !key->object;
        if (key->object && plan_finish(key->object, format) != SPOOL_OK)
            return SPOOL_E_NOMEM;
    }
    return SPOOL_OK;
}

int plan_create(struct decoder *d, struct spool_error *error)
{
    int status = SPOOL_OK;

    d->root = object_new();
    if (!d->root)
        status = SPOOL_E_NOMEM;
    for (size_t i = 0; i < d->slot_count && status == SPOOL_OK; i++) {
        const struct schema_column *column = d->slots[i].column;
        if (column->source == SOURCE_KEY)
            status = plan_add(d, column->path, &d->slots[i]);
    }
    if (status == SPOOL_OK)
        status = plan_finish(d->root, d->schema->format);
    if (status != SPOOL_OK)
        spool_error_set(error, status, "%s", spool_strerror(status));
    return status;
}
