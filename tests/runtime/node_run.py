"""A command job's node without Ray: its shell, its log and its notes."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from support.links import NO_LINKS, TELLS_NOBODY

from periflow_ray.jobs import claim_job_id, read_claim
from periflow_ray.jobs.logs import LogWriter, read_logs
from periflow_ray.plan import build_plan, find_vm
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.diagnosis import Failure
from periflow_ray.runtime.environments.engine import Login
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.monitor.contract import AttemptStart
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot


@dataclass
class NodeRun:
    """A node's command while it runs, and what became of it."""

    root: StorageRoot
    log: MemberLog
    shell: CommandShell
    notes: list[str]
    failures: list[Failure | None] = field(default_factory=list)

    def start(self, attempt: int = 1) -> None:
        self.shell.prepare(attempt, TELLS_NOBODY)
        self.shell.start(AttemptStart(attempt, 1), NO_LINKS)
        self._thread = threading.Thread(target=lambda: self.failures.append(self.shell.wait() or self.shell.check()))
        self._thread.start()

    def finish(self) -> Failure | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        self.shell.close()
        self.shell.close_launcher()
        return self.failures[-1]

    def lines(self) -> list[str]:
        self.log.flush()
        return [line.text for line in read_logs(self.root, 1)]


def make_node_run(
    root: StorageRoot, command: str, image: str | None, login: Login | None = None, **docker: object
) -> NodeRun:
    requires = bool(docker.pop("require_image", False))
    more = {"python": docker.pop("python")} if "python" in docker else {}
    mount_path = docker.pop("workspace", "/workspace")
    spec = JobSpec.model_validate(
        {
            "vm": "local",
            "num_devices": 1,
            "job_setting": {
                "type": "custom",
                "docker": {"image": image, "command": command, **docker},
                "workspace": {"mount_path": mount_path},
                **more,
            },
            **({"checkpoint": {"output_checkpoint_dir": "/workspace/ckpt"}} if "CKPT_DIR" in command else {}),
        }
    )
    plan = build_plan(spec, find_vm("local"), storage_uri=root.uri, use_image=requires or None)
    claim_job_id(root)
    notes: list[str] = []
    log = MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True)
    shell = CommandShell(
        plan, root, 1, 0, read_claim(root, 1), {"MY_SECRET": "of the job"}, log, notes.append, login=login
    )
    return NodeRun(root, log, shell, notes)
