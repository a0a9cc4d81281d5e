/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a partition begins, and in which epoch of its origin, is decided here, from the group's
 * committed offset, the metadata that came with it, and what the spool holds:
 *
 *   committed by us                 continue behind the spool's highest offset
 *     ... beyond what is held         this is an older copy of the spool: continue at the commit
 *     ... in a later epoch            so it is, and the log is a later one too: the same
 *   committed by somebody else      it wins: our unsent rows are discarded, a new epoch begins
 *   nothing committed, rows held    continue behind them, if the broker still has that offset;
 *                                   else the log is another one: a new epoch, by policy
 *   nothing committed, nothing held by policy
 *   committed by us in an earlier epoch
 *                                   is of an earlier log, and counts as nothing committed; with
 *                                   nothing held the log is read from where it parts with that,
 *                                   or from its beginning
 *
 * Where the record in front of that place is another one than we took there, the log is another one
 * too (kafka_mark.c): a new epoch, from its beginning; or from where it parts with the earlier one, if
 * that is what it begins with (log_trace.c).
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define ASSIGN_RETRY_MS 1000
#define NEVER           UINT64_MAX

enum start_why {
    START_OURS,
    START_FOREIGN,
    START_NEW_LOG,
    START_LATER_LOG, /* this spool has read it already, and was put back to before that */
    START_BEGINNING,
    START_POLICY
};

struct assign_job {
    struct job job;
    struct stream *stream;
    struct kafka_partition *partition;
    bool gone; /* revoked while the job ran */
    char name[400];
    struct kafka_committed committed;
    bool ours;          /* committed by this spool */
    bool by_spoold;     /* committed by this or another one, which went on where one had stopped */
    int64_t their_told; /* ... and its own told_from */
    uint32_t commit_epoch; /* ... in this epoch of the origin */
    bool same_epoch;       /* ... which is the present one */
    bool of_earlier;       /* ... or an earlier one: it counts as nothing committed */
    bool new_epoch;        /* what was taken so far is of another log */
    bool other_log;        /* ... which the source has seen: this one is read from its beginning */
    int status;
    uint64_t retry_at_ms; /* it waits for room; NEVER: for another spool; 0: it runs */
    bool telling;         /* waits until what of its origin can be told is noted */
    bool began;           /* a new epoch, once, however often the rest is tried */
    struct spool_error error;
    uint32_t id, epoch, old_id, old_epoch;
    int64_t high;      /* what is durable */
    int64_t held;      /* ... or is on its way to the disk */
    uint32_t taken_id; /* the origin that something of is on its way, and up to where */
    int64_t taken;
    struct spool_mark mark;
    enum start_why why;
    struct spool_trace traces[LOG_TRACES]; /* of earlier logs, the latest first */
    size_t trace_count;
    int64_t told_from; /* the origin's */
    int64_t old_told;  /* ... of old_id */
    int64_t
        confirm_from; /* ... where one of traces shows that its log is the one before; INT64_MAX:
                             they are of what was read, and say where reading begins */
    struct assign_job *next;
};

/* "spoold <uuid> <epoch> <told_from>" */
bool kafka_commit_is_ours(const struct pipeline *p, const char *metadata, uint32_t *epoch)
{
    char text[64];
    int n = snprintf(text, sizeof(text), "spoold %s ", spool_uuid_text(p->spool));

    if (n <= 0 || !metadata || strncmp(metadata, text, (size_t)n) != 0)
        return false;
    *epoch = (uint32_t)strtoul(metadata + n, NULL, 10);
    return true;
}

/* Whether a spoold committed it, and from where on its rows could be told apart. */
static bool is_of_a_spoold(const char *metadata, int64_t *told)
{
    long long from = -1;

    if (!metadata || strncmp(metadata, "spoold ", 7) != 0)
        return false;
    *told = sscanf(metadata, "spoold %*36s %*u %lld", &from) == 1 && from >= 0 ? from : INT64_MAX;
    return true;
}

static enum start_why assign_why(struct assign_job *a)
{
    struct kafka_committed *c = &a->committed;

