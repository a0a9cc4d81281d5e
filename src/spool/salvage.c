/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is still to be had of a damaged segment, and what it held beside that.
 *
 * Index entries are records with checksums, and a block is checked against its entry and its own
 * checksum when it is read: so whatever entry can still be read leads to its block, or to an error.
 * What is missing follows from the sequences, which run on by one, and, as offsets, from `high` of
 * the segments before and behind, since offsets of an origin only grow.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "spool/spool_int.h"

void spool_salvage_free(struct spool_salvage *salvage)
{
    free(salvage->refs);
    free(salvage->schema);
    free(salvage->destination);
    free(salvage->row_refs);
    free(salvage->row_segments);
    free(salvage->lost);
    memset(salvage, 0, sizeof(*salvage));
}

/* The readable entries of one damaged segment, and its schema where that is whole. */
static int read_damaged(struct spool_stream *stream, uint64_t number, struct spool_salvage *out,
                        struct spool_error *why)
{
    struct segment again = {.number = number};
    uint8_t *schema = NULL;
    const struct segment_wants wants = {.refs = &out->refs,
                                        .ref_count = &out->count,
                                        .schema = &schema,
                                        .schema_size = &out->schema_size,
                                        .destination = &out->destination};
    char *path = segment_path(stream, number);
    int status = path ? segment_scan(stream->spool, path, stream->id, true, &again, &wants, why)
                      : SPOOL_E_NOMEM;

    free(path);
    out->schema = schema;
    if (!out->schema || !out->destination || !out->refs) {
        spool_salvage_free(out); /* rows of columns nobody knows are of no use */
        return is_out_of_reach(status, why) ? status : SPOOL_OK;
    }
    return SPOOL_OK;
}

/* --- what is missing ------------------------------------------------------------------------ */

struct missing {
    struct spool_stream *stream;
    struct spool_block_ref *refs; /* of all damaged segments between two intact ones */
    size_t count;
    uint64_t first_sequence, last_sequence; /* between the intact ones; last 0: not known */
    struct high_table before, after;        /* highest offsets held before, and before the next */
    struct spool_lost *lost;
    size_t lost_count, lost_cap;
    size_t begin, end;      /* the damaged ones, by their places in the list */
    struct spool_error why; /* of a file that can't be read */
};

/* `high` as it was before the intact segment's own blocks. */
static int high_before(struct missing *m, uint64_t number)
{
    struct spool_stream *stream = m->stream;
    struct high_table *high = &m->after;
    struct segment segment = {.number = number};
    struct spool_block_ref *refs = NULL;
    const struct segment_wants wants = {.high = high, .refs = &refs};
    int status = segment_scan_known(stream, number, &wants, &segment, &m->why);

    for (uint64_t i = segment.totals.blocks; status == SPOOL_OK && i-- > 0;) {
        struct high *h = high_find(high, refs[i].origin);
        if (h && !(refs[i].flags & SPOOL_BLOCK_REFILL))
            h->offset = refs[i].first_offset - 1;
    }
    free(refs);
    return status;
}

static int high_of_segment(struct missing *m, uint64_t number)
{
    const struct segment_wants wants = {.high = &m->before};
    struct segment segment = {.number = number};

    return segment_scan_known(m->stream, number, &wants, &segment, &m->why);
}

int high_copy(const struct high_table *from, struct high_table *to)
{
    for (size_t i = 0; i < from->cap; i++)
        if (from->slots[i].origin && !high_put(to, &from->slots[i]))
            return SPOOL_E_NOMEM;
    return SPOOL_OK;
}

/* Whether a sequence between the refs at a and b is missing; -1 and count: the ends. */
static bool is_broken(const struct missing *m, ptrdiff_t a, ptrdiff_t b)
{
    bool head = a < 0, tail = b == (ptrdiff_t)m->count;
    uint64_t from = head ? m->first_sequence : m->refs[a].sequence + 1;
    uint64_t to = tail ? m->last_sequence + 1 : m->refs[b].sequence;

    if ((head && !m->first_sequence) || (tail && !m->last_sequence))
        return true;
    return to - from != (uint64_t)(b - a - 1);
}

static int lost_add(struct missing *m, uint32_t origin, int64_t first, int64_t last)
{
    if (first > last)
        return SPOOL_OK;
    if (m->lost_count == m->lost_cap) {
        size_t cap = m->lost_cap ? m->lost_cap * 2 : 16;
        struct spool_lost *more = realloc(m->lost, cap * sizeof(*more));
        if (!more)
            return SPOOL_E_NOMEM;
        m->lost = more;
        m->lost_cap = cap;
    }
    m->lost[m->lost_count++] = (struct spool_lost){origin, first, last};
    return SPOOL_OK;
}

