/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening Native blocks of revision 0 (what HTTP carries), each behind the other:
 *
 *     varuint columns   varuint rows   then for each column
 *         string name   string type   data, absent when there are no rows
 *
 * The data of a column begins with the prefixes of every LowCardinality (u64 1) and Variant (u64 0)
 * in its type, outermost first, and goes on by type:
 *
 *     fixed width           rows values, little endian
 *     String                rows times varuint length and bytes
 *     Nullable(T)           rows bytes, 1 = NULL, then T
 *     Array, Map, Nested    rows u64 end offsets, then each child with as many rows as the last says
 *     Tuple                 each element in turn; Tuple() a byte a row
 *     LowCardinality(T)     u64 flags (0x200, low byte: index width 0 to 3), u64 keys, the keys as T,
 *                           u64 rows, rows indexes
 *     Variant               rows discriminators (255 = NULL), then each member's values
 *
 * where a child of no rows has no data at all. Every type takes at least one byte a row, so no count
 * in a block may be larger than the bytes that are left: that bounds the memory asked for.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/limits.h"
#include "codec/native_int.h"

#define LOW_CARDINALITY_WIDTH_MASK 0xffu
#define LOW_CARDINALITY_SHARED     0x100u /* keys kept outside the block */
#define LOW_CARDINALITY_HAS_KEYS   0x200u
#define LOW_CARDINALITY_UPDATE     0x400u

uint64_t native_number(const uint8_t *data, size_t width, uint64_t at)
{
    const uint8_t *from = data + at * width;
    uint64_t v = 0;

    for (size_t i = 0; i < width; i++)
        v |= (uint64_t)from[i] << (8 * i);
    return v;
}

uint64_t native_list_start(const struct native_node *node, uint64_t row)
{
    return row ? native_number(node->data, 8, row - 1) : 0;
}

/* ---- the tree of a type ---------------------------------------------------------------------- */

static const struct type *stored_type(const struct type *type)
{
    while (type->kind == TYPE_SIMPLE_AGGREGATE)
        type = type->children[0];
    return type;
}

static int node_create(struct native_node *node, const struct type *type);

static int node_create_children(struct native_node *node, const struct type *type)
{
    int status = SPOOL_OK;

    if (type->child_count == 0)
        return SPOOL_OK;
    node->children = calloc(type->child_count, sizeof(*node->children));
    if (!node->children)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < type->child_count && status == SPOOL_OK; i++) {
        node->child_count++;
        status = node_create(&node->children[i], type->children[i]);
    }
    return status;
}

/* The keys' own type: LowCardinality(Nullable(T)) keeps its keys as T. */
static int node_create_keys(struct native_node *node, const struct type *type)
{
    const struct type *keys = stored_type(type->children[0]);

    if (keys->kind == TYPE_NULLABLE) {
        node->nullable_keys = true;
        keys = stored_type(keys->children[0]);
    }
    if (keys->child_count > 0)
        return SPOOL_E_UNSUPPORTED;
    node->children = calloc(1, sizeof(*node->children));
    if (!node->children)
        return SPOOL_E_NOMEM;
    node->child_count = 1;
    return node_create(&node->children[0], keys);
}

static int node_create(struct native_node *node, const struct type *type)
{
    type = stored_type(type);
    node->type = type;
    node->width = type->width;
    switch (type->kind) {
    case TYPE_DYNAMIC:
    case TYPE_JSON:
    case TYPE_AGGREGATE:
    case TYPE_OTHER:
        return SPOOL_E_UNSUPPORTED;
    case TYPE_LOW_CARDINALITY:
        return node_create_keys(node, type);
    case TYPE_NULLABLE:
    case TYPE_VARIANT:
        node->width = 1;
        break;
    case TYPE_TUPLE:
        node->width = type->child_count ? 0 : 1;
        break;
    default:
        if (type_is_list(type->kind))
            node->width = 8;
        break;
    }
    return node_create_children(node, type);
}

static void node_free(struct native_node *node)
{
    for (size_t i = 0; i < node->child_count; i++)
        node_free(&node->children[i]);
    free(node->children);
    free(node->positions);
}

/* ---- reading a column's data ----------------------------------------------------------------- */

