"""Checkpoints: committed or not, never half.

jobs/<job>/checkpoints/<checkpoint>/files/...          files, as in the output checkpoint directory
jobs/<job>/checkpoints/<checkpoint>/node-<rank>/...    where a node's file differs from a lower node's of that name
jobs/<job>/checkpoints/<checkpoint>/manifest.json      written last; the checkpoint exists when it does
jobs/<job>/checkpoints/<checkpoint>/uploading.json     while it is not committed; says why when it never will be
jobs/<job>/checkpoints/<checkpoint>/deleted.json       in the manifest's place while it is in the trash
jobs/<job>/checkpoints/<checkpoint>/damaged.json       in the manifest's place once a file was found to be damaged
checkpoints/<checkpoint>/...                           the same for one that no job made

Where manifest.json stands beside one of the others, it wins: they are remains of something that was cut short.

Long because every one of these files is written and read here, in an order that is safe at each point.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

from periflow_ray.errors import CorruptCheckpointError, DocumentError, NewerFormatError, NotFoundError, StorageError
from periflow_ray.names import nearest_names
from periflow_ray.store.checkpoints.manifest import (
    DAMAGED,
    DELETED,
    MANIFEST,
    UPLOADING,
    CheckpointSummary,
    Manifest,
    TrashedManifest,
    UploadNote,
    checkpoint_key,
    checkpoints_prefix,
    is_job_checkpoint_name,
    is_job_number,
    is_own_name,
    manifest_bytes,
    parse_checkpoint_id,
    parse_manifest,
    parse_summary,
    step_of,
    step_order,
)
from periflow_ray.store.checkpoints.pins import read_pins
from periflow_ray.store.documents import read_document, write_document
from periflow_ray.store.root import StorageRoot

# On an object store each read is a round trip of some 30 ms, so 400 checkpoints must not be read one after the other.
_NUM_READERS = 32

Result = TypeVar("Result")


def list_checkpoint_names(root: StorageRoot, job_id: int | None) -> list[str]:
    """Names of all checkpoints of a job, by step, whatever became of them; with None those that no job made."""
    is_name = is_own_name if job_id is None else is_job_checkpoint_name
    return sorted(filter(is_name, root.list_names(checkpoints_prefix(job_id))), key=step_order)


def choose_name(root: StorageRoot, job_id: int, step: int, pending: Iterable[str] = ()) -> str:
    """A directory name for a new checkpoint of this step; a second one of the same step gets ``.2``.

    Args:
        pending: names that are chosen but not in the storage root yet.
    """
    taken = {*root.list_names(checkpoints_prefix(job_id)), *pending}
    name = f"step-{step:08d}"
    ordinal = 2
    while name in taken:
        name = f"step-{step:08d}.{ordinal}"
        ordinal += 1
    return name


def begin(root: StorageRoot, job_id: int | None, name: str, step: int, attempt: int) -> None:
    """Say that a checkpoint is on its way. Before its first file: what has no note at all is nobody's upload."""
    write_document(root, checkpoint_key(job_id, name, UPLOADING), UploadNote(step, attempt, time.time()))


def commit(root: StorageRoot, manifest: Manifest) -> None:
    """Make a checkpoint exist, to stay: all of its files must be there already, and synced.

    Raises:
        StorageError: the manifest could not be written; the checkpoint does not exist.
    """
    key = checkpoint_key(manifest.job_id, manifest.checkpoint, MANIFEST)
    content = manifest_bytes(manifest)
    try:
        root.write_bytes(key, content)
    except (OSError, StorageError):
        # The write may have been done and only its answer lost; then the checkpoint does exist.
        if not _is_written(root, key, content):
            raise
    # Before anything is deleted because this one exists.
    root.sync([key])
    # The manifest is there and wins, so a failure here does not make the commit fail.
    with contextlib.suppress(OSError, StorageError):
        root.delete(checkpoint_key(manifest.job_id, manifest.checkpoint, UPLOADING))


def mark_failed(root: StorageRoot, job_id: int | None, name: str, reason: str) -> None:
    """Give up a checkpoint: it stays as partial with the reason, its files are destroyed."""
    # The manifest first: should the commit have written one after all, nobody may load what loses its files now.
    root.delete(checkpoint_key(job_id, name, MANIFEST))
    note = read_upload_note(root, job_id, name)
    # The reason before the files: what is cut short here is still told, and the next sweep destroys the rest.
    write_document(root, checkpoint_key(job_id, name, UPLOADING), dataclasses.replace(note, reason=reason))
    for entry in root.list_names(checkpoint_key(job_id, name)):
        if entry != UPLOADING:
            root.delete(checkpoint_key(job_id, name, entry))


