"""A resumable sampler has one rank's samples: whatever would divide them among the ranks once more is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader

from periflow_ray.errors import PeriFlowError
from periflow_ray.resumable import ResumableSampler, resumable_sampler

SEED = 5


def divide_by_accelerate(sampler: ResumableSampler) -> object:
    from accelerate.data_loader import prepare_data_loader

    loader = DataLoader(range(16), batch_size=2, sampler=sampler)
    return prepare_data_loader(loader, num_processes=2, process_index=0, put_on_device=False)


class DistributedSamplerWrapper(torch.utils.data.DistributedSampler):
    """As Lightning and many a project have it: takes the samples of another sampler for its dataset."""

    def __init__(self, sampler: ResumableSampler) -> None:
        super().__init__(list(sampler), num_replicas=2, rank=0)


class LazyWrapper(torch.utils.data.DistributedSampler):
    def __init__(self, sampler: ResumableSampler) -> None:
        super().__init__(range(16), num_replicas=2, rank=0)
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        yield from list(self.sampler)[self.rank :: self.num_replicas]


@pytest.mark.parametrize(
    "divide",
    [
        divide_by_accelerate,
        DistributedSamplerWrapper,
        LazyWrapper,
        lambda sampler: torch.utils.data.DistributedSampler(sampler, num_replicas=2, rank=0),
    ],
    ids=["accelerate", "wrapper", "lazy-wrapper", "DistributedSampler"],
)
def test_samples_are_not_divided_among_the_ranks_twice(divide):
    sampler = resumable_sampler(range(16), seed=SEED, rank=0, world_size=2)
    with pytest.raises(PeriFlowError, match="once more, and most of the dataset would never be seen"):
        list(divide(sampler))


def test_accelerate_may_divide_a_sampler_of_all_samples():
    sampler = resumable_sampler(range(16), seed=SEED, rank=0, world_size=1)
    assert len(list(divide_by_accelerate(sampler))) == 4
