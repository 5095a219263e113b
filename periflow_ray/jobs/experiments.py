"""Experiments: named groups of jobs, one small document each."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from periflow_ray.errors import NotFoundError, UsageError
from periflow_ray.store.documents import OnUnreadable, read_document, read_each, write_document
from periflow_ray.store.root import StorageRoot

_NAME = re.compile(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,127}")


@dataclass(frozen=True)
class Experiment:
    """A named group of jobs; jobs name it in their template."""

    name: str
    created_unix_s: float


def create_experiment(root: StorageRoot, name: str) -> Experiment:
    """Create an experiment.

    Raises:
        UsageError: the name is taken or cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"experiment name {name!r} cannot be used: 1 to 128 characters, no '/', '\\' or control characters, "
            "not starting with '.'"
        )
    experiment = Experiment(name, time.time())
    if has_experiment(root, name):
        raise UsageError(f"experiment '{name}' already exists. List them: periflow-ray experiment list")
    write_document(root, _key(name), experiment)
    return experiment


def has_experiment(root: StorageRoot, name: str) -> bool:
    """Whether the experiment exists."""
    return root.exists(_key(name))


def read_experiment(root: StorageRoot, name: str) -> Experiment:
    """One experiment.

    Raises:
        NotFoundError: there is none of that name.
        DocumentError: it cannot be read.
    """
    try:
        return read_document(root, _key(name), Experiment)
    except NotFoundError:
        raise NotFoundError(
            f"experiment '{name}' does not exist. Create it: periflow-ray experiment create -n '{name}'"
        ) from None


def list_experiments(root: StorageRoot, on_unreadable: OnUnreadable | None = None) -> list[Experiment]:
    """All experiments by name.

    Args:
        on_unreadable: told of each experiment that cannot be read, which is left out then.
    Raises:
        DocumentError: there is such an experiment, and nobody to be told of it.
    """
    names = [name.removesuffix(".json") for name in root.list_names("experiments") if name.endswith(".json")]
    return read_each(lambda name: read_experiment(root, name), names, on_unreadable)


def rename_experiment(root: StorageRoot, name: str, new_name: str) -> Experiment:
    """Give an experiment another name; its jobs keep the name they were submitted with.

    Raises:
        NotFoundError: there is none of that name.
        UsageError: the new name is taken or cannot be used.
    """
    read_experiment(root, name)
    renamed = create_experiment(root, new_name)
    root.delete(_key(name))
    return renamed


def delete_experiment(root: StorageRoot, name: str) -> None:
    """Delete an experiment; its jobs stay.

    Raises:
        NotFoundError: there is none of that name.
    """
    read_experiment(root, name)
    root.delete(_key(name))


def _key(name: str) -> str:
    return f"experiments/{name}.json"
