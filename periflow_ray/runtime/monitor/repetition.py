"""What the monitor does again and again beside its members' calls, until it is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


class Repetition:
    """Actions that are repeated at intervals, each once more when it ends."""

    def __init__(self) -> None:
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def has_begun(self) -> bool:
        """Whether anything is repeated."""
        return bool(self._tasks)

    def begin(self, action: Callable[[], Awaitable[None]], interval_s: float) -> None:
        """Repeat an action, first after one interval."""
        self._tasks.append(asyncio.create_task(self._repeat(action, interval_s)))

    async def close(self) -> None:
        """Let every action end, after its last time."""
        self._closing.set()
        await asyncio.gather(*self._tasks)

    async def _repeat(self, action: Callable[[], Awaitable[None]], interval_s: float) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), interval_s)
            await action()
