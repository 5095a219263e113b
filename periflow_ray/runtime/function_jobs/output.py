"""Copies what a function job's worker prints into the job's log, beside Ray's own handling of it."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from periflow_ray.processes import OutputLines
from periflow_ray.runtime.member.log import MemberLog


@contextlib.contextmanager
def copy_output(log: MemberLog) -> Iterator[None]:
    """Give each line of standard output and error to the log while the block runs, to the last one.

    Ray gets the same lines, without the log's secrets.
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
        # A signal handler may print while it has interrupted a print.
        self._lock = threading.RLock()
        self._lines = OutputLines(self._take_line, log.mask)

    def write(self, text: str) -> int:
        with self._lock:
            self._lines.feed(text)
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._original.fileno()

    def finish_line(self) -> None:
        with self._lock:
            self._lines.finish()

    def _take_line(self, line: str) -> None:
        self._original.write(self._log.write(line) + "\n")
