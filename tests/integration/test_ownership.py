# SPDX-License-Identifier: Apache-2.0
"""Who owns a partition, and what becomes of its rows when that changes: instances of one group that
join, leave, die and freeze; topics that grow, are made anew or lose records; offsets that are reset."""
import json
import signal

import pytest

from support.owners import Group
from support.process import hold_for, wait_until
from support.proxy import Fault, too_many_parts
from support.spoold import stream


def test_instances_join_and_leave(kafka, engine, spoold):
    group = Group(kafka, engine, spoold)
    first, second, third = group.daemon().start(), group.daemon(), group.daemon()
    producer = kafka.producer(group.topic, 10**9, "--rate", 5000)
    group.wait_owned(4)
    second.start()
    group.wait_owned(2, 2)
    third.start()
    group.wait_owned(1, 1, 2)
    for daemon in (first, second, third):
        daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] > 1000, 30, "its rows")
    assert second.sigterm() == 0
    group.wait_owned(2, 2)
    group.drain(producer.stop())
    # Whoever lets go answers for what is in flight and commits it first, and no commit meets the
    # next generation of the group: nothing is lost, nothing comes twice.
    assert not any(d.events("kafka.lost", whole=True) for d in (first, second, third))
    assert group.doubled() == 0


def test_a_topic_comes_into_the_configuration(kafka, engine, spoold):
    """The broker would leave a member that comes back the partitions it had, none of the new topic."""
    group = Group(kafka, engine, spoold)
    daemon = group.daemon()
    daemon.start()
    group.wait_owned(4)
    kafka.produce(group.topic, 100)
    daemon.wait_rows(engine, group.table, 100)
    assert daemon.sigterm() == 0
    topic, table = kafka.create_topic(1), engine.create_bench_table()
    daemon.config["streams"].append(stream("new", topic, table))
    kafka.produce(topic, 100)
    kafka.produce(group.topic, 100, "--first", 100)
    daemon.start()
    daemon.wait_rows(engine, table, 100)
    daemon.wait_rows(engine, group.table, 200)
    assert engine.count(group.table) == 200


def test_a_topic_goes_from_the_configuration(kafka, engine, spoold):
    """Rows of it wait, and that is said; the stream that has it now reads its records from the offset before
    them, so nothing is lost. What was delivered so does not go again when the topic is back."""
    group = Group(kafka, engine, spoold)
    daemon, other = group.daemon(), kafka.create_topic(1)
    daemon.config["streams"][0]["topics"].append(other)
    daemon.start()
    group.wait_owned(5)
    daemon.control("POST", "/streams/s/pause")
    kafka.produce(group.topic, 100)
    kafka.produce(other, 50, "--first", 100)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 150, 30, "rows spooled")
    assert daemon.sigterm() == 0
    table = engine.create_bench_table()
    daemon.config["streams"][0]["topics"].remove(other)
    daemon.config["streams"].append(stream("new", other, table))
    daemon.start()
    daemon.wait_rows(engine, group.table, 100)
    daemon.wait_rows(engine, table, 50)
    said = daemon.events("origin.unread")
    assert [(e["stream"], e["origin"]) for e in said] == [("s", f"kafka/{other}/0")]
    assert daemon.stream_status("s")["rows_spooled"] == 50
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, other) == kafka.end_offsets(other), 30, "committed")
    assert daemon.sigterm() == 0
    daemon.config["streams"].pop()
    daemon.config["streams"][0]["topics"].append(other)
    daemon.start()
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 60, "the rows that waited")
    assert daemon.events("origin.unread") == []
    assert (engine.count(group.table), engine.count(table)) == (100, 50)


def test_a_stream_goes_from_the_configuration(kafka, engine, spoold):
    """Rows of it wait: nothing starts without it, nothing is touched, and they go when it is back."""
    group, daemon = read_one(kafka, engine, spoold, 100)
    read_and_hold(kafka, group, daemon, 100, 100)
    assert daemon.sigterm() == 0
    before = daemon.ctl("ls", "s", "--json")
    kept = daemon.config["streams"]
    daemon.config["clickhouse"]["urls"] = [engine.url]
    daemon.config["streams"] = [stream("new", kafka.create_topic(1), engine.create_bench_table())]
    for _ in range(2):
        daemon.launch()
        assert daemon.wait_exit(20) == 2
        [said] = daemon.events("daemon.start_failed")
        assert (said["level"], said["code"]) == ("error", "2")
        assert 'the spool holds 100 rows of stream "s", which the config does not name' in said["error"]
    assert daemon.ctl("ls", "s", "--json") == before
    assert group.committed() == {0: 100}
    daemon.config["streams"] = kept
    daemon.start()
    group.drain(200)
    assert group.doubled() == 0
    assert daemon.sigterm() == 0
    daemon.config["streams"] = [stream("new", kafka.create_topic(1), engine.create_bench_table())]
    daemon.start()  # it has drained
    assert daemon.sigterm() == 0


