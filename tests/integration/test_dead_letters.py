# SPDX-License-Identifier: Apache-2.0
"""Dead letters: what is kept of a record that does not fit, and how it becomes a row after all."""
import json
import shutil

import pytest

from support.spoold import stream

COLUMNS = [{"name": "id"}, {"name": "v", "from": "in.v"}, {"name": "topic", "from": "$topic"},
           {"name": "part", "from": "$partition"}, {"name": "off", "from": "$offset"},
           {"name": "key", "from": "$key"}, {"name": "at", "from": "$timestamp"},
           {"name": "heads", "from": "$headers"}]
TABLE = ("id UInt64, v UInt8, topic String, part Int32, off Int64, key String,"
         " at DateTime64(3, 'UTC'), heads String")


def letters_of(daemon, *filters):
    found = daemon.ctl("dead", "ls", "s", "--json", *filters)[1]
    return ([found] if isinstance(found, dict) else found) or []


def replay(daemon, *filters, check=True):
    code, text = daemon.ctl("dead", "replay", "s", "--json", *filters, check=check)
    return code, text


def test_a_mended_table_takes_them_with_their_own_facts(kafka, engine, spoold):
    topic, table = kafka.create_topic(2), engine.create_table(TABLE)
    for part in (0, 1):
        kafka.send(topic, [{"value": json.dumps({"id": 100 * part + i, "in": {"v": 250 + i}}),
                            "key": f"k{i}", "timestamp": 1700000000000 + i,
                            "headers": {"h": str(i)}} for i in range(10)], partition=part)
    daemon = spoold(kafka, engine, [stream("s", topic, table, columns=COLUMNS)]).start()
    daemon.wait_rows(engine, table, 12)
    letters = letters_of(daemon)
    assert len(letters) == 8
    assert {(d["reason_name"], d["code"], d["column"], d["attempts"]) for d in letters} == {
        ("range", 5, "v", 1)}
    # the cause stands: one attempt more, and nothing else
    code, told = replay(daemon, check=False)
    assert (code, told["replayed"], told["refused"]) == (1, 0, 8)
    again = letters_of(daemon)
    assert {d["attempts"] for d in again} == {2}
    assert all(d["time"] == was["time"] and d["last_attempt"] > was["last_attempt"]
               for d, was in zip(again, letters))
    # mended: first some, by origin and offset, then the rest
    engine.query(f"ALTER TABLE {table} MODIFY COLUMN v UInt16")
    code, told = replay(daemon, "--origin", f"kafka/{topic}/1", "--from", 7, "--to", 8)
    assert (code, told["replayed"], told["refused"]) == (0, 2, 0)
    daemon.wait_rows(engine, table, 14)
    assert replay(daemon, "--reason", "text")[1]["replayed"] == 0
    assert replay(daemon, "--code", 5)[1]["replayed"] == 6
    daemon.wait_rows(engine, table, 20)
    assert letters_of(daemon) == []
    assert daemon.stream_status("s")["dead_letters"] == 0
    assert daemon.metric("spoold_dead_letters_replayed_total", stream="s") == 8
    assert engine.number(
        f"SELECT count() FROM {table} WHERE v = 250 + off AND part = intDiv(id, 100)"
        f" AND off = id % 100 AND topic = '{topic}' AND key = concat('k', toString(off))"
        f" AND toUnixTimestamp64Milli(at) = 1700000000000 + off"
        f" AND heads = concat('{{\"h\":\"', toString(off), '\"}}')") == 20
    # gone for good: nothing comes back with the next start
    assert daemon.sigterm() == 0
    daemon.start()
    kafka.send(topic, ['{"id":999}'])
    daemon.wait_rows(engine, table, 21)


def test_a_mended_mapping_takes_them(kafka, engine, spoold):
    """The table was right, the stream's columns named the wrong field."""
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, v UInt8, off Int64")
    kafka.send(topic, [json.dumps({"id": i, "v": i + 1, "name": str(i) if i < 2 else f"n{i}"})
                       for i in range(5)])
    columns = [{"name": "id", "from": "name"}, {"name": "v"}, {"name": "off", "from": "$offset"}]
    daemon = spoold(kafka, engine, [stream("s", topic, table, columns=columns)]).start()
    daemon.wait_rows(engine, table, 2)
    daemon.wait(lambda: len(letters_of(daemon)) == 3, 20, "3 letters")
    assert replay(daemon, check=False)[1]["refused"] == 3  # the cause stands
    assert daemon.sigterm() == 0
    columns[0]["from"] = "id"
    daemon.start()
    code, told = replay(daemon)
    assert (code, told["replayed"], told["refused"], told["unsettled"]) == (0, 3, 0, 0)
    daemon.wait_rows(engine, table, 5)
    assert letters_of(daemon) == []
    assert replay(daemon)[1]["replayed"] == 0
    assert daemon.sigterm() == 0
    daemon.start()
    kafka.send(topic, ['{"id":5,"v":6}'])  # behind all that a start would send again
    daemon.wait_rows(engine, table, 6)
    assert engine.unique(table) == 6
    assert engine.number(f"SELECT count() FROM {table} WHERE id = off AND v = id + 1") == 6


