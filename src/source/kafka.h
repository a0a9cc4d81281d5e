/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Kafka source: one librdkafka consumer on the loop. Loop thread only, except what runs hand
 * out (source.h). Auto commit and auto offset store are off, cooperative-sticky, static membership,
 * read_committed, auto.offset.reset=error: this module decides offsets, the pipeline owns them.
 *
 * Life of a partition: assigned() -> the pipeline looks up the origin and answers with
 * kafka_partition_start -> runs come by run() -> revoking() -> the pipeline answers in flight
 * batches, commits with kafka_commit, then calls kafka_revoke_done -> the partition is gone.
 */
#ifndef SOURCE_KAFKA_H
#define SOURCE_KAFKA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "source/source.h"
#include "spool_error.h"

struct kafka_source;
struct kafka_partition; /* valid from assigned() until kafka_revoke_done returned, and for
                           kafka_run_done until its last run came back */

struct kafka_property {
    const char *name;
    const char *value;
};

enum kafka_offset_reset { KAFKA_RESET_EARLIEST, KAFKA_RESET_LATEST, KAFKA_RESET_ERROR };

struct kafka_options {
    const char *brokers; /* comma separated */
    const char *group_id;
    const char *group_instance_id; /* NULL: made by the caller from the spool's uuid */
    enum kafka_offset_reset auto_offset_reset;
    const struct kafka_property *properties; /* any of librdkafka's */
    size_t property_count;
    const char *const *topics;
    size_t topic_count;
    uint64_t max_held_bytes;    /* of messages held over all partitions; 0: 16 MiB */
    uint64_t max_held_messages; /* 0: 40,000 */
    uint32_t run_rows;          /* 0: LIMIT_BLOCK_ROWS */
    uint64_t run_bytes;         /* 0: LIMIT_RUN_BYTES */
    uint32_t run_linger_ms;     /* an open run is handed over at latest after this; 0: 100 */
};

/* Where a partition's consumption may begin, as the group's committed offset tells. */
struct kafka_committed {
    int64_t offset;       /* -1: none */
    const char *metadata; /* "" where none */
    int64_t low, high;    /* watermarks on the broker; -1: unknown */
};

struct kafka_callbacks {
    /* A partition is ours. Answer, now or later, with kafka_partition_start. Set *user. */
    void (*assigned)(void *arg, struct kafka_partition *partition,
                     const struct kafka_committed *committed, void **user);
    /* A run of records; ownership passes to the callee, which releases it in a pool job and then
       calls kafka_run_done on the loop. run->origin is the partition's user. */
    void (*run)(void *arg, struct kafka_partition *partition, struct record_run *run);
    /* These partitions go. lost: no commit may be sent for them any more. Runs handed out may still
       be in decode. Call kafka_revoke_done(source) when in-flight work is answered and committed,
       at latest after max_ms (then it is called as done by itself). Those that are lost before that is
       called are named once more. */
    void (*revoking)(void *arg, struct kafka_partition *const *partitions, size_t count, bool lost,
                     uint32_t max_ms);
    /* Offsets [from, to) of the partition are gone (retention, truncation): a counted gap. */
    void (*gap)(void *arg, struct kafka_partition *partition, int64_t from, int64_t to);
    /* The topic's log is shorter than where we stood, or another incarnation: the policy applies. */
    void (*out_of_range)(void *arg, struct kafka_partition *partition, int64_t position);
    /* The record in front of position is another one than was read there: the topic was made anew
       under its name, or its log was cut and written again. Held until kafka_partition_start. */
    void (*new_log)(void *arg, struct kafka_partition *partition, int64_t position);
    /* The record in front of offset is the one kafka_partition_trace was given: it begins there. */
    void (*traced)(void *arg, struct kafka_partition *partition, int64_t offset);
    /* It begins at offset, which was asked for as KAFKA_OFFSET_POLICY or KAFKA_OFFSET_BEGINNING. */
    void (*begun)(void *arg, struct kafka_partition *partition, int64_t offset);
    /* A fatal error of the client (fenced by another member of its name, ...): the daemon exits 1. */
    void (*fatal)(void *arg, const char *text);
    /* We joined the group (again) and have its answer: what it took away before, if anything, it has
       given to somebody else. */
    void (*rebalanced)(void *arg);
    /* What the group has committed, as kafka_source_ask_committed asked. */
    void (*told)(void *arg, const char *topic, int32_t number, int64_t offset,
                 const char *metadata);
    /* A commit's answer; status SPOOL_OK or SPOOL_E_IO with text. */
    void (*committed)(void *arg, struct kafka_partition *partition, int64_t offset, int status,
                      const char *text);
};

