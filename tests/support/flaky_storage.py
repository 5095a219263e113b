"""A file system in memory whose operations fail when a test says so: ``flaky://bucket/prefix``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from periflow_ray.store.backends import BACKENDS
from periflow_ray.store.backends.fsspec_backend import FsspecBackend


class FlakyFileSystem(MemoryFileSystem):
    """Notes every call, and raises the errors that wait for a method before the method works again."""

    protocol = "flaky"
    root_marker = ""
    calls: ClassVar[list[tuple[Any, ...]]] = []
    failures: ClassVar[dict[str, list[Exception]]] = {}
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://", 1))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> Any:
        self._note("cat_file", start, end)
        return super().cat_file(path, start=start, end=end, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        self._note("put_file")
        super().put_file(lpath, rpath, **kwargs)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._note("pipe_file")
        super().pipe_file(path, value, mode=mode, **kwargs)
        # As when the server has done it, and its answer is lost.
        self._note("pipe_file's answer")

    def info(self, path: str, **kwargs: Any) -> Any:
        self._note("info")
        return super().info(path, **kwargs)

    def _note(self, method: str, *details: Any) -> None:
        self.calls.append((method, *details))
        if self.failures.get(method):
            raise self.failures[method].pop(0)


class FlakyBackend(FsspecBackend):
    """The file system's row among the kinds of storage."""

    schemes = ("flaky",)


@contextmanager
def flaky_storage() -> Iterator[type[FlakyFileSystem]]:
    """The file system, registered and empty."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    BACKENDS["flaky"] = FlakyBackend()
    try:
        yield FlakyFileSystem
    finally:
        del BACKENDS["flaky"]
        FlakyFileSystem.calls.clear()
        FlakyFileSystem.failures.clear()
        FlakyFileSystem.store.clear()
        FlakyFileSystem.pseudo_dirs[:] = [""]
