"""What Ray Tune asks for trials: those that an earlier driver began first, then new ones, up to the wanted number."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ray.tune.search import Searcher

from periflow_ray.runtime.sweeps.trainable import FAILS
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.spec.sweep_parameters import Value
from periflow_ray.sweeps.journal import Trial
from periflow_ray.sweeps.space import drop_unused

# Stores a trial that is to begin, with its number, its parameters and Tune's id: a trial that cannot be does not begin.
Begin = Callable[[int, Mapping[str, Value], str], None]


class SweepSearcher(Searcher):  # type: ignore[misc]
    """Counts by the journal, so that exactly the wanted number of trials runs, however often the driver starts anew.

    A trial that Tune gives up because its agent died begins once more: Tune tries again only what is running by then.

    Args:
        inner: where the next trial is.
        known: what the journal knows of the trials that have begun, now and later.
    """

    def __init__(self, spec: SweepSpec, inner: Searcher, known: Mapping[int, Trial], begin: Begin) -> None:
        super().__init__(metric=spec.metric, mode=spec.mode)
        self._spec = spec
        self._inner = inner
        self._begin = begin
        self._known = known
        self._unfinished = [trial.number for trial in known.values() if not trial.is_final]
        self._num_begun = len(known)
        self._live: dict[str, int] = {}
        self._failed: set[str] = set()
        self._own: set[str] = set()
        self._is_over = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        # For the copy that Tune makes of all it is given, and that nobody restores.
        return {}

    def finish(self) -> None:
        """Begin no more trials."""
        self._is_over.set()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._is_over.is_set():
            return Searcher.FINISHED  # type: ignore[no-any-return]
        limit = self._spec.max_concurrent
        if limit is not None and len(self._live) >= limit:
            return None
        if self._unfinished:
            number = self._unfinished.pop(0)
            parameters = dict(self._known[number].parameters)
        else:
            found = Searcher.FINISHED
            if self._num_begun < self._spec.num_wanted:
                found = self._inner.suggest(trial_id)
            if found == Searcher.FINISHED and self._live:
                # Each of them may have to begin once more.
                return None
            if found is None or found == Searcher.FINISHED:
                return found  # type: ignore[no-any-return]
            self._own.add(trial_id)
            self._num_begun += 1
            number, parameters = self._num_begun, drop_unused(self._spec, found)
        self._begin(number, parameters, trial_id)
        self._live[trial_id] = number
        return parameters

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if FAILS in result:
            self._failed.add(trial_id)
        if trial_id in self._own:
            self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._live.pop(trial_id, None)
        if error and number is not None and trial_id not in self._failed:
            self._unfinished.append(number)
        if trial_id in self._own:
            self._inner.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is what lasts."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is what lasts."""


class VariantSearcher(Searcher):  # type: ignore[misc]
    """One drawn trial after the other; it learns nothing.

    Args:
        num_known: trials that were drawn before.
    """

    def __init__(self, variants: Iterator[dict[str, Any]], num_known: int) -> None:
        super().__init__()
        self._variants = itertools.islice(variants, num_known, None)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        return next(self._variants, Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the seed is what lasts."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the seed is what lasts."""
