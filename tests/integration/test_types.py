# SPDX-License-Identifier: Apache-2.0
"""A table with a column of every type: what arrives through the daemon is what the server's own
JSONEachRow makes of the same records, and no column needs the JSONEachRow fallback."""
import json
import os
import random
import re

from support.clickhouse import ClickHouseError
from support.spoold import stream

PAGE = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "types.md")

# Name, type, values as JSON. Where a value is no JSON text of Python's making it is written as it is.
BOTH = [
    ("i8", "Int8", [-128, 127, 0]),
    ("i16", "Int16", [-32768, 32767]),
    ("i32", "Int32", [-2147483648, 2147483647]),
    ("i64", "Int64", [-9223372036854775808, 9223372036854775807]),
    ("u8", "UInt8", [0, 255]),
    ("u16", "UInt16", [0, 65535]),
    ("u32", "UInt32", [0, 4294967295]),
    ("u64", "UInt64", [0, 18446744073709551615, 9007199254740993]),
    ("f32", "Float32", [0.5, -3.5, 16777216]),
    ("f64", "Float64", [0.1, -1e300, 1.7976931348623157e308, 2.5]),
    ("s", "String", ["", "a\tb\n\"\\ \u00e9 \U0001f600", "x" * 1000]),
    ("fs", "FixedString(4)", ["", "abcd", "a"]),
    ("uuid", "UUID", ["00112233-4455-6677-8899-aabbccddeeff", "00000000-0000-0000-0000-000000000000"]),
    ("d", "Date", ["1970-01-02", "2026-11-23", "2105-12-31"]),
    ("dt", "DateTime", ["2026-11-23 12:34:56", "2038-01-19 03:14:08"]),
    ("dtz", "DateTime('Europe/Berlin')", ["2026-07-01 00:00:00", "2026-01-01 00:00:00"]),
    ("e8", "Enum8('foo' = 1, 'bar' = -2)", ["foo", "bar"]),
    ("e16", "Enum16('a' = -500, 'b' = 1000)", ["a", "b"]),
    ("dec9", "Decimal(9, 2)", [0, 1.25, -9999999.99]),
    ("dec18", "Decimal(18, 4)", [1.0001, -99999999999999]),
    ("dec38", "Decimal(38, 6)", [1.25, "RAW:12345678901234567890123456789012.123456"]),
    ("n", "Nullable(Int32)", [None, 5, -2147483648]),
    ("ns", "Nullable(String)", [None, "", "x"]),
    ("a", "Array(UInt16)", [[], [1, 65535]]),
    ("aan", "Array(Array(Nullable(String)))", [[], [[], ["x", None]], [["y"], [""]]]),
    ("lc", "LowCardinality(String)", ["", "x", "y", "x"]),
    ("lcn", "LowCardinality(Nullable(String))", [None, "", "x"]),
    ("alc", "Array(LowCardinality(String))", [[], ["a", "b", "a"], ["", "b"]]),
    ("nest.a", "Array(UInt8)", [[], [1, 2]]),
    ("nest.b", "Array(String)", [[], ["x", "y"]]),
    ("tu", "Tuple(UInt8, String)", [[1, "x"], [255, ""]]),
    ("tulc", "Tuple(LowCardinality(String), Array(Nullable(Int8)))", [["x", [1, None]], ["", []]]),
    # by name, in any order; 18.16 itself reads an array there, spoold an object everywhere
    ("tn", "Tuple(a Int32, b String)", [{"b": "x", "a": -1}, {"a": 7, "b": ""}]),
]
MODERN = [
    ("i128", "Int128", ["RAW:-170141183460469231731687303715884105728", 1]),
    ("u128", "UInt128", ["RAW:340282366920938463463374607431768211455", 0]),
    ("i256", "Int256", ["RAW:-578960446186580977117854925043439539266349923328202820197287920039"
                        "56564819968", -1]),
    ("u256", "UInt256", ["RAW:115792089237316195423570985008687907853269984665640564039457584007913"
                         "129639935", "5"]),
    ("bf", "BFloat16", [1.1, -2.5, "RAW:3e38"]),
    ("b", "Bool", [True, False]),
    ("d32", "Date32", ["1900-01-01", "2299-12-31"]),
    ("dt0", "DateTime64(0, 'UTC')", ["2026-11-23 12:34:56", "1969-12-31 23:59:59"]),
    ("dt3", "DateTime64(3)", ["2026-11-23T12:34:56.789Z", "1900-01-01 00:00:00.001"]),
    ("dt6", "DateTime64(6, 'America/New_York')", ["2026-11-23 12:34:56.789012"]),
    ("dt9", "DateTime64(9)", ["2026-11-23 12:34:56.123456789"]),
    ("t", "Time", ["12:34:56", "-999:59:59", 45296]),
    ("t0", "Time64(0)", ["12:34:56"]),
    ("t3", "Time64(3)", ["-00:00:00.5", "999:59:59.999", 1500]),
    ("t9", "Time64(9)", ["12:34:56.123456789"]),
    ("dec76", "Decimal(76, 10)", ["RAW:123456789012345678901234567890123456789012345678901234567890123456"
                                  ".0123456789", -0.5, "1e60"]),
    ("ip4", "IPv4", ["0.0.0.0", "255.255.255.255", "1.2.3.4"]),
    ("ip6", "IPv6", ["::", "2001:db8::1", "1.2.3.4"]),
    ("nt", "Nullable(Time64(3))", [None, "01:02:03.4"]),
    ("ni", "Nullable(Int256)", [None, -7]),
    ("tnn", "Tuple(a Tuple(b Array(UInt8), c Nullable(String)), d LowCardinality(String))",
     [{"a": {"b": [1, 2]}}, {"zz": [1, {}], "d": "x", "a": {"c": "y"}}, {}]),
    ("m", "Map(String, UInt32)", [{}, {"a": 1, "b": 4294967295}, "RAW:{\"a\":1,\"a\":2}"]),
    ("mk", "Map(UInt64, Array(String))", [{"7": ["x"], "18446744073709551615": []}]),
    ("md", "Map(Date, Tuple(x Int8))", [{"2026-11-23": {"x": -1}}, {}]),
    ("mlc", "Map(LowCardinality(String), Map(String, Nullable(Int8)))", [{"a": {"b": None, "c": 1}}]),
    ("atn", "Array(Tuple(k String, v Int32))", [[], [{"k": "a", "v": 1}, {"v": 2}]]),
    ("j", "JSON", [{}, {"a": 1, "b": {"c": [1, "x", None, {"d": 1.5}]}, "e": "2026-11-23"},
                   {"a.b": True, "u": 18446744073709551615}]),
    ("jt", "JSON(a UInt32, SKIP z)", [{"a": 1, "b": "x", "z": 5}, {}]),
    ("aj", "Array(JSON)", [[{"a": 1}, {"a": "x"}], []]),
    ("v", "Variant(String, Int64, Array(UInt8))", ["abc", 42, [1, 2], None, 1.5, True]),
    ("vn", "Variant(Bool, Float64, Map(String, UInt8))", [True, 2.5, {"a": 1}, None]),
    ("av", "Array(Variant(Date, UInt16))", [["2026-11-23", 7, None], []]),
    ("dy", "Dynamic", ["abc", None, "x y", 42, 1.5, True, 18446744073709551615, "42"]),
    ("ady", "Array(Dynamic)", [[], ["x", None, "y"]]),
    ("pt", "Point", [[1, -2.5], [0, 0]]),
    ("ring", "Ring", [[[0, 0], [1, 0], [1, 1]], []]),
    ("ls", "LineString", [[[0, 0], [1.5, 0]]]),
    ("mls", "MultiLineString", [[[[0, 0], [1, 0]], []]]),
    ("pol", "Polygon", [[[[0, 0], [1, 0], [1, 1]]]]),
    ("mpol", "MultiPolygon", [[[[[0, 0], [1, 0], [1, 1]]]], []]),
    ("geo", "Geometry", [[1, -2.5], [[0, 0], [1, 0]], [[[0, 0], [1, 0]]], [[[[0, 0], [1, 1]]]], None, []]),
    ("ageo", "Array(Geometry)", [[[1, 2], [[1, 2]], None], []]),
    ("saf", "SimpleAggregateFunction(sum, UInt64)", [18446744073709551615, 0]),
    ("safn", "SimpleAggregateFunction(max, Nullable(Int32))", [None, -5]),
    ("iv", "IntervalSecond", [5, -5]),
    ("lcf", "LowCardinality(FixedString(2))", ["ab", ""]),
    ("lcu", "LowCardinality(UInt32)", [5, 4294967295]),
]
SETTINGS = {"allow_suspicious_low_cardinality_types": 1}
SETTINGS_OLD = {"allow_experimental_low_cardinality_type": 1}


