# SPDX-License-Identifier: Apache-2.0
"""No room at the worst moments: on the disk while dead letters are replayed, in the bounds while everything grows at once,
in the maps of meta.mdb and dead.mdb."""
import errno
import os
import shutil
import signal
import threading

import pytest

from support.disk import Du
from support.process import hold_for, wait_until
from support.spoold import stream

LETTERS, UNFIT = 5000, 50  # two chunks of a replay


def letters_of(daemon):
    found = daemon.ctl("dead", "ls", "s", "--json")[1]
    return ([found] if isinstance(found, dict) else found) or []


def state_of(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return f.read().rsplit(")", 1)[1].split()[0]


class Replayed:
    """A stream whose letters fit since its table was altered, on a disk that is full while a file is there."""

    def __init__(self, kafka, engine, spoold, where):
        self.engine, self.where = engine, where
        topic, self.table = kafka.create_topic(1), engine.create_table("id UInt64, v UInt8",
                                                                       window=100)
        kafka.send(topic, [f'{{"id":{i},"v":{-1 if i % (LETTERS // UNFIT) == 0 else 300}}}'
                           for i in range(LETTERS)])
        self.daemon = spoold(kafka, engine, [stream("s", topic, self.table)]).start()
        self.daemon.wait(lambda: kafka.committed_offsets(self.daemon.group, topic)
                         == {0: LETTERS}, 60, "all read")
        assert self.daemon.sigterm() == 0
        shutil.copytree(self.daemon.spool, where / "spool")
        engine.query(f"ALTER TABLE {self.table} MODIFY COLUMN v UInt16")
        self.flag = self.daemon.directory + "/full"
        self.daemon.env = {
            "LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_fail.so"),
            "FAIL_WHILE": self.flag, "FAIL_IN": self.daemon.spool + "/",
            "FAIL_CALLS": "write,pwrite,writev", "FAIL_ERRNO": str(errno.ENOSPC), "FAIL_MIN": "4096"}

    def again(self):
        shutil.rmtree(self.daemon.spool)
        shutil.copytree(self.where / "spool", self.daemon.spool)
        self.engine.query(f"TRUNCATE TABLE {self.table}")

    def full(self):
        with open(self.flag, "w", encoding="utf-8"):
            pass

    def replay_until(self, step):
        """A replay that goes as far as the step, "name" or "name@n"; from there on the disk is full."""
        point, _, passage = step.partition("@")
        self.daemon.start(f"{point}=stop@{passage or 1}")
        asks = threading.Thread(target=lambda: self.daemon.ctl("dead", "replay", "s", check=False))
        asks.start()
        wait_until(lambda: state_of(self.daemon.pid) == "T", 30, f"stopped at {step}")
        self.full()
        os.kill(self.daemon.pid, signal.SIGCONT)
        return asks

    def check_end(self, what):
        """Every letter is a row, or a letter; never both, and none is gone."""
        told = self.daemon.ctl("dead", "replay", "s", "--json", check=False)[1]
        assert (told["refused"], told["unsettled"]) == (UNFIT, 0), (what, told)
        self.daemon.wait_rows(self.engine, self.table, LETTERS - UNFIT)
        assert self.engine.unique(self.table) == LETTERS - UNFIT, what
        assert len(letters_of(self.daemon)) == UNFIT, what
        assert self.daemon.sigterm() == 0
        assert self.daemon.ctl("verify")[0] == 0, what


STEPS = ["dead_change.before_commit", "dead_change.before_commit@2", "replay.noted",
         "append.before_commit", "replay.appended", "replay.removed", "append.before_commit@2"]


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.long)],
                         ids=["goes_on", "killed"])
def test_the_disk_fills_up_during_a_replay(kafka, engine, spoold, tmp_path, killed):
    r = Replayed(kafka, engine, spoold, tmp_path)
    for step in STEPS if killed else STEPS[1::2]:
        r.again()
        asks = r.replay_until(step)
        hold_for(0.7, r.daemon.alive)
        assert engine.unique(r.table) == engine.count(r.table), step
        if killed:
            assert r.daemon.kill9() == -9
            r.daemon.start()  # the disk is full even so
        os.unlink(r.flag)
        asks.join()
        r.check_end(step)


# ---- the maps of meta.mdb and dead.mdb ----

