/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by the files of the intake: intake.c, decode_job.c and append.c. */
#ifndef PIPELINE_INTAKE_INT_H
#define PIPELINE_INTAKE_INT_H

#include "pipeline/pipeline_int.h"

#define INTAKE_APPEND_BYTES (4 * MIB)
#define INTAKE_RETRY_MS     500

/* One run of an origin on its way to blocks and dead letters. Of the pool while it runs. */
struct decode_job {
    struct job job;
    struct decode_job *next_idle;
    struct stream *stream;
    struct stream_schema *schema; /* counted; its decoder below belongs to it */
    struct origin *origin;
    struct record_run_node *node;
    uint64_t run_bytes;  /* of node, while they count */
    uint64_t idle_bytes; /* while it is kept */
    struct decoder *decoder;
    struct frame_writer *writer;
    struct buf raw, frames;
    /* results */
    int status;
    struct spool_error error;
    struct pending_block *first, *last;
    struct pending_dead *dead_first, *dead_last;
    size_t dead_count;
    uint32_t rows, tombstones, refused;
    uint32_t taken_rows; /* of the block being built */
    int64_t *offsets;    /* of the block being built; LIMIT_BLOCK_ROWS entries, grown */
    size_t offsets_cap;
    int64_t covered_from; /* first offset the block being built accounts for */
    struct refusal why;   /* of the record at hand: too large to be cleared for each */
    char refused_text[SPOOL_ERROR_TEXT_BYTES];
};
/* decode_job.c */
/* A job whose decoder is for the stream's schema; NULL and *error where it can't be had. */
struct decode_job *decode_job_create(struct stream *s, struct spool_error *error);
void decode_job_free(struct decode_job *d);
void decode_work(struct job *job); /* pool */
void pending_block_free(struct pending_block *pb);
void pending_dead_free(struct pending_dead *pd); /* the whole list */

/* append.c */
void append_queue(struct stream *s, struct pending_block *first);
uint64_t append_due_ms(const struct stream *s); /* when the queued blocks are due; 0: none wait */
void append_advance(struct stream *s, uint64_t now);

#endif
