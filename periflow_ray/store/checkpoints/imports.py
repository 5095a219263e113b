"""Checkpoints that no job of this storage root made: copied in from a directory, or linked where they are."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from periflow_ray.errors import NotFoundError, StorageError, UsageError
from periflow_ray.store.checkpoints.files import FilesPlace, describe_tree, merge_contents
from periflow_ray.store.checkpoints.lifecycle import begin, commit, destroy, mark_failed
from periflow_ray.store.checkpoints.manifest import (
    DELETED,
    MANIFEST,
    Manifest,
    StoredEntry,
    StoredFile,
    checkpoint_key,
    is_own_name,
)
from periflow_ray.store.checkpoints.trash import purge
from periflow_ray.store.checkpoints.verifying import measure_files
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer, UploadItem
from periflow_ray.store.trees import list_tree


def upload_checkpoint_dir(
    root: StorageRoot,
    source: Path,
    name: str,
    *,
    step: int = 0,
    created_by: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    transfer: Transfer | None = None,
    on_skipped: Callable[[str, str], None] = lambda path, reason: None,
) -> Manifest:
    """Copy a directory into the storage root as a committed checkpoint.

    Args:
        on_skipped: see ``walk_tree``.
        step: training steps done in it, as far as known.
        transfer: how to move bytes into ``root``; None for the usual way.
    Raises:
        UsageError: the name is taken or cannot be used, or the source is not a directory with files in it.
        StorageError: the storage root failed, or a file changed meanwhile; nothing is committed.
    """
    _check_new_name(root, name)
    if not source.is_dir():
        raise UsageError(f"'{source}' is not a directory. Give the directory that holds the checkpoint's files.")
    content = describe_tree(source, on_skipped)
    if not content.files:
        raise UsageError(f"there are no files in '{source}'.")
    # What an upload that was cut short left behind is not part of this one.
    destroy(root, None, name)
    begin(root, None, name, step, attempt=0)
    plan = merge_contents({0: content})
    try:
        (transfer or Transfer(root)).upload_files(
            [UploadItem(source / file.path, checkpoint_key(None, name, file.key)) for file in plan.files]
        )
        before = {(file.path, file.size, file.mtime_ns) for file in content.files}
        changed = before ^ {(file.path, file.stat.st_size, file.mtime_ns) for file in list_tree(source)[0]}
        if changed:
            raise StorageError(
                f"'{source / min(changed)[0]}' changed while it was uploaded; nothing is stored. Try again"
            )
        files = tuple(file.as_stored() for file in plan.files)
        manifest = _describe(name, step, created_by, metrics, files, tuple(plan.entries))
        commit(root, manifest)
    except BaseException as err:
        # Also for Ctrl-C; what cannot be told to the storage root is cleared by the next upload of this name.
        with contextlib.suppress(OSError, StorageError):
            mark_failed(root, None, name, str(err) or "it was interrupted")
        raise
    return manifest


def link_checkpoint(
    root: StorageRoot,
    uri: str,
    name: str,
    *,
    step: int = 0,
    credential: str | None = None,
    created_by: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    on_file: Callable[[str, int], None] | None = None,
) -> Manifest:
    """Make a checkpoint of files that stay where they are; each is read once for its checksum.

    Args:
        uri: a directory, or a single file.
        credential: name of the credential to open the URI with, now and whenever the checkpoint is used.
        on_file: called after each file with its path and its size in bytes.
    Raises:
        UsageError: the name is taken or cannot be used.
        NotFoundError: there are no files at the URI.
        StorageError: the URI cannot be opened or read.
    """
    _check_new_name(root, name)
    linked = StorageRoot(uri, credential)
    sizes = linked.list_files("")
    if sizes.keys() == {"."}:
        parent, _, file_name = linked.uri.rpartition("/")
        linked, sizes = StorageRoot(parent, credential), {file_name: sizes["."]}
    if not sizes:
        raise NotFoundError(f"there are no files at '{uri}'")
    files = []
    for path, checksum in measure_files(FilesPlace(linked, ""), sizes):
        files.append(StoredFile(path, sizes[path], checksum, 0, path))
        if on_file is not None:
            on_file(path, sizes[path])
    destroy(root, None, name)
    manifest = _describe(name, step, created_by, metrics, tuple(files), (), linked.uri, credential)
    commit(root, manifest)
    return manifest


def _check_new_name(root: StorageRoot, name: str) -> None:
    if not is_own_name(name):
        raise UsageError(
            f"checkpoint name {name!r} cannot be used: letters, digits, '.', '_' and '-', starting with a letter or "
            "digit, and not digits alone."
        )
    if root.exists(checkpoint_key(None, name, MANIFEST)):
        raise UsageError(
            f"checkpoint '{name}' already exists. Delete it first (periflow-ray checkpoint delete {name}) or choose "
            "another name."
        )
    purge(root, None, time.time())
    if root.exists(checkpoint_key(None, name, DELETED)):
        raise UsageError(
            f"checkpoint '{name}' is deleted and can still be undeleted (periflow-ray checkpoint undelete {name}). "
            "Choose another name."
        )


def _describe(
    name: str,
    step: int,
    created_by: str | None,
    metrics: Mapping[str, Any] | None,
    files: tuple[StoredFile, ...],
    entries: tuple[StoredEntry, ...],
    uri: str | None = None,
    credential: str | None = None,
) -> Manifest:
    return Manifest(
        checkpoint=name,
        job_id=None,
        step=step,
        attempt=0,
        world_size=0,
        num_nodes=1,
        created_unix_s=time.time(),
        files=files,
        entries=entries,
        metrics=dict(metrics or {}),
        created_by=created_by,
        uri=uri,
        credential=credential,
    )
