"""``launch_mode: device``: one run per device, each of which is a rank."""

from __future__ import annotations

from collections.abc import Sequence

from periflow_ray.plan import JobPlan, NodeFacts, device_environment
from periflow_ray.runtime.command_jobs.launchers.launcher import Run
from periflow_ray.runtime.command_jobs.launchers.torchrun_report import read_torchrun_report
from periflow_ray.runtime.diagnosis import FailureReport


class DeviceLauncher:
    """Sets what torchrun would have set, so that ``python main.py`` is enough."""

    def runs(self, plan: JobPlan, node: NodeFacts) -> list[Run]:
        """As many as the node has devices, by local rank."""
        first_rank = node.node_rank * plan.devices_per_node
        return [
            Run(device_environment(plan, node, local_rank), rank=first_rank + local_rank)
            for local_rank in range(plan.devices_per_node)
        ]

    def read_failure(self, lines: Sequence[str]) -> FailureReport:
        """Torchrun's report, if the command calls it all the same; without one, the lines but for torch's own log."""
        return read_torchrun_report(lines)
