# SPDX-License-Identifier: Apache-2.0
"""spoolctl on spools that no daemon holds, made by tests/support/mkspool.c."""
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPOOLCTL = os.environ.get("SPOOLCTL_BIN", str(ROOT / "build/release/spoolctl"))
MKSPOOL = str(pathlib.Path(os.environ.get("SUPPORT_DIR", ROOT / "build/release/support")) / "mkspool")
UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")


def run(*args, **kwargs):
    return subprocess.run([SPOOLCTL, *map(str, args)], capture_output=True, text=True, timeout=60,
                          **kwargs)


def spoolctl(*args, status=0):
    """Its stdout when it is content, which it then is in silence; else its stderr."""
    done = run(*args)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    if status == 0:
        assert done.stderr == ""
        return done.stdout
    assert done.stderr.startswith("spoolctl: ") and done.stderr.endswith("\n"), done.stderr
    return done.stderr


def document(*args):
    return json.loads(spoolctl(*args, "--json"))


def lines(*args):
    return [json.loads(line) for line in spoolctl(*args, "--json").splitlines()]


def make(path, **options):
    argv = [MKSPOOL, str(path)] + [f"{name}={value}" for name, value in options.items()]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def spool(tmp_path_factory):
    """Two streams of six blocks in several segments: of each the first two blocks are
    acknowledged, the next one is sealed; and four dead letters."""
    path = tmp_path_factory.mktemp("spoolctl") / "spool"
    make(path, streams=2, origins=2, blocks=6, rows=20000, segment_kib=1024, acked=2, seals=1,
         dead=4, first=1000)
    return path


def test_status(spool):
    status = document("--spool", spool, "status")
    assert status["running"] is False
    assert status["spool"]["path"] == str(spool)
    assert status["spool"]["used_bytes"] > 0
    assert [s["name"] for s in status["streams"]] == ["events-1", "events-2"]
    for stream in status["streams"]:
        assert stream["rows"] == 120000
        assert stream["acked_rows"] == 40000
        assert stream["rows_spooled"] == 80000
        assert stream["batches"] == {"sealed": 1}
        assert stream["dead_letters"] == 4
        assert stream["segments"] > 1
        assert stream["damaged_segments"] == 0
    text = spoolctl("--spool", spool, "status")
    assert "not running" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("events-2"))
    assert row[1:5] == ["120000", "40000", "80000", "1"]


def test_the_oldest_is_of_what_waits(tmp_path):
    make(tmp_path / "spool", blocks=6, acked=2, seals=1, age=10000)
    (stream,) = document("--spool", tmp_path / "spool", "status")["streams"]
    assert 30000 <= stream["oldest_age_seconds"] < 40000
    assert "8h 2" in spoolctl("--spool", tmp_path / "spool", "status")


def test_ls_segments(spool):
    listing = document("--spool", spool, "ls")
    assert [s["stream"] for s in listing["streams"]] == ["events-1", "events-2"]
    segments = listing["streams"][0]["segments"]
    assert sum(s["rows"] for s in segments) == 120000
    assert [s["newest"] for s in segments] == [False] * (len(segments) - 1) + [True]
    assert segments[0]["destination"] == "`default`.`events`"
    assert segments[0]["columns"][0] == {"name": "id", "type": "UInt64", "from": "id"}
    assert len(segments[0]["columns"]) == 7
    assert UTC.match(segments[0]["oldest_at"])
    assert document("--spool", spool, "ls", "events-2", "--segments")["streams"][0]["segments"]
    text = spoolctl("--spool", spool, "ls", "events-1")
    assert "acknowledged" in text and "newest" in text


def test_ls_batches(spool):
    listing = document("--spool", spool, "ls", "events-1", "--batches")
    (batch,) = listing["streams"][0]["batches"]
    assert batch["batch"] == 3 and batch["rows"] == 20000
    assert batch["token"].endswith("-made")
    assert batch["ranges"] == [{"sequence": 3, "row": 0, "rows": 20000}]
    assert batch["token"] in spoolctl("--spool", spool, "ls", "--batches")


def test_ls_blocks(spool):
    listing = document("--spool", spool, "ls", "--blocks")
    blocks = listing["streams"][0]["blocks"]
    assert [b["sequence"] for b in blocks] == [1, 2, 3, 4, 5, 6]
    assert [b["state"] for b in blocks] == ["acknowledged"] * 2 + ["sealed"] + ["waiting"] * 3
    assert {b["origin"] for b in blocks} == {"made-0", "made-1"}
    assert {b["origin"] for b in listing["streams"][1]["blocks"]} == {"made-2", "made-3"}
    first = [b for b in blocks if b["origin"] == "made-0"]
    assert [(b["first_offset"], b["last_offset"]) for b in first] == [
        (1000, 20999), (21000, 40999), (41000, 60999)]
    text = spoolctl("--spool", spool, "ls", "events-1", "--blocks").splitlines()
    assert len(text) == 7
    assert len({line.index(state) for line in text[1:]
                for state in ("acknowledged", "sealed", "waiting") if state in line}) == 1


