/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What preload_writelog.so writes down: every change a process makes to the files below one
 * directory, in order, and between them what the process says (notes). A record is this header,
 * then `size` bytes: data, or a path relative to the directory (two for a rename, each with its
 * NUL).
 */
#ifndef WRITELOG_LOG_H
#define WRITELOG_LOG_H

#include <stdint.h>

enum log_kind {
    LOG_CREATE = 1, /* file, path: a new empty file */
    LOG_WRITE,      /* file, at, data */
    LOG_WRITE_SYNC, /* the same by a descriptor with O_DSYNC */
    LOG_TRUNCATE,   /* file, at: the new size */
    LOG_SYNC,       /* file */
    LOG_MKDIR,      /* path */
    LOG_SYNC_DIR,   /* path */
    LOG_RENAME,     /* from, to */
    LOG_UNLINK,     /* path */
    LOG_NOTE,       /* what the process said */
    LOG_COMMITTED,  /* at: the next offset, text "topic/partition": a commit handed to librdkafka */
};

struct log_record {
    uint32_t kind;
    uint32_t file; /* a number per file ever made, from 1; a renamed file keeps it */
    uint64_t at;
    uint64_t size;
};

#endif
