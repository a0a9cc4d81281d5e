/* SPDX-License-Identifier: Apache-2.0 */
/* What changes while a batch is sealed, or its bytes are read and checked, before it is sent. */
#include <dlfcn.h>
#include <errno.h>
#include <lmdb.h>

#include "pipeline_rig.h"
#include "sink/clickhouse_int.h"

#define ROWS     100
#define STARTED  1700000000000 /* of the server, by its own clock */
#define ENDPOINT 0

static const struct kafka_committed nothing = {.offset = -1, .low = 0, .high = 1000};

static bool no_room; /* as on a full disk */

int mdb_put(MDB_txn *txn, MDB_dbi dbi, MDB_val *key, MDB_val *data, unsigned flags)
{
    __typeof__(&mdb_put) real = (__typeof__(real))dlsym(RTLD_NEXT, "mdb_put");

    return no_room ? ENOSPC : real(txn, dbi, key, data, flags);
}

/* The endpoint answers, and has the stream's table, as a description of it says. */
static void table_is_known(struct flow *f)
{
    struct target *t = f->stream->targets;
    struct table_description *d = calloc(1, sizeof(*d));
    struct endpoint *e = &f->pipeline->clickhouse->endpoints[ENDPOINT];
    static const char *const columns[][2] = {
        {"id", "UInt64"}, {"topic", "String"}, {"part", "Int32"}, {"off", "Int64"}};
    const size_t count = flow_facts ? 4 : 1;

    assert_non_null(d);
    d->columns = calloc(count, sizeof(*d->columns));
    assert_non_null(d->columns);
    *d = (struct table_description){.exists = true,
                                    .insertable = true,
                                    .engine = strdup("MergeTree"),
                                    .columns = d->columns,
                                    .column_count = count,
                                    .deduplicates = true,
                                    .dedup_window_entries = 1000,
                                    .partitions_per_insert = 1,
                                    .partitions_per_insert_max = 1};
    for (size_t i = 0; i < count; i++)
        d->columns[i] = (struct table_column){.name = strdup(columns[i][0]),
                                              .type = strdup(columns[i][1]),
                                              .default_kind = strdup(""),
                                              .default_expression = strdup("")};
    e->state = ENDPOINT_UP;
    e->start_ms = STARTED;
    t->state = TARGET_OK;
    t->asked = t->endpoint = ENDPOINT;
    t->description = d;
    t->generation = 1;
}

#define OTHER_BOOT "00000000-0000-0000-0000-000000000000"

static bool may_be_stored; /* its rows, under another token */
static bool encoded_anew;  /* its rows are to be sent so */

/* A batch of all there is, sealed for that endpoint so long ago, that may be sent; as a restart finds it. */
static struct batch *sealed(struct flow *f, bool maybe_stored, const char *boot_id, int64_t ago_ms)
{
    char attributes[4000], key[ORIGIN_NOTE_KEY_SIZE], value[ORIGIN_NOTE_VALUE_SIZE];
    struct spool_change note;
    struct kafka_partition *p;
    struct spool_range range;
    struct spool_seal seal = {.batch = 1,
                              .segment = 1,
                              .ranges = &range,
                              .range_count = 1,
                              .token = "token",
                              .attributes = attributes,
                              .sealed_ms = 1,
                              .rows = ROWS};
    struct spool_change change = {.kind = SPOOL_CHANGE_SEAL, .batch = 1, .seal = &seal};
    struct batch *b;