static int read_prefix(struct cursor *in, const struct native_node *node)
{
    uint64_t version = 0;
    int status = SPOOL_OK;

    if (node->type->kind == TYPE_LOW_CARDINALITY) {
        status = cursor_u64le(in, &version);
        if (status == SPOOL_OK && version != NATIVE_LOW_CARDINALITY_VERSION)
            status = SPOOL_E_CORRUPT;
        return status;
    }
    if (node->type->kind == TYPE_VARIANT) {
        status = cursor_u64le(in, &version);
        if (status == SPOOL_OK && version != NATIVE_VARIANT_BASIC)
            status = SPOOL_E_CORRUPT;
    }
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = read_prefix(in, &node->children[i]);
    return status;
}

static int read_data(struct cursor *in, struct native_node *node, uint64_t rows);

/* rows entries of width bytes into node->data. */
static int read_fixed(struct cursor *in, struct native_node *node, uint64_t rows)
{
    if (rows > cursor_left(in) / node->width)
        return SPOOL_E_CORRUPT;
    return cursor_bytes(in, (size_t)rows * node->width, &node->data);
}

static int read_strings(struct cursor *in, struct native_node *node, uint64_t rows)
{
    node->data = in->at;
    if (rows > cursor_left(in))
        return SPOOL_E_CORRUPT;
    node->positions = malloc(((size_t)rows + 1) * sizeof(*node->positions));
    if (!node->positions)
        return SPOOL_E_NOMEM;
    for (uint64_t i = 0; i < rows; i++) {
        const uint8_t *text = NULL;
        size_t size = 0;
        node->positions[i] = (size_t)(in->at - node->data);
        if (cursor_string(in, &text, &size) != SPOOL_OK)
            return SPOOL_E_CORRUPT;
    }
    node->positions[rows] = (size_t)(in->at - node->data);
    return SPOOL_OK;
}

static int read_list(struct cursor *in, struct native_node *node, uint64_t rows)
{
    uint64_t last = 0;
    int status = read_fixed(in, node, rows);

    for (uint64_t i = 0; i < rows && status == SPOOL_OK; i++) {
        uint64_t end = native_number(node->data, 8, i);
        if (end < last)
            status = SPOOL_E_CORRUPT;
        last = end;
    }
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = read_data(in, &node->children[i], last);
    return status;
}

static int read_low_cardinality(struct cursor *in, struct native_node *node, uint64_t rows)
{
    uint64_t flags = 0, keys = 0, indexes = 0;
    int status;

    node->head = in->at;
    status = cursor_u64le(in, &flags);
    if (status != SPOOL_OK)
        return status;
    if ((flags & LOW_CARDINALITY_WIDTH_MASK) > 3 || !(flags & LOW_CARDINALITY_HAS_KEYS) ||
        (flags & ~(uint64_t)(LOW_CARDINALITY_WIDTH_MASK | LOW_CARDINALITY_HAS_KEYS |
                             LOW_CARDINALITY_UPDATE)))
        return SPOOL_E_CORRUPT;
    node->width = (size_t)1 << (flags & LOW_CARDINALITY_WIDTH_MASK);
    status = cursor_u64le(in, &keys);
    if (status == SPOOL_OK)
        status = read_data(in, &node->children[0], keys);
    if (status == SPOOL_OK)
        status = cursor_u64le(in, &indexes);
    node->head_size = (size_t)(in->at - node->head);
    if (status == SPOOL_OK && indexes != rows)
        status = SPOOL_E_CORRUPT;
    if (status == SPOOL_OK)
        status = read_fixed(in, node, rows);
    for (uint64_t i = 0; i < rows && status == SPOOL_OK; i++)
        if (native_number(node->data, node->width, i) >= keys)
            status = SPOOL_E_CORRUPT;
    return status;
}

static int read_variant(struct cursor *in, struct native_node *node, uint64_t rows)
{
    uint64_t counts[256] = {0};
    int status = read_fixed(in, node, rows);

    if (status != SPOOL_OK)
        return status;
    node->positions = malloc((size_t)rows * sizeof(*node->positions));
    if (!node->positions)
        return SPOOL_E_NOMEM;
    for (uint64_t i = 0; i < rows; i++) {
        uint8_t member = node->data[i];
        if (member != NATIVE_VARIANT_NULL && member >= node->child_count)
            return SPOOL_E_CORRUPT;
        node->positions[i] = (size_t)counts[member]++;
    }
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = read_data(in, &node->children[i], counts[i]);
    return status;
}

