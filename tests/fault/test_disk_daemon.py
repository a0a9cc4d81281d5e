# SPDX-License-Identifier: Apache-2.0
"""The daemon on a disk that fails, fills up or turns read-only under it, and with damaged files of each
kind: one sentence, nothing lost, and it goes on where the disk does."""
import errno
import os
import shutil
import subprocess

import pytest

from support import damage
from support.backlog import Backlog
from support.process import wait_until
from support.spoold import stream


class Failing:
    """A daemon the writes of whose spool fail while a file is there."""

    def __init__(self, kafka, server, spoold, **env):
        self.kafka, self.server = kafka, server
        self.topic = kafka.create_topic(2)
        self.table = server.create_bench_table(window=1000)
        self.daemon = spoold(kafka, server, [stream("s", self.topic, self.table)],
                             spool={"segment_bytes": "1MiB", "keep_acknowledged": "0s"})
        self.flag = self.daemon.directory + "/broken"
        self.env = {"LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_fail.so"),
                    "FAIL_WHILE": self.flag, "FAIL_IN": self.daemon.spool + "/", **env}
        self.total = 0

    def produce(self, records):
        self.kafka.produce(self.topic, records, "--first", self.total)
        self.total += records

    def broken(self):
        with open(self.flag, "w", encoding="utf-8"):
            pass

    def mended(self):
        os.unlink(self.flag)

    def wait_all(self):
        self.daemon.wait_rows(self.server, self.table, self.total, 60)
        assert self.server.unique(self.table) == self.total
        self.daemon.wait(lambda: self.kafka.committed_offsets(self.daemon.group, self.topic) ==
                         self.kafka.end_offsets(self.topic), 60, "offsets committed to the end")


BREAKS = {
    "write": {"FAIL_CALLS": "write,pwrite,writev"},
    "short_write": {"FAIL_CALLS": "write,pwrite,writev", "FAIL_SHORT": "1"},
    "fsync": {"FAIL_CALLS": "fsync,fdatasync"},
    "read_only": {"FAIL_CALLS": "write,pwrite,writev", "FAIL_ERRNO": str(errno.EROFS)},
}


@pytest.mark.parametrize("how", BREAKS)
def test_the_disk_breaks_under_a_daemon(kafka, spoold, engine, how):
    f = Failing(kafka, engine, spoold, **BREAKS[how])
    f.produce(20000)
    f.daemon.start(env=f.env)
    f.wait_all()
    f.broken()
    f.produce(20000)
    assert f.daemon.wait_exit(60) == 1
    assert f.daemon.events("pipeline.fatal")
    f.daemon.launch(env=f.env)  # still broken
    assert f.daemon.wait_exit(30) == 1
    f.mended()
    f.daemon.start(env=f.env)
    f.wait_all()
    assert f.daemon.sigterm() == 0
    assert f.daemon.ctl("verify", "--json")[1]["ok"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["ENOSPC", "EDQUOT"])
def test_the_disk_is_full_under_a_daemon(kafka, spoold, engine, number):
    f = Failing(kafka, engine, spoold, FAIL_CALLS="write,pwrite,writev", FAIL_ERRNO=str(number))
    f.produce(20000)
    f.daemon.start(env=f.env)
    f.wait_all()
    f.broken()
    f.produce(20000)
    f.daemon.wait(lambda: f.daemon.events("spool.full") or f.daemon.events("meta.full") or
                  f.daemon.stream_status("s")["state"] == "full", 60, "it says so")
    assert f.daemon.alive()
    f.mended()
    f.wait_all()
    f.daemon.wait_state("s", "running", 60)
    assert f.daemon.sigterm() == 0


def test_a_partition_is_taken_on_a_full_disk(kafka, spoold, engine):
    """What is noted of a partition that is new finds no room: it waits, and is not the end."""
    f = Failing(kafka, engine, spoold, FAIL_CALLS="write,pwrite,writev", FAIL_ERRNO=str(errno.ENOSPC))
    f.produce(1000)
    f.daemon.start(env=f.env)
    f.wait_all()
    assert f.daemon.sigterm() == 0
    another = kafka.create_topic(2)
    kafka.produce(another, 1000, "--first", 1000)
    f.daemon.config["streams"][0]["topics"].append(another)
    f.daemon.config["kafka"]["group_id"] += "-2"  # a group that assigns anew at once
    f.broken()
    f.daemon.start(env=f.env)
    f.daemon.wait(lambda: "waits, since it can't be noted" in f.daemon.stream_status("s")["reason"], 30,
                  "it says so")
    assert f.daemon.events("meta.full")
    f.mended()
    f.daemon.wait_rows(engine, f.table, 2000)
    assert f.daemon.sigterm() == 0


def test_nothing_can_be_preallocated(kafka, spoold, engine):
    f = Failing(kafka, engine, spoold, FAIL_CALLS="fallocate", FAIL_ERRNO=str(errno.EOPNOTSUPP))
    f.broken()
    f.produce(20000)
    f.daemon.start(env=f.env)
    f.wait_all()
    assert f.daemon.sigterm() == 0


