/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Seals: which rows make the next batch, under which token and settings; and batches sealed before
 * a restart, found again.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/log.h"
#include "pipeline/pipeline_int.h"

/*
 * Attributes of a seal, version first:
 *
 *   "4\n<native 0|1>\n<endpoint url>\n<boot id> <server start, ms> <sealed, ms>\n"
 *   "<replica path>\n<settings>\n<schema>"
 *
 * The two times are of the machine's own clocks since its boot (clock_monotonic_ms, clock_boot_ms),
 * and mean nothing in another boot: there a server that starts with the machine starts at the same
 * reading each time. The schema is empty, or the serialised one that its rows are encoded anew for.
 * Version 3 was "3\n<native>\n<url>\n<server start>\n<settings>\n<schema>", version 2 the same
 * without a schema, version 1 without the server start; a start without its boot is not trusted.
 */
#define ATTRIBUTES_VERSION 4

static int attributes_put(struct batch *b, const char *url)
{
    bool native = batch_schema(b)->schema->format != FORMAT_JSON;
    int status = buf_printf(&b->attributes, "%d\n%d\n%s\n%s %lld %lld\n%s\n%s\n",
                            ATTRIBUTES_VERSION, native, url, b->stream->p->boot_id,
                            (long long)b->server_start_ms, (long long)b->sealed_boot_ms,
                            b->replica_path ? b->replica_path : "", b->settings);

    if (status == SPOOL_OK && b->schema)
        status = buf_append(&b->attributes, b->schema->serialized.data, b->schema->serialized.len);
    return status;
}

static bool line_is(const char *line, size_t size, const char *text)
{
    return strlen(text) == size && memcmp(line, text, size) == 0;
}

/* The line ends in a newline, where reading numbers stops. */
static void attributes_times(const struct stream *s, struct batch *b, const char *line, size_t size)
{
    const char *boot_id = s->p->boot_id;
    size_t n = strlen(boot_id);
    char *end;

    if (n == 0 || size <= n || memcmp(line, boot_id, n) != 0 || line[n] != ' ')
        return;
    b->server_start_ms = strtoll(line + n, &end, 10);
    b->sealed_boot_ms = strtoll(end, NULL, 10);
}

static int attributes_get(struct stream *s, struct batch *b, const char *text, size_t size)
{
    static const size_t line_counts[ATTRIBUTES_VERSION + 1] = {0, 3, 4, 4, 5};
    const char *end = text + size, *settings_end = end, *line[5] = {NULL};
    size_t length[5] = {0};
    unsigned version = size ? (unsigned)(text[0] - '0') : 0;

    if (version < 1 || version > ATTRIBUTES_VERSION)
        return SPOOL_E_NEWER;
    for (size_t i = 0; i < line_counts[version]; i++) {
        const char *nl = memchr(text, '\n', (size_t)(end - text));
        if (!nl)
            return SPOOL_E_CORRUPT;
        line[i] = text;
        length[i] = (size_t)(nl - text);
        text = nl + 1;
    }
    if (length[0] != 1)
        return SPOOL_E_NEWER;
    if (version >= 3) {
        settings_end = memchr(text, '\n', (size_t)(end - text));
        if (!settings_end)
            return SPOOL_E_CORRUPT;
        if (buf_append(&b->schema_bytes, settings_end + 1, (size_t)(end - settings_end - 1)))
            return SPOOL_E_NOMEM;
    }
    for (size_t i = 0; i < clickhouse_endpoints(s->p->clickhouse); i++) {
        struct endpoint_status status;
        clickhouse_endpoint_status(s->p->clickhouse, i, &status);
        if (line_is(line[2], length[2], status.url))
            b->endpoint = (int)i;
    }
    if (version >= 4) {
        attributes_times(s, b, line[3], length[3]);
        if (length[4] && !(b->replica_path = strndup(line[4], length[4])))
            return SPOOL_E_NOMEM;
    }
    b->settings = strndup(text, (size_t)(settings_end - text));
    return b->settings ? SPOOL_OK : SPOOL_E_NOMEM;
}

