/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole pipeline on a spool of its own, with one stream and topic "t". It is not started, so nothing
 * goes on by itself: neither the Kafka client nor the endpoint connects, and a test plays the Kafka
 * source's part. Records are {"id": OFFSET}.
 */
#ifndef TESTS_PIPELINE_RIG_H
#define TESTS_PIPELINE_RIG_H

#include "base/clock.h"
#include "pipeline/intake_int.h"
#include "source/kafka_int.h"
#include "spool_data.h"

#define UNUSED __attribute__((unused))

struct flow {
    char *path;
    struct spool *spool;
    struct metrics *metrics;
    uv_loop_t loop;
    struct pipeline_options options;
    struct stream_options stream_options;
    struct kafka_options kafka_options;
    struct pipeline *pipeline;
    struct stream *stream;
    struct kafka_source *source;
    bool closed;
};

/* --- its life ------------------------------------------------------------------------------- */

static bool flow_may_die; /* else it is a failure of the test */
static char flow_death[512];

static void flow_fatal(void *arg, const char *text)
{
    (void)arg;
    if (!flow_may_die)
        fail_msg("fatal: %s", text);
    snprintf(flow_death, sizeof(flow_death), "%s", text);
}

static void flow_ready(void *arg)
{
    (void)arg;
}

static void flow_closed(void *arg)
{
    ((struct flow *)arg)->closed = true;
}

/* Runs what there is to do, until nothing is under way. */
static void flow_run(struct flow *f)
{
    for (;;) {
        intake_advance(f->stream);
        segments_advance(f->stream);
        if (!f->pipeline->jobs)
            break;
        uv_run(&f->loop, UV_RUN_ONCE);
    }
}

static uint64_t flow_segment_bytes;      /* of the spool; 0: as by default */
static size_t flow_endpoints = 1;        /* 1 or 2 */
static uint32_t flow_ask_delay_ms;       /* clickhouse.ask_delay */
static bool flow_marks;                  /* records have marks, as Kafka's do */
static const char *flow_type = "UInt64"; /* of the column id */
static bool flow_facts;                  /* columns topic, part and off say whose rows they are */

/* On the spool at path, which may have been used before. What pipeline_create says. */
static int flow_create(struct flow *f, char *path)
{
    static struct column_wish wishes[] = {{.name = "id"},
                                          {"topic", "String", "$topic", NULL, NULL, false, false},
                                          {"part", "Int32", "$partition", NULL, NULL, false, false},
                                          {"off", "Int64", "$offset", NULL, NULL, false, false}};
    static const char *const topics[] = {"t"};
    static const char *const urls[] = {"http://127.0.0.1:1", "http://127.0.0.1:2"};
    const struct pipeline_callbacks callbacks = {flow_fatal, flow_ready};

    memset(f, 0, sizeof(*f));
    wishes[0].type = flow_type;
    f->path = path;
    f->spool = open_spool(path, flow_segment_bytes);
    assert_int_equal(metrics_create(&f->metrics), SPOOL_OK);
    assert_int_equal(uv_loop_init(&f->loop), 0);
    f->kafka_options = (struct kafka_options){.brokers = "127.0.0.1:1", .group_id = "g"};
    f->stream_options =
        (struct stream_options){.name = "s",
                                .topics = topics,
                                .topic_count = 1,
                                .table = "t",
                                .schema = {.wishes = wishes, .wish_count = flow_facts ? 4 : 1},
                                .flush_rows = 100000,
                                .flush_bytes = 64 * MIB,
                                .max_in_flight = 2,
                                .max_record_bytes = MIB,
                                .dead_letters_max_bytes = MIB};
    f->options =
        (struct pipeline_options){.streams = &f->stream_options,
                                  .stream_count = 1,
                                  .clickhouse = {.urls = urls, .url_count = flow_endpoints},
                                  .kafka = &f->kafka_options,
                                  .max_bytes = 1024 * MIB,
                                  .ask_delay_ms = flow_ask_delay_ms,
                                  .segment_bytes = flow_segment_bytes};
    return pipeline_create(&f->loop, &f->options, f->spool, f->metrics, &callbacks, f, &f->pipeline,
                           &the_error);
}

static void flow_open(struct flow *f, char *path)
{
    check_ok(flow_create(f, path));
    f->stream = &f->pipeline->streams[0];
    f->stream->flush_before_ms = UINT64_MAX; /* blocks go to disk at once */
    f->source = f->pipeline->kafka;
    f->source->stopped = true; /* no partition is given to the client */
    flow_run(f);
}

