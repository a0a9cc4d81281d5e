# SPDX-License-Identifier: Apache-2.0
"""A ClickHouse that takes its time: a row a millisecond, below what comes in."""
import json
import os

import pytest

from support.disk import disk_bytes
from support.spoold import stream

MIB = 1 << 20
RECORDS, NOISE_BYTES = 12000, 2500  # more than the spool holds; LZ4 leaves the noise as it is
SPOOL_BYTES = 24 * MIB              # of which 8 are in reserve
ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
COLUMNS = "id UInt64, name String, _topic String, _partition Int32, _offset Int64"


def slow_table(server):
    """Each row costs the server a millisecond, in one of its own threads."""
    return server.create_table(f"{COLUMNS}, slow UInt8 MATERIALIZED sleepEachRow(0.001)",
                               order_by="id", window=1000)


def produce(kafka, topic):
    records = [json.dumps({"id": i, "name": os.urandom(NOISE_BYTES // 2).hex()})
               for i in range(RECORDS)]
    for first in range(0, RECORDS, 2000):
        kafka.send(topic, [{"value": r, "partition": i % 2}
                           for i, r in enumerate(records[first:first + 2000])])


# what the client waits for an answer: more than a batch of so many rows takes, or less; a batch is of one
# segment, which has 400 rows in a MiB
@pytest.mark.parametrize("rows,stall_timeout,segment_bytes", [
    (500, "30s", "1MiB"), pytest.param(2000, "1s", "4MiB", marks=pytest.mark.long)])
def test_a_row_a_millisecond(kafka, server, spoold, rows, stall_timeout, segment_bytes):
    topic, table = kafka.create_topic(2), slow_table(server)
    daemon = spoold(kafka, server, [stream(
        "s", topic, table, flush={"rows": rows, "interval": "200ms"},
        columns=[{"name": "id"}, {"name": "name"}] + ORIGIN)],
        spool={"max_bytes": SPOOL_BYTES, "segment_bytes": segment_bytes},
        clickhouse={"stall_timeout": stall_timeout})
    produce(kafka, topic)
    daemon.start()
    most, full = 0, False

    def all_in():
        nonlocal most, full
        most = max(most, disk_bytes(daemon.spool))
        full = full or "bound" in daemon.stream_status("s")["reason"]
        return server.count(table) >= RECORDS
    daemon.wait(all_in, 240, lambda: f"{server.count(table)} rows; {daemon.stream_status('s')}")
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                60, "committed to the end")
    assert full and most <= SPOOL_BYTES, (full, most)
    assert server.count(table) == server.unique(table) == RECORDS
    assert not daemon.events("batch.possible_duplicates")
    if stall_timeout == "30s":
        assert daemon.stream_status("s")["retries"] == 0
    else:
        assert daemon.stream_status("s")["retries"] or daemon.events("batch.asked")
    assert daemon.sigterm() == 0


def test_a_batch_that_nothing_can_tell_of_takes_longer_than_is_waited(kafka, clickhouse, spoold):
    """Each attempt goes under a token of its own, and may double the rows: there is an end to it only
    because the next one is waited for longer."""
    rows, topic = 2500, kafka.create_topic(1)  # 18.16 sleeps 3 s in a block at most
    table = clickhouse.create_table("id UInt64, slow UInt8 MATERIALIZED sleepEachRow(0.001)",
                                    order_by="id")
    kafka.send(topic, [f'{{"id":{i}}}' for i in range(rows)])
    daemon = spoold(kafka, clickhouse, [stream("s", topic, table, columns=[{"name": "id"}],
                                               flush={"rows": rows, "interval": "60s"})],
                    clickhouse={"stall_timeout": "1s"}).start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: rows}, 60,
                lambda: f"committed; {daemon.stream_status('s')}")
    told = [e["rows"] for e in daemon.events("batch.possible_duplicates")]
    assert told and set(told) == {str(rows)}  # the batch went whole each time
    assert clickhouse.unique(table) == rows
    assert clickhouse.count(table) <= rows * (1 + len(told))
    assert daemon.sigterm() == 0
