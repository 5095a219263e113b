"""What the monitor does again and again beside its members' calls, until it is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from periflow_ray.loops import Faults

CLOSE_TIMEOUT_S = 10.0


class Repetition:
    """Actions that are repeated at intervals, each once more when it ends; an error ends none of them.

    Args:
        on_problem: gets a sentence for the user, once for each action that fails unexpectedly.
    """

    def __init__(self, on_problem: Callable[[str], None] | None = None) -> None:
        self._on_problem = on_problem
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def has_begun(self) -> bool:
        """Whether anything is repeated."""
        return bool(self._tasks)

    def begin(self, action: Callable[[], Awaitable[None]], interval_s: float, name: str = "a repeated action") -> None:
        """Repeat an action, first after one interval.

        Args:
            name: how problems call it, at the beginning of a sentence.
        """
        self._tasks.append(asyncio.create_task(self._repeat(action, interval_s, Faults(name, self._on_problem))))

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Let every action end, after its last time; one that does not come to its end is given up."""
        self._closing.set()
        if not self._tasks:
            return
        _, waiting = await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    async def _repeat(self, action: Callable[[], Awaitable[None]], interval_s: float, faults: Faults) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), interval_s)
            try:
                await action()
            except Exception as err:
                faults.take(err)
