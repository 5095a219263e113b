"""What the monitor asks simulated nodes for when machines are to go."""

from __future__ import annotations

import asyncio

from simulated_nodes import Node, join_all

from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.attempt import Signal


class Signals:
    """What the monitor asked the members of attempt 1 for, one after the other."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._num_seen = 0
        self._read: list[Signal] = []

    async def next_save(self, nodes: list[Node], step: int) -> int:
        """Answer the question for the steps, as nodes that are at this one; returns the step that is announced."""
        while True:
            signal = await self._next()
            if signal.kind == "report":
                for node in nodes:
                    first = 2 * node.node_rank
                    steps = {first: step, first + 1: step}
                    await self._monitor.record(steps, None, [], node.node_rank, True)
            elif signal.kind == "save":
                return signal.step
            else:
                raise AssertionError(f"not asked for a save, but for {signal}")

    async def next_kind(self) -> str:
        return (await self._next()).kind

    async def _next(self) -> Signal:
        if not self._read:
            self._read = await self._monitor.wait_for_signals(1, self._num_seen)
            self._num_seen += len(self._read)
        return self._read.pop(0)


async def join_and_train(nodes: list[Node]) -> None:
    """So far that the speed is known."""
    await join_all(nodes)
    for step in (1, 2, 3):
        await asyncio.sleep(0.01)
        for node in nodes:
            await node.record(step)


def notice(monitor: Monitor, notice_s: float = 3600.0, node_rank: int = 1) -> asyncio.Task[None]:
    return asyncio.create_task(monitor.drill("notice", notice_s, node_rank, 0))
