"""A checkpoint on paper: its ID, its keys, its files and its manifest. Nothing here reads or writes a storage root."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from periflow_ray.errors import CorruptCheckpointError, DamagedDocumentError
from periflow_ray.store.documents import dump_document, parse_document
from periflow_ray.store.keys import job_key
from periflow_ray.store.trees import TreeEntry

MANIFEST = "manifest.json"
UPLOADING = "uploading.json"
DELETED = "deleted.json"
DAMAGED = "damaged.json"

_JOB_CHECKPOINT = re.compile(r"step-(\d+)(?:\.(\d+))?")
# Not digits alone: an ID of digits is a job.
_OWN_NAME = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class LocalFile:
    """A file of a snapshot: path relative to it, size in bytes, and checksum.

    ``mtime_ns``, when it was changed last in nanoseconds since 1970, does not count when files are compared.
    """

    path: str
    size: int
    checksum: str
    is_executable: bool = False
    mtime_ns: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint; ``key`` is relative to the checkpoint's directory (or to the manifest's URI).

    ``mtime_ns`` is None where it is not known: of a linked checkpoint, and of one that an early version saved.
    """

    path: str
    size: int
    checksum: str
    node_rank: int
    key: str
    is_executable: bool = False
    mtime_ns: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class StoredEntry(TreeEntry):
    """A directory or link of a checkpoint, as node ``node_rank`` had it."""

    node_rank: int = 0


@dataclass(frozen=True)
class PlannedFile(StoredFile):
    """A file that node ``node_rank`` has to bring into a checkpoint.

    ``copy_from`` is an equal file of an earlier checkpoint, relative to the job's ``checkpoints/``, to be copied
    inside the storage root; None means upload.
    """

    copy_from: str | None = None

    def as_stored(self) -> StoredFile:
        """The file as the manifest lists it, wherever it came from."""
        return StoredFile(
            self.path, self.size, self.checksum, self.node_rank, self.key, self.is_executable, self.mtime_ns
        )


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint consists of. Times in Unix seconds, sizes in bytes.

    ``job_id`` is None for a checkpoint that no job made; ``attempt`` and ``world_size`` are 0 then. ``uri`` is where
    the files of a linked checkpoint are, opened with ``credential``; None means beside the manifest. ``entries`` are
    the directories and symbolic links.
    """

    checkpoint: str
    job_id: int | None
    step: int
    attempt: int
    world_size: int
    num_nodes: int
    created_unix_s: float
    files: tuple[StoredFile, ...]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created_by: str | None = None
    uri: str | None = None
    credential: str | None = None
    entries: tuple[StoredEntry, ...] = ()

    @property
    def checkpoint_id(self) -> str:
        """The ID that names the checkpoint in this storage root: ``<job>/<name>``, or ``<name>`` without a job."""
        return format_checkpoint_id(self.job_id, self.checkpoint)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def summary(self) -> CheckpointSummary:
        """What is left without the files."""
        return CheckpointSummary(self.checkpoint, self.step, self.metrics)


@dataclass(frozen=True)
class CheckpointSummary:
    """A committed checkpoint in short: what choosing among many needs, and little memory."""

    checkpoint: str
    step: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrashedManifest(Manifest):
    """What ``deleted.json`` says: the manifest, and until when it can be untrashed. Times in Unix seconds."""

    deleted_unix_s: float
    restorable_until_unix_s: float

    def as_manifest(self) -> Manifest:
        """The manifest alone."""
        return _without_more(self)


@dataclass(frozen=True, kw_only=True)
class DamagedManifest(Manifest):
    """What ``damaged.json`` says: the manifest, what was found, and when (Unix seconds)."""

    reason: str
    found_unix_s: float

    def as_manifest(self) -> Manifest:
        """The manifest alone."""
        return _without_more(self)


def _without_more(manifest: Manifest) -> Manifest:
    return Manifest(**{field.name: getattr(manifest, field.name) for field in dataclasses.fields(Manifest)})


AnyManifest = TypeVar("AnyManifest", Manifest, TrashedManifest, DamagedManifest)


@dataclass(frozen=True)
class UploadNote:
    """What ``uploading.json`` says of a checkpoint that is not committed; None where it is not known.

    ``reason`` is why it never will be.
    """

    step: int | None = None
    attempt: int | None = None
    started_unix_s: float | None = None
    reason: str | None = None


def format_checkpoint_id(job_id: int | None, name: str) -> str:
    """``<job>/<name>``, or ``<name>`` for a checkpoint that no job made."""
    return name if job_id is None else f"{job_id}/{name}"


def parse_checkpoint_id(text: str) -> tuple[int | None, str] | None:
    """The job (None: no job made it) and name in an ID; None if it can be no checkpoint's."""
    job, separator, name = text.rpartition("/")
    if not separator:
        return (None, name) if is_own_name(name) else None
    return (int(job), name) if is_job_number(job) and _JOB_CHECKPOINT.fullmatch(name) else None


