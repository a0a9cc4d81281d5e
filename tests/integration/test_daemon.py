# SPDX-License-Identifier: Apache-2.0
"""How the daemon starts, what it says when it can't, and how it ends. No server but where one is named."""
import json
import os
import select
import signal
import socket
import ssl
import stat
import subprocess
import urllib.request

import pytest

from support.process import free_port, wait_until
from support.spoold import stream

NOWHERE = "http://127.0.0.1:1"  # no ClickHouse is needed to start
ONE_STREAM = [{"name": "s", "table": "t"}]


def run(*args, seconds=30, **options):
    """(exit code, stdout, stderr)"""
    done = subprocess.run([os.environ["SPOOLD_BIN"], *map(str, args)], capture_output=True, text=True,
                          timeout=seconds, check=False, **options)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def daemon(spoold):
    return spoold(None, NOWHERE, ONE_STREAM)


def start_failure(daemon, code):
    """Launches, expects that exit code, and gives the one sentence that says why."""
    daemon.launch()
    assert daemon.wait_exit() == code, daemon.log()
    failed = daemon.events("daemon.start_failed")
    assert len(failed) == 1 and failed[0]["code"] == str(code), daemon.log()
    return failed[0]["error"]


# ---- arguments and configuration ----


def test_version_and_usage():
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("spoold ")
    code, out, _ = run("--help")
    assert code == 0 and out.startswith("usage: spoold")
    for wrong in (["--bogus"], ["surplus"], ["-c"], ["--version", "--check-config"]):
        code, out, err = run(*wrong)
        assert code == 2 and out == "" and "usage: spoold" in err, wrong


def test_what_it_prints_it_accepts(tmp_path):
    code, printed, _ = run("--print-config")
    assert code == 0
    path = tmp_path / "printed.json"
    path.write_text(printed)
    assert run("-c", path, "--check-config") == (0, "ok\n", "")
    code, schema, _ = run("--print-schema")
    assert code == 0 and json.loads(schema)["required"] == ["streams"]


def test_a_wrong_config_is_one_sentence_and_exit_2(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{\n  "streams": [{"name": "s", "table": "t", "flush": {"row": 1}}]\n}\n')
    want = f'{path}:2:53: streams[0].flush.row: unknown key; did you mean "rows"?\n'
    assert run("-c", path, "--check-config") == (2, "", want)
    assert run("-c", path) == (2, "", "spoold: " + want)
    code, _, err = run("-c", tmp_path / "absent.json")
    assert code == 2 and "absent.json: No such file or directory" in err


@pytest.mark.parametrize("config, says", [
    ({"streams": [{"name": "s", "table": "t"}, {"name": "s", "table": "u"}]}, "streams[1].name"),
    ({"kafka": {"brokers": ["127.0.0.1:1"], "group_id": "g"}, "streams": [
        {"name": "a", "table": "t", "topics": ["x"]}, {"name": "b", "table": "u", "topics": ["x"]}]},
     "a topic belongs to one stream"),
    ({"streams": [{"name": "s", "table": "t", "topics": ["x"]}]}, "kafka.brokers"),
    ({"streams": [{"name": "s", "table": "t", "columns": [
        {"name": "c", "from": "a", "value": 1}]}]}, "columns[0]"),
    ({"streams": [{"name": "s", "table": "t", "create_table": {}}]}, "streams[0]"),
    ({"spool": {"max_bytes": "64MiB", "segment_bytes": "1GiB"}, "streams": ONE_STREAM}, "spool"),
    ({"clickhouse": {"password": "a", "password_file": "/dev/null"}, "streams": ONE_STREAM},
     "clickhouse.password"),
    ({"clickhouse": {"urls": ["ftp://x"]}, "streams": ONE_STREAM}, "clickhouse.urls[0]"),
    ({"streams": [{"name": "s", "table": "t", "dead_letters": {"table": "t"}}]},
     "the table of the stream's own rows"),
])
def test_a_contradictory_config_is_one_sentence_and_exit_2(daemon, config, says):
    path = os.path.join(daemon.directory, "contradictory.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"spool": {"path": daemon.spool}, **config}, f)
    code, out, err = run("-c", path)
    assert (code, out) == (2, "")
    assert says in err and err.count("\n") == 1, err
    assert os.listdir(daemon.spool) == []  # it was not touched


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}", b"{}\0", b'{"streams":[]}', b"x" * 5000])
def test_an_unreadable_config_is_one_sentence_and_exit_2(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    code, out, err = run("-c", path)
    assert (code, out) == (2, "")
    assert str(path) in err and err.count("\n") == 1, err
    assert run("-c", tmp_path)[0] == 2  # a directory


def test_secrets_are_warned_of_and_never_shown(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"clickhouse": {"password": "hunter2"}, "streams": ONE_STREAM}))
    path.chmod(0o644)
    code, out, err = run("-c", path, "--check-config")
    assert (code, out) == (0, "ok\n") and "every user may read it" in err and "hunter2" not in err
    path.write_text(json.dumps({"clickhouse": {"password": "hunter2", "database": 1},
                                "streams": ONE_STREAM}))
    code, _, err = run("-c", path, "--check-config")
    assert code == 2 and "clickhouse.database" in err and "hunter2" not in err


