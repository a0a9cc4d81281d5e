/* SPDX-License-Identifier: Apache-2.0 */
/* One value of the configuration: from its JSON to the struct, with its range. */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/limits.h"
#include "daemon/config_int.h"

#define SECRET_FILE_BYTES 65536
#define VALUE_BYTES_MAX   ((size_t)MIB) /* of one string after the environment is put in */

const char *value_wants(enum option_kind kind)
{
    switch (kind) {
    case OPTION_OBJECT:
    case OPTION_PAIRS:
    case OPTION_CLASSES:
        return "an object";
    case OPTION_LIST:
        return "an array of objects";
    case OPTION_BOOL:
        return "true or false";
    case OPTION_INTEGER:
        return "a whole number";
    case OPTION_SIZE:
        return "a size such as 64MiB (KiB, MiB, GiB or plain bytes)";
    case OPTION_TIME:
        return "a time such as 500ms (ms, s, m or h)";
    case OPTION_RATIO:
        return "a number from 0 to 1";
    case OPTION_STRINGS:
    case OPTION_JOINED:
        return "an array of strings";
    case OPTION_CHOICE:
        return "a word";
    case OPTION_SECRET_FILE:
        return "the name of a file";
    case OPTION_STRING:
    case OPTION_JSON:
        break;
    }
    return "a string";
}

static int wrong_kind(struct reader *r, const struct option *option, const struct json_node *node,
                      const char *path)
{
    if (node->kind == JSON_NULL)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "must be %s, but is null; leave the key out for the default",
                           value_wants(option->kind));
    return reader_fail(r, SPOOL_E_INVALID, node->at, path, "must be %s, but is %s",
                       value_wants(option->kind), json_kind_name(node->kind));
}

/* Length of an environment variable's name at s. */
static size_t name_length(const char *s)
{
    size_t n = 0;

    while (isalpha((unsigned char)s[n]) || s[n] == '_' || (n && isdigit((unsigned char)s[n])))
        n++;
    return n;
}

/* ${NAME}, the cursor on its dollar sign. */
static int expand_one(struct reader *r, const struct json_node *node, const char *path,
                      const char **at, struct buf *out)
{
    size_t n = name_length(*at + 2);
    char name[128];
    const char *value;

    if (n == 0 || (*at)[2 + n] != '}' || n >= sizeof(name))
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "${ wants the name of an environment variable and a }; write $${ for "
                           "the text itself");
    memcpy(name, *at + 2, n);
    name[n] = 0;
    value = getenv(name);
    if (!value)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "the environment variable %s is not set; set it, or write $${%s} for "
                           "the text itself",
                           name, name);
    *at += n + 3;
    if (buf_append_str(out, value) != SPOOL_OK)
        return reader_fail(r, SPOOL_E_LIMIT, node->at, path, "is longer than 1MiB");
    return SPOOL_OK;
}

/* A string with the environment put in. text is left as it is where nothing is to be done. */
static int expand(struct reader *r, const struct json_node *node, const char *path,
                  const char **text)
{
    struct buf out;
    const char *at = node->text;
    int status = SPOOL_OK;

    *text = node->text;
    if (!strstr(at, "${") && !strstr(at, "$$"))
        return SPOOL_OK;
    buf_init(&out, VALUE_BYTES_MAX);
    while (*at && status == SPOOL_OK) {
        if (at[0] == '$' && at[1] == '{') {
            status = expand_one(r, node, path, &at, &out);
            continue;
        }
        if (at[0] == '$' && at[1] == '$')
            at++;
        if (buf_append(&out, at++, 1) != SPOOL_OK)
            status = reader_fail(r, SPOOL_E_LIMIT, node->at, path, "is longer than 1MiB");
    }
    if (status == SPOOL_OK) {
        *text = arena_copy(r->arena, out.data, out.len);
        if (!*text)
            status = reader_out_of_memory(r);
    }
    buf_free(&out);
    return status;
}

/* The text of a string, or of a number or boolean; what configuration may write either way. */
static int scalar_text(struct reader *r, const struct option *option, const struct json_node *node,
                       const char *path, const char **text)
{
    switch (node->kind) {
    case JSON_STRING:
        return expand(r, node, path, text);
    case JSON_NUMBER:
        *text = node->text;
        return SPOOL_OK;
    case JSON_BOOL:
        *text = node->boolean ? "true" : "false";
        return SPOOL_OK;
    default:
        return wrong_kind(r, option, node, path);
    }
}

