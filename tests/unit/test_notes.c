/* SPDX-License-Identifier: Apache-2.0 */
/* Notes of the spool that can't be read for a while, or not be written: what they promise holds. */
#include <dlfcn.h>
#include <lmdb.h>

#include "pipeline/hunt_int.h"
#include "pipeline_rig.h"

#define ROWS 100 /* offsets 0 to 99 */

static const struct kafka_committed nothing = {.offset = -1, .low = 0, .high = 1000};

/* --- the store ------------------------------------------------------------------------------ */

static const char *unread; /* what begins so is not read; NULL: all is */
static const char *unread_in = "meta.mdb";
static int unread_code;

static bool begins_with(const MDB_val *key, const char *text)
{
    return text && key->mv_size >= strlen(text) && !memcmp(key->mv_data, text, strlen(text));
}

int mdb_get(MDB_txn *txn, MDB_dbi dbi, MDB_val *key, MDB_val *data)
{
    __typeof__(&mdb_get) real = (__typeof__(real))dlsym(RTLD_NEXT, "mdb_get");
    const char *path = "";

    (void)mdb_env_get_path(mdb_txn_env(txn), &path);
    return begins_with(key, unread) && strstr(path, unread_in) ? unread_code
                                                               : real(txn, dbi, key, data);
}

static const char *unreadable; /* a file that no reader can look into; NULL: none */

int mdb_txn_begin(MDB_env *env, MDB_txn *parent, unsigned flags, MDB_txn **txn)
{
    __typeof__(&mdb_txn_begin) real = (__typeof__(real))dlsym(RTLD_NEXT, "mdb_txn_begin");
    const char *path = "";

    (void)mdb_env_get_path(env, &path);
    if (flags & MDB_RDONLY && unreadable && strstr(path, unreadable))
        return MDB_READERS_FULL;
    return real(env, parent, flags, txn);
}

static const char *unwritten;   /* what begins so is not written; NULL: all is */
static unsigned written_before; /* so many of them are */
static int unwritten_code;

int mdb_put(MDB_txn *txn, MDB_dbi dbi, MDB_val *key, MDB_val *data, unsigned flags)
{
    __typeof__(&mdb_put) real = (__typeof__(real))dlsym(RTLD_NEXT, "mdb_put");

    if (begins_with(key, unwritten) && !(written_before && written_before--))
        return unwritten_code;
    return real(txn, dbi, key, data, flags);
}

/* ENOSPC: as on a full disk; another code: as on a broken one. */
static void writes_fail(const char *key, unsigned after, int code)
{
    unwritten = key;
    written_before = after;
    unwritten_code = code;
}

static void writes_again(struct flow *f)
{
    unwritten = NULL;
    f->pipeline->meta_retry_at_ms = 0;
    meta_advance(f->pipeline);
    flow_run(f);
}

static void reads_fail(const char *key, int code)
{
    unread = key;
    unread_code = code;
}

static void reads_again(void)
{
    unread = NULL;
    unread_in = "meta.mdb";
}

/* --- its rig -------------------------------------------------------------------------------- */

/* A new spool with rows of a partition. */
static struct kafka_partition *open_with_rows(struct flow *f)
{
    struct kafka_partition *p;

    flow_open(f, make_directory());
    p = flow_partition(f, 0);
    assert_non_null(flow_assign(f, p, nothing));
    flow_take(f, p, 0, ROWS, false);
    flow_run(f);
    return p;
}

static struct kafka_committed by_another(int64_t offset)
{
    return (struct kafka_committed){.offset = offset, .metadata = "", .low = 0, .high = 1000};
}

static struct kafka_committed by_another_spoold(int64_t offset)
{
    return (struct kafka_committed){.offset = offset,
                                    .metadata = "spoold 00000000-0000-0000-0000-000000000000 7 0",
                                    .low = 0,
                                    .high = 1000};
}

/* The first origin's note of a kind begins so. */
static const char *of_origin(const struct flow *f, const char *kind)
{
    static char key[64];

    snprintf(key, sizeof(key), "%s%u/%u", kind, f->stream->id, f->stream->origins->id);
    return key;
}

