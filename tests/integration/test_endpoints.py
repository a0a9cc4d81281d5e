# SPDX-License-Identifier: Apache-2.0
"""Several ClickHouse endpoints that are servers of their own: who gets the rows, and never both."""
import threading

import pytest

from support.clickhouse import Engine
from support.process import hold_for
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


def both_up(daemon):
    return all(e["state"] == "up" for e in daemon.status()["endpoints"])


class Rig:
    """Two servers, the first behind a proxy, a table in both, and a daemon that knows both. The first
    has 1,000 rows already."""

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
        self.produce(1000)
        self.wait_counts(1000, 0)

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

    def wait_committed(self, seconds=30):
        self.daemon.wait(lambda: self.committed() == self.produced, seconds, "committed to the end")

    def check_apart(self):
        """Each row is in one of the two, once."""
        first, second = (ids(server, self.table) for server in self.pair)
        assert not first & second and len(first | second) == self.produced
        assert sum(counts(self.pair, self.table)) == self.produced


@pytest.fixture
def rig(kafka, pair, proxy, spoold):
    return lambda **options: Rig(kafka, pair, proxy, spoold, **options)


def test_the_next_endpoint_takes_over_and_gives_back(rig):
    r = rig()
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
    r.check_apart()
    r.wait_committed()
    metrics = r.daemon.metrics()
    for url, inserts in ((r.proxy.url, 4), (r.pair[1].url, 3)):
        assert metrics[f'spoold_endpoint_inserts_total{{endpoint="{url}"}}'] >= inserts
        assert metrics[f'spoold_endpoint_up{{endpoint="{url}"}}'] == 1


def test_a_batch_of_unknown_outcome_waits_for_its_endpoint(rig):
    r = rig()
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
    r.wait_committed()
    assert counts(r.pair, r.table) == [1500, 3000]
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0
    assert r.daemon.status()["endpoints"][0]["waiting_batches"] == 0


def test_it_waits_over_kills_too(rig):
    """Also as many of them as there are slots, and over restarts with the endpoint away."""
    r = rig(rows=500, max_in_flight=2)
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
    r.wait_committed(40)
    r.check_apart()
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0


def test_never_sent_is_sealed_anew_and_a_crash_knows_it(rig):
    """A batch sealed for the first endpoint, refused there, stored by the second; spoold dies before
    it hears so. After the restart it must ask the second, not the first, which is back by then."""
    r = rig()
    r.wait_committed()  # else the next start acknowledges these too, and dies one batch early
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
    r.unknown_at_the_first(500)
    r.produce(1000)
    r.wait_counts(1500, 1000)
    assert r.daemon.sigterm(seconds=20) == 0  # what waits for an endpoint is not waited for
    r.daemon.config["clickhouse"]["urls"] = [r.pair[1].url]
    r.daemon.start()
    r.wait_counts(1500, 1500)  # the first has them too: nobody could know
    r.wait_committed()
    assert ids(r.pair[0], r.table) | ids(r.pair[1], r.table) == set(range(r.produced))
    assert r.daemon.metric("spoold_possible_duplicates_total") == 500
    assert "no longer configured" in r.daemon.events("batch.possible_duplicates")[0]["reason"]


def test_batches_whose_endpoint_lost_its_table_hold_nothing_up(rig, proxy):
    """As many as there are slots; the first endpoint, which takes all else, is up."""
    r = rig(rows=500, max_in_flight=2)
    second = proxy(r.pair[1])
    assert r.daemon.sigterm() == 0
    r.daemon.config["clickhouse"]["urls"] = [r.proxy.url, second.url]
    r.daemon.start()
    r.daemon.wait(lambda: both_up(r.daemon), 30, "both up")
    r.proxy.refuse()
    r.produce(500)
    r.wait_counts(1000, 500)
    faults = [second.arm(Fault("answer", action="stall"), "s") for _ in range(2)]
    for fault in faults:
        r.produce(500)
        r.daemon.wait(fault.struck.is_set, 30, "both slots wait for an answer")
    stored = r.pair[1].count(r.table)
    r.pair[1].query(f"RENAME TABLE {r.table} TO {r.table}_away")
    second.refuse()
    r.proxy.accept()
    r.daemon.wait(lambda: current(r.daemon) == [True, False], 30, "given back")
    second.accept()
    r.daemon.wait(lambda: both_up(r.daemon), 30, "both up")
    r.produce(2000)
    r.daemon.wait_rows(r.pair[0], r.table, 3000, 30)
    assert r.daemon.status()["endpoints"][1]["waiting_batches"] == 2
    assert r.committed() == 1500
    r.daemon.wait(lambda: any("does not exist" in e["reason"] for e in r.daemon.events(
        "batch.waits_for_endpoint")), 30, "it says why they wait")
    r.pair[1].query(f"RENAME TABLE {r.table}_away TO {r.table}")
    r.wait_committed(90)
    assert counts(r.pair, r.table) == [3000, stored]
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0


