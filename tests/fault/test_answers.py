# SPDX-License-Identifier: Apache-2.0
"""Answers of a ClickHouse that are hard to bring about, put into its mouth by the proxy: a failure to
store at the very end, a shard's words passed on, memory that is short."""
from support.process import hold_for
from support.proxy import Fault, refusal
from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
AT_COMMIT = refusal(1001, "std::exception: cannot rename (STD_EXCEPTION)")
NO_MEMORY = refusal(241, "Memory limit (for query) exceeded. (MEMORY_LIMIT_EXCEEDED)")
OF_A_SHARD = refusal(6, "Received from ch2:9000. DB::Exception: Cannot parse string 'x' as UInt64")


def test_a_row_left_over_is_not_buried_for_the_others(kafka, clickhouse, proxy, spoold):
    """A batch was refused, all of it but one row is in: what was said was not said of that row."""
    between, topic = proxy(clickhouse), kafka.create_topic(2)
    table = clickhouse.create_table("id UInt64, _topic String, _partition Int32, _offset Int64",
                                    order_by="id")
    daemon = spoold(kafka, between.url, [stream(
        "s", topic, table, columns=[{"name": "id"}] + ORIGIN,
        flush={"rows": 101, "interval": "1h"})]).start()
    refused = between.arm(Fault("body", "garbage", frames=2, garbage=OF_A_SHARD), "s")
    kafka.send(topic, [f'{{"id":{i}}}' for i in range(100)], partition=0)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 100, 30, "the first block")
    kafka.send(topic, ['{"id":100}'], partition=1)
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 100, 1: 1}, 60,
                "committed")
    assert refused.struck.is_set()
    assert [e["stored"] for e in daemon.events("batch.asked")] == ["100"]
    assert daemon.stream_status("s")["dead_letters"] == 0
    assert clickhouse.count(table) == clickhouse.unique(table) == 101
    assert daemon.stream_status("s")["state"] == "running"


def test_attempts_that_nothing_can_tell_of_are_few(kafka, engine, proxy, spoold):
    """Each may have stored the rows, and has lost its token: held, the next one is far away."""
    between, topic = proxy(engine), kafka.create_topic(1)
    table = engine.create_bench_table(window=1000)
    daemon = spoold(kafka, between.url, [stream("s", topic, table)]).start()
    fault = between.arm(Fault("answer", "garbage", garbage=AT_COMMIT), "s", times=1000)
    kafka.produce(topic, 100)
    daemon.wait(lambda: "code 1001" in daemon.stream_status("s")["reason"], 60, "held")
    attempts = len(between.inserts("s"))

    def check():
        assert len(between.inserts("s")) == attempts
    hold_for(4, check)
    fault.times = 0
    daemon.ctl("resume", "s")
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 100}, 60, "committed")
    assert engine.unique(table) == 100
    assert engine.count(table) - 100 == daemon.metric("spoold_possible_duplicates_total")


def test_what_was_too_big_is_not_forgotten_with_its_token(kafka, engine, proxy, spoold):
    """Memory is short three times, under two tokens, since the server lost one in between."""
    between, topic = proxy(engine), kafka.create_topic(1)
    table = engine.create_table(engine.bench_columns, order_by="id", window=1000,
                                extra=" PARTITION BY id % 2")
    daemon = spoold(kafka, between.url, [stream("s", topic, table, flush={
        "rows": 4000, "interval": "1h"})]).start()
    faults = [between.arm(Fault("answer", "garbage", garbage=answer), "s", times=times)
              for answer, times in ((NO_MEMORY, 1), (AT_COMMIT, 1), (NO_MEMORY, 1000))]
    kafka.produce(topic, 4000)
    daemon.wait(lambda: daemon.events("batch.too_big"), 60, "halved")
    faults[-1].times = 0
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 4000}, 60, "committed")
    inserts = between.inserts("s")
    whole = [r for r in inserts if r.length > 0.7 * inserts[0].length]
    assert len(whole) == 4
    assert engine.unique(table) == 4000
    assert engine.count(table) - 4000 <= daemon.metric("spoold_possible_duplicates_total")
