/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values that come from no key: defaults, constants, and the facts of the record. A literal is
 * read once by the column's own rules and from then on copied as bytes; one with elements below it
 * (an array) is read again for each row.
 */
#include <stdio.h>
#include <string.h>

#include "base/limits.h"
#include "codec/decode_int.h"
#include "codec/number.h"

#define HEADERS_CHECKED 1024 /* beyond so many, one of a name twice stays in $headers */

static bool text_is_null(const char *text)
{
    return strcmp(text, "null") == 0;
}

/* Appends a value given as JSON text. */
static int append_text(struct decoder *d, struct slot *slot, const char *text, size_t size,
                       struct scan *from)
{
    struct scan s = *from;
    int status;

    slot->left_out = false;
    if (!slot->node) {
        buf_reset(&slot->encoded);
        status = buf_append(&slot->encoded, text, size);
        slot->text = slot->encoded.data;
        slot->text_size = size;
        return status;
    }
    s.p = s.begin = (const uint8_t *)text;
    s.end = s.p + size;
    s.p = json_blank(s.p, s.end);
    s.scratch = &d->scratch;
    if (s.p == s.end)
        return scan_refuse(&s, REFUSAL_NOT_JSON, "no value");
    if (*s.p == 'n' && size == 4) {
        status = json_literal(&s, "null", 4);
        if (status == SPOOL_OK)
            status = column_append_zero(slot->node);
    } else {
        status = column_append(slot->node, &s);
    }
    if (status == SPOOL_OK) {
        s.p = json_blank(s.p, s.end);
        if (s.p != s.end)
            status = scan_refuse(&s, REFUSAL_NOT_JSON, "text behind the value");
    }
    if (status == SPOOL_E_REFUSED)
        s.why->position = 0; /* it stands nowhere in the record */
    return status;
}

/* Reads the literal and keeps what it became. On failure the node is as it was. */
static int encode_literal(struct decoder *d, struct slot *slot, struct refusal *why)
{
    struct scan s = {.why = why};
    struct column *node = slot->node;
    int status;

    slot->is_encoded = false;
    column_mark_all(node);
    status = append_text(d, slot, slot->literal, strlen(slot->literal), &s);
    if (status == SPOOL_OK && !node->child_count) {
        buf_reset(&slot->encoded);
        status = buf_append(&slot->encoded, node->data.data + node->data.mark,
                            node->data.len - node->data.mark);
        slot->is_encoded = status == SPOOL_OK;
    }
    column_rollback(node);
    return status;
}

int slot_set_literal(struct decoder *d, struct slot *slot, const char *literal,
                     struct spool_error *error)
{
    struct refusal why = {0};
    int status;

    slot->literal = literal;
    slot->literal_is_null = text_is_null(literal);
    if (slot->literal_is_null)
        return SPOOL_OK;
    if (!slot->node) {
        struct scan s = {.p = (const uint8_t *)literal, .why = &why};
        s.begin = s.p;
        s.end = s.p + strlen(literal);
        status = json_skip(&s);
        if (status == SPOOL_OK && json_blank(s.p, s.end) != s.end)
            status = scan_refuse(&s, REFUSAL_NOT_JSON, "text behind the value");
    } else {
        status = encode_literal(d, slot, &why);
    }
    if (status == SPOOL_E_REFUSED)
        return spool_error_set(error, SPOOL_E_INVALID, "column %s: \"%s\": %s", slot->column->name,
                               slot->column->source == SOURCE_CONSTANT ? "value" : "default",
                               why.reason);
    return status;
}

/* $topic, $partition, $origin: a literal that holds until the next place. */
int slot_set_place(struct decoder *d, struct slot *slot)
{
    const char *text = NULL;
    struct refusal why = {0};
    int status = SPOOL_OK;

    buf_reset(&slot->place);
    slot->literal = NULL;
    slot->is_encoded = false;
    switch (slot->column->source) {
    case SOURCE_TOPIC:
        text = d->place.topic;
        break;
    case SOURCE_ORIGIN:
        text = d->place.origin;
        break;
    default:
        if (d->place.partition >= 0)
            status = buf_printf(&slot->place, "%d", (int)d->place.partition);
    }
    if (text)
        status = buf_put_json_string(&slot->place, text, strlen(text));
    if (status != SPOOL_OK || slot->place.len == 0)
        return status;
    slot->literal = buf_cstr(&slot->place);
    if (!slot->literal)
        return SPOOL_E_NOMEM;
    slot->literal_is_null = false;
    status = slot->node ? encode_literal(d, slot, &why) : SPOOL_OK;
    return status == SPOOL_E_REFUSED ? SPOOL_OK : status; /* each row then says why */
}

