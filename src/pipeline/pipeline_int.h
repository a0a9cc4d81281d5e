/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private parts of the pipeline. Everything here belongs to the loop thread, except what a job was
 * handed until its done callback runs. A job on a lane may use the libspool functions marked with
 * that lane's name, and no other.
 *
 * The way of a record, by file:
 *   kafka_in.c  partitions come and go; runs arrive          (origins)
 *   kafka_assign.c      ... where a partition begins
 *   kafka_member.c      ... under which name the group knows us
 *   kafka_left.c        ... what others went past of those that are not ours
 *   intake.c    run -> decode job (decode_job.c) -> dead letters -> append.c   (pending blocks)
 *   segment.c   what is on disk and waits; segment_load.c     (segments, blocks)
 *   segment_salvage.c   ... of a damaged segment
 *   origin.c    how far each origin is acknowledged, what of it is discarded
 *   hole.c      what of it was damaged and is read again
 *   batch.c     sealed (batch_seal.c) -> send -> ack          (batches)
 *   token.c     what a batch's token is worth after an attempt that told nothing
 *   drift.c     whether a repeat falls into the same partitions
 *   views.c     a materialized view failed, or may have
 *   endpoint.c  which server an attempt goes to
 *   refuse.c    what is done about an answer that is not yes
 *   feed.c      the body of an insert, read by pool jobs
 *   replace.c   a sealed batch becomes others, in one commit
 *   let_go.c    ... has rows of a partition that is taken away
 *   aside.c     ... without what of it can't be read
 *   ask.c       which rows of a batch are in the table
 *   hunt.c      which rows of a batch the table refuses; search.c says what to try
 *   bury.c      ... become dead letters
 *   unbury.c    ... and are none where the batch has them yet
 *   too_big.c   a batch the server has no room for goes in halves
 *   halve.c     the same by inserting halves for real
 *   reencode.c  rows of an old schema are sent under the current one
 *   dead_out.c  dead letters to a table and a topic beside the spool
 *   dead.c      the bound of the dead letters; replay.c (replay_decode.c) makes rows of them again
 *   table.c     the table at the other end; stream_schema.c: the schemas its rows go by
 *   meta.c      one transaction for every change that is ready
 *   pressure.c  the bound on disk
 *   lane.c      one job at a time per LMDB environment
 *
 * By theme: lane_int.h, spooled_int.h (records, blocks, segments, origins), target_int.h (tables and
 * schemas), batch_int.h; here is what holds them together, streams and the pipeline.
 */
#ifndef PIPELINE_INT_H
#define PIPELINE_INT_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/log.h"
#include "codec/decode.h"
#include "codec/frame.h"
#include "pipeline/batch_int.h"
#include "pipeline/drift.h"
#include "pipeline/lane_int.h"
#include "pipeline/pipeline.h"
#include "pipeline/spooled_int.h"
#include "pipeline/target_int.h"
#include "sink/backoff.h"
#include "source/kafka_producer.h"

/* --- streams -------------------------------------------------------------------------------- */

/* Why a stream is held; each bit has a sentence of its own. */
enum hold {
    HOLD_TABLE = 0,  /* the table is missing, a view, or does not match */
    HOLD_ANSWER,     /* ClickHouse refused a batch in a way that is not transient */
    HOLD_SCHEMA,     /* no schema yet: nothing can be decoded */
    HOLD_BAD_RECORD, /* on_bad_record: hold */
    HOLD_DEAD_FULL,  /* the dead letters reached their bound */
    HOLD_SEGMENT,    /* a segment is of a newer version, or names what nobody knows */
    HOLD_KAFKA,      /* the position is gone and auto_offset_reset is "error" */
    HOLD_NAMES,      /* a partition waits for a name in meta.mdb */
    HOLD_SEAL,       /* no room in meta.mdb for another seal */
    HOLD_NOTES,      /* ... for what became of those there are */
    HOLD_COUNT
};

/* With an endpoint that is up and refuses the stream's inserts (endpoint.c). */
struct endpoint_patience {
    uint64_t since_ms;       /* the first refusal behind the last insert it took; 0: none */
    uint64_t avoid_ms;       /* how long it was avoided the last time */
    uint64_t avoid_until_ms; /* 0: it is not */
};

struct stream {
    struct pipeline *p;
    const struct stream_options *options;
    struct spool_stream *spool;
    uint32_t id;
    struct lane lane;
    uv_timer_t timer;

