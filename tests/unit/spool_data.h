/* SPDX-License-Identifier: Apache-2.0 */
/* Spools made for tests: a directory of its own, blocks whose content says where they belong. */
#ifndef SPOOL_DATA_H
#define SPOOL_DATA_H

#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "spool.h"

#define check_ok(call)                                                                             \
    do {                                                                                           \
        int status_ = (call);                                                                      \
        if (status_ != SPOOL_OK)                                                                   \
            fail_msg("%s: %s: %s", #call, spool_strerror(status_), the_error.text);                \
    } while (0)

static struct spool_error the_error;

static inline int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

static inline void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* A fresh directory's name; free it. */
static inline char *make_directory(void)
{
    const char *base = getenv("TMPDIR");
    char *path = NULL;
    assert_true(asprintf(&path, "%s/spool-test-XXXXXX", base ? base : "/tmp") > 0);
    assert_non_null(mkdtemp(path));
    return path;
}

static inline struct spool *open_spool(const char *path, uint64_t segment_bytes)
{
    const struct spool_options options = {
        .path = path, .segment_bytes = segment_bytes, .create = true};
    struct spool *spool = NULL;
    check_ok(spool_open(&options, &spool, &the_error));
    return spool;
}

static inline struct spool_stream *open_stream(struct spool *spool, const char *name)
{
    const struct spool_segment_spec spec = {"schema", 6, "db.table"};
    struct spool_stream *stream = NULL;
    check_ok(spool_stream_open(spool, name, &stream, &the_error));
    check_ok(spool_stream_configure(stream, &spec, &the_error));
    return stream;
}

static inline uint32_t open_origin(struct spool *spool, const char *name)
{
    uint32_t id = 0;
    check_ok(spool_origin(spool, name, 0, &id, NULL, &the_error));
    return id;
}

/* The byte at a place of the payload of the block that begins with an offset of an origin. */
static inline uint8_t payload_byte(uint32_t origin, int64_t first_offset, size_t at)
{
    uint64_t x = ((uint64_t)origin << 40) ^ (uint64_t)first_offset * 0x9e3779b97f4a7c15ull;
    x ^= (at / 8 + 1) * 0xbf58476d1ce4e5b9ull;
    x ^= x >> 29;
    return (uint8_t)(x >> (8 * (at % 8)));
}

static inline void fill_payload(uint8_t *p, size_t n, uint32_t origin, int64_t first_offset)
{
    for (size_t i = 0; i < n; i++)
        p[i] = payload_byte(origin, first_offset, i);
}

static inline bool is_payload(const uint8_t *p, size_t n, uint32_t origin, int64_t first_offset)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != payload_byte(origin, first_offset, i))
            return false;
    return true;
}

/* A block of rows behind the highest offset of its origin; the payload is malloc'd. */
static inline struct spool_block next_block(struct spool_stream *stream, uint32_t origin,
                                            uint32_t rows, size_t payload)
{
    struct spool_block b = {.origin = origin, .rows = rows, .flags = SPOOL_BLOCK_NATIVE};
    int64_t high = -1;
    uint8_t *bytes = malloc(payload + 1);

    assert_non_null(bytes);
    (void)spool_stream_high(stream, origin, &high);
    b.first_offset = high + 1;
    b.last_offset = high + (rows ? rows : 1);
    b.first_arrival_ms = 1700000000000 + b.first_offset;
    b.last_arrival_ms = b.first_arrival_ms + 5;
    b.raw_bytes = payload * 3;
    fill_payload(bytes, payload, origin, b.first_offset);
    b.frames = bytes;
    b.frames_size = rows ? payload : 0;
    return b;
}

/* Appends one block and gives its reference. */
static inline struct spool_block_ref append_one(struct spool_stream *stream, uint32_t origin,
                                                uint32_t rows, size_t payload)
{
    struct spool_block b = next_block(stream, origin, rows, payload);
    struct spool_block_ref ref = {0};
    size_t appended = 0;

    check_ok(spool_stream_append(stream, &b, 1, &ref, &appended, &the_error));
    assert_int_equal(appended, 1);
    free((void *)(uintptr_t)b.frames);
    return ref;
}

/* Reads a block in all three ways; each must give what was appended. */
static inline void check_block(struct spool_stream *stream, const struct spool_block_ref *ref)
{
    struct spool_reader *reader = NULL;
    void *payload = NULL;
    size_t size = 0;

    check_ok(spool_reader_open(stream, ref->segment, &reader, &the_error));
    check_ok(spool_reader_verify(reader, ref, &the_error));
    check_ok(spool_reader_block(reader, ref, &payload, &size, NULL, &the_error));
    assert_int_equal(size, ref->frames_bytes);
    assert_true(is_payload(payload, size, ref->origin, ref->first_offset));
    if (size) {
        uint8_t last = 0;
        check_ok(spool_reader_read(reader, ref, size - 1, &last, 1, &the_error));
        assert_int_equal(last, ((uint8_t *)payload)[size - 1]);
    }
    free(payload);
    spool_reader_close(reader);
}

static inline struct spool_segment_info *segments_of(struct spool_stream *stream, size_t *count)
{
    struct spool_segment_info *list = NULL;
    check_ok(spool_stream_segments(stream, &list, count, &the_error));
    return list;
}

static inline void print_problem(void *arg, const struct spool_problem *p)
{
    (void)arg;
    print_message("%s %s %llu %s: %s\n", p->file, p->stream, (unsigned long long)p->sequence,
                  p->kind, p->detail);
}

/* A spool that must have nothing wrong with it. */
static inline void check_verified(struct spool *spool)
{
    uint64_t problems = 0;
    check_ok(spool_verify(spool, print_problem, NULL, &problems, &the_error));
    assert_int_equal(problems, 0);
}

/* xorshift64*: tests that use chance print their seed. */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dull;
}

#endif
