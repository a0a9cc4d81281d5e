/* SPDX-License-Identifier: Apache-2.0 */
/* The two meta pages of an LMDB file, and which of them counts; what stands there is in tree_int.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

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
        int status;
        tree->page_bytes = size;
        status = meta_read(tree, 1, size, meta, NULL);
        if (status == SPOOL_OK || status == SPOOL_E_IO)
            return status;
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

/* The last node of a page that should be of that kind; NULL in *node where it is not. IO. */
static int last_node(const struct tree *tree, uint8_t *page, uint64_t number, unsigned kind,
                     const uint8_t **node, struct spool_error *error)
{
    const uint32_t size = tree->page_bytes;
    unsigned lower, at;
    int status;

    *node = NULL;
    if (number < 2 || number > (uint64_t)INT64_MAX / size - 1)
        return SPOOL_OK;
    status = tree_pread(tree->fd, page, size, number * size, error);
    if (status != SPOOL_OK)
        return status == SPOOL_E_IO ? status : SPOOL_OK;
    if (get64(page) != number || get16(page + 10) != kind)
        return SPOOL_OK;
    lower = get16(page + 12);
    if (lower < PAGE_HEADER_BYTES + 2 || lower > size)
        return SPOOL_OK;
    at = get16(page + lower - 2);
    if (at <= size - 16)
        *node = page + at;
    return SPOOL_OK;
}

/*
 * The number of the transaction that made the state, by its list of free pages: each transaction but
 * the first frees at least the root of the main database, and lists that under its own number, which
 * is the highest. 0: not to be had. NOMEM, IO. Source: LMDB 0.9.24, mdb.c, mdb_freelist_save.
 */
static int maker_of(const struct tree *tree, const struct meta *meta, uint64_t *maker,
                    struct spool_error *error)
{
    const struct tree_root root = root_at(meta->bytes + 24);
    uint8_t *page = malloc(tree->page_bytes);
    uint64_t number = root.root;
    int status = SPOOL_OK;

    *maker = 0;
    if (!page)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a page");
    for (unsigned level = 0; level < root.depth && level < TREE_DEPTH_MAX; level++) {
        bool leaf = level + 1 == root.depth;
        const uint8_t *node;
        status = last_node(tree, page, number, leaf ? PAGE_LEAF : PAGE_BRANCH, &node, error);
        if (status != SPOOL_OK || !node)
            break;
        if (leaf)
            *maker = get16(node + 6) == 8 ? get64(node + 8) : 0;
        else
            number =
                get16(node) | (uint64_t)get16(node + 2) << 16 | (uint64_t)get16(node + 4) << 32;
    }
    free(page);
    return status;
}

/* Whether a meta page has the number of the transaction that made its state. */
static bool is_proved(const struct meta *meta, uint64_t maker)
{
    return maker ? maker == transaction_of(meta) : transaction_of(meta) <= 1;
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

/* Both meta pages, which must make a pair; *newest is the one of the higher number. */
static int metas_read(struct tree *tree, struct meta meta[2], unsigned *newest,
                      struct spool_error *error)
{
    uint64_t first, second;
    int status = meta_read(tree, 0, 0, &meta[0], error);

    if (status == SPOOL_OK)
        status = meta_read(tree, 1, tree->page_bytes, &meta[1], error);
    if (status != SPOOL_OK)
        return status;

    /* Two commits in a row write the two pages by turns, so any other pair means that the number
       of one was changed, and the older state would silently be taken for the newer. */
    first = transaction_of(&meta[0]);
    second = transaction_of(&meta[1]);
    *newest = first < second;
    if (!is_of_page(first, 0) || !is_of_page(second, 1) ||
        (*newest ? second - first : first - second) > 1)
        return spool_error_set(error, SPOOL_E_CORRUPT, "the meta pages' transactions do not match");
    return SPOOL_OK;
}

int tree_open(struct tree *tree, int fd, struct spool_error *error)
{
    struct meta meta[2];
    unsigned newest;
    uint64_t maker;
    int status = tree_stat(tree, fd, error);

    if (status == SPOOL_OK)
        status = metas_read(tree, meta, &newest, error);
    if (status != SPOOL_OK)
        return status;
    /* A change by two makes a pair the other way round. What the older page holds does not count: the
       failed write of a meta page leaves anything there, see tree_mend. */
    status = maker_of(tree, &meta[newest], &maker, error);
    if (status != SPOOL_OK)
        return status;
    if (maker && !is_proved(&meta[newest], maker))
        return spool_error_set(error, SPOOL_E_CORRUPT,
                               "a meta page has the number of another transaction");
    if (last_page_of(&meta[newest]) < last_page_of(&meta[!newest])) /* files only grow */
        return spool_error_set(error, SPOOL_E_CORRUPT, "the number of the last page is wrong");
    return meta_take(tree, &meta[newest], error);
}

/* Whether the page of the lower number holds the whole state after that of the higher one, which proves
   itself: its transaction's number then. NOMEM, IO. */
static int find_misnumbered(struct tree *tree, unsigned *which, uint64_t *number,
                            struct spool_error *error)
{
    struct meta meta[2];
    unsigned newest;
    uint64_t maker[2];
    int status = metas_read(tree, meta, &newest, error);

    *number = 0;
    if (status != SPOOL_OK) /* of what is damaged, tree_open says so again */
        return status == SPOOL_E_CORRUPT ? SPOOL_OK : status;
    *which = !newest;
    tree->transaction = transaction_of(&meta[newest]) + 1;
    for (unsigned i = 0; i < 2; i++) {
        status = maker_of(tree, &meta[i], &maker[i], error);
        if (status != SPOOL_OK)
            return status;
    }
    if (!is_proved(&meta[newest], maker[newest]) || maker[*which] != tree->transaction ||
        last_page_of(&meta[*which]) < last_page_of(&meta[newest]))
        return SPOOL_OK;
    *number = tree->transaction;
    status = meta_take(tree, &meta[*which], NULL);
    if (status == SPOOL_OK)
        status = tree_walk(tree, NULL, TREE_OVERFLOW_HEADERS, NULL, NULL, error);
    if (status == SPOOL_OK)
        return SPOOL_OK;
    *number = 0;
    return status == SPOOL_E_CORRUPT ? SPOOL_OK : status;
}

static int write_number(const char *path, uint64_t at, uint64_t number, struct spool_error *error)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), status = SPOOL_OK;
    ssize_t written = fd < 0 ? -1 : pwrite(fd, &number, sizeof(number), (off_t)at);

    if (written >= 0 && written != sizeof(number))
        errno = EIO;
    if (written != sizeof(number) || fdatasync(fd) < 0)
        status = spool_error_set(error, SPOOL_E_IO, "cannot mend a meta page of %s: %s", path,
                                 strerror(errno));
    if (fd >= 0)
        close(fd);
    return status;
}