def test_instance_killed(kafka, engine, spoold):
    group = Group(kafka, engine, spoold)
    first, second = group.daemon().start(), group.daemon().start()
    group.wait_owned(2, 2)
    producer = kafka.producer(group.topic, 10**9, "--rate", 5000)
    for daemon in (first, second):
        daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] > 1000, 30, "its rows")
    first.kill9()
    before = group.committed()
    group.wait_owned(4)
    sent = producer.stop()
    group.drain(sent)
    # What the dead one had inserted and not committed was inserted again by the other.
    doubled = group.doubled()
    assert doubled <= sent - sum(v or 0 for v in before.values())
    # What its spool still holds was committed past by the other: nothing of it is sent now.
    first.start()
    group.wait_owned(2, 2)
    kafka.produce(group.topic, 1000, "--first", sent)
    group.drain(sent + 1000)
    first.wait(lambda: first.stream_status("s")["rows_spooled"] == 0, 30, "all is given up")
    assert group.doubled() == doubled


@pytest.mark.parametrize("moment", ["any", "inserted"])
def test_instance_frozen_past_the_session_timeout(kafka, engine, proxy, spoold, moment):
    """At any moment, or where an insert's answer is on its way: its rows are in, and not committed."""
    group, between = Group(kafka, engine, spoold), proxy(engine)
    first, second = group.daemon(between.url).start(), group.daemon().start()
    group.wait_owned(2, 2)
    producer = kafka.producer(group.topic, 10**9, "--rate", 5000)
    first.wait(lambda: first.stream_status("s")["rows_inserted"] > 1000, 30, "its rows")
    freeze(first, between if moment == "inserted" else None)
    try:
        committed = group.committed()
        had = kafka.end_offsets(group.topic)  # what it has read lies before these
        group.wait_owned(4)
        before = group.committed()
        wait_until(lambda: sum(group.committed().values()) > sum(before.values()) + 5000, 30,
                   "the other goes on")
        before = group.committed()
    finally:
        first.child.signal(signal.SIGCONT)
    first.wait_log(r"partition\.lost", 30)
    group.wait_owned(2, 2)
    after = group.committed()
    assert all(after[p] >= before[p] for p in before), (before, after)  # it took nothing back
    inserted = first.stream_status("s")["rows_inserted"]
    first.wait(lambda: first.stream_status("s")["rows_inserted"] > inserted + 1000, 30, "goes on")
    group.drain(producer.stop())
    # Only what it had read and not committed when the other took its partitions may be there twice.
    lost = {int(e["origin"].rsplit("/", 1)[1]) for e in first.events("partition.lost")}
    for partition, low, high, times in group.doubled_ranges():
        assert partition in lost and (committed[partition] or 0) <= low and high < had[partition], (
            partition, low, high, committed, had)
        assert times == 2
    assert moment == "any" or group.doubled() > 0
    # Each of them answers for its own rows alone: no insert of one was tried again without knowing.
    assert not any(d.events("batch.possible_duplicates") for d in (first, second))


def freeze(daemon, between=None):
    """between: a proxy, which does it when the server has answered an insert of the daemon's."""
    if not between:
        daemon.child.signal(signal.SIGSTOP)
        return
    answered = between.arm(Fault("answer", "pass", on_strike=lambda: daemon.child.signal(signal.SIGSTOP)),
                           stream="s")
    assert answered.struck.wait(30)


def test_fenced_by_what_it_sent_before_it_lost_its_session(kafka, engine, spoold):
    """A broker that hung answers one join of a member and reads an earlier one behind it."""
    group = Group(kafka, engine, spoold)
    first, second = group.daemon(), group.daemon().start()
    first.config["kafka"]["group_instance_id"] = "first"
    first.start()
    group.wait_owned(2, 2)
    producer = kafka.producer(group.topic, 10**9, "--rate", 2000)
    first.wait(lambda: first.stream_status("s")["rows_inserted"] > 1000, 30, "its rows")
    joins = len(first.events("kafka.assigned"))
    kafka.child.signal(signal.SIGSTOP)
    try:
        first.wait_log(r"kafka\.lost", 30)
    finally:
        kafka.child.signal(signal.SIGCONT)
    first.wait(lambda: len(first.events("kafka.assigned")) > joins, 60, "it joined again")
    kafka.join_as(group.name, "first", group.topic)
    first.wait_log(r"kafka\.fenced", 30)
    group.wait_owned(2, 2)
    inserted = first.stream_status("s")["rows_inserted"]
    first.wait(lambda: first.stream_status("s")["rows_inserted"] > inserted + 1000, 60, "goes on")
    group.drain(producer.stop())
    assert first.sigterm() == 0 and second.sigterm() == 0