def text(value):
    if isinstance(value, str) and value.startswith("RAW:"):
        return value[4:]
    return json.dumps(value, ensure_ascii=False)


def record(columns, i, change=lambda name, value: value):
    members = [f'"id":{i}']
    members += [f"{json.dumps(name)}:{text(change(name, values[i % len(values)]))}"
                for name, _, values in columns]
    return "{" + ",".join(members) + "}"


def assert_native(daemon, name="s"):
    """No table-wide fallback, and each stored block is a Native one."""
    assert daemon.stream_status(name)["format"] == "native"
    blocks = json.loads(daemon.control("GET", f"/streams/{name}/blocks")[1])["blocks"]
    assert blocks and {block["format"] for block in blocks if block["rows"]} == {"native"}, blocks


def make_table(server, columns, name, extra="", **settings):
    text_of = ", ".join(f"`{c}` {t}" for c, t, _ in columns)
    server.query(f"CREATE TABLE {name} (id UInt64, {text_of}{extra}) ENGINE = MergeTree ORDER BY id",
                 **settings)


def select(server, table, *more):
    names = ", ".join(["*", *more])
    return server.query(f"SELECT {names} FROM {table} ORDER BY id FORMAT JSONEachRow").split("\n")


def compare(got, wanted):
    assert len(got) == len(wanted)
    for g, w in zip(got, wanted):
        if g == w:
            continue
        g, w = json.loads(g), json.loads(w)
        assert {k: g[k] for k in g if g[k] != w.get(k)} == {k: w.get(k) for k in g if g[k] != w.get(k)}
        raise AssertionError(f"{g}\n{w}")


