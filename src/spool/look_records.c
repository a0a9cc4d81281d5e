/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records out of a spool. One block is held opened at a time: its stored bytes, its raw bytes, and
 * the line being written. Filters look at the blocks' ranges of offsets first, so a narrow query
 * over a large spool opens only the blocks it needs.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "base/limits.h"
#include "codec/frame.h"
#include "codec/native.h"
#include "spool/look_int.h"

#define LINE_MAX_BYTES (1 * GIB)
#define RAW_MAX_BYTES  (1 * GIB) /* of an opened block */

struct record_walk {
    struct spool *spool;
    struct spool_stream *stream;
    const struct look_records_query *query;
    uint64_t limit;
    uint64_t shown;
    struct look_origins origins;
    struct look_marks marks; /* of the segment at hand */
    struct spool_reader *reader;
    struct buf line;
    look_line_fn *emit;
    void *arg;
    bool stopped; /* by the caller's return: its status is not ours to judge */
    struct spool_error *error;
};

/* A block at hand, opened when its first row is wanted. */
struct open_block {
    const struct spool_block_ref *ref;
    const struct look_origin *origin;
    void *payload;
    int64_t *offsets; /* NULL: row i is first_offset + i */
    struct buf raw;
    struct native_block *native;
    size_t line_start; /* JSON blocks: of row line_row */
    uint32_t line_row;
};

static int emit(struct record_walk *walk, const struct json_writer *w)
{
    int status;

    if (w->status != SPOOL_OK)
        return spool_error_set(walk->error, w->status, "a line of the answer: %s",
                               spool_strerror(w->status));
    status = walk->emit(walk->arg, (const char *)walk->line.data, walk->line.len);
    walk->stopped = status != SPOOL_OK && status != SPOOL_E_LIMIT;
    return status;
}

static int emit_truncated(struct record_walk *walk, const struct open_block *block, int64_t offset,
                          const char *reason)
{
    struct json_writer w;
    int status;

    buf_reset(&walk->line);
    json_writer_init(&w, &walk->line);
    json_writer_open(&w, NULL, '{');
    json_writer_bool(&w, "truncated", true);
    json_writer_text(&w, "reason", reason);
    json_writer_text(&w, "stream", spool_stream_name(walk->stream));
    json_writer_text(&w, "origin", block ? block->origin->name : "");
    json_writer_i64(&w, "offset", offset);
    json_writer_close(&w, '}');
    status = emit(walk, &w);
    return status == SPOOL_OK ? SPOOL_E_END : status;
}

/* What can't be read is told in a line of its own; the walk goes on behind it. */
static int emit_error(struct record_walk *walk, uint64_t segment, const struct open_block *block,
                      const char *text)
{
    struct json_writer w;
    int status;

    buf_reset(&walk->line);
    json_writer_init(&w, &walk->line);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "stream", spool_stream_name(walk->stream));
    json_writer_u64(&w, "segment", segment);
    if (block) {
        json_writer_u64(&w, "sequence", block->ref->sequence);
        json_writer_text(&w, "origin", block->origin->name);
        json_writer_i64(&w, "first_offset", block->ref->first_offset);
        json_writer_i64(&w, "last_offset", block->ref->last_offset);
    }
    json_writer_text(&w, "error", text);
    json_writer_close(&w, '}');
    status = emit(walk, &w);
    if (status == SPOOL_E_LIMIT)
        return emit_truncated(walk, block, block ? block->ref->first_offset : 0, "size");
    return status;
}

static void block_close(struct open_block *block)
{
    native_block_free(block->native);
    buf_free(&block->raw);
    free(block->offsets);
    free(block->payload);
    block->native = NULL;
    block->offsets = NULL;
    block->payload = NULL;
}