    enum stream_state state;
    int64_t since_ms;
    bool paused; /* by the operator */
    bool full;
    bool holds[HOLD_COUNT];
    char hold_text[HOLD_COUNT][1024];
    char reason[1024];
    char table_text[512];
    char delivery_text[512];

    struct target *targets;           /* the first is the configured one */
    struct stream_schema *schema;     /* current; NULL until known */
    struct stream_schema *configured; /* what the spool was last told */

    struct segment *segments_first, *segments_last;
    struct origin *origins;
    struct origin **origin_table; /* open addressing by id */
    size_t origin_table_size, origin_count;

    struct origin *ready_first, *ready_last; /* have a run and no decode job */
    struct pending_block *append_first, *append_last;
    uint64_t append_rows, append_bytes;
    uint64_t undurable_bytes;                /* queued and being appended */
    uint64_t queued_blocks, appended_blocks; /* since start */
    bool appending;
    uint64_t append_retry_at_ms;
    bool append_refused; /* the last append found no room */
    uint64_t refused_at_ms;
    unsigned decoding; /* jobs of this stream */
    uint64_t decoding_bytes;
    unsigned queued_runs;
    bool runs_wait; /* for room in memory or on disk: what is queued goes to disk at once */
    struct decode_job *idle_jobs;    /* with decoders for ->schema */
    struct decode_job *dead_waiting; /* their dead letters found no room */
    uint64_t dead_retry_at_ms;       /* when to try again; UINT64_MAX: when there is room */
    struct log_gate append_gate;
    uint64_t flush_before_ms; /* what arrived until then is due now (spoolctl flush) */

    struct batch *batches;      /* all that are sealed or being sealed, by id */
    uint64_t batches_looked_ms; /* when it was last seen which of them may start */
    unsigned batch_count;
    uint64_t next_batch;
    uint64_t generations;           /* of table descriptions, so far */
    struct batch *probe;            /* while HOLD_ANSWER stands, only this one is tried */
    bool accept_bad;                /* any share of bad rows may go, until a batch goes in whole */
    double window_rows, window_bad; /* delivered and refused lately, for bad_ratio */
    uint64_t batch_rows_max; /* less than flush.rows while ClickHouse finds batches too big */
    struct endpoint_patience patience[LIMIT_ENDPOINTS];
    bool no_trial_table; /* it can't be made: rows are found by real inserts */
    bool trials_alone;   /* a trial failed for another reason: no more than one at once */
    unsigned halves;     /* inserted for real, of what is not settled yet */
    uint64_t eligible_rows, eligible_bytes, eligible_blocks; /* may be sealed, in loaded segments */
    bool loading;                                            /* one segment index at a time */
    uint64_t load_retry_at_ms;

    uint64_t segment_file_bytes; /* of all segment files */
    struct log_gate error_gate, view_gate, ask_gate;
    struct log_gate dead_gate, reason_gate;

    /* since start, for status */
    uint64_t records_in, rows_inserted, batches_acked, retries, views_unsure;
    uint64_t possible_duplicates, damaged_blocks;
    uint64_t dead_letters; /* in dead.mdb */
    uint64_t dead_bytes;
    uint64_t dead_own_bytes;     /* letters took of the room that is kept for the stream's rows */
    uint64_t dead_putting_bytes; /* letters under way may take */
    struct replay *replay;       /* NULL: none is under way */
    bool replayed;               /* there was one, ever */
    struct dead_out *outs[2];
    size_t out_count;
};

struct meta_op; /* meta.c */

struct pipeline {
    uv_loop_t *loop;
    const struct pipeline_options *options;
    struct spool *spool;
    struct metrics *metrics;
    struct pipeline_callbacks callbacks;
    void *arg;

    struct clickhouse *clickhouse;
    struct kafka_source *kafka;
    struct kafka_producer *producer; /* NULL: no stream has a topic for dead letters */
    struct kafka_options kafka_options;
    struct log_gate meta_gate;
    char instance_id[80];
    uint32_t member_number; /* part of it; kafka_member.c */
    bool member_loses, member_noting;
    bool member_back;      /* it was away for less than its session, and had all it holds rows of */
    uint64_t alive_due_ms; /* the next look for a sign of life */
    char boot_id[40];      /* of the machine; "": not known */
    uint64_t start_ms;     /* monotonic, when this process began */
    int64_t start_wall_ms;
    const char **topics;

    struct stream *streams;
    size_t stream_count;

    struct lane meta_lane, dead_lane;
    struct meta_op *meta_first, *meta_last;
    bool meta_running;
    size_t meta_changes_max; /* in one commit; few while there is no room for more */
    uint64_t meta_retry_at_ms;
    uint64_t seal_from_ms; /* a seal found no room: none is tried sooner */

