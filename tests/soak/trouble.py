# SPDX-License-Identifier: Apache-2.0
"""What a daemon of the soak stands on, and how that fails: its clock, its disk, its network."""
import errno
import os

from support.clock import Clock
from support.proxy import GARBAGE, Fault, refusal

DAY = 86400
WRITES = "write,pwrite,writev"
# A full disk takes LMDB's meta page, which is in its place.
FULL = {"FAIL_CALLS": WRITES, "FAIL_ERRNO": str(errno.ENOSPC), "FAIL_MIN": "4096"}
BROKEN = [{"FAIL_ERRNO": str(errno.EIO), "FAIL_MIN": "0", **how} for how in (  # each ends the daemon
    {"FAIL_CALLS": WRITES},
    {"FAIL_CALLS": WRITES, "FAIL_SHORT": "1"},
    {"FAIL_CALLS": WRITES, "FAIL_ERRNO": str(errno.EROFS)},
    {"FAIL_CALLS": "fsync,fdatasync"})]
ANSWERS = [GARBAGE,
           b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
           b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
           b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"]
REFUSALS = [GARBAGE, refusal(252, "Too many parts"), refusal(241, "Memory limit exceeded"),
            refusal(159, "Timeout exceeded")]


def random_fault(rng):
    """For one INSERT. Answers that may be believed come only where the server has stored it, and
    refusals only where it has seen nothing."""
    stage = rng.choice(["head", "body", "sent", "answer", "done"])
    actions = {"head": ["cut", "stall", "garbage"], "answer": ["cut", "stall", "garbage", "slow"],
               "body": ["cut", "stall"], "sent": ["cut", "stall"], "done": ["cut"]}[stage]
    action = rng.choice(actions)
    return Fault(stage, action, how=rng.choice(["fin", "rst"]),
                 at=0 if action == "garbage" else rng.choice([0, 20, 300, 2000]),
                 garbage=rng.choice(ANSWERS if stage == "answer" else REFUSALS),
                 swallow=stage == "head" and rng.random() < 0.5)


class Machine:
    """The clock and the disk under a daemon."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.clock = Clock(daemon.directory)
        self._flag = os.path.join(daemon.directory, "fails")
        fails = os.path.join(os.environ["SUPPORT_DIR"], "preload_fail.so")
        daemon.env = {**self.clock.env, "LD_PRELOAD": f"{self.clock.env['LD_PRELOAD']}:{fails}",
                      "FAIL_WHILE": self._flag, "FAIL_IN": daemon.spool + "/", **FULL}

    def disk_fails(self):
        """As the daemon's environment says, until disk_works()."""
        with open(self._flag, "w", encoding="utf-8"):
            pass

    def disk_works(self):
        os.unlink(self._flag)
