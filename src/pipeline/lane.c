/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lanes: LMDB environments are opened without locks of their own, so each may be used by one job at
 * a time. A lane is a queue of jobs in order; a job may need several lanes and then runs when it is
 * at the head of all of them. Jobs are queued on all their lanes in one call on the loop, so two
 * jobs stand in the same order on every lane they share and cannot wait for each other.
 */
#include <assert.h>
#include <stdlib.h>

#include "pipeline/pipeline_int.h"

static void job_work(uv_work_t *req)
{
    struct job *job = req->data;
    job->work(job);
}

static struct lane *job_lane(const struct job *job, unsigned i)
{
    return job->many ? job->many[i] : job->lanes[i];
}

static void job_run(struct job *job);

/* Gives a free lane to the job at its head; runs the job when that was the last one missing. */
static void lane_serve(struct lane *lane)
{
    struct job *job;

    if (lane->busy || !lane->first)
        return;
    lane->busy = true;
    job = lane->first->job;
    job->held++;
    assert(job->held <= job->wanted);
    if (job->held == job->wanted)
        job_run(job);
}

static void job_after(uv_work_t *req, int status)
{
    struct job *job = req->data;
    struct pipeline *p = job->pipeline;
    struct lane **many = job->many;
    struct lane *lanes[JOB_LANES_MAX];
    unsigned count = job->wanted;

    (void)status; /* jobs are never cancelled: uv_cancel is not used */
    for (unsigned i = 0; i < count; i++) {
        struct lane *lane = job_lane(job, i);
        struct lane_entry *entry = lane->first;
        assert(lane->busy && entry && entry->job == job);
        lane->first = entry->next;
        if (!lane->first)
            lane->last = NULL;
        free(entry);
        lane->busy = false;
        if (!many)
            lanes[i] = lane;
    }
    assert(p->jobs > 0);
    p->jobs--;
    job->many = NULL;
    job->done(job); /* may free the job */
    for (unsigned i = 0; i < count; i++)
        lane_serve(many ? many[i] : lanes[i]);
    free(many);
}

static void job_run(struct job *job)
{
    int status;

    job->work_req.data = job;
    status = uv_queue_work(job->pipeline->loop, &job->work_req, job_work, job_after);
    assert(status == 0); /* fails only without a work function */
    (void)status;
}

int job_start(struct pipeline *p, struct job *job, struct lane *const *lanes, size_t count)
{
    struct lane_entry *entries[JOB_LANES_MAX];
    struct lane_entry **list = entries;
    size_t made = 0;

    job->pipeline = p;
    job->wanted = (unsigned)count;
    job->held = 0;
    job->many = NULL;
    if (count > JOB_LANES_MAX) {
        list = calloc(count, sizeof(*list));
        job->many = calloc(count, sizeof(struct lane *));
        if (!list || !job->many)
            goto nomem;
    }
    for (; made < count; made++) {
        list[made] = calloc(1, sizeof(struct lane_entry));
        if (!list[made])
            goto nomem;
        list[made]->job = job;
    }
    p->jobs++;
    for (size_t i = 0; i < count; i++) {
        struct lane *lane = lanes[i];
        if (job->many)
            job->many[i] = lane;
        else
            job->lanes[i] = lane;
        if (lane->last)
            lane->last->next = list[i];
        else
            lane->first = list[i];
        lane->last = list[i];
    }
    if (list != entries)
        free(list);
    if (count == 0)
        job_run(job);
    for (size_t i = 0; i < count; i++)
        lane_serve(lanes[i]);
    return SPOOL_OK;

nomem:
    while (made > 0)
        free(list[--made]);
    if (list != entries)
        free(list);
    free(job->many);
    job->many = NULL;
    return SPOOL_E_NOMEM;
}
