# SPDX-License-Identifier: Apache-2.0
"""The same JSON values through spoold's decoder (a Native block) and, as JSONEachRow, through the
server: the two tables must show the same text, row by row. What the server refuses spoold must refuse;
what only spoold refuses, or reads otherwise, must stand in tests/data/json-difference-rules.tsv.

SEED=n or SEED=random tries other values; DIFF_RECORDS=n sets how many are made in all, DIFF_TYPES=regex which
types.
DIFF_REPORT=path gets every unexplained difference."""
import os
import random
import re
import struct
import subprocess

import pytest

from support import differences
from support.clickhouse import ClickHouseError
from support.jsonvalues import TYPES

SEED = os.environ.get("SEED") or "1"
if SEED == "random":
    SEED = str(random.SystemRandom().randrange(1 << 32))
RECORDS = int(os.environ.get("DIFF_RECORDS") or 206000)
CHOSEN = [row for row in TYPES if re.search(os.environ.get("DIFF_TYPES") or "", row.type)]
ALONE_MAX = 24  # values of a type that may spoil their neighbours, each inserted by itself
# Bad rows are passed over: a first sorting, which settle() makes good.
PASS_OVER = {"input_format_allow_errors_num": 1000000000}
DDL = {"allow_suspicious_low_cardinality_types": 1, "allow_experimental_time_time64_type": 1}

totals = {"pairs": set(), "records": 0, "edges": 0, "unchecked": [], "types": 0}


def decoded(row):
    """Whether spoold decodes the type already; the others take no share of the records."""
    said = subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "jsonblock"), os.devnull, "26.7", "UTC", row.type],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout
    return said.strip() != b"unchecked"


