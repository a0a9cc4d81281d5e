/* SPDX-License-Identifier: Apache-2.0 */
#include "spool/look.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "codec/schema.h"
#include "spool/look_int.h"

/* Room kept for the truncated line: names of 400 bytes, each byte escaped to six. */
#define TRAILER_BYTES 8192u

int look_collect(void *arg, const char *line, size_t size)
{
    struct look_collector *c = arg;
    size_t keep = c->full ? 0 : TRAILER_BYTES;
    size_t left = c->out->max - c->out->len;
    int status;

    if (left < keep || left - keep < size + 1) {
        c->full = true;
        return SPOOL_E_LIMIT;
    }
    status = buf_reserve(c->out, size + 1);
    if (status != SPOOL_OK)
        return status;
    buf_append(c->out, line, size);
    return buf_put_u8(c->out, '\n');
}

/* --- marks ---------------------------------------------------------------------------------- */

struct seal_walk {
    uint64_t segment;
    struct look_marks *marks;
    size_t cap;
    struct json_writer *writer; /* NULL: only the ranges are wanted */
};

static int collect_sealed(void *arg, const struct spool_seal *seal)
{
    struct seal_walk *walk = arg;
    struct look_marks *m = walk->marks;

    if (seal->segment != walk->segment)
        return 0;
    if (seal->range_count > walk->cap - m->sealed_count) {
        size_t cap = (m->sealed_count + seal->range_count) * 2;
        struct spool_range *grown = reallocarray(m->sealed, cap, sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        m->sealed = grown;
        walk->cap = cap;
    }
    for (size_t i = 0; i < seal->range_count; i++)
        m->sealed[m->sealed_count++] = seal->ranges[i];
    return 0;
}

static int compare_ranges(const void *left, const void *right)
{
    const struct spool_range *a = left, *b = right;

    if (a->sequence != b->sequence)
        return a->sequence < b->sequence ? -1 : 1;
    return a->row < b->row ? -1 : a->row > b->row;
}

int look_marks_read(struct spool *spool, uint32_t stream, uint64_t segment,
                    struct look_marks *marks, struct spool_error *error)
{
    struct seal_walk walk = {.segment = segment, .marks = marks};
    int status;

    memset(marks, 0, sizeof(*marks));
    status = spool_acked(spool, stream, segment, &marks->acked, &marks->acked_count, error);
    if (status != SPOOL_OK)
        return status;
    status = spool_seals(spool, stream, collect_sealed, &walk, error);
    if (status != SPOOL_OK) {
        look_marks_free(marks);
        if (status == SPOOL_E_NOMEM)
            spool_error_set(error, status, "out of memory for the seals of segment %llu",
                            (unsigned long long)segment);
        return status;
    }
    if (marks->sealed_count)
        qsort(marks->sealed, marks->sealed_count, sizeof(*marks->sealed), compare_ranges);
    return SPOOL_OK;
}

void look_marks_free(struct look_marks *marks)
{
    free(marks->acked);
    free(marks->sealed);
    memset(marks, 0, sizeof(*marks));
}

/* The first range of sequence or a later one. */
static size_t first_of(const struct spool_range *ranges, size_t count, uint64_t sequence)
{
    size_t low = 0, high = count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (ranges[middle].sequence < sequence)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static uint64_t count_rows(const struct spool_range *ranges, size_t count, uint64_t sequence,
                           bool *named)
{
    uint64_t rows = 0;

    *named = false;
    for (size_t i = first_of(ranges, count, sequence); i < count && ranges[i].sequence == sequence;
         i++) {
        rows += ranges[i].rows;
        *named = true;
    }
    return rows;
}

void look_marks_count(const struct look_marks *marks, const struct spool_block_ref *ref,
                      uint64_t *acked_rows, uint64_t *sealed_rows)
{
    bool named;

    *acked_rows = count_rows(marks->acked, marks->acked_count, ref->sequence, &named);
    *sealed_rows = count_rows(marks->sealed, marks->sealed_count, ref->sequence, &named);
}

const char *look_marks_block_state(const struct look_marks *marks,
                                   const struct spool_block_ref *ref)
{
    bool acked, sealed;
    uint64_t acked_rows = count_rows(marks->acked, marks->acked_count, ref->sequence, &acked);

    count_rows(marks->sealed, marks->sealed_count, ref->sequence, &sealed);
    if (acked && acked_rows >= ref->rows)
        return "acknowledged";
    return sealed ? "sealed" : "waiting";
}

static bool covers(const struct spool_range *ranges, size_t count, uint64_t sequence, uint32_t row)
{
    for (size_t i = first_of(ranges, count, sequence); i < count && ranges[i].sequence == sequence;
         i++)
        if (row >= ranges[i].row && row - ranges[i].row < ranges[i].rows)
            return true;
    return false;
}

const char *look_marks_row_state(const struct look_marks *marks, uint64_t sequence, uint32_t row)
{
    if (covers(marks->acked, marks->acked_count, sequence, row))
        return "acknowledged";
    if (covers(marks->sealed, marks->sealed_count, sequence, row))
        return "sealed";
    return "waiting";
}

/* --- origins -------------------------------------------------------------------------------- */

void look_origins_init(struct look_origins *origins, struct spool *spool)
{
    memset(origins, 0, sizeof(*origins));
    origins->spool = spool;
}

void look_origins_free(struct look_origins *origins)
{
    for (size_t i = 0; i < origins->count; i++)
        free(origins->entries[i].name);
    free(origins->entries);
    memset(origins, 0, sizeof(*origins));
}

int look_origins_get(struct look_origins *origins, uint32_t id, const struct look_origin **out,
                     struct spool_error *error)
{
    struct look_origin entry = {.id = id};
    size_t low = 0, high = origins->count;
    int status;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (origins->entries[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < origins->count && origins->entries[low].id == id) {
        *out = &origins->entries[low];
        return SPOOL_OK;
    }
    if (origins->count == origins->cap) {
        size_t cap = origins->cap ? origins->cap * 2 : 16;
        struct look_origin *grown = reallocarray(origins->entries, cap, sizeof(*grown));
        if (!grown)
            return spool_error_set(error, SPOOL_E_NOMEM, "out of memory for the origins' names");
        origins->entries = grown;
        origins->cap = cap;
    }
    status = spool_origin_name(origins->spool, id, &entry.name, &entry.epoch, error);
    if (status == SPOOL_E_NOT_FOUND) {
        if (asprintf(&entry.name, "#%u", id) < 0)
            return spool_error_set(error, SPOOL_E_NOMEM, "out of memory for the origins' names");
    } else if (status != SPOOL_OK) {
        return status;
    }
    memmove(origins->entries + low + 1, origins->entries + low,
            (origins->count - low) * sizeof(entry));
    origins->entries[low] = entry;
    origins->count++;
    *out = &origins->entries[low];
    return SPOOL_OK;
}

/* --- documents ------------------------------------------------------------------------------ */

/* Ends a document that began at mark: whole, or not at all. */
static int finish(struct json_writer *w, size_t mark, const char *what, struct spool_error *error)
{
    if (w->status == SPOOL_OK)
        return SPOOL_OK;
    w->out->len = mark;
    if (w->status == SPOOL_E_LIMIT)
        return spool_error_set(error, w->status,
                               "the list of %s does not fit one answer of %zu bytes: ask for one "
                               "segment at a time",
                               what, w->out->max);
    return spool_error_set(error, w->status, "the list of %s: %s", what, spool_strerror(w->status));
}

static void put_ranges(struct json_writer *w, const char *key, const struct spool_range *ranges,
                       size_t count)
{
    json_writer_open(w, key, '[');
    for (size_t i = 0; i < count; i++) {
        json_writer_open(w, NULL, '{');
        json_writer_u64(w, "sequence", ranges[i].sequence);
        json_writer_u64(w, "row", ranges[i].row);
        json_writer_u64(w, "rows", ranges[i].rows);
        json_writer_close(w, '}');
    }
    json_writer_close(w, ']');
}

static int put_batch(void *arg, const struct spool_seal *seal)
{
    struct seal_walk *walk = arg;
    struct json_writer *w = walk->writer;

    if (seal->segment != walk->segment)
        return 0;
    json_writer_open(w, NULL, '{');
    json_writer_u64(w, "batch", seal->batch);
    json_writer_u64(w, "rows", seal->rows);
    json_writer_text(w, "token", seal->token);
    json_writer_time(w, "sealed_at", seal->sealed_ms);
    put_ranges(w, "ranges", seal->ranges, seal->range_count);
    json_writer_close(w, '}');
    return w->status == SPOOL_E_LIMIT ? SPOOL_E_END : 0;
}

static const char *source_name(const struct schema_column *column)
{
    switch (column->source) {
    case SOURCE_KEY:
        return column->path ? column->path : column->name;
    case SOURCE_RECORD:
        return "$record";
    case SOURCE_REST:
        return "$rest";
    case SOURCE_TOPIC:
        return "$topic";
    case SOURCE_PARTITION:
        return "$partition";
    case SOURCE_OFFSET:
        return "$offset";
    case SOURCE_MESSAGE_KEY:
        return "$key";
    case SOURCE_TIMESTAMP:
        return "$timestamp";
    case SOURCE_HEADERS:
        return "$headers";
    case SOURCE_ORIGIN:
        return "$origin";
    case SOURCE_RECEIVED_AT:
        return "$received_at";
    case SOURCE_CONSTANT:
        return "value";
    }
    return "";
}

/* The spool takes a schema as opaque bytes: one that is not ours has columns null. */
static void put_columns(struct json_writer *w, const void *bytes, size_t size)
{
    struct schema *schema = NULL;
    struct spool_error ignored;

    if (schema_deserialize(bytes, size, &schema, &ignored) != SPOOL_OK) {
        json_writer_null(w, "columns");
        return;
    }
    json_writer_open(w, "columns", '[');
    for (size_t i = 0; i < schema->count; i++) {
        const struct schema_column *column = &schema->columns[i];
        json_writer_open(w, NULL, '{');
        json_writer_text(w, "name", column->name);
        json_writer_text(w, "type", column->type ? column->type->text : "");
        json_writer_text(w, "from", source_name(column));
        json_writer_close(w, '}');
    }
    json_writer_close(w, ']');
    schema_free(schema);
}

static int put_segment(struct json_writer *w, struct spool *spool, struct spool_stream *stream,
                       const struct spool_segment_info *info, struct spool_error *error)
{
    struct seal_walk walk = {.segment = info->number, .writer = w};
    struct spool_error spec_error = {0};
    void *schema = NULL;
    char *destination = NULL;
    size_t schema_size = 0;
    const char *detail = info->detail;
    int status;

    if (!info->damaged && spool_segment_spec_get(stream, info->number, &schema, &schema_size,
                                                 &destination, &spec_error) != SPOOL_OK)
        detail = spec_error.text;
    json_writer_open(w, NULL, '{');
    json_writer_u64(w, "number", info->number);
    json_writer_u64(w, "first_sequence", info->first_sequence);
    json_writer_u64(w, "last_sequence", info->last_sequence);
    json_writer_u64(w, "blocks", info->blocks);
    json_writer_u64(w, "rows", info->rows);
    json_writer_u64(w, "acked_rows", info->acked_rows);
    json_writer_u64(w, "acked_blocks", info->acked_blocks);
    json_writer_u64(w, "stored_bytes", info->stored_bytes);
    json_writer_u64(w, "file_bytes", info->file_bytes);
    json_writer_time(w, "oldest_at", info->oldest_ms);
    json_writer_bool(w, "newest", info->newest);
    json_writer_bool(w, "damaged", info->damaged);
    json_writer_text(w, "detail", detail);
    json_writer_text(w, "destination", destination);
    if (schema)
        put_columns(w, schema, schema_size);
    else
        json_writer_null(w, "columns");
    json_writer_open(w, "batches", '[');
    status = spool_seals(spool, spool_stream_id(stream), put_batch, &walk, error);
    json_writer_close(w, ']');
    json_writer_close(w, '}');
    free(schema);
    free(destination);
    return status == SPOOL_E_END ? SPOOL_OK : status;
}

int look_segments(struct spool *spool, struct spool_stream *stream, struct buf *out,
                  struct spool_error *error)
{
    struct spool_segment_info *infos = NULL;
    struct json_writer w;
    size_t count = 0, mark = out->len;
    int status;

    status = spool_stream_segments(stream, &infos, &count, error);
    if (status != SPOOL_OK)
        return status;
    json_writer_init(&w, out);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "stream", spool_stream_name(stream));
    json_writer_open(&w, "segments", '[');
    for (size_t i = 0; i < count && w.status == SPOOL_OK && status == SPOOL_OK; i++) {
        status = spool_looks_go_on(spool, error);
        if (status == SPOOL_OK)
            status = put_segment(&w, spool, stream, &infos[i], error);
    }
    json_writer_close(&w, ']');
    json_writer_close(&w, '}');
    free(infos);
    if (status != SPOOL_OK) {
        out->len = mark;
        return status;
    }
    return finish(&w, mark, "segments", error);
}

static int put_block(struct json_writer *w, struct look_origins *origins,
                     const struct look_marks *marks, const struct spool_block_ref *ref,
                     struct spool_error *error)
{
    const struct look_origin *origin = NULL;
    uint64_t acked = 0, sealed = 0;
    int status = look_origins_get(origins, ref->origin, &origin, error);

    if (status != SPOOL_OK)
        return status;
    look_marks_count(marks, ref, &acked, &sealed);
    json_writer_open(w, NULL, '{');
    json_writer_u64(w, "segment", ref->segment);
    json_writer_u64(w, "sequence", ref->sequence);
    json_writer_text(w, "origin", origin->name);
    json_writer_u64(w, "epoch", origin->epoch);
    json_writer_i64(w, "first_offset", ref->first_offset);
    json_writer_i64(w, "last_offset", ref->last_offset);
    json_writer_u64(w, "rows", ref->rows);
    json_writer_u64(w, "sealed_rows", sealed);
    json_writer_u64(w, "acked_rows", acked);
    json_writer_text(w, "format", ref->flags & SPOOL_BLOCK_JSON ? "json" : "native");
    json_writer_u64(w, "raw_bytes", ref->raw_bytes);
    json_writer_u64(w, "stored_bytes", ref->frames_bytes);
    json_writer_time(w, "arrived_at", ref->first_arrival_ms);
    json_writer_text(w, "state", look_marks_block_state(marks, ref));
    json_writer_close(w, '}');
    return SPOOL_OK;
}

static int put_segment_blocks(struct json_writer *w, struct spool *spool,
                              struct spool_stream *stream, struct look_origins *origins,
                              uint64_t segment, struct spool_error *error)
{
    struct spool_block_ref *refs = NULL;
    struct look_marks marks = {0};
    size_t count = 0;
    int status = spool_looks_go_on(spool, error);

    if (status == SPOOL_OK)
        status = look_marks_read(spool, spool_stream_id(stream), segment, &marks, error);
    if (status == SPOOL_OK)
        status = spool_segment_blocks(stream, segment, &refs, &count, error);
    for (size_t i = 0; i < count && status == SPOOL_OK && w->status == SPOOL_OK; i++)
        status = put_block(w, origins, &marks, &refs[i], error);
    free(refs);
    look_marks_free(&marks);
    return status;
}

int look_blocks(struct spool *spool, struct spool_stream *stream, uint64_t segment, struct buf *out,
                struct spool_error *error)
{
    struct spool_segment_info *infos = NULL;
    struct look_origins origins;
    struct json_writer w;
    size_t count = 0, mark = out->len;
    bool found = segment == 0;
    int status;

    status = spool_stream_segments(stream, &infos, &count, error);
    if (status != SPOOL_OK)
        return status;
    look_origins_init(&origins, spool);
    json_writer_init(&w, out);
    json_writer_open(&w, NULL, '{');
    json_writer_text(&w, "stream", spool_stream_name(stream));
    json_writer_u64(&w, "segment", segment);
    json_writer_open(&w, "blocks", '[');
    for (size_t i = 0; i < count && w.status == SPOOL_OK && status == SPOOL_OK; i++) {
        if (segment && infos[i].number != segment)
            continue;
        found = true;
        if (infos[i].damaged && segment)
            status = spool_error_set(error, SPOOL_E_CORRUPT, "segment %llu of %s is damaged: %s",
                                     (unsigned long long)segment, spool_stream_name(stream),
                                     infos[i].detail);
        else if (!infos[i].damaged)
            status = put_segment_blocks(&w, spool, stream, &origins, infos[i].number, error);
    }
    json_writer_close(&w, ']');
    json_writer_close(&w, '}');
    look_origins_free(&origins);
    free(infos);
    if (status == SPOOL_OK && !found)
        status = spool_error_set(error, SPOOL_E_NOT_FOUND, "stream %s has no segment %llu",
                                 spool_stream_name(stream), (unsigned long long)segment);
    if (status != SPOOL_OK) {
        out->len = mark;
        return status;
    }
    return finish(&w, mark, "blocks", error);
}

/* --- verify --------------------------------------------------------------------------------- */

#define VERIFY_TAIL_BYTES 256u /* kept free for the end of the document */

struct verify_walk {
    struct json_writer w;
    uint64_t omitted;
};

static void put_problem(void *arg, const struct spool_problem *problem)
{
    struct verify_walk *walk = arg;
    struct buf *out = walk->w.out;
    size_t mark = out->len, max = out->max;
    bool comma = walk->w.comma;

    if (walk->omitted || walk->w.status != SPOOL_OK) {
        walk->omitted++;
        return;
    }
    assert(max >= VERIFY_TAIL_BYTES);
    out->max = max - VERIFY_TAIL_BYTES > mark ? max - VERIFY_TAIL_BYTES : mark;
    json_writer_open(&walk->w, NULL, '{');
    json_writer_text(&walk->w, "file", problem->file);
    json_writer_text(&walk->w, "stream", problem->stream);
    json_writer_u64(&walk->w, "sequence", problem->sequence);
    json_writer_text(&walk->w, "kind", problem->kind);
    json_writer_text(&walk->w, "detail", problem->detail);
    json_writer_close(&walk->w, '}');
    out->max = max;
    if (walk->w.status == SPOOL_E_LIMIT) {
        out->len = mark;
        walk->w.comma = comma;
        walk->w.status = SPOOL_OK;
        walk->omitted++;
    }
}

int look_verify(struct spool *spool, struct buf *out, bool *ok, struct spool_error *error)
{
    struct verify_walk walk = {.omitted = 0};
    struct buf problems;
    struct json_writer w;
    uint64_t count = 0;
    size_t mark = out->len;
    int status;

    *ok = false;
    /* "ok" comes first and is known last: the list is made aside. */
    buf_init(&problems, out->max - out->len);
    if (problems.max < LOOK_MIN_BUFFER_BYTES)
        return spool_error_set(error, SPOOL_E_LIMIT, "no room for the problems");
    problems.max -= VERIFY_TAIL_BYTES;
    json_writer_init(&walk.w, &problems);
    status = spool_verify(spool, put_problem, &walk, &count, error);
    if (status == SPOOL_OK && walk.w.status != SPOOL_OK)
        status = spool_error_set(error, walk.w.status, "the list of problems: %s",
                                 spool_strerror(walk.w.status));
    if (status != SPOOL_OK)
        goto done;
    json_writer_init(&w, out);
    json_writer_open(&w, NULL, '{');
    json_writer_bool(&w, "ok", count == 0);
    json_writer_open(&w, "problems", '[');
    w.comma = false;
    if (problems.len && w.status == SPOOL_OK)
        w.status = buf_append(out, problems.data, problems.len);
    json_writer_close(&w, ']');
    json_writer_u64(&w, "omitted", walk.omitted);
    json_writer_close(&w, '}');
    status = finish(&w, mark, "problems", error);
    *ok = status == SPOOL_OK && count == 0;
done:
    buf_free(&problems);
    return status;
}
