/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <stdlib.h>

#include "base/limits.h"
#include "codec/type_int.h"

#define FIXED_STRING_BYTES_MAX 0xffffffu /* ClickHouse's own bound */
#define DECIMAL_DIGITS_MAX     76
#define TIME_SCALE_MAX         9
#define VARIANT_MEMBERS_MAX    255

static int parse_type(struct parser *p, unsigned depth, struct type **out);

/* Takes child and name over, in every case. */
static int add_child(struct parser *p, struct type *type, struct type *child, char *name)
{
    size_t n = type->child_count;

    if ((n & (n - 1)) == 0) {
        size_t cap = n ? n * 2 : 1;
        struct type **children = realloc(type->children, cap * sizeof(*children));
        char **names;
        if (!children)
            goto memory;
        type->children = children;
        names = realloc(type->child_names, cap * sizeof(*names));
        if (!names)
            goto memory;
        type->child_names = names;
    }
    type->children[n] = child;
    type->child_names[n] = name;
    type->child_count = n + 1;
    return SPOOL_OK;
memory:
    type_free(child);
    free(name);
    return parser_fail_memory(p);
}

static int parse_child(struct parser *p, unsigned depth, struct type *type, char *name)
{
    struct type *child = NULL;
    int status = parse_type(p, depth + 1, &child);

    if (status != SPOOL_OK) {
        free(name);
        return status;
    }
    return add_child(p, type, child, name);
}

/* The name before an element's type, or NULL in *name when the element has none. */
static int take_element_name(struct parser *p, char **name)
{
    const char *begin, *word = NULL;
    size_t size = 0;
    char c = parser_peek(p);

    *name = NULL;
    if (c == '`' || c == '"')
        return parser_quoted_cstr(p, name);
    begin = p->at;
    if (!parser_word(p, &word, &size))
        return parser_fail(p, "expected a type");
    c = parser_peek(p);
    if (!type_is_word_start(c)) {
        p->at = begin;
        return SPOOL_OK;
    }
    *name = strndup(word, size);
    return *name ? SPOOL_OK : parser_fail_memory(p);
}

static int parse_elements(struct parser *p, unsigned depth, struct type *type, enum shape shape)
{
    bool named = shape == SHAPE_NAMED;
    int status;

    if (shape == SHAPE_ELEMENTS && parser_peek(p) == ')')
        return SPOOL_OK;
    do {
        char *name = NULL;
        if (type->kind == TYPE_VARIANT && type->child_count == VARIANT_MEMBERS_MAX)
            return parser_fail(p, "a Variant of more than 255 types");
        if (shape != SHAPE_SEVERAL) {
            status = take_element_name(p, &name);
            if (status != SPOOL_OK)
                return status;
            if (shape == SHAPE_ELEMENTS && type->child_count == 0)
                named = name != NULL;
            if (named != (name != NULL)) {
                free(name);
                return parser_fail(p, "either every element has a name or none has");
            }
        }
        status = parse_child(p, depth, type, name);
        if (status != SPOOL_OK)
            return status;
    } while (parser_take(p, ','));
    return SPOOL_OK;
}

static int member_by_value(const void *a, const void *b)
{
    return ((const struct type_enum_member *)a)->value -
           ((const struct type_enum_member *)b)->value;
}

static int check_members(struct parser *p, struct type *type)
{
    struct type_enum_member *m = type->members;

    qsort(m, type->member_count, sizeof(*m), type_member_order);
    for (size_t i = 1; i < type->member_count; i++)
        if (type_member_order(&m[i - 1], &m[i]) == 0)
            return parser_fail(p, "an Enum has a name twice");
    qsort(m, type->member_count, sizeof(*m), member_by_value);
    for (size_t i = 1; i < type->member_count; i++)
        if (m[i - 1].value == m[i].value)
            return parser_fail(p, "an Enum has a number twice");
    return SPOOL_OK;
}

