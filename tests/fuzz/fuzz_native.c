/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any bytes as a Native block: rows as JSON are well-formed, and slices are blocks that say the same.
 */
#include <assert.h>
#include <string.h>

#include "base/limits.h"
#include "codec/json.h"
#include "codec/native.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ROWS_LOOKED_AT 8

static struct buf row, slice, again;

static void check_json(const struct buf *text)
{
    struct refusal why = {0};
    struct scan s = {.why = &why, .p = text->data, .begin = text->data};

    s.end = s.p + text->len;
    /* deeper nesting than a record may have is the one thing that is allowed */
    assert(json_skip(&s) == SPOOL_OK ? s.p == s.end : why.code == REFUSAL_DEPTH);
    assert(!memchr(text->data, '\n', text->len));
}

static void check_slice(const struct native_block *b, uint64_t rows)
{
    struct native_block *part = NULL;
    struct spool_error error = {0};
    uint64_t first = rows / 3, count = rows - first > 4 ? 4 : rows - first;
    int status;

    buf_reset(&slice);
    if (native_block_slice(b, first, count, &slice, &error) != SPOOL_OK)
        return;
    assert(native_block_open(slice.data, slice.len, &part, &error) == SPOOL_OK);
    assert(native_block_rows(part) == count);
    for (uint64_t i = 0; i < count; i++) {
        buf_reset(&row);
        buf_reset(&again);
        status = native_block_row_json(b, first + i, &row, &error);
        assert(native_block_row_json(part, i, &again, &error) == status);
        if (status == SPOOL_OK)
            assert(row.len == again.len && memcmp(row.data, again.data, row.len) == 0);
    }
    native_block_free(part);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct native_block *b = NULL;
    struct spool_error error = {0};
    uint64_t rows;

    if (!row.max) {
        buf_init(&row, 4 * MIB);
        buf_init(&slice, 4 * MIB);
        buf_init(&again, 4 * MIB);
    }
    if (native_block_open(data, size, &b, &error) != SPOOL_OK) {
        assert(!b && error.text[0]);
        return 0;
    }
    rows = native_block_rows(b);
    for (uint64_t i = 0; i < rows && i < ROWS_LOOKED_AT; i++) {
        buf_reset(&row);
        if (native_block_row_json(b, i, &row, &error) == SPOOL_OK)
            check_json(&row);
    }
    check_slice(b, rows);
    native_block_free(b);
    return 0;
}
