"""Makes a job's dataset appear at its mount path on a node."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from periflow_ray.errors import StorageError
from periflow_ray.store.datasets.huggingface import Part
from periflow_ray.store.datasets.local import LocalDataset, open_dataset
from periflow_ray.store.root import StorageRoot

if TYPE_CHECKING:
    from periflow_ray.spec.models import DataSpec


@dataclass(frozen=True)
class DatasetMount:
    """A dataset at a mount path.

    ``target`` is a symbolic link to ``source``, the directory with the files; a container mounts ``source`` instead.
    """

    target: Path
    source: Path
    dataset: LocalDataset

    def close(self) -> None:
        """Take the link away and let the cache drop its copy; call when the job's processes have ended."""
        if self.target.is_symlink():
            self.target.unlink()
        self.dataset.close()


def mount_dataset(
    root: StorageRoot,
    data: DataSpec,
    target: Path,
    *,
    on_note: Callable[[str], None] | None = None,
) -> DatasetMount:
    """Make the job's dataset appear at a path; what an earlier attempt linked there is replaced.

    Several nodes and jobs on one machine may do this at the same time: one fetches, the others wait. What read-only
    means, see ``open_dataset``.

    Args:
        root: the job's storage root.
        target: where ``data.mount_path`` is on this machine.
        on_note: called with a line when the dataset is fetched or waited for.
    Raises:
        NotFoundError: there is no such dataset.
        StorageError: it cannot be fetched, or something else is at the target.
    """
    dataset = open_dataset(root, data.name, Part(data.config, data.split, data.revision), on_note=on_note)
    try:
        _link(dataset.path, target)
    except BaseException:
        dataset.close()
        raise
    return DatasetMount(target, dataset.path, dataset)


def _link(source: Path, target: Path) -> None:
    if target.exists() and not target.is_symlink():
        try:
            target.rmdir()
        except OSError as err:
            raise StorageError(
                f"the dataset cannot appear at '{target}': there is something else already. Give data.mount_path a "
                "path of its own."
            ) from err
    target.parent.mkdir(parents=True, exist_ok=True)
    # Replaced in one step: a process never finds nothing there.
    link = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    link.symlink_to(source, target_is_directory=True)
    os.replace(link, target)
