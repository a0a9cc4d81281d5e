/* SPDX-License-Identifier: Apache-2.0 */
#include "codec/decode.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/decode_int.h"
#include "codec/json_simd.h"

#define FRAMING_BYTES     5 /* Confluent's: 0, then the schema's id, big endian */
#define KEEP_BUFFER_BYTES (4 * MIB)
#define PARTS_MAX         256 /* of a block, each with other columns left out */

const char *refusal_name(int code)
{
    switch (code) {
    case REFUSAL_NOT_JSON:
        return "not_json";
    case REFUSAL_NOT_OBJECT:
        return "not_object";
    case REFUSAL_DEPTH:
        return "depth";
    case REFUSAL_TYPE:
        return "type";
    case REFUSAL_RANGE:
        return "range";
    case REFUSAL_PRECISION:
        return "precision";
    case REFUSAL_TEXT:
        return "text";
    case REFUSAL_ENUM:
        return "enum";
    case REFUSAL_NULL:
        return "null";
    case REFUSAL_REQUIRED:
        return "required";
    case REFUSAL_UNKNOWN_KEY:
        return "unknown_key";
    case REFUSAL_DUPLICATE_KEY:
        return "duplicate_key";
    case REFUSAL_TOO_LONG:
        return "too_long";
    case REFUSAL_FRAMING:
        return "framing";
    case REFUSAL_SERVER:
        return "server";
    default:
        return "unknown";
    }
}

/* ---- one record ---- */

static int refuse_column(const struct slot *slot, struct scan *s, int status)
{
    if (status == SPOOL_E_REFUSED)
        s->why->column = slot->column->name;
    return status;
}

static int refuse_twice(const struct slot *slot, struct scan *s)
{
    return refuse_column(slot, s, scan_refuse(s, REFUSAL_DUPLICATE_KEY, "the key comes twice"));
}

static inline __attribute__((always_inline)) bool expect_is(const struct expect *e,
                                                            const uint8_t *p, const uint8_t *end)
{
    size_t left = (size_t)(end - p), size = e->size;

    if (likely(left >= 16 && size <= 16))
        return json_same16(p, e->text, e->counts) && size;
    if (likely(left >= EXPECT_TEXT_BYTES))
        return json_same16(p, e->text, e->counts) &&
               json_same16(p + 16, e->text + 16, e->counts + 16);
    if (left >= 8 && size <= 8)
        return ((load_le64(p) ^ load_le64(e->text)) & load_le64(e->counts)) == 0 && size;
    return size && left >= size && memcmp(p, e->text, size) == 0;
}

static void expect_learn(struct expect *e, const uint8_t *text, size_t size, size_t key_at,
                         struct plan_key *key)
{
    memset(e, 0, sizeof(*e));
    if (size > EXPECT_TEXT_BYTES)
        return;
    memcpy(e->text, text, size);
    memset(e->counts, 0xff, size);
    e->size = (uint8_t)size;
    e->key_at = (uint8_t)key_at;
    e->key = key;
    e->slot = key && key->simple ? key->slots : NULL;
}

struct place {
    struct expect *expect; /* where the next key is looked for */
    struct plan_key *key;
    const uint8_t *key_at;
    bool first;
    bool end;
};

