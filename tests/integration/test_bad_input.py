# SPDX-License-Identifier: Apache-2.0
"""Wrong settings and wrong records: one clear sentence for each, and nothing is lost. What keeps the
daemon from starting at all is in test_daemon.py."""
import base64
import json
import os
import struct
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from support.spoold import stream

TYPED = [{"name": "id", "type": "UInt64"}, {"name": "name", "type": "String"}]


def rows_of(count, first=0):
    return [f'{{"id":{i},"name":"n{i}"}}' for i in range(first, first + count)]


def all_it_says(daemon):
    return daemon.log() + json.dumps(daemon.status()) + daemon.control("GET", "/metrics")[1].decode()


def mended(daemon, server, table, rows, **clickhouse):
    """A restart with the right settings delivers what was kept."""
    assert daemon.sigterm() == 0
    daemon.config["clickhouse"].update(clickhouse)
    daemon.start()
    daemon.wait_rows(server, table, rows)
    daemon.wait_state("s", "running")


# ---- ClickHouse that does not let us ----

def test_wrong_url(kafka, engine, spoold):
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, name String")
    daemon = spoold(kafka, "http://127.0.0.1:1", [stream("s", topic, table, columns=TYPED)]).start()
    kafka.send(topic, rows_of(5))
    daemon.wait_state("s", "down")
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 5, 20, "5 rows spooled")
    assert "127.0.0.1" in daemon.stream_status("s")["reason"]
    mended(daemon, engine, table, 5, urls=[engine.url])


class NotClickHouse(BaseHTTPRequestHandler):
    """Some web server."""

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(404)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"not here\n")

    do_GET = do_POST = answer

    def log_message(self, *args):
        pass


def test_url_of_another_server(kafka, engine, spoold):
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, name String")
    with HTTPServer(("127.0.0.1", 0), NotClickHouse) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        daemon = spoold(kafka, f"http://127.0.0.1:{other.server_port}",
                        [stream("s", topic, table, columns=TYPED)]).start()
        kafka.send(topic, rows_of(5))
        daemon.wait_state("s", "held")
        daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 5, 20, "5 rows spooled")
        assert daemon.stream_status("s")["reason"]
        mended(daemon, engine, table, 5, urls=[engine.url])
        other.shutdown()


def test_bad_password(kafka, server, spoold):
    topic, table = kafka.create_topic(1), server.create_table("id UInt64, name String")
    daemon = spoold(kafka, server, [stream("s", topic, table, columns=TYPED)],
                    clickhouse={"user": "writer", "password": "open-sesame"}).start()
    kafka.send(topic, rows_of(5))
    daemon.wait_state("s", "held")
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 5, 20, "5 rows spooled")
    reason = daemon.stream_status("s")["reason"]
    assert "assword" in reason or "uthentication" in reason
    said = all_it_says(daemon)
    assert "open-sesame" not in said
    assert base64.b64encode(b"writer:open-sesame").decode() not in said
    mended(daemon, server, table, 5, password="secret")


def test_password_from_a_file_and_from_the_environment(kafka, engine, spoold, tmp_path):
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, name String")
    (tmp_path / "password").write_text("secret\n")
    daemon = spoold(kafka, engine, [stream("s", topic, table)], clickhouse={
        "user": "writer", "password_file": str(tmp_path / "password")}).start()
    kafka.send(topic, rows_of(5))
    daemon.wait_rows(engine, table, 5)
    assert daemon.sigterm() == 0
    del daemon.config["clickhouse"]["password_file"]
    daemon.config["clickhouse"]["password"] = "${SPOOLD_TEST_PASSWORD}"
    daemon.start(env={"SPOOLD_TEST_PASSWORD": "secret"})
    kafka.send(topic, rows_of(5, 5))
    daemon.wait_rows(engine, table, 10)


