/* SPDX-License-Identifier: Apache-2.0 */
/* Walking the trees of an LMDB file; what stands on a page is in tree_int.h. */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "spool/tree_int.h"

#define NODE_HEADER_BYTES 8u

enum { NODE_BIG = 1, NODE_DATABASE = 2 };

int tree_pread(int fd, void *data, size_t n, uint64_t at, struct spool_error *error)
{
    uint8_t *to = data;

    if (at > INT64_MAX - n)
        return spool_error_set(error, SPOOL_E_CORRUPT, "a position is out of range");
    while (n) {
        ssize_t got = pread(fd, to, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot read at %llu",
                                         (unsigned long long)at);
        if (!got)
            return spool_error_set(error, SPOOL_E_CORRUPT, "the file ends at %llu",
                                   (unsigned long long)at);
        to += got;
        n -= (size_t)got;
        at += (uint64_t)got;
    }
    return SPOOL_OK;
}

uint64_t tree_overflow_pages(const struct tree *tree, uint64_t n)
{
    return (PAGE_HEADER_BYTES - 1 + n) / tree->page_bytes + 1;
}

/* --- walking -------------------------------------------------------------------------------- */

struct bound {
    const uint8_t *key; /* NULL: none */
    size_t size;
};

struct walk {
    const struct tree *tree;
    unsigned flags;
    int (*visit)(void *arg, const struct tree *tree, const struct tree_item *item);
    void *arg;
    struct spool_error *error;
    int first_status; /* in salvage: of the first thing that was bad */
    uint8_t *used;    /* a bit per page of the file: reached already */
    uint64_t file_pages;
    uint8_t *page[TREE_DEPTH_MAX];
    const char *db;
    bool is_free, is_main;
    struct tree_root count; /* what was found, to compare with what the record says */
    /* of the main database: what it names */
    struct tree_root roots[TREE_DATABASES_MAX];
    char names[TREE_DATABASES_MAX][32];
    size_t root_count;
};

static int bad(struct walk *w, uint64_t page, const char *what)
{
    return spool_error_set(w->error, SPOOL_E_CORRUPT, "page %llu of %s: %s",
                           (unsigned long long)page, w->db, what);
}

/* Claims pages, so that a cycle or a page with two owners cannot be walked twice. */
static int claim(struct walk *w, uint64_t page, uint64_t n)
{
    if (page < 2 || page > w->tree->last_page || n > w->tree->last_page - page + 1)
        return bad(w, page, "the page number is out of range");
    if (page + n > w->file_pages)
        return bad(w, page, "lies beyond the end of the file (truncated)");
    for (uint64_t p = page; p < page + n; p++) {
        if (w->used[p / 8] & (1u << (p % 8)))
            return bad(w, p, "is referenced twice");
        w->used[p / 8] = (uint8_t)(w->used[p / 8] | (1u << (p % 8)));
    }
    return SPOOL_OK;
}

static int compare(const struct walk *w, const uint8_t *a, size_t an, const uint8_t *b, size_t bn)
{
    int order;
    if (w->is_free && an == 8 && bn == 8) {
        uint64_t x = get64(a), y = get64(b);
        return x < y ? -1 : x > y;
    }
    order = memcmp(a, b, an < bn ? an : bn);
    return order ? order : an < bn ? -1 : an > bn;
}

/* Reads a tree page and checks all that stands in it but its children. */
static int load_page(struct walk *w, uint64_t number, unsigned level, unsigned kind,
                     unsigned *nodes, struct bound lo, struct bound hi)
{
    const uint32_t size = w->tree->page_bytes;
    uint8_t *p = w->page[level];
    unsigned lower, upper, n, total = 0;
    const uint8_t *before = NULL;
    int status;

    if (!p && !(p = w->page[level] = malloc(size)))
        return spool_error_set(w->error, SPOOL_E_NOMEM, "no memory for a page");
    status = tree_pread(w->tree->fd, p, size, number * size, w->error);
    if (status != SPOOL_OK)
        return status;
    lower = get16(p + 12);
    upper = get16(p + 14);
    if (get64(p) != number)
        return bad(w, number, "carries another page's number");
    if (get16(p + 10) != kind)
        return bad(w, number, "is not of the kind its place in the tree demands");
    if (lower < PAGE_HEADER_BYTES || (lower & 1) || lower > upper || upper > size)
        return bad(w, number, "its bounds are wrong");
    n = (lower - PAGE_HEADER_BYTES) / 2;
    if (n < (kind == PAGE_BRANCH && !w->is_free ? 2u : 1u))
        return bad(w, number, "has too few nodes");
    for (unsigned i = 0; i < n; i++) {
        unsigned at = get16(p + PAGE_HEADER_BYTES + 2 * i), key_size, node_bytes;
        const uint8_t *node = p + at;
        bool first_branch = kind == PAGE_BRANCH && i == 0;
        if ((at & 1) || at < upper || at > size - NODE_HEADER_BYTES)
            return bad(w, number, "a node lies outside of the page");
        key_size = get16(node + 6);
        if (key_size > size - at - NODE_HEADER_BYTES || (!key_size && !first_branch) ||
            (w->is_free && !first_branch && key_size != 8))
            return bad(w, number, "a key has a wrong size");
        node_bytes = NODE_HEADER_BYTES + key_size;
        if (kind == PAGE_LEAF) {
            uint64_t data = get16(node) | (uint64_t)get16(node + 2) << 16;
            if (get16(node + 4) & NODE_BIG)
                data = 8;
            if (data > size - at - node_bytes)
                return bad(w, number, "a value lies outside of the page");
            node_bytes += (unsigned)data;
        }
        total += (node_bytes + 1) & ~1u;
        if (first_branch)
            continue;
        if (before && compare(w, before + 8, get16(before + 6), node + 8, key_size) >= 0)
            return bad(w, number, "its keys are not in order");
        if ((lo.key && compare(w, node + 8, key_size, lo.key, lo.size) < 0) ||
            (hi.key && compare(w, node + 8, key_size, hi.key, hi.size) >= 0))
            return bad(w, number, "a key is outside of the range its parent gives");
        before = node;
    }
    if (total > size - upper)
        return bad(w, number, "its nodes overlap");
    *nodes = n;
    return SPOOL_OK;
}

