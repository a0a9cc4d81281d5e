# SPDX-License-Identifier: Apache-2.0
"""The disk fails or is full. The n-th write or flush of a short life of a spool fails, for every n: the life ends in an error,
not a crash, and what it had been promised is there when the spool is opened again."""
import errno
import os
import shutil
import subprocess
import tempfile

import pytest

STEPS = 60


def support(name):
    return os.path.join(os.environ["SUPPORT_DIR"], name)


def live(log, spool, **env):
    if os.path.exists(log):
        os.unlink(log)
    env = {**os.environ, "WRITELOG": log, "WRITELOG_DIR": spool, "FAIL_IN": spool,
           "LD_PRELOAD": f"{support('preload_writelog.so')} {support('preload_fail.so')}", **env}
    return subprocess.run([support("writelog"), "life", spool, "7", str(STEPS)], env=env,
                          stderr=subprocess.PIPE, text=True, check=False)


def check_after(what, done, log, spool):
    """It ended in an error or well, and the spool holds what was promised."""
    assert done.returncode in (0, 1), f"{what}: {done.returncode}: {done.stderr}"
    assert done.returncode == 0 or done.stderr.startswith("writelog: "), f"{what}: {done.stderr}"
    if not os.path.getsize(log):  # it did not even begin
        assert done.returncode == 1, what
        return
    after = subprocess.run([support("writelog"), "after", log, spool], stdout=subprocess.PIPE,
                           text=True, check=False)
    assert after.returncode == 0, f"{what}: {after.stdout} after {done.stderr}"


BREAKS = {
    "from_then_on": {},
    "once": {"FAIL_ONCE": "1"},
    "once_full": {"FAIL_ONCE": "1", "FAIL_ERRNO": str(errno.ENOSPC), "FAIL_MIN": "4096",
                  "FAIL_CALLS": "write,pwrite,writev,ftruncate,fallocate,creat,rename,mkdir"},
}


@pytest.mark.parametrize("how", BREAKS)
def test_every_write_and_flush_fails_once(how):
    """... and every file that is opened, made, renamed or removed."""
    directory = tempfile.mkdtemp(prefix="fails-",
                                 dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    log, spool = f"{directory}/log", f"{directory}/spool"
    os.mkdir(spool)
    counted = live(log, spool, FAIL_AT="1000000", FAIL_COUNT=f"{directory}/count", **BREAKS[how])
    assert counted.returncode == 0, counted.stderr
    with open(f"{directory}/count", encoding="ascii") as f:
        calls = int(f.read())
    ends = 0
    for n in range(1, calls + 1):
        shutil.rmtree(spool, ignore_errors=True)
        os.mkdir(spool)
        done = live(log, spool, FAIL_AT=str(n), **BREAKS[how])
        check_after(n, done, log, spool)
        ends += done.returncode
    shutil.rmtree(directory)
    print(f"{calls} calls failed, one at a time; {ends} lives ended of it")
    assert calls > (100 if how == "once_full" else 250)
    assert ends == 0 if how == "once_full" else ends > 100


def test_the_disk_is_full_at_every_size(tmp_path):
    """File systems from almost nothing up to enough: the room ends at each place of the life."""
    disk, copy, log = tmp_path / "disk", tmp_path / "copy", str(tmp_path / "log")
    disk.mkdir()
    kib, done, full = 32, None, 0
    while not done or done.returncode:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", disk],
                                 stderr=subprocess.PIPE, text=True, check=False)
        if mounted.returncode and os.environ.get("CI") != "true":
            pytest.skip(f"no file system can be mounted: {mounted.stderr}")
        assert mounted.returncode == 0, mounted.stderr
        try:
            (disk / "spool").mkdir()
            done = live(log, str(disk / "spool"))
            shutil.copytree(disk / "spool", copy)
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
        check_after(f"{kib} KiB", done, log, str(copy))
        shutil.rmtree(copy)
        assert "durability in doubt" not in done.stderr, f"{kib} KiB: {done.stderr}"
        full += done.returncode
        kib += 36
    print(f"{full} sizes too small, {kib - 36} KiB are enough")
    assert full > 20
