"""The notes of ``submit`` on keys of the template that it accepts and that change nothing."""

from __future__ import annotations

import shlex

from periflow_ray.credentials import list_credentials
from periflow_ray.errors import StorageError
from periflow_ray.plan import JobPlan


def describe_unused(plan: JobPlan) -> list[str]:
    """Sentences for the user; none when everything of the template is used."""
    notes = []
    if plan.workspace_dir_name is None:
        notes.append(f"no workspace directory was given (-d DIR); {plan.workspace_mount_path} is empty in the job.")
    if plan.image is not None:
        notes.append(f"the image '{plan.image}' is not used: the command runs in the cluster's Python environment.")
    return [*notes, *_describe_unfit_credentials(plan)]


def _describe_unfit_credentials(plan: JobPlan) -> list[str]:
    # Notes, not errors: a job runs without its plugins, and they are read where its driver runs.
    named = {"job_setting.docker": ("docker", plan.image_credential_id)}
    if plan.plugin is not None and plan.plugin.slack is not None:
        named["plugin.slack"] = ("slack", plan.plugin.slack.credential_id)
    if plan.plugin is not None and plan.plugin.webhook is not None:
        named["plugin.webhook"] = ("webhook", plan.plugin.webhook.credential_id)
    if plan.plugin is not None and plan.plugin.wandb is not None:
        named["plugin.wandb"] = ("wandb", plan.plugin.wandb.credential_id)
    wanted = [(section, type_name, name) for section, (type_name, name) in named.items() if name is not None]
    if not wanted:
        return []
    try:
        types = {credential.name: credential.type for credential in list_credentials()}
    except StorageError as err:
        return [str(err)]
    notes = []
    for section, type_name, name in wanted:
        start = f"{section}.credential_id names '{name}', and"
        if name not in types:
            create = f"periflow-ray credential create {shlex.quote(name)} --type {type_name}"
            notes.append(f"{start} there is no such credential on this machine. Create it: {create}")
        elif types[name] != type_name:
            notes.append(f"{start} that credential is of type {types[name]}, not {type_name}.")
        elif section == "job_setting.docker":
            notes.append(f"{start} nothing uses it yet: no image is fetched.")
    return notes
