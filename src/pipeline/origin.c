/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Origins: where rows came from, how far each is acknowledged, and what of them is discarded.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "pipeline/pipeline_int.h"

static size_t origin_slot(const struct stream *s, uint32_t id)
{
    size_t mask = s->origin_table_size - 1;
    size_t i = (size_t)(id * 2654435761u) & mask; /* Knuth's multiplicative hash */

    while (s->origin_table[i] && s->origin_table[i]->id != id)
        i = (i + 1) & mask;
    return i;
}

struct origin *origin_find(struct stream *s, uint32_t id)
{
    return s->origin_table_size ? s->origin_table[origin_slot(s, id)] : NULL;
}

struct origin *origin_get(struct stream *s, uint32_t id)
{
    struct origin *o = origin_find(s, id);

    if (o)
        return o;
    if ((s->origin_count + 1) * 2 > s->origin_table_size) {
        size_t size = s->origin_table_size ? s->origin_table_size * 2 : 64;
        struct origin **table = calloc(size, sizeof(struct origin *));
        if (!table)
            return NULL;
        free(s->origin_table);
        s->origin_table = table;
        s->origin_table_size = size;
        for (o = s->origins; o; o = o->next)
            table[origin_slot(s, o->id)] = o;
    }
    o = calloc(1, sizeof(*o));
    if (!o)
        return NULL;
    o->stream = s;
    o->id = id;
    o->high = o->taken = o->committed = o->front = o->discard_to = o->delivered_below = -1;
    o->held_to = o->accept_to = -1;
    o->told_from = o->letters_to = INT64_MAX;
    o->partition_number = -1;
    o->next = s->origins;
    s->origins = o;
    s->origin_count++;
    s->origin_table[origin_slot(s, id)] = o;
    return o;
}

void origin_place(const struct origin *o, struct origin_place *out)
{
    const char *name = o->name ? o->name : "", *slash = strrchr(name, '/');
    size_t size;

    out->place = (struct record_place){.origin = name, .partition = -1};
    if (strncmp(name, "kafka/", 6) != 0 || slash < name + 6)
        return;
    size = (size_t)(slash - name - 6);
    if (size >= sizeof(out->topic))
        return;
    memcpy(out->topic, name + 6, size);
    out->topic[size] = 0;
    out->place.topic = out->topic;
    out->place.partition = (int32_t)strtol(slash + 1, NULL, 10);
}

/* Everything known is acknowledged: then all up to high is. */
void origin_refresh_front(struct origin *o)
{
    if (!o->first && o->high >= 0 && segments_all_loaded(o->stream) && o->front <= o->high)
        o->front = o->high + 1;
}

void origin_commit(struct origin *o)
{
    int64_t next = origin_commit_limit(o);
    char metadata[96];

    if (!o->partition || (!o->owned && !o->revoking) || next < 0 || next <= o->committed)
        return;
    snprintf(metadata, sizeof(metadata), "spoold %s %u %lld", spool_uuid_text(o->stream->p->spool),
             o->epoch, (long long)o->told_from);
    o->committed = next;
    if (!o->commit_in_flight)
        o->stream->p->commits_in_flight++;
    o->commit_in_flight = true;
    kafka_commit(o->partition, next, metadata);
}

bool origin_reads_again(const struct origin *o)
{
    return o->kafka && !o->superseded;
}

bool origin_in_memory(const struct origin *o)
{
    return o->runs_unreleased || o->decoding || o->blocks_undurable;
}

void origin_forget_commit(struct origin *o)
{
    if (o->commit_in_flight)
        o->stream->p->commits_in_flight--;
    o->commit_in_flight = false;
}

/* --- discards ------------------------------------------------------------------------------- */

bool block_discarded(const struct block *b, void *arg)
{
    (void)arg;
    return b->ref.last_offset <= b->origin->discard_to;
}

struct discard {
    struct stream *stream;
    struct segment *segment;
    struct block **blocks;
    size_t count;
};