def test_what_only_the_server_refused_is_replayed_by_column(kafka, engine, spoold):
    """Rebuilt letters have the columns' names for keys, whatever the mapping."""
    topic = kafka.create_topic(1)
    table = engine.create_table(TABLE + ", d DateTime, CONSTRAINT c CHECK v != 7", window=100)
    kafka.send(topic, [{"value": json.dumps({"id": i, "in": {"v": i % 10}, "x": 1700000000 + i}),
                        "key": "k"} for i in range(500)])
    daemon = spoold(kafka, engine, [stream("s", topic, table, bad_ratio=0.5, columns=COLUMNS + [
        {"name": "d", "from": "x"}])]).start()
    daemon.wait_rows(engine, table, 450)
    daemon.wait(lambda: len(letters_of(daemon)) == 50, 20, "50 letters")
    assert {(d["code"], d["rebuilt"]) for d in letters_of(daemon)} == {(469, True)}
    engine.query(f"ALTER TABLE {table} DROP CONSTRAINT c")
    daemon.wait(lambda: replay(daemon, check=False)[1]["unsettled"] == 0, 20, "all settled")
    daemon.wait_rows(engine, table, 500)
    assert engine.unique(table) == 500
    assert letters_of(daemon) == []
    assert engine.number(f"SELECT count() FROM {table} WHERE off = id AND v = id % 10 AND key = 'k'"
                         f" AND toUnixTimestamp(d) = 1700000000 + id AND topic = '{topic}'") == 500


def test_what_a_replayed_row_is_worth(kafka, engine, spoold):
    """Rows of the topic are asked for; a replay's can't be told apart by their origin columns."""
    topic, table = kafka.create_topic(1), engine.create_table(TABLE)
    kafka.send(topic, [json.dumps({"id": i, "in": {"v": 250 + i}}) for i in range(10)])
    daemon = spoold(kafka, engine, [stream("s", topic, table, columns=COLUMNS)]).start()
    daemon.wait_rows(engine, table, 6)
    assert daemon.stream_status("s")["delivery"] == "exactly_once"
    engine.query(f"ALTER TABLE {table} MODIFY COLUMN v UInt16")
    daemon.ctl("pause", "s")
    assert replay(daemon)[1]["replayed"] == 4
    status = daemon.stream_status("s")
    assert status["delivery"] == "at_least_once" and "of a replay" in status["delivery_why"], status
    daemon.ctl("resume", "s")
    daemon.wait_rows(engine, table, 10)
    daemon.wait(lambda: daemon.stream_status("s")["delivery"] == "exactly_once", 20, "as before")
    assert daemon.stream_status("s")["possible_duplicates"] == 0


def test_discard(kafka, engine, spoold):
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64")
    kafka.send(topic, ["no json", '{"id":-1}', '{"id":"x"}', '{"id":1}'])
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait_rows(engine, table, 1)
    code, told = daemon.ctl("dead", "discard", "s", check=False)
    assert code == 1 and "3 dead letters" in told and "--yes" in told
    assert len(letters_of(daemon)) == 3
    code, told = daemon.ctl("dead", "discard", "s", "--from", "1", "--to", "1", "--yes", "--json")
    assert (code, told["letters"]) == (0, 1)
    assert [d["offset"] for d in letters_of(daemon)] == [0, 2]
    daemon.ctl("dead", "discard", "s", "--yes")
    assert letters_of(daemon) == [] and daemon.stream_status("s")["dead_letters"] == 0