static int batch_token(struct batch *b)
{
    uint64_t random[2] = {0, 0};

    if (getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
        return SPOOL_E_IO;
    snprintf(b->token, sizeof(b->token), "%s-%s-%llu-%016llx%016llx",
             spool_uuid_text(b->stream->p->spool), b->stream->options->name,
             (unsigned long long)b->id, (unsigned long long)random[0],
             (unsigned long long)random[1]);
    return SPOOL_OK;
}

int batch_prepare_seal(struct batch *b, int endpoint)
{
    struct stream *s = b->stream;
    const struct table_description *table;
    bool native = batch_schema(b)->schema->format != FORMAT_JSON;
    struct endpoint_status server;
    struct buf settings;
    int status;

    for (size_t i = 0; i < b->part_count; i++)
        b->ranges[i] = (struct spool_range){b->parts[i].block->ref.sequence, b->parts[i].row,
                                            b->parts[i].rows};
    b->id = s->next_batch++;
    b->state = BATCH_SEALING;
    b->segment_number = b->segment->number;
    b->endpoint = endpoint;
    b->sealed_ms = clock_wall_ms();
    b->sealed_boot_ms = (int64_t)clock_boot_ms();
    table = batch_table(b);
    clickhouse_endpoint_status(s->p->clickhouse, (size_t)endpoint, &server);
    if (!clickhouse_server_start(s->p->clickhouse, (size_t)endpoint, &b->server_start_ms))
        b->server_start_ms = 0;
    buf_init(&settings, 64 * KIB);
    status = batch_token(b);
    if (status == SPOOL_OK && table && table->replica_path &&
        !(b->replica_path = strdup(table->replica_path)))
        status = SPOOL_E_NOMEM;
    if (status == SPOOL_OK)
        status = clickhouse_pinned_settings(server.version, native, batch_deduplicates(b), b->rows,
                                            b->raw_bytes, &settings);
    if (status == SPOOL_OK) {
        const char *text = buf_cstr(&settings);
        b->settings = text ? strdup(text) : NULL;
        status = b->settings ? SPOOL_OK : SPOOL_E_NOMEM;
    }
    if (status == SPOOL_OK)
        status = attributes_put(b, server.url);
    buf_free(&settings);
    b->seal = (struct spool_seal){.stream = s->id,
                                  .batch = b->id,
                                  .segment = b->segment_number,
                                  .ranges = b->ranges,
                                  .range_count = b->part_count,
                                  .token = b->token,
                                  .attributes = b->attributes.data,
                                  .attributes_size = b->attributes.len,
                                  .sealed_ms = b->sealed_ms,
                                  .rows = b->rows};
    return status;
}

static void batch_sealed(void *arg)
{
    struct batch *b = arg;

    buf_free(&b->attributes);
    stream_unhold(b->stream, HOLD_SEAL);
    batch_move(b, BATCH_WAITING);
}

/* There is no room for the seal: its blocks wait on, and may have been discarded meanwhile. */
static void batch_seal_refused(void *arg, const struct spool_error *error)
{
    struct batch *b = arg;
    struct stream *s = b->stream;
    struct segment *g = b->segment;

    for (size_t i = 0; i < b->part_count; i++)
        block_set_state(s, b->parts[i].block, BLOCK_WAITING);
    g->scan = g->first;
    batch_remove(b);
    (void)segment_discard(s, g, block_discarded, NULL);
    segment_skip_delivered(s, g);
    s->p->seal_from_ms = clock_monotonic_ms() + META_RETRY_MS;
    stream_hold(s, HOLD_SEAL, "its next batch can't be sealed: %s", error->text);
}

/* Takes count eligible blocks of the segment, in order, into a new seal. */
static void batch_seal(struct stream *s, struct segment *g, size_t count, int endpoint)
{
    struct batch *b = batch_new(s, count);
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .stream = s->id};
    struct block *at;
    int status;

    if (!b) {
        pipeline_fatal(s->p, "out of memory while sealing a batch");
        return;
    }
    b->segment = g;
    at = segment_next_eligible(g, NULL);
    while (b->part_count < count) {
        assert(at);
        b->parts[b->part_count++] = (struct part){at, 0, at->ref.rows};
        b->rows += at->ref.rows;
        b->raw_bytes += at->ref.raw_bytes;
        b->suspect = b->suspect || at->suspect;
        at = at->next_in_segment ? segment_next_eligible(g, at->next_in_segment) : NULL;
    }
    b->maybe_stored = b->suspect;
    status = batch_prepare_seal(b, endpoint);
    if (status != SPOOL_OK) {
        pipeline_fatal(s->p, "stream %s: sealing a batch: %s", s->options->name,
                       spool_strerror(status));
        batch_free(b);
        return;
    }
    for (size_t i = 0; i < b->part_count; i++)
        block_set_state(s, b->parts[i].block, BLOCK_SEALED);
    batch_link(s, b);
    change.batch = b->id;
    change.seal = &b->seal;
    (void)meta_try(s->p, &change, batch_sealed, batch_seal_refused, b, s);
}

