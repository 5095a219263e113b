"""The Ray Train worker of a command job: runs the job's command on one node and serves the SDK of its ranks."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train

from periflow_ray.credentials.cloud_environment import set_cloud_environment
from periflow_ray.errors import JobFailedError, NotFoundError, StorageError
from periflow_ray.jobs.attempts import EndCause
from periflow_ray.jobs.events import EventWriter
from periflow_ray.jobs.stop_times import COMMAND_GRACE_S, END_TIMEOUT_S
from periflow_ray.plan import JobPlan, rewritten_mounts
from periflow_ray.processes import end_leftovers
from periflow_ray.runtime.command_jobs.data_mount import DatasetMount, mount_dataset
from periflow_ray.runtime.command_jobs.monitor_signals import MonitorSignals
from periflow_ray.runtime.command_jobs.node_commands import LOST_GRACE_S, NodeCommands
from periflow_ray.runtime.command_jobs.node_log import NodeLog
from periflow_ray.runtime.command_jobs.reporter import Reporter
from periflow_ray.runtime.command_jobs.session_server import SessionServer
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor.attempt import MemberFacts
from periflow_ray.runtime.monitor.meeting import Meeting, Next
from periflow_ray.runtime.ray_train.group_policy import GroupReplacedError
from periflow_ray.runtime.worker.checkpoint_restore import restore_agreed
from periflow_ray.runtime.worker.checkpoint_uploads import CheckpointUploads, report_newest
from periflow_ray.runtime.worker.lifeline import share_fate
from periflow_ray.runtime.worker.sandbox import Sandbox
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.root import StorageRoot


@dataclass(frozen=True)
class AgentTask:
    """What an agent needs; travels as the train loop's config, whose text Ray's dashboard shows."""

    plan_json: str
    job_id: int
    claim: str
    root: StorageRoot
    monitor: Any
    secrets: Mapping[str, str] = field(repr=False)
    cloud_variables: Mapping[str, str] = field(repr=False)
    # Only to be masked, in case it gets into an output after all; empty without secrets.
    secrets_key: str = field(repr=False, default="")


def run_agent(task: AgentTask) -> None:
    """Run one node's share of the job; returns when its command succeeded.

    Raises:
        JobFailedError: the command failed; the diagnosis is with the monitor too.
    """
    # Linked datasets and the user's own code use the cloud's usual chain.
    set_cloud_environment(task.cloud_variables)
    NodeAgent(task, node_rank=ray.train.get_context().get_world_rank()).run()


class NodeAgent:
    """Prepares the sandbox, runs the command, streams its output and settles its checkpoints."""

    def __init__(self, task: AgentTask, node_rank: int) -> None:
        self._plan = JobPlan.model_validate_json(task.plan_json)
        self._job_id = task.job_id
        self._claim = task.claim
        self._monitor = task.monitor
        self._secrets = dict(task.secrets)
        self._node_rank = node_rank
        self._root = task.root
        self._sandbox = Sandbox(task.root.uri, task.job_id, node_rank)
        self._events = EventWriter(self._root, task.job_id, f"node-{node_rank}")
        self._log = NodeLog(self._root, task.job_id, node_rank, (*self._secrets.values(), task.secrets_key))
        self._dataset: DatasetMount | None = None
        self._attempt = 0
        self._ended = threading.Event()

    def run(self) -> None:
        """See ``run_agent``."""
        share_fate(self._monitor)
        failure: Failure | None = None
        following: Next = "restart"
        round_in_group = 0
        while following == "restart":
            meeting = ray.get(self._join(round_in_group))
            if meeting.is_over:
                break
            failure = self._run_attempt(meeting)
            self._log.flush(is_last=True)
            ray.get(self._monitor.leave.remote(self._node_rank, failure, meeting.attempt))
            following = ray.get(self._monitor.decide.remote())
            round_in_group += 1
        if following == "new_group":
            raise GroupReplacedError("this machine is taken away; the job goes on with other workers")
        report_newest(self._root, self._monitor, self._node_rank)
        if failure is not None:
            raise JobFailedError(failure.describe())
        self._sandbox.remove()

    def _run_attempt(self, meeting: Meeting) -> Failure | None:
        self._attempt = meeting.attempt
        self._ended.clear()
        try:
            self._prepare()
            meeting = dataclasses.replace(meeting, checkpoint=self._restore(meeting.checkpoint))
            return self._run_commands(meeting)
        except (OSError, NotFoundError, StorageError) as err:
            return self._failure(str(err))
        finally:
            if self._dataset is not None:
                self._dataset.close()

    def _join(self, round_in_group: int) -> Any:
        context = ray.get_runtime_context()
        with socket.socket() as probe:
            # Free now; the user's processes bind it a moment later.
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        facts = MemberFacts(
            member=self._node_rank,
            num_members=ray.train.get_context().get_world_size(),
            node_rank=self._node_rank,
            address=ray.util.get_node_ip_address(),
            port=port,
            ray_node_id=context.get_node_id(),
        )
        return self._monitor.join.remote((context.get_placement_group_id(), round_in_group), facts)

    def _prepare(self) -> None:
        for pid in end_leftovers(self._sandbox.marker):
            self._notice(f"ended process {pid}, left over from an earlier attempt on this node")
        self._sandbox.create(self._claim)
        self._sandbox.unpack_workspace(self._root, self._job_id, self._plan.workspace_mount_path)
        for mount in self._plan.mounts:
            self._fill_mount(mount.kind, self._sandbox.path_of(mount.path))

    def _fill_mount(self, kind: str, target: Path) -> None:
        data, checkpoint_input = self._plan.data, self._plan.checkpoint_input
        if kind == "data" and data is not None:
            self._dataset = mount_dataset(self._root, data, target, on_notice=self._notice)
            return
        target.mkdir(parents=True, exist_ok=True)
        if kind == "checkpoint_input" and checkpoint_input is not None:
            manifest = checkpoints.find_checkpoint(self._root, checkpoint_input.id)
            checkpoints.restore(self._root, manifest, self._node_rank, target)

    def _restore(self, checkpoint: Manifest | None) -> Manifest | None:
        """Fill the output directory with the newest checkpoint that all nodes can restore; returns that one."""
        output_dir = self._output_dir()
        if output_dir is None:
            return None
        restored = restore_agreed(self._root, self._monitor, self._node_rank, self._node_rank, checkpoint, output_dir)
        if restored is None:
            # What an earlier attempt wrote but never saved as a checkpoint must not be taken for one.
            shutil.rmtree(output_dir, ignore_errors=True)
            output_dir.mkdir(parents=True, exist_ok=True)
        return restored

    def _run_commands(self, meeting: Meeting) -> Failure | None:
        if self._node_rank == 0:
            self._report_start(meeting)
        uploads = CheckpointUploads(
            self._root,
            self._job_id,
            self._node_rank,
            self._monitor,
            meeting.attempt,
            self._sandbox.snapshots_dir,
            self._plan.upload_bandwidth_bytes_per_s,
        )
        self._monitor.start.remote(self._node_rank)
        server = SessionServer(
            self._sandbox.socket_path,
            lambda step, replace_waiting: self._save(server, uploads, reporter, step, replace_waiting),
            self._notice,
            on_late=lambda step: self._monitor.miss_save.remote(meeting.attempt, step),
        )
        reporter = Reporter(server, self._monitor, meeting.attempt, self._node_rank, self._log.flush)
        # Of this attempt alone: the signal that ended an attempt may still be on its way when the next one runs.
        ending = threading.Event()
        try:
            commands = NodeCommands(self._plan, self._sandbox, self._log, self._secrets, self._node_rank, meeting)
            MonitorSignals(
                self._monitor,
                meeting.attempt,
                self._node_rank,
                server,
                reporter,
                self._log,
                on_end=lambda cause: _end(commands, ending, cause),
            )
            failure = commands.wait()
            # Not before: ranks that are released from their last save would make a step more.
            self._ended.set()
            upload_error = uploads.finish()
            server.finish()
            reporter.close()
        finally:
            server.close()
        if ending.is_set():
            return None
        return failure or self._check_session(server, upload_error)

    def _save(
        self, server: SessionServer, uploads: CheckpointUploads, reporter: Reporter, step: int, replace_waiting: bool
    ) -> None:
        # The manifest has the metrics that the monitor knows when the snapshot is taken.
        reporter.send_now()
        uploads.save_snapshot(self._output_dir(), step, replace_waiting)
        if server.is_last_save(step):
            # The ranks wait here for the end: steps after this one would be lost. They go on if it is not committed.
            uploads.wait_until_settled()
            if uploads.last_error is None:
                # The monitor ends the attempt; this only bounds the wait for a monitor that is gone.
                self._ended.wait(END_TIMEOUT_S)

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


def _end(commands: NodeCommands, ending: threading.Event, cause: EndCause | None) -> None:
    ending.set()
    # Whoever stops a job by hand lets its script tidy up.
    commands.stop(COMMAND_GRACE_S if cause in (None, "stop") else LOST_GRACE_S)
