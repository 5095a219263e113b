"""The embedded cluster: one Ray head on this machine's loopback, shared by the jobs of ``--local``.

It starts with the first job, is reused while it lives, and ends itself some minutes after its last job; see
``local_supervisor`` for the process that owns it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from periflow_ray.errors import ClusterError, DamagedDocumentError
from periflow_ray.private_files import create_private, is_own_directory, make_own_directory
from periflow_ray.ray_jobs import RayJobs, connect
from periflow_ray.store.documents import dump_document, parse_document
from periflow_ray.user_dirs import state_dir

DIR_VARIABLE = "PERIFLOW_LOCAL_CLUSTER_DIR"
START_TIMEOUT_S = 120.0
# Jobs that run on it save first.
STOP_TIMEOUT_S = 90.0
_SUPERVISOR = "periflow_ray.submit.local_supervisor"
_POLL_S = 0.1
# Most hold the lock for less.
_LOCK_PATIENCE_S = 1.0


@dataclass(frozen=True)
class ClusterFacts:
    """What all jobs of an embedded cluster share, because Ray has it from the shell that started the cluster.

    Args:
        python: the environment with the interpreter and its packages; empty where it is not known.
        gpus: ``CUDA_VISIBLE_DEVICES``; None for all of them, and on a machine that has none.
    """

    python: str = ""
    gpus: str | None = None

    @classmethod
    def of_this_process(cls) -> ClusterFacts:
        """Those of a cluster that this process starts."""
        has_gpus = os.path.isdir("/proc/driver/nvidia/gpus")
        return cls(sys.prefix, os.environ.get("CUDA_VISIBLE_DEVICES") if has_gpus else None)

    def describe_difference(self, wanted: ClusterFacts) -> str | None:
        """How a cluster differs from the wanted one; None if it does not."""
        if self.python and self.python != wanted.python:
            return f"the Python of {self.python}, and not that of {wanted.python}"
        if self.python and self.gpus != wanted.gpus:
            return f"{_describe_gpus(self.gpus)}, and not {_describe_gpus(wanted.gpus)}"
        return None


def _describe_gpus(gpus: str | None) -> str:
    return "all GPUs" if gpus is None else f"CUDA_VISIBLE_DEVICES={gpus}"


@dataclass(frozen=True)
class LocalCluster:
    """A running embedded cluster; ``supervisor_pid`` is the process that ends it."""

    address: str
    supervisor_pid: int
    facts: ClusterFacts = ClusterFacts()


class LocalClusterDir:
    """The directory through which submitters and the supervisor find each other.

    Args:
        directory: default is ``PERIFLOW_LOCAL_CLUSTER_DIR``, else the user's state directory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        default = state_dir() / "local-cluster"
        self.path = directory or Path(os.environ.get(DIR_VARIABLE) or default)
        self.token_path = self.path / "token"
        self.log_path = self.path / "supervisor.log"
        self.cloud_environment_dir = self.path / "cloud-environment"
        self._record_path = self.path / "cluster.json"
        self._used_path = self.path / "last-used"

    @contextmanager
    def lock(self, doing: str, tell: Callable[[str], None] = lambda text: None) -> Iterator[None]:
        """Keep other submitters and the supervisor's decision to end out.

        Args:
            doing: what for, as others who wait are told: ``ends the embedded cluster``.
            tell: takes a sentence about whom this one waits for.
        Raises:
            PermissionError: the directory is another user's, or others may write to it.
        """
        # A link is the user's own; what it leads to is looked at.
        make_own_directory(Path(os.path.realpath(self.path)))
        with (self.path / "lock").open("a+") as file:
            _take_lock(file, tell)
            file.truncate(0)
            file.write(f"process {os.getpid()}, which {doing}")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def read(self) -> LocalCluster | None:
        """The cluster that was started last, whether or not it still lives.

        None where its record is damaged, or where others may have written it.

        Raises:
            NewerFormatError: a later version started it, and this one cannot use it.
        """
        if not is_own_directory(Path(os.path.realpath(self.path))):
            return None
        try:
            return parse_document(LocalCluster, self._record_path.read_bytes(), f"'{self._record_path}'")
        except (OSError, DamagedDocumentError):
            return None

    def write(self, cluster: LocalCluster) -> None:
        """Publish a cluster that is ready for jobs."""
        partial = self._record_path.with_suffix(".partial")
        partial.write_bytes(dump_document(cluster, indent=None))
        partial.replace(self._record_path)

    def forget(self) -> None:
        """Take the cluster's address back before it ends."""
        self._record_path.unlink(missing_ok=True)

    def touch(self) -> None:
        """Note that somebody is about to use the cluster."""
        self._used_path.touch()

    def idle_s(self) -> float:
        """Seconds since somebody last said that they use the cluster."""
        try:
            return max(0.0, time.time() - self._used_path.stat().st_mtime)
        except OSError:
            return 0.0

    def create_token(self) -> None:
        """Make a new token, readable by this user only."""
        self.token_path.unlink(missing_ok=True)
        create_private(self.token_path, secrets.token_hex(32).encode())


