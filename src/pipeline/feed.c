/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The body of an insert. First a pool job reads every block and checks its checksum; only then is
 * the first byte sent, so a damaged block never reaches ClickHouse and no insert is cut in the
 * middle because of one (an old server stores what came before a cut). A part of a block is cut
 * out and compressed in that job: always by the same rule, so every attempt is the same bytes. So
 * is a block whose frames are of another method than the first one's (spool.compression changed):
 * ClickHouse refuses a request of several methods.
 * Rows that are encoded anew are made twice: in that job for the body's size, and again, a block at
 * a time, when their turn to be sent comes, so that memory holds one block of them.
 * Then two bounded buffers take turns: one is sent from while the other is filled in the pool.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "codec/native.h"
#include "codec/reencode.h"
#include "pipeline/pipeline_int.h"

#define FEED_BUFFER_BYTES (128 * KIB)

struct feed_piece {
    struct spool_block_ref ref;
    uint32_t row, rows;
    const struct origin *origin;
    uint8_t *made; /* owned: frames made for this insert; NULL: the block as it is stored */
    uint64_t bytes;
    bool damaged;
};

struct feed_buffer {
    char *data;
    size_t filled; /* 0: empty */
};

struct feed {
    struct job job;
    struct pipeline *pipeline;
    const struct spool_stream *spool;
    uint64_t segment;
    void (*checked)(void *arg, uint64_t bytes, const struct spool_error *error);
    void *arg;
    struct insert **insert;
    struct spool_reader *reader;
    struct stream_schema *from, *to; /* counted; rows are encoded anew for `to`; NULL: as stored */
    struct reencoder *reencoder;
    enum frame_method method;
    struct feed_piece *pieces;
    size_t piece_count;
    uint64_t total;
    size_t capacity; /* of each buffer */
    struct feed_buffer buffers[2];
    int current; /* sent from */
    size_t current_at;
    int filling;       /* by the job; -1: none */
    size_t next_piece; /* to read from */
    uint64_t next_at;
    uint64_t sent;
    bool checking, running, starved, closed;
    int status;
    int filled_status; /* of the job under way, until it is done: the loop reads status meanwhile */
    struct spool_error error;
};

static void feed_free(struct feed *f)
{
    spool_reader_close(f->reader);
    reencoder_free(f->reencoder);
    stream_schema_unref(f->from);
    stream_schema_unref(f->to);
    for (size_t i = 0; i < f->piece_count; i++)
        free(f->pieces[i].made);
    free(f->pieces);
    free(f->buffers[0].data);
    free(f->buffers[1].data);
    free(f);
}

static bool piece_partial(const struct feed_piece *piece)
{
    return piece->row || piece->rows != piece->ref.rows;
}

/* Whether all frames of a stored block are of the feed's method; the first block sets it. */
static int piece_method(struct feed *f, const struct feed_piece *piece, bool *same)
{
    uint64_t at = 0, bytes = 0;

    *same = true;
    while (at + FRAME_HEADER_BYTES <= piece->ref.frames_bytes) {
        uint8_t head[FRAME_HEADER_BYTES], method;
        int status = spool_reader_read(f->reader, &piece->ref, at, head, sizeof(head), &f->error);
        if (status != SPOOL_OK)
            return status;
        frame_head(head, &method, &bytes);
        if (!f->method && (method == FRAME_LZ4 || method == FRAME_ZSTD || method == FRAME_STORED))
            f->method = (enum frame_method)method;
        *same = *same && method == (uint8_t)f->method;
        at += bytes;
    }
    return SPOOL_OK;
}

/* Rows [row, row + rows) of the opened block as a block of its own. */
static int cut_rows(const struct feed_piece *piece, const struct buf *raw, struct buf *out,
                    struct spool_error *error)
{
    struct native_block *block = NULL;
    size_t start = 0, length = 0;
    int status = SPOOL_OK;

    if (piece->ref.flags & SPOOL_BLOCK_JSON) {
        for (uint32_t i = 0; i < piece->rows && status == SPOOL_OK; i++) {
            status =
                json_block_line(raw->data, raw->len, (uint64_t)piece->row + i, &start, &length);
            if (status == SPOOL_OK)
                status = buf_append(out, raw->data + start, length);
            if (status == SPOOL_OK)
                status = buf_put_u8(out, '\n');
        }
        if (status != SPOOL_OK)
            spool_error_set(error, status, "a block's lines can't be cut: %s",
                            spool_strerror(status));
        return status;
    }
    status = native_block_open(raw->data, raw->len, &block, error);
    if (status == SPOOL_OK)
        status = native_block_slice(block, piece->row, piece->rows, out, error);
    native_block_free(block);
    return status;
}

