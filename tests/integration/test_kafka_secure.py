# SPDX-License-Identifier: Apache-2.0
"""TLS and SASL against a real broker: each right way in, and each wrong one told in one sentence that
names what is wrong and what to do, with no secret in it; and in again when it is mended."""
import ctypes
import os
import shutil
import socket
import subprocess

import pytest

from conftest import need
from support import kafka as kafka_module
from support.kafka_secure import PASSWORD, USER, SecureKafka
from support.spoold import stream

WRONG = "wrong-horse-battery"
SCRAM_WORKS = ctypes.CDLL("librdkafka.so.1").rd_kafka_version() >= 0x02060100


@pytest.fixture(scope="module")
def secure(run_directory):
    need(kafka_module.unavailable())
    data = kafka_module.memory_directory()
    broker = SecureKafka(os.path.join(run_directory, "secure-kafka"), data)
    try:
        yield broker.start()
    finally:
        if broker.alive():
            broker.kill()
        if data:
            shutil.rmtree(data, ignore_errors=True)


class Client:
    """A daemon that reads a topic of its own over one of the secure listeners."""

    def __init__(self, secure, server, spoold, listener, properties, **config):
        self.secure, self.server, self.rows = secure, server, 0
        self.topic = secure.create_topic(1)
        self.table = server.create_bench_table(window=1000)
        self.daemon = spoold(secure.at(listener), server, [stream("s", self.topic, self.table)],
                             kafka={"properties": properties}, **config)
        self.daemon.start()

    def properties(self, **changed):
        self.daemon.config["kafka"]["properties"].update(changed)

    def flows(self):
        self.secure.produce(self.topic, 100, "--first", self.rows)
        self.rows += 100
        self.daemon.wait(lambda: self.server.unique(self.table) == self.rows, 60, "the rows")
        assert self.server.count(self.table) == self.rows
        kafka = self.daemon.status()["kafka"]
        assert kafka["connected"] and kafka["reason"] == ""

    def told(self, *words):
        """The status and one line of the log say all these words, and go on saying them."""
        def said():
            kafka = self.daemon.status()["kafka"]
            return not kafka["connected"] and all(w in kafka["reason"] for w in words)
        self.daemon.wait(said, 30, lambda: f"{words} in {self.daemon.status()['kafka']}")
        reason = self.daemon.status()["kafka"]["reason"]
        lines = [e for e in self.daemon.events() if e["event"].startswith("kafka.")]
        named = [e for e in lines if all(w in e.get("reason", "") for w in words)]
        assert len(named) == 1 and named[0]["event"] == "kafka.disconnected", lines
        assert len(lines) <= 3, lines
        return reason

    def keeps_secrets(self):
        """In no log, status, page, metric, printed configuration nor answer to a check."""
        texts = [self.daemon.log(whole=True)]
        if self.daemon.alive():
            for path in ("/status", "/", "/metrics"):
                texts.append(self.daemon.control("GET", path)[1].decode(errors="replace"))
        for flag in ("--check-config", "--print-config"):
            done = subprocess.run([os.environ["SPOOLD_BIN"], "-c", self.daemon.config_path, flag],
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                                  check=False)
            texts.append(done.stdout.decode(errors="replace"))
        for text in texts:
            assert PASSWORD not in text and WRONG not in text

    def restart(self):
        assert self.daemon.sigterm() == 0
        self.daemon.start()


def test_records_flow_over_tls_and_sasl(secure, engine, spoold):
    client = Client(secure, engine, spoold, "SECURE", secure.properties())
    client.flows()
    client.restart()
    client.flows()
    client.keeps_secrets()


@pytest.mark.parametrize("mechanism", ("SCRAM-SHA-256", "SCRAM-SHA-512"))
def test_scram(secure, engine, spoold, mechanism):
    """librdkafka before 2.6.1 can't do it with this broker, and that is said."""
    secure.set_password(USER, mechanism, PASSWORD)
    client = Client(secure, engine, spoold, "SECURE", secure.properties(mechanism))
    if SCRAM_WORKS:
        client.flows()
    else:
        client.told("refuses the login", mechanism, "can't log in to Kafka 4 by SCRAM, 2.6.1 can")
    client.keeps_secrets()


