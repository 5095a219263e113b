"""Waiting for a condition on the monitor's state: a change is told, and only those who wait are woken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Changes:
    """News of one part of the state, for coroutines of one event loop; between two awaits nobody else runs."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def tell(self) -> None:
        """The state has changed: those who wait look again."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def wait_for(self, is_true: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until a condition holds; False if the time was over first."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not is_true():
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            await self.wait(left_s)
        return True

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the next news, or until the time is over."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait([future], timeout=timeout_s)
        finally:
            self._waiting.discard(future)