def test_fenced_by_what_its_former_life_sent(kafka, engine, spoold):
    """A join of a daemon that was killed comes late, and once: no other instance is there."""
    group = Group(kafka, engine, spoold)
    daemon = group.daemon()
    daemon.config["kafka"]["group_instance_id"] = "first"
    daemon.start()
    group.wait_owned(4)
    producer = kafka.producer(group.topic, 10**9, "--rate", 2000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] > 1000, 30, "its rows")
    daemon.kill9()
    daemon.start()
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] > 1000, 60, "its rows")
    kafka.join_as(group.name, "first", group.topic)
    daemon.wait_log(r"kafka\.fenced", 30)
    inserted = daemon.stream_status("s")["rows_inserted"]
    daemon.wait(lambda: daemon.stream_status("s")["rows_inserted"] > inserted + 1000, 60, "goes on")
    group.drain(producer.stop())
    assert daemon.sigterm() == 0


def test_rows_held_by_one_are_sent_by_the_other_and_discarded_when_it_is_back(
        kafka, engine, spoold):
    group = Group(kafka, engine, spoold, 2)
    first = group.daemon().start()
    kafka.produce(group.topic, 2)
    group.drain(2)  # it knows the table now
    read_and_hold(kafka, group, first, 9998, 2)
    second = group.daemon().start()
    group.wait_owned(1, 1)
    kafka.produce(group.topic, 10000, "--first", 10000)
    assert first.sigterm() == 0
    group.wait_owned(2)
    group.drain(20000)
    assert group.doubled() == 0
    assert second.sigterm() == 0
    group.wait_gone()
    first.config["clickhouse"]["urls"] = [engine.url]
    first.start()
    first.wait(lambda: len(first.events("partition.assigned")) == 2, 30, "both partitions")
    kafka.produce(group.topic, 1000, "--first", 20000)
    group.drain(21000)
    assert group.doubled() == 0
    assert len(first.events("partition.foreign_commit")) == 2
    # The discard is durable: another start sends nothing of it either.
    count = engine.count(group.table)
    first.kill9()
    first.start()
    kafka.produce(group.topic, 1000, "--first", 21000)
    group.drain(22000)
    assert engine.count(group.table) == count + 1000


def test_killed_while_rows_held_are_discarded(kafka, engine, spoold):
    """The commit that begins a new epoch says that the rows of the one before are not to be sent."""
    group, daemon = read_one(kafka, engine, spoold, 1000)
    read_and_hold(kafka, group, daemon, 1000, 1000)
    assert daemon.sigterm() == 0
    group.wait_gone()
    kafka.commit(group.name, group.topic, 0, 900)
    daemon.config["clickhouse"]["urls"] = [engine.url]
    daemon.launch("epoch.taken=kill")
    assert daemon.wait_exit(60) == -9
    daemon.start()
    group.drain(2000)
    assert daemon.stream_status("s")["rows_spooled"] == 0
    assert group.doubled() == 100  # 900 to 999, as asked


def test_a_batch_that_is_asked_about_is_waited_for(kafka, engine, proxy, spoold):
    """Its rows are in, nobody knows, and a partition of it is asked back: it goes when that is known."""
    group = Group(kafka, engine, spoold, 2)
    group.table = engine.create_bench_table(origin=True)  # where no token tells
    between = proxy(engine)
    first = group.daemon(between.url).start()
    kafka.produce(group.topic, 1000)
    group.drain(1000)
    fault = between.arm(Fault("answer", how="rst", on_strike=engine.freeze), stream="s")
    try:
        kafka.produce(group.topic, 1000, "--first", 1000)
        assert fault.struck.wait(30)
        group.daemon().start()
        first.wait_log(r"partition\.revoking", 30)
        hold_for(3)  # the other would have begun by then, and waits for the server
    finally:
        engine.thaw()
    group.wait_owned(1, 1)
    group.drain(2000)
    assert group.doubled() == 0


def test_a_batch_that_was_refused_is_not_sent_after_its_partition_went(kafka, engine, proxy, spoold):
    """It waits sealed for its next attempt; the next owner inserts its rows."""
    group = Group(kafka, engine, spoold, 2)
    between = proxy(engine)
    first = group.daemon(between.url).start()
    group.wait_owned(2)
    fault = refuse(between, kafka, group, 0, 1000)
    first.wait(lambda: first.stream_status("s")["rows_spooled"] == 1000, 30, "it has them all")
    group.daemon().start()
    group.wait_owned(1, 1)
    gone = first.events("partition.revoking")[0]["origin"]
    wait_until(lambda: engine.count(group.table) > 0, 30, "the other's rows")
    fault.times = 0
    group.drain(1000)
    # What it kept is the other's by then: it is given up when that is seen, or the partition is back.
    assert gone and group.doubled() == 0


