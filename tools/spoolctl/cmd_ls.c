/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists go out stream by stream, and blocks segment by segment, so that a large spool needs the
 * memory of one segment's list. In JSON the pieces are joined into one document.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "json_view.h"
#include "spoolctl.h"
#include "table.h"

#define LIST_MAX_BYTES (256 * MIB)

struct listing {
    struct backend b;
    bool json;
    bool damaged;
    enum option_id what; /* OPTION_SEGMENTS, OPTION_BATCHES or OPTION_BLOCKS */
    struct table table;
    const char *stream;
    uint64_t items; /* written of this stream */
};

static const char *const segment_titles[] = {"STREAM",   ">SEGMENT",      ">SEQUENCES",  ">BLOCKS",
                                             ">ROWS",    ">ACKNOWLEDGED", ">SEALED",     ">STORED",
                                             ">ON DISK", "OLDEST",        "DESTINATION", "STATE"};
static const char *const batch_titles[] = {"STREAM",  ">BATCH",    ">SEGMENT", ">ROWS",
                                           ">RANGES", "SEALED AT", "TOKEN"};
static const char *const block_titles[] = {"STREAM",  ">SEGMENT", ">SEQUENCE", "ORIGIN",
                                           ">FIRST",  ">LAST",    ">ROWS",     ">RAW",
                                           ">STORED", "ARRIVED",  "STATE"};

static void bytes_cell(struct table *t, struct json_view value)
{
    char text[TEXT_SIZE];
    table_cell(t, "%s", text_bytes(view_u64(value), text));
}

/* The comma before every item of a list but the first. */
static void json_item(struct listing *l)
{
    if (l->items++)
        putchar(',');
}

static size_t count_elements(struct json_view array)
{
    struct json_view element;
    size_t at = 0, n = 0;

    while (view_element(array, &at, &element))
        n++;
    return n;
}

static const char *segment_state(struct json_view segment)
{
    uint64_t rows = view_u64(view_member(segment, "rows"));

    if (view_true(view_member(segment, "damaged")))
        return "damaged";
    if (view_true(view_member(segment, "newest")))
        return "newest";
    return view_u64(view_member(segment, "acked_rows")) >= rows ? "acknowledged" : "waiting";
}

static void say_damaged(struct listing *l, struct json_view segment)
{
    char *detail = text_shown(view_member(segment, "detail"));

    l->damaged = true;
    fprintf(stderr, "spoolctl: segment %" PRIu64 " of %s is damaged: %s\n",
            view_u64(view_member(segment, "number")), l->stream, detail ? detail : "");
    free(detail);
}

static void list_segment(struct listing *l, struct json_view segment)
{
    struct table *t = &l->table;
    struct json_view first = view_member(segment, "first_sequence");
    struct json_view last = view_member(segment, "last_sequence");

    if (view_true(view_member(segment, "damaged"))) {
        say_damaged(l, segment);
    }
    if (l->json) {
        json_item(l);
        printf("%.*s", (int)segment.size, segment.text);
        return;
    }
    table_cell(t, "%s", l->stream);
    table_json(t, view_member(segment, "number"));
    if (view_u64(first))
        table_cell(t, "%.*s-%.*s", (int)first.size, first.text, (int)last.size,
                   last.text ? last.text : "");
    else
        table_cell(t, "-");
    table_json(t, view_member(segment, "blocks"));
    table_json(t, view_member(segment, "rows"));
    table_json(t, view_member(segment, "acked_rows"));
    table_cell(t, "%zu", count_elements(view_member(segment, "batches")));
    bytes_cell(t, view_member(segment, "stored_bytes"));
    bytes_cell(t, view_member(segment, "file_bytes"));
    table_time(t, view_member(segment, "oldest_at"));
    table_json(t, view_member(segment, "destination"));
    table_cell(t, "%s", segment_state(segment));
}

static void list_batch(struct listing *l, struct json_view segment, struct json_view batch)
{
    struct table *t = &l->table;
    struct json_view number = view_member(segment, "number"), inside = view_inside(batch);

    if (l->json) {
        json_item(l);
        printf("{\"segment\":%.*s,%.*s}", (int)number.size, number.text ? number.text : "",
               (int)inside.size, inside.text ? inside.text : "");
        return;
    }
    table_cell(t, "%s", l->stream);
    table_json(t, view_member(batch, "batch"));
    table_json(t, number);
    table_json(t, view_member(batch, "rows"));
    table_cell(t, "%zu", count_elements(view_member(batch, "ranges")));
    table_time(t, view_member(batch, "sealed_at"));
    table_json(t, view_member(batch, "token"));
}

