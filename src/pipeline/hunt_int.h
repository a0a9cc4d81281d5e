/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by hunt.c (which rows are bad) and bury.c (they become dead letters, the rest is sealed anew). */
#ifndef PIPELINE_HUNT_INT_H
#define PIPELINE_HUNT_INT_H

#include "pipeline/pipeline_int.h"

/* Rows being tried; one for each slot of the search. */
struct trial {
    struct hunt *hunt;
    unsigned slot;
    bool running;
    struct part *parts;
    size_t part_count;
    struct feed *feed;
    struct insert *insert;
};

enum hunt_end { HUNT_GOES_ON, HUNT_GIVES_UP, HUNT_HOLDS, HUNT_FOR_REAL };

struct hunt {
    struct batch *batch;
    struct stream *stream;
    int endpoint;
    int code;
    enum error_class class_;
    bool doubtful; /* perhaps it is no row: only what is refused beside rows that pass is bad */
    char reason[SEARCH_REASON_SIZE];
    char table[300]; /* of the trials */
    bool has_table;
    struct search *search; /* NULL: its only row was refused alone already */
    struct trial trials[SEARCH_SLOTS];
    unsigned trial_count;
    enum hunt_end end; /* once no trial runs */
    uint64_t retry_ms; /* of HUNT_GIVES_UP */
    uint64_t started_ms;
    struct bad_row only;       /* the batch's only row */
    const struct bad_row *bad; /* ascending; once all are found */
    size_t bad_count;
};

void hunt_free(struct hunt *h);
void hunt_drop_table(struct hunt *h); /* of the trials, where it was made */
/* The batch is tried again later, and then hunted through again if it must be. Frees h. */
void hunt_give_up(struct hunt *h, uint64_t delay_ms);
/* The pause until it is hunted through again, which costs as many trials as the last time. */
uint64_t hunt_wait(struct batch *b);

/* What was found is committed to the dead letters, and then in one commit acknowledged, the rest sealed
   anew. Ends the hunt. */
void hunt_bury(struct hunt *h);

#endif
