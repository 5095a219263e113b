"""Copies what a function job's worker prints into the job's log, beside Ray's own handling of it."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from periflow_ray.runtime.member.log import MemberLog

# As for a command's lines; a program that never prints a newline must not fill the memory either.
_MAX_LINE_CHARS = 64 << 10


@contextlib.contextmanager
def copy_output(log: MemberLog) -> Iterator[None]:
    """Give each line of standard output and error to the log while the block runs, to the last one.

    Ray gets what is printed, too, piece by piece and without the log's secrets.
    """
    tees = _Tee(sys.stdout, log), _Tee(sys.stderr, log)
    try:
        with contextlib.redirect_stdout(tees[0]), contextlib.redirect_stderr(tees[1]):
            yield
    finally:
        for tee in tees:
            tee.finish_line()


class _Tee(io.TextIOBase):
    def __init__(self, original: TextIO, log: MemberLog) -> None:
        self._original = original
        self._log = log
        self._lock = threading.Lock()
        self._rest = ""

    def write(self, text: str) -> int:
        self._original.write(self._log.mask(text))
        with self._lock:
            *lines, rest = (self._rest + text).split("\n")
            for line in lines:
                self._write_line(line)
            # Of a progress bar's line, the part that will be visible is what follows its last carriage return.
            self._rest = rest[rest.rfind("\r", 0, len(rest) - 1) + 1 :]
            if len(self._rest) > _MAX_LINE_CHARS:
                self._write_line(self._rest)
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
                self._write_line(self._rest)
                self._rest = ""

    def _write_line(self, line: str) -> None:
        visible = line.rstrip("\r").rpartition("\r")[2]
        for start in range(0, max(1, len(visible)), _MAX_LINE_CHARS):
            self._log.write(visible[start : start + _MAX_LINE_CHARS])
