# SPDX-License-Identifier: Apache-2.0
"""Files of the spool that were damaged while the daemon was down: found before anything of them is
sent, the rest goes on, and Kafka is asked again for exactly what is missing."""
import os
import subprocess

import pytest

from support import damage
from support.backlog import FIRST, PARTITIONS, Backlog
from support.proxy import Fault, refusal
from support.spoold import stream

SEGMENT_ROWS = 50000  # more than a segment of the backlog holds


@pytest.fixture
def backlog(kafka, spoold):
    def make(server, records=60000, **options):
        return Backlog(kafka, server, spoold, records, **options)
    return make


def of_origin(blocks):
    origins = {}
    for b in blocks:
        if b.rows:
            origins.setdefault(b.origin, []).append(b)
    return list(origins.values())


def test_damaged_blocks_are_read_again(backlog, server):
    b = backlog(server)
    chosen = []
    for blocks in of_origin(damage.blocks(b.daemon.spool, "s")):
        assert len(blocks) >= 5
        chosen += [blocks[-1], blocks[len(blocks) // 2], blocks[len(blocks) // 2 - 1]]
    for i, block in enumerate(chosen):
        damage.flip(block.path, block.payload + 100 if i % 2 else block.at + 40)
    b.start()
    b.wait_all()
    assert b.daemon.metric("spoold_damaged_blocks_total") == len(chosen)
    status = b.daemon.stream_status("s")
    assert status["damaged_blocks"] == len(chosen) and status["damaged_segments"] == 0
    named = {(e["origin"], int(e["first"]), int(e["last"])) for e in b.daemon.events("rows.damaged")}
    assert {(first, last) for _, first, last in named} == {(c.first, c.last) for c in chosen}
    assert b.daemon.metric("spoold_records_in_total") == sum(c.rows for c in chosen)
    assert b.daemon.metric("spoold_possible_duplicates_total") == 0
    b.check_end()


def damage_some(b, count=3):
    """Blocks in the middle of the backlog, of each partition; what was chosen."""
    chosen = []
    for blocks in of_origin(damage.blocks(b.daemon.spool, "s")):
        middle = len(blocks) // 2
        chosen += blocks[middle - count // 2:middle - count // 2 + count]
    for block in chosen:
        damage.flip(block.path, block.payload + 50)
    return chosen


def test_killed_while_damaged_blocks_are_read_again(backlog, engine):
    b = backlog(engine)
    chosen = damage_some(b)
    b.daemon.config["clickhouse"]["urls"] = b.urls
    for failpoints in ("seal.after_commit=kill@1", "append.before_commit=kill@1",
                       "append.after_commit=kill@1", "append.after_commit=kill@1",
                       "seal.before_commit=kill@1", "answer.ok=kill@1"):
        b.daemon.launch(failpoints)
        assert b.daemon.wait_exit(30) == -9
    b.start()
    b.wait_all()
    assert {(int(e["first"]), int(e["last"]))
            for e in b.daemon.events("rows.damaged", whole=True)} == {
                (c.first, c.last) for c in chosen}
    b.check_end()


@pytest.mark.parametrize("origin", [True, False], ids=["origin", "no_origin"])
def test_damaged_after_an_insert_without_an_answer(backlog, server, origin):
    b = backlog(server, origin=origin, flush={"rows": 100000, "max_in_flight": 1})
    b.daemon.config["clickhouse"]["urls"] = b.urls
    b.daemon.launch("answer.ok=kill@1")  # the rows are in, nobody here knows
    assert b.daemon.wait_exit(60) == -9
    stored = server.count(b.table)
    assert stored > FIRST
    damage_some(b)
    b.start()
    b.daemon.wait(lambda: server.unique(b.table) == b.total, 60, "all rows")
    b.wait_committed()
    doubled = server.count(b.table) - b.total
    possible = b.daemon.metric("spoold_possible_duplicates_total")
    if origin:
        assert doubled == 0 and possible == 0
    else:  # the token is of no use for other bytes: nothing tells
        assert doubled <= possible
        assert b.daemon.events("batch.possible_duplicates")
    b.check_end()


def test_damaged_and_no_longer_in_kafka_is_a_counted_gap(backlog, kafka, engine):
    b = backlog(engine)
    chosen = damage_some(b, 1)
    for partition in range(PARTITIONS):  # half of each block is gone, and all before it
        kafka.truncate(b.topic, partition, max(c.first + c.rows // 2 for c in chosen))
    b.start()
    lost = {}
    b.daemon.wait(lambda: b.daemon.metric("spoold_gap_records_total") > 0 and
                  len(b.daemon.events("partition.gap")) == PARTITIONS, 60, "gaps")
    for e in b.daemon.events("partition.gap"):
        lost[e["origin"]] = int(e["to"]) - int(e["from"])
    b.daemon.wait(lambda: engine.unique(b.table) == b.total - sum(lost.values()), 60, "the rest")
    b.wait_committed()
    assert b.daemon.metric("spoold_gap_records_total") == sum(lost.values())
    assert sum(lost.values()) <= sum(c.rows for c in chosen)
    assert engine.count(b.table) == engine.unique(b.table)
    b.check_end()


def test_what_took_the_place_of_damaged_rows_is_damaged_too(backlog, engine):
    b = backlog(engine)
    damage_some(b, 2)
    b.daemon.config["clickhouse"]["urls"] = b.urls
    b.daemon.launch("append.after_commit=kill@1")
    assert b.daemon.wait_exit(60) == -9
    refills = [x for x in damage.blocks(b.daemon.spool, "s") if x.flags & damage.REFILL]
    assert refills
    for block in refills:
        damage.flip(block.path, block.payload + 50)
    b.start()
    b.wait_all()
    # The newest segment stays, acknowledged or not: the damaged one must not be that one.
    b.kafka.produce(b.topic, SEGMENT_ROWS, "--first", b.total)
    b.total += SEGMENT_ROWS
    b.wait_all()
    b.check_end()


def mkspool(path, *plan):
    subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "mkspool"), path, *plan], check=True,
                   stdout=subprocess.DEVNULL)


def test_damage_of_rows_that_came_otherwise_leaves_the_rest(spoold, engine):
    """Rows of a source that can't be asked again."""
    table = engine.create_table("id UInt64, name String, type String, value Float64, "
                                "timestamp DateTime64(3), status String, active Bool")
    daemon = spoold(None, engine, [stream("events", [], table)])
    mkspool(daemon.spool, "blocks=6", "rows=500", f"destination=default.{table}")
    bad = damage.blocks(daemon.spool, "events")[2]
    damage.flip(bad.path, bad.payload + 10)
    daemon.start()
    daemon.wait_rows(engine, table, 2500)
    entry, = daemon.events("rows.damaged")
    assert (int(entry["first"]), int(entry["last"])) == (bad.first, bad.last)
    assert daemon.stream_status("events")["state"] == "running"
    assert daemon.sigterm() == 0
    code, answer = daemon.ctl("verify", "--json", check=False)
    assert code == 1 and [p["sequence"] for p in answer["problems"]] == [bad.sequence]


def test_pieces_of_blocks_in_a_damaged_segment(spoold, engine):
    """A seal of what a hunt left of its blocks, one of which is lost: the others go in once, and what was
    found to be bad of a block does not come again with the rest of it."""
    table = engine.create_table("id UInt64, name String, type String, value Float64, "
                                "timestamp DateTime64(3), status String, active Bool, "
                                "CONSTRAINT c CHECK id != 2525", order_by="id", window=1000)
    daemon = spoold(None, engine, [stream("events", [], table)])
    mkspool(daemon.spool, "blocks=120", "rows=50", f"destination=default.{table}")
    daemon.launch("replace.after_commit=kill")
    assert daemon.wait_exit(60) == -9
    path, = damage.segments(daemon.spool, "events")
    lost = damage.lose_index_entry(path, beside=51)
    assert lost not in (1, 51)
    for _ in range(2):  # killed before anything was settled, and not
        daemon.launch("replace.before_commit=kill")
        assert daemon.wait_exit(60) == -9
    daemon.start()
    daemon.wait_rows(engine, table, 6000 - 50 - 1)
    assert engine.unique(table) == engine.count(table)
    daemon.wait(lambda: daemon.stream_status("events")["rows_spooled"] == 0, 20, "all is settled")
    assert daemon.stream_status("events")["dead_letters"] == 1
    assert daemon.sigterm() == 0


def truncated(path):
    os.truncate(path, os.path.getsize(path) // 2 // damage.PAGE * damage.PAGE)


def emptied(path):
    os.truncate(path, 0)


def index_flipped(path):
    """A byte of every leaf page that holds index entries: the blocks are whole, and few are found."""
    with open(path, "rb") as f:
        data = f.read()
    blocks = {page for b in damage.blocks(os.path.join(os.path.dirname(path), "../.."), "s")
              if b.path == path for page in [b.at // damage.PAGE]}
    page = 2
    while (page + 1) * damage.PAGE <= len(data):
        at = page * damage.PAGE
        if page in blocks:
            page += int.from_bytes(data[at + 12:at + 16], "little")
            continue
        damage.flip(path, at + damage.PAGE - 20)
        page += 1


@pytest.mark.parametrize("harm", [truncated, emptied, index_flipped, os.unlink])
@pytest.mark.parametrize("which", [1, -1], ids=["middle", "newest"])
def test_damaged_segment_is_read_again(backlog, engine, harm, which):
    b = backlog(engine, 100000)
    paths = damage.segments(b.daemon.spool, "s")
    assert len(paths) >= 3
    harm(paths[which])
    if harm is os.unlink:
        code, answer = b.daemon.ctl("verify", "--json", check=False)
        assert code == 1 and [p["kind"] for p in answer["problems"]] == ["missing"], answer
    b.daemon.config["spool"]["keep_acknowledged"] = "5m"
    b.start()
    b.daemon.wait_log('"segment.damaged"|lag', 30)
    b.wait_all()
    status = b.daemon.stream_status("s")
    assert status["state"] == "running" and status["damaged_segments"] == 1
    assert status["missing_segments"] == (harm is os.unlink)
    # The segment is one; of a file that was cut the index may be whole, and each block be missed by itself.
    assert status["damaged_blocks"] == 1 or (harm is truncated and status["damaged_blocks"] > 1)
    assert b.daemon.ctl("status", check=False)[0] == 1
    assert b.daemon.events("segment.damaged")
    assert b.daemon.metric("spoold_possible_duplicates_total") == 0


def test_the_newest_segment_is_lost_with_an_insert_under_way(backlog, engine):
    """Nothing tells which rows that insert had: they come again, and are counted."""
    b = backlog(engine, 2000, flush={"rows": 100000, "max_in_flight": 1})
    b.daemon.config["clickhouse"]["urls"] = b.urls
    b.daemon.launch("answer.ok=kill@1")
    assert b.daemon.wait_exit(60) == -9
    stored = engine.count(b.table) - FIRST
    assert stored > 0
    os.unlink(damage.segments(b.daemon.spool, "s")[-1])
    b.start()
    b.daemon.wait(lambda: engine.unique(b.table) == b.total, 60, "all rows")
    b.wait_committed()
    assert engine.count(b.table) - b.total <= b.daemon.metric("spoold_possible_duplicates_total")
    assert b.daemon.metric("spoold_possible_duplicates_total") == stored


def test_a_lost_token_is_forgotten_with_its_batch(backlog, engine, proxy):
    b = backlog(engine, 2000, origin=False, flush={"rows": 100000, "max_in_flight": 1})
    between = proxy(engine)
    between.arm(Fault("answer", "garbage", on_strike=lambda: b.daemon.ctl("pause", "s"),
                      garbage=refusal(1001, "std::exception: cannot rename")), "s")
    b.daemon.config["clickhouse"]["urls"] = [between.url]
    b.daemon.start()
    b.daemon.wait_log("batch.token_lost")
    b.daemon.kill9()
    assert [n for n in damage.notes(b.daemon.spool) if n.startswith("token_lost/")]
    os.unlink(damage.segments(b.daemon.spool, "s")[-1])
    b.start()
    b.daemon.ctl("resume", "s")
    b.daemon.wait(lambda: engine.unique(b.table) == b.total, 60, "all rows")
    b.wait_committed()
    b.check_end()
    assert not [n for n in damage.notes(b.daemon.spool) if n.startswith("token_lost/")]
