"""Who waits for whom: each wait of the members is said after half a minute, and none goes on without an owner.

The owners: a member ends its preparation and its uploads, because every request to the storage has its time limit; a
rank that stands still is the hang timeout's; a node without a session is not waited for; and a member that does not
leave an attempt that has ended is given up here.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass

from periflow_ray.runtime.monitor.attempt import Attempt
from periflow_ray.runtime.monitor.checkpoints import Checkpoints
from periflow_ray.runtime.monitor.context import JobContext

SLOW_S = 30.0
# Longer than a command's grace time, and than the upload of a large checkpoint mostly takes.
LEAVE_TIMEOUT_S = 600.0
_MAX_NAMED = 8


@dataclass(frozen=True)
class Wait:
    """Something that is waited for.

    Args:
        key: the same as long as it is the same wait.
        kind: of waits of one kind one is told in an attempt.
        text: who is missing, and for what.
    """

    key: Hashable
    kind: Hashable
    text: str


class Waits:
    """Looks at what the members wait for, without waiting itself."""

    def __init__(self, context: JobContext, checkpoints: Checkpoints) -> None:
        self._context = context
        self._checkpoints = checkpoints
        self._attempt: Attempt | None = None
        self._since_s: dict[Hashable, float] = {}
        self._told: set[Hashable] = set()

    def look(self) -> None:
        """Tell waits that have become long, and end those that would have no end."""
        attempt = self._context.attempt
        if attempt is not self._attempt:
            self._attempt, self._since_s, self._told = attempt, {}, set()
        now_s = time.monotonic()
        waits = [*self._find_waits(attempt), *self._find_waits_for_checkpoints(attempt)]
        absent = self._find_without_session(attempt)
        keys = [*(wait.key for wait in waits), *(("session", member) for member in absent)]
        self._since_s = {key: self._since_s.get(key, now_s) for key in keys}
        for wait in waits:
            if now_s - self._since_s[wait.key] >= SLOW_S and wait.kind not in self._told:
                self._told.add(wait.kind)
                self._context.note(wait.text)
        if attempt.doubled_ranks and "doubled" not in self._told:
            self._told.add("doubled")
            ranks = ", ".join(str(rank) for rank in sorted(attempt.doubled_ranks)[:_MAX_NAMED])
            self._context.note(
                f"processes on several nodes say that they are rank {ranks}: their steps and metrics are mixed. Start "
                "one process a rank with torchrun, mpirun or srun, or call init_process_group() before the first step."
            )
        self._go_on_without([member for member in absent if now_s - self._since_s["session", member] >= SLOW_S])
        if attempt.ended_s is not None and now_s - attempt.ended_s >= LEAVE_TIMEOUT_S:
            self._give_up_stuck(attempt)

    def _find_waits(self, attempt: Attempt) -> Iterator[Wait]:
        number, missing = attempt.number, set(range(attempt.num_members)) - set(attempt.members)
        if not attempt.is_prepared:
            text = f"attempt {number} waits for the storage, which has not said yet which checkpoints the job has"
            yield Wait("prepare", "prepare", text)
        elif attempt.members and missing and not attempt.is_ending:
            text = f"attempt {number} waits for {_names(attempt, missing)}: Ray has not started it yet"
            yield Wait("join", "join", text)
        staying = set(attempt.members) - attempt.left
        if attempt.cause is not None and staying:
            text = f"attempt {number} has ended, and waits for {_names(attempt, staying)} to end its command and leave"
            yield Wait("leave", "leave", text)
        elif attempt.left and staying:
            text = f"{_names(attempt, attempt.left)} has come to its end; {_names(attempt, staying)} is still running"
            yield Wait("end", "end", text)
        preparing = staying - attempt.started
        if attempt.has_all_members and preparing and attempt.cause is None:
            others = staying & attempt.started
            waiting = f"; {_names(attempt, others)} has started and may wait for it" if others else ""
            doing = ", ".join(dict.fromkeys(attempt.doing[member] for member in sorted(preparing & set(attempt.doing))))
            what = doing or "still prepares its workspace, dataset or checkpoint"
            text = f"{_names(attempt, preparing)} {what}{waiting}"
            yield Wait("start", "start", text)

    def _find_waits_for_checkpoints(self, attempt: Attempt) -> Iterator[Wait]:
        for (step, number), phase, come, missing in attempt.find_meetings():
            text = (
                f"{_names(attempt, come)} waits for {_names(attempt, missing)} in upload_checkpoint() at step {step}. "
                "Every rank must call it."
            )
            yield Wait(("meet", step, number, phase), ("meet", phase), text)
        for number, come, missing in attempt.find_reports():
            text = (
                f"{_names(attempt, come)} waits for {_names(attempt, missing)} in ray.train.report(). Every rank must "
                "call it, and as often as the others."
            )
            yield Wait(("report", number), "report", text)
        for snapshot, what, nodes in self._checkpoints.find_waits():
            names = ", ".join(str(node) for node in sorted(nodes)[:_MAX_NAMED])
            whom = f"node {names}" if nodes else "the storage"
            text = f"the checkpoint of step {snapshot[0]} waits for {whom} to {what}"
            yield Wait((snapshot, what), what, text)

    def _find_without_session(self, attempt: Attempt) -> list[int]:
        """Members whose command runs, but of which nobody has called ``pf.init`` though others train."""
        if not (attempt.has_moved or self._checkpoints.has_pending) or attempt.is_ending:
            return []
        return [
            member
            for member in sorted(attempt.started - attempt.left - attempt.without_session)
            if not attempt.has_session(member)
        ]

    def _go_on_without(self, members: Collection[int]) -> None:
        if not members:
            return
        attempt = self._context.attempt
        attempt.without_session.update(members)
        self._context.note(
            f"{_names(attempt, members)} has not called pf.init(), though others train: checkpoints do not wait for "
            "its files until it does. Call pf.init() on every rank."
        )
        for node_rank in {attempt.node_of(member) for member in members}:
            self._checkpoints.see_progress(node_rank)
        self._context.reports.tell()

    def _give_up_stuck(self, attempt: Attempt) -> None:
        staying = set(attempt.members) - attempt.left
        if not staying:
            return
        self._context.note(
            f"{_names(attempt, staying)} has not left attempt {attempt.number} within {LEAVE_TIMEOUT_S / 60:.0f} "
            "minutes of its end: it is given up, and the job goes on with new workers"
        )
        attempt.has_stuck_member = True
        for node_rank in {attempt.node_of(member) for member in staying}:
            self._checkpoints.drop_node(node_rank)
            self._checkpoints.end_node(node_rank)
        attempt.left.update(staying)
        self._context.tell_members()


def _names(attempt: Attempt, members: Collection[int]) -> str:
    noun = next((facts.noun for facts in attempt.members.values()), "node")
    named = ", ".join(str(member) for member in sorted(members)[:_MAX_NAMED])
    more = f" and {len(members) - _MAX_NAMED} more" if len(members) > _MAX_NAMED else ""
    return f"{noun} {named}{more}"
