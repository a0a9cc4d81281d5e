# SPDX-License-Identifier: Apache-2.0
"""The servers and tools that the other tests stand on do what those tests take for granted."""
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from support.clickhouse import ClickHouseError
from support.process import outside_make, wait_until
from support.spoold import spoolctl

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DATA = os.path.join(TESTS, "data", "native")


def sample(name):
    with open(os.path.join(DATA, name), "rb") as f:
        return f.read()


BLOCK_ROWS = 1000  # in each of native/frames/block.*: columns a UInt32, b String


@pytest.fixture
def table(server):
    name = server.create_table("a UInt32, b String", order_by="a", window=100)
    yield name
    server.drop_table(name)


# ---- both servers ----


def test_server_answers(server):
    assert server.ping()
    assert server.query("SELECT 1") == "1"
    assert server.query("SELECT version()").startswith("26.7" if server.modern else "18.16")
    status, _, body = server.request("GET", "/?query=SELECT%202")
    assert (status, body) == (200, b"2\n")
    assert server.number("SELECT uptime()") >= 0


@pytest.mark.parametrize("frames", ["block.lz4", "block.zstd", "block.none", "block.lz4.1k"])
def test_insert_of_native_frames(server, table, frames):
    server.insert(table, ["a", "b"], sample(f"frames/{frames}"), decompress=1)
    assert server.count(table) == BLOCK_ROWS
    assert server.query(f"SELECT b FROM {table} WHERE a = 999") == "row999"


def test_frames_of_several_methods(server, table):
    """The old server takes them. A modern one does not (CompressedReadBuffer without
    allow_different_codecs), and its library has no such reader: chserver says so in its place."""
    def insert():
        server.insert(table, ["a", "b"], sample("frames/block.mixed"), decompress=1)
    if server.modern:
        with pytest.raises(ClickHouseError) as refused:
            insert()
        assert refused.value.code == 271
        assert server.count(table) == 0
    else:
        insert()
        assert server.count(table) == BLOCK_ROWS


def test_insert_whose_query_begins_the_body(server, table):
    body = f"INSERT INTO {table} (a, b) FORMAT Native\n".encode() + sample("frames/block.native")
    status, _, answer = server.request("POST", "/", body)
    assert (status, answer) == (200, b"")
    assert server.count(table) == BLOCK_ROWS


def test_insert_in_chunks(server, table):
    data = sample("frames/block.lz4")
    pieces = [data[i:i + 100] for i in range(0, len(data), 100)]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", f"/?decompress=1&query=INSERT+INTO+{table}+(a,b)+FORMAT+Native",
                       body=iter(pieces), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})
    assert connection.getresponse().status == 200
    connection.close()
    assert server.count(table) == BLOCK_ROWS


