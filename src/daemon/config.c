/* SPDX-License-Identifier: Apache-2.0 */
/* Walks the table of options and the file together; values are config_value.c's business. */
#include "daemon/config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/limits.h"
#include "daemon/config_int.h"

#define WARNINGS_MAX 64

void path_set(char out[OPTION_PATH_BYTES], const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(out, OPTION_PATH_BYTES, format, args);
    va_end(args);
}

int reader_fail(struct reader *r, int status, size_t at, const char *path, const char *format, ...)
{
    char sentence[SPOOL_ERROR_TEXT_BYTES];
    unsigned line, column;
    va_list args;

    va_start(args, format);
    vsnprintf(sentence, sizeof(sentence), format, args);
    va_end(args);
    json_text_position(r->text, r->size, at, &line, &column);
    return spool_error_set(r->error, status, "%s:%u:%u: %s%s%s", r->name, line, column, path,
                           *path ? ": " : "", sentence);
}

int reader_out_of_memory(struct reader *r)
{
    return spool_error_set(r->error, SPOOL_E_NOMEM, "%s: out of memory", r->name);
}

int reader_warn(struct reader *r, const char *format, ...)
{
    struct config *c = r->config;
    const char **list = (const char **)(uintptr_t)c->warnings;
    char text[512];
    va_list args;

    if (!list) {
        list = arena_alloc(r->arena, WARNINGS_MAX * sizeof(*list));
        if (!list)
            return reader_out_of_memory(r);
        c->warnings = list;
    }
    if (c->warning_count == WARNINGS_MAX)
        return SPOOL_OK;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    list[c->warning_count] = arena_copy(r->arena, text, strlen(text));
    if (!list[c->warning_count])
        return reader_out_of_memory(r);
    c->warning_count++;
    return SPOOL_OK;
}

size_t member_at(const struct json_node *node, const char *key)
{
    const struct json_node *member = json_member(node, key);

    return member ? member->at : node ? node->at : 0;
}

const struct json_node *element(const struct json_node *array, size_t i)
{
    const struct json_node *child = array ? array->child : NULL;

    while (child && i--)
        child = child->next;
    return child;
}

static int apply_object(struct reader *r, const struct json_node *node, const char *prefix,
                        const char *where, void *base);

static int unknown_key(struct reader *r, const struct json_node *child, const char *prefix,
                       const char *where)
{
    const char *nearest = option_nearest(prefix, child->key);
    const struct option *other = nearest ? NULL : option_elsewhere(child->key);
    char path[OPTION_PATH_BYTES];

    path_set(path, "%s%.64s", where, child->key);
    if (nearest)
        return reader_fail(r, SPOOL_E_INVALID, child->key_at, path,
                           "unknown key; did you mean \"%s\"?", nearest);
    if (other)
        return reader_fail(r, SPOOL_E_INVALID, child->key_at, path,
                           "unknown key here; did you mean %s?", other->path);
    return reader_fail(r, SPOOL_E_INVALID, child->key_at, path,
                       "unknown key; spoold --print-config shows the known ones");
}

static int apply_list(struct reader *r, const struct option *option, const struct json_node *node,
                      const char *path, void *base)
{
    char prefix[OPTION_PATH_BYTES];
    char *array;
    size_t i = 0;

    if (node->kind != JSON_ARRAY)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path, "must be %s, but is %s",
                           value_wants(option->kind), json_kind_name(node->kind));
    if (node->count < option->min || node->count > option->max)
        return reader_fail(
            r, SPOOL_E_INVALID, node->at, path, "must have from %llu to %llu entries, but has %zu",
            (unsigned long long)option->min, (unsigned long long)option->max, node->count);
    array = arena_alloc(r->arena, (node->count + 1) * option->element_size);
    if (!array)
        return reader_out_of_memory(r);
    memcpy((char *)base + option->offset, &array, sizeof(array));
    memcpy((char *)base + option->count_offset, &node->count, sizeof(node->count));
    path_set(prefix, "%s[].", option->path);
    for (const struct json_node *child = node->child; child; child = child->next, i++) {
        char where[OPTION_PATH_BYTES];
        int status;
        if (child->kind != JSON_OBJECT) {
            path_set(where, "%s[%zu]", path, i);
            return reader_fail(r, SPOOL_E_INVALID, child->at, where, "must be an object, but is %s",
                               json_kind_name(child->kind));
        }
        path_set(where, "%s[%zu].", path, i);
        status = apply_object(r, child, prefix, where, array + i * option->element_size);
        if (status != SPOOL_OK)
            return status;
    }
    return SPOOL_OK;
}

static int apply_nested(struct reader *r, const struct option *option, const struct json_node *node,
                        const char *path, void *base)
{
    char prefix[OPTION_PATH_BYTES], where[OPTION_PATH_BYTES];

    if (node && node->kind != JSON_OBJECT)
        return reader_fail(r, SPOOL_E_INVALID, node->at, path, "must be an object, but is %s",
                           json_kind_name(node->kind));
    if (node && option->size)
        *(bool *)((char *)base + option->offset) = true;
    path_set(prefix, "%s.", option->path);
    path_set(where, "%s.", path);
    return apply_object(r, node, prefix, where, base);
}

/* The table's default, by the same way as a value in the file. */
static int apply_fallback(struct reader *r, const struct option *option, const char *path,
                          void *base)
{
    struct json_fault fault = {0};
    const struct json_node *node =
        json_text_parse(r->arena, option->fallback, strlen(option->fallback), &fault);

    return node ? value_apply(r, option, node, path, base) : reader_out_of_memory(r);
}

