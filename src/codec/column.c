/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/column.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/json_simd.h"
#include "codec/native_int.h"

#define TUPLE_EMPTY  '0' /* what a Tuple without elements has a row */
#define VARIANT_NULL NATIVE_VARIANT_NULL
#define KEEP_BYTES   (1 * MIB) /* a buffer above this, and four times what was used, is given back */

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
        return type->width == wire->width && type->scale == wire->scale &&
               type->child_count == wire->child_count;
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
    case TYPE_INTERVAL:
        return wire->kind == TYPE_INT64;
    case TYPE_JSON:
        return wire->kind == TYPE_STRING;
    case TYPE_DYNAMIC:
        return wire->kind == TYPE_VARIANT;
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

int column_add_child(struct column *c, const struct type *type, const struct type *wire,
                     const struct column_context *context, struct spool_error *error)
{
    int status = column_create(type, wire, context, &c->children[c->child_count], error);

    if (status == SPOOL_OK)
        c->child_count++;
    return status;
}

static int set_zone(struct column *c, const struct column_context *context,
                    struct spool_error *error)
{
    const char *name = c->type->timezone ? c->type->timezone : context->timezone;
    const struct tz_zone *zone;
    int status = zone_list_get(context->zones, name && *name ? name : "UTC", &zone, error);

    if (status == SPOOL_OK)
        local_clock_init(&c->clock, zone);
    return status;
}

/* The form, the append function and what they need; c->type is below Nullable. */
static int make(struct column *c, const struct type *wire, const struct column_context *context,
                struct spool_error *error)
{
    const struct type *type = c->type;
    int status = SPOOL_OK;

    if (wire->child_count) {
        c->children = calloc(wire->child_count, sizeof(struct column *));
        if (!c->children)
            return SPOOL_E_NOMEM;
    }
    switch (type->kind) {
    case TYPE_TUPLE:
    case TYPE_POINT:
        return column_make_tuple(c, type, wire, context, error);
    case TYPE_VARIANT:
        if (!type_equal(type, wire))
            return unsupported(type, wire, error);
        return column_make_variant(c, wire, context, error);
    case TYPE_DYNAMIC:
        return column_make_variant(c, wire, context, error);
    case TYPE_JSON:
        return column_make_object(c);
    default:
        break;
    }
    if (type_is_list(type->kind))
        return column_make_list(c, type, wire, context, error);
    if (wants_zone(type->kind))
        status = set_zone(c, context, error);
    else if (type->kind == TYPE_ENUM8 || type->kind == TYPE_ENUM16)
        status = enum_index_create(&c->members, type);
    if (status != SPOOL_OK)
        return status;
    if (column_set_number(c) || column_set_wide(c) || column_set_text(c) || column_set_time(c))
        return SPOOL_OK;
    return unsupported(type, wire, error);
}

int column_create(const struct type *type, const struct type *wire,
                  const struct column_context *context, struct column **out,
                  struct spool_error *error)
{
    struct column *c;
    int status = SPOOL_OK;

    *out = NULL;
    c = calloc(1, sizeof(*c));
    if (!c)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    c->max = context->max_bytes;
    c->c_locale = context->c_locale;
    c->truncate = context->truncate;
    if (wire->kind == TYPE_LOW_CARDINALITY) {
        status = type->kind == wire->kind ? column_make_low_cardinality(c, type, context, error)
                                          : unsupported(type, wire, error);
        goto done;
    }
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
    if (type->kind == TYPE_DYNAMIC || type->kind == TYPE_VARIANT)
        c->nullable = true;
    c->composite = c->wire_nullable || wire->child_count;
    c->kind = type->kind;
    c->type = type;
    c->width = type->width;
    c->scale = type->scale;
    c->precision = type->precision;
    if (!same_bytes(type, wire) || (c->nullable && !c->wire_nullable && wire->kind != TYPE_VARIANT))
        status = unsupported(type, wire, error);
    else
        status = make(c, wire, context, error);
    if (status == SPOOL_OK && c->wire_nullable) {
        c->append_value = c->append;
        c->append = append_flagged;
    }
done:
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
    for (size_t i = 0; i < c->child_count; i++)
        column_free(c->children[i]);
    free(c->children);
    free(c->data.data);
    free(c->nulls.data);
    free(c->members.slots);
    free(c->seen);
    free(c->name_sizes);
    free(c->order);
    free(c->saved);
    low_cardinality_free(c->keys);
    object_paths_free(c->paths);
    free(c);
}

/* ---- rows ---- */

void column_mark_all(struct column *c)
{
    c->data.mark = c->data.len;
    c->nulls.mark = c->nulls.len;
    c->count_mark = c->count;
    if (c->form == FORM_LOW_CARDINALITY)
        low_cardinality_mark(c);
    for (size_t i = 0; i < c->child_count; i++)
        column_mark_all(c->children[i]);
}

