/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A decode job: the records of one run become blocks, and dead letters where they don't fit. All of
 * it runs in the pool; what comes before and after is intake.c's.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "pipeline/intake_int.h"

#define INTAKE_HAND_OVER_BYTES (1 * MIB)
#define DEAD_RECORD_KEPT_BYTES (1 * MIB) /* of a record over max_record_bytes */

static int decode_offsets_reserve(struct decode_job *d, size_t n)
{
    int64_t *grown;
    size_t cap = d->offsets_cap ? d->offsets_cap * 2 : LIMIT_BLOCK_ROWS;

    if (n <= d->offsets_cap)
        return SPOOL_OK;
    while (cap < n)
        cap *= 2;
    grown = realloc(d->offsets, cap * sizeof(*grown));
    if (!grown)
        return SPOOL_E_NOMEM;
    d->offsets = grown;
    d->offsets_cap = cap;
    return SPOOL_OK;
}

/* The compressed block leaves the job: small ones are copied, so that the job keeps its buffer;
   large ones are handed over, so that they are not in memory twice. */
static int decode_take_frames(struct decode_job *d, struct pending_block *pb)
{
    if (!d->frames.len)
        return SPOOL_OK;
    if (d->frames.len >= INTAKE_HAND_OVER_BYTES) {
        uint8_t *shrunk = realloc(d->frames.data, d->frames.len);
        pb->frames = shrunk ? shrunk : d->frames.data;
        pb->block.frames_size = d->frames.len;
        d->frames.data = NULL;
        d->frames.len = d->frames.cap = 0;
        return SPOOL_OK;
    }
    pb->frames = malloc(d->frames.len);
    if (!pb->frames)
        return SPOOL_E_NOMEM;
    memcpy(pb->frames, d->frames.data, d->frames.len);
    pb->block.frames_size = d->frames.len;
    return SPOOL_OK;
}

static uint32_t block_flags(const struct decode_job *d)
{
    uint32_t flags =
        d->schema->schema->format == FORMAT_JSON ? SPOOL_BLOCK_JSON : SPOOL_BLOCK_NATIVE;

    if (d->node->refill)
        flags |= SPOOL_BLOCK_REFILL;
    return d->node->suspect ? flags | SPOOL_BLOCK_SUSPECT : flags;
}

/* The record at the end of a block, of which the run has records up to i. */
static void decode_mark(const struct decode_job *d, uint32_t i, struct spool_mark *mark)
{
    const struct record_run *run = d->node->run;

    if (run->ops->mark && !d->node->refill)
        run->ops->mark(run, i, mark);
}

/* Ends the block being built: it accounts for [covered_from, last], and for records below `end`. */
static int decode_cut(struct decode_job *d, int64_t last, uint32_t end)
{
    struct pending_block *pb = calloc(1, sizeof(*pb));
    uint32_t rows = d->taken_rows;
    int status = SPOOL_E_NOMEM;

    if (!pb)
        return status;
    buf_reset(&d->raw);
    buf_reset(&d->frames);
    status = decoder_finish(d->decoder, &d->raw);
    if (status == SPOOL_OK && d->raw.len)
        status = frame_write(d->writer, d->raw.data, d->raw.len, &d->frames);
    if (status != SPOOL_OK)
        goto fail;
    status = decode_take_frames(d, pb);
    if (status != SPOOL_OK)
        goto fail;
    if (rows && (int64_t)rows != last - d->covered_from + 1) {
        pb->offsets = malloc(rows * sizeof(int64_t));
        if (!pb->offsets)
            goto nomem;
        memcpy(pb->offsets, d->offsets, rows * sizeof(int64_t));
    }
    pb->origin = d->origin;
    pb->schema = d->schema; /* counted on the loop */
    pb->arrived_ms = d->node->arrived_ms;
    pb->block = (struct spool_block){
        .origin = d->origin->id,
        .rows = rows,
        .flags = block_flags(d),
        .first_offset = d->covered_from,
        .last_offset = last,
        .offsets = pb->offsets,
        .first_arrival_ms = d->node->run->received_ms,
        .last_arrival_ms = d->node->run->received_ms,
        .raw_bytes = d->raw.len,
        .frames = pb->frames,
        .frames_size = pb->block.frames_size,
    };
    if (end > 0)
        decode_mark(d, end - 1, &pb->block.mark);
    if (d->last)
        d->last->next = pb;
    else
        d->first = pb;
    d->last = pb;
    d->covered_from = last + 1;
    d->taken_rows = 0;
    return SPOOL_OK;

nomem:
    status = SPOOL_E_NOMEM;
fail:
    free(pb->frames);
    free(pb->offsets);
    free(pb);
    return status;
}

