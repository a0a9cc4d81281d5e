# SPDX-License-Identifier: Apache-2.0
"""A real Kafka broker (KRaft, one node), and what the tests ask of it through kafkatool."""
import glob
import itertools
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile

from .process import Child, free_port, port_answers, wait_until

# A broker that was killed is let in again when its last session is over, and asks 0.1, 0.3, 0.7, 1.5,
# 3.1 and 6.3 s after its start: hence a session just below 3 s.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=2900
broker.heartbeat.interval.ms=500
message.max.bytes=268435456
replica.fetch.max.bytes=268435456
socket.request.max.bytes=536870912
log.index.size.max.bytes=131072
log.cleaner.backoff.ms=500
num.recovery.threads.per.data.dir=4
log.message.timestamp.after.max.ms=9223372036854775807
"""
LOGGING = """\
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1} %m%n
"""


def java():
    return shutil.which("java")


def unavailable():
    """Why no broker can be run here, or None."""
    jars = os.environ.get("KAFKA_DIR", "")
    if not java():
        return "no java"
    if not os.path.exists(os.path.join(jars, ".complete")):
        return f"no Kafka jars in '{jars}' (make deps-test fetches them)"
    return None


SHM = "/dev/shm"
SHM_FREE_BYTES = 4 << 30


def memory_directory():
    """A directory in memory for the broker's data, or None where that is scarce. The broker itself is
    not under test, and spends most of its time on disk flushes: the first records of 1,000 partitions
    took 35 s on a busy disk and 3 s here. The name carries our pid, so that what a killed run left is
    removed by the next."""
    if not os.path.isdir(SHM):
        return None
    for name in os.listdir(SHM):
        left = re.fullmatch(r"spoold-kafka-(\d+)-\w+", name)
        if left and not os.path.exists(f"/proc/{left.group(1)}"):
            shutil.rmtree(os.path.join(SHM, name), ignore_errors=True)
    if shutil.disk_usage(SHM).free < SHM_FREE_BYTES:
        return None
    return tempfile.mkdtemp(prefix=f"spoold-kafka-{os.getpid()}-", dir=SHM)


class KafkaTool:
    """kafkatool against one list of brokers."""

    def __init__(self, brokers):
        self.brokers = brokers
        self.path = os.path.join(os.environ["SUPPORT_DIR"], "kafkatool")

    def argv(self, *args, properties=None):
        flags = [f"-X{k}={v}" for k, v in (properties or {}).items()]
        return [self.path, "-b", self.brokers, *flags, *map(str, args)]

    def run(self, *args, input=None, properties=None, seconds=120):
        """The lines of the answer, parsed."""
        done = subprocess.run(
            self.argv(*args, properties=properties), input=input, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, timeout=seconds, check=False)
        if done.returncode != 0:
            raise RuntimeError(
                f"kafkatool {' '.join(map(str, args))}: {done.stderr.decode(errors='replace')}")
        return [json.loads(line) for line in done.stdout.splitlines()]


class Producer:
    """Generated records flowing into a topic beside the test."""

    def __init__(self, tool, directory, topic, records, *flags, properties=None):
        self.out = os.path.join(directory, f"producer-{os.urandom(4).hex()}.log")
        self.child = Child("producer", tool.argv(
            "produce", topic, "--records", records, "--progress", *flags,
            properties=properties), self.out)

    def _last(self):
        """The newest finished line that reports deliveries, {} before the first."""
        lines = re.findall(r"^\{.*\}$", self.child.log(), re.M)
        return json.loads(lines[-1]) if lines else {}

    def delivered(self):
        return self._last().get("delivered", 0)

    def finish(self, seconds=120):
        """Waits for the end of the records, returns how many the broker has."""
        code = self.child.wait(seconds)
        assert code == 0, f"producer: {self.child.log_tail()}"
        return self.delivered()

    def stop(self):
        """No more records from now on; returns how many the broker has."""
        self.child.signal(signal.SIGTERM)
        return self.finish()


def _text(text):
    """As the broker's protocol has strings."""
    return struct.pack(">h", len(text)) + text.encode()


