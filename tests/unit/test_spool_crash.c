/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A child uses a spool as a daemon does and tells through a pipe what it was promised; it is killed
 * with SIGKILL at a moment of chance (and, in builds with failpoints, at every named point); the
 * parent opens the spool and finds all of it, and nothing it cannot explain.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/failpoint.h"
#include "spool/spool_int.h"
#include "spool_data.h"

#define SEGMENT_BYTES (1u << 20)
#define ORIGINS       3
#define MODEL_MAX     20000
#define APPEND_MAX    4

enum told { TOLD_APPENDED = 1, TOLD_SEALED, TOLD_ACKED, TOLD_REMOVED, TOLD_DEAD };

struct message {
    enum told kind;
    struct spool_block_ref ref; /* appended */
    uint64_t batch, segment;
    struct spool_range ranges[8];
    size_t range_count;
    int64_t offset; /* dead */
};

static_assert(sizeof(struct message) < 4096, "a pipe writes it whole");

/* --- the child ------------------------------------------------------------------------------ */

enum block_state { WAITING, SEALED, ACKED };

struct child {
    struct spool *spool;
    struct spool_stream *stream;
    int out;
    uint64_t seed;
    uint32_t origins[ORIGINS];
    struct child_block {
        struct spool_block_ref ref;
        enum block_state state;
    } * blocks;
    size_t count;
    struct child_seal {
        uint64_t batch, segment;
        uint64_t first, last;
    } seals[64];
    size_t seal_count;
    int64_t dead;
};

static void need(bool ok)
{
    if (!ok)
        _exit(99);
}

static void tell(struct child *c, const struct message *m)
{
    need(write(c->out, m, sizeof(*m)) == (ssize_t)sizeof(*m));
}

static struct child_block *block_of(struct child *c, uint64_t sequence)
{
    for (size_t i = c->count; i-- > 0;)
        if (c->blocks[i].ref.sequence == sequence)
            return &c->blocks[i];
    return NULL;
}

static int found_seal(void *arg, const struct spool_seal *s)
{
    struct child *c = arg;
    need(c->seal_count < 64);
    c->seals[c->seal_count++] = (struct child_seal){s->batch, s->segment, s->ranges[0].sequence,
                                                    s->ranges[s->range_count - 1].sequence};
    for (size_t i = 0; i < s->range_count; i++)
        block_of(c, s->ranges[i].sequence)->state = SEALED;
    return 0;
}

static int found_letter(void *arg, const struct spool_dead *d)
{
    struct child *c = arg;
    c->dead = d->offset + 1;
    return 0;
}

static void child_recover(struct child *c)
{
    struct spool_segment_info *info = NULL;
    size_t segments = 0;

    need(spool_stream_segments(c->stream, &info, &segments, NULL) == SPOOL_OK);
    for (size_t i = 0; i < segments; i++) {
        struct spool_block_ref *refs = NULL;
        struct spool_range *ranges = NULL;
        size_t n = 0, acked = 0;
        need(spool_segment_blocks(c->stream, info[i].number, &refs, &n, NULL) == SPOOL_OK);
        need(c->count + n < MODEL_MAX);
        for (size_t k = 0; k < n; k++)
            c->blocks[c->count++] = (struct child_block){refs[k], WAITING};
        need(spool_acked(c->spool, spool_stream_id(c->stream), info[i].number, &ranges, &acked,
                         NULL) == SPOOL_OK);
        for (size_t k = 0; k < acked; k++)
            block_of(c, ranges[k].sequence)->state = ACKED;
        free(refs);
        free(ranges);
    }
    free(info);
    need(spool_seals(c->spool, spool_stream_id(c->stream), found_seal, c, NULL) == SPOOL_OK);
    need(spool_dead_each(c->spool, "s", found_letter, c, NULL) == SPOOL_OK);
}

