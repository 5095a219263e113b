"""The Python of a job's command on one node: a layer in the sandbox, above the job's environment or the cluster's."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping

from periflow_ray.errors import StorageError
from periflow_ray.jobs.environments import EnvironmentRecord, write_environment
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.environments.command_python import CommandPython
from periflow_ray.runtime.environments.cuda import describe_mismatch, find_driver_cuda, find_torch
from periflow_ray.runtime.environments.install import Installer, Running
from periflow_ray.runtime.environments.layer import Layer, PythonBelow, find_cluster_python
from periflow_ray.runtime.environments.packages import list_packages
from periflow_ray.runtime.environments.python_environment import OpenEnvironment, open_environment
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store.read_only import remove_tree
from periflow_ray.store.root import StorageRoot

_MARK = "above"


class JobPython:
    """Makes a command's Python ready for one attempt after the other, and records what it is.

    Args:
        note: takes a sentence that the user should read.
    """

    def __init__(
        self,
        plan: JobPlan,
        root: StorageRoot,
        job_id: int,
        node_rank: int,
        log: MemberLog,
        note: Callable[[str], None],
    ) -> None:
        self._plan = plan
        self._root = root
        self._job_id = job_id
        self._node_rank = node_rank
        self._log = log
        self._note = note
        self._environment: OpenEnvironment | None = None
        self._below: PythonBelow | None = None
        self._layer: Layer | None = None
        self._recorded: EnvironmentRecord | None = None
        self._recording: threading.Thread | None = None
        self._installing = Running()

    def prepare(self, sandbox: Sandbox, environ: Mapping[str, str], tell: Callable[[str], None]) -> CommandPython:
        """Make it ready, and keep it until ``close``.

        Args:
            sandbox: with the workspace, where requirements files are.
            environ: variables of the command.
            tell: takes what is done now.
        Raises:
            HopelessError: the packages cannot be installed, and could not be in another attempt.
            OSError, PeriflowRayError: it cannot be made for other reasons.
        """
        self._release()
        directory, spec = sandbox.python_dir, self._plan.python
        cluster = below = find_cluster_python()
        if spec is not None:
            workspace_dir = sandbox.path_of(self._plan.workspace_mount_path) / (self._plan.workspace_dir_name or "")
            installer = Installer(environ, workspace_dir, self._log.write, self._log.mask, self._installing)

            def tell_all(text: str) -> None:
                tell(text)
                self._log.write(f"[environment] {text}")
                self._note(f"node {self._node_rank} {text}")

            self._environment = open_environment(spec, workspace_dir, installer, tell=tell_all)
            below = self._environment.below
        self._below = below
        self._layer = layer = Layer(directory, below.minor_version)
        self._write_layer(layer, below)
        sees_cluster = self._environment is None or self._environment.has_cluster_packages
        cluster_dirs = cluster.own_program_dirs
        if self._plan.gpus_per_device:
            self._check_torch(sees_cluster)
        # No command waits for it.
        self._recording = threading.Thread(target=self._record, name="record-python", daemon=True)
        self._recording.start()
        return CommandPython(
            program_dirs=(*layer.program_dirs, *(cluster_dirs if sees_cluster else ())),
            hidden_dirs=frozenset() if sees_cluster else frozenset(cluster_dirs),
            variables={
                "VIRTUAL_ENV": str(directory),
                "PYTHONUSERBASE": str(layer.user_dir),
                # An environment that is none, so that `conda install` refuses rather than change the cluster's.
                **({"CONDA_PREFIX": str(directory)} if "CONDA_PREFIX" in environ else {}),
            },
        )

    def end_installation(self) -> None:
        """Let an installation that runs, or that this attempt comes to, fail at once."""
        self._installing.end()

    def record_installed(self) -> None:
        """Record what the command has installed, after its end; where the storage is away, nobody will know."""
        if self._recording is not None:
            self._recording.join()
        self._record()

    def close(self) -> None:
        """The attempt is over: the environment may be removed from now on, where there is no room."""
        self._release()
        self._installing = Running()

    def _release(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _check_torch(self, sees_cluster: bool) -> None:
        assert self._layer is not None
        assert self._below is not None
        dirs = [str(self._layer.package_dir), *self._below.package_dirs, *(sys.path if sees_cluster else ())]
        problem = describe_mismatch(find_torch(dirs), find_driver_cuda(), self._node_rank)
        if problem is not None:
            self._note(problem)

    def _record(self) -> None:
        assert self._below is not None
        assert self._layer is not None
        environment, below = self._environment, self._below
        record = EnvironmentRecord(
            node_rank=self._node_rank,
            python=sys.executable if environment is None else below.interpreter,
            version=below.version,
            environment=None if environment is None else environment.key,
            has_cluster_packages=environment is None or environment.has_cluster_packages,
            # All that this process finds, as where a `.pth` file of the cluster's leads.
            packages=list_packages(sys.path) if environment is None else environment.packages,
            installed=list_packages([self._layer.package_dir, self._layer.user_package_dir]),
        )
        if record == self._recorded:
            return
        with contextlib.suppress(OSError, StorageError):  # It is tried once more at the command's end.
            write_environment(self._root, self._job_id, record)
            self._recorded = record

    def _write_layer(self, layer: Layer, below: PythonBelow) -> None:
        mark = layer.directory / _MARK
        wanted = repr(below)
        try:
            if mark.read_text() == wanted and os.path.exists(layer.python):
                return
        except OSError:
            pass
        remove_tree(layer.directory)
        layer.write(below)
        mark.write_text(wanted)
