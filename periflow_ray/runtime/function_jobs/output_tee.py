"""Copies what a function job's worker prints into the job's log, beside Ray's own handling of it."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import TextIO

from periflow_ray.jobs.logs import LogWriter

FLUSH_INTERVAL_S = 0.5


class OutputCopy:
    """The log that the output is copied into, for those who add to it from another thread."""

    def __init__(self, log: LogWriter) -> None:
        self._log = log
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Add a line without its newline."""
        with self._lock:
            self._log.write(line)

    def flush(self) -> None:
        """Make what was written visible to readers, as far as the storage takes it."""
        with self._lock, contextlib.suppress(OSError):  # What could not be written stays buffered.
            self._log.flush()


@contextlib.contextmanager
def copy_output(log: LogWriter) -> Iterator[OutputCopy]:
    """Copy standard output and error to ``log`` while the block runs; complete to the last line afterwards."""
    copy = OutputCopy(log)
    closing = threading.Event()

    def flush_until_closed() -> None:
        while not closing.wait(FLUSH_INTERVAL_S):
            copy.flush()

    flusher = threading.Thread(target=flush_until_closed, name="log-flush", daemon=True)
    flusher.start()
    tees = _Tee(sys.stdout, copy), _Tee(sys.stderr, copy)
    try:
        with contextlib.redirect_stdout(tees[0]), contextlib.redirect_stderr(tees[1]):
            yield copy
    finally:
        closing.set()
        flusher.join()
        for tee in tees:
            tee.finish_line()
        log.flush()


class _Tee(io.TextIOBase):
    def __init__(self, original: TextIO, copy: OutputCopy) -> None:
        self._original = original
        self._copy = copy
        self._lock = threading.Lock()
        self._rest = ""

    def write(self, text: str) -> int:
        self._original.write(text)
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            for line in lines:
                self._copy.write(line)
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
                self._copy.write(self._rest)
                self._rest = ""
