"""The run at Weights & Biases that belongs to a job."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from periflow_ray.jobs import JobRecord
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.notifications.plugin_credentials import read_plugin_credential

DEFAULT_PROJECT = "periflow-ray"
# Weights & Biases refuses these in the names of projects and in run IDs, and more than 128 characters.
_REFUSED_CHARS = re.compile(r"[/\\#?%:]")
_MAX_NAME_CHARS = 128


@dataclass(frozen=True)
class WandbRun:
    """Where a job's metrics go; all of the job's restarts continue the same run. It pickles, key and all.

    ``settings`` are the variables of Weights & Biases that the template sets itself, such as WANDB_ENTITY.
    """

    run_id: str
    name: str
    project: str
    group: str
    api_key: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_wandb_run(plan: JobPlan, record: JobRecord, on_problem: Callable[[str], None]) -> WandbRun | None:
    """The run of a job with ``plugin.wandb``; None without it, or when its credential cannot be used here.

    The project is the job's experiment, or ``periflow-ray``.
    """
    wandb = plan.plugin.wandb if plan.plugin else None
    if wandb is None:
        return None
    credential = read_plugin_credential("plugin.wandb", wandb.credential_id, "wandb", on_problem)
    if credential is None:
        return None
    # Numbers are given out by each storage root, and many of them may share a project.
    origin = f"{record.job_id} {record.created_unix_s} {record.created_by}"
    digest = hashlib.blake2b(origin.encode(), digest_size=4).hexdigest()
    run_id = f"periflow-{record.job_id}-{digest}"
    return WandbRun(
        run_id=run_id,
        name=f"{plan.name or 'job'}-{record.job_id}"[:_MAX_NAME_CHARS],
        project=_REFUSED_CHARS.sub("-", plan.experiment or DEFAULT_PROJECT)[:_MAX_NAME_CHARS],
        group=run_id,
        api_key=credential.values["api_key"],
        settings={name: value for name, value in plan.env.items() if name.startswith("WANDB_")},
    )


def wandb_environment(plan: JobPlan, run: WandbRun) -> dict[str, str]:
    """Variables with which ``wandb.init()`` in the job's command continues the job's run; they hold a secret.

    What the template or the command line sets stays. One process of the job should call ``wandb.init()``, usually rank
    0, as Lightning's and transformers' loggers do.
    """
    variables = {
        "WANDB_API_KEY": run.api_key,
        "WANDB_PROJECT": run.project,
        "WANDB_NAME": run.name,
        "WANDB_RUN_GROUP": run.group,
        "WANDB_RUN_ID": run.run_id,
        "WANDB_RESUME": "allow",
    }
    given = {*plan.env, *plan.secret_names}
    return {name: value for name, value in variables.items() if name not in given}