def refuse(between, kafka, group, first, records):
    """The daemon behind the proxy seals the records as one batch, and its inserts are refused."""
    fault = between.arm(too_many_parts(), times=10**6, stream="s")
    kafka.produce(group.topic, records, "--first", first)
    assert fault.struck.wait(30)
    return fault


def test_what_was_sealed_is_not_sent_after_a_restart_where_others_inserted_it(
        kafka, engine, proxy, spoold):
    """Nobody knows whether it is in, and the table can't be asked; another one has the partition."""
    group = Group(kafka, engine, spoold, 1, origin=False)
    between = proxy(engine)
    first = group.daemon(between.url).start()
    fault = refuse(between, kafka, group, 0, 1000)
    first.kill9()
    group.daemon().start()
    group.drain(1000)
    fault.times = 0
    first.start()
    first.wait_log(r"batch\.settled", 40)
    first.wait(lambda: first.stream_status("s")["rows_spooled"] == 0, 30, "all is given up")
    assert group.owned() == [0, 1]  # it never had it back
    assert group.doubled() == 0
    assert not first.events("batch.possible_duplicates", whole=True)


def test_what_was_sealed_is_sent_after_a_restart_where_nobody_did(kafka, engine, proxy, spoold):
    group = Group(kafka, engine, spoold, 1, origin=False)
    between = proxy(engine)
    first = group.daemon(between.url).start()
    fault = between.arm(Fault("answer", how="rst"), stream="s")
    refused = between.arm(too_many_parts(), times=10**6, stream="s")
    kafka.produce(group.topic, 1000)
    assert fault.struck.wait(30) and refused.struck.wait(30)
    first.kill9()
    second = group.daemon("http://127.0.0.1:9").start()  # nobody answers there
    group.wait_owned(0, 1)
    refused.times = 0
    first.start()
    group.wait_owned(0, 1)
    assert second.sigterm() == 0
    group.drain(1000)  # its token tells what is in
    assert group.doubled() == 0


def test_a_spool_full_of_what_others_inserted_empties(kafka, engine, spoold):
    """The partition never comes back; and the room is needed for others."""
    group = Group(kafka, engine, spoold, 1)
    first = group.daemon()
    first.config["spool"].update({"max_bytes": "24MiB", "segment_bytes": "1MiB"})
    first.start()
    kafka.produce(group.topic, 1000)
    group.drain(1000)  # it knows the table now
    assert first.sigterm() == 0
    first.config["clickhouse"]["urls"] = ["http://127.0.0.1:9"]  # nobody answers there
    kafka.produce(group.topic, 600000, "--first", 1000)
    first.start()
    first.wait(lambda: "bound" in first.stream_status("s")["reason"], 60, "a full spool")
    assert first.sigterm() == 0
    group.daemon().start()
    group.drain(601000)
    first.start()
    first.wait(lambda: first.stream_status("s")["rows_spooled"] == 0, 40, "all is given up")
    first.wait(lambda: "bound" not in first.stream_status("s")["reason"], 20,
               lambda: first.stream_status("s")["reason"])
    assert group.owned() == [0, 1] and group.doubled() == 0


class Pieces:
    """A batch of rows of two partitions was refused for a row of each; what is left of it is sealed anew,
    and not stored. The first daemon has both partitions, and its inserts are refused."""

    def __init__(self, kafka, engine, proxy, spoold):
        self.group = Group(kafka, engine, spoold, 2, origin=False, bad_ratio=1,
                           flush={"rows": 1000, "interval": "2s"})
        engine.query(f"ALTER TABLE {self.group.table} ADD CONSTRAINT c CHECK id NOT IN (500, 501)")
        between = proxy(engine)
        self.first = self.group.daemon(between.url).start()
        self.group.wait_owned(2)
        between.arm(Fault("head", "pass"), stream="s")
        self.fault = refuse(between, kafka, self.group, 0, 1000)
        self.first.wait(lambda: self.spooled() == 998, 30, lambda: f"pieces: {self.spooled()}")

    def spooled(self):
        return self.first.stream_status("s")["rows_spooled"]

    def move_one(self, url=None):
        """Another daemon gets one of the partitions."""
        daemon = self.group.daemon(url).start()
        self.group.wait_owned(1, 1)
        self.first.wait_log(r"batch\.replaced.*\"by\":\"?2", 30)
        return daemon

    def end(self):
        """All that the table takes is in, once, and is held no more."""
        self.fault.times = 0
        self.group.drain(998)
        assert self.group.doubled() == 0
        self.first.wait(lambda: self.spooled() == 0, 30, lambda: f"held: {self.spooled()}")
        assert self.first.stream_status("s")["dead_letters"] == 2


