# SPDX-License-Identifier: Apache-2.0
"""Which rows a table is asked about once the partition was another consumer's: an answer is lost, no
token tells, and the offsets in the table are of the same log, or may be of another one."""
from support.owners import Group
from support.proxy import Fault


def had_by_another(kafka, engine, proxy, spoold):
    """One of a group, stopped, whose partition another one went on with."""
    group = Group(kafka, engine, spoold, 1)
    group.table = engine.create_bench_table(origin=True)  # where no token tells
    between = proxy(engine)
    first, second = group.daemon(between.url), group.daemon()
    for number, daemon in enumerate((first, second)):
        kafka.produce(group.topic, 1000, "--first", 1000 * number)
        daemon.start()
        group.drain(1000 * (number + 1))
        assert daemon.sigterm() == 0
        group.wait_gone()
    return group, between, first


def lose_an_answer(kafka, group, between, daemon, first):
    """Of 1000 new records, from id first on."""
    lost = between.arm(Fault("answer", how="rst"), "s")
    kafka.produce(group.topic, 1000, "--first", first)
    daemon.wait(lost.struck.is_set, 30, "the answer is lost")


def asked(daemon):
    return [(e["rows"], e["stored"]) for e in daemon.events("batch.asked")]


def test_another_went_on(kafka, engine, proxy, spoold):
    group, between, daemon = had_by_another(kafka, engine, proxy, spoold)
    daemon.start()
    lose_an_answer(kafka, group, between, daemon, 2000)
    group.drain(3000)
    assert group.doubled() == 0
    assert asked(daemon) == [("1000", "1000")]
    assert daemon.stream_status("s")["delivery"] == "exactly_once"
    daemon.kill9()  # it knows that yet
    daemon.start()
    lose_an_answer(kafka, group, between, daemon, 3000)
    group.drain(4000)
    assert group.doubled() == 0
    assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_an_operator_went_back(kafka, engine, proxy, spoold):
    """What is read a second time is in the table, and is to be there twice; what is new is not."""
    group, between, daemon = had_by_another(kafka, engine, proxy, spoold)
    kafka.commit(group.name, group.topic, 0, 500)
    daemon.start()
    daemon.wait_rows(engine, group.table, 3500)
    lose_an_answer(kafka, group, between, daemon, 2000)
    group.drain(3000)
    assert group.doubled() == 1500
    assert asked(daemon) == [("1000", "1000")]
    assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_the_topic_was_made_anew_meanwhile(kafka, engine, proxy, spoold):
    """The table has other records of these offsets, which say nothing: the rows go again."""
    group, between, daemon = had_by_another(kafka, engine, proxy, spoold)
    kafka.delete_topic(group.topic)
    kafka.create_topic(1, group.topic)
    kafka.commit(group.name, group.topic, 0, 0, "spoold 00000000-0000-0000-0000-000000000000 1 0")
    lost = between.arm(Fault("head", how="rst", swallow=True), "s")
    kafka.produce(group.topic, 1000, "--first", 2000)
    daemon.start()
    daemon.wait(lost.struck.is_set, 30, "the insert is lost")
    group.drain(3000)
    assert not asked(daemon)