static void child_append(struct child *c)
{
    size_t count = next_random(&c->seed) % APPEND_MAX + 1, appended = 0;
    struct spool_block blocks[APPEND_MAX];
    struct spool_block_ref refs[APPEND_MAX];
    int64_t high[ORIGINS];

    for (int i = 0; i < ORIGINS; i++) {
        high[i] = -1;
        (void)spool_stream_high(c->stream, c->origins[i], &high[i]);
    }
    for (size_t i = 0; i < count; i++) {
        size_t which = next_random(&c->seed) % ORIGINS, size = next_random(&c->seed) % 60000 + 1;
        uint8_t *bytes = malloc(size);
        need(bytes != NULL);
        fill_payload(bytes, size, c->origins[which], high[which] + 1);
        blocks[i] = (struct spool_block){.origin = c->origins[which],
                                         .rows = 5,
                                         .first_offset = high[which] + 1,
                                         .last_offset = high[which] + 5,
                                         .frames = bytes,
                                         .frames_size = size};
        high[which] += 5;
    }
    need(spool_stream_append(c->stream, blocks, count, refs, &appended, NULL) == SPOOL_OK);
    for (size_t i = 0; i < count; i++) {
        struct message m = {.kind = TOLD_APPENDED, .ref = refs[i]};
        free((void *)(uintptr_t)blocks[i].frames);
        tell(c, &m);
        need(c->count < MODEL_MAX);
        c->blocks[c->count++] = (struct child_block){refs[i], WAITING};
    }
}

static void child_seal(struct child *c)
{
    struct message m = {.kind = TOLD_SEALED};
    struct spool_seal seal = {.stream = spool_stream_id(c->stream), .ranges = m.ranges};
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
    char token[32];
    size_t n = 0;

    if (c->seal_count == 10)
        return;
    for (size_t i = 0; i < c->count && n < 8; i++) {
        if (c->blocks[i].state != WAITING || (n && c->blocks[i].ref.segment != seal.segment))
            continue;
        seal.segment = c->blocks[i].ref.segment;
        m.ranges[n++] = (struct spool_range){c->blocks[i].ref.sequence, 0, 5};
    }
    if (!n)
        return;
    m.range_count = seal.range_count = n;
    m.segment = seal.segment;
    seal.rows = 5 * n;
    need(spool_next_batch(c->spool, seal.stream, &seal.batch, NULL) == SPOOL_OK);
    snprintf(token, sizeof(token), "%llu", (unsigned long long)seal.batch);
    seal.token = token;
    need(spool_commit(c->spool, &change, 1, NULL) == SPOOL_OK);
    m.batch = seal.batch;
    tell(c, &m);
    (void)found_seal(c, &seal);
}

static void child_ack(struct child *c)
{
    struct spool_change change = {.kind = SPOOL_CHANGE_ACK, .stream = spool_stream_id(c->stream)};
    struct message m = {.kind = TOLD_ACKED};
    size_t which;

    if (!c->seal_count)
        return;
    which = next_random(&c->seed) % c->seal_count;
    m.batch = change.batch = c->seals[which].batch;
    need(spool_commit(c->spool, &change, 1, NULL) == SPOOL_OK);
    tell(c, &m);
    for (size_t i = 0; i < c->count; i++)
        if (c->blocks[i].state == SEALED && c->blocks[i].ref.sequence >= c->seals[which].first &&
            c->blocks[i].ref.sequence <= c->seals[which].last)
            c->blocks[i].state = ACKED;
    c->seals[which] = c->seals[--c->seal_count];
}

static void child_remove(struct child *c)
{
    struct spool_segment_info *info = NULL;
    size_t segments = 0, kept = 0;

    need(spool_stream_segments(c->stream, &info, &segments, NULL) == SPOOL_OK);
    for (size_t i = 0; i < segments; i++) {
        struct message m = {.kind = TOLD_REMOVED, .segment = info[i].number};
        const struct spool_change unlist = {.kind = SPOOL_CHANGE_UNLIST,
                                            .stream = spool_stream_id(c->stream),
                                            .segment = info[i].number};
        if (info[i].newest || info[i].acked_blocks < info[i].blocks)
            continue;
        need(spool_commit(c->spool, &unlist, 1, NULL) == SPOOL_OK);
        need(spool_segment_remove(c->stream, info[i].number, NULL) == SPOOL_OK);
        tell(c, &m);
        for (size_t k = kept = 0; k < c->count; k++)
            if (c->blocks[k].ref.segment != info[i].number)
                c->blocks[kept++] = c->blocks[k];
        c->count = kept;
    }
    free(info);
}

static void child_dead(struct child *c)
{
    struct spool_dead d = {.stream = "s",
                           .origin = c->origins[0],
                           .offset = c->dead,
                           .record = "bad",
                           .record_size = 3};
    struct message m = {.kind = TOLD_DEAD, .offset = c->dead++};
    size_t added = 0;

    need(spool_dead_put(c->spool, &d, 1, &added, NULL) == SPOOL_OK && added == 1);
    tell(c, &m);
}