/* Closes it; the path is the caller's. */
static char *flow_leave(struct flow *f)
{
    char *path = f->path;

    flow_close(f);
    return path;
}

static void put(struct flow *f, const char *key, const char *value)
{
    struct spool_change change = {
        .kind = SPOOL_CHANGE_PUT, .key = key, .value = value, .value_size = strlen(value)};

    check_ok(spool_commit(f->spool, &change, 1, &the_error));
}

/* The first origin's note of a kind. */
static void put_of_origin(struct flow *f, const char *kind, const char *value)
{
    put(f, of_origin(f, kind), value);
}

/* A start that ends with an error. */
static void does_not_start(char *path, const char *key, const char *why)
{
    struct flow f;

    reads_fail(key, EIO);
    assert_int_equal(flow_create(&f, path), SPOOL_E_IO);
    reads_again();
    assert_non_null(strstr(the_error.text, why));
    flow_close(&f);
}

static int all_is_well(void **state)
{
    (void)state;
    reads_again();
    unwritten = unreadable = NULL;
    flow_marks = flow_may_die = false;
    flow_type = "UInt64";
    flow_death[0] = 0;
    return 0;
}

/* --- of what segments hold ------------------------------------------------------------------ */

/* A segment of which that note can't be read waits, and is loaded once it can. */
static struct segment *loads_later(struct flow *f, const char *kind, const char *value)
{
    struct segment *g;
    char *path;

    (void)open_with_rows(f);
    put_of_origin(f, kind, value);
    path = flow_leave(f);
    reads_fail(kind, EIO);
    flow_open(f, path);
    g = f->stream->segments_first;
    assert_false(g->loaded);
    assert_int_equal(f->stream->eligible_rows, 0);
    assert_true(f->stream->load_retry_at_ms > 0 && f->stream->load_retry_at_ms < UINT64_MAX);
    reads_again();
    f->stream->load_retry_at_ms = 0;
    flow_run(f);
    assert_true(g->loaded);
    return g;
}

static void test_what_is_discarded(void **state)
{
    struct flow f;

    (void)state;
    (void)loads_later(&f, "discard/", "9223372036854775807");
    assert_int_equal(stream_spooled_rows(f.stream), 0);
    flow_remove(&f);
}

static void test_what_may_be_stored(void **state)
{
    struct flow f;

    (void)state;
    assert_true(loads_later(&f, "suspect/", "1")->first->suspect);
    flow_remove(&f);
}

static void test_what_can_be_told(void **state)
{
    struct flow f;

    (void)state;
    assert_int_equal(loads_later(&f, "told/", "50")->first->origin->told_from, 50);
    flow_remove(&f);
}

static void test_no_memory_for_what_is_discarded(void **state)
{
    struct flow f;
    char *path;

    (void)state;
    (void)open_with_rows(&f);
    path = flow_leave(&f);
    reads_fail("discard/", ENOMEM);
    flow_may_die = true;
    flow_open(&f, path);
    assert_non_null(strstr(flow_death, "out of memory"));
    assert_false(f.stream->segments_first->loaded);
    flow_remove(&f);
}

/* ... and what was lost of a damaged one is not noted as lost twice. */
static void test_what_was_salvaged(void **state)
{
    struct segment *g;
    char file[512];
    struct flow f;
    char *path;

    (void)state;
    (void)open_with_rows(&f);
    path = flow_leave(&f);
    snprintf(file, sizeof(file), "%s/streams/s/%012d.seg", path, 1);
    assert_int_equal(truncate(file, 0), 0);
    reads_fail("salvaged/", EIO);
    flow_open(&f, path);
    g = f.stream->segments_first;
    assert_false(g->loaded);
    reads_again();
    f.stream->load_retry_at_ms = 0;
    flow_run(&f);
    assert_true(!f.stream->segments_first || f.stream->segments_first->loaded);
    flow_remove(&f);
}

/* --- where a partition begins --------------------------------------------------------------- */

