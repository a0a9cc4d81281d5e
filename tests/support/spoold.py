# SPDX-License-Identifier: Apache-2.0
"""The daemon under test and its tool."""
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile

from .process import Child, free_port, wait_until


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, seconds):
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _merge(base, extra):
    """extra over base; objects are merged, everything else replaced."""
    merged = dict(base)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _merge(merged[key], value)
        merged[key] = value
    return merged


def stream(name, topic, table, **options):
    """One entry of streams[], with a short flush interval."""
    return _merge({"name": name, "topics": [topic] if isinstance(topic, str) else list(topic),
                   "table": table, "flush": {"interval": "200ms"}}, options)


def spoolctl(*args, check=True, seconds=60):
    """(exit code, stdout); with "--json" among the arguments, stdout is parsed: a document, or a list
    of one object a line. check: a non-zero exit is an error."""
    done = subprocess.run([os.environ["SPOOLCTL_BIN"], *map(str, args)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=seconds, check=False)
    text = done.stdout.decode(errors="replace")
    if check and done.returncode != 0:
        raise AssertionError(f"spoolctl {' '.join(map(str, args))}: exit {done.returncode}: "
                             f"{text[-2000:]}{done.stderr.decode(errors='replace')[-2000:]}")
    if "--json" in args and text.strip():
        try:
            return done.returncode, json.loads(text)
        except ValueError:
            return done.returncode, [json.loads(line) for line in text.splitlines()]
    return done.returncode, text


class Spoold:
    """One spool directory, one config, and the daemon that runs on them, again and again.

    Broker, server and streams come by position; config, by name, is merged over what follows from
    them (kafka={"properties": {...}}, spool={...}). Its files live in a short path, since a Unix socket's
    name has 107 bytes at most.
    """

    def __init__(self, kafka=None, server=None, streams=(), /, **config):
        self.directory = tempfile.mkdtemp(prefix="spoold-")
        self.spool = os.path.join(self.directory, "spool")
        self.socket = os.path.join(self.directory, "control.sock")
        self.config_path = os.path.join(self.directory, "spoold.json")
        self.log_path = os.path.join(self.directory, "spoold.log")
        self.group = f"spoold-{os.urandom(4).hex()}"
        self.child = None
        self.env = {}  # of every start
        self._log_from = 0
        base = {
            "spool": {"path": self.spool, "min_free_bytes": "1MiB"},
            "control": {"socket": self.socket},
            "log": {"format": "json"},
            "streams": list(streams),
        }
        if kafka:
            base["kafka"] = {"brokers": [kafka if isinstance(kafka, str) else kafka.brokers],
                             "group_id": self.group, "auto_offset_reset": "earliest",
                             "properties": {"fetch.wait.max.ms": "50"}}
        if server:
            base["clickhouse"] = {"urls": [server if isinstance(server, str) else server.url],
                                  "user": "default", "database": "default"}
        os.makedirs(self.spool)
        self.config = _merge(base, config)
        self.group = self.config.get("kafka", {}).get("group_id", self.group)

    def with_http(self, **options):
        """Turns the HTTP listener on, on a free port."""
        self.http_port = free_port()
        self.config = _merge(self.config, {
            "http": {"listen": f"127.0.0.1:{self.http_port}", **options}})
        return self

    # ---- life ----

    def write_config(self):
        with open(self.config_path, "w", encoding="utf-8") as f:
            json.dump(self.config, f, indent=1)

    def launch(self, failpoints=None, env=None, args=()):
        """Starts the process and waits for nothing. failpoints: "name=action[@n],..."."""
        self.write_config()
        env = {**self.env, **(env or {})}
        if failpoints:
            env["SPOOLD_FAILPOINTS"] = failpoints
        self._log_from = os.path.getsize(self.log_path) if os.path.exists(self.log_path) else 0
        self.child = Child("spoold", [os.environ["SPOOLD_BIN"], "-c", self.config_path, *args],
                           self.log_path, env=env)
        return self

    def start(self, failpoints=None, env=None, seconds=20):
        """Starts the process and waits until its control socket answers."""
        self.launch(failpoints, env)
        self.child.wait_ready(self.answers, seconds)
        return self

    def answers(self):
        try:
            return self.control("GET", "/health/live", seconds=2)[0] == 200
        except OSError:
            return False

    @property
    def pid(self):
        return self.child.pid

    def alive(self):
        return self.child is not None and self.child.alive()

    def wait_exit(self, seconds=30):
        return self.child.wait(seconds)

    def sigterm(self, seconds=30):
        """Asks for the end and waits; the exit code."""
        self.child.signal(signal.SIGTERM)
        return self.child.wait(seconds)

    def kill9(self):
        return self.child.kill()

    def remove(self):
        """Ends what runs and deletes everything."""
        if self.alive():
            self.child.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- asking ----

    def control(self, method, path, body=None, seconds=10):
        """(status, bytes) over the control socket."""
        connection = _UnixConnection(self.socket, seconds)
        try:
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def http(self, method, path, body=None, headers=None, seconds=30):
        """(status, headers, bytes) over the HTTP listener."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=seconds)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def status(self):
        status, body = self.control("GET", "/status")
        assert status == 200, body
        return json.loads(body)

    def stream_status(self, name):
        for entry in self.status()["streams"]:
            if entry["name"] == name:
                return entry
        raise AssertionError(f"no stream {name} in the status")

    def metrics(self):
        """name{labels} as printed -> number."""
        status, body = self.control("GET", "/metrics")
        assert status == 200, body
        lines = re.findall(r"^([^#\s]\S*(?:\{.*\})?) (\S+)$", body.decode(), re.M)
        return {name: float(value) for name, value in lines}

    def metric(self, name, **labels):
        """The sum over all series of that name which carry these labels."""
        wanted = [f'{k}="{v}"' for k, v in labels.items()]
        return sum(value for series, value in self.metrics().items()
                   if series.split("{")[0] == name and all(w in series for w in wanted))

    def log(self, whole=False):
        """What this run (or every run) logged."""
        with open(self.log_path, "rb") as f:
            f.seek(0 if whole else self._log_from)
            return f.read().decode(errors="replace")

    def events(self, name=None, whole=False):
        """The log's lines as objects; lines that are no JSON are left out. name: one event's."""
        found = []
        for line in self.log(whole).splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and (name is None or entry.get("event") == name):
                found.append(entry)
        return found

    # ---- waiting ----

    def wait(self, condition, seconds, what):
        """As wait_until, but ends at once when the daemon has died."""
        def check():
            value = condition()
            if not value and not self.alive():
                raise AssertionError(f"spoold ended with {self.child.popen.returncode}:\n"
                                     f"{self.child.log_tail()}")
            return value
        return wait_until(check, seconds, lambda: (what() if callable(what) else what)
                          + "\n" + self.child.log_tail())

    def wait_log(self, pattern, seconds=20):
        return self.wait(lambda: re.search(pattern, self.log()), seconds, f"log line /{pattern}/")

    def wait_state(self, name, state, seconds=20):
        return self.wait(lambda: self.stream_status(name)["state"] == state, seconds,
                         lambda: f"{name} {state}: {self.stream_status(name)}")

    def wait_rows(self, server, table, rows, seconds=30):
        """Until the table has exactly so many rows; more than that fails at once."""
        def check():
            count = server.count(table)
            assert count <= rows, f"{table} has {count} rows, {rows} are right"
            return count == rows
        self.wait(check, seconds, lambda: f"{rows} rows in {table}, not {server.count(table)}")

    def ctl(self, *args, check=True):
        """spoolctl on the running daemon, or on the spool when it does not run."""
        where = ("--socket", self.socket) if self.alive() else ("--spool", self.spool)
        return spoolctl(*where, *args, check=check)
