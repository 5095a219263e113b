"""Directories of this machine, or of a file system that is mounted here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from periflow_ray.store import local_files
from periflow_ray.store.backends.backend import OpenStorage
from periflow_ray.store.backends.fsspec_backend import FsspecBackend

_NUM_SYNCS = 8


class LocalBackend(FsspecBackend):
    """Keys are files; see ``Backend``."""

    schemes = ("file", "local")
    clouds = ("local",)
    is_local = True

    def read(self, storage: OpenStorage, key: str, path: str, start: int) -> bytes:
        return storage.operations.run(key, lambda: _read(path, start))

    def write(self, storage: OpenStorage, key: str, path: str, content: bytes) -> None:
        local_files.write_whole(path, content)

    def create(self, storage: OpenStorage, key: str, path: str, content: bytes) -> bool:
        return local_files.create_whole(path, content)

    def exists(self, storage: OpenStorage, key: str, path: str) -> bool:
        return os.path.exists(path)

    def size_bytes(self, storage: OpenStorage, key: str, path: str) -> int:
        return storage.operations.run(key, lambda: os.stat(path).st_size)

    def list_names(self, storage: OpenStorage, key: str, path: str) -> set[str]:
        return {name for name in os.listdir(path) if not local_files.is_partial_name(name)}

    def list_files(self, storage: OpenStorage, key: str, path: str) -> dict[str, int]:
        found = super().list_files(storage, key, path)
        return {
            name: num_bytes
            for name, num_bytes in found.items()
            if not local_files.is_partial_name(os.path.basename(name))
        }

    def copy(self, storage: OpenStorage, key: str, source: str, target: str) -> None:
        """A hard link where that can be."""
        storage.operations.run(key, lambda: local_files.link_or_copy(source, target))

    def sync(self, base: str, paths: Sequence[str], *, has_content: bool) -> None:
        directories: set[str] = set()
        for path in paths:
            parent = os.path.dirname(path)
            while parent not in directories and len(parent) >= len(base):
                directories.add(parent)
                parent = os.path.dirname(parent)
        # At the same time, because a file system flushes them together then; names after what they stand for.
        with ThreadPoolExecutor(_NUM_SYNCS) as pool:
            if has_content:
                list(pool.map(local_files.sync, paths))
            list(pool.map(local_files.sync, directories))

    def delete(self, storage: OpenStorage, key: str, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)

    def delete_many(self, storage: OpenStorage, key: str, paths: Sequence[str]) -> None:
        for path in paths:
            self.delete(storage, key, path)


def _read(path: str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read()
