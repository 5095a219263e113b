"""The processes of a command job on one node: one command, or one per device, with the environment it expects."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import periflow_ray.sdk
from periflow_ray.jobs.stop_times import COMMAND_GRACE_S
from periflow_ray.plan import JobPlan, device_environment, drop_internal_variables, node_environment, rewrite_paths
from periflow_ray.processes import Command
from periflow_ray.runtime.command_jobs.node_log import NodeLog
from periflow_ray.runtime.diagnosis import Failure, diagnose
from periflow_ray.runtime.monitor.meeting import Meeting
from periflow_ray.runtime.worker.sandbox import Sandbox
from periflow_ray.sdk import wire

# Where the attempt is lost, or saved as a whole, nothing of what a rank still does is kept; and everybody waits for it.
LOST_GRACE_S = 0.5
NUM_KEPT_LINES = 400
# What a Ray worker's environment says of itself must not leak into the user's processes.
_DROPPED_PREFIXES = ("RAY_", "TORCHELASTIC_")
_DROPPED_NAMES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
)


class NodeCommands:
    """Starts the plan's command as often as the launch mode says; ``wait`` for the end, or ``stop`` it."""

    def __init__(
        self,
        plan: JobPlan,
        sandbox: Sandbox,
        log: NodeLog,
        secrets: Mapping[str, str],
        node_rank: int,
        meeting: Meeting,
    ) -> None:
        self._plan = plan
        self._sandbox = sandbox
        self._log = log
        self._secrets = secrets
        self._node_rank = node_rank
        common: dict[str, Any] = {
            "num_nodes": meeting.num_members,
            "node_rank": node_rank,
            "master_addr": meeting.master_addr,
            "master_port": meeting.master_port,
            "attempt": meeting.attempt,
            "processed_iters": meeting.checkpoint.step if meeting.checkpoint else 0,
            "output_checkpoint_dir": plan.output_checkpoint_dir,
        }
        if plan.launch_mode == "node":
            self._runs = [self._start(node_environment(plan, **common), rank=None)]
        else:
            self._runs = [
                self._start(
                    device_environment(plan, local_rank=local_rank, **common),
                    rank=node_rank * plan.devices_per_node + local_rank,
                )
                for local_rank in range(plan.devices_per_node)
            ]

    def wait(self) -> Failure | None:
        """Wait for every command; the first that fails ends the others, and its diagnosis is returned."""
        failures: list[Failure] = []

        def wait_for(run: _Run) -> None:
            failure = run.wait(self._node_rank)
            if failure is not None:
                failures.append(failure)
                self.stop(LOST_GRACE_S)

        threads = [threading.Thread(target=wait_for, args=(run,), name="command-wait") for run in self._runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failures[0] if failures else None

    def stop(self, grace_s: float = COMMAND_GRACE_S) -> None:
        """Ask every command to end, within the grace time; ``wait`` returns then."""
        for run in self._runs:
            run.command.stop(grace_s)

    def _start(self, env: Mapping[str, str], rank: int | None) -> _Run:
        lines: deque[str] = deque(maxlen=NUM_KEPT_LINES)
        command = Command(
            ["bash", "-c", self._rewrite(self._plan.command)],
            env=self._build_env(env),
            working_dir=self._sandbox.path_of(self._plan.workspace_mount_path),
            grace_s=COMMAND_GRACE_S,
            on_line=lambda text: lines.append(self._log.write(text)),
        )
        return _Run(command, rank, lines)

    def _build_env(self, env: Mapping[str, str]) -> dict[str, str]:
        built = {
            name: value
            for name, value in drop_internal_variables(os.environ).items()
            if name not in _DROPPED_NAMES and not name.startswith(_DROPPED_PREFIXES)
        }
        shim_dir = Path(periflow_ray.sdk.__file__).parent / "shim"
        rewritten = {name: self._rewrite(value) for name, value in env.items()}
        python_path = [str(shim_dir), rewritten.get("PYTHONPATH", built.get("PYTHONPATH", ""))]
        program_path = [str(Path(sys.executable).parent), rewritten.get("PATH", built.get("PATH", os.defpath))]
        marker_name, marker_value = self._sandbox.marker
        return {
            **built,
            **rewritten,
            **self._secrets,
            marker_name: marker_value,
            "PERIFLOW_SESSION": str(self._sandbox.socket_path),
            wire.VERSION_VARIABLE: str(wire.PROTOCOL_VERSION),
            # For periflow_ray.dataset(): the root that this job is in.
            "PERIFLOW_STORAGE": self._plan.storage_uri,
            "PERIFLOW_STORAGE_CREDENTIAL": self._plan.storage_credential or "",
            "PYTHONPATH": os.pathsep.join(part for part in python_path if part),
            "PATH": os.pathsep.join(program_path),
            # Lines must reach the log when they are printed, not when a buffer is full.
            "PYTHONUNBUFFERED": rewritten.get("PYTHONUNBUFFERED", "1"),
        }

    def _rewrite(self, text: str) -> str:
        return rewrite_paths(text, self._plan.mount_paths, str(self._sandbox.root_dir))


class _Run:
    def __init__(self, command: Command, rank: int | None, lines: deque[str]) -> None:
        self.command = command
        self._rank = rank
        self._lines = lines

    def wait(self, node_rank: int) -> Failure | None:
        result = self.command.wait()
        if result.is_success:
            return None
        return diagnose(
            node_rank=node_rank,
            exit_code=result.exit_code,
            signal_number=result.signal,
            lines=list(self._lines),
            time_unix_s=time.time(),
            peak_memory_bytes=result.peak_memory_bytes,
            node_memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            rank=self._rank,
        )
