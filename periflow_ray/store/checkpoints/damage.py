"""Checkpoints that are not what was saved: they are kept, but nobody resumes from them, copies of them or counts them.

A damaged checkpoint has damaged.json in its manifest's place, so that it is committed for no reader. One that turns out
to be intact, because a storage had shown only a part of it, gets its manifest back.
"""

from __future__ import annotations

import contextlib
import time

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.checkpoints.lifecycle import find_checkpoint, read_manifest
from periflow_ray.store.checkpoints.manifest import (
    DAMAGED,
    MANIFEST,
    DamagedManifest,
    Manifest,
    checkpoint_key,
    manifest_bytes,
    parse_checkpoint_id,
    parse_damaged_manifest,
)
from periflow_ray.store.documents import write_document
from periflow_ray.store.root import StorageRoot


def set_aside(root: StorageRoot, job_id: int | None, name: str, reason: str) -> None:
    """Let a committed checkpoint count no more; nothing happens where there is none.

    Args:
        reason: what was found, for the user.
    """
    with contextlib.suppress(NotFoundError):
        manifest = read_manifest(root, job_id, name)
        damaged = DamagedManifest(**vars(manifest), reason=reason, found_unix_s=time.time())
        # In this order there is always one of the two, and the manifest wins.
        write_document(root, checkpoint_key(job_id, name, DAMAGED), damaged)
        root.delete(checkpoint_key(job_id, name, MANIFEST))


def take_back(root: StorageRoot, manifest: Manifest) -> None:
    """Let a checkpoint that was set aside count again."""
    root.write_bytes(checkpoint_key(manifest.job_id, manifest.checkpoint, MANIFEST), manifest_bytes(manifest))
    with contextlib.suppress(OSError, StorageError):
        root.delete(checkpoint_key(manifest.job_id, manifest.checkpoint, DAMAGED))


def read_damaged(root: StorageRoot, job_id: int | None, name: str) -> DamagedManifest:
    """A checkpoint that was set aside; only where there is no manifest, which would win.

    Raises:
        NotFoundError: it was not set aside.
        CorruptCheckpointError: damaged.json cannot be read.
        NewerFormatError: see ``parse_manifest``.
    """
    key = checkpoint_key(job_id, name, DAMAGED)
    return parse_damaged_manifest(root.read_bytes(key), key)


def find_saved(root: StorageRoot, checkpoint_id: str) -> tuple[Manifest, bool]:
    """A checkpoint by its ID, and whether it was set aside.

    Raises:
        NotFoundError: there is none of that ID that is committed or set aside.
        CorruptCheckpointError, NewerFormatError: see ``find_checkpoint``.
    """
    parsed = parse_checkpoint_id(checkpoint_id)
    if parsed is not None and not root.exists(checkpoint_key(*parsed, MANIFEST)):
        with contextlib.suppress(NotFoundError):
            return read_damaged(root, *parsed).as_manifest(), True
    return find_checkpoint(root, checkpoint_id), False
