"""An embedded cluster and a storage root of a figure's own, gone when the figure is measured."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench_figures.programs import clean_environment, note, run_program, venv_program
from bench_figures.row import FigureError
from periflow_ray.submit.local_cluster import DIR_VARIABLE, LocalCluster, LocalClusterDir

END_TIMEOUT_S = 60.0
# The embedded cluster of a bench that was killed must not stay for long.
IDLE_S = 120


@dataclass(frozen=True)
class EmbeddedCluster:
    """Where the cluster, its jobs and whatever a figure writes live; the first job starts the cluster."""

    directory: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The environment of programs that use this cluster and no other."""
        return clean_environment(
            **{
                DIR_VARIABLE: str(self.directory / "cluster"),
                "PERIFLOW_STORAGE": str(self.directory / "storage"),
                "PERIFLOW_LOCAL_IDLE_S": str(IDLE_S),
                **self.variables,
            }
        )

    @property
    def ray_env(self) -> dict[str, str]:
        """As ``env``, for Ray's own command line: address, token, and loopback as its only network.

        Raises:
            FigureError: no job has started the cluster yet.
        """
        found = self._find()
        return {
            **self.env,
            "RAY_ADDRESS": found.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._directory.token_path),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }

    @property
    def supervisor_pid(self) -> int:
        """The process that all of the cluster's are below.

        Raises:
            FigureError: no job has started the cluster yet.
        """
        return self._find().supervisor_pid

    def submit(self, template: Path, workspace: Path, *options: str, timeout_s: float) -> str:
        """Run a job of two devices to its end as a user does; returns its output.

        Raises:
            FigureError: it failed, or took longer than ``timeout_s``.
        """
        argv = ["submit", "--local", "--num-devices", "2", *options, "-f", str(template), "-d", str(workspace)]
        return self.run(*argv, timeout_s=timeout_s)

    def start(self, template: Path, workspace: Path, *options: str, timeout_s: float) -> int:
        """Start a job of two devices; returns its number.

        Raises:
            FigureError: it could not be submitted.
        """
        answer = self.submit(template, workspace, "--no-follow", *options, timeout_s=timeout_s)
        return int(answer.partition("(")[2].partition(")")[0])

    def run(self, *arguments: str, timeout_s: float) -> str:
        """The output of a command of ours.

        Raises:
            FigureError: it failed, or took longer than ``timeout_s``.
        """
        return run_program([venv_program("periflow-ray"), *arguments], env=self.env, timeout_s=timeout_s)

    def end(self) -> None:
        """End the cluster if it runs, and wait for that."""
        found = self._directory.read()
        if found is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(found.supervisor_pid, signal.SIGTERM)
        deadline_s = time.monotonic() + END_TIMEOUT_S
        while _is_running(found.supervisor_pid):
            if time.monotonic() > deadline_s:
                note(f"the embedded cluster (process {found.supervisor_pid}) did not end in {END_TIMEOUT_S:.0f} s")
                return
            time.sleep(0.1)

    def _find(self) -> LocalCluster:
        found = self._directory.read()
        if found is None:
            raise FigureError("the embedded cluster is not running")
        return found

    @property
    def _directory(self) -> LocalClusterDir:
        return LocalClusterDir(self.directory / "cluster")


@contextlib.contextmanager
def embedded_cluster(variables: Mapping[str, str] | None = None) -> Iterator[EmbeddedCluster]:
    """A cluster for one figure; its directory is removed with everything in it.

    Args:
        variables: more of its environment.
    """
    with tempfile.TemporaryDirectory(prefix="periflow-bench-", ignore_cleanup_errors=True) as directory:
        cluster = EmbeddedCluster(Path(directory), variables or {})
        try:
            yield cluster
        finally:
            cluster.end()


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # Where process 1 reaps nothing, an ended process stays as a zombie.
    return state != "Z"
