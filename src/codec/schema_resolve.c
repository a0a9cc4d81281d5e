/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Joining what the config wishes with the table the server describes. Every mistake found is one
 * line; the walk goes on behind it, so that a config is mended in one round.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/limits.h"
#include "codec/decode.h"
#include "codec/schema_resolve_int.h"

static const struct table_column *table_find(const struct resolver *r, const char *name)
{
    for (size_t i = 0; i < r->table_count; i++)
        if (strcmp(r->table[i].name, name) == 0)
            return &r->table[i];
    return NULL;
}

static void problem_no_column(struct resolver *r, const char *name)
{
    const char *best = NULL;
    size_t found = SIZE_MAX;

    for (size_t i = 0; i < r->table_count; i++)
        resolver_nearer(name, r->table[i].name, &best, &found);
    if (best && found <= 1 + strlen(name) / 3)
        resolver_problem(r, name, "the table has no such column; the nearest is %s", best);
    else
        resolver_problem(r, name, "the table has no such column");
}

/* ---- types ---------------------------------------------------------------------------------- */

/* The type itself, in its canonical spelling. */
static int make_exact(const struct type *type, struct type **out)
{
    struct buf text;
    int status;

    *out = NULL;
    buf_init(&text, 2 * LIMIT_TYPE_TEXT_BYTES);
    status = type_format(type, &text);
    if (status == SPOOL_OK)
        status = type_parse((const char *)text.data, text.len, out, NULL);
    buf_free(&text);
    return status;
}

/* The type of a wish as the server would write it. */
static int make_wished(const char *text, struct type **out, struct spool_error *error)
{
    struct type *written = NULL;
    int status = type_parse(text, strlen(text), &written, error);

    *out = NULL;
    if (status == SPOOL_OK)
        status = make_exact(written, out);
    type_free(written);
    return status;
}

/* The type of a wished column: the table's, which the wish may repeat. False: no such column. */
static bool set_type(struct resolver *r, struct schema_column *c, const struct column_wish *wish,
                     const struct table_column *in_table)
{
    const char *text = in_table ? in_table->type : wish->type;
    struct spool_error error = {.text = "its type, written out, is too long"};
    struct type *wished = NULL;
    int status;

    if (!text) {
        resolver_problem(r, c->name, "has no \"type\", and the table has not been seen yet");
        return false;
    }
    status = in_table ? type_parse(text, strlen(text), &c->type, &error)
                      : make_wished(text, &c->type, &error);
    if (status == SPOOL_E_NOMEM)
        resolver_note(r, status);
    if (status != SPOOL_OK) {
        resolver_problem(r, c->name, "%s", error.text);
        return false;
    }
    if (in_table && wish->type) {
        status = type_parse(wish->type, strlen(wish->type), &wished, &error);
        if (status == SPOOL_E_NOMEM)
            resolver_note(r, status);
        if (status != SPOOL_OK)
            resolver_problem(r, c->name, "%s", error.text);
        else if (!type_equal(wished, c->type))
            resolver_problem(r, c->name, "the config says %s, the table has %s", wish->type,
                             in_table->type);
        type_free(wished);
    }
    return true;
}

/* The plain form of type, inside Nullable where asked. */
static int make_plain(const struct type *type, bool nullable, struct type **out)
{
    struct buf text;
    int status = SPOOL_OK;

    *out = NULL;
    buf_init(&text, 2 * LIMIT_TYPE_TEXT_BYTES);
    if (nullable)
        status = buf_append_str(&text, "Nullable(");
    if (status == SPOOL_OK)
        status = type_format_plain(type, &text);
    if (status == SPOOL_OK && nullable)
        status = buf_put_u8(&text, ')');
    if (status == SPOOL_OK)
        status = type_parse((const char *)text.data, text.len, out, NULL);
    buf_free(&text);
    return status;
}

static bool has_kind(const struct type *type, enum type_kind kind)
{
    if (type->kind == kind)
        return true;
    for (size_t i = 0; i < type->child_count; i++)
        if (has_kind(type->children[i], kind))
            return true;
    return false;
}

/* Whether the column can go into a Native block for this server. c->wire is the plain form. */
static bool goes_native(const struct schema_column *c)
{
    return schema_wire_sound(c->wire) && type_is_native(c->type);
}

