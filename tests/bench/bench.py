#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The figures spoold must show, as ratios within one run, on a real broker and both servers.

    make bench                                  everything
    make bench BENCH_FLAGS="cpu size"           some of: cpu speed memory size recovery start poison stuck
    make bench BENCH_FLAGS="--server engine"    one of: clickhouse (18.16), engine (26.7)
    make bench BENCH_SHORT=1                    fewer records, shorter outages: for trying it out

A missed goal is said aloud and is no failure: machines differ, and the ratios are for a person to
judge. Exit 1 is a run that broke.
"""
import argparse
import datetime
import glob
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from support.clickhouse import Engine, OldServer
from support.kafka import Kafka
from support.process import Child, free_port, hold_for, port_answers, wait_until
from support.spoold import Spoold, stream
from support.stuck import EACH, HalfStuck

SHORT = os.environ.get("BENCH_SHORT", "") not in ("", "0")
MIB = 1024 * 1024
PAIRS = 3 if SHORT else 5
CPU_PAIRS = 3 if SHORT else 11  # one of which says little: consuming alone varies by a half
CPU_RECORDS = 1_000_000
SPEED_RECORDS = 2_000_000 if SHORT else 4_000_000
OUTAGE_SECONDS = 5 if SHORT else 60
BACKLOG_GIB = 2
INTAKE_RATE = 100_000  # records a second, of the producer in `recovery`
POISON_RECORDS = 100_000
STUCK_PAIRS, STUCK_RECORDS = (3, 60000) if SHORT else (7, 80000)  # of each stream that flows
STUCK_SPOOL_BYTES = 160 * MIB
# As the daemon sets them (src/source/kafka_conf.c, and tests/support/spoold.py).
PROPERTIES = {"queued.min.messages": 20000, "queued.max.messages.kbytes": 16384,
              "fetch.message.max.bytes": 262144, "fetch.wait.max.ms": 50,
              "isolation.level": "read_committed", "enable.partition.eof": "true"}
BACKLOG_COLUMNS = {
    True: "id UInt64, name String, type String, value Float64, timestamp DateTime64(3), "
          "status String, active Bool",
    False: "id UInt64, name String, type String, value Float64, timestamp String, "
           "status String, active UInt8"}
# The backlog's names of columns, from the keys of the generated record.
BACKLOG_FROM = {"id": "id", "name": "name", "type": "kind", "value": "value", "timestamp": "ts",
                "status": "state", "active": "ok"}


class Figures:
    """The table that is printed in the end, and each line of it as soon as it is known."""

    def __init__(self):
        self.rows = []

    def add(self, name, values, unit="", at_most=None, at_least=None):
        values = [values] if isinstance(values, (int, float)) else list(values)
        middle = statistics.median(values)
        goal, verdict = "", ""
        if at_most is not None:
            goal, verdict = f"<= {at_most:g}", "ok" if middle <= at_most else "MISSED"
        if at_least is not None:
            goal, verdict = f">= {at_least:g}", "ok" if middle >= at_least else "MISSED"
        spread = f"{min(values):.3g}..{max(values):.3g}" if len(values) > 1 else ""
        row = (name, f"{goal} {unit}".strip() if goal else "", f"{middle:.3g} {unit}".strip(),
               spread, verdict)
        self.rows.append(row)
        print(f"  {name}: {row[2]} {'(' + spread + ')' if spread else ''} "
              f"{'goal ' + row[1] + ': ' + verdict if goal else ''}", flush=True)

    def print(self):
        head = ("figure", "goal", "measured", "min..max", "")
        widths = [max(len(row[i]) for row in [head, *self.rows]) for i in range(5)]
        print()
        for row in [head, *self.rows]:
            print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())
        missed = [row[0] for row in self.rows if row[4] == "MISSED"]
        print(f"\n{len(missed)} of {sum(1 for r in self.rows if r[4])} goals MISSED"
              + (": " + "; ".join(missed) if missed else ""), flush=True)


class Counter:
    """count() of one table over one connection, for tight waiting."""

    def __init__(self, server, table):
        self.server, self.path = server, f"/?query=SELECT%20count()%20FROM%20{table}"
        self.connection = None

    def __call__(self):
        for last in (False, True):
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port,
                                                             timeout=60)
            try:
                self.connection.request("GET", self.path)
                answer = self.connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"count: {text[:300]!r}")
                return int(text)
            except (OSError, http.client.HTTPException):
                self.connection.close()
                self.connection = None
                if last:
                    raise
        return 0


class Memory(threading.Thread):
    """The most anonymous memory of a process, looked at every 10 ms."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.path, self.most_kib, self.ended = f"/proc/{pid}/status", 0, threading.Event()

    def run(self):
        while not self.ended.wait(0.01):
            try:
                with open(self.path, encoding="ascii") as f:
                    for line in f:
                        if line.startswith("RssAnon:"):
                            self.most_kib = max(self.most_kib, int(line.split()[1]))
            except OSError:
                return

    def finish(self):
        self.ended.set()
        self.join()
        return self.most_kib / 1024


