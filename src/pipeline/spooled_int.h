/* SPDX-License-Identifier: Apache-2.0 */
/* What came in and lies in the spool: records on their way, blocks, segments, origins. Part of
   pipeline_int.h. */
#ifndef PIPELINE_SPOOLED_INT_H
#define PIPELINE_SPOOLED_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "codec/decode.h"
#include "pipeline/pipeline.h"

struct kafka_partition;
struct load_job;
struct pipeline;
struct record_run;
struct stream;
struct stream_schema;
struct origin;

/* --- what is on disk ------------------------------------------------------------------------ */

enum block_state { BLOCK_WAITING, BLOCK_SEALED, BLOCK_ACKED };

struct block {
    struct spool_block_ref ref;
    struct origin *origin;
    uint64_t arrived_ms; /* monotonic; 0: before this process */
    uint32_t acked_rows; /* of a block that is delivered in pieces */
    enum block_state state;
    bool suspect; /* its rows may have been delivered before */
    struct block *next_in_segment;
    struct block *next_in_origin; /* unacknowledged ones, in order of offset */
    uint8_t lists;                /* how many of the two lists hold it; freed at 0 */
};

struct segment {
    uint64_t number;
    uint64_t rows, blocks_total; /* all it holds */
    uint64_t acked_blocks;
    uint64_t unacked_rows;
    uint64_t file_bytes;
    int64_t oldest_ms; /* wall clock, arrival of its first row */
    uint64_t begun_ms; /* the same, monotonic; 0: before this process */
    bool loaded;       /* its blocks are in first..last */
    bool loading;
    bool damaged;  /* its blocks are what was found of it */
    bool salvaged; /* ... or was, and a note says so */
    bool missing;  /* ... and the file is not there */
    bool kept;     /* ... and it stays: what is missing nobody else has */
    bool settling; /* ... and it is not durable yet what is missing */
    bool removing;
    bool newest;
    uint64_t acked_at_ms; /* monotonic, when it was first seen wholly acknowledged; 0: is not */
    struct block *first, *last;
    struct block *scan;           /* no block before it is waiting */
    struct stream_schema *schema; /* NULL until loaded */
    struct segment *next;
};

/* --- origins -------------------------------------------------------------------------------- */

/* Offsets that were held and can't be read any more (hole.c). */
struct hole {
    struct hole *next;   /* by first */
    int64_t first, last; /* [first, last]; empty where the rest of it is nowhere any more */
    int64_t asked;       /* below it the source handed over what it has */
    int64_t stored;      /* below it the spool holds it again */
    bool suspect;        /* rows of it may be in the table */
    bool ready;          /* its note is durable: it may be read for */
    uint64_t segment, sequence, after;
    int64_t noted_first; /* part of the note's key */
};

struct origin {
    struct stream *stream;
    uint32_t id, epoch;
    char *name;
    bool kafka; /* waits for its partition to be ours */
    bool owned; /* rows may be sealed */
    bool revoking;
    bool lost;                         /* revoking without the right to commit */
    struct kafka_partition *partition; /* NULL: not assigned */
    const char *topic;                 /* borrowed from the config; NULL: no Kafka */
    int32_t partition_number;          /* -1: no Kafka */
    int64_t high;                      /* highest offset made durable; -1: none */
    int64_t taken;                     /* highest offset handed over in this process; -1: none */
    struct spool_mark mark;            /* of the record at taken */
    int64_t held_to;       /* on_bad_record hold: the bad record is at or below; -1: none */
    int64_t accept_to;     /* bad records up to here may go to the dead letters */
    int64_t letters_to;    /* letters of what is read may stand up to here, of a process before this
                              one; INT64_MAX: not looked for yet */
    int64_t committed;     /* next offset last committed to Kafka; -1: none */
    int64_t front;         /* next offset to commit: all below is acknowledged; -1: none */
    bool commit_in_flight; /* `committed` was handed over and not answered */
    int64_t discard_to;    /* rows at or below are not to be sent; INT64_MAX: its epoch is over */
    bool superseded;       /* by another log, whose offsets are the same */
    bool unread;           /* its topic is none of the stream's any more; said once */
    int64_t told_from;     /* a table's rows from there on are of this log; INT64_MAX: none are */
    unsigned telling;      /* notes of it that are not durable yet */
    bool suspect;          /* its rows may be in the table */
    int64_t delivered_below; /* the group says so, by a commit of ours */
    bool log_over;           /* another log is in its place: nothing of it can be read any more */
    struct log_trace *trace; /* it is looked for where its log begins; NULL: it is not */
    struct record_run_node *runs_first, *runs_last; /* waiting for decode */
    uint32_t runs_unreleased;                       /* handed to us, not yet released */
    bool decoding;
    uint32_t blocks_undurable; /* decoded, and not on disk yet */
    bool ready;                /* in the stream's queue of origins to decode */
    struct origin *next_ready;
    struct block *first, *last; /* unacknowledged blocks known */
    struct hole *holes;
    struct origin *next;
};

