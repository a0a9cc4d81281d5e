# SPDX-License-Identifier: Apache-2.0
"""Rows that only ClickHouse refuses: found, set aside, the rest goes in."""
import pytest

from support.proxy import refusal
from support.spoold import stream


def poisoned_table(server, condition, **options):
    """Refuses rows by a CHECK that names the row on 26.7, by a column that throws on 18.16."""
    if server.modern:
        extra = f"CONSTRAINT c CHECK NOT ({condition})"
    else:
        extra = f"poison UInt8 MATERIALIZED throwIf({condition})"
    return server.create_table(f"{server.bench_columns}, {extra}", order_by="id", window=1000,
                               **options)


def mend(server, table):
    server.query(f"ALTER TABLE {table} " +
                 ("DROP CONSTRAINT c" if server.modern else "DROP COLUMN poison"))


def letters_of(daemon):
    letters = daemon.ctl("dead", "ls", "s", "--json")[1]
    return letters if isinstance(letters, list) else [letters]


def parts_of(server, table):
    """All that were ever written and not yet cleared away."""
    return server.number(f"SELECT count() FROM system.parts WHERE table = '{table}'")


def inserts_of(server):
    """INSERTs the server has begun, failed ones too."""
    return server.number("SELECT sum(value) FROM system.events WHERE event = 'InsertQuery'")


def committed(daemon, kafka, topic):
    return lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic)


def test_one_poison_row_among_many(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = poisoned_table(server, "id = 77777")
    kafka.produce(topic, 100000)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_rows(server, table, 99999, 60)
    assert server.unique(table) == 99999
    daemon.wait(committed(daemon, kafka, topic), 20, "committed to the end")
    letters = letters_of(daemon)
    assert len(letters) == 1
    assert letters[0]["record"].startswith('{"id":77777,')
    assert letters[0]["code"] == (469 if server.modern else 395)
    assert ("violated at row 1." if server.modern else "throwIf") in letters[0]["reason"]
    assert daemon.stream_status("s")["state"] == "running"
    daemon.wait(lambda: "spoold_trial" not in server.query("SHOW TABLES"), 20, "the clone is gone")


def test_a_thousand_poison_rows_in_one_batch(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = poisoned_table(server, "id % 100 = 42")
    kafka.produce(topic, 100000)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_rows(server, table, 99000, 300)
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 1000, 20, "dead letters")
    assert server.unique(table) == 99000
    assert parts_of(server, table) < 20


def test_each_dead_letter_has_its_own_reason(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table(f"{engine.bench_columns}, CONSTRAINT a CHECK id % 400 != 42, "
                                "CONSTRAINT b CHECK id != 7", order_by="id", window=1000)
    kafka.produce(topic, 4000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait_rows(engine, table, 3989, 60)
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 11, 20, "dead letters")
    for letter in letters_of(daemon):
        row = int(letter["record"].split(":")[1].split(",")[0])
        assert f"id = {row}" in letter["reason"], letter
        assert f"Constraint `{'b' if row == 7 else 'a'}`" in letter["reason"], letter


def test_more_than_bad_ratio_holds_and_buries_nothing(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = poisoned_table(server, "id % 10 = 3")
    kafka.produce(topic, 20000)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait(lambda: "bad_ratio" in daemon.stream_status("s")["reason"], 60, "held")
    assert daemon.stream_status("s")["dead_letters"] == 0
    assert server.count(table) == 0
    mend(server, table)
    daemon.wait_rows(server, table, 20000, 60)
    assert daemon.stream_status("s")["dead_letters"] == 0


def test_every_row_bad_does_not_melt_the_server(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = poisoned_table(server, "id >= 0")
    kafka.produce(topic, 100000)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={"interval": "2s"})])
    before = inserts_of(server)
    daemon.start()
    daemon.wait(lambda: "bad_ratio" in daemon.stream_status("s")["reason"], 60, "held")
    assert inserts_of(server) - before < 300
    # Tried again and again, but not hunted through each time.
    daemon.wait(lambda: daemon.stream_status("s")["retries"] >= 4, 60, "some retries")
    assert inserts_of(server) - before < 500
    assert server.count(table) == 0
    assert daemon.stream_status("s")["dead_letters"] == 0
    mend(server, table)
    daemon.wait_rows(server, table, 100000, 60)
    assert daemon.stream_status("s")["dead_letters"] == 0


def test_the_operator_may_let_them_go(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = poisoned_table(engine, "id % 10 = 3")
    kafka.produce(topic, 2000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: "bad_ratio" in daemon.stream_status("s")["reason"], 60, "held")
    daemon.ctl("resume", "s", "--accept-bad")
    daemon.wait_rows(engine, table, 1800, 60)
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 200, 20, "200 dead letters")


def test_killed_while_hunting(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = poisoned_table(server, "id % 1000 = 42")
    kafka.produce(topic, 50000)
    daemon = spoold(kafka, server, [stream("s", topic, table)])
    for failpoints in ("hunt.table_made=kill", "hunt.trial=kill@5", "hunt.found=kill",
                       "dead.before_commit=kill", "dead.after_commit=kill",
                       "replace.before_commit=kill", "replace.after_commit=kill",
                       "send.started=kill"):
        daemon.launch(failpoints)
        assert daemon.wait_exit(60) == -9, failpoints
    daemon.start()
    daemon.wait_rows(server, table, 49950, 60)
    assert server.unique(table) == 49950
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 50, 20, "50 dead letters")
    daemon.wait(committed(daemon, kafka, topic), 20, "committed to the end")
    assert len({letter["offset"] for letter in letters_of(daemon)}) == 50


# The partition key is nothing a Null table has: only real inserts tell.
@pytest.mark.parametrize("kills", [False, True])
def test_what_trials_can_not_see_is_found_by_halves(kafka, server, spoold, kills):
    topic = kafka.create_topic(1)
    table = server.create_table(
        server.bench_columns, window=1000,
        engine="MergeTree PARTITION BY intDiv(0, toInt64(id) - 777) ORDER BY id")
    kafka.produce(topic, 2000)
    daemon = spoold(kafka, server, [stream("s", topic, table)])
    if kills:
        for failpoints in ("replace.before_commit=kill@2", "replace.after_commit=kill@2",
                           "answer.ok=kill", "dead.before_commit=kill", "dead.after_commit=kill"):
            daemon.launch(failpoints)
            assert daemon.wait_exit(60) == -9, failpoints
    daemon.start()
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 1, 60, "the dead letter")
    daemon.wait(committed(daemon, kafka, topic), 30, "committed to the end")
    assert server.unique(table) == 1999
    assert letters_of(daemon)[0]["record"].startswith('{"id":777,')
    assert parts_of(server, table) <= 24
    possible = sum(int(e["rows"]) for e in daemon.events("batch.possible_duplicates", whole=True))
    assert server.count(table) - 1999 <= (0 if server.deduplicates else possible)


