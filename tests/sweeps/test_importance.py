"""Which parameters mattered, on trials of which it is known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from periflow_ray.sweeps.importance import rank_parameters
from periflow_ray.sweeps.journal import Trial


def make_trials(number: int = 60) -> list[Trial]:
    """The value is that of ``x`` alone, but for a little of ``kind``."""
    draw = random.Random(0)
    trials = []
    for index in range(number):
        parameters: dict[str, Any] = {
            "x": 10 ** draw.uniform(-4, 0),
            "kind": draw.choice(["a", "b"]),
            "noise": draw.random(),
            "same": 3,
        }
        value = math.log10(parameters["x"]) + (0.3 if parameters["kind"] == "a" else 0.0)
        trials.append(Trial(index, parameters, 0.0, reports=[(1, value)]))
    return trials


def test_what_decides_comes_first_and_what_does_nothing_last() -> None:
    ranked = rank_parameters(make_trials(), "max", ["noise", "same", "kind", "x"])
    assert [name for name, _ in ranked[:1]] == ["x"]
    shares = dict(ranked)
    assert shares["x"] > 0.85
    assert shares["noise"] < 0.2
    assert shares["same"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("trials", [[], make_trials(1), [Trial(1, {"x": 1}, 0.0), Trial(2, {"x": 2}, 0.0)]])
def test_too_few_trials_say_nothing(trials: list[Trial]) -> None:
    assert rank_parameters(trials, "max", ["x"]) == [("x", 0.0)]


def test_values_beyond_all_bounds_say_nothing() -> None:
    trials = [Trial(number, {"x": number}, 0.0, reports=[(1, value)]) for number, value in enumerate([1.0, math.inf])]
    assert rank_parameters(trials, "max", ["x"]) == [("x", 0.0)]
