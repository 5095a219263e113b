"""Which embedded cluster a shell gets, with the stand-in of a job server as the one that runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.job_server import JobServer, serve_jobs

from periflow_ray.errors import ClusterError
from periflow_ray.jobs import read_record
from periflow_ray.plan import build_plan, local_vm
from periflow_ray.ray_jobs import RayJobs
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit import local_cluster, local_supervisor
from periflow_ray.submit.jobs import submit_job
from periflow_ray.submit.local_cluster import (
    ClusterFacts,
    LocalCluster,
    LocalClusterDir,
    ensure_local_cluster,
    hold_local_cluster,
)

THIS = ClusterFacts(sys.prefix, None)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalClusterDir:
    monkeypatch.setenv(local_cluster.DIR_VARIABLE, str(tmp_path / "cluster"))
    monkeypatch.setattr(local_cluster.ClusterFacts, "of_this_process", classmethod(lambda cls: THIS))
    directory = LocalClusterDir()
    with directory.lock("tests"):
        directory.create_token()
    return directory


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, server: JobServer) -> list[LocalClusterDir]:
    """Clusters that were started, all of them the stand-in."""
    starts: list[LocalClusterDir] = []

    def start(directory: LocalClusterDir) -> LocalCluster:
        starts.append(directory)
        return LocalCluster(server.address, os.getpid(), THIS)

    monkeypatch.setattr(local_cluster, "_start", start)
    return starts


@pytest.mark.parametrize("facts", [THIS, ClusterFacts()], ids=["the same", "of an earlier version"])
def test_a_shell_like_the_first_one_uses_the_running_cluster(directory, server, started, facts):
    directory.write(LocalCluster(server.address, os.getpid(), facts))
    server.jobs["a job"] = {"status": "RUNNING"}
    said: list[str] = []
    assert ensure_local_cluster(said.append).address == server.address
    assert (started, said) == ([], [])


OTHER_PYTHON = ClusterFacts("/opt/conda/envs/old", None)
OTHER_GPUS = ClusterFacts(sys.prefix, "0,1")


@pytest.mark.parametrize(
    ("facts", "difference"),
    [
        (OTHER_PYTHON, f"the Python of /opt/conda/envs/old, and not that of {sys.prefix}"),
        (OTHER_GPUS, "CUDA_VISIBLE_DEVICES=0,1, and not all GPUs"),
    ],
)
def test_a_cluster_of_another_python_or_other_gpus_is_replaced_when_it_is_idle(
    directory, server, started, facts, difference
):
    directory.write(LocalCluster(server.address, os.getpid(), facts))
    server.jobs["a job"] = {"status": "RUNNING"}
    with pytest.raises(ClusterError) as caught:
        ensure_local_cluster()
    assert str(caught.value) == (
        f"the embedded Ray cluster of this machine has {difference}, and it runs jobs of the shell that started it. "
        "Wait for them (periflow-ray job list), or stop them, or give this shell a cluster of its own: export "
        "PERIFLOW_LOCAL_CLUSTER_DIR=~/another-cluster"
    )
    assert started == []
    server.jobs["a job"]["status"] = "SUCCEEDED"
    said: list[str] = []
    ensure_local_cluster(said.append)
    assert (len(started), said) == (1, [f"Starting another embedded Ray cluster: the idle one has {difference} ..."])


def test_a_job_goes_to_the_cluster_that_took_the_place_of_the_one_that_was_asked(directory, server, started, tmp_path):
    root = StorageRoot(str(tmp_path / "storage"))
    with serve_jobs() as former:
        asked = RayJobs(former.address)
    # Meanwhile a shell with another Python found it idle, and started its own, which has ended since.
    directory.write(LocalCluster(asked.address, os.getpid(), THIS))
    spec = JobSpec.model_validate(
        {"vm": "local", "num_devices": 1, "job_setting": {"type": "custom", "docker": {"command": "true"}}}
    )
    record = submit_job(
        root,
        build_plan(spec, local_vm(), storage_uri=root.uri),
        asked,
        workspace=None,
        secrets={},
        created_by="ada",
        cloud_environment_dir=directory.cloud_environment_dir,
        hold_cluster=hold_local_cluster,
    )
    assert (len(started), list(server.jobs)) == (1, [record.ray_submission_id])
    assert read_record(root, record.job_id).ray_address == record.ray_address == server.address
    # Its driver finds the shell's variables.
    assert len(list(directory.cloud_environment_dir.iterdir())) == 1


def test_nobody_replaces_a_cluster_while_a_job_is_submitted_and_who_waits_is_told_for_whom(
    directory, server, started, wait_until
):
    directory.write(LocalCluster(server.address, os.getpid(), THIS))
    said: list[str] = []
    with hold_local_cluster():
        waiting = threading.Thread(target=ensure_local_cluster, args=(said.append,))
        waiting.start()
        wait_until(lambda: bool(said))
        assert said == [f"Waiting for process {os.getpid()}, which submits a job ..."]
        assert waiting.is_alive()
    waiting.join()
    assert (started, len(said)) == ([], 1)


def test_the_facts_of_a_cluster_are_in_its_record(directory):
    directory.write(LocalCluster("http://127.0.0.1:1", 7, OTHER_GPUS))
    assert directory.read() == LocalCluster("http://127.0.0.1:1", 7, OTHER_GPUS)


def test_a_venv_is_another_python_than_its_base(tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    script = "from periflow_ray.submit.local_cluster import ClusterFacts; print(ClusterFacts.of_this_process().python)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    printed = subprocess.run([venv / "bin/python", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == str(venv)
    assert ClusterFacts.of_this_process().describe_difference(ClusterFacts(str(venv))) is not None


def test_of_rays_variables_the_cluster_takes_over_those_that_tune_it():
    environ = {
        "HOME": "/ada",
        "RAY_memory_usage_threshold": "0.5",
        "RAY_health_check_timeout_ms": "1000",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
        "RAY_BACKEND_LOG_LEVEL": "debug",
        # Where a cluster is, and who one is in it.
        "RAY_ADDRESS": "elsewhere",
        "RAY_JOB_ID": "02000000",
        "RAY_AUTH_TOKEN": "of another cluster",
        "RAY_TMPDIR": "/elsewhere",
        # Only a command's matter.
        "OMP_NUM_THREADS": "8",
        "PERIFLOW_SESSION": "of a job",
    }
    assert sorted(local_supervisor._inherit(environ)) == [
        "HOME",
        "RAY_BACKEND_LOG_LEVEL",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S",
        "RAY_health_check_timeout_ms",
        "RAY_memory_usage_threshold",
    ]


@pytest.mark.parametrize(("given", "effective"), [({}, "0"), ({"RAY_memory_monitor_refresh_ms": "250"}, "250")])
def test_rays_memory_monitor_is_off_unless_the_shell_has_it_on(directory, tmp_path, monkeypatch, given, effective):
    monkeypatch.delenv("RAY_memory_monitor_refresh_ms", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    env = local_supervisor._head_env(directory, tmp_path)
    assert (env["RAY_memory_monitor_refresh_ms"], env["RAY_AUTH_MODE"]) == (effective, "token")
