# SPDX-License-Identifier: Apache-2.0
"""The bound on disk: what a full spool does, and what it does when there is room again."""
import json
import os

from support.disk import Du
from support.process import MostMemory, hold_for
from support.spoold import stream
from support.stuck import HalfStuck

MIB = 1 << 20
SMALL = {"max_bytes": "24MiB", "segment_bytes": "1MiB"}
BAD = [json.dumps({"id": "none", "name": "x" * 900000})] * 7
RECORDS = 700000  # of the generated record: about 19 MiB as blocks, and 8 MiB are in reserve


def test_full_spool_pauses_and_goes_on(kafka, server, spoold):
    topic = kafka.create_topic(4)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 1000)
    daemon = spoold(kafka, server, [stream("s", topic, table)], spool=SMALL)
    daemon.config["kafka"]["properties"].update({
        "max.poll.interval.ms": "3000", "session.timeout.ms": "3000", "heartbeat.interval.ms": "500"})
    daemon.start()
    daemon.wait_rows(server, table, 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 20, "nothing in flight")
    assert daemon.sigterm() == 0
    server.stop()
    # Before any of it is taken: a paused partition's lag is that of its last fetch.
    kafka.produce(topic, RECORDS - 1000, "--first", 1000)
    with Du(daemon.spool) as du:
        daemon.start()
        daemon.wait_state("s", "full", 60)
        taken = daemon.stream_status("s")["records_in"]
        # Longer than max.poll.interval: a paused consumer is still a member.
        hold_for(5, daemon.alive)
        status = daemon.stream_status("s")
        assert status["state"] == "full" and "bound" in status["reason"]
        assert taken <= status["records_in"] < RECORDS - 1000
        assert status["lag"] > 0
        assert len(kafka.group(daemon.group)["members"]) == 1
        assert not daemon.events("partition.lost") and not daemon.events("kafka.lost")
        server.start()
        daemon.wait_rows(server, table, RECORDS, 90)
    assert du.most <= 24 * MIB
    assert du.most > 16 * MIB  # it was used, too
    assert server.unique(table) == RECORDS
    daemon.wait_state("s", "running")
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                20, "offsets committed to the end")
    assert daemon.metric("spoold_dropped_rows_total") == 0


