"""Checkpoints: committed or not, never half.

jobs/<job>/checkpoints/<checkpoint>/files/...          files, as in the output checkpoint directory
jobs/<job>/checkpoints/<checkpoint>/node-<rank>/...    where a node's file differs from a lower node's of that name
jobs/<job>/checkpoints/<checkpoint>/manifest.json      written last; the checkpoint exists when it does
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.jobs import job_key
from periflow_ray.store.root import StorageRoot

_CHUNK_BYTES = 1 << 20
_DIR_NAME = re.compile(r"step-(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class LocalFile:
    """A file of a snapshot: path relative to it, size in bytes, and SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint; ``key`` is relative to the checkpoint's directory."""

    path: str
    size: int
    sha256: str
    node_rank: int
    key: str


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint consists of. Times in Unix seconds, sizes in bytes."""

    checkpoint: str
    job_id: int
    step: int
    attempt: int
    world_size: int
    num_nodes: int
    created_unix_s: float
    files: tuple[StoredFile, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def checkpoint_id(self) -> str:
        """The ID that names the checkpoint in this storage root: ``<job>/<name>``."""
        return f"{self.job_id}/{self.checkpoint}"

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def describe_files(directory: Path) -> list[LocalFile]:
    """Every file below a directory with size and checksum, by path; a link to a file counts as a file."""
    files = []
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            files.append(LocalFile(path.relative_to(directory).as_posix(), path.stat().st_size, _sha256(path)))
    return files


def merge_files(files_by_node: Mapping[int, Sequence[LocalFile]]) -> list[StoredFile]:
    """Decide which node uploads what: equal files once, differing files of one name once per node."""
    stored: list[StoredFile] = []
    first_by_path: dict[str, LocalFile] = {}
    for node_rank in sorted(files_by_node):
        for file in files_by_node[node_rank]:
            first = first_by_path.get(file.path)
            if first is None:
                first_by_path[file.path] = file
                stored.append(StoredFile(file.path, file.size, file.sha256, node_rank, f"files/{file.path}"))
            elif first != file:
                key = f"node-{node_rank}/{file.path}"
                stored.append(StoredFile(file.path, file.size, file.sha256, node_rank, key))
    return stored


def checkpoint_key(job_id: int, checkpoint: str, *parts: str) -> str:
    """The key of something that belongs to a checkpoint."""
    return job_key(job_id, "checkpoints", checkpoint, *parts)


def choose_name(root: StorageRoot, job_id: int, step: int, pending: Iterable[str] = ()) -> str:
    """A directory name for a new checkpoint of this step; a second one of the same step gets ``.2``.

    Args:
        pending: names that are chosen but not in the storage root yet.
    """
    taken = {*root.list_names(job_key(job_id, "checkpoints")), *pending}
    name = f"step-{step:08d}"
    ordinal = 2
    while name in taken:
        name = f"step-{step:08d}.{ordinal}"
        ordinal += 1
    return name


def commit(root: StorageRoot, manifest: Manifest) -> None:
    """Make a checkpoint exist: all of its files must be there already."""
    document = dataclasses.asdict(manifest)
    root.write_json(checkpoint_key(manifest.job_id, manifest.checkpoint, "manifest.json"), document)


def read_manifest(root: StorageRoot, job_id: int, checkpoint: str) -> Manifest:
    """The manifest of a committed checkpoint.

    Raises:
        NotFoundError: there is none, or it was never committed.
        StorageError: the manifest is damaged.
    """
    key = checkpoint_key(job_id, checkpoint, "manifest.json")
    content = root.read_bytes(key)
    try:
        document = json.loads(content)
        document["files"] = tuple(StoredFile(**file) for file in document["files"])
        return Manifest(**document)
    except (ValueError, TypeError, KeyError) as err:
        raise StorageError(f"the manifest '{key}' is damaged: {err}") from err


def find_checkpoint(root: StorageRoot, checkpoint_id: str) -> Manifest:
    """A committed checkpoint by its ID, ``<job>/<name>``, for example ``12/step-00000400``.

    Raises:
        NotFoundError: there is none of that ID, or it was never committed.
        StorageError: its manifest is damaged.
    """
    job_id, _, name = checkpoint_id.partition("/")
    if job_id.isdigit() and _DIR_NAME.fullmatch(name):
        with contextlib.suppress(NotFoundError):
            return read_manifest(root, int(job_id), name)
    raise NotFoundError(
        f"checkpoint '{checkpoint_id}' does not exist. An ID is <job>/<name>, for example 12/step-00000400; "
        "'periflow-ray job view 12' lists those of job 12."
    )


def list_committed(root: StorageRoot, job_id: int) -> list[Manifest]:
    """Committed checkpoints of a job, oldest first; partial and damaged ones are left out."""
    manifests = []
    for name in sorted(root.list_names(job_key(job_id, "checkpoints")), key=_order):
        try:
            manifests.append(read_manifest(root, job_id, name))
        except (NotFoundError, StorageError):
            continue
    return manifests


def latest_committed(root: StorageRoot, job_id: int) -> Manifest | None:
    """The committed checkpoint of the highest step, or None."""
    names = sorted(root.list_names(job_key(job_id, "checkpoints")), key=_order, reverse=True)
    for name in names:
        try:
            return read_manifest(root, job_id, name)
        except (NotFoundError, StorageError):
            continue
    return None


def restore(root: StorageRoot, manifest: Manifest, node_rank: int, target: Path) -> None:
    """Bring a checkpoint's files back, verified; ``target`` is replaced whole or not at all.

    A node gets its own variant of a file where nodes differed, else the lowest node's.

    Raises:
        StorageError: a file is missing or differs from the manifest.
    """
    by_path: dict[str, StoredFile] = {}
    for file in sorted(manifest.files, key=lambda file: file.node_rank):
        if file.path not in by_path or file.node_rank == node_rank:
            by_path[file.path] = file
    partial = target.with_name(f".{target.name}.restoring")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in by_path.values():
        key = checkpoint_key(manifest.job_id, manifest.checkpoint, file.key)
        try:
            root.download_file(key, partial / file.path)
        except NotFoundError as err:
            raise StorageError(f"checkpoint {manifest.checkpoint} has lost its file '{file.path}'") from err
        if _sha256(partial / file.path) != file.sha256:
            raise StorageError(f"checkpoint {manifest.checkpoint}: '{file.path}' differs from its manifest")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def _order(name: str) -> tuple[int, int]:
    match = _DIR_NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 1)) if match else (-1, 0)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
