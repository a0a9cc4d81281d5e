# SPDX-License-Identifier: Apache-2.0
"""What `make install` puts where, and that it fits together."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from support.process import outside_make

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPOOLD = os.environ.get("SPOOLD_BIN", str(ROOT / "build/release/spoold"))


def make(*args):
    subprocess.run(["make", "-s", *args], cwd=ROOT, env=outside_make(), check=True, capture_output=True)


def files(root):
    return sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file())


def test_install_and_uninstall(tmp_path):
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/opt/spoold")
    installed = files(tmp_path)
    for name in ("opt/spoold/bin/spoold", "opt/spoold/bin/spoolctl", "opt/spoold/lib/libspool.a",
                 "opt/spoold/include/spool.h", "opt/spoold/lib/systemd/system/spoold.service",
                 "opt/spoold/lib/sysusers.d/spoold.conf", "etc/spoold/spoold.json"):
        assert name in installed
    unit = (tmp_path / "opt/spoold/lib/systemd/system/spoold.service").read_text()
    for command in re.findall(r"^ExecStart\w*=(\S+)", unit, re.M):
        assert (tmp_path / command.lstrip("/")).is_file(), command

    config = tmp_path / "etc/spoold/spoold.json"
    config.write_text("mine")
    make("install", f"DESTDIR={tmp_path}", "PREFIX=/opt/spoold")
    assert config.read_text() == "mine"
    make("uninstall", f"DESTDIR={tmp_path}", "PREFIX=/opt/spoold")
    assert files(tmp_path) == ["etc/spoold/spoold.json"]


def test_the_sample_config_is_accepted():
    done = subprocess.run([SPOOLD, "-c", ROOT / "packaging/spoold.json", "--check-config"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_unit_is_well_formed(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    text = (ROOT / "packaging/systemd/spoold.service").read_text()
    unit = tmp_path / "spoold.service"
    unit.write_text(text.replace("/usr/bin/spoold", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True,
                          timeout=60)
    assert "spoold.service" not in done.stderr, done.stderr
