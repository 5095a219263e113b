from __future__ import annotations

import math

import pytest

from periflow_ray.spec import KeepBest
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.checkpoints.retention import choose_expired


def manifests(*losses: object) -> list[Manifest]:
    """One checkpoint per loss, at steps 0, 1, 2 ...; None has no such metric."""
    return [
        Manifest(f"step-{step:08d}", 1, step, 1, 1, 1, float(step), (), {} if loss is None else {"loss": loss})
        for step, loss in enumerate(losses)
    ]


def expired_steps(*losses: object, keep_last: int | None = None, keep_best: KeepBest | None = None) -> list[int]:
    return [manifest.step for manifest in choose_expired(manifests(*losses), keep_last, keep_best)]


LOWEST = KeepBest(metric="loss", mode="min")


def test_without_rules_everything_is_kept():
    assert expired_steps(3, 2, 1) == []
    assert choose_expired([]) == []


@pytest.mark.parametrize(("keep_last", "steps"), [(1, [0, 1, 2]), (2, [0, 1]), (4, []), (9, []), (0, [0, 1, 2])])
def test_the_last_ones_are_kept_and_always_the_newest(keep_last, steps):
    assert expired_steps(4, 3, 2, 1, keep_last=keep_last) == steps


def test_the_only_checkpoint_is_never_deleted():
    for rules in ({"keep_last": 1}, {"keep_last": 0}, {"keep_best": LOWEST}, {"keep_last": 1, "keep_best": LOWEST}):
        assert expired_steps(1, **rules) == []
        assert choose_expired([], **rules) == []


def test_the_best_one_is_kept_beside_the_newest():
    assert expired_steps(3, 1, 2, 4, keep_best=LOWEST) == [0, 2]
    assert expired_steps(3, 1, 2, 0.5, keep_best=KeepBest(metric="loss", mode="max")) == [1, 2]


def test_a_checkpoint_is_kept_when_one_of_two_rules_keeps_it():
    assert expired_steps(1, 2, 3, 4, 5, keep_last=2, keep_best=LOWEST) == [1, 2]


def test_of_equally_good_ones_the_newest_is_kept():
    assert expired_steps(1, 1, 1, 2, keep_best=LOWEST) == [0, 1]
    assert expired_steps(1, 1, 1, 0, keep_best=KeepBest(metric="loss", mode="max")) == [0, 1]


@pytest.mark.parametrize("value", [None, math.nan, "low", True])
def test_a_checkpoint_without_a_number_for_the_metric_is_not_the_best(value):
    assert expired_steps(value, 2, 3, value, 4, keep_best=LOWEST) == [0, 2, 3]


def test_infinite_values_are_compared_like_others():
    assert expired_steps(math.inf, 2, -math.inf, 3, keep_best=LOWEST) == [0, 1]


def test_nothing_is_deleted_by_a_metric_that_no_checkpoint_has():
    assert expired_steps(None, math.nan, None, keep_best=LOWEST) == []
    assert expired_steps(1, 2, 3, keep_best=KeepBest(metric="accuracy", mode="max")) == []
    assert expired_steps(None, None, None, keep_last=2, keep_best=LOWEST) == [0]
