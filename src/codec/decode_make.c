/* SPDX-License-Identifier: Apache-2.0 */
/* Making a decoder for a schema, and taking it apart. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/decode_int.h"

#define VARUINT_BYTES 10

static int make_slot(struct decoder *d, size_t i, struct spool_error *error)
{
    const struct schema_column *column = &d->schema->columns[i];
    struct slot *slot = &d->slots[i];
    struct column_context context = {.max_bytes = d->max_raw_bytes,
                                     .truncate = column->truncate,
                                     .timezone = d->schema->server_timezone,
                                     .c_locale = d->c_locale,
                                     .zones = &d->zones};
    struct spool_error why = {0};
    int status;

    slot->column = column;
    buf_init(&slot->place, LIMIT_RECORD_BYTES);
    buf_init(&slot->encoded, LIMIT_RECORD_BYTES);
    if (d->schema->format == FORMAT_JSON && column->unchecked)
        return SPOOL_OK;
    status = column_create(column->type, column->wire, &context, &slot->node, &why);
    if (status != SPOOL_OK)
        return spool_error_set(error, status, "column %s: %s", column->name,
                               why.text[0] ? why.text : spool_strerror(status));
    slot->may_leave = d->schema->format == FORMAT_NATIVE && column->default_by_server &&
                      !schema_null_is_default(column);
    slot->may_index = d->schema->format == FORMAT_NATIVE && dictionary_fits(slot, d->schema);
    return SPOOL_OK;
}

static int make_literal(struct decoder *d, struct slot *slot, struct spool_error *error)
{
    const char *text = slot->column->source == SOURCE_CONSTANT ? slot->column->literal
                                                               : slot->column->default_json;

    return text ? slot_set_literal(d, slot, text, error) : SPOOL_OK;
}

/* Sorts the slots by where their values come from and by how their bytes are counted. */
static int make_lists(struct decoder *d)
{
    size_t n = d->slot_count ? d->slot_count : 1;

    d->others = calloc(n, sizeof(*d->others));
    d->variable = calloc(n, sizeof(*d->variable));
    d->leaving = calloc(n, sizeof(*d->leaving));
    if (!d->others || !d->variable || !d->leaving)
        return SPOOL_E_NOMEM;
    d->is_bounded = true;
    for (size_t i = 0; i < d->slot_count; i++) {
        struct slot *slot = &d->slots[i];
        enum column_source source = slot->column->source;
        if (source == SOURCE_KEY)
            d->key_slots++;
        else
            d->others[d->other_count++] = slot;
        if (source == SOURCE_HEADERS)
            d->wants |= RECORD_WANTS_HEADERS;
        if (source == SOURCE_TIMESTAMP)
            d->wants |= RECORD_WANTS_TIMESTAMP;
        d->has_rest |= source == SOURCE_REST;
        if (slot->may_leave)
            d->leaving[d->leaving_count++] = slot;
        if (!slot->node)
            continue;
        if (slot->node->composite || slot->node->width == 0) {
            d->variable[d->variable_count++] = slot;
            d->row_bytes_most += VARUINT_BYTES + 1 + slot->node->width + slot->encoded.len;
        } else {
            d->row_bytes += slot->node->width;
        }
        /* a String's value is never longer than its text; how much else there is nobody knows */
        if (slot->node->child_count || (slot->node->width == 0 && source != SOURCE_KEY))
            d->is_bounded = false;
    }
    d->row_bytes_most += d->row_bytes;
    return SPOOL_OK;
}

/* What stands in front of each column's bytes: its name and its wire type. */
static int make_head(struct decoder *d)
{
    struct buf text;
    int status = SPOOL_OK;

    d->head_end = calloc(d->slot_count ? d->slot_count : 1, sizeof(*d->head_end));
    if (!d->head_end)
        return SPOOL_E_NOMEM;
    buf_init(&text, LIMIT_SCHEMA_BYTES);
    for (size_t i = 0; i < d->slot_count && status == SPOOL_OK; i++) {
        const struct schema_column *column = &d->schema->columns[i];
        buf_reset(&text);
        status = buf_put_string(&d->head, column->name, strlen(column->name));
        if (status == SPOOL_OK && column->wire)
            status = type_format(column->wire, &text);
        if (status == SPOOL_OK)
            status = buf_put_string(&d->head, text.data, text.len);
        d->head_end[i] = d->head.len;
    }
    buf_free(&text);
    d->head_bytes = d->head.len + 2 + 5; /* and the counts of columns and rows, at most */
    return status;
}

