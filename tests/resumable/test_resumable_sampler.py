"""Wherever a training stops, and on however many ranks it goes on: every epoch keeps its order, to the last sample."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

import periflow_ray
from periflow_ray.errors import PeriFlowError
from periflow_ray.resumable import ResumableDataLoader, ResumableSampler, resumable_sampler

SEED = 5


def make_loaders(
    num_samples: int, batch_size: int, world_size: int, state: dict[str, Any] | None = None, **options: Any
) -> list[ResumableDataLoader]:
    """The loaders of all ranks; a sample is its own index."""
    loaders = [
        ResumableDataLoader(
            range(num_samples), batch_size, seed=SEED, rank=rank, world_size=world_size, collate_fn=list, **options
        )
        for rank in range(world_size)
    ]
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(state)
    return loaders


def take_steps(loaders: list[ResumableDataLoader], num_steps: int | None = None) -> list[int]:
    """What a training of so many steps sees of an epoch, in the epoch's order: the ranks take turns."""
    ranks = [itertools.islice(iter(loader), num_steps) for loader in loaders]
    seen = []
    for batches in zip(*ranks, strict=True):
        for turn in zip(*batches, strict=True):
            seen += turn
    return seen


def flatten(batches: Iterable[list[int]]) -> list[int]:
    """The batches' samples in one list."""
    return [*itertools.chain.from_iterable(batches)]


def order_of_epoch(num_samples: int, epoch: int) -> list[int]:
    """The order that epoch and seed decide."""
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(SEED + epoch)).tolist()


cases = given(
    num_samples=st.integers(1, 60),
    batch_size=st.integers(1, 7),
    world_size=st.integers(1, 5),
    split=st.integers(0, 60),
    new_batch_size=st.integers(1, 7),
    new_world_size=st.integers(1, 5),
)