/* The key where the last record had another: by its text. s->p is behind the last value. */
static int next_key(struct scan *s, const struct plan_object *object, struct place *at)
{
    const uint8_t *start = s->p, *name;
    struct expect *e = at->expect;
    size_t size;
    int status;

    /* one that the last record had was left out */
    if (!at->first && e < object->expect_last && expect_is(e + 1, s->p, s->end)) {
        e++;
        at->key = e->key;
        at->key_at = s->p + e->key_at;
        at->expect = e < object->expect_last ? e + 1 : e;
        s->p += e->size;
        return SPOOL_OK;
    }
    s->p = json_blank(s->p, s->end);
    if (s->p < s->end && *s->p == '}') {
        s->p++;
        at->end = true;
        return SPOOL_OK;
    }
    if (!at->first) {
        if (s->p == s->end || *s->p != ',')
            return scan_refuse_token(s, "a comma or the end of the object");
        s->p = json_blank(s->p + 1, s->end);
    }
    if (s->p == s->end || *s->p != '"')
        return scan_refuse_token(s, "a key");
    at->key_at = s->p;
    status = json_string(s, &name, &size);
    if (status != SPOOL_OK)
        return status;
    at->key = plan_find(object, name, size);
    if (!at->key) { /* it must be well-formed like all that is skipped */
        s->p = at->key_at;
        status = json_skip_string(s);
        if (status != SPOOL_OK)
            return status;
    }
    s->p = json_blank(s->p, s->end);
    if (s->p == s->end || *s->p != ':')
        return scan_refuse_token(s, "a colon");
    s->p = json_blank(s->p + 1, s->end);
    if (e < object->expect_last) {
        expect_learn(e, start, (size_t)(s->p - start), (size_t)(at->key_at - start), at->key);
        at->expect = e + 1;
    }
    return SPOOL_OK;
}

/* A member no column takes. */
static int skip_member(struct decoder *d, struct scan *s, const struct place *at, bool is_root)
{
    int status;

    if (d->schema->unknown_keys == UNKNOWN_REFUSE && !(is_root && d->has_rest))
        return scan_refuse_at(s, at->key_at, REFUSAL_UNKNOWN_KEY,
                              "a key that no column takes (unknown_keys is \"refuse\")");
    status = json_skip(s);
    if (status != SPOOL_OK || !is_root || !d->has_rest)
        return status;
    if (d->rest.len)
        status = buf_put_u8(&d->rest, ',');
    return status == SPOOL_OK ? buf_append(&d->rest, at->key_at, (size_t)(s->p - at->key_at))
                              : status;
}

static int slot_value(struct decoder *d, struct slot *slot, struct scan *s)
{
    const uint8_t *start = s->p;
    int status;

    if (!slot_begin(d, slot))
        return refuse_twice(slot, s);
    d->hits++;
    if (!slot->node) { /* JSON format, unchecked: the text as it is */
        if (*start == 'n' && (slot->column->required || s->strict) &&
            !schema_type_nullable(slot->column->type))
            return refuse_column(
                slot, s, scan_refuse(s, REFUSAL_NULL, "null, and the column is not Nullable"));
        status = json_skip(s);
        slot->left_out = false;
        slot->text = start;
        slot->text_size = (size_t)(s->p - start);
    } else if (*start == 'n') {
        status = slot_null(d, slot, s);
    } else {
        status = column_append(slot->node, s);
    }
    return refuse_column(slot, s, status);
}

static int object_members(struct decoder *d, struct scan *s, const struct plan_object *object);

/* A value that several columns read, or that has columns below it. */
static int shared_value(struct decoder *d, struct scan *s, const struct plan_key *key)
{
    const uint8_t *start = s->p, *behind = NULL;
    unsigned depth = s->depth;
    int status = SPOOL_OK;

    for (struct slot *slot = key->slots; slot; slot = slot->next) {
        s->p = start;
        s->depth = depth;
        status = slot_value(d, slot, s);
        if (status != SPOOL_OK)
            return status;
        behind = s->p;
    }
    if (!key->object)
        return status;
    s->p = start;
    if (*s->p == '{') {
        s->p++;
        status = object_members(d, s, key->object);
    } else if (*s->p == 'n') {
        status = json_literal(s, "null", 4);
    } else if (behind) {
        s->p = behind;
    } else {
        return scan_refuse(s, REFUSAL_TYPE, "a column's path leads into an object, this is none");
    }
    return status;
}

/* The value at s->p of a key that isn't simple, or that another place was expected at. */
static int member_value(struct decoder *d, struct scan *s, const struct place *at, bool is_root)
{
    if (!at->key)
        return skip_member(d, s, at, is_root);
    if (at->key->simple)
        return slot_value(d, at->key->slots, s);
    return shared_value(d, s, at->key);
}

/*
 * The members of an object whose brace was passed, and its closing brace. The loop proper is the
 * record that looks like the last one; everything else leaves it for a moment.
 */
