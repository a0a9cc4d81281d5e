# SPDX-License-Identifier: Apache-2.0
"""A table that changes while the daemon runs and the spool holds blocks of its old columns: held by
the column's name, or encoded anew for the table as it is (on_schema_change). Rows encoded anew are
what the same records would have become under the new columns."""
import json

import pytest

from support.process import hold_for
from support.spoold import stream

COLUMNS = "id UInt64, name String, value UInt32"
NEVER = "1h"  # of the slow poll: then only an insert's error tells


def records(first, count, **more):
    return [json.dumps({"id": i, "name": f"n{i}", "value": i % 7, **more}) for i in range(first, first + count)]


class Flow:
    """A running stream with 100 rows in the table and 100 more waiting behind a pause, which stops
    the delivery and nothing else."""

    def __init__(self, kafka, server, spoold, check="1s", **options):
        self.kafka, self.server = kafka, server
        self.topic = kafka.create_topic(1)
        self.table = server.create_table(COLUMNS, order_by="id", window=1000)
        self.daemon = spoold(kafka, server, [stream("s", self.topic, self.table, **options)],
                             clickhouse={"table_check_interval": check}).start()
        kafka.send(self.topic, records(0, 100))
        self.wait_delivered(100)
        self.pause()
        self.send(100)

    def status(self):
        return self.daemon.stream_status("s")

    def pause(self):
        assert self.daemon.control("POST", "/streams/s/pause")[0] == 200

    def resume(self):
        assert self.daemon.control("POST", "/streams/s/resume")[0] == 200

    def send(self, first, count=100, **more):
        """And waits until they are spooled; for a stream whose delivery is paused or held."""
        before = self.status()["rows_spooled"]
        self.kafka.send(self.topic, records(first, count, **more))
        self.daemon.wait(lambda: self.status()["rows_spooled"] == before + count, 20,
                         lambda: f"{before} and {count} rows spooled: {self.status()}")

    def alter(self, *changes):
        for change in changes:
            self.server.query(f"ALTER TABLE {self.table} {change}")

    def wait_delivered(self, count):
        """In the table, acknowledged, and Kafka told."""
        self.daemon.wait_rows(self.server, self.table, count)
        self.daemon.wait(lambda: self.status()["rows_spooled"] == 0, 20, lambda: f"nothing waits: {self.status()}")
        self.daemon.wait(lambda: self.kafka.committed_offsets(self.daemon.group, self.topic)
                         == self.kafka.end_offsets(self.topic), 20, "committed to the end")

    def wait_held(self, *words):
        def held():
            status = self.status()
            return status["state"] == "held" and all(word in status["reason"] for word in words)
        self.daemon.wait(held, 20, lambda: f"held, with {words}: {self.status()}")

    def wait_schema(self, times=1):
        self.daemon.wait(lambda: len(self.daemon.events("schema.changed")) >= times, 20, "the new columns are seen")

    def one(self, sql):
        return self.server.query(f"SELECT {sql} FROM {self.table} FORMAT TabSeparated").strip()

    def letters(self):
        found = self.daemon.ctl("dead", "ls", "s", "--json")[1]
        return found if isinstance(found, list) else [found] if found else []

    def assert_exact(self, count):
        assert self.server.unique(self.table) == self.server.count(self.table) == count
        assert self.one("countIf(name = concat('n', toString(id)) AND value = id % 7)") == str(count)


FORMATS = pytest.mark.parametrize("form", ["native", "json"])
# The same code brings both about; lines are tried by the other tests in the short form.
NATIVE_FIRST = pytest.mark.parametrize("form", ["native", pytest.param("json", marks=pytest.mark.long)])
CHECKS = pytest.mark.parametrize("check", [NEVER, pytest.param("1s", marks=pytest.mark.long)])
MODES = pytest.mark.parametrize("mode", ["reencode", pytest.param("hold", marks=pytest.mark.long)])


