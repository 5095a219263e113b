"""One node of a command job in this process: the production shell with real processes, and no Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from periflow_ray.jobs import claim_job_id, read_claim
from periflow_ray.jobs.logs import LogWriter, read_logs
from periflow_ray.plan import JobPlan, build_plan, find_vm
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.monitor.contract import AttemptStart
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot
from periflow_ray.submit.jobs import store_workspace
from periflow_ray.submit.workspace import scan_workspace
from support.links import NO_LINKS


class OneNode:
    """Runs one attempt after the other in the sandbox of one job."""

    def __init__(self, root: StorageRoot, job_id: int, shell: CommandShell, log: MemberLog, notes: list[str]) -> None:
        self.root = root
        self.job_id = job_id
        self.shell = shell
        self.log = log
        self.notes = notes
        self._attempt = 0

    def run(self, meanwhile: Callable[[CommandShell], None] = lambda shell: None) -> Failure | None:
        """Run an attempt to its end; ``meanwhile`` is called when its command has started."""
        self._attempt += 1
        try:
            self.shell.prepare(self._attempt, lambda text: None)
            self.shell.start(AttemptStart(self._attempt, 1), NO_LINKS)
            meanwhile(self.shell)
            return self.shell.wait()
        finally:
            self.shell.close()

    def take_lines(self) -> list[str]:
        """What the job's log has by now."""
        self.log.flush()
        return [line.text for line in read_logs(self.root, self.job_id)]


@contextlib.contextmanager
def open_node(
    root: StorageRoot,
    command: str | Mapping[str, str],
    *,
    workspace: Path | None = None,
    environ: Mapping[str, str] | None = None,
    **job_setting: Any,
) -> Iterator[OneNode]:
    """A job of this command on one node.

    Args:
        environ: what the command inherits; default is this process's.
        job_setting: further keys of that section.
    """
    job_id = claim_job_id(root)
    plan = plan_of(root, command, workspace, **job_setting)
    if workspace is not None:
        store_workspace(root, job_id, scan_workspace(workspace))
    notes: list[str] = []
    with MemberLog(LogWriter(root, job_id, 0), "node 0", is_local=True) as log:
        shell = CommandShell(plan, root, job_id, 0, read_claim(root, job_id), {}, log, notes.append, environ)
        try:
            yield OneNode(root, job_id, shell, log, notes)
        finally:
            shell.close()
            shell.close_launcher()


def plan_of(
    root: StorageRoot, command: str | Mapping[str, str], workspace: Path | None = None, **job_setting: Any
) -> JobPlan:
    """The plan of a job on one node of this machine."""
    docker = {"command": command, "env_var": job_setting.pop("env_var", {})}
    spec = JobSpec.model_validate(
        {"vm": "local", "num_devices": 1, "job_setting": {"type": "custom", "docker": docker, **job_setting}}
    )
    name = None if workspace is None else workspace.name
    return build_plan(spec, find_vm("local"), storage_uri=root.uri, workspace_dir_name=name)
