/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream: its segments, oldest first, and what is known of each. What is acknowledged comes from
 * meta when the stream is opened and by messages from the meta lane afterwards, so that no lane
 * reads another lane's memory.
 */
#include <assert.h>
#include <dirent.h>
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

static void waiting_set(struct segment *segment, uint32_t *rows)
{
    for (uint64_t i = 0; i < segment->totals.blocks; i++)
        if (!rows[i])
            rows[i] = WAITING_EMPTY;
    segment->waiting = rows;
    segment->waiting_cap = (size_t)segment->totals.blocks;
}

static void segment_damage(struct segment *segment, const char *why)
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
    if (status == SPOOL_E_NOMEM)
        return spool_error_set(error, status, "no memory to read a segment");
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

/* At opening: what meta knows of a segment. */
static int load_acks(struct spool_stream *stream, struct segment *segment,
                     struct spool_error *error)
{
    struct spool_range *ranges = NULL;
    size_t count = 0;
    int status = spool_acked(stream->spool, stream->id, segment->number, &ranges, &count, error);

    for (size_t i = 0; status == SPOOL_OK && i < count; i++)
        segment_ack(segment, ranges[i].sequence, ranges[i].rows, !ranges[i].rows);
    free(ranges);
    return status;
}

/* --- opening -------------------------------------------------------------------------------- */

static int compare_u64(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return x < y ? -1 : x > y;
}

/* 0 for a name that is not a segment's. */
static uint64_t segment_number(const char *name)
{
    uint64_t n = 0;
    size_t digits = strspn(name, "0123456789");

    if (digits < 12 || digits > 19 || strcmp(name + digits, ".seg") != 0)
        return 0;
    for (size_t i = 0; i < digits; i++)
        n = n * 10 + (uint64_t)(name[i] - '0');
    return n;
}

int list_segments(const char *directory, uint64_t **numbers, size_t *count,
                  struct spool_error *error)
{
    DIR *dir = opendir(directory);
    struct dirent *entry;
    uint64_t *list = NULL;
    size_t n = 0;

    *numbers = NULL;
    *count = 0;
    if (!dir && errno == ENOENT)
        return SPOOL_OK;
    if (!dir)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot list %s", directory);
    while ((entry = readdir(dir))) {
        uint64_t number = segment_number(entry->d_name), *more;
        if (!number)
            continue;
        more = realloc(list, (n + 1) * sizeof(*list));
        if (!more) {
            free(list);
            closedir(dir);
            return spool_error_set(error, SPOOL_E_NOMEM, "no memory to list %s", directory);
        }
        list = more;
        list[n++] = number;
    }
    closedir(dir);
    if (n)
        qsort(list, n, sizeof(*list), compare_u64);
    *numbers = list;
    *count = n;
    return SPOOL_OK;
}

/* Files whose creation did not come to its end: they never carried a promise. */
static void remove_unfinished(const char *directory)
{
    DIR *dir = opendir(directory);
    struct dirent *entry;

    while (dir && (entry = readdir(dir))) {
        size_t n = strlen(entry->d_name);
        if (n > 8 && !strcmp(entry->d_name + n - 8, ".seg.new"))
            unlinkat(dirfd(dir), entry->d_name, 0);
    }
    if (dir)
        closedir(dir);
}

static bool contains(const uint64_t *list, size_t count, uint64_t n)
{
    return count && bsearch(&n, list, count, sizeof(n), compare_u64);
}

/* What a damaged segment still shows goes into `high` and the sequences, so that neither repeats. */
static int salvage(struct spool_stream *stream, uint64_t number, const char *path, uint64_t *known)
{
    struct segment lost = {.number = number};
    const struct segment_wants wants = {.high = &stream->high, .salvaged_sequence = known};
    int status = segment_scan(stream->spool, path, stream->id, true, &lost, &wants, NULL);

    if (lost.base_sequence > *known)
        *known = lost.base_sequence;
    return status == SPOOL_E_NOMEM ? status : SPOOL_OK;
}

