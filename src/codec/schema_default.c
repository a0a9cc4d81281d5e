/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DEFAULT literals. system.columns gives a DEFAULT as SQL text, with the casts ClickHouse put around
 * it: 7, 'x', CAST(7 AS UInt32) (18.16), CAST('2', 'UInt8'), '2'::UInt8, [1, 2]. Such a value is the
 * same for every row, so spoold can put it in. Everything whose JSON form might decode to another
 * value than the server's own conversion gives (1.50 for a String, 100 for a DateTime64) is left to
 * the caller as an expression.
 */
#include <stdlib.h>

#include "codec/schema_int.h"
#include "codec/type_int.h"

#define DEPTH_MAX 16

struct literal {
    const char *at;
    const char *end;
    struct buf *json;
};

static int put_literal(struct literal *l, const struct type *type, unsigned depth);

static void skip_blanks(struct literal *l)
{
    while (l->at < l->end && strchr(" \t\r\n", *l->at))
        l->at++;
}

static bool take(struct literal *l, const char *token)
{
    size_t n = strlen(token);

    skip_blanks(l);
    if ((size_t)(l->end - l->at) < n || strncasecmp(l->at, token, n) != 0)
        return false;
    if (type_is_word(token[n - 1]) && l->at + n < l->end && type_is_word(l->at[n]))
        return false;
    l->at += n;
    return true;
}

static bool is_integer_kind(enum type_kind kind)
{
    return kind >= TYPE_INT8 && kind <= TYPE_UINT256;
}

static bool is_time_kind(enum type_kind kind)
{
    return kind == TYPE_DATE || kind == TYPE_DATE32 || kind == TYPE_DATETIME ||
           kind == TYPE_DATETIME64;
}

/*
 * A number as JSON has it; *integer tells whether it is one without fraction and exponent. A point
 * without digits behind it, as ClickHouse writes whole floats, is passed and not part of the text.
 */
static bool take_number(struct literal *l, const char **text, size_t *size, bool *integer)
{
    const char *at, *digits;
    size_t point = 0;

    skip_blanks(l);
    at = l->at;
    if (at < l->end && *at == '-')
        at++;
    digits = at;
    while (at < l->end && type_is_digit(*at))
        at++;
    if (at == digits || (*digits == '0' && at - digits > 1))
        return false;
    *integer = true;
    if (at < l->end && *at == '.') {
        const char *fraction = ++at;
        *integer = false;
        while (at < l->end && type_is_digit(*at))
            at++;
        point = at == fraction;
    }
    if (!point && at + 1 < l->end && (*at == 'e' || *at == 'E')) {
        const char *exponent = at + 1 + (at[1] == '-' || at[1] == '+');
        *integer = false;
        for (at = exponent; at < l->end && type_is_digit(*at);)
            at++;
        if (at == exponent)
            return false;
    }
    if (at < l->end && (type_is_word(*at) || *at == '.'))
        return false;
    *text = l->at;
    *size = (size_t)(at - l->at) - point;
    l->at = at;
    return true;
}

static int put_number(struct literal *l, const struct type *core, const char *text, size_t size,
                      bool integer)
{
    bool zero = size == 1 && *text == '0';
    int status;

    if (core->kind == TYPE_STRING || core->kind == TYPE_FIXED_STRING) {
        if (!integer || (*text == '-' && text[1] == '0'))
            return SPOOL_E_NOT_FOUND;
        status = buf_put_u8(l->json, '"');
        if (status == SPOOL_OK)
            status = buf_append(l->json, text, size);
        return status == SPOOL_OK ? buf_put_u8(l->json, '"') : status;
    }
    if (is_integer_kind(core->kind) || core->kind == TYPE_ENUM8 || core->kind == TYPE_ENUM16 ||
        core->kind == TYPE_BOOL) {
        if (!integer)
            return SPOOL_E_NOT_FOUND;
    } else if (is_time_kind(core->kind)) {
        if (!zero)
            return SPOOL_E_NOT_FOUND;
    } else if (core->kind != TYPE_FLOAT32 && core->kind != TYPE_FLOAT64 &&
               core->kind != TYPE_DECIMAL) {
        return SPOOL_E_NOT_FOUND;
    }
    return buf_append(l->json, text, size);
}

/* 2026-11-23 or 2026-11-23 12:34:56[.789]: what every conversion reads alike. */
static bool is_plain_time(const char *text, size_t size)
{
    static const char form[] = "dddd-dd-dd dd:dd:dd";
    size_t n = sizeof(form) - 1;

    if (size != 10 && size < n)
        return false;
    for (size_t i = 0; i < size; i++) {
        char want = i < n ? form[i] : i == n ? '.' : 'd';
        if (want == 'd' ? !type_is_digit(text[i]) : text[i] != want)
            return false;
    }
    return size != n + 1;
}

static size_t count_replacements(const void *data, size_t size)
{
    const char *at = data, *end = at + size;
    size_t n = 0;

    while ((at = memmem(at, (size_t)(end - at), "\xef\xbf\xbd", 3)) != NULL) {
        n++;
        at += 3;
    }
    return n;
}

