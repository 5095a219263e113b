"""The Jobs API client against a server that answers as Ray's does."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.job_server import JobServer

from periflow_ray import ray_jobs
from periflow_ray.errors import ClusterError, UsageError
from periflow_ray.ray_jobs import RayJob, RayJobs, connect


def test_a_job_is_submitted_read_and_stopped(server):
    cluster = RayJobs(server.address + "/")
    cluster.check()
    assert cluster.has_running_jobs() is False
    cluster.submit("python -m periflow_ray.runtime.driver", "periflow-1")
    assert server.requests[-1] == (
        "POST",
        "/api/jobs/",
        {"entrypoint": "python -m periflow_ray.runtime.driver", "submission_id": "periflow-1"},
    )
    assert cluster.read("periflow-1") == RayJob("PENDING", None)
    assert cluster.has_running_jobs() is True
    assert cluster.read_driver_output("periflow-1") == "first line\nsecond line\n"
    cluster.stop("periflow-1")
    assert cluster.read("periflow-1") == RayJob("STOPPED", None)
    assert cluster.has_running_jobs() is False


def test_a_job_without_variables_asks_for_no_runtime_environment(server):
    RayJobs(server.address).submit("true", "periflow-1")
    assert server.requests == [("POST", "/api/jobs/", {"entrypoint": "true", "submission_id": "periflow-1"})]


def test_a_job_that_the_cluster_does_not_know_is_none(server):
    cluster = RayJobs(server.address)
    assert cluster.read("periflow-9") is None
    assert cluster.read_driver_output("periflow-9") == ""
    cluster.stop("periflow-9")


def test_a_refusal_is_passed_on_with_the_clusters_own_words(server):
    cluster = RayJobs(server.address)
    cluster.submit("true", "periflow-1")
    with pytest.raises(ClusterError) as caught:
        cluster.submit("true", "periflow-1")
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


def test_a_cluster_that_is_not_ready_for_jobs_yet_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(ray_jobs, "RETRY_INTERVAL_S", 0.01)
    server.num_refusals = 3
    RayJobs(server.address).submit("true", "periflow-1")
    assert list(server.jobs) == ["periflow-1"]
    assert len(server.requests) == 4


def test_a_cluster_that_never_gets_ready_is_given_up(server, monkeypatch):
    monkeypatch.setattr(ray_jobs, "AGENT_TIMEOUT_S", 0.0)
    server.num_refusals = 1_000_000
    with pytest.raises(ClusterError, match="No available agent to submit job"):
        RayJobs(server.address).submit("true", "periflow-1")
