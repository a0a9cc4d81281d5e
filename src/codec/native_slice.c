/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A row range of a block as a block of its own. The same range gives the same bytes every time, and
 * the whole range gives the block itself. LowCardinality keeps all its keys: servers take unused ones.
 */
#include "codec/native_int.h"

static int slice_prefix(const struct native_node *node, struct buf *out)
{
    int status = SPOOL_OK;

    if (node->type->kind == TYPE_LOW_CARDINALITY)
        return buf_put_u64le(out, NATIVE_LOW_CARDINALITY_VERSION);
    if (node->type->kind == TYPE_VARIANT)
        status = buf_put_u64le(out, NATIVE_VARIANT_BASIC);
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = slice_prefix(&node->children[i], out);
    return status;
}

static int slice_data(const struct native_node *node, uint64_t first, uint64_t count,
                      struct buf *out);

static int slice_fixed(const struct native_node *node, uint64_t first, uint64_t count,
                       struct buf *out)
{
    return buf_append(out, node->data + first * node->width, (size_t)count * node->width);
}

static int slice_list(const struct native_node *node, uint64_t first, uint64_t count,
                      struct buf *out)
{
    uint64_t start = native_list_start(node, first);
    uint64_t end = native_list_start(node, first + count);
    int status = buf_reserve(out, (size_t)count * 8);

    for (uint64_t i = 0; i < count && status == SPOOL_OK; i++)
        status = buf_put_u64le(out, native_number(node->data, 8, first + i) - start);
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = slice_data(&node->children[i], start, end - start, out);
    return status;
}

static int slice_low_cardinality(const struct native_node *node, uint64_t first, uint64_t count,
                                 struct buf *out)
{
    int status = buf_append(out, node->head, node->head_size - 8);

    if (status == SPOOL_OK)
        status = buf_put_u64le(out, count);
    return status == SPOOL_OK ? slice_fixed(node, first, count, out) : status;
}

static int slice_variant(const struct native_node *node, uint64_t first, uint64_t count,
                         struct buf *out)
{
    uint64_t before[256] = {0}, within[256] = {0};
    int status = slice_fixed(node, first, count, out);

    for (uint64_t i = 0; i < first; i++)
        before[node->data[i]]++;
    for (uint64_t i = first; i < first + count; i++)
        within[node->data[i]]++;
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = slice_data(&node->children[i], before[i], within[i], out);
    return status;
}

static int slice_data(const struct native_node *node, uint64_t first, uint64_t count,
                      struct buf *out)
{
    int status = SPOOL_OK;

    if (count == 0)
        return SPOOL_OK;
    switch (node->type->kind) {
    case TYPE_STRING:
        return buf_append(out, node->data + node->positions[first],
                          node->positions[first + count] - node->positions[first]);
    case TYPE_LOW_CARDINALITY:
        return slice_low_cardinality(node, first, count, out);
    case TYPE_VARIANT:
        return slice_variant(node, first, count, out);
    default:
        break;
    }
    if (type_is_list(node->type->kind))
        return slice_list(node, first, count, out);
    if (node->width > 0)
        status = slice_fixed(node, first, count, out);
    for (size_t i = 0; i < node->child_count && status == SPOOL_OK; i++)
        status = slice_data(&node->children[i], first, count, out);
    return status;
}

static int slice_block(const struct native_block *b, uint64_t first, uint64_t count,
                       struct buf *out)
{
    int status = buf_put_varuint(out, b->column_count);

    if (status == SPOOL_OK)
        status = buf_put_varuint(out, count);
    for (size_t i = 0; i < b->column_count && status == SPOOL_OK; i++) {
        const struct native_column *c = &b->columns[i];
        status = buf_append(out, c->head, c->head_size);
        if (status == SPOOL_OK && count > 0)
            status = slice_prefix(&c->node, out);
        if (status == SPOOL_OK)
            status = slice_data(&c->node, first, count, out);
    }
    return status;
}

int native_block_slice(const struct native_block *b, uint64_t first, uint64_t count,
                       struct buf *out, struct spool_error *error)
{
    size_t start = out->len;
    uint64_t rows = native_block_rows(b);
    int status = SPOOL_OK;

    if (first > rows || count > rows - first)
        return spool_error_set(
            error, SPOOL_E_INVALID, "rows %llu and %llu more are not all in a block of %llu",
            (unsigned long long)first, (unsigned long long)count, (unsigned long long)rows);
    /* A block of no rows is cut of the first, for its columns; of the others only what has some. */
    for (const struct native_block *part = b; part && status == SPOOL_OK; part = part->next) {
        uint64_t skip = first < part->rows ? first : part->rows;
        uint64_t take = count < part->rows - skip ? count : part->rows - skip;
        if (take > 0 || (part == b && rows == 0) || (!part->next && out->len == start))
            status = slice_block(part, skip, take, out);
        first -= skip;
        count -= take;
    }
    if (status != SPOOL_OK) {
        out->len = start;
        return spool_error_set(error, status, "slice of a Native block: %s",
                               spool_strerror(status));
    }
    return SPOOL_OK;
}

int json_block_line(const void *raw, size_t size, uint64_t row, size_t *start, size_t *length)
{
    const uint8_t *begin = raw, *at = begin, *end = begin + size;

    while (at < end) {
        const uint8_t *newline = memchr(at, '\n', (size_t)(end - at));
        const uint8_t *stop = newline ? newline : end;
        if (row == 0) {
            *start = (size_t)(at - begin);
            *length = (size_t)(stop - at);
            return SPOOL_OK;
        }
        row--;
        at = newline ? newline + 1 : end;
    }
    return SPOOL_E_NOT_FOUND;
}