/* The partition is back while that note can't be read: it is not begun as if there were none. */
static void is_not_begun(struct flow *f, const char *key, struct kafka_committed committed)
{
    reads_fail(key, EIO);
    flow_may_die = true;
    flow_death[0] = 0;
    assert_null(flow_assign(f, flow_partition(f, 0), committed));
    reads_again();
    flow_may_die = false;
    assert_non_null(strstr(flow_death, "kafka/t/0"));
    assert_non_null(strstr(flow_death, "cannot read a note"));
}

/* ... and the next start goes on as this one would have. */
static void ends_instead(const char *key, struct kafka_committed committed, uint32_t epoch)
{
    struct origin *o;
    struct flow f;
    char *path;

    flow_marks = true;
    flow_revoke(&f, open_with_rows(&f));
    is_not_begun(&f, key, committed);
    path = flow_leave(&f);
    flow_open(&f, path);
    o = flow_assign(&f, flow_partition(&f, 0), committed);
    assert_int_equal(o->epoch, epoch);
    flow_remove(&f);
}

static void test_a_partition_and_what_can_be_told(void **state)
{
    (void)state;
    ends_instead("told/", nothing, 1);
    ends_instead("told/", by_another(50), 2);
}

/* ... of the log before, where it may be this one's too. */
static void test_a_partition_and_what_could_be_told(void **state)
{
    struct kafka_partition *p;
    const char *key;
    struct flow f;

    (void)state;
    flow_marks = true;
    p = open_with_rows(&f);
    key = of_origin(&f, "told/");
    flow_revoke(&f, p);
    p = flow_partition(&f, 0);
    assert_non_null(flow_assign(&f, p, by_another_spoold(50)));
    flow_revoke(&f, p);
    is_not_begun(&f, key, by_another_spoold(60));
    flow_remove(&f);
}

/* Where the log before is looked for: it may have been passed, and is no mark of anything then. */
static void test_a_partition_and_what_is_discarded(void **state)
{
    static const struct kafka_committed shorter = {.offset = -1, .low = 0, .high = 10};

    (void)state;
    ends_instead("discard/", by_another_spoold(50), 2);
    ends_instead("discard/", shorter, 2);
}

/* --- what can be told is not written -------------------------------------------------------- */

static const struct kafka_committed by_one_that_was_told = {
    .offset = 50,
    .metadata = "spoold 00000000-0000-0000-0000-000000000000 7 400",
    .low = 0,
    .high = 1000};

/* A partition that waits for room is tried again within a second or so. */
static struct origin *begins_later(struct flow *f, const struct kafka_partition *p)
{
    const uint64_t deadline = clock_monotonic_ms() + 30000;

    assert_true(f->stream->holds[HOLD_NAMES]);
    writes_again(f);
    while (f->stream->holds[HOLD_NAMES] && clock_monotonic_ms() < deadline) {
        kafka_assign_retry(f->pipeline);
        flow_run(f);
    }
    assert_false(f->stream->holds[HOLD_NAMES]);
    assert_non_null(p->user);
    return p->user;
}

/* What is held of the partition's epoch, after a kill. */
static int64_t told_after_a_kill(struct flow *f, uint32_t epoch)
{
    struct origin *o;
    char *path = flow_leave(f);

    flow_open(f, path);
    for (o = f->stream->origins; o && o->epoch != epoch; o = o->next)
        continue;
    assert_non_null(o);
    return o->told_from;
}

static void take(struct flow *f, struct kafka_partition *p)
{
    flow_take(f, p, 50, ROWS, false);
    flow_run(f);
}

static void test_no_room_for_the_word_of_another(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    p = flow_partition(&f, 0);
    writes_fail("told/", 0, ENOSPC);
    assert_null(flow_assign(&f, p, by_one_that_was_told));
    assert_int_equal(begins_later(&f, p)->told_from, 400);
    take(&f, p);
    assert_int_equal(told_after_a_kill(&f, 1), 400);
    flow_remove(&f);
}

