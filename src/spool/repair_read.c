/* SPDX-License-Identifier: Apache-2.0 */
/* What the segments of a spool say of themselves, read without meta.mdb. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "spool/repair_int.h"

int repair_no_memory(struct spool_error *error)
{
    return spool_error_set(error, SPOOL_E_NOMEM, "no memory to repair a spool");
}

static int told_info(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct told *t = arg;
    const uint8_t *uuid = NULL, *name = NULL;
    uint8_t *value = NULL;
    uint64_t created, hash;
    size_t name_size = 0;
    uint32_t version = 0;
    struct cursor c;
    int status = tree_value(tree, item, LIMIT_SCHEMA_BYTES + KIB, &value, NULL);

    if (status == SPOOL_OK)
        status = record_open(RECORD_INFO, item->key, item->key_size, value, item->size, &c);
    if (status == SPOOL_OK && item->key_size == 7 && !memcmp(item->key, "version", 7)) {
        if (cursor_u32le(&c, &version) == SPOOL_OK && version > SPOOL_FORMAT_VERSION)
            status = SPOOL_E_NEWER;
    } else if (status == SPOOL_OK && item->key_size == 7 && !memcmp(item->key, "segment", 7)) {
        t->readable = !cursor_bytes(&c, 16, &uuid) && !cursor_u32le(&c, &t->stream) &&
                      !cursor_u64le(&c, &t->number) && !cursor_u64le(&c, &t->base_sequence) &&
                      !cursor_u64le(&c, &created) && !cursor_u64le(&c, &hash) &&
                      !cursor_string(&c, &name, &name_size) && name_size < sizeof(t->name) &&
                      t->stream && t->stream <= STREAMS_MAX;
        if (t->readable) {
            memcpy(t->uuid, uuid, 16);
            memcpy(t->name, name, name_size);
        }
    }
    free(value);
    return status == SPOOL_E_NEWER || status == SPOOL_E_NOMEM || status == SPOOL_E_IO ? status
                                                                                      : SPOOL_OK;
}

static int told_totals(void *arg, const struct tree *tree, const struct tree_item *item)
{
    struct told *t = arg;
    struct cursor c;

    (void)tree;
    if (item->data && item->size == TOTALS_BODY_BYTES + RECORD_CHECKSUM_BYTES &&
        !record_open(RECORD_TOTALS, item->key, item->key_size, item->data, item->size, &c)) {
        t->last_sequence = get_le64(c.at + 40);
        t->counted = true;
    }
    return SPOOL_OK;
}

static int has_to_be_read(const char *path, const char *why, struct spool_error *error)
{
    return spool_error_set(error, SPOOL_E_IO,
                           "%s has to be read: %s. It is left as it is; mend that, or move the "
                           "file away to go on without it",
                           path, why);
}

int repair_can_open(const char *path, struct spool_error *error)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 && errno != ENOENT)
        return has_to_be_read(path, strerror(errno), error);
    if (fd >= 0)
        close(fd);
    return SPOOL_OK;
}

/* flags: TREE_READABLE, or 0. */
static int walk(const char *path, const char *db, unsigned flags,
                void (*unreadable)(void *arg, const struct tree_gap *gap),
                int (*visit)(void *arg, const struct tree *tree, const struct tree_item *item),
                void *arg, bool *half, struct spool_error *error)
{
    struct spool_error inner = {.text = "cannot read a record"};
    struct tree tree;
    bool ignored;
    int fd = open(path, O_RDONLY | O_CLOEXEC), status;

    if (fd < 0 && errno == ENOENT)
        return spool_error_set_errno(error, SPOOL_E_NOT_FOUND, errno, "cannot open %s", path);
    if (fd < 0)
        return has_to_be_read(path, strerror(errno), error);
    status = tree_open_salvage(&tree, fd, flags, half ? half : &ignored, &inner);
    if (status == SPOOL_OK) {
        tree.unreadable = unreadable;
        tree.unreadable_arg = arg;
        status = tree_walk(&tree, db, TREE_SALVAGE | flags, visit, arg, &inner);
        if (status == SPOOL_E_CORRUPT || (status == SPOOL_E_IO && !flags))
            status = SPOOL_OK;
    } else if (status != SPOOL_E_IO && status != SPOOL_E_NOMEM) {
        status = SPOOL_E_CORRUPT;
    }
    close(fd);
    return status == SPOOL_E_IO ? has_to_be_read(path, inner.text, error) : status;
}

