/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream: its segments, oldest first, and what is known of each. What is acknowledged comes from
 * meta when the stream is opened and by messages from the meta lane afterwards, so that no lane
 * reads another lane's memory.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/failpoint.h"
#include "base/limits.h"
#include "spool/spool_int.h"

struct segment *stream_newest(const struct spool_stream *stream)
{
    return stream->segment_count ? &stream->segments[stream->segment_count - 1] : NULL;
}

struct segment *stream_segment(const struct spool_stream *stream, uint64_t number)
{
    size_t lo = 0, hi = stream->segment_count;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (stream->segments[mid].number < number)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < stream->segment_count && stream->segments[lo].number == number
               ? &stream->segments[lo]
               : NULL;
}

struct segment *stream_add_segment(struct spool_stream *stream)
{
    if (stream->segment_count == stream->segment_cap) {
        size_t cap = stream->segment_cap ? stream->segment_cap * 2 : 16;
        struct segment *more = realloc(stream->segments, cap * sizeof(*more));
        if (!more)
            return NULL;
        stream->segments = more;
        stream->segment_cap = cap;
    }
    return &stream->segments[stream->segment_count];
}

/* --- acknowledgements ----------------------------------------------------------------------- */

bool segment_is_acked(const struct segment *segment)
{
    return !segment->damaged && segment->acked_blocks == segment->totals.blocks;
}

void segment_ack(struct segment *segment, uint64_t sequence, uint32_t rows, bool empty)
{
    uint64_t i = sequence - segment->totals.first_sequence;
    uint32_t *waiting;

    if (!segment->waiting || sequence < segment->totals.first_sequence ||
        i >= segment->totals.blocks)
        return;
    waiting = &segment->waiting[i];
    if (*waiting == WAITING_EMPTY) {
        if (empty) {
            *waiting = 0;
            segment->acked_blocks++;
        }
        return;
    }
    if (!*waiting)
        return;
    if (rows > *waiting)
        rows = *waiting;
    *waiting -= rows;
    segment->acked_rows += rows;
    segment->acked_blocks += !*waiting;
}

void waiting_set(struct segment *segment, uint32_t *rows)
{
    for (uint64_t i = 0; i < segment->totals.blocks; i++)
        if (!rows[i])
            rows[i] = WAITING_EMPTY;
    segment->waiting = rows;
    segment->waiting_cap = (size_t)segment->totals.blocks;
}

void segment_damage(struct segment *segment, const char *why)
{
    size_t n = strnlen(why, sizeof(segment->detail) - 1);
    segment->damaged = true;
    memcpy(segment->detail, why, n);
    segment->detail[n] = 0;
}

int segment_waiting_load(struct spool_stream *stream, struct segment *segment,
                         struct spool_error *error)
{
    struct segment again = {.number = segment->number};
    uint32_t *rows = NULL;
    const struct segment_wants wants = {.rows = &rows};
    struct spool_error inner = {0};
    char *path = segment_path(stream, segment->number);
    int status = path ? segment_scan(stream->spool, path, stream->id, false, &again, &wants, &inner)
                      : SPOOL_E_NOMEM;

    free(path);
    if (is_out_of_reach(status, &inner))
        return status == SPOOL_E_NOMEM
                   ? spool_error_set(error, status, "no memory to read a segment")
                   : spool_error_set(error, status, "%s", inner.text);
    if (status != SPOOL_OK) {
        segment_damage(segment, inner.text);
        return SPOOL_OK;
    }
    if (again.totals.blocks != segment->totals.blocks) {
        segment_damage(segment, "the number of its blocks changed");
        free(rows);
        return SPOOL_OK;
    }
    waiting_set(segment, rows);
    return SPOOL_OK;
}

int stream_take_acks(struct spool_stream *stream, struct spool_error *error)
{
    struct ack_message *m = atomic_exchange(&stream->acks, NULL);
    int status = SPOOL_OK;

    while (m && status == SPOOL_OK) {
        struct ack_message *next = m->next;
        struct segment *segment = stream_segment(stream, m->segment);
        if (segment && !segment->waiting && !segment->damaged)
            status = segment_waiting_load(stream, segment, error);
        if (status != SPOOL_OK)
            break;
        for (size_t i = 0; segment && i < m->count; i++)
            segment_ack(segment, m->blocks[i].sequence, m->blocks[i].rows, m->blocks[i].empty);
        free(m);
        m = next;
    }
    while (m) { /* memory was short: they go back, nothing is forgotten */
        struct ack_message *next = m->next;
        m->next = atomic_load(&stream->acks);
        while (!atomic_compare_exchange_weak(&stream->acks, &m->next, m))
            ;
        m = next;
    }
    return status;
}

