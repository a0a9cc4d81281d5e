/* SPDX-License-Identifier: Apache-2.0 */
/* The dead letters of a stream as a whole: their bound, those whose records are rows after all, and
   discarding them on request. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"
#include "spool/look.h"

#define LETTER_FIXED_BYTES 53 /* of a stored letter, beside its strings */
#define LETTER_KEY_BYTES   100
#define PAGE_BYTES         4096
#define DISCARD_CHUNK      4096

/* --- the bound ------------------------------------------------------------------------------ */

/* With its length before it, as a varuint. */
static uint64_t string_bytes(size_t n)
{
    uint64_t bytes = n + 1;

    while (n >>= 7)
        bytes++;
    return bytes;
}

/* What a letter counts for: the body that spool/dead.c makes of it. */
static uint64_t letter_bytes(const struct spool_dead *letter)
{
    return LETTER_FIXED_BYTES + string_bytes(letter->record_size) + string_bytes(letter->key_size) +
           string_bytes(letter->headers_size) + string_bytes(strlen(letter->reason_name)) +
           string_bytes(strlen(letter->reason)) + string_bytes(strlen(letter->column));
}

/* Leaf pages are half full at worst; a long letter has pages of its own. */
static uint64_t letter_disk_bytes(const struct spool_dead *letter)
{
    uint64_t bytes = letter_bytes(letter) + LETTER_KEY_BYTES;
    return bytes < PAGE_BYTES / 2 ? 2 * bytes
                                  : (bytes / PAGE_BYTES + 1) * PAGE_BYTES + 2 * LETTER_KEY_BYTES;
}

uint64_t dead_disk_bytes(const struct spool_dead *letters, size_t count)
{
    uint64_t bytes = 0;

    for (size_t i = 0; i < count; i++)
        bytes += letter_disk_bytes(&letters[i]);
    return bytes;
}

/* For letters of so many bytes, which find no room within the stream's bound. */
static const char *bound_advice(const struct stream *s, uint64_t bytes)
{
    return bytes > s->options->dead_letters_max_bytes
               ? "raise the bound and restart: without all others there would not be room either"
               : "replay or discard some with spoolctl dead, or raise the bound and restart";
}

int dead_put(struct stream *s, const struct spool_dead *letters, size_t count, uint64_t room_bytes,
             struct dead_stored *stored, struct spool_error *error)
{
    struct spool *spool = s->p->spool;
    const char *name = s->options->name;
    const uint64_t max = s->options->dead_letters_max_bytes;
    uint64_t inside = 0, disk = 0;
    bool no_room = false;
    size_t fit = 0;
    int status;

    *stored = (struct dead_stored){0};
    status = spool_dead_count(spool, name, &stored->letters, &stored->bytes, error);
    if (status == SPOOL_OK)
        status = spool_dead_room(spool, &inside, error);
    for (uint64_t bytes = stored->bytes; fit < count; fit++) {
        bytes += letter_bytes(&letters[fit]);
        disk += letter_disk_bytes(&letters[fit]);
        no_room = disk > inside && disk - inside > room_bytes;
        if (no_room || (max && bytes > max))
            break;
        stored->grown_bytes = disk > inside ? disk - inside : 0;
    }
    if (status == SPOOL_OK)
        status = spool_dead_put(spool, letters, fit, NULL, error);
    if (status != SPOOL_OK)
        return status;
    stored->put = fit;
    status = spool_dead_count(spool, name, &stored->letters, &stored->bytes, error);
    if (status != SPOOL_OK || fit == count)
        return status;
    if (no_room)
        return spool_error_set(error, SPOOL_E_FULL, "the spool has reached its bound");
    return spool_error_set(error, SPOOL_E_LIMIT,
                           "the dead letters hold %llu bytes, the next has %llu, "
                           "dead_letters.max_bytes is %llu: %s",
                           (unsigned long long)stored->bytes,
                           (unsigned long long)letter_bytes(&letters[fit]), (unsigned long long)max,
                           bound_advice(s, letter_bytes(&letters[fit])));
}

