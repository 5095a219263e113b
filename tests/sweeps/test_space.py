"""Which trials a sweep has: drawn by Ray Tune, the same for the same seed, counted by the journal."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from ray.tune import schedulers
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search import Searcher

from periflow_ray.runtime.sweeps.methods import make_scheduler, make_searcher
from periflow_ray.runtime.sweeps.population import keep_in_range
from periflow_ray.runtime.sweeps.searcher import SweepSearcher
from periflow_ray.runtime.sweeps.trainable import FAILS
from periflow_ray.runtime.sweeps.trial_runner import is_misspelt
from periflow_ray.spec.sweep import SCHEDULER_OPTIONS, STEP, SweepSpec
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.sweeps.journal import Trial, TrialStatus
from periflow_ray.sweeps.space import draw_trials, drop_unused

METRIC = {"metric": "accuracy", "mode": "max", "num_trials": 6}


def make_spec(**given: Any) -> SweepSpec:
    parameters = {"lr": {"loguniform": [0.001, 1]}, "width": {"choice": [16, 32, 64]}}
    return SweepSpec.model_validate({**METRIC, "parameters": parameters, **given})


def draw(spec: SweepSpec, number: int = 50) -> list[dict[str, Any]]:
    return list(itertools.islice(draw_trials(spec), number))


class Begins:
    """Keeps which trials began, and refuses one if a test says so."""

    def __init__(self) -> None:
        self.trials: list[tuple[int, dict[str, Any]]] = []
        self.failure: Exception | None = None

    def __call__(self, number: int, parameters: Mapping[str, Any], tune_id: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.trials.append((number, dict(parameters)))


class Alone:
    """No trial has a checkpoint to copy."""

    def find_source(self, donor: str) -> Manifest | None:
        return None

    def clone(self, trial: str, donor: str, source: Manifest, parameters: Mapping[str, Any]) -> None:
        raise AssertionError("nothing to copy")


def make_known(number: int, status: TrialStatus, parameters: dict[str, Any], *values: float) -> Trial:
    reports = [(10 * (index + 1), value) for index, value in enumerate(values)]
    return Trial(number, parameters, 0.0, [100 + number], reports, status)


def test_the_same_seed_draws_the_same_trials_within_their_ranges() -> None:
    spec = make_spec(
        parameters={
            "a": {"uniform": [2, 3]},
            "b": {"randint": [1, 4]},
            "c": {"quniform": [0, 1, 0.25]},
            "d": {"lograndint": [1, 1000]},
            "e": {"randn": [100, 1]},
            "f": "fixed",
        }
    )
    drawn = draw(spec)
    assert drawn == draw(spec) != draw(spec.model_copy(update={"seed": 1}))
    assert all(2 <= each["a"] <= 3 and each["b"] in (1, 2, 3) and each["f"] == "fixed" for each in drawn)
    assert {each["c"] for each in drawn} <= {0, 0.25, 0.5, 0.75, 1}
    assert all(1 <= each["d"] < 1000 and 90 < each["e"] < 110 for each in drawn)


def test_grids_are_drawn_once_in_all_combinations_and_again_with_other_random_values() -> None:
    grids = {"a": {"grid": [1, 2]}, "b": {"grid": ["x", "y"]}}
    alone = make_spec(parameters=grids, num_trials=None)
    assert sorted((each["a"], each["b"]) for each in draw(alone)) == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    mixed = draw(make_spec(parameters={**grids, "lr": {"uniform": [0, 1]}}), 8)
    assert sorted((each["a"], each["b"]) for each in mixed[:4]) == sorted((each["a"], each["b"]) for each in mixed[4:])
    assert len({each["lr"] for each in mixed}) == 8


def test_points_come_first_and_what_they_leave_out_is_drawn() -> None:
    drawn = draw(make_spec(points=[{"lr": 0.5}, {"width": 64, "lr": 0.25}]), 3)
    assert (drawn[0]["lr"], drawn[1]) == (0.5, {"lr": 0.25, "width": 64})
    assert drawn[0]["width"] in (16, 32, 64)


def test_a_parameter_is_left_out_where_it_is_not_used() -> None:
    spec = make_spec(
        parameters={
            "opt": {"choice": ["sgd", "adam"]},
            "momentum": {"uniform": [0, 1], "when": {"opt": "sgd"}},
            "nesterov": {"choice": [True, False], "when": {"momentum": [0.5]}},
        }
    )
    given = {"opt": "adam", "momentum": 0.5, "nesterov": True}
    assert drop_unused(spec, given) == {"opt": "adam"}
    assert drop_unused(spec, {**given, "opt": "sgd"}) == {**given, "opt": "sgd"}
    assert all(("momentum" in each) == (each["opt"] == "sgd") for each in draw(spec))


def test_exactly_the_wanted_trials_begin_and_no_more_at_a_time_than_allowed() -> None:
    begins = Begins()
    spec = make_spec(max_concurrent=2)
    searcher = SweepSearcher(spec, make_searcher(spec, {}), {}, begins)
    assert [searcher.suggest(tune_id) for tune_id in "ab"] == draw(spec, 2)
    assert searcher.suggest("c") is None
    for tune_id, ended in zip("cdef", "abcd", strict=True):
        searcher.on_trial_complete(ended, {"accuracy": 0.5})
        assert isinstance(searcher.suggest(tune_id), dict)
    searcher.on_trial_complete("e")
    # The last one may have to begin once more.
    assert searcher.suggest("g") is None
    searcher.on_trial_complete("f")
    assert searcher.suggest("g") == Searcher.FINISHED
    assert begins.trials == list(enumerate(draw(spec, 6), start=1))


def test_a_trial_begins_once_more_if_its_agent_died_and_not_if_its_job_failed() -> None:
    begins = Begins()
    spec = make_spec(num_trials=2)
    first, second = draw(spec, 2)
    known: dict[int, Trial] = {}
    searcher = SweepSearcher(spec, make_searcher(spec, known), known, begins)
    for tune_id in "ab":
        searcher.suggest(tune_id)
    # It was copied from another one meanwhile.
    changed = {**second, "lr": 0.5}
    known.update({1: make_known(1, "failed", first), 2: make_known(2, "running", changed)})
    searcher.on_trial_result("a", {"accuracy": 0.5, FAILS: "exit code 1"})
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_complete("b", error=True)
    assert searcher.suggest("c") == changed
    assert searcher.suggest("d") is None
    searcher.on_trial_complete("c", {"accuracy": 0.5})
    assert searcher.suggest("d") == Searcher.FINISHED
    assert begins.trials == [(1, first), (2, second), (2, changed)]


def test_a_sweep_that_is_taken_up_begins_what_is_missing_after_what_had_not_ended() -> None:
    spec = make_spec()
    drawn = draw(spec, 6)
    statuses: list[TrialStatus] = ["success", "running", "failed", "stopped"]
    known = {
        number: make_known(number, status, drawn[number - 1], 0.5) for number, status in enumerate(statuses, start=1)
    }
    begins = Begins()
    searcher = SweepSearcher(spec, make_searcher(spec, known), known, begins)
    while searcher.suggest(f"tune-{len(begins.trials)}") != Searcher.FINISHED:
        searcher.on_trial_complete(f"tune-{len(begins.trials) - 1}")
    assert begins.trials == [(number, drawn[number - 1]) for number in (2, 4, 5, 6)]


def test_a_trial_that_cannot_be_written_down_does_not_begin() -> None:
    begins = Begins()
    begins.failure = OSError("the disk is full")
    searcher = SweepSearcher(make_spec(), make_searcher(make_spec(), {}), {}, begins)
    with pytest.raises(OSError, match="disk is full"):
        searcher.suggest("a")


def test_no_trial_begins_once_the_sweep_is_over() -> None:
    searcher = SweepSearcher(make_spec(), make_searcher(make_spec(), {}), {}, Begins())
    searcher.finish()
    assert searcher.suggest("a") == Searcher.FINISHED


def test_asha_judges_by_what_earlier_trials_reported() -> None:
    spec = make_spec(scheduler={"type": "asha", "max_t": 100, "grace_period": 10, "reduction_factor": 2})
    known = {
        number: make_known(number, "success", {}, value, value) for number, value in ((1, 0.9), (2, 0.8), (3, 0.7))
    }

    def judge(known: Mapping[int, Trial], value: float) -> str:
        scheduler = make_scheduler(spec, known, Alone())
        scheduler.set_search_properties(spec.metric, spec.mode)
        trial = type("NewTrial", (), {"trial_id": "new"})()
        scheduler.on_trial_add(None, trial)
        verdict: str = scheduler.on_trial_result(None, trial, {"accuracy": value, STEP: 10})
        return verdict

    assert judge(known, 0.1) == schedulers.TrialScheduler.STOP
    assert judge(known, 0.95) == schedulers.TrialScheduler.CONTINUE
    # One that nobody has been compared with goes on.
    assert judge({}, 0.1) == schedulers.TrialScheduler.CONTINUE


@pytest.mark.parametrize(
    ("name", "of_tune"),
    [
        ("asha", schedulers.ASHAScheduler),
        ("hyperband", schedulers.HyperBandScheduler),
        ("median", schedulers.MedianStoppingRule),
        ("pbt", schedulers.PopulationBasedTraining),
        ("pb2", PB2),
    ],
)
def test_the_options_of_a_scheduler_are_those_of_ray_tune(name: str, of_tune: type) -> None:
    of_the_sweep = {"time_attr", "metric", "mode", "hyperparam_mutations", "hyperparam_bounds", "custom_explore_fn"}
    theirs = set(inspect.signature(of_tune).parameters) - of_the_sweep
    assert set(SCHEDULER_OPTIONS[name]) <= theirs


def test_a_mutation_stays_in_the_range_of_its_parameter() -> None:
    spec = make_spec(
        parameters={"a": {"uniform": [0, 1]}, "b": {"randint": [2, 5]}, "c": {"choice": ["x", "y"]}, "d": 3}
    )
    assert keep_in_range(spec.parameters, {"a": 1.2, "b": 6, "c": "x", "d": 3}) == {"a": 1.0, "b": 4, "c": "x", "d": 3}
    assert keep_in_range(spec.parameters, {"a": -0.1, "b": 1}) == {"a": 0.0, "b": 2}
    assert keep_in_range(spec.parameters, {"a": 0.5, "b": 3}) == {"a": 0.5, "b": 3}


@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [
        ("losss", "loss", True),
        ("acuracy", "accuracy", True),
        ("val_los", "val_loss", True),
        ("Accuracy", "accuracy", True),
        ("val_loss", "loss", False),
        ("eval_accuracy", "train_accuracy", False),
        ("top5_accuracy", "top1_accuracy", False),
        ("f1", "f2", False),
        ("val_loss", "val_acc", False),
    ],
)
def test_a_metric_that_comes_with_the_first_evaluation_is_waited_for(wanted: str, given: str, expected: bool) -> None:
    assert is_misspelt(wanted, given) == expected