def is_job_number(text: str) -> bool:
    """Whether a text is the number of a job."""
    return text.isdecimal() and text.isascii()


def is_own_name(name: str) -> bool:
    """Whether a checkpoint that no job made may have this name."""
    return _OWN_NAME.fullmatch(name) is not None


def checkpoint_key(job_id: int | None, checkpoint: str, *parts: str) -> str:
    """The key of something that belongs to a checkpoint; ``job_id`` is None for one that no job made."""
    return "/".join((checkpoints_prefix(job_id), checkpoint, *parts))


def checkpoints_prefix(job_id: int | None) -> str:
    """The key below which all checkpoints of a job are."""
    return "checkpoints" if job_id is None else job_key(job_id, "checkpoints")


def is_job_checkpoint_name(name: str) -> bool:
    """Whether a job names its checkpoints like this."""
    return _JOB_CHECKPOINT.fullmatch(name) is not None


def step_of(name: str) -> int | None:
    """The step in the name of a job's checkpoint."""
    match = _JOB_CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


def step_order(name: str) -> tuple[int, int, str]:
    """Sorts names by step, and by the time they were begun within a step."""
    match = _JOB_CHECKPOINT.fullmatch(name)
    return (int(match[1]), int(match[2] or 1), name) if match else (-1, 0, name)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of ``manifest.json``; ``parse_manifest`` reads it."""
    return dump_document(manifest)


def parse_manifest(content: bytes, key: str) -> Manifest:
    """A manifest from its stored text; ``key`` says where it was.

    Raises:
        CorruptCheckpointError: it is damaged.
        NewerFormatError: a later version of periflow-ray wrote it, in a format that this one does not know.
    """
    return _parse(Manifest, content, f"the manifest '{key}'")


def parse_trashed_manifest(content: bytes, key: str) -> TrashedManifest:
    """The same of ``deleted.json``."""
    return _parse(TrashedManifest, content, f"the manifest '{key}'")


def parse_damaged_manifest(content: bytes, key: str) -> DamagedManifest:
    """The same of ``damaged.json``."""
    return _parse(DamagedManifest, content, f"the manifest '{key}'")


def _parse(kind: type[AnyManifest], content: bytes, where: str) -> AnyManifest:
    try:
        return parse_document(kind, content, where, advice="")
    except DamagedDocumentError as err:
        raise CorruptCheckpointError(str(err)) from err


def parse_summary(content: bytes, key: str) -> CheckpointSummary:
    """A manifest's summary from its JSON document, several times faster than ``parse_manifest``.

    Raises:
        CorruptCheckpointError: it is damaged; ``key`` says where it was.
    """
    try:
        return parse_document(CheckpointSummary, content, f"the manifest '{key}'", advice="")
    except DamagedDocumentError as err:
        raise CorruptCheckpointError(str(err)) from err
