#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""docs/operations.md against the code: each log event stands there with the levels it has, and no
other does; each test that it names exists. (Its metrics are compared by tests/unit/test_metrics.c.)
Prints what is wrong and exits 1 if there is anything.
"""
import glob
import re
import sys

EVENT = re.compile(r'log_event\((.*?)\);', re.S)
NAME = re.compile(r'"([a-z]+\.[a-z_]+)"')


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def events():
    """name -> the levels of its calls; a level that is computed is none of these words."""
    found = {}
    for path in glob.glob("src/*/*.c"):
        for call in EVENT.findall(read(path)):
            names = NAME.findall(call) or re.findall(r'"(endpoint\.\w+)"', read(path))
            for name in names:
                found.setdefault(name, set()).update(
                    level.lower() for level in re.findall(r"LOG_(INFO|WARN|ERROR|DEBUG)\b", call))
    return found


def main():
    wrong = []
    text = read("docs/operations.md")
    told = {name: levels for name, levels in
            re.findall(r"^\| `([a-z]+\.[a-z_]+)` \| ([^|]*) \|", text, re.M)}
    made = events()
    wrong += [f"the event {name} is not told" for name in sorted(made.keys() - told.keys())]
    wrong += [f"the event {name} is not in the code" for name in sorted(told.keys() - made.keys())]
    for name in sorted(made.keys() & told.keys()):
        for level in re.findall(r"\b(debug|info|warn|error)\b", told[name]):
            if level not in made[name]:
                wrong.append(f"the event {name} has levels {sorted(made[name])}, not {level}")

    tests = "".join(read(path) for path in glob.glob("tests/*/test_*"))
    wrong += [f"there is no {name}" for name in sorted(set(re.findall(r"`(test_\w+)`", text)))
              if not re.search(rf"\b{name}\b", tests)]
    for line in wrong:
        print(f"docs/operations.md: {line}")
    return 1 if wrong or not made else 0


if __name__ == "__main__":
    sys.exit(main())
