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
 *
 * tree_open.c reads the meta pages, tree.c the trees.
 */
#ifndef SPOOL_TREE_INT_H
#define SPOOL_TREE_INT_H

#include <assert.h>
#include <string.h>

#include "spool/tree.h"

#define PAGE_HEADER_BYTES 16u
#define DATABASE_BYTES    48u
#define NO_PAGE           UINT64_MAX

/* The flags of a page, all of them: LMDB has others for pages in memory ("may be written to in place"),
   which kill the process that believes them of a page on disk. */
enum { PAGE_BRANCH = 1, PAGE_LEAF = 2, PAGE_OVERFLOW = 4, PAGE_META = 8 };

static_assert(sizeof(size_t) == 8, "the format described here is that of 64-bit hosts");

static inline uint16_t get16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint32_t get32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline uint64_t get64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline struct tree_root root_at(const uint8_t *p)
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

#endif
