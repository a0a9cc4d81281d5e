# SPDX-License-Identifier: Apache-2.0
"""Several ClickHouse endpoints that are servers of their own: who gets the rows, and never both."""
import threading

import pytest

from support.clickhouse import Engine
from support.proxy import Fault, refusal
from support.replicas import Replica, Shared
from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]


def columns_of(server):
    return [{"name": c.strip().split(" ")[0]} for c in server.bench_columns.split(",")] + ORIGIN


def make_table(pair, origin=True):
    table = pair[0].create_bench_table(window=1000, origin=origin)
    pair[1].create_bench_table(name=table, window=1000, origin=origin)
    return table


def ids(server, table):
    return {int(row[0]) for row in server.rows(f"SELECT id FROM {table}")}


def counts(pair, table):
    return [server.count(table) for server in pair]


def current(daemon):
    return [e["current"] for e in daemon.status()["endpoints"]]


class Rig:
    """Two servers, the first behind a proxy, a table in both, and a daemon that knows both."""

    def __init__(self, kafka, pair, proxy, spoold, origin=True, clock=None, **flush):
        self.kafka, self.pair = kafka, pair
        self.proxy = proxy(pair[0])
        self.topic = kafka.create_topic(1)
        self.table = make_table(pair, origin)
        options = {"columns": columns_of(pair[0])} if origin else {}
        self.daemon = spoold(kafka, pair[0], [stream("s", self.topic, self.table, flush={
            "interval": "100ms", **flush}, **options)])
        self.daemon.config["clickhouse"]["urls"] = [self.proxy.url, pair[1].url]
        self.produced = 0
        self.daemon.env = clock.env if clock else {}
        self.daemon.start()

    def produce(self, n):
        self.kafka.produce(self.topic, n, "--first", self.produced)
        self.produced += n

    def wait_counts(self, *wanted, seconds=60):
        self.daemon.wait(lambda: counts(self.pair, self.table) == list(wanted), seconds,
                         lambda: f"{wanted} rows, not {counts(self.pair, self.table)}")

    def unknown_at_the_first(self, n):
        """One batch whose answer is lost: the first server has its rows; then that one is away."""
        fault = self.proxy.arm(Fault("answer", how="rst", on_strike=self.proxy_away), "s")
        self.produce(n)
        self.daemon.wait(fault.struck.is_set, 30, "the answer is lost")
        self.daemon.wait(lambda: current(self.daemon) == [False, True], 30, "taken over")

    def proxy_away(self):
        listener, self.proxy._listener = self.proxy._listener, None
        listener.shutdown(2)
        listener.close()

    def committed(self):
        return self.kafka.committed_offsets(self.daemon.group, self.topic)[0] or 0


@pytest.fixture
def rig(kafka, pair, proxy, spoold):
    return lambda **options: Rig(kafka, pair, proxy, spoold, **options)


def test_the_next_endpoint_takes_over_and_gives_back(rig):
    r = rig()
    r.produce(1000)
    r.wait_counts(1000, 0)
    assert current(r.daemon) == [True, False]
    for turn in range(3):
        r.proxy.refuse()
        r.produce(1000)
        r.wait_counts(1000 * (turn + 1), 1000 * (turn + 1))
        assert current(r.daemon) == [False, True]
        assert r.daemon.stream_status("s")["state"] == "running"
        r.proxy.accept()
        r.daemon.wait(lambda: current(r.daemon) == [True, False], 30, "given back")
        r.produce(1000)
        r.wait_counts(1000 * (turn + 2), 1000 * (turn + 1))
    first, second = (ids(server, r.table) for server in r.pair)
    assert not first & second and len(first | second) == r.produced
    r.daemon.wait(lambda: r.committed() == r.produced, 20, "committed to the end")
    metrics = r.daemon.metrics()
    for url, inserts in ((r.proxy.url, 4), (r.pair[1].url, 3)):
        assert metrics[f'spoold_endpoint_inserts_total{{endpoint="{url}"}}'] >= inserts
        assert metrics[f'spoold_endpoint_up{{endpoint="{url}"}}'] == 1


