/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening a stream: finding its segments, checking each, and learning from them and from meta what
 * was promised before. Nothing is repaired in place but the number of a meta page (tree_mend): what is
 * damaged is flagged and stepped over.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "spool/spool_int.h"

int compare_u64(const void *a, const void *b)
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

struct dirent *next_entry(DIR *dir, int *failed)
{
    struct dirent *entry;

    errno = 0;
    entry = readdir(dir);
    *failed = entry ? 0 : errno;
    return entry;
}

int list_segments(const char *directory, uint64_t **numbers, size_t *count,
                  struct spool_error *error)
{
    DIR *dir = opendir(directory);
    struct dirent *entry;
    uint64_t *list = NULL;
    size_t n = 0;
    int failed = 0;

    *numbers = NULL;
    *count = 0;
    if (!dir && errno == ENOENT)
        return SPOOL_OK;
    if (!dir)
        return spool_error_set_errno(error, SPOOL_E_IO, errno, "cannot list %s", directory);
    while ((entry = next_entry(dir, &failed))) {
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
    if (failed) { /* a segment that was not seen would be written over */
        free(list);
        return spool_error_set_errno(error, SPOOL_E_IO, failed, "cannot list %s", directory);
    }
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

bool contains_u64(const uint64_t *ascending, size_t count, uint64_t n)
{
    return count && bsearch(&n, ascending, count, sizeof(n), compare_u64);
}

/* What a damaged segment still shows goes into `high` and the sequences, so that neither repeats;
   unless it is a file from elsewhere, whose offsets are those of other origins. */
static int salvage(struct spool_stream *stream, uint64_t number, const char *path, uint64_t *known)
{
    struct segment lost = {.number = number};
    struct high_table high = {0};
    uint64_t sequence = 0;
    const struct segment_wants wants = {.high = &high, .salvaged_sequence = &sequence};
    int status = segment_scan(stream->spool, path, stream->id, true, &lost, &wants, NULL);

    if (lost.base_sequence > sequence)
        sequence = lost.base_sequence;
    if (!lost.foreign && sequence > *known)
        *known = sequence;
    if (!lost.foreign && status != SPOOL_E_NOMEM)
        status = high_copy(&high, &stream->high);
    high_free(&high);
    return status == SPOOL_E_NOMEM ? status : SPOOL_OK;
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
    /* The others were complete before the newest was made. */
    status = newest && !stream->spool->read_only ? fsync_file(path, error) : SPOOL_OK;
    if (status != SPOOL_OK)
        goto done;
    if (!stream->spool->read_only) /* what it can't read may be the last commit: damage too */
        status = tree_mend(path, NULL, &inner);
    if (status == SPOOL_OK)
        status = segment_scan(stream->spool, path, stream->id, false, segment, &wants, &inner);
    if (status != SPOOL_OK && !is_damage(status, &inner)) {
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
        h = high_put(&stream->high, &high.slots[i]);
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

/* A segment that meta knows and that is not there: as one of which nothing can be read. */
static int add_missing(struct spool_stream *stream, uint64_t number, struct spool_error *error)
{
    struct segment *segment = stream_add_segment(stream);

    if (!segment)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a segment");
    *segment = (struct segment){.number = number, .missing = true};
    segment_damage(segment, "the file is missing");
    stream->segment_count++;
    return SPOOL_OK;
}

/* Those on disk and those that should be there, in order. */
static int open_each(struct spool_stream *stream, const uint64_t *files, size_t file_count,
                     const uint64_t *listed, size_t listed_count, uint64_t *known,
                     struct spool_error *error)
{
    uint64_t *acked = NULL;
    size_t acked_count = 0, i = 0, k = 0;
    int status = meta_acked_segments(stream->spool, stream->id, &acked, &acked_count, error);

    while (status == SPOOL_OK && (i < file_count || k < listed_count)) {
        if (k < listed_count && (i == file_count || listed[k] < files[i])) {
            status = add_missing(stream, listed[k++], error);
            continue;
        }
        k += k < listed_count && listed[k] == files[i];
        status = open_segment(stream, files[i], i + 1 == file_count && k == listed_count,
                              contains_u64(acked, acked_count, files[i]), known, error);
        i++;
    }
    if (status == SPOOL_OK)
        status = forget_removed(stream, acked, acked_count, error);
    free(acked);
    return status;
}

static int open_segments(struct spool_stream *stream, struct spool_error *error)
{
    uint64_t *files = NULL, *listed = NULL, known = 0;
    size_t file_count = 0, listed_count = 0;
    const struct segment *newest;
    int status = list_segments(stream->directory, &files, &file_count, error);

    if (status == SPOOL_OK)
        status = listing_read(stream->spool, stream->id, &listed, &listed_count, error);
    if (status == SPOOL_OK)
        status = open_each(stream, files, file_count, listed, listed_count, &known, error);
    if (status == SPOOL_OK)
        status = rebuilt_read(stream->spool, stream->id, &stream->rebuilt_to, error);
    if (status == SPOOL_OK)
        status = listing_complete(stream, listed, listed_count, error);
    newest = stream_newest(stream);
    stream->next_number = newest ? newest->number + 1 : 1;
    stream->next_sequence = known + 1;
    if (newest && newest->damaged) {
        stream->roll_due = true;
        stream->next_sequence = known + SEQUENCE_JUMP;
        for (size_t i = 0; i < stream->high.cap; i++)
            stream->high.slots[i].named = false;
    }
    free(files);
    free(listed);
    return status;
}

/*
 * The directory and what was made in it, durably. Also where it is there already: a process that
 * was killed between making a name and flushing it leaves one that a power cut still takes away.
 */
static int make_directory(struct spool_stream *stream, struct spool_error *error)
{
    char *parent;
    int status;

    if (mkdir(stream->directory, DIRECTORY_MODE) < 0 && errno != EEXIST)
        return spool_error_set_errno(error, is_no_room(errno) ? SPOOL_E_FULL : SPOOL_E_IO, errno,
                                     "cannot create %s", stream->directory);
    remove_unfinished(stream->directory);
    parent = path_join(stream->spool->path, "streams");
    if (!parent)
        return spool_error_set(error, SPOOL_E_NOMEM, "no memory for a path");
    status = fsync_directory(parent, error);
    if (status == SPOOL_OK)
        status = fsync_directory(stream->directory, error);
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
    if (!spool->read_only)
        status = make_directory(stream, error);
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
