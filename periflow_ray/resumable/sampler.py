"""Which samples a rank takes next: an epoch's order, the rank's turns in it, and a place that can be saved."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, DistributedSampler, Sampler

from periflow_ray.errors import PeriFlowError
from periflow_ray.sdk.rank import find_place

_CHUNK_SIZE = 1 << 16
# What decides an epoch's order; a place in the middle of another order would mean nothing.
_ORDER_KEYS = ("dataset_size", "seed", "shuffle")


def resumable_sampler(
    dataset: Any,
    *,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> ResumableSampler:
    """A sampler that goes on in the middle of an epoch, also where a ``DataLoader``'s workers read ahead.

        sampler = periflow_ray.resumable_sampler(dataset, seed=0)
        loader = DataLoader(dataset, batch_size=32, sampler=sampler, num_workers=4)
        for batch in sampler.follow(loader):
            ...

    Args:
        dataset: anything with a length.
        seed: the same on all ranks.
        shuffle: a new order in every epoch; False for the dataset's own order.
        drop_last: leave out what does not divide over the ranks, instead of repeating samples for the last batch.
        rank: this process among the ``world_size`` that share the dataset. Without it, that of the process group, or
            of torchrun's environment; a process alone is rank 0 of 1.
    Raises:
        PeriFlowError: the dataset has no length, only one of ``rank`` and ``world_size`` is given, or they do not fit.
    """
    if not hasattr(dataset, "__len__"):
        raise PeriFlowError(
            f"a {type(dataset).__name__} has no length, so its samples cannot be numbered; a dataset that is read as a "
            "stream has to keep its place itself."
        )
    if (rank is None) != (world_size is None):
        raise PeriFlowError(f"rank is {rank} and world_size is {world_size}; give both of them, or none.")
    own_rank, num_ranks = find_place() if rank is None or world_size is None else (rank, world_size)
    if not 0 <= own_rank < num_ranks:
        raise PeriFlowError(f"rank is {own_rank}; with world_size {num_ranks} it must be 0 to {num_ranks - 1}.")
    return ResumableSampler(
        dataset, num_replicas=num_ranks, rank=own_rank, shuffle=shuffle, seed=seed, drop_last=drop_last
    )


class ResumableSampler(DistributedSampler[int]):
    """One rank's share of a dataset, from a place that can be saved and restored; see ``resumable_sampler``.

    ``epoch`` counts from 0; ``num_batches_taken`` batches of this epoch were handed out, which are
    ``num_samples_taken`` samples of all ranks together. Every rank must take the same number of batches.
    """

    def __init__(self, dataset: Any, **options: Any) -> None:
        # A DistributedSampler, so that Lightning and Ray Train see that the data is shared out already.
        super().__init__(dataset, **options)
        self.num_batches_taken = 0
        self.num_samples_taken = 0
        self._num_awaited_iterations = 0
        self._has_uncounted_draws = False
        self._was_restored = False
        self._is_epoch_chosen = False

    @property
    def dataset_size(self) -> int:
        """Samples in an epoch, all ranks together."""
        return len(cast(Any, self.dataset))

    def follow(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """The rest of the epoch's batches from a loader of this sampler, counted as the loop takes them.

        After the last batch of an epoch the next call begins the next one; ``set_epoch`` is not needed.

        Raises:
            PeriFlowError: the loader does not draw from this sampler.
        """
        if loader.sampler is not self:
            raise PeriFlowError(
                "follow() was given a DataLoader of another sampler; make it with DataLoader(..., sampler=sampler)."
            )
        return self._count(loader, lambda: iter(loader))

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; the place stays if it lies within that epoch."""
        is_within = self.num_samples_taken < self.dataset_size or self._was_restored
        if epoch != self.epoch or not is_within:
            self._begin_epoch(epoch)
        self._is_epoch_chosen = True

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, the same on all ranks; plain numbers.

        Raises:
            PeriFlowError: batches were taken without ``follow``, so the place is not known.
        """
        if self._has_uncounted_draws:
            raise PeriFlowError(
                "the place in the data is not known: a DataLoader draws samples before the loop takes them. "
                "Loop with 'for batch in sampler.follow(loader)', or use periflow_ray.resumable.ResumableDataLoader."
            )
        return {
            "epoch": self.epoch,
            "num_batches_taken": self.num_batches_taken,
            "num_samples_taken": self.num_samples_taken,
            **self._describe_order(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to a saved place; the number of ranks and the batch size may be others than they were.

        Raises:
            PeriFlowError: this is no such state, or it lies in the middle of another order.
        """
        wanted = {"epoch", "num_batches_taken", "num_samples_taken", *_ORDER_KEYS}
        if not wanted <= state_dict.keys():
            raise PeriFlowError(
                f"this is not the state of a resumable sampler: it has {sorted(state_dict)}, and must have "
                f"{sorted(wanted)}."
            )
        saved_order = {key: state_dict[key] for key in _ORDER_KEYS}
        if state_dict["num_samples_taken"] and saved_order != self._describe_order():
            raise PeriFlowError(
                f"the state lies in the middle of an epoch of another order: it was saved with {saved_order}, and this "
                f"is {self._describe_order()}. Use the same ones, or begin the epoch again: "
                f"sampler.set_epoch({state_dict['epoch']})."
            )
        self._begin_epoch(state_dict["epoch"])
        self.num_batches_taken = state_dict["num_batches_taken"]
        self.num_samples_taken = state_dict["num_samples_taken"]
        self._was_restored = True
        self._is_epoch_chosen = False

    def count_batches_left(self, batch_size: int, *, drop_last: bool) -> int:
        """Batches of this rank from the place to the end of the epoch, as a ``DataLoader`` makes them."""
        num_left = self._count_samples_left()
        return num_left // batch_size if drop_last else -(-num_left // batch_size)

    def __iter__(self) -> Iterator[int]:
        # A generator: a DataLoader may make iterators that it never uses, and those must not count.
        self._refuse_second_split()
        if self._num_awaited_iterations:
            self._num_awaited_iterations -= 1
        else:
            self._has_uncounted_draws = True
        order = self._epoch_order()
        turns = torch.arange(self._count_samples_left())
        for some_turns in torch.split(turns, _CHUNK_SIZE) if len(turns) else ():
            places = self.num_samples_taken + self.rank + self.num_replicas * some_turns
            # Beyond the end, the epoch's first samples come once more.
            yield from order[places % self.dataset_size].tolist()

    def __len__(self) -> int:
        # All that a DistributedSampler asks of what it takes for a dataset.
        asking = sys._getframe(1).f_locals.get("self")
        if isinstance(asking, DistributedSampler) and asking is not self:
            raise _describe_second_split(asking)
        return super().__len__()

    def _refuse_second_split(self) -> None:
        """Raise if whoever draws from this sampler takes only a part, as though all ranks drew the same samples.

        Nothing but the callers says so: accelerate's ``prepare`` and others put their own batch sampler around this.
        """
        frame = sys._getframe(1) if self.num_replicas > 1 else None
        while frame is not None:
            asking = frame.f_locals.get("self")
            if asking is not self and _count_shares(asking) > 1:
                raise _describe_second_split(asking)
            frame = frame.f_back

    def _count(self, loader: DataLoader[Any], iterate: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        batch_size = loader.batch_size or 1
        if not self._is_epoch_chosen and not self.count_batches_left(batch_size, drop_last=loader.drop_last):
            self._begin_epoch(self.epoch + 1)
        self._is_epoch_chosen = self._was_restored = False
        if hasattr(loader.dataset, "set_epoch"):
            loader.dataset.set_epoch(self.epoch)
        self._num_awaited_iterations = 1
        with torch.random.fork_rng(devices=[]):
            # A DataLoader draws its workers' seeds; taken from the training's generator, that would change what a
            # resumed training draws. CUDA's generators are not touched: workers may be forked later.
            torch.default_generator.manual_seed(self.seed + self.epoch * self.num_replicas + self.rank)
            batches = iterate()
        num_samples_in_step = batch_size * self.num_replicas
        for batch in batches:
            self.num_batches_taken += 1
            self.num_samples_taken = min(self.dataset_size, self.num_samples_taken + num_samples_in_step)
            yield batch
        # What drop_last leaves out belongs to this epoch as well.
        self.num_samples_taken = self.dataset_size

    def _begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.num_batches_taken = 0
        self.num_samples_taken = 0
        self._has_uncounted_draws = False

    def _describe_order(self) -> dict[str, Any]:
        return {"dataset_size": self.dataset_size, "seed": self.seed, "shuffle": self.shuffle}

    def _count_samples_left(self) -> int:
        num_left = self.dataset_size - self.num_samples_taken
        return num_left // self.num_replicas if self.drop_last else -(-num_left // self.num_replicas)

    def _epoch_order(self) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(self.dataset_size)
        return torch.randperm(self.dataset_size, generator=torch.Generator().manual_seed(self.seed + self.epoch))


def _count_shares(asking: object) -> int:
    """Into how many shares a sampler or a loader divides what it draws; 1 for everything else."""
    if isinstance(asking, DistributedSampler) and not hasattr(asking, "num_replicas"):
        # One that is being made of all samples.
        return 2
    if isinstance(asking, Sampler):
        return max(_read_count(asking, name) for name in ("num_processes", "num_replicas"))
    # Accelerate's, where rank 0 draws for all.
    if isinstance(asking, DataLoader) and hasattr(asking, "_fetch_batches"):
        return _read_count(getattr(asking, "state", None), "num_processes")
    return 1


def _read_count(owner: object, name: str) -> int:
    count = getattr(owner, name, 1)
    return count if isinstance(count, int) else 1


def _describe_second_split(asking: object) -> PeriFlowError:
    return PeriFlowError(
        f"a {type(asking).__name__} would divide a resumable sampler's samples among the ranks once more, and most of "
        "the dataset would never be seen. Leave this DataLoader out of accelerator.prepare() (and move its batches "
        "with .to(accelerator.device)), and put no DistributedSampler around the sampler; or make it with rank=0, "
        "world_size=1, so that only the other one divides."
    )