/* A member without a number takes the one after its neighbour's; the first takes 1. */
static int parse_enum(struct parser *p, struct type *type)
{
    int64_t min = type->kind == TYPE_ENUM8 && type->width ? INT8_MIN : INT16_MIN;
    int64_t max = type->kind == TYPE_ENUM8 && type->width ? INT8_MAX : INT16_MAX;
    int64_t value = 0;
    bool wide = false;

    do {
        struct type_enum_member *m;
        size_t n = type->member_count;
        int status;
        if (parser_peek(p) != '\'')
            return parser_fail(p, "expected a quoted name");
        if ((n & (n - 1)) == 0) {
            m = realloc(type->members, (n ? n * 2 : 1) * sizeof(*m));
            if (!m)
                return parser_fail_memory(p);
            type->members = m;
        }
        m = &type->members[n];
        status = parser_quoted(p, &m->name, &m->name_size);
        if (status != SPOOL_OK)
            return status;
        type->member_count++;
        value++;
        if (parser_take(p, '='))
            status = parser_number(p, min, max, &value);
        else if (value > max)
            status = parser_fail(p, "the number is out of range");
        if (status != SPOOL_OK)
            return status;
        m->value = (int16_t)value;
        wide = wide || value < INT8_MIN || value > INT8_MAX;
    } while (parser_take(p, ','));
    if (type->width == 0) {
        type->kind = wide ? TYPE_ENUM16 : TYPE_ENUM8;
        type->width = wide ? 2 : 1;
    }
    return check_members(p, type);
}

/*
 * Appends text with one blank after a comma, none around other punctuation, and one between words.
 * Quoted parts stay as they are; the parser has seen that they are closed.
 */
static int put_opaque(struct buf *out, const char *text, size_t size)
{
    char last = 0;
    bool blank = false;
    int status = SPOOL_OK;

    for (size_t i = 0; i < size && status == SPOOL_OK; i++) {
        char c = text[i];
        if (type_is_blank(c)) {
            blank = true;
            continue;
        }
        if (last == ',' || (blank && last && !strchr("(,=", last) && !strchr("(),=", c)))
            status = buf_put_u8(out, ' ');
        blank = false;
        last = c;
        if (status == SPOOL_OK)
            status = buf_put_u8(out, (uint8_t)c);
        if (c != '\'' && c != '"' && c != '`')
            continue;
        while (status == SPOOL_OK && ++i < size) {
            status = buf_put_u8(out, (uint8_t)text[i]);
            if (text[i] == c)
                break;
            if (text[i] == '\\' && i + 1 < size && status == SPOOL_OK)
                status = buf_put_u8(out, (uint8_t)text[++i]);
        }
    }
    return status;
}

/* The name, where there is one that counts, and what stands from begin to end. */
static int set_spelling(struct parser *p, struct type *type, const char *name, const char *begin,
                        const char *end)
{
    struct buf out;

    /* A blank may be added behind every comma. */
    buf_init(&out, strlen(name) + 2 * (size_t)(end - begin) + 2);
    if (buf_append_str(&out, name) != SPOOL_OK ||
        put_opaque(&out, begin, (size_t)(end - begin)) != SPOOL_OK || !buf_cstr(&out)) {
        buf_free(&out);
        return parser_fail_memory(p);
    }
    type->spelling = (char *)out.data;
    return SPOOL_OK;
}

/* Moves behind balanced parentheses up to the ')' or, where asked, the ',' that ends them. */
static int skip_balanced(struct parser *p, bool stop_at_comma)
{
    unsigned depth = 0;

    for (;;) {
        char c = parser_peek(p);
        if (p->at == p->end)
            return parser_fail(p, "a parenthesis is not closed");
        if (depth == 0 && (c == ')' || (stop_at_comma && c == ',')))
            return SPOOL_OK;
        if (c == '\'' || c == '"' || c == '`') {
            char *text = NULL;
            size_t size = 0;
            int status = parser_quoted(p, &text, &size);
            free(text);
            if (status != SPOOL_OK)
                return status;
            continue;
        }
        if (c == '(' && ++depth > LIMIT_TYPE_DEPTH)
            return parser_fail(p, "nested too deep");
        if (c == ')')
            depth--;
        p->at++;
    }
}

