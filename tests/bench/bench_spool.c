/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the spool costs: appends against the bare write and flush of the same bytes, checked reads,
 * seal and acknowledgement, and opening with a backlog.
 *
 *     bench_spool DIRECTORY [MiB to append] [blocks per commit] [KiB per block]
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "spool.h"

#define BLOCKS_MAX 1024

static void check(int status, const struct spool_error *error)
{
    if (status == SPOOL_OK)
        return;
    fprintf(stderr, "%s: %s\n", spool_strerror(status), error->text);
    exit(1);
}

static double now_s(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

struct timer {
    double wall, cpu;
};

static struct timer timer_start(void)
{
    return (struct timer){now_s(CLOCK_MONOTONIC), now_s(CLOCK_PROCESS_CPUTIME_ID)};
}

static void report(const char *what, struct timer t, double mib, double count, const char *unit)
{
    double wall = now_s(CLOCK_MONOTONIC) - t.wall, cpu = now_s(CLOCK_PROCESS_CPUTIME_ID) - t.cpu;
    printf("%-26s %8.3f s %8.3f s CPU", what, wall, cpu);
    if (mib > 0)
        printf(" %8.0f MiB/s", mib / wall);
    if (count > 0)
        printf(" %9.1f %s/s, %.3f ms each", count / wall, unit, 1e3 * wall / count);
    printf("\n");
}

/* The floor: the same bytes written and flushed twice a commit, as LMDB must. */
static void bench_floor(const char *directory, const uint8_t *bytes, size_t commit_bytes,
                        size_t commits)
{
    char path[4096];
    struct timer t;
    int fd;

    snprintf(path, sizeof(path), "%s/floor", directory);
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        exit(1);
    t = timer_start();
    for (size_t i = 0; i < commits; i++) {
        off_t at = (off_t)(i % 32 * commit_bytes + 4096); /* about a segment, then over it again */
        if (i % 32 == 0 && ftruncate(fd, 4096) < 0)
            exit(1);
        if (pwrite(fd, bytes, commit_bytes, at) != (ssize_t)commit_bytes || fdatasync(fd) < 0 ||
            pwrite(fd, &i, sizeof(i), 0) != sizeof(i) || fdatasync(fd) < 0)
            exit(1);
    }
    report("write + 2 flushes (floor)", t, (double)(commit_bytes * commits) / 1048576.0,
           (double)commits, "commits");
    close(fd);
    unlink(path);
}

static void bench_append(struct spool_stream *stream, uint32_t origin, const uint8_t *bytes,
                         size_t per_commit, size_t block_bytes, size_t commits)
{
    static struct spool_block blocks[BLOCKS_MAX];
    static struct spool_block_ref refs[BLOCKS_MAX];
    struct spool_error error;
    size_t appended = 0;
    int64_t high = -1;
    struct timer t;

    (void)spool_stream_high(stream, origin, &high);
    t = timer_start();
    for (size_t c = 0; c < commits; c++) {
        for (size_t i = 0; i < per_commit; i++, high += 512)
            blocks[i] = (struct spool_block){.origin = origin,
                                             .rows = 512,
                                             .first_offset = high + 1,
                                             .last_offset = high + 512,
                                             .first_arrival_ms = 1,
                                             .raw_bytes = 2 * block_bytes,
                                             .frames = bytes + i * block_bytes,
                                             .frames_size = block_bytes};
        check(spool_stream_append(stream, blocks, per_commit, refs, &appended, &error), &error);
    }
    report("spool_stream_append", t, (double)(block_bytes * per_commit * commits) / 1048576.0,
           (double)commits, "commits");
}

/* Reads every block with its checksum; the files are in the page cache. */
static void bench_read(struct spool_stream *stream, const struct spool_segment_info *info,
                       size_t segments, uint64_t *bytes)
{
    struct spool_error error;
    struct timer t = timer_start();
    size_t blocks = 0;

    *bytes = 0;
    for (size_t s = 0; s < segments; s++) {
        struct spool_block_ref *refs = NULL;
        struct spool_reader *reader = NULL;
        size_t n = 0;
        check(spool_segment_blocks(stream, info[s].number, &refs, &n, &error), &error);
        check(spool_reader_open(stream, info[s].number, &reader, &error), &error);
        for (size_t i = 0; i < n; i++) {
            check(spool_reader_verify(reader, &refs[i], &error), &error);
            *bytes += refs[i].frames_bytes;
        }
        blocks += n;
        spool_reader_close(reader);
        free(refs);
    }
    report("list + verify blocks", t, (double)*bytes / 1048576.0, (double)blocks, "blocks");
}

static void bench_batches(struct spool *spool, struct spool_stream *stream,
                          const struct spool_segment_info *info, size_t segments, size_t per_batch)
{
    static struct spool_range ranges[BLOCKS_MAX];
    struct spool_error error;
    struct timer t = timer_start(), unlinks;
    size_t batches = 0;

    for (size_t s = 0; s < segments; s++) {
        for (uint64_t at = 0; at < info[s].blocks; at += per_batch, batches++) {
            struct spool_seal seal = {.stream = spool_stream_id(stream),
                                      .segment = info[s].number,
                                      .ranges = ranges,
                                      .token = "a token of about the usual size, 64 bytes long"};
            struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
            for (uint64_t i = at; i < info[s].blocks && i < at + per_batch; i++)
                ranges[seal.range_count++] =
                    (struct spool_range){info[s].first_sequence + i, 0, 512};
            seal.rows = 512 * seal.range_count;
            check(spool_next_batch(spool, seal.stream, &seal.batch, &error), &error);
            check(spool_commit(spool, &change, 1, &error), &error);
            change = (struct spool_change){
                .kind = SPOOL_CHANGE_ACK, .stream = seal.stream, .batch = seal.batch};
            check(spool_commit(spool, &change, 1, &error), &error);
        }
    }
    report("seal + acknowledge", t, 0, (double)batches, "batches");
    unlinks = timer_start();
    for (size_t s = 0; s + 1 < segments; s++)
        check(spool_segment_remove(stream, info[s].number, &error), &error);
    report("remove segments", unlinks, 0, (double)segments - 1, "segments");
}

int main(int argc, char **argv)
{
    const struct spool_segment_spec spec = {"schema", 6, "db.table"};
    struct spool_options options = {.create = true};
    size_t mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 512;
    size_t per_commit = argc > 3 ? strtoul(argv[3], NULL, 10) : 64;
    size_t block_bytes = (argc > 4 ? strtoul(argv[4], NULL, 10) : 30) * 1024;
    size_t commits = mib * 1048576 / (per_commit * block_bytes) + 1, segments = 0;
    struct spool_segment_info *info = NULL;
    struct spool_stream *stream = NULL;
    struct spool *spool = NULL;
    struct spool_error error;
    struct rusage usage;
    struct timer t;
    uint32_t origin = 0;
    uint64_t read_bytes = 0;
    uint8_t *bytes;

    if (argc < 2 || !per_commit || per_commit > BLOCKS_MAX || !block_bytes) {
        fprintf(stderr,
                "bench_spool DIRECTORY [MiB] [blocks per commit, at most %d] [KiB per block]\n",
                BLOCKS_MAX);
        return 2;
    }
    options.path = argv[1];
    bytes = malloc(per_commit * block_bytes);
    if (!bytes)
        return 1;
    for (size_t i = 0; i < per_commit * block_bytes; i++)
        bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    check(spool_open(&options, &spool, &error), &error);
    check(spool_stream_open(spool, "bench", &stream, &error), &error);
    check(spool_stream_configure(stream, &spec, &error), &error);
    check(spool_origin(spool, "bench/0", 0, &origin, NULL, &error), &error);
    printf("%zu MiB, %zu blocks of %zu KiB a commit\n", mib, per_commit, block_bytes / 1024);
    bench_floor(argv[1], bytes, per_commit * block_bytes, commits);
    bench_append(stream, origin, bytes, per_commit, block_bytes, commits);
    spool_close(spool);

    t = timer_start();
    check(spool_open(&options, &spool, &error), &error);
    check(spool_stream_open(spool, "bench", &stream, &error), &error);
    report("open with this backlog", t, 0, 0, "");
    check(spool_stream_segments(stream, &info, &segments, &error), &error);
    bench_read(stream, info, segments, &read_bytes);
    bench_batches(spool, stream, info, segments, 13);
    free(info);
    spool_close(spool);
    getrusage(RUSAGE_SELF, &usage);
    printf("largest resident size %ld MiB (file pages included)\n", usage.ru_maxrss / 1024);
    free(bytes);
    return 0;
}
