/* SPDX-License-Identifier: Apache-2.0 */
/* Dead letters of records that do not fit, as the intake makes them; the source's part is played here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "pipeline/replay_int.h"
#include "pipeline_rig.h"

static uint64_t letters_of(struct flow *f, uint64_t *bytes)
{
    uint64_t letters = 0;

    check_ok(spool_dead_count(f->spool, "s", &letters, bytes, &the_error));
    return letters;
}

static struct kafka_committed at(struct flow *f, int64_t offset)
{
    return (struct kafka_committed){
        .offset = offset, .metadata = flow_metadata(f, 1), .low = 0, .high = 100000};
}

static struct spool_dead letter_of(int64_t offset, const char *record)
{
    return (struct spool_dead){.stream = "s",
                               .offset = offset,
                               .reason_name = "",
                               .reason = "",
                               .column = "",
                               .record = record,
                               .record_size = strlen(record)};
}

static void test_the_bound_is_never_passed(void **state)
{
    struct flow f;
    struct kafka_partition *p;
    uint64_t bytes = 0, letters;

    (void)state;
    flow_type = "UInt8";
    flow_open(&f, make_directory());
    f.stream_options.dead_letters_max_bytes = 64 * KIB;
    p = flow_partition(&f, 0);
    (void)flow_assign(&f, p, at(&f, 256));
    flow_read(&f, p, 256, 4000);
    letters = letters_of(&f, &bytes);
    assert_true(letters > 0 && letters < 4000);
    assert_true(f.stream->holds[HOLD_DEAD_FULL]);
    assert_in_range(bytes, 64 * KIB - bytes / letters - 1, 64 * KIB);
    flow_remove(&f);
}

static uint64_t on_disk(struct flow *f, uint64_t *dead_bytes)
{
    struct spool_usage usage;

    check_ok(spool_usage_get(f->spool, &usage, &the_error));
    *dead_bytes = usage.dead_bytes;
    return usage.total_bytes;
}

/* Until the files are looked at again, no less is counted than what they have, or letters would go
   beyond the bound of the spool. */
static void test_letters_are_counted_as_what_they_take_on_disk(void **state)
{
    struct flow f;
    struct kafka_partition *p;
    uint64_t dead_bytes = 0, counted;
    int64_t first = 256;

    (void)state;
    flow_type = "UInt8";
    flow_open(&f, make_directory());
    f.stream_options.dead_letters_max_bytes = 64 * MIB;
    p = flow_partition(&f, 0);
    (void)flow_assign(&f, p, at(&f, first));
    while (on_disk(&f, &dead_bytes) && dead_bytes < 5 * MIB) { /* beyond what it has at first */
        flow_take(&f, p, first, 4000, false);
        flow_run(&f);
        first += 4000;
    }
    pressure_measure(f.pipeline);
    flow_run(&f);
    for (int i = 0; i < 8; i++) {
        flow_take(&f, p, first, 4000, false);
        flow_run(&f);
        first += 4000;
        counted = f.pipeline->usage.total_bytes + f.pipeline->grown_bytes;
        assert_in_range(on_disk(&f, &dead_bytes), 8 * MIB, counted);
    }
    flow_remove(&f);
}

/* Ten records from first on, as a process reads them whose column id has the type; appended: what fits
   becomes durable, and not only the letters. */
static void read_ten(struct flow *f, int64_t first, bool appended)
{
    struct kafka_partition *p = flow_partition(f, 0);

    (void)flow_assign(f, p, at(f, first));
    flow_hold_appends(f, !appended);
    flow_read(f, p, first, 10);
}

/* The first process, whose column takes what is less than 256. */
static void begin(struct flow *f, int64_t first, bool appended)
{
    flow_type = "UInt8";
    flow_open(f, make_directory());
    read_ten(f, first, appended);
}

static void read_ten_more(struct flow *f, int64_t first)
{
    flow_read(f, kafka_partition_find(f->source, "t", 0), first, 10);
}

static void reopen(struct flow *f, const char *type)
{
    flow_type = type;
    flow_reopen(f);
}

/* Killed between the commit of the letters and that of the rows. Then the column takes what they were
   refused for, so that they are rows: as letters too they would be replayed one day, and come twice. */
