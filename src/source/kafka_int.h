/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Kafka source's private parts. Everything here belongs to the loop thread, but for what a run
 * hands out (kafka_run.c), what a pool job was given (struct kafka_lookup, struct kafka_kick) and
 * what the client's own threads write (struct kafka_hook).
 *
 * Offsets. A partition is handed to librdkafka only when its first offset is known, always by an
 * explicit offset, so the client never asks for a committed offset nor resets by itself. `taken` is
 * the one truth about where we stand: what lies at or below it is dropped when it comes again
 * (pauses, rebalances and seeks make 2.0.2 repeat records), and each resume seeks behind it, or to
 * it, to see that it is still the same record (kafka_mark.c).
 */
#ifndef SOURCE_KAFKA_INT_H
#define SOURCE_KAFKA_INT_H

#include <librdkafka/rdkafka.h>
#include <stdatomic.h>
#include <uv.h>

#include "base/log.h"
#include "source/kafka.h"

#define KAFKA_TAKE_PER_TURN       2000
#define KAFKA_TAKE_PER_CALL       500
#define KAFKA_KICK_AFTER_MS       3
#define KAFKA_KICK_SCAN           64  /* partitions looked at per firing of the kick timer */
#define KAFKA_SOFT_PAUSE_MS       50  /* a shorter pause never reaches librdkafka */
#define KAFKA_CHOKE_MS            250 /* limits reached for so long: pause everything */
#define KAFKA_RETRY_MS            1000
#define KAFKA_COMMIT_RETRY_MS     500
#define KAFKA_COMMIT_LOOK_MS      10   /* a commit that may not be sent yet */
#define KAFKA_COMMIT_WATCH_MS     1000 /* ... while the group joins, or has no coordinator */
#define KAFKA_PROBE_MS            1000
#define KAFKA_LOOKUP_TIMEOUT_MS   5000
#define KAFKA_LOOKUP_PART_MS      1000 /* ... of one leader, where not all answer */
#define KAFKA_REVOKE_MAX_MS       30000
#define KAFKA_REVOKE_SLACK_MS     250 /* the pipeline's own clock runs out first */
#define KAFKA_CLOSE_COMMIT_MAX_MS 5000
#define KAFKA_RANGE_TRIES         3 /* "beyond the end" is believed when seen so often, 1 s apart */
#define KAFKA_LOG_GATE_MS         10000
#define KAFKA_TELL_AGAIN_MS       300000 /* the same reason for being without a broker */
#define KAFKA_LINES               32     /* log lines of the client that wait for the loop */
#define KAFKA_BUCKETS             1024
#define KAFKA_FAULTS              8 /* brokers whose certificate was refused last */
#define KAFKA_HOST_BYTES          200
#define KAFKA_DOUBTS              64 /* partitions in doubt by name; more of them: all are */

/*
 * LOOKUP -> WAITING -> STARTING -> ACTIVE <-> RESETTING -> HELD; every state -> REVOKING -> GONE,
 * and kafka_partition_start leads from WAITING, ACTIVE and HELD to STARTING.
 */
enum kafka_partition_state {
    KAFKA_P_LOOKUP,    /* committed offset and watermarks are being asked */
    KAFKA_P_WAITING,   /* assigned() was called; kafka_partition_start is awaited */
    KAFKA_P_STARTING,  /* `start` is known, not yet given to librdkafka */
    KAFKA_P_ACTIVE,    /* fetched (or paused) */
    KAFKA_P_RESETTING, /* the broker refused our offset: watermarks are being asked */
    KAFKA_P_HELD,      /* out_of_range() was called; kafka_partition_start is awaited */
    KAFKA_P_REVOKING,  /* revoking() was called; kafka_revoke_done is awaited */
    KAFKA_P_GONE,      /* only waits for its runs to come back */
};

struct kafka_commit_slot {
    int64_t next; /* to be sent; -1: nothing */
    char *next_metadata;
    int64_t sent; /* in flight; -1: nothing */
    char *sent_metadata;
};