@cases
@settings(max_examples=150, deadline=None)
def test_what_was_seen_before_and_after_a_resume_is_exactly_the_epoch(
    num_samples: int, batch_size: int, world_size: int, split: int, new_batch_size: int, new_world_size: int
) -> None:
    first = make_loaders(num_samples, batch_size, world_size)
    split = min(split, len(first[0]))
    seen = take_steps(first, split)
    [state] = {tuple(loader.state_dict().items()) for loader in first}

    resumed = make_loaders(num_samples, new_batch_size, new_world_size, dict(state))
    if len(seen) < num_samples:
        assert len(resumed[0]) - split == -(-(num_samples - len(seen)) // (new_batch_size * new_world_size))
        seen += take_steps(resumed)
        assert resumed[0].epoch == 0
    order = order_of_epoch(num_samples, epoch=0)
    assert seen[:num_samples] == order
    # The last batch has as many samples on every rank: the first ones of the epoch fill it up.
    num_repeated = len(seen) - num_samples
    assert num_repeated < max(world_size, new_world_size)
    assert seen[num_samples:] == list(itertools.islice(itertools.cycle(order), num_repeated))
    # And on it goes.
    assert take_steps(resumed)[:num_samples] == order_of_epoch(num_samples, epoch=1)


@cases
@settings(max_examples=150, deadline=None)
def test_with_drop_last_only_whole_batches_of_the_epoch_are_seen(
    num_samples: int, batch_size: int, world_size: int, split: int, new_batch_size: int, new_world_size: int
) -> None:
    first = make_loaders(num_samples, batch_size, world_size, drop_last=True)
    split = min(split, len(first[0]))
    seen = take_steps(first, split)
    assert len(seen) == split * batch_size * world_size

    resumed = make_loaders(num_samples, new_batch_size, new_world_size, first[0].state_dict(), drop_last=True)
    if len(resumed[0]) > split:
        seen += take_steps(resumed)
    assert seen == order_of_epoch(num_samples, epoch=0)[: len(seen)]
    assert num_samples - len(seen) < new_batch_size * new_world_size


@given(
    num_samples=st.integers(1, 40),
    global_batch_size=st.sampled_from([12, 24]),
    world_sizes=st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_a_step_has_the_same_samples_on_any_number_of_ranks(
    num_samples: int, global_batch_size: int, world_sizes: list[int]
) -> None:
    by_world_size = []
    for world_size in world_sizes:
        loaders = make_loaders(num_samples, global_batch_size // world_size, world_size, drop_last=True)
        by_world_size.append([sorted(flatten(batches)) for batches in zip(*loaders, strict=True)])
    assert by_world_size[0] == by_world_size[1]


@pytest.mark.parametrize("loader_options", [{}, {"persistent_workers": True, "prefetch_factor": 4}])
def test_batches_that_workers_have_read_ahead_are_not_taken_yet(loader_options: dict[str, Any]) -> None:
    options = {"num_workers": 2, **loader_options}
    [loader] = make_loaders(30, 2, 1, **options)
    batches = iter(loader)
    seen = [next(batches) for _ in range(4)]
    state = loader.state_dict()
    assert (state["epoch"], state["num_batches_taken"], state["num_samples_taken"]) == (0, 4, 8)
    del batches

    [resumed] = make_loaders(30, 2, 1, state, **options)
    assert flatten([*seen, *resumed]) == order_of_epoch(30, epoch=0)
    assert flatten(resumed) == order_of_epoch(30, epoch=1)


def test_a_plain_data_loader_goes_on_as_exactly_when_its_sampler_follows_it() -> None:
    def start() -> tuple[ResumableSampler, DataLoader]:
        sampler = periflow_ray.resumable_sampler(range(20), seed=SEED)
        return sampler, DataLoader(range(20), 3, sampler=sampler, num_workers=1, collate_fn=list)

    sampler, loader = start()
    seen = list(itertools.islice(sampler.follow(loader), 4))
    state = sampler.state_dict()
    sampler, loader = start()
    sampler.load_state_dict(state)
    assert flatten([*seen, *sampler.follow(loader)]) == order_of_epoch(20, epoch=0)


def test_a_sampler_that_nobody_counts_for_does_not_guess_its_place() -> None:
    sampler = resumable_sampler(range(10))
    assert sorted(flatten(DataLoader(range(10), 4, sampler=sampler, collate_fn=list))) == list(range(10))
    with pytest.raises(PeriFlowError, match=r"for batch in sampler.follow\(loader\)"):
        sampler.state_dict()
    sampler.set_epoch(1)
    assert sampler.state_dict()["epoch"] == 1


def test_the_usual_loop_over_epochs_works_from_any_saved_place() -> None:
    def train(state: dict[str, Any] | None, num_steps: int) -> tuple[list[int], dict[str, Any]]:
        sampler = resumable_sampler(range(7), seed=SEED)
        loader = DataLoader(range(7), 3, sampler=sampler, drop_last=True, collate_fn=list)
        if state is not None:
            sampler.load_state_dict(state)
        seen: list[int] = []
        for epoch in range(sampler.epoch, 3):
            sampler.set_epoch(epoch)
            for batch in sampler.follow(loader):
                seen += batch
                if len(seen) == 3 * num_steps:
                    return seen, sampler.state_dict()
        return seen, sampler.state_dict()

    undisturbed, _ = train(None, 100)
    assert undisturbed == [index for epoch in range(3) for index in order_of_epoch(7, epoch)[:6]]
    for num_steps in range(1, 6):
        seen, state = train(None, num_steps)
        assert seen + train(state, 100)[0] == undisturbed


def test_a_state_saved_after_the_last_batch_goes_on_with_the_next_epoch() -> None:
    [loader] = make_loaders(7, 2, 1, drop_last=True)
    for _ in loader:
        state_in_loop = loader.state_dict()
    state_after_loop = loader.state_dict()
    assert (state_in_loop["num_samples_taken"], state_after_loop["num_samples_taken"]) == (6, 7)
    for state in (state_in_loop, state_after_loop):
        [resumed] = make_loaders(7, 2, 1, state, drop_last=True)
        assert flatten(resumed) == order_of_epoch(7, epoch=1)[:6]


def test_set_epoch_keeps_a_place_within_that_epoch_and_begins_any_other() -> None:
    [loader] = make_loaders(8, 2, 1)
    take_steps([loader], 1)
    loader.sampler.set_epoch(0)
    assert loader.state_dict()["num_batches_taken"] == 1
    loader.sampler.set_epoch(3)
    assert flatten(loader) == order_of_epoch(8, epoch=3)
    loader.sampler.set_epoch(3)
    assert flatten(loader) == order_of_epoch(8, epoch=3)


def test_a_loop_that_was_left_goes_on_where_it_was() -> None:
    [loader] = make_loaders(9, 2, 1)
    assert take_steps([loader], 2) + take_steps([loader]) == order_of_epoch(9, epoch=0)


def test_the_length_is_that_of_the_epoch_wherever_the_place_is() -> None:
    [loader] = make_loaders(9, 2, 1)
    lengths = [len(loader)] + [len(loader) for _ in loader] + [len(loader)]
    assert lengths == [5] * 7


def test_looping_draws_nothing_from_the_training_s_generator() -> None:
    for options in ({}, {"num_workers": 1}):
        torch.manual_seed(1)
        [loader] = make_loaders(9, 2, 1, **options)
        take_steps([loader])
        drawn = torch.rand(3)
        torch.manual_seed(1)
        assert torch.equal(drawn, torch.rand(3))


def test_without_shuffling_the_order_is_the_dataset_s_own() -> None:
    loaders = make_loaders(10, 2, 2, shuffle=False)
    assert take_steps(loaders) == [*range(10)]


def test_a_dataset_is_told_the_epoch() -> None:
    class Epochs(list):
        def set_epoch(self, epoch: int) -> None:
            self[:] = [epoch] * len(self)

    loader = ResumableDataLoader(Epochs([None] * 3), collate_fn=list)
    assert [list(loader), list(loader)] == [[[0]] * 3, [[1]] * 3]
    with pytest.raises(PeriFlowError, match="persistent_workers=True keeps copies"):
        ResumableDataLoader(Epochs([None]), num_workers=1, persistent_workers=True)


def test_the_rank_comes_from_torchrun_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resumable_sampler(range(4)).rank, resumable_sampler(range(4)).num_replicas) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    # So it is in a command that runs once per node.
    assert resumable_sampler(range(4)).num_replicas == 1
    monkeypatch.setenv("RANK", "3")
    assert list(resumable_sampler(range(4), shuffle=False)) == [3]


def test_an_empty_dataset_has_no_batches() -> None:
    assert list(make_loaders(0, 2, 1)[0]) == []


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"dataset": Stream()}, "a Stream has no length"),
        ({"dataset": [0], "rank": 1}, "rank is 1 and world_size is None; give both of them, or none."),
        ({"dataset": [0], "rank": 2, "world_size": 2}, "rank is 2; with world_size 2 it must be 0 to 1."),
    ],
)
def test_wrong_arguments_are_told(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(PeriFlowError, match=problem):
        resumable_sampler(**options)


def test_a_place_in_another_order_is_refused() -> None:
    [loader] = make_loaders(9, 2, 1)
    take_steps([loader], 2)
    other = resumable_sampler(range(10), seed=SEED)
    with pytest.raises(PeriFlowError, match=r"'dataset_size': 9, .*'dataset_size': 10, .*sampler.set_epoch\(0\)"):
        other.load_state_dict(loader.state_dict())
    with pytest.raises(PeriFlowError, match=r"it has \['step'\], and must have \['dataset_size', "):
        other.load_state_dict({"step": 3})
    with pytest.raises(PeriFlowError, match="DataLoader of another sampler"):
        other.follow(loader)


def test_the_package_imports_torch_only_when_the_sampler_is_used() -> None:
    code = "import sys, periflow_ray as pf; before = 'torch' in sys.modules; pf.resumable_sampler; "
    code += "print(before, 'torch' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