/* Whether the server alone finds out what a value of the type is, so that its text must stay. */
static bool has_free_type(const struct type *type)
{
    return has_kind(type, TYPE_DYNAMIC) || has_kind(type, TYPE_VARIANT);
}

/* Whether NULL in a Nullable block is turned into the column's DEFAULT. */
static bool null_is_default(const struct resolver *r, const struct schema_column *c)
{
    return r->converting && c->wire->child_count == 0 && goes_native(c) &&
           schema_core_type(c->type)->kind != TYPE_JSON;
}

/* ---- values of the config and of literal DEFAULTs -------------------------------------------- */

/* Whether the decoder takes the column: its constant or default fits and its time zone is known. */
static int try_column(const struct resolver *r, const struct schema_column *c,
                      struct spool_error *error)
{
    struct schema one = *r->schema;
    struct schema_column column = *c;
    struct decoder *decoder = NULL;
    int status;

    if (!schema_wire_sound(c->wire))
        return SPOOL_OK; /* unchecked: the server alone knows the type */
    one.columns = &column;
    one.count = 1;
    one.format = FORMAT_NATIVE; /* what a value becomes is the same in both */
    status = decoder_create(&one, LIMIT_SCHEMA_BYTES, &decoder, error);
    decoder_free(decoder);
    return status;
}

static void check_null(struct resolver *r, const struct schema_column *c, const char *what,
                       const char *json)
{
    if (json && strcmp(json, "null") == 0 && !schema_type_nullable(c->type))
        resolver_problem(r, c->name, "\"%s\" is null, and %s is not Nullable", what, c->type->text);
}

static void check_values(struct resolver *r, struct schema_column *c)
{
    struct spool_error error = {0};
    int status;

    check_null(r, c, "value", c->literal);
    check_null(r, c, "default", c->default_json);
    status = try_column(r, c, &error);
    if (status == SPOOL_E_NOMEM)
        resolver_note(r, status);
    else if (status != SPOOL_OK)
        resolver_problem(r, NULL, "%s", error.text);
}

/* ---- one column ----------------------------------------------------------------------------- */

/* Whether a record may come without a value for the column, so that a default is looked for. */
static bool may_be_missing(const struct resolver *r, const struct schema_column *c)
{
    if (c->required || c->default_json || (r->options->strict && !schema_type_nullable(c->type)))
        return false;
    return c->source == SOURCE_KEY || c->source == SOURCE_MESSAGE_KEY ||
           c->source == SOURCE_TIMESTAMP;
}

/*
 * The DEFAULT as JSON with a NUL behind it. SPOOL_E_NOT_FOUND: it is no literal, or one that ClickHouse
 * casts to something else than it says (300 for a UInt8), which is left to the server like any other.
 */
static int literal_default(const struct resolver *r, const struct schema_column *c,
                           const char *expression, struct buf *json)
{
    int status = schema_default_literal(expression, c->type, json);
    struct schema_column probe = *c;

    if (status != SPOOL_OK)
        return status;
    if (!buf_cstr(json))
        return SPOOL_E_NOMEM;
    probe.source = SOURCE_KEY;
    probe.path = c->name;
    probe.literal = NULL;
    probe.truncate = false;
    probe.default_json = (char *)json->data;
    status = try_column(r, &probe, NULL);
    return status == SPOOL_OK || status == SPOOL_E_NOMEM ? status : SPOOL_E_NOT_FOUND;
}

static void set_default(struct resolver *r, struct schema_column *c,
                        const struct table_column *in_table, bool *needs_default)
{
    struct buf json;
    int status;

    if (!in_table->default_expression || !in_table->default_expression[0])
        return;
    /* What an EPHEMERAL column without a default of its own shows. */
    if (strncmp(in_table->default_expression, "defaultValueOfTypeName(", 23) == 0)
        return;
    buf_init(&json, LIMIT_SCHEMA_BYTES);
    status = literal_default(r, c, in_table->default_expression, &json);
    if (status == SPOOL_OK) {
        /* NULL is what a Nullable column gets anyway. */
        if (may_be_missing(r, c) && strcmp((char *)json.data, "null") != 0) {
            c->default_json = (char *)json.data;
            return;
        }
    } else if (status == SPOOL_E_NOT_FOUND) {
        c->default_expression = resolver_keep(r, in_table->default_expression);
        *needs_default = may_be_missing(r, c);
    } else {
        resolver_note(r, status);
    }
    buf_free(&json);
}

