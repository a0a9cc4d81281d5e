# SPDX-License-Identifier: Apache-2.0
"""Servers that are not there, come back, or die in the middle; the daemon that stops and starts."""
from contextlib import contextmanager

import pytest

from support.process import hold_for, wait_until
from support.spoold import stream


def drained(daemon, kafka, topic):
    return lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic)


def assert_exact(server, table, count):
    assert server.unique(table) == count
    if server.deduplicates:
        assert server.count(table) == count


@contextmanager
def unanswered(daemon, kafka, topic, server, first):
    """While it lasts, an insert of 1000 records is under way that the server does not answer."""
    server.freeze()
    try:
        kafka.produce(topic, 1000, "--first", first)
        daemon.wait(lambda: daemon.stream_status("s")["batches"]["in_flight"] > 0, 30, "an insert")
        yield
    finally:
        server.thaw()


def test_clickhouse_down_at_start(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 30000)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_rows(server, table, 30000)
    assert daemon.sigterm() == 0
    server.stop()
    kafka.produce(topic, 30000, "--first", 30000)
    daemon.start()  # the schema comes from the spool's own cache
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 30000, 30, "rows spooled")
    daemon.wait_state("s", "down")
    assert kafka.committed_offsets(daemon.group, topic) == {0: 15000, 1: 15000}
    server.start()
    daemon.wait_rows(server, table, 60000)
    daemon.wait(drained(daemon, kafka, topic), 20, "committed to the end")
    assert_exact(server, table, 60000)
    daemon.wait_state("s", "running")


def test_clickhouse_down_at_the_first_start_with_types_in_the_config(kafka, server, spoold):
    topic = kafka.create_topic(1)
    columns = [{"name": name, "type": kind} for name, kind in
               (c.strip().split(" ") for c in server.bench_columns.split(","))]
    server.stop()
    kafka.produce(topic, 1000)
    daemon = spoold(kafka, server, [stream("s", topic, "first_start", columns=columns,
                                           create_table={"order_by": "id"})]).start()
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 1000, 30, "rows spooled")
    server.start()
    try:
        daemon.wait(lambda: "first_start" in server.query("SHOW TABLES"), 30, "table made")
        daemon.wait_rows(server, "first_start", 1000)
    finally:
        server.drop_table("first_start")


def test_clickhouse_stopped_under_load(kafka, server, spoold):
    topic = kafka.create_topic(4)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    producer = kafka.producer(topic, 10**9, "--rate", 15000)
    daemon.wait(lambda: server.count(table) > 5000, 30, "rows")
    server.stop()
    daemon.wait_state("s", "down")
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] > 100000, 60, "rows spooled")
    server.start()
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] < 50000, 60, "the backlog goes")
    sent = producer.stop()
    daemon.wait(lambda: server.unique(table) == sent, 60, "all rows")
    daemon.wait(drained(daemon, kafka, topic), 20, "committed to the end")
    assert_exact(server, table, sent)


def test_clickhouse_killed_in_mid_insert(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 400000)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={"rows": 50000})]).start()
    for _ in range(3):
        before = server.count(table)
        daemon.wait(lambda: server.count(table) > before, 60, "more rows")
        daemon.wait(lambda: daemon.stream_status("s")["batches"]["in_flight"] > 0
                    or daemon.stream_status("s")["rows_inserted"] >= 400000, 30, "an insert")
        server.kill()
        server.start()
    daemon.wait(lambda: server.unique(table) == 400000, 60, "all rows")
    daemon.wait(drained(daemon, kafka, topic), 20, "committed to the end")
    # The server restarted: its token proves nothing, and there are no origin columns to ask for.
    doubled = server.count(table) - 400000
    assert 0 <= doubled <= daemon.metric("spoold_possible_duplicates_total")


def test_broker_stopped_and_started(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 10000)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_rows(server, table, 10000)
    kafka.stop()
    daemon.wait(lambda: not daemon.status()["kafka"]["connected"], 60, "the broker is missed")
    kafka.start()
    kafka.produce(topic, 10000, "--first", 10000)
    daemon.wait_rows(server, table, 20000, 90)
    daemon.wait(drained(daemon, kafka, topic), 60, "committed to the end")
    assert_exact(server, table, 20000)


def test_what_is_sealed_goes_at_once_after_a_restart_without_a_broker(kafka, engine, spoold):
    """Nobody else can have its partitions yet: it was in the group a moment ago."""
    topic, table = kafka.create_topic(2), engine.create_bench_table(window=1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: daemon.events("kafka.assigned"), 60, "its partitions")
    with unanswered(daemon, kafka, topic, engine, first=0):
        hold_for(2.5)  # a sign of life is given each second
        daemon.kill9()
        kafka.kill()
    daemon.start()
    # Well before the 30 s for which a group that says nothing is waited for.
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] > 0, 25, "the sealed rows")
    assert not daemon.events("kafka.connected")
    kafka.start()
    daemon.wait_rows(engine, table, 1000)
    daemon.wait(drained(daemon, kafka, topic), 60, "every offset committed")
    assert_exact(engine, table, 1000)


