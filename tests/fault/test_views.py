# SPDX-License-Identifier: Apache-2.0
"""A materialized view behind the table fails: the server has put the rows into the table by then."""
import pytest

from support.process import wait_until
from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
ROWS = 1000
# Longer than what is kept of an answer, so that "while pushing to view" stands behind that.
LONG = " AND ".join(f"id != {10**9 + i}" for i in range(60))


class Viewed:
    """A table and what a view of it fills, which refuses the row with id 5 until mend()."""

    def __init__(self, server, asked=False, window=0, view_window=0, partitions=0):
        self.server = server
        columns = server.bench_columns
        if asked:
            columns += ", _topic String, _partition Int32, _offset Int64"
        self.table = server.create_table(
            columns, order_by="id", window=window,
            extra=f" PARTITION BY id % {partitions}" if partitions else "")
        check = f", CONSTRAINT c CHECK id != 5 AND {LONG}" if server.modern else ""
        self.target = server.create_table(f"id UInt64{check}", window=view_window)
        self._make_view("id" if server.modern else "id + toUInt64(throwIf(id = 5))")

    def _make_view(self, expression):
        self.server.query(f"CREATE MATERIALIZED VIEW v_{self.table} TO {self.target} "
                          f"AS SELECT {expression} AS id FROM {self.table}")

    def mend(self):
        if self.server.modern:
            self.server.query(f"ALTER TABLE {self.target} DROP CONSTRAINT c")
        else:
            self.server.query(f"DROP TABLE v_{self.table}")
            self._make_view("id")

    def counts(self):
        return self.server.count(self.table), self.server.count(self.target)


def flow(kafka, spoold, viewed, asked=False):
    topic = kafka.create_topic(1)
    columns = [{"name": c.strip().split(" ")[0]} for c in viewed.server.bench_columns.split(",")]
    kafka.produce(topic, ROWS)
    return spoold(kafka, viewed.server, [stream("s", topic, viewed.table,
                                                columns=columns + (ORIGIN if asked else []))]), topic


def settled(kafka, daemon, topic, rows=ROWS):
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: rows}, 60, "committed")


@pytest.mark.parametrize("view_window", [0, 100])
@pytest.mark.parametrize("partitions", [0, 20])
def test_a_view_that_fails_is_filled_once_it_is_mended(kafka, engine, spoold, view_window,
                                                       partitions):
    viewed = Viewed(engine, window=1000, view_window=view_window, partitions=partitions)
    daemon, topic = flow(kafka, spoold, viewed)
    daemon.start()
    daemon.wait_state("s", "held")
    daemon.wait(lambda: daemon.stream_status("s")["retries"] >= 2, 60, "tried again")
    assert viewed.counts() == (ROWS, 0)
    viewed.mend()
    settled(kafka, daemon, topic)
    assert viewed.counts() == (ROWS, ROWS)
    status = daemon.stream_status("s")
    assert status["state"] == "running" and status["views_unsure_rows"] == 0
    assert daemon.metric("spoold_possible_duplicates_total") == 0
    assert daemon.metric("spoold_dead_letters_total") == 0


@pytest.mark.parametrize("asked", [True, False], ids=["origin", "plain"])
def test_a_view_that_fails_doubles_nothing_where_no_token_is_known(kafka, server, spoold, asked):
    viewed = Viewed(server, asked)
    daemon, topic = flow(kafka, spoold, viewed, asked)
    daemon.start()
    settled(kafka, daemon, topic)
    assert viewed.counts() == (ROWS, 0)
    assert daemon.stream_status("s")["views_unsure_rows"] == ROWS
    assert daemon.metric("spoold_views_unsure_rows_total") == ROWS
    assert daemon.metric("spoold_possible_duplicates_total") == 0
    assert daemon.metric("spoold_dead_letters_total") == 0
    viewed.mend()
    kafka.produce(topic, 100, "--first", ROWS)
    settled(kafka, daemon, topic, ROWS + 100)
    assert viewed.counts() == (ROWS + 100, 100)


def test_rows_that_were_asked_for_may_lack_in_views(kafka, clickhouse, spoold):
    viewed = Viewed(clickhouse, True)
    viewed.mend()
    daemon, topic = flow(kafka, spoold, viewed, True)
    daemon.launch("send.body_done=kill")
    assert daemon.wait_exit(60) == -9
    wait_until(lambda: viewed.counts() == (ROWS, ROWS), 30, "what was sent is stored")
    daemon.start()
    settled(kafka, daemon, topic)
    assert viewed.counts() == (ROWS, ROWS)
    assert daemon.stream_status("s")["views_unsure_rows"] == ROWS


def test_a_view_failed_and_the_server_restarted(kafka, engine, spoold):
    """The token is worth nothing any more, and the rows are in: they are not sent again."""
    viewed = Viewed(engine, window=1000)
    daemon, topic = flow(kafka, spoold, viewed)
    daemon.start()
    daemon.wait(lambda: "code 469" in daemon.stream_status("s")["reason"], 60, "held")
    engine.kill()
    daemon.wait_log("endpoint.down", 30)
    engine.start()
    settled(kafka, daemon, topic)
    assert viewed.counts() == (ROWS, 0)
    assert daemon.stream_status("s")["views_unsure_rows"] == ROWS
    assert daemon.metric("spoold_possible_duplicates_total") == 0
    daemon.wait_state("s", "running")


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("kind", ["plain", "origin", "token"])
def test_a_view_whose_target_has_too_many_parts(kafka, engine, spoold, kind, first):
    """26.7 looks at that before any row is stored: whether the table has the rows goes by the order
    of its views. They are not taken for stored."""
    viewed = Viewed(engine, kind == "origin", window=1000 if kind == "token" else 0)
    viewed.mend()
    full = engine.create_table("id UInt64", extra=" SETTINGS parts_to_throw_insert = 1")
    engine.query(f"INSERT INTO {full} SELECT 10000000")
    engine.query(f"CREATE MATERIALIZED VIEW w_{viewed.table} TO {full} "
                 f"AS SELECT id FROM {viewed.table}")
    if first:
        engine.query(f"DROP TABLE v_{viewed.table}")
        viewed._make_view("id")
    daemon, topic = flow(kafka, spoold, viewed, kind == "origin")
    daemon.start()
    daemon.wait(lambda: daemon.metric("spoold_errors_total") > 0, 60, "refused")
    if kind == "plain":
        daemon.wait(lambda: "pushing to view" in daemon.stream_status("s")["reason"], 60, "held")
    engine.query(f"ALTER TABLE {full} MODIFY SETTING parts_to_throw_insert = 3000")
    settled(kafka, daemon, topic)
    daemon.wait_state("s", "running")
    assert engine.unique(viewed.table) == ROWS
    assert viewed.counts()[0] == (2 * ROWS if first and kind == "plain" else ROWS)
    assert daemon.metric("spoold_possible_duplicates_total") == (ROWS if kind == "plain" else 0)
    assert daemon.metric("spoold_dead_letters_total") == 0
