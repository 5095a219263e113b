"""Reading a checkpoint's stored files again and comparing them with its manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import NotFoundError
from periflow_ray.store.checkpoints.files import FilesPlace, open_place
from periflow_ray.store.checkpoints.manifest import DAMAGED, DELETED, MANIFEST, UPLOADING, Manifest, StoredFile
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import DownloadItem, Transfer

# Files that are fetched together to be read again; more at a time would need more room on this machine's disk.
_BATCH_BYTES = 256 << 20


@dataclass(frozen=True)
class Problem:
    """What is wrong with a stored file; ``key`` is relative to the checkpoint's directory."""

    key: str
    text: str


def verify(root: StorageRoot, manifest: Manifest, on_file: Callable[[StoredFile], None] | None = None) -> list[Problem]:
    """Read every stored byte of a checkpoint again and compare it with the manifest.

    Args:
        on_file: called after each file.
    Returns:
        Files that are missing, have another size or content, or are not in the manifest; empty when all is well.
    Raises:
        StorageError: the storage root cannot be read.
    """
    place = open_place(root, manifest)
    problems = compare_sizes(place, manifest.files)
    damaged = {problem.key for problem in problems}
    problems += compare_checksums(place, [file for file in manifest.files if file.key not in damaged], on_file)
    if manifest.uri is None:
        known = {file.key for file in manifest.files} | {MANIFEST, UPLOADING, DELETED, DAMAGED}
        extra = place.root.list_files(place.prefix).keys() - known
        problems += [Problem(key, "is not in the manifest") for key in extra]
    return sorted(problems, key=lambda problem: problem.key)


def compare_sizes(place: FilesPlace, files: Collection[StoredFile]) -> list[Problem]:
    """Files of a manifest that are missing or have another size; one listing of the place."""
    sizes = place.root.list_files(place.prefix)
    problems = []
    for file in files:
        size = sizes.get(file.key)
        if size is None:
            problems.append(Problem(file.key, "is missing"))
        elif size != file.size:
            problems.append(Problem(file.key, f"has {size} bytes, {file.size} in the manifest"))
    return problems


def compare_checksums(
    place: FilesPlace, files: Collection[StoredFile], on_file: Callable[[StoredFile], None] | None = None
) -> Iterator[Problem]:
    """Read files of a manifest again and yield those with another content as they are found."""
    by_key = {file.key: file for file in files}
    for key, checksum in measure_files(place, {key: file.size for key, file in by_key.items()}):
        if on_file is not None:
            on_file(by_key[key])
        if checksum != by_key[key].checksum:
            yield Problem(key, f"has checksum {checksum}, {by_key[key].checksum} in the manifest")


def measure_files(place: FilesPlace, sizes: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Read stored files and yield key and checksum of each; memory and disk space stay bounded.

    Args:
        sizes: keys relative to the place -> size in bytes.
    Raises:
        NotFoundError: a file does not exist.
    """
    if place.root.is_local:
        for key in sizes:
            try:
                yield key, checksum_file(place.root.local_path(place.key(key)))
            except FileNotFoundError as err:
                raise NotFoundError(f"'{place.key(key)}' does not exist in storage root '{place.root.uri}'") from err
        return
    for batch in _batches(sizes):
        with tempfile.TemporaryDirectory(prefix="periflow-verify-") as directory:
            targets = {key: Path(directory) / str(index) for index, key in enumerate(batch)}
            items = [DownloadItem(place.key(key), target, sizes[key]) for key, target in targets.items()]
            Transfer(place.root).download_files(items)
            for key, target in targets.items():
                yield key, checksum_file(target)


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_bytes = 0
    for key, size in sizes.items():
        if batch and num_bytes + size > _BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
        batch.append(key)
        num_bytes += size
    if batch:
        yield batch
