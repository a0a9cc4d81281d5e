# SPDX-License-Identifier: Apache-2.0
"""What ClickHouse refuses an insert for, by exception code: real errors of real servers, what spoold
makes of them, and that nothing is lost or doubled. One daemon has a stream for each case, so that all
happen at once. DESIGN: docs/design.md, "When ClickHouse does not say yes"."""
import concurrent.futures
import dataclasses
import json
import os
import re
import threading

import pytest

from conftest import need
from support.clickhouse import ClickHouseError, Engine, OldServer
from support.process import wait_until
from support.proxy import Fault
from support.spoold import stream

COLUMNS = [{"name": "id"}, {"name": "s"}, {"name": "n"}, {"name": "_topic", "from": "$topic"},
           {"name": "_partition", "from": "$partition"}, {"name": "_offset", "from": "$offset"}]
TABLE = "id UInt64, s String, n Int64, _topic String, _partition Int32, _offset Int64"
ROWS = 120
BAD = 77


@dataclasses.dataclass
class Case:
    code: int
    class_: str
    extra: str = ""  # of the table
    s: str = "0001"  # of the bad row; the others have 1 and 1
    n: int = 1
    engine: str = "MergeTree ORDER BY id"
    provoke: tuple = ()  # statements once the first rows are in
    mend: tuple = ()
    options: dict = dataclasses.field(default_factory=dict)
    json: bool = False
    database: str = ""


def in_parallel(call, items):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(call, items))


def records(first, count, bad=None):
    return [json.dumps({"id": i, "s": bad.s if bad and i == BAD else "1",
                        "n": bad.n if bad and i == BAD else 1}) for i in range(first, first + count)]


def place(case):
    """The table's name where it has a database of its own."""
    return f"{case.database}.t_{os.urandom(4).hex()}" if case.database else None


class Rig:
    """A stream and a table for each case, all of one daemon."""

    def __init__(self, kafka, server, spoold, cases, clickhouse=None, url=None):
        self.kafka, self.server, self.cases = kafka, server, cases
        self.topics = dict(zip(cases, in_parallel(lambda _: kafka.create_topic(1), cases)))
        for c in cases.values():
            if c.database:
                server.query(f"CREATE DATABASE {c.database}")
        self.tables = {name: server.create_table(TABLE + (", " if c.extra else "") + c.extra,
                                                 engine=c.engine, window=1000 if "Merge" in c.engine
                                                 and "SETTINGS" not in c.engine else 0,
                                                 name=place(c))
                       for name, c in cases.items()}
        self.daemon = spoold(kafka, server, [
            stream(name, self.topics[name], self.tables[name].rpartition(".")[2], **{
                **({"database": c.database} if c.database else {}), "columns": COLUMNS, "flush": {"interval": "100ms"}, **c.options})
            for name, c in cases.items()])
        self.daemon.config["clickhouse"].update(clickhouse or {})
        if url:
            self.daemon.config["clickhouse"]["urls"] = [url]
        self.sent = {name: 0 for name in cases}

    def send(self, count=ROWS, bad=False):
        def one(name):
            self.kafka.send(self.topics[name], records(self.sent[name], count,
                                                       self.cases[name] if bad else None))
            self.sent[name] += count
        in_parallel(one, self.cases)

    def run(self, statements, name):
        for sql in statements:
            self.server.query(sql.replace("{t}", self.tables[name]))

    def errors(self, name, code=None):
        """Of class and code: how many."""
        found = {}
        for series, n in self.daemon.metrics().items():
            m = re.match(r'spoold_errors_total\{stream="([^"]*)",class="(.*)",code="(.*)"\}', series)
            if m and m.group(1) == name and n:
                found[(m.group(2), int(m.group(3)))] = n
        return found

    def all_see(self, what, seconds=60):
        """what(name, case) holds for every case, at once or after another."""
        left = set(self.cases)

        def check():
            for name in list(left):
                if what(name, self.cases[name]):
                    left.discard(name)
            return not left
        self.daemon.wait(check, seconds, lambda: "; ".join(
            f"{n}: {self.daemon.stream_status(n)['reason']} {self.errors(n)}" for n in left))

    def letters(self, name):
        found = self.daemon.ctl("dead", "ls", name, "--json")[1]
        return ([found] if isinstance(found, dict) else found) or []

    def counted(self, name):
        return self.server.rows(f"SELECT count(), uniqExact(id) FROM {self.tables[name]}")[0]

    def all_in(self, less=0, seconds=60):
        self.all_see(lambda name, c: self.counted(name)[1] == str(self.sent[name] - less), seconds)
        for name in self.cases:
            assert self.counted(name) == [str(self.sent[name] - less)] * 2, name
        self.all_see(lambda name, c: self.kafka.committed_offsets(
            self.daemon.group, self.topics[name]) == {0: self.sent[name]}, 30)
        assert self.daemon.metric("spoold_possible_duplicates_total") == 0


