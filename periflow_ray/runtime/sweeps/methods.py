"""A sweep's search and its scheduler, as Ray Tune has them."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune import TuneError
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from periflow_ray.errors import UsageError
from periflow_ray.runtime.sweeps.learning import LearningSearcher
from periflow_ray.runtime.sweeps.population import Cloning, Population
from periflow_ray.runtime.sweeps.searcher import VariantSearcher
from periflow_ray.spec.sweep import STEP, SweepSpec
from periflow_ray.sweeps.journal import Trial
from periflow_ray.sweeps.space import draw_trials


@dataclass(frozen=True)
class _Package:
    """What a method of Tune's needs.

    Args:
        wanted: as pip takes it.
        module: that is imported.
        attribute: of the module, which other versions do not have.
    """

    wanted: str
    module: str
    attribute: str | None = None


# By the extras of periflow-ray itself.
_PACKAGES = {
    "optuna": _Package("optuna", "optuna"),
    # Tune calls what version 2 took out.
    "bayesopt": _Package("bayesian-optimization>=1.4.3,<2", "bayes_opt", "UtilityFunction"),
    "hyperopt": _Package("hyperopt", "hyperopt"),
    "pb2": _Package("scikit-learn", "sklearn"),
}


def make_searcher(spec: SweepSpec, known: Mapping[int, Trial]) -> Searcher:
    """Where the next trial is, with what is known of the earlier ones.

    Raises:
        UsageError: a package for it is not installed, or it refuses an option.
    """
    if spec.search.name in ("random", "grid"):
        return VariantSearcher(draw_trials(spec), len(known))
    _require_package("search", spec.search.name)
    with _refusals_told("search", spec.search.name):
        return LearningSearcher(spec, known)


def _require_package(what: str, name: str) -> None:
    package = _PACKAGES[name]
    try:
        module = importlib.import_module(package.module)
    except ImportError as err:
        raise UsageError(f"{what}: {name} needs the package {package.wanted}: pip install '{package.wanted}'") from err
    if package.attribute is not None and not hasattr(module, package.attribute):
        raise UsageError(
            f"{what}: {name} needs another version of its package than is installed: pip install '{package.wanted}'"
        )


@contextlib.contextmanager
def _refusals_told(what: str, name: str) -> Iterator[None]:
    """An option that Tune refuses is the user's."""
    try:
        yield
    except (AssertionError, TypeError, ValueError, TuneError) as err:
        raise UsageError(f"{what}: {name} has an option that it does not take: {err}") from err


def make_scheduler(spec: SweepSpec, known: Mapping[int, Trial], cloning: Cloning) -> TrialScheduler:
    """Which trials are stopped early, by the metric's own steps, with what is known of the earlier trials.

    Hyperband begins with new brackets, and a population with new scores.

    Raises:
        UsageError: a package for it is not installed, or it refuses an option.
    """
    name = spec.scheduler.name
    if name in _PACKAGES:
        _require_package("scheduler", name)
    with _refusals_told("scheduler", name):
        return _make_scheduler(spec, known, cloning)


def _make_scheduler(spec: SweepSpec, known: Mapping[int, Trial], cloning: Cloning) -> TrialScheduler:
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
        case "pb2":
            from periflow_ray.runtime.sweeps.bandits import Bandits

            return Bandits(spec, cloning)
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
