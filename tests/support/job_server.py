"""A small HTTP server on loopback that answers as Ray's job server does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JobServer(ThreadingHTTPServer):
    """Keeps submitted jobs in memory; ``token`` is asked for when it is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token: str | None = None
        self.num_refusals = 0
        """How many more jobs are refused because the cluster is not ready for them."""
        self.on_submit: Callable[[], object] = lambda: None
        """Called in a thread of its own when a job was taken, as its driver would start."""
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve_jobs() -> Iterator[JobServer]:
    """Answers while it is open."""
    with JobServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: JobServer

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((method, self.path, json.loads(body) if body else None))
        token = self.server.token
        if token is not None and self.headers.get("Authorization") is None:
            return self._send(401, "Unauthorized: Missing authentication token")
        if token is not None and self.headers["Authorization"] != f"Bearer {token}":
            return self._send(403, "Forbidden: Invalid authentication token")
        return self._send(*self._route(method, body))

    def _route(self, method: str, body: bytes) -> tuple[int, Any]:
        parts = self.path.strip("/").split("/")
        jobs = self.server.jobs
        if parts == ["api", "version"]:
            return 200, {"version": "4", "ray_version": "2.60.0"}
        if parts == ["api", "jobs"] and method == "GET":
            return 200, list(jobs.values())
        if parts == ["api", "jobs"] and self.server.num_refusals:
            self.server.num_refusals -= 1
            return 500, "No available agent to submit job, please try again later."
        if parts == ["api", "jobs"]:
            job = json.loads(body)
            if job["submission_id"] in jobs:
                return 500, f"Job with submission_id {job['submission_id']} already exists."
            jobs[job["submission_id"]] = {"status": "PENDING", "message": None}
            threading.Thread(target=self.server.on_submit).start()
            return 200, {"submission_id": job["submission_id"]}
        if parts[2] not in jobs:
            return 404, f"Job {parts[2]} does not exist"
        if parts[3:] == ["logs"]:
            return 200, {"logs": "first line\nsecond line\n"}
        if parts[3:] == ["stop"]:
            jobs[parts[2]]["status"] = "STOPPED"
            return 200, {"stopped": True}
        return 200, jobs[parts[2]]

    def _send(self, status: int, answer: Any) -> None:
        content = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass
