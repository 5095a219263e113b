"""Deleting checkpoints so that it can be taken back for a while.

A deleted checkpoint has deleted.json in its manifest's place and all of its files. When its time is over, the next
purge deletes the files and, last, deleted.json.
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
    hide,
    list_checkpoint_names,
)
from periflow_ray.store.checkpoints.manifest import (
    DELETED,
    MANIFEST,
    Manifest,
    checkpoint_key,
    manifest_bytes,
    parse_checkpoint_id,
    parse_deleted_manifest,
)
from periflow_ray.store.checkpoints.verifying import compare_sizes
from periflow_ray.store.root import StorageRoot

KEEP_DELETED_S = 7 * 86400.0


@dataclass(frozen=True)
class DeletedCheckpoint:
    """A deleted checkpoint; times in Unix seconds."""

    manifest: Manifest
    deleted_unix_s: float
    restorable_until_unix_s: float


def delete(root: StorageRoot, checkpoint_id: str, keep_s: float = KEEP_DELETED_S) -> float:
    """Delete a committed checkpoint; its files stay for ``keep_s`` seconds.

    Returns:
        Until when ``undelete`` brings it back, in Unix seconds.
    Raises:
        NotFoundError: there is no committed checkpoint of that ID.
    """
    manifest = find_checkpoint(root, checkpoint_id)
    restorable_until_unix_s = time.time() + keep_s
    hide(root, manifest, restorable_until_unix_s)
    return restorable_until_unix_s


def undelete(root: StorageRoot, checkpoint_id: str, now_unix_s: float | None = None) -> Manifest:
    """Take a deletion back.

    Args:
        now_unix_s: the time it is; None asks the clock.
    Raises:
        NotFoundError: there is none of that ID, or its files are deleted by now.
        UsageError: it is not deleted.
        CorruptCheckpointError: it is deleted, but files are missing.
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
    deleted = read_deleted(root, job_id, name)
    if deleted.restorable_until_unix_s <= (time.time() if now_unix_s is None else now_unix_s):
        raise NotFoundError(f"checkpoint '{checkpoint_id}' cannot be undeleted any more: its time is over")
    if deleted.manifest.uri is None:
        for problem in compare_sizes(open_place(root, deleted.manifest), deleted.manifest.files):
            raise CorruptCheckpointError(
                f"checkpoint '{checkpoint_id}' cannot be undeleted: '{problem.key}' {problem.text}"
            )
    # The manifest first: while both are there it wins, so the checkpoint is never neither committed nor deleted.
    root.write_bytes(checkpoint_key(job_id, name, MANIFEST), manifest_bytes(deleted.manifest))
    with contextlib.suppress(OSError, StorageError):
        root.delete(checkpoint_key(job_id, name, DELETED))
    return deleted.manifest


def purge_expired(root: StorageRoot, job_id: int | None, now_unix_s: float) -> list[str]:
    """Delete the files of a job's deleted checkpoints whose time is over; returns their names.

    What an earlier purge left half done is finished; nothing of a committed checkpoint is touched.
    """
    purged = []
    for name in list_checkpoint_names(root, job_id):
        entries = root.list_names(checkpoint_key(job_id, name))
        if DELETED not in entries or MANIFEST in entries:
            continue
        with contextlib.suppress(NotFoundError, CorruptCheckpointError, NewerFormatError):
            if read_deleted(root, job_id, name).restorable_until_unix_s <= now_unix_s:
                destroy(root, job_id, name)
                purged.append(name)
    return purged


def read_deleted(root: StorageRoot, job_id: int | None, name: str) -> DeletedCheckpoint:
    """A deleted checkpoint; only where there is no manifest, which would win.

    Raises:
        NotFoundError: it is not deleted.
        CorruptCheckpointError: deleted.json is damaged.
        NewerFormatError: see ``parse_manifest``.
    """
    key = checkpoint_key(job_id, name, DELETED)
    deleted = parse_deleted_manifest(root.read_bytes(key), key)
    return DeletedCheckpoint(deleted.as_manifest(), deleted.deleted_unix_s, deleted.restorable_until_unix_s)