static int object_members(struct decoder *d, struct scan *s, const struct plan_object *object)
{
    struct place at = {.first = true};
    struct expect *e = object->expect;
    const uint8_t *p = s->p, *end = s->end;
    bool is_root = object == d->root;
    int status;

    if (s->depth >= LIMIT_JSON_DEPTH)
        return scan_refuse(s, REFUSAL_DEPTH, "nested deeper than %d levels", LIMIT_JSON_DEPTH);
    s->depth++;
    for (;;) {
        if (likely(expect_is(e, p, end))) {
            struct slot *slot = e->slot;
            at.key = e->key;
            at.key_at = p + e->key_at;
            p += e->size;
            e++; /* the one behind the last is never filled, so never passed */
            at.first = false;
            if (likely(slot && p<end && * p> ' ' && *p != 'n')) {
                struct column *node = slot->node;
                if (unlikely(slot->seen == d->stamp)) {
                    s->p = p;
                    return refuse_twice(slot, s);
                }
                slot->seen = d->stamp;
                column_mark(node);
                d->hits++;
                p = node->append(node, s, p);
                if (unlikely(!p))
                    return refuse_column(slot, s, s->status);
                continue;
            }
            s->p = p;
        } else {
            s->p = p;
            at.expect = e;
            status = next_key(s, object, &at);
            if (status != SPOOL_OK)
                return status;
            if (at.end)
                break;
            e = at.expect;
            at.first = false;
        }
        s->p = json_blank(s->p, end);
        if (unlikely(s->p == end))
            return scan_refuse_token(s, "a value");
        status = member_value(d, s, &at, is_root);
        if (status != SPOOL_OK)
            return status;
        p = s->p;
    }
    s->depth--;
    return SPOOL_OK;
}

/* Framing, byte order mark and blanks in front of the object. */
static int record_open(struct decoder *d, struct scan *s)
{
    if (d->schema->schema_registry_framing) {
        if (s->end - s->p < FRAMING_BYTES || *s->p != 0)
            return scan_refuse(s, REFUSAL_FRAMING,
                               "the record does not start with a schema registry's five bytes");
        s->p += FRAMING_BYTES;
    }
    if (s->end - s->p >= 3 && memcmp(s->p, "\xef\xbb\xbf", 3) == 0)
        s->p += 3;
    s->p = json_blank(s->p, s->end);
    if (s->p == s->end)
        return scan_refuse(s, REFUSAL_NOT_JSON, "the record is empty");
    if (*s->p == '{')
        return SPOOL_OK;
    if (strchr("[\"-0123456789tfn", *s->p) && *s->p)
        return scan_refuse(s, REFUSAL_NOT_OBJECT, "the record is not a JSON object");
    return scan_refuse_token(s, "a JSON object");
}

static int fill_rest(struct decoder *d, const struct record *record, struct scan *s)
{
    int status = SPOOL_OK;

    if (unlikely(d->hits != d->key_slots)) {
        for (size_t i = 0; i < d->slot_count && status == SPOOL_OK; i++) {
            struct slot *slot = &d->slots[i];
            if (slot->column->source == SOURCE_KEY && slot->seen != d->stamp) {
                slot_begin(d, slot);
                status = refuse_column(slot, s, slot_missing(d, slot, s));
            }
        }
    }
    for (size_t i = 0; i < d->other_count && status == SPOOL_OK; i++) {
        struct slot *slot = d->others[i];
        slot_begin(d, slot);
        status = refuse_column(slot, s, slot_fact(d, slot, record, s));
    }
    return status;
}

/* The columns of a flattened Nested must agree, or the server refuses the whole block (190). */
static int check_groups(struct decoder *d, struct scan *s)
{
    for (size_t i = 0; i < d->group_count; i++) {
        const struct nested_group *group = &d->groups[i];
        const struct column *first = group->slots[0]->node;
        for (size_t j = 1; j < group->count; j++) {
            const struct column *node = group->slots[j]->node;
            if (group->slots[0]->left_at == d->stamp || group->slots[j]->left_at == d->stamp)
                continue; /* the server makes it */
            if (node->count - node->count_mark == first->count - first->count_mark)
                continue;
            scan_refuse(s, REFUSAL_TYPE, "the array is not as long as that of column %.100s",
                        group->slots[0]->column->name);
            return refuse_column(group->slots[j], s, SPOOL_E_REFUSED);
        }
    }
    return SPOOL_OK;
}

