# SPDX-License-Identifier: Apache-2.0
"""What is larger than a limit, or than all the room there is, and what has no place for another reason: the stream says
so in its status and what is to be done, nothing is lost, and it goes on once that is done."""
import errno
import os
import resource
import subprocess

import pytest

from support.process import hold_for
from support.spoold import stream


def letters_of(daemon):
    found = daemon.ctl("dead", "ls", "s", "--json")[1]
    return ([found] if isinstance(found, dict) else found) or []


def held_for(daemon, words, seconds=30, name="s"):
    """Waits for the reason; gives it."""
    daemon.wait(lambda: words in daemon.stream_status(name)["reason"], seconds,
                lambda: f"held for \"{words}\": {daemon.stream_status(name)}")
    assert daemon.stream_status(name)["state"] == "held"
    return daemon.stream_status(name)["reason"]


def test_a_letter_larger_than_the_bound(kafka, engine, spoold):
    """To discard others would not help it."""
    topic, table = kafka.create_topic(1, max_message_bytes=10000000), engine.create_table("id UInt64")
    kafka.send(topic, [f'{{"id":-1,"t":"{os.urandom(1000000).hex()}"}}', '{"id":1}'])
    daemon = spoold(kafka, engine, [stream("s", topic, table,
                                           dead_letters={"max_bytes": "1MiB"})]).start()
    assert "without all others there would not be room either" in \
        held_for(daemon, "raise the bound and restart")
    assert daemon.sigterm() == 0
    daemon.config["streams"][0]["dead_letters"]["max_bytes"] = "3MiB"
    daemon.start()
    daemon.wait_rows(engine, table, 1)
    assert len(letters_of(daemon)) == 1
    daemon.wait_state("s", "running")


def test_the_last_origin(kafka, engine, spoold):
    """A partition that is new gets no name in this spool any more; the others flow."""
    topics, tables = ([make() for _ in range(2)] for make in
                      (lambda: kafka.create_topic(1), lambda: engine.create_table("id UInt64", window=100)))
    daemon = spoold(kafka, engine, [stream(name, topics[i], tables[i]) for i, name in enumerate("ab")])
    for topic in topics:
        kafka.send(topic, ['{"id":1}'])
    daemon.start()
    for table in tables:
        daemon.wait_rows(engine, table, 1)
    assert daemon.sigterm() == 0
    subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "lastorigin"), daemon.spool + "/meta.mdb"],
                   check=True)
    new = kafka.create_topic(1)
    daemon.config["streams"][0]["topics"].append(new)
    daemon.config["kafka"]["group_id"] += "-2"  # a group that assigns anew at once
    daemon.start()
    assert new in held_for(daemon, "too many origins", name="a")
    for topic in topics:
        kafka.send(topic, ['{"id":2}'])
    for table in tables:
        daemon.wait_rows(engine, table, 2)
    hold_for(2.5, daemon.alive)
    assert len(daemon.events("meta.full")) == 1  # it is not tried in vain
    assert daemon.sigterm() == 0
    assert daemon.ctl("verify", "--json")[1]["ok"]


def test_too_many_files_are_open(kafka, engine, spoold):
    """Blocks can't be read, and no segment begun: both wait."""
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, t String", window=100)
    daemon = spoold(kafka, engine, [stream("s", topic, table)], spool={"segment_bytes": "1MiB"})
    flag, sent = daemon.directory + "/broken", 0

    def send(records, size):
        nonlocal sent
        kafka.send(topic, [f'{{"id":{sent + i},"t":"{os.urandom(size).hex()}"}}' for i in range(records)])
        sent += records
    daemon.start(env={"LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_fail.so"),
                      "FAIL_WHILE": flag, "FAIL_IN": daemon.spool + "/streams",
                      "FAIL_CALLS": "open,creat", "FAIL_ERRNO": str(errno.EMFILE)})
    daemon.ctl("pause", "s")
    send(10, 10)
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 10, 20, "spooled")
    with open(flag, "w", encoding="utf-8"):
        pass
    daemon.ctl("resume", "s")
    assert "can't be read" in held_for(daemon, "Too many open files")
    send(60, 50000)
    daemon.wait(lambda: any("Too many open files" in e["error"] for e in daemon.events("spool.full")),
                20, "no segment can be begun")
    os.unlink(flag)
    daemon.wait_rows(engine, table, sent)
    assert engine.unique(table) == sent
    daemon.wait_state("s", "running")


def test_files_that_may_not_grow(kafka, engine, spoold):
    """A limit on their size is a full disk, and no signal that ends the daemon."""
    topic, table = kafka.create_topic(1), engine.create_table("id UInt64, t String", window=100)
    daemon, sent = spoold(kafka, engine, [stream("s", topic, table)]).start(), 0

    def send(records):
        nonlocal sent
        kafka.send(topic, [f'{{"id":{sent + i},"t":"{os.urandom(50000).hex()}"}}' for i in range(records)])
        sent += records

    def limit(size):
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    send(20)
    daemon.wait_rows(engine, table, sent)
    sizes = [os.path.getsize(os.path.join(directory, name))
             for directory, _, names in os.walk(daemon.spool) for name in names]
    limit(max(sizes))  # of the segment: its next page begins there
    send(60)
    daemon.wait_state("s", "full")
    limit(resource.RLIM_INFINITY)
    daemon.wait_rows(engine, table, sent)
    assert engine.unique(table) == sent
    daemon.wait_state("s", "running")