struct record_run_node {
    struct record_run *run;
    struct kafka_partition *partition; /* it came from, for the credit; valid until given back */
    uint64_t arrived_ms;
    uint32_t count; /* as run has them: they outlive it */
    uint64_t bytes;
    bool accept_bad; /* decode once more with dead letters, although on_bad_record is hold */
    uint32_t take;   /* only its first records; the others lie behind the hole */
    int64_t cover_first, cover_last; /* offsets its blocks account for */
    struct spool_mark before;        /* the origin's mark without this run */
    bool refill, suspect;            /* as in the hole it is for */
    struct record_run_node *next;
};

/* --- intake --------------------------------------------------------------------------------- */

/* A block in memory, on its way to disk. */
struct pending_block {
    struct spool_block block;
    struct origin *origin;
    struct stream_schema *schema; /* counted */
    uint8_t *frames;              /* owned */
    int64_t *offsets;             /* owned, or NULL */
    uint64_t arrived_ms;
    bool replayed; /* of replay.c, which is told when it is durable */
    struct pending_block *next;
};

struct pending_dead {
    struct spool_dead letter;
    struct buf memory; /* record, key, headers, text: offsets fixed up when complete */
    struct pending_dead *next;
};

/* --- intake.c ------------------------------------------------------------------------------- */

void intake_run(struct origin *o, struct record_run *run, struct kafka_partition *partition);
void intake_advance(struct stream *s);
uint64_t intake_deadline_ms(const struct stream *s); /* 0: none */
bool intake_idle(const struct stream *s);
void intake_free(struct stream *s);
/* Gives back what waits for decode; again: it will be read again from the source. */
void intake_release_runs(struct stream *s, bool again);
void intake_drop_decoders(struct stream *s); /* the schema changed */

/* --- segment.c ------------------------------------------------------------------------------ */

int segments_recover(struct stream *s, struct spool_error *error);
/* What a block takes on disk, for the bound: its header, list and frames, in whole pages. */
uint64_t block_disk_bytes(uint64_t prefix_bytes, uint64_t frames_bytes);
void segments_appended(struct stream *s, struct pending_block *const *pending,
                       const struct spool_block_ref *refs, size_t count);
void segments_advance(struct stream *s); /* load ahead, remove behind */
uint64_t segments_deadline_ms(const struct stream *s);
struct segment *segment_find(struct stream *s, uint64_t number);
void segments_free(struct stream *s);
/* Waiting, and of an origin whose rows may be sealed. */
bool block_eligible(const struct block *b);
void block_set_state(struct stream *s, struct block *b, enum block_state state);
/* Counts again what is eligible: after an origin changed hands. */
void stream_recount(struct stream *s);
/* The first eligible block of the segment, from `from` on (NULL: from the start). */
struct block *segment_next_eligible(struct segment *g, struct block *from);
/* Marks acknowledged (durably) and moves the origin's front. */
void block_acked(struct stream *s, struct segment *g, struct block *b);
bool segments_all_loaded(const struct stream *s);
uint64_t stream_spooled_rows(const struct stream *s);
struct block *block_add(struct stream *s, struct segment *g, const struct spool_block_ref *ref,
                        uint64_t arrived_ms); /* NULL on no memory */
void block_drop(struct block *b);             /* from one of its two lists */
void segment_check_acked(struct segment *g);

/* --- segment_load.c ------------------------------------------------------------------------- */

void segment_load(struct stream *s, struct segment *g); /* batches_segment_loaded when it is */

/* --- segment_salvage.c ---------------------------------------------------------------------- */

void salvage_forget(struct stream *s, uint64_t segment); /* the damaged segment is gone */

/* --- origin.c ------------------------------------------------------------------------------- */

struct origin *origin_get(struct stream *s, uint32_t id); /* NULL on no memory */
struct origin *origin_find(struct stream *s, uint32_t id);
void origins_free(struct stream *s);
void origin_refresh_front(struct origin *o);
void origin_commit(struct origin *o);        /* tells Kafka, where the front moved and it is ours */
void origin_forget_commit(struct origin *o); /* the answer to what it was told never comes */
/* Something of it was handed over, and is not durable yet. */
bool origin_in_memory(const struct origin *o);
/* What is damaged of it can be read from its source again: it has one, and no other log is in its place. */
bool origin_reads_again(const struct origin *o);
/* The notes of what segments hold of an origin: its rows up to the offset are not to be sent; they may be
   in the table (1, no offset); those from the offset on are told apart there (told_from; where it is not
   noted, all of the first epoch and none of others). The change points into the memory given. */
