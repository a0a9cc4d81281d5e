# SPDX-License-Identifier: Apache-2.0
"""kill -9 under full load: at named points of a record's life, and at random."""
import os
import random
import time

from support.spoold import stream

# What is in flight at a kill, and the points that show it.
POINTS = {
    "append": ["append.before_commit", "append.after_commit"],
    "seal": ["seal.before_commit", "seal.after_commit"],
    "send": ["send.started", "send.body_done"],
    "answered": ["answer.ok", "ack.before_commit"],
    "acknowledged": ["ack.after_commit", "kafka.commit_sent"],
}
KILLS = int(os.environ.get("KILLS", "25"))
BATCH = 20000


def unacknowledged(kafka, group, topic):
    done = kafka.committed_offsets(group, topic)
    return sum(end - (done[p] or 0) for p, end in kafka.end_offsets(topic).items())


def plan(rng):
    """One entry a kill: the kind, and the failpoints (None: at a random time)."""
    kinds = [k for k in POINTS for _ in range((KILLS + 6) // 7)]
    kinds = (kinds + ["random"] * KILLS)[:KILLS] if KILLS >= 7 else list(POINTS)
    rng.shuffle(kinds)
    for kind in kinds:
        if kind == "random":
            yield kind, None
        else:
            yield kind, f"{rng.choice(POINTS[kind])}=kill@{rng.randint(1, 3)}"


def test_killed_again_and_again_under_load(kafka, server, spoold):
    seed = int(os.environ.get("SEED", time.time_ns() % 10**9))
    print(f"seed {seed}")
    rng = random.Random(seed)
    topic = kafka.create_topic(4)
    table = server.create_bench_table(window=10000)
    total = 160000 * KILLS
    kafka.produce(topic, total)
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={
        "rows": BATCH, "interval": "100ms"})])
    hit = {}
    for kind, failpoints in plan(rng):
        if failpoints:
            daemon.launch(failpoints)  # it may be dead before it answers
            assert daemon.wait_exit(60) == -9, daemon.child.log_tail()
        else:
            daemon.start()
            before = server.count(table)
            daemon.wait(lambda: server.count(table) > before, 60, "rows")
            daemon.kill9()
        left = unacknowledged(kafka, daemon.group, topic)
        print(f"killed at {failpoints or 'a random time'} ({kind}), {left} rows unacknowledged")
        assert left >= 100000
        hit[kind] = hit.get(kind, 0) + 1
        for partition, offset in kafka.committed_offsets(daemon.group, topic).items():
            if offset:  # nothing is committed that is not in the table
                ids = server.number(f"SELECT uniqExact(id) FROM {table} "
                                    f"WHERE id % 4 = {partition} AND intDiv(id, 4) < {offset}")
                assert ids == offset, f"partition {partition}: {ids} of {offset} committed"
    assert set(POINTS) <= set(hit), f"not every point was hit: {hit}"
    daemon.start()
    daemon.wait(lambda: server.unique(table) == total, 180, "all rows")
    daemon.wait(lambda: unacknowledged(kafka, daemon.group, topic) == 0, 30, "all committed")
    doubled = server.count(table) - total
    possible = sum(int(e["rows"]) for e in daemon.events("batch.possible_duplicates", whole=True))
    print(f"{total} records, {KILLS} kills {hit}, lost 0, doubled {doubled}, "
          f"possible by the log {possible}")
    if server.deduplicates:
        assert doubled == 0
    else:
        assert doubled <= possible
    assert daemon.ctl("verify", "--json", check=False)[1]["ok"]
    assert daemon.sigterm() == 0
    code, answer = daemon.ctl("verify", "--json", check=False)
    assert code == 0 and answer["ok"], answer
