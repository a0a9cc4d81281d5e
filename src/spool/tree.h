/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads LMDB 0.9 files by pread, trusting nothing: every page number, offset and size is checked
 * before it is followed. It serves two ends. Before mdb_env_open maps a file, tree_walk proves that
 * LMDB cannot be led out of bounds by it (LMDB has no page checksums, and a file cut short kills
 * the process by SIGBUS on the first touch of what is gone). And segments are read with it
 * throughout, so that a file damaged while it is in use gives an error too.
 *
 * Only what libspool writes is accepted: plain named databases without duplicates.
 */
#ifndef SPOOL_TREE_H
#define SPOOL_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "spool_error.h"

#define TREE_DEPTH_MAX     32
#define TREE_DATABASES_MAX 16

struct tree_root {
    uint64_t root; /* UINT64_MAX: empty */
    uint64_t branch_pages, leaf_pages, overflow_pages, entries;
    uint16_t flags, depth;
};

/* A page of a database that can't be read. What lay in it is at or above the one key and below the other;
   NULL: there is no such bound. */
struct tree_gap {
    const char *db;
    uint64_t page;
    const uint8_t *from, *to;
    size_t from_size, to_size;
};

struct tree {
    int fd; /* borrowed */
    uint32_t page_bytes;
    uint64_t file_bytes;
    uint64_t last_page;
    uint64_t transaction;
    struct tree_root free_root, main_root;
    /* Told of each page that a salvage steps over since it can't be read; NULL: nobody is. For the caller of
       tree_walk to set. */
    void (*unreadable)(void *arg, const struct tree_gap *gap);
    void *unreadable_arg;
};

struct tree_item {
    const char *db;
    const uint8_t *key;
    size_t key_size;
    const uint8_t *data; /* NULL where the value lies on overflow pages */
    size_t size;
    uint64_t page; /* the first overflow page, or 0 */
};

enum tree_flags {
    TREE_OVERFLOW_HEADERS = 1, /* read and check the header of each value's overflow pages */
    TREE_SALVAGE = 2,          /* step over what is bad, visit the rest, then report the first */
    TREE_READABLE = 4,         /* but not over what can't be read: IO, at once */
};

/*
 * Reads both meta pages and chooses the newest. fd stays the caller's and must outlive the tree.
 * CORRUPT says what is wrong; IO where reading fails.
 */
int tree_open(struct tree *tree, int fd, struct spool_error *error);

/*
 * Before a file is opened to be written. The page of the older number may hold the whole state that
 * comes after the one of the newer: either its number was changed on the disk, and LMDB would go
 * behind a durable commit, or the write of this page failed and LMDB put the old number back, and that
 * commit may be in force or not. So it is given its number again. Anything else is left for tree_open
 * to judge. *mended (or NULL): it was so. NOMEM. IO: it can't be read, with its errno, or, without one,
 * not be given its number.
 */
int tree_mend(const char *path, bool *mended, struct spool_error *error);

/*
 * As tree_open; where the two meta pages do not make a pair, by the one that can be read (*half). Each
 * leads to a whole state of the file, for LMDB overwrites nothing that the older one needs: so what
 * is missing then is the last commit at most. A page that has the number of the transaction which made
 * its state goes before one that has not. With none the error is tree_open's. flags: TREE_READABLE, or 0.
 */
int tree_open_salvage(struct tree *tree, int fd, unsigned flags, bool *half,
                      struct spool_error *error);

/*
 * Checks the pages and visits the entries of one named database (only), or, with only NULL, checks
 * the list of free pages too and visits every database. visit may be NULL; a non-zero return of it
 * counts as an error of the file if negative (visit then fills error itself).
 */
int tree_walk(const struct tree *tree, const char *only, unsigned flags,
              int (*visit)(void *arg, const struct tree *tree, const struct tree_item *item),
              void *arg, struct spool_error *error);

/* A value, wherever it lies, as a malloc'd copy (never NULL on success). LIMIT over max bytes. */
int tree_value(const struct tree *tree, const struct tree_item *item, size_t max, uint8_t **data,
               struct spool_error *error);

/* Reads exactly n bytes; CORRUPT where the file ends before. */
int tree_pread(int fd, void *data, size_t n, uint64_t at, struct spool_error *error);

/* The page size alone, of either meta page: it never changes, so this may run beside a writer, unlike
   tree_open. */
int tree_page_bytes(int fd, uint32_t *page_bytes, struct spool_error *error);

/* Overflow pages that a value of n bytes takes. */
uint64_t tree_overflow_pages(const struct tree *tree, uint64_t n);

#endif