static int append_literal(struct decoder *d, struct slot *slot, struct scan *s)
{
    int status;

    if (slot->literal_is_null && slot->node)
        return column_append_zero(slot->node);
    if (!slot->is_encoded)
        return append_text(d, slot, slot->literal, strlen(slot->literal), s);
    status = column_reserve(slot->node, slot->encoded.len);
    if (status != SPOOL_OK)
        return status;
    memcpy(slot->node->data.data + slot->node->data.len, slot->encoded.data, slot->encoded.len);
    slot->node->data.len += slot->encoded.len;
    return column_append_not_null(slot->node);
}

/* What stands in for a value that isn't there. */
static int append_default(struct decoder *d, struct slot *slot, struct scan *s)
{
    slot->left_out = !slot->literal && (!slot->node || slot->column->default_by_server);
    if (slot->literal)
        return append_literal(d, slot, s);
    if (!slot->node)
        return SPOOL_OK;
    if (slot->may_leave)
        slot->left_at = d->stamp; /* the zero stands for it until the part is written without */
    else if (slot->column->default_by_server && slot->node->wire_nullable)
        return column_append_null(slot->node);
    return column_append_zero(slot->node);
}

int slot_missing(struct decoder *d, struct slot *slot, struct scan *s)
{
    if (slot->column->required || (d->schema->strict && !schema_type_nullable(slot->column->type)))
        return scan_refuse(s, REFUSAL_REQUIRED, "the key is missing and it is required");
    return append_default(d, slot, s);
}

/* s->p at null. */
int slot_null(struct decoder *d, struct slot *slot, struct scan *s)
{
    struct column *node = slot->node;
    int status = json_literal(s, "null", 4);

    if (status != SPOOL_OK)
        return status;
    slot->left_out = false;
    if (node->nullable)
        return column_append_null(node);
    if (slot->column->required || s->strict)
        return scan_refuse_at(s, s->p - 4, REFUSAL_NULL, "null, and the column is not Nullable");
    if ((node->kind == TYPE_ENUM8 || node->kind == TYPE_ENUM16) && !slot->literal &&
        !slot->column->default_by_server)
        return scan_refuse_at(s, s->p - 4, REFUSAL_NULL, "null is no member of an Enum");
    return append_default(d, slot, s);
}

/* ---- facts ---- */

static int append_number(struct decoder *d, struct slot *slot, int64_t value, struct scan *s)
{
    char text[24];
    int n = snprintf(text, sizeof(text), "%lld", (long long)value);

    return append_text(d, slot, text, (size_t)n, s);
}

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

/* Milliseconds since the epoch: a time where the column is one, else the number. */
static int append_ms(struct decoder *d, struct slot *slot, int64_t ms, struct scan *s)
{
    const struct column *node;
    int64_t v, min = 0, max;

    if (!slot->node)
        return append_number(d, slot, ms, s);
    node = column_value_node(slot->node);
    switch (node->kind) {
    case TYPE_DATETIME:
        v = floor_div(ms, 1000);
        max = UINT32_MAX;
        break;
    case TYPE_DATETIME64:
        min = INT64_MIN;
        max = INT64_MAX;
        if (node->scale < 3)
            v = floor_div(ms, (int64_t)number_ten_to[3 - node->scale]);
        else if (__builtin_mul_overflow(ms, (int64_t)number_ten_to[node->scale - 3], &v))
            max = min;
        break;
    case TYPE_DATE:
        v = floor_div(ms, 86400000);
        max = UINT16_MAX;
        break;
    case TYPE_DATE32:
        v = floor_div(ms, 86400000);
        min = INT32_MIN;
        max = INT32_MAX;
        break;
    default:
        return append_number(d, slot, ms, s);
    }
    if (v < min || v > max)
        return scan_refuse(s, REFUSAL_RANGE, "the record's time is outside %s",
                           column_type_text(node));
    return column_append_number(slot->node, (uint64_t)v);
}

