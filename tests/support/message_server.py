"""A small HTTP server on loopback that takes messages, and can be overloaded, rude or silent."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server says to one request."""

    status: int = 200
    body: str = '{"ok": true}'
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Posted:
    """What it was sent."""

    path: str
    authorization: str | None
    document: Any


class MessageServer(ThreadingHTTPServer):
    """Keeps what was posted; ``answers`` are given in turn, and then success."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: list[Posted] = []
        self.answers: deque[Answer] = deque()
        # Cleared, the server takes requests and says nothing.
        self.speaks = threading.Event()
        self.speaks.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def documents(self) -> list[Any]:
        return [posted.document for posted in self.posted]


@contextlib.contextmanager
def serve_messages() -> Iterator[MessageServer]:
    """A server that ends with the block, which need not have let it speak."""
    server = MessageServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.speaks.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: MessageServer

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Content-Type"] == "application/json; charset=utf-8"
        self.server.posted.append(Posted(self.path, self.headers["Authorization"], document))
        self.server.speaks.wait()
        self._send(self.server.answers.popleft() if self.server.answers else Answer())

    def do_GET(self) -> None:
        raise AssertionError("nothing but messages is expected here")

    def log_message(self, format: str, *args: Any) -> None:
        return

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body.encode())