struct clear {
    const struct pending_block *at;
    const struct spool_dead *letters; /* of the blocks' records, in order */
    size_t letter_count;
    uint32_t origin;
    bool earlier; /* of another epoch: a letter that is put now takes its place */
    int64_t to;   /* of the last block: those behind it are left for what is read next */
    int64_t last;
    struct spool_dead_change *changes;
    size_t count, cap;
};

static bool is_row(const struct pending_block *pb, int64_t offset)
{
    size_t low = 0, high = pb->block.rows;

    if (!pb->offsets)
        return pb->block.rows && offset >= pb->block.first_offset &&
               offset <= pb->block.last_offset;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (pb->offsets[middle] < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < pb->block.rows && pb->offsets[low] == offset;
}

static bool is_letter(const struct clear *c, int64_t offset)
{
    size_t low = 0, high = c->letter_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c->letters[middle].offset < offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low < c->letter_count && c->letters[low].offset == offset;
}

static int clear_each(void *arg, const struct spool_dead *letter)
{
    struct clear *c = arg;

    if (letter->origin != c->origin)
        return 1;
    if (letter->offset > c->to) {
        c->last = INT64_MAX;
        return 1;
    }
    if (letter->offset > c->last)
        c->last = letter->offset;
    while (c->at && c->at->block.last_offset < letter->offset)
        c->at = c->at->next;
    if (!(c->at && is_row(c->at, letter->offset)) && !(c->earlier && is_letter(c, letter->offset)))
        return 0;
    if (c->count == c->cap) {
        size_t cap = c->cap ? c->cap * 2 : 64;
        struct spool_dead_change *grown = realloc(c->changes, cap * sizeof(*grown));
        if (!grown)
            return SPOOL_E_NOMEM;
        c->changes = grown;
        c->cap = cap;
    }
    c->changes[c->count++] = (struct spool_dead_change){.kind = SPOOL_DEAD_REMOVE,
                                                        .place = {letter->origin, letter->offset}};
    return 0;
}

/*
 * Those of epochs that another consumer's commit ended: their records are read again. Where the letter's
 * offset was durable before, only if the log is known to be the same, since what was read of one that is
 * gone has nothing but its letters.
 */
static int clear_earlier(struct stream *s, struct clear *c, const struct pending_block *first,
                         bool same_log, struct spool_error *error)
{
    const struct origin *o = first->origin;
    int status = SPOOL_OK;

    c->earlier = true;
    for (uint32_t epoch = o->epoch; epoch > 1 && status >= 0;) {
        int64_t high = -1, up_to = -1, from = first->block.first_offset;

        status = spool_origin(s->p->spool, o->name, --epoch, &c->origin, NULL, error);
        if (status == SPOOL_OK)
            status = origin_discard_noted(s, c->origin, &up_to, error);
        if (status != SPOOL_OK || up_to != INT64_MAX)
            break;
        if (!same_log && spool_stream_high(s->spool, c->origin, &high) == SPOOL_OK && high >= from)
            from = high + 1;
        c->at = first;
        status = spool_dead_each_whole_from(s->p->spool, s->options->name,
                                            (struct spool_dead_place){c->origin, from}, clear_each,
                                            c, error);
    }
    return status;
}

int dead_clear(struct stream *s, const struct pending_block *first,
               const struct spool_dead *letters, size_t letter_count, bool same_log, int64_t *last,
               size_t *removed, struct spool_error *error)
{
    const char *name = s->options->name;
    struct clear c = {.at = first,
                      .letters = letters,
                      .letter_count = letter_count,
                      .origin = first->block.origin,
                      .last = -1};
    const struct spool_dead_place from = {c.origin, first->block.first_offset};
    const bool refill = first->block.flags & SPOOL_BLOCK_REFILL;
    int status;

    for (const struct pending_block *pb = first; pb; pb = pb->next)
        c.to = pb->block.last_offset;
    status = spool_dead_each_whole_from(s->p->spool, name, from, clear_each, &c, error);
    if (status >= 0 && !refill)
        status = clear_earlier(s, &c, first, same_log, error);
    *removed = 0;
    *last = c.last;
    if (status == SPOOL_E_NOMEM)
        spool_error_set(error, status, "out of memory");
    if (status >= 0)
        status = spool_dead_change(s->p->spool, name, c.changes, c.count, removed, error);
    free(c.changes);
    return status;
}

int dead_put_all(struct stream *s, const struct spool_dead *letters, size_t count,
                 struct dead_stored *stored, struct spool_error *error)
{
    struct spool *spool = s->p->spool;
    struct spool_error why;
    uint64_t bytes = 0;
    int status =
        spool_dead_put_all(spool, letters, count, s->options->dead_letters_max_bytes, NULL, error);

    *stored = (struct dead_stored){0};
    if (status == SPOOL_E_LIMIT) {
        why = *error;
        for (size_t i = 0; i < count; i++)
            bytes += letter_bytes(&letters[i]);
        return spool_error_set(error, status, "%s: %s", why.text, bound_advice(s, bytes));
    }
    if (status != SPOOL_OK)
        return status;
    stored->put = count;
    stored->grown_bytes = dead_disk_bytes(letters, count);
    dead_stored_count(s, stored);
    return SPOOL_OK;
}

void dead_stored_count(struct stream *s, struct dead_stored *stored)
{
    stored->counted = spool_dead_count(s->p->spool, s->options->name, &stored->letters,
                                       &stored->bytes, NULL) == SPOOL_OK;
}

void dead_stored_done(struct stream *s, const struct dead_stored *stored)
{
    if (stored->put && stored->counted)
        dead_counted(s, stored->letters, stored->bytes, stored->grown_bytes);
    else if (stored->put)
        dead_counted(s, s->dead_letters + stored->put, s->dead_bytes, stored->grown_bytes);
}

void dead_counted(struct stream *s, uint64_t letters, uint64_t bytes, uint64_t grown_bytes)
{
    bool fewer = bytes < s->dead_bytes;

    s->p->grown_bytes += grown_bytes;
    if (letters > s->dead_letters)
        dead_out_added(s, letters - s->dead_letters);
    s->dead_letters = letters;
    s->dead_bytes = bytes;
    if (!fewer)
        return;
    s->dead_retry_at_ms = 0; /* what found no room may fit now */
    for (struct batch *b = s->batches; b; b = b->next)
        if (b->unburied)
            b->retry_at_ms = 0;
    stream_unhold(s, HOLD_DEAD_FULL);
}

/* --- discarding ----------------------------------------------------------------------------- */

struct discard {
    struct job job;
    struct stream *stream; /* NULL: the configuration has none of that name */
    char name[SPOOL_STREAM_NAME_MAX + 1];
    struct dead_filter filter;
    char *origin, *reason; /* what the filter points to */
    bool dry;
    struct spool_dead_place next;
    struct spool_dead_change *changes;
    size_t count;
    bool at_end;
    uint64_t letters, bytes; /* selected so far */
    uint64_t left, left_bytes;
    int status;
    struct spool_error error;
    void (*done)(void *arg, int status, uint64_t letters, uint64_t bytes,
                 const struct spool_error *error);
    void *arg;
};

static int discard_each(void *arg, const struct spool_dead *letter)
{
    struct discard *d = arg;

    if (!dead_filter_takes(&d->filter, letter))
        return 0;
    if (d->count == DISCARD_CHUNK) {
        d->next = (struct spool_dead_place){letter->origin, letter->offset};
        d->at_end = false;
        return 1;
    }
    d->changes[d->count++] = (struct spool_dead_change){.kind = SPOOL_DEAD_REMOVE,
                                                        .place = {letter->origin, letter->offset}};
    d->letters++;
    d->bytes += letter->record_size;
    return 0;
}

static void discard_work(struct job *job)
{
    struct discard *d = (struct discard *)job;
    struct spool *spool = job->pipeline->spool;
    const char *name = d->name;

    d->status = spool_dead_count(spool, name, &d->left, &d->left_bytes, &d->error);
    if (d->status == SPOOL_OK && !d->stream && !d->left)
        d->status = spool_error_set(&d->error, SPOOL_E_NOT_FOUND,
                                    "there is no stream \"%s\", and no dead letter of one", name);
    if (d->status != SPOOL_OK)
        return;
    do {
        d->count = 0;
        d->at_end = true;
        d->status = spool_dead_each_from(spool, name, d->next, discard_each, d, &d->error);
        if (d->status >= 0 && !d->dry)
            d->status = spool_dead_change(spool, name, d->changes, d->count, NULL, &d->error);
    } while (d->status >= 0 && !d->at_end);
    if (d->status >= 0)
        d->status = spool_dead_count(spool, name, &d->left, &d->left_bytes, &d->error);
}

static void discard_free(struct discard *d)
{
    free(d->changes);
    free(d->origin);
    free(d->reason);
    free(d);
}

static void discard_done(struct job *job)
{
    struct discard *d = (struct discard *)job;
    struct pipeline *p = job->pipeline;
    struct stream *s = d->stream;

    if (d->status == SPOOL_E_FATAL)
        pipeline_fatal(p, "dead.mdb: %s", d->error.text);
    if (d->status == SPOOL_OK) {
        if (s)
            dead_counted(s, d->left, d->left_bytes, 0);
        if (!d->dry && d->letters)
            log_event(LOG_WARN, "dead.discarded", "stream", d->name, "letters", log_u64(d->letters),
                      "bytes", log_u64(d->bytes), "reason", "an operator asked for it", NULL);
    }
    d->done(d->arg, d->status, d->letters, d->bytes, &d->error);
    discard_free(d);
    pipeline_advance(p);
}

int pipeline_dead_discard(struct pipeline *p, const char *name, const struct dead_filter *filter,
                          bool dry,
                          void (*done)(void *arg, int status, uint64_t letters, uint64_t bytes,
                                       const struct spool_error *error),
                          void *arg)
{
    struct stream *s = pipeline_stream(p, name);
    struct lane *lanes[2] = {&p->dead_lane, &p->meta_lane};
    struct discard *d;

    if (strlen(name) > SPOOL_STREAM_NAME_MAX)
        return SPOOL_E_NOT_FOUND;
    if (p->closing || p->fatal)
        return SPOOL_E_CANCELLED;
    if (s && s->replay)
        return SPOOL_E_EXISTS;
    d = calloc(1, sizeof(*d));
    if (!d)
        return SPOOL_E_NOMEM;
    d->stream = s;
    snprintf(d->name, sizeof(d->name), "%s", name);
    d->filter = *filter;
    d->origin = filter->origin ? strdup(filter->origin) : NULL;
    d->reason = filter->reason ? strdup(filter->reason) : NULL;
    d->filter.origin = d->origin;
    d->filter.reason = d->reason;
    d->changes = calloc(DISCARD_CHUNK, sizeof(*d->changes));
    d->dry = dry;
    d->next = (struct spool_dead_place){0, INT64_MIN};
    d->done = done;
    d->arg = arg;
    d->job.work = discard_work;
    d->job.done = discard_done;
    if ((filter->origin && !d->origin) || (filter->reason && !d->reason) || !d->changes ||
        job_start(p, &d->job, lanes, 2) != SPOOL_OK) {
        discard_free(d);
        return SPOOL_E_NOMEM;
    }
    return SPOOL_OK;
}
