"""What a launch mode decides: how often a job's command starts on a node, with what, and how its failure is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from periflow_ray.plan import JobPlan, NodeFacts
from periflow_ray.runtime.diagnosis import FailureReport


@dataclass(frozen=True)
class Run:
    """One start of the job's command on a node.

    ``environment`` has mount paths as the template has them. ``rank`` is the job's rank that this run is; None where
    it starts the ranks itself.
    """

    environment: Mapping[str, str]
    rank: int | None = None


class Launcher(Protocol):
    """The behaviour of one ``launch_mode``; has no state."""

    def runs(self, plan: JobPlan, node: NodeFacts) -> list[Run]:
        """What to start on this node, in order; the first run that fails ends the others."""
        ...

    def read_failure(self, lines: Sequence[str]) -> FailureReport:
        """What the last lines of a failed run's output say of the process that failed first."""
        ...
