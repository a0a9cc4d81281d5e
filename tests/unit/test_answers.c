/* SPDX-License-Identifier: Apache-2.0 */
/* What is done about a server's answers to a batch, and to questions about it. The server says what its
   script says, a connection for each request. */
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "pipeline/ask_int.h"
#include "pipeline/hunt_int.h"
#include "pipeline_rig.h"
#include "sink/clickhouse_int.h"

#include "scripted_server.c"

#define ROWS     100
#define ENDPOINT 0
#define REQUESTS 8

static const struct kafka_committed nothing = {.offset = -1, .low = 0, .high = 1000};

#define REPLY(status, length, text)                                                                \
    "HTTP/1.1 " status "\r\nContent-Length: " length "\r\nConnection: close\r\n\r\n" text

static const char yes[] = REPLY("200 OK", "0", "");
/* Nobody knows whether it stored the rows; what it says comes before that is for good. */
static const char timed_out[] = REPLY("500 Error", "9", "Code: 159");
static const char broken[] =
    REPLY("500 Error", "10", "Code: 1001"); /* ... it may come behind that */
static const char too_busy[] = REPLY("500 Error", "9", "Code: 202");
static const char bad_row[] = REPLY("400 Bad", "7", "Code: 6");
static const char damaged[] = REPLY("400 Bad", "8", "Code: 40");
/* To whether an attempt still runs. */
static const char none_runs[] = REPLY("200 OK", "2", "0\n");
static const char one_runs[] = REPLY("200 OK", "2", "1\n");
/* To which rows are in: none; the first, and the sixth. */
static const char no_row[] = REPLY("200 OK", "0", "");
static const char two_rows[] = REPLY("200 OK", "8", "1\t0\n1\t5\n");

struct world {
    struct flow f;
    struct scripted_server server;
    struct script scripts[REQUESTS];
    size_t answers; /* that the scripts have */
    struct batch *b;
};

/* --- its life --------------------------------------------------------------------------------- */

static struct table_column column(const char *name, const char *type)
{
    return (struct table_column){.name = strdup(name),
                                 .type = strdup(type),
                                 .default_kind = strdup(""),
                                 .default_expression = strdup("")};
}

/* The endpoint is up, and has the stream's table. */
static void table_is_known(struct world *w, bool deduplicates)
{
    struct pipeline *p = w->f.pipeline;
    struct target *t = w->f.stream->targets;
    struct endpoint *e = &p->clickhouse->endpoints[ENDPOINT];
    struct table_description *d = calloc(1, sizeof(*d));

    assert_non_null(d);
    *d = (struct table_description){.exists = true,
                                    .insertable = true,
                                    .engine = strdup("MergeTree"),
                                    .partition_key = strdup(""),
                                    .columns = calloc(4, sizeof(*d->columns)),
                                    .column_count = 4,
                                    .deduplicates = deduplicates,
                                    .dedup_window_entries = deduplicates ? 1000 : 0,
                                    .partitions_per_insert = 1,
                                    .partitions_per_insert_max = 1};
    assert_non_null(d->columns);
    d->columns[0] = column("id", "UInt64");
    d->columns[1] = column("topic", "String");
    d->columns[2] = column("part", "Int32");
    d->columns[3] = column("off", "Int64");
    free(e->url);
    e->url = strdup(w->server.url);
    e->state = ENDPOINT_UP;
    e->version = (struct server_version){26, 7, 2};
    e->start_ms = 1700000000000;
    t->state = TARGET_OK;
    t->asked = t->endpoint = ENDPOINT;
    t->description = d;
    t->generation = 1;
}

/* Until nothing is under way; more begins with go. */
static void settle(struct world *w)
{
    for (;;) {
        bool active = w->f.pipeline->jobs || !meta_idle(w->f.pipeline);
        for (const struct batch *b = w->f.stream->batches; b; b = b->next)
            active = active || b->busy || b->state != BATCH_WAITING;
        if (!active)
            break;
        uv_run(&w->f.loop, UV_RUN_ONCE);
        assert_true(w->server.requests <= w->answers);
    }
    w->b = w->f.stream->batches;
}