def test_a_user_who_may_not_write(kafka, server, spoold):
    topic, table = kafka.create_topic(1), server.create_table("id UInt64, name String")
    daemon = spoold(kafka, server, [stream("s", topic, table)], clickhouse={"user": "reader"}).start()
    kafka.send(topic, rows_of(5))
    daemon.wait(lambda: "readonly" in daemon.stream_status("s")["reason"], 20,
                lambda: f"held for readonly: {daemon.stream_status('s')}")
    status = daemon.stream_status("s")
    assert (status["state"], status["rows_spooled"]) == ("held", 5)
    assert daemon.stream_status("s")["dead_letters"] == 0
    mended(daemon, server, table, 5, user="default")


def test_an_unknown_database(kafka, server, spoold):
    topic, database = kafka.create_topic(1), "comes_later"
    daemon = spoold(kafka, server, [stream("s", topic, "t", database=database, columns=TYPED)]).start()
    kafka.send(topic, rows_of(5))
    daemon.wait_state("s", "held")
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 5, 20, "5 rows spooled")
    assert database in daemon.stream_status("s")["reason"]
    try:
        server.query(f"CREATE DATABASE {database}")
        server.create_table("id UInt64, name String", name=f"{database}.t")
        daemon.wait_rows(server, f"{database}.t", 5)
        daemon.wait_state("s", "running")
    finally:
        server.query(f"DROP DATABASE IF EXISTS {database}")


# ---- records that are none ----
# Not among them: what ClickHouse takes and spoold takes alike (tests/data/json-to-column.tsv), such as
# a number with a zero before it, or a line's end inside a string.

BROKEN = [
    "", " ", "nul", "null", "true", "17", '"text"', "[]", "[1,2]", "{", "}", "{}x", '{"id":1',
    '{"id":1,}', '{"id" 1}', "{id:1}", "{'id':1}", '{"id":.5}', '{"id":1.}',
    '{"id":1e}', '{"id":-}', '{"id":NaN}', '{"id":Infinity}', '{"id":0x1}', '{"id":1}{"id":2}',
    '{"id":1,"id":', '{"x":[1,2}', '{"x":{"y":1]}',
    '{"name":"\\u12"}', '{"name":"\\ud800"}', '{"name":"open', '{"id":1}//',
    '{"id":tru}', '{"id":-1}', '{"id":18446744073709551616}', '{"id":"seven"}', '{"id":1.5}',
    '{"id":[1]}', '{"id":{}}', "[" * 1000 + "]" * 1000, '{"x":' * 1000 + "1" + "}" * 1000,
]


def test_invalid_json_of_every_kind(kafka, engine, spoold):
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, name String")
    sent = []
    for i, text in enumerate(BROKEN):
        sent += [{"value": text}, {"value": f'{{"id":{i},"name":"good"}}'}]
    kafka.send(topic, sent)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: len(sent)}, 20, "committed")
    letters = {d["offset"]: d for d in daemon.ctl("dead", "ls", "s", "--json")[1]}
    missing = [text[:40] for i, text in enumerate(BROKEN) if 2 * i not in letters]
    assert not missing
    assert engine.rows(f"SELECT * FROM {table} WHERE name != 'good'") == []
    assert engine.unique(table) == engine.count(table) == len(BROKEN)
    assert len(letters) == len(BROKEN)
    for i, text in enumerate(BROKEN):
        assert letters[2 * i]["reason"], text[:40]
        assert letters[2 * i]["record"] == text


def test_what_a_stream_refuses(kafka, engine, spoold):
    """strict, required and unknown_keys, each on a stream of its own."""
    kinds = {
        "strict": ({"strict": True}, '{"id":1}'),
        "required": ({"columns": [{"name": "id", "required": True}, {"name": "name"}]},
                     '{"name":"x"}'),
        "unknown": ({"unknown_keys": "refuse"}, '{"id":1,"name":"x","more":1}'),
    }
    table = engine.create_table("id UInt64, name String")
    topics = {kind: kafka.create_topic(1) for kind in kinds}
    for kind, (_, bad) in kinds.items():
        kafka.send(topics[kind], [bad, '{"id":2,"name":"good"}'])
    daemon = spoold(kafka, engine, [stream(kind, topics[kind], table, **options)
                                    for kind, (options, _) in kinds.items()]).start()
    daemon.wait_rows(engine, table, len(kinds))
    for kind, (_, bad) in kinds.items():
        letter = daemon.ctl("dead", "ls", kind, "--json")[1]  # one only
        assert letter["record"] == bad, kind
    assert engine.rows(f"SELECT DISTINCT id, name FROM {table}") == [["2", "good"]]


