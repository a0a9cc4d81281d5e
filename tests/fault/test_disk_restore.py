# SPDX-License-Identifier: Apache-2.0
"""A spool that is older than what was done with it: put back from a backup, whole."""
import shutil

import pytest

from support.backlog import FIRST, PARTITIONS, Backlog
from support.process import wait_until


@pytest.fixture
def restored(kafka, spoold):
    """Rows wait in a spool, a copy is made, the rows are delivered and committed, more records too;
    then the copy takes the spool's place."""
    def make(server, records, more, origin=False, then=None):
        b = Backlog(kafka, server, spoold, records, origin=origin)
        b.daemon.config["kafka"]["properties"]["session.timeout.ms"] = "6000"
        backup = b.daemon.directory + "/backup"
        shutil.copytree(b.daemon.spool, backup)
        b.start()
        b.wait_all()
        if more:
            kafka.produce(b.topic, more, "--first", b.total)
            b.total += more
            b.wait_all()
        if then:
            then(b)
        assert b.daemon.sigterm() == 0
        shutil.rmtree(b.daemon.spool)
        shutil.move(backup, b.daemon.spool)
        return b
    return make


@pytest.mark.parametrize("more", [0, 5000], ids=["as_long", "shorter"])
def test_a_restored_backup_sends_nothing_twice(restored, kafka, engine, more):
    b = restored(engine, 40000, more)
    b.start()
    kafka.produce(b.topic, 1000, "--first", b.total)
    b.total += 1000
    b.wait_all()  # fails where a row came twice: no column and no token tells
    held = b.total - 1000 - more - FIRST
    assert b.daemon.metric("spoold_already_delivered_rows_total") == held
    assert sum(int(e["rows"]) for e in b.daemon.events("rows.already_delivered")) == held
    assert b.daemon.metric("spoold_records_in_total") == 1000
    assert not b.daemon.events("partition.foreign_commit")
    b.check_end()
    b.start()  # and it stays so
    b.wait_all()
    assert b.daemon.metric("spoold_already_delivered_rows_total") == 0


def test_a_restored_backup_and_an_operators_offsets(restored, kafka, engine):
    """Offsets without our metadata say nothing of what was delivered: they are where to go on."""
    b = restored(engine, 20000, 0)
    wait_until(lambda: not kafka.group(b.daemon.group)["members"], 30, "the member is gone")
    for partition in range(PARTITIONS):
        end = kafka.end_offsets(b.topic)[partition]
        kafka.commit(b.daemon.group, b.topic, partition, end - 100)
    b.start()
    b.daemon.wait(lambda: engine.count(b.table) == b.total + 100 * PARTITIONS, 60, "the rows again")
    assert len(b.daemon.events("partition.foreign_commit")) == PARTITIONS
    assert not b.daemon.events("rows.already_delivered")
    assert engine.unique(b.table) == b.total


@pytest.mark.parametrize("anew, origin", [(10000, False), (40000, True)],
                         ids=["shorter", "longer_with_origin"])
def test_a_backup_from_before_the_topic_was_made_anew(restored, kafka, engine, anew, origin):
    """The group's commit is of a log that the backup does not know: it names a later epoch. The rows of
    the old log may be in the table, and a row of the new one at their offset tells nothing of them."""
    def made_anew(b):
        kafka.delete_topic(b.topic)
        kafka.create_topic(PARTITIONS, b.topic)
        kafka.produce(b.topic, anew, "--first", b.total)
        b.total += anew
        b.wait_all()
    held = 20000
    b = restored(engine, held, 0, origin=origin, then=made_anew)
    b.start()
    b.daemon.wait(lambda: len(b.daemon.events("partition.new_log")) == PARTITIONS, 60, "a later log")
    kafka.produce(b.topic, 1000, "--first", b.total)
    b.total += 1000
    b.daemon.wait(lambda: engine.count(b.table) == b.total + held, 60,
                  lambda: f"{b.total} and {held} again, not {engine.count(b.table)}")
    b.wait_committed()
    assert engine.unique(b.table) == b.total
    assert b.daemon.metric("spoold_possible_duplicates_total") == held
    assert b.daemon.metric("spoold_records_in_total") == 1000