/* Never returns: it is killed, or its pipe breaks, or a call fails (exit 99). */
static void child_main(const char *path, int out, uint64_t seed)
{
    const struct spool_options options = {
        .path = path, .segment_bytes = SEGMENT_BYTES, .create = true};
    const struct spool_segment_spec spec = {"schema", 6, "db.table"};
    struct child *c = calloc(1, sizeof(*c));
    char name[16];

    signal(SIGPIPE, SIG_DFL);
    need(c != NULL && (c->blocks = calloc(MODEL_MAX, sizeof(*c->blocks))) != NULL);
    c->out = out;
    c->seed = seed;
    need(spool_open(&options, &c->spool, NULL) == SPOOL_OK);
    need(spool_stream_open(c->spool, "s", &c->stream, NULL) == SPOOL_OK);
    need(spool_stream_configure(c->stream, &spec, NULL) == SPOOL_OK);
    for (int i = 0; i < ORIGINS; i++) {
        snprintf(name, sizeof(name), "o/%d", i);
        need(spool_origin(c->spool, name, 0, &c->origins[i], NULL, NULL) == SPOOL_OK);
    }
    child_recover(c);
    for (;;) {
        unsigned what = next_random(&c->seed) % 16;
        if (what < 7)
            child_append(c);
        else if (what < 10)
            child_seal(c);
        else if (what < 14)
            child_ack(c);
        else if (what < 15)
            child_remove(c);
        else
            child_dead(c);
    }
}

/* --- the parent's model --------------------------------------------------------------------- */

struct model_block {
    struct spool_block_ref ref;
    uint64_t batch;
    bool acked, seen, acked_there;
};

struct model {
    struct model_block *blocks;
    size_t count;
    uint64_t last_batch, last_sequence;
    uint64_t removed[MODEL_MAX / 10];
    size_t removed_count;
    int64_t dead; /* letters 0 .. dead - 1 were told */
    uint64_t kills[TOLD_DEAD + 1];
};

static void model_add(struct model *m, const struct message *t)
{
    switch (t->kind) {
    case TOLD_APPENDED:
        assert_true(m->count < MODEL_MAX);
        assert_true(t->ref.sequence > m->last_sequence);
        m->last_sequence = t->ref.sequence;
        m->blocks[m->count++] = (struct model_block){.ref = t->ref};
        break;
    case TOLD_SEALED:
        assert_true(t->batch > m->last_batch);
        m->last_batch = t->batch;
        for (size_t i = 0; i < m->count; i++)
            for (size_t k = 0; k < t->range_count; k++)
                if (m->blocks[i].ref.sequence == t->ranges[k].sequence) {
                    assert_int_equal(m->blocks[i].batch, 0);
                    m->blocks[i].batch = t->batch;
                }
        break;
    case TOLD_ACKED:
        for (size_t i = 0; i < m->count; i++)
            if (m->blocks[i].batch == t->batch)
                m->blocks[i].acked = true;
        break;
    case TOLD_REMOVED:
        m->removed[m->removed_count++] = t->segment;
        break;
    case TOLD_DEAD:
        assert_int_equal(t->offset, m->dead);
        m->dead++;
        break;
    }
}

struct check {
    struct model *m;
    size_t found;
    int64_t letters;
};

static int check_seal(void *arg, const struct spool_seal *s)
{
    struct check *k = arg;

    for (size_t r = 0; r < s->range_count; r++) {
        struct model_block *b = NULL;
        for (size_t i = 0; i < k->m->count; i++)
            if (k->m->blocks[i].ref.sequence == s->ranges[r].sequence)
                b = &k->m->blocks[i];
        assert_non_null(b);
        assert_true(b->seen && !b->acked && !b->acked_there);
        /* Told, or the one that was being made. */
        assert_true(b->batch == s->batch || (!b->batch && s->batch > k->m->last_batch));
        b->batch = s->batch;
    }
    k->found += s->range_count;
    return 0;
}

static int check_letter(void *arg, const struct spool_dead *d)
{
    struct check *k = arg;
    assert_int_equal(d->offset, k->letters);
    k->letters++;
    return 0;
}