    flow_open(f, make_directory());
    p = flow_partition(f, 0);
    assert_non_null(flow_assign(f, p, nothing));
    flow_take(f, p, 0, ROWS, false);
    flow_run(f);
    change.stream = seal.stream = f->stream->id;
    seal.attributes_size = (size_t)snprintf(
        attributes, sizeof(attributes), "4\n1\nhttp://127.0.0.1:1\n%s %lld %lld\n\na=1\n",
        boot_id ? boot_id : f->pipeline->boot_id, (long long)STARTED,
        (long long)clock_boot_ms() - (long long)ago_ms);
    if (encoded_anew) {
        const struct buf *schema = &f->stream->schema->serialized;
        assert_true(seal.attributes_size + schema->len <= sizeof(attributes));
        memcpy(attributes + seal.attributes_size, schema->data, schema->len);
        seal.attributes_size += schema->len;
    }
    if (may_be_stored) {
        note = origin_note(f->stream, NOTE_SUSPECT, f->stream->origins->id, 1, key, value);
        check_ok(spool_commit(f->spool, &note, 1, &the_error));
    }
    range = (struct spool_range){f->stream->segments_first->first->ref.sequence, 0, ROWS};
    check_ok(spool_commit(f->spool, &change, 1, &the_error));
    flow_reopen(f);
    b = f->stream->batches;
    assert_non_null(b);
    f->source->assigned_once = true;
    assert_non_null(flow_assign(f, flow_partition(f, 0), nothing)); /* it is ours again */
    table_is_known(f);
    b->maybe_stored = maybe_stored;
    b->sent_to = ENDPOINT;
    b->retry_at_ms = 0;
    assert_int_equal(b->endpoint, ENDPOINT);
    return b;
}

/* One that was sealed a moment ago, and whose bytes are being checked. */
static struct batch *checked(struct flow *f, bool maybe_stored)
{
    struct batch *b = sealed(f, maybe_stored, NULL, 0);

    f->pipeline->started = true;
    batches_advance(f->stream);
    f->pipeline->started = false; /* what comes of it, and nothing else */
    assert_int_equal(b->state, BATCH_CHECKING);
    return b;
}

static void is_sent(struct flow *f, const struct batch *b, bool sent)
{
    while (b->state == BATCH_CHECKING)
        uv_run(&f->loop, UV_RUN_ONCE);
    assert_int_equal(b->attempts, sent);
    assert_int_equal(b->state, sent ? BATCH_SENDING : BATCH_WAITING);
    flow_remove(f);
}

static void test_nothing_changes(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    b = checked(&f, false);
    is_sent(&f, b, true);
    b = checked(&f, true);
    is_sent(&f, b, true);
}

/* As its endpoint's return does: the table may be another. */
static void test_the_table_is_in_doubt(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    b = checked(&f, false);
    target_forget(f.stream, ENDPOINT);
    is_sent(&f, b, false);
    b = checked(&f, true);
    target_forget(f.stream, ENDPOINT);
    is_sent(&f, b, false);
}

/* What may be stored goes under a token of which the server knows nothing any more. */
static void test_the_server_started_again(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    b = checked(&f, true);
    f.pipeline->clickhouse->endpoints[ENDPOINT].start_ms += 5000;
    is_sent(&f, b, false);
}

static void test_the_endpoint_is_down(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    b = checked(&f, false);
    f.pipeline->clickhouse->endpoints[ENDPOINT].state = ENDPOINT_DOWN;
    is_sent(&f, b, false);
}

/* The rows were sealed for one server, and must not go to another: a restart would ask the first. */
static void test_another_endpoint_takes_its_place(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    flow_endpoints = 2;
    for (int maybe_stored = 0; maybe_stored < 2; maybe_stored++) {
        b = checked(&f, maybe_stored);
        f.pipeline->clickhouse->endpoints[ENDPOINT].state = ENDPOINT_DOWN;
        f.pipeline->clickhouse->endpoints[1].state = ENDPOINT_UP;
        f.pipeline->clickhouse->endpoints[1].start_ms = STARTED;
        f.stream->targets->asked = f.stream->targets->endpoint = 1; /* which has such a table */
        is_sent(&f, b, false);
    }
    flow_endpoints = 1;
}

/* Another instance sends its rows from now on. */
static void test_its_partition_is_lost(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    b = checked(&f, false);
    flow_revoke(&f, b->parts[0].block->origin->partition);
    is_sent(&f, b, false);
}

/* Rows that may be in since an earlier life, or an insert of a block that was damaged: no token of theirs tells,
   and what takes them anew is asked about, or counts. */