/* Bytes as they are where the column takes such, else as a JSON string. */
static int append_blob(struct decoder *d, struct slot *slot, const void *data, size_t size,
                       struct scan *s)
{
    int status;

    if (slot->node && column_takes_bytes(slot->node))
        return column_append_bytes(slot->node, data, size, s);
    buf_reset(&d->fact);
    status = buf_put_json_string(&d->fact, data, size);
    if (status != SPOOL_OK)
        return status;
    return append_text(d, slot, (const char *)d->fact.data, d->fact.len, s);
}

/* A value that is JSON text already. */
static int append_json(struct decoder *d, struct slot *slot, const void *data, size_t size,
                       struct scan *s)
{
    if (slot->node && column_takes_bytes(slot->node))
        return column_append_bytes(slot->node, data, size, s);
    return append_text(d, slot, data, size, s);
}

static bool header_comes_again(const struct record *record, size_t i)
{
    if (record->header_count > HEADERS_CHECKED)
        return false;
    for (size_t j = i + 1; j < record->header_count; j++)
        if (strcmp(record->headers[j].name, record->headers[i].name) == 0)
            return true;
    return false;
}

static int append_headers(struct decoder *d, struct slot *slot, const struct record *record,
                          struct scan *s)
{
    struct buf *out = &d->fact;
    bool first = true;
    int status;

    buf_reset(out);
    status = buf_put_u8(out, '{');
    for (size_t i = 0; i < record->header_count && status == SPOOL_OK; i++) {
        const struct record_header *h = &record->headers[i];
        if (header_comes_again(record, i))
            continue;
        if (!first)
            status = buf_put_u8(out, ',');
        first = false;
        if (status == SPOOL_OK)
            status = buf_put_json_string(out, h->name, strlen(h->name));
        if (status == SPOOL_OK)
            status = buf_put_u8(out, ':');
        if (status != SPOOL_OK)
            break;
        status = h->value ? buf_put_json_string(out, h->value, h->value_size)
                          : buf_append(out, "null", 4);
    }
    if (status == SPOOL_OK)
        status = buf_put_u8(out, '}');
    return status == SPOOL_OK ? append_json(d, slot, out->data, out->len, s) : status;
}

int slot_fact(struct decoder *d, struct slot *slot, const struct record *record, struct scan *s)
{
    int status;

    switch (slot->column->source) {
    case SOURCE_RECORD:
        return append_json(d, slot, d->object, (size_t)(d->object_end - d->object), s);
    case SOURCE_REST:
        buf_reset(&d->fact);
        status = buf_put_u8(&d->fact, '{');
        if (status == SPOOL_OK)
            status = buf_append(&d->fact, d->rest.data, d->rest.len);
        if (status == SPOOL_OK)
            status = buf_put_u8(&d->fact, '}');
        return status == SPOOL_OK ? append_json(d, slot, d->fact.data, d->fact.len, s) : status;
    case SOURCE_OFFSET:
        return append_number(d, slot, record->offset, s);
    case SOURCE_MESSAGE_KEY:
        if (!record->key)
            return slot_missing(d, slot, s);
        return append_blob(d, slot, record->key, record->key_size, s);
    case SOURCE_TIMESTAMP:
        if (record->timestamp_ms < 0)
            return slot_missing(d, slot, s);
        return append_ms(d, slot, record->timestamp_ms, s);
    case SOURCE_RECEIVED_AT:
        return append_ms(d, slot, record->received_ms, s);
    case SOURCE_HEADERS:
        return append_headers(d, slot, record, s);
    case SOURCE_CONSTANT:
        return append_default(d, slot, s);
    default: /* $topic, $partition, $origin */
        return slot->literal ? append_literal(d, slot, s) : slot_missing(d, slot, s);
    }
}
