# SPDX-License-Identifier: Apache-2.0
"""Daemons of one consumer group, whose partitions move between them."""
from .process import wait_until
from .spoold import stream

ORIGIN = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
          {"name": "_offset", "from": "$offset"}]
SESSION_MS = 3000


class Group:
    """Daemons of one group that share a topic and a table, each with a spool of its own. origin: the
    table can be asked for their rows; options: of the stream."""

    def __init__(self, kafka, server, spoold, partitions=4, origin=True, **options):
        self.kafka, self.server, self.spoold = kafka, server, spoold
        self.topic = kafka.create_topic(partitions)
        self.table = server.create_bench_table(window=1000, origin=origin)
        self.columns = [{"name": c.strip().split(" ")[0]} for c in server.bench_columns.split(",")]
        self.columns += ORIGIN if origin else []
        self.options = {"flush": {"interval": "50ms"}, **options}
        self.name = f"owners-{self.topic}"

    def daemon(self, url=None):
        """url: of the server, where it is not to go there directly."""
        properties = {"fetch.wait.max.ms": "50", "session.timeout.ms": str(SESSION_MS),
                      "heartbeat.interval.ms": "500",
                      "topic.metadata.refresh.interval.ms": "1000"}
        return self.spoold(self.kafka, url or self.server,
                           [stream("s", self.topic, self.table, columns=self.columns, **self.options)],
                           kafka={"group_id": self.name, "properties": properties})

    def owned(self):
        """How many partitions each member has, ascending; None while the broker can't say (it loads
        its coordinator at the first group)."""
        try:
            return sorted(len(m["partitions"]) for m in self.kafka.group(self.name)["members"])
        except RuntimeError:
            return None

    def wait_owned(self, *counts, seconds=40):
        wait_until(lambda: self.owned() == sorted(counts), seconds,
                   lambda: f"shares {counts}, not {self.owned()}")

    def wait_gone(self):
        wait_until(lambda: not self.kafka.group(self.name)["members"], 30, "no members")

    def committed(self):
        return self.kafka.committed_offsets(self.name, self.topic)

    def drain(self, rows, seconds=60):
        """Every record is in the table, and every offset committed."""
        wait_until(lambda: self.server.unique(self.table) >= rows, seconds,
                   lambda: f"{rows} ids, not {self.server.unique(self.table)}")
        wait_until(lambda: self.committed() == self.kafka.end_offsets(self.topic), 30,
                   lambda: f"committed to the end: {self.committed()}")
        assert self.server.unique(self.table) == rows

    def doubled(self):
        return self.server.count(self.table) - self.server.unique(self.table)

    def doubled_ranges(self):
        """(partition, first offset, last offset, times at most) of each partition of which rows are there
        more than once."""
        return [tuple(int(value) for value in row) for row in self.server.rows(
            f"SELECT _partition, min(_offset), max(_offset), max(n) FROM (SELECT _partition, _offset,"
            f" count() AS n FROM {self.table} GROUP BY _partition, _offset HAVING n > 1)"
            f" GROUP BY _partition ORDER BY _partition")]