/* As a kill leaves it. */
static void flow_close(struct flow *f)
{
    pipeline_close(f->pipeline, flow_closed, f);
    while (!f->closed)
        uv_run(&f->loop, UV_RUN_ONCE);
    pipeline_free(f->pipeline);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    metrics_free(f->metrics);
    spool_close(f->spool);
}

/* Killed, and started again on the same spool. */
static UNUSED void flow_reopen(struct flow *f)
{
    char *path = f->path;

    flow_close(f);
    flow_open(f, path);
}

static UNUSED void flow_remove(struct flow *f)
{
    flow_close(f);
    remove_tree(f->path);
    free(f->path);
}

/* --- the source's part ---------------------------------------------------------------------- */

/* A partition that the group has just given. */
static struct kafka_partition *flow_partition(struct flow *f, int32_t number)
{
    struct kafka_partition *p = kafka_partition_add(f->source, "t", number);

    assert_non_null(p);
    p->state = KAFKA_P_WAITING;
    p->announced = true;
    return p;
}

/* The metadata of a commit of this spool's. */
static UNUSED const char *flow_metadata(struct flow *f, uint32_t epoch)
{
    static char text[96];

    snprintf(text, sizeof(text), "spoold %s %u", spool_uuid_text(f->spool), epoch);
    return text;
}

/* It is asked where the partition begins; that is known after flow_run. */
static UNUSED void flow_assign_begin(struct flow *f, struct kafka_partition *p,
                                     struct kafka_committed committed)
{
    if (!committed.metadata)
        committed.metadata = "";
    f->source->callbacks.assigned(f->source->arg, p, &committed, &p->user);
}

/* Its origin, by what the group has committed; the partition is started where p->start says. */
static UNUSED struct origin *flow_assign(struct flow *f, struct kafka_partition *p,
                                         struct kafka_committed committed)
{
    flow_assign_begin(f, p, committed);
    flow_run(f);
    return p->user;
}

struct flow_records {
    struct record_run base;
    char text[32];
};

static void flow_record(struct record_run *base, uint32_t i, unsigned wanted, struct record *record)
{
    struct flow_records *run = (struct flow_records *)base;

    (void)wanted;
    snprintf(run->text, sizeof(run->text), "{\"id\":%lld}", (long long)base->first_offset + i);
    *record = (struct record){.data = (const uint8_t *)run->text,
                              .size = strlen(run->text),
                              .offset = base->first_offset + i,
                              .timestamp_ms = -1,
                              .received_ms = base->received_ms};
}

static void flow_mark(const struct record_run *base, uint32_t i, struct spool_mark *mark)
{
    *mark = (struct spool_mark){
        .known = flow_marks, .timestamp_ms = 1, .hash = (uint64_t)base->first_offset + i};
}

static void flow_release(struct record_run *base)
{
    free(base);
}

/* Hands over so many records from first on; what becomes of them is seen after flow_run. */
static UNUSED void flow_take(struct flow *f, struct kafka_partition *p, int64_t first,
                             uint32_t count, bool last_of_log)
{
    static const struct record_run_ops ops = {
        .record = flow_record, .mark = flow_mark, .release = flow_release};
    struct flow_records *run = calloc(1, sizeof(*run));

    assert_non_null(run);
    run->base = (struct record_run){.ops = &ops,
                                    .count = count,
                                    .bytes = count * 10,
                                    .first_offset = first,
                                    .last_offset = first + count - 1,
                                    .received_ms = clock_wall_ms(),
                                    .last_of_log = last_of_log};
    flow_mark(&run->base, count - 1, &run->base.mark);
    p->runs_out++;
    f->source->runs_out++;
    f->source->held_messages += count;
    f->source->held_bytes += run->base.bytes;
    f->source->out_messages += count;
    f->source->callbacks.run(f->source->arg, p, &run->base);
}

/* ... and what becomes of them is done: they are on disk, if nothing hinders that. */
static UNUSED void flow_read(struct flow *f, struct kafka_partition *p, int64_t first,
                             uint32_t count)
{
    flow_take(f, p, first, count, false);
    flow_run(f);
}

/* The group takes the partition away, at once; it may be given again. */
static UNUSED void flow_revoke(struct flow *f, struct kafka_partition *p)
{
    f->source->callbacks.revoking(f->source->arg, &p, 1, true, 1000);
    assert_false(f->pipeline->revoking);
    kafka_partition_remove(p);
}

/* --- what is there -------------------------------------------------------------------------- */

/* Blocks wait in memory from now on, as for room on a full disk; and no longer. */
static UNUSED void flow_hold_appends(struct flow *f, bool hold)
{
    f->stream->append_retry_at_ms = hold ? UINT64_MAX : 0;
}

#endif
