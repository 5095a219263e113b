"""A save of all ranks at an agreed step, because machines are about to go or the job is to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from periflow_ray.runtime.attempt import Attempt, Signal
from periflow_ray.runtime.checkpoint_board import CheckpointBoard
from periflow_ray.runtime.save_step import ANNOUNCE_S, choose_save_step
from periflow_ray.sdk.session import SAVE_NOW
from periflow_ray.store.attempts import SaveRecord
from periflow_ray.store.checkpoints import Manifest

# How long the members may take to say how far their ranks are.
REPORT_TIMEOUT_S = 0.5
_POLL_S = 0.1


class EmergencySave:
    """Asks all ranks for their steps, announces the step to save at, and waits for the commit.

    Args:
        changed: the monitor's condition.
        write_event: takes an event's kind and text.
    """

    def __init__(
        self, changed: asyncio.Condition, board: CheckpointBoard, write_event: Callable[[str, str], None]
    ) -> None:
        self._changed = changed
        self._board = board
        self._write_event = write_event
        self._attempt: Attempt | None = None
        self._nodes: set[int] = set()
        self._deadline_unix_s = 0.0
        self._record: SaveRecord | None = None
        self._announced_step: int | None = None
        self._is_missed = False
        self._running: asyncio.Task[bool] | None = None

    def is_saving_for(self, attempt: Attempt, nodes: Sequence[int]) -> bool:
        """Whether a save for these nodes is under way or was made in this attempt."""
        return self._attempt is attempt and set(nodes) <= self._nodes

    async def save(self, attempt: Attempt, reason: str, deadline_unix_s: float, nodes: Sequence[int] = ()) -> bool:
        """Whether a checkpoint was committed in time. A second call during the first joins it."""
        if self._attempt is not attempt:
            self._attempt, self._nodes, self._running = attempt, set(), None
            self._deadline_unix_s = deadline_unix_s
        self._nodes |= set(nodes)
        self._deadline_unix_s = min(self._deadline_unix_s, deadline_unix_s)
        self._write_event("notice", reason)
        if self._running is None:
            self._running = asyncio.create_task(self._save(attempt, deadline_unix_s))
        return await asyncio.shield(self._running)

    def describe(self, attempt: Attempt) -> SaveRecord | None:
        """What was asked for and saved in this attempt."""
        return self._record if self._attempt is attempt else None

    async def miss(self, step: int) -> None:
        """A rank heard of the announced step too late: another one has to be agreed on."""
        async with self._changed:
            if step == self._announced_step:
                self._is_missed = True
                self._board.abandon_from(step, "a rank was already beyond the agreed step")
                self._changed.notify_all()

    async def _save(self, attempt: Attempt, deadline_unix_s: float) -> bool:
        began_unix_s = time.time()
        if attempt.first_step_unix_s is None:
            # Its first steps may not have been reported yet.
            await self._ask_for_steps(attempt)
        if attempt.first_step_unix_s is None or attempt.cause is not None:
            return False
        self._record = SaveRecord(notice_s=deadline_unix_s - began_unix_s, step=None, save_time_s=None)
        announce_s = ANNOUNCE_S
        while self._may_go_on(attempt):
            saved = await self._save_once(attempt, announce_s)
            if saved is not None:
                took_s = time.time() - began_unix_s
                self._record = SaveRecord(deadline_unix_s - began_unix_s, saved.step, took_s)
                self._write_event("notice", f"saved at step {saved.step}, {took_s:.1f} s after the notice")
                return True
            if not self._is_missed:
                break
            announce_s *= 2
        return False

    async def _save_once(self, attempt: Attempt, announce_s: float) -> Manifest | None:
        """Announce one step and wait for its commit; None if there is none, or a rank heard of it too late."""
        await self._ask_for_steps(attempt)
        step = choose_save_step(
            attempt.steps.values(),
            attempt.step_time_s(),
            announce_s=announce_s,
            save_time_s=self._board.save_time_s,
            time_left_s=self._deadline_unix_s - time.time(),
        )
        self._is_missed, self._announced_step = False, step
        wanted = attempt.last_step if step == SAVE_NOW else step
        num_commits = len(self._board.commits)
        self._board.require_all_nodes(wanted)
        at = "at once: no agreed step can be saved in time" if step == SAVE_NOW else f"at step {step}"
        self._write_event("notice", f"all ranks are asked to save {at}")
        await self._signal(attempt, Signal("save", step))
        while self._may_go_on(attempt) and not self._is_missed:
            for manifest in self._board.commits[num_commits:]:
                if manifest.step >= wanted:
                    return manifest
            if attempt.has_passed(wanted + 1) and not self._board.has_pending:
                text = f"the script did not save at step {wanted}: it never asked is_emergency_save()"
                self._write_event("notice", text)
                return None
            async with self._changed:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), _POLL_S)
        if not self._is_missed:
            self._write_event("notice", "no checkpoint was saved in time")
        return None

    def _may_go_on(self, attempt: Attempt) -> bool:
        return time.time() < self._deadline_unix_s and attempt.cause is None and not attempt.has_everybody_left

    async def _ask_for_steps(self, attempt: Attempt) -> None:
        async with self._changed:
            attempt.reported.clear()
        await self._signal(attempt, Signal("report"))
        nodes = {*attempt.ranks_by_node, *(attempt.node_of(member) for member in attempt.started)}
        async with self._changed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: attempt.reported >= nodes), REPORT_TIMEOUT_S)

    async def _signal(self, attempt: Attempt, signal: Signal) -> None:
        async with self._changed:
            attempt.signals.append(signal)
            self._changed.notify_all()