    unsigned decoding, decode_max;
    uint64_t decoding_bytes;  /* of the runs in decode */
    uint64_t undurable_bytes; /* of all streams */
    uint64_t idle_bytes;      /* kept by decode jobs that have nothing to do */
    size_t idle_turn;         /* whose go first where it is too much */
    size_t decode_turn;       /* round robin over streams */

    uv_timer_t pressure_timer;
    bool pressure_running, pressure_again;
    bool nothing_drains; /* the spool holds only what stays when all is acknowledged */
    struct spool_usage usage;
    uint64_t grown_bytes;     /* appended since usage was taken */
    uint64_t appending_bytes; /* under way to the disk, of all streams */

    bool started, ready, draining, closing;
    bool fatal;
    unsigned revoking; /* a revocation waits for batches */
    uint64_t revoke_deadline_ms;
    uv_timer_t revoke_timer;
    struct assign_job *assigning; /* partitions whose start is being looked up */
    uint64_t left_look_ms;        /* when kafka_left.c asks next */
    uint64_t commit_again_ms;     /* when what was refused is committed again; 0: nothing was */
    unsigned jobs;                /* running or queued: closing waits for them */
    unsigned commits_in_flight;   /* origins with one */

    uv_timer_t drain_timer;
    uint64_t drain_deadline_ms;
    void (*drained)(void *arg);
    void *drained_arg;
    void (*closed)(void *arg);
    void *closed_arg;
    unsigned close_waits;
};

/* --- stream.c ------------------------------------------------------------------------------- */

int stream_init(struct stream *s, struct pipeline *p, const struct stream_options *options,
                struct spool_error *error);
void stream_dispose(struct stream *s);

/* Looks at everything that could go on, starts it, and sets the timer for the next look. Cheap;
   call it after any change. */
void stream_advance(struct stream *s);

