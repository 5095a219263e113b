"""Stop between any two batches and go on exactly: the data loader's position and the random generators' states.

The examples cifar, pth-lightning and dkt carry the same file, so that each folder runs alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class ResumableDataLoader(DataLoader):
    """A shuffling loader over one rank's share of a dataset whose position can be saved and restored.

    Epoch and seed alone decide the order, and global batch k holds the same samples whatever the number of
    ranks. Incomplete last batches are dropped. A dataset with ``set_epoch`` is told the epoch.

    Args:
        batch_size: samples in a batch of this rank.
        rank: this process among ``world_size`` processes that share the dataset.
        loader_options: passed on to ``DataLoader``, for example ``num_workers``.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, *, rank: int, world_size: int, seed: int, **loader_options: Any
    ) -> None:
        self.epoch = 0
        self.num_batches_taken = 0
        self.seed = seed
        sampler = _OffsetSampler(dataset, num_replicas=world_size, rank=rank, seed=seed, drop_last=True)
        # Its own generator, so that starting an epoch draws nothing from the global one.
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=True,
            generator=torch.Generator(),
            **loader_options,
        )

    def __iter__(self) -> Iterator[Any]:
        if self.num_batches_taken >= len(self):
            self.epoch += 1
            self.num_batches_taken = 0
        self.generator.manual_seed(self.seed + self.epoch)
        self.sampler.set_epoch(self.epoch)
        self.sampler.num_skipped = self.num_batches_taken * self.batch_size
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        for batch in super().__iter__():
            self.num_batches_taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "num_batches_taken": self.num_batches_taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]
        self.num_batches_taken = state["num_batches_taken"]


class _OffsetSampler(DistributedSampler):
    """DistributedSampler that leaves out the first ``num_skipped`` samples of the epoch without loading them."""

    num_skipped = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(super().__iter__(), self.num_skipped, None)


def gather_rng_states() -> list[dict[str, Any]]:
    """The random generators' states of every rank, in rank order. Collective: call on all ranks."""
    algorithm, keys, *rest = numpy.random.get_state()
    own = {
        "python": random.getstate(),
        # Plain numbers, so that torch.load(weights_only=True) can read them back.
        "numpy": (algorithm, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, own)
    return states


def restore_rng_states(states: list[dict[str, Any]]) -> None:
    """Give this rank its generators back; with another number of ranks there is nothing exact to restore."""
    is_distributed = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if is_distributed else (0, 1)
    if len(states) != world_size:
        return
    own = states[rank]
    version, internal_state, gauss_next = own["python"]
    random.setstate((version, tuple(internal_state), gauss_next))
    numpy.random.set_state(tuple(own["numpy"]))
    torch.set_rng_state(own["torch"].cpu())
    if own["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(own["cuda"].cpu())
