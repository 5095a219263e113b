"""Checkpoints of jobs: what is committed, and all that may be done with one."""

from __future__ import annotations

from periflow_ray.store.checkpoints.files import Content, Plan, describe_tree, merge_contents
from periflow_ray.store.checkpoints.lifecycle import (
    begin,
    choose_name,
    commit,
    destroy,
    destroy_committed,
    find_checkpoint,
    latest_committed,
    list_checkpoint_names,
    list_committed,
    map_names,
    mark_failed,
    put_into_trash,
    read_manifest,
    read_summaries,
    read_upload_note,
    sweep,
)
from periflow_ray.store.checkpoints.manifest import (
    CheckpointSummary,
    LocalFile,
    Manifest,
    PlannedFile,
    StoredEntry,
    StoredFile,
    UploadNote,
    checkpoint_key,
    parse_checkpoint_id,
)
from periflow_ray.store.checkpoints.restoring import restore
from periflow_ray.store.checkpoints.verifying import verify

__all__ = [
    "CheckpointSummary",
    "Content",
    "LocalFile",
    "Manifest",
    "Plan",
    "PlannedFile",
    "StoredEntry",
    "StoredFile",
    "UploadNote",
    "begin",
    "checkpoint_key",
    "choose_name",
    "commit",
    "describe_tree",
    "destroy",
    "destroy_committed",
    "find_checkpoint",
    "latest_committed",
    "list_checkpoint_names",
    "list_committed",
    "map_names",
    "mark_failed",
    "merge_contents",
    "parse_checkpoint_id",
    "put_into_trash",
    "read_manifest",
    "read_summaries",
    "read_upload_note",
    "restore",
    "sweep",
    "verify",
]
