# SPDX-License-Identifier: Apache-2.0
"""Columns of few distinct strings go as LowCardinality where the server converts; what arrives must
be what was sent, whatever the table's column is, and beside blocks that go plain."""
import json

from support.spoold import stream

ROWS = 40000
COLUMNS = "id UInt64, word String, low {low}, mixed String, n Nullable(String)"


def mixed(i):
    """Few values in the first half of the records, nothing but different ones in the second."""
    return f"w{i % 5}" if i < ROWS // 2 else f"only-{i}"


def record(i):
    words = ["", "foo", "bar\t\u00e9", "x" * 60, "b'az\\"]
    return json.dumps({"id": i, "word": words[i * 7 % 5], "low": f"low-{i % 200}",
                       "mixed": mixed(i), "n": None if i % 3 else "yes"}, ensure_ascii=False)


def test_words_arrive_as_they_were_sent(kafka, server, spoold):
    low = "LowCardinality(String)" if server.modern else "String"
    topic = kafka.create_topic(2)
    table = server.create_table(COLUMNS.format(low=low), order_by="id", window=1000)
    kafka.send(topic, [record(i) for i in range(ROWS)])
    # One insert for all: blocks of both forms stand in it.
    daemon = spoold(kafka, server, [stream("s", topic, table, flush={"interval": "3s"})]).start()
    daemon.wait(lambda: daemon.stream_status("s")["rows_spooled"] == ROWS
                or server.count(table) == ROWS, 30, "all rows spooled")
    shown = daemon.ctl("--json", "show", "s", "--limit", "200")[1]
    daemon.wait_rows(server, table, ROWS)
    assert server.unique(table) == ROWS
    wrong = server.rows(
        f"SELECT id, word, low, mixed, n FROM {table} WHERE low != concat('low-', toString(id % 200))"
        f" OR mixed != if(id < {ROWS // 2}, concat('w', toString(id % 5)), "
        f"concat('only-', toString(id))) OR isNull(n) != (id % 3 != 0) LIMIT 3")
    assert wrong == []
    words = server.rows(f"SELECT id * 7 % 5 AS w, hex(any(word)), uniqExact(word) FROM {table} "
                        "GROUP BY w ORDER BY w")
    assert words == [[str(i), word.encode().hex().upper(), "1"] for i, word in
                     enumerate(["", "foo", "bar\t\u00e9", "x" * 60, "b'az\\"])]
    assert shown
    for row in shown:
        row = row.get("record", row)
        assert row["low"] == f"low-{row['id'] % 200}" and row["mixed"] == mixed(row["id"])
    assert daemon.ctl("verify")[0] == 0
