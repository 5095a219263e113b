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
    if "torch" in sys.modules:  # Never import torch here: scripts without it must not pay for it.
        distributed = sys.modules["torch"].distributed
        if distributed.is_available() and distributed.is_initialized():
            rank = distributed.get_rank()
    return rank, local_rank, local_world_size
