/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/limits.h"
#include "codec/frame.h"
#include "unit_data.h"

static unsigned hex(char c)
{
    return (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
}

static size_t unhex(const char *text, uint8_t *out)
{
    size_t n = 0;

    for (; text[0] > ' ' && text[1] > ' '; text += 2)
        out[n++] = (uint8_t)(hex(text[0]) * 16 + hex(text[1]));
    return n;
}

static void test_cityhash_vectors(void **state)
{
    struct buf file = unit_data("city128.tsv");
    unsigned seen = 0;

    (void)state;
    for (char *next = NULL, *line = strtok_r((char *)file.data, "\n", &next); line;
         line = strtok_r(NULL, "\n", &next)) {
        const char *input = strchr(line, '\t') + 1, *sum;
        uint8_t data[1024], wanted[16];
        uint64_t hash[2];
        size_t n = strtoul(line, NULL, 10);
        if (*line == '#')
            continue;
        sum = strchr(input, '\t') + 1;
        assert_int_equal(unhex(input, data), n);
        assert_int_equal(unhex(sum, wanted), 16);
        cityhash128(data, n, hash);
        for (size_t i = 0; i < 16; i++)
            if ((uint8_t)(hash[i / 8] >> (8 * (i % 8))) != wanted[i])
                fail_msg("length %zu: byte %zu of the hash differs", n, i);
        seen++;
    }
    assert_int_equal(seen, 76);
    buf_free(&file);
}

static void test_cityhash_reads_at_any_address(void **state)
{
    uint8_t data[600];
    uint64_t first[2], other[2];

    (void)state;
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7);
    for (size_t n = 0; n < 500; n++) {
        /* Own allocations, so that a sanitizer sees a read over either end. */
        uint8_t *copy = malloc(n + 3);
        assert_non_null(copy);
        memcpy(copy + 3, data, n);
        cityhash128(data, n, first);
        cityhash128(copy + 3, n, other);
        assert_memory_equal(first, other, sizeof(first));
        free(copy);
        copy = malloc(n ? n : 1);
        assert_non_null(copy);
        memcpy(copy, data, n);
        cityhash128(copy, n, other);
        assert_memory_equal(first, other, sizeof(first));
        free(copy);
    }
}

static void test_opens_what_clickhouse_takes(void **state)
{
    static const char *const names[] = {"block.lz4", "block.lz4.1k", "block.mixed", "block.none",
                                        "block.zstd"};
    struct buf raw = unit_data("native/frames/block.native"), out;

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct spool_error error = {0};
        char path[64];
        struct buf file;
        snprintf(path, sizeof(path), "native/frames/%s", names[i]);
        file = unit_data(path);
        buf_init(&out, MIB);
        assert_int_equal(buf_append(&out, "kept", 4), SPOOL_OK);
        assert_int_equal(frames_open(file.data, file.len, &out, &error), SPOOL_OK);
        assert_int_equal(out.len, raw.len + 4);
        assert_memory_equal(out.data, "kept", 4);
        assert_memory_equal(out.data + 4, raw.data, raw.len);
        buf_free(&out);
        buf_free(&file);
    }
    buf_free(&raw);
}

