/* SPDX-License-Identifier: Apache-2.0 */
/* The pipeline's own life: made, started, drained, closed; and what it tells of itself. */
#include "pipeline/pipeline.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

void pipeline_fatal(struct pipeline *p, const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (p->fatal)
        return;
    p->fatal = true;
    log_event(LOG_ERROR, "pipeline.fatal", "error", text, NULL);
    p->callbacks.fatal(p->arg, text);
}

/* --- making and starting -------------------------------------------------------------------- */

/* They have no status, and nothing comes of them by itself. */
static int tell_unread_letters(struct pipeline *p, const char *name, struct spool_error *error)
{
    uint64_t letters = 0, bytes = 0;
    int status = spool_dead_count(p->spool, name, &letters, &bytes, error);

    if (letters)
        log_event(LOG_WARN, "dead.unread", "stream", name, "letters", log_u64(letters), "reason",
                  "the configuration does not name their stream", "action",
                  "put it back to replay them, or discard them with spoolctl", NULL);
    return status;
}

/* Rows of a stream that the config no longer names would wait for ever, unseen. */
static int check_unknown_streams(struct pipeline *p, struct spool_error *error)
{
    char **names = NULL;
    size_t count = 0;
    int status = spool_stream_names(p->spool, &names, &count, error);

    for (size_t i = 0; i < count && status == SPOOL_OK; i++) {
        struct spool_stream *stream = NULL;
        struct spool_segment_info *infos = NULL;
        size_t segments = 0;
        uint64_t rows = 0;

        if (pipeline_stream(p, names[i]))
            continue;
        status = spool_stream_open(p->spool, names[i], &stream, error);
        if (status == SPOOL_OK)
            status = spool_stream_segments(stream, &infos, &segments, error);
        for (size_t k = 0; k < segments; k++)
            rows += infos[k].rows - infos[k].acked_rows;
        free(infos);
        if (stream)
            spool_stream_close(stream);
        if (status == SPOOL_OK && rows)
            status = spool_error_set(error, SPOOL_E_INVALID,
                                     "the spool holds %llu rows of stream \"%s\", which the config "
                                     "does not name: configure it again until it has "
                                     "drained",
                                     (unsigned long long)rows, names[i]);
        if (status == SPOOL_OK)
            status = tell_unread_letters(p, names[i], error);
    }
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
    return status;
}

/* Which boot of the machine this is: its clocks begin anew with each. */
static void read_boot_id(char *out, size_t size)
{
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

    if (!f || !fgets(out, (int)size, f))
        out[0] = '\0';
    out[strcspn(out, " \n")] = '\0';
    if (f)
        fclose(f);
}

/* It is back: no reason to wait any longer. But one that froze still has to take up what lies in its
   sockets, an insert of ours perhaps, before it can be asked what it has. */
static void batch_endpoint_up(struct batch *b, int endpoint)
{
    if (endpoint == b->endpoint || endpoint == b->sent_to)
        batch_ask_later(b);
    if (!b->stream->holds[HOLD_ANSWER])
        b->retry_at_ms = 0;
}

static void endpoint_changed(void *arg, size_t endpoint, enum endpoint_state state)
{
    struct pipeline *p = arg;

    if (p->closing)
        return;
    for (size_t i = 0; i < p->stream_count; i++) {
        struct stream *s = &p->streams[i];
        if (state == ENDPOINT_UP) {
            target_forget(s, endpoint);
            for (struct batch *b = s->batches; b; b = b->next)
                batch_endpoint_up(b, (int)endpoint);
        }
        stream_refresh(s);
    }
    pipeline_advance(p);
}

int pipeline_create(uv_loop_t *loop, const struct pipeline_options *options, struct spool *spool,
                    struct metrics *metrics, const struct pipeline_callbacks *callbacks, void *arg,
                    struct pipeline **out, struct spool_error *error)
{
    struct pipeline *p = calloc(1, sizeof(*p));
    uv_cpu_info_t *cpus = NULL;
    int cpu_count = 0;
    int status;

