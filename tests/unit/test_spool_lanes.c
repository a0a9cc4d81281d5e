/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The lanes of one spool at once, as the daemon's pool runs them: a stream lane that appends, lists
 * and removes, a meta lane that seals and acknowledges what it is handed, a dead lane, and readers.
 * Worth most under a thread sanitizer; here it must come to the right end.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "spool_data.h"

#define ROUNDS 120
#define BLOCKS 8
#define QUEUE  (ROUNDS + 1)

struct lanes {
    struct spool *spool;
    struct spool_stream *stream;
    uint32_t origin;
    /* What was appended, handed from the stream lane to the others. */
    struct spool_block_ref refs[QUEUE][BLOCKS];
    pthread_mutex_t lock;
    pthread_cond_t more;
    size_t appended;
    atomic_int failures;
};

static void expect(struct lanes *l, bool ok)
{
    if (!ok)
        atomic_fetch_add(&l->failures, 1);
}

/* The next round that was appended after the first taken ones; false: there is none any more. */
static bool take(struct lanes *l, size_t taken)
{
    pthread_mutex_lock(&l->lock);
    while (l->appended == taken && taken < ROUNDS)
        pthread_cond_wait(&l->more, &l->lock);
    pthread_mutex_unlock(&l->lock);
    return taken < ROUNDS;
}

static void *stream_lane(void *arg)
{
    struct lanes *l = arg;
    static uint8_t bytes[BLOCKS][30000];

    for (size_t round = 0; round < ROUNDS; round++) {
        struct spool_block blocks[BLOCKS];
        struct spool_segment_info *info = NULL;
        size_t appended = 0, count = 0;
        for (size_t i = 0; i < BLOCKS; i++) {
            int64_t first = (int64_t)(round * BLOCKS + i) * 10;
            fill_payload(bytes[i], sizeof(bytes[i]), l->origin, first);
            blocks[i] = (struct spool_block){.origin = l->origin,
                                             .rows = 10,
                                             .first_offset = first,
                                             .last_offset = first + 9,
                                             .frames = bytes[i],
                                             .frames_size = sizeof(bytes[i])};
        }
        expect(l, spool_stream_append(l->stream, blocks, BLOCKS, l->refs[round], &appended, NULL) ==
                      SPOOL_OK);
        pthread_mutex_lock(&l->lock);
        l->appended++;
        pthread_cond_broadcast(&l->more);
        pthread_mutex_unlock(&l->lock);
        expect(l, spool_stream_segments(l->stream, &info, &count, NULL) == SPOOL_OK);
        for (size_t i = 0; info && i < count; i++)
            if (!info[i].newest && info[i].acked_blocks == info[i].blocks)
                expect(l, spool_segment_remove(l->stream, info[i].number, NULL) == SPOOL_OK);
        free(info);
    }
    return NULL;
}

/* One batch per round and segment. */
static void seal_and_ack(struct lanes *l, const struct spool_block_ref *refs)
{
    for (size_t from = 0, to; from < BLOCKS; from = to) {
        struct spool_range ranges[BLOCKS];
        struct spool_seal seal = {.stream = spool_stream_id(l->stream),
                                  .segment = refs[from].segment,
                                  .ranges = ranges,
                                  .token = "t"};
        struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
        for (to = from; to < BLOCKS && refs[to].segment == refs[from].segment; to++)
            ranges[seal.range_count++] = (struct spool_range){refs[to].sequence, 0, 10};
        seal.rows = 10 * seal.range_count;
        expect(l, spool_next_batch(l->spool, seal.stream, &seal.batch, NULL) == SPOOL_OK);
        expect(l, spool_commit(l->spool, &change, 1, NULL) == SPOOL_OK);
        change = (struct spool_change){
            .kind = SPOOL_CHANGE_ACK, .stream = seal.stream, .batch = seal.batch};
        expect(l, spool_commit(l->spool, &change, 1, NULL) == SPOOL_OK);
    }
}

static void *meta_lane(void *arg)
{
    struct lanes *l = arg;
    char name[32];
    uint32_t id = 0;

    for (size_t taken = 0; take(l, taken); taken++) {
        seal_and_ack(l, l->refs[taken]);
        snprintf(name, sizeof(name), "other/%zu", taken);
        expect(l, spool_origin(l->spool, name, 0, &id, NULL, NULL) == SPOOL_OK);
    }
    return NULL;
}

static void *dead_lane(void *arg)
{
    struct lanes *l = arg;

    for (size_t taken = 0; take(l, taken); taken++) {
        struct spool_dead d = {.stream = "s",
                               .origin = l->origin,
                               .offset = (int64_t)taken,
                               .record = "bad",
                               .record_size = 3};
        size_t added = 0;
        expect(l, spool_dead_put(l->spool, &d, 1, &added, NULL) == SPOOL_OK && added == 1);
    }
    return NULL;
}

static void *reader_lane(void *arg)
{
    struct lanes *l = arg;

    for (size_t taken = 0; take(l, taken); taken++) {
        struct spool_reader *reader = NULL;
        struct spool_usage usage;
        char **names = NULL;
        size_t count = 0;
        int status = spool_reader_open(l->stream, l->refs[taken][0].segment, &reader, NULL);
        expect(l, status == SPOOL_OK || status == SPOOL_E_NOT_FOUND); /* removed meanwhile */
        if (reader)
            expect(l, spool_reader_verify(reader, &l->refs[taken][0], NULL) == SPOOL_OK);
        spool_reader_close(reader);
        expect(l, spool_usage_get(l->spool, &usage, NULL) == SPOOL_OK);
        expect(l, spool_stream_names(l->spool, &names, &count, NULL) == SPOOL_OK && count == 1);
        for (size_t i = 0; i < count; i++)
            free(names[i]);
        free(names);
    }
    return NULL;
}

static void test_lanes(void **state)
{
    void *(*const lanes[])(void *) = {stream_lane, meta_lane, dead_lane, reader_lane};
    char *path = make_directory();
    struct lanes *l = calloc(1, sizeof(*l));
    struct spool_segment_info *info;
    uint64_t letters = 0, bytes = 0;
    pthread_t threads[4];
    size_t count = 0;

    (void)state;
    assert_non_null(l);
    l->spool = open_spool(path, 1 << 20);
    l->stream = open_stream(l->spool, "s");
    l->origin = open_origin(l->spool, "o");
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->more, NULL);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, lanes[i], l), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&l->failures), 0);
    info = segments_of(l->stream, &count);
    assert_true(info[count - 1].number > 20);
    for (size_t i = 0; i < count; i++)
        assert_true(!info[i].damaged && info[i].acked_blocks == info[i].blocks);
    free(info);
    check_ok(spool_dead_count(l->spool, "s", &letters, &bytes, &the_error));
    assert_int_equal(letters, ROUNDS);
    check_verified(l->spool);
    spool_close(l->spool);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->more);
    free(l);
    remove_tree(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lanes),
    };
    return cmocka_run_group_tests_name("spool_lanes", tests, NULL, NULL);
}
