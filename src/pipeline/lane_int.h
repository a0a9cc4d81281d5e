/* SPDX-License-Identifier: Apache-2.0 */
/* One job at a time per LMDB environment. Part of pipeline_int.h. */
#ifndef PIPELINE_LANE_INT_H
#define PIPELINE_LANE_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

struct pipeline;

/* --- lanes ---------------------------------------------------------------------------------- */

struct lane;

/* A job on one or several lanes at once; embedded in the structure that owns it. */
#define JOB_LANES_MAX 3
struct job {
    uv_work_t work_req;
    void (*work)(struct job *job); /* pool */
    void (*done)(struct job *job); /* loop; may free the job */
    unsigned wanted;               /* lanes not yet held */
    unsigned held;                 /* lanes held */
    struct lane *lanes[JOB_LANES_MAX];
    struct lane **many; /* instead of lanes, where more are needed */
    struct pipeline *pipeline;
};

struct lane_entry {
    struct job *job;
    struct lane_entry *next;
};

struct lane {
    struct lane_entry *first, *last;
    bool busy;
};

/* Queues the job on every lane given (one call, so that two jobs never wait for each other). With
   no lane it runs at once. SPOOL_E_NOMEM leaves nothing queued. */
int job_start(struct pipeline *p, struct job *job, struct lane *const *lanes, size_t count);

#endif