# ---- bad rows: one among good ones is found and buried, whatever the code --------------------

BOTH_DATA = {
    "throw": Case(395, "data", f"x UInt8 MATERIALIZED throwIf(id = {BAD})"),
    "division": Case(153, "data", f"x Int64 MATERIALIZED intDiv(1, toInt64(id) - {BAD})"),
    "eof": Case(32, "upload", "x UInt32 MATERIALIZED toUInt32(s)", s=""),
    "text": Case(6, "data", "x UInt32 MATERIALIZED toUInt32(s)", s="abc"),
    "date": Case(38, "data", "x Date MATERIALIZED toDate(if(s = '1', '2026-01-01', s))", s="abc"),
    "time": Case(41, "data", "x DateTime MATERIALIZED toDateTime(if(s = '1', "
                             "'2026-01-01 00:00:00', s))", s="abc"),
    "decimal": Case(407, "data", "x Decimal(9, 4) MATERIALIZED toDecimal32(n, 4)", n=5000000000),
    "long": Case(131, "data", "x FixedString(3) MATERIALIZED toFixedString(s, 3)"),
    "range": Case(69, "data", "x Array(UInt64) MATERIALIZED range(toUInt64(n))", n=-1),
    "null": Case(349, "data", f"x UInt8 MATERIALIZED CAST(if(id = {BAD}, NULL, 1) AS UInt8)"),
    "arrays": Case(190, "data", "x Array(Int64) MATERIALIZED arrayMap((a, b) -> toInt64(a + b), "
                                "[1], range(toUInt64(n)))", n=3),
}
OLD_DATA = BOTH_DATA | {
    "enum": Case(49, "data", "x Enum8('1' = 0, 'a' = 1) MATERIALIZED "
                             "CAST(s AS Enum8('1' = 0, 'a' = 1))"),
}
NEW_DATA = BOTH_DATA | {
    "check": Case(469, "data", f"CONSTRAINT c CHECK id != {BAD}"),
    "enum": Case(691, "data", "x Enum8('1' = 0, 'a' = 1) MATERIALIZED s", s="zzz"),
    "ipv4": Case(675, "data", "x IPv4 MATERIALIZED toIPv4(if(s = '1', '1.1.1.1', s))"),
    "ipv6": Case(676, "data", "x IPv6 MATERIALIZED toIPv6(if(s = '1', '::', s))"),
    "bool": Case(467, "data", "x Bool MATERIALIZED toBool(s)", s="perhaps"),
    "array": Case(128, "data", "x Array(UInt8) MATERIALIZED arrayWithConstant(n, 1)", n=-1),
    "number": Case(72, "data", "x UInt64 MATERIALIZED parseReadableSize(if(s = '1', '1 B', s))",
                   s=""),
    "undash": Case(27, "data", "x Int32 MATERIALIZED toModifiedJulianDay(if(s = '1', "
                               "'2026-01-01', s))", s="abc"),
    "cast": Case(70, "schema", "x Int8 MATERIALIZED accurateCast(n, 'Int8')", n=300),
    "base64": Case(117, "schema", "x String MATERIALIZED base64Decode(if(s = '1', '', s))", s="abc"),
    "json": Case(117, "schema", "x JSON MATERIALIZED CAST(if(s = '1', '{}', s) AS JSON)", s="["),
    "argument": Case(36, "unknown", "x UInt64 MATERIALIZED factorial(n)", n=300),
}


def test_bad_rows_by_code(kafka, server, spoold):
    cases = NEW_DATA if server.modern else OLD_DATA
    rig = Rig(kafka, server, spoold, cases)
    rig.send(bad=True)
    rig.daemon.start()
    rig.all_see(lambda name, c: rig.daemon.stream_status(name)["dead_letters"] == 1, 90)
    for name, c in cases.items():
        assert (c.class_, c.code) in rig.errors(name), (name, rig.errors(name))
        letter, = rig.letters(name)
        assert (letter["code"], letter["offset"]) == (c.code, BAD), (name, letter)
        assert json.loads(letter["record"])["id"] == BAD
    rig.all_in(less=1)
    for name in cases:
        assert rig.daemon.stream_status(name)["state"] == "running", name