static void test_a_letter_whose_record_fits_when_it_is_read_again(void **state)
{
    struct flow f;
    uint64_t bytes = 0;

    (void)state;
    begin(&f, 250, false);
    assert_int_equal(letters_of(&f, &bytes), 4);
    reopen(&f, "UInt64");
    assert_int_equal(f.stream->dead_letters, 4);
    read_ten(&f, 250, true);
    assert_int_equal(stream_spooled_rows(f.stream), 10);
    assert_int_equal(letters_of(&f, &bytes), 0);
    assert_int_equal(f.stream->dead_letters, 0);
    flow_remove(&f);
}

static void test_a_letter_whose_record_does_not_fit_again(void **state)
{
    struct flow f;
    uint64_t bytes = 0;

    (void)state;
    begin(&f, 65530, false);
    assert_int_equal(letters_of(&f, &bytes), 10);
    reopen(&f, "UInt16");
    read_ten(&f, 65530, true);
    assert_int_equal(stream_spooled_rows(f.stream), 6);
    assert_int_equal(letters_of(&f, &bytes), 4);
    assert_int_equal(f.stream->dead_letters, 4);
    flow_remove(&f);
}

/* Letters behind what is read first are found when they are reached. */
static void test_letters_of_several_runs(void **state)
{
    struct flow f;
    uint64_t bytes = 0;

    (void)state;
    begin(&f, 250, false);
    read_ten_more(&f, 260);
    assert_int_equal(letters_of(&f, &bytes), 14);
    reopen(&f, "UInt64");
    read_ten(&f, 250, true);
    assert_int_equal(letters_of(&f, &bytes), 10);
    read_ten_more(&f, 260);
    assert_int_equal(letters_of(&f, &bytes), 0);
    flow_remove(&f);
}

/* What is held of the origin, from 250 to the last one. */
static void damage_rows(struct origin *o, int64_t last)
{
    struct hole_spec hole = {.origin = o, .first = 250, .last = last};

    assert_non_null(o->first);
    hole.segment = o->first->ref.segment;
    hole.sequence = o->first->ref.sequence;
    hole.after = o->last->ref.sequence;
    holes_add(&hole, 1);
}

/* Rows that are damaged are read again, and the letters beside them too; those behind are not. */
static void test_a_letter_beside_damaged_rows(void **state)
{
    struct kafka_partition *p;
    struct flow f;
    uint64_t bytes = 0;

    (void)state;
    begin(&f, 250, true);
    read_ten_more(&f, 260);
    assert_int_equal(letters_of(&f, &bytes), 14);
    reopen(&f, "UInt64");
    p = flow_partition(&f, 0);
    damage_rows(flow_assign(&f, p, at(&f, 250)), 259);
    flow_read(&f, p, 250, 10);
    assert_int_equal(letters_of(&f, &bytes), 10);
    flow_remove(&f);
}

/* Wherever the record stands in dead.mdb, which has copies of former states too. */
static void damage_letter(const char *spool, const char *record)
{
    char path[512];
    const size_t wanted = strlen(record);
    size_t harmed = 0, size;
    char *bytes;
    FILE *file;

    snprintf(path, sizeof(path), "%s/dead.mdb", spool);
    file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(fseek(file, 0, SEEK_END), 0);
    size = (size_t)ftell(file);
    bytes = malloc(size);
    assert_non_null(bytes);
    rewind(file);
    assert_int_equal(fread(bytes, 1, size, file), size);
    for (size_t at = 0; at + wanted <= size; at++)
        if (memcmp(bytes + at, record, wanted) == 0) {
            assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
            assert_int_equal(fputc('x', file), 'x');
            harmed++;
        }
    assert_int_equal(fclose(file), 0);
    assert_true(harmed > 0);
    free(bytes);
}

/* It can't become a row any more, and stands in nobody's way: neither among those that are looked for nor
   behind them. */
static void test_letters_that_are_damaged_are_passed_over(void **state)
{
    static const char *const damaged[] = {"{\"id\":257}", "{\"id\":260}"};

    (void)state;
    for (int behind = 0; behind < 2; behind++) {
        struct spool_dead letter = letter_of(260, "{\"id\":260}");
        uint64_t bytes = 0;
        struct flow f;
        char *path;

        begin(&f, 250, false);
        letter.origin = f.stream->origins->id + 1; /* of another partition */
        check_ok(spool_dead_put(f.spool, &letter, 1, NULL, &the_error));
        assert_int_equal(letters_of(&f, &bytes), 5);
        path = f.path;
        flow_close(&f);
        damage_letter(path, damaged[behind]);
        flow_type = "UInt64";
        flow_open(&f, path);
        read_ten(&f, 250, true);
        assert_int_equal(stream_spooled_rows(f.stream), 10);
        assert_int_equal(letters_of(&f, &bytes), behind ? 1 : 2);
        flow_remove(&f);
    }
}