def test_dropped_column_holds_by_name_until_it_is_back(kafka, server, spoold):
    flow = Flow(kafka, server, spoold)
    flow.alter("DROP COLUMN value")
    flow.resume()  # noticed by the insert's error, or by the look before it
    flow.wait_held("value")
    assert server.count(flow.table) == 100
    flow.send(200)  # the intake goes on while the delivery is held
    flow.alter("ADD COLUMN value UInt32")
    flow.wait_delivered(300)
    flow.daemon.wait_state("s", "running")
    assert flow.one("sum(value)") == str(sum(i % 7 for i in range(100, 200))) or \
        flow.one("sum(value)") == str(sum(i % 7 for i in range(100, 300)))


@FORMATS
def test_retyped_column_holds_by_name_until_it_is_back(kafka, server, spoold, form):
    flow = Flow(kafka, server, spoold, format=form)
    flow.alter("MODIFY COLUMN value String")
    flow.wait_schema()
    flow.resume()
    flow.wait_held("value", "String", "UInt32")
    assert server.count(flow.table) == 100  # nothing of the old type was sent
    flow.alter("MODIFY COLUMN value UInt32")
    flow.wait_delivered(200)
    flow.assert_exact(200)
    assert flow.status()["dead_letters"] == 0


@FORMATS
@CHECKS
def test_dropped_column_is_left_out(kafka, server, spoold, form, check):
    flow = Flow(kafka, server, spoold, check, on_schema_change="reencode", format=form)
    flow.alter("DROP COLUMN value")
    flow.resume()
    flow.wait_delivered(200)
    assert flow.one("countIf(name = concat('n', toString(id)))") == "200"
    event = flow.daemon.events("batch.reencoded")[0]
    assert (event["rows"], event["dead_letters"], event["left_out"]) == ("100", "0", "value")
    assert flow.status()["dead_letters"] == 0
    flow.kafka.send(flow.topic, records(200, 100))
    flow.wait_delivered(300)


@FORMATS
@pytest.mark.parametrize("check", ["1s", pytest.param(NEVER, marks=pytest.mark.long)])
def test_retyped_column_is_encoded_anew(kafka, server, spoold, form, check):
    """The old server would store nonsense, or die, of a block of the old type."""
    if check == NEVER and not server.modern:
        pytest.skip("an old server's answer to another type is no error it could be noticed by")
    flow = Flow(kafka, server, spoold, check, on_schema_change="reencode", format=form)
    flow.alter("MODIFY COLUMN value Nullable(String)")
    if check != NEVER:
        flow.wait_schema()
    flow.resume()
    if check == NEVER:  # the modern one converts, without asking; the next block is of the new type
        flow.wait_delivered(200)
        assert flow.one("countIf(value = toString(id % 7))") == "200"
        return
    flow.wait_delivered(200)
    assert flow.one("countIf(value = toString(id % 7))") == "200"
    assert flow.daemon.events("batch.reencoded")
    flow.kafka.send(flow.topic, records(200, 100))
    flow.wait_delivered(300)
    assert flow.one("countIf(value = toString(id % 7))") == "300"


@FORMATS
def test_rows_that_no_longer_fit_are_dead_letters(kafka, server, spoold, form):
    flow = Flow(kafka, server, spoold, on_schema_change="reencode", format=form)
    flow.kafka.send(flow.topic, [json.dumps({"id": 200 + i, "name": f"n{i}", "value": 1000 + i}) for i in range(3)])
    flow.daemon.wait(lambda: flow.status()["rows_spooled"] == 103, 20, "rows spooled")
    flow.alter("MODIFY COLUMN value UInt8")
    flow.wait_schema()
    flow.resume()
    flow.wait_delivered(200)
    flow.assert_exact(200)
    letters = flow.letters()
    assert [(le["offset"], le["column"]) for le in letters] == [(200, "value"), (201, "value"), (202, "value")]
    assert [json.loads(le["record"]) for le in letters] == [
        {"id": 200 + i, "name": f"n{i}", "value": 1000 + i} for i in range(3)]
    assert all(le["rebuilt"] for le in letters), letters[0]
    assert flow.daemon.metric("spoold_dead_letters_total", reason="range") == 3
    assert flow.daemon.metric("spoold_rows_reencoded_total") == 100