# ---- what keeps it from starting ----


def test_a_held_spool_is_temporary(daemon, spoold):
    daemon.start()
    second = spoold(None, NOWHERE, ONE_STREAM, spool={"path": daemon.spool})
    assert str(daemon.pid) in start_failure(second, 75)
    assert daemon.alive()


def test_a_control_socket_in_use(daemon, spoold):
    daemon.start()
    second = spoold(None, NOWHERE, ONE_STREAM, control={"socket": daemon.socket})
    assert daemon.socket in start_failure(second, 1)
    assert daemon.control("GET", "/health/live") == (200, b"ok\n")


def test_a_port_in_use(daemon):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        daemon.config["http"] = {"listen": address}
        assert f"{address} is in use" in start_failure(daemon, 1)
    assert not os.path.exists(daemon.socket)  # it went as it came
    daemon.start()


def test_a_spool_that_can_not_be_made(daemon):
    daemon.config["spool"]["path"] = "/proc/spoold"
    assert "/proc/spoold" in start_failure(daemon, 1)


def test_a_spool_path_that_is_a_file(daemon):
    daemon.config["spool"]["path"] = daemon.config_path
    daemon.write_config()
    assert daemon.config_path in start_failure(daemon, 2)


def contents(directory):
    return {os.path.join(at, name): open(os.path.join(at, name), "rb").read()
            for at, _, names in os.walk(directory) for name in names if name != "LOCK"}


def test_a_spool_of_a_newer_version(spoold):
    """Refused whichever file says so, and nothing in it is changed."""
    daemon = spoold(None, NOWHERE, [{"name": "events", "table": "t"}])
    subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "mkspool"), daemon.spool, "blocks=1",
                    "dead=1"], check=True, stdout=subprocess.DEVNULL)
    segment = next(name for name in contents(daemon.spool) if name.endswith(".seg"))
    for file in (os.path.join(daemon.spool, "meta.mdb"), os.path.join(daemon.spool, "dead.mdb"), segment):
        with open(file, "rb") as f:
            old = f.read()
        subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "newer"), file], check=True)
        before = contents(daemon.spool)
        said = start_failure(daemon, 1)
        assert "format version 2" in said and "this program knows" in said, said
        assert contents(daemon.spool) == before
        with open(file, "wb") as f:
            f.write(old)
    daemon.start()
    assert daemon.stream_status("events")["rows_spooled"] == 1000


def test_a_stale_socket_is_replaced(daemon):
    daemon.start().kill9()
    assert stat.S_ISSOCK(os.stat(daemon.socket).st_mode)
    daemon.start()
    assert stat.S_IMODE(os.stat(daemon.socket).st_mode) == 0o600
    assert daemon.sigterm() == 0
    assert not os.path.exists(daemon.socket)


# ---- while it runs ----


def test_ready_also_with_clickhouse_down(daemon):
    daemon.with_http().start()
    daemon.wait(lambda: daemon.http("GET", "/health/ready")[0] == 200, 20, "ready")
    daemon.wait(lambda: daemon.status()["endpoints"][0]["state"] == "down", 20, "seen as down")
    assert daemon.http("GET", "/health/ready")[0] == 200
    assert daemon.metric("spoold_endpoint_up") == 0
    assert daemon.metric("spoold_loop_turn_seconds_count") > 0
    assert daemon.http("POST", "/streams/s/pause")[0] == 404  # the socket's business
    assert daemon.control("POST", "/streams/s/pause")[0] == 200
    assert daemon.stream_status("s")["state"] == "paused"
    assert b"<title>spoold</title>" in daemon.http("GET", "/")[2]