static void list_block(struct listing *l, struct json_view block)
{
    struct table *t = &l->table;

    if (l->json) {
        json_item(l);
        printf("%.*s", (int)block.size, block.text);
        return;
    }
    table_cell(t, "%s", l->stream);
    table_json(t, view_member(block, "segment"));
    table_json(t, view_member(block, "sequence"));
    table_json(t, view_member(block, "origin"));
    table_json(t, view_member(block, "first_offset"));
    table_json(t, view_member(block, "last_offset"));
    table_json(t, view_member(block, "rows"));
    bytes_cell(t, view_member(block, "raw_bytes"));
    bytes_cell(t, view_member(block, "stored_bytes"));
    table_time(t, view_member(block, "arrived_at"));
    table_json(t, view_member(block, "state"));
}

static int list_blocks(struct listing *l, struct json_view segment, struct spool_error *error)
{
    struct json_view blocks, block;
    struct buf answer;
    size_t at = 0;
    int status;

    if (view_true(view_member(segment, "damaged"))) {
        say_damaged(l, segment);
        return SPOOL_OK;
    }
    buf_init(&answer, LIST_MAX_BYTES);
    status =
        backend_blocks(&l->b, l->stream, view_u64(view_member(segment, "number")), &answer, error);
    /* A running daemon may have delivered and removed it since the list was made. */
    if (status == SPOOL_E_REFUSED && error->sys_errno == 404)
        status = SPOOL_OK;
    blocks = view_member(view_of((const char *)answer.data, answer.len), "blocks");
    while (status == SPOOL_OK && view_element(blocks, &at, &block))
        list_block(l, block);
    buf_free(&answer);
    return status;
}

static int list_stream(struct listing *l, struct spool_error *error)
{
    struct json_view segments, segment, batch;
    struct buf answer;
    size_t at = 0;
    int status;

    buf_init(&answer, LIST_MAX_BYTES);
    status = backend_segments(&l->b, l->stream, &answer, error);
    segments = view_member(view_of((const char *)answer.data, answer.len), "segments");
    while (status == SPOOL_OK && view_element(segments, &at, &segment)) {
        struct json_view batches = view_member(segment, "batches");
        size_t batch_at = 0;

        if (l->what == OPTION_SEGMENTS)
            list_segment(l, segment);
        else if (l->what == OPTION_BLOCKS)
            status = list_blocks(l, segment, error);
        else
            while (view_element(batches, &batch_at, &batch))
                list_batch(l, segment, batch);
    }
    buf_free(&answer);
    return status;
}

static int list_all(struct listing *l, const char *only, struct spool_error *error)
{
    static const char *const words[] = {
        [OPTION_SEGMENTS] = "segments", [OPTION_BATCHES] = "batches", [OPTION_BLOCKS] = "blocks"};
    char **names = NULL;
    size_t count = 0;
    int status = SPOOL_OK;

    if (!only)
        status = backend_streams(&l->b, &names, &count, error);
    if (l->json)
        printf("{\"streams\":[");
    for (size_t i = 0; i < (only ? 1 : count) && status == SPOOL_OK; i++) {
        l->stream = only ? only : names[i];
        l->items = 0;
        if (l->json)
            printf("%s{\"stream\":\"%s\",\"%s\":[", i ? "," : "", l->stream, words[l->what]);
        status = list_stream(l, error);
        if (l->json)
            printf("]}");
    }
    if (l->json)
        printf("]}\n");
    backend_streams_free(names, count);
    return status;
}

int command_ls(const struct command *command, const struct arguments *args)
{
    struct listing l = {.json = args->given[OPTION_JSON], .what = OPTION_SEGMENTS};
    struct spool_error error = {0};
    int status;

    (void)command;
    if (args->given[OPTION_SEGMENTS] + args->given[OPTION_BATCHES] + args->given[OPTION_BLOCKS] > 1)
        return usage_error("--segments, --batches and --blocks exclude each other");
    if (args->given[OPTION_BATCHES]) {
        l.what = OPTION_BATCHES;
        table_init(&l.table, batch_titles, sizeof(batch_titles) / sizeof(batch_titles[0]));
    } else if (args->given[OPTION_BLOCKS]) {
        l.what = OPTION_BLOCKS;
        table_init(&l.table, block_titles, sizeof(block_titles) / sizeof(block_titles[0]));
    } else {
        table_init(&l.table, segment_titles, sizeof(segment_titles) / sizeof(segment_titles[0]));
    }
    status = backend_open(&l.b, args->spool, args->socket, false, &error);
    if (status == SPOOL_OK)
        status = list_all(&l, args->word_count ? args->words[0] : NULL, &error);
    table_end(&l.table);
    if (status == SPOOL_OK && !l.json && !l.table.rows_printed)
        puts(l.what == OPTION_BATCHES ? "no batches" : "nothing");
    backend_close(&l.b);
    if (status != SPOOL_OK)
        return fail(&error);
    return l.damaged ? EXIT_PROBLEM : EXIT_FINE;
}
