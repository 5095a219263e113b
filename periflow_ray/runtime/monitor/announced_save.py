"""A save of all ranks at an agreed step, because machines are about to go or the job is to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from periflow_ray.jobs.attempts import SaveRecord
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.checkpoints import Checkpoints
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import Departure, ReportSteps, SaveAt
from periflow_ray.runtime.monitor.save_step import ANNOUNCE_S, choose_save_step
from periflow_ray.sdk.session import NO_STEP, SAVE_NOW
from periflow_ray.store.checkpoints import Manifest

# How long the members may take to say how far their ranks are; what many of them add to that, each.
REPORT_TIMEOUT_S = 0.5
REPORT_TIME_PER_MEMBER_S = 0.002
# With accumulated gradients Lightning saves a few batches after the one at which it was asked.
PATIENCE_STEPS = 16
# With short steps those are over before a rank on a busy machine has heard of it.
PATIENCE_S = 2.0
# "At once" is another step for each rank, unless they happen to be at the same one.
MAX_TIMES_AT_ONCE = 3
_POLL_S = 0.1


class AnnouncedSave:
    """Asks all ranks for their steps, announces the step to save at, and waits for the commit."""

    def __init__(self, context: JobContext, checkpoints: Checkpoints) -> None:
        self._context = context
        self._checkpoints = checkpoints
        self._attempt: Attempt | None = None
        self._nodes: set[int] = set()
        self._deadline_unix_s = 0.0
        self._reason = ""
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
        is_joined = self._running is not None and (not self._running.done() or self._running.result())
        if not (is_joined and reason == self._reason):
            # A request that was sent twice is told once.
            self._context.note(reason)
        self._reason = reason
        if is_joined:
            self._deadline_unix_s = min(self._deadline_unix_s, deadline_unix_s)
        else:
            self._deadline_unix_s = deadline_unix_s
            self._running = asyncio.create_task(self._save(attempt, deadline_unix_s))
        assert self._running is not None
        return await asyncio.shield(self._running)

    def describe(self, attempt: Attempt) -> SaveRecord | None:
        """What was asked for and saved in this attempt."""
        return self._record if self._attempt is attempt else None

    def miss(self, step: int) -> None:
        """A rank heard of the announced step too late, or saved at another one: the save has to be tried again."""
        if step == self._announced_step:
            self._checkpoints.make_agreed_void("a rank was already beyond the agreed step")
            self._context.reports.tell()

    async def _save(self, attempt: Attempt, deadline_unix_s: float) -> bool:
        began_unix_s = time.time()
        if attempt.first_step_unix_s is None:
            # Its first steps may not have been reported yet.
            await self._ask_for_steps(attempt)
        if attempt.first_step_unix_s is None or attempt.cause is not None:
            return False
        self._record = SaveRecord(notice_s=deadline_unix_s - began_unix_s, step=None, save_time_s=None)
        announce_s, may_try, num_at_once = ANNOUNCE_S, True, 0
        while may_try and num_at_once < MAX_TIMES_AT_ONCE and self._may_go_on(attempt):
            await self._announce(attempt, announce_s)
            is_speed_known = attempt.step_time_s() is not None
            num_at_once += self._announced_step == SAVE_NOW and is_speed_known
            saved, may_try = await self._wait_for_commit(attempt)
            if saved is not None:
                took_s = time.time() - began_unix_s
                self._record = SaveRecord(deadline_unix_s - began_unix_s, saved.step, took_s)
                self._context.note(f"saved at step {saved.step}, {took_s:.1f} s after the notice")
                return True
            if is_speed_known:
                # Ranks that heard too late get more time, and a storage that refused is not asked every second.
                announce_s *= 2
            else:
                # "At once" was all that could be asked for; with a speed there is a step to agree on.
                await asyncio.sleep(ANNOUNCE_S)
        self._withdraw(attempt)
        return False

    async def _announce(self, attempt: Attempt, announce_s: float) -> None:
        """Agree on a step and tell it to all ranks."""
        await self._ask_for_steps(attempt)
        if not self._may_go_on(attempt):
            return
        step = choose_save_step(
            # A step that was missed is over, even where nobody answered in time.
            [attempt.last_step, self._announced_step],
            attempt.step_time_s(),
            announce_s=announce_s,
            save_time_s=self._checkpoints.save_time_s,
            time_left_s=self._deadline_unix_s - time.time(),
        )
        self._announced_step = step
        # "Now" is a different step for each rank; only if it happens to be the same one there is a checkpoint.
        self._checkpoints.require_all_nodes(attempt.lowest_step if step == SAVE_NOW else step)
        at = "at once: no agreed step can be saved in time" if step == SAVE_NOW else f"at step {step}"
        self._context.note(f"all ranks are asked to save {at}")
        members = attempt.members_by_machine(self._nodes or attempt.present_nodes())
        departure = Departure(round(self._deadline_unix_s * 1000), members)
        self._context.order(attempt, SaveAt(step, departure))

    async def _wait_for_commit(self, attempt: Attempt) -> tuple[Manifest | None, bool]:
        """The checkpoint that was asked for, None if there is none; and whether it is worth another try."""
        agreed = self._checkpoints.agreed
        last_step = self._last_asked_step(attempt)
        asked_s = time.monotonic()
        has_told = False
        while self._may_go_on(attempt) and not (agreed.is_void or agreed.has_failed):
            if agreed.saved is not None:
                return agreed.saved, False
            had_time = time.monotonic() - asked_s > PATIENCE_S and attempt.has_passed(last_step + PATIENCE_STEPS)
            if had_time and not self._checkpoints.has_pending and not has_told:
                has_told = True
                if attempt.asks_for_saves:
                    self._context.note(
                        f"since step {last_step} the script has not asked is_emergency_save(): it may yet"
                    )
                else:
                    self._context.note(
                        f"the script did not save at step {last_step}: it never asked is_emergency_save()"
                    )
                    if not self._nodes:
                        return None, False
                # Its next periodic checkpoint is the last one that this attempt can use.
            await self._context.reports.wait(_POLL_S)
            self._checkpoints.check_agreed()
        return agreed.saved, agreed.is_void or agreed.has_failed

    def _withdraw(self, attempt: Attempt) -> None:
        """Let the ranks train on as if nobody had asked."""
        if attempt.is_ending:
            return
        if time.time() >= self._deadline_unix_s:
            self._context.note("no checkpoint was saved in time")
        if self._announced_step == NO_STEP:
            return
        self._checkpoints.end_agreed(self._last_asked_step(attempt), "not all nodes saved it in time")
        self._announced_step = NO_STEP
        self._context.order(attempt, SaveAt(NO_STEP))

    def _last_asked_step(self, attempt: Attempt) -> int:
        return attempt.last_step + 1 if self._announced_step == SAVE_NOW else self._announced_step

    def _may_go_on(self, attempt: Attempt) -> bool:
        return time.time() < self._deadline_unix_s and not attempt.is_ending

    async def _ask_for_steps(self, attempt: Attempt) -> None:
        attempt.answered.clear()
        self._context.order(attempt, ReportSteps())
        timeout_s = REPORT_TIMEOUT_S + REPORT_TIME_PER_MEMBER_S * attempt.num_members
        await self._context.reports.wait_for(attempt.has_everybody_answered, timeout_s)