def test_every_type_of_the_modern_engine(kafka, engine, spoold):
    columns = BOTH + MODERN
    topic = kafka.create_topic(1)
    table = "types_" + topic.replace("-", "_")
    extra = ", mat UInt64 MATERIALIZED id + 1, al UInt64 ALIAS id + 2, def String DEFAULT concat('d', toString(id))"
    make_table(engine, columns, table, extra, **SETTINGS)
    make_table(engine, columns, table + "_twin", extra, **SETTINGS)
    records = [record(columns, i) for i in range(60)] + ['{"id":60}', '{"id":61,"def":"given"}']
    kafka.send(topic, records)
    daemon = spoold(kafka, engine, [stream("s", topic, table, format="native")]).start()
    daemon.wait_rows(engine, table, len(records))
    engine.insert(table + "_twin", ["id", "def"] + [f"`{c}`" for c, _, _ in columns],
                  "\n".join(records).encode(), format="JSONEachRow")
    assert_native(daemon)
    compare(select(engine, table, "mat", "al"), select(engine, table + "_twin", "mat", "al"))
    compare([engine.query(f"SELECT arrayMap(x -> variantType(x), av), variantType(v), variantType(vn) "
                          f"FROM {t} ORDER BY id") for t in (table,)],
            [engine.query(f"SELECT arrayMap(x -> variantType(x), av), variantType(v), variantType(vn) "
                          f"FROM {t} ORDER BY id") for t in (table + "_twin",)])
    assert daemon.metric("spoold_dead_letters_total") == 0


