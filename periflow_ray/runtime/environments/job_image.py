"""The image that a job's commands on this node run in: found, fetched, or done without."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from periflow_ray.errors import JobFailedError
from periflow_ray.plan import JobPlan
from periflow_ray.runtime.environments.container import Container, binds_of, has_gpus, label_of
from periflow_ray.runtime.environments.engine import Engine, Image, Login, NoEngineError, find_engine
from periflow_ray.runtime.environments.running import Running
from periflow_ray.runtime.member.sandbox import Sandbox


class JobImage:
    """One node's share of it.

    Args:
        login: for the image's registry.
        note: takes a sentence that the user should read.
    """

    def __init__(self, plan: JobPlan, node_rank: int, login: Login | None, note: Callable[[str], None]) -> None:
        self._plan = plan
        self._node_rank = node_rank
        self._login = login
        self._note = note
        self._engine: Engine | None = None
        self._image: Image | None = None
        self._has_told = False
        self._has_opened = False
        self._fetching = Running()

    def end_leftovers(self, sandbox: Path) -> None:
        """End the containers that an agent which was killed has left in a sandbox.

        Raises:
            JobFailedError: the job requires its image, and there is no engine.
        """
        # Those of this agent's own attempts are gone when its commands have ended.
        if self._plan.image is None or self._engine is not None:
            return
        try:
            self._engine = find_engine()
        except NoEngineError as err:
            self._do_without(f"{err}. Install Docker or Podman there")
            return
        if self._engine.remove_labelled(label_of(sandbox)):
            self._note("ended a container, left over from an earlier attempt on this node")

    def open(self, sandbox: Sandbox, dataset: Path | None, tell: Callable[[str], None]) -> Container | None:
        """What the commands run in; None for this machine as it is.

        Args:
            dataset: where the files of the job's dataset are.
            tell: takes what is done now.
        Raises:
            HopelessError: the registry refuses it.
            JobFailedError: the image cannot be fetched, or the job requires it and it is not here.
        """
        engine, plan = self._engine, self._plan
        if plan.image is None or engine is None:
            return None
        if shutil.which(engine.program) is None:
            raise JobFailedError(f"{engine.name} is not on node {self._node_rank} any more ({engine.program})")
        image = self._image or engine.find_image(plan.image)
        if image is None and plan.vm.is_local and not plan.require_image:
            if self._has_opened:
                raise JobFailedError(
                    f"the image '{plan.image}', in which the job ran until now, is not on this machine any more. Fetch "
                    f"it again ({engine.name} pull), or submit with --require-image"
                )
            self._do_without("this machine does not have it, and without --require-image a local job fetches none")
            return None
        if image is None:
            doing = f"fetches the image '{plan.image}' with {engine.name}"
            tell(doing)
            self._note(f"node {self._node_rank} {doing}")
            image = engine.pull(plan.image, self._login, lambda line: print(line, file=sys.stderr), self._fetching)
        if plan.gpus_per_device and not self._has_opened and not has_gpus(engine):
            self._note(
                f"containers on node {self._node_rank} have no GPUs, because Podman has no list of them there. Make "
                "it as root: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
            )
        self._image, self._has_opened = image, True
        return Container(engine, image, sandbox.directory, binds_of(plan, sandbox.path_of, dataset), plan.image_options)

    def look_again(self) -> None:
        """A container could not be started: the image may have been removed."""
        self._image = None

    def end_fetch(self) -> None:
        """Let a fetch that runs, or that this attempt comes to, fail at once."""
        self._fetching.end()

    def close(self) -> None:
        """The attempt is over."""
        self._fetching = Running()

    def _do_without(self, why: str) -> None:
        text = f"the image '{self._plan.image}' is not used on node {self._node_rank}: {why}"
        if self._plan.require_image:
            raise JobFailedError(text)
        if not self._has_told:
            self._has_told = True
            self._note(f"{text}. The command runs in the cluster's Python environment")