struct kafka_partition {
    struct kafka_source *source;
    struct kafka_partition *bucket_next;
    char *topic;
    int32_t number;
    uint32_t index; /* in source->partitions */
    void *user;
    enum kafka_partition_state state;
    bool announced;   /* assigned() was called */
    bool fetched;     /* in librdkafka's assignment */
    bool fetch_dead;  /* librdkafka gave up on it (auto.offset.reset=error) */
    bool parked;      /* paused in librdkafka */
    bool hard_paused; /* paused for longer than KAFKA_SOFT_PAUSE_MS: no records kept */
    bool kept;        /* gone at once (lost, deadline); the pipeline has yet to let go of it */
    bool blocking;    /* soft-paused with a full run: the drain waits */
    bool verifying;   /* the record at taken was asked for again, and is awaited */
    bool tracing;     /* ... and must be there (kafka_partition_trace) */
    bool doubted;     /* nothing is taken until it was sought: the log may be another one from
                         here on (kafka_mark.c), or what was taken was thrown away */
    bool in_lookup;   /* in the job under way */
    bool want_lookup;
    bool lookup_failed; /* the job's watermarks did not come */
    unsigned pause_reasons;
    bool beyond; /* fetching showed that the log may end before our offset */
    unsigned range_tries;
    uint64_t epoch; /* tells two assignments of one partition apart */
    uint64_t paused_at_ms;
    int64_t committed; /* the group's, from the lookup; -1: none */
    char *committed_metadata;
    int64_t start;       /* asked for by kafka_partition_start */
    int64_t taken;       /* last offset taken, or the first wanted - 1 */
    int64_t handed;      /* last offset handed over, or the first wanted - 1 */
    int64_t mark_offset; /* mark is of the record there; -1: none is known */
    struct spool_mark mark;
    struct spool_mark awaited; /* while verifying: what the record at taken was */
    int64_t end_seen; /* the position at the last end-of-partition event: past control records */
    int64_t low, high;
    int64_t kick_position, kick_high; /* at the last kick, so it isn't repeated in vain */
    size_t header_bytes;              /* of a record, as last sampled */
    struct kafka_run *open;
    uint32_t runs_out;
    struct kafka_commit_slot commit;
};

struct kafka_run {
    struct record_run base; /* first: a record_run is a kafka_run */
    struct kafka_partition *partition;
    rd_kafka_message_t **messages;
    uint32_t cap;
    uint64_t opened_ms;
    struct kafka_run *older, *newer; /* the source's list of open runs */
    bool listed;
    struct record_header *headers;
    size_t header_cap;
};

/* A rebalance as the callback saw it; acted on after the poll that served it. */
struct kafka_rebalance {
    struct kafka_rebalance *next;
    rd_kafka_resp_err_t kind;
    bool joined; /* a join ended with it */
    bool lost;
    bool forgotten; /* the group had forgotten us since the one before */
    rd_kafka_topic_partition_list_t *list;
};

/* A pool job that asks for committed offsets and watermarks. Owned by the job while it runs. */
struct kafka_lookup {
    uv_work_t work;
    struct kafka_source *source;
    rd_kafka_topic_partition_list_t *committed; /* of those that need it; may be empty */
    rd_kafka_topic_partition_list_t *low, *high;
    uint64_t *epochs; /* of low's elements */
    rd_kafka_resp_err_t committed_error, low_error, high_error;
};

/* A pool job that asks for committed offsets of partitions that need not be ours. */
struct kafka_question {
    uv_work_t work;
    rd_kafka_t *client;
    rd_kafka_topic_partition_list_t *committed; /* NULL: none is under way */
    rd_kafka_resp_err_t error;
};

/* A pool job that wakes a partition's broker thread by asking for its watermarks. */
struct kafka_kick {
    uv_work_t work;
    rd_kafka_t *client;
    char *topic;
    int32_t number;
    bool active;
};

struct kafka_probe {
    uv_work_t work;
    rd_kafka_t *client;
    rd_kafka_resp_err_t error;
    bool active;
};

struct kafka_line {
    int level;
    char facility[32];
    char text[512];
};

/*
 * The client's opaque: what its own threads write. Outlives the source where the client does
 * (close_work in kafka.c); it is deaf then.
 */
