"""The Ray Train worker of a function job: the user's function runs here, with its SDK session in-process."""

from __future__ import annotations

import inspect
import os
import shutil
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any

import ray
import ray.train

from periflow_ray.errors import PeriFlowError
from periflow_ray.runtime.agreed_save import CheckpointId
from periflow_ray.runtime.attempt import MemberFacts, Signal
from periflow_ray.runtime.checkpoint_restore import restore_agreed
from periflow_ray.runtime.checkpoint_uploads import MAX_IN_FLIGHT, SnapshotUploader, as_ray_checkpoint
from periflow_ray.runtime.diagnosis import NUM_SHOWN_LINES, Failure
from periflow_ray.runtime.group_policy import GroupReplacedError
from periflow_ray.runtime.lifeline import share_fate
from periflow_ray.runtime.monitor_signals import RETRY_INTERVAL_S
from periflow_ray.runtime.output_tee import copy_output
from periflow_ray.runtime.sandbox import Sandbox
from periflow_ray.runtime.snapshot import Snapshot, Snapshots
from periflow_ray.sdk.channel import Hello, MetricRecord
from periflow_ray.sdk.session import NO_STEP, use_channel_factory
from periflow_ray.store.logs import LogWriter
from periflow_ray.store.metrics import Metric
from periflow_ray.store.root import StorageRoot

OUTPUT_MOUNT_PATH = "/ckpt"
# The monitor ends the attempt right after the commit of the announced save.
END_SIGNAL_TIMEOUT_S = 5.0


class MachineLeavesError(BaseException):
    """Unwinds the user's function after the announced save; no Exception, so that no handler there takes it."""


@dataclass(frozen=True)
class FunctionTask:
    """What a worker of a function job needs; travels in the train loop's config."""

    train_loop: Callable[..., Any]
    config: dict[str, Any] | None
    job_id: int
    root: StorageRoot
    storage_credential: str | None
    monitor: Any


def run_function(task: FunctionTask) -> Any:
    """Run the user's function as one rank, restored to the latest committed checkpoint; returns what it returns.

    Its output goes to the job's log as that of node <rank>, because each rank is a machine's worth of its own here.
    """
    rank = ray.train.get_context().get_world_rank()
    flow = FunctionRank(task, rank)
    flow.prepare()
    use_channel_factory(lambda local_log_name: flow.channel())
    try:
        with copy_output(LogWriter(task.root, task.job_id, rank)):
            result = _call_and_trace(task.train_loop, task.config)
        use_channel_factory(None)
        flow.finish_uploads()
    except MachineLeavesError:
        use_channel_factory(None)
        ray.get(task.monitor.leave.remote(rank, None, flow.attempt))
        raise GroupReplacedError("this machine is taken away; the job goes on with other workers") from None
    except BaseException as err:
        use_channel_factory(None)
        ray.get(task.monitor.leave.remote(rank, _describe_exception(err, flow.node_rank, rank), flow.attempt))
        raise
    ray.get(task.monitor.leave.remote(rank, None, flow.attempt))
    return result