static void check_truncate(struct resolver *r, const struct schema_column *c)
{
    const struct type *type = schema_core_type(c->type);

    while (type->kind == TYPE_ARRAY)
        type = schema_core_type(type->children[0]);
    if (c->truncate && type->kind != TYPE_DECIMAL && type->kind != TYPE_DATETIME64)
        resolver_problem(r, c->name, "\"truncate\" is for Decimal, the column is %s",
                         c->type->text);
}

static void add_column(struct resolver *r, const struct column_wish *wish,
                       const struct table_column *in_table)
{
    size_t index = r->schema->count;
    struct schema_column *c = &r->schema->columns[index];
    const char *kind = in_table ? in_table->default_kind : "";
    size_t problems = r->problem_count;
    int status;

    for (size_t i = 0; i < index; i++)
        if (strcmp(r->schema->columns[i].name, wish->name) == 0) {
            resolver_problem(r, wish->name, "is named twice");
            return;
        }
    c->name = resolver_keep(r, wish->name);
    if (!c->name)
        return;
    /* Counted from here on, so that schema_free finds what it holds. */
    r->schema->count++;
    if (!c->name[0])
        resolver_problem(r, NULL, "a column has an empty name");
    if (kind && (strcmp(kind, "ALIAS") == 0 || strcmp(kind, "MATERIALIZED") == 0))
        resolver_problem(r, c->name, "is %s, which the server computes itself", kind);
    if (!set_type(r, c, wish, in_table))
        return;
    resolver_set_source(r, c, wish);
    check_truncate(r, c);
    if (schema_core_type(c->type)->kind == TYPE_AGGREGATE)
        resolver_problem(r, c->name, "is %s, a state that no record can give", c->type->text);
    status = make_plain(c->type, false, &c->wire);
    if (status != SPOOL_OK || r->status != SPOOL_OK) {
        resolver_note(r, status);
        return;
    }
    /* The decoder relies on a sound column. */
    if (r->problem_count != problems)
        return;
    check_values(r, c);
    if (in_table)
        set_default(r, c, in_table, &r->needs_default[index]);
}

/* ---- the format, and what hangs on it -------------------------------------------------------- */

static enum schema_format choose_format(const struct resolver *r)
{
    if (r->options->format != FORMAT_AUTO)
        return r->options->format;
    for (size_t i = 0; i < r->schema->count; i++) {
        const struct schema_column *c = &r->schema->columns[i];
        if (!c->wire)
            continue;
        if (!goes_native(c))
            return FORMAT_JSON;
    }
    return FORMAT_NATIVE;
}

static void problem_default(struct resolver *r, const struct schema_column *c)
{
    const struct server_version *v = &r->schema->server;

    resolver_problem(r, c->name,
                     "ClickHouse %u.%u does not apply its DEFAULT %s to lines of JSON: use format "
                     "auto or native, say what a record without the key gets (\"default\", or "
                     "\"required\": true), or leave the column out of \"columns\"",
                     v->major, v->minor, c->default_expression);
}

static void finish_native(struct resolver *r, struct schema_column *c, bool needs_default)
{
    struct type *wire = NULL;
    int status;

    if (!goes_native(c)) {
        resolver_problem(r, c->name,
                         "%s cannot go into Native blocks for ClickHouse %u.%u; use format auto "
                         "or json",
                         c->type->text, r->schema->server.major, r->schema->server.minor);
        return;
    }
    if (!r->converting && has_kind(c->type, TYPE_LOW_CARDINALITY)) {
        type_free(c->wire);
        status = make_exact(c->type, &c->wire);
        if (status != SPOOL_OK) {
            resolver_note(r, status);
            return;
        }
    }
    if (!needs_default)
        return;
    c->default_by_server = true;
    if (!null_is_default(r, c))
        return;
    status = make_plain(c->wire, true, &wire);
    if (status != SPOOL_OK) {
        resolver_note(r, status);
        return;
    }
    type_free(c->wire);
    c->wire = wire;
}

