"""Bringing a checkpoint's files back to a directory of this machine: verified, resumable, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from periflow_ray.errors import CorruptCheckpointError, NotFoundError, StorageError
from periflow_ray.store.checkpoints.files import FilesPlace, open_place, select_content
from periflow_ray.store.checkpoints.manifest import Manifest, StoredFile
from periflow_ray.store.checkpoints.verifying import Problem, compare_checksums, compare_sizes
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import DownloadItem, Transfer
from periflow_ray.store.trees import make_entries, set_facts


def restore(
    root: StorageRoot,
    manifest: Manifest,
    node_rank: int,
    target: Path,
    transfer: Transfer | None = None,
    *,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Bring a checkpoint's files back, verified; ``target`` is replaced whole or not at all.

    A restore that was cut short goes on where it ended when the same checkpoint is restored to the same target.

    Args:
        target: a directory; what is in it is replaced.
        transfer: how to move bytes out of ``root``; a linked checkpoint, whose files are elsewhere, gets its own.
        on_bytes: called with the number of bytes whenever some have arrived, from any thread; without ``transfer``.
    Raises:
        CorruptCheckpointError: a file is missing or differs from the manifest.
        StorageError: the storage root cannot be read.
    """
    place = open_place(root, manifest)
    if transfer is None or manifest.uri is not None:
        transfer = Transfer(place.root, on_bytes=on_bytes)
    files, entries = select_content(manifest, node_rank)
    # A link to a directory stays what it is, and the directory it leads to is replaced.
    target = target.resolve()
    partial, marker = _beside(target, "restoring"), _beside(target, "restoring.json")
    try:
        _refuse_damaged(manifest, compare_sizes(place, files))
        _open_partial(partial, marker, json.dumps([root.uri, manifest.checkpoint_id, manifest.created_unix_s]))
        _download(place, manifest, files, partial, transfer)
        make_entries(partial, entries)
        set_facts(partial, files, entries)
    except CorruptCheckpointError:
        _discard(partial)
        marker.unlink(missing_ok=True)
        raise
    _replace(partial, target)
    marker.unlink(missing_ok=True)


def is_partly_restored(target: Path) -> bool:
    """Whether a restore to this target was cut short and goes on from there when it is run again."""
    return _beside(target.resolve(), "restoring").exists()


def _download(
    place: FilesPlace, manifest: Manifest, files: Sequence[StoredFile], partial: Path, transfer: Transfer
) -> None:
    # Links and times come last; what a restore that was cut short made of them would be in the way.
    for top, directories, names in os.walk(partial):
        for link in (os.path.join(top, name) for name in (*directories, *names)):
            if os.path.islink(link):
                os.unlink(link)
    targets = {file.path: partial / file.path for file in files}
    for parent in {target.parent for target in targets.values()}:
        parent.mkdir(parents=True, exist_ok=True)
    try:
        transfer.download_files(
            [DownloadItem(place.key(file.key), targets[file.path], file.size, file.checksum) for file in files]
        )
    except (StorageError, NotFoundError) as err:
        # Only reading again tells a damaged checkpoint, which is skipped, from a storage root that does not answer.
        missing = [file for file in files if not targets[file.path].exists()]
        _refuse_damaged(manifest, compare_sizes(place, missing))
        _refuse_damaged(manifest, compare_checksums(place, missing))
        if isinstance(err, NotFoundError):
            raise CorruptCheckpointError(f"checkpoint {manifest.checkpoint_id} is damaged: {err}") from err
        raise
    expected = set(targets.values())
    for path in partial.rglob("*"):
        if not path.is_dir() and path not in expected:
            path.unlink()


def _refuse_damaged(manifest: Manifest, problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise CorruptCheckpointError(f"checkpoint {manifest.checkpoint_id} is damaged: '{problem.key}' {problem.text}")


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{suffix}")


def _open_partial(partial: Path, marker: Path, identity: str) -> None:
    """Make the directory for files on their way; what another checkpoint left there goes."""
    is_same = marker.is_file() and marker.read_text(encoding="utf-8") == identity
    if not is_same:
        # The directory before its marker: a marker never speaks for another checkpoint's files.
        _discard(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(identity, encoding="utf-8")
    partial.mkdir(exist_ok=True)


def _replace(partial: Path, target: Path) -> None:
    replaced = _beside(target, "replaced")
    _discard(replaced)
    # Moved, not deleted: deleting takes as long as there are files, and the target would be half gone meanwhile.
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, replaced)
    os.rename(partial, target)
    _discard(replaced)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
