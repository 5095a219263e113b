"""The Ray Train worker of a command job: runs the job's command on one node and serves the SDK of its ranks."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train

import periflow_ray.sdk
from periflow_ray.errors import JobFailedError, NotFoundError, StorageError
from periflow_ray.plan import JobPlan, device_environment, node_environment, rewrite_paths, rewritten_mounts
from periflow_ray.processes import Command, CommandResult, end_leftovers
from periflow_ray.runtime.checkpoint_uploads import CheckpointUploads, report_commits
from periflow_ray.runtime.diagnosis import Failure, diagnose
from periflow_ray.runtime.monitor import Meeting
from periflow_ray.runtime.reporter import Reporter
from periflow_ray.runtime.sandbox import Sandbox
from periflow_ray.runtime.session_server import SessionServer
from periflow_ray.store import checkpoints, datasets
from periflow_ray.store.events import EventWriter
from periflow_ray.store.logs import LogWriter
from periflow_ray.store.root import StorageRoot

GRACE_S = 5.0
NUM_KEPT_LINES = 400
# Each flush to an object store is a request, and rewrites the last segment.
REMOTE_FLUSH_INTERVAL_S = 3.0
# What a Ray worker's environment says of itself must not leak into the user's processes.
_DROPPED_PREFIXES = ("RAY_", "TORCHELASTIC_")
_DROPPED_NAMES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
)


@dataclass(frozen=True)
class AgentTask:
    """What an agent needs; travels as the train loop's config."""

    plan_json: str
    job_id: int
    storage_uri: str
    monitor: Any
    secrets: Mapping[str, str]


def run_agent(task: AgentTask) -> None:
    """Run one node's share of the job; returns when its command succeeded.

    Raises:
        JobFailedError: the command failed; the diagnosis is with the monitor too.
    """
    NodeAgent(task, node_rank=ray.train.get_context().get_world_rank()).run()