static int row_read(struct decoder *d, const struct record *record, struct scan *s)
{
    int status = record_open(d, s);

    if (status != SPOOL_OK)
        return status;
    d->object = s->p++;
    status = object_members(d, s, d->root);
    if (status != SPOOL_OK)
        return status;
    d->object_end = s->p;
    s->p = json_blank(s->p, s->end);
    if (unlikely(s->p != s->end))
        return scan_refuse(s, REFUSAL_NOT_JSON, "not JSON: text behind the object");
    status = fill_rest(d, record, s);
    if (status == SPOOL_OK && d->group_count)
        status = check_groups(d, s);
    return status;
}

static void row_undo(struct decoder *d)
{
    for (size_t i = 0; i < d->slot_count; i++)
        if (d->slots[i].seen == d->stamp && d->slots[i].node)
            column_rollback(d->slots[i].node);
}

static size_t raw_bytes(const struct decoder *d, uint32_t rows)
{
    size_t n = d->head_bytes + rows * d->row_bytes;

    for (size_t i = 0; i < d->variable_count; i++) {
        const struct column *node = d->variable[i]->node;
        n += node->composite ? column_bytes(node) : node->data.len;
    }
    return n;
}

/*
 * Whether the row just read keeps the block within its bound. Where a row can't add more than a
 * number known from its size, the bytes are counted only when those numbers have used up what was
 * left at the last count.
 */
static bool block_has_room(struct decoder *d, size_t record_size)
{
    size_t most, used;

    if (d->is_bounded) {
        most = d->row_bytes_most + d->variable_count * record_size;
        if (likely(most <= d->room)) {
            d->room -= most;
            return true;
        }
    }
    used = d->done.len + raw_bytes(d, d->rows + 1);
    if (used > d->max_raw_bytes)
        return false;
    d->room = d->max_raw_bytes - used;
    return true;
}

static int row_begin(struct decoder *d, const struct record *record, struct refusal *why)
{
    struct scan s = {.p = record->data,
                     .begin = record->data,
                     .end = record->data + record->size,
                     .strict = d->schema->strict,
                     .why = why,
                     .scratch = &d->scratch};

    d->stamp++;
    d->hits = 0;
    d->rest.len = 0;
    return row_read(d, record, &s);
}

static int part_finish(struct decoder *d);

/*
 * Columns that the server is to fill in are left out of the whole Native block. A row that lacks
 * others than the rows before it did begins a part, which is a Native block of its own.
 */
static int row_fit_part(struct decoder *d, const struct record *record, struct refusal *why)
{
    bool same = true;
    size_t left = 0;
    int status;

    for (size_t i = 0; i < d->leaving_count; i++) {
        bool leaves = d->leaving[i]->left_at == d->stamp;
        left += leaves;
        same = same && leaves == d->leaving[i]->leaves;
    }
    if (left == d->slot_count) {
        *why = (struct refusal){.code = REFUSAL_REQUIRED};
        snprintf(why->reason, sizeof(why->reason),
                 "no column has a value: the server can't be left to fill in all of them");
        return SPOOL_E_REFUSED;
    }
    if (!same && d->rows > 0) {
        row_undo(d);
        d->stamp++; /* nothing more to undo */
        status = d->parts + 1 < PARTS_MAX ? part_finish(d) : SPOOL_E_LIMIT;
        if (status == SPOOL_OK)
            status = row_begin(d, record, why);
        if (status != SPOOL_OK)
            return status;
    }
    for (size_t i = 0; i < d->leaving_count && d->rows == 0; i++)
        d->leaving[i]->leaves = d->leaving[i]->left_at == d->stamp;
    return SPOOL_OK;
}