static void check_segment(struct model *m, struct spool *spool, struct spool_stream *stream,
                          uint64_t number)
{
    struct spool_block_ref *refs = NULL;
    struct spool_range *ranges = NULL;
    size_t n = 0, acked = 0, unknown = 0;

    for (size_t i = 0; i < m->removed_count; i++)
        assert_int_not_equal(m->removed[i], number);
    check_ok(spool_segment_blocks(stream, number, &refs, &n, &the_error));
    check_ok(spool_acked(spool, spool_stream_id(stream), number, &ranges, &acked, &the_error));
    for (size_t i = 0; i < n; i++) {
        struct model_block *b = NULL;
        for (size_t k = m->count; k-- > 0 && !b;)
            if (m->blocks[k].ref.sequence == refs[i].sequence)
                b = &m->blocks[k];
        if (!b) { /* an append that was not told yet */
            assert_true(refs[i].sequence > m->last_sequence && ++unknown <= APPEND_MAX);
            assert_true(m->count < MODEL_MAX);
            b = &m->blocks[m->count++];
            *b = (struct model_block){.ref = refs[i]};
        }
        assert_memory_equal(&b->ref, &refs[i], sizeof(refs[i]));
        check_block(stream, &refs[i]);
        b->seen = true;
        for (size_t k = 0; k < acked; k++)
            if (ranges[k].sequence == refs[i].sequence) {
                assert_true(ranges[k].row == 0 && ranges[k].rows == 5);
                b->acked_there = true;
            }
    }
    free(refs);
    free(ranges);
}

static void check_spool(struct model *m, const char *path)
{
    struct spool *spool = open_spool(path, SEGMENT_BYTES);
    struct spool_stream *stream = open_stream(spool, "s");
    struct spool_segment_info *info;
    struct check k = {.m = m};
    size_t segments = 0, unacked = 0;
    uint64_t in_flight_batch = 0, batch = 0;

    info = segments_of(stream, &segments);
    for (size_t i = 0; i < m->count; i++)
        m->blocks[i].seen = m->blocks[i].acked_there = false;
    for (size_t i = 0; i < segments; i++) {
        assert_false(info[i].damaged);
        check_segment(m, spool, stream, info[i].number);
    }
    free(info);
    check_ok(spool_seals(spool, spool_stream_id(stream), check_seal, &k, &the_error));
    for (size_t i = 0; i < m->count; i++) {
        struct model_block *b = &m->blocks[i];
        int64_t high = 0;
        check_ok(spool_stream_high(stream, b->ref.origin, &high));
        assert_true(high >= b->ref.last_offset);
        if (!b->seen)
            assert_true(b->acked); /* removed: only what was acknowledged may be gone */
        if (b->acked)
            assert_true(b->acked_there || !b->seen);
        if (b->acked_there && !b->acked) { /* the acknowledgement that was not told yet */
            assert_true(b->batch && (!in_flight_batch || in_flight_batch == b->batch));
            in_flight_batch = b->batch;
            b->acked = true;
        }
        unacked += b->batch && !b->acked;
        if (b->ref.sequence > m->last_sequence)
            m->last_sequence = b->ref.sequence;
        if (b->batch > m->last_batch)
            m->last_batch = b->batch;
    }
    assert_int_equal(unacked, k.found); /* every seal that was told is there, and whole */
    check_ok(spool_next_batch(spool, spool_stream_id(stream), &batch, &the_error));
    assert_true(batch > m->last_batch);
    check_ok(spool_dead_each(spool, "s", check_letter, &k, &the_error));
    assert_true(k.letters == m->dead || k.letters == m->dead + 1);
    m->dead = k.letters;
    check_verified(spool);
    spool_close(spool);
}