static void test_rows_that_may_be_in_are_sealed_so(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    for (int suspect = 0; suspect < 2; suspect++) {
        flow_open(&f, make_directory());
        p = flow_partition(&f, 0);
        assert_non_null(flow_assign(&f, p, nothing));
        flow_read(&f, p, 0, ROWS);
        flow_read(&f, p, ROWS, ROWS);
        table_is_known(&f);
        f.stream->segments_first->first->suspect = suspect; /* one of the two */
        assert_true(batch_seal_one(f.stream, clock_monotonic_ms()));
        flow_run(&f);
        assert_non_null(f.stream->batches);
        assert_int_equal(f.stream->batches->part_count, 2);
        assert_int_equal(f.stream->batches->suspect, suspect);
        assert_int_equal(f.stream->batches->maybe_stored, suspect);
        flow_remove(&f);
    }
}

/* A seal finds no room, and while it was under way some of its rows were discarded, or turned out to be
   delivered: they were in a batch then, and could not go. */
static void test_what_is_settled_while_its_seal_is_refused(void **state)
{
    struct kafka_partition *p;
    const struct batch *b;
    struct origin *o;
    struct flow f;

    (void)state;
    for (int delivered = 0; delivered < 2; delivered++) {
        flow_open(&f, make_directory());
        p = flow_partition(&f, 0);
        o = flow_assign(&f, p, nothing);
        flow_read(&f, p, 0, ROWS);
        flow_read(&f, p, ROWS, ROWS);
        table_is_known(&f);
        no_room = true;
        assert_true(batch_seal_one(f.stream, clock_monotonic_ms()));
        if (delivered)
            o->delivered_below = ROWS;
        else
            origin_discard(o, ROWS - 1);
        flow_run(&f);
        assert_null(f.stream->batches);
        assert_non_null(f.stream->holds[HOLD_SEAL]);
        assert_true(o->committed < ROWS);
        no_room = false;
        f.pipeline->meta_retry_at_ms = f.pipeline->seal_from_ms = 0;
        meta_advance(f.pipeline);
        flow_run(&f);
        assert_int_equal(o->committed, ROWS);
        assert_int_equal(stream_spooled_rows(f.stream), ROWS);
        assert_true(batch_seal_one(f.stream, clock_monotonic_ms()));
        flow_run(&f);
        assert_null(f.stream->holds[HOLD_SEAL]);
        for (int restarted = 0; restarted < 2; restarted++) {
            b = f.stream->batches;
            assert_non_null(b);
            assert_null(b->next);
            assert_int_equal(b->part_count, 1);
            assert_int_equal(b->parts[0].block->ref.first_offset, ROWS);
            assert_int_equal(stream_spooled_rows(f.stream), ROWS);
            flow_reopen(&f);
        }
        flow_remove(&f);
    }
}

/* One block of the partition, as a batch of its own. */
static struct batch *read_and_sealed(struct flow *f, int32_t number, const char *origin,
                                     bool suspect)
{
    struct kafka_partition *p = flow_partition(f, number);
    struct origin *o = flow_assign(f, p, nothing);
    struct batch *b;

    assert_non_null(o);
    flow_read(f, p, 0, ROWS);
    free(o->name);
    o->name = strdup(origin);
    o->first->suspect = suspect;
    if (!f->stream->targets->description)
        table_is_known(f);
    assert_true(batch_seal_one(f->stream, clock_monotonic_ms()));
    flow_run(f);
    for (b = f->stream->batches; b->next;)
        b = b->next;
    assert_ptr_equal(b->parts[0].block->origin, o);
    return b;
}

/* A letter beside rows that were damaged was replayed, and its row is on its way: asked before, the table has none,
   and the record that was read again would be a second one. A replay's row that can't be sent is not waited for. */