static void test_a_broken_disk_and_the_word_of_another(void **state)
{
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    writes_fail("told/", 0, EIO);
    flow_may_die = true;
    assert_null(flow_assign(&f, flow_partition(&f, 0), by_one_that_was_told));
    assert_non_null(strstr(flow_death, "kafka/t/0"));
    flow_remove(&f);
}

/* The partition is back after another spoold committed; the log is found to be the same, which is noted
   from that time on (as clock_monotonic_ms). */
static struct kafka_partition *found_the_same(struct flow *f, uint64_t noted_from_ms)
{
    struct kafka_partition *p;

    flow_marks = true;
    flow_revoke(f, open_with_rows(f));
    p = flow_partition(f, 0);
    assert_non_null(flow_assign(f, p, by_another_spoold(50)));
    assert_true(p->tracing);
    f->pipeline->meta_retry_at_ms = noted_from_ms;
    f->source->callbacks.traced(f->source->arg, p, ROWS);
    return p;
}

/* ... and gives it back; it comes once more. */
static struct kafka_partition *back(struct flow *f, struct kafka_partition *p)
{
    flow_revoke(f, p);
    return flow_partition(f, 0);
}

static void not_found(struct flow *f, struct kafka_partition *p)
{
    while (p->tracing)
        f->source->callbacks.new_log(f->source->arg, p, p->start);
    flow_run(f);
}

/* Nothing is read of a log that may be another one before the note says no more that it is the same. */
static void test_no_room_for_that_the_log_may_be_another(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    p = found_the_same(&f, 0);
    flow_run(&f);
    p = back(&f, p);
    writes_fail("told/", 0, ENOSPC);
    assert_null(flow_assign(&f, p, by_another_spoold(50)));
    (void)begins_later(&f, p);
    not_found(&f, p);
    take(&f, p);
    assert_int_equal(told_after_a_kill(&f, 2), INT64_MAX);
    flow_remove(&f);
}

/* ... also where that it is the same was on its way until then: it is noted, and nothing else. */
static void the_second_finds_no_room(bool gone_again)
{
    struct kafka_partition *p;
    struct flow f;

    p = found_the_same(&f, UINT64_MAX);
    p = back(&f, p);
    assert_null(flow_assign(&f, p, by_another_spoold(50)));
    if (gone_again) {
        p = back(&f, p);
        assert_null(flow_assign(&f, p, by_another_spoold(50)));
    }
    f.pipeline->meta_changes_max = 1;
    writes_fail("told/", 1, ENOSPC);
    f.pipeline->meta_retry_at_ms = 0;
    meta_advance(f.pipeline);
    flow_run(&f);
    assert_int_equal(written_before, 0);
    assert_true(f.stream->holds[HOLD_NOTES]);
    assert_null(p->user);
    writes_again(&f);
    assert_non_null(p->user);
    not_found(&f, p);
    take(&f, p);
    assert_int_equal(told_after_a_kill(&f, 2), INT64_MAX);
    flow_remove(&f);
}

static void test_no_room_behind_that_the_log_is_the_same(void **state)
{
    (void)state;
    the_second_finds_no_room(false);
    all_is_well(state);
    the_second_finds_no_room(true);
}

/* What is read meanwhile can be told, but for a kill; then it can't. */
static void test_no_room_for_that_the_log_is_the_same(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    for (int killed = 0; killed < 2; killed++) {
        writes_fail("told/", 0, ENOSPC);
        p = found_the_same(&f, 0);
        flow_run(&f);
        assert_true(f.stream->holds[HOLD_NOTES]);
        assert_int_equal(((struct origin *)p->user)->told_from, 0);
        take(&f, p);
        if (!killed)
            writes_again(&f);
        assert_int_equal(told_after_a_kill(&f, 2), killed ? INT64_MAX : 0);
        flow_remove(&f);
        all_is_well(state);
    }
}

/* A spool that was put back has no origin of an epoch between. That is looked for, and made, once the next
   epoch began; where there is no room for it, that one has begun all the same, and no other does. */