def test_nested_that_is_not_flattened_and_nullable_tuples(kafka, engine, spoold):
    columns = [("n", "Nested(a UInt8, b String)", [[], [{"a": 1, "b": "x"}, {"b": "y"}]]),
               ("nt", "Nullable(Tuple(a UInt8, b String))", [None, {"a": 1, "b": "x"}])]
    topic = kafka.create_topic(1)
    table = "nested_" + topic.replace("-", "_")
    settings = {"flatten_nested": 0, "allow_experimental_nullable_tuple_type": 1}
    make_table(engine, columns, table, **settings)
    make_table(engine, columns, table + "_twin", **settings)
    records = [record(columns, i) for i in range(4)] + ['{"id":4}']
    kafka.send(topic, records)
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait_rows(engine, table, len(records))
    engine.insert(table + "_twin", ["id", "n", "nt"], "\n".join(records).encode(), format="JSONEachRow")
    assert_native(daemon)
    compare(select(engine, table), select(engine, table + "_twin"))


def test_a_variant_as_the_user_wrote_it(kafka, engine, spoold):
    """Its members are numbered by their canonical names, whatever blanks and aliases stand in the configuration."""
    written = "Variant(UInt64, Array( UInt8), Array(Map(String,UInt8)), Point)"
    topic = kafka.create_topic(1)
    table = "variant_" + topic.replace("-", "_")
    make_table(engine, [("v", written, [])], table, allow_suspicious_variant_types=1)
    assert engine.query(f"SELECT type FROM system.columns WHERE table = '{table}' AND name = 'v'").strip() == \
        "Variant(Array(Map(String, UInt8)), Array(UInt8), Point, UInt64)"
    kafka.send(topic, ['{"id":0,"v":[1,2]}', '{"id":1,"v":[{"a":1}]}', '{"id":2,"v":5}'])
    daemon = spoold(kafka, engine, [stream("s", topic, table, columns=[
        {"name": "id", "type": "UInt64"}, {"name": "v", "type": written}])]).start()
    daemon.wait_rows(engine, table, 3)
    assert_native(daemon)
    assert engine.query(f"SELECT variantType(v), v FROM {table} ORDER BY id FORMAT TabSeparated").split("\n")[:3] == [
        "Array(UInt8)\t[1,2]", "Array(Map(String, UInt8))\t[{'a':1}]", "UInt64\t5"]


def other_names():
    """(name, type) of docs/types.md, which a unit test compares with the parser."""
    with open(PAGE, encoding="utf-8") as f:
        section = f.read().split("\n## Other names")[1].split("\n## ")[0]
    for line in section.split("\n"):
        if line.startswith("| `"):
            names = re.findall("`([^`]*)`", line)
            yield from ((name, names[0]) for name in names[1:])


def type_of(server, text):
    """As the server shows it, or None where it has no such type."""
    try:
        table = server.create_table(f"c {text}", engine="Memory")
    except ClickHouseError:
        return None
    shown = server.query(f"SELECT type FROM system.columns WHERE table = '{table}' FORMAT TabSeparatedRaw")
    server.drop_table(table)
    return shown


def test_other_names_of_types(server):
    """Each stands for what the server says; the old one has fewer of them."""
    names, asked = set(), 0
    for name, type_ in other_names():
        word = name.split("(")[0]
        names.add(word.upper())
        for form in (name, name if word == "GEOMETRY" else word.lower() + name[len(word):]):
            shown = type_of(server, form)
            assert shown == type_ or (shown is None and not server.modern), (form, type_, shown)
            asked += shown is not None
    assert asked > (190 if server.modern else 50)
    known = {name for name, in server.rows("SELECT upper(name) FROM system.data_type_families "
                                           "WHERE alias_to != '' OR case_insensitive")}
    assert len(known) > 20 and known <= names


