/* SPDX-License-Identifier: Apache-2.0 */
#include "pipeline/drift.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define DEPTH_MAX 8 /* of columns computed from columns; deeper ones count as drifting */

/* Functions and operators written like one, in any case; and those that begin with to, add or
   subtract and a capital letter (toYYYYMM, toStartOfDay, addDays). */
static const char *const steady[] = {
    "abs",
    "and",
    "array",
    "arrayElement",
    "assumeNotNull",
    "bitAnd",
    "bitOr",
    "bitShiftLeft",
    "bitShiftRight",
    "bitXor",
    "cast",
    "ceil",
    "cityHash64",
    "coalesce",
    "concat",
    "crc32",
    "dateDiff",
    "dateTrunc",
    "date_trunc",
    "divide",
    "domain",
    "empty",
    "endsWith",
    "equals",
    "farmFingerprint64",
    "farmHash64",
    "floor",
    "formatDateTime",
    "fromUnixTimestamp",
    "fromUnixTimestamp64Milli",
    "greater",
    "greaterOrEquals",
    "greatest",
    "halfMD5",
    "hex",
    "if",
    "ifNull",
    "in",
    "intDiv",
    "intHash32",
    "intHash64",
    "isNotNull",
    "isNull",
    "javaHash",
    "jumpConsistentHash",
    "least",
    "left",
    "length",
    "less",
    "lessOrEquals",
    "like",
    "lower",
    "match",
    "md5",
    "minus",
    "modulo",
    "multiIf",
    "multiply",
    "murmurHash2_64",
    "murmurHash3_64",
    "negate",
    "not",
    "notEmpty",
    "notEquals",
    "nullIf",
    "or",
    "plus",
    "position",
    "positiveModulo",
    "right",
    "round",
    "sipHash64",
    "splitByChar",
    "startsWith",
    "substr",
    "substring",
    "transform",
    "tuple",
    "tupleElement",
    "upper",
    "xxHash32",
    "xxHash64",
};

struct walk {
    const struct table_description *table;
    const struct schema *schema;
    char *name;
    size_t size;
};

static bool function_steady(const char *name)
{
    static const char *const prefixes[] = {"to", "add", "subtract"};

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        size_t n = strlen(prefixes[i]);
        if (strncmp(name, prefixes[i], n) == 0 && isupper((unsigned char)name[n]))
            return true;
    }
    for (size_t i = 0; i < sizeof(steady) / sizeof(steady[0]); i++)
        if (strcasecmp(name, steady[i]) == 0)
            return true;
    return false;
}

/* Whether every row that is sent has a value for it. */
static bool column_given(const struct walk *w, const char *name)
{
    for (size_t i = 0; w->schema && i < w->schema->count; i++) {
        const struct schema_column *c = &w->schema->columns[i];
        if (strcmp(c->name, name) == 0)
            return c->required || !c->default_by_server;
    }
    return false;
}

static bool text_drifts(const struct walk *w, const char *text, unsigned depth);

static bool column_drifts(const struct walk *w, const char *name, unsigned depth)
{
    for (size_t i = 0; i < w->table->column_count; i++) {
        const struct table_column *c = &w->table->columns[i];
        if (strcmp(c->name, name) != 0)
            continue;
        if (!c->default_expression || !c->default_expression[0] || column_given(w, name))
            return false;
        if (!text_drifts(w, c->default_expression, depth + 1))
            return false;
        snprintf(w->name, w->size, "%s", name);
        return true;
    }
    return false; /* a word of the language, or an argument's name */
}

/* A name, bare or between backquotes, into word; returns what follows it. */
static const char *take_word(const char *at, char *word, size_t size)
{
    bool quoted = *at == '`' || *at == '"';
    char quote = *at;
    size_t n = 0;

    if (quoted)
        at++;
    while (*at && (quoted ? *at != quote : isalnum((unsigned char)*at) || *at == '_')) {
        if (quoted && *at == '\\' && at[1])
            at++;
        if (n + 1 < size)
            word[n++] = *at;
        at++;
    }
    word[n] = 0;
    return quoted && *at ? at + 1 : at;
}

static const char *skip_string(const char *at)
{
    for (at++; *at && *at != '\''; at++)
        if (*at == '\\' && at[1])
            at++;
    return *at ? at + 1 : at;
}

/* Every function is steady, and so is every column it rests on. */
static bool text_drifts(const struct walk *w, const char *text, unsigned depth)
{
    char word[256];

    if (depth > DEPTH_MAX)
        return true;
    for (const char *at = text; *at;) {
        unsigned char c = (unsigned char)*at;
        if (c == '\'') {
            at = skip_string(at);
        } else if (isdigit(c)) {
            while (isalnum((unsigned char)*at) || *at == '.')
                at++;
        } else if (isalpha(c) || c == '_' || c == '`' || c == '"') {
            at = take_word(at, word, sizeof(word));
            while (*at == ' ')
                at++;
            if (*at == '(' ? !function_steady(word) : column_drifts(w, word, depth)) {
                if (*at == '(')
                    snprintf(w->name, w->size, "%s", word);
                return true;
            }
        } else {
            at++;
        }
    }
    return false;
}

const char *partition_drift(const struct table_description *table, const struct schema *schema,
                            char *name, size_t size)
{
    struct walk w = {table, schema, name, size};

    if (!table->partition_key || !table->partition_key[0])
        return NULL;
    name[0] = 0;
    return text_drifts(&w, table->partition_key, 0) ? name : NULL;
}