    a->of_earlier |= a->ours && a->commit_epoch < a->epoch;
    if (a->of_earlier) {
        a->ours = false;
        c->offset = -1;
        if (a->held < 0)
            return START_BEGINNING;
    }
    if (a->ours && a->commit_epoch > a->epoch)
        return START_LATER_LOG;
    if (a->held < 0)
        return c->offset >= 0 ? START_OURS : START_POLICY;
    if (c->offset >= 0)
        return a->ours && (c->offset <= a->held + 1 || a->same_epoch) ? START_OURS : START_FOREIGN;
    if (c->high < 0 || (a->held + 1 <= c->high && a->held + 1 >= c->low))
        return START_OURS;
    return START_NEW_LOG;
}

static bool is_new_epoch(const struct assign_job *a)
{
    return a->why == START_FOREIGN || a->why == START_NEW_LOG || a->why == START_LATER_LOG;
}

/* In one commit with what it means for the rows of the one before: another consumer went past them,
   or they may have been delivered since this copy of the spool was made. Else they are sent. */
static int take_new_epoch(struct assign_job *a)
{
    struct spool *spool = a->job.pipeline->spool;
    uint32_t epoch = a->why == START_LATER_LOG ? a->commit_epoch : a->epoch + 1;
    char key[ORIGIN_NOTE_KEY_SIZE], value[ORIGIN_NOTE_VALUE_SIZE];
    struct spool_change note;
    int status;

    a->old_id = a->id;
    a->old_epoch = a->epoch;
    status = origin_told_noted(a->stream, a->old_id, a->old_epoch, &a->old_told, &a->error);
    if (status != SPOOL_OK)
        return status;
    a->high = -1;
    a->mark.known = false;
    a->epoch = epoch;
    switch (a->why) {
    case START_FOREIGN:
        note = origin_note(a->stream, NOTE_DISCARD, a->old_id, INT64_MAX, key, value);
        status = spool_origin_begin(spool, a->name, epoch, &note, &a->id, &a->error);
        break;
    case START_LATER_LOG:
        note = origin_note(a->stream, NOTE_SUSPECT, a->old_id, 1, key, value);
        status = spool_origin_begin(spool, a->name, epoch, &note, &a->id, &a->error);
        break;
    default:
        status = spool_origin(spool, a->name, epoch, &a->id, NULL, &a->error);
        break;
    }
    if (status == SPOOL_OK)
        FAILPOINT(FP_EPOCH_TAKEN);
    return status;
}

/* Whether rows of it are to be read again: then it is no mark of how far the log was read. */
static int was_discarded(struct assign_job *a, uint32_t id, bool *discarded)
{
    int64_t up_to = -1;
    int status = origin_discard_noted(a->stream, id, &up_to, &a->error);

    *discarded = up_to == INT64_MAX;
    return status;
}

/* An earlier log's below those that are known: the one after it may have been the same up to there. */
static void add_traces(struct assign_job *a, uint32_t id)
{
    struct spool_trace traces[SPOOL_TRACES];
    size_t n = spool_stream_traces(a->stream->spool, id, traces);

    for (size_t i = 0; i < n && a->trace_count < LOG_TRACES; i++)
        if (!a->trace_count || traces[i].offset < a->traces[a->trace_count - 1].offset)
            a->traces[a->trace_count++] = traces[i];
}

/*
 * What is known of the logs before this one, the present epoch's: their end may only have been cut. Found
 * again after a restart, too, as long as nothing of the present epoch is held.
 */
static int find_traces(struct assign_job *a)
{
    uint32_t epoch = a->epoch, id = 0, found = 0;
    bool discarded = false;
    int status = SPOOL_OK;

    if (a->why != START_NEW_LOG && a->why != START_BEGINNING && a->why != START_POLICY)
        return SPOOL_OK;
    while (--epoch > 0 && a->trace_count < LOG_TRACES) {
        status = spool_origin(a->job.pipeline->spool, a->name, epoch, &id, &found, &a->error);
        if (status == SPOOL_OK)
            status = was_discarded(a, id, &discarded);
        if (status != SPOOL_OK || discarded)
            break;
        add_traces(a, id);
    }
    return status;
}

