"""How members, the driver and Ray Train's controller talk to the monitor.

Calls wait for the answer. A connection that breaks once leaves it open whether a call has arrived: those that are safe
to repeat are repeated until it is known, for as long as ``RETRY_TIMEOUT_S``.

Long because every call stands twice: what it promises, and how it is asked.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar, runtime_checkable

import ray

from periflow_ray.errors import PeriflowRayError
from periflow_ray.jobs.attempts import AttemptRecord
from periflow_ray.jobs.requests import Drill
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor.actor import Monitor
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
from periflow_ray.runtime.monitor.rules import JobRules
from periflow_ray.store.checkpoints import Content, Manifest
from periflow_ray.store.root import StorageRoot

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# Members that cannot reach the monitor for longer are ended by their lifeline; nobody else is so far away.
RETRY_TIMEOUT_S = 30.0
RETRY_INTERVAL_S = 0.5

_Params = ParamSpec("_Params")
_Answer = TypeVar("_Answer")


class MonitorLostError(PeriflowRayError):
    """The monitor has ended, or cannot be reached any more."""


class MonitorUnreachableError(MonitorLostError):
    """The monitor may live, but did not answer for ``RETRY_TIMEOUT_S``."""


@runtime_checkable
class MonitorClient(Protocol):
    """What may be asked of the monitor; all of it is safe to repeat, but for ``drill``.

    Raises:
        MonitorLostError: from every call, when the monitor is gone.
    """

    # Members.

    def join(self, key: GroupKey, facts: MemberFacts) -> AttemptStart:
        """Wait until every member of the attempt has joined. Collective: call on all members."""

    def settle_restore(self, member: int, name: str, problem: str | None) -> RestoreVerdict:
        """Tell how restoring a checkpoint went and wait for the others: one that any member finds damaged is not used.

        Collective: call on all members after ``join`` gave a checkpoint, until the verdict is that all agree.
        """

    def start(self, attempt: int, member: int) -> None:
        """A member is prepared and the user's code starts."""

    def tell_doing(self, attempt: int, member: int, text: str) -> None:
        """A member that prepares itself says what takes its time: ``fetches the image 'a'``."""

    def wait_for_start(self, attempt: int) -> None:
        """Wait until all members of this attempt run the user's code, or the attempt is over."""

    def report(self, report: Report) -> None:
        """Tell what a member's ranks did since its last report, and which snapshots its node has given up."""

    def next_orders(self, attempt: int, num_seen: int) -> list[Order]:
        """Orders of an attempt beyond the first ``num_seen``; waits until there is one. The last is ``EndAttempt``."""

    def miss_save(self, attempt: int, step: int) -> None:
        """A rank was already beyond the step of an announced save when it heard of it, or ranks saved at several."""

    def announce_snapshot(self, attempt: int, node_rank: int, snapshot: SnapshotId, report: Report) -> None:
        """A node takes a snapshot before its ranks train on; ``begin_checkpoint`` or ``withdraw_snapshot`` follows.

        Args:
            report: what is not reported yet, because the manifest has the metrics that are known now.
        """

    def withdraw_snapshot(self, attempt: int, snapshot: SnapshotId, reason: str) -> None:
        """A node that announced a snapshot does not upload it."""

    def begin_checkpoint(self, attempt: int, node_rank: int, snapshot: SnapshotId, content: Content) -> Assignment:
        """Describe a node's snapshot; waits until it is known which files this node has to bring."""

    def end_checkpoint(self, attempt: int, node_rank: int, snapshot: SnapshotId, error: str | None) -> str | None:
        """Tell that a node's upload is done (or failed); None once the checkpoint is committed, else why it is not."""

    def barrier(self, attempt: int, member: int, snapshot: SnapshotId, phase: Phase) -> None:
        """Wait until every member came to this phase of a save, has left, or is beyond its step."""

    def meet_at_report(self, attempt: int, member: int, number: int, has_files: bool) -> bool:
        """Wait until every member came to its ``number``-th ``ray.train.report``; whether any of them brings files.

        Collective: call on all members, with numbers from 1 on.
        """

    def settle_uploads(self) -> None:
        """Wait for checkpoints on their way, before a member leaves with a failure and the others are ended."""

    def has_committed(self, snapshot: SnapshotId) -> bool:
        """Whether this attempt has committed this snapshot; waits for a commit under way."""

    def newest_commit(self) -> Manifest | None:
        """The checkpoint that the attempt committed last."""

    def leave(self, attempt: int, member: int, failure: Failure | None) -> None:
        """A member's part has ended and its checkpoints are settled."""

    def decide(self, attempt: int) -> Next:
        """What follows an attempt, once every member has left. Collective: call on all members after ``leave``."""

    def ping(self) -> None:
        """Ask for a sign of life."""

    # Ray Train's controller.

    def may_replace_group(self, loss: GroupLoss) -> bool:
        """Whether Ray Train may start a new worker group after this one broke."""

    def grow(self, num_members: int) -> None:
        """There is room for this many members: go on with them after a save. Returns at once."""

    def note(self, text: str) -> None:
        """Add a sentence for the user to the job's events. Returns at once."""

    # The driver.

    def wait_for_attempt(self, number: int) -> AttemptNews:
        """Wait until all members of this attempt, or of a later one, have joined."""

    def wait_for_end(self, number: int) -> AttemptRecord | None:
        """How an attempt ended, once it has."""

    def stop(self, timeout_s: float) -> bool:
        """End the job, with a save at an agreed step that may take this long; 0 saves nothing.

        False if it has no members now, which could end it by leaving.
        """

    def drill(self, drill: Drill) -> None:
        """Rehearse a loss on the running attempt. Not repeated, and returns at once."""

    def describe_end(self) -> Ending:
        """How the job ended."""

    def close(self) -> None:
        """Write out everything that was received."""


