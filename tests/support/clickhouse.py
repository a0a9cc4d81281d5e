# SPDX-License-Identifier: Apache-2.0
"""Two ClickHouse servers with one face: Debian's clickhouse-server 18.16, and the 26.7 engine behind
chserver. What a server cannot do stands in its class, so that a test can ask."""
import base64
import http.client
import os
import re
import shutil
import signal
import urllib.parse

from .process import Child, free_port

CONFIG = """\
<?xml version="1.0"?>
<yandex>
  <logger><level>information</level><console>1</console></logger>
  <http_port>{http}</http_port>
  <tcp_port>{tcp}</tcp_port>
  <listen_host>127.0.0.1</listen_host>
  <path>{path}/</path>
  <tmp_path>{path}/tmp/</tmp_path>
  <users_config>{users}</users_config>
  <default_profile>default</default_profile>
  <default_database>default</default_database>
  <mark_cache_size>104857600</mark_cache_size>
  <max_concurrent_queries>100</max_concurrent_queries>
  <keep_alive_timeout>3</keep_alive_timeout>
  <shutdown_wait_unfinished>1</shutdown_wait_unfinished>
  <timezone>UTC</timezone>
</yandex>
"""
USERS = """\
<?xml version="1.0"?>
<yandex>
  <profiles>
    <default><max_memory_usage>4000000000</max_memory_usage></default>
    <readonly><readonly>1</readonly></readonly>
  </profiles>
  <users>
    <default><password></password><profile>default</profile><quota>default</quota>
      <networks><ip>127.0.0.1</ip></networks></default>
    <writer><password>secret</password><profile>default</profile><quota>default</quota>
      <networks><ip>127.0.0.1</ip></networks></writer>
    <reader><password></password><profile>readonly</profile><quota>default</quota>
      <networks><ip>127.0.0.1</ip></networks></reader>
  </users>
  <quotas><default><interval><duration>3600</duration><queries>0</queries><errors>0</errors>
    <result_rows>0</result_rows><read_rows>0</read_rows><execution_time>0</execution_time>
  </interval></default></quotas>
</yandex>
"""


class ClickHouseError(Exception):
    def __init__(self, status, code, text):
        super().__init__(f"HTTP {status}, code {code}: {text.strip()[:500]}")
        self.status, self.code, self.text = status, code, text


