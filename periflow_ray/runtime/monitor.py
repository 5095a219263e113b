"""The job's one actor: members meet here, report progress, agree on checkpoints, and learn what to do next."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from periflow_ray.runtime.attempt import Attempt, AttemptKey, MemberFacts, Signal
from periflow_ray.runtime.checkpoint_board import AttemptFacts, CheckpointBoard, CheckpointId, Retention
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.draining import read_draining_nodes
from periflow_ray.runtime.emergency import EmergencySave
from periflow_ray.runtime.recorder import Recorder
from periflow_ray.runtime.restart_policy import AttemptEnd, Cause, refuse_restart
from periflow_ray.store import attempts, checkpoints
from periflow_ray.store.checkpoints import LocalFile, Manifest, PlannedFile
from periflow_ray.store.events import EventWriter
from periflow_ray.store.jobs import read_progress
from periflow_ray.store.metrics import Metric
from periflow_ray.store.root import StorageRoot

WATCH_INTERVAL_S = 0.5


@dataclass(frozen=True)
class JobRules:
    """What the monitor is told of the job.

    Args:
        devices_per_member: devices of one Ray Train worker.
        max_failures: restarts after failures, beside those after preemptions; -1 for any number.
        hang_timeout_s: seconds without a step on any rank that count as a hang; None to wait for ever.
    """

    devices_per_member: int
    max_failures: int
    retention: Retention
    hang_timeout_s: float | None = None


@dataclass(frozen=True)
class Meeting:
    """What a member learns when all have joined. ``checkpoint`` is where to resume, None at the beginning.

    ``is_over``: the job has ended, and there is nothing left to do but to leave.
    """

    attempt: int
    num_members: int
    master_addr: str
    master_port: int
    checkpoint: Manifest | None
    is_over: bool = False


@dataclass(frozen=True)
class RestoreVerdict:
    """Whether all members could restore the checkpoint; if not, ``checkpoint`` is the one to try next."""

    is_agreed: bool
    checkpoint: Manifest | None


Next = Literal["end", "restart", "new_group"]
"""What follows an attempt: nothing, another one with the same workers, or one with new workers."""


class Monitor:
    """Runs as an asynchronous Ray actor; every method is one short critical section or a wait on a condition."""

    def __init__(self, root: StorageRoot, job_id: int, rules: JobRules) -> None:
        self._root = root
        self._job_id = job_id
        self._rules = rules
        self._events = EventWriter(root, job_id, "monitor")
        self._recorder = Recorder(root, job_id)
        self._changed = asyncio.Condition()
        self._board = CheckpointBoard(root, job_id, rules.retention, self._changed, self)
        self._emergency = EmergencySave(self._changed, self._board, self.write_event)
        self._unusable: set[str] = set()
        self._history = attempts.read_attempts(root, job_id)
        self._attempt = Attempt(self._history[-1].number if self._history else 0, ("", 0), 0)
        self._over: str | None = None
        self._is_stopping = False
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # Members call these.

    async def join(self, key: AttemptKey, facts: MemberFacts) -> Meeting:
        """Wait until every member of the attempt has joined."""
        self._start_tasks()
        async with self._changed:
            if self._over is not None or self._is_stopping:
                return Meeting(self._attempt.number, 0, "", 0, None, is_over=True)
            if key != self._attempt.key:
                await self._begin_attempt(key, facts.num_members)
            attempt = self._attempt
            attempt.members[facts.member] = facts
            self._changed.notify_all()
            await self._changed.wait_for(lambda: attempt.has_all_members)
            first = attempt.members[0]
            return Meeting(attempt.number, attempt.num_members, first.address, first.port, attempt.checkpoint)

    async def settle_restore(self, member: int, name: str, problem: str | None) -> RestoreVerdict:
        """Tell how restoring a checkpoint went and wait for the others: one that any member finds damaged is not used.

        Collective: call on all members after ``join`` gave a checkpoint, until the verdict is that all agree.
        """
        async with self._changed:
            attempt = self._attempt
            candidate = attempt.checkpoint
            attempt.restored.setdefault(name, set()).add(member)
            if problem is not None and name not in self._unusable:
                self._unusable.add(name)
                self.write_event("notice", f"checkpoint {name} is not used: {problem}")
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: len(attempt.restored[name] | attempt.left) >= attempt.num_members or attempt.cause is not None
            )
            if name not in self._unusable:
                return RestoreVerdict(True, candidate)
            if attempt.checkpoint is candidate:
                attempt.checkpoint = await self._find_checkpoint()
            return RestoreVerdict(False, attempt.checkpoint)

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
    ) -> None:
        """Take in what the ranks of a node did since the last call."""
        attempt = self._attempt
        attempt.take_steps(node_rank, steps)
        if answers_report:
            attempt.reported.add(node_rank)
        self._recorder.record(attempt.steps.get(0), total_train_steps, metrics)
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

    async def announce_snapshot(self, node_rank: int, checkpoint: CheckpointId) -> None:
        """A node takes a snapshot before its ranks train on; ``begin_checkpoint`` or ``withdraw_snapshot`` follows."""
        self._board.announce(node_rank, checkpoint)

    async def withdraw_snapshot(self, checkpoint: CheckpointId, reason: str) -> None:
        """A node that announced a snapshot does not upload it."""
        async with self._changed:
            self._board.withdraw(checkpoint, reason)
            self._changed.notify_all()

    async def begin_checkpoint(
        self, node_rank: int, checkpoint: CheckpointId, files: list[LocalFile]
    ) -> tuple[str, list[PlannedFile]]:
        """Describe a node's snapshot; returns the checkpoint's name and the files that this node has to bring."""
        return await self._board.begin(node_rank, checkpoint, files)

    async def end_checkpoint(self, node_rank: int, checkpoint: CheckpointId, error: str | None) -> str | None:
        """Report a node's upload as done (or failed); None once the checkpoint is committed, else why it is not."""
        return await self._board.finish(node_rank, checkpoint, error)

    async def meet(self, member: int, checkpoint: CheckpointId, phase: str) -> None:
        """Wait until every member came to this phase of a checkpoint, has left, or is beyond its step."""
        async with self._changed:
            attempt = self._attempt
            present = attempt.meetings.setdefault((checkpoint, phase), set())
            present.add(member)
            self._changed.notify_all()
            await self._changed.wait_for(
                lambda: all(
                    other in present or other in attempt.left or attempt.steps.get(other, 0) > checkpoint[0]
                    for other in attempt.members
                )
            )

    async def next_commit(self, index: int) -> Manifest | None:
        """The attempt's checkpoint number ``index`` once it is committed; None when the attempt has no more."""
        async with self._changed:
            attempt, commits = self._attempt, self._board.commits
            await self._changed.wait_for(lambda: index < len(commits) or attempt.has_everybody_left)
            return commits[index] if index < len(commits) else None

    async def leave(self, member: int, failure: Failure | None) -> None:
        """A member's part has ended and its checkpoints are settled."""
        async with self._changed:
            attempt = self._attempt
            attempt.left.add(member)
            if failure is not None:
                attempt.failures.append(failure)
                self._board.drop_node(attempt.node_of(member))
                if attempt.end("failure", failure.headline()):
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
            return "new_group" if attempt.cause == "preemption" else "restart"

    # The driver and Ray Train's controller call these.

    async def may_replace_group(self, lost_workers: Mapping[int, str], is_preempted: bool) -> bool:
        """Whether Ray Train may start a new worker group after this one broke.

        Args:
            lost_workers: members that died, with what Ray says of it; empty if all of them only raised.
            is_preempted: whether Ray knows that a machine was taken away.
        """
        async with self._changed:
            attempt = self._attempt
            if lost_workers and attempt.cause is None:
                draining = set(await read_draining_nodes())
                nodes = {attempt.members[member].ray_node_id for member in lost_workers if member in attempt.members}
                cause: Cause = "preemption" if is_preempted or nodes & draining else "lost"
                ranks = {attempt.node_of(member) for member in lost_workers if member in attempt.members}
                names = ", ".join(str(rank) for rank in sorted(ranks)) or "?"
                what = "was taken away" if cause == "preemption" else "was lost: its agent or its machine died"
                attempt.end(cause, f"node {names} {what}")
                self.write_event("attempt_failed", f"attempt {attempt.number} ended: {attempt.text}")
            attempt.left.update(attempt.members)
            self._changed.notify_all()
            if attempt.cause == "stop" or self._is_stopping:
                return False
            return await self._may_restart(attempt)

    async def wait_for_attempt(self, number: int) -> int:
        """Wait until all members of this attempt, or of a later one, have joined; returns its number."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._attempt.number >= number and self._attempt.has_all_members)
            return self._attempt.number

    async def wait_for_start(self, number: int) -> None:
        """Wait until all members of this attempt run the user's code, or the attempt is over."""
        async with self._changed:
            attempt = self._attempt
            await self._changed.wait_for(
                lambda: self._attempt.number != number or len(attempt.started) == attempt.num_members
            )

    async def stop(self, timeout_s: float) -> None:
        """End the job: with a save at an agreed step within so many seconds; 0 saves nothing."""
        async with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        attempt = self._attempt
        if timeout_s > 0:
            await self._emergency.save(attempt, "the job is stopped on request", time.time() + timeout_s)
        async with self._changed:
            attempt.end("stop", "stopped on request")
            self._changed.notify_all()

    async def drill(self, what: str, notice_s: float, node_rank: int, rank: int) -> None:
        """Rehearse a loss on the running attempt: ``notice``, ``kill_rank`` or ``kill_node``."""
        attempt = self._attempt
        if what == "notice":
            reason = f"drill: node {node_rank} is taken away in {notice_s:.0f} s"
            await self._leave_nodes(attempt, [node_rank], reason, time.time() + notice_s)
            what = "kill_node"
        async with self._changed:
            if attempt.cause is None and not attempt.has_everybody_left:
                target = rank if what == "kill_rank" else node_rank
                self.write_event("notice", f"drill: {what.replace('_', ' ')} {target}")
                attempt.signals.append(Signal("kill_rank" if what == "kill_rank" else "kill_node", target=target))
                self._changed.notify_all()

    async def why_over(self) -> str | None:
        """Why the job was given up; None if it was not."""
        return self._over

    async def attempt_failures(self) -> list[Failure]:
        """Failures of the newest attempt in time order; the first is the cause."""
        return sorted(self._attempt.failures, key=lambda failure: failure.time_unix_s)

    async def close(self) -> None:
        """Write out everything that was received."""
        self._closing.set()
        await asyncio.gather(*self._tasks)
        await self._board.close()
        self._recorder.close()

    # The board asks these.

    def facts(self) -> AttemptFacts:
        """What manifests say of the attempt."""
        attempt = self._attempt
        return AttemptFacts(attempt.number, attempt.num_members * self._rules.devices_per_member, attempt.num_nodes)

    def present_nodes(self) -> set[int]:
        """Ranks of the nodes that still take part."""
        attempt = self._attempt
        return {facts.node_rank for member, facts in attempt.members.items() if member not in attempt.left}

    def may_still_save(self, node_rank: int, step: int) -> bool:
        """Whether some rank of a node is not beyond this step, as far as is known."""
        return self._attempt.may_still_save(node_rank, step)

    def newest_metrics(self) -> Mapping[str, Any]:
        """The newest value of each metric."""
        return self._recorder.progress.metrics

    def write_event(self, kind: str, text: str) -> None:
        """Add to the job's events."""
        self._events.write(kind, text, self._attempt.number)

    def _start_tasks(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._flush()), asyncio.create_task(self._watch())]

    async def _begin_attempt(self, key: AttemptKey, num_members: int) -> None:
        before = self._attempt
        if before.number > 0 and not before.is_recorded and before.members:
            # Ray Train replaced the workers without asking, for example because they did not come up.
            if before.end("lost", "a worker or its machine died"):
                self.write_event("attempt_failed", f"attempt {before.number} ended: {before.text}")
            await self._record_end(before)
        self._attempt = Attempt(before.number + 1, key, num_members)
        self._recorder.forget_speed()
        await self._board.begin_attempt()
        self._attempt.checkpoint = await self._find_checkpoint()
        await self._record_lost_driver()
        self._history.append(self._describe_attempt(self._attempt))
        await self._write_attempt()

    async def _record_lost_driver(self) -> None:
        """An attempt that nobody ended was cut short by the death of the job's driver, and of this one's forerunner."""
        if not self._history or self._history[-1].ended_unix_s is not None:
            return
        progress = await asyncio.to_thread(read_progress, self._root, self._job_id)
        self._history[-1] = attempts.close_attempt(
            self._history[-1],
            ended_unix_s=time.time(),
            last_step=progress.step,
            resumable_step=self._attempt.resumed_step,
        )
        await self._write_attempt()

    async def _write_attempt(self) -> None:
        await asyncio.to_thread(attempts.write_attempt, self._root, self._job_id, self._history[-1])

    async def _may_restart(self, attempt: Attempt) -> bool:
        await self._record_end(attempt)
        if self._over is None:
            ends = [
                AttemptEnd(record.cause, record.last_step, record.resumable_step)
                for record in self._history
                if record.cause is not None and record.cause != "stop"
            ]
            self._over = refuse_restart(ends, self._rules.max_failures)
        return self._over is None

    async def _record_end(self, attempt: Attempt) -> None:
        if attempt.is_recorded:
            return
        attempt.is_recorded = True
        if attempt.cause == "failure" and attempt.failures:
            # The first rank that failed, not the first member that said so: later ones are usually casualties.
            attempt.text = min(attempt.failures, key=lambda failure: failure.time_unix_s).headline()
        self._history[-1] = dataclasses.replace(self._describe_attempt(attempt), ended_unix_s=time.time())
        await self._write_attempt()

    def _describe_attempt(self, attempt: Attempt) -> attempts.AttemptRecord:
        newest = self._board.newest
        return attempts.AttemptRecord(
            number=attempt.number,
            num_nodes=attempt.num_nodes,
            num_devices=attempt.num_members * self._rules.devices_per_member,
            started_unix_s=attempt.started_unix_s,
            resumed_step=attempt.resumed_step,
            last_step=attempt.last_step,
            resumable_step=newest.step if newest is not None else 0,
            first_step_unix_s=attempt.first_step_unix_s,
            last_step_unix_s=attempt.last_step_unix_s,
            ended_unix_s=None,
            cause=attempt.cause,
            text=attempt.text,
            save=self._emergency.describe(attempt),
        )

    async def _find_checkpoint(self) -> Manifest | None:
        return await asyncio.to_thread(checkpoints.latest_committed, self._root, self._job_id, self._unusable)

    async def _flush(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._recorder.flush_interval_s)
            await asyncio.to_thread(self._recorder.flush)

    async def _watch(self) -> None:
        """Look for machines that are about to go, and for ranks that stand still."""
        while not self._closing.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._closing.wait(), WATCH_INTERVAL_S)
            await self._watch_draining()
            await self._watch_hang()

    async def _watch_draining(self) -> None:
        attempt = self._attempt
        if attempt.cause is not None or not attempt.has_all_members:
            return
        draining = await read_draining_nodes()
        nodes = attempt.ranks_on(set(draining))
        if not nodes or self._emergency.is_saving_for(nodes):
            return
        deadline_unix_s = min(deadline for node, deadline in draining.items() if attempt.ranks_on({node}))
        names = ", ".join(str(node) for node in nodes)
        notice_s = max(0.0, deadline_unix_s - time.time())
        reason = f"node {names} is taken away in {notice_s:.0f} s"
        self._tasks.append(asyncio.create_task(self._leave_nodes(attempt, nodes, reason, deadline_unix_s)))

    async def _leave_nodes(self, attempt: Attempt, nodes: list[int], reason: str, deadline_unix_s: float) -> None:
        is_saved = await self._emergency.save(attempt, reason, deadline_unix_s, nodes)
        if not is_saved:
            return
        async with self._changed:
            if attempt.end("preemption", reason.replace("is taken", "was taken")):
                self.write_event("attempt_failed", f"attempt {attempt.number} ended: {attempt.text}")
            self._changed.notify_all()

    async def _watch_hang(self) -> None:
        attempt, timeout_s = self._attempt, self._rules.hang_timeout_s
        if timeout_s is None or attempt.cause is not None or attempt.last_step_unix_s is None:
            return
        silent_s = time.time() - attempt.last_step_unix_s
        if silent_s < timeout_s:
            return
        async with self._changed:
            attempt.signals.append(Signal("dump"))
            if attempt.end("hang", f"no rank made a step for {silent_s:.0f} s after step {attempt.last_step}"):
                self.write_event("attempt_failed", f"attempt {attempt.number} ended: {attempt.text}")
            self._changed.notify_all()
