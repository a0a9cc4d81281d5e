/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes a spool through the public API, for tests that need one without a daemon:
 *
 *   mkspool DIR [name=value ...]
 *
 *   streams=1        named events, or events-1, events-2, ...
 *   origins=1        per stream; blocks take turns. Named <origin><i>
 *   origin=made-     the beginning of their names
 *   blocks=4         per stream
 *   rows=1000        per block
 *   gib=0            instead of blocks: until a stream holds this many GiB of stored payload
 *   segment_kib=0    size at which segments roll; 0: libspool's own
 *   passed=0         oldest segments of which nothing is acknowledged or sealed; then
 *   acked=0          oldest blocks that are acknowledged
 *   seals=0          batches of the oldest blocks behind them
 *   seal_blocks=1    blocks of a batch (fewer where a segment ends)
 *   dead=0           dead letters per stream
 *   first=1          the first id, and the first offset of each origin
 *   step=1           distance between offsets of one block (above 1: an offset list)
 *   age=0            seconds between the arrivals of blocks; the last one's is now
 *   destination=default.events   database.table
 *   flavour=modern   or old: the types of 18.16 (String for DateTime64, UInt8 for Bool)
 *   method=lz4       or zstd
 *
 * Rows are of the benchmark's record: id UInt64, name String, type (6 values), value Float64,
 * timestamp DateTime64(3), status (5 values), active Bool. id counts over the whole spool. Only
 * the ids and offsets differ from block to block: they go into a frame of their own before frames
 * that are made once, so a backlog is made at the speed of the disk.
 *
 * Prints {"uuid","streams","rows","blocks","dead","stored_bytes"}.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/limits.h"
#include "codec/frame.h"
#include "codec/schema.h"
#include "spool.h"

#define APPEND_BLOCKS 32 /* per commit */
#define ORIGINS_MAX   1024

struct plan {
    const char *dir;
    uint64_t streams, origins, blocks, rows, gib, segment_kib, acked, seals, seal_blocks, passed,
        dead;
    uint64_t first, step, age;
    const char *origin, *destination, *flavour, *method;
};

struct maker {
    struct plan plan;
    struct spool *spool;
    struct frame_writer *frames;
    struct buf head; /* raw bytes of a block up to the ids */
    struct buf tail; /* frames of everything behind the ids */
    uint64_t tail_raw_bytes;
    struct buf schema;
    uint64_t next_id;
    uint64_t rows, blocks, letters, stored_bytes;
    uint32_t origin_ids[ORIGINS_MAX];
    int64_t next_offset[ORIGINS_MAX];
    int64_t *offsets; /* of the blocks of one append */
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "mkspool: %s: %s\n", what, why);
    exit(1);
}

static void must(int status, const char *what, const struct spool_error *error)
{
    if (status != SPOOL_OK)
        die(what, error && error->text[0] ? error->text : spool_strerror(status));
}

static bool is_old(const struct maker *m)
{
    return strcmp(m->plan.flavour, "old") == 0;
}

/* --- one block ------------------------------------------------------------------------------ */

static void put_column(struct buf *b, const char *name, const char *type)
{
    must(buf_put_string(b, name, strlen(name)), "column", NULL);
    must(buf_put_string(b, type, strlen(type)), "column", NULL);
}

