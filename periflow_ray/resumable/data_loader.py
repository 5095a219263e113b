"""A ``DataLoader`` that knows which batches the training has taken, whatever its workers have read ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset

from periflow_ray.errors import PeriFlowError
from periflow_ray.resumable.sampler import ResumableSampler, resumable_sampler
from periflow_ray.resumable.seeded_samples import SeededSamples


class ResumableDataLoader(DataLoader[Any]):
    """A ``DataLoader`` over one rank's share of a dataset, whose place can be saved and restored.

    Looping over it gives the rest of the epoch; after an epoch's last batch the next loop begins the next one. A
    dataset with ``set_epoch`` is told the epoch. ``len`` is the number of batches in the epoch, taken ones included.

    Args:
        batch_size: samples in a batch of this rank.
        drop_last: leave out the last batch where it is not a whole one on every rank.
        loader_options: passed on to ``DataLoader``, for example ``num_workers``.
    """

    sampler: ResumableSampler

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int = 1,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        **loader_options: Any,
    ) -> None:
        has_deaf_workers = loader_options.get("persistent_workers") and not isinstance(dataset, SeededSamples)
        if has_deaf_workers and hasattr(dataset, "set_epoch"):
            raise PeriFlowError(
                "persistent_workers=True keeps copies of the dataset that its set_epoch does not reach. Leave it out, "
                "or let periflow_ray.resumable.SeededSamples decide the samples' randomness."
            )
        sampler = resumable_sampler(
            dataset, seed=seed, shuffle=shuffle, drop_last=drop_last, rank=rank, world_size=world_size
        )
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=drop_last, **loader_options)

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the newest batch belongs to."""
        return self.sampler.epoch

    def __iter__(self) -> Any:
        return self.sampler._count(self, super().__iter__)

    def __len__(self) -> int:
        num_left = self.sampler.count_batches_left(self.batch_size or 1, drop_last=self.drop_last)
        return self.sampler.num_batches_taken + num_left

    def state_dict(self) -> dict[str, Any]:
        """The place in the data; see ``ResumableSampler``."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to a saved place; see ``ResumableSampler``."""
        self.sampler.load_state_dict(state_dict)
