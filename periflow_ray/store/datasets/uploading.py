"""An upload of a dataset's files that may be cut short at any point and goes on when it is run again."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from periflow_ray.errors import NotFoundError, StorageError
from periflow_ray.store.datasets.files import DatasetFile, SourceFile, describe_change, dump_files
from periflow_ray.store.datasets.packs import upload_packs
from periflow_ray.store.documents import read_document, write_document
from periflow_ray.store.local_files import is_partial_name
from periflow_ray.store.read_only import make_directories_writable, make_read_only
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.transfer import Transfer, UploadItem
from periflow_ray.store.trees import TreeEntry, make_entries, set_facts

JOURNAL = "uploading.json"
_NUM_WORKERS = 16


@dataclass(frozen=True)
class UploadJournal:
    """What an upload is to be, and whose it is; ``started_unix_s`` in Unix seconds."""

    upload_id: str
    started_unix_s: float
    files: tuple[DatasetFile, ...]


def send_files(
    root: StorageRoot, prefix: str, described: Sequence[SourceFile], on_bytes: Callable[[int, int], None]
) -> str:
    """Bring what is stored below a prefix to what is described, by sending only what is not there yet.

    Returns:
        The upload's id, for ``end_upload``.
    Raises:
        UsageError: a source changed meanwhile.
        StorageError: the storage root failed.
    """
    upload_id, waiting = _begin(root, prefix, described)
    lock = threading.Lock()
    total_bytes = sum(one.file.size for one in described)
    sent_bytes = total_bytes - sum(one.file.size for one in waiting)
    on_bytes(sent_bytes, total_bytes)

    def count(num_bytes: int) -> None:
        nonlocal sent_bytes
        with lock:
            sent_bytes += num_bytes
            on_bytes(sent_bytes, total_bytes)

    upload_packs(root, prefix, [one for one in waiting if one.file.pack is not None], count)
    loose = [UploadItem(one.source, f"{prefix}/{one.file.stored_key}") for one in waiting if one.file.pack is None]
    Transfer(root, num_workers=_NUM_WORKERS, on_bytes=count).upload_files(loose)
    changed = [one for one in waiting if not one.is_unchanged]
    _delete_all(root, prefix, {one.file.stored_key for one in changed})
    if changed:
        raise describe_change(changed)
    return upload_id


def end_upload(
    root: StorageRoot, prefix: str, upload_id: str, files: Sequence[DatasetFile], entries: Sequence[TreeEntry]
) -> None:
    """Make sure that what is stored is this upload's, and complete it.

    Raises:
        StorageError: another upload to this prefix began meanwhile.
    """
    try:
        owner = read_document(root, f"{prefix}/{JOURNAL}", UploadJournal).upload_id
    except NotFoundError:
        owner = None
    if owner != upload_id:
        raise StorageError(
            f"another upload to '{prefix}' in storage root '{root.uri}' began while this one ran, or its files were "
            "deleted. Nothing was committed; upload again, under a name of its own if both are wanted."
        )
    seal_files(root, prefix, files, entries)


def seal_files(root: StorageRoot, prefix: str, files: Sequence[DatasetFile], entries: Sequence[TreeEntry]) -> None:
    """Make what is stored a read-only directory tree where it is on this machine: jobs read it in place."""
    if root.is_local:
        top = root.local_path(f"{prefix}/files")
        make_entries(top, entries)
        set_facts(top, files, entries)
        make_read_only(top)


def unseal_files(root: StorageRoot, prefix: str) -> None:
    """Let files below the prefix be added, replaced and deleted again."""
    if root.is_local:
        make_directories_writable(root.local_path(f"{prefix}/files"))


def _begin(root: StorageRoot, prefix: str, described: Sequence[SourceFile]) -> tuple[str, list[SourceFile]]:
    """Write the journal, what the upload is to be, and find what of it is not stored yet.

    What is stored is always content of the journal's files: stored keys that are to hold others are deleted before the
    journal says so. That is why key and size are enough to know a stored file again.
    """
    planned = _read_journal_files(root, prefix)
    unseal_files(root, prefix)
    if planned is None:
        root.delete(prefix)
        planned = {}
    stored = _list_stored(root, prefix) if planned else {}
    wanted = _sum_sizes([one.file for one in described])
    same = {one.file.stored_key for one in described if one.file == planned.get(one.file.path)}
    kept = {key for key, size in stored.items() if key in same and size == wanted[key]}
    _delete_all(root, prefix, stored.keys() - kept)
    _remove_remains(root, prefix, wanted)
    upload_id = uuid.uuid4().hex
    files = dump_files([one.file for one in described])
    journal = {"upload_id": upload_id, "started_unix_s": time.time(), "files": files}
    write_document(root, f"{prefix}/{JOURNAL}", journal, kind=UploadJournal)
    return upload_id, [one for one in described if one.file.stored_key not in kept]


def _read_journal_files(root: StorageRoot, prefix: str) -> dict[str, DatasetFile] | None:
    try:
        return {file.path: file for file in read_document(root, f"{prefix}/{JOURNAL}", UploadJournal).files}
    except NotFoundError:
        return None


def _list_stored(root: StorageRoot, prefix: str) -> dict[str, int]:
    """Keys below the prefix that hold files of the dataset, and their sizes in bytes."""
    found = root.list_files(prefix)
    return {key: size for key, size in found.items() if key.startswith(("files/", "packs/"))}


def _sum_sizes(files: Iterable[DatasetFile]) -> Counter[str]:
    """Keys below the prefix that shall be there, and their sizes in bytes."""
    sizes: Counter[str] = Counter()
    for file in files:
        sizes[file.stored_key] += file.size
    return sizes


def _remove_remains(root: StorageRoot, prefix: str, wanted: Collection[str]) -> None:
    """Delete what an upload that was cut short left besides whole files: jobs read the directory itself."""
    if not root.is_local:
        return
    top = root.local_path(f"{prefix}/files")
    for parent, directories, names in os.walk(top, topdown=False):
        for path in (Path(parent, name) for name in (*directories, *names)):
            if path.is_symlink():
                path.unlink()
            elif path.is_dir():
                with contextlib.suppress(OSError):  # It is not empty.
                    path.rmdir()
            elif is_partial_name(path.name) and f"files/{path.relative_to(top).as_posix()}" not in wanted:
                path.unlink()


def _delete_all(root: StorageRoot, prefix: str, keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(_NUM_WORKERS) as pool:
        list(pool.map(lambda key: root.delete(f"{prefix}/{key}"), keys))
