"""The files of a dataset: found on this machine, listed in a manifest or in a bucket, and told apart by content."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from periflow_ray.errors import StorageError, UsageError
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.keys import key_of_file, leads_out
from periflow_ray.store.root import StorageRoot
from periflow_ray.store.trees import TreeEntry, TreeFile, list_tree, refuse_entry

_NUM_READERS = 8
# What the file systems of fsspec call the mark of a file's version: S3, Azure, Google, directories, memory.
_VERSION_FIELDS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class DatasetFile:
    """One file: path in the dataset with forward slashes, and size in bytes.

    ``checksum`` is known of uploaded files; ``version``, whatever the bucket tells one content from the next by, of
    linked ones. ``pack`` is the pack that an uploaded file is stored in, ``offset`` where it begins there; None of both
    when it is stored as a file, under ``key`` where not every storage takes its path for one. What it has besides its
    content does not count when files are compared; for ``mtime_ns`` see ``TreeEntry``.
    """

    path: str
    size: int
    checksum: str | None = None
    version: str | None = None
    pack: str | None = None
    offset: int | None = None
    key: str | None = None
    is_executable: bool = field(default=False, compare=False)
    mtime_ns: int | None = field(default=None, compare=False)

    @property
    def stored_key(self) -> str:
        """Where an uploaded file is, below the dataset's own key."""
        return f"packs/{self.pack}" if self.pack is not None else self.key or f"files/{self.path}"


@dataclass(frozen=True)
class SourceFile:
    """A file of this machine that is to become a file of a dataset."""

    source: Path
    file: DatasetFile

    @property
    def is_unchanged(self) -> bool:
        """Whether the source still is what was described."""
        try:
            found = self.source.stat()
        except FileNotFoundError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.file.size, self.file.mtime_ns)


def describe_source(
    source: Path,
    contents_only: bool,
    on_bytes: Callable[[int, int], None] | None = None,
    on_skipped: Callable[[str, str], None] = lambda path, reason: None,
) -> tuple[tuple[SourceFile, ...], tuple[TreeEntry, ...]]:
    """Find what is in a directory, or a single file, and read the files' checksums.

    Args:
        contents_only: leave the directory's own name out of the paths.
        on_bytes: called with the number of bytes read and the number of all bytes.
        on_skipped: see ``walk_tree``, also for what becomes of links.
    Raises:
        UsageError: the source does not exist, or has no files.
    """
    if not source.exists():
        raise UsageError(f"'{source}' does not exist.")
    found, entries = _walk(source, contents_only, on_skipped)
    if not found:
        raise UsageError(f"'{source}' has no files.")
    total_bytes = sum(file.stat.st_size for file in found.values())
    read_bytes = 0
    described = []
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for one in pool.map(_describe, found, found.values()):
            described.append(one)
            read_bytes += one.file.size
            if on_bytes is not None:
                on_bytes(read_bytes, total_bytes)
    return tuple(described), tuple(entries)


def describe_change(changed: Sequence[SourceFile]) -> UsageError:
    """The error that says that somebody writes to the sources while they are uploaded."""
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return UsageError(
        f"'{changed[0].source}'{more} changed while the dataset was uploaded. Upload again when nobody writes to "
        "the files; what is stored is not sent again."
    )


def dump_files(files: Sequence[DatasetFile]) -> list[dict[str, Any]]:
    """The files as JSON, without what a manifest does not keep; see ``parse_entries``."""
    documents = [
        {
            "path": file.path,
            "size": file.size,
            "checksum": file.checksum,
            "pack": file.pack,
            "offset": file.offset,
            "key": file.key,
            "is_executable": file.is_executable or None,
            "mtime_ns": file.mtime_ns,
        }
        for file in files
    ]
    return [{key: value for key, value in document.items() if value is not None} for document in documents]


