"""A storage root as pyarrow and Ray Train see it."""

from __future__ import annotations

from typing import Any

from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

from periflow_ray.store.root import StorageRoot


def open_arrow_filesystem(root: StorageRoot) -> FileSystem:
    """The root's file system for pyarrow and Ray Train, which resolve paths below ``root.base_path``."""
    return LocalFileSystem() if root.is_local else PyFileSystem(_RootHandler(root))


class _RootHandler(FSSpecHandler):  # type: ignore[misc]
    """Pickles as the root does, and equals another one of the same root.

    fsspec's own file systems differ from thread to thread, and Ray Train takes a checkpoint only from a file system
    that equals the one of its run.
    """

    def __init__(self, root: StorageRoot) -> None:
        self._root = root

    @property
    def fs(self) -> Any:
        return self._root.filesystem

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RootHandler) and self._root.uri == other._root.uri

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple[Any, ...]:
        return _RootHandler, (self._root,)

    def create_dir(self, path: str, recursive: bool) -> None:
        """Nothing: directories begin with their first file. fsspec would ask for the bucket, which may be forbidden."""
