"""The job's one actor: members meet here, report progress, agree on checkpoints, and learn what to do next.

Long because Ray calls one object, and each of its calls is a method here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from periflow_ray.errors import StorageError
from periflow_ray.jobs.attempts import AttemptRecord
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor.attempt import Attempt, AttemptKey, MemberFacts, Signal
from periflow_ray.runtime.monitor.broken_group import close_broken_group
from periflow_ray.runtime.monitor.checkpoint_board import CheckpointBoard
from periflow_ray.runtime.monitor.checkpoint_calls import CheckpointCalls
from periflow_ray.runtime.monitor.emergency import EmergencySave
from periflow_ray.runtime.monitor.hazards import Hazards
from periflow_ray.runtime.monitor.history import History
from periflow_ray.runtime.monitor.meeting import JobRules, Meeting, Next
from periflow_ray.runtime.monitor.recorder import Recorder
from periflow_ray.runtime.monitor.repetition import Repetition
from periflow_ray.runtime.monitor.restore_agreement import RestoreAgreement
from periflow_ray.runtime.notifications import WandbForwarder
from periflow_ray.store.root import StorageRoot

WATCH_INTERVAL_S = 0.5
# Worker groups that break before an attempt begins with them cost no attempt, but are not tried for ever.
MAX_UNBORN_GROUPS = 5


class Monitor(CheckpointCalls):
    """Runs as an asynchronous Ray actor; every method is one short critical section or a wait on a condition."""

    def __init__(self, root: StorageRoot, job_id: int, rules: JobRules) -> None:
        self._root = root
        self._job_id = job_id
        self._rules = rules
        self._events = EventWriter(root, job_id, "monitor")
        self._event_thread = ThreadPoolExecutor(1, thread_name_prefix="events")
        self._recorder = Recorder(root, job_id)
        self._changed = asyncio.Condition()
        self._board = CheckpointBoard(root, job_id, rules.retention, self._changed, self)
        self._emergency = EmergencySave(self._changed, self._board, self.write_event)
        self._wandb = WandbForwarder(rules.wandb_run, self._notice) if rules.wandb_run is not None else None
        self._restores = RestoreAgreement(root, job_id, self._changed, self.write_event)
        self._hazards = Hazards(
            job_id, self._changed, self._board, self._emergency, self.write_event, rules.hang_timeout_s
        )
        self._history = History(root, job_id, rules.max_failures)
        self._attempt = Attempt(self._history.last_number, ("", 0), 0)
        self._over: str | None = None
        self._is_stopping = False
        self._num_unborn_groups = 0
        self._repetition = Repetition()

    # Members call these. What could harm a later attempt names the attempt that it belongs to.

    async def join(self, key: AttemptKey, facts: MemberFacts) -> Meeting:
        """Wait until every member of the attempt has joined."""
        self._begin_to_watch()
        async with self._changed:
            if self._is_over:
                return self._send_away(self._attempt, facts.member)
            if key != self._attempt.key:
                await self._begin_attempt(key, facts.num_members)
            attempt = self._attempt
            attempt.members[facts.member] = facts
            self._changed.notify_all()
            await self._changed.wait_for(lambda: attempt.has_all_members or self._is_over)
            if not attempt.has_all_members:
                return self._send_away(attempt, facts.member)
            first = attempt.members[0]
            return Meeting(attempt.number, attempt.num_members, first.address, first.port, attempt.checkpoint)

    async def start(self, member: int) -> None:
        """A member is prepared and the user's code starts."""
        async with self._changed:
            self._attempt.started.add(member)
            self._changed.notify_all()

    async def record(
        self,
        steps: dict[int, int],
        total_train_steps: int | None,
        metrics: list[Metric],
        node_rank: int,
        answers_report: bool = False,
        attempt_number: int | None = None,
        is_pausing: bool = False,
    ) -> None:
        """Take in what the ranks of a node did since the last call.

        Args:
            is_pausing: none of them has a step to make now.
        """
        if self._is_past(attempt_number):
            return
        attempt = self._attempt
        attempt.take_steps(node_rank, steps, is_pausing)
        if answers_report:
            attempt.reported.update(steps)
        self._recorder.record(attempt.steps.get(0), total_train_steps, metrics)
        if self._wandb is not None:
            self._wandb.forward(metrics)
        async with self._changed:
            self._changed.notify_all()

    async def wait_for_signals(self, attempt_number: int, num_seen: int) -> list[Signal]:
        """What members have to do, beyond the first ``num_seen`` signals; waits until there is something."""
        async with self._changed:
            attempt = self._attempt
            await self._changed.wait_for(
                lambda: self._attempt is not attempt or len(attempt.signals) > num_seen or attempt.has_everybody_left
            )
            if attempt.number != attempt_number or self._attempt is not attempt:
                return [Signal("end")]
            return attempt.signals[num_seen:] or [Signal("end")]

    async def miss_save(self, attempt_number: int, step: int) -> None:
        """A rank was already beyond the step of an announced save when it heard of it, or ranks saved at several."""
        if attempt_number == self._attempt.number:
            await self._emergency.miss(step)

    async def leave(self, member: int, failure: Failure | None, attempt_number: int | None = None) -> None:
        """A member's part has ended and its checkpoints are settled."""
        async with self._changed:
            if self._is_past(attempt_number):
                return
            attempt = self._attempt
            attempt.left.add(member)
            if failure is not None or attempt.cause is not None:
                # It did not end by itself, so it may not have come to what the others save.
                self._board.drop_node(attempt.node_of(member))
            if failure is not None:
                attempt.failures.append(failure)
                # A machine that is shut down ends the user's processes before it goes.
                if attempt.members[member].ray_node_id in self._hazards.announced_machines:
                    if attempt.end("preemption", f"node {attempt.node_of(member)} was taken away"):
                        self.write_event("attempt_failed", f"attempt {attempt.number} ended: {attempt.text}")
                elif attempt.end("failure", failure.headline()):
                    self.write_event("attempt_failed", f"attempt {attempt.number} failed: {failure.headline()}")
            self._changed.notify_all()

    async def decide(self) -> Next:
        """What follows the attempt, once every member has left. Collective: call on all members after ``leave``."""
        async with self._changed:
            attempt = self._attempt
            await self._changed.wait_for(lambda: attempt.has_everybody_left)
            if attempt.cause is None or attempt.cause == "stop":
                await self._record_end(attempt)
                return "end"
            if not await self._may_restart(attempt):
                return "end"
            is_for_others = attempt.cause in ("preemption", "resize") or attempt.is_group_broken
            return "new_group" if is_for_others else "restart"

    # The driver and Ray Train's controller call these.

    async def may_replace_group(self, lost_workers: Mapping[int, str], is_preempted: bool) -> bool:
        """Whether Ray Train may start a new worker group after this one broke; see ``close_broken_group``."""
        async with self._changed:
            attempt = self._attempt
            self._num_unborn_groups += attempt.is_group_broken
            if self._num_unborn_groups > MAX_UNBORN_GROUPS:
                self._over = f"its workers died {self._num_unborn_groups} times in a row before all of them had come"
                return False
            if not await close_broken_group(
                attempt,
                lost_workers,
                is_preempted,
                self._rules.member_noun,
                self._hazards.announced_machines,
                self._board,
                self.write_event,
            ):
                return False
            self._changed.notify_all()
            if attempt.cause == "stop" or self._is_stopping:
                await self._record_end(attempt)
                return False
            return await self._may_restart(attempt)

    async def wait_for_attempt(self, number: int) -> tuple[int, int]:
        """Wait until all members of this attempt, or of a later one, have joined; returns its number and theirs."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._attempt.number >= number and self._attempt.has_all_members)
            return self._attempt.number, self._attempt.num_members

    async def wait_for_end(self, number: int) -> AttemptRecord | None:
        """How an attempt ended, once it has."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._history.find_ended(number) is not None)
            return self._history.find_ended(number)

    async def wait_for_start(self, number: int) -> None:
        """Wait until all members of this attempt run the user's code, or the attempt is over."""
        async with self._changed:
            attempt = self._attempt
            await self._changed.wait_for(
                lambda: self._attempt.number != number or len(attempt.started) == attempt.num_members
            )

    async def stop(self, timeout_s: float) -> bool:
        """End the job: with a save at an agreed step within so many seconds; 0 saves nothing.

        False if it has no members now, which could end it by leaving.
        """
        async with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        attempt = self._attempt
        can_end_by_leaving = attempt.has_all_members and not attempt.has_everybody_left
        if timeout_s > 0:
            await self._emergency.save(attempt, "the job is stopped on request", time.time() + timeout_s)
        async with self._changed:
            attempt.end("stop", "stopped on request")
            self._changed.notify_all()
        return can_end_by_leaving

    async def drill(self, what: str, notice_s: float, node_rank: int, rank: int) -> None:
        """Rehearse a loss on the running attempt: ``notice``, ``kill_rank`` or ``kill_node``."""
        await self._hazards.drill(self._attempt, what, notice_s, node_rank, rank)

    async def grow(self, num_members: int) -> None:
        """There is room for so many members: go on with them after a save."""
        await self._hazards.grow(self._attempt, num_members)

    async def why_over(self) -> str | None:
        """Why the job was given up; None if it was not."""
        return self._over

    async def attempt_text(self) -> str:
        """Why the newest attempt ended."""
        return self._attempt.text

    async def attempt_failures(self) -> list[Failure]:
        """Failures of the newest attempt in time order; the first is the cause."""
        return sorted(self._attempt.failures, key=lambda failure: failure.time_unix_s)

    async def close(self) -> None:
        """Write out everything that was received."""
        await self._repetition.close()
        if self._attempt.cause is not None:
            # Of one whose members were ended before they could leave.
            async with self._changed:
                with contextlib.suppress(OSError, StorageError):
                    await self._record_end(self._attempt)
        await self._board.close()
        await asyncio.to_thread(self._event_thread.shutdown)
        self._recorder.close()
        if self._wandb is not None:
            await asyncio.to_thread(self._wandb.close)

    # The board asks these.

    def current_attempt(self) -> Attempt:
        """The attempt under way."""
        return self._attempt

    def newest_metrics(self) -> Mapping[str, Any]:
        """The newest value of each metric."""
        return self._recorder.progress.metrics

    def write_event(self, kind: str, text: str) -> None:
        """Add to the job's events."""
        # Elsewhere, because a storage that hangs must not hold up the members.
        self._event_thread.submit(self._events.write, kind, text, self._attempt.number)

    @property
    def _is_over(self) -> bool:
        return self._over is not None or self._is_stopping

    def _send_away(self, attempt: Attempt, member: int) -> Meeting:
        # Whoever has come must not wait for one that will not.
        attempt.left.add(member)
        self._changed.notify_all()
        return Meeting(attempt.number, 0, "", 0, None, is_over=True)

    def _notice(self, text: str) -> None:
        self.write_event("notice", text)

    def _begin_to_watch(self) -> None:
        if not self._repetition.has_begun:
            self._repetition.begin(lambda: asyncio.to_thread(self._recorder.try_flush), self._recorder.flush_interval_s)
            self._repetition.begin(self._watch, WATCH_INTERVAL_S)

    async def _begin_attempt(self, key: AttemptKey, num_members: int) -> None:
        before = self._attempt
        if before.members:
            # Ray Train may have replaced the workers without asking, for example because they did not come up.
            if before.end("lost", "a worker or its machine died"):
                self.write_event("attempt_failed", f"attempt {before.number} ended: {before.text}")
            await self._record_end(before)
        self._attempt = Attempt(before.number + 1, key, num_members, self._rules.devices_per_member)
        self._num_unborn_groups = 0
        self._recorder.forget_speed()
        await self._board.begin_attempt()
        self._attempt.checkpoint = await self._restores.find_checkpoint()
        await self._history.begin(self._attempt)

    async def _may_restart(self, attempt: Attempt) -> bool:
        await self._record_end(attempt)
        self._over = self._over or self._history.refuse_restart()
        return self._over is None

    async def _record_end(self, attempt: Attempt) -> None:
        newest = self._board.newest
        resumable_step = newest.step if newest is not None else 0
        await self._history.end(attempt, resumable_step, self._emergency.describe(attempt))
        self._changed.notify_all()

    async def _watch(self) -> None:
        await self._hazards.look(self._attempt)
        with contextlib.suppress(OSError, StorageError):  # The next look tries again.
            await self._history.update(self._attempt)