struct kafka_hook {
    struct kafka_source *source; /* for callbacks served on the loop */
    int wake_fd;
    uv_mutex_t lines_lock; /* kafka_health.c */
    bool deaf;
    bool verbose;  /* the user's properties ask for the client's debug lines */
    int level_max; /* ... and for these levels, as syslog counts */
    struct kafka_line lines[KAFKA_LINES];
    unsigned line_count;
    uint64_t lines_dropped;
    struct kafka_fault { /* kafka_reason.c: what was wrong with the certificate of which broker */
        char host[KAFKA_HOST_BYTES];
        int x509;
    } faults[KAFKA_FAULTS];
    unsigned fault_next; /* the oldest, where there are no more */
    atomic_bool doubted; /* kafka_mark.c: there are any of these */
    bool doubt_all;
    struct kafka_doubt {
        char topic[250];
        int32_t number;
    } doubts[KAFKA_DOUBTS];
    unsigned doubt_count;
    atomic_bool joining;        /* kafka_join.c */
    atomic_bool nameless;       /* the member has no id */
    atomic_bool forgotten;      /* ... or had none since the group gave an assignment */
    atomic_bool named, unnamed; /* it has had one; and lost it, and has none yet */
    atomic_bool join_lost;      /* a join was given up, and the broker may read it yet */
    _Atomic uint64_t
        renamed_ms; /* by the clock since boot: it got one again, or behind such a join; 0: never */
    _Atomic uint64_t named_ms; /* by the same clock: it got its first; 0: it had none yet */
    atomic_bool answering;     /* the client waits for the answer to an assignment */
    atomic_bool away, back;    /* the coordinator is not there; has come since that was looked at */
    atomic_bool commit_kept;   /* the client has one in hand that waits for it */
    /* kafka_commit.c: what the broker said of each partition, where it took some and refused others */
    _Atomic(rd_kafka_topic_partition_list_t *) commit_answer;
    uv_mutex_t connect_lock;
    int *connections; /* the client's sockets */
    size_t connection_count, connection_cap;
    uv_mutex_t heartbeat_lock;
    int heartbeat;
    uint64_t answered_ns;
    /* By the clock that counts from boot: when the coordinator was sent what keeps us a member; of the
       last that it answered, and of the last answered when it was sent another. */
    _Atomic uint64_t asked_ms, heard_ms, heard_before_ms;
};

enum kafka_timer {
    KAFKA_T_POLL,
    KAFKA_T_LINGER,
    KAFKA_T_KICK,
    KAFKA_T_SOFT_PAUSE,
    KAFKA_T_CHOKE,
    KAFKA_T_REVOKE,
    KAFKA_T_LOOKUP,
    KAFKA_T_COMMIT,
    KAFKA_T_PROBE,
    KAFKA_T_CLOSE,
    KAFKA_T_RENEW,
    KAFKA_TIMERS
};

struct kafka_source {
    uv_loop_t *loop;
    uv_thread_t thread;
    struct kafka_callbacks callbacks;
    void *arg;
    enum kafka_offset_reset reset;
    uint64_t max_held_bytes, max_held_messages, run_bytes;
    uint32_t run_rows, run_linger_ms;
    uint64_t max_poll_interval_ms, session_ms;
    bool static_member;
    struct kafka_options options; /* what it points to is the caller's */

    rd_kafka_t *client; /* NULL: being made anew */
    struct kafka_hook *hook;
    rd_kafka_queue_t *consumer_queue, *commit_queue;
    rd_kafka_topic_partition_list_t *topics;
    int consumer_fd, commit_fd;
    uv_poll_t consumer_poll, commit_poll;
    uv_idle_t drain_idle; /* the drain goes on in the next turn */
    uv_idle_t turn_idle;  /* work collected over a turn */
    uv_timer_t timers[KAFKA_TIMERS];
    unsigned handles; /* not yet closed */

    struct kafka_partition **partitions;
    uint32_t partition_count, partition_cap;
    struct kafka_partition *buckets[KAFKA_BUCKETS];
    const rd_kafka_topic_t *last_topic; /* of the record before: most come in rows */
    struct kafka_partition *last_partition;
    uint64_t next_epoch;

    uint64_t held_messages, held_bytes;
    uint64_t out_messages;  /* of those, handed over */
    uint64_t largest_bytes; /* record of the last batch */
    uint32_t runs_out;
    struct kafka_run *oldest, *newest;
    uint32_t blocking; /* partitions whose full run stops the drain */
    bool waiting;      /* the drain stopped because of limits */
    bool choked;
    bool stopped;
    bool in_poll;
    bool starts_due, pauses_due, commits_due;
    bool reseek_due; /* a rebalance paused and resumed what is fetched */
    uint64_t reseeks;
    bool fresh; /* records came since the kick last looked at every partition */
    uint32_t kick_cursor, kick_looked;

    struct kafka_rebalance *rebalances, **rebalances_end;
    struct kafka_partition **revoking;
    size_t revoking_count;
    struct kafka_partition **kept; /* see there; until kafka_revoke_done */
    size_t kept_count, kept_done;  /* all; those the pipeline is done with */
    bool revoke_pending;           /* librdkafka waits for our incremental_unassign */
    bool revoke_done;              /* the pipeline is done; commits may still be under way */
    struct kafka_lookup *lookup;
    struct kafka_question question;
    struct kafka_kick kick;
    struct kafka_probe probe;
    bool commit_in_flight;

