/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A chunk of dead letters, decoded again. A letter is the record as it came, with its own topic,
 * partition, offset, key, headers and time, so it becomes the row it would have been. Where only
 * ClickHouse refused the row, the letter was rebuilt from columns: its keys are the columns' names,
 * and every column is read from there, whatever the mapping says.
 *
 * Rows of one origin in one form make a block; each row gets the replay's next number as its offset.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "pipeline/replay_int.h"

#define ORIGIN_TOPIC_BYTES 512 /* an origin's name has at most 400 */

/* What is made and dropped within one job. */
struct work {
    struct replay_chunk *chunk;
    struct schema *named; /* every column from the key of its name */
    struct decoder *decoders[2];
    bool rebuilt; /* the form at hand: which decoder */
    struct frame_writer *writer;
    struct buf raw, frames;
    uint32_t rows;   /* of the block being built */
    uint32_t origin; /* of its records */
    char topic[ORIGIN_TOPIC_BYTES];
    int64_t received_ms;  /* of its first record */
    uint32_t high_origin; /* whose highest offset is known */
    int64_t high;
    uint32_t read_as; /* as which origin its partition is read by now, of the same log */
    struct buf names; /* of headers, NUL-terminated */
    struct record_header *headers;
    size_t header_cap;
};

/* --- what a letter tells of its record ------------------------------------------------------ */

/* kafka/<topic>/<partition>; what it points to stays as long as the block being built. */
static struct record_place place_of(struct work *w, const char *name)
{
    struct record_place place = {name, NULL, -1};
    const char *slash = strrchr(name, '/');

    if (strncmp(name, "kafka/", 6) == 0 && slash > name + 5) {
        snprintf(w->topic, sizeof(w->topic), "%.*s", (int)(slash - name - 6), name + 6);
        place.topic = w->topic;
        place.partition = (int32_t)strtol(slash + 1, NULL, 10);
    }
    return place;
}