/* A fixed generator: the same plan makes the same bytes. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void put_words(struct buf *b, uint64_t rows, const char *const *words, size_t count,
                      uint64_t seed)
{
    for (uint64_t i = 0; i < rows; i++) {
        const char *word = words[next_random(&seed) % count];
        must(buf_put_string(b, word, strlen(word)), "block", NULL);
    }
}

static void put_names(struct buf *b, uint64_t rows)
{
    uint64_t seed = 1;

    for (uint64_t i = 0; i < rows; i++) {
        char name[32];
        int n =
            snprintf(name, sizeof(name), "sensor-%06u", (unsigned)(next_random(&seed) % 1000000));
        must(buf_put_string(b, name, (size_t)n), "block", NULL);
    }
}

static void put_values(struct buf *b, uint64_t rows)
{
    uint64_t seed = 2;

    for (uint64_t i = 0; i < rows; i++) {
        double value = (double)(next_random(&seed) % 100000000) / 1000;
        uint64_t bits;
        memcpy(&bits, &value, sizeof(bits));
        must(buf_put_u64le(b, bits), "block", NULL);
    }
}

static void put_times(struct buf *b, uint64_t rows, bool as_text)
{
    uint64_t seed = 3, ms = 1790000000000u; /* 2026-09-21 */

    for (uint64_t i = 0; i < rows; i++) {
        char text[40];
        time_t seconds;
        struct tm tm;
        int n;

        ms += next_random(&seed) % 20;
        if (!as_text) {
            must(buf_put_u64le(b, ms), "block", NULL);
            continue;
        }
        seconds = (time_t)(ms / 1000);
        gmtime_r(&seconds, &tm);
        n = snprintf(text, sizeof(text), "%04d-%02d-%02d %02d:%02d:%02d.%03d", tm.tm_year + 1900,
                     tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec, (int)(ms % 1000));
        must(buf_put_string(b, text, (size_t)n), "block", NULL);
    }
}

static void make_template(struct maker *m)
{
    static const char *const types[] = {"foo", "bar", "baz", "qux", "quux", "corge"};
    static const char *const states[] = {"ok", "warning", "error", "unknown", "stale"};
    uint64_t rows = m->plan.rows, seed = 4;
    struct buf raw;

    buf_init(&m->head, KIB);
    must(buf_put_varuint(&m->head, 7), "block", NULL);
    must(buf_put_varuint(&m->head, rows), "block", NULL);
    put_column(&m->head, "id", "UInt64");

    buf_init(&raw, GIB);
    put_column(&raw, "name", "String");
    put_names(&raw, rows);
    put_column(&raw, "type", "String");
    put_words(&raw, rows, types, 6, 5);
    put_column(&raw, "value", "Float64");
    put_values(&raw, rows);
    put_column(&raw, "timestamp", is_old(m) ? "String" : "DateTime64(3)");
    put_times(&raw, rows, is_old(m));
    put_column(&raw, "status", "String");
    put_words(&raw, rows, states, 5, 6);
    put_column(&raw, "active", is_old(m) ? "UInt8" : "Bool");
    for (uint64_t i = 0; i < rows; i++)
        must(buf_put_u8(&raw, next_random(&seed) & 1), "block", NULL);
    buf_init(&m->tail, GIB);
    must(frame_write(m->frames, raw.data, raw.len, &m->tail), "frames", NULL);
    m->tail_raw_bytes = raw.len;
    buf_free(&raw);
}

static void make_schema(struct maker *m)
{
    bool old = is_old(m);
    struct column_wish wishes[7] = {
        {.name = "id", .type = "UInt64"},
        {.name = "name", .type = "String"},
        {.name = "type", .type = "String"},
        {.name = "value", .type = "Float64"},
        {.name = "timestamp", .type = old ? "String" : "DateTime64(3)"},
        {.name = "status", .type = "String"},
        {.name = "active", .type = old ? "UInt8" : "Bool"},
    };
    struct schema_options options = {.wishes = wishes, .wish_count = 7};
    struct server_version server = {old ? 18 : 26, old ? 16 : 7, old ? 1 : 2};
    struct schema *schema = NULL;
    struct buf problems;

    buf_init(&problems, 64 * KIB);
    if (schema_from_wishes(&options, server, "UTC", &schema, &problems) != SPOOL_OK)
        die("schema", buf_cstr(&problems));
    buf_init(&m->schema, LIMIT_SCHEMA_BYTES);
    must(schema_serialize(schema, &m->schema), "schema", NULL);
    schema_free(schema);
    buf_free(&problems);
}