def test_ddl_in_the_middle_of_an_insert(server, table):
    data = sample("frames/block.lz4")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", f"/?decompress=1&query=INSERT+INTO+{table}+(a,b)+FORMAT+Native")
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data[:len(data) // 2])
    server.query(f"ALTER TABLE {table} ADD COLUMN c UInt8")
    connection.send(data[len(data) // 2:])
    assert connection.getresponse().status == 200
    connection.close()
    assert server.query(f"SELECT count(), sum(c) FROM {table}").split() == [str(BLOCK_ROWS), "0"]


@pytest.mark.parametrize("frames, old_code, new_code", [
    ("bad_checksum.lz4", 40, 40), ("bad_truncated.lz4", 33, 33), ("bad_method.bin", 89, 432)])
def test_bad_frames_store_nothing(server, table, frames, old_code, new_code):
    with pytest.raises(ClickHouseError) as refused:
        server.insert(table, ["a", "b"], sample(f"frames/{frames}"), decompress=1)
    assert refused.value.code == (new_code if server.modern else old_code)
    assert server.count(table) == 0


@pytest.mark.parametrize("sql, status, code", [
    ("SELECT * FROM nosuch", 404, 60),
    ("SELEC 1", 400, 62),
    ("INSERT INTO {table} (zz) FORMAT JSONEachRow\n{{}}", 500, 16),
])
def test_errors_have_their_code_and_status(server, table, sql, status, code):
    with pytest.raises(ClickHouseError) as refused:
        server.query(sql.format(table=table))
    assert (refused.value.status, refused.value.code) == (status, code)


def test_settings_of_the_url(server):
    assert server.query("SELECT value FROM system.settings WHERE name = 'max_threads'",
                        max_threads=3) == "3"
    with pytest.raises(ClickHouseError) as refused:
        server.query("SELECT 1", nosuch_setting=1)
    assert (refused.value.status, refused.value.code) == (404, 115)


def test_users(server, table):
    assert server.query("SELECT 1", user="writer", password="secret") == "1"
    with pytest.raises(ClickHouseError) as refused:
        server.query("SELECT 1", user="writer", password="wrong")
    assert refused.value.code == (516 if server.modern else 193)
    with pytest.raises(ClickHouseError) as refused:
        server.post(f"INSERT INTO {table} (a, b) FORMAT Native", sample("frames/block.native"),
                    user="reader")
    assert refused.value.code == 164
    assert server.query(f"SELECT count() FROM {table}", user="reader") == "0"


def test_running_query_is_seen_by_its_id(server, table):
    """A body that stops on its way keeps an INSERT running. (18.16 reads a body by the MiB, and lists
    the query only then.)"""
    data = sample("frames/block.native") * 150
    seen = "SELECT count() FROM system.processes WHERE query_id = 'q1'"
    with socket.create_connection(("127.0.0.1", server.port)) as s:
        s.sendall(f"POST /?query_id=q1&query=INSERT+INTO+{table}+(a,b)+FORMAT+Native HTTP/1.1\r\n"
                  f"Host: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:-5000])
        wait_until(lambda: server.number(seen) == 1, 10, "q1 runs")
        with pytest.raises(ClickHouseError) as refused:
            server.query("SELECT 1", query_id="q1")
        assert refused.value.code == 216
    wait_until(lambda: server.number(seen) == 0, 10, "q1 ended")


def test_engine_stores_nothing_of_a_body_cut_off(engine):
    table = engine.create_table("a UInt32, b String")
    data = sample("frames/block.native")
    with socket.create_connection(("127.0.0.1", engine.port)) as s:
        s.sendall(f"POST /?query_id=q3&query=INSERT+INTO+{table}+(a,b)+FORMAT+Native HTTP/1.1\r\n"
                  f"Host: x\r\nContent-Length: {2 * len(data)}\r\n\r\n".encode() + data)
        seen = "SELECT count() FROM system.processes WHERE query_id = 'q3'"
        wait_until(lambda: engine.number(seen) == 1, 10, "q3 runs")
    wait_until(lambda: engine.number(seen) == 0, 10, "q3 ended")
    assert engine.count(table) == 0
    engine.drop_table(table)


def test_data_survives_kill_and_stop(server, table):
    server.insert(table, ["a", "b"], sample("frames/block.lz4"), decompress=1)
    server.kill()
    assert not server.ping()
    server.start()
    assert server.count(table) == BLOCK_ROWS
    server.stop()
    server.start()
    assert server.count(table) == BLOCK_ROWS


def test_frozen_server_goes_on(server):
    server.freeze()
    with pytest.raises(OSError):
        server.request("GET", "/ping", seconds=0.3)
    server.thaw()
    assert server.query("SELECT 1") == "1"


# ---- the modern engine ----


def test_engine_deduplicates_by_token(engine):
    table = engine.create_table("a UInt32, b String", order_by="a", window=10)
    data = sample("frames/block.lz4")
    for token in ("one", "one", "two"):
        engine.insert(table, ["a", "b"], data, decompress=1, insert_deduplication_token=token)
    assert engine.count(table) == 2 * BLOCK_ROWS
    engine.kill()
    engine.start()
    engine.insert(table, ["a", "b"], data, decompress=1, insert_deduplication_token="two")
    assert engine.count(table) == 2 * BLOCK_ROWS
    engine.drop_table(table)


def test_engine_headers_of_an_answer(engine):
    table = engine.create_table("a UInt32, b String")
    status, headers, _ = engine.request(
        "POST", f"/?query_id=mine&query=INSERT+INTO+{table}+(a,b)+FORMAT+Native",
        sample("frames/block.native"))
    assert status == 200
    assert '"written_rows":"1000"' in headers["X-ClickHouse-Summary"]
    assert headers["X-ClickHouse-Query-Id"] == "mine"
    status, headers, body = engine.request("POST", "/", b"SELECT * FROM nosuch")
    assert headers["X-ClickHouse-Exception-Code"] == "60"
    assert body.startswith(b"Code: 60. DB::Exception: ")
    assert b"(UNKNOWN_TABLE) (version 26.7" in body
    engine.drop_table(table)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_content_encoding(server, table, encoding):
    import gzip
    import zlib
    data = sample("frames/block.native")
    packed = gzip.compress(data) if encoding == "gzip" else zlib.compress(data)
    server.insert(table, ["a", "b"], packed, headers={"Content-Encoding": encoding})
    assert server.count(table) == BLOCK_ROWS
    with pytest.raises(ClickHouseError) as refused:
        server.insert(table, ["a", "b"], packed[:-200], headers={"Content-Encoding": encoding})
    assert refused.value.code == 354
    if server.modern:
        assert server.count(table) == BLOCK_ROWS


def test_engine_kill_query(engine):
    table = engine.create_table("a UInt32, b String")
    data = sample("frames/block.native")
    answers = []

    def insert_slowly(s):
        s.sendall(f"POST /?query_id=q2&query=INSERT+INTO+{table}+(a,b)+FORMAT+Native HTTP/1.1\r\n"
                  f"Host: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:500])
        wait_until(lambda: engine.number(
            "SELECT count() FROM system.processes WHERE query_id = 'q2'") == 1, 10, "q2 runs")
        engine.query("KILL QUERY WHERE query_id = 'q2'")
        s.sendall(data[500:])
        answers.append(s.recv(65536))

    with socket.create_connection(("127.0.0.1", engine.port)) as s:
        worker = threading.Thread(target=insert_slowly, args=(s,))
        worker.start()
        worker.join(30)
    assert b"X-ClickHouse-Exception-Code: 394" in answers[0]
    assert engine.count(table) == 0
    engine.drop_table(table)


def test_engine_many_inserts_at_once(engine):
    table = engine.create_table("a UInt32, b String", order_by="a")
    data = sample("frames/block.lz4")

    def insert_some():
        for _ in range(10):
            engine.insert(table, ["a", "b"], data, decompress=1)

    workers = [threading.Thread(target=insert_some) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert engine.count(table) == 80 * BLOCK_ROWS
    engine.drop_table(table)


# ---- the broker ----


def test_records_go_round(kafka):
    topic = kafka.create_topic(partitions=2)
    kafka.send(topic, [
        '{"a":1}', {"value": None, "partition": 0},
        {"value": "ä", "key": "k", "headers": {"h": "1"}, "timestamp": 1700000000000,
         "partition": 1}])
    records = sorted(kafka.read(topic), key=lambda r: r["value"] or "")
    assert [r["value"] for r in records] == [None, '{"a":1}', "ä"]
    assert records[2]["key"] == "k" and records[2]["headers"] == {"h": "1"}
    assert records[2]["timestamp"] == 1700000000000 and records[2]["partition"] == 1


def test_generated_records_are_in_order_and_repeatable(kafka):
    import json
    first, second = kafka.create_topic(partitions=3), kafka.create_topic(partitions=1)
    assert kafka.produce(first, 1000) == 1000
    assert kafka.produce(second, 1000, "--first", 0) == 1000
    assert kafka.end_offsets(first) == {0: 334, 1: 333, 2: 333}
    records = [(r["partition"], r["offset"], json.loads(r["value"])) for r in kafka.read(first)]
    for partition, offset, record in records:
        assert record["id"] == offset * 3 + partition
    assert {r["value"] for r in kafka.read(first)} == {r["value"] for r in kafka.read(second)}
    assert list(records[0][2]) == ["id", "name", "kind", "value", "ts", "state", "ok"]


def test_bench_record_fits_the_bench_table(kafka, server):
    topic = kafka.create_topic()
    kafka.produce(topic, 100)
    table = server.create_bench_table()
    lines = "\n".join(r["value"] for r in kafka.read(topic))
    columns = ["id", "name", "kind", "value", "ts", "state", "ok"]
    server.insert(table, columns, lines.encode(), format="JSONEachRow")
    assert server.count(table) == server.unique(table) == 100
    assert 110 < len(lines) / 100 < 140
    server.drop_table(table)


def test_committed_offsets_with_metadata(kafka):
    topic = kafka.create_topic(partitions=2)
    kafka.produce(topic, 10)
    kafka.commit("g-meta", topic, 0, 3, "spool:7")
    assert kafka.committed("g-meta", topic) == {0: (3, "spool:7"), 1: (None, None)}
    kafka.commit("g-meta", topic, 0, 1)
    assert kafka.committed("g-meta", topic)[0] == (1, "")
    kafka.delete_group("g-meta")
    assert kafka.committed_offsets("g-meta", topic) == {0: None, 1: None}


def test_topics_grow_shrink_and_go(kafka):
    topic = kafka.create_topic(partitions=1)
    kafka.produce(topic, 10)
    kafka.add_partitions(topic, 3)
    wait_until(lambda: kafka.topics()[topic] == 3, 10, "three partitions")
    kafka.truncate(topic, 0, 4)
    assert kafka.low_offsets(topic)[0] == 4
    kafka.delete_topic(topic)
    assert topic not in kafka.topics()


def test_transactions(kafka):
    topic = kafka.create_topic()
    kafka.produce(topic, 5, "--transaction", "abort")
    kafka.produce(topic, 3, "--first", 100, "--transaction", "commit")
    assert len(kafka.read(topic)) == 3


def test_producer_beside_the_test_and_broker_restarts(kafka):
    topic = kafka.create_topic(partitions=2)
    producer = kafka.producer(topic, 10**9, "--rate", 2000)
    wait_until(lambda: producer.delivered() > 500, 20, "500 records")
    kafka.kill()
    assert not kafka.alive()
    kafka.start()
    reached = producer.delivered()
    wait_until(lambda: producer.delivered() > reached + 500, 60, "500 more")
    kafka.stop()
    kafka.start()
    produced = producer.stop()
    assert sum(kafka.end_offsets(topic).values()) == produced


def test_large_record(kafka, tmp_path):
    topic = kafka.create_topic(max_message_bytes=268435456)
    path = tmp_path / "record"
    path.write_bytes(b"x" * (20 << 20))
    assert kafka.send_file(topic, path)["bytes"] == 20 << 20


# ---- the tool ----


def test_spoolctl_usage_error():
    code, _ = spoolctl("nosuch-command", check=False)
    assert code == 2


# ---- lanes beside each other, and their end ----

# In place of Python: each lane says two lines, integration and fault only when both are there.
STAND_IN = """\
#!/bin/sh
for lane; do lane=${lane##*/}; done
echo "$lane begins"
case $lane in
integration) read -r _ <"$HERE/meet" ;;
fault) echo >"$HERE/meet" ;;
esac
echo $$ >"$HERE/$lane.pid"
[ -z "$STAY" ] || read -r _ <"$HERE/never"
echo "$lane ends"
[ "$lane" != "$FAILING" ]
"""


@pytest.fixture
def lanes(tmp_path):
    """lanes(FAILING="fault") is a running `make lanes` with stand-ins for what it runs."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    for fifo in ("meet", "never"):
        os.mkfifo(tmp_path / fifo)
    made = []

    def start(**env):
        made.append(subprocess.Popen(
            ["make", "--no-print-directory", "-o", "lane-build", "lanes", f"PYTHON={python}"],
            cwd=os.path.dirname(TESTS), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True, env={**outside_make(), "HERE": str(tmp_path), **env}))
        return made[-1]

    yield start
    for make in made:
        if make.poll() is None:
            os.killpg(make.pid, signal.SIGKILL)
        make.wait()


def said(text):
    return [line for line in text.splitlines() if line.endswith((" begins", " ends"))]


def test_lanes_run_beside_each_other_and_are_shown_apart(lanes):
    make = lanes()
    text, _ = make.communicate(timeout=60)
    assert make.returncode == 0, text
    lines = said(text)
    assert sorted(lines) == sorted(f"{lane} {word}" for word in ("begins", "ends")
                                   for lane in ("integration", "fault", "crash", "--unit"))
    assert all(lines[i].split()[0] == lines[i + 1].split()[0] for i in range(0, len(lines), 2))


@pytest.mark.parametrize("failing", ["integration", "fault", "crash", "--unit"])
def test_a_lane_that_fails_is_shown_and_fails_them_all(lanes, failing):
    make = lanes(FAILING=failing)
    text, _ = make.communicate(timeout=60)
    assert make.returncode != 0, text
    assert f"{failing} ends" in text
    assert {"integration ends", "fault ends"} <= set(said(text)), "the other one is shown too"


def test_a_signal_ends_all_lanes(lanes, tmp_path):
    make = lanes(STAY="1")
    pids = [tmp_path / f"{lane}.pid" for lane in ("integration", "fault")]
    wait_until(lambda: all(p.exists() and p.read_text().endswith("\n") for p in pids), 60, "both run")
    make.terminate()
    text, _ = make.communicate(timeout=60)
    assert make.returncode == -signal.SIGTERM, text
    assert not any(os.path.exists(f"/proc/{p.read_text().strip()}") for p in pids)


def test_what_is_told_to_end_leaves_nothing(tmp_path):
    (tmp_path / "test_stay.py").write_text("""
def test_stay(run_directory):
    with open("path", "w") as f:
        f.write(run_directory + "\\n")
    open("never")
""")
    os.mkfifo(tmp_path / "never")
    child = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "conftest", "test_stay.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": TESTS}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True)
    try:
        path = tmp_path / "path"
        wait_until(lambda: child.poll() is not None or path.exists() and path.read_text().endswith("\n"),
                   60, "the test runs")
        child.terminate()
        text, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 2, text
    assert not os.path.exists(path.read_text().strip()), text
