/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"

#define PAGE 4096u

/* One page's part of a write, or a truncation (data NULL), not durable yet. */
struct piece {
    uint64_t at, size;
    const uint8_t *data; /* in the log's memory */
};

struct file {
    uint8_t *data;
    uint64_t size, cap;
    struct piece *pieces;
    size_t count, piece_cap;
};

/* A change of a directory, not durable yet; durable ones are folded into names. */
struct change {
    uint32_t kind, file;
    char *path, *to;
};

struct name {
    char *path;
    uint32_t file; /* 0: a directory */
};

struct names {
    struct name *list;
    size_t count, cap;
};

struct disk {
    struct file *files;
    size_t file_count;
    struct names names;
    struct change *changes;
    size_t change_count, change_cap;
    size_t pending_file, pending_pieces; /* how many pieces the file had before; file 0: none */
};

static void *grown(void *list, size_t *cap, size_t count, size_t size)
{
    if (count < *cap)
        return list;
    *cap = *cap ? *cap * 2 : 64;
    list = realloc(list, *cap * size);
    if (!list)
        abort();
    return list;
}

struct disk *disk_create(void)
{
    struct disk *d = calloc(1, sizeof(*d));
    if (!d)
        abort();
    return d;
}

/* --- files ---------------------------------------------------------------------------------- */

static void file_put(struct file *f, const struct piece *p)
{
    if (!p->data) { /* a new size */
        if (p->at > f->cap) {
            f->cap = p->at;
            f->data = realloc(f->data, f->cap);
            if (!f->data)
                abort();
        }
        if (p->at > f->size)
            memset(f->data + f->size, 0, p->at - f->size);
        f->size = p->at;
        return;
    }
    if (p->at + p->size > f->size)
        file_put(f, &(struct piece){.at = p->at + p->size});
    memcpy(f->data + p->at, p->data, p->size);
}

static void file_add(struct file *f, struct piece p)
{
    f->pieces = grown(f->pieces, &f->piece_cap, f->count, sizeof(*f->pieces));
    f->pieces[f->count++] = p;
}

static void file_write(struct file *f, uint64_t at, const uint8_t *data, uint64_t size)
{
    while (size) {
        uint64_t n = PAGE - at % PAGE;
        if (n > size)
            n = size;
        file_add(f, (struct piece){at, n, data});
        at += n;
        data += n;
        size -= n;
    }
}

static void file_sync(struct file *f)
{
    for (size_t i = 0; i < f->count; i++)
        file_put(f, &f->pieces[i]);
    f->count = 0;
}

/* The pages from at on, size bytes, become durable as they are in memory. */
static void file_sync_pages(struct file *f, uint64_t at, uint64_t size)
{
    size_t kept = 0;

    for (size_t i = 0; i < f->count; i++) {
        const struct piece p = f->pieces[i];
        if (p.data && p.at / PAGE >= at / PAGE && p.at / PAGE <= (at + size - 1) / PAGE)
            file_put(f, &p);
        else
            f->pieces[kept++] = p;
    }
    f->count = kept;
}

/* --- names ---------------------------------------------------------------------------------- */

static size_t name_find(const struct names *n, const char *path)
{
    size_t i = 0;
    while (i < n->count && strcmp(n->list[i].path, path) != 0)
        i++;
    return i;
}

static void name_set(struct names *n, char *path, uint32_t file)
{
    size_t i = name_find(n, path);

    n->list = grown(n->list, &n->cap, n->count, sizeof(*n->list));
    if (i == n->count)
        n->count++;
    n->list[i] = (struct name){path, file};
}

static void name_remove(struct names *n, const char *path)
{
    size_t i = name_find(n, path);
    if (i < n->count)
        n->list[i] = n->list[--n->count];
}

static void names_apply(struct names *n, const struct change *c)
{
    switch (c->kind) {
    case LOG_CREATE:
    case LOG_MKDIR:
        name_set(n, c->path, c->file);
        break;
    case LOG_RENAME:
        name_remove(n, c->path);
        name_set(n, c->to, c->file);
        break;
    default:
        name_remove(n, c->path);
        break;
    }
}

static size_t directory_size(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) : 0;
}

static bool is_in(const struct change *c, const char *directory)
{
    size_t n = directory_size(c->path);
    return n == strlen(directory) && !memcmp(c->path, directory, n);
}

static void directory_sync(struct disk *d, const char *directory)
{
    size_t kept = 0;

    for (size_t i = 0; i < d->change_count; i++)
        if (is_in(&d->changes[i], directory))
            names_apply(&d->names, &d->changes[i]);
        else
            d->changes[kept++] = d->changes[i];
    d->change_count = kept;
}

static void disk_change(struct disk *d, const struct log_record *r, const uint8_t *data)
{
    struct change c = {.kind = r->kind, .file = r->file, .path = strdup((const char *)data)};

    if (r->kind == LOG_RENAME)
        c.to = strdup((const char *)data + strlen(c.path) + 1);
    d->changes = grown(d->changes, &d->change_cap, d->change_count, sizeof(*d->changes));
    d->changes[d->change_count++] = c;
}

/* --- the log -------------------------------------------------------------------------------- */

