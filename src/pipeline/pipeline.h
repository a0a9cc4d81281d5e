/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pipeline: streams, intake, batches, acknowledgement, pressure. Owns the sink and the Kafka
 * source and every state machine. Loop thread only.
 */
#ifndef PIPELINE_PIPELINE_H
#define PIPELINE_PIPELINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "base/metrics.h"
#include "codec/schema.h"
#include "sink/clickhouse.h"
#include "source/kafka.h"
#include "spool.h"

enum stream_state {
    STREAM_RUNNING = 0,
    STREAM_PAUSED, /* by the operator */
    STREAM_HELD,   /* something must be mended; probed */
    STREAM_DOWN,   /* ClickHouse does not answer; intake goes on */
    STREAM_FULL,   /* the spool's bound: intake waits */
    STREAM_STATES
};
const char *stream_state_name(enum stream_state state); /* "running", ... */

enum on_full { ON_FULL_PAUSE = 0, ON_FULL_DROP_OLDEST };
enum on_bad_record { ON_BAD_DEAD_LETTER = 0, ON_BAD_HOLD };
enum on_schema_change { ON_SCHEMA_HOLD = 0, ON_SCHEMA_REENCODE };
enum spool_compression { COMPRESSION_LZ4 = 0, COMPRESSION_ZSTD, COMPRESSION_NONE };

/* One stream as configured. Everything is borrowed from the config, which outlives the pipeline. */
struct stream_options {
    const char *name;
    const char *const *topics; /* exact names */
    size_t topic_count;
    const char *database; /* NULL: the connection's */
    const char *table;
    struct schema_options schema; /* format, wishes, strict, unknown_keys, framing */
    uint64_t flush_rows;
    uint64_t flush_bytes;
    uint64_t flush_interval_ms;
    uint32_t max_in_flight;
    uint64_t max_record_bytes;
    enum on_bad_record on_bad_record;
    enum on_schema_change on_schema_change;
    double bad_ratio;
    uint64_t dead_letters_max_bytes;
    const char *dead_letters_table; /* [database.]table that gets them too; NULL: none */
    const char *dead_letters_topic; /* topic that gets them too; NULL: none */
    bool create_table;
    bool origin_columns;                /* create_table adds $topic, $partition, $offset columns */
    struct create_table_options create; /* columns left empty: filled from the wishes */
};

struct pipeline_options {
    const struct stream_options *streams;
    size_t stream_count;
    struct clickhouse_options clickhouse;
    const struct kafka_options *kafka; /* NULL: no Kafka; topics and instance id filled by us */
    uint64_t max_bytes;
    uint64_t min_free_bytes;
    uint64_t segment_bytes; /* as the spool was opened with; 0: 64 MiB */
    enum on_full on_full;
    enum spool_compression compression;
    uint64_t keep_acknowledged_ms;
    uint64_t ask_delay_ms;   /* from a cut, a start or an endpoint's return to asking a table */
    uint64_t table_check_ms; /* a table that is well is described again so often */
};

struct pipeline;

struct pipeline_callbacks {
    /* Durability in doubt, or a fatal Kafka error: log is done; the daemon exits 1 at once. */
    void (*fatal)(void *arg, const char *text);
    /* Intake opened for the first time (sd_notify READY). */
    void (*ready)(void *arg);
};

/* spool and metrics are borrowed; the spool must have no stream open. Does blocking disk work. */
int pipeline_create(uv_loop_t *loop, const struct pipeline_options *options, struct spool *spool,
                    struct metrics *metrics, const struct pipeline_callbacks *callbacks, void *arg,
                    struct pipeline **out, struct spool_error *error);
int pipeline_start(struct pipeline *p, struct spool_error *error);

/* Stops intake, seals and delivers what it can within timeout_ms, commits; done from the loop. */
void pipeline_drain(struct pipeline *p, uint64_t timeout_ms, void (*done)(void *arg), void *arg);

/* Lets go of everything (in-flight inserts are abandoned, their seals stay); closed from the loop,
   then pipeline_free. */
void pipeline_close(struct pipeline *p, void (*closed)(void *arg), void *arg);
void pipeline_free(struct pipeline *p);

/* --- seeing it ------------------------------------------------------------------------------ */

