# SPDX-License-Identifier: Apache-2.0
"""The power of the spool's disk fails at the named points that the load of test_powercut.py does not
pass: a table that is asked, a new epoch, rows encoded anew, letters that are replayed or sent elsewhere.
Each begins as the test does that kills there, and ends with the same: nothing lost, nothing doubled
(but letters in a table or topic, which come at least once).
"""
import json
import os
import shutil
import threading

import pytest

from support.owners import Group
from support.process import stopped
from support.spoold import stream
from test_kill_reencode import Killed

ASKED = ["ask.answered"]
EPOCH = ["epoch.taken"]
REENCODED = ["reencode.buried", "reencode.sealed"]
SENT = ["dead_out.arrived", "dead_out.arrived@2"]
REPLAYED = ["dead_change.before_commit", "dead_change.after_commit", "replay.noted",
            "replay.appended", "replay.removed", "dead_change.before_commit@2",
            "dead_change.after_commit@2", "replay.appended@2"]
# The points that are cut here.
ELSEWHERE = {step.partition("@")[0] for step in ASKED + EPOCH + REENCODED + SENT + REPLAYED}
DEAD_TABLE = ("stream String, origin String, offset Int64, code Int32, reason String, detail String,"
              " column String, position UInt64, record String, key Nullable(String), headers String,"
              " attempts UInt32, timestamp Nullable(DateTime64(3)), received_at Nullable(DateTime64(3)),"
              " first_at Nullable(DateTime64(3)), last_at Nullable(DateTime64(3))")
GOES_ON = (0, 0.2)  # seconds that the daemon has after the cut


@pytest.fixture
def spoold(disk, spoold):
    """Makes daemons whose spool is on the disk."""
    def make(*args, **config):
        daemon = spoold(*args, **config)
        daemon.spool = daemon.config["spool"]["path"] = os.path.join(disk.path, "spool")
        os.mkdir(daemon.spool)
        os.sync()  # the directory itself is the operator's
        return daemon
    return make


def cut_at(disk, daemon, step, goes_on=0, meanwhile=None):
    """Starts the daemon, which stops at the step ("name" or "name@n"), and cuts. meanwhile: what makes it
    pass there, run in a thread once it answers."""
    point, _, passage = step.partition("@")
    at = f"{point}=stop@{passage or 1}"
    thread = threading.Thread(target=meanwhile)
    if meanwhile:
        daemon.start(at)
        thread.start()
    else:
        daemon.launch(at)
    daemon.wait(lambda: stopped(daemon.pid), 60, f"stopped at {step}")
    disk.cut_under(daemon, goes_on)
    if meanwhile:
        thread.join()


def letters_of(daemon):
    found = daemon.ctl("dead", "ls", "s", "--json")[1]
    return ([found] if isinstance(found, dict) else found) or []


def test_cut_when_the_table_has_answered(kafka, engine, disk, spoold):
    """Rows are stored and nobody knows; the table, which has no tokens, is asked again after each cut."""
    group = Group(kafka, engine, spoold, 1)
    group.table = engine.create_bench_table(origin=True)
    daemon = group.daemon()
    kafka.produce(group.topic, 1000)
    cut_at(disk, daemon, "answer.ok")
    assert engine.count(group.table) > 0
    for point in ASKED:
        for goes_on in GOES_ON:
            cut_at(disk, daemon, point, goes_on)
    daemon.start()
    group.drain(1000)
    assert group.doubled() == 0
    assert daemon.metric("spoold_possible_duplicates_total") == 0
    assert daemon.sigterm() == 0
    assert daemon.ctl("verify", "--json")[1]["ok"]


def test_cut_while_rows_held_are_discarded(kafka, engine, disk, spoold):
    """The commit that begins a new epoch says that the rows of the one before are not to be sent."""
    group = Group(kafka, engine, spoold, 1)
    daemon = group.daemon().start()
    kafka.produce(group.topic, 1000)
    group.drain(1000)
    assert daemon.sigterm() == 0
    daemon.config["clickhouse"]["urls"] = ["http://127.0.0.1:9"]  # nobody answers
    daemon.start()
    kafka.produce(group.topic, 1000, "--first", 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 1000, 30, "rows spooled")
    assert daemon.sigterm() == 0
    group.wait_gone()
    kafka.commit(group.name, group.topic, 0, 900)
    daemon.config["clickhouse"]["urls"] = [engine.url]
    for point in EPOCH:
        cut_at(disk, daemon, point)
    daemon.start()
    group.drain(2000)
    assert daemon.stream_status("s")["rows_spooled"] == 0
    assert group.doubled() == 100  # 900 to 999, as asked
    assert daemon.sigterm() == 0
    assert daemon.ctl("verify", "--json")[1]["ok"]