    if (!p)
        return spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    p->loop = loop;
    p->options = options;
    p->spool = spool;
    read_boot_id(p->boot_id, sizeof(p->boot_id));
    p->start_ms = clock_monotonic_ms();
    p->start_wall_ms = clock_wall_ms();
    p->metrics = metrics;
    p->callbacks = *callbacks;
    p->arg = arg;
    p->meta_changes_max = META_CHANGES_MAX;
    if (uv_cpu_info(&cpus, &cpu_count) == 0)
        uv_free_cpu_info(cpus, cpu_count);
    p->decode_max = cpu_count > 1 ? (unsigned)cpu_count : 1;
    p->streams = calloc(options->stream_count, sizeof(*p->streams));
    uv_timer_init(loop, &p->drain_timer);
    p->drain_timer.data = p;
    pressure_init(p);
    status = p->streams ? SPOOL_OK : spool_error_set(error, SPOOL_E_NOMEM, "out of memory");
    if (status == SPOOL_OK)
        status = clickhouse_create(loop, &options->clickhouse, endpoint_changed, p, &p->clickhouse,
                                   error);
    if (status == SPOOL_OK)
        status = spool_usage_get(spool, &p->usage, error);
    while (status == SPOOL_OK && p->stream_count < options->stream_count) {
        struct stream *s = &p->streams[p->stream_count++];
        status = stream_init(s, p, &options->streams[p->stream_count - 1], error);
    }
    if (status == SPOOL_OK)
        status = check_unknown_streams(p, error);
    if (status == SPOOL_OK)
        status = kafka_in_create(p, error);
    for (size_t i = 0; i < options->stream_count && status == SPOOL_OK && !p->producer; i++)
        if (options->streams[i].dead_letters_topic && options->kafka)
            status = kafka_producer_create(loop, options->kafka, &p->producer, error);
    *out = p; /* also on failure: the caller closes and frees it */
    return status;
}

int pipeline_start(struct pipeline *p, struct spool_error *error)
{
    p->started = true;
    pressure_start(p);
    clickhouse_start(p->clickhouse);
    if (p->kafka) {
        int status = kafka_source_start(p->kafka, error);
        if (status != SPOOL_OK)
            return status;
    }
    p->ready = true;
    p->callbacks.ready(p->arg);
    pipeline_advance(p);
    return SPOOL_OK;
}

/* --- draining ------------------------------------------------------------------------------- */

/* Nothing more can become durable or acknowledged now. */
static bool stream_drained(const struct stream *s)
{
    if (!intake_idle(s)) {
        bool stuck = s->full || s->holds[HOLD_BAD_RECORD] || s->holds[HOLD_DEAD_FULL] ||
                     s->holds[HOLD_SCHEMA];
        if (!stuck || s->decoding || s->appending)
            return false;
    }
    if (s->replay && !s->full)
        return false; /* it stops behind the chunk at hand */
    for (const struct batch *b = s->batches; b; b = b->next)
        if (b->state != BATCH_WAITING && b->state != BATCH_LOADING)
            return false;
    if (!stream_may_deliver(s) || clickhouse_pick(s->p->clickhouse) < 0)
        return true;
    return s->holds[HOLD_SEAL] ? !batches_counted(s) : batches_idle(s);
}

static void drain_end(struct pipeline *p)
{
    void (*done)(void *arg) = p->drained;

    p->drained = NULL;
    uv_timer_stop(&p->drain_timer);
    done(p->drained_arg);
}

void drain_check(struct pipeline *p)
{
    if (!p->draining || !p->drained || p->commits_in_flight || !meta_idle(p))
        return;
    for (size_t i = 0; i < p->stream_count; i++)
        if (!stream_drained(&p->streams[i]))
            return;
    drain_end(p);
}

static void drain_timeout(uv_timer_t *timer)
{
    struct pipeline *p = timer->data;

    if (!p->drained)
        return;
    log_event(LOG_WARN, "drain.timeout", "action", "the rest stays in the spool", NULL);
    drain_end(p);
}

void pipeline_drain(struct pipeline *p, uint64_t timeout_ms, void (*done)(void *arg), void *arg)
{
    if (p->kafka)
        kafka_source_stop(p->kafka);
    spool_stop_looks(p->spool); /* they have the lanes, for minutes where the spool is large */
    p->draining = true;
    p->drained = done;
    p->drained_arg = arg;
    uv_update_time(p->loop);
    uv_timer_start(&p->drain_timer, drain_timeout, timeout_ms, 0);
    pipeline_advance(p);
}

/* --- closing -------------------------------------------------------------------------------- */

static void close_sources(struct pipeline *p);

static void close_check(uv_timer_t *timer)
{
    struct pipeline *p = timer->data;

    if (p->close_waits || p->jobs)
        return;
    if (p->kafka || p->producer) {
        close_sources(p);
        return;
    }
    uv_timer_stop(&p->drain_timer);
    if (p->closed) {
        void (*closed)(void *arg) = p->closed;
        p->closed = NULL;
        closed(p->closed_arg);
    }
}

static void handle_closed(uv_handle_t *handle)
{
    (void)handle;
}

