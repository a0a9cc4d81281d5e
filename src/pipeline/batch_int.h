/* SPDX-License-Identifier: Apache-2.0 */
/* Batches: what is sealed, sent, asked for, and what is done about each answer. Part of
   pipeline_int.h. */
#ifndef PIPELINE_BATCH_INT_H
#define PIPELINE_BATCH_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "codec/frame.h"
#include "pipeline/search.h"
#include "pipeline/spooled_int.h"
#include "pipeline/target_int.h"
#include "sink/backoff.h"
#include "sink/clickhouse.h"

struct insert;
struct stream;

/* --- batches -------------------------------------------------------------------------------- */

enum batch_state {
    BATCH_LOADING,  /* recovered; its segment's index, and its schema, are not read yet, or lost */
    BATCH_SEALING,  /* the seal is on its way to meta */
    BATCH_WAITING,  /* sealed; to be sent, at retry_at_ms at the earliest */
    BATCH_CHECKING, /* its blocks' checksums are being verified */
    BATCH_SENDING,
    BATCH_ACKING, /* 200 is in; the acknowledgement is on its way to meta */
    BATCH_DONE,
    BATCH_STATES
};

/* Rows [row, row + rows) of a block. */
struct part {
    struct block *block;
    uint32_t row, rows;
};

struct feed;

struct batch {
    struct stream *stream;
    struct batch *next;
    uint64_t id;
    enum batch_state state;
    struct segment *segment;
    uint64_t segment_number;
    struct stream_schema *schema; /* what its rows are encoded anew for; NULL: they go as stored */
    struct buf schema_bytes;      /* of a recovered one, until its segment is loaded */
    struct part *parts;           /* in order of sequence and row */
    struct spool_range *ranges;
    size_t part_count; /* of parts and ranges */
    uint64_t rows, raw_bytes;
    uint64_t frames_bytes; /* of the body; known when checked */
    char token[256];
    char *settings;        /* pinned */
    struct buf attributes; /* of the seal, until it is durable */
    struct spool_seal seal;
    int64_t sealed_ms; /* wall clock */
    struct backoff backoff;
    uint64_t retry_at_ms;
    uint64_t ask_from_ms; /* what was sent of it may still be on its way to the server until then */
    uint32_t attempts;
    uint32_t stall_factor; /* 0: 1 */
    uint32_t schema_failures, upload_failures, unknown_failures;
    struct clickhouse_outcome *refusal; /* known before it is sent: what is to be done about it */
    bool refused_alone;                 /* ... and the answer was to one row, which b still is */
    bool unburied;                      /* HOLD_DEAD_FULL is because of its letters */
    bool lettered;                      /* letters of its rows may stand, which it has still */
    bool maybe_stored;                  /* an attempt ended without a definite answer */
    bool token_lost;  /* ... or failed while the server stored it; durable (token.c) */
    bool unaskable;   /* its endpoint would not say what it has of it */
    bool answered;    /* a 200 came, and is being proved by asking */
    bool view_failed; /* the table has the rows, a view of it may lack them */
    uint32_t too_big_failures;
    bool suspect;     /* its rows may be stored under another token: no token tells */
    bool unreadable;  /* it is damaged, and nobody else has its rows: not tried before a restart */
    bool unresolved;  /* recovered, and names blocks that are not there: it ends unsent */
    bool busy;        /* ask.c, hunt.c or replace.c has it, or unbury.c: not sent meanwhile */
    bool halved;      /* it is what is left of one that was halved for real */
    bool splits;      /* it is too big: what of it is not stored goes in halves */
    bool accepts_bad; /* the operator let the bad rows of it go, or of what it came from */
    uint64_t hunt_after_ms, hunt_wait_ms; /* held by a hunt: looked through no sooner */
    uint64_t blind_wait_ms; /* held, and each attempt may store its rows: the last pause */
    int endpoint;           /* it is sealed for; -1: one that is no longer configured */
    int sent_to;            /* of the last attempt of this process; -1: none */
    bool waits_logged;      /* that it waits for its endpoint */
    bool unfit_logged;      /* ... because of the table there */
    /* Clocks of this boot of the machine; 0: of another one, or not known. */
    int64_t server_start_ms; /* of the endpoint's server, as clickhouse_server_start said */
    int64_t sealed_boot_ms;
    char *replica_path; /* of the table there; NULL: none known */
    struct insert *insert;
    struct feed *feed;
};

/* --- batch.c -------------------------------------------------------------------------------- */

