/* SPDX-License-Identifier: Apache-2.0 */
/* What a failed insert means: section "Failure" of docs/design.md, one table keyed by code. */
#ifndef SINK_ERROR_CLASS_H
#define SINK_ERROR_CLASS_H

#include <stddef.h>

enum error_class {
    CLASS_NONE = 0,    /* it worked */
    CLASS_TRANSIENT,   /* the same bytes again, with backoff, without end */
    CLASS_UPLOAD,      /* the bytes arrived damaged: verify the blocks, then again */
    CLASS_SCHEMA,      /* the table is not what it was */
    CLASS_TOO_BIG,     /* smaller batches */
    CLASS_ENVIRONMENT, /* an operator must act: hold, probe, go on by itself when mended */
    CLASS_DATA,        /* some row is bad */
    CLASS_UNKNOWN,     /* as transient; after a number of attempts trials tell whether it is a row,
                          else as environment */
    CLASS_COUNT
};

const char *error_class_name(enum error_class c); /* "transient", ... */

/* -1 where no class has that name. */
int error_class_by_name(const char *name, enum error_class *out);

/*
 * The first "Code: N" of text (any of the server's spellings), or 0. text need not be
 * NUL-terminated.
 */
int error_code_parse(const char *text, size_t size);

/*
 * code: ClickHouse's number, 0 for none; text: the server's words (some codes mean two things);
 * http_status: a hint where there is no code. native: the body was Native (code 117).
 */
enum error_class error_classify(int code, const char *text, int http_status, int native);

/*
 * 1 where the exception proves that no row of its INSERT was stored: raised while the request, the
 * table or the data was looked at. 0 for storage, replicas, shards, views, and codes not known.
 */
int error_proves_nothing_stored(int code, const char *text);

/*
 * 1 where one row among good ones can bring such an answer about: 117 by a value that a column's
 * expression can't decode, 32 by an empty text. Only trials tell, except for the class data.
 */
int error_may_be_of_a_row(int code, enum error_class class_);

/* 1 where it is raised before a part is put in its place, or by replicas: a token that was noted by
   then is not left behind without its part. */
int error_is_before_commit(int code);

/* 1 where memory or disk ran out while a part was being written: that part is not in. */
int error_is_no_room(int code);

/* 1 where the server answers, and takes no rows here for now: another one may. */
int error_turns_away(int code, enum error_class class_);

/* 1 where the table, or its database, does not exist. */
int error_is_no_table(int code);

/* 1 where a right that the user lacks is what is wanted. */
int error_is_of_rights(int code);

/* What there is to do where a SELECT of ours was refused for this code, beside granting rights; "": the
   server's own words say it. */
const char *error_question_advice(int code);

/* 1 where a materialized view threw: the table itself has all rows of the insert by then (measured
   on both servers). */
int error_is_of_view(const char *text);

/* 1 where it did so before it was given any row, as its table has too many parts: of the insert's rows
   the table itself has all or none, by the order in which its views were made (measured on 26.7;
   18.16 looks only behind the table). */
int error_is_before_view(int code, const char *text);

/* The operator's own verdicts ("error_classes" in the config); checked before the table. */
struct error_class_override {
    int code;
    enum error_class class_;
};
void error_class_set_overrides(const struct error_class_override *list, size_t count);

#endif