def test_rows_that_no_longer_fit_wait_where_bad_records_hold(kafka, server, spoold):
    flow = Flow(kafka, server, spoold, on_schema_change="reencode", on_bad_record="hold")
    flow.kafka.send(flow.topic, [json.dumps({"id": 200, "name": "n200", "value": 1000})])
    flow.daemon.wait(lambda: flow.status()["rows_spooled"] == 101, 20, "rows spooled")
    flow.alter("MODIFY COLUMN value UInt8")
    flow.wait_schema()
    flow.resume()
    flow.wait_held("offset 200", "value", "on_bad_record")
    assert flow.status()["dead_letters"] == 0
    flow.daemon.ctl("resume", "s", "--accept-bad")
    flow.wait_delivered(200)
    assert flow.status()["dead_letters"] == 1


@NATIVE_FIRST
@MODES
def test_added_column_is_for_new_records(kafka, server, spoold, form, mode):
    flow = Flow(kafka, server, spoold, on_schema_change=mode, format=form)
    flow.alter("ADD COLUMN more String")
    flow.wait_schema()  # by the slow poll: no insert fails
    flow.send(200, more="here")
    flow.resume()
    flow.wait_delivered(300)
    flow.assert_exact(300)
    assert flow.one("countIf(more = 'here' AND id >= 200)") == flow.one("countIf(more != '')") == "100"
    assert not flow.daemon.events("batch.reencoded")


@NATIVE_FIRST
def test_renamed_column_holds_by_its_old_name(kafka, engine, spoold, form):
    flow = Flow(kafka, engine, spoold, format=form)
    flow.alter("RENAME COLUMN value TO worth")
    flow.resume()
    flow.wait_held("value")
    flow.alter("RENAME COLUMN worth TO value")
    flow.wait_delivered(200)
    flow.assert_exact(200)


@NATIVE_FIRST
def test_renamed_column_takes_its_key_from_the_configuration(kafka, server, spoold, form):
    """The key stays "value", the column is another: the spooled values follow their key."""
    columns = [{"name": "id"}, {"name": "name"}, {"name": "value"}]
    flow = Flow(kafka, server, spoold, on_schema_change="reencode", format=form, columns=columns)
    if server.modern:
        flow.alter("RENAME COLUMN value TO worth")
    else:
        flow.alter("ADD COLUMN worth UInt32", "DROP COLUMN value")
    flow.resume()  # a pause would be shown before the hold
    flow.wait_held("value")  # the configuration names a column that is gone
    assert flow.daemon.sigterm() == 0
    columns[2] = {"name": "worth", "from": "value"}
    flow.daemon.start()
    flow.wait_delivered(200)
    assert flow.one("countIf(worth = id % 7 AND id >= 100)") == "100"


@NATIVE_FIRST
@MODES
def test_reordered_columns_are_nothing(kafka, server, spoold, form, mode):
    flow = Flow(kafka, server, spoold, on_schema_change=mode, format=form)
    if server.modern:
        flow.alter("MODIFY COLUMN value UInt32 FIRST")
    else:  # it has no FIRST: behind another column, by way of one that was not there
        flow.alter("DROP COLUMN value", "ADD COLUMN value UInt32 AFTER id")
    flow.resume()
    flow.wait_delivered(200)
    assert flow.one("countIf(value = id % 7 AND id >= 100)") == "100"
    assert not flow.daemon.events("batch.reencoded")