def test_show(spool):
    records = lines("--spool", spool, "show", "events-1", "--origin", "made-1", "--from", 1500,
                    "--to", 1502)
    assert [r["offset"] for r in records] == [1500, 1501, 1502]
    assert [r["record"]["id"] for r in records] == [21500, 21501, 21502]
    record = records[0]["record"]
    assert list(record) == ["id", "name", "type", "value", "timestamp", "status", "active"]
    assert record["name"].startswith("sensor-")
    assert record["active"] in (True, False)
    assert records[0]["state"] == "acknowledged"
    text = spoolctl("--spool", spool, "show", "events-1", "--origin", "made-1", "--from", 1500,
                    "--to", 1500)
    assert '{"id":21500,"name":"sensor-' in text


def test_show_of_several_segments_in_order(spool):
    records = lines("--spool", spool, "show", "events-1", "--limit", 120000)
    assert [r["record"]["id"] for r in records] == list(range(1000, 121000))


def test_show_says_that_there_is_more(spool):
    done = run("--spool", spool, "show", "events-1", "--json", "--limit", "7")
    assert done.returncode == 0
    assert [json.loads(line)["offset"] for line in done.stdout.splitlines()] == list(
        range(1000, 1007))
    assert "next is offset 1007 of made-0: raise --limit" in done.stderr


def test_show_nothing_that_matches(spool):
    assert lines("--spool", spool, "show", "events-1", "--origin", "nobody") == []
    assert spoolctl("--spool", spool, "show", "events-1", "--from", 10**9) == \
        "no records that match\n"


def test_rows_with_gaps_keep_their_offsets(tmp_path):
    make(tmp_path / "spool", blocks=2, rows=10, step=7, first=5)
    records = lines("--spool", tmp_path / "spool", "show", "events")
    assert [r["offset"] for r in records] == [5 + 7 * i for i in range(20)]
    assert [r["record"]["id"] for r in records] == list(range(5, 25))


def test_numbers_beyond_doubles_stay_exact(tmp_path):
    first = 2**53 + 1
    make(tmp_path / "spool", blocks=1, rows=2, first=first)
    assert [(r["offset"], r["record"]["id"])
            for r in lines("--spool", tmp_path / "spool", "show", "events")] == [
                (first, first), (first + 1, first + 1)]
    for command in (["show", "events"], ["ls", "--blocks"]):
        assert str(first) in spoolctl("--spool", tmp_path / "spool", *command)


def test_old_types_and_zstd(tmp_path):
    make(tmp_path / "spool", blocks=1, rows=3, flavour="old", method="zstd")
    record = lines("--spool", tmp_path / "spool", "show", "events")[0]["record"]
    assert record["active"] in (0, 1) and record["timestamp"].startswith("2026-09-")


def test_dead_ls(spool):
    letters = lines("--spool", spool, "dead", "ls", "events-2")
    assert [d["offset"] for d in letters if d["origin"] == "made-2"] == [1000000, 1000002]
    assert len(letters) == 4
    assert {d["stream"] for d in letters} == {"events-2"}
    assert len(lines("--spool", spool, "dead", "ls")) == 8
    first = next(d for d in letters if d["offset"] == 1000000)
    assert (first["code"], first["reason"], first["column"]) == (5, "300 is outside UInt8", "type")
    assert first["record"] == '{"id":0,"type":300}'
    assert UTC.match(first["time"])
    binary = next(d for d in letters if d["offset"] == 1000002)
    assert binary["record_base64"]
    text = spoolctl("--spool", spool, "dead", "ls", "events-2")
    assert len(text.splitlines()) == 5 and "not_json" in text


def test_dead_show(spool):
    (letter,) = lines("--spool", spool, "dead", "show", "events-1", "--origin", "made-0",
                      "--offset", 1000000)
    assert letter["key"] == "key"
    assert letter["headers"] == [{"name": "trace", "value": "abc"}]
    text = spoolctl("--spool", spool, "dead", "show", "events-1", "--offset", 1000000)
    assert '{"id":0,"type":300}' in text and "300 is outside UInt8" in text
    said = spoolctl("--spool", spool, "dead", "show", "events-1", "--offset", 5, status=1)
    assert "no dead letter of offset 5" in said


def test_no_dead_letters(tmp_path):
    make(tmp_path / "spool", blocks=1)
    assert spoolctl("--spool", tmp_path / "spool", "dead", "ls") == "no dead letters\n"


def test_verify_of_a_sound_spool(spool):
    assert document("--spool", spool, "verify") == {"ok": True, "problems": [], "omitted": 0}
    assert spoolctl("--spool", spool, "verify") == "the spool is sound\n"


def segments_of(spool):
    return sorted((spool / "streams/events").glob("*.seg"))


def test_verify_names_a_damaged_block_and_show_passes_it(tmp_path):
    spool = tmp_path / "spool"
    make(spool, blocks=3, rows=5000)
    (segment,) = segments_of(spool)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 0x10
    segment.write_bytes(data)
    done = run("--spool", spool, "verify", "--json")
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert verdict["ok"] is False
    (problem,) = verdict["problems"]
    assert problem["file"] == f"streams/events/{segment.name}"
    assert problem["stream"] == "events"
    assert problem["sequence"] in (1, 2, 3)
    assert problem["kind"] and problem["detail"]
    done = run("--spool", spool, "show", "events", "--json", "--limit", "100000")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 10000
    assert "spoolctl: segment 1: " in done.stderr


