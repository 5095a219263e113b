"""What ``ray.train``'s calls mean in a function job's worker: its metrics, checkpoints and notices are the job's own.

Ray's own ``report`` would upload the checkpoint into Ray's record of the run, which neither the job's retention rules
nor a stop know, and takes as long as Ray Train polls its workers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray.train

from periflow_ray.errors import UsageError
from periflow_ray.runtime.function_jobs.channel import FunctionChannel
from periflow_ray.runtime.member.shell import Links
from periflow_ray.runtime.monitor.contract import Departure
from periflow_ray.runtime.ray_private import DistributedTrainContext, DistributedTrainFnUtils, set_preemption_info
from periflow_ray.runtime.ray_train.workers import as_ray_checkpoint
from periflow_ray.sdk import session
from periflow_ray.sdk.session import SAVE_NOW
from periflow_ray.store import checkpoints
from periflow_ray.store.checkpoints import Manifest
from periflow_ray.store.read_only import remove_tree
from periflow_ray.store.root import StorageRoot

_SYNC, _ASYNC = ray.train.CheckpointUploadMode.SYNC, ray.train.CheckpointUploadMode.ASYNC


@dataclass(frozen=True)
class RaySetup:
    """What a rank is told of the trainer's Ray arguments.

    Args:
        experiment_name: what ``get_context().get_experiment_name()`` says.
        resume_from: what ``get_checkpoint()`` says while the job has no checkpoint of its own.
        has_callbacks: whether Ray Train's controller hears of each report, too, because the trainer has callbacks.
    """

    experiment_name: str
    resume_from: ray.train.Checkpoint | None = None
    has_callbacks: bool = False


class RayWords(DistributedTrainFnUtils):  # type: ignore[misc]
    """Answers ``ray.train``'s calls of one rank in one attempt; what is not here Ray answers itself.

    Args:
        restored: the checkpoint that the attempt began with.
        brings_files: whether this rank saves for its node.
        reported_dir: where the ranks of a node lay together what they report.
        note: takes a sentence that the user should read.
    """

    def __init__(
        self,
        setup: RaySetup,
        root: StorageRoot,
        job_id: int,
        links: Links,
        restored: Manifest | None,
        *,
        brings_files: bool,
        reported_dir: Path,
        note: Callable[[str], None],
    ) -> None:
        self._setup = setup
        self._root = root
        self._job_id = job_id
        self._links = links
        self._restored = restored
        self._brings_files = brings_files
        self._reported_dir = reported_dir
        self._note = note
        self._channel: FunctionChannel | None = None
        self._num_reports = 0
        self._num_own_sessions = 0
        self._reported: tuple[Path, bool] | None = None
        self._announced: tuple[int, Departure] | None = None
        self._has_told_name = False
        self.reported_metrics: dict[str, Any] | None = None
        """Those of the last report."""

    # The shell calls these.

    def follow(self, channel: FunctionChannel) -> None:
        """Tell whose session it is."""
        self._channel = channel

    def save(self, step: int, replace_waiting: bool) -> None:
        """Save what is being reported, else the output folder; see ``Links.save``."""
        if self._reported is not None:
            self._links.save_from(step, *self._reported)
        else:
            self._links.save(step, replace_waiting)

    def announce(self, step: int, departure: Departure | None) -> None:
        """A save was announced; without a departure it is taken back."""
        self._announced = None if departure is None else (step, departure)

    # Ray calls these for ``ray.train``.

    def report(
        self,
        metrics: dict[str, Any],
        checkpoint: ray.train.Checkpoint | None = None,
        checkpoint_dir_name: str | None = None,
        checkpoint_upload_mode: ray.train.CheckpointUploadMode = _SYNC,
        delete_local_checkpoint_after_upload: bool | None = None,
        checkpoint_upload_fn: Callable[..., Any] | None = None,
        validation: Any = False,
    ) -> None:
        """Record metrics, and save a checkpoint of the files that any of the ranks brings.

        A report is a step, unless the function counts its steps with the SDK. Collective: call on all ranks.

        Raises:
            UsageError: an argument has no meaning in a job.
            PeriFlowError: the files could not be copied.
        """
        refuse_foreign(checkpoint_upload_fn, validation)
        if checkpoint_dir_name is not None and not self._has_told_name:
            self._has_told_name = True
            self._note(f"checkpoint_dir_name={checkpoint_dir_name!r} is not used: checkpoints are named by their step")
        self._num_reports += 1
        source = self._reported_dir / str(self._num_reports)
        if checkpoint is not None:
            bring(checkpoint, source)
        # Before the session is opened: all ranks do that at one time, and none is taken for one that has forgotten it.
        has_files = self._links.meet_at_report(self._num_reports, checkpoint is not None)
        self._record(metrics)
        self.reported_metrics = metrics
        if has_files:
            self._save(source, is_awaited=checkpoint_upload_mode != _ASYNC)
        if delete_local_checkpoint_after_upload is None:
            delete_local_checkpoint_after_upload = checkpoint_upload_mode == _ASYNC
        if checkpoint is not None and delete_local_checkpoint_after_upload and is_local(checkpoint):
            shutil.rmtree(checkpoint.path, ignore_errors=True)
        if self._setup.has_callbacks:
            committed = self.get_checkpoint() if has_files and self._is_first_rank() else None
            super().report(metrics, committed, checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD)

    def get_checkpoint(self) -> ray.train.Checkpoint | None:
        """The job's newest committed checkpoint, at the beginning the one to resume from."""
        newest = self._links.newest_commit() or self._restored
        if newest is None:
            return self._setup.resume_from
        return as_ray_checkpoint(self._root, self._job_id, newest.checkpoint)

    def get_all_reported_checkpoints(
        self, consistency_mode: Any = None, timeout_s: float | None = None
    ) -> list[ray.train.ReportedCheckpoint]:
        """Every checkpoint that the job has, oldest first."""
        status = ray.train.ReportedCheckpointStatus.COMMITTED
        return [
            ray.train.ReportedCheckpoint(as_ray_checkpoint(self._root, self._job_id, found.checkpoint), metrics, status)
            for found in checkpoints.list_committed(self._root, self._job_id)
            for metrics in [dict(found.metrics)]
        ]

    def get_context(self) -> RayContext:
        """Ray's own, with the job's name."""
        return RayContext(self._setup.experiment_name)

    def get_preemption_info(self) -> ray.train.PreemptionInfo | None:
        """Which machines go, once it is time to save for that; what rank 0 knows. Collective: call on all ranks."""
        if session.is_initialized():
            # The monitor waits for the save of a function that asks.
            session.is_emergency_save()
        set_preemption_info(self._describe_departure())
        info: ray.train.PreemptionInfo | None = super().get_preemption_info()
        return info

    def _describe_departure(self) -> ray.train.PreemptionInfo | None:
        if self._announced is None:
            return None
        announced_step, departure = self._announced
        # What is reported next is saved at this step.
        step = 0 if self._channel is None else self._channel.read_step()
        if not session.is_initialized() or self._counts_steps():
            step += 1
        if announced_step != SAVE_NOW and step < announced_step:
            return None
        members = {machine: list(ranks) for machine, ranks in departure.members.items()}
        return ray.train.PreemptionInfo(departure.deadline_unix_ms, members)

    def _record(self, metrics: Mapping[str, Any]) -> None:
        assert self._channel is not None
        if not session.is_initialized():
            session.init()
            self._num_own_sessions = self._channel.num_sessions
        if self._counts_steps():
            session.start_step()
        session.metric(dict(flatten(metrics)))
        if self._counts_steps():
            session.end_step()

    def _save(self, source: Path, is_awaited: bool) -> None:
        # A rank without files of its own, whose node has none either.
        source.mkdir(parents=True, exist_ok=True)
        self._reported = (source, is_awaited)
        try:
            session.upload_checkpoint()
        finally:
            self._reported = None
            if self._brings_files:
                remove_tree(source)

    def _counts_steps(self) -> bool:
        """Whether this session was opened here, and not by the function."""
        return self._channel is not None and self._channel.num_sessions == self._num_own_sessions

    def _is_first_rank(self) -> bool:
        return bool(self.get_context().get_world_rank() == 0)