def test_letters_of_a_stream_that_is_gone(kafka, engine, spoold):
    """They are told of, listed and discarded without it, and replayed once it is back."""
    topics = [kafka.create_topic(1) for _ in range(2)]
    tables = [engine.create_table("id UInt8") for _ in range(2)]
    gone, stays = (stream(name, topic, table)
                   for name, topic, table in zip("st", topics, tables))
    kafka.send(topics[0], [f'{{"id":{i}}}' for i in range(254, 259)])
    daemon = spoold(kafka, engine, [gone, stays]).start()
    daemon.wait_rows(engine, tables[0], 2)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 20, "all delivered")
    assert daemon.sigterm() == 0
    daemon.config["streams"] = [stays]
    daemon.start()
    [told] = daemon.events("dead.unread")
    assert (told["stream"], told["letters"]) == ("s", "3")
    assert [d["record"] for d in letters_of(daemon)] == [f'{{"id":{i}}}' for i in (256, 257, 258)]
    with pytest.raises(AssertionError, match='exit 1: .*no stream "s": .* when it is put back'):
        daemon.ctl("dead", "replay", "s")
    daemon.ctl("dead", "discard", "s", "--from", 2, "--to", 2, "--yes")
    assert [d["offset"] for d in letters_of(daemon)] == [3, 4]
    assert daemon.sigterm() == 0
    engine.query(f"ALTER TABLE {tables[0]} MODIFY COLUMN id UInt16")
    daemon.config["streams"] = [gone, stays]
    daemon.start()
    assert daemon.events("dead.unread") == []
    assert replay(daemon)[1]["replayed"] == 2
    daemon.wait_rows(engine, tables[0], 4)


def test_the_bound_holds_and_discarding_lets_go_on(kafka, engine, spoold):
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, t String")
    bad = json.dumps({"id": -1, "t": "x" * 20000})
    kafka.send(topic, [bad] * 120 + [f'{{"id":{i}}}' for i in range(10)])
    daemon = spoold(kafka, engine, [stream("s", topic, table, dead_letters={"max_bytes": "1MiB"})],
                    kafka={"properties": {"max.partition.fetch.bytes": "100000"}}).start()
    daemon.wait(lambda: "dead_letters.max_bytes" in daemon.stream_status("s")["reason"], 20, "held")
    held = sum(d["record_bytes"] for d in letters_of(daemon))
    assert held < 1 << 20
    daemon.ctl("resume", "s")  # there is no room: it stays as it is
    daemon.wait_state("s", "held")
    seen = set()

    def drained():
        now = [d["offset"] for d in letters_of(daemon)]
        seen.update(now)
        if now:  # of those that come meanwhile none is discarded unseen
            daemon.ctl("dead", "discard", "s", "--to", max(now), "--yes")
        return engine.count(table) == 10
    daemon.wait(drained, 60, "the good ones behind them")
    seen.update(d["offset"] for d in letters_of(daemon))
    assert seen == set(range(120))
    assert daemon.stream_status("s")["state"] == "running"


def test_the_hold_ends_when_the_refused_rows_get_in_after_all(kafka, engine, spoold):
    """There is no room for the letters of rows that the table refuses; then it takes them."""
    topic = kafka.create_topic(1)
    table = engine.create_table("id UInt64, t String, CONSTRAINT c CHECK id != 7", window=100)
    kafka.send(topic, [json.dumps({"id": 7, "t": "x" * 1100000})])
    daemon = spoold(kafka, engine, [stream("s", topic, table, dead_letters={"max_bytes": "1MiB"})]).start()
    daemon.wait(lambda: "can't be stored" in daemon.stream_status("s")["reason"], 20, "held")
    assert "without all others" in daemon.stream_status("s")["reason"]
    engine.query(f"ALTER TABLE {table} DROP CONSTRAINT c")
    daemon.wait_rows(engine, table, 1)
    daemon.wait_state("s", "running")
    kafka.send(topic, ['{"id":8}'])
    daemon.wait_rows(engine, table, 2)
    assert letters_of(daemon) == []


def test_the_letters_of_a_batch_are_kept_all_or_none(kafka, engine, spoold):
    """There is room for one of the two. Were it kept, its row would come twice: with the batch, once
    the table takes it, and when the letter is replayed."""
    topic = kafka.create_topic(1)
    table = engine.create_table("id UInt64, t String, CONSTRAINT c CHECK id % 100 != 7", window=100)
    daemon = spoold(kafka, engine, [stream("s", topic, table, dead_letters={"max_bytes": "1MiB"},
                                           flush={"rows": 200, "interval": "1h"})]).start()
    kafka.send(topic, [json.dumps({"id": i, "t": "x" * (700000 if i % 100 == 7 else 1)})
                       for i in range(200)])
    daemon.wait(lambda: "can't be stored" in daemon.stream_status("s")["reason"], 20, "held")
    assert "2 more" in daemon.stream_status("s")["reason"]
    assert "without all others" in daemon.stream_status("s")["reason"]
    assert letters_of(daemon) == []
    engine.query(f"ALTER TABLE {table} DROP CONSTRAINT c")
    daemon.ctl("resume", "s")
    daemon.wait_rows(engine, table, 200)
    daemon.wait_state("s", "running")
    assert letters_of(daemon) == []


