"""Whether the credentials that a template or a call names can be used on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from periflow_ray.credentials.stored import list_credentials


def describe_unfit(wanted: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """A sentence for each credential that is missing or of another type, under the section that names it.

    Args:
        wanted: type and name of each credential, by section: ``{"plugin.slack": ("slack", "our-slack")}``.
    Raises:
        StorageError: the file is damaged, or others may read it.
    """
    if not wanted:
        return {}
    types = {credential.name: credential.type for credential in list_credentials()}
    unfit = {}
    for section, (type_name, name) in wanted.items():
        start = f"{section}.credential_id names '{name}', and"
        if name not in types:
            create = f"periflow-ray credential create {shlex.quote(name)} --type {type_name}"
            unfit[section] = f"{start} there is no such credential on this machine. Create it: {create}"
        elif types[name] != type_name:
            unfit[section] = f"{start} that credential is of type {types[name]}, not {type_name}."
    return unfit
