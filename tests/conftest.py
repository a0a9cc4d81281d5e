# SPDX-License-Identifier: Apache-2.0
"""Servers that start once per run, and the daemon per test. Run by `make integration` and its
siblings, which build what is needed and set SPOOLD_BIN, SPOOLCTL_BIN, SUPPORT_DIR, KAFKA_DIR and
CHDB_LIB."""
import os
import re
import shutil
import signal
import subprocess
import tempfile

import pytest

pytest.register_assert_rewrite("support.spoold", "support.kafka", "support.process", "support.load",
                               "support.owners")

from support import campaign
from support import kafka as kafka_module
from support.clickhouse import Engine, OldServer
from support.clock import Clock
from support.disk import Disk, unmount_surely
from support.kafka import Kafka
from support.proxy import Proxy
from support.spoold import Spoold

def pytest_configure(config):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers and mounts go, as with ^C
    config.addinivalue_line("markers", "long: only in make test-long")


def need(reason):
    """In CI what is missing is a failure; elsewhere the test is skipped, and -ra names why."""
    if not reason:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"cannot run here: {reason}")
    pytest.skip(reason)


def unmount_leftovers():
    """What a run that was killed has mounted in its directory."""
    with open("/proc/mounts", encoding="utf-8") as f:
        paths = [line.split()[1] for line in f]
    for path in paths:
        left = re.match(re.escape(tempfile.gettempdir()) + r"/spoold-run-(\d+)-", path)
        if left and not os.path.exists(f"/proc/{left.group(1)}"):
            unmount_surely(path)


@pytest.fixture(scope="session")
def run_directory():
    """On disk (not in memory), short, and gone afterwards unless KEEP is set. The name carries our
    pid, by which the next run knows what a killed one left."""
    unmount_leftovers()
    path = tempfile.mkdtemp(prefix=f"spoold-run-{os.getpid()}-")
    yield path
    if not os.environ.get("KEEP"):
        shutil.rmtree(path, ignore_errors=True)


def _server(kind, run_directory):
    need(kind.unavailable())
    server = kind(os.path.join(run_directory, kind.name)).start()
    yield server
    if server.alive():
        server.kill()  # as the broker below: a clean stop of a busy one has taken 30 s


@pytest.fixture(scope="session")
def _kafka(run_directory):
    need(kafka_module.unavailable())
    data = kafka_module.memory_directory()
    broker = Kafka(os.path.join(run_directory, "kafka"), data)
    try:
        yield broker.start()
    finally:
        if broker.alive():
            broker.kill()  # nothing of it is needed any more, and a clean stop takes seconds
        if data:
            shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="session")
def _clickhouse(run_directory):
    yield from _server(OldServer, run_directory)


@pytest.fixture(scope="session")
def _engine(run_directory):
    yield from _server(Engine, run_directory)


@pytest.fixture
def kafka(_kafka):
    """The broker, running; a test may stop, kill and start it."""
    _kafka.ensure_started()
    return _kafka


@pytest.fixture
def clickhouse(_clickhouse):
    """Debian's clickhouse-server, running."""
    _clickhouse.ensure_started()
    return _clickhouse


@pytest.fixture
def engine(_engine):
    """ClickHouse 26.7 behind chserver, running."""
    _engine.ensure_started()
    return _engine


@pytest.fixture(params=["clickhouse", "engine"])
def server(request):
    """Each of the two in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def _second_clickhouse(run_directory):
    yield from _server(OldServer, os.path.join(run_directory, "second"))


@pytest.fixture(scope="session")
def _second_engine(run_directory):
    yield from _server(Engine, os.path.join(run_directory, "second"))


@pytest.fixture(params=["clickhouse", "engine"])
def pair(request):
    """Two servers of a kind that know nothing of each other; both kinds in turn."""
    first = request.getfixturevalue(request.param)
    second = request.getfixturevalue(f"_second_{request.param}")
    second.ensure_started()
    return first, second


@pytest.fixture
def proxy():
    """Makes proxies: proxy(server)."""
    made = []

    def make(server):
        made.append(Proxy(server))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def clock(tmp_path):
    """Clocks for daemons: daemon.start(env=clock.env), clock.run(speed=5)."""
    return Clock(str(tmp_path))


@pytest.fixture
def spoold(request):
    """Makes daemons: spoold(kafka, server, [stream(...)], spool={...}).start(). They end with the
    test; when it failed their directory stays and is named."""
    made = []

    def make(*args, **config):
        need(None if os.path.exists(os.environ.get("SPOOLD_BIN", "")) else "spoold is not built")
        made.append(Spoold(*args, **config))
        return made[-1]

    yield make
    failed = getattr(request.node, "failed", False)
    for daemon in made:
        if failed:
            if daemon.alive():
                daemon.kill9()
            print(f"kept: {daemon.directory}")
        else:
            daemon.remove()


@pytest.fixture
def small_disk(run_directory):
    """A file system of 32 MiB of its own, in memory. Ask for it before spoold, so that it outlives
    the daemon."""
    path = tempfile.mkdtemp(prefix="disk-", dir=run_directory)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", path],
                          stderr=subprocess.PIPE, text=True, check=False)
    need(f"no file system can be mounted: {done.stderr.strip()}" if done.returncode else None)
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def disk(run_directory):
    """A disk whose power can be cut, mounted. Ask for it before spoold, so that it outlives the
    daemon."""
    made = Disk(tempfile.mkdtemp(prefix="power-", dir=run_directory))
    failed = made.create()
    need(f"no disk can be mounted: {failed}" if failed else None)
    yield made
    made.remove()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    if outcome.get_result().failed:
        item.failed = True


def pytest_terminal_summary(terminalreporter):
    for line in campaign.REPORTS:
        terminalreporter.write_line(line)
