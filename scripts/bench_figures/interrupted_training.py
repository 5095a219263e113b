"""One training on two ranks of this machine that gets killed and goes on: as a job, as plain Ray Train, under torchrun.

All three run ``measured/interrupted/training.py`` and write down each of their steps. Ray Train keeps its checkpoints
on the same disk and looks after its workers as often as our jobs let it do, which is eight times its default; its
workers and the job's nodes are on the same embedded cluster.

Long because the trainings differ in how they start and stop, and in nothing else.
"""

from __future__ import annotations

import abc
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench_figures.embedded_cluster import EmbeddedCluster
from bench_figures.programs import MEASURED_DIR, NUM_SHOWN_LINES, clean_environment, run_program, venv_program
from bench_figures.row import FigureError
from periflow_ray.processes import Command
from periflow_ray.runtime.ray_train.train_run import POLL_INTERVAL_S

T = TypeVar("T")

NUM_RANKS = 2
STEP_TIME_S = 0.05
START_TIMEOUT_S = 180.0
# Of every wait for what should take seconds.
TIMEOUT_S = 180.0
GRACE_S = 5.0
# Also what finding a rank to have made its step may take longer; the times themselves come from the ranks.
_POLL_S = 0.2
_WORKSPACE = MEASURED_DIR / "interrupted"
# One for each rank, as the job's nodes and Ray Train's workers have it.
_NUM_THREADS = 1

_TEMPLATE = """\
name: interrupted
vm: local
num_devices: {num_ranks}
max_failures: 1000
job_setting:
  type: custom
  launch_mode: {launch_mode}
  docker:
    image: {image}
    options: [{options}]
    env_var:
      OMP_NUM_THREADS: {num_threads}
    command: cd /workspace/{workspace} && {command}
  workspace:
    mount_path: /workspace
checkpoint:
  output_checkpoint_dir: /workspace/ckpt
"""
_TORCHRUN = (
    "torchrun --nnodes $NUM_NODES --node_rank $NODE_RANK --master_addr $MASTER_ADDR --master_port $MASTER_PORT "
    "--nproc_per_node $NPROC_PER_NODE main.py"
)


@dataclass(frozen=True)
class ImageSetup:
    """An image, the options that bring torch into its containers, and the Python that finds it there."""

    name: str
    options: tuple[str, ...]
    python: str


@dataclass(frozen=True)
class Mark:
    """What a process of a rank did when; ``process`` is its number and when it began, since numbers come again."""

    what: str
    time_unix_s: float
    process: str

    @property
    def step(self) -> int | None:
        """The step, if it made one."""
        return int(self.what) if self.what.isdigit() else None


