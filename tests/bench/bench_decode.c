/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast JSON becomes a block: MB of JSON a second on one core, without and with LZ4 frames.
 *
 *     bench_decode [rows per block] [seconds]
 *
 * The record of the bench lane, in three spellings and with LZ4; then records of 5, 50 and 500 columns
 * (the same seven types in turn), with LZ4.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "codec/decode.h"
#include "codec/frame.h"

#define RECORDS     65536
#define TEXT_BYTES  (16 * MIB) /* of records that are decoded again and again */
#define COLUMNS_MAX 500

static uint64_t random_state = 88172645463325252ull;

static uint64_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static size_t make_record(char *out, size_t room, int style, unsigned i)
{
    static const char *kinds[] = {"click", "view", "purchase", "login", "logout", "refund"};
    static const char *states[] = {"new", "open", "pending", "closed", "failed"};
    const char *gap = style == 2 ? " " : "";
    char name[24];
    size_t n = 6 + random_next() % 12;
    int written;

    for (size_t k = 0; k < n; k++)
        name[k] = (char)('a' + random_next() % 26);
    name[n] = 0;
    written = snprintf(out, room,
                       "{\"id\":%s%u,%s\"name\":%s\"%s\",%s\"kind\":%s\"%s\",%s\"value\":%s%u.%03u,"
                       "%s\"ts\":%s\"2026-11-23%c%02u:%02u:%02u.%03u%s\",%s\"state\":%s\"%s\",%s"
                       "\"ok\":%s%s}",
                       gap, 100000 + i, gap, gap, name, gap, gap, kinds[random_next() % 6], gap,
                       gap, (unsigned)(random_next() % 1000), (unsigned)(random_next() % 1000), gap,
                       gap, style == 1 ? ' ' : 'T', i / 3600 % 24, i / 60 % 60, i % 60,
                       (unsigned)(random_next() % 1000), style == 1 ? "" : "Z", gap, gap,
                       states[random_next() % 5], gap, gap, random_next() % 2 ? "true" : "false");
    return (size_t)written;
}

/* columns values, of the bench record's types in turn */
static size_t make_wide_record(char *out, unsigned columns, unsigned i)
{
    static const char *const words[] = {"click", "view", "purchase", "login", "logout", "refund"};
    size_t n = 0;

    for (unsigned k = 0; k < columns; k++) {
        unsigned r = (unsigned)random_next();
        n += (size_t)snprintf(out + n, 64, "%c\"column_%u\":", k ? ',' : '{', k);
        switch (k % 7) {
        case 0:
            n += (size_t)snprintf(out + n, 64, "%u", 100000 + i + k);
            break;
        case 1:
            n += (size_t)snprintf(out + n, 64, "\"%08x\"", r);
            break;
        case 3:
            n += (size_t)snprintf(out + n, 64, "%u.%03u", r % 1000, r / 1000 % 1000);
            break;
        case 4:
            n += (size_t)snprintf(out + n, 64, "\"2026-11-23T%02u:%02u:%02u.%03uZ\"", r % 24,
                                  r / 24 % 60, r / 1440 % 60, r % 1000);
            break;
        case 6:
            n += (size_t)snprintf(out + n, 64, "%s", r % 2 ? "true" : "false");
            break;
        default:
            n += (size_t)snprintf(out + n, 64, "\"%s\"", words[r % 6]);
        }
    }
    out[n++] = '}';
    return n;
}

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "bench_decode: %s: %s\n", what, why);
    exit(1);
}

static struct schema *make_schema(unsigned columns)
{
    static struct column_wish wide[COLUMNS_MAX];
    static char names[COLUMNS_MAX][16];
    static const struct column_wish bench[] = {
        {.name = "id", .type = "UInt64"},        {.name = "name", .type = "String"},
        {.name = "kind", .type = "String"},      {.name = "value", .type = "Float64"},
        {.name = "ts", .type = "DateTime64(3)"}, {.name = "state", .type = "String"},
        {.name = "ok", .type = "Bool"},
    };
    struct schema_options options = {.format = FORMAT_NATIVE, .wishes = bench, .wish_count = 7};
    struct server_version server = {26, 7, 0};
    struct schema *schema = NULL;
    struct buf problems;

