"""What became of every checkpoint of a job: committed, uploading, damaged or partial with the reason, or deleted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from periflow_ray.errors import CorruptCheckpointError, DocumentError, NewerFormatError, NotFoundError
from periflow_ray.jobs import read_state
from periflow_ray.store.checkpoints.damage import read_damaged
from periflow_ray.store.checkpoints.lifecycle import (
    find_checkpoint,
    list_checkpoint_names,
    map_names,
    read_manifest,
    read_upload_note,
)
from periflow_ray.store.checkpoints.manifest import (
    Manifest,
    checkpoint_key,
    format_checkpoint_id,
    parse_checkpoint_id,
    step_of,
)
from periflow_ray.store.checkpoints.trash import read_trashed
from periflow_ray.store.root import StorageRoot

CheckpointStatus = Literal["committed", "uploading", "damaged", "partial", "deleted"]


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint in a list. Times in Unix seconds, size in bytes; None where it is not known or does not apply.

    One that is committed, but by a later version in a format that this one does not know, has a ``reason`` and no
    ``manifest``.
    """

    job_id: int | None
    name: str
    status: CheckpointStatus
    step: int | None
    size: int | None = None
    reason: str | None = None
    created_unix_s: float | None = None
    restorable_until_unix_s: float | None = None
    metrics: Mapping[str, Any] | None = None
    manifest: Manifest | None = None

    @property
    def checkpoint_id(self) -> str:
        """The ID that names the checkpoint in this storage root."""
        return format_checkpoint_id(self.job_id, self.name)


def list_all(root: StorageRoot, job_id: int | None) -> list[CheckpointEntry]:
    """Every checkpoint of a job whatever became of it, oldest step first; with None those that no job made."""
    has_ended = _has_ended(root, job_id)
    names = list_checkpoint_names(root, job_id)
    return [entry for entry in map_names(lambda name: _read_entry(root, job_id, name, has_ended), names) if entry]


def find_entry(root: StorageRoot, checkpoint_id: str) -> CheckpointEntry:
    """One checkpoint by its ID, whatever became of it.

    Raises:
        NotFoundError: there is none of that ID.
    """
    parsed = parse_checkpoint_id(checkpoint_id)
    if parsed is not None and (entry := _read_entry(root, *parsed, _has_ended(root, parsed[0]))):
        return entry
    return _describe_committed(find_checkpoint(root, checkpoint_id))


def _read_entry(root: StorageRoot, job_id: int | None, name: str, has_ended: bool) -> CheckpointEntry | None:
    """None when there is nothing of that name."""
    # In the order of a checkpoint's life, the manifest first because it wins over what else may be there.
    try:
        return _describe_committed(read_manifest(root, job_id, name))
    except CorruptCheckpointError as err:
        return CheckpointEntry(job_id, name, "partial", step_of(name), reason=str(err))
    except NewerFormatError as err:
        return CheckpointEntry(job_id, name, "committed", step_of(name), reason=str(err))
    except NotFoundError:
        pass
    try:
        deleted = read_trashed(root, job_id, name)
    except CorruptCheckpointError as err:
        return CheckpointEntry(job_id, name, "partial", step_of(name), reason=str(err))
    except NewerFormatError as err:
        return CheckpointEntry(job_id, name, "deleted", step_of(name), reason=str(err))
    except NotFoundError:
        pass
    else:
        return dataclasses.replace(
            _describe_committed(deleted.manifest),
            status="deleted",
            restorable_until_unix_s=deleted.restorable_until_unix_s,
        )
    try:
        damaged = read_damaged(root, job_id, name)
    except (CorruptCheckpointError, NewerFormatError) as err:
        return CheckpointEntry(job_id, name, "damaged", step_of(name), reason=str(err))
    except NotFoundError:
        pass
    else:
        return dataclasses.replace(_describe_committed(damaged.as_manifest()), status="damaged", reason=damaged.reason)
    # Files, because some stores keep the empty directories of what was destroyed.
    if not root.list_files(checkpoint_key(job_id, name)):
        return None
    note = read_upload_note(root, job_id, name)
    reason = note.reason
    if reason is None and has_ended:
        reason = "the job ended before it was committed"
    if reason is None and note.started_unix_s is None:
        reason = "nothing says that it is being uploaded"
    return CheckpointEntry(
        job_id,
        name,
        "uploading" if reason is None else "partial",
        note.step,
        reason=reason,
        created_unix_s=note.started_unix_s,
    )


def _describe_committed(manifest: Manifest) -> CheckpointEntry:
    return CheckpointEntry(
        manifest.job_id,
        manifest.checkpoint,
        "committed",
        manifest.step,
        manifest.size,
        created_unix_s=manifest.created_unix_s,
        metrics=manifest.metrics,
        manifest=manifest,
    )


def _has_ended(root: StorageRoot, job_id: int | None) -> bool:
    if job_id is not None:
        # One job's damaged state does not hide all checkpoints.
        with contextlib.suppress(NotFoundError, DocumentError):
            return read_state(root, job_id).has_ended
    return False