class Mapped:
    """Two streams of a daemon whose maps are small: one gets letters of 100 KB, the other rows. The map that is 64 MiB at
    first and at most 64 GiB is 1 / divide of that."""

    def __init__(self, kafka, engine, spoold, divide):
        self.kafka, self.engine = kafka, engine
        self.bad, self.good = kafka.create_topic(1), kafka.create_topic(2)
        self.table, self.bench = engine.create_table("id UInt64, v String"), \
            engine.create_bench_table(window=1000)
        self.daemon = spoold(kafka, engine, [
            stream("s", self.bad, self.table, dead_letters={"max_bytes": "200MiB"}),
            stream("good", self.good, self.bench)],
            spool={"segment_bytes": "1MiB", "keep_acknowledged": "0s"})
        self.flag = self.daemon.directory + "/no-room"
        self.daemon.env = {
            "LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_map.so"),
            "MAP_DIVIDE": str(divide), "MAP_FAILS_WHILE": self.flag}
        self.letters = self.rows = 0

    def add_letters(self, count):
        self.kafka.send(self.bad, [f'{{"id":-1,"v":"{i}{"x" * 100000}"}}' for i in range(count)])
        self.letters += count

    def add_rows(self, count):
        self.kafka.produce(self.good, count, "--first", self.rows)
        self.rows += count

    def file_bytes(self, name):
        return os.path.getsize(os.path.join(self.daemon.spool, name))

    def flows(self):
        """The other stream does, whatever becomes of this one."""
        self.add_rows(5000)
        self.daemon.wait_rows(self.engine, self.bench, self.rows)
        self.daemon.wait(lambda: self.kafka.committed_offsets(self.daemon.group, self.good)
                         == self.kafka.end_offsets(self.good), 30, "committed")

    def has_letters(self, count):
        return self.daemon.stream_status("s")["dead_letters"] == count

    def end(self, state="running"):
        self.daemon.wait_state("s", state)
        assert self.daemon.sigterm() == 0
        assert self.daemon.ctl("verify", "--json")[1]["ok"]


def test_meta_and_dead_outgrow_their_maps(kafka, engine, spoold):
    m = Mapped(kafka, engine, spoold, 8192)  # 8 KiB at first
    m.daemon.start()
    m.add_letters(40)
    m.flows()
    m.daemon.wait(lambda: m.has_letters(40), 30, "letters")
    assert m.file_bytes("dead.mdb") > 3 << 20 and m.file_bytes("meta.mdb") > 40 << 10
    assert not m.daemon.events("meta.full")
    m.end()


def test_there_is_no_room_for_a_larger_map(kafka, engine, spoold):
    """The letters wait, the other stream flows, and it goes on by itself."""
    m = Mapped(kafka, engine, spoold, 128)  # 512 KiB at first
    m.daemon.start()
    m.flows()
    with open(m.flag, "w", encoding="utf-8"):
        pass
    m.add_letters(30)
    m.daemon.wait(lambda: "cannot map dead.mdb" in m.daemon.stream_status("s")["reason"], 30,
                  "it says so")
    m.flows()
    assert m.daemon.alive()
    os.unlink(m.flag)
    m.daemon.wait(lambda: m.has_letters(30), 30, "letters")
    m.end()


def test_dead_letters_to_the_end_of_the_largest_map(kafka, engine, spoold):
    """8 MiB here. The stream is held, the other flows, and letters can be removed, which makes room."""
    m = Mapped(kafka, engine, spoold, 8192)
    m.daemon.start()
    while "largest possible size" not in m.daemon.stream_status("s")["reason"]:
        assert m.letters < 120
        m.add_letters(20)
        m.daemon.wait(lambda: m.has_letters(m.letters) or
                      m.daemon.stream_status("s")["state"] == "held", 30, "stored or held")
    held = m.daemon.stream_status("s")
    assert held["state"] == "held" and 40 <= held["dead_letters"] < m.letters, held
    m.flows()
    gone = 0
    for to in (19, 39):  # pages that one commit gives up serve the one after the next
        told = m.daemon.ctl("dead", "discard", "s", "--to", to, "--yes", "--json")[1]
        gone += told["letters"]
    assert gone == 40
    m.daemon.wait(lambda: m.has_letters(m.letters - gone), 30, "others took their place")
    m.end()


