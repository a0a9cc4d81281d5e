/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Columns being filled. A column is a tree of nodes, one for each level of its type that has bytes
 * of its own in a Native block (Nullable is a flag of the node below it; LowCardinality vanishes
 * where the wire form is the plain type). Each node is its bytes as they will go on the wire:
 *
 *     numbers, times, ...   data = values, width bytes each, little endian
 *     String, JSON          data = varuint length and bytes, one after the other
 *     Array, Map, Nested    data = u64 end offsets, then each child's elements
 *     Tuple                 its children; without elements a byte a row
 *     Variant, Dynamic      data = discriminators, then each child's values
 *     LowCardinality        data = u32 indexes (narrowed when written), child = the keys
 *     + Nullable            nulls = a byte each, in front of data
 *
 * so finishing a block is copying. A row is undone by cutting every node back to its mark.
 *
 * A new type needs: its append function, a case in column_create, in put_zero if its zero isn't
 * width zero bytes, in column_json.c, a row of docs/types.md and a case in type_is_native.
 */
#ifndef CODEC_COLUMN_H
#define CODEC_COLUMN_H

#include <locale.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "codec/datetime.h"
#include "codec/json.h"
#include "codec/type.h"

#define COLUMN_SLACK_BYTES 64 /* room behind every value for stores wider than the value */

struct bytes {
    uint8_t *data; /* owned */
    size_t len;
    size_t cap; /* COLUMN_SLACK_BYTES more are allocated */
    size_t mark;
};

struct enum_index {
    const struct type *type;
    uint16_t *slots; /* member number + 1, open addressing; 0 = free */
    uint32_t mask;
};

/* What a node's bytes are made of. */
enum column_form {
    FORM_PLAIN,
    FORM_LIST,            /* Array, Map, Nested and the geo types that are arrays */
    FORM_TUPLE,           /* and Point */
    FORM_VARIANT,         /* column_variant.c */
    FORM_LOW_CARDINALITY, /* LowCardinality in its own form, column_low_cardinality.c */
};

struct low_cardinality;
struct object_paths;

struct column {
    /*
     * Reads the value at p (never null) and appends it: returns where it ends, or NULL with
     * s->status set, and then the node may hold a part of it. The position travels in a register:
     * through s->p it would cost a store and a load per value in the chain everything waits for.
     */
    const uint8_t *(*append)(struct column *c, struct scan *s, const uint8_t *p);
    struct bytes data;
    bool composite;     /* more than data to mark and to undo */
    bool nullable;      /* NULL is a value of the type */
    bool wire_nullable; /* the block has a null map: nullable, or the server fills NULL in */
    bool truncate;      /* decimals may lose digits */
    bool is_key;        /* of a Map */
    struct bytes nulls; /* where wire_nullable */
    /* where wire_nullable: append without the flag */
    const uint8_t *(*append_value)(struct column *c, struct scan *s, const uint8_t *p);
    enum type_kind kind;     /* below Nullable and LowCardinality */
    const struct type *type; /* of that kind, borrowed */
    uint32_t width;          /* 0: variable */
    uint8_t scale;
    uint8_t precision;
    size_t max;     /* bytes a node may hold */
    uint64_t count; /* list: elements appended to each child */
    uint64_t count_mark;
    uint64_t count_max; /* more elements no block holds, whatever they are */
    enum column_form form;
    struct column **children; /* owned */
    size_t child_count;
    size_t shown, shown_nulls; /* how far column_json has read */
    /* times */
    struct local_clock clock;
    uint64_t day_text;   /* the last date read, its first eight bytes ... */
    uint16_t day_text_2; /* ... and the last two */
    int64_t day_s;       /* its midnight, local */
    struct enum_index members;
    locale_t c_locale;
    /* a Tuple's elements by name: the value (stamp) that filled each, and its names' lengths */
    uint64_t *seen;
    uint64_t stamp;
    size_t *name_sizes;
    uint8_t *order; /* Variant: its members as they are tried */
    size_t *saved;  /* Variant: where a member stood before it was tried */
    struct low_cardinality *keys;
    struct object_paths *paths; /* JSON */
};

/* What the columns of one decoder share. */
struct column_context {
    size_t max_bytes;
    bool truncate;
    const char *timezone; /* of types that name none */
    locale_t c_locale;
    struct zone_list *zones;
};

/* Zones by name, loaded once per decoder. */
struct zone_list {
    struct {
        char *name;
        struct tz_zone *zone;
    } * items;
    size_t count;
};
void zone_list_free(struct zone_list *list);
int zone_list_get(struct zone_list *list, const char *name, const struct tz_zone **zone,
                  struct spool_error *error);