/*
 * Another consumer had the partition, and the epoch begins at its commit. If it is the same log yet, a
 * table's rows of it are told apart as they were before; but where an operator set the offset, only those
 * behind the end the log had then: the others may be there already, and are meant to come again. Only the
 * last record that was taken shows that it is: where no more than an earlier one is there, the log may have
 * been cut behind that, and what the table has of the offsets from there on be of records that are no more.
 */
static int find_same_log(struct assign_job *a)
{
    struct spool *spool = a->job.pipeline->spool;
    char key[ORIGIN_NOTE_KEY_SIZE], value[ORIGIN_NOTE_VALUE_SIZE];
    struct spool_change note = origin_note(a->stream, NOTE_TOLD, a->id, INT64_MAX, key, value);
    uint32_t id = 0, found = 0;
    bool discarded = false;
    int64_t from = INT64_MAX, behind;
    int status = SPOOL_OK;

    if (a->told_from != INT64_MAX) /* it was, and may be another by now */
        status = spool_commit(spool, &note, 1, &a->error);
    a->told_from = INT64_MAX;
    if (status == SPOOL_OK)
        status = spool_origin(spool, a->name, a->epoch - 1, &id, &found, &a->error);
    if (status == SPOOL_OK)
        status = was_discarded(a, id, &discarded);
    if (status == SPOOL_OK && discarded)
        status = origin_told_noted(a->stream, id, found, &from, &a->error);
    if (status != SPOOL_OK || !discarded)
        return status;
    behind = a->by_spoold ? a->their_told : a->committed.high < 0 ? INT64_MAX : a->committed.high;
    from = behind > from ? behind : from;
    if (from == INT64_MAX)
        return SPOOL_OK;
    add_traces(a, id);
    if (a->trace_count) {
        a->trace_count = 1;
        a->confirm_from = from;
    }
    return SPOOL_OK;
}

/* Of a log that this spool has nothing of yet: as much as the one who read it before could be told. */
static int take_their_word(struct assign_job *a)
{
    char key[ORIGIN_NOTE_KEY_SIZE], value[ORIGIN_NOTE_VALUE_SIZE];
    struct spool_change note = origin_note(a->stream, NOTE_TOLD, a->id, a->their_told, key, value);

    if (!a->by_spoold || a->their_told == a->told_from)
        return SPOOL_OK;
    a->told_from = a->their_told;
    return spool_commit(a->job.pipeline->spool, &note, 1, &a->error);
}

/* Which epoch goes on, or begins. */
static int find_epoch(struct assign_job *a)
{
    int status = spool_origin(a->job.pipeline->spool, a->name, 0, &a->id, &a->epoch, &a->error);

    if (status != SPOOL_OK)
        return status;
    a->same_epoch = a->ours && a->commit_epoch == a->epoch;
    a->high = -1;
    (void)spool_stream_high(a->stream->spool, a->id, &a->high);
    spool_stream_mark(a->stream->spool, a->id, &a->mark);
    a->held = a->id == a->taken_id && a->taken > a->high ? a->taken : a->high;
    a->why = a->new_epoch ? START_NEW_LOG : assign_why(a);
    if (!is_new_epoch(a))
        return SPOOL_OK;
    status = take_new_epoch(a);
    a->began = status == SPOOL_OK;
    return status;
}

static void assign_work(struct job *job)
{
    struct assign_job *a = (struct assign_job *)job;

    a->trace_count = 0;
    a->confirm_from = INT64_MAX;
    a->status = a->began ? SPOOL_OK : find_epoch(a);
    if (a->status == SPOOL_OK)
        a->status = origin_told_noted(a->stream, a->id, a->epoch, &a->told_from, &a->error);
    if (a->status != SPOOL_OK || a->high >= 0)
        return;
    a->status = find_traces(a);
    if (a->status == SPOOL_OK && !a->ours && a->committed.offset >= 0)
        a->status = a->epoch > 1 ? find_same_log(a) : take_their_word(a);
}