/* Rows [row, row + rows) of the opened block, encoded anew. */
static int piece_reencode(struct feed *f, const struct feed_piece *piece, const struct buf *raw,
                          const int64_t *offsets, struct buf *out)
{
    struct origin_place place;
    struct refusal why;
    int status;

    origin_place(piece->origin, &place);
    status = reencoder_open(f->reencoder, raw->data, raw->len, &place.place, &f->error);
    for (uint32_t i = 0; i < piece->rows && status == SPOOL_OK; i++) {
        uint64_t row = (uint64_t)piece->row + i;
        int64_t offset = offsets ? offsets[row] : piece->ref.first_offset + (int64_t)row;
        status = reencoder_row(f->reencoder, row, offset, piece->ref.first_arrival_ms, &why);
        if (status == SPOOL_E_LIMIT && reencoder_rows(f->reencoder)) {
            status = reencoder_finish(f->reencoder, out);
            i--; /* once more, into an empty block */
        }
    }
    return status == SPOOL_OK ? reencoder_finish(f->reencoder, out) : status;
}

/* Frames of the feed's method for the piece's rows, where it does not go as it is stored. */
static int piece_make(struct feed *f, struct feed_piece *piece)
{
    struct frame_writer *writer = NULL;
    int64_t *offsets = NULL;
    struct buf raw, part, frames;
    void *payload = NULL;
    size_t size = 0;
    int status = spool_reader_block(f->reader, &piece->ref, &payload, &size,
                                    f->to ? &offsets : NULL, &f->error);

    buf_init(&raw, LIMIT_BLOCK_BYTES * 2);
    buf_init(&part, LIMIT_BLOCK_BYTES * 2);
    buf_init(&frames, LIMIT_BLOCK_BYTES * 2);
    if (status == SPOOL_OK)
        status = frames_open(payload, size, &raw, &f->error);
    if (status == SPOOL_OK && f->to)
        status = piece_reencode(f, piece, &raw, offsets, &part);
    else if (status == SPOOL_OK && piece_partial(piece))
        status = cut_rows(piece, &raw, &part, &f->error);
    if (status == SPOOL_OK)
        status = frame_writer_create(f->method, 1, &writer);
    if (status == SPOOL_OK)
        status = f->to || piece_partial(piece) ? frame_write(writer, part.data, part.len, &frames)
                                               : frame_write(writer, raw.data, raw.len, &frames);
    if (status == SPOOL_OK) {
        piece->made = frames.data;
        piece->bytes = frames.len;
        frames.data = NULL;
    } else if (!f->error.text[0]) {
        spool_error_set(&f->error, status, "a block's rows can't be made anew: %s",
                        spool_strerror(status));
    }
    frame_writer_free(writer);
    free(offsets);
    free(payload);
    buf_free(&raw);
    buf_free(&part);
    buf_free(&frames);
    return status;
}

static void piece_forget(struct feed_piece *piece)
{
    free(piece->made);
    piece->made = NULL;
}

static int piece_check(struct feed *f, struct feed_piece *piece)
{
    bool same = true;
    int status = SPOOL_OK;

    if (!piece->ref.frames_bytes)
        return SPOOL_OK;
    status = spool_reader_verify(f->reader, &piece->ref, &f->error);
    if (status == SPOOL_OK)
        status = piece_method(f, piece, &same);
    if (status == SPOOL_OK && f->to && piece->rows) {
        status = piece_make(f, piece);
        piece_forget(piece); /* its size is what was wanted */
        return status;
    }
    if (status == SPOOL_OK && (piece_partial(piece) || !same))
        return piece_make(f, piece);
    piece->bytes = piece->ref.frames_bytes;
    return status;
}

/* Goes on behind what is damaged, so that all of it is known. */
static void feed_check_work(struct job *job)
{
    struct feed *f = (struct feed *)job;
    struct spool_error first = {0};

    f->status = spool_reader_open(f->spool, f->segment, &f->reader, &f->error);
    if (damage_is(f->status, &f->error)) { /* not even its first page */
        for (size_t i = 0; i < f->piece_count; i++)
            f->pieces[i].damaged = true;
        f->status = f->error.status = SPOOL_E_CORRUPT;
    }
    if (f->status == SPOOL_OK && f->to)
        f->status = reencoder_create(f->from->schema, f->to->schema, LIMIT_BLOCK_RAW_BYTES,
                                     &f->reencoder, &f->error);
    for (size_t i = 0; i < f->piece_count && f->status == SPOOL_OK; i++) {
        struct feed_piece *piece = &f->pieces[i];
        f->status = piece_check(f, piece);
        f->total += piece->bytes;
        if (!damage_is(f->status, &f->error))
            continue;
        piece->damaged = true;
        f->status = SPOOL_OK;
        if (first.status == SPOOL_OK)
            first = f->error;
    }
    if (f->status == SPOOL_OK && first.status != SPOOL_OK) {
        f->error = first;
        f->status = f->error.status = SPOOL_E_CORRUPT;
    }
    f->capacity = f->total < FEED_BUFFER_BYTES ? (size_t)f->total : FEED_BUFFER_BYTES;
    for (int i = 0; i < 2 && f->status == SPOOL_OK; i++) {
        f->buffers[i].data = malloc(f->capacity ? f->capacity : 1);
        if (!f->buffers[i].data)
            f->status = spool_error_set(&f->error, SPOOL_E_NOMEM, "no memory to send a batch");
    }
}