def test_pieces_whose_partition_never_comes_back(kafka, engine, proxy, spoold):
    flow = Pieces(kafka, engine, proxy, spoold)
    flow.move_one()
    flow.first.wait(lambda: flow.spooled() == 499, 40, lambda: f"only its own: {flow.spooled()}")
    flow.end()


def test_pieces_whose_partition_comes_back(kafka, engine, proxy, spoold):
    flow = Pieces(kafka, engine, proxy, spoold)
    second = flow.move_one("http://127.0.0.1:9")  # nobody answers there
    assert second.sigterm() == 0
    flow.group.wait_owned(2)
    assert flow.spooled() == 998
    flow.end()


def test_pieces_whose_partition_comes_back_after_another_committed(kafka, engine, proxy, spoold):
    flow = Pieces(kafka, engine, proxy, spoold)
    second = flow.move_one()
    wait_until(lambda: sum(v or 0 for v in flow.group.committed().values()) == 500, 30, "the other's")
    assert second.sigterm() == 0
    flow.group.wait_owned(2)
    flow.end()


def test_pieces_and_a_restart(kafka, engine, proxy, spoold):
    """It does not know any more that they are not stored."""
    flow = Pieces(kafka, engine, proxy, spoold)
    flow.move_one()
    flow.first.kill9()
    flow.first.start()
    flow.group.wait_owned(1, 1)
    flow.end()


def test_partitions_added_while_running(kafka, engine, spoold):
    group = Group(kafka, engine, spoold, 2)
    group.daemon().start()
    group.daemon().start()
    group.wait_owned(1, 1)
    kafka.produce(group.topic, 1000)
    kafka.add_partitions(group.topic, 6)
    group.wait_owned(3, 3)
    kafka.produce(group.topic, 6000, "--first", 1000)
    group.drain(7000)
    assert group.doubled() == 0


def test_partitions_added_and_offsets_set_under_load(kafka, engine, spoold):
    group = Group(kafka, engine, spoold, 3)
    daemons = [group.daemon().start() for _ in range(3)]
    group.wait_owned(1, 1, 1)
    producer = kafka.producer(group.topic, 10**9, "--rate", 3000)
    for daemon in daemons:
        daemon.wait(lambda d=daemon: d.stream_status("s")["rows_inserted"] > 1000, 30, "its rows")
    kafka.add_partitions(group.topic, 6)
    group.wait_owned(2, 2, 2)
    sent = producer.stop()  # it knows of three
    producer = kafka.producer(group.topic, 10**9, "--rate", 3000, "--first", sent)
    wait_until(lambda: all((v or 0) > 1000 for v in group.committed().values()), 60, "rows of each partition")
    with pytest.raises(RuntimeError):  # no operator's commit while there are members
        kafka.commit(group.name, group.topic, 0, 0)
    for daemon in daemons:
        assert daemon.sigterm() == 0
    group.wait_gone()
    before = group.committed()
    wait_until(lambda: kafka.end_offsets(group.topic)[1] >= before[1] + 500, 30, "records to be skipped")
    kafka.commit(group.name, group.topic, 0, before[0] - 700)
    kafka.commit(group.name, group.topic, 1, before[1] + 300)
    for daemon in daemons:
        daemon.start()
    group.wait_owned(2, 2, 2)
    for daemon in daemons:
        daemon.wait(lambda d=daemon: d.stream_status("s")["rows_inserted"] > 1000, 30, "its rows")
    group.drain(sent + producer.stop() - 300)  # as asked
    assert [row[:3] for row in group.doubled_ranges()] == [(0, before[0] - 700, before[0] - 1)]
    assert group.doubled() == 700
    assert not any(d.events("kafka.lost", whole=True) for d in daemons)


def test_topic_made_anew_under_its_name(kafka, engine, spoold):
    group, daemon = read_one(kafka, engine, spoold, 3000)
    make_anew(kafka, group, 500, 3000)
    daemon.wait(lambda: engine.unique(group.table) == 3500, 60,
                lambda: f"the new topic's rows: {engine.unique(group.table)}")
    assert daemon.events("partition.out_of_range") or daemon.events("partition.new_log")
    daemon.wait(lambda: group.committed() == {0: 500}, 30, "committed in the new log")
    goes_on_after_a_restart(kafka, group, daemon, 3500)


def make_anew(kafka, group, records, first):
    """The topic is deleted and made anew under its name."""
    kafka.delete_topic(group.topic)
    kafka.create_topic(1, group.topic)
    kafka.produce(group.topic, records, "--first", first)