class InterruptedTraining(abc.ABC):
    """A running training; use it in a ``with`` statement.

    Args:
        steps_per_checkpoint: every so many steps there is one.
        step_time_s: how long a step takes at least.
    """

    def __init__(self, cluster: EmbeddedCluster, steps_per_checkpoint: int, step_time_s: float = STEP_TIME_S) -> None:
        self.cluster = cluster
        self.steps_per_checkpoint = steps_per_checkpoint
        self.directory = Path(tempfile.mkdtemp(prefix="training-", dir=cluster.directory))
        self.marks_dir = self.directory / "marks"
        self.marks_dir.mkdir()
        self._arguments = [str(self.marks_dir), str(step_time_s), str(steps_per_checkpoint)]

    def __enter__(self) -> InterruptedTraining:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @abc.abstractmethod
    def start(self) -> None:
        """Start it; its first steps come later."""

    @abc.abstractmethod
    def stop(self) -> None:
        """End it, and whatever it started."""

    @abc.abstractmethod
    def describe_trouble(self) -> str:
        """What it printed last."""

    def marks(self, rank: int) -> list[Mark]:
        """Everything that a rank did so far."""
        try:
            lines = (self.marks_dir / f"rank-{rank}").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [Mark(what, float(time_unix_s), process) for what, time_unix_s, process in map(str.split, lines)]

    def wait_for_new_processes(self, after_unix_s: float = 0.0) -> float:
        """Wait until every rank has made a step in a process that began after a time; returns when all had."""
        return max(
            self._wait_for(lambda rank=rank: self._first_new_step(rank, after_unix_s)) for rank in range(NUM_RANKS)
        )

    def wait_for_step(self, after_unix_s: float) -> None:
        """Wait until rank 0 has made a step after a time."""
        self._wait_for(
            lambda: next((m for m in self.marks(0) if m.step is not None and m.time_unix_s > after_unix_s), None)
        )

    def wait_for_checkpoint(self) -> None:
        """Train so far that there is at least one more checkpoint than now."""
        step = self.last_step() + 2 * self.steps_per_checkpoint
        self._wait_for(lambda: self.last_step() >= step or None)

    def step_at(self, time_unix_s: float) -> int:
        """How far rank 0 was at a time with steps that were not made again later; it has made one since."""
        steps = [(mark.time_unix_s, mark.step) for mark in self.marks(0) if mark.step is not None]
        before = [step for made_unix_s, step in steps if made_unix_s <= time_unix_s]
        after = [step for made_unix_s, step in steps if made_unix_s > time_unix_s]
        return min(before[-1], min(after) - 1) if before and after else 0

    def last_step_before_restart(self, after_unix_s: float) -> int:
        """The highest step of any rank in the processes that were there at a time."""
        steps = [0]
        for rank in range(NUM_RANKS):
            marks = self.marks(rank)
            old = {mark.process for mark in marks if mark.time_unix_s <= after_unix_s}
            steps += [mark.step for mark in marks if mark.process in old and mark.step is not None]
        return max(steps)

    def last_step(self) -> int:
        """The step that rank 0 made last."""
        return next((mark.step for mark in reversed(self.marks(0)) if mark.step is not None), 0)

    def kill_rank(self, rank: int) -> float:
        """SIGKILL the process of a rank; returns when."""
        pid = self._find_process(rank)
        now_unix_s = time.time()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return now_unix_s

    def _find_process(self, rank: int) -> int:
        """The process of a rank, which a container counts otherwise."""
        for directory in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (directory / "cmdline").read_bytes().split(b"\0")
                is_training = str(self.marks_dir).encode() in arguments and arguments[0].endswith(b"python")
                if is_training and f"RANK={rank}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                    return int(directory.name)
        return int(self.marks(rank)[-1].process.partition(".")[0])

    def _first_new_step(self, rank: int, after_unix_s: float) -> float | None:
        marks = self.marks(rank)
        old = {mark.process for mark in marks if mark.time_unix_s <= after_unix_s}
        return next((mark.time_unix_s for mark in marks if mark.step is not None and mark.process not in old), None)

    def _wait_for(self, find: Callable[[], T | None]) -> T:
        deadline_s = time.monotonic() + TIMEOUT_S
        while (found := find()) is None:
            if time.monotonic() > deadline_s:
                raise FigureError(f"the training did not go on within {TIMEOUT_S:.0f} s:\n{self.describe_trouble()}")
            time.sleep(_POLL_S)
        return found