/* A batch of these ranges of the first segment; acked, where there is one, is acknowledged before. */
static void seal(struct flow *f, const struct spool_range *ranges, size_t count,
                 const struct spool_range *acked)
{
    static const char attributes[] = "4\n1\nhttp://127.0.0.1:1\n\n\na=1\n";
    struct spool_seal seal = {.stream = f->stream->id,
                              .batch = 1,
                              .segment = 1,
                              .ranges = ranges,
                              .range_count = count,
                              .token = "token",
                              .attributes = attributes,
                              .attributes_size = strlen(attributes),
                              .sealed_ms = 1};
    struct spool_change changes[2] = {
        {.kind = SPOOL_CHANGE_SEAL, .stream = f->stream->id, .batch = 1, .seal = &seal},
        {.kind = SPOOL_CHANGE_DISCARD,
         .stream = f->stream->id,
         .segment = 1,
         .ranges = acked,
         .range_count = 1}};

    for (size_t i = 0; i < count; i++)
        seal.rows += ranges[i].rows;
    check_ok(spool_commit(f->spool, changes, acked ? 2 : 1, &the_error));
}

/* A block of letters only leaves no row, and goes with the batch that it was sealed into: also where that is
   replaced, and nothing of its partition is acknowledged after it. */
static void test_offsets_without_rows_are_committed_with_a_replaced_batch(void **state)
{
    struct spool_range ranges[2] = {{.rows = 10}, {.rows = 0}};
    const struct row_span all = {0, 10};
    struct kafka_partition *p;
    const struct block *first;
    struct origin *o;
    struct flow f;

    (void)state;
    begin(&f, 240, true);
    p = flow_partition(&f, 1);
    (void)flow_assign(&f, p, at(&f, 256));
    flow_read(&f, p, 256, 10);
    first = f.stream->segments_first->first;
    assert_int_equal(first->next_in_segment->ref.rows, 0);
    ranges[0].sequence = first->ref.sequence;
    ranges[1].sequence = first->next_in_segment->ref.sequence;
    seal(&f, ranges, 2, NULL);
    flow_reopen(&f);
    o = flow_assign(&f, flow_partition(&f, 1), at(&f, 256));
    assert_int_equal(o->committed, 256);
    assert_int_equal(batch_replace(f.stream->batches, &all, 1, NULL, 0, NULL), SPOOL_OK);
    flow_run(&f);
    assert_null(f.stream->batches);
    assert_int_equal(o->committed, 266);
    flow_remove(&f);
}

/* A seal may wait for long, for a partition that went or for a server: they are in none. */
static void test_offsets_without_rows_wait_for_no_others(void **state)
{
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    begin(&f, 240, true);
    p = flow_partition(&f, 1);
    o = flow_assign(&f, p, at(&f, 256));
    flow_read(&f, p, 256, 10);
    assert_int_equal(f.stream->eligible_blocks, 2);
    assert_true(batch_seal_one(f.stream, 0));
    flow_run(&f);
    assert_int_equal(o->committed, 266);
    assert_int_equal(f.stream->eligible_blocks, 1);
    flow_remove(&f);
}

/* Of a block with letters beside its rows one row is done with, and what is left of it in two pieces turns
   out to be damaged: all of it is read again, once. In one batch rows would be twice, and no table tells. */
