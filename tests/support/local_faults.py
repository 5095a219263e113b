"""Faults of a local file system: one call of the operating system fails, at a position that the test chooses."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

LocalFault = Literal[
    "no_space",
    "io_error",  # and nothing has been done
    "io_error_after",  # and it has been done nevertheless
    "cut",  # half of what is written is written; like no_space for calls that write nothing
    "stall",
]
LOCAL_FAULTS: tuple[LocalFault, ...] = get_args(LocalFault)

STALL_S = 0.02
# Those that have a path as their first or second argument; open and copy_file_range are looked at besides.
_CALLS = ("mkdir", "link", "rename", "replace", "unlink", "remove", "rmdir", "listdir", "scandir", "stat", "truncate")


class LocalFaults:
    """Counts the calls that concern a directory, from 1; ``in_force`` for the time of a block."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self._lock = threading.Lock()
        self._fault: LocalFault | None = None
        self._at_call = 0
        self.calls: list[str] = []
        self.has_struck = False

    def plan(self, fault: LocalFault | None, at_call: int = 0) -> None:
        """Do a fault once, at the call of this number counted from now on; None for no fault."""
        with self._lock:
            self._fault, self._at_call, self.calls, self.has_struck = fault, at_call, [], False

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Look at the calls of this process during the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _CALLS:
                patch.setattr(os, name, self._wrap(name, getattr(os, name)))
            patch.setattr(os, "copy_file_range", self._wrap_copy(os.copy_file_range))
            patch.setattr(builtins, "open", self._wrap_open(builtins.open))
            patch.setattr(io, "open", builtins.open)
            yield

    def note(self, call: str) -> LocalFault | None:
        """Count a call; the fault that it has to show."""
        with self._lock:
            self.calls.append(call)
            if len(self.calls) != self._at_call or self._fault is None:
                return None
            self.has_struck = True
        if self._fault == "stall":
            time.sleep(STALL_S)
            return None
        return self._fault

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not any(self._concerns(arg) for arg in args[:2]):
                return call(*args, **kwargs)
            return _do(self.note(f"{name} {args[0]}"), call, *args, **kwargs)

        return wrapped

    def _wrap_copy(self, copy: Callable[..., int]) -> Callable[..., int]:
        def wrapped(source: int, target: int, count: int, **kwargs: Any) -> int:
            if not self._concerns(os.readlink(f"/proc/self/fd/{target}")):
                return copy(source, target, count, **kwargs)
            fault = self.note(f"copy_file_range {count}")
            if fault == "cut":
                copy(source, target, count // 2, **kwargs)
            return int(_do(fault, copy, source, target, count, **kwargs))

        return wrapped

    def _wrap_open(self, open_file: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not self._concerns(path):
                return open_file(path, mode, *args, **kwargs)
            file = _do(self.note(f"open {path}"), open_file, path, mode, *args, **kwargs)
            return file if mode.startswith("r") else _WatchedFile(file, self)

        return wrapped

    def _concerns(self, path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self._directory)


class _WatchedFile:
    """A file that is open for writing."""

    def __init__(self, file: Any, faults: LocalFaults) -> None:
        self._file = file
        self._faults = faults

    def __enter__(self) -> _WatchedFile:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, content: Any) -> int:
        fault = self._faults.note(f"write {len(content)}")
        if fault == "cut":
            self._file.write(content[: len(content) // 2])
        return int(_do(fault, self._file.write, content))


def _do(fault: LocalFault | None, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if fault is None:
        return call(*args, **kwargs)
    if fault == "io_error_after":
        result = call(*args, **kwargs)
        if hasattr(result, "close"):
            result.close()
    number = errno.EIO if fault.startswith("io_error") else errno.ENOSPC
    raise OSError(number, os.strerror(number))