/* SPOOL_E_UNSUPPORTED: no such type natively, or wire is no form of type. */
int column_create(const struct type *type, const struct type *wire,
                  const struct column_context *context, struct column **out,
                  struct spool_error *error);
void column_free(struct column *c);

/* Sets the append function and its state for a scalar kind. False: not supported. */
bool column_set_number(struct column *c);
bool column_set_text(struct column *c);
bool column_set_time(struct column *c);
bool column_set_wide(struct column *c);

/* The same for kinds with children, which they make. SPOOL_E_UNSUPPORTED: none of them. */
int column_make_list(struct column *c, const struct type *type, const struct type *wire,
                     const struct column_context *context, struct spool_error *error);
int column_make_tuple(struct column *c, const struct type *type, const struct type *wire,
                      const struct column_context *context, struct spool_error *error);
int column_make_variant(struct column *c, const struct type *wire,
                        const struct column_context *context, struct spool_error *error);
int column_make_low_cardinality(struct column *c, const struct type *type,
                                const struct column_context *context, struct spool_error *error);
int column_make_object(struct column *c);

/* Whether a member of a Variant may take the decimal that ended at s->p; see s->in_variant. */
bool variant_takes_decimal(const struct scan *s, bool has_exponent, bool quoted);

/* Makes the next child; the caller made room for it. */
int column_add_child(struct column *c, const struct type *type, const struct type *wire,
                     const struct column_context *context, struct spool_error *error);

/* An element of a list or Tuple at s->p, which may be null. */
int column_append_element(struct column *element, struct scan *s);

/* LowCardinality: the value just appended to the keys becomes a row. */
int low_cardinality_intern(struct column *c);
int low_cardinality_put(struct column *c, uint32_t key);
void low_cardinality_mark(struct column *c);
void low_cardinality_rollback(struct column *c);
void low_cardinality_reset(struct column *c);
size_t low_cardinality_bytes(const struct column *c);
int low_cardinality_write(const struct column *c, struct buf *out);
void low_cardinality_free(struct low_cardinality *keys);
void object_paths_free(struct object_paths *paths);
int enum_index_create(struct enum_index *index, const struct type *type);

int column_grow(struct bytes *b, size_t extra, size_t max) __attribute__((cold));

/* Room for extra bytes and the slack. */
static inline int column_reserve(struct column *c, size_t extra)
{
    if (__builtin_expect(c->data.cap - c->data.len >= extra, 1))
        return SPOOL_OK;
    return column_grow(&c->data, extra, c->max);
}

/* Appends the low width bytes of v, little endian. */
static inline int column_put(struct column *c, uint64_t v, unsigned width)
{
    int status = column_reserve(c, 8);
    if (__builtin_expect(status != SPOOL_OK, 0))
        return status;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    memcpy(c->data.data + c->data.len, &v, sizeof(v));
    c->data.len += width;
    return SPOOL_OK;
}

void column_mark_all(struct column *c);
void column_rollback(struct column *c);

/* Remembers where the node stands: what column_rollback goes back to. */
static inline void column_mark(struct column *c)
{
    c->data.mark = c->data.len;
    if (__builtin_expect(c->composite, 0))
        column_mark_all(c);
}

/* The same for the value at s->p, which is moved behind it. */
static inline int column_append(struct column *c, struct scan *s)
{
    const uint8_t *p = c->append(c, s, s->p);

    if (!p)
        return s->status;
    s->p = p;
    return SPOOL_OK;
}

int column_append_null(struct column *c);     /* wire_nullable only */
int column_append_not_null(struct column *c); /* the flag alone; nothing where there is none */
int column_append_zero(struct column *c);     /* NULL where nullable, else the type's zero */

/* The node that holds the column's values: the keys of a LowCardinality, else the column. */
static inline const struct column *column_value_node(const struct column *c)
{
    return c->form == FORM_LOW_CARDINALITY ? c->children[0] : c;
}

/* The low bytes of v as a value; for kinds of fixed width up to 8. */
int column_append_number(struct column *c, uint64_t v);

/* String and FixedString: these bytes. */
bool column_takes_bytes(const struct column *c);
int column_append_bytes(struct column *c, const void *data, size_t n, struct scan *s);

/* varuint length and bytes; c is a node of String's form */
int column_put_string(struct column *c, const void *data, size_t n);

size_t column_bytes(const struct column *c); /* on the wire */
int column_write(const struct column *c, struct buf *out);
void column_reset(struct column *c); /* empties; gives back memory it hardly used */

/*
 * Appends the next value as JSON that every server reads back to the same value; column_json_begin
 * goes back to the node's first.
 */
void column_json_begin(struct column *c);
int column_json(struct column *c, struct buf *out);

/* The type's spelling, for sentences. */
const char *column_type_text(const struct column *c);

#endif
