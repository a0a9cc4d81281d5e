# SPDX-License-Identifier: Apache-2.0
"""Clocks that jump, and hours that pass: wall time decides nothing but what people read."""
import random

import pytest

from support.disk import disk_bytes
from support.load import Load
from support.process import hold_for
from support.proxy import Fault
from support.spoold import stream

DAY = 86400
HOUR = 3600
ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]


def age(daemon, name):
    return daemon.stream_status(name)["oldest_age_seconds"]


def test_wall_clock_jumps_under_load(kafka, server, proxy, spoold, clock):
    """Between a batch's attempts, and between a kill and the start behind it. The token is trusted by
    the time that passed, whatever the wall clock says: no row goes as a possible duplicate."""
    between = proxy(server)
    load = Load(kafka, server, spoold, random.Random(1), clickhouse={"urls": [between.url]})
    load.daemon.env = clock.env
    load.feed()
    load.daemon.start()
    load.wait_arrived()
    for seconds in (DAY, -DAY, -DAY, 400 * DAY, -399 * DAY):
        for name in ("plain", "origin"):
            fault = Fault("answer", how="rst", on_strike=lambda s=seconds: clock.jump(s / 2))
            between.arm(fault, stream=name)
        load.feed()
        load.wait_arrived()
        between.arm(Fault("answer", how="rst"), times=4)
        load.feed()
        load.daemon.kill9()
        clock.jump(seconds)
        load.daemon.start()
        load.wait_arrived()
    found = load.check_exact()
    if server.deduplicates:
        assert found["possible_plain"] == 0, found
    load.end()


def test_age_does_not_follow_the_wall_clock(kafka, engine, spoold, clock):
    topic = kafka.create_topic(1)
    table = engine.create_bench_table(window=1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)])
    daemon.env = clock.env
    kafka.produce(topic, 100)
    daemon.start()
    daemon.wait_rows(engine, table, 100)
    engine.stop()
    kafka.produce(topic, 100, "--first", 100)
    daemon.wait(lambda: age(daemon, "s") > 0, 30, "rows wait")
    for seconds in (DAY, -2 * DAY, DAY):
        before = age(daemon, "s")
        clock.jump(seconds)
        assert before <= age(daemon, "s") < HOUR
    clock.jump(-DAY)  # what is spooled is of the future now
    daemon.kill9()
    daemon.start()
    daemon.wait(lambda: age(daemon, "s") > 0, 30, "it ages")
    clock.jump(2 * DAY)
    assert age(daemon, "s") < HOUR
    daemon.kill9()
    clock.jump(5 * HOUR - DAY)  # nothing tells this from an outage
    daemon.start()
    daemon.wait(lambda: 5 * HOUR < age(daemon, "s") < 6 * HOUR, 30, "what the clock says")
    engine.start()
    daemon.wait_rows(engine, table, 200)
    assert engine.unique(table) == 200


def test_clock_goes_back_while_nothing_flows(kafka, engine, spoold, clock):
    """Kafka's client waits by the wall clock: unless somebody wakes it, it sends no heartbeat for a day."""
    topic = kafka.create_topic(2)
    table = engine.create_bench_table(window=1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)])
    daemon.env = clock.env
    daemon.config["kafka"]["properties"]["session.timeout.ms"] = "6000"
    daemon.start()
    kafka.produce(topic, 100)
    daemon.wait_rows(engine, table, 100)
    daemon.wait(lambda: sum(kafka.committed_offsets(daemon.group, topic).values()) == 100, 30,
                "committed, so that nothing is under way any more")
    clock.jump(-DAY)
    hold_for(8)  # longer than the session: without heartbeats the broker would have it out
    assert len(kafka.group(daemon.group)["members"]) == 1
    kafka.produce(topic, 100, "--first", 100)
    daemon.wait_rows(engine, table, 200)


OUTAGE_RECORDS, OUTAGE_SPOOL_BYTES = 800000, 24 << 20  # more than it holds
OUTAGE_SPEED = 1440
OUTAGE_LOG_BYTES = 12 * 60 * 100  # what a line every two or three minutes would take


def outage_daemon(kafka, server, spoold, clock, topic, table):
    """The broker's clock is not fast: its answers must not seem late."""
    columns = [{"name": c.strip().split(" ")[0]} for c in server.bench_columns.split(",")]
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns + ORIGIN)],
                    spool={"max_bytes": OUTAGE_SPOOL_BYTES, "segment_bytes": "1MiB"},
                    kafka={"properties": {"session.timeout.ms": "1800000",
                                          "max.poll.interval.ms": "1800000",
                                          "socket.timeout.ms": "300000"}})
    daemon.env = clock.env
    return daemon.start()


def twelve_hours_pass(daemon, clock):
    def check():
        assert daemon.alive() and disk_bytes(daemon.spool) <= OUTAGE_SPOOL_BYTES
    end = clock.monotonic + 12 * HOUR
    clock.run(OUTAGE_SPEED)
    while clock.monotonic < end:
        hold_for(1, check)
    clock.run(1)


@pytest.mark.long
def test_twelve_hours_without_clickhouse(kafka, server, spoold, clock):
    """The spool is full all the time, and Kafka holds the rest."""
    topic, table = kafka.create_topic(2), server.create_bench_table(window=1000, origin=True)
    kafka.produce(topic, 1000)
    daemon = outage_daemon(kafka, server, spoold, clock, topic, table)
    daemon.wait_rows(server, table, 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 20, "acknowledged")
    begun = clock.monotonic
    server.stop()
    kafka.produce(topic, OUTAGE_RECORDS - 1000, "--first", 1000)
    daemon.wait_state("s", "full", 60)
    daemon.wait(lambda: daemon.status()["endpoints"][0]["state"] == "down", 20, "endpoint down")
    retries, log_bytes = daemon.stream_status("s")["retries"], len(daemon.log())
    twelve_hours_pass(daemon, clock)
    log_bytes = len(daemon.log()) - log_bytes
    status = daemon.stream_status("s")
    print(f"{status['rows_spooled']} rows spooled, {log_bytes} bytes of log, {status}")
    assert 12 * HOUR <= age(daemon, "s") <= clock.monotonic - begun
    assert status["state"] == "full" and 0 < status["records_in"] < OUTAGE_RECORDS
    assert status["retries"] == retries  # a ping asks for the server, not a batch
    assert log_bytes < OUTAGE_LOG_BYTES
    server.start()
    daemon.wait_rows(server, table, OUTAGE_RECORDS, 120)
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                60, "committed to the end")
    assert server.unique(table, "_partition, _offset") == OUTAGE_RECORDS
    assert server.count(table) == server.unique(table) == OUTAGE_RECORDS
    assert not daemon.events("batch.possible_duplicates")
    assert daemon.metric("spoold_dropped_rows_total") == 0
    assert daemon.sigterm() == 0