def test_new_partitions_at_the_largest_map_of_meta(kafka, engine, spoold):
    """128 KiB here, for names of origins, and twice that for all else: partitions that have no name yet
    wait, the others flow."""
    m = Mapped(kafka, engine, spoold, 1 << 19)
    many = kafka.create_topic(300, name=f"{'n' * 200}-{os.urandom(3).hex()}")
    m.daemon.config["kafka"]["properties"].update({
        "max.poll.interval.ms": "3000", "session.timeout.ms": "3000", "heartbeat.interval.ms": "500"})
    m.daemon.start()
    m.flows()
    assert m.daemon.sigterm() == 0
    m.daemon.config["streams"][0]["topics"] = [m.bad, many]
    m.daemon.start()
    m.daemon.wait(lambda: [e for e in m.daemon.events("meta.full") if "partition" in e["action"]], 30,
                  "partitions wait")
    assert "largest possible size" in m.daemon.events("meta.full")[0]["error"]
    assert "largest possible size" in m.daemon.stream_status("s")["reason"]
    m.flows()
    m.end("held")


PARTITIONS = 20


class Sealing:
    """Streams with small batches, of which many are sealed while a server is frozen."""

    def __init__(self, kafka, engine, spoold, divide):
        self.kafka, self.engine, self.rounds, self.names = kafka, engine, 0, "abcd"
        self.topics = {name: kafka.create_topic(PARTITIONS, name=f"{name * 200}-{os.urandom(3).hex()}")
                       for name in self.names}
        self.tables = {name: engine.create_table("id UInt64", window=10000) for name in self.names}
        flush = {"rows": 10, "interval": "20ms", "max_in_flight": 64}
        self.daemon = spoold(kafka, engine, [
            stream(name, self.topics[name], self.tables[name], flush=flush) for name in self.names],
            spool={"segment_bytes": "1MiB"})
        self.daemon.env = {
            "LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_map.so"),
            "MAP_DIVIDE": str(divide)}

    def round(self):
        """A record to each partition."""
        for name in self.names:
            self.kafka.send(self.topics[name], [
                {"value": f'{{"id":{self.rounds * PARTITIONS + i}}}', "partition": i}
                for i in range(PARTITIONS)])
        self.rounds += 1

    def arrived(self):
        for name in self.names:
            self.daemon.wait_rows(self.engine, self.tables[name], self.rounds * PARTITIONS)
            assert self.engine.unique(self.tables[name]) == self.rounds * PARTITIONS

    def refused(self):
        return any("can't be sealed" in self.daemon.stream_status(name)["reason"]
                   for name in self.names)

    def seal_until_refused(self):
        while not self.refused():
            assert self.rounds < 40, [self.daemon.stream_status(name) for name in self.names]
            self.round()
            self.daemon.wait(lambda: self.refused() or all(
                self.daemon.stream_status(name)["records_in"] == self.rounds * PARTITIONS
                for name in self.names), 20, "taken or refused")


@pytest.mark.parametrize("killed", [False, True], ids=["goes_on", "killed"])
def test_seals_at_the_largest_map_of_meta(kafka, engine, spoold, killed):
    """192 KiB here for names and seals, 256 KiB for acknowledgements: what is sealed is acknowledged, and then there is
    room for the rest."""
    s = Sealing(kafka, engine, spoold, 1 << 19)
    s.daemon.start()
    s.round()
    s.arrived()
    engine.freeze()
    try:
        s.seal_until_refused()
        told = s.daemon.events("meta.full")[0]
        assert "largest possible size" in told["error"] and "no more is sealed" in told["action"]
        if killed:
            assert s.daemon.kill9() == -9
            s.daemon.start()
    finally:
        engine.thaw()
    s.arrived()
    s.daemon.wait(lambda: not s.refused(), 10, "sealed again")
    s.round()
    s.arrived()
    for name in s.names:
        s.daemon.wait_state(name, "running")
    assert s.daemon.sigterm() == 0
    assert s.daemon.ctl("verify", "--json")[1]["ok"]


# ---- the bounds ----

