# SPDX-License-Identifier: Apache-2.0
"""The places of an LMDB file, by what stands there (the format: src/spool/tree_int.h)."""
import struct
from collections import namedtuple

PAGE = 4096
NODE_BIG, NODE_DATABASE = 1, 2
BRANCH, LEAF = 1, 2
NO_PAGE = 2**64 - 1

# kind: "meta root", "leaf flags", "value", ...; db: whose page it is; at: in the file; size: bytes.
Place = namedtuple("Place", "kind db at size")

META = {"magic": (0, 4), "version": (4, 4), "address": (8, 8), "map size": (16, 8),
        "page size": (24, 4), "free flags": (28, 2), "free depth": (30, 2), "free pages": (32, 24),
        "free entries": (56, 8), "free root": (64, 8), "main pad": (72, 4), "main flags": (76, 2),
        "main depth": (78, 2), "main pages": (80, 24), "main entries": (104, 8),
        "main root": (112, 8), "last page": (120, 8), "transaction": (128, 8)}
HEADER = {"number": (0, 8), "pad": (8, 2), "flags": (10, 2), "lower": (12, 2), "upper": (14, 2)}
ROOT = {"pad": (0, 4), "flags": (4, 2), "depth": (6, 2), "pages": (8, 24), "entries": (32, 8),
        "root": (40, 8)}


class Lmdb:
    def __init__(self, path):
        with open(path, "rb") as f:
            self.data = f.read()
        self.places, self._seen = [], {0, 1}
        newest = max((0, 1), key=lambda n: self._u64(n * PAGE + 16 + 128))
        for n in (0, 1):
            name = "newest" if n == newest else "older"
            self._fields("page", HEADER, n * PAGE, name)
            self._fields(f"{name} meta", META, n * PAGE + 16, name)
            self._add("behind a meta page", name, n * PAGE + 152, PAGE - 152)
        self._database("free", newest * PAGE + 16 + 24)
        self._database("main", newest * PAGE + 16 + 72)
        for n in range(len(self.data) // PAGE):
            if n not in self._seen:
                self._add("unused page", "", n * PAGE, PAGE)

    def _u16(self, at):
        return struct.unpack_from("<H", self.data, at)[0]

    def _u32(self, at):
        return struct.unpack_from("<I", self.data, at)[0]

    def _u64(self, at):
        return struct.unpack_from("<Q", self.data, at)[0]

    def _add(self, kind, db, at, size):
        if size > 0:
            self.places.append(Place(kind, db, at, size))

    def _fields(self, kind, fields, base, db):
        for name, (at, size) in fields.items():
            self._add(f"{kind} {name}", db, base + at, size)

    def _database(self, name, record):
        root = self._u64(record + 40)
        if root != NO_PAGE:
            self._page(name, root)

    def _page(self, db, number):
        at = number * PAGE
        self._seen.add(number)
        flags, lower, upper = (self._u16(at + n) for n in (10, 12, 14))
        kind = "leaf" if flags & LEAF else "branch"
        self._fields(kind, HEADER, at, db)
        self._add(f"{kind} gap", db, at + lower, upper - lower)
        for i in range((lower - 16) // 2):
            self._add(f"{kind} place of a node", db, at + 16 + 2 * i, 2)
            self._node(db, kind, at + self._u16(at + 16 + 2 * i))

    def _node(self, db, kind, at):
        key = self._u16(at + 6)
        size, flags = self._u32(at), self._u16(at + 4)
        self._add(f"{kind} node key size", db, at + 6, 2)
        self._add(f"{kind} key", db, at + 8, key)
        if kind == "branch":
            self._add("branch node child", db, at, 6)
            self._page(db, size | flags << 32)
            return
        self._add("leaf node size", db, at, 4)
        self._add("leaf node flags", db, at + 4, 2)
        value = at + 8 + key
        if flags & NODE_DATABASE:
            name = self.data[at + 8:value].decode()
            self._fields("database", ROOT, value, name)
            self._database(name, value)
        elif flags & NODE_BIG:
            self._add("overflow page's number", db, value, 8)
            page = self._u64(value)
            pages = (15 + size) // PAGE + 1
            self._seen.update(range(page, page + pages))
            self._fields("overflow", HEADER, page * PAGE, db)
            self._value(db, page * PAGE + 16, size)
        else:
            self._value(db, value, size)

    def _value(self, db, at, size):
        if db == "free":
            self._add("count of free pages", db, at, 8)
            self._add("free pages", db, at + 8, size - 8)
        else:
            self._add("value", db, at, size - 8)
            self._add("checksum", db, at + size - 8, 8)
