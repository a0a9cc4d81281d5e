# SPDX-License-Identifier: Apache-2.0
"""A daemon with two streams whose every record is accounted for, whatever is killed meanwhile.

`plain` goes to a table that has at most a window of tokens (none on 18.16). `origin` goes to a table
that has topic, partition and offset of each row; among its records are such as fit no column, and
such as only the server refuses.
"""
import json
import os

from .process import wait_until
from .spoold import spoolctl, stream

PLAIN_PARTITIONS, ORIGIN_PARTITIONS = 4, 2
ORIGIN_COLUMNS = [{"name": "_topic", "from": "$topic"}, {"name": "_partition", "from": "$partition"},
                  {"name": "_offset", "from": "$offset"}]
POISON = "poison"  # a kind that the table of `origin` refuses, where it can
BULK_RECORDS, BULK_BYTES = 100, 12000  # more than a segment holds, since noise does not compress


class Load:
    def __init__(self, kafka, server, spoold, rng, /, **config):
        self.kafka, self.server, self.rng = kafka, server, rng
        self.plain_topic = kafka.create_topic(PLAIN_PARTITIONS)
        self.origin_topic = kafka.create_topic(ORIGIN_PARTITIONS)
        self.plain_table = server.create_bench_table(window=10000)
        self.origin_table = self._create_origin_table()
        names = [c.strip().split(" ")[0] for c in server.bench_columns.split(",")]
        flush = {"rows": 200, "interval": "20ms"}
        config["spool"] = {"segment_bytes": "1MiB", "keep_acknowledged": "0s",
                           **config.get("spool", {})}
        self.daemon = spoold(kafka, server, [
            stream("plain", self.plain_topic, self.plain_table, flush=flush),
            stream("origin", self.origin_topic, self.origin_table, flush=flush, bad_ratio=1,
                   columns=[{"name": n} for n in names] + ORIGIN_COLUMNS)], **config)
        if "path" in config["spool"]:
            self.daemon.spool = config["spool"]["path"]
        self.plain = 0    # records sent
        self.origin = 0   # records sent, the refused ones too
        self.refused = set()  # ids of `origin`

    def _create_origin_table(self):
        columns = f"{self.server.bench_columns}, _topic String, _partition Int32, _offset Int64"
        if self.server.modern:
            columns += f", CONSTRAINT c CHECK kind != '{POISON}'"
        return self.server.create_table(columns, order_by="id", window=10000)

    # ---- records ----

    @property
    def records(self):
        return self.plain + self.origin

    def feed(self, plain=600, origin=40, refused=True, bulk=False):
        """More records of each kind; bulk: so many bytes that every stream begins a segment."""
        self.kafka.produce(self.plain_topic, plain, "--first", self.plain)
        self.plain += plain
        self.feed_origin(origin, refused, bulk)

    def feed_origin(self, count, refused=True, bulk=False):
        at = {}
        if refused:
            at[self.rng.randrange(count)] = "bad"
            if self.server.modern:
                at[self.rng.randrange(count)] = POISON
        records = [self._record(self.origin + i, at.get(i)) for i in range(count)]
        if bulk:
            first = self.origin + count
            records += [self._record(first + i, None, os.urandom(BULK_BYTES // 2).hex())
                        for i in range(BULK_RECORDS)]
        self.kafka.send(self.origin_topic, records)
        self.refused.update(self.origin + i for i in at)
        self.origin += len(records)

    def feed_bad(self):
        """One record that fits no column, by itself: it leaves a block without rows, to be discarded."""
        self.kafka.send(self.origin_topic, [self._record(self.origin, "bad")])
        self.refused.add(self.origin)
        self.origin += 1

    @staticmethod
    def _record(ident, refused, name="a name"):
        value = {"id": ident, "name": name, "kind": POISON if refused == POISON else "view",
                 "value": 1.5, "ts": "2026-11-29 01:02:03.004", "state": "new", "ok": True}
        if refused == "bad":
            value["value"] = "no number"
        return {"value": json.dumps(value), "partition": ident % ORIGIN_PARTITIONS}

    # ---- what arrived ----

    @property
    def good(self):
        return self.origin - len(self.refused)

    def arrived(self):
        """Whether all that was fed is in the tables (more than once would do here)."""
        return (self.server.unique(self.plain_table) >= self.plain
                and self.server.count(self.origin_table) >= self.good)

    def wait_arrived(self, seconds=60):
        self.daemon.wait(self.arrived, seconds, lambda: (
            f"all rows: plain {self.server.unique(self.plain_table)} of {self.plain}, "
            f"origin {self.server.count(self.origin_table)} of {self.good}; "
            f"{[(s['name'], s['state'], s['reason']) for s in self.daemon.status()['streams']]}"))

    def _letters(self):
        """The dead letters of `origin`, by the tool on the spool or on the daemon."""
        answer = self.daemon.ctl("dead", "ls", "origin", "--json")[1]
        return answer if isinstance(answer, list) else [answer] if answer else []

    def check_at_rest(self):
        """The daemon is dead: what its disk holds is whole, and nothing is committed that is neither
        in the table nor in the dead letters."""
        code, answer = spoolctl("--spool", self.daemon.spool, "verify", "--json", check=False)
        assert code == 0 and answer["ok"], answer
        for partition, offset in self.kafka.committed_offsets(
                self.daemon.group, self.plain_topic).items():
            ids = self.server.number(
                f"SELECT uniqExact(id) FROM {self.plain_table} WHERE id % {PLAIN_PARTITIONS} = "
                f"{partition} AND intDiv(id, {PLAIN_PARTITIONS}) < {offset or 0}")
            assert ids == (offset or 0), f"plain/{partition}: {ids} rows below {offset}, committed"
        self._check_origin_committed()

    def _check_origin_committed(self):
        letters = [(json.loads(entry["record"])["id"], entry) for entry in self._letters()]
        for partition, offset in self.kafka.committed_offsets(
                self.daemon.group, self.origin_topic).items():
            rows = self.server.number(
                f"SELECT uniqExact(_offset) FROM {self.origin_table} WHERE _partition = {partition} "
                f"AND _offset < {offset or 0}")
            rows += sum(1 for ident, entry in letters if entry["offset"] < (offset or 0)
                        and ident % ORIGIN_PARTITIONS == partition)
            assert rows == (offset or 0), f"origin/{partition}: {rows} below {offset}, committed"

    def settle(self, seconds=60):
        """The daemon runs: everything arrives, is committed, and each refused record is a dead letter
        once. Returns what is lost and doubled, and what may be doubled by the log."""
        self.wait_arrived(seconds)
        for topic in (self.plain_topic, self.origin_topic):
            self.daemon.wait(lambda t=topic: self.kafka.committed_offsets(self.daemon.group, t)
                             == self.kafka.end_offsets(t), 30, "all committed")
        self.daemon.wait(lambda: all(s["rows_spooled"] == 0 for s in self.daemon.status()["streams"]),
                         60, "nothing waits, replayed letters neither")
        letters = [json.loads(entry["record"])["id"] for entry in self._letters()]
        assert sorted(letters) == sorted(self.refused)
        return self.count()

    def count(self):
        server, plain, origin = self.server, self.plain_table, self.origin_table
        unique = server.unique(plain)
        told_apart = server.number(f"SELECT uniqExact(_partition, _offset) FROM {origin}")
        possible = {"plain": 0, "origin": 0}
        for event in self.daemon.events("batch.possible_duplicates", whole=True):
            possible[event["stream"]] += int(event["rows"])
        return {"lost": self.plain - unique + self.good - told_apart,
                "doubled_plain": server.count(plain) - unique,
                "doubled_origin": server.count(origin) - told_apart,
                "possible_plain": possible["plain"], "possible_origin": possible["origin"]}

    def check_exact(self, seconds=60, replayed=False):
        """As settle, and says that nothing is lost, and nothing doubled without having been said.
        replayed: letters were, and batches that have their rows too can't be asked about."""
        found = self.settle(seconds)
        assert found["lost"] == 0, found
        assert found["possible_origin"] == 0 or replayed, found
        assert found["doubled_origin"] <= found["possible_origin"], found
        assert found["doubled_plain"] <= found["possible_plain"], found
        return found

    def end(self):
        """Stops the daemon in order; what it leaves is whole. The tables go."""
        assert self.daemon.sigterm(60) == 0, self.daemon.child.log_tail()
        self.check_at_rest()
        self.server.drop_table(self.plain_table)
        self.server.drop_table(self.origin_table)
        self.daemon.remove()


def wait_hit(condition, feed, seconds, what):
    """Until condition(); feeds again each second, since a point is passed only while records flow."""
    for _ in range(seconds):
        try:
            return wait_until(condition, 1, what)
        except AssertionError:
            feed()
    return wait_until(condition, 1, what)