int decoder_row(struct decoder *d, const struct record *record, struct refusal *why)
{
    int status = row_begin(d, record, why);

    if (d->schema->format == FORMAT_JSON) {
        if (status == SPOOL_OK)
            status = decoder_line(d);
        row_undo(d); /* the line is what stays */
    } else {
        if (status == SPOOL_OK && d->leaving_count)
            status = row_fit_part(d, record, why);
        if (status == SPOOL_OK && !block_has_room(d, record->size))
            status = SPOOL_E_LIMIT;
        if (unlikely(status != SPOOL_OK))
            row_undo(d);
    }
    if (likely(status == SPOOL_OK))
        d->rows++;
    return status;
}

/* ---- blocks ---- */

uint32_t decoder_rows(const struct decoder *d)
{
    return d->done_rows + d->rows;
}

size_t decoder_raw_bytes(const struct decoder *d)
{
    if (d->schema->format == FORMAT_JSON || d->rows == 0)
        return d->done.len;
    return d->done.len + raw_bytes(d, d->rows);
}

static int finish_native(struct decoder *d, struct buf *raw)
{
    size_t start = raw->len, columns = d->slot_count;
    int status = buf_reserve(raw, raw_bytes(d, d->rows) + 20);

    for (size_t i = 0; i < d->leaving_count; i++)
        columns -= d->leaving[i]->leaves;
    if (status == SPOOL_OK)
        status = buf_put_varuint(raw, columns);
    if (status == SPOOL_OK)
        status = buf_put_varuint(raw, d->rows);
    for (size_t i = 0; i < d->slot_count && status == SPOOL_OK; i++) {
        size_t head = i ? d->head_end[i - 1] : 0;
        if (d->slots[i].leaves)
            continue;
        if (d->slots[i].may_index) {
            bool written;
            status = dictionary_write(&d->slots[i], d->rows, raw, &written);
            if (status != SPOOL_OK || written)
                continue;
        }
        status = buf_append(raw, d->head.data + head, d->head_end[i] - head);
        if (status == SPOOL_OK)
            status = column_write(d->slots[i].node, raw);
    }
    if (status != SPOOL_OK)
        raw->len = start;
    return status;
}

/* What one huge record made large is not kept for ever. */
static void give_back(struct buf *b)
{
    if (b->cap > KEEP_BUFFER_BYTES)
        buf_free(b);
}

/* The rows at hand leave the columns. */
static void part_forget(struct decoder *d)
{
    for (size_t i = 0; i < d->slot_count; i++)
        if (d->slots[i].node)
            column_reset(d->slots[i].node);
    d->rows = 0;
    d->room = 0;
}

/* What is in the columns goes behind the parts that are done. */
static int part_finish(struct decoder *d)
{
    int status = finish_native(d, &d->done);

    if (status != SPOOL_OK)
        return status;
    d->done_rows += d->rows;
    d->parts++;
    part_forget(d);
    return SPOOL_OK;
}

int decoder_finish(struct decoder *d, struct buf *raw)
{
    size_t start = raw->len;
    int status;

    if (decoder_rows(d) == 0)
        return SPOOL_OK;
    status = buf_append(raw, d->done.data, d->done.len);
    if (status == SPOOL_OK && d->rows > 0 && d->schema->format == FORMAT_NATIVE)
        status = finish_native(d, raw);
    if (status != SPOOL_OK) {
        raw->len = start;
        return status;
    }
    part_forget(d);
    d->done_rows = 0;
    d->parts = 0;
    buf_reset(&d->done);
    give_back(&d->done);
    give_back(&d->scratch);
    give_back(&d->rest);
    give_back(&d->fact);
    return SPOOL_OK;
}

unsigned decoder_wants(const struct decoder *d)
{
    return d->wants;
}

int decoder_begin(struct decoder *d, const struct record_place *place)
{
    int status = SPOOL_OK;

    d->place = *place;
    for (size_t i = 0; i < d->other_count && status == SPOOL_OK; i++) {
        enum column_source source = d->others[i]->column->source;
        if (source == SOURCE_TOPIC || source == SOURCE_PARTITION || source == SOURCE_ORIGIN)
            status = slot_set_place(d, d->others[i]);
    }
    return status;
}
