/* SPDX-License-Identifier: Apache-2.0 */
/* The table of options as text: the commented configuration, and the JSON Schema. */
#include <stdio.h>
#include <string.h>

#include "daemon/config.h"
#include "daemon/options.h"

#define WRAP_COLUMN 96

struct printer {
    struct buf *out;
    int status; /* the first failure; nothing is printed after it */
};

static void put(struct printer *p, const char *text)
{
    if (p->status == SPOOL_OK)
        p->status = buf_append_str(p->out, text);
}

static void put_string(struct printer *p, const char *text)
{
    if (p->status == SPOOL_OK)
        p->status = buf_put_json_string(p->out, text, strlen(text));
}

/* Begins a line; one that stands for an absent key is a comment as a whole. */
static void begin(struct printer *p, unsigned depth, bool commented)
{
    for (unsigned i = 0; i < depth; i++)
        put(p, "    ");
    if (commented)
        put(p, "// ");
}

/* A sentence as comment lines. */
static void put_comment(struct printer *p, unsigned depth, const char *text)
{
    size_t width = WRAP_COLUMN - 4 * (size_t)depth - 3;

    while (*text) {
        size_t n = strlen(text);
        char line[256];
        if (n > width) {
            n = width;
            while (n > 1 && text[n] != ' ')
                n--;
        }
        begin(p, depth, true);
        snprintf(line, sizeof(line), "%.*s\n", (int)n, text);
        put(p, line);
        text += n;
        while (*text == ' ')
            text++;
    }
}

static void kind_text(const struct option *option, char *out, size_t n)
{
    char low[32], high[32];
    size_t used = 0;

    switch (option->kind) {
    case OPTION_SIZE:
        snprintf(out, n, "A size, %s to %s.", option_size_text(option->min, low, sizeof(low)),
                 option_size_text(option->max, high, sizeof(high)));
        break;
    case OPTION_TIME:
        snprintf(out, n, "A time, %s to %s.", option_time_text(option->min, low, sizeof(low)),
                 option_time_text(option->max, high, sizeof(high)));
        break;
    case OPTION_INTEGER:
        snprintf(out, n, "A number, %llu to %llu.", (unsigned long long)option->min,
                 (unsigned long long)option->max);
        break;
    case OPTION_RATIO:
        snprintf(out, n, "A number, 0 to 1.");
        break;
    case OPTION_CHOICE:
        used = (size_t)snprintf(out, n, "One of");
        for (size_t i = 0; option->words[i] && used < n; i++)
            used += (size_t)snprintf(out + used, n - used, "%s %s", i ? "," : "", option->words[i]);
        if (used < n)
            snprintf(out + used, n - used, ".");
        break;
    default:
        out[0] = 0;
    }
}

static void put_doc(struct printer *p, const struct option *option, unsigned depth)
{
    char kind[160], text[640];

    kind_text(option, kind, sizeof(kind));
    snprintf(text, sizeof(text), "%s%s%s%s%s", option->doc, *kind ? " " : "", kind,
             option->flags & OPTION_REQUIRED ? " Required." : "",
             option->flags & OPTION_UNBUILT ? " Not in this version yet." : "");
    put_comment(p, depth, text);
}

/* Whether an option's key is written, and not only shown as a comment. */
static bool is_active(const struct option *option)
{
    char below[192];
    const char *name;

    if (option->kind != OPTION_OBJECT)
        return (option->flags & OPTION_REQUIRED) || option->fallback;
    if (option->size)
        return false; /* its presence means something */
    snprintf(below, sizeof(below), "%s.", option->path);
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (option_is_child(&OPTIONS[i], below, &name) && is_active(&OPTIONS[i]))
            return true;
    return false;
}

/* Whether a comma belongs behind the i-th option: another one follows in its object. */
static bool option_follows(size_t i, const char *prefix)
{
    const char *name;

    for (i++; i < OPTION_COUNT; i++)
        if (option_is_child(&OPTIONS[i], prefix, &name))
            return true;
    return false;
}

static void print_object(struct printer *p, const char *prefix, unsigned depth, bool commented);

static void print_option(struct printer *p, size_t i, const char *prefix, const char *name,
                         unsigned depth, bool commented)
{
    const struct option *option = &OPTIONS[i];
    bool nested = option->kind == OPTION_OBJECT || option->kind == OPTION_LIST;
    bool off = commented || !is_active(option);
    char below[192];

    put_doc(p, option, depth);
    begin(p, depth, off);
    put_string(p, name);
    put(p, ": ");
    if (!nested) {
        put(p, option->fallback ? option->fallback : option->example);
    } else if (option->kind == OPTION_OBJECT) {
        snprintf(below, sizeof(below), "%s.", option->path);
        put(p, "{\n");
        print_object(p, below, depth + 1, off);
        begin(p, depth, off);
        put(p, "}");
    } else {
        snprintf(below, sizeof(below), "%s[].", option->path);
        put(p, "[\n");
        begin(p, depth + 1, off);
        put(p, "{\n");
        print_object(p, below, depth + 2, off);
        begin(p, depth + 1, off);
        put(p, "}\n");
        begin(p, depth, off);
        put(p, "]");
    }
    put(p, option_follows(i, prefix) ? ",\n" : "\n");
}

