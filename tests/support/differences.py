# SPDX-License-Identifier: Apache-2.0
"""Where spoold differs from the server on purpose: the rules of tests/data/json-difference-rules.tsv.

A rule names a value by /regex/ or by one of the predicates below, which know nothing of the decoder: they
work out from the type and the text alone whether, say, a number is out of range. In a container's value a
rule holds if it holds for any scalar in it."""
import datetime
import decimal
import fractions
import json
import os
import re
import zoneinfo

PATH = os.path.join(os.path.dirname(__file__), "..", "data", "json-difference-rules.tsv")
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|[^\s,\[\]{}:"]+')
LEAF = re.compile(r"U?Int\d+|B?Float\d+|Decimal\(\d+, \d+\)|DateTime64\([^)]*\)|DateTime(?:\([^)]*\))?|Date32|Date|"
                  r"Enum\d+\(.*?\)|Time64\(\d\)|Time|Bool|UUID|IPv[46]")


GEO = ("Point", "Ring", "Polygon", "LineString", "MultiLineString", "MultiPolygon", "Geometry")


def leaf_of(type_):
    """The scalar inside, as far as one matters; String loses against the others."""
    found = LEAF.findall(type_)
    return found[-1] if found else "Float64" if type_ in GEO + ("Dynamic",) else "String"


def _int_bounds(leaf):
    bits = int(re.search(r"\d+", leaf).group())
    return (0, (1 << bits) - 1) if leaf[0] == "U" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def int_range(leaf, text, _quoted):
    match = re.fullmatch(r"[+-]?\d+", text)
    low, high = _int_bounds(leaf)
    return bool(match) and not low <= int(text) <= high


def float_overflow(leaf, text, _quoted):
    if not NUMBER.fullmatch(text):
        return False
    exponent = re.search(r"[eE]\+?(\d+)$", text)
    if exponent and len(exponent.group(1)) > 5:
        return True
    if re.search(r"[eE]-\d{6,}$", text):
        return False  # smaller than any digits before it could make good, and too small for decimal
    bits, top = {"Float64": (53, 1023), "Float32": (24, 127), "BFloat16": (8, 127)}[leaf]
    limit = (2 - fractions.Fraction(1, 2 ** bits)) * 2 ** top
    return abs(fractions.Fraction(decimal.Decimal(text))) >= limit


def decimal_digits(leaf, text, _quoted):
    scale = int(re.findall(r"\d+", leaf)[1])
    if not NUMBER.fullmatch(text):
        return False
    exponent = re.search(r"[eE]-(\d+)$", text)
    if exponent and len(exponent.group(1)) > 5:
        return True
    with decimal.localcontext() as context:
        context.prec = 2000
        value = decimal.Decimal(text).scaleb(scale)
        return value != value.to_integral_value()


def no_number(_leaf, text, _quoted):
    return not NUMBER.fullmatch(text)


# ---- dates and times, by the grammar of src/codec/datetime.h ----

DATE = r"(?P<y>\d{4})(?P<sep>[-/])(?P<m>\d{1,2})(?P=sep)(?P<d>\d{1,2})|(?P<y2>\d{4})(?P<m2>\d\d)(?P<d2>\d\d)"
ZONE = r" *(?P<zone>Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)"
WHEN = re.compile(rf"(?:{DATE})(?:(?:[T ](?P<H>\d\d?):(?P<M>\d\d)(?::(?P<S>\d\d)(?P<f>\.\d+)?)?|"
                  rf"[T ]?(?P<H2>\d\d)(?P<M2>\d\d)(?P<S2>\d\d)(?P<f2>\.\d+)?)(?:{ZONE})?)?")
EPOCH = re.compile(r"(\d{9,10})(\.\d+)?|\d{13}|\d{16}|\d{19}")


def _zone(leaf):
    name = re.search(r"'([^']+)'", leaf)
    return zoneinfo.ZoneInfo(name.group(1) if name else "UTC")


def _instant(leaf, text):
    """(seconds since 1970, fine, skipped): of a documented form; None: it is none."""
    if EPOCH.fullmatch(text) and leaf[:8] == "DateTime":
        digits = len(re.match(r"\d+", text).group())
        return int(text[:digits]) // {13: 10 ** 3, 16: 10 ** 6, 19: 10 ** 9}.get(digits, 1), True, False
    match = WHEN.fullmatch(text)
    if not match or (leaf[:8] != "DateTime" and not re.fullmatch(DATE, text)):
        return None
    g = match.groupdict()
    if g["H2"] and not g["y2"]:
        return None
    parts = [int(g[n] or g.get(n + "2") or 0) for n in "ymdHMS"]
    second = parts[5]
    try:
        at = datetime.datetime(*parts[:5], min(second, 59))
    except ValueError:
        return 0, False, False
    if second > 60:
        return 0, False, False
    seconds = int((at - datetime.datetime(1970, 1, 1)).total_seconds()) + (second == 60)
    zone = g["zone"]
    if zone and zone[0] in "+-":
        hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
        if hours > 23 or minutes > 59:
            return None
        return seconds - (1 if zone[0] == "+" else -1) * (hours * 3600 + minutes * 60), True, False
    if zone or leaf[:8] != "DateTime":
        return seconds, True, False
    local = _zone(leaf)
    there = at.replace(tzinfo=local)
    back = there.astimezone(datetime.timezone.utc).astimezone(local).replace(tzinfo=None)
    return seconds - int(there.utcoffset().total_seconds()), True, back != at


def no_such_form(leaf, text, quoted):
    """A form that best_effort takes and spoold does not."""
    return quoted and _instant(leaf, text) is None


def no_such_time(leaf, text, quoted):
    found = _instant(leaf, text) if quoted else None
    return found is not None and not found[1]


def skipped_time(leaf, text, quoted):
    found = _instant(leaf, text) if quoted else None
    return found is not None and found[2]


LIMITS = {"Date": (0, 65536 * 86400), "Date32": (-25567 * 86400, 120530 * 86400), "DateTime": (0, 1 << 32)}


def time_range(leaf, text, quoted):
    low, high = LIMITS[leaf.split("(")[0]]
    if not quoted:
        if not re.fullmatch(r"-?\d+", text):
            return False
        return not low <= int(text) * (86400 if leaf[:8] != "DateTime" else 1) < high
    found = _instant(leaf, text)
    return found is not None and not low <= found[0] < high


def ticks_unit(leaf, text, quoted):
    """An unquoted number that may be of another unit than the column's ticks."""
    scale = int(re.search(r"\d+", leaf[10:]).group())
    return not quoted and bool(re.fullmatch(r"-?\d+", text)) and int(text) != 0 and not (
        10 ** 8 <= int(text) // 10 ** scale < 10413792000 and int(text) < 1 << 63)


def time_of_day_range(leaf, text, quoted):
    scale = int((re.findall(r"\((\d)\)", leaf) or ["0"])[0])
    return not quoted and bool(re.fullmatch(r"-?\d+", text)) and abs(int(text)) > 3599999 * 10 ** scale


def enum_wraps(leaf, text, _quoted):
    if not re.fullmatch(r"[+-]?\d+", text):
        return False
    return not -128 <= int(text) < 128 if leaf.startswith("Enum8") else not -32768 <= int(text) < 32768


def no_json(_leaf, text, quoted):
    """Text that is no JSON (an unquoted word, an escape that is none)."""
    try:
        json.loads(json.dumps(text) if quoted else text, parse_constant=float)
    except ValueError:
        return True
    return text in ("nan", "NaN", "Infinity", "-Infinity")


class Rule:
    def __init__(self, line):
        self.line = line
        (self.server, self.type, self.outcome, self.value, self.why, self.example_type,
         self.example) = line.split("\t")
        self.used = self.example_type == "-"

    def holds(self, type_, value):
        if self.value[0] == "/":
            return re.search(self.value[1:-1].encode(), value, re.S) is not None
        leaf = leaf_of(type_)
        predicate = globals()[self.value]
        for scalar in SCALAR.findall(value):
            quoted = scalar[:1] == b'"'
            text = scalar.decode("utf-8", "replace")
            if quoted:
                try:
                    text = json.loads(text)
                except ValueError:
                    text = text[1:-1]
            if predicate(leaf, text, quoted):
                return True
        return False


def _load():
    with open(PATH, encoding="utf-8") as f:
        return [Rule(line.rstrip("\n")) for line in f if line.strip() and line[0] != "#"]


RULES = _load()


def examples(type_):
    """The values that stand beside the rules, as (bytes, True)."""
    return [(rule.example.encode(), True) for rule in RULES if rule.example_type == type_]


def explains(server, type_, value, outcome):
    """outcome: spoold's refusal word; "takes" (what the server refuses); "differs"."""
    found = False
    for rule in RULES:
        if rule.server == server and rule.outcome == outcome and re.search(rule.type, type_) and \
                rule.holds(type_, value):
            if type_ == rule.example_type and value == rule.example.encode():
                rule.used = True
            found = True
    return found


def same_value(ours, theirs):
    """The same value in two servers' spellings: 1.50 and 1.5, 18.16's zero of a date."""
    if ours == theirs:
        return True
    zero = "0000-00-00 00:00:00", "1970-01-01 00:00:00"
    a, b = (re.split(r"([\[\],\t])", text.replace(*zero)) for text in (ours, theirs))
    return len(a) == len(b) and all(x == y or _same_number(x, y) for x, y in zip(a, b))


def _same_number(a, b):
    try:
        return decimal.Decimal(a) == decimal.Decimal(b)
    except decimal.InvalidOperation:
        return False
