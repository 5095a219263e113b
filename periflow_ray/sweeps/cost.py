"""What the trials of a sweep cost, by the price of their machines."""

from __future__ import annotations

from collections.abc import Iterable

from periflow_ray.plan import JobPlan
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.sweeps.journal import Trial

_S_PER_HOUR = 3600


def usd_per_trial_hour(plan: JobPlan, spec: SweepSpec) -> float | None:
    """US dollars for an hour of a trial; None where the machines have no price.

    Args:
        plan: of the sweep's template.
    """
    price = plan.price_per_hour_usd
    return price * spec.resources.device if price else None


def cost_of(trials: Iterable[Trial], usd_per_hour: float) -> float:
    """US dollars for the time that trials have run so far."""
    return sum(trial.duration_s for trial in trials) / _S_PER_HOUR * usd_per_hour