class Kafka:
    """A broker that keeps its port and its data over stop, kill and start."""

    # The optimising compiler and G1 cost a broker that lives for minutes more than they give: it
    # starts in 1.8 s of CPU time, and not in 3.
    java_flags = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")

    def __init__(self, directory, data=None):
        """data: where the records go, a folder of directory by default."""
        self.directory = str(directory)
        self.data = data = data or os.path.join(self.directory, "data")
        self.port, self.controller_port = free_port(), free_port()
        self.brokers = f"127.0.0.1:{self.port}"
        self.tool = KafkaTool(self.brokers)
        self.child = None
        self._names = itertools.count(1)
        os.makedirs(self.directory, exist_ok=True)
        self._properties = os.path.join(self.directory, "server.properties")
        self._logging = os.path.join(self.directory, "log4j2.properties")
        with open(self._properties, "w", encoding="utf-8") as f:
            f.write(PROPERTIES.format(port=self.port, controller=self.controller_port,
                                      data=data))
        with open(self._logging, "w", encoding="utf-8") as f:
            f.write(LOGGING)
        self._run_to_end("kafka.tools.StorageTool", "format", "-t", "c3Bvb2xkLXRlc3RzLTAwMA",
                         "-c", self._properties)

    def _argv(self, main, *args):
        return [java(), "-Xms256m", "-Xmx512m", *self.java_flags,
                f"-Dlog4j2.configurationFile={self._logging}",
                "-cp", os.path.join(os.environ["KAFKA_DIR"], "*"), main, *args]

    def _run_to_end(self, *argv):
        done = subprocess.run(self._argv(*argv), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=120, check=False)
        assert done.returncode == 0, done.stdout.decode(errors="replace")

    def launch(self):
        """Starts the process and waits for nothing."""
        self.child = Child("kafka", self._argv("kafka.Kafka", self._properties),
                           os.path.join(self.directory, "kafka.log"))
        return self

    def start(self):
        self.launch().child.wait_ready(self.answers, 90)
        return self

    def answers(self):
        if not port_answers(self.port):  # the tool's client would wait longer and longer to look again
            return False
        try:
            self.tool.run("topics", properties={"socket.timeout.ms": 2000, "log_level": 0})
            return True
        except RuntimeError:
            return False

    def alive(self):
        return self.child is not None and self.child.alive()

    def stop(self):
        self.child.stop(60)

    def kill(self):
        self.child.kill()

    def ensure_started(self):
        """For the fixture: a test that stopped the broker and failed must not fail the next."""
        if not self.alive():
            self.start()

    # ---- topics ----

    def create_topic(self, partitions=1, name=None, **config):
        name = name or f"t{next(self._names)}-{os.urandom(3).hex()}"
        self.tool.run("create", name, partitions,
                      *[f"{k.replace('_', '.')}={v}" for k, v in config.items()])
        return name

    def delete_topic(self, name):
        self.tool.run("delete", name)
        wait_until(lambda: name not in self.topics(), 30, f"{name} deleted")

    def topics(self):
        return {t["topic"]: t["partitions"] for t in self.tool.run("topics")}

    def add_partitions(self, name, count):
        self.tool.run("partitions", name, count)

    def truncate(self, name, partition, offset):
        """Deletes the records before offset, as retention would."""
        self.tool.run("truncate", name, partition, offset)

    def cut(self, name, partition, offset):
        """Takes the end of a killed broker's log away, as a power cut does with what was not on the disk
        yet. The first offset that is gone: that of the batch with offset in it."""
        assert not self.alive()
        path, = glob.glob(os.path.join(self.data, f"{name}-{partition}", "*.log"))
        with open(path, "r+b") as log:
            while True:
                at = log.tell()
                base, size = struct.unpack(">qi", log.read(12))
                last, = struct.unpack(">i", log.read(15)[11:])  # behind epoch, magic, CRC, attributes
                if base + last >= offset:
                    log.truncate(at)
                    return base
                log.seek(at + 12 + size)

    def low_offsets(self, name):
        return {e["partition"]: e["low"] for e in self.tool.run("ends", name)}

    def end_offsets(self, name):
        return {e["partition"]: e["high"] for e in self.tool.run("ends", name)}

    def join_as(self, group, instance, topic):
        """What a static member sends when it has lost its session, by a connection of its own that ends
        with the answer: the member that has the name is fenced from then on."""
        subscription = struct.pack(">hi", 1, 1) + _text(topic) + struct.pack(">ii", -1, 0)
        body = (_text(group) + struct.pack(">ii", 6000, 60000) + _text("") + _text(instance) +
                _text("consumer") + struct.pack(">i", 1) + _text("cooperative-sticky") +
                struct.pack(">i", len(subscription)) + subscription)
        request = struct.pack(">hhi", 11, 5, 1) + _text("tests") + body  # JoinGroup, version 5
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as s:
            s.sendall(struct.pack(">i", len(request)) + request)
            answer = s.recv(14, socket.MSG_WAITALL)
        error, = struct.unpack(">h", answer[12:14])  # behind size, correlation and throttle time
        assert error == 0, error

    # ---- records ----

    def produce(self, topic, records, *flags, properties=None):
        """Generated records (ids 0.., id N to partition N mod partitions); waits for all."""
        return self.tool.run("produce", topic, "--records", records, *flags,
                             properties=properties)[-1]["delivered"]

    def producer(self, topic, records=10**12, *flags, properties=None):
        """The same beside the test: a Producer. Give "--rate", N."""
        return Producer(self.tool, self.directory, topic, records, *flags, properties=properties)

    def send(self, topic, records, partition=None):
        """records: texts, None for a tombstone, or objects with value, key, headers, timestamp,
        partition."""
        lines = []
        for record in records:
            if not isinstance(record, dict):
                record = {"value": record}
            lines.append(json.dumps(record))
        flags = [] if partition is None else ["--partition", partition]
        text = "".join(line + "\n" for line in lines).encode()
        return self.tool.run("send", topic, *flags, input=text)[-1]["delivered"]

    def send_file(self, topic, path, partition=0):
        return self.tool.run("send", topic, "--file", path, "--partition", partition)[-1]

    def read(self, topic):
        return self.tool.run("read", topic)

    # ---- groups ----

    def committed(self, group, topic):
        """partition -> (offset, metadata), (None, None) where nothing is committed."""
        return {e["partition"]: (e["offset"], e["metadata"])
                for e in self.tool.run("offsets", group, topic)}

    def committed_offsets(self, group, topic):
        return {p: offset for p, (offset, _) in self.committed(group, topic).items()}

    def commit(self, group, topic, partition, offset, metadata=None):
        """As an operator's reset: the group must have no members."""
        self.tool.run("commit", group, topic, partition, offset,
                      *([] if metadata is None else [metadata]))

    def delete_group(self, group):
        self.tool.run("forget", group)

    def group(self, group):
        """{"state": ..., "members": [{"id", "client", "instance", "partitions"}]}"""
        return self.tool.run("group", group)[0]


class MockKafka(Kafka):
    """librdkafka's built-in mock cluster, in a process of its own: one broker with one topic, in
    memory, for a machine that cannot run the real one. It has no admin requests."""

    def __init__(self, directory, topic, partitions):
        self.directory = str(directory)
        os.makedirs(self.directory, exist_ok=True)
        self.tool = KafkaTool("")
        self.child = None
        self._topic, self._partitions = topic, partitions

    def launch(self):
        self.child = Child("kafka mock", [self.tool.path, "mock", self._topic, self._partitions],
                           os.path.join(self.directory, "kafka.log"))
        return self

    @property
    def brokers(self):
        found = re.search(r'\{"brokers":"(.*)"\}', self.child.log())
        return found.group(1) if found else ""

    @property
    def port(self):
        return int(self.brokers.rpartition(":")[2])

    def answers(self):
        self.tool = KafkaTool(self.brokers)
        return bool(self.brokers) and super().answers()