static void test_no_room_once_an_epoch_began(void **state)
{
    struct kafka_committed later = {.offset = 50, .low = 0, .high = 1000};
    struct kafka_partition *p;
    struct origin *old, *o;
    struct flow f;

    (void)state;
    p = open_with_rows(&f);
    later.metadata = flow_metadata(&f, 3);
    p = back(&f, p);
    old = flow_assign(&f, p, later);
    assert_int_equal(old->epoch, 3);
    writes_fail("", 2, ENOSPC); /* its number and its name are */
    f.source->callbacks.new_log(f.source->arg, p, 50);
    flow_run(&f);
    assert_true(old->superseded && old->owned);
    o = begins_later(&f, p);
    assert_int_equal(o->epoch, 4);
    assert_false(o->superseded);
    flow_remove(&f);
}

/* ... and where the partition goes meanwhile, the rows of the log that is over stay to be sent: a commit of
   whoever has it next is of the other one. */
static void test_gone_while_there_is_no_room_once_an_epoch_began(void **state)
{
    struct kafka_committed later = {.offset = 50, .low = 0, .high = 1000};
    struct kafka_partition *p;
    struct origin *old;
    struct flow f;

    (void)state;
    p = open_with_rows(&f);
    later.metadata = flow_metadata(&f, 5);
    p = back(&f, p);
    old = flow_assign(&f, p, later);
    take(&f, p); /* the epoch before this one is looked for, and made; one more is missing */
    assert_non_null(old->first);
    writes_fail("", 2, ENOSPC);
    f.source->callbacks.new_log(f.source->arg, p, 50);
    flow_run(&f);
    assert_true(f.stream->holds[HOLD_NAMES]);
    flow_revoke(&f, p);
    writes_again(&f);
    assert_true(old->superseded && old->owned);
    f.source->callbacks.told(f.source->arg, "t", 0, 1000, "");
    flow_run(&f);
    assert_int_equal(old->discard_to, -1);
    flow_remove(&f);
}

/* --- at the start --------------------------------------------------------------------------- */

static void test_the_members_name(void **state)
{
    struct flow f;
    char *path;

    (void)state;
    flow_open(&f, make_directory());
    put(&f, "kafka/member", "3 1");
    path = flow_leave(&f);
    does_not_start(path, "kafka/member", "cannot read a note");
    flow_open(&f, path);
    assert_int_equal(f.pipeline->member_number, 4);
    flow_remove(&f);
}

static void test_a_table(void **state)
{
    struct flow f;
    char *path;

    (void)state;
    flow_open(&f, make_directory());
    path = flow_leave(&f);
    does_not_start(path, "table/", "cannot read a note");
    flow_open(&f, path);
    flow_remove(&f);
}

static void test_a_hole(void **state)
{
    struct flow f;
    char key[64];
    char *path;

    (void)state;
    (void)open_with_rows(&f);
    put_of_origin(&f, "told/", "50");
    snprintf(key, sizeof(key), "hole/%u/%u/9/9/50", f.stream->id, f.stream->origins->id);
    put(&f, key, "149 50 0 0");
    path = flow_leave(&f);
    does_not_start(path, "told/", "cannot read a note");
    flow_open(&f, path);
    assert_int_equal(f.stream->origins->told_from, 50);
    flow_remove(&f);
}

/* A sealed batch's rows may have letters, which go before it is sent. */
static void test_how_many_letters_there_are(void **state)
{
    struct spool_dead letter = {.stream = "s", .reason_name = "", .reason = "", .column = ""};
    struct flow f;
    char *path;

    (void)state;
    (void)open_with_rows(&f);
    letter.origin = f.stream->origins->id;
    letter.origin_name = f.stream->origins->name;
    check_ok(spool_dead_put(f.spool, &letter, 1, NULL, &the_error));
    path = flow_leave(&f);
    unread_in = "dead.mdb";
    does_not_start(path, "s", "cannot count dead letters");
    flow_open(&f, path);
    assert_int_equal(f.stream->dead_letters, 1);
    flow_remove(&f);
}

/* --- letters that can't be counted ---------------------------------------------------------- */

