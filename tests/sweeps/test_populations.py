"""How a population chooses new parameters, on trials whose training is a formula; no Ray."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial

from periflow_ray.runtime.sweeps import population
from periflow_ray.runtime.sweeps.methods import make_scheduler
from periflow_ray.runtime.sweeps.population import Source
from periflow_ray.spec.sweep import STEP, SweepSpec
from periflow_ray.sweeps.space import drop_unused, share_of, value_at

INTERVAL = 10
NUM_TRIALS = 4
PARAMETERS = {"lr": {"loguniform": [1e-4, 1.0]}, "x": {"uniform": [-5, 5]}, "fixed": "a"}


class Copies:
    """Keeps who was copied; trials without a checkpoint are named."""

    def __init__(self) -> None:
        self.without_checkpoint: set[str] = set()
        self.made: list[tuple[str, str, dict[str, Any]]] = []
        self.decisions: list[str] = []

    def find_source(self, donor: str) -> Source | None:
        return None if donor in self.without_checkpoint else SimpleNamespace(job_id=1)  # type: ignore[return-value]

    def clone(self, trial: str, donor: str, source: Source, parameters: Mapping[str, Any]) -> None:
        self.made.append((trial, donor, dict(parameters)))


class Stand:
    """A trial, and the part of Tune's loop that a population asks."""

    def __init__(self, trial_id: str, config: dict[str, Any]) -> None:
        self.trial_id = trial_id
        self.config = config
        self.evaluated_params: dict[str, Any] = {}
        self.status = TuneTrial.RUNNING
        self.experiment_tag = trial_id
        self.run_metadata = SimpleNamespace(
            checkpoint_manager=SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        )

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def __getattr__(self, name: str) -> Any:
        if name in ("checkpoint", "temporary_state", "last_result"):
            return None
        if name == "run_metadata":
            raise AttributeError(name)
        return lambda *given, **options: None


class Loop:
    def __init__(self, trials: list[Stand]) -> None:
        self._trials = trials
        self.search_alg = None

    def get_trials(self) -> list[Stand]:
        return self._trials

    def get_live_trials(self) -> list[Stand]:
        return self._trials

    def pause_trial(self, trial: Stand, should_checkpoint: bool) -> None:
        trial.status = TuneTrial.PAUSED

    def _schedule_trial_save(self, trial: Stand, result: object) -> object:
        return object()


def make_spec(name: str, parameters: Mapping[str, Any] = PARAMETERS) -> SweepSpec:
    return SweepSpec.model_validate(
        {
            "metric": "accuracy",
            "mode": "max",
            "num_trials": NUM_TRIALS,
            "parameters": parameters,
            "scheduler": {"type": name, "perturbation_interval": INTERVAL},
        }
    )


def run(
    name: str, copies: Copies, num_rounds: int, value_of: Any, parameters: Mapping[str, Any] = PARAMETERS
) -> Iterator[list[dict[str, Any]]]:
    """Trains a population; yields the parameters of its trials after each round."""
    spec = make_spec(name, parameters)
    scheduler = make_scheduler(spec, {}, copies)
    scheduler.set_search_properties("accuracy", "max")
    begun = [{"lr": 10.0 ** -(index + 1), "x": 4.0 - 2 * index} for index in range(NUM_TRIALS)]
    fixed = {each: parameter.values[0] for each, parameter in spec.parameters.items() if parameter.kind == "fixed"}
    configs = [drop_unused(spec, {**config, **fixed}) for config in begun]
    trials = [Stand(f"trial-{index}", config) for index, config in enumerate(configs)]
    loop = Loop(trials)
    for trial in trials:
        scheduler.on_trial_add(loop, trial)
    score = dict.fromkeys((trial.trial_id for trial in trials), 0.0)
    for index in range(1, num_rounds + 1):
        for trial in trials:
            num_made = len(copies.made)
            score[trial.trial_id] += value_of(trial.trial_id, trial.config)
            result = {"accuracy": score[trial.trial_id], STEP: index * INTERVAL}
            trial.status = TuneTrial.RUNNING
            copies.decisions.append(scheduler.on_trial_result(loop, trial, result))
            if len(copies.made) > num_made:
                score[trial.trial_id] = score[copies.made[-1][1]]
        yield [dict(trial.config) for trial in trials]


def gain(trial_id: str, config: Mapping[str, Any]) -> float:
    """The nearer to lr 0.01 and x 1, the more."""
    return 2 - abs(math.log10(config["lr"]) + 2) - abs(config["x"] - 1)


