# SPDX-License-Identifier: Apache-2.0
"""Rows that only ClickHouse refuses: found, set aside, the rest goes in."""
from support.spoold import stream


def test_one_poison_row_among_many(kafka, engine, spoold):
    topic = kafka.create_topic(2)
    table = engine.create_table(f"{engine.bench_columns}, CONSTRAINT c CHECK id != 77777",
                                order_by="id", window=1000)
    kafka.produce(topic, 100000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait_rows(engine, table, 99999, 60)
    assert engine.unique(table) == 99999
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                20, "committed to the end")
    letters = daemon.ctl("dead", "ls", "s", "--json")[1]
    letters = letters if isinstance(letters, list) else [letters]
    assert len(letters) == 1
    assert letters[0]["record"].startswith('{"id":77777,')
    assert letters[0]["code"] == 469 and "onstraint" in letters[0]["reason"]
    assert daemon.stream_status("s")["state"] == "running"
    assert "spoold_trial" not in engine.query("SHOW TABLES")


def test_a_thousand_poison_rows_in_one_batch(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table(f"{engine.bench_columns}, CONSTRAINT c CHECK id % 100 != 42",
                                order_by="id", window=1000)
    kafka.produce(topic, 100000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait_rows(engine, table, 99000, 120)
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 1000, 20, "dead letters")
    parts = engine.number(f"SELECT count() FROM system.parts WHERE table = '{table}'")
    assert parts < 50, f"{parts} parts"


def test_more_than_bad_ratio_holds_and_buries_nothing(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table(f"{engine.bench_columns}, CONSTRAINT c CHECK id % 10 != 3",
                                order_by="id", window=1000)
    kafka.produce(topic, 20000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: "bad_ratio" in daemon.stream_status("s")["reason"], 60, "held")
    assert daemon.stream_status("s")["dead_letters"] == 0
    assert engine.count(table) == 0
    engine.query(f"ALTER TABLE {table} DROP CONSTRAINT c")  # the cause is mended
    daemon.wait_rows(engine, table, 20000, 60)
    assert daemon.stream_status("s")["dead_letters"] == 0


def test_every_row_bad_does_not_melt_the_server(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table(f"{engine.bench_columns}, CONSTRAINT c CHECK id < 0",
                                order_by="id", window=1000)
    kafka.produce(topic, 50000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: "bad_ratio" in daemon.stream_status("s")["reason"], 60, "held")
    assert engine.count(table) == 0
    assert daemon.stream_status("s")["dead_letters"] == 0
    engine.query(f"ALTER TABLE {table} DROP CONSTRAINT c")
    daemon.wait_rows(engine, table, 50000, 60)


def test_the_operator_may_let_them_go(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table(f"{engine.bench_columns}, CONSTRAINT c CHECK id % 10 != 3",
                                order_by="id", window=1000)
    kafka.produce(topic, 2000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: "bad_ratio" in daemon.stream_status("s")["reason"], 60, "held")
    daemon.ctl("resume", "s", "--accept-bad")
    daemon.wait_rows(engine, table, 1800, 60)
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 200, 20, "200 dead letters")


def test_killed_while_hunting(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table(f"{engine.bench_columns}, CONSTRAINT c CHECK id % 1000 != 42",
                                order_by="id", window=1000)
    kafka.produce(topic, 50000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)])
    for failpoints in ("dead.before_commit=kill", "dead.after_commit=kill",
                       "seal.before_commit=kill", "seal.after_commit=kill"):
        daemon.launch(failpoints)
        assert daemon.wait_exit(60) == -9
    daemon.start()
    daemon.wait_rows(engine, table, 49950, 60)
    assert engine.unique(table) == 49950
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 50, 20, "50 dead letters")
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                20, "committed to the end")
