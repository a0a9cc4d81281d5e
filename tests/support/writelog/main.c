/* SPDX-License-Identifier: Apache-2.0 */
/*
 * writelog life DIR SEED STEPS       a life of a spool of its own; under preload_writelog.so
 * writelog check LOG DIR SEED TORN [FROM TO]
 *     cuts the log at each of its boundaries (or those from FROM on, below TO), TORN + 2 ways before
 *     it and one behind it, and opens what is left in DIR, which is emptied each time. Prints
 *     {"boundaries","cuts"}; the first that is wrong, and exit 1.
 * writelog after LOG DIR             the spool in DIR as the life left it that wrote LOG
 * writelog daemon LOG DIR SEED TORN [FROM TO]
 *     the same for the log of a spoold: what is left verifies, and holds as acknowledged all that
 *     was committed to Kafka.
 */
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"
#include "model.h"

#define TOPICS 64

/* Next offsets committed, by "topic/partition". */
struct committed {
    char name[TOPICS][256];
    int64_t next[TOPICS];
    size_t count;
};

struct replay {
    const uint8_t *log;
    size_t size;
    const char *dir;
    uint64_t seed;
    unsigned torn;
    int daemon;
    struct disk *disk;
    struct model model;
    struct op next; /* begun and not done */
    struct committed committed;
    uint64_t boundary, cuts;
    char why[1024];
};

static char where[128]; /* for whoever sees an abort */

static void on_abort(int signal)
{
    ssize_t n = write(2, where, strlen(where));
    (void)n;
    (void)signal;
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw)
{
    (void)st;
    (void)kind;
    return ftw->level ? remove(path) : 0;
}

/* --- a daemon's spool ----------------------------------------------------------------------- */

static void first_problem(void *arg, const struct spool_problem *p)
{
    struct replay *r = arg;
    if (!*r->why)
        snprintf(r->why, sizeof(r->why), "verify: %s: %s: %s", p->file, p->kind, p->detail);
}

static int block_is_acked(const struct spool_block_ref *ref, const struct spool_range *acked,
                          size_t count)
{
    uint64_t rows = 0;
    int seen = 0;

    for (size_t i = 0; i < count; i++)
        if (acked[i].sequence == ref->sequence) {
            rows += acked[i].rows;
            seen = 1;
        }
    return seen && rows >= ref->rows;
}

/* Every block below the committed offset is acknowledged here. */
static int check_committed_segment(struct replay *r, struct spool *spool, struct spool_stream *s,
                                   uint64_t number, uint32_t origin, int64_t next)
{
    struct spool_block_ref *refs = NULL;
    struct spool_range *acked = NULL;
    struct spool_error error = {0};
    size_t count = 0, acked_count = 0;
    int rc = 0;

    if (spool_segment_blocks(s, number, &refs, &count, &error) != SPOOL_OK ||
        spool_acked(spool, spool_stream_id(s), number, &acked, &acked_count, &error) != SPOOL_OK) {
        snprintf(r->why, sizeof(r->why), "segment %llu: %s", (unsigned long long)number,
                 error.text);
        rc = -1;
    }
    for (size_t i = 0; i < count && !rc; i++)
        if (refs[i].origin == origin && refs[i].last_offset < next &&
            !block_is_acked(&refs[i], acked, acked_count)) {
            snprintf(r->why, sizeof(r->why),
                     "offset %lld was committed, and the block to %lld is not acknowledged",
                     (long long)next, (long long)refs[i].last_offset);
            rc = -1;
        }
    free(refs);
    free(acked);
    return rc;
}

static int check_committed(struct replay *r, struct spool *spool, struct spool_stream *s)
{
    struct spool_segment_info *infos = NULL;
    struct spool_error error = {0};
    size_t count = 0;
    int rc = 0;

    if (spool_stream_segments(s, &infos, &count, &error) != SPOOL_OK)
        return -1;
    for (size_t i = 0; i < r->committed.count && !rc; i++) {
        char name[300];
        uint32_t origin = 0, epoch = 0;
        int64_t high = -1;
        snprintf(name, sizeof(name), "kafka/%s", r->committed.name[i]);
        if (spool_origin(spool, name, 0, &origin, &epoch, &error) != SPOOL_OK)
            rc = -1;
        (void)spool_stream_high(s, origin, &high);
        if (!rc && high < r->committed.next[i] - 1) {
            snprintf(r->why, sizeof(r->why), "%s: %lld was committed, the spool knows %lld", name,
                     (long long)r->committed.next[i], (long long)high);
            rc = -1;
        }
        for (size_t k = 0; k < count && !rc; k++)
            rc =
                check_committed_segment(r, spool, s, infos[k].number, origin, r->committed.next[i]);
    }
    free(infos);
    return rc;
}

static int check_daemon(struct replay *r)
{
    const struct spool_options options = {.path = r->dir, .create = true};
    struct spool *spool = NULL;
    struct spool_stream *s = NULL;
    struct spool_error error = {0};
    uint64_t problems = 0;
    int rc;

    rc = spool_open(&options, &spool, &error);
    if (rc == SPOOL_OK)
        rc = spool_verify(spool, first_problem, r, &problems, &error);
    if (rc == SPOOL_OK)
        rc = spool_stream_open(spool, "s", &s, &error);
    if (rc != SPOOL_OK)
        snprintf(r->why, sizeof(r->why), "it does not open: %s", error.text);
    if (rc == SPOOL_OK && !problems)
        rc = check_committed(r, spool, s);
    spool_close(spool);
    return rc || problems ? -1 : 0;
}

