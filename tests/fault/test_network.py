# SPDX-License-Identifier: Apache-2.0
"""A network that refuses, stalls, cuts, lies and dawdles between spoold and ClickHouse, also while one
of them dies. One daemon has a stream for each kind of fault, so that all of them strike at once."""
import base64
import concurrent.futures
import json
import os
import threading

import pytest

from support.process import wait_until
from support.proxy import Fault
from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
ORIGIN_COLUMNS = "_topic String, _partition Int32, _offset Int64"
ROWS = 1000  # of a batch: two blocks, one of each partition, or more


def said(text):
    return text.replace("\n", "\r\n").encode()


def kinds():
    """Name -> fault. The body is the frame of the query, then a frame of each block."""
    made = {
        "stall-head": Fault("head", "stall"),
        "stall-body": Fault("body", "stall", at=300),
        "stall-sent": Fault("sent", "stall"),
        "stall-answer": Fault("answer", "stall"),
        "stall-in-answer": Fault("answer", "stall", at=20),
        "garbage-instead": Fault("head", "garbage"),
        "garbage-answer": Fault("answer", "garbage"),
        "garbage-behind-200": Fault("answer", "garbage", garbage=said(
            "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello")),
        # What a server says that began its answer before the insert was over: nothing of it is stored.
        "exception-behind-200": Fault("head", "garbage", swallow=True, garbage=said(
            "HTTP/1.1 200 OK\nX-ClickHouse-Progress: {\"read_rows\":\"1000\"}\n"
            "Content-Length: 44\n\n") + b"Code: 159. DB::Exception: Timeout exceeded.\n"),
        "200-without-end": Fault("answer", "garbage", garbage=said("HTTP/1.1 200 OK\n\n")),
        "500-without-code": Fault("answer", "garbage", garbage=said(
            "HTTP/1.1 500 Oops\nContent-Length: 0\n\n")),
        "302": Fault("answer", "garbage", garbage=said(
            "HTTP/1.1 302 Found\nLocation: http://127.0.0.1:1/\nContent-Length: 0\n\n")),
        "slow": Fault("head", "slow"),
        "slow-answer": Fault("answer", "slow"),
    }
    for how in ("fin", "rst"):
        made.update({
            f"cut-head-{how}": Fault("head", how=how),
            f"cut-query-{how}": Fault("body", how=how, frames=1),
            f"cut-body-{how}": Fault("body", how=how, at=2000),
            f"cut-block-{how}": Fault("body", how=how, frames=2),
            f"cut-sent-{how}": Fault("sent", how=how),
            f"cut-answer-{how}": Fault("answer", how=how),
            f"cut-in-answer-{how}": Fault("answer", how=how, at=20),
            f"cut-answer-end-{how}": Fault("answer", how=how, at=-1),
            f"idle-{how}": Fault("done", how=how),
            f"reused-{how}": Fault("head", how=how, reused=True),
            f"reused-sent-{how}": Fault("sent", how=how, reused=True),
        })
    return made


# Also into a table without origin columns.
PLAIN = ["stall-answer", "garbage-answer", "cut-block-fin", "cut-sent-rst", "cut-answer-fin",
         "cut-in-answer-rst", "cut-body-fin", "reused-rst"]


def in_parallel(call, items):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(call, items))


class Together:
    """Holds every fault that strikes until all have, so that one kill finds all of them. But not one
    behind a whole answer: that connection is idle for libcurl, which may send the next insert there."""

    def __init__(self, faults):
        self._go = threading.Event()
        self._left = set(faults)
        self._faults = faults
        for name, fault in faults.items():
            fault.on_strike = lambda name=name, held=fault.stage != "done": self._strike(name, held)

    def _strike(self, name, held):
        self._left.discard(name)
        if held:
            self._go.wait()

    def wait(self, daemon):
        daemon.wait(lambda: not self._left, 120, lambda: f"struck: all but {sorted(self._left)}")

    def go(self):
        self._go.set()
        for fault in self._faults.values():
            fault.release()


def check_nothing_repeated(between):
    """No body went twice under one query_id: each attempt of spoold's has one of its own. libcurl may
    ask again by itself where a kept connection turns out to be closed, but only before the first byte
    of the body. How many bodies went."""
    sent = [r.query_id for r in between.inserts() if r.sent]
    assert len(set(sent)) == len(sent)
    return len(sent)


