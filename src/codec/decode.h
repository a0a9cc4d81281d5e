/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoder: JSON records straight into columns, one pass, no tree, no allocation per record
 * once its buffers have grown. One decoder belongs to one job at a time (any thread); it keeps the
 * memory of its columns between blocks. Reads at most record->size bytes of a payload, never past.
 */
#ifndef CODEC_DECODE_H
#define CODEC_DECODE_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "codec/schema.h"

struct record_header {
    const char *name; /* NUL-terminated */
    const void *value;
    size_t value_size;
};

/* A record as it arrived. All memory borrowed, valid until the call returns. */
struct record {
    const uint8_t *data; /* NULL with size 0: a tombstone, never handed to the decoder */
    size_t size;
    int64_t offset;
    int64_t timestamp_ms; /* -1: none; only filled where the decoder wants it */
    const void *key;      /* NULL: none */
    size_t key_size;
    const struct record_header *headers; /* only filled where the decoder wants them */
    size_t header_count;
    int64_t received_ms;
};

/* The same for all records of a run. Borrowed. */
struct record_place {
    const char *origin; /* the origin's name */
    const char *topic;  /* NULL where there is none */
    int32_t partition;  /* -1 where there is none */
};

/* Why a record was refused. */
struct refusal {
    int code;           /* a stable number of enum refusal_code */
    const char *column; /* borrowed from the schema; NULL: the record as a whole */
    size_t position;    /* byte in the record where reading stopped */
    char reason[256];   /* a sentence without the record's bytes */
};

enum refusal_code {
    REFUSAL_NOT_JSON = 1, /* malformed text */
    REFUSAL_NOT_OBJECT = 2,
    REFUSAL_DEPTH = 3,     /* nested deeper than LIMIT_JSON_DEPTH */
    REFUSAL_TYPE = 4,      /* a value of the wrong JSON kind */
    REFUSAL_RANGE = 5,     /* a number or date outside its type */
    REFUSAL_PRECISION = 6, /* digits would be lost */
    REFUSAL_TEXT = 7,      /* a string that does not parse as its type */
    REFUSAL_ENUM = 8,      /* not a member */
    REFUSAL_NULL = 9,      /* null where it may not be */
    REFUSAL_REQUIRED = 10, /* a required key is missing */
    REFUSAL_UNKNOWN_KEY = 11,
    REFUSAL_DUPLICATE_KEY = 12,
    REFUSAL_TOO_LONG = 13, /* FixedString, or the record over max_record_bytes */
    REFUSAL_FRAMING = 14,  /* schema registry framing absent or wrong */
    REFUSAL_SERVER = 15,   /* only ClickHouse refused it */
};

/* A stable lower-case word for metrics and dead letters: "not_json", "range", ... */
const char *refusal_name(int code);

struct decoder;

/* schema is borrowed and must outlive the decoder. max_raw_bytes bounds one block. */
int decoder_create(const struct schema *schema, size_t max_raw_bytes, struct decoder **out,
                   struct spool_error *error);
void decoder_free(struct decoder *d);

/* What a column is made from that costs to fetch: $headers, $timestamp. */
#define RECORD_WANTS_HEADERS   1u
#define RECORD_WANTS_TIMESTAMP 2u
#define RECORD_WANTS_ALL       3u
unsigned decoder_wants(const struct decoder *d);

/* Fixes what holds for the records to come until the next call. */
int decoder_begin(struct decoder *d, const struct record_place *place);

/*
 * Appends one row. SPOOL_OK; SPOOL_E_REFUSED with *why filled and nothing appended; SPOOL_E_LIMIT
 * when the block would exceed max_raw_bytes (nothing appended: finish the block, then try again;
 * with an empty block: the record can never fit); SPOOL_E_NOMEM.
 */
int decoder_row(struct decoder *d, const struct record *record, struct refusal *why);

uint32_t decoder_rows(const struct decoder *d);
size_t decoder_raw_bytes(const struct decoder *d); /* the most decoder_finish would write */

/*
 * Appends the finished block to raw (FORMAT Native: one block; JSON format: one object a line) and
 * empties the decoder for the next. With 0 rows appends nothing.
 */
int decoder_finish(struct decoder *d, struct buf *raw);

#endif