def test_bandits_copy_the_better_ones_and_their_process_chooses_parameters_in_the_ranges() -> None:
    copies = Copies()
    first, *_ = run("pb2", copies, 5, gain)
    begun = {f"trial-{index}": config for index, config in enumerate(first)}
    assert len(copies.made) >= 3
    for trial, donor, parameters in copies.made:
        assert trial != donor
        assert gain(donor, begun[donor]) == max(gain(each, config) for each, config in begun.items())
        assert (1e-4 <= parameters["lr"] <= 1, -5 <= parameters["x"] <= 5, parameters["fixed"]) == (True, True, "a")
        assert type(parameters["lr"]) is type(parameters["x"]) is float
    # After one round there is nothing to learn from yet: the first is a plain copy.
    assert len({(parameters["lr"], parameters["x"]) for _, _, parameters in copies.made}) >= len(copies.made) - 1


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_a_trial_without_a_checkpoint_is_not_copied_from(name: str) -> None:
    copies = Copies()
    copies.without_checkpoint = {f"trial-{index}" for index in range(NUM_TRIALS)}
    list(run(name, copies, 5, gain))
    assert copies.made == []


@pytest.mark.parametrize("name", ["pbt", "pb2"])
@pytest.mark.parametrize("num_bad", [1, 3, NUM_TRIALS])
def test_a_trial_whose_metric_is_no_number_is_never_copied_from(name: str, num_bad: int) -> None:
    copies = Copies()
    bad = {f"trial-{index}" for index in range(num_bad)}

    def value_of(trial_id: str, config: Mapping[str, Any]) -> float:
        # As an agent says it of NaN.
        return -sys.float_info.max / 1e10 if trial_id in bad else gain(trial_id, config)

    list(run(name, copies, 4, value_of))
    assert bad.isdisjoint(donor for _, donor, _ in copies.made)
    assert bool(copies.made) == (num_bad < NUM_TRIALS)


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_trials_that_are_all_the_same_do_no_harm(name: str) -> None:
    for _ in run(name, Copies(), 6, lambda trial_id, config: 0.0):
        pass


def test_no_trial_stops_because_another_one_starts_anew_as_a_copy() -> None:
    copies = Copies()
    list(run("pbt", copies, 4, gain))
    assert copies.made
    assert "PAUSE" not in copies.decisions


@pytest.mark.parametrize(("turn_s", "expected"), [(60.0, "CONTINUE"), (0.0, "PAUSE")])
def test_a_trial_gives_another_one_its_turn_only_if_that_has_waited_for_long(
    turn_s: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(population, "_TURN_S", turn_s)
    spec = make_spec("pbt")
    scheduler = make_scheduler(spec, {}, Copies())
    scheduler.set_search_properties("accuracy", "max")
    runs, waits = Stand("runs", {"lr": 0.1, "x": 0.0}), Stand("waits", {"lr": 0.1, "x": 1.0})
    waits.status = TuneTrial.PENDING
    loop = Loop([runs, waits])
    for trial in (runs, waits):
        scheduler.on_trial_add(loop, trial)
    assert scheduler.on_trial_result(loop, runs, {"accuracy": 0.5, STEP: INTERVAL}) == expected


def test_a_parameter_that_is_not_used_is_not_handed_on() -> None:
    copies = Copies()
    parameters = {"x": {"uniform": [-5, 5]}, "lr": {"uniform": [0, 1], "when": {"opt": "sgd"}}, "opt": "adam"}
    list(run("pbt", copies, 4, lambda trial_id, config: config["x"], parameters=parameters))
    assert copies.made
    assert all(given.keys() == {"x", "opt"} for _, _, given in copies.made)


@pytest.mark.parametrize("kind", ["uniform", "loguniform"])
def test_a_share_of_a_range_is_a_value_and_back(kind: str) -> None:
    spec = SweepSpec.model_validate(
        {"metric": "a", "mode": "max", "num_trials": 2, "parameters": {"x": {kind: [0.001, 10]}}}
    )
    parameter = spec.parameters["x"]
    assert [value_at(parameter, share) for share in (-1.0, 0.0, 1.0, 2.0)] == [0.001, 0.001, 10, 10]
    assert [share_of(parameter, value) for value in (0.0001, 0.001, 10, 20)] == [0, 0, 1, 1]
    assert value_at(parameter, 0.5) == pytest.approx(0.1 if kind == "loguniform" else 5.0005)
    assert share_of(parameter, value_at(parameter, 0.3)) == pytest.approx(0.3)
