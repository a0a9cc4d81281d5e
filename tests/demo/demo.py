# SPDX-License-Identifier: Apache-2.0
"""`make demo`: records flow from Kafka through spoold into ClickHouse, through an outage, and are
counted. Everything lives in build/demo and on free ports of 127.0.0.1, and is gone at the end;
KEEP=1 leaves it running. MOCK=1 takes the broker that is used where the real one cannot run.

Exit: 0 when ClickHouse has exactly what was produced, 1 when not or when a part failed, 130 on ^C."""
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tests"))

from support import kafka as kafka_module
from support.clickhouse import ClickHouseError, OldServer
from support.kafka import Kafka, MockKafka, Producer
from support.process import Child, free_port, hold_for

# Relative, so that the commands shown are short and the socket's name fits, wherever this lies.
HOME = "build/demo"
SOCKET = f"{HOME}/control.sock"
SAMPLE = "tests/demo/spoold.json"
TOPIC, TABLE, PARTITIONS = "events", "events", 4
RATE = 5000
OUTAGE_S = 10
DRAIN_MAX_S = 30
POISON = '{"id":7,"name":"mallory","timestamp":"2026-11-23 10:11:12","type":"baz"}'

COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ
SPOOLD, SPOOLCTL = (os.path.relpath(os.environ[name], ROOT) for name in ("SPOOLD_BIN", "SPOOLCTL_BIN"))


class Failed(Exception):
    """What went wrong, for the reader."""


def say(text=""):
    print(text, flush=True)


def shade(text, code):
    return f"\033[{code}m{text}\033[0m" if COLOURS else text


def step(title, *lines):
    say()
    say(shade(title, 1))
    for line in lines:
        say(f"   {line}")


def show(*command):
    """A command and what it prints, as the reader would see it."""
    say()
    say("   $ " + " ".join(command))
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=30, check=False)
    for line in done.stdout.splitlines():
        say(f"     {line}")
    if done.returncode != 0:
        raise Failed(f"{command[0]} ended with {done.returncode}")


