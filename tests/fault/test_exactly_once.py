# SPDX-License-Identifier: Apache-2.0
"""Exactly once where the table carries the origin of its rows: by asking, on both servers."""
import os

import pytest

from support.process import hold_for
from support.proxy import Fault, refusal
from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]


def columns_of(server):
    return [{"name": c.strip().split(" ")[0]} for c in server.bench_columns.split(",")] + ORIGIN


def committed(daemon, kafka, topic):
    return lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic)


def test_server_killed_in_mid_insert_again_and_again(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000, origin=True)
    kafka.produce(topic, 600000)
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns_of(server), flush={
        "rows": 30000})]).start()
    assert daemon.stream_status("s")["table"].endswith(table)
    for _ in range(5):
        before = server.count(table)
        daemon.wait(lambda: server.count(table) > before or before == 600000, 60, "more rows")
        daemon.wait(lambda: daemon.stream_status("s")["batches"]["in_flight"] > 0
                    or daemon.stream_status("s")["rows_inserted"] >= 600000, 30, "an insert")
        server.kill()
        server.start()
    daemon.wait(lambda: server.unique(table) == 600000, 90, "all rows")
    daemon.wait(committed(daemon, kafka, topic), 30, "committed to the end")
    assert server.count(table) == 600000
    assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_daemon_killed_at_every_point(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000, origin=True)
    kafka.produce(topic, 600000)
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns_of(server), flush={
        "rows": 20000})])
    for failpoints in ("seal.after_commit=kill@2", "send.started=kill@2", "send.body_done=kill@2",
                       "answer.ok=kill@2", "ack.before_commit=kill@2", "ack.after_commit=kill@2",
                       "send.body_done=kill@1", "answer.ok=kill@1"):
        daemon.launch(failpoints)
        assert daemon.wait_exit(60) == -9
    daemon.start()
    daemon.wait(lambda: server.unique(table) == 600000, 90, "all rows")
    daemon.wait(committed(daemon, kafka, topic), 30, "committed to the end")
    assert server.count(table) == 600000
    status = daemon.stream_status("s")
    assert status["delivery"] == "exactly_once", status


def test_both_killed(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000, origin=True)
    kafka.produce(topic, 300000)
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns_of(server), flush={
        "rows": 20000})])
    for _ in range(4):
        daemon.launch("send.body_done=kill@2")
        assert daemon.wait_exit(60) == -9
        server.kill()
        server.start()
    daemon.start()
    daemon.wait(lambda: server.unique(table) == 300000, 90, "all rows")
    assert server.count(table) == 300000


def test_frozen_server_is_an_unknown_outcome(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_bench_table(window=1000, origin=True)
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns_of(server))])
    daemon.config["clickhouse"]["stall_timeout"] = "2s"
    daemon.start()
    kafka.produce(topic, 1000)
    daemon.wait_rows(server, table, 1000)
    server.freeze()
    try:
        kafka.produce(topic, 50000, "--first", 1000)
        daemon.wait_state("s", "down", 30)
        hold_for(3, lambda: daemon.alive())
    finally:
        server.thaw()
    daemon.wait(lambda: server.unique(table) == 51000, 60, "all rows")
    assert server.count(table) == 51000


@pytest.mark.parametrize("question, code, advice", [
    ("concat('kafka/'", 241, "max_memory_usage of spoold's user"),
    ("system.processes", 497, "SELECT on `default`.`{table}`")], ids=["rows", "processes"])
