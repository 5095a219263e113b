"""Which of the training's processes this one is."""

from __future__ import annotations

import os

import torch.distributed as dist


def find_rank() -> tuple[int, int]:
    """Rank and number of ranks: of the process group, else as torchrun set them, else (0, 1)."""
    if has_process_group():
        return dist.get_rank(), dist.get_world_size()
    # A command that runs once per node has a WORLD_SIZE, but no RANK: torchrun gives that to its processes.
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def has_process_group() -> bool:
    """Whether ``torch.distributed`` is in use."""
    return dist.is_available() and dist.is_initialized()