# ---- what an operator must mend: held with its words, mended, and all goes in --------------------

BOTH_HELD = {
    "table": Case(60, "environment", provoke=("RENAME TABLE {t} TO {t}_away",),
                  mend=("RENAME TABLE {t}_away TO {t}",)),
    "database": Case(81, "environment", database="d_database", provoke=("DETACH DATABASE d_database",),
                     mend=("ATTACH DATABASE d_database",)),
    "column": Case(16, "schema", provoke=("ALTER TABLE {t} DROP COLUMN n",),
                   mend=("ALTER TABLE {t} ADD COLUMN n Int64",)),
    # All rows or none: no row is buried on suspicion.
    "every": Case(395, "data", "x UInt8", mend=("ALTER TABLE {t} DROP COLUMN x",), provoke=(
        "ALTER TABLE {t} MODIFY COLUMN x UInt8 MATERIALIZED throwIf(id > 5)",)),
    "empty": Case(32, "upload", "x UInt8", mend=("ALTER TABLE {t} DROP COLUMN x",), provoke=(
        "ALTER TABLE {t} MODIFY COLUMN x UInt8 MATERIALIZED toUInt8(if(s = '1', '', s))",)),
}
NEW_HELD = BOTH_HELD | {
    "argument": Case(36, "unknown", "x UInt64", mend=("ALTER TABLE {t} DROP COLUMN x",), provoke=(
        "ALTER TABLE {t} MODIFY COLUMN x UInt64 MATERIALIZED factorial(n + 300)",)),
    "space": Case(243, "environment", provoke=(
        "ALTER TABLE {t} MODIFY SETTING min_free_disk_ratio_to_perform_insert = 1",), mend=(
        "ALTER TABLE {t} RESET SETTING min_free_disk_ratio_to_perform_insert",)),
    "readonly": Case(774, "environment", provoke=(
        "ALTER TABLE {t} MODIFY SETTING table_readonly = 1",), mend=(
        "ALTER TABLE {t} MODIFY SETTING table_readonly = 0",)),
}


def test_what_must_be_mended_by_code(kafka, server, spoold):
    cases = NEW_HELD if server.modern else BOTH_HELD
    rig = Rig(kafka, server, spoold, cases)
    rig.send(5)
    rig.daemon.start()
    rig.all_in()
    for name, c in cases.items():
        rig.run(c.provoke, name)
    rig.send()
    rig.all_see(lambda name, c: (c.class_, c.code) in rig.errors(name)
                and rig.daemon.stream_status(name)["state"] == "held", 60)
    for name, c in cases.items():
        reason = rig.daemon.stream_status(name)["reason"]
        # A table that went was looked at at once, and its own state is the reason then.
        said = "exist" if c.code in (60, 81) else f"code {c.code}"
        assert said in reason or "column n" in reason, (name, reason)
    for name, c in cases.items():
        rig.run(c.mend, name)
    rig.all_in(seconds=60)
    for name in cases:
        rig.daemon.wait_state(name, "running")
        assert rig.daemon.stream_status(name)["dead_letters"] == 0, name


def test_one_row_alone_is_not_buried_on_suspicion(kafka, engine, spoold):
    """Nothing to compare it with: held, until the operator says that the code means the data."""
    rig = Rig(kafka, engine, spoold, {"one": NEW_DATA["argument"]})
    rig.sent["one"] = BAD
    rig.send(1, bad=True)
    rig.daemon.start()
    rig.daemon.wait(lambda: "code 36" in rig.daemon.stream_status("one")["reason"], 60, "held")
    assert "error_classes" in rig.daemon.stream_status("one")["reason"]
    assert rig.daemon.stream_status("one")["dead_letters"] == 0
    assert rig.daemon.sigterm() == 0
    rig.daemon.config["error_classes"] = {"36": "data"}
    rig.daemon.start()
    rig.daemon.wait(lambda: rig.daemon.stream_status("one")["dead_letters"] == 1, 30, "buried")
    assert [(d["code"], d["attempts"] > 0) for d in rig.letters("one")] == [(36, True)]
    rig.daemon.wait_state("one", "running")