def test_a_batch_of_unknown_outcome_waits_for_its_endpoint(rig):
    r = rig()
    r.produce(1000)
    r.wait_counts(1000, 0)
    r.unknown_at_the_first(500)
    r.daemon.wait(lambda: r.daemon.status()["endpoints"][0]["waiting_batches"] == 1, 20, "waits")
    assert r.daemon.events("batch.waits_for_endpoint")[0]["endpoint"] == r.proxy.url
    for _ in range(3):  # more batches than max_in_flight: it holds nothing back
        r.produce(1000)
        r.daemon.wait(lambda: sum(counts(r.pair, r.table)) == r.produced, 30, "flows on")
    r.wait_counts(1500, 3000)
    assert r.committed() == 1000  # up to the rows that nobody has confirmed
    assert r.daemon.stream_status("s")["state"] == "running"
    r.proxy.accept()
    r.daemon.wait(lambda: r.committed() == r.produced, 30, "committed to the end")
    assert counts(r.pair, r.table) == [1500, 3000]
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0
    assert r.daemon.status()["endpoints"][0]["waiting_batches"] == 0


def test_it_waits_over_kills_too(rig):
    """Also as many of them as there are slots, and over restarts with the endpoint away."""
    r = rig(rows=500, max_in_flight=2)
    r.produce(1000)
    r.wait_counts(1000, 0)
    faults = [r.proxy.arm(Fault("answer", action="stall"), "s") for _ in range(2)]
    for fault in faults:
        r.produce(500)
        r.daemon.wait(fault.struck.is_set, 30, "both slots wait for an answer")
    r.daemon.kill9()
    r.proxy.refuse()
    stored = r.pair[0].count(r.table)
    assert stored > 1000
    for _ in range(2):
        r.daemon.start()
        r.produce(2000)
        r.daemon.wait(lambda: sum(counts(r.pair, r.table)) >= r.produced - (2000 - stored), 40,
                      "flows on")
        r.daemon.wait(lambda: r.pair[1].count(r.table) >= r.produced - 2000, 40, "all but those")
        assert r.pair[0].count(r.table) == stored
        r.daemon.kill9()
    r.proxy.accept()
    r.daemon.start()
    r.daemon.wait(lambda: r.committed() == r.produced, 40, "committed to the end")
    first, second = (ids(server, r.table) for server in r.pair)
    assert not first & second and len(first | second) == r.produced == sum(counts(r.pair, r.table))
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0


def test_never_sent_is_sealed_anew_and_a_crash_knows_it(rig):
    """A batch sealed for the first endpoint, refused there, stored by the second; spoold dies before
    it hears so. After the restart it must ask the second, not the first, which is back by then."""
    r = rig()
    r.produce(1000)
    r.wait_counts(1000, 0)
    r.daemon.kill9()
    r.daemon.launch("answer.ok=kill@2")
    r.produce(1000)
    r.wait_counts(2000, 0)
    r.proxy.refuse()
    r.produce(1000)
    assert r.daemon.wait_exit(60) == -9, r.daemon.child.log_tail()
    assert counts(r.pair, r.table) == [2000, 1000]
    assert r.daemon.events("batch.replaced") and r.daemon.events("endpoint.down")
    r.proxy.accept()
    r.daemon.start()
    r.daemon.wait(lambda: r.committed() == 3000, 30, "committed to the end")
    r.produce(500)
    r.wait_counts(2500, 1000)
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0


def test_an_endpoint_that_never_returns(rig):
    """Its URL goes from the configuration: the rows go elsewhere, said and counted."""
    r = rig()
    r.produce(1000)
    r.wait_counts(1000, 0)
    r.unknown_at_the_first(500)
    r.produce(1000)
    r.wait_counts(1500, 1000)
    assert r.daemon.sigterm(seconds=20) == 0  # what waits for an endpoint is not waited for
    r.daemon.config["clickhouse"]["urls"] = [r.pair[1].url]
    r.daemon.start()
    r.wait_counts(1500, 1500)  # the first has them too: nobody could know
    r.daemon.wait(lambda: r.committed() == r.produced, 30, "committed to the end")
    assert ids(r.pair[0], r.table) | ids(r.pair[1], r.table) == set(range(r.produced))
    assert r.daemon.metric("spoold_possible_duplicates_total") == 500
    assert "no longer configured" in r.daemon.events("batch.possible_duplicates")[0]["reason"]


