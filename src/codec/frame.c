/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/frame.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>

#include <lz4.h>
#include <zstd.h>

#include "base/limits.h"

#define HASH_BYTES 16
#define HEAD_BYTES (FRAME_HEADER_BYTES - HASH_BYTES) /* counted in the compressed size */

/* Whatever a block holds, and however it is compressed, it can be stored. */
#define FRAMES_BYTES_MAX(bound)                                                                    \
    (LIMIT_BLOCK_RAW_BYTES / LIMIT_FRAME_RAW_BYTES *                                               \
     (FRAME_HEADER_BYTES + (bound(LIMIT_FRAME_RAW_BYTES))))
static_assert(LIMIT_BLOCK_RAW_BYTES % LIMIT_FRAME_RAW_BYTES == 0, "no shorter frame at the end");
static_assert(FRAMES_BYTES_MAX(LZ4_COMPRESSBOUND) <= LIMIT_BLOCK_BYTES, "LZ4");
static_assert(FRAMES_BYTES_MAX(ZSTD_COMPRESSBOUND) <= LIMIT_BLOCK_BYTES, "ZSTD");

/* No LZ4 payload opens to more than this many times its own size. */
#define LZ4_RATIO_MAX 255

struct frame_writer {
    enum frame_method method;
    void *lz4_state;
    ZSTD_CCtx *zstd;
};

int frame_writer_create(enum frame_method method, int level, struct frame_writer **out)
{
    struct frame_writer *w;

    *out = NULL;
    if (method != FRAME_STORED && method != FRAME_LZ4 && method != FRAME_ZSTD)
        return SPOOL_E_INVALID;
    if (method == FRAME_ZSTD && (level < ZSTD_minCLevel() || level > ZSTD_maxCLevel()))
        return SPOOL_E_INVALID;
    w = calloc(1, sizeof(*w));
    if (!w)
        return SPOOL_E_NOMEM;
    w->method = method;
    if (method == FRAME_LZ4) {
        w->lz4_state = malloc((size_t)LZ4_sizeofState());
        if (!w->lz4_state)
            goto memory;
    } else if (method == FRAME_ZSTD) {
        w->zstd = ZSTD_createCCtx();
        if (!w->zstd ||
            ZSTD_isError(ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, level)))
            goto memory;
    }
    *out = w;
    return SPOOL_OK;
memory:
    frame_writer_free(w);
    return SPOOL_E_NOMEM;
}

void frame_writer_free(struct frame_writer *w)
{
    if (!w)
        return;
    free(w->lz4_state);
    ZSTD_freeCCtx(w->zstd);
    free(w);
}

