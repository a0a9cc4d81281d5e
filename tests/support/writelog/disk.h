/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk that remembers what was made durable and what was not yet. Fed with the records of a write
 * log, it writes out a directory as a power cut at that moment may leave it:
 *
 *   CUT_NONE  nothing that was not synchronised
 *   CUT_ALL   everything (what a killed process leaves)
 *   CUT_TORN  of each file any subset of the 4 KiB pages written since, of each directory the first
 *             few changes since
 *
 * A synchronised file keeps its content; its name is durable only when its directory was
 * synchronised too. A write by a descriptor with O_DSYNC is durable when it returns, and with it
 * what was written to the same pages before.
 */
#ifndef WRITELOG_DISK_H
#define WRITELOG_DISK_H

#include <stdint.h>

#include "log.h"

enum cut { CUT_NONE, CUT_ALL, CUT_TORN };

struct disk;

struct disk *disk_create(void);
void disk_free(struct disk *d);
/* pending: the record is under way, not done: a write with O_DSYNC is not durable yet. */
void disk_apply(struct disk *d, const struct log_record *r, const uint8_t *data, int pending);
/* Undoes the apply that was pending. */
void disk_forget_pending(struct disk *d);
/* Whether the record makes anything durable. */
int disk_is_boundary(const struct log_record *r);
/* Writes the directory out, into one that is empty. */
void disk_write(const struct disk *d, const char *dir, enum cut cut, uint64_t *seed);

#endif