def test_each_endpoint_has_its_own_table(rig):
    """Nothing is sent to an endpoint by what another one's table looks like."""
    r = rig(origin=False)
    r.produce(1000)
    r.wait_counts(1000, 0)
    r.pair[1].query(f"DROP TABLE {r.table}")
    r.pair[1].create_table(r.pair[1].bench_columns.replace("value Float64", "value String"),
                           name=r.table, order_by="id")
    r.produce(1000)
    r.wait_counts(2000, 0)
    r.unknown_at_the_first(500)
    r.daemon.wait_state("s", "held")
    assert "value" in r.daemon.stream_status("s")["reason"]
    assert r.pair[1].count(r.table) == 0
    r.proxy.accept()
    r.daemon.wait_state("s", "running")
    r.produce(1000)
    r.daemon.wait(lambda: r.committed() == r.produced, 30, "committed to the end")
    assert r.pair[0].unique(r.table) == 3500 and r.pair[1].count(r.table) == 0
    doubled = r.pair[0].count(r.table) - 3500
    assert doubled == r.daemon.metric("spoold_possible_duplicates_total")
    if r.pair[0].deduplicates:
        assert doubled == 0  # by the token: the server was there all along


@pytest.mark.parametrize("paths", ["the same", "others"])
def test_replicas_take_over_unknown_batches(kafka, spoold, paths):
    """The first stores a batch, loses its answer and goes: a replica of the same table gets the same
    bytes under the same token; a table of another path does not."""
    shared = Shared()
    first = Replica("first", "/clickhouse/tables/t", shared)
    second = Replica("second", "/clickhouse/tables/" + ("t" if paths == "the same" else "u"), shared)
    topic = kafka.create_topic(1)
    daemon = spoold(kafka, first, [stream("s", topic, "t")])
    daemon.config["clickhouse"]["urls"] = [first.url, second.url]
    daemon.start()
    try:
        first.lose_answers = True
        kafka.produce(topic, 1000)
        daemon.wait(lambda: shared.attempts, 30, "an attempt")
        first.end()
        if paths == "the same":
            daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 1000, 30, "taken over")
            daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 1000}, 20,
                        "committed")
            assert shared.attempts[-1][0] == "second"
        else:
            daemon.wait(lambda: daemon.status()["endpoints"][0]["waiting_batches"] == 1, 20, "waits")
            kafka.produce(topic, 1000, "--first", 1000)
            daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 1000, 30, "flows on")
            assert daemon.stream_status("s")["rows_spooled"] == 1000
            lost = shared.attempts[0][1]
            assert [a[0] for a in shared.attempts if a[1] == lost] == ["first"] * (
                len(shared.attempts) - 1)
        for _, token, body in shared.attempts:
            assert shared.stored[token] == body
        assert daemon.metric("spoold_possible_duplicates_total") == 0
    finally:
        second.end()


def larger_than(limit, answer):
    return lambda body: answer if len(body) > limit() else None


def test_a_replica_that_lags_is_no_proof(kafka, spoold):
    """The first stores a batch, loses its answer and goes; the second has no memory for it, and knows
    of no row. What goes in halves may be there twice, and is counted."""
    shared = Shared()
    first, second = (Replica(name, "/clickhouse/tables/t", shared, origin=True)
                     for name in ("first", "second"))
    second.refuses = larger_than(lambda: 0.7 * len(shared.attempts[0][2]),
                                 refusal(241, "Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)"))
    topic = kafka.create_topic(1)
    daemon = spoold(kafka, first, [stream("s", topic, "t", columns=columns_of(Engine), flush={
        "rows": 4000, "interval": "1h"})])
    daemon.config["clickhouse"]["urls"] = [first.url, second.url]
    daemon.start()
    try:
        first.lose_answers = True
        kafka.produce(topic, 4000)
        daemon.wait(lambda: shared.attempts, 30, "an attempt")
        first.end()
        daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 4000, 60, "all in halves")
        token = shared.attempts[0][1]
        assert [a[0] for a in shared.attempts if a[1] == token and a[0] == "second"] == ["second"] * 3
        assert daemon.metric("spoold_possible_duplicates_total") == 4000
    finally:
        second.end()


MAY_NOT_READ = refusal(497, "Not enough privileges. (ACCESS_DENIED)", 403)


@pytest.fixture
def pair_of_one_table(kafka, spoold):
    """Two replicas of a table, of which the first may not be read, and took the first 1000 records."""
    shared = Shared()
    first, second = (Replica(name, "/clickhouse/tables/t", shared, origin=True)
                     for name in ("first", "second"))
    topic = kafka.create_topic(1)
    daemon = spoold(kafka, first, [stream("s", topic, "t", columns=columns_of(Engine), flush={
        "rows": 1000, "interval": "1h"})])
    daemon.config["clickhouse"]["urls"] = [first.url, second.url]
    first.refuses_to_tell = MAY_NOT_READ
    daemon.start()
    kafka.produce(topic, 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 1000, 30, "the first records")
    yield daemon, topic, shared, first, second
    first.end()
    second.end()


