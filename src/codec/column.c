/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/column.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/json_simd.h"

#define KEEP_BYTES (1 * MIB) /* a buffer above this, and four times what was used, is given back */

int column_grow(struct bytes *b, size_t extra, size_t max)
{
    size_t need, cap;
    uint8_t *data;

    if (extra > max || b->len > max - extra)
        return SPOOL_E_LIMIT;
    need = b->len + extra;
    if (need <= b->cap && b->data)
        return SPOOL_OK;
    cap = b->cap ? b->cap : 1024;
    while (cap < need)
        cap *= 2;
    data = realloc(b->data, cap + COLUMN_SLACK_BYTES);
    if (!data)
        return SPOOL_E_NOMEM;
    b->data = data;
    b->cap = cap;
    return SPOOL_OK;
}

static int put_null_flag(struct column *c, uint8_t flag)
{
    if (c->nulls.cap == c->nulls.len) {
        int status = column_grow(&c->nulls, 1, c->max);
        if (status != SPOOL_OK)
            return status;
    }
    c->nulls.data[c->nulls.len++] = flag;
    return SPOOL_OK;
}

static const uint8_t *append_flagged(struct column *c, struct scan *s, const uint8_t *p)
{
    int status;

    p = c->append_value(c, s, p);
    if (!p)
        return NULL;
    status = put_null_flag(c, 0);
    return status == SPOOL_OK ? p : scan_fail(s, status);
}

int column_append_not_null(struct column *c)
{
    return c->wire_nullable ? put_null_flag(c, 0) : SPOOL_OK;
}

/* ---- zones ---- */

void zone_list_free(struct zone_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].name);
        tz_zone_free(list->items[i].zone);
    }
    free(list->items);
    memset(list, 0, sizeof(*list));
}

int zone_list_get(struct zone_list *list, const char *name, const struct tz_zone **zone,
                  struct spool_error *error)
{
    struct tz_zone *loaded = NULL;
    void *items;
    char *copy;
    int status;

    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].name, name) == 0) {
            *zone = list->items[i].zone;
            return SPOOL_OK;
        }
    status = tz_zone_load(name, &loaded, error);
    if (status != SPOOL_OK)
        return status;
    items = realloc(list->items, (list->count + 1) * sizeof(*list->items));
    if (items)
        list->items = items;
    copy = strdup(name);
    if (!items || !copy) {
        free(copy);
        tz_zone_free(loaded);
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    }
    list->items[list->count].name = copy;
    list->items[list->count].zone = loaded;
    list->count++;
    *zone = loaded;
    return SPOOL_OK;
}

/* ---- arrays ---- */

static int append_element(struct column *child, struct scan *s)
{
    int status;

    if (*s->p != 'n')
        return column_append(child, s);
    status = json_literal(s, "null", 4);
    if (status != SPOOL_OK)
        return status;
    if (child->nullable)
        return column_append_null(child);
    if (s->strict || child->kind == TYPE_ENUM8 || child->kind == TYPE_ENUM16)
        return scan_refuse_at(s, s->p - 4, REFUSAL_NULL, "null in an array of %s",
                              column_type_text(child));
    return column_append_zero(child);
}

/* A comma before the closing bracket is taken, as JSONEachRow does. */
static int array_value(struct column *c, struct scan *s)
{
    int status;

    if (*s->p != '[')
        return scan_refuse(s, REFUSAL_TYPE, "%s takes an array", column_type_text(c));
    if (s->depth >= LIMIT_JSON_DEPTH)
        return scan_refuse(s, REFUSAL_DEPTH, "nested deeper than %d levels", LIMIT_JSON_DEPTH);
    s->depth++;
    s->p = json_blank(s->p + 1, s->end);
    while (s->p < s->end && *s->p != ']') {
        status = append_element(c->child, s);
        if (status != SPOOL_OK)
            return status;
        c->count++;
        s->p = json_blank(s->p, s->end);
        if (s->p < s->end && *s->p == ',') {
            s->p = json_blank(s->p + 1, s->end);
            continue;
        }
        if (s->p == s->end || *s->p != ']')
            return scan_refuse_token(s, "a comma or the end of the array");
    }
    if (s->p == s->end)
        return scan_refuse_token(s, "the end of the array");
    s->p++;
    s->depth--;
    return column_put(c, c->count, 8);
}

static const uint8_t *append_array(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, array_value(c, s));
}

/* ---- making ---- */

/* LowCardinality is a way to store, SimpleAggregateFunction one to merge; the values are T's. */
static const struct type *plain(const struct type *t)
{
    while (t->kind == TYPE_LOW_CARDINALITY || t->kind == TYPE_SIMPLE_AGGREGATE)
        t = t->children[0];
    return t;
}

/* Kinds whose bytes are the same as those of the wire's kind. */
static bool same_bytes(const struct type *type, const struct type *wire)
{
    if (type->kind == wire->kind)
        return type->kind == TYPE_ARRAY || type->kind == TYPE_STRING ||
               (type->width == wire->width && type->scale == wire->scale);
    switch (type->kind) {
    case TYPE_BOOL:
        return wire->kind == TYPE_UINT8;
    case TYPE_ENUM8:
        return wire->kind == TYPE_INT8;
    case TYPE_ENUM16:
        return wire->kind == TYPE_INT16;
    case TYPE_DATE:
        return wire->kind == TYPE_UINT16;
    case TYPE_DATE32:
        return wire->kind == TYPE_INT32;
    case TYPE_DATETIME:
        return wire->kind == TYPE_UINT32;
    default:
        return false;
    }
}