def test_columns_by_other_names(kafka, server, spoold):
    """In a table that spoold makes, and one that is there: stored, shown and sent as what they stand for."""
    written = {"id": "bigint  unsigned", "n": "INT(11)", "s": "Varchar(255)", "d": "DOUBLE PRECISION",
               "m": "NUMERIC(10,2)", "t": "TIMESTAMP", "f": "BINARY(2)", "a": "Array(TINYINT UNSIGNED)",
               "u": "Nullable(CHAR VARYING(9))"}
    meant = ["UInt64", "Int32", "String", "Float64", "Decimal(10, 2)", "DateTime", "FixedString(2)",
             "Array(UInt8)", "Nullable(String)"]
    if server.modern:
        written |= {"t6": "DATETIME(6)", "b": "boolean", "v": "Variant(TEXT, INT UNSIGNED)", "j": "json"}
        meant += ["DateTime64(6)", "Bool", "Variant(String, UInt32)", "JSON"]
    topic = kafka.create_topic(1)
    table = "names_" + topic.replace("-", "_")
    daemon = spoold(kafka, server, [stream("s", topic, table, create_table={"order_by": "id"}, columns=[
        {"name": name, "type": type_} for name, type_ in written.items()])]).start()
    row = {"id": 1, "n": -5, "s": "x", "d": 0.5, "m": 1.25, "t": "2026-11-23 12:34:56", "f": "ab", "a": [1, 255],
           "u": None}
    if server.modern:
        row |= {"t6": "2026-11-23 12:34:56.789012", "b": True, "v": 7, "j": {"a": 1}}
    daemon.wait(lambda: table in server.query("SHOW TABLES"), 20, "table made")
    for step in (1, 2):
        row["id"] = step
        kafka.send(topic, [json.dumps(row)])
        daemon.wait_rows(server, table, step)
        assert_native(daemon)
        assert server.rows(f"SELECT type FROM system.columns WHERE table = '{table}'") == [[t] for t in meant]
        told, = daemon.ctl("ls", "s", "--json")[1]["streams"]
        assert [c["type"] for c in told["segments"][-1]["columns"]] == meant
        got, = server.query(f"SELECT * FROM {table} WHERE id = {step} FORMAT JSONEachRow",
                            output_format_json_quote_64bit_integers=0).split("\n")
        assert json.loads(got) == row
        assert daemon.sigterm() == 0
        daemon.start()  # now the table is there, and its types are compared


def test_every_type_of_the_old_server(kafka, clickhouse, spoold):
    topic = kafka.create_topic(1)
    table = "types_" + topic.replace("-", "_")
    extra = ", mat UInt64 MATERIALIZED id + 1"
    make_table(clickhouse, BOTH, table, extra, **SETTINGS_OLD)
    make_table(clickhouse, BOTH, table + "_twin", extra, **SETTINGS_OLD)
    records = [record(BOTH, i) for i in range(60)]
    kafka.send(topic, records)
    daemon = spoold(kafka, clickhouse, [stream("s", topic, table)]).start()
    daemon.wait_rows(clickhouse, table, len(records))

    def as_old(name, value):
        return [value["a"], value["b"]] if name == "tn" else value
    twin = [record(BOTH, i, as_old) for i in range(60)]
    clickhouse.insert(table + "_twin", ["id"] + [f"`{c}`" for c, _, _ in BOTH],
                      "\n".join(twin).encode(), format="JSONEachRow")
    assert_native(daemon)
    compare(select(clickhouse, table, "mat"), select(clickhouse, table + "_twin", "mat"))
    assert daemon.metric("spoold_dead_letters_total") == 0