static bool match_empty(const struct block *b, void *arg)
{
    (void)arg;
    return b->ref.rows == 0 && block_eligible(b);
}

/* The oldest segment that has something to seal. */
struct segment *batch_segment(struct stream *s)
{
    for (struct segment *g = s->segments_first; g && g->loaded; g = g->next)
        if (g->schema && segment_next_eligible(g, NULL))
            return g;
    return NULL;
}

static uint64_t batch_rows_wanted(const struct stream *s)
{
    return s->batch_rows_max && s->batch_rows_max < s->options->flush_rows ? s->batch_rows_max
                                                                           : s->options->flush_rows;
}

/*
 * How many blocks are due now: 0 when the batch should still grow. *rows is what they hold; *empty: some
 * hold none.
 */
static size_t batch_due(struct stream *s, struct segment *g, uint64_t now, uint64_t *rows,
                        bool *empty)
{
    const struct stream_options *o = s->options;
    struct block *first = segment_next_eligible(g, NULL);
    uint64_t wanted = batch_rows_wanted(s);
    bool force = !g->newest || first->arrived_ms <= s->flush_before_ms || s->p->draining;
    uint64_t bytes = 0;
    size_t n = 0;

    *rows = 0;
    *empty = false;
    force = force || first->arrived_ms + o->flush_interval_ms <= now;
    if (!force && s->eligible_rows < wanted && s->eligible_bytes < o->flush_bytes)
        return 0;
    for (struct block *b = first; b && *rows < wanted && bytes < o->flush_bytes;
         b = b->next_in_segment ? segment_next_eligible(g, b->next_in_segment) : NULL) {
        *rows += b->ref.rows;
        *empty |= !b->ref.rows;
        bytes += b->ref.raw_bytes;
        n++;
    }
    return force || *rows >= wanted || bytes >= o->flush_bytes ? n : 0;
}

bool batch_seal_one(struct stream *s, uint64_t now)
{
    struct segment *g = batch_segment(s);
    uint64_t rows = 0;
    size_t count;
    bool empty;
    int endpoint;

    if (!g) {
        stream_unhold(s, HOLD_SEAL);
        return false;
    }
    count = batch_due(s, g, now, &rows, &empty);
    if (!count)
        return false;
    /* Offsets without rows are nothing to send, and in no seal: where that waits, for a partition that went
       or a server that is down, Kafka would be told of nothing behind them. */
    if (empty) {
        (void)segment_discard(s, g, match_empty, NULL);
        return true;
    }
    if (batches_counted(s) >= s->options->max_in_flight || !stream_may_deliver(s) ||
        s->p->seal_from_ms > now)
        return false;
    endpoint = stream_pick(s);
    if (endpoint < 0 || !endpoint_has_room(s, endpoint, NULL) ||
        !(target_accepts(g->schema->target, endpoint, g->schema) ||
          target_reencodes(g->schema->target, endpoint, g->schema)))
        return false;
    batch_seal(s, g, count, endpoint);
    return true;
}