static int origin_lost(struct missing *m, uint32_t origin, int64_t last)
{
    const struct high *before = high_find(&m->before, origin);
    int64_t next = before ? before->offset + 1 : INT64_MIN;
    ptrdiff_t known = -1;
    int status = SPOOL_OK;

    for (size_t i = 0; i < m->count && status == SPOOL_OK; i++) {
        const struct spool_block_ref *ref = &m->refs[i];
        if (ref->origin != origin || ref->flags & SPOOL_BLOCK_REFILL)
            continue;
        if (is_broken(m, known, (ptrdiff_t)i))
            status = lost_add(m, origin, next, ref->first_offset - 1);
        next = ref->last_offset + 1;
        known = (ptrdiff_t)i;
    }
    if (status == SPOOL_OK && is_broken(m, known, (ptrdiff_t)m->count))
        status = lost_add(m, origin, next, last);
    return status;
}

/* Refs of the damaged segments from first to last (places in the list). */
static int group_refs(struct missing *m, size_t first, size_t last)
{
    for (size_t i = first; i <= last; i++) {
        struct spool_salvage one = {0};
        struct spool_block_ref *more;
        int status = read_damaged(m->stream, m->stream->segments[i].number, &one, &m->why);
        if (status != SPOOL_OK)
            return status;
        more = realloc(m->refs, (m->count + one.count + 1) * sizeof(*more));
        if (more && one.count)
            memcpy(more + m->count, one.refs, one.count * sizeof(*more));
        m->refs = more ? more : m->refs;
        m->count += more ? one.count : 0;
        spool_salvage_free(&one);
        if (!more)
            return SPOOL_E_NOMEM;
    }
    return SPOOL_OK;
}

/* The whole segment in front of the damaged ones. One that can't be read any more is one of them. */
static int find_before(struct missing *m)
{
    for (; m->begin; m->begin--) {
        const struct segment *s = &m->stream->segments[m->begin - 1];
        int status = high_of_segment(m, s->number);
        if (status == SPOOL_OK)
            m->first_sequence = s->totals.blocks ? s->totals.last_sequence + 1 : s->base_sequence;
        if (status != SPOOL_E_CORRUPT)
            return status;
        high_free(&m->before);
    }
    return SPOOL_OK;
}

/* The same of the one behind them. */
static int find_behind(struct missing *m)
{
    for (; m->end < m->stream->segment_count; m->end++) {
        const struct segment *s = &m->stream->segments[m->end];
        int status = high_before(m, s->number);
        if (status == SPOOL_OK)
            m->last_sequence = s->base_sequence - 1;
        if (status != SPOOL_E_CORRUPT)
            return status;
        high_free(&m->after);
    }
    return high_copy(&m->stream->high, &m->after);
}

static int find_lost(struct missing *m)
{
    int status = find_before(m);

    if (status == SPOOL_OK)
        status = find_behind(m);
    if (status == SPOOL_OK)
        status = group_refs(m, m->begin, m->end - 1);
    for (size_t i = 0; i < m->after.cap && status == SPOOL_OK; i++)
        if (m->after.slots[i].origin)
            status = origin_lost(m, m->after.slots[i].origin, m->after.slots[i].offset);
    return status;
}

static int give_row(struct missing *m, struct spool_salvage *out)
{
    const struct segment *segments = m->stream->segments;
    size_t n = m->end - m->begin;

    out->row_refs = m->refs;
    out->row_ref_count = m->count;
    m->refs = NULL;
    out->first_segment = segments[m->begin].number;
    out->last_segment = segments[m->end - 1].number;
    out->row_segments = calloc(n, sizeof(*out->row_segments));
    if (!out->row_segments)
        return SPOOL_E_NOMEM;
    for (size_t i = 0; i < n; i++)
        out->row_segments[i] = segments[m->begin + i].number;
    out->row_segment_count = n;
    return SPOOL_OK;
}

int spool_segment_salvage(struct spool_stream *stream, uint64_t number, struct spool_salvage *out,
                          struct spool_error *error)
{
    const struct segment *segment = stream_segment(stream, number);
    struct missing m = {.stream = stream};
    size_t at;
    int status;

    memset(out, 0, sizeof(*out));
    if (!segment || !segment->damaged)
        return spool_error_set(error, SPOOL_E_NOT_FOUND, "stream %s has no damaged segment %llu",
                               stream->name, (unsigned long long)number);
    at = (size_t)(segment - stream->segments);
    status = read_damaged(stream, number, out, &m.why);
    /* Of several in a row where one ended and the next began is lost. */
    m.begin = at;
    m.end = at + 1;
    if (status == SPOOL_OK)
        status = find_lost(&m);
    if (status == SPOOL_OK)
        status = give_row(&m, out);
    out->lost = m.lost;
    out->lost_count = m.lost_count;
    out->first_sequence = m.first_sequence;
    out->last_sequence = m.last_sequence;
    out->end_sequence = stream->next_sequence - 1;
    free(m.refs);
    high_free(&m.before);
    high_free(&m.after);
    if (status == SPOOL_OK)
        return SPOOL_OK;
    spool_salvage_free(out);
    return spool_error_set(error, status, "segment %llu of stream %s cannot be salvaged: %s",
                           (unsigned long long)number, stream->name,
                           m.why.status == status ? m.why.text : spool_strerror(status));
}