def test_defaults_that_only_the_server_knows(kafka, server, spoold):
    """Records with and without the keys, in any order, in Native blocks on both servers."""
    topic = kafka.create_topic(1)
    table = server.create_table(
        "k UInt32, s String DEFAULT concat('s', toString(k)), a Array(String) DEFAULT splitByChar(',', 'a,b'), "
        "n Nullable(UInt32) DEFAULT toUInt32(k * 2), t DateTime('UTC') DEFAULT toDateTime(k), "
        "e Enum8('x' = 1, 'y' = 2) DEFAULT if(k % 2 = 1, 'x', 'y')", order_by="k", window=1000)
    rng, records, wanted = random.Random(5), [], []
    for k in range(3000):
        give = {"s": f"given {k}", "a": [str(k)], "n": rng.choice([None, k]), "t": f"2026-11-23 10:{k % 60:02}:00",
                "e": "xy"[k % 2]}
        row = {"s": f"s{k}", "a": ["a", "b"], "n": 2 * k, "e": "yx"[k % 2],
               "t": f"1970-01-01 00:{k // 60:02}:{k % 60:02}"}
        shape = rng.random()
        present = {name: v for name, v in give.items() if shape > 0.7 or (shape > 0.4 and rng.random() < 0.5)}
        records.append(json.dumps({"k": k, **present}))
        wanted.append({"k": k, **row, **present})
    kafka.send(topic, records)
    daemon = spoold(kafka, server, [stream("s", topic, table)]).start()
    daemon.wait_rows(server, table, 3000)
    assert_native(daemon)
    got = server.query(f"SELECT * FROM {table} ORDER BY k FORMAT JSONEachRow").split("\n")
    assert [json.loads(line) for line in got] == wanted
    assert daemon.metric("spoold_dead_letters_total") == 0


def test_columns_that_the_server_makes(kafka, server, spoold):
    """MATERIALIZED and ALIAS are left out, and a wish for one is refused; EPHEMERAL feeds a DEFAULT."""
    topic = kafka.create_topic(1)
    columns = "k UInt32, m UInt32 MATERIALIZED k + 1, al UInt32 ALIAS k + 2"
    wishes = None
    if server.modern:
        columns += ", e String EPHEMERAL, d UInt64 DEFAULT length(e)"
        wishes = [{"name": "k"}, {"name": "e"}, {"name": "d"}]
    table = server.create_table(columns, order_by="k")
    options = {"columns": wishes} if wishes else {}
    daemon = spoold(kafka, server, [stream("s", topic, table, **options)]).start()
    kafka.send(topic, ['{"k":1,"e":"abc","m":70,"al":70}', '{"k":2,"e":"","d":9}', '{"k":3}'])
    daemon.wait_rows(server, table, 3)
    assert_native(daemon)
    more = ", d" if server.modern else ""
    got = server.query(f"SELECT k, m, al{more} FROM {table} ORDER BY k FORMAT TabSeparated").split("\n")
    assert [line.split("\t")[:3] for line in got] == [["1", "2", "3"], ["2", "3", "4"], ["3", "4", "5"]]
    if server.modern:
        assert [line.split("\t")[3] for line in got] == ["3", "9", "0"]
    assert daemon.sigterm() == 0
    for name, word in (("m", "MATERIALIZED"), ("al", "ALIAS")):
        daemon.config["streams"][0]["columns"] = [{"name": "k"}, {"name": name}]
        daemon.start()
        daemon.wait(lambda: f"column {name}: is {word}" in daemon.stream_status("s")["reason"], 20, "held by name")
        assert daemon.sigterm() == 0


def test_an_aggregate_state_is_refused_with_the_reason(kafka, engine, spoold):
    topic = kafka.create_topic(1)
    table = engine.create_table("id UInt64, st AggregateFunction(sum, UInt64)")
    daemon = spoold(kafka, engine, [stream("s", topic, table)]).start()
    daemon.wait(lambda: "a state that no record can give" in daemon.stream_status("s")["reason"], 20,
                "held with the reason")