static void test_what_is_read_again_is_asked_about_behind_a_replay(void **state)
{
    (void)state;
    flow_facts = true;
    for (int replayed = 0; replayed < 2; replayed++) {
        struct batch *before, *b;
        struct flow f;

        flow_open(&f, make_directory());
        before = read_and_sealed(&f, 1, replayed ? "replay/s" : "kafka/t/1", false);
        b = read_and_sealed(&f, 0, "kafka/t/0", true);
        f.source->assigned_once = true;
        assert_ptr_equal(before->next, b);
        assert_true(batch_must_ask(b, ENDPOINT));
        assert_int_equal(batch_may_go(before), ENDPOINT);
        assert_int_equal(batch_may_go(b), replayed ? -1 : ENDPOINT);
        before->unreadable = true;
        assert_int_equal(batch_may_go(b), ENDPOINT);
        before->unreadable = false;
        f.stream->probe = b; /* the others wait for it */
        assert_int_equal(batch_may_go(b), ENDPOINT);
        f.stream->probe = NULL;
        batch_ack(before);
        assert_int_equal(batch_may_go(b), replayed ? -1 : ENDPOINT);
        flow_run(&f);
        assert_ptr_equal(f.stream->batches, b);
        assert_int_equal(batch_may_go(b), ENDPOINT);
        flow_remove(&f);
    }
    flow_facts = false;
}

/* A table forgets a token after so many seconds, and after so many inserts: of both, half is to spare. */
static void test_the_window_is_short(void **state)
{
    static const struct {
        uint64_t seconds, entries; /* 0: no limit */
        bool holds;
    } rows[] = {{0, 0, true}, {3600, 100, true}, {3, 100, false}, {3600, 1, false}};
    struct flow f;
    struct batch *b;

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        b = sealed(&f, true, NULL, 2000);
        f.stream->targets->description->dedup_window_seconds = rows[i].seconds;
        f.stream->targets->description->dedup_window_entries = rows[i].entries;
        assert_int_equal(batch_token_holds(b, ENDPOINT), rows[i].holds);
        flow_remove(&f);
    }
}

/* The server of then gave its start by the clock of then, and nobody knows how long ago that was. */
static void test_the_machine_started_again(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    b = sealed(&f, true, OTHER_BOOT, 0);
    assert_false(batch_token_holds(b, ENDPOINT));
    flow_remove(&f);
}

/* Whatever else is said of the table, such a token proves nothing. */
static void test_a_token_that_is_worth_nothing(void **state)
{
    struct table_description *d;
    struct flow f;
    struct batch *b;

    (void)state;
    b = sealed(&f, true, NULL, 0);
    d = f.stream->targets->description;
    assert_true(batch_token_holds(b, ENDPOINT));
    b->token_lost = true;
    assert_false(batch_token_holds(b, ENDPOINT));
    b->token_lost = false;
    b->suspect = true; /* the rows may be in under another token */
    assert_false(batch_token_holds(b, ENDPOINT));
    b->suspect = false;
    free(d->columns[0].default_kind);
    free(d->columns[0].default_expression);
    free(d->columns[0].name);
    d->columns[0].name = strdup("at");
    d->columns[0].default_kind = strdup("DEFAULT");
    d->columns[0].default_expression = strdup("now()");
    d->partition_key = strdup("at"); /* a repeat falls into another partition */
    assert_false(batch_token_holds(b, ENDPOINT));
    flow_remove(&f);
}

/* What is known of a batch's rows is known after a restart. */
static void test_what_a_seal_and_its_blocks_say(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    b = sealed(&f, true, NULL, 0);
    assert_false(b->suspect);
    assert_null(b->schema);
    flow_remove(&f);
    may_be_stored = encoded_anew = true;
    b = sealed(&f, true, NULL, 0);
    may_be_stored = encoded_anew = false;
    assert_true(b->suspect);
    assert_false(batch_token_holds(b, ENDPOINT));
    assert_non_null(b->schema); /* else other bytes would go under its token */
    flow_remove(&f);
}

/* At another endpoint a token tells where both have one table, and it is known how old the token is. */
static void test_a_token_at_a_replica(void **state)
{
    struct table_description *d;
    struct flow f;
    struct batch *b;

    (void)state;
    flow_endpoints = 2;
    b = sealed(&f, true, NULL, 0);
    d = f.stream->targets->description;
    f.stream->targets->asked = f.stream->targets->endpoint = 1;
    assert_false(batch_token_holds(b, 1));
    d->replica_path = strdup("/tables/t");
    b->replica_path = strdup("/tables/t");
    assert_true(batch_token_holds(b, 1));
    b->token_lost = true;
    assert_false(batch_token_holds(b, 1));
    b->token_lost = false;
    b->suspect = true;
    assert_false(batch_token_holds(b, 1));
    b->suspect = false;
    b->sealed_boot_ms = 0;
    assert_false(batch_token_holds(b, 1));
    b->sealed_boot_ms = (int64_t)clock_boot_ms();
    b->replica_path[1] = 'T';
    assert_false(batch_token_holds(b, 1));
    flow_remove(&f);
    flow_endpoints = 1;
}

