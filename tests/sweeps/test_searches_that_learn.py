"""Searches that learn, with the packages that they need: what they suggest, what they know, what they wait for."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
from ray.tune.search import Searcher

from periflow_ray.errors import UsageError
from periflow_ray.runtime.sweeps import methods
from periflow_ray.runtime.sweeps.methods import make_scheduler, make_searcher
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.sweeps.journal import Trial

MODULES = {"optuna": "optuna", "bayesopt": "bayes_opt", "hyperopt": "hyperopt"}
RANGES = {"lr": {"loguniform": [1e-5, 0.1]}, "x": {"uniform": [-100, 300]}, "fixed": 3}
ALL_KINDS = {
    "a": {"uniform": [2, 3]},
    "b": {"randint": [1, 4]},
    "c": {"quniform": [0, 1, 0.25]},
    "d": {"lograndint": [1, 1000]},
    "f": {"choice": ["u", True, 3]},
    "g": {"uniform": [0, 1], "when": {"f": "u"}},
    "h": "fixed",
}


@pytest.fixture(params=list(MODULES))
def search(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(MODULES[request.param])
    return str(request.param)


def make_spec(search: str | dict[str, Any], parameters: Mapping[str, Any] = RANGES, **given: Any) -> SweepSpec:
    wanted = {"metric": "accuracy", "mode": "max", "num_trials": 30, "search": search, "parameters": parameters}
    return SweepSpec.model_validate({**wanted, **given})


def distance(parameters: Mapping[str, Any]) -> float:
    """How far a trial is from the best one, of which the learning rate is 0.001; in shares of the ranges."""
    return abs(math.log10(parameters["lr"]) + 3) / 4 + abs(parameters["x"] - 200) / 400


def make_known(spec: SweepSpec, number: int) -> dict[int, Trial]:
    """Trials that have ended, drawn at random."""
    drawn = make_searcher(make_spec("random"), {})
    trials = {}
    for index in range(1, number + 1):
        parameters = drawn.suggest(str(index))
        trials[index] = Trial(index, parameters, 0.0, [index], [(10, -distance(parameters))], "success")
    return trials


def test_each_finds_more_in_the_same_number_of_trials_than_chance(search: str) -> None:
    # One of Bayesian optimization takes up to a second.
    number = 20 if search == "bayesopt" else 40
    distances: dict[str, list[float]] = {}
    for name in (search, "random"):
        spec = make_spec(name)
        searcher = make_searcher(spec, {})
        found = distances.setdefault(name, [])
        for index in range(number):
            parameters = searcher.suggest(str(index))
            assert isinstance(parameters, dict)
            assert (parameters["fixed"], 1e-5 <= parameters["lr"] <= 0.1) == (3, True)
            found.append(distance(parameters))
            searcher.on_trial_complete(str(index), {"accuracy": -found[-1]})
    assert sum(sorted(distances[search])[:10]) < 0.9 * sum(sorted(distances["random"])[:10])


def test_each_goes_on_with_what_it_knew(search: str) -> None:
    spec = make_spec(search)
    known = make_known(spec, 40)
    # It takes longer than the others to think.
    number = 2 if search == "bayesopt" else 8
    sums = []
    for searcher in (make_searcher(spec, known), make_searcher(spec, {})):
        sums.append(0.0)
        for index in range(number):
            parameters = searcher.suggest(f"new-{index}")
            sums[-1] += distance(parameters)
            searcher.on_trial_complete(f"new-{index}", {"accuracy": -distance(parameters)})
    assert sums[0] < sums[1]


def test_the_points_come_first_whole_or_not(search: str) -> None:
    points = [{"lr": 0.02, "x": 7.0}, {"x": 11.0}, {"lr": 0.03}]
    searcher = make_searcher(make_spec(search, points=points), {})
    suggested = [searcher.suggest(str(index)) for index in range(3)]
    for point, parameters in zip(points, suggested, strict=True):
        assert parameters == {**parameters, **{name: pytest.approx(value) for name, value in point.items()}}
        assert parameters.keys() == RANGES.keys()
    # A sweep that is taken up goes on behind those that have begun.
    known = {1: Trial(1, suggested[0], 0.0, [1], [(10, 0.5)], "success")}
    assert make_searcher(make_spec(search, points=points), known).suggest("next")["x"] == pytest.approx(11.0)


def test_a_value_that_is_no_number_is_no_value(search: str) -> None:
    searcher = make_searcher(make_spec(search), {})
    for index in range(14):
        parameters = searcher.suggest(str(index))
        assert isinstance(parameters, dict)
        # As a trial's agent says it of NaN.
        value = -sys.float_info.max / 1e10 if index % 3 == 0 else -distance(parameters)
        searcher.on_trial_complete(str(index), {"accuracy": value})


@pytest.mark.parametrize("search", ["optuna", "hyperopt"])
def test_every_kind_of_parameter_is_searched_within_its_range(search: str) -> None:
    pytest.importorskip(MODULES[search])
    searcher = make_searcher(make_spec(search, ALL_KINDS), {})
    for index in range(30):
        found = searcher.suggest(str(index))
        assert 2 <= found["a"] <= 3
        assert found["b"] in (1, 2, 3)
        assert found["c"] in (0, 0.25, 0.5, 0.75, 1)
        assert (1 <= found["d"] < 1000, isinstance(found["d"], int)) == (True, True)
        assert (found["f"] in ("u", True, 3), found["h"]) == (True, "fixed")
        searcher.on_trial_complete(str(index), {"accuracy": found["a"]})


def test_a_search_that_waits_for_its_trials_is_not_asked_meanwhile(search: str) -> None:
    # Bayesian optimization says the same until it has learned more, and ends when it has said it too often.
    spec = make_spec({"type": "bayesopt", "random_search_steps": 3} if search == "bayesopt" else search)
    searcher = make_searcher(spec, {})
    live: list[tuple[str, dict[str, Any]]] = []
    for index in range(8):
        for question in range(40):
            suggested = searcher.suggest(f"{index}-{question}")
            assert suggested != Searcher.FINISHED
            if isinstance(suggested, dict):
                live.append((f"{index}-{question}", suggested))
                break
        trial_id, parameters = live.pop(0)
        searcher.on_trial_complete(trial_id, {"accuracy": -distance(parameters)})


@pytest.mark.parametrize("name", ["optuna", "hyperopt", "bayesopt"])
def test_a_search_whose_package_is_missing_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    with pytest.raises(UsageError, match=rf"^search: {name} needs the package .*: pip install '"):
        make_searcher(make_spec(name), {})


def test_a_search_whose_package_has_changed_says_which_one_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bayes_opt", ModuleType("bayes_opt"))
    with pytest.raises(UsageError, match=r"another version .*: pip install 'bayesian-optimization>=1\.4\.3,<2'"):
        make_searcher(make_spec("bayesopt"), {})


def test_a_scheduler_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec("random", scheduler={"type": "pb2", "perturbation_interval": 5})
    monkeypatch.setitem(sys.modules, methods._PACKAGES["pb2"].module, None)
    with pytest.raises(UsageError, match=r"^scheduler: pb2 needs the package scikit-learn: pip install '"):
        make_scheduler(spec, {}, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_an_option_that_tune_refuses_is_told_as_the_users(name: str) -> None:
    spec = make_spec("random", scheduler={"type": name, "perturbation_interval": 5, "quantile_fraction": 0.7})
    with pytest.raises(UsageError, match=f"^scheduler: {name} has an option that it does not take: .*quantile"):
        make_scheduler(spec, {}, None)  # type: ignore[arg-type]