static void test_pieces_of_a_damaged_block_are_read_again_once(void **state)
{
    struct spool_range acked = {.row = 2, .rows = 1};
    struct spool_range ranges[2] = {{.row = 0, .rows = 2}, {.row = 3, .rows = 3}};
    const bool damaged[2] = {true, true};
    struct kafka_partition *p;
    struct origin *o;
    struct flow f;

    (void)state;
    begin(&f, 250, true);
    assert_int_equal(f.stream->segments_first->first->ref.rows, 6);
    ranges[0].sequence = ranges[1].sequence = acked.sequence =
        f.stream->segments_first->first->ref.sequence;
    seal(&f, ranges, 2, &acked);
    reopen(&f, "UInt64");
    p = flow_partition(&f, 0);
    o = flow_assign(&f, p, at(&f, 250));
    assert_int_equal(batch_set_aside(f.stream->batches, damaged, NULL, 0, false), SPOOL_OK);
    flow_run(&f);
    assert_non_null(o->holes);
    for (p->start = 250; p->start < 260;) /* from where it is asked for */
        flow_read(&f, p, 250, 10);
    assert_int_equal(stream_spooled_rows(f.stream), 10);
    assert_true(o->first->suspect);
    flow_reopen(&f);
    o = flow_assign(&f, flow_partition(&f, 0), at(&f, 250));
    assert_non_null(o->holes);
    assert_null(o->holes->next);
    assert_int_equal(o->holes->stored, 260);
    flow_remove(&f);
}

/* --- of a stream that the configuration does not name ---------------------------------------- */

struct discarded {
    int status;
    uint64_t letters;
    struct spool_error error;
};

static void on_discarded(void *arg, int status, uint64_t letters, uint64_t bytes,
                         const struct spool_error *error)
{
    struct discarded *d = arg;

    (void)bytes;
    d->status = status;
    d->letters = letters;
    d->error = *error;
}

static struct discarded discard(struct flow *f, const char *stream, bool dry)
{
    static const struct dead_filter all;
    struct discarded d = {0};

    assert_int_equal(pipeline_dead_discard(f->pipeline, stream, &all, dry, on_discarded, &d),
                     SPOOL_OK);
    flow_run(f);
    return d;
}

static void test_letters_of_a_stream_that_is_gone_are_discarded(void **state)
{
    struct spool_dead letter = {.stream = "gone",
                                .reason_name = "",
                                .reason = "",
                                .column = "",
                                .record = "{\"id\":1}",
                                .record_size = 8};
    uint64_t letters = 0, bytes = 0;
    struct discarded d;
    struct flow f;

    (void)state;
    flow_type = "UInt8";
    flow_open(&f, make_directory());
    read_ten(&f, 250, true);
    letter.origin = open_origin(f.spool, "kafka/gone/0");
    check_ok(spool_dead_put(f.spool, &letter, 1, NULL, &the_error));
    assert_int_equal(discard(&f, "gone", true).letters, 1);
    d = discard(&f, "gone", false);
    assert_int_equal(d.status, SPOOL_OK);
    assert_int_equal(d.letters, 1);
    check_ok(spool_dead_count(f.spool, "gone", &letters, &bytes, &the_error));
    assert_int_equal(letters, 0);
    assert_int_equal(letters_of(&f, &bytes), 4);
    assert_int_equal(f.stream->dead_letters, 4);
    d = discard(&f, "gone", false);
    assert_int_equal(d.status, SPOOL_E_NOT_FOUND);
    assert_string_equal(d.error.text, "there is no stream \"gone\", and no dead letter of one");
    flow_remove(&f);
}

/* --- replay --------------------------------------------------------------------------------- */

static struct replay_chunk chunk_of_all(const struct flow *f)
{
    static const struct dead_filter all;

    return (struct replay_chunk){.filter = &all,
                                 .next = {0, INT64_MIN},
                                 .stream = f->stream,
                                 .origin = f->stream->origins,
                                 .schema = f->stream->schema,
                                 .job.pipeline = f->pipeline};
}

/* As the first chunk of a replay, until its letters are sorted out. */
static void replay_look(struct flow *f, struct replay_chunk *c)
{
    *c = chunk_of_all(f);
    assert_int_equal(replay_chunk_collect(c), SPOOL_OK);
    replay_chunk_work(&c->job);
    assert_int_equal(c->status, SPOOL_OK);
}

static void expect_replay(struct flow *f, size_t fitting, uint64_t unsettled)
{
    struct replay_chunk c;

    replay_look(f, &c);
    assert_int_equal(c.fitting_count, fitting);
    assert_int_equal(c.unsettled, unsettled);
    replay_chunk_reset(&c);
}

/* Ten rows, and behind them four letters that a kill left without the rows beside them. */
static void read_letters_only(struct flow *f)
{
    begin(f, 240, true);
    flow_hold_appends(f, true);
    read_ten_more(f, 250);
}

