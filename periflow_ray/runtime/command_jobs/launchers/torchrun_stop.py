"""What torchrun prints when it is told to end: its own warnings and a traceback, which look as if something had failed.

Pure text, no I/O of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_FIRST_LINE = "Traceback (most recent call last):"
_LAST_LINE = re.compile(r"torch\.distributed\.elastic\.\S+\.SignalException: Process \d+ got signal: ")
_WARNING = re.compile(r"[IWEF]\d{4} \S+ \d+ \S*torch/distributed/.*(?:death signal|closing signal)")


class StopFilter:
    """Passes lines on; once its process was told to end, without those that torchrun writes about that.

    A traceback is held back until its last line says whether it is torchrun's.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._is_ending = False
        self._held: list[str] = []

    def begin(self) -> None:
        """The process is told to end."""
        self._is_ending = True

    def take(self, line: str) -> None:
        """Take a line of the process."""
        if self._is_ending and _WARNING.match(line):
            return
        if self._held and _LAST_LINE.match(line):
            self._held.clear()
        elif self._is_ending and line == _FIRST_LINE:
            self.close()
            self._held.append(line)
        elif self._held and line.startswith(" "):
            self._held.append(line)
        else:
            self.close()
            self._write(line)

    def close(self) -> None:
        """No line follows: what was held back is passed on."""
        held, self._held = self._held, []
        for line in held:
            self._write(line)
