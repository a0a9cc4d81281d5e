# SPDX-License-Identifier: Apache-2.0
"""Clocks of a daemon that a test sets while it runs, and that go on over its restarts.

    clock = Clock(directory)
    daemon.start(env=clock.env); clock.jump(86400); clock.run(speed=720)
"""
import mmap
import os
import struct
import time

SETTINGS = 127
SETTING = struct.Struct("<qqqd")


class Clock:
    def __init__(self, directory):
        path = os.path.join(directory, "clock")
        with open(path, "w+b") as f:
            f.truncate(8 + SETTINGS * SETTING.size)
            self._map = mmap.mmap(f.fileno(), 0)
        self.env = {"CLOCK_FILE": path,
                    "LD_PRELOAD": os.path.join(os.environ["SUPPORT_DIR"], "preload_clock.so")}
        self._count = 0
        now = time.monotonic_ns()
        self._since, self._base, self._wall, self._speed = now, now, 0, 1.0
        self._set()

    def _set(self):
        """The setting is whole before it is counted."""
        assert self._count < SETTINGS
        SETTING.pack_into(self._map, 8 + self._count * SETTING.size, self._since, self._base,
                          self._wall, self._speed)
        self._count += 1
        self._map[:8] = struct.pack("<Q", self._count)

    def _rebase(self):
        now = time.monotonic_ns()
        self._base += int((now - self._since) * self._speed)
        self._since = now

    @property
    def monotonic(self):
        """Seconds."""
        return (self._base + (time.monotonic_ns() - self._since) * self._speed) / 1e9

    def jump(self, seconds):
        """Sets the wall clock, ahead or back."""
        self._wall += int(seconds * 1e9)
        self._set()

    def run(self, speed):
        """From now on all clocks run so fast."""
        self._rebase()
        self._speed = float(speed)
        self._set()
