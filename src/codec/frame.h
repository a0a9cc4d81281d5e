/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ClickHouse's compressed frames (what HTTP reads with decompress=1):
 *
 *   16 bytes CityHash128 v1.0.2 of all that follows, low half first, little endian
 *    1 byte  method: 0x82 LZ4, 0x90 ZSTD, 0x02 stored
 *    4 bytes compressed size including these 9 header bytes, little endian
 *    4 bytes raw size, little endian
 *    ...     payload
 *
 * Source: ClickHouse, CompressedReadBufferBase.
 */
#ifndef CODEC_FRAME_H
#define CODEC_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

#define FRAME_HEADER_BYTES 25

enum frame_method { FRAME_STORED = 0x02, FRAME_LZ4 = 0x82, FRAME_ZSTD = 0x90 };

/* CityHash128 of version 1.0.2 (not today's). hash[0] is the low half. */
void cityhash128(const void *data, size_t size, uint64_t hash[2]);

/* Reusable compression state; one job at a time. level is for ZSTD (1 by default). */
struct frame_writer;
int frame_writer_create(enum frame_method method, int level, struct frame_writer **out);
void frame_writer_free(struct frame_writer *w);

/*
 * Appends raw as frames, all of the writer's method, also where that makes them larger: a server
 * from 20.x on refuses a request whose frames differ in method (code 271). Frames hold at most
 * LIMIT_FRAME_RAW_BYTES raw bytes each. size 0 appends nothing.
 */
int frame_write(struct frame_writer *w, const void *raw, size_t size, struct buf *out);

/* Of the frame that begins with these FRAME_HEADER_BYTES: its method as it stands there, unchecked,
   and its whole size on the wire. */
void frame_head(const uint8_t *head, uint8_t *method, uint64_t *bytes);

/*
 * Checks and opens all frames in data, appending their raw bytes to out. Hostile input: a bad
 * checksum, method, size or payload is SPOOL_E_CORRUPT with the frame's position in the error.
 */
int frames_open(const void *data, size_t size, struct buf *out, struct spool_error *error);

#endif
