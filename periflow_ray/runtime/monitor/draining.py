"""Machines that are about to go: their ranks save, and the attempt ends before the machines do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import ray

from periflow_ray.runtime import ray_private
from periflow_ray.runtime.monitor.announced_save import AnnouncedSave
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.notices.acknowledgement import mark_saved, mark_saving

# Ray's 0 means that no deadline was given.
DEFAULT_NOTICE_S = 30.0


class Draining:
    """Ends an attempt before its machines go, once it is saved."""

    def __init__(self, context: JobContext, save: AnnouncedSave) -> None:
        self._context = context
        self._save = save
        self._leaving: set[asyncio.Task[None]] = set()
        self.announced_machines: set[str] = set()
        """Ray's ids of machines that were known to go, even when they are gone."""

    async def look(self) -> None:
        """React to machines of the attempt that Ray was told will go."""
        attempt = self._context.attempt
        draining = await read_draining_nodes()
        self.announced_machines.update(draining)
        leaving = {machine: deadline for machine, deadline in draining.items() if attempt.ranks_on({machine})}
        nodes = attempt.ranks_on(set(leaving))
        if not nodes or self._save.is_saving_for(attempt, nodes):
            return
        deadline_unix_s = min(leaving.values())
        names = ", ".join(str(node) for node in nodes)
        reason = f"node {names} is taken away in {max(0.0, deadline_unix_s - time.time()):.0f} s"
        task = asyncio.create_task(self.leave_nodes(attempt, nodes, reason, deadline_unix_s, list(leaving)))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def leave_nodes(
        self, attempt: Attempt, nodes: Sequence[int], reason: str, deadline_unix_s: float, machines: Sequence[str] = ()
    ) -> None:
        """Let all ranks save because nodes go at the deadline, and end the attempt when they have.

        Args:
            reason: a sentence in the present tense.
            machines: Ray's ids of the machines, whose watchers are told; none for a drill.
        """
        await asyncio.to_thread(self._mark, mark_saving, machines)
        is_saved = await self._save.save(attempt, reason, deadline_unix_s, nodes)
        # Without a step at the time of the notice there is nothing to save, and the job moves at once.
        was_asked = self._save.describe(attempt) is not None
        if not is_saved and (was_asked or attempt.cause is not None):
            # A periodic checkpoint is all there is; the attempt goes on until the machines are gone.
            time_left_s = max(0.0, deadline_unix_s - time.time())
            await self._context.membership.wait_for(lambda: attempt.is_ending, time_left_s)
            return
        # The training may have come to its end meanwhile.
        if not attempt.has_everybody_left:
            self._context.end(attempt, "preemption", reason.replace("is taken", "was taken"))
        # The watcher on the machine may let the cloud have it now.
        await asyncio.to_thread(self._mark, mark_saved, machines)

    def _mark(self, mark: Callable[[str, int], None], machines: Sequence[str]) -> None:
        for machine in machines:
            with contextlib.suppress(ray.exceptions.RayError, RuntimeError):
                mark(machine, self._context.job_id)


async def read_draining_nodes() -> dict[str, float]:
    """Ray's node id in hex -> the Unix time in seconds at which the machine goes; empty if Ray cannot say."""
    try:
        found = await asyncio.to_thread(ray_private.read_draining_nodes)
    except (ray.exceptions.RayError, RuntimeError, OSError):
        return {}
    return {node: (ms / 1000 if ms else time.time() + DEFAULT_NOTICE_S) for node, ms in found.items()}