@pytest.mark.long
def test_what_fills_the_spool_is_no_rows(kafka, engine, spoold):
    """Letters of rows that only the server refuses may go beyond the spool's bound."""
    topic = kafka.create_topic(1)
    table = engine.create_table("id UInt64, t String, CONSTRAINT c CHECK id % 2 = 0", window=1000)
    daemon = spoold(kafka, engine, [stream("s", topic, table, bad_ratio=1,
                                           dead_letters={"max_bytes": "100MiB"})],
                    spool={"max_bytes": "16MiB", "segment_bytes": "1MiB", "keep_acknowledged": "0s"})
    daemon.start()
    sent = 0

    def refused():
        return "no row of it waits" in daemon.stream_status("s")["reason"]
    while not refused():
        assert sent < 600
        kafka.send(topic, [f'{{"id":{sent + i},"t":"{os.urandom(100000).hex()}"}}' for i in range(10)])
        sent += 10
        daemon.wait(lambda: refused() or
                    engine.count(table) + daemon.stream_status("s")["dead_letters"] == sent, 60, "through")
    assert daemon.stream_status("s")["state"] == "full"
    assert daemon.sigterm() == 0
    daemon.config["spool"]["max_bytes"] = "64MiB"
    daemon.start()
    daemon.wait(lambda: engine.unique(table) == engine.count(table) == sent // 2, 60, "the rest")
    daemon.wait(lambda: daemon.stream_status("s")["dead_letters"] == sent // 2, 20, "its letters")


MANY = 30_000_000  # times in a record of 60 MB; as columns 120 MB, as a record again 660 MB


@pytest.mark.long
@pytest.mark.parametrize("how", ["refused", "reencoded"])
def test_a_row_that_is_too_large_for_a_letter(kafka, engine, spoold, tmp_path, how):
    """It can't be written as a record: it stays in the spool until the table takes it."""
    topic = kafka.create_topic(1, max_message_bytes=268435456)
    table = engine.create_table("id UInt64, t Array(DateTime), CONSTRAINT c CHECK length(t) < 9",
                                window=100)
    path = tmp_path / "record"
    path.write_text('{"id":1,"t":[' + "1," * (MANY - 1) + "1]}")
    daemon = spoold(kafka, engine, [stream("s", topic, table, on_schema_change="reencode")]).start()
    if how == "reencoded":
        daemon.wait_state("s", "running")
        daemon.ctl("pause", "s")
    kafka.send_file(topic, path)
    if how == "reencoded":
        daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == 1, 60, "spooled")
        engine.query(f"ALTER TABLE {table} DROP CONSTRAINT c")
        engine.query(f"ALTER TABLE {table} MODIFY COLUMN t Array(DateTime64(3))")
        daemon.ctl("resume", "s")
    held_for(daemon, "as a record the row would be larger than one may be", 120)
    assert daemon.alive() and letters_of(daemon) == []
    if how == "reencoded":
        engine.query(f"ALTER TABLE {table} MODIFY COLUMN t Array(DateTime)")
    else:
        engine.query(f"ALTER TABLE {table} DROP CONSTRAINT c")
    daemon.ctl("resume", "s")
    daemon.wait_rows(engine, table, 1, 120)
    assert engine.number(f"SELECT length(t) FROM {table}") == MANY
    daemon.wait_state("s", "running")


@pytest.mark.long
def test_a_letter_that_is_too_large_for_its_table(kafka, engine, spoold, tmp_path):
    """As text in JSON it is six times as long. The one behind it arrives."""
    topic = kafka.create_topic(1, max_message_bytes=268435456)
    table, dead = engine.create_table("id UInt64"), f"dead_{os.urandom(4).hex()}"
    path = tmp_path / "record"
    path.write_bytes(b"\1" * (90 << 20))
    kafka.send_file(topic, path)
    kafka.send(topic, ["no JSON"])
    engine.query(f"CREATE TABLE {dead} (stream String, origin String, offset Int64, code Int32, reason String, "
                 "detail String, column String, position UInt64, record String, key Nullable(String), headers String, "
                 "attempts UInt32, timestamp Nullable(DateTime64(3)), received_at DateTime64(3), first_at DateTime64(3), "
                 "last_at DateTime64(3)) ENGINE = MergeTree ORDER BY offset")
    daemon = spoold(kafka, engine, [stream("s", topic, table, max_record_bytes="100MiB",
                                           dead_letters={"max_bytes": "1GiB", "table": dead})]).start()
    daemon.wait(lambda: daemon.events("dead.refused"), 60, "passed over")
    assert "larger than a message or a row may be" in daemon.events("dead.refused")[0]["error"]
    daemon.wait_rows(engine, dead, 1, 60)
    assert engine.query(f"SELECT offset, record FROM {dead}").split("\t")[:1] == ["1"]
    assert daemon.stream_status("s")["dead_letters"] == 2
    assert daemon.stream_status("s")["state"] == "running"
