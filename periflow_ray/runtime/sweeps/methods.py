"""A sweep's search and its scheduler, as Ray Tune has them."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from periflow_ray.errors import UsageError
from periflow_ray.runtime.sweeps.population import Cloning, Population
from periflow_ray.runtime.sweeps.searcher import VariantSearcher
from periflow_ray.spec.sweep import STEP, SweepSpec
from periflow_ray.sweeps.journal import Trial
from periflow_ray.sweeps.space import domain_of, draw_trials

_EXTRAS = {"optuna": "optuna", "bayesopt": "bayesian-optimization", "hyperopt": "hyperopt"}


def make_searcher(spec: SweepSpec, known: Mapping[int, Trial]) -> Searcher:
    """Where the next trial is, with what is known of the earlier ones.

    Raises:
        UsageError: a package for it is not installed.
    """
    if spec.search.name in ("random", "grid"):
        return VariantSearcher(draw_trials(spec), len(known))
    return _make_learner(spec, known)


def _make_learner(spec: SweepSpec, known: Mapping[int, Trial]) -> Searcher:
    name = spec.search.name
    require_search(name)
    fixed = {each: parameter.values[0] for each, parameter in spec.parameters.items() if parameter.kind == "fixed"}
    domains = {each: domain_of(parameter, name) for each, parameter in spec.parameters.items() if each not in fixed}
    points = [{each: value for each, value in point.items() if each in domains} for point in spec.points[len(known) :]]
    options: dict[str, Any] = {
        "space": domains,
        "metric": spec.metric,
        "mode": spec.mode,
        "points_to_evaluate": points or None,
        **spec.search.options,
    }
    inner: Searcher
    match name:
        case "optuna":
            from ray.tune.search.optuna import OptunaSearch

            inner = OptunaSearch(seed=spec.seed, **options)
        case "bayesopt":
            from ray.tune.search.bayesopt import BayesOptSearch

            inner = BayesOptSearch(random_state=spec.seed, **options)
        case _:
            from ray.tune.search.hyperopt import HyperOptSearch

            inner = HyperOptSearch(random_state_seed=spec.seed, **options)
    for trial in known.values():
        best = trial.best(spec.mode)
        if trial.is_final and best is not None and domains.keys() <= trial.parameters.keys():
            # Where it cannot be taught, it begins to learn anew.
            with contextlib.suppress(NotImplementedError):
                inner.add_evaluated_point({each: trial.parameters[each] for each in domains}, best)
    return _WithFixed(inner, fixed)


def require_search(name: str) -> None:
    """Refuse a way of searching whose package is not installed.

    Raises:
        UsageError: it is not.
    """
    package = _EXTRAS.get(name)
    if package is None:
        return
    try:
        importlib.import_module({"bayesopt": "bayes_opt"}.get(name, name))
    except ImportError as err:
        raise UsageError(f"search: {name} needs the package {package}: pip install {package}") from err


class _WithFixed(Searcher):  # type: ignore[misc]
    def __init__(self, inner: Searcher, fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self._inner = inner
        self._fixed = fixed

    def suggest(self, trial_id: str) -> Any:
        found = self._inner.suggest(trial_id)
        return {**found, **self._fixed} if isinstance(found, dict) else found

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._inner.on_trial_complete(trial_id, result, error)


def make_scheduler(spec: SweepSpec, known: Mapping[int, Trial], cloning: Cloning) -> TrialScheduler:
    """Which trials are stopped early, by the metric's own steps, with what is known of the earlier trials.

    Hyperband begins with new brackets, and a population with new scores.
    """
    options = dict(spec.scheduler.options)
    match spec.scheduler.name:
        case "none":
            return FIFOScheduler()
        case "asha":
            return _Asha(_reports_of(known), time_attr=STEP, **options)
        case "hyperband":
            return HyperBandScheduler(time_attr=STEP, **options)
        case "median":
            return _Median(_reports_of(known), time_attr=STEP, **options)
    return Population(spec, cloning)


@dataclass(frozen=True)
class _EndedTrial:
    """What a scheduler asks of a trial."""

    trial_id: str
    reports: tuple[tuple[int, float], ...]


class _Taught(TrialScheduler):  # type: ignore[misc]
    """Mixed into a scheduler that looks at nothing but results: it gets those of earlier trials first."""

    def __init__(self, ended: Sequence[_EndedTrial], **options: Any) -> None:
        super().__init__(**options)
        self._ended = ended

    def set_search_properties(self, metric: str, mode: str, **spec: Any) -> bool:
        is_set: bool = super().set_search_properties(metric, mode, **spec)
        for trial in self._ended:
            self.on_trial_add(None, trial)
            result: dict[str, Any] = {}
            for step, value in trial.reports:
                result = {metric: value, STEP: step}
                self.on_trial_result(None, trial, result)
            self.on_trial_complete(None, trial, result)
        return is_set


class _Asha(_Taught, ASHAScheduler):  # type: ignore[misc]
    pass


class _Median(_Taught, MedianStoppingRule):  # type: ignore[misc]
    pass


def _reports_of(known: Mapping[int, Trial]) -> list[_EndedTrial]:
    return [
        _EndedTrial(f"known-{trial.number}", tuple(report for report in trial.reports if not math.isnan(report[1])))
        for trial in known.values()
        if trial.is_final and trial.reports
    ]
