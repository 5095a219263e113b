"""Which rank this process is, from the environment that its launcher or the job set, and from torch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = re.compile(r"([0-9]+)(?:\(x[0-9]+\))?")


@dataclass(frozen=True)
class _Launcher:
    """The variables in which a launcher says a process's place; several names where its versions differ.

    Args:
        rank: among all processes that it started; so ``num_ranks`` counts all of them.
        local_rank: among those of this machine; so ``num_local_ranks``.
    """

    rank: tuple[str, ...]
    local_rank: tuple[str, ...]
    num_ranks: tuple[str, ...]
    num_local_ranks: tuple[str, ...]


# DeepSpeed's launcher says LOCAL_SIZE.
_TORCHRUN = _Launcher(("RANK",), ("LOCAL_RANK",), ("WORLD_SIZE",), ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))
# Open MPI; MVAPICH; MPICH and Intel MPI (Hydra); Slurm. https://docs.open-mpi.org/en/main/tuning-apps/environment-var.html,
# https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
_OTHERS = (
    _Launcher(
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        ("MV2_COMM_WORLD_RANK",),
        ("MV2_COMM_WORLD_LOCAL_RANK",),
        ("MV2_COMM_WORLD_SIZE",),
        ("MV2_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Launcher(
        ("PMI_RANK", "PMIX_RANK"),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        ("PMI_SIZE",),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
    _Launcher(
        ("SLURM_PROCID",),
        ("SLURM_LOCALID",),
        ("SLURM_NTASKS", "SLURM_NPROCS"),
        ("SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE"),
    ),
)


def find_rank() -> tuple[int, int, int | None]:
    """This process's rank, local rank and, where known, the number of ranks on this node."""
    env = os.environ
    launcher = _find_launcher(env)
    local_rank = _read(env, launcher.local_rank) or 0
    num_local_ranks = _read(env, launcher.num_local_ranks)
    rank = _read(env, launcher.rank)
    if rank is None:
        rank = int(env.get("NODE_RANK") or 0) * int(env.get("NPROC_PER_NODE") or 1) + local_rank
    elif launcher is not _TORCHRUN and _is_of_one_node(env, launcher):
        rank += int(env["NODE_RANK"]) * (_read(env, launcher.num_ranks) or 1)
    if has_process_group():
        distributed = sys.modules["torch"].distributed
        rank = distributed.get_rank()
        num_devices = int(env.get("NPROC_PER_NODE") or 1)
        if _read(env, launcher.local_rank) is None and distributed.get_world_size() == _read(env, ("WORLD_SIZE",)):
            # A process on each of the job's devices, as torch.multiprocessing.spawn starts them.
            local_rank, num_local_ranks = rank % num_devices, num_devices
    return rank, local_rank, num_local_ranks


def is_rank_known() -> bool:
    """Whether a launcher or a process group says which rank this is; otherwise ``find_rank`` can only guess."""
    launcher = _find_launcher(os.environ)
    return has_process_group() or _read(os.environ, (*launcher.rank, *launcher.local_rank)) is not None


def find_place() -> tuple[int, int]:
    """Rank and number of ranks: of the process group, else as the launcher set them, else (0, 1)."""
    if has_process_group():
        distributed = sys.modules["torch"].distributed
        return distributed.get_rank(), distributed.get_world_size()
    # A command that runs once per node has a WORLD_SIZE, but no RANK: torchrun gives that to its processes.
    launcher = _find_launcher(os.environ)
    rank, num_ranks = _read(os.environ, launcher.rank), _read(os.environ, launcher.num_ranks)
    if rank is None or num_ranks is None:
        return 0, 1
    if launcher is not _TORCHRUN and _is_of_one_node(os.environ, launcher):
        return find_rank()[0], num_ranks * int(os.environ["NUM_NODES"])
    return rank, num_ranks


def has_process_group() -> bool:
    """Whether ``torch.distributed`` is in use."""
    if "torch" not in sys.modules:  # Never import torch here: scripts without it must not pay for it.
        return False
    # Another thread may be importing it.
    is_initialized = getattr(getattr(sys.modules["torch"], "distributed", None), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


def _find_launcher(env: Mapping[str, str]) -> _Launcher:
    """The one whose rank this process has; torchrun's where there is none."""
    return next((one for one in (_TORCHRUN, *_OTHERS) if _read(env, one.rank) is not None), _TORCHRUN)


def _is_of_one_node(env: Mapping[str, str], launcher: _Launcher) -> bool:
    """Whether each node of the job has started its launcher for itself: ``mpirun -np 4`` in a command."""
    num_ranks = _read(env, launcher.num_ranks)
    is_whole = num_ranks is not None and num_ranks == _read(env, launcher.num_local_ranks)
    return is_whole and int(env.get("NUM_NODES") or 1) > 1 and bool(env.get("NODE_RANK"))


def _read(env: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    # Slurm writes "4(x2)" for 4 on each of 2 nodes, and "4,2" where they differ.
    return next((int(match[1]) for name in names if (match := _NUMBER.fullmatch(env.get(name, "")))), None)