def test_a_topic_is_made_anew_as_the_spool_fills(kafka, engine, spoold):
    """What was read of the old log can't be had again: it waits in memory for room, whatever else of the
    stream is given back and read again."""
    topic, group = kafka.create_topic(1), "anew"
    table = engine.create_bench_table(window=1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)], spool=SMALL, kafka={"group_id": group})
    daemon.start()
    kafka.produce(topic, 1000)
    daemon.wait_rows(engine, table, 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 20, "nothing in flight")
    engine.stop()
    with Du(daemon.spool) as du:
        kafka.produce(topic, RECORDS // 2, "--first", 1000)
        daemon.wait(lambda: daemon.stream_status("s")["records_in"] > RECORDS // 8, 60, "it is read")
        kafka.delete_topic(topic)
        kafka.create_topic(1, topic)
        kafka.produce(topic, RECORDS, "--first", 10 * RECORDS)
        daemon.wait_state("s", "full", 60)
        assert daemon.events("partition.new_log") or daemon.events("partition.out_of_range")
        engine.start()
        daemon.wait(lambda: kafka.committed_offsets(group, topic) == {0: RECORDS}, 90,
                    lambda: f"the new log's: {daemon.stream_status('s')}")
        daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 30, "all is delivered")
    assert du.most <= 24 * MIB
    assert engine.count(table) == engine.unique(table) == daemon.stream_status("s")["records_in"]
    assert engine.number(f"SELECT count() FROM {table} WHERE id >= {10 * RECORDS}") == RECORDS


def test_stuck_stream_leaves_room_for_the_others(kafka, engine, spoold):
    stuck, good = kafka.create_topic(2), kafka.create_topic(2)
    table = engine.create_bench_table(window=1000)
    daemon = spoold(kafka, engine, [stream("stuck", stuck, "comes_later"),
                                    stream("good", good, table, dead_letters={"max_bytes": "8MiB"})],
                    spool=SMALL).start()
    # Without its table a stream decodes nothing; so the table is there first, and goes.
    engine.create_bench_table(name="comes_later", window=1000)
    try:
        kafka.produce(stuck, 1000)
        daemon.wait_rows(engine, "comes_later", 1000)
        engine.drop_table("comes_later")
        with Du(daemon.spool) as du:
            kafka.produce(stuck, RECORDS - 1000, "--first", 1000)
            daemon.wait(lambda: "bound" in daemon.stream_status("stuck")["reason"], 60,
                        lambda: f"stuck is full: {daemon.stream_status('stuck')}")
            assert daemon.stream_status("stuck")["state"] == "held"
            kafka.produce(good, RECORDS)
            daemon.wait_rows(engine, table, RECORDS, 90)
            assert daemon.stream_status("stuck")["state"] == "held"
            assert daemon.stream_status("good")["state"] == "running"
            # More letters than dead.mdb has in reserve: there is room for them too.
            kafka.send(good, [{"value": bad, "partition": 0} for bad in BAD])
            kafka.produce(good, 1000, "--first", RECORDS)
            daemon.wait(lambda: daemon.stream_status("good")["dead_letters"] == len(BAD), 20,
                        lambda: f"letters: {daemon.stream_status('good')}")
            daemon.wait_rows(engine, table, RECORDS + 1000)
            assert "bound" in daemon.stream_status("stuck")["reason"]
            engine.create_bench_table(name="comes_later", window=1000)
            daemon.wait_rows(engine, "comes_later", RECORDS - 1000, 90)
        assert du.most <= 24 * MIB
        assert engine.unique("comes_later") == RECORDS - 1000
        daemon.wait_state("stuck", "running")
    finally:
        engine.drop_table("comes_later")


def test_half_of_fifty_streams_stuck(kafka, engine, spoold):
    streams = HalfStuck(kafka, engine, spoold, 160 * MIB)
    streams.start()
    with Du(streams.daemon.spool) as du, MostMemory(streams.daemon.pid) as memory:
        streams.stick()
        taken = streams.daemon.metric("spoold_records_in_total")
        assert taken < len(streams.stuck) * streams.sent_stuck  # the rest waits in Kafka
        for _ in range(3):
            streams.feed(2000)
            streams.daemon.wait(lambda: streams.tables(streams.good)
                                == [(streams.sent, streams.sent)] * len(streams.good), 60,
                                lambda: f"the others flow: {streams.tables(streams.good)}")
            streams.wait_stuck()  # what room the others left was read for, and taken
        assert {s["state"] for s in streams.daemon.status()["streams"]
                if s["name"].startswith("good")} == {"running"}
        streams.mend()
        rest = streams.sent_stuck - 1  # what was in went with the table
        streams.daemon.wait(lambda: streams.tables(streams.stuck)
                            == [(rest, rest)] * len(streams.stuck), 120,
                            lambda: f"all go on: {streams.tables(streams.stuck)}")
    assert 64 * MIB < du.most <= 160 * MIB
    print(f"{memory.most / MIB:.0f} MiB of memory at most")
    assert memory.most <= 112 * MIB
    streams.drop_tables()


def test_drop_oldest_counts_what_it_drops(kafka, engine, spoold):
    topic = kafka.create_topic(2)
    table = engine.create_bench_table(window=1000)
    kafka.produce(topic, 1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table)],
                    spool={**SMALL, "on_full": "drop_oldest"}).start()
    daemon.wait_rows(engine, table, 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 20, "nothing in flight")
    engine.stop()
    with Du(daemon.spool) as du:
        kafka.produce(topic, RECORDS - 1000, "--first", 1000)
        daemon.wait(lambda: daemon.stream_status("s")["records_in"] == RECORDS, 90,
                    lambda: f"all taken: {daemon.stream_status('s')}")
        dropped = daemon.metric("spoold_dropped_rows_total", stream="s")
        assert 0 < dropped < RECORDS
        engine.start()
        daemon.wait(lambda: engine.count(table) +
                    daemon.metric("spoold_dropped_rows_total") == RECORDS, 60, "all accounted for")
    assert du.most <= 24 * MIB
    assert engine.unique(table) == engine.count(table)
    dropped = daemon.metric("spoold_dropped_rows_total", stream="s")
    assert sum(int(e["rows"]) for e in daemon.events("rows.dropped")) == dropped
    # The oldest went, the newest are there.
    assert engine.number(f"SELECT max(id) FROM {table}") == RECORDS - 1
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == kafka.end_offsets(topic),
                20, "offsets committed past what was dropped")


def fill(path):
    """Takes all that is left of a file system."""
    with open(path, "wb", buffering=0) as f:
        try:
            while f.write(b"x" * 65536) == 65536:
                pass
        except OSError:
            pass


def test_no_space_left_on_the_disk(kafka, server, small_disk, spoold):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 1000)
    spool = os.path.join(small_disk, "spool")
    daemon = spoold(kafka, server, [stream("s", topic, table)],
                    spool={"path": spool, "max_bytes": "1GiB", "segment_bytes": "1MiB",
                           "min_free_bytes": 0}).start()
    daemon.spool = spool
    daemon.wait_rows(server, table, 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 0, 20, "nothing in flight")
    server.stop()
    ballast = os.path.join(small_disk, "ballast")
    producer = kafka.producer(topic, RECORDS - 1000, "--first", 1000)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] > 10000, 30, "rows spooled")
    fill(ballast)
    daemon.wait_state("s", "full", 60)
    assert producer.finish() == RECORDS - 1000
    server.start()  # draining needs no free space
    before = server.count(table)
    daemon.wait(lambda: server.count(table) > before, 60, "rows drain from a full disk")
    os.unlink(ballast)
    daemon.wait_rows(server, table, RECORDS, 90)
    assert server.unique(table) == RECORDS
    daemon.wait_state("s", "running")
    assert daemon.sigterm() == 0
    assert daemon.ctl("verify", "--json")[1]["ok"]