void column_rollback(struct column *c)
{
    c->data.len = c->data.mark;
    if (!c->composite)
        return;
    c->nulls.len = c->nulls.mark;
    c->count = c->count_mark;
    if (c->form == FORM_LOW_CARDINALITY)
        low_cardinality_rollback(c);
    for (size_t i = 0; i < c->child_count; i++)
        column_rollback(c->children[i]);
}

static int put_zeros(struct column *c, size_t n)
{
    int status = column_reserve(c, n);

    if (status != SPOOL_OK)
        return status;
    memset(c->data.data + c->data.len, 0, n);
    c->data.len += n;
    return SPOOL_OK;
}

static int put_zero_elements(struct column *c)
{
    int status = c->child_count ? SPOOL_OK : column_put(c, TUPLE_EMPTY, 1);

    for (size_t i = 0; i < c->child_count && status == SPOOL_OK; i++)
        status = column_append_zero(c->children[i]);
    return status;
}

static int put_zero(struct column *c)
{
    switch (c->form) {
    case FORM_LIST:
        return column_put(c, c->count, 8);
    case FORM_TUPLE:
        return put_zero_elements(c);
    case FORM_VARIANT:
        return column_put(c, VARIANT_NULL, 1);
    case FORM_LOW_CARDINALITY:
        return low_cardinality_put(c, 0);
    case FORM_PLAIN:
        break;
    }
    switch (c->kind) {
    case TYPE_STRING:
        return column_put(c, 0, 1);
    case TYPE_JSON:
        return column_put_string(c, "{}", 2);
    case TYPE_ENUM8:
    case TYPE_ENUM16: /* as ClickHouse: the member with the least number */
        return column_put(c, (uint64_t)(int64_t)c->type->members[0].value, c->width);
    default:
        return put_zeros(c, c->width);
    }
}

/* put_zero of an Enum is a member; below a NULL it only must be one that can be read. */
int column_append_null(struct column *c)
{
    int status;

    if (c->form == FORM_VARIANT || c->form == FORM_LOW_CARDINALITY) /* their zero is NULL */
        return put_zero(c);
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

int column_append_number(struct column *c, uint64_t v)
{
    int status;

    if (c->form != FORM_LOW_CARDINALITY) {
        status = column_put(c, v, c->width);
        return status == SPOOL_OK ? column_append_not_null(c) : status;
    }
    status = column_put(c->children[0], v, c->children[0]->width);
    return status == SPOOL_OK ? low_cardinality_intern(c) : status;
}

/* ---- blocks ---- */

/* LowCardinality and Variant begin a column with their version, before any offsets around them. */
static bool has_version(const struct column *c)
{
    return c->form == FORM_LOW_CARDINALITY || c->form == FORM_VARIANT;
}

size_t column_bytes(const struct column *c)
{
    size_t n = has_version(c) ? 8 : 0;

    if (c->form == FORM_LOW_CARDINALITY)
        return n + low_cardinality_bytes(c);
    n += c->data.len + c->nulls.len;
    for (size_t i = 0; i < c->child_count; i++)
        n += column_bytes(c->children[i]);
    return n;
}

static int write_versions(const struct column *c, struct buf *out)
{
    int status = SPOOL_OK;

    if (c->form == FORM_LOW_CARDINALITY)
        return buf_put_u64le(out, NATIVE_LOW_CARDINALITY_VERSION);
    if (c->form == FORM_VARIANT)
        status = buf_put_u64le(out, NATIVE_VARIANT_BASIC);
    for (size_t i = 0; i < c->child_count && status == SPOOL_OK; i++)
        status = write_versions(c->children[i], out);
    return status;
}

static int write_data(const struct column *c, struct buf *out)
{
    int status;

    if (c->form == FORM_LOW_CARDINALITY)
        return low_cardinality_write(c, out);
    status = buf_append(out, c->nulls.data, c->nulls.len);
    if (status == SPOOL_OK)
        status = buf_append(out, c->data.data, c->data.len);
    for (size_t i = 0; i < c->child_count && status == SPOOL_OK; i++)
        status = write_data(c->children[i], out);
    return status;
}

int column_write(const struct column *c, struct buf *out)
{
    int status = write_versions(c, out);

    return status == SPOOL_OK ? write_data(c, out) : status;
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
    if (c->form == FORM_LOW_CARDINALITY)
        low_cardinality_reset(c);
    bytes_reset(&c->data);
    bytes_reset(&c->nulls);
    c->count = c->count_mark = 0;
    for (size_t i = 0; i < c->child_count; i++)
        column_reset(c->children[i]);
}

const char *column_type_text(const struct column *c)
{
    return c->type->text ? c->type->text : "the type";
}