int repair_walk(const char *path, const char *db,
                int (*visit)(void *arg, const struct tree *tree, const struct tree_item *item),
                void *arg, bool *half, struct spool_error *error)
{
    return walk(path, db, TREE_READABLE, NULL, visit, arg, half, error);
}

int repair_walk_dead(const struct repair *r, const char *path, const char *db,
                     void (*unreadable)(void *arg, const struct tree_gap *gap),
                     int (*visit)(void *arg, const struct tree *tree, const struct tree_item *item),
                     void *arg, bool *half, struct spool_error *error)
{
    return walk(path, db, r->skip_unreadable ? 0 : TREE_READABLE, unreadable, visit, arg, half,
                error);
}

bool is_cause_to_stop(int status)
{
    return status == SPOOL_E_IO || status == SPOOL_E_NOMEM;
}

char *told_path(const struct told_stream *s, uint64_t number)
{
    char *path = NULL;
    return asprintf(&path, "%s/%012llu.seg", s->directory, (unsigned long long)number) < 0 ? NULL
                                                                                           : path;
}

/* What is damaged in a segment is found again when it is opened: it is no error here. */
static int read_segment(const struct repair *r, struct told_stream *s, struct told *t,
                        uint64_t number, struct spool_error *error)
{
    char *path = told_path(s, number);
    bool half = false;
    int status = path ? repair_can_open(path, error) : SPOOL_E_NOMEM;

    if (status == SPOOL_OK && !r->dry) /* as when it is opened: what there will be is to be read */
        status = tree_mend(path, NULL, error);
    if (status == SPOOL_OK)
        status = repair_walk(path, "info", told_info, t, NULL, error);
    if (status != SPOOL_E_NEWER && !is_cause_to_stop(status))
        status = repair_walk(path, "totals", told_totals, t, &half, error);
    if (status != SPOOL_E_NEWER && !is_cause_to_stop(status))
        status = SPOOL_OK;
    t->counted = t->counted && !half;
    t->silent = !t->readable;
    t->readable = t->readable && t->number == number && !strcmp(t->name, s->name);
    t->number = number;
    if (status == SPOOL_E_NEWER)
        spool_error_set(error, status, "%s is of a newer version of the format", path);
    free(path);
    return status == SPOOL_E_NOMEM ? repair_no_memory(error) : status;
}

static int read_stream(struct repair *r, const char *name, struct spool_error *error)
{
    struct told_stream *more = realloc(r->streams, (r->stream_count + 1) * sizeof(*more)), *s;
    uint64_t *numbers = NULL;
    int status;

    if (!more)
        return repair_no_memory(error);
    r->streams = more;
    s = &more[r->stream_count];
    *s = (struct told_stream){.name = strdup(name)};
    if (asprintf(&s->directory, "%s/streams/%s", r->spool->path, name) < 0)
        s->directory = NULL;
    r->stream_count++;
    if (!s->name || !s->directory)
        return repair_no_memory(error);
    status = list_segments(s->directory, &numbers, &s->count, error);
    if (status == SPOOL_OK && !(s->segments = calloc(s->count + 1, sizeof(*s->segments))))
        status = repair_no_memory(error);
    for (size_t i = 0; status == SPOOL_OK && i < s->count; i++)
        status = read_segment(r, s, &s->segments[i], numbers[i], error);
    free(numbers);
    return status;
}

int repair_read(struct repair *r, struct spool_error *error)
{
    char *path = path_join(r->spool->path, "streams");
    DIR *dir = path ? opendir(path) : NULL;
    struct dirent *entry;
    int status = path ? SPOOL_OK : repair_no_memory(error), failed = 0;

    if (path && !dir && errno != ENOENT)
        failed = errno;
    while (dir && status == SPOOL_OK && (entry = next_entry(dir, &failed)))
        if (stream_name_valid(entry->d_name))
            status = read_stream(r, entry->d_name, error);
    if (failed)
        status = spool_error_set_errno(error, SPOOL_E_IO, failed, "cannot list %s", path);
    if (dir)
        closedir(dir);
    free(path);
    return status;
}
