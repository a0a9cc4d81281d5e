/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The row at hand as a line for FORMAT JSONEachRow: its keys in the schema's order. Columns this
 * version knows were checked by their nodes and are written back from them; of the others the text
 * stands as it came. A key the server has to fill in by its DEFAULT is left out.
 */
#include <string.h>

#include "codec/decode_int.h"

/* Text from the record may hold newlines between its tokens, and a line must not. */
static int put_one_line(struct buf *out, const uint8_t *text, size_t n)
{
    size_t start = out->len;
    int status = buf_append(out, text, n);

    if (status == SPOOL_OK)
        for (uint8_t *p = out->data + start; p < out->data + out->len; p++)
            if (*p == '\n' || *p == '\r')
                *p = ' ';
    return status;
}

static int put_member(struct slot *slot, bool first, struct buf *out)
{
    const char *name = slot->column->name;
    int status = buf_put_u8(out, first ? '{' : ',');

    if (status == SPOOL_OK)
        status = buf_put_json_string(out, name, strlen(name));
    if (status == SPOOL_OK)
        status = buf_put_u8(out, ':');
    if (status != SPOOL_OK)
        return status;
    if (!slot->node)
        return put_one_line(out, slot->text, slot->text_size);
    column_json_begin(slot->node);
    return column_json(slot->node, out);
}

int decoder_line(struct decoder *d)
{
    struct buf *out = &d->done;
    size_t start = out->len;
    bool first = true;
    int status = SPOOL_OK;

    for (size_t i = 0; i < d->slot_count && status == SPOOL_OK; i++) {
        if (d->slots[i].left_out)
            continue;
        status = put_member(&d->slots[i], first, out);
        first = false;
    }
    if (status == SPOOL_OK && first)
        status = buf_put_u8(out, '{');
    if (status == SPOOL_OK)
        status = buf_append(out, "}\n", 2);
    if (status != SPOOL_OK)
        out->len = start;
    return status;
}
