/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a spool holds, as JSON text: shared by spoolctl (offline) and the daemon's control socket.
 * Each call appends one JSON document, or one object a line for records, and must run on the lane
 * named in brackets. read through libspool's public API only.
 */
#ifndef SPOOL_LOOK_H
#define SPOOL_LOOK_H

#include "base/buf.h"
#include "spool.h"

/* [stream+meta] {"stream", "segments":[{"number","blocks","rows",...,"destination","columns":[..],
   "batches":[{"batch","rows","token","sealed_at","ranges":[..]}]}]} */
int look_segments(struct spool *spool, struct spool_stream *stream, struct buf *out,
                  struct spool_error *error);

/* [stream+meta] {"stream","segment","blocks":[{"sequence","origin","epoch","first_offset",
   "last_offset","rows","raw_bytes","stored_bytes","arrived_at","state":
   "waiting|sealed|acknowledged"}]}; segment 0: all. */
int look_blocks(struct spool *spool, struct spool_stream *stream, uint64_t segment, struct buf *out,
                struct spool_error *error);

struct look_records_query {
    const char *origin; /* NULL: any */
    bool has_from, has_to;
    int64_t from, to; /* offsets, inclusive */
    uint64_t limit;   /* 0: 100 */
};

/* [stream+meta] One line a record: {"stream","origin","offset","segment","sequence","state",
   "record":{...}}. */
int look_records(struct spool *spool, struct spool_stream *stream,
                 const struct look_records_query *query, struct buf *out,
                 struct spool_error *error);

/* [dead] One line a letter: {"stream","origin","offset","code","reason_name","reason","column",
   "position","record","key","headers","time",...}; limit 0: all. record is a string; record_base64
   is added where it is not UTF-8. offset selects one letter when has_offset. */
struct look_dead_query {
    const char *stream; /* NULL: all */
    const char *origin; /* NULL: any */
    bool has_offset;
    int64_t offset;
    uint64_t limit;
};
int look_dead(struct spool *spool, const struct look_dead_query *query, struct buf *out,
              struct spool_error *error);

/* [all] {"ok":bool,"problems":[{"file","stream","sequence","kind","detail"}]} */
int look_verify(struct spool *spool, struct buf *out, bool *ok, struct spool_error *error);

#endif
