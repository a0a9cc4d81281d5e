/* SPDX-License-Identifier: Apache-2.0 */
/*
 * spoold's decoder by itself, for the differential test: what becomes of JSON values in one column.
 *
 *     jsonblock BLOCK VERSION ZONE TYPE < records
 *
 * stdin: records, each a u32 (little endian) of its size and then its text. BLOCK: the file that gets
 * the compressed block of columns k UInt32 and c TYPE, for a server of that version (26.7) and time
 * zone. stdout: "native" or "json" or "unchecked: why", then a line for each record: "ok", or the
 * refusal's word, its position and its sentence, with tabs between.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "codec/decode.h"
#include "codec/frame.h"

#define RECORD_MAX (16 * MIB)
#define BLOCK_MAX  (256 * MIB)

static int fail(const char *what, int status)
{
    fprintf(stderr, "jsonblock: %s: %s\n", what, spool_strerror(status));
    return 1;
}

static int resolve(char **argv, struct schema **out)
{
    struct table_column columns[] = {
        {.name = "k", .type = "UInt32", .default_kind = "", .default_expression = ""},
        {.name = "c", .type = argv[4], .default_kind = "", .default_expression = ""},
    };
    struct schema_options options = {.format = FORMAT_AUTO};
    struct server_version server = {0};
    char *end;
    struct buf problems;
    int status;

    server.major = (uint32_t)strtoul(argv[2], &end, 10);
    server.minor = *end ? (uint32_t)strtoul(end + 1, NULL, 10) : 0;
    buf_init(&problems, MIB);
    status = schema_resolve(&options, columns, 2, server, argv[3], out, &problems);
    if (status != SPOOL_OK)
        fprintf(stderr, "%s\n", buf_cstr(&problems));
    buf_free(&problems);
    return status;
}

/* 1: one more record in text; 0: the end; -1: a broken input. */
static int next_record(uint8_t **text, size_t *size)
{
    uint8_t head[4];
    size_t got = fread(head, 1, sizeof(head), stdin);

    if (got == 0)
        return 0;
    if (got != sizeof(head))
        return -1;
    *size = (size_t)head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
    if (*size > RECORD_MAX)
        return -1;
    /* a block of its own size, so that a sanitizer sees a read past its end */
    free(*text);
    *text = malloc(*size ? *size : 1);
    if (!*text)
        return -1;
    return fread(*text, 1, *size, stdin) == *size ? 1 : -1;
}

static int decode_all(struct decoder *d)
{
    uint8_t *text = NULL;
    size_t size = 0;
    int more, status = SPOOL_OK;

    while ((more = next_record(&text, &size)) > 0) {
        struct record record = {.data = text, .size = size, .timestamp_ms = -1};
        struct refusal why = {0};
        status = decoder_row(d, &record, &why);
        if (status == SPOOL_OK)
            puts("ok");
        else if (status == SPOOL_E_REFUSED)
            printf("%s\t%zu\t%s\n", refusal_name(why.code), why.position, why.reason);
        else
            break;
    }
    free(text);
    return more < 0 ? SPOOL_E_CORRUPT : more > 0 ? status : SPOOL_OK;
}

static int write_block(const char *path, struct decoder *d)
{
    struct frame_writer *writer = NULL;
    struct buf raw, stored;
    FILE *f = NULL;
    int status;

    buf_init(&raw, BLOCK_MAX);
    buf_init(&stored, BLOCK_MAX);
    status = decoder_finish(d, &raw);
    if (status == SPOOL_OK)
        status = frame_writer_create(FRAME_LZ4, 1, &writer);
    if (status == SPOOL_OK)
        status = frame_write(writer, raw.data, raw.len, &stored);
    if (status == SPOOL_OK) {
        f = fopen(path, "wb");
        if (!f || fwrite(stored.data, 1, stored.len, f) != stored.len)
            status = SPOOL_E_IO;
        if (f && fclose(f) != 0)
            status = SPOOL_E_IO;
    }
    frame_writer_free(writer);
    buf_free(&raw);
    buf_free(&stored);
    return status;
}

int main(int argc, char **argv)
{
    struct schema *schema = NULL;
    struct decoder *decoder = NULL;
    struct spool_error error = {0};
    int status;

    if (argc != 5) {
        fprintf(stderr, "usage: jsonblock BLOCK VERSION ZONE TYPE < records\n");
        return 2;
    }
    status = resolve(argv, &schema);
    if (status != SPOOL_OK)
        return fail("schema", status);
    if (schema->columns[1].unchecked)
        puts("unchecked");
    else
        puts(schema->format == FORMAT_NATIVE ? "native" : "json");
    status = decoder_create(schema, BLOCK_MAX, &decoder, &error);
    if (status == SPOOL_OK)
        status = decoder_begin(decoder, &(struct record_place){"origin", NULL, -1});
    if (status != SPOOL_OK)
        fprintf(stderr, "%s\n", error.text);
    if (status == SPOOL_OK)
        status = decode_all(decoder);
    if (status == SPOOL_OK)
        status = write_block(argv[1], decoder);
    decoder_free(decoder);
    schema_free(schema);
    return status == SPOOL_OK ? 0 : fail("decoding", status);
}
