/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ClickHouse type names as trees. Parsing is pure, bounded (LIMIT_TYPE_DEPTH,
 * LIMIT_TYPE_TEXT_BYTES) and treats its text as hostile.
 */
#ifndef CODEC_TYPE_H
#define CODEC_TYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum type_kind {
    TYPE_INT8,
    TYPE_INT16,
    TYPE_INT32,
    TYPE_INT64,
    TYPE_INT128,
    TYPE_INT256,
    TYPE_UINT8,
    TYPE_UINT16,
    TYPE_UINT32,
    TYPE_UINT64,
    TYPE_UINT128,
    TYPE_UINT256,
    TYPE_FLOAT32,
    TYPE_FLOAT64,
    TYPE_BFLOAT16,
    TYPE_BOOL,
    TYPE_STRING,
    TYPE_FIXED_STRING, /* width = N */
    TYPE_UUID,
    TYPE_DATE,
    TYPE_DATE32,
    TYPE_DATETIME,   /* timezone or NULL */
    TYPE_DATETIME64, /* scale, timezone or NULL */
    TYPE_TIME,
    TYPE_TIME64, /* scale */
    TYPE_ENUM8,
    TYPE_ENUM16,  /* members */
    TYPE_DECIMAL, /* precision, scale; width = 4, 8, 16 or 32 bytes */
    TYPE_IPV4,
    TYPE_IPV6,
    TYPE_NULLABLE,
    TYPE_ARRAY,
    TYPE_LOW_CARDINALITY, /* children[0] */
    TYPE_TUPLE,
    TYPE_NESTED,  /* children, names where given */
    TYPE_MAP,     /* children[0] key, children[1] value */
    TYPE_VARIANT, /* children, in the order of their discriminators; Geometry is one too */
    TYPE_DYNAMIC,
    TYPE_JSON,             /* arguments kept as text */
    TYPE_SIMPLE_AGGREGATE, /* children[0] = the value type */
    TYPE_AGGREGATE,
    TYPE_POINT, /* this and the next five: children as they are stored, Point = two Float64 */
    TYPE_RING,
    TYPE_LINE_STRING,
    TYPE_MULTI_LINE_STRING,
    TYPE_POLYGON,
    TYPE_MULTI_POLYGON,
    TYPE_INTERVAL, /* IntervalSecond and its like */
    TYPE_OTHER,    /* a well-formed name this version does not know: spooled as JSON text only */
};

struct type_enum_member {
    char *name; /* owned, NUL-terminated; may hold any bytes, see name_size */
    size_t name_size;
    int16_t value;
};

struct type {
    enum type_kind kind;
    uint32_t width;                   /* bytes of a fixed-width value; FixedString: N; else 0 */
    uint8_t precision;                /* Decimal */
    uint8_t scale;                    /* Decimal, DateTime64, Time64 */
    char *timezone;                   /* owned; NULL = the server's */
    struct type_enum_member *members; /* owned, ordered by value */
    size_t member_count;
    struct type **children; /* owned */
    char **child_names;     /* owned; NULL array or NULL entries where unnamed */
    size_t child_count;
    char *text; /* owned: the spelling it was parsed from, trimmed; holds no NUL */
    char
        *spelling; /* owned: canonical spelling of what is not parsed further: all of DYNAMIC, JSON,
                       AGGREGATE, INTERVAL, OTHER and Geometry, the function of SIMPLE_AGGREGATE; else NULL */
};

/* Parses a whole type name. On failure *out is NULL and error names the position. */
int type_parse(const char *text, size_t size, struct type **out, struct spool_error *error);

void type_free(struct type *type); /* NULL is fine */

/* Canonical spelling: single blanks after commas, Decimal(P, S), names quoted where needed. */
int type_format(const struct type *type, struct buf *out);

/*
 * The same with the simplest type that a server which converts takes for it: no LowCardinality and
 * no SimpleAggregateFunction, String for JSON, a Variant of JSON's scalars for Dynamic. Variant stays as it is.
 */
int type_format_plain(const struct type *type, struct buf *out);

/* Same canonical spelling. */
bool type_equal(const struct type *a, const struct type *b);

/* A deep copy. */
int type_copy(const struct type *type, struct type **out);

/* Array and what is stored like one: end offsets, then each child's values one after the other. */
bool type_is_list(enum type_kind kind);

/* Whether a column of this type can go into Native blocks, in its own form or in its plain one. */
bool type_is_native(const struct type *type);

#endif