class RayContext(DistributedTrainContext):  # type: ignore[misc]
    """Ray's context, but for the name: that of Ray's run is the job's number."""

    def __init__(self, experiment_name: str) -> None:
        self._experiment_name = experiment_name

    def get_experiment_name(self) -> str:
        """The job's name."""
        return self._experiment_name


def refuse_foreign(checkpoint_upload_fn: Callable[..., Any] | None, validation: Any) -> None:
    """Refuse arguments of a report that have no meaning in a job.

    Raises:
        UsageError: there is one.
    """
    if checkpoint_upload_fn is not None:
        raise UsageError(
            "ray.train.report(checkpoint_upload_fn=...): the job uploads checkpoints itself. Leave it out."
        )
    if validation:
        raise UsageError(
            "ray.train.report(validation=...): a job has no validation tasks. Evaluate in the function and report "
            "the metrics."
        )


def bring(checkpoint: ray.train.Checkpoint, target: Path) -> None:
    """Add a checkpoint's files to a directory; of files with one name the first one stays, as it is the same one."""
    with checkpoint.as_directory() as directory:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copytree(directory, target, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> str:
    try:
        # The snapshot that is taken next is the copy.
        os.link(os.path.realpath(source), target)
    except FileExistsError:
        pass
    except OSError:
        whole = f"{target}.{os.getpid()}.part"
        shutil.copy2(source, whole)
        os.replace(whole, target)
    return target


def is_local(checkpoint: ray.train.Checkpoint) -> bool:
    """Whether its files are on this machine."""
    return isinstance(checkpoint.filesystem, pyarrow.fs.LocalFileSystem)


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Metrics by one name each: ``{"eval": {"loss": 1}}`` is ``eval/loss``."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