def test_halves_are_bounded(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table(
        engine.bench_columns, window=1000,
        engine="MergeTree PARTITION BY intDiv(0, id % 50) ORDER BY id")
    kafka.produce(topic, 20000)
    before = inserts_of(engine)
    daemon = spoold(kafka, engine, [stream("s", topic, table, bad_ratio=0.5)]).start()
    daemon.wait(lambda: "halves of a refused batch" in daemon.stream_status("s")["reason"], 120,
                "held")
    assert inserts_of(engine) - before < 250
    assert parts_of(engine, table) <= 200
    seen = inserts_of(engine)
    daemon.ctl("resume", "s")  # go on with as many again
    daemon.wait(lambda: inserts_of(engine) - seen > 50, 30, "it goes on")


def test_the_operator_lets_them_go_once_for_all_halves(kafka, engine, spoold):
    """What of the batch goes in meanwhile takes nothing of it back."""
    topic = kafka.create_topic(1)
    table = engine.create_table(
        engine.bench_columns, window=1000,
        engine="MergeTree PARTITION BY intDiv(0, toInt64(id) % 40 - 33) ORDER BY id")
    kafka.produce(topic, 400)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: "bad_ratio" in daemon.stream_status("s")["reason"], 60, "held")
    daemon.ctl("resume", "s", "--accept-bad")
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 10, 60, "10 dead letters")
    daemon.wait_rows(engine, table, 390, 60)
    daemon.wait(committed(daemon, kafka, topic), 20, "committed to the end")


def test_a_clone_that_may_not_be_inserted_into(kafka, engine, proxy, spoold):
    """The right to create tables, and none in them: it is as if none could be made."""
    topic, between = kafka.create_topic(1), proxy(engine)
    table = poisoned_table(engine, "id = 777")
    between.answer_instead("INSERT INTO", refusal(497, "Not enough privileges."))
    kafka.produce(topic, 2000)
    daemon = spoold(kafka, between.url, [stream("s", topic, table)]).start()
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 1, 60, "the dead letter")
    daemon.wait(committed(daemon, kafka, topic), 30, "committed to the end")
    assert between.asked("INSERT INTO")
    assert engine.count(table) == engine.unique(table) == 1999
    assert "privileges" in daemon.events("hunt.no_trial_table")[0]["error"]


def test_a_clone_that_may_not_be_dropped(kafka, engine, proxy, spoold):
    """What is left of a former hunt is not the table as it is now."""
    topic, between = kafka.create_topic(1), proxy(engine)
    table = poisoned_table(engine, "id % 1000 = 777")
    between.answer_instead("DROP TABLE", refusal(497, "Not enough privileges."))
    daemon = spoold(kafka, between.url, [stream("s", topic, table)]).start()
    kafka.produce(topic, 1000)
    daemon.wait(committed(daemon, kafka, topic), 60, "committed to the end")
    mend(engine, table)
    engine.query(f"ALTER TABLE {table} ADD CONSTRAINT d CHECK id != 1500")
    kafka.produce(topic, 1000, "--first", 1000)
    daemon.wait(committed(daemon, kafka, topic), 60, "committed to the end")
    assert {letter["record"].split(",")[0] for letter in letters_of(daemon)} == {
        '{"id":777', '{"id":1500'}
    assert engine.count(table) == engine.unique(table) == 1998