def read_one(kafka, engine, spoold, records):
    """A daemon that has read the one partition of a topic to its end."""
    group = Group(kafka, engine, spoold, 1)
    daemon = group.daemon().start()
    kafka.produce(group.topic, records)
    group.drain(records)
    return group, daemon


def read_and_hold(kafka, group, daemon, records, first):
    """The daemon is started anew and holds what it reads, since nobody answers at its server's address."""
    assert daemon.sigterm() == 0
    daemon.config["clickhouse"]["urls"] = ["http://127.0.0.1:9"]
    daemon.start()
    kafka.produce(group.topic, records, "--first", first)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == records, 30, "rows spooled")


def goes_on_after_a_restart(kafka, group, daemon, rows):
    assert group.doubled() == 0
    assert daemon.sigterm() == 0
    daemon.start()
    kafka.produce(group.topic, 500, "--first", rows)
    group.drain(rows + 500)
    assert group.doubled() == 0


def test_topic_made_anew_and_longer_while_running(kafka, engine, spoold):
    group, daemon = read_one(kafka, engine, spoold, 3000)
    make_anew(kafka, group, 3100, 3000)
    daemon.wait(lambda: engine.unique(group.table) == 6100, 60,
                lambda: f"the new topic's rows: {engine.unique(group.table)}")
    assert daemon.events("partition.new_log") or daemon.events("partition.out_of_range")
    daemon.wait(lambda: group.committed() == {0: 3100}, 30, "committed in the new log")
    goes_on_after_a_restart(kafka, group, daemon, 6100)


def test_topic_made_anew_and_longer_while_stopped(kafka, engine, spoold):
    group, daemon = read_one(kafka, engine, spoold, 3000)
    assert daemon.sigterm() == 0
    make_anew(kafka, group, 3100, 3000)
    daemon.start()
    group.drain(6100)
    assert len(daemon.events("partition.new_log")) == 1
    goes_on_after_a_restart(kafka, group, daemon, 6100)
    assert not daemon.events("partition.new_log")


def test_the_newest_offset_is_chosen_once(kafka, engine, spoold):
    """With auto_offset_reset "latest" what comes after the first start is read, also what comes while
    spoold is stopped; so it is after the topic was made anew and shorter."""
    group = Group(kafka, engine, spoold, 1)
    daemon = group.daemon()
    daemon.config["kafka"]["auto_offset_reset"] = "latest"
    kafka.produce(group.topic, 1000)
    daemon.start()
    daemon.wait(lambda: group.committed() == {0: 1000}, 30, "where it began")
    assert daemon.sigterm() == 0
    kafka.produce(group.topic, 500, "--first", 1000)
    daemon.start()
    group.drain(500)
    assert daemon.sigterm() == 0
    make_anew(kafka, group, 300, 1500)
    daemon.start()
    daemon.wait(lambda: group.committed() == {0: 300}, 30, "where it began in the new log")
    assert daemon.sigterm() == 0
    kafka.produce(group.topic, 100, "--first", 1800)
    daemon.start()
    group.drain(600)
    assert group.doubled() == 0


def test_topic_made_anew_while_its_rows_are_held(kafka, engine, spoold):
    """Rows of the old log that wait in the spool are sent too, and do not hide those of the new."""
    group, daemon = read_one(kafka, engine, spoold, 1000)
    read_and_hold(kafka, group, daemon, 1000, 1000)
    make_anew(kafka, group, 2500, 2000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 3500, 60, "the new log's rows")
    daemon.kill9()
    daemon.config["clickhouse"]["urls"] = [engine.url]
    daemon.start()
    group.drain(4500)
    assert group.doubled() == 0


def test_what_retention_took_is_no_new_log(kafka, engine, spoold):
    """The last record read is gone, and so is nothing else that could be compared."""
    group, daemon = read_one(kafka, engine, spoold, 1000)
    assert daemon.sigterm() == 0
    kafka.truncate(group.topic, 0, 1000)
    daemon.start()
    kafka.produce(group.topic, 500, "--first", 1000)
    group.drain(1500)
    kafka.truncate(group.topic, 0, 1500)
    kafka.kill()
    kafka.start()  # the fetches fail, and the place is looked at once more
    kafka.produce(group.topic, 500, "--first", 1500)
    group.drain(2000)
    assert not daemon.events("partition.new_log") and not daemon.events("partition.out_of_range")
    assert daemon.metric("spoold_gap_records_total") == 0
    assert group.doubled() == 0


def send_keyed(kafka, topic, rounds, keys, first=0):
    """rounds times the same keys, ids that run on; compaction leaves the last of each key."""
    for n in range(first, first + rounds * keys, keys):
        kafka.send(topic, [{"value": json.dumps({"id": n + k}), "key": f"key-{k}"}
                           for k in range(keys)], partition=0)


