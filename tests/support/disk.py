# SPDX-License-Identifier: Apache-2.0
"""A disk whose power can be cut: ext4 on a sparse file."""
import fcntl
import os
import struct
import subprocess

from .process import wait_until

EXT4_IOC_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125  # _IOR('X', 125, __u32)
NOLOGFLUSH = 2


def _run(*argv):
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)
    return done.stdout.strip() or f"{argv[0]}: exit {done.returncode}" if done.returncode else None


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

    def unmount(self):
        """Nobody may use it any more."""
        if self.mounted:
            wait_until(lambda: not _run("umount", self.path), 10, f"{self.path} unmounted")
            self.mounted = False