static void store_pointer(void *base, size_t offset, const void *pointer)
{
    memcpy((char *)base + offset, &pointer, sizeof(pointer));
}

static void store_count(void *base, size_t offset, size_t count)
{
    memcpy((char *)base + offset, &count, sizeof(count));
}

static void store_unsigned(void *base, const struct option *option, uint64_t v)
{
    void *at = (char *)base + option->offset;
    uint32_t narrow = (uint32_t)v;

    if (option->size == sizeof(v))
        memcpy(at, &v, sizeof(v));
    else if (option->size == sizeof(narrow))
        memcpy(at, &narrow, sizeof(narrow));
    else
        *(bool *)at = v != 0;
}

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit SIZE_UNITS[] = {{"", 1},      {"B", 1},     {"KiB", KIB},
                                         {"MiB", MIB}, {"GiB", GIB}, {NULL, 0}};
static const struct unit TIME_UNITS[] = {
    {"ms", 1}, {"s", 1000}, {"m", 60 * 1000}, {"h", 3600 * 1000}, {NULL, 0}};
static const struct unit NO_UNITS[] = {{"", 1}, {NULL, 0}};

/* "<digits>[ ]<unit>" as a number; false: it is not of that form, or over 2^64. */
static bool parse_quantity(const char *text, const struct unit *units, uint64_t *v)
{
    const char *at = text;

    *v = 0;
    for (; *at >= '0' && *at <= '9'; at++)
        if (__builtin_mul_overflow(*v, 10, v) ||
            __builtin_add_overflow(*v, (uint64_t)(*at - '0'), v))
            return false;
    if (at == text)
        return false;
    if (*v == 0 && !*at)
        return true; /* nothing is nothing in every unit */
    if (*at == ' ')
        at++;
    for (; units->name; units++)
        if (strcmp(units->name, at) == 0)
            return !__builtin_mul_overflow(*v, units->factor, v);
    return false;
}

static int range_text(const struct option *option, uint64_t v, char *out, size_t n)
{
    if (option->kind == OPTION_SIZE)
        option_size_text(v, out, n);
    else if (option->kind == OPTION_TIME)
        option_time_text(v, out, n);
    else
        snprintf(out, n, "%llu", (unsigned long long)v);
    return 0;
}

static int apply_quantity(struct reader *r, const struct option *option,
                          const struct json_node *node, const char *path, void *base)
{
    const struct unit *units = option->kind == OPTION_SIZE   ? SIZE_UNITS
                               : option->kind == OPTION_TIME ? TIME_UNITS
                                                             : NO_UNITS;
    const char *text = NULL;
    char low[32], high[32];
    uint64_t v;
    int status;

    if (node->kind == JSON_BOOL)
        return wrong_kind(r, option, node, path);
    status = scalar_text(r, option, node, path, &text);
    if (status != SPOOL_OK)
        return status;
    if (!parse_quantity(text, units, &v)) {
        uint64_t plain;
        if (option->kind == OPTION_TIME && parse_quantity(text, NO_UNITS, &plain))
            return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                               "needs a unit: write \"%llums\", \"%llus\", \"%llum\" or \"%lluh\"",
                               (unsigned long long)plain, (unsigned long long)plain,
                               (unsigned long long)plain, (unsigned long long)plain);
        return reader_fail(r, SPOOL_E_INVALID, node->at, path, "must be %s, but is \"%.60s\"",
                           value_wants(option->kind), text);
    }
    if (v < option->min || v > option->max) {
        range_text(option, option->min, low, sizeof(low));
        range_text(option, option->max, high, sizeof(high));
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "must be from %s to %s, but is %.60s", low, high, text);
    }
    store_unsigned(base, option, v);
    return SPOOL_OK;
}

static int apply_bool(struct reader *r, const struct option *option, const struct json_node *node,
                      const char *path, void *base)
{
    const char *text = NULL;
    int status;

    if (node->kind != JSON_BOOL && node->kind != JSON_STRING)
        return wrong_kind(r, option, node, path);
    status = scalar_text(r, option, node, path, &text);
    if (status != SPOOL_OK)
        return status;
    if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "must be true or false, but is \"%.60s\"", text);
    store_unsigned(base, option, text[0] == 't');
    return SPOOL_OK;
}

