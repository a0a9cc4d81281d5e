# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every step by which the daemon makes something durable, instead of it and just behind it.

One life of a spool: records with bad ones among them, a table that is mended, a replay, a discard, more
records, an end in order. It runs once to count its steps (preload_step.c), then again from nothing for each kill, and is
compared exactly: every row once, every bad record one letter, the offsets committed to the end.

STEPS=n is how many kills the long test has, two for each step by default; STEPS_LIKE=regex takes those steps alone
("pwrite dead.mdb"), SEED=n the same ones again."""
import collections
import http.client
import json
import os
import random
import re
import time

import pytest

from support import campaign
from support.process import wait_until
from support.spoold import spoolctl, stream

COLUMNS = "id UInt64, value UInt8, _topic String, _partition Int32, _offset Int64"
ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
PARTITIONS = 2
# What is sent before the first start, then to the running daemon, then behind the replay: ids up to these.
FIRST, SECOND, LAST = 200, 300, 400
REFUSED = {20, 21, 61, 230}    # by the table alone, until it is mended
UNFIT = {30, 101, 231}         # does not fit the column, until it is wider
HOPELESS = {40, 81, 250, 333}  # stays a letter
DISCARDED = 40
TWICE = 3  # every so many lives are killed again while they recover
SOON = 16  # at one of so many first steps


def value_of(ident):
    return 7 if ident in REFUSED else 300 if ident in UNFIT else "none" if ident in HOPELESS else 1


def place(ident):
    """Partition and offset."""
    return ident % PARTITIONS, ident // PARTITIONS


class Life:
    """One run of the story. kills: for the first start, the one behind it and so on, ("BEFORE" or
    "BEHIND", number of the step); the starts behind those end as they like."""

    def __init__(self, kafka, engine, spoold, kills=()):
        self.kafka, self.engine, self.kills = kafka, engine, list(kills)
        self.topic = kafka.create_topic(PARTITIONS)
        self.table = engine.create_table(f"{COLUMNS}, CONSTRAINT c CHECK value != 7", order_by="id",
                                         window=1000)
        self.daemon = spoold(kafka, engine, [stream(
            "s", self.topic, self.table, flush={"rows": 50, "interval": "20ms"}, bad_ratio=1,
            columns=[{"name": "id"}, {"name": "value"}] + ORIGIN)],
            spool={"segment_bytes": "1MiB", "keep_acknowledged": "0s"})
        self.sent = 0
        self.rows, self.letters = set(), set()  # ids, as it is to be
        self.changing = set()  # letters that an operator's request is about
        self.starts, self.killed_at = 0, []

    # ---- the daemon, which may be killed at any moment ----

    def launch(self):
        env = {"LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_step.so"),
               "STEP_IN": self.daemon.spool, "STEP_LOG": self._step_log(self.starts)}
        if self.starts < len(self.kills):
            when, step = self.kills[self.starts]
            env[f"STEP_{when}"] = str(step)
        self.starts += 1
        self.daemon.launch(env=env)

    def _step_log(self, start):
        return os.path.join(self.daemon.directory, f"steps-{start}")

    def steps(self, start=0):
        """What the daemon began, "call path" each."""
        with open(self._step_log(start), encoding="utf-8") as f:
            return f.read().splitlines()

    def revive(self):
        """Starts it again where it was killed; any other end is a fault."""
        if self.daemon.alive():
            return
        code = self.daemon.wait_exit()
        assert code == -9 and self.starts <= len(self.kills), (code, self.daemon.child.log_tail())
        when, step = self.kills[self.starts - 1]
        self.killed_at.append(f"{when.lower()} {self.steps(self.starts - 1)[step - 1]}")
        self.check_at_rest()
        self.launch()

    def until(self, condition, what):
        """Waits for condition(), whatever is killed meanwhile."""
        def check():
            self.revive()
            return condition()
        return wait_until(check, 60, lambda: f"{what}, killed {self.kills}: {self.killed_at}\n"
                          + self.daemon.child.log_tail())

    def ask(self, method, path):
        """The answer's bytes; None where the daemon is not up, or not any more."""
        try:
            status, body = self.daemon.control(method, path, seconds=30)
        except (OSError, http.client.HTTPException):
            return None
        assert status in (200, 503), (status, body)
        return body if status == 200 else None

    # ---- what is there ----

    def has_rows(self):
        """Exactly these rows, each with its own place; one too many fails at once."""
        found = self.engine.rows(
            f"SELECT id, value, _partition, _offset, _topic FROM {self.table} ORDER BY id")
        ids = [int(row[0]) for row in found]
        assert len(set(ids)) == len(ids) and set(ids) <= self.rows, (
            f"{[i for i, n in collections.Counter(ids).items() if n > 1]} doubled, "
            f"{sorted(set(ids) - self.rows)} there, {self.kills}: {self.killed_at}")
        for row, ident in zip(found, ids):
            part, offset = place(ident)
            assert row == [str(ident), str(value_of(ident)), str(part), str(offset), self.topic], row
        return set(ids) == self.rows

    def has_letters(self):
        answer = self.ask("GET", "/dead?stream=s")
        if answer is None:
            return False
        found = sorted(self._ident(json.loads(line)) for line in answer.splitlines())
        return found == sorted(self.letters)

    def _ident(self, letter):
        ident = json.loads(letter["record"])["id"]
        part, offset = place(ident)
        assert (letter["origin"], letter["offset"]) == (f"kafka/{self.topic}/{part}", offset), letter
        return ident

    def is_committed(self):
        return (self.kafka.committed_offsets(self.daemon.group, self.topic)
                == self.kafka.end_offsets(self.topic))

    def check_at_rest(self):
        """The daemon is dead: its spool is whole, and what is committed is a row or a letter."""
        where = ("--spool", self.daemon.spool)
        if not os.path.exists(os.path.join(self.daemon.spool, "meta.mdb")):
            return  # killed before there was a spool
        code, told = spoolctl(*where, "verify", "--json", check=False)
        assert code == 0 and told["ok"], (self.killed_at, told)
        letters = spoolctl(*where, "dead", "ls", "s", "--json")[1]
        letters = letters if isinstance(letters, list) else [letters] if letters else []
        held = {self._ident(letter) for letter in letters} | self.changing
        held |= {int(row[0]) for row in self.engine.rows(f"SELECT id FROM {self.table}")}
        committed = self.kafka.committed_offsets(self.daemon.group, self.topic)
        lost = [i for i in range(self.sent)
                if place(i)[1] < (committed[place(i)[0]] or 0) and i not in held]
        assert not lost, f"{lost} committed, and neither row nor letter, {self.killed_at}"

    # ---- the story ----

    def feed(self, to):
        new = set(range(self.sent, to))
        self.kafka.send(self.topic, [{"value": json.dumps({"id": i, "value": value_of(i)}),
                                      "partition": place(i)[0]} for i in sorted(new)])
        self.sent = to
        bad = new & (HOPELESS if self.changing else REFUSED | UNFIT | HOPELESS)
        self.letters |= bad
        self.rows |= new - bad

    def settle(self, what):
        self.until(self.has_rows, f"{what}: rows")
        self.until(self.has_letters, f"{what}: letters")
        self.until(self.is_committed, f"{what}: committed to the end")

    def mend_and_replay(self):
        self.engine.query(f"ALTER TABLE {self.table} DROP CONSTRAINT c")
        self.engine.query(f"ALTER TABLE {self.table} MODIFY COLUMN value UInt16")
        self.changing = self.letters & (REFUSED | UNFIT)
        self.letters -= self.changing
        self.rows |= self.changing

        def replayed():
            told = json.loads(self.ask("POST", "/streams/s/dead/replay") or "{}")
            assert not told.get("stopped"), told
            return told.get("unsettled") == 0 and told["refused"] == len(self.letters)

        self.until(replayed, "replayed")

    def discard(self):
        part, offset = place(DISCARDED)
        self.changing = self.changing | {DISCARDED}
        self.letters.discard(DISCARDED)
        path = (f"/streams/s/dead/discard?origin=kafka/{self.topic}/{part}"
                f"&from={offset}&to={offset}")
        self.until(lambda: self.ask("POST", path) is not None, "discarded")

    def end(self):
        """In order, unless it is killed while it ends."""
        while self.daemon.sigterm() != 0:
            self.revive()
            self.settle("killed at the end")
        self.check_at_rest()
        self.engine.drop_table(self.table)
        self.kafka.tool.run("delete", self.topic)

    def live(self):
        """The steps of the first start."""
        self.feed(FIRST)
        self.launch()
        self.settle("first")
        self.feed(SECOND)
        self.settle("second")
        self.mend_and_replay()
        self.settle("replayed")
        self.discard()
        self.feed(LAST)
        self.settle("last")
        self.end()
        steps = self.steps()
        self.daemon.remove()
        return steps


