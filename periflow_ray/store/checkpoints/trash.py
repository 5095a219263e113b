"""The trash: checkpoints that their user deleted, and can have back for a while.

A trashed checkpoint has deleted.json in its manifest's place and all of its files. When its time is over, the next
purge destroys the files and, last, deleted.json.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

from periflow_ray.errors import CorruptCheckpointError, NewerFormatError, NotFoundError, StorageError, UsageError
from periflow_ray.store.checkpoints.files import open_place
from periflow_ray.store.checkpoints.lifecycle import (
    destroy,
    find_checkpoint,
    list_checkpoint_names,
    put_into_trash,
)
from periflow_ray.store.checkpoints.manifest import (
    DELETED,
    MANIFEST,
    Manifest,
    checkpoint_key,
    manifest_bytes,
    parse_checkpoint_id,
    parse_trashed_manifest,
)
from periflow_ray.store.checkpoints.verifying import compare_sizes
from periflow_ray.store.root import StorageRoot

KEEP_TRASHED_S = 7 * 86400.0


@dataclass(frozen=True)
class TrashedCheckpoint:
    """A checkpoint in the trash; times in Unix seconds."""

    manifest: Manifest
    deleted_unix_s: float
    restorable_until_unix_s: float


def trash(root: StorageRoot, checkpoint_id: str, keep_s: float = KEEP_TRASHED_S) -> float:
    """Put a committed checkpoint into the trash; its files stay for ``keep_s`` seconds.

    Returns:
        Until when ``untrash`` brings it back, in Unix seconds.
    Raises:
        NotFoundError: there is no committed checkpoint of that ID.
    """
    manifest = find_checkpoint(root, checkpoint_id)
    restorable_until_unix_s = time.time() + keep_s
    put_into_trash(root, manifest, restorable_until_unix_s)
    return restorable_until_unix_s


def untrash(root: StorageRoot, checkpoint_id: str, now_unix_s: float | None = None) -> Manifest:
    """Take a checkpoint out of the trash, to be committed again.

    Args:
        now_unix_s: the time it is; None asks the clock.
    Raises:
        NotFoundError: there is none of that ID, or its files are destroyed by now.
        UsageError: it is not in the trash.
        CorruptCheckpointError: it is in the trash, but files are missing.
    """
    parsed = parse_checkpoint_id(checkpoint_id)
    if (
        parsed is None
        or root.exists(checkpoint_key(*parsed, MANIFEST))
        or not root.exists(checkpoint_key(*parsed, DELETED))
    ):
        find_checkpoint(root, checkpoint_id)
        raise UsageError(f"checkpoint '{checkpoint_id}' is not deleted; there is nothing to undelete.")
    job_id, name = parsed
    trashed = read_trashed(root, job_id, name)
    if trashed.restorable_until_unix_s <= (time.time() if now_unix_s is None else now_unix_s):
        raise NotFoundError(f"checkpoint '{checkpoint_id}' cannot be undeleted any more: its time is over")
    if trashed.manifest.uri is None:
        for problem in compare_sizes(open_place(root, trashed.manifest), trashed.manifest.files):
            raise CorruptCheckpointError(
                f"checkpoint '{checkpoint_id}' cannot be undeleted: '{problem.key}' {problem.text}"
            )
    # The manifest first: while both are there it wins, so the checkpoint is never neither committed nor in the trash.
    root.write_bytes(checkpoint_key(job_id, name, MANIFEST), manifest_bytes(trashed.manifest))
    with contextlib.suppress(OSError, StorageError):
        root.delete(checkpoint_key(job_id, name, DELETED))
    return trashed.manifest


def purge(root: StorageRoot, job_id: int | None, now_unix_s: float) -> list[str]:
    """Destroy a job's checkpoints whose time in the trash is over; returns their names.

    What an earlier purge left half done is finished; nothing of a committed checkpoint is touched.
    """
    purged = []
    for name in list_checkpoint_names(root, job_id):
        entries = root.list_names(checkpoint_key(job_id, name))
        if DELETED not in entries or MANIFEST in entries:
            continue
        with contextlib.suppress(NotFoundError, CorruptCheckpointError, NewerFormatError):
            if read_trashed(root, job_id, name).restorable_until_unix_s <= now_unix_s:
                destroy(root, job_id, name)
                purged.append(name)
    return purged


def read_trashed(root: StorageRoot, job_id: int | None, name: str) -> TrashedCheckpoint:
    """A checkpoint in the trash; only where there is no manifest, which would win.

    Raises:
        NotFoundError: it is not in the trash.
        CorruptCheckpointError: deleted.json is damaged.
        NewerFormatError: see ``parse_manifest``.
    """
    key = checkpoint_key(job_id, name, DELETED)
    trashed = parse_trashed_manifest(root.read_bytes(key), key)
    return TrashedCheckpoint(trashed.as_manifest(), trashed.deleted_unix_s, trashed.restorable_until_unix_s)
