# SPDX-License-Identifier: Apache-2.0
"""The demo tells the truth, with either broker, and leaves nothing behind."""
import os
import subprocess
import sys

import pytest

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")


@pytest.mark.parametrize("mock", [
    pytest.param("", id="broker", marks=pytest.mark.long), pytest.param("1", id="mock")])
def test_demo(mock):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "tests/demo/demo.py")],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180,
                          env={**os.environ, "MOCK": mock, "KEEP": ""}, check=False)
    assert done.returncode == 0, done.stdout
    assert "equal: nothing lost, nothing doubled" in done.stdout
    assert "down" in done.stdout, "the outage was seen"
    assert ("mock broker" in done.stdout) == bool(mock)
    assert "\033" not in done.stdout, "no colours in a pipe"
    assert not os.path.exists(os.path.join(ROOT, "build/demo"))
