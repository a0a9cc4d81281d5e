/* SPDX-License-Identifier: Apache-2.0 */
/* What a spool holds, compared with the model: all that was promised, and nothing else but what the
   operation that was cut may have left. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"

struct check {
    struct spool *spool;
    struct spool_stream *streams[STREAMS];
    uint32_t origins[ORIGINS];
    struct model found;
    char *why;
    size_t why_size;
    struct spool_error error;
};

static int bad(struct check *c, const char *format, ...) __attribute__((format(printf, 2, 3)));
static int bad(struct check *c, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(c->why, c->why_size, format, args);
    va_end(args);
    return -1;
}

/* --- reading -------------------------------------------------------------------------------- */

static int read_block(struct check *c, uint32_t stream, struct spool_reader *reader,
                      const struct spool_block_ref *ref)
{
    struct model_block *b = &c->found.blocks[c->found.block_count++];
    uint8_t *payload = NULL;
    void *data = NULL;
    size_t size = 0;
    uint32_t origin = 0;
    int rc = 0;

    while (origin < ORIGINS && c->origins[origin] != ref->origin)
        origin++;
    if (origin == ORIGINS)
        return bad(c, "block %llu: origin %u was never promised", (unsigned long long)ref->sequence,
                   ref->origin);
    b->is = (struct op_block){origin,           ref->rows,         ref->first_offset,
                              ref->last_offset, ref->frames_bytes, ref->sequence,
                              ref->segment};
    b->stream = stream;
    if (spool_reader_block(reader, ref, &data, &size, NULL, &c->error) != SPOOL_OK)
        return bad(c, "block %llu: %s", (unsigned long long)ref->sequence, c->error.text);
    payload = data;
    for (size_t i = 0; i < size && !rc; i++)
        if (payload[i] != payload_at(stream, origin, ref->first_offset, i))
            rc = bad(c, "block %llu: byte %zu is not what was appended",
                     (unsigned long long)ref->sequence, i);
    free(data);
    return rc;
}

static int read_segment(struct check *c, uint32_t stream, uint64_t number)
{
    struct spool_block_ref *refs = NULL;
    struct spool_range *acked = NULL;
    struct spool_reader *reader = NULL;
    size_t count = 0, acked_count = 0;
    int rc = 0;

    if (spool_segment_blocks(c->streams[stream], number, &refs, &count, &c->error) != SPOOL_OK ||
        spool_acked(c->spool, spool_stream_id(c->streams[stream]), number, &acked, &acked_count,
                    &c->error) != SPOOL_OK ||
        spool_reader_open(c->streams[stream], number, &reader, &c->error) != SPOOL_OK)
        rc = bad(c, "segment %llu: %s", (unsigned long long)number, c->error.text);
    for (size_t i = 0; i < count && !rc; i++)
        rc = read_block(c, stream, reader, &refs[i]);
    for (size_t i = 0; i < acked_count && !rc; i++) {
        struct model_block *b = model_block(&c->found, stream, acked[i].sequence);
        if (!b)
            rc = bad(c, "block %llu is acknowledged and not there",
                     (unsigned long long)acked[i].sequence);
        else
            b->acked |= range_bits(&acked[i]);
    }
    spool_reader_close(reader);
    free(refs);
    free(acked);
    return rc;
}

static int read_seal(void *arg, const struct spool_seal *seal)
{
    struct check *c = arg;
    struct model_seal *s = &c->found.seals[c->found.seal_count++];
    char token[32];
    uint32_t stream = 0;

    while (spool_stream_id(c->streams[stream]) != seal->stream)
        stream++;
    snprintf(token, sizeof(token), "token-%llu", (unsigned long long)seal->batch);
    if (seal->range_count > OP_RANGES || strcmp(seal->token, token) != 0 ||
        seal->attributes_size != 1)
        return 1;
    *s = (struct model_seal){.batch = seal->batch,
                             .segment = seal->segment,
                             .stream = stream,
                             .count = (uint32_t)seal->range_count};
    memcpy(s->ranges, seal->ranges, seal->range_count * sizeof(*s->ranges));
    return 0;
}