def test_a_replica_takes_what_its_endpoint_may_not_be_asked_about(kafka, pair_of_one_table):
    """The first, begun anew, lost an answer; the token is the replicas' common one, and tells."""
    daemon, topic, shared, first, second = pair_of_one_table
    before = len(shared.attempts)
    first.started, first.lose_answers = 2000, True
    kafka.produce(topic, 1000, "--first", 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 2000, 60, "taken over")
    assert daemon.events("batch.ask_failed")
    lost = shared.attempts[before]
    assert ("second", *lost[1:]) in shared.attempts
    assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_a_replica_is_asked_where_its_endpoint_may_not_be(kafka, pair_of_one_table):
    """No token tells, and the second lacks the rows for a while: they wait, and nothing else does."""
    daemon, topic, shared, first, second = pair_of_one_table
    first.refuses = lambda body: refusal(473, "Deadlock avoided. (DEADLOCK_AVOIDED)")
    before = len(shared.attempts)
    kafka.produce(topic, 1000, "--first", 1000)
    daemon.wait(lambda: len(shared.attempts) > before, 30, "an attempt")
    first.refuses = None
    daemon.wait(lambda: daemon.status()["endpoints"][0]["waiting_batches"] == 1, 30, "waits")
    kafka.produce(topic, 1000, "--first", 2000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 2000, 30, "flows on")
    assert daemon.stream_status("s")["state"] == "running"
    second.has = "".join(f"kafka/{topic}/0\t{offset}\n" for offset in range(1000, 2000))
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 3000, 60, "proved")
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 3000}, 20, "committed")
    assert len(shared.attempts) == before + 2
    assert daemon.metric("spoold_possible_duplicates_total") == 0


@pytest.mark.long
def test_a_replica_gets_what_an_avoided_endpoint_may_have(kafka, spoold):
    """The first has stored a batch, did not say so, and is up and takes no rows any more."""
    shared = Shared()
    first, second = (Replica(name, "/clickhouse/tables/t", shared) for name in ("first", "second"))
    topic = kafka.create_topic(1)
    daemon = spoold(kafka, first, [stream("s", topic, "t")])
    daemon.config["clickhouse"]["urls"] = [first.url, second.url]
    daemon.start()
    try:
        first.lose_answers = True
        first.refuses = lambda body: refusal(242, "Table is in readonly mode. (TABLE_IS_READ_ONLY)"
                                             ) if shared.stored else None
        kafka.produce(topic, 1000)
        daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 1000, 60, "taken over")
        assert daemon.events("endpoint.avoided")
        assert shared.attempts[-1] == ("second", *shared.attempts[0][1:])
        assert len(shared.stored) == 1
        assert daemon.metric("spoold_possible_duplicates_total") == 0
    finally:
        first.end()
        second.end()


# ---- up, and takes no rows -------------------------------------------------------------------------

only_engines = pytest.mark.parametrize("pair", ["engine"], indirect=True)


def readonly(server, table, on):
    server.query(f"ALTER TABLE {table} MODIFY SETTING table_readonly = {on}")


@only_engines
def test_an_endpoint_that_takes_no_rows_is_avoided(rig, clock):
    """It answers /ping and refuses inserts: after a while the next one gets them, and the first again
    once it takes some."""
    r = rig(clock=clock)
    r.produce(1000)
    r.wait_counts(1000, 0)
    readonly(r.pair[0], r.table, 1)
    clock.run(speed=5)  # it is given 5 s, and then avoided for 10
    for turn in range(2):
        r.produce(1000)
        r.wait_counts(1000, 1000 * (turn + 1))
    assert r.daemon.stream_status("s")["state"] == "running"
    assert r.daemon.events("endpoint.avoided")[0]["endpoint"] == r.proxy.url
    r.daemon.wait(lambda: r.committed() == r.produced, 30, "committed")
    readonly(r.pair[0], r.table, 0)

    def given_back():
        r.produce(10)
        return r.pair[0].count(r.table) > 1000
    r.daemon.wait(given_back, 90, "given back")
    r.daemon.wait(lambda: r.committed() == r.produced, 30, "committed to the end")
    first, second = (ids(server, r.table) for server in r.pair)
    assert not first & second and len(first | second) == r.produced == sum(counts(r.pair, r.table))
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0