class Network:
    def __init__(self, kafka, server, proxy, spoold, stall_timeout="2s", **clickhouse):
        self.kafka, self.server = kafka, server
        self.proxy = proxy(server)
        self.faults = {f"{name}-o": fault for name, fault in kinds().items()}
        plain = kinds()
        self.faults.update({f"{name}-p": plain[name] for name in PLAIN})
        names = list(self.faults)
        self.topics = dict(zip(names, in_parallel(lambda _: kafka.create_topic(2), names)))
        self.tables = {name: server.create_bench_table(window=1000, origin=name.endswith("-o"))
                       for name in names}
        columns = [{"name": c.strip().split(" ")[0]} for c in server.bench_columns.split(",")]
        self.daemon = spoold(kafka, server, [
            stream(name, self.topics[name], self.tables[name],
                   columns=columns + (ORIGIN if name.endswith("-o") else []),
                   flush={"rows": ROWS, "interval": "1h"}) for name in names])
        self.daemon.config["clickhouse"].update(urls=[self.proxy.url],
                                                stall_timeout=stall_timeout, **clickhouse)
        self.daemon.start()
        self.produced = 0

    def produce(self):
        in_parallel(lambda topic: self.kafka.produce(topic, ROWS, "--first", self.produced),
                    self.topics.values())
        self.produced += ROWS

    def arm(self):
        for name, fault in self.faults.items():
            self.proxy.arm(fault, name)

    def missed(self):
        """The faults that have not struck."""
        return [name for name, fault in self.faults.items() if not fault.struck.is_set()]

    def short(self):
        """The streams whose rows are not all there: the counts."""
        found = {}
        for name, table in self.tables.items():
            unique = self.server.unique(table)
            if unique != self.produced:
                found[name] = unique
        return found

    def settled(self):
        status = {s["name"]: s for s in self.daemon.status()["streams"]}
        return all(status[name]["rows_spooled"] == 0 for name in self.faults) and not self.short()

    def wait_settled(self, seconds=90):
        self.daemon.wait(self.settled, seconds, lambda: f"all rows in: {self.short()}")

    def check(self, exact):
        """No row lost, and none doubled in the tables for which exact(name) says so; elsewhere no more
        than were announced."""
        possible = {}
        for event in self.daemon.events("batch.possible_duplicates", whole=True):
            possible[event["stream"]] = possible.get(event["stream"], 0) + int(event["rows"])
        for name, table in self.tables.items():
            doubled = self.server.count(table) - self.produced
            assert self.server.unique(table) == self.produced, name
            if exact(name):
                assert doubled == 0, f"{name}: {doubled} rows doubled"
                assert name not in possible, name
            else:
                assert 0 <= doubled <= possible.get(name, 0), f"{name}: {doubled}, {possible}"
        for name in self.faults:
            committed = self.kafka.committed_offsets(self.daemon.group, self.topics[name])
            assert sum(v or 0 for v in committed.values()) <= self.produced


@pytest.fixture
def network(kafka, server, proxy, spoold):
    return lambda **options: Network(kafka, server, proxy, spoold, **options)


def by_token_or_origin(net):
    return lambda name: name.endswith("-o") or net.server.deduplicates


def strike_reused(net):
    """Which connection an insert gets is libcurl's to say: the streams get batches, one at least, until
    each such fault has met one that was kept."""
    for _ in range(10):
        net.produce()
        net.wait_settled()
        if not net.missed():
            return
    raise AssertionError(f"never on a kept connection: {net.missed()}")


def refuse(net):
    """No connection is taken while there are batches to send."""
    net.proxy.refuse()
    net.produce()
    net.daemon.wait(lambda: all(s["rows_spooled"] == ROWS for s in net.daemon.status()["streams"]), 60,
                    "spooled")
    net.daemon.wait(lambda: net.daemon.status()["endpoints"][0]["state"] == "down", 30, "down")
    net.proxy.accept()
    net.wait_settled()
    net.check(by_token_or_origin(net))


def test_every_kind_of_fault(network):
    net = network()
    net.produce()
    net.wait_settled()
    net.arm()
    net.produce()
    net.wait_settled()
    assert all(name.startswith("reused") for name in net.missed()), net.missed()
    strike_reused(net)
    net.check(by_token_or_origin(net))
    attempts = (net.daemon.metric("spoold_endpoint_inserts_total")
                + net.daemon.metric("spoold_endpoint_errors_total"))
    assert check_nothing_repeated(net.proxy) <= attempts
    for name in ("slow-o", "slow-answer-o", "idle-fin-o"):
        assert net.daemon.stream_status(name)["retries"] == 0, name
    if not net.server.modern:
        # It takes an orderly end between two blocks for the end of the body.
        asked = [e for e in net.daemon.events("batch.asked") if e["stream"] == "cut-block-fin-o"]
        assert asked and 0 < int(asked[0]["stored"]) < ROWS, asked
    refuse(net)


