/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Variant in its own form: a discriminator a row, then each member's values. Which member a value
 * becomes is found as ClickHouse finds it: the members are tried in an order of its own (deeper
 * nested ones first, then arrays, enums, addresses, numbers from narrow to wide, dates, strings),
 * and the first that takes the value has it. A value too large for a narrow member is not wrapped
 * into it but goes to the next.
 *
 * Dynamic is written as a Variant of what a JSON scalar can be. There a text is always a String, and
 * so are arrays and objects, whose types the server alone would find.
 */
#include <stdlib.h>
#include <string.h>

#include "codec/column.h"

#define SAVED_A_NODE 3

/* From the first tried to the last. */
static const enum type_kind order_of_kinds[] = {
    TYPE_ARRAY,   TYPE_TUPLE,  TYPE_MAP,      TYPE_ENUM8,      TYPE_ENUM16,       TYPE_UUID,
    TYPE_IPV4,    TYPE_IPV6,   TYPE_BOOL,     TYPE_INT8,       TYPE_UINT8,        TYPE_INT16,
    TYPE_UINT16,  TYPE_INT32,  TYPE_UINT32,   TYPE_INT64,      TYPE_UINT64,       TYPE_INT128,
    TYPE_UINT128, TYPE_INT256, TYPE_UINT256,  TYPE_DECIMAL,    TYPE_FLOAT32,      TYPE_FLOAT64,
    TYPE_DATE,    TYPE_DATE32, TYPE_DATETIME, TYPE_DATETIME64, TYPE_FIXED_STRING, TYPE_STRING,
};
#define KINDS (sizeof(order_of_kinds) / sizeof(order_of_kinds[0]))

struct priority {
    unsigned depth;
    unsigned kinds; /* the sum over the levels */
};

/* Decimals count by their width; between two kinds there is room for that. */
static unsigned kind_priority(const struct type *type)
{
    enum type_kind kind = type->kind;

    if (kind == TYPE_POINT)
        kind = TYPE_TUPLE;
    else if (kind != TYPE_MAP && type_is_list(kind))
        kind = TYPE_ARRAY;
    for (size_t i = 0; i < KINDS; i++)
        if (order_of_kinds[i] == kind)
            return (unsigned)(KINDS - i) * 64 - (kind == TYPE_DECIMAL ? type->width : 0);
    return 0;
}

static struct priority priority_of(const struct type *type, unsigned depth)
{
    struct priority p = {depth, kind_priority(type)};

    if (type->kind == TYPE_NULLABLE || type->kind == TYPE_LOW_CARDINALITY)
        return priority_of(type->children[0], depth);
    for (size_t i = 0; i < type->child_count; i++) {
        struct priority child = priority_of(type->children[i], depth + 1);
        if (child.depth > p.depth)
            p.depth = child.depth;
        p.kinds += child.kinds;
    }
    return p;
}

static bool goes_before(const struct type *a, const struct type *b)
{
    struct priority x = priority_of(a, 0), y = priority_of(b, 0);

    return x.depth != y.depth ? x.depth > y.depth : x.kinds > y.kinds;
}

/* ---- trying a member ---- */

static size_t count_nodes(const struct column *c)
{
    size_t n = 1;

    for (size_t i = 0; i < c->child_count; i++)
        n += count_nodes(c->children[i]);
    return n;
}

/* Marks are the row's; what a trial adds is undone by these. */
static size_t *save(const struct column *c, size_t *to)
{
    *to++ = c->data.len;
    *to++ = c->nulls.len;
    *to++ = (size_t)c->count;
    for (size_t i = 0; i < c->child_count; i++)
        to = save(c->children[i], to);
    return to;
}

static const size_t *restore(struct column *c, const size_t *from)
{
    c->data.len = *from++;
    c->nulls.len = *from++;
    c->count = *from++;
    for (size_t i = 0; i < c->child_count; i++)
        from = restore(c->children[i], from);
    return from;
}

static bool value_ends(const struct scan *s)
{
    return s->p == s->end || json_is_blank(*s->p) || *s->p == ',' || *s->p == ']' || *s->p == '}';
}

/* nan, inf and the like, which a Float64 takes, and a Dynamic only with a sign. */
static bool is_word(const uint8_t *p)
{
    return (*p | 0x20) >= 'a' && (*p | 0x20) <= 'z';
}

static bool is_word_byte(uint8_t c)
{
    return ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || c == '_';
}

/* Half a pair of surrogates: an escape at p for a high one without its low one. */
static bool is_half_pair(const uint8_t *p, const uint8_t *end)
{
    bool high = end - p >= 6 && *p == '\\' && p[1] == 'u' && (p[2] | 0x20) == 'd' &&
                memchr("89ab", p[3] | 0x20, 4);

    return high && !(end - p >= 12 && p[6] == '\\' && p[7] == 'u' && (p[8] | 0x20) == 'd' &&
                     memchr("cdef", p[9] | 0x20, 4));
}

