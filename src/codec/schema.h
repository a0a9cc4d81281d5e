/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A schema: the ordered columns of the blocks of one segment, what each is made from, and in which
 * form it goes over the wire. Made by schema_resolve from the config's wishes and the table as the
 * server describes it; serialised into meta (so that spoold ingests while ClickHouse is down) and
 * into every segment (so that a segment explains itself). Immutable once made, and then readable
 * from any thread.
 *
 * A path names a key inside nested objects: `user.id` is the key "id" of the object under "user".
 * A backslash takes the next character as it is, so `n\.a` is the one key "n.a" and `\$oid` the key
 * "$oid". A column without `from` takes the key of its own name, literally: `n.a` of a flattened
 * Nested is read from the key "n.a", as JSONEachRow does, and its path is then `n\.a`.
 *
 * A server from 22.0 on converts blocks: LowCardinality(T) goes as T, SimpleAggregateFunction(f, T)
 * as T, JSON as String, Dynamic as a Variant of JSON's scalars, and NULL in a Nullable(T) block is filled by the column's DEFAULT.
 * An older one (18.16) takes the table's exact types only, LowCardinality in its own form.
 *
 * What a record without the key gets, where neither `default` nor `required` nor `strict` speaks:
 *   DEFAULT is a literal that fits       default_json, put in by spoold, on every server
 *   DEFAULT is another expression,
 *     a scalar column, converting server, native    NULL in a Nullable wire column
 *     otherwise, native                             a Native block without the column
 *     JSON, converting server                       a line without the key
 *     JSON, an older server                         a problem: the config has to decide
 *   no DEFAULT                           NULL in a Nullable column, else the type's zero
 * A block may hold several Native blocks for that, one behind the other, each without the columns that
 * its rows lack (decode.c bounds their number).
 */
#ifndef CODEC_SCHEMA_H
#define CODEC_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec/type.h"

enum column_source {
    SOURCE_KEY,         /* a (dotted) key of the record */
    SOURCE_RECORD,      /* $record: the whole record's text */
    SOURCE_REST,        /* $rest: an object of the top-level keys no column took */
    SOURCE_TOPIC,       /* $topic */
    SOURCE_PARTITION,   /* $partition */
    SOURCE_OFFSET,      /* $offset */
    SOURCE_MESSAGE_KEY, /* $key */
    SOURCE_TIMESTAMP,   /* $timestamp: ms since the epoch, as a time for time types */
    SOURCE_HEADERS,     /* $headers: an object; a name that comes twice keeps the last */
    SOURCE_ORIGIN,      /* $origin: the origin's name */
    SOURCE_RECEIVED_AT, /* $received_at: when spoold took it */
    SOURCE_CONSTANT,    /* the config's "value" */
};

enum schema_format { FORMAT_AUTO = 0, FORMAT_NATIVE = 1, FORMAT_JSON = 2 };
enum unknown_keys { UNKNOWN_IGNORE = 0, UNKNOWN_REFUSE = 1 };

/* What the config says of one column; strings borrowed. */
struct column_wish {
    const char *name;         /* the table's column */
    const char *type;         /* or NULL: the table's */
    const char *from;         /* path or $fact; NULL: the column's own name */
    const char *value;        /* constant, JSON text; NULL: none */
    const char *default_json; /* JSON text; NULL: none */
    bool required;
    bool truncate;
};

/* What system.columns says of one column; strings owned by the description. */
struct table_column {
    char *name;
    char *type;
    char *default_kind; /* "", DEFAULT, MATERIALIZED, ALIAS, EPHEMERAL */
    char *default_expression;
};

struct server_version {
    uint32_t major, minor, patch;
};

/* The stream's own settings that change what a record becomes. */
struct schema_options {
    enum schema_format format; /* as configured */
    enum unknown_keys unknown_keys;
    bool strict; /* a missing or null key of a column that is not Nullable is refused */
    bool schema_registry_framing;
    const struct column_wish *wishes; /* NULL: every ordinary column from the key of its name */
    size_t wish_count;
};

struct schema_column {
    char *name;        /* column name in the table */
    struct type *type; /* the table's type: what values are checked against */
    struct type *wire; /* what goes into the block: type itself, or a simpler form. Never has a
                          SimpleAggregateFunction, JSON or Dynamic in it, unless unchecked */
    enum column_source source;
    char *path;         /* SOURCE_KEY: see schema_path_next; else NULL */
    char *literal;      /* SOURCE_CONSTANT: JSON text; else NULL */
    char *default_json; /* value for a missing key or null, JSON text; NULL: the type's zero */
    char *default_expression; /* the table's own DEFAULT when it is no literal; NULL otherwise */
    bool default_by_server; /* the server fills in what is missing. FORMAT_NATIVE: wire is Nullable,
                               type is not, missing -> NULL, else a block without the column;
                               FORMAT_JSON: missing -> no key */
    bool required;
    bool truncate;
    bool unchecked; /* JSON format only: a type this version does not know */
};

struct schema {
    struct schema_column *columns;
    size_t count;
    enum schema_format format; /* FORMAT_NATIVE or FORMAT_JSON: decided */
    enum unknown_keys unknown_keys;
    bool strict;
    bool schema_registry_framing;
    struct server_version server; /* whose conversions the wire types were chosen for */
    char *server_timezone;        /* for DateTime without a zone */
    uint64_t hash;                /* XXH3-64 of the serialised form */
};

/*
 * Joins wishes and table. Every mismatch (a wished column the table lacks, a type that differs, a
 * constant that does not fit, an ALIAS mapped, two columns of one name, ...) is appended to
 * problems as one line "column x: ...", and the status is then SPOOL_E_INVALID and *out NULL.
 */
int schema_resolve(const struct schema_options *options, const struct table_column *columns,
                   size_t column_count, struct server_version server, const char *server_timezone,
                   struct schema **out, struct buf *problems);

/*
 * From the wishes alone (each has a type): for a start with an empty cache and no server. The same
 * rules; the wire types are those for `server`.
 */
int schema_from_wishes(const struct schema_options *options, struct server_version server,
                       const char *server_timezone, struct schema **out, struct buf *problems);

/* A versioned, self-contained form; schema_deserialize treats it as hostile. */
int schema_serialize(const struct schema *schema, struct buf *out);
int schema_deserialize(const void *data, size_t size, struct schema **out,
                       struct spool_error *error);

/* The same schema once more; free it with schema_free. SPOOL_E_NOMEM: *out is NULL. */
int schema_copy(const struct schema *schema, struct schema **out);

/*
 * The same columns, each read from the key of its own name and nothing else: for records that were
 * rebuilt from columns (native_block_row_json). Their blocks have the same columns and wire types.
 * A record with another key is refused: it was a column once, and would be dropped.
 */
int schema_by_name(const struct schema *schema, struct schema **out);

bool schema_equal(const struct schema *a, const struct schema *b);
void schema_free(struct schema *schema);

/*
 * Takes the next key of a path: writes it to key, unescaped and without a NUL (room for strlen(*path)
 * bytes is enough), its length to *size, and moves *path behind it. False at the end of the path.
 */
bool schema_path_next(const char **path, char *key, size_t *size);

/* The INSERT column list: names back-quoted, escaped, comma separated, without parentheses. */
int schema_column_list(const struct schema *schema, struct buf *out);

#endif
