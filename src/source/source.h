/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every source hands to the pipeline: runs of records of one origin, in order of offset. A run
 * is made on the loop, read and released in a pool job. The records stay in the source's own memory
 * until release, so nothing is copied.
 */
#ifndef SOURCE_SOURCE_H
#define SOURCE_SOURCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "codec/decode.h"
#include "spool.h"

struct record_run;

struct record_run_ops {
    /* Pool or loop. Fills *record (data NULL: a tombstone), the headers and the timestamp only where
       wanted (RECORD_WANTS_*); headers live in the run until the next call. i counts from 0. */
    void (*record)(struct record_run *run, uint32_t i, unsigned wanted, struct record *record);
    /* Pool. What record i is known again by; NULL where the source can't be asked for it again. */
    void (*mark)(const struct record_run *run, uint32_t i, struct spool_mark *mark);
    /* Pool. Frees the records and the run. */
    void (*release)(struct record_run *run);
};

struct record_run {
    const struct record_run_ops *ops;
    void *origin; /* the pipeline's own handle for the origin */
    uint32_t count;
    uint64_t bytes;       /* payload, keys and headers */
    int64_t first_offset; /* of the first and last record */
    int64_t last_offset;
    int64_t received_ms;    /* wall clock, when the first was taken */
    struct spool_mark mark; /* of the last record; not known where ops has no mark */
    bool last_of_log;       /* its log is over: it can't be had again, nor what came before */
};

#endif