def die_while_all_strike(net, kill, start, late=False):
    """While every fault holds an insert up, the daemon or the server is killed. late: what the proxy
    has of it goes on only when that is back."""
    net.produce()
    net.wait_settled()
    struck = Together({n: f for n, f in net.faults.items() if not n.startswith("reused")})
    net.arm()
    net.produce()
    try:
        struck.wait(net.daemon)
        kill()
        if late:
            start()
    finally:
        struck.go()
    if not late:
        start()
    net.wait_settled()
    net.produce()
    net.wait_settled()


def test_every_kind_of_fault_and_spoold_dies(network):
    net = network(stall_timeout="5m",  # it is to die before it gives up, on a slow machine too
                  ask_delay="8s")      # and to ask when the proxy has passed on what it had
    die_while_all_strike(net, net.daemon.kill9, net.daemon.start, late=True)
    net.check(by_token_or_origin(net))
    check_nothing_repeated(net.proxy)


@pytest.mark.long
def test_every_kind_of_fault_and_clickhouse_dies(network):
    net = network(stall_timeout="30s")
    die_while_all_strike(net, net.server.kill, net.server.start)
    net.check(lambda name: name.endswith("-o"))
    check_nothing_repeated(net.proxy)


LARGE_BYTES, LARGE_CUT = 64 << 20, 40 << 20
LARGE_RECORDS, LARGE_RECORD_BYTES = 66, 1 << 20


def noise():
    """A letter has six bits, so that LZ4 finds next to nothing twice."""
    return base64.b64encode(os.urandom(LARGE_RECORD_BYTES * 3 // 4)).decode()


def large_batch(kafka, daemon, topic, first):
    """Rows of one batch that do not compress and wait for `spoolctl resume`; where they end."""
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 60, "acknowledged")
    daemon.ctl("pause", "s")
    for at in range(first, first + LARGE_RECORDS, 11):
        kafka.send(topic, [json.dumps({"id": i, "name": noise()}) for i in range(at, at + 11)])
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == LARGE_RECORDS, 60, "spooled")
    return first + LARGE_RECORDS


def cut_large(between, daemon, how, stage):
    """The next batch is let go and cut there; what went by until then."""
    fault = between.arm(Fault(stage, how=how, at=LARGE_CUT if stage == "body" else 0), "s")
    daemon.ctl("resume", "s")
    daemon.wait(fault.struck.is_set, 60, f"cut {stage}")
    cut = next(r for r in between.inserts("s") if r.fault is fault)
    assert cut.length > LARGE_BYTES
    assert cut.sent == {"head": 0, "body": LARGE_CUT}.get(stage, cut.length)


@pytest.mark.long
def test_large_bodies_are_cut(kafka, server, proxy, spoold):
    """Bodies of 64 MiB: cut before, inside and behind them; connections refused, then taken again."""
    between, topic = proxy(server), kafka.create_topic(1)
    table = server.create_table("id UInt64, name String, " + ORIGIN_COLUMNS, order_by="id",
                                window=1000)
    daemon = spoold(kafka, server, [stream(
        "s", topic, table, columns=[{"name": "id"}, {"name": "name"}] + ORIGIN,
        flush={"bytes": "1GiB", "interval": "1s"})], spool={"segment_bytes": "1GiB"},
        clickhouse={"urls": [between.url]}).start()
    sent = 0
    for how in ("fin", "rst"):
        for stage in ("head", "body", "sent", "answer"):
            sent = large_batch(kafka, daemon, topic, sent)
            cut_large(between, daemon, how, stage)
            daemon.wait_rows(server, table, sent, 90)
        sent = large_batch(kafka, daemon, topic, sent)
        between.refuse(how)
        daemon.ctl("resume", "s")
        daemon.wait_state("s", "down")
        between.accept()
        daemon.wait_rows(server, table, sent, 90)
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: sent}, 60, "committed")
    assert server.unique(table) == server.count(table) == sent
    assert not daemon.events("batch.possible_duplicates")
    check_nothing_repeated(between)
    assert daemon.sigterm() == 0
