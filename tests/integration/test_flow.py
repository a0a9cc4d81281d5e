# SPDX-License-Identifier: Apache-2.0
"""Records become rows: triggers, batches, two streams side by side, what a column is made from."""
import json

from support.process import hold_for
from support.spoold import stream

RECORD = '{{"id":{},"name":"n{}","kind":"a","value":1.5,"ts":"2026-11-23 10:11:12","state":"s","ok":true}}'


def records(first, count):
    return [RECORD.format(i, i) for i in range(first, first + count)]


def test_every_record_becomes_one_row(kafka, server, spoold):
    topic = kafka.create_topic(4)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 50000)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_rows(server, table, 50000)
    assert server.unique(table) == 50000
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                20, "offsets committed to the end")
    status = daemon.stream_status("s")
    assert status["state"] == "running"
    assert status["delivery"] == ("exactly_once" if server.deduplicates else "at_least_once")
    assert status["rows_spooled"] == 0
    assert daemon.sigterm() == 0


def test_rows_trigger_before_the_interval(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={
        "rows": 1000, "interval": "1h"})]).start()
    kafka.send(topic, records(0, 999))
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 999, 20, "999 rows spooled")
    hold_for(1.5, lambda: daemon.alive())
    assert server.count(table) == 0  # one row short: nothing may be sent
    kafka.send(topic, records(999, 1))
    daemon.wait_rows(server, table, 1000)


def test_bytes_trigger_before_the_interval(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={
        "rows": 1000000, "bytes": "64KiB", "interval": "1h"})]).start()
    kafka.send(topic, records(0, 100))
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 100, 20, "100 rows spooled")
    assert server.count(table) == 0
    kafka.send(topic, records(100, 3000))
    daemon.wait(lambda: server.count(table) > 0, 20, "rows by bytes")


def test_interval_trigger_and_flush_by_hand(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_bench_table(window=1000)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={"interval": "500ms"}),
                                    ]).start()
    kafka.send(topic, records(0, 3))
    daemon.wait_rows(server, table, 3)
    assert daemon.sigterm() == 0
    daemon.config["streams"][0]["flush"]["interval"] = "1h"
    daemon.start()
    kafka.send(topic, records(3, 2))
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 2, 20, "2 rows spooled")
    assert server.count(table) == 3
    assert daemon.control("POST", "/streams/s/flush")[0] == 200
    daemon.wait_rows(server, table, 5)


def test_backlog_drains_in_full_batches(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 100000)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={
        "rows": 20000, "interval": "50ms"})]).start()
    daemon.wait(lambda: daemon.stream_status("s")["state"] == "running", 20, "running")
    daemon.control("POST", "/streams/s/pause")
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"]
                + server.count(table) == 100000, 30, "all in the spool")
    already = daemon.stream_status("s")["batches"]["acknowledged"]
    left = daemon.stream_status("s")["rows_spooled"]
    daemon.control("POST", "/streams/s/resume")
    daemon.wait_rows(server, table, 100000)
    made = daemon.stream_status("s")["batches"]["acknowledged"] - already
    assert made <= left // 20000 + 2, f"{made} batches for {left} rows"


def test_two_streams_one_table_missing(kafka, server, spoold):
    good, bad = kafka.create_topic(2), kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    kafka.produce(good, 20000)
    kafka.produce(bad, 20000)
    daemon = spoold(kafka, server, [stream("good", good, table),
                                    stream("bad", bad, "not_there")]).start()
    daemon.wait_rows(server, table, 20000)
    daemon.wait(lambda: "does not exist" in daemon.stream_status("bad")["reason"], 20, "held")
    assert daemon.stream_status("bad")["state"] == "held"
    assert daemon.stream_status("good")["state"] == "running"
    try:
        server.create_bench_table(name="not_there", window=1000)
        daemon.wait_rows(server, "not_there", 20000, 60)
        daemon.wait_state("bad", "running")
    finally:
        server.drop_table("not_there")


def test_table_is_made_where_asked(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = "made_" + topic.replace("-", "_")
    columns = [{"name": "id", "type": "UInt64"}, {"name": "name", "type": "String"},
               {"name": "p", "type": "Int32", "from": "$partition"},
               {"name": "o", "type": "Int64", "from": "$offset"}]
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns, create_table={
        "engine": "MergeTree", "order_by": "id"})]).start()
    kafka.send(topic, ['{"id":7,"name":"x"}'])
    daemon.wait(lambda: server.query("SHOW TABLES").find(table) >= 0, 20, "table made")
    daemon.wait_rows(server, table, 1)
    assert server.rows(f"SELECT id, name, p, o FROM {table}") == [["7", "x", "0", "0"]]
    if server.deduplicates:
        assert daemon.stream_status("s")["delivery"] == "exactly_once"
    # Gone, it is not waited for table_check_interval.
    server.drop_table(table)
    kafka.send(topic, ['{"id":8}'])
    daemon.wait(lambda: len(daemon.events("table.created")) == 2, 20, "made again")
    daemon.wait_rows(server, table, 1)