static void part_closed(void *arg)
{
    struct pipeline *p = arg;
    assert(p->close_waits > 0);
    p->close_waits--;
}

static void kafka_closed(void *arg)
{
    struct pipeline *p = arg;
    p->kafka = NULL;
    part_closed(p);
}

static void clickhouse_closed(void *arg)
{
    struct pipeline *p = arg;
    p->clickhouse = NULL; /* until then it tells how its requests ended */
    part_closed(p);
}

static void close_sources(struct pipeline *p)
{
    for (size_t i = 0; i < p->stream_count; i++)
        intake_release_runs(&p->streams[i], false);
    if (p->kafka) {
        p->revoking = 0;
        uv_timer_stop(&p->revoke_timer);
        p->close_waits++;
        kafka_source_close(p->kafka, false, kafka_closed, p);
    }
    if (p->producer) {
        p->close_waits++;
        kafka_producer_close(p->producer, part_closed, p);
        p->producer = NULL;
    }
}

/*
 * In this order: nothing begins any more; inserts and questions are given up; every job comes back,
 * which may acknowledge what is in and so commit it; the partitions, which that needs, go last.
 */
void pipeline_close(struct pipeline *p, void (*closed)(void *arg), void *arg)
{
    p->closing = true;
    p->draining = false;
    p->closed = closed;
    p->closed_arg = arg;
    pressure_stop(p);
    for (size_t i = 0; i < p->stream_count; i++) {
        uv_timer_stop(&p->streams[i].timer);
        replay_abandon(&p->streams[i]);
        batches_abandon(&p->streams[i]);
    }
    if (p->clickhouse) {
        p->close_waits++;
        clickhouse_close(p->clickhouse, clickhouse_closed, p);
    }
    uv_timer_start(&p->drain_timer, close_check, 0, 5);
}

void pipeline_free(struct pipeline *p)
{
    if (!p)
        return;
    uv_close((uv_handle_t *)&p->drain_timer, handle_closed);
    uv_close((uv_handle_t *)&p->pressure_timer, handle_closed);
    if (p->revoke_timer.data)
        uv_close((uv_handle_t *)&p->revoke_timer, handle_closed);
    for (size_t i = 0; i < p->stream_count; i++)
        uv_close((uv_handle_t *)&p->streams[i].timer, handle_closed);
    while (uv_run(p->loop, UV_RUN_NOWAIT) != 0 && p->jobs)
        continue;
    meta_free(p);
    kafka_assign_free(p);
    for (size_t i = 0; i < p->stream_count; i++)
        stream_dispose(&p->streams[i]);
    free(p->streams);
    free(p->topics);
    free(p);
}

/* --- seeing it ------------------------------------------------------------------------------ */

size_t pipeline_streams(const struct pipeline *p)
{
    return p->stream_count;
}

static int64_t stream_lag(const struct stream *s)
{
    int64_t lag = 0;
    bool any = false;

    for (const struct origin *o = s->origins; o; o = o->next) {
        int64_t one = o->partition ? kafka_partition_lag(o->partition) : -1;
        if (one < 0)
            continue;
        lag += one;
        any = true;
    }
    return any ? lag : -1;
}

static uint64_t stream_batches(const struct stream *s, bool in_flight)
{
    uint64_t n = 0;

    for (const struct batch *b = s->batches; b; b = b->next) {
        bool flying =
            b->state == BATCH_CHECKING || b->state == BATCH_SENDING || b->state == BATCH_ACKING;
        n += flying == in_flight;
    }
    return n;
}

/* Why the table's tokens do not count for this stream, in s->delivery_text; NULL: they do. */
static const char *tokens_fail(struct stream *s, const struct table_description *t)
{
    uint64_t needed = 2 * (uint64_t)s->options->max_in_flight * t->partitions_per_insert;
    uint64_t most = t->partitions_per_insert_max;
    char name[256];

    if (!t->deduplicates)
        return t->reason[0] ? t->reason : "the table does not deduplicate inserts";
    if (partition_drift(t, s->schema ? s->schema->schema : NULL, name, sizeof(name))) {
        snprintf(
            s->delivery_text, sizeof(s->delivery_text),
            "the table's partition key rests on %.256s, which the server may fill in otherwise "
            "when a batch is sent again",
            name);
        return s->delivery_text;
    }
    if (t->dedup_window_entries && !window_holds(t, s->options->max_in_flight)) {
        snprintf(s->delivery_text, sizeof(s->delivery_text),
                 "the table remembers %llu inserts, one for each partition of a batch: at least "
                 "%llu are needed for %u batches in flight of up to %llu partitions",
                 (unsigned long long)t->dedup_window_entries,
                 (unsigned long long)(needed > most ? needed : most), s->options->max_in_flight,
                 (unsigned long long)most);
        return s->delivery_text;
    }
    return NULL;
}