static int apply_ratio(struct reader *r, const struct option *option, const struct json_node *node,
                       const char *path, void *base)
{
    const char *text = NULL;
    char *end = NULL;
    double v;
    int status;

    if (node->kind != JSON_NUMBER && node->kind != JSON_STRING)
        return wrong_kind(r, option, node, path);
    status = scalar_text(r, option, node, path, &text);
    if (status != SPOOL_OK)
        return status;
    v = strtod(text, &end);
    if (end == text || *end || !isfinite(v) || v < 0 || v > 1)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "must be a number from 0 to 1, but is %.60s", text);
    memcpy((char *)base + option->offset, &v, sizeof(v));
    return SPOOL_OK;
}

static int apply_choice(struct reader *r, const struct option *option, const struct json_node *node,
                        const char *path, void *base)
{
    const char *text = NULL, *nearest;
    char all[160] = "";
    size_t used = 0;
    int status;

    if (node->kind != JSON_STRING)
        return wrong_kind(r, option, node, path);
    status = expand(r, node, path, &text);
    if (status != SPOOL_OK)
        return status;
    for (size_t i = 0; option->words[i]; i++) {
        if (strcmp(option->words[i], text) == 0) {
            store_unsigned(base, option, i);
            return SPOOL_OK;
        }
        used += (size_t)snprintf(all + used, sizeof(all) - used, "%s\"%s\"",
                                 i == 0                 ? ""
                                 : option->words[i + 1] ? ", "
                                                        : " or ",
                                 option->words[i]);
    }
    nearest = word_nearest(option->words, text);
    if (nearest)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "must be %s, but is \"%.60s\"; did you mean \"%s\"?", all, text,
                           nearest);
    return reader_fail(r, SPOOL_E_INVALID, node->at, path, "must be %s, but is \"%.60s\"", all,
                       text);
}

static int apply_string(struct reader *r, const struct option *option, const struct json_node *node,
                        const char *path, void *base)
{
    const char *text = NULL;
    int status;

    if (node->kind != JSON_STRING)
        return wrong_kind(r, option, node, path);
    status = expand(r, node, path, &text);
    if (status != SPOOL_OK)
        return status;
    if (!*text && !(option->flags & OPTION_SECRET))
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "must not be empty; leave the key out for the default");
    if ((option->flags & OPTION_SECRET) && *text && strcmp(text, node->text) == 0)
        r->inline_secret = true;
    store_pointer(base, option->offset, text);
    return SPOOL_OK;
}

/* An array of strings into a list of them. */
static int read_strings(struct reader *r, const struct option *option, const struct json_node *node,
                        const char *path, const char ***out)
{
    const char **list;
    size_t i = 0;

    if (node->kind != JSON_ARRAY)
        return wrong_kind(r, option, node, path);
    if (node->count < option->min || node->count > option->max)
        return reader_fail(
            r, SPOOL_E_INVALID, node->at, path, "must have from %llu to %llu entries, but has %zu",
            (unsigned long long)option->min, (unsigned long long)option->max, node->count);
    list = arena_alloc(r->arena, (node->count + 1) * sizeof(*list));
    if (!list)
        return reader_out_of_memory(r);
    for (const struct json_node *child = node->child; child; child = child->next, i++) {
        char child_path[OPTION_PATH_BYTES];
        int status;
        path_set(child_path, "%s[%zu]", path, i);
        if (child->kind != JSON_STRING)
            return reader_fail(r, SPOOL_E_INVALID, child->at, child_path,
                               "must be a string, but is %s", json_kind_name(child->kind));
        status = expand(r, child, child_path, &list[i]);
        if (status != SPOOL_OK)
            return status;
        if (!*list[i])
            return reader_fail(r, SPOOL_E_INVALID, child->at, child_path, "must not be empty");
    }
    *out = list;
    return SPOOL_OK;
}

static int apply_joined(struct reader *r, const struct option *option, const struct json_node *node,
                        const char *path, void *base)
{
    const char **list = NULL;
    size_t total = 1;
    char *joined, *at;
    int status = read_strings(r, option, node, path, &list);

    if (status != SPOOL_OK)
        return status;
    for (size_t i = 0; i < node->count; i++) {
        if (strpbrk(list[i], ", \t"))
            return reader_fail(r, SPOOL_E_INVALID, element(node, i)->at, path,
                               "each entry is one \"host:port\", but \"%.60s\" has a comma or "
                               "blank; write several as [\"a:9092\", \"b:9092\"]",
                               list[i]);
        total += strlen(list[i]) + 1;
    }
    joined = at = arena_alloc(r->arena, total);
    if (!joined)
        return reader_out_of_memory(r);
    for (size_t i = 0; i < node->count; i++)
        at += snprintf(at, total - (size_t)(at - joined), "%s%s", i ? "," : "", list[i]);
    store_pointer(base, option->offset, joined);
    return SPOOL_OK;
}