struct stream_status {
    const char *name;
    enum stream_state state;
    const char *reason;   /* "" while running */
    int64_t since_ms;     /* wall clock */
    const char *table;    /* "db.table" */
    const char *delivery; /* "exactly_once" or "at_least_once" */
    const char *delivery_why;
    const char *format; /* "native", "json", "" until known */
    uint64_t records_in;
    uint64_t rows_spooled;     /* not yet acknowledged */
    uint64_t bytes_spooled;    /* of segment files */
    double oldest_age_seconds; /* 0 while empty */
    int64_t lag;               /* Kafka; -1: unknown */
    uint64_t dead_letters;
    uint64_t dead_letters_waiting; /* to be sent to their table and their topic, both together */
    uint64_t rows_inserted;        /* since start */
    uint64_t batches_sealed;       /* waiting to be sent or sent again */
    uint64_t batches_in_flight;
    uint64_t batches_acknowledged; /* since start */
    uint64_t retries;
    uint64_t views_unsure;        /* rows that views of the table may lack; since start */
    uint64_t possible_duplicates; /* rows sent again, the first outcome unknown; since start */
    uint64_t damaged_segments;    /* in the spool now, missing ones too, as far as they were read */
    uint64_t missing_segments;
    uint64_t damaged_blocks; /* set aside since start */
};

size_t pipeline_streams(const struct pipeline *p);
void pipeline_stream_status(const struct pipeline *p, size_t i, struct stream_status *out);
struct clickhouse *pipeline_clickhouse(struct pipeline *p);
/* Batches, over all streams, that wait for that endpoint alone, since it may have their rows. */
uint64_t pipeline_endpoint_waiting(const struct pipeline *p, size_t endpoint);
bool pipeline_kafka_stats(const struct pipeline *p, struct kafka_stats *out); /* false: no Kafka */
void pipeline_usage(const struct pipeline *p, struct spool_usage *out); /* as of the last second */

/* Ready: intake is open (also with ClickHouse down). reason gets a word otherwise. */
bool pipeline_ready(const struct pipeline *p, const char **reason);

/* Refreshes gauges before a scrape. */
void pipeline_update_metrics(struct pipeline *p);

/* --- steering it; SPOOL_E_NOT_FOUND for an unknown name -------------------------------------- */

int pipeline_stream_pause(struct pipeline *p, const char *name);
int pipeline_stream_resume(struct pipeline *p, const char *name);
/* Resumes, and lets any share of bad rows go to the dead letters: of all that is sealed, and until another
   batch goes in whole. */
int pipeline_stream_accept_bad(struct pipeline *p, const char *name);
int pipeline_stream_flush(struct pipeline *p, const char *name); /* seal what waits, now */

struct dead_filter; /* spool/look.h */

/* How a replay ended. */
struct replay_result {
    uint64_t replayed;  /* letters whose rows are in the spool; they are gone */
    uint64_t refused;   /* still do not fit: they stand, with one attempt more and the new reason */
    uint64_t unsettled; /* what they came from is not over yet; they stand as they were */
    uint64_t cut;       /* too large to have been kept whole; they stand as they were */
    char text[1024];    /* "", or why it ended before its end */
};

/*
 * Decodes the stream's letters that filter takes under the schema of now, and puts the rows of
 * those that fit into the spool, each exactly once (replay.c). done comes once, from the loop.
 * NOT_FOUND, EXISTS (one of the stream is under way), CANCELLED (stopping), NOMEM: it never does.
 */
int pipeline_dead_replay(struct pipeline *p, const char *name, const struct dead_filter *filter,
                         void (*done)(void *arg, const struct replay_result *result), void *arg);

/* Removes the letters that filter takes, for good, also of a stream that is configured no more; dry: only
   counts them. done's status NOT_FOUND: there is no such stream, and no letter of one. Errors as above. */
int pipeline_dead_discard(struct pipeline *p, const char *name, const struct dead_filter *filter,
                          bool dry,
                          void (*done)(void *arg, int status, uint64_t letters, uint64_t bytes,
                                       const struct spool_error *error),
                          void *arg);

/*
 * Runs work on the pool while it alone may use the spool in the named way, then done on the loop.
 * stream may be NULL for LOOK_DEAD and LOOK_ALL. LOOK_STREAM also holds the meta lane.
 */
enum look_lane { LOOK_STREAM, LOOK_DEAD, LOOK_ALL };
int pipeline_look(struct pipeline *p, enum look_lane lane, const char *stream,
                  void (*work)(void *arg, struct spool *spool, struct spool_stream *stream),
                  void (*done)(void *arg), void *arg);

#endif
