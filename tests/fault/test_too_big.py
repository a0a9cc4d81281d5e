# SPDX-License-Identifier: Apache-2.0
"""The server has no memory for a batch as large as ours."""
import pytest

from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
ROWS = 100_000


@pytest.mark.parametrize("asked", [True, False], ids=["origin", "plain"])
def test_a_batch_that_is_too_big_goes_in_halves(kafka, server, spoold, asked):
    topic = kafka.create_topic(1)
    extra = ", _topic String, _partition Int32, _offset Int64" if asked else ""
    table = server.create_table(f"id UInt64, pad String{extra}", order_by="id", window=1000)
    columns = [{"name": "id"}, {"name": "pad", "value": "x" * 200}] + (ORIGIN if asked else [])
    kafka.produce(topic, ROWS)
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns,
                                           flush={"rows": ROWS, "interval": "10m"})])
    daemon.config["clickhouse"]["settings"] = {
        "max_memory_usage": "10000000" if server.modern else "30000000"}
    daemon.start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: ROWS}, 120, "committed")
    assert server.count(table) == server.unique(table) == ROWS
    assert daemon.events("batch.too_big")
    assert daemon.stream_status("s")["state"] == "running"
    if asked:
        assert daemon.metric("spoold_possible_duplicates_total") == 0