class JobTraining(InterruptedTraining):
    """A command job on two stand-in nodes.

    Args:
        uses_torchrun: whether its command is a torchrun rather than Python.
        image: what it runs in; None for this machine as it is.
    """

    def __init__(
        self,
        cluster: EmbeddedCluster,
        steps_per_checkpoint: int,
        step_time_s: float = STEP_TIME_S,
        *,
        uses_torchrun: bool = False,
        image: ImageSetup | None = None,
    ) -> None:
        super().__init__(cluster, steps_per_checkpoint, step_time_s)
        self._image = image
        self.job_id = 0
        self._uses_torchrun = uses_torchrun

    def start(self) -> None:
        """See ``InterruptedTraining``."""
        image = self._image
        program = _TORCHRUN if self._uses_torchrun else f"{image.python if image else 'python'} main.py"
        options = [] if image is None else [*image.options, f"--volume={self.directory}:{self.directory}"]
        template = self.directory / "pf-template.yml"
        template.write_text(
            _TEMPLATE.format(
                num_ranks=NUM_RANKS,
                launch_mode="node" if self._uses_torchrun else "device",
                workspace=_WORKSPACE.name,
                command=" ".join([program, *self._arguments]),
                num_threads=_NUM_THREADS,
                image="none" if image is None else image.name,
                options=", ".join(options),
            )
        )
        use = "--no-image" if image is None else "--require-image"
        self.job_id = self.cluster.start(template, _WORKSPACE, use, timeout_s=START_TIMEOUT_S)

    def stop(self) -> None:
        """See ``InterruptedTraining``."""
        if self.job_id:
            self.cluster.run("job", "stop", str(self.job_id), "--now", timeout_s=TIMEOUT_S)

    def describe_trouble(self) -> str:
        """See ``InterruptedTraining``."""
        events = self.cluster.run("job", "events", str(self.job_id), timeout_s=TIMEOUT_S)
        log = self.cluster.run("job", "log", str(self.job_id), timeout_s=TIMEOUT_S)
        return "\n".join([*events.splitlines(), *log.splitlines()[-NUM_SHOWN_LINES:]])


class RayTraining(InterruptedTraining):
    """Plain Ray Train V2 on the embedded cluster, which a job must have started."""

    def start(self) -> None:
        """See ``InterruptedTraining``."""
        # Without a runtime environment: Ray then has processes ready for the workers.
        self._ray_job("submit", "--no-wait", "--submission-id", self._submission_id, "--", *self._argv())

    def stop(self) -> None:
        """See ``InterruptedTraining``."""
        self._ray_job("stop", self._submission_id)

    def describe_trouble(self) -> str:
        """See ``InterruptedTraining``."""
        return "\n".join(self._ray_job("logs", self._submission_id).splitlines()[-NUM_SHOWN_LINES:])

    @property
    def _submission_id(self) -> str:
        return self.directory.name

    def _argv(self) -> list[str]:
        arguments = [*self._arguments, str(self.directory / "ray-train"), str(POLL_INTERVAL_S)]
        return [sys.executable, str(_WORKSPACE / "ray_main.py"), *arguments]

    def _ray_job(self, command: str, *arguments: str) -> str:
        argv = [venv_program("ray"), "job", command, *arguments]
        return run_program(argv, env=self.cluster.ray_env, timeout_s=TIMEOUT_S)


class TorchrunTraining(InterruptedTraining):
    """``torchrun --max-restarts`` of one node with both ranks."""

    def __init__(self, cluster: EmbeddedCluster, steps_per_checkpoint: int) -> None:
        super().__init__(cluster, steps_per_checkpoint)
        self._command: Command | None = None
        self._lines: list[str] = []

    def start(self) -> None:
        """See ``InterruptedTraining``."""
        checkpoint_dir = self.directory / "checkpoints"
        checkpoint_dir.mkdir()
        argv = [venv_program("torchrun"), "--standalone", "--nproc-per-node", str(NUM_RANKS), "--max-restarts", "1000"]
        self._command = Command(
            [*argv, "main.py", *self._arguments],
            env=clean_environment(
                CKPT_DIR=str(checkpoint_dir),
                OMP_NUM_THREADS=str(_NUM_THREADS),
                PYTHONUNBUFFERED="1",
                # Else the ranks that are started again find the addresses of those before them, and fail once more.
                TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
            ),
            working_dir=_WORKSPACE,
            grace_s=GRACE_S,
            on_line=self._lines.append,
        ).start()

    def stop(self) -> None:
        """See ``InterruptedTraining``."""
        if self._command is not None:
            self._command.stop()
            self._command.wait()

    def describe_trouble(self) -> str:
        """See ``InterruptedTraining``."""
        return "\n".join(self._lines[-NUM_SHOWN_LINES:])