static void test_refuses_broken_frames(void **state)
{
    static const struct {
        const char *name, *sentence;
    } cases[] = {
        {"bad_checksum.lz4", "frame at byte 0: the checksum does not match"},
        {"bad_header_truncated.lz4", "frame at byte 0: cut inside its header (20 bytes left)"},
        {"bad_method.bin", "frame at byte 0: unknown method 0x55"},
        {"bad_size.bin", "frame at byte 0: size 2147483647 does not fit the 13 bytes left"},
        {"bad_truncated.lz4", "frame at byte 0: size 8223 does not fit the 8218 bytes left"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct spool_error error = {0};
        char path[64];
        struct buf file, out;
        snprintf(path, sizeof(path), "native/frames/%s", cases[i].name);
        file = unit_data(path);
        buf_init(&out, MIB);
        assert_int_equal(buf_append(&out, "kept", 4), SPOOL_OK);
        assert_int_equal(frames_open(file.data, file.len, &out, &error), SPOOL_E_CORRUPT);
        assert_string_equal(error.text, cases[i].sentence);
        assert_int_equal(out.len, 4);
        buf_free(&out);
        buf_free(&file);
    }
}

/* Sets the checksum of a single frame right, so that what is behind it is reached. */
static void sign(uint8_t *frame, size_t size)
{
    uint64_t hash[2];

    cityhash128(frame + 16, size - 16, hash);
    for (size_t i = 0; i < 16; i++)
        frame[i] = (uint8_t)(hash[i / 8] >> (8 * (i % 8)));
}

static int open_status(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    struct spool_error error = {0};
    struct buf out;
    int status;

    assert_non_null(copy);
    memcpy(copy, data, size);
    buf_init(&out, MIB);
    status = frames_open(copy, size, &out, &error);
    if (status != SPOOL_OK) {
        assert_int_equal(out.len, 0);
        assert_int_equal(error.status, status);
        assert_non_null(strstr(error.text, "frame at byte"));
    }
    buf_free(&out);
    free(copy);
    return status;
}

static void test_hostile_frames(void **state)
{
    static const char *const names[] = {"block.lz4", "block.zstd", "block.none"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char path[64];
        struct buf file;
        snprintf(path, sizeof(path), "native/frames/%s", names[i]);
        file = unit_data(path);
        for (size_t n = 1; n < file.len; n += n < 64 ? 1 : 97)
            assert_int_equal(open_status(file.data, n), SPOOL_E_CORRUPT);
        for (size_t at = 0; at < file.len; at += at < 64 ? 1 : 53) {
            file.data[at] ^= 0x41;
            assert_int_equal(open_status(file.data, file.len), SPOOL_E_CORRUPT);
            if (at >= 16) {
                /* With a checksum that is right nothing but the payload's own checks is left. */
                sign(file.data, file.len);
                open_status(file.data, file.len);
            }
            file.data[at] ^= 0x41;
            sign(file.data, file.len);
        }
        assert_int_equal(open_status(file.data, file.len), SPOOL_OK);
        buf_free(&file);
    }
}

/* A tiny signed frame that claims a huge content is refused before memory is asked for. */
static void test_claims_are_checked(void **state)
{
    uint8_t frame[FRAME_HEADER_BYTES + 4] = {0};
    const uint8_t methods[] = {FRAME_LZ4, FRAME_ZSTD, FRAME_STORED};

    (void)state;
    for (size_t i = 0; i < sizeof(methods); i++) {
        frame[16] = methods[i];
        memcpy(frame + 17, "\x0d\0\0\0\xff\xff\xff\x7f", 8);
        sign(frame, sizeof(frame));
        assert_int_equal(open_status(frame, sizeof(frame)), SPOOL_E_CORRUPT);
    }
}

static void round_trip(enum frame_method method, size_t size, bool random)
{
    struct frame_writer *w = NULL;
    struct spool_error error = {0};
    uint8_t *raw = malloc(size ? size : 1);
    struct buf out, back;
    uint32_t seed = 7;

    assert_non_null(raw);
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1664525 + 1013904223;
        raw[i] = random ? (uint8_t)(seed >> 24) : (uint8_t)(i / 100);
    }
    buf_init(&out, 8 * MIB);
    buf_init(&back, 8 * MIB);
    assert_int_equal(frame_writer_create(method, 1, &w), SPOOL_OK);
    /* Twice with one writer: the kept state must not leak from one block into the next. */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(frame_write(w, raw, size, &out), SPOOL_OK);
        assert_int_equal(frames_open(out.data, out.len, &back, &error), SPOOL_OK);
        assert_int_equal(back.len, size);
        assert_memory_equal(back.data, raw, size);
        if (size > 100 && !random && method != FRAME_STORED)
            assert_true(out.len < size / 2);
        assert_true(out.len <= size + size / 200 + /* LZ4 makes noise that much larger at most */
                                   (FRAME_HEADER_BYTES + 32) * (size / LIMIT_FRAME_RAW_BYTES + 1));
        for (uint64_t at = 0, bytes; at < out.len; at += bytes) {
            uint8_t has;
            frame_head(out.data + at, &has, &bytes);
            assert_int_equal(has, method);
        }
        buf_reset(&out);
        buf_reset(&back);
    }
    frame_writer_free(w);
    buf_free(&out);
    buf_free(&back);
    free(raw);
}

static void test_round_trips(void **state)
{
    const enum frame_method methods[] = {FRAME_STORED, FRAME_LZ4, FRAME_ZSTD};
    const size_t sizes[] = {0,
                            1,
                            15,
                            16,
                            127,
                            1000,
                            65536,
                            LIMIT_FRAME_RAW_BYTES - 1,
                            LIMIT_FRAME_RAW_BYTES,
                            LIMIT_FRAME_RAW_BYTES + 1,
                            3 * MIB + 5};

    (void)state;
    for (size_t m = 0; m < 3; m++)
        for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
            round_trip(methods[m], sizes[s], false);
            round_trip(methods[m], sizes[s], true);
        }
}

static void test_writer_arguments(void **state)
{
    struct frame_writer *w = NULL;
    struct buf out;

    (void)state;
    assert_int_equal(frame_writer_create((enum frame_method)1, 1, &w), SPOOL_E_INVALID);
    assert_int_equal(frame_writer_create(FRAME_ZSTD, 1000, &w), SPOOL_E_INVALID);
    assert_null(w);
    assert_int_equal(frame_writer_create(FRAME_LZ4, 0, &w), SPOOL_OK);
    buf_init(&out, 100);
    assert_int_equal(buf_append(&out, "kept", 4), SPOOL_OK);
    assert_int_equal(frame_write(w, "0123456789", 10, &out), SPOOL_OK);
    assert_true(out.len > 4);
    out.len = 4;
    out.max = 20;
    assert_int_equal(frame_write(w, "0123456789", 10, &out), SPOOL_E_LIMIT);
    assert_int_equal(out.len, 4);
    buf_free(&out);
    frame_writer_free(w);
    frame_writer_free(NULL);
}

/* A later piece that finds no room takes the earlier ones back. */
static void test_no_half_write(void **state)
{
    size_t size = 2 * LIMIT_FRAME_RAW_BYTES;
    uint8_t *raw = calloc(1, size);
    struct frame_writer *w = NULL;
    struct buf out;

    (void)state;
    assert_non_null(raw);
    assert_int_equal(frame_writer_create(FRAME_STORED, 1, &w), SPOOL_OK);
    buf_init(&out, size);
    assert_int_equal(buf_append(&out, "kept", 4), SPOOL_OK);
    assert_int_equal(frame_write(w, raw, size, &out), SPOOL_E_LIMIT);
    assert_int_equal(out.len, 4);
    assert_int_equal(frame_write(w, raw, size / 2, &out), SPOOL_OK);
    buf_free(&out);
    frame_writer_free(w);
    free(raw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cityhash_vectors),
        cmocka_unit_test(test_cityhash_reads_at_any_address),
        cmocka_unit_test(test_opens_what_clickhouse_takes),
        cmocka_unit_test(test_refuses_broken_frames),
        cmocka_unit_test(test_hostile_frames),
        cmocka_unit_test(test_claims_are_checked),
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_writer_arguments),
        cmocka_unit_test(test_no_half_write),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