/* u32le count, then per header string name, string value (include/spool.h). */
static int put_headers(struct buf *out, const struct record *record)
{
    int status = buf_put_u32le(out, (uint32_t)record->header_count);

    for (size_t i = 0; i < record->header_count && status == SPOOL_OK; i++) {
        const struct record_header *h = &record->headers[i];
        status = buf_put_string(out, h->name, strlen(h->name));
        if (status == SPOOL_OK)
            status = buf_put_string(out, h->value, h->value_size);
    }
    return status;
}

/* A letter of its own memory: the run is released before the letter is durable. */
static int decode_dead(struct decode_job *d, uint32_t i, const struct refusal *why)
{
    struct pending_dead *pd = calloc(1, sizeof(*pd));
    struct record record;
    size_t record_at, key_at, headers_at, headers_end, reason_at, column_at, kept;
    const char *column = why->column ? why->column : "";
    int status;

    if (!pd)
        return SPOOL_E_NOMEM;
    d->node->run->ops->record(d->node->run, i, RECORD_WANTS_ALL, &record);
    kept = record.size;
    if (why->code == REFUSAL_TOO_LONG && !why->column && kept > DEAD_RECORD_KEPT_BYTES)
        kept = DEAD_RECORD_KEPT_BYTES;
    buf_init(&pd->memory, SIZE_MAX / 2);
    record_at = 0;
    status = buf_append(&pd->memory, record.data, kept);
    key_at = pd->memory.len;
    if (status == SPOOL_OK)
        status = buf_append(&pd->memory, record.key, record.key ? record.key_size : 0);
    headers_at = pd->memory.len;
    if (status == SPOOL_OK)
        status = put_headers(&pd->memory, &record);
    headers_end = reason_at = pd->memory.len;
    if (status == SPOOL_OK)
        status = buf_append(&pd->memory, why->reason, strlen(why->reason) + 1);
    column_at = pd->memory.len;
    if (status == SPOOL_OK)
        status = buf_append(&pd->memory, column, strlen(column) + 1);
    if (status != SPOOL_OK) {
        buf_free(&pd->memory);
        free(pd);
        return status;
    }
    pd->letter = (struct spool_dead){
        .stream = d->stream->options->name,
        .origin = d->origin->id,
        .origin_name = d->origin->name,
        .offset = record.offset,
        .code = why->code,
        .reason_name = refusal_name(why->code),
        .reason = (const char *)pd->memory.data + reason_at,
        .column = (const char *)pd->memory.data + column_at,
        .position = why->position,
        .flags = kept < record.size ? SPOOL_DEAD_RECORD_CUT : 0,
        .attempts = 1,
        .dead_ms = clock_wall_ms(),
        .received_ms = record.received_ms,
        .timestamp_ms = record.timestamp_ms,
        .record = pd->memory.data + record_at,
        .record_size = kept,
        .record_full_size = record.size,
        .key = pd->memory.data + key_at,
        .key_size = record.key ? record.key_size : 0,
        .key_present = record.key != NULL,
        .headers = pd->memory.data + headers_at,
        .headers_size = headers_end - headers_at,
    };
    if (d->dead_last)
        d->dead_last->next = pd;
    else
        d->dead_first = pd;
    d->dead_last = pd;
    d->dead_count++;
    return SPOOL_OK;
}

