"""How a job's command starts on a node: one launcher for each ``launch_mode`` that a template may name.

A further one is a file here and a row in ``LAUNCHERS``, and its name in ``spec.models.LaunchMode``.
"""

from __future__ import annotations

from collections.abc import Mapping

from periflow_ray.runtime.command_jobs.launchers.device import DeviceLauncher
from periflow_ray.runtime.command_jobs.launchers.launcher import Launcher, Run
from periflow_ray.runtime.command_jobs.launchers.node import NodeLauncher

__all__ = ["LAUNCHERS", "Launcher", "Run"]

LAUNCHERS: Mapping[str, Launcher] = {
    "node": NodeLauncher(),
    "device": DeviceLauncher(),
}