@pytest.mark.long
def test_the_broker_is_back_after_the_session(kafka, engine, spoold):
    """An insert ends while the broker is away, so its offsets are to be committed just then. The session
    ends, and the broker comes back with the group as it was: the client has to forget who it was, and
    must not say a word in nobody's name before it has joined again."""
    topic = kafka.create_topic(2)
    table = engine.create_bench_table()
    daemon = spoold(kafka, engine, [stream("s", topic, table)])
    daemon.config["kafka"]["properties"]["session.timeout.ms"] = "6000"
    daemon.start()
    kafka.produce(topic, 1000)
    daemon.wait(drained(daemon, kafka, topic), 30, "committed to the end")
    with unanswered(daemon, kafka, topic, engine, first=1000):
        kafka.kill()
        hold_for(3, daemon.alive)  # what is committed now would be kept by the client for 6 s
    daemon.wait_log(r"partition\.lost", 30)
    kafka.start()
    daemon.wait(drained(daemon, kafka, topic), 60, "committed to the end")
    assert engine.unique(table) == engine.count(table) == 2000


def test_sigterm_under_load_keeps_everything(kafka, server, spoold):
    topic = kafka.create_topic(4)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 300000)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={"rows": 20000})])
    for _ in range(4):
        daemon.start()
        before = server.count(table)
        daemon.wait(lambda: server.count(table) > before or before == 300000, 60, "rows")
        assert daemon.sigterm() == 0
        committed = sum(v or 0 for v in kafka.committed_offsets(daemon.group, topic).values())
        assert committed <= server.unique(table)
    daemon.start()
    daemon.wait_rows(server, table, 300000, 60)
    assert server.unique(table) == 300000


def test_sigterm_with_clickhouse_down_does_not_wait(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 1000)
    daemon = spoold(kafka, server, [stream("s", topic, table)], shutdown_timeout="60s").start()
    daemon.wait_rows(server, table, 1000)
    server.stop()
    kafka.produce(topic, 1000, "--first", 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 1000, 30, "rows spooled")
    assert daemon.sigterm(seconds=20) == 0
    server.start()
    daemon.start()
    daemon.wait_rows(server, table, 2000)


def test_sigterm_with_an_insert_that_is_not_answered(kafka, server, spoold):
    """Given up when shutdown_timeout is over: an end in order all the same."""
    topic = kafka.create_topic(1)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table)], shutdown_timeout="1s").start()
    kafka.produce(topic, 1000)
    daemon.wait_rows(server, table, 1000)
    with unanswered(daemon, kafka, topic, server, first=1000):
        assert daemon.sigterm() == 0
    assert "drain.timeout" in daemon.log()
    daemon.start()
    daemon.wait(lambda: server.unique(table) == 2000, 30, "all rows")


def test_sigterm_under_load_that_waits_for_nothing(kafka, server, spoold):
    """Jobs of every kind come back to a daemon that is closing."""
    topic = kafka.create_topic(4)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 300000)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={"rows": 2000})],
                    shutdown_timeout="0s", spool={"segment_bytes": "1MiB", "keep_acknowledged": "0s"})
    for _ in range(10):
        daemon.start()
        before = server.count(table)
        daemon.wait(lambda: server.count(table) > before or before >= 300000, 60, "rows")
        assert daemon.sigterm() == 0, daemon.child.log_tail()
    daemon.start()
    daemon.wait(lambda: server.unique(table) == 300000, 60, "all rows")


def test_sigterm_while_joining_the_group(kafka, server, spoold):
    topic = kafka.create_topic(4)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_log(r"partition\.assigned")
    assert daemon.sigterm() == 0
    for _ in range(12):  # the group knows the member: joining takes milliseconds
        daemon.start()
        daemon.wait_log(r"kafka\.connected")
        assert daemon.sigterm() == 0
    kafka.produce(topic, 1000)
    daemon.start()
    daemon.wait_rows(server, table, 1000)


def test_second_signal_ends_at_once(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table)], shutdown_timeout="10m").start()
    kafka.produce(topic, 1000)
    daemon.wait_rows(server, table, 1000)
    with unanswered(daemon, kafka, topic, server, first=1000):
        daemon.child.signal(15)
        daemon.wait_log("draining|stopping|drain")
        assert daemon.alive()
        daemon.child.signal(15)
        assert daemon.wait_exit(10) != 0
    daemon.start()
    daemon.wait(lambda: server.unique(table) == 2000, 30, "all rows")


def test_idle_longer_than_max_poll_interval_keeps_the_membership(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table)])
    daemon.config["kafka"]["properties"].update({
        "max.poll.interval.ms": "3000", "session.timeout.ms": "3000", "heartbeat.interval.ms": "500"})
    daemon.start()
    daemon.wait_log(r"partition\.assigned")
    hold_for(6, lambda: daemon.alive())
    assert len(kafka.group(daemon.group)["members"]) == 1
    assert not daemon.events("partition.lost") and not daemon.events("kafka.lost")
    kafka.produce(topic, 100)
    daemon.wait_rows(server, table, 100)


def test_restart_resumes_at_once_under_static_membership(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table)])
    daemon.config["kafka"]["properties"]["session.timeout.ms"] = "45000"
    daemon.start()
    kafka.produce(topic, 100)
    daemon.wait_rows(server, table, 100)
    daemon.kill9()
    kafka.produce(topic, 100, "--first", 100)
    daemon.start()
    daemon.wait_rows(server, table, 200, 20)  # well under the session timeout


def test_operator_reset_backward_is_honoured(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_bench_table(window=1000)
    kafka.produce(topic, 1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)])
    daemon.config["kafka"]["properties"].update({"session.timeout.ms": "3000",
                                                 "heartbeat.interval.ms": "500"})
    daemon.start()
    daemon.wait_rows(engine, table, 1000)
    assert daemon.sigterm() == 0
    wait_until(lambda: not kafka.group(daemon.group)["members"], 30, "the member is gone")
    kafka.commit(daemon.group, topic, 0, 400)
    daemon.start()
    daemon.wait_rows(engine, table, 1600)  # 600 read again, as asked
    assert engine.unique(table) == 1000
