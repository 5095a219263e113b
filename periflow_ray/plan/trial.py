"""The plan of one trial of a sweep: that of the template, with the trial's parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping

from periflow_ray.errors import UsageError
from periflow_ray.plan.job_plan import JobPlan
from periflow_ray.spec.sweep_parameters import Value

HPARAMS_VARIABLE = "PERIFLOW_HPARAMS"
# How long what a rank reports may wait on its way, in the processes of a trial.
REPORT_INTERVAL_VARIABLE = "PERIFLOW_REPORT_INTERVAL_S"
TRIAL_REPORT_INTERVAL_S = 0.05
# What ``relocate`` changes of a plan, but for the CPUs, of which a trial has its share.
_PLACE_FIELDS = (
    "vm",
    "fallback_vms",
    "num_devices",
    "num_nodes",
    "devices_per_node",
    "memory_bytes_per_device",
    "gpus_per_device",
    "storage_uri",
    "storage_credential",
    "elastic",
    "price_per_hour_usd",
)


def plan_trial(
    plan: JobPlan,
    *,
    sweep: int | None,
    name: str,
    hparams: Mapping[str, Value],
    device_share: float = 1.0,
    start_from: str | None = None,
) -> JobPlan:
    """What a trial runs.

    Each parameter is a variable of the environment, so that bash puts ``${name}`` into the command, and all of them are
    in one, for ``pf.hparams()``.

    Args:
        plan: of the sweep's template.
        sweep: the sweep's own job, which has the workspace; None where the trial has its own.
        name: of the trial's job.
        device_share: of a device that the trial has for itself.
        start_from: id of another trial's checkpoint to go on from.
    """
    variables = {name: text_of(value) for name, value in hparams.items()}
    env = {
        **plan.env,
        **variables,
        HPARAMS_VARIABLE: json.dumps(dict(hparams)),
        REPORT_INTERVAL_VARIABLE: str(TRIAL_REPORT_INTERVAL_S),
    }
    return plan.model_copy(
        update={
            "name": name,
            "env": env,
            "hparams": dict(hparams),
            "workspace_of": sweep,
            "start_from": start_from,
            "cpus_per_device": plan.cpus_per_device * device_share,
        }
    )


def move_trial(plan: JobPlan, sweep_plan: JobPlan, device_share: float) -> JobPlan:
    """The plan of a trial that goes on where its sweep runs now, and with as many devices as the sweep's trials have.

    Args:
        plan: of the trial, as it began.
        sweep_plan: of the sweep's template, as it was resumed.
        device_share: see ``plan_trial``.
    """
    place = {name: getattr(sweep_plan, name) for name in _PLACE_FIELDS}
    return plan.model_copy(update={**place, "cpus_per_device": sweep_plan.cpus_per_device * device_share})


def is_elsewhere(plan: JobPlan, sweep_plan: JobPlan) -> bool:
    """Whether a trial began on other machines, or with other devices, than its sweep has now."""
    return any(getattr(plan, name) != getattr(sweep_plan, name) for name in _PLACE_FIELDS)


def require_share(plan: JobPlan, device_share: float) -> None:
    """Refuse to share devices between trials of several nodes, or of several GPUs, which no two ranks can share.

    Raises:
        UsageError: they would.
    """
    is_shareable = plan.num_nodes == 1 and (plan.num_devices == 1 or not plan.gpus_per_device)
    if device_share < 1 and not is_shareable:
        raise UsageError(
            f"resources.device is {device_share:g}, and a trial has {plan.num_devices} devices on {plan.num_nodes} "
            "nodes; only trials of one device share it. Leave resources.device out, or lower num_devices."
        )


def text_of(value: Value) -> str:
    """A value as a command line takes it: ``true`` and ``false`` for booleans, no more digits than a number needs."""
    return str(value).lower() if isinstance(value, bool) else str(value)