static void make_block(struct maker *m, struct buf *raw, struct buf *frames, uint64_t at,
                       size_t slot, struct spool_block *block)
{
    struct plan *p = &m->plan;
    size_t origin = at % p->origins;
    uint64_t later = p->blocks > at ? p->blocks - at - 1 : 0;
    int64_t arrival = clock_wall_ms() - (int64_t)(later * p->age * 1000);

    buf_reset(raw);
    buf_reset(frames);
    must(buf_append(raw, m->head.data, m->head.len), "block", NULL);
    for (uint64_t i = 0; i < p->rows; i++)
        must(buf_put_u64le(raw, m->next_id++), "block", NULL);
    must(frame_write(m->frames, raw->data, raw->len, frames), "frames", NULL);
    must(buf_append(frames, m->tail.data, m->tail.len), "frames", NULL);

    *block = (struct spool_block){
        .origin = m->origin_ids[origin],
        .rows = (uint32_t)p->rows,
        .flags = SPOOL_BLOCK_NATIVE,
        .first_offset = m->next_offset[origin],
        .first_arrival_ms = arrival,
        .last_arrival_ms = arrival,
        .raw_bytes = raw->len + m->tail_raw_bytes,
        .frames = frames->data,
        .frames_size = frames->len,
    };
    if (p->step > 1) {
        int64_t *offsets = m->offsets + slot * p->rows;
        for (uint64_t i = 0; i < p->rows; i++)
            offsets[i] = m->next_offset[origin] + (int64_t)(i * p->step);
        block->offsets = offsets;
    }
    block->last_offset = block->first_offset + (int64_t)((p->rows - 1) * p->step);
    m->next_offset[origin] = block->last_offset + (int64_t)p->step;
}

/* --- a stream ------------------------------------------------------------------------------- */

static void make_origins(struct maker *m, uint64_t stream)
{
    struct spool_error error = {0};

    for (uint64_t i = 0; i < m->plan.origins; i++) {
        char name[400];
        snprintf(name, sizeof(name), "%s%" PRIu64, m->plan.origin, stream * m->plan.origins + i);
        must(spool_origin(m->spool, name, 0, &m->origin_ids[i], NULL, &error), "origin", &error);
        m->next_offset[i] = (int64_t)m->plan.first;
    }
}

static void append_blocks(struct maker *m, struct spool_stream *stream)
{
    struct buf raw, frames[APPEND_BLOCKS];
    struct spool_block blocks[APPEND_BLOCKS];
    struct spool_block_ref refs[APPEND_BLOCKS];
    struct spool_error error = {0};
    uint64_t made = 0, bytes = 0, wanted = m->plan.gib * GIB;
    size_t appended = 0;

    buf_init(&raw, GIB);
    for (size_t i = 0; i < APPEND_BLOCKS; i++)
        buf_init(&frames[i], GIB);
    while (wanted ? bytes < wanted : made < m->plan.blocks) {
        size_t n = 0;
        while (n < APPEND_BLOCKS && (wanted ? bytes < wanted : made < m->plan.blocks)) {
            make_block(m, &raw, &frames[n], made++, n, &blocks[n]);
            bytes += blocks[n++].frames_size;
        }
        must(spool_stream_append(stream, blocks, n, refs, &appended, &error), "append", &error);
    }
    for (size_t i = 0; i < APPEND_BLOCKS; i++)
        buf_free(&frames[i]);
    buf_free(&raw);
    m->blocks += made;
    m->rows += made * m->plan.rows;
    m->stored_bytes += bytes;
}

/* As the pipeline's seals: version 1, Native, no endpoint of its own, no settings. */
static const char seal_attributes[] = "1\n1\n\n";

/* One batch of count whole blocks of one segment. */
static void seal_blocks(struct maker *m, struct spool_stream *stream,
                        const struct spool_block_ref *refs, size_t count, bool acknowledge)
{
    struct spool_range *ranges = calloc(count, sizeof(*ranges));
    struct spool_error error = {0};
    char token[200];
    struct spool_seal seal = {.stream = spool_stream_id(stream),
                              .segment = refs->segment,
                              .ranges = ranges,
                              .range_count = count,
                              .token = token,
                              .attributes = seal_attributes,
                              .attributes_size = strlen(seal_attributes),
                              .sealed_ms = clock_wall_ms()};
    struct spool_change change = {
        .kind = SPOOL_CHANGE_SEAL, .stream = seal.stream, .segment = seal.segment, .seal = &seal};

    if (!ranges)
        die("seal", "out of memory");
    for (size_t i = 0; i < count; i++) {
        ranges[i] = (struct spool_range){.sequence = refs[i].sequence, .rows = refs[i].rows};
        seal.rows += refs[i].rows;
    }
    must(spool_next_batch(m->spool, seal.stream, &seal.batch, &error), "batch", &error);
    snprintf(token, sizeof(token), "%s-%s-%" PRIu64 "-made", spool_uuid_text(m->spool),
             spool_stream_name(stream), seal.batch);
    change.batch = seal.batch;
    must(spool_commit(m->spool, &change, 1, &error), "seal", &error);
    change.kind = SPOOL_CHANGE_ACK;
    change.seal = NULL;
    if (acknowledge)
        must(spool_commit(m->spool, &change, 1, &error), "acknowledge", &error);
    free(ranges);
}

