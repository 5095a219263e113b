"""A job as far as checkpoints go: a rank, its member and the monitor, joined by the real SDK and the real Ray."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench_figures.programs import Helper, clean_environment

SIZE_VARIABLE = "PERIFLOW_BENCH_CHECKPOINT_MIB"
# The size that the goals are set for; a smaller one is for trying the bench out.
CHECKPOINT_BYTES = int(os.environ.get(SIZE_VARIABLE, "1024")) << 20
LAYOUTS = {"1file": 1, "64files": 64}
BASELINE_KEY = "baseline"
_ANSWER_TIMEOUT_S = 180.0
_CHECKPOINTS_KEY = "jobs/1/checkpoints"


@dataclass(frozen=True)
class Save:
    """One ``upload_checkpoint()``; times in seconds of the machine's monotonic clock."""

    began_s: float
    returned_s: float

    @property
    def stall_s(self) -> float:
        """Seconds inside the call."""
        return self.returned_s - self.began_s


class CheckpointJob:
    """A rank that writes and saves checkpoints, and the member that commits them to ``storage_uri``."""

    def __init__(self, member: Helper, rank: Helper, output_dir: Path, storage_uri: str) -> None:
        self.output_dir = output_dir
        self.storage_uri = storage_uri
        self._member = member
        self._rank = rank

    def write_files(self) -> None:
        """Let the rank write all files anew, and wait until the disk has them."""
        self._rank.ask("write")
        # Else whoever is measured first pays for this.
        os.sync()

    def save(self) -> Save:
        """Let the rank call ``upload_checkpoint()``; ``wait_for_commit`` has to follow before the next call."""
        began_s, returned_s = map(float, self._rank.ask("save").split())
        return Save(began_s, returned_s)

    def train(self, seconds: float, *, saves: bool) -> tuple[int, float]:
        """Let the rank train; returns its steps and the seconds outside ``upload_checkpoint()``."""
        num_steps, seconds_outside = self._rank.ask(f"train {seconds} {'save' if saves else 'alone'}").split()
        return int(num_steps), float(seconds_outside)

    def wait_for_commit(self) -> float:
        """When the last saved checkpoint was committed."""
        return float(self._member.ask("commit"))

    def delete_copies(self) -> None:
        """Delete all checkpoints and the baseline's copy from the storage root."""
        self._member.ask(f"delete {_CHECKPOINTS_KEY}")
        self._member.ask(f"delete {BASELINE_KEY}")

    def mark_memory(self) -> None:
        """Begin to measure the member's memory."""
        self._member.ask("mark_memory")

    def peak_memory_mib(self) -> float:
        """What the member had at most since ``mark_memory``, beyond what it had then."""
        return float(self._member.ask("peak_memory"))


@contextlib.contextmanager
def checkpoint_job(
    directory: Path, storage_uri: str, *, num_files: int, num_bytes: int, environment: Mapping[str, str] | None = None
) -> Iterator[CheckpointJob]:
    """A running job; what it keeps in ``directory`` goes with it.

    Args:
        environment: how the storage server is reached.
    """
    job_dir = Path(tempfile.mkdtemp(prefix="job-", dir=directory))
    try:
        with ExitStack() as helpers:

            def start(name: str, *arguments: str, **env: str) -> Helper:
                env = clean_environment(**env)
                return helpers.enter_context(Helper(name, *arguments, env=env, answer_timeout_s=_ANSWER_TIMEOUT_S))

            member = start(
                "checkpoint_member",
                storage_uri,
                # Its sandbox goes with the job.
                TMPDIR=str(job_dir),
                # Ray's logs go with the figure. Not below the job: Ray has sockets there, whose paths must be short.
                RAY_TMPDIR=str(directory),
                **(environment or {}),
            )
            output_dir = Path(member.ask("output_folder"))
            rank = start(
                "checkpoint_rank",
                str(output_dir),
                str(num_files),
                str(num_bytes),
                PERIFLOW_ENABLED="1",
                PERIFLOW_SESSION=member.ask("socket"),
                CKPT_DIR=str(output_dir),
            )
            yield CheckpointJob(member, rank, output_dir, storage_uri)
    finally:
        shutil.rmtree(job_dir, ignore_errors=True)


@contextlib.contextmanager
def bench_directory() -> Iterator[Path]:
    """A directory of the disk for one figure, removed with everything in it."""
    # A Unix-domain socket's path has 107 bytes at most, so not below a long TMPDIR.
    with tempfile.TemporaryDirectory(prefix="periflow-bench-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield Path(directory)