def ensure_local_cluster(tell: Callable[[str], None] = lambda text: None) -> RayJobs:
    """The Jobs API of the embedded cluster, which is started if it is not running.

    One of another Python, or of other GPUs, is given up for a new one if it has nothing to do.

    Args:
        tell: takes a sentence about what takes time.
    Raises:
        ClusterError: it did not start, and the message has the end of its log, or it is another shell's and busy.
    """
    with hold_local_cluster(tell, doing="looks for the embedded cluster, or starts it") as jobs:
        return jobs


@contextmanager
def hold_local_cluster(
    tell: Callable[[str], None] = lambda text: None, doing: str = "submits a job"
) -> Iterator[RayJobs]:
    """As ``ensure_local_cluster``; nobody replaces or ends the cluster meanwhile.

    A job is submitted in it: an idle cluster may have been given up since it was asked for.
    """
    directory = LocalClusterDir()
    with directory.lock(doing, tell):
        cluster = directory.read()
        if cluster is None or not _answers(cluster, directory):
            tell("Starting the embedded Ray cluster on this machine ...")
            cluster = _start(directory)
        elif difference := cluster.facts.describe_difference(ClusterFacts.of_this_process()):
            if connect(cluster.address, directory.token_path).has_running_jobs():
                raise ClusterError(
                    f"the embedded Ray cluster of this machine has {difference}, and it runs jobs of the shell that "
                    "started it. Wait for them (periflow-ray job list), or stop them, or give this shell a cluster of "
                    f"its own: export {DIR_VARIABLE}=~/another-cluster"
                )
            tell(f"Starting another embedded Ray cluster: the idle one has {difference} ...")
            # Its supervisor sees that it is not the current one any more, and ends it.
            cluster = _start(directory)
        directory.touch()
        yield connect(cluster.address, directory.token_path)


def find_local_cluster() -> RayJobs | None:
    """The Jobs API of the embedded cluster if it is running."""
    directory = LocalClusterDir()
    cluster = directory.read()
    if cluster is None or not _answers(cluster, directory):
        return None
    return connect(cluster.address, directory.token_path)


def stop_local_cluster(directory: LocalClusterDir, tell: Callable[[str], None] = lambda text: None) -> bool:
    """Stop the jobs on the embedded cluster, end it and wait until it has ended; False if it does not run.

    Raises:
        ClusterError: it has not ended in time.
    """
    deadline = time.monotonic() + STOP_TIMEOUT_S
    doing = f"ends the embedded cluster, whose jobs may take {STOP_TIMEOUT_S:.0f} s to save"
    with directory.lock(doing, tell):
        cluster = directory.read()
        if cluster is None or not _is_supervisor(cluster.supervisor_pid):
            directory.forget()
            return False
        jobs = connect(cluster.address, directory.token_path)
        # A cluster that does not answer any more is ended all the same.
        with contextlib.suppress(ClusterError):
            jobs.stop_all()
            while jobs.has_running_jobs() and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        directory.forget()
        os.kill(cluster.supervisor_pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while _is_supervisor(cluster.supervisor_pid):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the embedded cluster has not ended within {STOP_TIMEOUT_S:.0f} s; its process is "
                f"{cluster.supervisor_pid}, its log {directory.log_path}"
            )
        time.sleep(_POLL_S)
    return True


def _take_lock(file: TextIO, tell: Callable[[str], None]) -> None:
    tells_at_s = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > tells_at_s:
                tells_at_s = math.inf
                file.seek(0)
                tell(f"Waiting for {file.read() or 'another process, which uses the embedded cluster'} ...")
            time.sleep(_POLL_S)


def _is_supervisor(pid: int) -> bool:
    """Whether the process still is what it was; its number may be another one's by now."""
    try:
        # Empty for one that has ended and whose parent has not asked how.
        return _SUPERVISOR in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def _answers(cluster: LocalCluster, directory: LocalClusterDir) -> bool:
    try:
        os.kill(cluster.supervisor_pid, 0)
        connect(cluster.address, directory.token_path).check()
    except (ProcessLookupError, PermissionError, ClusterError):
        return False
    return True


def _start(directory: LocalClusterDir) -> LocalCluster:
    directory.forget()
    directory.create_token()
    # Left by drivers that never came up; those of this cluster have not been submitted yet.
    shutil.rmtree(directory.cloud_environment_dir, ignore_errors=True)
    with directory.log_path.open("wb") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", _SUPERVISOR, str(directory.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        cluster = directory.read()
        if cluster is not None:
            return cluster
        if supervisor.poll() is not None:
            break
        time.sleep(_POLL_S)
    supervisor.terminate()
    tail = "\n".join(directory.log_path.read_text(errors="replace").splitlines()[-15:])
    raise ClusterError(f"the embedded Ray cluster did not start. The end of {directory.log_path}:\n{tail}")