def test_a_compacted_topic_has_holes_and_no_gaps(kafka, engine, spoold):
    topic = kafka.create_topic(1, cleanup_policy="compact", segment_ms=100, segment_bytes=1 << 20,
                               min_cleanable_dirty_ratio=0.01, min_compaction_lag_ms=0,
                               max_compaction_lag_ms=1000, delete_retention_ms=100)
    table = engine.create_table("id UInt64, _offset Int64", order_by="id")
    daemon = spoold(kafka, engine, [stream("s", topic, table, columns=[
        {"name": "id"}, {"name": "_offset", "from": "$offset"}], flush={"interval": "50ms"})])
    daemon.start()
    send_keyed(kafka, topic, 2, 50)
    daemon.wait(lambda: engine.count(table) == 100, 60, "the first rows")
    assert daemon.sigterm() == 0
    # Of what is written now only the last of each key stays, and the record last read is gone too.
    send_keyed(kafka, topic, 20, 50, first=100)
    kafka.send(topic, [{"value": None, "key": "key-7"}], partition=0)

    def left():
        kafka.send(topic, [{"value": json.dumps({"id": 10**6}), "key": "pulse"}], partition=0)
        offsets = [r["offset"] for r in kafka.read(topic)]
        return offsets if len(offsets) < 120 and 99 not in offsets else None
    wait_until(left, 120, "compaction")
    daemon.start()
    wanted = {json.loads(r["value"])["id"] for r in kafka.read(topic) if r["value"] is not None}

    def ids():
        return {int(row[0]) for row in engine.rows(f"SELECT id FROM {table}")}
    daemon.wait(lambda: not wanted - ids(), 60, lambda: f"left and not read: {wanted - ids()}")
    assert engine.count(table) == engine.unique(table, "_offset")  # none twice
    assert daemon.metric("spoold_gap_records_total") == 0
    for event in ("partition.gap", "partition.new_log", "partition.out_of_range"):
        assert not daemon.events(event)


def test_tombstones_are_skipped_and_counted(kafka, engine, spoold):
    group = Group(kafka, engine, spoold, 1)
    daemon = group.daemon().start()
    kafka.produce(group.topic, 10)
    kafka.send(group.topic, [{"value": None, "key": f"k{n}"} for n in range(25)], partition=0)
    group.drain(10)  # also the offsets of the tombstones are committed
    assert daemon.metric("spoold_tombstones_total") == 25
    assert daemon.metric("spoold_dead_letters_total") == 0
    assert daemon.sigterm() == 0
    daemon.start()  # the last record read was a tombstone
    kafka.produce(group.topic, 10, "--first", 10)
    group.drain(20)
    assert group.doubled() == 0 and not daemon.events("partition.new_log")


def test_an_empty_topic_is_idle(kafka, engine, spoold):
    group = Group(kafka, engine, spoold, 3)
    daemon = group.daemon().start()
    daemon.wait(lambda: len(daemon.events("partition.assigned")) == 3, 40, "the partitions")
    daemon.wait(lambda: daemon.metric("spoold_kafka_lag_records") == 0, 30, "no lag")
    status = daemon.stream_status("s")
    assert status["state"] == "running" and status["rows_inserted"] == 0
    assert daemon.metric("spoold_batches_total") == 0
    assert not [e for e in daemon.events() if e["level"] in ("warn", "error")
                and e["event"] != "stream.state"]  # it waits for the table at first
    assert daemon.sigterm() == 0
    daemon.start()
    kafka.produce(group.topic, 30)
    group.drain(30)
    assert group.doubled() == 0


def test_broker_away_with_many_partitions_is_few_lines(kafka, engine, spoold, clock):
    topics = [kafka.create_topic(20) for _ in range(5)]
    table = engine.create_bench_table(window=1000)
    daemon = spoold(kafka, engine, [stream("s", topics, table)])
    daemon.start(env=clock.env)
    for n, topic in enumerate(topics):
        kafka.produce(topic, 1000, "--first", n * 1000)
    daemon.wait(lambda: engine.unique(table) == 5000, 60, "all rows")
    before = len(daemon.events())
    kafka.stop()
    daemon.wait(lambda: not daemon.status()["kafka"]["connected"], 60, "the outage is seen")
    clock.run(speed=5)
    hold_for(5)  # the client's 25
    clock.run(speed=1)
    lines = daemon.events()[before:]
    said = [e for e in lines if e["event"].startswith(("kafka.", "partition.", "commit."))]
    assert 0 < len(said) <= 12, said
    assert "refused" in daemon.status()["kafka"]["reason"], daemon.status()["kafka"]
    kafka.start()
    for n, topic in enumerate(topics):
        kafka.produce(topic, 100, "--first", 5000 + n * 100)
    daemon.wait(lambda: engine.unique(table) == 5500, 60, "rows of every partition")
    assert not daemon.events("partition.new_log")