class JobMonitor(MonitorClient, Protocol):
    """A monitor of one's own, which one ends."""

    def end(self) -> None:
        """End it, as it is."""


class MonitorCalls:
    """Every call of ``MonitorClient`` in terms of two: one that waits for the answer, and one that does not."""

    def _ask(
        self,
        method: Callable[Concatenate[Monitor, _Params], Awaitable[_Answer]],
        *args: _Params.args,
        **kwargs: _Params.kwargs,
    ) -> _Answer:
        raise NotImplementedError

    def _tell(
        self,
        method: Callable[Concatenate[Monitor, _Params], Awaitable[None]],
        *args: _Params.args,
        **kwargs: _Params.kwargs,
    ) -> None:
        raise NotImplementedError

    def join(self, key: GroupKey, facts: MemberFacts) -> AttemptStart:
        return self._ask(Monitor.join, key, facts)

    def settle_restore(self, member: int, name: str, problem: str | None) -> RestoreVerdict:
        return self._ask(Monitor.settle_restore, member, name, problem)

    def start(self, attempt: int, member: int) -> None:
        self._ask(Monitor.start, attempt, member)

    def tell_doing(self, attempt: int, member: int, text: str) -> None:
        self._ask(Monitor.tell_doing, attempt, member, text)

    def wait_for_start(self, attempt: int) -> None:
        self._ask(Monitor.wait_for_start, attempt)

    def report(self, report: Report) -> None:
        self._ask(Monitor.report, report)

    def next_orders(self, attempt: int, num_seen: int) -> list[Order]:
        return self._ask(Monitor.next_orders, attempt, num_seen)

    def miss_save(self, attempt: int, step: int) -> None:
        self._ask(Monitor.miss_save, attempt, step)

    def announce_snapshot(self, attempt: int, node_rank: int, snapshot: SnapshotId, report: Report) -> None:
        self._ask(Monitor.announce_snapshot, attempt, node_rank, snapshot, report)

    def withdraw_snapshot(self, attempt: int, snapshot: SnapshotId, reason: str) -> None:
        self._ask(Monitor.withdraw_snapshot, attempt, snapshot, reason)

    def begin_checkpoint(self, attempt: int, node_rank: int, snapshot: SnapshotId, content: Content) -> Assignment:
        return self._ask(Monitor.begin_checkpoint, attempt, node_rank, snapshot, content)

    def end_checkpoint(self, attempt: int, node_rank: int, snapshot: SnapshotId, error: str | None) -> str | None:
        return self._ask(Monitor.end_checkpoint, attempt, node_rank, snapshot, error)

    def barrier(self, attempt: int, member: int, snapshot: SnapshotId, phase: Phase) -> None:
        self._ask(Monitor.barrier, attempt, member, snapshot, phase)

    def meet_at_report(self, attempt: int, member: int, number: int, has_files: bool) -> bool:
        return self._ask(Monitor.meet_at_report, attempt, member, number, has_files)

    def settle_uploads(self) -> None:
        self._ask(Monitor.settle_uploads)

    def has_committed(self, snapshot: SnapshotId) -> bool:
        return self._ask(Monitor.has_committed, snapshot)

    def newest_commit(self) -> Manifest | None:
        return self._ask(Monitor.newest_commit)

    def leave(self, attempt: int, member: int, failure: Failure | None) -> None:
        self._ask(Monitor.leave, attempt, member, failure)

    def decide(self, attempt: int) -> Next:
        return self._ask(Monitor.decide, attempt)

    def ping(self) -> None:
        self._ask(Monitor.ping)

    def may_replace_group(self, loss: GroupLoss) -> bool:
        return self._ask(Monitor.may_replace_group, loss)

    def grow(self, num_members: int) -> None:
        self._tell(Monitor.grow, num_members)

    def note(self, text: str) -> None:
        self._tell(Monitor.note, text)

    def wait_for_attempt(self, number: int) -> AttemptNews:
        return self._ask(Monitor.wait_for_attempt, number)

    def wait_for_end(self, number: int) -> AttemptRecord | None:
        return self._ask(Monitor.wait_for_end, number)

    def stop(self, timeout_s: float) -> bool:
        return self._ask(Monitor.stop, timeout_s)

    def drill(self, drill: Drill) -> None:
        self._tell(Monitor.drill, drill)

    def describe_end(self) -> Ending:
        return self._ask(Monitor.describe_end)

    def close(self) -> None:
        self._ask(Monitor.close)


