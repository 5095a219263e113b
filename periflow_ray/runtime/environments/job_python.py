"""The Python of a job's command on one node: a layer in the sandbox, above the job's environment or the cluster's."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping

from periflow_ray.errors import HopelessError, StorageError
from periflow_ray.jobs.environments import EnvironmentRecord, write_environment
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.environments.command_python import CommandPython
from periflow_ray.runtime.environments.container import Bind, Container
from periflow_ray.runtime.environments.cuda import TorchVersion, describe_mismatch, find_driver_cuda, find_torch
from periflow_ray.runtime.environments.image_python import ImagePython, ask_image
from periflow_ray.runtime.environments.install import Installer
from periflow_ray.runtime.environments.layer import Layer, PythonBelow, find_cluster_python
from periflow_ray.runtime.environments.packages import list_packages
from periflow_ray.runtime.environments.python_environment import OpenEnvironment, open_environment
from periflow_ray.runtime.environments.running import Running
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.sandbox import Sandbox
from periflow_ray.store.read_only import remove_tree
from periflow_ray.store.root import StorageRoot

_MARK = "above"
# No job waits longer for a storage to take what is only to be read later.
_RECORD_TIMEOUT_S = 10.0


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
        # What the image of this id has answered.
        self._asked: tuple[str, ImagePython | None] | None = None
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
        cluster = find_cluster_python()
        environment = self._environment = self._open_environment(sandbox, environ, tell)
        below = cluster if environment is None else environment.below
        layer = self._open_layer(sandbox, below)
        sees_cluster = environment is None or environment.has_cluster_packages
        cluster_dirs = cluster.own_program_dirs
        dirs = [str(layer.package_dir), *below.package_dirs, *(sys.path if sees_cluster else ())]
        self._check_torch(lambda: find_torch(dirs))
        self._begin_record(
            python=sys.executable if environment is None else below.interpreter,
            version=below.version,
            has_cluster_packages=sees_cluster,
            # All that this process finds, as where a `.pth` file of the cluster's leads.
            list_below=lambda: list_packages(sys.path),
        )
        return CommandPython(
            program_dirs=(*layer.program_dirs, *(cluster_dirs if sees_cluster else ())),
            hidden_dirs=frozenset() if sees_cluster else frozenset(cluster_dirs),
            variables={
                **_variables_of(layer),
                # An environment that is none, so that `conda install` refuses rather than change the cluster's.
                **({"CONDA_PREFIX": str(layer.directory)} if "CONDA_PREFIX" in environ else {}),
            },
        )

    def prepare_in(
        self, container: Container, sandbox: Sandbox, environ: Mapping[str, str], tell: Callable[[str], None]
    ) -> tuple[CommandPython, Container]:
        """As ``prepare``, for a command in a container, whose image has a Python or none.

        Without ``job_setting.python`` the image's Python is taken as it is.

        Returns:
            Also the container, which sees the environment.
        """
        self._release()
        if self._asked is None or self._asked[0] != container.image.id:
            self._asked = container.image.id, ask_image(container, os.environ)
        image, where = self._asked[1], f"{container.image.name} ({container.image.id})"
        if image is None:
            if self._plan.python is not None:
                raise HopelessError(f"job_setting.python needs a Python, and the image {container.image.name} has none")
            self._layer = None
            self._begin_record("", "", True, image=where)
            return CommandPython(), container
        environment = self._environment = self._open_environment(sandbox, environ, tell, container, image)
        layer = None if environment is None else self._open_layer(sandbox, environment.below)
        if environment is None:
            self._layer = None
        self._check_torch(lambda: image.torch if environment is None else find_torch(environment.below.package_dirs))
        self._begin_record(
            image.below.interpreter,
            image.below.version,
            environment is None or environment.has_cluster_packages,
            list_below=lambda: image.packages,
            image=where,
        )
        if environment is None or layer is None:
            return CommandPython(), container
        python = CommandPython(
            program_dirs=layer.program_dirs,
            variables=_variables_of(layer),
            package_dirs=(str(layer.package_dir), str(layer.user_package_dir), *environment.below.package_dirs),
        )
        directory = environment.use.path
        return python, container.with_bind(Bind(directory, str(directory), is_read_only=True))

    def end_installation(self) -> None:
        """Let an installation that runs, or that this attempt comes to, fail at once."""
        self._installing.end()

    def record_installed(self) -> None:
        """Record what the command has installed, after its end; where the storage is away, nobody will know."""
        if self._recording is None:
            return

        def record(former: threading.Thread = self._recording) -> None:
            former.join()
            self._record()

        recording = threading.Thread(target=record, name="record-installed", daemon=True)
        recording.start()
        recording.join(_RECORD_TIMEOUT_S)

    def close(self) -> None:
        """The attempt is over: the environment may be removed from now on, where there is no room."""
        self._release()
        self._installing = Running()

    def _release(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _open_environment(
        self,
        sandbox: Sandbox,
        environ: Mapping[str, str],
        tell: Callable[[str], None],
        container: Container | None = None,
        image: ImagePython | None = None,
    ) -> OpenEnvironment | None:
        spec = self._plan.python
        if spec is None:
            return None
        workspace_dir = sandbox.path_of(self._plan.workspace_mount_path) / (self._plan.workspace_dir_name or "")
        installer = Installer(environ, workspace_dir, self._log.write, self._log.mask, self._installing, container)

        def tell_all(text: str) -> None:
            tell(text)
            self._log.write(f"[environment] {text}")
            self._note(f"node {self._node_rank} {text}")

        return open_environment(spec, workspace_dir, installer, tell=tell_all, image=image)

    def _open_layer(self, sandbox: Sandbox, below: PythonBelow) -> Layer:
        self._layer = layer = Layer(sandbox.python_dir, below.minor_version)
        self._write_layer(layer, below)
        return layer

    def _check_torch(self, find: Callable[[], TorchVersion | None]) -> None:
        if not self._plan.gpus_per_device:
            return
        problem = describe_mismatch(find(), find_driver_cuda(), self._node_rank)
        if problem is not None:
            self._note(problem)

    def _begin_record(
        self,
        python: str,
        version: str,
        has_cluster_packages: bool,
        list_below: Callable[[], tuple[str, ...]] = tuple,
        image: str | None = None,
    ) -> None:
        """Record it, for which no command waits."""
        environment, layer = self._environment, self._layer

        def make() -> EnvironmentRecord:
            return EnvironmentRecord(
                node_rank=self._node_rank,
                python=python,
                version=version,
                environment=None if environment is None else environment.key,
                has_cluster_packages=has_cluster_packages,
                packages=list_below() if environment is None else environment.packages,
                installed=() if layer is None else list_packages([layer.package_dir, layer.user_package_dir]),
                image=image,
            )

        self._make_record = make
        self._recording = threading.Thread(target=self._record, name="record-python", daemon=True)
        self._recording.start()

    def _record(self) -> None:
        record = self._make_record()
        if record == self._recorded:
            return
        with contextlib.suppress(OSError, StorageError):  # It is tried once more at the command's end.
            write_environment(self._root, self._job_id, record)
            self._recorded = record

    def _write_layer(self, layer: Layer, below: PythonBelow) -> None:
        mark = layer.directory / _MARK
        wanted = repr(below)
        try:
            if mark.read_text() == wanted and os.path.lexists(layer.python):
                return
        except OSError:
            pass
        remove_tree(layer.directory)
        layer.write(below)
        mark.write_text(wanted)


def _variables_of(layer: Layer) -> dict[str, str]:
    return {"VIRTUAL_ENV": str(layer.directory), "PYTHONUSERBASE": str(layer.user_dir)}
