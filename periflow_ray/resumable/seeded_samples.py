"""Random augmentations that are the same after a resume."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy
import torch
from torch.utils.data import Dataset, get_worker_info


class SeededSamples(Dataset[Any]):
    """A dataset whose random augmentations follow from seed, epoch and index alone.

    So they do not depend on which worker process loads a sample, or on how often the training was interrupted. Covers
    the generators of Python, NumPy and torch's CPU; they are left as they were.

    Args:
        dataset: where ``dataset[index]`` may draw random numbers.
        seed: the same on all ranks.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        # In memory that persistent workers share: their copy of this object is made only once.
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Other augmentations from now on; called by ``ResumableDataLoader``."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        text = f"{self.seed} {int(self._epoch)} {index}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        with _generators_seeded(seed):
            return self.dataset[index]


@contextlib.contextmanager
def _generators_seeded(seed: int) -> Iterator[None]:
    # A worker process has no other use for its generators than samples.
    is_worker = get_worker_info() is not None
    states = None if is_worker else (random.getstate(), numpy.random.get_state(), torch.get_rng_state())
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if states is not None:
            random.setstate(states[0])
            numpy.random.set_state(states[1])
            torch.set_rng_state(states[2])
