# SPDX-License-Identifier: Apache-2.0
"""kill -9 under load: of the daemon at every named point of a record's life, at random and while it
starts, of the server, of the broker, and of two of them together.

KILLS=n is how many on each server; CRASH_DIR=directory keeps the sums, so that a stopped run goes on.
"""
import os
import time

from support.campaign import LETTERS, Campaign, Chunk, failpoints
from support.load import Load, wait_hit
from support.process import hold_for, wait_until

CHUNK = 100  # kills of one daemon, with fresh tables and topics
# Only at the first start of a spool, where every chunk begins with it.
FIRST_START = "store.before_rename"
# Points that this load does not reach, and the test that does.
ELSEWHERE = {"reencode.buried": "test_kill_reencode.py", "reencode.sealed": "test_kill_reencode.py",
             "epoch.taken": "test_ownership.py", **LETTERS}
# How often each kind of kill comes, beside the points.
RANDOM = {"point": 40, "running": 25, "starting": 15, "server": 8, "server and spoold": 6,
          "broker": 3, "broker and spoold": 3}


class Kills:
    """Each method begins and ends with a dead daemon and living servers."""

    def __init__(self, load, chunk):
        self.load, self.chunk, self.rng = load, chunk, chunk.rng
        self.daemon, self.server, self.kafka = load.daemon, load.server, load.kafka

    def killed(self, kind, target="spoold"):
        self.chunk.count(target, kind)

    def wait_recovered(self, since):
        self.load.wait_arrived()
        self.chunk.recovered(since)

    def start(self):
        since = time.monotonic()
        self.daemon.launch()
        self.wait_recovered(since)

    def first_starts(self):
        for at in (1, 2):  # meta.mdb, dead.mdb
            self.daemon.launch(f"{FIRST_START}=kill@{at}")
            assert self.daemon.wait_exit(30) == -9, self.daemon.child.log_tail()
            self.killed(FIRST_START)

    def point(self, name):
        bulk = name.startswith(("roll.", "unlink."))
        rare = bulk or name.startswith(("ask.", "discard."))
        if name.startswith("ask."):
            self.leave_unknown()
        else:
            self.load.feed(bulk=bulk)
        self.daemon.launch(f"{name}=kill@{self.rng.randint(1, 1 if rare else 3)}")

        def feed():
            if name.startswith("discard."):
                self.load.feed_bad()
            else:
                self.load.feed(bulk=bulk)

        wait_hit(lambda: not self.daemon.alive(), feed, 30,
                 lambda: f"killed at {name}\n{self.daemon.child.log_tail()}")
        assert self.daemon.wait_exit() == -9, self.daemon.child.log_tail()
        self.killed(name)

    def leave_unknown(self):
        """A batch of which nobody knows whether it is stored, of the stream whose table can be asked;
        and a server that started since."""
        self.start()
        # Else the next life begins with batches that were stored and not acknowledged, whose answer
        # comes first.
        wait_until(self.all_acknowledged, 30, "all is acknowledged")
        self.kill_daemon("idle")
        self.load.feed_origin(100, refused=False)
        # A server that lives for a second only begins again in the same one, by its own clock.
        wait_until(lambda: self.server.number("SELECT uptime()") >= 3, 30, "a server of some age")
        self.daemon.launch("answer.ok=kill")
        assert self.daemon.wait_exit(30) == -9, self.daemon.child.log_tail()
        self.killed("answer.ok")
        self.server.kill()
        self.killed("before ask", self.server.name)
        self.server.start()

    def all_acknowledged(self):
        return self.daemon.answers() and not any(
            s["rows_spooled"] for s in self.daemon.status()["streams"])

    def kill_daemon(self, kind):
        self.daemon.kill9()
        self.killed(kind)

    def running(self):
        self.start()
        self.load.feed(bulk=self.rng.random() < 0.2)
        hold_for(self.rng.random() * 0.15)
        self.kill_daemon("running")

    def starting(self):
        self.load.feed()
        self.daemon.launch()
        hold_for(self.rng.random() * 0.15)
        self.kill_daemon("starting")

    def other(self, victim, name, both):
        self.start()
        self.load.feed()
        hold_for(self.rng.random() * 0.1)
        victim.kill()
        self.killed(f"{name}{' and spoold' if both else ''}", name)
        if both:
            hold_for(self.rng.random() * 0.1)
            self.kill_daemon(f"{name} and spoold")
        victim.start()
        since = time.monotonic()
        if both:
            self.daemon.launch()
        self.wait_recovered(since)
        self.kill_daemon("idle")

    def at_random(self):
        kind = self.rng.choices(list(RANDOM), RANDOM.values())[0]
        if kind == "point":
            self.point(self.rng.choice(self.points()))
        elif kind in ("running", "starting"):
            getattr(self, kind)()
        elif kind.startswith("server"):
            self.other(self.server, self.server.name, kind.endswith("spoold"))
        else:
            self.other(self.kafka, "broker", kind.endswith("spoold"))

    def points(self):
        """What this server's load passes: on 18.16 nothing is refused by the server."""
        names = set(failpoints()) - {FIRST_START} - set(ELSEWHERE)
        if not self.server.modern:
            names = {n for n in names if not n.startswith(("hunt.", "replace."))}
        return sorted(names)


def run_chunk(campaign, load, chunk, every_kind):
    kills = Kills(load, chunk)
    kills.first_starts()
    steps = []
    if every_kind:
        steps = [lambda n=name: kills.point(n) for name in kills.points()]
        steps += [kills.running, kills.starting]
        steps += [lambda v=victim, n=name, b=both: kills.other(v, n, b) for both in (False, True)
                  for victim, name in ((load.server, load.server.name), (load.kafka, "broker"))]
        chunk.rng.shuffle(steps)
    goal = min(CHUNK, campaign.left)
    while steps or chunk.done < goal:
        if steps:
            steps.pop()()
        else:
            kills.at_random()
        load.check_at_rest()
    kills.start()
    campaign.add(chunk, load.records, load.check_exact())
    load.end()


def test_killed_again_and_again(kafka, server, spoold):
    campaign = Campaign(f"kills with {server.name}", int(os.environ.get("KILLS", "30")))
    first = True
    while campaign.left:
        chunk = Chunk()
        load = Load(kafka, server, spoold, chunk.rng)
        run_chunk(campaign, load, chunk, first)
        if first and server.modern:
            missed = set(failpoints()) - set(ELSEWHERE) - set(chunk.kinds)
            assert not missed, f"points that killed nobody: {sorted(missed)}"
        first = False
    campaign.report()
    assert campaign.sums["lost"] == 0