class Server:
    """One server on its own port and data directory, which it keeps over stop, kill and start.

    Users: default (no password), writer (password "secret"), reader (may not write).
    """

    user, password = "default", ""

    def __init__(self, directory):
        self.directory = str(directory)
        self.port = free_port()
        self.child = None
        os.makedirs(self.directory, exist_ok=True)

    # ---- life ----

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def launch(self, env=None):
        """Starts the process and waits for nothing. env: for example LD_PRELOAD."""
        self.child = Child(self.name, self._argv(), os.path.join(self.directory, "server.log"),
                           env=env)
        return self

    def start(self, env=None):
        self.launch(env).child.wait_ready(self.ping, 60)
        return self

    def stop(self):
        self.child.stop(60)

    def kill(self):
        self.child.kill()

    def freeze(self):
        """Connections stay open, nothing is answered."""
        self.child.signal(signal.SIGSTOP)

    def thaw(self):
        self.child.signal(signal.SIGCONT)

    def alive(self):
        return self.child is not None and self.child.alive()

    def ensure_started(self):
        """For the fixture: a test that stopped the server and failed must not fail the next."""
        if self.alive():
            self.thaw()
        else:
            self.start()

    # ---- asking ----

    def request(self, method, path, body=None, headers=None, seconds=60):
        """(status, headers, body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def ping(self):
        try:
            return self.request("GET", "/ping", seconds=2)[0] == 200
        except OSError:
            return False

    def post(self, sql, body=b"", user=None, password=None, headers=None, seconds=60, **params):
        """The answer's bytes, or ClickHouseError. The statement goes into the URL when a body
        follows, else it is the body. params: settings, query_id, decompress, database..."""
        headers = dict(headers or {})
        if user is not None:
            token = base64.b64encode(f"{user}:{password or ''}".encode()).decode()
            headers["Authorization"] = f"Basic {token}"
        if body:
            params["query"] = sql
        path = "/?" + urllib.parse.urlencode(params)
        status, answer_headers, answer = self.request(
            "POST", path, body or sql.encode(), headers, seconds)
        text = answer.decode(errors="replace")
        code = re.search(r"Code: (\d+)", text.split("\n", 1)[0])
        if status != 200 or "X-ClickHouse-Exception-Code" in answer_headers:
            raise ClickHouseError(status, int(code.group(1)) if code else None, text)
        return answer

    def query(self, sql, **params):
        """The answer's text without its last newline."""
        return self.post(sql, **params).decode().rstrip("\n")

    def rows(self, sql, **params):
        """The answer's lines, each a list of texts (TabSeparated, not unescaped)."""
        text = self.query(sql, **params)
        return [line.split("\t") for line in text.split("\n")] if text else []

    def number(self, sql, **params):
        return int(self.query(sql, **params))

    def count(self, table):
        return self.number(f"SELECT count() FROM {table}")

    def unique(self, table, column="id"):
        return self.number(f"SELECT uniqExact({column}) FROM {table}")

    def insert(self, table, columns, data, format="Native", **params):
        self.post(f"INSERT INTO {table} ({', '.join(columns)}) FORMAT {format}", data, **params)

    def create_table(self, columns, name=None, order_by="tuple()", engine=None, window=0, extra=""):
        """A MergeTree table (or engine) of a fresh name; window: deduplicated inserts, where known.
        columns: text as in SQL."""
        name = name or f"t_{os.urandom(4).hex()}"
        settings = ""
        if window and self.deduplicates:
            settings = f" SETTINGS non_replicated_deduplication_window = {window}"
        engine = engine or f"MergeTree ORDER BY {order_by}"
        self.query(f"CREATE TABLE {name} ({columns}) ENGINE = {engine}{extra}{settings}")
        return name

    def create_bench_table(self, name=None, window=0, origin=False):
        """For the generated record: seven columns, and where asked $topic, $partition, $offset."""
        columns = self.bench_columns
        if origin:
            columns += ", _topic String, _partition Int32, _offset Int64"
        return self.create_table(columns, name=name, order_by="id", window=window)

    def drop_table(self, name):
        self.query(f"DROP TABLE IF EXISTS {name}")


class OldServer(Server):
    """Debian's clickhouse-server, a real server."""

    name = "clickhouse-server"
    modern = False
    deduplicates = False
    bench_columns = ("id UInt64, name String, kind String, value Float64, ts String, "
                     "state String, ok UInt8")

    def __init__(self, directory):
        super().__init__(directory)
        self.tcp_port = free_port()
        users = os.path.join(self.directory, "users.xml")
        data = os.path.join(self.directory, "data")
        os.makedirs(os.path.join(data, "tmp"), exist_ok=True)
        with open(users, "w", encoding="utf-8") as f:
            f.write(USERS)
        with open(os.path.join(self.directory, "config.xml"), "w", encoding="utf-8") as f:
            f.write(CONFIG.format(http=self.port, tcp=self.tcp_port, path=data, users=users))

    @staticmethod
    def unavailable():
        return None if shutil.which("clickhouse-server") else "no clickhouse-server"

    def _argv(self):
        return [shutil.which("clickhouse-server"),
                f"--config-file={os.path.join(self.directory, 'config.xml')}"]


class Engine(Server):
    """ClickHouse 26.7 as a library behind chserver; tests/README.md has its limits."""

    name = "chserver"
    modern = True
    deduplicates = True
    bench_columns = ("id UInt64, name String, kind String, value Float64, ts DateTime64(3), "
                     "state String, ok Bool")

    @staticmethod
    def unavailable():
        library = os.environ.get("CHDB_LIB", "")
        return None if os.path.exists(library) else (
            f"no libchdb at '{library}' (make deps-test fetches it)")

    def _argv(self):
        return [os.path.join(os.environ["SUPPORT_DIR"], "chserver"), "--port", self.port,
                "--path", os.path.join(self.directory, "data"), "--lib", os.environ["CHDB_LIB"],
                "--user", "default", "--user", "writer", "--password", "secret",
                "--user", "reader", "--readonly"]
