"""What differs between servers: writing one key in parts, copying inside the server, deleting many keys."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from periflow_ray.store.operations import Operations

Kind = Literal["local", "s3", "azure", "other"]

_NUM_DELETERS = 16


class PartWriter(Protocol):
    """Writes one key in parts of ``part_bytes`` (the last may be smaller); nothing is visible before ``complete``.

    ``begin`` comes first. ``put_part`` may be called from several threads, each index once.
    """

    part_bytes: int

    def begin(self) -> None:
        """Tell the server that parts will come."""

    def put_part(self, index: int, content: bytes) -> None:
        """Send a part; ``index`` counts from 0."""

    def complete(self) -> None:
        """Make the key appear; all parts have been put."""

    def abort(self) -> None:
        """Forget the parts; the key stays as it was."""


def kind_of(fs: Any) -> Kind:
    """Which writer a file system needs."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if protocols & {"file", "local"}:
        return "local"
    if "s3" in protocols:
        return "s3"
    return "azure" if "abfs" in protocols else "other"


def open_part_writer(
    operations: Operations, fs: Any, key: str, path: str, *, num_bytes: int, part_bytes: int
) -> PartWriter:
    """A writer for one key of S3 or Azure Blob, with parts of at least ``part_bytes``.

    Args:
        key: the key's name for messages.
        path: the key's path in the file system.
        num_bytes: size of the whole file.
    """
    if kind_of(fs) == "s3":
        from periflow_ray.store.s3_parts import S3PartWriter

        return S3PartWriter(operations, fs, key, path, num_bytes=num_bytes, part_bytes=part_bytes)
    from periflow_ray.store.azure_parts import AzurePartWriter

    return AzurePartWriter(operations, fs, key, path, num_bytes=num_bytes, part_bytes=part_bytes)


def copy_on_server(operations: Operations, fs: Any, source: str, target: str) -> None:
    """Copy one path of a file system to another; the bytes stay on the server.

    Raises:
        FileNotFoundError: there is no source.
    """
    if kind_of(fs) == "azure":
        from periflow_ray.store.azure_parts import copy_blob

        operations.wait_for(fs, lambda: copy_blob(fs, source, target))
    else:
        operations.call(fs, "cp_file", source, target)


def delete_on_server(operations: Operations, fs: Any, prefix: str, paths: Sequence[str]) -> None:
    """Delete the files of a prefix by their paths; those that have gone meanwhile are none of them.

    Raises:
        StorageError: one could not be deleted.
    """
    if kind_of(fs) == "s3":
        from periflow_ray.store.s3_parts import delete_keys

        delete_keys(operations, fs, prefix, paths)
        return

    def delete(path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            operations.run(prefix, lambda: operations.call(fs, "rm_file", path))

    with ThreadPoolExecutor(_NUM_DELETERS) as pool:
        list(pool.map(delete, paths))