static int parse_function(struct parser *p, unsigned depth, struct type *type)
{
    const char *begin;
    int status;

    parser_skip_blanks(p);
    begin = p->at;
    status = skip_balanced(p, true);
    if (status == SPOOL_OK && p->at == begin)
        status = parser_fail(p, "expected a function");
    if (status == SPOOL_OK)
        status = set_spelling(p, type, "", begin, p->at);
    if (status == SPOOL_OK)
        status = parser_expect(p, ',');
    return status == SPOOL_OK ? parse_child(p, depth, type, NULL) : status;
}

static uint32_t decimal_width(unsigned precision)
{
    return precision <= 9 ? 4 : precision <= 18 ? 8 : precision <= 38 ? 16 : 32;
}

static int parse_decimal(struct parser *p, struct type *type, const struct type_name *name)
{
    int64_t precision = name->width, scale = 0;
    int status = SPOOL_OK;

    if (name->shape == SHAPE_DECIMAL)
        status = parser_number(p, 1, DECIMAL_DIGITS_MAX, &precision);
    if (status == SPOOL_OK && (name->shape == SHAPE_DECIMAL_SCALE || parser_take(p, ',')))
        status = parser_number(p, 0, precision, &scale);
    type->precision = (uint8_t)precision;
    type->scale = (uint8_t)scale;
    type->width = decimal_width((unsigned)precision);
    return status;
}

static int parse_zone(struct parser *p, struct type *type)
{
    if (parser_peek(p) != '\'')
        return parser_fail(p, "expected a quoted time zone");
    return parser_quoted_cstr(p, &type->timezone);
}

/* Of a DateTime or a Time. 0 is as good as none; else it is the same with the scale in its name. */
static int parse_scale(struct parser *p, struct type *type)
{
    int64_t scale = 0;
    int status = parser_number(p, 0, TIME_SCALE_MAX, &scale);

    if (status == SPOOL_OK && scale) {
        type->kind = type->kind == TYPE_DATETIME ? TYPE_DATETIME64 : TYPE_TIME64;
        type->width = 8;
        type->scale = (uint8_t)scale;
    }
    return status;
}

static int parse_date_time(struct parser *p, struct type *type)
{
    int status;

    if (!type_is_digit(parser_peek(p)))
        return parse_zone(p, type);
    status = parse_scale(p, type);
    return status == SPOOL_OK && parser_take(p, ',') ? parse_zone(p, type) : status;
}

/* The arguments of a known name, between its parentheses. */
static int parse_arguments(struct parser *p, unsigned depth, struct type *type,
                           const struct type_name *name)
{
    int64_t number = 0;
    int status;

    switch (name->shape) {
    case SHAPE_SIZE:
    case SHAPE_SIZES:
        status = parser_number(p, 0, INT64_MAX, &number);
        if (status == SPOOL_OK && name->shape == SHAPE_SIZES && parser_take(p, ','))
            status = parser_number(p, 0, INT64_MAX, &number);
        return status;
    case SHAPE_WIDTH:
        status = parser_number(p, 1, FIXED_STRING_BYTES_MAX, &number);
        type->width = (uint32_t)number;
        return status;
    case SHAPE_ZONE:
        return parse_zone(p, type);
    case SHAPE_DATETIME:
        return parse_date_time(p, type);
    case SHAPE_TIME:
        return parse_scale(p, type);
    case SHAPE_SCALE:
    case SHAPE_SCALE_ZONE:
        status = parser_number(p, 0, TIME_SCALE_MAX, &number);
        type->scale = (uint8_t)number;
        if (status == SPOOL_OK && name->shape == SHAPE_SCALE_ZONE && parser_take(p, ','))
            status = parse_zone(p, type);
        return status;
    case SHAPE_DECIMAL:
    case SHAPE_DECIMAL_SCALE:
        return parse_decimal(p, type, name);
    case SHAPE_ENUM:
        return parse_enum(p, type);
    case SHAPE_ONE:
        return parse_child(p, depth, type, NULL);
    case SHAPE_TWO:
        status = parse_child(p, depth, type, NULL);
        if (status == SPOOL_OK)
            status = parser_expect(p, ',');
        return status == SPOOL_OK ? parse_child(p, depth, type, NULL) : status;
    case SHAPE_ELEMENTS:
    case SHAPE_NAMED:
    case SHAPE_SEVERAL:
        return parse_elements(p, depth, type, name->shape);
    case SHAPE_FUNCTION:
        return parse_function(p, depth, type);
    case SHAPE_OPAQUE:
        return skip_balanced(p, false);
    case SHAPE_NONE:
    case SHAPE_GEO:
    case SHAPE_INTERVAL:
        break;
    }
    return parser_fail(p, "this type takes no arguments");
}