def test_schema_registry_framing(kafka, engine, spoold, tmp_path):
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, name String")
    frame = tmp_path / "frame"
    for value in (struct.pack(">bI", 0, 7) + b'{"id":1,"name":"framed"}',  # right
                  struct.pack(">bI", 1, 7) + b'{"id":2,"name":"magic"}', b"\0\0\0"):
        frame.write_bytes(value)
        kafka.send_file(topic, frame)
    kafka.send(topic, ['{"id":4,"name":"bare"}'])
    daemon = spoold(kafka, engine, [stream("s", topic, table, schema_registry_framing=True)]).start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 4}, 20, "committed")
    assert engine.rows(f"SELECT id, name FROM {table}") == [["1", "framed"]]
    assert [d["offset"] for d in daemon.ctl("dead", "ls", "s", "--json")[1]] == [1, 2, 3]


# ---- what else the issue of records may be ----

@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_compressions(kafka, server, spoold, compression):
    topic, table = kafka.create_topic(2), server.create_bench_table(window=1000)
    kafka.produce(topic, 20000)
    daemon = spoold(kafka, server, [stream("s", topic, table)],
                    spool={"compression": compression}).start()
    daemon.wait_rows(server, table, 20000)
    assert server.unique(table) == 20000


def test_compression_changed_with_rows_in_the_spool(kafka, server, spoold):
    """All frames of one insert are of one method, also where its blocks were not, and where LZ4
    makes a frame larger."""
    topic, table = kafka.create_topic(1), server.create_table("id UInt64, name String")
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait(lambda: daemon.stream_status("s")["state"] == "running", 20, "the table is known")
    sent = 0
    server.stop()
    for method in ("zstd", "none", "lz4"):
        kafka.send(topic, [json.dumps({"id": sent + i, "name": os.urandom(700).hex()})
                           for i in range(50)])
        sent += 50
        daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == sent, 20, "rows spooled")
        assert daemon.sigterm() == 0
        daemon.config["spool"]["compression"] = method
        daemon.start()
    server.start()
    daemon.wait_rows(server, table, sent)
    assert server.unique(table) == sent
    assert not daemon.events("batch.retry")


def test_timestamps_of_records(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table("id UInt64, at DateTime64(3, 'UTC'), got DateTime64(3, 'UTC')")
    kafka.send(topic, [{"value": '{"id":1}', "timestamp": 1700000000123}])
    daemon = spoold(kafka, engine, [stream("s", topic, table, columns=[
        {"name": "id"}, {"name": "at", "from": "$timestamp"},
        {"name": "got", "from": "$received_at"}])]).start()
    daemon.wait_rows(engine, table, 1)
    assert engine.query(f"SELECT at FROM {table}") == "2023-11-14 22:13:20.123"
    assert engine.number(f"SELECT count() FROM {table} WHERE abs(got - now64(3)) < 300") == 1


@pytest.mark.parametrize("properties, says", [
    ({"no.such.property": "1"}, "no.such.property"),
    ({"security.protocol": "TELEPATHY"}, "security.protocol"),
    ({"security.protocol": "SSL", "ssl.ca.location": "/not/there.pem"}, "ssl.ca.location"),
    ({"sasl.mechanisms": "GUESS", "security.protocol": "SASL_PLAINTEXT"}, "GUESS"),
    ({"enable.auto.commit": "true"}, "offsets are committed only after"),
])
def test_kafka_properties_that_can_not_be(spoold, properties, says):
    daemon = spoold("127.0.0.1:1", "http://127.0.0.1:1", [stream("s", "t", "t")],
                    kafka={"properties": properties}).launch()
    assert daemon.wait_exit() == 2
    said = daemon.log()
    assert says in said and said.count("\n") == 1, said
    assert ": kafka" in said
