"""What threatens a running attempt: machines that are about to go, ranks that stand still, and rehearsals of both."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

import ray

from periflow_ray.runtime.monitor.attempt import Attempt, Signal
from periflow_ray.runtime.monitor.checkpoint_board import CheckpointBoard
from periflow_ray.runtime.monitor.draining import read_draining_nodes
from periflow_ray.runtime.monitor.emergency import EmergencySave
from periflow_ray.runtime.monitor.restart_policy import Cause
from periflow_ray.runtime.notices.acknowledgement import mark_saved, mark_saving

# A job that may grow is in no hurry: only a script that never saves when asked makes it wait.
GROW_SAVE_TIMEOUT_S = 600.0

# The first step of an attempt may load data and compile: it is given so many times the usual time.
FIRST_STEP_FACTOR = 5


class Hazards:
    """Ends an attempt before its machines go, once it is saved, or when it hangs.

    Args:
        changed: the monitor's condition.
        write_event: takes an event's kind and text.
        hang_timeout_s: seconds without a step on any rank that count as a hang; None to wait for ever.
    """

    def __init__(
        self,
        job_id: int,
        changed: asyncio.Condition,
        board: CheckpointBoard,
        emergency: EmergencySave,
        write_event: Callable[[str, str], None],
        hang_timeout_s: float | None,
    ) -> None:
        self._job_id = job_id
        self._changed = changed
        self._board = board
        self._emergency = emergency
        self._write_event = write_event
        self._hang_timeout_s = hang_timeout_s
        self._growing: Attempt | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self.announced_machines: set[str] = set()
        """Ray's ids of machines that were known to go, also when they are gone."""

    async def look(self, attempt: Attempt) -> None:
        """React to what threatens the attempt now."""
        if attempt.cause is not None or not attempt.has_all_members:
            return
        await self._look_for_draining(attempt)
        await self._look_for_hang(attempt)

    async def drill(self, attempt: Attempt, what: str, notice_s: float, node_rank: int, rank: int) -> None:
        """Rehearse a loss: ``notice``, ``kill_rank`` or ``kill_node``."""
        if what == "notice":
            reason = f"drill: node {node_rank} is taken away in {notice_s:.0f} s"
            attempt.drilled_nodes.add(node_rank)
            await self._leave_nodes(attempt, [node_rank], reason, time.time() + notice_s)
        async with self._changed:
            if attempt.is_ending:
                return
            if what == "kill_rank":
                signal, text = Signal("kill_rank", target=rank), f"drill: kills rank {rank}"
            else:
                signal, text = Signal("kill_node", target=node_rank), f"drill: kills node {node_rank}"
            self._write_event("notice", text)
            attempt.signals.append(signal)
            self._changed.notify_all()

    async def grow(self, attempt: Attempt, num_members: int) -> None:
        """End the attempt for one with more members: after a save, or after the next periodic one."""
        if attempt.cause is not None or self._growing is attempt:
            return
        self._growing = attempt
        num_commits = len(self._board.commits)
        reason = f"grows from {attempt.num_members} to {num_members} workers"
        if not await self._emergency.save(attempt, f"the job {reason}", time.time() + GROW_SAVE_TIMEOUT_S):
            async with self._changed:
                await self._changed.wait_for(lambda: len(self._board.commits) > num_commits or attempt.is_ending)
        if not attempt.has_everybody_left:
            await self._end(attempt, "resize", reason)

    async def _look_for_draining(self, attempt: Attempt) -> None:
        draining = await read_draining_nodes()
        self.announced_machines.update(draining)
        leaving = {machine: deadline for machine, deadline in draining.items() if attempt.ranks_on({machine})}
        nodes = attempt.ranks_on(set(leaving))
        if not nodes or self._emergency.is_saving_for(attempt, nodes):
            return
        deadline_unix_s = min(leaving.values())
        names = ", ".join(str(node) for node in nodes)
        reason = f"node {names} is taken away in {max(0.0, deadline_unix_s - time.time()):.0f} s"
        task = asyncio.create_task(self._leave_nodes(attempt, nodes, reason, deadline_unix_s, list(leaving)))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _leave_nodes(
        self,
        attempt: Attempt,
        nodes: Sequence[int],
        reason: str,
        deadline_unix_s: float,
        machines: Sequence[str] = (),
    ) -> None:
        await asyncio.to_thread(self._mark, mark_saving, machines)
        is_saved = await self._emergency.save(attempt, reason, deadline_unix_s, nodes)
        # Without a step at the time of the notice there is nothing to save, and the job moves at once.
        was_asked = self._emergency.describe(attempt) is not None
        if not is_saved and (was_asked or attempt.cause is not None):
            # A periodic checkpoint is all there is; the attempt goes on until the machines are gone.
            async with self._changed:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(
                        self._changed.wait_for(lambda: attempt.is_ending),
                        max(0.0, deadline_unix_s - time.time()),
                    )
            return
        await self._end(attempt, "preemption", reason.replace("is taken", "was taken"))
        # The watcher on the machine may let the cloud have it now.
        await asyncio.to_thread(self._mark, mark_saved, machines)

    def _mark(self, mark: Callable[[str, int], None], machines: Sequence[str]) -> None:
        for machine in machines:
            with contextlib.suppress(ray.exceptions.RayError, RuntimeError):
                mark(machine, self._job_id)

    async def _look_for_hang(self, attempt: Attempt) -> None:
        standstill_s = attempt.standstill_s()
        factor = 1 if attempt.is_warm else FIRST_STEP_FACTOR
        if self._hang_timeout_s is None or standstill_s < factor * self._hang_timeout_s:
            return
        attempt.signals.append(Signal("dump"))
        text = f"no rank made a step for {standstill_s:.0f} s after step {attempt.last_step}"
        self._write_event(
            "notice", f"{text}; the stacks of all ranks go to the log: periflow-ray job log {self._job_id}"
        )
        await self._end(attempt, "hang", text)

    async def _end(self, attempt: Attempt, cause: Cause, text: str) -> None:
        async with self._changed:
            # The training may have come to its end meanwhile.
            if not attempt.has_everybody_left and attempt.end(cause, text):
                self._write_event("attempt_failed", f"attempt {attempt.number} ended: {text}")
            self._changed.notify_all()
