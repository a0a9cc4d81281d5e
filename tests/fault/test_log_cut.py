# SPDX-License-Identifier: Apache-2.0
"""A broker that lost its last writes: a power cut takes what was not on its disk yet, and after it other
records come at the same offsets. The log is the same up to there, and is not read again."""
import pytest

from support.spoold import stream

RECORDS, PIECE = 6000, 200


class Cut:
    """A daemon that has read a log of many pieces, and a broker that is killed and loses the end."""

    def __init__(self, kafka, server, spoold):
        self.kafka, self.server = kafka, server
        self.topic = kafka.create_topic(1)
        self.table = server.create_bench_table()
        self.daemon = spoold(kafka, server, [stream("s", self.topic, self.table,
                                                    flush={"interval": "50ms"})]).start()
        for first in range(0, RECORDS, PIECE):
            kafka.produce(self.topic, PIECE, "--first", first)
            self.wait_unique(first + PIECE)  # so each is a block of its own
        self.wait_committed(RECORDS)

    def wait_unique(self, rows):
        self.daemon.wait(lambda: self.server.unique(self.table) == rows, 60,
                         lambda: f"{rows} ids, not {self.server.unique(self.table)}")

    def wait_committed(self, offset):
        group = self.daemon.config["kafka"]["group_id"]
        self.daemon.wait(lambda: self.kafka.committed_offsets(group, self.topic) == {0: offset}, 60,
                         lambda: f"{offset} committed")

    def cut(self, offset):
        self.kafka.kill()
        self.end = self.kafka.cut(self.topic, 0, offset)
        self.kafka.start()
        assert self.kafka.end_offsets(self.topic) == {0: self.end}

    def produce_others(self, count, first=RECORDS):
        self.kafka.produce(self.topic, count, "--first", first)

    def check(self, others):
        """All that was read once is there, all that is new came once, and of what is before the cut little
        came again."""
        self.wait_unique(RECORDS + others)
        self.wait_committed(self.end + others)
        lost = RECORDS - self.end
        again = self.server.count(self.table) - self.server.unique(self.table)
        assert again <= 3 * lost + PIECE
        doubled = self.server.query(
            f"SELECT count(), min(id), max(id) FROM (SELECT id, count() AS n FROM {self.table} GROUP BY id "
            f"HAVING n > 1)").split()
        assert int(doubled[0]) == again
        assert again == 0 or int(doubled[2]) < self.end
        assert not self.daemon.events("partition.new_log")


@pytest.fixture
def cut(kafka, engine, spoold):
    return Cut(kafka, engine, spoold)


@pytest.mark.parametrize("end, others", [
    (RECORDS - 300, 900), pytest.param(RECORDS - 300, 100, marks=pytest.mark.long),
    pytest.param(RECORDS - 3000, 500, marks=pytest.mark.long)])
def test_the_end_of_a_log_was_cut(cut, end, others):
    """Shorter than what was read, or longer by the time that is looked at."""
    cut.cut(end)
    cut.produce_others(others)
    cut.check(others)
    assert len(cut.daemon.events("partition.log_cut")) == 1


@pytest.mark.parametrize("others", [100, pytest.param(900, marks=pytest.mark.long)])
def test_the_end_of_a_log_was_cut_while_stopped(cut, others):
    assert cut.daemon.sigterm() == 0
    cut.cut(RECORDS - 300)
    cut.produce_others(others)
    cut.daemon.start()
    cut.check(others)
    event, = cut.daemon.events("partition.log_cut")
    assert cut.end - 1500 < int(event["same_below"]) <= cut.end


def test_killed_before_it_is_known_where_the_log_parts(cut):
    """The new epoch is taken, and nothing else is known: the next start looks again."""
    assert cut.daemon.sigterm() == 0
    cut.cut(RECORDS - 300)
    cut.produce_others(900)
    cut.daemon.launch("epoch.taken=kill")
    assert cut.daemon.wait_exit() == -9
    cut.daemon.start()
    cut.check(900)


def test_cut_twice(cut):
    """The second time further than what was read since the first."""
    cut.cut(RECORDS - 300)
    cut.produce_others(900)
    cut.check(900)
    end, before = cut.end + 900, cut.server.count(cut.table)
    cut.kafka.kill()
    second = cut.kafka.cut(cut.topic, 0, end - 100)
    cut.kafka.start()
    cut.produce_others(500, 20000)
    cut.wait_unique(RECORDS + 900 + 500)
    cut.wait_committed(second + 500)
    assert cut.server.count(cut.table) - before - 500 <= 3 * (end - second) + PIECE
    assert len(cut.daemon.events("partition.log_cut")) == 2


@pytest.mark.long
def test_nothing_is_written_behind_the_cut(cut):
    """What was read is known by the records before the cut; then the log grows again."""
    cut.cut(RECORDS - 300)
    cut.daemon.wait(lambda: cut.daemon.events("partition.log_cut"), 60, "the cut")
    cut.produce_others(100)
    cut.check(100)
