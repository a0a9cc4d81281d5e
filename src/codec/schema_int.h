/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the parts of codec/schema.h: resolving, serialising and DEFAULT literals. */
#ifndef CODEC_SCHEMA_INT_H
#define CODEC_SCHEMA_INT_H

#include "codec/schema.h"

/* Servers from here on convert the types of a block and fill NULL by DEFAULT. */
#define CONVERTING_MAJOR 22

/* The last source; sources are stored as their numbers. */
#define SCHEMA_SOURCE_MAX SOURCE_CONSTANT

/* Whether text is a path as schema.h defines it: no empty key, no lone backslash at the end. */
bool schema_path_valid(const char *text);

/* Appends text as a path of one key. */
int schema_path_escape(const char *key, struct buf *out);

/* Sets schema->hash from its serialised form. */
int schema_set_hash(struct schema *schema);

/* type without the wrappers Nullable, LowCardinality and SimpleAggregateFunction around it. */
const struct type *schema_core_type(const struct type *type);

/* Whether NULL is a value of type: Nullable under any other wrappers, Dynamic and Variant. */
bool schema_type_nullable(const struct type *type);

/* default_by_server in Native blocks: NULL stands for the DEFAULT; else the column is left out. */
bool schema_null_is_default(const struct schema_column *column);

/* Whether a block or a checked JSON value can be of this type: native, and a form that is written. */
bool schema_wire_sound(const struct type *wire);

/*
 * Turns a DEFAULT expression that is a literal for a column of this type into the JSON text that
 * decodes to the same value. SPOOL_E_NOT_FOUND when it is no literal, or one whose value is not
 * certain to come out the same.
 */
int schema_default_literal(const char *expression, const struct type *type, struct buf *json);

#endif
