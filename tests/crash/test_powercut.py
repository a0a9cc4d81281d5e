# SPDX-License-Identifier: Apache-2.0
"""The power of the spool's disk fails under load: at every named point that it passes, and at random.
What was written and not synchronised is gone then, which kill -9 does not show. The other points have
their cuts in test_powercut_points.py.

CUTS=n is how many; CRASH_DIR=directory keeps the sums, so that a stopped run goes on.
"""
import os
import time

from support.campaign import Campaign, Chunk, failpoints
from support.load import Load, wait_hit
from support.process import hold_for, stopped
from test_powercut_points import ELSEWHERE

CHUNK = 100  # cuts of one disk
# The first start makes meta.mdb before dead.mdb; each chunk begins with both.
FIRST_START = "store.before_rename"


class Cuts:
    """Each method begins and ends with a dead daemon and a mounted disk."""

    def __init__(self, load, disk, chunk):
        self.load, self.disk, self.chunk, self.rng = load, disk, chunk, chunk.rng
        self.daemon = load.daemon

    def cut(self, kind):
        self.chunk.count("power", kind)
        self.disk.cut_under(self.daemon, 0.2 if self.rng.random() < 0.3 else 0)

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
    points = sorted(set(failpoints()) - {FIRST_START} - ELSEWHERE)
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
            missed = set(failpoints()) - ELSEWHERE - set(chunk.kinds)
            assert not missed, f"points that were not cut: {sorted(missed)}"
        first = False
    campaign.report()
    assert campaign.sums["lost"] == campaign.sums["doubled"] == 0
