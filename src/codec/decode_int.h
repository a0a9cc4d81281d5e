/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the decoder.
 *
 *   plan      the schema's paths as a trie of objects and keys (decode_plan.c)
 *   slot      one column of the schema: its node, where its value comes from, what stands in for a
 *             missing one (decode_fill.c)
 *   expect    per object, the keys of the last record in their order, each with the raw text that
 *             stood between the value before it and its own value (`,"name": `): one compare
 *             replaces scanning a comma, a key and a colon, looking the key up, and any blanks
 */
#ifndef CODEC_DECODE_INT_H
#define CODEC_DECODE_INT_H

#include "codec/column.h"
#include "codec/decode.h"
#include "codec/schema_int.h"

#define EXPECT_TEXT_BYTES 32
#define EXPECT_MAX        512

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

struct slot {
    struct column *node; /* owned; NULL: a type that isn't checked (JSON format) */
    const struct schema_column *column;
    uint64_t seen;       /* the row that filled it */
    struct slot *next;   /* the next slot fed by the same key */
    const char *literal; /* JSON text of the default or constant; NULL: none. Borrowed */
    struct buf place;    /* the literal's text where it comes from the record's place */
    struct buf encoded;  /* the literal's bytes, where node has no child */
    bool is_encoded;
    bool literal_is_null;
    bool may_index;      /* Native format: a block may have it as LowCardinality */
    bool left_out;       /* JSON format: the line has no such key, the server fills it in */
    bool may_leave;      /* Native format: a block may be without it, and the server fills it in */
    bool leaves;         /* ... and the block at hand is */
    uint64_t left_at;    /* the row that has no value for such a column */
    const uint8_t *text; /* JSON format: the value of an unchecked column, as it stands */
    size_t text_size;
};

struct plan_key {
    char *name; /* owned; not NUL-terminated */
    size_t size;
    struct slot *slots;         /* columns fed by its value, chained by next; may be NULL */
    struct plan_object *object; /* owned: keys below it; may be NULL */
    bool simple;                /* one slot with a node, no object; Native format */
};

struct expect {
    uint8_t text[EXPECT_TEXT_BYTES];
    uint8_t counts[EXPECT_TEXT_BYTES];
    struct plan_key *key; /* NULL: one that no column takes */
    struct slot *slot;    /* of a simple key */
    uint8_t size;         /* 0: nothing learned here */
    uint8_t key_at;       /* of the key's opening quote */
};

struct plan_object {
    struct plan_key *keys;
    size_t count;
    uint32_t *table; /* index + 1, open addressing; 0 = free */
    uint32_t mask;
    struct expect *expect; /* count expect_count, and one more that is never filled */
    struct expect *expect_last;
};

/* Columns `n.a`, `n.b` of a flattened Nested: their arrays must be equally long in each row. */
struct nested_group {
    struct slot **slots;
    size_t count;
};

struct decoder {
    const struct schema *schema;
    size_t max_raw_bytes;
    struct slot *slots;
    size_t slot_count;
    size_t key_slots;     /* from keys */
    struct slot **others; /* from anything else, and */
    size_t other_count;
    struct slot **leaving; /* those that a block may be without */
    size_t leaving_count;
    struct slot **variable; /* those whose bytes don't follow from the number of rows */
    size_t variable_count;
    size_t row_bytes; /* of all other columns together */
    bool is_bounded;  /* a row adds at most row_bytes_most and the record per variable */
    size_t row_bytes_most;
    size_t room; /* bytes certainly left at the last count */
    size_t head_bytes;
    struct buf head;  /* of a Native block behind the row count: per column name and type */
    size_t *head_end; /* where column i's part of it ends */
    struct plan_object *root;
    struct zone_list zones;
    struct nested_group *groups;
    size_t group_count;
    locale_t c_locale;
    unsigned wants; /* RECORD_WANTS_* */
    bool has_rest;
    /* the row at hand */
    uint64_t stamp;
    size_t hits;
    struct buf scratch; /* unescaped strings */
    struct buf rest;    /* members no column took */
    struct buf fact;    /* JSON text of a fact */
    const uint8_t *object, *object_end;
    struct record_place place;
    /* the block */
    uint32_t rows;      /* of the part at hand */
    uint32_t done_rows; /* of the parts in done */
    unsigned parts;     /* in done */
    struct buf done;    /* JSON format: lines; Native: parts that have other columns left out */
};

/* decode_plan.c */
int plan_create(struct decoder *d, struct spool_error *error);
void plan_free(struct plan_object *object);
struct plan_key *plan_find(const struct plan_object *object, const uint8_t *name, size_t size);

/* decode_dictionary.c */
bool dictionary_fits(const struct slot *slot, const struct schema *schema);
/* Appends the column, head and data, where its rows make it worth it: *written, else nothing. */
int dictionary_write(const struct slot *slot, uint32_t rows, struct buf *raw, bool *written);

/* decode_fill.c */
int slot_set_literal(struct decoder *d, struct slot *slot, const char *literal,
                     struct spool_error *error);
int slot_set_place(struct decoder *d, struct slot *slot);
int slot_missing(struct decoder *d, struct slot *slot, struct scan *s);
int slot_null(struct decoder *d, struct slot *slot, struct scan *s);
int slot_fact(struct decoder *d, struct slot *slot, const struct record *record, struct scan *s);

/* The slot is being written in this row: remembers where it stood. False: it was already. */
static inline bool slot_begin(struct decoder *d, struct slot *slot)
{
    if (unlikely(slot->seen == d->stamp))
        return false;
    slot->seen = d->stamp;
    if (likely(slot->node != NULL))
        column_mark(slot->node);
    return true;
}

/* decode_json.c: the row at hand as a line of JSON */
int decoder_line(struct decoder *d);

#endif
