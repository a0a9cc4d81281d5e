/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stored form of a schema, little endian; a string is a varuint length and its bytes:
 *
 *    u8  version (1)      u8 format    u8 unknown_keys    u8 flags: 1 strict, 2 registry framing
 *    u32 server major     u32 minor    u32 patch          string timezone
 *    varuint columns, and for each
 *        string name      string type  string wire        (type names as text)
 *        u8 source        u8 flags: 1 required, 2 truncate, 4 unchecked, 8 default_by_server
 *        u8 present: 1 path, 2 literal, 4 default_json, 8 default_expression
 *        string           for each bit of present, in that order
 *
 * Nothing follows. Any change of meaning or layout raises the version; a reader answers
 * SPOOL_E_NEWER to one it does not know. The hash is XXH3-64 of exactly these bytes.
 */
#include <stdlib.h>

#include <xxhash.h>

#include "base/limits.h"
#include "codec/schema_int.h"

#define VERSION 1

#define FLAG_STRICT  1
#define FLAG_FRAMING 2

#define COLUMN_REQUIRED  1
#define COLUMN_TRUNCATE  2
#define COLUMN_UNCHECKED 4
#define COLUMN_BY_SERVER 8

#define TEXTS 4

/* The optional texts of a column, in the order of their bits. */
static void column_texts(struct schema_column *c, char **texts[TEXTS])
{
    texts[0] = &c->path;
    texts[1] = &c->literal;
    texts[2] = &c->default_json;
    texts[3] = &c->default_expression;
}

static int put_text(struct buf *out, const char *text)
{
    return buf_put_string(out, text, strlen(text));
}

static int put_column(struct buf *out, const struct schema_column *c)
{
    uint8_t flags = 0, present = 0;
    const char *texts[TEXTS] = {c->path, c->literal, c->default_json, c->default_expression};
    int status;

    flags |= c->required ? COLUMN_REQUIRED : 0;
    flags |= c->truncate ? COLUMN_TRUNCATE : 0;
    flags |= c->unchecked ? COLUMN_UNCHECKED : 0;
    flags |= c->default_by_server ? COLUMN_BY_SERVER : 0;
    for (unsigned i = 0; i < TEXTS; i++)
        present = (uint8_t)(present | (texts[i] ? 1u << i : 0));
    status = put_text(out, c->name);
    if (status == SPOOL_OK)
        status = put_text(out, c->type->text);
    if (status == SPOOL_OK)
        status = put_text(out, c->wire->text);
    if (status == SPOOL_OK)
        status = buf_put_u8(out, (uint8_t)c->source);
    if (status == SPOOL_OK)
        status = buf_put_u8(out, flags);
    if (status == SPOOL_OK)
        status = buf_put_u8(out, present);
    for (unsigned i = 0; i < TEXTS && status == SPOOL_OK; i++)
        if (texts[i])
            status = put_text(out, texts[i]);
    return status;
}

int schema_serialize(const struct schema *schema, struct buf *out)
{
    size_t start = out->len;
    uint8_t head[4] = {VERSION, (uint8_t)schema->format, (uint8_t)schema->unknown_keys, 0};
    int status;

    head[3] |= schema->strict ? FLAG_STRICT : 0;
    head[3] |= schema->schema_registry_framing ? FLAG_FRAMING : 0;
    status = buf_append(out, head, sizeof(head));
    if (status == SPOOL_OK)
        status = buf_put_u32le(out, schema->server.major);
    if (status == SPOOL_OK)
        status = buf_put_u32le(out, schema->server.minor);
    if (status == SPOOL_OK)
        status = buf_put_u32le(out, schema->server.patch);
    if (status == SPOOL_OK)
        status = put_text(out, schema->server_timezone);
    if (status == SPOOL_OK)
        status = buf_put_varuint(out, schema->count);
    for (size_t i = 0; i < schema->count && status == SPOOL_OK; i++)
        status = put_column(out, &schema->columns[i]);
    if (status != SPOOL_OK)
        out->len = start;
    return status;
}

static int get_text(struct cursor *in, char **text)
{
    const uint8_t *data = NULL;
    size_t n = 0;

    if (cursor_string(in, &data, &n) != SPOOL_OK || (n && memchr(data, 0, n)))
        return SPOOL_E_CORRUPT;
    *text = malloc(n + 1);
    if (!*text)
        return SPOOL_E_NOMEM;
    memcpy(*text, data, n);
    (*text)[n] = 0;
    return SPOOL_OK;
}

static int get_type(struct cursor *in, struct type **type)
{
    const uint8_t *data = NULL;
    size_t n = 0;
    int status;

    if (cursor_string(in, &data, &n) != SPOOL_OK)
        return SPOOL_E_CORRUPT;
    status = type_parse((const char *)data, n, type, NULL);
    return status == SPOOL_E_NOMEM || status == SPOOL_OK ? status : SPOOL_E_CORRUPT;
}

/*
 * Whether the wire type is one that resolving gives: the plain form, Nullable of it where the server
 * fills in a default, or the type itself for a server that doesn't convert.
 */
static bool wire_fits(const struct schema *schema, const struct schema_column *c)
{
    const struct type *wire = c->wire;
    struct buf plain, text;
    bool fits = false;

    if (schema->server.major < CONVERTING_MAJOR && type_equal(wire, c->type))
        return true;
    if (schema->format == FORMAT_NATIVE && c->default_by_server && schema_null_is_default(c))
        wire = wire->children[0];
    buf_init(&plain, 2 * LIMIT_TYPE_TEXT_BYTES);
    buf_init(&text, 2 * LIMIT_TYPE_TEXT_BYTES);
    if (type_format_plain(c->type, &plain) == SPOOL_OK && type_format(wire, &text) == SPOOL_OK)
        fits = plain.len == text.len && memcmp(plain.data, text.data, text.len) == 0;
    buf_free(&plain);
    buf_free(&text);
    return fits;
}