def test_https(daemon):
    key, cert = (os.path.join(daemon.directory, name) for name in ("key.pem", "cert.pem"))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out",
                    cert], check=True, capture_output=True)
    port = free_port()
    daemon.config["http"] = {"listen": f"127.0.0.1:{port}",
                             "tls": {"cert_file": cert, "key_file": key}}
    daemon.start()
    trust = ssl.create_default_context(cafile=cert)
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", context=trust) as answer:
        assert b"spoold_spool_limit_bytes" in answer.read()
    daemon.sigterm()
    with open(key, "w", encoding="utf-8") as f:
        f.write("rubbish")
    assert "http.tls.cert_file" in start_failure(daemon, 1)


def test_systemd_hears_of_it(daemon):
    path = os.path.join(daemon.directory, "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(20)

        def hears(prefix):
            while True:
                message = systemd.recv(4096).decode()
                if message.startswith(prefix):
                    return message

        daemon.launch(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "100000"})
        assert hears("READY=1") == "READY=1\nSTATUS=running, 1 stream"
        for _ in range(3):
            hears("WATCHDOG=1")
        daemon.child.signal(signal.SIGTERM)
        assert "EXTEND_TIMEOUT_USEC=20000000" in hears("STOPPING=1")
        assert daemon.wait_exit() == 0


@pytest.mark.parametrize("blocking", [False, True])
def test_a_log_that_nobody_reads_does_not_stop_it(daemon, blocking):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(writer, blocking)
    daemon.write_config()
    process = subprocess.Popen([os.environ["SPOOLD_BIN"], "-c", daemon.config_path], stderr=writer)

    def is_ready():
        assert process.poll() is None
        try:
            return daemon.control("GET", "/health/ready")[0] == 200
        except OSError:
            return False
    try:
        wait_until(is_ready, 20, "it answers")
        heard = b""
        while select.select([reader], [], [], 0)[0]:  # room again
            heard += os.read(reader, 1 << 16).lstrip(b"x")
        daemon.control("POST", "/streams/s/pause")  # something to say
        while b'"event":"log.dropped"' not in heard:
            assert select.select([reader], [], [], 20)[0], heard
            heard += os.read(reader, 1 << 16)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_descriptors_are_not_used_for_others(daemon, closed):
    """What is opened next would get their numbers, and the log be written to it."""
    daemon.write_config()
    process = subprocess.Popen([os.environ["SPOOLD_BIN"], "-c", daemon.config_path], stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: [os.close(fd) for fd in closed])
    try:
        wait_until(lambda: process.poll() is not None or daemon.answers(), 20, "it answers")
        for fd in closed:
            assert os.readlink(f"/proc/{process.pid}/fd/{fd}") == os.devnull
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


# ---- how it ends ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(daemon, number):
    daemon.start()
    daemon.child.signal(signal.SIGHUP)
    daemon.wait_log("daemon.no_reload")
    daemon.child.signal(number)
    assert daemon.wait_exit() == 0
    assert daemon.events("daemon.stopping")[0]["signal"] == number.name
    assert daemon.events()[-1]["event"] == "daemon.exit"


def test_no_handlers_at_exit(spoold):
    """A client that can't be destroyed, here one whose broker never answers, keeps its threads to the
    end: no library may clean up under them (OpenSSL's handler did, in the middle of their handshakes)."""
    library = os.path.join(os.environ["SUPPORT_DIR"], "preload_exit.so")
    with socket.create_server(("127.0.0.1", 0)) as broker:
        daemon = spoold(f"127.0.0.1:{broker.getsockname()[1]}", NOWHERE, [stream("s", "topic", "t")])
        daemon.start(env={"LD_PRELOAD": library})
        assert daemon.sigterm() == 0


def test_a_second_signal_ends_it_at_once(kafka, clickhouse, spoold):
    topic = kafka.create_topic(1)
    table = clickhouse.create_bench_table()
    daemon = spoold(kafka, clickhouse, [stream("s", topic, table)], shutdown_timeout="1h").start()
    kafka.produce(topic, 1000)
    daemon.wait_rows(clickhouse, table, 1000)
    clickhouse.freeze()
    try:
        kafka.produce(topic, 1000, "--first", 1000)
        daemon.wait(lambda: daemon.stream_status("s")["batches"]["in_flight"], 20, "in flight")
        daemon.child.signal(signal.SIGTERM)
        daemon.wait_log("daemon.stopping")
        assert daemon.control("GET", "/health/ready") == (503, b"stopping\n")
        daemon.child.signal(signal.SIGTERM)
        assert daemon.wait_exit(10) == 128 + signal.SIGTERM
    finally:
        clickhouse.thaw()
    daemon.start()  # and nothing is lost
    daemon.wait(lambda: clickhouse.unique(table) == 2000, 60, "all rows")
