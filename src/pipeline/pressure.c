/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bound on disk. Once a second, and when a segment went while somebody waits for room, the
 * spool's files are counted; between that, what was appended is added. From 90 % of the bound on,
 * segments kept after their acknowledgement go at once, then the streams above an equal share (and
 * always the largest) wait (on_full: pause) or lose their oldest rows (on_full: drop_oldest, counted
 * and named) until 75 % is reached. The last tenth belongs to the streams below their share, and room
 * for a segment of its own is kept for each: stuck streams do not stop the others, however many.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

#define PRESSURE_PERIOD_MS    1000
#define BLOCK_PAGES_BYTES     (64 * KIB) /* around a block's payload */
#define RUN_MIN_BYTES         (64 * KIB)
#define PRESSURE_MARGIN_BYTES (256 * KIB) /* tree pages, a new segment's first ones */

struct pressure_job {
    struct job job;
    struct spool_usage usage;
    uint64_t grown_before;
    int status;
    struct spool_error error;
};

static uint64_t used_bytes(const struct pipeline *p)
{
    return p->usage.total_bytes + p->grown_bytes;
}

uint64_t pressure_limit(const struct pipeline *p)
{
    uint64_t room = p->usage.free_bytes > p->options->min_free_bytes
                        ? p->usage.free_bytes - p->options->min_free_bytes
                        : 0;
    uint64_t by_disk = p->usage.total_bytes + room;

    return by_disk < p->options->max_bytes ? by_disk : p->options->max_bytes;
}

static uint64_t high_mark(const struct pipeline *p)
{
    return pressure_limit(p) / 10 * 9;
}

static uint64_t equal_share(const struct pipeline *p)
{
    uint64_t overhead = p->usage.meta_bytes + p->usage.dead_bytes;
    uint64_t high = high_mark(p);

    return (high > overhead ? high - overhead : 0) / p->stream_count;
}

/* Payload bytes of a run at most, and so of a block of records that do not compress: several of them
   are to fit in the equal share, else the room kept for each stream would have to be less than what it
   needs, or together more than there is. And each stream may have one in memory that waits for room. */
uint64_t pressure_run_bytes(const struct pipeline *p)
{
    uint64_t share = p->options->max_bytes / 10 * 9 / p->stream_count / 4;

    if (share > INTAKE_UNDURABLE_BYTES / p->stream_count)
        share = INTAKE_UNDURABLE_BYTES / p->stream_count;
    if (share > LIMIT_RUN_BYTES)
        return LIMIT_RUN_BYTES;
    return share < RUN_MIN_BYTES ? RUN_MIN_BYTES : share;
}

static uint64_t block_usual_bytes(const struct pipeline *p)
{
    return pressure_run_bytes(p) + BLOCK_PAGES_BYTES;
}

static bool is_above_share(const struct stream *s)
{
    const struct pipeline *p = s->p;
    bool largest = true;

    for (size_t i = 0; i < p->stream_count; i++)
        largest = largest && p->streams[i].segment_file_bytes <= s->segment_file_bytes;
    return largest || s->segment_file_bytes >= equal_share(p);
}

/* What a stream that flows needs of the spool (its newest segment stays, the one before it goes as
   soon as it is acknowledged) and does not have yet. */
static uint64_t unused_own(const struct stream *s)
{
    uint64_t own = (s->p->options->segment_bytes ? s->p->options->segment_bytes : 64 * MIB) +
                   block_usual_bytes(s->p) + PRESSURE_MARGIN_BYTES;
    uint64_t share = equal_share(s->p);
    uint64_t has = s->segment_file_bytes + s->dead_own_bytes;

    if (own > share)
        own = share;
    return own > has ? own - has : 0;
}

/* Up to which use of the spool the stream may append beyond its own: what the others have not used
   of theirs is kept for them. */
static uint64_t shared_mark(const struct stream *s)
{
    const struct pipeline *p = s->p;
    uint64_t limit = pressure_limit(p), mark = is_above_share(s) ? high_mark(p) : limit;
    uint64_t kept = 0;

    for (size_t i = 0; i < p->stream_count; i++)
        if (&p->streams[i] != s)
            kept += unused_own(&p->streams[i]);
    limit = limit > kept ? limit - kept : 0;
    return limit < mark ? limit : mark;
}