static void finish_json(struct resolver *r, struct schema_column *c, bool needs_default)
{
    c->unchecked = !goes_native(c) || has_free_type(c->type);
    if (!needs_default)
        return;
    if (r->converting)
        c->default_by_server = true;
    else
        problem_default(r, c);
}

static void finish_columns(struct resolver *r)
{
    struct schema *schema = r->schema;

    schema->format = choose_format(r);
    for (size_t i = 0; i < schema->count; i++) {
        if (!schema->columns[i].wire)
            continue; /* has a problem already */
        if (schema->format == FORMAT_NATIVE)
            finish_native(r, &schema->columns[i], r->needs_default[i]);
        else
            finish_json(r, &schema->columns[i], r->needs_default[i]);
    }
}

/* Whether a stream without "columns" takes this one. */
static bool is_ordinary(const struct table_column *c)
{
    return !c->default_kind || !c->default_kind[0] || strcmp(c->default_kind, "DEFAULT") == 0;
}

static void add_columns(struct resolver *r)
{
    const struct schema_options *o = r->options;

    if (!o->wishes) {
        for (size_t i = 0; i < r->table_count; i++) {
            struct column_wish wish = {.name = r->table[i].name};
            if (is_ordinary(&r->table[i]))
                add_column(r, &wish, &r->table[i]);
        }
    }
    for (size_t i = 0; o->wishes && i < o->wish_count; i++) {
        const struct column_wish *wish = &o->wishes[i];
        const struct table_column *in_table = table_find(r, wish->name);
        if (r->table && !in_table)
            problem_no_column(r, wish->name);
        else
            add_column(r, wish, in_table);
    }
    if (r->schema->count == 0 && r->problem_count == 0)
        resolver_problem(r, NULL,
                         r->table ? "the table has no column that can be filled"
                                  : "no columns are given, and the table has not been seen yet");
}

static int resolve(struct resolver *r, struct server_version server, const char *server_timezone,
                   struct schema **out)
{
    size_t columns = r->options->wishes ? r->options->wish_count : r->table_count;
    struct schema *schema;
    int status = SPOOL_E_NOMEM;

    *out = NULL;
    if (columns > LIMIT_COLUMNS || r->table_count > LIMIT_COLUMNS) {
        resolver_problem(r, NULL, "more than %d columns", LIMIT_COLUMNS);
        return SPOOL_E_INVALID;
    }
    r->converting = server.major >= CONVERTING_MAJOR;
    r->needs_default = calloc(columns + 1, sizeof(*r->needs_default));
    r->schema = schema = calloc(1, sizeof(*schema));
    if (!r->needs_default || !schema)
        goto done;
    schema->columns = calloc(columns + 1, sizeof(*schema->columns));
    schema->server_timezone = strdup(server_timezone ? server_timezone : "UTC");
    if (!schema->columns || !schema->server_timezone)
        goto done;
    schema->server = server;
    schema->unknown_keys = r->options->unknown_keys;
    schema->strict = r->options->strict;
    schema->schema_registry_framing = r->options->schema_registry_framing;
    add_columns(r);
    if (r->status == SPOOL_OK)
        finish_columns(r);
    status = r->status;
    if (status == SPOOL_OK && r->problem_count > 0)
        status = SPOOL_E_INVALID;
    if (status == SPOOL_OK)
        status = schema_set_hash(schema);
done:
    free(r->needs_default);
    if (status == SPOOL_OK)
        *out = schema;
    else
        schema_free(schema);
    return status;
}

int schema_resolve(const struct schema_options *options, const struct table_column *columns,
                   size_t column_count, struct server_version server, const char *server_timezone,
                   struct schema **out, struct buf *problems)
{
    static const struct table_column none;
    struct resolver r = {
        .options = options,
        .table = column_count ? columns : &none,
        .table_count = column_count,
        .problems = problems,
    };

    return resolve(&r, server, server_timezone, out);
}

int schema_from_wishes(const struct schema_options *options, struct server_version server,
                       const char *server_timezone, struct schema **out, struct buf *problems)
{
    struct resolver r = {.options = options, .problems = problems};

    return resolve(&r, server, server_timezone, out);
}
