# SPDX-License-Identifier: Apache-2.0
"""Whether a table's memory of tokens is enough: a batch takes an entry for each partition it touches,
and a repeat must fall into the same ones. The answer to a batch is lost, with the server alive."""
import pytest

from support.proxy import Fault
from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
ORIGIN_COLUMNS = ", _topic String, _partition Int32, _offset Int64"
ROWS = 1000


class Lost:
    """A stream into the table, whose first batch is stored and not answered."""

    def __init__(self, kafka, engine, proxy, spoold, table, asked=False):
        self.kafka, self.engine, self.table = kafka, engine, table
        self.topic = kafka.create_topic(1)
        columns = [{"name": c.strip().split(" ")[0]} for c in engine.bench_columns.split(",")]
        through = proxy(engine)
        self.daemon = spoold(kafka, through.url, [
            stream("s", self.topic, table, columns=columns + (ORIGIN if asked else []))])
        self.fault = through.arm(Fault("answer", how="rst"), stream="s")
        kafka.produce(self.topic, ROWS)
        self.daemon.start()
        self.daemon.wait(lambda: kafka.committed_offsets(self.daemon.group, self.topic)
                         == {0: ROWS}, 60, "committed")
        assert self.fault.struck.is_set()
        self.status = self.daemon.stream_status("s")
        self.possible = self.daemon.metric("spoold_possible_duplicates_total")

    def exact(self):
        return self.engine.count(self.table) == ROWS and self.possible == 0


@pytest.fixture
def lost(kafka, engine, proxy, spoold):
    return lambda table, **options: Lost(kafka, engine, proxy, spoold, table, **options)


def test_a_batch_over_many_partitions_is_exact_by_its_token(lost, engine):
    flow = lost(engine.create_table(engine.bench_columns, order_by="id", window=1000,
                                    extra=" PARTITION BY id % 40"))
    assert flow.exact()
    assert flow.status["delivery"] == "exactly_once"


def check_no_window(lost, engine, asked, why, more="", **table):
    """The token is not trusted: exact where the table can be asked, else sent again and counted."""
    columns = engine.bench_columns + (ORIGIN_COLUMNS if asked else "") + more
    flow = lost(engine.create_table(columns, order_by="id", **table), asked=asked)
    if asked:
        assert flow.exact()
        assert flow.status["delivery"] == "exactly_once"
    else:
        assert flow.possible == ROWS
        assert flow.engine.unique(flow.table) == ROWS
        assert flow.status["delivery"] == "at_least_once"
        assert why in flow.status["delivery_why"], flow.status


ASKED = pytest.mark.parametrize("asked", [True, False], ids=["origin", "plain"])


@ASKED
def test_a_window_smaller_than_a_batch_is_no_window(lost, engine, asked):
    check_no_window(lost, engine, asked, "remembers 20 inserts", window=20,
                    extra=" PARTITION BY id % 40")


@ASKED
def test_a_partition_key_that_the_server_fills_in(lost, engine, asked):
    check_no_window(lost, engine, asked, "rests on stored", window=1000,
                    more=", stored DateTime64(3) DEFAULT now64(3)",
                    extra=" PARTITION BY toUnixTimestamp64Milli(stored)")


def test_a_window_that_came_behind_the_seal_is_none(kafka, engine, proxy, spoold):
    """The table remembers from now on, and has not the token of what it stored before."""
    between, topic = proxy(engine), kafka.create_topic(1)
    table = engine.create_bench_table()
    daemon = spoold(kafka, between.url, [stream("s", topic, table)])
    fault = between.arm(Fault("answer", how="rst", on_strike=lambda: engine.query(
        f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 1000")), "s")
    kafka.produce(topic, ROWS)
    daemon.start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: ROWS}, 60, "committed")
    assert fault.struck.is_set()
    assert engine.unique(table) == ROWS
    assert engine.count(table) - ROWS == daemon.metric("spoold_possible_duplicates_total")