/* One life of a child: killed by itself, or after having told so many things (0: let it run). */
static int one_life(struct model *m, const char *path, uint64_t seed, size_t messages)
{
    struct message t = {0};
    int pipes[2], status = 0;
    ssize_t got;
    pid_t pid;

    assert_int_equal(pipe(pipes), 0);
    fflush(NULL);
    pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        close(pipes[0]);
        child_main(path, pipes[1], seed);
    }
    close(pipes[1]);
    while ((got = read(pipes[0], &t, sizeof(t))) == (ssize_t)sizeof(t)) {
        model_add(m, &t);
        if (messages && !--messages)
            kill(pid, SIGKILL);
    }
    assert_int_equal(got, 0);
    close(pipes[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    if (t.kind)
        m->kills[t.kind]++;
    return status;
}

static struct model *model_make(void)
{
    struct model *m = calloc(1, sizeof(*m));
    assert_non_null(m);
    m->blocks = calloc(MODEL_MAX, sizeof(*m->blocks));
    assert_non_null(m->blocks);
    return m;
}

static void test_killed_at_random(void **state)
{
    char *path = make_directory();
    struct model *m = model_make();
    uint64_t seed = 4242;
    int rounds = getenv("TEST_LONG") ? 200 : 30;

    (void)state;
    for (int round = 0; round < rounds; round++) {
        one_life(m, path, seed + (uint64_t)round, next_random(&seed) % 60 + 1);
        check_spool(m, path);
    }
    print_message("%zu blocks, %zu segments removed, %llu batches, %lld letters\n", m->count,
                  m->removed_count, (unsigned long long)m->last_batch, (long long)m->dead);
    assert_true(m->removed_count > 3 && m->last_batch > 20 && m->dead > 5);
    free(m->blocks);
    free(m);
    remove_tree(path);
    free(path);
}

#ifdef SPOOLD_FAILPOINTS
/* Each named point of the spool, at its first, second and fifth passage. */
static void test_killed_at_points(void **state)
{
    static const char *const points[] = {
        FP_DEAD_BEFORE_COMMIT,  FP_DEAD_AFTER_COMMIT, FP_APPEND_BEFORE_COMMIT,
        FP_APPEND_AFTER_COMMIT, FP_ROLL_AFTER_CREATE, FP_SEAL_BEFORE_COMMIT,
        FP_SEAL_AFTER_COMMIT,   FP_ACK_BEFORE_COMMIT, FP_ACK_AFTER_COMMIT,
        FP_UNLINK_BEFORE,       FP_UNLINK_AFTER};
    char *path = make_directory(), setting[64];
    struct model *m = model_make();
    uint64_t seed = 1;

    (void)state;
    for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
        for (int at = 1; at <= 5; at += at) {
            snprintf(setting, sizeof(setting), "%s=kill@%d", points[i], at);
            setenv("SPOOLD_FAILPOINTS", setting, 1);
            one_life(m, path, seed++, 0);
            unsetenv("SPOOLD_FAILPOINTS");
            check_spool(m, path);
        }
    free(m->blocks);
    free(m);
    remove_tree(path);
    free(path);
}
#endif

/* --- disks that are full or broken ---------------------------------------------------------- */

/* Appends until there is no room; what was promised before stays. Gives the number of blocks. */
static size_t fill(struct spool_stream *stream, uint32_t origin)
{
    for (size_t n = 0;; n++) {
        struct spool_block b = next_block(stream, origin, 1, 100000);
        struct spool_block_ref ref;
        size_t appended = 0;
        int status = spool_stream_append(stream, &b, 1, &ref, &appended, &the_error);
        free((void *)(uintptr_t)b.frames);
        if (status == SPOOL_OK)
            continue;
        if (status != SPOOL_E_FULL)
            fail_msg("%s", the_error.text);
        assert_int_equal(appended, 0);
        return n;
    }
}

/* Seals, acknowledges and removes all but the newest segment, on the full disk. */
static void drain(struct spool *spool, struct spool_stream *stream)
{
    struct spool_segment_info *info;
    struct spool_block_ref *refs = NULL;
    size_t segments = 0, n = 0;

    info = segments_of(stream, &segments);
    for (size_t i = 0; i + 1 < segments; i++) {
        struct spool_seal seal = {
            .stream = spool_stream_id(stream), .segment = info[i].number, .token = "t"};
        struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .seal = &seal};
        struct spool_range *ranges;
        check_ok(spool_segment_blocks(stream, info[i].number, &refs, &n, &the_error));
        ranges = calloc(n + 1, sizeof(*ranges));
        assert_non_null(ranges);
        for (size_t k = 0; k < n; k++) {
            check_block(stream, &refs[k]);
            ranges[k] = (struct spool_range){refs[k].sequence, 0, refs[k].rows};
            seal.rows += refs[k].rows;
        }
        seal.ranges = ranges;
        seal.range_count = n;
        check_ok(spool_next_batch(spool, seal.stream, &seal.batch, &the_error));
        check_ok(spool_commit(spool, &change, 1, &the_error));
        change = (struct spool_change){
            .kind = SPOOL_CHANGE_ACK, .stream = seal.stream, .batch = seal.batch};
        check_ok(spool_commit(spool, &change, 1, &the_error));
        change = (struct spool_change){
            .kind = SPOOL_CHANGE_UNLIST, .stream = seal.stream, .segment = info[i].number};
        check_ok(spool_commit(spool, &change, 1, &the_error));
        check_ok(spool_segment_remove(stream, info[i].number, &the_error));
        free(ranges);
        free(refs);
    }
    free(info);
}

