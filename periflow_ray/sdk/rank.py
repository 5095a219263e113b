"""Which rank this process is, from the environment that torchrun, Lightning or the job set, and from torch."""

from __future__ import annotations

import os
import sys


def find_rank() -> tuple[int, int, int | None]:
    """This process's rank, local rank and, where known, the number of ranks on this node."""
    env = os.environ
    local_world_size = int(env["LOCAL_WORLD_SIZE"]) if env.get("LOCAL_WORLD_SIZE") else None
    local_rank = int(env.get("LOCAL_RANK") or 0)
    rank = int(env.get("RANK") or int(env.get("NODE_RANK") or 0) * int(env.get("NPROC_PER_NODE") or 1) + local_rank)
    if has_process_group():
        rank = sys.modules["torch"].distributed.get_rank()
    return rank, local_rank, local_world_size


def find_place() -> tuple[int, int]:
    """Rank and number of ranks: of the process group, else as torchrun set them, else (0, 1)."""
    if has_process_group():
        distributed = sys.modules["torch"].distributed
        return distributed.get_rank(), distributed.get_world_size()
    # A command that runs once per node has a WORLD_SIZE, but no RANK: torchrun gives that to its processes.
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def has_process_group() -> bool:
    """Whether ``torch.distributed`` is in use."""
    if "torch" not in sys.modules:  # Never import torch here: scripts without it must not pay for it.
        return False
    distributed = sys.modules["torch"].distributed
    return bool(distributed.is_available() and distributed.is_initialized())
