"""The credentials that a job's plugins name, from this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from periflow_ray.credentials import Credential, describe_unfit, read_credential
from periflow_ray.errors import PeriflowRayError, UsageError
from periflow_ray.loops import tell

if TYPE_CHECKING:
    from periflow_ray.spec.models import PluginSpec


def require_plugin_credentials(plugin: PluginSpec | None) -> None:
    """Refuse plugins whose credentials cannot be used, before a job that is driven by this process begins.

    Raises:
        UsageError: one line for each credential that is missing or of another type.
        StorageError: the file is damaged, or others may read it.
    """
    unfit = describe_unfit({} if plugin is None else plugin.credentials)
    if unfit:
        raise UsageError("\n".join(unfit.values()))


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