def test_table_is_made_with_the_origin_of_its_rows(kafka, server, spoold):
    topic = kafka.create_topic(2)
    table = "made_" + topic.replace("-", "_")
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=[
        {"name": "id", "type": "UInt64"}], create_table={
            "order_by": "id", "origin_columns": True})]).start()
    kafka.send(topic, ['{"id":7}', '{"id":8}'], partition=1)
    daemon.wait(lambda: server.query("SHOW TABLES").find(table) >= 0, 20, "table made")
    daemon.wait_rows(server, table, 2)
    assert server.rows(f"SELECT id, topic, partition, offset FROM {table} ORDER BY id") == [
        ["7", topic, "1", "0"], ["8", topic, "1", "1"]]
    assert daemon.stream_status("s")["delivery"] == "exactly_once"


def test_mapping_facts_defaults_and_constants(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_table(
        "id UInt64, city String, lang String, k String, h String, t String, n Int32, c String, "
        "raw String")
    columns = [{"name": "id"}, {"name": "city", "from": "user.address.city"},
               {"name": "lang", "default": "en"}, {"name": "k", "from": "$key"},
               {"name": "h", "from": "$headers"}, {"name": "t", "from": "$topic"},
               {"name": "n", "value": 42}, {"name": "c", "from": "$origin"},
               {"name": "raw", "from": "$record"}]
    value = '{"id":1,"user":{"address":{"city":"Ulm"}},"more":[1,2]}'
    kafka.send(topic, [{"value": value, "key": "the key", "headers": {"a": "1"}}, None,
                       '{"id":2,"lang":"de"}'])
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns)]).start()
    daemon.wait_rows(server, table, 2)
    one, two = [json.loads(line) for line in server.query(
        f"SELECT * FROM {table} ORDER BY id FORMAT JSONEachRow").split("\n")]
    assert (one["city"], one["lang"], one["k"], one["t"], one["n"]) == \
        ("Ulm", "en", "the key", topic, 42)
    assert json.loads(one["h"]) == {"a": "1"}
    assert one["c"] == f"kafka/{topic}/0"
    assert one["raw"] == value
    assert (two["city"], two["lang"], two["k"]) == ("", "de", "")
    assert daemon.metric("spoold_tombstones_total") == 1
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 3}, 20,
                "the tombstone's offset is committed too")


def test_bad_records_go_to_the_dead_letters(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_table("id UInt64, small UInt8")
    kafka.send(topic, ['{"id":1,"small":1}', '{"id":2,"small":300}', 'not json',
                       {"value": '{"id":4,"small":"x"}', "key": "k", "headers": {"h": "v"}},
                       '{"id":5,"small":5}'])
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_rows(server, table, 2)
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 5}, 20, "committed")
    assert server.rows(f"SELECT id FROM {table} ORDER BY id") == [["1"], ["5"]]
    letters = daemon.ctl("dead", "ls", "s", "--json")[1]
    assert [(d["offset"], d["column"]) for d in letters] == [(1, "small"), (2, ""), (3, "small")]
    assert letters[1]["record"] == "not json"
    assert letters[0]["code"] and letters[0]["reason"]
    assert daemon.metric("spoold_dead_letters_total") == 3
    assert daemon.sigterm() == 0
    daemon.start()  # nothing is written twice
    assert daemon.stream_status("s")["dead_letters"] == 3


def test_only_bad_records_still_move_the_offset(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_table("id UInt64")
    kafka.send(topic, ["nope"] * 10)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 10}, 20, "committed")
    assert server.count(table) == 0
    assert daemon.stream_status("s")["dead_letters"] == 10