def test_operator_resets_forward_and_back(kafka, engine, spoold):
    group, daemon = read_one(kafka, engine, spoold, 1000)
    assert daemon.sigterm() == 0
    group.wait_gone()
    kafka.produce(group.topic, 1000, "--first", 1000)
    kafka.commit(group.name, group.topic, 0, 1500)
    daemon.start()
    group.drain(1500)  # 500 skipped, as asked
    assert group.doubled() == 0
    assert daemon.sigterm() == 0
    group.wait_gone()
    kafka.commit(group.name, group.topic, 0, 900)
    daemon.start()
    group.drain(2000)
    assert group.doubled() == 600  # 900 to 999 and 1500 to 1999, as asked


def test_retention_overtakes_the_committed_offset(kafka, engine, spoold):
    group, daemon = read_one(kafka, engine, spoold, 1000)
    assert daemon.sigterm() == 0
    kafka.produce(group.topic, 1000, "--first", 1000)
    kafka.truncate(group.topic, 0, 1600)
    daemon.start()
    group.drain(1400)
    assert group.doubled() == 0
    assert daemon.metric("spoold_gap_records_total") == 600
    assert [(e["from"], e["to"]) for e in daemon.events("partition.gap")] == [("1000", "1600")]


def test_retention_overtakes_the_commit_of_a_paused_stream(kafka, engine, spoold):
    """What it has taken into the spool is not lost with the broker's, and no gap; also after a kill."""
    group, daemon = read_one(kafka, engine, spoold, 1000)
    daemon.control("POST", "/streams/s/pause")
    kafka.produce(group.topic, 1000, "--first", 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 1000, 30, "rows spooled")
    kafka.truncate(group.topic, 0, 1600)
    daemon.kill9()
    daemon.start()
    daemon.wait_log(r"partition\.assigned", 30)
    kafka.truncate(group.topic, 0, 2000)
    kafka.produce(group.topic, 500, "--first", 2000)
    daemon.control("POST", "/streams/s/resume")
    group.drain(2500)
    assert group.doubled() == 0
    assert daemon.metric("spoold_gap_records_total") == 0 and not daemon.events("partition.gap")


def test_retention_overtakes_a_full_spool(kafka, engine, spoold):
    """What was deleted before there was room for it is lost, counted and named; all else arrives."""
    records, kept = 700000, 1000
    group = Group(kafka, engine, spoold, 1)
    daemon = group.daemon()
    daemon.config["spool"].update({"max_bytes": "24MiB", "segment_bytes": "1MiB"})
    daemon.start()
    kafka.produce(group.topic, 1000)
    group.drain(1000)  # it knows the table now
    engine.stop()
    kafka.produce(group.topic, records - 1000, "--first", 1000)
    daemon.wait_state("s", "full", 60)
    kafka.truncate(group.topic, 0, records - kept)
    assert group.committed() == {0: 1000}
    engine.start()
    daemon.wait(lambda: group.committed() == {0: records}, 90,
                lambda: f"committed to the end: {group.committed()}")
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 30, "all is delivered")
    [gap] = [(int(e["from"]), int(e["to"])) for e in daemon.events("partition.gap")]
    assert 1000 < gap[0] < gap[1] == records - kept
    assert daemon.metric("spoold_gap_records_total") == gap[1] - gap[0]
    assert engine.unique(group.table) == records - (gap[1] - gap[0])
    assert engine.number(f"SELECT count() FROM {group.table} WHERE id >= {gap[0]} AND id < {gap[1]}") == 0
    assert group.doubled() == 0


def test_aborted_transactions_are_no_records_and_no_gap(kafka, engine, spoold):
    group = Group(kafka, engine, spoold, 2)
    daemon = group.daemon().start()
    kafka.produce(group.topic, 1000, "--transaction", "commit")
    kafka.produce(group.topic, 1000, "--first", 1000, "--transaction", "abort")
    kafka.produce(group.topic, 1000, "--first", 1000)
    daemon.wait(lambda: engine.unique(group.table) == 2000, 30, "all rows")
    group.drain(2000)
    assert group.doubled() == 0
    assert daemon.metric("spoold_gap_records_total") == 0


def test_group_deleted_while_stopped(kafka, engine, spoold):
    group = Group(kafka, engine, spoold, 2)
    daemon = group.daemon().start()
    kafka.produce(group.topic, 1000)
    group.drain(1000)
    assert daemon.sigterm() == 0
    group.wait_gone()
    kafka.delete_group(group.name)
    kafka.produce(group.topic, 1000, "--first", 1000)
    daemon.start()
    group.drain(2000)
    assert group.doubled() == 0  # it goes on behind what its spool remembers