@dataclass(frozen=True)
class Sweep:
    """Names of a job's checkpoints, by step: those just given up without a reason of their own, and the committed."""

    given_up: list[str]
    committed: list[str]


def sweep(root: StorageRoot, job_id: int, reason: str, known: Collection[str] = ()) -> Sweep:
    """Give up what an earlier attempt left uncommitted; call before the attempt's first checkpoint.

    One request for the names, and one for each checkpoint that is not known; no manifest is read.

    Args:
        reason: for those that do not say one themselves.
        known: names that an earlier sweep found committed, or that were committed since. They are not looked at: a
            committed checkpoint that is put into the trash meanwhile counts as committed until it is gone.
    """
    names = list_checkpoint_names(root, job_id)
    unknown = [name for name in names if name not in known]
    looked_at = dict(zip(unknown, map_names(lambda name: _sweep_one(root, job_id, name, reason), unknown), strict=True))
    return Sweep(
        given_up=[name for name, became in looked_at.items() if became == "given up"],
        committed=[name for name in names if looked_at.get(name, "committed") == "committed"],
    )


def _sweep_one(root: StorageRoot, job_id: int, name: str, reason: str) -> Literal["committed", "given up", "left"]:
    entries = set(root.list_names(checkpoint_key(job_id, name)))
    if MANIFEST in entries and UPLOADING in entries:
        root.delete(checkpoint_key(job_id, name, UPLOADING))
    if MANIFEST in entries:
        return "committed"
    if entries & {DELETED, DAMAGED}:
        return "left"
    if entries - {UPLOADING}:
        # Files, because some stores keep the empty directories of what was destroyed.
        entries = {path.partition("/")[0] for path in root.list_files(checkpoint_key(job_id, name))}
    if not entries or entries & {MANIFEST, DELETED, DAMAGED}:
        return "left"
    known_reason = read_upload_note(root, job_id, name).reason
    # Asked again: one that is untrashed right now has its manifest back first.
    if (entries != {UPLOADING} or known_reason is None) and not root.exists(checkpoint_key(job_id, name, MANIFEST)):
        mark_failed(root, job_id, name, known_reason or reason)
    return "left" if known_reason is not None else "given up"


def destroy_committed(root: StorageRoot, job_id: int | None, name: str) -> bool:
    """Destroy a committed checkpoint at once; nothing happens when it is not (or no more) committed.

    Returns:
        False where another job has pinned it: it stays.
    """
    with contextlib.suppress(NotFoundError):
        manifest = read_manifest(root, job_id, name)
        put_into_trash(root, manifest, restorable_until_unix_s=time.time())
        # Whoever pins it looks for the manifest afterwards: it either misses that, or its pin is seen here.
        if job_id is not None and name in read_pins(root, job_id):
            root.write_bytes(checkpoint_key(job_id, name, MANIFEST), manifest_bytes(manifest))
            root.delete(checkpoint_key(job_id, name, DELETED))
            return False
        destroy(root, job_id, name)
    return True


def put_into_trash(root: StorageRoot, manifest: Manifest, restorable_until_unix_s: float) -> None:
    """Make a committed checkpoint invisible; its files stay for now."""
    trashed = TrashedManifest(
        **vars(manifest), deleted_unix_s=time.time(), restorable_until_unix_s=restorable_until_unix_s
    )
    # In this order there is always one of the two, and the manifest wins: whatever the point of a crash, the
    # checkpoint is whole and committed, or whole and in the trash.
    write_document(root, checkpoint_key(manifest.job_id, manifest.checkpoint, DELETED), trashed)
    root.delete(checkpoint_key(manifest.job_id, manifest.checkpoint, MANIFEST))


def destroy(root: StorageRoot, job_id: int | None, name: str) -> None:
    """Destroy everything of a checkpoint that has no manifest."""
    # What says that it is in the trash (or partial) goes last: as long as a file is left, it is known what it belongs
    # to, and the next purge (or sweep) goes on.
    for entry in root.list_names(checkpoint_key(job_id, name)):
        if entry not in (DELETED, DAMAGED, UPLOADING):
            root.delete(checkpoint_key(job_id, name, entry))
    root.delete(checkpoint_key(job_id, name))


def read_upload_note(root: StorageRoot, job_id: int | None, name: str) -> UploadNote:
    """What ``begin`` wrote, as far as it can be read."""
    # It only explains; what is stored tells whether the checkpoint is committed.
    with contextlib.suppress(NotFoundError, DocumentError):
        note = read_document(root, checkpoint_key(job_id, name, UPLOADING), UploadNote)
        return note if note.step is not None else dataclasses.replace(note, step=step_of(name))
    return UploadNote(step_of(name))


