# SPDX-License-Identifier: Apache-2.0
"""meta.mdb is lost or damaged: the daemon says so and touches nothing, spoolctl repair makes a new one
of what the segments say, and everything that was held arrives."""
import glob
import os

import pytest

from support import damage
from support.backlog import FIRST, Backlog
from support.spoold import spoolctl, stream


def meta(b):
    return os.path.join(b.daemon.spool, "meta.mdb")


def lost(path):
    os.unlink(path)


def emptied(path):
    os.truncate(path, 0)


def flipped(path):
    """Every record: each has some byte of both."""
    for at in range(2 * damage.PAGE, os.path.getsize(path), 64):
        damage.flip(path, at)


def refused(daemon):
    daemon.launch()
    assert daemon.wait_exit(30) == 1
    assert "spoolctl" in daemon.log() and "repair" in daemon.log()


def repair(daemon):
    """What it would do, then does, then has nothing to do."""
    before = sorted(glob.glob(daemon.spool + "/*"))
    code, answer = daemon.ctl("repair", "--json", check=False)
    assert code == 1 and not answer["ok"] and not answer["repaired"], answer
    assert sorted(glob.glob(daemon.spool + "/*")) == before
    code, answer = daemon.ctl("repair", "--yes", "--json")
    assert answer["ok"] and answer["repaired"], answer
    code, again = daemon.ctl("repair", "--json")
    assert again["ok"] and not again["repaired"], again
    return answer["found"]


@pytest.mark.parametrize("harm", [lost, emptied, flipped])
def test_a_lost_meta_is_made_anew(kafka, spoold, server, harm):
    b = Backlog(kafka, server, spoold, 40000)
    harm(meta(b))
    if harm is not lost:
        damaged = open(meta(b), "rb").read()
    refused(b.daemon)
    found = repair(b.daemon)
    assert any("stream s: number 1" in line for line in found), found
    if harm is not lost:
        kept, = glob.glob(meta(b) + ".old-*")
        assert open(kept, "rb").read() == damaged
    b.start()
    b.wait_all()
    b.check_end()
    b.start()  # and as ever from then on
    kafka.produce(b.topic, 1000, "--first", b.total)
    b.total += 1000
    b.wait_all()


def test_a_lost_meta_after_an_insert_without_an_answer(kafka, spoold, server):
    """Rows are in the table, and nothing here knows: it is asked."""
    b = Backlog(kafka, server, spoold, 40000, flush={"rows": 10000, "max_in_flight": 1})
    b.daemon.config["clickhouse"]["urls"] = b.urls
    b.daemon.launch("answer.ok=kill@2")
    assert b.daemon.wait_exit(60) == -9
    assert server.count(b.table) > FIRST
    lost(meta(b))
    repair(b.daemon)
    b.start()
    b.wait_all()  # none is missing, none came twice
    assert b.daemon.metric("spoold_possible_duplicates_total") == 0
    b.check_end()


def test_a_lost_meta_where_nothing_tells(kafka, spoold, engine):
    """Without origin columns all that may come twice is counted; what was committed does not come."""
    b = Backlog(kafka, engine, spoold, 40000, origin=False, flush={"rows": 10000})
    b.daemon.config["clickhouse"]["urls"] = b.urls
    b.daemon.launch("answer.ok=kill@3")
    assert b.daemon.wait_exit(60) == -9
    lost(meta(b))
    repair(b.daemon)
    b.start()
    b.daemon.wait(lambda: engine.unique(b.table) == b.total, 60, "all rows")
    b.wait_committed()
    assert engine.count(b.table) - b.total <= b.daemon.metric("spoold_possible_duplicates_total")
    b.check_end()


def test_a_lost_meta_and_segments_lost_with_it(kafka, spoold, engine):
    """Nobody knows any more which segments there were: what is missing between offsets is read again."""
    b = Backlog(kafka, engine, spoold, 150000)
    paths = damage.segments(b.daemon.spool, "s")
    assert len(paths) >= 5
    for path in (paths[0], paths[2]):
        os.unlink(path)
    lost(meta(b))
    found = repair(b.daemon)
    assert any("numbers are missing at 2 places" in line for line in found), found
    b.start()
    b.wait_all()
    assert b.daemon.stream_status("s")["state"] == "running"


def test_repair_leaves_a_running_spool_alone(spoold, engine):
    daemon = spoold(None, engine, [stream("events", [], "t")])
    daemon.start()
    code, _ = spoolctl("--spool", daemon.spool, "repair", "--yes", check=False)
    assert code == 1 and daemon.alive()
    assert daemon.sigterm() == 0
    assert daemon.ctl("repair")[0] == 0