enum origin_note { NOTE_DISCARD, NOTE_SUSPECT, NOTE_TOLD };
#define ORIGIN_NOTE_KEY_SIZE   64
#define ORIGIN_NOTE_VALUE_SIZE 32
struct spool_change origin_note(const struct stream *s, enum origin_note kind, uint32_t origin,
                                int64_t offset, char key[ORIGIN_NOTE_KEY_SIZE],
                                char value[ORIGIN_NOTE_VALUE_SIZE]);
/* Pool, meta lane: what they say, where they can be read; *up_to -1: there is none of the first kind. */
int origin_discard_noted(const struct stream *s, uint32_t origin, int64_t *up_to,
                         struct spool_error *error);
int origin_suspect_noted(const struct stream *s, uint32_t origin, bool *noted,
                         struct spool_error *error);
/* Pool, meta lane: told_from of an origin of that epoch. */
int origin_told_noted(const struct stream *s, uint32_t origin, uint32_t epoch, int64_t *from,
                      struct spool_error *error);
void origin_tell(struct origin *o, int64_t from); /* sets told_from, and notes it */
/* Once that note is durable: what waits of it is discarded, and what is loaded later. */
void origin_discard(struct origin *o, int64_t up_to);
/* Notes it and does that: what is queued behind the note is durable with it, or later. */
void origin_pass(struct origin *o, int64_t up_to);
/* What a record of the origin would say of its place, from the origin's name alone: for the pool,
   and for a partition that is not ours now. */
struct origin_place {
    struct record_place place; /* topic points into this structure */
    char topic[256];
};
void origin_place(const struct origin *o, struct origin_place *out);
bool block_discarded(const struct block *b, void *arg);
/* It is discarded, or was delivered before. */
bool block_settled(const struct block *b);
/* What waits in the segment, or in all that are loaded, and was delivered before: done with. */
void segment_skip_delivered(struct stream *s, struct segment *g);
void origin_skip_delivered(struct origin *o, int64_t committed);
void origin_suspect(struct origin *o); /* what waits of it, and what is loaded later */
/* Queues a durable discard of every waiting block of the segment that match says; its rows. */
uint64_t segment_discard(struct stream *s, struct segment *g,
                         bool (*match)(const struct block *b, void *arg), void *arg);

/* --- hole.c --------------------------------------------------------------------------------- */

struct hole_spec {
    struct origin *origin; /* of Kafka */
    int64_t first, last;
    uint64_t segment, sequence; /* of the damaged block; 0: the segment as a whole */
    uint64_t after;             /* refills have sequences above it */
    bool suspect;
};
/* The notes of new holes, to be committed with what else they belong to. changes has room for count;
   *memory is what they point into. */
int holes_plan(const struct hole_spec *specs, size_t count, struct spool_change *changes,
               char **memory);
void holes_add(const struct hole_spec *specs, size_t count); /* once that is durable */
/* The same in two steps, for those of a segment: known at once, read for once that is durable. */
void holes_link(const struct hole_spec *specs, size_t count);
void holes_ready(struct stream *s, uint64_t segment);
/* All below committed is acknowledged: no hole reaches there. */
void holes_clamp(struct origin *o, int64_t committed);
/* What lies above the highest offset held is read as new, since the segment that had it is lost: no hole
   reaches there. */
void holes_limit(struct origin *o);
int holes_recover(struct stream *s, struct spool_error *error);
/* Reads on at the first hole that is to be fetched, or behind what was taken; not where the log is over:
   where its partition begins in the next one is being looked up, and that job starts it. */
void origin_start_reading(struct origin *o);
/* Whether the run is for a hole: then says in node what of it, and sends the partition on. */
bool hole_run(struct origin *o, struct record_run *run, struct record_run_node *node);
void hole_run_dropped(struct origin *o, const struct record_run_node *node);
/* Whether it is a hole that [from, to) was read for: then counts what is gone for good. */
bool hole_gap(struct origin *o, int64_t from, int64_t to);
void hole_stored(struct origin *o, const struct spool_block_ref *ref); /* a refill is durable */
void holes_check(struct origin *o); /* closes those whose refills are acknowledged */
/* What Kafka may be told: the front, but never beyond a hole. */
int64_t origin_commit_limit(const struct origin *o);
/* The origin ended: nothing is read for it any more. lost: by nobody, so counts and names what is missing. */
void holes_forget(struct origin *o, bool lost);
void holes_free(struct origin *o);

#endif
