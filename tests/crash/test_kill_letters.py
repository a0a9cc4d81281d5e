# SPDX-License-Identifier: Apache-2.0
"""Letters of rows that their batch has still: what becomes of them when the table takes the rows after all."""
import json

import pytest

from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
COLUMNS = "id UInt64, value UInt32, pad String, _topic String, _partition Int32, _offset Int64"


def replayed(daemon):
    code, told = daemon.ctl("dead", "replay", "s", "--json", check=False)
    assert code == 0 or not told["refused"], told
    return told


def letters_of(daemon):
    found = daemon.ctl("dead", "ls", "s", "--json")[1]
    return ([found] if isinstance(found, dict) else found) or []


def ends_with_all_once(daemon, kafka, engine, topic, table, rows):
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic), 60,
                "committed to the end")
    told = replayed(daemon)
    assert told["unsettled"] == 0, told
    daemon.wait_rows(engine, table, rows)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 20, "all delivered")
    assert (engine.count(table), engine.unique(table)) == (rows, rows), told
    assert letters_of(daemon) == [] and daemon.stream_status("s")["dead_letters"] == 0


@pytest.mark.parametrize("compacted", [False, True], ids=["every_offset", "some_offsets"])
def test_the_table_takes_the_rows_after_the_kill(kafka, engine, spoold, compacted):
    """Killed when the bad rows were letters and still in their seal; then the rule that refused them goes."""
    topic = kafka.create_topic(1)
    table = engine.create_table(COLUMNS + ", CONSTRAINT c CHECK value % 100 != 7", order_by="id")
    daemon = spoold(kafka, engine, [stream("s", topic, table, flush={"rows": 1000}, columns=[
        {"name": "id"}, {"name": "value"}] + ORIGIN)])
    values = [None if compacted and i % 3 == 1 else json.dumps({"id": i, "value": i}) for i in range(1000)]
    kafka.send(topic, [{"value": v} for v in values])
    daemon.launch("replace.before_commit=kill")
    assert daemon.wait_exit(60) == -9, daemon.child.log_tail()
    engine.query(f"ALTER TABLE {table} DROP CONSTRAINT c")
    daemon.start()
    ends_with_all_once(daemon, kafka, engine, topic, table, sum(v is not None for v in values))


def test_the_table_changes_back_after_the_kill(kafka, engine, spoold):
    """The same where rows were being encoded anew for another table than there is in the end."""
    topic, table = kafka.create_topic(1), engine.create_table(COLUMNS, order_by="id")
    daemon = spoold(kafka, engine, [stream("s", topic, table, flush={"rows": 1000}, on_schema_change="reencode",
                                           columns=[{"name": "id"}, {"name": "value"}] + ORIGIN)]).start()
    daemon.wait_state("s", "running")
    daemon.control("POST", "/streams/s/pause")
    kafka.send(topic, [json.dumps({"id": i, "value": i}) for i in range(1000)])
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 1000, 30, "rows spooled")
    assert daemon.sigterm() == 0
    engine.query(f"ALTER TABLE {table} MODIFY COLUMN value UInt8")
    daemon.launch("reencode.buried=kill")
    assert daemon.wait_exit(60) == -9, daemon.child.log_tail()
    engine.query(f"ALTER TABLE {table} MODIFY COLUMN value UInt32")
    daemon.start()
    ends_with_all_once(daemon, kafka, engine, topic, table, 1000)


def test_rows_encoded_anew_that_find_no_room_as_letters(kafka, engine, spoold):
    """Some of the rows that no longer fit are letters when the bound is reached; then the table changes back."""
    topic, table = kafka.create_topic(1), engine.create_table(COLUMNS, order_by="id")
    daemon = spoold(kafka, engine, [stream(
        "s", topic, table, flush={"rows": 4000}, on_schema_change="reencode",
        columns=[{"name": "id"}, {"name": "value"}, {"name": "pad"}] + ORIGIN,
        dead_letters={"max_bytes": "1MiB"})]).start()
    daemon.wait_state("s", "running")
    daemon.control("POST", "/streams/s/pause")
    kafka.send(topic, [json.dumps({"id": i, "value": 1000 + i, "pad": "x" * 1000}) for i in range(4000)])
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 4000, 30, "rows spooled")
    engine.query(f"ALTER TABLE {table} MODIFY COLUMN value UInt8")
    daemon.control("POST", "/streams/s/resume")
    daemon.wait(lambda: "dead_letters.max_bytes" in daemon.stream_status("s")["reason"], 30,
                lambda: str(daemon.stream_status("s")))
    held = letters_of(daemon)
    assert sum(d["record_bytes"] for d in held) <= 1 << 20
    assert daemon.stream_status("s")["dead_letters"] == len(held)
    engine.query(f"ALTER TABLE {table} MODIFY COLUMN value UInt32")
    daemon.control("POST", "/streams/s/resume")
    ends_with_all_once(daemon, kafka, engine, topic, table, 4000)
