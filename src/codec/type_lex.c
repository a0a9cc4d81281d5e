/* SPDX-License-Identifier: Apache-2.0 */
/* The words, numbers and quoted texts that type names are made of. */
#include <assert.h>
#include <stdlib.h>

#include "codec/type_int.h"

int parser_fail(struct parser *p, const char *what)
{
    return spool_error_set(p->error, SPOOL_E_SYNTAX, "type name, byte %zu: %s",
                           (size_t)(p->at - p->start), what);
}

int parser_fail_memory(struct parser *p)
{
    return spool_error_set(p->error, SPOOL_E_NOMEM, "type name: out of memory");
}

void parser_skip_blanks(struct parser *p)
{
    while (p->at < p->end && type_is_blank(*p->at))
        p->at++;
}

/* The next character that is no blank, 0 at the end. */
char parser_peek(struct parser *p)
{
    parser_skip_blanks(p);
    return p->at < p->end ? *p->at : 0;
}

bool parser_take(struct parser *p, char c)
{
    if (parser_peek(p) != c || p->at == p->end)
        return false;
    p->at++;
    return true;
}

int parser_expect(struct parser *p, char c)
{
    char what[] = "expected 'x'";

    if (parser_take(p, c))
        return SPOOL_OK;
    what[sizeof(what) - 3] = c;
    return parser_fail(p, what);
}

/* A word into *word and *size, borrowed from the text; false when there is none. */
bool parser_word(struct parser *p, const char **word, size_t *size)
{
    if (!type_is_word_start(parser_peek(p)))
        return false;
    *word = p->at;
    while (p->at < p->end && type_is_word(*p->at))
        p->at++;
    *size = (size_t)(p->at - *word);
    return true;
}

int parser_number(struct parser *p, int64_t min, int64_t max, int64_t *value)
{
    bool negative = false;
    const char *digits;
    int64_t v = 0;

    if (parser_take(p, '-'))
        negative = true;
    digits = p->at;
    while (p->at < p->end && type_is_digit(*p->at) && p->at - digits < 10)
        v = v * 10 + (*p->at++ - '0');
    if (p->at == digits)
        return parser_fail(p, "expected a number");
    if (negative)
        v = -v;
    if ((p->at < p->end && type_is_word(*p->at)) || v < min || v > max)
        return parser_fail(p, "the number is out of range");
    *value = v;
    return SPOOL_OK;
}

static int hex_digit(char c)
{
    if (type_is_digit(c))
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* What follows a backslash, as ClickHouse's lexer reads it: at least one byte is left. */
static int take_escape(struct parser *p, char *out, size_t *len)
{
    static const char from[] = "abefnrtv0";
    static const char to[] = "\a\b\x1b\f\n\r\t\v";
    char c = *p->at++;
    const char *hit;

    if (c == 'x') {
        int high = p->end - p->at >= 2 ? hex_digit(p->at[0]) : -1;
        int low = high >= 0 ? hex_digit(p->at[1]) : -1;
        if (low < 0)
            return parser_fail(p, "expected two hex digits after \\x");
        out[(*len)++] = (char)(high * 16 + low);
        p->at += 2;
        return SPOOL_OK;
    }
    if (c == 'N')
        return SPOOL_OK;
    hit = memchr(from, c, sizeof(from) - 1);
    if (hit) {
        out[(*len)++] = to[hit - from];
        return SPOOL_OK;
    }
    if (c != '\\' && c != '\'' && c != '"' && c != '`' && c != '/' && c != '=')
        out[(*len)++] = '\\';
    out[(*len)++] = c;
    return SPOOL_OK;
}

/* The byte behind the quoted text that begins at p->at, or NULL when it is not closed. */
static const char *quoted_end(const struct parser *p)
{
    char quote = *p->at;

    for (const char *c = p->at + 1; c < p->end; c++) {
        if (*c == '\\')
            c++;
        else if (*c == quote && (c + 1 == p->end || c[1] != quote))
            return c + 1;
        else if (*c == quote)
            c++;
    }
    return NULL;
}

/* A quoted text in the quotes it begins with; *text is owned by the caller, with a NUL behind. */
int parser_quoted(struct parser *p, char **text, size_t *size)
{
    char quote = parser_peek(p);
    const char *end = quoted_end(p);
    size_t len = 0;
    int status = SPOOL_OK;
    char *out;

    *text = NULL;
    assert(quote == '\'' || quote == '"' || quote == '`');
    if (!end)
        return parser_fail(p, "the quotes are not closed");
    /* An unescaped text is never longer than its escaped form. */
    out = malloc((size_t)(end - p->at));
    if (!out)
        return parser_fail_memory(p);
    p->at++;
    while (status == SPOOL_OK && p->at < end - 1) {
        if (*p->at == '\\') {
            p->at++;
            status = take_escape(p, out, &len);
        } else {
            if (*p->at == quote)
                p->at++;
            out[len++] = *p->at++;
        }
    }
    if (status != SPOOL_OK) {
        free(out);
        return status;
    }
    assert(p->at == end - 1);
    p->at = end;
    out[len] = 0;
    *text = out;
    *size = len;
    return SPOOL_OK;
}

int type_unquote(const char **at, const char *end, char **text, size_t *size)
{
    struct parser p = {*at, *at, end, NULL};
    int status = p.at < end && *p.at == '\'' ? parser_quoted(&p, text, size) : SPOOL_E_SYNTAX;

    if (status == SPOOL_OK)
        *at = p.at;
    return status;
}

/* As take_quoted, for what must be usable as a C string. */
int parser_quoted_cstr(struct parser *p, char **text)
{
    size_t size = 0;
    int status = parser_quoted(p, text, &size);

    if (status == SPOOL_OK && (size == 0 || memchr(*text, 0, size))) {
        free(*text);
        *text = NULL;
        status = parser_fail(p, size ? "a NUL byte in a name" : "an empty name");
    }
    return status;
}