def test_changed_again_and_again(kafka, server, spoold):
    """Blocks of three schemas wait, and the sealed batch of one is encoded anew twice."""
    flow = Flow(kafka, server, spoold, on_schema_change="reencode")
    flow.alter("MODIFY COLUMN value Int64")
    flow.wait_schema()
    flow.send(200)
    flow.alter("ADD COLUMN more Nullable(UInt8)", "MODIFY COLUMN value String")
    flow.wait_schema(2)
    flow.send(300, more=5)
    flow.alter("MODIFY COLUMN value UInt16", "MODIFY COLUMN more Nullable(String)")
    flow.daemon.wait(lambda: len(flow.daemon.events("schema.changed")) >= 3, 20, "the last change is seen")
    flow.resume()
    flow.wait_delivered(400)
    flow.assert_exact(400)
    assert flow.one("countIf(more = '5' AND id >= 300)") == flow.one("countIf(more IS NOT NULL)") == "100"


def test_changed_while_the_server_is_away(kafka, server, spoold):
    """Blocks in the spool across a restart of the daemon, and a table that is another at its start."""
    flow = Flow(kafka, server, spoold, on_schema_change="reencode")
    assert flow.daemon.sigterm() == 0
    flow.alter("MODIFY COLUMN value Nullable(Int16)")
    flow.daemon.start()
    flow.wait_delivered(200)
    flow.assert_exact(200)
    assert flow.daemon.events("batch.reencoded")
    assert flow.daemon.metric("spoold_possible_duplicates_total") == 0


def test_changed_in_the_middle_of_a_backlog(kafka, server, spoold):
    """Under load, with the slow poll alone: nothing is lost, nothing doubled, whatever was on its way."""
    topic = kafka.create_topic(4)
    table = server.create_bench_table(window=1000, origin=True)
    columns = [{"name": c.strip().split(" ")[0]} for c in server.bench_columns.split(",")]
    columns += [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
                {"name": "_offset", "from": "$offset"}]
    kafka.produce(topic, 200000)
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns, on_schema_change="reencode",
                                           flush={"rows": 20000})],
                    clickhouse={"table_check_interval": "1s"}).start()
    for change in ("ADD COLUMN extra String", "MODIFY COLUMN _partition Int64", "MODIFY COLUMN _partition UInt32"):
        before = server.count(table)
        daemon.wait(lambda: server.count(table) > before or before == 200000, 60, "more rows")
        server.query(f"ALTER TABLE {table} {change}")
    daemon.wait(lambda: server.unique(table) == 200000, 90, lambda: f"all rows: {daemon.stream_status('s')}")
    assert server.count(table) == 200000
    assert server.number(f"SELECT uniqExact(_partition, _offset) FROM {table}") == 200000


class Moved(Flow):
    """A stream whose configuration names another table now, with 100 rows for the former one."""

    def __init__(self, kafka, server, spoold):
        super().__init__(kafka, server, spoold)
        assert self.daemon.sigterm() == 0
        self.former, self.table = self.table, server.create_table(COLUMNS, order_by="id", window=1000)
        self.daemon.config["streams"][0]["table"] = self.table

    def holds(self):
        return [e for e in self.daemon.events("stream.state") if "held" in (e["from"], e["to"])]


def test_a_former_table_may_go_once_it_has_its_rows(kafka, engine, spoold):
    flow = Moved(kafka, engine, spoold)
    flow.daemon.start()
    flow.daemon.wait_rows(engine, flow.former, 200)
    flow.daemon.wait_state("s", "running")
    before = len(flow.holds())
    engine.query(f"DROP TABLE {flow.former}")
    kafka.send(flow.topic, records(200, 100))
    flow.wait_delivered(100)
    hold_for(3)  # three looks at the tables
    assert len(flow.holds()) == before


def test_a_former_table_that_went_holds_its_rows(kafka, engine, spoold):
    flow = Moved(kafka, engine, spoold)
    engine.query(f"DROP TABLE {flow.former}")
    flow.daemon.start()
    flow.wait_held(flow.former, "does not exist")
    before = len(flow.holds())
    hold_for(3)  # the other table is looked at too, and is all right
    assert len(flow.holds()) == before
    engine.query(f"CREATE TABLE {flow.former} ({COLUMNS}) ENGINE = MergeTree ORDER BY id")
    flow.daemon.wait_rows(engine, flow.former, 100)
    flow.daemon.wait_state("s", "running")
