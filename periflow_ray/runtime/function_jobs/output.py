"""Copies what a function job's worker prints into the job's log, beside Ray's own handling of it."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

# A program that never prints a newline must not fill the memory.
_MAX_LINE_CHARS = 64 << 10


@contextlib.contextmanager
def copy_output(write_line: Callable[[str], object], mask: Callable[[str], str]) -> Iterator[None]:
    """Give each line of standard output and error to ``write_line`` while the block runs, to the last one.

    Args:
        mask: hides secrets in what Ray gets, piece by piece as it is printed.
    """
    tees = _Tee(sys.stdout, write_line, mask), _Tee(sys.stderr, write_line, mask)
    try:
        with contextlib.redirect_stdout(tees[0]), contextlib.redirect_stderr(tees[1]):
            yield
    finally:
        for tee in tees:
            tee.finish_line()


class _Tee(io.TextIOBase):
    def __init__(self, original: TextIO, write_line: Callable[[str], object], mask: Callable[[str], str]) -> None:
        self._original = original
        self._write_line = write_line
        self._mask = mask
        self._lock = threading.Lock()
        self._rest = ""

    def write(self, text: str) -> int:
        self._original.write(self._mask(text))
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            for line in lines:
                self._write_line(_visible(line))
            # Of a progress bar's line, the part that will be visible is what follows its last carriage return.
            self._rest = rest[rest.rfind("\r", 0, len(rest) - 1) + 1 :]
            if len(self._rest) > _MAX_LINE_CHARS:
                self._write_line(_visible(self._rest))
                self._rest = ""
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._original.fileno()

    def finish_line(self) -> None:
        with self._lock:
            if self._rest:
                self._write_line(_visible(self._rest))
                self._rest = ""


def _visible(line: str) -> str:
    return line.rstrip("\r").rpartition("\r")[2]