static int read_data(struct cursor *in, struct native_node *node, uint64_t rows)
{
    int status = SPOOL_OK;

    node->rows = rows;
    node->data = in->at;
    if (rows == 0)
        return SPOOL_OK;
    switch (node->type->kind) {
    case TYPE_STRING:
        return read_strings(in, node, rows);
    case TYPE_LOW_CARDINALITY:
        return read_low_cardinality(in, node, rows);
    case TYPE_VARIANT:
        return read_variant(in, node, rows);
    default:
        break;
    }
    if (type_is_list(node->type->kind))
        return read_list(in, node, rows);
    if (node->width > 0)
        status = read_fixed(in, node, rows);
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = read_data(in, &node->children[i], rows);
    return status;
}

/* ---- time zones ------------------------------------------------------------------------------ */

/* The block's entry for a zone, loaded on first use. */
static int block_zone(struct native_block *b, const char *name, const struct native_zone **out,
                      struct spool_error *error)
{
    struct native_zone *zones, *z;

    for (size_t i = 0; i < b->zone_count; i++)
        if (strcmp(b->zones[i].name, name) == 0) {
            *out = &b->zones[i];
            return SPOOL_OK;
        }
    zones = realloc(b->zones, (b->zone_count + 1) * sizeof(*zones));
    if (!zones)
        return spool_error_set(error, SPOOL_E_NOMEM, "time zone: out of memory");
    b->zones = zones;
    z = &zones[b->zone_count];
    z->zone = NULL;
    z->name = strdup(name);
    if (!z->name)
        return spool_error_set(error, SPOOL_E_NOMEM, "time zone: out of memory");
    b->zone_count++;
    *out = z;
    return tz_zone_load(name, &z->zone, error);
}

static bool has_zone(const struct native_node *node)
{
    return node->type->kind == TYPE_DATETIME || node->type->kind == TYPE_DATETIME64;
}

/* Gives the nodes whose type names a zone theirs. */
static int set_own_zones(struct native_block *b, struct native_node *node)
{
    const struct native_zone *z = NULL;
    int status = SPOOL_OK;

    if (has_zone(node) && node->type->timezone) {
        status = block_zone(b, node->type->timezone, &z, NULL);
        if (status == SPOOL_E_NOMEM)
            return status;
        node->zone = z->zone;
        node->zone_unknown = !z->zone;
        status = SPOOL_OK;
    }
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = set_own_zones(b, &node->children[i]);
    return status;
}

static void set_zone(struct native_node *node, const struct tz_zone *zone)
{
    if (has_zone(node) && !node->type->timezone)
        node->zone = zone;
    for (size_t i = 0; i < node->child_count; i++)
        set_zone(&node->children[i], zone);
}

int native_block_set_timezone(struct native_block *b, const char *timezone,
                              struct spool_error *error)
{
    const struct native_zone *z = NULL;
    int status = block_zone(b, timezone, &z, error); /* the first one's serves them all */

    if (status != SPOOL_OK)
        return status;
    if (!z->zone)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "time zone %.64s: this system has none",
                               timezone);
    for (struct native_block *part = b; part; part = part->next)
        for (size_t i = 0; i < part->column_count; i++)
            set_zone(&part->columns[i].node, z->zone);
    return SPOOL_OK;
}

/* ---- the block ------------------------------------------------------------------------------- */

static int read_column(struct cursor *in, struct native_block *b, size_t *type_bytes,
                       struct native_column *c)
{
    const uint8_t *name = NULL, *type = NULL;
    size_t name_size = 0, type_size = 0;
    int status;

    c->head = in->at;
    if (cursor_string(in, &name, &name_size) != SPOOL_OK ||
        cursor_string(in, &type, &type_size) != SPOOL_OK || memchr(name, 0, name_size))
        return SPOOL_E_CORRUPT;
    c->head_size = (size_t)(in->at - c->head);
    *type_bytes += type_size;
    if (*type_bytes > LIMIT_SCHEMA_BYTES)
        return SPOOL_E_LIMIT;
    c->name = strndup((const char *)name, name_size);
    if (!c->name)
        return SPOOL_E_NOMEM;
    status = type_parse((const char *)type, type_size, &c->type, NULL);
    if (status != SPOOL_OK)
        return status == SPOOL_E_SYNTAX ? SPOOL_E_CORRUPT : status;
    status = node_create(&c->node, c->type);
    if (status == SPOOL_OK)
        status = set_own_zones(b, &c->node);
    if (status == SPOOL_OK && b->rows > 0)
        status = read_prefix(in, &c->node);
    if (status == SPOOL_OK)
        status = read_data(in, &c->node, b->rows);
    return status;
}

