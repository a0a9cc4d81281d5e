/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a log parts with the one that was read before it under the same name. A broker that lost its
 * last writes, or an unclean election, cuts the end of a log and writes it again: up to there it is
 * the same, and all of it was read. The spool keeps the marks of some records, ever further back. They
 * are looked for, the latest first, and reading begins behind the first that is still there. Records
 * between it and the cut come again, at most about as many as the cut took away: a record of theirs
 * has an offset of the present epoch now, and the table has it already.
 *
 * A topic that was made anew has none of them. What was found is committed at once, so that it is
 * looked for once; a restart before that looks again (find_traces in kafka_assign.c).
 *
 * Where another consumer committed, reading goes on at its commit, and all that is asked is whether this
 * is the log that was read before: offsets name the same records then, and a table can be asked about
 * them in this epoch too.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "pipeline/pipeline_int.h"

struct log_trace {
    struct spool_trace traces[LOG_TRACES];
    size_t count, next; /* the one that is looked for */
    int64_t otherwise;
    const char *new_log;
    bool confirms; /* it is known where reading goes on */
    int64_t told_from;
};

void log_trace_free(struct origin *o)
{
    free(o->trace);
    o->trace = NULL;
}

void log_trace_again(struct origin *o)
{
    const struct spool_trace *at = &o->trace->traces[o->trace->next];

    kafka_partition_trace(o->partition, at->offset + 1, &at->mark);
}

static void trace_is_new_log(struct origin *o)
{
    int64_t otherwise = o->trace->otherwise;

    log_event(LOG_WARN, "partition.new_log", "stream", o->stream->options->name, "origin", o->name,
              "action", o->trace->new_log, NULL);
    log_trace_free(o);
    kafka_partition_start(o->partition, otherwise, NULL);
}

static void trace_goes_on(struct origin *o)
{
    log_trace_free(o);
    origin_start_reading(o);
}

void log_trace_next(struct origin *o)
{
    if (++o->trace->next < o->trace->count)
        log_trace_again(o);
    else if (o->trace->confirms)
        trace_goes_on(o);
    else
        trace_is_new_log(o);
}

static void trace_start(struct origin *o, const struct log_trace *what,
                        const struct spool_trace *traces, size_t count)
{
    log_trace_free(o);
    o->trace = malloc(sizeof(*o->trace));
    if (!o->trace) {
        pipeline_fatal(o->stream->p, "out of memory while taking a partition");
        return;
    }
    *o->trace = *what;
    memcpy(o->trace->traces, traces, count * sizeof(*traces));
    o->trace->count = count;
    log_trace_again(o);
}

void log_trace_begin(struct origin *o, const struct spool_trace *traces, size_t count,
                     int64_t otherwise, const char *new_log)
{
    trace_start(o, &(struct log_trace){.otherwise = otherwise, .new_log = new_log}, traces, count);
}

void log_trace_confirm(struct origin *o, const struct spool_trace *traces, size_t count,
                       int64_t told_from)
{
    trace_start(o, &(struct log_trace){.confirms = true, .told_from = told_from}, traces, count);
}

void log_trace_found(struct origin *o, int64_t offset)
{
    const struct log_trace *t = o->trace;

    if (t->confirms) {
        origin_tell(o, t->told_from);
        trace_goes_on(o);
        return;
    }
    log_event(LOG_ERROR, "partition.log_cut", "stream", o->stream->options->name, "origin", o->name,
              "same_below", log_i64(offset), "read_to", log_i64(t->traces[0].offset), "action",
              "the end of the log was cut and is written again: reading goes on behind the last "
              "record found that is the same; records between it and the cut come again",
              NULL);
    o->taken = offset - 1;
    o->mark = t->traces[t->next].mark;
    log_trace_free(o);
    if (!o->first && o->front < offset)
        o->front = offset;
    origin_commit(o);
}