/* CORRUPT, UNSUPPORTED and LIMIT are the block's own; other failures end the walk. */
static int block_open(struct record_walk *walk, struct open_block *block, struct spool_error *error)
{
    const struct spool_block_ref *ref = block->ref;
    uint64_t raw_max = ref->raw_bytes > 64 * MIB ? ref->raw_bytes : 64 * MIB;
    size_t size = 0;
    int status;

    status = spool_reader_block(walk->reader, ref, &block->payload, &size, &block->offsets, error);
    if (status != SPOOL_OK)
        return status;
    buf_init(&block->raw, raw_max < RAW_MAX_BYTES ? raw_max : RAW_MAX_BYTES);
    status = frames_open(block->payload, size, &block->raw, error);
    if (status != SPOOL_OK)
        return status;
    free(block->payload);
    block->payload = NULL;
    if (ref->flags & SPOOL_BLOCK_JSON)
        return SPOOL_OK;
    if (!(ref->flags & SPOOL_BLOCK_NATIVE))
        return spool_error_set(error, SPOOL_E_UNSUPPORTED,
                               "block %" PRIu64 " holds neither Native columns nor JSON lines",
                               ref->sequence);
    status = native_block_open(block->raw.data, block->raw.len, &block->native, error);
    if (status != SPOOL_OK)
        return status;
    if (native_block_rows(block->native) != ref->rows)
        return spool_error_set(error, SPOOL_E_CORRUPT,
                               "block %" PRIu64 " holds %" PRIu64 " rows, its header says %u",
                               ref->sequence, native_block_rows(block->native), ref->rows);
    return SPOOL_OK;
}

/* Rows are asked for in ascending order, so each search starts at the line before. */
static int json_row(struct open_block *block, uint32_t row, struct json_writer *w,
                    struct spool_error *error)
{
    const uint8_t *raw = block->raw.data;
    size_t start = 0, length = 0;

    if (json_block_line(raw + block->line_start, block->raw.len - block->line_start,
                        row - block->line_row, &start, &length) != SPOOL_OK)
        return spool_error_set(error, SPOOL_E_CORRUPT,
                               "block %" PRIu64 " has no line for row %u of %u",
                               block->ref->sequence, row, block->ref->rows);
    block->line_start += start;
    block->line_row = row;
    start = block->line_start;
    if (length < 2 || raw[start] != '{' || raw[start + length - 1] != '}')
        return spool_error_set(error, SPOOL_E_CORRUPT,
                               "block %" PRIu64 ", row %u is no JSON object", block->ref->sequence,
                               row);
    json_writer_raw(w, "record", raw + start, length);
    return SPOOL_OK;
}

static int emit_row(struct record_walk *walk, struct open_block *block, uint32_t row,
                    int64_t offset, struct spool_error *error)
{
    const struct spool_block_ref *ref = block->ref;
    struct json_writer w;
    int status;

    buf_reset(&walk->line);
    json_writer_init(&w, &walk->line);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "stream", spool_stream_name(walk->stream));
    json_writer_text(&w, "origin", block->origin->name);
    json_writer_u64(&w, "epoch", block->origin->epoch);
    json_writer_i64(&w, "offset", offset);
    json_writer_u64(&w, "segment", ref->segment);
    json_writer_u64(&w, "sequence", ref->sequence);
    json_writer_u64(&w, "row", row);
    json_writer_text(&w, "state", look_marks_row_state(&walk->marks, ref->sequence, row));
    if (block->native) {
        json_writer_raw(&w, "record", "", 0);
        status = w.status == SPOOL_OK
                     ? native_block_row_json(block->native, row, &walk->line, error)
                     : w.status;
    } else {
        status = json_row(block, row, &w, error);
    }
    if (status != SPOOL_OK)
        return status;
    json_writer_close(&w, '}');
    status = emit(walk, &w);
    if (status == SPOOL_E_LIMIT)
        return emit_truncated(walk, block, offset, "size");
    if (status == SPOOL_OK)
        walk->shown++;
    return status;
}

static bool belongs_to_block(int status)
{
    return status == SPOOL_E_CORRUPT || status == SPOOL_E_UNSUPPORTED || status == SPOOL_E_LIMIT;
}

static bool in_range(const struct look_records_query *query, int64_t offset)
{
    return (!query->has_from || offset >= query->from) && (!query->has_to || offset <= query->to);
}

