# SPDX-License-Identifier: Apache-2.0
"""Damages the files of a spool at rest, knowing where what lies in them (docs/spool-format.md)."""
import ctypes
import glob
import os
import struct
from collections import namedtuple

PAGE = 4096
Block = namedtuple("Block", "path at flags sequence origin rows first last payload")
REFILL = 4


def flip(path, at, bits=0x10):
    """Changes one byte."""
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ bits]))


def segments(spool, stream):
    return sorted(glob.glob(os.path.join(spool, "streams", stream, "*.seg")))


def blocks(spool, stream):
    """Every block of a stream, in order; at is where its header begins."""
    found = []
    for path in segments(spool, stream):
        with open(path, "rb") as f:
            data = f.read()
        for at in range(2 * PAGE + 16, len(data) - 128, PAGE):
            if data[at:at + 4] != b"SPLB":
                continue
            flags, = struct.unpack_from("<I", data, at + 8)
            sequence, origin, rows, first, last = struct.unpack_from("<QIIqq", data, at + 24)
            payload, offsets = struct.unpack_from("<QI", data, at + 80)
            found.append(Block(path, at, flags, sequence, origin, rows, first, last,
                               at + 128 + offsets if payload else None))
    return sorted(found, key=lambda b: b.sequence)


def _first_entry(page):
    """(key, size of the value) of the first entry of a leaf of LMDB; None where it is none."""
    flags, lower = struct.unpack_from("<HH", page, 10)
    if flags != 2 or lower <= 16:
        return None
    at, = struct.unpack_from("<H", page, 16)
    if at + 8 > PAGE:
        return None
    low, high, _, size = struct.unpack_from("<HHHH", page, at)
    return page[at + 8:at + 8 + size], low | high << 16


def lose_index_entry(path, beside):
    """Damages the first entry of the last leaf of the index (also of its older versions): the sequence
    of the block that can't be found any more, which is not the one given."""
    with open(path, "rb") as f:
        data = f.read()
    leaves = {}
    for at in range(0, len(data) - PAGE + 1, PAGE):
        entry = _first_entry(data[at:at + PAGE])
        if entry and len(entry[0]) == 8 and entry[1] == 80:
            leaves.setdefault(int.from_bytes(entry[0], "big"), []).append(at)
    sequence = max(s for s in leaves if s != beside)
    for at in leaves[sequence]:
        flip(path, at + PAGE - 20)
    return sequence


class _Value(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("data", ctypes.c_void_p)]


def notes(spool):
    """The keys of meta.mdb's notes, of a spool at rest."""
    lmdb = ctypes.CDLL("liblmdb.so.0")
    env, txn, cursor = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    dbi, key, value, found = ctypes.c_uint(), _Value(), _Value(), []
    nosubdir, rdonly, nolock, first, following = 0x4000, 0x20000, 0x400000, 0, 8
    path = os.path.join(spool, "meta.mdb").encode()
    assert lmdb.mdb_env_create(ctypes.byref(env)) == 0
    assert lmdb.mdb_env_set_maxdbs(env, 16) == 0
    assert lmdb.mdb_env_open(env, path, nosubdir | rdonly | nolock, 0o600) == 0
    assert lmdb.mdb_txn_begin(env, None, rdonly, ctypes.byref(txn)) == 0
    assert lmdb.mdb_dbi_open(txn, b"notes", 0, ctypes.byref(dbi)) == 0
    assert lmdb.mdb_cursor_open(txn, dbi, ctypes.byref(cursor)) == 0
    step = first
    while lmdb.mdb_cursor_get(cursor, ctypes.byref(key), ctypes.byref(value), step) == 0:
        found.append(ctypes.string_at(key.data, key.size).decode())
        step = following
    lmdb.mdb_cursor_close(cursor)
    lmdb.mdb_txn_abort(txn)
    lmdb.mdb_env_close(env)
    return found
