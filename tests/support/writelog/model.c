/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint8_t payload_at(uint32_t stream, uint32_t origin, int64_t first, uint64_t at)
{
    uint64_t x = ((uint64_t)stream << 60) ^ ((uint64_t)origin << 50) ^ (uint64_t)first;
    x = (x ^ (at / 8 + 1)) * 0x9e3779b97f4a7c15u;
    return (uint8_t)(x >> (8 * (at % 7)));
}

void model_init(struct model *m)
{
    memset(m, 0, sizeof(*m));
    for (int s = 0; s < STREAMS; s++) {
        m->next_batch[s] = 1;
        for (int o = 0; o < ORIGINS; o++)
            m->high[s][o] = -1;
    }
}

uint32_t range_bits(const struct spool_range *r)
{
    return r->rows ? ((1u << r->rows) - 1) << r->row : 1;
}

struct model_block *model_block(struct model *m, uint32_t stream, uint64_t sequence)
{
    for (size_t i = 0; i < m->block_count; i++)
        if (m->blocks[i].stream == stream && m->blocks[i].is.sequence == sequence)
            return &m->blocks[i];
    return NULL;
}

uint32_t op_steps(const struct op *op)
{
    return op->kind == OP_APPEND ? op->count : op->kind == OP_NONE ? 0 : 1;
}

static void apply_append(struct model *m, const struct op *op, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct model_block *b = &m->blocks[m->block_count++];
        if (m->block_count > MODEL_BLOCKS)
            abort();
        *b = (struct model_block){.is = op->blocks[i], .stream = op->stream};
        m->high[op->stream][b->is.origin] = b->is.last;
        if (!b->is.sequence) /* cut: it follows on what was promised, in a segment we do not know */
            b->is.sequence = m->last_sequence[op->stream] + 1;
        m->last_sequence[op->stream] = b->is.sequence;
    }
}

static void apply_ranges(struct model *m, uint32_t stream, const struct spool_range *ranges,
                         uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct model_block *b = model_block(m, stream, ranges[i].sequence);
        if (b)
            b->acked |= range_bits(&ranges[i]);
    }
}

static void apply_commit(struct model *m, const struct op *op)
{
    for (size_t i = 0; op->ended && i < m->seal_count; i++) {
        struct model_seal *s = &m->seals[i];
        if (s->stream != op->stream || s->batch != op->ended)
            continue;
        if (op->acked)
            apply_ranges(m, op->stream, s->ranges, s->count);
        *s = m->seals[--m->seal_count];
        break;
    }
    apply_ranges(m, op->stream, op->discards, op->discard_count);
    if (op->sealed) {
        struct model_seal *s = &m->seals[m->seal_count++];
        if (m->seal_count > MODEL_SEALS)
            abort();
        *s = (struct model_seal){.batch = op->sealed,
                                 .segment = op->segment,
                                 .stream = op->stream,
                                 .count = op->seal_count};
        memcpy(s->ranges, op->ranges, sizeof(s->ranges));
        m->next_batch[op->stream] = op->sealed + 1;
    }
    if (op->note)
        m->notes[op->note - 1] = op->note_value;
}

static void apply_remove(struct model *m, const struct op *op)
{
    size_t kept = 0;

    for (size_t i = 0; i < m->block_count; i++)
        if (m->blocks[i].stream != op->stream || m->blocks[i].is.segment != op->segment)
            m->blocks[kept++] = m->blocks[i];
    m->block_count = kept;
}

void model_apply(struct model *m, const struct op *op, uint32_t steps)
{
    if (!steps)
        return;
    switch (op->kind) {
    case OP_APPEND:
        apply_append(m, op, steps);
        break;
    case OP_COMMIT:
        apply_commit(m, op);
        break;
    case OP_REMOVE:
        apply_remove(m, op);
        break;
    case OP_DEAD_PUT:
        m->letters[op->offset] = 1;
        break;
    case OP_DEAD_REMOVE:
        m->letters[op->offset] = 0;
        break;
    default:
        break;
    }
}
