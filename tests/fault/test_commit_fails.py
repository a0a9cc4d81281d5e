# SPDX-License-Identifier: Apache-2.0
"""The server notes a batch's token, and then the part does not come into its place: renames fail or
hang in the real engine. Each later attempt under that token is answered 200 and stores nothing."""
import os

import pytest

from conftest import need
from support.clickhouse import ClickHouseError, Engine
from support.process import wait_until
from support.proxy import Fault
from support.spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
ROWS = 1000


class RenamingEngine(Engine):
    """The renames of its parts do as they are told (preload_rename.c)."""

    @property
    def rename_file(self):
        return os.path.join(self.directory, "rename")

    def start(self, env=None):
        library = os.path.join(os.environ["SUPPORT_DIR"], "preload_rename.so")
        return super().start({"LD_PRELOAD": library, "RENAME_FILE": self.rename_file})

    def renames(self, text):
        """None: they work."""
        if os.path.exists(self.rename_file):
            os.remove(self.rename_file)
        if text:
            with open(self.rename_file + ".new", "w", encoding="utf-8") as f:
                f.write(text + "\n")
            os.rename(self.rename_file + ".new", self.rename_file)

    def said(self, word):
        """How often a rename failed, or waited."""
        try:
            with open(self.rename_file + ".log", encoding="utf-8") as f:
                return f.read().split().count(word)
        except FileNotFoundError:
            return 0

    def wait_said(self, word, before):
        wait_until(lambda: self.said(word) > before, 60, f"a rename: {word}")


@pytest.fixture(scope="module")
def _renaming(run_directory):
    need(Engine.unavailable())
    server = RenamingEngine(os.path.join(run_directory, "renaming")).start()
    yield server
    server.kill()


@pytest.fixture
def renaming(_renaming):
    _renaming.renames(None)
    _renaming.ensure_started()
    yield _renaming
    _renaming.renames(None)


@pytest.fixture(params=["origin", "plain"])
def asked(request):
    """Whether the table can be asked for its rows."""
    return request.param == "origin"


def table_of(server, asked, partitions=0):
    columns = server.bench_columns
    if asked:
        columns += ", _topic String, _partition Int32, _offset Int64"
    return server.create_table(columns, order_by="id", window=1000,
                               extra=f" PARTITION BY id % {partitions}" if partitions else "")


def flow(kafka, server, spoold, asked, partitions=0, rows=ROWS):
    """A daemon that is not started, with one batch to deliver."""
    topic = kafka.create_topic(1)
    table = table_of(server, asked, partitions)
    columns = [{"name": c.strip().split(" ")[0]} for c in server.bench_columns.split(",")]
    daemon = spoold(kafka, server, [stream("s", topic, table,
                                           columns=columns + (ORIGIN if asked else []))])
    kafka.produce(topic, rows)
    return daemon, topic, table


def settled(kafka, daemon, server, topic, table, asked, rows=ROWS):
    """Nothing lost; nothing doubled, and nothing said to be, where the table can be asked."""
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: rows}, 60, "committed")
    assert server.unique(table) == rows
    if asked:
        assert server.count(table) == rows
        assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_the_engine_has_the_hole(renaming):
    table = table_of(renaming, False)
    row = b'{"id": 1}\n'
    renaming.renames("once 0")
    with pytest.raises(ClickHouseError) as failed:
        renaming.insert(table, ["id"], row, "JSONEachRow", insert_deduplication_token="a")
    assert failed.value.code == 1001
    renaming.insert(table, ["id"], row, "JSONEachRow", insert_deduplication_token="a")
    assert renaming.count(table) == 0  # and that was a 200
    renaming.insert(table, ["id"], row, "JSONEachRow", insert_deduplication_token="b")
    assert renaming.count(table) == 1


