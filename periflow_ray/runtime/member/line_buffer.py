"""Log lines that wait for the storage, within bounds."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

# Each half, with what Python needs for a line beside its text. A storage that is away for long is not worth the
# memory of the training.
MAX_HALF_BYTES = 32 << 20
_BYTES_BESIDE = 150

Line = tuple[int, str]


@dataclass(frozen=True)
class TakenLines:
    """``first`` came before ``last``; between them ``num_dropped`` lines are missing."""

    first: list[Line]
    last: list[Line]
    num_dropped: int


class LineBuffer:
    """Lines with their time in Unix milliseconds; one that is full drops its middle. Any thread may call."""

    def __init__(self, max_half_bytes: int = MAX_HALF_BYTES) -> None:
        self._max_half_bytes = max_half_bytes
        self._lock = threading.Lock()
        self._clear()

    def add(self, line: Line) -> bool:
        """Add a line; True when it is time to take them."""
        num_bytes = len(line[1]) + _BYTES_BESIDE
        with self._lock:
            if not self._last and self._first_bytes + num_bytes <= self._max_half_bytes:
                self._first.append(line)
                self._first_bytes += num_bytes
                return self._first_bytes > self._max_half_bytes // 2
            self._last.append(line)
            self._last_bytes += num_bytes
            while self._last_bytes > self._max_half_bytes and len(self._last) > 1:
                self._last_bytes -= len(self._last.popleft()[1]) + _BYTES_BESIDE
                self._num_dropped += 1
            return True

    def take(self) -> TakenLines:
        """All lines, which are not in the buffer any more."""
        with self._lock:
            taken = TakenLines(self._first, list(self._last), self._num_dropped)
            self._clear()
            return taken

    def _clear(self) -> None:
        self._first: list[Line] = []
        self._last: deque[Line] = deque()
        self._first_bytes = 0
        self._last_bytes = 0
        self._num_dropped = 0