/* A batch of rows from first on, as a restart finds it; its table's column is of type_now since. */
static struct batch *sealed(struct flow *f, int64_t first, const char *type_now)
{
    struct spool_range range = {.rows = ROWS};
    struct spool_seal seal = {.batch = 1,
                              .segment = 1,
                              .ranges = &range,
                              .range_count = 1,
                              .token = "token",
                              .attributes = "4\n1\nhttp://127.0.0.1:1\n\n\na=1\n",
                              .sealed_ms = 1,
                              .rows = ROWS};
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .batch = 1, .seal = &seal};
    struct kafka_partition *p;
    char *path;

    flow_open(f, make_directory());
    p = flow_partition(f, 0);
    assert_non_null(flow_assign(f, p, nothing));
    flow_take(f, p, first, ROWS, false);
    flow_run(f);
    change.stream = seal.stream = f->stream->id;
    seal.attributes_size = strlen(seal.attributes);
    range.sequence = f->stream->segments_first->first->ref.sequence;
    check_ok(spool_commit(f->spool, &change, 1, &the_error));
    path = flow_leave(f);
    flow_type = type_now;
    flow_open(f, path);
    assert_non_null(f->stream->batches);
    f->stream->batches->lettered = f->stream->batches->maybe_stored = false;
    return f->stream->batches;
}

static uint64_t letters_of(struct flow *f)
{
    uint64_t letters = 0, bytes = 0;

    check_ok(spool_dead_count(f->spool, "s", &letters, &bytes, &the_error));
    return letters;
}

/* The server refused that row. */
static void bury(struct flow *f, struct batch *b, uint64_t row)
{
    struct hunt *h = calloc(1, sizeof(*h));

    assert_non_null(h);
    h->batch = b;
    h->stream = f->stream;
    snprintf(h->reason, sizeof(h->reason), "refused");
    h->only = (struct bad_row){row, 6, h->reason};
    h->bad = &h->only;
    h->bad_count = 1;
    b->busy = true;
    hunt_bury(h);
    flow_run(f);
}

/* A row is a letter, and goes to the table no more. */
static void test_a_letter_that_is_not_counted(void **state)
{
    struct batch *b;
    struct flow f;

    (void)state;
    b = sealed(&f, 0, "UInt64");
    unreadable = "dead.mdb";
    bury(&f, b, 0);
    unreadable = NULL;
    assert_int_equal(letters_of(&f), 1);
    assert_int_equal(stream_spooled_rows(f.stream), ROWS - 1);
    assert_int_equal(f.stream->dead_letters, 1);
    flow_remove(&f);
}

static int is_letter_40(void *arg, const struct spool_dead *letter)
{
    (void)arg;
    assert_int_equal(letter->offset, 40);
    return SPOOL_OK;
}

/* The letter has that row's place, and all rows before and behind it are sealed anew. */
static void test_a_row_among_others_is_a_letter(void **state)
{
    struct batch *b;
    struct flow f;

    (void)state;
    b = sealed(&f, 0, "UInt64");
    bury(&f, b, 40);
    check_ok(spool_dead_each(f.spool, "s", is_letter_40, NULL, &the_error));
    assert_int_equal(letters_of(&f), 1);
    b = f.stream->batches;
    assert_non_null(b);
    assert_null(b->next);
    assert_int_equal(b->rows, ROWS - 1);
    assert_int_equal(b->part_count, 2);
    assert_int_equal(b->parts[0].rows, 40);
    assert_int_equal(b->parts[1].row, 41);
    flow_remove(&f);
}

/* Changes that belong together are one commit, however few may be in one for lack of room. */
static void test_what_is_changed_together_is_one_commit(void **state)
{
    const struct spool_change changes[] = {
        {.kind = SPOOL_CHANGE_PUT, .key = "test/1", .value = "1", .value_size = 1},
        {.kind = SPOOL_CHANGE_PUT, .key = "test/2", .value = "2", .value_size = 1}};
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    flow_run(&f);
    f.pipeline->meta_changes_max = 1;
    check_ok(meta_changes(f.pipeline, changes, 2, NULL, NULL, NULL));
    assert_true(f.pipeline->meta_running);
    assert_null(f.pipeline->meta_first); /* both are on the way */
    flow_run(&f);
    flow_remove(&f);
}