@pytest.mark.parametrize("partitions", [0, 20])
def test_a_failed_commit_and_its_answer(kafka, renaming, spoold, asked, partitions):
    daemon, topic, table = flow(kafka, renaming, spoold, asked, partitions)
    renaming.renames(f"once {partitions // 2}")
    daemon.start()
    settled(kafka, daemon, renaming, topic, table, asked)
    if not asked:
        assert daemon.metric("spoold_possible_duplicates_total") == ROWS


def test_a_full_disk_behind_the_token(kafka, renaming, proxy, spoold):
    """An answer that proves that nothing is stored proves nothing about the token. The rename fails;
    the words are those of a full disk, which no file system here can be made to say at that moment."""
    words = b"Code: 75. DB::Exception: Cannot write to file: No space left on device. (version 26.7.2.1)\n"
    through = proxy(renaming)
    through.arm(Fault("answer", "garbage", garbage=(
        b"HTTP/1.1 500 Internal Server Error\r\nX-ClickHouse-Exception-Code: 75\r\n"
        b"Content-Length: %d\r\n\r\n" % len(words)) + words), stream="s")
    topic, table = kafka.create_topic(1), table_of(renaming, False)
    daemon = spoold(kafka, through.url, [stream("s", topic, table)])
    kafka.produce(topic, ROWS)
    renaming.renames("once 0")
    daemon.start()
    settled(kafka, daemon, renaming, topic, table, False)
    assert renaming.count(table) == ROWS
    assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_what_is_stored_of_a_batch_is_not_split(kafka, renaming, spoold):
    rows = 8000
    daemon, topic, table = flow(kafka, renaming, spoold, True, 20, rows)
    daemon.config["error_classes"] = {"1001": "too_big"}  # a failure between partitions, so called
    daemon.config["streams"][0]["flush"] = {"rows": rows, "interval": "10m"}
    renaming.renames("once 10")
    daemon.start()
    settled(kafka, daemon, renaming, topic, table, True, rows)
    asked = daemon.events("batch.asked")
    assert daemon.events("batch.too_big")
    assert 0 < int(asked[0]["stored"]) < rows
    assert daemon.stream_status("s")["batches"]["acknowledged"] == 2


def test_a_failed_commit_is_known_after_a_restart_of_spoold(kafka, renaming, spoold, asked):
    daemon, topic, table = flow(kafka, renaming, spoold, asked)
    renaming.renames("fail 0")
    daemon.launch("ask.answered=kill" if asked else "replace.before_commit=kill")
    assert daemon.wait_exit(60) == -9
    assert daemon.events("batch.token_lost")
    renaming.renames(None)
    daemon.start()
    settled(kafka, daemon, renaming, topic, table, asked)
    assert renaming.count(table) == ROWS


@pytest.mark.parametrize("partitions", [0, 20])
def test_a_failed_commit_whose_answer_nobody_heard(kafka, renaming, spoold, partitions):
    daemon, topic, table = flow(kafka, renaming, spoold, True, partitions)
    hung, failed = renaming.said("hang"), renaming.said("fail")
    renaming.renames(f"hang {partitions // 2}")
    daemon.launch("send.body_done=kill")
    assert daemon.wait_exit(60) == -9
    renaming.wait_said("hang", hung)
    renaming.renames("fail 0")
    renaming.wait_said("fail", failed)
    renaming.renames(None)
    daemon.start()
    settled(kafka, daemon, renaming, topic, table, True)


@pytest.mark.parametrize("partitions", [0, 20])
def test_the_server_dies_between_token_and_part(kafka, renaming, spoold, asked, partitions):
    wait_until(lambda: renaming.number("SELECT uptime()") >= 3, 30, "a server of some age")
    daemon, topic, table = flow(kafka, renaming, spoold, asked, partitions)
    hung = renaming.said("hang")
    renaming.renames(f"hang {partitions // 2}")
    daemon.start()
    renaming.wait_said("hang", hung)
    renaming.kill()
    renaming.renames(None)
    renaming.start()
    settled(kafka, daemon, renaming, topic, table, asked)
    if not asked:
        assert daemon.metric("spoold_possible_duplicates_total") == ROWS
