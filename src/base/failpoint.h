/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Named points at which a test build can be made to die, stop or fail. In every other build the
 * macros are nothing. SPOOLD_FAILPOINTS (environment) = "name=action[@n][,name=action[@n]...]":
 *   kill       raise(SIGKILL)        stop   raise(SIGSTOP)
 *   error      FAILPOINT_ERROR() is true (the caller fails as if the disk had)
 *   hang       this thread goes no further and says so on stderr; the others do (pool jobs only)
 * and @n acts at the n-th passage only (1 by default).
 */
#ifndef BASE_FAILPOINT_H
#define BASE_FAILPOINT_H

/* The names, in the order of a record's life. Nothing else may be passed to the macros. */
#define FP_STORE_BEFORE_RENAME  "store.before_rename" /* meta.mdb or dead.mdb is whole */
#define FP_DEAD_BEFORE_COMMIT   "dead.before_commit"
#define FP_DEAD_AFTER_COMMIT    "dead.after_commit"
#define FP_CHANGE_BEFORE_COMMIT "dead_change.before_commit" /* replayed, marked, discarded */
#define FP_CHANGE_AFTER_COMMIT  "dead_change.after_commit"
#define FP_APPEND_BEFORE_COMMIT "append.before_commit"
#define FP_APPEND_AFTER_COMMIT  "append.after_commit"
#define FP_ROLL_BEFORE_RENAME   "roll.before_rename" /* the new segment is whole */
#define FP_ROLL_AFTER_CREATE    "roll.after_create"
#define FP_SEAL_BEFORE_COMMIT   "seal.before_commit"
#define FP_SEAL_AFTER_COMMIT    "seal.after_commit"
#define FP_SEND_STARTED         "send.started"   /* the first bytes of the body were handed over */
#define FP_SEND_BODY_DONE       "send.body_done" /* the whole body was handed over, no answer yet */
#define FP_ANSWER_OK            "answer.ok"      /* 200 is in, the acknowledgement is not durable */
#define FP_ACK_BEFORE_COMMIT    "ack.before_commit"
#define FP_ACK_AFTER_COMMIT     "ack.after_commit" /* durable here, Kafka has not been told */
#define FP_ASK_ANSWERED         "ask.answered" /* the table told what it has; nothing follows yet */
#define FP_HUNT_TABLE_MADE      "hunt.table_made"
#define FP_HUNT_TRIAL           "hunt.trial" /* a trial was answered */
#define FP_HUNT_FOUND           "hunt.found" /* all bad rows are known, none is a dead letter yet */
#define FP_REPLACE_BEFORE       "replace.before_commit"
#define FP_REPLACE_AFTER        "replace.after_commit" /* durable, nothing of it is sent */
#define FP_DISCARD_BEFORE       "discard.before_commit"
#define FP_DISCARD_AFTER        "discard.after_commit"
#define FP_EPOCH_TAKEN          "epoch.taken" /* of a partition; nothing is done about the one before */
#define FP_KAFKA_COMMIT_SENT    "kafka.commit_sent"
#define FP_KAFKA_COMMIT_DONE    "kafka.commit_answered"
#define FP_REENCODE_BURIED      "reencode.buried"  /* rows that don't fit are dead letters by now */
#define FP_REENCODE_SEALED      "reencode.sealed"  /* the others are sealed under the new schema */
#define FP_DEAD_SENT            "dead_out.arrived" /* in the table or topic, not marked */
#define FP_REPLAY_NOTED         "replay.noted" /* which letters, before their rows are appended */
#define FP_REPLAY_APPENDED      "replay.appended" /* their rows are durable, they still stand */
#define FP_REPLAY_REMOVED       "replay.removed"  /* they are gone, the note still stands */
#define FP_UNLINK_BEFORE        "unlink.before"
#define FP_UNLINK_AFTER         "unlink.after"

#ifdef SPOOLD_FAILPOINTS
/* Counts the passage and acts; returns 1 where the action is "error". Thread-safe. */
int failpoint_hit(const char *name);
#define FAILPOINT(name)       ((void)failpoint_hit(name))
#define FAILPOINT_ERROR(name) (failpoint_hit(name))
#else
#define FAILPOINT(name)       ((void)0)
#define FAILPOINT_ERROR(name) (0)
#endif

#endif
