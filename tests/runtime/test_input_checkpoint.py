"""The checkpoint of another job that a command job begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.links import TELLS_NOBODY
from support.trees import read_tree, write_tree

from periflow_ray.jobs import claim_job_id, read_claim
from periflow_ray.jobs.logs import LogWriter
from periflow_ray.plan import build_plan, find_vm
from periflow_ray.runtime.command_jobs.shell import CommandShell
from periflow_ray.runtime.member import sandbox as sandbox_module
from periflow_ray.runtime.member.log import MemberLog
from periflow_ray.spec import JobSpec
from periflow_ray.store.checkpoints import destroy
from periflow_ray.store.checkpoints.imports import upload_checkpoint_dir


@pytest.fixture
def shell(root, tmp_path, monkeypatch):
    """Of a job that begins with checkpoint ``base``."""
    upload_checkpoint_dir(root, write_tree(tmp_path / "source", {"model.pt": b"base"}), "base")
    spec = JobSpec.model_validate(
        {
            "vm": "local",
            "num_devices": 1,
            "job_setting": {"type": "custom", "docker": {"command": "true"}},
            "checkpoint": {"input": {"id": "base", "mount_path": "/workspace/base"}, "output_checkpoint_dir": "/ckpt"},
        }
    )
    plan = build_plan(spec, find_vm("local"), storage_uri=root.uri)
    monkeypatch.setattr(sandbox_module, "_base_dir", lambda: tmp_path / "sandboxes")
    claim_job_id(root)
    with MemberLog(LogWriter(root, 1, 0), "node 0", is_local=True) as log:
        shell = CommandShell(plan, root, 1, 0, read_claim(root, 1), {}, log, print)
        yield shell
        shell.close()


def test_it_is_fetched_once_and_may_be_gone_when_the_job_starts_again(shell, root):
    shell.prepare(1, TELLS_NOBODY)
    base: Path = shell._sandbox.path_of("/workspace/base")
    assert read_tree(base) == {"model.pt": b"base"}
    (base / "model.pt").touch()
    fetched_at = base.stat().st_mtime_ns
    destroy(root, None, "base")
    root.delete("checkpoints/base")
    shell.prepare(2, TELLS_NOBODY)
    assert read_tree(base) == {"model.pt": b"base"}
    assert base.stat().st_mtime_ns == fetched_at


def test_it_is_fetched_again_where_a_file_of_it_was_deleted(shell):
    shell.prepare(1, TELLS_NOBODY)
    base: Path = shell._sandbox.path_of("/workspace/base")
    (base / "model.pt").unlink()
    shell.close()
    shell.prepare(2, TELLS_NOBODY)
    assert read_tree(base) == {"model.pt": b"base"}
