"""Which storage root a command or script uses, and with which credential: options, variables, the config file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from periflow_ray.credentials import read_credential
from periflow_ray.errors import NotFoundError, StorageError, UsageError
from periflow_ray.store.backends import find_backend
from periflow_ray.store.root import StorageRoot
from periflow_ray.user_dirs import config_dir, data_dir

STORAGE_VARIABLE = "PERIFLOW_STORAGE"
CREDENTIAL_VARIABLE = "PERIFLOW_STORAGE_CREDENTIAL"


@dataclass(frozen=True)
class ChosenRoot:
    """A storage root and the name of the credential that opens it; None is the cloud's usual chain."""

    root: StorageRoot
    credential: str | None


def resolve_storage_uri(option: str | None = None) -> str:
    """The storage root to use: the option, else ``PERIFLOW_STORAGE``, else the config file, else a user directory."""
    configured = option or os.environ.get(STORAGE_VARIABLE) or _read_config().get("storage")
    if configured:
        return str(configured)
    return str(data_dir() / "storage")


def choose_root(uri: str | None = None, credential: str | None = None) -> ChosenRoot:
    """Open the storage root that the options name, else the variables, else the config file, else the default one.

    The credential of the config file belongs to the root of the config file, and is not used for another. Directories
    need none, so that one from the variable or the config file is not used for them. An empty text is no credential.

    Args:
        uri: the option ``--storage``.
        credential: the option ``--storage-credential``.
    Raises:
        UsageError: there is no credential of that name on this machine, or it does not fit the root.
        StorageError: the root or the config file cannot be used.
    """
    chosen_uri = resolve_storage_uri(uri)
    name = credential if credential is not None else _default_credential(uri, chosen_uri)
    if not name:
        return ChosenRoot(StorageRoot(chosen_uri), None)
    _require_fitting(name, chosen_uri)
    return ChosenRoot(StorageRoot(chosen_uri, name), name)


def _require_fitting(name: str, uri: str) -> None:
    needed_type = find_backend(uri).credential_type
    if needed_type is None:
        raise UsageError(f"storage root '{uri}' needs no credential; leave --storage-credential {name} out.")
    try:
        found = read_credential(name)
    except NotFoundError as err:
        raise UsageError(f"storage root '{uri}': {err}") from None
    if found.type != needed_type.name:
        raise UsageError(
            f"storage root '{uri}' needs a credential of type {needed_type.name}, "
            f"and '{name}' is of type {found.type}. "
            "List them: periflow-ray credential list"
        )


def _default_credential(uri_option: str | None, chosen_uri: str) -> str | None:
    if find_backend(chosen_uri).credential_type is None:
        return None
    if CREDENTIAL_VARIABLE in os.environ:
        return os.environ[CREDENTIAL_VARIABLE]
    if uri_option or os.environ.get(STORAGE_VARIABLE):
        return None
    name: str | None = _read_config().get("storage_credential")
    return name


def _read_config() -> dict[str, Any]:
    path = config_dir() / "config.yaml"
    if not path.is_file():
        return {}
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as err:
        raise StorageError(f"{path} is not valid YAML: {err}") from err
    if config is None:
        return {}
    if not isinstance(config, dict) or not isinstance(config.get("storage", ""), str):
        raise StorageError(f"{path} must be a mapping such as 'storage: s3://bucket/prefix'.")
    if not isinstance(config.get("storage_credential") or "", str):
        raise StorageError(f"{path}: storage_credential must be the name of a credential, as text.")
    return config
