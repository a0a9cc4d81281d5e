# SPDX-License-Identifier: Apache-2.0
"""Every write to a spool's files is recorded, with what was promised in between; then the directory
is made as a power cut at each moment may leave it, and opened. Before and behind each boundary of
durability, with what was not synchronised lost, there, and torn at 4 KiB."""
import json
import os
import shutil
import subprocess
import tempfile
import time

import pytest

from support.spoold import stream

SEED = int(os.environ.get("SEED", time.time_ns() % 10**9))


@pytest.fixture
def directory():
    """In memory where there is room: thousands of spools are written to it."""
    path = tempfile.mkdtemp(prefix="writelog-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    yield path
    shutil.rmtree(path)


def support(name):
    return os.path.join(os.environ["SUPPORT_DIR"], name)


def recorder(directory, spool):
    return {"LD_PRELOAD": support("preload_writelog.so"), "WRITELOG": f"{directory}/log",
            "WRITELOG_DIR": spool}


def live(directory, seed, steps):
    """A life of a spool under the recorder, by libspool alone."""
    shutil.rmtree(directory)
    os.makedirs(f"{directory}/spool")
    subprocess.run([support("writelog"), "life", f"{directory}/spool", str(seed), str(steps)],
                   env={**os.environ, **recorder(directory, f"{directory}/spool")}, check=True)


def check(directory, kind, seed, torn):
    """Cuts the log everywhere; what was counted."""
    os.makedirs(f"{directory}/cut", exist_ok=True)
    done = subprocess.run([support("writelog"), kind, f"{directory}/log", f"{directory}/cut",
                           str(seed), str(torn)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stdout}"
    counted = json.loads(done.stdout)
    print(f"seed {seed}: {counted}")
    return counted


def test_every_prefix_of_a_spools_writes_holds_what_was_promised(directory):
    live(directory, SEED, 130)
    assert check(directory, "check", SEED, 2)["boundaries"] >= 200


@pytest.mark.long
def test_every_prefix_of_many_lives(directory):
    """N= boundaries at least; SEED= is the first life's."""
    wanted, boundaries, seed = int(os.environ.get("N", "10000")), 0, SEED
    while boundaries < wanted:
        live(directory, seed, 400)
        boundaries += check(directory, "check", seed, 4)["boundaries"]
        seed += 1
    print(f"{boundaries} boundaries, seeds {SEED} to {seed - 1}")


def test_every_prefix_of_a_daemons_writes_holds_what_was_committed(kafka, engine, spoold,
                                                                   directory):
    topic = kafka.create_topic(2)
    table = engine.create_bench_table(window=1000)
    kafka.produce(topic, 40000)
    daemon = spoold(kafka, engine, [stream("s", topic, table, flush={
        "rows": 5000, "interval": "50ms"})],
        spool={"segment_bytes": "1MiB", "keep_acknowledged": "0s"})
    daemon.start(env=recorder(directory, daemon.spool))
    daemon.wait_rows(engine, table, 40000)
    kafka.produce(topic, 20000, "--first", 40000)
    daemon.wait_rows(engine, table, 60000)
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                20, "offsets committed to the end")
    assert daemon.sigterm() == 0
    assert check(directory, "daemon", SEED, 1)["boundaries"] >= 20