static void feed_fill_work(struct job *job)
{
    struct feed *f = (struct feed *)job;
    struct feed_buffer *b = &f->buffers[f->filling];
    int status = SPOOL_OK;

    while (b->filled < f->capacity && f->next_piece < f->piece_count && status == SPOOL_OK) {
        struct feed_piece *piece = &f->pieces[f->next_piece];
        uint64_t size = piece->bytes, left = size - f->next_at;
        size_t n = f->capacity - b->filled;

        if (f->to && left && !piece->made) {
            status = piece_make(f, piece);
            assert(status != SPOOL_OK || piece->bytes == size);
            if (status != SPOOL_OK)
                break;
        }
        if (left < n)
            n = (size_t)left;
        if (n && piece->made)
            memcpy(b->data + b->filled, piece->made + f->next_at, n);
        else if (n)
            status = spool_reader_read(f->reader, &piece->ref, f->next_at, b->data + b->filled, n,
                                       &f->error);
        b->filled += n;
        f->next_at += n;
        if (f->next_at == piece->bytes) {
            if (f->to)
                piece_forget(piece);
            f->next_piece++;
            f->next_at = 0;
        }
    }
    f->filled_status = status;
}

static void feed_done(struct job *job);

static void feed_start(struct feed *f, void (*work)(struct job *job))
{
    f->job.work = work;
    f->job.done = feed_done;
    f->running = true;
    if (job_start(f->pipeline, &f->job, NULL, 0) != SPOOL_OK)
        pipeline_fatal(f->pipeline, "out of memory while reading blocks");
}

/* Fills whichever buffer is empty, if anything is left. */
static void feed_advance(struct feed *f)
{
    if (f->running || f->closed || f->status != SPOOL_OK || f->next_piece >= f->piece_count)
        return;
    for (int i = 0; i < 2; i++) {
        int which = (f->current + i) % 2;
        if (f->buffers[which].filled == 0) {
            f->filling = which;
            feed_start(f, feed_fill_work);
            return;
        }
    }
}

static void feed_done(struct job *job)
{
    struct feed *f = (struct feed *)job;

    f->running = false;
    f->filling = -1;
    if (f->closed) {
        feed_free(f);
        return;
    }
    if (f->checking) {
        f->checking = false;
        if (f->status == SPOOL_OK)
            feed_advance(f);
        f->checked(f->arg, f->total, f->status == SPOOL_OK ? NULL : &f->error);
        return;
    }
    f->status = f->filled_status;
    feed_advance(f);
    if (f->starved && f->insert && *f->insert) {
        f->starved = false;
        insert_resume(*f->insert);
    }
}

int feed_open(const struct batch *b, const struct part *parts, size_t count,
              void (*checked)(void *arg, uint64_t bytes, const struct spool_error *error),
              void *arg, struct feed **out)
{
    struct stream *s = b->stream;
    struct feed *f = calloc(1, sizeof(*f));

    if (!f)
        return SPOOL_E_NOMEM;
    f->pieces = calloc(count ? count : 1, sizeof(*f->pieces));
    if (!f->pieces) {
        feed_free(f);
        return SPOOL_E_NOMEM;
    }
    for (size_t i = 0; i < count; i++) {
        f->pieces[i].ref = parts[i].block->ref;
        f->pieces[i].origin = parts[i].block->origin;
        f->pieces[i].row = parts[i].row;
        f->pieces[i].rows = parts[i].rows;
    }
    f->piece_count = count;
    f->pipeline = s->p;
    f->spool = s->spool;
    f->segment = b->segment_number;
    if (b->schema) {
        f->from = stream_schema_ref(b->segment->schema);
        f->to = stream_schema_ref(b->schema);
    }
    f->checked = checked;
    f->arg = arg;
    f->filling = -1;
    f->checking = true;
    *out = f;
    feed_start(f, feed_check_work);
    return SPOOL_OK;
}

enum frame_method feed_method(const struct feed *f)
{
    return f->method ? f->method : FRAME_LZ4;
}

bool feed_is_damaged(const struct feed *f, size_t part)
{
    return f->pieces[part].damaged;
}

void feed_attach(struct feed *f, struct insert **insert)
{
    f->insert = insert;
}

size_t feed_read(void *feed, char *dst, size_t n)
{
    struct feed *f = feed;
    struct feed_buffer *b = &f->buffers[f->current];
    size_t left;

    if (f->status != SPOOL_OK)
        return HTTP_BODY_ABORT;
    if (f->filling == f->current || b->filled == 0) {
        f->starved = true;
        feed_advance(f);
        return 0;
    }
    left = b->filled - f->current_at;
    if (n > left)
        n = left;
    memcpy(dst, b->data + f->current_at, n);
    f->current_at += n;
    f->sent += n;
    assert(f->sent <= f->total);
    if (f->current_at == b->filled) {
        b->filled = 0;
        f->current_at = 0;
        f->current = 1 - f->current;
        feed_advance(f);
    }
    return n;
}

void feed_close(struct feed *f)
{
    if (!f)
        return;
    f->closed = true;
    f->insert = NULL;
    if (!f->running)
        feed_free(f);
}
