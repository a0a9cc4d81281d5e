/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of repairing a spool: repair_read.c and repair_dead.c for repair.c. */
#ifndef SPOOL_REPAIR_INT_H
#define SPOOL_REPAIR_INT_H

#include "spool/spool_int.h"

/* What a segment's info says; readable: it does, and its checksum is right. */
struct told {
    bool readable, ours;
    bool silent;  /* it does not say whose it is */
    bool counted; /* last_sequence is what the file ends with */
    uint64_t number, base_sequence, last_sequence;
    uint32_t stream;
    uint8_t uuid[16];
    char name[SPOOL_STREAM_NAME_MAX + 1];
};

struct told_stream {
    char *name;
    char *directory;
    uint32_t id;
    uint64_t last_sequence;
    struct told *segments;
    size_t count;
};

struct told_origin {
    uint32_t id, epoch;
    size_t name_size;
    char *name;
};

struct repair {
    struct spool *spool;
    bool dry;
    bool skip_unreadable; /* of dead.mdb */
    void (*say)(void *arg, const char *line);
    void *arg;
    struct told_stream *streams;
    size_t stream_count;
    struct told_origin *origins;
    size_t origin_count, origin_cap;
    struct high_table kept; /* their ids */
    bool uuid_known;
    uint32_t last_id; /* of a stream */
};

/* Reads every segment of every stream; what is damaged in one is no error. NEWER, IO, NOMEM. */
int repair_read(struct repair *r, struct spool_error *error);
/* IO, with what to do, where there is such a file and it can't be opened. */
int repair_can_open(const char *path, struct spool_error *error);
/*
 * Visits a database of a file, stepping over what is damaged, also a meta page (*half, may be NULL: the
 * last commit may be missing). NOT_FOUND. IO: it can't be opened, or not be read, which is no damage: the
 * disk may read it the next time, and what is made without it would stand in its place. CORRUPT: nothing
 * in it can be found. Else NOMEM, or what visit ended the walk with; of IO it has not filled error.
 */
int repair_walk(const char *path, const char *db,
                int (*visit)(void *arg, const struct tree *tree, const struct tree_item *item),
                void *arg, bool *half, struct spool_error *error);
/* The same of dead.mdb; where it is to be done without what can't be read, that is stepped over, and unreadable
   (may be NULL) told of each page. Then IO is only for a file that can't be opened, or whose meta pages can't
   be read, or comes of visit. */
int repair_walk_dead(const struct repair *r, const char *path, const char *db,
                     void (*unreadable)(void *arg, const struct tree_gap *gap),
                     int (*visit)(void *arg, const struct tree *tree, const struct tree_item *item),
                     void *arg, bool *half, struct spool_error *error);
/* Makes a new dead.mdb of what can be read of a damaged one. *wrong: it is damaged. NEWER, IO, FULL,
   NOMEM. The uuid of the spool must be known. */
int repair_dead(struct repair *r, bool *wrong, struct spool_error *error);
void __attribute__((format(printf, 2, 3))) repair_say(struct repair *r, const char *format, ...);
bool is_cause_to_stop(int status);                             /* of repair_walk: IO, NOMEM */
char *told_path(const struct told_stream *s, uint64_t number); /* malloc'd or NULL */
int repair_no_memory(struct spool_error *error);

#endif
