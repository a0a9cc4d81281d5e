/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared by the parts of codec/native.h. An opened column is a tree of nodes that point into the
 * block's bytes; every length and offset has been checked by then, so that reading a row or cutting
 * a slice needs no further checks.
 */
#ifndef CODEC_NATIVE_INT_H
#define CODEC_NATIVE_INT_H

#include "base/tzfile.h"
#include "codec/native.h"

struct native_node {
    const struct type *type; /* borrowed; never SIMPLE_AGGREGATE, which is stored as its value */
    uint64_t rows;
    /*
     * One entry of width bytes a row: fixed-width values, null flags, an array's end offsets,
     * indexes into LowCardinality's keys, a Variant's discriminators. Strings: their bytes.
     * Tuples with elements: nothing.
     */
    const uint8_t *data;
    size_t width;
    /* String: rows + 1 positions in data, of each value's length. Variant: each value's row in its
       member's node. Owned. */
    size_t *positions;
    /* LowCardinality: its bytes from the flags up to the number of indexes, and that number. */
    const uint8_t *head;
    size_t head_size;
    bool nullable_keys;           /* LowCardinality: key 0 is NULL */
    const struct tz_zone *zone;   /* DateTime and DateTime64; NULL: UTC */
    bool zone_unknown;            /* shown as UTC: the type's zone is none this system has */
    bool exact;                   /* shown so that a decoder makes the same value of it again */
    bool object;                  /* a String that holds a JSON column's objects */
    struct native_node *children; /* owned */
    size_t child_count;
};

struct native_column {
    char *name;          /* owned */
    struct type *type;   /* owned */
    const uint8_t *head; /* name and type as they stand in the block */
    size_t head_size;
    struct native_node node;
};

struct native_zone {
    char *name;
    struct tz_zone *zone; /* NULL: this system has none of that name */
};

struct native_block {
    struct native_block *next; /* the Native block behind this one; owned */
    uint64_t rows;
    struct native_zone *zones;
    size_t zone_count;
    struct native_column *columns;
    size_t column_count;
};

/* How LowCardinality and Variant begin a column: before any offsets around them. */
#define NATIVE_LOW_CARDINALITY_VERSION 1
#define NATIVE_VARIANT_BASIC           0
#define NATIVE_VARIANT_NULL            0xff

/* Entry `at` of an array of little-endian numbers of width 1, 2, 4 or 8. */
uint64_t native_number(const uint8_t *data, size_t width, uint64_t at);

/* The values before `row` in the children of a list: where row's own begin. */
uint64_t native_list_start(const struct native_node *node, uint64_t row);

/* Appends the value of one row as JSON. */
int native_json_value(const struct native_node *node, uint64_t row, struct buf *out);

#endif
