# SPDX-License-Identifier: Apache-2.0
"""A daemon whose spool holds rows that ClickHouse has not seen."""
from support.process import free_port
from support.spoold import stream

PARTITIONS = 2
FIRST = 1000  # delivered before ClickHouse goes


def columns_of(server):
    names = [c.split()[0] for c in server.bench_columns.split(", ")]
    return [{"name": n} for n in names] + [
        {"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
        {"name": "_offset", "from": "$offset"}]


class Backlog:
    """A daemon whose spool holds rows that ClickHouse has not seen."""

    def __init__(self, kafka, server, spoold, records, origin=True, **options):
        self.kafka, self.server = kafka, server
        self.topic = kafka.create_topic(PARTITIONS)
        self.table = server.create_bench_table(window=1000, origin=origin)
        spool = {"segment_bytes": "1MiB", "keep_acknowledged": "0s"}
        if origin:
            options["columns"] = columns_of(server)
        entry = stream("s", self.topic, self.table, **options)
        self.daemon = spoold(kafka, server, [entry], spool=spool)
        self.urls = self.daemon.config["clickhouse"]["urls"]
        kafka.produce(self.topic, FIRST)
        self.daemon.start()
        self.daemon.wait_rows(server, self.table, FIRST)
        self.wait_committed()
        assert self.daemon.sigterm() == 0
        self.total = FIRST
        self.add(records)

    def add(self, records):
        """More rows into the spool, with ClickHouse out of reach."""
        self.daemon.config["clickhouse"]["urls"] = [f"http://127.0.0.1:{free_port()}"]
        self.kafka.produce(self.topic, records, "--first", self.total)
        self.total += records
        self.daemon.start()
        self.daemon.wait(lambda: self.daemon.stream_status("s")["rows_spooled"] >= records and
                         self.daemon.stream_status("s")["lag"] == 0, 60, "rows in the spool")
        assert self.daemon.sigterm() == 0

    def start(self, **options):
        self.daemon.config["clickhouse"]["urls"] = self.urls
        return self.daemon.start(**options)

    def wait_committed(self):
        self.daemon.wait(lambda: self.kafka.committed_offsets(self.daemon.group, self.topic) ==
                         self.kafka.end_offsets(self.topic), 60, "offsets committed to the end")

    def wait_all(self, seconds=60):
        """Every record is in the table, once, and Kafka knows."""
        self.daemon.wait(lambda: self.server.unique(self.table) == self.total, seconds,
                         lambda: f"{self.total} rows, not {self.server.unique(self.table)}")
        self.wait_committed()
        assert self.server.count(self.table) == self.total

    def check_end(self):
        """The damaged segments are gone with the rest, and nothing is left to complain about."""
        status = self.daemon.stream_status("s")
        assert status["state"] == "running", status
        assert self.daemon.sigterm() == 0
        code, answer = self.daemon.ctl("verify", "--json", check=False)
        assert code == 0 and answer["ok"], answer
