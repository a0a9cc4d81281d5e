/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths to a trie. "user.id" makes the key "user" with the key "id" below it, and the key
 * "user.id" of the record itself too: both spellings of a flattened table's column feed it.
 */
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
    for (size_t i = 0; i < object->count; i++)
        plan_free(object->keys[i].object);
    free(object->keys);
    free(object->table);
    free(object->expect);
    free(object);
}

/* Linear while the plan is made; NULL when memory is out. */
static struct plan_key *object_key(struct plan_object *object, const char *name, size_t size)
{
    struct plan_key *keys;

    for (size_t i = 0; i < object->count; i++)
        if (object->keys[i].size == size && memcmp(object->keys[i].name, name, size) == 0)
            return &object->keys[i];
    keys = realloc(object->keys, (object->count + 1) * sizeof(*keys));
    if (!keys)
        return NULL;
    object->keys = keys;
    keys[object->count] = (struct plan_key){.name = name, .size = size};
    return &keys[object->count++];
}

/* A path feeds a slot once, in whatever order slots come; a slot may hang on two keys. */
static bool key_add_slot(struct plan_key *key, struct slot *slot)
{
    if (!key->slots) {
        key->slots = slot;
        return true;
    }
    for (struct slot *at = key->slots; at != slot; at = at->next)
        if (!at->next) {
            at->next = slot;
            break;
        }
    return true;
}

static int plan_add(struct plan_object *object, const char *path, struct slot *slot)
{
    const char *dot = strchr(path, '.');
    struct plan_key *key;

    /* an empty part ("a..b", ".a") is no path: the text is a key as it stands */
    if (!dot || dot == path || !dot[1] || strstr(path, "..")) {
        key = object_key(object, path, strlen(path));
        return key && key_add_slot(key, slot) ? SPOOL_OK : SPOOL_E_NOMEM;
    }
    key = object_key(object, path, (size_t)(dot - path));
    if (key && !key->object)
        key->object = object_new();
    if (!key || !key->object)
        return SPOOL_E_NOMEM;
    return plan_add(key->object, dot + 1, slot);
}

/* The tables of finished objects. */
static int plan_finish(struct plan_object *object)
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
        key->simple = key->slots && !key->slots->next && key->slots->node && !key->object;
        if (key->object && plan_finish(key->object) != SPOOL_OK)
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
        const char *path = column->path ? column->path : column->name;
        struct plan_key *key;
        if (column->source != SOURCE_KEY)
            continue;
        status = plan_add(d->root, path, &d->slots[i]);
        if (status == SPOOL_OK && strchr(path, '.')) {
            key = object_key(d->root, path, strlen(path));
            status = key && key_add_slot(key, &d->slots[i]) ? SPOOL_OK : SPOOL_E_NOMEM;
        }
    }
    if (status == SPOOL_OK)
        status = plan_finish(d->root);
    if (status != SPOOL_OK)
        spool_error_set(error, status, "%s", spool_strerror(status));
    return status;
}