struct pair {
    const char *name;
    const char *value;
};
/* One code path for both kinds of pairs. */
static_assert(sizeof(struct kafka_property) == sizeof(struct pair) &&
                  offsetof(struct kafka_property, value) == offsetof(struct pair, value),
              "a property is a pair");
static_assert(sizeof(struct clickhouse_setting) == sizeof(struct pair) &&
                  offsetof(struct clickhouse_setting, value) == offsetof(struct pair, value),
              "a setting is a pair");

static int apply_pairs(struct reader *r, const struct option *option, const struct json_node *node,
                       const char *path, void *base)
{
    struct pair *pairs;
    size_t i = 0;

    if (node->kind != JSON_OBJECT)
        return wrong_kind(r, option, node, path);
    if (node->count > option->max)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path, "has more than %llu entries",
                           (unsigned long long)option->max);
    pairs = arena_alloc(r->arena, (node->count + 1) * sizeof(*pairs));
    if (!pairs)
        return reader_out_of_memory(r);
    for (const struct json_node *child = node->child; child; child = child->next, i++) {
        char child_path[OPTION_PATH_BYTES];
        path_set(child_path, "%s.%.60s", path, child->key);
        pairs[i].name = child->key;
        if (child->kind != JSON_STRING && child->kind != JSON_NUMBER && child->kind != JSON_BOOL)
            return reader_fail(r, SPOOL_E_INVALID, child->at, child_path,
                               "must be a string, a number or a boolean, but is %s",
                               json_kind_name(child->kind));
        int status = scalar_text(r, option, child, child_path, &pairs[i].value);
        if (status != SPOOL_OK)
            return status;
    }
    store_pointer(base, option->offset, pairs);
    store_count(base, option->count_offset, node->count);
    return SPOOL_OK;
}

/* node as compact JSON, the environment put into its strings. */
static int put_json(struct reader *r, const struct json_node *node, const char *path,
                    struct buf *out)
{
    bool array = node->kind == JSON_ARRAY;
    const char *text = NULL;
    int status;

    switch (node->kind) {
    case JSON_NULL:
        return buf_append_str(out, "null");
    case JSON_BOOL:
        return buf_append_str(out, node->boolean ? "true" : "false");
    case JSON_NUMBER:
        return buf_append_str(out, node->text);
    case JSON_STRING:
        status = expand(r, node, path, &text);
        return status == SPOOL_OK ? buf_put_json_string(out, text, strlen(text)) : status;
    case JSON_ARRAY:
    case JSON_OBJECT:
        break;
    }
    status = buf_put_u8(out, array ? '[' : '{');
    for (const struct json_node *c = node->child; c && status == SPOOL_OK; c = c->next) {
        if (c != node->child)
            status = buf_put_u8(out, ',');
        if (status == SPOOL_OK && !array)
            status = buf_put_json_string(out, c->key, strlen(c->key));
        if (status == SPOOL_OK && !array)
            status = buf_put_u8(out, ':');
        if (status == SPOOL_OK)
            status = put_json(r, c, path, out);
    }
    return status == SPOOL_OK ? buf_put_u8(out, array ? ']' : '}') : status;
}

static int apply_json(struct reader *r, const struct option *option, const struct json_node *node,
                      const char *path, void *base)
{
    struct buf out;
    const char *text = NULL;
    int status;

    buf_init(&out, VALUE_BYTES_MAX);
    r->error->status = SPOOL_OK;
    status = put_json(r, node, path, &out);
    if (status == SPOOL_OK) {
        text = arena_copy(r->arena, out.data, out.len);
        if (!text)
            status = reader_out_of_memory(r);
    } else if (r->error->status == SPOOL_OK) { /* the buffer failed, and has no sentence */
        status = reader_fail(r, status, node->at, path, "is longer than 1MiB");
    }
    buf_free(&out);
    if (status == SPOOL_OK)
        store_pointer(base, option->offset, text);
    return status;
}