static int note_database(struct walk *w, uint64_t page, const struct tree_item *item,
                         unsigned node_flags)
{
    if (node_flags != NODE_DATABASE || item->size != DATABASE_BYTES ||
        item->key_size >= sizeof(w->names[0]) || memchr(item->key, 0, item->key_size))
        return bad(w, page, "holds something else than a database");
    if (w->root_count == TREE_DATABASES_MAX)
        return bad(w, page, "holds too many databases");
    memcpy(w->names[w->root_count], item->key, item->key_size);
    w->names[w->root_count][item->key_size] = 0;
    w->roots[w->root_count] = root_at(item->data);
    if (w->roots[w->root_count].flags)
        return bad(w, page, "a database has unknown flags");
    w->root_count++;
    return SPOOL_OK;
}

static int check_free_list(struct walk *w, uint64_t page, const struct tree_item *item)
{
    uint8_t *list = NULL;
    uint64_t n, before = UINT64_MAX;
    int status;

    if (item->size < 8 || (item->size & 7))
        return bad(w, page, "a list of free pages has a wrong size");
    status = tree_value(w->tree, item, item->size, &list, w->error);
    if (status != SPOOL_OK)
        return status;
    n = get64(list);
    if (n > item->size / 8 - 1)
        status = bad(w, page, "a list of free pages is longer than its record");
    for (uint64_t i = 1; status == SPOOL_OK && i <= n; i++) {
        uint64_t free_page = get64(list + 8 * i);
        if (free_page >= before || free_page < 2 || free_page > w->tree->last_page)
            status = bad(w, page, "a list of free pages is out of order or range");
        else if (free_page < w->file_pages) /* the tail may never have been written */
            status = claim(w, free_page, 1);
        before = free_page;
    }
    free(list);
    return status;
}

static int check_overflow(struct walk *w, uint64_t page, uint64_t pages)
{
    uint8_t header[PAGE_HEADER_BYTES];
    int status =
        tree_pread(w->tree->fd, header, sizeof(header), page * w->tree->page_bytes, w->error);
    if (status != SPOOL_OK)
        return status;
    if (get64(header) != page || get16(header + 10) != PAGE_OVERFLOW || get32(header + 12) != pages)
        return bad(w, page, "is not the overflow page it should be");
    return SPOOL_OK;
}

static int visit_leaf(struct walk *w, uint64_t page, const uint8_t *node)
{
    unsigned node_flags = get16(node + 4);
    struct tree_item item = {
        .db = w->db,
        .key = node + NODE_HEADER_BYTES,
        .key_size = get16(node + 6),
        .size = get16(node) | (size_t)get16(node + 2) << 16,
    };
    int status;

    w->count.entries++;
    item.data = item.key + item.key_size;
    if (node_flags & NODE_BIG) {
        uint64_t pages = tree_overflow_pages(w->tree, item.size);
        item.page = get64(item.data);
        item.data = NULL;
        w->count.overflow_pages += pages;
        status = claim(w, item.page, pages);
        if (status == SPOOL_OK && (w->flags & TREE_OVERFLOW_HEADERS))
            status = check_overflow(w, item.page, pages);
        if (status != SPOOL_OK)
            return status;
    }
    if (w->is_main)
        return note_database(w, page, &item, node_flags);
    if (node_flags & ~(unsigned)NODE_BIG)
        return bad(w, page, "a node has unknown flags");
    if (w->is_free)
        return check_free_list(w, page, &item);
    return w->visit ? w->visit(w->arg, w->tree, &item) : SPOOL_OK;
}

/* In salvage a fault is remembered, and the walk goes on beside it. */
static int settle(struct walk *w, int status)
{
    if (status == SPOOL_OK || !(w->flags & TREE_SALVAGE) || status == SPOOL_E_NOMEM ||
        (status == SPOOL_E_IO && w->flags & TREE_READABLE))
        return status;
    if (w->first_status == SPOOL_OK)
        w->first_status = status;
    return SPOOL_OK;
}