static uint64_t room_below(const struct pipeline *p, uint64_t mark)
{
    uint64_t used = used_bytes(p) + p->appending_bytes + PRESSURE_MARGIN_BYTES;

    return used < mark ? mark - used : 0;
}

uint64_t pressure_room(const struct stream *s, uint64_t block_bytes)
{
    uint64_t shared = room_below(s->p, shared_mark(s));
    uint64_t whole = room_below(s->p, pressure_limit(s->p));
    uint64_t own = unused_own(s);

    if (own && own < block_bytes && block_bytes > block_usual_bytes(s->p))
        own = block_bytes; /* else a stream of large records would never flow */
    if (own < block_bytes && !stream_spooled_rows(s))
        own =
            block_bytes; /* all it holds is acknowledged, and goes once this begins a new segment */
    own = own < whole ? own : whole;
    return shared > own ? shared : own;
}

/* Room that is kept for no stream. */
static uint64_t room_unkept(const struct pipeline *p)
{
    uint64_t limit = pressure_limit(p), kept = 0;

    for (size_t i = 0; i < p->stream_count; i++)
        kept += unused_own(&p->streams[i]);
    return room_below(p, limit > kept ? limit - kept : 0);
}

/* Stuck streams may hold all else: letters take of what is kept for their stream too, else it would
   stand still for its bad records. */
uint64_t pressure_dead_room(const struct stream *s)
{
    uint64_t unkept = room_unkept(s->p);
    uint64_t whole = room_below(s->p, pressure_limit(s->p));
    uint64_t own = unused_own(s);

    own = own > s->dead_putting_bytes ? own - s->dead_putting_bytes : 0;
    own = own < whole ? own : whole;
    return unkept > own ? unkept : own;
}

void pressure_dead_took(struct stream *s, uint64_t bytes)
{
    uint64_t unkept = room_unkept(s->p);

    if (bytes > unkept)
        s->dead_own_bytes += bytes - unkept;
}

bool pressure_fits(const struct stream *s, uint64_t bytes)
{
    const struct pipeline *p = s->p;
    uint64_t whole = room_below(p, pressure_limit(p));
    uint64_t own = unused_own(s);

    own = own < whole ? own : whole;
    return bytes + s->undurable_bytes + s->decoding_bytes <= own ||
           bytes + p->undurable_bytes + p->decoding_bytes <= room_below(p, shared_mark(s));
}

bool pressure_tight(const struct pipeline *p)
{
    bool waits = false;

    for (size_t i = 0; i < p->stream_count; i++)
        waits = waits || p->streams[i].append_refused || p->streams[i].full ||
                p->streams[i].holds[HOLD_DEAD_FULL];
    return waits || used_bytes(p) >= high_mark(p);
}

static bool match_any(const struct block *b, void *arg)
{
    (void)arg;
    return b->state == BLOCK_WAITING;
}

/* Nothing of it waits (it was just discarded) and no batch names it: it goes as soon as that is
   durable. */
static bool is_going(const struct stream *s, const struct segment *g)
{
    for (const struct batch *b = s->batches; b; b = b->next)
        if (b->segment_number == g->number)
            return false;
    return true;
}

/* Whole segments give up what nobody has sent yet, the oldest first, until what goes with them is
   enough; the one being written to stays. */
static void drop_oldest(struct stream *s, uint64_t enough_bytes)
{
    uint64_t going_bytes = 0;

    for (struct segment *g = s->segments_first;
         g && g->loaded && !g->newest && going_bytes < enough_bytes; g = g->next) {
        uint64_t rows = segment_discard(s, g, match_any, NULL);
        if (rows) {
            metrics_add(s->p->metrics, METRIC_DROPPED_ROWS, (double)rows, s->options->name);
            log_event(LOG_ERROR, "rows.dropped", "stream", s->options->name, "rows", log_u64(rows),
                      "segment", log_u64(g->number), "reason",
                      "the spool is full and on_full is drop_oldest", NULL);
        }
        if (is_going(s, g))
            going_bytes += g->file_bytes;
    }
}

static void drop_down_to(struct pipeline *p, uint64_t bytes)
{
    uint64_t used = used_bytes(p);

    for (size_t i = 0; i < p->stream_count && used > bytes; i++)
        if (is_above_share(&p->streams[i]))
            drop_oldest(&p->streams[i], used - bytes);
}