def test_the_file_system_turns_read_only(kafka, engine, disk, spoold):
    """As ext4 does it by itself after an error of the disk."""
    topic, table = kafka.create_topic(2), engine.create_bench_table(window=1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)],
                    spool={"path": disk.path + "/spool"})
    kafka.produce(topic, 10000)
    daemon.start()
    daemon.wait_rows(engine, table, 10000)
    subprocess.run(["mount", "-o", "remount,abort", disk.path], check=False)
    assert {"ro", "emergency_ro"} & set(options_of(disk.path))
    kafka.produce(topic, 10000, "--first", 10000)
    assert daemon.wait_exit(60) == 1
    assert daemon.events("pipeline.fatal")
    daemon.launch()
    assert daemon.wait_exit(30) == 1  # still read-only
    assert "Read-only file system" in daemon.log()
    disk.unmount()
    disk.mount()
    daemon.start()
    daemon.wait_rows(engine, table, 20000)
    assert engine.unique(table) == 20000
    assert daemon.sigterm() == 0


def options_of(path):
    with open("/proc/mounts", encoding="utf-8") as f:
        return next(line.split()[3].split(",") for line in f if line.split()[1] == path)


# ---- files at rest ----

@pytest.mark.parametrize("where", ["in_place", "beside"])
def test_a_segment_of_another_spool(kafka, spoold, engine, where):
    b, other = (Backlog(kafka, engine, spoold, 60000) for _ in range(2))
    foreign = damage.segments(other.daemon.spool, "s")[1]
    paths = damage.segments(b.daemon.spool, "s")
    target = paths[1] if where == "in_place" else paths[-1].replace(".seg", "")[:-2] + "77.seg"
    shutil.copy(foreign, target)
    b.start()
    b.wait_all()
    assert any("another spool" in e["reason"] for e in b.daemon.events("segment.damaged"))
    assert engine.number(f"SELECT count() FROM {b.table} WHERE _topic = '{other.topic}'") == 0
    assert b.daemon.stream_status("s")["state"] == "running"
    kafka.produce(b.topic, 1000, "--first", b.total)
    b.total += 1000
    b.wait_all()


@pytest.mark.parametrize("failpoints", [
    ("seal.after_commit=kill@1", "send.started=kill@1", "answer.ok=kill@1"),
    ("append.before_commit=kill@1", "append.after_commit=kill@1"),  # one commit may hold it all
    ("ack.before_commit=kill@1", "ack.after_commit=kill@1", "unlink.before=kill@1",
     "unlink.after=kill@1", "unlink.before=kill@2")], ids=["send", "append", "end"])
def test_killed_while_a_missing_segment_is_read_again(kafka, spoold, engine, failpoints):
    b = Backlog(kafka, engine, spoold, 100000)
    paths = damage.segments(b.daemon.spool, "s")
    os.unlink(paths[1])
    b.daemon.config["clickhouse"]["urls"] = b.urls
    for failpoint in failpoints:
        b.daemon.launch(failpoint)
        assert b.daemon.wait_exit(60) == -9, failpoint
    b.start()
    b.wait_all()
    named = {(e["origin"], int(e["first"]), int(e["last"]))
             for e in b.daemon.events("rows.damaged", whole=True)}
    assert len(named) == 2, named
    b.check_end()


def test_flipped_bytes_of_the_dead_letters(kafka, spoold, engine):
    """Each is found at the start, or does not matter; the file can be moved away."""
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64")
    daemon = spoold(kafka, engine, [stream("s", topic, table)])
    kafka.send(topic, ['{"id":-1}'] * 50 + ['{"id":1}'])
    daemon.start()
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == 50, 30, "letters")
    daemon.wait_rows(engine, table, 1)
    assert daemon.sigterm() == 0
    path = daemon.spool + "/dead.mdb"
    whole = open(path, "rb").read()
    refused = 0
    for page in range(len(whole) // damage.PAGE):
        if not any(whole[page * damage.PAGE:(page + 1) * damage.PAGE]):
            continue
        for at in (4, 700, damage.PAGE - 9):
            with open(path, "wb") as f:
                f.write(whole)
            damage.flip(path, page * damage.PAGE + at)
            daemon.launch()
            wait_until(lambda: not daemon.alive() or daemon.answers(), 30, "up or ended")
            if daemon.alive():
                assert daemon.sigterm() == 0
                continue
            refused += 1
            assert daemon.wait_exit(5) == 1
            assert "dead.mdb" in daemon.log()
    assert refused > 5
    os.rename(path, path + ".away")
    kafka.send(topic, ['{"id":2}'])
    daemon.start()
    daemon.wait_rows(engine, table, 2)
    assert daemon.sigterm() == 0


def test_a_copy_of_a_spool_beside_it(kafka, spoold, engine):
    """The same spool run twice: the group's static member is one of them at a time, the other ends."""
    b = Backlog(kafka, engine, spoold, 20000)
    copy = spoold(kafka, engine, [], spool={}, streams=b.daemon.config["streams"],
                  kafka=b.daemon.config["kafka"])
    os.rmdir(copy.spool)
    shutil.copytree(b.daemon.spool, copy.spool)
    b.start()
    b.wait_all()
    copy.start()
    assert b.daemon.wait_exit(60) == 1
    assert "fenced" in b.daemon.log().lower() or "kafka" in b.daemon.events("pipeline.fatal")[0]["reason"]
    kafka.produce(b.topic, 1000, "--first", b.total)
    b.total += 1000
    copy.wait_rows(engine, b.table, b.total)
    assert engine.unique(b.table) == b.total
    assert copy.sigterm() == 0