def test_replay_on_a_stopped_spool_says_what_it_needs(kafka, engine, spoold):
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64")
    kafka.send(topic, ["no json", '{"id":1}'])
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait_rows(engine, table, 1)
    assert daemon.sigterm() == 0
    for action in ("replay", "discard"):
        code, _ = daemon.ctl("dead", action, "s", check=False)
        assert code == 2
    assert len(letters_of(daemon)) == 1


DEAD_TABLE = ("stream String, origin String, offset Int64, code Int32, reason String, detail String,"
              " column String, position UInt64, record String, key Nullable(String), headers String,"
              " attempts UInt32, timestamp Nullable({time}), received_at Nullable({time}),"
              " first_at Nullable({time}), last_at Nullable({time})")


def test_letters_in_a_table_and_a_topic(kafka, server, spoold):
    """At least once with their key, through a missing table and kills between arrival and its note."""
    topic, dead_topic = kafka.create_topic(1), kafka.create_topic(1)
    table = server.create_table("id UInt64")
    dead_table = table + "_dead"
    bad = [{"value": f'{{"id":-{i}}}', "key": f"k{i}", "headers": {"h": "1"}} for i in range(1, 601)]
    kafka.send(topic, bad + ['{"id":1}'])
    daemon = spoold(kafka, server, [stream("s", topic, table, dead_letters={
        "table": dead_table, "topic": dead_topic})]).start("dead_out.arrived=kill@2")
    assert daemon.wait_exit(60) == -9
    daemon.start("dead_out.arrived=kill@2")
    assert daemon.wait_exit(60) == -9
    daemon.start()
    daemon.wait_rows(server, table, 1)  # the stream is not held by the missing table
    daemon.wait(lambda: daemon.events("dead.not_sent"), 20, "dead.not_sent")
    assert daemon.stream_status("s")["state"] == "running"
    server.create_table(DEAD_TABLE.format(time="DateTime64(3, 'UTC')" if server.modern else "String"),
                        name=dead_table)
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters_waiting"] == 0, 90, "all sent")
    assert server.number(f"SELECT uniqExact(offset) FROM {dead_table}") == 600
    assert server.number(
        f"SELECT uniqExact(offset) FROM {dead_table} WHERE record = concat('{{\"id\":-',"
        f" toString(offset + 1), '}}') AND key = concat('k', toString(offset + 1)) AND code = 5"
        f" AND reason = 'range' AND stream = 's' AND origin = 'kafka/{topic}/0' AND column = 'id'"
        f" AND headers = '{{\"h\":\"1\"}}' AND attempts = 1"
        f" AND substring(toString(first_at), 1, 2) = '20'") == 600
    messages = kafka.read(dead_topic)
    assert {m["value"] for m in messages} == {b["value"] for b in bad}
    for m in messages:
        assert m["headers"]["offset"] == str(int(m["key"][1:]) - 1)
        assert m["value"] == f'{{"id":-{m["key"][1:]}}}'
        assert m["headers"]["stream"] == "s" and m["headers"]["column"] == "id"
        assert m["headers"]["origin"] == f"kafka/{topic}/0" and m["headers"]["code"] == "5"
        assert m["headers"]["reason"] == "the number is outside UInt64"  # the table's detail
    assert len(messages) > 600  # a chunk came again after each kill
    assert all(d["in_table"] and d["in_topic"] for d in letters_of(daemon))
    kafka.send(topic, ["later"])
    daemon.wait(lambda: server.number(f"SELECT count() FROM {dead_table} WHERE record = 'later'"), 20,
                "a letter that comes later")


STEPS = ["dead_change.before_commit", "dead_change.before_commit@2", "dead_change.after_commit",
         "dead_change.after_commit@2", "replay.noted", "append.before_commit@2",
         "append.after_commit@2", "replay.appended", "replay.removed", "replay.noted@2",
         "replay.appended@2"]