int tree_mend(const char *path, bool *mended, struct spool_error *error)
{
    struct spool_error inner = {0};
    struct tree tree;
    unsigned which = 0;
    uint64_t number = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC), status;

    if (mended)
        *mended = false;
    if (fd < 0)
        return errno == ENOENT
                   ? SPOOL_OK
                   : spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot open %s", path);
    status = tree_stat(&tree, fd, &inner);
    if (status == SPOOL_OK)
        status = find_misnumbered(&tree, &which, &number, &inner);
    close(fd);
    if (status != SPOOL_OK) {
        spool_error_set(error, status, "cannot check the meta pages of %s: %s", path, inner.text);
        if (error)
            error->sys_errno = inner.sys_errno;
        return status;
    }
    if (!number)
        return SPOOL_OK;
    status = write_number(path, which * (uint64_t)tree.page_bytes + PAGE_HEADER_BYTES + 128, number,
                          error);
    if (mended)
        *mended = status == SPOOL_OK;
    return status;
}

/* The state of one meta page, whatever the other one says. */
static int tree_open_half(struct tree *tree, int fd, unsigned which, bool *proved)
{
    struct meta meta;
    uint64_t maker;
    int status = tree_stat(tree, fd, NULL);

    if (status == SPOOL_OK)
        status = which ? meta_find_second(tree, &meta) : meta_read(tree, 0, 0, &meta, NULL);
    if (status == SPOOL_OK)
        status = meta_take(tree, &meta, NULL);
    if (status != SPOOL_OK)
        return status;
    status = maker_of(tree, &meta, &maker, NULL);
    if (status != SPOOL_OK)
        return status;
    *proved = is_proved(&meta, maker);
    if (maker)
        tree->transaction = maker;
    return is_of_page(tree->transaction, which) ? SPOOL_OK : SPOOL_E_CORRUPT;
}

int tree_open_salvage(struct tree *tree, int fd, unsigned flags, bool *half,
                      struct spool_error *error)
{
    struct tree halves[2];
    bool good[2], proved[2] = {false, false}, second;
    int status = tree_open(tree, fd, error);

    *half = false;
    if (status == SPOOL_OK || (status == SPOOL_E_IO && flags & TREE_READABLE))
        return status;
    for (unsigned i = 0; i < 2; i++) {
        int found = tree_open_half(&halves[i], fd, i, &proved[i]);
        if (found == SPOOL_E_IO && flags & TREE_READABLE)
            return spool_error_set(error, found, "cannot read meta page %u", i);
        good[i] = found == SPOOL_OK;
    }
    if (!good[0] && !good[1])
        return status;
    /* One that does not prove itself may be half of a write that failed. */
    if (!good[0] || !good[1])
        second = good[1];
    else if (proved[0] != proved[1])
        second = proved[1];
    else
        second = halves[0].transaction < halves[1].transaction;
    *tree = halves[second];
    *half = true;
    return SPOOL_OK;
}
