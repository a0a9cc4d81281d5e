/* SPDX-License-Identifier: Apache-2.0 */
/* The two meta pages of an LMDB file, and which of them counts; what stands there is in tree_int.h. */
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "spool/tree_int.h"

#define META_BYTES     136u
#define META_MAGIC     0xBEEFC0DEu
#define META_VERSION   1u
#define PAGE_BYTES_MIN 512u
#define PAGE_BYTES_MAX 65536u

/* The list of free pages has integers for keys; the environment's own flags stand beside that, of
   which a file in no directory of its own leaves one. */
enum { FREE_LIST_FLAGS = 0x08, ENVIRONMENT_FLAGS = 0x4000 };

struct meta {
    uint8_t bytes[META_BYTES];
};

static uint64_t transaction_of(const struct meta *meta)
{
    return get64(meta->bytes + 128);
}

static uint64_t last_page_of(const struct meta *meta)
{
    return get64(meta->bytes + 120);
}

static int meta_read(struct tree *tree, unsigned which, uint64_t at, struct meta *meta,
                     struct spool_error *error)
{
    uint8_t page[PAGE_HEADER_BYTES + META_BYTES];
    int status = tree_pread(tree->fd, page, sizeof(page), at, error);
    uint32_t page_bytes;

    if (status != SPOOL_OK)
        return status;
    memcpy(meta->bytes, page + PAGE_HEADER_BYTES, META_BYTES);
    page_bytes = get32(meta->bytes + 24);
    if (get64(page) != which || get16(page + 10) != PAGE_META || get32(meta->bytes) != META_MAGIC)
        return spool_error_set(error, SPOOL_E_CORRUPT, "page %u is not an LMDB meta page", which);
    if (get32(meta->bytes + 4) != META_VERSION)
        return spool_error_set(error, SPOOL_E_CORRUPT, "LMDB format %u is not known",
                               get32(meta->bytes + 4));
    if (page_bytes < PAGE_BYTES_MIN || page_bytes > PAGE_BYTES_MAX ||
        (page_bytes & (page_bytes - 1)))
        return spool_error_set(error, SPOOL_E_CORRUPT, "a page size of %u is not possible",
                               page_bytes);
    if (which && page_bytes != tree->page_bytes)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the meta pages differ in page size");
    tree->page_bytes = page_bytes;
    return SPOOL_OK;
}

/* Page 1 by itself: it stands where a page ends, of whatever size that is. */
static int meta_find_second(struct tree *tree, struct meta *meta)
{
    for (uint32_t size = PAGE_BYTES_MIN; size <= PAGE_BYTES_MAX; size *= 2) {
        tree->page_bytes = size;
        if (meta_read(tree, 1, size, meta, NULL) == SPOOL_OK)
            return SPOOL_OK;
    }
    return SPOOL_E_CORRUPT;
}

/* Takes the state that a meta page names. */
static int meta_take(struct tree *tree, const struct meta *meta, struct spool_error *error)
{
    tree->transaction = transaction_of(meta);
    tree->last_page = last_page_of(meta);
    tree->free_root = root_at(meta->bytes + 24);
    tree->main_root = root_at(meta->bytes + 72);
    if (tree->file_bytes < 2ull * tree->page_bytes)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the file ends inside its meta pages");
    if (tree->last_page < 1 || tree->last_page > (uint64_t)INT64_MAX / tree->page_bytes - 1 ||
        get64(meta->bytes + 16) < (tree->last_page + 1) * tree->page_bytes)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the number of the last page is wrong");
    if (tree->main_root.flags)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the main database has unknown flags");
    if ((tree->free_root.flags & ~ENVIRONMENT_FLAGS) != FREE_LIST_FLAGS)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the list of free pages has unknown flags");
    return SPOOL_OK;
}

/* Transaction n writes page n mod 2; a new file has 0 in both. */
static bool is_of_page(uint64_t transaction, unsigned which)
{
    return which ? (transaction & 1) || !transaction : !(transaction & 1);
}

/* The last node of a page that should be of that kind, or NULL. */
static const uint8_t *last_node(const struct tree *tree, uint8_t *page, uint64_t number,
                                unsigned kind)
{
    const uint32_t size = tree->page_bytes;
    unsigned lower, at;

    if (number < 2 || number > (uint64_t)INT64_MAX / size - 1 ||
        tree_pread(tree->fd, page, size, number * size, NULL) != SPOOL_OK ||
        get64(page) != number || get16(page + 10) != kind)
        return NULL;
    lower = get16(page + 12);
    if (lower < PAGE_HEADER_BYTES + 2 || lower > size)
        return NULL;
    at = get16(page + lower - 2);
    return at <= size - 16 ? page + at : NULL;
}

