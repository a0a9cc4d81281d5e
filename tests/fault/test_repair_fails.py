# SPDX-License-Identifier: Apache-2.0
"""The disk fails under spoolctl repair. Its n-th call that changes, flushes, opens or maps a file of the spool fails, for
every n: it ends in a sentence that says where, nothing that was there is gone, and the next repair completes. So does each
read: what can't be read is not damaged, and nothing is made anew without it."""
import errno
import glob
import os
import re
import shutil
import subprocess
import tempfile

import pytest

from support import damage
from support.lmdb import Lmdb

LETTERS = 16


def flip_first(path, kind, db):
    place = next(p for p in Lmdb(path).places if (p.kind, p.db) == (kind, db))
    damage.flip(path, place.at + place.size - 1)


def misnumber(path):
    """The newest meta page has the number of an earlier transaction: what tree_mend puts right."""
    place = next(p for p in Lmdb(path).places if p.kind == "newest meta transaction")
    with open(path, "r+b") as f:
        f.seek(place.at)
        number = int.from_bytes(f.read(8), "little") - 2
        f.seek(place.at)
        f.write(number.to_bytes(8, "little"))


def harm_meta(spool):
    flip_first(f"{spool}/meta.mdb", "value", "acks")


def harm_dead(spool):
    flip_first(f"{spool}/dead.mdb", "value", "letters")


def harm_both(spool):
    harm_meta(spool)
    harm_dead(spool)


def lose_meta(spool):
    os.unlink(f"{spool}/meta.mdb")


def harm_numbers(spool):
    misnumber(f"{spool}/meta.mdb")
    misnumber(f"{spool}/dead.mdb")


HARMS = {"both": harm_both, "meta": harm_meta, "dead": harm_dead, "lost": lose_meta, "numbers": harm_numbers}
BREAKS = {
    "once": {"FAIL_ONCE": "1"},
    "from_then_on": {},
    "full_once": {"FAIL_ONCE": "1", "FAIL_ERRNO": str(errno.ENOSPC)},
    "full": {"FAIL_ERRNO": str(errno.ENOSPC)},
    "reads_once": {"FAIL_ONCE": "1", "FAIL_CALLS": "pread"},
    "reads": {"FAIL_CALLS": "pread"},
}
SHORT = [("both", "once"), ("both", "from_then_on"), ("dead", "full_once"), ("dead", "reads_once"), ("numbers", "once")]
CASES = [pytest.param(harm, how, marks=() if (harm, how) in SHORT else pytest.mark.long, id=f"{harm}-{how}")
         for harm in HARMS for how in BREAKS]


def spoolctl(spool, *words, **env):
    return subprocess.run([os.environ["SPOOLCTL_BIN"], "--spool", spool, *words], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False, env={**os.environ, **env})


def content(path):
    with open(path, "rb") as f:
        return f.read()


class Trials:
    """A spool at rest with something of each kind, harmed; every trial repairs a copy."""

    def __init__(self, where, harm, how):
        self.whole, self.spool, self.count = f"{where}/whole", f"{where}/spool", f"{where}/count"
        self.env = {"LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_fail.so"),
                    "FAIL_IN": self.spool, **BREAKS[how]}
        # LMDB takes half of a write for a full disk.
        self.errors = {os.strerror(number) for number in (int(BREAKS[how].get("FAIL_ERRNO", errno.EIO)), errno.ENOSPC)}
        subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "mkspool"), self.whole, "streams=2", "blocks=6",
                        "rows=8000", "origins=2", "segment_kib=1024", "acked=2", "seals=2",
                        f"dead={LETTERS}"], check=True, stdout=subprocess.DEVNULL)
        HARMS[harm](self.whole)
        self.files = {os.path.relpath(path, self.whole): content(path)
                      for path in glob.glob(self.whole + "/**", recursive=True) if os.path.isfile(path)}

    def put_back(self):
        shutil.rmtree(self.spool, ignore_errors=True)
        shutil.copytree(self.whole, self.spool)

    def repair(self, at):
        self.put_back()
        return spoolctl(self.spool, "repair", "--yes", FAIL_AT=str(at), FAIL_COUNT=self.count, **self.env)

    def calls(self):
        """How many there are where none fails, and what the spool holds then."""
        done = self.repair(10**6)
        assert done.returncode == 0, done.stderr
        return int(content(self.count)), self.held()

    def held(self):
        """What is there to be read of a repaired spool."""
        sound = spoolctl(self.spool, "verify")
        assert sound.returncode == 0, sound.stdout + sound.stderr
        return [spoolctl(self.spool, *words, "--json").stdout for words in (("ls", "--blocks"), ("ls",), ("dead", "ls"))]

    def nothing_gone(self, what):
        """Segments are as they were, and what was harmed is there under one name or another."""
        for name, was in self.files.items():
            if name == "LOCK":
                continue
            path = os.path.join(self.spool, name)
            found = [content(p) for p in [path, *glob.glob(path + ".old-*")] if os.path.exists(p)]
            assert was in found or self.mended(name, found, was), (what, name)

    @staticmethod
    def mended(name, found, was):
        """The number of a transaction was put right in its place, or half of it was."""
        return name.endswith(".mdb") and any(
            len(now) == len(was) and sum(a != b for a, b in zip(now, was)) <= 8 for now in found)

    def told(self, what, done):
        """A sentence that says where and why."""
        line = done.stderr.strip()
        assert done.returncode == 1 and line.startswith("spoolctl: ") and "\n" not in line, (what, line)
        assert self.spool in line or "commit to dead.mdb" in line, (what, line)
        assert any(error in line for error in self.errors), (what, line)


