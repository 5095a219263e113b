"""What the monitor orders simulated nodes to do when machines are to go."""

from __future__ import annotations

import asyncio

from simulated_nodes import Node, join_all, record_all

from periflow_ray.jobs.requests import NoticeDrill
from periflow_ray.runtime.monitor.actor import Monitor
from periflow_ray.runtime.monitor.contract import Order, ReportSteps, SaveAt


class Orders:
    """What the monitor orders the members of attempt 1 to do, one after the other."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._num_seen = 0
        self._read: list[Order] = []

    async def next_save(self, nodes: list[Node], step: int) -> int:
        """Answer the question for the steps, as nodes that are at this one; returns the step that is announced."""
        while True:
            match await self.next():
                case ReportSteps():
                    for node in nodes:
                        await node.record(step, is_answer=True)
                case SaveAt(announced_step):
                    return announced_step
                case order:
                    raise AssertionError(f"not asked for a save, but for {order}")

    async def next(self) -> Order:
        if not self._read:
            self._read = await self._monitor.next_orders(1, self._num_seen)
            self._num_seen += len(self._read)
        return self._read.pop(0)


async def join_and_train(nodes: list[Node]) -> None:
    """So far that the speed is known."""
    await join_all(nodes)
    for step in (1, 2, 3):
        await asyncio.sleep(0.01)
        await record_all(nodes, step)


def notice(monitor: Monitor, notice_s: float = 3600.0, node_rank: int = 1) -> asyncio.Task[None]:
    return asyncio.create_task(monitor.drill(NoticeDrill(node_rank, notice_s)))