static bool wants_zone(enum type_kind kind)
{
    return kind == TYPE_DATETIME || kind == TYPE_DATETIME64;
}

static int unsupported(const struct type *type, const struct type *wire, struct spool_error *error)
{
    return spool_error_set(error, SPOOL_E_UNSUPPORTED, "%.100s can't be encoded as %.100s",
                           type->text ? type->text : "the type",
                           wire->text ? wire->text : "its wire type");
}

int column_create(const struct type *type, const struct type *wire,
                  const struct column_context *context, struct column **out,
                  struct spool_error *error)
{
    struct column *c;
    int status = SPOOL_OK;

    *out = NULL;
    if (wire->kind == TYPE_LOW_CARDINALITY)
        return unsupported(type, wire, error);
    c = calloc(1, sizeof(*c));
    if (!c)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    type = plain(type);
    wire = plain(wire);
    if (type->kind == TYPE_NULLABLE) {
        c->nullable = true;
        type = plain(type->children[0]);
    }
    if (wire->kind == TYPE_NULLABLE) {
        c->wire_nullable = true;
        wire = plain(wire->children[0]);
    }
    c->composite = c->wire_nullable || type->kind == TYPE_ARRAY;
    c->kind = type->kind;
    c->type = type;
    c->width = type->width;
    c->scale = type->scale;
    c->precision = type->precision;
    c->truncate = context->truncate;
    c->max = context->max_bytes;
    c->c_locale = context->c_locale;
    if (!same_bytes(type, wire) || (c->nullable && !c->wire_nullable)) {
        status = unsupported(type, wire, error);
        goto done;
    }
    if (wants_zone(type->kind)) {
        const struct tz_zone *zone;
        const char *name = type->timezone ? type->timezone : context->timezone;
        status = zone_list_get(context->zones, name && *name ? name : "UTC", &zone, error);
        if (status != SPOOL_OK)
            goto done;
        local_clock_init(&c->clock, zone);
    }
    if (type->kind == TYPE_ARRAY) {
        c->append = append_array;
        c->width = 0;
        status = column_create(type->children[0], wire->children[0], context, &c->child, error);
        goto done;
    }
    if (type->kind == TYPE_ENUM8 || type->kind == TYPE_ENUM16) {
        status = enum_index_create(&c->members, type);
        if (status != SPOOL_OK)
            goto done;
    }
    if (!column_set_number(c) && !column_set_text(c) && !column_set_time(c))
        status = unsupported(type, wire, error);
done:
    if (status == SPOOL_OK && c->wire_nullable) {
        c->append_value = c->append;
        c->append = append_flagged;
    }
    if (status == SPOOL_OK)
        *out = c;
    else
        column_free(c);
    return status;
}

void column_free(struct column *c)
{
    if (!c)
        return;
    column_free(c->child);
    free(c->data.data);
    free(c->nulls.data);
    free(c->members.slots);
    free(c);
}

/* ---- rows ---- */

void column_mark_all(struct column *c)
{
    c->data.mark = c->data.len;
    c->nulls.mark = c->nulls.len;
    c->count_mark = c->count;
    if (c->child)
        column_mark_all(c->child);
}

void column_rollback(struct column *c)
{
    c->data.len = c->data.mark;
    if (!c->composite)
        return;
    c->nulls.len = c->nulls.mark;
    c->count = c->count_mark;
    if (c->child)
        column_rollback(c->child);
}

static int put_zero(struct column *c)
{
    uint32_t left = c->width;
    int status;

    switch (c->kind) {
    case TYPE_STRING:
        return column_put(c, 0, 1);
    case TYPE_ARRAY:
        return column_put(c, c->count, 8);
    case TYPE_ENUM8:
    case TYPE_ENUM16: /* as ClickHouse: the member with the least number */
        return column_put(c, (uint64_t)(int64_t)c->type->members[0].value, c->width);
    default:
        status = column_reserve(c, left);
        if (status != SPOOL_OK)
            return status;
        memset(c->data.data + c->data.len, 0, left);
        c->data.len += left;
        return SPOOL_OK;
    }
}

/* put_zero of an Enum is a member; below a NULL it only must be one that can be read. */
int column_append_null(struct column *c)
{
    int status;

    assert(c->wire_nullable);
    status = put_null_flag(c, 1);
    return status == SPOOL_OK ? put_zero(c) : status;
}

int column_append_zero(struct column *c)
{
    int status = SPOOL_OK;

    if (c->nullable)
        return column_append_null(c);
    if (c->wire_nullable)
        status = put_null_flag(c, 0);
    return status == SPOOL_OK ? put_zero(c) : status;
}

/* ---- blocks ---- */

size_t column_bytes(const struct column *c)
{
    size_t n = c->data.len + c->nulls.len;

    return c->child ? n + column_bytes(c->child) : n;
}

int column_write(const struct column *c, struct buf *out)
{
    int status = buf_append(out, c->nulls.data, c->nulls.len);

    if (status == SPOOL_OK)
        status = buf_append(out, c->data.data, c->data.len);
    if (status == SPOOL_OK && c->child)
        status = column_write(c->child, out);
    return status;
}

static void bytes_reset(struct bytes *b)
{
    if (b->cap > KEEP_BYTES && b->len < b->cap / 4) {
        free(b->data);
        b->data = NULL;
        b->cap = 0;
    }
    b->len = b->mark = 0;
}

void column_reset(struct column *c)
{
    bytes_reset(&c->data);
    bytes_reset(&c->nulls);
    c->count = c->count_mark = 0;
    if (c->child)
        column_reset(c->child);
}

const char *column_type_text(const struct column *c)
{
    return c->type->text ? c->type->text : "the type";
}