/* Rows that wait, or will come, and that the table can't be asked for; NULL: there are none. */
static const char *stream_untold(const struct stream *s)
{
    const char *untold = s->replay ? "of a replay" : NULL;

    for (const struct origin *o = s->origins; o && !untold; o = o->next)
        if ((o->first || o->partition) &&
            !origin_tells_apart(o, o->first ? o->first->ref.first_offset : o->taken + 1))
            untold = replay_is_origin(o)
                         ? "of a replay"
                         : "of a topic that was made anew, or from before its offsets were set,";
    return untold;
}

static const char *stream_delivery(struct stream *s, const char **why)
{
    const struct table_description *t = s->targets ? s->targets->description : NULL;
    const char *tokens, *untold;
    bool asked;

    *why = "the table has not been seen yet";
    if (!t || !t->engine)
        return t && t->deduplicates ? "exactly_once" : "at_least_once";
    tokens = tokens_fail(s, t);
    asked = s->schema && ask_by_origin(s->schema, t);
    untold = asked ? stream_untold(s) : NULL;
    if (untold) {
        snprintf(s->delivery_text, sizeof(s->delivery_text),
                 "rows %s are among those that wait, and the table can't be asked for them by "
                 "origin columns%s",
                 untold,
                 tokens ? ""
                        : ": they are exact by the token alone, which a failure of "
                          "ClickHouse in the middle of an insert can cost");
        *why = s->delivery_text;
        return tokens ? "at_least_once" : "exactly_once";
    }
    if (asked) {
        *why = !tokens ? "the table deduplicates inserts by token, and is asked for the rows' "
                         "origin columns where the token can't be trusted"
                       : "the table is asked for the rows' origin columns before a batch is sent "
                         "again";
        return "exactly_once";
    }
    *why = tokens ? tokens
                  : "the table deduplicates inserts by token (but for a failure of ClickHouse in "
                    "the middle of an insert: origin columns would cover that too)";
    return tokens ? "at_least_once" : "exactly_once";
}

void pipeline_stream_status(const struct pipeline *p, size_t i, struct stream_status *out)
{
    struct stream *s = &p->streams[i];
    const char *why = "", *ignored;

    *out = (struct stream_status){
        .name = s->options->name,
        .state = s->state,
        .reason = s->reason,
        .since_ms = s->since_ms,
        .table = s->table_text,
        .delivery = stream_delivery(s, &why),
        .delivery_why = why,
        .format = !s->schema                                 ? ""
                  : s->schema->schema->format == FORMAT_JSON ? "json"
                                                             : "native",
        .records_in = s->records_in,
        .rows_spooled = stream_spooled_rows(s),
        .bytes_spooled = s->segment_file_bytes,
        .oldest_age_seconds = stream_oldest_age(s),
        .lag = stream_lag(s),
        .dead_letters = s->dead_letters,
        .dead_letters_waiting = dead_out_waiting(s, 0, &ignored) + dead_out_waiting(s, 1, &ignored),
        .rows_inserted = s->rows_inserted,
        .batches_sealed = stream_batches(s, false),
        .batches_in_flight = stream_batches(s, true),
        .batches_acknowledged = s->batches_acked,
        .retries = s->retries,
        .views_unsure = s->views_unsure,
        .possible_duplicates = s->possible_duplicates,
        .damaged_blocks = s->damaged_blocks,
    };
    for (const struct segment *g = s->segments_first; g; g = g->next) {
        out->damaged_segments += g->damaged;
        out->missing_segments += g->missing;
    }
}

struct clickhouse *pipeline_clickhouse(struct pipeline *p)
{
    return p->clickhouse;
}

uint64_t pipeline_endpoint_waiting(const struct pipeline *p, size_t endpoint)
{
    uint64_t n = 0;

    for (size_t i = 0; i < p->stream_count; i++)
        for (const struct batch *b = p->streams[i].batches; b; b = b->next)
            n += b->endpoint == (int)endpoint && batch_parked(b);
    return n;
}

bool pipeline_kafka_stats(const struct pipeline *p, struct kafka_stats *out)
{
    if (!p->kafka)
        return false;
    kafka_source_stats(p->kafka, out);
    return true;
}

void pipeline_usage(const struct pipeline *p, struct spool_usage *out)
{
    *out = p->usage;
    out->total_bytes += p->grown_bytes;
}

