"""What the trials of a sweep cost, by the price of their machines, and when that or the time is too much."""

from __future__ import annotations

from collections.abc import Iterable

from periflow_ray.plan import JobPlan
from periflow_ray.spec.sweep import SweepSpec
from periflow_ray.sweeps.journal import Trial

_S_PER_HOUR = 3600


def usd_per_trial_hour(plan: JobPlan, spec: SweepSpec, vm: str | None = None) -> float | None:
    """US dollars for an hour of a trial; None where the machines have no price.

    Args:
        plan: of the sweep's template.
        vm: the VM type that the trial runs on; None for the template's first one.
    """
    price = plan.usd_per_hour(vm)
    return price * spec.resources.device if price else None


def cost_of(trials: Iterable[Trial], plan: JobPlan, spec: SweepSpec) -> float | None:
    """US dollars for the time that trials have run so far; None where the machines have no price."""
    if usd_per_trial_hour(plan, spec) is None:
        return None
    return sum(trial.duration_s / _S_PER_HOUR * (usd_per_trial_hour(plan, spec, trial.vm) or 0.0) for trial in trials)


def describe_limit(spec: SweepSpec, plan: JobPlan, trials: Iterable[Trial], ran_s: float) -> str | None:
    """Which of its limits a sweep has come to; None for none of them.

    Args:
        ran_s: seconds that it has run for.
    """
    if spec.time_budget_s is not None and ran_s > spec.time_budget_s:
        return f"the time budget of {spec.time_budget} is over"
    cost = cost_of(trials, plan, spec)
    if spec.max_cost is not None and cost is not None and cost >= spec.max_cost:
        return f"it has cost ${cost:.2f}, and max_cost is ${spec.max_cost:g}"
    return None