class Demo:
    def __init__(self):
        self.began = time.monotonic()
        self.kafka = self.clickhouse = self.spoold = self.producer = None
        self.http_port = free_port()
        self.known = 0

    # ---- the parts ----

    def start_servers(self):
        self.clickhouse = OldServer(f"{HOME}/clickhouse").launch()
        why = "MOCK is set" if os.environ.get("MOCK") else kafka_module.unavailable()
        if why:
            self.kafka = MockKafka(f"{HOME}/kafka", TOPIC, PARTITIONS).launch()
        else:
            self.kafka = Kafka(f"{HOME}/kafka").launch()
        self.kafka.child.wait_ready(self.kafka.answers, 60)
        self.clickhouse.child.wait_ready(self.clickhouse.ping, 60)
        if not why:
            self.kafka.create_topic(PARTITIONS, name=TOPIC)
        broker = f"librdkafka's mock broker, in memory: no real one here ({why})" if why else (
            "Apache Kafka, one node")
        version = self.clickhouse.query("SELECT version()")
        say(f"   Kafka       {self.kafka.brokers:24} {broker}")
        say(f"   ClickHouse  {self.clickhouse.url:24} clickhouse-server {version}")

    def start_spoold(self):
        with open(SAMPLE, encoding="utf-8") as f:
            config = f.read()
        for sample, ours in (("127.0.0.1:9092", self.kafka.brokers),
                             ("http://127.0.0.1:8123", self.clickhouse.url),
                             ("127.0.0.1:9364", f"127.0.0.1:{self.http_port}")):
            config = config.replace(sample, ours)
        with open(f"{HOME}/spoold.json", "w", encoding="utf-8") as f:
            f.write(config)
        self.spoold = Child("spoold", [SPOOLD, "-c", f"{HOME}/spoold.json"], f"{HOME}/spoold.log")
        self.spoold.wait_ready(self.status, 20)

    def produce(self, rate, *flags):
        self.producer = Producer(self.kafka.tool, HOME, TOPIC, 10**12, "--kind", "demo",
                                 "--rate", rate, *flags)

    def end(self):
        """Ends what runs, by process, and takes the data away."""
        for part in (self.producer, self.kafka, self.clickhouse):
            if part and part.child and part.child.alive():
                part.child.kill()
        if self.spoold and self.spoold.alive():
            self.spoold.kill()
        shutil.rmtree(HOME, ignore_errors=True)

    # ---- looking ----

    def status(self):
        """The one stream's status, {} while spoold does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/status", timeout=2) as f:
                return json.load(f)["streams"][0]
        except OSError:
            return {}

    def count(self):
        """Asked of ClickHouse; None while it does not answer, 0 before the table is made."""
        try:
            return self.clickhouse.number(f"SELECT count() FROM {TABLE}", seconds=1)
        except OSError:
            return None
        except ClickHouseError as e:
            if e.code == 60:
                return 0
            raise

    def line(self):
        rows, status = self.count(), self.status()
        self.known = self.known if rows is None else rows
        state = status.get("state", "no answer")
        say(f"   {time.monotonic() - self.began:5.0f} s {self.producer.delivered():12,}"
            f" {'-' if rows is None else f'{rows:,}':>14} {status.get('rows_spooled', 0):14,}"
            f"   {state if state == 'running' else shade(state, 33)}")
        return rows

    def watch(self, seconds, until=None):
        """A line a second, for so many seconds or until(rows in the table) holds."""
        next_line = time.monotonic()
        for _ in range(seconds):
            if not self.spoold.alive():
                raise Failed(f"spoold ended:\n{self.spoold.log_tail()}")
            rows = self.line()
            next_line += 1
            hold_for(max(0, next_line - time.monotonic()))
            if until and until(rows):
                return True
        return not until

    # ---- the story ----

    def run(self):
        say(shade("spoold: Kafka -> a spool on disk -> ClickHouse, and an outage in between", 1))
        step("1. Starting a Kafka broker, a ClickHouse server and spoold")
        self.start_servers()
        self.start_spoold()
        say(f"   spoold      {f'http://127.0.0.1:{self.http_port}':24} configured by {SAMPLE}, "
            "worth a look")

        step(f"2. A producer writes {RATE:,} records a second into the topic '{TOPIC}', like this:",
             '{"id":0,"name":"user-1dcdaf","timestamp":"2026-11-23 10:11:12","type":"bar"}',
             "spoold makes the table, stores what comes in its spool, and inserts a batch a second.",
             "Rows stay in the spool until ClickHouse has said that it has them.", "",
             f"{'time':>7} {'produced':>12} {'in the table':>14} {'in the spool':>14}   stream")
        self.produce(RATE)
        self.watch(4)
        say(f"   ... a poison record, 'baz' is no value of the column 'type':  {POISON}")
        self.kafka.send(TOPIC, [POISON], partition=0)
        self.watch(4)
        self.outage()
        self.drain()
        return self.compare()

    def outage(self):
        step(f"3. ClickHouse is killed, for {OUTAGE_S} seconds; the records keep coming, and wait in "
             "the spool")
        # Killed, since on SIGTERM it goes on serving the connections it has. Wherever that hits: a
        # batch that got no answer is asked for by the origin of its rows before it is sent again.
        self.clickhouse.kill()
        self.watch(OUTAGE_S)

    def drain(self):
        step("4. ClickHouse is started again; what waited goes in, in large batches")
        backlog = self.known + self.status()["rows_spooled"]
        self.clickhouse.launch()
        if not self.watch(DRAIN_MAX_S, lambda rows: rows is not None and rows >= backlog):
            raise Failed(f"the backlog did not drain within {DRAIN_MAX_S} s")
        self.watch(3)

    def compare(self):
        step("5. The producer stops. Is everything there, and once?")
        produced = self.producer.stop()
        self.watch(DRAIN_MAX_S, lambda rows: rows is not None and rows >= produced)
        rows, unique = self.clickhouse.count(TABLE), self.clickhouse.unique(TABLE)
        dead = self.status()["dead_letters"]
        say()
        for name, number in (("produced", produced), ("count() in ClickHouse", rows),
                             ("uniqExact(id)", unique), ("dead letters", dead)):
            say(f"   {name:24} {number:10,}")
        equal = rows == produced and unique == produced and dead == 1
        say("   " + (shade("equal: nothing lost, nothing doubled", 32) if equal else
                     shade("NOT EQUAL", 31)))

        step("6. The poison record held back nobody; it is kept, with the reason and its bytes")
        show(SPOOLCTL, "--socket", SOCKET, "dead", "ls")
        show(SPOOLCTL, "--socket", SOCKET, "dead", "show", "events")

        step("7. What spoold says of itself")
        show(SPOOLCTL, "--socket", SOCKET, "status")
        return equal

    def invite(self, produced):
        """Everything goes on, a little slower."""
        self.produce(100, "--first", produced)
        ctl = f"{SPOOLCTL} --socket {SOCKET}"
        tool = os.path.relpath(self.kafka.tool.path, ROOT)
        step("Everything runs on, now with 100 records a second. To play with it:",
             f"{ctl} status",
             f"{ctl} ls events",
             f"{ctl} show events --limit 3",
             f"{ctl} pause events        (and resume)",
             f"curl '{self.clickhouse.url}/?query=SELECT+count()+FROM+{TABLE}'",
             f"clickhouse-client --port {self.clickhouse.tcp_port}",
             f"curl http://127.0.0.1:{self.http_port}/metrics        (or / in a browser)",
             f"echo '{POISON}' | {tool} -b {self.kafka.brokers} send {TOPIC} --plain",
             f"{HOME}/clickhouse-stop        (and clickhouse-start)",
             f"tail -f {HOME}/spoold.log")
        step(f"{HOME}/stop ends it all and deletes {HOME}.")


def write_scripts():
    """What a reader may ask of this process while it goes on in the background."""
    pid = os.getpid()
    for name, command in (
            ("stop", f"kill {pid} && tail --pid={pid} -f /dev/null && echo 'the demo has ended'"),
            ("clickhouse-stop", f"kill -USR1 {pid}"), ("clickhouse-start", f"kill -USR2 {pid}")):
        with open(f"{HOME}/{name}", "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\n{command}\n")
        os.chmod(f"{HOME}/{name}", 0o755)


def go_on(demo):
    """Until a signal ends it."""
    def start(_number, _frame):
        if not demo.clickhouse.alive():
            demo.clickhouse.launch()
    signal.signal(signal.SIGUSR1, lambda number, frame: demo.clickhouse.kill())
    signal.signal(signal.SIGUSR2, start)
    while True:
        signal.pause()


def claim():
    """One demo at a time in this checkout, also one that was left running."""
    os.makedirs("build", exist_ok=True)
    lock = open("build/demo.lock", "w", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        say(f"demo: another one runs here; {HOME}/stop ends it if it was left running")
        sys.exit(1)
    return lock


def end_on_signal(number, _frame):
    sys.exit(128 + number)


def play(keep, finished):
    """The demo and its end; the exit code. finished(code): called when it is told and goes on."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end_on_signal)
    shutil.rmtree(HOME, ignore_errors=True)
    os.makedirs(HOME)
    demo = Demo()
    try:
        equal = demo.run()
        if keep:
            demo.invite(demo.producer.delivered())
            write_scripts()
            finished(0 if equal else 1)
            go_on(demo)
    except (Failed, AssertionError, RuntimeError, KeyError, OSError, ClickHouseError) as e:
        say(f"\ndemo: {type(e).__name__}: {e}")
        equal = False
    finally:
        demo.end()
    step(f"Cleaned up after {time.monotonic() - demo.began:.0f} s."
         + ("" if keep else " `make demo KEEP=1` leaves everything running, to play with."))
    return 0 if equal else 1


def play_in_background():
    """The servers end with the process that started them, so with KEEP that one lives on, in a
    session of its own; this one ends as soon as the story is told. The exit code."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.close(told)

        def finished(code):
            os.write(tell, bytes([code]))
            os.close(tell)
            sys.stdout.flush()
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
        sys.exit(play(True, finished))
    os.close(tell)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: os.kill(pid, signal.SIGTERM))
    code = os.read(told, 1)
    return code[0] if code else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main():
    os.chdir(ROOT)
    lock = claim()
    code = play_in_background() if os.environ.get("KEEP") else play(False, None)
    lock.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
