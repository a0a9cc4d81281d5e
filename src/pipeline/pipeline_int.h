/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Private parts of the pipeline. Everything here belongs to the loop thread, except what a job was
 * handed until its done callback runs. A job on a lane may use the libspool functions marked with
 * that lane's name, and no other.
 *
 * The way of a record, by file:
 *   kafka_in.c  partitions come and go; runs arrive          (origins)
 *   intake.c    run -> decode job -> dead letters -> append   (pending blocks)
 *   segment.c   what is on disk and waits                     (segments, blocks)
 *   batch.c     waiting blocks -> seal -> send -> ack         (batches)
 *   feed.c      the body of an insert, read by pool jobs
 *   replace.c   a sealed batch becomes others, in one commit
 *   ask.c       which rows of a batch are in the table
 *   hunt.c      which rows of a batch the table refuses
 *   table.c     the table at the other end, and the schema
 *   meta.c      one transaction for every change that is ready
 *   pressure.c  the bound on disk
 *   lane.c      one job at a time per LMDB environment
 */
#ifndef PIPELINE_INT_H
#define PIPELINE_INT_H

#include "base/buf.h"
#include "base/limits.h"
#include "base/log.h"
#include "codec/decode.h"
#include "codec/frame.h"
#include "pipeline/pipeline.h"
#include "sink/backoff.h"

/* --- lanes ---------------------------------------------------------------------------------- */

struct lane;

/* A job on one or several lanes at once; embedded in the structure that owns it. */
#define JOB_LANES_MAX 3
struct job {
    uv_work_t work_req;
    void (*work)(struct job *job); /* pool */
    void (*done)(struct job *job); /* loop; may free the job */
    unsigned wanted;               /* lanes not yet held */
    unsigned held;                 /* lanes held */
    struct lane *lanes[JOB_LANES_MAX];
    struct lane **many; /* instead of lanes, where more are needed */
    struct pipeline *pipeline;
};

struct lane_entry {
    struct job *job;
    struct lane_entry *next;
};

struct lane {
    struct lane_entry *first, *last;
    bool busy;
};

/* Queues the job on every lane given (one call, so that two jobs never wait for each other). With
   no lane it runs at once. SPOOL_E_NOMEM leaves nothing queued. */
int job_start(struct pipeline *p, struct job *job, struct lane *const *lanes, size_t count);

/* --- what is on disk ------------------------------------------------------------------------ */

enum block_state { BLOCK_WAITING, BLOCK_SEALED, BLOCK_ACKED };

struct block {
    struct spool_block_ref ref;
    struct origin *origin;
    uint64_t arrived_ms; /* monotonic; 0: before this process */
    uint32_t acked_rows; /* of a block that is delivered in pieces */
    enum block_state state;
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
    int64_t oldest_ms;
    bool loaded; /* its blocks are in first..last */
    bool loading;
    bool damaged;
    bool removing;
    bool newest;
    uint64_t acked_at_ms; /* monotonic, when it was first seen wholly acknowledged; 0: is not */
    struct block *first, *last;
    struct block *scan;           /* no block before it is waiting */
    struct stream_schema *schema; /* NULL until loaded */
    struct segment *next;
};

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
};

enum target_state { TARGET_UNKNOWN, TARGET_ASKING, TARGET_OK, TARGET_BAD };

/* A table rows go to. A stream has one as configured, and one for each other destination that its
   segments still name. */
struct target {
    struct stream *stream;
    struct target *next;
    char *database;
    char *table;
    char *destination; /* as stored in segments */
    enum target_state state;
    bool asked_again; /* ask once more when the answer is in: the world changed meanwhile */
    size_t endpoint;
    struct table_description *description; /* the last good one; may be stale while not OK */
    uint64_t generation;                   /* of the description */
    uint64_t retry_at_ms;                  /* monotonic: ask again */
    struct backoff backoff;
    char reason[1024];
};

