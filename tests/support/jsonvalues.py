# SPDX-License-Identifier: Apache-2.0
"""JSON values for a column of a type: ordinary ones, and ones at the type's boundaries.

TYPES has a row for each type of the differential test; a new type joins by one row. A generator is a
class with plain(rng) and edge(rng), both giving the value's bytes."""
import datetime
import json
import math
import struct


def quoted(text):
    """A JSON string; bytes stay as they are."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    out = bytearray(b'"')
    for byte in raw:
        if byte in b'"\\':
            out += b"\\" + bytes([byte])
        elif byte < 0x20:
            out += b"\\u%04x" % byte
        else:
            out.append(byte)
    return bytes(out + b'"')


# What any column may meet.
ANYTHING = [
    b"null", b"true", b"false", b"0", b"1", b"-1", b"-0", b"{}", b"[]", b"[1]", b"[null]", b'{"a":1}',
    b'""', b'" "', b'"null"', b'"NULL"', b'"\\\\N"', b'"abc"', b'"0"', b'"1"', b'"-1"', b'"true"', b'"nan"',
    b"nul", b"TRUE", b"True", b"NULL", b"None", b"nan", b"inf", b"-inf", b"NaN", b"Infinity", b"-", b"+",
    b".", b"e", b"1e", b"0x10", b"1_000", b"1 2", b"01", b"007", b"--1", b"+-1", b"1.", b".5", b"1.5",
    b"1e2", b"1E2", b"1e+2", b"1e-2", b"0e0", b"'a'", b"[1,2]", b"[[]]", b'[""]', b'["a"]',
    b'"\\u0000"', b'"\\u0031"', b'"\\ud83d\\ude00"', b'"\xff"', b'"\xc3\xa4"', b"1e400", b"9" * 40,
    b'"' + b"9" * 40 + b'"', b"0" * 30 + b"7", b'"2026-11-23"', b'"2026-11-23 10:11:12"', b" 1", b"\t1",
]


class Kind:
    junk = 0.15

    def value(self, rng):
        """(bytes, whether it is a boundary value)"""
        pick = rng.random()
        if pick < self.junk:
            return rng.choice(ANYTHING), True
        if pick < 0.55:
            return self.edge(rng), True
        return self.plain(rng), False


class Int(Kind):
    def __init__(self, bits, signed):
        self.low = -(1 << (bits - 1)) if signed else 0
        self.high = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
        self.bits = bits

    def plain(self, rng):
        n = rng.getrandbits(rng.randint(1, self.bits))
        n = min(n, self.high)
        if self.low and rng.random() < 0.5:
            n = max(-n, self.low)
        return b"%d" % n

    def edge(self, rng):
        n = rng.choice([self.low, self.high, 0, 10 ** rng.randint(0, len(str(self.high)) + 1), 1 << self.bits])
        n += rng.choice([-2, -1, 0, 0, 0, 0, 1, 2]) if rng.random() < 0.9 else rng.randint(-300, 300)
        text = str(n)
        form = rng.randint(0, 13)
        if form == 0:
            text = text.replace("-", "-0") if text[0] == "-" else "0" * rng.randint(1, 25) + text
        elif form == 1:
            text = "+" + text
        elif form == 2:
            text += rng.choice([".0", ".5", "e0", "E1", ".", "e-1", "u", " ", "x"])
        elif form == 3:
            text += "%d" % rng.getrandbits(rng.choice([4, 64, 200, 700]))
        elif form == 4:
            text = "-" + text.lstrip("-")
        if rng.random() < 0.25:
            text = '"' + rng.choice(["", "", "", " ", "+", "0", "00"]) + text + rng.choice(["", "", "", " "]) + '"'
        return text.encode()


class Float(Kind):
    def __init__(self, bits):
        self.bits = bits
        largest = 3.4028234663852886e38 if bits <= 32 else 1.7976931348623157e308
        if bits == 16:
            largest = 3.3895313892515355e38
        self.marks = [0.0, -0.0, 1.0, largest, -largest, 1.401298464324817e-45, 5e-324, 2.2250738585072014e-308,
                      2.225073858507201e-308, 1.1754943508222875e-38, 0.1, 0.3, 1 / 3, 9007199254740993.0,
                      16777217.0, 123456789.0, 1e22, 1e23, 8.5e-30, 4.35]

    def plain(self, rng):
        form = rng.randint(0, 3)
        if form == 0:
            return repr(rng.uniform(-1e6, 1e6)).encode()
        if form == 1:
            return b"%d.%d" % (rng.randint(-1000, 1000), rng.randint(0, 10 ** rng.randint(1, 18)))
        if form == 2:
            if self.bits <= 32:
                number = struct.unpack("f", struct.pack("I", rng.getrandbits(32)))[0]
            else:
                number = struct.unpack("d", struct.pack("Q", rng.getrandbits(64)))[0]
            return repr(number).encode() if math.isfinite(number) else b"0"
        return b"%d" % rng.randint(-10 ** 9, 10 ** 9)

    def edge(self, rng):
        form = rng.randint(0, 9)
        if form == 0:
            text = rng.choice(["nan", "inf", "-inf", "+inf", "NaN", "Infinity", "-Infinity", "infinity", "-nan",
                               "INF", "NAN", "in", "na", "nane", "infi"])
        elif form == 1:
            # in the middle between two neighbours, exactly or a digit beside it
            if self.bits <= 32:
                near = struct.unpack("f", struct.pack("I", rng.getrandbits(30)))[0]
                after = struct.unpack("f", struct.pack("I", struct.unpack("I", struct.pack("f", near))[0] + 1))[0]
                from fractions import Fraction
                middle = (Fraction(near) + Fraction(after)) / 2
                text = "%.60e" % 0 if middle == 0 else _digits(middle) + rng.choice(["", "1", "0", "0001"])
            else:
                text = "%d.%d" % (2 ** 53 + rng.randint(-9, 9), rng.choice([5, 0, 4999999999999, 50000000001]))
        elif form == 2:
            text = "%de%d" % (rng.randint(1, 10 ** 17), rng.randint(-360, 330))
        elif form == 3:
            text = rng.choice(["", "-"]) + "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 60)))
            text += "." + "".join(rng.choice("0123456789") for _ in range(rng.randint(0, 60)))
        elif form == 4:
            text = rng.choice([".5", "5.", "-.5", "+1", "+1.5", "1e", "1e+", "1e-", "1.e5", "0x1p3", "1e5.5", "00.5",
                               "-00", "1__0", "1.2.3", "1e0005", "1E+05", "-", ".", "-.", ".e1", "0e999999999999",
                               "1e99999999999999999999", "1e-99999999999999999999", "0.0e400", "1d5", "1f"])
        elif form == 5:
            text = "0." + "0" * rng.randint(1, 400) + "%d" % rng.getrandbits(60)
        elif form == 6:
            text = "%d" % rng.getrandbits(60) + "0" * rng.randint(1, 330)
        else:
            mark = rng.choice(self.marks)
            text = repr(math.nextafter(mark, rng.choice([-math.inf, math.inf])) if rng.random() < 0.5 else mark)
        if rng.random() < 0.25:
            text = '"' + rng.choice(["", "", "", " "]) + text + rng.choice(["", "", "", " "]) + '"'
        return text.encode()


def _digits(fraction):
    """A fraction with a power of two below, in full."""
    shift = fraction.denominator.bit_length() - 1
    digits = str(fraction.numerator * 5 ** shift).rjust(shift + 1, "0")
    return digits[:-shift] + "." + digits[-shift:] if shift else digits + ".0"


class Bool(Kind):
    def plain(self, rng):
        return rng.choice([b"true", b"false", b"1", b"0"])

    def edge(self, rng):
        text = rng.choice(["true", "false", "True", "FALSE", "yes", "no", "on", "off", "y", "n", "t", "f", "Y", "N",
                           "T", "F", "enable", "disable", "enabled", "disabled", "1", "0", "01", "2", "-1", "tru",
                           "truee", "", " true", "true ", "00", "10", "+1", "1.0"])
        return (text if rng.random() < 0.4 else f'"{text}"').encode()


class String(Kind):
    """Anything is text to it but what is no JSON; so `limit` counts only for FixedString."""

    def __init__(self, limit=None):
        self.limit = limit

    def plain(self, rng):
        size = rng.randint(0, self.limit if self.limit else 40)
        return quoted("".join(chr(rng.randint(0x20, 0x7e)) for _ in range(size)))

    def edge(self, rng):
        form = rng.randint(0, 7)
        if form == 0:
            body = b"".join(rng.choice([
                b"\\n", b"\\t", b"\\/", b"\\b", b"\\f", b"\\r", b'\\"', b"\\\\", b"\\u0041", b"\\u00e4", b"\\u20AC",
                b"\\uD83D\\uDE00", b"\\ud83d", b"\\ude00", b"\\ude00\\ud83d", b"\\u0000", b"\\u000a", b"\\uFFFF",
                b"\\ud83d\\u0041", b"\\ud83dx", b"\\uD83D\\n", b"\\u12", b"\\uZZZZ", b"\\x41", b"\\q", b"\\a", b"\\0",
                b"\\'", b"\\e", b"\\N", b"\\v", b"\\U0041", b"\\u 041", b"a", b"0"])
                for _ in range(rng.randint(1, 4)))
        elif form == 1:
            body = b"".join(rng.choice([
                b"\xff", b"\xc3", b"\xc3\xa4", b"\xe2\x82\xac", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xf4\x90\x80\x80",
                b"\xc0\xaf", b"\x80", b"\x00", b"\x01", b"\x1f", b"\x7f", b"\t", b"\r", b"\x08", b"x"])
                for _ in range(rng.randint(1, 6)))
        elif form == 2:
            size = rng.choice([0, 1, 7, 8, 9, 14, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 1000])
            body = b"a" * size + rng.choice([b"", b"\\n", b"\xc3\xa4", b"\\\\"])
        elif form == 3:
            return rng.choice([b"12345678901234567890123", b"-0", b"1.0", b"1e400", b"0.10", b"007", b"1.", b".5", b"+5",
                               b"true", b"false", b"null", b"nan", b"-inf", b"0x1F", b"1e", b"-", b"1E5", b"123abc",
                               b"9223372036854775808", b"18446744073709551616", b"-9223372036854775809", b"1.50",
                               b"-00", b"00", b"1e5", b"100000000000000000000000", b"0.1e1", b"12.", b"5e-324"])
        elif form == 4:
            return rng.choice([b"{}", b"[]", b'{"a" : 1}', b"[1, 2]", b'{"a":{"b":[null,true]}}', b"[ ]", b"{ }",
                               b'{"a":1,"a":2}', b'["\\u0041"]', b"[01]", b"[1,]", b"{a:1}", b'{"a"}', b"[nul]",
                               b'[1 2]', b'{"a":1,}', b'["\\q"]', b"[-]", b"[1.]", b"[.5]", b"[+1]", b'{"a":nan}'])
        elif form == 5 and self.limit:
            size = self.limit + rng.choice([-1, 0, 0, 1, 2])
            body = b"x" * max(size, 0)
        elif form == 6 and self.limit:
            body = rng.choice([b"\\u0000", b"ab\\u0000", b"\\n\\n\\n\\n", b"\xc3\xa4\xc3\xa4", b"\\u00e4\\u00e4", b"", b"abcde"])
        else:
            body = rng.choice([b"", b" ", b"null", b"\\\\N", b"NULL", b"0", b"'", b"\\'", b"\\\\", b"\\\"", b"a\tb"])
        return b'"' + body + b'"'


class Uuid(Kind):
    def plain(self, rng):
        h = "%032x" % rng.getrandbits(128)
        return f'"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"'.encode()

    def edge(self, rng):
        text = self.plain(rng)[1:-1].decode()
        form = rng.randint(0, 9)
        if form == 0:
            text = text.upper()
        elif form == 1:
            text = text.replace("-", "")
        elif form == 2:
            at = rng.randint(0, len(text) - 1)
            text = text[:at] + rng.choice(["g", "-", " ", "", "0", "é", "G", "x"]) + text[at + 1:]
        elif form == 3:
            text = text[:rng.randint(0, 35)]
        elif form == 4:
            text += rng.choice(["0", " ", "-", "\\n", "00000000"])
        elif form == 5:
            text = "{" + text + "}"
        elif form == 6:
            text = rng.choice(["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "0" * 32])
        elif form == 7:
            text = "urn:uuid:" + text
        elif form == 8:
            text = text.replace("-", "", rng.randint(1, 3))
        return f'"{text}"'.encode()


class Time(Kind):
    """Date, Date32, DateTime and DateTime64: what has a calendar in it."""

    def __init__(self, low, high, clock=True, scale=0, zone=None):
        self.low, self.high, self.clock, self.scale, self.zone = low, high, clock, scale, zone

    ZONE_EDGES = {"Europe/Berlin": ["2026-03-29 01:59:59", "2026-03-29 02:00:00", "2026-03-29 02:59:59",
                                    "2026-03-29 03:00:00", "2026-10-25 01:59:59", "2026-10-25 02:00:00",
                                    "2026-10-25 02:59:59", "2026-10-25 03:00:00", "1980-04-06 02:30:00",
                                    "1945-05-24 03:00:00", "1900-01-01 00:00:00", "1893-04-01 00:00:00"],
                  "America/New_York": ["2026-03-08 01:59:59", "2026-03-08 02:30:00", "2026-11-01 01:30:00",
                                       "2007-03-11 02:00:00", "1970-04-26 02:30:00"]}

    def _instant(self, rng):
        return datetime.datetime(rng.randint(self.low, self.high), 1, 1) + datetime.timedelta(
            seconds=rng.randint(0, 365 * 86400 - 1))

    def plain(self, rng):
        at = self._instant(rng)
        if not self.clock:
            return b'"%s"' % at.strftime("%Y-%m-%d").rjust(10, "0").encode()
        fraction = "." + "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 9))) \
            if self.scale and rng.random() < 0.6 else ""
        form = rng.randint(0, 4)
        text = f"{at.year:04}-" + at.strftime("%m-%d") + ("T" if form == 1 else " ") + at.strftime("%H:%M:%S") + fraction
        if form == 2:
            text += "Z"
        if form == 3:
            text += rng.choice(["+", "-"]) + "%02d:%02d" % (rng.randint(0, 14), rng.choice([0, 30, 45]))
        if form == 4 and 2001 < at.year < 2100:
            return b"%d" % int((at - datetime.datetime(1970, 1, 1)).total_seconds() * 10 ** self.scale)
        return f'"{text}"'.encode()

    def edge(self, rng):
        form = rng.randint(0, 9)
        if form <= 1:
            year = rng.choice([self.low - 1, self.low, self.high, self.high + 1, 1900, 1969, 1970, 2000, 2024, 2026,
                               2100, 2106, 2149, 2299, 2300, 9999, 0, 1])
            text = "%04d-%02d-%02d" % (year, rng.choice([0, 1, 2, 2, 2, 3, 4, 12, 13]),
                                       rng.choice([0, 1, 28, 28, 29, 29, 30, 31, 32, 7, 6]))
            if self.clock and rng.random() < 0.8 or rng.random() < 0.1:
                text += rng.choice([" ", "T"]) + "%02d:%02d:%02d" % (
                    rng.choice([0, 0, 12, 23, 24, 25]), rng.choice([0, 59, 60, 30]), rng.choice([0, 59, 60, 61]))
                text += rng.choice(["", "", ".", ".5", ".999999999", ".0000000001", ".9999999999999", "Z", " Z", "+00:00",
                                    "+23:59", "-14:00", "+1", "+0130", "+24:00", "UTC", " UTC", "z", " GMT", "CET", "MSK",
                                    " PM", "+01:60", "-00:30"])
        elif form == 2:
            text = rng.choice(["2026-1-2", "2026/11/23", "2026/1/2", "20261123", "20261123T101112", "20261123101112",
                               "20261123 101112", "2026-11-23 1:2:3", "2026-11-23 10:11", "2026-11-23T10:11", "2026-11",
                               "2026", "2026-11-23 10", "23/11/2026", "23.11.2026", "Nov 23, 2026", "23 Nov 2026",
                               "Mon, 23 Nov 2026 12:34:56 GMT", "2026-11-23  10:11:12", " 2026-11-23", "2026-11-23 ",
                               "2026-11-23 10:11:12 ", "2026-11-23Z", "2026-11-23T", "26-11-23", "02026-11-23",
                               "2026-11-23 10:11:1", "2026-011-23", "2026-11-230", "2026-11/23", "2026.11.23",
                               "2026-11-23 10-11-12", "2026-11-23\\t10:11:12", "2026-11-23\\u002010:11:12", "2026-W48-1",
                               "2026-327", "today", "now", "", "0", "0000-00-00", "0000-00-00 00:00:00", "1", "12:34:56",
                               "2026-11-23t10:11:12", "2026-11-23 10:11:12,5", "2026-11-23_10:11:12", "-2026-11-23",
                               "2026-11-23 10:11:12 +02", "2026-11-23 10:11:12 +0200", "2026-11-23T10:11:12.5+02:00"])
        elif form == 3:
            text = str(rng.choice([10 ** n + rng.choice([-1, 0, 1]) for n in range(0, 21)]))
        elif form == 4:
            n = rng.choice([0, 1, 65535, 65536, 120529, 120530, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 1795437296,
                            1795437296789, 1795437296789012, 1795437296789012345, 253402300800, 10413792000, 2 ** 63 - 1,
                            2 ** 63, 2 ** 64, 100000000 * 10 ** self.scale, 10413791999 * 10 ** self.scale,
                            10413792000 * 10 ** self.scale])
            n = rng.choice([1, 1, -1]) * n + rng.choice([-1, 0, 0, 1])
            text = str(n) + rng.choice(["", "", "", "", ".5", ".0", "e3", "x"])
            if rng.random() < 0.6:
                return text.encode()
        elif form == 5 and self.zone in self.ZONE_EDGES:
            text = rng.choice(self.ZONE_EDGES[self.zone]) + rng.choice(["", "", "", "Z", "+01:00", "+02:00", ".5"])
        else:
            text = self.plain(rng).decode().strip('"')
            at = rng.randint(0, len(text))
            if rng.random() < 0.5:
                text = text[:at] + rng.choice(list("0123456789:-/TZ. +x")) + text[at + 1:]
            else:
                text = text[:at]
        return f'"{text}"'.encode()


class Enum(Kind):
    def __init__(self, members):
        self.members = members

    def plain(self, rng):
        name, value = rng.choice(list(self.members.items()))
        return quoted(name) if rng.random() < 0.8 else b"%d" % value

    def edge(self, rng):
        name, value = rng.choice(list(self.members.items()))
        form = rng.randint(0, 6)
        if form == 0:
            return quoted(name + rng.choice([" ", "x", "\0"]))
        if form == 1:
            return quoted(rng.choice([name.upper(), name[:-1], " " + name]))
        if form == 2:
            return b"%d" % rng.choice([value + 1, value - 1, 127, 128, -128, -129, 255, 256 + value, 32767, 65536 + value])
        if form == 3:
            return b'"%d"' % rng.choice([value, value + 1, 256 + value])
        if form == 4:
            return rng.choice([b"%d.0", b"+%d", b"0%d", b"%de0", b"-%d", b'" %d"', b'"%d "']) % value
        if form == 5:
            return b'"' + b"".join(b"\\u%04x" % ord(c) for c in name) + b'"'
        return self.plain(rng)


class Decimal(Kind):
    def __init__(self, precision, scale):
        self.precision, self.scale = precision, scale

    def plain(self, rng):
        whole = rng.randint(0, 10 ** rng.randint(0, self.precision - self.scale) - 1)
        text = rng.choice(["", "-"]) + str(whole)
        digits = rng.randint(0, self.scale)
        if digits:
            text += "." + "".join(rng.choice("0123456789") for _ in range(digits))
        return text.encode()

    def edge(self, rng):
        most = 10 ** (self.precision - self.scale)
        form = rng.randint(0, 9)
        if form <= 2:
            text = str(rng.choice([most - 1, most, most + 1, most // 10, 0, 10 ** self.precision]))
            text += rng.choice(["", ".", ".0", "." + "9" * self.scale, "." + "0" * self.scale,
                                "." + "9" * (self.scale + 1), "." + "0" * (self.scale + 5), "." + "0" * self.scale + "1"])
        elif form == 3:
            text = "%d.%de%d" % (rng.randint(0, 9999), rng.randint(0, 9999), rng.randint(-12, 12))
        elif form == 4:
            text = rng.choice(["", "", "0.", "0.00", "."]) + "%de%d" % (rng.choice([0, 1, 9, 10, 99]), rng.choice([
                -self.scale - 1, -self.scale, self.precision - self.scale - 1, self.precision - self.scale, 80, -80,
                400, 99999999999]))
            if rng.random() < 0.3:
                text = str(rng.randint(1, 99)) + "0" * rng.randint(self.precision - 3, self.precision) + "e-%d" % rng.randint(1, self.precision)
        elif form == 5:
            text = rng.choice([".5", "5.", "-.5", "+5", "007.5", "1e", "1e+1", "1E1", "-0", "-0.0", "", ".", "1.2.3", "1,5",
                               "0x10", "1e1.5", "--1", "nan", "inf", "00000000000000000000000000000000000000000001", "-",
                               "1.5 ", "0.0000000000000000000000000000000000000000000000000000000000000000000000000000000"])
        elif form == 6:
            text = "0" * rng.randint(1, 90) + str(rng.getrandbits(20)) + "." + "0" * rng.randint(0, 90)
        elif form == 7:
            text = str(rng.getrandbits(20)) + "." + str(rng.getrandbits(rng.choice([8, 30, 64, 200])))
        else:
            text = self.plain(rng).decode() + "0" * rng.randint(0, 3)
        if rng.random() < 0.3 and text[:1] != "-":
            text = "-" + text
        if rng.random() < 0.3 or not text:
            text = '"' + text + '"'
        return text.encode()


class Ipv4(Kind):
    def plain(self, rng):
        return b'"%d.%d.%d.%d"' % tuple(rng.randint(0, 255) for _ in range(4))

    def edge(self, rng):
        parts = [str(rng.choice([0, 1, 9, 10, 99, 100, 127, 199, 200, 249, 250, 255])) for _ in range(4)]
        form = rng.randint(0, 6)
        at = rng.randint(0, 3)
        if form == 0:
            parts[at] = rng.choice(["256", "999", "1000", "-1", "", "0x1", "a", " 1", "1 ", "00", "01", "001", "0001", "+1"])
        elif form == 1:
            parts = parts[:rng.randint(1, 3)]
        elif form == 2:
            parts.append("1")
        text = ".".join(parts)
        if form == 3:
            text = rng.choice(["::1", "::ffff:1.2.3.4", "1.2.3.4/24", "1.2.3.4:80", "", "1.2.3.4.", ".1.2.3.4", "localhost",
                               "1..2.3", "1.2.3.4 ", " 1.2.3.4", "1.2.3.4\\u0000", "4294967295", "16909060"])
        if form == 4:
            return rng.choice([b"0", b"1", b"4294967295", b"4294967296", b"-1", b"16909060", b"1.5", b"1e3"])
        return f'"{text}"'.encode()


class Ipv6(Kind):
    def plain(self, rng):
        return b'"' + b":".join(b"%x" % rng.getrandbits(16) for _ in range(8)) + b'"'

    def edge(self, rng):
        groups = ["%x" % rng.choice([0, 1, 0xffff, 0xdb8, 0x2001, rng.getrandbits(16)]) for _ in range(8)]
        form = rng.randint(0, 9)
        if form == 0:
            a, b = sorted((rng.randint(0, 8), rng.randint(0, 8)))
            text = ":".join(groups[:a]) + "::" + ":".join(groups[b:])
        elif form == 1:
            at = rng.randint(0, 7)
            groups[at] = rng.choice(["", "10000", "g", "00000", "0001", " 1", "-1", "FFFF", "Ab"])
            text = ":".join(groups)
        elif form == 2:
            text = ":".join(groups[:rng.randint(1, 7)])
        elif form == 3:
            text = ":".join(groups[:6]) + ":" + rng.choice(["1.2.3.4", "255.255.255.255", "1.2.3", "256.1.1.1", "1.2.3.4.5",
                                                             "01.2.3.4", "1.2.3.4 "])
        elif form == 4:
            text = rng.choice(["::", "::1", "1::", "::ffff:1.2.3.4", "::1.2.3.4", ":::", "1::2::3", ":1:2:3:4:5:6:7:8", "",
                               "1:2:3:4:5:6:7::8", "1:2:3:4:5:6:7:8:9", "fe80::1%eth0", "[::1]", "::1/64", "1.2.3.4", ":",
                               "1", "::ffff:0:1.2.3.4", "::FFFF:1.2.3.4", " ::1", "::1 ", "1:2:3:4:5:6:7:", "::12345",
                               "0:0:0:0:0:0:0:0", "1.2.3.4.5", "256.1.1.1", "::ffff:1.2.3.256", "1:2:3:4:5:6:1.2.3.4:8",
                               "01.2.3.4", "1.02.3.4", "::01.2.3.4", "00.1.2.3", "1.2.3.0004"])
        elif form == 5:
            text = ":".join(groups) + rng.choice([":1", ":", "::", " ", "x"])
        else:
            text = ":".join(groups).upper() if form == 6 else ":".join(groups)
        return f'"{text}"'.encode()


class Nullable(Kind):
    def __init__(self, inner):
        self.inner = inner

    def plain(self, rng):
        return b"null" if rng.random() < 0.1 else self.inner.plain(rng)

    def edge(self, rng):
        return b"null" if rng.random() < 0.05 else self.inner.edge(rng)


class Array(Kind):
    def __init__(self, inner):
        self.inner = inner

    def plain(self, rng):
        return b"[" + b",".join(self.inner.plain(rng) for _ in range(rng.randint(0, 5))) + b"]"

    def edge(self, rng):
        items = [self.inner.edge(rng) if rng.random() < 0.4 else self.inner.plain(rng)
                 for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 30]))]
        text = b"[" + rng.choice([b",", b",", b" , ", b"\t,\t"]).join(items) + b"]"
        form = rng.randint(0, 12)
        if form == 0:
            return rng.choice([b"[ ]", b"[,]", b"[1,]", b"[,1]", b"[", b"]", b"[[", b"[]]", b"null", b'""', b'"[]"', b"{}",
                               b"[null]", b"[[]]", b"[ 1 ]", b'"[1,2]"', b"[1 2]", b"[1;2]"])
        if form == 1:
            return quoted(text)
        return text


class Map(Kind):
    def __init__(self, key, inner):
        self.key, self.inner = key, inner

    def _key(self, rng, edge):
        text = self.key.edge(rng) if edge else self.key.plain(rng)
        return text if text[:1] == b'"' else b'"' + text + b'"'

    def plain(self, rng):
        return b"{" + b",".join(self._key(rng, False) + b":" + self.inner.plain(rng)
                                for _ in range(rng.randint(0, 4))) + b"}"

    def edge(self, rng):
        pairs = [self._key(rng, rng.random() < 0.3) + rng.choice([b":", b" : "]) +
                 (self.inner.edge(rng) if rng.random() < 0.5 else self.inner.plain(rng))
                 for _ in range(rng.choice([0, 1, 1, 2, 3]))]
        if pairs and rng.random() < 0.2:
            pairs.append(pairs[0])
        if rng.random() < 0.1:
            return rng.choice([b"[]", b"{,}", b'{"a"}', b'{"a":}', b'{"a":1,}', b"{1:1}", b"{a:1}", b"{ }", b'"{}"',
                               b'{"a":null}', b'{null:1}', b'[["a",1]]'])
        return b"{" + rng.choice([b",", b" , "]).join(pairs) + b"}"


class Tuple(Kind):
    def __init__(self, *inner, names=None):
        self.inner, self.names = inner, names

    def _join(self, rng, items):
        if self.names and rng.random() < 0.7:
            pairs = [quoted(n) + b":" + v for n, v in zip(self.names, items)]
            if rng.random() < 0.3:
                rng.shuffle(pairs)
            return b"{" + b",".join(pairs) + b"}"
        return b"[" + b",".join(items) + b"]"

    def plain(self, rng):
        return self._join(rng, [inner.plain(rng) for inner in self.inner])

    def edge(self, rng):
        items = [inner.edge(rng) if rng.random() < 0.4 else inner.plain(rng) for inner in self.inner]
        form = rng.randint(0, 7)
        if form == 0:
            items = items[:-1]
        if form == 1:
            items.append(b"1")
        if form == 2:
            return rng.choice([b"[]", b"{}", b"[null,null]", b'{"a":1}', b'{"b":"x"}', b'{"a":1,"a":2}', b'{"a":1,"zz":2}',
                               b'{"A":1}', b'"(1,2)"', b"null", b"(1,2)", b'{"a":null,"b":null}'])
        return self._join(rng, items)


class JsonObject(Kind):
    def plain(self, rng):
        return json.dumps({"k%d" % i: rng.choice([1, -5, 1.5, "x", True, [1, 2], {"y": 1}, "2026-11-23"])
                           for i in range(rng.randint(0, 4))}).encode()

    def edge(self, rng):
        return rng.choice([b"{}", b'{"a":null}', b'{"a":{"b":{"c":1}}}', b'{"a":18446744073709551615}', b'{"a":1e400}',
                           b'{"a":01}', b'{"":1}', b'{"a.b":1}', b'{"a":[]}', b'{"a":[{"b":1}]}', b'{"a":"\\ud83d"}',
                           b"[]", b'"{}"', b"1", b'{"a"}', b'{"a":1,}', b"{a:1}", b'{"a":"\xff"}'])


class Either(Kind):
    def __init__(self, *inner):
        self.inner = inner

    def plain(self, rng):
        return rng.choice(self.inner).plain(rng)

    def edge(self, rng):
        return rng.choice(self.inner).edge(rng)


class Row:
    """One type of the test. never_refuses: all JSON is a value of it (or nearly all)."""

    def __init__(self, type_, kind, old=True, show="c", never_refuses=False, ddl=None):
        self.type, self.kind, self.old, self.show = type_, kind, old, show
        self.never_refuses, self.ddl = never_refuses, ddl or type_

    def __repr__(self):
        return self.type


DAYS = "c, toInt32(c)"
SECONDS = "c, toInt64(c)"
TICKS = "c, toDecimal128(c, 9)"
POINT = Tuple(Float(64), Float(64))
FOO = {"foo": 1, "bar": 2, "": 3}
WIDE = {"a": -5, "b": 1000, "ä": 7}

TYPES = [
    Row("UInt8", Int(8, False)), Row("UInt16", Int(16, False)), Row("UInt32", Int(32, False)),
    Row("UInt64", Int(64, False)), Row("Int8", Int(8, True)), Row("Int16", Int(16, True)),
    Row("Int32", Int(32, True)), Row("Int64", Int(64, True)),
    Row("UInt128", Int(128, False), old=False), Row("Int128", Int(128, True), old=False),
    Row("UInt256", Int(256, False), old=False), Row("Int256", Int(256, True), old=False),
    Row("Float32", Float(32)), Row("Float64", Float(64)), Row("BFloat16", Float(16), old=False),
    Row("Bool", Bool(), old=False),
    Row("String", String(), never_refuses=True), Row("FixedString(4)", String(4)), Row("FixedString(16)", String(16)),
    Row("UUID", Uuid()),
    Row("Date", Time(1970, 2148, clock=False), show=DAYS),
    Row("Date32", Time(1900, 2299, clock=False), old=False),
    Row("DateTime", Time(1970, 2105), show=SECONDS),
    Row("DateTime('Europe/Berlin')", Time(1970, 2105, zone="Europe/Berlin"), show=SECONDS),
    Row("DateTime('America/New_York')", Time(1970, 2105, zone="America/New_York"), show=SECONDS),
    Row("DateTime64(0)", Time(1900, 2298), old=False, show=TICKS),
    Row("DateTime64(3)", Time(1900, 2298, scale=3), old=False, show=TICKS),
    Row("DateTime64(6, 'Europe/Berlin')", Time(1900, 2298, scale=6, zone="Europe/Berlin"), old=False, show=TICKS),
    Row("DateTime64(9, 'UTC')", Time(1900, 2261, scale=9), old=False, show=TICKS),
    Row("Enum8('foo' = 1, 'bar' = 2, '' = 3)", Enum(FOO)),
    Row("Enum16('a' = -5, 'b' = 1000, 'ä' = 7)", Enum(WIDE)),
    Row("Decimal(9, 2)", Decimal(9, 2)), Row("Decimal(18, 4)", Decimal(18, 4)), Row("Decimal(38, 6)", Decimal(38, 6)),
    Row("Decimal(5, 5)", Decimal(5, 5)), Row("Decimal(18, 0)", Decimal(18, 0)),
    Row("Decimal(76, 10)", Decimal(76, 10), old=False),
    Row("IPv4", Ipv4(), old=False), Row("IPv6", Ipv6(), old=False),
    Row("Nullable(UInt8)", Nullable(Int(8, False))), Row("Nullable(Int64)", Nullable(Int(64, True))),
    Row("Nullable(Float64)", Nullable(Float(64))), Row("Nullable(String)", Nullable(String()), never_refuses=True),
    Row("Nullable(Bool)", Nullable(Bool()), old=False), Row("Nullable(UUID)", Nullable(Uuid())),
    Row("Nullable(DateTime)", Nullable(Time(1970, 2105)), show=SECONDS),
    Row("Nullable(Enum8('foo' = 1, 'bar' = 2))", Nullable(Enum({"foo": 1, "bar": 2}))),
    Row("Nullable(Decimal(9, 2))", Nullable(Decimal(9, 2))),
    Row("Array(UInt8)", Array(Int(8, False))), Row("Array(String)", Array(String())),
    Row("Array(Nullable(Int32))", Array(Nullable(Int(32, True)))), Row("Array(Array(Int16))", Array(Array(Int(16, True)))),
    Row("Array(Float64)", Array(Float(64))), Row("Array(DateTime)", Array(Time(1970, 2105))),
    Row("LowCardinality(String)", String(), never_refuses=True, old=False),
    Row("LowCardinality(Nullable(String))", Nullable(String()), never_refuses=True, old=False),
    Row("Array(LowCardinality(String))", Array(String()), old=False),
    Row("SimpleAggregateFunction(sum, UInt64)", Int(64, False), old=False),
    Row("Map(String, Int32)", Map(String(), Int(32, True)), old=False),
    Row("Map(String, String)", Map(String(), String()), old=False),
    Row("Map(UInt8, Array(Int8))", Map(Int(8, False), Array(Int(8, True))), old=False),
    Row("Tuple(Int32, String)", Tuple(Int(32, True), String())),
    Row("Tuple(a Int32, b String)", Tuple(Int(32, True), String(), names=["a", "b"]), old=False),
    Row("Array(Tuple(k String, v Int32))", Array(Tuple(String(), Int(32, True), names=["k", "v"])), old=False),
    Row("Point", POINT, old=False), Row("Ring", Array(POINT), old=False),
    Row("Polygon", Array(Array(POINT)), old=False),
    Row("LineString", Array(POINT), old=False), Row("MultiLineString", Array(Array(POINT)), old=False),
    Row("MultiPolygon", Array(Array(Array(POINT))), old=False),
    Row("Geometry", Either(POINT, Array(POINT), Array(Array(POINT)), Array(Array(Array(POINT)))), old=False,
        show="c, variantType(c)"),
    Row("Time", Either(Time(1970, 2105), Int(22, True)), old=False),
    Row("Time64(3)", Either(Time(1970, 2105, scale=3), Int(32, True)), old=False),
    Row("Variant(Int64, String)", Either(Int(64, True), String()), old=False, never_refuses=True),
    Row("Variant(Decimal(9, 2), String)", Either(Decimal(9, 2), String()), old=False, show="c, variantType(c)",
        never_refuses=True),
    Row("JSON", JsonObject(), old=False),
    Row("Dynamic", Either(Int(64, True), String(), Float(64)), old=False, never_refuses=True),
]