def test_a_code_nobody_knows_is_not_sent_without_end(kafka, engine, spoold):
    """A table that can not tell: each attempt may double its rows, so they are few and far between."""
    topic = kafka.create_topic(1)
    table = engine.create_table("id UInt64, n Int64, x UInt64 MATERIALIZED factorial(n + 300)")
    kafka.send(topic, records(0, ROWS))
    daemon = spoold(kafka, engine, [stream("s", topic, table, columns=COLUMNS[0:3:2])]).start()
    daemon.wait(lambda: "code 36" in daemon.stream_status("s")["reason"], 60, "held")
    attempts = daemon.metric("spoold_errors_total", stream="s", code="36")
    assert attempts <= 5 and engine.count(table) == 0
    engine.query(f"ALTER TABLE {table} DROP COLUMN x")
    daemon.ctl("resume", "s")
    daemon.wait_rows(engine, table, ROWS)
    assert daemon.stream_status("s")["dead_letters"] == 0


# ---- what passes by itself: the same bytes again --------------------------------------------------

def test_too_many_parts_passes_when_they_are_merged(kafka, server, spoold):
    case = Case(252, "transient", engine="MergeTree ORDER BY id SETTINGS parts_to_throw_insert = 1, "
                "parts_to_delay_insert = 1" if not server.modern else
                "MergeTree ORDER BY id SETTINGS parts_to_throw_insert = 1, "
                "parts_to_delay_insert = 1, non_replicated_deduplication_window = 1000")
    rig = Rig(kafka, server, spoold, {"parts": case})
    rig.send(5)
    rig.daemon.start()
    rig.all_in()
    rig.send()
    rig.daemon.wait(lambda: rig.errors("parts").get(("transient", 252), 0) >= 3, 60, "refused")
    assert rig.daemon.stream_status("parts")["state"] == "running"
    rig.run(("TRUNCATE TABLE {t}",), "parts")
    rig.daemon.wait_rows(server, rig.tables["parts"], ROWS)
    assert rig.errors("parts").keys() == {("transient", 252)}


def test_an_insert_that_takes_too_long(kafka, engine, spoold):
    rig = Rig(kafka, engine, spoold, {"s": Case(
        159, "transient", "x UInt8 MATERIALIZED sleepEachRow(0.02)")}, {"settings": {
            "max_execution_time": "1", "max_block_size": "10"}})
    rig.send()
    rig.daemon.start()
    rig.daemon.wait(lambda: ("transient", 159) in rig.errors("s"), 60, "refused")
    rig.run(("ALTER TABLE {t} DROP COLUMN x",), "s")
    rig.all_in()


def test_an_insert_that_is_killed(kafka, engine, spoold, proxy):
    between = proxy(engine)
    rig = Rig(kafka, engine, spoold, {"s": Case(394, "transient")}, url=between.url)
    fault = between.arm(Fault("body", "stall", frames=1), "s")
    rig.send()
    rig.daemon.start()
    rig.daemon.wait(fault.struck.is_set, 30, "it is under way")
    engine.query(f"KILL QUERY WHERE query_id = '{between.inserts('s')[0].query_id}'")
    fault.release()
    rig.all_in()
    assert rig.errors("s") == {("transient", 394): 1}


# ---- on the way: damage of the upload ---------------------------------------------------------------

FLIPS = {"checksum": 3, "method": 16, "size": 17, "raw": 21, "data": 80}


@pytest.mark.parametrize("where", FLIPS)
def test_damaged_on_the_wire(kafka, server, spoold, proxy, where):
    """Once: sent again and in. Each time: held, nothing buried, and in when the wire is mended."""
    between = proxy(server)
    rig = Rig(kafka, server, spoold, {"s": Case(40, "upload")}, url=between.url)
    between.arm(Fault("body", "flip", at=FLIPS[where]), "s")
    rig.send()
    rig.daemon.start()
    rig.all_in()
    assert sum(n for (class_, _), n in rig.errors("s").items() if class_ == "upload") == 1, \
        rig.errors("s")
    fault = between.arm(Fault("body", "flip", at=FLIPS[where]), "s", times=1000)
    rig.send()
    rig.daemon.wait_state("s", "held", 60)
    assert "upload" in rig.daemon.stream_status("s")["reason"]
    assert {class_ for class_, _ in rig.errors("s")} == {"upload"}
    fault.times = 0
    rig.all_in()
    assert rig.daemon.stream_status("s")["dead_letters"] == 0


# ---- too big: smaller ones ------------------------------------------------------------------------

def test_a_batch_beyond_memory_is_halved(kafka, engine, spoold):
    rig = Rig(kafka, engine, spoold, {"s": Case(241, "too_big", options={
        "flush": {"rows": 40000, "interval": "20s"}})}, {"settings": {"max_memory_usage": "12000000"}})
    kafka.send(rig.topics["s"], [json.dumps({"id": i, "s": "x" * 900, "n": i}) for i in range(40000)])
    rig.sent["s"] = 40000
    rig.daemon.start()
    rig.all_in(seconds=120)
    assert ("too_big", 241) in rig.errors("s")
    assert rig.daemon.events("batch.too_big")
    assert rig.daemon.stream_status("s")["dead_letters"] == 0


