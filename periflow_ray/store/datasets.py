"""Datasets: a name for files that jobs read, kept in the storage root or linked where they are."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.store.root import StorageRoot

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Dataset:
    """A named dataset. ``uri`` is where its files are: below the storage root, a path, or a bucket."""

    name: str
    uri: str
    created_unix_s: float
    is_linked: bool
    metadata: dict[str, Any] = field(default_factory=dict)


def upload_dataset(
    root: StorageRoot,
    name: str,
    source: Path,
    *,
    contents_only: bool,
    metadata: dict[str, Any] | None = None,
    on_file: Callable[[str, int], None] | None = None,
) -> Dataset:
    """Copy a directory or file into the storage root under a name.

    Args:
        contents_only: put the directory's contents at the top, not the directory itself (a trailing ``/``).
        on_file: called after each file with its path in the dataset and its size in bytes.
    Raises:
        UsageError: the name is taken or cannot be used, or the source does not exist.
    """
    _check_new_name(root, name)
    if not source.exists():
        raise UsageError(f"'{source}' does not exist.")
    # What an upload that was cut short left behind is not part of this one.
    root.delete(_prefix(name))
    for path, relative in _walk(source, contents_only):
        root.upload_file(path, f"{_prefix(name)}/files/{relative}")
        if on_file is not None:
            on_file(relative, path.stat().st_size)
    dataset = Dataset(name, root.path_of(f"{_prefix(name)}/files"), time.time(), False, metadata or {})
    root.write_json(f"{_prefix(name)}/dataset.json", dataclasses.asdict(dataset))
    return dataset


def link_dataset(root: StorageRoot, name: str, uri: str, metadata: dict[str, Any] | None = None) -> Dataset:
    """Give files that stay where they are a name.

    Raises:
        UsageError: the name is taken or cannot be used.
        StorageError: the URI cannot be opened.
        NotFoundError: there is nothing at the URI.
    """
    _check_new_name(root, name)
    linked = StorageRoot(uri)
    if not linked.exists(""):
        raise NotFoundError(f"there is nothing at '{uri}'")
    dataset = Dataset(name, linked.uri, time.time(), True, metadata or {})
    root.write_json(f"{_prefix(name)}/dataset.json", dataclasses.asdict(dataset))
    return dataset


def read_dataset(root: StorageRoot, name: str) -> Dataset:
    """One dataset.

    Raises:
        NotFoundError: there is none of that name.
    """
    try:
        return Dataset(**root.read_json(f"{_prefix(name)}/dataset.json"))
    except NotFoundError:
        raise NotFoundError(
            f"dataset '{name}' does not exist in storage root '{root.uri}'. Make it known: "
            f"periflow-ray datastore upload -n {name} -p DIR"
        ) from None


def list_datasets(root: StorageRoot) -> list[Dataset]:
    """All datasets by name; one whose upload was cut short is left out."""
    names = root.list_names("datasets")
    return [read_dataset(root, name) for name in names if root.exists(f"{_prefix(name)}/dataset.json")]


def list_dataset_files(root: StorageRoot, dataset: Dataset) -> dict[str, int]:
    """The dataset's files: relative path -> size in bytes."""
    return _files_root(root, dataset).list_files("")


def fetch_dataset(root: StorageRoot, dataset: Dataset, target: Path) -> None:
    """Make the dataset appear at a path of this machine: a symbolic link where it is local, else a copy."""
    files = _files_root(root, dataset)
    target.parent.mkdir(parents=True, exist_ok=True)
    if files.is_local:
        target.symlink_to(files.base_path, target_is_directory=True)
        return
    for relative in files.list_files(""):
        files.download_file(relative, target / relative)


def delete_dataset(root: StorageRoot, name: str) -> None:
    """Forget a dataset; its files go only if they were uploaded, linked ones stay.

    Raises:
        NotFoundError: there is none of that name.
    """
    read_dataset(root, name)
    root.delete(_prefix(name))


def _files_root(root: StorageRoot, dataset: Dataset) -> StorageRoot:
    return StorageRoot(dataset.uri) if dataset.is_linked else StorageRoot(f"{root.uri}/{_prefix(dataset.name)}/files")


def _check_new_name(root: StorageRoot, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"dataset name {name!r} cannot be used: letters, digits, '.', '_' and '-', starting with a letter or digit."
        )
    if root.exists(f"{_prefix(name)}/dataset.json"):
        raise UsageError(
            f"dataset '{name}' already exists. Delete it first (periflow-ray datastore delete {name}) or choose "
            "another name."
        )


def _walk(source: Path, contents_only: bool) -> Iterator[tuple[Path, str]]:
    if source.is_file():
        yield source, source.name
        return
    # Made absolute without following links: "." has a name then, and a link keeps the one the user typed.
    top = Path(os.path.abspath(source))
    base = top if contents_only else top.parent
    for path in sorted(top.rglob("*")):
        if path.is_file():
            yield path, path.relative_to(base).as_posix()


def _prefix(name: str) -> str:
    return f"datasets/{name}"