class Everything:
    """Streams a and b whose tables are gone, so that they fill the spool; letters has records that do not fit, some of which
    do when its table is altered."""

    def __init__(self, kafka, engine, spoold, letters_bytes="3MiB", **spool):
        self.kafka, self.engine = kafka, engine
        self.topics = {name: kafka.create_topic(2) for name in "ab"}
        self.tables = {name: engine.create_bench_table(window=1000) for name in "ab"}
        self.bad, self.table = kafka.create_topic(2), engine.create_table("id UInt64, v UInt8, t String",
                                                                           window=1000)
        self.daemon = spoold(kafka, engine, [
            *(stream(name, self.topics[name], self.tables[name]) for name in "ab"),
            stream("letters", self.bad, self.table, dead_letters={"max_bytes": letters_bytes})],
            spool={"segment_bytes": "1MiB", "keep_acknowledged": "0s", **spool})
        self.sent = dict.fromkeys("ab", 0)
        self.bad_sent = self.fitting = 0

    def add(self, name, rows):
        self.kafka.produce(self.topics[name], rows, "--first", self.sent[name])
        self.sent[name] += rows

    def add_bad(self, count, v):
        self.kafka.send(self.bad, [f'{{"id":{self.bad_sent + i},"v":{v},"t":"{os.urandom(300).hex()}"}}'
                                   for i in range(count)])
        self.bad_sent += count
        self.fitting += count if v > 0 else 0

    def stick(self):
        self.daemon.start()
        for name in "ab":
            self.add(name, 1000)
        for name in "ab":
            self.daemon.wait_rows(self.engine, self.tables[name], 1000)
            self.engine.drop_table(self.tables[name])

    def fill(self):
        for name in "ab":
            self.add(name, 700000)
        self.daemon.wait(self.are_full, 60, "a and b are full")

    def are_full(self):
        return all("bound" in self.status(name)["reason"] for name in "ab")

    def mend(self):
        for name in "ab":
            self.engine.create_bench_table(name=self.tables[name], window=1000)
        for name in "ab":
            self.daemon.wait_rows(self.engine, self.tables[name], self.sent[name] - 1000, 60)

    def status(self, name):
        return self.daemon.stream_status(name)

    def replay(self):
        return self.daemon.ctl("dead", "replay", "letters", "--json", check=False)[1]


@pytest.mark.parametrize("bound", ["max_bytes", pytest.param("min_free_bytes",
                                                           marks=pytest.mark.long)])
def test_the_bounds_hold_while_everything_grows(kafka, engine, request, spoold, bound):
    if bound == "max_bytes":
        e = Everything(kafka, engine, spoold, max_bytes="24MiB")
    else:  # of 32 MiB
        path = os.path.join(request.getfixturevalue("small_disk"), "spool")
        e = Everything(kafka, engine, spoold, max_bytes="1GiB", min_free_bytes="8MiB", path=path)
        e.daemon.spool = path
        os.mkdir(path)
    with Du(e.daemon.spool) as du:
        e.stick()
        e.add_bad(1500, 300)
        e.fill()
        e.add_bad(1500, 300)
        e.engine.query(f"ALTER TABLE {e.table} MODIFY COLUMN v UInt16")
        for _ in range(5):
            e.replay()
        assert e.are_full()
        e.mend()

        def replayed():  # those that waited for room become letters only now
            e.replay()
            return e.engine.count(e.table) == e.fitting
        e.daemon.wait(replayed, 30, lambda: f"{e.fitting} rows, not {e.engine.count(e.table)}")
        e.add_bad(6000, -1)
        e.daemon.wait(lambda: "dead letters hold" in e.status("letters")["reason"], 30,
                      lambda: f"letters at their bound: {e.status('letters')}")
    print(f"{du.most >> 10} KiB at most, {du.least_free >> 10} KiB free at least")
    assert 16 << 20 < du.most <= 24 << 20 and du.least_free >= 8 << 20
    assert e.engine.unique(e.table) == e.fitting
    for name in "ab":
        e.engine.drop_table(e.tables[name])


def test_letters_stop_at_the_bound_of_the_spool(kafka, engine, spoold):
    """Long before their own. Those that find no room wait, and become letters when there is some."""
    e = Everything(kafka, engine, spoold, letters_bytes="64MiB", max_bytes="24MiB")
    with Du(e.daemon.spool) as du:
        e.stick()
        e.fill()
        e.add_bad(8000, -1)  # as many bytes as the others leave, twice and more
        e.daemon.wait(lambda: "reached its bound" in e.status("letters")["reason"] or
                      e.status("letters")["dead_letters"] == e.bad_sent, 30, "stored or held")
        held = e.status("letters")
        assert held["state"] == "held" and held["dead_letters"] < e.bad_sent, held
        assert e.are_full()
        e.mend()
        e.daemon.wait(lambda: e.status("letters")["dead_letters"] == e.bad_sent, 30,
                      lambda: f"all are letters: {e.status('letters')}")
    print(f"{du.most >> 10} KiB at most")
    assert 20 << 20 < du.most <= 24 << 20
    e.daemon.wait_state("letters", "running")
    for name in "ab":
        e.engine.drop_table(e.tables[name])
