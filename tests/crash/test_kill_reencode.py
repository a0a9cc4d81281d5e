# SPDX-License-Identifier: Apache-2.0
"""kill -9 while rows of an old schema are encoded anew: at each step the same rows end in the table
or in the dead letters, once."""
import json

from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
POINTS = ["seal.after_commit", "dead.before_commit", "dead.after_commit", "reencode.buried",
          "reencode.sealed", "send.started", "send.body_done", "answer.ok", "ack.before_commit",
          "ack.after_commit"]
ROWS, BAD = 4000, 40


def records():
    """Every hundredth does not fit the column as it will be."""
    return [{"value": json.dumps({"id": i, "value": 1000 + i if i % 100 == 99 else i % 7}), "partition": i % 2}
            for i in range(ROWS)]


class Killed:
    """Rows of the old schema wait in the spool; the table has changed; the daemon is not running."""

    def __init__(self, kafka, server, spoold, origin):
        self.kafka, self.server = kafka, server
        self.topic = kafka.create_topic(2)
        columns = [{"name": "id"}, {"name": "value"}] + (ORIGIN if origin else [])
        self.table = server.create_table(
            "id UInt64, value UInt32" + (", _topic String, _partition Int32, _offset Int64" if origin else ""),
            order_by="id", window=1000)
        self.daemon = spoold(kafka, server, [stream(
            "s", self.topic, self.table, columns=columns, on_schema_change="reencode", flush={"rows": 1000})])
        self.daemon.start()
        self.daemon.wait_state("s", "running")
        self.daemon.control("POST", "/streams/s/pause")
        kafka.send(self.topic, records())
        self.daemon.wait(lambda: self.daemon.stream_status("s")["rows_spooled"] == ROWS, 30, "rows spooled")
        assert self.daemon.sigterm() == 0
        server.query(f"ALTER TABLE {self.table} MODIFY COLUMN value UInt8")

    def kill_at(self, point, passage=1):
        self.daemon.launch(f"{point}=kill@{passage}")
        assert self.daemon.wait_exit(60) == -9, self.daemon.child.log_tail()

    def finish(self):
        self.daemon.start()
        self.daemon.wait(lambda: self.server.unique(self.table) == ROWS - BAD, 60,
                         lambda: f"{self.server.unique(self.table)} rows, {self.daemon.stream_status('s')}")
        self.daemon.wait(lambda: self.kafka.committed_offsets(self.daemon.group, self.topic)
                         == self.kafka.end_offsets(self.topic), 30, "committed to the end")
        letters = self.daemon.ctl("dead", "ls", "s", "--json")[1]
        assert sorted(json.loads(le["record"])["id"] for le in letters) == list(range(99, ROWS, 100))
        wrong = self.server.number(f"SELECT countIf(value != id % 7) FROM {self.table}")
        assert wrong == 0
        assert self.daemon.ctl("verify", "--json")[1]["ok"]
        return self.server.count(self.table) - (ROWS - BAD)


def test_killed_at_each_step_where_the_table_can_be_asked(kafka, server, spoold):
    flow = Killed(kafka, server, spoold, origin=True)
    for point in POINTS:
        flow.kill_at(point)
    assert flow.finish() == 0
    assert flow.daemon.metric("spoold_possible_duplicates_total") == 0


def test_killed_where_it_can_not_be_asked(kafka, server, spoold):
    """What may be doubled is said, and no more than that is."""
    flow = Killed(kafka, server, spoold, origin=False)
    for point in ("reencode.buried", "reencode.sealed", "send.body_done", "answer.ok"):
        flow.kill_at(point)
    doubled = flow.finish()
    said = sum(int(e["rows"]) for e in flow.daemon.events("batch.possible_duplicates", whole=True))
    assert doubled <= said
    if server.deduplicates:
        assert doubled == 0  # the rows encoded anew have a token of their own, which holds


def test_stored_before_the_table_changed(kafka, server, spoold):
    """A batch of the old columns is in the table, its acknowledgement is lost with the daemon, and the
    table changes: it is asked about, not encoded anew and sent again."""
    topic = kafka.create_topic(1)
    table = server.create_table("id UInt64, value UInt32, _topic String, _partition Int32, _offset Int64",
                                order_by="id")
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=[{"name": "id"}, {"name": "value"}] + ORIGIN,
                                           on_schema_change="reencode")])
    kafka.send(topic, [json.dumps({"id": i, "value": i % 7}) for i in range(1000)])
    daemon.launch("answer.ok=kill@1")
    assert daemon.wait_exit(60) == -9, daemon.child.log_tail()
    stored = server.count(table)
    assert stored > 0
    server.query(f"ALTER TABLE {table} MODIFY COLUMN value UInt8")
    daemon.start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic), 60,
                "committed to the end")
    assert [int(e["stored"]) for e in daemon.events("batch.asked")] == [stored]
    assert server.count(table) == server.unique(table) == 1000
    assert daemon.metric("spoold_possible_duplicates_total") == 0
