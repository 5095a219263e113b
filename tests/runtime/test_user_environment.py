"""What of a Ray worker's environment the user's code finds."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest

from periflow_ray.runtime.ray_train import worker_environment
from periflow_ray.runtime.ray_train.worker_environment import UserEnvironmentCallback
from periflow_ray.runtime.user_environment import find_foreign_variables, is_of_launcher

MACHINES = {"PATH": "/bin", "HOME": "/root", "AWS_REGION": "eu-west-1", "CUDA_VISIBLE_DEVICES": "0"}
# A worker's own srun needs these to find the allocation that it is in.
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CONF": "/etc/slurm.conf"}
STRAY = {
    "SLURM_PROCID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NODELIST": "n1",
    "OMPI_COMM_WORLD_RANK": "0",
    "PMIX_RANK": "0",
    "PMI_FD": "7",
    "KUBERNETES_PORT": "tcp://10.0.0.1:443",
}
IN_A_POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
SET_BY_RAY = {"OMP_NUM_THREADS": "1", "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace"}


def test_what_rays_launcher_has_set_is_foreign_and_what_the_machine_has_is_not():
    started_with = {**MACHINES, **ALLOCATION, **STRAY, **IN_A_POD, "SPT_NOENV": "1"}
    foreign = find_foreign_variables({**started_with, **SET_BY_RAY}, started_with, is_alone=True)
    assert foreign == STRAY.keys() | SET_BY_RAY.keys() | {"SPT_NOENV"}


def test_what_the_user_has_set_of_the_same_name_stays():
    environ = {"OMP_NUM_THREADS": "4", "PYTHONBREAKPOINT": "pdb.set_trace"}
    assert find_foreign_variables(environ, environ, is_alone=True) == frozenset()


def test_workers_that_share_a_machine_keep_the_threads_of_their_cpus():
    assert find_foreign_variables(SET_BY_RAY, {}, is_alone=False) == {"PYTHONBREAKPOINT"}


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "OMPI_MCA_btl", "SLURM_JOB_ID", "PMIXED", "OMP_NUM_THREADS"])
def test_not_every_name_is_a_launchers(name):
    assert not is_of_launcher(name)


def test_each_worker_is_told_whether_it_is_alone_and_forgets(monkeypatch):
    told = []

    def execute(function, nodes) -> None:
        told.append((function, nodes))

    workers = [types.SimpleNamespace(metadata=types.SimpleNamespace(node_id=node)) for node in ("a", "b", "b")]
    UserEnvironmentCallback().after_worker_group_start(
        types.SimpleNamespace(get_workers=lambda: workers, execute=execute)
    )
    ((forget, nodes),) = told
    assert nodes == ["a"]
    environ = {**MACHINES, **STRAY, **SET_BY_RAY}
    monkeypatch.setattr(worker_environment, "_read_started_with", lambda: MACHINES)
    monkeypatch.setattr(
        worker_environment.ray,
        "get_runtime_context",
        lambda: types.SimpleNamespace(get_node_id=lambda: "a"),
    )
    monkeypatch.setattr(worker_environment.os, "environ", environ)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    forget(nodes)
    assert environ == MACHINES


def test_torch_has_as_many_threads_as_in_a_process_of_its_own():
    script = (
        "import os, torch\n"
        "from periflow_ray.runtime.ray_train.worker_environment import _count_processors\n"
        "print(torch.get_num_threads(), _count_processors(are_cores=torch.backends.mkl.is_available()))"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    own, counted = done.stdout.split()
    assert own == counted
