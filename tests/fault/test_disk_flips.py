# SPDX-License-Identifier: Apache-2.0
"""A byte of meta.mdb or dead.mdb changed while the daemon was down. It is noticed at the start, verify names it and repair
brings the spool back, or it is harmless: what waits arrives once, and nothing that was acknowledged is sent."""
import os
import random
import shutil
import subprocess

import pytest

from support import damage
from support.lmdb import Lmdb
from support.process import wait_until
from support.spoold import stream

BLOCKS, ROWS, ACKED, LETTERS = 12, 20, 2, 40
COLUMNS = ("id UInt64, name String, type String, value Float64, timestamp DateTime64(3),"
           " status String, active Bool")


class AtRest:
    """A spool with something in each database, of which every trial begins with a copy."""

    def __init__(self, spoold, engine, where):
        self.engine = engine
        self.table = engine.create_table(COLUMNS)
        self.daemon = spoold(None, engine, [stream("events", [], self.table)])
        self.whole = os.path.join(where, "whole")
        subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "mkspool"), self.daemon.spool,
                        f"blocks={BLOCKS}", f"rows={ROWS}", "origins=3", f"acked={ACKED}", "seals=2",
                        "seal_blocks=2", f"dead={LETTERS}", f"destination=default.{self.table}"],
                       check=True, stdout=subprocess.DEVNULL)
        self.daemon.launch("send.started=kill@1")  # its own notes are in the files, too
        assert self.daemon.wait_exit(30) == -9
        shutil.copytree(self.daemon.spool, self.whole)
        self.refused = self.harmless = 0

    def places(self, name):
        return Lmdb(os.path.join(self.whole, name)).places

    def put_back(self):
        shutil.rmtree(self.daemon.spool)
        shutil.copytree(self.whole, self.daemon.spool)
        self.engine.query(f"TRUNCATE TABLE {self.table}")

    def mended(self):
        """All rows wait again; of the letters one may be gone."""
        code, answer = self.daemon.ctl("repair", "--yes", "--json")
        assert code == 0 and answer["ok"] and answer["repaired"], answer
        assert self.daemon.ctl("verify", "--json")[1]["ok"]

    def settles(self, acked, letters=(LETTERS,)):
        """The daemon is up: what waits arrives, once, and the letters are there. Whether verify finds all well."""
        rows = (BLOCKS - acked) * ROWS
        self.daemon.wait_rows(self.engine, self.table, rows)
        self.daemon.wait(lambda: self.daemon.stream_status("events")["rows_spooled"] == 0, 20,
                         "acknowledged")
        assert self.engine.unique(self.table) == self.engine.count(self.table) == rows
        assert self.daemon.stream_status("events")["dead_letters"] in letters
        assert self.daemon.sigterm() == 0
        return self.daemon.ctl("verify", "--json", check=False)[1]["ok"]

    def flip(self, name, place, at, bit):
        """Whether there is something to mend."""
        self.put_back()
        damage.flip(os.path.join(self.daemon.spool, name), at, 1 << bit)
        self.daemon.launch()
        wait_until(lambda: not self.daemon.alive() or self.daemon.answers(), 30, "up or ended")
        if self.daemon.alive():
            self.harmless += 1
            if self.settles(ACKED):
                return False
            assert (name, place.db) == ("dead.mdb", "letters")  # any number of them: not read at the start
        else:
            self.refused += 1
            assert self.daemon.wait_exit(5) == 1, self.daemon.log()
            error, = self.daemon.events("daemon.start_failed")
            assert name in error["error"] and "repair" in error["error"]
        code, answer = self.daemon.ctl("verify", "--json", check=False)
        assert code == 1 and not answer["ok"] and name in str(answer["problems"])
        return True

    def check(self, chosen, mends):
        """As many as mends of what is found are mended, each a kind of its own, and what was held arrives."""
        seen = set()
        for name, place, at, bit in chosen:
            what = f"{name}: {place.kind} of {place.db} at {at}, bit {bit}"
            try:
                if not self.flip(name, place, at, bit) or (name, place.kind) in seen or \
                        len(seen) == mends:
                    continue
                seen.add((name, place.kind))
                self.put_back()
                damage.flip(os.path.join(self.daemon.spool, name), at, 1 << bit)
                self.mended()
                self.daemon.start()
                # A meta.mdb made anew knows of no acknowledgement; of the letters a page may be gone.
                assert self.settles(0 if name == "meta.mdb" else ACKED, range(LETTERS + 1))
            except BaseException:
                print(what)
                raise
        print(f"{self.refused} refused, {self.harmless} harmless, {len(seen)} mended")


@pytest.fixture
def at_rest(spoold, engine, tmp_path):
    return AtRest(spoold, engine, str(tmp_path))


FILES = ("meta.mdb", "dead.mdb")
RECORDS = ("leaf key", "value", "checksum")  # of these, one in every database


def test_a_flipped_byte_of_each_kind(at_rest):
    """In either of the two files; a record in every database."""
    rng, chosen, seen = random.Random(os.environ.get("SEED", "1")), [], set()
    places = [(name, place) for name in FILES for place in at_rest.places(name)]
    rng.shuffle(places)
    for name, place in places:
        kind = (name, place.kind, place.db) if place.kind in RECORDS else place.kind
        if kind not in seen:
            seen.add(kind)
            chosen.append((name, place, place.at + rng.randrange(place.size), rng.randrange(8)))
    assert len(seen) > 80
    at_rest.check(chosen, 4)
    assert at_rest.refused > 40 and at_rest.harmless > 15


@pytest.mark.long
def test_flipped_bytes_everywhere(at_rest):
    """FLIPS=n of them, at places of all lengths; SEED=n takes others."""
    rng, chosen = random.Random(os.environ.get("SEED", "1")), []
    for name in FILES:
        for place in at_rest.places(name):
            chosen += [(name, place, at, rng.randrange(8))
                       for at in range(place.at, place.at + place.size, 61)]
    flips = min(int(os.environ.get("FLIPS", "300")), len(chosen))
    print(f"{flips} of {len(chosen)}")
    at_rest.check(rng.sample(chosen, flips), 1000)