    bool connected, ever_connected;
    bool denied; /* the user may not have the group; until it has a coordinator, or an assignment */
    char reason[KAFKA_REASON_BYTES];
    char cause[KAFKA_REASON_BYTES]; /* of the newest failed connection */
    rd_kafka_resp_err_t told_err;   /* what kafka.disconnected said last */
    uint64_t told_at_ms;
    bool fatal_told, fatal_seen;
    struct log_gate log_gate, error_gate, group_gate, topic_gate, lookup_gate, commit_gate;

    bool started;       /* subscribed */
    bool assigned_once; /* the group has given an assignment, if an empty one */
    bool joined_once;   /* ... to this client */
    bool settled;       /* the last rebalance was one: none follows unless the group joins again */
    bool renewing;      /* kafka_renew.c: the client is given up */
    bool renewed;       /* ... one was, ever */
    bool renew_started; /* ... and its end has begun */
    bool renew_leaves;  /* ... which it can't come to: it is not destroyed */
    uint64_t renew_since_ms;
    uv_work_t renew_work;
    bool closing, close_leave, close_started, close_commits_over;
    volatile bool close_served; /* pool thread only: the closing rebalance was answered */
    uv_work_t close_work;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* kafka_conf.c */
int kafka_conf_build(const struct kafka_options *options, bool with_brokers, rd_kafka_conf_t **out,
                     struct spool_error *error);

/* kafka.c */
void kafka_source_schedule(struct kafka_source *s); /* runs the collected work in the next turn */
void kafka_source_drain(struct kafka_source *s);
void kafka_source_wake(struct kafka_source *s); /* drains in the next turn */
void kafka_source_timer(struct kafka_source *s, enum kafka_timer which, uint64_t ms);
void kafka_source_room(struct kafka_source *s); /* something held was let go */
int kafka_source_client(struct kafka_source *s, struct spool_error *error); /* makes it */
void kafka_source_listen(struct kafka_source *s);     /* its queues wake the loop */
void kafka_source_deaf(struct kafka_source *s);       /* they do no more: nothing is served */
void kafka_source_end_queues(struct kafka_source *s); /* a pool job */
bool kafka_source_asks(const struct kafka_source *s); /* a pool job asks the client */

/* kafka_renew.c */
bool kafka_renew(struct kafka_source *s, const char *reason); /* false: it ends the daemon */
void kafka_renew_look(struct kafka_source *s);

/* kafka_partition.c */
struct kafka_partition *kafka_partition_find(struct kafka_source *s, const char *topic, int32_t n);
struct kafka_partition *kafka_partition_of(struct kafka_source *s, const rd_kafka_message_t *m);
struct kafka_partition *kafka_partition_add(struct kafka_source *s, const char *topic, int32_t n);
void kafka_partition_remove(struct kafka_partition *p);
void kafka_partition_unref(struct kafka_partition *p); /* frees it once gone with no run out */
int64_t kafka_partition_position(const struct kafka_partition *p);
void kafka_partition_refused(struct kafka_partition *p);    /* librdkafka gave up on its offset */
void kafka_partition_look_again(struct kafka_partition *p); /* its offset is not in the log */
void kafka_partition_new_log(struct kafka_partition *p);
void kafka_partition_looked_up(struct kafka_partition *p);
void kafka_partition_begin(struct kafka_partition *p, int64_t offset);
void kafka_partitions_flush_starts(struct kafka_source *s);
void kafka_partitions_flush_pauses(struct kafka_source *s);
void kafka_partitions_reseek(struct kafka_source *s);
void kafka_partitions_reseek_doubted(struct kafka_source *s);
void kafka_partitions_soft_pause_over(struct kafka_source *s);
void kafka_partitions_unassign(struct kafka_source *s, struct kafka_partition *const *list,
                               size_t count);

/* kafka_mark.c */
void kafka_mark_of(const rd_kafka_message_t *m, struct spool_mark *mark);
int64_t kafka_mark_begin(struct kafka_partition *p); /* where to seek to, to read behind taken */
void kafka_mark_verify(struct kafka_partition *p, const rd_kafka_message_t *m);
void kafka_mark_end(struct kafka_partition *p, int64_t end); /* the log's end was met */
void kafka_mark_line(struct kafka_hook *h, const char *facility, const char *text); /* any thread */
void kafka_mark_fetch_failed(struct kafka_hook *h);                                 /* any thread */
/* After records were taken out of the queue, and before they are looked at: some may be of another
   log. True: kafka_partitions_reseek_doubted is to be called when they are dropped. */
bool kafka_mark_doubts(struct kafka_source *s);

/* kafka_lookup.c */
void kafka_lookup_want(struct kafka_partition *p);
void kafka_lookup_run(struct kafka_source *s);
void kafka_kick_fire(struct kafka_source *s);

/* kafka_group.c */
void kafka_group_rebalance_cb(rd_kafka_t *client, rd_kafka_resp_err_t err,
                              rd_kafka_topic_partition_list_t *list, void *opaque);
void kafka_group_serve(struct kafka_source *s);
void kafka_group_lose_all(struct kafka_source *s);
void kafka_group_let_go(struct kafka_source *s, size_t count); /* of the first kept ones */
void kafka_group_revoke_over(struct kafka_source *s);
void kafka_group_try_finish_revoke(struct kafka_source *s);

/* kafka_run.c */
void kafka_run_take(struct kafka_partition *p, rd_kafka_message_t *m);
void kafka_run_hand_over(struct kafka_partition *p);
void kafka_run_discard(struct kafka_partition *p);
void kafka_run_relist(struct kafka_partition *p);
void kafka_run_linger_over(struct kafka_source *s);
void kafka_run_make_room(struct kafka_source *s);

/* kafka_commit.c */
void kafka_commit_flush(struct kafka_source *s);
bool kafka_commit_waits(const struct kafka_source *s); /* one is to be sent */
void kafka_commit_serve(struct kafka_source *s);
void kafka_commit_forget(struct kafka_partition *p);
rd_kafka_resp_err_t kafka_commit_seen(rd_kafka_t *client, /* the client's main thread */
                                      const rd_kafka_topic_partition_list_t *offsets,
                                      rd_kafka_resp_err_t err, void *arg);

/* kafka_join.c */
struct kafka_hook *kafka_hook_create(struct kafka_source *s); /* NULL on no memory */
int kafka_hook_attach(struct kafka_hook *h, rd_kafka_conf_t *conf, struct spool_error *error);
void kafka_hook_destroy(struct kafka_hook *h); /* behind the client */
struct kafka_source *kafka_hook_source(void *opaque);
/* Any thread: the client's connect() and close(). */
int kafka_join_connect(int fd, const struct sockaddr *address, int size, const char *broker,
                       void *opaque);
int kafka_join_close(int fd, void *opaque);
/* Any thread: a log line. True: the loop is to be woken, for kafka_join_coordinator. */
bool kafka_join_note(struct kafka_hook *h, const char *facility, const char *text);
void kafka_join_over(struct kafka_source *s);        /* its rebalance callback came */
void kafka_join_coordinator(struct kafka_source *s); /* woken: commits that waited for it may go */
void kafka_join_commit_answered(struct kafka_source *s);
bool kafka_join_under_way(const struct kafka_source *s);
bool kafka_join_forgotten(struct kafka_source *s, bool assigned); /* see kafka_group.c */
bool kafka_join_coordinator_away(const struct kafka_source *s);
/* Whether the member lost its id and has none yet, or has had a new one for less than a session. */
bool kafka_join_renamed(const struct kafka_source *s);
/* Whether the client has had no id yet, or its first for less than a session. */
bool kafka_join_new(const struct kafka_source *s);
bool kafka_join_heard(const struct kafka_source *s); /* in the first half of the session as it is */
/* Whether a commit may be queued now; if so, end must follow, with nothing else between. */
bool kafka_join_commit_begin(struct kafka_source *s);
void kafka_join_commit_end(struct kafka_source *s);

/* kafka_reason.c */
/* What was wrong with the certificate that this error is about; 0: it is not about one. */
int kafka_reason_fault(struct kafka_hook *h, const char *text);
void kafka_reason_put(rd_kafka_resp_err_t err, const char *text, int x509, char *out, size_t size);
int kafka_reason_certificate(rd_kafka_t *client, const char *broker, int32_t id, int *x509,
                             int depth, const char *der, size_t size, char *text, size_t text_size,
                             void *opaque);

/* kafka_health.c */
void kafka_health_lines(struct kafka_source *s); /* writes what the client's threads said */
void kafka_health_deafen(struct kafka_source *s);
void kafka_health_log_cb(const rd_kafka_t *client, int level, const char *facility,
                         const char *text);
void kafka_health_error_cb(rd_kafka_t *client, int err, const char *reason, void *opaque);
void kafka_health_record_error(struct kafka_source *s, const rd_kafka_message_t *m);
void kafka_health_up(struct kafka_source *s);
void kafka_health_probe(struct kafka_source *s);
void kafka_health_tell_fatal(struct kafka_source *s);

#endif
