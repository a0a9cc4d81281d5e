/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libspool in one page: append blocks, seal some of them as a batch, deliver and acknowledge it,
 * and remove the segment once nothing of it waits any more.
 *
 *   spool_example DIRECTORY      (made where it is not there; run it twice: it goes on where it was)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "spool.h"

/* Every function returns SPOOL_OK or a negative status, and says more in the error object. */
static void check(int status, const struct spool_error *error)
{
    if (status == SPOOL_OK)
        return;
    fprintf(stderr, "%s: %s\n", spool_strerror(status), error->text);
    exit(1);
}

/* Appends three blocks of four rows. A block is opaque to the spool; here it is text. */
static void append(struct spool_stream *stream, uint32_t origin)
{
    struct spool_error error;
    struct spool_block_ref refs[3];
    struct spool_block blocks[3];
    int64_t high = -1;
    size_t appended = 0;

    /* Offsets of an origin only grow: go on behind the highest the stream ever held. */
    (void)spool_stream_high(stream, origin, &high);
    for (int i = 0; i < 3; i++) {
        blocks[i] = (struct spool_block){
            .origin = origin,
            .rows = 4,
            .first_offset = high + 1 + 4 * i,
            .last_offset = high + 4 + 4 * i,
            .frames = "one two three four",
            .frames_size = strlen("one two three four"),
        };
    }
    /* One commit for all three. When it returns SPOOL_OK they survive a power cut. */
    check(spool_stream_append(stream, blocks, 3, refs, &appended, &error), &error);
    printf("appended %zu blocks, sequences %llu to %llu\n", appended,
           (unsigned long long)refs[0].sequence, (unsigned long long)refs[2].sequence);
}

/* Delivers one segment as one batch. */
static void deliver(struct spool *spool, struct spool_stream *stream, uint64_t number)
{
    struct spool_error error;
    struct spool_block_ref *refs = NULL;
    struct spool_range *ranges;
    struct spool_reader *reader = NULL;
    struct spool_seal seal = {.stream = spool_stream_id(stream), .segment = number};
    char token[128];
    size_t count = 0;

    check(spool_segment_blocks(stream, number, &refs, &count, &error), &error);
    ranges = calloc(count + 1, sizeof(*ranges));
    if (!ranges)
        exit(1);
    for (size_t i = 0; i < count; i++) {
        ranges[i] = (struct spool_range){refs[i].sequence, 0, refs[i].rows};
        seal.rows += refs[i].rows;
    }
    seal.ranges = ranges;
    seal.range_count = count;

    /* The seal comes first: after a crash the same rows go out under the same token again. */
    check(spool_next_batch(spool, seal.stream, &seal.batch, &error), &error);
    snprintf(token, sizeof(token), "%s-%u-%llu", spool_uuid_text(spool), seal.stream,
             (unsigned long long)seal.batch);
    seal.token = token;
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
    check(spool_commit(spool, &change, 1, &error), &error);

    /* Deliver: every block is checked before any of its bytes is used. */
    check(spool_reader_open(stream, number, &reader, &error), &error);
    for (size_t i = 0; i < count; i++) {
        void *payload = NULL;
        size_t size = 0;
        check(spool_reader_block(reader, &refs[i], &payload, &size, NULL, &error), &error);
        printf("batch %llu: block %llu, offsets %lld to %lld: %.*s\n",
               (unsigned long long)seal.batch, (unsigned long long)refs[i].sequence,
               (long long)refs[i].first_offset, (long long)refs[i].last_offset, (int)size,
               (const char *)payload);
        free(payload);
    }
    spool_reader_close(reader);

    /* It has arrived: acknowledge. The rows are deletable from now on. */
    change =
        (struct spool_change){.kind = SPOOL_CHANGE_ACK, .stream = seal.stream, .batch = seal.batch};
    check(spool_commit(spool, &change, 1, &error), &error);
    free(ranges);
    free(refs);
}

int main(int argc, char **argv)
{
    struct spool_options options = {.path = argc > 1 ? argv[1] : "example.spool", .create = true};
    /* A segment holds one schema and one destination; a change of either starts a new one. Here
       each run has a destination of its own, so that the segments of earlier runs can go. */
    struct spool_segment_spec spec = {.schema = "a String", .schema_size = strlen("a String")};
    struct spool_segment_info *segments = NULL;
    struct spool_stream *stream = NULL;
    struct spool *spool = NULL;
    struct spool_error error;
    char destination[64];
    uint32_t origin = 0;
    uint64_t batch = 0;
    size_t count = 0;

    check(spool_open(&options, &spool, &error), &error);
    check(spool_stream_open(spool, "example", &stream, &error), &error);
    check(spool_next_batch(spool, spool_stream_id(stream), &batch, &error), &error);
    snprintf(destination, sizeof(destination), "db.table_%llu", (unsigned long long)batch);
    spec.destination = destination;
    check(spool_stream_configure(stream, &spec, &error), &error);
    check(spool_origin(spool, "example/0", 0, &origin, NULL, &error), &error);
    append(stream, origin);

    check(spool_stream_segments(stream, &segments, &count, &error), &error);
    for (size_t i = 0; i < count; i++) {
        if (!segments[i].damaged && segments[i].acked_blocks < segments[i].blocks)
            deliver(spool, stream, segments[i].number);
        /* The newest segment stays: it remembers how far each origin has come. */
        if (!segments[i].newest && !segments[i].damaged) {
            const struct spool_change unlist = {.kind = SPOOL_CHANGE_UNLIST,
                                                .stream = spool_stream_id(stream),
                                                .segment = segments[i].number};
            check(spool_commit(spool, &unlist, 1, &error), &error);
            check(spool_segment_remove(stream, segments[i].number, &error), &error);
            printf("removed segment %llu\n", (unsigned long long)segments[i].number);
        }
    }
    free(segments);
    spool_close(spool);
    return 0;
}
