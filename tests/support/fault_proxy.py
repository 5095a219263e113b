"""A proxy on loopback between an HTTP client and a server that does one fault at one request, or slows all down.

    with FaultProxy(server.port) as proxy:
        proxy.plan("reset_after_forwarding", at_request=3)
        ...                      # a client that talks to proxy.port
        assert proxy.has_struck

Every request but the planned one is forwarded, over a connection of its own. Needs no pytest.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Literal, get_args

Fault = Literal[
    "answer_500",  # the server is not asked
    "answer_503",
    "reset_before_forwarding",
    "reset_after_forwarding",  # the server has done what it was asked, and the client does not hear of it
    "cut_request",  # the server gets half of the body
    "cut_response",  # the client gets half of the body, or of the head where there is no body
    "hang",  # no answer until the client gives up; the server is not asked
]
FAULTS: tuple[Fault, ...] = get_args(Fault)

Lasting = Literal["once", "same_request", "all_requests"]

_CHUNK_BYTES = 64 << 10
_SERVER_TIMEOUT_S = 60.0
_NO_BODY_STATUSES = {204, 304}


@dataclass(frozen=True)
class _Message:
    """Head of a request or an answer, and the framing of its body."""

    lines: list[bytes]
    first_line: str
    num_body_bytes: int | None
    is_chunked: bool
    keeps_connection: bool

    @property
    def head(self) -> bytes:
        return b"".join(self.lines) + b"\r\n"


class FaultProxy:
    """Forwards to a server's port; counts requests from 1.

    Args:
        bandwidth_bytes_per_s: limit of all bodies together, both ways; None for no limit.
    """

    def __init__(self, server_port: int, bandwidth_bytes_per_s: int | None = None) -> None:
        self._server_port = server_port
        self._bandwidth = bandwidth_bytes_per_s
        self._lock = threading.Lock()
        self._fault: Fault | None = None
        self._at_request = 0
        self._lasts: Lasting = "once"
        self._next_free_s = 0.0
        self._open_sockets: set[socket.socket] = set()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._threads: list[threading.Thread] = []
        self.requests: list[str] = []
        self.has_struck = False
        self.max_delay_s = 0.0
        """Each request is forwarded up to this much later, so that later ones overtake it."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> FaultProxy:
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A plain close would leave accept() waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        with self._lock:
            for connection in self._open_sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    @property
    def num_requests(self) -> int:
        """How many requests came since the last ``plan`` or ``plan_none``."""
        return len(self.requests)

    def plan(self, fault: Fault, at_request: int, lasts: Lasting = "once") -> None:
        """Do a fault at the request of this number counted from now on.

        Args:
            lasts: whether it is done again: when the same is requested, or at all requests that follow.
        """
        with self._lock:
            self._fault, self._at_request, self._lasts = fault, at_request, lasts
            self.requests, self.has_struck = [], False

    def plan_none(self) -> None:
        """Forward everything from now on, and count from 1 again."""
        with self._lock:
            self._fault = None
            self.requests, self.has_struck = [], False

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # The proxy is closed.
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self._threads = [thread, *(old for old in self._threads if old.is_alive())]
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        """All requests of one connection."""
        with self._keeping(client), client.makefile("rb") as from_client, contextlib.suppress(OSError):
            is_open = True
            while is_open and (request := _read_head(from_client)) is not None:
                fault = self._note(request.first_line)
                if any(line.lower().startswith(b"expect:") for line in request.lines):
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    request.lines[:] = [line for line in request.lines if not line.lower().startswith(b"expect:")]
                if fault in ("answer_500", "answer_503", "reset_before_forwarding", "hang"):
                    _fail(client, from_client, request, fault)
                    return
                is_open = self._forward(client, from_client, request, fault)

    def _note(self, first_line: str) -> Fault | None:
        with self._lock:
            self.requests.append(first_line.rpartition(" ")[0])
            number, position = len(self.requests), self._at_request
            is_again = number > position and (
                self._lasts == "all_requests"
                or (self._lasts == "same_request" and self.requests[-1] == self.requests[position - 1])
            )
            if self._fault is None or not (number == position or is_again):
                return None
            self.has_struck = True
            return self._fault

    def _forward(self, client: socket.socket, from_client: BinaryIO, request: _Message, fault: Fault | None) -> bool:
        """Forward one request and its answer, perhaps not all of it; whether the client's connection stays."""
        body = _read_body(from_client, request)
        server = socket.create_connection(("127.0.0.1", self._server_port), timeout=_SERVER_TIMEOUT_S)
        with self._keeping(server), server.makefile("rb") as from_server:
            if fault == "cut_request":
                server.sendall(_cut(request.head, body))
                _reset_when_closed(server)
                _reset_when_closed(client)
                return False
            server.sendall(request.head)
            time.sleep(random.uniform(0.0, self.max_delay_s))
            for chunk in body:
                self._pace(len(chunk))
                server.sendall(chunk)
            answer = _read_head(from_server, request.first_line)
            if answer is None or fault == "reset_after_forwarding":
                _reset_when_closed(client)
                return False
            answer_body = _read_body(from_server, answer)
            if fault == "cut_response":
                # No reset after it: that could overtake the half which is to arrive.
                client.sendall(_cut(answer.head, answer_body))
                return False
            client.sendall(answer.head)
            for chunk in answer_body:
                self._pace(len(chunk))
                client.sendall(chunk)
            return answer.keeps_connection and request.keeps_connection

    def _pace(self, num_bytes: int) -> None:
        if self._bandwidth is None:
            return
        with self._lock:
            now_s = time.monotonic()
            self._next_free_s = max(now_s, self._next_free_s) + num_bytes / self._bandwidth
            wait_s = self._next_free_s - now_s
        time.sleep(wait_s)

    @contextlib.contextmanager
    def _keeping(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open_sockets.add(connection)
        try:
            with connection:
                yield
        finally:
            with self._lock:
                self._open_sockets.discard(connection)


def _fail(client: socket.socket, from_client: BinaryIO, request: _Message, fault: Fault) -> None:
    if fault == "reset_before_forwarding":
        _reset_when_closed(client)
        return
    for _ in _read_body(from_client, request):
        pass
    if fault == "hang":
        from_client.read(1)  # Returns when the client closes its side.
        return
    reason = b"500 Internal Server Error" if fault == "answer_500" else b"503 Service Unavailable"
    client.sendall(b"HTTP/1.1 " + reason + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _cut(head: bytes, body: Iterator[bytes]) -> bytes:
    """A message without half of its body; without half of its head if there is no body."""
    content = b"".join(body)
    return head + content[: len(content) // 2] if content else head[: len(head) // 2]


def _reset_when_closed(connection: socket.socket) -> None:
    # With no lingering, closing sends RST in place of FIN.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_head(stream: BinaryIO, request_line: str = "") -> _Message | None:
    """The next head, of an answer when the request's first line is given; None when the other side has closed."""
    lines: list[bytes] = []
    while (line := stream.readline()) != b"\r\n":
        if not line:
            return None
        lines.append(line)
    first_line = lines[0].decode("latin-1").strip()
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip().lower()
    num_body_bytes: int | None = int(headers[b"content-length"]) if b"content-length" in headers else 0
    is_chunked = headers.get(b"transfer-encoding") == b"chunked"
    version = first_line.split()[-1]
    if request_line:
        version, status = first_line.split()[:2]
        if request_line.startswith("HEAD ") or int(status) in _NO_BODY_STATUSES:
            num_body_bytes, is_chunked = 0, False
        elif b"content-length" not in headers:
            num_body_bytes = None
    keeps_connection = version == "HTTP/1.1" and headers.get(b"connection") != b"close" and num_body_bytes is not None
    return _Message(lines, first_line, num_body_bytes, is_chunked, keeps_connection or is_chunked)


def _read_body(stream: BinaryIO, message: _Message) -> Iterator[bytes]:
    """A body as it is on the wire, in pieces; a body without a length goes on until the other side closes."""
    if message.is_chunked:
        while (size_line := stream.readline()).strip() != b"0":
            if not size_line:
                raise ConnectionError("the other side closed within a body")
            yield size_line + _read_exactly(stream, int(size_line.split(b";")[0], 16) + len(b"\r\n"))
        yield size_line
        while (trailer := stream.readline()) not in (b"\r\n", b""):
            yield trailer
        yield b"\r\n"
        return
    left = message.num_body_bytes
    while left is None or left > 0:
        chunk = stream.read1(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES))  # type: ignore[attr-defined]
        if not chunk:
            if left is None:
                return
            raise ConnectionError("the other side closed within a body")
        left = None if left is None else left - len(chunk)
        yield chunk


def _read_exactly(stream: BinaryIO, num_bytes: int) -> bytes:
    content = stream.read(num_bytes)
    if len(content) < num_bytes:
        raise ConnectionError("the other side closed within a body")
    return content