@pytest.fixture(scope="module")
def share():
    return max(RECORDS // sum(map(decoded, CHOSEN)), 100)


def record(key, value):
    return b'{"k":%d,"c":%s}' % (key, value)


def stands_alone(value):
    """Whether a reader that trips over the value finds the end of its line again."""
    rest, strings = re.subn(rb'"(?:[^"\\\n]|\\[^\n])*"', b"", value)
    if re.search(rb'["\\\n]', rest):
        return False
    brackets = re.sub(rb"[^][{}]", b"", rest)
    while True:
        less = re.sub(rb"\[\]|\{\}", b"", brackets)
        if less == brackets:
            return not brackets
        brackets = less


def generate(row, rng, count):
    """[(value, edge)] without duplicates as far as the type has so many values."""
    seen, made = set(), []
    for _ in range(count):
        for _ in range(3):
            value, edge = row.kind.value(rng)
            if value not in seen:
                break
        seen.add(value)
        made.append((value, edge))
    return made


def through_spoold(row, server, values, directory):
    """(form, [outcome], block path): outcome "ok" or [refusal, position, sentence]."""
    block = os.path.join(directory, "block")
    texts = [record(k, value) for k, value in enumerate(values)]
    done = subprocess.run(
        [os.path.join(os.environ["SUPPORT_DIR"], "jsonblock"), block, "26.7" if server.modern else "18.16", "UTC",
         row.type], input=b"".join(struct.pack("<I", len(t)) + t for t in texts), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, f"jsonblock {row.type}: {done.stderr.decode(errors='replace')}"
    form, *lines = done.stdout.decode(errors="replace").split("\n")[:-1]
    assert len(lines) == len(values)
    return form, lines, block


def shown(server, table, row, low=0, high=1 << 20):
    """key -> the row's text, without rows that are there and can't be read (an Enum's unknown number)."""
    try:
        text = server.post(f"SELECT k, {row.show} FROM {table} WHERE k >= {low} AND k < {high} FORMAT TabSeparated")
    except ClickHouseError as error:
        if high - low == 1 and error.code in (49, 691):
            return {}
        if high - low == 1:
            raise
        middle = (low + high) // 2
        return {**shown(server, table, row, low, middle), **shown(server, table, row, middle, high)}
    found = {}
    for line in text.split(b"\n")[:-1]:
        key, _, rest = line.partition(b"\t")
        assert int(key) not in found, f"row {key} twice"
        found[int(key)] = rest.decode(errors="backslashreplace")
    return found


class Table:
    """A table of k and the type, filled as JSONEachRow."""

    def __init__(self, server, row):
        self.server, self.row = server, row
        self.name = f"diff_{os.urandom(4).hex()}"
        server.query(f"CREATE TABLE {self.name} (k UInt32, c {row.ddl}) ENGINE = Memory",
                     **(DDL if server.modern else {}))

    def insert_bulk(self, keys, values, **settings):
        """All lines in one body. On an error the halves go by themselves, so that in the end all are in that
        can be."""
        if not keys:
            return
        try:
            self.server.post(f"INSERT INTO {self.name} FORMAT JSONEachRow",
                             b"\n".join(record(k, values[k]) for k in keys) + b"\n", **settings)
        except ClickHouseError:
            if len(keys) > 1:
                half = len(keys) // 2
                self.insert_bulk(keys[:half], values, **settings)
                self.insert_bulk(keys[half:], values, **settings)

    def insert_alone(self, key, value):
        """The error's code, or None."""
        try:
            self.server.post(f"INSERT INTO {self.name} FORMAT JSONEachRow", record(key, value) + b"\n")
            return None
        except ClickHouseError as error:
            return error.code or -1

    def drop(self):
        self.server.drop_table(self.name)


def settle(table, values, outcomes, theirs):
    """Passing over bad rows is not free of faults in the server: a good row behind a bad one may be lost, and
    in a Nullable(Decimal) it gets another row's value. So the rows that came through go in again by
    themselves, and what looks like a difference goes in alone."""
    again = Table(table.server, table.row)
    try:
        keys = sorted(theirs)
        if keys:
            again.insert_bulk(keys, values)
        good = shown(table.server, again.name, table.row)
        examples = len(differences.examples(table.row.type))
        for k in [k for k in range(len(values))
                  if k not in good and (outcomes[k] == "ok" or k in theirs or k < examples)][:200]:
            if again.insert_alone(k, values[k]) is None:
                good = None
        return shown(table.server, again.name, table.row) if good is None else good
    finally:
        again.drop()


def verdict(row, value, outcome, ours, theirs, modern):
    """None, or how an unexplained difference reads. theirs: None where the server refused; modern: for the
    old server, what the modern one made of the value (else theirs)."""
    old = modern is not theirs
    refusal = None if outcome == "ok" else outcome.split("\t")[0]
    if refusal:
        if theirs is None or modern is None or differences.explains("26.7", row.type, value, refusal):
            return None
        return f"spoold: REFUSED {refusal}\tserver: {theirs}"
    if ours == theirs or (theirs is not None and differences.same_value(ours, theirs)):
        return None
    if not old and differences.explains("26.7", row.type, value, "takes" if theirs is None else "differs"):
        return None
    if old and modern is not None and differences.same_value(ours.split("\t")[-1], modern.split("\t")[-1]) and \
            differences.explains("18.16", row.type, value, "takes" if theirs is None else "differs"):
        return None
    return f"spoold: {ours}\tserver: {theirs if theirs is not None else 'REFUSED'}" + (
        f"\t26.7: {modern}" if old else "")


class Run:
    """One type's values through spoold and one server."""

    def __init__(self, row, server, directory, values):
        self.row, self.values = row, values
        block_table = Table(server, row)
        table = Table(server, row)
        try:
            self.form, self.outcomes, block = through_spoold(row, server, values, directory)
            if self.form == "unchecked":
                return
            with open(block, "rb") as f:
                body = f.read()
            if body:
                form = "Native" if self.form == "native" else "JSONEachRow"
                server.post(f"INSERT INTO {block_table.name} (k, c) FORMAT {form}", body, decompress=1)
            self.ours = shown(server, block_table.name, row)
            assert len(self.ours) == self.outcomes.count("ok")
            table.insert_bulk([k for k, v in enumerate(values) if stands_alone(v)], values, **PASS_OVER)
            for k, v in enumerate(values):
                if not stands_alone(v):
                    table.insert_alone(k, v)
            self.theirs = settle(table, values, self.outcomes, shown(server, table.name, row))
        finally:
            table.drop()
            block_table.drop()

    def wrong(self, modern=None):
        """Lines of unexplained differences."""
        lines = []
        for k, value in enumerate(self.values):
            theirs = self.theirs.get(k)
            said = verdict(self.row, value, self.outcomes[k], self.ours.get(k), theirs,
                           modern.theirs.get(k) if modern else theirs)
            if said:
                lines.append(f"{self.row.type}\t{value!r}\t{said}")
        return lines


def make_values(row, count):
    made = differences.examples(row.type)
    made += generate(row, random.Random(f"{SEED} {row.type}"), count)
    loners = [i for i, (value, _) in enumerate(made) if not stands_alone(value)][ALONE_MAX:]
    for i in reversed(loners):
        del made[i]
    return made


@pytest.fixture(scope="module", autouse=True)
def seed():
    print(f"SEED={SEED}")


def report(wrong):
    path = os.environ.get("DIFF_REPORT")
    if path:
        with open(path, "a", encoding="utf-8") as f:
            f.writelines(line + "\n" for line in wrong)
    return f"{len(wrong)} differences, SEED={SEED}:\n" + "\n".join(wrong[:25])


@pytest.mark.parametrize("row", CHOSEN, ids=str)
def test_values_land_as_in_the_engine(engine, tmp_path, share, row):
    made = make_values(row, share)
    run = Run(row, engine, tmp_path, [value for value, _ in made])
    if run.form == "unchecked":
        totals["unchecked"].append(row.type)
        pytest.skip("not decoded yet: goes as it comes")
    wrong = run.wrong()
    assert not wrong, report(wrong)
    totals["types"] += 1
    totals["records"] += len(made)
    totals["edges"] += sum(edge for _, edge in made)
    totals["pairs"].update((row.type, value) for value, _ in made)
    accepted = run.outcomes.count("ok") / len(made)
    print(f"{row.type}: {run.form}, {len(made)} values, {accepted:.0%} accepted")
    assert accepted >= 0.05
    assert row.never_refuses or accepted <= 0.95


@pytest.mark.parametrize("row", [row for row in CHOSEN if row.old], ids=str)
def test_values_land_in_the_old_server(clickhouse, engine, tmp_path, share, row):
    """What 26.7 makes of a value lands in 18.16 too, whatever 18.16 itself would read."""
    values = [value for value, _ in make_values(row, share // 6)]
    run = Run(row, clickhouse, tmp_path, values)
    if run.form == "unchecked":
        pytest.skip("not decoded yet: goes as it comes")
    wrong = run.wrong(Run(row, engine, tmp_path, values))
    assert not wrong, report(wrong)


def test_every_rule_was_used():
    """After the others: a rule whose example is no difference any more is to be taken out."""
    if os.environ.get("DIFF_TYPES") or not totals["types"]:
        pytest.skip("a part of the types or records")
    assert not [rule.line for rule in differences.RULES if not rule.used]


def test_enough_was_tried():
    """After the others: how much it was."""
    if os.environ.get("DIFF_TYPES") or os.environ.get("DIFF_RECORDS") or not totals["types"]:
        pytest.skip("a part of the types or records")
    print(f"{totals['types']} types, {len(totals['pairs'])} pairs, {totals['records']} records, SEED={SEED}, "
          f"not decoded: {totals['unchecked']}")
    assert len(totals["pairs"]) >= 3000
    assert totals["edges"] >= 0.3 * totals["records"]
    assert totals["records"] >= 200000