/* --- the handle ----------------------------------------------------------------------------- */

void stream_free(struct spool_stream *stream)
{
    segment_close_newest(stream);
    ack_messages_free(atomic_load(&stream->acks));
    for (size_t i = 0; i < stream->segment_count; i++)
        free(stream->segments[i].waiting);
    free(stream->segments);
    high_free(&stream->high);
    free(stream->schema);
    free(stream->destination);
    free(stream->directory);
    free(stream);
}

void spool_stream_close(struct spool_stream *stream)
{
    if (!stream)
        return;
    stream->spool->streams[stream->id - 1] = NULL;
    stream_free(stream);
}

uint32_t spool_stream_id(const struct spool_stream *stream)
{
    return stream->id;
}

const char *spool_stream_name(const struct spool_stream *stream)
{
    return stream->name;
}

uint64_t spool_stream_rebuilt_to(const struct spool_stream *stream)
{
    return stream->rebuilt_to;
}

/* --- what it holds -------------------------------------------------------------------------- */

static uint64_t file_bytes(const struct spool_stream *stream, uint64_t number)
{
    char *path = segment_path(stream, number);
    struct stat st;
    uint64_t bytes = path && !stat(path, &st) ? (uint64_t)st.st_blocks * 512 : 0;

    free(path);
    return bytes;
}

int spool_stream_segments(struct spool_stream *stream, struct spool_segment_info **out,
                          size_t *count, struct spool_error *error)
{
    struct spool_segment_info *list = calloc(stream->segment_count + 1, sizeof(*list));
    int status = stream_take_acks(stream, error);

    if (!list)
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory to list segments");
    for (size_t i = 0; status == SPOOL_OK && i < stream->segment_count; i++) {
        struct segment *s = &stream->segments[i];
        bool newest = i + 1 == stream->segment_count;
        if (newest || !s->file_bytes)
            s->file_bytes = file_bytes(stream, s->number);
        list[i] = (struct spool_segment_info){
            .number = s->number,
            .first_sequence = s->totals.first_sequence,
            .last_sequence = s->totals.last_sequence,
            .blocks = s->totals.blocks,
            .rows = s->totals.rows,
            .stored_bytes = s->totals.bytes,
            .file_bytes = s->file_bytes,
            .acked_rows = s->acked_rows,
            .acked_blocks = s->acked_blocks,
            .oldest_ms = s->totals.oldest_ms,
            .newest = newest,
            .damaged = s->damaged,
            .missing = s->missing,
        };
        memcpy(list[i].detail, s->detail, sizeof(list[i].detail));
    }
    if (status != SPOOL_OK) {
        free(list);
        return status;
    }
    *out = list;
    *count = stream->segment_count;
    return SPOOL_OK;
}

int segment_scan_known(struct spool_stream *stream, uint64_t number,
                       const struct segment_wants *wants, struct segment *out,
                       struct spool_error *error)
{
    struct segment *segment = stream_segment(stream, number);
    struct spool_error inner = {0};
    char *path;
    int status;

    if (!segment)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "stream %s has no segment %llu",
                               stream->name, (unsigned long long)number);
    if (segment->damaged)
        return spool_error_set(error, SPOOL_E_CORRUPT, "segment %llu of stream %s is damaged: %s",
                               (unsigned long long)number, stream->name, segment->detail);
    path = segment_path(stream, number);
    if (!path)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    *out = (struct segment){.number = number};
    status = segment_scan(stream->spool, path, stream->id, false, out, wants, &inner);
    if (is_damage(status, &inner)) {
        segment_damage(segment, inner.text);
        if (number == stream_newest(stream)->number) {
            segment_close_newest(stream);
            stream->roll_due = true;
            stream->next_sequence += SEQUENCE_JUMP;
        }
        status = SPOOL_E_CORRUPT;
    }
    if (status != SPOOL_OK) {
        spool_error_set(error, status, "%s: %s", path, inner.text);
        if (error)
            error->sys_errno = inner.sys_errno;
    }
    free(path);
    return status;
}

int spool_segment_blocks(struct spool_stream *stream, uint64_t number,
                         struct spool_block_ref **refs, size_t *count, struct spool_error *error)
{
    const struct segment_wants wants = {.refs = refs};
    struct segment segment;
    int status;