/* --- cuts ----------------------------------------------------------------------------------- */

static void cut_and_check(struct replay *r, enum cut cut, const char *side)
{
    int rc;

    snprintf(where, sizeof(where), "writelog: at boundary %llu, %s\n",
             (unsigned long long)r->boundary, side);
    nftw(r->dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    disk_write(r->disk, r->dir, cut, &r->seed);
    r->why[0] = 0;
    rc = r->daemon ? check_daemon(r)
                   : check_spool(r->dir, &r->model, &r->next, r->why, sizeof(r->why));
    r->cuts++;
    if (!rc)
        return;
    printf("boundary %llu, %s, what was not synchronised: %s: %s (left in %s)\n",
           (unsigned long long)r->boundary, side,
           cut == CUT_NONE  ? "lost"
           : cut == CUT_ALL ? "there"
                            : "torn",
           r->why, r->dir);
    exit(1);
}

static void take_note(struct replay *r, const uint8_t *data, size_t size)
{
    struct op op;

    if (size != sizeof(op))
        abort();
    memcpy(&op, data, sizeof(op));
    r->next = op;
    if (!op.done)
        return;
    model_apply(&r->model, &op, op_steps(&op));
    r->next.kind = OP_NONE;
}

static void take_committed(struct committed *c, const char *name, int64_t next)
{
    size_t i = 0;

    while (i < c->count && strcmp(c->name[i], name) != 0)
        i++;
    if (i == TOPICS)
        abort();
    if (i == c->count) {
        snprintf(c->name[i], sizeof(c->name[i]), "%s", name);
        c->count++;
    }
    c->next[i] = next;
}

static void replay(struct replay *r, uint64_t from, uint64_t to)
{
    size_t at = 0;

    while (at + sizeof(struct log_record) <= r->size) {
        struct log_record record;
        const uint8_t *data = r->log + at + sizeof(record);
        int boundary, wanted;

        memcpy(&record, r->log + at, sizeof(record));
        at += sizeof(record) + record.size;
        if (at > r->size)
            break; /* the recorder was killed in the middle */
        boundary = disk_is_boundary(&record);
        wanted = boundary && r->boundary >= from && r->boundary < to;
        if (wanted) {
            disk_apply(r->disk, &record, data, 1);
            cut_and_check(r, CUT_NONE, "before it");
            cut_and_check(r, CUT_ALL, "before it");
            for (unsigned i = 0; i < r->torn; i++)
                cut_and_check(r, CUT_TORN, "before it");
            disk_forget_pending(r->disk);
        }
        if (record.kind == LOG_NOTE)
            take_note(r, data, record.size);
        else if (record.kind == LOG_COMMITTED)
            take_committed(&r->committed, (const char *)data, (int64_t)record.at);
        else
            disk_apply(r->disk, &record, data, 0);
        if (wanted)
            cut_and_check(r, CUT_NONE, "behind it");
        r->boundary += (uint64_t)boundary;
    }
}

/* The log in memory; exits where there is none. */
static const uint8_t *log_map(const char *path, size_t *size)
{
    struct stat st;
    void *log = MAP_FAILED;
    int fd = open(path, O_RDONLY);

    if (fd >= 0 && fstat(fd, &st) == 0 && st.st_size)
        log = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (log == MAP_FAILED) {
        fprintf(stderr, "writelog: %s cannot be read, or is empty\n", path);
        exit(2);
    }
    close(fd);
    *size = (size_t)st.st_size;
    return log;
}

static int check_main(int argc, char **argv)
{
    static struct replay r;

    r.log = log_map(argv[2], &r.size);
    r.dir = argv[3];
    r.seed = strtoull(argv[4], NULL, 10);
    r.torn = (unsigned)strtoul(argv[5], NULL, 10);
    r.daemon = !strcmp(argv[1], "daemon");
    r.disk = disk_create();
    model_init(&r.model);
    signal(SIGABRT, on_abort);
    replay(&r, argc > 6 ? strtoull(argv[6], NULL, 10) : 0,
           argc > 7 ? strtoull(argv[7], NULL, 10) : UINT64_MAX);
    printf("{\"boundaries\": %llu, \"cuts\": %llu}\n", (unsigned long long)r.boundary,
           (unsigned long long)r.cuts);
    disk_free(r.disk);
    return 0;
}

static int after_main(char **argv)
{
    static struct replay r;

    r.log = log_map(argv[2], &r.size);
    r.disk = disk_create();
    model_init(&r.model);
    replay(&r, UINT64_MAX, UINT64_MAX);
    disk_free(r.disk);
    if (!check_spool(argv[3], &r.model, &r.next, r.why, sizeof(r.why)))
        return 0;
    printf("%s\n", r.why);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "after"))
        return after_main(argv);
    if (argc == 5 && !strcmp(argv[1], "life"))
        return life_run(argv[2], strtoull(argv[3], NULL, 10), (unsigned)strtoul(argv[4], NULL, 10));
    if (argc >= 6 && (!strcmp(argv[1], "check") || !strcmp(argv[1], "daemon")))
        return check_main(argc, argv);
    fprintf(stderr, "writelog life DIR SEED STEPS | check|daemon LOG DIR SEED TORN [FROM TO]\n");
    return 2;
}
