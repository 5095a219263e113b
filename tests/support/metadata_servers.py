"""Metadata services of AWS, Azure and Google Cloud on loopback, as far as their documents describe notices.

    with serve_metadata(FakeAzure()) as service:
        AzureSource(service.endpoint)

Each speaks its cloud's protocol strictly: a request without the cloud's header or token is refused. A test changes what
is announced by setting attributes, and breaks the service with ``failure`` (also while requests are running).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeVar

Reply = tuple[int, str, dict[str, str]]


@dataclass
class FakeMetadata:
    """What all three have in common; ``requests`` is every request so far as "METHOD path"."""

    endpoint: str = ""
    failure: Literal["", "status", "hang", "cut", "nonsense"] = ""
    failure_status: int = 500
    requests: list[str] = field(default_factory=list)
    num_connections: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        raise NotImplementedError


@dataclass
class FakeAws(FakeMetadata):
    """IMDSv2 only: every GET needs a token that is among ``valid_tokens``."""

    interruption: str | None = None
    rebalance: str | None = None
    valid_tokens: set[str] = field(default_factory=set)
    num_tokens: int = 0

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        if (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(headers.get("x-aws-ec2-metadata-token-ttl-seconds", "0")) <= 21600:
                return 400, "", {}
            self.num_tokens += 1
            token = f"token-{self.num_tokens}=="
            self.valid_tokens.add(token)
            return 200, token, {}
        if headers.get("x-aws-ec2-metadata-token") not in self.valid_tokens:
            return 401, "", {}
        documents = {
            "/latest/meta-data/spot/instance-action": self.interruption,
            "/latest/meta-data/events/recommendations/rebalance": self.rebalance,
        }
        document = documents.get(path) if method == "GET" else None
        return (404, "", {}) if document is None else (200, document, {})


@dataclass
class FakeAzure(FakeMetadata):
    """Scheduled Events of a virtual machine and of others in its group.

    ``started`` are the acknowledged event ids; ``document`` takes the place of the events.
    """

    vm_name: str = "worker_7"
    events: list[dict[str, Any]] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    document: str | None = None

    def announce(
        self, event_type: str, event_id: str, *, not_before: str = "", resources: tuple[str, ...] = ()
    ) -> None:
        self.events = [
            *self.events,
            {
                "EventId": event_id,
                "EventType": event_type,
                "ResourceType": "VirtualMachine",
                "Resources": list(resources or (self.vm_name,)),
                "EventStatus": "Scheduled" if not_before else "Started",
                "NotBefore": not_before,
                "Description": "",
                "EventSource": "Platform",
                "DurationInSeconds": -1,
            },
        ]

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        if headers.get("metadata") != "true":
            return 400, '{"error": "Required metadata header not specified"}', {}
        if (method, path) == ("GET", "/metadata/instance/compute/name?api-version=2021-02-01&format=text"):
            return 200, self.vm_name, {}
        if path != "/metadata/scheduledevents?api-version=2020-07-01":
            return 404, "", {}
        if method == "POST":
            requested = [request["EventId"] for request in json.loads(body)["StartRequests"]]
            if not set(requested) <= {event["EventId"] for event in self.events}:
                return 400, "", {}
            self.started += requested
            return 200, "", {}
        return 200, self.document or json.dumps({"DocumentIncarnation": 1, "Events": self.events}), {}


@dataclass
class FakeGcp(FakeMetadata):
    """Google Cloud's answer carries the header that its request needs."""

    is_preempted: bool = False

    def reply(self, method: str, path: str, headers: dict[str, str], body: str) -> Reply:
        if headers.get("metadata-flavor") != "Google":
            return 403, "", {}
        own = {"Metadata-Flavor": "Google"}
        if (method, path) == ("GET", "/computeMetadata/v1/instance/preempted"):
            return 200, "TRUE" if self.is_preempted else "FALSE", own
        return 404, "", own


Service = TypeVar("Service", bound=FakeMetadata)


@contextlib.contextmanager
def serve_metadata(service: Service) -> Iterator[Service]:
    """Serve on a free port of loopback, or at the service's ``endpoint``."""
    host, _, port = (service.endpoint or "http://127.0.0.1:0").removeprefix("http://").rpartition(":")
    server = _Server((host, int(port)), service)
    service.endpoint = f"http://{host}:{server.server_port}"
    service.closing.clear()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.closing.set()
        server.shutdown()
        server.close_connections()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], service: FakeMetadata) -> None:
        super().__init__(address, _Handler)
        self.service = service
        self.open_sockets: set[socket.socket] = set()

    def close_connections(self) -> None:
        for open_socket in list(self.open_sockets):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet for each answer; a second one would wait 40 ms for the first one's acknowledgement.
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.service.num_connections += 1
        self.server.open_sockets.add(self.connection)

    def finish(self) -> None:
        self.server.open_sockets.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        service = self.server.service
        service.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, text, own = service.failure_status, "", {}
        if service.failure == "nonsense":
            status, text = 200, '{"Events": [{'
        elif service.failure == "hang":
            service.closing.wait()
        elif not service.failure:
            status, text, own = service.reply(self.command, self.path, headers, body)
        if service.failure in ("hang", "cut"):
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**own, "Content-Length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


def announce_loss(service: FakeMetadata, notice_s: float) -> float:
    """Announce that the service's machine goes in so many seconds; returns the Unix time of now."""
    now_unix_s = time.time()
    if isinstance(service, FakeAws):
        service.interruption = json.dumps({"action": "terminate", "time": format_aws_time(now_unix_s + notice_s)})
    elif isinstance(service, FakeAzure):
        service.announce("Preempt", "event-1", not_before=formatdate(now_unix_s + notice_s, usegmt=True))
    return now_unix_s


def format_aws_time(unix_s: float) -> str:
    """As EC2's metadata has it, in UTC."""
    return datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