static int put_text(struct literal *l, const struct type *core, const char *text, size_t size)
{
    size_t start = l->json->len;
    int status;

    if (is_time_kind(core->kind)) {
        /* As a DateTime this is another time on every server. */
        if (core->kind == TYPE_DATE && size == 10 && memcmp(text, "0000-00-00", 10) == 0)
            return buf_put_u8(l->json, '0');
        if (!is_plain_time(text, size))
            return SPOOL_E_NOT_FOUND;
    } else if (core->kind != TYPE_STRING && core->kind != TYPE_FIXED_STRING &&
               core->kind != TYPE_ENUM8 && core->kind != TYPE_ENUM16 && core->kind != TYPE_UUID &&
               core->kind != TYPE_IPV4 && core->kind != TYPE_IPV6 && core->kind != TYPE_DECIMAL &&
               !is_integer_kind(core->kind) && core->kind != TYPE_FLOAT32 &&
               core->kind != TYPE_FLOAT64) {
        return SPOOL_E_NOT_FOUND;
    }
    status = buf_put_json_string(l->json, text, size);
    /* JSON cannot carry bytes that are no UTF-8. */
    if (status == SPOOL_OK && count_replacements(l->json->data + start, l->json->len - start) !=
                                  count_replacements(text, size))
        status = SPOOL_E_NOT_FOUND;
    return status;
}

static int put_array(struct literal *l, const struct type *type, unsigned depth)
{
    int status;

    if (type->kind != TYPE_ARRAY)
        return SPOOL_E_NOT_FOUND;
    status = buf_put_u8(l->json, '[');
    if (status == SPOOL_OK && !take(l, "]")) {
        do {
            status = put_literal(l, type->children[0], depth + 1);
            if (status != SPOOL_OK || take(l, "]"))
                break;
            status = take(l, ",") ? buf_put_u8(l->json, ',') : SPOOL_E_NOT_FOUND;
        } while (status == SPOOL_OK);
    }
    return status == SPOOL_OK ? buf_put_u8(l->json, ']') : status;
}

/* Whether a cast to the type that text names leaves a literal for a column of `type` as it is. */
static int cast_is_neutral(const char *text, size_t size, const struct type *type)
{
    struct type *to = NULL;
    int status = type_parse(text, size, &to, NULL);

    if (status != SPOOL_OK)
        return status == SPOOL_E_NOMEM ? status : SPOOL_E_NOT_FOUND;
    if (!type_equal(schema_core_type(to), schema_core_type(type)))
        status = SPOOL_E_NOT_FOUND;
    type_free(to);
    return status;
}

/* Moves to the ')' that closes what stands at l->at; the type name before it is what it skips. */
static bool skip_to_close(struct literal *l)
{
    unsigned depth = 0;

    for (; l->at < l->end; l->at++) {
        if (*l->at == ')' && depth == 0)
            return true;
        if (*l->at == '\'') {
            char *text = NULL;
            size_t size = 0;
            if (type_unquote(&l->at, l->end, &text, &size) != SPOOL_OK)
                return false;
            free(text);
            l->at--;
        }
        depth += *l->at == '(' ? 1u : 0u;
        depth -= *l->at == ')' ? 1u : 0u;
    }
    return false;
}

/* Behind "CAST(". */
static int put_cast(struct literal *l, const struct type *type, unsigned depth)
{
    char *text = NULL;
    size_t size = 0;
    int status = put_literal(l, type, depth + 1);

    if (status != SPOOL_OK)
        return status;
    if (take(l, ",")) {
        skip_blanks(l);
        status = type_unquote(&l->at, l->end, &text, &size);
        if (status == SPOOL_OK)
            status = cast_is_neutral(text, size, type);
        free(text);
    } else if (take(l, "AS")) {
        const char *begin = l->at;
        status = SPOOL_E_NOT_FOUND;
        if (skip_to_close(l))
            status = cast_is_neutral(begin, (size_t)(l->at - begin), type);
    } else {
        status = SPOOL_E_NOT_FOUND;
    }
    if (status != SPOOL_OK)
        return status == SPOOL_E_NOMEM ? status : SPOOL_E_NOT_FOUND;
    return take(l, ")") ? SPOOL_OK : SPOOL_E_NOT_FOUND;
}

static int put_literal(struct literal *l, const struct type *type, unsigned depth)
{
    const struct type *core = schema_core_type(type);
    const char *number = NULL;
    size_t size = 0;
    bool integer = false;

    if (depth > DEPTH_MAX)
        return SPOOL_E_NOT_FOUND;
    skip_blanks(l);
    if (l->at < l->end && *l->at == '\'') {
        char *text = NULL;
        int status = type_unquote(&l->at, l->end, &text, &size);
        if (status == SPOOL_OK)
            status = put_text(l, core, text, size);
        free(text);
        return status == SPOOL_E_SYNTAX ? SPOOL_E_NOT_FOUND : status;
    }
    if (take_number(l, &number, &size, &integer))
        return put_number(l, core, number, size, integer);
    if (take(l, "CAST"))
        return take(l, "(") ? put_cast(l, type, depth) : SPOOL_E_NOT_FOUND;
    if (take(l, "["))
        return put_array(l, core, depth);
    if (take(l, "NULL"))
        return schema_type_nullable(type) ? buf_append_str(l->json, "null") : SPOOL_E_NOT_FOUND;
    if (core->kind == TYPE_BOOL || core->kind == TYPE_UINT8) {
        if (take(l, "true"))
            return buf_append_str(l->json, "true");
        if (take(l, "false"))
            return buf_append_str(l->json, "false");
    }
    return SPOOL_E_NOT_FOUND;
}

int schema_default_literal(const char *expression, const struct type *type, struct buf *json)
{
    struct literal l = {expression, expression + strlen(expression), json};
    size_t start = json->len;
    int status = put_literal(&l, type, 0);

    if (status == SPOOL_OK && take(&l, "::")) {
        status = cast_is_neutral(l.at, (size_t)(l.end - l.at), type);
        l.at = l.end;
    }
    skip_blanks(&l);
    if (status == SPOOL_OK && l.at != l.end)
        status = SPOOL_E_NOT_FOUND;
    if (status != SPOOL_OK)
        json->len = start;
    return status;
}