static void begin(struct world *w)
{
    for (struct batch *b = w->f.stream->batches; b; b = b->next)
        b->retry_at_ms = b->ask_from_ms = 0;
    w->f.pipeline->started = true;
    batches_advance(w->f.stream);
    w->f.pipeline->started = false;
}

/* The next step of its batches, and what comes of it. */
static void go(struct world *w)
{
    begin(w);
    settle(w);
}

static uint32_t block_rows = ROWS; /* of each partition, one block */
static int partitions = 1;         /* that have rows in the batch */
static bool suspect;               /* its rows may be in under another token */

/* A batch that is sealed and not sent yet. */
static void sealed(struct world *w, bool deduplicates, const char *const *answers)
{
    size_t n = 0;

    flow_facts = true;
    flow_open(&w->f, make_directory());
    for (; answers[n]; n++) {
        const struct step steps[] = {{.kind = STEP_HEAD},
                                     {.kind = STEP_BODY},
                                     {.kind = STEP_SEND, .text = answers[n]},
                                     {.kind = STEP_CLOSE}};
        assert_true(n + 1 < REQUESTS);
        memcpy(w->scripts[n].steps, steps, sizeof(steps));
    }
    w->scripts[n] = (struct script){{{.kind = STEP_HEAD}, {.kind = STEP_BODY}}}; /* no answer */
    w->answers = n;
    scripted_server_start(&w->server, &w->f.loop, w->scripts, n + 1);
    table_is_known(w, deduplicates);
    w->f.source->assigned_once = true;
    for (int i = 0; i < partitions; i++) {
        struct kafka_partition *p = flow_partition(&w->f, i);
        assert_non_null(flow_assign(&w->f, p, nothing));
        flow_read(&w->f, p, 0, block_rows);
    }
    w->f.stream->segments_first->first->suspect = suspect;
    go(w);
    assert_non_null(w->b);
    assert_int_equal(w->b->rows, (uint64_t)block_rows * (uint64_t)partitions);
}

static void end(struct world *w)
{
    scripted_server_close(&w->server);
    flow_remove(&w->f);
    scripted_server_free(&w->server);
}