/* One record: a row, a tombstone, or a dead letter. *previous is the last offset dealt with. */
static int decode_one(struct decode_job *d, uint32_t i, unsigned wanted, int64_t *previous)
{
    struct record_run *run = d->node->run;
    struct refusal *why = &d->why;
    struct record record;
    int status;

    run->ops->record(run, i, wanted, &record);
    if (!record.data) {
        d->tombstones++;
        *previous = record.offset;
        return SPOOL_OK;
    }
    if (record.size > d->stream->options->max_record_bytes) {
        *why = (struct refusal){.code = REFUSAL_TOO_LONG};
        snprintf(why->reason, sizeof(why->reason),
                 "the record has %zu bytes, max_record_bytes is %llu", record.size,
                 (unsigned long long)d->stream->options->max_record_bytes);
        status = SPOOL_E_REFUSED;
    } else {
        status = decode_offsets_reserve(d, (size_t)d->taken_rows + 1);
        if (status == SPOOL_OK)
            status = decoder_row(d->decoder, &record, why);
    }
    if (status == SPOOL_E_LIMIT && d->taken_rows) {
        status = decode_cut(d, *previous, i);
        if (status == SPOOL_OK)
            return decode_one(d, i, wanted, previous); /* once: the block is empty now */
        return status;
    }
    if (status == SPOOL_E_LIMIT) {
        *why = (struct refusal){.code = REFUSAL_TOO_LONG};
        snprintf(why->reason, sizeof(why->reason), "the row is larger than a block may be");
        status = SPOOL_E_REFUSED;
    }
    if (status == SPOOL_E_REFUSED) {
        if (!d->refused++)
            snprintf(d->refused_text, sizeof(d->refused_text), "offset %lld: %s%s%s",
                     (long long)record.offset, why->column ? why->column : "",
                     why->column ? ": " : "", why->reason);
        status = decode_dead(d, i, why);
    } else if (status == SPOOL_OK) {
        d->offsets[d->taken_rows++] = record.offset;
        d->rows++;
    }
    *previous = record.offset;
    return status;
}

void decode_work(struct job *job)
{
    struct decode_job *d = (struct decode_job *)job;
    struct record_run *run = d->node->run;
    struct record_place place = {d->origin->name, d->origin->topic, d->origin->partition_number};
    unsigned wanted = decoder_wants(d->decoder);
    int64_t previous = d->node->cover_first - 1;

    d->covered_from = d->node->cover_first;
    d->status = decoder_begin(d->decoder, &place);
    for (uint32_t i = 0; i < d->node->take && d->status == SPOOL_OK; i++)
        d->status = decode_one(d, i, wanted, &previous);
    if (d->status == SPOOL_OK)
        d->status = decode_cut(d, d->node->cover_last, d->node->take);
    if (d->status != SPOOL_OK) {
        spool_error_set(&d->error, d->status, "decoding failed: %s", spool_strerror(d->status));
        return;
    }
    /* on_bad_record "hold": the run stays and is decoded again when the operator says so. */
    if (!(d->refused && d->stream->options->on_bad_record == ON_BAD_HOLD && !d->node->accept_bad)) {
        run->ops->release(run);
        d->node->run = NULL;
    }
}
void decode_job_free(struct decode_job *d)
{
    decoder_free(d->decoder);
    frame_writer_free(d->writer);
    buf_free(&d->raw);
    buf_free(&d->frames);
    free(d->offsets);
    stream_schema_unref(d->schema);
    free(d);
}

void pending_block_free(struct pending_block *pb)
{
    stream_schema_unref(pb->schema);
    free(pb->frames);
    free(pb->offsets);
    free(pb);
}

void pending_dead_free(struct pending_dead *pd)
{
    while (pd) {
        struct pending_dead *next = pd->next;
        buf_free(&pd->memory);
        free(pd);
        pd = next;
    }
}

struct decode_job *decode_job_create(struct stream *s, struct spool_error *error)
{
    static const enum frame_method methods[] = {FRAME_LZ4, FRAME_ZSTD, FRAME_STORED};
    struct decode_job *d = calloc(1, sizeof(*d));
    int status;

    if (!d) {
        spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
        return NULL;
    }
    buf_init(&d->raw, LIMIT_BLOCK_BYTES * 2);
    buf_init(&d->frames, LIMIT_BLOCK_BYTES * 2);
    d->stream = s;
    d->schema = stream_schema_ref(s->schema);
    d->job.work = decode_work;
    status = decoder_create(s->schema->schema, LIMIT_BLOCK_RAW_BYTES, &d->decoder, error);
    if (status == SPOOL_OK)
        status = frame_writer_create(methods[s->p->options->compression], 1, &d->writer);
    if (status != SPOOL_OK) {
        decode_job_free(d);
        return NULL;
    }
    return d;
}
