/* SPDX-License-Identifier: Apache-2.0 */
#include "json_view.h"

#include <stdlib.h>
#include <string.h>

#include "base/json_escape.h"

static size_t skip_blanks(const char *text, size_t size, size_t at)
{
    while (at < size &&
           (text[at] == ' ' || text[at] == '\t' || text[at] == '\n' || text[at] == '\r'))
        at++;
    return at;
}

/* Behind the string that starts at `at`, or 0. */
static size_t skip_string(const char *text, size_t size, size_t at)
{
    for (at++; at < size; at++) {
        if (text[at] == '\\')
            at++;
        else if (text[at] == '"')
            return at + 1;
    }
    return 0;
}

/* Behind the value that starts at `at`, or 0. Brackets are counted, not matched by kind. */
static size_t skip_value(const char *text, size_t size, size_t at)
{
    size_t depth = 0, start = at;

    while (at < size) {
        char c = text[at];
        if (c == '"') {
            at = skip_string(text, size, at);
            if (!at)
                return 0;
            if (!depth)
                return at;
            continue;
        }
        if (c == '{' || c == '[') {
            depth++;
        } else if (c == '}' || c == ']') {
            if (!depth)
                break;
            if (!--depth)
                return at + 1;
        } else if (!depth && strchr(" \t\r\n,:", c)) {
            break;
        }
        at++;
    }
    return depth || at == start ? 0 : at;
}

struct json_view view_of(const char *text, size_t size)
{
    struct json_view none = {NULL, 0}, value;
    size_t start = skip_blanks(text, size, 0), end;

    if (start == size)
        return none;
    end = skip_value(text, size, start);
    if (!end || skip_blanks(text, size, end) != size)
        return none;
    value.text = text + start;
    value.size = end - start;
    return value;
}

struct json_view view_inside(struct json_view container)
{
    struct json_view none = {NULL, 0};

    if (container.size < 2 || (container.text[0] != '{' && container.text[0] != '['))
        return none;
    container.text++;
    container.size -= 2;
    return container;
}

/* One item of a list and the comma behind it. */
static bool next_value(struct json_view list, size_t *at, struct json_view *value)
{
    size_t start = skip_blanks(list.text, list.size, *at), end;

    if (start >= list.size)
        return false;
    end = skip_value(list.text, list.size, start);
    if (!end)
        return false;
    value->text = list.text + start;
    value->size = end - start;
    *at = skip_blanks(list.text, list.size, end);
    return true;
}

static bool key_is(struct json_view key, const char *wanted)
{
    size_t n = strlen(wanted);
    return key.size == n + 2 && key.text[0] == '"' && memcmp(key.text + 1, wanted, n) == 0;
}

struct json_view view_member(struct json_view object, const char *key)
{
    struct json_view none = {NULL, 0}, list, name, value;
    size_t at = 0;

    if (!object.size || object.text[0] != '{')
        return none;
    list = view_inside(object);
    while (list.text && next_value(list, &at, &name)) {
        if (at >= list.size || list.text[at++] != ':' || !next_value(list, &at, &value))
            break;
        if (key_is(name, key))
            return value;
        if (at < list.size && list.text[at++] != ',')
            break;
    }
    return none;
}

bool view_element(struct json_view array, size_t *at, struct json_view *element)
{
    struct json_view list;

    if (!array.size || array.text[0] != '[')
        return false;
    list = view_inside(array);
    if (!list.text || !next_value(list, at, element))
        return false;
    if (*at < list.size && list.text[(*at)++] != ',')
        *at = list.size;
    return true;
}

/* text[*at] is behind "\u". Two escapes make one character where they are a surrogate pair. */
static uint32_t unicode_escape(const char *text, size_t size, size_t *at)
{
    int32_t high = json_hex4(text + *at, size - *at), low;

    if (high < 0)
        return 0xfffd;
    *at += 4;
    if (high < 0xd800 || high > 0xdfff)
        return high ? (uint32_t)high : 0xfffd;
    if (high < 0xdc00 && size - *at >= 6 && text[*at] == '\\' && text[*at + 1] == 'u') {
        low = json_hex4(text + *at + 2, size - *at - 2);
        if (low >= 0xdc00 && low <= 0xdfff) {
            *at += 6;
            return json_surrogates(high, low);
        }
    }
    return 0xfffd;
}

char *view_text(struct json_view value)
{
    static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t";
    char *out;
    size_t n = 0;

    if (!value.text || view_is(value, "null"))
        return strdup("");
    if (value.text[0] != '"')
        return strndup(value.text, value.size);
    out = malloc(value.size + 3); /* no escape is shorter than what it becomes, U+FFFD aside */
    if (!out)
        return NULL;
    for (size_t i = 1; i + 1 < value.size;) {
        char c = value.text[i++];
        if (c != '\\') {
            out[n++] = c;
            continue;
        }
        c = value.text[i++];
        if (c == 'u') {
            n += utf8_put(out + n, unicode_escape(value.text, value.size - 1, &i));
            continue;
        }
        for (size_t e = 0; e + 1 < sizeof(escapes); e += 2)
            if (escapes[e] == c) {
                c = escapes[e + 1];
                break;
            }
        out[n++] = c;
    }
    out[n] = 0;
    return out;
}

uint64_t view_u64(struct json_view value)
{
    uint64_t v = 0;

    for (size_t i = 0; i < value.size && value.text[i] >= '0' && value.text[i] <= '9'; i++)
        v = v * 10 + (uint64_t)(value.text[i] - '0');
    return v;
}

double view_double(struct json_view value)
{
    char digits[64];

    if (!value.size || value.size >= sizeof(digits) || value.text[0] == '"')
        return 0;
    memcpy(digits, value.text, value.size);
    digits[value.size] = 0;
    return strtod(digits, NULL);
}

bool view_is(struct json_view value, const char *word)
{
    return value.text && value.size == strlen(word) && memcmp(value.text, word, value.size) == 0;
}

bool view_true(struct json_view value)
{
    return view_is(value, "true");
}