def test_a_table_that_may_not_be_read_holds_the_stream(kafka, server, proxy, spoold, question, code,
                                                       advice):
    """An answer is lost, and who could tell is not to be asked: said, and nothing is done with the rows
    until that is mended."""
    between, topic = proxy(server), kafka.create_topic(1)
    table = server.create_bench_table(window=1000, origin=True)
    daemon = spoold(kafka, between.url, [stream("s", topic, table, columns=columns_of(server))])
    kafka.produce(topic, 1000)
    daemon.start().wait_rows(server, table, 1000)
    between.answer_instead(question, refusal(code, "Not now."))
    lost = between.arm(Fault("answer", how="rst"), "s")
    kafka.produce(topic, 500, "--first", 1000)
    daemon.wait(lost.struck.is_set, 30, "the answer is lost")
    daemon.wait_state("s", "held")
    reason = daemon.stream_status("s")["reason"]
    assert "can't be asked" in reason and f"code {code}" in reason, reason
    assert advice.format(table=table) in reason, reason
    assert code == 497 or "SELECT on" not in reason, reason
    assert daemon.events("batch.ask_failed")
    between.answer_instead(question, None)
    daemon.wait(committed(daemon, kafka, topic), 30, "committed to the end")
    daemon.wait_state("s", "running")
    assert server.count(table) == server.unique(table) == 1500
    assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_a_repeat_is_proved_after_all(kafka, engine, proxy, spoold):
    """The question that proves the 200 to a repeat gets no answer: it is asked again, and no row is
    sent again or believed."""
    between, topic = proxy(engine), kafka.create_topic(1)
    table = engine.create_bench_table(window=1000, origin=True)
    daemon = spoold(kafka, between.url, [stream("s", topic, table, columns=columns_of(engine))])
    kafka.produce(topic, 1000)
    daemon.start().wait_rows(engine, table, 1000)
    between.answer_instead("concat('kafka/'", b"")
    lost = between.arm(Fault("answer", how="rst"), "s")
    kafka.produce(topic, 500, "--first", 1000)
    daemon.wait(lost.struck.is_set, 30, "the answer is lost")
    daemon.wait(lambda: between.asked("concat('kafka/'") >= 2, 30, "asked again")
    assert len([r for r in between.inserts("s") if r.status == 200]) == 3
    between.answer_instead("concat('kafka/'", None)
    daemon.wait(committed(daemon, kafka, topic), 30, "committed to the end")
    assert [e["stored"] for e in daemon.events("batch.asked")] == ["500"]
    assert len(between.inserts("s")) == 3  # the first, the lost one, its repeat
    assert engine.count(table) == engine.unique(table) == 1500


def test_server_killed_in_mid_insert_over_many_partitions(kafka, server, spoold):
    topic = kafka.create_topic(2)
    columns = server.bench_columns + ", _topic String, _partition Int32, _offset Int64"
    table = server.create_table(columns, order_by="id", window=10000,
                                extra=" PARTITION BY id % 60")
    kafka.produce(topic, 200000)
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns_of(server), flush={
        "rows": 50000})]).start()
    for _ in range(3):
        daemon.wait(lambda: daemon.stream_status("s")["batches"]["in_flight"] > 0
                    or daemon.stream_status("s")["rows_inserted"] >= 200000, 60, "an insert")
        before = server.count(table)
        daemon.wait(lambda: server.count(table) > before or before == 200000, 60, "more rows")
        server.kill()
        server.start()
    daemon.wait(lambda: server.unique(table) == 200000, 90, "all rows")
    daemon.wait(committed(daemon, kafka, topic), 60, "committed to the end")
    assert server.count(table) == 200000
    assert daemon.metric("spoold_possible_duplicates_total") == 0


@pytest.mark.parametrize("names", ["_topic FixedString(64), _partition Int32",
                                   "_origin Nullable(FixedString(64))"])
def test_names_that_the_table_pads_are_asked_for(kafka, server, proxy, spoold, names):
    """A FixedString is longer than what was put into it."""
    between = proxy(server)
    topic = kafka.create_topic(1)
    table = server.create_table(f"{server.bench_columns}, {names}, _offset Int64", order_by="id")
    origin = ORIGIN if "_topic" in names else [{"name": "_origin", "from": "$origin"}, ORIGIN[2]]
    between.arm(Fault("answer", how="rst"), "s")
    kafka.produce(topic, 1000)
    daemon = spoold(kafka, between.url, [stream(
        "s", topic, table, columns=columns_of(server)[:-len(ORIGIN)] + origin)]).start()
    daemon.wait(committed(daemon, kafka, topic), 60, "committed to the end")
    assert server.count(table) == 1000
    assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_a_long_answer_is_read_to_its_end(kafka, clickhouse, spoold):
    """Of a large batch, about rows whose origin has a long name."""
    rows, topic = 700000, kafka.create_topic(1, name="t" * 230 + os.urandom(3).hex())
    table = clickhouse.create_bench_table(origin=True)
    daemon = spoold(kafka, clickhouse, [stream("s", topic, table, columns=columns_of(clickhouse),
                                               flush={"rows": rows, "bytes": "1GiB",
                                                      "interval": "1m"})])
    kafka.produce(topic, rows)
    daemon.launch("answer.ok=kill")
    assert daemon.wait_exit(90) == -9
    assert clickhouse.count(table) >= 600000
    daemon.start()
    daemon.wait(lambda: daemon.events("batch.asked") or daemon.events("batch.ask_failed"), 60, "asked")
    assert not daemon.events("batch.ask_failed")
    daemon.wait(committed(daemon, kafka, topic), 90, "committed to the end")
    assert clickhouse.count(table) == rows
