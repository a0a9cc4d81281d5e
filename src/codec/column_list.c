/* SPDX-License-Identifier: Apache-2.0 */
/* Array, Map, Nested and Tuple, and the geo types, which are made of them. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/column.h"

/* ---- elements ---- */

int column_append_element(struct column *element, struct scan *s)
{
    int status;

    if (*s->p != 'n')
        return column_append(element, s);
    status = json_literal(s, "null", 4);
    if (status != SPOOL_OK)
        return status;
    if (element->nullable)
        return column_append_null(element);
    if (s->strict || element->kind == TYPE_ENUM8 || element->kind == TYPE_ENUM16)
        return scan_refuse_at(s, s->p - 4, REFUSAL_NULL, "null in an element of type %s",
                              column_type_text(element));
    return column_append_zero(element);
}

/* Passes the bracket that s->p is at. */
static int enter(struct scan *s)
{
    if (s->depth >= LIMIT_JSON_DEPTH)
        return scan_refuse(s, REFUSAL_DEPTH, "nested deeper than %d levels", LIMIT_JSON_DEPTH);
    s->depth++;
    s->p = json_blank(s->p + 1, s->end);
    return SPOOL_OK;
}

static bool at_byte(const struct scan *s, char c)
{
    return s->p < s->end && *s->p == (uint8_t)c;
}

/* The colon behind a key, and the blanks around it, up to the value. */
static int pass_colon(struct scan *s)
{
    s->p = json_blank(s->p, s->end);
    if (!at_byte(s, ':'))
        return scan_refuse_token(s, "a colon");
    s->p = json_blank(s->p + 1, s->end);
    return s->p == s->end ? scan_refuse_token(s, "a value") : SPOOL_OK;
}

/* ---- lists ---- */

static int map_entry(struct column *c, struct scan *s)
{
    int status;

    if (*s->p != '"')
        return scan_refuse_token(s, "a key");
    status = column_append(c->children[0], s);
    if (status == SPOOL_OK)
        status = pass_colon(s);
    return status == SPOOL_OK ? column_append_element(c->children[1], s) : status;
}

/* A comma before the closing bracket is taken, as JSONEachRow does. */
static int list_value(struct column *c, struct scan *s)
{
    bool map = c->kind == TYPE_MAP;
    char close = map ? '}' : ']';
    int status;

    if (*s->p != (map ? '{' : '['))
        return scan_refuse(s, REFUSAL_TYPE, "%s takes an %s", column_type_text(c),
                           map ? "object" : "array");
    status = enter(s);
    if (status != SPOOL_OK)
        return status;
    while (s->p < s->end && *s->p != close) {
        if (c->count >= c->count_max) /* {} may be a hundred numbers: not after all are there */
            return SPOOL_E_LIMIT;
        status = map ? map_entry(c, s) : column_append_element(c->children[0], s);
        if (status != SPOOL_OK)
            return status;
        c->count++;
        s->p = json_blank(s->p, s->end);
        if (at_byte(s, ',')) {
            s->p = json_blank(s->p + 1, s->end);
            continue;
        }
        if (!at_byte(s, close))
            return scan_refuse_token(s, map ? "a comma or the end of the object"
                                            : "a comma or the end of the array");
    }
    if (s->p == s->end)
        return scan_refuse_token(s, map ? "the end of the object" : "the end of the array");
    s->p++;
    s->depth--;
    return column_put(c, c->count, 8);
}

static const uint8_t *append_list(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, list_value(c, s));
}

/* The least that a value takes in a block. */
static size_t least_bytes(const struct column *c)
{
    size_t n = c->wire_nullable;

    if (c->form == FORM_LIST)
        return n + 8;
    if (c->form != FORM_TUPLE)
        return n + (c->form == FORM_PLAIN && c->width ? c->width : 1);
    for (size_t i = 0; i < c->child_count; i++)
        n += least_bytes(c->children[i]);
    return n + !c->child_count;
}

/* An entry of a Nested: a Tuple of its elements, as a node of its own without a type. */
static int add_entry(struct column *c, const struct type *type, const struct type *wire,
                     const struct column_context *context, struct spool_error *error)
{
    struct column *entry = calloc(1, sizeof(*entry));

    if (!entry)
        return SPOOL_E_NOMEM;
    c->children[c->child_count++] = entry;
    entry->max = context->max_bytes;
    entry->composite = true;
    entry->kind = TYPE_TUPLE;
    entry->type = type;
    entry->children = calloc(type->child_count, sizeof(struct column *));
    if (!entry->children)
        return SPOOL_E_NOMEM;
    return column_make_tuple(entry, type, wire, context, error);
}

int column_make_list(struct column *c, const struct type *type, const struct type *wire,
                     const struct column_context *context, struct spool_error *error)
{
    bool nested = type->kind == TYPE_NESTED;
    size_t least = 0;
    int status = SPOOL_OK;

    c->form = FORM_LIST;
    c->append = append_list;
    c->width = 0;
    if (nested)
        status = add_entry(c, type, wire, context, error);
    for (size_t i = c->child_count; i < type->child_count && status == SPOOL_OK && !nested; i++)
        status = column_add_child(c, type->children[i], wire->children[i], context, error);
    if (status != SPOOL_OK)
        return status;
    c->children[0]->is_key = type->kind == TYPE_MAP;
    for (size_t i = 0; i < c->child_count; i++)
        least += least_bytes(c->children[i]);
    c->count_max = context->max_bytes / least;
    return SPOOL_OK;
}