def test_cut_while_rows_are_encoded_anew(kafka, engine, disk, spoold):
    flow = Killed(kafka, engine, spoold, origin=True)
    for point in REENCODED:
        for goes_on in GOES_ON:
            cut_at(disk, flow.daemon, point, goes_on)
    assert flow.finish() == 0
    assert flow.daemon.metric("spoold_possible_duplicates_total") == 0


@pytest.mark.parametrize("to", ["table", "topic"])
def test_cut_while_letters_are_sent(kafka, engine, disk, spoold, to):
    """Each arrives, those sent before a cut once more; and each is a letter of the spool still."""
    topic, dead_topic = kafka.create_topic(1), kafka.create_topic(1)
    table = engine.create_table("id UInt64")
    dead_table = engine.create_table(DEAD_TABLE, name=table + "_dead")
    kafka.send(topic, [f'{{"id":-{i}}}' for i in range(1, 601)] + ['{"id":1}'])
    daemon = spoold(kafka, engine, [stream("s", topic, table, dead_letters={
        to: {"table": dead_table, "topic": dead_topic}[to]})])
    for step in SENT:
        for goes_on in GOES_ON:
            cut_at(disk, daemon, step, goes_on)
    daemon.start()
    daemon.wait_rows(engine, table, 1)
    daemon.wait(lambda: len(letters_of(daemon)) == 600, 30, "all letters")
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters_waiting"] == 0, 60, "all sent")
    records = [m["value"] for m in kafka.read(dead_topic)] if to == "topic" else \
        engine.query(f"SELECT record FROM {dead_table} FORMAT TSVRaw").splitlines()
    assert len(records) > 600
    assert set(records) == {f'{{"id":-{i}}}' for i in range(1, 601)}
    assert sorted(le["offset"] for le in letters_of(daemon)) == list(range(600))
    assert daemon.sigterm() == 0
    assert daemon.ctl("verify", "--json")[1]["ok"]


LETTERS, UNFIT = 5000, 50  # two chunks of a replay


def test_cut_at_each_step_of_a_replay(kafka, engine, disk, spoold, tmp_path):
    """Some letters still do not fit. Each step begins with the same spool."""
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, v UInt8", window=100)
    kafka.send(topic, [f'{{"id":{i},"v":{-1 if i % (LETTERS // UNFIT) == 0 else 300}}}'
                       for i in range(LETTERS)])
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: LETTERS}, 60, "all read")
    assert daemon.sigterm() == 0
    shutil.copytree(daemon.spool, tmp_path / "spool")
    engine.query(f"ALTER TABLE {table} MODIFY COLUMN v UInt16")
    for i, step in enumerate(REPLAYED):
        shutil.rmtree(daemon.spool)
        shutil.copytree(tmp_path / "spool", daemon.spool)
        os.sync()
        engine.query(f"TRUNCATE TABLE {table}")
        cut_at(disk, daemon, step, GOES_ON[i % 2],
               lambda: daemon.ctl("dead", "replay", "s", check=False))
        daemon.start()
        told = daemon.ctl("dead", "replay", "s", "--json", check=False)[1]
        assert (told["refused"], told["unsettled"]) == (UNFIT, 0), (step, told)
        daemon.wait_rows(engine, table, LETTERS - UNFIT)
        assert engine.unique(table) == LETTERS - UNFIT, step
        left = [json.loads(le["record"])["id"] for le in letters_of(daemon)]
        assert sorted(left) == list(range(0, LETTERS, LETTERS // UNFIT)), step
        assert daemon.sigterm() == 0
        assert engine.count(table) == LETTERS - UNFIT, step
        assert daemon.ctl("verify", "--json")[1]["ok"], step
