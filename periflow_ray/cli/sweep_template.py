"""The template of a job with the best parameters of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from periflow_ray.plan import JobPlan
from periflow_ray.plan.trial import HPARAMS_VARIABLE, text_of

_INPUT_NAME = "best"


def build_template(plan: JobPlan, parameters: Mapping[str, Any], checkpoint: str | None) -> dict[str, Any]:
    """A pf-template.yml, as YAML has it, for the job that a plan was made of.

    Args:
        plan: of the sweep.
        parameters: what the command finds in its environment.
        checkpoint: id of the checkpoint to start from.
    """
    hparams = {name: text_of(value) for name, value in parameters.items()}
    docker: dict[str, Any] = {
        **({"image": plan.image} if plan.image else {}),
        **({"credential_id": plan.image_credential_id} if plan.image_credential_id else {}),
        "env_var": {**plan.env, **hparams, HPARAMS_VARIABLE: json.dumps(dict(parameters))},
        "command": plan.command,
    }
    saved: dict[str, Any] = {}
    if plan.output_checkpoint_dir is not None:
        saved["output_checkpoint_dir"] = plan.output_checkpoint_dir
    if checkpoint is not None:
        saved["input"] = {"id": checkpoint, "mount_path": f"{plan.workspace_mount_path}/{_INPUT_NAME}"}
    return {
        **({"name": f"{plan.name}-best"} if plan.name else {}),
        **({"experiment": plan.experiment} if plan.experiment else {}),
        "vm": list(plan.vm_names) if plan.fallback_vms else plan.vm.name,
        "num_devices": plan.num_devices,
        **({"max_failures": plan.max_failures} if plan.max_failures else {}),
        "job_setting": {
            "type": "custom",
            "launch_mode": plan.launch_mode,
            "docker": docker,
            "workspace": {"mount_path": plan.workspace_mount_path},
        },
        **({"checkpoint": saved} if saved else {}),
        **({"data": plan.data.model_dump(exclude_none=True)} if plan.data else {}),
    }