class RayMonitor(MonitorCalls):
    """The monitor as an actor of Ray. It pickles.

    Args:
        actor: the actor's handle.
    """

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor
        self.last_answer_s = time.monotonic()
        """When the monitor last answered a call of this process, by the monotonic clock."""

    def __reduce__(self) -> tuple[object, ...]:
        return RayMonitor, (self._actor,)

    def end(self) -> None:
        """End the actor, as it is."""
        ray.kill(self._actor)

    def _ask(
        self,
        method: Callable[Concatenate[Monitor, _Params], Awaitable[_Answer]],
        *args: _Params.args,
        **kwargs: _Params.kwargs,
    ) -> _Answer:
        deadline_s = None
        while True:
            try:
                answer: _Answer = ray.get(getattr(self._actor, method.__name__).remote(*args, **kwargs))
            except ray.exceptions.ActorUnavailableError as err:
                # The network is cut for a while, or one connection broke: the call may have arrived or not.
                now_s = time.monotonic()
                deadline_s = now_s + RETRY_TIMEOUT_S if deadline_s is None else deadline_s
                if now_s > deadline_s:
                    raise MonitorUnreachableError(f"the job's monitor cannot be reached: {err}") from err
                time.sleep(RETRY_INTERVAL_S)
            except ray.exceptions.RayTaskError:
                # The monitor's own error, as it was raised there.
                self.last_answer_s = time.monotonic()
                raise
            except ray.exceptions.RayError as err:
                raise MonitorLostError(f"the job's monitor has ended: {err}") from err
            else:
                self.last_answer_s = time.monotonic()
                return answer

    def _tell(
        self,
        method: Callable[Concatenate[Monitor, _Params], Awaitable[None]],
        *args: _Params.args,
        **kwargs: _Params.kwargs,
    ) -> None:
        getattr(self._actor, method.__name__).remote(*args, **kwargs)


def start_monitor(root: StorageRoot, job_id: int, rules: JobRules, num_members: int) -> RayMonitor:
    """Start a job's monitor beside this process: Ray would put it on any machine, and that one's loss would be its end.

    Args:
        num_members: those that may ask at once.
    """
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    # Each member may wait for several answers at once.
    actor_class = ray.remote(num_cpus=0, max_concurrency=1000 + 6 * num_members, scheduling_strategy=here)(Monitor)
    return RayMonitor(actor_class.remote(root, job_id, rules))
