"""The values that cross between the monitor and members, the driver and Ray Train's controller. No behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from periflow_ray.jobs.attempts import EndCause
from periflow_ray.jobs.metrics import Metric
from periflow_ray.jobs.requests import Drill
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.store.checkpoints import Manifest, PlannedFile

GroupKey = tuple[str, int]
"""(worker group of Ray Train, how many-th round in it): the same for all members of an attempt."""

SnapshotId = tuple[int, int]
"""(step, how many-th upload of that step): the same on every node that takes part."""

MEMORY_WAS_FULL = "Ray ended it because the memory of its machine was full"
"""How a member died that Ray's memory monitor chose."""

Phase = Literal["written", "copied", "settled"]
"""How far a member is with a save: its files are written, copied aside, or committed (or given up)."""

Next = Literal["end", "restart", "new_group"]
"""What follows an attempt: nothing, another one with the same workers, or one with new workers."""


@dataclass(frozen=True)
class MemberFacts:
    """A Ray Train worker: a node of a command job, a rank of a function job.

    Args:
        address: with ``port``, where rank 0's process group may listen.
        ray_node_id: the machine, in hex.
        noun: a member in sentences for the user.
        process: what of it dies when it is killed, in such sentences.
    """

    member: int
    num_members: int
    node_rank: int
    address: str
    port: int
    ray_node_id: str
    noun: str = "node"
    process: str = "agent"


@dataclass(frozen=True)
class AttemptStart:
    """What a member learns when all have joined.

    Args:
        checkpoint: where to resume; None at the beginning.
        report_interval_s: how often to report, so that the monitor of many members keeps up.
        is_over: the job has ended, and there is nothing left to do but to leave.
        claim: tells the job from another one that had its number.
    """

    attempt: int
    num_members: int
    master_addr: str = ""
    master_port: int = 0
    checkpoint: Manifest | None = None
    report_interval_s: float = 0.5
    is_over: bool = False
    claim: str = ""


@dataclass(frozen=True)
class RestoreVerdict:
    """Whether all members could restore the checkpoint; if not, ``checkpoint`` is the one to try next."""

    is_agreed: bool
    checkpoint: Manifest | None


@dataclass(frozen=True)
class GivenUpSnapshot:
    """A snapshot that a node announced, and of which it could tell the end by no call of its own."""

    snapshot: SnapshotId
    reason: str


@dataclass(frozen=True)
class Beginning:
    """Where a rank began to count.

    Args:
        number: counts the rank's processes in this attempt, which torchrun or a loop may have started again.
    """

    number: int
    pid: int
    resumed_step: int


@dataclass(frozen=True)
class Report:
    """What a member's ranks did since its last report.

    Args:
        number: counts the member's reports from 1, so that one that arrives twice is taken once.
        steps: each rank's current step.
        is_pausing: none of the ranks has a step to make now.
        asks_for_saves: some rank has asked ``is_emergency_save`` in this attempt.
        has_read_checkpoint: whether a file of the restored checkpoint was opened since then; None where nobody knows.
        beginnings: of ranks in the shell's own processes, as far as they have said it.
        is_answer: it was asked for by ``ReportSteps``.
        given_up: what its node has given up. A report is sent until it arrives, so the other nodes do hear of it.
    """

    attempt: int
    member: int
    number: int
    steps: Mapping[int, int]
    total_train_steps: int | None = None
    metrics: tuple[Metric, ...] = ()
    is_pausing: bool = False
    asks_for_saves: bool = False
    has_read_checkpoint: bool | None = None
    beginnings: Mapping[int, Beginning] = field(default_factory=dict)
    is_answer: bool = False
    given_up: tuple[GivenUpSnapshot, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """A checkpoint's name, empty if it was given up, and the files that a node has to bring."""

    name: str
    files: tuple[PlannedFile, ...]


@dataclass(frozen=True)
class GroupLoss:
    """A worker group of Ray Train that broke.

    Args:
        number: counts the losses that one controller tells from 1, so that one that arrives twice counts once.
        lost_workers: members that died -> how; empty if all of them only raised. ``MEMORY_WAS_FULL`` is one way.
        is_preempted: whether Ray knows that a machine was taken away.
    """

    number: int
    lost_workers: Mapping[int, str]
    is_preempted: bool = False


@dataclass(frozen=True)
class AttemptNews:
    """An attempt that all of its members have joined."""

    number: int
    num_members: int
    num_nodes: int


@dataclass(frozen=True)
class Ending:
    """How a job ended, in the monitor's words.

    Args:
        why_over: why it was given up; None if it was not.
        failures: of the last attempt, in time order; the first is the cause.
        text: why the last attempt ended; empty if it succeeded.
        last_step: the highest of any rank, of ``total_train_steps`` if a rank has said how many there are.
    """

    why_over: str | None = None
    failures: tuple[Failure, ...] = ()
    text: str = ""
    last_step: int = 0
    total_train_steps: int | None = None


# Orders: what the monitor tells members to do.


@dataclass(frozen=True)
class ReportSteps:
    """Report each rank's step at once."""


@dataclass(frozen=True)
class Departure:
    """Why a save was announced: these members' machines go at the deadline, or the monitor ends the attempt then.

    Args:
        deadline_unix_ms: Unix time in milliseconds.
        members: Ray's id of each machine in hex -> the members on it.
    """

    deadline_unix_ms: int
    members: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class SaveAt:
    """Tell the ranks the step of an announced save; ``SAVE_NOW`` is at once, ``NO_STEP`` takes it back."""

    step: int
    departure: Departure | None = None


@dataclass(frozen=True)
class DumpStacks:
    """Write each rank's stack into the log."""


@dataclass(frozen=True)
class EndAttempt:
    """End the user's code and leave; without a cause the attempt is long over."""

    cause: EndCause | None = None
    text: str = ""


@dataclass(frozen=True)
class Rehearse:
    """Carry out a drill, if this member is the one that it is about."""

    drill: Drill


Order = ReportSteps | SaveAt | DumpStacks | EndAttempt | Rehearse
