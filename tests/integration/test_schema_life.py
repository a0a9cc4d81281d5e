# SPDX-License-Identifier: Apache-2.0
"""A table that changes while the daemon runs and the spool holds blocks of its old columns."""
import json

from support.spoold import stream

COLUMNS = "id UInt64, name String, value UInt32"


def records(first, count, **more):
    return [json.dumps({"id": i, "name": f"n{i}", "value": i % 7, **more}) for i in range(first, first + count)]


class Flow:
    """A running stream with 100 rows in the table and 100 more waiting behind a pause."""

    def __init__(self, kafka, server, spoold):
        self.kafka, self.server = kafka, server
        self.topic = kafka.create_topic(1)
        self.table = server.create_table(COLUMNS, order_by="id", window=1000)
        self.daemon = spoold(kafka, server, [stream("s", self.topic, self.table)]).start()
        kafka.send(self.topic, records(0, 100))
        self.daemon.wait_rows(server, self.table, 100)
        self.pause()
        self.send(100)

    def pause(self):
        assert self.daemon.control("POST", "/streams/s/pause")[0] == 200

    def resume(self):
        assert self.daemon.control("POST", "/streams/s/resume")[0] == 200

    def send(self, first, count=100, **more):
        before = self.daemon.stream_status("s")["rows_spooled"]
        self.kafka.send(self.topic, records(first, count, **more))
        self.daemon.wait(lambda: self.daemon.stream_status("s")["rows_spooled"] == before + count, 20, "rows spooled")

    def alter(self, change):
        self.server.query(f"ALTER TABLE {self.table} {change}")

    def wait_rows(self, count):
        self.daemon.wait_rows(self.server, self.table, count)

    def wait_held(self, *words):
        def held():
            status = self.daemon.stream_status("s")
            return status["state"] == "held" and all(word in status["reason"] for word in words)
        self.daemon.wait(held, 20, lambda: f"held, with {words}: {self.daemon.stream_status('s')}")

    def assert_exact(self, count):
        assert self.server.unique(self.table) == self.server.count(self.table) == count
        assert self.server.number(f"SELECT countIf(name = concat('n', toString(id)) AND value = id % 7) "
                                  f"FROM {self.table}") == count


def test_dropped_column_holds_by_name_until_it_is_back(kafka, server, spoold):
    flow = Flow(kafka, server, spoold)
    flow.alter("DROP COLUMN value")
    flow.resume()  # noticed by the insert's error, or by the look before it
    flow.wait_held("value")
    assert server.count(flow.table) == 100
    flow.alter("ADD COLUMN value UInt32")
    flow.wait_rows(200)
    flow.daemon.wait_state("s", "running")
    assert server.number(f"SELECT sum(value) FROM {flow.table} WHERE id >= 100") == sum(i % 7 for i in range(100, 200))


def test_renamed_column_holds_by_its_old_name(kafka, engine, spoold):
    flow = Flow(kafka, engine, spoold)
    flow.alter("RENAME COLUMN value TO worth")
    flow.resume()
    flow.wait_held("value")
    flow.alter("RENAME COLUMN worth TO value")
    flow.wait_rows(200)
    flow.assert_exact(200)


def test_reordered_columns_are_nothing(kafka, engine, spoold):
    flow = Flow(kafka, engine, spoold)
    flow.alter("MODIFY COLUMN value UInt32 FIRST")
    flow.resume()
    flow.wait_rows(200)
    flow.assert_exact(200)