static int fail_at(struct spool_error *error, int status, size_t position, const char *column)
{
    const char *what = status == SPOOL_E_CORRUPT       ? "malformed or cut"
                       : status == SPOOL_E_UNSUPPORTED ? "a type that cannot be read back"
                                                       : spool_strerror(status);

    if (column)
        return spool_error_set(error, status, "Native block, byte %zu, column %.128s: %s", position,
                               column, what);
    return spool_error_set(error, status, "Native block, byte %zu: %s", position, what);
}

/* One Native block from the cursor on, which ends at the end of all of them. */
static int read_block(struct cursor *in, size_t size, struct native_block **out,
                      struct spool_error *error)
{
    uint64_t columns = 0, rows = 0;
    struct native_block *b = NULL;
    const char *name = NULL;
    size_t type_bytes = 0;
    int status;

    *out = NULL;
    status = cursor_varuint(in, &columns);
    if (status == SPOOL_OK)
        status = cursor_varuint(in, &rows);
    if (status == SPOOL_OK && (columns == 0 || columns > LIMIT_COLUMNS || rows > size))
        status = SPOOL_E_CORRUPT;
    if (status != SPOOL_OK)
        return fail_at(error, status, size - cursor_left(in), NULL);
    b = calloc(1, sizeof(*b));
    if (b)
        b->columns = calloc((size_t)columns, sizeof(*b->columns));
    if (!b || !b->columns) {
        native_block_free(b);
        return fail_at(error, SPOOL_E_NOMEM, 0, NULL);
    }
    b->rows = rows;
    while (status == SPOOL_OK && b->column_count < columns) {
        struct native_column *c = &b->columns[b->column_count++];
        status = read_column(in, b, &type_bytes, c);
        name = c->name;
    }
    if (status != SPOOL_OK) {
        fail_at(error, status, size - cursor_left(in), name);
        native_block_free(b);
        return status;
    }
    *out = b;
    return SPOOL_OK;
}

int native_block_open(const void *raw, size_t size, struct native_block **out,
                      struct spool_error *error)
{
    struct cursor in = cursor_over(raw, size);
    struct native_block *first = NULL, **at = &first;
    int status = SPOOL_OK;

    *out = NULL;
    do {
        status = read_block(&in, size, at, error);
        if (status == SPOOL_OK && (*at)->rows == 0 && (first->next || cursor_left(&in) > 0))
            status = fail_at(error, SPOOL_E_CORRUPT, size - cursor_left(&in), NULL);
        if (status == SPOOL_OK)
            at = &(*at)->next;
    } while (status == SPOOL_OK && cursor_left(&in) > 0);
    if (status != SPOOL_OK)
        native_block_free(first);
    else
        *out = first;
    return status;
}

static void part_free(struct native_block *b)
{
    for (size_t i = 0; i < b->column_count; i++) {
        free(b->columns[i].name);
        type_free(b->columns[i].type);
        node_free(&b->columns[i].node);
    }
    for (size_t i = 0; i < b->zone_count; i++) {
        free(b->zones[i].name);
        tz_zone_free(b->zones[i].zone);
    }
    free(b->zones);
    free(b->columns);
    free(b);
}

void native_block_free(struct native_block *b)
{
    while (b) {
        struct native_block *next = b->next;
        part_free(b);
        b = next;
    }
}

uint64_t native_block_rows(const struct native_block *b)
{
    uint64_t rows = 0;

    for (; b; b = b->next)
        rows += b->rows;
    return rows;
}

size_t native_block_columns(const struct native_block *b)
{
    return b->column_count;
}

const char *native_block_column_name(const struct native_block *b, size_t column)
{
    assert(column < b->column_count);
    return b->columns[column].name;
}

const struct type *native_block_column_type(const struct native_block *b, size_t column)
{
    assert(column < b->column_count);
    return b->columns[column].type;
}
