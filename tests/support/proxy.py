# SPDX-License-Identifier: Apache-2.0
"""A proxy between spoold and ClickHouse that breaks exchanges where a test says. One thread a
connection, one upstream connection for each, so that keep-alive means the same on both sides.

    proxy = Proxy(server)
    fault = proxy.arm(Fault("answer", how="rst"), stream="s")
    ... fault.struck, proxy.inserts("s") ...
"""
import re
import socket
import struct
import threading

PIECE = 256 * 1024
FRAME_HEAD = 25  # checksum 16, method 1, compressed size 4, raw size 4
GARBAGE = b"\x16\x03\x01\x00\xff\r\n" + bytes(range(256)) + b"\r\n\r\n"


def refusal(code, text, status=500):
    """A whole answer that is an exception of ClickHouse's."""
    body = f"Code: {code}. DB::Exception: {text}\n".encode()
    return (f"HTTP/1.1 {status} Error\r\nX-ClickHouse-Exception-Code: {code}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def too_many_parts():
    """Inserts are refused for the moment, and nothing of them is stored."""
    return Fault("head", "garbage", garbage=refusal(252, "Too many parts"), swallow=True)


class Cut(Exception):
    """This connection ends here."""


class Fault:
    """What happens to one request, and where:

    stage "head"    its head has arrived and nothing was passed on
          "body"    so many bytes (at=n), or so many whole frames (frames=n), of the body went on
          "sent"    all of the body went on, the server's answer is not waited for
          "answer"  the server has answered, and so many bytes (at=n, or of=share) of that went on
          "done"    the whole answer went on; cutting here is closing an idle connection
    action "cut"    the connections end, by how="fin" or "rst"
          "stall"   nothing moves until release() or until the client gives up
          "garbage" bytes that are no answer, or (garbage=) others; of the body: once the server, for
                    which it ends there, is through with it
          "slow"    from here on single bytes
          "flip"    (of the body) the next byte arrives as another one
          "pass"    nothing: for on_strike alone
    reused: only on a connection that had a request before. swallow: at the "head", the body is read
    first and goes nowhere; else the client, still sending, may find the connection ended before it has read
    what came. on_strike runs in the proxy's thread before the action.
    """

    def __init__(self, stage, action="cut", how="fin", at=0, of=None, frames=None, reused=False,
                 garbage=GARBAGE, swallow=False, on_strike=None):
        self.swallow = swallow
        self.stage, self.action, self.how = stage, action, how
        self.at, self.of, self.frames, self.reused = at, of, frames, reused
        self.garbage, self.on_strike = garbage, on_strike
        self.times, self.stream = 1, None
        self.struck = threading.Event()
        self.count = 0
        self._released = threading.Event()

    def release(self):
        self._released.set()

    def matches(self, request):
        return (self.times > 0 and request.is_insert and (request.reused or not self.reused)
                and (self.stream is None or request.stream == self.stream))


class Request:
    """One request as it went by; sent: bytes of the body passed on."""

    def __init__(self, head, reused):
        line = head.split(b"\r\n", 1)[0].decode("latin-1")
        self.method, self.target = line.split(" ")[:2]
        found = re.search(r"[?&]query_id=([^&]*)", self.target)
        self.query_id = found.group(1) if found else ""
        # <spool uuid>-<stream>-<batch>-<random>-<attempt>-<time>; a uuid has four dashes
        name = re.match(r"[0-9a-f-]{36}-(.*)-\d+-[0-9a-f]{32}-\d+-[0-9a-f]+$", self.query_id)
        self.stream = name.group(1) if name else None
        self.is_insert = name is not None
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        self.length = int(length.group(1)) if length else 0
        self.reused, self.sent, self.status, self.fault = reused, 0, 0, None


class Reader:
    """Buffered reading of one socket."""

    def __init__(self, sock):
        self.sock, self.data = sock, b""

    def more(self):
        piece = self.sock.recv(PIECE)
        self.data += piece
        return bool(piece)

    def take(self, n):
        piece, self.data = self.data[:n], self.data[n:]
        return piece

    def head(self):
        """Up to and with the empty line, b"" at the end of the connection."""
        while b"\r\n\r\n" not in self.data:
            if not self.more():
                return b""
        return self.take(self.data.index(b"\r\n\r\n") + 4)

    def exactly(self, n):
        while len(self.data) < n:
            if not self.more():
                raise Cut
        return self.take(n)

    def answer(self):
        """A whole answer, as it came."""
        head = whole = self.head()
        if not head:
            raise Cut
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        if length:
            return head + self.exactly(int(length.group(1)))
        if not re.search(rb"\r\ntransfer-encoding: *chunked", head, re.I):
            while self.more():
                pass
            return head + self.take(len(self.data))
        while True:
            while b"\r\n" not in self.data:
                if not self.more():
                    raise Cut
            line = self.take(self.data.index(b"\r\n") + 2)
            whole += line + self.exactly(int(line.split(b";")[0], 16) + 2)
            if int(line.split(b";")[0], 16) == 0:
                return whole


def _end(sock, how):
    """SHUT_RD sends nothing, but wakes a thread that reads: while it does, close() would not."""
    try:
        if how == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RD if how == "rst" else socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()


class Proxy:
    """remembers: requests and inserts() hold all that went by."""

    def __init__(self, server, remembers=True):
        self.server, self._remembers = server, remembers
        self.requests = []
        self.connections = 0
        self._faults, self._lock = [], threading.Lock()
        self._instead, self._asked = {}, {}
        self._open, self._mine = set(), threading.local()
        self._listener = None
        self.port = 0
        self.accept()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    # ---- steering ----

    def accept(self):
        """Takes connections (again), on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self, how="rst"):
        """Ends all connections, and refuses new ones."""
        listener, self._listener = self._listener, None
        if listener:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut_all(how)

    def leave_only_this(self):
        """From on_strike: no other connection is left, and no new one is taken."""
        listener, self._listener = self._listener, None
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        self.cut_all(but=self._mine.pair)

    def cut_all(self, how="rst", but=None):
        with self._lock:
            pairs = [pair for pair in self._open if pair != but]
        for pair in pairs:
            for sock in pair:
                _end(sock, how)

    def close(self):
        for fault in self._faults:
            fault.release()
        if self._listener:
            self.refuse()

    def arm(self, fault, stream=None, times=1):
        """The fault strikes the next so many INSERTs (of that stream)."""
        fault.stream, fault.times = stream, times
        with self._lock:
            self._faults.append(fault)
        return fault

    def answer_instead(self, part, answer):
        """Statements that are no batch and have that text in them get this answer (b"": the connection
        ends) and don't reach the server; None: they do again."""
        with self._lock:
            if answer is None:
                self._instead.pop(part.encode(), None)
            else:
                self._instead[part.encode()] = answer

    def asked(self, part):
        """How many statements were answered so."""
        with self._lock:
            return self._asked.get(part.encode(), 0)

    def inserts(self, stream=None):
        with self._lock:
            return [r for r in self.requests
                    if r.is_insert and (stream is None or r.stream == stream)]

    # ---- the way of a request ----

    def _accept(self, listener):
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._connection, args=(client,), daemon=True).start()

    def _connection(self, client):
        try:
            upstream = socket.create_connection(("127.0.0.1", self.server.port), 10)
        except OSError:
            _end(client, "rst")
            return
        for sock in (client, upstream):
            sock.settimeout(None)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._mine.pair = client, upstream
        with self._lock:
            self._open.add((client, upstream))
        how, asked, answers = "fin", Reader(client), Reader(upstream)
        try:
            reused = False
            while True:
                head = asked.head()
                if not head:
                    break
                request = Request(head, reused)
                reused = True
                try:
                    self._exchange(request, head, client, asked, upstream, answers)
                except Cut:
                    how = request.fault.how if request.fault else "fin"
                    break
        except (OSError, ValueError):
            pass  # the other side ended it, or we did
        with self._lock:
            self._open.discard((client, upstream))
        _end(client, how)
        _end(upstream, how)

    def _exchange(self, request, head, client, asked, upstream, answers):
        with self._lock:
            if self._remembers:
                self.requests.append(request)
            for fault in self._faults:
                if fault.matches(request):
                    fault.times -= 1
                    request.fault = fault
                    break
        if not request.is_insert and self._answered_instead(request, client, asked):
            return
        fault = request.fault
        slow = False
        if fault and fault.stage == "head" and fault.swallow:
            asked.exactly(request.length)
        if self._at(fault, "head", client):
            slow = True
        upstream.sendall(head)
        slow = self._body(request, asked, client, upstream, slow)
        if self._at(fault, "sent", client):
            slow = True
        answer = answers.answer()
        request.status = int(answer.split(b" ", 2)[1])
        if fault and fault.stage == "answer":
            n = fault.at if fault.of is None else int(fault.of * len(answer))
            client.sendall(answer[:n])
            slow = self._at(fault, "answer", client) or slow
            answer = answer[n:]
        self._send(client, answer, slow)
        self._at(fault, "done", client)

    def _answered_instead(self, request, client, asked):
        with self._lock:
            instead = dict(self._instead)
        if not instead:
            return False
        statement = asked.exactly(request.length)
        for part, answer in instead.items():
            if part in statement:
                with self._lock:
                    self._asked[part] = self._asked.get(part, 0) + 1
                if not answer:
                    raise Cut
                client.sendall(answer)
                return True
        asked.data = statement + asked.data
        return False

    def _body(self, request, asked, client, upstream, slow):
        fault = request.fault if request.fault and request.fault.stage == "body" else None
        stop = fault.at if fault else request.length
        flip = False
        frames = fault.frames if fault else None
        if frames is not None:
            stop = 0
        while request.sent < request.length:
            if frames is not None and request.sent == stop and frames > 0:
                while len(asked.data) < FRAME_HEAD:
                    if not asked.more():
                        raise Cut
                stop += 16 + struct.unpack("<I", asked.data[17:21])[0]
                frames -= 1
            if fault and request.sent >= stop:
                slow = self._at(fault, "body", client, upstream) or slow
                flip = fault.action == "flip"
                fault, frames, stop = None, None, request.length
                continue
            if not asked.data and not asked.more():
                raise Cut
            piece = asked.take(min(stop, request.length) - request.sent)
            if flip and piece:
                piece, flip = bytes([piece[0] ^ 0x55]) + piece[1:], False
            self._send(upstream, piece, slow)
            request.sent += len(piece)
        return slow

    @staticmethod
    def _send(sock, data, slow):
        if not slow:
            sock.sendall(data)
            return
        for i in range(len(data)):
            sock.sendall(data[i:i + 1])

    def _at(self, fault, stage, client, upstream=None):
        """Acts where the fault is of that stage; whether all goes byte by byte from here on."""
        if not fault or fault.stage != stage:
            return False
        fault.count += 1
        if fault.on_strike:
            fault.on_strike()
        fault.struck.set()
        if fault.action == "cut":
            if upstream and fault.how == "fin":
                self._half_close(client, upstream)
            raise Cut
        if fault.action == "stall":
            self._stall(fault, client)
        elif fault.action == "garbage":
            if upstream:
                upstream.shutdown(socket.SHUT_WR)
                self._drain(upstream)
            client.sendall(fault.garbage)
            client.shutdown(socket.SHUT_WR)
            self._drain(client)  # what is unread at the end resets, and that may outrun the answer
            raise Cut
        return fault.action == "slow"

    @staticmethod
    def _half_close(client, upstream):
        """The server sees an end in order and may answer; nobody hears it."""
        upstream.shutdown(socket.SHUT_WR)
        _end(client, "fin")
        Proxy._drain(upstream)

    @staticmethod
    def _drain(sock):
        sock.settimeout(20)
        while sock.recv(PIECE):
            pass

    @staticmethod
    def _stall(fault, client):
        """Until release(), or the client has gone."""
        client.settimeout(0.05)
        while not fault._released.is_set():
            try:
                if not client.recv(1, socket.MSG_PEEK):
                    raise Cut
                fault._released.wait(0.05)  # more of the body is there; a reset shows up next
                client.getpeername()
            except socket.timeout:
                pass
        client.settimeout(None)