void batches_advance(struct stream *s);
uint64_t batches_deadline_ms(struct stream *s); /* 0: none */
void batches_free(struct stream *s);
void batches_abandon(struct stream *s); /* cancels what is being sent */
bool batches_idle(const struct stream *s);

/* The endpoint that the batch, which waits, goes to when its time has come; -1: none, for now. */
int batch_may_go(const struct batch *b);
/* Instead of being sent there: it may be in, and the token does not tell, a 200 is to be proved, or what
   the server said of it is known. */
bool batch_must_ask(const struct batch *b, int endpoint);

/* For batch_seal.c, ask.c, hunt.c and replace.c. */
struct batch *batch_new(struct stream *s, size_t parts);
void batch_free(struct batch *b);
void batch_link(struct stream *s, struct batch *b);
void batch_move(struct batch *b, enum batch_state to);
void batch_ack(struct batch *b);    /* its rows are in: acknowledges them durably */
void batch_remove(struct batch *b); /* unlinks and frees one whose seal is gone */
void batch_retry_later(struct batch *b, uint64_t delay_ms);
void batch_ask_later(struct batch *b); /* the table is asked about it after ask_delay, no sooner */
/* So many rows of it go again, and may be in already: says and counts it. */
void batch_possible_duplicates(struct batch *b, uint64_t rows, const char *reason);
/* The table as the endpoint that the batch is sealed for has it; NULL: not known. */
const struct table_description *batch_table(const struct batch *b);
bool batch_deduplicates(const struct batch *b);
/* The operator let any share of its rows go to the dead letters. */
bool batch_accepts_bad(const struct batch *b);
/* When it was sealed the table was not known to deduplicate: no attempt of it asks for that. */
bool batch_asks_no_deduplication(const struct batch *b);
/* What its rows are sent as. */
struct stream_schema *batch_schema(const struct batch *b);
/* Counts an acknowledged range; the block is done when all its rows are. */
void part_acked(struct stream *s, struct segment *g, const struct part *part);

/* --- token.c -------------------------------------------------------------------------------- */

/* Whether the table remembers so many of the latest inserts, with half of its window to spare. */
bool window_holds(const struct table_description *table, uint64_t inserts);
bool batch_token_young(const struct batch *b, const struct table_description *table);
/* Whether the same bytes under the same token are stored exactly once by this server, after an
   attempt whose outcome is not known: as far as can be said without asking the table. */
bool batch_token_holds(const struct batch *b, int endpoint);
/* Whether a 200 is no proof yet: an earlier attempt may have failed after its token was noted. */
bool batch_needs_proof(const struct batch *b);
/* Whether the answer may be of the moment between a token's note and its part. */
bool outcome_is_of_commit(const struct clickhouse_outcome *outcome);
/* From now on, also after a restart, the token is not believed. */
void batch_token_lost(struct batch *b);
/* The change that goes with the end of the seal, 0 where there is none; key is its memory. */
#define TOKEN_NOTE_SIZE 64
size_t batch_token_forget(const struct batch *b, char key[TOKEN_NOTE_SIZE],
                          struct spool_change *change);
int batch_tokens_recover(struct stream *s, struct spool_error *error); /* after the seals */

/* --- views.c -------------------------------------------------------------------------------- */

/* What is done where a view failed and the table can't be sent the same bytes again; false: it can,
   or no view failed. */
bool batch_view_failed(struct batch *b, const struct clickhouse_outcome *outcome);
void batch_views_give_up(struct batch *b, const char *reason); /* taken for stored */
void batch_views_unsure(const struct batch *b, uint64_t rows, const char *reason);
/* The table was asked and has so many rows of b. */
void batch_asked_stored(const struct batch *b, uint64_t rows);

/* --- refuse.c ------------------------------------------------------------------------------- */

