#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""House style that clang-format cannot see: licence lines, banned functions, words that must not land.

Reads what git tracks or would track. Prints file:line: what, and exits 1 if there is anything.
"""
import re
import subprocess
import sys

BANNED = {
    "strcpy": "copies without a bound",
    "strcat": "appends without a bound",
    "sprintf": "prints without a bound; use snprintf or buf_printf",
    "vsprintf": "prints without a bound",
    "gets": "reads without a bound",
    "strtok": "keeps hidden state",
    "atoi": "cannot report an error; use strtol and check",
    "atol": "cannot report an error",
    "atoll": "cannot report an error",
    "atof": "cannot report an error",
}
SLEEPS = ("sleep", "usleep", "nanosleep", "clock_nanosleep", "uv_sleep")
LICENCE = "SPDX-License-Identifier: Apache-2.0"
LICENSED = re.compile(r"(\.(c|h|py|sh)|(^|/)Makefile|^\.ci/\w+)$")
TEXT_ONLY = re.compile(r"\.(c|h|py|sh|md|xml|json|yaml|yml|txt|service|[1-8])$|(^|/)Makefile$|^\.ci/")

# Written in pieces, so that this file does not contain what it looks for.
FORBIDDEN = [
    (re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b"), "unfinished work"),
    (re.compile(r"(?<![\w.$}/-])/(wo" r"rk|ro" r"ot)/"), "a path of one machine"),
    (re.compile(r"registry\.npm" r"js|repo1?\.mav" r"en|pypi\.o" r"rg|deb\.deb" r"ian\.org|crates\.i" r"o\b"),
     "a registry's host"),
]


def tracked():
    out = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True, stdout=subprocess.PIPE).stdout
    return sorted({name for name in out.decode().split("\0") if name})


def without_comments_and_strings(text):
    """The same text with comments and literals blanked, line numbers kept."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def check_c(name, text):
    code = without_comments_and_strings(text)
    words = dict(BANNED)
    if not name.startswith("tests/support/"):
        words.update({word: "wait for a condition with a deadline instead" for word in SLEEPS})
    for m in re.finditer(r"\b(%s)\s*\(" % "|".join(words), code):
        yield code.count("\n", 0, m.start()) + 1, f"{m.group(1)}: {words[m.group(1)]}"


def check_py(text):
    for m in re.finditer(r"\btime\.sleep\s*\(", text):
        yield text.count("\n", 0, m.start()) + 1, "time.sleep: use wait_until of tests/support"


def check(name, text):
    if LICENSED.search(name) and LICENCE not in text[:400]:
        yield 1, "no licence line"
    if name.endswith((".c", ".h")):
        yield from check_c(name, text)
    if name.endswith(".py") and not name.endswith("check_style.py"):
        yield from check_py(text)
    for pattern, what in FORBIDDEN:
        for m in pattern.finditer(text):
            yield text.count("\n", 0, m.start()) + 1, f"{what}: {m.group()}"


def main():
    found = 0
    for name in tracked():
        if not TEXT_ONLY.search(name):
            continue
        try:
            with open(name, encoding="utf-8") as f:
                text = f.read()
        except FileNotFoundError:  # deleted, not yet committed
            continue
        except UnicodeDecodeError:
            print(f"{name}:1: not UTF-8")
            found += 1
            continue
        for line, what in check(name, text):
            print(f"{name}:{line}: {what}")
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