int disk_is_boundary(const struct log_record *r)
{
    return r->kind == LOG_SYNC || r->kind == LOG_SYNC_DIR || r->kind == LOG_WRITE_SYNC;
}

static struct file *file_at(struct disk *d, uint32_t number)
{
    if (number > d->file_count) {
        d->files = realloc(d->files, number * sizeof(*d->files));
        if (!d->files)
            abort();
        memset(d->files + d->file_count, 0, (number - d->file_count) * sizeof(*d->files));
        d->file_count = number;
    }
    return &d->files[number - 1];
}

void disk_apply(struct disk *d, const struct log_record *r, const uint8_t *data, int pending)
{
    d->pending_file = 0;
    if (pending) {
        if (r->kind != LOG_WRITE_SYNC)
            return;
        d->pending_file = r->file;
        d->pending_pieces = file_at(d, r->file)->count;
        file_write(file_at(d, r->file), r->at, data, r->size);
        return;
    }
    switch (r->kind) {
    case LOG_CREATE:
        (void)file_at(d, r->file);
        disk_change(d, r, data);
        break;
    case LOG_MKDIR:
    case LOG_RENAME:
    case LOG_UNLINK:
        disk_change(d, r, data);
        break;
    case LOG_WRITE:
        file_write(file_at(d, r->file), r->at, data, r->size);
        break;
    case LOG_WRITE_SYNC:
        file_write(file_at(d, r->file), r->at, data, r->size);
        file_sync_pages(file_at(d, r->file), r->at, r->size);
        break;
    case LOG_TRUNCATE:
        file_add(file_at(d, r->file), (struct piece){.at = r->at});
        break;
    case LOG_SYNC:
        file_sync(file_at(d, r->file));
        break;
    case LOG_SYNC_DIR:
        directory_sync(d, (const char *)data);
        break;
    default:
        break;
    }
}

void disk_forget_pending(struct disk *d)
{
    if (d->pending_file)
        d->files[d->pending_file - 1].count = d->pending_pieces;
    d->pending_file = 0;
}

/* --- a cut ---------------------------------------------------------------------------------- */

static void write_file(const struct file *f, const char *path, enum cut cut, uint64_t *seed)
{
    uint64_t keep = random_next(seed) % 3; /* of four pages: 1, 2 or 3 */
    struct file copy = {0};
    int fd;

    file_put(&copy, &(struct piece){.at = f->size});
    if (f->size)
        memcpy(copy.data, f->data, f->size);
    for (size_t i = 0; i < f->count && cut != CUT_NONE; i++)
        if (cut == CUT_ALL || random_next(seed) % 4 <= keep)
            file_put(&copy, &f->pieces[i]);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0 || (copy.size && write(fd, copy.data, copy.size) != (ssize_t)copy.size)) {
        fprintf(stderr, "writelog: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    close(fd);
    free(copy.data);
}

static struct names names_after(const struct disk *d, enum cut cut, uint64_t *seed)
{
    struct names n = {0};

    for (size_t i = 0; i < d->names.count; i++)
        name_set(&n, d->names.list[i].path, d->names.list[i].file);
    for (size_t i = 0; i < d->change_count && cut != CUT_NONE; i++) {
        const char *path = d->changes[i].path;
        char directory[4096];
        size_t mine = 0, passed = 0;
        uint64_t take;
        snprintf(directory, sizeof(directory), "%.*s", (int)directory_size(path), path);
        for (size_t k = 0; k < d->change_count; k++) {
            mine += is_in(&d->changes[k], directory) ? 1 : 0;
            passed += k < i && is_in(&d->changes[k], directory) ? 1 : 0;
        }
        if (passed)
            continue; /* the directory's turn was at its first change */
        take = cut == CUT_ALL ? mine : random_next(seed) % (mine + 1);
        for (size_t k = i; k < d->change_count && take; k++)
            if (is_in(&d->changes[k], directory)) {
                names_apply(&n, &d->changes[k]);
                take--;
            }
    }
    return n;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct name *)a)->path, ((const struct name *)b)->path);
}

void disk_write(const struct disk *d, const char *dir, enum cut cut, uint64_t *seed)
{
    struct names n = names_after(d, cut, seed);
    char path[8192];

    if (n.count)
        qsort(n.list, n.count, sizeof(*n.list), by_path); /* a directory before what is in it */
    for (size_t i = 0; i < n.count; i++) {
        snprintf(path, sizeof(path), "%s/%s", dir, n.list[i].path);
        if (!n.list[i].file)
            (void)mkdir(path, 0750);
        else if (access(dir, W_OK) == 0) {
            char *slash = strrchr(path, '/');
            *slash = 0;
            if (access(path, W_OK) == 0) { /* else its directory itself is lost */
                *slash = '/';
                write_file(&d->files[n.list[i].file - 1], path, cut, seed);
            }
        }
    }
    free(n.list);
}

void disk_free(struct disk *d)
{
    for (size_t i = 0; i < d->file_count; i++) {
        free(d->files[i].data);
        free(d->files[i].pieces);
    }
    free(d->files);
    free(d->names.list);
    free(d->changes);
    free(d);
}
