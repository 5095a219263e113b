"""``launch_mode: node``: one run per node, which usually calls torchrun."""

from __future__ import annotations

from collections.abc import Sequence

from periflow_ray.plan import JobPlan, NodeFacts, node_environment
from periflow_ray.runtime.command_jobs.launchers.launcher import Run
from periflow_ray.runtime.command_jobs.launchers.torchrun_report import read_torchrun_report
from periflow_ray.runtime.diagnosis import FailureReport


class NodeLauncher:
    """Leaves it to the command to start the node's ranks."""

    def runs(self, plan: JobPlan, node: NodeFacts) -> list[Run]:
        """One, whatever the number of devices."""
        return [Run(node_environment(plan, node))]

    def read_failure(self, lines: Sequence[str]) -> FailureReport:
        """Torchrun's report, where there is one."""
        return read_torchrun_report(lines)