/* Sets or clears one reason to hold; the only place besides stream_refresh that changes state. */
void stream_hold(struct stream *s, enum hold why, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void stream_unhold(struct stream *s, enum hold why);
void stream_set_full(struct stream *s, bool full);
void stream_refresh(struct stream *s); /* recomputes state, logs and counts a change */
bool stream_may_deliver(const struct stream *s);
void stream_update(struct stream *s); /* pauses what must wait, resumes what may flow */

/* Kafka partitions of the stream: pause or resume for one reason. */
void stream_pause_sources(struct stream *s, unsigned reason, bool pause);

/* The topic as the stream's options have it; NULL: it is none of the stream's. */
const char *stream_topic(const struct stream *s, const char *topic);
struct stream *pipeline_stream(struct pipeline *p, const char *name);
struct stream *pipeline_stream_of_topic(struct pipeline *p, const char *topic);
void pipeline_advance(struct pipeline *p); /* every stream */
void drain_check(struct pipeline *p);
double stream_oldest_age(const struct stream *s); /* seconds */
void pipeline_fatal(struct pipeline *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* --- dead.c --------------------------------------------------------------------------------- */

struct dead_stored {
    size_t put;              /* so many of those given, from the first on */
    uint64_t letters, bytes; /* what the stream has now */
    uint64_t grown_bytes;    /* of the disk, at most, that dead.mdb did not have before */
    bool counted;            /* by dead_stored_count: else what it has now is not known */
};
/* Pool, dead lane. As spool_dead_put, within the stream's bound: SPOOL_E_LIMIT where not all of them
   fit; and dead.mdb grows by room_bytes at most: SPOOL_E_FULL. */
int dead_put(struct stream *s, const struct spool_dead *letters, size_t count, uint64_t room_bytes,
             struct dead_stored *stored, struct spool_error *error);
/*
 * Pool, dead, meta and stream lanes. Removes the letters of records that are rows of these blocks: an
 * earlier process, or an earlier reading, found them bad, and they would become rows twice by a replay.
 * Also of records that are these rows or letters, which are sorted, from an epoch that somebody else's
 * commit ended; same_log: the log is known to be the one of then. *last: letters may stand up to there of
 * what begins at the first block; -1: none do.
 */
int dead_clear(struct stream *s, const struct pending_block *first,
               const struct spool_dead *letters, size_t letter_count, bool same_log, int64_t *last,
               size_t *removed, struct spool_error *error);
/* Pool, dead lane. All of them or none, whatever room there is on disk: what is spooled could not
   drain without them, and rows some of which are letters already may be inserted after all. */
int dead_put_all(struct stream *s, const struct spool_dead *letters, size_t count,
                 struct dead_stored *stored, struct spool_error *error);
/* What the stream has, after letters were put: pool, dead lane; then on the loop. They stand also where
   they can't be counted, and then count as more than before: a batch may have to remove them. */
void dead_stored_count(struct stream *s, struct dead_stored *stored);
void dead_stored_done(struct stream *s, const struct dead_stored *stored);
/* What letters may take of the disk, at most. */
uint64_t dead_disk_bytes(const struct spool_dead *letters, size_t count);
/* What the stream has in dead.mdb, after a job changed it, which may have taken grown_bytes of the disk. */
void dead_counted(struct stream *s, uint64_t letters, uint64_t bytes, uint64_t grown_bytes);

/* --- dead_out.c ----------------------------------------------------------------------------- */

int dead_out_create(struct stream *s); /* by its options; what was made is freed by dead_out_free */
void dead_out_advance(struct stream *s);
uint64_t dead_out_deadline_ms(const struct stream *s); /* 0: none */
void dead_out_added(struct stream *s, uint64_t letters);
/* Letters that destination i has not got yet; *name NULL: there is no such destination. */
uint64_t dead_out_waiting(const struct stream *s, size_t i, const char **name);
void dead_out_free(struct stream *s);

/* --- replay.c ------------------------------------------------------------------------------- */

#define REPLAY_ORIGIN_PREFIX "replay/"

void replay_advance(struct stream *s);
uint64_t replay_deadline_ms(const struct stream *s); /* 0: none */
bool replay_is_origin(const struct origin *o);       /* its rows are a replay's */
/* So many blocks of the stream's replay became durable. */
void replay_appended(struct stream *s, size_t blocks);
struct replay_recovered {
    size_t removed;
    size_t damaged; /* of these */
};

/* Removes letters whose rows a replay that did not end put into the spool, also such as are damaged by
   now; start, or pool with the dead, meta and stream lanes. */
int replay_recover(struct stream *s, struct replay_recovered *out, struct spool_error *error);
/* Start: whether there ever was one. */
int replay_was(struct stream *s, bool *was, struct spool_error *error);
void replay_abandon(struct stream *s); /* whoever asked is told; jobs may still run */
void replay_free(struct stream *s);

/* --- meta.c --------------------------------------------------------------------------------- */

/*
 * Queues one change. Memory in it is copied, except a seal's (borrowed until done). done may be
 * NULL; it runs on the loop once the change is durable.
 */
int meta_change(struct pipeline *p, const struct spool_change *change, void (*done)(void *arg),
                void *arg, struct stream *stream);
/* The same for several changes that must be durable together; done runs once. */
int meta_changes(struct pipeline *p, const struct spool_change *changes, size_t count,
                 void (*done)(void *arg), void *arg, struct stream *stream);
/* One change that is given up where there is no room for it: then refused is called, on the loop. */
int meta_try(struct pipeline *p, const struct spool_change *change, void (*done)(void *arg),
             void (*refused)(void *arg, const struct spool_error *error), void *arg,
             struct stream *stream);
/* Pool with the meta lane, or start. A note's value (malloc'd, with room for one byte more); NULL: there
   is no such note. One that can't be read is an error, and not one that is not there: else what it promises
   would be lost. *error is set with an error alone. */
int note_read(struct spool *spool, const char *key, void **value, size_t *size,
              struct spool_error *error);
void meta_advance(struct pipeline *p);
#define META_RETRY_MS    1000
#define META_CHANGES_MAX 4096
/* The disk is full, or meta.mdb is as large as it may be; once in a while. */
void meta_log_full(struct pipeline *p, const struct spool_error *error, const char *action);
bool meta_idle(const struct pipeline *p);
void meta_free(struct pipeline *p);

/* --- kafka_in.c ----------------------------------------------------------------------------- */

int kafka_in_create(struct pipeline *p, struct spool_error *error);
/* Ends a revocation when it can; tries again to take partitions that waited for room. */
void kafka_in_advance(struct pipeline *p);
/* The origin's name became known: is its partition ours already? */
void kafka_in_adopt(struct origin *o);
void kafka_in_released(struct pipeline *p, const struct record_run_node *node);
void kafka_in_revoke_timer(uv_timer_t *timer);
/* Of a partition that is not ours it is known that another has it, or will be known in a moment: false
   where the group has given no answer for so long after the start that none is waited for. */
bool kafka_in_knows_owners(const struct pipeline *p);

/* --- kafka_assign.c ------------------------------------------------------------------------- */

/*
 * Looks up, in a job, where the partition begins, makes it its origin's and starts it. new_epoch: what
 * was taken of it is of another log; other_log: which the source has seen, so that this one is read
 * from its beginning and not by policy.
 */
void kafka_assign(struct pipeline *p, struct kafka_partition *partition,
                  const struct kafka_committed *committed, bool new_epoch, bool other_log);
/* The partition goes before that is known. */
void kafka_assign_gone(struct pipeline *p, const struct kafka_partition *partition);
void kafka_assign_told(struct origin *o);    /* what of it can be told is noted */
void kafka_assign_retry(struct pipeline *p); /* partitions that waited for room on disk */
void kafka_assign_free(struct pipeline *p);
/* Some partition of the stream is about to be ours: the jobs that say so are queued. */
bool kafka_assign_under_way(const struct stream *s);
/* Whether it is the metadata of a commit of ours, and then in which epoch of the origin. */
bool kafka_commit_is_ours(const struct pipeline *p, const char *metadata, uint32_t *epoch);

/* --- kafka_member.c ------------------------------------------------------------------------- */

#define MEMBER_NOTE_SIZE 32

/* At the start; topics are known. renamed: by another name than before, for it was losing partitions. */
int kafka_member_name(struct pipeline *p, bool *renamed, struct spool_error *error);
/* The group takes partitions away, or has done so and we joined again: durable soon. */
void kafka_member_loses(struct pipeline *p, bool loses);

/* --- kafka_left.c --------------------------------------------------------------------------- */

/* Asks, now and then, whether others committed past rows of partitions that they have. */
void kafka_left_look(struct pipeline *p);
bool kafka_left_any(const struct pipeline *p); /* whether there are such rows */
void kafka_left_told(struct pipeline *p, const char *topic, int32_t number, int64_t offset,
                     const char *metadata);

/* --- log_trace.c ---------------------------------------------------------------------------- */

/*
 * Looks for the latest of these records that the origin's log still has, and begins behind it; where
 * it has none, at otherwise (KAFKA_OFFSET_POLICY or _BEGINNING), which new_log tells of. traces are
 * copied, new_log is kept.
 */
#define LOG_TRACES (2 * SPOOL_TRACES)
void log_trace_begin(struct origin *o, const struct spool_trace *traces, size_t count,
                     int64_t otherwise, const char *new_log);
/* Looks for them likewise, of the epoch before, to know whether its log is the origin's too: then rows
   from told_from on are told apart in a table. Reading goes on behind what was taken in either case. */
void log_trace_confirm(struct origin *o, const struct spool_trace *traces, size_t count,
                       int64_t told_from);
/* The log has another record there, or none: the next one. */
void log_trace_next(struct origin *o);
void log_trace_again(struct origin *o); /* ... the same again, where reading was to begin again */
void log_trace_found(struct origin *o, int64_t offset);
void log_trace_free(struct origin *o);

/* --- pressure.c ----------------------------------------------------------------------------- */

void pressure_init(struct pipeline *p);
void pressure_start(struct pipeline *p);
void pressure_stop(struct pipeline *p);
/* How much the stream may append now, the first block of which has block_bytes. */
uint64_t pressure_room(const struct stream *s, uint64_t block_bytes);
/* By how much dead.mdb may grow for records of the stream that are not taken yet. */
uint64_t pressure_dead_room(const struct stream *s);
/* It is about to be counted as grown by so much, for letters of the stream. */
void pressure_dead_took(struct stream *s, uint64_t bytes);
/* Whether there is room for so many more of the stream, with all that is queued and not appended. */
bool pressure_fits(const struct stream *s, uint64_t bytes);
/* What is in decode, queued and being appended, of all streams that flow; and as much of those that
   wait for room on disk, or for their dead letters. Each may have one run beyond it. */
#define INTAKE_UNDURABLE_BYTES (16 * MIB)
/* What a run of records may hold at most, so that its blocks fit into every stream's share, and one
   of each stream into memory. */
uint64_t pressure_run_bytes(const struct pipeline *p);
/* The stream has so much to append and no room for it, until an append succeeds. */
void pressure_refused(struct stream *s, uint64_t bytes);
void pressure_measure(struct pipeline *p); /* counts the files now, not with the next tick */
void pressure_eased(struct pipeline *p);   /* a segment went: measures where somebody waits */
uint64_t pressure_limit(const struct pipeline *p);
/* Whether acknowledged segments must go at once. */
bool pressure_tight(const struct pipeline *p);

#endif
