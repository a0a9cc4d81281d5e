/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The body of an insert. First a pool job reads every block and checks its checksum; only then is
 * the first byte sent, so a damaged block never reaches ClickHouse and no insert is cut in the
 * middle because of one (an old server stores what came before a cut). A part of a block is cut
 * out and compressed in that job: always by the same rule, so every attempt is the same bytes.
 * Then two bounded buffers take turns: one is sent from while the other is filled in the pool.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "codec/native.h"
#include "pipeline/pipeline_int.h"

#define FEED_BUFFER_BYTES (128 * KIB)

struct feed_piece {
    struct spool_block_ref ref;
    uint32_t row, rows;
    uint8_t *cut; /* owned: the frames of a part of a block; NULL: the block as it is stored */
    uint64_t bytes;
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
    struct spool_error error;
};

static void feed_free(struct feed *f)
{
    spool_reader_close(f->reader);
    for (size_t i = 0; i < f->piece_count; i++)
        free(f->pieces[i].cut);
    free(f->pieces);
    free(f->buffers[0].data);
    free(f->buffers[1].data);
    free(f);
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

static int piece_cut(struct feed *f, struct feed_piece *piece)
{
    struct frame_writer *writer = NULL;
    struct buf raw, part, frames;
    void *payload = NULL;
    size_t size = 0;
    int status = spool_reader_block(f->reader, &piece->ref, &payload, &size, NULL, &f->error);

    buf_init(&raw, LIMIT_BLOCK_BYTES * 2);
    buf_init(&part, LIMIT_BLOCK_BYTES * 2);
    buf_init(&frames, LIMIT_BLOCK_BYTES * 2);
    if (status == SPOOL_OK)
        status = frames_open(payload, size, &raw, &f->error);
    if (status == SPOOL_OK)
        status = cut_rows(piece, &raw, &part, &f->error);
    if (status == SPOOL_OK)
        status = frame_writer_create(FRAME_LZ4, 1, &writer);
    if (status == SPOOL_OK)
        status = frame_write(writer, part.data, part.len, &frames);
    if (status == SPOOL_OK) {
        piece->cut = frames.data;
        piece->bytes = frames.len;
        frames.data = NULL;
    } else if (!f->error.text[0]) {
        spool_error_set(&f->error, status, "a block can't be cut: %s", spool_strerror(status));
    }
    frame_writer_free(writer);
    free(payload);
    buf_free(&raw);
    buf_free(&part);
    buf_free(&frames);
    return status;
}

static void feed_check_work(struct job *job)
{
    struct feed *f = (struct feed *)job;

    f->status = spool_reader_open(f->spool, f->segment, &f->reader, &f->error);
    for (size_t i = 0; i < f->piece_count && f->status == SPOOL_OK; i++) {
        struct feed_piece *piece = &f->pieces[i];
        if (piece->row || piece->rows != piece->ref.rows) {
            f->status = piece_cut(f, piece);
        } else if (piece->ref.frames_bytes) {
            f->status = spool_reader_verify(f->reader, &piece->ref, &f->error);
            piece->bytes = piece->ref.frames_bytes;
        }
        f->total += piece->bytes;
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

    while (b->filled < f->capacity && f->next_piece < f->piece_count && f->status == SPOOL_OK) {
        const struct feed_piece *piece = &f->pieces[f->next_piece];
        uint64_t left = piece->bytes - f->next_at;
        size_t n = f->capacity - b->filled;

        if (left < n)
            n = (size_t)left;
        if (n && piece->cut)
            memcpy(b->data + b->filled, piece->cut + f->next_at, n);
        else if (n)
            f->status = spool_reader_read(f->reader, &piece->ref, f->next_at, b->data + b->filled,
                                          n, &f->error);
        b->filled += n;
        f->next_at += n;
        if (f->next_at == piece->bytes) {
            f->next_piece++;
            f->next_at = 0;
        }
    }
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
    feed_advance(f);
    if (f->starved && f->insert && *f->insert) {
        f->starved = false;
        insert_resume(*f->insert);
    }
}

int feed_open(struct stream *s, uint64_t segment, const struct part *parts, size_t count,
              void (*checked)(void *arg, uint64_t bytes, const struct spool_error *error),
              void *arg, struct feed **out)
{
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
        f->pieces[i].row = parts[i].row;
        f->pieces[i].rows = parts[i].rows;
    }
    f->piece_count = count;
    f->pipeline = s->p;
    f->spool = s->spool;
    f->segment = segment;
    f->checked = checked;
    f->arg = arg;
    f->filling = -1;
    f->checking = true;
    *out = f;
    feed_start(f, feed_check_work);
    return SPOOL_OK;
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
