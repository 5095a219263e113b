"""Which rank a process takes itself for, whoever started it."""

from __future__ import annotations

import os
import sys
import types

import pytest

from periflow_ray.sdk.rank import find_place, find_rank, has_process_group

# The second of two nodes with four devices each, as a command that runs once per node finds it.
NODE = {"NODE_RANK": "1", "NPROC_PER_NODE": "4", "WORLD_SIZE": "8", "NUM_NODES": "2"}
LAUNCHERS = {
    "torchrun": ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    "DeepSpeed": ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE"),
    "MVAPICH": (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
    "Slurm": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"),
}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in LAUNCHERS.values():
        for name in (*names, *NODE, "SLURM_STEP_TASKS_PER_NODE"):
            monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], values: tuple[int, ...]) -> None:
    for name, value in {**NODE, **{name: str(value) for name, value in zip(names, values, strict=True)}}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("local_rank", range(4))
def test_each_process_of_a_node_is_another_rank(monkeypatch, launcher, local_rank):
    set_all(monkeypatch, LAUNCHERS[launcher], (4 + local_rank, local_rank, 8, 4))
    assert find_rank() == (4 + local_rank, local_rank, 4)
    assert find_place() == (4 + local_rank, 8)


def test_slurm_counts_equal_nodes_in_its_own_way(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "4(x2)")
    assert find_rank() == (5, 1, 4)


@pytest.mark.parametrize("launcher", ["Open MPI", "MVAPICH", "MPICH", "Slurm"])
def test_a_launcher_that_each_node_starts_for_itself_counts_the_ranks_of_one_node(monkeypatch, launcher):
    set_all(monkeypatch, LAUNCHERS[launcher], (3, 3, 4, 4))
    assert find_rank() == (7, 3, 4)
    assert find_place() == (7, 8)


def test_torchrun_below_srun_or_mpirun_knows_better(monkeypatch):
    set_all(monkeypatch, LAUNCHERS["Slurm"], (1, 0, 2, 1))
    set_all(monkeypatch, LAUNCHERS["Open MPI"], (1, 0, 2, 1))
    set_all(monkeypatch, LAUNCHERS["torchrun"], (6, 2, 8, 4))
    assert find_rank() == (6, 2, 4)
    assert find_place() == (6, 8)


def test_a_process_without_a_launcher_is_its_nodes_first_rank(monkeypatch):
    assert (find_rank(), find_place()) == ((0, 0, None), (0, 1))
    set_all(monkeypatch, (), ())
    assert (find_rank(), find_place()) == ((4, 0, None), (0, 1))


def test_values_that_are_no_numbers_say_nothing(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "2")
    monkeypatch.setenv("SLURM_LOCALID", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4,2")
    assert find_rank() == (2, 2, None)
    assert "OMPI_COMM_WORLD_RANK" not in os.environ


def test_a_torch_that_another_thread_is_importing_has_no_process_group_yet(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert not has_process_group()
    monkeypatch.setattr(sys.modules["torch"], "distributed", types.ModuleType("torch.distributed"), raising=False)
    assert not has_process_group()
