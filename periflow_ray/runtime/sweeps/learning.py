"""Searches that learn: Optuna, Bayesian optimization and Hyperopt, as Ray Tune has them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from periflow_ray.runtime.sweeps.trial_runner import is_worst
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.sweeps.journal import Trial
from periflow_ray.sweeps.space import domain_of, draw_whole_trials, share_of, value_at


class LearningSearcher(Searcher):  # type: ignore[misc]
    """One of Tune's, which learns again what is known of earlier trials. Fixed parameters are not its matter.

    Bayesian optimization sees each parameter as a share of its range: its process takes a distance in one parameter
    for as much as the same in another one, and knows no logarithms.

    Args:
        known: what the journal knows of the trials that have begun.
    """

    def __init__(self, spec: SweepSpec, known: Mapping[int, Trial]) -> None:
        super().__init__()
        self._spec = spec
        self._fixed = {
            name: parameter.values[0] for name, parameter in spec.parameters.items() if parameter.kind == "fixed"
        }
        self._searched = {name: parameter for name, parameter in spec.parameters.items() if name not in self._fixed}
        self._is_in_shares = spec.search.name == "bayesopt"
        self._asked: set[str] = set()
        self._has_none = False
        self._is_finished = False
        self._worst: float | None = None
        taught = [
            trial
            for trial in known.values()
            if trial.is_final and trial.best(spec.mode) is not None and self._searched.keys() <= trial.parameters.keys()
        ]
        # Whole ones: none of them takes a point that leaves something out.
        points = [self._of_search(point) for point in _points_left(spec, len(known))]
        if spec.search.name == "optuna":
            self._inner = self._make(points)
            for trial in taught:
                self._inner.add_evaluated_point(self._of_search(trial.parameters), trial.best(spec.mode))
            return
        # The others know no such call.
        self._inner = self._make([*(self._of_search(trial.parameters) for trial in taught), *points])
        for trial in taught:
            name = f"known-{trial.number}"
            if self._inner.suggest(name) is not None:
                self._tell(name, {spec.metric: trial.best(spec.mode)})

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._is_finished:
            return Searcher.FINISHED  # type: ignore[no-any-return]
        if self._has_none and self._asked:
            # Until one of them has ended it says the same; each question costs it time, and patience.
            return None
        found = self._inner.suggest(trial_id)
        self._has_none, self._is_finished = found is None, found == Searcher.FINISHED
        if not isinstance(found, dict):
            return found  # type: ignore[no-any-return]
        self._asked.add(trial_id)
        if self._is_in_shares:
            found = {name: value_at(self._searched[name], float(share)) for name, share in found.items()}
        return {**found, **self._fixed}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._asked.discard(trial_id)
        self._has_none = False
        self._tell(trial_id, result, error)

    def _tell(self, trial_id: str, result: dict[str, Any] | None, error: bool = False) -> None:
        if self._is_in_shares and result is not None:
            result = {self._spec.metric: self._without_bounds(result[self._spec.metric])}
        self._inner.on_trial_complete(trial_id, result, error)

    def _without_bounds(self, value: float) -> float:
        """In place of what stands for NaN the worst number so far: one can be reckoned with, and keeps others away."""
        worst = min if self._spec.mode == "max" else max
        if not is_worst(value):
            self._worst = worst(self._worst, value) if self._worst is not None else value
            return value
        return math.nan if self._worst is None else self._worst

    def _of_search(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's parameters as the search has them."""
        found = {name: value for name, value in parameters.items() if name in self._searched}
        if self._is_in_shares:
            return {name: share_of(self._searched[name], value) for name, value in found.items()}
        return found

    def _make(self, points: list[dict[str, Any]]) -> Searcher:
        spec = self._spec
        options: dict[str, Any] = {
            "metric": spec.metric,
            "mode": spec.mode,
            "points_to_evaluate": points or None,
            **spec.search.options,
        }
        if self._is_in_shares:
            space = {name: tune.uniform(0, 1) for name in self._searched}
        else:
            space = {name: domain_of(parameter, spec.search.name) for name, parameter in self._searched.items()}
        match spec.search.name:
            case "optuna":
                from ray.tune.search.optuna import OptunaSearch

                return OptunaSearch(space, seed=spec.seed, **options)
            case "bayesopt":
                from ray.tune.search.bayesopt import BayesOptSearch

                # It would lose points beyond those that it tries before it has learned anything.
                options["random_search_steps"] = max(options.get("random_search_steps", 10), len(points))
                bounds = BayesOptSearch.convert_search_space(space)
                return BayesOptSearch(bounds, random_state=spec.seed, **options)
        from ray.tune.search.hyperopt import HyperOptSearch

        return HyperOptSearch(HyperOptSearch.convert_search_space(space), random_state_seed=spec.seed, **options)


def _points_left(spec: SweepSpec, num_known: int) -> Iterator[dict[str, Any]]:
    """The points that have not begun, with what they leave out drawn."""
    return itertools.islice(draw_whole_trials(spec), num_known, len(spec.points)) if spec.points else iter(())