    *refs = NULL;
    *count = 0;
    status = segment_scan_known(stream, number, &wants, &segment, error);
    if (status == SPOOL_OK)
        *count = (size_t)segment.totals.blocks;
    return status;
}

int spool_segment_spec_get(struct spool_stream *stream, uint64_t number, void **schema,
                           size_t *schema_size, char **destination, struct spool_error *error)
{
    uint8_t *bytes = NULL;
    const struct segment_wants wants = {
        .schema = &bytes, .schema_size = schema_size, .destination = destination};
    struct segment segment;
    int status;

    *destination = NULL;
    status = segment_scan_known(stream, number, &wants, &segment, error);
    if (status == SPOOL_OK) {
        *schema = bytes;
    } else {
        free(bytes);
        free(*destination);
        *destination = NULL;
    }
    return status;
}

void spool_stream_mark(struct spool_stream *stream, uint32_t origin, struct spool_mark *mark)
{
    const struct high *h = high_find(&stream->high, origin);

    *mark = h ? h->mark : (struct spool_mark){0};
}

size_t spool_stream_traces(struct spool_stream *stream, uint32_t origin, struct spool_trace *to)
{
    const struct high *h = high_find(&stream->high, origin);
    size_t count = 0;

    if (!h || !h->mark.known)
        return 0;
    to[count++] = (struct spool_trace){h->offset, h->mark};
    for (unsigned i = 0; i < h->earlier_count; i++)
        to[count++] = h->earlier[i];
    return count;
}

int spool_stream_high(struct spool_stream *stream, uint32_t origin, int64_t *offset)
{
    const struct high *h = high_find(&stream->high, origin);

    if (!h)
        return SPOOL_E_NOT_FOUND;
    *offset = h->offset;
    return SPOOL_OK;
}

/* --- what new segments are written under ---------------------------------------------------- */

int stream_spec_set(struct spool_stream *stream, const struct spool_segment_spec *spec)
{
    uint8_t *schema = malloc(spec->schema_size + 1);
    char *destination = strdup(spec->destination);

    if (!schema || !destination) {
        free(schema);
        free(destination);
        return SPOOL_E_NOMEM;
    }
    if (spec->schema_size)
        memcpy(schema, spec->schema, spec->schema_size);
    free(stream->schema);
    free(stream->destination);
    stream->schema = schema;
    stream->schema_size = spec->schema_size;
    stream->schema_hash = XXH3_64bits(schema, spec->schema_size);
    stream->destination = destination;
    stream->configured = true;
    return SPOOL_OK;
}

/* The spec of the newest segment that can be read; NOT_FOUND: there is none. FULL: it can't be opened for
   now. */
static int newest_spec(struct spool_stream *stream, uint64_t *number, uint8_t **schema,
                       size_t *size, char **destination, struct spool_error *error)
{
    for (size_t i = stream->segment_count; i-- > 0;) {
        struct spool_error inner = {0};
        void *bytes = NULL;
        int status;
        if (stream->segments[i].damaged)
            continue;
        *number = stream->segments[i].number;
        status = spool_segment_spec_get(stream, *number, &bytes, size, destination, &inner);
        if (status == SPOOL_E_CORRUPT)
            continue;
        *schema = bytes;
        if (status == SPOOL_E_IO && is_scarce(inner.sys_errno))
            status = SPOOL_E_FULL;
        return status == SPOOL_OK ? status : spool_error_set(error, status, "%s", inner.text);
    }
    return spool_error_set(error, SPOOL_E_NOT_FOUND, "stream %s was not configured", stream->name);
}

int spool_stream_configure(struct spool_stream *stream, const struct spool_segment_spec *spec,
                           struct spool_error *error)
{
    uint8_t *schema = NULL;
    char *destination = NULL;
    uint64_t number = 0;
    size_t size = 0;
    int status;

    if (!spec->destination || strlen(spec->destination) > 64 * KIB ||
        spec->schema_size > LIMIT_SCHEMA_BYTES || (spec->schema_size && !spec->schema))
        return spool_error_set(error, SPOOL_E_INVALID,
                               "a destination is missing, or the schema is over %llu bytes",
                               LIMIT_SCHEMA_BYTES);
    status = newest_spec(stream, &number, &schema, &size, &destination, error);
    if (status != SPOOL_OK && status != SPOOL_E_NOT_FOUND)
        return status;
    if (status == SPOOL_OK)
        stream->roll_due = number != stream_newest(stream)->number || size != spec->schema_size ||
                           (size && memcmp(schema, spec->schema, size) != 0) ||
                           strcmp(destination, spec->destination) != 0;
    free(schema);
    free(destination);
    if (stream_spec_set(stream, spec) != SPOOL_OK)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a schema");
    return SPOOL_OK;
}

