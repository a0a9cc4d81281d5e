# SPDX-License-Identifier: Apache-2.0
"""What must not happen before what: a commit to the disk is held up where it is about to be made,
while all else goes on. A kill can only show a wrong order by chance."""
import json
from types import SimpleNamespace

import pytest

from support.process import hold_for, wait_until
from support.spoold import stream

HELD_SECONDS = 1  # a wrong order takes some milliseconds


def record(ident, value=1.5, kind="view"):
    return json.dumps({"id": ident, "name": "n", "kind": kind, "value": value,
                       "ts": "2026-11-29 01:02:03.004", "state": "new", "ok": True})


@pytest.fixture
def flow(kafka, engine, spoold):
    """One stream, not started yet; nothing is sent. The table refuses one kind of record."""
    topic = kafka.create_topic(1)
    table = engine.create_table(f"{engine.bench_columns}, CONSTRAINT c CHECK kind != 'poison'",
                                order_by="id", window=1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table, flush={"interval": "20ms"})])
    return SimpleNamespace(
        kafka=kafka, engine=engine, daemon=daemon, topic=topic, table=table,
        rows=lambda: engine.count(table),
        committed=lambda: kafka.committed_offsets(daemon.group, topic)[0])


def hang(flow, point, records):
    """The daemon gets the records and hangs at the point."""
    flow.daemon.start(failpoints=f"{point}=hang")
    flow.kafka.send(flow.topic, records, partition=0)
    flow.daemon.wait_log(f"failpoint {point} hangs")


def end(flow, rows, offset):
    """After a kill all of it arrives, once."""
    flow.daemon.kill9()
    flow.daemon.start()
    flow.daemon.wait_rows(flow.engine, flow.table, rows)
    flow.daemon.wait(lambda: flow.committed() == offset, 20, "committed")


def nothing(flow, *forbidden):
    """None of these becomes true."""
    def check():
        assert flow.daemon.alive()
        for condition in forbidden:
            assert not condition()
    hold_for(HELD_SECONDS, check)


def test_nothing_is_sealed_or_sent_before_it_is_appended(flow):
    hang(flow, "append.before_commit", [record(i) for i in range(10)])
    nothing(flow, flow.rows, flow.committed)
    end(flow, 10, 10)


def test_nothing_is_sent_before_its_seal_is_durable(flow):
    hang(flow, "seal.before_commit", [record(i) for i in range(10)])
    nothing(flow, flow.rows, flow.committed)
    end(flow, 10, 10)


def test_nothing_is_committed_before_the_acknowledgement_is_durable(flow):
    hang(flow, "ack.before_commit", [record(i) for i in range(10)])
    flow.daemon.wait(lambda: flow.rows() == 10, 20, "rows")
    nothing(flow, flow.committed)
    end(flow, 10, 10)


def test_nothing_is_appended_before_the_dead_letters_are_durable(flow):
    hang(flow, "dead.before_commit", [record(0, "no number")] + [record(i) for i in range(1, 10)])
    nothing(flow, flow.rows, flow.committed)
    end(flow, 9, 10)
    assert flow.daemon.stream_status("s")["dead_letters"] == 1


def test_nothing_is_committed_before_a_discard_is_durable(flow):
    hang(flow, "discard.before_commit", [record(0, "no number")])
    nothing(flow, flow.committed)
    end(flow, 0, 1)
    assert flow.daemon.stream_status("s")["dead_letters"] == 1


def test_nothing_is_committed_past_a_batch_that_is_not_acknowledged(flow):
    # The first batch waits for its refused row's dead letter, the second one is through.
    hang(flow, "dead.before_commit", [record(0, kind="poison")])
    flow.kafka.send(flow.topic, [record(i) for i in range(1, 10)], partition=0)
    flow.daemon.wait(lambda: flow.rows() == 9, 20, "rows")
    nothing(flow, flow.committed)
    end(flow, 9, 10)
    assert flow.daemon.stream_status("s")["dead_letters"] == 1


def test_no_answer_is_no_acknowledgement(flow):
    flow.daemon.config["clickhouse"]["stall_timeout"] = "1s"
    flow.daemon.start()
    flow.kafka.send(flow.topic, [record(0)], partition=0)
    flow.daemon.wait(lambda: flow.committed() == 1, 20, "committed")
    flow.engine.freeze()
    try:
        flow.kafka.send(flow.topic, [record(i) for i in range(1, 10)], partition=0)
        flow.daemon.wait_state("s", "down")
        nothing(flow, lambda: flow.committed() != 1)
    finally:
        flow.engine.thaw()
    flow.daemon.wait_rows(flow.engine, flow.table, 10)
    flow.daemon.wait(lambda: flow.committed() == 10, 20, "committed")


def test_a_token_is_not_trusted_after_the_server_restarted(flow):
    flow.daemon.launch("answer.ok=kill")
    # Two starts within a second are one by the server's own clock.
    wait_until(lambda: flow.engine.number("SELECT uptime()") >= 3, 30, "a server of some age")
    flow.kafka.send(flow.topic, [record(i) for i in range(10)], partition=0)
    assert flow.daemon.wait_exit() == -9
    flow.engine.kill()
    flow.engine.start()
    flow.daemon.start()
    flow.daemon.wait_log("batch.possible_duplicates")
    flow.daemon.wait(lambda: flow.rows() == 20, 20, "rows that were sent again")
    flow.daemon.wait(lambda: flow.committed() == 10, 20, "committed")