def plan(rng, steps, count):
    """The kills of so many lives: spread over all the steps, instead of them and behind them."""
    like = os.environ.get("STEPS_LIKE", "")
    at = [(when, number) for number, step in enumerate(steps, 1) if re.search(like, step)
          for when in ("BEFORE", "BEHIND")]
    count = min(count or len(at), len(at))
    chosen = [at[int((i + rng.random()) * len(at) / count)] for i in range(count)]
    return [[kill] + ([(rng.choice(("BEFORE", "BEHIND")), rng.randint(1, SOON))] if i % TWICE == 0 else [])
            for i, kill in enumerate(chosen)]


def kill_at_steps(kafka, engine, spoold, count=None):
    """count: lives; None: two for each step."""
    seed = int(os.environ.get("SEED", time.time_ns() % 10**9))
    print(f"seed {seed}")
    rng, started = random.Random(seed), time.monotonic()
    steps = Life(kafka, engine, spoold).live()
    for call in (r"rename streams/s/\d+\.seg\.new", r"unlink streams/s/\d+\.seg", "pwrite dead.mdb",
                 "pwrite meta.mdb"):
        assert any(re.fullmatch(call, step) for step in steps), f"no {call} among {steps}"
    lives = plan(rng, steps, count)
    killed, again = [], 0
    for number, kills in enumerate(lives):
        life = Life(kafka, engine, spoold, kills)
        life.live()
        killed += life.killed_at[:1]
        again += len(life.killed_at[1:])
        print(f"{number}: {kills}: {life.killed_at}")
    campaign.REPORTS.append(
        f"each step: {len(steps)} steps, {len(lives)} lives, killed {len(killed)} and {again} again "
        f"while they recovered, nothing lost or doubled, {time.monotonic() - started:.0f} s in all")
    # How many steps a life takes depends on how its records come; few end before their kill.
    assert len(killed) * 10 >= len(lives) * 7, f"only {len(killed)} of {len(lives)} were killed"


def test_killed_at_some_steps(kafka, engine, spoold):
    kill_at_steps(kafka, engine, spoold, 24)


@pytest.mark.long
def test_killed_at_each_step(kafka, engine, spoold):
    kill_at_steps(kafka, engine, spoold, int(os.environ.get("STEPS", "0")) or None)
