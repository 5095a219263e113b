"""The proxy that the fault tests stand on: what each fault looks like from both sides."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.fault_proxy import FAULTS, Fault, FaultProxy

BODY = b"0123456789" * 1000
FAULTS_AND_WHAT_IS_SEEN = [
    ("answer_500", (500, b""), False),
    ("answer_503", (503, b""), False),
    ("reset_before_forwarding", ConnectionResetError, False),
    ("reset_after_forwarding", ConnectionResetError, True),
    ("cut_request", ConnectionResetError, False),
    ("cut_response", http.client.IncompleteRead, True),
    ("hang", TimeoutError, False),
]


class EchoHandler(BaseHTTPRequestHandler):
    """Answers every request with its own body, and notes what arrived whole."""

    protocol_version = "HTTP/1.1"
    arrived: list[tuple[str, bytes]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) < int(self.headers["Content-Length"]):
            return
        self.arrived.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.arrived.append((self.path, b""))
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def arrived() -> list[tuple[str, bytes]]:
    """Path and body of each request that the server got whole."""
    return []


@pytest.fixture
def server(arrived: list[tuple[str, bytes]]) -> Iterator[ThreadingHTTPServer]:
    """A server that answers with what it is sent."""
    handler = type("Handler", (EchoHandler,), {"arrived": arrived})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.fixture
def proxy(server: ThreadingHTTPServer) -> Iterator[FaultProxy]:
    """A proxy in front of the server."""
    with FaultProxy(server.server_port) as proxy:
        yield proxy


def put(proxy: FaultProxy, path: str, body: bytes = BODY, deadline_s: float = 0.5) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=deadline_s)
    try:
        connection.request("PUT", path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_everything_is_forwarded_and_counted(proxy, arrived):
    assert [put(proxy, f"/{number}") for number in range(3)] == [(200, BODY)] * 3
    assert arrived == [("/0", BODY), ("/1", BODY), ("/2", BODY)]
    assert proxy.requests == ["PUT /0", "PUT /1", "PUT /2"]
    assert not proxy.has_struck


def test_one_connection_carries_requests_of_all_forms(proxy):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    answers = []
    for method, body in (("HEAD", None), ("GET", None), ("PUT", b""), ("PUT", b"1"), ("GET", None)):
        connection.request(method, "/key", body)
        answers.append(connection.getresponse().read())
    connection.close()
    assert answers == [b"", b"hello world", b"", b"1", b"hello world"]
    assert proxy.num_requests == 5


def test_a_client_that_waits_for_100_continue_gets_it(proxy, arrived):
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=5)
    connection.putrequest("PUT", "/key")
    connection.putheader("Expect", "100-continue")
    connection.putheader("Content-Length", "1")
    connection.endheaders()
    assert connection.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(b"x")
    assert connection.getresponse().read() == b"x"
    connection.close()
    assert arrived == [("/key", b"x")]


@pytest.mark.parametrize(("fault", "seen", "has_arrived"), FAULTS_AND_WHAT_IS_SEEN)
def test_a_fault_strikes_once_at_its_request(proxy, arrived, fault: Fault, seen, has_arrived: bool):
    proxy.plan(fault, at_request=2)
    assert put(proxy, "/0") == (200, BODY)
    assert not proxy.has_struck
    if isinstance(seen, tuple):
        assert put(proxy, "/1") == seen
    else:
        with pytest.raises(seen):
            put(proxy, "/1")
    assert proxy.has_struck
    assert put(proxy, "/2") == (200, BODY)
    assert [path for path, _ in arrived] == ["/0", "/1", "/2"][:: 1 if has_arrived else 2]


def test_a_fault_strikes_again_where_it_is_to_last(proxy):
    proxy.plan("answer_503", at_request=2, lasts="all_requests")
    assert [put(proxy, f"/{number}")[0] for number in range(4)] == [200, 503, 503, 503]
    proxy.plan("answer_503", at_request=2, lasts="same_request")
    assert [put(proxy, path)[0] for path in ("/a", "/b", "/b", "/c", "/b", "/a")] == [200, 503, 503, 200, 503, 200]
    proxy.plan_none()
    assert put(proxy, "/b") == (200, BODY)


@pytest.mark.parametrize(("fault", "num_arrived"), [("cut_request", 0), ("cut_response", 1)])
def test_without_a_body_the_head_is_cut(proxy, arrived, fault: Fault, num_arrived: int):
    proxy.plan(fault, at_request=1)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        client.sendall(b"HEAD /key HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with client.makefile("rb") as answer, contextlib.suppress(ConnectionResetError):
            assert not answer.read().endswith(b"\r\n\r\n")
    assert proxy.has_struck
    assert len(arrived) == num_arrived


def test_every_fault_has_been_tried():
    tried = {parameters[0] for parameters in FAULTS_AND_WHAT_IS_SEEN}
    assert tried == set(FAULTS)


def test_the_bandwidth_is_not_exceeded(server):
    with FaultProxy(server.server_port, bandwidth_bytes_per_s=100_000) as proxy:
        started_s = time.monotonic()
        assert put(proxy, "/key", deadline_s=30) == (200, BODY)
        assert time.monotonic() - started_s >= 2 * len(BODY) / 100_000