/* Somebody else's commit ended the epoch of the letters, and their records are read again: each is one row, or
   one letter, and none waits for ever. */
static void test_letters_of_an_epoch_that_a_commit_ended(void **state)
{
    static const char *const types[] = {"UInt64", "UInt8"};
    static const int64_t commits[] = {250, 258};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        const bool fits = i < 2;
        const int64_t commit = commits[i % 2];
        const uint64_t passed = (uint64_t)(commit == 258 ? 2 : 0); /* nobody reads them again */
        struct kafka_partition *p;
        uint64_t bytes = 0;
        struct flow f;

        read_letters_only(&f);
        assert_int_equal(letters_of(&f, &bytes), 4);
        reopen(&f, types[!fits]);
        p = flow_partition(&f, 0);
        assert_int_equal(
            flow_assign(&f, p, (struct kafka_committed){.offset = commit, .high = 100000})->epoch,
            2);
        expect_replay(&f, 0, 4);
        flow_read(&f, p, commit, (uint32_t)(260 - commit));
        assert_int_equal(letters_of(&f, &bytes), fits ? passed : 4);
        reopen(&f, "UInt64");
        expect_replay(&f, fits ? passed : 4, 0);
        flow_remove(&f);
    }
}

/* Another spoold had the partition, and gave it back with a commit in front of the letters. The last record of
   before is there yet: same_log, or it is gone, and nobody knows. */
static struct kafka_partition *back_from_another(struct flow *f, int64_t offset, bool same_log)
{
    const struct kafka_committed committed = {.offset = offset,
                                              .metadata =
                                                  "spoold 00000000-0000-0000-0000-000000000000 1 0",
                                              .high = 100000};
    struct kafka_partition *p = flow_partition(f, 0);

    assert_int_equal(flow_assign(f, p, committed)->epoch, 2);
    assert_true(p->tracing);
    if (same_log)
        f->source->callbacks.traced(f->source->arg, p, p->start);
    else
        f->source->callbacks.new_log(f->source->arg, p, p->start);
    flow_run(f);
    assert_int_equal(p->start, offset);
    return p;
}

/* Rows beside them were durable and not acknowledged, and are discarded: what is read again is one row, or one
   letter. Of a log that may be another one nothing but its letters is left. */
static void test_letters_beside_rows_that_a_commit_discarded(void **state)
{
    (void)state;
    flow_marks = true;
    for (int i = 0; i < 4; i++) {
        const bool fits = i & 1, same_log = i & 2;
        struct kafka_partition *p;
        uint64_t bytes = 0;
        struct flow f;

        begin(&f, 250, true);
        read_ten_more(&f, 260);
        assert_int_equal(letters_of(&f, &bytes), 14);
        reopen(&f, fits ? "UInt64" : "UInt8");
        p = back_from_another(&f, 250, same_log);
        flow_read(&f, p, 250, 10);
        assert_int_equal(letters_of(&f, &bytes), (same_log ? 10 : 14) + (fits ? 0 : 4));
        flow_read(&f, p, 260, 10);
        assert_int_equal(letters_of(&f, &bytes), (same_log ? 0 : 14) + (fits ? 0 : 14));
        assert_int_equal(stream_spooled_rows(f.stream), fits ? 20 : 6);
        flow_remove(&f);
    }
    flow_marks = false;
}

/* Their records are read again soon: a row of theirs by then would be another one than the replay's. What the commit
   passed is not. */
static void test_letters_that_a_commit_sent_to_be_read_again_are_not_replayed(void **state)
{
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    flow_marks = true;
    begin(&f, 250, true);
    read_ten_more(&f, 260);
    reopen(&f, "UInt64");
    p = back_from_another(&f, 258, true);
    expect_replay(&f, 2, 12);
    flow_read(&f, p, 258, 12);
    expect_replay(&f, 2, 0);
    flow_remove(&f);
    flow_marks = false;
}