static int open_segment(struct spool_stream *stream, uint64_t number, bool newest, bool acked,
                        uint64_t *known, struct spool_error *error)
{
    struct segment *segment = stream_add_segment(stream);
    char *path = segment_path(stream, number);
    struct high_table high = {0}, named = {0};
    uint32_t *rows = NULL;
    const struct segment_wants wants = {
        .rows = acked ? &rows : NULL, .high = &high, .origin_ids = newest ? &named : NULL};
    struct spool_error inner = {0};
    int status = SPOOL_E_NOMEM;

    if (!segment || !path) {
        spool_error_set(error, status, "no memory for a segment");
        goto done;
    }
    *segment = (struct segment){.number = number};
    status = segment_scan(stream->spool, path, stream->id, false, segment, &wants, &inner);
    if (status == SPOOL_E_NEWER || status == SPOOL_E_NOMEM ||
        (status == SPOOL_E_IO && (inner.sys_errno == EACCES || inner.sys_errno == EMFILE ||
                                  inner.sys_errno == ENFILE || inner.sys_errno == ENOMEM))) {
        spool_error_set(error, status, "%s: %s", path, inner.text);
        goto done;
    }
    if (status != SPOOL_OK) {
        memset(&segment->totals, 0, sizeof(segment->totals));
        segment_damage(segment, inner.text);
        status = salvage(stream, number, path, known);
    } else {
        uint64_t last =
            segment->totals.blocks ? segment->totals.last_sequence : segment->base_sequence - 1;
        if (last > *known)
            *known = last;
    }
    for (size_t i = 0; status == SPOOL_OK && !segment->damaged && i < high.cap; i++) {
        struct high *h = NULL;
        if (!high.slots[i].origin)
            continue;
        h = high_add(&stream->high, high.slots[i].origin, high.slots[i].offset);
        if (!h)
            status = spool_error_set(error, SPOOL_E_NOMEM, "no memory for a segment");
        else
            h->named = high_find(&named, h->origin) != NULL;
    }
    if (status == SPOOL_OK)
        stream->segment_count++;
    if (status == SPOOL_OK && rows && !segment->damaged) {
        waiting_set(segment, rows);
        rows = NULL;
        status = load_acks(stream, segment, error);
    }
done:
    high_free(&high);
    high_free(&named);
    free(rows);
    free(path);
    return status;
}

/* Acknowledgements of segments that were removed before the commit that would have dropped them. */
static int forget_removed(struct spool_stream *stream, const uint64_t *acked, size_t acked_count,
                          struct spool_error *error)
{
    for (size_t i = 0; i < acked_count; i++) {
        struct forgotten *f;
        if (stream_segment(stream, acked[i]) || stream->spool->read_only)
            continue;
        f = malloc(sizeof(*f));
        if (!f)
            return spool_error_set(error, SPOOL_E_NOMEM, "no memory to open a stream");
        *f = (struct forgotten){.stream = stream->id, .segment = acked[i]};
        spool_forget(stream->spool, f);
    }
    return SPOOL_OK;
}

static int open_segments(struct spool_stream *stream, struct spool_error *error)
{
    uint64_t *numbers = NULL, *acked = NULL, known = 0;
    size_t count = 0, acked_count = 0;
    const struct segment *newest;
    int status = list_segments(stream->directory, &numbers, &count, error);

    if (status == SPOOL_OK)
        status = meta_acked_segments(stream->spool, stream->id, &acked, &acked_count, error);
    for (size_t i = 0; status == SPOOL_OK && i < count; i++)
        status = open_segment(stream, numbers[i], i + 1 == count,
                              contains(acked, acked_count, numbers[i]), &known, error);
    if (status == SPOOL_OK)
        status = forget_removed(stream, acked, acked_count, error);
    newest = stream_newest(stream);
    stream->next_number = newest ? newest->number + 1 : 1;
    stream->next_sequence = known + 1;
    if (newest && newest->damaged) {
        stream->roll_due = true;
        stream->next_sequence = known + SEQUENCE_JUMP;
        for (size_t i = 0; i < stream->high.cap; i++)
            stream->high.slots[i].named = false;
    }
    free(numbers);
    free(acked);
    return status;
}

static int make_directory(struct spool_stream *stream, struct spool_error *error)
{
    char *parent;
    int status;

    if (mkdir(stream->directory, DIRECTORY_MODE) < 0) {
        if (errno == EEXIST)
            return SPOOL_OK;
        return spool_error_set_errno(error, errno == ENOSPC ? SPOOL_E_FULL : SPOOL_E_IO, errno,
                                     "cannot create %s", stream->directory);
    }
    parent = path_join(stream->spool->path, "streams");
    if (!parent)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    status = fsync_directory(parent, error);
    free(parent);
    return status;
}

int spool_stream_open(struct spool *spool, const char *name, struct spool_stream **out,
                      struct spool_error *error)
{
    struct spool_stream *stream = NULL;
    uint32_t id = 0;
    int status;

    *out = NULL;
    if (!stream_name_valid(name))
        return spool_error_set(error, SPOOL_E_INVALID,
                               "a stream's name has 1 to 64 of a-z, 0-9, _ and -");
    if (!spool->read_only) {
        status = check_writable(spool, error);
        if (status != SPOOL_OK)
            return status;
    }
    status = meta_stream_id(spool, name, &id, error);
    if (status != SPOOL_OK)
        return status;
    if (spool->streams[id - 1])
        return spool_error_set(error, SPOOL_E_EXISTS, "stream %s is open already", name);
    stream = calloc(1, sizeof(*stream));
    if (!stream || asprintf(&stream->directory, "%s/streams/%s", spool->path, name) < 0) {
        free(stream);
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a stream");
    }
    stream->spool = spool;
    stream->id = id;
    snprintf(stream->name, sizeof(stream->name), "%s", name);
    if (!spool->read_only) {
        status = make_directory(stream, error);
        if (status == SPOOL_OK)
            remove_unfinished(stream->directory);
    }
    if (status == SPOOL_OK)
        status = open_segments(stream, error);
    if (status != SPOOL_OK) {
        stream_free(stream);
        return status;
    }
    spool->streams[id - 1] = stream;
    *out = stream;
    return SPOOL_OK;
}

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

