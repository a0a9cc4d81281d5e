/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Intake: runs of records -> decode jobs -> (dead letters) -> append jobs.
 *
 * Decode jobs run beside each other, at most one per origin, so that an origin's blocks reach the
 * spool in order. What a job found bad is committed to dead.mdb before its block is queued: a
 * record is either in a block, in the dead letters, or will be read again. Blocks are appended
 * together: one commit carries what collected while the last one ran, or what came within
 * append_linger_ms. A Kafka record is not acknowledged by the append, so waiting costs nothing but
 * the memory, which is bounded by INTAKE_UNDURABLE_BYTES.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define INTAKE_APPEND_ROWS     32768
#define INTAKE_APPEND_BYTES    (4 * MIB)
#define INTAKE_UNDURABLE_BYTES (16 * MIB)
#define INTAKE_HAND_OVER_BYTES (1 * MIB)
#define INTAKE_KEEP_BYTES      (8 * MIB) /* a job whose buffers grew over this is not kept */
#define INTAKE_LINGER_MIN_MS   10
#define INTAKE_LINGER_MAX_MS   250
#define INTAKE_RETRY_MS        500
#define APPEND_OVERHEAD_BYTES  (8 * 4096) /* tree pages a commit leaves behind */
#define DEAD_RECORD_KEPT_BYTES (1 * MIB)  /* of a record over max_record_bytes */

struct decode_job {
    struct job job;
    struct decode_job *next_idle;
    struct stream *stream;
    struct stream_schema *schema; /* counted; its decoder below belongs to it */
    struct origin *origin;
    struct record_run_node *node;
    struct decoder *decoder;
    struct frame_writer *writer;
    struct buf raw, frames;
    /* results */
    int status;
    struct spool_error error;
    struct pending_block *first, *last;
    struct pending_dead *dead_first, *dead_last;
    size_t dead_count;
    uint32_t rows, tombstones, refused;
    uint32_t taken_rows; /* of the block being built */
    int64_t *offsets;    /* of the block being built; LIMIT_BLOCK_ROWS entries, grown */
    size_t offsets_cap;
    int64_t covered_from; /* first offset the block being built accounts for */
    struct refusal why;   /* of the record at hand: too large to be cleared for each */
    char refused_text[SPOOL_ERROR_TEXT_BYTES];
};

/* --- decode, in the pool -------------------------------------------------------------------- */

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

/* Ends the block being built: it accounts for [covered_from, last]. */
static int decode_cut(struct decode_job *d, int64_t last)
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
        .flags = d->schema->schema->format == FORMAT_JSON ? SPOOL_BLOCK_JSON : SPOOL_BLOCK_NATIVE,
        .first_offset = d->covered_from,
        .last_offset = last,
        .offsets = pb->offsets,
        .first_arrival_ms = d->node->run->received_ms,
        .last_arrival_ms = d->node->run->received_ms,
        .raw_bytes = d->raw.len,
        .frames = pb->frames,
        .frames_size = pb->block.frames_size,
    };
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
        status = decode_cut(d, *previous);
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

