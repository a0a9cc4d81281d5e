# SPDX-License-Identifier: Apache-2.0
"""The power of the spool's disk fails under full load: at named points of a record's life, and at
random. What was written and not synchronised is gone then, which kill -9 does not show."""
import os
import random
import signal
import time

from support.process import hold_for
from support.spoold import spoolctl, stream

# After these the daemon stands still, and the disk goes.
POINTS = [
    "append.before_commit", "append.after_commit", "roll.after_create",
    "seal.before_commit", "seal.after_commit", "send.started", "send.body_done",
    "answer.ok", "ack.before_commit", "ack.after_commit", "kafka.commit_sent",
    "unlink.before", "unlink.after",
]
CUTS = int(os.environ.get("CUTS", "8"))
RECORDS = 100000  # of each cut
PARTITIONS = 4


def stopped(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "T"


def plan(rng):
    """One entry a cut: the point (None: at a random time), and whether the daemon runs on for a
    while on the dead disk."""
    points = []
    while len(points) < CUTS:
        points += rng.sample(POINTS, len(POINTS)) if points else rng.sample(POINTS, 6) + [None] * 2
    points = points[:CUTS]
    rng.shuffle(points)
    return [(point, rng.random() < 0.5) for point in points]


def run_to_cut(daemon, server, table, disk, point, rng):
    if point:
        daemon.launch(f"{point}=stop@{rng.randint(1, 3)}")  # it may stop before it answers
        daemon.wait(lambda: stopped(daemon.pid), 60, f"stopped at {point}")
    else:
        daemon.start()
        before = server.count(table)
        daemon.wait(lambda: server.count(table) > before, 60, "rows")
        hold_for(rng.random() * 0.2)
    disk.cut()


def check_after_cut(daemon, kafka, server, topic, table):
    """What the disk holds is whole, and nothing is committed that is not in the table."""
    code, answer = spoolctl("--spool", daemon.spool, "verify", "--json", check=False)
    assert code == 0 and answer["ok"], answer
    for partition, offset in kafka.committed_offsets(daemon.group, topic).items():
        if offset:
            ids = server.number(f"SELECT uniqExact(id) FROM {table} "
                                f"WHERE id % {PARTITIONS} = {partition} "
                                f"AND intDiv(id, {PARTITIONS}) < {offset}")
            assert ids == offset, f"partition {partition}: {ids} of {offset} committed"


def test_power_cut_again_and_again_under_load(kafka, engine, disk, spoold):
    seed = int(os.environ.get("SEED", time.time_ns() % 10**9))
    print(f"seed {seed}")
    rng = random.Random(seed)
    topic = kafka.create_topic(PARTITIONS)
    table = engine.create_bench_table(window=10000)
    total = RECORDS * CUTS
    kafka.produce(topic, total)
    spool = os.path.join(disk.path, "spool")
    os.mkdir(spool)
    os.sync()
    daemon = spoold(kafka, engine, [stream("s", topic, table, flush={
        "rows": 10000, "interval": "100ms"})], spool={"path": spool, "segment_bytes": "1MiB"})
    daemon.spool = spool
    for point, runs_on in plan(rng):
        run_to_cut(daemon, engine, table, disk, point, rng)
        if runs_on:  # it must not take for durable what the disk refuses
            daemon.child.signal(signal.SIGCONT)
            hold_for(0.5)
        if daemon.alive():
            daemon.kill9()
        disk.unmount()
        disk.mount()
        check_after_cut(daemon, kafka, engine, topic, table)
        print(f"cut at {point or 'a random time'}{', ran on' if runs_on else ''}: "
              f"{engine.count(table)} of {total} in the table")
    daemon.start()
    daemon.wait(lambda: engine.unique(table) == total, 120, "all rows")
    daemon.wait(lambda: all(kafka.committed_offsets(daemon.group, topic).get(p) == end
                            for p, end in kafka.end_offsets(topic).items()), 30, "all committed")
    doubled = engine.count(table) - total
    print(f"{total} records, {CUTS} cuts, lost 0, doubled {doubled}")
    assert doubled == 0
    assert daemon.sigterm() == 0
    check_after_cut(daemon, kafka, engine, topic, table)