/* Checks properties: the ones that would break a promise are refused by name with the reason, the
   rest must be accepted by librdkafka. Usable for --check-config: connects to nothing. */
int kafka_options_check(const struct kafka_options *options, struct spool_error *error);

/* What options points to must outlive the source. */
int kafka_source_create(uv_loop_t *loop, const struct kafka_options *options,
                        const struct kafka_callbacks *callbacks, void *arg,
                        struct kafka_source **out, struct spool_error *error);

/* Subscribes. Topics that do not exist yet are waited for, with a warning. */
int kafka_source_start(struct kafka_source *source, struct spool_error *error);

/* Stops consuming (paused, still a member): no run() after it returns but for open runs, which
   are handed over now. */
void kafka_source_stop(struct kafka_source *source);

/* Leaves the group where leave is set (a restart under static membership does not), closes and
   frees; closed is called from the loop. Nothing else is called afterwards. Waits for the runs
   handed out (kafka_run_done goes on being called) and, for 5 s, for commits made before. */
void kafka_source_close(struct kafka_source *source, bool leave, void (*closed)(void *arg),
                        void *arg);

const char *kafka_partition_topic(const struct kafka_partition *p);
int32_t kafka_partition_number(const struct kafka_partition *p);
void *kafka_partition_user(const struct kafka_partition *p);
void kafka_partition_set_user(struct kafka_partition *p, void *user);

/* Begins at offset (>= 0), by policy, or at the first record there is. Records below are dropped.
   before: of the record at offset - 1, where the log must still have that one or none at all, else
   new_log() is called; NULL: not known. */
#define KAFKA_OFFSET_POLICY    (-1000)
#define KAFKA_OFFSET_BEGINNING (-1001)
void kafka_partition_start(struct kafka_partition *p, int64_t offset,
                           const struct spool_mark *before);

/* Begins at offset (> 0) where the log has that record in front of it. traced() is called then, before
   any record comes; else new_log(), also where there is no record any more. */
void kafka_partition_trace(struct kafka_partition *p, int64_t offset,
                           const struct spool_mark *before);

/* Nestable by reason bits: paused while any bit is set. Runs in hand are not affected. */
#define KAFKA_PAUSE_PRESSURE 1u
#define KAFKA_PAUSE_OPERATOR 2u
#define KAFKA_PAUSE_HELD     4u
#define KAFKA_PAUSE_INTAKE   8u /* the stream's decode queue is full */
void kafka_partition_pause(struct kafka_partition *p, unsigned reason);
void kafka_partition_resume(struct kafka_partition *p, unsigned reason);

/* The run was released: its messages no longer count as held. */
void kafka_run_done(struct kafka_source *source, struct kafka_partition *p, uint32_t messages,
                    uint64_t bytes);

/* Asynchronous commit of the next offset to read, with metadata (copied). Commits of many
   partitions made in one turn of the loop share a request. */
void kafka_commit(struct kafka_partition *p, int64_t next_offset, const char *metadata);

void kafka_revoke_done(struct kafka_source *source);

/* The group has said, at least once, which partitions are ours. */
bool kafka_source_assigned(const struct kafka_source *source);
/* ... and what it said holds: no rebalance is under way, and the group's coordinator has taken what
   we sent it in the last half of session.timeout.ms, so that it stands for as long again. */
bool kafka_source_settled(const struct kafka_source *source);
/* session.timeout.ms: how long the group waits for a member that says nothing. */
uint64_t kafka_source_session_ms(const struct kafka_source *source);

/* Asks the group's committed offsets of partitions, ours or not; told() comes for each that has one.
   Nothing is asked while no broker answers, or the last question is not answered. */
struct kafka_place {
    const char *topic;
    int32_t number;
};
void kafka_source_ask_committed(struct kafka_source *source, const struct kafka_place *places,
                                size_t count);

#define KAFKA_REASON_BYTES 400
struct kafka_stats {
    uint64_t assigned_partitions;
    uint64_t held_messages;
    uint64_t held_bytes;
    bool connected;                  /* a broker answers */
    char reason[KAFKA_REASON_BYTES]; /* why not, or why the group gives nothing; and what to do */
};
void kafka_source_stats(const struct kafka_source *source, struct kafka_stats *out);

/* Records between what was taken and the high watermark as last seen; -1: unknown. */
int64_t kafka_partition_lag(const struct kafka_partition *p);

#endif
