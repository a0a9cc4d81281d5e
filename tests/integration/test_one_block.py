# SPDX-License-Identifier: Apache-2.0
"""One batch is one block on the server: a part for each partition it touches, however large it is. A
server cuts what it inserts at 1,048,576 rows or 256 MiB unless it is told otherwise."""
from support.proxy import Fault
from support.spoold import stream

ROWS = 1_100_000
PAD = 250  # times the rows: over 256 MiB in the server's memory


def test_a_batch_is_one_part_for_each_partition(kafka, server, spoold):
    topic = kafka.create_topic(1)
    whole = server.create_table("id UInt64, pad String", order_by="id", window=1000)
    cut = server.create_table("id UInt64, pad String", order_by="id", window=1000,
                              extra=" PARTITION BY id % 5")
    columns = [{"name": "id"}, {"name": "pad", "value": "x" * PAD}]
    second = kafka.create_topic(1)
    flush = {"rows": ROWS, "bytes": "4GiB", "interval": "10m"}
    daemon = spoold(kafka, server, [
        stream("whole", topic, whole, columns=columns, flush=flush),
        stream("cut", second, cut, columns=columns, flush=flush),
    ], spool={"segment_bytes": "512MiB"}).start()
    for to in (topic, second):
        kafka.produce(to, ROWS)
    for name, table, parts in (("whole", whole, 1), ("cut", cut, 5)):
        daemon.wait(lambda: daemon.stream_status(name)["rows_inserted"] == ROWS, 120, "one batch")
        assert daemon.stream_status(name)["batches"]["acknowledged"] == 1
        assert server.count(table) == ROWS
        assert server.number("SELECT count() FROM system.parts "
                             f"WHERE table = '{table}' AND level = 0") == parts
        assert server.number(f"SELECT sum(length(pad) + 9) FROM {table}") > 256 * 2**20


def test_a_setting_that_may_not_be_set_is_named(kafka, engine, proxy, spoold):
    """Neither server here has profiles with constraints: the words are those of a 26.7."""
    words = (b"Code: 452. DB::Exception: Setting min_insert_block_size_rows should not be changed. "
             b"(SETTING_CONSTRAINT_VIOLATION) (version 26.7.2.1)\n")
    topic = kafka.create_topic(1)
    table = engine.create_bench_table(window=1000)
    through = proxy(engine)
    through.arm(Fault("answer", "garbage", garbage=(
        b"HTTP/1.1 500 Internal Server Error\r\nX-ClickHouse-Exception-Code: 452\r\n"
        b"Content-Length: %d\r\n\r\n" % len(words)) + words), stream="s")
    daemon = spoold(kafka, through.url, [stream("s", topic, table)]).start()
    kafka.produce(topic, 100)
    daemon.wait(lambda: [e for e in daemon.events("stream.state") if e["to"] == "held" and
                         "let its user set min_insert_block_size_rows" in e["reason"]], 30, "held")
    daemon.wait_rows(engine, table, 100)
    daemon.wait_state("s", "running")
