/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The LMDB 0.9 file format, as far as it is read here (numbers are of the host's byte order; the
 * offsets are those of a 64-bit build). Source: LMDB 0.9.24, mdb.c, structs MDB_page, MDB_node,
 * MDB_db and MDB_meta.
 *
 *   page     0 u64 page number | 8 u16 pad | 10 u16 flags | 12 u16 lower, u16 upper
 *            (12 u32 number of pages, in the first of a run of overflow pages) | 16 content
 *            tree pages: (lower - 16) / 2 u16 offsets of nodes, sorted; the nodes end the page
 *   node     0 u16 lo | 2 u16 hi | 4 u16 flags | 6 u16 key size | 8 key | data
 *            branch: child page = lo | hi << 16 | flags << 32; the first key counts as lowest
 *            leaf: data size = lo | hi << 16; flags 1: data is the u64 number of the first overflow
 *            page; flags 2: data is a database record
 *   database 0 u32 pad | 4 u16 flags | 6 u16 depth | 8 u64 branch pages | 16 u64 leaf pages |
 *            24 u64 overflow pages | 32 u64 entries | 40 u64 root page
 *   meta     (content of pages 0 and 1) 0 u32 magic | 4 u32 version | 8 u64 address | 16 u64 map
 *            size | 24 database of free pages (its pad: the page size) | 72 main database |
 *            120 u64 last page | 128 u64 transaction; transaction n writes page n mod 2
 *   free     key u64 transaction, value u64 count, then count page numbers, descending
 */
#include "spool/tree.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE_HEADER_BYTES 16u
#define NODE_HEADER_BYTES 8u
#define DATABASE_BYTES    48u
#define META_BYTES        136u
#define META_MAGIC        0xBEEFC0DEu
#define META_VERSION      1u
#define NO_PAGE           UINT64_MAX

/* The flags of a page, all of them: LMDB has others for pages in memory ("may be written to in place"),
   which kill the process that believes them of a page on disk. */
enum { PAGE_BRANCH = 1, PAGE_LEAF = 2, PAGE_OVERFLOW = 4, PAGE_META = 8 };
enum { NODE_BIG = 1, NODE_DATABASE = 2 };
/* The list of free pages has integers for keys; the environment's own flags stand beside that, of
   which a file in no directory of its own leaves one. */
enum { FREE_LIST_FLAGS = 0x08, ENVIRONMENT_FLAGS = 0x4000 };

static_assert(sizeof(size_t) == 8, "the format described here is that of 64-bit hosts");

static uint16_t get16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static uint64_t get64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

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

static struct tree_root root_at(const uint8_t *p)
{
    struct tree_root r = {
        .flags = get16(p + 4),
        .depth = get16(p + 6),
        .branch_pages = get64(p + 8),
        .leaf_pages = get64(p + 16),
        .overflow_pages = get64(p + 24),
        .entries = get64(p + 32),
        .root = get64(p + 40),
    };
    return r;
}

static int meta_read(struct tree *tree, unsigned which, uint64_t at, uint8_t *meta,
                     struct spool_error *error)
{
    uint8_t page[PAGE_HEADER_BYTES + META_BYTES];
    int status = tree_pread(tree->fd, page, sizeof(page), at, error);
    uint32_t page_bytes;

    if (status != SPOOL_OK)
        return status;
    memcpy(meta, page + PAGE_HEADER_BYTES, META_BYTES);
    page_bytes = get32(meta + 24);
    if (get64(page) != which || get16(page + 10) != PAGE_META || get32(meta) != META_MAGIC)
        return spool_error_set(error, SPOOL_E_CORRUPT, "page %u is not an LMDB meta page", which);
    if (get32(meta + 4) != META_VERSION)
        return spool_error_set(error, SPOOL_E_CORRUPT, "LMDB format %u is not known",
                               get32(meta + 4));
    if (page_bytes < 512 || page_bytes > 65536 || (page_bytes & (page_bytes - 1)))
        return spool_error_set(error, SPOOL_E_CORRUPT, "a page size of %u is not possible",
                               page_bytes);
    if (which && page_bytes != tree->page_bytes)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the meta pages differ in page size");
    tree->page_bytes = page_bytes;
    return SPOOL_OK;
}

int tree_page_bytes(int fd, uint32_t *page_bytes, struct spool_error *error)
{
    uint8_t meta[META_BYTES];
    struct tree tree = {.fd = fd};
    int status = meta_read(&tree, 0, 0, meta, error);
    *page_bytes = tree.page_bytes;
    return status;
}

int tree_open(struct tree *tree, int fd, struct spool_error *error)
{
    uint8_t meta[2][META_BYTES];
    const uint8_t *newest, *older;
    uint64_t transaction[2];
    struct stat st;
    int status;

    memset(tree, 0, sizeof(*tree));
    tree->fd = fd;
    if (fstat(fd, &st) < 0)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot stat");
    tree->file_bytes = (uint64_t)st.st_size;
    status = meta_read(tree, 0, 0, meta[0], error);
    if (status == SPOOL_OK)
        status = meta_read(tree, 1, tree->page_bytes, meta[1], error);
    if (status != SPOOL_OK)
        return status;
    if (tree->file_bytes < 2ull * tree->page_bytes)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the file ends inside its meta pages");

    /* Two commits in a row write the two pages by turns, so any other pair means that the number
       of one was changed, and the older state would silently be taken for the newer. */
    transaction[0] = get64(meta[0] + 128);
    transaction[1] = get64(meta[1] + 128);
    if ((transaction[0] & 1) || (!(transaction[1] & 1) && transaction[1]) ||
        (transaction[0] < transaction[1] ? transaction[1] - transaction[0]
                                         : transaction[0] - transaction[1]) > 1)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the meta pages' transactions do not match");
    newest = meta[transaction[0] < transaction[1]];
    older = meta[transaction[0] >= transaction[1]];
    tree->transaction = get64(newest + 128);
    tree->last_page = get64(newest + 120);
    tree->free_root = root_at(newest + 24);
    tree->main_root = root_at(newest + 72);
    if (tree->last_page < 1 || tree->last_page > (uint64_t)INT64_MAX / tree->page_bytes - 1 ||
        tree->last_page < get64(older + 120) || /* files only grow */
        get64(newest + 16) < (tree->last_page + 1) * tree->page_bytes)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the number of the last page is wrong");
    if (tree->main_root.flags)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the main database has unknown flags");
    if ((tree->free_root.flags & ~ENVIRONMENT_FLAGS) != FREE_LIST_FLAGS)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the list of free pages has unknown flags");
    return SPOOL_OK;
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
    if (status == SPOOL_OK || !(w->flags & TREE_SALVAGE) || status == SPOOL_E_NOMEM)
        return status;
    if (w->first_status == SPOOL_OK)
        w->first_status = status;
    return SPOOL_OK;
}

static int walk_page(struct walk *w, uint64_t number, unsigned level, unsigned depth,
                     struct bound lo, struct bound hi)
{
    unsigned kind = level + 1 == depth ? PAGE_LEAF : PAGE_BRANCH, nodes = 0;
    int status = claim(w, number, 1);
    const uint8_t *p;

    if (status == SPOOL_OK)
        status = load_page(w, number, level, kind, &nodes, lo, hi);
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
