/* SPDX-License-Identifier: Apache-2.0 */
/* Every fixed limit of the program, with its unit last in the name. */
#ifndef BASE_LIMITS_H
#define BASE_LIMITS_H

#define KIB 1024ull
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

#define LIMIT_STREAM_NAME_BYTES 64
#define LIMIT_STREAMS           256
#define LIMIT_COLUMNS           4096
#define LIMIT_TYPE_TEXT_BYTES   (256 * KIB)
#define LIMIT_TYPE_DEPTH        32
#define LIMIT_JSON_DEPTH        128
#define LIMIT_SCHEMA_BYTES      (8 * MIB)
#define LIMIT_BLOCK_ROWS        8192      /* rows of a run, and so of a block */
#define LIMIT_RUN_BYTES         (4 * MIB) /* payload bytes of a run, unless one record is larger */
#define LIMIT_BLOCK_BYTES       (256 * MIB) /* stored bytes of a block */
#define LIMIT_BLOCK_RAW_BYTES   (254 * MIB) /* before compression, which may make them more */
#define LIMIT_RECORD_BYTES      (64 * MIB)  /* default of max_record_bytes */
#define LIMIT_FRAME_RAW_BYTES   (256 * KIB)
#define LIMIT_REPLY_BYTES       (64 * KIB) /* of an HTTP answer kept */
#define LIMIT_CONFIG_BYTES      (16 * MIB)
#define LIMIT_SEND_PIECE_BYTES  (256 * KIB)
#define LIMIT_ENDPOINTS         64

#endif
