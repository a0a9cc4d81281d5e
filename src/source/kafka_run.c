/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs: the records of one partition, collected without a copy. A run holds librdkafka's own
 * messages and frees them all at once in a pool job: freed one by one on the loop they cost twice
 * the CPU, since the client's threads allocate from the same arena (measured).
 *
 * Open runs stand in a list by age. A run is closed by run_rows, run_bytes, its age, or when the
 * messages held over all partitions reach their bound.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "source/kafka_int.h"

#define RUN_CAP_FIRST      64
#define RUN_AHEAD          8
#define HEADER_SAMPLE_MASK 15u /* headers are parsed for one record in 16, to know their size */

/*
 * Messages stand apart in memory, and other threads wrote them: each is a miss of the cache or two,
 * which cost as much as reading a short record. So they are asked for early.
 * Always inline: gcc 12 drops a call that does nothing but prefetch.
 */
static inline __attribute__((always_inline)) void run_prefetch(const struct kafka_run *run,
                                                               uint32_t i)
{
    const rd_kafka_message_t *m;

    if (i >= run->base.count)
        return;
    m = run->messages[i];
    __builtin_prefetch(&m->payload);
    __builtin_prefetch(&m->_private);
}

static void run_record(struct record_run *base, uint32_t i, unsigned wanted, struct record *record)
{
    struct kafka_run *run = (struct kafka_run *)base;
    const rd_kafka_message_t *m;
    rd_kafka_timestamp_type_t type;
    rd_kafka_headers_t *headers;

    assert(i < base->count);
    m = run->messages[i];
    run_prefetch(run, i + RUN_AHEAD);
    record->data = m->payload;
    record->size = m->len;
    record->offset = m->offset;
    record->timestamp_ms = -1;
    record->key = m->key;
    record->key_size = m->key_len;
    record->headers = NULL;
    record->header_count = 0;
    record->received_ms = base->received_ms;
    if (wanted & RECORD_WANTS_TIMESTAMP) {
        record->timestamp_ms = rd_kafka_message_timestamp(m, &type);
        if (type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE)
            record->timestamp_ms = -1;
    }
    if (!(wanted & RECORD_WANTS_HEADERS) ||
        rd_kafka_message_headers(m, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return;

    size_t count = rd_kafka_header_cnt(headers);
    if (count > run->header_cap) {
        struct record_header *grown = realloc(run->headers, count * sizeof(*grown));
        /* Without memory the headers we have room for are given; the record itself is whole. */
        if (grown) {
            run->headers = grown;
            run->header_cap = count;
        } else {
            count = run->header_cap;
        }
    }
    for (size_t h = 0; h < count; h++) {
        struct record_header *header = &run->headers[h];
        if (rd_kafka_header_get_all(headers, h, &header->name, &header->value,
                                    &header->value_size) != RD_KAFKA_RESP_ERR_NO_ERROR)
            break;
        record->header_count = h + 1;
    }
    record->headers = run->headers;
}

static void run_mark(const struct record_run *base, uint32_t i, struct spool_mark *mark)
{
    kafka_mark_of(((const struct kafka_run *)base)->messages[i], mark);
}

static void run_release(struct record_run *base)
{
    struct kafka_run *run = (struct kafka_run *)base;

    for (uint32_t i = 0; i < base->count; i++) {
        run_prefetch(run, i + RUN_AHEAD);
        rd_kafka_message_destroy(run->messages[i]);
    }
    free(run->messages);
    free(run->headers);
    free(run);
}

static const struct record_run_ops run_ops = {run_record, run_mark, run_release};

static void list_add(struct kafka_source *s, struct kafka_run *run)
{
    assert(!run->listed);
    run->listed = true;
    run->newer = NULL;
    run->older = s->newest;
    if (s->newest)
        s->newest->newer = run;
    else
        s->oldest = run;
    s->newest = run;
    if (s->oldest == run)
        kafka_source_timer(s, KAFKA_T_LINGER, s->run_linger_ms);
}

static void list_remove(struct kafka_source *s, struct kafka_run *run)
{
    if (!run->listed)
        return;
    run->listed = false;
    if (run->older)
        run->older->newer = run->newer;
    else
        s->oldest = run->newer;
    if (run->newer)
        run->newer->older = run->older;
    else
        s->newest = run->older;
}

static struct kafka_run *run_open(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;
    struct kafka_run *run = calloc(1, sizeof(*run));

    if (!run)
        return NULL;
    run->messages = malloc(RUN_CAP_FIRST * sizeof(rd_kafka_message_t *));
    if (!run->messages) {
        free(run);
        return NULL;
    }
    run->cap = RUN_CAP_FIRST;
    run->base.ops = &run_ops;
    run->base.received_ms = clock_wall_ms();
    run->partition = p;
    run->opened_ms = uv_now(s->loop);
    p->open = run;
    list_add(s, run);
    return run;
}

static bool run_grow(struct kafka_run *run)
{
    uint32_t cap = run->cap * 2;
    rd_kafka_message_t **grown = realloc(run->messages, cap * sizeof(rd_kafka_message_t *));

    if (!grown)
        return false;
    run->messages = grown;
    run->cap = cap;
    return true;
}

static uint64_t header_bytes(const rd_kafka_message_t *m)
{
    rd_kafka_headers_t *headers;
    const char *name;
    const void *value;
    size_t size, sum = 0;

    if (rd_kafka_message_headers(m, &headers) != RD_KAFKA_RESP_ERR_NO_ERROR)
        return 0;
    for (size_t i = 0;
         rd_kafka_header_get_all(headers, i, &name, &value, &size) == RD_KAFKA_RESP_ERR_NO_ERROR;
         i++)
        sum += strlen(name) + size;
    return sum;
}

static void check_blocking(struct kafka_partition *p)
{
    if (p->blocking || !p->pause_reasons || p->hard_paused)
        return;
    p->blocking = true;
    p->source->blocking++;
}

/* Takes ownership of m, a record above p->taken. */
void kafka_run_take(struct kafka_partition *p, rd_kafka_message_t *m)
{
    struct kafka_source *s = p->source;
    struct kafka_run *run = p->open;
    uint64_t bytes;

    if (!run || (run->base.count & HEADER_SAMPLE_MASK) == 0)
        p->header_bytes = header_bytes(m);
    bytes = m->len + m->key_len + p->header_bytes;
    if (bytes > s->largest_bytes)
        s->largest_bytes = bytes;
    if (run && !p->pause_reasons && run->base.bytes + bytes > s->run_bytes) {
        kafka_run_hand_over(p);
        run = NULL;
        if (p->state != KAFKA_P_ACTIVE) { /* the callee sent it elsewhere */
            rd_kafka_message_destroy(m);
            return;
        }
    }
    if (!run)
        run = run_open(p);
    if (!run || (run->base.count == run->cap && !run_grow(run))) {
        /* No memory for a pointer: give it back and ask the broker for it again. */
        rd_kafka_message_destroy(m);
        kafka_partition_begin(p, p->handed + 1); /* the open run goes too */
        return;
    }
    if (run->base.count == 0)
        run->base.first_offset = m->offset;
    run->base.last_offset = m->offset;
    run->messages[run->base.count++] = m;
    run->base.bytes += bytes;
    p->taken = m->offset;
    s->held_messages++;
    s->held_bytes += bytes;
    if (run->base.count >= s->run_rows || run->base.bytes >= s->run_bytes) {
        if (p->pause_reasons)
            check_blocking(p);
        else
            kafka_run_hand_over(p);
    }
}

void kafka_run_hand_over(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;
    struct kafka_run *run = p->open;

    if (!run)
        return;
    assert(run->base.count > 0);
    list_remove(s, run);
    p->open = NULL;
    p->handed = p->mark_offset = run->base.last_offset;
    run_mark(&run->base, run->base.count - 1, &p->mark);
    run->base.mark = p->mark;
    p->runs_out++;
    s->runs_out++;
    s->out_messages += run->base.count;
    run->base.origin = p->user;
    s->callbacks.run(s->arg, p, &run->base);
}

/* Forgets what was taken but not handed over; it will be fetched again. */
void kafka_run_discard(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;
    struct kafka_run *run = p->open;

    if (p->blocking) {
        p->blocking = false;
        s->blocking--;
    }
    p->taken = p->handed;
    if (!run)
        return;
    list_remove(s, run);
    p->open = NULL;
    assert(s->held_messages >= run->base.count && s->held_bytes >= run->base.bytes);
    s->held_messages -= run->base.count;
    s->held_bytes -= run->base.bytes;
    run_release(&run->base);
    kafka_source_room(s);
}

/* A soft pause is over: its run goes on collecting, or goes at once where it is full. */
void kafka_run_relist(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;
    struct kafka_run *run = p->open;

    if (p->blocking) {
        p->blocking = false;
        s->blocking--;
        kafka_source_room(s);
    }
    if (!run)
        return;
    if (run->base.count >= s->run_rows || run->base.bytes >= s->run_bytes) {
        kafka_run_hand_over(p);
    } else if (!run->listed) {
        run->opened_ms = uv_now(s->loop);
        list_add(s, run);
    }
}

void kafka_run_linger_over(struct kafka_source *s)
{
    uint64_t now = uv_now(s->loop);

    while (s->oldest && s->oldest->opened_ms + s->run_linger_ms <= now) {
        struct kafka_run *run = s->oldest;
        if (run->partition->pause_reasons)
            list_remove(s, run);
        else
            kafka_run_hand_over(run->partition);
    }
    if (s->oldest)
        kafka_source_timer(s, KAFKA_T_LINGER, s->oldest->opened_ms + s->run_linger_ms - now);
}

/* The bound is reached: open runs go, the oldest first, until half of what is held is in work. */
void kafka_run_make_room(struct kafka_source *s)
{
    while (s->oldest && s->out_messages * 2 < s->held_messages) {
        struct kafka_run *run = s->oldest;
        if (run->partition->pause_reasons)
            list_remove(s, run);
        else
            kafka_run_hand_over(run->partition);
    }
}

void kafka_run_done(struct kafka_source *source, struct kafka_partition *p, uint32_t messages,
                    uint64_t bytes)
{
    assert(p->runs_out > 0 && source->runs_out > 0);
    assert(source->held_messages >= messages && source->held_bytes >= bytes);
    p->runs_out--;
    source->runs_out--;
    source->held_messages -= messages;
    source->held_bytes -= bytes;
    source->out_messages -= messages;
    kafka_partition_unref(p);
    kafka_source_room(source);
}