static void seal_segment(struct maker *m, struct spool_stream *stream, uint64_t number,
                         uint64_t *acked, uint64_t *sealed)
{
    struct spool_block_ref *refs = NULL;
    struct spool_error error = {0};
    size_t count = 0, at = 0;

    must(spool_segment_blocks(stream, number, &refs, &count, &error), "blocks", &error);
    for (; at < count && *acked < m->plan.acked; at++, ++*acked)
        seal_blocks(m, stream, &refs[at], 1, true);
    while (at < count && *sealed < m->plan.seals) {
        size_t n = count - at < m->plan.seal_blocks ? count - at : m->plan.seal_blocks;
        seal_blocks(m, stream, &refs[at], n, false);
        at += n;
        ++*sealed;
    }
    free(refs);
}

static void seal_stream(struct maker *m, struct spool_stream *stream)
{
    struct spool_segment_info *infos = NULL;
    struct spool_error error = {0};
    uint64_t acked = 0, sealed = 0;
    size_t count = 0;

    must(spool_stream_segments(stream, &infos, &count, &error), "segments", &error);
    for (size_t i = m->plan.passed; i < count && (acked < m->plan.acked || sealed < m->plan.seals);
         i++)
        seal_segment(m, stream, infos[i].number, &acked, &sealed);
    free(infos);
}

static void make_dead(struct maker *m, const char *stream)
{
    struct spool_error error = {0};

    for (uint64_t i = 0; i < m->plan.dead; i++) {
        char record[128];
        size_t added = 0;
        bool binary = i % 3 == 2;
        struct spool_dead letter = {
            .stream = stream,
            .origin = m->origin_ids[i % m->plan.origins],
            .offset = 1000000 + (int64_t)i,
            .code = binary ? 1 : 5,
            .reason_name = binary ? "not_json" : "range",
            .reason = binary ? "the record is not JSON" : "300 is outside UInt8",
            .column = binary ? "" : "type",
            .position = 7,
            .attempts = 1,
            .dead_ms = clock_wall_ms(),
            .received_ms = clock_wall_ms(),
            .timestamp_ms = -1,
            .record = record,
            .key = "key",
            .key_size = 3,
            .key_present = i % 2 == 0,
            .headers = "\1\0\0\0\5trace\3abc",
            .headers_size = 14,
        };
        int n = binary ? snprintf(record, sizeof(record), "\xff\xfe not JSON %" PRIu64, i)
                       : snprintf(record, sizeof(record), "{\"id\":%" PRIu64 ",\"type\":300}", i);
        letter.record_size = letter.record_full_size = (size_t)n;
        must(spool_dead_put(m->spool, &letter, 1, &added, &error), "dead letter", &error);
        m->letters += added;
    }
}

/* db.table -> `db`.`table`, as spoold writes it. */
static void quote_destination(const char *plain, char *out, size_t size)
{
    const char *dot = strchr(plain, '.');

    if (!dot)
        die("destination", "must be database.table");
    snprintf(out, size, "`%.*s`.`%s`", (int)(dot - plain), plain, dot + 1);
}

static void make_stream(struct maker *m, uint64_t number)
{
    char destination[400];
    struct spool_segment_spec spec = {
        .schema = m->schema.data, .schema_size = m->schema.len, .destination = destination};
    struct spool_stream *stream = NULL;
    struct spool_error error = {0};
    char name[SPOOL_STREAM_NAME_MAX + 1];

    if (m->plan.streams == 1)
        snprintf(name, sizeof(name), "events");
    else
        snprintf(name, sizeof(name), "events-%" PRIu64, number + 1);
    quote_destination(m->plan.destination, destination, sizeof(destination));
    make_origins(m, number);
    must(spool_stream_open(m->spool, name, &stream, &error), "stream", &error);
    must(spool_stream_configure(stream, &spec, &error), "configure", &error);
    append_blocks(m, stream);
    seal_stream(m, stream);
    make_dead(m, name);
}