int stream_spec_ready(struct spool_stream *stream, struct spool_error *error)
{
    struct spool_segment_spec spec = {0};
    uint8_t *schema = NULL;
    char *destination = NULL;
    uint64_t number = 0;
    int status;

    if (stream->configured)
        return SPOOL_OK;
    status = newest_spec(stream, &number, &schema, &spec.schema_size, &destination, error);
    if (status == SPOOL_E_NOT_FOUND)
        return spool_error_set(error, SPOOL_E_INVALID,
                               "stream %s was not configured, and has no segment to go on with",
                               stream->name);
    if (status == SPOOL_OK) {
        spec.schema = schema;
        spec.destination = destination;
        if (stream_spec_set(stream, &spec) != SPOOL_OK)
            status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a schema");
    }
    free(schema);
    free(destination);
    return status;
}

/* --- removing ------------------------------------------------------------------------------- */

static int check_removable(struct spool_stream *stream, uint64_t number, bool forsake,
                           struct spool_error *error)
{
    const struct segment *segment = stream_segment(stream, number);
    bool successor = false;

    if (!segment)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "stream %s has no segment %llu",
                               stream->name, (unsigned long long)number);
    for (const struct segment *s = segment + 1; s < stream->segments + stream->segment_count; s++)
        successor = successor || !s->damaged;
    if (!successor)
        return spool_error_set(error, SPOOL_E_INVALID,
                               "segment %llu is the newest of stream %s and holds its offsets",
                               (unsigned long long)number, stream->name);
    if (forsake && !segment->damaged)
        return spool_error_set(error, SPOOL_E_INVALID, "segment %llu of stream %s is not damaged",
                               (unsigned long long)number, stream->name);
    if (!forsake && !segment_is_acked(segment))
        return spool_error_set(error, SPOOL_E_INVALID,
                               "segment %llu of stream %s is not wholly acknowledged",
                               (unsigned long long)number, stream->name);
    return SPOOL_OK;
}

static int segment_unlink(struct spool_stream *stream, uint64_t number, bool forsake,
                          struct spool_error *error)
{
    struct forgotten *f = NULL;
    struct segment *segment;
    char *path = NULL;
    int status = check_writable(stream->spool, error), directory = -1;

    if (status == SPOOL_OK)
        status = stream_take_acks(stream, error);
    if (status == SPOOL_OK)
        status = check_removable(stream, number, forsake, error);
    if (status == SPOOL_OK)
        status = directory_open(stream->directory, &directory, error);
    if (status != SPOOL_OK)
        return status;
    path = segment_path(stream, number);
    f = malloc(sizeof(*f));
    if (!path || !f) {
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory to remove a segment");
        goto done;
    }
    FAILPOINT(FP_UNLINK_BEFORE);
    if (unlink(path) < 0 && !(forsake && errno == ENOENT)) {
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot unlink %s", path);
        goto done;
    }
    segment = stream_segment(stream, number);
    free(segment->waiting);
    memmove(segment, segment + 1,
            (size_t)(stream->segments + stream->segment_count - (segment + 1)) * sizeof(*segment));
    stream->segment_count--;
    /* Its acknowledgements may go only when the file cannot come back. */
    if (directory_sync(directory, stream->directory, error) != SPOOL_OK) {
        atomic_store(&stream->spool->broken, true);
        status = SPOOL_E_FATAL;
        if (error)
            error->status = status;
        goto done;
    }
    FAILPOINT(FP_UNLINK_AFTER);
    *f = (struct forgotten){.stream = stream->id, .segment = number};
    spool_forget(stream->spool, f);
    f = NULL;
done:
    close(directory);
    free(f);
    free(path);
    return status;
}

int spool_segment_remove(struct spool_stream *stream, uint64_t number, struct spool_error *error)
{
    return segment_unlink(stream, number, false, error);
}

int spool_segment_forsake(struct spool_stream *stream, uint64_t number, struct spool_error *error)
{
    return segment_unlink(stream, number, true, error);
}