static void tell_gap(const struct walk *w, uint64_t page, struct bound lo, struct bound hi)
{
    const struct tree_gap gap = {.db = w->db,
                                 .page = page,
                                 .from = lo.key,
                                 .to = hi.key,
                                 .from_size = lo.size,
                                 .to_size = hi.size};

    if (w->tree->unreadable)
        w->tree->unreadable(w->tree->unreadable_arg, &gap);
}

static int walk_page(struct walk *w, uint64_t number, unsigned level, unsigned depth,
                     struct bound lo, struct bound hi)
{
    unsigned kind = level + 1 == depth ? PAGE_LEAF : PAGE_BRANCH, nodes = 0;
    int status = claim(w, number, 1);
    const uint8_t *p;

    if (status == SPOOL_OK)
        status = load_page(w, number, level, kind, &nodes, lo, hi);
    if (status == SPOOL_E_IO)
        tell_gap(w, number, lo, hi);
    if (status != SPOOL_OK)
        return settle(w, status);
    p = w->page[level];
    if (kind == PAGE_LEAF)
        w->count.leaf_pages++;
    else
        w->count.branch_pages++;
    for (unsigned i = 0; status == SPOOL_OK && i < nodes; i++) {
        const uint8_t *node = p + get16(p + PAGE_HEADER_BYTES + 2 * i);
        if (kind == PAGE_LEAF) {
            status = settle(w, visit_leaf(w, number, node));
        } else {
            uint64_t child =
                get16(node) | (uint64_t)get16(node + 2) << 16 | (uint64_t)get16(node + 4) << 32;
            struct bound from = lo, to = hi;
            if (i > 0)
                from = (struct bound){node + 8, get16(node + 6)};
            if (i + 1 < nodes) {
                const uint8_t *next = p + get16(p + PAGE_HEADER_BYTES + 2 * (i + 1));
                to = (struct bound){next + 8, get16(next + 6)};
            }
            status = walk_page(w, child, level + 1, depth, from, to);
        }
    }
    return status;
}

static int walk_database(struct walk *w, const char *name, const struct tree_root *root)
{
    const struct bound none = {NULL, 0};
    int status;

    w->db = name;
    memset(&w->count, 0, sizeof(w->count));
    if (root->root == NO_PAGE) {
        status =
            root->entries || root->depth ? bad(w, 0, "an empty database has entries") : SPOOL_OK;
        return settle(w, status);
    }
    if (root->depth < 1 || root->depth > TREE_DEPTH_MAX)
        return settle(w, bad(w, root->root, "the depth of the tree is wrong"));
    status = walk_page(w, root->root, 0, root->depth, none, none);
    if (status == SPOOL_OK && w->first_status == SPOOL_OK &&
        (w->count.entries != root->entries || w->count.leaf_pages != root->leaf_pages ||
         w->count.branch_pages != root->branch_pages ||
         w->count.overflow_pages != root->overflow_pages))
        status = settle(w, bad(w, root->root, "the counts of the tree do not match its pages"));
    return status;
}

int tree_walk(const struct tree *tree, const char *only, unsigned flags,
              int (*visit)(void *arg, const struct tree *tree, const struct tree_item *item),
              void *arg, struct spool_error *error)
{
    struct walk *w = calloc(1, sizeof(*w));
    int status = SPOOL_OK;

    if (!w)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory to walk a file");
    w->tree = tree;
    w->flags = flags;
    w->visit = visit;
    w->arg = arg;
    w->error = error;
    w->file_pages = tree->file_bytes / tree->page_bytes;
    w->used = calloc(1, w->file_pages / 8 + 1);
    if (!w->used) {
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory to walk a file");
        goto done;
    }
    w->is_main = true;
    status = walk_database(w, "the main database", &tree->main_root);
    w->is_main = false;
    for (size_t i = 0; status == SPOOL_OK && i < w->root_count; i++)
        if (!only || !strcmp(only, w->names[i]))
            status = walk_database(w, w->names[i], &w->roots[i]);
    if (status == SPOOL_OK && !only) {
        w->is_free = true;
        status = walk_database(w, "the list of free pages", &tree->free_root);
    }
    if (status == SPOOL_OK)
        status = w->first_status;
done:
    for (size_t i = 0; i < TREE_DEPTH_MAX; i++)
        free(w->page[i]);
    free(w->used);
    free(w);
    return status;
}

int tree_value(const struct tree *tree, const struct tree_item *item, size_t max, uint8_t **data,
               struct spool_error *error)
{
    uint8_t *copy;
    int status = SPOOL_OK;

    if (item->size > max)
        return spool_error_set(error, SPOOL_E_LIMIT, "a value of %zu bytes is over the limit",
                               item->size);
    copy = malloc(item->size + 1);
    if (!copy)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for %zu bytes", item->size);
    if (item->data)
        memcpy(copy, item->data, item->size);
    else
        status = tree_pread(tree->fd, copy, item->size,
                            item->page * tree->page_bytes + PAGE_HEADER_BYTES, error);
    if (status != SPOOL_OK) {
        free(copy);
        copy = NULL;
    }
    *data = copy;
    return status;
}
