"""What differs between kinds of jobs: where a member's user code runs, and how it is ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from periflow_ray.jobs.metrics import Metric
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.monitor.contract import AttemptStart, Beginning, Departure, EndAttempt
from periflow_ray.store.checkpoints import Manifest


@dataclass(frozen=True)
class Records:
    """What a member's ranks did since the records were last taken.

    Args:
        steps: each rank's current step.
        is_pausing: no rank has a step to make now: each is in ``upload_checkpoint``, at its last step, or has ended.
        asks_for_saves: some rank has asked ``is_emergency_save``.
        has_read_checkpoint, beginnings: see ``Report``.
    """

    steps: Mapping[int, int]
    total_train_steps: int | None = None
    metrics: tuple[Metric, ...] = ()
    is_pausing: bool = False
    asks_for_saves: bool = False
    has_read_checkpoint: bool | None = None
    beginnings: Mapping[int, Beginning] = field(default_factory=dict)


@dataclass(frozen=True)
class Links:
    """What the user's code reaches of its member, through its shell.

    Args:
        save: takes the step and whether a checkpoint whose upload has not begun may be replaced; returns when the
            output folder may be changed again. Raises OSError.
        miss_save: takes the announced step, when a rank is already beyond it or the ranks saved at different ones.
        save_from: as ``save``, but takes the step, a directory in place of the output folder, and whether to return
            only when the checkpoint is committed or given up.
        meet_at_report: waits for the other members at this one's ``number``-th ``ray.train.report``; takes whether it
            brings files, and returns whether any of them does.
        newest_commit: the checkpoint that the attempt committed last.
    """

    save: Callable[[int, bool], None]
    miss_save: Callable[[int], None]
    save_from: Callable[[int, Path, bool], None]
    meet_at_report: Callable[[int, bool], bool]
    newest_commit: Callable[[], Manifest | None]


class Shell(Protocol):
    """Runs the user's code of one attempt after the other.

    Args:
        output_dir: what ``upload_checkpoint`` saves; None if the job declares none.
        brings_files: whether this member restores and uploads for its node; another one of the node does it otherwise.
        restarts_in_place: whether another attempt may run in the same Ray Train worker.
        meets_others: whether a save waits for the ranks of all members, and no member starts before all are prepared;
            otherwise the shell itself makes its ranks meet.
    """

    output_dir: Path | None
    brings_files: bool
    restarts_in_place: bool
    meets_others: bool

    def prepare(self, attempt: int, tell: Callable[[str], None]) -> Path:
        """Make ready what the user's code needs but the checkpoint; returns the directory for snapshots.

        Args:
            tell: takes what is done now where that may last: ``fetches the image 'a'``.
        Raises:
            OSError, PeriflowRayError: it cannot be made ready.
        """

    def end_preparation(self) -> None:
        """Make ``prepare`` fail soon, from any thread, if it is at something that takes long. See ``end``."""

    def start(self, start: AttemptStart, links: Links) -> None:
        """Start the user's code, or make ready to; from now on orders may come.

        Raises:
            OSError: it cannot be started.
        """

    def wait(self) -> Failure | None:
        """Return when the user's code has ended, by itself or by ``end``; why it failed, or None."""

    def take_records(self) -> Records:
        """Everything since the last call, from any thread."""

    def ask_steps(self, timeout_s: float) -> None:
        """Let every rank say its step at once, so that the next ``take_records`` has it."""

    def announce(self, step: int, departure: Departure | None) -> None:
        """Tell every rank, even later ones, the step of an announced save, and who is to leave after it."""

    def pids(self) -> Mapping[int, int]:
        """Process id of each rank that has a session."""

    def end(self, order: EndAttempt) -> None:
        """Make ``wait`` return soon. Only where another attempt may run in this worker."""

    def leave_group(self, reason: str) -> None:
        """End this Ray Train worker, and with it its group, though ``wait`` goes on. Only where ``end`` cannot."""

    def check(self) -> Failure | None:
        """Whether user code that has ended without a failure did what a job needs."""

    def close(self) -> None:
        """Take in what the ranks still sent, and let go of what the attempt held; call it even twice."""
