# SPDX-License-Identifier: Apache-2.0
"""Child processes of the tests, and waiting for what they do."""
import ctypes
import os
import select
import signal
import socket
import subprocess
import time

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def wait_until(condition, seconds, what):
    """The first true value of condition(); AssertionError with what (a text, or a function giving
    one) when the deadline passes. Polls; nothing else in the tests may pause."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(
                f"not within {seconds} s: {what() if callable(what) else what}")
        select.select([], [], [], 0.02)


def hold_for(seconds, check=None):
    """Keeps an outage of stated length going; check(), if given, is called all along."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check:
            check()
        select.select([], [], [], 0.05)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def port_answers(port):
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Child:
    """One child process with its output in a file. Ends with the test run, whatever happens."""

    def __init__(self, name, argv, log_path, env=None, cwd=None):
        self.name, self.argv, self.log_path = name, [str(a) for a in argv], str(log_path)
        with open(log_path, "ab") as log:
            self.popen = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd,
                env={**os.environ, **(env or {})}, preexec_fn=_die_with_parent)

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def log_tail(self, lines=25):
        return "\n".join(self.log().splitlines()[-lines:])

    def signal(self, number):
        if self.alive():
            os.kill(self.pid, number)

    def wait(self, seconds=30):
        """The exit code; negative for a signal, as in subprocess."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} did not end within {seconds} s:\n{self.log_tail()}") from None

    def stop(self, seconds=30):
        self.signal(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"{self.name} ignored SIGTERM for {seconds} s:\n{self.log_tail()}") from None

    def kill(self):
        self.signal(signal.SIGKILL)
        return self.popen.wait(30)

    def wait_ready(self, ready, seconds):
        """Until ready() is true; fails at once when the process ends before."""
        def answered():
            if not self.alive():
                raise AssertionError(
                    f"{self.name} ended with {self.popen.returncode}:\n{self.log_tail()}")
            return ready()
        wait_until(answered, seconds, lambda: f"{self.name} ready\n{self.log_tail()}")
