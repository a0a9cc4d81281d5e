/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as frames; with their checksums made right, so that what lies behind them is reached; and the
 * round trip of any bytes through each method.
 */
#include <assert.h>
#include <string.h>

#include "base/limits.h"
#include "codec/frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct buf out, stored;
static struct frame_writer *writers[3];

static void round_trip(unsigned which, const uint8_t *data, size_t size)
{
    struct spool_error error;

    buf_reset(&stored);
    buf_reset(&out);
    assert(frame_write(writers[which], data, size, &stored) == SPOOL_OK);
    assert(frames_open(stored.data, stored.len, &out, &error) == SPOOL_OK);
    assert(out.len == size && (size == 0 || memcmp(out.data, data, size) == 0));
}

/* Copies data with the checksum of each frame put right, as far as the sizes lead. */
static void mend(const uint8_t *data, size_t size)
{
    buf_reset(&stored);
    assert(buf_append(&stored, data, size) == SPOOL_OK);
    for (size_t at = 0; stored.len - at >= FRAME_HEADER_BYTES;) {
        uint64_t hash[2];
        uint32_t body;
        memcpy(&body, stored.data + at + 17, sizeof(body));
        if (body < 9 || body > stored.len - at - 16)
            break;
        cityhash128(stored.data + at + 16, body, hash);
        memcpy(stored.data + at, hash, sizeof(hash));
        at += 16 + (size_t)body;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct spool_error error = {0};

    if (!writers[0]) {
        buf_init(&out, 4 * MIB);
        buf_init(&stored, 16 * MIB);
        assert(frame_writer_create(FRAME_STORED, 0, &writers[0]) == SPOOL_OK);
        assert(frame_writer_create(FRAME_LZ4, 1, &writers[1]) == SPOOL_OK);
        assert(frame_writer_create(FRAME_ZSTD, 1, &writers[2]) == SPOOL_OK);
    }
    if (size == 0)
        return 0;
    if (data[0] < 3)
        round_trip(data[0], data + 1, size - 1);
    buf_reset(&out);
    if (frames_open(data, size, &out, &error) != SPOOL_OK)
        assert(error.text[0]);
    mend(data, size);
    buf_reset(&out);
    if (frames_open(stored.data, stored.len, &out, &error) != SPOOL_OK)
        assert(error.text[0]);
    return 0;
}
