"""The credentials that the template's plugins name, from this machine."""

from __future__ import annotations

from collections.abc import Callable

from periflow_ray.credentials import Credential, read_credential
from periflow_ray.errors import PeriflowRayError
from periflow_ray.loops import tell


def read_plugin_credential(
    plugin: str, name: str, type_name: str, on_problem: Callable[[str], None]
) -> Credential | None:
    """A plugin's credential; where there is none to use, that is told, and the job does without the plugin."""
    try:
        credential = read_credential(name)
    except PeriflowRayError as err:
        tell(on_problem, f"{plugin} is not used: {err}")
        return None
    if credential.type != type_name:
        tell(on_problem, f"{plugin} is not used: credential '{name}' is of type {credential.type}, not {type_name}.")
        return None
    return credential
