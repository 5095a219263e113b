"""Who takes part in the attempt under way, how it ends, and whether another one follows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection

from periflow_ray.errors import StorageError
from periflow_ray.jobs.attempts import AttemptRecord
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor.announced_save import AnnouncedSave
from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.checkpoints import Checkpoints
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import (
    MEMORY_WAS_FULL,
    AttemptNews,
    AttemptStart,
    Ending,
    GroupKey,
    GroupLoss,
    MemberFacts,
    Next,
)
from periflow_ray.runtime.monitor.history import History

# Worker groups that break before an attempt begins with them cost no attempt, but are not tried for ever.
MAX_UNBORN_GROUPS = 5
# Members report this often, and less often where that would be more reports a second than the monitor should take: a
# call to an actor of Ray costs it about 2 ms, whatever the call does.
REPORT_INTERVAL_S = 0.5
MAX_REPORTS_PER_S = 32.0


class Membership:
    """Joining, leaving, and what follows.

    Args:
        announced_machines: Ray's ids of machines that were known to go; others add to it.
    """

    def __init__(
        self, context: JobContext, checkpoints: Checkpoints, save: AnnouncedSave, announced_machines: Collection[str]
    ) -> None:
        self._context = context
        self._checkpoints = checkpoints
        self._save = save
        self._announced_machines = announced_machines
        self._history = History(context.root, context.job_id, context.rules.max_failures, context.note)
        context.attempt = Attempt(self._history.last_number, ("", 0), 0, is_prepared=True)
        self._is_beginning = False
        self._deciding = asyncio.Lock()
        self._replacing = asyncio.Lock()
        self._decided: dict[int, Next] = {}
        self._why_over: str | None = None
        self._is_stopping = False
        self._num_unborn_groups = 0
        self._answered_loss: tuple[int, bool] = (0, False)

    # Members.

    async def join(self, key: GroupKey, facts: MemberFacts) -> AttemptStart:
        """Wait until every member of the attempt has joined."""
        while not self._is_over and not (self._context.attempt.key == key and self._context.attempt.is_prepared):
            if self._is_beginning:
                await self._context.membership.wait()
            else:
                await self._begin_attempt(key, facts.num_members)
        attempt = self._context.attempt
        if self._is_over:
            return self._send_away(attempt, facts.member)
        attempt.add(facts)
        self._context.tell_members()
        await self._context.membership.wait_for(lambda: attempt.has_all_members or self._is_over)
        if not attempt.has_all_members:
            return self._send_away(attempt, facts.member)
        first = attempt.members[0]
        # Rank 0's step and metrics are what users look at.
        interval_s = self._context.rules.report_interval_s or REPORT_INTERVAL_S
        if facts is not first:
            interval_s = max(interval_s, len(attempt.members) / MAX_REPORTS_PER_S)
        return AttemptStart(
            attempt.number,
            attempt.num_members,
            first.address,
            first.port,
            attempt.checkpoint,
            interval_s,
            claim=self._context.claim,
        )

    def start(self, number: int, member: int) -> None:
        """A member is prepared and the user's code starts."""
        if number == self._context.attempt.number:
            self._context.attempt.started.add(member)
            self._context.membership.tell()

    async def wait_for_start(self, number: int) -> None:
        """Wait until all members of this attempt run the user's code, or it is over."""
        attempt = self._context.attempt
        await self._context.membership.wait_for(
            lambda: self._context.attempt.number != number or len(attempt.started) == attempt.num_members
        )

    def leave(self, number: int, member: int, failure: Failure | None) -> None:
        """A member's part has ended and its checkpoints are settled."""
        attempt = self._context.attempt
        if number != attempt.number or member not in attempt.members:
            return
        if member in attempt.left and failure is None:
            # Said twice: what has ended the attempt since then is not how this member ended.
            return
        attempt.left.add(member)
        node_rank = attempt.node_of(member)
        if failure is not None or attempt.cause is not None:
            # It did not end by itself, so it may not have come to what the others save.
            self._checkpoints.drop_node(node_rank)
        if failure is not None:
            attempt.failures[member] = failure
            # A machine that is shut down ends the user's processes before it goes.
            if attempt.members[member].ray_node_id in self._announced_machines:
                self._context.end(attempt, "preemption", f"node {node_rank} was taken away")
            else:
                self._context.end(attempt, "failure", failure.headline(), how="failed")
        self._checkpoints.see_progress(node_rank)
        if not attempt.is_present(node_rank):
            self._checkpoints.end_node(node_rank)
        self._context.tell_members()

    async def decide(self, number: int) -> Next:
        """What follows an attempt, once every member has left."""
        attempt = self._context.attempt
        if number == attempt.number:
            await self._context.membership.wait_for(lambda: attempt.has_everybody_left)
        async with self._deciding:
            if number not in self._decided and number == attempt.number:
                self._decided[number] = await self._decide(attempt)
        # Members of an attempt that nobody decided on are not those that go on.
        return self._decided.get(number, "new_group")

    async def _decide(self, attempt: Attempt) -> Next:
        if attempt.cause is None or attempt.cause == "stop":
            await self._record_end(attempt)
            return "end"
        if not await self._may_restart(attempt):
            return "end"
        is_for_others = attempt.cause in ("preemption", "resize") or attempt.is_group_broken or attempt.has_stuck_member
        return "new_group" if is_for_others else "restart"

    # Ray Train's controller.

    async def may_replace_group(self, loss: GroupLoss) -> bool:
        """Whether Ray Train may start a new worker group after this one broke."""
        async with self._replacing:
            if loss.number != self._answered_loss[0]:
                self._answered_loss = (loss.number, await self._may_replace_group(loss))
        return self._answered_loss[1]

    async def _may_replace_group(self, loss: GroupLoss) -> bool:
        attempt = self._context.attempt
        self._num_unborn_groups += attempt.is_group_broken
        if self._num_unborn_groups > MAX_UNBORN_GROUPS:
            self._why_over = f"its workers died {self._num_unborn_groups} times in a row before all of them had come"
            return False
        if not await self._close_broken_group(attempt, loss):
            return False
        if attempt.cause == "stop" or self._is_stopping:
            await self._record_end(attempt)
            return False
        return await self._may_restart(attempt)

    async def _close_broken_group(self, attempt: Attempt, loss: GroupLoss) -> bool:
        """Name the cause, and let surviving workers finish their uploads before Ray Train ends them.

        Returns:
            Whether it was an attempt that may be followed by another one.
        """
        is_done = attempt.has_everybody_left and attempt.cause is None
        if not attempt.members or (is_done and not loss.lost_workers):
            # Another attempt would come to the same error.
            return False
        # One that left before it died did as it was told.
        lost = {member for member in loss.lost_workers if member in attempt.members} - attempt.left
        if loss.lost_workers:
            self._end_by_loss(attempt, lost, loss)
        else:
            # A worker that fails by itself has told so; one that cannot reach the monitor any more has not.
            self._context.end(attempt, "lost", "a worker lost its connection to the job")
        dead_nodes = {attempt.node_of(member) for member in lost if attempt.brings_files(member)}
        for node_rank in dead_nodes:
            self._checkpoints.drop_node(node_rank)
        await self._checkpoints.wait_for_uploads(dead_nodes)
        for node_rank in attempt.present_nodes():
            # What surviving ones still save would else be committed without its files.
            self._checkpoints.drop_node(node_rank)
        attempt.left.update(attempt.members)
        attempt.is_group_broken = True
        self._context.tell_members()
        return True

    def _end_by_loss(self, attempt: Attempt, lost: Collection[int], loss: GroupLoss) -> None:
        machines = {attempt.members[member].ray_node_id for member in lost}
        nodes = {attempt.node_of(member) for member in lost}
        facts = next(iter(attempt.members.values()))
        names = f"{facts.noun} {', '.join(str(member) for member in sorted(lost)) or '?'}"
        if loss.is_preempted or machines & set(self._announced_machines) or nodes & attempt.drilled_nodes:
            self._context.end(attempt, "preemption", f"{names} was taken away")
        elif any(loss.lost_workers[member] == MEMORY_WAS_FULL for member in lost):
            self._context.end(
                attempt, "lost", f"{names} was lost: {MEMORY_WAS_FULL}, where other programs count as well"
            )
        else:
            self._context.end(attempt, "lost", f"{names} was lost: its {facts.process} or its machine died")

    # The driver.

    async def wait_for_attempt(self, number: int) -> AttemptNews:
        """Wait until all members of this attempt, or of a later one, have joined."""
        await self._context.membership.wait_for(
            lambda: self._context.attempt.number >= number and self._context.attempt.has_all_members
        )
        attempt = self._context.attempt
        return AttemptNews(attempt.number, attempt.num_members, attempt.num_nodes)

    async def wait_for_end(self, number: int) -> AttemptRecord | None:
        """How an attempt ended, once it has."""
        await self._context.membership.wait_for(lambda: self._history.find_ended(number) is not None)
        return self._history.find_ended(number)

    def forbid_more(self) -> None:
        """The job is to stop: nobody begins another attempt."""
        self._is_stopping = True
        self._context.tell_members()

    def describe_end(self) -> Ending:
        """How the job ended."""
        attempt = self._context.attempt
        failures = sorted(attempt.failures.values(), key=lambda failure: failure.time_unix_s)
        return Ending(self._why_over, tuple(failures), attempt.text, attempt.last_step)

    async def update_record(self) -> None:
        """Record how far the attempt is."""
        with contextlib.suppress(OSError, StorageError):  # The next look tries again.
            await self._history.update(self._context.attempt)

    async def close(self) -> None:
        """Record the end of an attempt whose members were ended before they could leave."""
        if self._context.attempt.cause is not None:
            with contextlib.suppress(OSError, StorageError):
                await self._record_end(self._context.attempt)

    @property
    def _is_over(self) -> bool:
        return self._why_over is not None or self._is_stopping

    def _send_away(self, attempt: Attempt, member: int) -> AttemptStart:
        # Whoever has come must not wait for one that will not.
        attempt.left.add(member)
        self._context.tell_members()
        return AttemptStart(attempt.number, 0, is_over=True)

    async def _begin_attempt(self, key: GroupKey, num_members: int) -> None:
        before = self._context.attempt
        self._is_beginning = True
        try:
            if before.members:
                # Ray Train may have replaced the workers without asking, for example because they did not come up.
                self._context.end(before, "lost", "a worker or its machine died")
                await self._record_end(before)
            # One that could not be prepared was none.
            number = before.number + 1 if before.is_prepared else before.number
            attempt = Attempt(number, key, num_members, self._context.rules.devices_per_member)
            # From now on, whatever members of the attempt before say is refused.
            self._context.begin(attempt)
            self._num_unborn_groups = 0
            patience = self._context.patience(lambda: self._is_over)
            attempt.resume_at(await self._checkpoints.begin_attempt(patience))
            await self._history.begin(attempt)
            attempt.is_prepared = True
        finally:
            self._is_beginning = False
            self._context.tell_members()

    async def _may_restart(self, attempt: Attempt) -> bool:
        await self._record_end(attempt)
        if any(failure.is_final for failure in attempt.failures.values()):
            self._why_over = self._why_over or "another attempt would fail in the same way"
        self._why_over = self._why_over or self._history.refuse_restart()
        return self._why_over is None

    async def _record_end(self, attempt: Attempt) -> None:
        await self._history.end(attempt, self._checkpoints.newest_step, self._save.describe(attempt))
        self._context.membership.tell()
