"""The states of all ranks' random generators, for a checkpoint."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy
import torch
import torch.distributed as dist

from periflow_ray.sdk.rank import has_process_group


def gather_rng_states() -> list[dict[str, Any]]:
    """The random generators' states of every rank, in rank order. Collective: call on all ranks.

    Those of Python, NumPy, torch and this rank's CUDA device; ``torch.load(weights_only=True)`` reads them back.
    """
    algorithm, keys, *rest = cast(Any, numpy.random.get_state())
    own = {
        "python": random.getstate(),
        "numpy": (algorithm, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    if not has_process_group():
        return [own]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, own)
    return states


def restore_rng_states(states: list[dict[str, Any]]) -> None:
    """Give this rank its generators back; with another number of ranks there is nothing exact to restore."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if has_process_group() else (0, 1)
    if len(states) != world_size:
        return
    own = states[rank]
    version, internal_state, gauss_next = own["python"]
    random.setstate((version, tuple(internal_state), gauss_next))
    numpy.random.set_state(tuple(own["numpy"]))
    torch.set_rng_state(own["torch"].cpu())
    if own["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"].cpu())
