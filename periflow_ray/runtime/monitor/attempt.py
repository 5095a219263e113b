"""One attempt as the monitor sees it: who takes part, how far each rank is, and how it ends. No I/O, no waiting."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor.restart_policy import Cause
from periflow_ray.store.checkpoints import Manifest

AttemptKey = tuple[str, int]
"""(worker group of Ray Train, how many-th round in it): the same for all members of an attempt."""

SPEED_WINDOW_S = 10.0
# What nodes report is up to a second old, each in its own way: over less time that would be taken for speed.
MIN_SPEED_SPAN_S = 1.0


@dataclass(frozen=True)
class MemberFacts:
    """A Ray Train worker: a node's agent in a command job, a rank in a function job.

    ``address`` and ``port`` are where rank 0's process group may listen; ``ray_node_id`` is the machine, in hex.
    """

    member: int
    num_members: int
    node_rank: int
    address: str
    port: int
    ray_node_id: str


@dataclass(frozen=True)
class Signal:
    """What the monitor asks of every member.

    ``report``: send each rank's step at once. ``save``: tell the ranks the step of an emergency save (-1 is now, -2
    that there is none after all). ``dump``: write each rank's stack into the log. ``end``: end the user's processes and
    leave; ``cause`` and ``text`` say why, where the attempt is not long over. ``kill_rank`` and ``kill_node`` rehearse
    a crash: whoever has the rank or is the node ``target`` kills it.
    """

    kind: Literal["report", "save", "dump", "end", "kill_rank", "kill_node"]
    step: int = 0
    target: int = 0
    cause: Cause | Literal["stop"] | None = None
    text: str = ""


@dataclass
class Attempt:
    """State of one attempt."""

    number: int
    key: AttemptKey
    num_members: int
    devices_per_member: int = 1
    checkpoint: Manifest | None = None
    members: dict[int, MemberFacts] = field(default_factory=dict)
    restored: dict[str, set[int]] = field(default_factory=dict)
    meetings: dict[tuple[tuple[int, int], str], set[int]] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    reported: set[int] = field(default_factory=set)  # Ranks that answered the newest ``report``.
    steps: dict[int, int] = field(default_factory=dict)
    ranks_by_node: dict[int, set[int]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    cause: Cause | Literal["stop"] | None = None
    text: str = ""
    is_group_broken: bool = False
    """Ray Train replaces the workers: those that live must not begin another attempt."""
    started_unix_s: float = field(default_factory=time.time)
    first_step_unix_s: float | None = None
    last_step_unix_s: float | None = None
    pausing_nodes: set[int] = field(default_factory=set)
    drilled_nodes: set[int] = field(default_factory=set)
    """Nodes that a drill takes away with notice."""
    _moved_s: float = field(default_factory=time.monotonic)
    _points: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def has_all_members(self) -> bool:
        """Whether everybody has joined."""
        return len(self.members) == self.num_members

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
    def last_step(self) -> int:
        """The highest step of any rank."""
        return max(self.steps.values(), default=self.resumed_step)

    @property
    def num_devices(self) -> int:
        """Devices of all members."""
        return self.num_members * self.devices_per_member

    @property
    def num_nodes(self) -> int:
        """Distinct nodes of the members."""
        return len({facts.node_rank for facts in self.members.values()})

    def node_of(self, member: int) -> int:
        """A member's node rank."""
        return self.members[member].node_rank

    def present_nodes(self) -> set[int]:
        """Ranks of the nodes that still take part."""
        return {facts.node_rank for member, facts in self.members.items() if member not in self.left}

    def has_met(self, checkpoint: tuple[int, int], phase: str) -> bool:
        """Whether every member came to this phase of a checkpoint, has left, or is beyond its step."""
        come = self.meetings.get((checkpoint, phase), set()) | self.left
        return all(member in come or self.steps.get(member, 0) > checkpoint[0] for member in self.members)

    def take_steps(self, node_rank: int, steps: dict[int, int], is_pausing: bool = False) -> None:
        """What the ranks of a node have reported; ``is_pausing`` if none of them has a step to make now."""
        before = self.last_step
        if any(step != self.steps.get(rank) for rank, step in steps.items()):
            self._moved_s = time.monotonic()
        (self.pausing_nodes.add if is_pausing else self.pausing_nodes.discard)(node_rank)
        self.steps.update(steps)
        if steps:
            self.ranks_by_node.setdefault(node_rank, set()).update(steps)
        if self.last_step > before:
            now = time.time()
            self.first_step_unix_s = self.first_step_unix_s or now
            self.last_step_unix_s = now
            self._points.append((now, self.last_step))
            while now - self._points[0][0] > SPEED_WINDOW_S:
                self._points.popleft()

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

        Call it regularly, so that a pause does not count.
        """
        has_to_move = self.ranks_by_node.keys() - self.pausing_nodes - {self.node_of(member) for member in self.left}
        if not has_to_move:
            self._moved_s = time.monotonic()
        return time.monotonic() - self._moved_s

    def may_still_save(self, node_rank: int, step: int) -> bool:
        """Whether some rank of a node is not beyond this step, as far as is known."""
        ranks = self.ranks_by_node.get(node_rank, set())
        return not ranks or any(self.steps[rank] <= step for rank in ranks)

    def has_passed(self, step: int) -> bool:
        """Whether every rank is known to be beyond this step."""
        return bool(self.steps) and min(self.steps.values()) > step

    def ranks_on(self, ray_node_ids: set[str]) -> list[int]:
        """Node ranks of the members on these machines."""
        return sorted({facts.node_rank for facts in self.members.values() if facts.ray_node_id in ray_node_ids})

    def end(self, cause: Cause | Literal["stop"], text: str) -> bool:
        """Ask the members to leave; False if they were asked before."""
        if self.cause is not None:
            return False
        self.cause, self.text = cause, text
        self.signals.append(Signal("end", cause=cause, text=text))
        return True