/* --- origins -------------------------------------------------------------------------------- */

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
    int64_t held_to;       /* on_bad_record hold: the bad record is at or below; -1: none */
    int64_t accept_to;     /* bad records up to here may go to the dead letters */
    int64_t committed;     /* next offset last committed to Kafka; -1: none */
    int64_t front;         /* next offset to commit: all below is acknowledged; -1: none */
    bool commit_in_flight; /* `committed` was handed over and not answered */
    bool discard_all;      /* rows at or below discard_to are not to be sent */
    int64_t discard_to;
    struct record_run_node *runs_first, *runs_last; /* waiting for decode */
    uint32_t runs_unreleased;                       /* handed to us, not yet released */
    bool decoding;
    bool ready; /* in the stream's queue of origins to decode */
    struct origin *next_ready;
    struct block *first, *last; /* unacknowledged blocks known */
    struct origin *next;
};

struct record_run_node {
    struct record_run *run;
    struct kafka_partition *partition; /* it came from, for the credit; valid until given back */
    uint64_t arrived_ms;
    uint32_t count; /* as run has them: they outlive it */
    uint64_t bytes;
    bool accept_bad; /* decode once more with dead letters, although on_bad_record is hold */
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
    struct pending_block *next;
};

struct pending_dead {
    struct spool_dead letter;
    struct buf memory; /* record, key, headers, text: offsets fixed up when complete */
    struct pending_dead *next;
};

/* --- batches -------------------------------------------------------------------------------- */

enum batch_state {
    BATCH_LOADING,  /* recovered; its segment's index is not read yet */
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
    struct part *parts; /* in order of sequence and row */
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
    uint32_t attempts;
    uint32_t schema_failures, upload_failures;
    bool maybe_stored;  /* an attempt ended without a definite answer */
    bool commit_failed; /* ... or failed while the server stored it */
    bool busy;          /* ask.c, hunt.c or replace.c has it: not sent meanwhile */
    int endpoint;       /* of the first attempt; -1: none, or it is no longer configured */
    int64_t
        server_start_ms; /* of that endpoint then, as clickhouse_server_start says; 0: unknown */
    struct insert *insert;
    struct feed *feed;
};

/* --- streams -------------------------------------------------------------------------------- */

/* Why a stream is held; each bit has a sentence of its own. */
enum hold {
    HOLD_TABLE = 0,  /* the table is missing, a view, or does not match */
    HOLD_ANSWER,     /* ClickHouse refused a batch in a way that is not transient */
    HOLD_SCHEMA,     /* no schema yet: nothing can be decoded */
    HOLD_BAD_RECORD, /* on_bad_record: hold */
    HOLD_DEAD_FULL,  /* the dead letters reached their bound */
    HOLD_DAMAGE,     /* a block or segment fails its checks */
    HOLD_KAFKA,      /* the position is gone and auto_offset_reset is "error" */
    HOLD_COUNT
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
    uint64_t undurable_bytes; /* queued and being appended */
    bool appending;
    uint64_t append_retry_at_ms;
    bool append_refused; /* the last append found no room */
    uint64_t refused_at_ms;
    unsigned decoding; /* jobs of this stream */
    unsigned queued_runs;
    struct decode_job *idle_jobs;    /* with decoders for ->schema */
    struct decode_job *dead_waiting; /* their dead letters found no room */
    struct log_gate append_gate;
    uint64_t flush_before_ms; /* what arrived until then is due now (spoolctl flush) */

    struct batch *batches; /* all that are sealed or being sealed, by id */
    unsigned batch_count;
    uint64_t next_batch;
    struct batch *probe;            /* while HOLD_ANSWER stands, only this one is tried */
    bool accept_bad;                /* the operator said that any share of bad rows may go */
    double window_rows, window_bad; /* delivered and refused lately, for bad_ratio */
    uint64_t batch_rows_max; /* less than flush.rows while ClickHouse finds batches too big */
    bool no_trial_table;     /* it can't be made: rows are found by real inserts */
    unsigned halvings;       /* real ones since the last batch that went in whole */
    uint64_t eligible_rows, eligible_bytes, eligible_blocks; /* may be sealed, in loaded segments */
    bool loading;                                            /* one segment index at a time */

    uint64_t segment_file_bytes; /* of all segment files */
    struct log_gate error_gate;
    struct log_gate dead_gate, reason_gate;