/* Logs that were followed by another one: rows of that have the same offsets. Where another consumer
   went past the rows it is the same log yet. */
static void supersede(const struct assign_job *a)
{
    for (struct origin *o = a->stream->origins; o; o = o->next)
        if (o->id != a->id && o->name && strcmp(o->name, a->name) == 0)
            o->superseded |= a->why != START_FOREIGN || o->id != a->old_id;
}

static const char *new_log_action(const struct assign_job *a)
{
    if (a->why == START_LATER_LOG)
        return "this spool is older than its own commits to Kafka, and the topic was made anew "
               "since: "
               "rows held are sent, reading goes on at the commit";
    return a->other_log
               ? "the topic is another one under the same name: rows held are sent, reading "
                 "starts at its beginning"
               : "the topic is another one under the same name: rows held are sent, reading "
                 "starts by auto_offset_reset";
}

/* Rows of earlier epochs of this partition: discarded where another consumer went past them, sent
   where the log they came from is gone. */
static void assign_old_epoch(struct assign_job *a)
{
    struct stream *s = a->stream;
    struct origin *old = origin_get(s, a->old_id);

    if (!old) {
        pipeline_fatal(s->p, "out of memory while taking a partition");
        return;
    }
    if (!old->name)
        old->name = strdup(a->name);
    old->epoch = a->old_epoch;
    if (old->told_from == INT64_MAX)
        old->told_from = a->old_told;
    old->kafka = true;
    old->partition = NULL;
    old->owned = false;
    supersede(a);
    if (a->why == START_FOREIGN) {
        log_event(LOG_WARN, "partition.foreign_commit", "stream", s->options->name, "origin",
                  a->name, "committed", log_i64(a->committed.offset), "action",
                  "the commit wins: rows held here are discarded and read again from there", NULL);
        holes_forget(old, false);
        if (old->discard_to >= 0) /* a note of less may be on its way yet */
            origin_pass(old, INT64_MAX);
        else
            origin_discard(old, INT64_MAX);
    } else {
        if (!a->trace_count)
            log_event(LOG_WARN, "partition.new_log", "stream", s->options->name, "origin", a->name,
                      "low", log_i64(a->committed.low), "high", log_i64(a->committed.high),
                      "action", new_log_action(a), NULL);
        if (a->why == START_LATER_LOG)
            origin_suspect(old);
        holes_forget(old, true);
        old->owned = true;
    }
    origin_forget_commit(old); /* its answer will find the new origin */
}

static int64_t assign_start(const struct assign_job *a, const struct origin *o)
{
    int64_t held = o->high > o->taken ? o->high : o->taken;

    if (a->why == START_FOREIGN || a->why == START_LATER_LOG)
        return a->committed.offset;
    if (a->other_log)
        return KAFKA_OFFSET_BEGINNING;
    if (a->why == START_NEW_LOG)
        return KAFKA_OFFSET_POLICY;
    if (a->why != START_OURS && held >= 0) /* taken, and not durable yet */
        return held + 1;
    if (a->why == START_BEGINNING)
        return KAFKA_OFFSET_BEGINNING;
    if (a->why == START_POLICY)
        return KAFKA_OFFSET_POLICY;
    if (held >= 0)
        return held + 1 > a->committed.offset ? held + 1 : a->committed.offset;
    if (a->committed.offset < 0) /* what was held was given back meanwhile */
        return KAFKA_OFFSET_POLICY;
    return a->committed.offset;
}

static void assign_unlink(struct assign_job *a)
{
    struct assign_job **at = &a->stream->p->assigning;

    while (*at != a)
        at = &(*at)->next;
    *at = a->next;
}

