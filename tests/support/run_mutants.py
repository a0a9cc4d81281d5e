#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Applies each patch of tests/mutants to a copy of the tree and runs the unit test its header names
("Test: PROGRAM FUNCTION"), which must fail. run_mutants.py [PATCH...]; the exit code counts the
survivors."""
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MUTANTS = os.path.join(ROOT, "tests", "mutants")
COPIED = ["Makefile", "VERSION", ".ci", "include", "src", "tools", "tests/unit", "tests/data",
          "build/release-failpoints"]  # with what is built, so that little is built anew


def patches():
    return sorted(os.path.join(MUTANTS, n) for n in os.listdir(MUTANTS) if n.endswith(".patch"))


def named_test(patch):
    with open(patch, encoding="utf-8") as f:
        for line in f:
            if line.startswith("Test: "):
                return line.split()[1:]
    raise ValueError(f"{patch} names no test")


def copy_tree(to):
    for name in COPIED:
        source, target = os.path.join(ROOT, name), os.path.join(to, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(source):
            shutil.copytree(source, target)
        elif os.path.exists(source):
            shutil.copy2(source, target)


def run_test(tree, program, function):
    """Whether the function passed; builds first. A test that crashes or hangs has failed."""
    binary = f"build/release-failpoints/tests/{program}"
    subprocess.run(["make", "-s", "-j2", "SANITIZE=0", "FAILPOINTS=1", binary], cwd=tree, check=True)
    try:
        done = subprocess.run([f"./{binary}"], cwd=tree, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return False
    text = done.stdout.decode(errors="replace")
    if f"[       OK ] {function}" in text:
        return True
    if done.returncode >= 0 and f"[  FAILED  ] {function}" not in text:
        raise ValueError(f"{program} says nothing of {function}:\n{text[-2000:]}")
    return False


def run(patch):
    """Whether the mutant was found, and what its test did."""
    program, function = named_test(patch)
    with tempfile.TemporaryDirectory(prefix="mutant-") as tree:
        copy_tree(tree)
        subprocess.run(["patch", "-s", "-p1", "-i", patch], cwd=tree, check=True)
        return not run_test(tree, program, function), f"{program} {function}"


def main():
    survivors = 0
    for patch in [os.path.abspath(p) for p in sys.argv[1:]] or patches():
        found, test = run(patch)
        survivors += not found
        print(f"{'found   ' if found else 'SURVIVED'} {os.path.basename(patch)[:-6]:32} {test}",
              flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