@only_engines
@pytest.mark.long
def test_an_avoided_endpoint_is_tried_with_one_batch(rig):
    """What waits elsewhere is not sent there to be refused."""
    r = rig(rows=100, max_in_flight=4)
    r.produce(1000)
    r.wait_counts(1000, 0)
    readonly(r.pair[0], r.table, 1)
    r.produce(400)
    r.wait_counts(1000, 400)
    assert r.daemon.events("endpoint.avoided")
    r.daemon.ctl("pause", "s")
    r.produce(1000)
    r.daemon.wait(lambda: r.daemon.stream_status("s")["rows_spooled"] == 1000, 30, "spooled")
    before = len(r.proxy.inserts("s"))
    r.daemon.wait_log("endpoint.tried_again", 60)
    r.daemon.ctl("resume", "s")
    r.wait_counts(1000, 1400)
    assert len(r.proxy.inserts("s")) - before == 1
    assert len(r.daemon.events("endpoint.avoided")) == 2


@only_engines
def test_an_answer_is_judged_by_the_table_it_came_from(rig):
    """It comes when another endpoint has taken over and is what new work is described by: that the
    server failed while it stored the rows is not forgotten for that."""
    r = rig(origin=False)
    r.produce(1000)
    r.wait_counts(1000, 0)
    moved = threading.Event()

    def strike():
        r.proxy.leave_only_this()
        moved.wait(60)
    r.proxy.arm(Fault("answer", "garbage", on_strike=strike, garbage=refusal(
        1001, "std::exception: cannot rename (STD_EXCEPTION)")), "s")
    r.produce(500)
    r.wait_counts(1500, 0)
    r.produce(500)
    r.wait_counts(1500, 500)
    moved.set()
    r.daemon.wait_log("batch.token_lost")
    r.proxy.accept()
    r.daemon.wait(lambda: r.committed() == r.produced, 30, "committed to the end")
    assert r.daemon.metric("spoold_possible_duplicates_total") == 500


@only_engines
@pytest.mark.parametrize("origin", [True, False])
def test_rows_that_may_be_in_an_avoided_endpoint_stay(rig, clock, origin):
    """The answer is lost, then it takes no rows: asked where that can be, else the batch waits for it
    alone; no other endpoint gets its rows."""
    r = rig(origin=origin, clock=clock)
    r.produce(1000)
    r.wait_counts(1000, 0)
    clock.run(speed=5)
    fault = r.proxy.arm(Fault("answer", how="rst", on_strike=lambda: readonly(r.pair[0], r.table, 1)),
                        "s")
    r.produce(500)
    r.daemon.wait(fault.struck.is_set, 30, "the answer is lost")
    r.daemon.wait(lambda: r.daemon.events("endpoint.avoided"), 60, "avoided")
    r.produce(1000)
    r.wait_counts(1500, 1000)
    if origin:
        r.daemon.wait(lambda: r.committed() == r.produced, 60, "asked, and committed to the end")
    else:
        r.daemon.wait(lambda: r.daemon.status()["endpoints"][0]["waiting_batches"] == 1, 20, "waits")
        assert r.committed() == 1000
    assert r.daemon.stream_status("s")["state"] == "running"
    readonly(r.pair[0], r.table, 0)
    r.daemon.wait(lambda: r.committed() == r.produced, 90, "committed to the end")
    assert counts(r.pair, r.table) == [1500, 1000]
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0


@only_engines
def test_the_next_endpoint_is_cut_while_the_first_takes_no_rows(rig, proxy, clock):
    """Faults of the network at the one that has taken over; then the first takes rows again."""
    r = rig(clock=clock)
    second = proxy(r.pair[1])
    assert r.daemon.sigterm() == 0
    r.daemon.config["clickhouse"]["urls"] = [r.proxy.url, second.url]
    r.daemon.start()
    r.produce(1000)
    r.wait_counts(1000, 0)
    readonly(r.pair[0], r.table, 1)
    clock.run(speed=5)
    faults = [second.arm(Fault(stage, how=how), "s") for stage in ("body", "answer", "sent")
              for how in ("rst", "fin")]
    r.produce(1000)
    r.wait_counts(1000, 1000, seconds=90)
    for fault in faults:
        r.produce(500)
        r.daemon.wait(lambda: sum(counts(r.pair, r.table)) == r.produced, 60, "flows on")
    readonly(r.pair[0], r.table, 0)
    r.daemon.wait(lambda: r.committed() == r.produced, 90, "committed to the end")
    first, one = (ids(server, r.table) for server in r.pair)
    assert not first & one and len(first | one) == r.produced == sum(counts(r.pair, r.table))
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0
    assert any(f.struck.is_set() for f in faults)
