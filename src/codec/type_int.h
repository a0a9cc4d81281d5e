/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the parser (type_parse.c) and the rest (type.c) of codec/type.h. */
#ifndef CODEC_TYPE_INT_H
#define CODEC_TYPE_INT_H

#include "codec/type.h"

/* What may stand between the parentheses of a known name. */
enum shape {
    SHAPE_NONE,
    SHAPE_SIZE,          /* none, or (N), which says nothing: INT(11), VARCHAR(255) */
    SHAPE_SIZES,         /* none, (N), or (N, M), which say nothing: FLOAT(7, 4) */
    SHAPE_WIDTH,         /* (N) */
    SHAPE_ZONE,          /* none, or ('zone') */
    SHAPE_DATETIME,      /* none, ('zone'), (S), or (S, 'zone'): DateTime64 where S is not 0 */
    SHAPE_TIME,          /* none, or (S): Time64 where S is not 0 */
    SHAPE_SCALE,         /* none, or (S) */
    SHAPE_SCALE_ZONE,    /* none, (S), or (S, 'zone') */
    SHAPE_DECIMAL,       /* none, (P), or (P, S) */
    SHAPE_DECIMAL_SCALE, /* (S); the precision is the name's */
    SHAPE_ENUM,          /* ('name' = number, ...) */
    SHAPE_ONE,           /* (T) */
    SHAPE_TWO,           /* (K, V) */
    SHAPE_ELEMENTS,      /* (T, ...) or (name T, ...), may be empty */
    SHAPE_NAMED,         /* (name T, ...) */
    SHAPE_SEVERAL,       /* (T, ...) */
    SHAPE_FUNCTION,      /* (function, T) */
    SHAPE_OPAQUE,        /* anything balanced */
    SHAPE_GEO,           /* none; stands for another type */
    SHAPE_INTERVAL,      /* none; the unit is part of the name */
};

struct type_name {
    const char *name;
    enum type_kind kind;
    enum shape shape;
    uint32_t width;    /* of the value; SHAPE_DECIMAL_SCALE: the precision */
    const char *alias; /* SHAPE_GEO: what it is stored as */
};

/* Every name this version knows; the first entry of a kind is its canonical name. */
extern const struct type_name type_names[];
extern const size_t type_names_count;

struct type_alias {
    const char *name;       /* in capitals, one blank between words */
    const char *stands_for; /* in type_names */
    const char
        *when_unsigned; /* SIGNED or UNSIGNED may follow: what it is with the latter; or NULL */
};

extern const struct type_alias type_aliases[];
extern const size_t type_aliases_count;

/* The alias of the most words that begins at *at, in any case; *at moves behind it. Else NULL. */
const struct type_alias *type_alias_find(const char **at, const char *end);

static inline char type_upper(char c)
{
    return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
}

static inline bool type_is_word_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static inline bool type_is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static inline bool type_is_word(char c)
{
    return type_is_word_start(c) || type_is_digit(c);
}

static inline bool type_is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}

/* A position in a type name. The functions below fill error on failure. */
struct parser {
    const char *start;
    const char *at;
    const char *end;
    struct spool_error *error;
};

int parser_fail(struct parser *p, const char *what); /* SPOOL_E_SYNTAX, with the position */
int parser_fail_memory(struct parser *p);
void parser_skip_blanks(struct parser *p);
char parser_peek(struct parser *p); /* the next character that is no blank, 0 at the end */
bool parser_take(struct parser *p, char c);
int parser_expect(struct parser *p, char c);

/* A word, borrowed from the text; false when there is none. */
bool parser_word(struct parser *p, const char **word, size_t *size);
int parser_number(struct parser *p, int64_t min, int64_t max, int64_t *value);

/* A text in the quotes it begins with ( ' " or ` ), owned by the caller, a NUL behind it. */
int parser_quoted(struct parser *p, char **text, size_t *size);
int parser_quoted_cstr(struct parser *p, char **text); /* refuses empty ones and NULs inside */

/*
 * Reads the text in single quotes that begins at *at and moves *at behind it. *text is the caller's,
 * with a NUL behind its *size bytes (it may hold others).
 */
int type_unquote(const char **at, const char *end, char **text, size_t *size);

/* Orders Enum members by name. */
int type_member_order(const void *a, const void *b);

/*
 * Puts the members of a Variant into the order of their canonical names, whatever they were written as,
 * and leaves one of those that are the same: so the server numbers them (DataTypeVariant.cpp). NOMEM.
 */
int type_order_members(struct type *variant);

#endif
