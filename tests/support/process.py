# SPDX-License-Identifier: Apache-2.0
"""Child processes of the tests, and waiting for what they do."""
import ctypes
import os
import select
import signal
import socket
import subprocess
import threading
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


def outside_make():
    """The environment for a make of its own: without what an outer one tells its children."""
    return {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}


def stopped(pid):
    """Whether a signal has stopped it."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "T"


def anonymous_bytes(pid):
    """Anonymous memory the process has now."""
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon:"))


class Sampler:
    """Calls look() beside the test, again and again."""

    def __init__(self):
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def look(self):
        raise NotImplementedError

    def _run(self):
        while not self._end.wait(0.01):
            self.look()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._end.set()
        self._thread.join()


class MostMemory(Sampler):
    """The most anonymous memory a process has ever had."""

    def __init__(self, pid):
        super().__init__()
        self.most, self._pid = 0, pid

    def look(self):
        self.most = max(self.most, anonymous_bytes(self._pid))


def hold_for(seconds, check=None):
    """Keeps an outage of stated length going; check(), if given, is called all along."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check:
            check()
        select.select([], [], [], 0.05)


_claims = []


def free_port():
    """No other run on this machine is given it as long as this one lasts, be its server up or not."""
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0spoold-test-port-{port}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return port


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
