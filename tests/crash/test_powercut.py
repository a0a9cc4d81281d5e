# SPDX-License-Identifier: Apache-2.0
"""The power of the spool's disk fails under load: at every named point of a record's life, and at
random. What was written and not synchronised is gone then, which kill -9 does not show.

CUTS=n is how many; CRASH_DIR=directory keeps the sums, so that a stopped run goes on.
"""
import os
import signal
import time

from support.campaign import REPLAY, Campaign, Chunk, failpoints
from support.load import Load, wait_hit
from support.process import hold_for

CHUNK = 100  # cuts of one disk
# The first start makes meta.mdb before dead.mdb; each chunk begins with both.
FIRST_START = "store.before_rename"
# Not reached by this load, since the server lives on: a token holds then.
ELSEWHERE = {"ask.answered": "test_killed_again_and_again", "epoch.taken": "test_log_cut.py",
             "reencode.buried": "test_kill_reencode.py",
             "reencode.sealed": "test_kill_reencode.py", **REPLAY}


def stopped(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "T"


class Cuts:
    """Each method begins and ends with a dead daemon and a mounted disk."""

    def __init__(self, load, disk, chunk):
        self.load, self.disk, self.chunk, self.rng = load, disk, chunk, chunk.rng
        self.daemon = load.daemon

    def cut(self, kind):
        self.disk.cut()
        self.chunk.count("power", kind)
        if self.rng.random() < 0.3:  # it must not take for durable what the disk refuses
            self.daemon.child.signal(signal.SIGCONT)
            hold_for(0.2)
        if self.daemon.alive():
            self.daemon.kill9()
        self.disk.unmount()
        self.disk.mount()

    def at_point(self, name, at, feed):
        self.daemon.launch(f"{name}=stop@{at}")
        wait_hit(lambda: stopped(self.daemon.pid), feed, 30,
                 lambda: f"stopped at {name}\n{self.daemon.child.log_tail()}")
        self.cut(name)

    def first_starts(self):
        for at in (1, 2):  # meta.mdb, dead.mdb
            self.at_point(FIRST_START, at, self.load.feed)

    def point(self, name):
        bulk = name.startswith(("roll.", "unlink."))
        rare = bulk or name.startswith("discard.")
        self.load.feed(bulk=bulk)
        feed = self.load.feed_bad if name.startswith("discard.") else \
            lambda: self.load.feed(bulk=bulk)
        self.at_point(name, self.rng.randint(1, 1 if rare else 3), feed)

    def start(self):
        since = time.monotonic()
        self.daemon.launch()
        self.load.wait_arrived()
        self.chunk.recovered(since)

    def running(self):
        self.start()
        self.load.feed(bulk=self.rng.random() < 0.2)
        hold_for(self.rng.random() * 0.15)
        self.cut("running")

    def starting(self):
        self.load.feed()
        self.daemon.launch()
        hold_for(self.rng.random() * 0.15)
        self.cut("starting")


def run_chunk(campaign, load, disk, chunk, every_point):
    cuts = Cuts(load, disk, chunk)
    points = sorted(set(failpoints()) - {FIRST_START} - set(ELSEWHERE))
    steps = points + ["running", "starting"] if every_point else []
    chunk.rng.shuffle(steps)
    cuts.first_starts()
    goal = min(CHUNK, campaign.left)
    while steps or chunk.done < goal:
        kind = steps.pop() if steps else chunk.rng.choice(points + ["running"] * 15
                                                          + ["starting"] * 5)
        if kind in points:
            cuts.point(kind)
        else:
            getattr(cuts, kind)()
        load.check_at_rest()
    cuts.start()
    campaign.add(chunk, load.records, load.check_exact())
    load.end()


def test_power_cut_again_and_again(kafka, engine, disk, spoold):
    campaign = Campaign("power cuts", int(os.environ.get("CUTS", "50")))
    first = True
    while campaign.left:
        chunk = Chunk()
        spool = os.path.join(disk.path, f"spool-{campaign.sums['done']}")
        os.mkdir(spool)
        os.sync()  # the directory itself is the operator's
        load = Load(kafka, engine, spoold, chunk.rng, spool={"path": spool})
        run_chunk(campaign, load, disk, chunk, first)
        if first:
            missed = set(failpoints()) - set(ELSEWHERE) - set(chunk.kinds)
            assert not missed, f"points that were not cut: {sorted(missed)}"
        first = False
    campaign.report()
    assert campaign.sums["lost"] == campaign.sums["doubled"] == 0