static void test_disk_full(void **state)
{
    char *path = make_directory();
    struct spool *spool;
    struct spool_stream *stream;
    uint32_t origin;
    size_t first, again;

    (void)state;
    if (mount("spool-test", path, "tmpfs", 0, "size=14m") < 0) {
        print_message("no right to mount a small file system\n");
        remove_tree(path);
        free(path);
        skip();
    }
    spool = open_spool(path, SEGMENT_BYTES);
    stream = open_stream(spool, "s");
    origin = open_origin(spool, "o");
    first = fill(stream, origin);
    assert_true(first > 30);
    for (int round = 0; round < 5; round++) {
        assert_int_equal(fill(stream, origin), 0); /* still full, still alive */
        check_verified(spool);
        drain(spool, stream);
        again = fill(stream, origin);
        assert_true(again + 20 > first);
        if (round % 2) {
            spool_close(spool);
            spool = open_spool(path, SEGMENT_BYTES);
            stream = open_stream(spool, "s");
        }
    }
    check_verified(spool);
    spool_close(spool);
    assert_int_equal(umount(path), 0);
    remove_tree(path);
    free(path);
}

/* A limit that statvfs does not show: LMDB sees a short write only. */
static void test_size_limit(void **state)
{
    char *path = make_directory();
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin = open_origin(spool, "o");
    struct rlimit old, limit;
    size_t n;

    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    limit = old;
    limit.rlim_cur = (2 << 20) + 1000;
    append_one(stream, origin, 1, 100);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    n = fill(stream, origin);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_true(n > 10);
    append_one(stream, origin, 1, 100);
    check_verified(spool);
    spool_close(spool);
    remove_tree(path);
    free(path);
}

/* A write that fails on a disk with room: the process must stop promising, and a restart finds
   what was promised before. */
static void test_disk_broken(void **state)
{
    char *path = make_directory(), *file = NULL;
    struct spool *spool = open_spool(path, 0);
    struct spool_stream *stream = open_stream(spool, "s");
    uint32_t origin = open_origin(spool, "o"), id = 0;
    struct spool_block_ref ref = append_one(stream, origin, 1, 100), out;
    struct spool_block b = next_block(stream, origin, 1, 5000);
    int fd = -1, read_only;
    size_t n = 0;

    (void)state;
    assert_true(asprintf(&file, "%s/streams/s/000000000001.seg", path) > 0);
    assert_int_equal(mdb_env_get_fd(stream->env, &fd), 0);
    read_only = open(file, O_RDONLY);
    assert_true(read_only >= 0 && dup2(read_only, fd) == fd);
    close(read_only);
    assert_int_equal(spool_stream_append(stream, &b, 1, &out, &n, &the_error), SPOOL_E_FATAL);
    assert_int_equal(spool_stream_append(stream, &b, 1, &out, &n, &the_error), SPOOL_E_FATAL);
    assert_int_equal(spool_commit(spool, NULL, 0, &the_error), SPOOL_E_FATAL);
    assert_int_equal(spool_origin(spool, "new", 0, &id, NULL, &the_error), SPOOL_E_FATAL);
    check_block(stream, &ref); /* reading goes on */
    spool_close(spool);
    spool = open_spool(path, 0);
    stream = open_stream(spool, "s");
    check_block(stream, &ref);
    check_ok(spool_stream_append(stream, &b, 1, &out, &n, &the_error));
    assert_int_equal(out.sequence, 2);
    check_verified(spool);
    spool_close(spool);
    free((void *)(uintptr_t)b.frames);
    free(file);
    remove_tree(path);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_killed_at_random),
#ifdef SPOOLD_FAILPOINTS
        cmocka_unit_test(test_killed_at_points),
#endif
        cmocka_unit_test(test_disk_full),        cmocka_unit_test(test_size_limit),
        cmocka_unit_test(test_disk_broken),
    };
    return cmocka_run_group_tests_name("spool_crash", tests, NULL, NULL);
}