/* --- what it holds -------------------------------------------------------------------------- */

int spool_stream_segments(struct spool_stream *stream, struct spool_segment_info **out,
                          size_t *count, struct spool_error *error)
{
    struct spool_segment_info *list = calloc(stream->segment_count + 1, sizeof(*list));
    int status = stream_take_acks(stream, error);

    if (!list)
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory to list segments");
    for (size_t i = 0; status == SPOOL_OK && i < stream->segment_count; i++) {
        const struct segment *s = &stream->segments[i];
        char *path = segment_path(stream, s->number);
        struct stat st;
        if (!path) {
            status = spool_error_set(error, SPOOL_E_NOMEM, "no memory to list segments");
            break;
        }
        list[i] = (struct spool_segment_info){
            .number = s->number,
            .first_sequence = s->totals.first_sequence,
            .last_sequence = s->totals.last_sequence,
            .blocks = s->totals.blocks,
            .rows = s->totals.rows,
            .stored_bytes = s->totals.bytes,
            .file_bytes = stat(path, &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512,
            .acked_rows = s->acked_rows,
            .acked_blocks = s->acked_blocks,
            .oldest_ms = s->totals.oldest_ms,
            .newest = i + 1 == stream->segment_count,
            .damaged = s->damaged,
        };
        memcpy(list[i].detail, s->detail, sizeof(list[i].detail));
        free(path);
    }
    if (status != SPOOL_OK) {
        free(list);
        return status;
    }
    *out = list;
    *count = stream->segment_count;
    return SPOOL_OK;
}

/* Reads one segment the stream has; a fault found now marks it damaged. */
static int scan_known(struct spool_stream *stream, uint64_t number,
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
    if (status == SPOOL_E_CORRUPT || status == SPOOL_E_NOT_FOUND) {
        segment_damage(segment, inner.text);
        if (number == stream_newest(stream)->number) {
            segment_close_newest(stream);
            stream->roll_due = true;
            stream->next_sequence += SEQUENCE_JUMP;
        }
        status = SPOOL_E_CORRUPT;
    }
    if (status != SPOOL_OK)
        spool_error_set(error, status, "%s: %s", path, inner.text);
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
    status = scan_known(stream, number, &wants, &segment, error);
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
    status = scan_known(stream, number, &wants, &segment, error);
    if (status == SPOOL_OK) {
        *schema = bytes;
    } else {
        free(bytes);
        free(*destination);
        *destination = NULL;
    }
    return status;
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

/* The spec of the newest segment that can be read; NOT_FOUND: there is none. */
static int newest_spec(struct spool_stream *stream, uint64_t *number, uint8_t **schema,
                       size_t *size, char **destination, struct spool_error *error)
{
    for (size_t i = stream->segment_count; i-- > 0;) {
        void *bytes = NULL;
        int status;
        if (stream->segments[i].damaged)
            continue;
        *number = stream->segments[i].number;
        status = spool_segment_spec_get(stream, *number, &bytes, size, destination, error);
        if (status == SPOOL_E_CORRUPT)
            continue;
        *schema = bytes;
        return status;
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

static int check_removable(struct spool_stream *stream, uint64_t number, struct spool_error *error)
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
    if (!segment_is_acked(segment))
        return spool_error_set(error, SPOOL_E_INVALID,
                               "segment %llu of stream %s is not wholly acknowledged",
                               (unsigned long long)number, stream->name);
    return SPOOL_OK;
}

int spool_segment_remove(struct spool_stream *stream, uint64_t number, struct spool_error *error)
{
    struct forgotten *f = NULL;
    struct segment *segment;
    char *path = NULL;
    int status = check_writable(stream->spool, error);

    if (status == SPOOL_OK)
        status = stream_take_acks(stream, error);
    if (status == SPOOL_OK)
        status = check_removable(stream, number, error);
    if (status != SPOOL_OK)
        return status;
    path = segment_path(stream, number);
    f = malloc(sizeof(*f));
    if (!path || !f) {
        status = spool_error_set(error, SPOOL_E_NOMEM, "no memory to remove a segment");
        goto done;
    }
    FAILPOINT(FP_UNLINK_BEFORE);
    if (unlink(path) < 0) {
        status = spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot unlink %s", path);
        goto done;
    }
    segment = stream_segment(stream, number);
    free(segment->waiting);
    memmove(segment, segment + 1,
            (size_t)(stream->segments + stream->segment_count - (segment + 1)) * sizeof(*segment));
    stream->segment_count--;
    /* Its acknowledgements may go only when the file cannot come back. */
    if (fsync_directory(stream->directory, error) != SPOOL_OK) {
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
    free(f);
    free(path);
    return status;
}