/* Not even looked at, or asked about: another instance has the partition. */
static void test_a_batch_of_a_lost_partition_does_not_start(void **state)
{
    struct flow f;
    struct batch *b;

    (void)state;
    b = sealed(&f, false, NULL, 0);
    assert_true(b->lettered); /* nobody knows, of one that a restart finds */
    assert_int_equal(batch_may_go(b), ENDPOINT);
    flow_revoke(&f, b->parts[0].block->origin->partition);
    assert_int_equal(batch_may_go(b), -1);
    flow_remove(&f);
}

/* The rest of the block is stored: of a piece that can't be read only its own rows are read again. */
static void test_a_piece_that_is_damaged(void **state)
{
    const bool damaged = true;
    const struct hole *hole;
    struct block *block;
    struct flow f;
    struct batch *b;

    (void)state;
    b = sealed(&f, false, NULL, 0);
    block = b->parts[0].block;
    part_acked(f.stream, b->segment, &(struct part){block, 0, 40});
    b->parts[0].row = 40;
    b->rows = b->parts[0].rows = ROWS - 40;
    hole = block->origin->holes;
    assert_null(hole);
    check_ok(batch_set_aside(b, &damaged, NULL, 0, false));
    flow_run(&f);
    hole = f.stream->origins->holes;
    assert_non_null(hole);
    assert_int_equal(hole->noted_first, 40);
    assert_int_equal(hole->last, ROWS - 1);
    assert_null(hole->next);
    flow_remove(&f);
}

/* What is known of the table is noted where it changes. Each look at the table would wait in memory else,
   while there is no room for a commit. */
static void test_a_table_is_noted_once(void **state)
{
    const struct meta_op *last;
    struct target *t;
    struct flow f;

    (void)state;
    flow_open(&f, make_directory());
    table_is_known(&f);
    t = f.stream->targets;
    f.pipeline->meta_retry_at_ms = UINT64_MAX; /* there is none */
    target_cache(t);
    last = f.pipeline->meta_last;
    assert_non_null(last);
    for (int i = 0; i < 3; i++) {
        target_cache(t);
        assert_ptr_equal(f.pipeline->meta_last, last);
    }
    t->description->deduplicates = false;
    target_cache(t);
    assert_ptr_not_equal(f.pipeline->meta_last, last);
    f.pipeline->meta_retry_at_ms = 0;
    meta_advance(f.pipeline);
    flow_run(&f);
    assert_true(meta_idle(f.pipeline));
    target_cache(t);
    assert_true(meta_idle(f.pipeline));
    flow_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_changes),
        cmocka_unit_test(test_the_table_is_in_doubt),
        cmocka_unit_test(test_the_server_started_again),
        cmocka_unit_test(test_the_endpoint_is_down),
        cmocka_unit_test(test_another_endpoint_takes_its_place),
        cmocka_unit_test(test_its_partition_is_lost),
        cmocka_unit_test(test_rows_that_may_be_in_are_sealed_so),
        cmocka_unit_test(test_what_is_settled_while_its_seal_is_refused),
        cmocka_unit_test(test_what_is_read_again_is_asked_about_behind_a_replay),
        cmocka_unit_test(test_the_window_is_short),
        cmocka_unit_test(test_the_machine_started_again),
        cmocka_unit_test(test_a_token_that_is_worth_nothing),
        cmocka_unit_test(test_what_a_seal_and_its_blocks_say),
        cmocka_unit_test(test_a_token_at_a_replica),
        cmocka_unit_test(test_a_batch_of_a_lost_partition_does_not_start),
        cmocka_unit_test(test_a_piece_that_is_damaged),
        cmocka_unit_test(test_a_table_is_noted_once),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