def reap(child):
    """Waits for the end; user and system time of the whole process."""
    _, status, usage = os.wait4(child.pid, 0)
    child.popen.returncode = os.waitstatus_to_exitcode(status)
    if child.popen.returncode != 0:
        raise RuntimeError(f"{child.name} ended with {child.popen.returncode}:\n{child.log_tail()}")
    return usage.ru_utime + usage.ru_stime


class BenchKafka(Kafka):
    """One that lives long enough to be compiled well."""

    java_flags = ("-XX:+UseG1GC",)


class Bench:
    def __init__(self, directory, kinds, figures):
        self.directory, self.figures = directory, figures
        self.kafka = BenchKafka(os.path.join(directory, "kafka")).start()
        self.servers = [kind(os.path.join(directory, kind.name)).start() for kind in kinds]
        self.topics = {}
        self.record_bytes = 0
        self.daemons = []

    def close(self):
        for daemon in self.daemons:
            daemon.remove()
        for server in self.servers:
            if server.alive():
                server.kill()
        self.kafka.kill()

    # ---- what the measurements are made of ----

    def topic(self, records, partitions):
        """Made once; the seed makes the same records at every run."""
        key = (records, partitions)
        if key not in self.topics:
            name = self.kafka.create_topic(partitions)
            done = self.kafka.tool.run("produce", name, "--records", records, seconds=600)[-1]
            self.record_bytes = done["bytes"] / done["delivered"]
            self.topics[key] = name
        return self.topics[key]

    def daemon(self, server, topic, table, name="s", flush=None, **config):
        options = config.pop("stream_options", {})
        daemon = Spoold(self.kafka if topic else None, server,
                        [stream(name, topic or [], table, flush=flush or {"interval": "1s"},
                                **options)], **config)
        self.daemons.append(daemon)
        return daemon

    def discard_daemon(self, daemon):
        daemon.remove()
        self.daemons.remove(daemon)

    def consume(self, topic, records, properties):
        """(CPU seconds, seconds) of consuming alone."""
        log = os.path.join(self.directory, f"consume-{os.urandom(4).hex()}.log")
        child = Child("consume", [os.path.join(os.environ["BENCH_DIR"], "consume"),
                                  self.kafka.brokers, f"c-{os.urandom(4).hex()}", topic, records,
                                  *[f"{k}={v}" for k, v in properties.items()]], log)
        cpu = reap(child)
        return cpu, json.loads(child.log().splitlines()[-1])["seconds"]

    def load(self, server, topic, records, **config):
        """CPU seconds of the daemon from its start to the end after the last acknowledgement, and
        its spool's bytes by then (acknowledged segments are kept for a while)."""
        table = server.create_bench_table()
        daemon = self.daemon(server, topic, table, **config).launch()
        count = Counter(server, table)
        daemon.wait(lambda: count() >= records, 300, lambda: f"{records} rows, not {count()}")
        daemon.child.signal(15)
        cpu = reap(daemon.child)
        if count() != records or server.unique(table) != records:
            raise RuntimeError(f"{count()} rows for {records} records")
        files = glob.glob(os.path.join(daemon.spool, "streams", "s", "*.seg"))
        disk = sum(os.stat(path).st_blocks * 512 for path in files)
        self.discard_daemon(daemon)
        server.drop_table(table)
        return cpu, disk

    def mkspool(self, server, directory, table, **plan):
        """A backlog made through the public API, of a stream named events."""
        flags = {"gib": BACKLOG_GIB, "rows": 8192, "origins": 4,
                 "destination": f"default.{table}", "flavour": "modern" if server.modern else "old",
                 **plan}
        done = subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "mkspool"), directory,
                               *[f"{k}={v}" for k, v in flags.items()]],
                              stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)

    # ---- the figures ----

    def cpu(self):
        topic = self.topic(CPU_RECORDS, 4)
        self.consume(topic, CPU_RECORDS, PROPERTIES)  # what is read first comes from the disk
        for server in self.servers:
            self.load(server, topic, CPU_RECORDS)
            ratios, ours, theirs = [], [], []
            for _ in range(CPU_PAIRS):
                theirs.append(self.consume(topic, CPU_RECORDS, PROPERTIES)[0])
                ours.append(self.load(server, topic, CPU_RECORDS)[0])
                ratios.append(ours[-1] / theirs[-1])
            self.figures.add(f"{server.name}: loader CPU for 1M records", ours, "s")
            self.figures.add(f"{server.name}: consume-only CPU for 1M records", theirs, "s")
            self.figures.add(f"{server.name}: loader CPU / consume-only CPU", ratios, at_most=1.6)

    def speed(self):
        """The server taken out. Consuming alone is tried with the daemon's properties, and with a
        queue so large that librdkafka never pauses its fetching; the faster one counts."""
        topic = self.topic(SPEED_RECORDS, 4)
        large = {**PROPERTIES, "queued.min.messages": 1000000, "queued.max.messages.kbytes": 262144}
        server = self.servers[-1]
        port = free_port()
        sink = Child("discard", [os.path.join(os.environ["BENCH_DIR"], "discard"), port,
                                 server.port], os.path.join(self.directory, "discard.log"))
        sink.wait_ready(lambda: port_answers(port), 10)
        ratios, rates, alone = [], [], []
        for _ in range(PAIRS):
            best = min(self.consume(topic, SPEED_RECORDS, properties)[1]
                       for properties in (PROPERTIES, large))
            table = server.create_bench_table()
            daemon = self.daemon(f"http://127.0.0.1:{port}", topic, table,
                                 flush={"interval": "100ms"})
            started = time.monotonic()
            daemon.start()
            daemon.wait(lambda: daemon.metric("spoold_rows_inserted_total") >= SPEED_RECORDS, 300,
                        "all rows sent")
            seconds = time.monotonic() - started
            daemon.child.signal(15)
            reap(daemon.child)
            self.discard_daemon(daemon)
            ratios.append(best / seconds)
            rates.append(SPEED_RECORDS / seconds / 1e6)
            alone.append(SPEED_RECORDS / best / 1e6)
        sink.kill()
        self.figures.add("discarding sink: rows a second", rates, "M/s")
        self.figures.add("consume-only: records a second", alone, "M/s")
        self.figures.add("discarding sink: speed / consume-only speed", ratios, at_least=0.6)

    def memory(self):
        topic = self.topic(SPEED_RECORDS, 12)
        goal = round(64 + 3 * self.record_bytes / MIB, 3)
        for server in self.servers:
            for backlog in (False, True):
                table = server.create_table(BACKLOG_COLUMNS[server.modern], order_by="id")
                columns = [{"name": n, "from": k} for n, k in BACKLOG_FROM.items()]
                daemon = self.daemon(server, topic, table, name="events",
                                     stream_options={"columns": columns})
                if backlog:
                    self.mkspool(server, daemon.spool, table)
                daemon.launch()
                memory = Memory(daemon.pid)
                memory.start()
                daemon.wait(daemon.answers, 20, "the daemon answers")
                daemon.wait(lambda: daemon.metric("spoold_records_in_total") >= SPEED_RECORDS, 300,
                            "all records taken")
                most = memory.finish()
                self.discard_daemon(daemon)
                server.drop_table(table)
                what = f"{BACKLOG_GIB} GiB backlog" if backlog else "empty spool"
                self.figures.add(f"{server.name}: anonymous memory, 12 partitions, {what}", most,
                                 "MiB", at_most=goal)

    def size(self):
        topic = self.topic(CPU_RECORDS, 4)
        for server in self.servers:
            for method in ("lz4", "zstd"):
                cpu, disk = self.load(server, topic, CPU_RECORDS,
                                      spool={"compression": method})
                goal = {"lz4": 4.8, "zstd": 8}[method] if server.modern else \
                    {"lz4": 4, "zstd": 6.5}[method]
                self.figures.add(f"{server.name}: JSON bytes / spool bytes, {method}",
                                 self.record_bytes * CPU_RECORDS / disk, at_least=goal)
                self.figures.add(f"{server.name}: loader CPU with {method}", cpu, "s")

    def recovery(self):
        for server in self.servers:
            topic = self.kafka.create_topic(4)
            table = server.create_bench_table()
            daemon = self.daemon(server, topic, table).start()
            producer = self.kafka.producer(topic, 10**12, "--rate", INTAKE_RATE)
            count = Counter(server, table)
            daemon.wait(lambda: count() > INTAKE_RATE, 60, "rows flow")
            server.stop()
            hold_for(OUTAGE_SECONDS, daemon.alive)
            status = daemon.stream_status("s")
            server.start()
            answered = time.monotonic()
            before = count()
            daemon.wait(lambda: count() > before, 60, "the first row")
            first = time.monotonic()
            self.figures.add(f"{server.name}: answering again to first row, "
                             f"{OUTAGE_SECONDS} s outage", first - answered, "s", at_most=1.5)
            daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] < 2 * INTAKE_RATE, 300,
                        "the backlog drains")
            drained = (count() - before) / (time.monotonic() - first)
            intake = producer.delivered() / INTAKE_RATE
            producer.stop()
            self.figures.add(f"{server.name}: drain rate / intake rate of "
                             f"{INTAKE_RATE // 1000}k records/s", drained / INTAKE_RATE,
                             at_least=3)
            print(f"    (spooled in the outage: {status['rows_spooled']} rows; drained "
                  f"{drained / 1e6:.2f}M rows/s beside the intake of {intake:.0f} s)")
            self.discard_daemon(daemon)
            server.drop_table(table)

    def start(self):
        for server in self.servers:
            table = server.create_table(BACKLOG_COLUMNS[server.modern], order_by="id")
            daemon = self.daemon(server, None, table, name="events")
            self.mkspool(server, daemon.spool, table)
            count = Counter(server, table)
            count()
            started = time.monotonic()
            daemon.launch()
            while not count():
                if not daemon.alive() or time.monotonic() > started + 60:
                    raise RuntimeError(f"no row:\n{daemon.child.log_tail()}")
            self.figures.add(f"{server.name}: start to first insert, {BACKLOG_GIB} GiB not Kafka's",
                             1000 * (time.monotonic() - started), "ms", at_most=300)
            rows, since = count(), time.monotonic()
            hold_for(5, daemon.alive)
            self.figures.add(f"{server.name}: drain of a backlog",
                             (count() - rows) / (time.monotonic() - since) / 1e6, "M rows/s")
            self.discard_daemon(daemon)
            server.drop_table(table)
            self.start_kafka(server)

    def start_kafka(self, server):
        """The made spool's origins are given the names of a topic's partitions, and commits of its
        own; the topic itself is empty, which does not matter to what is spooled."""
        topic = self.kafka.create_topic(4)
        table = server.create_table(BACKLOG_COLUMNS[server.modern], order_by="id")
        daemon = self.daemon(server, topic, table, name="events")
        made = self.mkspool(server, daemon.spool, table, origin=f"kafka/{topic}/")
        for partition in range(4):
            self.kafka.commit(daemon.group, topic, partition, 1, f"spoold {made['uuid']} 0")
        count = Counter(server, table)
        count()
        daemon.launch()
        wait_until(count, 60, daemon.child.log_tail)
        inserted = time.time()
        assigned = min(datetime.datetime.fromisoformat(e["time"].replace("Z", "+00:00")).timestamp()
                       for e in daemon.events("partition.assigned"))
        self.figures.add(f"{server.name}: assigned to first insert, {BACKLOG_GIB} GiB of Kafka's",
                         inserted - assigned, "s", at_most=1)
        self.discard_daemon(daemon)
        server.drop_table(table)

    def decode(self):
        """JSON into blocks into LZ4 frames, in this process's own time; no server takes part."""
        said = subprocess.run([os.path.join(os.environ["BENCH_DIR"], "bench_decode"), "8192", "2"],
                              stdout=subprocess.PIPE, text=True, check=True).stdout
        for label, speed in re.findall(r"^(.+?), LZ4 frames +(\d+) MB/s", said, re.M):
            bench_record = label == "T..Z"
            self.figures.add(f"decode, encode and LZ4: {'the bench record' if bench_record else label}",
                             int(speed), "MB/s", at_least=600 if bench_record else None)

    def poison(self):
        """Rows that only the server refuses: by a CHECK on 26.7, which names the row; by a
        MATERIALIZED column that throws on 18.16, which names none."""
        topic = self.topic(POISON_RECORDS, 1)
        for server in self.servers:
            for _ in range(2):  # the first reads from the disk
                clean = self.load_poisoned(server, topic, "id = 123456789", 0)
            for condition, bad, goal in (("id = 77777", 1, 2), ("id % 100 = 42", 1000, 30)):
                took = self.load_poisoned(server, topic, condition, bad)
                what = "one poison row" if bad == 1 else f"{bad} poison rows"
                self.figures.add(f"{server.name}: {what} of {POISON_RECORDS // 1000}k, beyond a "
                                 "clean run", took - clean, "s", at_most=goal)

    def load_poisoned(self, server, topic, condition, bad):
        """Seconds from the start of the daemon until all others are in and the bad are set aside."""
        column = f"CONSTRAINT c CHECK NOT ({condition})" if server.modern else \
            f"poison UInt8 MATERIALIZED throwIf({condition})"
        table = server.create_table(f"{server.bench_columns}, {column}", order_by="id",
                                    window=1000)
        daemon = self.daemon(server, topic, table)
        count = Counter(server, table)
        count()
        started = time.monotonic()
        daemon.launch()
        daemon.wait(lambda: count() >= POISON_RECORDS - bad, 600, lambda: f"{count()} rows")
        seconds = time.monotonic() - started
        daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == bad, 60, "dead letters")
        if count() != POISON_RECORDS - bad:
            raise RuntimeError(f"{count()} rows, {bad} bad ones of {POISON_RECORDS}")
        hunts = daemon.events("rows.refused")
        parts = server.number(f"SELECT count() FROM system.parts WHERE table = '{table}'")
        print(f"    ({bad} bad: {seconds:.2f} s, {len(hunts)} hunts of "
              f"{sum(int(h['trials']) for h in hunts)} trials, {parts} parts)")
        self.discard_daemon(daemon)
        server.drop_table(table)
        return seconds


    def stuck(self):
        """25 streams that flow, beside 25 without records and beside 25 that are stuck with all of the
        spool that they may have: two daemons, in turns."""
        for server in self.servers:
            alone, beside = rigs = [HalfStuck(self.kafka, server, Spoold, STUCK_SPOOL_BYTES,
                                              flush={"interval": "1s"}) for _ in range(2)]
            self.daemons += [rig.daemon for rig in rigs]
            for rig in rigs:
                rig.start()
            beside.stick()
            rates = {alone: [], beside: []}
            for turn in range(STUCK_PAIRS + 1):
                for rig in rigs[::-1] if turn % 2 else rigs:
                    other = beside if rig is alone else alone
                    rates[rig].append(EACH * STUCK_RECORDS / self.drain_good(rig, other))
                beside.wait_stuck()
            for of_rig in rates.values():
                del of_rig[0]  # the broker was not warm yet
            print(f"    ({min(rates[alone]):.0f}..{max(rates[alone]):.0f} rows/s without, "
                  f"{min(rates[beside]):.0f}..{max(rates[beside]):.0f} beside)")
            self.figures.add(f"{server.name}: rate of 25 streams beside 25 stuck ones, of the rate "
                             "without", [b / a for a, b in zip(rates[alone], rates[beside])],
                             at_least=0.9)
            for rig in rigs:
                rig.drop_tables()
                self.discard_daemon(rig.daemon)

    @staticmethod
    def drain_good(rig, other):
        """Seconds from when the daemon may see new records of each stream that flows until all of
        them are in. It stands still while they are produced, and the other rig's while they flow."""
        def inserted():
            return sum(s["rows_inserted"] for s in rig.daemon.status()["streams"]
                       if s["name"].startswith("good"))

        rig.daemon.child.signal(signal.SIGSTOP)
        rig.feed(STUCK_RECORDS)
        other.daemon.child.signal(signal.SIGSTOP)
        rig.daemon.child.signal(signal.SIGCONT)
        started = time.monotonic()
        rig.daemon.wait(lambda: inserted() >= EACH * rig.sent, 120,
                        lambda: f"{inserted()} rows of {EACH * rig.sent}")
        seconds = time.monotonic() - started
        other.daemon.child.signal(signal.SIGCONT)
        return seconds


def main():
    parser = argparse.ArgumentParser()
    names = ["decode", "cpu", "speed", "memory", "size", "recovery", "start", "poison",
             "stuck"]
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=" ".join(names))
    parser.add_argument("--server", choices=["clickhouse", "engine"])
    options = parser.parse_args()
    wanted = options.figures or names
    if set(wanted) - set(names):
        parser.error(f"figures are {' '.join(names)}")
    kinds = [kind for kind, name in ((OldServer, "clickhouse"), (Engine, "engine"))
             if options.server in (None, name)]
    for kind in kinds:
        if kind.unavailable():
            print(f"bench: {kind.name} cannot run: {kind.unavailable()}")
            return 1
    directory = tempfile.mkdtemp(prefix="spoold-bench-")
    figures, bench = Figures(), None
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
          f"{', BENCH_SHORT' if SHORT else ''}", flush=True)
    try:
        bench = Bench(directory, kinds, figures)
        for name in wanted:
            print(f"{name}:", flush=True)
            getattr(bench, name)()
        figures.print()
    finally:
        if bench:
            bench.close()
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
