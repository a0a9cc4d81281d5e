#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Applies each patch of tests/mutants to a copy of the tree and runs the test its header names, which
must fail: "Test: PROGRAM FUNCTION" is a unit test, "Test: tests/LANE/FILE.py::NAME" one of pytest
(whose servers and tools come from the environment of `make mutants`).

    run_mutants.py [--unit] [PATCH...]

--unit leaves out those that pytest finds, and those of Kafka's client, of which some hang for two minutes.
The exit code counts the survivors, and the patches that no longer apply or build."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from process import outside_make

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MUTANTS = os.path.join(ROOT, "tests", "mutants")
BUILD = "build/release-failpoints"
COPIED = ["Makefile", "VERSION", ".ci", "include", "src", "tools", "tests",
          BUILD]  # with what is built, so that little is built anew


def patches():
    return sorted(os.path.join(MUTANTS, n) for n in os.listdir(MUTANTS) if n.endswith(".patch"))


def named_test(patch):
    with open(patch, encoding="utf-8") as f:
        for line in f:
            if line.startswith("Test: "):
                return line.split()[1:]
    raise ValueError(f"{patch} names no test")


def is_unit(patch):
    return len(named_test(patch)) == 2


def copy_tree(to):
    for name in COPIED:
        source, target = os.path.join(ROOT, name), os.path.join(to, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(source):
            shutil.copytree(source, target)
        elif os.path.exists(source):
            shutil.copy2(source, target)


def build(tree, target):
    subprocess.run(["make", "-s", "-j2", "SANITIZE=0", "FAILPOINTS=1", f"{BUILD}/{target}"],
                   cwd=tree, check=True, env=outside_make())


def output_of(argv, tree, seconds, env=None):
    """(exit code, text); None for one that hangs."""
    try:
        done = subprocess.run(argv, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=seconds, check=False, env=env)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout.decode(errors="replace")


def unit_passes(tree, program, function):
    """A test that crashes or hangs has failed."""
    build(tree, f"tests/{program}")
    code, text = output_of([f"./{BUILD}/tests/{program}"], tree, 120)
    if f"[       OK ] {function}\n" in text:  # the line: names begin with others
        return True
    if code is not None and code >= 0 and f"[  FAILED  ] {function}\n" not in text:
        raise ValueError(f"{program} says nothing of {function}:\n{text[-2000:]}")
    return False


def pytest_passes(tree, name):
    env = {**os.environ, "CI": "true"}
    for program in ("spoold", "spoolctl"):
        build(tree, program)
        env[f"{program.upper()}_BIN"] = os.path.join(tree, BUILD, program)
    code, text = output_of([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-x",
                            name], tree, 600, env)
    ran = re.search(r"^(\d+) (passed|failed)", text, re.M)
    if code is not None and (not ran or code not in (0, 1)):
        raise ValueError(f"{name} was not run:\n{text[-2000:]}")
    return code == 0


def run(tree, patch):
    """Whether the mutant was found; None where it can't be made. The tree is as it was, afterwards."""
    test = named_test(patch)
    argv = ["patch", "-s", "-p1", "-i", patch]
    if subprocess.run([*argv, "--dry-run"], cwd=tree, check=False).returncode:
        return None
    subprocess.run(argv, cwd=tree, check=True)
    try:
        return not (unit_passes(tree, *test) if is_unit(patch) else pytest_passes(tree, *test))
    except subprocess.CalledProcessError:
        return None  # it does not build
    finally:
        subprocess.run([*argv, "-R"], cwd=tree, check=True)


def main():
    arguments = sys.argv[1:]
    only_unit = arguments[:1] == ["--unit"]
    chosen = [os.path.abspath(p) for p in arguments[only_unit:]] or patches()
    survivors = 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the copy of the tree goes, as with ^C
    with tempfile.TemporaryDirectory(prefix="mutants-") as tree:
        copy_tree(tree)
        for patch in chosen:
            if only_unit and (not is_unit(patch) or named_test(patch)[0].startswith("test_kafka")):
                continue
            started = time.monotonic()
            found = run(tree, patch)
            survivors += not found
            word = "found" if found else "SURVIVED" if found is not None else "BROKEN"
            print(f"{word:8} {os.path.basename(patch)[:-6]:28} "
                  f"{time.monotonic() - started:4.0f} s  {' '.join(named_test(patch))}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