/* Runs of it wait to be decoded when the commit comes, and are decoded behind those that are read again. */
static void test_letters_of_an_ended_epoch_that_come_late(void **state)
{
    struct kafka_partition *p;
    uint64_t bytes = 0;
    struct flow f;

    (void)state;
    flow_type = "UInt8";
    flow_open(&f, make_directory());
    p = flow_partition(&f, 0);
    (void)flow_assign(&f, p, at(&f, 240));
    f.pipeline->decode_max = 0;
    flow_take(&f, p, 240, 10, false);
    flow_take(&f, p, 250, 10, false);
    flow_revoke(&f, p);
    p = flow_partition(&f, 0);
    assert_int_equal(
        flow_assign(&f, p, (struct kafka_committed){.offset = 250, .high = 100000})->epoch, 2);
    flow_take(&f, p, 250, 10, false);
    f.pipeline->decode_max = 1;
    flow_run(&f);
    assert_int_equal(letters_of(&f, &bytes), 4);
    assert_int_equal(f.stream->dead_letters, 4);
    assert_int_equal(stream_spooled_rows(f.stream), 6);
    flow_remove(&f);
}

/* The log they were read from is gone, and nobody else has their records. */
static void test_letters_of_a_log_that_is_over(void **state)
{
    uint64_t bytes = 0;
    struct flow f;

    (void)state;
    read_letters_only(&f);
    reopen(&f, "UInt64");
    expect_replay(&f, 0, 4);
    assert_int_equal(
        flow_assign(&f, flow_partition(&f, 0), (struct kafka_committed){.offset = -1, .high = 5})
            ->epoch,
        2);
    assert_int_equal(letters_of(&f, &bytes), 4);
    expect_replay(&f, 4, 0);
    flow_remove(&f);
}

/* What lies beside damaged rows is read again: a row of it by then would be another one than the replay's. */
static void test_a_letter_that_is_read_again_is_not_replayed(void **state)
{
    struct flow f;

    (void)state;
    begin(&f, 250, true);
    reopen(&f, "UInt64");
    damage_rows(flow_assign(&f, flow_partition(&f, 0), at(&f, 250)), 257);
    expect_replay(&f, 2, 2); /* those behind it, and those beside */
    flow_remove(&f);
}

/* Replayed first: its record is read again all the same, so that row may be in the table. */
static void test_a_letter_that_is_replayed_before_its_block_is_damaged(void **state)
{
    struct spool_range range = {.rows = 6};
    const bool damaged = true;
    struct kafka_partition *p;
    struct flow f;

    (void)state;
    begin(&f, 250, true);
    reopen(&f, "UInt64");
    expect_replay(&f, 4, 0);
    (void)open_origin(f.spool, "replay/s"); /* whose rows these become */
    range.sequence = f.stream->segments_first->first->ref.sequence;
    seal(&f, &range, 1, NULL);
    reopen(&f, "UInt64");
    f.stream->batches->maybe_stored = false; /* it was not tried yet */
    assert_int_equal(batch_set_aside(f.stream->batches, &damaged, NULL, 0, false), SPOOL_OK);
    flow_run(&f);
    p = flow_partition(&f, 0);
    (void)flow_assign(&f, p, at(&f, 250));
    assert_non_null(f.stream->origins->holes);
    flow_read(&f, p, 250, 10);
    assert_int_equal(stream_spooled_rows(f.stream), 10);
    assert_true(f.stream->origins->first->suspect);
    flow_remove(&f);
}

static void ignore_problem(void *arg, const struct spool_problem *problem)
{
    (void)arg;
    (void)problem;
}

/* The letters 256 to 259 are replayed under four numbers from first on: a note says so before their rows
   are appended. */
static void note_replay(struct flow *f, uint64_t first)
{
    char key[64];
    struct spool_change note = {.kind = SPOOL_CHANGE_PUT, .key = key};
    struct buf value;

    buf_init(&value, KIB);
    assert_int_equal(buf_put_u8(&value, 1), SPOOL_OK);
    assert_int_equal(buf_put_u32le(&value, f->stream->origins->id), SPOOL_OK);
    assert_int_equal(buf_put_u64le(&value, first), SPOOL_OK);
    assert_int_equal(buf_put_u32le(&value, 4), SPOOL_OK);
    for (int64_t offset = 256; offset < 260; offset++) {
        assert_int_equal(buf_put_u32le(&value, f->stream->origins->id), SPOOL_OK);
        assert_int_equal(buf_put_u64le(&value, (uint64_t)offset), SPOOL_OK);
    }
    snprintf(key, sizeof(key), "replay/%u", f->stream->id);
    note.value = value.data;
    note.value_size = value.len;
    check_ok(spool_commit(f->spool, &note, 1, &the_error));
    buf_free(&value);
}