/* The partition is the origin's now. */
static void assign_origin(struct assign_job *a, struct origin *o)
{
    struct stream *s = a->stream;

    if (!o->name)
        o->name = strdup(a->name);
    o->epoch = a->epoch;
    o->kafka = true;
    o->owned = true;
    o->revoking = false;
    o->log_over = false;
    if (o->told_from == INT64_MAX || a->epoch <= 1)
        o->told_from = a->told_from;
    origin_forget_commit(o); /* one that was under way went with the partition as it was before */
    o->partition = a->partition;
    o->topic = stream_topic(s, kafka_partition_topic(a->partition));
    o->partition_number = kafka_partition_number(a->partition);
    o->committed = a->ours ? a->committed.offset : -1;
    if (a->high > o->high)
        o->high = a->high;
    for (struct origin *other = s->origins; other; other = other->next)
        kafka_in_adopt(other);
    stream_recount(s);
    kafka_partition_set_user(a->partition, o);
}

/* The last one that waited for room goes on, or went. */
static void assign_waits_no_more(struct stream *s)
{
    for (const struct assign_job *a = s->p->assigning; a; a = a->next)
        if (a->stream == s && a->retry_at_ms && !a->gone)
            return;
    stream_unhold(s, HOLD_NAMES);
}

static void assign_wait(struct assign_job *a)
{
    meta_log_full(a->stream->p, &a->error, "a partition waits; the others go on");
    if (!a->stream->holds[HOLD_NAMES]) /* the others of a stream wait for the same */
        stream_hold(a->stream, HOLD_NAMES, "%s waits, since it can't be noted: %s", a->name,
                    a->error.text);
    a->retry_at_ms = a->status == SPOOL_E_FULL ? clock_monotonic_ms() + ASSIGN_RETRY_MS : NEVER;
}

/* All is noted: it begins, unless it went meanwhile. */
static void assign_begin(struct assign_job *a)
{
    struct stream *s = a->stream;
    struct pipeline *p = s->p;
    struct origin *o;
    int64_t start;

    assign_unlink(a);
    assign_waits_no_more(s);
    o = a->status != SPOOL_OK || a->gone || p->closing ? NULL : origin_get(s, a->id);
    if (!o) {
        stream_recount(s);
        free(a);
        return;
    }
    assign_origin(a, o);
    start = assign_start(a, o);
    log_event(LOG_INFO, "partition.assigned", "stream", s->options->name, "origin", o->name,
              "epoch", log_u64(o->epoch), "committed", log_i64(a->committed.offset), "start",
              start < 0 && a->trace_count       ? "where the log is another one"
              : start == KAFKA_OFFSET_POLICY    ? "policy"
              : start == KAFKA_OFFSET_BEGINNING ? "beginning"
                                                : log_i64(start),
              NULL);
    holes_limit(o);
    if (a->ours && a->committed.offset > 0)
        holes_clamp(o, a->committed.offset);
    if (a->same_epoch && a->why == START_OURS)
        origin_skip_delivered(o, a->committed.offset);
    if (start >= 0) {
        if (a->high == start - 1)
            o->mark = a->mark;
        else if (o->taken != start - 1)
            o->mark.known = false;
        o->taken = start - 1;
        if (a->confirm_from != INT64_MAX)
            log_trace_confirm(o, a->traces, a->trace_count, a->confirm_from);
        else
            origin_start_reading(o);
    } else if (a->trace_count) {
        log_trace_begin(o, a->traces, a->trace_count, start, new_log_action(a));
    } else {
        kafka_partition_start(a->partition, start, NULL);
    }
    stream_update(s);
    origin_refresh_front(o);
    origin_commit(o);
    free(a);
    stream_advance(s);
}

/* What was found of its log before may be on its way to the notes yet; of what is held it stands. Of what
   is read now it must not: reading begins once it is noted that it does not. */
static bool assign_tell(struct assign_job *a)
{
    struct origin *o = origin_find(a->stream, a->id);

    if (!o || a->epoch <= 1 || a->high >= 0 || a->told_from != INT64_MAX)
        return false;
    if (o->told_from != INT64_MAX)
        origin_tell(o, INT64_MAX);
    a->telling = o->telling > 0;
    return a->telling;
}

void kafka_assign_told(struct origin *o)
{
    struct assign_job *a;

    do {
        a = o->stream->p->assigning;
        while (a && !(a->telling && a->stream == o->stream && a->id == o->id))
            a = a->next;
        if (a)
            assign_begin(a);
    } while (a);
}