static void print_object(struct printer *p, const char *prefix, unsigned depth, bool commented)
{
    const char *name;

    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (option_is_child(&OPTIONS[i], prefix, &name))
            print_option(p, i, prefix, name, depth, commented);
}

int config_print_options(struct buf *out)
{
    struct printer p = {.out = out, .status = SPOOL_OK};

    put(&p,
        "// Every option of spoold " SPOOLD_VERSION ". Keys that are set have their default, or "
        "an example where they\n"
        "// are required; keys behind // are absent by default and show an example.\n"
        "// ${NAME} in a string is the environment, $$ a dollar sign.\n"
        "{\n");
    print_object(&p, "", 1, false);
    put(&p, "}\n");
    return p.status;
}

/* --- JSON Schema ------------------------------------------------------------------------------ */

static void schema_object(struct printer *p, const char *prefix);

static void schema_type(struct printer *p, const struct option *option)
{
    char text[160], below[192];

    switch (option->kind) {
    case OPTION_OBJECT:
        snprintf(below, sizeof(below), "%s.", option->path);
        schema_object(p, below);
        return;
    case OPTION_LIST:
        snprintf(below, sizeof(below), "%s[].", option->path);
        put(p, "\"type\":\"array\",\"items\":{");
        schema_object(p, below);
        put(p, "}");
        return;
    case OPTION_STRING:
    case OPTION_SECRET_FILE:
        put(p, "\"type\":\"string\"");
        return;
    case OPTION_BOOL:
        put(p, "\"type\":[\"boolean\",\"string\"]");
        return;
    case OPTION_INTEGER:
        snprintf(text, sizeof(text),
                 "\"type\":[\"integer\",\"string\"],\"minimum\":%llu,\"maximum\":%llu",
                 (unsigned long long)option->min, (unsigned long long)option->max);
        put(p, text);
        return;
    case OPTION_SIZE:
        put(p, "\"type\":[\"integer\",\"string\"],\"minimum\":0");
        return;
    case OPTION_TIME:
        put(p, "\"type\":[\"string\",\"integer\"],\"maximum\":0");
        return;
    case OPTION_RATIO:
        put(p, "\"type\":[\"number\",\"string\"],\"minimum\":0,\"maximum\":1");
        return;
    case OPTION_CHOICE:
        put(p, "\"enum\":[");
        for (size_t i = 0; option->words[i]; i++) {
            put(p, i ? "," : "");
            put_string(p, option->words[i]);
        }
        put(p, "]");
        return;
    case OPTION_STRINGS:
    case OPTION_JOINED:
        put(p, "\"type\":\"array\",\"items\":{\"type\":\"string\"}");
        return;
    case OPTION_PAIRS:
        put(p, "\"type\":\"object\",\"additionalProperties\":{\"type\":[\"string\",\"number\","
               "\"boolean\"]}");
        return;
    case OPTION_CLASSES:
        put(p, "\"type\":\"object\",\"additionalProperties\":{\"type\":\"string\"}");
        return;
    case OPTION_JSON:
        return; /* anything */
    }
}

static void schema_required(struct printer *p, const char *prefix)
{
    const char *name;
    bool some = false;

    for (size_t i = 0; i < OPTION_COUNT; i++) {
        if (!option_is_child(&OPTIONS[i], prefix, &name) || !(OPTIONS[i].flags & OPTION_REQUIRED))
            continue;
        put(p, some ? "," : ",\"required\":[");
        put_string(p, name);
        some = true;
    }
    put(p, some ? "]" : "");
}

static void schema_object(struct printer *p, const char *prefix)
{
    const char *name;
    bool some = false;

    put(p, "\"type\":\"object\",\"additionalProperties\":false,\"properties\":{");
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        const struct option *option = &OPTIONS[i];
        if (!option_is_child(option, prefix, &name))
            continue;
        put(p, some ? ",\n" : "\n");
        some = true;
        put_string(p, name);
        put(p, ":{\"description\":");
        put_string(p, option->doc);
        if (option->fallback) {
            put(p, ",\"default\":");
            put(p, option->fallback);
        }
        put(p, option->kind == OPTION_JSON ? "" : ",");
        schema_type(p, option);
        put(p, "}");
    }
    put(p, "}");
    schema_required(p, prefix);
}

int config_print_schema(struct buf *out)
{
    struct printer p = {.out = out, .status = SPOOL_OK};

    put(&p, "{\"$schema\":\"https://json-schema.org/draft/2020-12/schema\","
            "\"title\":\"Configuration of spoold\",");
    schema_object(&p, "");
    put(&p, "}\n");
    return p.status;
}
