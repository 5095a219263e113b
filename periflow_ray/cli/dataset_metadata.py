"""The option with a dataset's metadata, which several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from periflow_ray.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])


def metadata_file_option(help_text: str = "JSON file.") -> Callable[[Function], Function]:
    """Adds ``--metadata-file`` as ``metadata_file: Path | None``."""
    path = click.Path(path_type=Path, exists=True, dir_okay=False)
    return click.option("-f", "--metadata-file", type=path, help=help_text)


def read_metadata(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        UsageError: it is none.
    """
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UsageError(f"{path} is not valid JSON: {err}") from err
    if not isinstance(metadata, dict):
        raise UsageError(f'{path}: metadata must be a JSON object, such as {{"source": "..."}}.')
    return metadata
