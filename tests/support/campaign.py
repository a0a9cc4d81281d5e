# SPDX-License-Identifier: Apache-2.0
"""What kills and power cuts have shown so far, over any number of runs.

With CRASH_DIR set, the sums are kept there and a run goes on where the last one stopped. A chunk
counts when it has ended well, so a stopped run loses no more than one.
"""
import json
import os
import random
import re
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REPORTS = []  # a line for each campaign, printed at the end of the run (conftest.py)


def failpoints():
    """Every name in the one header that has them."""
    with open(os.path.join(ROOT, "src", "base", "failpoint.h"), encoding="utf-8") as f:
        return re.findall(r'^#define FP_\w+\s+\\?\s*"([^"]+)"', f.read(), re.M)


# Points that only an operator's request passes, or letters on their way to a table or topic, and the
# test that kills there.
LETTERS = {"dead_out.arrived": "test_letters_in_a_table_and_a_topic",
           **{name: "test_killed_at_each_step_of_a_replay" for name in failpoints()
              if name.startswith(("replay.", "dead_change."))}}


class Chunk:
    """What one daemon went through, from its first start to its end."""

    def __init__(self):
        seed = int(os.environ.get("SEED", time.time_ns() % 10**9))
        print(f"seed {seed}")
        self.seed, self.rng, self.started = seed, random.Random(seed), time.monotonic()
        self.targets, self.kinds, self.slowest = {}, {}, 0.0

    def count(self, target, kind):
        """One kill or cut of target, at a failpoint or of another kind."""
        self.targets[target] = self.targets.get(target, 0) + 1
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        print(f"{sum(self.targets.values())}: {target} at {kind}")

    def recovered(self, since):
        """since: time.monotonic() when what was killed was started again."""
        self.slowest = max(self.slowest, time.monotonic() - since)

    @property
    def done(self):
        return sum(self.targets.values())


class Campaign:
    def __init__(self, name, goal):
        self.name, self.goal = name, goal
        self.sums = {"done": 0, "seconds": 0.0, "records": 0, "lost": 0, "doubled": 0,
                     "doubled_aloud": 0, "possible": 0, "slowest_recovery": 0.0, "targets": {}, "kinds": {}, "seeds": []}
        directory = os.environ.get("CRASH_DIR")
        self.path = directory and os.path.join(directory, f"{name}.json")
        if self.path and os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as f:
                self.sums = json.load(f)

    @property
    def left(self):
        return max(0, self.goal - self.sums["done"])

    def add(self, chunk, records, found):
        """A chunk that ended, with the answer of Load.check_exact."""
        sums = self.sums
        sums["done"] += chunk.done
        sums["seconds"] += time.monotonic() - chunk.started
        sums["records"] += records
        sums["lost"] += found["lost"]
        sums["doubled"] += found["doubled_origin"]
        sums["doubled_aloud"] += found["doubled_plain"]
        sums["possible"] += found["possible_plain"] + found["possible_origin"]
        sums["slowest_recovery"] = max(sums["slowest_recovery"], chunk.slowest)
        sums["seeds"].append(chunk.seed)
        for mine, theirs in ((sums["targets"], chunk.targets), (sums["kinds"], chunk.kinds)):
            for key, n in theirs.items():
                mine[key] = mine.get(key, 0) + n
        if self.path:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path + ".new", "w", encoding="utf-8") as f:
                json.dump(sums, f, indent=1)
            os.rename(self.path + ".new", self.path)
        print(self.line())

    def line(self):
        sums = self.sums
        targets = ", ".join(f"{n} {t}" for t, n in sorted(sums["targets"].items()))
        return (f"{self.name}: {sums['done']} ({targets}), {sums['records']} records, lost "
                f"{sums['lost']}, doubled {sums['doubled']}, where it is at least once "
                f"{sums['doubled_aloud']} (possible by the log: {sums['possible']}), slowest recovery {sums['slowest_recovery']:.2f} s, "
                f"{sums['seconds']:.0f} s in all")

    def report(self):
        REPORTS.append(self.line())