class FunctionRank:
    """One rank's part in the job: its directories, its checkpoints, its channel."""

    def __init__(self, task: FunctionTask, rank: int) -> None:
        context = ray.train.get_context()
        self.rank = rank
        self.local_rank = context.get_local_rank()
        self.node_rank = context.get_node_rank()
        self.monitor = task.monitor
        self._job_id = task.job_id
        self._root = task.root
        self._storage_credential = task.storage_credential
        # The same path on every node: rank 0 tells the others where to write, as Lightning does.
        self._sandbox = Sandbox(task.root.uri, task.job_id, 0)
        self._output_dir = self._sandbox.path_of(OUTPUT_MOUNT_PATH)
        self._snapshots = Snapshots(self._sandbox.snapshots_dir)
        self._uploader = SnapshotUploader(
            task.root, task.job_id, self.node_rank, task.monitor, self._snapshots, upload_bandwidth=None
        )
        self._num_saves_by_step: Counter[int] = Counter()
        self._uploads_done = threading.Condition()
        self._num_uploading = 0
        self.attempt = 0
        self._announced_step: int | None = None
        self._ended = threading.Event()

    def prepare(self) -> None:
        """Join the attempt; the first rank of each node makes its directories and restores the checkpoint."""
        share_fate(self.monitor)
        context = ray.get_runtime_context()
        facts = MemberFacts(
            member=self.rank,
            num_members=ray.train.get_context().get_world_size(),
            node_rank=self.node_rank,
            address=ray.util.get_node_ip_address(),
            port=0,
            ray_node_id=context.get_node_id(),
        )
        meeting = ray.get(self.monitor.join.remote((context.get_placement_group_id(), 0), facts))
        self.attempt = meeting.attempt
        target = None
        if self.local_rank == 0:
            target = self._output_dir
            self._sandbox.create()
            shutil.rmtree(target, ignore_errors=True)
        restored = restore_agreed(self._root, self.monitor, self.rank, self.node_rank, meeting.checkpoint, target)
        if self.local_rank == 0:
            self._output_dir.mkdir(parents=True, exist_ok=True)
        ray.get(self.monitor.start.remote(self.rank))
        ray.get(self.monitor.wait_for_start.remote(meeting.attempt))
        os.environ["PERIFLOW_ENABLED"] = "1"
        os.environ["PERIFLOW_STORAGE"] = self._root.uri
        os.environ["PERIFLOW_STORAGE_CREDENTIAL"] = self._storage_credential or ""
        os.environ["CKPT_DIR"] = str(self._output_dir)
        os.environ["PROCESSED_ITERS"] = str(restored.step if restored else 0)

    def channel(self) -> _FunctionChannel:
        """A channel for a new session of this rank."""
        return _FunctionChannel(self)

    def save_checkpoint(self, step: int) -> None:
        """Meet all ranks, copy the output directory aside on each node, and report it with an asynchronous upload."""
        self._num_saves_by_step[step] += 1
        checkpoint = (step, self._num_saves_by_step[step])
        ray.get(self.monitor.meet.remote(self.rank, checkpoint, "written"))
        snapshot = self._take_snapshot(checkpoint) if self.local_rank == 0 else None
        ray.get(self.monitor.meet.remote(self.rank, checkpoint, "copied"))
        ray.train.report(
            {"step": step},
            checkpoint=None if snapshot is None else ray.train.Checkpoint.from_directory(str(snapshot.directory)),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=None if snapshot is None else lambda *_: self._upload(checkpoint, snapshot),
        )

        if self._announced_step is not None and step >= self._announced_step:
            self._wait_for_end(checkpoint)

    def follow_signals(self, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        """Carry out what the monitor asks of this rank, from a background thread."""

        def carry_out(signal: Signal) -> None:
            if signal.kind == "report":
                self.monitor.record.remote({self.rank: read_step()}, None, [], self.node_rank, True, self.attempt)
            elif signal.kind == "save":
                self._announced_step = None if signal.step == NO_STEP else signal.step
                if not on_announced_step(signal.step):
                    self.monitor.miss_save.remote(self.attempt, signal.step)
            elif signal.kind == "end":
                self._ended.set()
            elif (signal.kind, signal.target) in (("kill_rank", self.rank), ("kill_node", self.node_rank)):
                os.kill(os.getpid(), SIGKILL)

        def follow() -> None:
            num_seen = 0
            while not self._ended.is_set():
                try:
                    signals = ray.get(self.monitor.wait_for_signals.remote(self.attempt, num_seen))
                except ray.exceptions.ActorUnavailableError:
                    # The network is cut for a while; if it stays so, the lifeline ends this process.
                    time.sleep(RETRY_INTERVAL_S)
                    continue
                except ray.exceptions.RayError:  # The monitor ends with the job.
                    return
                num_seen += len(signals)
                for signal in signals:
                    carry_out(signal)

        threading.Thread(target=follow, name="monitor-signals", daemon=True).start()

    def _wait_for_end(self, checkpoint: CheckpointId) -> None:
        """Steps after the announced save would be lost: wait for the attempt's end, unless nothing was committed."""
        self.finish_uploads()
        ray.get(self.monitor.meet.remote(self.rank, checkpoint, "settled"))
        if self._ended.wait(END_SIGNAL_TIMEOUT_S):
            raise MachineLeavesError

    def finish_uploads(self) -> None:
        """Wait until this rank's uploads are settled."""
        with self._uploads_done:
            self._uploads_done.wait_for(lambda: self._num_uploading == 0)

    def _take_snapshot(self, checkpoint: CheckpointId) -> Snapshot:
        with self._uploads_done:
            self._uploads_done.wait_for(lambda: self._num_uploading < MAX_IN_FLIGHT)
        announced = self.monitor.announce_snapshot.remote(self.node_rank, checkpoint, self.attempt)
        try:
            snapshot = self._snapshots.take(self._output_dir, f"{checkpoint[0]}-{checkpoint[1]}")
        except OSError as err:
            self.monitor.withdraw_snapshot.remote(checkpoint, f"node {self.node_rank}: {err}", self.attempt)
            raise
        ray.get(announced)
        with self._uploads_done:
            self._num_uploading += 1
        return snapshot

    def _upload(self, checkpoint: CheckpointId, snapshot: Snapshot) -> ray.train.Checkpoint:
        try:
            error, name = self._uploader.upload(self.attempt, checkpoint, snapshot)
            if error is not None:
                raise PeriFlowError(f"the checkpoint of step {checkpoint[0]} was not saved: {error}")
            return as_ray_checkpoint(self._root, self._job_id, name)
        finally:
            self._snapshots.release(snapshot)
            with self._uploads_done:
                self._num_uploading -= 1
                self._uploads_done.notify_all()


class _FunctionChannel:
    """Sends a rank's records to the monitor; see ``sdk.channel.Channel``."""

    def __init__(self, rank: FunctionRank) -> None:
        self._rank = rank
        self._total_train_steps: int | None = None
        self._sent: Any = None
        self._last_step = -1

    def open(self, hello: Hello, on_announced_step: Callable[[int], bool], read_step: Callable[[], int]) -> None:
        self._total_train_steps = hello.total_train_steps
        self._rank.follow_signals(on_announced_step, read_step)

    def send(self, step: int, records: list[MetricRecord]) -> None:
        if step == self._last_step and not records:
            return
        if self._sent is not None:
            # One batch on its way at a time, so that a slow monitor is not flooded.
            ray.wait([self._sent])
        self._last_step = step
        rank = self._rank
        metrics = [Metric(r.step, rank.rank, rank.local_rank, r.time_unix_s, r.values) for r in records]
        self._sent = rank.monitor.record.remote(
            {rank.rank: step}, self._total_train_steps, metrics, rank.node_rank, False, rank.attempt
        )

    def save_checkpoint(self, step: int, replace_waiting: bool) -> None:
        if self._sent is not None:
            # The manifest has the metrics that the monitor knows when the snapshot is taken.
            ray.get(self._sent)
        try:
            self._rank.save_checkpoint(step)
        except OSError as err:
            raise PeriFlowError(f"the checkpoint of step {step} could not be saved: {err}") from err

    def close(self) -> None:
        if self._sent is not None:
            ray.wait([self._sent])


def _call_and_trace(train_loop: Callable[..., Any], config: dict[str, Any] | None) -> Any:
    takes_config = bool(inspect.signature(train_loop).parameters)
    try:
        return train_loop(config or {}) if takes_config else train_loop()
    except Exception:
        traceback.print_exc()
        raise


def _describe_exception(error: BaseException, node_rank: int, rank: int) -> Failure:
    # Past this module's two frames begins the user's code.
    own_frames = traceback.extract_tb(error.__traceback__)[2:]
    own = "".join(traceback.format_list(own_frames)).rstrip().splitlines()
    return Failure(
        node_rank=node_rank,
        rank=rank,
        time_unix_s=time.time(),
        last_lines=tuple(own[-NUM_SHOWN_LINES:]),
        summary=f"the function raised {type(error).__name__}: {error}",
    )