static int read_headers(struct work *w, const struct spool_dead *letter, size_t *count)
{
    struct cursor c = cursor_over(letter->headers, letter->headers_size);
    uint32_t n = 0;
    int status = letter->headers_size ? cursor_u32le(&c, &n) : SPOOL_OK;

    *count = 0;
    if (status != SPOOL_OK || n > letter->headers_size)
        return SPOOL_E_CORRUPT;
    if (n > w->header_cap) {
        struct record_header *grown = realloc(w->headers, n * sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        w->headers = grown;
        w->header_cap = n;
    }
    /* A name is no longer than what it was read from, so nothing moves while pointers are taken. */
    buf_reset(&w->names);
    status = buf_reserve(&w->names, letter->headers_size + n);
    for (uint32_t i = 0; i < n && status == SPOOL_OK; i++) {
        struct record_header *h = &w->headers[i];
        const uint8_t *name = NULL, *value = NULL;
        size_t size = 0;

        status = cursor_string(&c, &name, &size);
        if (status == SPOOL_OK)
            status = cursor_string(&c, &value, &h->value_size);
        if (status != SPOOL_OK)
            break;
        h->name = (const char *)w->names.data + w->names.len;
        h->value = value;
        status = buf_append(&w->names, name, size);
        if (status == SPOOL_OK)
            status = buf_put_u8(&w->names, 0);
    }
    *count = n;
    return status;
}

/* Whether the record of a letter whose offset never became durable is read no more in a later epoch: its log
   is over; or a commit of somebody else's passed it, for what was read again lost its letter (dead.c). */
static int passed(struct work *w, const struct spool_dead *letter, bool *yes)
{
    const struct replay_chunk *c = w->chunk;
    struct spool *spool = c->job.pipeline->spool;
    uint32_t id = letter->origin, epoch = 0, latest = 0, latest_id;
    char *name = NULL;
    int status = spool_origin_name(spool, id, &name, &epoch, &w->chunk->error);

    if (status == SPOOL_OK)
        status = spool_origin(spool, name, 0, &latest_id, &latest, &w->chunk->error);
    while (status == SPOOL_OK && epoch < latest && !*yes) {
        int64_t high = -1, up_to = -1;

        status = origin_discard_noted(c->stream, id, &up_to, &w->chunk->error);
        *yes = up_to != INT64_MAX;
        if (status != SPOOL_OK || *yes)
            break;
        status = spool_origin(spool, name, ++epoch, &id, NULL, &w->chunk->error);
        if (status == SPOOL_OK)
            (void)spool_stream_high(c->stream->spool, id, &high);
        *yes = high >= letter->offset;
    }
    free(name);
    return status == SPOOL_E_NOT_FOUND ? SPOOL_OK : status;
}

/* The latest epoch of the letter's partition that only commits of somebody else's parted from its own. */
static int find_read_as(struct work *w, uint32_t origin)
{
    const struct replay_chunk *c = w->chunk;
    struct spool *spool = c->job.pipeline->spool;
    uint32_t id, epoch = 0, latest = 0;
    int64_t up_to = INT64_MAX;
    char *name = NULL;
    int status = spool_origin_name(spool, origin, &name, &epoch, &w->chunk->error);

    w->read_as = origin;
    if (status == SPOOL_OK)
        status = spool_origin(spool, name, 0, &id, &latest, &w->chunk->error);
    while (status == SPOOL_OK && epoch < latest && up_to == INT64_MAX) {
        status = origin_discard_noted(c->stream, w->read_as, &up_to, &w->chunk->error);
        if (status == SPOOL_OK && up_to == INT64_MAX)
            status = spool_origin(spool, name, ++epoch, &w->read_as, NULL, &w->chunk->error);
    }
    free(name);
    return status == SPOOL_E_NOT_FOUND ? SPOOL_OK : status;
}

/* What is known of the letter's origin, asked once. */
static int find_origin(struct work *w, uint32_t origin)
{
    int status = SPOOL_OK;

    if (origin == w->high_origin)
        return SPOOL_OK;
    status = spool_stream_high(w->chunk->stream->spool, origin, &w->high);
    if (status == SPOOL_E_NOT_FOUND) {
        w->high = INT64_MIN;
        status = SPOOL_OK;
    }
    if (status == SPOOL_OK)
        status = find_read_as(w, origin);
    if (status == SPOOL_OK)
        w->high_origin = origin;
    return status;
}

/* A letter may stand before what it came from is over: the record's offset is not durable in the
   spool yet, so a crash would read it again; or it is being read again, beside damaged rows or since
   somebody else committed in front of it; or the batch it was found in is not acknowledged, so a crash
   would find it again. Taken out now, it would come back behind its own row. */
static int settled(struct work *w, const struct spool_dead *letter, bool *yes)
{
    struct replay_chunk *c = w->chunk;
    bool rebuilt = letter->flags & SPOOL_DEAD_REBUILT;
    int status = find_origin(w, letter->origin);

    *yes = false;
    if (status == SPOOL_OK && letter->offset > w->high)
        return passed(w, letter, yes);
    if (status != SPOOL_OK)
        return status;
    *yes = c->all_loaded || !rebuilt;
    for (size_t i = 0; i < c->unacked_count && *yes; i++) {
        const struct replay_unacked *u = &c->unacked[i];
        if (letter->offset >= u->first && letter->offset <= u->last)
            *yes = !(u->origin == letter->origin && (u->reread || rebuilt)) &&
                   !(u->origin == w->read_as && u->reread);
    }
    return SPOOL_OK;
}

/* --- rows to blocks ------------------------------------------------------------------------- */

/* The decoder for a form, made when it is first wanted. */
static int decoder_for(struct work *w, bool rebuilt, struct decoder **out)
{
    struct replay_chunk *c = w->chunk;
    const struct schema *schema = c->schema->schema;
    int status = SPOOL_OK;

    *out = w->decoders[rebuilt];
    if (*out)
        return SPOOL_OK;
    if (rebuilt && !w->named) {
        status = schema_by_name(schema, &w->named);
        if (status != SPOOL_OK)
            return status;
    }
    status = decoder_create(rebuilt ? w->named : schema, LIMIT_BLOCK_RAW_BYTES,
                            &w->decoders[rebuilt], &c->error);
    *out = w->decoders[rebuilt];
    return status;
}

/* Ends the block being built, if it has a row. */
static int cut(struct work *w)
{
    struct replay_chunk *c = w->chunk;
    struct pending_block *pb;
    int status;

    if (!w->rows)
        return SPOOL_OK;
    pb = calloc(1, sizeof(*pb));
    if (!pb)
        return SPOOL_E_NOMEM;
    buf_reset(&w->raw);
    buf_reset(&w->frames);
    status = decoder_finish(w->decoders[w->rebuilt], &w->raw);
    if (status == SPOOL_OK)
        status = frame_write(w->writer, w->raw.data, w->raw.len, &w->frames);
    if (status == SPOOL_OK) {
        pb->frames = malloc(w->frames.len);
        status = pb->frames ? SPOOL_OK : SPOOL_E_NOMEM;
    }
    if (status != SPOOL_OK) {
        free(pb);
        return status;
    }
    memcpy(pb->frames, w->frames.data, w->frames.len);
    pb->origin = c->origin;
    pb->schema = c->schema;
    pb->replayed = true;
    pb->block = (struct spool_block){
        .origin = c->origin->id,
        .rows = w->rows,
        .flags = c->schema->schema->format == FORMAT_JSON ? SPOOL_BLOCK_JSON : SPOOL_BLOCK_NATIVE,
        .first_offset = c->number - (int64_t)w->rows + 1,
        .last_offset = c->number,
        .first_arrival_ms = w->received_ms,
        .last_arrival_ms = w->received_ms,
        .raw_bytes = w->raw.len,
        .frames = pb->frames,
        .frames_size = w->frames.len,
    };
    if (c->last)
        c->last->next = pb;
    else
        c->first = pb;
    c->last = pb;
    c->blocks++;
    w->rows = 0;
    return SPOOL_OK;
}

static int refuse(struct replay_chunk *c, const struct spool_dead *letter,
                  const struct refusal *why)
{
    if (c->refusal_count == c->refusal_cap) {
        size_t cap = c->refusal_cap ? c->refusal_cap * 2 : 64;
        struct replay_refusal *grown = realloc(c->refusals, cap * sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        c->refusals = grown;
        c->refusal_cap = cap;
    }
    c->refusals[c->refusal_count++] =
        (struct replay_refusal){{letter->origin, letter->offset}, *why};
    return SPOOL_OK;
}

/* One row, or the reason why not. */
static int decode_row(struct work *w, const struct spool_dead *letter, struct refusal *why)
{
    struct replay_chunk *c = w->chunk;
    const bool rebuilt = letter->flags & SPOOL_DEAD_REBUILT;
    struct record record = {
        .data = letter->record,
        .size = letter->record_size,
        .offset = letter->offset,
        .timestamp_ms = letter->timestamp_ms,
        .key = letter->key_present ? letter->key : NULL,
        .key_size = letter->key_size,
        .received_ms = letter->received_ms,
    };
    struct record_place place;
    struct decoder *decoder = NULL;
    int status = decoder_for(w, rebuilt, &decoder);

    if (status == SPOOL_OK && record.size > c->stream->options->max_record_bytes) {
        *why = (struct refusal){.code = REFUSAL_TOO_LONG};
        snprintf(why->reason, sizeof(why->reason),
                 "the record has %zu bytes, max_record_bytes is %llu", record.size,
                 (unsigned long long)c->stream->options->max_record_bytes);
        return SPOOL_E_REFUSED;
    }
    if (status == SPOOL_OK)
        status = read_headers(w, letter, &record.header_count);
    record.headers = w->headers;
    if (status == SPOOL_OK && w->rows && (letter->origin != w->origin || rebuilt != w->rebuilt))
        status = cut(w);
    if (status == SPOOL_OK && !w->rows) {
        place = place_of(w, letter->origin_name);
        w->rebuilt = rebuilt;
        w->origin = letter->origin;
        w->received_ms = letter->received_ms;
        status = decoder_begin(decoder, &place);
    }
    if (status == SPOOL_OK)
        status = decoder_row(decoder, &record, why);
    if (status == SPOOL_E_LIMIT && w->rows) {
        status = cut(w);
        return status == SPOOL_OK ? decode_row(w, letter, why) : status;
    }
    if (status == SPOOL_E_LIMIT) {
        *why = (struct refusal){.code = REFUSAL_TOO_LONG};
        snprintf(why->reason, sizeof(why->reason), "the row is larger than a block may be");
        status = SPOOL_E_REFUSED;
    }
    return status;
}

/* --- the walk ------------------------------------------------------------------------------- */

#define WALK_PAUSED 1 /* the chunk is full; no spool status is positive */

static int each_letter(void *arg, const struct spool_dead *letter)
{
    struct work *w = arg;
    struct replay_chunk *c = w->chunk;
    struct refusal why;
    bool ready = false;
    int status;

    if (!dead_filter_takes(c->filter, letter))
        return SPOOL_OK;
    if (c->fitting_count + c->refusal_count >= REPLAY_CHUNK_LETTERS ||
        c->bytes >= REPLAY_CHUNK_BYTES) {
        c->next = (struct spool_dead_place){letter->origin, letter->offset};
        c->at_end = false;
        return WALK_PAUSED;
    }
    if (letter->flags & SPOOL_DEAD_RECORD_CUT) {
        c->cut++;
        return SPOOL_OK;
    }
    status = settled(w, letter, &ready);
    if (status != SPOOL_OK || !ready) {
        c->unsettled += status == SPOOL_OK;
        return status;
    }
    c->bytes += letter->record_size;
    status = decode_row(w, letter, &why);
    if (status == SPOOL_E_REFUSED)
        return refuse(c, letter, &why);
    if (status == SPOOL_OK) {
        w->rows++;
        c->number++;
        c->fitting[c->fitting_count++] = (struct spool_dead_place){letter->origin, letter->offset};
    }
    return status;
}

/* One attempt more, with today's reason. */
static int store_refusals(struct replay_chunk *c)
{
    struct spool_dead_change *changes = calloc(c->refusal_count, sizeof(*changes));
    int status;

    if (!changes)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < c->refusal_count; i++) {
        const struct replay_refusal *r = &c->refusals[i];
        changes[i] = (struct spool_dead_change){
            .kind = SPOOL_DEAD_REFUSE,
            .place = r->place,
            .now_ms = clock_wall_ms(),
            .code = r->why.code,
            .reason_name = refusal_name(r->why.code),
            .reason = r->why.reason,
            .column = r->why.column ? r->why.column : "",
            .position = r->why.position,
        };
    }
    status = spool_dead_change(c->job.pipeline->spool, c->stream->options->name, changes,
                               c->refusal_count, NULL, &c->error);
    free(changes);
    return status;
}

void replay_chunk_work(struct job *job)
{
    static const enum frame_method methods[] = {FRAME_LZ4, FRAME_ZSTD, FRAME_STORED};
    struct replay_chunk *c = (struct replay_chunk *)job;
    struct spool *spool = job->pipeline->spool;
    const char *name = c->stream->options->name;
    struct work w = {.chunk = c};

    buf_init(&w.raw, LIMIT_BLOCK_BYTES * 2);
    buf_init(&w.frames, LIMIT_BLOCK_BYTES * 2);
    buf_init(&w.names, LIMIT_BLOCK_BYTES);
    c->at_end = true;
    c->fitting = calloc(REPLAY_CHUNK_LETTERS, sizeof(*c->fitting));
    c->status =
        c->fitting ? frame_writer_create(methods[job->pipeline->options->compression], 1, &w.writer)
                   : SPOOL_E_NOMEM;
    if (c->status == SPOOL_OK)
        c->status = spool_dead_each_from(spool, name, c->next, each_letter, &w, &c->error);
    if (c->status == WALK_PAUSED)
        c->status = SPOOL_OK;
    if (c->status == SPOOL_OK)
        c->status = cut(&w);
    if (c->status == SPOOL_OK && c->refusal_count)
        c->status = store_refusals(c);
    if (c->status == SPOOL_OK)
        c->status = spool_dead_count(spool, name, &c->letters, &c->letter_bytes, &c->error);
    decoder_free(w.decoders[0]);
    decoder_free(w.decoders[1]);
    schema_free(w.named);
    frame_writer_free(w.writer);
    buf_free(&w.raw);
    buf_free(&w.frames);
    buf_free(&w.names);
    free(w.headers);
}

void replay_chunk_reset(struct replay_chunk *c)
{
    while (c->first) {
        struct pending_block *next = c->first->next;
        free(c->first->frames);
        free(c->first);
        c->first = next;
    }
    free(c->fitting);
    free(c->refusals);
    free(c->unacked);
    c->last = NULL;
    c->fitting = NULL;
    c->refusals = NULL;
    c->unacked = NULL;
    c->blocks = c->fitting_count = c->refusal_count = c->refusal_cap = c->unacked_count = 0;
    c->cut = c->unsettled = c->bytes = 0;
    c->error = (struct spool_error){0};
}