static void put_le(uint8_t *at, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        at[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get_u32le(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Compresses into to; *written is 0 where the method failed, which a retry would repeat. */
static int compress(struct frame_writer *w, const uint8_t *raw, size_t size, uint8_t *to,
                    size_t room, size_t *written)
{
    size_t n;

    if (w->method == FRAME_LZ4) {
        int got = LZ4_compress_fast_extState(w->lz4_state, (const char *)raw, (char *)to, (int)size,
                                             (int)room, 1);
        assert(got > 0); /* room is LZ4's own bound */
        *written = (size_t)got;
        return SPOOL_OK;
    }
    n = ZSTD_compress2(w->zstd, to, room, raw, size);
    if (ZSTD_isError(n))
        return SPOOL_E_NOMEM; /* room is ZSTD's own bound: only its tables can be lacking */
    *written = n;
    return SPOOL_OK;
}

static int write_one(struct frame_writer *w, const uint8_t *raw, size_t size, struct buf *out)
{
    size_t room = size, written = 0;
    uint64_t hash[2];
    uint8_t *head;
    int status;

    if (w->method == FRAME_LZ4)
        room = (size_t)LZ4_compressBound((int)size);
    else if (w->method == FRAME_ZSTD)
        room = ZSTD_compressBound(size);
    status = buf_reserve(out, FRAME_HEADER_BYTES + room);
    if (status != SPOOL_OK)
        return status;
    head = out->data + out->len;
    if (w->method != FRAME_STORED) {
        status = compress(w, raw, size, head + FRAME_HEADER_BYTES, room, &written);
        if (status != SPOOL_OK)
            return status;
    }
    if (w->method == FRAME_STORED) {
        written = size;
        memcpy(head + FRAME_HEADER_BYTES, raw, size);
    }
    head[HASH_BYTES] = (uint8_t)w->method;
    put_le(head + HASH_BYTES + 1, HEAD_BYTES + written, 4);
    put_le(head + HASH_BYTES + 5, size, 4);
    cityhash128(head + HASH_BYTES, HEAD_BYTES + written, hash);
    put_le(head, hash[0], 8);
    put_le(head + 8, hash[1], 8);
    out->len += FRAME_HEADER_BYTES + written;
    return SPOOL_OK;
}

int frame_write(struct frame_writer *w, const void *raw, size_t size, struct buf *out)
{
    const uint8_t *at = raw;
    size_t start = out->len;

    while (size > 0) {
        size_t n = size < LIMIT_FRAME_RAW_BYTES ? size : LIMIT_FRAME_RAW_BYTES;
        int status = write_one(w, at, n, out);
        if (status != SPOOL_OK) {
            out->len = start;
            return status;
        }
        at += n;
        size -= n;
    }
    return SPOOL_OK;
}

void frame_head(const uint8_t *head, uint8_t *method, uint64_t *bytes)
{
    *method = head[HASH_BYTES];
    *bytes = HASH_BYTES + (uint64_t)get_u32le(head + HASH_BYTES + 1);
}

/* One frame, its checksum verified. */
struct frame {
    uint8_t method;
    const uint8_t *payload;
    size_t payload_size;
    size_t raw_size;
};

static int frame_read(struct cursor *in, size_t position, struct frame *f,
                      struct spool_error *error)
{
    const uint8_t *head = in->at;
    uint64_t hash[2];
    uint8_t wanted[HASH_BYTES];
    size_t size;

    if (cursor_left(in) < FRAME_HEADER_BYTES)
        return spool_error_set(error, SPOOL_E_CORRUPT,
                               "frame at byte %zu: cut inside its header (%zu bytes left)",
                               position, cursor_left(in));
    f->method = head[HASH_BYTES];
    size = get_u32le(head + HASH_BYTES + 1);
    f->raw_size = get_u32le(head + HASH_BYTES + 5);
    if (f->method != FRAME_STORED && f->method != FRAME_LZ4 && f->method != FRAME_ZSTD)
        return spool_error_set(error, SPOOL_E_CORRUPT, "frame at byte %zu: unknown method 0x%02x",
                               position, f->method);
    if (size < HEAD_BYTES || size > cursor_left(in) - HASH_BYTES)
        return spool_error_set(error, SPOOL_E_CORRUPT,
                               "frame at byte %zu: size %zu does not fit the %zu bytes left",
                               position, size, cursor_left(in) - HASH_BYTES);
    cityhash128(head + HASH_BYTES, size, hash);
    put_le(wanted, hash[0], 8);
    put_le(wanted + 8, hash[1], 8);
    if (memcmp(head, wanted, HASH_BYTES) != 0)
        return spool_error_set(error, SPOOL_E_CORRUPT,
                               "frame at byte %zu: the checksum does not match", position);
    f->payload = head + FRAME_HEADER_BYTES;
    f->payload_size = size - HEAD_BYTES;
    in->at += HASH_BYTES + size;
    return SPOOL_OK;
}

/* Whether raw_size is one the payload can have; checked before memory is asked for. */
static bool frame_plausible(const struct frame *f)
{
    unsigned long long told;

    switch (f->method) {
    case FRAME_STORED:
        return f->raw_size == f->payload_size;
    case FRAME_LZ4:
        return f->raw_size <= LZ4_MAX_INPUT_SIZE && f->payload_size <= INT32_MAX &&
               f->raw_size <= (uint64_t)f->payload_size * LZ4_RATIO_MAX;
    default:
        told = ZSTD_getFrameContentSize(f->payload, f->payload_size);
        return told == f->raw_size || told == ZSTD_CONTENTSIZE_UNKNOWN;
    }
}

/* Opens the payload into exactly raw_size bytes at to; false where it is no such payload. */
static bool frame_decompress(const struct frame *f, ZSTD_DCtx *zstd, uint8_t *to)
{
    int got;

    switch (f->method) {
    case FRAME_STORED:
        memcpy(to, f->payload, f->raw_size);
        return true;
    case FRAME_LZ4:
        got = LZ4_decompress_safe((const char *)f->payload, (char *)to, (int)f->payload_size,
                                  (int)f->raw_size);
        return got >= 0 && (size_t)got == f->raw_size;
    default:
        return ZSTD_decompressDCtx(zstd, to, f->raw_size, f->payload, f->payload_size) ==
               f->raw_size;
    }
}

int frames_open(const void *data, size_t size, struct buf *out, struct spool_error *error)
{
    struct cursor in = cursor_over(data, size);
    size_t start = out->len;
    ZSTD_DCtx *zstd = NULL;
    int status = SPOOL_OK;

    while (status == SPOOL_OK && cursor_left(&in) > 0) {
        size_t position = size - cursor_left(&in);
        struct frame f = {0};
        status = frame_read(&in, position, &f, error);
        if (status != SPOOL_OK)
            break;
        if (!frame_plausible(&f)) {
            status = spool_error_set(error, SPOOL_E_CORRUPT,
                                     "frame at byte %zu: raw size %zu does not fit its payload",
                                     position, f.raw_size);
            break;
        }
        if (f.method == FRAME_ZSTD && !zstd)
            zstd = ZSTD_createDCtx();
        status = f.method == FRAME_ZSTD && !zstd ? SPOOL_E_NOMEM
                                                 : buf_reserve(out, f.raw_size ? f.raw_size : 1);
        if (status != SPOOL_OK) {
            spool_error_set(error, status, "frame at byte %zu: no room for %zu raw bytes: %s",
                            position, f.raw_size, spool_strerror(status));
            break;
        }
        if (!frame_decompress(&f, zstd, out->data + out->len))
            status = spool_error_set(error, SPOOL_E_CORRUPT,
                                     "frame at byte %zu: the payload does not open", position);
        else
            out->len += f.raw_size;
    }
    ZSTD_freeDCtx(zstd);
    if (status != SPOOL_OK)
        out->len = start;
    return status;
}
