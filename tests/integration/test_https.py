# SPDX-License-Identifier: Apache-2.0
"""ClickHouse behind TLS: the server's certificate is checked, the client's is shown."""
import os
import socket
import ssl
import subprocess
import threading

import pytest

from support.proxy import Cut, Reader, Request
from support.spoold import stream


def openssl(directory, *args):
    subprocess.run(["openssl", *args], cwd=directory, check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """ca, server and client keys and certificates in one directory."""
    d = str(tmp_path_factory.mktemp("tls"))
    openssl(d, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out",
            "ca.pem", "-days", "2", "-subj", "/CN=test ca")
    for name in ("server", "client"):
        openssl(d, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out",
                f"{name}.csr", "-subj", f"/CN={name}")
        with open(os.path.join(d, "san"), "w", encoding="utf-8") as f:
            f.write("subjectAltName=IP:127.0.0.1")
        openssl(d, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "san")
    return d


class TlsFront:
    """Terminates TLS in front of a server; wants a client certificate where asked."""

    def __init__(self, port, directory, client=False):
        self.target = port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(os.path.join(directory, "server.pem"),
                                     os.path.join(directory, "server.key"))
        if client:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(os.path.join(directory, "ca.pem"))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain):
        try:
            near = self.context.wrap_socket(plain, server_side=True)
            far = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            plain.close()
            return
        back = threading.Thread(target=self._copy, args=(far, near), daemon=True)
        back.start()
        self._copy(near, far)
        back.join()
        near.close()
        far.close()

    def _copy(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self):
        self.listener.close()


class TlsTwice(TlsFront):
    """Says 200 once more, to nobody, behind its first answer to an INSERT, and passes nothing on from
    then on what comes on that connection."""

    def __init__(self, *args):
        self.said, self.swallowed = threading.Event(), b""
        super().__init__(*args)

    def _copy(self, source, sink):
        if not isinstance(source, ssl.SSLSocket):
            return  # the other way reads the answers
        asks, answers = Reader(source), Reader(sink)
        try:
            while head := asks.head():
                request = Request(head, False)
                sink.sendall(head + asks.exactly(request.length))
                source.sendall(answers.answer())
                if request.is_insert and not self.said.is_set():
                    source.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    self.said.set()
                    while data := source.recv(65536):
                        self.swallowed += data
        except (OSError, Cut):
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


@pytest.fixture
def front(request, certificates):
    made = []

    def make(server, client=False, kind=TlsFront):
        made.append(kind(server.port, certificates, client))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_rows_by_https(kafka, server, spoold, front, certificates):
    topic = kafka.create_topic(2)
    table = server.create_bench_table(window=1000)
    kafka.produce(topic, 200000)
    ca = os.path.join(certificates, "ca.pem")
    daemon = spoold(kafka, front(server).url, [stream("s", topic, table)])
    daemon.config["clickhouse"]["tls"] = {"ca_file": ca}
    daemon.start()
    daemon.wait_rows(server, table, 200000, 60)
    assert server.unique(table) == 200000


def test_an_answer_that_nobody_asked_for(kafka, server, spoold, front, certificates):
    topic = kafka.create_topic(1)
    table = server.create_bench_table(window=1000)
    twice = front(server, kind=TlsTwice)
    daemon = spoold(kafka, twice.url, [stream("s", topic, table, flush={"interval": "50ms"})])
    daemon.config["clickhouse"]["tls"] = {"ca_file": os.path.join(certificates, "ca.pem")}
    daemon.start()
    assert kafka.producer(topic, 2000, "--rate", 1000).finish() == 2000
    daemon.wait(lambda: kafka.committed_offsets(daemon.group, topic) == {0: 2000}, 60, "committed")
    assert twice.said.is_set()
    assert server.count(table) == 2000
    assert b"INSERT" not in twice.swallowed and b"POST" not in twice.swallowed
    assert daemon.metric("spoold_possible_duplicates_total") == 0


def test_a_certificate_nobody_signed_is_refused(kafka, server, spoold, front):
    topic = kafka.create_topic(1)
    table = server.create_bench_table()
    kafka.produce(topic, 100)
    daemon = spoold(kafka, front(server).url, [stream("s", topic, table)]).start()
    daemon.wait(lambda: "certificate" in daemon.status()["endpoints"][0]["reason"].lower(), 30,
                lambda: daemon.status()["endpoints"])
    assert server.count(table) == 0


def test_the_client_shows_its_certificate(kafka, engine, spoold, front, certificates):
    topic = kafka.create_topic(1)
    table = engine.create_bench_table(window=1000)
    kafka.produce(topic, 1000)
    daemon = spoold(kafka, front(engine, client=True).url, [stream("s", topic, table)])
    daemon.config["clickhouse"]["tls"] = {
        "ca_file": os.path.join(certificates, "ca.pem"),
        "cert_file": os.path.join(certificates, "client.pem"),
        "key_file": os.path.join(certificates, "client.key")}
    daemon.start()
    daemon.wait_rows(engine, table, 1000)