static int apply_option(struct reader *r, const struct option *option,
                        const struct json_node *parent, const char *name, const char *where,
                        void *base)
{
    const struct json_node *node = json_member(parent, name);
    char path[OPTION_PATH_BYTES];

    path_set(path, "%s%s", where, name);
    if (option->kind == OPTION_OBJECT)
        return apply_nested(r, option, node, path, base);
    if (node && (option->flags & OPTION_UNBUILT))
        return reader_fail(r, SPOOL_E_UNSUPPORTED, node->at, path,
                           "this version of spoold can't do that yet; remove the key");
    if (node && option->kind == OPTION_LIST)
        return apply_list(r, option, node, path, base);
    if (node)
        return value_apply(r, option, node, path, base);
    if (option->flags & OPTION_REQUIRED)
        return reader_fail(r, SPOOL_E_INVALID, parent ? parent->at : 0, path,
                           "is missing; it has to be set");
    return option->fallback ? apply_fallback(r, option, path, base) : SPOOL_OK;
}

/* node NULL: the object is absent, and its defaults apply. */
static int apply_object(struct reader *r, const struct json_node *node, const char *prefix,
                        const char *where, void *base)
{
    const char *name;

    for (const struct json_node *child = node ? node->child : NULL; child; child = child->next)
        if (!option_find(prefix, child->key, strlen(child->key)))
            return unknown_key(r, child, prefix, where);
    for (size_t i = 0; i < OPTION_COUNT; i++) {
        int status;
        if (!option_is_child(&OPTIONS[i], prefix, &name))
            continue;
        status = apply_option(r, &OPTIONS[i], node, name, where, base);
        if (status != SPOOL_OK)
            return status;
    }
    return SPOOL_OK;
}

static struct config *config_new(const char *name)
{
    struct config_memory *memory = calloc(1, sizeof(*memory));
    struct config *config = memory ? arena_alloc(&memory->arena, sizeof(*config)) : NULL;

    if (!config) {
        free(memory);
        return NULL;
    }
    config->memory = memory;
    config->file = arena_copy(&memory->arena, name, strlen(name));
    if (!config->file) {
        config_free(config);
        return NULL;
    }
    return config;
}

void config_free(struct config *config)
{
    struct config_memory *memory = config ? config->memory : NULL;

    if (!memory)
        return;
    arena_free(&memory->arena); /* the config itself lies in it */
    free(memory);
}

static int parse(struct reader *r)
{
    struct json_fault fault = {0};

    r->root = json_text_parse(r->arena, r->text, r->size, &fault);
    if (!r->root)
        return reader_fail(r, SPOOL_E_SYNTAX, fault.at, "", "%s", fault.what);
    if (r->root->kind != JSON_OBJECT)
        return reader_fail(r, SPOOL_E_INVALID, r->root->at, "",
                           "the configuration must be an object in braces, but is %s",
                           json_kind_name(r->root->kind));
    return apply_object(r, r->root, "", "", r->config);
}

static int read_config(const char *name, const char *text, size_t size, bool others_may_read,
                       struct config **out, struct spool_error *error)
{
    struct spool_error ignored = {0};
    struct config *config = config_new(name);
    struct reader r = {.name = name, .text = text, .size = size, .config = config};
    int status;

    *out = NULL;
    r.error = error ? error : &ignored;
    if (!config)
        return reader_out_of_memory(&r);
    r.arena = &((struct config_memory *)config->memory)->arena;
    status = parse(&r);
    if (status == SPOOL_OK)
        status = config_check(&r);
    if (status == SPOOL_OK && r.inline_secret && others_may_read)
        status = reader_warn(&r,
                             "%s holds a secret and every user may read it; chmod 600 it, or move "
                             "the secret to a file of its own",
                             name);
    if (status != SPOOL_OK) {
        config_free(config);
        return status;
    }
    *out = config;
    return SPOOL_OK;
}

int config_parse(const char *name, const char *text, size_t size, struct config **out,
                 struct spool_error *error)
{
    return read_config(name, text, size, false, out, error);
}

/* The whole file, malloc'd. */
static int read_file(const char *path, char **text, size_t *size, bool *others_may_read,
                     struct spool_error *error)
{
    struct stat st = {0};
    struct buf content;
    ssize_t got = -1;
    int status = SPOOL_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    buf_init(&content, LIMIT_CONFIG_BYTES + 1);
    if (fd < 0 || fstat(fd, &st) != 0)
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "can't read the config %s", path);
    while (status == SPOOL_OK && got != 0) {
        if (buf_reserve(&content, 65536) != SPOOL_OK) {
            status = spool_error_set(error, SPOOL_E_LIMIT, "the config %s is over 16MiB", path);
            break;
        }
        got = read(fd, content.data + content.len, 65536);
        if (got > 0)
            content.len += (size_t)got;
        else if (got < 0 && errno != EINTR)
            status =
                spool_error_set_errno(error, SPOOL_E_IO, errno, "can't read the config %s", path);
    }
    if (fd >= 0)
        close(fd);
    if (status != SPOOL_OK) {
        buf_free(&content);
        return status;
    }
    *text = (char *)content.data;
    *size = content.len;
    *others_may_read = (st.st_mode & S_IROTH) != 0;
    return SPOOL_OK;
}

int config_load(const char *path, struct config **out, struct spool_error *error)
{
    char *text = NULL;
    size_t size = 0;
    bool others_may_read = false;
    int status;

    *out = NULL;
    status = read_file(path, &text, &size, &others_may_read, error);
    if (status == SPOOL_OK)
        status = read_config(path, text, size, others_may_read, out, error);
    free(text);
    return status;
}