class NodeAgent:
    """Prepares the sandbox, runs the command, streams its output and settles its checkpoints."""

    def __init__(self, task: AgentTask, node_rank: int) -> None:
        self._plan = JobPlan.model_validate_json(task.plan_json)
        self._job_id = task.job_id
        self._monitor = task.monitor
        self._secrets = dict(task.secrets)
        self._node_rank = node_rank
        self._root = StorageRoot(task.storage_uri)
        self._sandbox = Sandbox(task.storage_uri, task.job_id, node_rank)
        self._events = EventWriter(self._root, task.job_id, f"node-{node_rank}")
        self._log = LogWriter(self._root, task.job_id, node_rank)
        self._log_lock = threading.Lock()
        self._attempt = 0
        self._is_stopping = False
        self._flushed_s = 0.0

    def run(self) -> None:
        """See ``run_agent``."""
        meeting = ray.get(self._join())
        self._attempt = meeting.attempt
        try:
            self._prepare(meeting.checkpoint)
            failure = self._run_commands(meeting)
        except (OSError, NotFoundError, StorageError) as err:
            failure = self._failure(str(err))
        self._flush_log(is_last=True)
        ray.get(self._monitor.leave.remote(self._node_rank, failure))
        if failure is not None:
            raise JobFailedError(failure.describe())
        # ray.train.report is a barrier over all workers, so every agent reports every commit, also those that it
        # had no file in, and stays until there are no more.
        report_commits(self._root, self._monitor, self._node_rank)
        self._sandbox.remove()

    def _join(self) -> Any:
        context = ray.get_runtime_context()
        with socket.socket() as probe:
            # Free now; the user's processes bind it a moment later.
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return self._monitor.join.remote(
            context.get_placement_group_id(), self._node_rank, self._node_rank, ray.util.get_node_ip_address(), port
        )

    def _prepare(self, checkpoint: checkpoints.Manifest | None) -> None:
        for pid in end_leftovers(self._sandbox.marker):
            self._notice(f"ended process {pid}, left over from an earlier attempt on this node")
        self._sandbox.create()
        self._sandbox.unpack_workspace(self._root, self._job_id, self._plan.workspace_mount_path)
        for mount in self._plan.mounts:
            self._fill_mount(mount.kind, self._sandbox.path_of(mount.path))
        output_dir = self._output_dir()
        if output_dir is not None:
            self._fill_output_dir(output_dir, checkpoint)

    def _fill_mount(self, kind: str, target: Path) -> None:
        data, checkpoint_input = self._plan.data, self._plan.checkpoint_input
        if kind == "data" and data is not None and not data.is_huggingface:
            if not target.exists():
                datasets.fetch_dataset(self._root, datasets.read_dataset(self._root, data.name), target)
            return
        target.mkdir(parents=True, exist_ok=True)
        if kind == "checkpoint_input" and checkpoint_input is not None:
            manifest = checkpoints.find_checkpoint(self._root, checkpoint_input.id)
            checkpoints.restore(self._root, manifest, self._node_rank, target)

    def _fill_output_dir(self, output_dir: Path, checkpoint: checkpoints.Manifest | None) -> None:
        if checkpoint is not None:
            checkpoints.restore(self._root, checkpoint, self._node_rank, output_dir)
            return
        # What an earlier attempt wrote but never saved as a checkpoint must not be taken for one.
        for entry in list(output_dir.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _run_commands(self, meeting: Meeting) -> Failure | None:
        if self._node_rank == 0:
            self._report_start(meeting)
        uploads = CheckpointUploads(self._root, self._job_id, self._node_rank, self._monitor, self._sandbox)
        self._monitor.start.remote(self._node_rank)
        server = SessionServer(
            self._sandbox.socket_path,
            lambda step: uploads.save_snapshot(self._output_dir(), step),
            self._notice,
        )
        reporter = Reporter(server, self._monitor, self._node_rank, self._flush_log)
        try:
            runs = self._start_runs(meeting)
            threading.Thread(target=self._stop_on_request, args=(runs,), name="stop-request", daemon=True).start()
            failure = _wait_for_all(runs)
            upload_error = uploads.finish()
            server.finish()
            reporter.close()
        finally:
            server.close()
        if self._is_stopping:
            return None
        return failure or self._check_session(server, upload_error)

    def _stop_on_request(self, runs: list[_Run]) -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # The monitor ends with the job.
            ray.get(self._monitor.wait_for_stop.remote())
            self._is_stopping = True
            for run in runs:
                run.command.stop()

    def _start_runs(self, meeting: Meeting) -> list[_Run]:
        processed_iters = meeting.checkpoint.step if meeting.checkpoint else 0

        def run_with(local_rank: int | None) -> _Run:
            common: dict[str, Any] = {
                "node_rank": self._node_rank,
                "master_addr": meeting.master_addr,
                "master_port": meeting.master_port,
                "processed_iters": processed_iters,
                "output_checkpoint_dir": self._plan.output_checkpoint_dir,
            }
            if local_rank is None:
                return _Run(self, None, node_environment(self._plan, **common))
            return _Run(self, local_rank, device_environment(self._plan, local_rank=local_rank, **common))

        if self._plan.launch_mode == "node":
            return [run_with(None)]
        return [run_with(local_rank) for local_rank in range(self._plan.devices_per_node)]

    def start_command(self, env: Mapping[str, str], on_line: Any) -> Command:
        """Start the plan's command with this environment in the sandbox."""
        working_dir = self._sandbox.path_of(self._plan.workspace_mount_path)
        return Command(
            ["bash", "-c", self._rewrite(self._plan.command)],
            env=self._build_env(env),
            working_dir=working_dir,
            grace_s=GRACE_S,
            on_line=on_line,
        )

    def write_line(self, text: str) -> str:
        """Put a line of the command's output into the log, secrets masked; returns what was written."""
        for secret in self._secrets.values():
            if secret:
                text = text.replace(secret, "***")
        with self._log_lock:
            self._log.write(text)
        return text

    def diagnose_run(self, result: CommandResult, lines: list[str], rank: int | None) -> Failure:
        """Why a command of this node failed."""
        return diagnose(
            node_rank=self._node_rank,
            exit_code=result.exit_code,
            signal_number=result.signal,
            lines=lines,
            time_unix_s=time.time(),
            peak_memory_bytes=result.peak_memory_bytes,
            node_memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            rank=rank,
        )

    def rank_of(self, local_rank: int | None) -> int | None:
        """The global rank of a device's command; None for a node's."""
        return None if local_rank is None else self._node_rank * self._plan.devices_per_node + local_rank

    def _build_env(self, env: Mapping[str, str]) -> dict[str, str]:
        built = {
            name: value
            for name, value in os.environ.items()
            if name not in _DROPPED_NAMES and not name.startswith(_DROPPED_PREFIXES)
        }
        shim_dir = Path(periflow_ray.sdk.__file__).parent / "shim"
        rewritten = {name: self._rewrite(value) for name, value in env.items()}
        python_path = [str(shim_dir), rewritten.get("PYTHONPATH", built.get("PYTHONPATH", ""))]
        program_path = [str(Path(sys.executable).parent), rewritten.get("PATH", built.get("PATH", os.defpath))]
        name, value = self._sandbox.marker
        return {
            **built,
            **rewritten,
            **self._secrets,
            name: value,
            "PERIFLOW_SESSION": str(self._sandbox.socket_path),
            "PYTHONPATH": os.pathsep.join(part for part in python_path if part),
            "PATH": os.pathsep.join(program_path),
            # Lines must reach the log when they are printed, not when a buffer is full.
            "PYTHONUNBUFFERED": rewritten.get("PYTHONUNBUFFERED", "1"),
        }

    def _rewrite(self, text: str) -> str:
        return rewrite_paths(text, self._plan.mount_paths, str(self._sandbox.root_dir))

    def _report_start(self, meeting: Meeting) -> None:
        if meeting.checkpoint is not None:
            self._notice(f"resumes from checkpoint {meeting.checkpoint.checkpoint} at step {meeting.checkpoint.step}")
        rewritten = rewritten_mounts(self._plan.command, self._plan.mount_paths)
        if rewritten:
            paths = ", ".join(f"{path} -> {self._sandbox.path_of(path)}" for path in rewritten)
            self._notice(f"mount paths in the command are rewritten (here on node 0): {paths}")

    def _output_dir(self) -> Path | None:
        declared = self._plan.output_checkpoint_dir
        return None if declared is None else self._sandbox.path_of(declared)

    def _check_session(self, server: SessionServer, upload_error: str | None) -> Failure | None:
        if upload_error is not None:
            return self._failure(f"the last checkpoint could not be saved: {upload_error}")
        if server.has_had_session:
            return None
        imported = any(self._sandbox.directory.glob("imported-*"))
        if imported or self._plan.output_checkpoint_dir is not None:
            return self._failure(
                "the command ended with exit code 0, but no process called pf.init(): nothing was tracked and no "
                "checkpoint was saved. Call pf.init(total_train_steps=...) in the script; for a command without the "
                "SDK leave 'checkpoint' out of the template"
            )
        return None

    def _failure(self, text: str) -> Failure:
        return Failure(self._node_rank, time.time(), summary=text)

    def _notice(self, text: str) -> None:
        self._events.write("notice", text, self._attempt)

    def _flush_log(self, *, is_last: bool = False) -> None:
        if not self._root.is_local and not is_last and time.monotonic() - self._flushed_s < REMOTE_FLUSH_INTERVAL_S:
            return
        self._flushed_s = time.monotonic()
        with self._log_lock:
            try:
                self._log.flush()
            except OSError as err:  # The lines stay buffered; the next flush tries again.
                print(f"log lines of node {self._node_rank} are delayed: {err}", file=sys.stderr)


class _Run:
    """One command process of the node and its last lines."""

    def __init__(self, agent: NodeAgent, local_rank: int | None, env: Mapping[str, str]) -> None:
        self._agent = agent
        self._rank = agent.rank_of(local_rank)
        self._lines: deque[str] = deque(maxlen=NUM_KEPT_LINES)
        self.command = agent.start_command(env, self._on_line)

    def wait(self) -> Failure | None:
        """Wait for the end; a failure has its diagnosis."""
        result = self.command.wait()
        return None if result.is_success else self._agent.diagnose_run(result, list(self._lines), self._rank)

    def _on_line(self, text: str) -> None:
        self._lines.append(self._agent.write_line(text))


def _wait_for_all(runs: list[_Run]) -> Failure | None:
    """Wait for every command of the node; the first that fails ends the others."""
    failures: list[Failure] = []
    lock = threading.Lock()

    def wait_for(run: _Run) -> None:
        failure = run.wait()
        if failure is None:
            return
        with lock:
            failures.append(failure)
        for other in runs:
            other.command.stop()

    threads = [threading.Thread(target=wait_for, args=(run,), name="command-wait") for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures[0] if failures else None