/* ---- tuples ---- */

/* Without names: an array of exactly the elements. */
static int unnamed_value(struct column *c, struct scan *s)
{
    int status;

    if (*s->p != '[')
        return scan_refuse(s, REFUSAL_TYPE, "%s takes an array", column_type_text(c));
    status = enter(s);
    for (size_t i = 0; i < c->child_count && status == SPOOL_OK; i++) {
        s->p = json_blank(s->p, s->end);
        if (i && !at_byte(s, ','))
            return scan_refuse(s, REFUSAL_TYPE, "%s takes %zu elements", column_type_text(c),
                               c->child_count);
        if (i)
            s->p = json_blank(s->p + 1, s->end);
        if (s->p == s->end)
            return scan_refuse_token(s, "a value");
        if (*s->p == ']')
            return scan_refuse(s, REFUSAL_TYPE, "%s takes %zu elements", column_type_text(c),
                               c->child_count);
        status = column_append_element(c->children[i], s);
    }
    if (status != SPOOL_OK)
        return status;
    s->p = json_blank(s->p, s->end);
    if (!at_byte(s, ']'))
        return scan_refuse(s, REFUSAL_TYPE, "%s takes %zu elements", column_type_text(c),
                           c->child_count);
    s->p++;
    s->depth--;
    return c->child_count ? SPOOL_OK : column_put(c, '0', 1);
}

/* The element of that name, looked for from where the last one's neighbour stands. */
static size_t find_element(const struct column *c, size_t from, const uint8_t *name, size_t size)
{
    for (size_t n = 0; n < c->child_count; n++) {
        size_t i = from + n < c->child_count ? from + n : from + n - c->child_count;
        if (c->name_sizes[i] == size && memcmp(c->type->child_names[i], name, size) == 0)
            return i;
    }
    return SIZE_MAX;
}

static int named_member(struct column *c, struct scan *s, size_t *next)
{
    const uint8_t *name, *at = s->p;
    size_t size, i;
    int status;

    if (*s->p != '"')
        return scan_refuse_token(s, "a key");
    status = json_string(s, &name, &size);
    if (status != SPOOL_OK)
        return status;
    i = find_element(c, *next, name, size);
    status = pass_colon(s);
    if (status != SPOOL_OK)
        return status;
    if (i == SIZE_MAX)
        return json_skip(s);
    if (c->seen[i] == c->stamp)
        return scan_refuse_at(s, at, REFUSAL_DUPLICATE_KEY, "an element of %s comes twice",
                              column_type_text(c));
    c->seen[i] = c->stamp;
    *next = i + 1;
    return column_append_element(c->children[i], s);
}

static int fill_missing(struct column *c, struct scan *s)
{
    int status = SPOOL_OK;

    for (size_t i = 0; i < c->child_count && status == SPOOL_OK; i++) {
        if (c->seen[i] == c->stamp)
            continue;
        if (s->strict && !c->children[i]->nullable)
            return scan_refuse(s, REFUSAL_REQUIRED, "the element %.100s is missing",
                               c->type->child_names[i]);
        status = column_append_zero(c->children[i]);
    }
    return status;
}

/* With names: an object, in any order; what is missing is zero, what is unknown passed over. */
static int named_value(struct column *c, struct scan *s)
{
    size_t next = 0;
    bool more;
    int status;

    if (*s->p != '{')
        return scan_refuse(s, REFUSAL_TYPE, "%s takes an object", column_type_text(c));
    status = enter(s);
    if (status != SPOOL_OK)
        return status;
    c->stamp++;
    more = !at_byte(s, '}');
    while (more) {
        if (s->p == s->end)
            return scan_refuse_token(s, "a key");
        status = named_member(c, s, &next);
        if (status != SPOOL_OK)
            return status;
        s->p = json_blank(s->p, s->end);
        more = at_byte(s, ',');
        if (more)
            s->p = json_blank(s->p + 1, s->end);
        else if (!at_byte(s, '}'))
            return scan_refuse_token(s, "a comma or the end of the object");
    }
    s->p++;
    s->depth--;
    return fill_missing(c, s);
}

static const uint8_t *append_unnamed(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, unnamed_value(c, s));
}

static const uint8_t *append_named(struct column *c, struct scan *s, const uint8_t *p)
{
    s->p = p;
    return scan_done(s, named_value(c, s));
}

int column_make_tuple(struct column *c, const struct type *type, const struct type *wire,
                      const struct column_context *context, struct spool_error *error)
{
    size_t n = type->child_count;
    int status = SPOOL_OK;

    c->form = FORM_TUPLE;
    c->append = append_unnamed;
    c->width = n ? 0 : 1;
    for (size_t i = 0; i < n && status == SPOOL_OK; i++)
        status = column_add_child(c, type->children[i], wire->children[i], context, error);
    if (status != SPOOL_OK || n == 0 || !type->child_names[0])
        return status;
    c->append = append_named;
    c->seen = calloc(n, sizeof(*c->seen));
    c->name_sizes = calloc(n, sizeof(*c->name_sizes));
    if (!c->seen || !c->name_sizes)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < n; i++)
        c->name_sizes[i] = strlen(type->child_names[i]);
    return SPOOL_OK;
}