def test_each_endpoint_has_its_own_table(rig):
    """Nothing is sent to an endpoint by what another one's table looks like."""
    r = rig(origin=False)
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
    r.wait_committed()
    assert r.pair[0].unique(r.table) == 3500 and r.pair[1].count(r.table) == 0
    doubled = r.pair[0].count(r.table) - 3500
    assert doubled == r.daemon.metric("spoold_possible_duplicates_total")
    if r.pair[0].deduplicates:
        assert doubled == 0  # by the token: the server was there all along


class ReplicaRig:
    """A daemon whose two endpoints are replicas of one table, or each of its own. The first stores what
    it gets, and its answers are lost."""

    def __init__(self, kafka, spoold, second="t", origin=False, ask_delay="1s", **flush):
        self.kafka, self.shared, self.topic = kafka, Shared(), kafka.create_topic(1)
        self.first, self.second = (
            Replica(name, f"/clickhouse/tables/{path}", self.shared, origin)
            for name, path in (("first", "t"), ("second", second)))
        self.first.lose_answers = True
        options = {"columns": columns_of(Engine)} if origin else {}
        self.daemon = spoold(kafka, self.first, [stream("s", self.topic, "t", flush=flush, **options)])
        self.daemon.config["clickhouse"].update(urls=[self.first.url, self.second.url],
                                                ask_delay=ask_delay)
        self.daemon.start()

    def stored_by_the_first(self, n):
        """It is away then."""
        self.kafka.produce(self.topic, n)
        self.daemon.wait(lambda: self.shared.stored, 30, "an attempt")
        self.first.end()

    def wait_inserted(self, n, seconds=60):
        self.daemon.wait(lambda: self.daemon.stream_status("s")["rows_inserted"] == n, seconds,
                         lambda: f"{n} rows: {self.daemon.stream_status('s')}")

    @property
    def possible_duplicates(self):
        return self.daemon.metric("spoold_possible_duplicates_total")

    def end(self):
        self.first.end()
        self.second.end()


@pytest.fixture
def replicas(kafka, spoold):
    rigs = []

    def make(**options):
        rigs.append(ReplicaRig(kafka, spoold, **options))
        return rigs[-1]
    yield make
    for rig in rigs:
        rig.end()


@pytest.mark.parametrize("second", ["t", "another"])
def test_replicas_take_over_unknown_batches(replicas, second):
    """A replica of the same table gets the same bytes under the same token; a table of another path
    does not."""
    r = replicas(second=second)
    r.stored_by_the_first(1000)
    if second == "t":
        r.wait_inserted(1000)
        r.daemon.wait(lambda: r.kafka.committed_offsets(r.daemon.group, r.topic) == {0: 1000}, 20,
                      "committed")
        assert r.shared.attempts[-1][0] == "second"
    else:
        r.daemon.wait(lambda: r.daemon.status()["endpoints"][0]["waiting_batches"] == 1, 20, "waits")
        r.kafka.produce(r.topic, 1000, "--first", 1000)
        r.wait_inserted(1000)  # it flows on
        assert r.daemon.stream_status("s")["rows_spooled"] == 1000
        lost = r.shared.attempts[0][1]
        assert [a[0] for a in r.shared.attempts if a[1] == lost] == ["first"] * (
            len(r.shared.attempts) - 1)
    for _, token, body in r.shared.attempts:
        assert r.shared.stored[token] == body
    assert r.possible_duplicates == 0


def test_a_replica_that_lags_is_no_proof(replicas):
    """The second has no memory for what the first has stored, and knows of no row. What goes in halves
    may be there twice, and is counted."""
    r = replicas(origin=True, rows=4000, interval="1h", ask_delay="0s")
    no_memory = refusal(241, "Memory limit exceeded. (MEMORY_LIMIT_EXCEEDED)")
    r.second.refuses = lambda body: (
        no_memory if len(body) > 0.7 * len(r.shared.attempts[0][2]) else None)
    r.stored_by_the_first(4000)
    r.wait_inserted(4000)
    token = r.shared.attempts[0][1]
    assert [a[0] for a in r.shared.attempts if a[1] == token and a[0] == "second"] == ["second"] * 3
    assert r.possible_duplicates == 4000


MAY_NOT_READ = refusal(497, "Not enough privileges. (ACCESS_DENIED)", 403)


