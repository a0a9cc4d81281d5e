/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names that ClickHouse 26.7 knows beside a type's own (system.data_type_families): those of SQL and
 * of other databases, and its own in any case where it takes them so. 18.16 has fewer, with the same
 * meaning.
 */
#include "codec/type_int.h"

const struct type_alias type_aliases[] = {
    {"TINYINT", "Int8", "UInt8"},
    {"INT1", "Int8", "UInt8"},
    {"BYTE", "Int8", NULL},
    {"SMALLINT", "Int16", "UInt16"},
    {"INT", "Int32", "UInt32"},
    {"INTEGER", "Int32", "UInt32"},
    {"MEDIUMINT", "Int32", "UInt32"},
    {"BIGINT", "Int64", "UInt64"},
    {"SIGNED", "Int64", NULL},
    {"YEAR", "UInt16", NULL},
    {"UNSIGNED", "UInt64", NULL},
    {"BIT", "UInt64", NULL},
    {"SET", "UInt64", NULL},
    {"FLOAT", "Float32", NULL},
    {"REAL", "Float32", NULL},
    {"SINGLE", "Float32", NULL},
    {"DOUBLE", "Float64", NULL},
    {"DOUBLE PRECISION", "Float64", NULL},
    {"DECIMAL", "Decimal", NULL},
    {"DEC", "Decimal", NULL},
    {"NUMERIC", "Decimal", NULL},
    {"FIXED", "Decimal", NULL},
    {"DECIMAL32", "Decimal32", NULL},
    {"DECIMAL64", "Decimal64", NULL},
    {"DECIMAL128", "Decimal128", NULL},
    {"DECIMAL256", "Decimal256", NULL},
    {"BOOL", "Bool", NULL},
    {"BOOLEAN", "Bool", NULL},
    {"CHAR", "String", NULL},
    {"CHAR VARYING", "String", NULL},
    {"CHAR LARGE OBJECT", "String", NULL},
    {"CHARACTER", "String", NULL},
    {"CHARACTER VARYING", "String", NULL},
    {"CHARACTER LARGE OBJECT", "String", NULL},
    {"NATIONAL CHAR", "String", NULL},
    {"NATIONAL CHAR VARYING", "String", NULL},
    {"NATIONAL CHARACTER", "String", NULL},
    {"NATIONAL CHARACTER VARYING", "String", NULL},
    {"NATIONAL CHARACTER LARGE OBJECT", "String", NULL},
    {"NCHAR", "String", NULL},
    {"NCHAR VARYING", "String", NULL},
    {"NCHAR LARGE OBJECT", "String", NULL},
    {"VARCHAR", "String", NULL},
    {"VARCHAR2", "String", NULL},
    {"NVARCHAR", "String", NULL},
    {"TEXT", "String", NULL},
    {"TINYTEXT", "String", NULL},
    {"MEDIUMTEXT", "String", NULL},
    {"LONGTEXT", "String", NULL},
    {"CLOB", "String", NULL},
    {"BLOB", "String", NULL},
    {"TINYBLOB", "String", NULL},
    {"MEDIUMBLOB", "String", NULL},
    {"LONGBLOB", "String", NULL},
    {"BYTEA", "String", NULL},
    {"VARBINARY", "String", NULL},
    {"BINARY VARYING", "String", NULL},
    {"BINARY LARGE OBJECT", "String", NULL},
    {"BINARY", "FixedString", NULL},
    {"DATE", "Date", NULL},
    {"DATE32", "Date32", NULL},
    {"DATETIME", "DateTime", NULL},
    {"TIMESTAMP", "DateTime", NULL},
    {"DATETIME32", "DateTime32", NULL},
    {"DATETIME64", "DateTime64", NULL},
    {"TIME", "Time", NULL},
    {"TIME64", "Time64", NULL},
    {"ENUM", "Enum", NULL},
    {"ENUM8", "Enum8", NULL},
    {"ENUM16", "Enum16", NULL},
    {"INET4", "IPv4", NULL},
    {"INET6", "IPv6", NULL},
    {"JSON", "JSON", NULL},
    {"GEOMETRY", "Geometry", NULL},
};

const size_t type_aliases_count = sizeof(type_aliases) / sizeof(type_aliases[0]);

/* The only name of two spellings, and not in any case. */
static bool any_case(const struct type_alias *alias)
{
    return strcmp(alias->name, "GEOMETRY") != 0;
}

/* The end of the alias's words where they begin at, with any blanks between them; else NULL. */
static const char *alias_end(const struct type_alias *alias, const char *at, const char *end)
{
    for (const char *name = alias->name; *name; name++) {
        if (*name == ' ') {
            if (at == end || !type_is_blank(*at))
                return NULL;
            while (at < end && type_is_blank(*at))
                at++;
            continue;
        }
        if (at == end || (*at != *name && !(any_case(alias) && type_upper(*at) == *name)))
            return NULL;
        at++;
    }
    return at < end && type_is_word(*at) ? NULL : at;
}

const struct type_alias *type_alias_find(const char **at, const char *end)
{
    const struct type_alias *longest = NULL;
    const char *behind = *at;

    for (size_t i = 0; i < type_aliases_count; i++) {
        const char *to = alias_end(&type_aliases[i], *at, end);
        if (to && to > behind) {
            longest = &type_aliases[i];
            behind = to;
        }
    }
    *at = behind;
    return longest;
}
