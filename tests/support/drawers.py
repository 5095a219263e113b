"""A kind of storage that only the tests know: one file with a class, and a row in the table while it is registered.

It has everything that a kind can have of its own: a file system that is opened without fsspec's registry, conditional
creation, parts, and its own error codes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem

from periflow_ray.store.backends import BACKENDS
from periflow_ray.store.backends.backend import Opening, OpenStorage
from periflow_ray.store.backends.fsspec_backend import FsspecBackend
from periflow_ray.store.failures import Answer, Failures

PART_BYTES = 3 << 20


class DrawerError(Exception):
    """As the storage refuses something."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.drawer_code = code


class DrawerFileSystem(MemoryFileSystem):
    """fsspec's memory, apart from the one that others use."""

    protocol = "drawer"
    root_marker = ""
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("drawer://", "memory://", 1))


class DrawerParts:
    """Keeps parts until they are complete; see ``PartWriter``."""

    part_bytes = PART_BYTES

    def __init__(self, storage: OpenStorage, key: str, path: str, num_uploads: list[int]) -> None:
        self._storage = storage
        self._key = key
        self._path = path
        self._num_uploads = num_uploads
        self._parts: dict[int, bytes] = {}

    def begin(self) -> None:
        self._num_uploads[0] += 1

    def put_part(self, index: int, content: bytes) -> None:
        self._parts[index] = content

    def complete(self) -> None:
        content = b"".join(self._parts[index] for index in sorted(self._parts))
        self._storage.run(self._key, "pipe_file", self._path, content)

    def abort(self) -> None:
        self._parts.clear()


def _read_answer(cause: BaseException) -> Answer | None:
    return Answer(cause.drawer_code) if isinstance(cause, DrawerError) else None


class DrawerBackend(FsspecBackend):
    """``drawer://cupboard/prefix``."""

    schemes = ("drawer",)
    clouds = ("cupboard",)
    failures = Failures(_read_answer, wrong_keys=frozenset({"WrongKey"}), transient=frozenset({"Stuck"}))

    def __init__(self) -> None:
        self.num_part_uploads = [0]
        self._lock = threading.Lock()

    def open(self, opening: Opening) -> tuple[Any, str]:
        return DrawerFileSystem(), DrawerFileSystem._strip_protocol(opening.uri)

    def create(self, storage: OpenStorage, key: str, path: str, content: bytes) -> bool:
        with self._lock:
            if storage.call("exists", path):
                return False
            storage.call("pipe_file", path, content)
            return True

    def open_part_writer(
        self, storage: OpenStorage, key: str, path: str, *, num_bytes: int, part_bytes: int
    ) -> DrawerParts:
        return DrawerParts(storage, key, path, self.num_part_uploads)


@contextmanager
def drawers() -> Iterator[DrawerBackend]:
    """The row of the table, and empty drawers."""
    backend = DrawerBackend()
    BACKENDS["drawer"] = backend
    try:
        yield backend
    finally:
        del BACKENDS["drawer"]
        DrawerFileSystem.store.clear()
        DrawerFileSystem.pseudo_dirs[:] = [""]
