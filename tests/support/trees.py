"""Directories with all that is in them, as tests write and compare them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_tree(directory: Path, contents: Mapping[str, bytes]) -> Path:
    """Write files by their path below a directory; returns the directory."""
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def read_tree(directory: Path) -> dict[str, bytes]:
    """The contents of all files below a directory, by their path."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