static int read_letter(void *arg, const struct spool_dead *d)
{
    struct check *c = arg;

    if (d->offset < 0 || d->offset >= LETTERS || d->record_size != 3 ||
        memcmp(d->record, "bad", 3) != 0)
        return 1;
    c->found.letters[d->offset] = 1;
    return 0;
}

static int read_stream(struct check *c, uint32_t stream)
{
    struct spool_segment_info *infos = NULL;
    uint32_t id = spool_stream_id(c->streams[stream]);
    size_t count = 0;
    int rc = 0;

    if (spool_stream_segments(c->streams[stream], &infos, &count, &c->error) != SPOOL_OK)
        return bad(c, "segments: %s", c->error.text);
    for (size_t i = 0; i < count && !rc; i++)
        rc = infos[i].damaged ? bad(c, "segment %llu is damaged: %s",
                                    (unsigned long long)infos[i].number, infos[i].detail)
                              : read_segment(c, stream, infos[i].number);
    free(infos);
    if (!rc && spool_seals(c->spool, id, read_seal, c, &c->error) != SPOOL_OK)
        rc = bad(c, "seals: %s", c->error.text);
    if (!rc && spool_next_batch(c->spool, id, &c->found.next_batch[stream], &c->error) != SPOOL_OK)
        rc = bad(c, "next batch: %s", c->error.text);
    for (int i = 0; i < ORIGINS && !rc; i++) {
        c->found.high[stream][i] = -1;
        (void)spool_stream_high(c->streams[stream], c->origins[i], &c->found.high[stream][i]);
    }
    return rc;
}

static int read_notes(struct check *c)
{
    for (uint32_t i = 0; i < NOTES; i++) {
        char key[16];
        void *value = NULL;
        size_t size = 0;
        int status;
        snprintf(key, sizeof(key), "note/%u", i + 1);
        status = spool_note_get(c->spool, key, &value, &size, &c->error);
        if (status == SPOOL_OK && size == sizeof(uint32_t))
            memcpy(&c->found.notes[i], value, sizeof(uint32_t));
        else if (status != SPOOL_E_NOT_FOUND)
            return bad(c, "%s: %s", key, c->error.text);
        free(value);
    }
    return 0;
}

static void first_problem(void *arg, const struct spool_problem *p)
{
    struct check *c = arg;
    if (!*c->why)
        bad(c, "verify: %s: %s: %s", p->file, p->kind, p->detail);
}

static int read_all(struct check *c, const char *dir)
{
    const struct spool_options options = {
        .path = dir, .segment_bytes = SEGMENT_SIZE, .meta_reserve_bytes = 65536, .create = true};
    const struct spool_segment_spec spec = {"schema", 6, "db.table"};
    uint64_t problems = 0;
    char name[16];

    if (spool_open(&options, &c->spool, &c->error) != SPOOL_OK)
        return bad(c, "it does not open: %s", c->error.text);
    /* In the order of the driver's start: what it had not come to is made now. */
    for (int i = 0; i < STREAMS; i++) {
        snprintf(name, sizeof(name), "s%d", i);
        if (spool_stream_open(c->spool, name, &c->streams[i], &c->error) != SPOOL_OK ||
            spool_stream_configure(c->streams[i], &spec, &c->error) != SPOOL_OK)
            return bad(c, "stream %s does not open: %s", name, c->error.text);
    }
    for (int i = 0; i < ORIGINS; i++) {
        snprintf(name, sizeof(name), "o/%d", i);
        if (spool_origin(c->spool, name, 0, &c->origins[i], NULL, &c->error) != SPOOL_OK)
            return bad(c, "origin %s: %s", name, c->error.text);
    }
    for (uint32_t i = 0; i < STREAMS; i++)
        if (read_stream(c, i))
            return -1;
    if (spool_dead_each(c->spool, NULL, read_letter, c, &c->error) != SPOOL_OK)
        return bad(c, "dead letters: %s", c->error.text);
    if (read_notes(c))
        return -1;
    if (spool_verify(c->spool, first_problem, c, &problems, &c->error) != SPOOL_OK)
        return bad(c, "verify: %s", c->error.text);
    return problems ? -1 : 0;
}

/* --- comparing ------------------------------------------------------------------------------ */