/* `n.a` and `n.b`, both arrays: one table's Nested. */
static bool is_nested(const struct slot *slot, size_t *prefix)
{
    const char *dot = strchr(slot->column->name, '.');

    if (!dot || !slot->node || slot->node->kind != TYPE_ARRAY)
        return false;
    *prefix = (size_t)(dot - slot->column->name) + 1;
    return true;
}

static int make_groups(struct decoder *d)
{
    for (size_t i = 0; i < d->slot_count; i++) {
        const char *name = d->slots[i].column->name;
        struct nested_group *groups, *group = NULL;
        struct slot **slots;
        size_t prefix, other;
        if (!is_nested(&d->slots[i], &prefix))
            continue;
        for (size_t g = 0; g < d->group_count && !group; g++)
            if (is_nested(d->groups[g].slots[0], &other) && other == prefix &&
                memcmp(d->groups[g].slots[0]->column->name, name, prefix) == 0)
                group = &d->groups[g];
        if (!group) {
            groups = realloc(d->groups, (d->group_count + 1) * sizeof(*groups));
            if (!groups)
                return SPOOL_E_NOMEM;
            d->groups = groups;
            group = &groups[d->group_count++];
            *group = (struct nested_group){0};
        }
        slots = realloc(group->slots, (group->count + 1) * sizeof(struct slot *));
        if (!slots) {
            if (!group->count)
                d->group_count--;
            return SPOOL_E_NOMEM;
        }
        group->slots = slots;
        slots[group->count++] = &d->slots[i];
    }
    return SPOOL_OK;
}

int decoder_create(const struct schema *schema, size_t max_raw_bytes, struct decoder **out,
                   struct spool_error *error)
{
    struct decoder *d = calloc(1, sizeof(*d));
    int status = SPOOL_OK;

    *out = NULL;
    if (!d)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    assert(schema->format == FORMAT_NATIVE || schema->format == FORMAT_JSON);
    d->schema = schema;
    d->max_raw_bytes = max_raw_bytes;
    d->slot_count = schema->count;
    d->place.partition = -1;
    buf_init(&d->head, LIMIT_SCHEMA_BYTES);
    buf_init(&d->scratch, max_raw_bytes);
    buf_init(&d->rest, max_raw_bytes);
    buf_init(&d->fact, max_raw_bytes);
    buf_init(&d->done, max_raw_bytes);
    d->c_locale = newlocale(LC_ALL_MASK, "C", NULL);
    d->slots = calloc(schema->count ? schema->count : 1, sizeof(*d->slots));
    if (!d->c_locale || !d->slots)
        status = SPOOL_E_NOMEM;
    for (size_t i = 0; i < d->slot_count && status == SPOOL_OK; i++)
        status = make_slot(d, i, error);
    for (size_t i = 0; i < d->slot_count && status == SPOOL_OK; i++)
        status = make_literal(d, &d->slots[i], error);
    if (status == SPOOL_OK)
        status = make_lists(d);
    if (status == SPOOL_OK && schema->format == FORMAT_NATIVE)
        status = make_head(d);
    if (status == SPOOL_OK)
        status = make_groups(d);
    if (status == SPOOL_OK)
        status = plan_create(d, error);
    if (status == SPOOL_OK) {
        *out = d;
        return SPOOL_OK;
    }
    if (status == SPOOL_E_NOMEM)
        spool_error_set(error, status, "out of memory");
    decoder_free(d);
    return status;
}

void decoder_free(struct decoder *d)
{
    if (!d)
        return;
    for (size_t i = 0; d->slots && i < d->slot_count; i++) {
        column_free(d->slots[i].node);
        buf_free(&d->slots[i].place);
        buf_free(&d->slots[i].encoded);
    }
    for (size_t i = 0; i < d->group_count; i++)
        free(d->groups[i].slots);
    free(d->groups);
    free(d->slots);
    free(d->others);
    free(d->variable);
    free(d->leaving);
    free(d->head_end);
    plan_free(d->root);
    zone_list_free(&d->zones);
    if (d->c_locale)
        freelocale(d->c_locale);
    buf_free(&d->head);
    buf_free(&d->scratch);
    buf_free(&d->rest);
    buf_free(&d->fact);
    buf_free(&d->done);
    free(d);
}
