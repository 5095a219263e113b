"""A save of all ranks at an agreed step, because machines are about to go or the job is to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from periflow_ray.jobs.attempts import SaveRecord
from periflow_ray.runtime.monitor.attempt import Attempt, Signal
from periflow_ray.runtime.monitor.checkpoint_board import CheckpointBoard
from periflow_ray.runtime.monitor.save_step import ANNOUNCE_S, choose_save_step
from periflow_ray.sdk.session import NO_STEP, SAVE_NOW
from periflow_ray.store.checkpoints import Manifest

# How long the members may take to say how far their ranks are.
REPORT_TIMEOUT_S = 0.5
# With accumulated gradients Lightning saves a few batches after the one at which it was asked.
PATIENCE_STEPS = 16
# With short steps those are over before a rank on a busy machine has heard of it.
PATIENCE_S = 2.0
# "At once" is another step for each rank, unless they happen to be at the same one.
MAX_TIMES_AT_ONCE = 3
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
        self._announced_step = NO_STEP
        self._running: asyncio.Task[bool] | None = None

    def is_saving_for(self, attempt: Attempt, nodes: Sequence[int]) -> bool:
        """Whether a save for these nodes is under way or was made in this attempt."""
        return self._attempt is attempt and set(nodes) <= self._nodes

    async def save(self, attempt: Attempt, reason: str, deadline_unix_s: float, nodes: Sequence[int] = ()) -> bool:
        """Whether a checkpoint was committed in time. A second call during the first, or after its success, joins it.

        Args:
            nodes: those that go at the deadline; empty if the job is to stop, and need not wait for what may come.
        """
        if self._attempt is not attempt:
            self._attempt, self._nodes, self._running, self._record = attempt, set(), None, None
            self._announced_step = NO_STEP
        self._nodes |= set(nodes)
        self._write_event("notice", reason)
        if self._running is not None and (not self._running.done() or self._running.result()):
            self._deadline_unix_s = min(self._deadline_unix_s, deadline_unix_s)
        else:
            self._deadline_unix_s = deadline_unix_s
            self._running = asyncio.create_task(self._save(attempt, deadline_unix_s))
        return await asyncio.shield(self._running)

    def describe(self, attempt: Attempt) -> SaveRecord | None:
        """What was asked for and saved in this attempt."""
        return self._record if self._attempt is attempt else None

    async def miss(self, step: int) -> None:
        """A rank heard of the announced step too late, or saved at another one: the save has to be tried again."""
        async with self._changed:
            if step == self._announced_step:
                self._board.make_agreed_void("a rank was already beyond the agreed step")
                self._changed.notify_all()

    async def _save(self, attempt: Attempt, deadline_unix_s: float) -> bool:
        began_unix_s = time.time()
        if attempt.first_step_unix_s is None:
            # Its first steps may not have been reported yet.
            await self._ask_for_steps(attempt)
        if attempt.first_step_unix_s is None or attempt.cause is not None:
            return False
        self._record = SaveRecord(notice_s=deadline_unix_s - began_unix_s, step=None, save_time_s=None)
        announce_s, is_void, num_at_once = ANNOUNCE_S, True, 0
        while is_void and num_at_once < MAX_TIMES_AT_ONCE and self._may_go_on(attempt):
            await self._announce(attempt, announce_s)
            is_speed_known = attempt.step_time_s() is not None
            num_at_once += self._announced_step == SAVE_NOW and is_speed_known
            saved, is_void = await self._wait_for_commit(attempt)
            if saved is not None:
                took_s = time.time() - began_unix_s
                self._record = SaveRecord(deadline_unix_s - began_unix_s, saved.step, took_s)
                self._write_event("notice", f"saved at step {saved.step}, {took_s:.1f} s after the notice")
                return True
            if is_speed_known:
                announce_s *= 2
            else:
                # "At once" was all that could be asked for; with a speed there is a step to agree on.
                await asyncio.sleep(ANNOUNCE_S)
        await self._withdraw(attempt)
        return False

    async def _announce(self, attempt: Attempt, announce_s: float) -> None:
        """Agree on a step and tell it to all ranks."""
        await self._ask_for_steps(attempt)
        if not self._may_go_on(attempt):
            return
        step = choose_save_step(
            # A step that was missed is over, also where nobody answered in time.
            [*attempt.steps.values(), self._announced_step],
            attempt.step_time_s(),
            announce_s=announce_s,
            save_time_s=self._board.save_time_s,
            time_left_s=self._deadline_unix_s - time.time(),
        )
        self._announced_step = step
        # "Now" is a different step for each rank; only if it happens to be the same one there is a checkpoint.
        self._board.require_all_nodes(min(attempt.steps.values()) if step == SAVE_NOW else step)
        at = "at once: no agreed step can be saved in time" if step == SAVE_NOW else f"at step {step}"
        self._write_event("notice", f"all ranks are asked to save {at}")
        await self._signal(attempt, Signal("save", step))

    async def _wait_for_commit(self, attempt: Attempt) -> tuple[Manifest | None, bool]:
        """The checkpoint that was asked for, None if there is none; and whether it is worth another try."""
        agreed = self._board.agreed
        last_step = self._last_asked_step(attempt)
        asked_s = time.monotonic()
        has_told = False
        while self._may_go_on(attempt) and not agreed.is_void:
            if agreed.saved is not None:
                return agreed.saved, False
            had_time = time.monotonic() - asked_s > PATIENCE_S and attempt.has_passed(last_step + PATIENCE_STEPS)
            if had_time and not self._board.has_pending and not has_told:
                text = f"the script did not save at step {last_step}: it never asked is_emergency_save()"
                self._write_event("notice", text)
                has_told = True
                if not self._nodes:
                    return None, False
                # Its next periodic checkpoint is the last one that this attempt can use.
            await self._wait_for_change()
            self._board.check_agreed()
        return agreed.saved, agreed.is_void

    async def _withdraw(self, attempt: Attempt) -> None:
        """Let the ranks train on as if nobody had asked."""
        if attempt.is_ending:
            return
        if time.time() >= self._deadline_unix_s:
            self._write_event("notice", "no checkpoint was saved in time")
        if self._announced_step == NO_STEP:
            return
        self._board.end_agreed(self._last_asked_step(attempt), "not all nodes saved it in time")
        self._announced_step = NO_STEP
        await self._signal(attempt, Signal("save", NO_STEP))

    def _last_asked_step(self, attempt: Attempt) -> int:
        return attempt.last_step + 1 if self._announced_step == SAVE_NOW else self._announced_step

    def _may_go_on(self, attempt: Attempt) -> bool:
        return time.time() < self._deadline_unix_s and not attempt.is_ending

    async def _ask_for_steps(self, attempt: Attempt) -> None:
        ranks = set(attempt.steps)
        attempt.reported.clear()
        await self._signal(attempt, Signal("report"))
        async with self._changed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: bool(attempt.steps) and attempt.reported >= ranks), REPORT_TIMEOUT_S
                )

    async def _wait_for_change(self) -> None:
        async with self._changed:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _POLL_S)

    async def _signal(self, attempt: Attempt, signal: Signal) -> None:
        async with self._changed:
            attempt.signals.append(signal)
            self._changed.notify_all()
