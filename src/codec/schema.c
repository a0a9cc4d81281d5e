/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/schema.h"

#include <stdlib.h>

#include <xxhash.h>

#include "base/limits.h"
#include "codec/schema_int.h"

bool schema_path_next(const char **path, char *key, size_t *size)
{
    const char *at = *path;
    size_t n = 0;

    if (!*at)
        return false;
    while (*at && *at != '.') {
        if (*at == '\\' && at[1])
            at++;
        key[n++] = *at++;
    }
    if (*at == '.')
        at++;
    *path = at;
    *size = n;
    return true;
}

bool schema_path_valid(const char *text)
{
    bool key = false;

    for (; *text; text++) {
        if (*text == '.') {
            if (!key)
                return false;
            key = false;
            continue;
        }
        if (*text == '\\' && !*++text)
            return false;
        key = true;
    }
    return key;
}

int schema_path_escape(const char *key, struct buf *out)
{
    int status = SPOOL_OK;

    for (; *key && status == SPOOL_OK; key++) {
        if (*key == '.' || *key == '\\')
            status = buf_put_u8(out, '\\');
        if (status == SPOOL_OK)
            status = buf_put_u8(out, (uint8_t)*key);
    }
    return status;
}

const struct type *schema_core_type(const struct type *type)
{
    while (type->kind == TYPE_NULLABLE || type->kind == TYPE_LOW_CARDINALITY ||
           type->kind == TYPE_SIMPLE_AGGREGATE)
        type = type->children[0];
    return type;
}

bool schema_type_nullable(const struct type *type)
{
    if (type->kind == TYPE_DYNAMIC || type->kind == TYPE_VARIANT)
        return true;
    while (type->kind == TYPE_LOW_CARDINALITY || type->kind == TYPE_SIMPLE_AGGREGATE)
        type = type->children[0];
    return type->kind == TYPE_NULLABLE;
}

bool schema_null_is_default(const struct schema_column *column)
{
    return column->wire->kind == TYPE_NULLABLE && !schema_type_nullable(column->type);
}

/* Kinds that a block never holds: they go as another. */
static bool is_stored(const struct type *type)
{
    if (type->kind == TYPE_SIMPLE_AGGREGATE || type->kind == TYPE_JSON ||
        type->kind == TYPE_DYNAMIC)
        return false;
    for (size_t i = 0; i < type->child_count; i++)
        if (!is_stored(type->children[i]))
            return false;
    return true;
}

bool schema_wire_sound(const struct type *wire)
{
    return type_is_native(wire) && is_stored(wire);
}

int schema_set_hash(struct schema *schema)
{
    struct buf out;
    int status;

    buf_init(&out, LIMIT_SCHEMA_BYTES);
    status = schema_serialize(schema, &out);
    if (status == SPOOL_OK)
        schema->hash = XXH3_64bits(out.data, out.len);
    buf_free(&out);
    return status;
}

static bool text_equal(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

static bool column_equal(const struct schema_column *a, const struct schema_column *b)
{
    return strcmp(a->name, b->name) == 0 && type_equal(a->type, b->type) &&
           type_equal(a->wire, b->wire) && a->source == b->source && text_equal(a->path, b->path) &&
           text_equal(a->literal, b->literal) && text_equal(a->default_json, b->default_json) &&
           text_equal(a->default_expression, b->default_expression) &&
           a->default_by_server == b->default_by_server && a->required == b->required &&
           a->truncate == b->truncate && a->unchecked == b->unchecked;
}

bool schema_equal(const struct schema *a, const struct schema *b)
{
    if (a->count != b->count || a->format != b->format || a->unknown_keys != b->unknown_keys ||
        a->strict != b->strict || a->schema_registry_framing != b->schema_registry_framing ||
        a->server.major != b->server.major || a->server.minor != b->server.minor ||
        a->server.patch != b->server.patch || !text_equal(a->server_timezone, b->server_timezone))
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (!column_equal(&a->columns[i], &b->columns[i]))
            return false;
    return true;
}

void schema_free(struct schema *schema)
{
    if (!schema)
        return;
    for (size_t i = 0; i < schema->count; i++) {
        struct schema_column *c = &schema->columns[i];
        free(c->name);
        type_free(c->type);
        type_free(c->wire);
        free(c->path);
        free(c->literal);
        free(c->default_json);
        free(c->default_expression);
    }
    free(schema->columns);
    free(schema->server_timezone);
    free(schema);
}

static int column_by_name(struct schema_column *c)
{
    struct buf path;
    const char *text;
    int status;

    buf_init(&path, LIMIT_SCHEMA_BYTES);
    status = schema_path_escape(c->name, &path);
    text = status == SPOOL_OK ? buf_cstr(&path) : NULL;
    free(c->path);
    free(c->literal);
    c->literal = NULL;
    c->path = text ? strdup(text) : NULL;
    c->source = SOURCE_KEY;
    c->required = false;
    buf_free(&path);
    return c->path ? SPOOL_OK : SPOOL_E_NOMEM;
}

int schema_copy(const struct schema *schema, struct schema **out)
{
    struct buf bytes;
    int status;

    *out = NULL;
    buf_init(&bytes, LIMIT_SCHEMA_BYTES);
    status = schema_serialize(schema, &bytes);
    if (status == SPOOL_OK)
        status = schema_deserialize(bytes.data, bytes.len, out, NULL);
    buf_free(&bytes);
    return status;
}

int schema_by_name(const struct schema *schema, struct schema **out)
{
    int status = schema_copy(schema, out);

    if (status != SPOOL_OK)
        return status;
    (*out)->strict = false;
    (*out)->unknown_keys = UNKNOWN_REFUSE; /* a column that is no more: its value is not dropped */
    (*out)->schema_registry_framing = false;
    for (size_t i = 0; i < (*out)->count && status == SPOOL_OK; i++)
        status = column_by_name(&(*out)->columns[i]);
    if (status != SPOOL_OK) {
        schema_free(*out);
        *out = NULL;
    }
    return status;
}

int schema_column_list(const struct schema *schema, struct buf *out)
{
    int status = SPOOL_OK;

    for (size_t i = 0; i < schema->count && status == SPOOL_OK; i++) {
        status = buf_append_str(out, i ? ", `" : "`");
        for (const char *c = schema->columns[i].name; *c && status == SPOOL_OK; c++) {
            if (*c == '`' || *c == '\\')
                status = buf_put_u8(out, '\\');
            if (status == SPOOL_OK)
                status = buf_put_u8(out, (uint8_t)*c);
        }
        if (status == SPOOL_OK)
            status = buf_put_u8(out, '`');
    }
    return status;
}
