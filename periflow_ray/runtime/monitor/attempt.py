"""One attempt as the monitor sees it: who takes part, how far each member is, and how it ends. No I/O, no waiting.

Long because every question about an attempt is answered here, from the same few tables.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from periflow_ray.jobs.attempts import EndCause
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor.contract import (
    EndAttempt,
    GroupKey,
    MemberFacts,
    Order,
    Phase,
    Report,
    SnapshotId,
)
from periflow_ray.store.checkpoints import Manifest

SPEED_WINDOW_S = 10.0
# What nodes report is up to a second old, each in its own way: over less time that would be taken for speed.
MIN_SPEED_SPAN_S = 1.0
# A report that was sent twice comes again while a few later ones are on their way, not after hundreds.
_NUM_REMEMBERED_REPORTS = 64


@dataclass
class MemberProgress:
    """How far a member's ranks are: each one's step, the lowest and the highest."""

    steps: Mapping[int, int] = field(default_factory=dict)
    lowest_step: int = 0
    highest_step: int = 0
    is_pausing: bool = False
    last_number: int = 0
    seen_numbers: deque[int] = field(default_factory=lambda: deque(maxlen=_NUM_REMEMBERED_REPORTS))


@dataclass
class Attempt:
    """State of one attempt."""

    number: int
    key: GroupKey
    num_members: int
    devices_per_member: int = 1
    checkpoint: Manifest | None = None
    members: dict[int, MemberFacts] = field(default_factory=dict)
    restored: dict[str, set[int]] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    without_session: set[int] = field(default_factory=set)
    """Members whose code runs, and of which nobody has called ``pf.init``, long after others: nobody waits for them."""
    progress: dict[int, MemberProgress] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    """Members that answered the newest ``ReportSteps``."""
    doing: dict[int, str] = field(default_factory=dict)
    """What each member that prepares itself says that it does: ``fetches the image 'a'``."""
    failures: dict[int, Failure] = field(default_factory=dict)
    """Each failed member's failure."""
    orders: list[Order] = field(default_factory=list)
    cause: EndCause | None = None
    text: str = ""
    ended_s: float | None = None
    """When its members were ordered to leave, by the monotonic clock."""
    has_stuck_member: bool = False
    """A member did not leave, and was given up: what follows needs other workers."""
    is_prepared: bool = False
    """Its checkpoint is known and its record written: members may start."""
    is_group_broken: bool = False
    """Ray Train replaces the workers: surviving ones must not begin another attempt."""
    started_unix_s: float = field(default_factory=time.time)
    first_step_unix_s: float | None = None
    last_step_unix_s: float | None = None
    drilled_nodes: set[int] = field(default_factory=set)
    """Nodes that a drill takes away with notice."""
    last_step: int = 0
    """The highest step of any rank."""
    asks_for_saves: bool = False
    """Some rank has asked ``is_emergency_save``."""
    doubled_ranks: set[int] = field(default_factory=set)
    """Ranks that processes of several members take themselves for."""
    _members_by_rank: dict[int, int] = field(default_factory=dict)
    _members_by_node: dict[int, set[int]] = field(default_factory=dict)
    _come: dict[tuple[SnapshotId, Phase], set[int]] = field(default_factory=dict)
    _reported: dict[int, dict[int, bool]] = field(default_factory=dict)
    _passed: set[tuple[SnapshotId, Phase]] = field(default_factory=set)
    _moved_s: float = field(default_factory=time.monotonic)
    _points: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, facts: MemberFacts) -> None:
        """A member has joined."""
        self.members[facts.member] = facts
        self._members_by_node.setdefault(facts.node_rank, set()).add(facts.member)

    def resume_at(self, checkpoint: Manifest | None) -> None:
        """Its members restore this checkpoint."""
        self.checkpoint = checkpoint
        self.last_step = self.resumed_step

    @property
    def has_all_members(self) -> bool:
        """Whether everybody has joined; nobody joins what stands for the last attempt of an earlier driver."""
        return len(self.members) == self.num_members > 0

    @property
    def has_everybody_left(self) -> bool:
        """Whether no member's part goes on."""
        return len(self.left) >= self.num_members

    @property
    def is_ending(self) -> bool:
        """Whether its members were asked to leave, or have left."""
        return self.cause is not None or self.has_everybody_left

    @property
    def resumed_step(self) -> int:
        """The step it began at."""
        return self.checkpoint.step if self.checkpoint is not None else 0

    @property
    def lowest_step(self) -> int:
        """No rank is before this step; a member that has not reported yet may be where the attempt began."""
        reported = [known.lowest_step for known in self.progress.values() if known.steps]
        return self.resumed_step if len(reported) < self.num_members else min(reported)

    @property
    def num_devices(self) -> int:
        """Devices of all members."""
        return self.num_members * self.devices_per_member

    @property
    def num_nodes(self) -> int:
        """Distinct nodes of the members."""
        return len(self._members_by_node)

    def node_of(self, member: int) -> int:
        """A member's node rank."""
        return self.members[member].node_rank

    def is_present(self, node_rank: int) -> bool:
        """Whether a member on this node still takes part."""
        return bool(self._members_by_node.get(node_rank, set()) - self.left)

    def present_nodes(self) -> set[int]:
        """Ranks of the nodes that still take part."""
        return {node_rank for node_rank in self._members_by_node if self.is_present(node_rank)}

    def has_session(self, member: int) -> bool:
        """Whether a rank of this member has called ``pf.init``."""
        return member in self.progress and bool(self.progress[member].steps)

    def trains_on(self, node_rank: int) -> bool:
        """Whether a rank on this node has called ``pf.init``."""
        return any(map(self.has_session, self._members_by_node.get(node_rank, ())))

    def lacks_session(self, node_rank: int) -> bool:
        """Whether nobody on this node has called ``pf.init``, long after others: it has no part in checkpoints."""
        return self.is_present(node_rank) and self._members_by_node[node_rank] - self.left <= self.without_session

    @property
    def has_moved(self) -> bool:
        """Whether any rank has made a step, or saves."""
        return self.last_step > self.resumed_step or bool(self._come) or bool(self._passed)

    def come_to(self, member: int, snapshot: SnapshotId, phase: Phase) -> None:
        """A member has come to a phase of a save, where it waits for the others."""
        if (snapshot, phase) not in self._passed:
            self._come.setdefault((snapshot, phase), set()).add(member)

    def has_passed_phase(self, snapshot: SnapshotId, phase: Phase) -> bool:
        """Whether every member came to this phase, has left, or is beyond the save's step."""
        key = (snapshot, phase)
        if key not in self._passed:
            if self._find_missing(key):
                return False
            # Who comes later passes at once; the members themselves need not be remembered.
            self._passed.add(key)
            self._come.pop(key, None)
        return True

    def come_to_report(self, member: int, number: int, has_files: bool) -> None:
        """A member has come to its ``number``-th ``ray.train.report``, with files of a checkpoint or without."""
        self._reported.setdefault(number, {})[member] = has_files

    def has_met_at_report(self, number: int) -> bool:
        """Whether every member came to this report, or has left."""
        if self._missing_at_report(number):
            return False
        # Nobody asks for an earlier one again: then somebody would be missing at this one.
        for earlier in [known for known in self._reported if known < number]:
            del self._reported[earlier]
        return True

    def has_reported_files(self, number: int) -> bool:
        """Whether any member came to this report with files."""
        return any(self._reported.get(number, {}).values())

    def find_reports(self) -> list[tuple[int, set[int], set[int]]]:
        """Reports at which members wait: who has come, and who is missing."""
        return [
            (number, set(come), missing)
            for number, come in self._reported.items()
            if (missing := self._missing_at_report(number))
        ]

    def _missing_at_report(self, number: int) -> set[int]:
        return set(self.members) - self._reported.get(number, {}).keys() - self.left

    def find_meetings(self) -> list[tuple[SnapshotId, Phase, set[int], set[int]]]:
        """Phases of saves at which members wait: who has come, and who is missing."""
        return [
            (snapshot, phase, set(come), missing)
            for (snapshot, phase), come in self._come.items()
            if (missing := self._find_missing((snapshot, phase)))
        ]

    def take_report(self, report: Report) -> bool:
        """Take in how far a member's ranks are; False if the report has been here before."""
        known = self.progress.setdefault(report.member, MemberProgress())
        if report.number in known.seen_numbers:
            return False
        known.seen_numbers.append(report.number)
        self.asks_for_saves |= report.asks_for_saves
        if report.is_answer:
            self.answered.add(report.member)
        if report.number < known.last_number:
            # An earlier report that was held up: its metrics count, its steps are old.
            return True
        known.last_number = report.number
        known.is_pausing = report.is_pausing
        if report.steps and report.steps != known.steps:
            self._moved_s = time.monotonic()
            if report.steps.keys() != known.steps.keys():
                self._take_ranks(report.member, report.steps)
            known.steps = report.steps
            self.without_session.discard(report.member)
            known.lowest_step, known.highest_step = min(report.steps.values()), max(report.steps.values())
            if known.highest_step > self.last_step:
                self._advance(known.highest_step)
        return True

    def step_time_s(self) -> float | None:
        """Duration of one step lately; None while it is unknown."""
        if len(self._points) < 2:
            return None
        (first_s, first_step), (last_s, last_step) = self._points[0], self._points[-1]
        if last_s - first_s < MIN_SPEED_SPAN_S:
            return None
        return (last_s - first_s) / (last_step - first_step)

    @property
    def is_warm(self) -> bool:
        """Whether the first step is through, which loading data and compiling may make a long one."""
        # A step is counted when it begins.
        return self.last_step >= self.resumed_step + 2

    def standstill_s(self) -> float:
        """Seconds since any rank made a step, or called ``pf.init``, as long as one has a step to make.

        They count as well while a member's code runs, and waits for one that has not even been started. Call it
        regularly, so that a pause does not count.
        """
        has_to_move = any(
            known.steps and not known.is_pausing and member not in self.left for member, known in self.progress.items()
        )
        if not has_to_move and not self.late_starters:
            self._moved_s = time.monotonic()
        return time.monotonic() - self._moved_s

    @property
    def late_starters(self) -> set[int]:
        """Members that are not prepared yet while others' code runs."""
        present = set(self.members) - self.left
        return present - self.started if self.started & present else set()

    def may_still_save(self, node_rank: int, step: int) -> bool:
        """Whether some rank of a node is not beyond this step, as far as is known."""
        members = self._members_by_node.get(node_rank, set())
        known = [self.progress[member] for member in members if member in self.progress]
        ranks = [progress for progress in known if progress.steps]
        return not ranks or any(progress.lowest_step <= step for progress in ranks)

    def has_passed(self, step: int) -> bool:
        """Whether every rank is known to be beyond this step."""
        ranks = [known for known in self.progress.values() if known.steps]
        return bool(ranks) and all(known.lowest_step > step for known in ranks)

    def has_everybody_answered(self) -> bool:
        """Whether every member with ranks has answered the newest ``ReportSteps``."""
        asked = {member for member, known in self.progress.items() if known.steps} - self.left
        return bool(asked) and self.answered >= asked

    def members_by_machine(self, node_ranks: Collection[int]) -> dict[str, tuple[int, ...]]:
        """The members on these nodes, by Ray's id of their machine."""
        found: dict[str, tuple[int, ...]] = {}
        for member, facts in sorted(self.members.items()):
            if facts.node_rank in node_ranks:
                found[facts.ray_node_id] = (*found.get(facts.ray_node_id, ()), member)
        return found

    def ranks_on(self, ray_node_ids: Collection[str]) -> list[int]:
        """Node ranks of the members on these machines."""
        return sorted({facts.node_rank for facts in self.members.values() if facts.ray_node_id in ray_node_ids})

    def brings_files(self, member: int) -> bool:
        """Whether it is the first member on its node, which uploads for all of them."""
        return member == min(self._members_by_node[self.node_of(member)])

    def end(self, cause: EndCause, text: str) -> bool:
        """Order the members to leave; False if they were ordered to before."""
        if self.cause is not None:
            return False
        self.cause, self.text, self.ended_s = cause, text, time.monotonic()
        self.orders.append(EndAttempt(cause, text))
        return True

    def _take_ranks(self, member: int, ranks: Collection[int]) -> None:
        for rank in ranks:
            if self._members_by_rank.setdefault(rank, member) != member:
                self.doubled_ranks.add(rank)

    def _find_missing(self, key: tuple[SnapshotId, Phase]) -> set[int]:
        """Members that have not come to a phase of a save, and are not beyond it."""
        step = key[0][0]
        away = self._come.get(key, set()) | self.left | self.without_session
        return {member for member in self.members if member not in away and self._lowest_of(member) <= step}

    def _lowest_of(self, member: int) -> int:
        known = self.progress.get(member)
        return known.lowest_step if known is not None else 0

    def _advance(self, step: int) -> None:
        self.last_step = step
        now = time.time()
        self.first_step_unix_s = self.first_step_unix_s or now
        self.last_step_unix_s = now
        self._points.append((now, step))
        while now - self._points[0][0] > SPEED_WINDOW_S:
            self._points.popleft()
