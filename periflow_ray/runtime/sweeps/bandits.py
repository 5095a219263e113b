"""Population based bandits: as population based training, but a Gaussian process chooses the new parameters.

Imported where it is wanted only: scikit-learn takes a second.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.schedulers.pb2 import PB2

from periflow_ray.runtime.sweeps.population import Cloning, FromJobs
from periflow_ray.runtime.sweeps.trial_runner import is_worst
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.sweeps.space import share_of, value_at

logger = logging.getLogger(__name__)


class _InShares(PB2):  # type: ignore[misc]
    """Tune's own, which sees each parameter as a share of its range, so that a logarithmic one is searched as such.

    What is no number is not learned from.
    """

    _spec: SweepSpec
    data: Any

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # As Tune's process chose them: it finds a trial's reports again by these very numbers.
        self._shares: dict[str, dict[str, float]] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        self._shares[trial.trial_id] = {
            name: share_of(parameter, trial.config[name])
            for name, parameter in self._spec.parameters.items()
            if parameter.kind != "fixed"
        }

    def _save_trial_state(self, state: Any, time: int, result: dict[str, Any], trial: Any) -> None:
        super()._save_trial_state(state, time, result, self._see(trial))
        if is_worst(state.last_score):
            self.data = self.data[:-1]

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        seen, donor = self._see(trial), self._see(trial_to_clone)
        shares = dict(donor.config)
        try:
            # scikit-learn warns of every bound that it comes near to.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                shares, _ = super()._get_new_config(seen, donor)
        except (np.linalg.LinAlgError, ValueError) as err:
            # Reports that are all the same, for one.
            logger.warning("pb2 leaves the parameters of a copied trial as they are: %s", err)
        self._shares[trial.trial_id] = shares
        values = {name: value_at(self._spec.parameters[name], share) for name, share in shares.items()}
        return {**trial_to_clone.config, **values}, {}

    def _see(self, trial: Any) -> _Seen:
        return _Seen(trial.trial_id, self._shares[trial.trial_id])


@dataclass(frozen=True)
class _Seen:
    """A trial as Tune's process sees it."""

    trial_id: str
    config: Mapping[str, float]

    def __str__(self) -> str:
        return self.trial_id


class Bandits(FromJobs, _InShares):
    """The population of a sweep."""

    def __init__(self, spec: SweepSpec, cloning: Cloning) -> None:
        # On to Tune's classes it is set before they ask for it.
        self._spec = spec
        bounds = {name: [0.0, 1.0] for name, parameter in spec.parameters.items() if parameter.kind != "fixed"}
        super().__init__(spec, cloning, hyperparam_bounds=bounds, **spec.scheduler.options)
