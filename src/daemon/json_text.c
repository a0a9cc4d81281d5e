/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/json_text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/json_escape.h"

#define DEPTH_MAX   64
#define MEMBERS_MAX 10000 /* of one object: looking for doubles costs their square */

struct parser {
    struct arena *arena;
    const char *text;
    size_t size;
    size_t at;
    unsigned depth;
    struct json_fault *fault;
};

static struct json_node *parse_value(struct parser *p);

__attribute__((format(printf, 3, 4))) static void *fault_at(struct parser *p, size_t at,
                                                            const char *format, ...)
{
    va_list args;

    p->fault->at = at;
    va_start(args, format);
    vsnprintf(p->fault->what, sizeof(p->fault->what), format, args);
    va_end(args);
    return NULL;
}

static void *out_of_memory(struct parser *p)
{
    return fault_at(p, p->at, "out of memory");
}

/* The byte at the cursor, or -1 at the end. */
static int peek(const struct parser *p)
{
    return p->at < p->size ? (unsigned char)p->text[p->at] : -1;
}

/* Steps over one comment; false: it is none, or (with a fault) it does not end. */
static bool skip_comment(struct parser *p, bool *ok)
{
    const char *at = p->text + p->at;
    size_t left = p->size - p->at;

    if (left >= 2 && at[0] == '/' && at[1] == '/') {
        const char *newline = memchr(at, '\n', left);
        p->at = newline ? (size_t)(newline - p->text) : p->size;
        return true;
    }
    if (left >= 2 && at[0] == '/' && at[1] == '*') {
        const char *end = memmem(at + 2, left - 2, "*/", 2);
        if (end) {
            p->at = (size_t)(end - p->text) + 2;
            return true;
        }
        fault_at(p, p->at, "this comment is never closed; end it with */");
        *ok = false;
    }
    return false;
}

static bool skip_blank(struct parser *p)
{
    bool ok = true;

    for (;;) {
        int c = peek(p);
        if (c == ' ' || c == '\t' || c == '\n' || c == '\r')
            p->at++;
        else if (c != '/' || !skip_comment(p, &ok))
            return ok;
    }
}

/* Describes the byte at the cursor for a sentence. */
static const char *found(const struct parser *p, char *buffer, size_t n)
{
    int c = peek(p);

    if (c < 0)
        snprintf(buffer, n, "the end of the file");
    else if (c == '\'')
        snprintf(buffer, n, "a single quote (strings need double quotes)");
    else if (c > ' ' && c < 0x7f)
        snprintf(buffer, n, "'%c'", c);
    else
        snprintf(buffer, n, "the byte 0x%02x", (unsigned)c);
    return buffer;
}

/* Four hex digits at the cursor; -1 where there are none. */
static int32_t parse_hex4(struct parser *p)
{
    int32_t v = json_hex4(p->text + p->at, p->size - p->at);

    if (v >= 0)
        p->at += 4;
    return v;
}

/* What follows \u. Returns the bytes written to out (at most 4), 0 on a fault. */
static size_t parse_unicode_escape(struct parser *p, size_t start, char *out)
{
    int32_t high = parse_hex4(p), low;

    if (high < 0) {
        fault_at(p, start, "\\u needs four hex digits");
        return 0;
    }
    if (high == 0) {
        fault_at(p, start, "\\u0000 has no place in a configuration");
        return 0;
    }
    if (high < 0xd800 || high > 0xdfff)
        return utf8_put(out, (uint32_t)high);
    if (high <= 0xdbff && p->size - p->at >= 6 && memcmp(p->text + p->at, "\\u", 2) == 0) {
        p->at += 2;
        low = parse_hex4(p);
        if (low >= 0xdc00 && low <= 0xdfff)
            return utf8_put(out, json_surrogates(high, low));
    }
    fault_at(p, start, "\\u%04x is half of a surrogate pair; the other half is missing",
             (unsigned)high);
    return 0;
}

/* One escape, the cursor on its backslash. Bytes written, 0 on a fault. */
static size_t parse_escape(struct parser *p, char *out)
{
    static const char FROM[] = "\"\\/bfnrt", TO[] = "\"\\/\b\f\n\r\t";
    size_t start = p->at++;
    int c = peek(p);
    const char *which = c > 0 ? strchr(FROM, c) : NULL;

    if (c == 'u') {
        p->at++;
        return parse_unicode_escape(p, start, out);
    }
    if (!which) {
        fault_at(p, start, "not an escape; a backslash itself is written \\\\");
        return 0;
    }
    p->at++;
    *out = TO[which - FROM];
    return 1;
}