@pytest.mark.parametrize("harm, how", CASES)
def test_every_call_of_a_repair_fails(harm, how):
    where = tempfile.mkdtemp(prefix="repair-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    t = Trials(where, harm, how)
    calls, held = t.calls()
    assert calls > 20
    ended, kept = 0, set()
    for n in range(1, calls + 1):
        done = t.repair(n)
        what = f"call {n} of {calls}"
        assert done.returncode in (0, 1), (what, done)
        t.nothing_gone(what)
        if done.returncode:
            t.told(what, done)
            ended += 1
        again = spoolctl(t.spool, "repair", "--yes")
        assert again.returncode == 0, (what, again.stdout, again.stderr)
        assert done.returncode or "nothing to repair" in again.stdout, (what, done.stdout, again.stdout)
        assert t.held() == held, what
        t.nothing_gone(what)
        kept |= {re.sub(r"-\d+$", "", name) for name in os.listdir(t.spool)}
    shutil.rmtree(where)
    print(f"{calls} calls failed, one at a time; {ended} repairs ended of it")
    assert ended > calls // 3
    assert kept <= {"LOCK", "meta.mdb", "dead.mdb", "streams", "meta.mdb.old", "dead.mdb.old"}


def letters_of(spool):
    return spoolctl(spool, "dead", "ls", "--json").stdout.splitlines()


def test_a_repair_without_what_can_not_be_read():
    """A sector of dead.mdb is bad: only when told to does a repair give up the letters in it, and says which."""
    where = tempfile.mkdtemp(prefix="repair-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    spool = f"{where}/spool"
    subprocess.run([os.path.join(os.environ["SUPPORT_DIR"], "mkspool"), spool, "streams=2", "dead=200"], check=True,
                   stdout=subprocess.DEVNULL)
    dead, letters = f"{spool}/dead.mdb", letters_of(spool)
    assert len(letters) == 400
    bad = next(p.at for p in Lmdb(dead).places if (p.kind, p.db) == ("value", "letters"))
    env = {"LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_fail.so"), "FAIL_IN": dead,
           "FAIL_READ": str(bad)}
    was = content(dead)

    refused = spoolctl(spool, "repair", "--yes", **env)
    assert refused.returncode == 1 and os.strerror(errno.EIO) in refused.stderr, refused
    said = spoolctl(spool, "repair", "--skip-unreadable", **env)
    assert said.returncode == 1 and content(dead) == was, said
    done = spoolctl(spool, "repair", "--skip-unreadable", "--yes", **env)
    assert done.returncode == 0 and "can't be read: it is passed over" in done.stdout, done
    assert [content(path) for path in glob.glob(dead + ".old-*")] == [was]
    left = letters_of(spool)
    assert 300 < len(left) < 400 and set(left) < set(letters)
    assert f": {len(left)} letters can be read" in done.stdout, done.stdout
    assert spoolctl(spool, "verify").returncode == 0
    shutil.rmtree(where)