    /* since start, for status */
    uint64_t records_in, rows_inserted, batches_acked, retries;
    uint64_t dead_letters; /* in dead.mdb */
    uint64_t dead_bytes;
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
    struct kafka_options kafka_options;
    char instance_id[64];
    const char **topics;

    struct stream *streams;
    size_t stream_count;

    struct lane meta_lane, dead_lane;
    struct meta_op *meta_first, *meta_last;
    bool meta_running;
    uint64_t meta_retry_at_ms;

    unsigned decoding, decode_max;
    size_t decode_turn; /* round robin over streams */

    uv_timer_t pressure_timer;
    bool pressure_running, pressure_again;
    struct spool_usage usage;
    uint64_t grown_bytes; /* appended since usage was taken */

    bool started, ready, draining, closing;
    bool fatal;
    unsigned revoking; /* a revocation waits for batches */
    uint64_t revoke_deadline_ms;
    uv_timer_t revoke_timer;
    struct assign_job *assigning; /* partitions whose start is being looked up */
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

struct stream *pipeline_stream(struct pipeline *p, const char *name);
struct stream *pipeline_stream_of_topic(struct pipeline *p, const char *topic);
void pipeline_advance(struct pipeline *p); /* every stream */
void drain_check(struct pipeline *p);
double stream_oldest_age(const struct stream *s); /* seconds */
void pipeline_fatal(struct pipeline *p, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* --- table.c -------------------------------------------------------------------------------- */

struct target *target_get(struct stream *s, const char *database, const char *table);
struct target *target_by_destination(struct stream *s, const char *destination);
void target_ask(struct target *t);     /* describe it as soon as an endpoint is up */
void target_advance(struct target *t); /* asks where it is due */
uint64_t target_deadline_ms(const struct target *t);
void targets_free(struct stream *s);
void target_forget_all(struct stream *s); /* an endpoint changed: nothing is certain */

/* Whether rows of that schema may be sent there now; where not, the target's stream is held. */
bool target_accepts(struct target *t, const struct stream_schema *schema);

struct stream_schema *stream_schema_ref(struct stream_schema *ss);
void stream_schema_unref(struct stream_schema *ss);
/* Takes ownership of schema. */
int stream_schema_create(struct schema *schema, struct target *target, struct stream_schema **out);
/* From the cache in meta, or from the config's types. */
int stream_schema_at_start(struct stream *s, struct spool_error *error);

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
/* Queues a durable discard of every waiting block of the segment that match says; its rows. */
uint64_t segment_discard(struct stream *s, struct segment *g,
                         bool (*match)(const struct block *b, void *arg), void *arg);
bool segments_all_loaded(const struct stream *s);
uint64_t stream_spooled_rows(const struct stream *s);
struct origin *origin_get(struct stream *s, uint32_t id); /* NULL on no memory */
struct origin *origin_find(struct stream *s, uint32_t id);
void origin_discard(struct origin *o, int64_t up_to); /* durable */
void origin_refresh_front(struct origin *o);
void origin_commit(struct origin *o); /* tells Kafka, where the front moved and it is ours */

/* --- batch.c -------------------------------------------------------------------------------- */

void batches_advance(struct stream *s);
uint64_t batches_deadline_ms(struct stream *s); /* 0: none */
int batch_recover(struct stream *s, const struct spool_seal *seal);
void batches_segment_loaded(struct stream *s, struct segment *g);
void batches_free(struct stream *s);
void batches_abandon(struct stream *s); /* cancels what is being sent */
bool batches_idle(const struct stream *s);

/* For ask.c, hunt.c and replace.c. */
struct batch *batch_new(struct stream *s, size_t parts);
void batch_free(struct batch *b);
void batch_link(struct stream *s, struct batch *b);
void batch_move(struct batch *b, enum batch_state to);
void batch_ack(struct batch *b);    /* its rows are in: acknowledges them durably */
void batch_remove(struct batch *b); /* unlinks and frees one whose seal is gone */
void batch_retry_later(struct batch *b, uint64_t delay_ms);
void batch_hold_for(struct batch *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool batch_deduplicates(const struct batch *b);
/* Counts an acknowledged range; the block is done when all its rows are. */
void part_acked(struct stream *s, struct segment *g, const struct part *part);
/* Fills what a seal needs besides parts and rows: id, token, settings, attributes. */
int batch_prepare_seal(struct batch *b, int endpoint);

/* --- feed.c --------------------------------------------------------------------------------- */

/*
 * The body for the given parts of one segment. Everything is read and verified in the pool (parts
 * of blocks are cut out there), then checked runs on the loop with the body's size, or an error.
 * The parts are copied.
 */
int feed_open(struct stream *s, uint64_t segment, const struct part *parts, size_t count,
              void (*checked)(void *arg, uint64_t bytes, const struct spool_error *error),
              void *arg, struct feed **out);
void feed_attach(struct feed *f, struct insert **insert); /* resumed when data is there */
size_t feed_read(void *feed, char *dst, size_t n);        /* an http_body_fn */
void feed_close(struct feed *f);                          /* waits for its job by itself */

/* --- replace.c ------------------------------------------------------------------------------ */

/* Rows of a batch, counted over all its parts: [first, first + count). */
struct row_span {
    uint64_t first, count;
};

/*
 * In one commit: the seal of b goes, the spans in done are acknowledged, and each group of spans in
 * seals becomes a batch under a new token. Spans are ascending and together all of b. done (loop)
 * runs when it is durable; b is gone then.
 */
struct span_group {
    const struct row_span *spans;
    size_t count;
};
int batch_replace(struct batch *b, const struct row_span *acked, size_t acked_count,
                  const struct span_group *seals, size_t seal_count,
                  void (*done)(struct stream *s));
/* The parts that the spans of b stand for; malloc'd. */
int batch_parts(const struct batch *b, const struct row_span *spans, size_t count,
                struct part **parts, size_t *part_count);

/* --- ask.c ---------------------------------------------------------------------------------- */

/* Whether the table holds what tells rows apart: topic, partition and offset, or origin and offset,
   in a MergeTree table. */
bool ask_by_origin(const struct stream_schema *schema);
/* ... and whether that holds for this batch. */
bool ask_possible(const struct batch *b);
/* Finds out which rows of b are in, then acknowledges those and sends the rest under a new token;
   without an answer b is retried. */
void ask_start(struct batch *b, int endpoint);

/* --- hunt.c --------------------------------------------------------------------------------- */

/* b was refused for its data: finds the bad rows, puts them to the dead letters, and seals the
   rest anew. */
void hunt_start(struct batch *b, int endpoint, const struct clickhouse_outcome *outcome);
/* Seals b anew in two halves, each inserted for real. */
void hunt_halve(struct batch *b, const char *why);

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
void meta_advance(struct pipeline *p);
bool meta_idle(const struct pipeline *p);
void meta_free(struct pipeline *p);

/* --- kafka_in.c ----------------------------------------------------------------------------- */

int kafka_in_create(struct pipeline *p, struct spool_error *error);
void kafka_in_advance(struct pipeline *p); /* ends a revocation when it can */
/* The origin's name became known: is its partition ours already? */
void kafka_in_adopt(struct origin *o);
void kafka_in_released(struct pipeline *p, const struct record_run_node *node);
void kafka_in_revoke_timer(uv_timer_t *timer);

/* --- pressure.c ----------------------------------------------------------------------------- */

void pressure_init(struct pipeline *p);
void pressure_start(struct pipeline *p);
void pressure_stop(struct pipeline *p);
/* How much the stream may append now. */
uint64_t pressure_room(const struct stream *s);
/* The stream has so much to append and no room for it, until an append succeeds. */
void pressure_refused(struct stream *s, uint64_t bytes);
void pressure_measure(struct pipeline *p); /* counts the files now, not with the next tick */
void pressure_eased(struct pipeline *p);   /* a segment went: measures where somebody waits */
uint64_t pressure_limit(const struct pipeline *p);
/* Whether acknowledged segments must go at once. */
bool pressure_tight(const struct pipeline *p);

#endif