static void discard_done(void *arg)
{
    struct discard *d = arg;

    for (size_t i = 0; i < d->count; i++) {
        struct origin *o = d->blocks[i]->origin;
        block_acked(d->stream, d->segment, d->blocks[i]);
        origin_commit(o);
    }
    free(d->blocks);
    free(d);
}

uint64_t segment_discard(struct stream *s, struct segment *g,
                         bool (*match)(const struct block *b, void *arg), void *arg)
{
    struct discard *d;
    struct spool_range *ranges = NULL;
    struct spool_change change = {
        .kind = SPOOL_CHANGE_DISCARD, .stream = s->id, .segment = g->number};
    uint64_t rows = 0;
    size_t n = 0;

    for (struct block *b = g->first; b; b = b->next_in_segment)
        n += b->state == BLOCK_WAITING && match(b, arg);
    if (!n)
        return 0;
    d = calloc(1, sizeof(*d));
    if (d)
        d->blocks = calloc(n, sizeof(struct block *));
    ranges = calloc(n, sizeof(*ranges));
    if (!d || !d->blocks || !ranges) {
        pipeline_fatal(s->p, "out of memory while discarding blocks");
        goto done;
    }
    d->stream = s;
    d->segment = g;
    for (struct block *b = g->first; b; b = b->next_in_segment) {
        if (b->state != BLOCK_WAITING || !match(b, arg))
            continue;
        block_set_state(s, b, BLOCK_SEALED);
        rows += b->ref.rows;
        ranges[d->count] = (struct spool_range){b->ref.sequence, 0, b->ref.rows};
        d->blocks[d->count++] = b;
    }
    change.ranges = ranges;
    change.range_count = d->count;
    (void)meta_change(s->p, &change, discard_done, d, s);
done:
    free(ranges);
    return rows;
}

static void note_key(const struct stream *s, enum origin_note kind, uint32_t origin,
                     char key[ORIGIN_NOTE_KEY_SIZE])
{
    static const char *const kinds[] = {
        [NOTE_DISCARD] = "discard", [NOTE_SUSPECT] = "suspect", [NOTE_TOLD] = "told"};

    snprintf(key, ORIGIN_NOTE_KEY_SIZE, "%s/%u/%u", kinds[kind], s->id, origin);
}

struct spool_change origin_note(const struct stream *s, enum origin_note kind, uint32_t origin,
                                int64_t offset, char key[ORIGIN_NOTE_KEY_SIZE],
                                char value[ORIGIN_NOTE_VALUE_SIZE])
{
    int n = snprintf(value, ORIGIN_NOTE_VALUE_SIZE, "%lld", (long long)offset);

    note_key(s, kind, origin, key);
    return (struct spool_change){
        .kind = SPOOL_CHANGE_PUT, .key = key, .value = value, .value_size = (size_t)n};
}

/* What the note says; otherwise where there is none. */
static int origin_noted(const struct stream *s, enum origin_note kind, uint32_t origin,
                        int64_t otherwise, int64_t *offset, struct spool_error *error)
{
    char key[ORIGIN_NOTE_KEY_SIZE], text[ORIGIN_NOTE_VALUE_SIZE];
    void *value = NULL;
    size_t size = 0;
    int status;

    note_key(s, kind, origin, key);
    status = note_read(s->p->spool, key, &value, &size, error);
    *offset = otherwise;
    if (size >= sizeof(text))
        status = spool_error_set(error, SPOOL_E_CORRUPT, "the note %s is not readable", key);
    if (status == SPOOL_OK && value) {
        memcpy(text, value, size);
        text[size] = 0;
        *offset = strtoll(text, NULL, 10);
    }
    free(value);
    return status;
}

int origin_discard_noted(const struct stream *s, uint32_t origin, int64_t *up_to,
                         struct spool_error *error)
{
    return origin_noted(s, NOTE_DISCARD, origin, -1, up_to, error);
}

