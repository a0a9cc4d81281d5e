/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A spool whose files were changed: a small one is made once, and each input is a list of patches to its
 * segment, to meta.mdb or to dead.mdb. Whatever they are, it is opened, verified and read without harm, and a
 * payload that reads is the one that was written. A repaired one says of all blocks that they may have been
 * sent, and gives nobody the number of an origin that has some.
 *
 *     byte 0: which file, whether it is cut short, whether meta.mdb is gone and the spool repaired; then patches:
 *     3 bytes of place, 1 of length, the bytes
 */
#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "spool/spool_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FILES  3
#define BLOCKS 8

static char directory[64];
static struct {
    char path[128];
    uint8_t *bytes;
    size_t size;
} files[FILES];

static uint8_t payload[BLOCKS][6000];
static const size_t payload_size[BLOCKS] = {10, 2500, 700, 6000, 1, 0, 4000, 33};

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    (void)ftw;
    return remove(path);
}

static void remove_directory(void)
{
    nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static struct spool *open_spool(struct spool_error *error)
{
    const struct spool_options options = {
        .path = directory, .segment_bytes = 1 << 20, .create = true};
    struct spool *spool = NULL;
    return spool_open(&options, &spool, error) == SPOOL_OK ? spool : NULL;
}

static void fill(struct spool *spool)
{
    const struct spool_segment_spec spec = {"schema", 6, "db.table"};
    struct spool_range range = {1, 0, 3};
    struct spool_seal seal = {
        .batch = 1, .segment = 1, .ranges = &range, .range_count = 1, .token = "t", .rows = 3};
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
    struct spool_dead letter = {.stream = "s", .origin = 1, .record = "bad", .record_size = 3};
    struct spool_stream *stream = NULL;
    struct spool_error error;
    uint32_t origin;
    size_t added;

    assert(spool_stream_open(spool, "s", &stream, &error) == SPOOL_OK);
    assert(spool_stream_configure(stream, &spec, &error) == SPOOL_OK);
    assert(spool_origin(spool, "o", 0, &origin, NULL, &error) == SPOOL_OK);
    for (int i = 0; i < BLOCKS; i++) {
        struct spool_block b = {.origin = origin,
                                .rows = payload_size[i] ? 3 : 0,
                                .flags = SPOOL_BLOCK_NATIVE,
                                .first_offset = 3 * i,
                                .last_offset = 3 * i + 2,
                                .raw_bytes = payload_size[i] * 3,
                                .frames = payload[i],
                                .frames_size = payload_size[i]};
        struct spool_block_ref ref;
        for (size_t k = 0; k < payload_size[i]; k++)
            payload[i][k] = (uint8_t)(k * 7 + (size_t)i);
        assert(spool_stream_append(stream, &b, 1, &ref, &added, &error) == SPOOL_OK);
    }
    seal.stream = change.stream = spool_stream_id(stream);
    assert(spool_commit(spool, &change, 1, &error) == SPOOL_OK);
    for (letter.offset = 0; letter.offset < 4; letter.offset++)
        assert(spool_dead_put(spool, &letter, 1, &added, &error) == SPOOL_OK);
}

static void make(void)
{
    static const char *const names[FILES] = {"streams/s/000000000001.seg", "meta.mdb", "dead.mdb"};
    const char *base = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    struct spool_error error;
    struct spool *spool;
    struct stat st;

    snprintf(directory, sizeof(directory), "%s/fuzz-spool-XXXXXX", base);
    if (!mkdtemp(directory))
        abort();
    atexit(remove_directory);
    spool = open_spool(&error);
    assert(spool);
    fill(spool);
    spool_close(spool);
    for (int i = 0; i < FILES; i++) {
        FILE *f;
        snprintf(files[i].path, sizeof(files[i].path), "%s/%s", directory, names[i]);
        assert(stat(files[i].path, &st) == 0);
        files[i].size = (size_t)st.st_size;
        files[i].bytes = malloc(files[i].size);
        f = fopen(files[i].path, "r");
        assert(f && files[i].bytes);
        assert(fread(files[i].bytes, 1, files[i].size, f) == files[i].size);
        fclose(f);
    }
}

static void put(int which, const uint8_t *bytes, size_t size)
{
    int fd = open(files[which].path, O_WRONLY | O_CREAT, 0600);
    assert(fd >= 0);
    assert(pwrite(fd, bytes, size, 0) == (ssize_t)size && ftruncate(fd, (off_t)size) == 0);
    close(fd);
}

static void patch(int which, const uint8_t *data, size_t size, bool cut)
{
    size_t length = files[which].size;
    uint8_t *copy = malloc(length);

    assert(copy);
    memcpy(copy, files[which].bytes, length);
    while (size >= 5) {
        size_t at = ((size_t)data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16) % length;
        size_t n = data[3] % 16 + 1u;
        data += 4;
        size -= 4;
        if (n > size)
            n = size;
        if (n > length - at)
            n = length - at;
        memcpy(copy + at, data, n);
        data += n;
        size -= n;
    }
    if (cut && size >= 2)
        length -= ((size_t)data[0] << 8 | data[1]) % length;
    put(which, copy, length);
    free(copy);
}

static void read_stream(struct spool *spool)
{
    struct spool_stream *stream = NULL;
    struct spool_reader *reader = NULL;
    struct spool_block_ref *refs = NULL;
    struct spool_error error;
    size_t n = 0;

    if (spool_stream_open(spool, "s", &stream, &error) != SPOOL_OK)
        return;
    if (spool_segment_blocks(stream, 1, &refs, &n, &error) != SPOOL_OK ||
        spool_reader_open(stream, 1, &reader, &error) != SPOOL_OK)
        goto done;
    for (size_t i = 0; i < n; i++) {
        void *bytes = NULL;
        size_t size = 0, which = (size_t)refs[i].sequence - 1;
        if (spool_reader_block(reader, &refs[i], &bytes, &size, NULL, &error) == SPOOL_OK) {
            assert(which < BLOCKS && size == payload_size[which]);
            assert(size == 0 || memcmp(bytes, payload[which], size) == 0);
        }
        free(bytes);
    }
done:
    spool_reader_close(reader);
    free(refs);
    spool_stream_close(stream);
}

static void check_known(struct spool *spool, struct spool_stream *stream,
                        const struct spool_block_ref *refs, size_t count)
{
    struct spool_error error;
    uint32_t fresh = 0;

    if (spool_origin(spool, "fresh", 0, &fresh, NULL, &error) != SPOOL_OK)
        return;
    for (size_t i = 0; i < count; i++) {
        assert(refs[i].sequence <= spool_stream_rebuilt_to(stream));
        assert(refs[i].origin != fresh);
    }
}

static void check_repaired(struct spool *spool)
{
    struct spool_stream *stream = NULL;
    struct spool_block_ref *refs = NULL;
    struct spool_salvage salvage = {0};
    struct spool_error error;
    size_t n = 0;

    if (spool_stream_open(spool, "s", &stream, &error) != SPOOL_OK)
        return;
    if (spool_segment_blocks(stream, 1, &refs, &n, &error) == SPOOL_OK)
        check_known(spool, stream, refs, n);
    else if (spool_segment_salvage(stream, 1, &salvage, &error) == SPOOL_OK)
        check_known(spool, stream, salvage.refs, salvage.count);
    spool_salvage_free(&salvage);
    free(refs);
    spool_stream_close(stream);
}

static void line_said(void *arg, const char *line)
{
    (void)arg;
    assert(line[0]);
}

/* What a repair keeps of the file that it replaced. */
static void remove_kept(void)
{
    struct dirent *entry;
    DIR *dir = opendir(directory);

    assert(dir);
    while ((entry = readdir(dir)))
        if (strstr(entry->d_name, ".old-"))
            assert(unlinkat(dirfd(dir), entry->d_name, 0) == 0);
    closedir(dir);
}

static int letter_seen(void *arg, const struct spool_dead *letter)
{
    (void)arg;
    assert(letter->stream && letter->reason && (letter->record || !letter->record_size));
    return 0;
}

static void problem_seen(void *arg, const struct spool_problem *problem)
{
    (void)arg;
    assert(problem->file && problem->kind[0] && problem->detail[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct spool_error error = {0};
    struct spool *spool;
    uint64_t problems = 0;
    bool repaired = false, wrong = false;

    if (!directory[0])
        make();
    if (size == 0)
        return 0;
    for (int i = 0; i < FILES; i++)
        put(i, files[i].bytes, files[i].size);
    patch(data[0] % FILES, data + 1, size - 1, data[0] & 0x80);
    if (data[0] & 0x40) {
        (void)unlink(files[1].path);
        repaired = spool_repair(directory, 0, line_said, NULL, &wrong, &error) == SPOOL_OK;
        assert(repaired ? wrong : error.text[0] != 0);
        remove_kept();
    }
    spool = open_spool(&error);
    if (!spool) {
        assert(error.text[0]);
        return 0;
    }
    if (repaired)
        check_repaired(spool);
    (void)spool_verify(spool, problem_seen, NULL, &problems, &error);
    read_stream(spool);
    (void)spool_dead_each(spool, NULL, letter_seen, NULL, &error);
    spool_close(spool);
    return 0;
}
