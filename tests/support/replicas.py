# SPDX-License-Identifier: Apache-2.0
"""Two replicas of one table, played: a replicated table needs a Keeper, and neither of the servers
here has one. What they answer is what a 26.7 answers; an INSERT is kept under its token, once, in
what the replicas share. Asked for rows by their origin, a replica has none unless it is told: it lags."""
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COLUMNS = ("id\tUInt64\t\t\nname\tString\t\t\nkind\tString\t\t\nvalue\tFloat64\t\t\n"
           "ts\tDateTime64(3)\t\t\nstate\tString\t\t\nok\tBool\t\t\n")
ORIGIN = "_topic\tString\t\t\n_partition\tInt32\t\t\n_offset\tInt64\t\t\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._answer("Ok.\n")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        refused = self.server.refuses and self.server.refuses(body)
        if "insert_deduplication_token" not in asked:
            if self.server.refuses_to_tell and b"_offset" in body and b"system." not in body:
                self.wfile.write(self.server.refuses_to_tell)
            else:
                self._answer(self.server.select(body.decode()))
        elif refused:
            self.server.note(asked["insert_deduplication_token"], body)
            self.wfile.write(refused)
        elif self.server.insert(asked["insert_deduplication_token"], body):
            self._answer("")
        else:
            self.close_connection = True

    def _answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Shared:
    """The table: token -> the bytes stored under it, and every attempt as (replica, token, bytes)."""

    def __init__(self):
        self.stored, self.attempts, self.lock = {}, [], threading.Lock()


class Replica(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name, path, shared, origin=False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name, self.path, self.shared, self.origin = name, path, shared, origin
        self.lose_answers = False
        self.started, self.has = 1000, ""  # when the server began; the answer to what it has
        self.asked = 0  # how often it gave that
        self.refuses_to_tell = None  # that answer, where it is another
        self.refuses = None  # of the bytes of an INSERT: a whole answer, or None
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def end(self):
        self.shutdown()
        self.server_close()

    def note(self, token, body):
        with self.shared.lock:
            self.shared.attempts.append((self.name, token, body))

    def insert(self, token, body):
        """Stored; whether it says so."""
        self.note(token, body)
        with self.shared.lock:
            self.shared.stored.setdefault(token, body)
        return not self.lose_answers

    def select(self, sql):
        if "uptime()" in sql:
            return f"26.7.2.1\tUTC\t{self.started}\n"
        if "system.databases" in sql:
            return "26.7.2.1\tUTC\t1\n"
        if "system.tables" in sql:
            engine = "ReplicatedMergeTree"
            return f"{engine}\tCREATE TABLE\t{engine}(\\'/x\\', \\'y\\') ORDER BY id\t\t0\n"
        if "system.replicas" in sql:
            return f"{self.path}\n"
        if "merge_tree_settings" in sql:
            return ("replicated_deduplication_window\t10000\n"
                    "replicated_deduplication_window_seconds\t3600\n")
        if "system.columns" in sql:
            return COLUMNS + (ORIGIN if self.origin else "")
        if "_offset" in sql:
            self.asked += 1
            return self.has
        return "0\n"
