# SPDX-License-Identifier: Apache-2.0
"""Many partitions, large records, large backlogs."""
import json
import os
import subprocess

import pytest

from support.process import anonymous_bytes
from support.spoold import stream

MIB = 1 << 20


def test_a_thousand_partitions(kafka, engine, spoold):
    partitions, rate = 1000, 10000  # ten records a second each
    total = 6 * rate
    topic = kafka.create_topic(partitions)
    table = engine.create_bench_table(window=1000)
    kafka.produce(topic, partitions)  # the broker makes a log for each at its first record
    daemon = spoold(kafka, engine, [stream("s", topic, table, flush={"interval": "1s"})])
    daemon.start()
    daemon.wait_rows(engine, table, partitions, 60)
    before = daemon.stream_status("s")["batches"]["acknowledged"]
    producer = kafka.producer(topic, total - partitions, "--first", partitions, "--rate", rate,
                              properties={"linger.ms": 500})
    most = 0

    def half():
        nonlocal most
        most = max(most, anonymous_bytes(daemon.pid))
        return engine.count(table) >= total // 2

    daemon.wait(half, 90, "half of the rows")
    # What came within one interval went together, from hundreds of partitions.
    batches = daemon.stream_status("s")["batches"]["acknowledged"] - before
    assert batches <= 4 * (total // 2 // rate) + 5, f"{batches} batches"
    daemon.kill9()
    daemon.start()
    assert producer.finish() == total - partitions
    daemon.wait_rows(engine, table, total, 90)
    assert engine.unique(table) == total
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                30, "the offset of every partition committed")
    most = max(most, anonymous_bytes(daemon.pid))
    print(f"{batches} batches for half of the rows, {most / MIB:.0f} MiB of memory at most")
    assert most <= 96 * MIB
    assert daemon.sigterm() == 0
    assert daemon.ctl("verify", "--json")[1]["ok"]


def test_memory_is_given_back_after_a_burst(kafka, engine, spoold):
    """malloc would keep it: most of what it took is free, in the heaps of many threads."""
    topic, table = kafka.create_topic(12), engine.create_bench_table()
    kafka.produce(topic, 500000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    most = 0

    def loaded():
        nonlocal most
        most = max(most, anonymous_bytes(daemon.pid))
        return engine.count(table) == 500000

    daemon.wait(loaded, 60, "its rows")
    daemon.wait(lambda: anonymous_bytes(daemon.pid) < most * 0.7, 60,
                lambda: f"less memory than {anonymous_bytes(daemon.pid)}, {most} at most")


def record_file(path, ident, size):
    """{"id":ident,"name":"nnn..."} of exactly so many bytes."""
    head, tail = f'{{"id":{ident},"name":"'.encode(), b'"}'
    with open(path, "wb") as f:
        f.write(head + b"n" * (size - len(head) - len(tail)) + tail)
    return str(path)


def lengths(server, table):
    return {int(i): int(n) for i, n in server.rows(f"SELECT id, length(name) FROM {table}")}


def test_large_records(kafka, server, spoold, tmp_path):
    some, all_of_them = kafka.create_topic(1), kafka.create_topic(1)
    tables = [server.create_table("id UInt64, name String") for _ in range(2)]
    large = record_file(tmp_path / "large", 2, 20 * MIB)
    huge = record_file(tmp_path / "huge", 3, 100 * MIB)
    for topic in (some, all_of_them):
        kafka.send(topic, ['{"id":1,"name":"before"}'])
        kafka.send_file(topic, large)
        kafka.send_file(topic, huge)
        kafka.send(topic, ['{"id":4,"name":"behind"}'])
    daemon = spoold(kafka, server, [
        stream("some", some, tables[0]),  # up to 64 MiB, by default
        stream("all", all_of_them, tables[1], max_record_bytes="256MiB")]).start()
    daemon.wait_rows(server, tables[0], 3, 60)
    daemon.wait_rows(server, tables[1], 4, 90)
    overhead = len('{"id":2,"name":""}')
    assert lengths(server, tables[0]) == {1: 6, 2: 20 * MIB - overhead, 4: 6}
    assert lengths(server, tables[1]) == {1: 6, 2: 20 * MIB - overhead, 3: 100 * MIB - overhead,
                                          4: 6}
    letter = daemon.ctl("dead", "ls", "some", "--json")[1]  # one only
    assert (letter["offset"], letter["record_bytes"], letter["record_cut"]) == (2, 100 * MIB, True)
    assert len(letter["record"]) < 2 * MIB
    assert "max_record_bytes" in letter["reason"]
    assert daemon.stream_status("all")["dead_letters"] == 0
    for topic in (some, all_of_them):
        daemon.wait(lambda t=topic: kafka.committed_offsets(daemon.group, t) == {0: 4}, 30,
                    "committed")
    assert daemon.sigterm() == 0


def make_backlog(server, spoold, flush_rows, *plan):
    """A backlog written by libspool alone, its table, and a daemon to take it from there."""
    table = server.create_table(
        "id UInt64, name String, type String, value Float64, timestamp "
        + ("DateTime64(3)" if server.modern else "String") + ", status String, active "
        + ("Bool" if server.modern else "UInt8"), order_by="id", window=10000)
    daemon = spoold(None, server, [stream("events", [], table, flush={"rows": flush_rows})])
    made = json.loads(subprocess.run(
        [os.path.join(os.environ["SUPPORT_DIR"], "mkspool"), daemon.spool,
         f"destination=default.{table}", f"flavour={'modern' if server.modern else 'old'}", *plan],
        check=True, stdout=subprocess.PIPE).stdout)
    print(f"{made['rows']} rows, {made['stored_bytes'] / MIB:.0f} MiB")
    return table, daemon, made


def drain_backlog(server, spoold, *size):
    table, daemon, made = make_backlog(server, spoold, 1000000, "origins=4", "seals=2", *size)
    daemon.start(seconds=5)
    status = daemon.stream_status("events")
    assert status["rows_spooled"] + server.count(table) >= made["rows"]
    assert status["bytes_spooled"] > 0
    daemon.wait_rows(server, table, made["rows"], 600)
    assert server.unique(table) == made["rows"]
    daemon.wait(lambda: daemon.stream_status("events")["rows_spooled"] == 0, 20, "empty")
    assert daemon.stream_status("events")["batches"]["acknowledged"] <= \
        made["rows"] // 1000000 * 3 + 20
    assert anonymous_bytes(daemon.pid) <= 96 * MIB
    assert daemon.sigterm() == 0
    return made


def test_start_with_a_backlog(server, spoold):
    made = drain_backlog(server, spoold, "blocks=540", "rows=8192")
    assert made["stored_bytes"] >= 100 * MIB


def test_sealed_batches_behind_a_backlog(engine, spoold):
    """As many as may be in flight, of segments far behind what waits unsealed: they are read all the same."""
    table, daemon, made = make_backlog(engine, spoold, 2000, "blocks=120", "rows=2000", "segment_kib=1024",
                                       "passed=3", "seals=2")
    daemon.start()
    daemon.wait_rows(engine, table, made["rows"])
    assert engine.unique(table) == made["rows"]


@pytest.mark.long
def test_start_with_a_backlog_of_two_gib(engine, spoold):
    made = drain_backlog(engine, spoold, "gib=2", "rows=8192")
    assert made["stored_bytes"] >= 2 << 30
