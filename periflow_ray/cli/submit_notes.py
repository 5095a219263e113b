"""The notes of ``submit`` on keys of the template that it accepts and that change nothing."""

from __future__ import annotations

from periflow_ray.credentials import describe_unfit
from periflow_ray.errors import StorageError
from periflow_ray.plan import JobPlan


def describe_unused(plan: JobPlan) -> list[str]:
    """Sentences for the user; none when everything of the template is used."""
    notes = []
    if plan.workspace_dir_name is None:
        notes.append(f"no workspace directory was given (-d DIR); {plan.workspace_mount_path} is empty in the job.")
    return [*notes, *_describe_unfit_credentials(plan)]


def _describe_unfit_credentials(plan: JobPlan) -> list[str]:
    # Notes, not errors: a job runs without its plugins, and they are read where its driver runs.
    wanted = {} if plan.plugin is None else plan.plugin.credentials
    image_credential = plan.image_credential_id
    if image_credential is not None:
        wanted = {"job_setting.docker": ("docker", image_credential), **wanted}
    try:
        unfit = describe_unfit(wanted)
    except StorageError as err:
        return [str(err)]
    return list(unfit.values())
