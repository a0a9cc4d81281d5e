/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by segment_load.c and segment_salvage.c. */
#ifndef PIPELINE_SEGMENT_LOAD_INT_H
#define PIPELINE_SEGMENT_LOAD_INT_H

#include "pipeline/pipeline_int.h"

struct load_origin {
    uint32_t id, epoch;
    int64_t told_from;
    char *name;
    bool superseded; /* by another log */
    bool suspect;
    int64_t discard_to; /* as a durable discard says; -1: none */
};

/* What is known of a damaged segment. */
struct load_known {
    uint64_t segment;
    uint64_t blocks; /* of which blocks it is, and how many rows: a hash */
};

/* What was read of a segment. */
struct load_job {
    struct job job;
    struct stream *stream;
    struct segment *segment;
    int status;
    struct spool_error error; /* of a damaged segment: why */
    struct spool_block_ref *refs;
    size_t ref_count;
    struct spool_range *acked;
    size_t acked_count;
    void *schema;
    size_t schema_size;
    char *destination;
    struct load_origin *origins;
    size_t origin_count;
    bool damaged;             /* then refs are what was found of it */
    bool answered;            /* ... and what is missing was dealt with before */
    bool noted;               /* ... and so were its seals */
    bool changed;             /* ... and other blocks of it are known since */
    bool kept;                /* ... and it stays */
    struct load_known *known; /* of it, and of the damaged ones behind it in the row */
    size_t known_count;
    struct spool_salvage salvage; /* its refs and schema were moved out */
};

/* How the note of a damaged segment begins: all is done, or what is missing is noted by another's. */
#define SALVAGE_DONE     '1'
#define SALVAGE_ANSWERED '2'
void salvage_note_key(const struct stream *s, uint64_t segment, char *key, size_t size);
/* After the blocks were taken: what is missing becomes holes; batches that name it are ended. */
void segment_salvaged(struct stream *s, struct segment *g, const struct load_job *l);

#endif
