#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Two daemons under load for some time, with everything going wrong at random: one is killed again
and again, the other lives through it all and must not grow. Their servers are killed and stand still, the
network between lies and breaks, disks fill up, break and lose their power, clocks jump, columns come
and go, letters are replayed.

    make soak MINUTES=20                    SEED=n repeats the plan, SOAK_FLAGS="--server clickhouse"

What is sent is counted, and so is what arrived in the end: rows, dead letters, commits. Exit 1 is a
loss, a double, a spool over its bound, or memory or descriptors that grow.
"""
import argparse
import os
import pathlib
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from support import campaign
from support.clickhouse import Engine, OldServer
from support.disk import Disk, disk_bytes
from support.kafka import Kafka, memory_directory
from support.load import Load
from support.process import anonymous_bytes, hold_for, wait_until
from support.proxy import Proxy
from support.spoold import Spoold
from trouble import BROKEN, DAY, Machine, random_fault

MIB = 1 << 20
SPOOL_BYTES = 96 * MIB
FEED_SECONDS = 0.4    # between two feeds
SESSION_MS = 6000     # a daemon that stands still longer is thrown out of its group
MEMORY_BYTES = 64 * MIB  # anonymous, at any time
MEMORY_GROWTH_MIB, DESCRIPTOR_GROWTH = 3, 3
WARM_UP_SHARE, WARM_UP_SECONDS = 0.25, 180
ACTIONS = {"nothing": 4, "kill": 6, "kill_at_point": 8, "kill_server": 4, "kill_broker": 1,
           "kill_all": 1, "stop": 3, "stop_server": 3, "stop_broker": 2, "outage": 2,
           "broker_outage": 1, "bulk": 3, "pause": 2, "network": 8, "refuse": 1, "cut_all": 1,
           "full_disk": 2, "broken_disk": 1, "cut_power": 2, "jump_clock": 2, "change_columns": 2,
           "replay": 2}


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


class Sample(typing.NamedTuple):
    seconds: float  # since the load began
    memory: int     # anonymous bytes
    descriptors: int

    def __str__(self):
        return f"{self.memory / MIB:.1f} MiB, {self.descriptors} descriptors"


def warm_samples(samples):
    """Those behind the warm-up: until each kind of trouble was there once or twice, the heaps of the
    threads grow to what the worst of it takes, and stay so. [] where next to nothing is left."""
    end = samples[-1].seconds
    begin = max(WARM_UP_SHARE * end, WARM_UP_SECONDS)
    return [s for s in samples if s.seconds >= begin] if end >= 2 * WARM_UP_SECONDS else []


def check_growth(what, points, slack):
    """Neither the last quarter of the points (time, value) lies above the first one, nor does the line
    through the last half rise, by more than slack."""
    quarter, half = len(points) // 4, points[len(points) // 2:]
    first, last = (statistics.median(value for _, value in part)
                   for part in (points[:quarter], points[-quarter:]))
    rise = statistics.linear_regression(*zip(*half)).slope * (half[-1][0] - half[0][0])
    print(f"{what}: {first:.1f} in the first quarter behind the warm-up, {last:.1f} in the last, "
          f"{max(value for _, value in points):.1f} at most; the last half rises by {rise:.1f}")
    if max(last - first, rise) > slack:
        raise AssertionError(f"{what}: it grows")


class Soak:
    """disk: of the daemon that is killed; None where there is none whose power can be cut."""

    def __init__(self, kafka, server, disk, rng):
        self.kafka, self.server, self.disk, self.rng = kafka, server, disk, rng
        self.proxy = Proxy(server, remembers=False)
        config = {"kafka": {"properties": {"session.timeout.ms": str(SESSION_MS),
                                           "heartbeat.interval.ms": "500"}},
                  "clickhouse": {"stall_timeout": "3s", "urls": [self.proxy.url]}}
        path = {"path": os.path.join(disk.path, "spool")} if disk else {}
        if disk:
            os.mkdir(path["path"])
            os.sync()
        self.killed = Load(kafka, server, Spoold, rng, **config,
                           spool={"max_bytes": SPOOL_BYTES, **path})
        self.lives = Load(kafka, server, Spoold, rng, **config, spool={"max_bytes": SPOOL_BYTES})
        self.machines = [Machine(load.daemon) for load in (self.killed, self.lives)]
        self.weights = {name: n for name, n in ACTIONS.items() if disk or name != "cut_power"}
        self.has_column = False
        self.counts = {name: 0 for name in self.weights}
        self.samples = []  # of the one that lives
        self.started = time.monotonic()
        self.most_disk = 0
        self.kills = 0
        self.expected_dead = False  # a failpoint is set

    # ---- while time passes ----

    def sample(self):
        pid = self.lives.daemon.pid
        self.samples.append(Sample(time.monotonic() - self.started, anonymous_bytes(pid),
                                   descriptors(pid)))
        for load in (self.killed, self.lives):
            used = disk_bytes(load.daemon.spool)
            self.most_disk = max(self.most_disk, used)
            if used > SPOOL_BYTES:
                raise AssertionError(f"{load.daemon.spool} takes {used} bytes")

    def check_alive(self):
        if not self.lives.daemon.alive():
            raise AssertionError(f"it ended:\n{self.lives.daemon.child.log_tail()}")
        if self.killed.daemon.alive():
            return
        code = self.killed.daemon.wait_exit()
        if code != -9 or not self.expected_dead:
            raise AssertionError(f"it ended with {code}:\n{self.killed.daemon.child.log_tail()}")
        self.kills += 1
        self.restart()

    def restart(self, failpoints=None, env=None):
        self.expected_dead = failpoints is not None
        self.killed.daemon.launch(failpoints, env)

    def run_for(self, seconds, feed=True):
        """Lets time pass under load."""
        end = time.monotonic() + seconds
        while True:
            self.check_alive()
            self.sample()
            if feed:
                for load in (self.killed, self.lives):
                    load.feed(plain=self.rng.randrange(50, 1500),
                              origin=self.rng.randrange(2, 60))
            left = end - time.monotonic()
            if left <= 0:
                return
            hold_for(min(left, FEED_SECONDS))

    # ---- what goes wrong ----

    def nothing(self):
        self.run_for(self.rng.random() * 3)

    def kill(self, env=None):
        self.killed.daemon.kill9()
        self.kills += 1
        self.restart(env=env)

    def kill_at_point(self):
        points = [p for p in campaign.failpoints() if p != "store.before_rename"]
        self.kill()
        self.killed.daemon.kill9()
        self.restart(f"{self.rng.choice(points)}=kill@{self.rng.randint(1, 20)}")

    def kill_server(self, seconds=0.0):
        self.server.kill()
        self.run_for(seconds)
        self.server.start()

    def outage(self):
        self.kill_server(self.rng.random() * 15)

    def kill_broker(self, seconds=0.0):
        self.kafka.kill()
        self.run_for(seconds, feed=False)
        self.kafka.start()

    def broker_outage(self):
        self.kill_broker(self.rng.random() * 10)

    def kill_all(self):
        for victim in self.rng.sample([self.server, self.kafka, self.killed.daemon.child], 3):
            victim.kill()
        self.kills += 1
        self.restart()
        self.server.start()
        self.kafka.start()

    def stop(self):
        """Either daemon stands still, sometimes so long that its partitions are given away."""
        child = self.rng.choice([self.killed, self.lives]).daemon.child
        child.signal(signal.SIGSTOP)
        self.run_for(self.rng.choice([0.5, 2, 1.5 * SESSION_MS / 1000]))
        child.signal(signal.SIGCONT)

    def stop_server(self):
        self.server.freeze()
        try:
            self.run_for(self.rng.random() * 8)
        finally:
            self.server.thaw()

    def stop_broker(self):
        self.kafka.child.signal(signal.SIGSTOP)
        self.run_for(self.rng.random() * 8, feed=False)
        self.kafka.child.signal(signal.SIGCONT)

    def bulk(self):
        for load in (self.killed, self.lives):
            load.feed(bulk=True)

    def pause(self):
        name = self.rng.choice(["plain", "origin"])
        self.lives.daemon.ctl("pause", name)
        self.run_for(self.rng.random() * 3)
        self.lives.daemon.ctl("resume", name)

    def network(self):
        for _ in range(self.rng.randint(1, 6)):
            self.proxy.arm(random_fault(self.rng), self.rng.choice(["plain", "origin"]))
        self.run_for(self.rng.random() * 4)

    def refuse(self):
        self.proxy.refuse(self.rng.choice(["fin", "rst"]))
        self.run_for(self.rng.random() * 5)
        self.proxy.accept()

    def cut_all(self):
        self.proxy.cut_all(self.rng.choice(["fin", "rst"]))

    def full_disk(self):
        machine = self.rng.choice(self.machines)
        machine.disk_fails()
        self.run_for(self.rng.random() * 5)
        machine.disk_works()

    def broken_disk(self):
        """It ends at the first write that fails, and so does the next start."""
        machine, how = self.machines[0], self.rng.choice(BROKEN)
        self.kill(env=how)
        self.run_for(self.rng.random())
        machine.disk_fails()
        self.wait_ended()
        self.restart(env=how)
        self.wait_ended()
        machine.disk_works()
        self.restart()

    def wait_ended(self):
        """By an error that it saw."""
        def ended():
            self.killed.feed(plain=100, origin=10)
            hold_for(FEED_SECONDS)
            return not self.killed.daemon.alive()
        wait_until(ended, 60, "the end of the daemon with a broken disk")
        code = self.killed.daemon.wait_exit()
        assert code == 1, f"it ended with {code}:\n{self.killed.daemon.child.log_tail()}"

    def cut_power(self):
        self.disk.cut()
        hold_for(self.rng.random() * 0.2)
        if self.killed.daemon.alive():
            self.killed.daemon.kill9()
        self.kills += 1
        self.disk.unmount()
        self.disk.mount()
        self.restart()

    def jump_clock(self):
        for machine in self.machines:
            machine.clock.jump(self.rng.choice([1, 60, 3600, DAY, 400 * DAY])
                               * self.rng.choice([-1, 1]))

    def change_columns(self):
        """A column that no record has comes, and goes the next time; but not from the table of
        `plain`, which spools rows of all columns and is held until they are back."""
        for load in (self.killed, self.lives):
            if self.has_column:
                self.server.query(f"ALTER TABLE {load.origin_table} DROP COLUMN extra")
            else:
                for table in (load.plain_table, load.origin_table):
                    self.server.query(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS extra UInt8")
        self.has_column = not self.has_column

    def replay(self):
        """The letters are bad as before: they come back."""
        self.lives.daemon.ctl("dead", "replay", "origin", check=False)

    # ---- from start to end ----

    def run(self, seconds):
        for load in (self.killed, self.lives):
            load.feed(bulk=True)
            load.daemon.start()
            load.wait_arrived()
        self.started = started = time.monotonic()
        shown = 0.0
        while time.monotonic() < started + seconds:
            action = self.rng.choices(list(self.weights), self.weights.values())[0]
            self.counts[action] += 1
            getattr(self, action)()
            self.run_for(self.rng.random() * 2)
            if time.monotonic() > shown + 60:
                shown = time.monotonic()
                last = self.samples[-1]
                print(f"{shown - started:.0f} s: {self.killed.records + self.lives.records} records, "
                      f"{self.kills} kills, {last.memory / MIB:.1f} MiB, "
                      f"{last.descriptors} descriptors", flush=True)

    def check(self):
        if self.expected_dead:  # now, or at a point that it has not come to yet
            self.kill()
        for load in (self.killed, self.lives):
            found = load.check_exact(180, replayed=load is self.lives and self.counts["replay"] > 0)
            print(f"{'killed' if load is self.killed else 'lives'}: {load.records} records, "
                  f"{len(load.refused)} of them refused: {found}")
        print(", ".join(f"{n} {action}" for action, n in self.counts.items())
              + f"; {self.kills} kills of the daemon; "
              f"{self.most_disk / MIB:.1f} MiB of disk at most")
        self.check_flat()
        for load in (self.killed, self.lives):
            load.end()

    def check_flat(self):
        print(f"at the start: {self.samples[0]}; in the end: {self.samples[-1]}")
        most = max(s.memory for s in self.samples)
        assert most <= MEMORY_BYTES, f"{most} bytes of anonymous memory"
        warm = warm_samples(self.samples)
        if not warm:
            print("too short a run to say whether memory and descriptors grow")
            return
        check_growth("anonymous memory, MiB", [(s.seconds, s.memory / MIB) for s in warm],
                     MEMORY_GROWTH_MIB)
        check_growth("descriptors", [(s.seconds, s.descriptors) for s in warm], DESCRIPTOR_GROWTH)


def small_disk(directory):
    """One whose power can be cut; None, and says so, where there can be none (which fails in CI)."""
    disk = Disk(os.path.join(directory, "disk"), 1 << 30)
    failed = disk.create()
    if not failed:
        return disk
    print(f"no power cuts: {failed}", flush=True)
    assert os.environ.get("CI") != "true", failed
    return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--server", choices=["clickhouse", "engine"], default="engine")
    options = parser.parse_args()
    kind = {"clickhouse": OldServer, "engine": Engine}[options.server]
    seed = int(os.environ.get("SEED", time.time_ns() % 10**9))
    print(f"seed {seed}, {options.minutes:g} minutes with {kind.name}", flush=True)
    directory, data = tempfile.mkdtemp(prefix="spoold-soak-"), memory_directory()
    disk = small_disk(directory)
    kafka = Kafka(os.path.join(directory, "kafka"), data).start()
    server = kind(os.path.join(directory, kind.name)).start()
    soak = Soak(kafka, server, disk, random.Random(seed))
    try:
        soak.run(options.minutes * 60)
        soak.check()
    except BaseException:
        for load in (soak.killed, soak.lives):
            print(f"kept: {load.daemon.directory}", flush=True)
        raise
    finally:
        for child in (kafka, server):
            if child.alive():
                child.kill()
        if disk:
            disk.remove()
        for path in filter(None, (directory, data)):
            shutil.rmtree(path, ignore_errors=True)
    print("soak: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
