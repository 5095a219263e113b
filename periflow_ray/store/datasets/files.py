"""The files of a dataset: found on this machine, listed in a manifest or in a bucket, and told apart by content."""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from periflow_ray.errors import StorageError, UsageError
from periflow_ray.store.checksum import checksum_file
from periflow_ray.store.keys import leads_out
from periflow_ray.store.local_files import walk_files
from periflow_ray.store.root import StorageRoot

_NUM_READERS = 8
# What the file systems of fsspec call the mark of a file's version: S3, Azure, Google, directories, memory.
_VERSION_FIELDS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class DatasetFile:
    """One file: path in the dataset with forward slashes, and size in bytes.

    ``checksum`` is known of uploaded files; ``version``, whatever the bucket tells one content from the next by, of
    linked ones. ``pack`` is the pack that an uploaded file is stored in, ``offset`` where it begins there; None of both
    when it is stored as a file.
    """

    path: str
    size: int
    checksum: str | None = None
    version: str | None = None
    pack: str | None = None
    offset: int | None = None

    @property
    def stored_key(self) -> str:
        """Where an uploaded file is, below the dataset's own key."""
        return f"files/{self.path}" if self.pack is None else f"packs/{self.pack}"


@dataclass(frozen=True)
class SourceFile:
    """A file of this machine that is to become a file of a dataset."""

    source: Path
    file: DatasetFile
    mtime_ns: int

    @property
    def is_unchanged(self) -> bool:
        """Whether the source still is what was described."""
        try:
            found = self.source.stat()
        except FileNotFoundError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.file.size, self.mtime_ns)


def describe_source(
    source: Path, contents_only: bool, on_bytes: Callable[[int, int], None] | None = None
) -> tuple[SourceFile, ...]:
    """Find the files of a directory, or a single file, and read their checksums.

    Symbolic links are followed: a dataset consists of files. Empty directories are left out.

    Args:
        contents_only: leave the directory's own name out of the paths.
        on_bytes: called with the number of bytes read and the number of all bytes.
    Raises:
        UsageError: the source does not exist, has no files, or has something in it that is not a file.
    """
    if not source.exists():
        raise UsageError(f"'{source}' does not exist.")
    found = dict(_walk(source, contents_only))
    if not found:
        raise UsageError(f"'{source}' has no files.")
    total_bytes = sum(path.stat().st_size for path in found.values())
    read_bytes = 0
    described = []
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for one in pool.map(_describe, found.values(), found):
            described.append(one)
            read_bytes += one.file.size
            if on_bytes is not None:
                on_bytes(read_bytes, total_bytes)
    return tuple(described)


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
        {"path": file.path, "size": file.size, "checksum": file.checksum, "pack": file.pack, "offset": file.offset}
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


def refuse_outsiders(files: Sequence[DatasetFile], dataset: str) -> None:
    """Raises StorageError if a stored list has a file that would lie elsewhere than in the dataset's directory."""
    for file in files:
        if leads_out(file.path) or (file.pack is not None and leads_out(file.pack)):
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


def _walk(source: Path, contents_only: bool) -> Iterator[tuple[str, Path]]:
    """Paths in the dataset and files here, sorted."""
    if source.is_file():
        yield source.name, source
        return
    # Made absolute without following links: "." has a name then, and a link keeps the one the user typed.
    top = Path(os.path.abspath(source))
    base = top if contents_only else top.parent
    for path in walk_files(top, on_circle=_refuse_circle, on_other=_refuse_other):
        yield (top / path).relative_to(base).as_posix(), top / path


def _refuse_circle(path: str) -> None:
    raise UsageError(f"'{path}' is a link to a directory that it is in: the files would have no end.")


def _refuse_other(path: str) -> None:
    if not os.path.exists(path):
        raise UsageError(f"'{path}' is a link to nothing. Remove it, or put back what it points to.")
    raise UsageError(f"'{path}' is neither a file nor a directory.")


def _describe(source: Path, path: str) -> SourceFile:
    # Asked before reading, so that a change while it is read is seen.
    found = source.stat()
    return SourceFile(source, DatasetFile(path, found.st_size, checksum_file(source)), found.st_mtime_ns)