static void decode_work(struct job *job)
{
    struct decode_job *d = (struct decode_job *)job;
    struct record_run *run = d->node->run;
    struct record_place place = {d->origin->name, d->origin->topic, d->origin->partition_number};
    unsigned wanted = decoder_wants(d->decoder);
    int64_t previous = run->first_offset - 1;

    d->covered_from = run->first_offset;
    d->status = decoder_begin(d->decoder, &place);
    for (uint32_t i = 0; i < run->count && d->status == SPOOL_OK; i++)
        d->status = decode_one(d, i, wanted, &previous);
    if (d->status == SPOOL_OK)
        d->status = decode_cut(d, run->last_offset);
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

/* --- after decode, on the loop -------------------------------------------------------------- */

static void decode_job_free(struct decode_job *d)
{
    decoder_free(d->decoder);
    frame_writer_free(d->writer);
    buf_free(&d->raw);
    buf_free(&d->frames);
    free(d->offsets);
    stream_schema_unref(d->schema);
    free(d);
}

static void pending_block_free(struct pending_block *pb)
{
    stream_schema_unref(pb->schema);
    free(pb->frames);
    free(pb->offsets);
    free(pb);
}

static void pending_dead_free(struct pending_dead *pd)
{
    while (pd) {
        struct pending_dead *next = pd->next;
        buf_free(&pd->memory);
        free(pd);
        pd = next;
    }
}

/* The decoder goes back to the shelf, unless the schema moved on. */
static void decode_job_park(struct decode_job *d)
{
    struct stream *s = d->stream;

    d->first = d->last = NULL;
    d->dead_first = d->dead_last = NULL;
    d->dead_count = 0;
    d->rows = d->tombstones = d->refused = d->taken_rows = 0;
    d->node = NULL;
    d->origin = NULL;
    if (d->schema != s->schema || d->status != SPOOL_OK || s->p->closing ||
        d->raw.cap > INTAKE_KEEP_BYTES) {
        decode_job_free(d);
        return;
    }
    d->next_idle = s->idle_jobs;
    s->idle_jobs = d;
}

void intake_drop_decoders(struct stream *s)
{
    while (s->idle_jobs) {
        struct decode_job *d = s->idle_jobs;
        s->idle_jobs = d->next_idle;
        decode_job_free(d);
    }
}

static void intake_queue_blocks(struct stream *s, struct pending_block *first)
{
    while (first) {
        struct pending_block *pb = first;
        first = pb->next;
        pb->next = NULL;
        if (s->append_last)
            s->append_last->next = pb;
        else
            s->append_first = pb;
        s->append_last = pb;
        s->append_rows += pb->block.rows;
        s->append_bytes += pb->block.frames_size;
        s->undurable_bytes += pb->block.frames_size;
    }
}

/* Origins wait for a decode job in the order their runs came: none starves. */
static void origin_ready(struct origin *o)
{
    struct stream *s = o->stream;

    if (o->ready || o->decoding || !o->runs_first)
        return;
    o->ready = true;
    o->next_ready = NULL;
    if (s->ready_last)
        s->ready_last->next_ready = o;
    else
        s->ready_first = o;
    s->ready_last = o;
}

/* The job's results are safe or queued: the origin may go on. */
static void decode_finish(struct decode_job *d)
{
    struct stream *s = d->stream;
    struct origin *o = d->origin;

    o->decoding = false;
    origin_ready(o);
    intake_queue_blocks(s, d->first);
    decode_job_park(d);
    pipeline_advance(s->p);
}

struct dead_job {
    struct job job;
    struct decode_job *decode;
    struct spool_dead *letters;
    size_t added;
    int status;
    struct spool_error error;
    uint64_t total, bytes;
};

static void dead_work(struct job *job)
{
    struct dead_job *dj = (struct dead_job *)job;

    dj->status = spool_dead_put(job->pipeline->spool, dj->letters, dj->decode->dead_count,
                                &dj->added, &dj->error);
    if (dj->status == SPOOL_OK)
        (void)spool_dead_count(job->pipeline->spool, dj->decode->stream->options->name, &dj->total,
                               &dj->bytes, NULL);
}

static void dead_start(struct decode_job *d);

static void dead_done(struct job *job)
{
    struct dead_job *dj = (struct dead_job *)job;
    struct decode_job *d = dj->decode;
    struct stream *s = d->stream;
    struct pipeline *p = s->p;

    if (dj->status == SPOOL_OK) {
        uint64_t suppressed = 0;
        for (struct pending_dead *pd = d->dead_first; pd; pd = pd->next)
            metrics_add(p->metrics, METRIC_DEAD_LETTERS, 1, s->options->name,
                        pd->letter.reason_name);
        p->grown_bytes += dj->bytes > s->dead_bytes ? dj->bytes - s->dead_bytes : 0;
        s->dead_letters = dj->total;
        s->dead_bytes = dj->bytes;
        if (log_gate_open(&s->dead_gate, 10000, &suppressed))
            log_event(LOG_WARN, "record.refused", "stream", s->options->name, "origin",
                      d->origin->name, "first", d->refused_text, "records", log_u64(d->dead_count),
                      "lines_suppressed", log_u64(suppressed), "action", "see spoolctl dead ls",
                      NULL);
        if (s->options->dead_letters_max_bytes && dj->bytes >= s->options->dead_letters_max_bytes)
            stream_hold(s, HOLD_DEAD_FULL,
                        "the dead letters hold %llu bytes, dead_letters.max_bytes is %llu: look at "
                        "them with spoolctl dead ls, then raise the bound and restart",
                        (unsigned long long)dj->bytes,
                        (unsigned long long)s->options->dead_letters_max_bytes);
        pending_dead_free(d->dead_first);
        d->dead_first = d->dead_last = NULL;
        free(dj->letters);
        free(dj);
        decode_finish(d);
        return;
    }
    if (dj->status == SPOOL_E_FULL) {
        stream_hold(s, HOLD_DEAD_FULL,
                    "dead letters can't be stored: %s: free space on the "
                    "spool's file system",
                    dj->error.text);
        s->append_retry_at_ms = clock_monotonic_ms() + INTAKE_RETRY_MS;
    } else {
        pipeline_fatal(p, "dead.mdb: %s", dj->error.text);
    }
    free(dj->letters);
    free(dj);
    d->next_idle = s->dead_waiting;
    s->dead_waiting = d;
    stream_advance(s);
}

static void dead_start(struct decode_job *d)
{
    struct pipeline *p = d->stream->p;
    struct lane *lane = &p->dead_lane;
    struct dead_job *dj = calloc(1, sizeof(*dj));
    size_t i = 0;

    if (dj)
        dj->letters = calloc(d->dead_count, sizeof(*dj->letters));
    if (!dj || !dj->letters) {
        free(dj);
        pipeline_fatal(p, "out of memory while storing dead letters");
        return;
    }
    for (struct pending_dead *pd = d->dead_first; pd; pd = pd->next)
        dj->letters[i++] = pd->letter;
    dj->decode = d;
    dj->job.work = dead_work;
    dj->job.done = dead_done;
    if (job_start(p, &dj->job, &lane, 1) != SPOOL_OK)
        pipeline_fatal(p, "out of memory while storing dead letters");
}

static void decode_done(struct job *job)
{
    struct decode_job *d = (struct decode_job *)job;
    struct stream *s = d->stream;
    struct pipeline *p = s->p;
    struct origin *o = d->origin;
    struct record_run_node *node = d->node;

    p->decoding--;
    s->decoding--;
    for (struct pending_block *pb = d->first; pb; pb = pb->next)
        stream_schema_ref(pb->schema);
    if (d->status != SPOOL_OK) {
        pipeline_fatal(p, "stream %s, origin %s: %s", s->options->name, o->name, d->error.text);
        o->decoding = false;
        return;
    }
    if (node->run) { /* held back: on_bad_record is hold */
        while (d->first) {
            struct pending_block *next = d->first->next;
            pending_block_free(d->first);
            d->first = next;
        }
        pending_dead_free(d->dead_first);
        node->next = o->runs_first;
        o->runs_first = node;
        if (!o->runs_last)
            o->runs_last = node;
        s->queued_runs++;
        o->decoding = false;
        o->held_to = node->run->last_offset;
        /* gives the stream's runs back, this one too: they would count against all streams */
        stream_hold(s, HOLD_BAD_RECORD,
                    "origin %s, %s: on_bad_record is \"hold\"; "
                    "spoolctl resume puts it to the dead letters and goes on",
                    o->name, d->refused_text);
        decode_job_park(d);
        return;
    }
    o->runs_unreleased--;
    s->records_in += node->count;
    metrics_add(p->metrics, METRIC_RECORDS_IN, node->count, s->options->name,
                o->kafka ? "kafka" : "other");
    metrics_add(p->metrics, METRIC_BYTES_IN, (double)node->bytes, s->options->name,
                o->kafka ? "kafka" : "other");
    if (d->tombstones)
        metrics_add(p->metrics, METRIC_TOMBSTONES, d->tombstones, s->options->name);
    kafka_in_released(p, node);
    free(node);
    d->node = NULL;
    if (d->dead_count)
        dead_start(d);
    else
        decode_finish(d);
}

/* A decode job with a decoder for the stream's schema, from the shelf or new. */
static struct decode_job *decode_job_get(struct stream *s, struct spool_error *error)
{
    static const enum frame_method methods[] = {FRAME_LZ4, FRAME_ZSTD, FRAME_STORED};
    struct decode_job *d = s->idle_jobs;
    int status;

    if (d) {
        s->idle_jobs = d->next_idle;
        d->next_idle = NULL;
        return d;
    }
    d = calloc(1, sizeof(*d));
    if (!d) {
        spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
        return NULL;
    }
    buf_init(&d->raw, LIMIT_BLOCK_BYTES * 2);
    buf_init(&d->frames, LIMIT_BLOCK_BYTES * 2);
    d->stream = s;
    d->schema = stream_schema_ref(s->schema);
    d->job.work = decode_work;
    d->job.done = decode_done;
    status = decoder_create(s->schema->schema, LIMIT_BLOCK_BYTES - MIB, &d->decoder, error);
    if (status == SPOOL_OK)
        status = frame_writer_create(methods[s->p->options->compression], 1, &d->writer);
    if (status != SPOOL_OK) {
        decode_job_free(d);
        return NULL;
    }
    return d;
}

/* A full stream's partitions are paused: what it was handed before that is decoded, since it counts
   against what the source may hold for all streams. */
static bool intake_blocked(const struct stream *s)
{
    return !s->schema || s->holds[HOLD_BAD_RECORD] || s->holds[HOLD_DEAD_FULL] || s->dead_waiting ||
           (s->undurable_bytes >= INTAKE_UNDURABLE_BYTES && !s->full) || s->p->fatal;
}

/* Starts one decode job of the stream, if any origin has a run for it. */
static bool decode_start_one(struct stream *s)
{
    struct origin *o = s->ready_first;
    struct record_run_node *node;
    struct decode_job *d;
    struct spool_error error;

    if (!o)
        return false;
    d = decode_job_get(s, &error);
    if (!d) {
        pipeline_fatal(s->p, "stream %s: %s", s->options->name, error.text);
        return false;
    }
    s->ready_first = o->next_ready;
    if (!s->ready_first)
        s->ready_last = NULL;
    o->ready = false;
    node = o->runs_first;
    o->runs_first = node->next;
    if (!o->runs_first)
        o->runs_last = NULL;
    node->next = NULL;
    node->accept_bad = node->run->first_offset <= o->accept_to;
    o->decoding = true;
    d->origin = o;
    d->node = node;
    s->queued_runs--;
    s->decoding++;
    s->p->decoding++;
    if (job_start(s->p, &d->job, NULL, 0) != SPOOL_OK) {
        pipeline_fatal(s->p, "out of memory while decoding");
        return false;
    }
    return true;
}

void intake_run(struct origin *o, struct record_run *run, struct kafka_partition *partition)
{
    struct record_run_node *node = calloc(1, sizeof(*node));

    if (!node) {
        pipeline_fatal(o->stream->p, "out of memory while taking records");
        return;
    }
    node->run = run;
    node->partition = partition;
    node->count = run->count;
    node->bytes = run->bytes;
    node->arrived_ms = clock_monotonic_ms();
    if (o->runs_last)
        o->runs_last->next = node;
    else
        o->runs_first = node;
    o->runs_last = node;
    o->runs_unreleased++;
    o->stream->queued_runs++;
    origin_ready(o);
    stream_advance(o->stream);
}

/* --- append --------------------------------------------------------------------------------- */

struct append_job {
    struct job job;
    struct stream *stream;
    struct pending_block **pending;
    struct spool_block *blocks;
    struct spool_block_ref *refs;
    size_t count, appended;
    uint64_t bytes;
    struct stream_schema *configure; /* tell the spool first; counted */
    int status;
    struct spool_error error;
    uint64_t duration_ns;
};

static void append_work(struct job *job)
{
    struct append_job *a = (struct append_job *)job;
    uint64_t start = clock_monotonic_ns();

    a->status = SPOOL_OK;
    if (a->configure) {
        struct spool_segment_spec spec = {
            .schema = a->configure->serialized.data,
            .schema_size = a->configure->serialized.len,
            .destination = a->configure->target->destination,
        };
        a->status = spool_stream_configure(a->stream->spool, &spec, &a->error);
    }
    if (a->status == SPOOL_OK)
        a->status = spool_stream_append(a->stream->spool, a->blocks, a->count, a->refs,
                                        &a->appended, &a->error);
    a->duration_ns = clock_monotonic_ns() - start;
}

static void append_job_free(struct append_job *a)
{
    stream_schema_unref(a->configure);
    free(a->pending);
    free(a->blocks);
    free(a->refs);
    free(a);
}

/* What was not stored goes back to the head of the queue, in order. */
static void append_requeue(struct stream *s, struct append_job *a)
{
    for (size_t i = a->count; i > a->appended; i--) {
        struct pending_block *pb = a->pending[i - 1];
        pb->next = s->append_first;
        s->append_first = pb;
        if (!s->append_last)
            s->append_last = pb;
        s->append_rows += pb->block.rows;
        s->append_bytes += pb->block.frames_size;
    }
}

static void append_done(struct job *job)
{
    struct append_job *a = (struct append_job *)job;
    struct stream *s = a->stream;
    struct pipeline *p = s->p;
    uint64_t rows = 0, bytes = 0, suppressed = 0;

    s->appending = false;
    metrics_observe(p->metrics, METRIC_COMMIT_SECONDS, (double)a->duration_ns / 1e9,
                    s->options->name);
    segments_appended(s, a->pending, a->refs, a->appended);
    for (size_t i = 0; i < a->appended; i++) {
        rows += a->pending[i]->block.rows;
        bytes += a->pending[i]->block.frames_size;
        pending_block_free(a->pending[i]);
    }
    s->undurable_bytes -= bytes;
    p->grown_bytes += APPEND_OVERHEAD_BYTES;
    metrics_add(p->metrics, METRIC_ROWS_SPOOLED, (double)rows, s->options->name);
    metrics_add(p->metrics, METRIC_SPOOL_APPENDED_BYTES, (double)bytes, s->options->name);
    append_requeue(s, a);
    if (a->status == SPOOL_OK)
        s->append_refused = false;
    if (a->status == SPOOL_E_FULL) {
        stream_set_full(s, true);
        pressure_refused(s, a->bytes);
        pressure_measure(p);
        s->append_retry_at_ms = clock_monotonic_ms() + INTAKE_RETRY_MS;
        if (log_gate_open(&s->append_gate, 10000, &suppressed))
            log_event(LOG_ERROR, "spool.full", "stream", s->options->name, "error", a->error.text,
                      "action", "intake waits; it goes on when there is room", NULL);
    } else if (a->status != SPOOL_OK) {
        pipeline_fatal(p, "stream %s: append: %s", s->options->name, a->error.text);
    }
    append_job_free(a);
    pipeline_advance(p);
}

static uint64_t pending_disk_bytes(const struct pending_block *pb)
{
    return block_disk_bytes(256 + (pb->offsets ? pb->block.rows * sizeof(int64_t) : 0),
                            pb->block.frames_size);
}

/* The next blocks of one schema, up to INTAKE_APPEND_BYTES and what there is room for (at least
   one). */
static void append_start(struct stream *s, uint64_t room)
{
    struct append_job *a = calloc(1, sizeof(*a));
    struct lane *lane = &s->lane;
    struct stream_schema *schema = s->append_first->schema;
    uint64_t bytes = 0;
    size_t n = 0, i = 0;

    for (struct pending_block *pb = s->append_first; pb && pb->schema == schema; pb = pb->next) {
        uint64_t more = pending_disk_bytes(pb);
        if (n && (bytes >= INTAKE_APPEND_BYTES || bytes + more > room))
            break;
        bytes += more;
        n++;
    }
    if (a) {
        a->pending = calloc(n, sizeof(struct pending_block *));
        a->blocks = calloc(n, sizeof(*a->blocks));
        a->refs = calloc(n, sizeof(*a->refs));
    }
    if (!a || !a->pending || !a->blocks || !a->refs) {
        if (a)
            append_job_free(a);
        pipeline_fatal(s->p, "out of memory while appending");
        return;
    }
    a->stream = s;
    a->count = n;
    a->bytes = bytes;
    a->job.work = append_work;
    a->job.done = append_done;
    while (i < n) {
        struct pending_block *pb = s->append_first;
        s->append_first = pb->next;
        pb->next = NULL;
        s->append_rows -= pb->block.rows;
        s->append_bytes -= pb->block.frames_size;
        a->pending[i] = pb;
        a->blocks[i] = pb->block;
        i++;
    }
    if (!s->append_first)
        s->append_last = NULL;
    if (s->configured != schema) {
        a->configure = stream_schema_ref(schema);
        stream_schema_unref(s->configured);
        s->configured = stream_schema_ref(schema);
    }
    s->appending = true;
    if (job_start(s->p, &a->job, &lane, 1) != SPOOL_OK)
        pipeline_fatal(s->p, "out of memory while appending");
}

static uint64_t append_linger_ms(const struct stream *s)
{
    uint64_t linger = s->options->flush_interval_ms / 4;

    if (linger < INTAKE_LINGER_MIN_MS)
        linger = INTAKE_LINGER_MIN_MS;
    return linger > INTAKE_LINGER_MAX_MS ? INTAKE_LINGER_MAX_MS : linger;
}

/* When the queued blocks are due; 0: none wait. */
static uint64_t append_due_ms(const struct stream *s)
{
    uint64_t due;

    if (!s->append_first || s->appending)
        return 0;
    due = s->append_first->arrived_ms + append_linger_ms(s);
    if (s->append_rows >= INTAKE_APPEND_ROWS || s->append_bytes >= INTAKE_APPEND_BYTES ||
        s->append_first->arrived_ms <= s->flush_before_ms || s->p->draining)
        due = 1;
    return due < s->append_retry_at_ms ? s->append_retry_at_ms : due;
}

static void dead_retry(struct stream *s)
{
    while (s->dead_waiting && !s->p->fatal) {
        struct decode_job *d = s->dead_waiting;
        s->dead_waiting = d->next_idle;
        d->next_idle = NULL;
        dead_start(d);
    }
}

void intake_advance(struct stream *s)
{
    struct pipeline *p = s->p;
    uint64_t now = clock_monotonic_ms();
    uint64_t due;

    if (p->fatal)
        return;
    if (s->dead_waiting && now >= s->append_retry_at_ms) {
        stream_unhold(s, HOLD_DEAD_FULL);
        dead_retry(s);
    }
    while (!intake_blocked(s) && p->decoding < p->decode_max && decode_start_one(s))
        continue;
    due = append_due_ms(s);
    if (due && due <= now) {
        uint64_t room = pressure_room(s);
        if (pending_disk_bytes(s->append_first) <= room) {
            append_start(s, room);
        } else {
            s->append_retry_at_ms = now + INTAKE_RETRY_MS;
            pressure_refused(s, pending_disk_bytes(s->append_first));
        }
    }
}

uint64_t intake_deadline_ms(const struct stream *s)
{
    uint64_t due = append_due_ms(s);

    if (s->dead_waiting && (!due || s->append_retry_at_ms < due))
        due = s->append_retry_at_ms;
    return due;
}

bool intake_idle(const struct stream *s)
{
    return !s->queued_runs && !s->decoding && !s->append_first && !s->appending && !s->dead_waiting;
}

void intake_release_runs(struct stream *s, bool again)
{
    for (struct origin *o = s->origins; o; o = o->next) {
        int64_t first = o->runs_first ? o->runs_first->run->first_offset : -1;
        if (first < 0)
            continue;
        while (o->runs_first) {
            struct record_run_node *node = o->runs_first;
            o->runs_first = node->next;
            node->run->ops->release(node->run);
            kafka_in_released(s->p, node);
            free(node);
            s->queued_runs--;
            o->runs_unreleased--;
        }
        o->runs_last = NULL;
        o->ready = false;
        if (again) {
            o->taken = first - 1;
            if (o->partition && !o->revoking)
                kafka_partition_start(o->partition, first);
        }
    }
    s->ready_first = s->ready_last = NULL;
}

void intake_free(struct stream *s)
{
    intake_drop_decoders(s);
    while (s->append_first) {
        struct pending_block *pb = s->append_first;
        s->append_first = pb->next;
        pending_block_free(pb);
    }
    while (s->dead_waiting) {
        struct decode_job *d = s->dead_waiting;
        s->dead_waiting = d->next_idle;
        pending_dead_free(d->dead_first);
        while (d->first) {
            struct pending_block *next = d->first->next;
            pending_block_free(d->first);
            d->first = next;
        }
        decode_job_free(d);
    }
}
