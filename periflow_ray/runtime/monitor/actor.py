"""The job's one actor: members meet here, report progress, agree on checkpoints, and learn what to do next.

Its methods are what ``MonitorClient`` promises; each hands on to the component that knows. What could harm a later
attempt names the attempt that it belongs to: a machine that was cut off goes on with its attempt while the others begin
the next one, and what it said arrives when its network is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time

from periflow_ray.errors import StorageError
from periflow_ray.jobs.attempts import AttemptRecord
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.requests import Drill
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor.announced_save import AnnouncedSave
from periflow_ray.runtime.monitor.beginnings import Beginnings
from periflow_ray.runtime.monitor.checkpoints import Checkpoints
from periflow_ray.runtime.monitor.context import JobContext
from periflow_ray.runtime.monitor.contract import (
    Assignment,
    AttemptNews,
    AttemptStart,
    Ending,
    GroupKey,
    GroupLoss,
    MemberFacts,
    Next,
    Order,
    Phase,
    Report,
    RestoreVerdict,
    SnapshotId,
)
from periflow_ray.runtime.monitor.draining import Draining
from periflow_ray.runtime.monitor.drills import rehearse
from periflow_ray.runtime.monitor.growth import Growth
from periflow_ray.runtime.monitor.hangs import Hangs
from periflow_ray.runtime.monitor.membership import Membership
from periflow_ray.runtime.monitor.recorder import Recorder
from periflow_ray.runtime.monitor.repetition import Repetition
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.runtime.monitor.sinks import open_sinks
from periflow_ray.runtime.monitor.waits import Waits
from periflow_ray.store.checkpoints import Content, Manifest
from periflow_ray.store.root import StorageRoot

WATCH_INTERVAL_S = 0.5
SUCCESSION_INTERVAL_S = 5.0


class Monitor:
    """Runs as an asynchronous Ray actor."""

    def __init__(self, root: StorageRoot, job_id: int, rules: JobRules) -> None:
        self._context = JobContext(root, job_id, rules, EventWriter(root, job_id, "monitor").write)
        note = self._context.note
        self._recorder = Recorder(root, job_id, open_sinks(rules.sinks, root, job_id, note), note)
        self._checkpoints = Checkpoints(self._context, lambda: self._recorder.progress.metrics)
        self._save = AnnouncedSave(self._context, self._checkpoints)
        self._draining = Draining(self._context, self._save)
        self._hangs = Hangs(self._context)
        self._beginnings = Beginnings(self._context)
        self._waits = Waits(self._context, self._checkpoints)
        self._growth = Growth(self._context, self._checkpoints, self._save)
        self._membership = Membership(self._context, self._checkpoints, self._save, self._draining.announced_machines)
        self._repetition = Repetition(note)
        self._recorded_attempt = 0

    # Members.

    async def join(self, key: GroupKey, facts: MemberFacts) -> AttemptStart:
        self._begin_to_watch()
        return await self._membership.join(key, facts)

    async def settle_restore(self, member: int, name: str, problem: str | None) -> RestoreVerdict:
        return await self._checkpoints.settle_restore(member, name, problem)

    async def start(self, attempt: int, member: int) -> None:
        self._membership.start(attempt, member)

    async def tell_doing(self, attempt: int, member: int, text: str) -> None:
        if self._is_current(attempt):
            self._context.attempt.doing[member] = text

    async def wait_for_start(self, attempt: int) -> None:
        await self._membership.wait_for_start(attempt)

    async def report(self, report: Report) -> None:
        self._take_report(report)

    async def next_orders(self, attempt: int, num_seen: int) -> list[Order]:
        return await self._context.wait_for_orders(attempt, num_seen)

    async def miss_save(self, attempt: int, step: int) -> None:
        if self._is_current(attempt):
            self._save.miss(step)

    async def announce_snapshot(self, attempt: int, node_rank: int, snapshot: SnapshotId, report: Report) -> None:
        self._take_report(report)
        if self._is_current(attempt):
            self._checkpoints.announce(node_rank, snapshot)

    async def withdraw_snapshot(self, attempt: int, snapshot: SnapshotId, reason: str) -> None:
        if self._is_current(attempt):
            self._checkpoints.withdraw(snapshot, reason)

    async def begin_checkpoint(
        self, attempt: int, node_rank: int, snapshot: SnapshotId, content: Content
    ) -> Assignment:
        if not self._is_current(attempt):
            return Assignment("", ())
        return await self._checkpoints.begin(node_rank, snapshot, content)

    async def end_checkpoint(self, attempt: int, node_rank: int, snapshot: SnapshotId, error: str | None) -> str | None:
        if not self._is_current(attempt):
            return f"attempt {attempt} is over"
        return await self._checkpoints.finish(node_rank, snapshot, error)

    async def barrier(self, attempt: int, member: int, snapshot: SnapshotId, phase: Phase) -> None:
        current = self._context.attempt
        if attempt != current.number:
            return
        self._checkpoints.see(snapshot)
        current.come_to(member, snapshot, phase)
        self._context.reports.tell()
        await self._context.reports.wait_for(
            lambda: self._context.attempt is not current or current.has_passed_phase(snapshot, phase)
        )

    async def meet_at_report(self, attempt: int, member: int, number: int, has_files: bool) -> bool:
        current = self._context.attempt
        if attempt != current.number:
            return False
        current.come_to_report(member, number, has_files)
        self._context.reports.tell()
        await self._context.reports.wait_for(
            lambda: self._context.attempt is not current or current.has_met_at_report(number)
        )
        return current.has_reported_files(number)

    async def settle_uploads(self) -> None:
        await self._checkpoints.wait_for_uploads()

    async def has_committed(self, snapshot: SnapshotId) -> bool:
        return await self._checkpoints.has_committed(snapshot)

    async def newest_commit(self) -> Manifest | None:
        return self._checkpoints.newest_commit

    async def leave(self, attempt: int, member: int, failure: Failure | None) -> None:
        self._membership.leave(attempt, member, failure)

    async def decide(self, attempt: int) -> Next:
        return await self._membership.decide(attempt)

    async def ping(self) -> None:
        """Nothing: the answer is what counts."""

    # Ray Train's controller.

    async def may_replace_group(self, loss: GroupLoss) -> bool:
        return await self._membership.may_replace_group(loss)

    async def grow(self, num_members: int) -> None:
        await self._growth.grow(num_members)

    async def note(self, text: str) -> None:
        self._context.note(text)

    # The driver.

    async def wait_for_attempt(self, number: int) -> AttemptNews:
        return await self._membership.wait_for_attempt(number)

    async def wait_for_end(self, number: int) -> AttemptRecord | None:
        return await self._membership.wait_for_end(number)

    async def stop(self, timeout_s: float) -> bool:
        self._membership.forbid_more()
        attempt = self._context.attempt
        can_end_by_leaving = attempt.has_all_members and not attempt.has_everybody_left
        if timeout_s > 0:
            await self._save.save(attempt, "the job is stopped on request", time.time() + timeout_s)
        self._context.end(attempt, "stop", "stopped on request")
        return can_end_by_leaving

    async def drill(self, drill: Drill) -> None:
        await rehearse(drill, self._context, self._draining)

    async def describe_end(self) -> Ending:
        ending = self._membership.describe_end()
        return dataclasses.replace(ending, total_train_steps=self._recorder.progress.total_train_steps)

    async def close(self) -> None:
        await self._repetition.close()
        await self._membership.close()
        await self._checkpoints.close()
        await asyncio.to_thread(self._context.close)
        await asyncio.to_thread(self._recorder.close)

    def _take_report(self, report: Report) -> None:
        attempt = self._context.attempt
        if report.attempt != attempt.number or report.member not in attempt.members:
            return
        if not attempt.take_report(report):
            return
        self._beginnings.take(report)
        if attempt.number != self._recorded_attempt:
            self._recorder.forget_speed()
            self._recorded_attempt = attempt.number
        # Of totals that differ, rank 0's counts.
        is_known = self._recorder.progress.total_train_steps is not None and 0 not in report.steps
        total_train_steps = None if is_known else report.total_train_steps
        self._recorder.record(report.steps.get(0), total_train_steps, list(report.metrics))
        node_rank = attempt.node_of(report.member)
        self._checkpoints.see_progress(node_rank)
        for given_up in report.given_up:
            self._checkpoints.give_up(node_rank, given_up.snapshot, given_up.reason)
        self._context.reports.tell()

    def _is_current(self, attempt: int) -> bool:
        return attempt == self._context.attempt.number

    def _begin_to_watch(self) -> None:
        if not self._repetition.has_begun:
            recorder = self._recorder
            self._repetition.begin(
                lambda: asyncio.to_thread(recorder.try_flush), recorder.flush_interval_s, "writing metrics"
            )
            self._repetition.begin(self._watch, WATCH_INTERVAL_S, "looking after the members")
            # Beside it, because a storage that hangs must not keep anybody from looking.
            self._repetition.begin(self._membership.update_record, WATCH_INTERVAL_S, "recording the attempt")
            self._repetition.begin(self._require_ownership, SUCCESSION_INTERVAL_S, "looking for a newer driver")

    async def _require_ownership(self) -> None:
        # What the storage does not say now, it says the next time.
        with contextlib.suppress(OSError, StorageError):
            await asyncio.to_thread(self._context.require_ownership)

    async def _watch(self) -> None:
        attempt = self._context.attempt
        self._waits.look()
        if attempt.cause is None and attempt.has_all_members:
            await self._draining.look()
            self._hangs.look()
