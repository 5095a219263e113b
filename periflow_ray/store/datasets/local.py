"""A dataset as a directory of this machine: its own where it is local, else fetched once into the node's cache."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.names import HUGGINGFACE_PREFIX
from periflow_ray.store.datasets.cache import CacheUse, DatasetCache
from periflow_ray.store.datasets.files import identify_content, identify_facts
from periflow_ray.store.datasets.huggingface import WHOLE, Part, save_huggingface_dataset
from periflow_ray.store.datasets.packs import download_packs
from periflow_ray.store.datasets.records import list_dataset_entries, list_dataset_files, locate_dataset, read_dataset
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import DownloadItem, Transfer
from periflow_ray.store.trees import make_entries, set_facts

_NUM_WORKERS = 16


@dataclass(frozen=True)
class LocalDataset:
    """A dataset on this machine; ``path`` stays complete and unchanged until ``close``."""

    path: Path
    use: CacheUse | None

    @property
    def is_in_place(self) -> bool:
        """Whether these are the dataset's own files, not a copy in the cache."""
        return self.use is None

    def close(self) -> None:
        """The files are not needed any more: the cache may drop its copy."""
        if self.use is not None:
            self.use.close()


def open_dataset(
    root: StorageRoot,
    name: str,
    part: Part = WHOLE,
    *,
    cache: DatasetCache | None = None,
    on_note: Callable[[str], None] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> LocalDataset:
    """Make a dataset's files available on this machine.

    Read-only means: copies in the cache and files uploaded to a storage root that is a directory have no write
    permission (a process of root writes nevertheless). A linked local directory is the user's own and keeps its
    permissions, so a script that writes there changes the original.

    Args:
        name: a dataset's, or ``huggingface:<dataset>``.
        part: which part of a ``huggingface:`` dataset; of no meaning for others.
        cache: default is the one that the environment names.
        on_note: called with a line about what takes time.
        on_bytes: called with the number of bytes whenever some were fetched, from any thread.
    Raises:
        NotFoundError: there is no such dataset, or its files are not where it says.
        StorageError: it cannot be fetched.
    """
    tell = on_note or (lambda text: None)
    count = on_bytes or (lambda num_bytes: None)

    def tell_waiting() -> None:
        tell(f"waits for another process of this machine that fetches dataset '{name}'")

    if name.startswith(HUGGINGFACE_PREFIX):
        public_name = name.removeprefix(HUGGINGFACE_PREFIX)
        use = (cache or DatasetCache()).open(
            _cache_key(name, identify_content((), name if part == WHOLE else f"{name} {part}")),
            lambda directory: save_huggingface_dataset(public_name, part, directory),
            on_wait=tell_waiting,
        )
        return LocalDataset(use.path, use)
    dataset = read_dataset(root, name)
    place, prefix = locate_dataset(root, dataset)
    if place.is_local:
        path = place.local_path("" if dataset.is_linked else f"{prefix}/files")
        if not path.is_dir():
            raise NotFoundError(
                f"dataset '{name}' is the directory {path}, which does not exist on {socket.gethostname()}. Put it on "
                "a file system that every node mounts at this path, or upload it to the storage root."
            )
        return LocalDataset(path, None)
    files, entries = list_dataset_files(root, dataset), list_dataset_entries(root, dataset)
    if not files:
        raise NotFoundError(f"dataset '{name}' has no files: there is nothing at '{dataset.uri}'")

    def fetch(directory: Path) -> None:
        tell(f"fetches dataset '{name}': {len(files):,} files, {sum(file.size for file in files):,} bytes")
        download_packs(place, prefix, [file for file in files if file.pack is not None], directory, count)
        items = [
            DownloadItem(
                file.path if dataset.is_linked else f"{prefix}/{file.stored_key}",
                directory / file.path,
                file.size,
                file.checksum,
            )
            for file in files
            if file.pack is None
        ]
        Transfer(place, num_workers=_NUM_WORKERS, on_bytes=count).download_files(items)
        _remove_others(directory, {file.path for file in files})
        make_entries(directory, entries)
        set_facts(directory, files, entries)
        if dataset.is_linked and list_dataset_files(root, dataset) != files:
            raise StorageError(f"dataset '{name}' changed at '{dataset.uri}' while it was fetched. Run the job again.")

    content_id = identify_content(files, dataset.uri if dataset.is_linked else "")
    facts_id = identify_facts(files, entries)
    size_bytes = sum(file.size for file in files)
    use = (cache or DatasetCache()).open(
        _cache_key(name, content_id, facts_id), fetch, size_bytes=size_bytes, on_wait=tell_waiting
    )
    return LocalDataset(use.path, use)


def _remove_others(directory: Path, paths: Collection[str]) -> None:
    """Delete what an earlier fetch that was killed left half written."""
    for parent, _, names in os.walk(directory):
        for path in (Path(parent, name) for name in names):
            if path.relative_to(directory).as_posix() not in paths:
                path.unlink()


def _cache_key(name: str, content_id: str, facts_id: str = "") -> str:
    ids = f"{content_id[:32]}-{facts_id[:16]}" if facts_id else content_id[:32]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:100]}-{ids}"
