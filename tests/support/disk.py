# SPDX-License-Identifier: Apache-2.0
"""A disk whose power can be cut: ext4 on a sparse file."""
import fcntl
import os
import signal
import struct
import subprocess

from .process import Sampler, hold_for, wait_until

EXT4_IOC_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125  # _IOR('X', 125, __u32)
NOLOGFLUSH = 2


def _run(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    return done.stdout.strip() or f"{argv[0]}: exit {done.returncode}" if done.returncode else None


def _users(path):
    """The processes that have something open below path, or work there."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
            if any((os.readlink(link) + "/").startswith(path + "/")
                   for link in links + [f"/proc/{pid}/cwd"]):
                yield int(pid)
        except OSError:
            pass  # it ended, or is not ours


def unmount_surely(path):
    """Kills whoever holds it."""
    def gone():
        if not _run("umount", path):
            return True
        for pid in _users(path):
            os.kill(pid, signal.SIGKILL)
        return False
    try:
        wait_until(gone, 5, f"{path} unmounted")
    except AssertionError:
        _run("umount", "-l", path)  # it goes with its last user
        raise


def disk_bytes(directory):
    """What du says."""
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
            except FileNotFoundError:
                pass  # a segment just went
    return total


class Du(Sampler):
    """The most a directory has ever taken, and the least its file system had free."""

    def __init__(self, directory):
        super().__init__()
        self.most, self.least_free = 0, 1 << 62
        self._directory = directory

    def look(self):
        self.most = max(self.most, disk_bytes(self._directory))
        fs = os.statvfs(self._directory)
        self.least_free = min(self.least_free, fs.f_bavail * fs.f_frsize)


class Disk:
    """directory/image, mounted at directory/mount (self.path)."""

    def __init__(self, directory, size=4 << 30):
        self.image = os.path.join(directory, "image")
        self.path = os.path.join(directory, "mount")
        self.mounted = False
        os.makedirs(self.path)
        with open(self.image, "wb") as f:
            f.truncate(size)

    def create(self):
        """Why it cannot be, or None."""
        return _run("mkfs.ext4", "-q", "-F", self.image) or self._try_mount()

    def _try_mount(self):
        failed = _run("mount", "-o", "loop", self.image, self.path)
        self.mounted = not failed
        return failed

    def mount(self):
        """Plays the journal back, as after a power cut."""
        failed = self._try_mount()
        assert not failed, failed

    def cut(self):
        """From here on nothing reaches the disk, not even the journal: what was written and not
        synchronised is lost with the next unmount."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))
        finally:
            os.close(fd)

    def cut_under(self, daemon, seconds=0):
        """The power goes under a daemon that runs or is stopped at a point. It may go on for so many
        seconds, and must not take for durable what the disk refuses. It is dead in the end, and the
        disk is mounted again."""
        self.cut()
        if seconds:
            daemon.child.signal(signal.SIGCONT)
            hold_for(seconds)
        if daemon.alive():
            daemon.kill9()
        self.unmount()
        self.mount()

    def unmount(self):
        """Nobody may use it any more."""
        if self.mounted:
            wait_until(lambda: not _run("umount", self.path), 10, f"{self.path} unmounted")
            self.mounted = False

    def remove(self):
        """Whoever uses it is killed."""
        if self.mounted:
            unmount_surely(self.path)
            self.mounted = False
        os.unlink(self.image)
