"""Which URI the storage root has when a command does not say: a variable, the config file, a user directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import platformdirs

from periflow_ray.errors import StorageError

STORAGE_VARIABLE = "PERIFLOW_STORAGE"


def resolve_storage_uri(option: str | None = None) -> str:
    """The storage root to use: the option, else ``PERIFLOW_STORAGE``, else the config file, else a user directory."""
    configured = option or os.environ.get(STORAGE_VARIABLE) or _read_config().get("storage")
    if configured:
        return str(configured)
    return str(Path(platformdirs.user_data_dir("periflow-ray", appauthor=False)) / "storage")


def _read_config() -> dict[str, Any]:
    path = Path(platformdirs.user_config_dir("periflow-ray", appauthor=False)) / "config.yaml"
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
    return config