/* What found no room goes again in front of what came behind it. */
static void test_changes_keep_their_order(void **state)
{
    struct spool_change change = {.kind = SPOOL_CHANGE_PUT, .key = "test/1", .value_size = 1};
    void *value = NULL;
    size_t size = 0;
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    writes_fail("test/1", 0, ENOSPC);
    change.value = "1";
    check_ok(meta_change(f.pipeline, &change, NULL, NULL, NULL));
    change.value = "2";
    check_ok(meta_change(f.pipeline, &change, NULL, NULL, NULL));
    flow_run(&f);
    assert_false(meta_idle(f.pipeline));
    writes_again(&f);
    assert_true(meta_idle(f.pipeline));
    check_ok(note_read(f.spool, "test/1", &value, &size, &the_error));
    assert_int_equal(size, 1);
    assert_memory_equal(value, "2", 1);
    free(value);
    flow_remove(&f);
}

/* Some rows are letters, and others found no room: those letters go before the rows are tried again. */
static void test_letters_that_are_not_counted(void **state)
{
    struct batch *b;
    struct flow f;

    (void)state;
    b = sealed(&f, 256, "UInt8");
    f.stream_options.dead_letters_max_bytes = 64 * 150;
    unreadable = "dead.mdb";
    reencode_start(b, 0);
    flow_run(&f);
    unreadable = NULL;
    assert_int_equal(letters_of(&f), 64);
    assert_int_equal(stream_spooled_rows(f.stream), ROWS);
    assert_true(b->lettered);
    assert_true(f.stream->dead_letters > 0);
    unbury_start(b);
    flow_run(&f);
    assert_int_equal(letters_of(&f), 0);
    assert_int_equal(f.stream->dead_letters, 0);
    flow_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_what_is_discarded, all_is_well),
        cmocka_unit_test_teardown(test_what_may_be_stored, all_is_well),
        cmocka_unit_test_teardown(test_what_can_be_told, all_is_well),
        cmocka_unit_test_teardown(test_no_memory_for_what_is_discarded, all_is_well),
        cmocka_unit_test_teardown(test_what_was_salvaged, all_is_well),
        cmocka_unit_test_teardown(test_a_partition_and_what_can_be_told, all_is_well),
        cmocka_unit_test_teardown(test_a_partition_and_what_could_be_told, all_is_well),
        cmocka_unit_test_teardown(test_a_partition_and_what_is_discarded, all_is_well),
        cmocka_unit_test_teardown(test_no_room_for_the_word_of_another, all_is_well),
        cmocka_unit_test_teardown(test_a_broken_disk_and_the_word_of_another, all_is_well),
        cmocka_unit_test_teardown(test_no_room_for_that_the_log_may_be_another, all_is_well),
        cmocka_unit_test_teardown(test_no_room_behind_that_the_log_is_the_same, all_is_well),
        cmocka_unit_test_teardown(test_no_room_for_that_the_log_is_the_same, all_is_well),
        cmocka_unit_test_teardown(test_no_room_once_an_epoch_began, all_is_well),
        cmocka_unit_test_teardown(test_gone_while_there_is_no_room_once_an_epoch_began,
                                  all_is_well),
        cmocka_unit_test_teardown(test_the_members_name, all_is_well),
        cmocka_unit_test_teardown(test_a_table, all_is_well),
        cmocka_unit_test_teardown(test_a_hole, all_is_well),
        cmocka_unit_test_teardown(test_how_many_letters_there_are, all_is_well),
        cmocka_unit_test_teardown(test_a_letter_that_is_not_counted, all_is_well),
        cmocka_unit_test_teardown(test_a_row_among_others_is_a_letter, all_is_well),
        cmocka_unit_test_teardown(test_what_is_changed_together_is_one_commit, all_is_well),
        cmocka_unit_test_teardown(test_changes_keep_their_order, all_is_well),
        cmocka_unit_test_teardown(test_letters_that_are_not_counted, all_is_well),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