static int walk_rows(struct record_walk *walk, struct open_block *block)
{
    struct spool_error why = {0};
    int status = block_open(walk, block, &why);

    for (uint32_t row = 0; row < block->ref->rows && status == SPOOL_OK; row++) {
        int64_t offset =
            block->offsets ? block->offsets[row] : block->ref->first_offset + (int64_t)row;
        if (!in_range(walk->query, offset))
            continue;
        if (walk->shown == walk->limit)
            return emit_truncated(walk, block, offset, "limit");
        status = emit_row(walk, block, row, offset, &why);
    }
    if (walk->stopped)
        return status;
    if (belongs_to_block(status))
        return emit_error(walk, block->ref->segment, block,
                          why.text[0] ? why.text : spool_strerror(status));
    if (status != SPOOL_OK && status != SPOOL_E_END && why.text[0] && walk->error)
        *walk->error = why;
    return status;
}

static int walk_block(struct record_walk *walk, const struct spool_block_ref *ref)
{
    const struct look_records_query *query = walk->query;
    struct open_block block = {.ref = ref};
    int status = spool_looks_go_on(walk->spool, walk->error);

    if (status != SPOOL_OK || !ref->rows || (query->has_from && ref->last_offset < query->from) ||
        (query->has_to && ref->first_offset > query->to))
        return status;
    status = look_origins_get(&walk->origins, ref->origin, &block.origin, walk->error);
    if (status != SPOOL_OK || (query->origin && strcmp(query->origin, block.origin->name) != 0))
        return status;
    status = walk_rows(walk, &block);
    block_close(&block);
    return status;
}

static int walk_segment(struct record_walk *walk, const struct spool_segment_info *info)
{
    struct spool_block_ref *refs = NULL;
    struct spool_error why = {0};
    size_t count = 0;
    int status;

    status = spool_looks_go_on(walk->spool, walk->error);
    if (status != SPOOL_OK)
        return status;
    if (info->damaged)
        return emit_error(walk, info->number, NULL, info->detail);
    status = look_marks_read(walk->spool, spool_stream_id(walk->stream), info->number, &walk->marks,
                             walk->error);
    if (status != SPOOL_OK)
        return status;
    status = spool_segment_blocks(walk->stream, info->number, &refs, &count, &why);
    if (status == SPOOL_OK)
        status = spool_reader_open(walk->stream, info->number, &walk->reader, &why);
    if (status == SPOOL_E_CORRUPT) {
        status = emit_error(walk, info->number, NULL, why.text);
        count = 0;
    } else if (status != SPOOL_OK && walk->error) {
        *walk->error = why;
    }
    for (size_t i = 0; i < count && status == SPOOL_OK; i++)
        status = walk_block(walk, &refs[i]);
    spool_reader_close(walk->reader);
    walk->reader = NULL;
    free(refs);
    look_marks_free(&walk->marks);
    return status;
}

int look_records_each(struct spool *spool, struct spool_stream *stream,
                      const struct look_records_query *query, look_line_fn *line, void *arg,
                      struct spool_error *error)
{
    struct record_walk walk = {.spool = spool,
                               .stream = stream,
                               .query = query,
                               .limit = query->limit ? query->limit : LOOK_RECORDS_LIMIT_DEFAULT,
                               .emit = line,
                               .arg = arg,
                               .error = error};
    struct spool_segment_info *infos = NULL;
    size_t count = 0;
    int status;

    status = spool_stream_segments(stream, &infos, &count, error);
    if (status != SPOOL_OK)
        return status;
    look_origins_init(&walk.origins, spool);
    buf_init(&walk.line, LINE_MAX_BYTES);
    for (size_t i = 0; i < count && status == SPOOL_OK; i++)
        status = walk_segment(&walk, &infos[i]);
    buf_free(&walk.line);
    look_origins_free(&walk.origins);
    free(infos);
    return status == SPOOL_E_END ? SPOOL_OK : status;
}

int look_records(struct spool *spool, struct spool_stream *stream,
                 const struct look_records_query *query, struct buf *out, struct spool_error *error)
{
    struct look_collector collector = {.out = out};

    if (out->max - out->len < LOOK_MIN_BUFFER_BYTES)
        return spool_error_set(error, SPOOL_E_LIMIT, "no room for the records");
    return look_records_each(spool, stream, query, look_collect, &collector, error);
}