    for (unsigned i = 0; i < columns; i++) {
        snprintf(names[i], sizeof(names[i]), "column_%u", i);
        wide[i] = (struct column_wish){.name = names[i], .type = bench[i % 7].type};
    }
    if (columns) {
        options.wishes = wide;
        options.wish_count = columns;
    }
    buf_init(&problems, 64 * KIB);
    if (schema_from_wishes(&options, server, "UTC", &schema, &problems) != SPOOL_OK)
        fail("schema", buf_cstr(&problems));
    buf_free(&problems);
    return schema;
}

/* columns: 0 for the bench record, in that style */
static void run(const char *label, int style, unsigned columns, unsigned block_rows, double seconds,
                bool frames)
{
    struct schema *schema = make_schema(columns);
    char *text = malloc(TEXT_BYTES);
    unsigned records = 0;
    size_t *end = malloc(RECORDS * sizeof(*end));
    struct record_place place = {.origin = "t-0", .topic = "t", .partition = 0};
    struct spool_error error = {0};
    struct refusal why = {0};
    struct decoder *d;
    struct frame_writer *w;
    struct buf raw, out;
    size_t bytes = 0, raw_bytes = 0, out_bytes = 0, rows = 0, at = 0;
    double start, spent;

    while (records < RECORDS && at + 64u * (columns + 8) < TEXT_BYTES) {
        at += columns ? make_wide_record(text + at, columns, records)
                      : make_record(text + at, 256, style, records);
        end[records++] = at;
    }
    buf_init(&raw, 64 * MIB);
    buf_init(&out, 64 * MIB);
    if (decoder_create(schema, 64 * MIB, &d, &error) != SPOOL_OK)
        fail("decoder", error.text);
    if (frame_writer_create(FRAME_LZ4, 1, &w) != SPOOL_OK)
        fail("frames", "no memory");
    decoder_begin(d, &place);
    start = now_s();
    do {
        for (unsigned i = 0; i < records; i++) {
            size_t from = i ? end[i - 1] : 0;
            struct record record = {.data = (const uint8_t *)text + from,
                                    .size = end[i] - from,
                                    .offset = (int64_t)i,
                                    .timestamp_ms = -1};
            if (decoder_row(d, &record, &why) != SPOOL_OK)
                fail("row", why.reason);
            if (decoder_rows(d) < block_rows)
                continue;
            buf_reset(&raw);
            rows += decoder_rows(d);
            if (decoder_finish(d, &raw) != SPOOL_OK)
                fail("finish", "failed");
            raw_bytes += raw.len;
            if (frames) {
                buf_reset(&out);
                if (frame_write(w, raw.data, raw.len, &out) != SPOOL_OK)
                    fail("frame", "failed");
                out_bytes += out.len;
            }
        }
        bytes += at;
        spent = now_s() - start;
    } while (spent < seconds);
    printf("%-28s %6.0f MB/s  %5.1f ns/record  %.1f B JSON, %.1f B raw", label,
           (double)bytes / spent / 1e6, spent / (double)rows * 1e9, (double)bytes / (double)rows,
           (double)raw_bytes / (double)rows);
    if (frames)
        printf(", %.1f B stored", (double)out_bytes / (double)rows);
    printf("\n");
    decoder_free(d);
    frame_writer_free(w);
    schema_free(schema);
    buf_free(&raw);
    buf_free(&out);
    free(text);
    free(end);
}

int main(int argc, char **argv)
{
    unsigned rows = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 8192;
    double seconds = argc > 2 ? strtod(argv[2], NULL) : 2;

    run("T..Z", 0, 0, rows, seconds, false);
    run("blank, no zone", 1, 0, rows, seconds, false);
    run("blanks behind : and ,", 2, 0, rows, seconds, false);
    run("T..Z, LZ4 frames", 0, 0, rows, seconds, true);
    run("5 columns, LZ4 frames", 0, 5, rows, seconds, true);
    run("50 columns, LZ4 frames", 0, 50, rows, seconds, true);
    run("500 columns, LZ4 frames", 0, 500, rows, seconds, true);
    return 0;
}