int origin_suspect_noted(const struct stream *s, uint32_t origin, bool *noted,
                         struct spool_error *error)
{
    int64_t one;
    int status = origin_noted(s, NOTE_SUSPECT, origin, 0, &one, error);

    *noted = one != 0;
    return status;
}

int origin_told_noted(const struct stream *s, uint32_t origin, uint32_t epoch, int64_t *from,
                      struct spool_error *error)
{
    return origin_noted(s, NOTE_TOLD, origin, epoch <= 1 ? 0 : INT64_MAX, from, error);
}

static void told_noted(void *arg)
{
    struct origin *o = arg;

    if (!--o->telling)
        kafka_assign_told(o);
}

void origin_tell(struct origin *o, int64_t from)
{
    char key[ORIGIN_NOTE_KEY_SIZE], value[ORIGIN_NOTE_VALUE_SIZE];
    struct spool_change change = origin_note(o->stream, NOTE_TOLD, o->id, from, key, value);

    o->told_from = from;
    o->telling++;
    (void)meta_change(o->stream->p, &change, told_noted, o, o->stream);
}

void origin_discard(struct origin *o, int64_t up_to)
{
    struct stream *s = o->stream;
    uint64_t rows = 0;

    o->discard_to = up_to;
    for (struct segment *g = s->segments_first; g; g = g->next)
        if (g->loaded)
            rows += segment_discard(s, g, block_discarded, NULL);
    log_event(LOG_WARN, "origin.discarded", "stream", s->options->name, "origin",
              o->name ? o->name : "", "up_to", log_i64(up_to), "rows_in_memory", log_u64(rows),
              "reason", "another consumer of the group committed past them", NULL);
}

void origin_pass(struct origin *o, int64_t up_to)
{
    char key[ORIGIN_NOTE_KEY_SIZE], value[ORIGIN_NOTE_VALUE_SIZE];
    struct spool_change note = origin_note(o->stream, NOTE_DISCARD, o->id, up_to, key, value);

    (void)meta_change(o->stream->p, &note, NULL, NULL, o->stream);
    origin_discard(o, up_to);
}

/*
 * A commit of ours in this epoch says that all below it was acknowledged. Where the spool does not
 * know that, it was put back to an earlier state (a restored backup, a rebuilt meta.mdb), and the
 * rows are not to go again. An operator's commit, which carries no metadata of ours, says nothing.
 */
static bool block_delivered(const struct block *b, void *arg)
{
    (void)arg;
    return b->ref.last_offset < b->origin->delivered_below;
}

bool block_settled(const struct block *b)
{
    return block_discarded(b, NULL) || block_delivered(b, NULL);
}

void segment_skip_delivered(struct stream *s, struct segment *g)
{
    uint64_t rows = segment_discard(s, g, block_delivered, NULL);

    if (!rows)
        return;
    metrics_add(s->p->metrics, METRIC_ALREADY_DELIVERED, (double)rows, s->options->name);
    log_event(LOG_WARN, "rows.already_delivered", "stream", s->options->name, "segment",
              log_u64(g->number), "rows", log_u64(rows), "reason",
              "this spool is older than its own commits to Kafka: a restored copy? Rows below "
              "the committed offset are not sent again",
              NULL);
}

void origin_suspect(struct origin *o)
{
    o->suspect = true;
    for (struct block *b = o->first; b; b = b->next_in_origin)
        b->suspect = true;
}

void origin_skip_delivered(struct origin *o, int64_t committed)
{
    o->delivered_below = committed;
    for (struct segment *g = o->stream->segments_first; g; g = g->next)
        if (g->loaded)
            segment_skip_delivered(o->stream, g);
}

void origins_free(struct stream *s)
{
    while (s->origins) {
        struct origin *o = s->origins;
        s->origins = o->next;
        for (struct block *b = o->first; b;) {
            struct block *next = b->next_in_origin;
            block_drop(b);
            b = next;
        }
        holes_free(o);
        log_trace_free(o);
        free(o->name);
        free(o);
    }
    free(s->origin_table);
}