bool pipeline_ready(const struct pipeline *p, const char **reason)
{
    *reason = p->fatal                    ? "fatal"
              : p->draining || p->closing ? "stopping"
              : p->ready                  ? ""
                                          : "starting";
    return !**reason;
}

void pipeline_update_metrics(struct pipeline *p)
{
    struct metrics *m = p->metrics;

    for (size_t i = 0; i < p->stream_count; i++) {
        struct stream_status st;
        pipeline_stream_status(p, i, &st);
        for (int k = 0; k < STREAM_STATES; k++)
            metrics_set(m, METRIC_STREAM_STATE, k == (int)st.state, st.name,
                        stream_state_name((enum stream_state)k));
        metrics_set(m, METRIC_SPOOL_ROWS, (double)st.rows_spooled, st.name);
        metrics_set(m, METRIC_SPOOL_BYTES, (double)st.bytes_spooled, st.name);
        metrics_set(m, METRIC_SPOOL_OLDEST, st.oldest_age_seconds, st.name);
        metrics_set(m, METRIC_BATCHES_STATE, (double)st.batches_sealed, st.name, "sealed");
        metrics_set(m, METRIC_BATCHES_STATE, (double)st.batches_in_flight, st.name, "in_flight");
        for (size_t k = 0; k < 2; k++) {
            const char *name;
            uint64_t waiting = dead_out_waiting(&p->streams[i], k, &name);
            if (name)
                metrics_set(m, METRIC_DEAD_WAITING, (double)waiting, st.name, name);
        }
        if (st.lag >= 0)
            metrics_set(m, METRIC_KAFKA_LAG, (double)st.lag, st.name);
    }
    for (size_t i = 0; i < clickhouse_endpoints(p->clickhouse); i++) {
        struct endpoint_status e;
        clickhouse_endpoint_status(p->clickhouse, i, &e);
        metrics_set(m, METRIC_ENDPOINT_UP, e.state == ENDPOINT_UP, e.url);
        metrics_set(m, METRIC_ENDPOINT_WAITING, (double)pipeline_endpoint_waiting(p, i), e.url);
    }
    metrics_set(m, METRIC_SPOOL_USED, (double)(p->usage.total_bytes + p->grown_bytes));
    metrics_set(m, METRIC_SPOOL_LIMIT, (double)p->options->max_bytes);
    metrics_set(m, METRIC_DISK_FREE, (double)p->usage.free_bytes);
}

/* --- looking inside ------------------------------------------------------------------------- */

struct look {
    struct job job;
    struct stream *stream;
    void (*work)(void *arg, struct spool *spool, struct spool_stream *stream);
    void (*done)(void *arg);
    void *arg;
};

static void look_work(struct job *job)
{
    struct look *l = (struct look *)job;
    l->work(l->arg, job->pipeline->spool, l->stream ? l->stream->spool : NULL);
}

static void look_done(struct job *job)
{
    struct look *l = (struct look *)job;

    l->done(l->arg);
    pipeline_advance(job->pipeline);
    free(l);
}

int pipeline_look(struct pipeline *p, enum look_lane lane, const char *stream,
                  void (*work)(void *arg, struct spool *spool, struct spool_stream *stream),
                  void (*done)(void *arg), void *arg)
{
    struct stream *s = stream ? pipeline_stream(p, stream) : NULL;
    struct lane **lanes = calloc(p->stream_count + 2, sizeof(struct lane *));
    struct look *l = calloc(1, sizeof(*l));
    size_t n = 0;
    int status = SPOOL_E_NOMEM;

    if (stream && !s)
        status = SPOOL_E_NOT_FOUND;
    else if (p->closing)
        status = SPOOL_E_CANCELLED;
    else if (lanes && l) {
        if (lane == LOOK_STREAM && s) {
            lanes[n++] = &s->lane;
            lanes[n++] = &p->meta_lane;
        } else if (lane == LOOK_DEAD) {
            lanes[n++] = &p->dead_lane;
            lanes[n++] = &p->meta_lane; /* names of origins */
        } else if (lane == LOOK_ALL) {
            for (size_t i = 0; i < p->stream_count; i++)
                lanes[n++] = &p->streams[i].lane;
            lanes[n++] = &p->meta_lane;
            lanes[n++] = &p->dead_lane;
        }
        l->stream = s;
        l->work = work;
        l->done = done;
        l->arg = arg;
        l->job.work = look_work;
        l->job.done = look_done;
        status = job_start(p, &l->job, lanes, n);
    }
    free(lanes);
    if (status != SPOOL_OK)
        free(l);
    return status;
}
