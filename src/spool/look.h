/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a spool holds, as JSON text: shared by spoolctl (offline) and the daemon's control socket.
 * Each call appends one JSON document, or one object a line for records and dead letters, and must
 * run on the lane named in brackets. Reads through libspool's public API only.
 *
 * Times are text, UTC: "2026-11-23T17:54:00.123Z", or null where there is none. Text that was no
 * UTF-8 shows U+FFFD, and the bytes come beside it as <name>_base64.
 *
 * Bounds. Memory is the output buffer plus one opened block (or letter) at a time, whatever the
 * spool holds. A document that does not fit its buffer is SPOOL_E_LIMIT, and out is as before. Lines
 * are never cut: where the next record is over the limit, or does not fit the buffer, the last line
 * is {"truncated":true,"reason":"limit"|"size",...} naming the first record that was left out. The
 * buffer must hold at least LOOK_MIN_BUFFER_BYTES. After spool_stop_looks each ends with CANCELLED, also where
 * it is under way.
 */
#ifndef SPOOL_LOOK_H
#define SPOOL_LOOK_H

#include "base/buf.h"
#include "spool.h"

#define LOOK_MIN_BUFFER_BYTES      (64u * 1024)
#define LOOK_RECORDS_LIMIT_DEFAULT 100u

/* [stream+meta] {"stream","segments":[{"number","first_sequence","last_sequence","blocks","rows",
   "acked_rows","acked_blocks","stored_bytes","file_bytes","oldest_at","newest","damaged","detail",
   "destination","columns":[{"name","type","from"}] or null,"batches":[{"batch","rows","token",
   "sealed_at","ranges":[{"sequence","row","rows"}]}]}]} */
int look_segments(struct spool *spool, struct spool_stream *stream, struct buf *out,
                  struct spool_error *error);

/* [stream+meta] {"stream","segment","blocks":[{"segment","sequence","origin","epoch",
   "first_offset","last_offset","rows","sealed_rows","acked_rows","raw_bytes","stored_bytes",
   "arrived_at","state":"waiting|sealed|acknowledged"}]}; segment 0: all. A block is acknowledged
   when all of its rows are, else sealed when any row is in a batch. */
int look_blocks(struct spool *spool, struct spool_stream *stream, uint64_t segment, struct buf *out,
                struct spool_error *error);

/* A line without its newline, valid in the call only. A non-zero return ends the walk and is
   returned; but for SPOOL_E_LIMIT, no room: then one more call brings the truncated line. */
typedef int look_line_fn(void *arg, const char *line, size_t size);

struct look_records_query {
    const char *origin; /* NULL: any; all epochs of the name */
    bool has_from, has_to;
    int64_t from, to; /* offsets, inclusive */
    uint64_t limit;   /* 0: LOOK_RECORDS_LIMIT_DEFAULT */
};

/* [stream+meta] One line a record, in the order of the spool: {"stream","origin","epoch","offset",
   "segment","sequence","row","state","record":{...}}, "record" always last. A block or segment that
   can't be read gives one line {"stream","segment","sequence","origin","first_offset",
   "last_offset","error"} and the walk goes on. */
int look_records(struct spool *spool, struct spool_stream *stream,
                 const struct look_records_query *query, struct buf *out,
                 struct spool_error *error);
int look_records_each(struct spool *spool, struct spool_stream *stream,
                      const struct look_records_query *query, look_line_fn *line, void *arg,
                      struct spool_error *error);

/* Which letters of a stream; zeros: all. */
struct dead_filter {
    const char *origin; /* NULL: any */
    const char *reason; /* the stable word; NULL: any */
    bool has_from, has_to, has_code;
    int64_t from, to; /* offsets, inclusive */
    int code;
};
bool dead_filter_takes(const struct dead_filter *filter, const struct spool_dead *letter);

struct look_dead_query {
    const char *stream; /* NULL: all */
    struct dead_filter filter;
    uint64_t limit; /* 0: all */
};

/* [dead] One line a letter: {"stream","origin","offset","code","reason_name","reason","column",
   "position","record","record_base64","record_bytes","record_cut","rebuilt","key","key_base64",
   "headers":[{"name","value"}],"attempts","timestamp","received_at","time","last_attempt",
   "in_table","in_topic"}. record is a string, record_bytes its size before it was cut; *_base64
   only where the bytes are not UTF-8; key is null where there is none. */
int look_dead(struct spool *spool, const struct look_dead_query *query, struct buf *out,
              struct spool_error *error);
int look_dead_each(struct spool *spool, const struct look_dead_query *query, look_line_fn *line,
                   void *arg, struct spool_error *error);

/* [all] {"ok":bool,"problems":[{"file","stream","sequence","kind","detail"}],"omitted":n}; omitted
   counts problems that did not fit the buffer. */
int look_verify(struct spool *spool, struct buf *out, bool *ok, struct spool_error *error);

#endif