/* Killed before any of its rows was durable: the letters are all there is of them. */
static void test_letters_of_a_replay_that_was_cut_off_before_their_rows(void **state)
{
    uint64_t bytes = 0;
    struct flow f;

    (void)state;
    begin(&f, 250, true);
    note_replay(&f, 260);
    flow_reopen(&f);
    assert_int_equal(f.stream->dead_letters, 4);
    assert_int_equal(letters_of(&f, &bytes), 4);
    flow_remove(&f);
}

/* Killed when the rows of a replay were durable and their letters not removed: one that is damaged by then
   would stand in the way of the start, and of every other replay. */
static void test_a_damaged_letter_of_a_replay_that_was_cut_off(void **state)
{
    uint64_t bytes = 0, problems = 0;
    struct flow f;

    (void)state;
    begin(&f, 250, true);
    assert_int_equal(letters_of(&f, &bytes), 4);
    note_replay(&f, 257); /* of 257 to 260, the last has no row */
    flow_close(&f);
    damage_letter(f.path, "{\"id\":257}");
    flow_open(&f, f.path);
    assert_int_equal(f.stream->dead_letters, 1);
    check_ok(spool_verify(f.spool, ignore_problem, NULL, &problems, &the_error));
    assert_int_equal(problems, 0); /* the count is right */
    flow_remove(&f);
}

/* A record may have as many headers as Kafka takes; an error would stop all replays of the stream. */
static void test_a_letter_with_very_many_headers_is_replayed(void **state)
{
    const uint32_t count = 20000;
    struct spool_dead letter = letter_of(255, "{\"id\":1}");
    struct replay_chunk c;
    struct buf headers;
    struct flow f;

    (void)state;
    flow_type = "UInt64";
    flow_open(&f, make_directory());
    read_ten(&f, 250, true);
    buf_init(&headers, MIB);
    assert_int_equal(buf_put_u32le(&headers, count), SPOOL_OK);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(buf_put_string(&headers, "h", 1), SPOOL_OK);
        assert_int_equal(buf_put_string(&headers, "", 0), SPOOL_OK);
    }
    letter.origin = f.stream->origins->id;
    letter.headers = headers.data;
    letter.headers_size = headers.len;
    check_ok(spool_dead_put(f.spool, &letter, 1, NULL, &the_error));
    c = chunk_of_all(&f);
    replay_chunk_work(&c.job);
    assert_int_equal(c.status, SPOOL_OK);
    assert_int_equal(c.fitting_count, 1);
    replay_chunk_reset(&c);
    buf_free(&headers);
    flow_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_bound_is_never_passed),
        cmocka_unit_test(test_letters_are_counted_as_what_they_take_on_disk),
        cmocka_unit_test(test_a_letter_whose_record_fits_when_it_is_read_again),
        cmocka_unit_test(test_a_letter_whose_record_does_not_fit_again),
        cmocka_unit_test(test_letters_of_several_runs),
        cmocka_unit_test(test_a_letter_beside_damaged_rows),
        cmocka_unit_test(test_letters_that_are_damaged_are_passed_over),
        cmocka_unit_test(test_offsets_without_rows_are_committed_with_a_replaced_batch),
        cmocka_unit_test(test_offsets_without_rows_wait_for_no_others),
        cmocka_unit_test(test_pieces_of_a_damaged_block_are_read_again_once),
        cmocka_unit_test(test_letters_of_a_stream_that_is_gone_are_discarded),
        cmocka_unit_test(test_letters_of_an_epoch_that_a_commit_ended),
        cmocka_unit_test(test_letters_beside_rows_that_a_commit_discarded),
        cmocka_unit_test(test_letters_that_a_commit_sent_to_be_read_again_are_not_replayed),
        cmocka_unit_test(test_letters_of_an_ended_epoch_that_come_late),
        cmocka_unit_test(test_letters_of_a_log_that_is_over),
        cmocka_unit_test(test_a_letter_that_is_read_again_is_not_replayed),
        cmocka_unit_test(test_a_letter_that_is_replayed_before_its_block_is_damaged),
        cmocka_unit_test(test_letters_of_a_replay_that_was_cut_off_before_their_rows),
        cmocka_unit_test(test_a_damaged_letter_of_a_replay_that_was_cut_off),
        cmocka_unit_test(test_a_letter_with_very_many_headers_is_replayed),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