/*
 * The number of the transaction that made the state, by its list of free pages: each transaction but
 * the first frees at least the root of the main database, and lists that under its own number, which
 * is the highest. 0: not to be had. Source: LMDB 0.9.24, mdb.c, mdb_freelist_save.
 */
static uint64_t maker_of(const struct tree *tree, const struct meta *meta)
{
    const struct tree_root root = root_at(meta->bytes + 24);
    uint8_t *page = malloc(tree->page_bytes);
    uint64_t number = root.root, maker = 0;

    for (unsigned level = 0; page && level < root.depth && level < TREE_DEPTH_MAX; level++) {
        bool leaf = level + 1 == root.depth;
        const uint8_t *node = last_node(tree, page, number, leaf ? PAGE_LEAF : PAGE_BRANCH);
        if (!node)
            break;
        if (leaf)
            maker = get16(node + 6) == 8 ? get64(node + 8) : 0;
        else
            number =
                get16(node) | (uint64_t)get16(node + 2) << 16 | (uint64_t)get16(node + 4) << 32;
    }
    free(page);
    return maker;
}

static int tree_stat(struct tree *tree, int fd, struct spool_error *error)
{
    struct stat st;

    memset(tree, 0, sizeof(*tree));
    tree->fd = fd;
    if (fstat(fd, &st) < 0)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot stat");
    tree->file_bytes = (uint64_t)st.st_size;
    return SPOOL_OK;
}

int tree_page_bytes(int fd, uint32_t *page_bytes, struct spool_error *error)
{
    struct tree tree = {.fd = fd};
    struct meta meta;
    int status = meta_read(&tree, 0, 0, &meta, error);

    if (status != SPOOL_OK && meta_find_second(&tree, &meta) == SPOOL_OK)
        status = SPOOL_OK;
    *page_bytes = tree.page_bytes;
    return status;
}

int tree_open(struct tree *tree, int fd, struct spool_error *error)
{
    struct meta meta[2];
    uint64_t transaction[2];
    bool newest;
    int status = tree_stat(tree, fd, error);

    if (status == SPOOL_OK)
        status = meta_read(tree, 0, 0, &meta[0], error);
    if (status == SPOOL_OK)
        status = meta_read(tree, 1, tree->page_bytes, &meta[1], error);
    if (status != SPOOL_OK)
        return status;

    /* Two commits in a row write the two pages by turns, so any other pair means that the number
       of one was changed, and the older state would silently be taken for the newer. */
    transaction[0] = transaction_of(&meta[0]);
    transaction[1] = transaction_of(&meta[1]);
    if (!is_of_page(transaction[0], 0) || !is_of_page(transaction[1], 1) ||
        (transaction[0] < transaction[1] ? transaction[1] - transaction[0]
                                         : transaction[0] - transaction[1]) > 1)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the meta pages' transactions do not match");
    /* ... but for a change by two, after which they make a pair the other way round. */
    for (unsigned i = 0; i < 2; i++) {
        uint64_t maker = maker_of(tree, &meta[i]);
        if (maker && maker != transaction[i])
            return spool_error_set(error, SPOOL_E_CORRUPT,
                                   "a meta page has the number of another transaction");
    }
    newest = transaction[0] < transaction[1];
    if (last_page_of(&meta[newest]) < last_page_of(&meta[!newest])) /* files only grow */
        return spool_error_set(error, SPOOL_E_CORRUPT, "the number of the last page is wrong");
    return meta_take(tree, &meta[newest], error);
}

/* The state of one meta page, whatever the other one says. */
static int tree_open_half(struct tree *tree, int fd, unsigned which)
{
    struct meta meta;
    uint64_t maker;
    int status = tree_stat(tree, fd, NULL);

    if (status == SPOOL_OK)
        status = which ? meta_find_second(tree, &meta) : meta_read(tree, 0, 0, &meta, NULL);
    if (status == SPOOL_OK)
        status = meta_take(tree, &meta, NULL);
    maker = status == SPOOL_OK ? maker_of(tree, &meta) : 0;
    if (maker)
        tree->transaction = maker;
    return status == SPOOL_OK && !is_of_page(tree->transaction, which) ? SPOOL_E_CORRUPT : status;
}

int tree_open_salvage(struct tree *tree, int fd, bool *half, struct spool_error *error)
{
    struct tree halves[2];
    bool good[2], second;
    int status = tree_open(tree, fd, error);

    *half = false;
    if (status == SPOOL_OK)
        return SPOOL_OK;
    for (unsigned i = 0; i < 2; i++)
        good[i] = tree_open_half(&halves[i], fd, i) == SPOOL_OK;
    if (!good[0] && !good[1])
        return status;
    second = good[0] && good[1] ? halves[0].transaction < halves[1].transaction : good[1];
    *tree = halves[second];
    *half = true;
    return SPOOL_OK;
}
