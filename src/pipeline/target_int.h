/* SPDX-License-Identifier: Apache-2.0 */
/* The tables rows go to, and the schemas they go by. Part of pipeline_int.h. */
#ifndef PIPELINE_TARGET_INT_H
#define PIPELINE_TARGET_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "codec/schema.h"
#include "sink/backoff.h"
#include "sink/clickhouse.h"

struct stream;

/* --- schemas and tables --------------------------------------------------------------------- */

/* A schema in use, with what is derived from it; shared by segments, jobs and the stream. */
struct stream_schema {
    unsigned refs;
    struct schema *schema;
    struct buf serialized;
    char *column_list;
    struct target *target;       /* where rows of this schema go */
    uint64_t checked_generation; /* of the target's description it was compared with */
    bool accepted;
    bool replaceable; /* not accepted; its rows can be encoded anew for the stream's schema */
};

enum target_state { TARGET_UNKNOWN, TARGET_ASKING, TARGET_OK, TARGET_BAD };

/*
 * A table rows go to. A stream has one as configured, and one for each other destination that its
 * segments still name; it is described at the endpoint that new work goes to. Endpoints need not
 * have the same table: where a batch has to go elsewhere, the target has a site for that endpoint,
 * which is a description of its own and nothing else (it holds no stream, makes no schema).
 */
struct target {
    struct stream *stream;
    struct target *next;
    struct target *sites; /* linked by next */
    struct target *of;    /* of a site: the target it belongs to; NULL: it is a target */
    char *database;
    char *table;
    char *destination; /* as stored in segments */
    enum target_state state;
    bool asked_again; /* ask once more when the answer is in: the world changed meanwhile */
    size_t asked;     /* the endpoint that state, reason and retry_at_ms are about */
    size_t endpoint;  /* that description is of */
    struct table_description *description; /* the last good one; may be stale while not OK */
    uint64_t generation;                   /* of the description; no two of a stream are equal */
    struct buf cached;    /* what meta was last told of the description, or is about to be */
    uint64_t retry_at_ms; /* monotonic: ask again */
    struct backoff backoff;
    char reason[1024];
};

/* --- table.c -------------------------------------------------------------------------------- */

struct target *target_get(struct stream *s, const char *database, const char *table);
struct target *target_by_destination(struct stream *s, const char *destination);
void target_ask(struct target *t);     /* describe it as soon as an endpoint is up */
void target_advance(struct target *t); /* asks where it is due */
uint64_t target_deadline_ms(const struct target *t);
void targets_free(struct stream *s);
void target_forget(struct stream *s, size_t endpoint); /* it came up: nothing is certain there */
/* The table as that endpoint has it, t itself where new work goes; asked for where that is due.
   NULL on no memory. */
struct target *target_at(struct target *t, int endpoint);
/* Why rows can't go to the table as an endpoint has it that is not the one new work goes to; NULL: they
   can, or it is not known that they can't. */
const char *target_unfit_at(const struct target *t, int endpoint);
/* What is known of it there; NULL: nothing. */
const struct table_description *target_description(const struct target *t, int endpoint);

/* Whether rows of that schema may be sent to that endpoint now; where not, they can't be encoded
   anew either, and new work goes there, the target's stream is held. */
bool target_accepts(struct target *t, int endpoint, const struct stream_schema *schema);
/* Whether rows of that schema, which the table does not take, are sent under the stream's own. */
bool target_reencodes(struct target *t, int endpoint, const struct stream_schema *schema);
/* --- stream_schema.c ------------------------------------------------------------------------ */

/* Whether the table has a column of that name. */
bool description_has_column(const struct table_description *d, const char *name);

struct stream_schema *stream_schema_ref(struct stream_schema *ss);
void stream_schema_unref(struct stream_schema *ss);
/* Takes ownership of schema. */
int stream_schema_create(struct schema *schema, struct target *target, struct stream_schema **out);
/* From the cache in meta, or from the config's types. */
int stream_schema_at_start(struct stream *s, struct spool_error *error);
/* What was just described, into that cache. */
void target_cache(struct target *t);
/* New records are encoded for it from now on; takes ownership. */
int stream_adopt(struct stream *s, struct schema *schema);
/* Whether the table has each of the schema's columns with its type; reason: which not. */
bool schema_fits(const struct target *t, const struct schema *schema, char reason[512]);
/* Whether rows of one that does not fit can be encoded for the stream's; adds to reason why not. */
bool schema_replaceable(const struct target *t, const struct stream_schema *ss, char reason[512]);
const char *problems_text(struct buf *problems); /* as one line, for log and status */

#endif
