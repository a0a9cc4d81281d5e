/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one table of metrics (Prometheus text format 0.0.4). Each metric is a row of METRIC_LIST:
 * id, name, kind, help, labels (comma separated, from: stream table reason endpoint state class
 * code source). docs/operations.md lists the same rows and a test compares them.
 * Counters and gauges are doubles addressed by id and label values. Loop thread only. A NULL
 * struct metrics is nobody listening: calls with it do nothing.
 */
#ifndef BASE_METRICS_H
#define BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

#define METRIC_LIST(X)                                                                             \
    X(RECORDS_IN, "spoold_records_in_total", COUNTER, "Records taken from sources.",               \
      "stream,source")                                                                             \
    X(BYTES_IN, "spoold_bytes_in_total", COUNTER, "Payload bytes taken from sources.",             \
      "stream,source")                                                                             \
    X(TOMBSTONES, "spoold_tombstones_total", COUNTER, "Kafka records without a value, skipped.",   \
      "stream")                                                                                    \
    X(ROWS_SPOOLED, "spoold_rows_spooled_total", COUNTER, "Rows made durable in the spool.",       \
      "stream")                                                                                    \
    X(SPOOL_APPENDED_BYTES, "spoold_spool_appended_bytes_total", COUNTER,                          \
      "Block bytes appended to segments.", "stream")                                               \
    X(ROWS_INSERTED, "spoold_rows_inserted_total", COUNTER, "Rows acknowledged by ClickHouse.",    \
      "stream,table")                                                                              \
    X(BATCHES, "spoold_batches_total", COUNTER, "Batches acknowledged.", "stream")                 \
    X(RETRIES, "spoold_retries_total", COUNTER, "Insert attempts after the first.",                \
      "stream,class")                                                                              \
    X(ERRORS, "spoold_errors_total", COUNTER, "Failed insert attempts.", "stream,class,code")      \
    X(DEAD_LETTERS, "spoold_dead_letters_total", COUNTER, "Records put to the dead letters.",      \
      "stream,reason")                                                                             \
    X(DEAD_SENT, "spoold_dead_letters_sent_total", COUNTER,                                        \
      "Dead letters that arrived in their table or topic.", "stream,source")                       \
    X(DEAD_REFUSED, "spoold_dead_letters_refused_total", COUNTER,                                  \
      "Dead letters that their table or topic does not take.", "stream,source")                    \
    X(REPLAYED, "spoold_dead_letters_replayed_total", COUNTER,                                     \
      "Dead letters whose rows were put into the spool.", "stream")                                \
    X(POSSIBLE_DUPLICATES, "spoold_possible_duplicates_total", COUNTER,                            \
      "Rows sent again although the first outcome was unknown.", "stream")                         \
    X(VIEWS_UNSURE, "spoold_views_unsure_rows_total", COUNTER,                                     \
      "Rows acknowledged that materialized views of the table may lack.", "stream")                \
    X(ROWS_REENCODED, "spoold_rows_reencoded_total", COUNTER,                                      \
      "Rows encoded anew because the table changed.", "stream")                                    \
    X(DROPPED_ROWS, "spoold_dropped_rows_total", COUNTER, "Rows dropped by on_full: drop_oldest.", \
      "stream")                                                                                    \
    X(ALREADY_DELIVERED, "spoold_already_delivered_rows_total", COUNTER,                           \
      "Rows of a spool put back to an earlier state that the group had committed.", "stream")      \
    X(DAMAGED_BLOCKS, "spoold_damaged_blocks_total", COUNTER, "Blocks set aside as damaged.",      \
      "stream")                                                                                    \
    X(STATE_CHANGES, "spoold_state_changes_total", COUNTER, "Entries of a stream into a state.",   \
      "stream,state")                                                                              \
    X(GAP_RECORDS, "spoold_gap_records_total", COUNTER,                                            \
      "Offsets skipped because the broker no longer had them.", "stream")                          \
    X(STREAM_STATE, "spoold_stream_state", GAUGE, "1 for the state a stream is in.",               \
      "stream,state")                                                                              \
    X(SPOOL_ROWS, "spoold_spool_rows", GAUGE, "Rows in the spool not yet acknowledged.", "stream") \
    X(SPOOL_BYTES, "spoold_spool_bytes", GAUGE, "Bytes of segment files on disk.", "stream")       \
    X(SPOOL_OLDEST, "spoold_spool_oldest_age_seconds", GAUGE,                                      \
      "Age of the oldest row not yet acknowledged.", "stream")                                     \
    X(BATCHES_STATE, "spoold_batches", GAUGE, "Batches by state.", "stream,state")                 \
    X(DEAD_WAITING, "spoold_dead_letters_waiting", GAUGE,                                          \
      "Dead letters not yet in their table or topic.", "stream,source")                            \
    X(KAFKA_LAG, "spoold_kafka_lag_records", GAUGE, "Records behind the end of the topic.",        \
      "stream")                                                                                    \
    X(ENDPOINT_UP, "spoold_endpoint_up", GAUGE, "1 if the endpoint answers.", "endpoint")          \
    X(ENDPOINT_INSERTS, "spoold_endpoint_inserts_total", COUNTER,                                  \
      "Batches the endpoint acknowledged.", "endpoint")                                            \
    X(ENDPOINT_ERRORS, "spoold_endpoint_errors_total", COUNTER,                                    \
      "Insert attempts that failed at the endpoint.", "endpoint")                                  \
    X(ENDPOINT_WAITING, "spoold_endpoint_waiting_batches", GAUGE,                                  \
      "Batches that wait for the endpoint alone.", "endpoint")                                     \
    X(SPOOL_USED, "spoold_spool_used_bytes", GAUGE, "Bytes of the whole spool directory.", "")     \
    X(SPOOL_LIMIT, "spoold_spool_limit_bytes", GAUGE, "spool.max_bytes.", "")                      \
    X(DISK_FREE, "spoold_disk_free_bytes", GAUGE, "Free bytes of the spool's file system.", "")    \
    X(INSERT_SECONDS, "spoold_insert_duration_seconds", HISTOGRAM,                                 \
      "From the first byte of an insert to its answer.", "stream")                                 \
    X(COMMIT_SECONDS, "spoold_commit_duration_seconds", HISTOGRAM,                                 \
      "Time of one durable spool commit.", "stream")                                               \
    X(LOOP_BUSY_SECONDS, "spoold_loop_turn_seconds", HISTOGRAM,                                    \
      "Busy time of an event loop turn.", "")                                                      \
    X(METRICS_DROPPED, "spoold_metrics_dropped_total", COUNTER,                                    \
      "Values dropped because there were too many series.", "")

enum metric_id {
#define X(id, name, kind, help, labels) METRIC_##id,
    METRIC_LIST(X)
#undef X
        METRIC_COUNT
};

struct metrics;

int metrics_create(struct metrics **out);
void metrics_free(struct metrics *m);

/*
 * Adds to a counter, sets a gauge, observes a histogram. Label values follow in the order of the
 * table, as `const char *`, exactly as many as the metric has. A series is made when first named;
 * at most 10,000 series, then the value is dropped and counted in spoold_metrics_dropped_total.
 */
void metrics_add(struct metrics *m, enum metric_id id, double v, ...);
void metrics_set(struct metrics *m, enum metric_id id, double v, ...);
void metrics_observe(struct metrics *m, enum metric_id id, double seconds, ...);

/* Reads one series back (tests, status): a histogram's count of observations; 0 where it does not
   exist. */
double metrics_get(const struct metrics *m, enum metric_id id, ...);

/* Forgets every series whose label `stream` is name (a stream that went away). */
void metrics_forget_stream(struct metrics *m, const char *name);

/* The whole table as Prometheus text. */
int metrics_render(const struct metrics *m, struct buf *out);

#endif