/* What a name without parentheses means, where it means anything. */
static int without_arguments(struct parser *p, struct type *type, const struct type_name *name)
{
    switch (name->shape) {
    case SHAPE_NONE:
    case SHAPE_SIZE:
    case SHAPE_SIZES:
    case SHAPE_ZONE:
    case SHAPE_DATETIME:
    case SHAPE_TIME:
    case SHAPE_OPAQUE:
    case SHAPE_GEO:
    case SHAPE_INTERVAL:
        return SPOOL_OK;
    case SHAPE_SCALE:
    case SHAPE_SCALE_ZONE:
        type->scale = 3;
        return SPOOL_OK;
    case SHAPE_DECIMAL:
        type->precision = 10;
        type->width = decimal_width(10);
        return SPOOL_OK;
    default:
        return parser_fail(p, "this type needs arguments");
    }
}

static int add_stored_form(struct parser *p, unsigned depth, struct type *type, const char *alias)
{
    struct parser inner = {alias, alias, alias + strlen(alias), p->error};
    struct type *stored = NULL;
    int status = parse_type(&inner, depth + 1, &stored);

    if (status != SPOOL_OK)
        return status;
    type->children = stored->children;
    type->child_names = stored->child_names;
    type->child_count = stored->child_count;
    stored->children = NULL;
    stored->child_names = NULL;
    stored->child_count = 0;
    type_free(stored);
    return SPOOL_OK;
}

/* begin, end: all of the type's text; word_end: where its name ends. */
static int finish_type(struct parser *p, unsigned depth, struct type *type,
                       const struct type_name *name, const char *begin, const char *word_end,
                       const char *end)
{
    int status = SPOOL_OK;

    if (type->kind == TYPE_NULLABLE && type->children[0]->kind == TYPE_NULLABLE)
        return parser_fail(p, "Nullable inside Nullable");
    if (name && name->shape == SHAPE_GEO)
        status = add_stored_form(p, depth, type, name->alias);
    if (!name || name->shape == SHAPE_OPAQUE || name->shape == SHAPE_INTERVAL ||
        (name->shape == SHAPE_GEO && name->kind == TYPE_VARIANT))
        status = set_spelling(p, type, name ? name->name : "", name ? word_end : begin, end);
    if (status != SPOOL_OK)
        return status;
    type->text = strndup(begin, (size_t)(end - begin));
    if (!type->text)
        return parser_fail_memory(p);
    if (type->kind == TYPE_VARIANT && type_order_members(type) != SPOOL_OK)
        return parser_fail_memory(p);
    return SPOOL_OK;
}

static const struct type_name *name_find(const char *word, size_t size)
{
    for (size_t i = 0; i < type_names_count; i++)
        if (strlen(type_names[i].name) == size && memcmp(type_names[i].name, word, size) == 0)
            return &type_names[i];
    return NULL;
}

