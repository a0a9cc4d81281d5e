/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a log is still the one we read from.
 *
 * A topic that is deleted and made anew has other records at the same offsets, and when it is longer
 * than where we stand nothing fails: the client reads on, past records nobody has seen. 2.0.2 does
 * not look at topic ids. So the last record taken is known by a mark, and wherever fetching begins
 * or resumes it begins at that record, not behind it: the same comes again, or another one, and
 * then the log is another one. Where no record is there any more (retention, compaction) the next
 * one comes, or the end, and nothing can be said.
 *
 * Another record at that offset may also be of the same log, whose end was cut and written again (a
 * broker that lost its last writes, an unclean election). Then the log is tried for earlier records,
 * by their marks (kafka_partition_trace), and there nothing but the very record will do.
 *
 * While a partition is fetched without a break the client says nowhere but in its log, on the thread
 * of the broker, that a fetch failed for this partition ("BROKERUA") or that another broker leads
 * it now ("BRKMIGR", both debug=topic); for a whole connection the interceptor sees it (kafka_join.c).
 * Such a partition is in doubt: no fetch after that is believed before the mark was seen. Records of
 * such a fetch come into the queue after the line. So when a batch was taken out of the queue and no
 * doubt is noted, all in it are from before; else those of the partition are dropped, and it begins
 * at its mark.
 *
 * A partition that does not fetch (its local queue is full, for up to a second) while its topic is
 * deleted, made anew and filled beyond our position is not seen by this.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "source/kafka_int.h"

void kafka_mark_of(const rd_kafka_message_t *m, struct spool_mark *mark)
{
    rd_kafka_timestamp_type_t type;
    uint64_t seed = 0;

    if (m->key)
        seed = XXH3_64bits_withSeed(m->key, m->key_len, 1);
    if (!m->payload) /* a tombstone is no empty record */
        seed = ~seed;
    mark->known = true;
    mark->timestamp_ms = rd_kafka_message_timestamp(m, &type);
    mark->hash = XXH3_64bits_withSeed(m->payload ? m->payload : "", m->len, seed);
}

int64_t kafka_mark_begin(struct kafka_partition *p)
{
    const struct kafka_run *run = p->open;

    p->verifying = p->doubted = false;
    /* The open run's last record is not noted as the mark: where the run is discarded, reading goes
       on behind what was handed over. */
    if (run)
        kafka_mark_of(run->messages[run->base.count - 1], &p->awaited);
    else if (p->mark_offset == p->taken)
        p->awaited = p->mark;
    else
        return p->taken + 1;
    if (p->taken < 0 || (p->low >= 0 && p->taken < p->low))
        return p->taken + 1;
    p->verifying = true;
    return p->taken;
}

static void mark_traced(struct kafka_partition *p)
{
    struct kafka_source *s = p->source;

    p->tracing = false;
    s->callbacks.traced(s->arg, p, p->taken + 1);
}

/* A record while the marked one is awaited. */
void kafka_mark_verify(struct kafka_partition *p, const rd_kafka_message_t *m)
{
    struct spool_mark mark;

    if (m->offset < p->taken)
        return;
    p->verifying = false;
    if (m->offset > p->taken) {
        if (p->tracing)
            kafka_partition_new_log(p);
        return; /* it is gone, which happens in the same log too */
    }
    kafka_mark_of(m, &mark);
    if (mark.timestamp_ms != p->awaited.timestamp_ms || mark.hash != p->awaited.hash)
        kafka_partition_new_log(p);
    else if (p->tracing)
        mark_traced(p);
}

void kafka_mark_end(struct kafka_partition *p, int64_t end)
{
    if (p->verifying && end <= p->taken) {
        p->verifying = false;
        p->beyond = true;
        kafka_partition_look_again(p); /* the log is shorter than we were */
        return;
    }
    if (p->verifying && p->tracing) {
        p->verifying = false;
        kafka_partition_new_log(p);
        return;
    }
    p->verifying = false;
    if (end > p->end_seen)
        p->end_seen = end;
}

/* --- doubt ---------------------------------------------------------------------------------- */

static void doubt(struct kafka_hook *h, const char *topic, size_t size, int32_t number)
{
    struct kafka_doubt *at;

    uv_mutex_lock(&h->lines_lock);
    if (!topic || size >= sizeof(at->topic) || h->doubt_count == KAFKA_DOUBTS) {
        h->doubt_all = true;
    } else {
        at = &h->doubts[h->doubt_count++];
        memcpy(at->topic, topic, size);
        at->topic[size] = '\0';
        at->number = number;
    }
    atomic_store(&h->doubted, true);
    uv_mutex_unlock(&h->lines_lock);
}

/* "…TOPIC [NUMBER]…": what stands before the bracket, back to a space; a name has none. */
static void doubt_named(struct kafka_hook *h, const char *text, const char *end)
{
    const char *bracket = end, *topic;
    char *stop;
    long number;

    while (bracket > text && *bracket != '[')
        bracket--;
    number = strtol(bracket + 1, &stop, 10);
    if (bracket <= text + 1 || *stop != ']') {
        doubt(h, NULL, 0, 0);
        return;
    }
    topic = bracket - 1;
    while (topic > text && topic[-1] != ' ')
        topic--;
    doubt(h, topic, (size_t)(bracket - 1 - topic), (int32_t)number);
}

/* On the client's thread that is about to fetch again. */
void kafka_mark_line(struct kafka_hook *h, const char *facility, const char *text)
{
    const char *end;

    if (strcmp(facility, "BROKERUA") == 0) {
        end = strstr(text, "]: broker unavailable");
        if (end)
            doubt_named(h, text, end);
        else
            doubt(h, NULL, 0, 0);
    } else if (strcmp(facility, "BRKMIGR") == 0) {
        /* From no broker, or the client's own stand-in for one, nothing was fetched. */
        end = strstr(text, "] 0x");
        if (strstr(text, " from ") && !strstr(text, " from (none) ") &&
            !strstr(text, " from :0/internal"))
            doubt_named(h, text, end ? end : text);
    }
}

void kafka_mark_fetch_failed(struct kafka_hook *h)
{
    doubt(h, NULL, 0, 0);
}

static void doubt_partition(struct kafka_partition *p, bool *any)
{
    if (p->state != KAFKA_P_ACTIVE || !p->fetched || p->fetch_dead || p->parked)
        return; /* it begins at its mark anyway */
    p->doubted = *any = true;
}

bool kafka_mark_doubts(struct kafka_source *s)
{
    struct kafka_hook *h = s->hook;
    bool any = false;

    if (!atomic_exchange(&h->doubted, false))
        return false;
    uv_mutex_lock(&h->lines_lock);
    for (uint32_t i = 0; h->doubt_all && i < s->partition_count; i++)
        doubt_partition(s->partitions[i], &any);
    for (unsigned i = 0; i < h->doubt_count; i++) {
        struct kafka_partition *p =
            kafka_partition_find(s, h->doubts[i].topic, h->doubts[i].number);
        if (p)
            doubt_partition(p, &any);
    }
    h->doubt_all = false;
    h->doubt_count = 0;
    uv_mutex_unlock(&h->lines_lock);
    return any;
}