void pressure_refused(struct stream *s, uint64_t bytes)
{
    struct pipeline *p = s->p;
    uint64_t mark = shared_mark(s);

    if (!s->append_refused) {
        s->append_refused = true;
        s->refused_at_ms = clock_monotonic_ms();
    }
    bytes += 2 * PRESSURE_MARGIN_BYTES;
    if (p->options->on_full == ON_FULL_DROP_OLDEST)
        drop_down_to(p, mark > bytes ? mark - bytes : 0);
    else if (is_above_share(s))
        stream_set_full(s, true);
}

static bool nothing_drains(const struct pipeline *p)
{
    for (size_t i = 0; i < p->stream_count; i++)
        if (stream_spooled_rows(&p->streams[i]) ||
            p->streams[i].segments_first != p->streams[i].segments_last)
            return false;
    return true;
}

static void pressure_apply(struct pipeline *p)
{
    bool pause = p->options->on_full == ON_FULL_PAUSE;
    bool tight = used_bytes(p) >= high_mark(p);
    bool relaxed = used_bytes(p) < pressure_limit(p) / 4 * 3;
    uint64_t now = clock_monotonic_ms();

    p->nothing_drains = nothing_drains(p);
    if (tight && !pause)
        drop_down_to(p, high_mark(p));
    for (size_t i = 0; i < p->stream_count; i++) {
        struct stream *s = &p->streams[i];
        bool above = is_above_share(s);
        bool refused = s->append_refused && now - s->refused_at_ms >= PRESSURE_PERIOD_MS;

        s->append_retry_at_ms = 0;
        if (s->dead_own_bytes && room_unkept(p) >= s->dead_own_bytes)
            s->dead_own_bytes = 0; /* it can be kept for the stream again */
        if (refused || (tight && above && pause))
            stream_set_full(s, true);
        else if (!s->append_refused && (relaxed || (!tight && !(above && pause))))
            stream_set_full(s, false);
    }
}

static void pressure_work(struct job *job)
{
    struct pressure_job *pj = (struct pressure_job *)job;
    pj->status = spool_usage_get(job->pipeline->spool, &pj->usage, &pj->error);
}

static void pressure_done(struct job *job)
{
    struct pressure_job *pj = (struct pressure_job *)job;
    struct pipeline *p = job->pipeline;

    p->pressure_running = false;
    if (pj->status == SPOOL_OK) {
        p->usage = pj->usage;
        p->grown_bytes -= pj->grown_before < p->grown_bytes ? pj->grown_before : p->grown_bytes;
        pressure_apply(p);
    } else {
        log_event(LOG_WARN, "spool.usage", "error", pj->error.text, NULL);
    }
    free(pj);
    pipeline_advance(p);
    if (p->pressure_again)
        pressure_measure(p);
}

void pressure_measure(struct pipeline *p)
{
    struct pressure_job *pj;

    p->pressure_again = p->pressure_running;
    if (p->pressure_running || p->closing || p->fatal)
        return;
    pj = calloc(1, sizeof(*pj));
    if (!pj)
        return; /* the next tick tries again */
    pj->grown_before = p->grown_bytes;
    pj->job.work = pressure_work;
    pj->job.done = pressure_done;
    p->pressure_running = true;
    if (job_start(p, &pj->job, NULL, 0) != SPOOL_OK) {
        p->pressure_running = false;
        free(pj);
    }
}

static void pressure_tick(uv_timer_t *timer)
{
    struct pipeline *p = timer->data;

    if (p->meta_retry_at_ms && p->meta_retry_at_ms <= clock_monotonic_ms()) {
        p->meta_retry_at_ms = 0;
        meta_advance(p);
    }
    pressure_measure(p);
}

void pressure_eased(struct pipeline *p)
{
    for (size_t i = 0; i < p->stream_count; i++)
        if (p->streams[i].append_refused || p->streams[i].full) {
            pressure_measure(p);
            return;
        }
}

void pressure_init(struct pipeline *p)
{
    uv_timer_init(p->loop, &p->pressure_timer);
    p->pressure_timer.data = p;
}

void pressure_start(struct pipeline *p)
{
    uv_timer_start(&p->pressure_timer, pressure_tick, 0, PRESSURE_PERIOD_MS);
}

void pressure_stop(struct pipeline *p)
{
    uv_timer_stop(&p->pressure_timer);
}