/*
 * A name and its arguments. A known name is *name, the word where it stands for itself, and *alias where
 * it was another name for it; both are NULL for one that is not known.
 */
static int take_name(struct parser *p, const char **word, const struct type_name **name,
                     const struct type_alias **alias)
{
    size_t size = 0;

    *alias = NULL;
    if (!parser_word(p, word, &size))
        return parser_fail(p, "expected a type");
    *name = name_find(*word, size);
    if (*name)
        return SPOOL_OK;
    p->at = *word;
    *alias = type_alias_find(&p->at, p->end);
    if (*alias)
        *name = name_find((*alias)->stands_for, strlen((*alias)->stands_for));
    else
        p->at = *word + size;
    assert(!*alias || *name);
    return SPOOL_OK;
}

/* SIGNED or UNSIGNED, which may follow the name or its size: whether it does. *end moves behind it. */
static bool take_sign(struct parser *p, struct type *type, const struct type_alias *alias,
                      const char **end)
{
    const struct type_alias *sign;
    const struct type_name *name;

    if (!alias || !alias->when_unsigned)
        return false;
    parser_skip_blanks(p);
    sign = type_alias_find(&p->at, p->end);
    if (!sign || (strcmp(sign->name, "SIGNED") != 0 && strcmp(sign->name, "UNSIGNED") != 0)) {
        p->at = *end;
        return false;
    }
    if (sign->name[0] == 'U') {
        name = name_find(alias->when_unsigned, strlen(alias->when_unsigned));
        assert(name);
        type->kind = name->kind;
    }
    *end = p->at;
    return true;
}

static int parse_type(struct parser *p, unsigned depth, struct type **out)
{
    const struct type_name *name = NULL;
    const struct type_alias *alias = NULL;
    const char *word = NULL, *word_end, *end;
    struct type *type = NULL;
    bool has_sign;
    int status;

    if (depth > LIMIT_TYPE_DEPTH)
        return parser_fail(p, "nested too deep");
    status = take_name(p, &word, &name, &alias);
    if (status != SPOOL_OK)
        return status;
    type = calloc(1, sizeof(*type));
    if (!type)
        return parser_fail_memory(p);
    type->kind = name ? name->kind : TYPE_OTHER;
    type->width = name && name->shape != SHAPE_DECIMAL_SCALE ? name->width : 0;
    word_end = end = p->at;
    has_sign = take_sign(p, type, alias, &end);
    if (parser_take(p, '(')) {
        status = name ? parse_arguments(p, depth, type, name) : skip_balanced(p, false);
        if (status == SPOOL_OK)
            status = parser_expect(p, ')');
        end = p->at;
    } else {
        p->at = end;
        status = name ? without_arguments(p, type, name) : SPOOL_OK;
    }
    if (status == SPOOL_OK) {
        if (!has_sign)
            take_sign(p, type, alias, &end);
        status = finish_type(p, depth, type, name, word, word_end, end);
    }
    if (status != SPOOL_OK) {
        type_free(type);
        return status;
    }
    *out = type;
    return SPOOL_OK;
}

int type_parse(const char *text, size_t size, struct type **out, struct spool_error *error)
{
    struct parser p = {text, text, text + size, error};
    struct type *type = NULL;
    int status;

    *out = NULL;
    if (size > LIMIT_TYPE_TEXT_BYTES)
        return spool_error_set(error, SPOOL_E_LIMIT, "type name: longer than %llu bytes",
                               (unsigned long long)LIMIT_TYPE_TEXT_BYTES);
    if (size && memchr(text, 0, size))
        return spool_error_set(error, SPOOL_E_SYNTAX, "type name: holds a NUL byte");
    status = parse_type(&p, 0, &type);
    if (status != SPOOL_OK)
        return status;
    if (parser_peek(&p) || p.at != p.end) {
        type_free(type);
        return parser_fail(&p, "text after the type");
    }
    *out = type;
    return SPOOL_OK;
}
