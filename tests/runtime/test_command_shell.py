"""The shell of a command job's member, with real processes and no Ray."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.powerless_keeper import use_powerless_keeper

from periflow_ray.jobs import claim_job_id, read_claim
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.plan import build_plan, find_vm
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.runtime.member.shell import Links
from periflow_ray.runtime.monitor.contract import AttemptStart
from periflow_ray.spec import JobSpec
from periflow_ray.store.root import StorageRoot


@pytest.fixture
def sandboxes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sandboxes of the test's own, for whose sockets the path of ``tmp_path`` may be too long."""
    with tempfile.TemporaryDirectory(prefix="pf-", dir="/tmp") as directory:
        monkeypatch.setattr(sandbox_module, "_base_dir", lambda: Path(directory) / "sandboxes")
        yield


@pytest.mark.usefixtures("sandboxes")
def test_a_process_that_cannot_be_ended_is_told_and_the_next_attempt_has_other_directories(
    root: StorageRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_powerless_keeper(tmp_path, monkeypatch)
    spec = JobSpec.model_validate(
        {
            "vm": "local",
            "num_devices": 1,
            "job_setting": {"type": "custom", "docker": {"command": "sleep 1000 & exit 3"}},
            "checkpoint": {"output_checkpoint_dir": "/workspace/ckpt"},
        }
    )
    plan = build_plan(spec, find_vm("local"), storage_uri=root.uri)
    notes: list[str] = []
    claim_job_id(root)
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
        shell = CommandShell(plan, root, 1, 0, read_claim(root, 1), {}, log, notes.append)
        shell.prepare(1)
        first = shell.output_dir
        shell.start(
            AttemptStart(1, 1),
            Links(
                lambda step, replace_waiting: None,
                lambda step: None,
                lambda step, source, is_awaited: None,
                lambda number, has_files: has_files,
                lambda: None,
            ),
        )
        failure = shell.wait()
        shell.close()
        shell.close_launcher()
        assert failure is not None
        assert failure.exit_code == 3
        left = re.fullmatch(r"process (\d+) \(sleep 1000\) on node 0 cannot be ended, .*", notes[-1])
        assert left is not None, notes
        shell.prepare(2)
        assert first is not None
        assert shell.output_dir == Path(str(first).replace("/node-0/", "/node-0.1/"))
    os.kill(int(left[1]), signal.SIGKILL)