/* Length of the valid UTF-8 sequence at s (RFC 3629), or 0. */
static size_t utf8_length(const unsigned char *s, size_t left)
{
    size_t n = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;

    if (n == 1)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

/* A string, the cursor on its opening quote. */
static const char *parse_string(struct parser *p)
{
    size_t open = p->at, n = 0, end = open + 1;
    char *out;

    /* An unescaped string is never longer than its source: find the closing quote first. */
    while (end < p->size && p->text[end] != '"' && p->text[end] != '\n')
        end += p->text[end] == '\\' ? 2 : 1;
    if (end >= p->size || p->text[end] != '"')
        return fault_at(p, open, "this string is not closed on its line");
    out = arena_alloc(p->arena, end - open + 4);
    if (!out)
        return out_of_memory(p);
    p->at++;
    while (p->text[p->at] != '"') {
        const unsigned char *s = (const unsigned char *)p->text + p->at;
        size_t len;
        if (*s == '\\') {
            len = parse_escape(p, out + n);
            if (!len)
                return NULL;
            n += len;
            continue;
        }
        if (*s < 0x20)
            return fault_at(p, p->at, "a control character in a string; write it as an escape");
        len = utf8_length(s, p->size - p->at);
        if (!len)
            return fault_at(p, p->at, "not UTF-8; save the file as UTF-8");
        memcpy(out + n, s, len);
        n += len;
        p->at += len;
    }
    p->at++;
    out[n] = 0;
    return out;
}

static bool skip_digits(struct parser *p)
{
    size_t start = p->at;

    while (peek(p) >= '0' && peek(p) <= '9')
        p->at++;
    return p->at > start;
}

static bool parse_number(struct parser *p, struct json_node *node)
{
    size_t start = p->at;
    bool ok;

    if (peek(p) == '-')
        p->at++;
    if (peek(p) == '0') {
        p->at++;
        ok = !(peek(p) >= '0' && peek(p) <= '9');
    } else {
        ok = skip_digits(p);
    }
    if (ok && peek(p) == '.') {
        p->at++;
        ok = skip_digits(p);
    }
    if (ok && (peek(p) == 'e' || peek(p) == 'E')) {
        p->at++;
        if (peek(p) == '+' || peek(p) == '-')
            p->at++;
        ok = skip_digits(p);
    }
    if (!ok) {
        fault_at(p, start, "not a number as JSON has them");
        return false;
    }
    node->kind = JSON_NUMBER;
    node->text = arena_copy(p->arena, p->text + start, p->at - start);
    if (!node->text)
        out_of_memory(p);
    return node->text != NULL;
}

static bool parse_word(struct parser *p, struct json_node *node)
{
    static const struct {
        const char *word;
        enum json_kind kind;
        bool boolean;
    } WORDS[] = {
        {"true", JSON_BOOL, true}, {"false", JSON_BOOL, false}, {"null", JSON_NULL, false}};
    char what[64];

    for (size_t i = 0; i < sizeof(WORDS) / sizeof(WORDS[0]); i++) {
        size_t n = strlen(WORDS[i].word);
        if (p->size - p->at >= n && memcmp(p->text + p->at, WORDS[i].word, n) == 0) {
            node->kind = WORDS[i].kind;
            node->boolean = WORDS[i].boolean;
            p->at += n;
            return true;
        }
    }
    fault_at(p, p->at, "expected a value, found %s", found(p, what, sizeof(what)));
    return false;
}

/* A key and its colon; the cursor ends before the value. */
static bool parse_key(struct parser *p, const char **key, size_t *key_at)
{
    char what[64];

    if (peek(p) != '"') {
        fault_at(p, p->at, "expected a key in double quotes, found %s",
                 found(p, what, sizeof(what)));
        return false;
    }
    *key_at = p->at;
    *key = parse_string(p);
    if (!*key || !skip_blank(p))
        return false;
    if (peek(p) != ':') {
        fault_at(p, p->at, "expected ':' behind the key, found %s", found(p, what, sizeof(what)));
        return false;
    }
    p->at++;
    return skip_blank(p);
}

/* Behind a child: 1 another one follows, 0 the end, -1 a fault. */
static int parse_separator(struct parser *p, char close)
{
    char what[64];
    size_t comma;

    if (!skip_blank(p))
        return -1;
    if (peek(p) == close) {
        p->at++;
        return 0;
    }
    if (peek(p) != ',') {
        fault_at(p, p->at, "expected ',' or '%c', found %s", close, found(p, what, sizeof(what)));
        return -1;
    }
    comma = p->at++;
    if (!skip_blank(p))
        return -1;
    if (peek(p) == close) {
        fault_at(p, comma, "nothing follows this comma; remove it");
        return -1;
    }
    return 1;
}

static bool add_child(struct parser *p, struct json_node *node, struct json_node ***end)
{
    const char *key = NULL;
    size_t key_at = 0;
    struct json_node *child, *same;

    if (node->kind == JSON_OBJECT && !parse_key(p, &key, &key_at))
        return false;
    child = parse_value(p);
    if (!child)
        return false;
    child->key = key;
    child->key_at = key_at;
    same = key ? json_member(node, key) : NULL;
    if (same) {
        unsigned line, column;
        json_text_position(p->text, p->size, same->key_at, &line, &column);
        fault_at(p, key_at, "the key \"%.60s\" was given before, in line %u; remove one of them",
                 key, line);
        return false;
    }
    if (key && node->count == MEMBERS_MAX) {
        fault_at(p, key_at, "more than %d keys in one object", MEMBERS_MAX);
        return false;
    }
    **end = child;
    *end = &child->next;
    node->count++;
    return true;
}

static bool parse_children(struct parser *p, struct json_node *node)
{
    char close = node->kind == JSON_OBJECT ? '}' : ']';
    struct json_node **end = &node->child;
    int more = 1;

    if (++p->depth > DEPTH_MAX) {
        fault_at(p, p->at, "nested deeper than %d levels", DEPTH_MAX);
        return false;
    }
    p->at++;
    if (!skip_blank(p))
        return false;
    if (peek(p) == close) {
        p->at++;
        more = 0;
    }
    while (more > 0) {
        if (!add_child(p, node, &end))
            return false;
        more = parse_separator(p, close);
    }
    p->depth--;
    return more == 0;
}

static struct json_node *parse_value(struct parser *p)
{
    struct json_node *node = arena_alloc(p->arena, sizeof(*node));
    int c = peek(p);
    bool ok;

    if (!node)
        return out_of_memory(p);
    node->at = p->at;
    if (c == '{' || c == '[') {
        node->kind = c == '{' ? JSON_OBJECT : JSON_ARRAY;
        ok = parse_children(p, node);
    } else if (c == '"') {
        node->kind = JSON_STRING;
        node->text = parse_string(p);
        ok = node->text != NULL;
    } else if (c == '-' || (c >= '0' && c <= '9')) {
        ok = parse_number(p, node);
    } else {
        ok = parse_word(p, node);
    }
    return ok ? node : NULL;
}

struct json_node *json_text_parse(struct arena *arena, const char *text, size_t size,
                                  struct json_fault *fault)
{
    struct parser p = {.arena = arena, .text = text, .size = size, .fault = fault};
    struct json_node *root;
    char what[64];

    if (size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        p.at = 3; /* a byte order mark */
    if (!skip_blank(&p))
        return NULL;
    root = parse_value(&p);
    if (!root || !skip_blank(&p))
        return NULL;
    if (p.at < size)
        return fault_at(&p, p.at, "expected nothing more, found %s", found(&p, what, sizeof(what)));
    return root;
}

struct json_node *json_member(const struct json_node *node, const char *key)
{
    struct json_node *child = node && node->kind == JSON_OBJECT ? node->child : NULL;

    while (child && strcmp(child->key, key) != 0)
        child = child->next;
    return child;
}

const char *json_kind_name(enum json_kind kind)
{
    static const char *const NAMES[] = {"null",     "a boolean", "a number",
                                        "a string", "an array",  "an object"};
    return NAMES[kind];
}

void json_text_position(const char *text, size_t size, size_t at, unsigned *line, unsigned *column)
{
    size_t i = size >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;

    *line = 1;
    *column = 1;
    for (; i < at && i < size; i++) {
        if (text[i] == '\n') {
            (*line)++;
            *column = 1;
        } else if (((unsigned char)text[i] & 0xc0) != 0x80) {
            (*column)++; /* continuation bytes belong to the character before */
        }
    }
}