/* The file's text without a newline at its end. */
static int read_secret(struct reader *r, const struct json_node *node, const char *path,
                       const char *file, const char **secret)
{
    char *text = arena_alloc(r->arena, SECRET_FILE_BYTES + 1);
    struct stat st = {0};
    size_t n = 0;
    ssize_t got = 0;
    int fd;

    if (!text)
        return reader_out_of_memory(r);
    fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0)
        got = -1;
    while (got >= 0 && n < SECRET_FILE_BYTES + 1 &&
           (got = read(fd, text + n, SECRET_FILE_BYTES + 1 - n)) > 0)
        n += (size_t)got;
    if (got < 0) {
        int status = reader_fail(r, SPOOL_E_INVALID, node->at, path, "can't read \"%.200s\": %s",
                                 file, strerror(errno));
        if (fd >= 0)
            close(fd);
        return status;
    }
    close(fd);
    if (n > SECRET_FILE_BYTES || memchr(text, 0, n))
        return reader_fail(r, SPOOL_E_INVALID, node->at, path,
                           "\"%.200s\" holds no secret: it is over 64KiB, or has zero bytes", file);
    if (n && text[n - 1] == '\n')
        n--;
    if (n && text[n - 1] == '\r')
        n--;
    if (!n)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path, "\"%.200s\" is empty", file);
    text[n] = 0;
    *secret = text;
    if (st.st_mode & S_IROTH)
        return reader_warn(r, "%s: every user may read %s; chmod 600 it", path, file);
    return SPOOL_OK;
}

static int apply_secret_file(struct reader *r, const struct option *option,
                             const struct json_node *node, const char *path, void *base)
{
    const char *file = NULL, *secret = NULL;
    int status;

    if (node->kind != JSON_STRING)
        return wrong_kind(r, option, node, path);
    status = expand(r, node, path, &file);
    if (status == SPOOL_OK)
        status = read_secret(r, node, path, file, &secret);
    if (status == SPOOL_OK)
        store_pointer(base, option->offset, secret);
    return status;
}

static int apply_classes(struct reader *r, const struct option *option,
                         const struct json_node *node, const char *path, void *base)
{
    struct error_class_override *list;
    size_t i = 0;

    if (node->kind != JSON_OBJECT)
        return wrong_kind(r, option, node, path);
    list = arena_alloc(r->arena, (node->count + 1) * sizeof(*list));
    if (!list)
        return reader_out_of_memory(r);
    for (const struct json_node *child = node->child; child; child = child->next, i++) {
        char child_path[OPTION_PATH_BYTES];
        uint64_t code;
        path_set(child_path, "%s.%.60s", path, child->key);
        if (!parse_quantity(child->key, NO_UNITS, &code) || code == 0 || code > 100000)
            return reader_fail(r, SPOOL_E_INVALID, child->key_at, child_path,
                               "the key must be a number of a ClickHouse exception, such as 241");
        if (child->kind != JSON_STRING || error_class_by_name(child->text, &list[i].class_) != 0 ||
            list[i].class_ == CLASS_NONE)
            return reader_fail(r, SPOOL_E_INVALID, child->at, child_path,
                               "must be transient, upload, schema, too_big, environment, data or "
                               "unknown, but is %s%.60s%s",
                               child->kind == JSON_STRING ? "\"" : "",
                               child->kind == JSON_STRING ? child->text
                                                          : json_kind_name(child->kind),
                               child->kind == JSON_STRING ? "\"" : "");
        list[i].code = (int)code;
    }
    store_pointer(base, option->offset, list);
    store_count(base, option->count_offset, node->count);
    return SPOOL_OK;
}

int value_apply(struct reader *r, const struct option *option, const struct json_node *node,
                const char *path, void *base)
{
    const char **list = NULL;
    int status;

    switch (option->kind) {
    case OPTION_INTEGER:
    case OPTION_SIZE:
    case OPTION_TIME:
        return apply_quantity(r, option, node, path, base);
    case OPTION_BOOL:
        return apply_bool(r, option, node, path, base);
    case OPTION_RATIO:
        return apply_ratio(r, option, node, path, base);
    case OPTION_CHOICE:
        return apply_choice(r, option, node, path, base);
    case OPTION_STRING:
        return apply_string(r, option, node, path, base);
    case OPTION_JOINED:
        return apply_joined(r, option, node, path, base);
    case OPTION_PAIRS:
        return apply_pairs(r, option, node, path, base);
    case OPTION_JSON:
        return apply_json(r, option, node, path, base);
    case OPTION_SECRET_FILE:
        return apply_secret_file(r, option, node, path, base);
    case OPTION_CLASSES:
        return apply_classes(r, option, node, path, base);
    case OPTION_STRINGS:
        status = read_strings(r, option, node, path, &list);
        if (status == SPOOL_OK) {
            store_pointer(base, option->offset, list);
            store_count(base, option->count_offset, node->count);
        }
        return status;
    case OPTION_OBJECT:
    case OPTION_LIST:
        break;
    }
    return SPOOL_E_INVALID;
}