#define WITH(w, deduplicates, ...)                                                                 \
    struct world w = {0};                                                                          \
    static const char *const w##_answers[] = {__VA_ARGS__, NULL};                                  \
    sealed(&w, deduplicates, w##_answers)

/* The text of a request, from 0 on. */
static const char *request(const struct world *w, size_t i)
{
    assert_true(i < w->server.connection_count);
    return (const char *)w->server.connections[i]->in.data;
}

static bool is_insert(const struct world *w, size_t i)
{
    return strstr(request(w, i), "/?decompress=1") != NULL;
}

static bool asks(const struct world *w, size_t i, const char *words)
{
    return !is_insert(w, i) && strstr(request(w, i), words);
}

static uint64_t spooled(const struct world *w)
{
    return stream_spooled_rows(w->f.stream);
}

/* --- what is in the table ---------------------------------------------------------------------- */

static void test_yes(void **state)
{
    (void)state;
    WITH(w, false, yes);
    assert_int_equal(spooled(&w), ROWS);
    go(&w);
    assert_null(w.b);
    assert_int_equal(spooled(&w), 0);
    end(&w);
}

/* The table has two of the rows: the others are sealed anew, and asked about by their own offsets. */
static void test_what_is_in_is_not_sent_again(void **state)
{
    (void)state;
    WITH(w, false, timed_out, one_runs, none_runs, two_rows, timed_out, none_runs, no_row);
    go(&w);
    assert_true(w.b->maybe_stored);
    go(&w);
    assert_int_equal(w.server.requests, 2); /* the attempt is not over: nobody can say */
    assert_int_equal(spooled(&w), ROWS);
    go(&w);
    assert_int_equal(w.server.requests, 4);
    assert_true(asks(&w, 3, "`off` >= 0 AND `off` <= 99"));
    assert_int_equal(spooled(&w), ROWS - 2);
    assert_int_equal(w.b->rows, ROWS - 2);
    assert_false(w.b->maybe_stored);
    assert_int_equal(w.b->part_count, 2);
    assert_int_equal(w.b->parts[0].row, 1);
    assert_int_equal(w.b->parts[0].rows, 4);
    assert_int_equal(w.b->parts[1].row, 6);
    assert_int_equal(w.b->parts[1].rows, 94);
    go(&w);
    go(&w);
    assert_true(is_insert(&w, 4));
    assert_true(asks(&w, 6, "`off` >= 1 AND `off` <= 99"));
    assert_int_equal(spooled(&w), ROWS - 2);
    end(&w);
}

/* That an attempt was proved to have stored nothing says nothing of the one before it. */
static void test_a_later_answer_proves_nothing_of_an_earlier_attempt(void **state)
{
    (void)state;
    WITH(w, true, timed_out, too_busy);
    go(&w);
    assert_true(w.b->maybe_stored);
    go(&w);
    assert_true(is_insert(&w, 1)); /* under its token */
    assert_true(w.b->maybe_stored);
    end(&w);
}

/* A repeat's 200 may be for the token alone: until the table was asked nothing is acknowledged or sent. */
static void test_a_200_to_a_repeat_is_proved(void **state)
{
    (void)state;
    WITH(w, true, timed_out, yes, one_runs, none_runs, no_row);
    go(&w);
    go(&w);
    assert_true(asks(&w, 2, "system.processes"));
    assert_int_equal(spooled(&w), ROWS);
    go(&w);
    assert_true(asks(&w, 3, "system.processes"));
    assert_int_equal(w.b->rows, ROWS);
    assert_int_equal(spooled(&w), ROWS);
    assert_false(w.b->maybe_stored); /* it is another, under a token of its own */
    end(&w);
}

/* A server that fails while it stores may keep the token alone. A restart knows it too. */
static void test_a_token_is_lost_for_good(void **state)
{
    (void)state;
    WITH(w, true, broken);
    go(&w);
    assert_true(w.b->token_lost);
    assert_false(batch_token_holds(w.b, ENDPOINT));
    scripted_server_close(&w.server);
    flow_reopen(&w.f);
    assert_true(w.f.stream->batches->token_lost);
    flow_remove(&w.f);
    scripted_server_free(&w.server);
}

/* Its seal is not the first one that such rows were under. */
static void test_what_may_be_in_under_another_token(void **state)
{
    (void)state;
    suspect = true;
    WITH(w, true, none_runs, two_rows);
    suspect = false;
    go(&w);
    assert_true(asks(&w, 0, "system.processes"));
    assert_int_equal(spooled(&w), ROWS - 2);
    end(&w);
}

/* The token is exact for our rows alone: the others' next owner may have sent them. */
static void test_what_is_no_longer_ours_is_asked_about(void **state)
{
    (void)state;
    partitions = 2;
    WITH(w, true, timed_out);
    partitions = 1;
    go(&w);
    assert_false(batch_must_ask(w.b, ENDPOINT));
    flow_revoke(&w.f, w.b->parts[1].block->origin->partition);
    assert_true(batch_must_ask(w.b, ENDPOINT));
    end(&w);
}

/* --- what can't be read any more ---------------------------------------------------------------- */

static void lose_segment(struct world *w)
{
    char command[300];

    snprintf(command, sizeof(command), "rm %s/streams/s/*.seg", w->f.path);
    assert_int_equal(system(command), 0);
}

/* Of what is damaged only that is read again which the table lacks. */
static void test_what_is_in_is_not_read_again(void **state)
{
    const struct hole *h;

    (void)state;
    WITH(w, true, timed_out, none_runs, two_rows);
    go(&w);
    lose_segment(&w);
    go(&w);
    assert_int_equal(w.server.requests, 3);
    h = w.f.stream->origins->holes;
    assert_non_null(h);
    assert_int_equal(h->noted_first, 1);
    assert_int_equal(h->last, 4);
    assert_false(h->suspect);
    h = h->next;
    assert_non_null(h);
    assert_int_equal(h->noted_first, 6);
    assert_int_equal(h->last, 99);
    assert_null(h->next);
    assert_null(w.b);
    end(&w);
}

/* Where it can't be asked, what is read again is known to be possibly there. */
static void test_what_may_be_in_is_suspect_when_it_is_read_again(void **state)
{
    (void)state;
    WITH(w, true, timed_out);
    w.f.stream->origins->told_from = 1;
    go(&w);
    lose_segment(&w);
    go(&w);
    assert_int_equal(w.server.requests, 1);
    assert_non_null(w.f.stream->origins->holes);
    assert_true(w.f.stream->origins->holes->suspect);
    assert_int_equal(w.f.stream->possible_duplicates, ROWS);
    end(&w);
}

/* --- what can't be read for a moment ------------------------------------------------------------ */

#define META_PAGES (2 * 4096) /* of them one is enough */

static ino_t failing_file;    /* 0: none */
static unsigned reads_before; /* so many of it are well; one fails, and all behind it are well */
static bool failed;

ssize_t pread(int fd, void *data, size_t size, off_t at)
{
    struct stat st;

    if (failing_file && !failed && at >= META_PAGES && !fstat(fd, &st) &&
        st.st_ino == failing_file && !reads_before--) {
        failed = true;
        errno = ENOMEM; /* it passes: what the disk says of a block would be damage */
        return -1;
    }
    return syscall(SYS_pread64, fd, data, size, at);
}

/* How many attempts were begun when the read that comes behind so many failed. It is not known whether
   the server saw one that was cut short, and took all of it: nothing is acknowledged, and it goes again. */
static unsigned attempts_with_a_failed_read(unsigned before)
{
    char token[sizeof(((struct batch *)NULL)->token)], file[300];
    unsigned attempts = 0;
    struct stat st;

    WITH(w, true, yes, yes);
    w.f.stream->origins->told_from = 1; /* the token has to do */
    snprintf(token, sizeof(token), "%s", w.b->token);
    snprintf(file, sizeof(file), "%s/streams/s/%012d.seg", w.f.path, 1);
    assert_int_equal(stat(file, &st), 0);
    reads_before = before;
    failed = false;
    failing_file = st.st_ino;
    go(&w);
    if (failed) {
        assert_non_null(w.b);
        attempts = w.b->attempts;
        assert_int_equal(spooled(&w), block_rows);
        assert_true(!w.f.stream->holds[HOLD_ANSWER] == (attempts > 0));
        if (!attempts)
            assert_int_equal(w.server.requests, 0);
        assert_null(w.f.stream->origins->holes); /* nothing is damaged */
        go(&w);
        assert_non_null(strstr(request(&w, w.server.connection_count - 1), token));
    }
    failing_file = 0;
    assert_null(w.b);
    assert_int_equal(spooled(&w), 0);
    assert_null(w.f.stream->holds[HOLD_ANSWER]);
    end(&w);
    return attempts;
}

/* In the check, and behind it, when the body is read once more. */
static void test_a_read_that_fails(void **state)
{
    unsigned reads = 0, of_the_body = 0;

    (void)state;
    block_rows = 20000; /* more than what is read at once */
    do
        of_the_body += attempts_with_a_failed_read(reads++);
    while (failed);
    block_rows = ROWS;
    assert_true(of_the_body > 1);
    assert_true(reads - 1 > of_the_body);
}

/* --- what is refused --------------------------------------------------------------------------- */

/* It is looked for bad rows only once it is known what of it is in, and is not sent between. */
static void test_what_may_be_in_is_asked_about_before_it_is_looked_through(void **state)
{
    (void)state;
    WITH(w, true, timed_out, bad_row, none_runs, two_rows);
    go(&w);
    go(&w);
    assert_true(asks(&w, 2, "system.processes"));
    assert_int_equal(w.b->rows, ROWS - 2);
    assert_non_null(w.b->refusal);
    begin(&w);
    while (w.server.requests < 5)
        uv_run(&w.f.loop, UV_RUN_ONCE);
    assert_true(asks(&w, 4, "DROP TABLE IF EXISTS"));
    end(&w);
}

/* No row can be the cause: nothing is looked for, and the stream is held. */
static void test_what_no_row_can_cause_holds(void **state)
{
    (void)state;
    WITH(w, false, damaged, damaged);
    go(&w);
    assert_false(w.f.stream->holds[HOLD_ANSWER]);
    go(&w);
    assert_true(w.f.stream->holds[HOLD_ANSWER]);
    assert_int_equal(w.server.requests, 2);
    assert_int_equal(spooled(&w), ROWS);
    end(&w);
}

/* A code that need not be of a row buries none where no other passed beside it. */
static void test_one_row_is_not_buried_on_suspicion(void **state)
{
    struct clickhouse_outcome outcome = {.code = 36, .class_ = CLASS_UNKNOWN, .text = "Bad"};

    (void)state;
    block_rows = 1;
    WITH(w, false, yes);
    block_rows = ROWS;
    hunt_start(w.b, ENDPOINT, &outcome, true);
    settle(&w);
    assert_true(w.f.stream->holds[HOLD_ANSWER]);
    assert_int_equal(spooled(&w), 1);
    w.b->retry_at_ms = 0;
    outcome.class_ = CLASS_DATA;
    hunt_start(w.b, ENDPOINT, &outcome, true);
    settle(&w);
    assert_int_equal(spooled(&w), 0);
    end(&w);
}

/* --- before it is sent ------------------------------------------------------------------------- */

/* Letters of its rows would stand beside the rows. */
static void test_letters_of_its_rows_go_first(void **state)
{
    struct spool_dead letter = {.stream = "s", .reason_name = "", .reason = "", .column = ""};
    uint64_t letters = 0, bytes = 0;

    (void)state;
    WITH(w, false, yes);
    letter.origin = w.f.stream->origins->id;
    letter.origin_name = w.f.stream->origins->name;
    letter.offset = 7;
    check_ok(spool_dead_put(w.f.spool, &letter, 1, NULL, &the_error));
    w.f.stream->dead_letters = 1;
    w.b->lettered = true;
    go(&w);
    check_ok(spool_dead_count(w.f.spool, "s", &letters, &bytes, &the_error));
    assert_int_equal(letters, 0);
    assert_int_equal(w.server.requests, 0);
    go(&w);
    assert_int_equal(spooled(&w), 0);
    end(&w);
}

/* Each half has rows of its own, and no row is in none. */
static void test_halves_are_the_whole(void **state)
{
    static const struct row_span spans[] = {{10, 20}, {40, 45}},
                                 stored[] = {{0, 10}, {30, 10}, {85, 15}};
    uint64_t rows = 0;

    (void)state;
    WITH(w, false, yes);
    check_ok(batch_split(w.b, stored, 3, spans, 2));
    settle(&w);
    assert_int_equal(spooled(&w), 65);
    for (const struct batch *b = w.b; b; b = b->next) {
        rows += b->rows;
        assert_int_equal(b->parts[0].row, b == w.b ? 10 : 52);
    }
    assert_int_equal(rows, 65);
    end(&w);
}

/* --- what can be asked ------------------------------------------------------------------------- */

static void test_what_can_be_told(void **state)
{
    char replay[] = "replay/s", *name;
    struct table_description *d;
    struct origin *o;

    (void)state;
    WITH(w, false, yes);
    d = w.f.stream->targets->description;
    o = w.f.stream->origins;
    assert_true(ask_possible(w.b));
    o->superseded = true; /* its offsets are another log's too */
    assert_false(ask_possible(w.b));
    o->superseded = false;
    o->told_from = 1;
    assert_false(ask_possible(w.b));
    o->told_from = 0;
    name = o->name;
    o->name = replay; /* its rows have their records' own offsets */
    assert_false(ask_possible(w.b));
    o->name = name;
    d->engine[0] = 'm'; /* it may merge rows away */
    assert_false(ask_possible(w.b));
    d->engine[0] = 'M';
    d->columns[3].name[0] = 'O'; /* the column is gone */
    assert_false(ask_possible(w.b));
    d->columns[3].name[0] = 'o';
    assert_true(ask_possible(w.b));
    end(&w);
}

static void test_a_question(void **state)
{
    static const char words[] =
        "SELECT transform(concat('kafka/', toString(`topic`), '/', toString(`part`)), "
        "['kafka/t/0'], [1], 0), `off` FROM `default`.`t` WHERE (`topic` = 't' AND `part` = 0 AND "
        "`off` >= 3 AND `off` <= 9) FORMAT TabSeparated";
    struct table_description *d;
    struct ask_origin origin = {.low = 3, .high = 9};
    struct ask a = {.origins = &origin, .origin_count = 1};
    struct buf sql;

    (void)state;
    WITH(w, false, yes);
    d = w.f.stream->targets->description;
    origin.origin = w.f.stream->origins;
    a.batch = w.b;
    buf_init(&sql, MIB);
    check_ok(ask_statement(&a, &sql));
    assert_string_equal(buf_cstr(&sql), words);
    buf_reset(&sql);
    free(d->columns[1].type);
    d->columns[1].type = strdup("FixedString(8)"); /* zeros fill it up */
    check_ok(ask_statement(&a, &sql));
    assert_non_null(strstr(buf_cstr(&sql), "WHERE (toStringCutToZero(`topic`) = 't' AND"));
    assert_non_null(strstr(buf_cstr(&sql), "toString(toStringCutToZero(`topic`))"));
    buf_free(&sql);
    end(&w);
}

/* --- what an answer proves --------------------------------------------------------------------- */

/* Without room nothing is stored where a batch is one part of one table, and the answer says so. */
static void test_no_room(void **state)
{
    struct clickhouse_outcome outcome = {.code = 243, .http_status = 500, .unknown = true};
    struct table_description *d;

    (void)state;
    WITH(w, false, yes);
    d = w.f.stream->targets->description;
    assert_true(batch_proves_itself_out(w.b, &outcome));
    outcome.http_status = 200;
    assert_false(batch_proves_itself_out(w.b, &outcome));
    outcome.http_status = 500;
    outcome.code = 209;
    assert_false(batch_proves_itself_out(w.b, &outcome));
    outcome.code = 243;
    d->views = true;
    assert_false(batch_proves_itself_out(w.b, &outcome));
    d->views = false;
    free(d->partition_key);
    d->partition_key = strdup("id");
    assert_false(batch_proves_itself_out(w.b, &outcome));
    end(&w);
}

static void test_what_costs_a_token(void **state)
{
    static const struct {
        struct clickhouse_outcome outcome;
        bool costs;
    } rows[] = {
        {{.code = 1001, .unknown = true}, true},
        {{.code = 1001}, false},
        {{.code = 0, .unknown = true}, false},
        {{.code = 159, .unknown = true}, false},
        {{.code = 6, .unknown = true, .of_view = true}, false},
        {{.code = 1001, .unknown = true, .of_view = true}, true},
        {{.code = 252, .unknown = true, .before_view = true}, false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_int_equal(outcome_is_of_commit(&rows[i].outcome), rows[i].costs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_yes),
        cmocka_unit_test(test_what_is_in_is_not_sent_again),
        cmocka_unit_test(test_a_later_answer_proves_nothing_of_an_earlier_attempt),
        cmocka_unit_test(test_a_200_to_a_repeat_is_proved),
        cmocka_unit_test(test_a_token_is_lost_for_good),
        cmocka_unit_test(test_what_may_be_in_under_another_token),
        cmocka_unit_test(test_what_is_no_longer_ours_is_asked_about),
        cmocka_unit_test(test_what_is_in_is_not_read_again),
        cmocka_unit_test(test_what_may_be_in_is_suspect_when_it_is_read_again),
        cmocka_unit_test(test_a_read_that_fails),
        cmocka_unit_test(test_what_may_be_in_is_asked_about_before_it_is_looked_through),
        cmocka_unit_test(test_what_no_row_can_cause_holds),
        cmocka_unit_test(test_one_row_is_not_buried_on_suspicion),
        cmocka_unit_test(test_letters_of_its_rows_go_first),
        cmocka_unit_test(test_halves_are_the_whole),
        cmocka_unit_test(test_what_can_be_told),
        cmocka_unit_test(test_a_question),
        cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_what_costs_a_token),
    };
    cmocka_set_test_filter(getenv("TEST_FILTER"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
