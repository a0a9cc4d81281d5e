/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by replay.c (the steps, on the loop) and replay_decode.c (a chunk's letters, in the pool). */
#ifndef PIPELINE_REPLAY_INT_H
#define PIPELINE_REPLAY_INT_H

#include "pipeline/intake_int.h"
#include "spool/look.h"

/* A letter that was decoded again and did not fit again. */
struct replay_refusal {
    struct spool_dead_place place;
    struct refusal why;
};

/* Offsets of an origin that are in the spool and not acknowledged: rows that are still being
   looked through for bad ones may become letters again. Or such as are to be read again: then each
   record becomes a row or a letter once more. */
struct replay_unacked {
    uint32_t origin;
    int64_t first, last;
    bool reread;
};

/* So many letters at a time: one note, one append, one removal. Of the pool while its job runs. */
struct replay_chunk {
    struct job job;
    struct stream *stream;
    const struct dead_filter *filter;
    struct spool_dead_place next; /* in: where to begin; out: where the next chunk does */
    bool at_end;                  /* out: there is no next */
    struct origin *origin;        /* of the replay, whose numbers the rows get */
    int64_t number;               /* in, out: the last one given */
    struct stream_schema *schema; /* counted */
    struct replay_unacked *unacked;
    size_t unacked_count;
    bool all_loaded; /* unacked is complete */
    /* results */
    struct pending_block *first, *last; /* their schema is counted on the loop */
    size_t blocks;
    struct spool_dead_place *fitting; /* one a row, in order of their numbers */
    size_t fitting_count;
    struct replay_refusal *refusals;
    size_t refusal_count, refusal_cap;
    uint64_t cut, unsettled;
    uint64_t bytes;                 /* of the records looked at */
    uint64_t letters, letter_bytes; /* of the stream, afterwards */
    int status;
    struct spool_error error;
};

#define REPLAY_CHUNK_LETTERS 4096
#define REPLAY_CHUNK_BYTES   (4 * MIB)

/* Pool; needs the dead, meta and stream lanes. Letters that do not fit are dealt with when it
   returns. */
void replay_chunk_work(struct job *job);
int replay_chunk_collect(
    struct replay_chunk *c); /* what is not acknowledged; on the loop, before that */
/* Forgets the results, and blocks that were not handed over. */
void replay_chunk_reset(struct replay_chunk *c);

#endif