/* --- recovery ------------------------------------------------------------------------------- */

int batch_recover(struct stream *s, const struct spool_seal *seal)
{
    struct batch *b = batch_new(s, seal->range_count);
    int status;

    if (!b)
        return SPOOL_E_NOMEM;
    b->id = seal->batch;
    b->state = BATCH_LOADING;
    b->segment_number = seal->segment;
    memcpy(b->ranges, seal->ranges, seal->range_count * sizeof(*b->ranges));
    b->part_count = seal->range_count;
    b->rows = seal->rows;
    b->sealed_ms = seal->sealed_ms;
    b->maybe_stored = true; /* it may have been sent before the end */
    b->lettered = true;
    snprintf(b->token, sizeof(b->token), "%s", seal->token);
    status = attributes_get(s, b, seal->attributes, seal->attributes_size);
    if (status != SPOOL_OK) {
        batch_free(b);
        return status;
    }
    batch_link(s, b);
    return SPOOL_OK;
}

/* The schema its rows were being encoded anew for: the stream's own where it is the same. */
static bool batch_resolve_schema(struct stream *s, struct batch *b, struct segment *g)
{
    const struct buf *bytes = &b->schema_bytes;
    struct schema *schema = NULL;

    if (!bytes->len)
        return true;
    if (s->schema && s->schema->target == g->schema->target &&
        s->schema->serialized.len == bytes->len &&
        memcmp(s->schema->serialized.data, bytes->data, bytes->len) == 0)
        b->schema = stream_schema_ref(s->schema);
    else if (schema_deserialize(bytes->data, bytes->len, &schema, NULL) != SPOOL_OK ||
             stream_schema_create(schema, g->schema->target, &b->schema) != SPOOL_OK)
        return false;
    buf_free(&b->schema_bytes);
    return true;
}

/* Finds the batch's blocks; false where some are not there, and parts are those that are. */
static bool batch_resolve(struct stream *s, struct batch *b, struct segment *g)
{
    struct block *at = g->first;
    size_t found = 0, count = b->part_count;
    bool whole;

    b->segment = g;
    b->raw_bytes = 0;
    whole = g->schema && batch_resolve_schema(s, b, g);
    for (size_t i = 0; i < count; i++) {
        const struct spool_range *r = &b->ranges[i];
        while (at && at->ref.sequence < r->sequence)
            at = at->next_in_segment;
        if (!at || at->ref.sequence != r->sequence || r->rows > at->ref.rows ||
            r->row > at->ref.rows - r->rows)
            continue;
        b->parts[found++] = (struct part){at, r->row, r->rows};
        b->raw_bytes += at->ref.rows ? at->ref.raw_bytes * r->rows / at->ref.rows : 0;
        b->suspect = b->suspect || at->suspect;
        block_set_state(s, at, BLOCK_SEALED);
    }
    b->part_count = found;
    return whole && found == count;
}

bool batches_segment_loaded(struct stream *s, struct segment *g)
{
    bool unresolved = false;

    for (struct batch *b = s->batches; b; b = b->next) {
        if (b->state != BATCH_LOADING || b->segment_number != g->number)
            continue;
        b->unresolved = !batch_resolve(s, b, g);
        unresolved = unresolved || b->unresolved;
        if (b->unresolved)
            continue;
        batch_move(b, BATCH_WAITING);
        batch_ask_later(b);
    }
    return unresolved;
}