def test_an_override_changes_what_is_done(kafka, engine, spoold):
    """Rows of more partitions than an insert may have: held, or halved where the operator says so."""
    case = Case(252, "environment", engine="MergeTree PARTITION BY id % 8 ORDER BY id SETTINGS "
                "non_replicated_deduplication_window = 1000", options={
                    "flush": {"rows": 4000, "interval": "5s"}})
    rig = Rig(kafka, engine, spoold, {"s": case}, {"settings": {"max_partitions_per_insert_block": "4"}})
    kafka.send(rig.topics["s"], [json.dumps({"id": i // 500, "s": "1", "n": i}) for i in range(4000)])
    rig.daemon.start()
    rig.daemon.wait(lambda: "code 252" in rig.daemon.stream_status("s")["reason"], 60, "held")
    assert engine.count(rig.tables["s"]) == 0
    assert rig.daemon.sigterm() == 0
    rig.daemon.config["error_classes"] = {"252": "too_big"}
    rig.daemon.start()
    rig.daemon.wait_rows(engine, rig.tables["s"], 4000, 60)
    assert engine.unique(rig.tables["s"], "n") == 4000
    assert ("too_big", 252) in rig.errors("s")


def test_a_setting_the_server_does_not_know(kafka, server, spoold):
    rig = Rig(kafka, server, spoold, {"s": Case(115, "environment")},
              {"settings": {"no_such_setting": "1"}})
    rig.send()
    rig.daemon.start()
    rig.daemon.wait(lambda: "code 115" in rig.daemon.stream_status("s")["reason"], 60, "held")
    assert rig.daemon.stream_status("s")["state"] == "held"
    assert ("environment", 115) in rig.errors("s")
    assert rig.daemon.sigterm() == 0
    rig.daemon.config["clickhouse"]["settings"] = {}
    rig.daemon.start()
    rig.all_in()


# ---- users and limits of a real server (18.16) ------------------------------------------------------

USER = """<{name}><password>{password}</password><profile>{profile}</profile><quota>{quota}</quota>
<networks><ip>{ip}</ip></networks>{more}</{name}>"""
SETTINGS = """<?xml version="1.0"?>
<yandex>
 <profiles>
  <default><max_memory_usage>4000000000</max_memory_usage></default>
  <reader><readonly>2</readonly></reader>
  <small><max_memory_usage>20000000</max_memory_usage></small>
  <single><max_concurrent_queries_for_user>1</max_concurrent_queries_for_user></single>
 </profiles>
 <users>{users}</users>
 <quotas>
  <default><interval><duration>3600</duration><queries>0</queries></interval></default>
  <few><interval><duration>3600</duration><queries>{queries}</queries></interval></few>
 </quotas>
</yandex>
"""


class Limited(OldServer):
    """A server of its own whose users change while it runs; it looks at the file every 2 s."""

    age = 1700000000

    def users(self, queries=40, **user):
        defaults = {"name": "default", "password": "", "profile": "default", "quota": "default",
                    "ip": "127.0.0.1", "more": ""}
        users = [defaults]
        if user:
            users.append({**defaults, "name": "spoold", **user})
        path = os.path.join(self.directory, "users.xml")
        with open(path + ".new", "w", encoding="utf-8") as f:
            f.write(SETTINGS.format(users="".join(USER.format(**u) for u in users), queries=queries))
        os.rename(path + ".new", path)
        self.age += 2  # it looks at the seconds of the time alone
        os.utime(path, (self.age, self.age))
        return self

    def lets_in(self, password=""):
        try:
            return self.query("SELECT 1", user="spoold", password=password) == "1"
        except ClickHouseError:
            return False


@pytest.fixture(scope="module")
def limited(run_directory):
    need(OldServer.unavailable())
    server = Limited(os.path.join(run_directory, "limited")).users(name="spoold")
    server.start()
    yield server
    server.stop()


def wait_users(server, condition):
    wait_until(condition, 30, "the server takes its users anew")


WRONG = {
    192: {"name": "somebody"},
    193: {"password": "other"},
    194: {"password": "other"},
    195: {"ip": "10.1.2.3"},
}
MAY_READ = {
    291: {"more": "<allow_databases><database>elsewhere</database></allow_databases>"},
    164: {"profile": "reader"},
}


@pytest.mark.parametrize("code", WRONG)
def test_a_user_who_is_not_let_in(kafka, limited, spoold, code):
    """From the start: said, with the server's words; goes on by itself once the user is mended."""
    password = "mine" if code == 193 else ""
    limited.users(**WRONG[code])
    wait_users(limited, lambda: not limited.lets_in(password))
    rig = Rig(kafka, limited, spoold, {"s": Case(code, "environment")},
              {"user": "spoold", "password": password})
    rig.send()
    rig.daemon.start()
    rig.daemon.wait(lambda: f"Code: {code}," in rig.daemon.status()["endpoints"][0]["reason"], 60,
                    lambda: rig.daemon.status()["endpoints"][0]["reason"])
    assert rig.daemon.stream_status("s")["state"] == "held"
    limited.users(password=password)
    rig.all_in(seconds=60)
    rig.daemon.wait_state("s", "running")


@pytest.mark.parametrize("code", MAY_READ)
def test_a_user_who_may_only_read(kafka, limited, spoold, code):
    limited.users(name="spoold")
    wait_users(limited, limited.lets_in)
    rig = Rig(kafka, limited, spoold, {"s": Case(code, "environment")}, {"user": "spoold"})
    rig.send(5)
    rig.daemon.start()
    rig.all_in()
    limited.users(**MAY_READ[code])
    wait_users(limited, lambda: may_not_insert(limited, rig.tables["s"]))
    rig.send()
    rig.daemon.wait(lambda: ("environment", code) in rig.errors("s"), 60, "refused")
    assert f"code {code}" in rig.daemon.stream_status("s")["reason"]
    limited.users(name="spoold")
    rig.all_in(seconds=60)
    rig.daemon.wait_state("s", "running")


def may_not_insert(server, table):
    """An INSERT of no rows tells."""
    try:
        server.query(f"INSERT INTO {table} (id) SELECT id FROM {table} WHERE 0", user="spoold")
    except ClickHouseError:
        return True
    return False


def test_a_quota_that_is_used_up(kafka, limited, spoold):
    limited.users(quota="few", queries=30)
    rig = Rig(kafka, limited, spoold, {"s": Case(201, "environment")}, {"user": "spoold"})
    rig.daemon.start()

    def exceeded():
        rig.send(1)
        return "ode: 201" in rig.daemon.stream_status("s")["reason"]
    rig.daemon.wait(exceeded, 60, "the quota is used up")
    assert rig.daemon.stream_status("s")["state"] == "held"
    limited.users(quota="default")
    rig.all_in(seconds=60)
    rig.daemon.wait_state("s", "running")


def test_a_user_with_little_memory(kafka, limited, spoold):
    limited.users(profile="small")
    rig = Rig(kafka, limited, spoold, {"s": Case(241, "too_big", options={
        "flush": {"rows": 40000, "interval": "10s"}})}, {"user": "spoold"})
    kafka.send(rig.topics["s"], [json.dumps({"id": i, "s": "x" * 900, "n": i}) for i in range(40000)])
    rig.sent["s"] = 40000
    wait_users(limited, lambda: limited.query(
        "SELECT value FROM system.settings WHERE name = 'max_memory_usage'",
        user="spoold") == "20000000")
    rig.daemon.start()
    rig.daemon.wait(lambda: rig.daemon.events("batch.too_big"), 60, "halved")
    assert ("too_big", 241) in rig.errors("s")
    limited.users(profile="default")
    rig.all_in(seconds=90)
    assert rig.daemon.stream_status("s")["dead_letters"] == 0


def test_more_queries_than_a_user_may_run(kafka, limited, spoold):
    limited.users(profile="single")
    rig = Rig(kafka, limited, spoold, {"s": Case(202, "transient",
                                                "x UInt8 MATERIALIZED sleepEachRow(0.01)", options={
        "flush": {"rows": 100, "interval": "100ms", "max_in_flight": 4}})}, {"user": "spoold"})
    rig.daemon.start()

    def refused():
        rig.send(10)
        return ("transient", 202) in rig.errors("s")
    rig.daemon.wait(refused, 60, "refused")
    rig.run(("ALTER TABLE {t} DROP COLUMN x",), "s")
    limited.users(profile="default")
    rig.all_in(seconds=60)


# ---- what a user of a modern server may do, taken and given --------------------------------------------

CONFIG_XML = """<clickhouse><path>{path}/</path>
<user_directories><users_xml><path>{users}</path></users_xml></user_directories></clickhouse>"""
USERS_XML = """<clickhouse><profiles><default>{profile}</default></profiles><quotas><default/></quotas>
<users><default><password/><profile>default</profile><quota>default</quota>
<networks><ip>::/0</ip></networks><grants><query>GRANT ALL ON *.*</query>{revoked}</grants>
</default></users></clickhouse>"""


class Granted(Engine):
    """An engine that starts with the rights and the password it is told."""

    def __init__(self, directory):
        super().__init__(directory)
        self.config = os.path.join(self.directory, "config.xml")
        self.users = os.path.join(self.directory, "users.xml")
        with open(self.config, "w", encoding="utf-8") as f:
            f.write(CONFIG_XML.format(path=os.path.join(self.directory, "data"), users=self.users))

    def _argv(self):
        argv = super()._argv()
        return argv[:argv.index("--user")] + [
            "--config", self.config, "--user", "default",
            "--user", "spoold", "--password", self.spoold_password]

    def start_with(self, revoked="", password="", **profile):
        if self.alive():
            self.stop()
        self.spoold_password = password
        with open(self.users, "w", encoding="utf-8") as f:
            f.write(USERS_XML.format(
                profile="".join(f"<{name}>{value}</{name}>" for name, value in profile.items()),
                revoked=f"<query>REVOKE {revoked}</query>" if revoked else ""))
        return self.start()


@pytest.fixture(scope="module")
def granted(run_directory):
    need(Engine.unavailable())
    server = Granted(os.path.join(run_directory, "granted"))
    yield server
    server.stop()


def test_a_password_that_is_not_the_users(kafka, granted, spoold):
    granted.start_with(password="another")
    rig = Rig(kafka, granted, spoold, {"s": Case(516, "environment")},
              {"user": "spoold", "password": "mine"})
    rig.send()
    rig.daemon.start()
    rig.daemon.wait(lambda: "Code: 516." in rig.daemon.status()["endpoints"][0]["reason"], 60,
                    lambda: rig.daemon.status()["endpoints"][0]["reason"])
    assert rig.daemon.stream_status("s")["state"] == "held"
    granted.start_with(password="mine")
    rig.all_in(seconds=60)
    rig.daemon.wait_state("s", "running")


def test_the_right_to_insert_is_taken(kafka, granted, spoold):
    granted.start_with()
    rig = Rig(kafka, granted, spoold, {"s": Case(497, "environment")})
    rig.send(5)
    rig.daemon.start()
    rig.all_in()
    granted.start_with(revoked=f"INSERT ON default.{rig.tables['s']}")
    rig.send()
    rig.daemon.wait(lambda: ("environment", 497) in rig.errors("s"), 60, "refused")
    rig.daemon.wait_state("s", "held")
    assert "code 497" in rig.daemon.stream_status("s")["reason"]
    granted.start_with()
    rig.all_in(seconds=60)
    rig.daemon.wait_state("s", "running")


def test_the_right_to_read_is_taken(kafka, granted, proxy, spoold):
    """It is wanted only where an answer is lost."""
    granted.start_with()
    between = proxy(granted)
    rig = Rig(kafka, granted, spoold, {"s": Case(497, "environment")}, url=between.url)
    rig.send(5)
    rig.daemon.start()
    rig.all_in()
    taken = threading.Event()
    lost = between.arm(Fault("answer", how="rst", on_strike=lambda: taken.wait(60)), "s")
    rig.send()
    rig.daemon.wait(lambda: lost.count, 30, "an insert")
    granted.start_with(revoked=f"SELECT ON default.{rig.tables['s']}")
    taken.set()
    rig.daemon.wait_state("s", "held", 60)
    reason = rig.daemon.stream_status("s")["reason"]
    assert "can't be asked" in reason and "code 497" in reason and "SELECT on" in reason, reason
    granted.start_with()
    rig.all_in(seconds=60)
    rig.daemon.wait_state("s", "running")


# ---- the server's disk ------------------------------------------------------------------------------

def test_the_servers_disk_is_full(kafka, small_disk, spoold):
    """75 with errno 28: held; goes on when there is room."""
    need(OldServer.unavailable())
    server = OldServer(os.path.join(small_disk, "server")).start()
    try:
        rig = Rig(kafka, server, spoold, {"s": Case(75, "environment")})
        filler = os.path.join(small_disk, "filler")
        rig.send(5)
        rig.daemon.start()
        rig.all_in()
        with open(filler, "wb") as f:
            try:
                while True:
                    f.write(bytes(65536))
                    f.flush()
            except OSError:
                pass
        rig.send(5000)
        rig.daemon.wait(lambda: rig.daemon.stream_status("s")["state"] == "held", 60, "held")
        assert rig.errors("s").keys() & {("environment", 75), ("environment", 243)}, rig.errors("s")
        os.unlink(filler)
        rig.all_in(seconds=60)
        rig.daemon.wait_state("s", "running")
    finally:
        server.stop()


def test_a_profile_that_ends_an_insert_quietly(kafka, granted, spoold):
    """Where timeout_overflow_mode is break, an insert that takes too long stores nothing and is
    answered 200."""
    granted.start_with(max_execution_time=1, timeout_overflow_mode="break", max_block_size=10)
    rig = Rig(kafka, granted, spoold, {"s": Case(
        159, "transient", "x UInt8 MATERIALIZED sleepEachRow(0.02)")})
    rig.send()
    rig.daemon.start()
    rig.daemon.wait(lambda: ("transient", 159) in rig.errors("s"), 60, "refused")
    rig.run(("ALTER TABLE {t} DROP COLUMN x",), "s")
    rig.all_in()


def test_a_profile_that_cuts_batches(kafka, granted, spoold):
    granted.start_with(use_strict_insert_block_limits=1, max_insert_block_size=100)
    rig = Rig(kafka, granted, spoold, {"s": Case(0, "none", engine="MergeTree ORDER BY id", options={
        "flush": {"rows": 1000, "interval": "10m"}})})
    rig.send(1000)
    rig.daemon.start()
    rig.all_in()
    assert granted.query("SELECT count() FROM system.parts WHERE level = 0 AND "
                         f"table = '{rig.tables['s']}'") == "1"


def test_a_profile_that_ends_lines_otherwise(kafka, granted, proxy, spoold):
    granted.start_with(output_format_tsv_crlf_end_of_line=1)
    between = proxy(granted)
    rig = Rig(kafka, granted, spoold, {"s": Case(0, "none", engine="MergeTree ORDER BY id")},
              url=between.url)
    between.arm(Fault("answer", how="rst"), "s")
    rig.send(1000)
    rig.daemon.start()
    rig.daemon.wait(lambda: kafka.committed_offsets(rig.daemon.group, rig.topics["s"]) == {0: 1000},
                    60, "committed")
    assert [e["stored"] for e in rig.daemon.events("batch.asked")] == ["1000"]
    assert granted.count(rig.tables["s"]) == 1000


def test_a_profile_that_deduplicates_nothing(kafka, granted, proxy, spoold):
    granted.start_with(deduplicate_insert="disable")
    between = proxy(granted)
    topic, table = kafka.create_topic(1), granted.create_bench_table(window=1000)
    between.arm(Fault("answer", how="rst"), "s")
    kafka.produce(topic, ROWS)
    daemon = spoold(kafka, between.url, [stream("s", topic, table)]).start()
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: ROWS}, 60, "committed")
    assert granted.count(table) == ROWS
    assert daemon.metric("spoold_possible_duplicates_total") == 0


@pytest.mark.parametrize("profile", [
    {"max_result_rows": 100, "result_overflow_mode": "break"},
    {"max_rows_to_read": 100, "read_overflow_mode": "break"},
    {"limit": 100},
], ids=["result", "read", "limit"])
def test_a_profile_that_cuts_answers(kafka, granted, proxy, spoold, profile):
    """What the table was not let say is no proof that rows are missing."""
    granted.start_with()
    between = proxy(granted)
    rig = Rig(kafka, granted, spoold, {"s": Case(0, "none", engine="MergeTree ORDER BY id "
                                              "SETTINGS index_granularity = 64", options={
        "flush": {"rows": 1000, "interval": "10m"}})}, url=between.url)
    taken = threading.Event()
    lost = between.arm(Fault("answer", how="rst", on_strike=lambda: taken.wait(60)), "s")
    rig.send(1000)
    rig.daemon.start()
    rig.daemon.wait(lambda: lost.count, 30, "an insert")
    granted.start_with(max_block_size=10, **profile)
    taken.set()
    if "limit" not in profile:
        rig.daemon.wait_state("s", "held", 60)
        assert "can't be asked" in rig.daemon.stream_status("s")["reason"]
        granted.start_with()
    rig.daemon.wait(lambda: kafka.committed_offsets(rig.daemon.group, rig.topics["s"]) == {0: 1000},
                    60, "committed")
    assert granted.count(rig.tables["s"]) == 1000