def test_killed_at_each_step_of_a_replay(kafka, engine, spoold, tmp_path):
    """5,000 letters are two chunks; some still do not fit. Each step begins with the same spool."""
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, v UInt8", window=100)
    kafka.send(topic, [f'{{"id":{i},"v":{-1 if i % 100 == 0 else 300}}}' for i in range(5000)])
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 5000}, 60, "all read")
    assert daemon.sigterm() == 0
    shutil.copytree(daemon.spool, tmp_path / "spool")
    engine.query(f"ALTER TABLE {table} MODIFY COLUMN v UInt16")
    for step in STEPS:
        shutil.rmtree(daemon.spool)
        shutil.copytree(tmp_path / "spool", daemon.spool)
        engine.query(f"TRUNCATE TABLE {table}")
        point, _, passage = step.partition("@")
        daemon.start(f"{point}=kill" + (f"@{passage}" if passage else ""))
        daemon.ctl("dead", "replay", "s", check=False)
        assert daemon.wait_exit(60) == -9, step
        daemon.start()
        told = replay(daemon, check=False)[1]
        assert (told["refused"], told["unsettled"]) == (50, 0), (step, told)
        daemon.wait_rows(engine, table, 4950)
        assert engine.unique(table) == 4950, step
        assert len(letters_of(daemon)) == 50, step
        assert daemon.sigterm() == 0
        assert daemon.ctl("verify")[0] == 0, step


def test_a_letter_that_its_table_or_topic_refuses_is_passed_over(kafka, server, spoold):
    """Two that the table refuses, one too long for the topic: counted, and the others arrive."""
    topic = kafka.create_topic(1)
    dead_topic = kafka.create_topic(1, **{"max.message.bytes": 150000})
    table = server.create_table("id UInt64")
    time = "DateTime64(3, 'UTC')" if server.modern else "String"
    dead_table = server.create_table(
        DEAD_TABLE.format(time=time) + ", x UInt8 MATERIALIZED throwIf(offset IN (7, 450))",
        name=table + "_dead")
    # nothing in it compresses: the broker judges what it gets
    long = "".join(f"{i * 2654435761 % 4294967296:08x}" for i in range(30000))
    bad = [f'{{"id":-{i}}}' if i != 300 else f'{{"id":"{long}"}}' for i in range(600)]
    kafka.send(topic, bad + ['{"id":1}'])
    daemon = spoold(kafka, server, [stream("s", topic, table, dead_letters={
        "table": dead_table, "topic": dead_topic})]).start()
    daemon.wait_rows(server, table, 1)
    daemon.wait(lambda: server.number(f"SELECT uniqExact(offset) FROM {dead_table}") == 598, 60,
                "all but two in the table")
    daemon.wait(lambda: daemon.metric("spoold_dead_letters_refused_total", source="topic") == 1, 60,
                "the long one passed over")
    daemon.wait(lambda: len({m["headers"]["offset"] for m in kafka.read(dead_topic)}) == 599, 60,
                "all but one in the topic")
    assert daemon.metric("spoold_dead_letters_refused_total", source="table") == 2
    assert {e["offset"] for e in daemon.events("dead.refused")} == {"7", "300", "450"}
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters_waiting"] == 3, 30, "three wait")
    assert {d["offset"] for d in letters_of(daemon) if not d["in_table"]} == {7, 450}
    assert {d["offset"] for d in letters_of(daemon) if not d["in_topic"]} == {300}
    assert daemon.stream_status("s")["state"] == "running"


def test_the_broker_is_away_while_letters_are_sent(kafka, engine, spoold, clock):
    topic, dead_topic = kafka.create_topic(1), kafka.create_topic(1)
    table = engine.create_table("id UInt64")
    kafka.send(topic, [f'{{"id":-{i}}}' for i in range(1, 601)] + ['{"id":1}'])
    daemon = spoold(kafka, engine, [stream("s", topic, table, dead_letters={
        "topic": dead_topic})]).start("dead_out.arrived=kill")
    assert daemon.wait_exit(60) == -9
    kafka.kill()
    clock.run(speed=10)  # the client tries for 30 s
    daemon.start(env=clock.env)
    daemon.wait(lambda: daemon.events("dead.not_sent"), 60, "dead.not_sent")
    clock.run(speed=1)
    kafka.start()
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters_waiting"] == 0, 120, "all sent")
    assert {m["value"] for m in kafka.read(dead_topic)} == {f'{{"id":-{i}}}' for i in range(1, 601)}


def test_the_server_dies_while_letters_are_sent(kafka, engine, spoold):
    """Killed over and over: each letter arrives, some twice."""
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64")
    dead_table = engine.create_table(DEAD_TABLE.format(time="DateTime64(3, 'UTC')"),
                                     name=table + "_dead")
    daemon = spoold(kafka, engine, [stream("s", topic, table, dead_letters={
        "table": dead_table})]).start()
    for turn in range(4):
        kafka.send(topic, [f'{{"id":-{turn * 1000 + i}}}' for i in range(1, 501)])
        daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 500 * (turn + 1), 30, "letters")
        engine.kill()
        engine.start()
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters_waiting"] == 0, 120, "all sent")
    assert engine.number(f"SELECT uniqExact(offset) FROM {dead_table}") == 2000
