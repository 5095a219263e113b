"""The credential of an image's registry, from this machine."""

from __future__ import annotations

from collections.abc import Callable

from periflow_ray.plan import JobPlan
from periflow_ray.runtime.environments.engine import Login
from periflow_ray.runtime.plugin_credentials import read_plugin_credential


def read_login(plan: JobPlan, on_problem: Callable[[str], None]) -> Login | None:
    """How a job's nodes get into the registry of its image; None if it names no credential, or none that is there."""
    if plan.image is None or plan.image_credential_id is None:
        return None
    credential = read_plugin_credential(
        "job_setting.docker.credential_id", plan.image_credential_id, "docker", on_problem
    )
    if credential is None:
        return None
    values = credential.values
    return Login(values["username"], values["password"], values.get("registry"))