/* What is done about an answer that is not yes. */
void batch_failed(struct batch *b, int endpoint, const struct clickhouse_outcome *outcome);
/* Whether that answer shows that nothing of b was stored, as only the table's own look tells. */
bool batch_proves_itself_out(const struct batch *b, const struct clickhouse_outcome *outcome);
/* Keeps an answer to act on instead of sending b, and does so: none of its rows are in. */
int batch_refusal_set(struct batch *b, const struct clickhouse_outcome *outcome);
void batch_refusal_take(struct batch *b, int endpoint);
/* Whatever is not plainly transient holds the stream; its batch alone is tried again. */
void batch_hold_for(struct batch *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void batch_hold_again(struct batch *b); /* for what it is held for already */

/* --- endpoint.c ----------------------------------------------------------------------------- */

/* The endpoint the stream's new work goes to: clickhouse_pick, but for those it avoids. */
int stream_pick(const struct stream *s);
/* An insert was refused there, and not for its rows. Whether the stream avoids the endpoint from now
   on: then everything is tried anew elsewhere. */
bool endpoint_refused(struct stream *s, int endpoint, const char *why);
void endpoint_took_rows(struct stream *s, int endpoint);
/* Whether the batch (NULL: a new one) may go there now: an endpoint that was avoided has one batch at
   a time until it takes one. */
bool endpoint_has_room(const struct stream *s, int endpoint, const struct batch *batch);
void endpoints_forgive(struct stream *s);               /* those that were avoided long enough */
uint64_t endpoints_deadline_ms(const struct stream *s); /* 0: none */
/* The endpoint an attempt goes to; -1: none now. */
int batch_endpoint(const struct batch *b);
/* Waits for an endpoint that may have its rows, while new work goes to another one; or for a partition
   that went. */
bool batch_parked(const struct batch *b);
/* May be stored at an endpoint that the stream avoids: it holds nothing up. */
bool batch_avoided(const struct batch *b);
/* Batches that take one of the stream's max_in_flight slots: all but the parked ones. */
unsigned batches_counted(const struct stream *s);
void batches_log_parked(struct stream *s);
/* Sealed for another endpoint and never sent: sealed anew for the one new work goes to. */
void batch_rehome(struct batch *b);
bool batch_replicated_at(const struct batch *b, int endpoint);
/* Another endpoint that is up and has the very table b went to: at which its token tells (by_token), or
   whose rows can at least be looked for. -1: none. */
int batch_replica(const struct batch *b, bool by_token);
/* Has the table at the other endpoints described, where it is not known: the next batch_replica tells. */
void batch_know_replicas(const struct batch *b);
/* Its endpoint would not be asked about it: it waits by itself while another endpoint is up. */
bool batch_waits_aside(const struct batch *b);

/* --- batch_seal.c --------------------------------------------------------------------------- */

/* Seals the next batch if one is due; whether anything was done. */
bool batch_seal_one(struct stream *s, uint64_t now);
/* The oldest segment that has something to seal. */
struct segment *batch_segment(struct stream *s);
/* Fills what a seal needs besides parts and rows: id, token, settings, attributes. */
int batch_prepare_seal(struct batch *b, int endpoint);

int batch_recover(struct stream *s, const struct spool_seal *seal);
/* Whether recovered batches of the segment name blocks it does not hold (unresolved). */
bool batches_segment_loaded(struct stream *s, struct segment *g);

/* --- feed.c --------------------------------------------------------------------------------- */

/*
 * The body for the given parts, all of b's segment. Everything is read and verified in the pool
 * (parts of blocks are cut out there, and encoded anew where b's rows are), then checked runs on
 * the loop with the body's size, or an error. The parts are copied.
 */
int feed_open(const struct batch *b, const struct part *parts, size_t count,
              void (*checked)(void *arg, uint64_t bytes, const struct spool_error *error),
              void *arg, struct feed **out);
enum frame_method feed_method(const struct feed *f); /* of every frame; known when checked */
/* After checked came with SPOOL_E_CORRUPT: whether it was this part that can't be read. */
bool feed_is_damaged(const struct feed *f, size_t part);
void feed_attach(struct feed *f, struct insert **insert); /* resumed when data is there */
size_t feed_read(void *feed, char *dst, size_t n);        /* an http_body_fn */
void feed_close(struct feed *f);                          /* waits for its job by itself */

/* --- replace.c ------------------------------------------------------------------------------ */

/*
 * In one commit: the seal of b goes, the spans in done are acknowledged, and each group of spans in
 * seals becomes a batch under a new token. Spans are ascending and together all of b. done (loop)
 * runs when it is durable; b is gone then.
 */
struct span_group {
    const struct row_span *spans;
    size_t count;
    struct stream_schema *schema; /* encoded anew for it from now on; NULL: as they go already */
    uint64_t raw_bytes;           /* of these rows so encoded; 0: as their blocks say */
    bool unreadable;
};
int batch_replace(struct batch *b, const struct row_span *acked, size_t acked_count,
                  const struct span_group *seals, size_t seal_count,
                  void (*done)(struct stream *s));
/* The same, and in the same commit rows among acked become holes: they are not in, and read again. */
int batch_replace_with_holes(struct batch *b, const struct row_span *acked, size_t acked_count,
                             const struct span_group *seals, size_t seal_count,
                             const struct hole_spec *holes, size_t hole_count);
/* The same, but for the rows of the given blocks, which are in no span: they wait unsealed. They are
   wholly b's. */
int batch_replace_unsealing(struct batch *b, const struct row_span *acked, size_t acked_count,
                            const struct span_group *seals, size_t seal_count,
                            struct block *const *unsealed, size_t unsealed_count);
/* The parts that the spans of b stand for; malloc'd. */
int batch_parts(const struct batch *b, const struct row_span *spans, size_t count,
                struct part **parts, size_t *part_count);

/* --- let_go.c ------------------------------------------------------------------------------- */

/* Whether the batch is under way, or may be stored and is sent or asked about before until_ms
   (monotonic), or could be sent at once. */
bool batch_ends_by(const struct batch *b, uint64_t until_ms);
/* Whether the batch, which is not under way, is not to be sent for its partitions' sake: it is known not
   to be stored, and one of them went; or it may be stored, and all of them went. */
bool batch_is_gone(const struct batch *b);
/* Some of its rows are of partitions that went, and some are not. */
bool batch_partly_gone(const struct batch *b);
/* Those of the stream: but for what may be sent of them, and what is settled by a commit. */
void batches_let_go(struct stream *s);

/* --- aside.c -------------------------------------------------------------------------------- */

/* Whether a failed read means that the bytes are not what they were, or gone; else it may pass. */
bool damage_is(int status, const struct spool_error *error);
/* Pool: which of the parts can't be read; reader NULL: none can. */
void damage_find(struct spool_reader *reader, const struct part *parts, size_t count,
                 bool *damaged);
/* Whether the offsets of a block's rows are known without reading it. */
bool block_is_dense(const struct spool_block_ref *ref);

/*
 * damaged[i]: part i of b can't be read. Replaces b: what is stored (spans of rows, as far as it is
 * known) is acknowledged, damaged rows are set aside, the rest is sealed anew. suspect: damaged rows
 * may be stored all the same.
 */
int batch_set_aside(struct batch *b, const bool *damaged, const struct row_span *stored,
                    size_t stored_count, bool suspect);

/* --- ask.c ---------------------------------------------------------------------------------- */

/* Whether the table holds what tells rows apart: topic, partition and offset, or origin and offset,
   in a MergeTree table. */
bool ask_by_origin(const struct stream_schema *schema, const struct table_description *table);
/* Whether the rows from that offset on are told apart by it. Not those of a replay, which hold their
   records' own places; nor where offsets of one name repeat from epoch to epoch (origin.told_from). */
bool origin_tells_apart(const struct origin *o, int64_t offset);
/* Whether both hold for this batch. */
bool ask_possible(const struct batch *b);
/* Finds out which rows of b are in, then acknowledges those and sends the rest under a new token;
   without an answer b is asked about again. Where asking is refused a replica is asked; else b waits by
   itself if another endpoint is up, or holds the stream. At another endpoint than its own, a replica,
   the rest counts as possible duplicates. Before ask_from_ms nothing is asked: b waits until then and
   starts anew. */
void ask_start(struct batch *b, int endpoint);

/* --- too_big.c ------------------------------------------------------------------------------ */

/* Whether b, too big for the server, should go again as it is. */
bool batch_too_big_again(struct batch *b);
/* Halves it; false: it is as small as it gets. */
bool batch_too_big(struct batch *b, const struct clickhouse_outcome *outcome);
/* As batch_replace, with the spans sealed anew in two halves. */
int batch_split(struct batch *b, const struct row_span *acked, size_t acked_count,
                const struct row_span *spans, size_t count);

/* --- unbury.c ------------------------------------------------------------------------------- */

void unbury_start(struct batch *b); /* removes the letters of b's rows; then b goes on */

/* --- hunt.c --------------------------------------------------------------------------------- */

/* b was refused for its data, or for what may be its data, and none of its rows are in: finds the
   bad rows, puts them to the dead letters, and seals the rest anew. alone: b is one row, and so was
   what was refused; else a single row left of it is tried by itself first. */
void hunt_start(struct batch *b, int endpoint, const struct clickhouse_outcome *outcome,
                bool alone);
/* --- halve.c -------------------------------------------------------------------------------- */

/* Seals b anew in two halves, each inserted for real, or holds the stream. */
void halve_for_real(struct batch *b, const char *why);
/* After a batch is gone: where nothing is left of any halving, the bound begins anew. */
void halves_forget(struct stream *s);

/* --- reencode.c ----------------------------------------------------------------------------- */

/*
 * The table does not take b's rows as they are stored. Tries each under the stream's schema, puts
 * those that do not fit to the dead letters, and seals the rest anew to be sent under it. A batch
 * that may be in the table is asked about first, or counted as possibly doubled.
 */
void reencode_start(struct batch *b, int endpoint);

#endif
