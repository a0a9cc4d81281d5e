# SPDX-License-Identifier: Apache-2.0
"""Many streams of one daemon, half of which are stuck with all of the spool that they may have."""
import json
import os

from .spoold import stream

MIB = 1 << 20
EACH = 25
NOISE_BYTES = 12000  # a record's; LZ4 leaves them as they are


class HalfStuck:
    def __init__(self, kafka, server, make, max_bytes, **options):
        """make(kafka, server, streams, **config) gives a daemon. max_bytes: of its spool. options: of
        each stream."""
        self.kafka, self.server = kafka, server
        self.good = [(f"good{i}", kafka.create_topic(1), server.create_bench_table(window=1000))
                     for i in range(EACH)]
        self.stuck = [(f"stuck{i}", kafka.create_topic(1), server.create_bench_table(window=1000))
                      for i in range(EACH)]
        self.sent = 0        # of each good one
        self.sent_stuck = 0  # of each stuck one
        # More than the spool holds of each, should they share all of it.
        self._bulk = max_bytes * 5 // 4 // EACH // NOISE_BYTES
        self.daemon = make(kafka, server, [stream(*s, **options) for s in self.good + self.stuck],
                           spool={"max_bytes": max_bytes, "segment_bytes": "1MiB"})

    def start(self):
        """Every stream learns its table."""
        for name, topic, _ in self.good + self.stuck:
            self.kafka.produce(topic, 1)
        self.sent = self.sent_stuck = 1
        self.daemon.start()
        self.daemon.wait(lambda: self.daemon.metric("spoold_rows_inserted_total") >= 2 * EACH, 60,
                         "a row of each stream")

    def stick(self):
        """Half of the tables go, and their streams fill the spool up to where they must wait."""
        for _, _, table in self.stuck:
            self.server.drop_table(table)
        bulk = [json.dumps({"id": i, "name": os.urandom(NOISE_BYTES // 2).hex(), "kind": "view",
                            "value": 1, "ts": "2026-11-29 01:02:03", "state": "new", "ok": True})
                for i in range(1, self._bulk + 1)]
        for _, topic, _ in self.stuck:
            self.kafka.send(topic, bulk, partition=0)
        self.sent_stuck += len(bulk)
        self.wait_stuck()

    def wait_stuck(self):
        self.daemon.wait(lambda: not self._unstuck(), 120, lambda: f"not stuck: {self._unstuck()}")

    def _unstuck(self):
        """Stuck ones that have not taken all they were sent, and do not say that they wait for room."""
        return [(s["name"], s["state"], s["reason"]) for s in self.daemon.status()["streams"]
                if s["name"].startswith("stuck") and "bound" not in s["reason"] and s["lag"]]

    def feed(self, records):
        """So many to each good one."""
        for _, topic, _ in self.good:
            self.kafka.produce(topic, records, "--first", self.sent)
        self.sent += records

    def mend(self):
        for _, _, table in self.stuck:
            self.server.create_bench_table(name=table, window=1000)

    def tables(self, streams):
        """(rows, rows that can be told apart) of each stream's table."""
        return [(self.server.count(t), self.server.unique(t)) for _, _, t in streams]

    def drop_tables(self):
        for _, _, table in self.good + self.stuck:
            self.server.drop_table(table)
