# SPDX-License-Identifier: Apache-2.0
"""spoolctl's side of the control socket, against a stand-in that answers as told."""
import contextlib
import http.server
import json
import os
import pathlib
import socketserver
import subprocess
import threading

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPOOLCTL = os.environ.get("SPOOLCTL_BIN", str(ROOT / "build/release/spoolctl"))

STATUS = {
    "version": "9.9.9", "uuid": "u", "pid": 4242, "uptime_seconds": 7323.5,
    "ready": {"ok": True, "reason": ""},
    "spool": {"path": "/somewhere", "used_bytes": 3 << 20, "max_bytes": 10 << 30,
              "free_bytes": 5 << 30},
    "kafka": {"connected": True, "reason": "", "assigned_partitions": 12},
    "endpoints": [{"url": "http://ch-1:8123", "state": "up", "version": "26.7.2", "reason": ""},
                  {"url": "http://ch-2:8123", "state": "down", "version": "",
                   "reason": "connection refused"}],
    "streams": [
        {"name": "events", "state": "held", "reason": "table db.events has no column \u001bx",
         "since": "2026-11-23T17:54:00.123Z", "table": "db.events", "format": "native",
         "delivery": "at_least_once", "delivery_why": "the table has no dedup window",
         "records_in": 10, "rows_spooled": 7, "bytes_spooled": 2048, "oldest_age_seconds": 75.2,
         "lag": -1, "dead_letters": 2, "rows_inserted": 3, "retries": 4,
         "batches": {"sealed": 1, "in_flight": 2, "acknowledged": 9}}],
}


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def daemon(path, answers):
    """answers: {"GET /x?y": (status, body)}; yields the list of requests seen."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            seen.append(f"{self.command} {self.path}")
            status, body = answers.get(seen[-1], (404, {"error": f"no {self.path} here"}))
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = answer

        def address_string(self):
            return "unix"

        def log_message(self, *args):
            pass

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()


def spoolctl(socket, *args):
    return subprocess.run([SPOOLCTL, "--socket", str(socket), *map(str, args)],
                          capture_output=True, text=True, timeout=60)


def test_status(tmp_path):
    with daemon(tmp_path / "s", {"GET /status": (200, STATUS)}):
        done = spoolctl(tmp_path / "s", "status", "--json")
        assert done.returncode == 0 and json.loads(done.stdout) == STATUS
        text = spoolctl(tmp_path / "s", "status").stdout
    for expected in ("pid 4242, up 2h 02m, ready", "3.0 MiB used of 10.0 GiB", "12 partitions",
                     "http://ch-2:8123 down: connection refused", "1m 15s",
                     "events is held since 2026-11-23T17:54:00.123Z: table db.events",
                     "events delivers at least once: the table has no dedup window"):
        assert expected in text, text
    assert "\x1b" not in text


def test_records_ask_for_what_was_asked(tmp_path):
    line = {"stream": "events", "origin": "a b&c", "offset": 2**60 + 1, "state": "waiting",
            "record": {"id": 2**64 - 1}}
    more = {"truncated": True, "reason": "size", "stream": "events", "origin": "a b&c",
            "offset": 2**60 + 2}
    body = "".join(json.dumps(x) + "\n" for x in (line, more)).encode()
    path = "GET /streams/events/records?limit=5&origin=a%20b%26c&from=-3&to=9"
    with daemon(tmp_path / "s", {path: (200, body)}) as seen:
        args = ["show", "events", "--origin", "a b&c", "--from", "-3", "--to", "9", "--limit", "5"]
        done = spoolctl(tmp_path / "s", *args, "--json")
        text = spoolctl(tmp_path / "s", *args)
    assert seen == [path, path]
    assert done.returncode == 0
    assert [json.loads(x) for x in done.stdout.splitlines()] == [line]
    assert f"next is offset {2**60 + 2} of a b&c" in done.stderr
    assert str(2**60 + 1) in text.stdout and str(2**64 - 1) in text.stdout


def test_a_long_answer_comes_line_by_line(tmp_path):
    rows = [{"origin": "o", "offset": i, "state": "waiting", "record": {"s": "x" * (i % 5000)}}
            for i in range(2000)]
    body = "".join(json.dumps(r) + "\n" for r in rows).encode()
    with daemon(tmp_path / "s", {"GET /streams/events/records?limit=100": (200, body)}):
        done = spoolctl(tmp_path / "s", "show", "events", "--json")
    assert [json.loads(x) for x in done.stdout.splitlines()] == rows


def test_dead(tmp_path):
    letter = {"stream": "events", "origin": "t-0", "offset": 4, "reason_name": "range",
              "reason": "too big", "column": "c", "time": "2026-11-23T17:54:00.123Z",
              "record": "{\"c\": \u001b[31m}"}
    body = (json.dumps(letter) + "\n").encode()
    answers = {"GET /dead?limit=0": (200, body),
               "GET /dead?limit=0&stream=events&origin=t-0&from=4&to=4": (200, body)}
    with daemon(tmp_path / "s", answers):
        text = spoolctl(tmp_path / "s", "dead", "ls").stdout
        assert "2026-11-23 17:54:00Z" in text and "range" in text
        whole = spoolctl(tmp_path / "s", "dead", "show", "events", "--origin", "t-0", "--offset", 4)
    assert "too big" in whole.stdout
    assert "\x1b" not in text + whole.stdout


FILTERED = "origin=t-0&reason=range&from=1&to=9&code=-5"
FILTER = ["--origin", "t-0", "--reason", "range", "--from", 1, "--to", 9, "--code", -5]


def test_dead_replay(tmp_path):
    fine = {"stream": "events", "replayed": 7, "refused": 0, "unsettled": 0, "cut": 0, "stopped": ""}
    some = {**fine, "refused": 2, "unsettled": 3, "cut": 4, "stopped": "the spool is full"}
    answers = {f"POST /streams/events/dead/replay?{FILTERED}": (200, fine),
               "POST /streams/events/dead/replay": (200, some)}
    with daemon(tmp_path / "s", answers):
        done = spoolctl(tmp_path / "s", "dead", "replay", "events", *FILTER)
        assert (done.returncode, done.stdout) == (0, "events: 7 replayed, 0 refused again\n")
        done = spoolctl(tmp_path / "s", "dead", "replay", "events")
        assert done.returncode == 1 and "the spool is full" in done.stderr
        assert all(f"{n} " in done.stdout for n in (2, 3, 4))
        done = spoolctl(tmp_path / "s", "dead", "replay", "events", "--json")
        assert done.returncode == 1 and json.loads(done.stdout) == some
        assert spoolctl(tmp_path / "s", "dead", "replay").returncode == 2


def test_dead_discard_counts_before_it_does(tmp_path):
    found = {"stream": "events", "letters": 3, "bytes": 1000, "stopped": ""}
    answers = {f"POST /streams/events/dead/discard?dry=1&{FILTERED}": (200, found),
               f"POST /streams/events/dead/discard?{FILTERED}": (200, found)}
    with daemon(tmp_path / "s", answers) as seen:
        done = spoolctl(tmp_path / "s", "dead", "discard", "events", *FILTER)
        assert done.returncode == 1 and "3 dead letters" in done.stdout and "--yes" in done.stdout
        assert len(seen) == 1 and "dry=1" in seen[0]
        done = spoolctl(tmp_path / "s", "dead", "discard", "events", *FILTER, "--yes", "--json")
        assert done.returncode == 0 and json.loads(done.stdout) == found


def test_ls_blocks_passes_over_a_segment_that_is_gone(tmp_path):
    segments = {"stream": "events", "segments": [
        {"number": n, "rows": 1, "damaged": False, "batches": []} for n in (1, 2)]}
    block = {"segment": 2, "sequence": 7, "origin": "o", "first_offset": 1, "last_offset": 1,
             "rows": 1, "state": "waiting"}
    answers = {"GET /status": (200, STATUS), "GET /streams/events/segments": (200, segments),
               "GET /streams/events/blocks?segment=2":
                   (200, {"stream": "events", "segment": 2, "blocks": [block]})}
    with daemon(tmp_path / "s", answers):
        done = spoolctl(tmp_path / "s", "ls", "--blocks", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"streams": [{"stream": "events", "blocks": [block]}]}


@pytest.mark.parametrize("action", ["pause", "resume", "flush"])
def test_steering(tmp_path, action):
    with daemon(tmp_path / "s", {f"POST /streams/events/{action}": (200, {"ok": True})}) as seen:
        assert spoolctl(tmp_path / "s", action, "events").stdout == f"events: {action}\n"
        assert json.loads(spoolctl(tmp_path / "s", action, "events", "--json").stdout) == {"ok": True}
        refused = spoolctl(tmp_path / "s", action, "others")
    assert len(seen) == 3
    assert refused.returncode == 1
    assert refused.stderr == f"spoolctl: no /streams/others/{action} here\n"


def test_verify(tmp_path):
    verdict = {"ok": False, "problems": [{"file": "meta.mdb", "stream": "events", "sequence": 3,
                                          "kind": "seal", "detail": "names no block"}]}
    with daemon(tmp_path / "s", {"GET /verify": (200, verdict)}):
        done = spoolctl(tmp_path / "s", "verify", "--json")
        text = spoolctl(tmp_path / "s", "verify")
    assert done.returncode == text.returncode == 1
    assert json.loads(done.stdout) == verdict
    assert "names no block" in text.stdout and "1 problem\n" in text.stdout


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"streams":', b'{"a":1}', b"[" * 100000])
@pytest.mark.parametrize("command", ["status", "ls"])
def test_an_answer_that_is_not_spoolds(tmp_path, body, command):
    with daemon(tmp_path / "s", {"GET /status": (200, body)}):
        done = spoolctl(tmp_path / "s", command, "--json")
    assert done.returncode == 1
    assert "spoold" in done.stderr and len(done.stderr.splitlines()) == 1


def test_an_error_without_a_reason(tmp_path):
    with daemon(tmp_path / "s", {"GET /status": (500, b"oops")}):
        done = spoolctl(tmp_path / "s", "status")
    assert done.returncode == 1 and "HTTP 500" in done.stderr


def test_a_socket_left_behind(tmp_path):
    with daemon(tmp_path / "s", {}):
        pass
    assert (tmp_path / "s").exists()
    done = spoolctl(tmp_path / "s", "status")
    assert done.returncode == 1 and "no spoold answers at" in done.stderr