def test_a_truncated_segment_is_reported_everywhere(tmp_path):
    spool = tmp_path / "spool"
    make(spool, blocks=3, rows=5000)
    (segment,) = segments_of(spool)
    os.truncate(segment, segment.stat().st_size // 2)
    for command in (["verify"], ["ls"], ["ls", "--blocks"], ["show", "events"], ["status"]):
        done = run("--spool", spool, *command)
        assert done.returncode == 1, (command, done)
        said = done.stdout + done.stderr
        assert segment.name in said or "segment 1" in said or "are damaged" in said, done


def test_a_rubbish_meta_is_a_problem_and_no_crash(tmp_path):
    spool = tmp_path / "spool"
    make(spool, blocks=1)
    with open(spool / "meta.mdb", "r+b") as meta:
        meta.write(b"\xa5" * 8192)
    done = run("--spool", spool, "verify", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    assert "meta.mdb" in spoolctl("--spool", spool, "status", status=1)


def test_a_held_spool_is_refused_and_a_copy_is_not(spool, tmp_path):
    with open(spool / "LOCK", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        said = spoolctl("--spool", spool, "status", status=1)
        assert "held by a running spoold" in said and "--socket" in said
        shutil.copytree(spool, tmp_path / "copy")
        assert document("--spool", tmp_path / "copy", "status")["streams"]


def test_looking_changes_nothing(tmp_path):
    spool = tmp_path / "spool"
    make(spool, blocks=2, seals=1, dead=1)

    def state():
        return {str(f): f.read_bytes() for f in spool.rglob("*") if f.is_file()}

    before = state()
    for command in (["status"], ["ls", "--blocks"], ["show", "events"], ["verify"], ["dead", "ls"]):
        run("--spool", spool, *command, check=True)
    assert state() == before


def test_a_stream_that_is_not_there(spool):
    for command in (["show", "nothing"], ["ls", "nothing"]):
        said = spoolctl("--spool", spool, *command, status=1)
        assert "no stream nothing" in said and "events-1, events-2" in said
    assert not (spool / "streams/nothing").exists()


def test_a_spool_that_is_not_there(tmp_path):
    said = spoolctl("--spool", tmp_path / "none", "status", status=1)
    assert str(tmp_path / "none") in said
    assert not (tmp_path / "none").exists()


def test_no_daemon_behind_the_socket(tmp_path):
    socket = tmp_path / "control.sock"
    for command in (["status"], ["pause", "events"], ["show", "events"]):
        said = spoolctl("--socket", socket, *command, status=1)
        assert f"no spoold answers at {socket}" in said and "--spool" in said


@pytest.mark.parametrize("args, says", [
    ([], "which command"),
    (["frobnicate"], "unknown command 'frobnicate'"),
    (["dead"], "needs ls, show, replay or discard"),
    (["show"], "show needs a STREAM"),
    (["show", "Events"], "can't be a stream"),
    (["show", "a/b"], "can't be a stream"),
    (["show", "events", "more"], "does not take 'more'"),
    (["show", "events", "--limit", "0"], "--limit takes a number from 1 on"),
    (["show", "events", "--limit"], "--limit needs its N"),
    (["show", "events", "--from", "x"], "--from takes a number"),
    (["show", "events", "--from=99999999999999999999"], "--from takes a number"),
    (["status", "--limit", "1"], "--limit is no option of status"),
    (["status", "--frobnicate"], "unknown option --frobnicate"),
    (["status", "--json", "--json"], "--json is given twice"),
    (["ls", "--blocks", "--batches"], "exclude each other"),
    (["status", "--spool", "a", "--socket", "b"], "give one of them"),
    (["pause", "events", "--spool", "a"], "use --socket"),
    (["pause"], "pause needs a STREAM"),
    (["help", "frobnicate"], "unknown command"),
])
def test_usage_errors(args, says):
    said = spoolctl(*args, status=2)
    assert says in said and len(said.splitlines()) == 1


def test_help_and_version():
    text = spoolctl("help")
    for word in ("status", "dead show", "--spool", "--json", "Exit: 0"):
        assert word in text
    assert spoolctl("--help") == text
    assert "--origin" in spoolctl("help", "show")
    group = spoolctl("help", "dead")
    assert all(f"dead {name}" in group for name in ("ls", "show", "replay", "discard"))
    assert spoolctl("dead", "--help") == group
    assert "exactly once" in spoolctl("help", "dead", "replay")
    assert spoolctl("dead", "ls", "--help") == spoolctl("help", "dead", "ls")
    version = (ROOT / "VERSION").read_text().strip()
    assert spoolctl("--version") == f"spoolctl {version}\n"


def test_output_that_can_not_be_written(spool):
    with open("/dev/full", "w") as full:
        done = subprocess.run([SPOOLCTL, "--spool", spool, "status"], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and "can't write" in done.stderr