def read_manifest(root: StorageRoot, job_id: int | None, checkpoint: str) -> Manifest:
    """The manifest of a committed checkpoint.

    Raises:
        NotFoundError: there is none, or it was never committed.
        CorruptCheckpointError: the manifest is damaged.
        NewerFormatError: a later version committed it, in a format that this one does not know.
    """
    key = checkpoint_key(job_id, checkpoint, MANIFEST)
    return parse_manifest(root.read_bytes(key), key)


def find_checkpoint(root: StorageRoot, checkpoint_id: str) -> Manifest:
    """A committed checkpoint by its ID: ``<job>/<name>``, or ``<name>`` for one that no job made.

    Raises:
        NotFoundError: there is none of that ID, it was never committed, or it is in the trash.
        CorruptCheckpointError: its manifest is damaged.
        NewerFormatError: see ``read_manifest``.
    """
    parsed = parse_checkpoint_id(checkpoint_id)
    if parsed is not None:
        with contextlib.suppress(NotFoundError):
            return read_manifest(root, *parsed)
    raise NotFoundError(_describe_missing(root, checkpoint_id, parsed))


def list_committed(root: StorageRoot, job_id: int | None) -> list[Manifest]:
    """Committed checkpoints of a job, oldest first; partial, trashed, damaged and too new ones are left out."""

    def read(name: str) -> Manifest | None:
        with contextlib.suppress(NotFoundError, CorruptCheckpointError, NewerFormatError):
            return read_manifest(root, job_id, name)
        return None

    return [manifest for manifest in map_names(read, list_checkpoint_names(root, job_id)) if manifest is not None]


def read_summaries(root: StorageRoot, job_id: int | None, names: Collection[str]) -> list[CheckpointSummary]:
    """What ``list_committed`` says of these checkpoints, without their files, which are most of what it holds."""

    def read(name: str) -> CheckpointSummary | None:
        key = checkpoint_key(job_id, name, MANIFEST)
        with contextlib.suppress(NotFoundError, CorruptCheckpointError):
            return parse_summary(root.read_bytes(key), key)
        return None

    return [summary for summary in map_names(read, names) if summary is not None]


def latest_committed(root: StorageRoot, job_id: int, skip: Collection[str] = ()) -> Manifest | None:
    """The committed checkpoint of the highest step, or None.

    Args:
        skip: names to leave out, such as one that turned out to be corrupt.
    Raises:
        StorageError: the storage root cannot be read, or a later version committed the newest one in a format that this
            one does not know; nothing older is taken instead.
    """
    for name in reversed(list_checkpoint_names(root, job_id)):
        if name not in skip:
            with contextlib.suppress(NotFoundError, CorruptCheckpointError):
                return read_manifest(root, job_id, name)
    return None


def map_names(read: Callable[[str], Result], names: Collection[str]) -> list[Result]:
    """Read several checkpoints at a time: on an object store each read is a round trip."""
    if len(names) < 2:
        return [read(name) for name in names]
    with ThreadPoolExecutor(min(_NUM_READERS, len(names))) as readers:
        return list(readers.map(read, names))


def _describe_missing(root: StorageRoot, checkpoint_id: str, parsed: tuple[int | None, str] | None) -> str:
    if parsed is not None:
        job_id, name = parsed
        if root.exists(checkpoint_key(job_id, name, DELETED)):
            return (
                f"checkpoint '{checkpoint_id}' is deleted. Take that back: periflow-ray checkpoint undelete "
                f"{checkpoint_id}"
            )
        if root.exists(checkpoint_key(job_id, name, DAMAGED)):
            return (
                f"checkpoint '{checkpoint_id}' is damaged, and not used any more. To read it again: periflow-ray "
                f"checkpoint verify {checkpoint_id}"
            )
        if root.exists(checkpoint_key(job_id, name, UPLOADING)):
            reason = read_upload_note(root, job_id, name).reason
            why = f"it is partial: {reason}" if reason else "it is still being uploaded"
            return f"checkpoint '{checkpoint_id}' is not committed; {why}"
    job = checkpoint_id.partition("/")[0]
    of_job = [f"{job}/{name}" for name in list_checkpoint_names(root, int(job))] if is_job_number(job) else []
    known = [*of_job, *list_checkpoint_names(root, None)]
    nearest = nearest_names(checkpoint_id, known) or of_job[-1:]
    suggestion = f" Did you mean '{nearest[0]}'?" if nearest else ""
    return (
        f"checkpoint '{checkpoint_id}' does not exist.{suggestion} An ID is <job>/<name>, for example "
        "12/step-00000400, or the name it was uploaded with. List them: periflow-ray checkpoint list"
    )


def _is_written(root: StorageRoot, key: str, content: bytes) -> bool:
    try:
        return root.read_bytes(key) == content
    except (OSError, StorageError, NotFoundError):
        return False
