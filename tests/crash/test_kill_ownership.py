# SPDX-License-Identifier: Apache-2.0
"""kill -9 while a sealed batch is let go with a partition that went, and while what others went past is
given up: each row is in the table once."""
from support.owners import Group
from support.proxy import too_many_parts

ROWS = 1000


class Refused:
    """A batch of two partitions' rows waits sealed for its next attempt, known not to be stored; the one
    daemon dies at the point as another one takes a partition from it."""

    def __init__(self, kafka, engine, proxy, spoold, point):
        self.group = Group(kafka, engine, spoold, 2)
        between = proxy(engine)
        self.first = self.group.daemon(between.url).launch(f"{point}=kill")
        self.group.wait_owned(2)
        self.fault = between.arm(too_many_parts(), times=10**6, stream="s")
        kafka.produce(self.group.topic, ROWS)
        assert self.fault.struck.wait(30)
        self.second = self.group.daemon().start()
        self.killed(self.first)

    @staticmethod
    def killed(daemon):
        assert daemon.wait_exit(40) == -9, daemon.child.log_tail()

    def end(self):
        self.fault.times = 0
        self.group.drain(ROWS)
        self.first.wait(lambda: self.first.stream_status("s")["rows_spooled"] == 0, 40, "nothing is held")
        assert self.group.doubled() == 0
        assert self.first.ctl("verify", "--json")[1]["ok"]
        for daemon in (self.first, self.second):
            assert daemon.sigterm() == 0


def test_killed_while_a_batch_is_let_go(kafka, engine, proxy, spoold):
    """It is back before its session ends, with the partition that it kept."""
    for point in ("replace.before_commit", "replace.after_commit"):
        flow = Refused(kafka, engine, proxy, spoold, point)
        flow.first.start()
        flow.group.wait_owned(1, 1)
        flow.end()


def test_killed_while_what_others_passed_is_given_up(kafka, engine, proxy, spoold):
    """The other one has taken, inserted and committed all by the time it is back."""
    flow = Refused(kafka, engine, proxy, spoold, "replace.before_commit")
    flow.group.drain(ROWS)
    flow.fault.times = 0
    for point in ("replace.before_commit", "discard.before_commit", "discard.after_commit"):
        flow.first.launch(f"{point}=kill")
        flow.killed(flow.first)
    flow.first.start()
    flow.group.wait_owned(1, 1)
    flow.end()