static void assign_done(struct job *job)
{
    struct assign_job *a = (struct assign_job *)job;
    struct stream *s = a->stream;
    struct pipeline *p = s->p;

    if (a->began && a->old_id && !p->closing) { /* gone or not, and whatever the rest waits for */
        assign_old_epoch(a);
        a->old_id = 0;
    }
    if ((a->status == SPOOL_E_FULL || a->status == SPOOL_E_LIMIT) && !a->gone && !p->closing &&
        !p->fatal) {
        assign_wait(a);
        return;
    }
    if (a->status != SPOOL_OK && !a->gone && !p->closing)
        pipeline_fatal(p, "stream %s, %s: %s", s->options->name, a->name, a->error.text);
    if (a->status != SPOOL_OK || a->gone || p->closing || !assign_tell(a))
        assign_begin(a);
}

static void assign_run(struct assign_job *a)
{
    struct pipeline *p = a->stream->p;
    struct lane *lanes[2] = {&a->stream->lane, &p->meta_lane};

    a->retry_at_ms = 0;
    if (job_start(p, &a->job, lanes, 2) != SPOOL_OK)
        pipeline_fatal(p, "out of memory while taking a partition");
}

void kafka_assign_retry(struct pipeline *p)
{
    struct assign_job *next;

    for (struct assign_job *a = p->assigning; a; a = next) {
        next = a->next;
        if (a->retry_at_ms && a->gone) {
            assign_unlink(a);
            assign_waits_no_more(a->stream);
            free(a);
        } else if (a->retry_at_ms && a->retry_at_ms <= clock_monotonic_ms()) {
            assign_run(a);
        }
    }
}

bool kafka_assign_under_way(const struct stream *s)
{
    for (const struct assign_job *a = s->p->assigning; a; a = a->next)
        if (a->stream == s && !a->gone && !a->retry_at_ms)
            return true;
    return false;
}

void kafka_assign_free(struct pipeline *p)
{
    struct assign_job *next;

    for (struct assign_job *a = p->assigning; a; a = next) {
        next = a->next;
        free(a);
    }
    p->assigning = NULL;
}

/* It may have been ours a moment ago, and what was read then is not on disk yet. */
static void assign_look_held(struct assign_job *a)
{
    a->taken = -1;
    for (const struct origin *o = a->stream->origins; o; o = o->next)
        if (o->name && strcmp(o->name, a->name) == 0 && origin_in_memory(o) &&
            o->id > a->taken_id) {
            a->taken_id = o->id;
            a->taken = o->taken;
        }
}

void kafka_assign(struct pipeline *p, struct kafka_partition *partition,
                  const struct kafka_committed *committed, bool new_epoch, bool other_log)
{
    struct stream *s = pipeline_stream_of_topic(p, kafka_partition_topic(partition));
    struct assign_job *a = calloc(1, sizeof(*a));

    if (!s || !a) {
        free(a);
        pipeline_fatal(p, s ? "out of memory while taking a partition"
                            : "a partition of a topic no stream has was assigned");
        return;
    }
    a->stream = s;
    a->partition = partition;
    a->committed = *committed;
    a->committed.metadata = NULL;
    a->by_spoold = is_of_a_spoold(committed->metadata, &a->their_told);
    a->ours = kafka_commit_is_ours(p, committed->metadata, &a->commit_epoch);
    a->new_epoch = new_epoch;
    a->other_log = other_log;
    snprintf(a->name, sizeof(a->name), "kafka/%.300s/%d", kafka_partition_topic(partition),
             kafka_partition_number(partition));
    assign_look_held(a);
    a->job.work = assign_work;
    a->job.done = assign_done;
    a->next = p->assigning;
    p->assigning = a;
    assign_run(a);
}

void kafka_assign_gone(struct pipeline *p, const struct kafka_partition *partition)
{
    for (struct assign_job *a = p->assigning; a; a = a->next)
        if (a->partition == partition)
            a->gone = true;
}