def test_an_authority_that_is_not_trusted(secure, engine, spoold):
    client = Client(secure, engine, spoold, "SECURE",
                    secure.properties(ssl_ca_location=secure.other_ca))
    client.told("is of an authority that is not trusted here", "ssl.ca.location")
    client.keeps_secrets()
    client.properties(**{"ssl.ca.location": secure.ca})
    client.restart()
    client.flows()


def test_a_certificate_for_another_host(secure, engine, spoold):
    client = Client(secure, engine, spoold, "MISNAMED", secure.properties())
    client.told("is for another host name", "kafka.brokers")
    client.keeps_secrets()


def test_an_expired_certificate(secure, engine, spoold):
    client = Client(secure, engine, spoold, "EXPIRED", secure.properties())
    client.told("has expired", "renew it")
    client.keeps_secrets()


def test_a_wrong_password(secure, engine, spoold):
    client = Client(secure, engine, spoold, "SECURE",
                    secure.properties(sasl_password=WRONG))
    client.told("refuses the login", "sasl.password")
    client.keeps_secrets()
    client.properties(**{"sasl.password": PASSWORD})
    client.restart()
    client.flows()


def test_debug_lines_hold_no_secret(secure, engine, spoold):
    """The client prints its whole configuration, and every frame of the login."""
    client = Client(secure, engine, spoold, "SECURE", secure.properties(debug="all"),
                    log={"level": "debug"})
    client.flows()
    assert client.daemon.events("kafka.client")
    client.keeps_secrets()


def test_a_password_that_the_broker_learns_of_later(secure, engine, spoold):
    client = Client(secure, engine, spoold, "SECURE", secure.properties(sasl_password=WRONG))
    client.told("refuses the login", "whether the broker has that user")
    secure.restart_with_password(WRONG)
    try:
        client.flows()  # by itself
        client.keeps_secrets()
    finally:
        secure.restart_with_password(PASSWORD)
    # Now it is the client's that is old.
    client.daemon.wait(lambda: "refuses the login" in client.daemon.status()["kafka"]["reason"], 60,
                       lambda: f"refused: {client.daemon.status()['kafka']}")
    client.properties(**{"sasl.password": PASSWORD})
    client.restart()
    client.flows()
    client.keeps_secrets()


def test_a_mechanism_that_the_broker_does_not_have(secure, engine, spoold):
    client = Client(secure, engine, spoold, "PLAINONLY", secure.properties("SCRAM-SHA-512"))
    client.told("supported mechanisms: PLAIN", "set sasl.mechanisms")
    client.properties(**{"sasl.mechanisms": "PLAIN"})
    client.restart()
    client.flows()
    client.keeps_secrets()


def test_no_tls_where_the_broker_wants_it(secure, engine, spoold):
    client = Client(secure, engine, spoold, "SECURE", {})
    client.told("does it want TLS", "security.protocol")
    client.properties(**secure.properties())
    client.restart()
    client.flows()


def test_tls_where_the_broker_has_none(secure, engine, spoold):
    """It takes the TLS hello for the size of a request that is too large, and hangs up."""
    client = Client(secure, engine, spoold, "PLAINTEXT", secure.properties())
    client.told("does it speak TLS", "security.protocol")
    client.keeps_secrets()


def test_tls_that_is_not_answered(secure, engine, spoold):
    """A broker with a greater limit waits for the rest of that request."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(secure, engine, spoold, "127.0.0.1:%d" % silent.getsockname()[1],
                        secure.properties(socket_connection_setup_timeout_ms="1000"))
        client.told("does it speak TLS", "security.protocol")
        client.keeps_secrets()


@pytest.mark.parametrize("name, value, words", [
    ("ssl.ca.location", "/nowhere/ca.pem", "ssl.ca.location"),
    ("sasl.mechanisms", "SCRAM-SHA-3", "SCRAM-SHA-3"),
    ("sasl.pasword", WRONG, "knows no property named sasl.pasword"),
])
def test_properties_that_can_not_be_right(secure, engine, spoold, name, value, words):
    client = Client(secure, engine, spoold, "SECURE", secure.properties())
    assert client.daemon.sigterm() == 0
    client.properties(**{name: value})
    client.daemon.launch()
    assert client.daemon.wait_exit() == 2
    assert words in client.daemon.log()
    client.keeps_secrets()