def identify_content(files: Sequence[DatasetFile], uri: str = "") -> str:
    """A digest that is equal when the content is: of paths, sizes and checksums.

    Args:
        uri: where the files are; needed when they have no checksums: a version says something in its place only.
    """
    lines = [json.dumps([file.path, file.size, file.checksum, file.version]) for file in files]
    return hashlib.sha256("\n".join([uri, *sorted(lines)]).encode()).hexdigest()


def identify_facts(files: Sequence[DatasetFile], entries: Sequence[TreeEntry]) -> str:
    """A digest that is equal when all is that there is besides paths and content; empty when nothing is known of it."""
    lines = [json.dumps([file.path, file.is_executable, file.mtime_ns]) for file in files if file.mtime_ns is not None]
    lines += [json.dumps([entry.path, entry.link_to, entry.mtime_ns]) for entry in entries]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() if lines else ""


def name_keys(described: Sequence[SourceFile]) -> tuple[SourceFile, ...]:
    """Say where files are stored whose paths not every storage takes for keys."""
    named = []
    for one in described:
        key = key_of_file("files", one.file.path)
        is_path = key == f"files/{one.file.path}"
        named.append(one if is_path else replace(one, file=replace(one.file, key=key)))
    return tuple(named)


def refuse_outsiders(files: Sequence[DatasetFile], entries: Sequence[TreeEntry], dataset: str) -> None:
    """Raises StorageError if a stored list has something that would lie elsewhere than in the dataset's directory."""
    for problem in filter(None, map(refuse_entry, entries)):
        raise StorageError(f"{dataset} is refused: entries.json has {problem} the dataset's directory")
    for file in files:
        if any(leads_out(path) for path in (file.path, file.pack, file.key) if path is not None):
            raise StorageError(
                f"{dataset} is refused: files.json has a file '{file.path}', which does not stay inside the dataset's "
                "directory"
            )


def list_versions(root: StorageRoot) -> tuple[DatasetFile, ...]:
    """All files of a bucket's prefix with their versions, by a listing (not a request per file).

    Raises:
        StorageError: a key cannot be a file's path here.
    """
    operations, filesystem = root.operations, root.filesystem
    try:
        found: dict[str, dict[str, Any]] = operations.run(
            "", lambda: operations.call(filesystem, "find", root.base_path, detail=True)
        )
    except FileNotFoundError:
        return ()
    files = []
    for full_path, info in sorted(found.items()):
        path = posixpath.relpath(full_path, root.base_path)
        # Some tools mark a directory by an empty key.
        if full_path.endswith("/") or info["type"] != "file":
            continue
        if leads_out(path):
            raise StorageError(f"'{full_path}' in '{root.uri}' cannot be a file of a dataset: its path leads elsewhere")
        version = next((str(info[field]) for field in _VERSION_FIELDS if info.get(field) is not None), None)
        files.append(DatasetFile(path, int(info["size"]), version=version))
    return tuple(files)


def _walk(
    source: Path, contents_only: bool, on_skipped: Callable[[str, str], None]
) -> tuple[dict[str, TreeFile], list[TreeEntry]]:
    """Files by their paths in the dataset, sorted, and what else there is."""
    if source.is_file():
        return {source.name: TreeFile(source.name, os.fspath(source), source.stat())}, []
    # Made absolute without following links: "." has a name then, and a link keeps the one the user typed.
    top = Path(os.path.abspath(source))
    prefix = "" if contents_only else f"{top.name}/"
    files, entries = list_tree(top, on_skipped=on_skipped)
    own = [] if contents_only else [TreeEntry(top.name, None, top.stat().st_mtime_ns)]
    return (
        {f"{prefix}{file.path}": file for file in files},
        [*own, *(replace(entry, path=f"{prefix}{entry.path}") for entry in entries)],
    )


def _describe(path: str, found: TreeFile) -> SourceFile:
    # What the file was before it is read, so that a change meanwhile is seen.
    checksum = checksum_file(Path(found.full_path))
    file = DatasetFile(path, found.stat.st_size, checksum, is_executable=found.is_executable, mtime_ns=found.mtime_ns)
    return SourceFile(Path(found.full_path), file)
