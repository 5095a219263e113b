"""Population based training: a bad trial goes on from a good one's checkpoint, with other parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from periflow_ray.runtime.sweeps.trial_runner import is_worst
from periflow_ray.spec.sweep import STEP, SweepSpec
from periflow_ray.spec.sweep_parameters import LISTED, Parameter
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.sweeps.space import domain_of, drop_unused

_WAITING = (Trial.PENDING, Trial.PAUSED)
# After waiting for this long a trial is taken for one that finds no room, and another one gives it its turn.
_TURN_S = 60.0
# Ranges of numbers; what is drawn from a list stays in it by itself.
_RANGES = ("uniform", "loguniform", "quniform", "randint", "lograndint")


@dataclass(frozen=True)
class Source:
    """A checkpoint that nobody deletes, because the job is to go on from it that ``job_id`` was claimed for."""

    manifest: Manifest
    job_id: int


class Cloning(Protocol):
    """What a population needs of its sweep; trials are named by Ray Tune's ids."""

    def find_source(self, donor: str) -> Source | None:
        """The newest checkpoint of a trial, if there is one to go on from; it is to be given to ``clone``."""

    def clone(self, trial: str, donor: str, source: Source, parameters: Mapping[str, Any]) -> None:
        """Let a trial go on from another one's checkpoint, with these parameters."""


class FromJobs(TrialScheduler):  # type: ignore[misc]
    """Mixed into a population of Tune's: it has the checkpoints of the trials' jobs in place of Tune's.

    A trial without a checkpoint is not exploited, nor is one whose metric is no number.
    """

    def __init__(self, spec: SweepSpec, cloning: Cloning, **options: Any) -> None:
        super().__init__(time_attr=STEP, log_config=False, require_attrs=False, **options)
        self._spec = spec
        self._cloning = cloning
        self._source: Source | None = None
        self._copied: set[str] = set()
        self._worst: set[str] = set()
        self._waits_since_s: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        # For the copy that Tune makes of all it is given, and that nobody restores.
        return {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        # Tune refuses searches that learn; ours draws at random.
        super().on_trial_add(SimpleNamespace(search_alg=None), trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._copied.discard(trial.trial_id)
        if is_worst(result[self._spec.metric]):
            self._worst.add(trial.trial_id)
        else:
            self._worst.discard(trial.trial_id)
        decision: str = super().on_trial_result(tune_controller, trial, result)
        waiting = {each.trial_id for each in tune_controller.get_trials() if each.status in _WAITING}
        now_s = time.monotonic()
        self._waits_since_s = {each: self._waits_since_s.get(each, now_s) for each in waiting - self._copied}
        if decision != TrialScheduler.PAUSE or self._spec.scheduler.options.get("synch"):
            return decision
        # Tune lets a trial make room at once for any that does not run: also for one that is only being started.
        has_long_waits = any(now_s - since_s >= _TURN_S for since_s in self._waits_since_s.values())
        return decision if has_long_waits else str(TrialScheduler.CONTINUE)

    def _exploit(self, tune_controller: Any, trial: Any, trial_to_clone: Any) -> None:
        if trial_to_clone.trial_id in self._worst:
            return
        self._source = self._cloning.find_source(trial_to_clone.trial_id)
        if self._source is not None:
            super()._exploit(tune_controller, trial, trial_to_clone)
            self._copied.add(trial.trial_id)

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        assert self._source is not None
        used = drop_unused(self._spec, config)
        self._cloning.clone(trial.trial_id, trial_to_clone.trial_id, self._source, used)
        return config, operations


class Population(FromJobs, PopulationBasedTraining):  # type: ignore[misc]
    """Tune's own; no parameter leaves its range."""

    def __init__(self, spec: SweepSpec, cloning: Cloning) -> None:
        mutations = {
            name: list(parameter.values) if parameter.kind in LISTED else domain_of(parameter, "random")
            for name, parameter in spec.parameters.items()
            if parameter.kind != "fixed"
        }
        super().__init__(
            spec,
            cloning,
            hyperparam_mutations=mutations,
            custom_explore_fn=lambda config: keep_in_range(spec.parameters, config),
            **spec.scheduler.options,
        )


def keep_in_range(parameters: Mapping[str, Parameter], config: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with every number within the range that it may be drawn from."""
    kept = dict(config)
    for name, parameter in parameters.items():
        if parameter.kind in _RANGES and name in kept:
            lower, upper = (float(value) for value in parameter.values[:2])
            is_whole = parameter.kind.endswith("randint")
            kept[name] = min(max(kept[name], lower), upper - 1 if is_whole else upper)
            kept[name] = int(kept[name]) if is_whole else kept[name]
    return kept