/* --- the command line ----------------------------------------------------------------------- */

static void read_plan(struct plan *p, int argc, char **argv)
{
    struct {
        const char *name;
        uint64_t *number;
        const char **text;
    } options[] = {
        {"streams", &p->streams, NULL}, {"origins", &p->origins, NULL},
        {"blocks", &p->blocks, NULL},   {"rows", &p->rows, NULL},
        {"gib", &p->gib, NULL},         {"segment_kib", &p->segment_kib, NULL},
        {"seals", &p->seals, NULL},     {"seal_blocks", &p->seal_blocks, NULL},
        {"acked", &p->acked, NULL},     {"passed", &p->passed, NULL},
        {"dead", &p->dead, NULL},       {"first", &p->first, NULL},
        {"step", &p->step, NULL},       {"age", &p->age, NULL},
        {"origin", NULL, &p->origin},   {"destination", NULL, &p->destination},
        {"flavour", NULL, &p->flavour}, {"method", NULL, &p->method},
    };
    size_t count = sizeof(options) / sizeof(options[0]);

    if (argc < 2 || argv[1][0] == '-')
        die("usage", "mkspool DIR [name=value ...]; the options stand in its source");
    p->dir = argv[1];
    for (int i = 2; i < argc; i++) {
        const char *equals = strchr(argv[i], '=');
        size_t at = 0, n = equals ? (size_t)(equals - argv[i]) : 0;

        while (at < count && (strncmp(options[at].name, argv[i], n) != 0 || options[at].name[n]))
            at++;
        if (!n || at == count)
            die("unknown option", argv[i]);
        if (options[at].text) {
            *options[at].text = equals + 1;
        } else {
            char *end = NULL;
            *options[at].number = strtoull(equals + 1, &end, 10);
            if (end == equals + 1 || *end)
                die("no number", argv[i]);
        }
    }
    if (!p->rows || !p->step || !p->seal_blocks || !p->origins || p->origins > ORIGINS_MAX ||
        p->rows > 10000000)
        die("usage", "rows, step and origins must be at least 1, and not absurd");
}

int main(int argc, char **argv)
{
    struct maker m = {.plan = {.streams = 1,
                               .origins = 1,
                               .blocks = 4,
                               .rows = 1000,
                               .first = 1,
                               .step = 1,
                               .origin = "made-",
                               .destination = "default.events",
                               .flavour = "modern",
                               .method = "lz4",
                               .seal_blocks = 1}};
    struct spool_options options = {.create = true};
    struct spool_error error = {0};

    read_plan(&m.plan, argc, argv);
    options.path = m.plan.dir;
    options.segment_bytes = m.plan.segment_kib * KIB;
    m.next_id = m.plan.first;
    m.offsets = calloc(APPEND_BLOCKS * m.plan.rows, sizeof(*m.offsets));
    if (!m.offsets)
        die("offsets", "out of memory");
    must(frame_writer_create(strcmp(m.plan.method, "zstd") ? FRAME_LZ4 : FRAME_ZSTD, 1, &m.frames),
         "frames", NULL);
    must(spool_open(&options, &m.spool, &error), m.plan.dir, &error);
    make_template(&m);
    make_schema(&m);
    for (uint64_t i = 0; i < m.plan.streams; i++)
        make_stream(&m, i);
    printf("{\"uuid\":\"%s\",\"streams\":%" PRIu64 ",\"rows\":%" PRIu64 ",\"blocks\":%" PRIu64
           ",\"dead\":%" PRIu64 ",\"stored_bytes\":%" PRIu64 "}\n",
           spool_uuid_text(m.spool), m.plan.streams, m.rows, m.blocks, m.letters, m.stored_bytes);
    spool_close(m.spool);
    frame_writer_free(m.frames);
    free(m.offsets);
    buf_free(&m.head);
    buf_free(&m.tail);
    buf_free(&m.schema);
    return 0;
}