def test_hold_on_bad_record_waits_for_the_operator(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_table("id UInt64")
    kafka.send(topic, ['{"id":1}', "bad", '{"id":2}'])
    daemon = spoold(kafka, server, [stream("s", topic, table, on_bad_record="hold")]).start()
    daemon.wait(lambda: "on_bad_record" in daemon.stream_status("s")["reason"], 20, "held")
    assert daemon.stream_status("s")["state"] == "held"
    assert daemon.stream_status("s")["dead_letters"] == 0
    daemon.control("POST", "/streams/s/resume")
    daemon.wait_rows(server, table, 2)
    assert daemon.stream_status("s")["dead_letters"] == 1


def test_blocks_of_json_lines_where_asked(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table("id UInt64, m Map(String, UInt32), t Tuple(a Int8, b String)")
    kafka.send(topic, ['{"id":1,"m":{"x":5},"t":{"a":1,"b":"q"}}', '{"id":-1}'])
    daemon = spoold(kafka, engine, [stream("s", topic, table, format="json")]).start()
    daemon.wait_rows(engine, table, 1)
    assert engine.rows(f"SELECT id, m, t FROM {table}") == [["1", "{'x':5}", "(1,'q')"]]
    assert daemon.stream_status("s")["format"] == "json"
    assert daemon.stream_status("s")["dead_letters"] == 1


def test_schema_mismatch_is_named_column_by_column(kafka, server, spoold):
    topic, other = kafka.create_topic(1), kafka.create_topic(1)
    table, fine = server.create_table("id UInt64, a String"), server.create_bench_table()
    columns = [{"name": "id", "type": "UInt32"}, {"name": "a"}, {"name": "gone"}]
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=columns),
                                    stream("other", other, fine)]).start()
    daemon.wait(lambda: "UInt32" in daemon.stream_status("s")["reason"], 20, "held")
    reason = daemon.stream_status("s")["reason"]
    assert "id" in reason and "gone" in reason
    assert daemon.stream_status("s")["state"] == "held"
    kafka.produce(other, 1000)
    daemon.wait_rows(server, fine, 1000)


def test_views_are_refused(kafka, server, spoold):
    topic = kafka.create_topic(1)
    table = server.create_bench_table()
    server.query(f"CREATE VIEW {table}_v AS SELECT * FROM {table}")
    kafka.produce(topic, 100)
    daemon = spoold(kafka, server, [stream("s", topic, table + "_v")]).start()
    daemon.wait(lambda: "view" in daemon.stream_status("s")["reason"].lower(), 20, "held")
    assert daemon.stream_status("s")["state"] == "held"
    assert kafka.committed_offsets(daemon.group, topic).get(0) in (None, 0)
    assert daemon.sigterm() == 0  # the table behind it is named, and nothing was lost
    daemon.config["streams"][0]["table"] = table
    daemon.start()
    daemon.wait_rows(server, table, 100)


def test_topic_that_comes_later(kafka, server, spoold):
    table = server.create_bench_table(window=1000)
    name = "later-" + table.replace("_", "-")
    daemon = spoold(kafka, server, [stream("s", name, table)])
    daemon.config["kafka"]["properties"]["topic.metadata.refresh.interval.ms"] = "500"
    daemon.start()
    daemon.wait_log(r"kafka\.topic")
    kafka.create_topic(2, name)
    kafka.produce(name, 100)
    daemon.wait_rows(server, table, 100, 60)


def test_empty_topic_is_idle(kafka, server, spoold):
    topic = kafka.create_topic(3)
    table = server.create_bench_table()
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_log(r"partition\.assigned")
    daemon.wait_state("s", "running")
    assert daemon.stream_status("s")["batches"]["acknowledged"] == 0
    assert daemon.sigterm() == 0


def test_a_stream_held_by_a_bad_record_does_not_starve_the_others(kafka, server, spoold):
    bad, good = kafka.create_topic(12), kafka.create_topic(1)
    bad_table = server.create_bench_table(window=1000)
    table = server.create_bench_table(window=1000)
    for partition in range(12):
        kafka.send(bad, ["bad"], partition)
    kafka.produce(bad, 150000)  # more than all streams together may hold in memory
    daemon = spoold(kafka, server, [stream("bad", bad, bad_table, on_bad_record="hold"),
                                    stream("good", good, table)]).start()
    daemon.wait(lambda: "on_bad_record" in daemon.stream_status("bad")["reason"], 20, "held")
    kafka.produce(good, 150000)
    daemon.wait_rows(server, table, 150000, 60)
    assert daemon.stream_status("bad")["state"] == "held"
    assert server.count(bad_table) < 150000

    def resumed():
        if daemon.stream_status("bad")["state"] == "held":
            daemon.control("POST", "/streams/bad/resume")
        return server.count(bad_table) == 150000
    daemon.wait(resumed, 60, "all rows of the held stream")
    assert server.unique(bad_table) == 150000
    assert daemon.stream_status("bad")["dead_letters"] == 12