/* What the decoder relies on. */
static bool column_sound(const struct schema *schema, const struct schema_column *c)
{
    if (!c->name[0] || (c->source == SOURCE_KEY) != (c->path != NULL) ||
        (c->source == SOURCE_CONSTANT) != (c->literal != NULL))
        return false;
    if (c->path && !schema_path_valid(c->path))
        return false;
    if (schema->format == FORMAT_JSON)
        return c->unchecked || (schema_wire_sound(c->wire) && wire_fits(schema, c));
    return !c->unchecked && schema_wire_sound(c->wire) && wire_fits(schema, c);
}

static int get_column(struct cursor *in, const struct schema *schema, struct schema_column *c)
{
    uint8_t source = 0, flags = 0, present = 0;
    char **texts[TEXTS];
    int status = get_text(in, &c->name);

    if (status == SPOOL_OK)
        status = get_type(in, &c->type);
    if (status == SPOOL_OK)
        status = get_type(in, &c->wire);
    if (status == SPOOL_OK)
        status = cursor_u8(in, &source);
    if (status == SPOOL_OK)
        status = cursor_u8(in, &flags);
    if (status == SPOOL_OK)
        status = cursor_u8(in, &present);
    if (status != SPOOL_OK)
        return status;
    if (source > SCHEMA_SOURCE_MAX || flags >= 2 * COLUMN_BY_SERVER || present >= 1u << TEXTS)
        return SPOOL_E_CORRUPT;
    c->source = (enum column_source)source;
    c->required = flags & COLUMN_REQUIRED;
    c->truncate = flags & COLUMN_TRUNCATE;
    c->unchecked = flags & COLUMN_UNCHECKED;
    c->default_by_server = flags & COLUMN_BY_SERVER;
    column_texts(c, texts);
    for (unsigned i = 0; i < TEXTS && status == SPOOL_OK; i++)
        if (present & 1u << i)
            status = get_text(in, texts[i]);
    if (status == SPOOL_OK && !column_sound(schema, c))
        status = SPOOL_E_CORRUPT;
    return status;
}

static int get_head(struct cursor *in, struct schema *schema, uint64_t *count)
{
    uint8_t format = 0, unknown = 0, flags = 0;
    int status = cursor_u8(in, &format);

    if (status == SPOOL_OK)
        status = cursor_u8(in, &unknown);
    if (status == SPOOL_OK)
        status = cursor_u8(in, &flags);
    if (status == SPOOL_OK)
        status = cursor_u32le(in, &schema->server.major);
    if (status == SPOOL_OK)
        status = cursor_u32le(in, &schema->server.minor);
    if (status == SPOOL_OK)
        status = cursor_u32le(in, &schema->server.patch);
    if (status == SPOOL_OK)
        status = get_text(in, &schema->server_timezone);
    if (status == SPOOL_OK)
        status = cursor_varuint(in, count);
    if (status != SPOOL_OK)
        return status;
    if ((format != FORMAT_NATIVE && format != FORMAT_JSON) || unknown > UNKNOWN_REFUSE ||
        flags > (FLAG_STRICT | FLAG_FRAMING) || *count == 0 || *count > LIMIT_COLUMNS)
        return SPOOL_E_CORRUPT;
    schema->format = (enum schema_format)format;
    schema->unknown_keys = (enum unknown_keys)unknown;
    schema->strict = flags & FLAG_STRICT;
    schema->schema_registry_framing = flags & FLAG_FRAMING;
    return SPOOL_OK;
}

int schema_deserialize(const void *data, size_t size, struct schema **out,
                       struct spool_error *error)
{
    struct cursor in = cursor_over(data, size);
    struct schema *schema;
    uint64_t count = 0;
    uint8_t version = 0;
    int status;

    *out = NULL;
    if (size > LIMIT_SCHEMA_BYTES || cursor_u8(&in, &version) != SPOOL_OK || version == 0)
        return spool_error_set(error, SPOOL_E_CORRUPT, "stored schema: %zu bytes are no schema",
                               size);
    if (version > VERSION)
        return spool_error_set(error, SPOOL_E_NEWER, "stored schema: version %u, %d is known",
                               version, VERSION);
    schema = calloc(1, sizeof(*schema));
    if (!schema)
        return spool_error_set(error, SPOOL_E_NOMEM, "stored schema: out of memory");
    status = get_head(&in, schema, &count);
    if (status == SPOOL_OK) {
        schema->columns = calloc((size_t)count, sizeof(*schema->columns));
        status = schema->columns ? SPOOL_OK : SPOOL_E_NOMEM;
    }
    while (status == SPOOL_OK && schema->count < count)
        status = get_column(&in, schema, &schema->columns[schema->count++]);
    if (status == SPOOL_OK && cursor_left(&in) > 0)
        status = SPOOL_E_CORRUPT;
    if (status != SPOOL_OK) {
        schema_free(schema);
        return spool_error_set(error, status, "stored schema: %s near byte %zu",
                               spool_strerror(status), size - cursor_left(&in));
    }
    schema->hash = XXH3_64bits(data, size);
    *out = schema;
    return SPOOL_OK;
}