@pytest.fixture
def pair_of_one_table(replicas):
    """Two replicas of a table, of which the first may not be read, and took the first 1000 records."""
    r = replicas(origin=True, rows=1000, interval="1h")
    r.first.lose_answers = False
    r.first.refuses_to_tell = MAY_NOT_READ
    r.kafka.produce(r.topic, 1000)
    r.wait_inserted(1000)
    return r.daemon, r.topic, r.shared, r.first, r.second


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
    daemon.wait(lambda: second.asked, 30, "the second is asked, and lacks them")
    second.has = "".join(f"1\t{offset}\n" for offset in range(1000, 2000))  # of the first origin asked for
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] == 3000, 60, "proved")
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 3000}, 20, "committed")
    assert len(shared.attempts) == before + 2
    assert daemon.metric("spoold_possible_duplicates_total") == 0


@pytest.mark.long
def test_a_replica_gets_what_an_avoided_endpoint_may_have(replicas):
    """The first has stored a batch, did not say so, and is up and takes no rows any more."""
    r = replicas()
    readonly_now = refusal(242, "Table is in readonly mode. (TABLE_IS_READ_ONLY)")
    r.first.refuses = lambda body: readonly_now if r.shared.stored else None
    r.kafka.produce(r.topic, 1000)
    r.wait_inserted(1000)
    assert r.daemon.events("endpoint.avoided")
    assert r.shared.attempts[-1] == ("second", *r.shared.attempts[0][1:])
    assert len(r.shared.stored) == 1
    assert r.possible_duplicates == 0


# ---- up, and takes no rows -------------------------------------------------------------------------

only_engines = pytest.mark.parametrize("pair", ["engine"], indirect=True)


def readonly(server, table, on):
    server.query(f"ALTER TABLE {table} MODIFY SETTING table_readonly = {on}")


@only_engines
def test_an_endpoint_that_takes_no_rows_is_avoided(rig, clock):
    """It answers /ping and refuses inserts: after a while the next one gets them, and the first again
    once it takes some."""
    r = rig(clock=clock)
    readonly(r.pair[0], r.table, 1)
    clock.run(speed=5)  # it is given 5 s, and then avoided for 10
    for turn in range(2):
        r.produce(1000)
        r.wait_counts(1000, 1000 * (turn + 1))
    assert r.daemon.stream_status("s")["state"] == "running"
    assert r.daemon.events("endpoint.avoided")[0]["endpoint"] == r.proxy.url
    r.wait_committed()
    readonly(r.pair[0], r.table, 0)

    def given_back():
        r.produce(10)
        return r.pair[0].count(r.table) > 1000
    r.daemon.wait(given_back, 90, "given back")
    r.wait_committed()
    r.check_apart()
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0


@only_engines
def test_an_avoided_endpoint_is_tried_with_one_batch(rig, clock):
    """What waits elsewhere is not sent there to be refused: one batch is, of those that slots are free
    for."""
    r = rig(clock=clock, rows=100, max_in_flight=4)
    readonly(r.pair[0], r.table, 1)
    clock.run(speed=5)
    r.produce(400)
    r.wait_counts(1000, 400)
    assert r.daemon.events("endpoint.avoided")
    r.daemon.ctl("pause", "s")
    for waiting in range(100, 900, 100):  # a block each, and so a batch
        r.produce(100)
        r.daemon.wait(lambda n=waiting: r.daemon.stream_status("s")["rows_spooled"] == n, 30, "spooled")
    before = len(r.proxy.inserts("s"))
    r.daemon.wait_log("endpoint.tried_again", 60)
    clock.run(speed=1)
    trial = r.proxy.arm(Fault("answer", "stall"), "s")
    r.daemon.ctl("resume", "s")
    assert trial.struck.wait(60)
    hold_for(1)  # none follows while it waits for its answer
    trial.release()
    r.wait_counts(1000, 1200)
    assert len(r.proxy.inserts("s")) - before == 1
    assert len(r.daemon.events("endpoint.avoided")) == 2


@only_engines
def test_an_answer_is_judged_by_the_table_it_came_from(rig):
    """It comes when another endpoint has taken over and is what new work is described by: that the
    server failed while it stored the rows is not forgotten for that."""
    r = rig(origin=False)
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
    r.wait_committed()
    assert r.daemon.metric("spoold_possible_duplicates_total") == 500


@only_engines
@pytest.mark.parametrize("origin", [True, False])
def test_rows_that_may_be_in_an_avoided_endpoint_stay(rig, clock, origin):
    """The answer is lost, then it takes no rows: asked where that can be, else the batch waits for it
    alone; no other endpoint gets its rows."""
    r = rig(origin=origin, clock=clock)
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
    r.wait_committed(90)
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
    r.wait_committed(90)
    r.check_apart()
    assert r.daemon.metric("spoold_possible_duplicates_total") == 0
    assert all(f.struck.is_set() for f in faults)
