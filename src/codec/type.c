/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/type.h"

#include <assert.h>
#include <stdlib.h>

#include "codec/type_int.h"

#define NAME_GROWTH_MAX 16 /* of a name against the text it was written as */

const struct type_name type_names[] = {
    {"Int8", TYPE_INT8, SHAPE_SIZE, 1, NULL},
    {"Int16", TYPE_INT16, SHAPE_SIZE, 2, NULL},
    {"Int32", TYPE_INT32, SHAPE_SIZE, 4, NULL},
    {"Int64", TYPE_INT64, SHAPE_SIZE, 8, NULL},
    {"Int128", TYPE_INT128, SHAPE_SIZE, 16, NULL},
    {"Int256", TYPE_INT256, SHAPE_SIZE, 32, NULL},
    {"UInt8", TYPE_UINT8, SHAPE_SIZE, 1, NULL},
    {"UInt16", TYPE_UINT16, SHAPE_SIZE, 2, NULL},
    {"UInt32", TYPE_UINT32, SHAPE_SIZE, 4, NULL},
    {"UInt64", TYPE_UINT64, SHAPE_SIZE, 8, NULL},
    {"UInt128", TYPE_UINT128, SHAPE_SIZE, 16, NULL},
    {"UInt256", TYPE_UINT256, SHAPE_SIZE, 32, NULL},
    {"Float32", TYPE_FLOAT32, SHAPE_SIZES, 4, NULL},
    {"Float64", TYPE_FLOAT64, SHAPE_SIZES, 8, NULL},
    {"BFloat16", TYPE_BFLOAT16, SHAPE_SIZES, 2, NULL},
    {"Bool", TYPE_BOOL, SHAPE_NONE, 1, NULL},
    {"String", TYPE_STRING, SHAPE_SIZE, 0, NULL},
    {"FixedString", TYPE_FIXED_STRING, SHAPE_WIDTH, 0, NULL},
    {"UUID", TYPE_UUID, SHAPE_NONE, 16, NULL},
    {"Date", TYPE_DATE, SHAPE_NONE, 2, NULL},
    {"Date32", TYPE_DATE32, SHAPE_NONE, 4, NULL},
    {"DateTime", TYPE_DATETIME, SHAPE_DATETIME, 4, NULL},
    {"DateTime32", TYPE_DATETIME, SHAPE_ZONE, 4, NULL},
    {"DateTime64", TYPE_DATETIME64, SHAPE_SCALE_ZONE, 8, NULL},
    {"Time", TYPE_TIME, SHAPE_TIME, 4, NULL},
    {"Time64", TYPE_TIME64, SHAPE_SCALE, 8, NULL},
    {"Enum8", TYPE_ENUM8, SHAPE_ENUM, 1, NULL},
    {"Enum16", TYPE_ENUM16, SHAPE_ENUM, 2, NULL},
    {"Enum", TYPE_ENUM8, SHAPE_ENUM, 0, NULL}, /* width 0: as wide as its numbers need */
    {"Decimal", TYPE_DECIMAL, SHAPE_DECIMAL, 0, NULL},
    {"Decimal32", TYPE_DECIMAL, SHAPE_DECIMAL_SCALE, 9, NULL},
    {"Decimal64", TYPE_DECIMAL, SHAPE_DECIMAL_SCALE, 18, NULL},
    {"Decimal128", TYPE_DECIMAL, SHAPE_DECIMAL_SCALE, 38, NULL},
    {"Decimal256", TYPE_DECIMAL, SHAPE_DECIMAL_SCALE, 76, NULL},
    {"IPv4", TYPE_IPV4, SHAPE_NONE, 4, NULL},
    {"IPv6", TYPE_IPV6, SHAPE_NONE, 16, NULL},
    {"Nullable", TYPE_NULLABLE, SHAPE_ONE, 0, NULL},
    {"Array", TYPE_ARRAY, SHAPE_ONE, 0, NULL},
    {"LowCardinality", TYPE_LOW_CARDINALITY, SHAPE_ONE, 0, NULL},
    {"Tuple", TYPE_TUPLE, SHAPE_ELEMENTS, 0, NULL},
    {"Nested", TYPE_NESTED, SHAPE_NAMED, 0, NULL},
    {"Map", TYPE_MAP, SHAPE_TWO, 0, NULL},
    {"Variant", TYPE_VARIANT, SHAPE_SEVERAL, 0, NULL},
    {"Dynamic", TYPE_DYNAMIC, SHAPE_OPAQUE, 0, NULL},
    {"JSON", TYPE_JSON, SHAPE_OPAQUE, 0, NULL},
    {"SimpleAggregateFunction", TYPE_SIMPLE_AGGREGATE, SHAPE_FUNCTION, 0, NULL},
    {"AggregateFunction", TYPE_AGGREGATE, SHAPE_OPAQUE, 0, NULL},
    {"Point", TYPE_POINT, SHAPE_GEO, 0, "Tuple(Float64, Float64)"},
    {"Ring", TYPE_RING, SHAPE_GEO, 0, "Array(Point)"},
    {"LineString", TYPE_LINE_STRING, SHAPE_GEO, 0, "Array(Point)"},
    {"MultiLineString", TYPE_MULTI_LINE_STRING, SHAPE_GEO, 0, "Array(LineString)"},
    {"Polygon", TYPE_POLYGON, SHAPE_GEO, 0, "Array(Ring)"},
    {"MultiPolygon", TYPE_MULTI_POLYGON, SHAPE_GEO, 0, "Array(Polygon)"},
    {"Geometry", TYPE_VARIANT, SHAPE_GEO, 0,
     "Variant(LineString, MultiLineString, MultiPolygon, Point, Polygon, Ring)"},
    {"IntervalNanosecond", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalMicrosecond", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalMillisecond", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalSecond", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalMinute", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalHour", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalDay", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalWeek", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalMonth", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalQuarter", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
    {"IntervalYear", TYPE_INTERVAL, SHAPE_INTERVAL, 8, NULL},
};

const size_t type_names_count = sizeof(type_names) / sizeof(type_names[0]);

void type_free(struct type *type)
{
    if (!type)
        return;
    for (size_t i = 0; i < type->member_count; i++)
        free(type->members[i].name);
    free(type->members);
    for (size_t i = 0; i < type->child_count; i++) {
        type_free(type->children[i]);
        free(type->child_names[i]);
    }
    free(type->children);
    free(type->child_names);
    free(type->timezone);
    free(type->text);
    free(type->spelling);
    free(type);
}

int type_member_order(const void *a, const void *b)
{
    const struct type_enum_member *x = a, *y = b;
    size_t n = x->name_size < y->name_size ? x->name_size : y->name_size;
    int order = memcmp(x->name, y->name, n);

    return order ? order : (x->name_size > y->name_size) - (x->name_size < y->name_size);
}

/* The text in quotes, escaped as ClickHouse writes it. */
static int put_quoted(struct buf *out, char quote, const char *text, size_t size)
{
    static const char from[] = "\b\f\n\r\t\\";
    static const char to[] = "bfnrt\\";
    int status = buf_put_u8(out, (uint8_t)quote);

    for (size_t i = 0; i < size && status == SPOOL_OK; i++) {
        char c = text[i];
        const char *hit = memchr(from, c, sizeof(from) - 1);
        if (hit || c == quote || c == 0) {
            status = buf_put_u8(out, '\\');
            c = hit ? to[hit - from] : c ? c : '0';
        }
        if (status == SPOOL_OK)
            status = buf_put_u8(out, (uint8_t)c);
    }
    return status == SPOOL_OK ? buf_put_u8(out, (uint8_t)quote) : status;
}

static int put_element_name(struct buf *out, const char *name)
{
    bool plain = type_is_word_start(name[0]);
    int status;

    for (const char *c = name; *c; c++)
        plain = plain && type_is_word(*c);
    status = plain ? buf_append_str(out, name) : put_quoted(out, '`', name, strlen(name));
    return status == SPOOL_OK ? buf_put_u8(out, ' ') : status;
}

static int format_members(const struct type *type, struct buf *out)
{
    int status = SPOOL_OK;

    for (size_t i = 0; i < type->member_count && status == SPOOL_OK; i++) {
        const struct type_enum_member *m = &type->members[i];
        if (i)
            status = buf_append_str(out, ", ");
        if (status == SPOOL_OK)
            status = put_quoted(out, '\'', m->name, m->name_size);
        if (status == SPOOL_OK)
            status = buf_printf(out, " = %d", m->value);
    }
    return status;
}

static int format_type(const struct type *type, bool plain, struct buf *out);

static int format_children(const struct type *type, bool plain, struct buf *out)
{
    int status = SPOOL_OK;

    for (size_t i = 0; i < type->child_count && status == SPOOL_OK; i++) {
        if (i)
            status = buf_append_str(out, ", ");
        if (status == SPOOL_OK && type->child_names[i])
            status = put_element_name(out, type->child_names[i]);
        if (status == SPOOL_OK)
            status = format_type(type->children[i], plain, out);
    }
    return status;
}

static int format_arguments(const struct type *type, bool plain, struct buf *out)
{
    int status;

    switch (type->kind) {
    case TYPE_FIXED_STRING:
        return buf_printf(out, "%u", type->width);
    case TYPE_TIME64:
        return buf_printf(out, "%u", type->scale);
    case TYPE_DECIMAL:
        return buf_printf(out, "%u, %u", type->precision, type->scale);
    case TYPE_DATETIME:
        return put_quoted(out, '\'', type->timezone, strlen(type->timezone));
    case TYPE_DATETIME64:
        status = buf_printf(out, "%u%s", type->scale, type->timezone ? ", " : "");
        if (status == SPOOL_OK && type->timezone)
            status = put_quoted(out, '\'', type->timezone, strlen(type->timezone));
        return status;
    case TYPE_ENUM8:
    case TYPE_ENUM16:
        return format_members(type, out);
    case TYPE_SIMPLE_AGGREGATE:
        status = buf_printf(out, "%s, ", type->spelling);
        return status == SPOOL_OK ? format_children(type, false, out) : status;
    default:
        return format_children(type, plain && type->kind != TYPE_VARIANT, out);
    }
}

static bool has_no_arguments(const struct type *type, enum shape shape)
{
    return shape == SHAPE_NONE || shape == SHAPE_SIZE || shape == SHAPE_SIZES ||
           shape == SHAPE_TIME || shape == SHAPE_GEO ||
           (type->kind == TYPE_DATETIME && !type->timezone);
}

static int format_type(const struct type *type, bool plain, struct buf *out)
{
    const struct type_name *name = type_names;
    int status;

    if (plain && (type->kind == TYPE_LOW_CARDINALITY || type->kind == TYPE_SIMPLE_AGGREGATE))
        return format_type(type->children[0], plain, out);
    if (plain && type->kind == TYPE_JSON)
        return buf_append_str(out, "String");
    if (plain && type->kind == TYPE_DYNAMIC)
        return buf_append_str(out, "Variant(Bool, Float64, Int64, String, UInt64)");
    if (type->spelling && type->kind != TYPE_SIMPLE_AGGREGATE)
        return buf_append_str(out, type->spelling);
    while (name->kind != type->kind)
        name++;
    assert(name < type_names + type_names_count);
    status = buf_append_str(out, name->name);
    if (has_no_arguments(type, name->shape))
        return status;
    if (status == SPOOL_OK)
        status = buf_put_u8(out, '(');
    if (status == SPOOL_OK)
        status = format_arguments(type, plain, out);
    return status == SPOOL_OK ? buf_put_u8(out, ')') : status;
}

int type_format(const struct type *type, struct buf *out)
{
    return format_type(type, false, out);
}

int type_format_plain(const struct type *type, struct buf *out)
{
    return format_type(type, true, out);
}

struct member {
    struct type *type;
    struct buf name;
};

static int by_name(const void *a, const void *b)
{
    const struct member *x = a, *y = b;
    size_t n = x->name.len < y->name.len ? x->name.len : y->name.len;
    int order = memcmp(x->name.data, y->name.data, n);

    return order ? order : (x->name.len > y->name.len) - (x->name.len < y->name.len);
}

int type_order_members(struct type *variant)
{
    const size_t count = variant->child_count;
    struct member *members = calloc(count ? count : 1, sizeof(*members));
    int status = members ? SPOOL_OK : SPOOL_E_NOMEM;
    size_t kept = 0;

    for (size_t i = 0; members && i < count; i++) {
        members[i].type = variant->children[i];
        /* A number may be added to every member of an Enum. */
        buf_init(&members[i].name, NAME_GROWTH_MAX * (strlen(members[i].type->text) + 1));
        if (status == SPOOL_OK && format_type(members[i].type, false, &members[i].name))
            status = SPOOL_E_NOMEM;
    }
    if (status == SPOOL_OK) {
        qsort(members, count, sizeof(*members), by_name);
        for (size_t i = 0; i < count; i++) {
            if (kept && by_name(&members[i - 1], &members[i]) == 0)
                type_free(members[i].type);
            else
                variant->children[kept++] = members[i].type;
        }
        variant->child_count = kept;
    }
    for (size_t i = 0; members && i < count; i++)
        buf_free(&members[i].name);
    free(members);
    return status;
}

static bool text_equal(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

bool type_equal(const struct type *a, const struct type *b)
{
    if (a->kind != b->kind || a->width != b->width || a->precision != b->precision ||
        a->scale != b->scale || a->member_count != b->member_count ||
        a->child_count != b->child_count || !text_equal(a->timezone, b->timezone) ||
        !text_equal(a->spelling, b->spelling))
        return false;
    for (size_t i = 0; i < a->member_count; i++)
        if (a->members[i].value != b->members[i].value ||
            type_member_order(&a->members[i], &b->members[i]) != 0)
            return false;
    for (size_t i = 0; i < a->child_count; i++)
        if (!text_equal(a->child_names[i], b->child_names[i]) ||
            !type_equal(a->children[i], b->children[i]))
            return false;
    return true;
}

int type_copy(const struct type *type, struct type **out)
{
    /* The text is what the tree was made from, so parsing it again makes the same tree. */
    return type_parse(type->text, strlen(type->text), out, NULL);
}

bool type_is_list(enum type_kind kind)
{
    switch (kind) {
    case TYPE_ARRAY:
    case TYPE_MAP:
    case TYPE_NESTED:
    case TYPE_RING:
    case TYPE_LINE_STRING:
    case TYPE_MULTI_LINE_STRING:
    case TYPE_POLYGON:
    case TYPE_MULTI_POLYGON:
        return true;
    default:
        return false;
    }
}

/* A Variant goes in its own form, so its members have to be what they are written as. */
static bool is_plain(const struct type *type)
{
    if (type->kind == TYPE_LOW_CARDINALITY || type->kind == TYPE_SIMPLE_AGGREGATE ||
        type->kind == TYPE_JSON || type->kind == TYPE_DYNAMIC)
        return false;
    for (size_t i = 0; i < type->child_count; i++)
        if (!is_plain(type->children[i]))
            return false;
    return true;
}

/* What ClickHouse allows inside Nullable and LowCardinality. */
static bool may_be_wrapped(const struct type *type)
{
    return type->child_count == 0 && type->kind != TYPE_DYNAMIC && type->kind != TYPE_TUPLE;
}

bool type_is_native(const struct type *type)
{
    const struct type *inner = type->child_count ? type->children[0] : NULL;

    switch (type->kind) {
    case TYPE_AGGREGATE:
    case TYPE_OTHER:
        return false;
    case TYPE_NULLABLE:
        return (may_be_wrapped(inner) || (inner->kind == TYPE_TUPLE && inner->child_count)) &&
               type_is_native(inner);
    case TYPE_LOW_CARDINALITY:
        return may_be_wrapped(inner->kind == TYPE_NULLABLE ? inner->children[0] : inner) &&
               type_is_native(inner);
    case TYPE_VARIANT:
        if (!is_plain(type))
            return false;
        break;
    default:
        break;
    }
    for (size_t i = 0; i < type->child_count; i++)
        if (!type_is_native(type->children[i]))
            return false;
    return true;
}
