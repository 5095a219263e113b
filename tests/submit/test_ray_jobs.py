"""The Jobs API client against a small HTTP server on loopback that answers as Ray's job server does."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from periflow_ray.errors import ClusterError, UsageError
from periflow_ray.submit.ray_jobs import RayJob, RayJobs, connect


class JobServer(ThreadingHTTPServer):
    """Keeps submitted jobs in memory; ``token`` is asked for when it is set."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token: str | None = None
        self.jobs: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str, Any]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


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
        if parts == ["api", "jobs"]:
            job = json.loads(body)
            if job["submission_id"] in jobs:
                return 500, f"Job with submission_id {job['submission_id']} already exists."
            jobs[job["submission_id"]] = {"status": "PENDING", "message": None}
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


@pytest.fixture
def server() -> Iterator[JobServer]:
    with JobServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_job_is_submitted_read_and_stopped(server):
    cluster = RayJobs(server.address + "/")
    cluster.check()
    assert cluster.has_running_jobs() is False
    cluster.submit("python -m periflow_ray.runtime.driver", "periflow-1", {"KEY": "v"})
    assert server.requests[-1] == (
        "POST",
        "/api/jobs/",
        {
            "entrypoint": "python -m periflow_ray.runtime.driver",
            "submission_id": "periflow-1",
            "runtime_env": {"env_vars": {"KEY": "v"}},
        },
    )
    assert cluster.read("periflow-1") == RayJob("PENDING", None)
    assert cluster.has_running_jobs() is True
    assert cluster.read_driver_output("periflow-1") == "first line\nsecond line\n"
    cluster.stop("periflow-1")
    assert cluster.read("periflow-1") == RayJob("STOPPED", None)
    assert cluster.has_running_jobs() is False


def test_a_job_without_variables_asks_for_no_runtime_environment(server):
    RayJobs(server.address).submit("true", "periflow-1", {})
    assert server.requests == [("POST", "/api/jobs/", {"entrypoint": "true", "submission_id": "periflow-1"})]


def test_a_job_that_the_cluster_does_not_know_is_none(server):
    cluster = RayJobs(server.address)
    assert cluster.read("periflow-9") is None
    assert cluster.read_driver_output("periflow-9") == ""
    cluster.stop("periflow-9")


def test_a_refusal_is_passed_on_with_the_clusters_own_words(server):
    cluster = RayJobs(server.address)
    cluster.submit("true", "periflow-1", {})
    with pytest.raises(ClusterError) as caught:
        cluster.submit("true", "periflow-1", {})
    assert str(caught.value) == (
        f"the Ray cluster at {server.address} refused POST /api/jobs/: 500 "
        "Job with submission_id periflow-1 already exists."
    )


def test_a_missing_or_wrong_token_is_said_to_be(server):
    server.token = "right"
    for token, status in ((None, 401), ("wrong", 403)):
        with pytest.raises(ClusterError) as caught:
            RayJobs(server.address, token).check()
        assert str(caught.value) == (
            f"the Ray cluster at {server.address} refused the token ({status}). Set RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to the file with the cluster's token."
        )
    RayJobs(server.address, "right").check()


def test_the_token_comes_from_the_given_file_the_variable_or_rays_own_places(
    server: JobServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    connect(server.address).check()
    server.token = "right"
    with pytest.raises(ClusterError):
        connect(server.address).check()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("right\n")
    connect(server.address).check()
    (tmp_path / "token").write_text("right")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    connect(server.address).check()
    monkeypatch.setenv("RAY_AUTH_TOKEN", " right ")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    connect(server.address).check()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    connect(server.address, tmp_path / "token").check()


def test_a_token_file_that_is_not_there_means_no_token(server, tmp_path):
    connect(server.address, tmp_path / "missing").check()
    assert server.requests == [("GET", "/api/version", None)]


def test_an_address_where_nothing_answers_is_said_to_be():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(ClusterError) as caught:
            RayJobs(address).check()
    assert str(caught.value) == (
        f"no Ray cluster answers at {address} (ConnectionError). Is it up, and is its dashboard port reachable? Start "
        "one with 'ray up', or run on this machine with --local."
    )


def test_the_users_proxy_does_not_get_to_see_the_token(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    RayJobs(server.address, "secret").check()


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "head:6379", ""])
def test_an_address_of_another_kind_is_refused_with_the_right_one(address):
    with pytest.raises(UsageError) as caught:
        RayJobs(address)
    assert str(caught.value) == (
        f"cluster address '{address}' is not the address of Ray's job server. Use http://HOST:8265, the address of the "
        "cluster's dashboard (for a remote cluster: ray dashboard CLUSTER.yaml, then http://127.0.0.1:8265)."
    )