static int compare_blocks(struct check *c, struct model *m)
{
    if (m->block_count != c->found.block_count)
        return bad(c, "%zu blocks are there, %zu should be", c->found.block_count, m->block_count);
    for (size_t i = 0; i < m->block_count; i++) {
        const struct model_block *want = &m->blocks[i];
        const struct model_block *is = model_block(&c->found, want->stream, want->is.sequence);
        if (!is)
            return bad(c, "block %llu of stream %u is not there",
                       (unsigned long long)want->is.sequence, want->stream);
        if (is->is.origin != want->is.origin || is->is.rows != want->is.rows ||
            is->is.first != want->is.first || is->is.last != want->is.last ||
            is->is.size != want->is.size ||
            (want->is.segment && is->is.segment != want->is.segment))
            return bad(c, "block %llu of stream %u is another one",
                       (unsigned long long)want->is.sequence, want->stream);
        if (is->acked != want->acked)
            return bad(c, "block %llu of stream %u: rows %x are acknowledged, %x should be",
                       (unsigned long long)want->is.sequence, want->stream, is->acked, want->acked);
    }
    return 0;
}

static int compare_seals(struct check *c, const struct model *m)
{
    if (m->seal_count != c->found.seal_count)
        return bad(c, "%zu seals are there, %zu should be", c->found.seal_count, m->seal_count);
    for (size_t i = 0; i < m->seal_count; i++) {
        size_t k = 0;
        while (k < c->found.seal_count &&
               memcmp(&m->seals[i], &c->found.seals[k], sizeof(m->seals[i])) != 0)
            k++;
        if (k == c->found.seal_count)
            return bad(c, "the seal of batch %llu of stream %u is not there as it was made",
                       (unsigned long long)m->seals[i].batch, m->seals[i].stream);
    }
    return 0;
}

static int compare(struct check *c, struct model *m)
{
    if (compare_blocks(c, m) || compare_seals(c, m))
        return -1;
    if (memcmp(m->next_batch, c->found.next_batch, sizeof(m->next_batch)) != 0)
        return bad(c, "a batch id could be used twice");
    if (memcmp(m->high, c->found.high, sizeof(m->high)) != 0)
        return bad(c, "the highest offset of an origin is not what it was");
    if (memcmp(m->letters, c->found.letters, sizeof(m->letters)) != 0)
        return bad(c, "the dead letters are not what they were");
    if (memcmp(m->notes, c->found.notes, sizeof(m->notes)) != 0)
        return bad(c, "a note is not what it was");
    return 0;
}

/* It can be gone on with: one more block, behind all that ever was. */
static int go_on(struct check *c, const struct model *m)
{
    static const uint8_t payload[100];
    struct spool_block b = {.origin = c->origins[0],
                            .rows = 1,
                            .flags = SPOOL_BLOCK_NATIVE,
                            .frames = payload,
                            .frames_size = sizeof(payload)};
    struct spool_block_ref ref;
    size_t appended = 0;

    b.first_offset = b.last_offset = c->found.high[0][0] + 1;
    if (spool_stream_append(c->streams[0], &b, 1, &ref, &appended, &c->error) != SPOOL_OK)
        return bad(c, "nothing can be appended: %s", c->error.text);
    if (ref.sequence <= m->last_sequence[0])
        return bad(c, "sequence %llu was used before", (unsigned long long)ref.sequence);
    return 0;
}

int check_spool(const char *dir, const struct model *m, const struct op *next, char *why,
                size_t why_size)
{
    struct check *c = calloc(1, sizeof(*c));
    struct model *state = malloc(sizeof(*state));
    int rc = -1;

    if (!c || !state)
        abort();
    c->why = why;
    c->why_size = why_size;
    *why = 0;
    model_init(&c->found);
    memset(c->found.next_batch, 0, sizeof(c->found.next_batch));
    if (read_all(c, dir) == 0) {
        for (uint32_t steps = 0; rc && steps <= op_steps(next); steps++) {
            *state = *m;
            model_apply(state, next, steps);
            rc = compare(c, state);
        }
        if (rc == 0)
            rc = go_on(c, m);
    }
    spool_close(c->spool);
    free(state);
    free(c);
    return rc;
}
