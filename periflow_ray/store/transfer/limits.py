"""Limits that the workers of one transfer share: bytes in memory, and bytes per second."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator


class ByteBudget:
    """Lets no more than a number of bytes be in memory at a time; a larger piece goes alone."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._num_free = num_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Waits until the bytes are free, and holds them during the block."""
        num_held = min(num_bytes, self._num_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._num_free >= num_held)
            self._num_free -= num_held
        try:
            yield
        finally:
            with self._changed:
                self._num_free += num_held
                self._changed.notify_all()


class BandwidthLimit:
    """Spreads bytes over time.

    Args:
        bytes_per_s: over all threads together; None for no limit.
        stop: ends the waiting when it is set.
    """

    def __init__(self, bytes_per_s: int | None, stop: threading.Event) -> None:
        self._bytes_per_s = bytes_per_s
        self._stop = stop
        self._lock = threading.Lock()
        self._free_at_s = time.monotonic()

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self._bytes_per_s is not None

    def wait_for(self, num_bytes: int) -> None:
        """Waits until this many bytes may be moved."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            now_s = time.monotonic()
            starts_s = max(now_s, self._free_at_s)
            self._free_at_s = starts_s + num_bytes / self._bytes_per_s
        self._stop.wait(starts_s - now_s)