/*
 * ClickHouse looks at the value as a field of JSON before any member may have it: what is a number to
 * a Float64 alone (inf, nan without a sign) and a comma before the end are none there, nor is a text
 * with half a pair of surrogates, wherever it stands.
 */
static bool is_field(const uint8_t *p, const uint8_t *end)
{
    uint8_t before = 0; /* the last byte that was no blank */

    for (; p < end; p++) {
        if (*p == '"') {
            for (p++; p < end && *p != '"'; p++) {
                if (is_half_pair(p, end))
                    return false;
                p += *p == '\\';
            }
            before = '"';
            continue;
        }
        if ((*p == ']' || *p == '}') && before == ',')
            return false;
        if (is_word_byte(*p)) {
            const uint8_t *word = p;
            while (p < end && (is_word_byte(*p) || (*p >= '0' && *p <= '9')))
                p++;
            size_t n = (size_t)(p-- - word);
            bool number =
                before == '-' || before == '+' || before == '.' || (before >= '0' && before <= '9');
            if (!number &&
                !(n == 4 && (memcmp(word, "null", 4) == 0 || memcmp(word, "true", 4) == 0)) &&
                !(n == 5 && memcmp(word, "false", 5) == 0))
                return false;
        }
        if (!json_is_blank(*p))
            before = *p;
    }
    return true;
}

static int variant_value(struct column *c, struct scan *s)
{
    const uint8_t *start = s->p;
    unsigned depth = s->depth;
    bool text = *start == '"' || *start == '[' || *start == '{';
    bool is_number = *start != 't' && *start != 'f';

    if (c->kind == TYPE_DYNAMIC && !text && is_number && is_word(start))
        return scan_refuse(s, REFUSAL_TYPE, "%s takes JSON values", column_type_text(c));
    for (size_t i = 0; i < c->child_count; i++) {
        struct column *member = c->children[c->order[i]];
        int status;
        if (c->kind == TYPE_DYNAMIC && text != (member->kind == TYPE_STRING))
            continue;
        if (c->kind == TYPE_DYNAMIC && member->kind == TYPE_BOOL && is_number)
            continue; /* a Bool would take 0 and 1 */
        save(member, c->saved);
        status = column_append(member, s);
        if (status == SPOOL_OK && value_ends(s) && !is_field(start, s->p))
            break;
        if (status == SPOOL_OK && value_ends(s))
            return column_put(c, c->order[i], 1);
        if (status != SPOOL_OK && status != SPOOL_E_REFUSED)
            return status;
        restore(member, c->saved);
        s->p = start;
        s->depth = depth;
    }
    s->p = start;
    return scan_refuse(s, REFUSAL_TYPE, "no member of %s takes the value", column_type_text(c));
}

/*
 * ClickHouse tries a member's decimal as text that ends with it, or goes on as an array does: a quote,
 * a blank or a brace behind it is an error there, unless it has an exponent.
 */
bool variant_takes_decimal(const struct scan *s, bool has_exponent, bool quoted)
{
    return has_exponent || (s->p < s->end && (*s->p == ',' || *s->p == ']')) ||
           (!quoted && s->depth + 1 == s->in_variant);
}

static const uint8_t *append_variant(struct column *c, struct scan *s, const uint8_t *p)
{
    unsigned outer = s->in_variant;
    int status;

    s->p = p;
    s->in_variant = s->depth + 1;
    status = variant_value(c, s);
    s->in_variant = outer;
    return scan_done(s, status);
}

int column_make_variant(struct column *c, const struct type *wire,
                        const struct column_context *context, struct spool_error *error)
{
    size_t n = wire->child_count, nodes = 0;
    int status = SPOOL_OK;

    c->form = FORM_VARIANT;
    c->append = append_variant;
    c->width = 1;
    for (size_t i = 0; i < n && status == SPOOL_OK; i++)
        status = column_add_child(c, wire->children[i], wire->children[i], context, error);
    if (status != SPOOL_OK)
        return status;
    c->order = calloc(n ? n : 1, sizeof(*c->order));
    for (size_t i = 0; i < n; i++) {
        size_t count = count_nodes(c->children[i]), at = i;
        nodes = count > nodes ? count : nodes;
        if (!c->order)
            break;
        for (; at > 0 && goes_before(wire->children[i], wire->children[c->order[at - 1]]); at--)
            c->order[at] = c->order[at - 1];
        c->order[at] = (uint8_t)i;
    }
    c->saved = calloc(nodes * SAVED_A_NODE + 1, sizeof(*c->saved));
    return c->order && c->saved ? SPOOL_OK : SPOOL_E_NOMEM;
}
