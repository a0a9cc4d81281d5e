# SPDX-License-Identifier: Apache-2.0
"""A real broker that speaks TLS and SASL, with certificates and users of its own making."""
import os
import re
import subprocess

from .kafka import Kafka
from .process import free_port

# Beside the plain listener, which the test's own tool uses: one with everything right, one that knows
# PLAIN only, one whose certificate is another host's, and one whose certificate is over.
LISTENERS = {"SECURE": ("localhost", "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"),
             "PLAINONLY": ("localhost", "PLAIN"),
             "MISNAMED": ("other.example", "PLAIN"),
             "EXPIRED": ("localhost", "PLAIN")}
LISTENER = """\
listener.name.{name}.ssl.keystore.type=PEM
listener.name.{name}.ssl.keystore.location={pem}
listener.name.{name}.sasl.enabled.mechanisms={mechanisms}
listener.name.{name}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
required user_{user}="{password}";
listener.name.{name}.scram-sha-256.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.{name}.scram-sha-512.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
"""
USER, PASSWORD = "spoold", "correct-horse-battery"


def _openssl(directory, *args):
    done = subprocess.run(["openssl", *args], cwd=directory, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")


def make_ca(directory, name):
    _openssl(directory, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key",
             "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}")
    return os.path.join(directory, f"{name}.pem")


def make_certificate(directory, ca, name, host, *validity):
    """name.both.pem: the key and the certificate, for host, by the authority named ca."""
    conf = os.path.join(directory, "ca.cnf")
    with open(conf, "w", encoding="utf-8") as f:
        f.write("[ca]\ndefault_ca=d\n[d]\ndir=.\nnew_certs_dir=.\ndatabase=index.txt\n"
                "rand_serial=yes\ndefault_md=sha256\npolicy=p\nunique_subject=no\n"
                f"copy_extensions=copy\ncertificate={ca}.pem\nprivate_key={ca}.key\n[p]\n"
                "commonName=supplied\n")
    open(os.path.join(directory, "index.txt"), "a", encoding="utf-8").close()
    _openssl(directory, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out",
             f"{name}.csr", "-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}")
    _openssl(directory, "ca", "-batch", "-config", conf, "-in", f"{name}.csr", "-out",
             f"{name}.crt", "-notext", *(validity or ("-days", "2")))
    path = os.path.join(directory, f"{name}.both.pem")
    with open(path, "w", encoding="utf-8") as out:
        for part in (f"{name}.key", f"{name}.crt"):
            with open(os.path.join(directory, part), encoding="utf-8") as f:
                out.write(f.read())
    return path


class SecureKafka(Kafka):
    """The same broker with TLS listeners that want SASL; brokers names the right one."""

    def __init__(self, directory, data=None):
        super().__init__(directory, data)
        self.ca, self.other_ca = make_ca(self.directory, "ca"), make_ca(self.directory, "other")
        self.ports = {name: free_port() for name in LISTENERS}
        with open(self._properties, encoding="utf-8") as f:
            text = f.read()
        # As by default. A greater limit lets a TLS hello at the plain listener pass for the size of a
        # request, for which the broker then keeps asking for 352 MiB.
        text = re.sub(r"(?m)^socket\.request\.max\.bytes=.*$",
                      "socket.request.max.bytes=104857600", text)
        more, protocols = "", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
        for name, (host, mechanisms) in LISTENERS.items():
            validity = ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z") \
                if name == "EXPIRED" else ()
            pem = make_certificate(self.directory, "ca", name.lower(), host, *validity)
            more += LISTENER.format(name=name.lower(), pem=pem, mechanisms=mechanisms, user=USER,
                                    password=PASSWORD)
            protocols += f",{name}:SASL_SSL"
            at = f",{name}://localhost:{self.ports[name]}"
            text = text.replace("\nadvertised", f"{at}\nadvertised", 1)
            text = text.replace("\ncontroller.listener", f"{at}\ncontroller.listener", 1)
        more += (f"listener.security.protocol.map={protocols}\n"
                 "inter.broker.listener.name=PLAINTEXT\n")
        with open(self._properties, "w", encoding="utf-8") as f:
            f.write(text + more)

    def at(self, listener):
        """A listener's address; an address is its own."""
        if ":" in listener:
            return listener
        return self.brokers if listener == "PLAINTEXT" else f"localhost:{self.ports[listener]}"

    def restart_with_password(self, password):
        """Another password for PLAIN, which a broker reads at its start."""
        with open(self._properties, encoding="utf-8") as f:
            text = f.read()
        with open(self._properties, "w", encoding="utf-8") as f:
            f.write(re.sub(rf'user_{USER}="[^"]*"', f'user_{USER}="{password}"', text))
        self.stop()
        self.start()

    def set_password(self, user, mechanism, password):
        """Makes the SCRAM user, or gives it another password."""
        self._run_to_end("kafka.admin.ConfigCommand", "--bootstrap-server", self.brokers, "--alter",
                         "--entity-type", "users", "--entity-name", user, "--add-config",
                         f"{mechanism}=[iterations=4096,password={password}]")

    def properties(self, mechanism="PLAIN", **more):
        """What a client at the right listener needs."""
        return {"security.protocol": "SASL_SSL", "ssl.ca.location": self.ca,
                "sasl.mechanisms": mechanism, "sasl.username": USER, "sasl.password": PASSWORD,
                **{k.replace("_", "."): v for k, v in more.items()}}
